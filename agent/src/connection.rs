//! One connection to a server, on a thread of its own: TCP, TLS, frames.
//!
//! ```text
//!  connecting --> handshake --> open --end asked--> closing
//!       \             \           \                    \
//!        +--> Failed   +--> Failed +--> Lost            +--> (nothing is said)
//! ```
//!
//! It owns the socket and its buffers; the thread waits in poll(2) for the socket and for a waker, so it both hears and speaks
//! without delay and costs nothing at rest. It knows frames and messages but none of their meaning. Laws: what is held of either
//! direction is bounded; a connection says Connected before anything else, and Failed or Lost once, as its last word; after
//! [`Connection::end`], or when dropped, it says nothing that its owner would still listen to.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bgb_protocol::frame::{BODY_BYTES_MAX, Frame, HEADER_BYTES};
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::message::{AgentMessage, ServerMessage};
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use socket2::{SockRef, TcpKeepalive};

use crate::tls::{Tls, TlsSession};

/// Time to connect on a road (protocol.md).
const CONNECT: Duration = Duration::from_secs(5);

/// Time for the TLS handshake: what a server gives it (docs/promises.md).
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Time to send what was said last when the connection ends.
const CLOSE: Duration = Duration::from_secs(2);

/// TCP keepalive (docs/promises.md, Presence): after so long at rest …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(200);
/// … every so often …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … so many times.
const KEEPALIVE_RETRIES: u32 = 3;

/// Most bytes that wait to be sent: the results under way at a time, and their like again in small messages.
const WAITING_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Most bytes that were heard and make no whole frame yet, and a read's worth more.
const HEARD_BYTES_MAX: usize = HEADER_BYTES + BODY_BYTES_MAX + 64 * 1024;

/// What a connection says.
#[derive(Debug)]
pub(crate) enum Event {
    /// It stands, and the server is one.
    Connected,
    /// It did not come about.
    Failed(String),
    /// The server said something.
    Said(ServerMessage),
    /// It is gone.
    Lost(String),
}

/// What is asked of the thread.
enum Command {
    Say(AgentMessage),
    End,
}

/// A connection, seen from its owner. Dropped, it ends without waiting.
pub(crate) struct Connection {
    commands: Sender<Command>,
    waker: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

/// Where to connect.
pub(crate) struct Destination {
    /// `host:port`.
    pub(crate) server: String,
    /// The agent's own time.
    pub(crate) now: UnixMillis,
    /// Its time floor.
    pub(crate) floor: UnixMillis,
}

impl Connection {
    /// Begins to connect. Events come with `number`, by which their receiver tells this connection's from another's.
    ///
    /// # Errors
    /// When there is no thread or descriptor to be had.
    pub(crate) fn open(
        destination: Destination,
        tls: Arc<Tls>,
        number: u64,
        events: Sender<(u64, Event)>,
    ) -> io::Result<Self> {
        let waker = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, orders) = unbounded();
        let its_waker = Arc::clone(&waker);
        let thread = std::thread::Builder::new().name("connection".to_owned()).spawn(move || {
            let tell = |event| events.send((number, event)).is_ok();
            let last_word = match connect(&destination, &tls) {
                Err(fault) => Event::Failed(format!("{}: {fault}", destination.server)),
                Ok(line) => {
                    if !tell(Event::Connected) {
                        return;
                    }
                    match line.run(&orders, &its_waker, &tell) {
                        Ok(()) => return,
                        Err(fault) => Event::Lost(format!("{}: {fault}", destination.server)),
                    }
                }
            };
            tell(last_word);
        })?;
        Ok(Self { commands, waker, thread })
    }

    /// Says something, as soon as the line takes it.
    pub(crate) fn say(&self, message: AgentMessage) {
        self.order(Command::Say(message));
    }

    /// Ends the connection after what was said on it; the thread that is given ends within seconds.
    pub(crate) fn end(self) -> JoinHandle<()> {
        self.order(Command::End);
        self.thread
    }

    fn order(&self, command: Command) {
        // A thread that has ended says so in its last event, not here.
        if self.commands.send(command).is_ok() {
            let _ = rustix::io::write(&*self.waker, &1_u64.to_ne_bytes());
        }
    }
}

