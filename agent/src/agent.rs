//! The agent as a step machine: what has come in, what is due, what is to be done about it.
//!
//! ```text
//!   handle(now, Input), handle_time(now)  --->  Agent  --->  poll_output() -> Option<Output>
//!                                                 |
//!                                       next_deadline() -> milliseconds since boot
//! ```
//!
//! It owns the session machine, the journal, the agent's own time, the policy in force and the queue of tasks. It must not know a
//! thread, a socket, a process or a clock: readings of the clocks come in with each call, the disk is a trait, and chance
//! comes from a seed. Laws: after each call the caller drains the outputs and carries them out in their order; an
//! [`Output::Start`] is given only when the journal holds it durably; after an error the agent is dropped, with its outputs,
//! and made anew, as after a crash.
//!
//! Of connections there is one at a time. After [`Output::Disconnect`] that connection is over here: the caller hands in
//! nothing more of it, also not that it ended.

mod counters;
mod heads;
mod held;
mod results;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bgb_daemon::clock::Now;
use bgb_daemon::disk::{Disk, create_dir_durably};
use bgb_protocol::action::Action;
use bgb_protocol::ids::{BootId, DeviceId, SiteCode, TaskId, UnixMillis};
use bgb_protocol::message::{
    Abilities, AgentMessage, Hello, Platform, PolicyPart, RefusedReason, RoadTaken, ServerMessage,
    TEXT_BYTES_MAX, Welcome,
};
use bgb_protocol::policy::PolicySettings;
use bgb_protocol::signature::{DeviceKey, SignatureError, TrustedKeys};
use bgb_protocol::state::TaskState;
use thiserror::Error;

use crate::durable::WriteFault;
use crate::journal::{Journal, JournalError};
use crate::parting::Parting;
use crate::policy::exchange::Exchange;
use crate::policy::{Policy, PolicyFault, PolicyJudge};
use crate::random::Random;
use crate::session::{Act, Session};
use crate::time::{AgentTime, SKEW_SHOWN_MS, TimeChange};
use heads::HeadWatch;
use held::Held;
use results::{Outbox, Unwritten};
use tasks::Running;

pub use crate::session::SessionPhase;
pub use counters::Counters;

/// Who the agent is and where it keeps what it must not forget.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The site that it belongs to.
    pub site: SiteCode,
    /// Its number in the site.
    pub device: DeviceId,
    /// The present boot of the machine.
    pub boot: BootId,
    /// Notification servers, `host:port`, in the order in which they are tried; one at least. A policy's go before them.
    pub servers: Vec<String>,
    /// The keys whose signature makes a task, a cancel, a head or a policy the site's.
    pub task_keys: TrustedKeys,
    /// The folder of journal and policy; made if it is missing.
    pub state: PathBuf,
    /// The agent's release, for the hello.
    pub agent_version: String,
    /// The machine, for the hello.
    pub platform: Platform,
}

