//! Long-poll: channels that have no socket, and the requests that reach them.
//!
//! A request comes over whatever socket; its tunnel's id says which shard has it. One of this shard's is served at once; another's is passed on by mailbox,
//! its bytes one way and the answer the other, and the socket stays where it is. Each request that was passed on is answered once, however its tunnel ends.
//!
//! ```text
//!  socket --Ask--> tunnel's shard:   Up    taken --> its channel            Answer
//!                                    Down  held until there is something -> Held, then Answer
//! ```
//!
//! What the tunnel does with offsets is [`bgb_http::tunnel`]'s; here are its channel, its time, and who is answered what. Law: a tunnel of which nobody asks for
//! 90 s ends, and so does what is kept for it.

use std::net::SocketAddr;

use bgb_http::tunnel::TunnelId;
use bgb_http::tunnel::server::Tunnel;
use bgb_hub::{CloseReason, Now, TICK_MS, Tick, ticks_from_secs};

use super::channel::{Carrier, Channel, ChannelState};
use super::passed::{Ask, Asker, GivenAnswer, Passed, Standing, TunnelAnswer, Word};
use super::slots::SlotKey;
use super::socket::{CHOKED_BYTES, FLOWING_BYTES, Flow, UNSENT_BYTES_MAX};
use super::{Reactor, hub_key};
use crate::HTTP_LOG;
use crate::directory::ShardId;
use crate::tls::TlsSession;

/// How long a tunnel lives of which nobody asks (docs/protocol.md, 13.2).
const SILENT_TICKS: u64 = 90_000 / TICK_MS;

/// Sockets that a tunnel frees of a stranger's limits in one go, and from one to the next: an agent has two, and some proxies use a new one for each
/// request.
const WELCOMES_MAX: u8 = 32;
const WELCOME_TICKS: u64 = 2_000 / TICK_MS;

/// A channel's end of a tunnel.
pub struct TunnelEnd {
    tunnel: Tunnel<Asker>,
    secret: [u8; 16],
    /// Where its first request came from.
    pub peer: SocketAddr,
    /// When whoever is held is let go; or, where nobody is, when the tunnel ends.
    until: Tick,
    flow: Flow,
    /// It is on the reactor's list of those that have something for who is held.
    is_answering: bool,
    /// Who has asked, until the device is known.
    askers: Option<Box<Askers>>,
    /// Bytes up from here on were refused for the moment, and what was sent behind them is no fault of the agent's.
    refused_from: Option<u64>,
    /// Sockets that may still be freed of a stranger's limits for this tunnel's sake, and when that was reckoned last.
    welcomes: (u8, Tick),
}

/// Who is told when a tunnel's device is known.
#[derive(Default)]
struct Askers {
    /// Whose bytes up came last, if its socket is a stranger's.
    up: Option<Asker>,
    /// Who asked for bytes down last.
    down: Option<(Asker, Standing)>,
}

/// The secret is the agent's alone.
impl std::fmt::Debug for TunnelEnd {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "TunnelEnd({}, {} bytes kept)", self.peer, self.tunnel.kept_bytes())
    }
}

impl TunnelEnd {
    fn new(secret: [u8; 16], peer: SocketAddr) -> Self {
        Self {
            tunnel: Tunnel::default(),
            secret,
            peer,
            until: Tick(0),
            flow: Flow::Flowing,
            is_answering: false,
            askers: None,
            refused_from: None,
            welcomes: (WELCOMES_MAX, Tick(0)),
        }
    }

    /// What the tunnel of a known device says for a socket. It frees few of them: whoever has seen the tunnel's name go by could name it too.
    fn word(&mut self, standing: Standing, now: Tick) -> Word {
        match standing {
            Standing::Stranger if self.spend_welcome(now) => Word::Frees,
            Standing::Stranger | Standing::Welcome => Word::Known,
        }
    }

    fn spend_welcome(&mut self, now: Tick) -> bool {
        let (left, since) = &mut self.welcomes;
        let gained = now.since(*since) / WELCOME_TICKS;
        if gained > 0 {
            *left = WELCOMES_MAX.min(left.saturating_add(u8::try_from(gained).unwrap_or(WELCOMES_MAX)));
            *since = now;
        }
        match left.checked_sub(1) {
            Some(fewer) => {
                *left = fewer;
                true
            }
            None => false,
        }
    }

