//! Servers and proxies on loopback, on threads that wait.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bgb_http::{Decoded, RequestHead, ResponseHead};
use bgb_protocol::frame::Frame;
use bgb_protocol::message::{AgentMessage, ServerMessage};
use crossbeam_channel::{Receiver, Sender, unbounded};
use tungstenite::protocol::Message;

use crate::config::RoadsConfig;
use crate::connection::Network;
use crate::proxy::Proxies;
use crate::tls::OuterTls;
use crate::tls::tests::{Authority, device, inner_stream, old_outer_stream, outer_stream};

/// Longest wait for anything: many times what it takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What an HTTP port speaks.
#[derive(Clone)]
pub(crate) enum Http {
    Plain,
    /// HTTPS, with a certificate of this authority.
    Outer(Arc<Authority>),
    /// The same in TLS 1.2.
    OldOuter(Arc<Authority>),
}

impl Http {
    fn on(&self, socket: TcpStream) -> Box<dyn Stream> {
        match self {
            Self::Plain => Box::new(socket),
            Self::Outer(authority) => Box::new(outer_stream(authority, socket)),
            Self::OldOuter(authority) => Box::new(old_outer_stream(authority, socket)),
        }
    }
}

/// A stream of any of the kinds above.
pub(crate) trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// A port that nobody listens on.
pub(crate) fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Serves each connection on a thread of its own; gives the port.
fn serve(on_socket: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let on_socket = Arc::new(on_socket);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let on_socket = Arc::clone(&on_socket);
            let socket = socket.unwrap();
            socket.set_nodelay(true).unwrap();
            std::thread::spawn(move || on_socket(socket));
        }
    });
    port
}

/// A port that says this to whatever it is sent, and closes.
pub(crate) fn answering(answer: &'static [u8]) -> u16 {
    serve(move |mut socket| {
        first_record(&mut socket);
        socket.write_all(answer).unwrap();
    })
}

/// A port that answers with this, again and again and without end: a request, or what comes on a WebSocket.
pub(crate) fn flooding(is_websocket: bool, answer: &'static [u8]) -> u16 {
    let answers = answer.repeat(32 * 1024);
    serve(move |mut socket| {
        if is_websocket {
            tungstenite::accept(socket.try_clone().unwrap()).unwrap();
        } else {
            read_request(&mut socket).unwrap();
        }
        while socket.write_all(&answers).is_ok() {}
    })
}

