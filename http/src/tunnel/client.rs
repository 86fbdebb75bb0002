//! A tunnel from its agent's end: which request is to be made next, and what an answer means.
//!
//! ```text
//!             201 to the first POST               404, 409, 421, an answer that is none
//!   Opening ------------------------> Open ------------------------------------------------> over
//! ```
//!
//! Bytes to send go in, bytes that were heard come out. There are two lanes, POST and GET, with one request each under way at the most; the
//! owner makes them, over whatever connections it has, and hands in the answers and the losses. It keeps what the server has not taken yet
//! and asks by offset for what it has not heard, so that a request that was lost, or whose answer was, is made again as it was. Laws: bytes
//! are forgotten only by the server's own word that it took them; both directions are bounded; after a fault nothing more is asked.

use std::collections::VecDeque;

use thiserror::Error;

use super::{TunnelId, TunnelRequest};
use crate::head::decimal;
use crate::response::ResponseHead;

/// Most bytes that wait to be taken by the server: two POSTs, so that one can gather while the other is under way.
pub const UP_BYTES_MAX: usize = 2 * POST_BYTES_MAX;
/// Most bytes of an answer's body (docs/protocol.md, 13.2).
pub const DOWN_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of one POST: a quarter of what a server takes, since proxies are set to less.
const POST_BYTES_MAX: usize = 64 * 1024;
/// Whoever answers 413 to so few bytes lets no ClientHello through.
const POST_BYTES_MIN: usize = 1024;
/// How often in a row a POST is answered without any byte of it being taken.
const STALLS_MAX: u32 = 3;
/// How long a 503 is waited for that does not say it, and how long at the most, in seconds.
const PAUSE_SECS: u32 = 5;
const PAUSE_SECS_MAX: u32 = 60;

/// One of the two kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Bytes up.
    Post,
    /// Bytes down.
    Get,
}

/// A request to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `POST` or `GET`.
    pub method: &'static str,
    /// Path and query.
    pub target: String,
    /// What goes along; of a GET nothing.
    pub body: Vec<u8>,
}

/// What follows from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The lane is free.
    GoOn,
    /// The lane is free after so many seconds.
    Pause(u32),
    /// Something between answered with this status that it had no answer: as if the answer were lost.
    Lost(u16),
}

/// Why a tunnel is over.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// 404 to a tunnel that was: it has ended, or its server was started anew.
    #[error("the server has no such tunnel any more")]
    Gone,
    /// 421.
    #[error("the tunnel is another server's")]
    OtherServer,
    /// 409 to a GET.
    #[error("the server and this agent disagree on what was heard, or another GET took this one's place")]
    Conflict,
    /// The server has forgotten bytes that it had taken, or says that it took what was never sent.
    #[error("the server says that it has taken {received} bytes, of which {least} to {most} can be")]
    Received {
        /// What it says.
        received: u64,
        /// What it said before.
        least: u64,
        /// All that there is.
        most: u64,
    },
    /// POST after POST was answered, and nothing taken.
    #[error("the server takes nothing of what it is sent")]
    Stalled,
    /// 413 however little was sent.
    #[error(
        "requests of {POST_BYTES_MIN} bytes are answered with 413; what stands between lets nothing through"
    )]
    TooLarge,
    /// A status that a tunnel does not have.
    #[error("a request of the tunnel is answered with {0}")]
    Status(u16),
    /// An answer without the fields of a tunnel's, or with wrong ones.
    #[error("an answer has no {0} that fits; something between has made it up")]
    Field(&'static str),
    /// More than an answer has.
    #[error("an answer has more than {DOWN_BYTES_MAX} bytes")]
    TooLong,
}

/// Whether a lane's request is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Free,
    UnderWay,
}

