//! Tasks inside the agent: let in, queued, begun, cancelled, ended.
//!
//! It owns the rules of the queue: a ping never waits, one malware scan at a time, one of each other action at a time,
//! the oldest first. Laws: a task is judged when it comes and again before it is begun; none that waits is begun or ended before
//! a head has told the time in this boot; it is begun only after the
//! journal has synced that it will be; one that was begun in an earlier life is begun again only if its action is declared
//! repeatable and it is still valid, else it is interrupted.

use std::sync::Arc;

use bgb_daemon::clock::Now;
use bgb_protocol::action::Action;
use bgb_protocol::ids::{TaskId, UnixMillis};
use bgb_protocol::message::{AgentMessage, TaskPush};
use bgb_protocol::state::{RefusalReason, TaskState};
use bgb_protocol::task::{NOT_BEFORE_TOLERANCE_MS, SignedCancel, SignedTask};

use super::held::HeldPush;
use super::results::Verdict;
use super::{Agent, AgentError, Ending, Outcome, Output, Start};
use crate::journal::{Progress, Written};
use crate::policy::Applied;
use crate::verify::{self, Judge, Memory};

/// Most tasks that wait and run on a device at a time: an administrator's day, and less than 2 MiB of the largest.
pub(super) const OPEN_TASKS_MAX: usize = 128;

/// A repeatable action is begun so many times at most: one that takes the agent down with it must come to an end.
const BEGINNINGS_MAX: u32 = 3;

/// How long after its limit, or after it was killed, an action may take to say that it has ended: twice the 10 s in which the runner
/// makes sure of it, and as much for a busy machine.
const OVERDUE_MS: u64 = 40_000;

/// Why a push is dropped that would be one too many.
const FULL: &str = "the journal holds as many tasks as it may";

/// An action that was begun in this life.
#[derive(Clone, Debug)]
pub(super) struct Running {
    action: Action,
    expires: UnixMillis,
    started: UnixMillis,
    /// When it is taken for lost, in milliseconds since boot.
    pub(super) give_up_ms: u64,
    cancel: Cancel,
}

/// Whether a running task was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancel {
    Unasked,
    Asked,
}

/// What is to be done with a queued task now.
enum Readiness {
    Now(Arc<SignedTask>, Action, UnixMillis),
    /// Its turn has not come; where it depends on the agent's time alone, when that is.
    Later(Option<UnixMillis>),
    Never(UnixMillis, Verdict),
    /// It is not in the queue any more.
    Gone,
}

impl Agent {
    /// A task came.
    pub(super) fn on_push(&mut self, now: Now, push: TaskPush) -> Result<(), AgentError> {
        self.counters.pushes += 1;
        self.decide(now, HeldPush::new(push))
    }

    /// Judges a push that came now, or that was held.
    pub(super) fn decide(&mut self, now: Now, push: HeldPush) -> Result<(), AgentError> {
        let own_now = self.time.at(now);
        match self.judge_at(own_now).judge(push.push()) {
            verify::Verdict::Drop(reason) => {
                self.on_dropped(&reason);
                Ok(())
            }
            verify::Verdict::Refuse { task, reason, .. } if !self.is_certain(&push, reason) => {
                if !self.on_known(task) {
                    self.hold(task, push);
                }
                Ok(())
            }
            verify::Verdict::Refuse { task, expires, reason, memory } => {
                if self.on_known(task) {
                    return Ok(());
                }
                match memory {
                    Memory::None => self.refuse_once(now, task, reason),
                    Memory::Kept if !self.has_room() => {
                        self.on_dropped(FULL);
                        Ok(())
                    }
                    Memory::Kept => self.conclude(now, task, expires, Verdict::refused(reason)),
                }
            }
            verify::Verdict::Accept(signed, action) => self.on_accepted(now, push, signed, action),
        }
    }

