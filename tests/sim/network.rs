//! The network between devices and servers: it carries bytes, late, in pieces, and not always.
//!
//! A connection is two pipes of bytes and two ends. What one side writes reaches the other in pieces cut at random places,
//! after a random delay, in order. A WebSocket's frames go through the pipes as they are (`frames.rs`); by long-poll a connection has
//! requests and answers instead (`longpoll.rs`), and of the pipes only what was heard. It models what TCP and the boxes on the way do, as far as the
//! two sides can notice; what proxies do besides is in `proxies.rs`, and how an end is closed or found to be gone in `ends.rs`:
//!
//! - a link that is cut, one way or both, holds the bytes back; when it heals they come within two seconds. The server's end
//!   dies when what it sent is not acknowledged for 30 s (TCP_USER_TIMEOUT), the agent's after a quarter of an hour;
//! - a connection may be forgotten on the way: nothing of it passes any more, in either direction, and nobody is told;
//! - a process that dies lets its kernel end its connections; a machine that loses power does not, and answers a reset later,
//!   when it is back and something comes for a connection that it does not know;
//! - the agent's TCP asks after 200 s of silence, and so finds out (docs/promises.md, Presence), but not while bytes are under way.
//!
//! It knows frames only to cut them out of the stream; what they mean is its neighbours' business. TLS is not simulated: who
//! is at the other end is what the world says it is.

use std::collections::{BTreeMap, VecDeque};

use bgb_protocol::frame::Frame;
use bgb_protocol::ids::{BootId, SessionNumber};

use crate::frames::Frames;
use crate::longpoll::CLOSE_NOTIFY;
use crate::moves::Role;
use crate::proxies::{Proxy, Through};
use crate::requests::{Exchange, ExchangeId};
use crate::roads::Carriage;
use crate::tunnels::ServerTunnel;
use crate::world::{Event, World};
use bgb_agent::agent::Input as AgentInput;
use bgb_hub::ChannelKey;
use bgb_protocol::message::{Road, RoadTaken};

/// Bytes that the server sent and that are not acknowledged end the connection after this time (docs/promises.md, Presence).
const SERVER_USER_TIMEOUT_MS: u64 = 30_000;
/// And those that the agent sent after this time: Linux repeats them 15 times (tcp(7), tcp_retries2: 924 s at the least).
const AGENT_USER_TIMEOUT_MS: u64 = 924_000;
/// A TCP connection is given up after this time (docs/promises.md, Presence).
pub(crate) const CONNECT_MS: u64 = 5_000;
/// A TLS handshake is given up by the server after this time (docs/promises.md).
const HANDSHAKE_MS: u64 = 10_000;
/// Bytes that were held back by a link come within this time of its healing: TCP's next retransmission.
pub(crate) const RETRANSMISSION_MS: u64 = 2_000;

/// A connection, or the attempt at one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnId(pub(crate) u64);

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Agent to server.
    Up,
    /// Server to agent.
    Down,
}

impl Way {
    pub(crate) fn back(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }

    /// How long the sender's TCP waits for an acknowledgement.
    fn user_timeout_ms(self) -> u64 {
        match self {
            Self::Up => AGENT_USER_TIMEOUT_MS,
            Self::Down => SERVER_USER_TIMEOUT_MS,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Opening,
    Open,
    Closed,
}

/// How a side ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// What was written still goes out, and the road's own last word behind it, then the end.
    InOrder,
    /// What was written still goes out, then the end: its process is gone, and its kernel sees to that.
    Flushed,
    /// What was written is dropped; the other side is told if it can be.
    Reset,
    /// Nothing goes out: the machine is gone.
    Silent,
}

/// Which directions of a link pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) up_passes: bool,
    pub(crate) down_passes: bool,
    /// Counts the cuts: the end of an earlier one does not heal a later one.
    pub(crate) cuts: u64,
}

