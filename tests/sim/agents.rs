//! Devices: a disk, a boot, a wall clock that may be wrong, and the agent's own step machine on it.
//!
//! The agent is the product's (`bgb_agent::agent::Agent` on `SimDisk`); what is modelled is around it: the actions, which
//! begin and end after a while or hang, the power, and whoever kills it. An agent that says that its disk failed is dropped with
//! its outputs and made anew, as its contract asks.
//!
//! The model hears of everything that an agent starts and of every end that it has journaled.

use std::path::PathBuf;
use std::sync::Arc;

use bgb_agent::JournalError;
use bgb_agent::agent::{Agent, AgentError, AgentOptions, Ending, Input, Outcome, Output, SessionPhase};
use bgb_agent::parting::Parting;
use bgb_daemon::clock::Now;
use bgb_daemon::disk::{Disk, SimDisk, SimFaults};
use bgb_protocol::frame::Frame;
use bgb_protocol::head::SignedHead;
use bgb_protocol::ids::{BootId, DeviceId, TaskId};
use bgb_protocol::message::{AgentMessage, Platform, RefusedReason, ServerMessage};
use bgb_protocol::signature::DeviceKey;
use bgb_protocol::state::TaskState;
use bgb_protocol::task::{SignedCancel, SignedTask};

use crate::actions::Actions;
use crate::dice::Dice;
use crate::faults::Weather;
use crate::model::Witness;
use crate::moves::{Moves, Role};
use crate::network::{ConnId, End, Farewell, Way};
use crate::roads::Habits;
use crate::servers::{SERVERS, address_of, server_at};
use crate::site::{self, Shown};
use crate::tally::Kind;
use crate::trace::{said_by_agent, said_by_server};
use crate::world::{EPOCH_UNIX_MS, Event, World};

/// What a machine's boot clock shows at most when its agent starts.
const BOOTING_MS_MAX: u64 = 20_000;

/// A device.
pub(crate) struct Machine {
    pub(crate) device: DeviceId,
    pub(crate) disk: SimDisk,
    pub(crate) agent: Option<Box<Agent>>,
    /// That of its session.
    pub(crate) conn: Option<ConnId>,
    /// Those beside it.
    pub(crate) moves: Moves,
    pub(crate) power: Power,
    /// The wall clock less the true time.
    pub(crate) skew_ms: i64,
    pub(crate) reads_slowly: bool,
    /// Where it was at the last look in peace, and since when.
    pub(crate) whereabouts: Option<(Option<Shown>, u64)>,
    /// The last connection whose server lied, and the tasks that it handed out by that.
    pub(crate) lied_to: Option<(ConnId, Vec<TaskId>)>,
    /// It is a copy of another one, and calls itself the same device.
    pub(crate) is_copy: bool,
    /// The next error of the disk is its machine's death.
    pub(crate) is_dying: bool,
    /// Syncs that were told to fail.
    pub(crate) syncs_to_fail: u64,
    /// What its disk had met when somebody looked last.
    faults_seen: SimFaults,
    pub(crate) certificate: Certificate,
    /// Its private key, PKCS#8.
    key: Vec<u8>,
    servers: Vec<String>,
    boot: BootId,
    booted_ms: u64,
    /// A signed head was heard in this boot: from then on the agent's time is the site's.
    has_head: bool,
    /// How old the oldest of them was when it came.
    pub(crate) head_lag_ms: u64,
    /// And its disk had room for it then: the agent still knows of it after its process was started again.
    has_head_kept: bool,
    /// The disk is full, and somebody has met that.
    is_full: bool,
    is_full_felt: bool,
    /// How often the agent's process was started.
    life: u64,
    /// Counts orders to start: one that was replaced by a later one is void.
    starts: u64,
    pub(crate) habits: Habits,
    pub(crate) actions: Actions,
    ended: u64,
    /// What the agent went by in those steps of which the journal could not tell at once: its disk was full, or failed in the middle.
    pub(crate) untold: Vec<Witness>,
    last_server: Option<usize>,
}

/// Whether a device has power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    On,
    Off,
    /// And nobody switches it on again.
    OffForGood,
}

