//! The manager as a machine that is told the time: orders in, answers out, and its own work a step at a time.
//!
//! It owns the site's store (the only one that writes), the signing key, the authority, the inbox and the ingest. It starts no thread and
//! reads no clock: the writer thread drives it in production, the simulator on virtual time. Law: a step is at most one chunk of rows,
//! or one other thing of that size, so that whoever drives it can put orders in between; when the database or the disk fails, nothing
//! is lost, and the step is tried again later and not at once.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bgb_daemon::clock::Now;
use bgb_daemon::disk::Disk;
use bgb_protocol::api::InboxStatus;
use bgb_protocol::file::FileKind;
use bgb_protocol::head::SignedHead;
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::signature::SigningKey;
use bgb_protocol::status::StatusId;
use bgb_site::store::Retention;
use bgb_site::{Authority, SiteError, Store};

use crate::bell::Bell;
use crate::chores::{Chore, Chores};
use crate::figures::Figures;
use crate::inbox::{Inbox, Retaken, UnreadableFolder, Waiting, plain};
use crate::ingest::{Desk, Ingest, IngestError, Progress};
use crate::messages::Messages;
use crate::verifier::Verifier;

/// The first pause after the database could not be written; it doubles.
const DATABASE_REST_MS_MIN: u64 = 500;
/// The longest pause: whoever mends the database should not wait long to see it.
const DATABASE_REST_MS_MAX: u64 = 10_000;
/// While files wait, the inbox is scanned no more often than this: a long backlog is a long list.
const SCAN_UNDER_LOAD_MS: u64 = 5_000;
/// A disk that fails is said so often, and in between only logged.
const DISK_SAID_MS: u64 = 10 * 60_000;
/// After so many failures with the same file, the others get their turn before it.
const FILE_FAILURES_MAX: u32 = 3;

/// What a manager is made of.
pub struct ManagerParts {
    /// The site database, open for writing.
    pub store: Store,
    /// Signs tasks, cancels, heads and policies.
    pub key: SigningKey,
    /// Issues devices' certificates.
    pub authority: Authority,
    /// The disk that the inbox lies on.
    pub disk: Arc<dyn Disk>,
    /// The inbox, `…/bgb.box`.
    pub inbox: PathBuf,
    /// Tells servers about new rows of the queue.
    pub bell: Box<dyn Bell>,
    /// Verifies results ahead of the writer.
    pub verifier: Verifier,
    /// Where it notes what others ask.
    pub figures: Arc<Figures>,
    /// Addresses of notification servers for new devices.
    pub servers: Vec<String>,
    /// How often servers write full online lists, in milliseconds.
    pub presence_full_ms: u64,
    /// Time between two scans of the inbox, in milliseconds.
    pub scan_ms: u64,
    /// A clock that measures transactions while they are done: the monotonic one in production; in a simulation, always 0.
    pub stopwatch: Box<dyn Fn() -> Duration + Send>,
    /// What tells the ids of tasks of one millisecond apart: the system's randomness in production; in a simulation, its seed's.
    pub random: Box<dyn FnMut() -> [u8; 10] + Send>,
}

/// When the next step is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At once: there is more to do.
    Now,
    /// At this monotonic time in milliseconds, unless an order, a verified block or a change of the inbox comes before.
    At(u64),
}

impl Next {
    /// How long to wait, in milliseconds.
    #[must_use]
    pub fn wait_ms(self, mono_ms: u64) -> u64 {
        match self {
            Self::Now => 0,
            Self::At(due) => due.saturating_sub(mono_ms),
        }
    }
}

/// The manager.
pub struct Manager {
    pub(crate) store: Store,
    pub(crate) key: SigningKey,
    pub(crate) authority: Authority,
    pub(crate) servers: Vec<String>,
    pub(crate) bell: Box<dyn Bell>,
    pub(crate) figures: Arc<Figures>,
    pub(crate) random: Box<dyn FnMut() -> [u8; 10] + Send>,
    messages: Messages,
    inbox: Inbox,
    ingest: Ingest,
    chores: Chores,
    /// What a restore left was done in this life, but for what the disk refused.
    pub(crate) is_retaken: bool,
    presence_full_ms: u64,
    started_mono_ms: u64,
    database: DatabaseState,
    scanned: u64,
    inbox_state: InboxState,
    disk_said: Option<u64>,
    failing: Option<(Waiting, u32)>,
    pub(crate) stopwatch: Box<dyn Fn() -> Duration + Send>,
}

