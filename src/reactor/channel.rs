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

use super::admission::{Opening, Step};
use super::slots::SlotKey;
use crate::tls::{Established, TlsContext, TlsFault, TlsSession};

/// Most bytes that a peer may send before it has shown who it is: a ClientHello with the hybrid key share (some 1,600 bytes), a
/// resumption ticket, and a certificate with its proof fit several times.
pub const HANDSHAKE_BYTES_MAX: usize = 8 * 1024;

/// Messages that a device may send in one go: after a long time without a server it says hello, and a hint or two and a result for each
/// of the 1,000 tasks that can be active.
const MESSAGES_MAX: u16 = 4_096;

/// Messages that it may send in a second in the long run; a device that does its tasks sends a few in a minute.
const MESSAGES_PER_SECOND: u64 = 20;

/// How far a channel has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// TLS is being set up.
    Handshaking {
        /// Bytes from the peer that TLS has been fed.
        bytes: u32,
        /// Whose turn it is.
        stage: Stage,
    },
    /// The hub knows it.
    Open,
    /// Nothing is read any more; what waits is sent.
    Closing(CloseReason),
}

/// How far a handshake has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The peer has not said its whole hello.
    Silent,
    /// It has, and waits for our first answer.
    InLine(Opening),
    /// It is to show who it is.
    Answered(Opening),
}

impl Stage {
    /// How it began, if it was answered.
    #[must_use]
    pub fn answered(self) -> Option<Opening> {
        match self {
            Self::Answered(opening) => Some(opening),
            Self::Silent | Self::InLine(_) => None,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Channel {
    /// The socket that carries it.
    pub socket: SlotKey,
    /// How far it has got.
    pub state: ChannelState,
    /// Whose it is, once it has shown that.
    pub device: Option<DeviceId>,
    tls: TlsSession,
    partial: Vec<u8>,
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
    pub fn new(socket: SlotKey, tls: TlsSession) -> Self {
        let allowance = Allowance { messages: MESSAGES_MAX, filled: Tick(0) };
        Self {
            socket,
            state: ChannelState::Handshaking { bytes: 0, stage: Stage::Silent },
            device: None,
            tls,
            partial: Vec::new(),
            allowance,
        }
    }

    /// Whether its peer is not known yet.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        matches!(self.state, ChannelState::Handshaking { .. })
    }

    /// How far its handshake has got, if it is not over.
    #[must_use]
    pub fn stage(&self) -> Option<Stage> {
        match self.state {
            ChannelState::Handshaking { stage, .. } => Some(stage),
            ChannelState::Open | ChannelState::Closing(_) => None,
        }
    }

    /// Counts a message; `false` when the peer has sent more than it may.
    pub fn spend_message(&mut self, now: Tick) -> bool {
        self.allowance.spend(now)
    }

    /// Takes bytes from the socket; what was inside is appended to `plaintext`, and what TLS itself answers to `records`.
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
        let ChannelState::Handshaking { bytes, stage } = self.state else {
            let peer_closed = self.tls.feed(received, plaintext, records)?.peer_closed;
            return Ok((Progress::Open, peer_closed));
        };
        // No more than a handshake may have goes in before it is seen whether that was enough: a stranger's flood costs no parsing.
        let bytes = bytes as usize;
        let (first, rest) = received.split_at_mut(received.len().min(HANDSHAKE_BYTES_MAX - bytes));
        let unsaid = records.len();
        let fed = self.tls.feed(first, plaintext, records)?;
        if let Some(established) = fed.established {
            let peer_closed = fed.peer_closed || self.tls.feed(rest, plaintext, records)?.peer_closed;
            return Ok((Progress::Opened(established), peer_closed));
        }
        let bytes = bytes + first.len();
        if !rest.is_empty() {
            return Err(TlsFault::handshake_too_long(bytes + rest.len()));
        }
        let stage = match stage {
            Stage::InLine(opening) if records.len() > unsaid => Stage::Answered(opening),
            same => same,
        };
        self.state = ChannelState::Handshaking { bytes: bytes as u32, stage };
        Ok((Progress::Handshaking, fed.peer_closed))
    }

    /// Keeps what a peer says that is not known yet, until its step is due; the step says what that will be. `None` while the peer has not said
    /// its whole hello: until then it is not known whether it shows a ticket, and nothing waits for us.
    pub fn wait_with(&mut self, received: &[u8], tls: &TlsContext) -> Option<Step> {
        self.partial.extend_from_slice(received);
        let ChannelState::Handshaking { stage, .. } = &mut self.state else { return None };
        if *stage == Stage::Silent
            && (tls.is_whole(&self.partial) || self.partial.len() >= HANDSHAKE_BYTES_MAX)
        {
            let opening = if tls.resumes(&self.partial) { Opening::Resumed } else { Opening::Full };
            *stage = Stage::InLine(opening);
        }
        match *stage {
            Stage::Silent => None,
            Stage::InLine(opening) => Some(Step::Begins(opening)),
            Stage::Answered(_) => Some(Step::GoesOn),
        }
    }

    /// How many bytes are kept of a peer that is not known.
    #[must_use]
    pub fn kept(&self) -> Option<usize> {
        self.is_handshaking().then_some(self.partial.len())
    }

    /// Moves what was kept to the beginning of `received`; gives its length.
    pub fn waited_with(&mut self, received: &mut [u8]) -> usize {
        let held = std::mem::take(&mut self.partial);
        received[..held.len()].copy_from_slice(&held);
        held.len()
    }

    /// What was left of the bytes before, and `plaintext` after it.
    pub fn join<'a>(&mut self, plaintext: &'a [u8]) -> Cow<'a, [u8]> {
        let mut held = std::mem::take(&mut self.partial);
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
        self.partial = match stream {
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
