//! WebSockets: how a request becomes one, and its frames.

use bgb_http::ResponseHead;
use bgb_http::websocket::{self, Control};
use bgb_hub::{CloseReason, Now};

use super::Reactor;
use super::channel::Channel;
use super::slots::SlotKey;
use super::transport::{Transport, Web, WebSocket};
use crate::HTTP_LOG;

/// Whoever breaks the server's own rules, and not the protocol's (RFC 6455, 7.4.1).
const AGAINST_POLICY: u16 = 1008;

impl Reactor {
    /// A request becomes a WebSocket.
    pub(super) fn upgrade(&mut self, now: Now, key: SlotKey, answer: &ResponseHead) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let peer = socket.peer;
        let Some(web) = socket.transport.web() else { return };
        // A socket that was welcome for another's tunnel (a proxy's) has given its place back.
        let has_place = web.strange_until.is_some()
            || self.handshakes.has_room() && self.handshakes.begin(Some(peer.ip()), now.tick);
        if !has_place {
            return self.refuse_for_now(now, key);
        }
        web.strange_until = Some(now.tick);
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
        let Transport::Web(web) = std::mem::replace(&mut socket.transport, Transport::Raw) else { return };
        let Web { outer, requests, .. } = *web;
        socket.transport = Transport::WebSocket(Box::new(WebSocket::new(outer)));
        self.socket_deadlines.cancel(key.index);
        if !self.begin_channel(now, key) {
            self.handshakes.end(Some(peer.ip()), None);
            return self.let_socket_go(now, key, CloseReason::TransportError, "");
        }
        tracing::debug!(target: HTTP_LOG, %peer, "a WebSocket begins");
        for piece in requests.into_rest().chunks(self.scratch.received.len()) {
            self.scratch.received[..piece.len()].copy_from_slice(piece);
            self.hear_frames(now, key, piece.len());
        }
    }

    /// Bytes of a WebSocket, at the beginning of the scratch.
    pub(super) fn hear_frames(&mut self, now: Now, key: SlotKey, bytes: usize) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let Transport::WebSocket(frames) = &mut socket.transport else { return };
        let Some(channel) = socket.channel else { return };
        let is_strange = self.channels.tenant(channel).is_some_and(Channel::is_handshaking);
        let mut controls = Vec::new();
        self.scratch.unwrapped.clear();
        let received = &mut self.scratch.received[..bytes];
        let decoded = frames.decoder.decode(received, &mut self.scratch.unwrapped, &mut controls);
        let has_closed = frames.decoder.is_closed();
        if let Err(fault) = &decoded {
            frames.closing_code = fault.code();
        }
        let data = self.scratch.take_unwrapped();
        // What breaks the protocol is said to be that, and what comes behind a close is nobody's any more.
        if is_strange && decoded.is_ok() && !has_closed && !frames.hear_stranger(bytes, data) {
            frames.closing_code = AGAINST_POLICY;
            let detail = "it sends WebSocket frames without a session's bytes";
            return self.close_for(now, channel, CloseReason::BadWebSocket, detail);
        }
        if data > 0 {
            self.hear_channel(now, key, channel, data);
        }
        let known = self.channels.tenant_mut(channel).filter(|_| !is_strange);
        let is_too_much =
            known.is_some_and(|channel| !controls.iter().all(|_| channel.spend_message(now.tick)));
        if is_too_much {
            return self.close(now, channel, CloseReason::TooManyMessages);
        }
        // Of several the last one is enough (RFC 6455, 5.5.3): whoever sends many gets no more than it reads.
        let ping = controls.into_iter().rev().find_map(|control| match control {
            Control::Ping(payload) => Some(payload),
            Control::Pong(_) | Control::Close(_) => None,
        });
        if let Some(payload) = ping.filter(|_| !has_closed) {
            self.say_pong(now, key, payload);
        }
        if let Err(fault) = decoded {
            self.close_for(now, channel, CloseReason::BadWebSocket, &fault.to_string());
        } else if has_closed {
            self.on_peer_closed(now, channel, CloseReason::PeerClosed);
        }
    }

    /// Answers a ping, when what was said before is sent.
    pub(super) fn say_pong(&mut self, now: Now, key: SlotKey, payload: Vec<u8>) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let Some(payload) = socket.say_afterwards(payload) else { return };
        if matches!(&socket.transport, Transport::WebSocket(frames) if !frames.has_closed) {
            let mut frame = Vec::new();
            websocket::encode_control(&Control::Pong(payload), None, &mut frame);
            self.write_covered(now, key, &frame);
        }
    }
}