/// What comes in.
#[derive(Clone, Debug)]
pub enum Input {
    /// The connection that [`Output::Connect`] asked for stands, its TLS and the server's identity verified.
    Connected {
        /// How its bytes travel.
        road: RoadTaken,
    },
    /// It did not come about.
    ConnectFailed {
        /// Why, for the log.
        reason: String,
    },
    /// The connection is gone.
    Disconnected {
        /// Why, for the log.
        reason: String,
    },
    /// The server said something.
    Said(ServerMessage),
    /// There is a better road to the server than the connection's: the session ends as soon as nothing that it has said waits for an answer, and
    /// asks to connect again at once.
    RoadBetter,
    /// The better road is there no more: the session stays where it is.
    RoadGone,
    /// An action that [`Output::Start`] began has ended.
    Finished {
        /// The task.
        task: TaskId,
        /// What came of it.
        outcome: Outcome,
    },
    /// The agent is to end: says goodbye, ends what runs. What is in the middle then is judged at the next start.
    Stop,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Output {
    /// Connect to a server; answered with [`Input::Connected`] or [`Input::ConnectFailed`].
    Connect {
        /// `host:port`.
        server: String,
        /// The agent's own time, by which the server's certificate is judged.
        now: UnixMillis,
        /// Where that fails on dates alone: the time floor, by which it is judged again.
        floor: UnixMillis,
    },
    /// End the connection, or the attempt at one, after what was said on it is sent.
    Disconnect {
        /// Why.
        reason: Parting,
    },
    /// Say something to the server.
    Say(AgentMessage),
    /// Begin an action; answered, once, with [`Input::Finished`].
    Start(Start),
    /// End an action that was begun: its whole process group. Its [`Input::Finished`] still follows.
    Kill {
        /// The task.
        task: TaskId,
    },
}

/// An action to begin.
#[derive(Clone, Debug)]
pub struct Start {
    /// The task that asks for it.
    pub task: TaskId,
    /// What to do. Never [`Action::DownloadPolicy`]: that is the agent's own affair with the server.
    pub action: Action,
    /// The longest that it may take.
    pub limit: Duration,
    /// The policy in force.
    pub settings: Arc<PolicySettings>,
}

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It did what was asked.
    Succeeded,
    /// It could not, or was not done within its limit.
    Failed,
    /// It was ended by [`Output::Kill`].
    Cancelled,
}

/// What came of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// The exit code of a program, else 0 for success; -1 where there is none.
    pub code: i32,
    /// What it said; cut to 32 KiB if it is longer.
    pub output: Vec<u8>,
}

/// Why the agent cannot go on. It must be dropped and made anew.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The folder of its state.
    #[error("the agent's state cannot be read: {0}; mend the folder or its disk and start the agent again")]
    State(io::Error),
    /// A result cannot be signed.
    #[error("a result cannot be signed: {0}")]
    Sign(#[from] SignatureError),
}

/// The agent.
pub struct Agent {
    options: AgentOptions,
    key: DeviceKey,
    judge: PolicyJudge,
    journal: Journal,
    time: AgentTime,
    session: Session,
    policy: Policy,
    exchange: Exchange,
    outbox: Outbox,
    /// Tasks that are to be begun, in the order in which they came.
    queue: Vec<TaskId>,
    /// Ends for which the journal had no room.
    unwritten: Unwritten,
    heads: HeadWatch,
    /// Pushes that wait for the site's time, or for room on the disk.
    held: Held,
    running: BTreeMap<TaskId, Running>,
    /// When a queued task expires or becomes valid, in milliseconds since boot.
    recheck_ms: Option<u64>,
    random: Random,
    /// When the present call came, in milliseconds since boot.
    now_ms: u64,
    counters: Counters,
    outputs: VecDeque<Output>,
}

impl Agent {
    /// Opens journal and policy, closes what a crash left open, and begins to connect at once. Outputs may wait already.
    ///
    /// # Errors
    /// When the state cannot be read or written, or is another device's.
    ///
    /// # Panics
    /// When the options name no server.
    pub fn new(
        mut options: AgentOptions,
        disk: Arc<dyn Disk>,
        key: DeviceKey,
        now: Now,
        seed: u64,
    ) -> Result<Self, AgentError> {
        limit_texts(&mut options);
        // A journal in a folder that a power cut takes away would be no journal.
        create_dir_durably(&*disk, &options.state).map_err(AgentError::State)?;
        // A fresh journal counts sessions from the present second: should the old one be lost, the new one's numbers are still
        // the higher ones, and the site takes this device for what it is.
        let journal = Journal::open(
            Arc::clone(&disk),
            &options.state,
            options.site,
            options.device,
            now.unix_ms / 1_000,
        )?;
        let judge =
            PolicyJudge { site: options.site, device: options.device, keys: options.task_keys.clone() };
        let policy = Policy::open(disk, &options.state, &judge).map_err(AgentError::State)?;
        let mut random = Random::new(seed);
        let (floor, anchor) = journal.time();
        let exchange = Exchange::new(now.boot_ms, policy.settings(), policy.version(), &mut random);
        let mut agent = Self {
            time: AgentTime::new(options.boot, floor, anchor),
            session: Session::new(
                servers_of(policy.settings(), &options),
                Random::new(random.up_to(u64::MAX)),
            ),
            queue: journal.unfinished(),
            unwritten: Unwritten::default(),
            heads: HeadWatch::default(),
            held: Held::default(),
            options,
            key,
            judge,
            journal,
            policy,
            exchange,
            outbox: Outbox::default(),
            running: BTreeMap::new(),
            recheck_ms: None,
            random,
            now_ms: now.boot_ms,
            counters: Counters::default(),
            outputs: VecDeque::new(),
        };
        agent.handle_time(now)?;
        Ok(agent)
    }