/// Makes the TCP connection and the TLS session on it.
fn connect(destination: &Destination, tls: &Tls) -> Result<Line, String> {
    let (host, _) = destination.server.rsplit_once(':').ok_or("the address has no port")?;
    let socket = connect_tcp(&destination.server)?;
    // Only now: a session takes the ticket of the one before with it, which must not be spent on a server that is not there.
    let session = tls.session(host, destination.now, destination.floor)?;
    let (heard, waiting) = (Vec::new(), VecDeque::new());
    let mut line = Line { socket, session, heard, waiting, waiting_bytes: 0, peer: Peer::Speaking };
    if let Err(fault) = line.shake_hands(Instant::now() + HANDSHAKE) {
        tls.take_back(line.session);
        return Err(fault);
    }
    let server = line.session.verify_server()?;
    tracing::info!(address = %destination.server, %server, "connected");
    Ok(line)
}

fn connect_tcp(server: &str) -> Result<TcpStream, String> {
    let addresses =
        server.to_socket_addrs().map_err(|error| format!("the name cannot be resolved: {error}"))?;
    connect_to(&addresses.collect::<Vec<_>>(), CONNECT)
}

/// Tries each address in its turn, within `limit` for all of them. Each has an equal part of what is left, so that one from
/// which nothing comes back (a road that IPv6 does not lead along) does not take the time of those behind it.
fn connect_to(addresses: &[SocketAddr], limit: Duration) -> Result<TcpStream, String> {
    let deadline = Instant::now() + limit;
    let mut fault = "the name has no address".to_owned();
    for (at, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / (addresses.len() - at) as u32;
        if share.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(address, share) {
            Ok(socket) => {
                prepare(&socket).map_err(|error| error.to_string())?;
                return Ok(socket);
            }
            Err(error) => fault = format!("{address}: {error}"),
        }
    }
    Err(fault)
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)
}

/// The socket, the TLS session on it, and what is under way in either direction.
struct Line {
    socket: TcpStream,
    session: TlsSession,
    /// Bytes of frames, not yet decoded.
    heard: Vec<u8>,
    /// Frames, not yet sealed.
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    peer: Peer,
}

/// What the peer has said of its own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Speaking,
    /// It says nothing more; what it said before is still to be decoded.
    Finished,
}

/// Whether the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Open,
    /// The owner wants no more of it.
    End,
}

