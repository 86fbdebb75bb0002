//! An outer TLS, around the session's own: for roads in HTTPS.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::TlsSession;

/// What is spoken inside, by its name in ALPN (RFC 7301).
const ALPN: &[u8] = b"http/1.1";

/// What all outer sessions start from.
pub(crate) struct OuterTls {
    config: Arc<ClientConfig>,
}

impl OuterTls {
    /// With keys that a session at rest can have.
    ///
    /// # Errors
    /// When rustls refuses its own configuration.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let cipher_suites =
            vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384];
        let provider = CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() };
        let anybody = Anybody { known: provider.signature_verification_algorithms };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(anybody))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A server gives none of them tickets (docs/protocol.md, 13).
        config.resumption = Resumption::disabled();
        config.enable_secret_extraction = true;
        Ok(Self { config: Arc::new(config) })
    }

    /// A session with whoever is at `address`.
    ///
    /// # Errors
    /// When rustls refuses its own configuration.
    pub(crate) fn session(&self, address: IpAddr) -> anyhow::Result<TlsSession> {
        TlsSession::begin(&self.config, address)
    }
}

/// Takes whatever certificate it is shown: an outer TLS is for networks that let nothing else out, and whoever looks into it there shows a certificate of its
/// own. Who is at the other end is proved by the session inside, both ways (docs/protocol.md, 13).
#[derive(Debug)]
struct Anybody {
    known: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.known.supported_schemes()
    }
}
