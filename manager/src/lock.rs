//! One manager per site: a lock on a file beside the database, held until the process ends.
//!
//! SQLite would let a second manager in; two would sign different heads and take in the same files. The kernel drops the lock with the
//! process, however it ends, so that there is nothing to clean up.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

/// Nobody else has business with it.
const LOCK_MODE: u32 = 0o600;
/// Bytes of a process id that are read for the error: numbers go up to 2^22 (proc(5)).
const PID_BYTES_MAX: u64 = 16;

/// Why the site could not be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another manager has it.
    #[error(
        "another manager (process {holder}) has this site: its lock is on {}; stop that one first", path.display()
    )]
    Held {
        /// The lock's file.
        path: PathBuf,
        /// The process that has it, as it wrote itself.
        holder: String,
    },
    /// The file cannot be used.
    #[error("{}: the lock of the site cannot be taken: {source}; check owner and mode of the file and its folder", path.display())]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The lock, held as long as this lives.
#[derive(Debug)]
pub struct SiteLock {
    _file: File,
}

impl SiteLock {
    /// Takes the site whose database is at `database`.
    ///
    /// # Errors
    /// As [`LockError`] says.
    pub fn take(database: &Path) -> Result<Self, LockError> {
        let mut name = database.as_os_str().to_owned();
        name.push(".manager-lock");
        let path = PathBuf::from(name);
        let failed = |source: io::Error| LockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(LOCK_MODE)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Only for the sentence; a file that cannot be read gives an empty one.
                let _ = file.take(PID_BYTES_MAX).read_to_string(&mut holder);
                return Err(LockError::Held { path, holder: holder.trim().to_owned() });
            }
            Err(error) => return Err(failed(error.into())),
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
    fn a_second_manager_is_told_who_has_the_site() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("site.db");
        let held = SiteLock::take(&database).unwrap();
        let error = SiteLock::take(&database).unwrap_err();
        let LockError::Held { holder, .. } = error else { panic!("{error}") };
        assert_eq!(holder, std::process::id().to_string());
        drop(held);
        SiteLock::take(&database).unwrap();
    }
}
