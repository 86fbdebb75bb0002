//! The tasks that are valid now, and what each device of this shard has of them.
//!
//! A release or a cancel that takes effect is a *step*, numbered upwards for the life of the hub. A session that was passed
//! over remembers only how many steps it has seen; what it missed are the tasks whose last step is later.
//!
//! For each task two sets of devices say who needs nothing any more:
//!
//! - `had`: the device's present session here was given the task, or its hello said that it knows it. A hello says anew. Once
//!   the task is cancelled, those of them that were told of it leave the set.
//! - `finished`: the device has said its last word, ever.
//!
//! Both outlive a reset with their task, so what was pushed is not pushed again when the rows come anew. This file knows
//! no session and sends nothing: it says what is due to a device, and notes that it was given.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bgb_protocol::ids::{DeviceId, TaskId, UnixMillis};
use bgb_protocol::message::KnownTask;
use bgb_protocol::state::TaskState;
use roaring::RoaringBitmap;
use slab::Slab;

use crate::order::TaskOrder;
use crate::output::OrderRefusal;

/// Cancels that are held for each task that may be active: those that came before their task, and those of tasks that a
/// reset took away.
const CANCELS_PER_ACTIVE_TASK: usize = 2;

/// Releases that may wait for their time, for each task that may be active: a roll-out has some dozen rings.
const HELD_PER_ACTIVE_TASK: usize = 16;

/// Tasks that are not here, of which it is remembered who has named them in a hello, for each task that may be active. A hello has a limit of
/// its own, and takes back what its device has named before: it takes many devices that make tasks up to have another's forgotten.
const NAMED_PER_ACTIVE_TASK: usize = 4;

/// Place of a task while it is active.
pub(crate) type Slot = usize;

#[derive(Debug)]
pub(crate) struct ActiveTasks {
    active_max: usize,
    tasks: Slab<ActiveTask>,
    by_id: BTreeMap<TaskId, Slot>,
    /// Tasks that have had a step, by their last one.
    by_step: BTreeMap<u64, Slot>,
    steps: u64,
    /// Releases whose time has not come, by that time and a number that tells them apart.
    held: BTreeMap<(UnixMillis, u64), HeldRelease>,
    held_ever: u64,
    /// Cancels until their task's expiry, also of tasks that are not here. A signed cancel stays true through a reset.
    cancels: BTreeMap<TaskId, Cancel>,
    /// Tasks that were active before a reset and have not come again.
    before_reset: BTreeMap<TaskId, ActiveTask>,
    /// Devices whose hello knew a task that was not here yet: they have it when it comes.
    named: BTreeMap<TaskId, RoaringBitmap>,
    /// Devices that may be in one of them; the sign-in of all others does not look.
    namers: RoaringBitmap,
    /// When tasks and cancels end.
    ends: BTreeSet<(UnixMillis, TaskId)>,
    /// For each slot the last sign-in whose hello knew its task.
    known_at: Vec<u64>,
    sign_ins: u64,
}

#[derive(Debug)]
struct ActiveTask {
    order: Arc<TaskOrder>,
    /// Root of the target set: tasks with the same one mean the same devices.
    root: Root,
    /// The order's own, kept here so that a sign-in need not look into the order for it.
    expires: UnixMillis,
    released: Released,
    /// The last step; 0 before the first.
    step: u64,
    had: RoaringBitmap,
    finished: RoaringBitmap,
    cancel: Option<Arc<[u8]>>,
}

type Root = [u8; 32];

/// Answers that a sign-in keeps of whether its device is in a target set. Looking into the bitmaps of 1,000 tasks costs a
/// cache miss or two for each; and most tasks mean one of a few dozen collections.
const MEMBERSHIPS: usize = 64;

/// One device's membership in target sets, asked once for each while its place is not needed by another.
struct Membership {
    device: DeviceId,
    answers: [Option<(Root, bool)>; MEMBERSHIPS],
}

