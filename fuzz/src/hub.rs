//! A hub whose life is an input's bytes, beside what a caller may rely on.
//!
//! Checked are the laws of its face, whatever comes in and in whatever order: outputs name channels that are open; nothing is pushed
//! twice on one session, nor to a device that is no target; results are numbered without a gap; work ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bgb_hub::{
    ChannelKey, CloseReason, Hub, HubOptions, Input, Now, Order, Output, Peer, TICK_MS, TaskOrder, Tick,
};
use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::ids::{BootId, DeviceId, ServerId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::message::{Abilities, AgentMessage, Hello, KnownTask, Platform, RoadTaken};
use bgb_protocol::signature::SigningKey;
use bgb_protocol::state::TaskState;
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{SignedTask, TaskStatement};

use crate::bytes::Bytes;

const START: UnixMillis = UnixMillis(1_700_000_000_000);
const DEVICES: u8 = 8;
const PLACES: u8 = 8;
const TASKS: u8 = 6;
/// Calls of `advance` that one wait may take: far more than a hub of this size has work for.
const TURNS_MAX: usize = 10_000;

struct World {
    hub: Hub,
    tick: u64,
    wall_ahead_ms: u64,
    generations: u32,
    open: BTreeMap<u32, (ChannelKey, DeviceId)>,
    /// By session: a channel is one session.
    pushed: BTreeSet<(u32, u32, TaskId)>,
    /// A task's id never names another task, also when its row comes again.
    made: BTreeMap<TaskId, Order>,
    kept: u64,
}

/// Each step is a byte and what it needs.
pub(crate) fn hub(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut world = World::new();
    while !bytes.is_empty() {
        world.step(&mut bytes);
        assert_eq!(world.hub.sessions(), world.open.len(), "the hub holds other channels than its caller");
        assert!(world.hub.online() <= world.hub.sessions());
    }
    world.hand_in(Input::Drain);
    for _ in 0..TURNS_MAX {
        if world.hub.sessions() == 0 {
            return;
        }
        world.tick += 1;
        world.hub.advance(world.now());
        world.drain();
    }
    panic!("the hub does not come to its end");
}

impl World {
    fn new() -> Self {
        let hub = Hub::new(HubOptions {
            server: ServerId(1),
            sessions_max: 6,
            keepalive_secs: 30,
            hello_ticks: 100,
            active_tasks_max: 4,
            other_servers: vec!["two.example.org:10123".to_owned()],
            reconnect_window_secs: 60,
            jitter_seed: 1,
        });
        Self {
            hub,
            tick: 0,
            wall_ahead_ms: 0,
            generations: 0,
            open: BTreeMap::new(),
            pushed: BTreeSet::new(),
            made: BTreeMap::new(),
            kept: 0,
        }
    }

    fn now(&self) -> Now {
        let unix = START.plus(self.tick * TICK_MS + self.wall_ahead_ms);
        Now { tick: Tick(self.tick), unix }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let kind = bytes.below(16);
        let device = DeviceId(u32::from(bytes.below(DEVICES)));
        let place = u32::from(bytes.below(PLACES));
        let channel = self.open.get(&place).map(|(channel, _)| *channel);
        match (kind, channel) {
            (0, None) => self.on_open(device, bytes),
            (1 | 2, Some(channel)) => self.say(channel, hello(bytes)),
            (3, Some(channel)) => self.say(channel, word(bytes)),
            (4, Some(channel)) => {
                self.open.remove(&place);
                self.hand_in(Input::Closed { channel, reason: CloseReason::Reset });
            }
            (5, Some(channel)) => self.hand_in(Input::Displaced { channel }),
            (6, Some(channel)) => self.hand_in(Input::Choked { channel }),
            (7, Some(channel)) => self.hand_in(Input::Flowing { channel }),
            (8, _) => {
                let up_to = self.kept.min(bytes.wide());
                self.hand_in(Input::Durable { up_to });
            }
            (9, _) => self.hand_in(Input::SignIns { allowed: bytes.below(4) > 0 }),
            (10, _) => {
                let (id, now) = (task_id(bytes), self.now().unix);
                let order = self.made.entry(id).or_insert_with(|| task(id, bytes, now)).clone();
                self.hand_in(Input::Order(order));
            }
            (11, _) => {
                let devices = (bytes.below(2) == 0).then(|| Arc::new(devices(bytes.byte())));
                let from = self.now().unix.plus(bytes.wide());
                self.hand_in(Input::Order(Order::Release { task: task_id(bytes), devices, from }));
            }
            (12, _) => self.hand_in(Input::Order(other_order(device, bytes, self.now().unix))),
            (13, _) => self.wall_ahead_ms += bytes.wide(),
            (14 | 15, _) => self.wait(bytes.wide()),
            _ => {}
        }
    }

    /// The lowest free place, as the hub wants it.
    fn on_open(&mut self, device: DeviceId, bytes: &mut Bytes<'_>) {
        let Some(index) = (0..u32::from(PLACES)).find(|place| !self.open.contains_key(place)) else { return };
        self.generations += 1;
        let channel = ChannelKey { index, generation: self.generations };
        self.open.insert(index, (channel, device));
        let peer = Peer {
            device,
            address: ([127, 0, 0, 1], 1).into(),
            fingerprint: [bytes.below(4); 32],
            certificate_ends: self.now().unix.plus(bytes.wide() * 1_000),
        };
        self.hand_in(Input::Opened { channel, peer });
    }

    fn say(&mut self, channel: ChannelKey, message: AgentMessage) {
        self.hand_in(Input::Said { channel, message });
    }

    fn hand_in(&mut self, input: Input) {
        self.hub.handle(self.now(), input);
        self.drain();
    }

    fn wait(&mut self, ticks: u64) {
        let until = self.tick + ticks;
        for _ in 0..TURNS_MAX {
            match self.hub.next_deadline().filter(|deadline| deadline.0 <= until) {
                Some(deadline) => self.tick = self.tick.max(deadline.0),
                None if self.tick >= until => return,
                None => self.tick = until,
            }
            self.hub.advance(self.now());
            self.drain();
        }
        panic!("the hub asks to be woken again and again at tick {}", self.tick);
    }

    fn is_open(&self, channel: ChannelKey) -> bool {
        self.open.get(&channel.index).is_some_and(|(open, _)| *open == channel)
    }

    fn drain(&mut self) {
        while let Some(output) = self.hub.poll_output() {
            match output {
                Output::Claim { channel, .. } => {
                    assert!(self.is_open(channel), "a channel claims that is gone");
                    self.hub.handle(self.now(), Input::Claimed { channel, granted: true });
                }
                Output::Push { channel, task, device } => {
                    assert!(self.is_open(channel), "a task is pushed to a channel that is gone");
                    assert_eq!(self.open[&channel.index].1, device, "a task is pushed as another device's");
                    assert!(task.targets.contains(device), "a task is pushed to no target");
                    assert!(self.now().unix <= task.expires, "a task is pushed after its end");
                    let is_first = self.pushed.insert((channel.index, channel.generation, task.id));
                    assert!(is_first, "a task is pushed twice on one session");
                    assert!(task.encode_push(device, &mut Vec::new()), "a push has no proof");
                }
                Output::Send { channel, .. } | Output::Online { channel, .. } => {
                    assert!(self.is_open(channel), "something is for a channel that is gone");
                }
                Output::Close { channel, .. } => {
                    assert!(self.is_open(channel), "a channel is closed that is gone");
                    self.open.remove(&channel.index);
                }
                Output::Keep { number, .. } => {
                    self.kept += 1;
                    assert_eq!(number, self.kept, "results are numbered without a gap");
                }
                Output::Release { .. }
                | Output::Offline { .. }
                | Output::Hint { .. }
                | Output::OrderRefused { .. } => {}
            }
        }
    }
}

fn task_id(bytes: &mut Bytes<'_>) -> TaskId {
    TaskId::from_bytes([bytes.below(TASKS) + 1; 16])
}

fn devices(mask: u8) -> roaring::RoaringBitmap {
    (0..8).filter(|bit| mask & (1 << bit) != 0).collect()
}

fn task(id: TaskId, bytes: &mut Bytes<'_>, now: UnixMillis) -> Order {
    let set = devices(bytes.byte() | 1);
    let targets = TargetSet::new(set.clone()).expect("there is one device at least");
    let not_before = now.plus(bytes.wide());
    let statement = TaskStatement {
        site: "LAB".parse().expect("a site's code"),
        task: id,
        action: Action::Ping.code(),
        parameters: Parameters::none(),
        targets: targets.digest(),
        not_before,
        expires: not_before.plus(1 + bytes.wide() * 10),
        approval: None,
    };
    let signed = SignedTask::sign(statement, &SigningKey::from_seed([1; 32]));
    Order::Task(Arc::new(TaskOrder::read(signed.bytes(), set).expect("it was made soundly")))
}

fn other_order(device: DeviceId, bytes: &mut Bytes<'_>, now: UnixMillis) -> Order {
    match bytes.below(6) {
        0 => Order::Cancel {
            task: task_id(bytes),
            signed: Arc::from([1; 8]),
            expires: now.plus(bytes.wide() * 10),
        },
        1 => Order::Block { device },
        2 => Order::Unblock { device },
        3 => Order::Revoke { fingerprint: [bytes.below(4); 32] },
        4 => Order::Supersede {
            device,
            boot: BootId([bytes.below(3); 16]),
            session: SessionNumber(bytes.wide()),
        },
        _ => Order::Reset,
    }
}

fn hello(bytes: &mut Bytes<'_>) -> AgentMessage {
    let known =
        (0..bytes.below(4)).map(|_| KnownTask { task: task_id(bytes), state: TaskState::Received }).collect();
    AgentMessage::Hello(Box::new(Hello {
        agent_version: "1".to_owned(),
        platform: Platform::default(),
        boot: BootId([bytes.below(3); 16]),
        session: SessionNumber(bytes.wide()),
        abilities: Abilities::ALL,
        road: RoadTaken::tcp(),
        keepalive_secs: (bytes.below(2) == 0).then(|| bytes.wide() as u32),
        clock_skew_ms: 0,
        policy_version: 0,
        known_tasks: known,
    }))
}

fn word(bytes: &mut Bytes<'_>) -> AgentMessage {
    match bytes.below(5) {
        0 => AgentMessage::Keepalive,
        1 => AgentMessage::Received(task_id(bytes)),
        2 => AgentMessage::Running(task_id(bytes)),
        3 => AgentMessage::PolicyRequest(bytes.wide() as u32),
        _ => AgentMessage::Goodbye,
    }
}
