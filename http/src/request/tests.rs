//! Requests: what is taken, what is refused with which status, and that splits change nothing.

use proptest::prelude::*;

use super::*;
use crate::HEAD_BYTES_MAX;

fn complete(text: &str) -> RequestHead {
    match RequestHead::decode(text.as_bytes()) {
        Ok(Decoded::Complete { head, consumed }) => {
            assert_eq!(consumed, text.find("\r\n\r\n").unwrap() + 4);
            head
        }
        other => panic!("{text:?}: {other:?}"),
    }
}

fn refused(text: &str) -> HeadError {
    match RequestHead::decode(text.as_bytes()) {
        Err(error) => error,
        other => panic!("{text:?}: {other:?}"),
    }
}

fn with_fields(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

#[test]
fn a_request_is_taken_as_it_was_sent() {
    let head = complete(
        "GET /a/b?c=d?e HTTP/1.1\r\nHost: bgb.example:8080\r\nX-One:  two \t\r\nx-one: three\r\n\r\nbody",
    );
    assert_eq!((head.method.as_str(), head.minor_version), ("GET", 1));
    assert_eq!((head.path(), head.query()), ("/a/b", Some("c=d?e")));
    assert_eq!(head.header("x-ONE"), Some(&b"two"[..]));
    assert_eq!(head.header("x-two"), None);
    assert_eq!(head.headers[1], ("X-One".to_owned(), b"two".to_vec()));
    assert_eq!(head.headers.len(), 3);
}

#[test]
fn one_empty_line_before_a_request_is_read_over_and_a_second_is_not() {
    let bytes = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert!(matches!(RequestHead::decode(bytes), Ok(Decoded::Complete { consumed: 29, .. })));
    assert_eq!(refused("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), HeadError::EmptyLines);
}

#[test]
fn a_target_has_a_path_and_a_query_in_every_form() {
    let cases = [
        ("/", "/", None),
        ("/?", "/", Some("")),
        ("/a?u=http://b/c", "/a", Some("u=http://b/c")),
        ("http://host:80/a?b", "/a", Some("b")),
        ("HTTP://host", "/", None),
        ("http://host?b", "/", Some("b")),
        ("*", "*", None),
        ("host:443", "host:443", None),
    ];
    for (target, path, query) in cases {
        let head = complete(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!((head.path(), head.query()), (path, query), "{target}");
    }
}

#[test]
fn a_connection_lives_on_as_version_and_connection_field_say() {
    let cases = [
        ("HTTP/1.1", "", true),
        ("HTTP/1.1", "Connection: close\r\n", false),
        ("HTTP/1.1", "Connection: upgrade\r\nConnection: TE , Close\r\n", false),
        ("HTTP/1.0", "", false),
        ("HTTP/1.0", "Connection: Keep-Alive\r\n", true),
        ("HTTP/1.0", "Connection: keep-alive, close\r\n", false),
    ];
    for (version, field, lives) in cases {
        let head = complete(&format!("GET / {version}\r\nHost: a\r\n{field}\r\n"));
        assert_eq!(head.keep_alive(), lives, "{version} {field}");
    }
    assert!(complete(&with_fields("Expect: 100-Continue\r\n")).expects_continue());
    assert!(!complete("GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expects_continue());
}

#[test]
fn shapes_by_which_requests_are_smuggled_are_refused() {
    let cases = [
        ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", HeadError::BothLengths),
        ("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", HeadError::BothLengths),
        ("Content-Length: 1\r\nContent-Length: 2\r\n", HeadError::ContentLength),
        ("Content-Length: 1\r\ncontent-length: 1\r\n", HeadError::ContentLength),
        ("Content-Length: 1, 1\r\n", HeadError::ContentLength),
        ("Content-Length: +1\r\n", HeadError::ContentLength),
        ("Content-Length: -1\r\n", HeadError::ContentLength),
        ("Content-Length: 0x1\r\n", HeadError::ContentLength),
        ("Content-Length: \r\n", HeadError::ContentLength),
        ("Content-Length: 18446744073709551616\r\n", HeadError::ContentLength),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", HeadError::TransferEncoding),
        ("Transfer-Encoding: chunked, identity\r\n", HeadError::TransferCodingUnknown),
        ("Transfer-Encoding: xchunked\r\n", HeadError::TransferCodingUnknown),
        ("Transfer-Encoding: \r\n", HeadError::TransferCodingUnknown),
        ("Transfer-Encoding : chunked\r\n", HeadError::HeaderName),
        ("Transfer-Encoding\t: chunked\r\n", HeadError::HeaderName),
        ("X: a\r\n Transfer-Encoding: chunked\r\n", HeadError::HeaderName),
        ("X: a\r\n\tfolded\r\n", HeadError::HeaderName),
        ("X: a\nTransfer-Encoding: chunked\r\n", HeadError::LineEnd),
        ("X: a\rTransfer-Encoding: chunked\r\n", HeadError::LineEnd),
        ("X: a\r\r\nTransfer-Encoding: chunked\r\n", HeadError::LineEnd),
        ("X: a\0b\r\n", HeadError::HeaderValue),
        ("X: a\u{b}b\r\n", HeadError::HeaderValue),
        (": a\r\n", HeadError::HeaderName),
        ("no colon\r\n", HeadError::HeaderName),
        ("X(y): a\r\n", HeadError::HeaderName),
        ("Host: a\r\n", HeadError::Host),
        ("Host: b\r\n", HeadError::Host),
    ];
    for (fields, expected) in cases {
        assert_eq!(refused(&with_fields(fields)), expected, "{fields:?}");
        assert!(matches!(expected.status(), 400 | 501));
    }
    assert_eq!(
        refused("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        HeadError::TransferEncoding,
        "HTTP/1.0 has no such coding"
    );
}

#[test]
fn http_1_1_has_one_host_and_http_1_0_may_do_without() {
    assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), HeadError::HostMissing);
    complete("GET / HTTP/1.0\r\n\r\n");
    complete("GET / HTTP/1.1\r\nHost:\r\n\r\n");
    complete("GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n");
    for host in ["a b", "a/b", "user@a", "a,b", "a?b", "a#b", "\u{e4}"] {
        assert_eq!(refused(&format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n")), HeadError::Host, "{host}");
    }
}

#[test]
fn first_lines_that_are_none_are_refused_as_soon_as_that_shows() {
    let cases = [
        ("\u{16}\u{3}\u{1}", HeadError::FirstLine, 400),
        ("GE(T / HTTP/1.1\r\n", HeadError::FirstLine, 400),
        (" GET / HTTP/1.1\r\n", HeadError::FirstLine, 400),
        ("GET / HTTP/2.0\r\n", HeadError::Version, 505),
        ("GET / HTTP/1.2\r\n", HeadError::Version, 505),
        ("GET /a#b HTTP/1.1\r\n", HeadError::Target, 400),
        ("GET /\u{e4} HTTP/1.1\r\n", HeadError::Target, 400),
        ("GET / HTTP/1.1 \r\n", HeadError::LineEnd, 400),
    ];
    for (text, expected, status) in cases {
        assert_eq!((refused(text), expected.status()), (expected, status), "{text:?}");
    }
    for text in ["GET  / HTTP/1.1\r\n", "GET /\r\n", "GET\r\n", "GET /\u{7f} HTTP/1.1\r\n"] {
        assert!(matches!(refused(text).status(), 400 | 505), "{text:?}");
    }
}

#[test]
fn heads_at_their_limits_are_taken_and_over_them_refused() {
    let padded = |length: usize| {
        let frame = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(length - frame))
    };
    complete(&padded(HEAD_BYTES_MAX));
    assert_eq!(refused(&padded(HEAD_BYTES_MAX + 1)), HeadError::TooLarge);
    let endless = "x".repeat(HEAD_BYTES_MAX);
    assert_eq!(RequestHead::decode(&endless.as_bytes()[1..]), Ok(Decoded::Partial));
    assert_eq!(refused(&endless), HeadError::TooLarge);

    let fields = |count: usize| with_fields(&"X: y\r\n".repeat(count - 1));
    assert_eq!(complete(&fields(HEADERS_MAX)).headers.len(), HEADERS_MAX);
    assert_eq!(refused(&fields(HEADERS_MAX + 1)), HeadError::TooManyHeaders);
    assert_eq!((HeadError::TooLarge.status(), HeadError::TooManyHeaders.status()), (431, 431));
}

/// A head that is sound, and often one that is not quite.
fn almost_a_head() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just("Host: a\r\n"),
        Just("Content-Length: 5\r\n"),
        Just("Transfer-Encoding: chunked\r\n"),
        Just("Connection: close\r\n"),
        Just("X-Y: z\r\n"),
        Just("X-Y: z\n"),
        Just(" folded\r\n"),
        Just("X : y\r\n"),
        Just("\r"),
    ];
    let first = prop_oneof![
        4 => Just("POST /a?b HTTP/1.1\r\nHost: x\r\n"),
        1 => Just("GET / HTTP/1.0\r\n"),
        1 => Just("\r\nGET / HTTP/1.0\r\n"),
        1 => Just("GET / HTTP/3.0\r\n"),
    ];
    let rest = proptest::collection::vec(any::<u8>(), 0..16);
    (first, proptest::collection::vec(line, 0..4), rest).prop_map(|(first, lines, rest)| {
        [first.as_bytes(), lines.concat().as_bytes(), b"\r\n", &rest].concat()
    })
}

fn check_prefixes(bytes: &[u8]) -> Result<(), TestCaseError> {
    let whole = RequestHead::decode(bytes);
    for end in 0..bytes.len() {
        match (&whole, RequestHead::decode(&bytes[..end])) {
            (Ok(Decoded::Complete { consumed, .. }), part) if end >= *consumed => {
                prop_assert_eq!(&whole, &part);
            }
            (Ok(_), part) => prop_assert_eq!(part, Ok(Decoded::Partial)),
            (Err(_), part) => {
                let is_early = matches!(part, Ok(Decoded::Complete { .. }));
                prop_assert!(!is_early, "complete, although more bytes make it a fault");
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_head_decodes_the_same_however_its_bytes_arrive(bytes in almost_a_head()) {
        check_prefixes(&bytes)?;
    }

    #[test]
    fn arbitrary_bytes_neither_panic_nor_depend_on_how_they_arrive(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        check_prefixes(&bytes)?;
    }

    #[test]
    fn a_fault_that_was_found_is_not_mended_by_more_bytes(bytes in almost_a_head(), end: proptest::sample::Index) {
        let end = end.index(bytes.len() + 1);
        if RequestHead::decode(&bytes[..end]).is_err() {
            prop_assert!(RequestHead::decode(&bytes).is_err());
        }
    }
}
