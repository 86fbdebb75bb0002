//! A parked connection beside rustls's own: the same script is said to both, by a device that protects its records itself and so can say
//! what no client of rustls would.

use std::sync::Arc;

use bgb_protocol::ids::DeviceId;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::{ClientConnection, HandshakeType};

use super::*;
use crate::tls::tests::{device_config, server_name, site_and_context};
use crate::tls::{ALPN, State, TlsContext, TlsSession};

const BOTH_SUITES: [SupportedCipherSuite; 2] =
    [cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];

/// A site's server and a device that shakes hands with it as often as a test wants.
struct Bench {
    context: TlsContext,
    device: Arc<rustls::ClientConfig>,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(suite: SupportedCipherSuite) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (site, context) = site_and_context(folder.path());
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![suite];
        let mut device = device_config(&site, DeviceId(0), &[ALPN], provider);
        device.enable_secret_extraction = true;
        Self { context, device: Arc::new(device), _folder: folder }
    }

    fn client(&self) -> ClientConnection {
        ClientConnection::new(Arc::clone(&self.device), server_name()).unwrap()
    }

    /// A handshake with our session, and whatever the device sends with the last of it.
    fn parked(&self, said_with_it: &[u8]) -> (Parked, ClientConnection, Vec<u8>) {
        let mut session = TlsSession::new(&self.context).unwrap();
        let mut client = self.client();
        let mut plaintext = Vec::new();
        loop {
            let mut flight = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut flight).unwrap();
            }
            if !client.is_handshaking() && !said_with_it.is_empty() && plaintext.is_empty() {
                std::io::Write::write_all(&mut client.writer(), said_with_it).unwrap();
                while client.wants_write() {
                    client.write_tls(&mut flight).unwrap();
                }
            }
            let mut answer = Vec::new();
            let fed = session.feed(&mut flight, &mut plaintext, &mut answer).unwrap();
            read_all(&mut client, &answer);
            if fed.established.is_some() {
                break;
            }
        }
        let State::Parked(parked) = session.0 else { panic!("{session:?}") };
        (parked, client, plaintext)
    }

    /// A handshake with rustls's own session under the same settings.
    fn stock(&self) -> (ServerConnection, ClientConnection) {
        let mut server = ServerConnection::new(Arc::clone(&self.context.config)).unwrap();
        let mut client = self.client();
        while server.is_handshaking() || client.wants_write() {
            let mut flight = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut flight).unwrap();
            }
            let mut flight = flight.as_slice();
            while !flight.is_empty() {
                server.read_tls(&mut flight).unwrap();
                server.process_new_packets().unwrap();
            }
            read_all(&mut client, &output(&mut server));
        }
        (server, client)
    }
}

fn output(server: &mut ServerConnection) -> Vec<u8> {
    let mut out = Vec::new();
    while server.wants_write() {
        server.write_tls(&mut out).unwrap();
    }
    out
}

fn read_all(client: &mut ClientConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets().unwrap();
    }
}

/// The device's end, which protects its records itself.
fn device_end(client: ClientConnection) -> Parked {
    let Some(SupportedCipherSuite::Tls13(suite)) = client.negotiated_cipher_suite() else { unreachable!() };
    Parked::with_secrets(suite, &client.dangerous_extract_secrets().unwrap()).unwrap()
}

impl Parked {
    /// The same connection once more, as it is now.
    fn again(&self) -> Self {
        let again = |from: &Key| Key { key: from.key, iv: from.iv };
        let Keys { sending, receiving, sent, received } = &*self.keys;
        let keys =
            Keys { sending: again(sending), receiving: again(receiving), sent: *sent, received: *received };
        let (partial, silent, has_closed) = (self.partial.clone(), self.silent, self.has_closed);
        Self { suite: self.suite, keys: Box::new(keys), partial, silent, has_closed }
    }

    /// One record, whatever is in it.
    fn put_one(&mut self, kind: ContentType, said: &[u8], records: &mut Vec<u8>) {
        let mut encrypter =
            self.suite.aead_alg.encrypter(self.keys.sending.aead_key(), self.keys.sending.aead_iv());
        let payload = OutboundChunks::from(said);
        let message = OutboundPlainMessage { typ: kind, version: ProtocolVersion::TLSv1_2, payload };
        records.extend_from_slice(&encrypter.encrypt(message, self.keys.sent).unwrap().encode());
        self.keys.sent += 1;
    }

