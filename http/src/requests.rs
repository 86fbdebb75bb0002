//! Requests as a server hears them on one connection, one after the other.
//!
//! ```text
//!         head whole              body whole             answered
//!   Head -----------> Body ----------------------> Whole ---------> Head
//!      \__ no body ____________________________/
//! ```
//!
//! It owns the bytes that came and were not read yet: of a head that is not whole, or of requests that were sent before the one before them was answered
//! (pipelining, RFC 9112 section 9.3.2). A body is not kept: its bytes are given as they come. It does not know what a request asks for. Laws: what is
//! read does not depend on how the bytes were cut; after a fault nothing is read any more, since nobody knows where the next request would begin.

use thiserror::Error;

use crate::body::{BodyLength, ChunkDecoder, ChunkError};
use crate::head::{Decoded, HEAD_BYTES_MAX, HeadError};
use crate::request::RequestHead;

/// Bytes that may wait behind a request that is not answered yet: a head's worth.
const WAITING_BYTES_MAX: usize = HEAD_BYTES_MAX;

/// A head that is not whole is looked at with every piece up to here, so that whoever speaks another protocol is told at once; from here on only when
/// a line has ended, so that a head that drips in costs no more than its length.
const LOOKED_AT_BYTES: usize = 64;

/// What came next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A request's head.
    Head(Box<RequestHead>),
    /// Bytes of its body.
    Body,
    /// Its end: it is to be answered, and nothing is read before [`Requests::on_answered`].
    End,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestFault {
    /// A head is at fault.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// A body in the chunked coding is at fault.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// A body declares more than is taken.
    #[error("the body is longer than is taken here")]
    BodyTooLong,
}

impl RequestFault {
    /// The status by which a server answers before it closes the connection.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Head(fault) => fault.status(),
            Self::Chunk(fault) => fault.status(),
            Self::BodyTooLong => 413, // RFC 9110 section 15.5.14
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Requests {
    state: State,
    /// What came, and of which the first `read` bytes were read.
    came: Vec<u8>,
    read: usize,
    /// How much of the rest was looked at in vain.
    looked_at: usize,
    body_bytes_max: u64,
}

#[derive(Debug)]
enum State {
    Head,
    Body(Body),
    Ending,
    Whole,
    Failed(RequestFault),
}

#[derive(Debug)]
enum Body {
    Length(u64),
    Chunked(Box<ChunkDecoder>),
}

impl Requests {
    /// Before the first request. A body may have so many bytes.
    #[must_use]
    pub fn new(body_bytes_max: u64) -> Self {
        Self { state: State::Head, came: Vec::new(), read: 0, looked_at: 0, body_bytes_max }
    }

    /// Takes bytes as they came; [`next`](Self::next) reads them.
    pub fn hear(&mut self, bytes: &[u8]) {
        // What was read is dropped when that moves less than it drops: many small requests in one piece cost no more than their length.
        if self.read > self.came.len() / 2 {
            self.came.drain(..self.read);
            self.read = 0;
        }
        self.came.extend_from_slice(bytes);
    }

    /// What came and was not read.
    fn kept(&self) -> &[u8] {
        &self.came[self.read..]
    }

    /// Whether as much waits behind an unanswered request as may: no more is to be heard until it is answered.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.state, State::Whole) && self.kept().len() >= WAITING_BYTES_MAX
    }

    /// Whether a request has begun and was not answered.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !matches!(self.state, State::Head) || !self.kept().is_empty()
    }

    /// Whether a request is whole and waits for its answer.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self.state, State::Whole)
    }

    /// What came next; bytes of a body are appended to `body`. `None` when more has to come, or an answer has to go first.
    ///
    /// # Errors
    /// The connection is to be answered with [`RequestFault::status`] and closed; every later call gives the same.
    pub fn next(&mut self, body: &mut Vec<u8>) -> Result<Option<Part>, RequestFault> {
        self.read(body).inspect_err(|fault| self.state = State::Failed(*fault))
    }

    /// The request was answered: the next one may be read.
    pub fn on_answered(&mut self) {
        if let State::Whole = self.state {
            self.state = State::Head;
        }
    }

    /// What came behind the request's head, when the connection speaks another protocol from there on.
    #[must_use]
    pub fn into_rest(mut self) -> Vec<u8> {
        self.came.split_off(self.read)
    }

    fn read(&mut self, body: &mut Vec<u8>) -> Result<Option<Part>, RequestFault> {
        match &mut self.state {
            State::Head => self.read_head(),
            State::Body(Body::Length(left)) => {
                let kept = &self.came[self.read..];
                let taken = usize::try_from(*left).map_or(kept.len(), |left| left.min(kept.len()));
                if taken == 0 {
                    return Ok(None);
                }
                *left -= taken as u64;
                if *left == 0 {
                    self.state = State::Ending;
                }
                body.extend_from_slice(&kept[..taken]);
                self.drop_read(taken);
                Ok(Some(Part::Body))
            }
            State::Body(Body::Chunked(decoder)) => {
                let before = body.len();
                let progress = decoder.decode(&self.came[self.read..], body)?;
                self.drop_read(progress.consumed);
                if progress.is_done {
                    self.state = State::Ending;
                }
                match (body.len() > before, progress.is_done) {
                    (true, _) => Ok(Some(Part::Body)),
                    (false, true) => self.read(body),
                    (false, false) => Ok(None),
                }
            }
            State::Ending => {
                self.state = State::Whole;
                Ok(Some(Part::End))
            }
            State::Whole => Ok(None),
            State::Failed(fault) => Err(*fault),
        }
    }

    fn read_head(&mut self) -> Result<Option<Part>, RequestFault> {
        let kept = self.kept();
        let fresh = &kept[self.looked_at..];
        let is_worth_a_look =
            kept.len() <= LOOKED_AT_BYTES || kept.len() >= HEAD_BYTES_MAX || fresh.contains(&b'\n');
        if fresh.is_empty() || !is_worth_a_look {
            return Ok(None);
        }
        let Decoded::Complete { head, consumed } = RequestHead::decode(kept)? else {
            self.looked_at = kept.len();
            return Ok(None);
        };
        self.state = match BodyLength::of_request(&head)? {
            BodyLength::Length(length) if length > self.body_bytes_max => {
                return Err(RequestFault::BodyTooLong);
            }
            BodyLength::Length(length) => State::Body(Body::Length(length)),
            BodyLength::Chunked => {
                State::Body(Body::Chunked(Box::new(ChunkDecoder::new(self.body_bytes_max))))
            }
            BodyLength::None | BodyLength::UntilClose => State::Ending,
        };
        self.drop_read(consumed);
        Ok(Some(Part::Head(Box::new(head))))
    }

    /// At rest a connection holds no buffer.
    fn drop_read(&mut self, bytes: usize) {
        self.looked_at = 0;
        self.read += bytes;
        if self.read == self.came.len() {
            (self.came, self.read) = (Vec::new(), 0);
        }
    }
}

#[cfg(test)]
mod tests;
