//! A hub whose life is an input's bytes, beside a [`model`] that says what must have reached whom: the laws of the hub's random test, with
//! the limits near and the fuzzer at the dice.

mod model;

use std::collections::BTreeMap;
use std::sync::Arc;

use bgb_hub::{ChannelKey, CloseReason, Hub, HubOptions, Input, Order, Output, Peer, PolicyOrder, TaskOrder};
use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::codec;
use bgb_protocol::ids::{BootId, DeviceId, KeyId, ServerId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::message::{Abilities, AgentMessage, Hello, KnownTask, Platform, RoadTaken};
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::{Envelope, SIGNATURE_BYTES, Signature, sha256};
use bgb_protocol::state::TaskState;
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::TaskStatement;
use roaring::RoaringBitmap;

use crate::bytes::Bytes;
use model::Model;

/// The devices, some of them in other blocks of a target set than the others.
const DEVICES: [u32; 8] = [0, 1, 2, 3, 2_047, 2_048, 2_049, 6_144];
const PLACES: u8 = 8;
/// Tasks at a time: more than may be active. One that is over gives its place to another.
const TASKS: u8 = 8;
/// Steps that an input may have.
const STEPS_MAX: usize = 500;
/// Calls of `advance` that one wait may take: far more than a hub of this size has work for.
const TURNS_MAX: usize = 10_000;

struct World {
    hub: Hub,
    model: Model,
    generations: u32,
    /// A task's id never names another task, also when its row comes again.
    tasks: BTreeMap<u8, Arc<TaskOrder>>,
    tasks_ever: u8,
}

/// Each step is three bytes and what it needs.
pub(crate) fn hub(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut world = World::new();
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() {
            break;
        }
        world.step(&mut bytes);
        world.settle();
    }
    world.hand_in(Input::Drain);
    for _ in 0..TURNS_MAX {
        if world.hub.sessions() == 0 {
            return;
        }
        world.advance();
    }
    panic!("the hub does not come to its end");
}

impl World {
    fn new() -> Self {
        let mut hub = Hub::new(HubOptions {
            server: ServerId(1),
            sessions_max: 6,
            keepalive_secs: 30,
            hello_ticks: 100,
            active_tasks_max: model::ACTIVE_TASKS_MAX,
            other_servers: vec!["two.example.org:10123".to_owned()],
            reconnect_window_secs: 60,
            jitter_seed: 1,
        });
        let model = Model::default();
        hub.advance(model.now());
        Self { hub, model, generations: 0, tasks: BTreeMap::new(), tasks_ever: 0 }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let kind = bytes.below(20);
        let device = DeviceId(DEVICES[usize::from(bytes.below(DEVICES.len() as u8))]);
        let place = u32::from(bytes.below(PLACES));
        match (kind, self.model.at(place)) {
            (0 | 1, _) => self.on_open(device, bytes),
            (2 | 3, Some(channel)) => self.say_hello(channel, bytes),
            (4 | 5, Some(channel)) => self.say_word(channel, bytes),
            (6, Some(channel)) => {
                self.hand_in(Input::Closed { channel, reason: CloseReason::Reset });
                self.model.on_closed(channel);
            }
            (7, Some(channel)) => self.hand_in(Input::Displaced { channel }),
            (8, Some(channel)) => {
                self.model.on_flow(channel, true);
                self.hand_in(Input::Choked { channel });
            }
            (9, Some(channel)) => {
                self.model.on_flow(channel, false);
                self.hand_in(Input::Flowing { channel });
            }
            (10, _) => {
                let up_to = self.model.kept.min(bytes.wide());
                self.model.on_durable(up_to);
                self.hand_in(Input::Durable { up_to });
            }
            (11, _) => {
                let allowed = bytes.below(4) > 0;
                self.hand_in(Input::SignIns { allowed });
                if allowed {
                    self.model.on_reload_over();
                }
            }
            (12 | 13, _) => self.order_task(bytes),
            (14, _) => self.order_release(bytes),
            (15, _) => self.order_other(device, bytes),
            (16, _) => self.order_policy(bytes),
            (17, _) => {
                let jump_ms = bytes.wide() as i64;
                self.model.on_wall_jump(if jump_ms % 4 == 0 { -jump_ms } else { jump_ms });
                self.advance();
            }
            (18 | 19, _) => self.wait(bytes.wide()),
            _ => {}
        }
    }

