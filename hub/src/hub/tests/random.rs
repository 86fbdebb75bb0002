//! Random lives of a hub beside a model that says what must have reached whom.
//!
//! The model keeps for each session the tasks that it has, and for each task who may have it. After every input, once the
//! hub has no more to do, every session that reads has exactly what is due to it: nothing missing, nothing twice, nothing that
//! is for another device, expired, cancelled or answered.

use std::collections::{BTreeMap, BTreeSet};

use bgb_protocol::file::results::ResultRow;
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::DeviceKey;
use bgb_protocol::state::TaskState;
use proptest::prelude::*;

use super::*;

const DEVICES: u32 = 6;
const TASKS: u8 = 5;
const PLACES: u32 = 8;

#[derive(Clone, Debug)]
enum Op {
    Open { place: u32, device: u32 },
    Hello { place: u32, known: Vec<(u8, bool)>, granted: bool },
    Say(u32, Word),
    Gone(u32),
    Displace(u32),
    Choke(u32),
    Flow(u32),
    Task { number: u8, targets: u8, start_secs: u64, validity_secs: u64 },
    Release { number: u8, devices: Option<u8>, from_secs: u64 },
    Cancel { number: u8 },
    Block(u32),
    Unblock(u32),
    Revoke(u32),
    Supersede(u32),
    Reset,
    SignIns(bool),
    Durable(u64),
    Pass(u64),
    WallJumps(u64),
}

#[derive(Clone, Debug)]
enum Word {
    Keepalive,
    Received(u8),
    Result { number: u8, own: bool },
    Policy,
    Goodbye,
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        4 => Just(Word::Keepalive),
        2 => (0..TASKS).prop_map(Word::Received),
        4 => (0..TASKS, prop::bool::weighted(0.9)).prop_map(|(number, own)| Word::Result { number, own }),
        2 => Just(Word::Policy),
        1 => Just(Word::Goodbye),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let place = 0..PLACES;
    let device = 0..DEVICES;
    let known = prop::collection::vec((0..TASKS, any::<bool>()), 0..4);
    prop_oneof![
        8 => (place.clone(), device.clone()).prop_map(|(place, device)| Op::Open { place, device }),
        10 => (place.clone(), known, prop::bool::weighted(0.9))
            .prop_map(|(place, known, granted)| Op::Hello { place, known, granted }),
        8 => (place.clone(), word()).prop_map(|(place, word)| Op::Say(place, word)),
        2 => place.clone().prop_map(Op::Gone),
        1 => place.clone().prop_map(Op::Displace),
        5 => place.clone().prop_map(Op::Choke),
        5 => place.prop_map(Op::Flow),
        8 => (0..TASKS, 1u8..64, 0u64..90, 1u64..400).prop_map(|(number, targets, start_secs, validity_secs)| {
            Op::Task { number, targets, start_secs, validity_secs }
        }),
        8 => (0..TASKS, prop::option::of(any::<u8>()), 0u64..120)
            .prop_map(|(number, devices, from_secs)| Op::Release { number, devices, from_secs }),
        2 => (0..TASKS).prop_map(|number| Op::Cancel { number }),
        1 => device.clone().prop_map(Op::Block),
        2 => device.clone().prop_map(Op::Unblock),
        1 => device.clone().prop_map(Op::Revoke),
        1 => device.prop_map(Op::Supersede),
        1 => Just(Op::Reset),
        2 => prop::bool::weighted(0.8).prop_map(Op::SignIns),
        2 => (0u64..20).prop_map(Op::Durable),
        6 => (0u64..600).prop_map(Op::Pass),
        1 => (0u64..60_000).prop_map(Op::WallJumps),
    ]
}

/// What the model knows of a channel that is open.
#[derive(Debug)]
struct Seen {
    device: u32,
    is_online: bool,
    is_choked: bool,
    has: BTreeSet<u8>,
}

