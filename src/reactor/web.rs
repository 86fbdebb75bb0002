//! Requests on a socket, and their answers.
//!
//! ```text
//!  accepted --(PROXY header)--(outer TLS)--> requests --answered--> requests ...      closed by either side, or by time
//!                                               \--- upgrade ---> a WebSocket, which has a channel of its own
//! ```
//!
//! A request is served as its bytes come; only an answer of a tunnel may take longer, and what the peer sends behind it waits. Laws: each request is answered
//! once, in its order, and none is served while the answer to one before it is not sent; whoever has named no known device's tunnel within a handshake's time is
//! let go, however many requests it makes; what is answered says nothing of the site.

use bgb_http::requests::Part;
use bgb_http::tunnel::{TunnelId, TunnelRequest};
use bgb_http::websocket::{self, Refusal};
use bgb_http::{RequestFault, RequestHead, ResponseHead};
use bgb_hub::{CloseReason, Now, TICK_MS, Tick, ticks_from_secs};

use super::admission::Opening;
use super::passed::{Ask, TunnelAnswer, Word};
use super::slots::SlotKey;
use super::socket::Reading;
use super::transport::{Asked, Course, Keeping, Manner, Reply, Transport, Web};
use super::{CLOSING_TICKS, Reactor};
use crate::HTTP_LOG;

/// Where a request asks for a WebSocket.
const WEBSOCKET_PATH: &str = "/bgb/websocket";
/// What a browser or a balancer is told that looks whether somebody is there.
const ABOUT: &str = "This is a BGB notification server. Its agents connect to it by themselves.";
/// Requests that a socket is served in one go: some 5 us each, and others wait.
const REQUESTS_IN_ONE_GO: usize = 8;
/// How long a connection of known devices rests between two requests: longer than proxies keep theirs as a rule.
pub(super) const REST_TICKS: u64 = 75_000 / TICK_MS;
/// How long it has rested at least when it is let go for others' sake.
const RESTED_TICKS: u64 = 1_000 / TICK_MS;
/// Sockets that are looked at for some that may go, some 5 ns each, and let go, at a time; there is a next turn.
const LOOKED_AT_FOR_ROOM: u32 = 1_024;
const FREED_AT_ONCE: usize = 64;
/// How much longer than a GET may be held its connection is kept.
const HELD_TICKS: u64 = 15_000 / TICK_MS;
/// How long a request may wait for its tunnel's handshake: as long as that may take.
const STRANGE_TICKS: u64 = 25_000 / TICK_MS;

impl Reactor {
    /// Serves what has come of requests, up to one whose answer takes longer.
    pub(super) fn take_requests(&mut self, now: Now, key: SlotKey) {
        let mut served = 0;
        loop {
            let Some(socket) = self.sockets.tenant_mut(key) else { return };
            let is_unsent = socket.unsent_bytes() > 0;
            let Some(web) = socket.transport.web().filter(|web| !web.is_parting()) else { return };
            let is_owed = !is_unsent && served == REQUESTS_IN_ONE_GO && web.requests.is_busy();
            web.course = if is_owed { Course::Owed } else { Course::Listening };
            if is_unsent {
                // They wait for the answers before them; and so does whatever else the peer has to say.
                if web.requests.is_busy() && socket.reading != Reading::Over {
                    socket.reading = Reading::Behind;
                }
                return;
            }
            if served == REQUESTS_IN_ONE_GO {
                return;
            }
            let mut body = Vec::new();
            match web.requests.next(&mut body) {
                Ok(None) => return,
                Ok(Some(Part::Head(head))) => self.on_head(now, key, &head),
                Ok(Some(Part::Body)) => self.on_body(now, key, body),
                Ok(Some(Part::End)) => {
                    served += 1;
                    self.on_request(now, key);
                }
                Err(fault) => return self.refuse(now, key, fault),
            }
        }
    }

    /// An answer has gone that others may have waited behind.
    pub(super) fn read_on(&mut self, key: SlotKey) {
        let Some(socket) = self.sockets.tenant_mut(key).filter(|socket| socket.unsent_bytes() == 0) else {
            return;
        };
        let has_more = socket.transport.web().is_some_and(|web| web.requests.is_busy());
        let is_behind = socket.reading == Reading::Behind;
        if is_behind || (has_more && socket.reading == Reading::Waiting) {
            socket.reading = Reading::Listed;
            self.readable.push_back(key);
        }
    }

