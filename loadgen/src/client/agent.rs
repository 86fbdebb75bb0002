//! What an agent says: its hello, keepalives, and for each task what a real one says, verified and signed.
//!
//! It is fed with plaintext and gives plaintext to be sent; it owns no socket and reads no clock. Answering costs more than hearing: so a task
//! is first noted as had, at the time that the caller gives, and carried out when the caller has nothing better to do.
//!
//! ```text
//! connecting --> shaking hands --> said hello --> active --> over
//! ```

use std::sync::Arc;

use bgb_protocol::frame::Frame;
use bgb_protocol::ids::{BootId, DeviceId, SessionNumber, SiteCode, TaskId, UnixMillis};
use bgb_protocol::message::{
    Abilities, AgentMessage, Hello, KnownTask, Platform, RefusedReason, RoadTaken, ServerMessage, TaskPush,
};
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::{DeviceKey, TrustedKeys};
use bgb_protocol::state::TaskState;
use bgb_protocol::task::SignedTask;

/// Tasks that an agent remembers for its next hello.
const KNOWN_MAX: usize = 8;

/// What all agents of a fleet know.
pub(crate) struct Site {
    pub(crate) code: SiteCode,
    pub(crate) task_keys: TrustedKeys,
    /// By which road all of its agents come.
    pub(crate) road: RoadTaken,
}

/// See the module.
pub(crate) struct Agent {
    site: Arc<Site>,
    device: DeviceId,
    key: Arc<DeviceKey>,
    boot: BootId,
    session: SessionNumber,
    /// What was heard and makes no whole frame yet.
    heard: Vec<u8>,
    known: Vec<KnownTask>,
    /// Results that no server has said to keep, as they are said.
    unkept: Vec<(TaskId, Vec<u8>)>,
    is_active: bool,
}

/// What an agent has heard.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It is signed in, speaks so often, and comes back in that second of a drain's window.
    Welcome { keepalive_secs: u32, slot_secs: Option<u32> },
    /// A task: it is had from now on, and is to be carried out by [`Agent::carry_out`].
    Task(Box<TaskPush>),
    /// A message of another server, which has no more to it.
    Message(TaskId),
    /// A result is kept.
    Kept,
    /// It is to come back within so many seconds.
    Drain { window_secs: u32 },
    /// The server will not have it.
    Refused(RefusedReason),
}

impl Agent {
    /// An agent of the device, whose last session had the number before `session`.
    pub(crate) fn new(
        site: Arc<Site>,
        device: DeviceId,
        key: Arc<DeviceKey>,
        session: SessionNumber,
    ) -> Self {
        let mut boot = [0; 16];
        boot[..4].copy_from_slice(&device.0.to_le_bytes());
        boot[4..12].copy_from_slice(&session.0.to_le_bytes());
        Self {
            site,
            device,
            key,
            boot: BootId(boot),
            session,
            heard: Vec::new(),
            known: Vec::new(),
            unkept: Vec::new(),
            is_active: false,
        }
    }

    /// Whether it is signed in.
    pub(crate) fn is_active(&self) -> bool {
        self.is_active
    }

    /// A connection stands: what the agent says first goes into `out`.
    pub(crate) fn greet(&mut self, out: &mut Vec<u8>) {
        self.session = SessionNumber(self.session.0 + 1);
        let hello = Hello {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            platform: Platform {
                os: "linux".to_owned(),
                os_version: "load generator".to_owned(),
                arch: std::env::consts::ARCH.to_owned(),
                hostname: format!("load-{}", self.device),
            },
            boot: self.boot,
            session: self.session,
            abilities: Abilities::ALL,
            road: self.site.road.clone(),
            keepalive_secs: None,
            clock_skew_ms: 0,
            policy_version: 0,
            known_tasks: self.known.clone(),
        };
        AgentMessage::Hello(Box::new(hello)).encode(out);
    }

    /// The connection is gone.
    pub(crate) fn lose(&mut self) {
        self.heard.clear();
        self.is_active = false;
    }

    /// It is still there.
    pub(crate) fn keep_alive(out: &mut Vec<u8>) {
        AgentMessage::Keepalive.encode(out);
    }

