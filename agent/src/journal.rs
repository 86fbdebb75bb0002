//! The journal: what the agent has taken on, begun and ended, on disk before it matters.
//!
//! ```text
//!           accepted            begun, synced              finished, synced            kept by a server
//!  (nothing) ------> Waiting ----------------> Begun -------------------> Finished ------------------> acknowledged
//!       \________________________ refused or cancelled ______________________/
//! ```
//!
//! It owns the tasks, the tombstones of cancels, the counter of sessions and what is kept of the time. It knows no clock,
//! no server and no action; results are signed by its caller. Laws: [`Written::Yes`] from [`Journal::begin`] and
//! [`Journal::finish`], and a number from [`Journal::next_session`], mean durable; so does `true` from [`Journal::entomb`], unless
//! the disk is full: then a cancel is known for this life only, and a server says it again; a task is forgotten 24 h after its expiry by SIGNED time
//! (a wall clock set wrong must not make the agent forget what it has done), and never while its result is not acknowledged.
//! An error is final: the journal must be dropped and opened anew, as after a crash. That a disk has no room is none: what could
//! not be written was not taken ([`Written::NoRoom`]), or is kept in memory where losing it with a crash does no harm.

mod log;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bgb_daemon::disk::Disk;
use bgb_protocol::codec::{self, CodecError};
use bgb_protocol::ids::{DeviceId, SessionNumber, SiteCode, TaskId, UnixMillis};
use bgb_protocol::message::{KNOWN_TASKS_MAX, KnownTask};
use bgb_protocol::result::SignedResult;
use bgb_protocol::state::TaskState;
use bgb_protocol::task::SignedTask;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::durable::WriteFault;
use crate::time::Anchor;
use log::{Content, LogFile, Owner};

/// A task is remembered until its expiry and 24 h more (docs/promises.md, A task's life).
const REMEMBERED_MS: u64 = 24 * 60 * 60 * 1000;

/// Most tasks that are remembered: four times the 1,000 that a site has active (docs/promises.md), each for its validity and a day.
const TASKS_MAX: usize = 4_096;

/// Most tombstones of cancels, by the same count.
const TOMBSTONES_MAX: usize = 4_096;

/// Most bytes of results that are kept; the oldest acknowledged ones go first. 250 results of the longest kind.
const RESULT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A loss is remembered as long as a task may be valid, and a day: then all that it might concern has expired (protocol.md).
const LOSS_REMEMBERED_MS: u64 = 8 * 24 * 60 * 60 * 1000;

/// The file is written anew when it has doubled since the last time, but not below this.
const REWRITE_BYTES_MIN: u64 = 256 * 1024;

/// Session numbers are put aside on disk this many at a time: one sync for so many connections, and as many numbers lost at a crash,
/// which their 63 bits can bear.
const SESSIONS_RESERVED: u64 = 1_024;

/// And before they are needed, so that a device goes on with these for days when the disk is full.
const SESSIONS_SPARE: u64 = 512;

/// Why the journal cannot go on.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The disk refused, or the file is not ours.
    #[error(
        "the journal cannot be kept: {0}; nothing was begun that it does not hold: mend the disk and start the agent again"
    )]
    Disk(#[from] io::Error),
    /// The disk has no room for what a start writes.
    #[error(
        "the journal cannot be opened while its disk is full: what it shows may not be on the disk, and would be acted on twice; \
         make room and start the agent again"
    )]
    NoRoom,
    /// A record is whole, and this release does not know what it says.
    #[error(
        "the journal holds a record that this release cannot read ({0}): it was written by a later release; start that one. What \
         is left out might be carried out twice, so the journal is left as it is"
    )]
    Unreadable(String),
}

/// Whether there was room on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Written {
    /// There was.
    Yes,
    /// There was not: nothing has changed.
    NoRoom,
}

