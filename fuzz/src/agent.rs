//! An agent whose server is in hostile hands: an input's bytes say what the server says, when time passes and when the power goes.
//!
//! The site signs what it signs; the server may hold it back, repeat it, tear it and make up all the rest. Checked is what no server can
//! change: nothing starts that the site did not sign for this device, nothing that is not repeatable starts twice, nothing is said
//! without a connection, and a journal is always good enough to start from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bgb_agent::agent::{Agent, AgentOptions, Ending, Input, Outcome, Output};
use bgb_daemon::clock::Now;
use bgb_daemon::disk::{Disk, SimDisk};
use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::frame::Frame;
use bgb_protocol::head::{HeadStatement, SignedHead};
use bgb_protocol::ids::{BootId, DeviceId, Generation, ServerId, TaskId, UnixMillis};
use bgb_protocol::message::{Abilities, Drain, Platform, RoadTaken, ServerMessage, TaskPush, Welcome};
use bgb_protocol::signature::{DeviceKey, SigningKey, TrustedKeys};
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{CancelStatement, SignedCancel, SignedTask, TaskStatement};

use crate::bytes::Bytes;

const DEVICE: DeviceId = DeviceId(5);
const TASKS: u8 = 8;
/// When the site signed everything.
const SIGNED: UnixMillis = UnixMillis(1_800_000_000_000);
/// How long its tasks are valid.
const VALIDITY_MS: u64 = 10 * 60 * 1000;
/// Steps that an input may have: each may cost a signature.
const STEPS_MAX: usize = 64;

/// What the site has signed, made once.
struct Site {
    trusted: TrustedKeys,
    device_key: Vec<u8>,
    pushes: Vec<TaskPush>,
    cancels: Vec<Vec<u8>>,
    heads: Vec<Vec<u8>>,
}

impl Site {
    fn once() -> &'static Self {
        static SITE: OnceLock<Site> = OnceLock::new();
        SITE.get_or_init(Self::new)
    }

    fn new() -> Self {
        let key = SigningKey::from_seed([1; 32]);
        let (_, device_key) = DeviceKey::generate().expect("the system has randomness");
        let cancel = |number| {
            let statement = CancelStatement {
                site: "LAB".parse().expect("a site's code"),
                task: task_id(number),
                expires: SIGNED.plus(VALIDITY_MS),
                cancelled: SIGNED,
            };
            SignedCancel::sign(statement, &key).bytes().to_vec()
        };
        let head = |minute: u64| {
            let statement = HeadStatement {
                site: "LAB".parse().expect("a site's code"),
                generation: Generation([1; 16]),
                sequence: minute,
                time: SIGNED.plus(minute * 60_000),
            };
            SignedHead::sign(statement, &key).bytes().to_vec()
        };
        Self {
            trusted: TrustedKeys::new([key.public()]),
            device_key,
            pushes: (0..TASKS).map(|number| push(number, &key)).collect(),
            cancels: (0..TASKS).map(cancel).collect(),
            heads: (0..30).map(head).collect(),
        }
    }
}

fn task_id(number: u8) -> TaskId {
    TaskId::from_bytes([number + 1; 16])
}

fn action(number: u8) -> Action {
    [Action::Ping, Action::QuickScan, Action::FullScan, Action::CollectInventory][usize::from(number % 4)]
}

/// The last one is not for this device.
fn push(number: u8, key: &SigningKey) -> TaskPush {
    let member = if number + 1 == TASKS { DEVICE.0 + 1 } else { DEVICE.0 };
    let targets = TargetSet::new([member, 9_000].into_iter().collect()).expect("it has members");
    let statement = TaskStatement {
        site: "LAB".parse().expect("a site's code"),
        task: task_id(number),
        action: action(number).code(),
        parameters: Parameters::none(),
        targets: targets.digest(),
        not_before: SIGNED,
        expires: SIGNED.plus(VALIDITY_MS),
        approval: None,
    };
    let mut proof = Vec::new();
    targets.prove(DeviceId(member), &mut proof);
    TaskPush { signed: SignedTask::sign(statement, key).bytes().to_vec(), proof }
}

/// How far the agent's connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    None,
    /// The agent has asked for one.
    Asked,
    There,
}

struct World {
    disk: Arc<SimDisk>,
    agent: Option<Agent>,
    now: Now,
    boot: u8,
    connection: Connection,
    begun: BTreeMap<TaskId, u32>,
    running: Vec<TaskId>,
}

/// Each step is a byte and what it needs.
pub(crate) fn session(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut world = World {
        disk: Arc::new(SimDisk::new()),
        agent: None,
        now: Now { unix_ms: SIGNED.0, boot_ms: 1_000, mono_ms: 1_000 },
        boot: 0,
        connection: Connection::None,
        begun: BTreeMap::new(),
        running: Vec::new(),
    };
    world.start();
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() {
            return;
        }
        world.step(&mut bytes);
    }
}

