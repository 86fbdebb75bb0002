//! TLS to a notification server: with its folder the only place in this crate that names rustls.
//!
//! TLS 1.3 only, ALPN `bgb/1`, the device's certificate, no early data. The site's own authority is the only root. A server is one
//! when its chain leads there, its certificate names the host that was asked for, and bears the role of a server of this
//! site; the last is checked again on a resumed session, where no certificate is exchanged. Dates are judged by the agent's own
//! time, and where they alone fail, by its time floor (docs/promises.md, Time), since a clock that is set wrong must not lock
//! a device out. It touches no socket but those it is handed.

mod issuer;
mod outer;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bgb_protocol::certificate::{Identity, Role};
use bgb_protocol::ids::{ServerId, SiteCode, UnixMillis};
use rustls::CertificateError as Fault;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::identity::DeviceIdentity;
use issuer::{is_signed_by, issuer};
pub(crate) use outer::{OuterSession, OuterTls};

/// The conversation's name (protocol.md).
const ALPN: &[u8] = b"bgb/1";

/// Servers whose tickets are remembered: more than an agent goes round.
const REMEMBERED_SERVERS: usize = 64;
/// How often a hello is said at the most: one that nobody ever answers might be what keeps them from it.
const HELLO_SAID_MAX: u32 = 64;
/// rustls counts tickets, and holds a place for so many for each server.
const TICKETS_OF_A_SERVER: usize = 8;

/// What all sessions of an agent share: configuration, tickets, and the time to judge certificates by.
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    times: Arc<Times>,
    strangers: Arc<Mutex<Option<String>>>,
    site: SiteCode,
    /// Sessions whose hello nobody answered, for the next attempt at the same server: one at most for each that the agent knows.
    unanswered: Mutex<HashMap<ServerName<'static>, TlsSession>>,
}

/// The agent's own time and its floor, in milliseconds since 1970, as of the last connection.
#[derive(Debug, Default)]
struct Times {
    now: AtomicU64,
    floor: AtomicU64,
}

/// One session with a server.
pub(crate) struct TlsSession {
    connection: ClientConnection,
    /// The server's name or address, as certificates bear it.
    name: ServerName<'static>,
    hello: Hello,
    times: Arc<Times>,
    strangers: Arc<Mutex<Option<String>>>,
    site: SiteCode,
}

/// Where the ClientHello is, with which a session begins.
///
/// A ticket goes with its hello, and rustls hands out each ticket once. A server that dies, or has more at its door than it can take, lets go
/// of connections without a word; would the ticket be lost with each of them, a fleet that was turned away would come back with full
/// handshakes, which are what such a server can afford least. So the bytes are kept until the first byte of an answer, and said
/// again on the next connection. Whoever has heard them before has no session by that: of all answers one at most is ever taken, and
/// no early data goes along.
enum Hello {
    /// Not answered; so many of its bytes were written to the present connection, after so many others.
    Said {
        bytes: Vec<u8>,
        written: usize,
        before: u32,
    },
    Answered,
}

