//! A site's manager and one of its servers, played for one agent.

use bgb_daemon::disk::SimDisk;
use bgb_protocol::action::Parameters;
use bgb_protocol::head::{HeadStatement, SignedHead};
use bgb_protocol::ids::{Generation, ServerId};
use bgb_protocol::message::{PolicyDocument, TaskPush};
use bgb_protocol::policy::{PolicyScope, PolicyStatement, SignedPolicy};
use bgb_protocol::result::ResultStatement;
use bgb_protocol::signature::SigningKey;
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{CancelStatement, SignedCancel, SignedTask, TaskStatement};

use super::*;

pub(super) const HOUR_MS: u64 = 60 * 60 * 1000;

/// The device that is played for.
const DEVICE: DeviceId = DeviceId(5);

pub(super) fn id(number: u8) -> TaskId {
    TaskId::from_bytes([number; 16])
}

/// A task to be made.
#[derive(Clone, Debug)]
pub(super) struct TaskSpec {
    pub(super) number: u8,
    pub(super) action: Action,
    pub(super) validity_ms: u64,
}

impl TaskSpec {
    pub(super) fn new(number: u8, action: Action) -> Self {
        Self { number, action, validity_ms: HOUR_MS }
    }
}

/// The manager's side.
pub(super) struct Site {
    key: SigningKey,
    /// Its time at the bench's beginning, and moved by tests only.
    pub(super) time_ms: u64,
}

impl Site {
    fn new() -> Self {
        Self { key: SigningKey::from_seed([1; 32]), time_ms: 1_800_000_000_000 }
    }

    pub(super) fn push(&self, task: &TaskSpec, _now: Now) -> TaskPush {
        self.push_to(task, &[DEVICE.0], DEVICE)
    }

    fn push_to(&self, task: &TaskSpec, devices: &[u32], proved: DeviceId) -> TaskPush {
        let targets = TargetSet::new(devices.iter().copied().collect()).unwrap();
        let statement = TaskStatement {
            site: "LAB".parse().unwrap(),
            task: id(task.number),
            action: task.action.code(),
            parameters: Parameters::none(),
            targets: targets.digest(),
            not_before: UnixMillis(self.time_ms),
            expires: UnixMillis(self.time_ms + task.validity_ms),
            approval: None,
        };
        let mut proof = Vec::new();
        targets.prove(proved, &mut proof);
        TaskPush { signed: SignedTask::sign(statement, &self.key).bytes().to_vec(), proof }
    }

    pub(super) fn cancel(&self, number: u8) -> Vec<u8> {
        let statement = CancelStatement {
            site: "LAB".parse().unwrap(),
            task: id(number),
            expires: UnixMillis(self.time_ms + HOUR_MS),
            cancelled: UnixMillis(self.time_ms),
        };
        SignedCancel::sign(statement, &self.key).bytes().to_vec()
    }

    pub(super) fn head(&self, time_ms: u64) -> Vec<u8> {
        let statement = HeadStatement {
            site: "LAB".parse().unwrap(),
            generation: Generation([1; 16]),
            sequence: 1,
            time: UnixMillis(time_ms),
        };
        SignedHead::sign(statement, &self.key).bytes().to_vec()
    }

    pub(super) fn welcome(&self) -> Welcome {
        Welcome {
            server: ServerId(1),
            head: self.head(self.time_ms),
            keepalive_secs: 900,
            reconnect_window_secs: 5,
            reconnect_slot_secs: None,
            other_servers: Vec::new(),
            abilities: Abilities::ALL,
        }
    }

    fn policy(&self, settings: &str, priority: i32, version: u64) -> PolicyDocument {
        let statement = PolicyStatement {
            site: "LAB".parse().unwrap(),
            // A name for each priority and setting, so that several can be in force.
            name: format!("document {}", settings.len() + priority as usize),
            version,
            priority,
            scope: PolicyScope::Everyone,
            issued: UnixMillis(self.time_ms),
            settings: Some(settings.to_owned()),
        };
        PolicyDocument {
            signed: SignedPolicy::sign(statement, &self.key).bytes().to_vec(),
            proof: Vec::new(),
        }
    }
}

/// An agent, the world that it sees, and what it did to it.
pub(super) struct Bench {
    pub(super) site: Site,
    pub(super) disk: Arc<SimDisk>,
    pub(super) now: Now,
    agent: Option<Agent>,
    boot: BootId,
    device_key: Vec<u8>,
    seed: u64,
    pub(super) platform: Platform,
    pub(super) said: Vec<AgentMessage>,
    pub(super) started: Vec<TaskId>,
    pub(super) killed: Vec<TaskId>,
    pub(super) connecting_to: Option<String>,
    pub(super) disconnects: u32,
    last_hello: Option<Hello>,
}

