//! TLS of the notification server: the only place of this crate that names rustls. `tls/handshake.rs` has a session's beginning,
//! `tls/parked.rs` the rest of its life, `tls/tickets.rs` the session tickets.
//!
//! TLS 1.3 only, certificates on both sides, under the site's own authority; ALPN `bgb/1`; no early data. A session is
//! fed with bytes as they came and gives bytes to be sent: it owns no socket. Whatever a peer does wrong comes out as a
//! [`TlsFault`], which says whose certificate or which half of a handshake was at fault.
//!
//! HTTPS has a TLS of its own around all that, in which the server alone shows a certificate: it tells nobody who the peer is, and gives no
//! ticket, so that none of one kind can be taken for one of the other.
//!
//! A resumed session skips the certificate exchange, so nothing here is trusted to have been checked again: the hub checks the
//! identity's dates, its block and its revocation at every sign-in.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bgb_hub::CloseReason;
use bgb_protocol::certificate::{Identity, Role};
use bgb_protocol::ids::{DeviceId, ServerId, SiteCode};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, Error, RootCertStore, ServerConfig};

mod handshake;
mod hello;
#[doc(hidden)]
pub mod opposite;
mod parked;
mod tickets;

use handshake::Handshake;
use parked::{Misstep, Parked};
use tickets::Tickets;

/// The name of the conversation, as both sides say it in ALPN (RFC 7301).
pub const ALPN: &[u8] = b"bgb/1";

/// The name of what is spoken in an outer TLS.
const ALPN_OUTER: &[u8] = b"http/1.1";

/// Files that a server is given.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The server's certificate, PEM.
    pub certificate: std::path::PathBuf,
    /// Its key, PEM, PKCS#8; readable by its owner only.
    pub key: std::path::PathBuf,
    /// The site's authority, PEM.
    pub authority: std::path::PathBuf,
    /// The certificate that HTTPS shows, PEM, with those between it and its authority; without one, the server's.
    #[serde(default)]
    pub https_certificate: Option<std::path::PathBuf>,
    /// Its key.
    #[serde(default)]
    pub https_key: Option<std::path::PathBuf>,
}

/// What every new session of the server starts from.
pub struct TlsContext {
    config: Arc<ServerConfig>,
    outer: Arc<ServerConfig>,
    tickets: Arc<Tickets>,
    site: SiteCode,
    authority: Vec<u8>,
    /// Who the server itself is by its certificate, and until when.
    pub identity: Identity,
}

impl TlsContext {
    /// Reads and checks the files. Keys of session tickets are kept in the file `ticket_keys`: while the authority stays the same, tickets that
    /// were given out go on to hold over restarts and reloads, so that neither makes the fleet do full handshakes. `former` is the context that
    /// this one replaces.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn load(
        files: &TlsFiles,
        site: SiteCode,
        server: ServerId,
        ticket_keys: &Path,
        former: Option<&Self>,
    ) -> anyhow::Result<Self> {
        let chain = certificates(&files.certificate)?;
        let leaf = chain.first().context("the certificate's file is empty")?;
        let identity =
            Identity::from_der(leaf).with_context(|| format!("{}", files.certificate.display()))?;
        anyhow::ensure!(
            identity.holder.site == site && identity.holder.role == Role::Server(server),
            "{} is the certificate of {}; this is server {server} of site {site}: name its own certificate",
            files.certificate.display(),
            identity.holder
        );
        let key = key_of(&files.key)?;
        let outer = match (&files.https_certificate, &files.https_key) {
            (None, None) => outer_config(chain.clone(), key.clone_key()),
            (Some(certificate), Some(key)) => outer_config(certificates(certificate)?, key_of(key)?)
                .with_context(|| format!("{} and {}", certificate.display(), key.display())),
            _ => Err(anyhow::anyhow!("https_certificate and https_key go together: name both, or neither")),
        }?;
        let mut roots = RootCertStore::empty();
        let authorities = certificates(&files.authority)?;
        let authority: Vec<u8> = authorities.iter().flat_map(|certificate| certificate.to_vec()).collect();
        for certificate in authorities {
            roots.add(certificate).with_context(|| format!("{}", files.authority.display()))?;
        }
        let tickets = match former {
            Some(former) if former.authority == authority => Arc::clone(&former.tickets),
            _ => Arc::new(Tickets::open(ticket_keys, &authority)?),
        };
        let config = config(roots, chain, key, Arc::clone(&tickets))
            .with_context(|| format!("{} and {}", files.certificate.display(), files.key.display()))?;
        Ok(Self { config: Arc::new(config), outer: Arc::new(outer), tickets, site, authority, identity })
    }

    /// Whether `received`, the first bytes of a connection, are its whole first record, or cannot become one.
    #[must_use]
    pub fn is_whole(received: &[u8]) -> bool {
        hello::is_whole(received)
    }

    /// Whether `received`, the first bytes of a connection, show a ticket that opens. A stranger cannot make one up, but can repeat one that it has
    /// seen go by: whoever asks puts the cheap ones first, and trusts nobody for it.
    #[must_use]
    pub fn resumes(&self, received: &[u8]) -> bool {
        hello::ticket(received).is_some_and(|ticket| self.tickets.opens(ticket))
    }

    /// Makes a new key for session tickets when it is time to. To be called about every hour, by no reactor: it writes a file.
    ///
    /// # Errors
    /// When there is no new key, and the present ones go on; or when it cannot be kept, and ends with the process unless a later call can.
    pub fn rotate_tickets(&self) -> anyhow::Result<()> {
        self.tickets.rotate()
    }
}

