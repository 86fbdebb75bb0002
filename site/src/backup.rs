//! `bgb site backup`: a copy of the database as of one moment, while a manager may be writing it.
//!
//! The copy is one file without a log beside it, so that it can be taken anywhere. It bears its name only when it is whole, checked and
//! on disk. It has no key in it: authority, task key and configuration are to be kept apart.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bgb_protocol::head::SignedHead;
use bgb_protocol::ids::{Generation, SiteCode, UnixMillis};
use bgb_protocol::queue::QueueItem;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use tracing::info;

use crate::connection::{self, DATABASE_MODE};
use crate::error::SiteError;
use crate::folder::beside;

/// How long a copy waits for a lock of a moment, and how often.
const LOCKED_PAUSE: Duration = Duration::from_millis(50);
const LOCKED_ATTEMPTS: u32 = 100;

/// A copy that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupReport {
    /// Where it is.
    pub file: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// Whose it is.
    pub site: SiteCode,
    /// Of which life of the database.
    pub generation: Generation,
    /// The time of the newest signed head in it, up to a minute before it was made; `None` when no manager has ever run.
    pub head: Option<UnixMillis>,
}

/// Copies the database at `database` to the file `to`, which must not be there. The manager may be running.
///
/// # Errors
/// When the database cannot be read or is damaged, or the file is there or cannot be written; then nothing of it is left.
pub fn backup(database: &Path, to: &Path) -> Result<BackupReport, SiteError> {
    let source = connection::open_to_copy(database)?;
    claim(to)?;
    let unfinished = beside(to, ".unfinished");
    let made = copy(&source, &unfinished).and_then(|report| {
        std::fs::rename(&unfinished, to).map_err(SiteError::io(to, "cannot be given its name"))?;
        sync_folder_of(to)?;
        info!("site database copied to {}", to.display());
        Ok(BackupReport { file: to.to_owned(), ..report })
    });
    if made.is_err() {
        // What failed is what matters; whatever cannot be removed is no copy by its name or its length.
        for left in [unfinished.as_path(), to] {
            let _ = std::fs::remove_file(left);
        }
    }
    made
}

/// Takes the name, so that nothing that bears it is ever overwritten.
fn claim(to: &Path) -> Result<(), SiteError> {
    match create_new(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(SiteError::FileExists { path: to.to_owned() })
        }
        claimed => claimed.map_err(SiteError::io(to, "cannot be created")),
    }
}

fn create_new(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(DATABASE_MODE).open(path).map(|_| ())
}

fn copy(source: &Connection, unfinished: &Path) -> Result<BackupReport, SiteError> {
    remove_if_there(unfinished)?;
    create_new(unfinished).map_err(SiteError::io(unfinished, "cannot be created"))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut target = Connection::open_with_flags(unfinished, flags)?;
    copy_pages(source, &mut target)?;
    // One file that needs no other.
    target.pragma_update(None, "journal_mode", "delete")?;
    let said: String = target.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if said != "ok" {
        return Err(SiteError::Corrupt(said));
    }
    let (code, generation): (String, [u8; 16]) =
        target.query_row("SELECT code, generation FROM site", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let site = code.parse().map_err(|error| SiteError::Corrupt(format!("the site's row: {error}")))?;
    let head = newest_head(&target)?;
    drop(target);
    let file = File::open(unfinished).map_err(SiteError::io(unfinished, "cannot be read"))?;
    file.sync_all().map_err(SiteError::io(unfinished, "cannot be made durable"))?;
    let bytes = file.metadata().map_err(SiteError::io(unfinished, "cannot be read"))?.len();
    Ok(BackupReport { file: unfinished.to_owned(), bytes, site, generation: Generation(generation), head })
}

/// In one transaction of the source: what is committed meanwhile is not in it, and does not make it begin anew.
fn copy_pages(source: &Connection, target: &mut Connection) -> Result<(), SiteError> {
    let moment = source.unchecked_transaction()?;
    moment.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let copying = Backup::new(&moment, target)?;
    for _ in 0..LOCKED_ATTEMPTS {
        match copying.step(-1)? {
            StepResult::Done => return Ok(()),
            _ => std::thread::sleep(LOCKED_PAUSE),
        }
    }
    Err(SiteError::Busy)
}

/// The time of the newest signed head in the queue; the manager writes one each minute.
pub(crate) fn newest_head(connection: &Connection) -> Result<Option<UnixMillis>, SiteError> {
    let sql = "SELECT payload FROM queue WHERE kind = 'head' ORDER BY sequence DESC LIMIT 1";
    let payload: Option<Vec<u8>> = connection.query_row(sql, [], |row| row.get(0)).optional()?;
    Ok(payload.and_then(|payload| match QueueItem::decode(&payload) {
        Ok(QueueItem::Head { signed }) => SignedHead::decode(&signed).ok().map(|head| head.statement().time),
        _ => None,
    }))
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), SiteError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SiteError::io(path, "an earlier attempt left it, and it cannot be removed")(error))
        }
        _ => Ok(()),
    }
}

/// Makes the names in the folder of `path` durable.
pub(crate) fn sync_folder_of(path: &Path) -> Result<(), SiteError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(SiteError::io(folder, "the folder cannot be made durable"))
}

#[cfg(test)]
mod tests;
