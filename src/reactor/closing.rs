//! How channels end: in good order, at once, or for a fault.
//!
//! A channel that is closed in good order says close_notify, what waits is sent, and then its socket is let go; a peer that does
//! not read gets a few seconds. Every end is counted and logged once, by its reason.

use std::io;
use std::net::SocketAddr;

use bgb_hub::{CloseReason, Now, Tick};

use super::admission::Opening;
use super::channel::{Carrier, Channel, ChannelState};
use super::closing_log::Closing;
use super::layer::Stage;
use super::slots::SlotKey;
use super::transport::Transport;
use super::{CLOSING_TICKS, Reactor, hub_key};
use crate::metrics::RoadName;
use crate::tls::TlsFault;

impl Reactor {
    /// TLS or the peer's certificate is at fault: TLS's alert has been sent; where only the certificate is not one of ours, close_notify
    /// is all that is said.
    pub(super) fn fail(&mut self, now: Now, channel: SlotKey, fault: &TlsFault) {
        self.close_for(now, channel, fault.reason(), &fault.detail);
    }

    /// The peer has closed its half: agents say good-bye first, and nothing that we could still send would be answered.
    pub(super) fn on_peer_closed(&mut self, now: Now, channel: SlotKey, reason: CloseReason) {
        match self.channels.tenant(channel).map(|channel| channel.state) {
            Some(ChannelState::Closing(reason)) => self.end(now, channel, reason),
            Some(_) => self.close(now, channel, reason),
            None => {}
        }
    }

    /// A device's handshake is over, and there is no seat for it: the hub never hears of it, and it hears why.
    pub(super) fn turn_away(&mut self, now: Now, channel_key: SlotKey, reason: CloseReason) {
        if self.shard.put_refusal(reason, &mut self.scratch.frame) {
            self.seal_and_send(now, channel_key);
        }
        self.close(now, channel_key, reason);
    }

    /// A handshake has succeeded, failed or been given up: its peer may begin another.
    pub(super) fn on_handshake_over(&mut self, peer: SocketAddr, answered: Option<Opening>) {
        self.handshakes.end(Some(peer.ip()), answered);
        self.note_handshakes();
    }

    /// Where a channel's peer is, as far as is known.
    pub(super) fn peer_of(&self, channel_key: SlotKey) -> Option<SocketAddr> {
        match &self.channels.tenant(channel_key)?.carrier {
            Carrier::Socket(key) => self.sockets.tenant(*key).map(|socket| socket.peer),
            Carrier::Tunnel(end) => Some(end.peer),
        }
    }

    /// Ends a channel in good order: close_notify, what waits is sent, then the socket is closed.
    pub(super) fn close(&mut self, now: Now, channel_key: SlotKey, reason: CloseReason) {
        self.close_for(now, channel_key, reason, "");
    }

    pub(super) fn close_for(&mut self, now: Now, channel_key: SlotKey, reason: CloseReason, detail: &str) {
        let peer = self.peer_of(channel_key);
        let Some(channel) = self.channels.tenant_mut(channel_key) else { return };
        let (former, stage, road) = (channel.state, channel.stage(), channel.road);
        if let ChannelState::Closing(_) = former {
            return;
        }
        channel.begin_closing(reason);
        let (device, socket) = (channel.device, channel.socket());
        self.scratch.records.clear();
        channel.close(&mut self.scratch.records);
        self.deadlines.arm(channel_key.index, Tick(now.tick.0 + CLOSING_TICKS));
        if let Some(peer) = peer {
            self.note_closing(now, &Closing { peer, device, reason, detail });
            self.let_go(now, channel_key, (former, stage, road), peer, reason);
        }
        let Some(key) = socket else {
            self.push_down(now, channel_key, false);
            if self.channels.tenant(channel_key).is_some_and(Channel::has_given_all) {
                self.end(now, channel_key, reason);
            }
            return;
        };
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let bytes = socket.transport.wrap_last(&self.scratch.records, &mut self.scratch.wrapping);
        self.metrics.sent_bytes.add(bytes.len() as u64);
        let flushed = socket.write(bytes);
        // Where all is sent, that is the end.
        self.on_flushed(now, key, flushed);
    }

