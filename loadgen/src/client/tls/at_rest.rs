//! A session of which only the keys are left, for runs with so many agents that their memory is the limit.
//!
//! The server does the like with its connections, in a way of its own (`src/tls/parked.rs`); this shares no line with it, so that neither can hide
//! what the other does wrong. Records are sealed and opened with rustls's objects, made from the keys for each. A session is at rest once it is
//! signed in, and what a server may say then is little: anything else than plaintext, a late ticket or an end is an error.

use std::io::{self, Write};

use rustls::client::ClientConnection;
use rustls::crypto::cipher::{AeadKey, InboundOpaqueMessage, Iv, OutboundChunks, OutboundPlainMessage};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion, SupportedCipherSuite,
    Tls13CipherSuite,
};

/// What a record begins with (RFC 8446, 5.1): type, version, length.
const HEADER_BYTES: usize = 5;
/// Types of records (5.1), and what a protected one begins with.
const KINDS: std::ops::RangeInclusive<u8> = 20..=23;
const PROTECTED: [u8; 3] = [23, 3, 3];
/// Bytes of a protected record's body at the most (5.2).
const BODY_BYTES_MAX: usize = (1 << 14) + 256;
/// Bytes of plaintext in a record at the most.
const PLAIN_BYTES_MAX: usize = 1 << 14;
/// The type of a handshake message that brings a ticket (RFC 8446, 4.6.1).
const NEW_SESSION_TICKET: u8 = 4;
/// An alert that is a warning: its peer says no more (6.1).
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// See the module.
pub(super) struct AtRest {
    suite: &'static Tls13CipherSuite,
    sending: Direction,
    receiving: Direction,
    /// Sealed, and not yet taken by the socket.
    unsent: Vec<u8>,
}

/// What protects the records of one direction, and the number of the next.
struct Direction {
    key: [u8; 32],
    iv: [u8; 12],
    number: u64,
}

/// How many of `bytes` are whole records. What can be none counts as whole: nothing more needs to come before it is refused.
pub(super) fn whole_records(bytes: &[u8]) -> usize {
    let mut whole = 0;
    while let Some(header) = bytes[whole..].first_chunk::<HEADER_BYTES>() {
        let body = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if !KINDS.contains(&header[0]) || body > BODY_BYTES_MAX {
            return bytes.len();
        }
        if whole + HEADER_BYTES + body > bytes.len() {
            break;
        }
        whole += HEADER_BYTES + body;
    }
    whole
}

impl AtRest {
    /// Takes the keys of a session that is past its handshake, has nothing to be written and holds no part of a record.
    ///
    /// # Errors
    /// When rustls does not give them, or they are of another kind than servers of ours choose.
    pub(super) fn take(connection: ClientConnection) -> Result<Self, Error> {
        let Some(SupportedCipherSuite::Tls13(suite)) = connection.negotiated_cipher_suite() else {
            return Err(Error::HandshakeNotComplete);
        };
        let secrets = connection.dangerous_extract_secrets()?;
        let (sending, receiving) = (Direction::of(secrets.tx)?, Direction::of(secrets.rx)?);
        Ok(Self { suite, sending, receiving, unsent: Vec::new() })
    }

    /// Opens whole records where they are and appends what they say to `plain`; `true` when the server has said that it says no more.
    ///
    /// # Errors
    /// For what is no record of this session, and for an alert.
    pub(super) fn open(&mut self, mut records: &mut [u8], plain: &mut Vec<u8>) -> Result<bool, Error> {
        let (key, iv) = self.receiving.key();
        let mut opener = self.suite.aead_alg.decrypter(key, iv);
        while !records.is_empty() {
            let (header, rest) = records.split_at_mut_checked(HEADER_BYTES).ok_or(Error::DecryptError)?;
            // rustls authenticates what a header must be, and not what it is.
            let body_bytes = usize::from(u16::from_be_bytes([header[3], header[4]]));
            if header[..3] != PROTECTED || body_bytes > rest.len() {
                return Err(Error::General(format!("{header:?} is no protected record's header")));
            }
            let (body, rest) = rest.split_at_mut(body_bytes);
            records = rest;
            let sealed =
                InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, body);
            let opened = opener.decrypt(sealed, self.receiving.next())?;
            match (opened.typ, opened.payload) {
                (ContentType::ApplicationData, said) => plain.extend_from_slice(said),
                (ContentType::Handshake, [NEW_SESSION_TICKET, ..]) => {}
                (ContentType::Alert, &[_, alert]) => match AlertDescription::from(alert) {
                    AlertDescription::CloseNotify => return Ok(true),
                    alert => return Err(Error::AlertReceived(alert)),
                },
                (kind, said) => {
                    return Err(Error::General(format!("a record of type {kind:?}, {} bytes", said.len())));
                }
            }
        }
        Ok(false)
    }

    /// Seals `plain`, to be written by [`write_to`](Self::write_to).
    ///
    /// # Errors
    /// When rustls refuses to.
    pub(super) fn seal(&mut self, plain: &[u8]) -> Result<(), Error> {
        plain
            .chunks(PLAIN_BYTES_MAX)
            .try_for_each(|part| self.seal_record(ContentType::ApplicationData, part))
    }

    /// Seals that no more is said.
    ///
    /// # Errors
    /// When rustls refuses to.
    pub(super) fn close(&mut self) -> Result<(), Error> {
        self.seal_record(ContentType::Alert, &CLOSE_NOTIFY)
    }

    fn seal_record(&mut self, kind: ContentType, said: &[u8]) -> Result<(), Error> {
        // One for each: that of AES-GCM takes the number of its first record as its beginning.
        let (key, iv) = self.sending.key();
        let message = OutboundPlainMessage {
            typ: kind,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::from(said),
        };
        let sealed = self.suite.aead_alg.encrypter(key, iv).encrypt(message, self.sending.next())?;
        self.unsent.extend_from_slice(&sealed.encode());
        Ok(())
    }

    /// Gives `socket` what it takes; `true` when nothing is left.
    ///
    /// # Errors
    /// As the socket says.
    pub(super) fn write_to(&mut self, socket: &mut dyn Write) -> io::Result<bool> {
        let mut written = 0;
        let end = loop {
            if written == self.unsent.len() {
                // At rest it holds nothing.
                self.unsent = Vec::new();
                return Ok(true);
            }
            match socket.write(&self.unsent[written..]) {
                Ok(bytes) => written += bytes,
                Err(error) => break error,
            }
        };
        self.unsent.drain(..written);
        if end.kind() == io::ErrorKind::WouldBlock { Ok(false) } else { Err(end) }
    }
}

impl Direction {
    fn of((number, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        use ConnectionTrafficSecrets::{Aes256Gcm, Chacha20Poly1305};
        let (Aes256Gcm { key, iv } | Chacha20Poly1305 { key, iv }) = secrets else {
            return Err(Error::General("keys that are not 32 bytes long".to_owned()));
        };
        let mut own = Self { key: [0; 32], iv: [0; 12], number };
        own.key.copy_from_slice(key.as_ref());
        own.iv.copy_from_slice(iv.as_ref());
        Ok(own)
    }

    fn key(&self) -> (AeadKey, Iv) {
        (AeadKey::from(self.key), Iv::from(self.iv))
    }

    /// The number of the record that is dealt with now.
    fn next(&mut self) -> u64 {
        let number = self.number;
        self.number += 1;
        number
    }
}
