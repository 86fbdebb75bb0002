//! TLS of the notification server: the only place of this crate that names rustls. `tls/tickets.rs` has the session tickets.
//!
//! TLS 1.3 only, certificates on both sides, under the site's own authority; ALPN `bgb/1`; no early data. A session is
//! fed with bytes as they came and gives bytes to be sent: it owns no socket. Whatever a peer does wrong comes out as a
//! [`TlsFault`], which says whose certificate or which half of a handshake was at fault.
//!
//! A resumed session skips the certificate exchange, so nothing here is trusted to have been checked again: the hub checks the
//! identity's dates, its block and its revocation at every sign-in.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bgb_hub::CloseReason;
use bgb_protocol::certificate::{Identity, Role};
use bgb_protocol::ids::{DeviceId, ServerId, SiteCode};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, Error, HandshakeKind, RootCertStore, ServerConfig, ServerConnection};

mod tickets;

use tickets::Tickets;

/// The name of the conversation, as both sides say it in ALPN (RFC 7301).
pub const ALPN: &[u8] = b"bgb/1";

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
}

/// What every new session of the server starts from.
pub struct TlsContext {
    config: Arc<ServerConfig>,
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
        let key = bgb_daemon::secret::read(&files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|error| anyhow::anyhow!("{} holds no PEM private key: {error}", files.key.display()))?;
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
        Ok(Self { config: Arc::new(config), tickets, site, authority, identity })
    }

    /// Makes a new key for session tickets when it is time to. To be called about every hour, by no reactor: it writes a file.
    ///
    /// # Errors
    /// When the new key cannot be kept: the present ones go on.
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
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ticketer = tickets;
    // One is enough for an agent that holds one connection; each carries the device's certificate.
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    Ok(config)
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

    fn of(error: &Error, handshaking: bool) -> Self {
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
            _ if !handshaking => CloseReason::BadRecord,
            Error::InvalidMessage(_) => CloseReason::HandshakeGarbage,
            _ => CloseReason::HandshakeFailed,
        };
        Self { reason, detail: error.to_string() }
    }
}

/// What feeding a session came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed {
    /// The handshake is over with these bytes, or was before.
    pub established: bool,
    /// The peer has said close_notify: nothing more comes from it.
    pub peer_closed: bool,
}

/// The TLS of one connection.
pub struct TlsSession {
    connection: Box<ServerConnection>,
    site: SiteCode,
}

impl TlsSession {
    /// A session that waits for its peer's first bytes.
    ///
    /// # Errors
    /// When rustls refuses its own config, which [`TlsContext::load`] has accepted.
    pub fn new(context: &TlsContext) -> anyhow::Result<Self> {
        let mut connection = ServerConnection::new(Arc::clone(&context.config))?;
        // What is sent is bounded by the socket's own limit; rustls's would cut a message in two.
        connection.set_buffer_limit(None);
        Ok(Self { connection: Box::new(connection), site: context.site })
    }

    /// Takes bytes as they came; appends what was inside to `plaintext`.
    ///
    /// # Errors
    /// The session is over; what [`take_output`](Self::take_output) still gives is the alert that says so.
    pub fn feed(&mut self, mut received: &[u8], plaintext: &mut Vec<u8>) -> Result<Fed, TlsFault> {
        let mut peer_closed = false;
        let handshaking = self.connection.is_handshaking();
        while !received.is_empty() {
            let before = received.len();
            self.connection.read_tls(&mut received).map_err(|error| TlsFault {
                reason: if handshaking { CloseReason::HandshakeGarbage } else { CloseReason::BadRecord },
                detail: error.to_string(),
            })?;
            let state =
                self.connection.process_new_packets().map_err(|error| TlsFault::of(&error, handshaking))?;
            peer_closed |= state.peer_has_closed();
            let bytes = state.plaintext_bytes_to_read();
            let start = plaintext.len();
            plaintext.resize(start + bytes, 0);
            self.connection
                .reader()
                .read_exact(&mut plaintext[start..])
                .expect("rustls has just said how much plaintext there is");
            if received.len() == before {
                // After close_notify rustls takes nothing more.
                break;
            }
        }
        Ok(Fed { established: !self.connection.is_handshaking(), peer_closed })
    }

    /// Appends to `out` what the session itself wants to send: handshake messages, tickets, alerts.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(out).expect("writing into memory does not fail");
        }
    }

    /// Seals `plaintext` and appends its records to `out`.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) {
        self.connection.writer().write_all(plaintext).expect("the session's buffer has no limit of its own");
        self.take_output(out);
    }

    /// Says close_notify.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        self.connection.send_close_notify();
        self.take_output(out);
    }

    /// Whether the handshake skipped the certificates by a ticket.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Who the peer is: a device of our site that speaks our protocol.
    ///
    /// # Errors
    /// [`TlsFault`] when it did not offer the protocol, has no certificate, or one that is no device's of this site.
    pub fn device(&self) -> Result<(DeviceId, Identity), TlsFault> {
        let fault = |reason, detail: String| TlsFault { reason, detail };
        // rustls refuses a peer that offers other protocols, but lets one pass that offers none.
        if self.connection.alpn_protocol() != Some(ALPN) {
            return Err(fault(
                CloseReason::HandshakeFailed,
                "the peer did not offer bgb/1 in ALPN".to_owned(),
            ));
        }
        let leaf =
            self.connection.peer_certificates().and_then(<[_]>::first).ok_or_else(|| {
                fault(CloseReason::NoCertificate, "the session has no certificate".to_owned())
            })?;
        let identity = Identity::from_der(leaf)
            .map_err(|error| fault(CloseReason::BadCertificate, error.to_string()))?;
        let wrong = |reason| Err(fault(reason, format!("the certificate is that of {}", identity.holder)));
        match identity.holder.role {
            _ if identity.holder.site != self.site => wrong(CloseReason::WrongSite),
            Role::Server(_) => wrong(CloseReason::WrongRole),
            Role::Device(device, _) => Ok((device, identity)),
        }
    }
}

impl std::fmt::Debug for TlsContext {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "TlsContext({})", self.identity.holder)
    }
}

impl std::fmt::Debug for TlsSession {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "TlsSession(handshaking: {})", self.connection.is_handshaking())
    }
}

#[cfg(test)]
pub(crate) mod tests;