/// What the last scan of the inbox came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InboxState {
    Readable,
    Unreadable,
}

/// Whether the database takes what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DatabaseState {
    Sound,
    /// It did not at the last attempt; no other before this monotonic time in milliseconds.
    Resting {
        until: u64,
        rest_ms: u64,
    },
}

impl Manager {
    /// Puts the parts together and opens the inbox.
    ///
    /// # Errors
    /// When the inbox's folders cannot be made or read.
    pub fn new(mut parts: ManagerParts, now: Now) -> io::Result<Self> {
        let inbox = Inbox::open(parts.disk, parts.inbox)?;
        parts.figures.set_standing(|standing| {
            standing.started = UnixMillis(now.unix_ms);
            standing.database_writable = true;
        });
        let mut messages = Messages::new(&parts.store);
        let version = env!("CARGO_PKG_VERSION");
        let text = format!("The manager of site {} (release {version}) answers.", parts.store.code());
        messages.say(UnixMillis(now.unix_ms), StatusId::ManagerStarted, "", text);
        parts.store.expect_full_lists_every(parts.presence_full_ms);
        Ok(Self {
            ingest: Ingest::new(parts.store.code(), parts.verifier),
            chores: Chores::new(now.mono_ms, parts.scan_ms),
            store: parts.store,
            key: parts.key,
            authority: parts.authority,
            servers: parts.servers,
            bell: parts.bell,
            figures: parts.figures,
            random: parts.random,
            messages,
            inbox,
            presence_full_ms: parts.presence_full_ms,
            started_mono_ms: now.mono_ms,
            database: DatabaseState::Sound,
            scanned: 0,
            inbox_state: InboxState::Readable,
            disk_said: None,
            is_retaken: false,
            failing: None,
            stopwatch: parts.stopwatch,
        })
    }

    /// What the database holds, for those who look on (the simulator).
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Something changed in the inbox: the next step looks.
    pub fn on_inbox_changed(&mut self) {
        self.chores.hasten(Chore::ScanInbox);
    }

    /// Does one piece of whatever is due.
    pub fn step(&mut self, now: Now) -> Next {
        if let DatabaseState::Resting { until, .. } = self.database
            && now.mono_ms < until
        {
            return Next::At(until);
        }
        match self.work(now) {
            Ok(next) => {
                self.on_database_sound(now);
                next
            }
            Err(IngestError::Database(error)) => self.on_database_error(now, &error),
            Err(IngestError::Disk(file, error)) => self.on_disk_error(now, &file, &error),
        }
    }

    /// The end: says so, and leaves the write-ahead log small.
    pub fn stop(&mut self, now: Now) {
        self.messages.say(
            UnixMillis(now.unix_ms),
            StatusId::ManagerStopped,
            "",
            "The manager stopped in good order.",
        );
        let stopped = self.messages.flush(&mut self.store).and_then(|()| self.store.checkpoint());
        if let Err(error) = stopped {
            tracing::warn!(%error, "the last status messages could not be written");
        }
    }

    /// After each order: servers are told, and the log has what the store said of it.
    pub(crate) fn after_order(&mut self) {
        self.bell.ring();
        if let Err(error) = self.messages.flush(&mut self.store) {
            tracing::debug!(%error, "status messages wait until the database can be written");
        }
    }

    pub(crate) fn say(&mut self, now: UnixMillis, id: StatusId, about: &str, text: String) {
        self.messages.say(now, id, about, text);
    }

    /// A step of moving results back that were taken in at `since` or later, or that the database does not know; what all came to, when
    /// it is over.
    pub(crate) fn retake_step(&mut self, since: UnixMillis) -> Result<Option<Retaken>, SiteError> {
        let Self { inbox, store, .. } = self;
        inbox.retake(since, |server, epoch, sequence| {
            let place = store.read().file_place(server, epoch, FileKind::Results, sequence)?;
            Ok(place.is_some_and(|place| place.complete))
        })
    }