    /// What the records of the other end say.
    fn hear(&mut self, mut records: &[u8]) -> (Vec<u8>, Option<AlertDescription>) {
        let (mut plaintext, mut alert) = (Vec::new(), None);
        let mut decrypter =
            self.suite.aead_alg.decrypter(self.keys.receiving.aead_key(), self.keys.receiving.aead_iv());
        while !records.is_empty() {
            assert!(alert.is_none(), "something follows an alert");
            let length = HEADER_BYTES + usize::from(u16::from_be_bytes([records[3], records[4]]));
            assert_eq!(records[..3], [23, 3, 3]);
            let mut body = records[HEADER_BYTES..length].to_vec();
            records = &records[length..];
            let sealed =
                InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, &mut body);
            let opened = decrypter.decrypt(sealed, self.keys.received).unwrap();
            self.keys.received += 1;
            match opened.typ {
                ContentType::ApplicationData => plaintext.extend_from_slice(opened.payload),
                ContentType::Alert => alert = Some(AlertDescription::from(opened.payload[1])),
                kind => panic!("a record of type {kind:?}"),
            }
        }
        (plaintext, alert)
    }
}

/// What a script came to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    plaintext: Vec<u8>,
    /// `Ok(true)` after close_notify.
    end: Result<bool, ()>,
    alert: Option<AlertDescription>,
}

impl Outcome {
    fn goes_on(plaintext: &[u8]) -> Self {
        Self { plaintext: plaintext.to_vec(), end: Ok(false), alert: None }
    }

    fn closed(plaintext: &[u8]) -> Self {
        Self { end: Ok(true), ..Self::goes_on(plaintext) }
    }

    fn failed(plaintext: &[u8], alert: AlertDescription) -> Self {
        Self { plaintext: plaintext.to_vec(), end: Err(()), alert: Some(alert) }
    }
}

fn feed_parked(parked: &Parked, device: &Parked, chunks: &[&[u8]]) -> Outcome {
    let (mut parked, mut device) = (parked.again(), device.again());
    let (mut plaintext, mut records, mut end) = (Vec::new(), Vec::new(), Ok(false));
    for chunk in chunks {
        end = parked.feed(&mut chunk.to_vec(), &mut plaintext, &mut records).map_err(|_| ());
        if end != Ok(false) {
            break;
        }
    }
    if end.is_ok() {
        assert!(records.is_empty());
    } else {
        // What the reactor does next says nothing more.
        parked.close(&mut records);
        parked.seal(b"more", &mut records);
    }
    Outcome { plaintext, end, alert: device.hear(&records).1 }
}

fn feed_stock(server: &mut ServerConnection, device: &Parked, mut bytes: &[u8]) -> Outcome {
    let (mut plaintext, mut end) = (Vec::new(), Ok(false));
    while !bytes.is_empty() && end == Ok(false) {
        server.read_tls(&mut bytes).unwrap();
        match server.process_new_packets() {
            Ok(state) => {
                let start = plaintext.len();
                plaintext.resize(start + state.plaintext_bytes_to_read(), 0);
                std::io::Read::read_exact(&mut server.reader(), &mut plaintext[start..]).unwrap();
                end = Ok(state.peer_has_closed());
            }
            Err(_) => {
                // What was good before is there still.
                let mut rest = Vec::new();
                let _ = std::io::Read::read_to_end(&mut server.reader(), &mut rest);
                plaintext.extend_from_slice(&rest);
                end = Err(());
            }
        }
    }
    Outcome { plaintext, end, alert: device.again().hear(&output(server)).1 }
}