    /// A closing channel has nothing left to send on its socket.
    pub(super) fn finish_closing(&mut self, channel_key: SlotKey, now: Now) {
        let Some(channel) = self.channels.tenant(channel_key) else { return };
        if let ChannelState::Closing(reason) = channel.state {
            if let Some(socket) = channel.socket().and_then(|key| self.sockets.tenant_mut(key)) {
                socket.shutdown();
                socket.read_over(&mut self.scratch.received);
            }
            self.end(now, channel_key, reason);
        }
    }

    /// Lets a channel and its socket go at once.
    pub(super) fn end(&mut self, now: Now, channel_key: SlotKey, reason: CloseReason) {
        self.end_with(now, channel_key, reason, "");
    }

    fn end_with(&mut self, now: Now, channel_key: SlotKey, reason: CloseReason, detail: &str) {
        let peer = self.peer_of(channel_key);
        let Some(channel) = self.channels.remove(channel_key) else { return };
        self.deadlines.cancel(channel_key.index);
        if let Some(peer) = peer {
            if !matches!(channel.state, ChannelState::Closing(_)) {
                self.note_closing(now, &Closing { peer, device: channel.device, reason, detail });
            }
            let former = (channel.state, channel.stage(), channel.road);
            self.let_go(now, channel_key, former, peer, reason);
        }
        match channel.carrier {
            Carrier::Socket(key) => self.drop_socket(key),
            Carrier::Tunnel(end) => self.on_tunnel_over(now, *end),
        }
    }

    /// Ends a socket, and the channel that it alone carries.
    pub(super) fn end_socket(&mut self, now: Now, key: SlotKey, reason: CloseReason, detail: &str) {
        let Some(socket) = self.sockets.tenant(key) else { return };
        match socket.channel {
            Some(channel) => match self.channels.tenant(channel).map(|channel| channel.state) {
                Some(ChannelState::Closing(former)) => self.end(now, channel, former),
                _ => self.end_with(now, channel, reason, detail),
            },
            None => self.let_socket_go(now, key, reason, detail),
        }
    }

    /// Lets a socket go that carries no channel.
    pub(super) fn let_socket_go(&mut self, now: Now, key: SlotKey, reason: CloseReason, detail: &str) {
        self.lose_asked(now, key);
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let peer = socket.peer;
        let noted = socket.transport.web().and_then(|web| web.end.take());
        if let Transport::Introduced(..) = socket.transport {
            self.handshakes.end(None, None);
            self.note_handshakes();
        }
        self.give_place_back(key);
        let (reason, detail) = noted.as_ref().map_or((reason, detail), |(reason, detail)| (*reason, detail));
        self.note_closing(now, &Closing { peer, device: None, reason, detail });
        self.socket_deadlines.cancel(key.index);
        self.drop_socket(key);
    }

    fn drop_socket(&mut self, key: SlotKey) {
        if let Some(mut socket) = self.sockets.remove(key) {
            socket.deregister(self.poll.registry());
            self.room.leave();
        }
        self.metrics.connections.set(self.sockets.len() as u64);
    }

    /// Counts and logs an end.
    pub(super) fn note_closing(&mut self, now: Now, closing: &Closing<'_>) {
        self.metrics.count_close(closing.reason);
        self.closing_log.say(now.tick, closing);
    }

    /// Gives back what a channel had in its state, and tells the hub if it knew it.
    fn let_go(
        &mut self,
        now: Now,
        channel_key: SlotKey,
        (state, stage, road): (ChannelState, Option<Stage>, Option<RoadName>),
        peer: SocketAddr,
        reason: CloseReason,
    ) {
        match state {
            ChannelState::Handshaking => self.on_handshake_over(peer, stage.and_then(Stage::answered)),
            ChannelState::Open => {
                self.room.free_seat();
                road.into_iter().for_each(|road| self.metrics.end_session(road));
                self.shard.handle_closed(now, hub_key(channel_key), reason);
            }
            ChannelState::Closing(_) => {}
        }
    }
}

/// What an error of a read or a write says of the other end.
pub(super) fn transport_fault(error: &io::Error) -> CloseReason {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => CloseReason::Reset,
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            CloseReason::Unreachable
        }
        _ => CloseReason::TransportError,
    }
}
