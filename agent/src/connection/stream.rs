//! A stream of bytes to an HTTP port: a socket, with the outer TLS on it over HTTPS.
//!
//! Reading and writing do not wait, save in the two acts that make one, which bear [`Patience`].

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd as _;

use super::road::{Patience, RoadFault, Waits};
use crate::tls::{OuterSession, OuterTls};

/// See the module.
pub(super) struct Stream {
    socket: TcpStream,
    outer: Option<Box<OuterSession>>,
    stranger: Option<String>,
}

impl Stream {
    /// Over a socket on which reading and writing do not wait.
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { socket, outer: None, stranger: None }
    }

    /// Shakes hands with whoever answers as `host`, and has the outer TLS from there on.
    ///
    /// # Errors
    /// Why that did not come about.
    pub(super) fn wrap(
        mut self,
        tls: &OuterTls,
        host: &str,
        patience: &Patience<'_>,
    ) -> Result<Self, RoadFault> {
        let mut session = tls.session(host).map_err(RoadFault::new)?;
        loop {
            match session.flush_to(&mut self.socket) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                _ => {}
            }
            if !session.is_handshaking() {
                break;
            }
            patience.check("the outer TLS handshake")?;
            match session.take_from(&mut self.socket) {
                Ok(true) => continue,
                Ok(false) => {
                    let text = "the connection was closed during the outer TLS handshake";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text).into());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            let mut waits = Waits::default();
            waits.socket(self.socket.as_fd(), session.wants_write());
            patience.wait(waits, "the outer TLS handshake")?;
        }
        self.stranger = tls.stranger(&session);
        self.outer = Some(Box::new(session));
        Ok(self)
    }

    /// The issuer of the certificate that was shown, where that is not the site's authority.
    pub(super) fn stranger(&self) -> Option<&str> {
        self.stranger.as_deref()
    }

    /// Adds what there is to wait for; `wants_write`: there are bytes that it did not take.
    pub(super) fn waits<'a>(&'a self, wants_write: bool, waits: &mut Waits<'a>) {
        let is_sealed_left = self.outer.as_ref().is_some_and(|outer| outer.wants_write());
        waits.socket(self.socket.as_fd(), wants_write || is_sealed_left);
        if self.outer.as_ref().is_some_and(|outer| outer.has_opened()) {
            // The socket would not tell.
            waits.until(std::time::Instant::now());
        }
    }

    /// Whether all that was written is with the socket.
    pub(super) fn is_flushed(&self) -> bool {
        self.outer.as_ref().is_none_or(|outer| !outer.wants_write())
    }

    /// Gives the socket what waits in `bytes`; `Ok` also when some is left.
    ///
    /// # Errors
    /// Why the stream is over.
    pub(super) fn push(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let mut given = 0;
        let pushed = loop {
            if given == bytes.len() {
                break self.flush();
            }
            match self.write(&bytes[given..]) {
                Ok(count) => given += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        bytes.drain(..given);
        if bytes.is_empty() {
            // At rest it holds no buffer.
            *bytes = Vec::new();
        }
        match pushed {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives the socket all of `bytes`, and waits until it has them.
    ///
    /// # Errors
    /// Why that did not come about.
    pub(super) fn push_all(&mut self, mut bytes: Vec<u8>, patience: &Patience<'_>) -> Result<(), RoadFault> {
        loop {
            self.push(&mut bytes)?;
            if bytes.is_empty() && self.is_flushed() {
                return Ok(());
            }
            let mut waits = Waits::default();
            self.waits(true, &mut waits);
            patience.wait(waits, "a request")?;
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.outer {
            Some(outer) => outer.read_from(&mut self.socket, buffer),
            None => self.socket.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.outer {
            Some(outer) => outer.write_to(&mut self.socket, bytes),
            None => self.socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.outer {
            Some(outer) => outer.flush_to(&mut self.socket),
            None => Ok(()),
        }
    }
}
