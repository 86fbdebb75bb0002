//! A rig around one hub: a clock, a directory that grants every claim, and short words for what agents and the site say.

mod delivery;
mod endings;
mod messages;
mod random;
mod reload;
mod sign_in;

use std::sync::Arc;

use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::file::presence::{Presence, PresenceRow};
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::message::{Abilities, AgentMessage, Hello, KnownTask, Platform, RefusedReason, RoadTaken};
use bgb_protocol::signature::SigningKey;
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{CancelStatement, SignedCancel, SignedTask, TaskStatement};
use roaring::RoaringBitmap;

use super::*;
use crate::input::Peer;
use crate::order::TaskOrder;
use crate::time::TICK_MS;

/// The wall clock at tick 0.
const START: UnixMillis = UnixMillis(1_700_000_000_000);
const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const MINUTE: u64 = MINUTE_MS / TICK_MS;
const FOREVER: UnixMillis = UnixMillis(START.0 + 1_000 * 24 * HOUR_MS);

struct Rig {
    hub: Hub,
    tick: u64,
    generations: u32,
    /// What the wall clock is ahead of the ticks, in milliseconds.
    wall_ahead: u64,
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut HubOptions)) -> Self {
        let mut options = HubOptions {
            server: ServerId(1),
            sessions_max: 1_000,
            keepalive_secs: 900,
            hello_ticks: 100,
            active_tasks_max: 100,
            other_servers: vec!["two.example.org:10123".to_owned()],
            reconnect_window_secs: 60,
            jitter_seed: 1,
        };
        change(&mut options);
        Self { hub: Hub::new(options), tick: 0, generations: 0, wall_ahead: 0 }
    }

    fn now(&self) -> Now {
        let ticks_ms = self.tick * TICK_MS;
        Now { tick: Tick(self.tick), unix: START.plus(ticks_ms + self.wall_ahead) }
    }

    fn time(&self) -> UnixMillis {
        self.now().unix
    }

    /// Hands in one input; what came out of it, claims granted and left out.
    fn input(&mut self, input: Input) -> Vec<Output> {
        self.hub.handle(self.now(), input);
        self.drain()
    }

    fn drain(&mut self) -> Vec<Output> {
        let mut out = Vec::new();
        while let Some(output) = self.hub.poll_output() {
            if let Output::Claim { channel, .. } = output {
                self.hub.handle(self.now(), Input::Claimed { channel, granted: Some(1) });
            } else {
                out.push(output);
            }
        }
        out
    }

    /// Lets `ticks` pass, waking up only when the hub asks for it; what came out.
    fn pass(&mut self, ticks: u64) -> Vec<Output> {
        let until = self.tick + ticks;
        let mut out = Vec::new();
        for _ in 0..100_000 {
            match self.hub.next_deadline().filter(|deadline| deadline.0 <= until) {
                Some(deadline) => self.tick = self.tick.max(deadline.0),
                None if self.tick == until => return out,
                None => self.tick = until,
            }
            self.hub.advance(self.now());
            out.extend(self.drain());
        }
        panic!("the hub asks to be woken again and again at tick {}", self.tick);
    }

    /// One call of `advance` at the present tick.
    fn turn(&mut self) -> Vec<Output> {
        self.hub.advance(self.now());
        self.drain()
    }

    fn open_as(&mut self, index: u32, peer: Peer) -> (ChannelKey, Vec<Output>) {
        self.generations += 1;
        let channel = ChannelKey { index, generation: self.generations };
        let out = self.input(Input::Opened { channel, peer });
        (channel, out)
    }

    /// Opens a channel for `device` at the index of its number.
    fn open(&mut self, device: u32) -> ChannelKey {
        self.open_as(device, peer(device)).0
    }

    fn say(&mut self, channel: ChannelKey, message: AgentMessage) -> Vec<Output> {
        self.input(Input::Said { channel, message })
    }

    fn hello(&mut self, channel: ChannelKey, hello: Hello) -> Vec<Output> {
        self.say(channel, AgentMessage::Hello(Box::new(hello)))
    }

    /// Opens a channel for `device` and signs in, knowing no task; what came out after the welcome is dropped.
    fn sign_in(&mut self, device: u32) -> ChannelKey {
        let channel = self.open(device);
        let out = self.hello(channel, hello(1));
        assert!(is_welcomed(&out), "{out:?}");
        channel
    }

    /// A cancel is heard without a turn of the work, which comes at once.
    fn order(&mut self, order: Order) -> Vec<Output> {
        let is_cancel = matches!(order, Order::Cancel { .. });
        let mut out = self.input(Input::Order(order));
        if is_cancel {
            out.extend(self.pass(0));
        }
        out
    }

    fn release(&mut self, task: TaskId) -> Vec<Output> {
        self.order(Order::Release { task, devices: None, from: UnixMillis(0) })
    }

    /// A task for `targets`, valid for an hour from now on, with its release to all.
    fn start_task(&mut self, number: u8, targets: &[u32]) -> Vec<Output> {
        let mut out = self.order(task_order(number, targets, self.time(), HOUR_MS));
        out.extend(self.release(task_id(number)));
        out
    }

    fn cancel(&mut self, number: u8) -> Vec<Output> {
        self.order(cancel_order(number, self.time().plus(HOUR_MS)))
    }
}

