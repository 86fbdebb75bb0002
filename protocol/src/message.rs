//! The messages of a session: what an agent and a server say to each other inside frames.
//!
//! Both directions are closed enums: a type that is not listed for a direction ends the session, unless it is one of those
//! that may be skipped (0x8000 and above). Which message a state allows is the business of the session machines.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec::{self, CodecError, VERSION};
use crate::frame::{self, Frame, FrameError, SKIPPABLE_FROM};
use crate::ids::{BootId, ServerId, SessionNumber, TaskId};
use crate::result::SignedResult;
use crate::state::TaskState;

/// Most known tasks that a hello names.
pub const KNOWN_TASKS_MAX: usize = 256;

/// Most bytes of each text in a hello (version, platform, host name), which holds no control character.
pub const TEXT_BYTES_MAX: usize = 256;

/// Highest session number and policy version of a hello: the site's database counts to 2^63 - 1.
const NUMBER_MAX: usize = i64::MAX as usize;

/// How often an agent speaks when it has nothing to say: 15 minutes, in seconds.
pub const KEEPALIVE_SECS_DEFAULT: u32 = 15 * 60;

/// The shortest keepalive that a hello may ask for, in seconds.
pub const KEEPALIVE_SECS_MIN: u32 = 20;

/// How a session's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Road {
    /// Straight over TCP.
    Tcp,
    /// Binary messages of a WebSocket.
    WebSocket,
    /// Numbered POSTs up, held GETs down.
    LongPoll,
}

/// Why an agent is not on the road above the one that it took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoadReason {
    /// The connection was refused.
    Refused,
    /// Nothing came back in time.
    TimedOut,
    /// The connection was reset.
    Reset,
    /// A proxy answered instead, with this status.
    ProxyAnswer(u16),
    /// Another certificate than the site's was shown; its issuer.
    Intercepted(String),
}

/// The road that a session took, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoadTaken {
    /// How the bytes travel.
    pub road: Road,
    /// Whether an outer TLS is around it (HTTPS).
    pub outer_tls: bool,
    /// Whether it goes through an HTTP proxy.
    pub proxied: bool,
    /// Why it is not TCP, when it is not.
    pub reason: Option<RoadReason>,
}

impl RoadTaken {
    /// Straight over TCP.
    #[must_use]
    pub fn tcp() -> Self {
        Self { road: Road::Tcp, outer_tls: false, proxied: false, reason: None }
    }
}

/// What a side can do beyond the basics, as a set of bits. A side uses only what the other has named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities(pub u64);

impl Abilities {
    /// Asks for and takes policy documents.
    pub const POLICY: Self = Self(1);
    /// Understands drain.
    pub const DRAIN: Self = Self(2);
    /// All that this release can do.
    pub const ALL: Self = Self(1 | 2);

    /// Whether all of `other` are among these.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The machine that an agent runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `windows`, `macos`.
    pub os: String,
    /// Name and version of the distribution or edition.
    pub os_version: String,
    /// Processor architecture, such as `x86_64`.
    pub arch: String,
    /// The machine's host name.
    pub hostname: String,
}

/// A task that the agent already has, so that it is not pushed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownTask {
    /// The task.
    pub task: TaskId,
    /// How far it has come.
    pub state: TaskState,
}

/// The first message of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's release.
    pub agent_version: String,
    /// Its machine.
    pub platform: Platform,
    /// Which boot of the machine speaks.
    pub boot: BootId,
    /// Which session of the device this is; the highest wins.
    pub session: SessionNumber,
    /// What the agent can do beyond the basics.
    pub abilities: Abilities,
    /// The road that it took, and why.
    pub road: RoadTaken,
    /// A keepalive shorter than the server's own, in seconds, 20 at least; `None` for the server's.
    pub keepalive_secs: Option<u32>,
    /// The machine's wall clock less the agent's own time, in milliseconds; 0 before the first signed head.
    pub clock_skew_ms: i64,
    /// The highest policy version that is applied; 0 for none.
    pub policy_version: u64,
    /// Unexpired tasks in the journal, 256 at most, the newest first.
    pub known_tasks: Vec<KnownTask>,
}

