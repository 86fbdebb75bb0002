//! Devices that a test plays itself, on whatever road: signed in, pushed to, answered.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bgb_protocol::action::Action;
use bgb_protocol::message::{AgentMessage, ServerMessage};
use rustls::ClientConnection;
use socket2::{Domain, Socket, Type};

use crate::peer::{ByteStream, Heard, Peer, READ_WAIT};
use crate::road::{LongPollLine, WebSocketLine};
use crate::site::{Device, Site};
use crate::wait::SOON;

/// For a GET to be held, or a session to have become quiet, before the push whose time is taken.
const QUIET: Duration = Duration::from_millis(300);

/// A device on a road.
pub(crate) struct Visitor {
    pub(crate) road: String,
    pub(crate) peer: Peer<ClientConnection>,
}

impl Visitor {
    /// Signs `device` in.
    #[track_caller]
    pub(crate) fn sign_in(
        site: &Site,
        device: &Device,
        road: impl Into<String>,
        line: impl ByteStream + 'static,
    ) -> Self {
        Self { road: road.into(), peer: Peer::by(site, device, line).greet(1, 1).0 }
    }

    /// Hears the next task.
    #[track_caller]
    pub(crate) fn hear_task(&mut self) {
        match self.peer.hear() {
            Heard::Message(message) => {
                assert!(matches!(*message, ServerMessage::Task(_)), "{}: {message:?}", self.road);
            }
            Heard::End => panic!("{}: the session has ended", self.road),
        }
    }

    /// Says something, and hears that it has arrived.
    #[track_caller]
    pub(crate) fn keep_alive(&mut self) {
        self.peer.say(&AgentMessage::Keepalive);
        let answer = self.peer.hear();
        let is_answer = |message: &ServerMessage| matches!(message, ServerMessage::KeepaliveAnswer(_));
        assert!(
            matches!(&answer, Heard::Message(message) if is_answer(message)),
            "{}: {answer:?}",
            self.road
        );
    }

    /// Goes on for so long without a word of the session's; it must not end.
    #[track_caller]
    pub(crate) fn rest(&mut self, during: Duration) {
        assert!(!self.peer.is_ended_within(during), "{}: the session has ended", self.road);
    }
}

/// Devices, and a collection of them.
pub(crate) fn fleet(site: &Site, count: usize) -> Vec<Device> {
    let devices = site.add_devices((0..count).map(|number| format!("pc-{number}")));
    site.collect("lab", &devices);
    devices
}

/// Starts a task, which each of the collection's devices hears while it waits; how long that took, from the order on.
#[track_caller]
pub(crate) fn push(site: &Site, visitors: &mut [Visitor]) -> Vec<(String, Duration)> {
    std::thread::scope(|scope| {
        let hearers: Vec<_> = visitors
            .iter_mut()
            .map(|visitor| {
                scope.spawn(|| {
                    visitor.hear_task();
                    (visitor.road.clone(), Instant::now())
                })
            })
            .collect();
        std::thread::sleep(QUIET);
        let ordered = Instant::now();
        site.start_task(Action::Ping, "lab");
        let heard = hearers.into_iter().map(|hearer| hearer.join().unwrap());
        let heard: Vec<_> = heard.map(|(road, at)| (road, at.duration_since(ordered))).collect();
        for (road, latency) in &heard {
            println!("push: {road}: {latency:.1?}");
            assert!(*latency < SOON, "{road}: {latency:?}");
        }
        heard
    })
}

/// A push that all hear, and an answer of each.
#[track_caller]
pub(crate) fn push_and_answer(site: &Site, visitors: &mut [Visitor]) {
    push(site, visitors);
    visitors.iter_mut().for_each(Visitor::keep_alive);
}

/// Both roads through HTTP to `address`, in HTTPS where `is_covered`; `what` is there.
pub(crate) fn lines(what: &str, address: SocketAddr, is_covered: bool) -> Vec<(String, Box<dyn ByteStream>)> {
    let scheme = if is_covered { "HTTPS" } else { "HTTP" };
    vec![
        (
            format!("{what}, WebSocket over {scheme}"),
            Box::new(WebSocketLine::connect(address, is_covered)) as Box<dyn ByteStream>,
        ),
        (format!("{what}, long-poll over {scheme}"), Box::new(LongPollLine::connect(address, is_covered))),
    ]
}

/// A plain connection from an address of the test's choosing.
pub(crate) fn connect_from(source: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(READ_WAIT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A line that the test looks into.
pub(crate) struct Shared<T>(pub(crate) Arc<Mutex<T>>);

impl<T> Shared<T> {
    pub(crate) fn new(line: T) -> (Self, Arc<Mutex<T>>) {
        let line = Arc::new(Mutex::new(line));
        (Self(Arc::clone(&line)), line)
    }
}

impl<T: Read> Read for Shared<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap().read(buffer)
    }
}

impl<T: Write> Write for Shared<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().flush()
    }
}