    /// Something has come in.
    ///
    /// # Errors
    /// When the disk failed: the agent must be dropped, with its outputs, and made anew.
    pub fn handle(&mut self, now: Now, input: Input) -> Result<(), AgentError> {
        self.now_ms = now.boot_ms;
        match input {
            Input::Connected { road } => self.on_connected(now, road)?,
            Input::ConnectFailed { reason } => {
                tracing::info!(%reason, "no connection to the server");
                self.on_session_over(now, Parting::NotConnected);
            }
            Input::Disconnected { reason } => {
                tracing::info!(%reason, "the connection to the server is gone");
                self.on_session_over(now, Parting::Lost);
            }
            Input::Said(message) => self.on_said(now, message)?,
            Input::RoadBetter => self.session.handle_better_road(now.boot_ms),
            Input::RoadGone => self.session.handle_road_gone(),
            Input::Finished { task, outcome } => self.on_finished(now, task, outcome)?,
            Input::Stop => self.on_stop(),
        }
        self.handle_time(now)
    }

    /// Time has passed: to be called when [`Self::next_deadline`] is reached; calling it earlier does no harm.
    ///
    /// # Errors
    /// As [`Self::handle`].
    pub fn handle_time(&mut self, now: Now) -> Result<(), AgentError> {
        self.now_ms = now.boot_ms;
        if self.session.phase() == SessionPhase::Stopped {
            return Ok(());
        }
        self.exchange.handle_time(now.boot_ms, self.policy.settings(), &mut self.random);
        self.give_up_overdue(now)?;
        self.journal.sweep(self.time.floor());
        self.write_ends(now)?;
        self.judge_held(now)?;
        self.start_queued(now)?;
        self.ask_for_head(now);
        while let Some(act) = self.session.poll(now.boot_ms) {
            self.on_act(now, act);
        }
        if self.session.can(Abilities::POLICY)
            && let Some(request) = self.exchange.ask(now.boot_ms)
        {
            self.say(AgentMessage::PolicyRequest(request));
        }
        self.send_results(now);
        Ok(())
    }

    /// What is to be done next; `None` when all is said.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_time`] is to be called at the latest, in milliseconds since boot ([`Now::boot_ms`]); `None` after
    /// [`Input::Stop`].
    pub fn next_deadline(&self) -> Option<u64> {
        let session_ms = self.session.next_deadline()?;
        let give_up_ms = self.running.values().map(|running| running.give_up_ms).min();
        [
            Some(self.exchange.next_deadline()),
            give_up_ms,
            self.recheck_ms,
            self.outbox.next_deadline(),
            self.head_due_ms(),
            self.unwritten.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .fold(session_ms, u64::min)
        .into()
    }

    /// The agent's own time.
    pub fn own_time(&self, now: Now) -> UnixMillis {
        self.time.at(now)
    }

    /// What the session is at.
    pub fn phase(&self) -> SessionPhase {
        self.session.phase()
    }

    /// How far a task has come here; `None` when it is not known.
    pub fn task_state(&self, task: TaskId) -> Option<TaskState> {
        self.journal.task(task).map(crate::journal::Entry::state)
    }

    /// Actions that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// The settings in force.
    pub fn settings(&self) -> &Arc<PolicySettings> {
        self.policy.settings()
    }

    /// What the agent has met since it was made.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn on_act(&mut self, now: Now, act: Act) {
        match act {
            Act::Connect(server) => {
                let (now, floor) = (self.time.at(now), self.time.floor());
                self.outputs.push_back(Output::Connect { server, now, floor });
            }
            Act::Disconnect(reason) => self.disconnect(reason),
            Act::Keepalive => self.say(AgentMessage::Keepalive),
        }
    }

