//! Whose the files of a site's database are, and the lock of whoever changes the site.
//!
//! Whoever restores or adds a server may be another account than the manager's, root above all. Law: what is made beside the database is
//! the account's that has the database, so that the manager and the next command can use it.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;

use bgb_daemon::lock::{LockError, ProcessLock};

use crate::connection::DATABASE_MODE;
use crate::error::SiteError;
use crate::folder::{SiteFolder, folder_of};

/// An account, and the mode of its files.
pub(crate) struct Owner {
    user: u32,
    group: u32,
    pub(crate) mode: u32,
}

impl Owner {
    /// Whose a database is; of one that is not there, whose its folder is.
    pub(crate) fn of(database: &Path) -> Result<Self, SiteError> {
        let of = |there: &Metadata, mode| Self { user: there.uid(), group: there.gid(), mode };
        match std::fs::metadata(database) {
            Ok(there) => Ok(of(&there, there.mode() & 0o777)),
            Err(_) => {
                let folder = folder_of(database);
                let there =
                    std::fs::metadata(folder).map_err(SiteError::io(folder, "the folder cannot be read"))?;
                Ok(of(&there, DATABASE_MODE))
            }
        }
    }

    /// Makes a file theirs.
    pub(crate) fn give(&self, path: &Path) -> Result<(), SiteError> {
        let give = || {
            let there = std::fs::metadata(path)?;
            if (there.uid(), there.gid()) != (self.user, self.group) {
                chown(path, Some(self.user), Some(self.group))?;
            }
            Ok(())
        };
        give().map_err(SiteError::io(
            path,
            "cannot be given to the database's account; do this as root or as that account",
        ))
    }

    /// Takes the lock that the manager takes.
    pub(crate) fn lock_out_manager(&self, database: &Path) -> Result<ProcessLock, SiteError> {
        self.lock(&SiteFolder::manager_lock(database), |holder| SiteError::ManagerRuns { holder })
    }

    /// Takes the lock that everybody takes who changes which servers a site has, or which database.
    pub(crate) fn lock_set_up(&self, database: &Path) -> Result<ProcessLock, SiteError> {
        self.lock(&SiteFolder::set_up_lock(database), |holder| SiteError::SetUpRuns { holder })
    }

    fn lock(&self, path: &Path, held: impl FnOnce(String) -> SiteError) -> Result<ProcessLock, SiteError> {
        let lock = ProcessLock::take(path, "process").map_err(|error| match error {
            LockError::Held { holder, .. } => held(holder),
            error => SiteError::Lock(error),
        })?;
        // Also one that was there: whoever made it may have been killed before it was theirs.
        self.give(path)?;
        Ok(lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_was_left_with_another_account_is_given_back() {
        // An account that systems have for nobody in particular; only root can leave files to another one.
        let (nobody, is_root) = (65_534, rustix::process::geteuid().is_root());
        if !is_root {
            return eprintln!("not run: only root can leave files to another account");
        }
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("site.db");
        std::fs::write(&database, "").unwrap();
        chown(&database, Some(nobody), Some(nobody)).unwrap();
        let (manager, set_up) = (SiteFolder::manager_lock(&database), SiteFolder::set_up_lock(&database));
        // As after a kill between the two.
        drop([&manager, &set_up].map(|lock| ProcessLock::take(lock, "process").unwrap()));
        let owner = Owner::of(&database).unwrap();
        let _held = (owner.lock_out_manager(&database).unwrap(), owner.lock_set_up(&database).unwrap());
        for lock in [manager, set_up] {
            let there = std::fs::metadata(&lock).unwrap();
            assert_eq!((there.uid(), there.gid()), (nobody, nobody), "{}", lock.display());
        }
    }
}
