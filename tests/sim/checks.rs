//! What must have come about once the faults are over.
//!
//! At fixed times after the healing: whoever is online on a sound connection has every task within 5 s; after 300 s everybody is
//! online and has them; every two seconds the site shows where each device is that has not moved for as long as it may be wrong; at the end every end that an agent has journaled is counted, and the site's view of who is online is
//! the truth. Numbers of invariants are those of docs/promises.md.

use bgb_hub::CloseReason;
use bgb_protocol::action::Action;
use bgb_protocol::head::HEAD_INTERVAL_MS;
use bgb_protocol::ids::{TaskId, UnixMillis};
use bgb_protocol::message::RoadTaken;
use bgb_protocol::state::TaskState;
use bgb_protocol::task::NOT_BEFORE_TOLERANCE_MS;

use crate::agents::Power;
use crate::faults::MENDED_MS;
use crate::network::{Conn, ConnId, End};
use crate::servers::{Channel, SimServer, SimShard};
use crate::site::Shown;
use crate::tally::Kind;
use crate::tunnels::{HOLD_MS_MAX, SILENT_MS};
use crate::world::{Event, World};

/// A device that is online has a task within this time (invariant 2).
const ONLINE_WITHIN_MS: u64 = 5_000;
/// Any other has it within this time (invariant 2).
const ANYBODY_WITHIN_MS: u64 = 300_000;
/// Presence is true within two keepalive limits and this (invariant 7).
const PRESENCE_MARGIN_MS: u64 = 10_000;
/// How often it is looked whether the site shows the truth.
const PRESENCE_CHECK_MS: u64 = 2_000;
/// How long after their expiry, or after everybody has them, tasks are over on a device that is online: the longest action modelled,
/// and then as many short ones as queue up.
const OVER_AFTER_MS: u64 = 240_000;
/// The manager takes orders within this time after the healing: a machine's start, and its own.
const ORDERS_WITHIN_MS: u64 = 10_000;
/// The tasks of peace are valid until the world ends.
const VALID_IN_PEACE_MS: u64 = 2 * (ANYBODY_WITHIN_MS + OVER_AFTER_MS);
/// How often it is looked whether a server holds a channel that has been silent for longer than it may, and how much later than that a
/// tick and a turn may end it.
pub(crate) const SILENT_CHECK_MS: u64 = 10_000;
const SILENT_MARGIN_MS: u64 = 1_000;
/// A device whose connection a proxy has cut since it was idle, as proxies do in peace, too, is back within this time and has told everything: a
/// back-off, a connection, and what the site needs to hear of it.
pub(crate) const BACK_WITHIN_MS: u64 = 90_000;
/// Better roads are looked for until so long after the healing: whoever moves then is there when it is looked who is.
pub(crate) const MOVES_END_MS: u64 = MENDED_MS + ANYBODY_WITHIN_MS - BACK_WITHIN_MS;
/// A tunnel whose agent is gone may be held for a last GET's time, and be silent for its own.
const TUNNEL_LEFT_MS: u64 = HOLD_MS_MAX + SILENT_MS;
/// A result is counted within this time when nothing is broken: spool, file, its way, and the next file's turn.
const COUNTED_WITHIN_MS: u64 = 15_000;

/// Whether an agent that is online must have heard a head of the present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heads {
    MayBeOld,
    HaveCome,
}

impl World {
    /// From the healing on: some tasks for everybody, and the moments at which promises are due.
    pub(crate) fn start_peace(&mut self) {
        self.check_site();
        self.after(MENDED_MS, Event::PeaceTasks);
        let presence_ms = self.presence_ms();
        let all_ms = MENDED_MS + ANYBODY_WITHIN_MS;
        self.after(MENDED_MS + ONLINE_WITHIN_MS, Event::CheckSteady);
        self.after(all_ms, Event::CheckAll);
        self.after(MENDED_MS, Event::CheckPresence);
        // So that presence is looked at once it has to be true.
        let presence_ms = presence_ms + 2 * PRESENCE_CHECK_MS;
        self.after(MENDED_MS + presence_ms.max(all_ms + OVER_AFTER_MS), Event::End);
    }