/// Says a script to both. The parked one must come to `expected` however the bytes are cut in two, and byte by byte; rustls's own does when
/// all comes at once, but for its alert when `rustls_says` another.
fn compare(
    expected: &Outcome,
    rustls_says: Option<Option<AlertDescription>>,
    script: impl Fn(&mut Parked, &mut Vec<u8>),
) {
    for suite in BOTH_SUITES {
        let bench = Bench::new(suite);
        let (parked, client, _) = bench.parked(&[]);
        let mut device = device_end(client);
        let mut bytes = Vec::new();
        script(&mut device, &mut bytes);
        // Of a long script the ends of its records and every 97th byte.
        let step = if bytes.len() > 2_000 { 97 } else { 1 };
        for cut in (0..=bytes.len()).filter(|cut| cut % step == 0 || *cut < 40 || bytes.len() - cut < 40) {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(feed_parked(&parked, &device, &[first, second]), *expected, "cut at {cut}");
        }
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(feed_parked(&parked, &device, &single), *expected, "byte by byte");

        let (mut server, client) = bench.stock();
        let mut device = device_end(client);
        let mut bytes = Vec::new();
        script(&mut device, &mut bytes);
        let expected = Outcome { alert: rustls_says.unwrap_or(expected.alert), ..expected.clone() };
        assert_eq!(feed_stock(&mut server, &device, &bytes), expected, "rustls's own");
    }
}

#[test]
fn what_is_said_arrives_however_it_is_cut_into_records() {
    compare(&Outcome::goes_on(b"one, two, three"), None, |device, out| {
        device.seal(b"one, ", out);
        device.seal(b"two, ", out);
        device.put_one(ContentType::ApplicationData, b"", out);
        device.seal(b"thr", out);
        device.seal(b"ee", out);
    });
}

#[test]
fn records_of_the_largest_size_are_taken_and_larger_ones_are_not() {
    let large = vec![7; PLAINTEXT_MAX];
    compare(&Outcome::goes_on(&[&large[..], b"and"].concat()), None, |device, out| {
        device.seal(&[&large[..], b"and"].concat(), out);
    });
    let larger = vec![7; PLAINTEXT_MAX + 1];
    compare(&Outcome::failed(b"before", AlertDescription::RecordOverflow), None, |device, out| {
        device.seal(b"before", out);
        device.put_one(ContentType::ApplicationData, &larger, out);
    });
    // Announced already; rustls waits for it, up to a limit of its own.
    let too_long = (BODY_MAX as u16 + 1).to_be_bytes();
    let (bench, header) = (Bench::new(BOTH_SUITES[0]), [23, 3, 3, too_long[0], too_long[1]]);
    let (parked, client, _) = bench.parked(&[]);
    let outcome = feed_parked(&parked, &device_end(client), &[&header]);
    assert_eq!(outcome, Outcome::failed(b"", AlertDescription::RecordOverflow));
}

#[test]
fn a_peer_that_closes_is_heard_to_its_last_word_and_no_further() {
    compare(&Outcome::closed(b"the end"), None, |device, out| {
        device.seal(b"the end", out);
        device.put_one(ContentType::Alert, &[WARNING, AlertDescription::CloseNotify.into()], out);
        device.put_one(ContentType::ApplicationData, b"nobody hears this", out);
    });
    compare(&Outcome::closed(b"the end"), None, |device, out| {
        device.seal(b"the end", out);
        device.put_one(ContentType::Alert, &[WARNING, AlertDescription::UserCanceled.into()], out);
        device.put_one(ContentType::Alert, &[WARNING, AlertDescription::CloseNotify.into()], out);
    });
}

#[test]
fn an_alert_ends_the_connection() {
    // rustls leaves it to its user to close.
    compare(&Outcome::failed(b"word", AlertDescription::CloseNotify), Some(None), |device, out| {
        device.seal(b"word", out);
        device.put_one(ContentType::Alert, &[FATAL, AlertDescription::InternalError.into()], out);
        device.seal(b"more", out);
    });
    for wrong in [&[FATAL][..], &[FATAL, 80, 0]] {
        compare(&Outcome::failed(b"", AlertDescription::DecodeError), None, |device, out| {
            device.put_one(ContentType::Alert, wrong, out);
        });
    }
    // As section 5.4 demands; rustls says something else.
    let rustls_says = Some(Some(AlertDescription::DecodeError));
    compare(&Outcome::failed(b"", AlertDescription::UnexpectedMessage), rustls_says, |device, out| {
        device.put_one(ContentType::Alert, &[], out);
    });
}