/// A TLS record, the first that comes.
pub(crate) fn first_record(socket: &mut TcpStream) -> Vec<u8> {
    let mut record = vec![0; 5];
    socket.read_exact(&mut record).unwrap();
    record.resize(5 + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
    socket.read_exact(&mut record[5..]).unwrap();
    record
}

/// A site, whose servers answer keepalives and wait for goodbye.
pub(crate) struct Site {
    authority: Arc<Authority>,
    goodbyes: (Sender<bool>, Receiver<bool>),
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::named("the site's authority")
    }

    pub(crate) fn named(authority: &str) -> Self {
        Self { authority: Arc::new(Authority::named(authority)), goodbyes: unbounded() }
    }

    pub(crate) fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.authority)
    }

    /// A device of the site's.
    pub(crate) fn network(&self, roads: RoadsConfig, proxies: Proxies) -> Arc<Network> {
        let outer = Arc::new(OuterTls::new(self.authority.certificate(), Vec::new()).unwrap());
        Arc::new(Network { tls: device(&self.authority), outer, roads, proxies, counts: Arc::default() })
    }

    /// What a keepalive is answered with: more than one record, and more than one read.
    pub(crate) fn answer(&self) -> Vec<u8> {
        (0..40_000_u32).map(|at| (at % 251) as u8).collect()
    }

    /// Whether a session has ended with goodbye and then close_notify.
    pub(crate) fn hears_goodbye(&self) -> bool {
        self.goodbyes.1.recv_timeout(PATIENCE).unwrap()
    }

    /// The server's end of a session, on a thread of its own.
    fn session(&self) -> impl Fn(&mut dyn Stream) + Send + Sync + Clone + 'static {
        let (authority, goodbyes, answer) = (self.authority(), self.goodbyes.0.clone(), self.answer());
        move |stream: &mut dyn Stream| {
            let mut tls = inner_stream(&authority, stream);
            if let Some(ended_well) = converse(&mut tls, &answer) {
                let _ = goodbyes.send(ended_well);
            }
        }
    }

    pub(crate) fn serve_tcp(&self) -> u16 {
        let session = self.session();
        serve(move |mut socket| session(&mut socket))
    }

    pub(crate) fn serve_websocket(&self, http: Http) -> u16 {
        let session = self.session();
        serve(move |socket| {
            let Ok(socket) = tungstenite::accept(http.on(socket)) else { return };
            session(&mut Messages { socket, left: Vec::new() });
        })
    }

    /// Serves long-poll; where it plays a proxy as well, that asks for `authorization`.
    pub(crate) fn serve_tunnels(&self, http: Http, authorization: Option<&'static str>) -> Arc<Tunnels> {
        let session = self.session();
        let begin = move |pipe: Arc<Pipe>| {
            let session = session.clone();
            std::thread::spawn(move || session(&mut End(pipe)));
        };
        let (lose_every, lost, requests, is_silent, unanswered) = Default::default();
        let begin = Box::new(begin);
        let tunnels = Tunnels {
            port: AtomicU16::default(),
            lose_every,
            lost,
            requests,
            is_silent,
            unanswered,
            authorization,
            begin,
            pipes: Mutex::default(),
        };
        let tunnels = Arc::new(tunnels);
        let served = Arc::clone(&tunnels);
        let port = serve(move |socket| {
            if served.is_silent.load(Ordering::Relaxed) {
                served.unanswered.lock().unwrap().push(socket);
                return;
            }
            served.serve(&mut *http.on(socket));
        });
        tunnels.port.store(port, Ordering::Relaxed);
        tunnels
    }
}

/// Answers keepalives until goodbye; whether close_notify came then. `None` when there was no session.
fn converse(stream: &mut (impl Read + Write), answer: &[u8]) -> Option<bool> {
    let mut heard = Vec::new();
    loop {
        while let Some((frame, used)) = Frame::decode(&heard).unwrap() {
            let message = AgentMessage::decode(frame).unwrap().unwrap();
            heard.drain(..used);
            match message {
                AgentMessage::Keepalive => {
                    let mut frame = Vec::new();
                    ServerMessage::KeepaliveAnswer(answer.to_vec()).encode(&mut frame);
                    stream.write_all(&frame).ok()?;
                    stream.flush().ok()?;
                }
                // rustls tells an end without close_notify as an error.
                AgentMessage::Goodbye => return Some(stream.read(&mut [0]).is_ok_and(|count| count == 0)),
                other => panic!("{other:?}"),
            }
        }
        let mut buffer = [0; 4_096];
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => heard.extend_from_slice(&buffer[..count]),
        }
    }
}

/// The bytes of a WebSocket's messages.
struct Messages<S> {
    socket: tungstenite::WebSocket<S>,
    left: Vec<u8>,
}

impl<S: Read + Write> Read for Messages<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            match self.socket.read().map_err(io::Error::other)? {
                Message::Binary(bytes) => self.left = bytes.to_vec(),
                Message::Close(_) => return Ok(0),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
        let count = buffer.len().min(self.left.len());
        buffer[..count].copy_from_slice(&self.left[..count]);
        self.left.drain(..count);
        Ok(count)
    }
}

impl<S: Read + Write> Write for Messages<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.send(Message::Binary(bytes.to_vec().into())).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush().map_err(io::Error::other)
    }
}