    fn on_head(&mut self, now: Now, key: SlotKey, head: &RequestHead) {
        // A known device's request has as long as it would have rested.
        self.rest(now, key);
        let Some(web) = self.web(key) else { return };
        web.begin(head);
        let path = head.path();
        let asked = if path == WEBSOCKET_PATH {
            match websocket::answer(head) {
                Ok(answer) => return self.upgrade(now, key, &answer),
                // Its own words come not back to anybody.
                Err(refusal @ Refusal::Method(_)) => {
                    known(Reply::sentence(refusal.answer(), "A WebSocket is begun with GET."))
                }
                Err(refusal) => known(Reply::sentence(refusal.answer(), &refusal.to_string())),
            }
        } else if TunnelRequest::is_about(path) {
            match TunnelRequest::of(head) {
                Ok(TunnelRequest::Open) => Asked::Open,
                Ok(TunnelRequest::Up { id, from }) if self.is_ours(id) => Asked::Up(id, from),
                Ok(TunnelRequest::Down { id, from, hold_secs }) if self.is_ours(id) => {
                    Asked::Down(id, from, hold_secs)
                }
                Ok(_) => known(Reply::sentence(
                    ResponseHead::new(421),
                    "That tunnel is another server's; open another with a POST to /bgb/tunnel.",
                )),
                Err(refusal) => known(Reply::sentence(refusal.answer(), &refusal.to_string())),
            }
        } else {
            match (path, head.method.as_str()) {
                ("/", "GET" | "HEAD") => known(Reply::sentence(ResponseHead::new(200), ABOUT)),
                ("/", _) => known(Reply::sentence(
                    ResponseHead::new(405).with("Allow", "GET, HEAD"),
                    "Only GET and HEAD are answered here.",
                )),
                _ => known(Reply::sentence(ResponseHead::new(404), "There is nothing at this path.")),
            }
        };
        let Some(web) = self.web(key) else { return };
        match asked {
            // It waits for our word, and is told that it need not send the rest.
            Asked::Known(reply) if head.expects_continue() => {
                web.request.manner.keeping = Keeping::Closes;
                self.reply(now, key, *reply);
            }
            asked => {
                web.request.asked = asked;
                if head.expects_continue() {
                    self.write_covered(now, key, b"HTTP/1.1 100 Continue\r\n\r\n");
                }
            }
        }
    }

    /// Whether an id is of a tunnel of this server: only then is it known what there is of it.
    fn is_ours(&self, id: TunnelId) -> bool {
        id.server == self.server.0 && self.shard.has(id.shard)
    }

    fn on_body(&mut self, now: Now, key: SlotKey, bytes: Vec<u8>) {
        let Some(web) = self.web(key) else { return };
        let (id, from) = match web.request.asked {
            Asked::Open => match self.open_for(now, key) {
                Some(id) => (id, 0),
                None => return,
            },
            Asked::Up(id, from) => (id, from),
            _ => return,
        };
        if let Some(web) = self.web(key) {
            // Beyond the end of numbers nothing was ever taken, and so nothing will be.
            web.request.asked = Asked::Up(id, from.saturating_add(bytes.len() as u64));
        }
        self.ask_tunnel(now, key, id, Ask::Up { from, bytes, is_last: false });
    }

    /// A request is whole.
    fn on_request(&mut self, now: Now, key: SlotKey) {
        let Some(web) = self.web(key) else { return };
        match std::mem::replace(&mut web.request.asked, Asked::Nothing) {
            Asked::Known(reply) => self.reply(now, key, *reply),
            Asked::Open => {
                self.open_for(now, key);
                self.on_request(now, key);
            }
            Asked::Up(id, from) => {
                web.request.asked = Asked::UpUnderway;
                self.ask_tunnel(now, key, id, Ask::Up { from, bytes: Vec::new(), is_last: true });
            }
            Asked::Down(id, from, hold_secs) => {
                web.request.asked = Asked::DownUnderway(id, hold_secs);
                self.ask_tunnel(now, key, id, Ask::Down { from, hold_secs });
            }
            Asked::Nothing | Asked::UpUnderway | Asked::DownUnderway(..) => {}
        }
    }