    /// Takes plaintext as it came; what is whole goes to `tell`.
    ///
    /// # Errors
    /// What the server said that is no message.
    pub(crate) fn hear(&mut self, plain: &[u8], mut tell: impl FnMut(Heard)) -> Result<(), String> {
        if self.heard.is_empty() {
            let used = self.read(plain, &mut tell)?;
            self.heard.extend_from_slice(&plain[used..]);
        } else {
            let mut heard = std::mem::take(&mut self.heard);
            heard.extend_from_slice(plain);
            let used = self.read(&heard, &mut tell)?;
            heard.drain(..used);
            self.heard = heard;
        }
        if self.heard.is_empty() {
            // At rest an agent holds nothing of what it has heard.
            self.heard = Vec::new();
        }
        Ok(())
    }

    fn read(&mut self, bytes: &[u8], tell: &mut impl FnMut(Heard)) -> Result<usize, String> {
        let mut used = 0;
        while let Some((frame, length)) = Frame::decode(&bytes[used..]).map_err(|error| error.to_string())? {
            let message = ServerMessage::decode(frame).map_err(|error| error.to_string())?;
            used += length;
            match message {
                Some(ServerMessage::Welcome(welcome)) => {
                    self.is_active = true;
                    let slot_secs = welcome.reconnect_slot_secs;
                    tell(Heard::Welcome { keepalive_secs: welcome.keepalive_secs, slot_secs });
                }
                Some(ServerMessage::Task(push)) => tell(Heard::Task(push)),
                // Whoever says a result again may hear twice that it is kept.
                Some(ServerMessage::ResultKept(task)) => {
                    let unkept = self.unkept.len();
                    self.unkept.retain(|(of, _)| *of != task);
                    if self.unkept.len() < unkept {
                        tell(Heard::Kept);
                    }
                    if self.unkept.is_empty() {
                        self.unkept = Vec::new();
                    }
                }
                Some(ServerMessage::Drain(drain)) => tell(Heard::Drain { window_secs: drain.window_secs }),
                Some(ServerMessage::Refused(reason)) => tell(Heard::Refused(reason)),
                Some(
                    ServerMessage::KeepaliveAnswer(_) | ServerMessage::Cancel(_) | ServerMessage::Policy(_),
                )
                | None => {}
            }
        }
        Ok(used)
    }

    /// Says again what nobody has said to keep: a connection may have ended in between.
    pub(crate) fn say_again(&self, out: &mut Vec<u8>) {
        self.unkept.iter().for_each(|(_, said)| out.extend_from_slice(said));
    }

    /// Verifies a task and answers it as a real agent does: received, running, and the signed result, into `out`.
    ///
    /// # Errors
    /// Why a real agent would not have carried it out.
    pub(crate) fn carry_out(
        &mut self,
        push: &TaskPush,
        now: UnixMillis,
        out: &mut Vec<u8>,
    ) -> Result<TaskId, String> {
        let signed = SignedTask::decode(&push.signed).map_err(|error| error.to_string())?;
        signed.verify(self.site.code, &self.site.task_keys).map_err(|error| error.to_string())?;
        let statement = signed.statement();
        statement.targets.verify(self.device, &push.proof).map_err(|error| error.to_string())?;
        let task = statement.task;
        AgentMessage::Received(task).encode(out);
        AgentMessage::Running(task).encode(out);
        let result = ResultStatement {
            site: self.site.code,
            task,
            device: self.device,
            state: TaskState::Succeeded,
            refusal: None,
            code: 0,
            started: now,
            finished: now,
            output_digest: [0; 32],
        };
        let result = SignedResult::sign(result, Vec::new(), &self.key).map_err(|error| error.to_string())?;
        let from = out.len();
        AgentMessage::Result(Box::new(result)).encode(out);
        self.unkept.push((task, out[from..].to_vec()));
        if self.known.len() == KNOWN_MAX {
            self.known.remove(0);
        }
        self.known.push(KnownTask { task, state: TaskState::Succeeded });
        Ok(task)
    }
}

#[cfg(test)]
mod tests;
