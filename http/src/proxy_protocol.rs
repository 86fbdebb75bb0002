//! The header by which a proxy says whose connection it passes on: the PROXY protocol, version 2 (haproxy's proxy-protocol.txt, section 2.2).
//!
//! It owns the form of the header and nothing of what is done with it. Whom it is believed from, is the caller's to decide.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

/// With what a header begins: bytes that no other protocol begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// Addresses, and further words of the proxy that are read over (a certificate of the peer's at the most).
const REST_BYTES_MAX: usize = 4 * 1024;
/// The longest header.
pub const PROXY_HEADER_BYTES_MAX: usize = FIXED_BYTES + REST_BYTES_MAX;

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProxyHeaderError {
    /// They do not begin as a header does.
    #[error("the connection does not begin with a header of the PROXY protocol, version 2")]
    Signature,
    /// Another version, or a command that is neither LOCAL nor PROXY.
    #[error("the PROXY header's version or command is not known")]
    Command,
    /// It is of no stream over IPv4 or IPv6, or too short for its addresses.
    #[error("the PROXY header has no addresses of a TCP connection")]
    Addresses,
    /// It is longer than is taken.
    #[error("the PROXY header is longer than {PROXY_HEADER_BYTES_MAX} bytes")]
    TooLong,
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Whose connection it is; `None` when it is the proxy's own (LOCAL: it looks whether we are there).
    pub peer: Option<SocketAddr>,
    /// Bytes of the header.
    pub consumed: usize,
}

impl ProxyHeader {
    /// Decodes the header at the beginning of `bytes`; `None` while it is not whole.
    ///
    /// # Errors
    /// More bytes mend nothing.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, ProxyHeaderError> {
        let begun = bytes.len().min(SIGNATURE.len());
        if bytes[..begun] != SIGNATURE[..begun] {
            return Err(ProxyHeaderError::Signature);
        }
        let Some(&[command, family, high, low]) = bytes.get(SIGNATURE.len()..FIXED_BYTES) else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > REST_BYTES_MAX {
            return Err(ProxyHeaderError::TooLong);
        }
        let consumed = FIXED_BYTES + length;
        let Some(rest) = bytes.get(FIXED_BYTES..consumed) else { return Ok(None) };
        let peer = match command {
            0x20 => None,
            0x21 => Some(source(family, rest).ok_or(ProxyHeaderError::Addresses)?),
            _ => return Err(ProxyHeaderError::Command),
        };
        Ok(Some(Self { peer, consumed }))
    }

    /// Appends the header of a connection from `from` to `to`, which are of one family; for tests and proxies.
    pub fn encode(from: SocketAddr, to: SocketAddr, out: &mut Vec<u8>) {
        out.extend_from_slice(&SIGNATURE);
        let mut addresses = Vec::new();
        let family = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                addresses.extend_from_slice(&[from.octets(), to.octets()].concat());
                0x11
            }
            (from, to) => {
                let octets = |address: IpAddr| match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    IpAddr::V6(address) => address.octets(),
                };
                addresses.extend_from_slice(&[octets(from), octets(to)].concat());
                0x21
            }
        };
        addresses.extend_from_slice(&from.port().to_be_bytes());
        addresses.extend_from_slice(&to.port().to_be_bytes());
        out.extend_from_slice(&[0x21, family]);
        out.extend_from_slice(&(addresses.len() as u16).to_be_bytes());
        out.extend_from_slice(&addresses);
    }
}

fn source(family: u8, rest: &[u8]) -> Option<SocketAddr> {
    let port = |at: usize| rest.get(at..at + 2).map(|port| u16::from_be_bytes([port[0], port[1]]));
    match family {
        0x11 => {
            let octets: [u8; 4] = rest.get(..4)?.try_into().ok()?;
            rest.get(..12).and(port(8)).map(|port| (Ipv4Addr::from(octets), port).into())
        }
        0x21 => {
            let octets: [u8; 16] = rest.get(..16)?.try_into().ok()?;
            rest.get(..36).and(port(32)).map(|port| (Ipv6Addr::from(octets).to_canonical(), port).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_whose_connection_it_is_however_it_is_cut() {
        for (from, to) in
            [("192.0.2.7:50000", "198.51.100.1:8080"), ("[2001:db8::7]:443", "[2001:db8::1]:8443")]
        {
            let from: SocketAddr = from.parse().unwrap();
            let mut bytes = Vec::new();
            ProxyHeader::encode(from, to.parse().unwrap(), &mut bytes);
            let whole = bytes.len();
            bytes.extend_from_slice(b"GET /");
            for cut in 0..whole {
                assert_eq!(ProxyHeader::decode(&bytes[..cut]), Ok(None));
            }
            assert_eq!(
                ProxyHeader::decode(&bytes),
                Ok(Some(ProxyHeader { peer: Some(from), consumed: whole }))
            );
        }
    }

    #[test]
    fn the_bytes_of_the_specification() {
        let mut bytes = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x0f".to_vec();
        bytes.extend_from_slice(&[192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0x50, 0x1f, 0x90, 4, 0, 0]);
        let peer = Some("192.0.2.7:50000".parse().unwrap());
        assert_eq!(ProxyHeader::decode(&bytes), Ok(Some(ProxyHeader { peer, consumed: bytes.len() })));
        bytes[12] = 0x20;
        assert_eq!(ProxyHeader::decode(&bytes).unwrap().unwrap().peer, None);
    }

    #[test]
    fn what_is_none_is_told_at_its_first_wrong_byte() {
        let header = |command, family, rest: &[u8]| {
            let length = (rest.len() as u16).to_be_bytes();
            [&SIGNATURE[..], &[command, family], &length, rest].concat()
        };
        for (bytes, error) in [
            (b"G".to_vec(), ProxyHeaderError::Signature),
            (b"PROXY TCP4 192.0.2.7".to_vec(), ProxyHeaderError::Signature),
            (header(0x31, 0x11, &[0; 12]), ProxyHeaderError::Command),
            (header(0x22, 0x11, &[0; 12]), ProxyHeaderError::Command),
            (header(0x21, 0x11, &[0; 11]), ProxyHeaderError::Addresses),
            (header(0x21, 0x12, &[0; 12]), ProxyHeaderError::Addresses),
            (header(0x21, 0x21, &[0; 12]), ProxyHeaderError::Addresses),
            (header(0x21, 0x00, &[0; 36]), ProxyHeaderError::Addresses),
            ([&SIGNATURE[..], &[0x21, 0x11, 0x10, 0x01]].concat(), ProxyHeaderError::TooLong),
        ] {
            assert_eq!(ProxyHeader::decode(&bytes), Err(error));
        }
    }
}
