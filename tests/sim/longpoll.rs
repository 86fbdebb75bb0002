//! A connection by long-poll, at its agent's end: the product's tunnel, and what stands for the transport around it.
//!
//! ```text
//!   opened with a greeting --its answer is heard--> the agent is connected --> its end is said, and a moment later it is gone
//! ```
//!
//! The greeting, its answer and the word after that stand for TLS; the last byte of either stream stands for TLS's close_notify. There are two
//! lanes, one for POSTs and one for GETs, with one request under way each (`requests.rs`). What is lost is asked again, at once and then ever later,
//! a few times in a row. Law: what is heard is what was said (`roads.rs`), however often requests and answers are lost and repeated.

use std::collections::VecDeque;
use std::time::Duration;

use bgb_agent::rules::{LOSSES_MAX, OVERDUE, REST};
use bgb_http::ResponseHead;
use bgb_http::tunnel::client::{Fault, Lane, Next, Tunnel};
use bgb_protocol::message::Road;

use crate::network::{ConnId, End, Farewell, Way};
use crate::requests::ExchangeId;
use crate::roads::{Carriage, Ledger};
use crate::tally::Kind;
use crate::world::{Event, World};

/// How long a POST waits for its answer, and a GET beyond what it may be held.
const OVERDUE_MS: u64 = OVERDUE.as_millis() as u64;
/// After a second loss in a row a lane rests this long, and twice as long after each further one.
const REST_MS: u64 = REST.as_millis() as u64;
/// An agent that has said its end waits so long at most for that to be taken.
const PARTING_MS: u64 = 2_000;

