//! A connection of one agent: a line that never blocks, and the TLS on it.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::rc::Rc;

use super::line::{Dial, Ends, Line, SOCKETS_MAX, Told, is_not_yet};
use super::tls::{TlsOfDevice, TlsSession};

/// A connection, from its first packet on.
pub(crate) struct Transport {
    line: Line,
    stage: Stage,
    was_handshaking: bool,
}

/// How far it is. TLS begins when the other side is there: a ticket is good for one attempt, and must not be spent on nobody.
enum Stage {
    Connecting { tls: TlsOfDevice, server: IpAddr, how: How },
    Speaking(TlsSession),
}

/// How a connection begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Whether the device's ticket is used.
    pub(crate) resumes: bool,
    /// Whether the server says a line before TLS begins.
    pub(crate) server_speaks_first: bool,
}

/// What a look at a connection came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Looked {
    /// The handshake has ended with this look, and whether it resumed a session.
    pub(crate) established: Option<Resumed>,
    /// The other side has ended it.
    pub(crate) is_over: bool,
    /// Of each of its sockets: it waits for so many seconds, as the server has asked, and is to be told when they are over.
    pub(crate) pauses: [Option<u32>; SOCKETS_MAX],
}

/// Whether a handshake was a short one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resumed {
    Yes,
    No,
}

impl Transport {
    /// Begins to connect.
    ///
    /// # Errors
    /// As the system says: no descriptor, no address, nobody there.
    pub(crate) fn connect(dial: &Rc<Dial>, ends: Ends, tls: &TlsOfDevice, how: How) -> io::Result<Self> {
        let line = Line::connect(dial, ends)?;
        let stage = Stage::Connecting { tls: tls.clone(), server: ends.server.ip(), how };
        Ok(Self { line, stage, was_handshaking: true })
    }

    /// The TLS, once the other side is there.
    fn speak(&mut self) -> io::Result<Option<(&mut TlsSession, &mut Line)>> {
        if let Stage::Connecting { tls, server, how } = &self.stage {
            if !self.line.is_there(how.server_speaks_first)? {
                return Ok(None);
            }
            let session = tls.session(*server, how.resumes).map_err(io::Error::other)?;
            self.stage = Stage::Speaking(session);
        }
        match &mut self.stage {
            Stage::Speaking(tls) => Ok(Some((tls, &mut self.line))),
            Stage::Connecting { .. } => Ok(None),
        }
    }

    /// The system has told that something is to be done here: does it, by way of `room`, and appends what was said to `plain`.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(crate) fn look(&mut self, told: Told, room: &mut [u8], plain: &mut Vec<u8>) -> io::Result<Looked> {
        self.line.note(told);
        self.go_on(room, plain)
    }

    /// A pause of one of its sockets is over: it goes on as if the system had told of it.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(crate) fn end_pause(
        &mut self,
        socket: usize,
        room: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> io::Result<Looked> {
        self.line.go_on(socket);
        self.go_on(room, plain)
    }

    fn go_on(&mut self, room: &mut [u8], plain: &mut Vec<u8>) -> io::Result<Looked> {
        let mut looked = Looked::default();
        let was_handshaking = self.was_handshaking;
        let Some((tls, line)) = self.speak()? else { return Ok(looked) };
        loop {
            match tls.read_from(line, room, plain) {
                Ok(0) => {
                    looked.is_over = true;
                    break;
                }
                Ok(_) => {}
                Err(error) if is_not_yet(&error) => break,
                Err(error) => {
                    // The alert that says why has to leave; whether it does changes nothing here.
                    let _ = tls.write_to(line).and_then(|_| line.flush());
                    return Err(error);
                }
            }
        }
        write(tls, line)?;
        looked.pauses = line.take_pauses();
        if was_handshaking && !tls.is_handshaking() {
            looked.established = Some(if tls.is_resumed() { Resumed::Yes } else { Resumed::No });
            self.was_handshaking = false;
        }
        Ok(looked)
    }

    /// Of its sessions, the outer ones too, only the keys are left, where they are past their handshakes.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(crate) fn rest(&mut self) -> io::Result<()> {
        match &mut self.stage {
            Stage::Speaking(tls) => tls.rest().and_then(|()| self.line.rest()),
            Stage::Connecting { .. } => Ok(()),
        }
    }

    /// Says something, now or as soon as the line takes it.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(crate) fn send(&mut self, plain: &[u8]) -> io::Result<()> {
        let Some((tls, line)) = self.speak()? else { return Err(io::ErrorKind::NotConnected.into()) };
        tls.seal(plain)?;
        write(tls, line)
    }

    /// Says that it ends, where the other side would not find out by itself.
    pub(crate) fn part(&mut self) {
        if let Stage::Speaking(tls) = &mut self.stage
            && !self.line.ends_with_its_sockets()
        {
            // Where that cannot leave at once the tunnel ends some time later, as that of a machine whose power fails.
            let _ = tls.close().and_then(|()| write(tls, &mut self.line));
        }
    }

    /// Forgets the connection. What was spoken on it, if that had begun.
    pub(crate) fn end(self) -> Option<TlsSession> {
        match self.stage {
            Stage::Speaking(session) => Some(session),
            Stage::Connecting { .. } => None,
        }
    }
}

/// Has the line take what it takes of what TLS has to say.
fn write(tls: &mut TlsSession, line: &mut Line) -> io::Result<()> {
    match tls.write_to(line).and_then(|_| line.flush()) {
        Err(error) if !is_not_yet(&error) => Err(error),
        _ => Ok(()),
    }
}