    /// A cancel came: remembered until the task's expiry, also when the task has not come yet.
    pub(super) fn on_cancel(&mut self, now: Now, bytes: &[u8]) -> Result<(), AgentError> {
        let cancel = SignedCancel::decode(bytes).map_err(|error| error.to_string()).and_then(|cancel| {
            cancel.verify(self.options.site, &self.options.task_keys).map_err(|error| error.to_string())?;
            Ok(cancel)
        });
        let cancel = match cancel {
            Ok(cancel) => cancel,
            Err(fault) => {
                self.counters.statements_dropped += 1;
                tracing::warn!(%fault, "a cancel is not the site's and is dropped");
                return Ok(());
            }
        };
        let statement = cancel.statement();
        let change = self.time.on_signed_time(statement.cancelled, now);
        self.keep_time(change)?;
        // By signed time alone: what our clock has counted since the last head does not outlive the boot, and after it the task might seem
        // to be valid again.
        if self.time.floor() >= statement.expires && self.journal.task(statement.task).is_none() {
            return Ok(());
        }
        if !self.journal.entomb(statement.task, statement.expires)? {
            self.counters.statements_dropped += 1;
            tracing::error!(task = %statement.task, "more cancels than are remembered; this one is dropped");
            return Ok(());
        }
        tracing::info!(task = %statement.task, "task cancelled by the site");
        self.cancel_running(now, statement.task)
    }

    /// An action has ended.
    pub(super) fn on_finished(&mut self, now: Now, task: TaskId, outcome: Outcome) -> Result<(), AgentError> {
        let Some(running) = self.running.remove(&task) else { return Ok(()) };
        if self.session.phase() == super::SessionPhase::Stopped
            && outcome.ending == Ending::Cancelled
            && running.cancel == Cancel::Unasked
        {
            // Ended because the agent ends: interrupted, or begun again, is for the next start to decide.
            return Ok(());
        }
        self.conclude_running(now, task, &running, outcome)
    }

    /// The answer to a policy request was applied, or was not: the end of download-policy, where that asked for it.
    pub(super) fn on_policy_ended(
        &mut self,
        now: Now,
        applied: Result<Applied, String>,
    ) -> Result<(), AgentError> {
        let Some(task) = self.running_of(Action::DownloadPolicy) else { return Ok(()) };
        let running = self.running.remove(&task).expect("the task was found in the same map");
        let outcome = match applied {
            Ok(applied) => {
                let documents: Vec<_> = applied
                    .documents
                    .iter()
                    .map(|(name, version)| serde_json::json!({"name": name, "version": version}))
                    .collect();
                let output = serde_json::json!({"changed": applied.is_changed, "documents": documents});
                Outcome { ending: Ending::Succeeded, code: 0, output: output.to_string().into_bytes() }
            }
            Err(fault) => Outcome {
                ending: Ending::Failed,
                code: 1,
                output: format!("the policy was not applied, the old one stays in force: {fault}")
                    .into_bytes(),
            },
        };
        self.conclude_running(now, task, &running, outcome)
    }

    /// Ends what should have ended by itself.
    pub(super) fn give_up_overdue(&mut self, now: Now) -> Result<(), AgentError> {
        let overdue: Vec<_> = self
            .running
            .iter()
            .filter(|(_, running)| now.boot_ms >= running.give_up_ms)
            .map(|(&task, _)| task)
            .collect();
        for task in overdue {
            let running = self.running.remove(&task).expect("the task was found in the same map");
            let reason = if running.action == Action::DownloadPolicy {
                "no server answered the request for policy within the action's limit"
            } else {
                self.outputs.push_back(Output::Kill { task });
                "the action did not end when its limit was reached"
            };
            tracing::error!(%task, action = %running.action, "{reason}");
            let ending = match running.cancel {
                Cancel::Asked => Ending::Cancelled,
                Cancel::Unasked => Ending::Failed,
            };
            let outcome = Outcome { ending, code: -1, output: reason.as_bytes().to_vec() };
            self.conclude_running(now, task, &running, outcome)?;
        }
        Ok(())
    }