impl Default for Link {
    fn default() -> Self {
        Self { up_passes: true, down_passes: true, cuts: 0 }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Pipe {
    /// Written, not yet delivered.
    pub(crate) waiting: VecDeque<u8>,
    /// Delivered, not yet a whole frame.
    pub(crate) heard: Vec<u8>,
    /// The sender has closed: the end comes after the bytes.
    pub(crate) ends: bool,
    /// A delivery is on its way.
    is_armed: bool,
    /// Since when the sender waits for an acknowledgement.
    pub(crate) unacknowledged_since: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) agent: usize,
    pub(crate) server: usize,
    pub(crate) shard: usize,
    pub(crate) channel: Option<ChannelKey>,
    pub(crate) agent_end: End,
    pub(crate) server_end: End,
    /// How its bytes travel, and what the agent has to say of that.
    pub(crate) carriage: Carriage,
    pub(crate) road: RoadTaken,
    /// The proxy that it goes through.
    pub(crate) proxy: Option<Through>,
    /// When the agent's end was closed.
    pub(crate) agent_closed_ms: Option<u64>,
    /// The session that its hello named.
    pub(crate) session: Option<(BootId, SessionNumber)>,
    /// Nothing of it passes any more.
    pub(crate) is_forgotten: bool,
    pub(crate) is_choked: bool,
    /// The server does not read from it for now.
    pub(crate) is_held: bool,
    pub(crate) up: Pipe,
    pub(crate) down: Pipe,
    pub(crate) agent_heard_ms: u64,
    pub(crate) probes: u32,
}

impl Conn {
    pub(crate) fn pipe(&mut self, way: Way) -> &mut Pipe {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    /// The stream of `way` ends with what was said in it.
    pub(crate) fn note_end_of_stream(&mut self, way: Way) {
        self.pipe(way).ends = true;
    }

    /// What was written and not delivered is lost; whether there was anything.
    pub(crate) fn drop_waiting(&mut self, way: Way) -> bool {
        let pipe = self.pipe(way);
        pipe.ends = false;
        let waited = !pipe.waiting.is_empty();
        pipe.waiting.clear();
        waited
    }

    /// Whether nothing on the way has cut it or forgotten it.
    pub(crate) fn is_whole(&self) -> bool {
        !self.is_forgotten && self.proxy.is_none_or(|through| !through.is_cut)
    }

    pub(crate) fn receiver_end(&self, way: Way) -> End {
        match way {
            Way::Up => self.server_end,
            Way::Down => self.agent_end,
        }
    }
}

/// All connections and links.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    pub(crate) proxies: Vec<Proxy>,
    /// Requests of long-poll of which anything is still under way.
    pub(crate) exchanges: BTreeMap<ExchangeId, Exchange>,
    pub(crate) requests_made: u64,
    /// Servers' ends of long-poll tunnels, by slot.
    pub(crate) tunnels: BTreeMap<u32, ServerTunnel>,
    pub(crate) tunnels_begun: u32,
    links: BTreeMap<(usize, usize), Link>,
    opened: u64,
}

impl Network {
    pub(crate) fn new(proxies: Vec<Proxy>) -> Self {
        Self { proxies, ..Self::default() }
    }

    pub(crate) fn link(&self, agent: usize, server: usize) -> Link {
        self.links.get(&(agent, server)).copied().unwrap_or_default()
    }

    pub(crate) fn link_mut(&mut self, agent: usize, server: usize) -> &mut Link {
        self.links.entry((agent, server)).or_default()
    }
}

impl World {
    /// An agent wants to connect.
    pub(crate) fn connect(&mut self, agent: usize, server: usize) -> ConnId {
        let road = self.draw_road(agent);
        self.connect_by(agent, server, road)
    }

    /// And by this road.
    pub(crate) fn connect_by(&mut self, agent: usize, server: usize, road: Road) -> ConnId {
        let id = ConnId(self.network.opened);
        self.network.opened += 1;
        let (road, proxy) = self.take_road(agent, road);
        let carriage = match road.road {
            Road::Tcp => Carriage::Straight,
            Road::WebSocket => Carriage::Frames(Box::new(Frames::new(self.now_ms))),
            Road::LongPoll => Carriage::Requests(Box::default()),
        };
        let passed_ms = self.now_ms;
        let conn = Conn {
            agent,
            server,
            shard: self.dice.place(crate::servers::SHARDS),
            channel: None,
            agent_end: End::Opening,
            server_end: End::Opening,
            carriage,
            road,
            proxy: proxy.map(|proxy| Through { proxy, is_cut: false, passed_ms }),
            agent_closed_ms: None,
            session: None,
            is_forgotten: false,
            is_choked: false,
            is_held: false,
            up: Pipe::default(),
            down: Pipe::default(),
            agent_heard_ms: self.now_ms,
            probes: 0,
        };
        self.network.conns.insert(id, conn);
        let after_ms = self.latency_ms() * 2;
        self.after(after_ms, Event::ConnectMeets { conn: id });
        id
    }

