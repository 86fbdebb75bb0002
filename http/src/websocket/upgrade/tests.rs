//! The upgrade: the RFC's own example, and everything else that is asked or answered.

use super::*;
use crate::head::Decoded;

const KEY: [u8; KEY_BYTES] = *b"the sample nonce";

fn asked(lines: &str) -> Result<ResponseHead, Refusal> {
    let text = format!("{lines}\r\nHost: a\r\n\r\n");
    let Ok(Decoded::Complete { head, .. }) = RequestHead::decode(text.as_bytes()) else { panic!("{text}") };
    answer(&head)
}

#[test]
fn the_rfcs_example_is_answered_as_it_says() {
    // RFC 6455, 1.3.
    assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let (fields, key) = request(KEY);
    assert_eq!(key, "dGhlIHNhbXBsZSBub25jZQ==");
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let answer = asked(&format!("GET /bgb HTTP/1.1\r\n{}", fields.join("\r\n"))).unwrap();
    assert_eq!(answer.header("sec-websocket-accept"), Some(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..]));
    assert_eq!(check_answer(&answer, &key), Ok(()));
}

#[test]
fn what_is_no_upgrade_is_told_what_would_be_one() {
    let upgrade = "Upgrade: h2c, WebSocket\r\nConnection: keep-alive, upgrade";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let version = "Sec-WebSocket-Version: 13";
    assert!(asked(&format!("GET / HTTP/1.1\r\n{upgrade}\r\n{key}\r\n{version}")).is_ok());
    for (lines, refusal, status) in [
        (
            format!("POST / HTTP/1.1\r\n{upgrade}\r\n{key}\r\n{version}"),
            Refusal::Method("POST".to_owned()),
            405,
        ),
        (format!("GET / HTTP/1.0\r\n{upgrade}\r\n{key}\r\n{version}"), Refusal::Upgrade, 426),
        (format!("GET / HTTP/1.1\r\n{key}\r\n{version}"), Refusal::Upgrade, 426),
        (format!("GET / HTTP/1.1\r\nUpgrade: websocket\r\n{key}\r\n{version}"), Refusal::Upgrade, 426),
        (
            format!("GET / HTTP/1.1\r\n{upgrade}\r\n{key}\r\n{version}\r\nContent-Length: 3"),
            Refusal::Body,
            400,
        ),
        (format!("GET / HTTP/1.1\r\n{upgrade}\r\n{key}"), Refusal::Version, 426),
        (format!("GET / HTTP/1.1\r\n{upgrade}\r\n{key}\r\nSec-WebSocket-Version: 8"), Refusal::Version, 426),
        (format!("GET / HTTP/1.1\r\n{upgrade}\r\n{version}"), Refusal::Key, 400),
        (format!("GET / HTTP/1.1\r\n{upgrade}\r\n{key}\r\n{key}\r\n{version}"), Refusal::Key, 400),
        (
            format!("GET / HTTP/1.1\r\n{upgrade}\r\nSec-WebSocket-Key: c2hvcnQ=\r\n{version}"),
            Refusal::Key,
            400,
        ),
        (format!("GET / HTTP/1.1\r\n{upgrade}\r\nSec-WebSocket-Key: !\r\n{version}"), Refusal::Key, 400),
    ] {
        assert_eq!(asked(&lines), Err(refusal.clone()), "{lines}");
        assert_eq!(refusal.answer().status, status);
        for name in ["upgrade", "connection", "sec-websocket-version"] {
            assert_eq!(refusal.answer().header(name).is_some(), status == 426, "{name}: {lines}");
        }
    }
}

#[test]
fn an_answer_that_fits_no_request_of_ours_is_none() {
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let good = || {
        ResponseHead::new(101)
            .with("Upgrade", "websocket")
            .with("Connection", "Upgrade")
            .with("Sec-WebSocket-Accept", accept_key(key.as_bytes()))
    };
    assert_eq!(check_answer(&good(), key), Ok(()));
    assert_eq!(check_answer(&good(), "another"), Err(Refusal::Accept));
    assert_eq!(check_answer(&good().with("Sec-WebSocket-Extensions", "x"), key), Err(Refusal::Unasked));
    assert_eq!(check_answer(&good().with("Sec-WebSocket-Protocol", "x"), key), Err(Refusal::Unasked));
    assert_eq!(check_answer(&ResponseHead::new(407), key), Err(Refusal::Status(407)));
    assert_eq!(check_answer(&ResponseHead::new(101), key), Err(Refusal::Incomplete));
    assert_eq!(check_answer(&good().with("Upgrade", "h2c"), key), Err(Refusal::Incomplete));
    assert_eq!(check_answer(&good().with("Sec-WebSocket-Accept", "x"), key), Err(Refusal::Accept));
    let unsigned = ResponseHead::new(101).with("Upgrade", "websocket").with("Connection", "Upgrade");
    assert_eq!(check_answer(&unsigned, key), Err(Refusal::Accept));
}