/// A proxy that knows CONNECT, and of each port where it leads.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    led: Arc<(AtomicU16, AtomicU16)>,
}

impl Proxy {
    /// Asks for `credentials` where there are any, and answers with `status`.
    pub(crate) fn start(credentials: Option<&str>, status: u16) -> Self {
        use base64::Engine as _;
        let wanted = credentials.map(|credentials| {
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials))
        });
        let led = Arc::new((AtomicU16::default(), AtomicU16::default()));
        let leads = Arc::clone(&led);
        let port = serve(move |mut socket| {
            let Some((head, rest)) = read_request(&mut socket) else { return };
            assert_eq!((head.method.as_str(), rest.len()), ("CONNECT", 0));
            let known = format!("127.0.0.1:{}", leads.0.load(Ordering::Relaxed));
            let is_known = wanted.is_none()
                || head.header("proxy-authorization").map(<[u8]>::to_vec)
                    == wanted.clone().map(String::into_bytes);
            let status = match status {
                200 if !is_known => 407,
                200 if head.target != known => 502,
                status => status,
            };
            let mut answer = Vec::new();
            ResponseHead::new(status).encode(&mut answer).unwrap();
            socket.write_all(&answer).unwrap();
            if status == 200 {
                let server = TcpStream::connect(("127.0.0.1", leads.1.load(Ordering::Relaxed))).unwrap();
                carry(socket, server);
            }
        });
        Self { port, led }
    }

    /// Whoever asks for the port `from` is led to the port `to`.
    pub(crate) fn lead(&self, from: u16, to: u16) {
        self.led.0.store(from, Ordering::Relaxed);
        self.led.1.store(to, Ordering::Relaxed);
    }
}

