use proptest::prelude::*;

use super::*;

const STREAM: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\
    POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
    POST /y HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;e=f\r\nde\r\n0\r\n\r\n\
    POST /z HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
    GET /last HTTP/1.1\r\nHost: a\r\n\r\n";

/// Each request's target and body, whole ones only.
fn read_all(cuts: &[usize], stream: &[u8]) -> Result<Vec<(String, Vec<u8>)>, RequestFault> {
    let mut requests = Requests::new(16);
    let (mut found, mut target, mut body) = (Vec::new(), String::new(), Vec::new());
    let mut from = 0;
    for to in cuts.iter().copied().chain([stream.len()]) {
        let to = to.clamp(from, stream.len());
        requests.hear(&stream[from..to]);
        from = to;
        while let Some(part) = requests.next(&mut body)? {
            match part {
                Part::Head(head) => target = head.target,
                Part::Body => {}
                Part::End => {
                    found.push((std::mem::take(&mut target), std::mem::take(&mut body)));
                    requests.on_answered();
                }
            }
        }
    }
    Ok(found)
}

#[test]
fn requests_come_one_after_the_other_each_with_its_body() {
    let expected = [("/", ""), ("/x", "hello"), ("/y", "abcde"), ("/z", ""), ("/last", "")];
    let expected: Vec<_> =
        expected.iter().map(|(target, body)| ((*target).to_owned(), body.as_bytes().to_vec())).collect();
    assert_eq!(read_all(&[], STREAM).unwrap(), expected);
    let byte_by_byte: Vec<_> = (1..STREAM.len()).collect();
    assert_eq!(read_all(&byte_by_byte, STREAM).unwrap(), expected);
}

proptest! {
    #[test]
    fn cuts_change_nothing(mut cuts in prop::collection::vec(0..STREAM.len(), 0..12), garbage in any::<Vec<u8>>(), at in 0..STREAM.len()) {
        cuts.sort_unstable();
        prop_assert_eq!(read_all(&cuts, STREAM), read_all(&[], STREAM));
        // A fault is found wherever the bytes were cut, though which of two is found first may differ.
        let broken = [&STREAM[..at], &garbage, &STREAM[at..], b"\r\n\n"].concat();
        prop_assert_eq!(read_all(&cuts, &broken).map_err(drop), read_all(&[], &broken).map_err(drop));
    }
}

#[test]
fn nothing_is_read_before_the_answer_and_only_so_much_waits() {
    let mut requests = Requests::new(16);
    requests.hear(STREAM);
    let mut body = Vec::new();
    assert!(matches!(requests.next(&mut body), Ok(Some(Part::Head(_)))));
    assert_eq!(requests.next(&mut body), Ok(Some(Part::End)));
    assert_eq!(requests.next(&mut body), Ok(None));
    assert!(requests.is_whole() && requests.is_busy() && !requests.is_full());
    requests.hear(&[b'x'; WAITING_BYTES_MAX]);
    assert!(requests.is_full());
    requests.on_answered();
    assert!(matches!(requests.next(&mut body), Ok(Some(Part::Head(head))) if head.target == "/x"));
}

#[test]
fn what_follows_an_upgrade_is_given_back() {
    let mut requests = Requests::new(16);
    requests.hear(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\x82\x80");
    let mut body = Vec::new();
    while requests.next(&mut body).unwrap().is_some() {}
    assert_eq!(requests.into_rest(), b"\x82\x80");
}

#[test]
fn faults_have_their_status_and_end_it() {
    let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(HEAD_BYTES_MAX));
    for (bytes, status) in [
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 17\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        ("GET / HTTP/2.0\r\n", 505),
        (&long, 431),
        ("\x16\x03\x01\x02\x00\x01\x00", 400),
    ] {
        let mut requests = Requests::new(16);
        requests.hear(bytes.as_bytes());
        let mut body = Vec::new();
        let fault = loop {
            match requests.next(&mut body) {
                Ok(part) => assert!(part.is_some(), "{bytes:?}"),
                Err(fault) => break fault,
            }
        };
        assert_eq!(fault.status(), status, "{bytes:?}");
        requests.hear(STREAM);
        assert_eq!(requests.next(&mut body), Err(fault));
    }
}