#[derive(Debug)]
enum Released {
    Nobody,
    Some(RoaringBitmap),
    All,
}

#[derive(Debug)]
struct HeldRelease {
    task: TaskId,
    devices: Option<Arc<RoaringBitmap>>,
}

#[derive(Debug)]
struct Cancel {
    signed: Arc<[u8]>,
    expires: UnixMillis,
}

/// A release or a cancel that took effect: whom it may concern.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) number: u64,
    pub(crate) task: TaskId,
    /// `None`: all targets.
    pub(crate) devices: Option<Arc<RoaringBitmap>>,
}

/// What became of an order about a task.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is noted, and concerns nobody yet.
    Noted,
    /// It takes effect.
    Effective(Step),
    /// It came after the end of its task.
    Expired,
}

/// What is due to a device.
#[derive(Debug)]
pub(crate) enum Due {
    Push(Arc<TaskOrder>),
    Cancel(Arc<[u8]>),
}

/// What a hello's known tasks and the active ones come to.
#[derive(Debug, Default)]
pub(crate) struct SignInTasks {
    /// States that the server may not have heard.
    pub(crate) hints: Vec<(TaskId, TaskState)>,
    pub(crate) cancels: Vec<Arc<[u8]>>,
    /// Tasks to be pushed, with their steps, in the order of these.
    pub(crate) pushes: Vec<(u64, Slot)>,
}

impl ActiveTasks {
    pub(crate) fn new(active_max: usize) -> Self {
        Self {
            active_max,
            tasks: Slab::new(),
            by_id: BTreeMap::new(),
            by_step: BTreeMap::new(),
            steps: 0,
            held: BTreeMap::new(),
            held_ever: 0,
            cancels: BTreeMap::new(),
            before_reset: BTreeMap::new(),
            named: BTreeMap::new(),
            namers: RoaringBitmap::new(),
            ends: BTreeSet::new(),
            known_at: Vec::new(),
            sign_ins: 0,
        }
    }

    /// Takes a task's content, unless it is over by the site's time. The same again changes nothing.
    pub(crate) fn on_task(
        &mut self,
        order: Arc<TaskOrder>,
        site_time: UnixMillis,
    ) -> Result<Taken, OrderRefusal> {
        if order.expires <= site_time {
            return Ok(Taken::Expired);
        }
        if self.by_id.contains_key(&order.id) {
            return Ok(Taken::Noted);
        }
        if self.uncancelled() >= self.active_max {
            return Err(OrderRefusal::TooManyTasks { task: order.id, limit: self.active_max });
        }
        let cancel = self.cancels.get(&order.id).map(|cancel| Arc::clone(&cancel.signed));
        let (had, finished, cancel) = match self.before_reset.remove(&order.id) {
            Some(before) => (before.had, before.finished, cancel.or(before.cancel)),
            None => {
                let named = self.named.remove(&order.id).unwrap_or_default();
                (named & order.targets.devices(), RoaringBitmap::new(), cancel)
            }
        };
        let (id, expires) = (order.id, order.expires);
        let root = order.targets.digest().root;
        let task =
            ActiveTask { order, root, expires, released: Released::Nobody, step: 0, had, finished, cancel };
        let slot = self.tasks.insert(task);
        self.by_id.insert(id, slot);
        self.ends.insert((expires, id));
        if slot >= self.known_at.len() {
            self.known_at.resize(slot + 1, 0);
        }
        // Its cancel came before it did, and perhaps after some had it.
        Ok(self.cancel_step(slot).map_or(Taken::Noted, Taken::Effective))
    }

    /// The step that takes a cancelled task from those who have it and have not answered; `None` where it is not cancelled, or nobody has it.
    fn cancel_step(&mut self, slot: Slot) -> Option<Step> {
        let task = &self.tasks[slot];
        task.cancel.as_ref()?;
        let (concerned, id) = (&task.had - &task.finished, task.order.id);
        (!concerned.is_empty()).then(|| Step {
            number: self.step(slot),
            task: id,
            devices: Some(Arc::new(concerned)),
        })
    }

