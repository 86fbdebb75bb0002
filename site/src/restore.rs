//! `bgb site restore`: puts a copy in the place of the site's database, as a whole or not at all.
//!
//! ```text
//! locks --> copy beside the database (.restoring) --> open, check, bring up to date, note what is left to do --> fsync
//!      --> keep the former database (.before-restore-TIME) --> an empty log, then the new database under their names
//! ```
//!
//! The copy is left as it is, and so is the former database: until the last rename it is the site's, or, where it could not be read
//! any more, nothing is. Law: a log (-wal) that is not empty never lies beside a database that it was not written for. So the former's log
//! is folded into it before anything is renamed; where that cannot be done, the former is moved away together with its log first.
//!
//! What goes back in time with the database, and must not:
//! - its generation: a new one is drawn, so that servers read everything anew;
//! - device numbers and policy versions: they go on behind those that were given since, or, where nobody can tell, well behind them. A machine
//!   that was added since has a certificate that holds; its number is never given to another one, and no task is for it;
//! - which servers there are: those of the former database, and those that have a folder, are made known again;
//! - results: the manager takes in again, from `done`, what the copy does not know and what came since (`retake_since`).
//!
//! Presence needs nothing: sessions only count upwards, and each server's next full list settles what it holds.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bgb_protocol::ids::{Generation, ServerId, SiteCode, UnixMillis};
use bgb_protocol::status::StatusId;
use jiff::Timestamp;
use roaring::RoaringBitmap;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use tracing::info;

use crate::backup::sync_folder_of;
use crate::connection;
use crate::error::SiteError;
use crate::folder::beside;
use crate::queue_reader::newest_head;
use crate::schema;
use crate::store::columns::{device_number, integer, millis, read_set, set_bytes, time, unsigned};
use crate::store::draw_generation;
use former::{FormerFile, PutAway};
pub use lost::Lost;
use place::Place;

mod former;
mod lost;
mod place;

/// How far before the newest head of the copy results are taken in again also where it knows their files: one head may be missing, and clocks
/// be set.
const RETAKE_MARGIN_MS: u64 = 2 * bgb_protocol::head::HEAD_INTERVAL_MS;

/// Device numbers that are passed over when nobody can tell which were given since the copy was made: more than a site adds between
/// two copies, and a hundredth of those that there are.
const NUMBERS_PASSED_OVER: u64 = 100_000;

/// The same for versions of policy documents, of which there is no end.
const VERSIONS_PASSED_OVER: u64 = 1_000_000;

/// What is known beside the two databases.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The site that it must be a copy of, where the former database cannot say.
    pub site: Option<SiteCode>,
    /// Servers that have a folder, and so are the site's whatever the copy says.
    pub servers: Vec<ServerId>,
    /// The time.
    pub now: UnixMillis,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    /// The site.
    pub site: SiteCode,
    /// Its database's new generation.
    pub generation: Generation,
    /// The time of the newest signed head in the copy: what was ordered after it may be gone.
    pub head: Option<UnixMillis>,
    /// From when on results are taken in again, beside those that the copy does not know.
    pub retake_since: UnixMillis,
    /// What the former database was.
    pub former: Former,
    /// Where it lies now, if there was one.
    pub kept: Option<PathBuf>,
    /// Servers that the copy did not have and that were made known again.
    pub servers_added: Vec<ServerId>,
    /// What the former database had and the copy has not; `None` where nobody can tell.
    pub lost: Option<Lost>,
}

/// What the former database was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Former {
    /// It could be read.
    Readable,
    /// It could not, for this reason.
    Unreadable(String),
    /// There was none.
    Missing,
}

/// Puts the copy in `copy` in the place of the database at `database`, which may be damaged or missing. The manager must be stopped;
/// servers may go on.
///
/// # Errors
/// When the manager runs, the copy is damaged, of another site or of a newer schema, or the system refuses; then the former database is the
/// site's as before. Where that one could not be read, it may have been moved away already (`.before-restore-TIME` beside it).
pub fn restore(database: &Path, copy: &Path, options: &RestoreOptions) -> Result<RestoreReport, SiteError> {
    let place = Place::of(database, options.now)?;
    let _set_up_lock = place.owner.lock_set_up(&place.database)?;
    let _manager_lock = place.owner.lock_out_manager(&place.database)?;
    // What it names is not to be cleaned up before somebody has read why.
    refuse_own(&place, copy)?;
    let restored = prepare(&place, copy, options).and_then(|(life, former)| {
        let former = put_in_place(&place, former)?;
        info!("site database restored from {}, generation {}", copy.display(), life.generation);
        let NewLife { site, generation, head, retake_since, servers_added, lost } = life;
        let kept = (former != Former::Missing).then(|| place.kept.clone());
        Ok(RestoreReport { site, generation, head, retake_since, former, kept, servers_added, lost })
    });
    if restored.is_err() {
        let _ = place.remove_unfinished();
    }
    restored
}