    /// The lowest free place, as the hub wants it.
    fn on_open(&mut self, device: DeviceId, bytes: &mut Bytes<'_>) {
        let free = (0..u32::from(PLACES)).find(|place| self.model.at(*place).is_none());
        let Some(index) = free else { return };
        self.generations += 1;
        let channel = ChannelKey { index, generation: self.generations };
        let peer = Peer {
            device,
            address: ([127, 0, 0, 1], 1).into(),
            fingerprint: [bytes.below(8); 32],
            certificate_ends: self.model.time().plus(bytes.wide() * 1_000),
        };
        self.model.on_opened(channel, device);
        self.hand_in(Input::Opened { channel, peer });
    }

    fn say_hello(&mut self, channel: ChannelKey, bytes: &mut Bytes<'_>) {
        let is_granted = bytes.below(8) > 0;
        let known: Vec<_> = (0..bytes.below(4)).map(|_| self.known_task(bytes)).collect();
        let (boot, session) = (BootId([bytes.below(3); 16]), SessionNumber(bytes.wide()));
        let hello = Hello {
            agent_version: "1".to_owned(),
            platform: Platform::default(),
            boot,
            session,
            abilities: Abilities::ALL,
            road: RoadTaken::tcp(),
            keepalive_secs: (bytes.below(2) == 0).then(|| bytes.wide() as u32),
            clock_skew_ms: 0,
            policy_version: 0,
            known_tasks: known.clone(),
        };
        let message = AgentMessage::Hello(Box::new(hello));
        self.hub.handle(self.model.now(), Input::Said { channel, message });
        while let Some(output) = self.hub.poll_output() {
            let Output::Claim { channel: claiming, boot: of_boot, session: number, .. } = output else {
                self.model.see(&output);
                continue;
            };
            assert_eq!(
                (claiming, of_boot, number),
                (channel, boot, session),
                "another claims than said hello"
            );
            if is_granted {
                self.model.on_claim(channel, (boot, session));
                self.model.on_granted(channel, &known);
            }
            self.hub.handle(self.model.now(), Input::Claimed { channel, granted: is_granted.then_some(1) });
        }
    }

    fn known_task(&mut self, bytes: &mut Bytes<'_>) -> KnownTask {
        let task = self.task(bytes).id;
        let states = [TaskState::Received, TaskState::Running, TaskState::Succeeded, TaskState::Failed];
        KnownTask { task, state: states[usize::from(bytes.below(4))] }
    }

    fn say_word(&mut self, channel: ChannelKey, bytes: &mut Bytes<'_>) {
        let message = match bytes.below(8) {
            0 => AgentMessage::Keepalive,
            1 => AgentMessage::Received(self.task(bytes).id),
            2 => AgentMessage::Running(self.task(bytes).id),
            3 => {
                let request = bytes.wide() as u32;
                self.model.on_policy_request(channel, request);
                AgentMessage::PolicyRequest(request)
            }
            4 => AgentMessage::Goodbye,
            _ => {
                let task = self.task(bytes).id;
                let mut device = self.model.channels[&channel].device;
                match bytes.below(8) {
                    0 => device.0 += 1,
                    _ => self.model.on_own_result(channel, task),
                }
                AgentMessage::Result(Box::new(result(task, device)))
            }
        };
        self.hand_in(Input::Said { channel, message });
    }

    /// One of the tasks that there may be now; whether the hub has heard of it is another matter.
    fn task(&mut self, bytes: &mut Bytes<'_>) -> Arc<TaskOrder> {
        let (number, now) = (bytes.below(TASKS), self.model.time());
        self.tasks.retain(|_, task| task.expires > now);
        let ever = &mut self.tasks_ever;
        let task = self.tasks.entry(number).or_insert_with(|| {
            *ever = ever.wrapping_add(1);
            Arc::new(new_task(*ever, bytes, now))
        });
        Arc::clone(task)
    }

    fn order_task(&mut self, bytes: &mut Bytes<'_>) {
        let order = self.task(bytes);
        let id = order.id;
        self.model.on_task(Arc::clone(&order));
        self.order(Order::Task(order));
        self.model.on_task_taken(id);
    }

    fn order_release(&mut self, bytes: &mut Bytes<'_>) {
        let task = self.task(bytes).id;
        let devices = (bytes.below(2) == 0).then(|| Arc::new(devices(bytes.byte())));
        let from = self.model.time().plus(bytes.wide());
        self.model.on_release(task, devices.clone(), from);
        self.order(Order::Release { task, devices, from });
    }