/// The server's answer to a hello that it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Who answers.
    pub server: ServerId,
    /// The newest signed head, if the server has one: bytes of a [`crate::head::SignedHead`].
    #[serde(with = "serde_bytes")]
    pub head: Vec<u8>,
    /// How often the agent is to speak when it has nothing to say, in seconds.
    pub keepalive_secs: u32,
    /// When this server goes away, come back within so many seconds (5 to 600).
    pub reconnect_window_secs: u32,
    /// The agent's own moment within that window, in seconds, where the server orders the return; else `None`.
    pub reconnect_slot_secs: Option<u32>,
    /// Other servers of the site, `host:port`.
    pub other_servers: Vec<String>,
    /// What the server can do beyond the basics.
    pub abilities: Abilities,
}

/// Why a server ends a session, said to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusedReason {
    /// The device is blocked by the site.
    Blocked,
    /// The certificate was revoked, or has ended.
    Certificate,
    /// The device has a newer session.
    Superseded,
    /// The server cannot read the site's queue and takes no new sessions; try another, or later.
    Unavailable,
    /// The server has as many sessions as it holds.
    Full,
    /// The agent said something that the protocol does not allow here.
    Protocol,
}

/// A policy document with the device's proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDocument {
    /// Bytes of a [`crate::policy::SignedPolicy`].
    #[serde(with = "serde_bytes")]
    pub signed: Vec<u8>,
    /// Proof of membership; empty for a document that is for everyone.
    #[serde(with = "serde_bytes")]
    pub proof: Vec<u8>,
}

/// One part of the answer to a policy request: documents come one to a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPart {
    /// The request that it answers.
    pub request: u32,
    /// Which document this is, counted from 0.
    pub index: u16,
    /// How many there are in all; 0 when no document is for this device, and then this part carries none.
    pub count: u16,
    /// The document.
    pub document: Option<PolicyDocument>,
}

/// A task on its way to one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskPush {
    /// Bytes of a [`crate::task::SignedTask`].
    #[serde(with = "serde_bytes")]
    pub signed: Vec<u8>,
    /// The device's proof of membership.
    #[serde(with = "serde_bytes")]
    pub proof: Vec<u8>,
}

/// The server goes away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Come back within so many seconds, at a random moment (5 to 600).
    pub window_secs: u32,
    /// Where to go meanwhile, `host:port`; empty: come back here.
    pub servers: Vec<String>,
}

/// Agent to server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentMessage {
    /// Signs in.
    Hello(Box<Hello>),
    /// Is still there.
    Keepalive,
    /// Has a task and has verified it: a hint.
    Received(TaskId),
    /// Has begun to act: a hint.
    Running(TaskId),
    /// Has ended.
    Result(Box<SignedResult>),
    /// Asks for its policy documents; the number comes back with them.
    PolicyRequest(u32),
    /// Goes away on purpose.
    Goodbye,
}

/// Server to agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// Signed in.
    Welcome(Box<Welcome>),
    /// Answers a keepalive with the newest signed head (empty while the server has none).
    KeepaliveAnswer(Vec<u8>),
    /// A task.
    Task(Box<TaskPush>),
    /// A task ends: bytes of a [`crate::task::SignedCancel`].
    Cancel(Vec<u8>),
    /// The result of this task is durable here.
    ResultKept(TaskId),
    /// A part of the answer to a policy request.
    Policy(Box<PolicyPart>),
    /// The server goes away.
    Drain(Drain),
    /// The session ends.
    Refused(RefusedReason),
}

