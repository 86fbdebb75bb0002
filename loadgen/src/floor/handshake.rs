//! Mutual TLS handshakes in memory: what they cost a server when there are no sockets, no other thread and no other work.
//!
//! Both sides are rustls as it comes, with the key exchange, certificates and provider that the product uses. Counted is the time that the thread
//! spends in the server's half, by the thread's own clock. The product prefers another cipher suite than rustls does, whose hash processors have
//! instructions for; what that changes in memory stands beside.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection};
use serde::Serialize;

use crate::authority::{Authority, Issued, Named};

/// Handshakes that are not counted: caches and branch predictors are warm then.
const WARM_UP: u32 = 50;

/// What one handshake costs the server, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct HandshakeFloor {
    pub(crate) full_us: f64,
    pub(crate) resumed_us: f64,
    /// A full one with the suite that the product prefers.
    pub(crate) full_own_suite_us: f64,
}

impl HandshakeFloor {
    /// Between two that were measured before and after something: a machine may change its pace meanwhile.
    pub(crate) fn between(before: Self, after: Self) -> Self {
        let middle = |get: fn(&Self) -> f64| f64::midpoint(get(&before), get(&after));
        Self {
            full_us: middle(|floor| floor.full_us),
            resumed_us: middle(|floor| floor.resumed_us),
            full_own_suite_us: middle(|floor| floor.full_own_suite_us),
        }
    }
}

/// Measures so many handshakes of each kind.
///
/// # Errors
/// When rustls refuses what was made for it.
pub(crate) fn measure(count: u32) -> anyhow::Result<HandshakeFloor> {
    let (stock, own) = (Sides::new(aws_lc_rs::default_provider())?, Sides::new(own_provider())?);
    Ok(HandshakeFloor {
        full_us: stock.average_us(count, HandshakeKind::Full)?,
        resumed_us: stock.average_us(count, HandshakeKind::Resumed)?,
        full_own_suite_us: own.average_us(count, HandshakeKind::Full)?,
    })
}

/// With the suite that the product prefers, and no other.
fn own_provider() -> CryptoProvider {
    let cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
    CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() }
}

struct Sides {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Sides {
    fn new(provider: CryptoProvider) -> anyhow::Result<Self> {
        let authority = Authority::new()?;
        let issue = |name: &str| -> anyhow::Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
            let Issued { certificate, key, .. } = authority.issue(Named::Name(name))?;
            Ok((certificate, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key))))
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone())?;
        let (roots, provider) = (Arc::new(roots), Arc::new(provider));
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build()?;
        let (certificate, key) = issue("server.floor")?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)?;
        server.ticketer = aws_lc_rs::Ticketer::new()?;
        server.send_tls13_tickets = 1;
        let (certificate, key) = issue("device.floor")?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }

    fn average_us(&self, count: u32, kind: HandshakeKind) -> anyhow::Result<f64> {
        let mut spent = Duration::ZERO;
        for number in 0..WARM_UP + count {
            let client = match kind {
                HandshakeKind::Resumed => Arc::clone(&self.client),
                _ => self.client_without_tickets(),
            };
            let (of_server, done) = self.shake_hands(client)?;
            // The very first of those that resume has no ticket yet.
            anyhow::ensure!(number == 0 || done == kind, "a handshake in memory is {done:?}, not {kind:?}");
            if number >= WARM_UP {
                spent += of_server;
            }
        }
        Ok(spent.as_secs_f64() * 1e6 / f64::from(count))
    }

    fn client_without_tickets(&self) -> Arc<ClientConfig> {
        let mut client = (*self.client).clone();
        client.resumption = rustls::client::Resumption::disabled();
        Arc::new(client)
    }

    /// One handshake, tickets and all: the time in the server's half, and of which kind it was.
    fn shake_hands(&self, client: Arc<ClientConfig>) -> anyhow::Result<(Duration, HandshakeKind)> {
        let mut client = ClientConnection::new(client, ServerName::try_from("server.floor")?)?;
        let (mut to_server, mut to_client, mut spent) = (Vec::new(), Vec::new(), Duration::ZERO);
        let begun = thread_time();
        let mut server = ServerConnection::new(Arc::clone(&self.server))?;
        spent += thread_time() - begun;
        loop {
            while client.wants_write() {
                client.write_tls(&mut to_server)?;
            }
            let begun = thread_time();
            let mut rest = to_server.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest)?;
                server.process_new_packets()?;
            }
            while server.wants_write() {
                server.write_tls(&mut to_client)?;
            }
            spent += thread_time() - begun;
            to_server.clear();
            if to_client.is_empty() && !client.wants_write() {
                break;
            }
            let mut rest = to_client.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest)?;
                client.process_new_packets()?;
            }
            to_client.clear();
        }
        let kind = server.handshake_kind().context("a handshake in memory does not end")?;
        Ok((spent, kind))
    }
}

/// What this thread has spent of a core so far.
fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_handshake_costs_less_than_a_full_one() {
        let floor = measure(20).unwrap();
        assert!(floor.resumed_us > 0.0 && floor.resumed_us < floor.full_us, "{floor:?}");
        assert!(floor.resumed_us < floor.full_own_suite_us, "{floor:?}");
        assert_eq!(HandshakeFloor::between(floor, floor).full_us, floor.full_us);
    }
}
