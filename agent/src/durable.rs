//! What a failed write leaves behind: the state from before, or nobody knows what.
//!
//! The difference is whether the agent may go on. A disk without room refuses before anything has changed: then what is in memory
//! and what is on disk still agree. After a failed sync they may not, and neither after a failed look back: then only
//! a new start, which reads what is there, knows.

use std::io;
use std::path::Path;

use bgb_daemon::disk::{Disk, ReplaceError, beside, write_temporary};
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
    let (dir, temporary) = beside(path).map_err(WriteFault::Unchanged)?;
    // Also a sync that failed has changed nothing here: it was the temporary file's, and the next call writes that anew.
    write_temporary(disk, &temporary, bytes)
        .and_then(|()| disk.rename(&temporary, path).map_err(ReplaceError::Write))
        .map_err(|error| WriteFault::Unchanged(error.into_inner()))?;
    disk.sync_dir(dir).map_err(WriteFault::Unknown)
}
