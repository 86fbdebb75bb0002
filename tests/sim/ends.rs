//! How connections end: an end closes, or learns that the other one is gone, in time or not.
//!
//! Each end closes for itself. What it has written before still arrives, or not, as it closes and as the network pleases; the other end learns of
//! it from that, from a reset, from bytes that nobody acknowledges, or from TCP's questions. By long-poll there is nothing of that kind: there, streams
//! and tunnels have ends (`longpoll.rs`, `tunnels.rs`).

use bgb_agent::agent::Input as AgentInput;
use bgb_hub::CloseReason;

use crate::moves::Role;
use crate::network::{ConnId, End, Farewell, Way};
use crate::roads::Carriage;
use crate::tally::Kind;
use crate::world::{Event, World};

/// Silence after which the agent's TCP asks, how often it asks again and how many times (docs/promises.md, Presence).
const PROBE_AFTER_MS: u64 = 200_000;
const PROBE_EVERY_MS: u64 = 10_000;
const PROBES_MAX: u32 = 3;

impl World {
    /// Something came for a connection that the receiver's machine does not know: it says so.
    pub(crate) fn on_unknown_connection(&mut self, id: ConnId, way: Way) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let pipe = conn.pipe(way);
        pipe.waiting.clear();
        pipe.ends = false;
        let back = way.back();
        let latency_ms = self.latency_ms();
        self.after(latency_ms, Event::Reset { conn: id, way: back });
        self.forget_if_over(id);
    }

    /// The other side's end has arrived.
    pub(crate) fn on_end(&mut self, id: ConnId, way: Way) {
        self.count_cut_frame(id, way);
        match way {
            Way::Up => self.lose_at_server(id, CloseReason::PeerClosed),
            Way::Down => self.lose_at_agent(id, "the server closed"),
        }
    }

    /// A reset arrives, or gets lost.
    pub(crate) fn on_reset(&mut self, id: ConnId, way: Way) {
        if !self.passes(id, way) {
            return;
        }
        self.count_cut_frame(id, way);
        match way {
            Way::Up => self.lose_at_server(id, CloseReason::Reset),
            Way::Down => self.lose_at_agent(id, "reset by the server"),
        }
    }

    /// What a side sent was not acknowledged in time.
    pub(crate) fn on_unacknowledged(&mut self, id: ConnId, way: Way, since_ms: u64) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        if conn.pipe(way).unacknowledged_since != Some(since_ms) {
            return;
        }
        match way {
            Way::Down if conn.server_end == End::Open => self.lose_at_server(id, CloseReason::Unreachable),
            Way::Up if conn.agent_end == End::Open => self.lose_at_agent(id, "not acknowledged in time"),
            _ => {}
        }
    }

    /// The agent's TCP looks after a connection that stands.
    pub(crate) fn begin_probes(&mut self, id: ConnId) {
        self.after(PROBE_AFTER_MS, Event::Probe { conn: id });
    }

    /// The agent's TCP asks whether the other side is still there.
    pub(crate) fn on_probe(&mut self, id: ConnId) {
        let is_proxied = self.network.conns.get(&id).is_some_and(|conn| conn.proxy.is_some());
        // A proxy answers for itself.
        let is_round_trip = if is_proxied {
            self.reaches_proxy(id, Way::Up)
        } else {
            self.passes(id, Way::Up) && self.passes(id, Way::Down)
        };
        let now_ms = self.now_ms;
        let Some(conn) = self.network.conns.get_mut(&id).filter(|conn| conn.agent_end == End::Open) else {
            return;
        };
        let silent_ms = now_ms - conn.agent_heard_ms;
        if silent_ms < PROBE_AFTER_MS {
            self.after(PROBE_AFTER_MS - silent_ms, Event::Probe { conn: id });
        } else if conn.up.unacknowledged_since.is_some() {
            // While bytes are under way TCP repeats those, and asks nothing.
            self.after(PROBE_EVERY_MS, Event::Probe { conn: id });
        } else if is_round_trip && (is_proxied || conn.server_end != End::Closed) {
            conn.agent_heard_ms = now_ms;
            conn.probes = 0;
            self.after(PROBE_AFTER_MS, Event::Probe { conn: id });
        } else if is_round_trip || conn.probes == PROBES_MAX {
            self.tally.count(Kind::ProbeFoundDead);
            self.lose_at_agent(id, "found dead by a probe");
        } else {
            conn.probes += 1;
            self.after(PROBE_EVERY_MS, Event::Probe { conn: id });
        }
    }

    /// The server waits no longer for a handshake.
    pub(crate) fn on_handshake_over(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        if conn.server_end == End::Opening {
            self.end_server_side(id, Farewell::Reset);
        }
    }

    /// The server's end is gone for a reason that its hub hears of.
    pub(crate) fn lose_at_server(&mut self, id: ConnId, reason: CloseReason) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let (server, shard, was) = (conn.server, conn.shard, conn.server_end);
        let channel = conn.channel;
        // A tunnel has no socket that says it.
        let farewell = if conn.is_long_poll() { Farewell::InOrder } else { Farewell::Reset };
        self.end_server_side(id, farewell);
        if let (End::Open, Some(channel)) = (was, channel) {
            self.lose_channel(server, shard, channel, reason);
        }
    }

    /// The agent's end is gone and the agent hears of it.
    pub(crate) fn lose_at_agent(&mut self, id: ConnId, reason: &str) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let (agent, was) = (conn.agent, conn.agent_end);
        let role = self.machines[agent].role_of(id);
        self.end_agent_side(id, Farewell::Reset);
        match role {
            Role::Session => {}
            Role::Standing => return self.on_better_road_gone(agent),
            Role::Leaving => return self.on_leaving_gone(agent),
            Role::Trying => return self.on_better_road_failed(agent),
            Role::Over => return,
        }
        if was == End::Open {
            self.machines[agent].conn = None;
            self.say(format_args!("agent {agent} loses its connection: {reason}"));
            self.tell_agent(agent, AgentInput::Disconnected { reason: reason.to_owned() });
        }
    }

    /// The server's side closes.
    pub(crate) fn end_server_side(&mut self, id: ConnId, farewell: Farewell) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let was = std::mem::replace(&mut conn.server_end, End::Closed);
        conn.up.waiting.clear();
        match (conn.is_long_poll(), was) {
            (true, End::Open) => self.end_in_tunnel(id, farewell),
            (true, _) => self.forget_if_over(id),
            (false, _) => self.end_side(id, Way::Down, farewell),
        }
    }

    /// The agent's side closes.
    pub(crate) fn end_agent_side(&mut self, id: ConnId, farewell: Farewell) {
        let now_ms = self.now_ms;
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let was = std::mem::replace(&mut conn.agent_end, End::Closed);
        conn.agent_closed_ms.get_or_insert(now_ms);
        conn.down.waiting.clear();
        match (conn.is_long_poll(), was) {
            (true, End::Closed) => self.forget_if_over(id),
            (true, _) => self.end_requests(id, farewell, was),
            (false, _) => self.end_side(id, Way::Up, farewell),
        }
    }

    /// What the side that writes `way` does with its last bytes.
    fn end_side(&mut self, id: ConnId, way: Way, farewell: Farewell) {
        let latency_ms = self.latency_ms();
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        if conn.receiver_end(way) == End::Closed {
            return self.forget_if_over(id);
        }
        if farewell == Farewell::InOrder {
            self.say_close_frame(id, way);
        }
        if farewell != Farewell::Silent && self.is_half_kept(id, way) {
            return;
        }
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let pipe = conn.pipe(way);
        match farewell {
            Farewell::InOrder | Farewell::Flushed => {
                pipe.ends = true;
                self.arm(id, way);
            }
            Farewell::Reset => {
                pipe.waiting.clear();
                self.after(latency_ms, Event::Reset { conn: id, way });
            }
            Farewell::Silent => {
                pipe.waiting.clear();
                pipe.ends = false;
            }
        }
    }

    fn count_cut_frame(&mut self, id: ConnId, way: Way) {
        if self.network.conns.get_mut(&id).is_some_and(|conn| !conn.pipe(way).heard.is_empty()) {
            self.tally.count(Kind::FrameCutShort);
        }
    }

    pub(crate) fn forget_if_over(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get(&id) else { return };
        let is_over = match &conn.carriage {
            Carriage::Requests(poll) => {
                let mut exchanges = self.network.exchanges.values();
                // One that was never opened at a server is over when nothing is under way that could do so.
                let is_left = conn.server_end == End::Open || poll.is_attended(conn.agent_end);
                !is_left && !exchanges.any(|exchange| exchange.conn == id)
            }
            _ => conn.agent_end == End::Closed && conn.server_end == End::Closed,
        };
        if is_over {
            self.network.conns.remove(&id);
        }
    }
}