/// Carries bytes both ways until either end is over.
fn carry(one: TcpStream, other: TcpStream) {
    let (mut from, mut to) = (other.try_clone().unwrap(), one.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
    let (mut from, mut to) = (one, other);
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// A request's head and what came behind it; `None` at the end.
fn read_request(stream: &mut dyn Read) -> Option<(RequestHead, Vec<u8>)> {
    let mut heard = Vec::new();
    loop {
        if let Decoded::Complete { head, consumed } = RequestHead::decode(&heard).unwrap() {
            heard.drain(..consumed);
            return Some((head, heard));
        }
        let mut buffer = [0; 4_096];
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => heard.extend_from_slice(&buffer[..count]),
        }
    }
}

/// A server's tunnels (docs/protocol.md, 13.2).
pub(crate) struct Tunnels {
    port: AtomicU16,
    /// Each so many-th request is lost, in turns before and after it was heard; 0 for none.
    pub(crate) lose_every: AtomicU32,
    pub(crate) lost: AtomicU32,
    requests: AtomicU32,
    /// Connections are closed, and new ones not answered.
    pub(crate) is_silent: AtomicBool,
    pub(crate) unanswered: Mutex<Vec<TcpStream>>,
    authorization: Option<&'static str>,
    begin: Box<dyn Fn(Arc<Pipe>) + Send + Sync>,
    pipes: Mutex<HashMap<String, Arc<Pipe>>>,
}

/// One tunnel.
#[derive(Default)]
pub(crate) struct Pipe {
    streams: Mutex<Streams>,
    moved: Condvar,
}

#[derive(Default)]
struct Streams {
    up: Vec<u8>,
    read: usize,
    down: Vec<u8>,
    acknowledged: usize,
    /// How often a GET has come: the latest one is answered.
    gets: u32,
}

/// The session's end of one.
struct End(Arc<Pipe>);

impl Read for End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let streams = self.0.streams.lock().unwrap();
        let mut streams =
            self.0.moved.wait_while(streams, |streams| streams.read == streams.up.len()).unwrap();
        let count = buffer.len().min(streams.up.len() - streams.read);
        let from = streams.read;
        buffer[..count].copy_from_slice(&streams.up[from..from + count]);
        streams.read += count;
        Ok(count)
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.streams.lock().unwrap().down.extend_from_slice(bytes);
        self.0.moved.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tunnels {
    pub(crate) fn port(&self) -> u16 {
        self.port.load(Ordering::Relaxed)
    }

    fn serve(&self, stream: &mut dyn Stream) {
        while let Some((head, mut body)) = read_request(stream) {
            let length = head
                .header("content-length")
                .map_or(0, |text| std::str::from_utf8(text).unwrap().parse().unwrap());
            let come = body.len();
            body.resize(length, 0);
            if stream.read_exact(&mut body[come..]).is_err() {
                return;
            }
            let number = self.requests.fetch_add(1, Ordering::Relaxed);
            let every = self.lose_every.load(Ordering::Relaxed);
            let is_lost = every > 0 && number % every == every - 1;
            self.lost.fetch_add(u32::from(is_lost), Ordering::Relaxed);
            if is_lost && number.is_multiple_of(2) {
                return;
            }
            let (answer, down) = self.answer(&head, &body);
            if is_lost || self.is_silent.load(Ordering::Relaxed) {
                return;
            }
            let mut bytes = Vec::new();
            let answer = if answer.status == 204 {
                answer
            } else {
                answer.with("Content-Length", down.len().to_string())
            };
            answer.encode(&mut bytes).unwrap();
            bytes.extend_from_slice(&down);
            if stream.write_all(&bytes).and_then(|()| stream.flush()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, head: &RequestHead, body: &[u8]) -> (ResponseHead, Vec<u8>) {
        if let Some(wanted) = self.authorization {
            assert!(head.target.starts_with("http://127.0.0.1:"), "a proxy is asked by the whole address");
            if head.header("proxy-authorization") != Some(wanted.as_bytes()) {
                return (ResponseHead::new(407), Vec::new());
            }
        }
        if head.path() == "/bgb/tunnel" {
            let mut pipes = self.pipes.lock().unwrap();
            let id = format!("{:052x}", pipes.len());
            let pipe = Arc::<Pipe>::default();
            pipe.streams.lock().unwrap().up.extend_from_slice(body);
            (self.begin)(Arc::clone(&pipe));
            pipes.insert(id.clone(), pipe);
            let received = body.len().to_string();
            return (
                ResponseHead::new(201).with("Bgb-Tunnel", id).with("Bgb-Received", received),
                Vec::new(),
            );
        }
        let id = head.path().strip_prefix("/bgb/tunnel/").unwrap();
        let pipe = Arc::clone(&self.pipes.lock().unwrap()[id]);
        let number = |name: &str| {
            let value =
                head.query()?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
            value.parse::<usize>().ok()
        };
        let from = number("from").unwrap();
        let mut streams = pipe.streams.lock().unwrap();
        if head.method == "POST" {
            let known = streams.up.len().checked_sub(from).unwrap().min(body.len());
            streams.up.extend_from_slice(&body[known..]);
            pipe.moved.notify_all();
            return (ResponseHead::new(204).with("Bgb-Received", streams.up.len().to_string()), Vec::new());
        }
        assert!(number("hold").is_some() && streams.acknowledged <= from && from <= streams.down.len());
        streams.acknowledged = from;
        streams.gets += 1;
        let turn = streams.gets;
        pipe.moved.notify_all();
        // A short one, though no shorter than an agent believes.
        let limit = Duration::from_millis(1_200);
        let waits = |streams: &mut Streams| streams.down.len() == from && streams.gets == turn;
        let (streams, _) = pipe.moved.wait_timeout_while(streams, limit, waits).unwrap();
        let down = streams.down[from..streams.down.len().min(from + 65_536)].to_vec();
        let status = if down.is_empty() { 204 } else { 200 };
        let head = ResponseHead::new(status).with("Bgb-From", from.to_string());
        (head.with("Bgb-Received", streams.up.len().to_string()), down)
    }
}
