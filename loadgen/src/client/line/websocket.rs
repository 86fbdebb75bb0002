//! A line in a WebSocket (RFC 6455): binary messages both ways, and what they hold is the stream.
//!
//! ```text
//! Opening --up: asks--> Asked --101--> Open --close frame--> over
//! ```

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use bgb_http::websocket::{self, Control, Decoder, Side};
use bgb_http::{Decoded, ResponseHead};

use super::wire::Wire;
use super::{Dial, Ends, give, invalid, is_not_yet, send};
use crate::clock::now_ns;

/// Where a server has it.
const PATH: &str = "/bgb/websocket";
/// What is read at once of the answer to the upgrade.
const ANSWER_BYTES: usize = 1_024;

/// See the module.
pub(crate) struct WebSocketLine {
    wire: Wire,
    stage: Stage,
    /// Whom the request names.
    server: SocketAddr,
    masks: Masks,
    /// Of the stream: in no frame yet.
    waiting: Vec<u8>,
    /// Frames that the wire has not taken.
    unsent: Vec<u8>,
    heard: Vec<u8>,
}

enum Stage {
    Opening,
    Asked { key: String, heard: Vec<u8> },
    Open(Decoder),
}

/// Masks keep what is said from being taken for something else between here and there (RFC 6455, 10.3). There is nobody there, or somebody who wants
/// to be measured: chance enough to differ will do.
struct Masks(u64);

impl Masks {
    fn next(&mut self) -> [u8; 4] {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 as u32).to_ne_bytes()
    }

    fn key(&mut self) -> [u8; 16] {
        let mut key = [0; 16];
        key.chunks_exact_mut(4).for_each(|part| part.copy_from_slice(&self.next()));
        key
    }
}

impl WebSocketLine {
    /// Begins to connect.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn connect(dial: &Dial, ends: Ends) -> io::Result<Self> {
        Ok(Self {
            wire: Wire::connect(dial, ends, 0)?,
            stage: Stage::Opening,
            server: ends.server,
            masks: Masks(now_ns() ^ (ends.token as u64) << 32 | 1),
            waiting: Vec::new(),
            unsent: Vec::new(),
            heard: Vec::new(),
        })
    }

    /// Whether the WebSocket stands; while it does not, it goes on towards that.
    ///
    /// # Errors
    /// Why it never will.
    pub(super) fn is_there(&mut self) -> io::Result<bool> {
        if let Stage::Opening = self.stage {
            if !self.wire.is_up()? {
                return Ok(false);
            }
            let (fields, key) = websocket::request(self.masks.key());
            self.unsent = format!("GET {PATH} HTTP/1.1\r\nHost: {}\r\n", self.server).into_bytes();
            for (name, value) in fields {
                self.unsent.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
            }
            self.unsent.extend_from_slice(b"\r\n");
            self.stage = Stage::Asked { key, heard: Vec::new() };
        }
        match send(&mut self.unsent, &mut self.wire) {
            Err(error) if !is_not_yet(&error) => Err(error),
            _ => self.hear_answer(),
        }
    }

    fn hear_answer(&mut self) -> io::Result<bool> {
        while let Stage::Asked { key, heard } = &mut self.stage {
            let mut room = [0; ANSWER_BYTES];
            match self.wire.read(&mut room) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => heard.extend_from_slice(&room[..bytes]),
                Err(error) if is_not_yet(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
            if let Decoded::Complete { head, consumed } = ResponseHead::decode(heard).map_err(invalid)? {
                websocket::check_answer(&head, key).map_err(invalid)?;
                let mut frames = heard.split_off(consumed);
                self.stage = Stage::Open(Decoder::new(Side::Client));
                self.take_frames(&mut frames)?;
            }
        }
        Ok(true)
    }

    /// Whether the server has said that it says no more.
    fn is_closed(&self) -> bool {
        matches!(&self.stage, Stage::Open(decoder) if decoder.is_closed())
    }

    fn take_frames(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let Stage::Open(decoder) = &mut self.stage else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut controls = Vec::new();
        decoder.decode(bytes, &mut self.heard, &mut controls).map_err(invalid)?;
        for control in controls {
            // What is to be said to a ping, and to a close frame (RFC 6455, 5.5).
            let answer = match control {
                Control::Ping(payload) => Control::Pong(payload),
                Control::Close(code) => Control::Close(code),
                Control::Pong(_) => continue,
            };
            websocket::encode_control(&answer, Some(self.masks.next()), &mut self.unsent);
        }
        Ok(())
    }

    /// The system tells of its socket.
    pub(super) fn note(&mut self, has_ended: bool) {
        self.wire.note(has_ended);
    }

    /// Of an outer TLS only the keys are left.
    ///
    /// # Errors
    /// When rustls does not give them away.
    pub(super) fn rest(&mut self) -> io::Result<()> {
        self.wire.rest()
    }
}

impl Read for WebSocketLine {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.heard.is_empty() && !self.is_closed() {
            match self.wire.read(buffer)? {
                0 => return Ok(0),
                bytes => self.take_frames(&mut buffer[..bytes])?,
            }
        }
        Ok(give(&mut self.heard, buffer))
    }
}

impl Write for WebSocketLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            websocket::encode_data(&waiting, Some(self.masks.next()), &mut self.unsent);
        }
        send(&mut self.unsent, &mut self.wire)
    }
}
