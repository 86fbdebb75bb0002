//! What must have reached whom: for each session the tasks that it has, for each task who may have it, by the hub's own contract.
//!
//! It sees every output and knows no inside of the hub. Laws: an output names an open channel, and `Close` is its last word on it; a
//! device is online once; nothing is pushed twice on one session, nor to a device that is no target, has answered, or whose task is
//! cancelled, not yet valid or over; a cancel goes to those who have its task, once; results are numbered without a gap and acknowledged once
//! they are durable; policy comes whole, with proofs; the head is the newest. And once the hub has no more to do, whoever reads has everything
//! that is due, and was told of the cancel of everything that it has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bgb_hub::{ChannelKey, Now, Output, PolicyOrder, PushFrames, TICK_MS, TaskOrder, Tick};
use bgb_protocol::file::presence::{Presence, PresenceRow};
use bgb_protocol::ids::{BootId, DeviceId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::message::{KnownTask, PolicyPart, ServerMessage};
use roaring::RoaringBitmap;

const START: UnixMillis = UnixMillis(1_700_000_000_000);
/// Tasks that may be active at a time, and how many the hub remembers through a reset.
pub(super) const ACTIVE_TASKS_MAX: usize = 4;
/// Heads by which a server tells the site's time (docs/promises.md).
const HEADS: usize = 4;
const REMEMBERED_MAX: usize = 2 * ACTIVE_TASKS_MAX;

/// A channel that is open.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) device: DeviceId,
    pub(super) is_online: bool,
    is_choked: bool,
    has: BTreeSet<TaskId>,
    /// Tasks that its hello named and that the hub did not hold then, which it may take for had as long as it remembers; and those that it named
    /// more than once, of whose cancel it is told as often.
    named: Vec<TaskId>,
    claimed: Option<(BootId, SessionNumber)>,
    /// Requests for policy that it made.
    requests: BTreeSet<u32>,
    /// The answer that is under way: its request, the documents in it so far, and how many there are.
    answer: Option<(u32, Vec<usize>, u16)>,
}

#[derive(Debug)]
struct SeenTask {
    order: Arc<TaskOrder>,
    releases: Vec<Release>,
    /// Who was online while a wall clock that was ahead made it look over. The hub is told everything anew when that is set back; until then
    /// those may lack it.
    passed_over: BTreeSet<ChannelKey>,
}

/// To whom a task is released, `None` for all targets, and from when on: what has once taken effect stays, also where the wall clock is set back.
#[derive(Debug)]
struct Release {
    devices: Option<Arc<RoaringBitmap>>,
    from: UnixMillis,
    has_come: bool,
}

impl SeenTask {
    fn is_released_to(&self, device: DeviceId) -> bool {
        self.releases.iter().any(|release| {
            release.has_come && release.devices.as_ref().is_none_or(|devices| devices.contains(device.0))
        })
    }
}

#[derive(Default)]
pub(super) struct Model {
    pub(super) tick: u64,
    wall_ahead_ms: i64,
    /// The times of the last heads, the newest first, and the ticks at which they were heard.
    heads: VecDeque<(UnixMillis, u64)>,
    pub(super) channels: BTreeMap<ChannelKey, Seen>,
    tasks: BTreeMap<TaskId, SeenTask>,
    /// Tasks as they were before a reset, which has taken them away.
    remembered: BTreeMap<TaskId, SeenTask>,
    /// Cancels, until their task's end.
    cancelled: BTreeMap<TaskId, UnixMillis>,
    finished: BTreeSet<(DeviceId, TaskId)>,
    /// Documents by the number that stands for their signed bytes.
    policies: Vec<Arc<PolicyOrder>>,
    pub(super) kept: u64,
    durable: u64,
    unacknowledged: VecDeque<(u64, ChannelKey, TaskId)>,
    frames: PushFrames,
}

impl Model {
    pub(super) fn now(&self) -> Now {
        Now { tick: Tick(self.tick), unix: self.wall() }
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(START.plus(self.tick * TICK_MS).0.saturating_add_signed(self.wall_ahead_ms))
    }