/// What a device shows of itself in the handshake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Certificate {
    pub(crate) fingerprint: [u8; 32],
    pub(crate) ends_ms: Option<u64>,
}

impl Machine {
    pub(crate) fn new(agent: usize, dice: &mut Dice, weather: &Weather) -> Self {
        let of_site = &site::devices()[agent];
        let mut servers: Vec<_> = (0..SERVERS).map(address_of).collect();
        if dice.chance(500) {
            servers.reverse();
        }
        Self {
            device: of_site.number,
            disk: SimDisk::new(),
            agent: None,
            conn: None,
            moves: Moves::default(),
            power: Power::Off,
            skew_ms: if dice.chance(weather.skew_per_mille) { draw_skew(dice) } else { 0 },
            reads_slowly: false,
            whereabouts: None,
            lied_to: None,
            is_copy: false,
            is_dying: false,
            syncs_to_fail: 0,
            faults_seen: SimFaults::default(),
            certificate: Certificate { fingerprint: dice.bytes(), ends_ms: None },
            key: of_site.key.clone(),
            servers,
            boot: BootId(dice.bytes()),
            booted_ms: 0,
            has_head: false,
            head_lag_ms: 0,
            has_head_kept: false,
            is_full: false,
            is_full_felt: false,
            life: 0,
            starts: 0,
            habits: Habits::draw(agent, dice),
            actions: Actions::default(),
            ended: 0,
            untold: Vec::new(),
            last_server: None,
        }
    }

    /// Whether the server of its present connection has lied to it, and handed the task out by that: it knows what it keeps to itself. With its next
    /// hello the device names what it has, and is told the truth.
    pub(crate) fn has_from_a_liar(&self, task: TaskId) -> bool {
        let of_present = self.lied_to.as_ref().filter(|(conn, _)| self.conn == Some(*conn));
        of_present.is_some_and(|(_, tasks)| tasks.contains(&task))
    }

    /// A machine with a copy of this one's disk, which has not been switched on yet.
    fn copy(&self, dice: &mut Dice) -> Self {
        Self {
            disk: self.disk.image(),
            agent: None,
            conn: None,
            moves: Moves::default(),
            power: Power::Off,
            reads_slowly: false,
            whereabouts: None,
            lied_to: None,
            is_copy: true,
            is_dying: false,
            syncs_to_fail: 0,
            faults_seen: SimFaults::default(),
            servers: self.servers.clone(),
            key: self.key.clone(),
            boot: BootId(dice.bytes()),
            has_head: false,
            head_lag_ms: 0,
            has_head_kept: false,
            is_full: false,
            is_full_felt: false,
            starts: 0,
            actions: Actions::default(),
            untold: self.untold.clone(),
            ..*self
        }
    }

    pub(crate) fn has_power(&self) -> bool {
        self.power == Power::On
    }

    /// When the agent wants to be called, in virtual time.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        let deadline_ms = self.agent.as_ref()?.next_deadline()?;
        Some((deadline_ms + self.booted_ms).saturating_sub(BOOTING_MS_MAX))
    }

    pub(crate) fn is_signed_in(&self) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.phase() == SessionPhase::Active)
    }

    /// Whether its agent has heard a head since the machine was switched on.
    pub(crate) fn has_heard_head(&self) -> bool {
        self.has_head
    }

    /// The disk fills up, or has room again.
    pub(crate) fn set_full(&mut self, is_full: bool) {
        self.is_full = is_full;
        self.is_full_felt &= is_full;
        self.disk.set_full(is_full);
    }

    fn clock(&self, now_ms: u64) -> Now {
        let boot_ms = now_ms - self.booted_ms + BOOTING_MS_MAX;
        let unix_ms = (EPOCH_UNIX_MS + now_ms).saturating_add_signed(self.skew_ms);
        Now { unix_ms, boot_ms, mono_ms: boot_ms }
    }
}

/// Up to two days wrong, either way.
pub(crate) fn draw_skew(dice: &mut Dice) -> i64 {
    let skew_ms = dice.between(1_000, 48 * 3_600_000) as i64;
    if dice.chance(500) { skew_ms } else { -skew_ms }
}