    /// Whether somebody is held until there is something to be given.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.tunnel.holds()
    }

    /// Whether all that went down was given at least once.
    #[must_use]
    pub fn has_given_all(&self) -> bool {
        self.tunnel.has_given_all()
    }

    fn answer(&self, status: u16) -> GivenAnswer {
        GivenAnswer::new(status, self.tunnel.received())
    }

    /// Bytes go down.
    fn push(&mut self, bytes: &[u8]) {
        self.tunnel.push(bytes);
    }
}

impl Reactor {
    /// Opens a tunnel for `peer`, whose handshake has its place already. `None` when that is not possible now.
    pub(super) fn open_tunnel(&mut self, now: Now, peer: SocketAddr) -> Option<TunnelId> {
        let mut secret = [0; 16];
        let random = aws_lc_rs::rand::fill(&mut secret);
        let tls = TlsSession::new(&self.tls);
        let (Ok(()), Ok(tls)) = (random, tls) else {
            tracing::error!("a tunnel could not be opened: no randomness, or no TLS session");
            return None;
        };
        let end = TunnelEnd::new(secret, peer);
        let key = self.channels.insert(Channel::new(Carrier::Tunnel(Box::new(end)), tls));
        self.deadlines.arm(key.index, Tick(now.tick.0 + self.patience()));
        self.metrics.tunnels_opened.add(1);
        tracing::debug!(target: HTTP_LOG, %peer, "a tunnel begins");
        self.room.begin_tunnel();
        self.count_tunnels(self.tunnels + 1);
        Some(TunnelId { server: self.server.0, shard: self.shard.id().0, slot: key.index, secret })
    }

    /// A tunnel was opened of which nobody has heard: its first bytes were not all taken.
    pub(super) fn drop_tunnel(&mut self, now: Now, id: TunnelId) {
        if let Some((key, ..)) = self.tunnel_of(id) {
            self.end(now, key, CloseReason::NoSession);
        }
    }

    fn count_tunnels(&mut self, tunnels: u64) {
        self.tunnels = tunnels;
        self.metrics.tunnels.set(tunnels);
    }

    /// Has a request reach its tunnel. What comes of it comes as [`on_tunnel_answer`](Self::on_tunnel_answer), at once where the tunnel is here.
    pub(super) fn ask_tunnel(&mut self, now: Now, socket: SlotKey, id: TunnelId, ask: Ask) {
        let web = self.sockets.tenant_mut(socket).and_then(|socket| socket.transport.web());
        let Some((number, standing)) = web.map(|web| (web.request.number, web.standing())) else { return };
        let asker = Asker { shard: self.shard.id(), socket, number };
        if id.shard == asker.shard.0 {
            return self.serve(now, (asker, standing), id, ask);
        }
        let busy = match &ask {
            Ask::Up { from, is_last: false, .. } => Some(TunnelAnswer::Refused(GivenAnswer::busy(*from))),
            Ask::Up { from, .. } | Ask::Down { from, .. } => {
                Some(TunnelAnswer::Given(GivenAnswer::busy(*from)))
            }
            Ask::Lost => None,
        };
        if self.shard.pass(ShardId(id.shard), Passed::Ask { asker, standing, id, ask }) {
            self.metrics.tunnel_requests_passed.add(1);
        } else if let Some(busy) = busy {
            self.on_tunnel_answer(now, socket, number, busy);
        }
    }

    /// What another shard passed on.
    pub(super) fn take_passed(&mut self, now: Now, passed: Passed) {
        match passed {
            Passed::Ask { asker, standing, id, ask } => self.serve(now, (asker, standing), id, ask),
            Passed::Answer { asker, answer } => {
                self.on_tunnel_answer(now, asker.socket, asker.number, answer);
            }
        }
    }

    /// The channel that an id means, if it is still there.
    fn tunnel_of(&mut self, id: TunnelId) -> Option<(SlotKey, bool, &mut TunnelEnd)> {
        let key = self.channels.key_at(id.slot).filter(|_| id.server == self.server.0)?;
        let channel = self.channels.tenant_mut(key)?;
        let is_known = channel.is_known();
        let end = channel.tunnel().filter(|end| id.has_secret(&end.secret))?;
        Some((key, is_known, end))
    }

    fn serve(&mut self, now: Now, (asker, standing): (Asker, Standing), id: TunnelId, ask: Ask) {
        match ask {
            Ask::Up { from, bytes, is_last } => {
                self.serve_up(now, (asker, standing), id, (from, &bytes), is_last);
            }
            Ask::Down { from, hold_secs } => self.serve_down(now, (asker, standing), id, from, hold_secs),
            Ask::Lost => {
                let Some((key, _, end)) = self.tunnel_of(id) else { return };
                if end.tunnel.lose(&asker) {
                    end.until = Tick(now.tick.0 + SILENT_TICKS);
                    self.arm_tunnel(key);
                }
            }
        }
    }

