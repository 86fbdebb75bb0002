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

use std::os::fd::AsFd as _;
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
/// How long the queue may be unreadable before it is said (site.md).
const SAY_UNREADABLE_AFTER: Duration = Duration::from_secs(10);
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
    trouble: Trouble,
}

/// Whether the queue can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    Since(Instant),
    /// It was said.
    Said(Instant),
    /// And devices may not sign in any more.
    Refusing,
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
            trouble: Trouble::None,
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
        match self.trouble {
            Trouble::None => return,
            Trouble::Since(_) => {}
            Trouble::Said(_) | Trouble::Refusing => {
                self.tell(&Letter::SignIns(true));
                self.status.say(
                    StatusId::QueueReadable,
                    now(),
                    "queue",
                    "the site's queue can be read again",
                );
            }
        }
        self.trouble = Trouble::None;
    }

    fn on_unreadable(&mut self, error: &anyhow::Error) {
        let database = self.options.database.display().to_string();
        self.trouble = match self.trouble {
            Trouble::None => {
                tracing::warn!(error = %format!("{error:#}"), "the site's queue cannot be read; trying again");
                Trouble::Since(Instant::now())
            }
            Trouble::Since(since) if since.elapsed() >= SAY_UNREADABLE_AFTER => {
                let text = format!(
                    "the queue in {database} cannot be read: {error:#}; sessions stay, nothing new is pushed; \
                     see to the database"
                );
                self.status.say(StatusId::QueueUnreadable, now(), "queue", text);
                Trouble::Said(since)
            }
            Trouble::Said(since) if since.elapsed() >= self.options.refuse_after => {
                self.tell(&Letter::SignIns(false));
                let text = format!("devices may not sign in while the queue in {database} cannot be read");
                self.status.say(StatusId::SignInsRefused, now(), "queue", text);
                Trouble::Refusing
            }
            same => same,
        };
    }
}

/// The doorbell's file, watched. Where it cannot be watched, the timer alone serves.
struct Bell {
    inotify: Option<Inotify>,
}

impl Bell {
    fn watch(path: &Path) -> Self {
        let watched = Inotify::init().and_then(|inotify| {
            inotify.watches().add(path, WatchMask::MODIFY | WatchMask::CLOSE_WRITE)?;
            Ok(inotify)
        });
        let inotify = watched
            .inspect_err(|error| {
                tracing::warn!(
                    bell = %path.display(),
                    %error,
                    "the manager's bell cannot be watched; rows of the queue come up to 250 ms later"
                );
            })
            .ok();
        Self { inotify }
    }

    /// Waits for a ring, `most` at the longest. Whether it rang.
    fn wait(&mut self, most: Duration) -> bool {
        let Some(inotify) = &mut self.inotify else {
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

fn now() -> UnixMillis {
    UnixMillis(bgb_daemon::clock::Now::read().unix_ms)
}
