//! The broker: reads the site's queue and hands its rows to the shards.
//!
//! At its start it reads every row that is still valid; only then does the server listen, so that nobody signs in before the
//! blocks are known. From then on it follows. Its place is in memory only, so there is no cursor to lose, and an account
//! that may only read is enough.
//!
//! **How it follows.** The manager rings a doorbell, a small file beside the database, after each commit that added rows; inotify
//! wakes the broker, which reads on from its place. A bell can be missed (a manager killed between commit and bell, a file
//! system that tells no events), so every 250 ms it also looks at SQLite's `data_version`, which costs a few microseconds. The
//! bell costs nothing while nothing happens and brings a row in well under a millisecond. What was passed over: `data_version` alone,
//! every 5 ms for the promised 10 (200 wake-ups a second for each server); watching the write-ahead log itself, which
//! changes before the commit can be read, so that one has to poll after each event; reading the shared-memory index behind SQLite's
//! back. `docs/following.md` has the figures.
//!
//! When the queue cannot be read, sessions stay. It is said after 10 s, and after a minute (configurable) devices may not
//! sign in any more, since a block could be missed.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bgb_hub::Order;
use bgb_protocol::ids::{Generation, ServerId, UnixMillis};
use bgb_protocol::queue::QueueItem;
use bgb_protocol::status::StatusId;
use bgb_site::queue_reader::{QueueReader, QueueRow};
use inotify::{Inotify, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::courier::StatusLine;
use crate::metrics::ServerMetrics;
use crate::reactor::mailbox::Mailbox;
use crate::shard::Letter;

/// How often the queue is looked at without a bell.
const LOOK: Duration = Duration::from_millis(250);
/// How long the queue may be unreadable before it is said (docs/promises.md).
const SAY_UNREADABLE_AFTER: Duration = Duration::from_secs(10);
/// How soon a bell that cannot be watched is tried again: a manager that makes it anew does so within a moment.
const WATCH_AGAIN: Duration = Duration::from_secs(5);
/// Rows that are handed on at a time.
const BATCH_ROWS: usize = 1_000;

/// What the broker is told.
pub struct BrokerOptions {
    /// The site database.
    pub database: PathBuf,
    /// The doorbell.
    pub bell: PathBuf,
    /// Which server's rows are read, beside those for all.
    pub server: ServerId,
    /// How long the queue may be unreadable before sign-ins are refused.
    pub refuse_after: Duration,
}

/// See the module.
pub struct Broker {
    options: BrokerOptions,
    shards: Arc<[Mailbox<Letter>]>,
    status: StatusLine,
    metrics: Arc<ServerMetrics>,
    reader: Option<QueueReader>,
    generation: Generation,
    sequence: u64,
    version: i64,
    bell: Bell,
    trouble: Option<Trouble>,
}

/// The queue cannot be read, and since when; and what is still to be done about it, the first thing first.
#[derive(Debug)]
struct Trouble {
    since: Instant,
    pending: Vec<(Duration, Step)>,
}

/// What is done about a queue that stays unreadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Say,
    RefuseSignIns,
}

impl Trouble {
    fn begin(since: Instant, refuse_after: Duration) -> Self {
        let mut pending = vec![(SAY_UNREADABLE_AFTER, Step::Say), (refuse_after, Step::RefuseSignIns)];
        pending.sort_by_key(|(after, _)| *after);
        Self { since, pending }
    }

    /// The next step whose time has come; it counts as done by that.
    fn poll_due(&mut self, now: Instant) -> Option<Step> {
        let (after, step) = *self.pending.first()?;
        (now.saturating_duration_since(self.since) >= after).then(|| {
            self.pending.remove(0);
            step
        })
    }

    /// Whether anybody has heard of it.
    fn is_known(&self) -> bool {
        self.pending.len() < 2
    }
}

impl Broker {
    /// Reads all that is valid and hands it to the shards.
    ///
    /// # Errors
    /// When the queue cannot be read: a server that does not know the blocks must not begin.
    pub fn start(
        options: BrokerOptions,
        shards: Arc<[Mailbox<Letter>]>,
        status: StatusLine,
        metrics: Arc<ServerMetrics>,
    ) -> anyhow::Result<Self> {
        // Before the first read, so that no bell is missed in between.
        let bell = Bell::watch(&options.bell);
        let mut broker = Self {
            options,
            shards,
            status,
            metrics,
            reader: None,
            generation: Generation([0; 16]),
            sequence: 0,
            version: 0,
            bell,
            trouble: None,
        };
        broker
            .read_everything()
            .with_context(|| format!("the queue in {} cannot be read", broker.options.database.display()))?;
        Ok(broker)
    }

    /// Follows the queue until `stopped` says so; it is asked four times a second at least.
    pub fn run(mut self, stopped: impl Fn() -> bool) {
        while !stopped() {
            let rung = self.bell.wait(LOOK);
            match self.follow(rung) {
                Ok(()) => self.on_readable(),
                Err(error) => self.on_unreadable(&error),
            }
        }
    }

