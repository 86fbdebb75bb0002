//! One device's byte stream: its TLS, the half of a frame that is still to come, and how far it has got.
//!
//! ```text
//! Handshaking --TLS is up, the peer is a device of the site--> Open --> Closing --what was left is sent--> gone
//!      \______________________ any fault ______________________________/
//! ```
//!
//! A channel knows frames as lengths of bytes; what they say is the shard's business. Between two frames it owns no buffer.

use std::borrow::Cow;

use bgb_hub::{CloseReason, TICK_MS, Tick};
use bgb_protocol::ids::DeviceId;

use super::admission::Step;
use super::layer::{Layer, Stage};
use super::slots::SlotKey;
use super::tunnels::TunnelEnd;
use crate::metrics::RoadName;
use crate::tls::{Established, TlsContext, TlsFault, TlsSession};

/// Messages that a device may send in one go: after a long time without a server it says hello, and a hint or two and a result for each
/// of the 1,000 tasks that can be active.
const MESSAGES_MAX: u16 = 4_096;

/// Messages that it may send in a second in the long run; a device that does its tasks sends a few in a minute.
const MESSAGES_PER_SECOND: u64 = 20;

/// How far a channel has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// TLS is being set up.
    Handshaking,
    /// The hub knows it.
    Open,
    /// Nothing is read any more; what waits is sent.
    Closing(CloseReason),
}

/// What carries a channel's bytes.
#[derive(Debug)]
pub enum Carrier {
    /// One socket, as long as either lives: TCP, or a WebSocket.
    Socket(SlotKey),
    /// Whatever sockets bring its requests: long-poll.
    Tunnel(Box<TunnelEnd>),
}

/// See the module.
#[derive(Debug)]
pub struct Channel {
    /// What carries it.
    pub carrier: Carrier,
    /// How far it has got.
    pub state: ChannelState,
    /// What it has said waits for its step of the handshake.
    pub is_in_line: bool,
    /// By which road it came, once its device is known.
    pub road: Option<RoadName>,
    /// Whose it is, once it has shown that.
    pub device: Option<DeviceId>,
    /// Its TLS; when that is up, what is kept there is half a frame.
    tls: Layer,
    allowance: Allowance,
}

/// Messages that the peer may still send: a bucket that time fills up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allowance {
    messages: u16,
    filled: Tick,
}

impl Allowance {
    fn spend(&mut self, now: Tick) -> bool {
        let gained = now.since(self.filled) * TICK_MS * MESSAGES_PER_SECOND / 1000;
        if gained > 0 {
            self.messages =
                MESSAGES_MAX.min(self.messages.saturating_add(u16::try_from(gained).unwrap_or(MESSAGES_MAX)));
            self.filled = now;
        }
        match self.messages.checked_sub(1) {
            Some(left) => {
                self.messages = left;
                true
            }
            None => false,
        }
    }
}

/// What came of bytes that were fed to a channel.
#[derive(Debug)]
pub enum Progress {
    /// The handshake goes on.
    Handshaking,
    /// The handshake is over, just now. The channel is open when the reactor has a seat for it.
    Opened(Box<Established>),
    /// Bytes of an open channel.
    Open,
}

impl Channel {
    /// A channel that waits for its peer's first bytes.
    #[must_use]
    pub fn new(carrier: Carrier, tls: TlsSession) -> Self {
        let allowance = Allowance { messages: MESSAGES_MAX, filled: Tick(0) };
        let state = ChannelState::Handshaking;
        let tls = Layer::new(tls);
        Self { carrier, state, is_in_line: false, road: None, device: None, tls, allowance }
    }

