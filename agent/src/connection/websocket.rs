//! The road over a WebSocket: binary messages whose bytes, one after the other, are the session's (docs/protocol.md, 13.1).
//!
//! It owns the stream, the frames under way in either direction, and the pings that keep a proxy from taking the connection for idle. Laws: what is
//! held of either direction is bounded; a frame's mask is drawn anew, unforeseeably, for each (RFC 6455, 10.3); a peer that answers no ping in time is gone.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bgb_http::websocket::{Control, Decoder, Side, check_answer, encode_control, encode_data, request};

use super::road::{Patience, Road, RoadFault, Waits};
use super::stream::Stream;
use super::way::{ANSWER, Passage, READ_BYTES, Way, read_head};
use crate::roads::Idle;

/// Where a server's WebSocket is.
const TARGET: &str = "/bgb/websocket";
/// Most bytes that wait for the stream: more would only wait somewhere else.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of one frame: a TLS record's.
const FRAME_BYTES: usize = 16 * 1024;
/// Bytes that are read in vain at a time: whoever sends pings or empty frames faster than they are decoded must not keep its reader from the rest.
const IN_VAIN_BYTES_MAX: usize = 256 * 1024;
/// How long a ping waits for anything: as a keepalive does (docs/protocol.md, 5).
pub const PONG: Duration = Duration::from_secs(30);
/// A close frame that means what it says (RFC 6455, 7.4.1).
const CLOSE_NORMAL: u16 = 1000;

/// See the module.
pub(super) struct WebSocket {
    stream: Stream,
    decoder: Decoder,
    /// What messages held, from `read_from` on not read yet.
    heard: Vec<u8>,
    read_from: usize,
    /// Frames that the stream has not taken.
    waiting: Vec<u8>,
    ping_every: Duration,
    heard_at: Instant,
    said_at: Instant,
    /// When a ping was said that nothing has answered, and after how long a silence.
    pinged: Option<(Instant, Duration)>,
    end: End,
    cut: Option<Duration>,
}

/// How far its end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// We have said close.
    Said,
    /// The peer has.
    Heard,
}

impl WebSocket {
    /// Makes one along `way`.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn open(way: &Way, idle: Idle, waker: Option<&OwnedFd>) -> Result<Self, RoadFault> {
        let mut stream = way.open(Passage::Tunnel, waker)?;
        let mut random = [0; 16];
        fill(&mut random)?;
        let (fields, key) = request(random);
        let mut head = Vec::new();
        way.encode(Passage::Tunnel, "GET", TARGET, &fields, &[], &mut head);
        let patience = Patience::of(ANSWER, waker);
        stream.push_all(head, &patience)?;
        let (answer, mut rest) = read_head(&mut stream, &patience, "the answer to the upgrade")?;
        check_answer(&answer, &key).map_err(|refusal| {
            let reason = (answer.status != 101).then(|| way.reason_of(answer.status)).flatten();
            RoadFault { text: refusal.to_string(), reason }
        })?;
        let now = Instant::now();
        let mut road = Self {
            stream,
            decoder: Decoder::new(Side::Client),
            heard: Vec::new(),
            read_from: 0,
            waiting: Vec::new(),
            ping_every: idle.ping_every().unwrap_or(Idle::PING_EVERY_ANYWAY),
            heard_at: now,
            said_at: now,
            pinged: None,
            end: End::Open,
            cut: None,
        };
        road.on_bytes(&mut rest)?;
        Ok(road)
    }

    /// Decodes bytes that came.
    fn on_bytes(&mut self, bytes: &mut [u8]) -> Result<(), RoadFault> {
        let mut controls = Vec::new();
        let decoded = self.decoder.decode(bytes, &mut self.heard, &mut controls);
        for control in controls {
            match control {
                // A peer that has more pings than answers fit is not answered: it knows by the bytes that we are there.
                Control::Ping(payload) if self.waiting.len() < WAITING_BYTES_MAX => {
                    self.say(&Control::Pong(payload))?;
                }
                Control::Ping(_) | Control::Pong(_) => {}
                Control::Close(code) => {
                    if self.end == End::Open {
                        self.say(&Control::Close(code))?;
                        // Now (RFC 6455, 5.5.1): nobody lets the road go on once its end was read. Whether it arrives is the peer's affair.
                        let _ = self.stream.push(&mut self.waiting);
                    }
                    self.end = End::Heard;
                }
            }
        }
        if let Err(fault) = decoded {
            if self.end == End::Open {
                self.say(&Control::Close(Some(fault.code())))?;
                // Whether it arrives is the peer's affair.
                let _ = self.stream.push(&mut self.waiting);
            }
            return Err(RoadFault::new(fault.to_string()));
        }
        Ok(())
    }

    fn say(&mut self, control: &Control) -> Result<(), RoadFault> {
        encode_control(control, Some(mask()?), &mut self.waiting);
        Ok(())
    }

    fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard_at.max(self.said_at))
    }

    fn push(&mut self) -> io::Result<()> {
        let waited = self.waiting.len();
        let pushed = self.stream.push(&mut self.waiting);
        if self.waiting.len() < waited {
            self.said_at = Instant::now();
        }
        pushed
    }

    /// It is over without a word: what that tells of the silence before.
    fn on_cut(&mut self) {
        if self.end == End::Open {
            self.cut = Some(self.pinged.map_or_else(|| self.silence(Instant::now()), |(_, silence)| silence));
        }
    }
}

