//! TLS of the agents.
//!
//! Every device has a configuration of its own, since it has a certificate of its own; all of them share the provider and the verifier.
//! A device keeps one ticket, the newest, and uses it once; a hello that nobody answers is said again on its next connection, ticket and all, as real
//! agents do (docs/promises.md). A session can be put to rest, which leaves its keys of it (`tls/at_rest.rs`). What may be around it on its way is another
//! session, with nobody in particular (`tls/outer.rs`).

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use rustls::client::{
    ClientSessionStore, ResolvesClientCert, Tls12ClientSessionValue, Tls13ClientSessionValue,
    WebPkiServerVerifier,
};
use rustls::crypto::aws_lc_rs::{self, sign::any_ecdsa_type};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

mod at_rest;
mod outer;

use at_rest::{AtRest, whole_records};
pub(crate) use outer::OuterTls;

/// The name of our conversation, as both sides say it in ALPN (RFC 7301).
pub(crate) const ALPN: &[u8] = b"bgb/1";

/// What all devices of a site share.
pub(crate) struct TlsOfSite {
    base: ClientConfig,
}

/// What one device's sessions start from.
#[derive(Clone)]
pub(crate) struct TlsOfDevice {
    config: Arc<ClientConfig>,
    tickets: Arc<Tickets>,
    /// A session whose hello was not answered.
    unanswered: Arc<Mutex<Option<TlsSession>>>,
}

/// One session.
pub(crate) struct TlsSession {
    stage: Stage,
    /// The beginning of a record whose end has not come.
    partial: Vec<u8>,
    /// Its ClientHello, and how much of that was written; `None` once the server has said something.
    hello: Option<(Vec<u8>, usize)>,
}

enum Stage {
    Rustls(Box<ClientConnection>),
    AtRest(Box<AtRest>),
    /// It failed between the two.
    Over,
}

/// The certificate of one device, for whoever asks.
#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesClientCert for OneCertificate {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The newest ticket of a device, and the key exchange that its server took.
#[derive(Debug, Default)]
struct Tickets {
    ticket: Mutex<Option<Tls13ClientSessionValue>>,
    group: Mutex<Option<NamedGroup>>,
}

/// What is behind a lock of this file stays whole whatever its holder did.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _server: ServerName<'static>, group: NamedGroup) {
        *lock(&self.group) = Some(group);
    }

    fn kx_hint(&self, _server: &ServerName<'_>) -> Option<NamedGroup> {
        *lock(&self.group)
    }

    fn set_tls12_session(&self, _server: ServerName<'static>, _session: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _server: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        *lock(&self.ticket) = Some(ticket);
    }

    fn take_tls13_ticket(&self, _server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        lock(&self.ticket).take()
    }
}

impl TlsOfSite {
    /// Trusts `authority`, a certificate in DER form; what is spoken inside is called `alpn`, if it is called anything.
    ///
    /// # Errors
    /// When it cannot be trusted.
    pub(crate) fn new(authority: &[u8], alpn: Option<&[u8]>) -> anyhow::Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from(authority.to_vec()))
            .context("the fleet's authority cannot be used as a root")?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .context("the fleet's authority cannot be used as a root")?;
        let mut base = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(verifier)
            .with_no_client_auth();
        base.alpn_protocols = alpn.into_iter().map(<[u8]>::to_vec).collect();
        base.enable_secret_extraction = true;
        Ok(Self { base })
    }

    /// What the device with this certificate and key (DER, PKCS#8) starts from.
    ///
    /// # Errors
    /// When the key is none.
    pub(crate) fn device(&self, certificate: &[u8], key: &[u8]) -> anyhow::Result<TlsOfDevice> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
        // Devices' keys are of this kind; to try the others first costs a large fleet minutes.
        let key = any_ecdsa_type(&key).context("a device's key cannot be used")?;
        let chain = vec![CertificateDer::from(certificate.to_vec())];
        let tickets = Arc::new(Tickets::default());
        let mut config = self.base.clone();
        config.client_auth_cert_resolver = Arc::new(OneCertificate(Arc::new(CertifiedKey::new(chain, key))));
        config.resumption =
            rustls::client::Resumption::store(Arc::clone(&tickets) as Arc<dyn ClientSessionStore>);
        Ok(TlsOfDevice { config: Arc::new(config), tickets, unanswered: Arc::default() })
    }
}

impl TlsOfDevice {
    /// A session with the server at `address`; without `resumes` the device's ticket is thrown away first.
    ///
    /// # Errors
    /// When rustls refuses its own configuration.
    pub(crate) fn session(&self, address: IpAddr, resumes: bool) -> anyhow::Result<TlsSession> {
        match lock(&self.unanswered).take() {
            Some(session) if resumes => return Ok(session),
            _ => {}
        }
        if !resumes {
            lock(&self.tickets.ticket).take();
        }
        TlsSession::begin(&self.config, address)
    }

    /// A connection came to its end, and `session` with it, unless nobody has answered.
    pub(crate) fn take_back(&self, session: TlsSession) {
        if let Some((hello, _)) = session.hello {
            *lock(&self.unanswered) = Some(TlsSession { hello: Some((hello, 0)), ..session });
        }
    }
}

