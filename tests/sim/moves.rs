//! Moving over to a better road: what the agent's daemon does about a second connection (agent/src/daemon/connections.rs).
//!
//! ```text
//!            now and then     stands               the session asks to connect
//!   (none) -------------> trying ----> standing -------------------------------> the session's; the former one ends
//!                            \  failed     \  8 s, or its end: the session stays
//!                             +-------------+--> (none)
//! ```
//!
//! A session over a WebSocket or by long-poll gets a better road beside it, more often while something it has said waits for its answer. The agent is
//! told of it, and asks to leave when it pleases; the former connection stays until the hello was said on the new one. In that time either connection
//! may be cut or forgotten, their link cut, or the agent and its device may die. Law, checked here: an agent leaves for a better road only while
//! one stands. All others hold as ever: what the server says on the former connection from then on reaches nobody, and nothing is lost by that.

use bgb_agent::agent::Input as AgentInput;
use bgb_agent::daemon::STANDING_MS;
use bgb_agent::parting::Parting;
use bgb_protocol::message::{AgentMessage, Road, RoadTaken};

use crate::agents::Machine;
use crate::checks::MOVES_END_MS;
use crate::network::{ConnId, End, Farewell, Way};
use crate::tally::Kind;
use crate::world::{Event, World};

/// A better road is looked for so long after the sign-in, on average; and again after that.
const BETTER_AFTER_MS: u64 = 20_000;
/// So many moves in a thousand meet with something, within this time from the moment on that the better road stands.
const TROUBLE_PER_MILLE: u64 = 400;
const TROUBLE_WITHIN_MS: u64 = 300;

/// The connections of a device besides its session's.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    probe: Probe,
    /// The session's before, until the next one has said hello.
    leaving: Option<ConnId>,
    /// The server that it connected to last.
    destination: Option<usize>,
    /// The better road that the session has just taken: the agent is to be told.
    taken: Option<RoadTaken>,
}

#[derive(Debug, Default)]
enum Probe {
    #[default]
    None,
    Trying(ConnId),
    Standing {
        conn: ConnId,
        until_ms: u64,
    },
}

/// What a connection is to its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Session,
    Trying,
    Standing,
    Leaving,
    /// It is over, as far as the device is concerned.
    Over,
}

/// What a move meets with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    Cut,
    Forgotten,
    LinkCut,
    PowerFails,
    AgentDies,
}

impl Moves {
    fn probe(&self) -> Option<ConnId> {
        match self.probe {
            Probe::None => None,
            Probe::Trying(conn) | Probe::Standing { conn, .. } => Some(conn),
        }
    }
}

impl Machine {
    pub(crate) fn role_of(&self, id: ConnId) -> Role {
        match self.moves.probe {
            _ if self.conn == Some(id) => Role::Session,
            Probe::Trying(conn) if conn == id => Role::Trying,
            Probe::Standing { conn, .. } if conn == id => Role::Standing,
            _ if self.moves.leaving == Some(id) => Role::Leaving,
            _ => Role::Over,
        }
    }

    /// All its connections, that of its session first.
    pub(crate) fn conns(&self) -> impl Iterator<Item = ConnId> + use<> {
        [self.conn, self.moves.probe(), self.moves.leaving].into_iter().flatten()
    }
}

impl World {
    /// The device has signed in.
    pub(crate) fn plan_move(&mut self, id: ConnId) {
        if self.is_improvable(id) && self.dice.chance(self.weather.better_road_per_mille) {
            let after_ms = self.dice.around(BETTER_AFTER_MS);
            self.after(after_ms, Event::BetterRoadDue { conn: id });
        }
    }

    /// The device has said what is to be answered.
    pub(crate) fn tempt_to_move(&mut self, id: ConnId) {
        if self.is_improvable(id) && self.dice.chance(self.weather.better_road_per_mille / 2) {
            let after_ms = self.latency_ms();
            self.after(after_ms, Event::BetterRoadDue { conn: id });
        }
    }