    /// Opens a tunnel for a request; it is answered with its name when it is whole.
    fn open_for(&mut self, now: Now, key: SlotKey) -> Option<TunnelId> {
        let peer = self.sockets.tenant(key)?.peer;
        let has_room = self.handshakes.has_room() && !self.shard.is_backed_up();
        let has_place = has_room && self.handshakes.begin(Some(peer.ip()), now.tick);
        let id = if has_place { self.open_tunnel(now, peer) } else { None };
        if has_place && id.is_none() {
            self.handshakes.end(Some(peer.ip()), None);
        }
        self.note_handshakes();
        let web = self.web(key)?;
        web.request.opened = id;
        // That nothing was taken shows that it is our answer, and not that of something between.
        let received = |mut reply: Reply| {
            reply.head = reply.head.with("Bgb-Received", "0");
            reply
        };
        web.request.asked = id.map_or_else(|| known(received(crowded())), |id| Asked::Up(id, 0));
        id
    }

    /// There is no place for another handshake at present.
    pub(super) fn refuse_for_now(&mut self, now: Now, key: SlotKey) {
        let Some(web) = self.web(key) else { return };
        web.request.manner.keeping = Keeping::Closes;
        self.reply(now, key, crowded());
    }

    /// What a request to a tunnel, the socket's `number`th, came to.
    pub(super) fn on_tunnel_answer(&mut self, now: Now, key: SlotKey, number: u32, answer: TunnelAnswer) {
        let Some(web) = self.web(key).filter(|web| web.request.number == number) else { return };
        match (answer, &web.request.asked) {
            (TunnelAnswer::Held(word), Asked::DownUnderway(_, hold_secs)) => {
                let ticks = match word {
                    Word::Unknown => STRANGE_TICKS,
                    Word::Known | Word::Frees => ticks_from_secs(*hold_secs) + HELD_TICKS,
                };
                if word == Word::Frees {
                    self.welcome(key);
                }
                self.give_time(now, key, ticks);
            }
            // The rest of its body is read over.
            (TunnelAnswer::Refused(given), Asked::Up(..)) => web.request.asked = known(given.reply()),
            (TunnelAnswer::Refused(given), Asked::UpUnderway) => {
                web.request.refused.get_or_insert_with(|| Box::new(given.reply()));
            }
            (TunnelAnswer::Freed, _) => {
                self.welcome(key);
                self.rest(now, key);
            }
            (TunnelAnswer::Given(given), Asked::UpUnderway | Asked::DownUnderway(..)) => {
                let (opened, refused) = (web.request.opened.take(), web.request.refused.take());
                let is_success = given.is_success() && refused.is_none();
                if given.frees {
                    self.welcome(key);
                }
                let mut reply = refused.map_or_else(|| given.reply(), |reply| *reply);
                match opened {
                    Some(id) if is_success => {
                        reply.head.status = 201;
                        reply.head = reply.head.with("Bgb-Tunnel", id.to_string());
                    }
                    Some(id) => self.drop_tunnel(now, id),
                    None => {}
                }
                self.reply(now, key, reply);
                if is_success {
                    self.rest(now, key);
                }
                self.read_on(key);
            }
            _ => {}
        }
    }

    /// A socket has named the tunnel of a known device: it is no stranger's any more.
    fn welcome(&mut self, key: SlotKey) {
        let outer = self.sockets.tenant_mut(key).and_then(|socket| socket.transport.outer());
        let is_covered = outer.is_some();
        if self.give_place_back(key) && is_covered {
            // Of those that complete an outer handshake only devices earn its answers.
            self.handshakes.earn(Opening::Full);
        }
    }

    /// A socket on which requests are served counts among the handshakes no longer, if it did.
    pub(super) fn give_place_back(&mut self, key: SlotKey) -> bool {
        let Some(socket) = self.sockets.tenant_mut(key) else { return false };
        let origin = socket.peer.ip();
        let had_place = socket.transport.web().is_some_and(|web| web.strange_until.take().is_some());
        if had_place {
            let outer = socket.transport.outer().filter(|outer| !outer.is_up());
            let answered = outer.and_then(|outer| outer.stage().answered());
            self.handshakes.end(Some(origin), answered);
            self.note_handshakes();
        }
        had_place
    }

    /// A known device's socket was of use: it may rest for a while.
    fn rest(&mut self, now: Now, key: SlotKey) {
        if self.web(key).is_some_and(|web| web.strange_until.is_none() && !web.is_parting()) {
            self.give_time(now, key, REST_TICKS);
        }
    }