    /// The server's time: the wall clock, or the heads' where that is later.
    pub(super) fn time(&self) -> UnixMillis {
        self.site_time().max(self.wall())
    }

    fn head(&self) -> Option<UnixMillis> {
        self.heads.front().map(|(time, _)| *time)
    }

    /// What is released has come about, by now.
    pub(super) fn pass_time(&mut self) {
        let time = self.time();
        for task in self.tasks.values_mut() {
            if task.order.expires <= time {
                let online = self.channels.iter().filter(|(_, seen)| seen.is_online);
                task.passed_over.extend(online.map(|(channel, _)| *channel));
            }
            for release in &mut task.releases {
                release.has_come |= release.from <= time;
            }
        }
    }

    /// The site's time: what heads have told, or the wall clock where there is none. What is over by it may be forgotten.
    fn site_time(&self) -> UnixMillis {
        let leads_to = |(time, heard): &(UnixMillis, u64)| time.plus((self.tick - heard) * TICK_MS);
        self.heads.iter().map(leads_to).max().unwrap_or_else(|| self.wall())
    }

    pub(super) fn at(&self, place: u32) -> Option<ChannelKey> {
        self.channels.keys().find(|channel| channel.index == place).copied()
    }

    fn online(&self) -> impl Iterator<Item = (&ChannelKey, &Seen)> {
        self.channels.iter().filter(|(_, seen)| seen.is_online)
    }

    pub(super) fn on_wall_jump(&mut self, by_ms: i64) {
        self.wall_ahead_ms += by_ms;
    }

    pub(super) fn on_opened(&mut self, channel: ChannelKey, device: DeviceId) {
        let seen = Seen {
            device,
            is_online: false,
            is_choked: false,
            has: BTreeSet::new(),
            named: Vec::new(),
            claimed: None,
            requests: BTreeSet::new(),
            answer: None,
        };
        self.channels.insert(channel, seen);
    }

    pub(super) fn on_closed(&mut self, channel: ChannelKey) {
        assert!(
            self.channels.remove(&channel).is_some_and(|seen| !seen.is_online),
            "a channel is closed that has ended, or stays online"
        );
    }

    pub(super) fn on_flow(&mut self, channel: ChannelKey, is_choked: bool) {
        if let Some(seen) = self.channels.get_mut(&channel) {
            seen.is_choked = is_choked && seen.is_online;
        }
    }

    pub(super) fn on_policy_request(&mut self, channel: ChannelKey, request: u32) {
        if let Some(seen) = self.channels.get_mut(&channel) {
            seen.requests.insert(request);
        }
    }

    /// What the claim's hello knows of tasks that the hub holds, active or remembered.
    pub(super) fn on_granted(&mut self, channel: ChannelKey, known: &[KnownTask]) {
        let device = self.channels[&channel].device;
        for KnownTask { task, state } in known {
            let is_held = self.is_held_for(*task, device);
            let Some(seen) = self.channels.get_mut(&channel) else { continue };
            match (is_held, state.is_final()) {
                (true, true) => _ = self.finished.insert((device, *task)),
                (true, false) if seen.has.insert(*task) => {}
                (_, false) => seen.named.push(*task),
                (false, true) => {}
            }
        }
    }

    pub(super) fn on_claim(&mut self, channel: ChannelKey, said: (BootId, SessionNumber)) {
        let seen = self.channels.get_mut(&channel).expect("a channel claims that is open");
        assert!(seen.claimed.is_none(), "a channel claims twice");
        seen.claimed = Some(said);
    }

    /// A result whose device is the channel's own.
    pub(super) fn on_own_result(&mut self, channel: ChannelKey, task: TaskId) {
        let Seen { device, is_online, .. } = self.channels[&channel];
        if is_online && self.is_held_for(task, device) {
            self.finished.insert((device, task));
        }
    }

    fn is_held_for(&self, task: TaskId, device: DeviceId) -> bool {
        let held = self.tasks.get(&task).or_else(|| self.remembered.get(&task));
        held.is_some_and(|held| held.order.targets.contains(device))
    }

