//! A connection of one agent: a socket that never blocks, and the TLS on it.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::tls::{TlsOfDevice, TlsSession};

/// A line that a server says before TLS is shorter.
const FIRST_LINE_BYTES_MAX: usize = 4_096;

/// A connection, from its first packet on.
pub(crate) struct Transport {
    socket: TcpStream,
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
}

/// Whether a handshake was a short one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resumed {
    Yes,
    No,
}

impl Transport {
    /// Begins to connect, from `source` if there is one, and has `registry` tell of it as `token`.
    ///
    /// # Errors
    /// As the system says: no descriptor, no address, nobody there.
    pub(crate) fn connect(
        server: SocketAddr,
        source: Option<IpAddr>,
        tls: &TlsOfDevice,
        how: How,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let socket =
            Socket::new(Domain::for_address(server), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&server.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        let mut socket = TcpStream::from_std(socket.into());
        registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
        let stage = Stage::Connecting { tls: tls.clone(), server: server.ip(), how };
        Ok(Self { socket, stage, was_handshaking: true })
    }

    /// The TLS, once the other side is there.
    fn speak(&mut self) -> io::Result<Option<(&mut TlsSession, &mut TcpStream)>> {
        if let Stage::Connecting { tls, server, how } = &self.stage {
            if let Some(error) = self.socket.take_error()? {
                return Err(error);
            }
            match self.socket.peer_addr() {
                Err(error) if is_not_yet(&error) => return Ok(None),
                peer => peer?,
            };
            if how.server_speaks_first && !has_spoken(&mut self.socket)? {
                return Ok(None);
            }
            let session = tls.session(*server, how.resumes).map_err(io::Error::other)?;
            self.stage = Stage::Speaking(session);
        }
        match &mut self.stage {
            Stage::Speaking(tls) => Ok(Some((tls, &mut self.socket))),
            Stage::Connecting { .. } => Ok(None),
        }
    }

    /// The system says that something is to be done here: does it, by way of `room`, and appends what was said to `plain`. An end that it has told of,
    /// `has_ended`, it does not tell of again.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(crate) fn look(
        &mut self,
        has_ended: bool,
        room: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> io::Result<Looked> {
        let mut looked = Looked::default();
        let was_handshaking = self.was_handshaking;
        let Some((tls, socket)) = self.speak()? else { return Ok(looked) };
        let mut source = Source { socket, is_empty: false };
        while has_ended || !source.is_empty {
            match tls.read_from(&mut source, room, plain) {
                Ok(0) => {
                    looked.is_over = true;
                    break;
                }
                Ok(_) => {}
                Err(error) if is_not_yet(&error) => break,
                Err(error) => {
                    // The alert that says why has to leave; whether it does changes nothing here.
                    let _ = tls.write_to(source.socket);
                    return Err(error);
                }
            }
        }
        match tls.write_to(socket) {
            Err(error) if !is_not_yet(&error) => return Err(error),
            _ => {}
        }
        if was_handshaking && !tls.is_handshaking() {
            looked.established = Some(if tls.is_resumed() { Resumed::Yes } else { Resumed::No });
            self.was_handshaking = false;
        }
        Ok(looked)
    }

    /// Of its session only the keys are left, if it is past its handshake.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(crate) fn rest(&mut self) -> io::Result<()> {
        match &mut self.stage {
            Stage::Speaking(tls) => tls.rest(),
            Stage::Connecting { .. } => Ok(()),
        }
    }

    /// Says something, now or as soon as the socket takes it.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(crate) fn send(&mut self, plain: &[u8]) -> io::Result<()> {
        let Some((tls, socket)) = self.speak()? else { return Err(io::ErrorKind::NotConnected.into()) };
        tls.seal(plain)?;
        match tls.write_to(socket) {
            Err(error) if !is_not_yet(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Forgets the connection; the other side finds out by itself. What was spoken on it, if that had begun.
    pub(crate) fn end(mut self, registry: &Registry) -> Option<TlsSession> {
        // One that was never registered, or is gone, needs nothing.
        let _ = registry.deregister(&mut self.socket);
        match self.stage {
            Stage::Speaking(session) => Some(session),
            Stage::Connecting { .. } => None,
        }
    }
}

/// A socket that is read. What gave less than was asked for is empty, and the system tells of it again when it is not (epoll(7)).
struct Source<'a> {
    socket: &'a mut TcpStream,
    is_empty: bool,
}

impl io::Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.socket.read(buffer)?;
        self.is_empty = bytes > 0 && bytes < buffer.len();
        Ok(bytes)
    }
}

/// Reads the line that a server says first, which it says at once and goes on with TLS; whether it was there.
fn has_spoken(socket: &mut TcpStream) -> io::Result<bool> {
    match socket.read(&mut [0; FIRST_LINE_BYTES_MAX]) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(true),
        Err(error) if is_not_yet(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}