impl TlsSession {
    /// A session with the server at `address`.
    ///
    /// # Errors
    /// When rustls refuses its own configuration.
    fn begin(config: &Arc<ClientConfig>, address: IpAddr) -> anyhow::Result<Self> {
        let mut connection = ClientConnection::new(Arc::clone(config), ServerName::from(address))?;
        // What is said is bounded by what is asked; a limit would cut a message in two.
        connection.set_buffer_limit(None);
        let mut hello = Vec::new();
        connection.write_tls(&mut hello)?;
        let stage = Stage::Rustls(Box::new(connection));
        Ok(Self { stage, partial: Vec::new(), hello: Some((hello, 0)) })
    }

    /// Whether the handshake is still going on.
    pub(crate) fn is_handshaking(&self) -> bool {
        matches!(&self.stage, Stage::Rustls(connection) if connection.is_handshaking())
    }

    /// Whether the handshake, which is just over, resumed an earlier session.
    pub(crate) fn is_resumed(&self) -> bool {
        matches!(&self.stage, Stage::Rustls(connection) if connection.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    /// Lets rustls go, where the handshake is over and nothing waits to be written: what comes and goes from now on is the same, and a session has a
    /// seventh of the memory. What the server says of new tickets later is not heard.
    ///
    /// # Errors
    /// When rustls does not give its keys away.
    pub(crate) fn rest(&mut self) -> io::Result<()> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Rustls(connection) if !connection.is_handshaking() && !connection.wants_write() => {
                Stage::AtRest(Box::new(AtRest::take(*connection).map_err(invalid)?))
            }
            same => same,
        };
        Ok(())
    }

    /// Takes what `socket` has to give, as much as `room` has place for, and appends what was inside to `plain`; 0 at its end.
    ///
    /// # Errors
    /// As the socket says, or `InvalidData` for what TLS does not allow.
    pub(crate) fn read_from(
        &mut self,
        socket: &mut dyn Read,
        room: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> io::Result<usize> {
        let bytes = socket.read(room)?;
        if bytes == 0 {
            // rustls must not hear of the end of a connection on which nothing was answered.
            return Ok(0);
        }
        self.hello = None;
        let mut received = std::mem::take(&mut self.partial);
        let received = if received.is_empty() {
            &mut room[..bytes]
        } else {
            received.extend_from_slice(&room[..bytes]);
            &mut received[..]
        };
        // rustls gets whole records only: what it had of half a one would be lost with it when the session comes to rest.
        let (whole, partial) = received.split_at_mut(whole_records(received));
        let has_closed = match &mut self.stage {
            Stage::Rustls(connection) => open(connection, whole, plain)?,
            Stage::AtRest(session) => session.open(whole, plain).map_err(invalid)?,
            Stage::Over => true,
        };
        self.partial = partial.to_vec();
        Ok(if has_closed { 0 } else { bytes })
    }

    /// Seals `plain`, to be written by [`write_to`](Self::write_to).
    ///
    /// # Errors
    /// When more waits to be written than may.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> io::Result<()> {
        match &mut self.stage {
            Stage::Rustls(connection) => connection.writer().write_all(plain),
            Stage::AtRest(session) => session.seal(plain).map_err(invalid),
            Stage::Over => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Says that it says no more, to be written by [`write_to`](Self::write_to); nothing where the handshake is not over.
    ///
    /// # Errors
    /// When rustls refuses to.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        match &mut self.stage {
            Stage::Rustls(connection) if !connection.is_handshaking() => connection.send_close_notify(),
            Stage::AtRest(session) => session.close().map_err(invalid)?,
            Stage::Rustls(_) | Stage::Over => {}
        }
        Ok(())
    }

    /// Gives `socket` what it takes; `true` when nothing is left.
    ///
    /// # Errors
    /// As the socket says.
    pub(crate) fn write_to(&mut self, socket: &mut dyn Write) -> io::Result<bool> {
        while let Some((hello, written)) = &mut self.hello
            && *written < hello.len()
        {
            match socket.write(&hello[*written..]) {
                Ok(bytes) => *written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        match &mut self.stage {
            Stage::Rustls(connection) => {
                while connection.wants_write() {
                    match connection.write_tls(socket) {
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                        Err(error) => return Err(error),
                    }
                }
                Ok(true)
            }
            Stage::AtRest(session) => session.write_to(socket),
            Stage::Over => Ok(true),
        }
    }
}

/// Has rustls open whole records; `true` when the server has said that it says no more.
fn open(connection: &mut ClientConnection, mut records: &[u8], plain: &mut Vec<u8>) -> io::Result<bool> {
    let mut has_closed = false;
    // What follows the server's last word is not heard (RFC 8446, 6.1).
    while !records.is_empty() && !has_closed {
        connection.read_tls(&mut records)?;
        let state = connection.process_new_packets().map_err(invalid)?;
        let start = plain.len();
        plain.resize(start + state.plaintext_bytes_to_read(), 0);
        connection.reader().read_exact(&mut plain[start..])?;
        has_closed |= state.peer_has_closed();
    }
    Ok(has_closed)
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests;
