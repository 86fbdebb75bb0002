//! A peer that speaks to a server, or listens like one, and does whatever a test wants: the stranger of the tests.
//!
//! TLS is rustls's, with any certificate or none; what is inside it is bytes or frames of the test's choosing. It does not share a
//! line with the agent or the server. A peer never hangs: reads have a deadline.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bgb_protocol::frame::Frame;
use bgb_protocol::ids::{BootId, SessionNumber};
use bgb_protocol::message::{Abilities, AgentMessage, Hello, Platform, RoadTaken, ServerMessage, Welcome};
use bgb_site::IssuedCertificate;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection,
};

use crate::site::{Device, Site};
use crate::wait::SOON;

/// One read waits for so long before deadlines are looked at.
pub(crate) const READ_WAIT: Duration = Duration::from_millis(50);

/// A certificate and its key.
pub(crate) struct Credentials {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Credentials {
    /// Those of a device as it was added.
    pub(crate) fn of(device: &Device) -> Self {
        Self::from_pem(&device.bundle.certificate_pem, &device.bundle.key_pem)
    }

    /// Those that an authority of the test's has just issued.
    pub(crate) fn issued(issued: &IssuedCertificate) -> Self {
        Self::from_pem(&issued.certificate_pem, &issued.key_pem)
    }

    fn from_pem(certificate: &str, key: &str) -> Self {
        Self {
            certificate: CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap(),
            key: PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        }
    }
}

/// What carries a peer's bytes.
enum Line {
    Tcp(TcpStream),
    /// A road through HTTP.
    Road(Box<dyn ByteStream>),
}

/// Bytes both ways; a read gives up after [`READ_WAIT`].
pub(crate) trait ByteStream: io::Read + io::Write + Send {}

impl<T: io::Read + io::Write + Send> ByteStream for T {}

impl io::Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Road(road) => road.read(buffer),
        }
    }
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Road(road) => road.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Road(road) => road.flush(),
        }
    }
}

/// A TLS stream of either side.
pub(crate) struct Peer<C> {
    tls: C,
    stream: Line,
    plaintext: Vec<u8>,
}

/// How a stream went on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The other side said this.
    Message(Box<ServerMessage>),
    /// The other side ended it.
    End,
}

/// A client that is about to shake hands with server `server` of the site.
pub(crate) fn connect(site: &Site, server: u16, credentials: Option<&Credentials>) -> Peer<ClientConnection> {
    let address = site.server_address(server);
    let stream = TcpStream::connect(address).unwrap();
    Peer::new(client_tls(site, address, credentials), stream)
}

/// The TLS of a client that trusts the site's authority.
pub(crate) fn client_tls(
    site: &Site,
    address: SocketAddr,
    credentials: Option<&Credentials>,
) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(site.authority().certificate_pem().as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(Credentials { certificate, key }) => {
            builder.with_client_auth_cert(vec![certificate.clone()], key.clone_key()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"bgb/1".to_vec()];
    ClientConnection::new(Arc::new(config), ServerName::from(address.ip())).unwrap()
}

/// Waits for a device to connect to `listener`, and shakes hands with it as a server would; the device must show a certificate of
/// the site.
pub(crate) fn accept(
    site: &Site,
    listener: &TcpListener,
    credentials: &Credentials,
) -> Peer<ServerConnection> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(site.authority().certificate_pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![credentials.certificate.clone()], credentials.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![b"bgb/1".to_vec()];
    let (stream, _) = listener.accept().unwrap();
    Peer::new(ServerConnection::new(Arc::new(config)).unwrap(), stream)
}

/// A hello as an agent of this release says it.
pub(crate) fn hello(boot: u8, session: u64) -> Hello {
    Hello {
        agent_version: "0.1.0".to_owned(),
        platform: Platform {
            os: "linux".to_owned(),
            os_version: "test".to_owned(),
            arch: "x86_64".to_owned(),
            hostname: "peer".to_owned(),
        },
        boot: BootId([boot; 16]),
        session: SessionNumber(session),
        abilities: Abilities::ALL,
        road: RoadTaken::tcp(),
        keepalive_secs: None,
        clock_skew_ms: 0,
        policy_version: 0,
        known_tasks: Vec::new(),
    }
}

impl Peer<ClientConnection> {
    /// Connects and signs in as a device.
    #[track_caller]
    pub(crate) fn sign_in(
        site: &Site,
        server: u16,
        device: &Device,
        boot: u8,
        session: u64,
    ) -> (Self, Welcome) {
        connect(site, server, Some(&Credentials::of(device))).greet(boot, session)
    }

    /// A device that is about to shake hands on this connection.
    pub(crate) fn on(site: &Site, device: &Device, stream: TcpStream) -> Self {
        Self::new(client_tls(site, site.server_address(1), Some(&Credentials::of(device))), stream)
    }

    /// A device that is about to shake hands over a road through HTTP.
    pub(crate) fn by(site: &Site, device: &Device, road: impl ByteStream + 'static) -> Self {
        let tls = client_tls(site, site.server_address(1), Some(&Credentials::of(device)));
        Self { tls, stream: Line::Road(Box::new(road)), plaintext: Vec::new() }
    }

    /// Says hello, and hears the welcome.
    #[track_caller]
    pub(crate) fn greet(self, boot: u8, session: u64) -> (Self, Welcome) {
        let mut peer = self;
        peer.say(&AgentMessage::Hello(Box::new(hello(boot, session))));
        match peer.hear() {
            Heard::Message(message) => match *message {
                ServerMessage::Welcome(welcome) => (peer, *welcome),
                other => panic!("the server answered a hello with {other:?}"),
            },
            Heard::End => panic!("the server answered a hello by closing"),
        }
    }

    /// Says a message.
    #[track_caller]
    pub(crate) fn say(&mut self, message: &AgentMessage) {
        let mut frame = Vec::new();
        message.encode(&mut frame);
        self.send(&frame).unwrap();
    }

    /// The next message, or the end.
    #[track_caller]
    pub(crate) fn hear(&mut self) -> Heard {
        let deadline = Instant::now() + SOON;
        let mut goes_on = true;
        loop {
            while let Some((frame, used)) = Frame::decode(&self.plaintext).unwrap() {
                let message = ServerMessage::decode(frame).unwrap();
                self.plaintext.drain(..used);
                if let Some(message) = message {
                    return Heard::Message(Box::new(message));
                }
            }
            if !goes_on {
                return Heard::End;
            }
            goes_on = match self.read_more(deadline) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => panic!("the server says nothing"),
                Ok(goes_on) => goes_on,
                Err(_) => false,
            };
        }
    }

    /// Reads until the other side ends it; what it said before.
    #[track_caller]
    pub(crate) fn hear_until_end(&mut self) -> Vec<ServerMessage> {
        let mut heard = Vec::new();
        while let Heard::Message(message) = self.hear() {
            heard.push(*message);
        }
        heard
    }
}

