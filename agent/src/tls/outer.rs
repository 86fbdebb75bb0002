//! The outer TLS of a road over HTTPS, around the session's own.
//!
//! It is there for networks that let nothing else out, and keeps no secret that the session inside does not keep by itself. So it takes whatever
//! certificate it is shown: who is at the other end is proved inside, by both sides, and a proxy that opens this layer sees
//! records there that it can neither read nor alter. Only who has signed the certificate is remembered, since it tells an
//! administrator who stands in between. TLS 1.3, and 1.2 as well, since boxes that inspect often stop there; ALPN `http/1.1`, no ticket. It touches no socket but those it is handed. Law: nothing of
//! this agent's is ever sent in this layer alone.

use std::io::{self, Read, Write};
use std::sync::Arc;

use anyhow::Context as _;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::issuer::{is_signed_by, issuer};

/// The conversation's name (RFC 7301; docs/protocol.md, 13).
const ALPN: &[u8] = b"http/1.1";

/// Most bytes that wait to be sealed or written: what a socket takes at once.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Reads in a row that open nothing: tickets and empty records, which a peer could send without end. Each is some KiB, so this is some 256 KiB.
const IN_VAIN_READS_MAX: u32 = 64;

/// What all outer sessions share.
pub(crate) struct OuterTls {
    config: Arc<ClientConfig>,
    provider: Arc<CryptoProvider>,
    authority: CertificateDer<'static>,
    /// Who else signs what the site's servers show.
    issuers: Vec<String>,
}

/// One outer session.
pub(crate) struct OuterSession {
    connection: ClientConnection,
    /// Bytes that were opened and are not read.
    opened: usize,
}

impl OuterTls {
    /// Prepares sessions for a device of the site whose authority this is, and whose servers show certificates of these `issuers` as well.
    ///
    /// # Errors
    /// When the authority cannot be used.
    pub(crate) fn new(authority: &CertificateDer<'static>, issuers: Vec<String>) -> anyhow::Result<Self> {
        let provider = Arc::new(default_provider());
        RootCertStore::empty().add(authority.clone()).context("the site's authority cannot be used")?;
        let verifier = Whoever { schemes: provider.signature_verification_algorithms.supported_schemes() };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .context("TLS cannot be used")?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), provider, authority: authority.clone(), issuers })
    }

    /// Begins a session with whoever answers as `host`, a name or an address.
    ///
    /// # Errors
    /// When `host` is no name that TLS could ask for.
    pub(crate) fn session(&self, host: &str) -> Result<OuterSession, String> {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned()).map_err(|_| format!("{host} is no host name"))?;
        let mut connection =
            ClientConnection::new(Arc::clone(&self.config), name).map_err(|error| error.to_string())?;
        connection.set_buffer_limit(Some(BUFFER_BYTES_MAX));
        Ok(OuterSession { connection, opened: 0 })
    }

    /// Who signed the certificate that was shown, where the site's authority did not.
    pub(crate) fn stranger(&self, session: &OuterSession) -> Option<String> {
        let certificate = session.connection.peer_certificates()?.first()?;
        let by_another = (!self.is_by_authority(certificate)).then(|| issuer(certificate));
        by_another.filter(|issuer| !self.issuers.contains(issuer))
    }

    fn is_by_authority(&self, certificate: &CertificateDer<'_>) -> bool {
        is_signed_by(certificate, &self.authority, self.provider.signature_verification_algorithms.all)
    }
}

impl OuterSession {
    /// Whether the handshake is still going on.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether there is something for the peer.
    pub(crate) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Whether bytes can be read without the socket.
    pub(crate) fn has_opened(&self) -> bool {
        self.opened > 0
    }