impl Tls {
    /// Prepares sessions for the device `identity`.
    ///
    /// # Errors
    /// When the certificates or the key cannot be used.
    pub(crate) fn new(identity: &DeviceIdentity) -> anyhow::Result<Self> {
        let provider = Arc::new(default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(identity.authority.clone()).context("the site's authority cannot be used")?;
        let times = Arc::new(Times::default());
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .context("the site's authority cannot be used")?;
        let strangers = Arc::default();
        let verifier = ByOwnTime {
            chain,
            authority: identity.authority.clone(),
            algorithms: provider.signature_verification_algorithms.all,
            times: Arc::clone(&times),
            strangers: Arc::clone(&strangers),
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context("TLS 1.3 cannot be used")?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key().into())
            .context("the device's certificate and key cannot be used")?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::in_memory_sessions(REMEMBERED_SERVERS * TICKETS_OF_A_SERVER);
        let unanswered = Mutex::default();
        Ok(Self { config: Arc::new(config), times, strangers, site: identity.site, unanswered })
    }

    /// Begins a session with the server that should answer as `host`, a name or an address; its certificate's dates are judged by
    /// `now`, and where they fail, by `floor`.
    ///
    /// # Errors
    /// When `host` is no name that a certificate could bear.
    pub(crate) fn session(
        &self,
        host: &str,
        now: UnixMillis,
        floor: UnixMillis,
    ) -> Result<TlsSession, String> {
        self.times.now.store(now.0, Ordering::Relaxed);
        self.times.floor.store(floor.0, Ordering::Relaxed);
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned()).map_err(|_| format!("{host} is no host name"))?;
        if let Some(session) = self.unanswered().remove(&name) {
            return Ok(session);
        }
        let mut connection = ClientConnection::new(Arc::clone(&self.config), name.clone())
            .map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut bytes).map_err(|error| error.to_string())?;
        }
        let hello = Hello::Said { bytes, written: 0, before: 0 };
        let (times, strangers) = (Arc::clone(&self.times), Arc::clone(&self.strangers));
        Ok(TlsSession { connection, name, hello, times, strangers, site: self.site })
    }

    /// Takes back a session whose connection came to nothing; one that nobody answered is begun again with the next connection to
    /// its server.
    pub(crate) fn take_back(&self, mut session: TlsSession) {
        if let Hello::Said { written, before, .. } = &mut session.hello {
            (*written, *before) = (0, *before + 1);
            if *before == HELLO_SAID_MAX {
                return;
            }
            // What lies there already, from a connection that took longer to fail, may be the one with the ticket.
            self.unanswered().entry(session.name.clone()).or_insert(session);
        }
    }

    fn unanswered(&self) -> MutexGuard<'_, HashMap<ServerName<'static>, TlsSession>> {
        lock(&self.unanswered)
    }
}

impl TlsSession {
    /// Whether the handshake is still going on.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether there is something for the peer.
    pub(crate) fn wants_write(&self) -> bool {
        let is_hello_left =
            matches!(&self.hello, Hello::Said { bytes, written, .. } if *written < bytes.len());
        is_hello_left || self.connection.wants_write()
    }

    /// Takes what `socket` has to give; 0 at its end.
    pub(crate) fn read_from(&mut self, socket: &mut dyn Read) -> io::Result<usize> {
        if let Hello::Said { .. } = self.hello {
            // By itself: rustls must not hear of the end of a connection on which nothing was answered.
            let mut first = [0];
            if socket.read(&mut first)? == 0 {
                return Ok(0);
            }
            self.hello = Hello::Answered;
            return self.connection.read_tls(&mut &first[..]);
        }
        self.connection.read_tls(socket)
    }

    /// Gives `socket` what it takes.
    pub(crate) fn write_to(&mut self, socket: &mut dyn Write) -> io::Result<usize> {
        if let Hello::Said { bytes, written, .. } = &mut self.hello
            && *written < bytes.len()
        {
            let taken = socket.write(&bytes[*written..])?;
            *written += taken;
            return Ok(taken);
        }
        self.connection.write_tls(socket)
    }

    /// Opens the records that were read and appends what was in them to `plain`. `false` when the peer has said that it ends.
    ///
    /// # Errors
    /// What is wrong with them, or with the peer's certificate; the alert that tells the peer is then ready to be written.
    pub(crate) fn open(&mut self, plain: &mut Vec<u8>) -> Result<bool, String> {
        let state = self.connection.process_new_packets().map_err(|error| explain(&error))?;
        let bytes = state.plaintext_bytes_to_read();
        if bytes > 0 {
            let start = plain.len();
            plain.resize(start + bytes, 0);
            let read = self.connection.reader().read_exact(&mut plain[start..]);
            read.map_err(|error| error.to_string())?;
        }
        Ok(!state.peer_has_closed())
    }