    /// Begins every queued task whose turn has come, and ends those that will never be begun.
    pub(super) fn start_queued(&mut self, now: Now) -> Result<(), AgentError> {
        self.recheck_ms = None;
        if !self.time.is_anchored() {
            // Whether a task is valid is the site's time to say, not this machine's clock.
            return Ok(());
        }
        let own_now = self.time.at(now);
        self.journal.bound_loss(own_now)?;
        let mut at = 0;
        while let Some(&task) = self.queue.get(at) {
            match self.readiness(task, own_now) {
                Readiness::Later(moment) => {
                    if let Some(moment) = moment {
                        let due_ms = now.boot_ms.saturating_add(moment.since(own_now).max(1));
                        self.recheck_ms =
                            Some(self.recheck_ms.map_or(due_ms, |other_ms| other_ms.min(due_ms)));
                    }
                    at += 1;
                    continue;
                }
                Readiness::Now(signed, action, started) => {
                    if self.begin(now, &signed, action, started)? == Written::NoRoom {
                        self.unwritten.on_no_room(now);
                        at += 1;
                        continue;
                    }
                }
                Readiness::Never(expires, verdict) => self.conclude(now, task, expires, verdict)?,
                Readiness::Gone => {}
            }
            self.queue.remove(at);
        }
        Ok(())
    }

    fn on_accepted(
        &mut self,
        now: Now,
        push: HeldPush,
        signed: SignedTask,
        action: Action,
    ) -> Result<(), AgentError> {
        let (task, expires) = (signed.statement().task, signed.statement().expires);
        if self.on_known(task) {
            return Ok(());
        }
        if !self.has_room() {
            self.on_dropped(FULL);
            return Ok(());
        }
        if self.journal.is_cancelled(task) {
            return self.conclude(now, task, expires, Verdict::cancelled(None));
        }
        if !action.is_repeatable() && self.journal.may_have_lost(task) {
            // It may have been begun, and even ended, in what the disk has lost.
            return self.conclude(now, task, expires, Verdict::interrupted(self.time.at(now)));
        }
        if self.queue.len() + self.running.len() >= OPEN_TASKS_MAX {
            return self.conclude(now, task, expires, Verdict::refused(RefusalReason::TooManyTasks));
        }
        if self.journal.accept(signed)? == Written::NoRoom {
            self.unwritten.on_no_room(now);
            self.hold(task, push);
            return Ok(());
        }
        tracing::info!(%task, %action, "task received");
        self.say(AgentMessage::Received(task));
        self.queue.push(task);
        Ok(())
    }

    /// Says again how far a known task has come; `false` when it is not known.
    pub(super) fn on_known(&mut self, task: TaskId) -> bool {
        let Some(entry) = self.journal.task(task) else { return false };
        match &entry.progress {
            Progress::Waiting(_) => self.say(AgentMessage::Received(task)),
            Progress::Begun { .. } => self.say(AgentMessage::Running(task)),
            Progress::Finished { delivery, .. } => {
                let delivery = *delivery;
                self.repeat_result(task, delivery);
            }
        }
        true
    }

    fn hold(&mut self, task: TaskId, push: HeldPush) {
        if !self.held.hold(task, push, self.heads.newest) {
            self.on_dropped("as many pushes wait as may");
        }
    }

    fn on_dropped(&mut self, reason: &str) {
        self.counters.pushes_dropped += 1;
        // Whoever sends rubbish must not fill the log with it.
        if self.counters.pushes_dropped.is_power_of_two() {
            tracing::warn!(%reason, times = self.counters.pushes_dropped, "a push is dropped and not answered");
        }
    }

    /// Ends what the caller carries out; policy the agent has from the server by itself.
    pub(super) fn kill_running(&mut self) {
        let begun = self.running.iter().filter(|(_, running)| running.action != Action::DownloadPolicy);
        self.outputs.extend(begun.map(|(&task, _)| Output::Kill { task }));
    }

    fn cancel_running(&mut self, now: Now, task: TaskId) -> Result<(), AgentError> {
        let Some(running) = self.running.get_mut(&task) else { return Ok(()) };
        if running.action == Action::DownloadPolicy {
            let running = self.running.remove(&task).expect("the task was found in the same map");
            let verdict = Verdict::cancelled(Some(running.started));
            return self.conclude(now, task, running.expires, verdict);
        }
        if running.cancel == Cancel::Unasked {
            running.cancel = Cancel::Asked;
            running.give_up_ms = running.give_up_ms.min(now.boot_ms + OVERDUE_MS);
            self.outputs.push_back(Output::Kill { task });
        }
        Ok(())
    }