    /// Whether its peer is not known yet.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.state == ChannelState::Handshaking
    }

    /// Whether its peer has shown that it is a device of the site, also when it is closing since.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.device.is_some()
    }

    /// Whether it is in a tunnel that has ended and of which all was given at least once.
    #[must_use]
    pub fn has_given_all(&self) -> bool {
        match (&self.carrier, self.state) {
            (Carrier::Tunnel(tunnel), ChannelState::Closing(_)) => tunnel.has_given_all(),
            _ => false,
        }
    }

    /// It is to be closed: what it has said and nobody has read is forgotten.
    pub fn begin_closing(&mut self, reason: CloseReason) {
        self.state = ChannelState::Closing(reason);
        self.is_in_line = false;
        self.tls.forget();
    }

    /// How far its handshake has got, if it is not over.
    #[must_use]
    pub fn stage(&self) -> Option<Stage> {
        self.is_handshaking().then(|| self.tls.stage())
    }

    /// The socket that carries it, if it is one alone.
    #[must_use]
    pub fn socket(&self) -> Option<SlotKey> {
        match self.carrier {
            Carrier::Socket(key) => Some(key),
            Carrier::Tunnel(_) => None,
        }
    }

    /// Its tunnel, if it is in one.
    pub fn tunnel(&mut self) -> Option<&mut TunnelEnd> {
        match &mut self.carrier {
            Carrier::Socket(_) => None,
            Carrier::Tunnel(tunnel) => Some(tunnel),
        }
    }

    /// Counts a message; `false` when the peer has sent more than it may.
    pub fn spend_message(&mut self, now: Tick) -> bool {
        self.allowance.spend(now)
    }

    /// Takes bytes as they came; what was inside is appended to `plaintext`, and what TLS itself answers to `records`.
    /// The second value says whether the peer has closed its half.
    ///
    /// # Errors
    /// Why the channel ends. Where TLS itself is at fault the alert that says so is in `records`; else close_notify is to follow.
    pub fn feed(
        &mut self,
        received: &mut [u8],
        plaintext: &mut Vec<u8>,
        records: &mut Vec<u8>,
    ) -> Result<(Progress, bool), TlsFault> {
        let fed = self.tls.feed(received, plaintext, records)?;
        let progress = match fed.established {
            Some(established) => Progress::Opened(established),
            None if self.is_handshaking() => Progress::Handshaking,
            None => Progress::Open,
        };
        Ok((progress, fed.peer_closed))
    }

    /// Keeps what a peer says that is not known yet, until its step is due; see [`Layer::wait_with`].
    pub fn wait_with(&mut self, received: &[u8], tls: &TlsContext) -> Option<Step> {
        self.tls.wait_with(received, Some(tls))
    }

    /// The layer of a peer that is not known.
    #[must_use]
    pub fn strange_layer(&self) -> Option<&Layer> {
        self.is_handshaking().then_some(&self.tls)
    }

    /// Moves what was kept to the beginning of `received`; gives its length.
    pub fn waited_with(&mut self, received: &mut [u8]) -> usize {
        self.tls.waited_with(received)
    }

    /// What was left of the bytes before, and `plaintext` after it.
    pub fn join<'a>(&mut self, plaintext: &'a [u8]) -> Cow<'a, [u8]> {
        let mut held = std::mem::take(&mut self.tls.kept);
        if held.is_empty() {
            return Cow::Borrowed(plaintext);
        }
        // Appending keeps a frame that comes byte by byte linear in its length.
        held.extend_from_slice(plaintext);
        Cow::Owned(held)
    }

    /// Keeps what follows the first `taken` bytes of a stream that [`join`](Self::join) gave: half a frame at most.
    pub fn keep(&mut self, stream: Cow<'_, [u8]>, taken: usize) {
        if taken == stream.len() {
            return;
        }
        self.tls.kept = match stream {
            Cow::Borrowed(bytes) => bytes[taken..].to_vec(),
            Cow::Owned(mut bytes) => {
                bytes.drain(..taken);
                bytes
            }
        };
    }

    /// Seals a frame; its records are appended to `records`.
    pub fn seal(&mut self, frame: &[u8], records: &mut Vec<u8>) {
        self.tls.seal(frame, records);
    }

    /// Says close_notify.
    pub fn close(&mut self, records: &mut Vec<u8>) {
        self.tls.close(records);
    }

    /// Whether its keys have sealed nearly as many records as they may: it is to be closed.
    #[must_use]
    pub fn is_worn_out(&self) -> bool {
        self.tls.is_worn_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_and_a_flood_is_not() {
        let mut allowance = Allowance { messages: MESSAGES_MAX, filled: Tick(0) };
        assert!((0..MESSAGES_MAX).all(|_| allowance.spend(Tick(0))));
        assert!(!allowance.spend(Tick(0)));
        assert_eq!((0..100).filter(|_| allowance.spend(Tick(10))).count(), 20, "a second's worth");
        assert_eq!(
            (0..10_000).filter(|_| allowance.spend(Tick(1_000_000))).count(),
            usize::from(MESSAGES_MAX)
        );
    }
}
