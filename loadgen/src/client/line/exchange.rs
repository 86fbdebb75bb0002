//! A lane of a long-poll: requests and answers, one after the other, over a connection that is kept.
//!
//! A server may close a connection that rests, and a request may be on its way then: it is lost, and made again over a new one. A connection that ends before it
//! has carried one answer is another matter: nobody is there.

use std::io::{self, Read as _};

use bgb_http::tunnel::client::{DOWN_BYTES_MAX, Request};
use bgb_http::{BodyLength, Decoded, ResponseHead};

use super::wire::Wire;
use super::{Dial, Ends, invalid, is_not_yet, send};

/// See the module.
pub(super) struct Exchange {
    /// Which of the line's sockets it has.
    number: usize,
    wire: Option<Wire>,
    /// The wire has carried an answer.
    is_proved: bool,
    /// The method of the request under way.
    asked: Option<&'static str>,
    unsent: Vec<u8>,
    heard: Vec<u8>,
}

/// What came of a request.
pub(super) enum Came {
    /// Nothing yet, or there is none.
    Nothing,
    Answer(ResponseHead, Vec<u8>),
    /// It, or its answer, was lost.
    Loss,
}

/// What came of sending.
pub(super) enum Sent {
    /// The connection has taken what it takes at present.
    AsFarAsItGoes,
    /// The request was lost.
    Lost,
}

impl Exchange {
    /// Without a connection.
    pub(super) fn new(number: usize) -> Self {
        Self { number, wire: None, is_proved: false, asked: None, unsent: Vec::new(), heard: Vec::new() }
    }

    /// Begins to connect, where it has no connection.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn connect(&mut self, dial: &Dial, ends: Ends) -> io::Result<()> {
        if self.wire.is_none() {
            self.wire = Some(Wire::connect(dial, ends, self.number)?);
            self.is_proved = false;
        }
        Ok(())
    }

    /// Whether it has a connection that takes bytes.
    ///
    /// # Errors
    /// Why it never will.
    pub(super) fn is_up(&mut self) -> io::Result<bool> {
        self.wire.as_mut().map_or(Ok(false), Wire::is_up)
    }

    /// Whether a request is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.asked.is_some()
    }

    /// The system tells of its socket.
    pub(super) fn note(&mut self, has_ended: bool) {
        if let Some(wire) = &mut self.wire {
            wire.note(has_ended);
        }
    }

    /// Makes a request.
    pub(super) fn ask(&mut self, ends: Ends, request: &Request) {
        let Request { method, target, body } = request;
        self.asked = Some(method);
        self.unsent = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", ends.server).into_bytes();
        if *method == "POST" {
            self.unsent.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        self.unsent.extend_from_slice(b"\r\n");
        self.unsent.extend_from_slice(body);
    }

    /// Goes on with the request, by way of `room`.
    ///
    /// # Errors
    /// Why nothing is to be had here.
    pub(super) fn go_on(&mut self, room: &mut [u8]) -> io::Result<Came> {
        match self.try_to_go_on(room) {
            Err(error) if is_not_yet(&error) => Ok(Came::Nothing),
            Err(error) => Ok(if self.lose(error)? { Came::Loss } else { Came::Nothing }),
            came => came,
        }
    }

    /// Sends what the connection takes of the request, and reads nothing.
    ///
    /// # Errors
    /// Why nothing is to be had here.
    pub(super) fn send(&mut self) -> io::Result<Sent> {
        let sent = match &mut self.wire {
            Some(wire) => {
                wire.is_up().and_then(|is_up| if is_up { send(&mut self.unsent, wire) } else { Ok(()) })
            }
            None => Ok(()),
        };
        match sent {
            Err(error) if !is_not_yet(&error) => {
                Ok(if self.lose(error)? { Sent::Lost } else { Sent::AsFarAsItGoes })
            }
            _ => Ok(Sent::AsFarAsItGoes),
        }
    }

    /// The connection is over; whether a request was lost with it, which is to be made again.
    fn lose(&mut self, error: io::Error) -> io::Result<bool> {
        self.wire = None;
        (self.heard, self.unsent) = (Vec::new(), Vec::new());
        match self.asked.take() {
            _ if error.kind() == io::ErrorKind::InvalidData => Err(error),
            Some(_) if !self.is_proved => Err(error),
            asked => Ok(asked.is_some()),
        }
    }

    fn try_to_go_on(&mut self, room: &mut [u8]) -> io::Result<Came> {
        let Some(wire) = &mut self.wire else { return Ok(Came::Nothing) };
        if !wire.is_up()? {
            return Ok(Came::Nothing);
        }
        send(&mut self.unsent, wire)?;
        loop {
            if let Some(method) = self.asked
                && let Some((head, body)) = take_answer(&mut self.heard, method)?
            {
                self.asked = None;
                self.is_proved = true;
                if head.header_lists("connection", "close") {
                    self.wire = None;
                }
                return Ok(Came::Answer(head, body));
            }
            match wire.read(room)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes if self.asked.is_some() => self.heard.extend_from_slice(&room[..bytes]),
                _ => return Err(invalid("an answer that nobody has asked for")),
            }
        }
    }

    /// Of an outer TLS only the keys are left.
    ///
    /// # Errors
    /// When rustls does not give them away.
    pub(super) fn rest(&mut self) -> io::Result<()> {
        self.wire.as_mut().map_or(Ok(()), Wire::rest)
    }
}

/// The answer to a request, when it is whole. It is the only thing that is under way on its connection.
fn take_answer(heard: &mut Vec<u8>, method: &str) -> io::Result<Option<(ResponseHead, Vec<u8>)>> {
    if heard.is_empty() {
        return Ok(None);
    }
    let Decoded::Complete { head, consumed } = ResponseHead::decode(heard).map_err(invalid)? else {
        return Ok(None);
    };
    let bytes = match BodyLength::of_response(&head, method).map_err(invalid)? {
        BodyLength::None => 0,
        BodyLength::Length(bytes) if bytes <= DOWN_BYTES_MAX as u64 => bytes as usize,
        BodyLength::Length(bytes) => return Err(invalid(format!("an answer of {bytes} bytes"))),
        BodyLength::Chunked | BodyLength::UntilClose => {
            return Err(invalid("an answer that does not say how long it is, as servers of ours do"));
        }
    };
    if heard.len() < consumed + bytes {
        return Ok(None);
    }
    if heard.len() > consumed + bytes {
        return Err(invalid("an answer that is longer than it says"));
    }
    let body = std::mem::take(heard).split_off(consumed);
    Ok(Some((head, body)))
}
