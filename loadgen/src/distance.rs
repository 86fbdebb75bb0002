//! Distance on one machine: a relay between agents and servers that holds each byte for as long as it would travel.
//!
//! One thread, one poll. All that it holds is due in the order in which it came, since everything travels for the same time: a queue is enough. A
//! connection to it is there at once, as none is that is made from afar; what is said on it, and that it has ended, arrives later.
//!
//! ```text
//! agent --- bytes ---> relay ... half a round trip ... ---> server     (and so back)
//! ```

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use crate::clock::now_ns;

/// The token of whoever ends it; listeners have theirs from 0 on, and the sockets of connections theirs behind those.
const WAKER: Token = Token(usize::MAX);
/// What is read at once.
const READ_BYTES: usize = 64 * 1024;

/// A relay that runs until this is dropped.
pub(crate) struct Distance {
    /// Where it listens, in the order of what it leads to.
    addresses: Vec<SocketAddr>,
    is_over: Arc<AtomicBool>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Distance {
    /// Listens at `address` for each of the servers, which are half of `round_trip` away from there.
    ///
    /// # Errors
    /// When the system gives no port or no thread.
    pub(crate) fn start(
        address: IpAddr,
        servers: Vec<SocketAddr>,
        round_trip: Duration,
    ) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let mut listeners = Vec::new();
        for (server, token) in servers.into_iter().zip(0..) {
            let mut listener = TcpListener::bind((address, 0).into()).context("no port for a relay")?;
            poll.registry().register(&mut listener, Token(token), Interest::READABLE)?;
            listeners.push((listener, server));
        }
        let addresses =
            listeners.iter().map(|(listener, _)| listener.local_addr()).collect::<io::Result<_>>()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let relay = Relay {
            listeners,
            pairs: Vec::new(),
            free: Vec::new(),
            travelling: VecDeque::new(),
            half_ns: round_trip.as_nanos() as u64 / 2,
            room: vec![0; READ_BYTES],
        };
        let ends = Arc::clone(&is_over);
        let thread = std::thread::Builder::new().name("distance".to_owned()).spawn(move || {
            if let Err(error) = relay.run(poll, &ends) {
                eprintln!("bgb-loadgen: the relay that agents come through has ended: {error}");
            }
        })?;
        Ok(Self { addresses, is_over, waker, thread: Some(thread) })
    }

    /// Where it listens, in the order of the servers.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Relay {
    listeners: Vec<(TcpListener, SocketAddr)>,
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    travelling: VecDeque<Travelling>,
    half_ns: u64,
    room: Vec<u8>,
}

/// What was said at one end, and is due at the other.
struct Travelling {
    due_ns: u64,
    /// The connection, its serial and the end that is to have it.
    pair: usize,
    serial: u64,
    end: usize,
    /// Nothing where the end has ended.
    bytes: Vec<u8>,
}

/// A connection: the agent's end of it and the server's.
struct Pair {
    /// What was meant for an earlier one in its place is void.
    serial: u64,
    ends: [End; 2],
}

struct End {
    stream: TcpStream,
    /// What has arrived here, and the socket has not taken yet.
    arrived: VecDeque<u8>,
    /// It says no more.
    has_ended: bool,
    /// The other one's end has arrived, and is told when all that came before is written.
    is_to_end: bool,
    /// It was told so.
    is_told: bool,
}

impl Relay {
    fn run(mut self, mut poll: Poll, is_over: &AtomicBool) -> io::Result<()> {
        let mut events = Events::with_capacity(1_024);
        let mut serial = 0;
        while !is_over.load(Ordering::Relaxed) {
            let due_in = self.travelling.front().map(|next| next.due_ns.saturating_sub(now_ns()));
            match poll.poll(&mut events, due_in.map(Duration::from_nanos)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                let Token(token) = event.token();
                if event.token() == WAKER {
                    continue;
                }
                let Some(socket) = token.checked_sub(self.listeners.len()) else {
                    self.accept(poll.registry(), token, &mut serial)?;
                    continue;
                };
                if event.is_readable() || event.is_error() {
                    self.read(socket / 2, socket % 2);
                }
                if event.is_writable() {
                    self.write(socket / 2, socket % 2);
                }
            }
            self.deliver();
        }
        Ok(())
    }