    fn conclude_running(
        &mut self,
        now: Now,
        task: TaskId,
        running: &Running,
        outcome: Outcome,
    ) -> Result<(), AgentError> {
        let state = match outcome.ending {
            Ending::Succeeded => TaskState::Succeeded,
            Ending::Failed => TaskState::Failed,
            Ending::Cancelled => TaskState::Cancelled,
        };
        let (code, output) = (outcome.code, outcome.output);
        let verdict = Verdict { state, refusal: None, code, started: Some(running.started), output };
        self.conclude(now, task, running.expires, verdict)
    }

    fn readiness(&self, task: TaskId, own_now: UnixMillis) -> Readiness {
        let Some(entry) = self.journal.task(task) else { return Readiness::Gone };
        let expires = entry.expires;
        let (signed, begun) = match &entry.progress {
            Progress::Finished { .. } => return Readiness::Gone,
            Progress::Waiting(signed) => (signed, None),
            Progress::Begun { task, first, times } => (task, Some((*first, *times))),
        };
        if self.journal.is_cancelled(task) {
            return Readiness::Never(expires, Verdict::cancelled(begun.map(|(first, _)| first)));
        }
        let action = match (self.judge_at(own_now).may_run(signed.statement()), begun) {
            (Ok(action), Some((first, times))) if !action.is_repeatable() || times >= BEGINNINGS_MAX => {
                return Readiness::Never(expires, Verdict::interrupted(first));
            }
            (Ok(action), _) => action,
            // It was valid when it came: time went back at a restart, and will come there again.
            (Err(RefusalReason::NotYetValid), begun)
                if begun.is_none()
                    || signed.statement().known_action().is_some_and(Action::is_repeatable) =>
            {
                let not_before = signed.statement().not_before.0.saturating_sub(NOT_BEFORE_TOLERANCE_MS);
                return Readiness::Later(Some(UnixMillis(not_before)));
            }
            (Err(_), Some((first, _))) => return Readiness::Never(expires, Verdict::interrupted(first)),
            (Err(reason), None) => return Readiness::Never(expires, Verdict::refused(reason)),
        };
        if self.has_slot(action) {
            Readiness::Now(Arc::clone(signed), action, begun.map_or(own_now, |(first, _)| first))
        } else {
            Readiness::Later(Some(expires))
        }
    }

    /// Whether the journal may take one more task, and there is room in memory for its end should the disk have none.
    fn has_room(&self) -> bool {
        self.journal.has_room() && self.unwritten.len() < OPEN_TASKS_MAX
    }

    fn has_slot(&self, action: Action) -> bool {
        action == Action::Ping
            || !self
                .running
                .values()
                .any(|other| other.action == action || (other.action.is_scan() && action.is_scan()))
    }

    fn begin(
        &mut self,
        now: Now,
        signed: &SignedTask,
        action: Action,
        started: UnixMillis,
    ) -> Result<Written, AgentError> {
        let (task, expires) = (signed.statement().task, signed.statement().expires);
        if self.unwritten.is_waiting() || self.journal.begin(task, started)? == Written::NoRoom {
            return Ok(Written::NoRoom);
        }
        self.counters.begun += 1;
        tracing::info!(%task, %action, "task begun");
        let limit = action.limit();
        let limit_ms = limit.as_millis() as u64;
        let overdue_ms = if action == Action::DownloadPolicy { 0 } else { OVERDUE_MS };
        let give_up_ms = now.boot_ms + limit_ms + overdue_ms;
        self.running.insert(task, Running { action, expires, started, give_up_ms, cancel: Cancel::Unasked });
        self.say(AgentMessage::Running(task));
        if action == Action::DownloadPolicy {
            self.exchange.want();
        } else {
            let settings = Arc::clone(self.policy.settings());
            self.outputs.push_back(Output::Start(Start { task, action, limit, settings }));
        }
        Ok(Written::Yes)
    }

    fn running_of(&self, action: Action) -> Option<TaskId> {
        self.running.iter().find(|(_, running)| running.action == action).map(|(&task, _)| task)
    }

    fn judge_at(&self, now: UnixMillis) -> Judge<'_> {
        Judge {
            site: self.options.site,
            device: self.options.device,
            keys: &self.options.task_keys,
            settings: self.policy.settings(),
            now,
        }
    }
}