#[derive(Debug)]
struct SeenTask {
    targets: BTreeSet<u32>,
    not_before: UnixMillis,
    expires: UnixMillis,
    /// Devices and the time from which they may have it.
    releases: Vec<(Option<BTreeSet<u32>>, UnixMillis)>,
}

struct Model {
    rig: Rig,
    key: DeviceKey,
    channels: BTreeMap<ChannelKey, Seen>,
    tasks: BTreeMap<u8, SeenTask>,
    cancelled: BTreeMap<u8, UnixMillis>,
    /// By device and task.
    finished: BTreeSet<(u32, u8)>,
    /// Tasks as they were before a reset, which has taken them away.
    remembered: BTreeMap<u8, SeenTask>,
    /// Devices whose last hello knew a task that the hub did not hold, and had not ended it.
    named: BTreeMap<u8, BTreeSet<u32>>,
    kept: u64,
}

impl Model {
    fn new() -> Self {
        let (key, _) = DeviceKey::generate().unwrap();
        Self {
            rig: Rig::with(|options| options.keepalive_secs = 30),
            key,
            channels: BTreeMap::new(),
            tasks: BTreeMap::new(),
            cancelled: BTreeMap::new(),
            finished: BTreeSet::new(),
            remembered: BTreeMap::new(),
            named: BTreeMap::new(),
            kept: 0,
        }
    }

    fn at(&self, place: u32) -> Option<ChannelKey> {
        self.channels.keys().find(|channel| channel.index == place).copied()
    }

