//! An agent whose server is in hostile hands: an input's bytes say what the server says, when time passes, what the disk refuses and
//! when the power goes.
//!
//! The site signs what it signs ([`site`]); the server may hold it back, repeat it, tear it and make up all the rest. Checked is what no
//! server and no fault can change: nothing starts that the site did not sign for this device, nor after it ended or was cancelled; nothing
//! that is not repeatable starts twice; a final word stays what it was; policy never goes back; a session's number comes once; own time is
//! never ahead of the site's; nothing is said without a connection; a journal is always good enough to start from; and the agent lets its
//! caller sleep.

mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use bgb_agent::agent::{Agent, AgentOptions, Ending, Input, Outcome, Output, SessionPhase, Start};
use bgb_daemon::clock::Now;
use bgb_daemon::disk::{Disk, SimDisk};
use bgb_protocol::action::Action;
use bgb_protocol::frame::Frame;
use bgb_protocol::ids::{BootId, ServerId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::message::{
    Abilities, AgentMessage, Drain, Platform, PolicyPart, RefusedReason, RoadTaken, ServerMessage, TaskPush,
    Welcome,
};
use bgb_protocol::result::SignedResult;
use bgb_protocol::signature::DeviceKey;
use bgb_protocol::state::{RefusalReason, TaskState};
use bgb_protocol::task::NOT_BEFORE_TOLERANCE_MS;

use crate::bytes::Bytes;
use site::{DEVICE, DOCUMENTS, SIGNED, Site, TASKS, action, expires, not_before, seen_versions, task_id};

/// Steps that an input may have: each may cost a signature.
const STEPS_MAX: usize = 64;
/// Times that the agent is woken while time passes; then the machine sleeps through the rest.
const WAKES_MAX: usize = 32;
/// Times in a row that it may ask to be woken at once.
const WAKES_AT_ONCE_MAX: usize = 4;

/// How far the agent's connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    None,
    /// The agent has asked for one.
    Asked,
    There,
}

/// What the disk does to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskState {
    Sound,
    /// Nothing new fits.
    Full,
    /// Its next sync fails, once.
    SyncFails,
    /// It fails, or is about to, until the power goes.
    Failing,
}

struct World {
    disk: Arc<SimDisk>,
    disk_state: DiskState,
    agent: Option<Agent>,
    now: Now,
    /// The true time.
    site_now: UnixMillis,
    boot: u8,
    connection: Connection,
    /// The number of the agent's last request for policy.
    asked: u32,
    begun: BTreeMap<TaskId, u32>,
    running: Vec<TaskId>,
    /// Cancels that the agent has on its disk.
    cancelled: BTreeSet<TaskId>,
    /// Final words, but for refusals that are not remembered, since they would be given again.
    words: BTreeMap<TaskId, (TaskState, UnixMillis)>,
    last_session: Option<SessionNumber>,
    versions: [u32; 2],
}