impl World {
    pub(crate) fn start_device_after(&mut self, agent: usize, after_ms: u64) {
        let machine = &mut self.machines[agent];
        machine.starts += 1;
        let starts = machine.starts;
        self.after(after_ms, Event::DeviceStarts { agent, starts });
    }

    pub(crate) fn on_device_starts(&mut self, agent: usize, starts: u64) {
        let machine = &mut self.machines[agent];
        if machine.starts != starts || machine.agent.is_some() || machine.power == Power::OffForGood {
            return;
        }
        if machine.power == Power::Off {
            machine.power = Power::On;
            machine.boot = BootId(self.dice.bytes());
            machine.booted_ms = self.now_ms;
            (machine.has_head_kept, machine.head_lag_ms) = (false, 0);
            self.say(format_args!("device {agent} has power"));
            self.retransmit();
        }
        self.start_agent(agent);
    }

    /// Somebody copies the device's disk, and switches the copy on beside it for a while.
    pub(crate) fn clone_device(&mut self, agent: usize, for_ms: u64) {
        let copy = self.machines[agent].copy(&mut self.dice);
        let number = self.machines.len();
        self.say(format_args!("device {agent} is copied; the copy, {number}, is there for {for_ms} ms"));
        self.tally.count(Kind::DeviceCloned);
        self.model.on_cloned(agent, number);
        self.machines.push(copy);
        let after_ms = self.dice.between(1, 5_000);
        self.start_device_after(number, after_ms);
        self.after(for_ms, Event::CopyGoes { agent: number });
    }

    /// A copy of a device is switched off for good.
    pub(crate) fn on_copy_goes(&mut self, agent: usize) {
        if self.machines[agent].power != Power::OffForGood {
            self.cut_power(agent, 0);
            self.machines[agent].power = Power::OffForGood;
        }
    }

    /// Whether somebody else has called itself the same device.
    pub(crate) fn is_cloned(&self, agent: usize) -> bool {
        let device = self.machines[agent].device;
        self.machines.iter().filter(|machine| machine.device == device).count() > 1
    }

    fn start_agent(&mut self, agent: usize) {
        let machine = &self.machines[agent];
        let options = AgentOptions {
            site: self.site.code,
            device: machine.device,
            boot: machine.boot,
            servers: machine.servers.clone(),
            task_keys: self.site.trusted.clone(),
            state: PathBuf::from("/var/lib/bgb-agent"),
            agent_version: "0.1.0".to_owned(),
            platform: Platform { os: "linux".to_owned(), ..Platform::default() },
        };
        let key = DeviceKey::from_pkcs8(&machine.key).expect("the key was generated here");
        let disk: Arc<dyn Disk> = Arc::new(machine.disk.clone());
        let made = Agent::new(options, disk, key, machine.clock(self.now_ms), self.dice.next());
        let is_disk_hurt = self.note_disk_faults(agent);
        match made {
            Ok(made) => {
                self.say(format_args!("agent {agent} starts"));
                let machine = &mut self.machines[agent];
                machine.agent = Some(Box::new(made));
                machine.ended = 0;
                machine.has_head = machine.has_head_kept;
                machine.life += 1;
                self.expect(self.model.journal_is_whole(agent, &self.machines[agent]));
                self.note_ends(agent);
                self.carry_out_agent(agent);
            }
            Err(error) => self.on_agent_failed(agent, &error, is_disk_hurt),
        }
    }

    /// Counts what the device's disk has met since this was asked last; whether there was anything.
    fn note_disk_faults(&mut self, agent: usize) -> bool {
        let machine = &mut self.machines[agent];
        let faults = machine.disk.faults();
        let before = std::mem::replace(&mut machine.faults_seen, faults);
        if faults.syncs_failed > before.syncs_failed {
            self.tally.count(Kind::SyncFails);
        }
        if faults.full > before.full && !std::mem::replace(&mut machine.is_full_felt, true) {
            self.tally.count(Kind::DiskFull);
        }
        faults != before
    }

