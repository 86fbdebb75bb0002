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
//! What is over goes by the site's time, which heads tell: a wall clock that is ahead must not hide a cancel whose task it will push when it is
//! set back. By the wall clock alone a server holds back what seems to be over; when it is set back everything is read anew.
//!
//! When the queue cannot be read, sessions stay. It is said after 10 s, and after a minute (configurable) devices may not
//! sign in any more, since a block could be missed.
//!
//! [`Broker`] is a machine that is told the time and that somebody rang; [`Broker::run`] is its thread's loop around it.

mod bell;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bgb_daemon::clock::Now;
use bgb_hub::Order;
use bgb_hub::site_clock::SiteClock;
use bgb_protocol::ids::{Generation, ServerId, UnixMillis};
use bgb_protocol::queue::QueueItem;
use bgb_protocol::status::StatusId;
use bgb_site::queue_reader::{QueueReader, QueueRow};

use crate::courier::StatusLine;
use crate::metrics::ServerMetrics;
use crate::presence::FullListWanted;
use crate::reactor::mailbox::Mailbox;
use crate::shard::Letter;
use crate::writers::Shared;

pub use bell::Bell;

/// How often the queue is looked at without a bell.
const LOOK: Duration = Duration::from_millis(250);
/// How long the queue may be unreadable before it is said (docs/promises.md).
const SAY_UNREADABLE_AFTER_MS: u64 = 10_000;
/// By how much the wall clock is set back before it matters: slewing does less, and what ends that much later ends in time.
const SET_BACK_MS: i64 = 1_000;
/// Rows that are read on and handed on at a time.
const BATCH_ROWS: usize = 1_000;

/// What the broker is told.
pub struct BrokerOptions {
    /// The site database.
    pub database: PathBuf,
    /// Which server's rows are read, beside those for all.
    pub server: ServerId,
    /// How long the queue may be unreadable before sign-ins are refused, in milliseconds.
    pub refuse_after_ms: u64,
}

/// See the module.
pub struct Broker {
    options: BrokerOptions,
    shards: Arc<[Mailbox<Letter>]>,
    status: StatusLine,
    metrics: Arc<ServerMetrics>,
    full_list: FullListWanted,
    reader: Option<QueueReader>,
    generation: Generation,
    sequence: u64,
    version: i64,
    /// The site's time by the heads that were read.
    site: SiteClock,
    /// The most that the wall clock was ahead of monotonic time since everything was read last, in milliseconds.
    lead_ms: i64,
    trouble: Option<Trouble>,
}

/// The queue cannot be read, and since when; and what is still to be done about it, the first thing first.
#[derive(Debug)]
struct Trouble {
    /// Milliseconds of monotonic time.
    since_ms: u64,
    pending: Vec<(u64, Step)>,
}

/// How rows come to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// All of them, after a reset.
    Anew,
    /// Those behind the ones before.
    On,
}

/// What is done about a queue that stays unreadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Say,
    RefuseSignIns,
}

impl Trouble {
    fn begin(since_ms: u64, refuse_after_ms: u64) -> Self {
        let mut pending = vec![(SAY_UNREADABLE_AFTER_MS, Step::Say), (refuse_after_ms, Step::RefuseSignIns)];
        pending.sort_by_key(|(after_ms, _)| *after_ms);
        Self { since_ms, pending }
    }