    /// Lets connections of this reactor go that rest between two requests, so that others find room: their devices begin another when they have
    /// something to say.
    pub(super) fn make_room(&mut self, now: Now) {
        let slots = self.sockets.slots();
        let mut freed = 0;
        for _ in 0..slots.min(LOOKED_AT_FOR_ROOM) {
            if freed == FREED_AT_ONCE {
                return;
            }
            let index = self.next_to_go % slots;
            self.next_to_go = index + 1;
            let Some(key) = self.sockets.key_at(index) else { continue };
            let Some(socket) = self.sockets.tenant_mut(key).filter(|socket| socket.unsent_bytes() == 0)
            else {
                continue;
            };
            // The next request may be here already, or on its way.
            let is_unheard = socket.reading != Reading::Waiting;
            let rests_until = self.socket_deadlines.deadline(index);
            let has_rested =
                rests_until.is_some_and(|until| until.0 + RESTED_TICKS <= now.tick.0 + REST_TICKS);
            if has_rested && !is_unheard && socket.transport.web().is_some_and(|web| web.is_at_rest()) {
                self.part(now, key, CloseReason::Answered);
                self.let_socket_go(now, key, CloseReason::Answered, "");
                freed += 1;
            }
        }
    }

    /// The peer has closed its half: nobody waits for an answer that is not on its way.
    pub(super) fn on_web_closed(&mut self, now: Now, key: SlotKey, reason: CloseReason) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        if socket.unsent_bytes() == 0 {
            return self.let_socket_go(now, key, reason, "");
        }
        socket.reading = Reading::Over;
        if let Some(web) = socket.transport.web() {
            web.course = Course::Parting;
            web.end.get_or_insert((reason, String::new()));
        }
        self.lose_asked(now, key);
        self.give_last_time(now, key);
    }

    /// A socket without a channel has had its time.
    pub(super) fn on_socket_time(&mut self, now: Now, key: SlotKey) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let is_unsent = socket.unsent_bytes() > 0;
        let is_shaking_hands = socket.transport.outer().is_some_and(|outer| !outer.is_up());
        match &socket.transport {
            _ if is_shaking_hands => self.let_socket_go(now, key, CloseReason::HandshakeTimedOut, ""),
            Transport::Introduced(..) => self.let_socket_go(now, key, CloseReason::BadProxyHeader, ""),
            // Its place was promised for so long; who still takes in its answer has some time without one.
            Transport::Web(web) if web.is_parting() && web.strange_until.is_some() && is_unsent => {
                self.give_place_back(key);
                self.give_last_time(now, key);
            }
            Transport::Web(web) if web.is_parting() => {
                self.let_socket_go(now, key, CloseReason::Answered, "");
            }
            Transport::Web(web) if web.strange_until.is_none() => self.part(now, key, CloseReason::Answered),
            _ => self.let_socket_go(now, key, CloseReason::NoSession, ""),
        }
    }

    /// The server stops: those who may still ask for a tunnel's last bytes stay as long as there are tunnels, and everybody else is let go.
    pub(super) fn part_all(&mut self, now: Now) {
        let keys: Vec<_> = self.sockets.keys().collect();
        for key in keys {
            let Some(socket) = self.sockets.tenant_mut(key).filter(|socket| socket.channel.is_none()) else {
                continue;
            };
            let is_known = socket.transport.web().is_some_and(|web| web.strange_until.is_none());
            if !is_known && socket.unsent_bytes() == 0 {
                self.let_socket_go(now, key, CloseReason::Draining, "");
            }
        }
    }

    /// Whoever asked a tunnel for bytes is not there any more.
    pub(super) fn lose_asked(&mut self, now: Now, key: SlotKey) {
        let Some(web) = self.web(key) else { return };
        if let Asked::DownUnderway(id, _) = web.request.asked {
            web.request.asked = Asked::Nothing;
            self.ask_tunnel(now, key, id, Ask::Lost);
        }
    }

    fn web(&mut self, key: SlotKey) -> Option<&mut Web> {
        self.sockets.tenant_mut(key)?.transport.web()
    }

    /// A socket has so long from now on.
    pub(super) fn give_time(&mut self, now: Now, key: SlotKey, ticks: u64) {
        self.socket_deadlines.arm(key.index, Tick(now.tick.0 + ticks));
    }

    /// A socket parts, and its peer has a while to go. Where it holds a place among the handshakes, no longer than it would have had.
    fn give_last_time(&mut self, now: Now, key: SlotKey) {
        let until = Tick(now.tick.0 + CLOSING_TICKS);
        match self.web(key).and_then(|web| web.strange_until) {
            Some(place_until) if place_until > now.tick => {
                self.socket_deadlines.arm(key.index, until.min(place_until));
            }
            _ => {
                self.give_place_back(key);
                self.socket_deadlines.arm(key.index, until);
            }
        }
    }

    /// A stranger's socket has so long to bring a session about, whatever it asks meanwhile.
    pub(super) fn give_stranger_time(&mut self, now: Now, key: SlotKey, ticks: u64) {
        let until = Tick(now.tick.0 + ticks);
        if let Some(web) = self.web(key) {
            web.strange_until = Some(until);
        }
        self.socket_deadlines.arm(key.index, until);
    }

    /// Answers the present request.
    fn reply(&mut self, now: Now, key: SlotKey, reply: Reply) {
        let Some(web) = self.web(key) else { return };
        let (manner, strange_until) = (web.request.manner, web.strange_until);
        web.request.asked = Asked::Nothing;
        web.requests.on_answered();
        let Reply { head, body, content_type } = reply;
        let status = head.status;
        // However long it was held: a stranger has no more time for another one.
        let is_over = strange_until.is_some_and(|until| until <= now.tick);
        let closes = manner.keeping == Keeping::Closes || is_over || self.stopping_until.is_some();
        let mut head = head.with("Date", bgb_daemon::http_server::date());
        if status != 204 {
            head = head.with("Content-Length", body.len().to_string());
        }
        if !content_type.is_empty() {
            head = head.with("Content-Type", content_type);
        }
        if closes {
            head = head.with("Connection", "close");
        } else if manner.keeping == Keeping::Said {
            head = head.with("Connection", "keep-alive");
        }
        let mut bytes = Vec::with_capacity(256 + body.len());
        if head.encode(&mut bytes).is_err() {
            // None of its fields has anything of a peer's in it.
            return self.end_socket(now, key, CloseReason::TransportError, "an answer could not be written");
        }
        if !manner.is_bodiless {
            bytes.extend_from_slice(&body);
        }
        self.metrics.count_answer(status);
        if status >= 400 {
            let peer = self.sockets.tenant(key).map(|socket| socket.peer);
            tracing::debug!(target: HTTP_LOG, ?peer, status, "a request was refused");
        }
        if !self.write_covered(now, key, &bytes) {
            return;
        }
        if closes {
            self.part(now, key, CloseReason::Answered);
        } else if let Some(until) = strange_until {
            self.socket_deadlines.arm(key.index, until);
        }
    }

    /// A request cannot be taken: that is answered, and the connection ends.
    fn refuse(&mut self, now: Now, key: SlotKey, fault: RequestFault) {
        let Some(web) = self.web(key) else { return };
        let sentence = fault.to_string();
        web.request.manner = Manner { keeping: Keeping::Closes, is_bodiless: false };
        let reply = Reply::sentence(ResponseHead::new(fault.status()), &sentence);
        web.end = Some((CloseReason::BadRequest, sentence));
        self.reply(now, key, reply);
    }

    /// Nothing follows what was written: when it is sent, that is said, and the peer has a while to go.
    pub(super) fn part(&mut self, now: Now, key: SlotKey, reason: CloseReason) {
        self.lose_asked(now, key);
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        self.scratch.records.clear();
        if let Some(outer) = socket.transport.outer() {
            outer.close(&mut self.scratch.records);
        }
        let Some(web) = socket.transport.web() else { return };
        web.course = Course::Parting;
        web.end.get_or_insert((reason, String::new()));
        // What a request comes to after that is said to nobody.
        web.request.asked = Asked::Nothing;
        self.give_last_time(now, key);
        if self.scratch.records.is_empty() || self.write_raw(now, key) {
            self.on_web_flushed(now, key);
        }
    }

    /// A socket without a channel has had bytes sent. When all are, one that parts says its end; others go on.
    pub(super) fn on_web_flushed(&mut self, now: Now, key: SlotKey) {
        let Some(socket) = self.sockets.tenant_mut(key).filter(|socket| socket.unsent_bytes() == 0) else {
            return;
        };
        if !socket.transport.web().is_some_and(|web| web.is_parting()) {
            return self.read_on(key);
        }
        if socket.reading == Reading::Over {
            return self.let_socket_go(now, key, CloseReason::PeerClosed, "");
        }
        socket.shutdown();
        // What waited behind the answer is read over: unread bytes would cost the peer its last ones.
        if socket.reading == Reading::Behind {
            socket.reading = Reading::Listed;
            self.readable.push_back(key);
        }
    }
}

fn known(reply: Reply) -> Asked {
    Asked::Known(Box::new(reply))
}

fn crowded() -> Reply {
    Reply::sentence(
        ResponseHead::new(503).with("Retry-After", "2"),
        "Too many handshakes are in flight; try again in a moment.",
    )
}