    /// Hands an agent something.
    pub(crate) fn tell_agent(&mut self, agent: usize, input: Input) {
        let now_ms = self.now_ms;
        let machine = &mut self.machines[agent];
        let clock = machine.clock(now_ms);
        let Some(present) = machine.agent.as_mut() else { return };
        let handled = present.handle(clock, input);
        self.after_agent_step(agent, handled);
    }

    pub(crate) fn agent_time_comes(&mut self, agent: usize) {
        let now_ms = self.now_ms;
        let machine = &mut self.machines[agent];
        let clock = machine.clock(now_ms);
        let Some(present) = machine.agent.as_mut() else { return };
        let handled = present.handle_time(clock);
        self.after_agent_step(agent, handled);
    }

    fn after_agent_step(&mut self, agent: usize, handled: Result<(), AgentError>) {
        let is_disk_hurt = self.note_disk_faults(agent);
        let witness = self.witness(agent);
        match handled {
            Ok(()) => {
                self.carry_out_agent(agent);
                self.note_ends(agent);
                self.check_agent_time(agent);
                let machine = &mut self.machines[agent];
                if machine.is_full {
                    machine.untold.push(witness);
                } else {
                    machine.untold.clear();
                }
            }
            Err(error) => {
                self.machines[agent].untold.push(witness);
                self.on_agent_failed(agent, &error, is_disk_hurt);
            }
        }
        self.tell_of_taken(agent);
    }

    /// The disk said no: the agent ends, outputs and all, and somebody starts it again. That nothing has hurt the disk in this very step,
    /// or that the journal itself cannot be read, is no reason to end.
    fn on_agent_failed(&mut self, agent: usize, error: &AgentError, is_disk_hurt: bool) {
        self.say(format_args!("agent {agent} ends: {error}"));
        if !is_disk_hurt || matches!(error, AgentError::Journal(JournalError::Unreadable(_))) {
            return self.violated(format!("agent {agent} ends, and nothing was done to its disk: {error}"));
        }
        if self.machines[agent].is_dying {
            self.tally.count(Kind::DiskDiesMidStep);
            let after_ms = self.dice.between(1_000, 60_000);
            self.cut_power(agent, after_ms);
        } else {
            self.drop_agent(agent, Farewell::Reset);
            let after_ms = self.dice.between(1_000, 10_000);
            self.start_device_after(agent, after_ms);
        }
    }

    /// The agent's process ends, and all that it had begun with it.
    pub(crate) fn drop_agent(&mut self, agent: usize, farewell: Farewell) {
        let machine = &mut self.machines[agent];
        machine.agent = None;
        let lost = machine.actions.end_all().len();
        for _ in 0..lost {
            self.tally.count(Kind::ActionLost);
        }
        if let Some(conn) = self.machines[agent].conn.take() {
            self.end_agent_side(conn, farewell);
        }
        self.forget_moves(agent, farewell);
    }

    /// The device loses its power, and what was not synced.
    pub(crate) fn cut_power(&mut self, agent: usize, off_ms: u64) {
        self.say(format_args!("device {agent} loses power for {off_ms} ms"));
        self.drop_agent(agent, Farewell::Silent);
        let seed = self.dice.next();
        let machine = &mut self.machines[agent];
        let before = machine.disk.faults();
        machine.disk.crash(seed);
        let after = machine.disk.faults();
        machine.power = Power::Off;
        machine.is_dying = false;
        machine.syncs_to_fail = after.syncs_failed;
        machine.faults_seen = after;
        if (after.bytes_lost, after.changes_undone) != (before.bytes_lost, before.changes_undone) {
            self.tally.count(Kind::UnsyncedLost);
        }
        self.start_device_after(agent, off_ms);
    }

    fn carry_out_agent(&mut self, agent: usize) {
        while let Some(output) = self.machines[agent].agent.as_mut().and_then(|present| present.poll_output())
        {
            match output {
                Output::Connect { server, .. } => self.on_agent_connects(agent, &server),
                Output::Disconnect { reason } => self.on_agent_disconnects(agent, reason),
                Output::Say(message) => self.on_agent_says(agent, &message),
                Output::Start(start) => self.on_agent_begins(agent, &start),
                Output::Kill { task } => self.on_agent_kills(agent, task),
            }
        }
    }