impl Bench {
    /// An agent that has begun to connect.
    pub(super) fn new() -> Self {
        let mut bench = Self::without_agent();
        bench.start().unwrap();
        bench.drain();
        bench
    }

    pub(super) fn without_agent() -> Self {
        let site = Site::new();
        let now = Now { unix_ms: site.time_ms, boot_ms: 1_000, mono_ms: 1_000 };
        Self {
            site,
            disk: Arc::new(SimDisk::new()),
            now,
            agent: None,
            boot: BootId([1; 16]),
            device_key: DeviceKey::generate().unwrap().1,
            seed: 1,
            platform: Platform::default(),
            said: Vec::new(),
            started: Vec::new(),
            killed: Vec::new(),
            connecting_to: None,
            disconnects: 0,
            last_hello: None,
        }
    }

    /// An agent that was welcomed and has its (empty) policy.
    pub(super) fn signed_in() -> Self {
        let mut bench = Self::new();
        bench.sign_in();
        bench.answer_policy(&[]);
        bench
    }

    /// Makes the agent, its old life being over.
    pub(super) fn start(&mut self) -> Result<(), AgentError> {
        self.agent = None;
        self.seed += 1;
        let options = AgentOptions {
            site: "LAB".parse().unwrap(),
            device: DEVICE,
            boot: self.boot,
            servers: vec!["a:1".to_owned(), "b:1".to_owned()],
            task_keys: TrustedKeys::new([self.site.key.public()]),
            state: PathBuf::from("/agent/state"),
            agent_version: "0.1.0".to_owned(),
            platform: self.platform.clone(),
        };
        let key = DeviceKey::from_pkcs8(&self.device_key).unwrap();
        let disk = Arc::clone(&self.disk) as Arc<dyn Disk>;
        self.agent = Some(Agent::new(options, disk, key, self.now, self.seed)?);
        Ok(())
    }

    pub(super) fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    pub(super) fn deadline(&self) -> u64 {
        self.agent().next_deadline().unwrap()
    }

    /// Hands something in, and carries out what comes out.
    pub(super) fn handle(&mut self, input: Input) {
        self.try_handle(input).unwrap();
    }

    pub(super) fn try_handle(&mut self, input: Input) -> Result<(), AgentError> {
        self.agent.as_mut().unwrap().handle(self.now, input)?;
        self.drain();
        Ok(())
    }

    pub(super) fn server(&mut self, message: ServerMessage) {
        self.handle(Input::Said(message));
    }

    /// A head comes, in answer to a keepalive.
    pub(super) fn head(&mut self, time_ms: u64) {
        let head = self.site.head(time_ms);
        self.server(ServerMessage::KeepaliveAnswer(head));
    }

    pub(super) fn push(&mut self, task: &TaskSpec) {
        let push = self.site.push(task, self.now);
        self.server(ServerMessage::Task(Box::new(push)));
    }

    /// A task for the neighbour, with the neighbour's proof.
    pub(super) fn push_with_neighbours_proof(&mut self, number: u8) {
        let neighbour = DeviceId(DEVICE.0 + 1);
        let push = self.site.push_to(&TaskSpec::new(number, Action::Ping), &[neighbour.0], neighbour);
        self.server(ServerMessage::Task(Box::new(push)));
    }

    pub(super) fn cancel(&mut self, number: u8) {
        let cancel = self.site.cancel(number);
        self.server(ServerMessage::Cancel(cancel));
    }

    pub(super) fn finish(&mut self, task: TaskId, ending: Ending, output: &[u8]) {
        let code = if ending == Ending::Succeeded { 0 } else { 1 };
        self.handle(Input::Finished { task, outcome: Outcome { ending, code, output: output.to_vec() } });
    }

    /// Lets time pass, with all deadlines on the way. The server answers keepalives, and says nothing else.
    pub(super) fn pass(&mut self, millis: u64) {
        let end_ms = self.now.boot_ms + millis;
        loop {
            let due_ms = self.agent().next_deadline().unwrap_or(u64::MAX).max(self.now.boot_ms + 1);
            let step_ms = due_ms.min(end_ms) - self.now.boot_ms;
            self.now.boot_ms += step_ms;
            self.now.mono_ms += step_ms;
            self.now.unix_ms += step_ms;
            let said_before = self.said.len();
            self.agent.as_mut().unwrap().handle_time(self.now).unwrap();
            self.drain();
            if self.said[said_before..].contains(&AgentMessage::Keepalive) {
                self.server(ServerMessage::KeepaliveAnswer(Vec::new()));
            }
            if self.now.boot_ms >= end_ms {
                return;
            }
        }
    }

