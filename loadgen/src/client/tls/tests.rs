//! A session before and at rest, against a server of rustls's in memory.

use std::net::Ipv4Addr;

use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, ServerConnection, SupportedCipherSuite};

use super::*;
use crate::authority::{Authority, Issued, Named};

/// A server, and what a device that trusts it starts from.
fn server_and_device(suite: SupportedCipherSuite) -> (Arc<ServerConfig>, TlsOfDevice) {
    let authority = Authority::new().unwrap();
    let Issued { certificate, key, .. } =
        authority.issue(Named::Address(IpAddr::from(Ipv4Addr::LOCALHOST))).unwrap();
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from(authority.certificate().to_vec());
    roots.add(root.clone()).unwrap();
    let provider =
        rustls::crypto::CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() };
    let provider = Arc::new(provider);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)))
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new().unwrap();
    let own = authority.issue(Named::Name("load-1")).unwrap();
    let device = TlsOfSite::new(&root, Some(ALPN)).unwrap().device(&own.certificate, &own.key).unwrap();
    (Arc::new(config), device)
}

/// What is on its way to one side, which gives no more than `at_once` bytes to a read.
struct Wire {
    bytes: Vec<u8>,
    at_once: usize,
}

impl Read for Wire {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = self.at_once.min(self.bytes.len()).min(room.len());
        room[..bytes].copy_from_slice(&self.bytes[..bytes]);
        self.bytes.drain(..bytes);
        Ok(bytes)
    }
}

/// A session and its server, and what the session has heard.
struct Pair {
    session: TlsSession,
    server: ServerConnection,
    at_once: usize,
    heard: Vec<u8>,
}

impl Pair {
    fn strangers(config: &Arc<ServerConfig>, device: &TlsOfDevice, resumes: bool, at_once: usize) -> Self {
        let session = device.session(IpAddr::from(Ipv4Addr::LOCALHOST), resumes).unwrap();
        let server = ServerConnection::new(Arc::clone(config)).unwrap();
        Self { session, server, at_once, heard: Vec::new() }
    }

    /// Both, past the handshake, and the session has its ticket.
    fn new(config: &Arc<ServerConfig>, device: &TlsOfDevice, resumes: bool, at_once: usize) -> Self {
        let mut pair = Self::strangers(config, device, resumes, at_once);
        pair.shake_hands();
        pair.session_hears().unwrap();
        pair
    }

    /// Until both are done with it; the server's ticket is on its way then.
    fn shake_hands(&mut self) {
        loop {
            self.server_hears().unwrap();
            if !self.server.is_handshaking() {
                break;
            }
            self.session_hears().unwrap();
        }
    }