    /// The first packet has reached the server's machine, or has not.
    pub(crate) fn on_connect_meets(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get(&id) else { return };
        let server = conn.server;
        let has_proxy = conn.proxy.is_none_or(|through| self.network.proxies[through.proxy].is_up);
        let passes = has_proxy && self.passes(id, Way::Up) && self.passes(id, Way::Down);
        let event = if passes && self.servers[server].is_listening() {
            Event::Connected { conn: id }
        } else {
            Event::ConnectFails { conn: id }
        };
        let after_ms = if passes { self.latency_ms() } else { CONNECT_MS };
        self.after(after_ms, event);
    }

    pub(crate) fn on_connected(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get(&id).filter(|conn| conn.agent_end == End::Opening) else {
            self.forget_if_over(id);
            return;
        };
        let (agent, server) = (conn.agent, conn.server);
        if !self.servers[server].is_listening() || conn.server_end == End::Closed {
            return self.on_connect_fails(id);
        }
        if conn.is_long_poll() {
            return self.open_tunnel(id);
        }
        self.begin_probes(id);
        self.after(HANDSHAKE_MS, Event::HandshakeOver { conn: id });
        self.begin_idleness(id);
        self.begin_pings(id);
        // The handshake's last message is on its way; the hello follows it, or comes with it.
        self.arm(id, Way::Up);
        self.say(format_args!("the way of agent {agent} leads to server {}", server + 1));
        self.on_stands(id);
    }

    /// The agent's end stands.
    pub(crate) fn on_stands(&mut self, id: ConnId) {
        let now_ms = self.now_ms;
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        conn.agent_end = End::Open;
        conn.agent_heard_ms = now_ms;
        let (agent, server, road) = (conn.agent, conn.server, conn.road.clone());
        self.say(format_args!("agent {agent} is connected to server {}: {:?}", server + 1, road.road));
        match self.machines[agent].role_of(id) {
            Role::Trying => self.on_better_road_stands(agent, id),
            _ => self.tell_agent(agent, AgentInput::Connected { road }),
        }
    }

    pub(crate) fn on_connect_fails(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.remove(&id) else { return };
        if conn.agent_end == End::Opening {
            self.say(format_args!("agent {} does not reach server {}", conn.agent, conn.server + 1));
            self.on_attempt_failed(id, conn.agent, "no answer");
        }
    }

    /// An attempt of an agent's has come to nothing.
    pub(crate) fn on_attempt_failed(&mut self, id: ConnId, agent: usize, reason: &str) {
        if self.machines[agent].role_of(id) == Role::Trying {
            return self.on_better_road_failed(agent);
        }
        self.machines[agent].conn = None;
        self.tell_agent(agent, AgentInput::ConnectFailed { reason: reason.to_owned() });
    }

    /// A side says something.
    pub(crate) fn write(&mut self, id: ConnId, way: Way, bytes: &[u8]) {
        let Some(conn) = self.network.conns.get(&id) else { return };
        match (&conn.carriage, way) {
            (Carriage::Straight, _) => self.write_raw(id, way, bytes),
            (Carriage::Frames(_), _) => {
                let framed = self.frame(id, way, bytes);
                self.write_raw(id, way, &framed);
            }
            (Carriage::Requests(_), Way::Up) => self.say_up(id, bytes),
            (Carriage::Requests(_), Way::Down) => self.say_down(id, bytes),
        }
    }