/// The agent's end of a tunnel.
#[derive(Debug)]
pub struct Tunnel {
    /// Known from the answer to the first POST on.
    id: Option<TunnelId>,
    /// What the server has not taken, the first byte with offset `up_from`.
    up: VecDeque<u8>,
    up_from: u64,
    /// Where the last POST began.
    posted_from: u64,
    post: Course,
    post_bytes_max: usize,
    stalls: u32,
    /// What was heard and is not read yet.
    down: VecDeque<u8>,
    /// The offset of what is asked for next.
    down_from: u64,
    get: Course,
    fault: Option<Fault>,
}

impl Default for Tunnel {
    fn default() -> Self {
        Self::new()
    }
}

impl Tunnel {
    /// One that is opened with the first bytes.
    #[must_use]
    pub fn new() -> Self {
        Self {
            id: None,
            up: VecDeque::new(),
            up_from: 0,
            posted_from: 0,
            post: Course::Free,
            post_bytes_max: POST_BYTES_MAX,
            stalls: 0,
            down: VecDeque::new(),
            down_from: 0,
            get: Course::Free,
            fault: None,
        }
    }

    /// Bytes that there is room for.
    #[must_use]
    pub fn room(&self) -> usize {
        UP_BYTES_MAX - self.up.len()
    }

