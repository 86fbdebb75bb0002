//! `bgb site backup`: a copy of the database as of one moment, while a manager may be writing it.
//!
//! ```text
//! NAME.unfinished-lock --> NAME.unfinished: pages --> check --> fsync --> NAME, unless somebody has it --> fsync of the folder
//! ```
//!
//! The copy is one file without a log beside it, so that it can be taken anywhere. Laws: it bears its name only when it is whole, checked and
//! on disk; nothing that bears the name is overwritten; of an attempt that fails nothing is left, and what a killed one left is removed
//! by the next. It has no key in it: authority, task key and configuration are to be kept apart.
//!
//! The copy may be made on a file system of a network, where a lock of one kind keeps out those of the other: SQLite's locks are on the
//! copy, and so ours must be on another file. One that can neither rename without overwriting nor link takes the name with an
//! empty file first: killed between that and the rename, an attempt leaves the empty file, which is no copy and is to be removed by hand.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bgb_protocol::ids::{Generation, SiteCode, UnixMillis};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;
use tracing::info;

use crate::connection::{self, DATABASE_MODE};
use crate::error::SiteError;
use crate::folder::{SIDES, beside, folder_of};
use crate::queue_reader::newest_head;

/// How long a copy waits for a lock of a moment, and how often.
const LOCKED_PAUSE: Duration = Duration::from_millis(50);
const LOCKED_ATTEMPTS: u32 = 100;

/// Nobody else has business with the lock of an attempt.
const ATTEMPT_LOCK_MODE: u32 = 0o600;
/// How often such a lock may be gone when it is taken: each time, another attempt has ended at that very moment.
const ATTEMPTS_ENDING: u32 = 1_000;

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
        unfinished.give_name(to)?;
        sync_folder_of(to)?;
        info!("site database copied to {}", to.display());
        Ok(BackupReport { file: to.to_owned(), ..report })
    });
    if made.is_err() {
        unfinished.remove(to);
    }
    made
}

/// The copy before it has its name.
struct Unfinished {
    path: PathBuf,
    file: File,
    _lock: AttemptLock,
}

impl Unfinished {
    /// Makes it anew; what an attempt has left that was killed is removed, with what SQLite had beside it.
    fn claim(to: &Path) -> Result<Self, SiteError> {
        let lock = AttemptLock::take(to)?;
        let path = beside(to, ".unfinished");
        [""].iter().chain(&SIDES).try_for_each(|side| remove_if_there(&beside(&path, side)))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(DATABASE_MODE);
        let file = options.open(&path).map_err(SiteError::io(&path, "cannot be created"))?;
        Ok(Self { path, file, _lock: lock })
    }

    fn give_name(&self, to: &Path) -> Result<(), SiteError> {
        // Where locks keep nobody out, as on some file systems of a network, another attempt may have taken the place of this one.
        if !bears(&self.path, &self.file) {
            return Err(SiteError::CopyIsMade { path: to.to_owned() });
        }
        give_name(&self.path, to)
    }

    fn remove_sides(&self) -> Result<(), SiteError> {
        SIDES.iter().try_for_each(|side| remove_if_there(&beside(&self.path, side)))
    }

    /// What failed is what matters: whatever cannot be removed is no copy by its name, and the next attempt tries again.
    fn remove(&self, to: &Path) {
        let _ = self.remove_sides();
        for name in [self.path.as_path(), to].into_iter().filter(|name| bears(name, &self.file)) {
            let _ = std::fs::remove_file(name);
        }
    }
}

/// Held by whoever makes the copy of one name.
struct AttemptLock {
    path: PathBuf,
    file: File,
}

impl AttemptLock {
    fn take(to: &Path) -> Result<Self, SiteError> {
        let path = beside(to, ".unfinished-lock");
        for _ in 0..ATTEMPTS_ENDING {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(ATTEMPT_LOCK_MODE);
            options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
            let file = options.open(&path).map_err(SiteError::io(&path, "cannot be created"))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(SiteError::CopyIsMade { path: to.to_owned() });
                }
                Err(TryLockError::Error(error)) => {
                    let what = "cannot be locked; make the copy on another file system, and move it here";
                    return Err(SiteError::io(&path, what)(error));
                }
            }
            // Another attempt may have ended between the two, and removed it: a lock on what has no name keeps nobody out.
            if bears(&path, &file) {
                return Ok(Self { path, file });
            }
        }
        Err(SiteError::CopyIsMade { path: to.to_owned() })
    }
}

impl Drop for AttemptLock {
    /// Removes it while it is held: whoever has opened it before finds that it bears no name any more.
    fn drop(&mut self) {
        if bears(&self.path, &self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether `name` is a name of `file`.
fn bears(name: &Path, file: &File) -> bool {
    is_same(std::fs::symlink_metadata(name), file.metadata())
}

/// Whether both are names of one file.
pub(crate) fn is_same_file(one: &Path, other: &Path) -> bool {
    is_same(std::fs::symlink_metadata(one), std::fs::symlink_metadata(other))
}

fn is_same(one: io::Result<Metadata>, other: io::Result<Metadata>) -> bool {
    let identity = |there: Metadata| (there.dev(), there.ino());
    matches!((one.map(identity), other.map(identity)), (Ok(one), Ok(other)) if one == other)
}

/// Gives the copy its name, if nobody bears it.
fn give_name(unfinished: &Path, to: &Path) -> Result<(), SiteError> {
    match renameat_with(CWD, unfinished, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => Err(SiteError::FileExists { path: to.to_owned() }),
        // Some file systems, of networks above all, cannot do that (renameat2(2)).
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => give_name_by_link(unfinished, to),
        named => named.map_err(|error| SiteError::io(to, "cannot be given its name")(error.into())),
    }
}

/// Gives the copy a second name, if nobody bears it, and takes the first: nothing but the whole copy ever has the second.
fn give_name_by_link(unfinished: &Path, to: &Path) -> Result<(), SiteError> {
    match std::fs::hard_link(unfinished, to) {
        // A server that is asked a second time, since its answer was lost, says that its own work is there (NFS).
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is_same_file(unfinished, to) => {
            return Err(SiteError::FileExists { path: to.to_owned() });
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        // FAT and some of FUSE have no links (link(2)).
        Err(error) if has_no_links(&error) => return give_name_in_two_steps(unfinished, to),
        linked => linked.map_err(SiteError::io(to, "cannot be given its name"))?,
    }
    std::fs::remove_file(unfinished).map_err(SiteError::io(unfinished, "cannot be removed"))
}

fn has_no_links(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP))
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
    let Unfinished { path, file, .. } = unfinished;
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
