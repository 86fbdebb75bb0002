//! The threads that write: they drive spool, presence list and courier, which are machines without a thread of their own.
//!
//! Each waits on its channel and its clock, and ends when it is told to and nothing is left: first the spool, with a last file;
//! then the presence list, with a last delta; then the courier, with a last round.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bgb_daemon::clock::Now;
use bgb_daemon::disk::ReplaceError;
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::status::{StatusId, StatusMessage};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::courier::{Courier, StatusLine};
use crate::metrics::ServerMetrics;
use crate::presence::{FullListWanted, PresenceList, Told};
use crate::reactor::mailbox::Mailbox;
use crate::shard::{Letter, SpoolItem};
use crate::spool::{Spool, SpoolError};
use crate::threads;

/// Results that wait for the spool: at 4 KiB each, some 32 MiB at the worst; beyond it channels are held.
pub const SPOOL_ITEMS_MAX: usize = 8 * 1024;
/// Presence rows that wait for the list.
pub const PRESENCE_ROWS_MAX: usize = 16 * 1024;
/// Results that share one fsync at the most.
const SPOOL_BATCH: usize = 4 * 1024;
/// How often the courier looks for files: a result is in the inbox within this after its file was closed.
pub const COURIER_ROUND: Duration = Duration::from_millis(50);
/// How long the courier rests after the inbox refused.
pub const COURIER_REST: Duration = Duration::from_secs(1);
/// How soon a full disk is tried again.
pub const SPOOL_RETRY: Duration = Duration::from_millis(500);
/// How long the presence list sleeps after the first word: to wake it costs whoever speaks, and those who speak meanwhile need not.
const PRESENCE_REST: Duration = Duration::from_millis(10);
/// How often a thread that waits looks whether it should stop.
const LOOK: Duration = Duration::from_millis(100);

/// A thread that writes files, and the word that ends it.
pub struct Writer {
    thread: JoinHandle<()>,
    stop: Sender<()>,
}

/// What every thread is given.
#[derive(Clone)]
pub struct Shared {
    /// Counters of these threads.
    pub metrics: Arc<ServerMetrics>,
    /// Where status messages go.
    pub status: StatusLine,
    /// By this the broker asks the presence list for all of it.
    pub full_list: FullListWanted,
}

impl Writer {
    /// Starts a thread that runs until what it is given is disconnected; what it ends of before goes to `fault`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        name: &str,
        fault: &Sender<String>,
        run: impl FnOnce(&Receiver<()>) -> Result<(), String> + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let thread = threads::spawn(name, fault, move || run(&stopped))?;
        Ok(Self { thread, stop })
    }

    /// Says that it is to end, and gives the thread to be joined.
    #[must_use]
    pub fn stop(self) -> JoinHandle<()> {
        drop(self.stop);
        self.thread
    }
}

/// The spool's thread.
pub struct Spooler {
    spool: Spool,
    items: Receiver<SpoolItem>,
    /// One that a full disk did not take.
    waiting: Option<SpoolItem>,
    durable: Vec<Arc<AtomicU64>>,
    shards: Arc<[Mailbox<Letter>]>,
    shared: Shared,
}

impl Spooler {
    /// The thread's insides around `spool`; `durable` and `shards` are by number.
    #[must_use]
    pub fn new(
        spool: Spool,
        items: Receiver<SpoolItem>,
        durable: Vec<Arc<AtomicU64>>,
        shards: Arc<[Mailbox<Letter>]>,
        shared: Shared,
    ) -> Self {
        Self { spool, items, waiting: None, durable, shards, shared }
    }