/// Frame types. Those of agents begin with 0x00, those of servers with 0x01; blobs (0x0007, 0x0107) and renewal (0x0008)
/// have their numbers already.
pub mod kind {
    /// Agent: hello.
    pub const HELLO: u16 = 0x0001;
    /// Agent: keepalive.
    pub const KEEPALIVE: u16 = 0x0002;
    /// Agent: received.
    pub const RECEIVED: u16 = 0x0003;
    /// Agent: running.
    pub const RUNNING: u16 = 0x0004;
    /// Agent: result.
    pub const RESULT: u16 = 0x0005;
    /// Agent: policy request.
    pub const POLICY_REQUEST: u16 = 0x0006;
    /// Agent: goodbye.
    pub const GOODBYE: u16 = 0x0009;
    /// Server: welcome.
    pub const WELCOME: u16 = 0x0101;
    /// Server: keepalive answer.
    pub const KEEPALIVE_ANSWER: u16 = 0x0102;
    /// Server: task.
    pub const TASK: u16 = 0x0103;
    /// Server: cancel.
    pub const CANCEL: u16 = 0x0104;
    /// Server: result kept.
    pub const RESULT_KEPT: u16 = 0x0105;
    /// Server: policy.
    pub const POLICY: u16 = 0x0106;
    /// Server: drain.
    pub const DRAIN: u16 = 0x0108;
    /// Server: refused.
    pub const REFUSED: u16 = 0x0109;
}

/// Why a frame is no message of its direction.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MessageError {
    /// The stream cannot go on.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A type that may not be skipped and is not known for this direction.
    #[error("frames of type {0:#06x} are not known here")]
    UnknownType(u16),
    /// The body is not what the type says, or is over a limit.
    #[error(transparent)]
    Body(#[from] CodecError),
}

impl AgentMessage {
    /// Appends the message as a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => put(kind::HELLO, hello, out),
            Self::Keepalive => put(kind::KEEPALIVE, &(), out),
            Self::Received(task) => put(kind::RECEIVED, task, out),
            Self::Running(task) => put(kind::RUNNING, task, out),
            Self::Result(result) => put(kind::RESULT, result, out),
            Self::PolicyRequest(request) => put(kind::POLICY_REQUEST, request, out),
            Self::Goodbye => put(kind::GOODBYE, &(), out),
        }
    }

    /// The message in `frame`; `None` when it is one to be skipped.
    ///
    /// # Errors
    /// As [`MessageError`] says.
    pub fn decode(frame: Frame<'_>) -> Result<Option<Self>, MessageError> {
        let Frame { kind, version, body } = frame;
        Ok(Some(match kind {
            kind::HELLO => Self::Hello(take::<Box<Hello>>("hello", version, body)?.checked()?),
            kind::KEEPALIVE => take::<()>("keepalive", version, body).map(|()| Self::Keepalive)?,
            kind::RECEIVED => Self::Received(take("received", version, body)?),
            kind::RUNNING => Self::Running(take("running", version, body)?),
            kind::RESULT => Self::Result(take("result", version, body)?),
            kind::POLICY_REQUEST => Self::PolicyRequest(take("policy request", version, body)?),
            kind::GOODBYE => take::<()>("goodbye", version, body).map(|()| Self::Goodbye)?,
            unknown if unknown >= SKIPPABLE_FROM => return Ok(None),
            unknown => return Err(MessageError::UnknownType(unknown)),
        }))
    }
}

