//! The plain model beside the product: what there is to do, what was begun, what has ended, what was counted.
//!
//! It is written from `protocol.md` and docs/promises.md and shares no code with hub, agent or journal. It hears of everything that
//! matters as it happens, and answers whether that may be. Numbers of invariants are those of docs/promises.md.

use std::collections::{BTreeMap, BTreeSet};

use bgb_protocol::action::Action;
use bgb_protocol::ids::{BootId, DeviceId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::state::TaskState;
use bgb_protocol::task::NOT_BEFORE_TOLERANCE_MS;

use crate::agents::Machine;
use crate::policies::Policies;
use crate::site::FinalWord;

/// A repeatable action is begun so many times at most.
const BEGINNINGS_MAX: u32 = 3;

/// How much further an agent's time may be behind the site's than the oldest head that it has heard since it was switched on was when it came.
const AGENT_LAG_MS_MAX: u64 = 1_000;

/// How much later than its expiry, or earlier than its time, a task may leave a server by that server's clock: a tick and a turn.
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
    /// The site has gone back to before its start, or its cancel: nobody is promised anything of it any more.
    pub(crate) is_disowned: bool,
}

/// A release.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    pub(crate) from: UnixMillis,
    pub(crate) committed: UnixMillis,
    /// `None`: all targets.
    pub(crate) devices: Option<BTreeSet<DeviceId>>,
    /// The site has gone back to before it.
    pub(crate) is_disowned: bool,
}

/// What keeps a device out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bar {
    Block(DeviceId),
    Certificate([u8; 32]),
}

/// A task in a journal. Each agent has a journal of its own, also where two of them are copies that call themselves the same device.
pub(crate) type Entry = (TaskId, usize);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// Which device each agent is.
    pub(crate) devices: Vec<DeviceId>,
    pub(crate) tasks: BTreeMap<TaskId, TaskFacts>,
    /// What is barred, and since when.
    bars: BTreeMap<Bar, UnixMillis>,
    pub(crate) policies: Policies,
    /// The last session number of each agent.
    pub(crate) session_numbers: BTreeMap<usize, SessionNumber>,
    /// Results that some server has acknowledged: they must reach the site, whatever happens. Invariant 1.
    pub(crate) acknowledged: BTreeMap<(TaskId, DeviceId), UnixMillis>,
    /// Results that some server has heard.
    pub(crate) results_heard: BTreeSet<(TaskId, DeviceId)>,
    /// Refusals that a device has said. Some of them are not remembered, and after a boot without a head of its own the task may be begun.
    refusals_said: BTreeSet<(TaskId, DeviceId)>,
    /// Tasks that a hello has named as ended, to some server.
    pub(crate) ends_named: BTreeSet<(TaskId, DeviceId)>,
    pub(crate) pushed: BTreeSet<(TaskId, DeviceId)>,
    /// Cancels that an agent has taken in, durably.
    pub(crate) cancels_heard: BTreeSet<Entry>,
    /// And those of them that came before the task's end.
    pub(crate) cancelled_in_time: BTreeSet<Entry>,
    /// Cancels that came to an agent, whether it was still there to take them in or not.
    pub(crate) cancels_said: BTreeSet<Entry>,
    /// In which of its agent's lives a task was pushed to it for the first time.
    told: BTreeMap<Entry, u64>,
    begun: BTreeMap<Entry, Beginnings>,
    /// Ends that an agent has in its journal, and since when.
    ended: BTreeMap<Entry, (TaskState, UnixMillis)>,
    /// Final words that the site has.
    counted: BTreeMap<(TaskId, DeviceId), TaskState>,
    /// Sessions that the site has shown as gone.
    gone: BTreeSet<(DeviceId, (BootId, SessionNumber))>,
}

/// How often an action was begun, and in which of its agent's lives last.
#[derive(Clone, Copy, Debug, Default)]
struct Beginnings {
    times: u32,
    life: u64,
}

/// What an agent is when an end is seen in its journal for the first time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Witness {
    /// The true time.
    pub(crate) now: UnixMillis,
    /// By the agent's own clock.
    pub(crate) own_now: UnixMillis,
    /// How often its process was started.
    pub(crate) life: u64,
}

