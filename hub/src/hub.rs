//! The machine: what comes in is handed to whom it concerns, and what comes out waits in one queue.
//!
//! It owns the sessions, the registry of who is signed in, the wheel, the active tasks, the policies and the blocks of one
//! shard. Sign-in is in `sign_in`, what agents say in `said`, what reaches them of tasks and policies in `delivery`, and every
//! way in which a session ends in `ending`.
//!
//! Laws: outputs come in the order in which they are to be done; no output names a channel that the hub does not hold, and
//! `Close` is its last word on a channel; a device has one active session at most; every call does a bounded amount of work
//! (revoking alone looks at every session), and what is left over makes `next_deadline` the present tick.

mod delivery;
mod ending;
mod said;
mod sign_in;

use std::collections::{BTreeMap, VecDeque};

use bgb_protocol::ids::{BootId, DeviceId, ServerId, SessionNumber, TaskId};
use bgb_protocol::message::ServerMessage;

use crate::active_tasks::{ActiveTasks, Taken};
use crate::admission::Admission;
use crate::close_reason::CloseReason;
use crate::counters::Counters;
use crate::input::{ChannelKey, Input};
use crate::order::Order;
use crate::output::{OrderRefusal, Output};
use crate::policies::Policies;
use crate::server_time::ServerTime;
use crate::session::Session;
use crate::time::{Now, Tick};
use crate::wheel::Wheel;

use delivery::FanOut;

/// How often the wall clock is compared with what is due by it: 60 s, as heads come. Between two looks it is taken to run as
/// fast as the ticks.
const CLOCK_CHECK_TICKS: u64 = 600;

/// What a hub is set to.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// The server that the hub belongs to.
    pub server: ServerId,
    /// Most channels that it holds; more are refused as full.
    pub sessions_max: usize,
    /// How often an agent that asks for nothing else is to speak, in seconds.
    pub keepalive_secs: u32,
    /// How long a channel may go without a hello, in ticks (10 s).
    pub hello_ticks: u64,
    /// Most tasks that are active at a time (1,000): more are refused with an [`Output::OrderRefused`].
    pub active_tasks_max: usize,
    /// Other servers of the site, `host:port`.
    pub other_servers: Vec<String>,
    /// Within how many seconds agents are to come back when this server goes away (5 to 600).
    pub reconnect_window_secs: u32,
    /// Seed of the keepalives' jitter.
    pub jitter_seed: u64,
}

/// One shard's sessions and orders.
///
/// # Reset and reload
///
/// [`Order::Reset`] begins a reload; [`Input::SignIns`] with `allowed: true`, said when all rows are in again, ends it.
///
/// - Tasks, releases, policies, blocks and revoked certificates are forgotten; sessions, the head and signed cancels are not.
/// - Until the reload is over, a device that was blocked and a certificate that was revoked before stay so (an unblock counts
///   at once), and policy requests are answered from the documents that held before, which were whole.
/// - What devices were given of a task, and that they have answered, is remembered for a task that comes again: its release
///   reaches only those who have nothing of it yet.
/// - A release whose fan-out was under way goes on when its row comes again.
///
/// A caller that does not hold the sign-ins meanwhile (`allowed: false`) gets sign-ins without the tasks that have not come
/// again; they follow with their rows.
#[derive(Debug)]
pub struct Hub {
    options: HubOptions,
    time: ServerTime,
    admission: Admission,
    tasks: ActiveTasks,
    policies: Policies,
    /// By the index of their channel.
    sessions: Vec<Option<Session>>,
    open: usize,
    /// The active session of each device that has one, in the order of devices.
    registry: BTreeMap<DeviceId, u32>,
    /// One timer for each session: at its earliest deadline, or before.
    wheel: Wheel,
    /// Steps that are on their way to those whom they concern, the oldest first.
    fan_outs: VecDeque<FanOut>,
    /// Sessions that have more to be sent, each once.
    line: VecDeque<ChannelKey>,
    /// Results that were handed to the spool and are not known to be durable, by rising number. Bounded by the spool: what it
    /// does not take is not read from the channel.
    unacknowledged: VecDeque<Unacknowledged>,
    results: u64,
    /// While the hub drains: the first session that has not been looked at.
    drained_to: Option<usize>,
    outputs: VecDeque<Output>,
    counters: Counters,
}