    fn work(&mut self, now: Now) -> Result<Next, IngestError> {
        self.messages.flush(&mut self.store)?;
        if let Some(chore) = self.chores.take_due(now.mono_ms) {
            let done = self.do_chore(chore, now);
            match done {
                Ok(more) => self.chores.done(chore, now.mono_ms, more),
                Err(_) => self.chores.failed(chore, now.mono_ms),
            }
            match done {
                Err(error @ SiteError::ValueRefused(_)) => {
                    tracing::error!(?chore, %error, "could not be done; it is tried again at its next time");
                }
                done => {
                    done?;
                }
            }
            self.messages.flush(&mut self.store)?;
            return Ok(Next::Now);
        }
        if self.is_being_restored() {
            return Ok(Next::At(self.chores.next_due()));
        }
        let progress = self.ingest_step(now)?;
        self.messages.flush(&mut self.store)?;
        Ok(match progress {
            Progress::Worked => Next::Now,
            Progress::Idle | Progress::Waits => Next::At(self.chores.next_due()),
        })
    }

    fn ingest_step(&mut self, now: Now) -> Result<Progress, IngestError> {
        let was_waiting = !self.inbox.is_empty();
        let mut desk = Desk {
            store: &mut self.store,
            inbox: &mut self.inbox,
            messages: &mut self.messages,
            figures: &self.figures,
            bell: self.bell.as_mut(),
            now,
            stopwatch: &self.stopwatch,
        };
        let progress = self.ingest.step(&mut desk);
        if was_waiting {
            self.note_inbox();
            if self.inbox.is_empty() {
                // A scan takes a bounded number of names: there may be more.
                self.chores.hasten(Chore::ScanInbox);
            }
        }
        if matches!(progress, Ok(Progress::Worked)) && self.ingest.is_between_files() {
            self.failing = None;
        }
        progress
    }

    /// One step of a chore; whether there is more of it to do.
    fn do_chore(&mut self, chore: Chore, now: Now) -> Result<bool, SiteError> {
        let unix = UnixMillis(now.unix_ms);
        Ok(match chore {
            Chore::FinishRestore => self.restore_step(unix)?,
            Chore::WriteHead => {
                let key = &self.key;
                self.store.write_head(unix, |statement| SignedHead::sign(statement, key))?;
                self.bell.ring();
                self.figures.set_standing(|standing| standing.head = Some(unix));
                false
            }
            Chore::ExpireTasks => {
                self.store.expire_tasks(unix)?;
                self.figures.metrics.tasks_active.set(self.store.read().active_tasks()?);
                false
            }
            Chore::ScanInbox => {
                self.scan(now);
                false
            }
            Chore::MarkSilentServers => self.mark_silent_servers(now)?,
            Chore::MarkNoAnswer => self.store.mark_no_answer(unix)?.more,
            Chore::SweepQueue => self.store.sweep_queue(unix)?.more,
            Chore::SweepHistory => self.store.sweep_history(&Retention::default(), unix)?.more,
            // What is to be taken in again must not be removed before.
            Chore::SweepDone if self.is_being_restored() => true,
            Chore::SweepDone => self.inbox.sweep(unix).unwrap_or_else(|error| {
                tracing::warn!(%error, "old files in done cannot be removed; this is tried again in ten minutes");
                false
            }),
            Chore::Checkpoint => {
                self.store.tidy_log()?;
                false
            }
        })
    }

    /// Silence is judged by what was read, and so not of a server whose presence files still wait, nor before a manager that was down has
    /// listened for as long as a server may be silent.
    fn mark_silent_servers(&mut self, now: Now) -> Result<bool, SiteError> {
        self.scan(now);
        let is_early = now.mono_ms
            < self.started_mono_ms.saturating_add(bgb_site::store::silence_ms(self.presence_full_ms));
        let (inbox, open) = (&self.inbox, self.ingest.open_file());
        let is_being_read = |server| open.is_some_and(|file| file.server == server && file.is_presence());
        let is_excused = |server| is_early || inbox.has_presence_waiting(server) || is_being_read(server);
        Ok(self.store.mark_silent_servers(is_excused, UnixMillis(now.unix_ms))?.more)
    }

