//! Lines against small servers of their roads, which give back whatever they are told.

mod tunnels;
mod websockets;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Poll};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;
use crate::authority::{Authority, Named};

/// How long anything may take.
const SOON: Duration = Duration::from_secs(20);

/// A connection as a server has it, in an outer TLS or not.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Serves each connection on a thread of its own; where, and by which way.
fn serve(way: Way, each: impl Fn(Box<dyn Stream>) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (address, tls) = (listener.local_addr().unwrap(), way.tls_outer.then(certificate));
    let each = Arc::new(each);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (each, tls) = (Arc::clone(&each), tls.clone());
            thread::spawn(move || each(accept(stream, tls)));
        }
    });
    address
}

fn accept(stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> Box<dyn Stream> {
    stream.set_nodelay(true).unwrap();
    match tls {
        None => Box::new(stream),
        Some(tls) => Box::new(StreamOwned::new(ServerConnection::new(tls).unwrap(), stream)),
    }
}

/// Of an authority that nobody trusts.
fn certificate() -> Arc<ServerConfig> {
    let authority = Authority::new().unwrap();
    let issued = authority.issue(Named::Address(IpAddr::from(Ipv4Addr::LOCALHOST))).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.key));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A line and whoever looks after it.
struct Bench {
    poll: Poll,
    line: Line,
    is_there: bool,
    heard: Vec<u8>,
}

impl Bench {
    fn new(way: Way, server: SocketAddr) -> Self {
        let poll = Poll::new().unwrap();
        let dial = Rc::new(Dial::new(poll.registry(), way).unwrap());
        let line = Line::connect(&dial, Ends { server, source: None, token: 0 }).unwrap();
        Self { poll, line, is_there: false, heard: Vec::new() }
    }

    /// One that is there.
    fn connected(way: Way, server: SocketAddr) -> Self {
        let mut bench = Self::new(way, server);
        bench.run_until(|bench| bench.is_there).unwrap();
        bench
    }

    fn say(&mut self, bytes: &[u8]) {
        assert_eq!(self.line.write(bytes).unwrap(), bytes.len());
        match self.line.flush() {
            Err(error) if !is_not_yet(&error) => panic!("{error}"),
            _ => {}
        }
    }

    /// Heeds what the system tells until it is `done`.
    fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> io::Result<()> {
        let (mut events, deadline) = (Events::with_capacity(8), Instant::now() + SOON);
        while !done(self) {
            assert!(Instant::now() < deadline, "it takes too long; heard so far: {:?}", self.heard);
            self.poll.poll(&mut events, Some(Duration::from_millis(50)))?;
            for event in &events {
                self.line.note(Told { socket: event.token().0, has_ended: event.is_read_closed() });
                self.look()?;
            }
        }
        Ok(())
    }

    fn look(&mut self) -> io::Result<()> {
        self.is_there = self.is_there || self.line.is_there(false)?;
        // Less than what is said at once, so that some of it waits.
        let mut room = [0; 100];
        while self.is_there {
            match self.line.read(&mut room) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => self.heard.extend_from_slice(&room[..bytes]),
                Err(error) if is_not_yet(&error) => break,
                Err(error) => return Err(error),
            }
        }
        match self.line.flush() {
            Err(error) if !is_not_yet(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Says that, and hears it again.
    fn echo(&mut self, said: &[u8]) {
        self.heard.clear();
        self.say(said);
        self.run_until(|bench| bench.heard.len() >= said.len()).unwrap();
        assert!(self.heard == said);
    }
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|place| (place % 251) as u8).collect()
}

#[test]
fn a_socket_carries_bytes_as_they_are_and_ends_with_its_peer() {
    let server = serve(Way::default(), |mut stream| {
        let mut room = [0; 1_000];
        while let Ok(bytes @ 1..) = stream.read(&mut room) {
            stream.write_all(&room[..bytes]).unwrap();
            if room[..bytes].ends_with(b"bye") {
                return;
            }
        }
    });
    let mut bench = Bench::connected(Way::default(), server);
    for count in [1, 100, 101, 10_000] {
        bench.echo(&bytes(count));
    }
    bench.say(b"bye");
    let end = bench.run_until(|_| false).unwrap_err();
    assert_eq!((end.kind(), bench.heard.ends_with(b"bye")), (io::ErrorKind::UnexpectedEof, true));
}

#[test]
fn where_nobody_listens_no_line_comes_about() {
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    for way in Way::ALL {
        let end = Bench::new(way, nobody).run_until(|_| false).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionRefused, "{}", way.name());
    }
}
