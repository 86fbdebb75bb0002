//! Key and token files: read only when nobody else can, written so that nobody else ever could.
//!
//! Law: a daemon refuses to start on a key that others can read, since by then it must be taken as known
//! to them. The checks are made on the open descriptor, not on the name, so that nothing can be swapped
//! between look and read; a symbolic link as the last part of the name is not followed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use thiserror::Error;

/// The longest secret that is read, in bytes: a PEM file with a key and a chain is a few KiB.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// A secret is its owner's alone.
const SECRET_MODE: u32 = 0o600;

/// The permission bits that group and others must not have.
const OTHERS_MASK: u32 = 0o077;

/// Why a secret was not read or written.
#[derive(Debug, Error)]
pub enum SecretError {
    /// There is no such file.
    #[error("{}: there is no such key file", path.display())]
    Missing {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// Others may read or write it.
    #[error(
        "{}: others can read this key file (mode {mode:04o}); run `chmod 600 {}`, and replace the key if somebody \
         may have read it",
        path.display(),
        path.display()
    )]
    OpenToOthers {
        /// The file that was asked for.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is a symbolic link.
    #[error("{}: is a symbolic link; name the key file itself", path.display())]
    Link {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// It is a folder, a pipe or a device.
    #[error("{}: is not a regular file; name the key file itself", path.display())]
    NotAFile {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// It is longer than 64 KiB.
    #[error("{}: is longer than {SECRET_BYTES_MAX} bytes; is it a key file?", path.display())]
    TooLong {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// There is a file already; secrets are not overwritten.
    #[error("{}: exists already and is not overwritten; remove it first if it is no longer needed", path.display())]
    Exists {
        /// The file that was to be written.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{}: {what}: {source}", path.display())]
    Io {
        /// The file in question.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads a secret of at most 64 KiB.
///
/// # Errors
/// When the file is missing, readable by others, a link, not a regular file, too long, or unreadable.
pub fn read(path: &Path) -> Result<Vec<u8>, SecretError> {
    let owned = || path.to_owned();
    // O_NONBLOCK: opening a pipe must not wait for a writer; it means nothing to a regular file.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags(OFlags::NOFOLLOW | OFlags::NONBLOCK))
        .open(path)
        .map_err(|source| match rustix::io::Errno::from_io_error(&source) {
            Some(rustix::io::Errno::LOOP) => SecretError::Link { path: owned() },
            Some(rustix::io::Errno::NOENT) => SecretError::Missing { path: owned() },
            _ => SecretError::Io { path: owned(), what: "cannot be opened", source },
        })?;
    let unreadable = |source| SecretError::Io { path: owned(), what: "cannot be read", source };
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(SecretError::NotAFile { path: owned() });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS_MASK != 0 {
        return Err(SecretError::OpenToOthers { path: owned(), mode });
    }
    // One that grows would leave what it has held behind.
    let mut bytes = Vec::with_capacity(metadata.len().min(SECRET_BYTES_MAX) as usize + 1);
    file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(SecretError::TooLong { path: owned() });
    }
    Ok(bytes)
}

/// Writes a new secret with mode 0600, durably: file and folder are synced.
///
/// # Errors
/// When there is such a file already, or the system refuses; then no half-written file is left behind as
/// far as it can be removed.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), SecretError> {
    let failed = |what| move |source| SecretError::Io { path: path.to_owned(), what, source };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(SECRET_MODE).open(path).map_err(|source| {
            match source.kind() {
                io::ErrorKind::AlreadyExists => SecretError::Exists { path: path.to_owned() },
                _ => failed("cannot be created")(source),
            }
        })?;
    if let Err(source) = file.write_all(bytes).and_then(|()| file.sync_all()) {
        // The first error is the one that matters.
        let _ = std::fs::remove_file(path);
        return Err(failed("cannot be written")(source));
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("its folder cannot be synced"))
}

/// The flags in the type that the standard library takes.
fn flags(flags: OFlags) -> i32 {
    i32::try_from(flags.bits()).expect("the flags of open(2) are those of a C int")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_was_written_is_read_and_only_its_owner_may() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("site.key");
        write_new(&path, b"secret").unwrap();
        assert_eq!(read(&path).unwrap(), b"secret");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("site.key");
        write_new(&path, b"secret").unwrap();
        for open in [0o640, 0o604, 0o660, 0o610, 0o602] {
            mode(&path, open);
            let text = read(&path).unwrap_err().to_string();
            assert!(text.contains(&format!("chmod 600 {}", path.display())), "{text}");
        }
        mode(&path, 0o400);
        assert_eq!(read(&path).unwrap(), b"secret");
    }

    #[test]
    fn a_link_a_folder_a_pipe_and_a_missing_file_are_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("site.key");
        assert!(matches!(read(&path), Err(SecretError::Missing { .. })));
        write_new(&path, b"secret").unwrap();
        let link = folder.path().join("link.key");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(read(&link), Err(SecretError::Link { .. })));
        assert!(matches!(read(folder.path()), Err(SecretError::NotAFile { .. })));
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        assert!(matches!(read(&pipe), Err(SecretError::NotAFile { .. })));
    }

    #[test]
    fn a_file_of_more_than_64_kib_is_refused_and_one_of_just_that_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fits.key");
        write_new(&path, &vec![7; 64 * 1024]).unwrap();
        assert_eq!(read(&path).unwrap().len(), 64 * 1024);
        let path = folder.path().join("long.key");
        write_new(&path, &vec![7; 64 * 1024 + 1]).unwrap();
        assert!(matches!(read(&path), Err(SecretError::TooLong { .. })));
    }

    #[test]
    fn a_secret_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("site.key");
        write_new(&path, b"first").unwrap();
        assert!(matches!(write_new(&path, b"second"), Err(SecretError::Exists { .. })));
        assert_eq!(read(&path).unwrap(), b"first");
    }
}
