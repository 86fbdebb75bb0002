//! The other end of a connection at rest, for those who try what the server's does with whatever comes: the fuzzer.
//!
//! It says what no client of rustls would, a record of any type, and it has keys that everybody knows.

use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::{ConnectionTrafficSecrets, ContentType, ExtractedSecrets, SupportedCipherSuite};

use super::parked::Parked;
use super::{State, TlsSession};

/// See the module.
#[derive(Debug)]
pub struct OppositeEnd(Parked);

/// What records of the server's say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// All of the plaintext.
    pub plaintext: Vec<u8>,
    /// The server has ended it: in good order, or with an alert.
    pub is_over: bool,
}

impl OppositeEnd {
    /// A connection at rest by one cipher suite or the other, and its opposite end. Nobody's secrets: no server uses this.
    #[must_use]
    pub fn of_a_connection_at_rest(by_chacha: bool) -> (TlsSession, Self) {
        let suite = if by_chacha {
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256
        } else {
            cipher_suite::TLS13_AES_256_GCM_SHA384
        };
        let SupportedCipherSuite::Tls13(suite) = suite else { panic!("not one of TLS 1.3") };
        let secrets = |of: u8| {
            let (key, iv) = (AeadKey::from([of; 32]), Iv::from([of; 12]));
            match by_chacha {
                true => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
                false => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
            }
        };
        let end = |sends: u8, receives: u8| {
            let secrets = ExtractedSecrets { tx: (0, secrets(sends)), rx: (0, secrets(receives)) };
            Parked::with_secrets(suite, &secrets).expect("these suites are taken")
        };
        (TlsSession(State::Parked(end(1, 2))), Self(end(2, 1)))
    }

    /// One record, whatever is in it: no longer than a record may be, or cut to that.
    pub fn say(&mut self, kind: u8, said: &[u8], records: &mut Vec<u8>) {
        self.0.put_record(ContentType::from(kind), said, records);
    }

    /// Opens what the server has put together; `None` when it is nothing that a server may say.
    pub fn hear(&mut self, records: &mut [u8]) -> Option<Heard> {
        let (mut heard, mut own) = (Heard::default(), Vec::new());
        match self.0.feed(records, &mut heard.plaintext, &mut own) {
            Ok(is_over) => heard.is_over = is_over,
            // An alert of the server's is the only reason.
            Err(misstep) => {
                let is_alert = format!("{misstep:?}").contains("the peer has sent the alert");
                heard.is_over = is_alert.then_some(true)?;
            }
        }
        Some(heard)
    }
}