fn config(
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    tickets: Arc<Tickets>,
) -> anyhow::Result<ServerConfig> {
    let provider = provider();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.ignore_client_order = true;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ticketer = tickets;
    // One is enough for an agent that holds one connection; each carries the device's certificate.
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    config.enable_secret_extraction = true;
    Ok(config)
}

fn outer_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> anyhow::Result<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.ignore_client_order = true;
    config.alpn_protocols = vec![ALPN_OUTER.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.enable_secret_extraction = true;
    Ok(config)
}

/// Those cipher suites whose keys a parked connection can give back to them: AES-128 is not among them, and no agent needs it. ChaCha20 first: its keys need no
/// schedule, which a parked connection would compute for each record, and processors have instructions for its hash, so that a handshake costs less.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
    ];
    Arc::new(provider)
}

fn key_of(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    let key = bgb_daemon::secret::read(path)?;
    PrivateKeyDer::from_pem_slice(&key)
        .map_err(|error| anyhow::anyhow!("{} holds no PEM private key: {error}", path.display()))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("{} cannot be read as PEM certificates", path.display()));
    let found = found?;
    anyhow::ensure!(!found.is_empty(), "{} holds no certificate", path.display());
    Ok(found)
}

/// Why a session ends, in this file's terms; [`TlsFault::reason`] gives everybody else's.
#[derive(Debug)]
pub struct TlsFault {
    reason: CloseReason,
    /// What rustls said, for the log.
    pub detail: String,
}

impl TlsFault {
    /// The reason as it is counted and logged.
    #[must_use]
    pub fn reason(&self) -> CloseReason {
        self.reason
    }

    /// The peer has sent more than a handshake needs, and it is still not over.
    #[must_use]
    pub fn handshake_too_long(bytes: usize) -> Self {
        let detail = format!("{bytes} bytes came, and the handshake is not over");
        Self { reason: CloseReason::HandshakeGarbage, detail }
    }

    fn of_record(misstep: Misstep) -> Self {
        match misstep {
            Misstep::KeysWornOut => Self { reason: CloseReason::KeysWornOut, detail: String::new() },
            Misstep::BadRecord(detail) => Self { reason: CloseReason::BadRecord, detail },
        }
    }

    fn of_handshake(error: &Error) -> Self {
        let reason = match error {
            Error::NoCertificatesPresented => CloseReason::NoCertificate,
            Error::InvalidCertificate(fault) => match fault {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    CloseReason::WrongAuthority
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    CloseReason::CertificateExpired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    CloseReason::CertificateNotYetValid
                }
                _ => CloseReason::BadCertificate,
            },
            Error::InvalidMessage(_) => CloseReason::HandshakeGarbage,
            _ => CloseReason::HandshakeFailed,
        };
        Self { reason, detail: error.to_string() }
    }
}

