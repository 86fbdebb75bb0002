//! The plain model beside the product: what there is to do, what was begun, what has ended, what was counted.
//!
//! It is written from `protocol.md` and `security.md` and shares no code with hub, agent or journal. It hears of everything that
//! matters as it happens, and answers whether that may be. Numbers of invariants are those of `security.md`.

use std::collections::{BTreeMap, BTreeSet};

use bgb_protocol::action::Action;
use bgb_protocol::ids::{DeviceId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::result::ResultStatement;
use bgb_protocol::state::TaskState;
use bgb_protocol::task::NOT_BEFORE_TOLERANCE_MS;

use crate::agents::Machine;

/// A repeatable action is begun so many times at most.
const BEGINNINGS_MAX: u32 = 3;

/// How far an agent's time may be behind the site's once it has heard a head: a head is a minute old at most when it is
/// handed on, a server takes sign-ins for a minute without the queue, and a little for the way.
const AGENT_LAG_MS_MAX: u64 = 150_000;

/// How much later than its expiry a task may leave a server whose clock is right: a tick and a turn.
const PUSH_LATE_MS_MAX: u64 = 200;

/// A task, as its administrator meant it.
#[derive(Clone, Debug)]
pub(crate) struct TaskFacts {
    pub(crate) action: Action,
    pub(crate) targets: BTreeSet<DeviceId>,
    pub(crate) not_before: UnixMillis,
    pub(crate) expires: UnixMillis,
    pub(crate) rings: Vec<Ring>,
    pub(crate) cancelled: Option<UnixMillis>,
}

/// A release.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    pub(crate) from: UnixMillis,
    pub(crate) committed: UnixMillis,
    /// `None`: all targets.
    pub(crate) devices: Option<BTreeSet<DeviceId>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) tasks: BTreeMap<TaskId, TaskFacts>,
    /// The last session number of each agent.
    pub(crate) session_numbers: BTreeMap<usize, SessionNumber>,
    /// Results that are on some server's disk, or have left it for the site.
    pub(crate) durable: BTreeSet<(TaskId, DeviceId)>,
    /// Results that some server has heard.
    pub(crate) results_heard: BTreeSet<(TaskId, DeviceId)>,
    pub(crate) pushed: BTreeSet<(TaskId, DeviceId)>,
    /// Cancels that an agent has taken in, durably.
    pub(crate) cancels_heard: BTreeSet<(TaskId, DeviceId)>,
    /// And those of them that came before the task's end.
    pub(crate) cancelled_in_time: BTreeSet<(TaskId, DeviceId)>,
    begun: BTreeMap<(TaskId, DeviceId), u32>,
    /// Ends that an agent has in its journal, and since when.
    ended: BTreeMap<(TaskId, DeviceId), (TaskState, UnixMillis)>,
    counted: BTreeMap<(TaskId, DeviceId), ResultStatement>,
}

impl TaskFacts {
    /// From when on the device may have the task; `None` while it may not at all.
    pub(crate) fn released_to(&self, device: DeviceId) -> Option<UnixMillis> {
        if !self.targets.contains(&device) {
            return None;
        }
        let reaches = |ring: &&Ring| ring.devices.as_ref().is_none_or(|devices| devices.contains(&device));
        self.rings.iter().filter(reaches).map(|ring| ring.from.max(ring.committed)).min()
    }
}

impl Model {
    /// An agent begins an action: how often it has by now. Invariants 3 and 4.
    pub(crate) fn on_begun(
        &mut self,
        device: DeviceId,
        task: TaskId,
        action: Action,
        own_now: UnixMillis,
        true_now: Option<UnixMillis>,
    ) -> Result<u32, String> {
        let Some(facts) = self.tasks.get(&task) else {
            return Err(format!("device {device} begins task {task}, which nobody started"));
        };
        let what = format!("device {device} begins {action} of task {task}");
        if facts.action != action {
            return Err(format!("{what}, which asks for {}", facts.action));
        }
        if !facts.targets.contains(&device) {
            return Err(format!("{what} and is no target"));
        }
        if own_now >= facts.expires {
            return Err(format!(
                "{what}, {} ms after its expiry by its own time",
                own_now.since(facts.expires)
            ));
        }
        if facts.not_before > own_now.plus(NOT_BEFORE_TOLERANCE_MS) {
            return Err(format!("{what} before it is valid by its own time"));
        }
        if true_now.is_some_and(|now| now > facts.expires.plus(AGENT_LAG_MS_MAX)) {
            return Err(format!("{what} long after its expiry by the site's time"));
        }
        if self.cancels_heard.contains(&(task, device)) {
            return Err(format!("{what} after it heard of its cancel"));
        }
        if self.ended.contains_key(&(task, device)) {
            return Err(format!("{what} after its end"));
        }
        let times = self.begun.entry((task, device)).or_default();
        *times += 1;
        let most = if action.is_repeatable() { BEGINNINGS_MAX } else { 1 };
        if *times > most { Err(format!("{what} for the {times}. time")) } else { Ok(*times) }
    }

