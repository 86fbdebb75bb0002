//! A TLS 1.3 connection after its handshake: the keys of both directions, how many records went each way, and nothing else.
//!
//! rustls does the handshake and gives its traffic keys away; what it would keep for as long as the connection lasts (buffers, the
//! transcript, certificates: some 7 KiB) is let go. Records are protected by rustls's own objects, made from the keys when something
//! comes or goes and dropped after it. Between two records a connection owns its keys, and half a record if one is on its way.
//!
//! What a record may be is RFC 8446, section 5, and what each misstep is answered with, section 6. One thing is not followed: a peer
//! that asks for new keys. That takes secrets which are not kept, so the session ends in good order and the agent resumes; so does one whose
//! keys have protected nearly as many records as they may.
//!
//! Law: no number is used twice with a key. Sealing and opening count, whatever comes of them, and nothing sets a count back.

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets, ProtocolVersion,
    ServerConnection, SupportedCipherSuite, Tls13CipherSuite,
};
use zeroize::Zeroize as _;

/// Type, version that is no longer one, and length (RFC 8446 section 5.1).
pub(super) const HEADER_BYTES: usize = 5;
/// The version that every record names (section 5.1).
const VERSION: [u8; 2] = [3, 3];
/// Most bytes inside a record.
const PLAINTEXT_MAX: usize = 1 << 14;
/// Most bytes of a protected record's body (section 5.2).
const BODY_MAX: usize = PLAINTEXT_MAX + 256;
/// Records of one direction's keys that are left for the end of a session: nothing that is said in one go takes as many.
const RESERVE: u64 = 4_096;
/// Records in a row that may say nothing: empty ones, or word of a user who cancelled.
const SILENT_RECORDS_MAX: u8 = 32;

const FATAL: u8 = 2;
const WARNING: u8 = 1;
/// The type of a KeyUpdate (section 4.6.3).
const KEY_UPDATE: u8 = 24;

/// See the module.
pub(super) struct Parked {
    suite: &'static Tls13CipherSuite,
    /// In a box: a connection moves when the room for connections grows, and would leave its keys behind.
    keys: Box<Keys>,
    /// The beginning of a record whose end has not come.
    partial: Vec<u8>,
    /// How many records in a row said nothing.
    silent: u8,
    /// close_notify or a fatal alert is out: nothing follows it.
    has_closed: bool,
}

#[derive(Default)]
struct Keys {
    sending: Key,
    receiving: Key,
    /// Records protected so far: the number of the next one.
    sent: u64,
    received: u64,
}

/// What protects the records of one direction.
#[derive(Default)]
struct Key {
    key: [u8; 32],
    iv: [u8; 12],
}

/// What is told of a KeyUpdate that is none: its length, its one byte, and what comes behind.
const KEY_UPDATE_BYTES_SHOWN: usize = 8;

/// Why a parked connection cannot go on. The alert that says so has been put together.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Misstep {
    /// The peer asked for new keys, or has used its own up.
    KeysWornOut,
    /// What came is no record of this connection, or none that may come now.
    BadRecord(String),
}

/// A misstep, and what the peer is told.
struct Refused {
    alert: AlertDescription,
    misstep: Misstep,
}

impl Refused {
    fn record(alert: AlertDescription, detail: impl Into<String>) -> Self {
        Self { alert, misstep: Misstep::BadRecord(detail.into()) }
    }

    /// The peer asks for new keys (section 4.6.3); `update` is what follows the message's type: its length, and whether it wants new keys as well.
    fn key_update(update: &[u8]) -> Self {
        // No more of it than a line of the log has room for.
        let begins = &update[..update.len().min(KEY_UPDATE_BYTES_SHOWN)];
        let wrong = |alert| Self::record(alert, format!("a KeyUpdate of {} bytes, {begins:?}", update.len()));
        match update {
            // The rest of a message that is cut in two is not waited for: the session ends either way.
            [0, 0, 1, 0 | 1] | [0, 0, 1] | [0, 0] | [0] | [] => {
                Self { alert: AlertDescription::CloseNotify, misstep: Misstep::KeysWornOut }
            }
            [0, 0, 1, _] => wrong(AlertDescription::IllegalParameter),
            // Keys change with it, so nothing follows it in its record (section 5.1).
            [0, 0, 1, _, ..] => wrong(AlertDescription::UnexpectedMessage),
            _ => wrong(AlertDescription::DecodeError),
        }
    }
}

/// What a record came to.
#[derive(PartialEq, Eq)]
enum Opened {
    Said,
    Closed,
}