    /// How long the site may be wrong about a device, in peace (invariant 7).
    fn presence_ms(&self) -> u64 {
        let limit_ms = u64::from(self.weather.keepalive_secs) * 1_500;
        2 * limit_ms + PRESENCE_MARGIN_MS
    }

    /// Some tasks for everybody, which everybody must have ended when the world does.
    pub(crate) fn start_peace_tasks(&mut self) {
        if self.site.manager.is_none() {
            if self.now_ms >= self.weather.heals_at_ms + ORDERS_WITHIN_MS {
                self.violated(format!("nobody takes orders {ORDERS_WITHIN_MS} ms after the healing"));
            }
            return self.after(MENDED_MS, Event::PeaceTasks);
        }
        let everybody = self.some_targets(1_000);
        for action in [Action::CollectInventory, Action::QuickScan, Action::DownloadPolicy] {
            let task = self.start_task(action, Some(&everybody), VALID_IN_PEACE_MS);
            self.peace_tasks.extend(task);
        }
    }

    /// No server holds a channel that says no hello, or a session that is silent beyond its limit (docs/promises.md, Presence).
    pub(crate) fn check_silent(&mut self) {
        let now_ms = self.now_ms;
        let overdue = |own: &&Channel| now_ms > own.heard_ms + own.silent_ms_max + SILENT_MARGIN_MS;
        let processes = self.servers.iter().filter_map(|server| server.process.as_ref());
        let channels: Vec<_> =
            processes.flat_map(|process| &process.shards).flat_map(SimShard::channels).collect();
        if let Some(own) = channels.into_iter().find(overdue) {
            let (silent_ms, most_ms) = (now_ms - own.heard_ms, own.silent_ms_max);
            self.violated(format!(
                "a server holds a channel that has been silent for {silent_ms} ms, {most_ms} at the most"
            ));
        }
        self.after(SILENT_CHECK_MS, Event::CheckSilent);
    }

    /// Whether both ends of the device's connection hold the same session and the network has not forgotten it; since when.
    fn steady_since_ms(&self, agent: usize) -> Option<u64> {
        let machine = &self.machines[agent];
        let id = machine.conn.filter(|_| machine.is_signed_in())?;
        let conn = self.network.conns.get(&id)?;
        let (_, active) = self.servers[conn.server].active(machine.device)?;
        let is_sound = conn.is_whole() && (conn.agent_end, conn.server_end) == (End::Open, End::Open);
        // By long-poll, also once nothing is wrong with any request.
        let requests_since_ms = self.requests_sound_since_ms(id)?;
        let is_same =
            Some(active.channel) == conn.channel && Some((active.boot, active.session)) == conn.session;
        (is_sound && is_same).then_some(active.since_ms.max(requests_since_ms))
    }

    /// Who is steady has every task that it could have had for 5 s (invariant 2).
    pub(crate) fn check_steady(&mut self) {
        for agent in 0..self.machines.len() {
            if let Some(since_ms) = self.steady_since_ms(agent) {
                let due_ms = since_ms.max(self.weather.heals_at_ms + MENDED_MS) + ONLINE_WITHIN_MS;
                if self.now_ms >= due_ms {
                    let by = UnixMillis(self.unix().0 - ONLINE_WITHIN_MS);
                    self.check_has_tasks(agent, by, Heads::MayBeOld);
                }
            }
        }
        self.after(ONLINE_WITHIN_MS, Event::CheckSteady);
    }

