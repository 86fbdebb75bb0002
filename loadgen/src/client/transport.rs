//! A connection of one agent: a socket that never blocks, and the TLS on it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::tls::{TlsOfDevice, TlsSession};

/// A connection, from its first packet on.
pub(crate) struct Transport {
    socket: TcpStream,
    tls: TlsSession,
    was_handshaking: bool,
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
        resumes: bool,
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
        let tls = tls.session(server.ip(), resumes).map_err(io::Error::other)?;
        Ok(Self { socket, tls, was_handshaking: true })
    }

    /// The system says that something is to be done here: does it, and appends what was said to `plain`.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(crate) fn look(&mut self, plain: &mut Vec<u8>) -> io::Result<Looked> {
        let mut looked = Looked::default();
        loop {
            match self.tls.read_from(&mut self.socket, plain) {
                Ok(0) => {
                    looked.is_over = true;
                    break;
                }
                Ok(_) => {}
                Err(error) if is_not_yet(&error) => break,
                Err(error) => {
                    // The alert that says why has to leave; whether it does changes nothing here.
                    let _ = self.tls.write_to(&mut self.socket);
                    return Err(error);
                }
            }
        }
        match self.tls.write_to(&mut self.socket) {
            Err(error) if !is_not_yet(&error) => return Err(error),
            _ => {}
        }
        if self.was_handshaking && !self.tls.is_handshaking() {
            self.was_handshaking = false;
            looked.established = Some(if self.tls.is_resumed() { Resumed::Yes } else { Resumed::No });
        }
        Ok(looked)
    }

    /// Says something, now or as soon as the socket takes it.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(crate) fn send(&mut self, plain: &[u8]) -> io::Result<()> {
        self.tls.seal(plain)?;
        match self.tls.write_to(&mut self.socket) {
            Err(error) if !is_not_yet(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Forgets the connection; the other side finds out by itself.
    pub(crate) fn end(mut self, registry: &Registry) {
        // One that was never registered, or is gone, needs nothing.
        let _ = registry.deregister(&mut self.socket);
    }
}

fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}
