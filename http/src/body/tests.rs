//! Lengths by the rules of RFC 9112 section 6.3, and the chunked coding in every split.

use proptest::prelude::*;

use super::*;

fn request(method: &str, fields: &[(&str, &str)]) -> RequestHead {
    let headers =
        fields.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
    RequestHead { method: method.to_owned(), target: "/".to_owned(), minor_version: 1, headers }
}

fn response(status: u16, fields: &[(&str, &str)]) -> ResponseHead {
    fields.iter().fold(ResponseHead::new(status), |head, (name, value)| head.with(name, *value))
}

#[test]
fn a_requests_body_is_as_long_as_its_fields_say_and_else_there_is_none() {
    let length = |fields| BodyLength::of_request(&request("POST", fields));
    assert_eq!(length(&[]), Ok(BodyLength::None));
    assert_eq!(length(&[("content-length", "0")]), Ok(BodyLength::None));
    assert_eq!(length(&[("Content-Length", "18446744073709551615")]), Ok(BodyLength::Length(u64::MAX)));
    assert_eq!(length(&[("Transfer-Encoding", "Chunked")]), Ok(BodyLength::Chunked));
    assert_eq!(length(&[("transfer-encoding", "gzip")]), Err(HeadError::TransferCodingUnknown));
}

#[test]
fn a_responses_body_depends_on_the_request_and_status_too() {
    let length = |status, method, fields: &[(&str, &str)]| {
        BodyLength::of_response(&response(status, fields), method).unwrap()
    };
    let five = [("content-length", "5")];
    assert_eq!(length(200, "GET", &five), BodyLength::Length(5));
    assert_eq!(length(200, "HEAD", &five), BodyLength::None);
    assert_eq!(length(304, "GET", &five), BodyLength::None);
    assert_eq!(length(204, "GET", &[]), BodyLength::None);
    assert_eq!(length(101, "GET", &[]), BodyLength::None);
    assert_eq!(length(200, "CONNECT", &five), BodyLength::None);
    assert_eq!(length(407, "CONNECT", &five), BodyLength::Length(5));
    assert_eq!(length(200, "GET", &[("transfer-encoding", "chunked")]), BodyLength::Chunked);
    assert_eq!(length(200, "GET", &[]), BodyLength::UntilClose);
    let both = response(200, &[("content-length", "5"), ("transfer-encoding", "chunked")]);
    assert_eq!(BodyLength::of_response(&both, "GET"), Err(HeadError::BothLengths));
}

/// Decodes in pieces of the given sizes, over and over.
fn decode(input: &[u8], body_bytes_max: u64, pieces: &[usize]) -> Result<(Vec<u8>, usize, bool), ChunkError> {
    let mut decoder = ChunkDecoder::new(body_bytes_max);
    let mut body = Vec::new();
    let (mut start, mut is_done) = (0, false);
    let mut sizes = pieces.iter().cycle();
    while start < input.len() && !is_done {
        let end = (start + sizes.next().copied().unwrap_or(usize::MAX).max(1)).min(input.len());
        let progress = decoder.decode(&input[start..end], &mut body)?;
        is_done = progress.is_done;
        assert!(is_done || progress.consumed == end - start);
        start += progress.consumed;
    }
    Ok((body, start, is_done))
}

fn whole(input: &str) -> Result<(Vec<u8>, usize, bool), ChunkError> {
    decode(input.as_bytes(), 100, &[input.len()])
}

#[test]
fn chunks_become_one_body_and_what_follows_is_left() {
    let chunked = "4\r\nWiki\r\n0B;a=b;c=\"d e\"\r\npedia, yes!\r\n0\r\n\r\n";
    let (body, consumed, is_done) = whole(&format!("{chunked}GET")).unwrap();
    assert_eq!((body.as_slice(), consumed, is_done), (&b"Wikipedia, yes!"[..], chunked.len(), true));
    let (body, _, is_done) = whole("0\r\nTrailer: read over\r\nOther:\r\n\r\n").unwrap();
    assert_eq!((body.as_slice(), is_done), (&b""[..], true));
    let (body, consumed, is_done) = whole("4\r\nWi").unwrap();
    assert_eq!((body.as_slice(), consumed, is_done), (&b"Wi"[..], 5, false));
}

