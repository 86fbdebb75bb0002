//! A server's ends of long-poll tunnels: the product's, and what stands for the reactor around them (src/reactor/tunnels.rs).
//!
//! ```text
//!   Greeted --the agent's last word of that--> Open --either side's end--> Closing --all was given, or 5 s--> gone
//!       \________________ 10 s ________________________________________________________________________/
//! ```
//!
//! A tunnel is found by the name in a request, whatever server, proxy or socket that comes by; a server that was started anew knows none. Laws, checked
//! here: what is heard is what was said, and nothing twice; the newest request of an agent is never refused for its offset, since what was not
//! acknowledged is kept; and a tunnel of which nobody asks is gone after its time (`checks.rs`).

use bgb_http::ResponseHead;
use bgb_http::tunnel::server::Tunnel;
use bgb_http::tunnel::{TunnelId, TunnelRequest};
use bgb_hub::CloseReason;
use bgb_protocol::ids::ServerId;

use crate::longpoll::{ANSWER, CLOSE_NOTIFY, FINISHED, GREETING};
use crate::network::{ConnId, End, Farewell, Way};
use crate::requests::ExchangeId;
use crate::tally::Kind;
use crate::world::{Event, World};

/// How long a tunnel lives of which nobody asks (docs/protocol.md, 13.2).
pub(crate) const SILENT_MS: u64 = 90_000;
/// The longest that a GET is held.
pub(crate) const HOLD_MS_MAX: u64 = 60_000;
/// A greeting waits so long for its next word (docs/promises.md, Strangers).
const GREETED_MS: u64 = 10_000;
/// A tunnel whose session has ended waits so long for its last bytes to be fetched.
const CLOSING_MS: u64 = 5_000;
/// What a tunnel has to say is given within a turn of its reactor.
const TURN_MS_MAX: u64 = 5;

/// Whose request it is: the exchange, and which copy of it.
type Asker = (ExchangeId, usize);

/// One copy of a request, at the server's end.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    state: CopyState,
    /// Bytes of its body that have come.
    taken: usize,
    /// The tunnel that it has opened.
    opened: Option<TunnelId>,
    /// What it is answered when all of its body has come.
    refused: Option<ResponseHead>,
    /// A link holds it back.
    pub(crate) is_stuck: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CopyState {
    #[default]
    OnItsWay,
    Held(u32),
    Over,
}

impl Copy {
    pub(crate) fn is_over(&self) -> bool {
        self.state == CopyState::Over
    }

    pub(crate) fn is_held(&self) -> bool {
        matches!(self.state, CopyState::Held(_))
    }

    /// Nothing of it has come.
    pub(crate) fn is_new(&self) -> bool {
        self.state == CopyState::OnItsWay && self.taken == 0
    }