fn peer(device: u32) -> Peer {
    Peer {
        device: DeviceId(device),
        address: ([127, 0, 0, 1], 50_000).into(),
        fingerprint: [device as u8; 32],
        certificate_ends: FOREVER,
    }
}

fn hello(session: u64) -> Hello {
    Hello {
        agent_version: "0.1.0".to_owned(),
        platform: Platform {
            os: "linux".into(),
            os_version: "12".into(),
            arch: "x86_64".into(),
            hostname: "h".into(),
        },
        boot: BootId([1; 16]),
        session: SessionNumber(session),
        abilities: Abilities::ALL,
        road: RoadTaken::tcp(),
        keepalive_secs: None,
        clock_skew_ms: 0,
        policy_version: 0,
        known_tasks: Vec::new(),
    }
}

fn knowing(session: u64, known: &[(u8, bgb_protocol::state::TaskState)]) -> Hello {
    let known = known.iter().map(|(number, state)| KnownTask { task: task_id(*number), state: *state });
    Hello { known_tasks: known.collect(), ..hello(session) }
}

fn task_id(number: u8) -> TaskId {
    TaskId::from_bytes([number; 16])
}

fn key() -> SigningKey {
    SigningKey::from_seed([3; 32])
}

fn task_order(number: u8, targets: &[u32], not_before: UnixMillis, validity_ms: u64) -> Order {
    task_order_with(number, targets, not_before, validity_ms, 0)
}

/// A task with parameters of `parameter_bytes`.
fn task_order_with(
    number: u8,
    targets: &[u32],
    not_before: UnixMillis,
    validity_ms: u64,
    parameter_bytes: usize,
) -> Order {
    let targets = RoaringBitmap::from_iter(targets);
    let statement = TaskStatement {
        site: "LAB".parse().unwrap(),
        task: task_id(number),
        action: Action::Ping.code(),
        parameters: Parameters::Inline(vec![b' '; parameter_bytes]),
        targets: TargetSet::new(targets.clone()).unwrap().digest(),
        not_before,
        expires: not_before.plus(validity_ms),
        approval: None,
    };
    let signed = SignedTask::sign(statement, &key());
    Order::Task(Arc::new(TaskOrder::read(signed.bytes(), targets).unwrap()))
}

fn cancel_order(number: u8, expires: UnixMillis) -> Order {
    let (site, task) = ("LAB".parse().unwrap(), task_id(number));
    let statement = CancelStatement { site, task, expires, cancelled: START };
    let signed = Arc::clone(SignedCancel::sign(statement, &key()).bytes());
    Order::Cancel { task, signed, expires }
}

fn is_welcomed(out: &[Output]) -> bool {
    out.iter().any(|output| matches!(output, Output::Send { message: ServerMessage::Welcome(_), .. }))
}

/// Which devices got which task, in the order in which it happened.
fn pushes(out: &[Output]) -> Vec<(u32, u8)> {
    let push = |output: &Output| match output {
        Output::Push { task, device, .. } => Some((device.0, task.id.bytes()[0])),
        _ => None,
    };
    out.iter().filter_map(push).collect()
}

/// The messages that were sent to `channel`.
fn sent(out: &[Output], channel: ChannelKey) -> Vec<ServerMessage> {
    let message = |output: &Output| match output {
        Output::Send { channel: to, message } if *to == channel => Some(message.clone()),
        _ => None,
    };
    out.iter().filter_map(message).collect()
}

/// Channels that got a cancel.
fn cancels(out: &[Output]) -> Vec<ChannelKey> {
    let cancel = |output: &Output| match output {
        Output::Send { channel, message: ServerMessage::Cancel(_) } => Some(*channel),
        _ => None,
    };
    out.iter().filter_map(cancel).collect()
}

/// Channels that were closed, and why.
fn closes(out: &[Output]) -> Vec<(ChannelKey, CloseReason)> {
    let close = |output: &Output| match output {
        Output::Close { channel, reason } => Some((*channel, *reason)),
        _ => None,
    };
    out.iter().filter_map(close).collect()
}

fn refusals(out: &[Output]) -> Vec<RefusedReason> {
    let refusal = |output: &Output| match output {
        Output::Send { message: ServerMessage::Refused(reason), .. } => Some(*reason),
        _ => None,
    };
    out.iter().filter_map(refusal).collect()
}

/// Rows of the online list, and whether they say online.
fn presence(out: &[Output]) -> Vec<(u32, bool)> {
    let said = |row: &PresenceRow| (row.device.0, matches!(row.presence, Presence::Online(_)));
    let row = |output: &Output| match output {
        Output::Online { row, .. } | Output::Offline { row } => Some(said(row)),
        _ => None,
    };
    out.iter().filter_map(row).collect()
}
