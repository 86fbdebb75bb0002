//! What can be read off a ClientHello before anything is computed for it: whether it shows a ticket (RFC 8446, 4.2.11).

/// A handshake record's type.
const HANDSHAKE: u8 = 22;
/// A ClientHello's type.
const CLIENT_HELLO: u8 = 1;
/// The extension with the tickets.
const PRE_SHARED_KEY: u16 = 41;
/// Version and random value, with which a ClientHello begins.
const FIXED_BYTES: usize = 2 + 32;

/// The first ticket of the ClientHello with which `received` begins; `None` when it has none, is not whole, or is no ClientHello at all:
/// whoever cares will find out.
pub(super) fn ticket(received: &[u8]) -> Option<&[u8]> {
    let mut record = Reader(received);
    (record.u8()? == HANDSHAKE).then_some(())?;
    record.take(2)?;
    let mut message = Reader(record.vector16()?);
    (message.u8()? == CLIENT_HELLO).then_some(())?;
    let length = usize::from(message.u8()?) << 16 | usize::from(message.u16()?);
    let mut hello = Reader(message.take(length)?);
    hello.take(FIXED_BYTES)?;
    // Session id, cipher suites, compression methods.
    hello.vector8()?;
    hello.vector16()?;
    hello.vector8()?;
    let mut extensions = Reader(hello.vector16()?);
    loop {
        let (kind, body) = (extensions.u16()?, extensions.vector16()?);
        if kind == PRE_SHARED_KEY {
            let mut identities = Reader(Reader(body).vector16()?);
            return identities.vector16();
        }
    }
}

/// Whether the first record of what a peer says is all there, or is none of a handshake's: then there is nothing to wait for.
pub(super) fn is_whole(received: &[u8]) -> bool {
    let mut record = Reader(received);
    match record.u8() {
        None => false,
        Some(HANDSHAKE) => record.take(2).and_then(|_| record.vector16()).is_some(),
        Some(_) => true,
    }
}

/// Takes bytes off the front, as many as there are.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?.into();
        self.take(length)
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?.into();
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bgb_protocol::ids::DeviceId;
    use rustls::crypto::aws_lc_rs;
    use rustls::{ClientConfig, ClientConnection};

    use super::super::tests::{device_config, server_name, site_and_context};
    use super::super::{ALPN, TlsContext, TlsSession};
    use super::*;

    fn hello_of(client: &mut ClientConnection) -> Vec<u8> {
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    }

    /// Shakes hands, and hears the ticket that follows.
    fn shake_hands(context: &TlsContext, config: &Arc<ClientConfig>) {
        let mut client = ClientConnection::new(Arc::clone(config), server_name()).unwrap();
        let mut server = TlsSession::new(context).unwrap();
        let mut is_established = false;
        while !is_established {
            let (mut said, mut answered) = (hello_of(&mut client), Vec::new());
            is_established =
                server.feed(&mut said, &mut Vec::new(), &mut answered).unwrap().established.is_some();
            let mut answered = &answered[..];
            while !answered.is_empty() {
                client.read_tls(&mut answered).unwrap();
                client.process_new_packets().unwrap();
            }
        }
    }

    #[test]
    fn a_ticket_is_seen_in_the_hello_of_a_device_that_has_one_and_opens_where_it_was_made() {
        let folder = tempfile::tempdir().unwrap();
        let (site, context) = site_and_context(folder.path());
        let config = Arc::new(device_config(&site, DeviceId(1), &[ALPN], aws_lc_rs::default_provider()));
        let mut first = ClientConnection::new(Arc::clone(&config), server_name()).unwrap();
        let hello = hello_of(&mut first);
        assert!(ticket(&hello).is_none() && !context.resumes(&hello));

        shake_hands(&context, &config);
        let mut second = ClientConnection::new(Arc::clone(&config), server_name()).unwrap();
        let mut hello = hello_of(&mut second);
        assert!(context.resumes(&hello));
        for end in 0..hello.len() {
            assert!(!context.resumes(&hello[..end]), "it is not whole at {end} bytes");
        }

        let other = tempfile::tempdir().unwrap();
        let (_, stranger) = site_and_context(other.path());
        assert!(!stranger.resumes(&hello), "a ticket of somebody else's");
        let at = hello.len() - 200;
        hello[at..].fill(0);
        assert!(!context.resumes(&hello), "a ticket that was made up");
    }

    #[test]
    fn what_is_no_hello_has_no_ticket() {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[], &[22, 3, 1], &[22; 300], &[0xff; 300], &[0; 300]]
        {
            assert_eq!(ticket(garbage), None);
        }
    }
}