impl ServerMessage {
    /// Appends the message as a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome(welcome) => put(kind::WELCOME, welcome, out),
            Self::KeepaliveAnswer(head) => put(kind::KEEPALIVE_ANSWER, serde_bytes::Bytes::new(head), out),
            Self::Task(push) => put(kind::TASK, push, out),
            Self::Cancel(signed) => put(kind::CANCEL, serde_bytes::Bytes::new(signed), out),
            Self::ResultKept(task) => put(kind::RESULT_KEPT, task, out),
            Self::Policy(part) => put(kind::POLICY, part, out),
            Self::Drain(drain) => put(kind::DRAIN, drain, out),
            Self::Refused(reason) => put(kind::REFUSED, reason, out),
        }
    }

    /// The message in `frame`; `None` when it is one to be skipped.
    ///
    /// # Errors
    /// As [`MessageError`] says.
    pub fn decode(frame: Frame<'_>) -> Result<Option<Self>, MessageError> {
        let Frame { kind, version, body } = frame;
        let bytes =
            |what| take::<serde_bytes::ByteBuf>(what, version, body).map(serde_bytes::ByteBuf::into_vec);
        Ok(Some(match kind {
            kind::WELCOME => Self::Welcome(take("welcome", version, body)?),
            kind::KEEPALIVE_ANSWER => Self::KeepaliveAnswer(bytes("keepalive answer")?),
            kind::TASK => Self::Task(take("task", version, body)?),
            kind::CANCEL => Self::Cancel(bytes("cancel")?),
            kind::RESULT_KEPT => Self::ResultKept(take("result kept", version, body)?),
            kind::POLICY => Self::Policy(take("policy", version, body)?),
            kind::DRAIN => Self::Drain(take("drain", version, body)?),
            kind::REFUSED => Self::Refused(take("refused", version, body)?),
            unknown if unknown >= SKIPPABLE_FROM => return Ok(None),
            unknown => return Err(MessageError::UnknownType(unknown)),
        }))
    }
}

impl Hello {
    fn checked(self: Box<Self>) -> Result<Box<Self>, CodecError> {
        let limited = |what, found, limit| {
            if found > limit { Err(CodecError::Limit { what, found, limit }) } else { Ok(()) }
        };
        limited("a hello's known tasks", self.known_tasks.len(), KNOWN_TASKS_MAX)?;
        let Platform { os, os_version, arch, hostname } = &self.platform;
        let issuer = match &self.road.reason {
            Some(RoadReason::Intercepted(issuer)) => Some(issuer),
            _ => None,
        };
        for text in [&self.agent_version, os, os_version, arch, hostname].into_iter().chain(issuer) {
            limited("a text of a hello, in bytes", text.len(), TEXT_BYTES_MAX)?;
            if text.contains(char::is_control) {
                return Err(CodecError::Control("a text of a hello"));
            }
        }
        limited("a hello's session number", self.session.0 as usize, NUMBER_MAX)?;
        limited("a hello's policy version", self.policy_version as usize, NUMBER_MAX)?;
        if let Some(found) = self.keepalive_secs.filter(|&asked| asked < KEEPALIVE_SECS_MIN) {
            let (what, least) =
                ("the keepalive that a hello asks for, in seconds", KEEPALIVE_SECS_MIN as usize);
            return Err(CodecError::Least { what, found: found as usize, least });
        }
        Ok(self)
    }
}

/// The part of a task's frame that all targets share: encoded once, sent many times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPush(Arc<[u8]>);

impl SharedPush {
    /// Prepares signed task bytes for pushing.
    #[must_use]
    pub fn new(signed: &[u8]) -> Self {
        let mut shared = Vec::with_capacity(signed.len() + 4);
        codec::encode_varint(signed.len() as u64, &mut shared);
        shared.extend_from_slice(signed);
        Self(shared.into())
    }

    /// Length of the shared part in bytes.
    #[must_use]
    pub fn shared_bytes(&self) -> usize {
        self.0.len()
    }

    /// Appends the frame for the device whose proof is `proof`: the same bytes as [`ServerMessage::Task`] gives.
    pub fn encode(&self, proof: &[u8], out: &mut Vec<u8>) {
        frame::encode(kind::TASK, VERSION, out, |body| {
            body.extend_from_slice(&self.0);
            codec::encode_varint(proof.len() as u64, body);
            body.extend_from_slice(proof);
        });
    }
}

fn put<T: Serialize + ?Sized>(kind: u16, body: &T, out: &mut Vec<u8>) {
    frame::encode(kind, VERSION, out, |out| codec::encode(&body, out));
}

fn take<T: serde::de::DeserializeOwned>(
    what: &'static str,
    version: u8,
    body: &[u8],
) -> Result<T, CodecError> {
    codec::decode(what, version, body)
}

#[cfg(test)]
mod tests;