impl Parked {
    /// Takes the keys of a connection whose handshake is over, which has nothing to send, and holds no part of a record.
    ///
    /// # Errors
    /// When the keys cannot be had: rustls says why.
    pub(super) fn new(connection: ServerConnection) -> Result<Self, Error> {
        let suite = match connection.negotiated_cipher_suite() {
            Some(SupportedCipherSuite::Tls13(suite)) => suite,
            _ => return Err(Error::General("no cipher suite of TLS 1.3 is in use".to_owned())),
        };
        Self::with_secrets(suite, &connection.dangerous_extract_secrets()?)
    }

    pub(super) fn with_secrets(
        suite: &'static Tls13CipherSuite,
        secrets: &ExtractedSecrets,
    ) -> Result<Self, Error> {
        let mut keys = Box::<Keys>::default();
        (keys.sent, keys.received) = (secrets.tx.0, secrets.rx.0);
        keys.sending.take(&secrets.tx.1)?;
        keys.receiving.take(&secrets.rx.1)?;
        Ok(Self { suite, keys, partial: Vec::new(), silent: 0, has_closed: false })
    }

    /// Takes bytes as they came, which are opened where they are; what was inside is appended to `plaintext`, and an alert to `records`.
    /// `true` when the peer has said that it says no more.
    ///
    /// # Errors
    /// The connection is over.
    pub(super) fn feed(
        &mut self,
        received: &mut [u8],
        plaintext: &mut Vec<u8>,
        records: &mut Vec<u8>,
    ) -> Result<bool, Misstep> {
        self.open_all(received, plaintext).map_err(|refused| {
            self.say(refused.alert, records);
            refused.misstep
        })
    }

    fn open_all(&mut self, mut rest: &mut [u8], plaintext: &mut Vec<u8>) -> Result<bool, Refused> {
        let mut decrypter = None;
        while !self.partial.is_empty() && !rest.is_empty() {
            let end = record_end(&self.partial)?.unwrap_or(HEADER_BYTES);
            let (more, after) = rest.split_at_mut(rest.len().min(end - self.partial.len()));
            self.partial.extend_from_slice(more);
            rest = after;
            if record_end(&self.partial)? == Some(self.partial.len()) {
                let mut record = std::mem::take(&mut self.partial);
                if self.open(&mut record, &mut decrypter, plaintext)? == Opened::Closed {
                    return Ok(true);
                }
            }
        }
        while let Some(end) = record_end(rest)?.filter(|end| *end <= rest.len()) {
            let (record, after) = rest.split_at_mut(end);
            rest = after;
            if self.open(record, &mut decrypter, plaintext)? == Opened::Closed {
                return Ok(true);
            }
        }
        if !rest.is_empty() {
            self.partial = rest.to_vec();
        }
        Ok(false)
    }

