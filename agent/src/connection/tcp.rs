//! TCP: connections to a name, and the road straight over one.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::road::{Patience, Road, RoadFault, Waits};

/// Time to connect on a road (docs/protocol.md, 5).
const CONNECT: Duration = Duration::from_secs(5);

/// TCP keepalive (docs/promises.md, Presence): after so long at rest …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(200);
/// … every so often …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … so many times.
const KEEPALIVE_RETRIES: u32 = 3;

/// Bytes that tell an answer in HTTP: `HTTP/1.1 403`.
const STATUS_LINE_BYTES: usize = 12;

/// Connects to `address`, `host:port`; reading and writing do not wait. Whoever wakes `waker` calls it off, but for the look-up of the name, which
/// is the system's affair and takes as long as its resolver does.
///
/// # Errors
/// Why there is no connection.
pub(super) fn connect(address: &str, waker: Option<&OwnedFd>) -> Result<TcpStream, RoadFault> {
    let addresses = address
        .to_socket_addrs()
        .map_err(|error| RoadFault::new(format!("the name {address} cannot be resolved: {error}")))?;
    connect_to(&addresses.collect::<Vec<_>>(), &Patience::of(CONNECT, waker))
}

/// Tries each address in its turn, as long as patience for all of them lasts. Each has an equal part of what is left, so that one from
/// which nothing comes back (a road that IPv6 does not lead along) does not take the time of those behind it.
fn connect_to(addresses: &[SocketAddr], patience: &Patience<'_>) -> Result<TcpStream, RoadFault> {
    let mut fault = RoadFault::new("the name has no address");
    for (at, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let share = patience.deadline.saturating_duration_since(now) / (addresses.len() - at) as u32;
        if share.is_zero() || patience.is_called_off() {
            break;
        }
        match reach(*address, &Patience { deadline: now + share, ..*patience }) {
            Ok(socket) => {
                prepare(&socket)?;
                return Ok(socket);
            }
            Err(RoadFault { text, reason }) => {
                // An address to which this machine has no way at all says nothing of the others.
                fault = RoadFault { text: format!("{address}: {text}"), reason: fault.reason.or(reason) };
            }
        }
    }
    Err(fault)
}

/// Connects to one address.
fn reach(address: SocketAddr, patience: &Patience<'_>) -> Result<TcpStream, RoadFault> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
            return Err(error.into());
        }
        _ => {}
    }
    loop {
        if let Some(error) = socket.take_error()? {
            return Err(error.into());
        }
        if socket.peer_addr().is_ok() {
            return Ok(socket.into());
        }
        let mut waits = Waits::default();
        waits.socket(socket.as_fd(), true);
        patience.wait(waits, "connecting")?;
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)?;
    socket.set_nodelay(true)
}

/// The road straight over TCP.
pub(super) struct Tcp {
    socket: TcpStream,
    /// The first bytes that came.
    first: Vec<u8>,
}

impl Tcp {
    /// Over a socket on which reading and writing do not wait.
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { socket, first: Vec::new() }
    }
}

impl Read for Tcp {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.socket.read(buffer)?;
        let wanted = STATUS_LINE_BYTES.saturating_sub(self.first.len()).min(count);
        self.first.extend_from_slice(&buffer[..wanted]);
        Ok(count)
    }
}

impl Write for Tcp {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Road for Tcp {
    fn go_on(&mut self, _now: Instant) -> io::Result<()> {
        Ok(())
    }

    fn waits<'a>(&'a self, wants_write: bool, waits: &mut Waits<'a>) {
        waits.socket(self.socket.as_fd(), wants_write);
    }

    fn is_flushed(&self) -> bool {
        true
    }

    fn answer_in_http(&self) -> Option<u16> {
        // TLS has had enough with the first byte: the others are still there.
        let mut bytes = self.first.clone();
        let mut more = [0; STATUS_LINE_BYTES];
        let count = self.socket.peek(&mut more).unwrap_or(0);
        bytes.extend_from_slice(&more[..count]);
        let status = bytes.strip_prefix(b"HTTP/1.")?.get(2..5)?;
        std::str::from_utf8(status).ok()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use bgb_protocol::message::RoadReason;
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    /// A listener whose backlog is full, so that nothing comes back to whoever connects: as silent as a road to nowhere. It is
    /// so while the sockets live.
    fn silent() -> (SocketAddr, Vec<socket2::Socket>) {
        let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = vec![listener];
        for _ in 0..4 {
            let filler = socket();
            filler.set_nonblocking(true).unwrap();
            // In progress, or waiting for ever: either fills the backlog.
            let _ = filler.connect(&address);
            held.push(filler);
        }
        (address.as_socket().unwrap(), held)
    }

    #[test]
    fn an_address_from_which_nothing_comes_back_leaves_time_for_the_next() {
        let (nowhere, _held) = silent();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let patience = |millis| Patience::of(Duration::from_millis(millis), None);
        let socket = connect_to(&[nowhere, nowhere, there], &patience(900)).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), there);
        let fault = connect_to(&[nowhere], &patience(100)).unwrap_err();
        assert!(fault.text.contains("too long") && fault.reason == Some(RoadReason::TimedOut), "{fault}");
    }

    #[test]
    fn whoever_wants_no_connection_any_more_does_not_wait_for_one() {
        let (nowhere, _held) = silent();
        let waker = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        std::thread::scope(|scope| {
            let attempt = scope.spawn(|| connect_to(&[nowhere, nowhere], &Patience::of(HOUR, Some(&waker))));
            std::thread::sleep(Duration::from_millis(50));
            rustix::io::write(&waker, &1_u64.to_ne_bytes()).unwrap();
            let fault = attempt.join().unwrap().unwrap_err();
            assert!(fault.text.contains("called off") && fault.reason.is_none(), "{fault}");
        });
    }

    #[test]
    fn an_address_without_a_way_does_not_hide_why_the_others_failed() {
        let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let nowhere = SocketAddr::from((Ipv4Addr::BROADCAST, 1));
        let reason = |addresses: &[SocketAddr]| {
            connect_to(addresses, &Patience::of(CONNECT, None)).unwrap_err().reason
        };
        assert_eq!(reason(&[nowhere]), None);
        for addresses in [[refusing, nowhere], [nowhere, refusing]] {
            assert_eq!(reason(&addresses), Some(RoadReason::Refused));
        }
    }

    #[test]
    fn a_port_where_nobody_listens_has_refused() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(connect(&address.to_string(), None).unwrap_err().reason, Some(RoadReason::Refused));
        assert_eq!(connect("nowhere.invalid:1", None).unwrap_err().reason, None);
    }
}