    fn accept(&mut self, registry: &Registry, listener: usize, serial: &mut u64) -> io::Result<()> {
        loop {
            let (listener, server) = &self.listeners[listener];
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let mut onward = TcpStream::connect(*server)?;
            let pair = self.free.pop().unwrap_or_else(|| {
                self.pairs.push(None);
                self.pairs.len() - 1
            });
            for (stream, end) in [(&mut stream, 0), (&mut onward, 1)] {
                stream.set_nodelay(true)?;
                let token = Token(self.listeners.len() + 2 * pair + end);
                registry.register(stream, token, Interest::READABLE | Interest::WRITABLE)?;
            }
            *serial += 1;
            let end = |stream| End {
                stream,
                arrived: VecDeque::new(),
                has_ended: false,
                is_to_end: false,
                is_told: false,
            };
            self.pairs[pair] = Some(Pair { serial: *serial, ends: [stream, onward].map(end) });
        }
    }

    /// Reads all that an end has said, and sends it on its way.
    fn read(&mut self, at: usize, end: usize) {
        let Some(Some(pair)) = self.pairs.get_mut(at) else { return };
        let due_ns = now_ns() + self.half_ns;
        while !pair.ends[end].has_ended {
            let bytes = match pair.ends[end].stream.read(&mut self.room) {
                Ok(count) => self.room[..count].to_vec(),
                Err(error) if is_not_yet(&error) => return,
                Err(_) => Vec::new(),
            };
            pair.ends[end].has_ended = bytes.is_empty();
            let serial = pair.serial;
            self.travelling.push_back(Travelling { due_ns, pair: at, serial, end: 1 - end, bytes });
        }
    }

    /// Hands over what has arrived.
    fn deliver(&mut self) {
        let now_ns = now_ns();
        while let Some(next) = self.travelling.pop_front_if(|next| next.due_ns <= now_ns) {
            let Some(Some(pair)) = self.pairs.get_mut(next.pair) else { continue };
            if pair.serial == next.serial {
                let end = &mut pair.ends[next.end];
                end.is_to_end |= next.bytes.is_empty();
                end.arrived.extend(next.bytes);
                self.write(next.pair, next.end);
            }
        }
    }

    /// Writes what the socket takes of what has arrived at an end.
    fn write(&mut self, at: usize, end: usize) {
        let Some(Some(pair)) = self.pairs.get_mut(at) else { return };
        let end = &mut pair.ends[end];
        while !end.arrived.is_empty() {
            match end.stream.write(end.arrived.as_slices().0) {
                Ok(count) => drop(end.arrived.drain(..count)),
                Err(error) if is_not_yet(&error) => return,
                // Nobody is there to have it, which reading tells.
                Err(_) => end.arrived.clear(),
            }
        }
        if end.is_to_end && !end.is_told {
            end.is_told = true;
            let _ = end.stream.shutdown(Shutdown::Write);
        }
        if pair.ends.iter().all(|end| end.is_told) {
            self.pairs[at] = None;
            self.free.push(at);
        }
    }
}

/// Whether it may be asked again later: also while a socket is still connecting.
fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;

    const ROUND_TRIP: Duration = Duration::from_millis(200);

    #[test]
    fn what_is_said_arrives_whole_and_half_a_round_trip_later_and_so_does_the_end() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = server.local_addr().unwrap();
        let distance = Distance::start(Ipv4Addr::LOCALHOST.into(), vec![at], ROUND_TRIP).unwrap();
        // More than a socket takes at once.
        let said: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            stream.write_all(&heard).unwrap();
        });
        let mut agent = TcpStream::connect(distance.addresses()[0]).unwrap();
        let begun = Instant::now();
        agent.write_all(&said).unwrap();
        agent.shutdown(Shutdown::Write).unwrap();
        let mut heard = vec![0; 1];
        agent.read_exact(&mut heard).unwrap();
        assert!(begun.elapsed() >= ROUND_TRIP, "{:?}", begun.elapsed());
        agent.read_to_end(&mut heard).unwrap();
        assert!(heard == said);
        echo.join().unwrap();
    }

    #[test]
    fn where_nobody_listens_the_connection_ends() {
        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let distance = Distance::start(Ipv4Addr::LOCALHOST.into(), vec![nobody], ROUND_TRIP).unwrap();
        let mut agent = TcpStream::connect(distance.addresses()[0]).unwrap();
        assert_eq!(agent.read(&mut [0]).unwrap(), 0);
    }
}
