//! A line: what carries an agent's bytes to its server and back, by whatever road. Inside goes the session's TLS, of which it knows nothing.
//!
//! ```text
//! Tcp        --------------------------------------------------------------- Socket
//! WebSocket  frames                                ------------ Wire (a socket, or one in an outer TLS)
//! LongPoll   offsets (bgb_http's Tunnel), lanes of requests --- two Wires, made anew where a server has closed one
//! ```
//!
//! Reading and writing never block: `WouldBlock` says that the system will tell. What is written goes out with the next flush. A line says by itself what its road
//! asks for (pongs, the next GET) whenever it is read.

mod exchange; // a lane of a long-poll: requests, one after the other
mod longpoll;
mod socket;
mod websocket;
mod wire;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use mio::{Registry, Token};

use self::longpoll::LongPollLine;
use self::socket::Socket;
use self::websocket::WebSocketLine;
use super::road::{Road, Way};
use super::tls::OuterTls;

/// Sockets of a line at the most: an agent has so many tokens.
pub(crate) const SOCKETS_MAX: usize = 2;

/// By which road lines lead, and what all of them share.
pub(crate) struct Dial {
    registry: Registry,
    road: Road,
    outer: Option<OuterTls>,
}

/// Where a line leads, from where, and what the system calls it: the first of [`SOCKETS_MAX`] tokens in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) server: SocketAddr,
    pub(crate) source: Option<IpAddr>,
    pub(crate) token: usize,
}

/// What the system has told of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// Of which of its sockets.
    pub(crate) socket: usize,
    /// The other side has ended it, which is not told again.
    pub(crate) has_ended: bool,
}

/// See the module.
pub(crate) enum Line {
    Tcp(Socket),
    WebSocket(Box<WebSocketLine>),
    LongPoll(Box<LongPollLine>),
}

impl Dial {
    /// Lines by `way`, of which `registry` tells.
    ///
    /// # Errors
    /// When the system gives no descriptor, or rustls refuses its own configuration.
    pub(crate) fn new(registry: &Registry, way: Way) -> anyhow::Result<Self> {
        let outer = way.tls_outer.then(OuterTls::new).transpose()?;
        Ok(Self { registry: registry.try_clone()?, road: way.road, outer })
    }
}

impl Ends {
    fn token(&self, socket: usize) -> Token {
        Token(self.token + socket)
    }
}

impl Line {
    /// Begins to connect.
    ///
    /// # Errors
    /// As the system says: no descriptor, no address, nobody there.
    pub(crate) fn connect(dial: &Rc<Dial>, ends: Ends) -> io::Result<Self> {
        Ok(match dial.road {
            Road::Tcp => Self::Tcp(Socket::connect(&dial.registry, ends, 0)?),
            Road::WebSocket => Self::WebSocket(Box::new(WebSocketLine::connect(dial, ends)?)),
            Road::LongPoll => Self::LongPoll(Box::new(LongPollLine::connect(dial, ends)?)),
        })
    }

    /// Whether it carries bytes by now; while it does not, it goes on towards that. Where the server says a line first, it has said it.
    ///
    /// # Errors
    /// Why it never will.
    pub(crate) fn is_there(&mut self, server_speaks_first: bool) -> io::Result<bool> {
        match self {
            Self::Tcp(socket) => Ok(socket.is_there()? && (!server_speaks_first || socket.has_spoken()?)),
            Self::WebSocket(line) => line.is_there(),
            Self::LongPoll(line) => line.is_there(),
        }
    }

    /// The system says that something is to be read, written or ended.
    pub(crate) fn note(&mut self, told: Told) {
        match self {
            Self::Tcp(socket) => socket.note(told.has_ended),
            Self::WebSocket(line) => line.note(told.has_ended),
            Self::LongPoll(line) => line.note(told),
        }
    }

    /// In how many seconds each of its sockets is to be told again that it goes on: the server has asked for that since the last time.
    pub(crate) fn take_pauses(&mut self) -> [Option<u32>; SOCKETS_MAX] {
        match self {
            Self::LongPoll(line) => line.take_pauses(),
            Self::Tcp(_) | Self::WebSocket(_) => Default::default(),
        }
    }

    /// A pause is over.
    pub(crate) fn go_on(&mut self, socket: usize) {
        if let Self::LongPoll(line) = self {
            line.go_on(socket);
        }
    }

    /// Of outer TLS only the keys are left.
    ///
    /// # Errors
    /// When rustls does not give them away.
    pub(crate) fn rest(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::WebSocket(line) => line.rest(),
            Self::LongPoll(line) => line.rest(),
        }
    }

    /// Whether its end shows at the server by itself. That of a tunnel's sockets means nothing (docs/protocol.md, 13.2).
    pub(crate) fn ends_with_its_sockets(&self) -> bool {
        !matches!(self, Self::LongPoll(_))
    }
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buffer),
            Self::WebSocket(line) => line.read(buffer),
            Self::LongPoll(line) => line.read(buffer),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::WebSocket(line) => line.write(bytes),
            Self::LongPoll(line) => line.write(bytes),
        }
    }

    /// rustls gives several records at once, which are one write of a socket.
    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write_vectored(slices),
            Self::WebSocket(line) => write_all_of(slices, line.as_mut()),
            Self::LongPoll(line) => write_all_of(slices, line.as_mut()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::WebSocket(line) => line.flush(),
            Self::LongPoll(line) => line.flush(),
        }
    }
}

/// Writes one after the other, until one is not taken as a whole.
fn write_all_of(slices: &[io::IoSlice<'_>], line: &mut dyn Write) -> io::Result<usize> {
    let mut written = 0;
    for slice in slices.iter().filter(|slice| !slice.is_empty()) {
        match line.write(slice) {
            Ok(bytes) => {
                written += bytes;
                if bytes < slice.len() {
                    break;
                }
            }
            Err(_) if written > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

/// Gives what was heard, as much as `buffer` has place for; what was heard holds no memory when it is empty.
fn give(heard: &mut Vec<u8>, buffer: &mut [u8]) -> usize {
    let bytes = heard.len().min(buffer.len());
    buffer[..bytes].copy_from_slice(&heard[..bytes]);
    if bytes == heard.len() {
        *heard = Vec::new();
    } else {
        heard.drain(..bytes);
    }
    bytes
}

/// Has `to` take what waits, as much as it does.
fn send(waiting: &mut Vec<u8>, to: &mut impl Write) -> io::Result<()> {
    let mut written = 0;
    let end = loop {
        if written == waiting.len() {
            *waiting = Vec::new();
            return to.flush();
        }
        match to.write(&waiting[written..]) {
            Ok(bytes) => written += bytes,
            Err(error) => break error,
        }
    };
    waiting.drain(..written);
    Err(end)
}

/// What a server says that its road does not have.
fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// It is to be tried again when the system tells.
pub(crate) fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}

#[cfg(test)]
mod tests;