/// What the new database is; as in [`RestoreReport`].
struct NewLife {
    site: SiteCode,
    generation: Generation,
    head: Option<UnixMillis>,
    retake_since: UnixMillis,
    servers_added: Vec<ServerId>,
    lost: Option<Lost>,
}

/// A time in UTC.
fn readable(at: UnixMillis, format: &str) -> String {
    let at = Timestamp::from_millisecond(integer(at.0));
    // What is beyond the year 9999 is no time that anybody reads.
    at.map_or_else(|_| integer(u64::MAX).to_string(), |at| at.strftime(format).to_string())
}

/// Makes the new database beside the former one, complete and durable.
fn prepare(place: &Place, copy: &Path, options: &RestoreOptions) -> Result<(NewLife, FormerFile), SiteError> {
    place.remove_unfinished()?;
    let former = former::look_at(&place.database)?;
    bring(place, copy)?;
    let mut connection = connection::open_copy(&place.restoring, copy).map_err(of_copy(copy))?;
    check_whole(&connection).map_err(of_copy(copy))?;
    let site = check_site(&connection, copy, &former, options)?;
    schema::migrate_copy(&mut connection, copy).map_err(of_copy(copy))?;
    let lost = match &former {
        // Whatever cannot be read of it is in nobody's way.
        FormerFile::Readable(former) => lost::compare(&former.connection, &connection).ok(),
        _ => None,
    };
    let generation = draw_generation()?;
    let (head, retake_since, servers_added) =
        begin_new_life(&mut connection, generation, copy, &former, options).map_err(of_copy(copy))?;
    empty_log(&connection)?
        .then_some(())
        .ok_or_else(|| SiteError::InUse { path: place.restoring.clone() })?;
    drop(connection);
    for path in [place.restoring.clone(), beside(&place.restoring, "-wal"), beside(&place.restoring, "-shm")]
    {
        place.owner.give(&path)?;
        let synced = File::open(&path).and_then(|file| {
            file.set_permissions(Permissions::from_mode(place.owner.mode))?;
            file.sync_all()
        });
        synced.map_err(SiteError::io(&path, "cannot be made durable"))?;
    }
    Ok((NewLife { site, generation, head, retake_since, servers_added, lost }, former))
}

/// Refuses a copy that a restore would take away or write over before it could be read.
fn refuse_own(place: &Place, copy: &Path) -> Result<(), SiteError> {
    let there = std::fs::metadata(copy).map_err(SiteError::io(copy, "the copy cannot be read"))?;
    let is_same = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|other| (other.dev(), other.ino()) == (there.dev(), there.ino()))
    };
    let detail = if is_same(&place.database) {
        "it is the site's database itself"
    } else if is_same(&place.restoring) {
        "it is what an earlier restore has left unfinished; give it another name first"
    } else if !there.is_file() {
        "it is no file"
    } else {
        return Ok(());
    };
    Err(SiteError::CopyDamaged { path: copy.to_owned(), detail: detail.to_owned() })
}

/// Copies the bytes of the copy, and of a log beside it, to `.restoring`. SQLite never opens the copy: it would write beside it.
fn bring(place: &Place, copy: &Path) -> Result<(), SiteError> {
    copy_bytes(copy, &place.restoring, place)?;
    let log = beside(copy, "-wal");
    if std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        copy_bytes(&log, &beside(&place.restoring, "-wal"), place)?;
    }
    Ok(())
}

fn copy_bytes(from: &Path, to: &Path, place: &Place) -> Result<(), SiteError> {
    let mut source = File::open(from).map_err(SiteError::io(from, "the copy cannot be read"))?;
    let mut copied = || {
        let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        io::copy(&mut source, &mut target)?;
        target.set_permissions(Permissions::from_mode(place.owner.mode))
    };
    copied().map_err(SiteError::io(to, "the copy cannot be brought here"))?;
    place.owner.give(to)
}

fn check_whole(connection: &Connection) -> Result<(), SiteError> {
    let said: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if said == "ok" { Ok(()) } else { Err(SiteError::Corrupt(said)) }
}

/// What is wrong with the copy is not to be called a damage of the site's database.
fn of_copy(copy: &Path) -> impl FnOnce(SiteError) -> SiteError {
    let path = copy.to_owned();
    move |error| match error {
        SiteError::Corrupt(detail) => SiteError::CopyDamaged { path, detail },
        error => error,
    }
}

fn check_site(
    connection: &Connection,
    copy: &Path,
    former: &FormerFile,
    options: &RestoreOptions,
) -> Result<SiteCode, SiteError> {
    let damaged = |detail: String| SiteError::CopyDamaged { path: copy.to_owned(), detail };
    let code: Result<String, _> = connection.query_row("SELECT code FROM site", [], |row| row.get(0));
    let code = code.map_err(|error| damaged(format!("the site's row: {error}")))?;
    let found: SiteCode = code.parse().map_err(|error| damaged(format!("the site's row: {error}")))?;
    let wanted = match former {
        FormerFile::Readable(former) => Some(former.code),
        _ => options.site,
    };
    match wanted {
        Some(wanted) if wanted != found => Err(SiteError::OtherSite { path: copy.to_owned(), found, wanted }),
        _ => Ok(found),
    }
}

