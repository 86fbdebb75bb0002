//! A handshake in memory with a server whose certificate a test makes.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version::TLS12;
use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};

use super::*;

/// 2026-06-01 and 2031-06-01, in milliseconds since 1970.
pub(crate) const IN_2026: UnixMillis = UnixMillis(1_780_272_000_000);
const IN_2031: UnixMillis = UnixMillis(1_938_038_400_000);

/// A certificate and its key.
pub(crate) type Issued = (CertificateDer<'static>, Vec<u8>);

pub(crate) struct Authority(Issuer<'static, KeyPair>, CertificateDer<'static>);

impl Authority {
    pub(crate) fn new() -> Self {
        Self::named("the site's authority")
    }

    /// One whose certificate bears that name.
    pub(crate) fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self(Issuer::new(params, key), certificate)
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.1
    }

    /// One that is no server's.
    pub(crate) fn client(&self) -> Issued {
        self.issue("server.example", "urn:bgb:LAB:server:3", ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A certificate that holds in 2026, its key, and its role.
    fn issue(
        &self,
        name: &str,
        uri: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> (CertificateDer<'static>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages = vec![usage];
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        (params.signed_by(&key, &self.0).unwrap().der().clone(), key.serialize_der())
    }
}

/// A certificate such as appliances come with: its own authority.
pub(crate) fn self_signed(name: &str) -> Issued {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["server.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.self_signed(&key).unwrap().der().clone(), key.serialize_der())
}

/// What sessions of a server that shows `issued` start from.
fn server_config(issued: Issued, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    server_config_with(issued, alpn, rustls::DEFAULT_VERSIONS)
}

fn server_config_with(
    issued: Issued,
    alpn: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ServerConfig> {
    let provider = Arc::new(default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.0], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.1)))
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// The end of an outer session that shows a certificate of `authority`.
pub(crate) fn outer_server(authority: &Authority) -> ServerConnection {
    outer_server_with(server(authority))
}

/// That of one that shows `issued`.
pub(crate) fn outer_server_with(issued: Issued) -> ServerConnection {
    ServerConnection::new(server_config(issued, &[b"http/1.1"])).unwrap()
}

/// The same on a stream of bytes that waits.
pub(crate) fn outer_stream<S: Read + Write>(authority: &Authority, stream: S) -> impl Read + Write + use<S> {
    StreamOwned::new(outer_server(authority), stream)
}

/// The same of a box that has never heard of TLS 1.3.
pub(crate) fn old_outer_stream<S: Read + Write>(
    authority: &Authority,
    stream: S,
) -> impl Read + Write + use<S> {
    let config = server_config_with(server(authority), &[b"http/1.1"], &[&TLS12]);
    StreamOwned::new(ServerConnection::new(config).unwrap(), stream)
}

/// A server's end of a session's own TLS, at 127.0.0.1.
pub(crate) fn inner_stream<S: Read + Write>(authority: &Authority, stream: S) -> impl Read + Write + use<S> {
    let usage = ExtendedKeyUsagePurpose::ServerAuth;
    let issued = authority.issue("127.0.0.1", "urn:bgb:LAB:server:3", usage);
    StreamOwned::new(ServerConnection::new(server_config(issued, &[ALPN])).unwrap(), stream)
}

/// What a device's sessions start from.
pub(crate) fn device(authority: &Authority) -> Tls {
    let guid = "0193f1c2-7d3a-7c55-8a0e-2b9c5d1e6f70";
    let uri = format!("urn:bgb:LAB:device:5:{guid}");
    let (certificate, key) = authority.issue("device", &uri, ExtendedKeyUsagePurpose::ClientAuth);
    Tls::new(&DeviceIdentity {
        site: "LAB".parse().unwrap(),
        device: bgb_protocol::ids::DeviceId(5),
        certificate,
        key: key.into(),
        authority: authority.1.clone(),
    })
    .unwrap()
}

/// Carries a handshake, and what follows it, between the two.
fn shake_hands(session: &mut TlsSession, server: &mut ServerConnection) -> Result<(), String> {
    for _ in 0..10 {
        let wire = written(session);
        let mut wire = &wire[..];
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
        }
        server.process_new_packets().map_err(|error| error.to_string())?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            session.read_from(&mut wire).unwrap();
        }
        session.open(&mut Vec::new())?;
    }
    assert!(!session.is_handshaking());
    Ok(())
}

/// What the session has for the peer.
fn written(session: &mut TlsSession) -> Vec<u8> {
    let mut wire = Vec::new();
    while session.wants_write() {
        session.write_to(&mut wire).unwrap();
    }
    wire
}

/// What the agent makes of the server that `issued` says it is, with the authority `trusted` at the time `now` and `floor`.
fn meet(
    trusted: &Authority,
    issued: (CertificateDer<'static>, Vec<u8>),
    alpn: &[&[u8]],
    now: UnixMillis,
    floor: UnixMillis,
) -> Result<ServerId, String> {
    let mut server = ServerConnection::new(server_config(issued, alpn)).unwrap();
    let mut session = device(trusted).session("server.example", now, floor)?;
    shake_hands(&mut session, &mut server)?;
    session.verify_server()
}

pub(crate) fn server(authority: &Authority) -> (CertificateDer<'static>, Vec<u8>) {
    authority.issue("server.example", "urn:bgb:LAB:server:3", ExtendedKeyUsagePurpose::ServerAuth)
}

#[test]
fn a_server_of_the_site_is_taken_for_one() {
    let authority = Authority::new();
    assert_eq!(meet(&authority, server(&authority), &[ALPN], IN_2026, UnixMillis(0)), Ok(ServerId(3)));
}

#[test]
fn dates_alone_are_judged_again_at_the_floor() {
    let authority = Authority::new();
    assert_eq!(meet(&authority, server(&authority), &[ALPN], IN_2031, IN_2026), Ok(ServerId(3)));
    assert_eq!(meet(&authority, server(&authority), &[ALPN], UnixMillis(0), IN_2026), Ok(ServerId(3)));
    let fault = meet(&authority, server(&authority), &[ALPN], IN_2031, IN_2031).unwrap_err();
    assert!(fault.contains("expired"), "{fault}");
}

#[test]
fn whoever_else_answers_is_refused_with_the_reason() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let usage = ExtendedKeyUsagePurpose::ServerAuth;
    let device = "urn:bgb:LAB:device:9:0193f1c2-7d3a-7c55-8a0e-2b9c5d1e6f70";
    for (issued, word) in [
        (server(&stranger), "invalid peer certificate"),
        (authority.issue("other.example", "urn:bgb:LAB:server:3", usage.clone()), "not valid for name"),
        (authority.issue("server.example", device, usage.clone()), "which is no server"),
        (authority.issue("server.example", "urn:bgb:XYZ:server:3", usage.clone()), "site XYZ"),
        (authority.issue("server.example", "urn:other", usage), "does not name exactly one BGB holder"),
        (
            authority.issue("server.example", "urn:bgb:LAB:server:3", ExtendedKeyUsagePurpose::ClientAuth),
            "extended key usage",
        ),
    ] {
        let fault = meet(&authority, issued, &[ALPN], IN_2026, IN_2026).unwrap_err();
        assert!(fault.to_lowercase().contains(&word.to_lowercase()), "{word:?}: {fault}");
    }
}

#[test]
fn who_has_signed_a_strangers_certificate_is_told_once() {
    let (authority, stranger) = (Authority::new(), Authority::named("Example Firewall"));
    let tls = device(&authority);
    let firewall = Some("Example Firewall".to_owned());
    for (issued, is_server, intercepted) in [
        (server(&stranger), false, firewall.clone()),
        (self_signed("Example Firewall"), false, firewall.clone()),
        (stranger.client(), false, firewall),
        (authority.client(), false, None),
        (server(&authority), true, None),
    ] {
        let mut server = ServerConnection::new(server_config(issued, &[ALPN])).unwrap();
        let mut session = tls.session("server.example", IN_2026, IN_2026).unwrap();
        assert_eq!(shake_hands(&mut session, &mut server).is_ok(), is_server);
        assert_eq!(session.take_stranger(), intercepted);
        assert_eq!(session.take_stranger(), None);
    }
}

#[test]
fn a_peer_that_does_not_speak_bgb_is_refused() {
    let authority = Authority::new();
    // TLS itself ends a handshake without a common protocol; a server that names none at all comes through it.
    let fault = meet(&authority, server(&authority), &[b"h2"], IN_2026, IN_2026).unwrap_err();
    assert!(fault.contains("support any known protocol"), "{fault}");
    let fault = meet(&authority, server(&authority), &[], IN_2026, IN_2026).unwrap_err();
    assert!(fault.contains("not bgb/1"), "{fault}");
}

#[test]
fn a_hello_that_nobody_answers_is_said_again_with_its_ticket() {
    let authority = Authority::new();
    let (config, tls) = (server_config(server(&authority), &[ALPN]), device(&authority));
    let begin = |host: &str| tls.session(host, IN_2026, IN_2026).unwrap();
    let meet = |mut session: TlsSession| {
        let mut server = ServerConnection::new(Arc::clone(&config)).unwrap();
        shake_hands(&mut session, &mut server).unwrap();
        server.handshake_kind().unwrap()
    };
    // A server hands out two tickets; once they are gone, nothing but the hello has one.
    assert_eq!(meet(begin("server.example")), HandshakeKind::Full);
    let _spent = begin("server.example");
    let mut session = begin("server.example");
    let hello = written(&mut session);
    for _ in 0..20 {
        assert_eq!(session.read_from(&mut io::empty()).unwrap(), 0, "the server is gone");
        tls.take_back(session);
        session = begin("server.example");
        assert_eq!(written(&mut session), hello);
    }
    tls.take_back(session);
    assert_eq!(meet(begin("server.example")), HandshakeKind::Resumed);

    // What was answered is no longer of use to anybody.
    let mut session = begin("server.example");
    let hello = written(&mut session);
    assert_eq!(session.read_from(&mut &[22][..]).unwrap(), 1);
    tls.take_back(session);
    let mut session = begin("server.example");
    let another = written(&mut session);
    assert_ne!(another, hello);
    // And each server has its own.
    tls.take_back(session);
    assert_ne!(written(&mut begin("other.example")), another);
    let mut session = begin("server.example");
    assert_eq!(written(&mut session), another);
    // What is never answered is given up in the end.
    for _ in 0..HELLO_SAID_MAX {
        tls.take_back(session);
        session = begin("server.example");
    }
    assert_ne!(written(&mut session), another);
}