    /// The site shows where each device is, once nothing has changed about that for as long as it may be wrong (invariant 7).
    pub(crate) fn check_presence(&mut self) {
        let shown = self.site.sessions_shown();
        for agent in 0..self.machines.len() {
            // Of two that call themselves the same device the site may show either.
            if self.is_cloned(agent) {
                continue;
            }
            let truth = self.steady_since_ms(agent).and_then(|_| self.truth(agent));
            let machine = &mut self.machines[agent];
            let (device, before) = (machine.device, machine.whereabouts);
            if before.is_none_or(|(before, _)| before != truth) {
                machine.whereabouts = Some((truth, self.now_ms));
                continue;
            }
            let is_settled = before.is_some_and(|(_, since_ms)| self.now_ms >= since_ms + self.presence_ms());
            let online = shown.iter().find(|(shown, _, is_online)| *shown == device && *is_online);
            let online = online.map(|(_, session, _)| *session);
            if is_settled && online != truth {
                let ms = self.presence_ms();
                self.violated(format!(
                    "device {device} is shown as {online:?}, and has been {truth:?} for {ms} ms"
                ));
            }
        }
        self.after(PRESENCE_CHECK_MS, Event::CheckPresence);
    }

    /// The device has every valid task that was released to it by `by`, and knows of every cancel.
    fn check_has_tasks(&mut self, agent: usize, by: UnixMillis, heads: Heads) {
        let machine = &self.machines[agent];
        let Some(present) = machine.agent.as_ref() else { return };
        let now = self.unix();
        let mut missing: Vec<(TaskId, &str)> = Vec::new();
        for (task, facts) in self.model.tasks.iter().filter(|(_, facts)| facts.expires > now) {
            // What its copy has answered, or said in a hello to have ended, is answered: no server pushes it again to the device that they
            // both are.
            let is_answered = self.is_cloned(agent) && self.model.is_answered(*task, machine.device);
            // One that has not begun by the agent's time, or that seems over by a clock that no head of this boot has set right, is set
            // aside until a head is asked for again, as often as heads are written.
            let judged_at = UnixMillis(self.witness(agent).own_now.0 - HEAD_INTERVAL_MS);
            let is_early = facts.not_before > judged_at.plus(NOT_BEFORE_TOLERANCE_MS);
            let is_uncertain = is_early || !machine.has_heard_head();
            let waits_for_head = is_uncertain && heads == Heads::MayBeOld;
            let is_due = !is_answered
                && !waits_for_head
                && facts.is_promised_to(machine.device).is_some_and(|from| from <= by);
            match (present.task_state(*task), facts.cancelled) {
                (None, None) if is_due => missing.push((*task, "task")),
                (Some(state), Some(cancelled))
                    if !facts.is_disowned
                        && !is_answered
                        && cancelled <= by
                        && !state.is_final()
                        && !machine.has_from_a_liar(*task)
                        && !self.model.cancels_heard.contains(&(*task, agent)) =>
                {
                    missing.push((*task, "the cancel of task"));
                }
                _ => {}
            }
        }
        if let Some((task, what)) = missing.first() {
            let ms = self.now_ms - self.weather.heals_at_ms;
            self.violated(format!(
                "agent {agent} is online and lacks {what} {task}, {ms} ms after the healing"
            ));
        }
    }

    /// Everybody who can be is online, and has every task (invariant 2).
    pub(crate) fn check_all(&mut self) {
        self.check_doors();
        for agent in 0..self.machines.len() {
            if !self.should_be_online(agent) {
                continue;
            }
            match self.steady_since_ms(agent) {
                Some(_) => {
                    let by = UnixMillis(self.unix().0 - ONLINE_WITHIN_MS);
                    self.check_has_tasks(agent, by, Heads::HaveCome);
                }
                None => self.violated(format!("agent {agent} is not online 300 s after the healing")),
            }
        }
    }

    /// Whether a proxy has cut somebody's idle connection a moment ago. Devices learn of that, so it happens to each a few times at the most.
    pub(crate) fn is_somebody_on_the_way_back(&self) -> bool {
        let mut cuts = self.machines.iter().filter_map(|machine| machine.habits.cut_ms);
        cuts.any(|cut_ms| self.now_ms < cut_ms + BACK_WITHIN_MS)
    }