    fn order_other(&mut self, device: DeviceId, bytes: &mut Bytes<'_>) {
        let order = match bytes.below(8) {
            0 | 1 => {
                let order = self.task(bytes);
                let (task, expires) = (order.id, order.expires);
                self.model.on_cancel(task, expires);
                Order::Cancel { task, signed: Arc::from(task.bytes()), expires }
            }
            2 => Order::Block { device },
            3 => Order::Unblock { device },
            4 => Order::Revoke { fingerprint: [bytes.below(8); 32] },
            5 => Order::Supersede {
                device,
                boot: BootId([bytes.below(3); 16]),
                session: SessionNumber(bytes.wide()),
            },
            6 => {
                let time = UnixMillis(self.model.now().unix.0 + bytes.wide() * 4 - u64::from(u16::MAX) * 3);
                self.model.on_head(time);
                Order::Head { signed: Arc::from(time.0.to_be_bytes()), time }
            }
            _ => {
                self.model.on_reset();
                Order::Reset
            }
        };
        self.order(order);
    }

    /// A new document, of a higher version than all before it, or an old one again.
    fn order_policy(&mut self, bytes: &mut Bytes<'_>) {
        if let Some(old) = self.model.policy(usize::from(bytes.byte())).cloned() {
            return self.order(Order::Policy(old));
        }
        let number = self.model.next_policy();
        let mask = bytes.byte();
        let order = Arc::new(PolicyOrder {
            name: ["base", "more", "most"][usize::from(bytes.below(3))].to_owned(),
            version: number as u64 + 1,
            priority: i32::from(bytes.below(4)),
            withdrawn: bytes.below(4) == 0,
            // No set at all is a document for everyone.
            devices: TargetSet::new(devices(mask)),
            signed: Arc::from((number as u16).to_be_bytes()),
        });
        self.model.on_policy(&order);
        self.order(Order::Policy(order));
    }

    /// An order may be refused, by its own output and no other.
    fn order(&mut self, order: Order) {
        self.hub.handle(self.model.now(), Input::Order(order));
        self.drain();
    }

    fn hand_in(&mut self, input: Input) {
        self.hub.handle(self.model.now(), input);
        self.drain();
    }

    fn drain(&mut self) {
        self.model.pass_time();
        while let Some(output) = self.hub.poll_output() {
            match output {
                Output::OrderRefused { refusal } => self.model.on_refused(&refusal),
                output => self.model.see(&output),
            }
        }
    }

    fn advance(&mut self) {
        self.hub.advance(self.model.now());
        self.drain();
        self.model.drop_expired();
    }

    fn wait(&mut self, ticks: u64) {
        let until = self.model.tick + ticks;
        for _ in 0..TURNS_MAX {
            match self.hub.next_deadline().filter(|deadline| deadline.0 <= until) {
                Some(deadline) => self.model.tick = self.model.tick.max(deadline.0),
                None if self.model.tick >= until => return,
                None => self.model.tick = until,
            }
            self.advance();
        }
        panic!("the hub asks to be woken again and again at tick {}", self.model.tick);
    }

    fn settle(&mut self) {
        self.wait(0);
        self.model.drop_expired();
        self.model.check_settled();
        assert_eq!(
            self.hub.sessions(),
            self.model.channels.len(),
            "the hub holds other channels than its caller"
        );
        assert_eq!(self.hub.online(), self.model.online_count());
        assert!(self.hub.next_deadline().is_none_or(|deadline| deadline.0 > self.model.tick));
    }
}

fn devices(mask: u8) -> RoaringBitmap {
    DEVICES
        .into_iter()
        .enumerate()
        .filter(|(bit, _)| mask & (1 << bit) != 0)
        .map(|(_, device)| device)
        .collect()
}

/// Nobody on this side looks at signatures.
fn unsigned() -> Signature {
    Signature { key: KeyId([0; 8]), bytes: [0; SIGNATURE_BYTES] }
}

fn new_task(number: u8, bytes: &mut Bytes<'_>, now: UnixMillis) -> TaskOrder {
    let set = devices(bytes.byte() | 1);
    let targets = TargetSet::new(set.clone()).expect("there is one device at least");
    let not_before = now.plus(bytes.wide());
    let statement = TaskStatement {
        site: "LAB".parse().expect("a site's code"),
        task: TaskId::from_bytes([number; 16]),
        action: Action::Ping.code(),
        parameters: Parameters::none(),
        targets: targets.digest(),
        not_before,
        expires: not_before.plus(1 + bytes.wide() * 10),
        approval: None,
    };
    let envelope = Envelope { statement: codec::encode_versioned(&statement), signatures: vec![unsigned()] };
    TaskOrder::read(&envelope.encode(), set).expect("it was made soundly")
}

fn result(task: TaskId, device: DeviceId) -> SignedResult {
    let statement = ResultStatement {
        site: "LAB".parse().expect("a site's code"),
        task,
        device,
        state: TaskState::Succeeded,
        refusal: None,
        code: 0,
        started: UnixMillis(1),
        finished: UnixMillis(1),
        output_digest: sha256(&[]),
    };
    SignedResult { statement: codec::encode_versioned(&statement), signature: unsigned(), output: Vec::new() }
}
