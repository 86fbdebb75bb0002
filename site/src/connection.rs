//! Opening the database: which flags and pragmas a writer and a reader have.
//!
//! WAL, synchronous FULL (a commit is on disk when it returns), foreign keys on. The write-ahead log and its index are kept in
//! place when the last connection closes (`SQLITE_FCNTL_PERSIST_WAL`): a reader that may not write the folder could not make them,
//! and a notification server must start while the manager is down.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, FileControl, MAIN_DB, OpenFlags};

use crate::error::SiteError;
use crate::schema;

/// The database is read by its group: the servers'.
pub(crate) const DATABASE_MODE: u32 = 0o640;

/// How long SQLite waits for a lock before it says busy; whoever asked decides whether to try again.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a reader waits: locks against readers are held for moments only, when a log is recovered.
const READ_BUSY_TIMEOUT: Duration = Duration::from_millis(250);

/// Pages of the log (40 MiB of 4 KiB pages) at which it is moved into the database: by a commit, or beside the writer where somebody is there for
/// it (store/checkpoints.rs). When it is quiet that happens earlier.
pub(crate) const AUTOCHECKPOINT_PAGES: u32 = 10_000;

/// To how many bytes the log's file is cut back after a checkpoint that emptied it.
const LOG_BYTES_KEPT: u32 = 64 * 1024 * 1024;

/// Pages that a connection caches, in KiB: the inner pages of every index of a large site stay in memory.
const CACHE_KIB: u32 = 64 * 1024;

/// Statements that a connection keeps prepared: more than there are in this crate.
const STATEMENTS_MAX: usize = 192;

/// Makes an empty file that will be the database, and opens it for writing.
pub(crate) fn create(path: &Path) -> Result<Connection, SiteError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(DATABASE_MODE)
        .open(path)
        .map_err(SiteError::io(path, "cannot be created"))?;
    for_writing(open_writable(path)?, path)
}

/// Opens an existing database for writing.
pub(crate) fn open(path: &Path) -> Result<Connection, SiteError> {
    let connection = open_writable(path)?;
    schema::check_begun(&connection, path)?;
    for_writing(connection, path)
}

fn open_writable(path: &Path) -> Result<Connection, SiteError> {
    let connection = open_with(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // A file that is no database shows with the first statement that reads it.
    schema::check_kind(&connection, path)?;
    // SQLite opens what it may not write for reading, and says so only with the first write.
    if connection.is_readonly(MAIN_DB)? {
        return Err(SiteError::ReadOnly);
    }
    Ok(connection)
}

fn for_writing(connection: Connection, path: &Path) -> Result<Connection, SiteError> {
    connection.pragma_update(None, "journal_mode", "wal").map_err(|error| of_file(path, error))?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "wal_autocheckpoint", AUTOCHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
    connection.pragma_update(None, "cache_size", -i64::from(CACHE_KIB))?;
    Ok(connection)
}

/// Opens a database of any version for reading, to copy it.
pub(crate) fn open_to_copy(path: &Path) -> Result<Connection, SiteError> {
    let connection = open_with(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(READ_BUSY_TIMEOUT)?;
    schema::check_kind(&connection, path)?;
    schema::check_begun(&connection, path)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Opens a database that is about to be replaced: what is in its log stays there when it is closed.
pub(crate) fn open_to_replace(path: &Path) -> Result<Connection, SiteError> {
    let connection = open_with(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    schema::check_kind(&connection, path)?;
    schema::check_begun(&connection, path)?;
    Ok(connection)
}

/// Opens a copy in `path` that is to become the site's database; `said` is what people call it.
pub(crate) fn open_copy(path: &Path, said: &Path) -> Result<Connection, SiteError> {
    let connection = open_with(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    schema::check_kind(&connection, said)?;
    schema::check_begun(&connection, said)?;
    for_writing(connection, said)
}

/// Opens an existing database for reading. Neither the file nor its folder need be writable.
pub(crate) fn open_read_only(path: &Path) -> Result<Connection, SiteError> {
    let connection = open_with(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(READ_BUSY_TIMEOUT)?;
    schema::check_kind(&connection, path)?;
    schema::check_version(&connection, path)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

fn open_with(path: &Path, flags: OpenFlags) -> Result<Connection, SiteError> {
    if !path.exists() {
        return Err(SiteError::Missing { path: path.to_owned() });
    }
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|error| of_file(path, error))?;
    connection.file_control(Some(MAIN_DB), FileControl::PersistWal(&mut 1))?;
    // A statement's plan holds whatever its values are: else SQLite makes many of them anew each time that they are run.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(connection)
}

/// The error with the file's name, where it is the file that is at fault.
pub(crate) fn of_file(path: &Path, error: rusqlite::Error) -> SiteError {
    match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen) => {
            SiteError::Unopenable { path: path.to_owned(), detail: error.to_string() }
        }
        Some(ErrorCode::NotADatabase) => SiteError::NotASite { path: path.to_owned() },
        _ => error.into(),
    }
}