impl Line {
    fn shake_hands(&mut self, deadline: Instant) -> Result<(), String> {
        while self.session.is_handshaking() || self.session.wants_write() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("the server did not finish the TLS handshake in time".to_owned());
            }
            self.wait(None, Some(left))?;
            if let Err(fault) = self.receive() {
                // The alert that says why; whether it arrives is the server's affair.
                let _ = self.send();
                return Err(fault);
            }
            self.send()?;
            if self.peer == Peer::Finished {
                return Err("the server closed the connection during the TLS handshake".to_owned());
            }
        }
        Ok(())
    }

    /// Hears and speaks until either side has had enough; `Ok` when it was ours.
    fn run(
        mut self,
        orders: &Receiver<Command>,
        waker: &OwnedFd,
        tell: &dyn Fn(Event) -> bool,
    ) -> Result<(), String> {
        loop {
            // What came with the end of the handshake is decoded before waiting for more.
            if self.decode(tell)? == Course::End {
                return Ok(());
            }
            if self.peer == Peer::Finished {
                return Err("the server closed the connection".to_owned());
            }
            let course = self.take_orders(orders)?;
            self.send()?;
            if course == Course::End {
                return self.close();
            }
            self.wait(Some(waker), None)?;
            // Before the orders are looked at: one that comes later wakes again.
            let _ = rustix::io::read(waker, &mut [0; 8]);
            self.receive()?;
        }
    }

    fn take_orders(&mut self, orders: &Receiver<Command>) -> Result<Course, String> {
        loop {
            match orders.try_recv() {
                Ok(Command::Say(message)) => {
                    let mut frame = Vec::new();
                    message.encode(&mut frame);
                    self.waiting_bytes += frame.len();
                    self.waiting.push_back(frame);
                    if self.waiting_bytes > WAITING_BYTES_MAX {
                        return Err("the server does not take what it is sent".to_owned());
                    }
                }
                Ok(Command::End) | Err(TryRecvError::Disconnected) => return Ok(Course::End),
                Err(TryRecvError::Empty) => return Ok(Course::Open),
            }
        }
    }

    /// Waits for the socket, the waker or the end of `limit`.
    fn wait(&self, waker: Option<&OwnedFd>, limit: Option<Duration>) -> Result<(), String> {
        let mut interest = PollFlags::IN;
        if self.session.wants_write() || !self.waiting.is_empty() {
            interest |= PollFlags::OUT;
        }
        let mut fds = vec![PollFd::from_borrowed_fd(self.socket.as_fd(), interest)];
        fds.extend(waker.map(|waker| PollFd::new(waker, PollFlags::IN)));
        let limit = limit.map(|limit| Timespec::try_from(limit + Duration::from_millis(1)));
        let limit = limit.transpose().map_err(|_| "a time-out is out of range".to_owned())?;
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Reads what is there, into `heard`.
    fn receive(&mut self) -> Result<(), String> {
        while self.heard.len() < HEARD_BYTES_MAX {
            match self.session.read_from(&mut self.socket) {
                Ok(0) => {
                    self.peer = Peer::Finished;
                    return Ok(());
                }
                Ok(_) => {
                    if !self.session.open(&mut self.heard)? {
                        self.peer = Peer::Finished;
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Hands on every whole frame that was heard.
    fn decode(&mut self, tell: &dyn Fn(Event) -> bool) -> Result<Course, String> {
        let mut from = 0;
        while let Some((frame, used)) =
            Frame::decode(&self.heard[from..]).map_err(|error| error.to_string())?
        {
            from += used;
            let message = ServerMessage::decode(frame).map_err(|error| error.to_string())?;
            if let Some(message) = message
                && !tell(Event::Said(message))
            {
                return Ok(Course::End);
            }
        }
        self.heard.drain(..from);
        if self.heard.is_empty() {
            // At rest a connection holds no buffer.
            self.heard = Vec::new();
        }
        Ok(Course::Open)
    }

    /// Seals and writes as much as the socket takes.
    fn send(&mut self) -> Result<(), String> {
        loop {
            while self.session.wants_write() {
                match self.session.write_to(&mut self.socket) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
            let Some(frame) = self.waiting.front_mut() else { return Ok(()) };
            let sealed = self.session.seal(frame)?;
            self.waiting_bytes -= sealed;
            frame.drain(..sealed);
            if frame.is_empty() {
                self.waiting.pop_front();
            }
        }
    }

    /// Sends what is left and says that nothing follows.
    fn close(mut self) -> Result<(), String> {
        let deadline = Instant::now() + CLOSE;
        let mut is_told = false;
        loop {
            self.send()?;
            if self.waiting.is_empty() && !is_told {
                self.session.close();
                is_told = true;
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let is_sent = is_told && !self.session.wants_write();
            if left.is_zero() || is_sent || self.peer == Peer::Finished {
                return Ok(());
            }
            self.wait(None, Some(left))?;
            // What it says now, nobody here waits for any more.
            self.heard.clear();
            self.receive()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::tls::tests::{Authority, device};

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
        let socket = connect_to(&[nowhere, nowhere, there], Duration::from_millis(900)).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), there);
        assert!(connect_to(&[nowhere], Duration::from_millis(100)).unwrap_err().contains("timed out"));
    }

    #[test]
    fn a_server_that_lets_go_without_a_word_is_told_the_same_hello_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let tls = device(&Authority::new());
        let hello = || {
            std::thread::scope(|scope| {
                let heard = scope.spawn(|| {
                    let (mut socket, _) = listener.accept().unwrap();
                    let mut record = vec![0; 5];
                    socket.read_exact(&mut record).unwrap();
                    record.resize(5 + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
                    socket.read_exact(&mut record[5..]).unwrap();
                    record
                });
                let (now, floor) = (UnixMillis(0), UnixMillis(0));
                let fault = connect(&Destination { server: server.clone(), now, floor }, &tls).err().unwrap();
                assert!(fault.contains("closed the connection during"), "{fault}");
                heard.join().unwrap()
            })
        };
        let first = hello();
        assert_eq!(hello(), first);
        assert_eq!(hello(), first);
    }
}
