//! How channels end: in good order, at once, or for a fault.
//!
//! A channel that is closed in good order says close_notify, what waits is sent, and then its socket is let go; a peer that does
//! not read gets a few seconds. Every end is counted and logged once, by its reason.

use std::io;
use std::net::SocketAddr;

use bgb_hub::{CloseReason, Now, Tick};

use super::admission::Opening;
use super::channel::ChannelState;
use super::closing_log::Closing;
use super::slots::SlotKey;
use super::{CLOSING_TICKS, Reactor, hub_key};
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
        self.handshakes.end(peer.ip(), answered);
        self.metrics.handshakes_in_flight.set(self.handshakes.in_flight() as u64);
    }

    /// Ends a channel in good order: close_notify, what waits is sent, then the socket is closed.
    pub(super) fn close(&mut self, now: Now, channel_key: SlotKey, reason: CloseReason) {
        self.close_for(now, channel_key, reason, "");
    }

    fn close_for(&mut self, now: Now, channel_key: SlotKey, reason: CloseReason, detail: &str) {
        let Some(channel) = self.channels.tenant_mut(channel_key) else { return };
        let former = channel.state;
        if let ChannelState::Closing(_) = former {
            return;
        }
        channel.state = ChannelState::Closing(reason);
        let (key, device) = (channel.socket, channel.device);
        self.scratch.records.clear();
        channel.close(&mut self.scratch.records);
        self.deadlines.arm(channel_key.index, Tick(now.tick.0 + CLOSING_TICKS));
        if let Some(peer) = self.sockets.tenant(key).map(|socket| socket.peer) {
            self.note_closing(now, &Closing { peer, device, reason, detail });
        }
        self.let_go(now, channel_key, former, key, reason);
        self.send_records(now, key);
        if self.sockets.tenant(key).is_some_and(|socket| socket.unsent_bytes() == 0) {
            self.finish_closing(channel_key, now);
        }
    }

    /// A closing channel has nothing left to send.
    pub(super) fn finish_closing(&mut self, channel_key: SlotKey, now: Now) {
        let Some(channel) = self.channels.tenant(channel_key) else { return };
        if let ChannelState::Closing(reason) = channel.state {
            if let Some(socket) = self.sockets.tenant_mut(channel.socket) {
                socket.shutdown();
            }
            self.end(now, channel_key, reason);
        }
    }

    /// Lets a channel and its socket go at once.
    pub(super) fn end(&mut self, now: Now, channel_key: SlotKey, reason: CloseReason) {
        let Some(channel) = self.channels.remove(channel_key) else { return };
        self.deadlines.cancel(channel_key.index);
        let peer = self.sockets.tenant(channel.socket).map(|socket| socket.peer);
        if let Some(peer) = peer.filter(|_| !matches!(channel.state, ChannelState::Closing(_))) {
            self.note_closing(now, &Closing { peer, device: channel.device, reason, detail: "" });
        }
        self.let_go(now, channel_key, channel.state, channel.socket, reason);
        if let Some(mut socket) = self.sockets.remove(channel.socket) {
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
        state: ChannelState,
        socket: SlotKey,
        reason: CloseReason,
    ) {
        match state {
            ChannelState::Handshaking { stage, .. } => {
                if let Some(peer) = self.sockets.tenant(socket).map(|socket| socket.peer) {
                    self.on_handshake_over(peer, stage.answered());
                }
            }
            ChannelState::Open => {
                self.room.free_seat();
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
