//! The schema's versions, and the way from one to the next.
//!
//! Each version is a numbered file of SQL. A database is brought up to date one version at a time, each in a transaction of its
//! own that also sets `user_version`; before the first of them a copy is made beside the database (`site.db.before-NNNN`). A
//! database of a newer schema than this release knows is refused.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use crate::connection::{DATABASE_MODE, of_file};
use crate::error::SiteError;

/// The versions in their order, from 1.
const VERSIONS: &[&str] = &[
    include_str!("../schema/0001_site.sql"),
    include_str!("../schema/0002_restore.sql"),
    include_str!("../schema/0003_lives.sql"),
];

/// `application_id` of a site's database: "BGBS".
const APPLICATION_ID: i32 = 0x4247_4253;

/// The newest version that this release knows.
pub(crate) fn newest() -> u32 {
    version_count(VERSIONS)
}

/// Brings the database to the newest version.
pub(crate) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), SiteError> {
    migrate_with(connection, path, VERSIONS)
}

/// The same for a database that is a copy already, and needs none to go back to.
pub(crate) fn migrate_copy(connection: &mut Connection, path: &Path) -> Result<(), SiteError> {
    upgrade(connection, path, VERSIONS)
}

/// Refuses what is no database, or one of something else. An empty file may become a site's database.
pub(crate) fn check_kind(connection: &Connection, path: &Path) -> Result<(), SiteError> {
    let id: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|error| of_file(path, error))?;
    let version = version(connection)?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let empty = id == 0 && version == 0 && tables == 0;
    if id == APPLICATION_ID || empty { Ok(()) } else { Err(SiteError::NotASite { path: path.to_owned() }) }
}

/// Refuses a file that is a database, and of nothing yet.
pub(crate) fn check_begun(connection: &Connection, path: &Path) -> Result<(), SiteError> {
    if version(connection)? == 0 {
        return Err(SiteError::NotASite { path: path.to_owned() });
    }
    Ok(())
}

/// Refuses any version but the newest: for those who cannot migrate.
pub(crate) fn check_version(connection: &Connection, path: &Path) -> Result<(), SiteError> {
    let (found, known) = (version(connection)?, newest());
    let path = path.to_owned();
    match found.cmp(&known) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(SiteError::NewerSchema { path, found, known }),
        std::cmp::Ordering::Less if found == 0 => Err(SiteError::NotASite { path }),
        std::cmp::Ordering::Less => Err(SiteError::OlderSchema { path, found, known }),
    }
}

fn migrate_with(connection: &mut Connection, path: &Path, versions: &[&str]) -> Result<(), SiteError> {
    let (found, known) = (version(connection)?, version_count(versions));
    if found > 0 && found < known {
        back_up(connection, path, known)?;
    }
    upgrade(connection, path, versions)
}

fn upgrade(connection: &mut Connection, path: &Path, versions: &[&str]) -> Result<(), SiteError> {
    let (found, known) = (version(connection)?, version_count(versions));
    if found > known {
        return Err(SiteError::NewerSchema { path: path.to_owned(), found, known });
    }
    for (index, sql) in versions.iter().enumerate().skip(found as usize) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", index as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

fn back_up(connection: &Connection, path: &Path, version: u32) -> Result<(), SiteError> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let copy = backup_path(path, version);
    let failed = |what| SiteError::io(&copy, what);
    let remove = || match std::fs::remove_file(&copy) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    // A copy that is there stems from an attempt that ended before anything was changed.
    remove().map_err(failed("cannot be replaced"))?;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(DATABASE_MODE)
        .open(&copy)
        .map_err(failed("the copy before the upgrade cannot be made"))?;
    connection.backup(rusqlite::MAIN_DB, &copy, None::<fn(rusqlite::backup::Progress)>)?;
    let file = std::fs::File::open(&copy).map_err(failed("the copy before the upgrade cannot be read"))?;
    file.sync_all().map_err(failed("the copy before the upgrade cannot be made durable"))
}

fn backup_path(path: &Path, version: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".before-{version:04}"));
    PathBuf::from(name)
}

fn version(connection: &Connection) -> Result<u32, SiteError> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

fn version_count(versions: &[&str]) -> u32 {
    u32::try_from(versions.len()).expect("the versions are listed in this file")
}

#[cfg(test)]
mod tests;