impl TaskFacts {
    /// From when on the device may have the task; `None` while it may not at all.
    fn may_be_had_by(&self, device: DeviceId) -> Option<UnixMillis> {
        self.first_ring(device, |_| true)
    }

    /// From when on the device must get the task; `None` while that is not promised.
    pub(crate) fn is_promised_to(&self, device: DeviceId) -> Option<UnixMillis> {
        self.first_ring(device, |ring| !self.is_disowned && !ring.is_disowned)
    }

    fn first_ring(&self, device: DeviceId, counts: impl Fn(&Ring) -> bool) -> Option<UnixMillis> {
        if !self.targets.contains(&device) {
            return None;
        }
        let reaches = |ring: &&Ring| ring.devices.as_ref().is_none_or(|devices| devices.contains(&device));
        let rings = self.rings.iter().filter(|ring| counts(ring)).filter(reaches);
        rings.map(|ring| ring.from.max(ring.committed)).min()
    }
}

impl Model {
    /// A push has come to an agent.
    pub(crate) fn on_told(&mut self, agent: usize, task: TaskId, life: u64) {
        self.told.entry((task, agent)).or_insert(life);
    }

    /// An agent begins an action: how often it has by now. Invariants 3 and 4.
    pub(crate) fn on_begun(
        &mut self,
        agent: usize,
        task: TaskId,
        action: Action,
        witness: Witness,
        head_lag_ms: u64,
    ) -> Result<u32, String> {
        let (device, own_now) = (self.devices[agent], witness.own_now);
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
        if witness.now > facts.expires.plus(head_lag_ms + AGENT_LAG_MS_MAX) {
            return Err(format!("{what} long after its expiry by the site's time"));
        }
        if self.cancels_heard.contains(&(task, agent)) {
            return Err(format!("{what} after it heard of its cancel"));
        }
        if self.ended.contains_key(&(task, agent)) {
            return Err(format!("{what} after its end"));
        }
        let Beginnings { times, life } = self.begun.entry((task, agent)).or_default();
        (*times, *life) = (*times + 1, witness.life);
        let most = if action.is_repeatable() { BEGINNINGS_MAX } else { 1 };
        if *times > most { Err(format!("{what} for the {times}. time")) } else { Ok(*times) }
    }

    /// Something is barred from now on.
    pub(crate) fn bar(&mut self, bar: Bar, now: UnixMillis) {
        self.bars.insert(bar, now);
    }

    /// It is not any more.
    pub(crate) fn unbar(&mut self, bar: Bar) {
        self.bars.remove(&bar);
    }

    /// Since when something is barred; `None` if it is not.
    pub(crate) fn barred_since(&self, bar: Bar) -> Option<UnixMillis> {
        self.bars.get(&bar).copied()
    }

    /// Whether the device is blocked.
    pub(crate) fn is_blocked(&self, device: DeviceId) -> bool {
        self.bars.contains_key(&Bar::Block(device))
    }

    /// All that is barred.
    pub(crate) fn bars(&self) -> BTreeSet<Bar> {
        self.bars.keys().copied().collect()
    }

    /// Since when a task is cancelled for good; `None` if it is not, or the site has gone back to before.
    pub(crate) fn cancelled_since(&self, task: TaskId) -> Option<UnixMillis> {
        self.tasks.get(&task).filter(|facts| !facts.is_disowned)?.cancelled
    }

    /// Tasks that the device must have been given by `since`, with when it may have them from, and that nobody has ever pushed to it.
    pub(crate) fn not_pushed(
        &self,
        device: DeviceId,
        since: UnixMillis,
        now: UnixMillis,
    ) -> Vec<(TaskId, UnixMillis)> {
        let due = |(task, facts): (&TaskId, &TaskFacts)| {
            let key = (*task, device);
            let is_open = facts.cancelled.is_none() && facts.expires > now;
            let is_done = self.results_heard.contains(&key) || self.pushed.contains(&key);
            let from = facts.is_promised_to(device).filter(|from| *from <= since)?;
            (is_open && !is_done).then_some((*task, from))
        };
        self.tasks.iter().filter_map(due).collect()
    }