    /// Tasks that count against the limit. A cancelled one stays until its end, for the devices that have yet to hear of the cancel,
    /// but whoever cancels tasks makes room by that; how many of them there may be follows from the limit of cancels.
    fn uncancelled(&self) -> usize {
        self.tasks.iter().filter(|(_, task)| task.cancel.is_none()).count()
    }

    /// Takes a release, which takes effect when its own time and the task's have come.
    pub(crate) fn on_release(
        &mut self,
        task: TaskId,
        devices: Option<Arc<RoaringBitmap>>,
        from: UnixMillis,
        time: UnixMillis,
    ) -> Result<Taken, OrderRefusal> {
        let Some(&slot) = self.by_id.get(&task) else {
            return Ok(Taken::Expired);
        };
        let order = &self.tasks[slot].order;
        let effective = from.max(order.not_before);
        if effective >= order.expires {
            return Ok(Taken::Expired);
        }
        if effective <= time {
            return Ok(Taken::Effective(self.release(slot, devices)));
        }
        let limit = self.active_max * HELD_PER_ACTIVE_TASK;
        if self.held.len() >= limit {
            return Err(OrderRefusal::TooManyReleases { task, limit });
        }
        self.held_ever += 1;
        self.held.insert((effective, self.held_ever), HeldRelease { task, devices });
        Ok(Taken::Noted)
    }

    /// Takes a cancel, also of a task that is not here, unless that is over by the site's time.
    pub(crate) fn on_cancel(
        &mut self,
        task: TaskId,
        signed: Arc<[u8]>,
        expires: UnixMillis,
        site_time: UnixMillis,
    ) -> Result<Taken, OrderRefusal> {
        if expires <= site_time {
            return Ok(Taken::Expired);
        }
        let limit = self.active_max * CANCELS_PER_ACTIVE_TASK;
        if self.cancels.len() >= limit && !self.cancels.contains_key(&task) {
            return Err(OrderRefusal::TooManyCancels { task, limit });
        }
        let expires = self.cancels.get(&task).map_or(expires, |before| before.expires.max(expires));
        self.cancels.insert(task, Cancel { signed: Arc::clone(&signed), expires });
        self.ends.insert((expires, task));
        let Some(&slot) = self.by_id.get(&task) else {
            return Ok(Taken::Noted);
        };
        self.tasks[slot].cancel = Some(signed);
        let concerned = &self.tasks[slot].had - &self.tasks[slot].finished;
        let number = self.step(slot);
        Ok(Taken::Effective(Step { number, task, devices: Some(Arc::new(concerned)) }))
    }

    /// Forgets all tasks and releases but what the devices have of them.
    pub(crate) fn on_reset(&mut self) {
        for task in self.tasks.drain() {
            self.before_reset.insert(task.order.id, task);
        }
        // Ids sort by the time of their making: the oldest go first.
        while self.before_reset.len() > 2 * self.active_max {
            self.before_reset.pop_first();
        }
        self.by_id.clear();
        self.by_step.clear();
        self.held.clear();
    }

    /// All rows have come again: what has not is gone.
    pub(crate) fn on_reload_over(&mut self) {
        self.before_reset.clear();
        self.ends.retain(|(_, id)| self.by_id.contains_key(id) || self.cancels.contains_key(id));
    }

    /// The next release whose time has come; it takes effect by that.
    pub(crate) fn poll_held(&mut self, time: UnixMillis) -> Option<Step> {
        while let Some(entry) = self.held.first_entry().filter(|entry| entry.key().0 <= time) {
            let HeldRelease { task, devices } = entry.remove();
            if let Some(&slot) = self.by_id.get(&task) {
                return Some(self.release(slot, devices));
            }
        }
        None
    }