/// What a line of the file says. Variants are only ever added at the end.
#[derive(Debug, Serialize, Deserialize)]
enum Record {
    /// Session numbers up to this one may have been used.
    Sessions(u64),
    /// Floor and anchor of the agent's time.
    Time { floor: UnixMillis, anchor: Option<Anchor> },
    /// A task was verified and taken on: the bytes as they were signed.
    Accepted(#[serde(with = "serde_bytes")] Vec<u8>),
    /// It was begun at this time by the agent's clock.
    Begun { task: TaskId, at: UnixMillis },
    /// It has ended.
    Finished { task: TaskId, expires: UnixMillis, state: TaskState, result: Box<SignedResult> },
    /// A server has its result for good.
    Kept(TaskId),
    /// It was cancelled; remembered until its expiry.
    Tombstone { task: TaskId, expires: UnixMillis },
    /// It has ended, a server has its result, and the result is no longer here.
    Done { task: TaskId, expires: UnixMillis, state: TaskState },
    /// Records were lost: of tasks that were made before this time, or at any time while that is not known.
    Lost { before: Option<UnixMillis> },
}

/// What is known of records that were lost by damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    None,
    /// They are of tasks made before this time; `None` until the agent knows what the time is.
    Before(Option<UnixMillis>),
}

/// How far a task has come.
#[derive(Clone, Debug)]
pub(crate) enum Progress {
    /// Taken on, not begun.
    Waiting(Arc<SignedTask>),
    /// Begun so many times, the first time at `first`; whether it still runs is not the journal's knowledge.
    Begun { task: Arc<SignedTask>, first: UnixMillis, times: u32 },
    /// Ended. The result is there until a server has it for good, and after that while there is room.
    Finished { state: TaskState, result: Option<Arc<SignedResult>>, delivery: Delivery },
}

/// Whether a server has a result for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Not yet, as far as we know.
    Open,
    /// It has.
    Acknowledged,
}

/// A task in the journal.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) expires: UnixMillis,
    pub(crate) progress: Progress,
    /// Counts up with each task: the order in which they came.
    order: u64,
}

/// The journal.
pub(crate) struct Journal {
    log: LogFile,
    tasks: BTreeMap<TaskId, Entry>,
    tombstones: BTreeMap<TaskId, UnixMillis>,
    sessions_used: u64,
    sessions_reserved: u64,
    /// Floor and anchor could not be written for want of room.
    owes_time: bool,
    floor: UnixMillis,
    anchor: Option<Anchor>,
    orders: u64,
    result_bytes: usize,
    rewrite_at_bytes: u64,
    loss: Loss,
    /// Writes for which there was no room.
    refused: u64,
}