    /// Takes bytes to be sent; gives how many there was room for.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.up.extend(&bytes[..taken]);
        taken
    }

    /// Moves bytes that were heard into `buffer`; gives how many.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(self.down.len());
        for (to, from) in buffer.iter_mut().zip(self.down.drain(..count)) {
            *to = from;
        }
        if self.down.is_empty() {
            // At rest a tunnel holds no buffer.
            self.down = VecDeque::new();
        }
        count
    }

    /// Whether bytes wait to be read.
    #[must_use]
    pub fn has_heard(&self) -> bool {
        !self.down.is_empty()
    }

    /// Whether the server has taken all that was sent.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.up.is_empty()
    }

    /// Why it is over, if it is.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// The request that the lane is to make now, if there is one; it is under way then. A GET is held for `hold_secs` at the most.
    pub fn poll_request(&mut self, lane: Lane, hold_secs: u32) -> Option<Request> {
        if self.fault.is_some() {
            return None;
        }
        match lane {
            Lane::Post => self.poll_post(),
            Lane::Get => self.poll_get(hold_secs),
        }
    }

    fn poll_post(&mut self) -> Option<Request> {
        if self.post == Course::UnderWay || self.up.is_empty() {
            return None;
        }
        self.post = Course::UnderWay;
        self.posted_from = self.up_from;
        let asked = self.id.map_or(TunnelRequest::Open, |id| TunnelRequest::Up { id, from: self.up_from });
        let body = self.up.iter().take(self.post_bytes_max).copied().collect();
        Some(Request { method: "POST", target: asked.target(), body })
    }

    fn poll_get(&mut self, hold_secs: u32) -> Option<Request> {
        // What is not read yet holds the next answer back: so twice an answer's bytes are all that there ever is.
        if self.get == Course::UnderWay || self.down.len() >= DOWN_BYTES_MAX {
            return None;
        }
        let id = self.id?;
        self.get = Course::UnderWay;
        let target = TunnelRequest::Down { id, from: self.down_from, hold_secs }.target();
        Some(Request { method: "GET", target, body: Vec::new() })
    }

    /// The lane's request was lost, or its answer; it is made again.
    pub fn handle_lost(&mut self, lane: Lane) {
        *self.course(lane) = Course::Free;
    }

    /// The whole answer to the lane's request.
    ///
    /// # Errors
    /// Why the tunnel is over with it; every later call gives the same.
    pub fn handle_answer(&mut self, lane: Lane, head: &ResponseHead, body: &[u8]) -> Result<Next, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        *self.course(lane) = Course::Free;
        self.judge(lane, head, body).inspect_err(|fault| self.fault = Some(fault.clone()))
    }

    fn course(&mut self, lane: Lane) -> &mut Course {
        match lane {
            Lane::Post => &mut self.post,
            Lane::Get => &mut self.get,
        }
    }

    fn judge(&mut self, lane: Lane, head: &ResponseHead, body: &[u8]) -> Result<Next, Fault> {
        match (lane, head.status) {
            (Lane::Post, 201) if self.id.is_none() => self.on_opened(head),
            (Lane::Post, 204) if self.id.is_some() => self.on_posted(head),
            // Above what was taken: the server's word says where to go on.
            (Lane::Post, 409) if self.id.is_some() => self.on_posted(head),
            (Lane::Get, 200 | 204) => self.on_heard(head, body),
            (Lane::Get, 409) => Err(Fault::Conflict),
            (Lane::Post, 413) if self.post_bytes_max > POST_BYTES_MIN => {
                self.post_bytes_max /= 2;
                self.note_received(head)?;
                Ok(Next::GoOn)
            }
            (Lane::Post, 413) => Err(Fault::TooLarge),
            (_, 404) if self.id.is_some() => Err(Fault::Gone),
            (_, 421) => Err(Fault::OtherServer),
            (_, 503) if ["bgb-received", "bgb-from"].iter().any(|own| head.header(own).is_some()) => {
                self.note_received(head)?;
                let asked = head.header("retry-after").and_then(decimal);
                let secs = asked.and_then(|secs| u32::try_from(secs).ok()).unwrap_or(PAUSE_SECS);
                Ok(Next::Pause(secs.clamp(1, PAUSE_SECS_MAX)))
            }
            // A gateway's own: it did not reach the server, or did not wait for it.
            (_, status @ (408 | 502..=504)) => Ok(Next::Lost(status)),
            (_, status) => Err(Fault::Status(status)),
        }
    }

    fn on_opened(&mut self, head: &ResponseHead) -> Result<Next, Fault> {
        let id = head.header("bgb-tunnel").and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
        self.id = Some(id.ok_or(Fault::Field("Bgb-Tunnel"))?);
        self.on_posted(head)
    }

    fn on_posted(&mut self, head: &ResponseHead) -> Result<Next, Fault> {
        let received = self.note_received(head)?.ok_or(Fault::Field("Bgb-Received"))?;
        // The answer to a GET may have come first and said as much: an answer is held against its own POST.
        if received < self.posted_from {
            // What it took it has forgotten, and so have we.
            let most = self.up_from + self.up.len() as u64;
            return Err(Fault::Received { received, least: self.posted_from, most });
        }
        if received > self.posted_from {
            self.stalls = 0;
        } else if !self.up.is_empty() {
            self.stalls += 1;
            if self.stalls == STALLS_MAX {
                return Err(Fault::Stalled);
            }
        }
        Ok(Next::GoOn)
    }

    fn on_heard(&mut self, head: &ResponseHead, body: &[u8]) -> Result<Next, Fault> {
        // Any other offset is an answer to another request, out of some cache between.
        if head.header("bgb-from").and_then(decimal) != Some(self.down_from) {
            return Err(Fault::Field("Bgb-From"));
        }
        if body.len() > DOWN_BYTES_MAX {
            return Err(Fault::TooLong);
        }
        self.note_received(head)?;
        self.down.extend(body);
        self.down_from += body.len() as u64;
        Ok(Next::GoOn)
    }

    /// Forgets what the server has taken. An answer that was overtaken by a later one says less, which means nothing.
    fn note_received(&mut self, head: &ResponseHead) -> Result<Option<u64>, Fault> {
        let Some(text) = head.header("bgb-received") else { return Ok(None) };
        let received = decimal(text).ok_or(Fault::Field("Bgb-Received"))?;
        let most = self.up_from + self.up.len() as u64;
        if received > most {
            return Err(Fault::Received { received, least: self.up_from, most });
        }
        if received > self.up_from {
            self.up.drain(..(received - self.up_from) as usize);
            self.up_from = received;
        }
        if self.up.is_empty() {
            self.up = VecDeque::new();
        }
        Ok(Some(received))
    }
}

#[cfg(test)]
mod tests;