    fn serve_up(
        &mut self,
        now: Now,
        (asker, standing): (Asker, Standing),
        id: TunnelId,
        (from, bytes): (u64, &[u8]),
        is_last: bool,
    ) {
        let is_backed_up = self.shard.is_backed_up();
        let say = |given| if is_last { TunnelAnswer::Given(given) } else { TunnelAnswer::Refused(given) };
        let Some((key, is_known, end)) = self.tunnel_of(id) else {
            return self.answer(now, asker, say(GivenAnswer::gone()));
        };
        // What the shard cannot keep now, the agent keeps; and what it sent behind that is refused alike.
        let status = match end.tunnel.check(from) {
            Ok(()) if is_backed_up && !bytes.is_empty() => {
                end.refused_from = Some(end.tunnel.received());
                Some(503)
            }
            Ok(()) => None,
            Err(_) if end.refused_from == Some(end.tunnel.received()) => Some(503),
            Err(_) => Some(409),
        };
        if let Some(status) = status {
            let given = end.answer(status);
            return self.answer(now, asker, say(given));
        }
        if !is_known {
            end.askers.get_or_insert_default().up = (standing == Standing::Stranger).then_some(asker);
        }
        let new = end.tunnel.take(from, bytes).unwrap_or_default();
        for piece in new.chunks(self.scratch.received.len()) {
            self.scratch.received[..piece.len()].copy_from_slice(piece);
            self.hear_tunnel(now, key, piece.len());
        }
        if is_last {
            let given = match self.tunnel_of(id) {
                Some((_, is_known, end)) => {
                    let is_freed = is_known && end.word(standing, now.tick) == Word::Frees;
                    end.answer(204).freeing(is_freed)
                }
                None => GivenAnswer::gone(),
            };
            self.answer(now, asker, TunnelAnswer::Given(given));
        }
    }

    fn serve_down(
        &mut self,
        now: Now,
        (asker, standing): (Asker, Standing),
        id: TunnelId,
        from: u64,
        hold_secs: u32,
    ) {
        let Some((key, is_known, end)) = self.tunnel_of(id) else {
            return self.answer(now, asker, TunnelAnswer::Given(GivenAnswer::gone()));
        };
        let former_from = end.tunnel.acknowledged();
        let Ok(former) = end.tunnel.ask(from, asker) else {
            let given = end.answer(409).at(from);
            return self.answer(now, asker, TunnelAnswer::Given(given));
        };
        end.until = Tick(now.tick.0 + ticks_from_secs(hold_secs));
        let word = if is_known {
            end.word(standing, now.tick)
        } else {
            end.askers.get_or_insert_default().down = Some((asker, standing));
            Word::Unknown
        };
        let superseded = end.answer(409).at(former_from);
        if let Some(former) = former {
            self.answer(now, former, TunnelAnswer::Given(superseded));
        }
        self.answer(now, asker, TunnelAnswer::Held(word));
        self.arm_tunnel(key);
        self.note_tunnel_flow(now, key);
        self.want_answer(key);
        // The last bytes of one that has ended have arrived.
        if let Some(channel) = self.channels.tenant_mut(key)
            && let ChannelState::Closing(reason) = channel.state
            && channel.tunnel().is_some_and(|end| end.tunnel.kept_bytes() == 0)
        {
            self.end(now, key, reason);
        }
    }

    /// Bytes of a tunnel's channel, at the beginning of the scratch.
    fn hear_tunnel(&mut self, now: Now, key: SlotKey, bytes: usize) {
        let Some(channel) = self.channels.tenant_mut(key) else { return };
        if channel.is_handshaking() {
            self.hear_strange_channel(now, key, bytes);
        } else {
            self.feed(now, key, bytes);
        }
    }

    fn answer(&mut self, now: Now, asker: Asker, answer: TunnelAnswer) {
        if asker.shard == self.shard.id() {
            return self.on_tunnel_answer(now, asker.socket, asker.number, answer);
        }
        let passed = Passed::Answer { asker, answer };
        self.shard.pass_surely(asker.shard, passed);
    }

    /// Bytes went down a channel in a tunnel: they are given when all that this turn has for it is there.
    pub(super) fn push_down(&mut self, now: Now, key: SlotKey, is_held_back: bool) {
        let Some(end) = self.channels.tenant_mut(key).and_then(Channel::tunnel) else { return };
        end.push(&self.scratch.records);
        if !is_held_back {
            self.want_answer(key);
        }
        self.note_tunnel_flow(now, key);
    }

