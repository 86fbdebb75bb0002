//! The disk, behind one small trait, for everything that promises durability.
//!
//! Spool, courier, journal, inbox and ingest write through [`Disk`] and through nothing else, so that the
//! same code runs on [`RealDisk`] in production and on [`SimDisk`] in the simulator, which forgets at a
//! crash what was not synced.
//!
//! The laws that both keep:
//! - what was appended is durable only after [`AppendFile::sync`] returned `Ok`;
//! - a name (created, renamed, removed) is durable only after [`Disk::sync_dir`] of its folder returned `Ok`;
//! - a rename is whole or not at all;
//! - a sync that failed is not tried again: the kernel may have dropped the data and call the next one a
//!   success. After it, the handle refuses everything.

mod real;
pub mod sim;
#[cfg(test)]
mod tests;
mod timed;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

pub use real::RealDisk;
pub use sim::{SimDisk, SimFaults};
pub use timed::TimedDisk;

/// Files and folders as the durable parts of BGB need them. Every error names its path.
pub trait Disk: Send + Sync {
    /// The whole file. For files whose size the caller has bounded; see [`Disk::open_read`] for large ones.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Opens a file to be read at offsets; `InvalidInput` for what is no regular file.
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn ReadAt>>;
    /// Opens a file to be appended to, at its end; creates it (mode 0640) if it is missing.
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>>;
    /// Creates a file (mode 0640) to be appended to; `AlreadyExists` if there is one.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn AppendFile>>;
    /// Renames a file, replacing what bears the new name. Folders are not renamed.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable. A rename between two folders needs both.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Creates a folder and those above it; those that exist are no error.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// What is in a folder, sorted by name. Names that are not UTF-8 are left out: every name that BGB
    /// gives is ASCII, so such a file is a stranger's, and nobody here could say its name in a log.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    /// Bytes that an unprivileged process may still write in this folder's file system.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// A file that grows at its end.
pub trait AppendFile: Send {
    /// Appends all the bytes. On an error, part of them may be in the file: truncate to the length before,
    /// or give the file up.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes all that was appended durable. A sync that fails is final: this handle refuses all from then on.
    fn sync(&mut self) -> io::Result<()>;
    /// Bytes in the file.
    fn len(&self) -> io::Result<u64>;
    /// Cuts the file to `len` bytes, at most its length. Durable after the next sync.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Whether the file holds no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A file that is read at offsets.
pub trait ReadAt: Send {
    /// Bytes in the file.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Whether the file holds no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// One name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, without its folder.
    pub name: String,
    /// Bytes of a file; of a folder, 0.
    pub len: u64,
    /// Whether it is a folder. A symbolic link is not followed: it is neither folder nor longer than itself.
    pub is_dir: bool,
}

/// Replaces a file as a whole, durably: after `Ok` the new bytes are there for good; after an error or a
/// crash, either the old bytes or the new ones are, never a mixture.
///
/// It writes `.NAME.tmp` beside the file, so that two callers must not replace one path at the same time.
///
/// # Errors
/// The first step that failed. The temporary file may stay, and the next call writes over it.
pub fn replace_durably(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    try_replace(disk, path, bytes).map_err(ReplaceError::into_inner)
}

/// Why a file was not replaced, for those who may try again after a write that failed, but never after a sync.
#[derive(Debug)]
pub enum ReplaceError {
    /// It could not be written: the old bytes are there. It may be tried again when there is room.
    Write(io::Error),
    /// A sync failed: either the old bytes are there or the new ones, and nobody can tell which will be after a crash.
    Sync(io::Error),
}

impl ReplaceError {
    /// What the system said.
    #[must_use]
    pub fn into_inner(self) -> io::Error {
        match self {
            Self::Write(error) | Self::Sync(error) => error,
        }
    }
}

impl std::fmt::Display for ReplaceError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Write(error) | Self::Sync(error)) = self;
        error.fmt(formatter)
    }
}

/// Does what [`replace_durably`] does, and says which kind of step failed.
///
/// # Errors
/// As [`replace_durably`].
pub fn try_replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), ReplaceError> {
    let (dir, temporary) = beside(path).map_err(ReplaceError::Write)?;
    write_temporary(disk, &temporary, bytes)?;
    disk.rename(&temporary, path).map_err(ReplaceError::Write)?;
    disk.sync_dir(dir).map_err(ReplaceError::Sync)
}

/// The folder of the file at `path`, and the name of the temporary file beside it.
///
/// # Errors
/// `InvalidInput` when the path names no file in a folder.
pub fn beside(path: &Path) -> io::Result<(&Path, PathBuf)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        let text = format!("{} names no file in a folder", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    Ok((dir, dir.join(temporary)))
}

/// Writes a file that is to be renamed, and syncs it.
///
/// What an earlier call has left under the name is written over, not removed: a crash may undo a removal and keep a later renaming, and would
/// then give the left-over the name that counts. So each file that ever bears it is whole before it is renamed.
///
/// # Errors
/// Which step failed. The file then stays, empty as far as that can be done, so that a full disk has its room again.
pub fn write_temporary(disk: &dyn Disk, temporary: &Path, bytes: &[u8]) -> Result<(), ReplaceError> {
    let mut file = disk.open_append(temporary).map_err(ReplaceError::Write)?;
    let written = file
        .truncate(0)
        .and_then(|()| file.append(bytes))
        .map_err(ReplaceError::Write)
        .and_then(|()| file.sync().map_err(ReplaceError::Sync));
    if written.is_err() {
        // By a handle of its own: one whose sync has failed does nothing any more.
        let _ = disk.open_append(temporary).and_then(|mut file| file.truncate(0));
    }
    written
}

/// Creates a folder and those above it that are missing, durably: their names are there after a crash as well.
///
/// # Errors
/// The first step that failed.
pub fn create_dir_durably(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir
        .ancestors()
        .take_while(|path| {
            let listed = disk.list(path);
            listed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        })
        .collect();
    disk.create_dir_all(dir)?;
    for path in missing.into_iter().rev() {
        if let Some(parent) = path.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            disk.sync_dir(parent)?;
        }
    }
    Ok(())
}