    fn on_connected(&mut self, now: Now, road: RoadTaken) -> Result<(), AgentError> {
        if !self.session.handle_connected(now.boot_ms) {
            return Ok(());
        }
        self.counters.connects += 1;
        let Some(session) = self.journal.next_session()? else {
            self.session.handle_lost(now.boot_ms);
            self.disconnect(Parting::NoRoom);
            return Ok(());
        };
        let hello = Hello {
            agent_version: self.options.agent_version.clone(),
            platform: self.options.platform.clone(),
            boot: self.options.boot,
            session,
            abilities: Abilities::ALL,
            road,
            keepalive_secs: self.policy.settings().keepalive_seconds,
            clock_skew_ms: self.time.skew_ms(now),
            policy_version: self.policy.version(),
            known_tasks: self.journal.known(self.time.at_least(now)),
        };
        self.outputs.push_back(Output::Say(AgentMessage::Hello(Box::new(hello))));
        Ok(())
    }

    fn on_said(&mut self, now: Now, message: ServerMessage) -> Result<(), AgentError> {
        self.session.handle_heard();
        match (self.session.phase(), message) {
            // Of a connection that is over here.
            (SessionPhase::Resting | SessionPhase::Connecting | SessionPhase::Stopped, _) => {}
            (_, ServerMessage::Refused(reason)) => self.on_refused(now, reason),
            (_, ServerMessage::Drain(drain)) => {
                tracing::info!(window_secs = drain.window_secs, "the server goes away for a while");
                if self.session.handle_drain(now.boot_ms, &drain) {
                    self.disconnect(Parting::Draining);
                }
            }
            (SessionPhase::Greeting, ServerMessage::Welcome(welcome)) => self.on_welcome(now, &welcome)?,
            (SessionPhase::Active, ServerMessage::KeepaliveAnswer(head)) => {
                self.session.handle_keepalive_answer();
                self.on_head(now, &head)?;
            }
            (SessionPhase::Active, ServerMessage::Task(push)) => self.on_push(now, *push)?,
            (SessionPhase::Active, ServerMessage::Cancel(signed)) => self.on_cancel(now, &signed)?,
            (SessionPhase::Active, ServerMessage::ResultKept(task)) => self.on_result_kept(now, task)?,
            (SessionPhase::Active, ServerMessage::Policy(part)) => self.on_policy(now, *part)?,
            (SessionPhase::Active, ServerMessage::Welcome(_)) | (SessionPhase::Greeting, _) => {
                self.session.handle_lost(now.boot_ms);
                self.disconnect(Parting::NotAllowed);
            }
        }
        Ok(())
    }

    fn on_welcome(&mut self, now: Now, welcome: &Welcome) -> Result<(), AgentError> {
        self.session.handle_welcome(now.boot_ms, welcome, self.policy.settings().keepalive_seconds);
        self.counters.sessions += 1;
        tracing::info!(server = %welcome.server, keepalive_secs = welcome.keepalive_secs, "signed in");
        self.on_head(now, &welcome.head)?;
        let skew_ms = self.time.skew_ms(now);
        if skew_ms.unsigned_abs() > SKEW_SHOWN_MS {
            tracing::warn!(skew_ms, "this machine's clock differs from the site's time; set it right");
        }
        Ok(())
    }

    fn on_refused(&mut self, now: Now, reason: RefusedReason) {
        let advice = match reason {
            RefusedReason::Blocked => "this device is blocked by the site; ask its administrator",
            RefusedReason::Certificate => {
                "this device's certificate does not hold any more; it has to join anew"
            }
            RefusedReason::Superseded => {
                "this device has a newer session: another machine may bear its identity"
            }
            RefusedReason::Unavailable => "the server cannot read the site's queue; another is tried",
            RefusedReason::Full => "the server has as many sessions as it holds; another is tried",
            RefusedReason::Protocol => "the server did not understand this agent; compare their releases",
        };
        tracing::warn!(?reason, "{advice}");
        if self.session.handle_refused(now.boot_ms, reason) {
            self.disconnect(Parting::Refused);
        }
    }