    fn session_hears(&mut self) -> io::Result<()> {
        let mut wire = Wire { bytes: Vec::new(), at_once: self.at_once };
        while self.server.wants_write() {
            self.server.write_tls(&mut wire.bytes)?;
        }
        loop {
            match self.session.read_from(&mut wire, &mut [0; 4_096], &mut self.heard) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// What the session has said since, as the server opens it.
    fn server_hears(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        assert!(self.session.write_to(&mut bytes)?, "memory takes all");
        let (mut bytes, mut said) = (&bytes[..], Vec::new());
        while !bytes.is_empty() {
            self.server.read_tls(&mut bytes)?;
            let state = self.server.process_new_packets().map_err(io::Error::other)?;
            let start = said.len();
            said.resize(start + state.plaintext_bytes_to_read(), 0);
            self.server.reader().read_exact(&mut said[start..])?;
        }
        Ok(said)
    }

    /// Something from the server, and something back.
    fn talk(&mut self, bytes: usize) {
        let said: Vec<u8> = (0..bytes).map(|place| place as u8).collect();
        // rustls keeps no more than its limit at a time.
        for part in said.chunks(PART) {
            self.server.writer().write_all(part).unwrap();
            self.session_hears().unwrap();
        }
        assert!(std::mem::take(&mut self.heard) == said);
        self.session.seal(&said).unwrap();
        assert!(self.server_hears().unwrap() == said);
    }
}

/// Less than rustls keeps.
const PART: usize = 50_000;
const SUITES: [SupportedCipherSuite; 2] = [
    aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
];

#[test]
fn a_session_at_rest_says_and_hears_what_rustls_would_and_has_resumed_or_resumes() {
    for suite in SUITES {
        let (config, device) = server_and_device(suite);
        for (at_once, resumes) in [(1, false), (7, true), (100_000, true)] {
            let mut pair = Pair::new(&config, &device, resumes, at_once);
            assert_eq!(pair.session.is_resumed(), resumes);
            pair.talk(100);
            pair.session.rest().unwrap();
            assert!(matches!(pair.session.stage, Stage::AtRest(_)));
            for bytes in [1, 200, 16_384, 16_385, 60_000] {
                pair.talk(bytes);
            }
            pair.server.send_close_notify();
            assert_eq!(pair.session_hears().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}

#[test]
fn a_ticket_that_comes_to_a_session_at_rest_is_let_go_and_new_keys_end_it() {
    let (config, device) = server_and_device(SUITES[0]);
    let mut pair = Pair::strangers(&config, &device, false, 1_000);
    pair.shake_hands();
    pair.session.rest().unwrap();
    pair.talk(10);
    assert!(lock(&device.tickets.ticket).is_none());
    pair.server.refresh_traffic_keys().unwrap();
    pair.server.writer().write_all(b"by new keys").unwrap();
    let fault = pair.session_hears().unwrap_err();
    assert!(fault.to_string().contains("Handshake"), "{fault}");
}

#[test]
fn a_session_whose_handshake_goes_on_does_not_rest() {
    let (_, device) = server_and_device(SUITES[0]);
    let mut session = device.session(IpAddr::from(Ipv4Addr::LOCALHOST), false).unwrap();
    session.rest().unwrap();
    assert!(matches!(session.stage, Stage::Rustls(_)) && session.is_handshaking());
}

#[test]
fn what_is_no_record_of_the_session_ends_it_and_so_does_an_alert() {
    let (config, device) = server_and_device(SUITES[0]);
    let mut pair = Pair::new(&config, &device, false, 1);
    pair.session.rest().unwrap();
    let mut record = Wire { bytes: vec![23, 3, 3, 0, 20], at_once: 25 };
    record.bytes.resize(25, 7);
    let fault = pair.session.read_from(&mut record, &mut [0; 64], &mut pair.heard).unwrap_err();
    assert_eq!(fault.kind(), io::ErrorKind::InvalidData);

    let mut pair = Pair::new(&config, &device, false, 1);
    pair.session.rest().unwrap();
    // The server refuses what is no record of its session, and says so.
    let mut garbage = &[23, 3, 3, 0, 20, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7][..];
    pair.server.read_tls(&mut garbage).unwrap();
    pair.server.process_new_packets().unwrap_err();
    let fault = pair.session_hears().unwrap_err();
    assert!(fault.to_string().contains("BadRecordMac"), "{fault}");
}

#[test]
fn a_socket_that_takes_a_little_at_a_time_gets_everything_in_order() {
    struct Narrow {
        taken: Vec<u8>,
        left: usize,
    }
    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.left);
            if taken == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.left -= taken;
            self.taken.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (config, device) = server_and_device(SUITES[0]);
    let mut pair = Pair::new(&config, &device, false, 1_000);
    pair.session.rest().unwrap();
    let mut socket = Narrow { taken: Vec::new(), left: 0 };
    pair.session.seal(b"first, ").unwrap();
    assert!(!pair.session.write_to(&mut socket).unwrap());
    pair.session.seal(b"second").unwrap();
    while !pair.session.write_to(&mut socket).unwrap() {
        socket.left = 5;
    }
    let mut bytes = &socket.taken[..];
    pair.server.read_tls(&mut bytes).unwrap();
    let state = pair.server.process_new_packets().unwrap();
    assert_eq!(state.plaintext_bytes_to_read(), b"first, second".len());
}

#[test]
fn a_session_says_that_it_says_no_more_at_rest_and_before() {
    let (config, device) = server_and_device(SUITES[0]);
    for rests in [false, true] {
        let mut pair = Pair::new(&config, &device, false, 1_000);
        pair.talk(10);
        if rests {
            pair.session.rest().unwrap();
        }
        pair.session.seal(b"last").unwrap();
        pair.session.close().unwrap();
        assert_eq!(pair.server_hears().unwrap(), b"last");
        assert_eq!(pair.server.reader().read(&mut [0; 1]).unwrap(), 0, "it is the end of what is said");
    }
}