    /// Opens one whole record. `decrypter` is made when there is none.
    fn open(
        &mut self,
        record: &mut [u8],
        decrypter: &mut Option<Box<dyn MessageDecrypter>>,
        plaintext: &mut Vec<u8>,
    ) -> Result<Opened, Refused> {
        let Keys { receiving, received, .. } = &mut *self.keys;
        if *received >= self.suite.common.confidentiality_limit.saturating_sub(RESERVE) {
            return Err(Refused { alert: AlertDescription::CloseNotify, misstep: Misstep::KeysWornOut });
        }
        let decrypter = decrypter
            .get_or_insert_with(|| self.suite.aead_alg.decrypter(receiving.aead_key(), receiving.aead_iv()));
        // It is among what is authenticated (section 5.2), where rustls puts in what it must be.
        if record[1..3] != VERSION {
            return Err(Refused::record(AlertDescription::BadRecordMac, "a record of another version"));
        }
        let body = &mut record[HEADER_BYTES..];
        let sealed = InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, body);
        let number = *received;
        *received += 1;
        let opened = decrypter.decrypt(sealed, number).map_err(|error| {
            let alert = match error {
                Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
                Error::PeerMisbehaved(_) => AlertDescription::UnexpectedMessage,
                _ => AlertDescription::BadRecordMac,
            };
            Refused::record(alert, error.to_string())
        })?;
        match (opened.typ, opened.payload) {
            (ContentType::ApplicationData, []) => self.on_silence(),
            (ContentType::ApplicationData, said) => {
                plaintext.extend_from_slice(said);
                self.silent = 0;
                Ok(Opened::Said)
            }
            (ContentType::Alert, &[level, alert]) => match AlertDescription::from(alert) {
                AlertDescription::CloseNotify => Ok(Opened::Closed),
                AlertDescription::UserCanceled if level == WARNING => self.on_silence(),
                // It has ended the connection with that: what is answered may not reach it, and does no harm.
                alert => Err(Refused::record(
                    AlertDescription::CloseNotify,
                    format!("the peer has sent the alert {alert:?}"),
                )),
            },
            (ContentType::Alert, []) => {
                Err(Refused::record(AlertDescription::UnexpectedMessage, "an alert that is empty"))
            }
            (ContentType::Alert, _) => {
                Err(Refused::record(AlertDescription::DecodeError, "an alert that is not two bytes long"))
            }
            (ContentType::Handshake, [KEY_UPDATE, update @ ..]) => Err(Refused::key_update(update)),
            (kind, _) => Err(Refused::record(
                AlertDescription::UnexpectedMessage,
                format!("a record of type {kind:?} after the handshake"),
            )),
        }
    }

    fn on_silence(&mut self) -> Result<Opened, Refused> {
        self.silent += 1;
        if self.silent > SILENT_RECORDS_MAX {
            let detail = format!("more than {SILENT_RECORDS_MAX} records in a row say nothing");
            return Err(Refused::record(AlertDescription::UnexpectedMessage, detail));
        }
        Ok(Opened::Said)
    }

    /// Seals `plaintext`; its records are appended to `records`.
    pub(super) fn seal(&mut self, plaintext: &[u8], records: &mut Vec<u8>) {
        self.put(ContentType::ApplicationData, plaintext, records);
    }

    /// Says close_notify, unless the end has been told already.
    pub(super) fn close(&mut self, records: &mut Vec<u8>) {
        self.say(AlertDescription::CloseNotify, records);
    }

    /// Whether the keys have protected nearly as many records as they may: the session is to be closed now.
    pub(super) fn is_worn_out(&self) -> bool {
        self.keys.sent >= self.suite.common.confidentiality_limit.saturating_sub(RESERVE)
    }

    /// The last thing that is said.
    fn say(&mut self, alert: AlertDescription, records: &mut Vec<u8>) {
        let level = if alert == AlertDescription::CloseNotify { WARNING } else { FATAL };
        self.put(ContentType::Alert, &[level, alert.into()], records);
        self.has_closed = true;
    }

    fn put(&mut self, kind: ContentType, plaintext: &[u8], records: &mut Vec<u8>) {
        for part in plaintext.chunks(PLAINTEXT_MAX) {
            self.put_record(kind, part, records);
        }
    }

    /// One record; what is longer than a record may be is cut to that.
    pub(super) fn put_record(&mut self, kind: ContentType, plaintext: &[u8], records: &mut Vec<u8>) {
        let Keys { sending, sent, .. } = &mut *self.keys;
        // Whoever asks `is_worn_out` never comes so far.
        self.has_closed |= *sent >= self.suite.common.confidentiality_limit;
        if self.has_closed {
            return;
        }
        // One for each record: the object for AES-GCM takes the number of its first record as 0, and refuses what follows otherwise.
        let mut encrypter = self.suite.aead_alg.encrypter(sending.aead_key(), sending.aead_iv());
        let payload = OutboundChunks::from(&plaintext[..plaintext.len().min(PLAINTEXT_MAX)]);
        let message = OutboundPlainMessage { typ: kind, version: ProtocolVersion::TLSv1_2, payload };
        let number = *sent;
        *sent += 1;
        let sealed = encrypter.encrypt(message, number).expect("a record within the limit can be sealed");
        records.extend_from_slice(&sealed.encode());
    }
}

impl Key {
    fn take(&mut self, secrets: &ConnectionTrafficSecrets) -> Result<(), Error> {
        let (ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
        else {
            return Err(Error::General("keys of this cipher suite cannot be given back to it".to_owned()));
        };
        self.key.copy_from_slice(key.as_ref());
        self.iv.copy_from_slice(iv.as_ref());
        Ok(())
    }

    fn aead_key(&self) -> AeadKey {
        AeadKey::from(self.key)
    }

    fn aead_iv(&self) -> Iv {
        Iv::from(self.iv)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.key.zeroize();
        self.iv.zeroize();
    }
}

/// Where the record at the beginning of `bytes` ends; `None` when its header has not come.
fn record_end(bytes: &[u8]) -> Result<Option<usize>, Refused> {
    let Some(&[kind, _, _, high, low]) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    if ContentType::from(kind) != ContentType::ApplicationData {
        let detail = format!("a record of type {kind} that is not protected");
        return Err(Refused::record(AlertDescription::UnexpectedMessage, detail));
    }
    let body = usize::from(u16::from_be_bytes([high, low]));
    if body > BODY_MAX {
        let detail = format!("a record of {body} bytes, where {BODY_MAX} are the most");
        return Err(Refused::record(AlertDescription::RecordOverflow, detail));
    }
    Ok(Some(HEADER_BYTES + body))
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Parked(sent: {}, received: {})", self.keys.sent, self.keys.received)
    }
}

#[cfg(test)]
mod tests;