impl World {
    fn start(&mut self) {
        let site = Site::once();
        let options = AgentOptions {
            site: "LAB".parse().expect("a site's code"),
            device: DEVICE,
            boot: BootId([self.boot; 16]),
            servers: vec!["one.example.org:10123".to_owned()],
            task_keys: site.trusted.clone(),
            state: PathBuf::from("/state"),
            agent_version: "1".to_owned(),
            platform: Platform::default(),
        };
        let disk: Arc<dyn Disk> = Arc::<SimDisk>::clone(&self.disk);
        let key = DeviceKey::from_pkcs8(&site.device_key).expect("it was generated");
        let agent =
            Agent::new(options, disk, key, self.now, 1).expect("a journal is good enough to start from");
        (self.connection, self.running) = (Connection::None, Vec::new());
        self.agent = Some(agent);
        self.drain();
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let number = bytes.below(TASKS);
        let site = Site::once();
        match bytes.below(14) {
            0 if self.connection == Connection::Asked => {
                self.connection = Connection::There;
                self.hand_in(Input::Connected { road: RoadTaken::tcp() });
            }
            0 => {}
            1 => self.cut(),
            2 => self.hear(ServerMessage::Welcome(Box::new(welcome(bytes)))),
            3 => self.hear(ServerMessage::KeepaliveAnswer(torn(head(bytes), bytes))),
            4 | 5 => self.hear(ServerMessage::Task(Box::new(site.pushes[usize::from(number)].clone()))),
            6 => {
                let TaskPush { signed, proof } = site.pushes[usize::from(number)].clone();
                let push = TaskPush { signed: torn(signed, bytes), proof: torn(proof, bytes) };
                self.hear(ServerMessage::Task(Box::new(push)));
            }
            7 => self.hear(ServerMessage::Cancel(torn(site.cancels[usize::from(number)].clone(), bytes))),
            8 => self.hear(ServerMessage::ResultKept(task_id(number))),
            9 => {
                if let Ok(Some((frame, _))) = Frame::decode(bytes.piece())
                    && let Ok(Some(message)) = ServerMessage::decode(frame)
                {
                    self.hear(message);
                }
            }
            10 => self
                .hear(ServerMessage::Drain(Drain { window_secs: bytes.wide() as u32, servers: Vec::new() })),
            11 => {
                if !self.running.is_empty() {
                    let task = self.running.swap_remove(usize::from(number) % self.running.len());
                    let ending = if bytes.below(2) == 0 { Ending::Succeeded } else { Ending::Failed };
                    let outcome = Outcome { ending, code: 0, output: bytes.piece().to_vec() };
                    self.hand_in(Input::Finished { task, outcome });
                }
            }
            12 => self.pass(bytes.wide() * 100),
            _ => self.lose_power(bytes),
        }
    }

    fn hear(&mut self, message: ServerMessage) {
        if self.connection == Connection::There {
            self.hand_in(Input::Said(message));
        }
    }

    fn cut(&mut self) {
        let reason = "cut".to_owned();
        match std::mem::replace(&mut self.connection, Connection::None) {
            Connection::None => {}
            Connection::Asked => self.hand_in(Input::ConnectFailed { reason }),
            Connection::There => self.hand_in(Input::Disconnected { reason }),
        }
    }

    fn hand_in(&mut self, input: Input) {
        let Some(agent) = &mut self.agent else { return };
        agent.handle(self.now, input).expect("this disk does not fail");
        self.drain();
    }

    fn pass(&mut self, ms: u64) {
        let Now { unix_ms, boot_ms, mono_ms } = &mut self.now;
        (*unix_ms, *boot_ms, *mono_ms) = (*unix_ms + ms, *boot_ms + ms, *mono_ms + ms);
        let Some(agent) = &mut self.agent else { return };
        agent.handle_time(self.now).expect("this disk does not fail");
        self.drain();
    }

    fn lose_power(&mut self, bytes: &mut Bytes<'_>) {
        self.agent = None;
        self.disk.crash(u64::from(bytes.byte()));
        if bytes.below(2) == 0 {
            self.boot = self.boot.wrapping_add(1);
            (self.now.boot_ms, self.now.mono_ms) = (1_000, 1_000);
        }
        self.start();
    }

    fn drain(&mut self) {
        while let Some(output) = self.agent.as_mut().and_then(Agent::poll_output) {
            match output {
                Output::Say(_) => {
                    assert_eq!(self.connection, Connection::There, "something is said to nobody");
                }
                Output::Start(start) => self.on_start(start.task, start.action),
                Output::Disconnect { .. } => self.connection = Connection::None,
                Output::Connect { .. } => {
                    assert_eq!(self.connection, Connection::None, "it connects while it has a connection");
                    self.connection = Connection::Asked;
                }
                Output::Kill { .. } => {}
            }
        }
    }

    fn on_start(&mut self, task: TaskId, of: Action) {
        let number = (0..TASKS - 1).find(|number| task_id(*number) == task);
        let number = number.expect("nothing starts that the site did not sign for this device");
        assert_eq!(of, action(number), "another action starts than was signed");
        let times = self.begun.entry(task).or_default();
        *times += 1;
        assert!(*times == 1 || of.is_repeatable(), "{of} starts for the {times}. time");
        self.running.push(task);
    }
}

fn head(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let heads = &Site::once().heads;
    heads[usize::from(bytes.byte()) % heads.len()].clone()
}

fn welcome(bytes: &mut Bytes<'_>) -> Welcome {
    Welcome {
        server: ServerId(1),
        head: if bytes.below(4) == 0 { Vec::new() } else { head(bytes) },
        keepalive_secs: bytes.wide() as u32,
        reconnect_window_secs: bytes.wide() as u32,
        reconnect_slot_secs: (bytes.below(2) == 0).then(|| bytes.wide() as u32),
        other_servers: Vec::new(),
        abilities: Abilities::ALL,
    }
}

/// `whole`, or with one byte of it changed.
fn torn(mut whole: Vec<u8>, bytes: &mut Bytes<'_>) -> Vec<u8> {
    if bytes.below(2) == 0 {
        return whole;
    }
    let (at, change) = (bytes.wide() as usize, bytes.byte());
    match whole.get_mut(at) {
        Some(byte) => *byte ^= change,
        None => whole.truncate(at / 2),
    }
    whole
}