    /// Whether a server whose clock is so far ahead or behind may push a task now.
    pub(crate) fn may_be_pushed(
        &self,
        task: TaskId,
        device: DeviceId,
        now: UnixMillis,
        ahead_ms: u64,
        behind_ms: u64,
    ) -> Result<(), String> {
        let Some(facts) = self.tasks.get(&task) else {
            return Err(format!("task {task} is pushed, which nobody started"));
        };
        let Some(from) = facts.may_be_had_by(device) else {
            return Err(format!("task {task} is pushed to device {device}, which may not have it"));
        };
        if now.plus(ahead_ms + PUSH_LATE_MS_MAX) < from {
            return Err(format!("task {task} is pushed {} ms before its time", from.since(now)));
        }
        if now > facts.expires.plus(behind_ms + PUSH_LATE_MS_MAX) {
            return Err(format!("task {task} is pushed {} ms after its expiry", now.since(facts.expires)));
        }
        Ok(())
    }

    /// What an agent's journal says has ended: each end has its cause, and stays as it is. Invariant 5.
    pub(crate) fn on_ends(&mut self, at: usize, machine: &Machine, witness: Witness) -> Result<(), String> {
        let now = witness.now;
        let Some(agent) = &machine.agent else { return Ok(()) };
        for (task, facts) in &self.tasks {
            if !facts.targets.contains(&machine.device) {
                continue;
            }
            let state = agent.task_state(*task).filter(|state| state.is_final());
            let Some(state) = state else { continue };
            let (key, device) = ((*task, at), machine.device);
            match self.ended.get(&key) {
                None => {
                    self.is_justified(key, facts, state, witness, &machine.untold).map_err(|why| {
                        format!("task {task} ({}) ended as {state} on device {device}: {why}", facts.action)
                    })?;
                    self.ended.insert(key, (state, now));
                }
                Some((before, _)) if *before != state => {
                    return Err(format!("task {task} ended as {before} on device {device}, now {state}"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Whether what has happened to a task on a device can end as `state`. A refusal may stem from an `untold` step.
    fn is_justified(
        &self,
        key: Entry,
        facts: &TaskFacts,
        state: TaskState,
        witness: Witness,
        untold: &[Witness],
    ) -> Result<(), &'static str> {
        let begun = self.begun.get(&key).copied();
        // The agent does this one by itself: the world does not see it begin.
        let is_seen = facts.action != Action::DownloadPolicy;
        if self.cancelled_in_time.contains(&key)
            && !matches!(state, TaskState::Cancelled | TaskState::Interrupted)
        {
            return Err("its cancel was heard before its end");
        }
        let is_right = match state {
            TaskState::Succeeded | TaskState::Failed if is_seen && begun.is_none() => {
                return Err("it was never begun");
            }
            TaskState::Succeeded | TaskState::Failed => true,
            TaskState::Cancelled if facts.cancelled.is_none() => return Err("nobody cancelled it"),
            TaskState::Cancelled => self.cancels_said.contains(&key),
            // Its intent may be in the journal without the action having begun: the crash came in between.
            TaskState::Interrupted => {
                let is_earlier = |life: u64| life < witness.life;
                self.told.get(&key).is_some_and(|life| is_earlier(*life))
                    && begun.is_none_or(|begun| is_earlier(begun.life))
            }
            TaskState::Refused => untold.iter().chain([&witness]).any(|by| {
                by.now >= facts.expires || facts.not_before > by.own_now.plus(NOT_BEFORE_TOLERANCE_MS)
            }),
            _ => return Err("that is no end"),
        };
        if is_right { Ok(()) } else { Err("nothing that happened to it is a reason for that") }
    }

    /// An agent has opened its journal: every end that it had is there.
    pub(crate) fn journal_is_whole(&self, at: usize, machine: &Machine) -> Result<(), String> {
        let Some(agent) = &machine.agent else { return Ok(()) };
        let device = machine.device;
        for ((task, by), (state, _)) in &self.ended {
            if *by == at && agent.task_state(*task) != Some(*state) {
                let now = agent.task_state(*task);
                return Err(format!(
                    "device {device} had ended task {task} as {state}; its journal now says {now:?}"
                ));
            }
        }
        Ok(())
    }

    /// A server tells a device that it has a result for good. Who is no target refuses what was pushed to it by mistake, and the site counts
    /// none of that.
    pub(crate) fn on_acknowledged(&mut self, task: TaskId, device: DeviceId, now: UnixMillis) {
        if self.tasks.get(&task).is_some_and(|facts| facts.targets.contains(&device)) {
            self.acknowledged.entry((task, device)).or_insert(now);
        }
    }

    /// Somebody has copied the disk of an agent's machine: the copy knows what that one knows.
    pub(crate) fn on_cloned(&mut self, from: usize, to: usize) {
        fn copied<V: Clone>(map: &mut BTreeMap<Entry, V>, from: usize, to: usize) {
            let of = map.iter().filter(|((_, by), _)| *by == from);
            let copies: Vec<_> = of.map(|((task, _), value)| ((*task, to), value.clone())).collect();
            map.extend(copies);
        }
        debug_assert_eq!(to, self.devices.len());
        self.devices.push(self.devices[from]);
        copied(&mut self.told, from, to);
        copied(&mut self.begun, from, to);
        copied(&mut self.ended, from, to);
        for set in [&mut self.cancels_heard, &mut self.cancelled_in_time, &mut self.cancels_said] {
            let copies: Vec<_> =
                set.iter().filter(|(_, by)| *by == from).map(|(task, _)| (*task, to)).collect();
            set.extend(copies);
        }
        if let Some(number) = self.session_numbers.get(&from).copied() {
            self.session_numbers.insert(to, number);
        }
    }

    /// An agent says that it refuses a task; one that has ended it otherwise does not do so.
    pub(crate) fn on_refusal_said(&mut self, task: TaskId, agent: usize) {
        let ended = self.ended.get(&(task, agent));
        if ended.is_none_or(|(state, _)| *state == TaskState::Refused) {
            self.refusals_said.insert((task, self.devices[agent]));
        }
    }

    /// Whether that is a refusal which the device has said, remembered or not.
    fn is_refusal_said(&self, task: TaskId, device: DeviceId, state: TaskState) -> bool {
        state == TaskState::Refused && self.refusals_said.contains(&(task, device))
    }

    /// What the agents that are this device have ended a task with.
    fn ends_of(&self, task: TaskId, device: DeviceId) -> BTreeSet<TaskState> {
        let agents = self.devices.iter().enumerate().filter(|(_, of)| **of == device);
        agents.filter_map(|(agent, _)| self.ended.get(&(task, agent))).map(|(state, _)| *state).collect()
    }

    /// The site shows a session as online, or as gone.
    pub(crate) fn on_shown(
        &mut self,
        device: DeviceId,
        session: (BootId, SessionNumber),
        is_online: bool,
    ) -> Result<(), String> {
        let key = (device, session);
        if is_online && self.gone.contains(&key) {
            return Err(format!(
                "device {device} is shown as online with session {}, which had gone",
                session.1
            ));
        }
        if !is_online {
            self.gone.insert(key);
        }
        Ok(())
    }

    /// Whether the device has answered the task, or said in a hello that it has ended.
    pub(crate) fn is_answered(&self, task: TaskId, device: DeviceId) -> bool {
        self.results_heard.contains(&(task, device)) || self.ends_named.contains(&(task, device))
    }

    /// The site has gone back to when it had these tasks, each with so many releases, cancelled or not.
    pub(crate) fn on_restored(
        &mut self,
        kept: &BTreeMap<TaskId, (usize, Option<UnixMillis>)>,
        bars: &BTreeSet<Bar>,
        now: UnixMillis,
    ) {
        self.bars = bars.iter().map(|bar| (*bar, now)).collect();
        self.counted.clear();
        self.gone.clear();
        for (task, facts) in &mut self.tasks {
            let (rings, cancelled) = kept.get(task).copied().unwrap_or((0, facts.cancelled));
            let is_cancel_lost = facts.cancelled.is_some() && cancelled.is_none();
            facts.is_disowned |= rings == 0 || is_cancel_lost;
            facts.rings.iter_mut().skip(rings).for_each(|ring| ring.is_disowned = true);
        }
    }

    /// Every task that an administrator was told to be started is there, unless the site has gone back to before. Invariant 1.
    pub(crate) fn has_all_tasks(&self, there: &BTreeSet<TaskId>) -> Result<(), String> {
        match self.tasks.keys().find(|task| self.counts_for(**task) && !there.contains(task)) {
            Some(task) => Err(format!("task {task} was started and is gone")),
            None => Ok(()),
        }
    }

    /// Whether the site must count what devices say of a task.
    fn counts_for(&self, task: TaskId) -> bool {
        self.tasks.get(&task).is_some_and(|facts| facts.rings.iter().any(|ring| !ring.is_disowned))
    }

    /// All final words that the site has: those that are new. Each is a target's, is what its device ended with, and stays. Invariant 5.
    pub(crate) fn on_counted(&mut self, finals: &[FinalWord]) -> Result<Vec<TaskState>, String> {
        let mut new = Vec::new();
        for &(task, device, state) in finals {
            let Some(facts) = self.tasks.get(&task) else {
                return Err(format!(
                    "the site counts an answer of device {device} to task {task}, which nobody started"
                ));
            };
            if !facts.targets.contains(&device) {
                return Err(format!(
                    "the site counts an answer of device {device} to task {task}; it is no target"
                ));
            }
            let journaled = self.ends_of(task, device);
            if !journaled.contains(&state) && !self.is_refusal_said(task, device, state) {
                return Err(format!(
                    "task {task} ended as {journaled:?} on device {device}; the site counts {state}"
                ));
            }
            match self.counted.insert((task, device), state) {
                None => new.push(state),
                Some(before) if before == state => {}
                // A repeatable action's real end, said by one of two that call themselves this device, after the other's.
                Some(TaskState::Interrupted) if facts.action.is_repeatable() && journaled.len() > 1 => {}
                Some(before) => {
                    return Err(format!(
                        "task {task} on device {device}: counted as {before}, then as {state}"
                    ));
                }
            }
        }
        if finals.len() < self.counted.len() {
            let there: BTreeSet<_> = finals.iter().map(|(task, device, _)| (*task, *device)).collect();
            let gone = self.counted.keys().find(|key| !there.contains(key));
            return Err(format!("the site no longer counts {gone:?}"));
        }
        Ok(new)
    }

    /// What the site has counted of a task and a device.
    pub(crate) fn counted(&self, task: TaskId, device: DeviceId) -> Option<TaskState> {
        self.counted.get(&(task, device)).copied()
    }

    /// Every end that the device's journal had by `until`, and every one that a server has acknowledged, has reached the site.
    /// Invariants 1 and 5.
    pub(crate) fn all_counted(&self, agent: usize, until: UnixMillis) -> Result<(), String> {
        let device = self.devices[agent];
        let due = self
            .ended
            .iter()
            .filter(|((task, by), (_, since))| *by == agent && *since <= until && self.counts_for(*task));
        for ((task, _), (state, _)) in due {
            let counted = self.counted.get(&(*task, device));
            let is_of_device = |counted: &TaskState| {
                self.ends_of(*task, device).contains(counted) || self.is_refusal_said(*task, device, *counted)
            };
            if !counted.is_some_and(is_of_device) {
                let said = if self.acknowledged.contains_key(&(*task, device)) {
                    "acknowledged"
                } else {
                    "not acknowledged"
                };
                return Err(format!(
                    "device {device} ended task {task} as {state}, which was {said}; the site has counted {counted:?}"
                ));
            }
        }
        let due = self
            .acknowledged
            .iter()
            .filter(|((task, by), since)| *by == device && **since <= until && self.counts_for(*task));
        match due.map(|(key, _)| key).find(|key| !self.counted.contains_key(key)) {
            Some((task, _)) => {
                Err(format!("the answer of device {device} to task {task} was acknowledged and is lost"))
            }
            None => Ok(()),
        }
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