impl Journal {
    /// Opens the journal in the folder `state`, or begins one whose session numbers start after `first_session`.
    ///
    /// # Errors
    /// When the disk refuses, or the file is another device's.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        state: &Path,
        site: SiteCode,
        device: DeviceId,
        first_session: u64,
    ) -> Result<Self, JournalError> {
        let (log, content) = LogFile::open(disk, &state.join("journal"), Owner { site, device })?;
        let mut journal = Self {
            log,
            tasks: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            sessions_used: first_session,
            sessions_reserved: 0,
            floor: UnixMillis(0),
            anchor: None,
            orders: 0,
            result_bytes: 0,
            rewrite_at_bytes: REWRITE_BYTES_MIN,
            loss: Loss::None,
            owes_time: false,
            refused: 0,
        };
        journal.replay(&content)?;
        journal.sessions_used = journal.sessions_used.max(journal.sessions_reserved);
        journal.sessions_reserved = journal.sessions_used.saturating_add(SESSIONS_RESERVED + SESSIONS_SPARE);
        if content.damaged_bytes > 0 {
            journal.distrust_waiting();
            journal.loss = Loss::Before(None);
        }
        // Always: what was read may be in memory only, if a sync failed in an earlier life, and another sync of it would say falsely
        // that all is well. An end that such a journal shows could be told to the site, be lost with the power, and be told otherwise.
        match journal.rewrite()? {
            Written::Yes => Ok(journal),
            Written::NoRoom => Err(JournalError::NoRoom),
        }
    }

    /// The next session's number, higher than any before it, also after a crash; `None` while the disk has no room and none is
    /// left of those put aside.
    pub(crate) fn next_session(&mut self) -> Result<Option<SessionNumber>, JournalError> {
        if self.sessions_reserved - self.sessions_used <= SESSIONS_SPARE {
            let reserved = self.sessions_used.saturating_add(SESSIONS_RESERVED + SESSIONS_SPARE);
            if self.append(&Record::Sessions(reserved))? == Written::Yes {
                self.log.sync()?;
                self.sessions_reserved = reserved;
            }
        }
        if self.sessions_used >= self.sessions_reserved {
            return Ok(None);
        }
        self.sessions_used += 1;
        Ok(Some(SessionNumber(self.sessions_used)))
    }

    /// Floor and anchor of the agent's time, as they were kept.
    pub(crate) fn time(&self) -> (UnixMillis, Option<Anchor>) {
        (self.floor, self.anchor)
    }

    /// Keeps floor and anchor of the agent's time.
    pub(crate) fn keep_time(
        &mut self,
        floor: UnixMillis,
        anchor: Option<Anchor>,
    ) -> Result<(), JournalError> {
        self.floor = floor;
        self.anchor = anchor;
        // Without room, the next head is the occasion to write it, also one that says nothing new.
        let written = self.append(&Record::Time { floor, anchor })?;
        self.owes_time = written == Written::NoRoom;
        if written == Written::Yes {
            self.log.sync()?;
        }
        Ok(())
    }

    /// Whether the time that was kept last is in memory only.
    pub(crate) fn owes_time(&self) -> bool {
        self.owes_time
    }

    /// Whether there is room for one more task.
    pub(crate) fn has_room(&self) -> bool {
        self.tasks.len() < TASKS_MAX && self.result_bytes <= RESULT_BYTES_MAX
    }

    /// A task, if it is remembered.
    pub(crate) fn task(&self, task: TaskId) -> Option<&Entry> {
        self.tasks.get(&task)
    }

    /// Tasks that have not ended, in the order in which they came.
    pub(crate) fn unfinished(&self) -> Vec<TaskId> {
        self.in_order(|entry| !matches!(entry.progress, Progress::Finished { .. }))
    }

    /// Tasks whose results no server has for good, in the order in which they came.
    pub(crate) fn unacknowledged(&self) -> Vec<TaskId> {
        self.in_order(|entry| matches!(entry.progress, Progress::Finished { delivery: Delivery::Open, .. }))
    }

    /// Unexpired tasks for a hello: the newest first, 256 at most.
    pub(crate) fn known(&self, now: UnixMillis) -> Vec<KnownTask> {
        // Ids are UUIDs of version 7: their order is that of their making.
        let unexpired = self.tasks.iter().rev().filter(|(_, entry)| entry.expires > now);
        unexpired
            .take(KNOWN_TASKS_MAX)
            .map(|(&task, entry)| KnownTask { task, state: entry.state() })
            .collect()
    }

    /// Takes a task on. Not synced: what a crash loses of it, a server pushes again.
    pub(crate) fn accept(&mut self, task: SignedTask) -> Result<Written, JournalError> {
        if self.append(&Record::Accepted(task.bytes().to_vec()))? == Written::NoRoom {
            return Ok(Written::NoRoom);
        }
        self.on_accepted(task);
        self.rewrite_when_due()
    }

    /// Writes down, durably, that a task is about to be begun.
    pub(crate) fn begin(&mut self, task: TaskId, at: UnixMillis) -> Result<Written, JournalError> {
        if self.append(&Record::Begun { task, at })? == Written::NoRoom {
            return Ok(Written::NoRoom);
        }
        self.log.sync()?;
        self.on_begun(task, at);
        self.rewrite_when_due()
    }

    /// Writes a task's end down, durably. A task that has ended already stays as it is.
    pub(crate) fn finish(
        &mut self,
        task: TaskId,
        expires: UnixMillis,
        state: TaskState,
        result: &SignedResult,
    ) -> Result<Written, JournalError> {
        if matches!(self.tasks.get(&task), Some(Entry { progress: Progress::Finished { .. }, .. })) {
            return Ok(Written::Yes);
        }
        let record = Record::Finished { task, expires, state, result: Box::new(result.clone()) };
        if self.append(&record)? == Written::NoRoom {
            return Ok(Written::NoRoom);
        }
        self.log.sync()?;
        if let Record::Finished { result, .. } = record {
            self.on_finished(task, expires, state, *result);
        }
        self.drop_old_results()?;
        self.rewrite_when_due()
    }

    /// A server has the result for good. Not synced: what a crash loses of it, makes the result be sent again.
    pub(crate) fn acknowledge(&mut self, task: TaskId) -> Result<(), JournalError> {
        let is_open =
            |entry: &Entry| matches!(entry.progress, Progress::Finished { delivery: Delivery::Open, .. });
        if !self.tasks.get(&task).is_some_and(is_open) {
            return Ok(());
        }
        let written = self.append(&Record::Kept(task))?;
        self.on_kept(task);
        self.drop_old_results()?;
        if written == Written::Yes {
            let _ = self.rewrite_when_due()?;
        }
        Ok(())
    }

    /// Remembers, durably where there is room, that a task is cancelled: a server says it again of a task that has not ended.
    /// `false` when there are too many tombstones for one more.
    pub(crate) fn entomb(&mut self, task: TaskId, expires: UnixMillis) -> Result<bool, JournalError> {
        if self.tombstones.contains_key(&task) {
            return Ok(true);
        }
        if self.tombstones.len() >= TOMBSTONES_MAX {
            return Ok(false);
        }
        let written = self.append(&Record::Tombstone { task, expires })?;
        self.tombstones.insert(task, expires);
        if written == Written::Yes {
            self.log.sync()?;
            let _ = self.rewrite_when_due()?;
        }
        Ok(true)
    }

    /// The agent knows what the time is: records that were lost are of tasks that were made before it.
    pub(crate) fn bound_loss(&mut self, now: UnixMillis) -> Result<(), JournalError> {
        if self.loss == Loss::Before(None) {
            self.loss = Loss::Before(Some(now));
            // Where it cannot be written, the next start takes it for a later one.
            let _ = self.append(&Record::Lost { before: Some(now) })?;
        }
        Ok(())
    }

    /// Whether a task that is not remembered may be one whose records were lost.
    pub(crate) fn may_have_lost(&self, task: TaskId) -> bool {
        match self.loss {
            Loss::None => false,
            Loss::Before(before) => before.is_none_or(|before| made(task) < before),
        }
    }

    /// Whether a task was cancelled.
    pub(crate) fn is_cancelled(&self, task: TaskId) -> bool {
        self.tombstones.contains_key(&task)
    }

    /// Forgets what is over by the signed time `floor`. What it forgets leaves the file when that is written anew.
    pub(crate) fn sweep(&mut self, floor: UnixMillis) {
        let mut freed_bytes = 0;
        self.tasks.retain(|_, entry| {
            let is_over = match &entry.progress {
                Progress::Finished { delivery: Delivery::Acknowledged, .. } => {
                    floor > entry.expires.plus(REMEMBERED_MS)
                }
                _ => false,
            };
            if is_over {
                freed_bytes += entry.progress.result_bytes();
            }
            !is_over
        });
        self.result_bytes -= freed_bytes;
        self.tombstones.retain(|_, expires| floor <= *expires);
        if matches!(self.loss, Loss::Before(Some(before)) if floor > before.plus(LOSS_REMEMBERED_MS)) {
            self.loss = Loss::None;
        }
    }

    fn in_order(&self, filter: impl Fn(&Entry) -> bool) -> Vec<TaskId> {
        let mut found: Vec<_> = self
            .tasks
            .iter()
            .filter(|(_, entry)| filter(entry))
            .map(|(&task, entry)| (entry.order, task))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, task)| task).collect()
    }

    fn append(&mut self, record: &Record) -> Result<Written, JournalError> {
        let appended = self.log.append(&codec::encode_versioned(record));
        self.written(appended)
    }

    /// What a write has come to.
    fn written(&mut self, written: Result<(), WriteFault>) -> Result<Written, JournalError> {
        match written {
            Ok(()) => Ok(Written::Yes),
            Err(WriteFault::Unknown(error)) => Err(error.into()),
            Err(WriteFault::Unchanged(error)) => {
                self.refused += 1;
                // A disk stays full for a while.
                if self.refused.is_power_of_two() {
                    tracing::error!(%error, times = self.refused, "the journal cannot be written to; make room on this disk");
                }
                // What is in memory only goes to the disk as soon as something does.
                self.rewrite_at_bytes = self.log.bytes();
                Ok(Written::NoRoom)
            }
        }
    }

    fn replay(&mut self, content: &Content) -> Result<(), JournalError> {
        if content.torn_bytes > 0 {
            tracing::info!(
                bytes = content.torn_bytes,
                "the journal ended with a record that was not whole: cut off"
            );
        }
        if content.damaged_bytes > 0 {
            tracing::error!(
                bytes = content.damaged_bytes,
                "the journal is damaged in its middle: tasks may be missing in it; check this machine's disk"
            );
        }
        for body in &content.bodies {
            codec::decode_versioned("journal record", body)
                .and_then(|record| self.on_record(record))
                .map_err(|error| JournalError::Unreadable(error.to_string()))?;
        }
        Ok(())
    }

    /// With records lost, a task that seems to wait may have been begun: better interrupted than carried out twice.
    fn distrust_waiting(&mut self) {
        for entry in self.tasks.values_mut() {
            if let Progress::Waiting(task) = &entry.progress {
                let (task, first) = (Arc::clone(task), self.floor);
                entry.progress = Progress::Begun { task, first, times: 1 };
            }
        }
    }

    fn on_record(&mut self, record: Record) -> Result<(), CodecError> {
        match record {
            Record::Sessions(reserved) => self.sessions_reserved = self.sessions_reserved.max(reserved),
            Record::Time { floor, anchor } => {
                self.floor = self.floor.max(floor);
                self.anchor = anchor;
            }
            Record::Accepted(signed) => self.on_accepted(SignedTask::decode(&signed)?),
            Record::Begun { task, at } => self.on_begun(task, at),
            Record::Finished { task, expires, state, result } => {
                self.on_finished(task, expires, state, *result);
            }
            Record::Kept(task) => self.on_kept(task),
            Record::Tombstone { task, expires } => {
                self.tombstones.insert(task, expires);
            }
            Record::Done { task, expires, state } => {
                let progress = Progress::Finished { state, result: None, delivery: Delivery::Acknowledged };
                self.insert(task, expires, progress);
            }
            Record::Lost { before } => self.loss = Loss::Before(before),
        }
        Ok(())
    }

    fn on_accepted(&mut self, task: SignedTask) {
        let statement = task.statement();
        let (id, expires) = (statement.task, statement.expires);
        if !self.tasks.contains_key(&id) {
            self.insert(id, expires, Progress::Waiting(Arc::new(task)));
        }
    }

    fn on_begun(&mut self, task: TaskId, at: UnixMillis) {
        if let Some(entry) = self.tasks.get_mut(&task) {
            match &mut entry.progress {
                Progress::Waiting(task) => {
                    entry.progress = Progress::Begun { task: Arc::clone(task), first: at, times: 1 };
                }
                Progress::Begun { times, .. } => *times = times.saturating_add(1),
                Progress::Finished { .. } => {}
            }
        }
    }

    fn on_finished(&mut self, task: TaskId, expires: UnixMillis, state: TaskState, result: SignedResult) {
        let progress = Progress::Finished { state, result: Some(Arc::new(result)), delivery: Delivery::Open };
        self.result_bytes += progress.result_bytes();
        match self.tasks.get_mut(&task) {
            Some(entry) => entry.progress = progress,
            None => self.insert(task, expires, progress),
        }
    }

    fn on_kept(&mut self, task: TaskId) {
        if let Some(Entry { progress: Progress::Finished { delivery, .. }, .. }) = self.tasks.get_mut(&task) {
            *delivery = Delivery::Acknowledged;
        }
    }

    fn insert(&mut self, task: TaskId, expires: UnixMillis, progress: Progress) {
        self.orders += 1;
        self.tasks.insert(task, Entry { expires, progress, order: self.orders });
    }

    /// Lets go of acknowledged results, the oldest first, while there are too many bytes of them.
    fn drop_old_results(&mut self) -> Result<(), JournalError> {
        if self.result_bytes <= RESULT_BYTES_MAX {
            return Ok(());
        }
        let acknowledged = |entry: &Entry| {
            matches!(
                entry.progress,
                Progress::Finished { delivery: Delivery::Acknowledged, result: Some(_), .. }
            )
        };
        for task in self.in_order(acknowledged) {
            if self.result_bytes <= RESULT_BYTES_MAX / 2 {
                break;
            }
            let entry = self.tasks.get_mut(&task).expect("the task was found in the same map");
            let freed_bytes = entry.progress.result_bytes();
            let (expires, state) = (entry.expires, entry.state());
            entry.progress = Progress::Finished { state, result: None, delivery: Delivery::Acknowledged };
            self.result_bytes -= freed_bytes;
            let _ = self.append(&Record::Done { task, expires, state })?;
        }
        Ok(())
    }

    /// Always [`Written::Yes`]: a file that is longer than it need be loses nothing.
    fn rewrite_when_due(&mut self) -> Result<Written, JournalError> {
        if self.log.bytes() >= self.rewrite_at_bytes {
            let _ = self.rewrite()?;
        }
        Ok(Written::Yes)
    }

    /// Writes the file anew with what is still remembered, if there is room.
    fn rewrite(&mut self) -> Result<Written, JournalError> {
        let mut records = vec![
            Record::Sessions(self.sessions_reserved),
            Record::Time { floor: self.floor, anchor: self.anchor },
        ];
        if let Loss::Before(before) = self.loss {
            records.push(Record::Lost { before });
        }
        for (&task, &expires) in &self.tombstones {
            records.push(Record::Tombstone { task, expires });
        }
        for task in self.in_order(|_| true) {
            let entry = &self.tasks[&task];
            let expires = entry.expires;
            match &entry.progress {
                Progress::Waiting(signed) => records.push(Record::Accepted(signed.bytes().to_vec())),
                Progress::Begun { task: signed, first, times } => {
                    records.push(Record::Accepted(signed.bytes().to_vec()));
                    records.extend((0..*times).map(|_| Record::Begun { task, at: *first }));
                }
                Progress::Finished { state, result: None, .. } => {
                    records.push(Record::Done { task, expires, state: *state });
                }
                Progress::Finished { state, result: Some(result), delivery } => {
                    let result = Box::new(SignedResult::clone(result));
                    records.push(Record::Finished { task, expires, state: *state, result });
                    if *delivery == Delivery::Acknowledged {
                        records.push(Record::Kept(task));
                    }
                }
            }
        }
        let bodies: Vec<_> = records.iter().map(codec::encode_versioned).collect();
        let rewritten = self.log.rewrite(&bodies);
        let written = self.written(rewritten)?;
        self.rewrite_at_bytes = match written {
            Written::Yes => REWRITE_BYTES_MIN.max(self.log.bytes().saturating_mul(2)),
            // Not with every record.
            Written::NoRoom => self.log.bytes() + REWRITE_BYTES_MIN / 16,
        };
        Ok(written)
    }
}

/// When a task was made: the first 48 bits of its id, a UUID of version 7 (RFC 9562).
fn made(task: TaskId) -> UnixMillis {
    UnixMillis(task.bytes()[..6].iter().fold(0, |millis, byte| millis << 8 | u64::from(*byte)))
}

impl Entry {
    /// The state as a hello tells it.
    pub(crate) fn state(&self) -> TaskState {
        match &self.progress {
            Progress::Waiting(_) => TaskState::Received,
            Progress::Begun { .. } => TaskState::Running,
            Progress::Finished { state, .. } => *state,
        }
    }
}

impl Progress {
    fn result_bytes(&self) -> usize {
        match self {
            Self::Finished { result: Some(result), .. } => result.statement.len() + result.output.len(),
            _ => 0,
        }
    }
}