/// Writes into the copy what makes it a new life of the site: the copy's newest head, from when on results are taken in again, and
/// servers that were added.
fn begin_new_life(
    connection: &mut Connection,
    generation: Generation,
    copy: &Path,
    former: &FormerFile,
    options: &RestoreOptions,
) -> Result<(Option<UnixMillis>, UnixMillis, Vec<ServerId>), SiteError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let head = newest_head(&transaction)?;
    let since = head.map_or(UnixMillis(0), |head| UnixMillis(head.0.saturating_sub(RETAKE_MARGIN_MS)));
    // One that was made before an earlier restore's work was done has that left to do as well.
    let earlier: Option<i64> =
        transaction.query_row("SELECT retake_since FROM site", [], |row| row.get(0))?;
    let since = earlier.map_or(since, |earlier| since.min(time(earlier)));
    transaction.execute(
        "UPDATE site SET generation = ?1, retake_since = ?2",
        params![generation.0, millis(since)],
    )?;
    pass_over_numbers(&transaction, former)?;
    // Documents of version 0 are issued anew: an agent that has a later one takes no earlier.
    transaction.execute("UPDATE policy SET version = 0", [])?;
    let added = add_servers(&transaction, former, options)?;
    let text = format!(
        "The site database was restored from {}, as of {}. Tasks, cancels, blocks, devices and policies that came after that are \
         gone: order them again.",
        copy.display(),
        head.map_or_else(|| "a time that is not known".to_owned(), |head| readable(head, "%FT%TZ")),
    );
    crate::store::say(&transaction, StatusId::DatabaseRestored, options.now, "", text)?;
    transaction.commit()?;
    Ok((head, since, added))
}

fn pass_over_numbers(transaction: &Transaction<'_>, former: &FormerFile) -> Result<(), SiteError> {
    let sql = "SELECT device_next, policy_version, passed_over FROM site";
    let (devices, versions, passed_over): (i64, i64, Option<Vec<u8>>) =
        transaction.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let (devices, versions) = (unsigned(devices), unsigned(versions));
    let (devices_given, versions_given) = match former {
        FormerFile::Readable(former) => (former.device_next, former.policy_version),
        _ => (devices.saturating_add(NUMBERS_PASSED_OVER), versions.saturating_add(VERSIONS_PASSED_OVER)),
    };
    let next = devices.max(devices_given);
    let mut passed_over = passed_over.map_or(Ok(RoaringBitmap::new()), |set| read_set(&set))?;
    passed_over.insert_range(device_number(integer(devices))..device_number(integer(next)));
    let set = (!passed_over.is_empty()).then(|| set_bytes(&passed_over));
    transaction.execute(
        "UPDATE site SET device_next = ?1, policy_version = ?2, passed_over = ?3, passed_over_count = ?4",
        params![integer(next), integer(versions.max(versions_given)), set, integer(passed_over.len())],
    )?;
    Ok(())
}

fn add_servers(
    transaction: &Transaction<'_>,
    former: &FormerFile,
    options: &RestoreOptions,
) -> Result<Vec<ServerId>, SiteError> {
    let of_former = match former {
        FormerFile::Readable(former) => former.servers.as_slice(),
        _ => &[],
    };
    let of_folders = options.servers.iter().map(|server| (server.0, None));
    let mut added = Vec::new();
    for (server, address) in of_former.iter().cloned().chain(of_folders) {
        let sql = "INSERT INTO server (number, address) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        if transaction.execute(sql, params![server, address])? > 0 {
            added.push(ServerId(server));
        }
    }
    Ok(added)
}

/// Moves all of the log into the database and cuts it to nothing; whether nobody was in the way.
fn empty_log(connection: &Connection) -> Result<bool, SiteError> {
    let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    Ok(busy == 0)
}

/// Puts the former database away and the new one in its place; what the former one turned out to be.
fn put_in_place(place: &Place, former: FormerFile) -> Result<Former, SiteError> {
    let PutAway { former, held } = former::put_away(place, former)?;
    for (from, to) in renames(place) {
        std::fs::rename(&from, &to).map_err(SiteError::io(&to, "cannot be put in place"))?;
    }
    sync_folder_of(&place.database)?;
    // Nobody has written the former one between its log's end and its own.
    drop(held);
    Ok(former)
}

/// In their order: whoever opens the database in between finds the former one with an empty log.
fn renames(place: &Place) -> [(PathBuf, PathBuf); 3] {
    ["-wal", "-shm", ""].map(|side| (beside(&place.restoring, side), beside(&place.database, side)))
}

#[cfg(test)]
mod tests;
