//! The roads of a test's peer that lead through HTTP: a WebSocket of an implementation that is not ours, and long-poll by hand.
//!
//! Each is a stream of bytes with reads that give up after a while, as a socket's do.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use tungstenite::{Message, WebSocket};

use crate::peer::READ_WAIT;

/// A socket, in an outer TLS or not.
pub(crate) enum Socket {
    Plain(TcpStream),
    Covered(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Socket {
    /// Connects; to HTTPS where `is_covered`.
    pub(crate) fn connect(address: SocketAddr, is_covered: bool) -> Self {
        Self::cover(TcpStream::connect(address).unwrap(), is_covered)
    }

    /// A connection that there is; in an outer TLS where `is_covered`.
    pub(crate) fn cover(stream: TcpStream, is_covered: bool) -> Self {
        stream.set_read_timeout(Some(READ_WAIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        if !is_covered {
            return Self::Plain(stream);
        }
        let tls = outer_tls(stream.peer_addr().unwrap().ip());
        Self::Covered(Box::new(StreamOwned::new(tls, stream)))
    }
}

/// What an agent says to HTTPS: any certificate will do.
pub(crate) fn outer_tls(server: IpAddr) -> ClientConnection {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    ClientConnection::new(Arc::new(config), ServerName::from(server)).unwrap()
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Covered(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Covered(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Covered(stream) => stream.flush(),
        }
    }
}

/// A WebSocket as a stream of bytes.
pub(crate) struct WebSocketLine {
    socket: WebSocket<Socket>,
    heard: Vec<u8>,
    code: Option<u16>,
}

impl WebSocketLine {
    /// Connects and asks for a WebSocket.
    pub(crate) fn connect(address: SocketAddr, is_covered: bool) -> Self {
        Self::over(Socket::connect(address, is_covered), address)
    }

    /// Asks whoever is at the other end for a WebSocket of `address`.
    pub(crate) fn over(socket: Socket, address: SocketAddr) -> Self {
        let url = format!("ws://{address}/bgb/websocket");
        let mut attempt = tungstenite::client(url, socket);
        let socket = loop {
            match attempt {
                Ok((socket, _)) => break socket,
                Err(tungstenite::HandshakeError::Interrupted(halfway)) => attempt = halfway.handshake(),
                Err(tungstenite::HandshakeError::Failure(error)) => panic!("{error}"),
            }
        };
        Self { socket, heard: Vec::new(), code: None }
    }

    /// Pings whoever is at the other end; the answer is read over.
    pub(crate) fn ping(&mut self) {
        self.socket.send(Message::Ping(Vec::new().into())).unwrap();
    }

    /// The code of the server's close frame, which comes.
    pub(crate) fn close_code(&mut self, within: std::time::Duration) -> Option<u16> {
        let deadline = std::time::Instant::now() + within;
        while self.code.is_none() && std::time::Instant::now() < deadline {
            match self.socket.read().map_err(as_io) {
                Ok(Message::Close(frame)) => self.code = frame.map(|frame| frame.code.into()),
                Ok(_) => {}
                Err(error) if is_wait(&error) => {}
                Err(_) => break,
            }
        }
        self.code
    }
}

fn as_io(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            io::ErrorKind::UnexpectedEof.into()
        }
        other => io::Error::other(other),
    }
}

impl Read for WebSocketLine {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.heard.is_empty() {
            match self.socket.read().map_err(as_io) {
                Ok(Message::Binary(bytes)) => self.heard.extend_from_slice(&bytes),
                Ok(Message::Close(frame)) => {
                    self.code = frame.map(|frame| frame.code.into());
                    return Ok(0);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
            }
        }
        let bytes = buffer.len().min(self.heard.len());
        buffer[..bytes].copy_from_slice(&self.heard[..bytes]);
        self.heard.drain(..bytes);
        Ok(bytes)
    }
}

impl Write for WebSocketLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.send(Message::Binary(bytes.to_vec().into())).map_err(as_io)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush().map_err(as_io)
    }
}

/// An answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// A field's value.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// An HTTP connection by hand.
pub(crate) struct Http {
    socket: Socket,
    heard: Vec<u8>,
}