impl Read for WebSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut in_vain = 0;
        while self.read_from == self.heard.len() {
            (self.heard, self.read_from) = (Vec::new(), 0);
            if self.end == End::Heard {
                return Ok(0);
            }
            if in_vain >= IN_VAIN_BYTES_MAX {
                // What is left is with the socket, or opened already: either is told of by `waits`.
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let mut bytes = [0; READ_BYTES];
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    self.on_cut();
                    return Ok(0);
                }
                Ok(count) => {
                    in_vain += count;
                    (self.heard_at, self.pinged) = (Instant::now(), None);
                    self.on_bytes(&mut bytes[..count])?;
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    return Err(error);
                }
                Err(error) => {
                    self.on_cut();
                    return Err(error);
                }
            }
        }
        let count = buffer.len().min(self.heard.len() - self.read_from);
        buffer[..count].copy_from_slice(&self.heard[self.read_from..self.read_from + count]);
        self.read_from += count;
        Ok(count)
    }
}

impl Write for WebSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.end != End::Open {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.waiting.len() >= WAITING_BYTES_MAX {
            self.push()?;
            if self.waiting.len() >= WAITING_BYTES_MAX {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        let taken = bytes.len().min(FRAME_BYTES);
        encode_data(&bytes[..taken], Some(mask()?), &mut self.waiting);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Road for WebSocket {
    fn go_on(&mut self, now: Instant) -> io::Result<()> {
        match self.pinged {
            Some((at, silence)) if now >= at + PONG => {
                self.cut = Some(silence);
                let text = "a ping on the WebSocket was not answered in time";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            None if self.end == End::Open && now >= self.heard_at + self.ping_every => {
                self.pinged = Some((now, self.silence(now)));
                self.say(&Control::Ping(Vec::new()))?;
            }
            _ => {}
        }
        self.push().inspect_err(|_| self.on_cut())
    }

    fn waits<'a>(&'a self, wants_write: bool, waits: &mut Waits<'a>) {
        let is_full = self.waiting.len() >= WAITING_BYTES_MAX;
        self.stream.waits(!self.waiting.is_empty(), waits);
        if (wants_write && !is_full && self.end == End::Open) || self.read_from < self.heard.len() {
            waits.until(Instant::now());
        }
        match self.pinged {
            Some((at, _)) => waits.until(at + PONG),
            None if self.end == End::Open => waits.until(self.heard_at + self.ping_every),
            None => {}
        }
    }

    fn finish(&mut self) {
        if self.end == End::Open && self.say(&Control::Close(Some(CLOSE_NORMAL))).is_ok() {
            self.end = End::Said;
        }
    }

    fn is_flushed(&self) -> bool {
        self.waiting.is_empty() && self.stream.is_flushed()
    }

    fn intercepted_by(&self) -> Option<String> {
        self.stream.stranger().map(str::to_owned)
    }

    fn take_cut(&mut self) -> Option<Duration> {
        self.cut.take()
    }
}

fn mask() -> Result<[u8; 4], RoadFault> {
    let mut mask = [0; 4];
    fill(&mut mask)?;
    Ok(mask)
}

fn fill(bytes: &mut [u8]) -> Result<(), RoadFault> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| RoadFault::new("the system gives no randomness"))
}

#[cfg(test)]
mod tests;