    pub(super) fn on_task(&mut self, order: Arc<TaskOrder>) {
        if order.expires > self.site_time() {
            let task = SeenTask { order, releases: Vec::new(), passed_over: BTreeSet::new() };
            self.tasks.entry(task.order.id).or_insert(task);
        }
    }

    /// There was room for the task, so that what was remembered of it goes on with it.
    pub(super) fn on_task_taken(&mut self, task: TaskId) {
        if self.tasks.contains_key(&task) {
            self.remembered.remove(&task);
        }
    }

    pub(super) fn on_release(&mut self, task: TaskId, devices: Option<Arc<RoaringBitmap>>, from: UnixMillis) {
        if let Some(seen) = self.tasks.get_mut(&task) {
            let from = from.max(seen.order.not_before);
            if from < seen.order.expires {
                seen.releases.push(Release { devices, from, has_come: false });
            }
        }
    }

    pub(super) fn on_cancel(&mut self, task: TaskId, expires: UnixMillis) {
        if expires > self.site_time() {
            self.cancelled.insert(task, expires);
        }
    }

    pub(super) fn on_head(&mut self, time: UnixMillis) {
        if self.head().is_none_or(|newest| time > newest) {
            self.heads.push_front((time, self.tick));
            self.heads.truncate(HEADS);
        }
    }

    /// The document's number, which is to stand for its signed bytes.
    pub(super) fn next_policy(&self) -> usize {
        self.policies.len()
    }

    pub(super) fn policy(&self, number: usize) -> Option<&Arc<PolicyOrder>> {
        self.policies.get(number)
    }

    pub(super) fn on_policy(&mut self, order: &Arc<PolicyOrder>) {
        self.policies.push(Arc::clone(order));
    }

    pub(super) fn on_reset(&mut self) {
        for (id, task) in std::mem::take(&mut self.tasks) {
            self.remembered.insert(id, task);
        }
        while self.remembered.len() > REMEMBERED_MAX {
            let oldest = self.remembered.pop_first().map(|(task, _)| task);
            oldest.into_iter().for_each(|task| self.forget_progress(task));
        }
    }

    /// What the devices have of tasks that did not come again is forgotten.
    pub(super) fn on_reload_over(&mut self) {
        for task in std::mem::take(&mut self.remembered).into_keys() {
            self.forget_progress(task);
        }
    }

    pub(super) fn on_durable(&mut self, up_to: u64) {
        self.durable = self.durable.max(up_to);
    }

    fn forget_progress(&mut self, task: TaskId) {
        self.finished.retain(|(_, of)| *of != task);
        for seen in self.channels.values_mut() {
            seen.has.remove(&task);
        }
    }

    pub(super) fn drop_expired(&mut self) {
        let time = self.site_time();
        let both = self.tasks.iter().chain(&self.remembered);
        let over: Vec<_> = both.filter(|(_, task)| task.order.expires <= time).map(|(id, _)| *id).collect();
        for task in over {
            self.tasks.remove(&task);
            self.remembered.remove(&task);
            self.forget_progress(task);
        }
        self.cancelled.retain(|_, until| *until > time);
    }