    /// Drops tasks and cancels whose time is over, by the site's time.
    pub(crate) fn expire(&mut self, time: UnixMillis) {
        while let Some(&(expires, id)) = self.ends.first().filter(|(expires, _)| *expires <= time) {
            self.ends.pop_first();
            if self.cancels.get(&id).is_some_and(|cancel| cancel.expires <= expires) {
                self.cancels.remove(&id);
            }
            if self.before_reset.get(&id).is_some_and(|task| task.order.expires <= expires) {
                self.before_reset.remove(&id);
            }
            if let Some(&slot) =
                self.by_id.get(&id).filter(|slot| self.tasks[**slot].order.expires <= expires)
            {
                let task = self.tasks.remove(slot);
                self.by_id.remove(&id);
                self.by_step.remove(&task.step);
            }
        }
    }

    /// When a held release is next due, by the server's time.
    pub(crate) fn next_release(&self) -> Option<UnixMillis> {
        self.held.first_key_value().map(|((time, _), _)| *time)
    }

    /// When something ends next, by the site's time.
    pub(crate) fn next_end(&self) -> Option<UnixMillis> {
        self.ends.first().map(|(time, _)| *time)
    }

    /// Steps so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// The task whose last step is the first one after `step`.
    pub(crate) fn after(&self, step: u64) -> Option<(u64, Slot)> {
        let mut later = self.by_step.range((Bound::Excluded(step), Bound::Unbounded));
        later.next().map(|(step, slot)| (*step, *slot))
    }

    /// An active task's place and content.
    pub(crate) fn active(&self, task: TaskId) -> Option<(Slot, &Arc<TaskOrder>)> {
        let slot = *self.by_id.get(&task)?;
        Some((slot, &self.tasks[slot].order))
    }

    /// Whether `task` is active, or was before a reset, and `device` is a target of it.
    pub(crate) fn concerns(&self, task: TaskId, device: DeviceId) -> bool {
        let active = self.by_id.get(&task).map(|slot| &self.tasks[*slot]);
        active
            .or_else(|| self.before_reset.get(&task))
            .is_some_and(|task| task.order.targets.contains(device))
    }

    /// What is due to `device` of the task at `slot`; it counts as given by that.
    pub(crate) fn poll_due(&mut self, slot: Slot, device: DeviceId, time: UnixMillis) -> Option<Due> {
        let task = &mut self.tasks[slot];
        if let Some(cancel) = &task.cancel {
            let concerns = task.had.remove(device.0) && !task.finished.contains(device.0);
            return concerns.then(|| Due::Cancel(Arc::clone(cancel)));
        }
        let is_due =
            task.is_open_to(device, time) && task.order.targets.contains(device) && task.had.insert(device.0);
        is_due.then(|| Due::Push(Arc::clone(&task.order)))
    }

    /// The device has said its last word on the task.
    pub(crate) fn on_final(&mut self, task: TaskId, device: DeviceId) {
        let active = self.by_id.get(&task).map(|slot| &mut self.tasks[*slot]);
        let task = active.or_else(|| self.before_reset.get_mut(&task));
        if let Some(task) = task.filter(|task| task.order.targets.contains(device)) {
            task.finished.insert(device.0);
        }
    }

    /// Notes what the hello of `device` knows, and says what is due to it. The pushes are not given by that: each
    /// goes through [`poll_due`](Self::poll_due).
    pub(crate) fn on_sign_in(
        &mut self,
        device: DeviceId,
        known: &[KnownTask],
        time: UnixMillis,
    ) -> SignInTasks {
        self.sign_ins += 1;
        let mut found = SignInTasks::default();
        for task in self.before_reset.values_mut() {
            task.had.remove(device.0);
        }
        if self.namers.remove(device.0) {
            self.named.retain(|_, devices| {
                devices.remove(device.0);
                !devices.is_empty()
            });
        }
        for known in known {
            self.on_known(device, *known, &mut found);
        }
        let mut membership = Membership::of(device);
        for (slot, task) in &mut self.tasks {
            if self.known_at[slot] == self.sign_ins || !membership.holds_for(task) {
                continue;
            }
            task.had.remove(device.0);
            if task.cancel.is_none() && task.is_open_to(device, time) {
                found.pushes.push((task.step, slot));
            }
        }
        found.pushes.sort_unstable();
        found
    }

