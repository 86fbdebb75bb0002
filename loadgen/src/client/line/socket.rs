//! A socket that never blocks, of which the system tells by edges.

use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry};
use socket2::{Domain, Protocol, Type};

use super::{Ends, is_not_yet};

/// A line that a server says before TLS is shorter.
const FIRST_LINE_BYTES_MAX: usize = 4_096;

/// See the module. Dropping it closes it, and the system tells of it no more.
pub(crate) struct Socket {
    stream: TcpStream,
    /// What gave less than was asked for is empty, and the system tells of it again when it is not (epoll(7)).
    is_empty: bool,
    /// The other side has ended it, which the system does not tell of again: it is read to that end.
    has_ended: bool,
}

impl Socket {
    /// Begins to connect, and has `registry` tell of it.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn connect(registry: &Registry, ends: Ends, number: usize) -> io::Result<Self> {
        let domain = Domain::for_address(ends.server);
        let socket = socket2::Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = ends.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&ends.server.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        let mut stream = TcpStream::from_std(socket.into());
        registry.register(&mut stream, ends.token(number), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { stream, is_empty: false, has_ended: false })
    }

    /// Whether it is connected.
    ///
    /// # Errors
    /// Why it is not, and will not be.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Err(error) if is_not_yet(&error) => Ok(false),
            peer => peer.map(|_| true),
        }
    }

    /// Reads the line that a server says first, which it says at once and goes on with TLS; whether it was there.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn has_spoken(&mut self) -> io::Result<bool> {
        match self.stream.read(&mut [0; FIRST_LINE_BYTES_MAX]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(error) if is_not_yet(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The system tells of it.
    pub(super) fn note(&mut self, has_ended: bool) {
        self.is_empty = false;
        self.has_ended |= has_ended;
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_empty && !self.has_ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = self.stream.read(buffer)?;
        self.is_empty = bytes > 0 && bytes < buffer.len();
        Ok(bytes)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