    /// The next step whose time has come; it counts as done by that.
    fn poll_due(&mut self, mono_ms: u64) -> Option<Step> {
        let (after_ms, step) = *self.pending.first()?;
        (mono_ms.saturating_sub(self.since_ms) >= after_ms).then(|| {
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
        shared: Shared,
        now: Now,
    ) -> anyhow::Result<Self> {
        let Shared { metrics, status, full_list } = shared;
        let mut broker = Self {
            options,
            shards,
            status,
            metrics,
            full_list,
            reader: None,
            generation: Generation([0; 16]),
            sequence: 0,
            version: 0,
            site: SiteClock::default(),
            lead_ms: lead_ms(now),
            trouble: None,
        };
        broker
            .read_everything(now)
            .with_context(|| format!("the queue in {} cannot be read", broker.options.database.display()))?;
        Ok(broker)
    }

    /// Follows the queue until `stopped` says so; it is asked four times a second at least. The bell is to be watched since before the
    /// start, so that none is missed in between.
    pub fn run(mut self, mut bell: Bell, stopped: impl Fn() -> bool) {
        while !stopped() {
            let rung = bell.wait(LOOK);
            self.look(Now::read(), rung);
        }
    }

    /// Looks whether there is something new, and hands it on. `rung`: somebody said that there is.
    pub fn look(&mut self, now: Now, rung: bool) {
        // Also while the queue cannot be read: the shards go by the clock all the same.
        self.lead_ms = self.lead_ms.max(lead_ms(now));
        match self.follow(now, rung) {
            Ok(()) => self.on_readable(now),
            Err(error) => self.on_unreadable(now, &error),
        }
    }

    /// Reads on from its place, if anything has changed.
    fn follow(&mut self, now: Now, rung: bool) -> anyhow::Result<()> {
        let Some(reader) = &self.reader else { return self.read_everything(now) };
        if reader.is_replaced()? {
            return self.read_everything(now);
        }
        let set_back_ms = self.lead_ms - lead_ms(now);
        if set_back_ms > SET_BACK_MS {
            tracing::warn!(set_back_ms, "this machine's clock was set back: every order is read anew");
            return self.read_everything(now);
        }
        let version = reader.data_version()?;
        if version == self.version && !rung {
            return Ok(());
        }
        if reader.generation()? != self.generation {
            return self.read_everything(now);
        }
        // All that there is, and only then is it handed on: a cancel may be the last of many rows, and its task the first.
        let mut rows: Vec<QueueRow> = Vec::new();
        loop {
            let after = rows.last().map_or(self.sequence, |row| row.sequence);
            let more = reader.rows_after(after, self.options.server, self.over_before(now), BATCH_ROWS)?;
            let whole_batch = more.len() == BATCH_ROWS;
            rows.extend(more);
            if !whole_batch {
                break;
            }
        }
        if let Some(last) = rows.last() {
            self.sequence = last.sequence;
            self.hand_on(now, rows, Reading::On);
        }
        self.version = version;
        Ok(())
    }

    /// Reads every valid row, for the first time or because the database is another one, or the clock.
    fn read_everything(&mut self, now: Now) -> anyhow::Result<()> {
        let reader = QueueReader::open(&self.options.database)?;
        let version = reader.data_version()?;
        self.hear_head(reader.newest_head()?, now);
        let snapshot = reader.all_valid(self.options.server, self.over_before(now))?;
        if self.generation != snapshot.generation && self.sequence > 0 {
            let text = "the site database was restored; every order is read anew".to_owned();
            self.status.say(StatusId::GenerationChanged, unix(now), "queue", text);
            self.full_list.ask();
        }
        self.tell(&Letter::SignIns(false));
        self.tell(&Letter::Orders(Arc::from([Order::Reset])));
        self.hand_on(now, snapshot.rows, Reading::Anew);
        self.tell(&Letter::SignIns(true));
        self.reader = Some(reader);
        self.generation = snapshot.generation;
        self.sequence = snapshot.sequence;
        self.version = version;
        self.lead_ms = lead_ms(now);
        self.metrics.queue_sequence.set(self.sequence);
        Ok(())
    }

    /// What ended before this is not needed any more: the wall clock, or the site's time where that is earlier.
    fn over_before(&self, now: Now) -> UnixMillis {
        self.site.time(now.mono_ms).map_or(unix(now), |site| site.min(unix(now)))
    }

    fn hear_head(&mut self, time: Option<UnixMillis>, now: Now) {
        time.into_iter().for_each(|time| _ = self.site.hear(time, now.mono_ms));
    }

    /// Hands rows to the shards: cancels before all else, so that what was cancelled is not begun for a moment. Where nothing is known yet the head
    /// comes before them, since what is over is judged by it; else it comes behind, since a task may have waited for the time that it tells.
    fn hand_on(&mut self, now: Now, rows: Vec<QueueRow>, reading: Reading) {
        self.metrics.queue_rows.add(rows.len() as u64);
        if let Some(last) = rows.last() {
            self.metrics.queue_sequence.set(last.sequence);
        }
        let mut orders: Vec<_> = rows.into_iter().filter_map(|row| self.order(now, &row)).collect();
        orders.sort_by_key(|order| match order {
            Order::Head { .. } if reading == Reading::Anew => 0,
            Order::Cancel { .. } => 1,
            _ => 2,
        });
        let heads = orders.iter().filter_map(|order| match order {
            Order::Head { time, .. } => Some(*time),
            _ => None,
        });
        self.hear_head(heads.max(), now);
        for batch in orders.chunks(BATCH_ROWS) {
            self.tell(&Letter::Orders(Arc::from(batch)));
        }
    }

    fn order(&self, now: Now, row: &QueueRow) -> Option<Order> {
        let read = QueueItem::decode(&row.item_bytes)
            .map_err(anyhow::Error::from)
            .and_then(|item| Order::read(item).map_err(anyhow::Error::from));
        read.map_err(|error| {
            self.metrics.queue_rows_bad.add(1);
            let text = format!("row {} of the queue is passed over: {error:#}", row.sequence);
            self.status.say(StatusId::QueueRowUnreadable, unix(now), "queue", text);
        })
        .ok()
    }

    fn tell(&self, letter: &Letter) {
        for shard in &*self.shards {
            // A shard that is gone has stopped, and so will we.
            shard.send(letter.clone());
        }
    }

    fn on_readable(&mut self, now: Now) {
        let Some(trouble) = self.trouble.take().filter(Trouble::is_known) else { return };
        tracing::debug!(since_ms = now.mono_ms - trouble.since_ms, "the queue is readable again");
        self.tell(&Letter::SignIns(true));
        self.metrics.sign_ins_refused.set(0);
        self.status.say(StatusId::QueueReadable, unix(now), "queue", "the site's queue can be read again");
    }

    fn on_unreadable(&mut self, now: Now, error: &anyhow::Error) {
        let mut trouble = self.trouble.take().unwrap_or_else(|| {
            tracing::warn!(error = %format!("{error:#}"), "the site's queue cannot be read; trying again");
            Trouble::begin(now.mono_ms, self.options.refuse_after_ms)
        });
        let database = self.options.database.display();
        while let Some(step) = trouble.poll_due(now.mono_ms) {
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
            self.status.say(id, unix(now), "queue", text);
        }
        self.trouble = Some(trouble);
    }
}

/// How far the wall clock is ahead of monotonic time.
fn lead_ms(now: Now) -> i64 {
    now.unix_ms as i64 - now.mono_ms as i64
}

fn unix(now: Now) -> UnixMillis {
    UnixMillis(now.unix_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_ins_are_refused_when_their_time_comes_whether_it_was_said_or_not() {
        let at = |seconds: u64| 5_000 + seconds * 1_000;
        let mut early = Trouble::begin(at(0), 2_000);
        assert_eq!(early.poll_due(at(1)), None);
        assert!(!early.is_known());
        assert_eq!(early.poll_due(at(2)), Some(Step::RefuseSignIns));
        assert_eq!(early.poll_due(at(9)), None);
        assert_eq!((early.poll_due(at(10)), early.poll_due(at(10))), (Some(Step::Say), None));
        let mut late = Trouble::begin(at(0), 60_000);
        assert_eq!((late.poll_due(at(10)), late.poll_due(at(59))), (Some(Step::Say), None));
        assert_eq!(late.poll_due(at(60)), Some(Step::RefuseSignIns));
    }
}