    fn on_agent_connects(&mut self, agent: usize, address: &str) {
        if self.machines[agent].conn.is_some() {
            return self.violated(format!("agent {agent} connects while it has a connection"));
        }
        let Some(server) = server_at(address) else {
            return self.violated(format!("agent {agent} connects to {address}, which is no server's"));
        };
        self.say(format_args!("agent {agent} connects to server {}", server + 1));
        let conn = self.connect_or_take(agent, server);
        self.machines[agent].conn = Some(conn);
    }

    fn on_agent_disconnects(&mut self, agent: usize, reason: Parting) {
        self.say(format_args!("agent {agent} disconnects: {}", reason.sentence()));
        if reason == Parting::KeepaliveUnanswered {
            self.tally.count(Kind::NoAnswerToKeepalive);
        }
        match self.machines[agent].conn.take() {
            Some(conn) => self.part_with(agent, conn, reason),
            None => self.violated(format!("agent {agent} ends a connection that it does not have")),
        }
    }

    fn on_agent_says(&mut self, agent: usize, message: &AgentMessage) {
        self.say(format_args!("agent {agent} says {}", said_by_agent(message)));
        if let AgentMessage::Result(result) = message
            && let Ok(statement) = result.read()
            && statement.state == TaskState::Refused
        {
            self.model.on_refusal_said(statement.task, agent);
        }
        let conn = self.machines[agent].conn.and_then(|id| Some((id, self.network.conns.get_mut(&id)?)));
        let Some((id, conn)) = conn.filter(|(_, conn)| conn.agent_end == End::Open) else {
            return self.violated(format!("agent {agent} speaks without a connection"));
        };
        let server = conn.server;
        if let AgentMessage::Hello(hello) = message {
            conn.session = Some((hello.boot, hello.session));
            let number = self.model.session_numbers.insert(agent, hello.session);
            if number.is_some_and(|before| before >= hello.session) {
                self.violated(format!("agent {agent} uses session {} again", hello.session));
            }
            if self.machines[agent].last_server.replace(server).is_some_and(|before| before != server) {
                self.tally.count(Kind::MovedServer);
            }
        }
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.write(id, Way::Up, &bytes);
        self.leave_former(agent, message);
        match message {
            AgentMessage::Result(_) | AgentMessage::PolicyRequest(_) => self.tempt_to_move(id),
            _ => {}
        }
    }

    /// The owner stops the agent: it says goodbye and ends its actions, then its process ends.
    pub(crate) fn stop_agent(&mut self, agent: usize) {
        self.say(format_args!("agent {agent} is stopped"));
        self.tell_agent(agent, Input::Stop);
        for task in self.machines[agent].actions.end_all() {
            self.tally.count(Kind::ActionLost);
            let outcome = Outcome { ending: Ending::Cancelled, code: -1, output: Vec::new() };
            self.tell_agent(agent, Input::Finished { task, outcome });
        }
        self.drop_agent(agent, Farewell::Flushed);
    }