    /// A side writes.
    pub(crate) fn write_raw(&mut self, id: ConnId, way: Way, bytes: &[u8]) {
        let now_ms = self.now_ms;
        let is_acknowledged = self.reaches_proxy(id, way);
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let pipe = conn.pipe(way);
        pipe.waiting.extend(bytes);
        if pipe.unacknowledged_since.is_none() && !is_acknowledged {
            pipe.unacknowledged_since = Some(now_ms);
            self.after(way.user_timeout_ms(), Event::Unacknowledged { conn: id, way, since_ms: now_ms });
        }
        self.arm(id, way);
    }

    /// Sees to it that what waits is delivered.
    pub(crate) fn arm(&mut self, id: ConnId, way: Way) {
        let latency_ms = self.latency_ms();
        self.arm_after(id, way, latency_ms);
    }

    pub(crate) fn arm_after(&mut self, id: ConnId, way: Way, after_ms: u64) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let pipe = conn.pipe(way);
        if !pipe.is_armed {
            pipe.is_armed = true;
            self.after(after_ms, Event::Deliver { conn: id, way });
        }
    }

    /// Whether a packet that is on its way now arrives.
    pub(crate) fn passes(&self, id: ConnId, way: Way) -> bool {
        let Some(conn) = self.network.conns.get(&id) else { return false };
        conn.is_whole() && self.way_passes(conn.agent, conn.server, way)
    }

    /// Whether anything that is on its way now arrives.
    pub(crate) fn way_passes(&self, agent: usize, server: usize, way: Way) -> bool {
        let link = self.network.link(agent, server);
        let link_passes = match way {
            Way::Up => link.up_passes,
            Way::Down => link.down_passes,
        };
        link_passes && self.machines[agent].has_power() && self.hosts[server].has_power()
    }

    /// Some of what waits arrives.
    pub(crate) fn on_deliver(&mut self, id: ConnId, way: Way) {
        if !self.network.conns.contains_key(&id) {
            return;
        }
        let passes = self.passes(id, way);
        let answers_pass = self.passes(id, way.back());
        let is_acknowledged = self.reaches_proxy(id, way);
        let trickles = way == Way::Down && self.machine_of(id).is_some_and(|machine| machine.reads_slowly);
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        conn.pipe(way).is_armed = false;
        if !passes {
            // Whoever heals the link arms it again.
            return;
        }
        if conn.receiver_end(way) == End::Closed {
            return self.on_unknown_connection(id, way);
        }
        if way == Way::Up && conn.is_held {
            // It waits in the receiver's kernel; whoever reads on arms it again.
            return;
        }
        if way == Way::Up && conn.server_end == End::Opening {
            self.open_channel(id);
            if self.dice.chance(500) {
                let latency_ms = self.latency_ms();
                return self.arm_after(id, way, latency_ms);
            }
        }
        let split = !trickles && self.dice.chance(self.weather.split_per_mille);
        let length = self.network.conns.get(&id).map_or(0, |conn| match way {
            Way::Up => conn.up.waiting.len(),
            Way::Down => conn.down.waiting.len(),
        });
        let count = if trickles {
            length.min(1 + self.dice.place(48))
        } else if split {
            length.min(1 + self.dice.place(length))
        } else {
            length
        };
        let now_ms = self.now_ms;
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let pipe = conn.pipe(way);
        let delivered: Vec<u8> = pipe.waiting.drain(..count).collect();
        let is_left = !pipe.waiting.is_empty();
        if is_acknowledged {
            pipe.unacknowledged_since = None;
        } else if answers_pass {
            pipe.unacknowledged_since = is_left.then_some(now_ms);
        }
        if way == Way::Down || answers_pass {
            conn.agent_heard_ms = now_ms;
            conn.probes = 0;
        }
        self.note_passed(id);
        let (data, is_closed) = self.unframe(id, way, delivered);
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        conn.pipe(way).heard.extend(data);
        self.hear_frames(id, way);
        if is_closed {
            return self.on_end(id, way);
        }
        self.after_delivery(id, way, is_left, trickles);
    }