    /// Whether there is a road that is better than the connection's.
    fn is_improvable(&self, id: ConnId) -> bool {
        self.network.conns.get(&id).is_some_and(|conn| conn.road.road != Road::Tcp)
    }

    /// A better road is tried beside the session's.
    pub(crate) fn on_better_road_due(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get(&id) else { return };
        let (agent, road) = (conn.agent, conn.road.road);
        let machine = &self.machines[agent];
        let is_its = machine.role_of(id) == Role::Session && machine.is_signed_in();
        let is_late = self.now_ms >= self.weather.heals_at_ms + MOVES_END_MS;
        let Some(server) = machine.moves.destination.filter(|_| is_its && !is_late) else { return };
        if !matches!(machine.moves.probe, Probe::None) {
            return;
        }
        let has_websocket = road == Road::LongPoll && machine.habits.bears_websockets();
        let better = if has_websocket && self.dice.chance(500) { Road::WebSocket } else { Road::Tcp };
        self.say(format_args!("agent {agent} tries a better road to server {}: {better:?}", server + 1));
        let conn = self.connect_by(agent, server, better);
        self.machines[agent].moves.probe = Probe::Trying(conn);
        // Where nothing comes of it, it is tried again.
        let after_ms = self.dice.around(BETTER_AFTER_MS);
        self.after(after_ms, Event::BetterRoadDue { conn: id });
    }

    /// The better road stands.
    pub(crate) fn on_better_road_stands(&mut self, agent: usize, id: ConnId) {
        let until_ms = self.now_ms + STANDING_MS;
        self.machines[agent].moves.probe = Probe::Standing { conn: id, until_ms };
        self.tally.count(Kind::BetterRoadStands);
        self.say(format_args!("a better road stands beside the session of agent {agent}"));
        self.after(STANDING_MS, Event::StandingOver { conn: id });
        self.draw_trouble(agent);
        self.tell_agent(agent, AgentInput::RoadBetter);
    }

    /// It has waited for the session for too long.
    pub(crate) fn on_standing_over(&mut self, id: ConnId) {
        let Some(agent) = self.network.conns.get(&id).map(|conn| conn.agent) else { return };
        if self.machines[agent].role_of(id) == Role::Standing {
            self.tally.count(Kind::BetterRoadWaitedInVain);
            self.end_standing(agent);
        }
    }

    /// The better road was not to be had.
    pub(crate) fn on_better_road_failed(&mut self, agent: usize) {
        self.machines[agent].moves.probe = Probe::None;
        self.tally.count(Kind::BetterRoadFailed);
    }

    /// It has gone, or says that it goes away.
    pub(crate) fn on_better_road_gone(&mut self, agent: usize) {
        self.tally.count(Kind::BetterRoadGone);
        self.end_standing(agent);
    }

    /// It ends, and the agent is told so.
    fn end_standing(&mut self, agent: usize) {
        self.say(format_args!("the better road of agent {agent} is there no more"));
        self.end_probe(agent);
        self.tell_agent(agent, AgentInput::RoadGone);
    }

    fn end_probe(&mut self, agent: usize) {
        let probe = std::mem::take(&mut self.machines[agent].moves.probe);
        if let Probe::Trying(conn) | Probe::Standing { conn, .. } = probe {
            self.end_agent_side(conn, Farewell::InOrder);
        }
    }

    fn end_leaving(&mut self, agent: usize) {
        if let Some(leaving) = self.machines[agent].moves.leaving.take() {
            self.end_agent_side(leaving, Farewell::InOrder);
        }
    }

    /// The connection that the session leaves has gone by itself.
    pub(crate) fn on_leaving_gone(&mut self, agent: usize) {
        self.machines[agent].moves.leaving = None;
    }

    /// The agent ends its session's connection, or the attempt at one.
    pub(crate) fn part_with(&mut self, agent: usize, conn: ConnId, reason: Parting) {
        let is_standing = matches!(self.machines[agent].moves.probe, Probe::Standing { .. });
        match reason {
            Parting::RoadBetter if is_standing => self.machines[agent].moves.leaving = Some(conn),
            Parting::RoadBetter => {
                self.violated(format!("agent {agent} leaves for a better road, and there is none"));
            }
            _ => self.end_agent_side(conn, Farewell::InOrder),
        }
        if reason == Parting::Stopped {
            self.end_leaving(agent);
            self.end_probe(agent);
        }
    }

