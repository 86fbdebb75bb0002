//! A device's side of a handshake, for this file's tests and the reactor's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use bgb_protocol::ids::{DeviceGuid, UnixMillis};
use bgb_site::authority::Authority;
use bgb_site::folder::SiteFolder;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::*;

/// A device of the site that is about to shake hands and offers `alpn`.
pub(crate) fn device_tls(
    site: &SiteFolder,
    code: SiteCode,
    device: DeviceId,
    alpn: &[&[u8]],
) -> ClientConnection {
    let authority = Authority::load(site, code).unwrap();
    let now = UnixMillis(bgb_daemon::clock::Now::read().unix_ms);
    let issued = authority.issue_device(device, DeviceGuid::from_bytes([7; 16]), now).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![CertificateDer::from(issued.der.clone())], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST));
    ClientConnection::new(Arc::new(config), name).unwrap()
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