    fn on_policy(&mut self, now: Now, part: PolicyPart) -> Result<(), AgentError> {
        let applied = match self.exchange.take(part) {
            Ok(None) => return Ok(()),
            Ok(Some(documents)) => match self.policy.apply(&documents, &self.judge) {
                // Whether the old or the new one is in force after the next start, only that knows.
                Err(PolicyFault::Disk(WriteFault::Unknown(error))) => return Err(AgentError::State(error)),
                applied => applied.map_err(|fault| fault.to_string()),
            },
            Err(fault) => Err(fault.to_owned()),
        };
        match &applied {
            Ok(applied) => {
                tracing::info!(
                    documents = applied.documents.len(),
                    changed = applied.is_changed,
                    "policy applied"
                );
                let change = self.time.on_signed_time(applied.issued, now);
                self.keep_time(change)?;
                self.take_servers();
                let policy_secs = self.policy.settings().keepalive_seconds;
                self.session.shorten_keepalive(now.boot_ms, policy_secs);
            }
            Err(fault) => tracing::error!(%fault, "the policy was not applied; the old one stays in force"),
        }
        self.on_policy_ended(now, applied)
    }

    fn on_stop(&mut self) {
        let is_active = self.session.phase() == SessionPhase::Active;
        self.kill_running();
        if is_active {
            self.say(AgentMessage::Goodbye);
        }
        if self.session.handle_stop() {
            self.disconnect(Parting::Stopped);
        }
    }

    fn on_session_over(&mut self, now: Now, parting: Parting) {
        self.counters.count_parting(parting);
        self.session.handle_lost(now.boot_ms);
        self.forget_connection();
    }

    fn disconnect(&mut self, reason: Parting) {
        self.counters.count_parting(reason);
        self.outputs.push_back(Output::Disconnect { reason });
        self.forget_connection();
    }

    fn forget_connection(&mut self) {
        self.outbox.handle_lost();
        self.exchange.handle_lost();
        self.held.handle_lost();
    }

    fn keep_time(&mut self, change: TimeChange) -> Result<(), AgentError> {
        match change {
            TimeChange::None if !self.journal.owes_time() => Ok(()),
            TimeChange::None | TimeChange::Moved => {
                if change == TimeChange::Moved {
                    // Whatever signed moved it: what waits for the site's time may have its time now.
                    self.held.judge_again();
                }
                Ok(self.journal.keep_time(self.time.floor(), self.time.anchor())?)
            }
        }
    }

    fn take_servers(&mut self) {
        let policy = self.policy.settings();
        let preferred = policy.servers.as_ref().map_or(self.options.servers.len(), Vec::len);
        self.session.set_servers(servers_of(policy, &self.options), preferred);
    }

    /// Says something if there is a session to say it in; hints and requests are not kept for the next one.
    fn say(&mut self, message: AgentMessage) {
        if self.session.phase() == SessionPhase::Active {
            self.session.handle_said(self.now_ms);
            self.outputs.push_back(Output::Say(message));
        }
    }
}

/// Those of the policy, then those of the configuration: by a policy that names a wrong one, a site must not lose its devices for
/// good.
fn servers_of(policy: &PolicySettings, options: &AgentOptions) -> Vec<String> {
    let named = policy.servers.as_deref().unwrap_or_default();
    let others = options.servers.iter().filter(|server| !named.contains(server));
    named.iter().chain(others).cloned().collect()
}

/// A hello's texts have 256 bytes at most and no control characters; an odd host name is a machine's own oddity, not a reason to
/// stay away.
fn limit_texts(options: &mut AgentOptions) {
    let Platform { os, os_version, arch, hostname } = &mut options.platform;
    for text in [&mut options.agent_version, os, os_version, arch, hostname] {
        *text = text.replace(char::is_control, "?");
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    }
}