    /// Runs until `stop` is gone and nothing waits. On a disk that is full then, it ends after one attempt: what is durable is in the
    /// log for the next start, and the rest was never acknowledged, so the devices still have it.
    ///
    /// # Errors
    /// An fsync that failed: it must not be tried again.
    pub fn run(mut self, stop: &Receiver<()>) -> Result<(), String> {
        loop {
            match self.round(stop) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error @ SpoolError::Write { .. }) if is_stopped(stop) => {
                    tracing::warn!(%error, "the last results file could not be written; the next start recovers it from the log");
                    return Ok(());
                }
                Err(error @ SpoolError::Write { .. }) => {
                    tracing::warn!(%error, "results wait for room on the disk");
                    std::thread::sleep(SPOOL_RETRY);
                }
                Err(error) => {
                    self.shared.status.say(StatusId::SpoolFailed, now(), "spool", error.to_string());
                    return Err(error.to_string());
                }
            }
        }
    }

    /// Waits for something to do, and does it. `false` when it is to end.
    fn round(&mut self, stop: &Receiver<()>) -> Result<bool, SpoolError> {
        let mut stopped = false;
        let item = self.next_item(stop, &mut stopped);
        self.step(Now::read(), item, stopped)?;
        Ok(!stopped)
    }

    /// One step, without waiting: `item` and what else has come is made durable and then acknowledged, and a file is closed that is due,
    /// or whatever the time when it is the last step.
    ///
    /// # Errors
    /// [`SpoolError::Sync`] is final. After [`SpoolError::Write`] nothing is lost: the step is to be done again a little later.
    pub fn step(&mut self, now: Now, item: Option<SpoolItem>, is_last: bool) -> Result<(), SpoolError> {
        let mut numbers = vec![0; self.durable.len()];
        if let Some(item) = item.or_else(|| self.next_at_once()) {
            self.take(item, &mut numbers)?;
            for _ in 1..SPOOL_BATCH {
                let Ok(item) = self.items.try_recv() else { break };
                self.take(item, &mut numbers)?;
            }
            self.spool.sync()?;
            self.shared.metrics.spool_syncs.add(1);
            self.publish(&numbers);
        }
        if self.spool.next_due_ms().is_some_and(|due_ms| due_ms <= now.mono_ms || is_last) {
            self.spool.close_file(now)?;
            self.shared.metrics.result_files.add(1);
        }
        Ok(())
    }

    /// When the next file is due, in milliseconds of monotonic time.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        self.spool.next_due_ms()
    }

    /// Whether something has come that is not yet durable.
    #[must_use]
    pub fn has_items(&self) -> bool {
        self.waiting.is_some() || !self.items.is_empty()
    }

    fn next_at_once(&mut self) -> Option<SpoolItem> {
        self.waiting.take().or_else(|| self.items.try_recv().ok())
    }

    fn next_item(&mut self, stop: &Receiver<()>, stopped: &mut bool) -> Option<SpoolItem> {
        if let Some(item) = self.waiting.take() {
            return Some(item);
        }
        let wait = self.spool.next_due_ms().map_or(LOOK, |due_ms| until_ms(due_ms).min(LOOK));
        match self.items.recv_timeout(wait) {
            Ok(item) => Some(item),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                // The reactors have ended before, so what has not come by now never will.
                *stopped = is_stopped(stop);
                if !*stopped && self.items.is_empty() {
                    std::thread::sleep(wait.min(Duration::from_millis(1)));
                }
                None
            }
        }
    }

    fn take(&mut self, item: SpoolItem, numbers: &mut [u64]) -> Result<(), SpoolError> {
        match item {
            SpoolItem::Hint(row) => self.spool.hint(row),
            SpoolItem::Keep { shard, number, row } => {
                if let Err(error) = self.spool.keep(row.clone()) {
                    self.waiting = Some(SpoolItem::Keep { shard, number, row });
                    // What was taken before it may be acknowledged all the same.
                    self.spool.sync()?;
                    self.publish(numbers);
                    return Err(error);
                }
                numbers[usize::from(shard.0)] = number;
            }
        }
        Ok(())
    }

    fn publish(&self, numbers: &[u64]) {
        for (shard, number) in numbers.iter().enumerate().filter(|(_, number)| **number > 0) {
            self.durable[shard].store(*number, Ordering::Release);
            self.shards[shard].wake();
        }
    }
}

/// The presence list's thread: runs until `stop` is gone and nothing waits.
///
/// # Errors
/// An fsync that failed.
pub fn run_presence(
    mut list: PresenceList,
    told: &Receiver<Told>,
    stop: &Receiver<()>,
    shared: &Shared,
) -> Result<(), String> {
    let mut failing = false;
    loop {
        let wait = until_ms(list.next_due_ms()).clamp(Duration::from_millis(1), LOOK);
        match told.recv_timeout(wait) {
            Ok(first) => {
                list.handle_told(first);
                std::thread::sleep(PRESENCE_REST);
                told.try_iter().take(PRESENCE_ROWS_MAX).for_each(|next| list.handle_told(next));
            }
            Err(_) if is_stopped(stop) => break,
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(wait),
            Err(RecvTimeoutError::Timeout) => {}
        }
        match list.handle_time(Now::read()) {
            Ok(written) => {
                shared.metrics.presence_files.add(u64::from(written.is_some()));
                failing = false;
            }
            Err(ReplaceError::Sync(error)) => {
                return Err(format!("presence could not be made durable: {error}"));
            }
            Err(ReplaceError::Write(error)) => {
                if !std::mem::replace(&mut failing, true) {
                    let text = format!("presence cannot be written: {error}; it is tried again until it can");
                    shared.status.say(StatusId::PresenceNotWritten, now(), "spool", text);
                }
                std::thread::sleep(SPOOL_RETRY);
            }
        }
    }
    if let Err(error) = list.finish(Now::read()) {
        tracing::warn!(%error, "the last presence file could not be written; the next start's full list says it all");
    }
    Ok(())
}

/// The courier's thread: runs until `stop` is gone, and a last round after it.
///
/// # Errors
/// An fsync of the server's own disk that failed.
pub fn run_courier(
    mut courier: Courier,
    messages: &Receiver<StatusMessage>,
    stop: &Receiver<()>,
    shared: &Shared,
) -> Result<(), String> {
    let mut rest_until = Instant::now();
    loop {
        let stopped = !matches!(stop.recv_timeout(COURIER_ROUND), Err(RecvTimeoutError::Timeout));
        messages.try_iter().for_each(|message| courier.handle_message(message));
        if stopped || Instant::now() >= rest_until {
            let round = courier.run(Now::read());
            if let Some(error) = round.ended {
                return Err(format!("status messages could not be made durable: {error}"));
            }
            shared.metrics.files_carried.add(round.carried as u64);
            if let Some(error) = round.failed {
                shared.metrics.carry_failures.add(1);
                tracing::debug!(%error, "a file could not be put into the inbox yet");
                rest_until = Instant::now() + COURIER_REST;
            }
        }
        if stopped {
            return Ok(());
        }
    }
}

fn is_stopped(stop: &Receiver<()>) -> bool {
    matches!(stop.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected))
}

/// From now until a moment of monotonic time.
fn until_ms(due_ms: u64) -> Duration {
    Duration::from_millis(due_ms.saturating_sub(Now::read().mono_ms))
}

fn now() -> UnixMillis {
    UnixMillis(Now::read().unix_ms)
}

#[cfg(test)]
mod tests;