    /// Puts a tunnel on the list of those that have something for who is held.
    fn want_answer(&mut self, key: SlotKey) {
        let Some(end) = self.channels.tenant_mut(key).and_then(Channel::tunnel) else { return };
        if !end.is_answering && end.tunnel.holds() && end.tunnel.kept_bytes() > 0 {
            end.is_answering = true;
            self.answering.push(key);
        }
    }

    /// Keeps the limits of bytes that wait.
    fn note_tunnel_flow(&mut self, now: Now, key: SlotKey) {
        let Some(channel) = self.channels.tenant_mut(key) else { return };
        let is_open = channel.state == ChannelState::Open;
        let Some(end) = channel.tunnel() else { return };
        let kept = end.tunnel.kept_bytes();
        if kept > UNSENT_BYTES_MAX {
            return self.end(now, key, CloseReason::TooSlow);
        }
        let flow = match end.flow {
            Flow::Flowing if kept > CHOKED_BYTES => Flow::Choked,
            Flow::Choked if kept < FLOWING_BYTES => Flow::Flowing,
            same => same,
        };
        if flow != end.flow {
            end.flow = flow;
            if is_open {
                self.shard.handle_flow(now, hub_key(key), flow == Flow::Choked);
            }
        }
    }

    /// Those who are held get what this turn has for them.
    pub(super) fn answer_held(&mut self, now: Now) {
        for key in std::mem::take(&mut self.answering) {
            let Some(end) = self.channels.tenant_mut(key).and_then(Channel::tunnel) else { continue };
            end.is_answering = false;
            let Some((asker, from, bytes)) = end.tunnel.answer() else { continue };
            let bytes = bytes.to_vec();
            end.until = Tick(now.tick.0 + SILENT_TICKS);
            let given = end.answer(200).at(from).with(bytes);
            self.arm_tunnel(key);
            self.answer(now, asker, TunnelAnswer::Given(given));
        }
    }

    /// An open tunnel's moment: who is held is let go, or nobody has asked for too long.
    pub(super) fn on_tunnel_time(&mut self, now: Now, key: SlotKey) {
        let Some(end) = self.channels.tenant_mut(key).and_then(Channel::tunnel) else { return };
        if now.tick >= end.until {
            let Some((asker, from)) = end.tunnel.let_go() else {
                return self.close(now, key, CloseReason::TunnelSilent);
            };
            end.until = Tick(now.tick.0 + SILENT_TICKS);
            let given = end.answer(204).at(from);
            self.answer(now, asker, TunnelAnswer::Given(given));
        }
        // What was held back goes.
        self.want_answer(key);
        self.arm_tunnel(key);
    }

    /// A tunnel's device is known: from now on it has its own time.
    pub(super) fn on_tunnel_open(&mut self, now: Now, key: SlotKey) {
        let Some(end) = self.channels.tenant_mut(key).and_then(Channel::tunnel) else { return };
        if !end.tunnel.holds() {
            end.until = Tick(now.tick.0 + SILENT_TICKS);
        }
        let Askers { up, down } = end.askers.take().map_or_else(Askers::default, |askers| *askers);
        // Of those who asked for bytes down the last one is held, if anybody is.
        let down = down.filter(|_| end.tunnel.holds());
        let freed = up.filter(|_| end.word(Standing::Stranger, now.tick) == Word::Frees);
        let held = down.map(|(asker, standing)| (asker, end.word(standing, now.tick)));
        self.arm_tunnel(key);
        if let Some(asker) = freed {
            self.answer(now, asker, TunnelAnswer::Freed);
        }
        if let Some((asker, word)) = held {
            self.answer(now, asker, TunnelAnswer::Held(word));
        }
    }

    fn arm_tunnel(&mut self, key: SlotKey) {
        let Some(channel) = self.channels.tenant_mut(key) else { return };
        let is_open = channel.state == ChannelState::Open;
        if let Some(end) = channel.tunnel().filter(|_| is_open) {
            let until = end.until;
            self.deadlines.arm(key.index, until);
        }
    }

    /// A tunnel's channel is gone: whoever is held is told.
    pub(super) fn on_tunnel_over(&mut self, now: Now, end: TunnelEnd) {
        self.room.end_tunnels(1);
        self.count_tunnels(self.tunnels - 1);
        let mut tunnel = end.tunnel;
        if let Some((asker, from)) = tunnel.let_go() {
            self.answer(now, asker, TunnelAnswer::Given(GivenAnswer::gone().at(from)));
        }
    }
}