    /// A frame of the server has arrived whole.
    pub(crate) fn hear_from_server(&mut self, id: ConnId, frame: Frame<'_>) {
        let message = match ServerMessage::decode(frame) {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => {
                return self.violated(format!("an agent cannot read its server's message: {error}"));
            }
        };
        let Some(agent) = self.network.conns.get(&id).map(|conn| conn.agent) else { return };
        match self.machines[agent].role_of(id) {
            Role::Session => {}
            // Before a hello it has nothing to say but that it goes away.
            Role::Standing => return self.on_better_road_gone(agent),
            Role::Trying | Role::Leaving | Role::Over => return,
        }
        self.say(format_args!("agent {agent} hears {}", said_by_server(&message)));
        let was_active = self.machines[agent].is_signed_in();
        match &message {
            // A word of an older session that is late and dated by a clock that was wrong looks like a restored snapshot's; the next
            // session makes it good.
            ServerMessage::Refused(RefusedReason::Superseded)
                if !self.is_cloned(agent) && !self.has_clock_been_wrong =>
            {
                self.violated(format!("agent {agent} is told of a newer session than its newest"));
            }
            _ => {}
        }
        let cancelled = match &message {
            ServerMessage::Cancel(signed) => {
                SignedCancel::decode(signed).ok().map(|cancel| cancel.statement().task)
            }
            _ => None,
        };
        let before = cancelled.and_then(|task| self.machines[agent].agent.as_ref()?.task_state(task));
        self.model.cancels_said.extend(cancelled.map(|task| (task, agent)));
        if let ServerMessage::Task(push) = &message
            && let Ok(task) = SignedTask::decode(&push.signed)
        {
            self.model.on_told(agent, task.statement().task, self.machines[agent].life);
        }
        let head = match &message {
            ServerMessage::Welcome(welcome) => SignedHead::decode(&welcome.head).ok(),
            ServerMessage::KeepaliveAnswer(head) => SignedHead::decode(head).ok(),
            _ => None,
        };
        let head_lag_ms = head.map_or(0, |head| self.unix().since(head.statement().time));
        let machine = &mut self.machines[agent];
        machine.head_lag_ms = machine.head_lag_ms.max(head_lag_ms);
        let brings_head = matches!(&message, ServerMessage::Welcome(welcome) if !welcome.head.is_empty());
        let settings = self.machines[agent].agent.as_ref().map(|present| Arc::clone(present.settings()));
        let is_welcome = matches!(&message, ServerMessage::Welcome(_));
        self.tell_agent(agent, Input::Said(message));
        if is_welcome {
            self.plan_move(id);
        }
        let machine = &mut self.machines[agent];
        let settings_now = machine.agent.as_ref().map(|present| Arc::clone(present.settings()));
        if settings_now.is_some() && settings_now != settings {
            self.tally.count(Kind::PolicyApplied);
        }
        machine.has_head |= brings_head && machine.agent.is_some();
        machine.has_head_kept |= brings_head && machine.agent.is_some() && !machine.is_full;
        if let (Some(task), true, true) = (cancelled, was_active, self.machines[agent].agent.is_some()) {
            self.note_cancel_heard(agent, task, before);
        }
    }

    fn note_cancel_heard(&mut self, agent: usize, task: TaskId, before: Option<TaskState>) {
        match before {
            Some(TaskState::Received) => self.tally.count(Kind::CancelHeardWaiting),
            Some(TaskState::Running) => self.tally.count(Kind::CancelHeardRunning),
            Some(_) => self.tally.count(Kind::CancelHeardEnded),
            None => {}
        }
        // Without room it is known for this life only.
        if !self.machines[agent].is_full {
            self.model.cancels_heard.insert((task, agent));
        }
        // An action can have ended although the journal does not say so: its disk is full, and the end waits for room.
        let is_over = before == Some(TaskState::Running) && !self.machines[agent].actions.runs(task);
        if before.is_some_and(|state| !state.is_final()) && !is_over && !self.machines[agent].is_full {
            self.model.cancelled_in_time.insert((task, agent));
        }
        self.tempt_fate(agent);
    }

    /// Tells the model of what has ended, durably, on the agent.
    fn note_ends(&mut self, agent: usize) {
        let witness = self.witness(agent);
        let machine = &mut self.machines[agent];
        let Some(present) = machine.agent.as_ref() else { return };
        if present.counters().ended == machine.ended && present.counters().ended > 0 {
            return;
        }
        machine.ended = present.counters().ended;
        let kept = self.model.on_ends(agent, &self.machines[agent], witness);
        self.expect(kept);
    }

    pub(crate) fn witness(&self, agent: usize) -> Witness {
        let (machine, now) = (&self.machines[agent], self.unix());
        let own_now =
            machine.agent.as_ref().map_or(now, |present| present.own_time(machine.clock(self.now_ms)));
        Witness { now, own_now, life: machine.life }
    }

    /// An agent's time is never ahead of the site's once a head was heard.
    fn check_agent_time(&mut self, agent: usize) {
        let machine = &self.machines[agent];
        let Some(present) = machine.agent.as_ref().filter(|_| machine.has_head) else { return };
        let own = present.own_time(machine.clock(self.now_ms));
        if own > self.unix() {
            self.violated(format!(
                "agent {agent}'s time is {} ms ahead of the site's",
                own.since(self.unix())
            ));
        }
    }
}