/// What stands for TLS's messages: the agent's first ones, the server's, and the agent's last one.
pub(crate) const GREETING: &[u8] = &[0x16; 64];
pub(crate) const ANSWER: &[u8] = &[0x02; 96];
pub(crate) const FINISHED: &[u8] = &[0x14; 32];
/// And for its last one, either way.
pub(crate) const CLOSE_NOTIFY: u8 = 0x15;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LongPoll {
    tunnel: Tunnel,
    post: LaneState,
    get: LaneState,
    /// What the tunnel has no room for yet.
    backlog: VecDeque<u8>,
    /// What was heard of the answer to the greeting.
    greeted: Vec<u8>,
    /// Until when what was said last may still be taken.
    parting_until_ms: Option<u64>,
    /// It is going to read what has come.
    is_reading: bool,
    /// Until when something was wrong with a request.
    pub(crate) trouble_ms: u64,
    pub(crate) up: Ledger,
    pub(crate) down: Ledger,
    /// The server's end of it, once that knows whose it is.
    pub(crate) slot: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct LaneState {
    exchange: Option<ExchangeId>,
    rest_until_ms: u64,
    losses: u32,
    /// It has a connection that works, as far as is known.
    stands: bool,
}

impl LongPoll {
    fn lane(&mut self, lane: Lane) -> &mut LaneState {
        match lane {
            Lane::Post => &mut self.post,
            Lane::Get => &mut self.get,
        }
    }

    /// The exchanges that are under way.
    pub(crate) fn under_way(&self) -> impl Iterator<Item = ExchangeId> + use<> {
        [self.post.exchange, self.get.exchange].into_iter().flatten()
    }

    /// Whether the agent still looks after it.
    pub(crate) fn is_attended(&self, agent_end: End) -> bool {
        agent_end != End::Closed || self.parting_until_ms.is_some()
    }

    fn fill(&mut self) {
        let taken = self.tunnel.send(self.backlog.make_contiguous());
        self.backlog.drain(..taken);
    }
}

impl World {
    fn long_poll(&mut self, id: ConnId) -> Option<&mut LongPoll> {
        self.network.conns.get_mut(&id)?.long_poll()
    }

    /// The way to the server leads there: the agent opens its tunnel.
    pub(crate) fn open_tunnel(&mut self, id: ConnId) {
        let Some(poll) = self.long_poll(id) else { return };
        poll.backlog.extend(GREETING);
        self.drive(id, Lane::Post);
    }

    /// The agent says something.
    pub(crate) fn say_up(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(poll) = self.long_poll(id) else { return };
        poll.up.say(bytes);
        poll.backlog.extend(bytes);
        self.drive(id, Lane::Post);
    }

    /// Lets a lane make its next request, if it is free and there is anything to ask.
    fn drive(&mut self, id: ConnId, lane: Lane) {
        let (now_ms, own) = (self.now_ms, self.unix());
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let (agent, agent_end) = (conn.agent, conn.agent_end);
        let hold_secs = self.machines[agent].habits.long_polls.at(own).hold_secs();
        let Some(poll) = conn.long_poll().filter(|poll| poll.is_attended(agent_end)) else { return };
        let state = *poll.lane(lane);
        // What was heard is read before more is asked for, and whoever has said its end asks for nothing.
        let asks_nothing = lane == Lane::Get && (poll.tunnel.has_heard() || agent_end == End::Closed);
        if state.exchange.is_some() || state.rest_until_ms > now_ms || asks_nothing {
            return;
        }
        poll.fill();
        let Some(request) = poll.tunnel.poll_request(lane, hold_secs) else { return };
        let held_secs = if lane == Lane::Get { u64::from(hold_secs) } else { 0 };
        let exchange = self.make_request(id, lane, &request, held_secs * 1_000, state.stands);
        if let Some(poll) = self.long_poll(id) {
            poll.lane(lane).exchange = Some(exchange);
        }
        self.after(held_secs * 1_000 + OVERDUE_MS, Event::RequestOverdue { exchange });
    }

    pub(crate) fn on_lane_turn(&mut self, id: ConnId) {
        self.drive(id, Lane::Post);
        self.drive(id, Lane::Get);
    }

    /// The whole answer to a lane's request.
    pub(crate) fn on_answer(
        &mut self,
        id: ConnId,
        lane: Lane,
        asked_ms: u64,
        head: &ResponseHead,
        body: &[u8],
    ) {
        let now_ms = self.now_ms;
        let Some(poll) = self.long_poll(id) else { return };
        let next = poll.tunnel.handle_answer(lane, head, body);
        let state = poll.lane(lane);
        state.exchange = None;
        match next {
            Ok(Next::GoOn) => *state = LaneState { stands: true, ..LaneState::default() },
            Ok(Next::Pause(secs)) => {
                let pause_ms = u64::from(secs) * 1_000;
                *state = LaneState { stands: true, rest_until_ms: now_ms + pause_ms, ..LaneState::default() };
                poll.trouble_ms = now_ms + pause_ms;
                self.tally.count(Kind::TunnelPauses);
                self.after(pause_ms, Event::LaneTurn { conn: id });
            }
            Ok(Next::Lost(_)) => {
                return self.on_lost(id, lane, now_ms - asked_ms, "no answer of a gateway's");
            }
            Err(fault) => {
                self.count_fault(id, &fault);
                return self.end_tunnel_at_agent(id, &fault.to_string());
            }
        }
        self.read_soon(id, 0);
        self.drive(id, Lane::Post);
        self.drive(id, Lane::Get);
    }

    fn count_fault(&mut self, id: ConnId, fault: &Fault) {
        // Whoever parts often finds that the other end has done so first.
        if self.network.conns.get(&id).is_some_and(|conn| conn.agent_end == End::Closed) {
            return;
        }
        match fault {
            Fault::Gone => self.tally.count(Kind::TunnelGone),
            Fault::OtherServer => self.tally.count(Kind::TunnelElsewhere),
            Fault::Conflict => self.tally.count(Kind::TunnelConflict),
            other => self.violated(format!("a tunnel ends for a reason that cannot be: {other}")),
        }
    }

    /// A lane's request is lost, which was under way for so long.
    pub(crate) fn on_lost(&mut self, id: ConnId, lane: Lane, held_ms: u64, why: &str) {
        let (now_ms, own) = (self.now_ms, self.unix());
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let agent = conn.agent;
        let Some(poll) = conn.long_poll() else { return };
        poll.tunnel.handle_lost(lane);
        let losses = poll.lane(lane).losses + 1;
        let rest_ms = if losses > 1 { REST_MS << (losses - 2) } else { 0 };
        *poll.lane(lane) =
            LaneState { exchange: None, rest_until_ms: now_ms + rest_ms, losses, stands: false };
        poll.trouble_ms = now_ms + rest_ms;
        if lane == Lane::Get {
            self.machines[agent].habits.note_cut(Road::LongPoll, Duration::from_millis(held_ms), own);
        }
        self.say(format_args!("agent {agent}: its {lane:?} is lost, {losses} in a row: {why}"));
        if losses >= LOSSES_MAX {
            self.tally.count(Kind::TunnelGivenUp);
            return self.end_tunnel_at_agent(id, "its requests are lost");
        }
        self.after(rest_ms, Event::LaneTurn { conn: id });
    }

    /// The agent's transport has had enough.
    fn end_tunnel_at_agent(&mut self, id: ConnId, why: &str) {
        match self.network.conns.get(&id).map(|conn| (conn.agent, conn.server, conn.agent_end)) {
            Some((agent, server, End::Opening)) => {
                self.end_agent_side(id, Farewell::Reset);
                self.say(format_args!("agent {agent} gets no tunnel at server {}: {why}", server + 1));
                self.on_attempt_failed(id, agent, why);
            }
            Some((.., End::Open)) => self.lose_at_agent(id, why),
            Some((.., End::Closed)) => self.finish_parting(id),
            None => {}
        }
    }

    /// The agent has something to read, and gets to it.
    fn read_soon(&mut self, id: ConnId, after_ms: u64) {
        let Some(poll) = self.long_poll(id) else { return };
        if poll.tunnel.has_heard() && !std::mem::replace(&mut poll.is_reading, true) {
            self.after(after_ms, Event::TunnelRead { conn: id });
        }
    }

    pub(crate) fn on_tunnel_read(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let agent = conn.agent;
        let trickles = self.machines[agent].reads_slowly;
        let count = if trickles { 1 + self.dice.place(48) } else { usize::MAX };
        let Some(poll) = self.long_poll(id) else { return };
        poll.is_reading = false;
        let mut buffer = vec![0; count.min(2 * bgb_http::tunnel::client::DOWN_BYTES_MAX)];
        let count = poll.tunnel.read(&mut buffer);
        buffer.truncate(count);
        self.hear_down(id, buffer);
        let after_ms = if trickles { self.dice.between(50, 600) } else { 1 };
        self.read_soon(id, after_ms);
        self.drive(id, Lane::Get);
    }

    fn hear_down(&mut self, id: ConnId, mut bytes: Vec<u8>) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let agent_end = conn.agent_end;
        let Some(poll) = conn.long_poll() else { return };
        match agent_end {
            End::Closed => {}
            End::Opening => {
                poll.greeted.append(&mut bytes);
                if poll.greeted.len() > ANSWER.len() || !ANSWER.starts_with(&poll.greeted) {
                    return self.violated(
                        "an agent hears by long-poll what is no answer to its greeting".to_owned(),
                    );
                }
                if poll.greeted.len() == ANSWER.len() {
                    poll.backlog.extend(FINISHED);
                    self.on_stands(id);
                }
            }
            End::Open => {
                let kept = poll.down.hear(&bytes);
                let is_all = poll.down.is_heard();
                self.expect(kept.map_err(|what| format!("by long-poll, down: {what}")));
                self.hear_stream(id, Way::Down, bytes, is_all);
            }
        }
    }

    /// The agent's side ends: what it has said last may still be taken, if it ends in good order.
    pub(crate) fn end_requests(&mut self, id: ConnId, farewell: Farewell, was: End) {
        let now_ms = self.now_ms;
        let Some(poll) = self.long_poll(id) else { return };
        let is_sound = poll.tunnel.fault().is_none();
        let get = std::mem::take(&mut poll.get.exchange);
        if let Some(exchange) = get {
            self.abandon(exchange, farewell);
        }
        if farewell != Farewell::InOrder || was != End::Open || !is_sound {
            return self.finish_parting_by(id, farewell);
        }
        let Some(poll) = self.long_poll(id) else { return };
        poll.parting_until_ms = Some(now_ms + PARTING_MS);
        self.say_end_of_stream(id, Way::Up);
        self.after(PARTING_MS, Event::PartingOver { conn: id });
    }

    pub(crate) fn finish_parting(&mut self, id: ConnId) {
        self.finish_parting_by(id, Farewell::Reset);
    }

    fn finish_parting_by(&mut self, id: ConnId, farewell: Farewell) {
        let Some(poll) = self.long_poll(id) else { return };
        poll.parting_until_ms = None;
        for exchange in [poll.post.exchange.take(), poll.get.exchange.take()].into_iter().flatten() {
            self.abandon(exchange, farewell);
        }
        self.forget_if_over(id);
    }

    /// Whether nothing is wrong with any request, and since when.
    pub(crate) fn requests_sound_since_ms(&self, id: ConnId) -> Option<u64> {
        let Carriage::Requests(poll) = &self.network.conns.get(&id)?.carriage else {
            return Some(0);
        };
        let is_sound = poll.under_way().all(|exchange| self.is_exchange_sound(exchange));
        (is_sound && poll.trouble_ms <= self.now_ms).then_some(poll.trouble_ms)
    }
}
