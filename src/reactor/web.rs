//! HTTP on a socket: the outer TLS of HTTPS, requests and their answers, and how a request becomes a WebSocket.
//!
//! ```text
//!  accepted --(PROXY header)--(outer TLS)--> requests --answered--> requests ...      closed by either side, or by time
//!                                               \--- upgrade ---> a WebSocket, which has a channel of its own
//! ```
//!
//! A request is served as its bytes come; only an answer of a tunnel may take longer, and what the peer sends behind it waits. Laws: each request is answered
//! once, in its order; whoever has named no living tunnel within a handshake's time is let go; what is answered says nothing of the site.

use bgb_http::requests::Part;
use bgb_http::tunnel::{TunnelId, TunnelRequest};
use bgb_http::websocket::{self, Control, Decoder, Side};
use bgb_http::{RequestFault, RequestHead, ResponseHead};
use bgb_hub::{CloseReason, Now, TICK_MS, Tick, ticks_from_secs};

use super::admission::Waiter;
use super::slots::SlotKey;
use super::socket::Reading;
use super::transport::{Asked, Manner, Reply, Transport, Web, WebSocket};
use super::tunnels::{Ask, TunnelAnswer};
use super::{CLOSING_TICKS, Reactor};
use crate::HTTP_LOG;
use crate::tls::TlsFault;

/// Where a request asks for a WebSocket.
const WEBSOCKET_PATH: &str = "/bgb/websocket";
/// The code of a close frame when nothing is wrong (RFC 6455, 7.4.1).
const NORMAL: u16 = 1000;
/// What a browser or a balancer is told that looks whether somebody is there.
const ABOUT: &str = "This is a BGB notification server. Its agents connect to it by themselves.";
/// How long a connection of known devices rests between two requests: longer than proxies keep theirs as a rule.
const REST_TICKS: u64 = 75_000 / TICK_MS;
/// How much longer than a GET may be held its connection is kept.
const HELD_TICKS: u64 = 15_000 / TICK_MS;
/// How long a request of a stranger may wait for its tunnel's handshake: as long as that may take.
const STRANGE_TICKS: u64 = 25_000 / TICK_MS;