    fn on_known(&mut self, device: DeviceId, known: KnownTask, found: &mut SignInTasks) {
        let KnownTask { task: id, state } = known;
        let cancel = self.cancels.get(&id).map(|cancel| Arc::clone(&cancel.signed));
        let active = self.by_id.get(&id).copied();
        let task = match active {
            Some(slot) => Some(&mut self.tasks[slot]),
            None => self.before_reset.get_mut(&id),
        };
        match task.filter(|task| task.order.targets.contains(device)) {
            Some(task) if state.is_final() => _ = task.finished.insert(device.0),
            Some(task) => {
                if cancel.is_some() {
                    task.had.remove(device.0);
                } else {
                    task.had.insert(device.0);
                }
                if matches!(state, TaskState::Received | TaskState::Running) {
                    found.hints.push((id, state));
                }
            }
            None if active.is_some() => return,
            // One that is told of the cancel now is not told of it again when the task comes.
            None if !state.is_final() && cancel.is_none() => self.note_named(id, device),
            None => {}
        }
        if let Some(slot) = active {
            self.known_at[slot] = self.sign_ins;
        }
        if let Some(cancel) = cancel.filter(|_| !state.is_final()) {
            found.cancels.push(cancel);
        }
    }

    /// A hello knows a task that is not here, and has not ended it.
    fn note_named(&mut self, task: TaskId, device: DeviceId) {
        // Ids sort by the time of their making: the oldest go first.
        while self.named.len() >= NAMED_PER_ACTIVE_TASK * self.active_max && !self.named.contains_key(&task) {
            self.named.pop_first();
        }
        self.named.entry(task).or_default().insert(device.0);
        self.namers.insert(device.0);
    }

    fn release(&mut self, slot: Slot, devices: Option<Arc<RoaringBitmap>>) -> Step {
        let task = &mut self.tasks[slot];
        match (&mut task.released, &devices) {
            (Released::All, _) => {}
            (released, None) => *released = Released::All,
            (Released::Some(before), Some(devices)) => *before |= &**devices,
            (released @ Released::Nobody, Some(devices)) => *released = Released::Some((**devices).clone()),
        }
        let id = task.order.id;
        Step { number: self.step(slot), task: id, devices }
    }

    fn step(&mut self, slot: Slot) -> u64 {
        self.steps += 1;
        let before = std::mem::replace(&mut self.tasks[slot].step, self.steps);
        self.by_step.remove(&before);
        self.by_step.insert(self.steps, slot);
        self.steps
    }
}

impl ActiveTask {
    /// Whether `device`, a target, may have the task now, for all that is known but whether it has it already. The task
    /// is not cancelled.
    fn is_open_to(&self, device: DeviceId, time: UnixMillis) -> bool {
        let is_released = match &self.released {
            Released::Nobody => false,
            Released::Some(devices) => devices.contains(device.0),
            Released::All => true,
        };
        is_released && self.expires > time && !self.finished.contains(device.0)
    }
}

impl Membership {
    fn of(device: DeviceId) -> Self {
        Self { device, answers: [None; MEMBERSHIPS] }
    }

    /// Whether the device is a target of `task`.
    fn holds_for(&mut self, task: &ActiveTask) -> bool {
        let answer = &mut self.answers[usize::from(task.root[0]) % MEMBERSHIPS];
        match answer {
            Some((root, is_target)) if *root == task.root => *is_target,
            _ => answer.insert((task.root, task.order.targets.contains(self.device))).1,
        }
    }
}