impl Http {
    pub(crate) fn connect(address: SocketAddr, is_covered: bool) -> Self {
        Self { socket: Socket::connect(address, is_covered), heard: Vec::new() }
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)?;
        self.socket.flush()
    }

    /// Sends a request.
    pub(crate) fn ask(&mut self, method: &str, target: &str, body: &[u8]) -> io::Result<()> {
        let head =
            format!("{method} {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len());
        self.send(&[head.as_bytes(), body].concat())
    }

    /// The next answer, if it is there within a read's wait; its end of file is an error.
    pub(crate) fn answer(&mut self) -> io::Result<Option<Answer>> {
        loop {
            if let Some(answer) = self.take_answer() {
                return Ok(Some(answer));
            }
            let mut buffer = [0; 16 * 1024];
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => self.heard.extend_from_slice(&buffer[..bytes]),
                Err(error) if is_wait(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next answer, which comes.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> Answer {
        let deadline = std::time::Instant::now() + crate::wait::SOON;
        loop {
            match self.answer() {
                Ok(Some(answer)) => return answer,
                Ok(None) => assert!(std::time::Instant::now() < deadline, "no answer comes"),
                Err(error) => panic!("the connection ended before an answer: {error}"),
            }
        }
    }

    /// The next answer, if it comes in time and the connection does not end before.
    pub(crate) fn answer_within(&mut self, within: std::time::Duration) -> Option<Answer> {
        let deadline = std::time::Instant::now() + within;
        while std::time::Instant::now() < deadline {
            match self.answer() {
                Ok(Some(answer)) => return Some(answer),
                Ok(None) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// What else the server says until it ends the connection.
    pub(crate) fn rest(&mut self, within: std::time::Duration) -> Vec<u8> {
        let deadline = std::time::Instant::now() + within;
        let mut said = std::mem::take(&mut self.heard);
        let mut buffer = [0; 16 * 1024];
        while std::time::Instant::now() < deadline {
            match self.socket.read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => said.extend_from_slice(&buffer[..bytes]),
                Err(error) if is_wait(&error) => {}
                Err(_) => break,
            }
        }
        said
    }

    /// The connection once more, for another thread to write to.
    pub(crate) fn second_handle(&self) -> TcpStream {
        match &self.socket {
            Socket::Plain(stream) => stream.try_clone().unwrap(),
            Socket::Covered(_) => panic!("an outer TLS has one user"),
        }
    }

    /// Whether the server ends the connection within a test's patience.
    pub(crate) fn is_ended(&mut self) -> bool {
        let deadline = std::time::Instant::now() + crate::wait::SOON;
        while std::time::Instant::now() < deadline {
            if self.answer().is_err() {
                return true;
            }
        }
        false
    }

    fn take_answer(&mut self) -> Option<Answer> {
        let end = self.heard.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(self.heard[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let field =
            |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        let fields: Vec<_> = lines.filter_map(field).collect();
        let length = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length: usize = length.map_or(0, |(_, length)| length.parse().unwrap());
        if self.heard.len() < end + length {
            return None;
        }
        let body = self.heard[end..end + length].to_vec();
        self.heard.drain(..end + length);
        Some(Answer { status, fields, body })
    }
}

fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A tunnel as a stream of bytes.
pub(crate) struct LongPollLine {
    address: SocketAddr,
    is_covered: bool,
    up: Http,
    down: Http,
    id: Option<String>,
    sent: u64,
    received: u64,
    asks: bool,
    heard: Vec<u8>,
    /// A connection for each request: on as many reactors as there are, sooner or later.
    pub(crate) comes_anew: bool,
}

impl LongPollLine {
    pub(crate) fn connect(address: SocketAddr, is_covered: bool) -> Self {
        let (up, down) = (Http::connect(address, is_covered), Http::connect(address, is_covered));
        Self {
            address,
            is_covered,
            up,
            down,
            id: None,
            sent: 0,
            received: 0,
            asks: false,
            heard: Vec::new(),
            comes_anew: false,
        }
    }

    /// How much has come down.
    pub(crate) fn heard_bytes(&self) -> u64 {
        self.received
    }

    /// The tunnel's name.
    pub(crate) fn id(&self) -> String {
        self.id.clone().unwrap()
    }
}

impl Read for LongPollLine {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(id) = self.id.clone() else { return Err(io::ErrorKind::WouldBlock.into()) };
        if self.heard.is_empty() {
            if !std::mem::replace(&mut self.asks, true) {
                if self.comes_anew {
                    self.down = Http::connect(self.address, self.is_covered);
                }
                self.down.ask("GET", &format!("/bgb/tunnel/{id}?from={}&hold=20", self.received), b"")?;
            }
            let Some(answer) = self.down.answer()? else { return Err(io::ErrorKind::WouldBlock.into()) };
            self.asks = false;
            match answer.status {
                200 => {
                    assert_eq!(answer.field("Bgb-From"), Some(self.received.to_string().as_str()));
                    self.received += answer.body.len() as u64;
                    self.heard = answer.body;
                }
                204 => return Err(io::ErrorKind::WouldBlock.into()),
                404 => return Ok(0),
                other => return Err(io::Error::other(format!("a GET is answered {other}"))),
            }
        }
        let bytes = buffer.len().min(self.heard.len());
        buffer[..bytes].copy_from_slice(&self.heard[..bytes]);
        self.heard.drain(..bytes);
        Ok(bytes)
    }
}

impl Write for LongPollLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.comes_anew {
            self.up = Http::connect(self.address, self.is_covered);
        }
        match &self.id {
            None => self.up.ask("POST", "/bgb/tunnel", bytes)?,
            Some(id) => self.up.ask("POST", &format!("/bgb/tunnel/{id}?from={}", self.sent), bytes)?,
        }
        let answer = self.up.wait();
        match answer.status {
            201 => self.id = answer.field("Bgb-Tunnel").map(str::to_owned),
            204 => {}
            404 => return Err(io::ErrorKind::BrokenPipe.into()),
            other => return Err(io::Error::other(format!("a POST is answered {other}"))),
        }
        self.sent += bytes.len() as u64;
        assert_eq!(answer.field("Bgb-Received"), Some(self.sent.to_string().as_str()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
