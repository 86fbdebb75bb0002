//! One layer of TLS on its way from a stranger's first byte to a session: the device's own, or the outer one of HTTPS.
//!
//! ```text
//!  Silent --its hello is whole--> InLine --its step was due, and it has our answer--> Answered --> up
//! ```
//!
//! What a peer says before TLS is up costs us a dozen pushes to answer. So it is kept until its step is due ([`super::admission`]), and there is an end to
//! how much of it there may be.

use super::admission::{Opening, Step};
use crate::tls::{Fed, TlsContext, TlsFault, TlsSession};

/// Most bytes that a peer may send before it has shown who it is: a ClientHello with the hybrid key share (some 1,600 bytes), a
/// resumption ticket, and a certificate with its proof fit several times.
pub const HANDSHAKE_BYTES_MAX: usize = 8 * 1024;

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
pub struct Layer {
    tls: TlsSession,
    stage: Stage,
    is_up: bool,
    /// Bytes from the peer that TLS has been fed before it was up: [`HANDSHAKE_BYTES_MAX`] at the most.
    fed_bytes: u16,
    /// Before TLS is up, what waits for its step. Afterwards it is its owner's.
    pub kept: Vec<u8>,
}

impl Layer {
    /// A layer that waits for its peer's first bytes.
    #[must_use]
    pub fn new(tls: TlsSession) -> Self {
        Self { tls, stage: Stage::Silent, is_up: false, fed_bytes: 0, kept: Vec::new() }
    }

    /// Whether its handshake is over.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// How far its handshake has got, or had when it was over.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Keeps what a peer says that is not known yet, until its step is due; the step says what that will be. `None` while the peer has not said
    /// its whole hello: until then it is not known whether it shows a ticket, and nothing waits for us. An outer layer's peer shows none: `tls` is `None`.
    pub fn wait_with(&mut self, received: &[u8], tls: Option<&TlsContext>) -> Option<Step> {
        // One more than may be says that it is too much.
        self.kept.extend_from_slice(&received[..received.len().min(self.room())]);
        if self.stage == Stage::Silent
            && (TlsContext::is_whole(&self.kept) || self.kept.len() >= HANDSHAKE_BYTES_MAX)
        {
            let resumes = tls.is_some_and(|tls| tls.resumes(&self.kept));
            self.stage = Stage::InLine(if resumes { Opening::Resumed } else { Opening::Full });
        }
        match self.stage {
            Stage::Silent => None,
            Stage::InLine(opening) => Some(Step::Begins(opening)),
            Stage::Answered(_) => Some(Step::GoesOn),
        }
    }

    /// Whether more was kept than a handshake may have; how much.
    #[must_use]
    pub fn kept_too_much(&self) -> Option<usize> {
        Some(self.kept.len()).filter(|kept| *kept > HANDSHAKE_BYTES_MAX)
    }

    /// Forgets what was kept: the layer's owner is closing, and no step of it will be due.
    pub fn forget(&mut self) {
        self.kept = Vec::new();
    }

    /// How many bytes are worth reading of a peer that is not known: one more than it may have.
    #[must_use]
    pub fn room(&self) -> usize {
        HANDSHAKE_BYTES_MAX + 1 - self.kept.len().min(HANDSHAKE_BYTES_MAX)
    }

    /// Moves what was kept to the beginning of `received`; gives its length.
    pub fn waited_with(&mut self, received: &mut [u8]) -> usize {
        let held = std::mem::take(&mut self.kept);
        received[..held.len()].copy_from_slice(&held);
        held.len()
    }

    /// Takes bytes as they came; what was inside is appended to `plaintext`, and what TLS itself answers to `records`.
    ///
    /// # Errors
    /// Why the layer ends. Where TLS itself is at fault the alert that says so is in `records`; else close_notify is to follow.
    pub fn feed(
        &mut self,
        received: &mut [u8],
        plaintext: &mut Vec<u8>,
        records: &mut Vec<u8>,
    ) -> Result<Fed, TlsFault> {
        if self.is_up {
            return self.tls.feed(received, plaintext, records);
        }
        // No more than a handshake may have goes in before it is seen whether that was enough: a stranger's flood costs no parsing.
        let fed_bytes = usize::from(self.fed_bytes);
        let (first, rest) = received.split_at_mut(received.len().min(HANDSHAKE_BYTES_MAX - fed_bytes));
        let unsaid = records.len();
        let mut fed = self.tls.feed(first, plaintext, records)?;
        if fed.is_up {
            self.is_up = true;
            fed.peer_closed |= self.tls.feed(rest, plaintext, records)?.peer_closed;
            return Ok(fed);
        }
        let fed_bytes = fed_bytes + first.len();
        if !rest.is_empty() {
            return Err(TlsFault::handshake_too_long(fed_bytes + rest.len()));
        }
        if let Stage::InLine(opening) = self.stage
            && records.len() > unsaid
        {
            self.stage = Stage::Answered(opening);
        }
        self.fed_bytes = fed_bytes as u16;
        Ok(fed)
    }

    /// Seals `plaintext`; its records are appended to `records`.
    pub fn seal(&mut self, plaintext: &[u8], records: &mut Vec<u8>) {
        self.tls.seal(plaintext, records);
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
