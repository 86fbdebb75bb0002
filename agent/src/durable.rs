//! What a failed write leaves behind: the state from before, or nobody knows what.
//!
//! The difference is whether the agent may go on. A disk without room refuses before anything has changed: then what is in memory
//! and what is on disk still agree. After a failed sync they may not, and neither after a failed look back: then only
//! a new start, which reads what is there, knows.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use bgb_daemon::disk::{Disk, ReplaceError, clear_leftover};
use thiserror::Error;

/// A write that failed.
#[derive(Debug, Error)]
pub(crate) enum WriteFault {
    /// What was there before is there still.
    #[error("{0}")]
    Unchanged(io::Error),
    /// It is not known what is there.
    #[error("{0}")]
    Unknown(io::Error),
}

/// Replaces a file as a whole, durably, as [`bgb_daemon::disk::replace_durably`] does.
///
/// # Errors
/// Whether the old file is still there is said by the fault.
pub(crate) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), WriteFault> {
    let (dir, name) = match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) => (dir, name),
        _ => {
            let text = format!("{} names no file in a folder", path.display());
            return Err(WriteFault::Unchanged(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
    };
    let mut temporary_name = OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(".tmp");
    let temporary = dir.join(temporary_name);
    clear_leftover(disk, &temporary).map_err(|error| match error {
        ReplaceError::Write(error) => WriteFault::Unchanged(error),
        ReplaceError::Sync(error) => WriteFault::Unknown(error),
    })?;
    if let Err(error) = write(disk, &temporary, bytes).and_then(|()| disk.rename(&temporary, path)) {
        // The first error is the one that matters; a temporary file that stays is removed by the next call.
        let _ = clear_leftover(disk, &temporary);
        return Err(WriteFault::Unchanged(error));
    }
    disk.sync_dir(dir).map_err(WriteFault::Unknown)
}

fn write(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = disk.create_new(path)?;
    file.append(bytes)?;
    file.sync()
}