    fn online(&self) -> impl Iterator<Item = (&ChannelKey, &Seen)> {
        self.channels.iter().filter(|(_, seen)| seen.is_online)
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Open { place, device } => self.open(place, device),
            Op::Hello { place, known, granted } => self.hello(place, &known, granted),
            Op::Say(place, word) => self.say(place, &word),
            Op::Gone(place) => {
                if let Some(channel) = self.at(place) {
                    self.input(Input::Closed { channel, reason: CloseReason::PeerClosed });
                    assert!(self.channels.remove(&channel).is_some_and(|seen| !seen.is_online));
                }
            }
            Op::Displace(place) => self.with(place, |channel| Input::Displaced { channel }),
            Op::Choke(place) => {
                if let Some(seen) = self.at(place).and_then(|channel| self.channels.get_mut(&channel)) {
                    seen.is_choked = seen.is_online;
                }
                self.with(place, |channel| Input::Choked { channel });
            }
            Op::Flow(place) => {
                if let Some(seen) = self.at(place).and_then(|channel| self.channels.get_mut(&channel)) {
                    seen.is_choked = false;
                }
                self.with(place, |channel| Input::Flowing { channel });
            }
            Op::Task { number, targets, start_secs, validity_secs } => {
                self.task(number, targets, start_secs * 1000, validity_secs * 1000);
            }
            Op::Release { number, devices, from_secs } => self.release(number, devices, from_secs * 1000),
            Op::Cancel { number } => self.cancel(number),
            Op::Block(device) => self.input(Input::Order(Order::Block { device: DeviceId(device) })),
            Op::Unblock(device) => self.input(Input::Order(Order::Unblock { device: DeviceId(device) })),
            Op::Revoke(device) => {
                let fingerprint = [device as u8; 32];
                self.input(Input::Order(Order::Revoke { fingerprint }));
            }
            Op::Supersede(device) => {
                let (device, boot, session) = (DeviceId(device), BootId([1; 16]), SessionNumber(9));
                self.input(Input::Order(Order::Supersede { device, boot, session }));
            }
            Op::Reset => {
                self.remembered.append(&mut self.tasks);
                self.input(Input::Order(Order::Reset));
            }
            Op::SignIns(allowed) => {
                self.input(Input::SignIns { allowed });
                if allowed {
                    self.reload_is_over();
                }
            }
            Op::Durable(up_to) => self.input(Input::Durable { up_to: up_to.min(self.kept) }),
            Op::Pass(ticks) => self.pass(ticks),
            Op::WallJumps(ahead) => {
                self.rig.wall_ahead = self.rig.wall_ahead.max(ahead);
                // The caller tells the hub the time whenever it wakes up.
                self.rig.hub.advance(self.rig.now());
                self.see_all();
            }
        }
        self.settle();
    }

    /// What the devices have of tasks that did not come again is forgotten.
    fn reload_is_over(&mut self) {
        for number in std::mem::take(&mut self.remembered).into_keys() {
            self.forget_progress(number);
        }
    }

    /// A task that the hub holds, active or remembered.
    fn held(&self, number: u8) -> Option<&SeenTask> {
        self.tasks.get(&number).or_else(|| self.remembered.get(&number))
    }

    fn forget_progress(&mut self, number: u8) {
        self.finished.retain(|(_, of)| *of != number);
        for seen in self.channels.values_mut() {
            seen.has.remove(&number);
        }
    }

    fn with(&mut self, place: u32, input: impl FnOnce(ChannelKey) -> Input) {
        if let Some(channel) = self.at(place) {
            self.input(input(channel));
        }
    }

    fn open(&mut self, place: u32, device: u32) {
        if self.at(place).is_some() {
            return;
        }
        self.rig.generations += 1;
        let channel = ChannelKey { index: place, generation: self.rig.generations };
        let seen = Seen { device, is_online: false, is_choked: false, has: BTreeSet::new() };
        self.channels.insert(channel, seen);
        self.input(Input::Opened { channel, peer: peer(device) });
    }

    fn hello(&mut self, place: u32, known: &[(u8, bool)], granted: bool) {
        let Some(channel) = self.at(place) else { return };
        let seen = self.channels.get_mut(&channel).unwrap();
        let device = seen.device;
        let state = |is_final| if is_final { TaskState::Succeeded } else { TaskState::Running };
        let known: Vec<_> = known.iter().map(|(number, is_final)| (*number, state(*is_final))).collect();
        let message = AgentMessage::Hello(Box::new(knowing(1, &known)));
        self.rig.hub.handle(self.rig.now(), Input::Said { channel, message });
        while let Some(output) = self.rig.hub.poll_output() {
            if let Output::Claim { channel: claiming, .. } = output {
                assert_eq!(claiming, channel);
                if granted {
                    self.note_known(channel, device, &known);
                }
                self.rig
                    .hub
                    .handle(self.rig.now(), Input::Claimed { channel, granted: granted.then_some(1) });
            } else {
                self.see(&output);
            }
        }
    }

    /// The hub learns what the hello knows, also of tasks that it does not hold.
    fn note_known(&mut self, channel: ChannelKey, device: u32, known: &[(u8, TaskState)]) {
        for devices in self.named.values_mut() {
            devices.remove(&device);
        }
        for (number, state) in known {
            let is_held = self.held(*number).is_some_and(|task| task.targets.contains(&device));
            if is_held && state.is_final() {
                self.finished.insert((device, *number));
            } else if is_held {
                self.channels.get_mut(&channel).unwrap().has.insert(*number);
            } else if !state.is_final() && !self.tasks.contains_key(number) {
                self.named.entry(*number).or_default().insert(device);
            }
        }
    }

    fn say(&mut self, place: u32, word: &Word) {
        let Some(channel) = self.at(place) else { return };
        let device = self.channels[&channel].device;
        let message = match *word {
            Word::Keepalive => AgentMessage::Keepalive,
            Word::Received(number) => AgentMessage::Received(task_id(number)),
            Word::Policy => AgentMessage::PolicyRequest(1),
            Word::Goodbye => AgentMessage::Goodbye,
            Word::Result { number, own } => {
                let speaker = if own { device } else { device + 1 };
                let is_held = self.held(number).is_some_and(|task| task.targets.contains(&device));
                if own && is_held && self.channels[&channel].is_online {
                    self.finished.insert((device, number));
                }
                AgentMessage::Result(Box::new(self.result(number, speaker)))
            }
        };
        self.input(Input::Said { channel, message });
    }

    fn result(&self, number: u8, device: u32) -> SignedResult {
        let statement = ResultStatement {
            site: "LAB".parse().unwrap(),
            task: task_id(number),
            device: DeviceId(device),
            state: TaskState::Succeeded,
            refusal: None,
            code: 0,
            started: START,
            finished: START,
            output_digest: [0; 32],
        };
        SignedResult::sign(statement, Vec::new(), &self.key).unwrap()
    }

    fn task(&mut self, number: u8, targets: u8, start_ms: u64, validity_ms: u64) {
        if self.tasks.contains_key(&number) {
            return;
        }
        // A task that comes again is the same as it was.
        let task = self.remembered.remove(&number).unwrap_or_else(|| {
            let targets = (0..DEVICES).filter(|device| targets >> device & 1 == 1).collect();
            self.named_have(number, &targets);
            let not_before = self.rig.time().plus(start_ms);
            SeenTask { targets, not_before, expires: not_before.plus(validity_ms), releases: Vec::new() }
        });
        let targets: Vec<_> = task.targets.iter().copied().collect();
        let order = task_order(number, &targets, task.not_before, task.expires.since(task.not_before));
        if let Some(until) = self.cancelled.get_mut(&number) {
            *until = task.expires.max(*until);
        }
        self.tasks.insert(number, SeenTask { releases: Vec::new(), ..task });
        self.input(Input::Order(order));
    }

    /// A task comes to the hub for the first time: those who have named it have it.
    fn named_have(&mut self, number: u8, targets: &BTreeSet<u32>) {
        let named = self.named.remove(&number).unwrap_or_default();
        let has_it: BTreeSet<u32> = &named & targets;
        for seen in self.channels.values_mut().filter(|seen| seen.is_online && has_it.contains(&seen.device))
        {
            seen.has.insert(number);
        }
    }

    fn release(&mut self, number: u8, devices: Option<u8>, from_ms: u64) {
        let from = self.rig.time().plus(from_ms);
        let devices: Option<BTreeSet<u32>> =
            devices.map(|bits| (0..DEVICES).filter(|device| bits >> device & 1 == 1).collect());
        let bitmap = devices.as_ref().map(|devices| Arc::new(RoaringBitmap::from_iter(devices)));
        if let Some(task) = self.tasks.get_mut(&number) {
            task.releases.push((devices, from.max(task.not_before)));
        }
        self.input(Input::Order(Order::Release { task: task_id(number), devices: bitmap, from }));
    }

    fn cancel(&mut self, number: u8) {
        // Of a task that has not come, the cancel knows the end; here it is later than any.
        let until = self.held(number).map_or(self.rig.time().plus(24 * HOUR_MS), |task| task.expires);
        let before = self.cancelled.insert(number, until).unwrap_or(until);
        self.cancelled.insert(number, before.max(until));
        self.input(Input::Order(cancel_order(number, until)));
    }

    fn input(&mut self, input: Input) {
        self.rig.hub.handle(self.rig.now(), input);
        self.see_all();
    }

    fn pass(&mut self, ticks: u64) {
        let until = self.rig.tick + ticks;
        for _ in 0..10_000 {
            match self.rig.hub.next_deadline().filter(|deadline| deadline.0 <= until) {
                Some(deadline) => self.rig.tick = self.rig.tick.max(deadline.0),
                None if self.rig.tick == until => return,
                None => self.rig.tick = until,
            }
            self.rig.hub.advance(self.rig.now());
            self.see_all();
            self.drop_expired();
        }
        panic!("the hub asks to be woken again and again at tick {}", self.rig.tick);
    }

    fn drop_expired(&mut self) {
        let time = self.rig.time();
        let is_over = |(number, task): (&u8, &SeenTask)| (task.expires <= time).then_some(*number);
        let over: Vec<_> = self.tasks.iter().chain(&self.remembered).filter_map(is_over).collect();
        for number in over {
            self.tasks.remove(&number);
            self.remembered.remove(&number);
            self.forget_progress(number);
        }
        self.cancelled.retain(|_, until| *until > time);
    }

    fn see_all(&mut self) {
        while let Some(output) = self.rig.hub.poll_output() {
            self.see(&output);
        }
    }

    /// Checks one output against what the model knows, and notes it.
    fn see(&mut self, output: &Output) {
        let time = self.rig.time();
        match output {
            Output::Claim { .. } => panic!("nobody said hello"),
            Output::Send { channel, .. } => assert!(self.channels.contains_key(channel), "{output:?}"),
            Output::Release { channel, device } => assert_eq!(self.channels[channel].device, device.0),
            Output::Push { channel, task, device } => {
                let number = task.id.bytes()[0];
                let known = &self.tasks[&number];
                assert!(self.channels[channel].is_online && self.channels[channel].device == device.0);
                assert!(
                    known.targets.contains(&device.0) && known.expires > time && known.not_before <= time
                );
                assert!(!self.cancelled.contains_key(&number), "{number} is cancelled");
                assert!(!self.finished.contains(&(device.0, number)), "{number} is answered");
                assert!(self.channels.get_mut(channel).unwrap().has.insert(number), "{number} twice");
            }
            Output::Close { channel, .. } => {
                let seen = self.channels.remove(channel).expect("a channel is closed once");
                assert!(!seen.is_online, "offline comes first");
            }
            Output::Online { channel, row, .. } => {
                let others = self.online().filter(|(_, seen)| seen.device == row.device.0).count();
                assert_eq!(others, 0, "{output:?}");
                self.channels.get_mut(channel).unwrap().is_online = true;
            }
            Output::Offline { row } => {
                let mut sessions = self.channels.values_mut().filter(|seen| seen.is_online);
                let seen = sessions.find(|seen| seen.device == row.device.0).expect("it was online");
                seen.is_online = false;
            }
            Output::Hint { row } => assert!(self.is_online(row)),
            Output::Keep { number, row, .. } => {
                self.kept += 1;
                assert_eq!(*number, self.kept);
                assert!(self.is_online(row));
            }
            Output::OrderRefused { refusal } => panic!("no limit is near: {refusal}"),
        }
    }

    fn is_online(&self, row: &ResultRow) -> bool {
        self.online().any(|(_, seen)| seen.device == row.device.0)
    }

    /// Once there is no more to do, everybody who reads has what is due.
    fn settle(&mut self) {
        self.pass(0);
        self.drop_expired();
        let time = self.rig.time();
        for (channel, seen) in self.online().filter(|(_, seen)| !seen.is_choked) {
            for (number, task) in &self.tasks {
                let device = seen.device;
                let is_released = task.releases.iter().any(|(devices, from)| {
                    *from <= time && devices.as_ref().is_none_or(|devices| devices.contains(&device))
                });
                let is_due = is_released
                    && task.targets.contains(&device)
                    && !self.cancelled.contains_key(number)
                    && !self.finished.contains(&(device, *number));
                assert!(!is_due || seen.has.contains(number), "{channel:?} lacks task {number}");
            }
        }
        assert_eq!(self.rig.hub.sessions(), self.channels.len());
        assert_eq!(self.rig.hub.online(), self.online().count());
        assert!(self.rig.hub.next_deadline().is_none_or(|deadline| deadline.0 > self.rig.tick));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_happens_everybody_has_what_is_due_and_nothing_else(ops in prop::collection::vec(op(), 1..120)) {
        let mut model = Model::new();
        for op in ops {
            model.step(op);
        }
        model.step(Op::SignIns(true));
        model.rig.input(Input::Drain);
        for _ in 0..10 {
            model.rig.turn();
        }
        prop_assert_eq!(model.rig.hub.sessions(), 0);
    }
}
