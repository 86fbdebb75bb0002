//! The former database: what it knows, and how it is put away.
//!
//! ```text
//! readable    its log is folded into it, it gets a second name (.before-restore-TIME), and the new one takes its first
//! damaged     it and its log get second names, then lose their first ones, the database before its log
//! ```
//!
//! Law: whatever ends this in between, the names that are there tell how far it was, and nothing lies under a name that is not that of
//! its database. A second name of a database that is still the site's says nothing and is removed; a log that has a second name, and no
//! database beside its first one, is on its way out. Only what is damaged is put away unread: what the disk or the system refuses is an
//! error, since the next attempt may find it whole.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bgb_protocol::ids::SiteCode;
use rusqlite::{Connection, ErrorCode};

use super::place::{KEPT, Place};
use super::{Former, empty_log};
use crate::backup::{is_same_file, sync_folder_of};
use crate::connection;
use crate::error::SiteError;
use crate::folder::{SIDES, beside, folder_of};
use crate::store::columns::unsigned;

/// Attempts to fold the former database's log into it, each of which waits a second for readers.
const FOLD_ATTEMPTS: u32 = 5;

/// What is read of the former database.
pub(super) struct FormerSite {
    pub(super) connection: Connection,
    pub(super) code: SiteCode,
    pub(super) device_next: u64,
    pub(super) policy_version: u64,
    pub(super) servers: Vec<(u32, Option<String>)>,
}

pub(super) enum FormerFile {
    Readable(Box<FormerSite>),
    Unreadable(String),
    Missing,
}

/// Reads the former database, if that can be done at all.
pub(super) fn look_at(database: &Path) -> Result<FormerFile, SiteError> {
    match File::open(database) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            // It may well be whole: that this account may not see it is no reason to do without what it knows.
            let what = "the former database cannot be read; restore as root or as its account";
            return Err(SiteError::io(database, what)(error));
        }
        _ => {}
    }
    match read(database) {
        Ok(site) => Ok(FormerFile::Readable(Box::new(site))),
        Err(SiteError::Missing { .. }) => Ok(FormerFile::Missing),
        Err(error) if is_damage(&error) => Ok(FormerFile::Unreadable(error.to_string())),
        Err(error) => Err(refused(database, error)),
    }
}

fn read(database: &Path) -> Result<FormerSite, SiteError> {
    let connection = connection::open_to_replace(database)?;
    let (code, device_next, policy_version): (String, i64, i64) =
        connection.query_row("SELECT code, device_next, policy_version FROM site", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    let code = code.parse().map_err(|error| SiteError::Corrupt(format!("the site's row: {error}")))?;
    let mut statement = connection.prepare("SELECT number, address FROM server")?;
    let servers = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let servers = servers.collect::<Result<Vec<_>, _>>()?;
    drop(statement);
    let (device_next, policy_version) = (unsigned(device_next), unsigned(policy_version));
    Ok(FormerSite { connection, code, device_next, policy_version, servers })
}

/// Whether an error speaks of what is in the database, and not of the disk, of rights, or of somebody who is in the way.
fn is_damage(error: &SiteError) -> bool {
    match error {
        SiteError::Corrupt(_) | SiteError::NotASite { .. } | SiteError::ValueRefused(_) => true,
        // A table or column that is not there, or a value of another kind: SQLite's code for them, or none.
        SiteError::Database(error) => matches!(error.sqlite_error_code(), None | Some(ErrorCode::Unknown)),
        _ => false,
    }
}

/// The error of somebody who may try again.
fn refused(database: &Path, error: SiteError) -> SiteError {
    match error {
        SiteError::InUse { .. } | SiteError::Busy | SiteError::ReadOnly | SiteError::DiskFull => error,
        error => SiteError::FormerRefused { path: database.to_owned(), error: Box::new(error) },
    }
}

/// A former database under its new name.
pub(super) struct PutAway {
    /// What it turned out to be.
    pub(super) former: Former,
    /// One that is readable stays the site's, and nobody can write it while this lives.
    pub(super) held: Option<Box<FormerSite>>,
}

/// Keeps the former database under its new name.
pub(super) fn put_away(place: &Place, former: FormerFile) -> Result<PutAway, SiteError> {
    let former = match former {
        FormerFile::Readable(site) => match fold(place, &site.connection) {
            Ok(()) => {
                keep_beside(place)?;
                return Ok(PutAway { former: Former::Readable, held: Some(site) });
            }
            // Damaged further in.
            Err(error) if is_damage(&error) => Former::Unreadable(error.to_string()),
            Err(error) => return Err(refused(&place.database, error)),
        },
        FormerFile::Unreadable(why) => Former::Unreadable(why),
        FormerFile::Missing => Former::Missing,
    };
    way_out(place).iter().try_for_each(Step::take)?;
    Ok(PutAway { former, held: None })
}

/// Makes the former database whole by itself, and keeps others from writing it for as long as the connection lives.
pub(super) fn fold(place: &Place, former: &Connection) -> Result<(), SiteError> {
    let log = beside(&place.database, "-wal");
    for _ in 0..FOLD_ATTEMPTS {
        if !empty_log(former)? {
            continue;
        }
        former.execute_batch("BEGIN IMMEDIATE")?;
        if std::fs::metadata(&log).map_or(0, |log| log.len()) == 0 {
            return Ok(());
        }
        former.execute_batch("ROLLBACK")?;
    }
    Err(SiteError::InUse { path: place.database.clone() })
}

/// A second name for the former database, which keeps its own until the new one takes it.
pub(super) fn keep_beside(place: &Place) -> Result<(), SiteError> {
    std::fs::hard_link(&place.database, &place.kept)
        .map_err(SiteError::io(&place.kept, "the former database cannot be kept under this name"))?;
    sync_folder_of(&place.database)
}

/// A step of moving away a former database that cannot be read. What is not there is passed over.
pub(super) enum Step {
    GiveSecondName(PathBuf, PathBuf),
    RemoveFirstName(PathBuf),
    /// The names in the folder of this file become durable: no later step is found on disk without those before.
    Sync(PathBuf),
}

/// The steps after which nothing is the site's, until the new database is.
pub(super) fn way_out(place: &Place) -> Vec<Step> {
    let Place { database, kept, .. } = place;
    let sync = || Step::Sync(database.clone());
    let names = [""].into_iter().chain(SIDES).map(|side| (beside(database, side), beside(kept, side)));
    let mut steps: Vec<_> = names.map(|(first, second)| Step::GiveSecondName(first, second)).collect();
    steps.extend([sync(), Step::RemoveFirstName(database.clone()), sync()]);
    steps.extend(SIDES.map(|side| Step::RemoveFirstName(beside(database, side))));
    steps.push(sync());
    steps
}

impl Step {
    pub(super) fn take(&self) -> Result<(), SiteError> {
        let (done, path) = match self {
            Self::GiveSecondName(first, second) => (std::fs::hard_link(first, second), first),
            Self::RemoveFirstName(first) => (std::fs::remove_file(first), first),
            Self::Sync(path) => return sync_folder_of(path),
        };
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SiteError::io(path, "the former database cannot be moved away")(error))
            }
            _ => Ok(()),
        }
    }
}