/// Each step is two bytes and what it needs.
pub(crate) fn session(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut world = World {
        disk: Arc::new(SimDisk::new()),
        disk_state: DiskState::Sound,
        agent: None,
        now: Now { unix_ms: SIGNED.0, boot_ms: 1_000, mono_ms: 1_000 },
        site_now: SIGNED,
        boot: 0,
        connection: Connection::None,
        asked: 0,
        begun: BTreeMap::new(),
        running: Vec::new(),
        cancelled: BTreeSet::new(),
        words: BTreeMap::new(),
        last_session: None,
        versions: [0; 2],
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
            site: site.code,
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
        (self.connection, self.running) = (Connection::None, Vec::new());
        match Agent::new(options, disk, key, self.now, 1) {
            Ok(agent) => {
                self.agent = Some(agent);
                self.after_call();
            }
            Err(error) => self.on_failed(&error),
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let number = bytes.below(TASKS);
        match bytes.below(20) {
            0 if self.connection == Connection::Asked => {
                self.connection = Connection::There;
                self.hand_in(Input::Connected { road: RoadTaken::tcp() });
            }
            0 => {}
            1 => self.cut(),
            2 => self.say_welcome(bytes),
            3 => {
                let head = self.head(bytes);
                self.hear(ServerMessage::KeepaliveAnswer(torn(head, bytes)));
            }
            4 | 5 => {
                let push = Site::once().pushes[usize::from(number)].clone();
                self.hear(ServerMessage::Task(Box::new(push)));
            }
            6 => {
                let TaskPush { signed, proof } = Site::once().pushes[usize::from(number)].clone();
                let push = TaskPush { signed: torn(signed, bytes), proof: torn(proof, bytes) };
                self.hear(ServerMessage::Task(Box::new(push)));
            }
            7 => self.say_cancel(number, bytes),
            8 => self.hear(ServerMessage::ResultKept(task_id(number))),
            9 => {
                if let Ok(Some((frame, _))) = Frame::decode(bytes.piece())
                    && let Ok(Some(message)) = ServerMessage::decode(frame)
                {
                    self.hear(message);
                }
            }
            10 => {
                let (window_secs, servers) = (bytes.wide() as u32, servers(bytes));
                self.hear(ServerMessage::Drain(Drain { window_secs, servers }));
            }
            11 => self.end_action(number, bytes),
            12 | 13 => self.pass(bytes.wide() * 100),
            14 => self.say_policy(bytes),
            15 => self.hear(ServerMessage::Refused(REFUSALS[usize::from(number) % REFUSALS.len()])),
            16 => self.harm_disk(bytes),
            17 => self.now.unix_ms = SIGNED.0 + bytes.wide() * 10_000 - u64::from(u16::MAX) * 5_000,
            18 => self.end_process(bytes),
            _ => self.lose_power(bytes),
        }
    }

    fn head(&self, bytes: &mut Bytes<'_>) -> Vec<u8> {
        Site::once().head(bytes.byte(), self.site_now.since(SIGNED))
    }

    fn say_welcome(&mut self, bytes: &mut Bytes<'_>) {
        let welcome = Welcome {
            server: ServerId(1),
            head: if bytes.below(4) == 0 { Vec::new() } else { self.head(bytes) },
            keepalive_secs: bytes.wide() as u32,
            reconnect_window_secs: bytes.wide() as u32,
            reconnect_slot_secs: (bytes.below(2) == 0).then(|| bytes.wide() as u32),
            other_servers: servers(bytes),
            abilities: Abilities::ALL,
        };
        self.hear(ServerMessage::Welcome(Box::new(welcome)));
    }

    fn say_cancel(&mut self, number: u8, bytes: &mut Bytes<'_>) {
        let sound = &Site::once().cancels[usize::from(number)];
        let signed = torn(sound.clone(), bytes);
        // Without room on the disk it is known for this life only.
        let is_kept = signed == *sound
            && self.disk_state != DiskState::Full
            && self.agent.as_ref().is_some_and(|agent| agent.phase() == SessionPhase::Active);
        self.hear(ServerMessage::Cancel(signed));
        if is_kept && self.agent.is_some() {
            self.cancelled.insert(task_id(number));
        }
    }

    fn say_policy(&mut self, bytes: &mut Bytes<'_>) {
        let request = if bytes.below(8) == 0 { bytes.wide() as u32 } else { self.asked };
        let count = u16::from(bytes.below(4));
        for index in 0..count.max(1) {
            let document = (count > 0).then(|| {
                let mut document = Site::once().documents[usize::from(bytes.below(DOCUMENTS))].clone();
                if bytes.below(8) == 0 {
                    document.signed = torn(document.signed, bytes);
                    document.proof = torn(document.proof, bytes);
                }
                document
            });
            self.hear(ServerMessage::Policy(Box::new(PolicyPart { request, index, count, document })));
        }
    }

    fn end_action(&mut self, number: u8, bytes: &mut Bytes<'_>) {
        if !self.running.is_empty() {
            let task = self.running.swap_remove(usize::from(number) % self.running.len());
            let ending = [Ending::Succeeded, Ending::Failed, Ending::Cancelled][usize::from(bytes.below(3))];
            let outcome = Outcome { ending, code: 0, output: bytes.piece().to_vec() };
            self.hand_in(Input::Finished { task, outcome });
        }
    }

    fn harm_disk(&mut self, bytes: &mut Bytes<'_>) {
        match (bytes.below(4), self.disk_state) {
            (_, DiskState::SyncFails | DiskState::Failing) => {}
            (0, _) => self.set_full(false),
            (1, _) => self.set_full(true),
            (2, _) => {
                self.set_full(false);
                self.disk.fail_next_sync();
                self.disk_state = DiskState::SyncFails;
            }
            _ => {
                self.set_full(false);
                self.disk.fail_after_ops(u64::from(bytes.byte()));
                self.disk_state = DiskState::Failing;
            }
        }
    }

    fn set_full(&mut self, is_full: bool) {
        self.disk.set_full(is_full);
        self.disk_state = if is_full { DiskState::Full } else { DiskState::Sound };
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
        match agent.handle(self.now, input) {
            Ok(()) => self.after_call(),
            Err(error) => self.on_failed(&error),
        }
    }

    fn wake(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        match agent.handle_time(self.now) {
            Ok(()) => self.after_call(),
            Err(error) => self.on_failed(&error),
        }
    }

    /// The agent ends, outputs and all.
    fn on_failed(&mut self, error: &dyn std::fmt::Display) {
        assert_ne!(self.disk_state, DiskState::Sound, "the disk is sound, and the agent says: {error}");
        if self.disk_state == DiskState::SyncFails {
            self.disk_state = DiskState::Sound;
        }
        (self.agent, self.connection, self.running) = (None, Connection::None, Vec::new());
    }

    /// The agent is woken when it asked for it.
    fn pass(&mut self, ms: u64) {
        let until_ms = self.now.boot_ms + ms;
        let mut at_once = 0;
        for _ in 0..WAKES_MAX {
            let Some(due_ms) = self.agent.as_ref().and_then(Agent::next_deadline) else { break };
            if due_ms > until_ms {
                break;
            }
            at_once = if due_ms <= self.now.boot_ms { at_once + 1 } else { 0 };
            assert!(at_once <= WAKES_AT_ONCE_MAX, "the agent asks to be woken at once again and again");
            self.advance(due_ms.saturating_sub(self.now.boot_ms));
            self.wake();
        }
        self.advance(until_ms - self.now.boot_ms);
        self.wake();
    }

    fn advance(&mut self, ms: u64) {
        let Now { unix_ms, boot_ms, mono_ms } = &mut self.now;
        (*unix_ms, *boot_ms, *mono_ms) = (*unix_ms + ms, *boot_ms + ms, *mono_ms + ms);
        self.site_now = self.site_now.plus(ms);
    }

    /// The agent's process ends, in good order or not, and is started again.
    fn end_process(&mut self, bytes: &mut Bytes<'_>) {
        if bytes.below(2) == 0 {
            self.hand_in(Input::Stop);
            assert!(self.agent.as_ref().is_none_or(|agent| agent.next_deadline().is_none()));
        }
        self.agent = None;
        self.start();
    }

    fn lose_power(&mut self, bytes: &mut Bytes<'_>) {
        self.agent = None;
        self.disk.crash(u64::from(bytes.byte()));
        if self.disk_state != DiskState::Full {
            self.disk_state = DiskState::Sound;
        }
        if bytes.below(2) == 0 {
            self.boot = self.boot.wrapping_add(1);
            (self.now.boot_ms, self.now.mono_ms) = (1_000, 1_000);
        }
        self.start();
    }

    fn after_call(&mut self) {
        while let Some(output) = self.agent.as_mut().and_then(Agent::poll_output) {
            match output {
                Output::Say(message) => self.on_word(&message),
                Output::Start(start) => self.on_start(&start),
                Output::Disconnect { .. } => {
                    assert_ne!(self.connection, Connection::None, "it ends a connection that there is not");
                    self.connection = Connection::None;
                }
                Output::Connect { server, .. } => {
                    assert!(server.contains(':'), "it connects to {server:?}");
                    assert_eq!(self.connection, Connection::None, "it connects while it has a connection");
                    self.connection = Connection::Asked;
                }
                Output::Kill { task } => {
                    assert!(self.begun.contains_key(&task), "what was not begun is killed");
                }
            }
        }
        let Some(agent) = &self.agent else { return };
        for (seen, version) in self.versions.iter_mut().zip(seen_versions(agent.settings())) {
            assert!(
                version.is_none_or(|version| version >= *seen),
                "policy goes back to version {version:?}"
            );
            *seen = version.unwrap_or(*seen);
        }
    }

    fn on_word(&mut self, message: &AgentMessage) {
        assert_eq!(self.connection, Connection::There, "something is said to nobody");
        match message {
            AgentMessage::Hello(hello) => {
                let last = self.last_session.replace(hello.session);
                assert!(last < Some(hello.session), "session {} comes after {last:?}", hello.session);
            }
            AgentMessage::PolicyRequest(request) => self.asked = *request,
            AgentMessage::Result(result) => self.on_result(result),
            AgentMessage::Keepalive
            | AgentMessage::Received(_)
            | AgentMessage::Running(_)
            | AgentMessage::Goodbye => {}
        }
    }

    fn on_result(&mut self, result: &SignedResult) {
        let statement = result.read().expect("an agent's result can be read");
        assert_eq!(statement.device, DEVICE);
        if let Some(RefusalReason::Expired | RefusalReason::NotATarget | RefusalReason::WrongSite) =
            statement.refusal
        {
            return;
        }
        assert!(
            statement.state != TaskState::Succeeded || self.begun_by_any(statement.task),
            "a task succeeded that was never begun"
        );
        let word = (statement.state, statement.finished);
        let first = *self.words.entry(statement.task).or_insert(word);
        assert_eq!(first, word, "a task is answered in two ways");
    }

    /// Whether a task was begun, here or by the agent itself, which alone carries out the download of policy.
    fn begun_by_any(&self, task: TaskId) -> bool {
        let is_own =
            (0..TASKS).any(|number| task_id(number) == task && action(number) == Action::DownloadPolicy);
        is_own || self.begun.contains_key(&task)
    }

    fn on_start(&mut self, start: &Start) {
        let Start { task, action: of, settings, .. } = start;
        let number = (0..TASKS - 1).find(|number| task_id(*number) == *task);
        let number = number.expect("nothing starts that the site did not sign for this device");
        assert_eq!(*of, action(number), "another action starts than was signed");
        assert!(settings.allows(*of), "{of} starts, which policy does not allow");
        assert!(!self.cancelled.contains(task), "{of} starts after it was cancelled");
        let own_now = self.agent.as_ref().map(|agent| agent.own_time(self.now)).unwrap_or_default();
        assert!(own_now <= self.site_now, "own time is ahead of the site's");
        assert!(own_now < expires(), "{of} starts after its end");
        assert!(own_now.plus(NOT_BEFORE_TOLERANCE_MS) >= not_before(number), "{of} starts before its time");
        let times = self.begun.entry(*task).or_default();
        *times += 1;
        assert!(*times == 1 || of.is_repeatable(), "{of} starts for the {times}. time");
        self.running.push(*task);
    }
}

const SERVERS: [&str; 4] = ["one.example.org:10123", "two.example.org:10123", "[::1]:1", "nowhere"];

/// What a server can say at the end of a session.
const REFUSALS: [RefusedReason; 6] = [
    RefusedReason::Blocked,
    RefusedReason::Certificate,
    RefusedReason::Superseded,
    RefusedReason::Unavailable,
    RefusedReason::Full,
    RefusedReason::Protocol,
];

/// Other servers that a server tells of, sound or not.
fn servers(bytes: &mut Bytes<'_>) -> Vec<String> {
    (0..bytes.below(4)).map(|_| SERVERS[usize::from(bytes.below(4))].to_owned()).collect()
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