    pub(crate) fn end(&mut self) {
        (self.state, self.is_stuck) = (CopyState::Over, false);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ServerTunnel {
    id: TunnelId,
    pub(crate) conn: ConnId,
    pub(crate) server: usize,
    tunnel: Tunnel<Asker>,
    state: State,
    /// When whoever is held is let go, or the tunnel ends; of one that is not open, when it ends.
    until_ms: u64,
    gone_by_ms: u64,
    is_answering: bool,
    /// Up to where bytes were given.
    given: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// What was heard of the greeting.
    Greeted(Vec<u8>),
    Open,
    Closing,
}

impl World {
    /// A copy of a request has come to a server, or more of its body.
    pub(crate) fn serve(&mut self, exchange: ExchangeId, copy: usize) {
        let made = &self.network.exchanges[&exchange];
        let server = made.server();
        let asked = TunnelRequest::of(&made.head);
        let is_ours = asked.ok().and_then(|asked| asked.id()).is_none_or(|id| id.server == number(server).0);
        match asked {
            Err(refusal) => self.violated(format!("a request of a tunnel asks for nothing: {refusal}")),
            Ok(_) if !is_ours => self.send_back(exchange, copy, ResponseHead::new(421), Vec::new()),
            Ok(TunnelRequest::Open) if self.servers[server].is_listening() => {
                self.hear_body(exchange, copy, None);
            }
            Ok(TunnelRequest::Open) => {
                let busy = ResponseHead::new(503).with("Retry-After", "2");
                self.send_back(exchange, copy, busy, Vec::new());
            }
            Ok(TunnelRequest::Up { id, from }) => self.hear_body(exchange, copy, Some((id, from))),
            Ok(TunnelRequest::Down { id, from, hold_secs }) => {
                self.ask_down(server, id, from, u64::from(hold_secs) * 1_000, (exchange, copy));
            }
        }
    }

    /// A body comes, whole or in pieces.
    fn hear_body(&mut self, exchange: ExchangeId, copy: usize, target: Option<(TunnelId, u64)>) {
        let is_split = self.dice.chance(self.weather.split_per_mille);
        let made = &self.network.exchanges[&exchange];
        let (arriving, is_whole) = made.arriving();
        let (conn, server, taken) = (made.conn, made.server(), made.copies[copy].taken);
        let left = arriving.len() - taken;
        let count = if is_split { left.min(1 + self.dice.place(left)) } else { left };
        let piece = arriving[taken..taken + count].to_vec();
        let ends = count == left;
        let opened = made.copies[copy].opened;
        let is_refused = made.copies[copy].refused.is_some();
        let (id, from) = match target.or(opened.map(|id| (id, 0))) {
            Some(target) => target,
            None => (self.begin_tunnel(conn, server), 0),
        };
        if target.is_none() {
            self.copy_mut(exchange, copy, |own| own.opened = Some(id));
        }
        if !is_refused && !piece.is_empty() {
            let refused = self.take(server, id, from + taken as u64, &piece).err();
            self.copy_mut(exchange, copy, |own| own.refused = refused);
        }
        self.copy_mut(exchange, copy, |own| own.taken += count);
        match (ends, is_whole) {
            (false, _) => self.send_on(exchange, copy),
            (true, false) => self.break_off(exchange, copy),
            (true, true) => self.answer_post(exchange, copy, server, id, target.is_none()),
        }
    }

    fn copy_mut(&mut self, exchange: ExchangeId, copy: usize, change: impl FnOnce(&mut Copy)) {
        if let Some(made) = self.network.exchanges.get_mut(&exchange) {
            change(&mut made.copies[copy]);
        }
    }

    fn answer_post(&mut self, exchange: ExchangeId, copy: usize, server: usize, id: TunnelId, opens: bool) {
        let mut refused = None;
        self.copy_mut(exchange, copy, |own| refused = own.refused.take());
        let head = match (refused, self.tunnel_at(server, id)) {
            (Some(refused), _) => refused,
            (None, None) => ResponseHead::new(404),
            (None, Some((_, end))) if opens => end.head(201).with("Bgb-Tunnel", id.to_string()),
            (None, Some((_, end))) => end.head(204),
        };
        self.send_back(exchange, copy, head, Vec::new());
    }

    fn begin_tunnel(&mut self, conn: ConnId, server: usize) -> TunnelId {
        let slot = self.network.tunnels_begun;
        self.network.tunnels_begun += 1;
        let shard = self.network.conns.get(&conn).map_or(0, |conn| conn.shard as u16);
        let id = TunnelId { server: number(server).0, shard, slot, secret: self.dice.bytes() };
        let gone_by_ms = self.now_ms + GREETED_MS;
        let end = ServerTunnel {
            id,
            conn,
            server,
            tunnel: Tunnel::default(),
            state: State::Greeted(Vec::new()),
            until_ms: 0,
            gone_by_ms,
            is_answering: false,
            given: 0,
        };
        if self.network.tunnels.values().any(|other| other.conn == conn && other.server == server) {
            self.tally.count(Kind::TunnelOpenedTwice);
        }
        self.network.tunnels.insert(slot, end);
        self.say(format_args!("server {}: tunnel {slot} begins", server + 1));
        self.after(GREETED_MS, Event::TunnelTime { slot });
        id
    }

    /// The tunnel that an id means, if the server has it.
    fn tunnel_at(&mut self, server: usize, id: TunnelId) -> Option<(u32, &mut ServerTunnel)> {
        let end = self.network.tunnels.get_mut(&id.slot)?;
        (end.server == server && id.has_secret(&end.id.secret)).then_some((id.slot, end))
    }

    /// Bytes up come to a tunnel.
    fn take(&mut self, server: usize, id: TunnelId, from: u64, bytes: &[u8]) -> Result<(), ResponseHead> {
        let shards = self.servers[server].process.iter().flat_map(|process| &process.shards);
        let is_backed_up = shards.skip(usize::from(id.shard)).take(1).any(|own| own.shard.is_backed_up());
        let (slot, end) = self.tunnel_at(server, id).ok_or_else(|| ResponseHead::new(404))?;
        if end.tunnel.check(from).is_err() {
            return Err(end.head(409));
        }
        if is_backed_up {
            return Err(end.head(503).with("Retry-After", "1"));
        }
        let new = end.tunnel.take(from, bytes).map_err(|_| ResponseHead::new(409))?.to_vec();
        if new.len() < bytes.len() {
            self.tally.count(Kind::BytesUpRepeated);
        }
        self.hear_in_tunnel(slot, new);
        Ok(())
    }

    /// Bytes that are new to a tunnel.
    fn hear_in_tunnel(&mut self, slot: u32, mut new: Vec<u8>) {
        let (now_ms, whole) = (self.now_ms, [GREETING, FINISHED].concat());
        let Some(end) = self.network.tunnels.get_mut(&slot) else { return };
        let conn = end.conn;
        match &mut end.state {
            State::Closing => return,
            State::Open => {}
            State::Greeted(heard) => {
                let before = heard.len();
                heard.append(&mut new);
                new = heard.split_off(heard.len().min(whole.len()));
                let (after, is_right) = (heard.len(), whole.starts_with(heard));
                if !is_right {
                    return self.violated(format!(
                        "by long-poll, up: {after} bytes are heard of a greeting that is another"
                    ));
                }
                if before < GREETING.len() && after >= GREETING.len() {
                    end.tunnel.push(ANSWER);
                    end.gone_by_ms = now_ms + GREETED_MS;
                    self.after(GREETED_MS, Event::TunnelTime { slot });
                    self.want_answer(slot);
                }
                if after < whole.len() {
                    return;
                }
                self.open_in_tunnel(slot, conn);
            }
        }
        let Some(poll) = self.network.conns.get_mut(&conn).and_then(|conn| conn.long_poll()) else { return };
        let kept = poll.up.hear(&new);
        let is_all = poll.up.is_heard();
        self.expect(kept.map_err(|what| format!("by long-poll, up: {what}")));
        self.hear_stream(conn, Way::Up, new, is_all);
    }

    /// It is known whose tunnel it is: the channel gets its place.
    fn open_in_tunnel(&mut self, slot: u32, id: ConnId) {
        let now_ms = self.now_ms;
        let Some(end) = self.network.tunnels.get_mut(&slot) else { return };
        let Some(conn) = self.network.conns.get_mut(&id).filter(|conn| conn.server_end == End::Opening)
        else {
            return self.violated(format!("tunnel {slot} is opened for a connection that is open or over"));
        };
        end.state = State::Open;
        if !end.tunnel.holds() {
            end.until_ms = now_ms + SILENT_MS;
        }
        let until_ms = end.until_ms;
        if let Some(poll) = conn.long_poll() {
            poll.slot = Some(slot);
        }
        self.after(until_ms.saturating_sub(now_ms), Event::TunnelTime { slot });
        self.open_channel(id);
    }

    /// A server says something by long-poll.
    pub(crate) fn say_down(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(poll) = self.network.conns.get_mut(&id).and_then(|conn| conn.long_poll()) else { return };
        let Some(slot) = poll.slot else { return };
        let Some(end) = self.network.tunnels.get_mut(&slot) else { return };
        poll.down.say(bytes);
        end.tunnel.push(bytes);
        self.want_answer(slot);
    }

    /// Bytes that are not known to have reached the agent.
    pub(crate) fn kept_bytes(&self, slot: Option<u32>) -> usize {
        slot.and_then(|slot| self.network.tunnels.get(&slot)).map_or(0, |end| end.tunnel.kept_bytes())
    }

    /// Somebody asks a tunnel for bytes.
    fn ask_down(&mut self, server: usize, id: TunnelId, from: u64, hold_ms: u64, asker: Asker) {
        let now_ms = self.now_ms;
        let made = &self.network.exchanges[&asker.0];
        let is_newest = made.agent_waits && made.copies.len() == 1;
        let Some((slot, end)) = self.tunnel_at(server, id) else {
            return self.send_back(asker.0, asker.1, ResponseHead::new(404), Vec::new());
        };
        let (conn, is_open) = (end.conn, end.state == State::Open);
        let former = match end.tunnel.ask(from, asker) {
            Ok(former) => former,
            Err(misstep) => {
                let head = end.head(409).with("Bgb-From", from.to_string());
                if is_newest {
                    self.violated(format!("the newest GET of an agent is refused: {misstep}"));
                }
                return self.send_back(asker.0, asker.1, head, Vec::new());
            }
        };
        end.until_ms = now_ms + hold_ms;
        let superseded = end.head(409);
        self.copy_mut(asker.0, asker.1, |own| own.state = CopyState::Held(slot));
        if is_open {
            self.after(hold_ms, Event::TunnelTime { slot });
        }
        if let Some((exchange, copy)) = former {
            self.tally.count(Kind::GetSuperseded);
            self.send_back(exchange, copy, superseded, Vec::new());
        }
        self.note_flow(conn);
        self.want_answer(slot);
    }

    fn want_answer(&mut self, slot: u32) {
        let Some(end) = self.network.tunnels.get_mut(&slot) else { return };
        if end.tunnel.holds()
            && end.tunnel.kept_bytes() > 0
            && !std::mem::replace(&mut end.is_answering, true)
        {
            let after_ms = self.dice.below(TURN_MS_MAX + 1);
            self.after(after_ms, Event::TunnelAnswers { slot });
        }
    }

    /// Who is held gets what there is.
    pub(crate) fn on_tunnel_answers(&mut self, slot: u32) {
        let now_ms = self.now_ms;
        let Some(end) = self.network.tunnels.get_mut(&slot) else { return };
        end.is_answering = false;
        let head = end.head(200);
        let Some((asker, from, bytes)) = end.tunnel.answer() else { return };
        let bytes = bytes.to_vec();
        let is_repeated = from < end.given;
        end.given = end.given.max(from + bytes.len() as u64);
        end.until_ms = now_ms + SILENT_MS;
        let is_over = end.state == State::Closing && end.tunnel.has_given_all();
        if is_repeated {
            self.tally.count(Kind::BytesDownRepeated);
        }
        self.after(SILENT_MS, Event::TunnelTime { slot });
        self.send_back(asker.0, asker.1, head.with("Bgb-From", from.to_string()), bytes);
        if is_over {
            self.end_tunnel(slot);
        }
    }

    /// A tunnel's moment may have come.
    pub(crate) fn on_tunnel_time(&mut self, slot: u32) {
        let now_ms = self.now_ms;
        let Some(end) = self.network.tunnels.get_mut(&slot) else { return };
        let (conn, head) = (end.conn, end.head(204));
        match end.state {
            State::Greeted(_) if now_ms >= end.gone_by_ms => {
                self.tally.count(Kind::TunnelNeverOpened);
                self.end_tunnel(slot);
            }
            State::Closing if now_ms >= end.gone_by_ms => self.end_tunnel(slot),
            State::Open if now_ms >= end.until_ms => match end.tunnel.let_go() {
                Some((asker, from)) => {
                    end.until_ms = now_ms + SILENT_MS;
                    self.tally.count(Kind::GetHeldToItsEnd);
                    self.after(SILENT_MS, Event::TunnelTime { slot });
                    self.send_back(asker.0, asker.1, head.with("Bgb-From", from.to_string()), Vec::new());
                }
                None => self.lose_at_server(conn, CloseReason::TunnelSilent),
            },
            _ => {}
        }
    }

    /// A server learns that the sockets of a request are gone.
    pub(crate) fn lose_askers(&mut self, exchange: ExchangeId) {
        let now_ms = self.now_ms;
        let Some(made) = self.network.exchanges.get_mut(&exchange) else { return };
        let mut lost = Vec::new();
        for (place, copy) in made.copies.iter_mut().enumerate() {
            if let CopyState::Held(slot) = copy.state {
                lost.push((slot, (exchange, place)));
                copy.end();
            }
        }
        for (slot, asker) in lost {
            self.doom(exchange);
            let Some(end) = self.network.tunnels.get_mut(&slot) else { continue };
            if end.tunnel.lose(&asker) {
                end.until_ms = now_ms + SILENT_MS;
                self.after(SILENT_MS, Event::TunnelTime { slot });
            }
        }
        self.forget_exchange(exchange);
    }

    /// The session of a connection ends at its server: in good order its last bytes may still be fetched.
    pub(crate) fn end_in_tunnel(&mut self, id: ConnId, farewell: Farewell) {
        let now_ms = self.now_ms;
        let Some(poll) = self.network.conns.get_mut(&id).and_then(|conn| conn.long_poll()) else { return };
        let Some(slot) = poll.slot.filter(|slot| self.network.tunnels.contains_key(slot)) else {
            return self.forget_if_over(id);
        };
        if farewell != Farewell::InOrder {
            self.end_tunnel(slot);
            return self.forget_if_over(id);
        }
        self.say_end_of_stream(id, Way::Down);
        if let Some(end) = self.network.tunnels.get_mut(&slot) {
            end.state = State::Closing;
            end.gone_by_ms = now_ms + CLOSING_MS;
            self.after(CLOSING_MS, Event::TunnelTime { slot });
        }
        self.forget_if_over(id);
    }

    /// A side says the last byte of its stream.
    pub(crate) fn say_end_of_stream(&mut self, id: ConnId, way: Way) {
        if let Some(conn) = self.network.conns.get_mut(&id) {
            conn.note_end_of_stream(way);
        }
        match way {
            Way::Up => self.say_up(id, &[CLOSE_NOTIFY]),
            Way::Down => self.say_down(id, &[CLOSE_NOTIFY]),
        }
    }

    fn end_tunnel(&mut self, slot: u32) {
        let Some(mut end) = self.network.tunnels.remove(&slot) else { return };
        if let Some((asker, _)) = end.tunnel.let_go() {
            self.send_back(asker.0, asker.1, ResponseHead::new(404), Vec::new());
        }
    }

    /// A server's process is gone, and all its tunnels with it.
    pub(crate) fn drop_tunnels(&mut self, server: usize, farewell: Farewell) {
        let its: Vec<u32> = self
            .network
            .tunnels
            .iter()
            .filter(|(_, end)| end.server == server)
            .map(|(slot, _)| *slot)
            .collect();
        for slot in its {
            let held = self.network.tunnels.remove(&slot).and_then(|mut end| end.tunnel.let_go());
            if let Some(((exchange, copy), _)) = held {
                self.lose_answers_of(exchange, copy, farewell);
            }
        }
    }
}

impl ServerTunnel {
    /// Whether it should have been gone by now, being of no session.
    pub(crate) fn is_overdue(&self, now_ms: u64) -> bool {
        now_ms > self.gone_by_ms
    }

    /// The head of an answer about it.
    fn head(&self, status: u16) -> ResponseHead {
        ResponseHead::new(status).with("Bgb-Received", self.tunnel.received().to_string())
    }
}

fn number(server: usize) -> ServerId {
    ServerId(server as u32 + 1)
}