#[test]
fn a_byte_that_was_changed_ends_the_connection() {
    for at in [HEADER_BYTES, HEADER_BYTES + 3, usize::MAX] {
        compare(&Outcome::failed(b"good", AlertDescription::BadRecordMac), None, |device, out| {
            device.seal(b"good", out);
            let start = out.len();
            device.seal(b"bad", out);
            let last = out.len() - 1;
            out[last.min(start.saturating_add(at))] ^= 1;
            device.seal(b"more", out);
        });
    }
    // Of the header each byte counts. rustls looks at one of the two of the version.
    let bench = Bench::new(BOTH_SUITES[0]);
    let (parked, client, _) = bench.parked(&[]);
    let device = device_end(client);
    for at in 0..HEADER_BYTES {
        let (mut device, mut bytes) = (device.again(), Vec::new());
        device.seal(b"word", &mut bytes);
        device.seal(&[0; 300], &mut bytes);
        bytes[at] ^= 1;
        let outcome = feed_parked(&parked, &device, &[&bytes]);
        assert!(outcome.plaintext.is_empty() && outcome.end.is_err(), "byte {at}: {outcome:?}");
    }
    // Too short for a tag.
    compare(&Outcome::failed(b"", AlertDescription::BadRecordMac), None, |_, out| {
        out.extend_from_slice(&[23, 3, 3, 0, 4, 1, 2, 3, 4]);
    });
    compare(&Outcome::failed(b"", AlertDescription::BadRecordMac), None, |_, out| {
        out.extend_from_slice(&[23, 3, 3, 0, 0]);
    });
}

#[test]
fn a_record_that_comes_twice_or_is_left_out_ends_the_connection() {
    compare(&Outcome::failed(b"once", AlertDescription::BadRecordMac), None, |device, out| {
        device.seal(b"once", out);
        out.extend_from_within(..);
    });
    compare(&Outcome::failed(b"", AlertDescription::BadRecordMac), None, |device, out| {
        device.seal(b"lost", &mut Vec::new());
        device.seal(b"next", out);
    });
}

#[test]
fn what_does_not_belong_after_a_handshake_ends_the_connection() {
    let unexpected = Outcome::failed(b"", AlertDescription::UnexpectedMessage);
    compare(&unexpected, None, |device, out| {
        let finished = [u8::from(HandshakeType::Finished), 0, 0, 1, 0];
        device.put_one(ContentType::Handshake, &finished, out);
    });
    compare(&unexpected, None, |device, out| device.put_one(ContentType::ChangeCipherSpec, &[1], out));
    // Not protected: rustls tries to open it.
    for kind in [21, 22] {
        compare(&unexpected, Some(Some(AlertDescription::BadRecordMac)), |_, out| {
            out.extend_from_slice(&[kind, 3, 3, 0, 2, 1, 0]);
        });
    }
}

#[test]
fn padding_is_taken_off_and_a_record_of_nothing_but_padding_ends_the_connection() {
    let padded = ContentType::from(0);
    compare(&Outcome::goes_on(b"word"), None, |device, out| {
        device.put_one(padded, b"word\x17\0\0", out);
    });
    // As section 5.4 demands; rustls ends it without a word.
    compare(&Outcome::failed(b"", AlertDescription::UnexpectedMessage), Some(None), |device, out| {
        device.put_one(padded, b"\0\0\0", out);
    });
}

#[test]
fn a_key_update_that_is_none_is_answered_as_what_it_is() {
    let cases = [
        (&[24, 0, 0, 1, 2][..], AlertDescription::IllegalParameter),
        (&[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], AlertDescription::UnexpectedMessage),
        (&[24, 0, 0, 2, 0, 0], AlertDescription::DecodeError),
    ];
    let bench = Bench::new(BOTH_SUITES[0]);
    let (parked, client, _) = bench.parked(&[]);
    let device = device_end(client);
    for (said, alert) in cases {
        let (mut device, mut bytes) = (device.again(), Vec::new());
        device.put_one(ContentType::Handshake, said, &mut bytes);
        assert_eq!(feed_parked(&parked, &device, &[&bytes]), Outcome::failed(b"", alert), "{said:?}");
    }
}