    /// Every server can read the queue, so it takes sign-ins (invariant 2, for those who have no other server).
    fn check_doors(&mut self) {
        let is_open = |server: &SimServer| {
            server.process.iter().flat_map(|process| &process.shards).all(|own| own.takes_sign_ins)
        };
        if let Some(place) = self.servers.iter().position(|server| !is_open(server)) {
            self.violated(format!("server {} takes no sign-ins 300 s after the healing", place + 1));
        }
    }

    fn should_be_online(&self, agent: usize) -> bool {
        let machine = &self.machines[agent];
        machine.power != Power::OffForGood && !self.model.is_blocked(machine.device)
    }

    /// At the end: everything is counted, and the site knows who is online (invariants 5 and 7).
    pub(crate) fn check_end(&mut self) {
        self.check_all();
        for agent in 0..self.machines.len() {
            if self.machines[agent].is_copy {
                continue;
            }
            let device = self.machines[agent].device;
            let is_online = self.should_be_online(agent);
            if is_online {
                let until = UnixMillis(self.unix().0 - COUNTED_WITHIN_MS);
                self.expect(self.model.all_counted(agent, until));
                self.check_tasks_are_over(agent);
                self.check_peace_tasks(agent);
                self.check_policy(agent);
            }
            let truth = is_online.then(|| self.truth(agent)).flatten();
            let shown = self.site.shown(device);
            // Where two called themselves the same device, the site may still hold to the one with the higher number.
            if truth != shown && !self.is_cloned(agent) {
                self.violated(format!("device {device} is shown as {shown:?}; the truth is {truth:?}"));
            }
            let road = is_online.then(|| self.road_of(agent)).flatten();
            let road_shown = self.site.road_shown(device);
            if road.is_some() && road != road_shown && !self.is_cloned(agent) {
                self.violated(format!(
                    "device {device} comes by {road:?}, and the site shows {road_shown:?}"
                ));
            }
            let sessions: usize =
                self.servers.iter().filter(|server| server.active(device).is_some()).count();
            if sessions != usize::from(is_online) {
                self.violated(format!("device {device} has {sessions} sessions at the end"));
            }
        }
        self.check_nothing_is_left();
        self.check_site();
        for _ in 0..self.model.undelivered(self.unix()) {
            self.tally.count(Kind::ExpiredUndelivered);
        }
    }

    /// No server holds an end of a connection or of a tunnel whose agent's end has been gone for longer than the server may take to notice.
    fn check_nothing_is_left(&mut self) {
        let now_ms = self.now_ms;
        let silent_ms = u64::from(self.weather.keepalive_secs) * 1_500;
        let is_left = |conn: &Conn| {
            let most_ms = if conn.is_long_poll() { silent_ms.min(TUNNEL_LEFT_MS) } else { silent_ms };
            let is_over =
                conn.agent_closed_ms.is_some_and(|gone_ms| now_ms > gone_ms + most_ms + SILENT_MARGIN_MS);
            conn.server_end == End::Open && is_over
        };
        if let Some((id, conn)) = self.network.conns.iter().find(|(_, conn)| is_left(conn)) {
            let (server, gone_ms) =
                (conn.server + 1, conn.agent_closed_ms.map_or(0, |gone_ms| now_ms - gone_ms));
            self.violated(format!(
                "server {server} holds {id:?}, whose agent has been gone for {gone_ms} ms"
            ));
        }
        if let Some(made) = self.lingering_request() {
            let what = format!("a {:?} is still under way, long after anybody waits for it", made.lane);
            self.violated(what);
        }
        let is_nobodys =
            |conn: ConnId| self.network.conns.get(&conn).is_none_or(|conn| conn.server_end != End::Open);
        if let Some((slot, end)) =
            self.network.tunnels.iter().find(|(_, end)| is_nobodys(end.conn) && end.is_overdue(now_ms))
        {
            let server = end.server + 1;
            self.violated(format!(
                "server {server} holds tunnel {slot}, of which nobody has a session, beyond its time"
            ));
        }
    }