impl<C, S> Peer<C>
where
    C: std::ops::DerefMut<Target = ConnectionCommon<S>>,
    S: rustls::SideData,
{
    fn new(tls: C, stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(READ_WAIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { tls, stream: Line::Tcp(stream), plaintext: Vec::new() }
    }

    /// Finishes the handshake as far as this side is concerned.
    ///
    /// # Errors
    /// What went wrong, in rustls's words.
    pub(crate) fn shake_hands(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + SOON;
        while self.tls.is_handshaking() {
            self.flush()?;
            if self.tls.is_handshaking() && !self.read_more(deadline)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.flush()
    }

    /// Sends bytes inside the TLS stream, after the handshake.
    ///
    /// # Errors
    /// As the connection says.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.shake_hands()?;
        self.tls.writer().write_all(bytes)?;
        self.flush()
    }

    /// Whether the other side ends it before the deadline; what it sends until then is thrown away.
    pub(crate) fn is_ended_within(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            self.plaintext.clear();
            match self.read_more(deadline) {
                Ok(true) => {}
                Ok(false) => return true,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return false,
                Err(_) => return true,
            }
        }
        false
    }

    /// What the other side says until it ends.
    #[track_caller]
    pub(crate) fn read_to_end(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + SOON;
        loop {
            match self.read_more(deadline) {
                Ok(true) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    panic!("the other side does not end it")
                }
                Ok(false) | Err(_) => return std::mem::take(&mut self.plaintext),
            }
        }
    }

    /// Closes the sending direction without a word of TLS.
    pub(crate) fn close_half(&self) {
        self.tcp().shutdown(Shutdown::Write).unwrap();
    }

    /// Says TLS's close_notify and keeps the connection.
    pub(crate) fn say_closed(&mut self) {
        self.tls.send_close_notify();
        self.flush().unwrap();
    }

    /// The other side's certificate, in DER form.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.tls.peer_certificates().unwrap()[0].to_vec()
    }

    /// The connection itself, for bytes outside TLS.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        match &mut self.stream {
            Line::Tcp(stream) => stream,
            Line::Road(_) => panic!("a road through HTTP has no connection of its own"),
        }
    }

    fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Line::Tcp(stream) => stream,
            Line::Road(_) => panic!("a road through HTTP has no connection of its own"),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.stream)?;
        }
        Ok(())
    }

    /// Reads once; `false` at the other side's end.
    fn read_more(&mut self, deadline: Instant) -> io::Result<bool> {
        loop {
            match self.tls.read_tls(&mut self.stream) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if Instant::now() >= deadline {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let state = self.tls.process_new_packets();
        // The alert that says why has to leave, whatever it says.
        let flushed = self.flush();
        let state = state.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        flushed?;
        let mut bytes = vec![0; state.plaintext_bytes_to_read()];
        self.tls.reader().read_exact(&mut bytes)?;
        self.plaintext.extend_from_slice(&bytes);
        Ok(!state.peer_has_closed())
    }
}