impl Reactor {
    /// Bytes came on a socket that speaks HTTP, or will; they are at the beginning of the scratch.
    pub(super) fn hear_socket(&mut self, now: Now, key: SlotKey, bytes: usize) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        if let Transport::Introduced(..) = socket.transport {
            return self.hear_introduction(now, key, bytes);
        }
        match socket.transport.outer() {
            None => self.hear_plain(now, key, bytes),
            Some(outer) if outer.is_up() => self.feed_outer(now, key, bytes),
            Some(outer) => {
                let step = outer.wait_with(&self.scratch.received[..bytes], None);
                if let Some(too_much) = outer.kept_too_much() {
                    let fault = TlsFault::handshake_too_long(too_much);
                    return self.let_socket_go(now, key, fault.reason(), &fault.detail);
                }
                match step {
                    Some(step) if !socket.read_closed => {
                        socket.reading = Reading::InLine;
                        self.stand_in_line(Waiter::Socket(key), step);
                    }
                    _ => {}
                }
            }
        }
    }

    /// A step of an outer handshake is due.
    pub(super) fn step_outer(&mut self, now: Now, key: SlotKey) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        // More may have come meanwhile, and its edge was not heeded.
        socket.reading = Reading::Listed;
        self.readable.push_back(key);
        if let Some(outer) = socket.transport.outer() {
            let bytes = outer.waited_with(&mut self.scratch.received);
            self.feed_outer(now, key, bytes);
        }
    }

    fn feed_outer(&mut self, now: Now, key: SlotKey, bytes: usize) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let Some(outer) = socket.transport.outer() else { return };
        let (answered, was_up) = (outer.stage().answered(), outer.is_up());
        let scratch = &mut self.scratch;
        scratch.unwrapped.clear();
        scratch.records.clear();
        let fed = outer.feed(&mut scratch.received[..bytes], &mut scratch.unwrapped, &mut scratch.records);
        let is_up = outer.is_up();
        match (answered, outer.stage().answered()) {
            (None, Some(opening)) => {
                self.handshakes.answer(opening);
                let patience = self.patience_of_answered();
                self.lengthen(now, key, patience);
            }
            // Its place remains taken: who is there is still to be shown, inside.
            (Some(opening), _) if is_up && !was_up => self.handshakes.settle(opening),
            _ => {}
        }
        if !self.scratch.records.is_empty() && !self.write_raw(now, key) {
            return;
        }
        match fed {
            Err(fault) => self.end_socket(now, key, fault.reason(), &fault.detail),
            Ok(fed) => {
                let bytes = self.scratch.take_unwrapped();
                if bytes > 0 {
                    self.hear_plain(now, key, bytes);
                }
                if fed.peer_closed {
                    self.end_socket(now, key, CloseReason::PeerClosed, "");
                }
            }
        }
    }

    /// HTTP's own bytes, at the beginning of the scratch.
    fn hear_plain(&mut self, now: Now, key: SlotKey, bytes: usize) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        match &mut socket.transport {
            Transport::WebSocket(_) => self.hear_frames(now, key, bytes),
            Transport::Web(web) if !web.is_parting => {
                web.requests.hear(&self.scratch.received[..bytes]);
                self.take_requests(now, key);
            }
            Transport::Web(_) | Transport::Raw | Transport::Introduced(..) => {}
        }
    }

    /// Serves what has come of requests, up to one whose answer takes longer.
    pub(super) fn take_requests(&mut self, now: Now, key: SlotKey) {
        loop {
            let Some(web) = self.web(key).filter(|web| !web.is_parting) else { return };
            // Lent out: serving needs the rest of the scratch.
            let (next, body) = {
                let mut body = Vec::new();
                (web.requests.next(&mut body), body)
            };
            match next {
                Ok(None) => return,
                Ok(Some(Part::Head(head))) => self.on_head(now, key, &head),
                Ok(Some(Part::Body)) => self.on_body(now, key, body),
                Ok(Some(Part::End)) => self.on_request(now, key),
                Err(fault) => return self.refuse(now, key, fault),
            }
        }
    }

    fn on_head(&mut self, now: Now, key: SlotKey, head: &RequestHead) {
        let Some(web) = self.web(key) else { return };
        web.begin(head);
        let path = head.path();
        let asked = if path == WEBSOCKET_PATH {
            match websocket::answer(head) {
                Ok(answer) => return self.upgrade(now, key, &answer),
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
        // Whoever would be refused has no need to send the body first.
        let continues = head.expects_continue() && !matches!(asked, Asked::Known(_));
        let Some(web) = self.web(key) else { return };
        web.asked = asked;
        if continues {
            self.write_covered(now, key, b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    /// Whether an id is of a tunnel of this server: only then is it known what there is of it.
    fn is_ours(&self, id: TunnelId) -> bool {
        id.server == self.server.0 && self.shard.has(id.shard)
    }

    fn on_body(&mut self, now: Now, key: SlotKey, bytes: Vec<u8>) {
        let Some(web) = self.web(key) else { return };
        let (id, from) = match web.asked {
            Asked::Open => match self.open_for(now, key) {
                Some(id) => (id, 0),
                None => return,
            },
            Asked::Up(id, from) => (id, from),
            _ => return,
        };
        if let Some(web) = self.web(key) {
            web.asked = Asked::Up(id, from + bytes.len() as u64);
        }
        self.ask_tunnel(now, key, id, Ask::Up { from, bytes, is_last: false });
    }

    /// A request is whole.
    fn on_request(&mut self, now: Now, key: SlotKey) {
        let Some(web) = self.web(key) else { return };
        match std::mem::replace(&mut web.asked, Asked::Nothing) {
            Asked::Known(reply) => self.reply(now, key, *reply),
            Asked::Open => {
                self.open_for(now, key);
                self.on_request(now, key);
            }
            Asked::Up(id, from) => {
                web.asked = Asked::Underway(None);
                self.lengthen(now, key, STRANGE_TICKS);
                self.ask_tunnel(now, key, id, Ask::Up { from, bytes: Vec::new(), is_last: true });
            }
            Asked::Down(id, from, hold_secs) => {
                web.asked = Asked::Underway(Some(id));
                self.lengthen(now, key, STRANGE_TICKS.max(ticks_from_secs(hold_secs) + HELD_TICKS));
                self.ask_tunnel(now, key, id, Ask::Down { from, hold_secs });
            }
            Asked::Nothing | Asked::Underway(_) => {}
        }
    }

    /// Opens a tunnel for a request; it is answered with its name when it is whole.
    fn open_for(&mut self, now: Now, key: SlotKey) -> Option<TunnelId> {
        let peer = self.sockets.tenant(key)?.peer;
        let has_room = self.handshakes.has_room() && !self.shard.is_backed_up();
        let id = (has_room && self.handshakes.begin(Some(peer.ip()), now.tick)).then(|| {
            let id = self.open_tunnel(now, peer);
            if id.is_none() {
                self.handshakes.end(Some(peer.ip()), None);
            }
            id
        });
        self.note_handshakes();
        let id = id.flatten();
        let web = self.web(key)?;
        web.asked = match id {
            Some(id) => Asked::Up(id, 0),
            None => known(Reply::sentence(
                ResponseHead::new(503).with("Retry-After", "2"),
                "Too many handshakes are in flight; try again in a moment.",
            )),
        };
        if let Some(id) = id {
            web.opened = Some(id);
        }
        id
    }

    /// What a request to a tunnel came to.
    pub(super) fn on_tunnel_answer(&mut self, now: Now, key: SlotKey, answer: TunnelAnswer) {
        let Some(web) = self.web(key) else { return };
        match answer {
            TunnelAnswer::Held(is_known) => {
                if is_known {
                    self.welcome(key);
                }
            }
            TunnelAnswer::Refused(given) => {
                // The rest of its body is read over.
                if let Asked::Up(..) = web.asked {
                    web.asked = known(given.reply());
                }
            }
            TunnelAnswer::Given(given) => {
                if let Asked::Underway(_) = web.asked {
                    let opened = web.opened.take().filter(|_| given.is_success());
                    if given.is_known {
                        self.welcome(key);
                    }
                    let mut reply = given.reply();
                    if let Some(id) = opened {
                        reply.head.status = 201;
                        reply.head = reply.head.with("Bgb-Tunnel", id.to_string());
                    }
                    self.reply(now, key, reply);
                    self.read_on(key);
                }
            }
        }
    }

    /// A socket has named the tunnel of a known device: it is no stranger's any more.
    fn welcome(&mut self, key: SlotKey) {
        let Some(web) = self.web(key) else { return };
        if std::mem::replace(&mut web.is_strange, false) {
            let origin = self.sockets.tenant(key).map(|socket| socket.peer.ip());
            self.handshakes.end(origin, None);
            self.note_handshakes();
        }
    }

    /// The peer has closed its half: nobody waits for an answer that is not on its way.
    pub(super) fn on_web_closed(&mut self, now: Now, key: SlotKey) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        if socket.unsent_bytes() == 0 {
            return self.let_socket_go(now, key, CloseReason::PeerClosed, "");
        }
        if let Some(web) = socket.transport.web() {
            web.is_parting = true;
        }
        self.lose_asked(now, key);
    }

    /// A socket without a channel has had its time.
    pub(super) fn on_socket_time(&mut self, now: Now, key: SlotKey) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let is_shaking_hands = socket.transport.outer().is_some_and(|outer| !outer.is_up());
        let reason = match &socket.transport {
            _ if is_shaking_hands => CloseReason::HandshakeTimedOut,
            Transport::Web(web) if !web.is_strange => CloseReason::Answered,
            Transport::Introduced(..) => CloseReason::BadProxyHeader,
            _ => CloseReason::NoSession,
        };
        self.let_socket_go(now, key, reason, "");
    }

    /// The server stops: who waits for a tunnel's bytes gets its last ones, and everybody else is let go.
    pub(super) fn part_all(&mut self, now: Now) {
        let keys: Vec<_> = self.sockets.keys().collect();
        for key in keys {
            let Some(socket) = self.sockets.tenant_mut(key).filter(|socket| socket.channel.is_none()) else {
                continue;
            };
            let waits = socket.unsent_bytes() > 0
                || socket
                    .transport
                    .web()
                    .is_some_and(|web| matches!(web.asked, Asked::Underway(Some(_))) && !web.is_strange);
            if !waits {
                self.let_socket_go(now, key, CloseReason::Draining, "");
            }
        }
    }

    /// Whoever asked a tunnel for bytes is not there any more.
    pub(super) fn lose_asked(&mut self, now: Now, key: SlotKey) {
        let Some(web) = self.web(key) else { return };
        if let Asked::Underway(Some(id)) = web.asked {
            web.asked = Asked::Nothing;
            self.ask_tunnel(now, key, id, Ask::Lost);
        }
    }

    /// An answer has gone that others may have waited behind.
    fn read_on(&mut self, key: SlotKey) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let has_more = socket.transport.web().is_some_and(|web| web.requests.is_busy());
        let rests = matches!(socket.reading, Reading::Waiting | Reading::Behind);
        if rests && (has_more || socket.reading == Reading::Behind) {
            socket.reading = Reading::Listed;
            self.readable.push_back(key);
        }
    }

    fn web(&mut self, key: SlotKey) -> Option<&mut Web> {
        self.sockets.tenant_mut(key)?.transport.web()
    }

    /// The present request may take so long.
    fn lengthen(&mut self, now: Now, key: SlotKey, ticks: u64) {
        self.socket_deadlines.arm(key.index, Tick(now.tick.0 + ticks));
    }

    /// Answers the present request.
    fn reply(&mut self, now: Now, key: SlotKey, reply: Reply) {
        let Some(web) = self.web(key) else { return };
        let (manner, is_strange) = (web.manner, web.is_strange);
        web.asked = Asked::Nothing;
        web.requests.on_answered();
        let Reply { head, body, content_type } = reply;
        let status = head.status;
        let closes = manner.closes || self.stopping_until.is_some();
        let mut head = head.with("Date", bgb_daemon::http_server::date());
        if status != 204 {
            head = head.with("Content-Length", body.len().to_string());
        }
        if !content_type.is_empty() {
            head = head.with("Content-Type", content_type);
        }
        if closes {
            head = head.with("Connection", "close");
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
        } else if !is_strange {
            self.lengthen(now, key, REST_TICKS);
        }
    }

    /// A request cannot be taken: that is answered, and the connection ends.
    fn refuse(&mut self, now: Now, key: SlotKey, fault: RequestFault) {
        let Some(web) = self.web(key) else { return };
        let sentence = fault.to_string();
        web.manner = Manner { closes: true, is_bodiless: false };
        let reply = Reply::sentence(ResponseHead::new(fault.status()), &sentence);
        web.end = Some((CloseReason::BadRequest, sentence));
        self.reply(now, key, reply);
    }

    /// Nothing follows what was written: when it is sent, that is said, and the peer has a while to go.
    fn part(&mut self, now: Now, key: SlotKey, reason: CloseReason) {
        self.lose_asked(now, key);
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        self.scratch.records.clear();
        if let Some(outer) = socket.transport.outer() {
            outer.close(&mut self.scratch.records);
        }
        let Some(web) = socket.transport.web() else { return };
        web.is_parting = true;
        web.end.get_or_insert((reason, String::new()));
        self.lengthen(now, key, CLOSING_TICKS);
        if self.scratch.records.is_empty() || self.write_raw(now, key) {
            self.finish_parting(key);
        }
    }

    /// A parting socket whose bytes are all sent says its end.
    pub(super) fn finish_parting(&mut self, key: SlotKey) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let is_parting = socket.transport.web().is_some_and(|web| web.is_parting);
        if is_parting && socket.unsent_bytes() == 0 {
            socket.shutdown();
        }
    }

    /// A request becomes a WebSocket.
    fn upgrade(&mut self, now: Now, key: SlotKey, answer: &ResponseHead) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let peer = socket.peer;
        let Some(web) = socket.transport.web() else { return };
        // A socket that was welcome for another's tunnel (a proxy's) has given its place back.
        if !web.is_strange
            && !(self.handshakes.has_room() && self.handshakes.begin(Some(peer.ip()), now.tick))
        {
            web.manner.closes = true;
            let full = ResponseHead::new(503).with("Retry-After", "2");
            web.asked =
                known(Reply::sentence(full, "Too many handshakes are in flight; try again in a moment."));
            return;
        }
        web.is_strange = true;
        self.note_handshakes();
        let mut bytes = Vec::new();
        if answer.encode(&mut bytes).is_err() {
            return self.end_socket(now, key, CloseReason::TransportError, "an answer could not be written");
        }
        self.metrics.count_answer(answer.status);
        if !self.write_covered(now, key, &bytes) {
            return;
        }
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let frames = Transport::WebSocket(Box::new(WebSocket {
            outer: None,
            decoder: Decoder::new(Side::Server),
            has_closed: false,
        }));
        let Transport::Web(web) = std::mem::replace(&mut socket.transport, frames) else { return };
        let Web { outer, requests, .. } = *web;
        if let Transport::WebSocket(frames) = &mut socket.transport {
            frames.outer = outer;
        }
        self.socket_deadlines.cancel(key.index);
        if !self.begin_channel(now, key) {
            self.handshakes.end(Some(peer.ip()), None);
            return self.let_socket_go(now, key, CloseReason::TransportError, "");
        }
        tracing::debug!(target: HTTP_LOG, %peer, "a WebSocket begins");
        let rest = requests.into_rest();
        if !rest.is_empty() {
            let bytes = rest.len().min(self.scratch.received.len());
            self.scratch.received[..bytes].copy_from_slice(&rest[..bytes]);
            self.hear_frames(now, key, bytes);
        }
    }

    /// Bytes of a WebSocket.
    fn hear_frames(&mut self, now: Now, key: SlotKey, bytes: usize) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let Transport::WebSocket(frames) = &mut socket.transport else { return };
        let Some(channel) = socket.channel else { return };
        let mut controls = Vec::new();
        self.scratch.unwrapped.clear();
        let decoded = frames.decoder.decode(
            &mut self.scratch.received[..bytes],
            &mut self.scratch.unwrapped,
            &mut controls,
        );
        let bytes = self.scratch.take_unwrapped();
        if bytes > 0 {
            self.hear_channel(now, key, channel, bytes);
        }
        for control in controls {
            match control {
                Control::Ping(payload) => self.say_control(now, key, &Control::Pong(payload)),
                Control::Pong(_) => {}
                Control::Close(_) => {
                    self.say_control(now, key, &Control::Close(Some(NORMAL)));
                    self.on_peer_closed(now, channel, CloseReason::PeerClosed);
                }
            }
        }
        if let Err(fault) = decoded {
            self.say_control(now, key, &Control::Close(Some(fault.code())));
            self.close_for(now, channel, CloseReason::BadWebSocket, &fault.to_string());
        }
    }

    /// Says a control frame.
    fn say_control(&mut self, now: Now, key: SlotKey, control: &Control) {
        let Some(Transport::WebSocket(frames)) =
            self.sockets.tenant_mut(key).map(|socket| &mut socket.transport)
        else {
            return;
        };
        if frames.has_closed {
            return;
        }
        frames.has_closed = matches!(control, Control::Close(_));
        let mut frame = Vec::new();
        websocket::encode_control(control, None, &mut frame);
        self.write_covered(now, key, &frame);
    }

    /// What a socket's road has to say when its channel's last bytes are written.
    pub(super) fn say_end(&mut self, now: Now, key: SlotKey) {
        self.say_control(now, key, &Control::Close(Some(NORMAL)));
        let Some(outer) = self.sockets.tenant_mut(key).and_then(|socket| socket.transport.outer()) else {
            return;
        };
        self.scratch.records.clear();
        outer.close(&mut self.scratch.records);
        self.write_raw(now, key);
    }

    /// Writes HTTP's own bytes, in the outer TLS if there is one; `false` when the socket is gone by that.
    fn write_covered(&mut self, now: Now, key: SlotKey, bytes: &[u8]) -> bool {
        let Some(socket) = self.sockets.tenant_mut(key) else { return false };
        let covered = socket.transport.cover(bytes, &mut self.scratch.wrapping);
        let flushed = socket.write(covered);
        self.metrics.sent_bytes.add(bytes.len() as u64);
        self.on_flushed(now, key, flushed);
        self.sockets.tenant(key).is_some()
    }

    /// Writes the scratch's records as they are; `false` when the socket is gone by that.
    fn write_raw(&mut self, now: Now, key: SlotKey) -> bool {
        let Some(socket) = self.sockets.tenant_mut(key) else { return false };
        let flushed = socket.write(&self.scratch.records);
        self.metrics.sent_bytes.add(self.scratch.records.len() as u64);
        self.on_flushed(now, key, flushed);
        self.sockets.tenant(key).is_some()
    }
}

fn known(reply: Reply) -> Asked {
    Asked::Known(Box::new(reply))
}
