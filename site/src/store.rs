//! The site database: the one connection that writes it, and those that read it.
//!
//! [`Store`] has every operation that changes something, [`Queries`] every one that only reads; a [`Store`] and a [`Reader`] both
//! give [`Queries`]. The files below are by theme, each with its operations, its queries and its rows.
//!
//! Laws: an operation is one transaction, begun as a writer's (IMMEDIATE); none reads a clock; none takes longer than a step
//! (20,000 rows) does; pages go by the last key seen. The store owns no thread, and the caller sees to it that a process has one.

use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;

use aws_lc_rs::rand;
use bgb_protocol::ids::{Generation, SiteCode, UnixMillis};
use roaring::RoaringBitmap;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use crate::connection;
use crate::error::SiteError;
use crate::schema;
use crate::store::columns::millis;
use crate::store::presence::FullListCursor;
use crate::store::tasks::TaskCache;

pub(crate) mod columns;

mod certificates;
mod checkpoints;
mod collections;
mod details;
mod devices;
mod files;
mod policies;
mod presence;
mod queue;
mod restored;
mod results;
mod retention;
mod roads;
mod servers;
mod site_row;
mod status;
mod targets;
mod tasks;

pub use certificates::DevicePublicKey;
pub use checkpoints::Checkpointer;
pub use collections::{CollectionChange, CollectionRow};
pub use details::{DeviceCertificate, FleetCounts};
pub use devices::{
    AddedDevice, DeviceFilter, DeviceRow, DeviceState, Labels, NewDevice, PresenceOfDevice, PresenceState,
};
pub use files::FilePlace;
pub use policies::{PolicyAudience, PolicyRow, PutPolicy};
pub use presence::PresenceOutcome;
pub use results::{DifferingResult, FinalWord, ResultsOutcome, VerifiedRow};
pub use retention::Retention;
pub use roads::{Network, NetworkRoads, RoadCount, RoadKind, RoadSurvey, RoadTotal};
pub(crate) use status::say;

pub use restored::RETAKE_UNKNOWN;
use servers::Listening;
pub use servers::{ServerRow, silence_ms};
pub use site_row::SiteRow;
pub use status::{StatusFilter, StoredStatus};
pub use targets::{TargetPreview, Targets};
pub use tasks::{
    NewTask, ResultFilter, ResultPageRow, StartedTask, TASKS_ACTIVE_MAX, TaskCounts, TaskPhase, TaskRow,
    UnansweredDevice,
};

/// Most rows that one transaction changes: an order waits for one at most, and should be committed within 100 ms.
pub const STEP_ROWS: usize = 20_000;

/// Attempts to become the writer before an operation fails as busy; each waits a second. One manager writes, so that only a
/// check, a backup or a second manager can be in the way.
const BEGIN_ATTEMPTS: u32 = 5;

/// One step of a long piece of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Rows that it changed.
    pub changed: u64,
    /// Whether there is more to do: call again, after whatever is more urgent.
    pub more: bool,
}

/// The one writing connection of a process.
pub struct Store {
    connection: Connection,
    path: PathBuf,
    code: SiteCode,
    generation: Generation,
    tasks: TaskCache,
    /// The devices that are online, as the last commit has it: read from an index once, since at 1,000,000 that takes longer than a
    /// task's start may.
    online: RoaringBitmap,
    /// How far the full list that is being finished has been compared. Lost in a crash, which only repeats the comparing.
    full_list: Option<FullListCursor>,
    listening: Listening,
    retake_since: Option<UnixMillis>,
    /// Rung when the log is to be moved beside the writer, if somebody is there for it.
    wake_checkpointer: Option<SyncSender<()>>,
}

/// A read-only connection.
pub struct Reader {
    connection: Connection,
}

/// Everything that can be asked of the database.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    connection: &'a Connection,
}

impl Store {
    /// Makes the database of a new site at `path`, where no file may be.
    ///
    /// # Errors
    /// When there is a file, or it cannot be written.
    pub fn create(path: &Path, code: SiteCode, now: UnixMillis) -> Result<Self, SiteError> {
        let mut connection = connection::create(path)?;
        schema::migrate(&mut connection, path)?;
        let Generation(generation) = draw_generation()?;
        connection.execute(
            "INSERT INTO site (id, code, generation, created) VALUES (1, ?1, ?2, ?3)",
            params![code.as_str(), generation, millis(now)],
        )?;
        drop(connection);
        Self::open(path)
    }

