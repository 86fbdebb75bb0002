//! The listening socket of one reactor.
//!
//! Each reactor has its own, bound to the same address with SO_REUSEPORT, so that the kernel spreads connections over them and
//! no lock is shared. Accepting goes in small budgets. When descriptors run out, the listener lets a connection in on a spare
//! one, closes it at once (so that its peer is not left hanging), and rests: since events are edge-triggered, nothing would
//! wake it again but its own timer.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel holds until they are accepted: what Linux allows by default (net.core.somaxconn).
const BACKLOG: i32 = 4096;

/// How long the listener rests when descriptors have run out: long enough for some to be freed, short enough for a
/// device's 5 s to connect.
const REST: Duration = Duration::from_millis(200);

/// What one call to [`Listener::accept`] came to.
#[derive(Debug)]
pub enum Accepted {
    /// A connection.
    Connection(TcpStream, SocketAddr),
    /// Nobody waits.
    Nobody,
    /// Descriptors or memory ran out: it rests; [`Listener::next_deadline`] says until when.
    Resting(io::Error),
}

/// See the module.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    /// Given up for a moment when there is no other descriptor left.
    spare: Option<File>,
    resting_until: Option<Instant>,
    /// The kernel has said that somebody waits, and `accept` has not yet said that nobody does.
    ready: bool,
}

/// Binds `address` for one of several reactors.
///
/// # Errors
/// As the kernel says; a port in use is `AddrInUse`.
pub fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        // One listener for both families where the address is the unspecified one, as administrators expect of [::].
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Begins to listen on a socket that [`bind`] gave: from now on the kernel lets devices connect to it.
///
/// # Errors
/// As the kernel says.
pub fn listen(socket: &StdListener) -> io::Result<()> {
    Ok(rustix::net::listen(socket, BACKLOG)?)
}

/// Whether another process listens on `address`: SO_REUSEPORT would let us share it with any process of the same user.
///
/// # Errors
/// `AddrInUse`, or what else binding without sharing comes to.
pub fn probe(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

impl Listener {
    /// Takes over a socket that listens, and registers it with the poll of `registry`.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn start(socket: StdListener, registry: &Registry, token: Token) -> io::Result<Self> {
        let mut socket = TcpListener::from_std(socket);
        registry.register(&mut socket, token, Interest::READABLE)?;
        Ok(Self { socket, spare: spare(), resting_until: None, ready: true })
    }

    /// The kernel says that somebody waits.
    pub fn on_ready(&mut self) {
        self.ready = true;
    }

    /// Whether to call [`accept`](Self::accept) now.
    #[must_use]
    pub fn has_work(&self, now: Instant) -> bool {
        self.ready && self.resting_until.is_none_or(|until| until <= now)
    }

    /// When a rest ends. One that is over by `now` is none: whoever may not accept at present would be woken by it for nothing,
    /// again and again.
    #[must_use]
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.resting_until.filter(|until| *until > now)
    }

    /// Takes the next connection.
    pub fn accept(&mut self, now: Instant) -> Accepted {
        self.resting_until = None;
        loop {
            match self.socket.accept() {
                Ok((stream, peer)) => return Accepted::Connection(stream, peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready = false;
                    return Accepted::Nobody;
                }
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    self.turn_one_away();
                    self.resting_until = Some(now + REST);
                    return Accepted::Resting(error);
                }
            }
        }
    }

    fn turn_one_away(&mut self) {
        self.spare = None;
        // Accepted and dropped: the peer learns at once, instead of after its own time-out.
        let _ = self.socket.accept();
        self.spare = spare();
    }
}

/// Errors of one connection that went away before it was accepted (accept(2)); the next one may be sound.
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::PermissionDenied
    )
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::Poll;
    use std::net::{Ipv4Addr, TcpStream as StdStream};

    fn loopback(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    #[test]
    fn reactors_share_a_port_and_a_stranger_is_noticed() {
        let first = bind(loopback(0)).unwrap();
        let address = first.local_addr().unwrap();
        let second = bind(address).unwrap();
        assert_eq!(second.local_addr().unwrap(), address);
        listen(&first).unwrap();
        assert_eq!(probe(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn it_accepts_until_nobody_waits() {
        let poll = Poll::new().unwrap();
        let socket = bind(loopback(0)).unwrap();
        let address = socket.local_addr().unwrap();
        listen(&socket).unwrap();
        let mut listener = Listener::start(socket, poll.registry(), Token(0)).unwrap();
        let _peer = StdStream::connect(address).unwrap();
        let now = Instant::now();
        assert!(listener.has_work(now));
        assert!(matches!(listener.accept(now), Accepted::Connection(..)));
        assert!(matches!(listener.accept(now), Accepted::Nobody));
        assert!(!listener.has_work(now));
    }

    #[test]
    fn a_rest_that_is_over_wakes_nobody() {
        let poll = Poll::new().unwrap();
        let socket = bind(loopback(0)).unwrap();
        let mut listener = Listener::start(socket, poll.registry(), Token(0)).unwrap();
        let now = Instant::now();
        listener.resting_until = Some(now + REST);
        assert_eq!(listener.next_deadline(now), Some(now + REST));
        assert!(!listener.has_work(now));
        assert_eq!(listener.next_deadline(now + REST), None);
        assert!(listener.has_work(now + REST));
    }
}
