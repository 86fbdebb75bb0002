//! What HTTP is spoken on: a socket, or one with an outer TLS on it.

use std::io::{self, Read, Write};

use super::socket::Socket;
use super::{Dial, Ends, give, is_not_yet};
use crate::client::tls::TlsSession;

/// What is read at once while the outer handshake goes on: some more than a server says then.
const HANDSHAKE_BYTES: usize = 4_096;

/// See the module.
pub(super) struct Wire {
    socket: Socket,
    outer: Option<Box<Outer>>,
    /// Bytes may go.
    is_up: bool,
}

/// An outer TLS.
struct Outer {
    tls: TlsSession,
    /// What it has opened, and nobody has read.
    heard: Vec<u8>,
    /// The server has said that it says no more.
    is_over: bool,
}

impl Wire {
    /// Begins to connect, as the line's socket of that number.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn connect(dial: &Dial, ends: Ends, number: usize) -> io::Result<Self> {
        let socket = Socket::connect(&dial.registry, ends, number)?;
        let begin = |tls: &super::OuterTls| {
            let tls = tls.session(ends.server.ip()).map_err(io::Error::other)?;
            io::Result::Ok(Box::new(Outer { tls, heard: Vec::new(), is_over: false }))
        };
        Ok(Self { socket, outer: dial.outer.as_ref().map(begin).transpose()?, is_up: false })
    }

    /// Whether bytes may go: it is connected, and the outer handshake, if there is one, is over. While they may not, it goes on towards that.
    ///
    /// # Errors
    /// Why they never will.
    pub(super) fn is_up(&mut self) -> io::Result<bool> {
        if self.is_up {
            return Ok(true);
        }
        if !self.socket.is_there()? {
            return Ok(false);
        }
        if let Some(outer) = &mut self.outer
            && !outer.shake_hands(&mut self.socket)?
        {
            return Ok(false);
        }
        self.is_up = true;
        Ok(true)
    }

    /// The system tells of its socket.
    pub(super) fn note(&mut self, has_ended: bool) {
        self.socket.note(has_ended);
    }

    /// Of the outer TLS only the keys are left, once its handshake is over.
    ///
    /// # Errors
    /// When rustls does not give them away.
    pub(super) fn rest(&mut self) -> io::Result<()> {
        self.outer.as_mut().map_or(Ok(()), |outer| outer.tls.rest())
    }
}

impl Outer {
    /// Goes on with the handshake; whether it is over.
    fn shake_hands(&mut self, socket: &mut Socket) -> io::Result<bool> {
        loop {
            self.tls.write_to(socket)?;
            if !self.tls.is_handshaking() {
                return Ok(true);
            }
            match self.tls.read_from(socket, &mut [0; HANDSHAKE_BYTES], &mut self.heard) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if is_not_yet(&error) => return Ok(false),
                Err(error) => {
                    // The alert that says why has to leave; whether it does changes nothing here.
                    let _ = self.tls.write_to(socket);
                    return Err(error);
                }
            }
        }
    }

    fn read(&mut self, socket: &mut Socket, buffer: &mut [u8]) -> io::Result<usize> {
        while self.heard.is_empty() && !self.is_over {
            // Sealed it needs more room than opened.
            self.is_over = self.tls.read_from(socket, buffer, &mut self.heard)? == 0;
        }
        Ok(give(&mut self.heard, buffer))
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.outer {
            None => self.socket.read(buffer),
            Some(outer) => outer.read(&mut self.socket, buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.outer {
            None => self.socket.write(bytes),
            Some(outer) => outer.tls.seal(bytes).map(|()| bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.outer {
            None => Ok(()),
            Some(outer) => match outer.tls.write_to(&mut self.socket)? {
                true => Ok(()),
                false => Err(io::ErrorKind::WouldBlock.into()),
            },
        }
    }
}
