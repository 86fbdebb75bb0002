//! What happened, a line for each step, and its hash: the same seed gives the same hash.
//!
//! A replay prints the lines; a run over many seeds only hashes them and keeps the last ones for the report of a violation.
//! Nothing that differs from run to run may stand in a line: keys and ECDSA signatures are drawn from the system's
//! randomness, so lines say what was signed and never the signature.

use std::collections::VecDeque;
use std::fmt;

use bgb_protocol::message::{AgentMessage, ServerMessage};
use bgb_protocol::task::{SignedCancel, SignedTask};

/// Lines that a report of a violation shows: what led to it, on one screen.
const LAST_LINES: usize = 40;

/// The trace of one run.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    steps: u64,
    is_printed: bool,
    last: VecDeque<String>,
}

impl Trace {
    pub(crate) fn new(is_printed: bool) -> Self {
        // FNV-1a's offset basis for 64 bits.
        Self { hash: 0xcbf2_9ce4_8422_2325, steps: 0, is_printed, last: VecDeque::with_capacity(LAST_LINES) }
    }

    /// Notes a step.
    pub(crate) fn say(&mut self, now_ms: u64, what: fmt::Arguments<'_>) {
        self.steps += 1;
        let line = format!("{:>6} {:>9}.{:03}  {what}", self.steps, now_ms / 1_000, now_ms % 1_000);
        for byte in line.bytes() {
            // FNV-1a's prime for 64 bits.
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.is_printed {
            println!("{line}");
        }
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// The last lines, one below the other.
    pub(crate) fn last_lines(&self) -> String {
        self.last.iter().fold(String::new(), |text, line| text + line + "\n")
    }
}

/// What an agent says, in a few words.
pub(crate) fn said_by_agent(message: &AgentMessage) -> String {
    match message {
        AgentMessage::Hello(hello) => {
            format!("hello, session {}, knows {} tasks", hello.session, hello.known_tasks.len())
        }
        AgentMessage::Keepalive => "keepalive".to_owned(),
        AgentMessage::Received(task) => format!("received {task}"),
        AgentMessage::Running(task) => format!("running {task}"),
        AgentMessage::Result(result) => match result.read() {
            Ok(statement) => format!("result of {}: {}", statement.task, statement.state),
            Err(error) => format!("a result that cannot be read: {error}"),
        },
        AgentMessage::PolicyRequest(request) => format!("policy request {request}"),
        AgentMessage::Goodbye => "goodbye".to_owned(),
    }
}

/// And what a server says.
pub(crate) fn said_by_server(message: &ServerMessage) -> String {
    match message {
        ServerMessage::Welcome(welcome) => {
            format!("welcome of server {}, keepalive {} s", welcome.server, welcome.keepalive_secs)
        }
        ServerMessage::KeepaliveAnswer(_) => "keepalive answer".to_owned(),
        ServerMessage::Task(push) => match SignedTask::decode(&push.signed) {
            Ok(task) => format!("task {}", task.statement().task),
            Err(error) => format!("a task that cannot be read: {error}"),
        },
        ServerMessage::Cancel(signed) => match SignedCancel::decode(signed) {
            Ok(cancel) => format!("cancel of {}", cancel.statement().task),
            Err(error) => format!("a cancel that cannot be read: {error}"),
        },
        ServerMessage::ResultKept(task) => format!("result kept of {task}"),
        ServerMessage::Policy(part) => {
            format!("policy part {} of {} for {}", part.index + 1, part.count, part.request)
        }
        ServerMessage::Drain(drain) => format!("drain, back within {} s", drain.window_secs),
        ServerMessage::Refused(reason) => format!("refused: {reason:?}"),
    }
}
