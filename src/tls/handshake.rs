//! A handshake: rustls does it, and is given no byte beyond the record with which it is over.
//!
//! What rustls had taken in of the next record would be lost with it when the connection is parked.

use std::sync::Arc;

use bgb_hub::CloseReason;
use bgb_protocol::certificate::{Identity, Role};
use bgb_protocol::ids::SiteCode;
use rustls::{HandshakeKind, ServerConfig, ServerConnection};

use super::parked::{HEADER_BYTES, Parked};
use super::{ALPN, Established, TlsFault};

/// See the module.
pub(super) struct Handshake {
    connection: ServerConnection,
    /// The site whose device the peer has to be; without one it may be anybody.
    site: Option<SiteCode>,
    bounds: RecordBounds,
}

/// What feeding came to.
pub(super) struct Progress {
    /// How many of the bytes were taken: all, or those up to the end of the handshake.
    pub(super) taken: usize,
    /// The handshake is over.
    pub(super) is_over: bool,
}

impl Handshake {
    pub(super) fn new(config: &Arc<ServerConfig>, site: Option<SiteCode>) -> Result<Self, rustls::Error> {
        let connection = ServerConnection::new(Arc::clone(config))?;
        Ok(Self { connection, site, bounds: RecordBounds::default() })
    }

    /// Takes bytes as they came; what rustls answers is appended to `records`.
    ///
    /// # Errors
    /// The handshake has failed; the alert that says so is in `records`.
    pub(super) fn feed(&mut self, received: &[u8], records: &mut Vec<u8>) -> Result<Progress, TlsFault> {
        let mut taken = 0;
        while taken < received.len() && self.connection.is_handshaking() {
            let record = self.bounds.advance(&received[taken..]);
            let fed = self.feed_record(&received[taken..taken + record]);
            self.take_output(records);
            fed?;
            taken += record;
        }
        Ok(Progress { taken, is_over: !self.connection.is_handshaking() })
    }

    /// Takes some bytes of one record.
    fn feed_record(&mut self, mut bytes: &[u8]) -> Result<(), TlsFault> {
        while !bytes.is_empty() {
            self.connection.read_tls(&mut bytes).map_err(|error| TlsFault {
                reason: CloseReason::HandshakeGarbage,
                detail: error.to_string(),
            })?;
            self.connection.process_new_packets().map_err(|error| TlsFault::of_handshake(&error))?;
        }
        Ok(())
    }

    fn take_output(&mut self, records: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(records).expect("writing into memory does not fail");
        }
    }

    /// Says that there will be no session.
    pub(super) fn close(&mut self, records: &mut Vec<u8>) {
        self.connection.send_close_notify();
        self.take_output(records);
    }

    /// Who the peer is: a device of our site that speaks our protocol. `None` where it may be anybody.
    ///
    /// # Errors
    /// [`TlsFault`] when it did not offer the protocol, has no certificate, or one that is no device's of this site.
    pub(super) fn established(&self) -> Result<Option<Established>, TlsFault> {
        let Some(site) = self.site else { return Ok(None) };
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
            _ if identity.holder.site != site => wrong(CloseReason::WrongSite),
            Role::Server(_) => wrong(CloseReason::WrongRole),
            Role::Device(device, _) => {
                let is_resumed = self.connection.handshake_kind() == Some(HandshakeKind::Resumed);
                Ok(Some(Established { device, identity, is_resumed }))
            }
        }
    }

    /// Lets rustls go. To be called when the handshake is over.
    ///
    /// # Errors
    /// When rustls does not give its keys away.
    pub(super) fn park(self) -> Result<Parked, TlsFault> {
        Parked::new(self.connection).map_err(|error| TlsFault::of_handshake(&error))
    }
}

/// Where the record ends that the peer is in the middle of.
#[derive(Debug, Default)]
struct RecordBounds {
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    body_bytes_left: usize,
}

impl RecordBounds {
    /// How many of `bytes`, of which there is one at least, belong to that record. The next call is about those that follow.
    fn advance(&mut self, bytes: &[u8]) -> usize {
        let of_header = bytes.len().min(HEADER_BYTES - self.header_bytes);
        if of_header > 0 {
            self.header[self.header_bytes..][..of_header].copy_from_slice(&bytes[..of_header]);
            self.header_bytes += of_header;
            if self.header_bytes < HEADER_BYTES {
                return of_header;
            }
            self.body_bytes_left = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
        }
        let of_body = self.body_bytes_left.min(bytes.len() - of_header);
        self.body_bytes_left -= of_body;
        if self.body_bytes_left == 0 {
            self.header_bytes = 0;
        }
        of_header + of_body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_end_where_their_headers_say_however_the_bytes_come() {
        let mut stream = Vec::new();
        let mut ends = Vec::new();
        for length in [0_u16, 1, 5, 300, 0, 0, 16_384, 2] {
            stream.extend_from_slice(&[22, 3, 3]);
            stream.extend_from_slice(&length.to_be_bytes());
            stream.resize(stream.len() + usize::from(length), 0xff);
            ends.push(stream.len());
        }
        for step in [1, 2, 3, 4, 5, 6, 7, 1_000, stream.len()] {
            let (mut bounds, mut at, mut found) = (RecordBounds::default(), 0, Vec::new());
            while at < stream.len() {
                let chunk_end = stream.len().min(at - at % step + step);
                at += bounds.advance(&stream[at..chunk_end]);
                if bounds.header_bytes == 0 {
                    found.push(at);
                }
            }
            assert_eq!(found, ends, "in steps of {step}");
        }
    }
}