    /// Bytes of a stream have come by long-poll, its last ones perhaps.
    pub(crate) fn hear_stream(&mut self, id: ConnId, way: Way, bytes: Vec<u8>, is_all: bool) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let pipe = conn.pipe(way);
        pipe.heard.extend(bytes);
        let is_over = is_all && pipe.ends && pipe.heard.pop_if(|last| *last == CLOSE_NOTIFY).is_some();
        self.hear_frames(id, way);
        if is_over {
            self.on_end(id, way);
        }
    }

    /// The server reads on from a connection that it held.
    pub(crate) fn read_on(&mut self, id: ConnId) {
        self.hear_frames(id, Way::Up);
        let Some(conn) = self.network.conns.get(&id) else { return };
        if !conn.up.waiting.is_empty() || conn.up.ends {
            self.arm(id, Way::Up);
        }
    }

    fn after_delivery(&mut self, id: ConnId, way: Way, is_left: bool, trickles: bool) {
        if way == Way::Down {
            self.note_flow(id);
        }
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let ends = conn.pipe(way).ends;
        if is_left {
            let since = conn.pipe(way).unacknowledged_since;
            if let Some(since_ms) = since.filter(|since| *since == self.now_ms) {
                self.after(way.user_timeout_ms(), Event::Unacknowledged { conn: id, way, since_ms });
            }
            let after_ms = if trickles { self.dice.between(50, 600) } else { self.dice.between(1, 40) };
            self.arm_after(id, way, after_ms);
        } else if ends && !(way == Way::Up && conn.is_held) {
            self.on_end(id, way);
        }
    }

    /// Hands the whole frames that have arrived to whom they are for.
    fn hear_frames(&mut self, id: ConnId, way: Way) {
        loop {
            let Some(conn) = self.network.conns.get_mut(&id) else { return };
            if conn.receiver_end(way) != End::Open || (way == Way::Up && conn.is_held) {
                return;
            }
            let pipe = conn.pipe(way);
            let (kind, version, body, used) = match Frame::decode(&pipe.heard) {
                Ok(Some((frame, used))) => (frame.kind, frame.version, frame.body.to_vec(), used),
                Ok(None) => return,
                Err(error) => return self.violated(format!("a frame cannot be read: {error}")),
            };
            pipe.heard.drain(..used);
            let frame = Frame { kind, version, body: &body };
            match way {
                Way::Up => self.hear_from_agent(id, frame),
                Way::Down => self.hear_from_server(id, frame),
            }
        }
    }

    /// Bytes that wait for the agent.
    pub(crate) fn unsent_bytes(&self, id: ConnId) -> usize {
        match self.network.conns.get(&id) {
            Some(Conn { carriage: Carriage::Requests(poll), .. }) => self.kept_bytes(poll.slot),
            Some(conn) => conn.down.waiting.len(),
            None => 0,
        }
    }

    /// Links have healed or machines are back: what was held back comes soon.
    pub(crate) fn retransmit(&mut self) {
        let ids: Vec<_> = self.network.conns.keys().copied().collect();
        for id in ids {
            for way in [Way::Up, Way::Down] {
                let back = way.back();
                if self.reaches_proxy(id, way)
                    && let Some(conn) = self.network.conns.get_mut(&id)
                {
                    conn.pipe(way).unacknowledged_since = None;
                }
                if !self.passes(id, way) {
                    continue;
                }
                let answers_pass = self.passes(id, back);
                let Some(conn) = self.network.conns.get_mut(&id) else { continue };
                if conn.is_long_poll() {
                    continue;
                }
                let is_opening =
                    way == Way::Up && conn.server_end == End::Opening && conn.agent_end == End::Open;
                let pipe = conn.pipe(way);
                if pipe.waiting.is_empty() && answers_pass {
                    pipe.unacknowledged_since = None;
                }
                if !pipe.waiting.is_empty() || pipe.ends || is_opening {
                    let after_ms = self.dice.between(1, RETRANSMISSION_MS);
                    self.arm_after(id, way, after_ms);
                }
            }
        }
        self.retransmit_requests();
    }

    /// The place of the machine at the agent's end.
    fn machine_of(&self, id: ConnId) -> Option<&crate::agents::Machine> {
        self.network.conns.get(&id).map(|conn| &self.machines[conn.agent])
    }

    pub(crate) fn latency_ms(&mut self) -> u64 {
        self.dice.between(1, self.weather.latency_ms_max)
    }
}
