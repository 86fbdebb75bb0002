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

use std::io;
use std::path::Path;

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
/// The first step that failed. The temporary file is then removed as well as that can be done.
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
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ReplaceError::Write(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} names no file in a folder", path.display()),
        )));
    };
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(".tmp");
    let temporary = dir.join(temporary_name);

    clear_leftover(disk, &temporary)?;
    let written = write_synced(disk, &temporary, bytes)
        .and_then(|()| disk.rename(&temporary, path).map_err(ReplaceError::Write));
    if let Err(error) = written {
        // The first error is the one that matters; a temporary file that stays is removed by the next call.
        let _ = clear_leftover(disk, &temporary);
        return Err(error);
    }
    disk.sync_dir(dir).map_err(ReplaceError::Sync)
}

/// Removes what a call that did not come to its end has left under its temporary name, durably: another file is to have that name, and a crash
/// that undoes the removal and keeps what comes after must not rename this one instead.
///
/// # Errors
/// Which step failed; nothing of what counts has changed.
pub fn clear_leftover(disk: &dyn Disk, temporary: &Path) -> Result<(), ReplaceError> {
    match disk.remove(temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ReplaceError::Write(error)),
    }
    let dir = temporary.parent().unwrap_or_else(|| Path::new("."));
    disk.sync_dir(dir).map_err(ReplaceError::Sync)
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

fn write_synced(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), ReplaceError> {
    let mut file = disk.create_new(path).map_err(ReplaceError::Write)?;
    file.append(bytes).map_err(ReplaceError::Write)?;
    file.sync().map_err(ReplaceError::Sync)
}