/// A result that waits for the disk.
#[derive(Debug)]
struct Unacknowledged {
    number: u64,
    channel: ChannelKey,
    task: TaskId,
}

impl Hub {
    /// An empty hub. It takes sign-ins from the first: a caller that must know the blocks before hands in the orders before.
    #[must_use]
    pub fn new(options: HubOptions) -> Self {
        Self {
            time: ServerTime::default(),
            admission: Admission::default(),
            tasks: ActiveTasks::new(options.active_tasks_max),
            policies: Policies::default(),
            sessions: Vec::new(),
            open: 0,
            registry: BTreeMap::new(),
            wheel: Wheel::new(),
            fan_outs: VecDeque::new(),
            line: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            results: 0,
            drained_to: None,
            outputs: VecDeque::new(),
            counters: Counters::default(),
            options,
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.time.set(now);
        match input {
            Input::Opened { channel, peer } => self.on_opened(channel, peer),
            Input::Said { channel, message } => self.if_known(channel, |hub, at| hub.on_said(at, message)),
            Input::Closed { channel, reason } => self.if_known(channel, |hub, at| hub.forget(at, reason)),
            Input::Claimed { channel, granted } => {
                self.if_known(channel, |hub, at| hub.on_claimed(at, granted));
            }
            Input::Displaced { channel } => {
                self.if_known(channel, |hub, at| hub.end(at, CloseReason::Superseded));
            }
            Input::Choked { channel } => self.if_known(channel, Self::on_choked),
            Input::Flowing { channel } => self.if_known(channel, Self::on_flowing),
            // What is cancelled by the next order must not go out before that is heard.
            Input::Order(order @ Order::Cancel { .. }) => self.on_order(order),
            Input::Order(order) => {
                self.on_order(order);
                self.work();
            }
            Input::Durable { up_to } => self.on_durable(up_to),
            Input::SignIns { allowed } => self.on_sign_ins(allowed),
            Input::Drain => {
                self.admission.on_drain();
                self.drained_to.get_or_insert(0);
                self.work();
            }
        }
    }

    /// Lets time pass, and goes on with work that was left over.
    pub fn advance(&mut self, now: Now) {
        self.time.set(now);
        self.poll_timers();
        self.work();
    }

    /// What to do next; `None` when all is done for now.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`advance`](Self::advance) is to be called again at the latest. The present tick or an earlier one means at once:
    /// work was left over, so that other channels get their turn in between.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        if self.is_behind() {
            return Some(self.time.tick());
        }
        let check = self.time.tick().plus(CLOCK_CHECK_TICKS);
        let release = self.tasks.next_release().map(|moment| self.time.tick_of(moment).min(check));
        let end = self.tasks.next_end().map(|moment| self.time.tick_of_site(moment).min(check));
        release.into_iter().chain(end).chain(self.wheel.next_deadline()).min()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Channels that the hub holds, signed in or not yet.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.open
    }

    /// Sessions that are signed in.
    #[must_use]
    pub fn online(&self) -> usize {
        self.registry.len()
    }

    fn on_order(&mut self, order: Order) {
        self.counters.orders += 1;
        let (time, site_time) = (self.time.time(), self.time.site_time());
        let taken = match order {
            Order::Task(task) => self.tasks.on_task(task, site_time),
            Order::Release { task, devices, from } => self.tasks.on_release(task, devices, from, time),
            Order::Cancel { task, signed, expires } => self.tasks.on_cancel(task, signed, expires, site_time),
            Order::Policy(policy) => self.policies.on_order(policy).map(|()| Taken::Noted),
            Order::Revoke { fingerprint } => self.on_revoke(fingerprint),
            other => {
                self.on_plain_order(other);
                Ok(Taken::Noted)
            }
        };
        match taken {
            Ok(Taken::Noted) => {}
            Ok(Taken::Effective(step)) => self.fan_outs.push_back(FanOut::of(step)),
            Ok(Taken::Expired) => self.counters.orders_expired += 1,
            Err(refusal) => {
                self.counters.orders_refused += 1;
                self.outputs.push_back(Output::OrderRefused { refusal });
            }
        }
    }

    /// Orders that are followed whatever they are.
    fn on_plain_order(&mut self, order: Order) {
        match order {
            Order::Block { device } => {
                self.admission.on_block(device);
                if let Some(&at) = self.registry.get(&device) {
                    self.end(at, CloseReason::Blocked);
                }
            }
            Order::Unblock { device } => self.admission.on_unblock(device),
            Order::Supersede { device, boot, session } => self.on_supersede(device, boot, session),
            Order::Head { signed, time } => self.time.on_head(signed, time),
            Order::Reset => {
                self.admission.on_reset();
                self.tasks.on_reset();
                self.policies.on_reset();
                self.fan_outs.clear();
            }
            Order::Task(_)
            | Order::Release { .. }
            | Order::Cancel { .. }
            | Order::Policy(_)
            | Order::Revoke { .. } => {
                unreachable!("these are taken by whom they concern, which may refuse them")
            }
        }
    }

    fn on_revoke(&mut self, fingerprint: [u8; 32]) -> Result<Taken, OrderRefusal> {
        // Sessions are not indexed by certificate: revoking is rare, and an index would cost each of them 40 bytes.
        for at in 0..self.sessions.len() as u32 {
            if self.session(at).is_some_and(|session| session.fingerprint == fingerprint) {
                self.end(at, CloseReason::Revoked);
            }
        }
        self.admission.on_revoke(fingerprint).map(|()| Taken::Noted)
    }

    fn on_supersede(&mut self, device: DeviceId, boot: BootId, session: SessionNumber) {
        let Some(&at) = self.registry.get(&device) else { return };
        let active = self.session(at).and_then(Session::active);
        if active.is_some_and(|active| active.boot == boot && active.session <= session) {
            self.end(at, CloseReason::Superseded);
        }
    }

    fn on_sign_ins(&mut self, allowed: bool) {
        self.admission.on_sign_ins(allowed);
        if allowed {
            self.admission.on_reload_over();
            self.tasks.on_reload_over();
            self.policies.on_reload_over();
        }
    }

    fn on_durable(&mut self, up_to: u64) {
        while let Some(result) = self.unacknowledged.pop_front_if(|result| result.number <= up_to) {
            let Unacknowledged { channel, task, .. } = result;
            if self.known(channel).is_some() {
                self.counters.results_acknowledged += 1;
                self.send(channel, ServerMessage::ResultKept(task));
            }
        }
    }

    /// Does `act` with the place of the channel's session, if the hub holds it.
    fn if_known(&mut self, channel: ChannelKey, act: impl FnOnce(&mut Self, u32)) {
        if self.known(channel).is_some() {
            act(self, channel.index);
        } else {
            self.counters.stale_inputs += 1;
        }
    }

    fn known(&self, channel: ChannelKey) -> Option<&Session> {
        self.session(channel.index).filter(|session| session.generation == channel.generation)
    }

    fn session(&self, at: u32) -> Option<&Session> {
        self.sessions.get(at as usize)?.as_ref()
    }

    fn session_mut(&mut self, at: u32) -> Option<&mut Session> {
        self.sessions.get_mut(at as usize)?.as_mut()
    }

    fn send(&mut self, channel: ChannelKey, message: ServerMessage) {
        self.outputs.push_back(Output::Send { channel, message });
    }
}

/// The channel of the session at `at`.
fn channel_of(at: u32, session: &Session) -> ChannelKey {
    ChannelKey { index: at, generation: session.generation }
}

#[cfg(test)]
mod tests;
