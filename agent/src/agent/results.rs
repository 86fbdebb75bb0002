//! Results on their way to a server: signed, recorded, sent, and sent again until one has them for good.
//!
//! It owns which results are under way in the present session; that they exist is the journal's knowledge. Law: a
//! remembered result is durable in the journal before it is sent, and leaves the outbox only by the server's word. While the disk has
//! no room for it, it waits in memory; should the agent end meanwhile, its task counts as interrupted.

use std::collections::BTreeSet;

use bgb_daemon::clock::Now;
use bgb_protocol::ids::{TaskId, UnixMillis};
use bgb_protocol::message::AgentMessage;
use bgb_protocol::result::{ResultStatement, SignedResult, cut_output};
use bgb_protocol::state::{RefusalReason, TaskState};

use super::{Agent, AgentError, SessionPhase};
use crate::journal::{Delivery, Progress, Written};

/// Results under way at a time: half a MiB of the longest ones, so that an agent back from a long absence does not choke its own
/// connection.
const UNDER_WAY_MAX: usize = 16;

/// After so long without any acknowledgement, results under way are sent again: servers sync within a second, so this is a
/// lost one. Sending twice is harmless.
const SEND_AGAIN_MS: u64 = 2 * 60 * 1000;

/// The results under way in this session.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    under_way: BTreeSet<TaskId>,
    send_again_ms: Option<u64>,
}

/// How often the journal is tried again when its disk had no room.
const WRITE_AGAIN_MS: u64 = 5_000;

/// Ends for which the journal had no room. No more than tasks wait and run at a time.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    ends: Vec<End>,
    again_ms: Option<u64>,
}

#[derive(Debug)]
struct End {
    task: TaskId,
    expires: UnixMillis,
    state: TaskState,
    result: SignedResult,
}

impl Unwritten {
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.again_ms
    }

    /// Whether the disk had no room just now, so that nothing is to be begun.
    pub(super) fn is_waiting(&self) -> bool {
        self.again_ms.is_some()
    }

    /// How many ends wait.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The disk has no room.
    pub(super) fn on_no_room(&mut self, now: Now) {
        self.again_ms.get_or_insert(now.boot_ms + WRITE_AGAIN_MS);
    }
}

/// How a task ended, as it is to be signed.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) state: TaskState,
    pub(super) refusal: Option<RefusalReason>,
    pub(super) code: i32,
    /// When it was begun; `None` when it never was.
    pub(super) started: Option<UnixMillis>,
    pub(super) output: Vec<u8>,
}

impl Outbox {
    pub(super) fn handle_lost(&mut self) {
        self.under_way.clear();
        self.send_again_ms = None;
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.send_again_ms
    }
}

impl Verdict {
    /// Never begun.
    pub(super) fn refused(reason: RefusalReason) -> Self {
        Self::without_output(TaskState::Refused, Some(reason), None)
    }

    /// Cancelled; `started` if it was begun.
    pub(super) fn cancelled(started: Option<UnixMillis>) -> Self {
        Self::without_output(TaskState::Cancelled, None, started)
    }

    /// Begun, and not ended.
    pub(super) fn interrupted(started: UnixMillis) -> Self {
        Self::without_output(TaskState::Interrupted, None, Some(started))
    }

    fn without_output(state: TaskState, refusal: Option<RefusalReason>, started: Option<UnixMillis>) -> Self {
        // -1: there is no program whose exit code it could be (bgb_protocol::result).
        Self { state, refusal, code: -1, started, output: Vec::new() }
    }
}

impl Agent {
    /// Signs and records a task's end.
    pub(super) fn conclude(
        &mut self,
        now: Now,
        task: TaskId,
        expires: UnixMillis,
        verdict: Verdict,
    ) -> Result<(), AgentError> {
        let state = verdict.state;
        let result = self.sign(now, task, verdict)?;
        self.write_end(now, End { task, expires, state, result })
    }

    /// Tries anew what the journal had no room for.
    pub(super) fn write_ends(&mut self, now: Now) -> Result<(), AgentError> {
        if self.unwritten.again_ms.is_none_or(|again_ms| now.boot_ms < again_ms) {
            return Ok(());
        }
        self.unwritten.again_ms = None;
        self.held.judge_again();
        for end in std::mem::take(&mut self.unwritten.ends) {
            self.write_end(now, end)?;
        }
        Ok(())
    }

    fn write_end(&mut self, now: Now, end: End) -> Result<(), AgentError> {
        match self.journal.finish(end.task, end.expires, end.state, &end.result)? {
            Written::Yes => {
                self.counters.count_end(end.state);
                tracing::info!(task = %end.task, state = %end.state, "task ended");
            }
            Written::NoRoom => {
                self.unwritten.on_no_room(now);
                self.unwritten.ends.push(end);
            }
        }
        Ok(())
    }

    /// Answers without remembering: what is refused now would be refused again.
    pub(super) fn refuse_once(
        &mut self,
        now: Now,
        task: TaskId,
        reason: RefusalReason,
    ) -> Result<(), AgentError> {
        let result = self.sign(now, task, Verdict::refused(reason))?;
        self.counters.count_end(TaskState::Refused);
        tracing::warn!(%task, %reason, "task refused");
        self.say(AgentMessage::Result(Box::new(result)));
        Ok(())
    }

    /// The server has a result for good.
    pub(super) fn on_result_kept(&mut self, now: Now, task: TaskId) -> Result<(), AgentError> {
        self.journal.acknowledge(task)?;
        self.outbox.under_way.remove(&task);
        self.outbox.send_again_ms =
            (!self.outbox.under_way.is_empty()).then_some(now.boot_ms + SEND_AGAIN_MS);
        Ok(())
    }

    /// Sends what may be under way.
    pub(super) fn send_results(&mut self, now: Now) {
        if self.session.phase() != SessionPhase::Active {
            return;
        }
        if self.outbox.send_again_ms.is_some_and(|again_ms| now.boot_ms >= again_ms) {
            self.outbox.handle_lost();
        }
        if self.outbox.under_way.len() >= UNDER_WAY_MAX {
            return;
        }
        for task in self.journal.unacknowledged() {
            if self.outbox.under_way.len() >= UNDER_WAY_MAX {
                break;
            }
            if self.outbox.under_way.insert(task) {
                self.outbox.send_again_ms.get_or_insert(now.boot_ms + SEND_AGAIN_MS);
                self.send_result(task);
            }
        }
    }

    /// A push of a task that has ended: its result once more, unless it is under way.
    pub(super) fn repeat_result(&mut self, task: TaskId, delivery: Delivery) {
        // One that is not acknowledged is sent, or sent again, in its turn.
        if delivery == Delivery::Acknowledged {
            self.send_result(task);
        }
    }

    fn send_result(&mut self, task: TaskId) {
        if let Some(Progress::Finished { result: Some(result), .. }) =
            self.journal.task(task).map(|entry| &entry.progress)
        {
            let result = SignedResult::clone(result);
            self.say(AgentMessage::Result(Box::new(result)));
        }
    }

    fn sign(&self, now: Now, task: TaskId, verdict: Verdict) -> Result<SignedResult, AgentError> {
        let finished = self.time.at(now);
        let statement = ResultStatement {
            site: self.options.site,
            task,
            device: self.options.device,
            state: verdict.state,
            refusal: verdict.refusal,
            code: verdict.code,
            started: verdict.started.map_or(finished, |started| started.min(finished)),
            finished,
            // Set by the signing.
            output_digest: [0; 32],
        };
        Ok(SignedResult::sign(statement, cut_output(verdict.output), &self.key)?)
    }
}