    /// Checks one output and notes it. Claims are the caller's to answer.
    pub(super) fn see(&mut self, output: &Output) {
        match output {
            Output::Claim { .. } => panic!("nobody said hello"),
            Output::Send { channel, message } => self.see_message(*channel, message),
            Output::Release { channel, device } => {
                let seen = &self.channels[channel];
                assert!(seen.device == *device && seen.claimed.is_some(), "what was not claimed is released");
            }
            Output::Push { channel, task, device } => self.see_push(*channel, task, *device),
            Output::Close { channel, .. } => {
                let seen = self.channels.remove(channel).expect("a channel is closed once");
                assert!(!seen.is_online, "offline comes before the close");
            }
            Output::Online { channel, row, .. } => self.see_online(*channel, row),
            Output::Offline { row } => {
                assert!(matches!(row.presence, Presence::Offline { .. }));
                let mut sessions = self.channels.values_mut().filter(|seen| seen.is_online);
                let seen = sessions.find(|seen| seen.device == row.device).expect("it was online");
                assert_eq!(seen.claimed, Some((row.boot, row.session)), "another session is said to be over");
                seen.is_online = false;
            }
            Output::Hint { row } => assert!(self.is_online(row.device), "a hint of one who is not online"),
            Output::Keep { number, channel, row } => {
                self.kept += 1;
                assert_eq!(*number, self.kept, "results are numbered without a gap");
                let seen = &self.channels[channel];
                assert!(seen.is_online && seen.device == row.device, "a result of one who is not online");
                self.unacknowledged.push_back((*number, *channel, row.task));
            }
            Output::OrderRefused { .. } => panic!("an order is refused out of turn"),
        }
    }

    fn see_online(&mut self, channel: ChannelKey, row: &PresenceRow) {
        assert!(matches!(row.presence, Presence::Online(_)));
        assert!(!self.is_online(row.device), "a device is online twice");
        let seen = self.channels.get_mut(&channel).expect("who is online has a channel");
        assert!(seen.device == row.device && seen.claimed == Some((row.boot, row.session)));
        seen.is_online = true;
        // What looks over now passes it by.
        self.pass_time();
    }

    fn see_push(&mut self, channel: ChannelKey, task: &Arc<TaskOrder>, device: DeviceId) {
        let time = self.time();
        self.pass_time();
        let is_released = self.tasks.get(&task.id).map(|seen| seen.is_released_to(device));
        assert_eq!(is_released, Some(true), "a task is pushed that there is not, or that was not released");
        assert!(task.targets.contains(device), "a task is pushed to no target");
        assert!(task.expires > time, "a task is pushed that is over");
        assert!(!self.cancelled.contains_key(&task.id), "a cancelled task is pushed");
        assert!(!self.finished.contains(&(device, task.id)), "a task is pushed that was answered");
        let mut frame = Vec::new();
        assert!(task.encode_push(device, &mut frame), "a push has no proof");
        assert_eq!(self.frames.frame(task, device), frame, "a shared frame is another one");
        let seen = self.channels.get_mut(&channel).expect("a push names an open channel");
        assert!(seen.is_online && !seen.is_choked && seen.device == device, "a push to {seen:?}");
        assert!(seen.has.insert(task.id), "a task is pushed twice on one session");
    }

    fn see_message(&mut self, channel: ChannelKey, message: &ServerMessage) {
        let seen = self.channels.get_mut(&channel).expect("a message names an open channel");
        match message {
            ServerMessage::Welcome(_) | ServerMessage::KeepaliveAnswer(_) => {
                let head = match message {
                    ServerMessage::Welcome(welcome) => &welcome.head,
                    ServerMessage::KeepaliveAnswer(head) => head,
                    _ => unreachable!("it is one of these two"),
                };
                let newest = self.head().map(|time| time.0.to_be_bytes().to_vec()).unwrap_or_default();
                assert_eq!(*head, newest, "the head that is told is not the newest");
            }
            ServerMessage::ResultKept(task) => {
                let open = &self.channels;
                self.unacknowledged.retain(|(_, channel, _)| open.contains_key(channel));
                let first = self.unacknowledged.pop_front();
                assert!(
                    first.is_some_and(
                        |(number, of, kept)| number <= self.durable && (of, kept) == (channel, *task)
                    ),
                    "a result is acknowledged that is not durable, or twice"
                );
            }
            ServerMessage::Policy(part) => see_part(seen, part, &self.policies),
            ServerMessage::Cancel(signed) => {
                let task =
                    TaskId::from_bytes(signed[..].try_into().expect("a cancel's bytes are its task's here"));
                assert!(seen.is_online, "a cancel for one who is not online");
                assert!(self.cancelled.contains_key(&task), "a task is taken back that is not cancelled");
                let named = seen.named.iter().position(|named| *named == task);
                let has = seen.has.remove(&task) || named.map(|place| seen.named.remove(place)).is_some();
                assert!(has, "a task is taken back from one who does not have it");
            }
            ServerMessage::Task(_) | ServerMessage::Drain(_) | ServerMessage::Refused(_) => {}
        }
    }

