//! The server's end of a tunnel.
//!
//! ```text
//!  down:   acknowledged | given, and kept until it is      | waits
//!          -------------+----------------------------------+---------
//!                      base                               given      base + kept
//! ```
//!
//! `A` is whoever asks: the caller's way back to the socket whose request it was. Laws: no byte up is taken twice or out of order; a byte down is kept until a
//! GET's offset says that it arrived; of two GETs the later one is held.

use thiserror::Error;

/// Bytes of one answer at the most.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// An offset that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Misstep {
    /// Bytes up from beyond those that were taken.
    #[error("bytes were left out: what was sent begins beyond what was taken")]
    Skipped,
    /// Bytes down that were acknowledged, or never given.
    #[error("the offset is not between what was acknowledged and what was given")]
    Offset,
}

/// See the module.
#[derive(Debug)]
pub struct Tunnel<A> {
    /// Bytes up that were taken.
    received: u64,
    /// The offset of the first byte of `kept`.
    base: u64,
    /// The highest offset up to which bytes were given.
    given: u64,
    kept: Vec<u8>,
    held: Option<A>,
}

impl<A> Default for Tunnel<A> {
    fn default() -> Self {
        Self { received: 0, base: 0, given: 0, kept: Vec::new(), held: None }
    }
}

impl<A> Tunnel<A> {
    /// The offset up to which bytes up were taken.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes up came, the first of which has the offset `from`: those of them that are new.
    ///
    /// # Errors
    /// When bytes before them did not come.
    pub fn take<'a>(&mut self, from: u64, bytes: &'a [u8]) -> Result<&'a [u8], Misstep> {
        let known = self.received.checked_sub(from).ok_or(Misstep::Skipped)?;
        let known = usize::try_from(known).map_or(bytes.len(), |known| known.min(bytes.len()));
        let new = &bytes[known..];
        self.received += new.len() as u64;
        Ok(new)
    }

    /// Whether [`take`](Self::take) would take bytes from there.
    ///
    /// # Errors
    /// When bytes before them did not come.
    pub fn check(&self, from: u64) -> Result<(), Misstep> {
        if from > self.received { Err(Misstep::Skipped) } else { Ok(()) }
    }

    /// Somebody asks for the bytes from `from` on, and is held until [`answer`](Self::answer) has some for it. Gives whoever was held before, and gets
    /// nothing any more.
    ///
    /// # Errors
    /// When that is no offset from which bytes can be had; whoever is held stays so.
    pub fn ask(&mut self, from: u64, asker: A) -> Result<Option<A>, Misstep> {
        if from < self.base || from > self.given {
            return Err(Misstep::Offset);
        }
        let arrived = (from - self.base) as usize;
        if arrived == self.kept.len() {
            self.kept = Vec::new();
        } else {
            self.kept.drain(..arrived);
        }
        self.base = from;
        Ok(self.held.replace(asker))
    }

    /// Bytes go down.
    pub fn push(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
    }

    /// The offset up to which bytes down are known to have arrived.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.base
    }

    /// Bytes that are not known to have arrived.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.kept.len()
    }

    /// Whether all that went down was given at least once.
    #[must_use]
    pub fn has_given_all(&self) -> bool {
        self.given == self.base + self.kept.len() as u64
    }

    /// Whether somebody is held.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Who is held gets what there is: it, its offset, and the bytes. `None` when nobody is held, or there is nothing.
    pub fn answer(&mut self) -> Option<(A, u64, &[u8])> {
        if self.kept.is_empty() {
            return None;
        }
        let asker = self.held.take()?;
        let bytes = &self.kept[..self.kept.len().min(ANSWER_BYTES_MAX)];
        self.given = self.given.max(self.base + bytes.len() as u64);
        Some((asker, self.base, bytes))
    }

    /// Who is held is let go, with its offset.
    pub fn let_go(&mut self) -> Option<(A, u64)> {
        self.held.take().map(|asker| (asker, self.base))
    }
}

impl<A: PartialEq> Tunnel<A> {
    /// An asker is gone: nothing is given to it. `false` when it was not held.
    pub fn lose(&mut self, asker: &A) -> bool {
        self.held.take_if(|held| held == asker).is_some()
    }
}

#[cfg(test)]
mod tests;
