//! The outer TLS of HTTPS on a socket: its handshake, and what it covers.
//!
//! It proves nothing of the peer. So its handshake waits for its step like everybody else's, earns nothing when it is over, and leaves the socket the
//! stranger's that it was.

use bgb_hub::{CloseReason, Now};

use super::Reactor;
use super::admission::{Step, Waiter};
use super::layer::Stage;
use super::reading::LINE_TICKS;
use super::slots::SlotKey;
use super::socket::Reading;
use super::transport::Transport;
use crate::tls::TlsFault;

impl Reactor {
    /// Bytes came on a socket that speaks HTTP, or will; they are at the beginning of the scratch.
    pub(super) fn hear_socket(&mut self, now: Now, key: SlotKey, bytes: usize) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        if let Transport::Introduced(..) = socket.transport {
            return self.hear_introduction(now, key, bytes);
        }
        match socket.transport.outer() {
            None => self.hear_uncovered(now, key, bytes),
            Some(outer) if outer.is_up() => self.uncover(now, key, bytes),
            Some(outer) => {
                let was_silent = outer.stage() == Stage::Silent;
                let step = outer.wait_with(&self.scratch.received[..bytes], None);
                if let Some(too_much) = outer.kept_too_much() {
                    let fault = TlsFault::handshake_too_long(too_much);
                    return self.let_socket_go(now, key, fault.reason(), &fault.detail);
                }
                // Who has closed its half without an answer goes no further; of others the last word may be an alert, or all that they ask.
                let is_read_closed = socket.read_closed;
                let goes_on = |step: &Step| matches!(step, Step::GoesOn) || !is_read_closed;
                let Some(step) = step.filter(goes_on) else { return };
                socket.reading = Reading::InLine;
                if was_silent {
                    self.give_time(now, key, LINE_TICKS);
                }
                self.stand_in_line(Waiter::Socket(key), step);
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
            self.uncover(now, key, bytes);
        }
    }

    fn uncover(&mut self, now: Now, key: SlotKey, bytes: usize) {
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
                self.give_time(now, key, patience);
            }
            // Its place remains taken: who is there is still to be shown, inside.
            (Some(opening), _) if is_up && !was_up => {
                self.handshakes.settle(opening);
                let patience = self.patience();
                self.give_stranger_time(now, key, patience);
            }
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
                    self.hear_uncovered(now, key, bytes);
                }
                if fed.peer_closed {
                    self.on_outer_closed(now, key);
                }
            }
        }
    }

    /// The peer says no more in the outer TLS. Requests that it has said before that and that wait for their turn are served first.
    fn on_outer_closed(&mut self, now: Now, key: SlotKey) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let is_unsent = socket.unsent_bytes() > 0;
        match socket.transport.web().filter(|web| web.is_owed(is_unsent)) {
            Some(web) => web.end = Some((CloseReason::PeerClosed, String::new())),
            None => self.on_half_closed(now, key, CloseReason::PeerClosed),
        }
    }

    /// HTTP's own bytes, at the beginning of the scratch.
    fn hear_uncovered(&mut self, now: Now, key: SlotKey, bytes: usize) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        match &mut socket.transport {
            Transport::WebSocket(_) => self.hear_frames(now, key, bytes),
            Transport::Web(web) if !web.is_parting() => {
                web.requests.hear(&self.scratch.received[..bytes]);
                self.take_requests(now, key);
            }
            Transport::Web(_) | Transport::Raw | Transport::Introduced(..) => {}
        }
    }

    /// Writes HTTP's own bytes, in the outer TLS if there is one; `false` when the socket is gone by that.
    pub(super) fn write_covered(&mut self, now: Now, key: SlotKey, bytes: &[u8]) -> bool {
        let Some(socket) = self.sockets.tenant_mut(key) else { return false };
        let covered = socket.transport.cover(bytes, &mut self.scratch.wrapping);
        self.metrics.sent_bytes.add(covered.len() as u64);
        let flushed = socket.write(covered);
        self.on_flushed(now, key, flushed);
        self.sockets.tenant(key).is_some()
    }

    /// Writes the scratch's records as they are; `false` when the socket is gone by that.
    pub(super) fn write_raw(&mut self, now: Now, key: SlotKey) -> bool {
        let Some(socket) = self.sockets.tenant_mut(key) else { return false };
        let flushed = socket.write(&self.scratch.records);
        self.metrics.sent_bytes.add(self.scratch.records.len() as u64);
        self.on_flushed(now, key, flushed);
        self.sockets.tenant(key).is_some()
    }
}