    /// Opens a site's database for writing, and brings its schema up to date.
    ///
    /// # Errors
    /// When it is missing, not a site's, of a newer schema, read-only or busy.
    pub fn open(path: &Path) -> Result<Self, SiteError> {
        let mut connection = connection::open(path)?;
        // Shows a file that may not be written now, rather than with the first order.
        begin(&connection)?.rollback()?;
        schema::migrate(&mut connection, path)?;
        let queries = Queries { connection: &connection };
        let (site, online) = (queries.site()?, queries.online_devices()?);
        let (code, generation, path) = (site.code, site.generation, path.to_owned());
        let (tasks, full_list, retake_since) = (TaskCache::default(), None, site.retake_since);
        let listening = Listening::default();
        Ok(Self {
            connection,
            path,
            code,
            generation,
            tasks,
            online,
            full_list,
            listening,
            retake_since,
            wake_checkpointer: None,
        })
    }

    /// Servers write whole online lists so often from now on: every 5 minutes unless this is said. Silence is judged by it.
    pub fn expect_full_lists_every(&mut self, interval_ms: u64) {
        self.listening.full_interval_ms = interval_ms;
    }

    /// The database's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The site's code.
    #[must_use]
    pub fn code(&self) -> SiteCode {
        self.code
    }

    /// Which life of the database this is.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What can be asked; it sees all that was committed.
    #[must_use]
    pub fn read(&self) -> Queries<'_> {
        Queries { connection: &self.connection }
    }

    /// How many of `devices` are online, from memory: for whoever must not hold up the writing thread.
    #[must_use]
    pub fn online_among(&self, devices: &RoaringBitmap) -> u64 {
        self.online.intersection_len(devices)
    }

    /// How many devices are online, from memory.
    #[must_use]
    pub fn online_count(&self) -> u64 {
        self.online.len()
    }

    /// Moves the write-ahead log into the database as far as no reader is in the way, and waits for it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn checkpoint(&self) -> Result<(), SiteError> {
        Ok(self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?)
    }

    /// Runs `work` in a transaction of its own.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, SiteError>,
    ) -> Result<T, SiteError> {
        write(&self.connection, work)
    }
}

/// The name of a new life of a database.
pub(crate) fn draw_generation() -> Result<Generation, SiteError> {
    let mut generation = [0; 16];
    rand::fill(&mut generation).map_err(|_| SiteError::Certificate {
        what: "the database's generation cannot be drawn".to_owned(),
        detail: "the system gives no randomness".to_owned(),
    })?;
    Ok(Generation(generation))
}

fn write<T>(
    connection: &Connection,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, SiteError>,
) -> Result<T, SiteError> {
    let transaction = begin(connection)?;
    let done = work(&transaction)?;
    transaction.commit()?;
    Ok(done)
}

/// Becomes the writer. Only this waits for others: a transaction that was begun as the writer's does not meet a lock.
fn begin(connection: &Connection) -> Result<Transaction<'_>, SiteError> {
    let mut attempts_left = BEGIN_ATTEMPTS;
    loop {
        attempts_left -= 1;
        match Transaction::new_unchecked(connection, TransactionBehavior::Immediate).map_err(SiteError::from)
        {
            Err(SiteError::Busy) if attempts_left > 0 => {}
            other => return other,
        }
    }
}

/// Refuses a chunk that would hold up whatever is more urgent.
fn check_chunk(rows: usize) -> Result<(), SiteError> {
    if rows <= STEP_ROWS {
        return Ok(());
    }
    let advice = "take the file in smaller chunks";
    Err(SiteError::Limit { what: "rows in a chunk", limit: STEP_ROWS as u64, advice })
}

impl Reader {
    /// Opens a site's database for reading.
    ///
    /// # Errors
    /// When it is missing, not a site's, or of another schema than this release's.
    pub fn open(path: &Path) -> Result<Self, SiteError> {
        Ok(Self { connection: connection::open_read_only(path)? })
    }

    /// What can be asked; each query sees the newest commit.
    #[must_use]
    pub fn read(&self) -> Queries<'_> {
        Queries { connection: &self.connection }
    }

    /// Asks several things of one moment.
    ///
    /// # Errors
    /// What `ask` says, or that the database cannot be read.
    pub fn snapshot<T>(&self, ask: impl FnOnce(Queries<'_>) -> Result<T, SiteError>) -> Result<T, SiteError> {
        let transaction = self.connection.unchecked_transaction()?;
        let answer = ask(Queries { connection: &transaction })?;
        transaction.finish()?;
        Ok(answer)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Store({}, {})", self.code, self.path.display())
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Reader({:?})", self.connection.path())
    }
}

impl std::fmt::Debug for Queries<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Queries({:?})", self.connection.path())
    }
}

#[cfg(test)]
mod tests;