    /// Reads on from its place, if anything has changed.
    fn follow(&mut self, rung: bool) -> anyhow::Result<()> {
        let Some(reader) = &self.reader else { return self.read_everything() };
        if reader.is_replaced()? {
            return self.read_everything();
        }
        let version = reader.data_version()?;
        if version == self.version && !rung {
            return Ok(());
        }
        if reader.generation()? != self.generation {
            return self.read_everything();
        }
        loop {
            let rows = reader.rows_after(self.sequence, self.options.server, now(), BATCH_ROWS)?;
            let Some(last) = rows.last() else { break };
            self.sequence = last.sequence;
            let whole_batch = rows.len() == BATCH_ROWS;
            self.hand_on(rows);
            if !whole_batch {
                break;
            }
        }
        self.version = version;
        Ok(())
    }

    /// Reads every valid row, for the first time or because the database is another one.
    fn read_everything(&mut self) -> anyhow::Result<()> {
        let reader = QueueReader::open(&self.options.database)?;
        let version = reader.data_version()?;
        let snapshot = reader.all_valid(self.options.server, now())?;
        if self.generation != snapshot.generation && self.sequence > 0 {
            let text = "the site database was restored; every order is read anew".to_owned();
            self.status.say(StatusId::GenerationChanged, now(), "queue", text);
        }
        self.tell(&Letter::SignIns(false));
        self.tell(&Letter::Orders(Arc::from([Order::Reset])));
        let mut rows = snapshot.rows.into_iter().peekable();
        while rows.peek().is_some() {
            let batch = rows.by_ref().take(BATCH_ROWS).collect();
            self.hand_on(batch);
        }
        self.tell(&Letter::SignIns(true));
        self.reader = Some(reader);
        self.generation = snapshot.generation;
        self.sequence = snapshot.sequence;
        self.version = version;
        self.metrics.queue_sequence.set(self.sequence);
        Ok(())
    }

    fn hand_on(&self, rows: Vec<QueueRow>) {
        self.metrics.queue_rows.add(rows.len() as u64);
        if let Some(last) = rows.last() {
            self.metrics.queue_sequence.set(last.sequence);
        }
        let orders: Vec<_> = rows.into_iter().filter_map(|row| self.order(&row)).collect();
        if !orders.is_empty() {
            self.tell(&Letter::Orders(orders.into()));
        }
    }

    fn order(&self, row: &QueueRow) -> Option<Order> {
        let read = QueueItem::decode(&row.item_bytes)
            .map_err(anyhow::Error::from)
            .and_then(|item| Order::read(item).map_err(anyhow::Error::from));
        read.map_err(|error| {
            self.metrics.queue_rows_bad.add(1);
            let text = format!("row {} of the queue is passed over: {error:#}", row.sequence);
            self.status.say(StatusId::QueueRowUnreadable, now(), "queue", text);
        })
        .ok()
    }

    fn tell(&self, letter: &Letter) {
        for shard in &*self.shards {
            // A shard that is gone has stopped, and so will we.
            shard.send(letter.clone());
        }
    }

    fn on_readable(&mut self) {
        let Some(trouble) = self.trouble.take().filter(Trouble::is_known) else { return };
        tracing::debug!(since = ?trouble.since.elapsed(), "the queue is readable again");
        self.tell(&Letter::SignIns(true));
        self.metrics.sign_ins_refused.set(0);
        self.status.say(StatusId::QueueReadable, now(), "queue", "the site's queue can be read again");
    }

    fn on_unreadable(&mut self, error: &anyhow::Error) {
        let moment = Instant::now();
        let mut trouble = self.trouble.take().unwrap_or_else(|| {
            tracing::warn!(error = %format!("{error:#}"), "the site's queue cannot be read; trying again");
            Trouble::begin(moment, self.options.refuse_after)
        });
        let database = self.options.database.display();
        while let Some(step) = trouble.poll_due(moment) {
            let (id, text) = match step {
                Step::Say => {
                    let text = format!(
                        "the queue in {database} cannot be read: {error:#}; sessions stay, nothing new is pushed; \
                         see to the database"
                    );
                    (StatusId::QueueUnreadable, text)
                }
                Step::RefuseSignIns => {
                    self.tell(&Letter::SignIns(false));
                    self.metrics.sign_ins_refused.set(1);
                    let text = format!(
                        "devices may not sign in while the queue in {database} cannot be read: {error:#}"
                    );
                    (StatusId::SignInsRefused, text)
                }
            };
            self.status.say(id, now(), "queue", text);
        }
        self.trouble = Some(trouble);
    }
}