    /// Where the device really is online, and with which session.
    fn truth(&self, agent: usize) -> Option<Shown> {
        let conn = self.network.conns.get(&self.machines[agent].conn?)?;
        let (boot, session) = conn.session?;
        Some((conn.server, boot, session))
    }

    /// By which road it really comes.
    fn road_of(&self, agent: usize) -> Option<RoadTaken> {
        Some(self.network.conns.get(&self.machines[agent].conn?)?.road.clone())
    }

    /// The tasks of peace were done, and the site has counted them (invariant 5).
    fn check_peace_tasks(&mut self, agent: usize) {
        let machine = &self.machines[agent];
        let Some(present) = machine.agent.as_ref() else { return };
        for &task in &self.peace_tasks {
            let facts = &self.model.tasks[&task];
            if !facts.targets.contains(&machine.device) {
                continue;
            }
            let state = present.task_state(task);
            let is_done = match state {
                Some(TaskState::Succeeded) => true,
                // Actions may fail; a policy that is to be had is applied, but where a copy has the device's place meanwhile.
                Some(TaskState::Failed) => facts.action != Action::DownloadPolicy || self.is_cloned(agent),
                _ => false,
            };
            let counted = self.model.counted(task, machine.device);
            if !is_done || counted != state {
                return self.violated(format!(
                    "task {task} of peace is {state:?} on agent {agent} at the end, and the site has counted {counted:?}"
                ));
            }
            self.tally.count(Kind::DoneInPeace);
        }
    }

    /// Whoever was asked to in peace has the policy that is in force.
    fn check_policy(&mut self, agent: usize) {
        let machine = &self.machines[agent];
        let Some(present) = machine.agent.as_ref() else { return };
        let has_asked = self.peace_tasks.iter().any(|task| {
            let is_download = self.model.tasks[task].action == Action::DownloadPolicy;
            is_download && present.task_state(*task) == Some(TaskState::Succeeded)
        });
        let (has, due) =
            (present.settings().keepalive_seconds, self.model.policies.keepalive_secs(machine.device));
        if has_asked && has != due {
            self.violated(format!(
                "agent {agent} has a keepalive of {has:?} s by policy, where {due:?} is in force"
            ));
        }
    }

    /// What has expired long ago does not wait on a device any more.
    fn check_tasks_are_over(&mut self, agent: usize) {
        let machine = &self.machines[agent];
        let Some(present) = machine.agent.as_ref() else { return };
        let now = self.unix();
        let waits = self.model.tasks.iter().find(|(task, facts)| {
            let is_over = facts.expires.plus(OVER_AFTER_MS) < now;
            let state = present.task_state(**task);
            is_over && state.is_some_and(|state| !state.is_final())
        });
        if let Some((task, _)) = waits {
            self.violated(format!("task {task} has expired long ago and still waits on agent {agent}"));
        }
    }

    /// Counts why a session ended.
    pub(crate) fn count_close(&mut self, reason: CloseReason) {
        let kind = match reason {
            CloseReason::Blocked => Kind::EndedBlocked,
            CloseReason::Revoked => Kind::EndedRevoked,
            CloseReason::CertificateEnded => Kind::EndedCertificate,
            CloseReason::KeepaliveMissed => Kind::EndedSilent,
            CloseReason::Unreachable => Kind::EndedUnreachable,
            CloseReason::Reset => Kind::EndedReset,
            CloseReason::PeerClosed => Kind::EndedPeerClosed,
            CloseReason::Goodbye => Kind::EndedGoodbye,
            CloseReason::Draining => Kind::EndedDraining,
            CloseReason::HelloTimedOut => Kind::HelloMissed,
            CloseReason::TooSlow => Kind::TooSlow,
            CloseReason::Superseded => Kind::SupersededBySite,
            CloseReason::TunnelSilent => Kind::EndedTunnelSilent,
            CloseReason::Unavailable | CloseReason::OlderSession => return,
            other => return self.violated(format!("a session ends for a reason that cannot be: {other:?}")),
        };
        self.tally.count(kind);
    }
}
