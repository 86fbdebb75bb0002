//! `bgb site backup`: a copy of the database as of one moment, while a manager may be writing it.
//!
//! ```text
//! NAME.unfinished, locked --> pages --> check --> fsync --> NAME, unless somebody has it --> fsync of the folder
//! ```
//!
//! The copy is one file without a log beside it, so that it can be taken anywhere. Laws: it bears its name only when it is whole, checked and
//! on disk; nothing that bears the name is overwritten; of an attempt that fails nothing is left, and what a killed one left is removed
//! by the next. It has no key in it: authority, task key and configuration are to be kept apart.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bgb_protocol::head::SignedHead;
use bgb_protocol::ids::{Generation, SiteCode, UnixMillis};
use bgb_protocol::queue::QueueItem;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;
use tracing::info;

use crate::connection::{self, DATABASE_MODE};
use crate::error::SiteError;
use crate::folder::{SIDES, beside, folder_of};

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
    // Known before the work is done; what comes meanwhile is not overwritten either.
    if std::fs::symlink_metadata(to).is_ok() {
        return Err(SiteError::FileExists { path: to.to_owned() });
    }
    let unfinished = Unfinished::claim(to)?;
    let made = copy(&source, &unfinished).and_then(|report| {
        unfinished.remove_sides()?;
        give_name(&unfinished.path, to)?;
        sync_folder_of(to)?;
        info!("site database copied to {}", to.display());
        Ok(BackupReport { file: to.to_owned(), ..report })
    });
    if made.is_err() {
        unfinished.remove(to);
    }
    made
}

/// The copy before it has its name, locked against another attempt at the same one.
struct Unfinished {
    path: PathBuf,
    file: File,
}

impl Unfinished {
    /// Makes it anew; what an attempt has left that was killed is taken over, without what SQLite had beside it.
    fn claim(to: &Path) -> Result<Self, SiteError> {
        let path = beside(to, ".unfinished");
        let failed = || SiteError::io(&path, "cannot be created");
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(DATABASE_MODE);
            options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
            let file = options.open(&path).map_err(failed())?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(SiteError::CopyIsMade { path: to.to_owned() });
                }
                Err(TryLockError::Error(error)) => return Err(failed()(error)),
            }
            let claimed = Self { path: path.clone(), file };
            // The other attempt may have ended between the two.
            if claimed.bears(&path) {
                claimed.remove_sides()?;
                claimed.file.set_len(0).map_err(failed())?;
                return Ok(claimed);
            }
        }
    }

    fn bears(&self, name: &Path) -> bool {
        let identity = |there: io::Result<std::fs::Metadata>| there.map(|there| (there.dev(), there.ino()));
        match (identity(self.file.metadata()), identity(std::fs::symlink_metadata(name))) {
            (Ok(own), Ok(named)) => own == named,
            _ => false,
        }
    }

    fn remove_sides(&self) -> Result<(), SiteError> {
        SIDES.iter().try_for_each(|side| remove_if_there(&beside(&self.path, side)))
    }

    /// What failed is what matters: whatever cannot be removed is no copy by its name, and the next attempt tries again.
    fn remove(&self, to: &Path) {
        let _ = self.remove_sides();
        for name in [self.path.as_path(), to].into_iter().filter(|name| self.bears(name)) {
            let _ = std::fs::remove_file(name);
        }
    }
}

/// Gives the copy its name, if nobody bears it.
fn give_name(unfinished: &Path, to: &Path) -> Result<(), SiteError> {
    match renameat_with(CWD, unfinished, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => Err(SiteError::FileExists { path: to.to_owned() }),
        // Some file systems, of networks above all, cannot do that in one step (renameat2(2)).
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => give_name_in_two_steps(unfinished, to),
        named => named.map_err(|error| SiteError::io(to, "cannot be given its name")(error.into())),
    }
}

/// Takes the name with an empty file first, so that nothing that bears it is overwritten.
fn give_name_in_two_steps(unfinished: &Path, to: &Path) -> Result<(), SiteError> {
    match OpenOptions::new().write(true).create_new(true).open(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(SiteError::FileExists { path: to.to_owned() });
        }
        taken => taken.map_err(SiteError::io(to, "cannot be created"))?,
    };
    std::fs::rename(unfinished, to).map_err(|error| {
        let _ = std::fs::remove_file(to);
        SiteError::io(to, "cannot be given its name")(error)
    })
}

fn copy(source: &Connection, unfinished: &Unfinished) -> Result<BackupReport, SiteError> {
    let Unfinished { path, file } = unfinished;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut target = Connection::open_with_flags(path, flags)?;
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
    file.sync_all().map_err(SiteError::io(path, "cannot be made durable"))?;
    let bytes = file.metadata().map_err(SiteError::io(path, "cannot be read"))?.len();
    Ok(BackupReport { file: path.clone(), bytes, site, generation: Generation(generation), head })
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
    let folder = folder_of(path);
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(SiteError::io(folder, "the folder cannot be made durable"))
}

#[cfg(test)]
mod tests;