    /// Seals as much of `plain` as is taken now; gives the count.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> Result<usize, String> {
        self.connection.writer().write(plain).map_err(|error| error.to_string())
    }

    /// Who signed the certificate that a handshake has just failed for, where the site's authority did not: somebody stands in between.
    pub(crate) fn take_stranger(&self) -> Option<String> {
        lock(&self.strangers).take()
    }

    /// Tells the peer that nothing follows.
    pub(crate) fn close(&mut self) {
        self.connection.send_close_notify();
    }

    /// Who answered, once the handshake is over: a server of the site, whose certificate holds now or at the floor.
    ///
    /// # Errors
    /// Why it is not taken for one.
    pub(crate) fn verify_server(&self) -> Result<ServerId, String> {
        if self.connection.alpn_protocol() != Some(ALPN) {
            return Err("the peer speaks TLS but not bgb/1; is this address a BGB server's?".to_owned());
        }
        let certificate = self.connection.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.ok_or("the peer showed no certificate")?;
        let identity = Identity::from_der(certificate).map_err(|error| error.to_string())?;
        let Role::Server(server) = identity.holder.role else {
            return Err(format!("the peer is {}, which is no server", identity.holder));
        };
        if identity.holder.site != self.site {
            return Err(format!(
                "the peer is a server of site {}, not of {}",
                identity.holder.site, self.site
            ));
        }
        let holds_at = |millis: u64| (identity.not_before..=identity.not_after).contains(&UnixMillis(millis));
        if holds_at(self.times.now.load(Ordering::Relaxed))
            || holds_at(self.times.floor.load(Ordering::Relaxed))
        {
            Ok(server)
        } else {
            Err("the server's certificate has ended or not begun; its administrator has to renew it"
                .to_owned())
        }
    }
}

/// What is in there is whole whatever its holder did: one call of the map's, or one assignment.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Verifies chain and name as webpki does, by the agent's own time instead of the machine's clock.
#[derive(Debug)]
struct ByOwnTime {
    chain: Arc<WebPkiServerVerifier>,
    authority: CertificateDer<'static>,
    algorithms: &'static [&'static dyn SignatureVerificationAlgorithm],
    times: Arc<Times>,
    /// The issuer of the last certificate that is not by the site's authority. One place for all sessions, since a ticket is only good with the
    /// verifier that it came with: of two that fail in one moment, which is rare, one is told of the other's, which is hardly another.
    strangers: Arc<Mutex<Option<String>>>,
}

impl ServerCertVerifier for ByOwnTime {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        _machine_time: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |millis: &AtomicU64| {
            let time = UnixTime::since_unix_epoch(Duration::from_millis(millis.load(Ordering::Relaxed)));
            self.chain.verify_server_cert(end_entity, intermediates, name, ocsp_response, time)
        };
        let verified = match verify(&self.times.now) {
            Err(error) if is_about_dates(&error) => verify(&self.times.floor),
            verified => verified,
        };
        if verified.is_err() && !is_signed_by(end_entity, &self.authority, self.algorithms) {
            *lock(&self.strangers) = Some(issuer(end_entity));
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// What an error means to whoever reads the agent's log, with rustls's own words behind it.
fn explain(error: &rustls::Error) -> String {
    let meaning = match error {
        error if is_about_dates(error) => {
            "the server's certificate has expired or is not valid yet; its administrator has to renew it"
        }
        rustls::Error::InvalidCertificate(Fault::UnknownIssuer | Fault::BadSignature) => {
            "the server's certificate is not by the site's authority; somebody stands in between, or authority.pem is another \
             site's"
        }
        rustls::Error::InvalidCertificate(Fault::NotValidForName | Fault::NotValidForNameContext { .. }) => {
            "the server's certificate is for another name; is the address in agent.toml right?"
        }
        rustls::Error::InvalidCertificate(Fault::InvalidPurpose | Fault::InvalidPurposeContext { .. }) => {
            "the peer's certificate is no server's"
        }
        rustls::Error::InvalidCertificate(_) => "the server's certificate cannot be used",
        rustls::Error::AlertReceived(_) => "the server refused this device's handshake; its log says why",
        _ => return error.to_string(),
    };
    format!("{meaning} ({error})")
}

fn is_about_dates(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            Fault::Expired
                | Fault::ExpiredContext { .. }
                | Fault::NotValidYet
                | Fault::NotValidYetContext { .. }
        )
    )
}

#[cfg(test)]
pub(crate) mod tests;