    fn scan(&mut self, now: Now) {
        if !self.inbox.is_empty() && now.mono_ms < self.scanned.saturating_add(SCAN_UNDER_LOAD_MS) {
            return;
        }
        self.scanned = now.mono_ms;
        match self.inbox.scan(now.mono_ms) {
            Ok(unreadable) => {
                self.inbox_state = InboxState::Readable;
                for UnreadableFolder { server, error } in unreadable {
                    let text = format!(
                        "The inbox's folder of server {server} cannot be read: {error}. Its files wait where they are, those of other \
                         servers are taken in; check the folder's owner and mode."
                    );
                    let about = format!("server {server}");
                    self.messages.say(UnixMillis(now.unix_ms), StatusId::InboxUnreadable, about, text);
                }
            }
            Err(error) => {
                if std::mem::replace(&mut self.inbox_state, InboxState::Unreadable) == InboxState::Readable {
                    let text = format!(
                        "The inbox cannot be read: {error}. Files wait where they are; check its owner and mode."
                    );
                    self.messages.say(UnixMillis(now.unix_ms), StatusId::InboxUnreadable, "", text);
                }
            }
        }
        self.note_inbox();
    }

    /// For those who ask how it is: what waits, and what came of what was taken in.
    fn note_inbox(&self) {
        let (files, bytes) = self.inbox.backlog();
        self.figures.set_inbox(InboxStatus { files, bytes, set_aside: self.inbox.set_aside_count() });
        self.figures.metrics.devices_online.set(self.store.online_count());
    }

    fn on_database_sound(&mut self, now: Now) {
        if self.database == DatabaseState::Sound {
            return;
        }
        self.database = DatabaseState::Sound;
        self.figures.set_standing(|standing| standing.database_writable = true);
        let text = "The site database can be written again; what waited is being dealt with.";
        self.messages.say(UnixMillis(now.unix_ms), StatusId::DatabaseWritable, "", text);
        self.on_inbox_changed();
    }

    fn on_database_error(&mut self, now: Now, error: &SiteError) -> Next {
        let rest_ms = match self.database {
            DatabaseState::Sound => {
                let text = format!(
                    "The site database cannot be written: {error}. Files wait in the inbox; it is tried again."
                );
                self.messages.say(UnixMillis(now.unix_ms), StatusId::DatabaseUnwritable, "", text);
                self.figures.set_standing(|standing| standing.database_writable = false);
                DATABASE_REST_MS_MIN
            }
            DatabaseState::Resting { rest_ms, .. } => (rest_ms * 2).min(DATABASE_REST_MS_MAX),
        };
        self.note_failure(now);
        let until = now.mono_ms.saturating_add(rest_ms);
        self.database = DatabaseState::Resting { until, rest_ms };
        self.on_inbox_changed();
        Next::At(until)
    }

    /// A file at which the database fails again and again must not keep the others waiting.
    fn note_failure(&mut self, now: Now) {
        let Some(file) = self.ingest.take_given_up() else { return };
        let failures = match &self.failing {
            Some((failing, failures)) if *failing == file => failures + 1,
            _ => 1,
        };
        if failures < FILE_FAILURES_MAX {
            self.failing = Some((file, failures));
        } else {
            self.failing = None;
            self.inbox.let_rest(now.mono_ms, &file);
        }
    }

    fn on_disk_error(&mut self, now: Now, file: &Waiting, error: &io::Error) -> Next {
        self.inbox.let_rest(now.mono_ms, file);
        let about = format!("{}/{}", file.server, plain(&file.name));
        let text = format!("{error}. The file stays where it is and is tried again in half a minute.");
        if self.disk_said.is_some_and(|said| now.mono_ms < said.saturating_add(DISK_SAID_MS)) {
            tracing::warn!(about, "{text}");
        } else {
            self.disk_said = Some(now.mono_ms);
            self.messages.say(UnixMillis(now.unix_ms), StatusId::InboxUnreadable, about, text);
        }
        Next::Now
    }
}

#[cfg(test)]
mod tests;