    /// Opens what `socket` has to give; 0 at its end.
    ///
    /// # Errors
    /// The socket's, `WouldBlock` among them, and what is wrong with the peer's records.
    pub(crate) fn read_from(&mut self, socket: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
        for _ in 0..IN_VAIN_READS_MAX {
            match self.connection.reader().read(buffer) {
                Ok(count) => {
                    self.opened -= count.min(self.opened);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Its end without close_notify: the session inside says goodbye by itself.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
            }
            if !self.take_from(socket)? {
                return Ok(0);
            }
        }
        // The rest is with the socket, which tells.
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Takes what `socket` has to give during the handshake; `false` at its end.
    ///
    /// # Errors
    /// As [`Self::read_from`].
    pub(crate) fn take_from(&mut self, socket: &mut dyn Read) -> io::Result<bool> {
        if self.connection.read_tls(socket)? == 0 {
            return Ok(false);
        }
        let state = self
            .connection
            .process_new_packets()
            .map_err(|error| io::Error::other(format!("the outer TLS is broken: {error}")))?;
        self.opened = state.plaintext_bytes_to_read();
        Ok(true)
    }

    /// Seals as much of `bytes` as there is room for, and gives `socket` what it takes.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` when there is no room.
    pub(crate) fn write_to(&mut self, socket: &mut dyn Write, bytes: &[u8]) -> io::Result<usize> {
        self.flush_to(socket)?;
        let taken = self.connection.writer().write(bytes)?;
        match self.flush_to(socket) {
            // What was taken is under way, however slow.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ if taken == 0 && !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(taken),
        }
    }

    /// Gives `socket` all that waits.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` when it does not take all.
    pub(crate) fn flush_to(&mut self, socket: &mut dyn Write) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(socket)?;
        }
        Ok(())
    }
}

/// Takes any certificate; the module says why that is sound.
#[derive(Debug)]
struct Whoever {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Whoever {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::tests::{Authority, Issued, outer_server_with, self_signed, server};

    /// Shakes hands in memory with a server that shows `shown`; what an agent of `own` makes of it.
    fn meet(own: &Authority, shown: Issued) -> Option<String> {
        let tls = OuterTls::new(own.certificate(), Vec::new()).unwrap();
        let mut server = outer_server_with(shown);
        let mut session = tls.session("server.example").unwrap();
        for _ in 0..5 {
            let mut wire = Vec::new();
            session.flush_to(&mut wire).unwrap();
            let mut wire = &wire[..];
            while !wire.is_empty() {
                server.read_tls(&mut wire).unwrap();
            }
            server.process_new_packets().unwrap();
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut wire = &wire[..];
            while !wire.is_empty() {
                session.take_from(&mut wire).unwrap();
            }
        }
        assert!(!session.is_handshaking());
        // And bytes go both ways.
        let mut wire = Vec::new();
        assert_eq!(session.write_to(&mut wire, b"up").unwrap(), 2);
        server.read_tls(&mut &wire[..]).unwrap();
        server.process_new_packets().unwrap();
        let mut heard = [0; 2];
        server.reader().read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"up");
        server.writer().write_all(b"down").unwrap();
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        let mut wire = &wire[..];
        let mut heard = [0; 3];
        assert_eq!(session.read_from(&mut wire, &mut heard).unwrap(), 3);
        assert!(session.has_opened(), "one byte can be read without the socket");
        assert_eq!(session.read_from(&mut io::empty(), &mut heard).unwrap(), 1);
        assert!(!session.has_opened());
        tls.stranger(&session)
    }

    #[test]
    fn any_certificate_is_taken_and_a_strangers_issuer_is_told() {
        let (own, stranger) = (Authority::new(), Authority::named("Example Proxy CA"));
        assert_eq!(meet(&own, server(&own)), None);
        assert_eq!(meet(&own, server(&stranger)), Some("Example Proxy CA".to_owned()));
        // Also one that bears the same name as the site's.
        assert!(meet(&own, server(&Authority::new())).is_some());
        // And one that would not do for a server, whoever signed it.
        assert_eq!(meet(&own, self_signed("Example Proxy")), Some("Example Proxy".to_owned()));
        assert_eq!(meet(&own, stranger.client()), Some("Example Proxy CA".to_owned()));
        assert_eq!(meet(&own, own.client()), None);
    }
}