#[test]
fn silence_is_borne_for_a_while() {
    let bench = Bench::new(BOTH_SUITES[0]);
    let (parked, client, _) = bench.parked(&[]);
    let device = device_end(client);
    let silent = |records: u8| {
        let (mut device, mut bytes) = (device.again(), Vec::new());
        (0..records).for_each(|_| device.put_one(ContentType::ApplicationData, b"", &mut bytes));
        device.seal(b"word", &mut bytes);
        (0..records).for_each(|_| device.put_one(ContentType::ApplicationData, b"", &mut bytes));
        feed_parked(&parked, &device, &[&bytes])
    };
    assert_eq!(silent(SILENT_RECORDS_MAX), Outcome::goes_on(b"word"));
    let refused = Outcome::failed(b"", AlertDescription::UnexpectedMessage);
    assert_eq!(silent(SILENT_RECORDS_MAX + 1), refused);
}

#[test]
fn whoever_asks_for_new_keys_is_sent_to_make_them() {
    let bench = Bench::new(BOTH_SUITES[0]);
    let (mut parked, mut client, _) = bench.parked(&[]);
    client.refresh_traffic_keys().unwrap();
    let mut flight = Vec::new();
    client.write_tls(&mut flight).unwrap();
    let mut records = Vec::new();
    let misstep = parked.feed(&mut flight, &mut Vec::new(), &mut records).unwrap_err();
    assert_eq!(misstep, Misstep::KeysWornOut);
    let mut records = records.as_slice();
    client.read_tls(&mut records).unwrap();
    assert!(client.process_new_packets().unwrap().peer_has_closed());
}

#[test]
fn keys_end_before_they_have_protected_as_much_as_they_may() {
    let bench = Bench::new(BOTH_SUITES[0]);
    let (mut parked, client, _) = bench.parked(&[]);
    let limit = parked.suite.common.confidentiality_limit;
    let mut device = device_end(client);
    assert!(!parked.is_worn_out());
    parked.keys.sent = limit - RESERVE;
    assert!(parked.is_worn_out());
    parked.keys.sent = limit - 2;
    let mut records = Vec::new();
    parked.seal(b"the last but one", &mut records);
    parked.close(&mut records);
    parked.seal(b"and one too many", &mut records);
    device.keys.received = limit - 2;
    let said = device.hear(&records);
    assert_eq!(said, (b"the last but one".to_vec(), Some(AlertDescription::CloseNotify)));

    let (mut parked, client, _) = bench.parked(&[]);
    let mut device = device_end(client);
    (parked.keys.received, device.keys.sent) = (limit - RESERVE, limit - RESERVE);
    let mut bytes = Vec::new();
    device.seal(b"late", &mut bytes);
    let misstep = parked.feed(&mut bytes, &mut Vec::new(), &mut Vec::new()).unwrap_err();
    assert_eq!(misstep, Misstep::KeysWornOut);
}

#[test]
fn what_comes_with_the_end_of_the_handshake_is_not_lost() {
    for suite in BOTH_SUITES {
        let (mut parked, mut client, plaintext) = Bench::new(suite).parked(b"hello");
        assert_eq!(plaintext, b"hello");
        let mut records = Vec::new();
        let answer = vec![b'w'; 3 * PLAINTEXT_MAX + 5];
        parked.seal(&answer, &mut records);
        read_all_but_plaintext(&mut client, &records, &answer);
    }
}

fn read_all_but_plaintext(client: &mut ClientConnection, mut records: &[u8], expected: &[u8]) {
    let mut heard = Vec::new();
    while !records.is_empty() {
        client.read_tls(&mut records).unwrap();
        let bytes = client.process_new_packets().unwrap().plaintext_bytes_to_read();
        let start = heard.len();
        heard.resize(start + bytes, 0);
        std::io::Read::read_exact(&mut client.reader(), &mut heard[start..]).unwrap();
    }
    assert_eq!(heard, expected);
}

#[test]
fn a_connection_at_rest_is_small() {
    let parked = size_of::<Parked>() + size_of::<Keys>();
    assert!(parked <= 152, "{parked} bytes");
    assert!(size_of::<TlsSession>() <= size_of::<Parked>());
}