    fn is_online(&self, device: DeviceId) -> bool {
        self.online().any(|(_, seen)| seen.device == device)
    }

    /// An order that was well-formed was not followed: as the last one's own word says.
    pub(super) fn on_refused(&mut self, refusal: &bgb_hub::OrderRefusal) {
        use bgb_hub::OrderRefusal as Refusal;
        match refusal {
            Refusal::TooManyTasks { task, .. } => {
                self.tasks.remove(task).expect("the task that is refused is the one that came");
            }
            Refusal::TooManyCancels { task, .. } => _ = self.cancelled.remove(task),
            Refusal::TooManyReleases { task, .. } => {
                self.tasks.get_mut(task).and_then(|seen| seen.releases.pop()).expect("it came just now");
            }
            Refusal::TooManyPolicies { .. } | Refusal::TooManyRevoked { .. } => {
                panic!("no limit is near: {refusal}")
            }
        }
    }

    /// Once there is no more to do, everybody who reads has what is due.
    pub(super) fn check_settled(&self) {
        let time = self.time();
        for (channel, seen) in self.online().filter(|(_, seen)| !seen.is_choked) {
            for (id, task) in &self.tasks {
                let is_due = task.is_released_to(seen.device)
                    && task.order.expires > time
                    && !task.passed_over.contains(channel)
                    && task.order.targets.contains(seen.device)
                    && !self.cancelled.contains_key(id)
                    && !self.finished.contains(&(seen.device, *id));
                let has = seen.has.contains(id) || seen.named.contains(id);
                assert!(!is_due || has, "{channel:?} lacks task {id}");
                let is_over = !self.cancelled.contains_key(id) || self.finished.contains(&(seen.device, *id));
                assert!(
                    is_over || !seen.has.contains(id),
                    "{channel:?} was not told that task {id} is cancelled"
                );
            }
        }
        let mut waiting = self.unacknowledged.iter().filter(|(number, ..)| *number <= self.durable);
        assert!(
            waiting.all(|(_, channel, _)| !self.channels.contains_key(channel)),
            "a durable result is not acknowledged"
        );
    }

    pub(super) fn online_count(&self) -> usize {
        self.online().count()
    }
}

/// An answer has the documents that it announces, each once, for this device and with its proof, the most important first.
fn see_part(seen: &mut Seen, part: &PolicyPart, policies: &[Arc<PolicyOrder>]) {
    assert!(seen.is_online && !seen.is_choked, "policy for one who is not online, or does not read");
    assert!(seen.requests.contains(&part.request), "policy that nobody asked for");
    if part.index == 0 {
        assert!(seen.answer.is_none(), "an answer begins before the last one is whole");
        seen.answer = Some((part.request, Vec::new(), part.count));
    }
    let (request, documents, count) = seen.answer.as_mut().expect("an answer begins with its first part");
    assert!(*request == part.request && *count == part.count && documents.len() == usize::from(part.index));
    let Some(document) = &part.document else {
        assert_eq!(part.count, 0, "a part without its document");
        seen.answer = None;
        return;
    };
    let number = usize::from(u16::from_be_bytes(document.signed[..].try_into().expect("a number")));
    let order = &policies[number];
    assert!(!order.withdrawn && order.is_for(seen.device), "a document that is not for this device");
    if let Some(devices) = &order.devices {
        assert_eq!(devices.digest().verify(seen.device, &document.proof), Ok(()));
    }
    if let Some(before) = documents.last().map(|before| &policies[*before]) {
        assert!(before.priority >= order.priority, "a document comes before a more important one");
    }
    assert!(documents.iter().all(|other| policies[*other].name != order.name), "a document comes twice");
    documents.push(number);
    if documents.len() == usize::from(part.count) {
        seen.answer = None;
    }
}