    /// The agent connects: by the connection that stands, if one does.
    pub(crate) fn connect_or_take(&mut self, agent: usize, server: usize) -> ConnId {
        let now_ms = self.now_ms;
        let moves = &mut self.machines[agent].moves;
        let is_there = moves.destination.replace(server) == Some(server);
        if let Probe::Standing { conn, until_ms } = moves.probe
            && is_there
            && now_ms < until_ms
            && let Some(standing) = self.network.conns.get(&conn)
        {
            moves.probe = Probe::None;
            moves.taken = Some(standing.road.clone());
            if moves.leaving.is_none() {
                self.tally.count(Kind::BetterRoadTakenLate);
            }
            self.say(format_args!("agent {agent} takes the better road"));
            return conn;
        }
        self.end_probe(agent);
        self.end_leaving(agent);
        self.connect(agent, server)
    }

    /// The agent hears that it is connected already, where it is.
    pub(crate) fn tell_of_taken(&mut self, agent: usize) {
        if let Some(road) = self.machines[agent].moves.taken.take() {
            self.tell_agent(agent, AgentInput::Connected { road });
        }
    }

    /// The agent has said something in its session: the former connection has nothing to wait for.
    pub(crate) fn leave_former(&mut self, agent: usize, message: &AgentMessage) {
        if self.machines[agent].moves.leaving.is_none() {
            return;
        }
        if matches!(message, AgentMessage::Hello(_)) {
            self.tally.count(Kind::MovedOver);
        }
        self.end_leaving(agent);
    }

    /// The agent's process is gone.
    pub(crate) fn forget_moves(&mut self, agent: usize, farewell: Farewell) {
        let moves = std::mem::take(&mut self.machines[agent].moves);
        for conn in moves.probe().into_iter().chain(moves.leaving) {
            self.end_agent_side(conn, farewell);
        }
    }

    fn draw_trouble(&mut self, agent: usize) {
        if self.has_healed() || !self.dice.chance(TROUBLE_PER_MILLE) {
            return;
        }
        let trouble = self.dice.pick(&[
            Trouble::Cut,
            Trouble::Cut,
            Trouble::Forgotten,
            Trouble::LinkCut,
            Trouble::PowerFails,
            Trouble::AgentDies,
        ]);
        // One of the two that there are now; the session may have moved over by then.
        let conns: Vec<_> = self.machines[agent].conns().collect();
        let conn = self.dice.pick(&conns);
        let after_ms = self.dice.below(TROUBLE_WITHIN_MS);
        self.after(after_ms, Event::MoveMeets { conn, agent, trouble });
    }

    /// A move meets with something.
    pub(crate) fn on_move_meets(&mut self, id: ConnId, agent: usize, trouble: Trouble) {
        if self.has_healed() {
            return;
        }
        match trouble {
            Trouble::PowerFails => {
                self.tally.count(Kind::DiedInMove);
                return self.on_power_fails(agent);
            }
            Trouble::AgentDies => {
                self.tally.count(Kind::DiedInMove);
                return self.on_agent_dies(agent);
            }
            Trouble::Cut | Trouble::Forgotten | Trouble::LinkCut => {}
        }
        let Some(conn) = self.network.conns.get(&id).filter(|conn| conn.agent_end == End::Open) else {
            return;
        };
        let (server, is_long_poll) = (conn.server, conn.is_long_poll());
        self.tally.count(Kind::CutInMove);
        match trouble {
            Trouble::LinkCut => self.cut_link(agent, server),
            Trouble::Cut if !is_long_poll => {
                self.say(format_args!("a connection of agent {agent} is cut while its session moves over"));
                for way in [Way::Up, Way::Down] {
                    let after_ms = self.latency_ms();
                    self.after(after_ms, Event::Reset { conn: id, way });
                }
            }
            _ => self.forget_on_its_way(id),
        }
    }
}