#[test]
fn what_is_not_the_chunked_coding_is_refused() {
    let cases = [
        ("\r\n", ChunkError::Size),
        ("x\r\n", ChunkError::Size),
        ("-1\r\n", ChunkError::Size),
        (" 1\r\n", ChunkError::Size),
        ("11112222333344445\r\n", ChunkError::Size),
        ("0x1\r\n", ChunkError::Extension),
        ("1 2\r\n", ChunkError::Extension),
        ("1;\r\n", ChunkError::Extension),
        ("1;a;\r\n", ChunkError::Extension),
        ("1;a=\r\n", ChunkError::Extension),
        ("1;a=b c\r\n", ChunkError::Extension),
        ("1;a=\"b\r\n", ChunkError::Extension),
        ("1;a=\"\0\"\r\n", ChunkError::Extension),
        ("1;a=\"b\"c\"\r\n", ChunkError::Extension),
        ("1\n", ChunkError::LineEnd),
        ("1;a\nb\r\n", ChunkError::LineEnd),
        ("1\rx", ChunkError::LineEnd),
        ("1\r\r\n", ChunkError::LineEnd),
        ("1\r\nab", ChunkError::LineEnd),
        ("1\r\na\n", ChunkError::LineEnd),
        ("1\r\na\rb", ChunkError::LineEnd),
        ("0\r\nno colon\r\n", ChunkError::Trailer),
        ("0\r\n folded: x\r\n", ChunkError::Trailer),
        ("0\r\na : b\r\n", ChunkError::Trailer),
        ("0\r\na: b\0\r\n", ChunkError::Trailer),
        ("65\r\n", ChunkError::TooLarge),
        ("ffffffffffffffff\r\n", ChunkError::TooLarge),
    ];
    for (input, expected) in cases {
        assert_eq!(whole(input), Err(expected), "{input:?}");
    }
    assert!(whole("64\r\n").is_ok(), "just the 100 bytes that are allowed");
}

#[test]
fn lines_and_trailers_without_end_are_refused_at_their_limits() {
    let extension = |length: usize| format!("1;{}\r\na\r\n0\r\n\r\n", "e".repeat(length - 2));
    assert!(whole(&extension(SIZE_LINE_BYTES_MAX)).unwrap().2);
    assert_eq!(whole(&extension(SIZE_LINE_BYTES_MAX + 1)), Err(ChunkError::LineTooLong));
    let trailers = |count: usize| format!("0\r\n{}\r\n", "a: 3456789abcdef\r\n".repeat(count));
    assert!(whole(&trailers(TRAILER_BYTES_MAX / 16)).unwrap().2);
    assert_eq!(whole(&trailers(TRAILER_BYTES_MAX / 16 + 1)), Err(ChunkError::LineTooLong));
}

#[test]
fn the_limit_counts_all_chunks_together_and_a_failure_stays() {
    let input = b"2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n";
    assert_eq!(decode(input, 4, &[input.len()]).unwrap().0, b"abcd");
    let mut decoder = ChunkDecoder::new(3);
    let mut body = Vec::new();
    assert_eq!(decoder.decode(input, &mut body), Err(ChunkError::TooLarge));
    assert_eq!(decoder.decode(b"0\r\n\r\n", &mut body), Err(ChunkError::TooLarge));
    assert_eq!(
        (body.as_slice(), ChunkError::TooLarge.status(), ChunkError::Size.status()),
        (&b"ab"[..], 413, 400)
    );
}

/// Chunks as they should be, then bytes as they come.
fn almost_chunked() -> impl Strategy<Value = Vec<u8>> {
    let chunk = proptest::collection::vec(any::<u8>(), 1..40);
    let noise =
        proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), any::<u8>()], 0..12);
    let end = prop_oneof![Just("0\r\n\r\n"), Just("0\r\na: b\r\n\r\n"), Just("")];
    (proptest::collection::vec(chunk, 0..5), end, noise).prop_map(|(chunks, end, noise)| {
        let mut bytes = Vec::new();
        for chunk in chunks {
            bytes.extend(format!("{:x};ext\r\n", chunk.len()).into_bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
        }
        bytes.extend(end.as_bytes());
        bytes.extend(noise);
        bytes
    })
}

proptest! {
    #[test]
    fn a_body_decodes_the_same_however_its_bytes_arrive(
        bytes in almost_chunked(), pieces in proptest::collection::vec(1usize..20, 1..6),
    ) {
        prop_assert_eq!(decode(&bytes, 100, &[usize::MAX / 2]), decode(&bytes, 100, &pieces));
    }

    #[test]
    fn a_body_in_chunks_comes_out_whole(chunks in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 1..300), 0..6,
    )) {
        let mut bytes = Vec::new();
        for chunk in &chunks {
            bytes.extend(format!("{:X}\r\n", chunk.len()).into_bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\n\r\n");
        prop_assert_eq!(decode(&bytes, 10_000, &[7]), Ok((chunks.concat(), bytes.len(), true)));
    }

    #[test]
    fn arbitrary_bytes_neither_panic_nor_pass_the_limit(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok((body, _, _)) = decode(&bytes, 50, &[3]) {
            prop_assert!(body.len() <= 50);
        }
    }
}