/// Brings what an earlier attempt has begun to one of its ends: the former database has one name, and so has its log.
pub(super) fn settle(place: &Place) -> Result<(), SiteError> {
    let database = &place.database;
    let is_there = std::fs::symlink_metadata(database).is_ok();
    let twice: Vec<_> = kept_names(database)?
        .into_iter()
        .map(|second| {
            let side = SIDES
                .into_iter()
                .find(|side| second.as_os_str().as_encoded_bytes().ends_with(side.as_bytes()));
            (beside(database, side.unwrap_or_default()), second)
        })
        .filter(|(first, second)| is_same_file(first, second))
        .collect();
    if twice.is_empty() {
        return Ok(());
    }
    // That the database has lost its name must be on disk before its log's does.
    sync_folder_of(database)?;
    for (first, second) in twice {
        let left = if is_there { second } else { first };
        std::fs::remove_file(&left)
            .map_err(SiteError::io(&left, "an earlier restore left it, and it cannot be removed"))?;
    }
    sync_folder_of(database)
}

/// What lies beside the database under a former one's name.
fn kept_names(database: &Path) -> Result<Vec<PathBuf>, SiteError> {
    let folder = folder_of(database);
    let failed = || SiteError::io(folder, "the folder cannot be read");
    let name = database.file_name().unwrap_or_default();
    let kept = beside(Path::new(name), KEPT);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        if name.as_encoded_bytes().starts_with(kept.as_os_str().as_encoded_bytes()) {
            names.push(folder.join(name));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn what_the_disk_or_the_system_refuses_is_no_damage() {
        let of_code = |code| SiteError::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        for code in [
            ffi::SQLITE_IOERR,
            ffi::SQLITE_IOERR_READ,
            ffi::SQLITE_READONLY,
            ffi::SQLITE_READONLY_RECOVERY,
            ffi::SQLITE_CANTOPEN,
            ffi::SQLITE_PERM,
            ffi::SQLITE_FULL,
            ffi::SQLITE_NOMEM,
            ffi::SQLITE_BUSY,
            ffi::SQLITE_PROTOCOL,
        ] {
            assert!(!is_damage(&of_code(code)), "{code}");
        }
        for code in [ffi::SQLITE_CORRUPT, ffi::SQLITE_CORRUPT_VTAB, ffi::SQLITE_NOTADB, ffi::SQLITE_ERROR] {
            assert!(is_damage(&of_code(code)), "{code}");
        }
        assert!(is_damage(&rusqlite::Error::QueryReturnedNoRows.into()));
    }
}
