//! One process at a time: a lock on a file, held until the process ends.
//!
//! Two managers on one database would sign different heads and take in the same files; two servers on one spool would remove
//! each other's logs; two agents on one journal would each execute a task. None of these is stopped by what they share, so each takes
//! such a lock before it touches anything. The kernel drops it with the process, however that ends, so that there is nothing to
//! clean up.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use thiserror::Error;

/// Nobody else has business with it.
const LOCK_MODE: u32 = 0o600;
/// Bytes of a process id that are read for the error: numbers go up to 2^22 (proc(5)).
const PID_BYTES_MAX: u64 = 16;

/// Why the lock could not be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process has it.
    #[error("another {what} (process {holder}) is at work here: it holds {}; stop that one first", path.display())]
    Held {
        /// What such a process is called.
        what: &'static str,
        /// The lock's file.
        path: PathBuf,
        /// The process that has it, as it wrote itself.
        holder: String,
    },
    /// The file cannot be used.
    #[error("{}: the lock cannot be taken: {source}; check owner and mode of the file and its folder", path.display())]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The lock, held as long as this lives.
#[derive(Debug)]
pub struct ProcessLock {
    _file: File,
}

impl ProcessLock {
    /// Takes the lock on `path`, whose folder must be there; `what` is what this program is called in a sentence.
    ///
    /// # Errors
    /// As [`LockError`] says.
    pub fn take(path: &Path, what: &'static str) -> Result<Self, LockError> {
        let failed = |source: io::Error| LockError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(LOCK_MODE)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the sentence; a file that cannot be read gives an empty one.
                let _ = file.take(PID_BYTES_MAX).read_to_string(&mut holder);
                return Err(LockError::Held {
                    what,
                    path: path.to_owned(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_told_who_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = ProcessLock::take(&path, "manager").unwrap();
        let error = ProcessLock::take(&path, "manager").unwrap_err();
        let LockError::Held { holder, .. } = &error else { panic!("{error}") };
        assert_eq!(*holder, std::process::id().to_string());
        assert!(error.to_string().starts_with("another manager (process "), "{error}");
        drop(held);
        ProcessLock::take(&path, "manager").unwrap();
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, precious) = (folder.path().join("lock"), folder.path().join("precious"));
        std::fs::write(&precious, "kept").unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        assert!(matches!(ProcessLock::take(&path, "agent"), Err(LockError::Io { .. })));
        assert_eq!(std::fs::read(&precious).unwrap(), b"kept");
    }
}
