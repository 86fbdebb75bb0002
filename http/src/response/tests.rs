//! Responses: what is encoded decodes again, and nothing can be smuggled into one.

use proptest::prelude::*;

use super::*;

#[test]
fn a_response_is_written_as_it_was_put_together() {
    let mut bytes = b"before".to_vec();
    ResponseHead::new(421).with("Content-Length", "0").with("x-empty", "").encode(&mut bytes).unwrap();
    assert_eq!(bytes, b"beforeHTTP/1.1 421 Misdirected Request\r\nContent-Length: 0\r\nx-empty: \r\n\r\n");
    let mut bytes = Vec::new();
    ResponseHead::new(299).encode(&mut bytes).unwrap();
    assert_eq!(bytes, b"HTTP/1.1 299 \r\n\r\n", "a status without a phrase keeps its space");
}

#[test]
fn what_would_split_a_response_is_refused_and_nothing_is_written() {
    let refused = |head: ResponseHead| {
        let mut bytes = Vec::new();
        let error = head.encode(&mut bytes).unwrap_err();
        assert!(bytes.is_empty());
        error
    };
    for value in ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b"] {
        assert_eq!(
            refused(ResponseHead::new(200).with("location", value)),
            HeaderError::Value("location".to_owned())
        );
    }
    for name in ["", "a b", "a:", "a\r\nb", "ä"] {
        assert_eq!(refused(ResponseHead::new(200).with(name, "x")), HeaderError::Name(name.to_owned()));
    }
    for status in [0, 99, 600, 1000] {
        assert_eq!(refused(ResponseHead::new(status)), HeaderError::Status(status));
    }
}

#[test]
fn responses_of_others_are_decoded() {
    let bytes =
        b"HTTP/1.0 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n<html>";
    let Ok(Decoded::Complete { head, consumed }) = ResponseHead::decode(bytes) else { panic!("complete") };
    assert_eq!((head.status, consumed), (407, bytes.len() - 6));
    assert_eq!(head.header("proxy-authenticate"), Some(&b"Basic realm=\"x\""[..]));
    assert!(matches!(ResponseHead::decode(b"HTTP/1.1 200\r\n\r\n"), Ok(Decoded::Complete { .. })));
    let upgrade = b"HTTP/1.1 101 Switching Protocols\r\nConnection: keep-alive, Upgrade\r\n\r\n";
    let Ok(Decoded::Complete { head, .. }) = ResponseHead::decode(upgrade) else { panic!("complete") };
    assert!(head.header_lists("connection", "upgrade") && !head.header_lists("connection", "close"));
}

#[test]
fn responses_with_two_readings_are_refused() {
    let cases: [(&[u8], HeadError); 6] = [
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            HeadError::BothLengths,
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", HeadError::ContentLength),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", HeadError::HeaderName),
        (b"HTTP/1.1 200 OK\nA: b\n\n", HeadError::LineEnd),
        (b"HTTP/1.1 999 OK\r\n\r\n", HeadError::Status),
        (b"HTTP/2.0 200 OK\r\n\r\n", HeadError::Version),
    ];
    for (bytes, expected) in cases {
        assert_eq!(ResponseHead::decode(bytes), Err(expected), "{:?}", String::from_utf8_lossy(bytes));
    }
}

fn sound_head() -> impl Strategy<Value = ResponseHead> {
    let name = "x-[a-zA-Z0-9!#$%&'*+.^_`|~-]{0,12}";
    let value = proptest::collection::vec(prop_oneof![Just(b'\t'), 0x20u8..=0x7e, 0x80u8..=0xff], 0..24)
        .prop_map(|value| value.trim_ascii().to_vec());
    (100u16..600, proptest::collection::vec((name, value), 0..6))
        .prop_map(|(status, headers)| ResponseHead { status, headers })
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_the_same_however_its_bytes_arrive(head in sound_head()) {
        let mut bytes = Vec::new();
        head.encode(&mut bytes).unwrap();
        for end in 0..bytes.len() {
            prop_assert_eq!(ResponseHead::decode(&bytes[..end]), Ok(Decoded::Partial));
        }
        let consumed = bytes.len();
        bytes.extend_from_slice(b"body");
        prop_assert_eq!(ResponseHead::decode(&bytes), Ok(Decoded::Complete { head, consumed }));
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = ResponseHead::decode(&bytes);
        let _ = ResponseHead::decode(&[b"HTTP/1.1 200 OK\r\n".as_slice(), &bytes].concat());
    }
}
