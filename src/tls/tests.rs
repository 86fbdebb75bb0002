//! A device's side of a handshake, for this file's tests and the reactor's.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use bgb_protocol::ids::{DeviceGuid, UnixMillis};
use bgb_site::authority::Authority;
use bgb_site::folder::SiteFolder;
use bgb_site::init::{InitOptions, site_init};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::*;

/// A site below `folder`, and what its server 1 begins sessions with.
pub(crate) fn site_and_context(folder: &Path) -> (SiteFolder, TlsContext) {
    let root = folder.join("site");
    site_init(&InitOptions::new(&root, site_code(), vec!["127.0.0.1:10123".to_owned()], now())).unwrap();
    let site = SiteFolder::new(&root);
    let server = ServerId(1);
    let files = TlsFiles {
        certificate: site.server_certificate(server),
        key: site.server_key(server),
        authority: site.authority_certificate(),
        https_certificate: None,
        https_key: None,
    };
    let context = TlsContext::load(&files, site_code(), server, &folder.join("ticket.keys"), None).unwrap();
    (site, context)
}

pub(crate) fn site_code() -> SiteCode {
    "LAB".parse().unwrap()
}

fn now() -> UnixMillis {
    UnixMillis(bgb_daemon::clock::Now::read().unix_ms)
}

/// How a device of the site shakes hands, offering `alpn`.
pub(crate) fn device_config(
    site: &SiteFolder,
    device: DeviceId,
    alpn: &[&[u8]],
    provider: CryptoProvider,
) -> ClientConfig {
    let authority = Authority::load(site, site_code()).unwrap();
    let issued = authority.issue_device(device, DeviceGuid::from_bytes([7; 16]), now()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![CertificateDer::from(issued.der.clone())], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

/// The server's name, as a client is to see it.
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST))
}

/// A device of the site that is about to shake hands and offers `alpn`.
pub(crate) fn device_tls(site: &SiteFolder, device: DeviceId, alpn: &[&[u8]]) -> ClientConnection {
    let config = device_config(site, device, alpn, aws_lc_rs::default_provider());
    ClientConnection::new(Arc::new(config), server_name()).unwrap()
}

/// Connects, and reads what the server says until it ends the connection or a test's patience is over.
pub(crate) fn hear(tls: ClientConnection, address: SocketAddr) -> Vec<u8> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let mut heard = Vec::new();
    // An end without close_notify is an end as well.
    let _ = StreamOwned::new(tls, stream).read_to_end(&mut heard);
    heard
}