/// The doorbell's file, watched. Where it cannot be watched, the timer alone serves, and watching is tried again.
///
/// A watch is on a file, not on its name: when the site is restored, or the manager writes the bell anew, the old file never rings again.
/// So the file behind the name is compared at every look, which costs a microsecond and needs none of inotify's events about it.
struct Bell {
    path: PathBuf,
    watch: Option<Watch>,
    /// When it was last tried in vain.
    tried: Option<Instant>,
}

struct Watch {
    inotify: Inotify,
    file: FileIdentity,
}

/// Device and inode.
type FileIdentity = (u64, u64);

impl Bell {
    fn watch(path: &Path) -> Self {
        let mut bell = Self { path: path.to_owned(), watch: None, tried: None };
        bell.tend(Instant::now());
        bell
    }

    /// Sees to it that the file behind the name is the one that is watched.
    fn tend(&mut self, now: Instant) {
        let is_due = match &self.watch {
            Some(watch) => identity(&self.path).ok() != Some(watch.file),
            None => self.tried.is_none_or(|tried| now.saturating_duration_since(tried) >= WATCH_AGAIN),
        };
        if !is_due {
            return;
        }
        match watch(&self.path) {
            Ok(watch) => {
                if self.watch.is_some() || self.tried.is_some() {
                    tracing::info!(bell = %self.path.display(), "the manager's bell is another file and is watched anew");
                }
                (self.watch, self.tried) = (Some(watch), None);
            }
            Err(error) => {
                if self.tried.is_none() {
                    tracing::warn!(
                        bell = %self.path.display(),
                        %error,
                        "the manager's bell cannot be watched; rows of the queue come up to 250 ms later until it can"
                    );
                }
                (self.watch, self.tried) = (None, Some(now));
            }
        }
    }

    /// Waits for a ring, `most` at the longest, less than a second. Whether it rang.
    fn wait(&mut self, most: Duration) -> bool {
        self.tend(Instant::now());
        let Some(Watch { inotify, .. }) = &mut self.watch else {
            std::thread::sleep(most);
            return false;
        };
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(most.subsec_nanos()) };
        let ready = {
            let mut fds = [PollFd::from_borrowed_fd(inotify.as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&timeout)).unwrap_or(0) > 0
        };
        if ready {
            let mut buffer = [0; 4096];
            while let Ok(events) = inotify.read_events(&mut buffer) {
                if events.count() == 0 {
                    break;
                }
            }
        }
        ready
    }
}

fn watch(path: &Path) -> io::Result<Watch> {
    // Before the watch: a file that is replaced in between is then another one at the next look.
    let file = identity(path)?;
    let inotify = Inotify::init()?;
    inotify.watches().add(path, WatchMask::MODIFY | WatchMask::CLOSE_WRITE)?;
    Ok(Watch { inotify, file })
}

fn identity(path: &Path) -> io::Result<FileIdentity> {
    std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn now() -> UnixMillis {
    UnixMillis(bgb_daemon::clock::Now::read().unix_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_ins_are_refused_when_their_time_comes_whether_it_was_said_or_not() {
        let since = Instant::now();
        let at = |seconds| since + Duration::from_secs(seconds);
        let mut early = Trouble::begin(since, Duration::from_secs(2));
        assert_eq!(early.poll_due(at(1)), None);
        assert!(!early.is_known());
        assert_eq!(early.poll_due(at(2)), Some(Step::RefuseSignIns));
        assert_eq!(early.poll_due(at(9)), None);
        assert_eq!((early.poll_due(at(10)), early.poll_due(at(10))), (Some(Step::Say), None));
        let mut late = Trouble::begin(since, Duration::from_secs(60));
        assert_eq!((late.poll_due(at(10)), late.poll_due(at(59))), (Some(Step::Say), None));
        assert_eq!(late.poll_due(at(60)), Some(Step::RefuseSignIns));
    }

    #[test]
    fn a_bell_that_was_replaced_rings_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("site.bell"), folder.path().join("new"));
        std::fs::write(&path, "1").unwrap();
        let mut bell = Bell::watch(&path);
        std::fs::write(&path, "2").unwrap();
        assert!(bell.wait(LOOK));
        std::fs::write(&new, "3").unwrap();
        std::fs::rename(&new, &path).unwrap();
        bell.wait(Duration::from_millis(1));
        std::fs::write(&path, "4").unwrap();
        assert!(bell.wait(LOOK), "the new file is watched");
    }

    #[test]
    fn a_bell_that_was_not_there_is_found_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("site.bell");
        let mut bell = Bell::watch(&path);
        std::fs::write(&path, "1").unwrap();
        let tried = bell.tried.unwrap();
        bell.tend(tried + WATCH_AGAIN / 2);
        assert!(bell.watch.is_none(), "it is not looked for all the time");
        bell.tend(tried + WATCH_AGAIN);
        std::fs::write(&path, "2").unwrap();
        assert!(bell.wait(LOOK));
    }
}
