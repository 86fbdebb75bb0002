//! The places of one restore: the names of the database, of the copy on its way, and of what is kept.

use std::io;
use std::path::{Path, PathBuf};

use bgb_protocol::ids::UnixMillis;

use super::{former, readable};
use crate::backup::remove_if_there;
use crate::error::SiteError;
use crate::folder::{SIDES, beside};
use crate::owner::Owner;

/// How the names of former databases go on after the database's own.
pub(super) const KEPT: &str = ".before-restore-";

/// Names of one second that are tried before it is given up: more restores than a person starts.
const NAMES_MAX: u32 = 1_000;

pub(super) struct Place {
    /// The database, links resolved: SQLite puts its log there as well.
    pub(super) database: PathBuf,
    /// The copy on its way.
    pub(super) restoring: PathBuf,
    /// The former database's new name, which nothing bears, with or without an ending.
    pub(super) kept: PathBuf,
    /// Whose the new files are to be, and their mode.
    pub(super) owner: Owner,
}

impl Place {
    pub(super) fn of(database: &Path, now: UnixMillis) -> Result<Self, SiteError> {
        let database = match std::fs::canonicalize(database) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !database.is_symlink() => {
                database.to_owned()
            }
            resolved => resolved.map_err(SiteError::io(database, "cannot be found"))?,
        };
        let owner = Owner::of(&database)?;
        let kept = free_name(&database, now)?;
        Ok(Self { restoring: beside(&database, ".restoring"), kept, database, owner })
    }

    /// Removes what an attempt that came to no end has left.
    pub(super) fn remove_unfinished(&self) -> Result<(), SiteError> {
        remove_if_there(&self.restoring)?;
        SIDES.iter().try_for_each(|side| remove_if_there(&beside(&self.restoring, side)))?;
        former::settle(self)
    }
}

fn free_name(database: &Path, now: UnixMillis) -> Result<PathBuf, SiteError> {
    let first = beside(database, &format!("{KEPT}{}", readable(now, "%Y%m%dT%H%M%SZ")));
    let is_free = |name: &PathBuf| {
        let names = [""].into_iter().chain(SIDES).map(|side| beside(name, side));
        names.into_iter().all(|name| std::fs::symlink_metadata(name).is_err())
    };
    let further = (2..NAMES_MAX).map(|number| beside(&first, &format!("-{number}")));
    let free = [first.clone()].into_iter().chain(further).find(is_free);
    free.ok_or(SiteError::FileExists { path: first })
}
