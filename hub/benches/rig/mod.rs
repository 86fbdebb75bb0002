//! A hub with as many devices as are asked for, and nothing around it: what comes out is counted and dropped.
#![allow(dead_code, reason = "each benchmark uses its part of it")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bgb_hub::{ChannelKey, Hub, HubOptions, Input, Now, Order, Output, Peer, TICK_MS, TaskOrder, Tick};
use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::ids::{BootId, DeviceId, ServerId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::message::{Abilities, AgentMessage, Hello, Platform, RoadTaken};
use bgb_protocol::signature::SigningKey;
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{SignedTask, TaskStatement};
use roaring::RoaringBitmap;

/// The wall clock at tick 0.
const START: UnixMillis = UnixMillis(1_700_000_000_000);
const HOUR_MS: u64 = 3_600_000;
const FOREVER: UnixMillis = UnixMillis(START.0 + 1_000_000 * HOUR_MS);

pub(crate) struct Rig {
    pub(crate) hub: Hub,
    pub(crate) tick: u64,
}

/// What came out of the hub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Out {
    pub(crate) sent: u64,
    pub(crate) pushed: u64,
    pub(crate) closed: u64,
}

impl Rig {
    pub(crate) fn new(sessions_max: usize) -> Self {
        let options = HubOptions {
            server: ServerId(1),
            sessions_max,
            keepalive_secs: 900,
            hello_ticks: 100,
            active_tasks_max: 1_000,
            other_servers: Vec::new(),
            reconnect_window_secs: 60,
            jitter_seed: 1,
        };
        Self { hub: Hub::new(options), tick: 0 }
    }

    pub(crate) fn now(&self) -> Now {
        Now { tick: Tick(self.tick), unix: START.plus(self.tick * TICK_MS) }
    }

    pub(crate) fn input(&mut self, input: Input) -> Out {
        self.hub.handle(self.now(), input);
        self.drain()
    }

    /// Lets time pass until `tick`, and does whatever is due by then.
    pub(crate) fn advance(&mut self, tick: u64) -> Out {
        self.tick = tick;
        let mut out = Out::default();
        loop {
            self.hub.advance(self.now());
            let more = self.drain();
            out = Out {
                sent: out.sent + more.sent,
                pushed: out.pushed + more.pushed,
                closed: out.closed + more.closed,
            };
            if self.hub.next_deadline().is_none_or(|deadline| deadline.0 > tick) {
                return out;
            }
        }
    }

    fn drain(&mut self) -> Out {
        let mut out = Out::default();
        while let Some(output) = self.hub.poll_output() {
            match output {
                Output::Claim { channel, .. } => {
                    self.hub.handle(self.now(), Input::Claimed { channel, granted: Some(1) });
                }
                Output::Send { .. } => out.sent += 1,
                Output::Push { .. } => out.pushed += 1,
                Output::Close { .. } => out.closed += 1,
                _ => {}
            }
        }
        out
    }

    /// The device signs in, knowing no task. What it says is made before the clock runs.
    pub(crate) fn sign_in(&mut self, device: u32) -> (Out, Duration) {
        let (opened, said) = (opened(device), hello(device));
        let begun = Instant::now();
        let mut out = self.input(opened);
        let more = self.input(said);
        let took = begun.elapsed();
        out.sent += more.sent;
        out.pushed += more.pushed;
        out.closed += more.closed;
        (out, took)
    }

    /// A task for `targets`, valid for an hour, and its release to all of them.
    pub(crate) fn start_task(&mut self, number: u32, targets: RoaringBitmap) -> Out {
        self.order(task(number, targets, self.now().unix))
    }

    /// A task that was made before, and its release to all of its targets.
    pub(crate) fn order(&mut self, task: TaskOrder) -> Out {
        let id = task.id;
        let mut out = self.input(Input::Order(Order::Task(Arc::new(task))));
        let more = self.input(Input::Order(Order::Release { task: id, devices: None, from: UnixMillis(0) }));
        out.pushed += more.pushed;
        out
    }
}

pub(crate) fn channel(device: u32) -> ChannelKey {
    ChannelKey { index: device, generation: 1 }
}

fn opened(device: u32) -> Input {
    let peer = Peer {
        device: DeviceId(device),
        address: ([127, 0, 0, 1], 50_000).into(),
        fingerprint: [device as u8; 32],
        certificate_ends: FOREVER,
    };
    Input::Opened { channel: channel(device), peer }
}

fn hello(device: u32) -> Input {
    let mut boot = [0; 16];
    boot[..4].copy_from_slice(&device.to_le_bytes());
    let hello = Hello {
        agent_version: "0.1.0".to_owned(),
        platform: Platform {
            os: "linux".to_owned(),
            os_version: "12".to_owned(),
            arch: "x86_64".to_owned(),
            hostname: format!("device-{device}"),
        },
        boot: BootId(boot),
        session: SessionNumber(1),
        abilities: Abilities::ALL,
        road: RoadTaken::tcp(),
        keepalive_secs: None,
        clock_skew_ms: 0,
        policy_version: 0,
        known_tasks: Vec::new(),
    };
    Input::Said { channel: channel(device), message: AgentMessage::Hello(Box::new(hello)) }
}

pub(crate) fn keepalive(device: u32) -> Input {
    Input::Said { channel: channel(device), message: AgentMessage::Keepalive }
}

pub(crate) fn task(number: u32, targets: RoaringBitmap, not_before: UnixMillis) -> TaskOrder {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_le_bytes());
    let set = TargetSet::new(targets.clone()).expect("a task has targets");
    let statement = TaskStatement {
        site: "LAB".parse().expect("three letters are a site's code"),
        task: TaskId::from_bytes(id),
        action: Action::Ping.code(),
        parameters: Parameters::Inline(Vec::new()),
        targets: set.digest(),
        not_before,
        expires: not_before.plus(HOUR_MS),
        approval: None,
    };
    let signed = SignedTask::sign(statement, &SigningKey::from_seed([3; 32]));
    TaskOrder::read(signed.bytes(), targets).expect("what was signed just now can be read")
}

/// Resident memory of this process, in bytes.
pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The middle one.
pub(crate) fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Two decimals.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