/// Who a handshake was with.
#[derive(Debug)]
pub struct Established {
    /// The device.
    pub device: DeviceId,
    /// What its certificate says.
    pub identity: Identity,
    /// The handshake skipped the certificates by a ticket.
    pub is_resumed: bool,
}

/// What feeding a session came to.
#[derive(Debug, Default)]
pub struct Fed {
    /// The handshake is over with these bytes; told once.
    pub is_up: bool,
    /// And who it was with, where that is asked: not in an outer TLS.
    pub established: Option<Box<Established>>,
    /// The peer has said close_notify: nothing more comes from it.
    pub peer_closed: bool,
}

/// The TLS of one connection.
#[derive(Debug)]
pub struct TlsSession(State);

enum State {
    Handshaking(Box<Handshake>),
    Parked(Parked),
    /// It failed between the two.
    Over,
}

impl TlsSession {
    /// A session that waits for its peer's first bytes.
    ///
    /// # Errors
    /// When rustls refuses its own config, which [`TlsContext::load`] has accepted.
    pub fn new(context: &TlsContext) -> anyhow::Result<Self> {
        Ok(Self(State::Handshaking(Box::new(Handshake::new(&context.config, Some(context.site))?))))
    }

    /// A session of HTTPS, whose peer remains unknown.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn outer(context: &TlsContext) -> anyhow::Result<Self> {
        Ok(Self(State::Handshaking(Box::new(Handshake::new(&context.outer, None)?))))
    }

    /// Takes bytes as they came, which are opened where they are. What was inside is appended to `plaintext`; what TLS itself answers
    /// (handshake messages, tickets, alerts) to `records`.
    ///
    /// # Errors
    /// The session is over. Where a record or the handshake is at fault, the alert that says so is in `records`; where the peer is not one of ours,
    /// close_notify is to follow.
    pub fn feed(
        &mut self,
        mut received: &mut [u8],
        plaintext: &mut Vec<u8>,
        records: &mut Vec<u8>,
    ) -> Result<Fed, TlsFault> {
        let mut fed = Fed::default();
        if let State::Handshaking(handshake) = &mut self.0 {
            let progress = handshake.feed(received, records)?;
            if !progress.is_over {
                return Ok(fed);
            }
            received = &mut received[progress.taken..];
            let established = handshake.established();
            // Also when it is with the wrong one: what is said to it goes through its keys.
            self.park()?;
            fed.established = established?.map(Box::new);
            fed.is_up = true;
        }
        if let State::Parked(parked) = &mut self.0 {
            fed.peer_closed = parked.feed(received, plaintext, records).map_err(TlsFault::of_record)?;
        }
        Ok(fed)
    }

    /// Lets rustls go: its handshake is over.
    fn park(&mut self) -> Result<(), TlsFault> {
        if let State::Handshaking(handshake) = std::mem::replace(&mut self.0, State::Over) {
            self.0 = State::Parked(handshake.park()?);
        }
        Ok(())
    }

    /// Seals `plaintext` and appends its records to `records`. To be called when the handshake is over.
    pub fn seal(&mut self, plaintext: &[u8], records: &mut Vec<u8>) {
        if let State::Parked(parked) = &mut self.0 {
            parked.seal(plaintext, records);
        }
    }

    /// Whether its keys have sealed nearly as many records as they may: it is to be closed.
    #[must_use]
    pub fn is_worn_out(&self) -> bool {
        matches!(&self.0, State::Parked(parked) if parked.is_worn_out())
    }

    /// Says close_notify, unless an alert has told the end already.
    pub fn close(&mut self, records: &mut Vec<u8>) {
        match &mut self.0 {
            State::Handshaking(handshake) => handshake.close(records),
            State::Parked(parked) => parked.close(records),
            State::Over => {}
        }
    }
}

impl std::fmt::Debug for TlsContext {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "TlsContext({})", self.identity.holder)
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Handshaking(_) => formatter.write_str("Handshaking"),
            Self::Parked(parked) => parked.fmt(formatter),
            Self::Over => formatter.write_str("Over"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