    /// Whether a server may push a task now. `now` is the true time where the server's clock is right.
    pub(crate) fn may_be_pushed(
        &self,
        task: TaskId,
        device: DeviceId,
        now: Option<UnixMillis>,
    ) -> Result<(), String> {
        let Some(facts) = self.tasks.get(&task) else {
            return Err(format!("task {task} is pushed, which nobody started"));
        };
        let Some(from) = facts.released_to(device) else {
            return Err(format!("task {task} is pushed to device {device}, which may not have it"));
        };
        let Some(now) = now else { return Ok(()) };
        if now.plus(PUSH_LATE_MS_MAX) < from {
            return Err(format!("task {task} is pushed {} ms before its time", from.since(now)));
        }
        if now > facts.expires.plus(PUSH_LATE_MS_MAX) {
            return Err(format!("task {task} is pushed {} ms after its expiry", now.since(facts.expires)));
        }
        Ok(())
    }

    /// What an agent's journal says has ended: an end stays as it is. Invariant 5.
    pub(crate) fn on_ends(&mut self, machine: &Machine, now: UnixMillis) -> Result<(), String> {
        let Some(agent) = &machine.agent else { return Ok(()) };
        for (task, facts) in &self.tasks {
            if !facts.targets.contains(&machine.device) {
                continue;
            }
            let state = agent.task_state(*task).filter(|state| state.is_final());
            let Some(state) = state else { continue };
            let (before, _) = *self.ended.entry((*task, machine.device)).or_insert((state, now));
            if before != state {
                return Err(format!(
                    "task {task} ended as {before} on device {}, now {state}",
                    machine.device
                ));
            }
        }
        Ok(())
    }

    /// An agent has opened its journal: every end that it had is there.
    pub(crate) fn journal_is_whole(&self, machine: &Machine) -> Result<(), String> {
        let Some(agent) = &machine.agent else { return Ok(()) };
        for ((task, device), (state, _)) in &self.ended {
            if *device == machine.device && agent.task_state(*task) != Some(*state) {
                let now = agent.task_state(*task);
                return Err(format!(
                    "device {device} had ended task {task} as {state}; its journal now says {now:?}"
                ));
            }
        }
        Ok(())
    }

    /// The site takes a final word in: whether it is the first. Invariant 5.
    pub(crate) fn on_counted(&mut self, statement: &ResultStatement) -> Result<bool, String> {
        let ResultStatement { task, device, state, .. } = *statement;
        let Some(facts) = self.tasks.get(&task) else {
            return Err(format!("device {device} answers to task {task}, which nobody started"));
        };
        if !facts.targets.contains(&device) {
            return Err(format!("device {device} answers to task {task} and is no target"));
        }
        let journaled = self.ended.get(&(task, device)).map(|(state, _)| *state);
        if journaled.is_some_and(|journaled| journaled != state) {
            return Err(format!(
                "task {task} ended as {journaled:?} on device {device}; the site hears {state}"
            ));
        }
        match self.counted.get(&(task, device)) {
            None => {
                self.counted.insert((task, device), statement.clone());
                Ok(true)
            }
            Some(first) if first == statement => Ok(false),
            // What is refused without being remembered is refused anew each time.
            Some(first) if first.state == TaskState::Refused && state == TaskState::Refused => Ok(false),
            Some(first) => {
                let first = first.state;
                Err(format!("task {task} on device {device}: first {first}, then {state}, another word"))
            }
        }
    }

    /// Every end that the device's journal had by `until` has reached the site.
    pub(crate) fn all_counted(&self, device: DeviceId, until: UnixMillis) -> Result<(), String> {
        let due = self.ended.iter().filter(|((_, by), (_, since))| *by == device && *since <= until);
        for ((task, by), (state, _)) in due {
            let counted = self.counted.get(&(*task, *by)).map(|statement| statement.state);
            if counted != Some(*state) {
                return Err(format!(
                    "device {by} ended task {task} as {state}; the site has counted {counted:?}"
                ));
            }
        }
        Ok(())
    }

    /// Tasks that expired before a target had them.
    pub(crate) fn undelivered(&self, now: UnixMillis) -> usize {
        let expired = self.tasks.iter().filter(|(_, facts)| facts.expires <= now);
        let never = |task: &TaskId, facts: &TaskFacts| {
            facts.targets.iter().filter(|device| !self.pushed.contains(&(*task, **device))).count()
        };
        expired.map(|(task, facts)| never(task, facts)).sum()
    }
}