    /// Comes to be welcomed, from wherever the session is.
    pub(super) fn sign_in(&mut self) {
        while self.agent().phase() != SessionPhase::Connecting {
            if self.agent().phase() != SessionPhase::Resting {
                self.handle(Input::Disconnected { reason: "cut".to_owned() });
            }
            let wait_ms = self.deadline().saturating_sub(self.now.boot_ms).max(1);
            self.pass(wait_ms);
        }
        self.handle(Input::Connected { road: RoadTaken::tcp() });
        let welcome = self.site.welcome();
        self.server(ServerMessage::Welcome(Box::new(welcome)));
    }

    /// Comes to be welcomed by a server that has no head.
    pub(super) fn sign_in_without_head(&mut self) {
        self.handle(Input::Connected { road: RoadTaken::tcp() });
        let welcome = Welcome { head: Vec::new(), ..self.site.welcome() };
        self.server(ServerMessage::Welcome(Box::new(welcome)));
    }

    pub(super) fn reconnect(&mut self) {
        self.handle(Input::Disconnected { reason: "cut".to_owned() });
        self.sign_in();
    }

    /// The process ends and begins again.
    pub(super) fn restart(&mut self) {
        self.start().unwrap();
        self.drain();
        self.sign_in();
    }

    /// The machine boots.
    pub(super) fn boot_again(&mut self) {
        self.boot.0[0] += 1;
        self.now.boot_ms = 1_000;
        self.now.mono_ms = 1_000;
    }

    /// The agent asks for policy and gets these documents: settings, priority, version.
    pub(super) fn apply_policy(&mut self, documents: &[(&str, i32, u64)]) {
        self.push(&TaskSpec::new(250, Action::DownloadPolicy));
        self.answer_policy(documents);
        // A task of its own for each time.
        let expired = self.site.time_ms + 1;
        self.site.time_ms = expired;
        self.push(&TaskSpec::new(251, Action::DownloadPolicy));
        self.answer_policy(documents);
    }

    /// The one part of an answer to the last request for policy.
    pub(super) fn policy_part(&self, settings: &str, priority: i32, version: u64) -> PolicyPart {
        let document = Some(self.site.policy(settings, priority, version));
        PolicyPart { request: self.policy_request(), index: 0, count: 1, document }
    }

    fn policy_request(&self) -> u32 {
        let asked = self.said.iter().rev().find_map(|message| match message {
            AgentMessage::PolicyRequest(request) => Some(*request),
            _ => None,
        });
        asked.unwrap()
    }

    /// Answers the last request for policy.
    pub(super) fn answer_policy(&mut self, documents: &[(&str, i32, u64)]) {
        let (request, count) = (self.policy_request(), documents.len() as u16);
        if documents.is_empty() {
            self.server(ServerMessage::Policy(Box::new(PolicyPart {
                request,
                index: 0,
                count,
                document: None,
            })));
        }
        for (index, (settings, priority, version)) in documents.iter().enumerate() {
            let document = Some(self.site.policy(settings, *priority, *version));
            let part = PolicyPart { request, index: index as u16, count, document };
            self.server(ServerMessage::Policy(Box::new(part)));
        }
    }

    pub(super) fn hello(&self) -> &Hello {
        self.last_hello.as_ref().unwrap()
    }

    pub(super) fn has_said(&self, message: &AgentMessage) -> bool {
        self.said.contains(message)
    }

    /// What was said of a task's end, verified.
    pub(super) fn results_of(&self, task: TaskId) -> Vec<ResultStatement> {
        self.results().map(|(statement, _)| statement).filter(|statement| statement.task == task).collect()
    }

    pub(super) fn outputs_of(&self, task: TaskId) -> Vec<String> {
        self.results().filter(|(statement, _)| statement.task == task).map(|(_, output)| output).collect()
    }

    pub(super) fn all_results(&self) -> usize {
        self.results().count()
    }

    fn results(&self) -> impl Iterator<Item = (ResultStatement, String)> {
        let public = DeviceKey::from_pkcs8(&self.device_key).unwrap().public();
        self.said.iter().filter_map(move |message| match message {
            AgentMessage::Result(result) => {
                result.verify(&public).unwrap();
                Some((result.read().unwrap(), String::from_utf8(result.output.clone()).unwrap()))
            }
            _ => None,
        })
    }

    pub(super) fn drain(&mut self) {
        while let Some(output) = self.agent.as_mut().unwrap().poll_output() {
            match output {
                Output::Connect { server, .. } => self.connecting_to = Some(server),
                Output::Disconnect { .. } => self.disconnects += 1,
                Output::Say(message) => {
                    if let AgentMessage::Hello(hello) = &message {
                        self.last_hello = Some(Hello::clone(hello));
                    }
                    self.said.push(message);
                }
                Output::Start(start) => self.started.push(start.task),
                Output::Kill { task } => self.killed.push(task),
            }
        }
    }
}
