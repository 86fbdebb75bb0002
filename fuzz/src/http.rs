//! HTTP/1.1 heads and chunked bodies, and requests one after the other.

use std::fmt::Debug;

use bgb_http::{
    BodyLength, ChunkDecoder, Decoded, HEAD_BYTES_MAX, HeadError, Part, RequestHead, Requests, ResponseHead,
};

use crate::bytes::Bytes;

/// Most bytes of a body.
const BODY_BYTES_MAX: u64 = 4_096;

/// The first byte says where the rest is cut: a head is the same however much of it and behind it has come, and a body the
/// same however it is cut.
pub(crate) fn http(data: &[u8]) {
    let mut bytes = Bytes(data);
    let cut = usize::from(bytes.byte());
    let data = bytes.0;
    if let Some(head) = head(data, cut, RequestHead::decode) {
        assert!(head.path().starts_with('/') || head.path() == head.target.split('?').next().unwrap_or(""));
        let _ = (head.query(), head.keep_alive(), head.expects_continue());
        assert!(
            BodyLength::of_request(&head).is_ok(),
            "a head that was decoded has a body of unknown length"
        );
    }
    if let Some(head) = head(data, cut, ResponseHead::decode) {
        for method in ["GET", "HEAD", "CONNECT"] {
            assert!(BodyLength::of_response(&head, method).is_ok(), "a body of unknown length");
        }
        let mut bytes = Vec::new();
        head.encode(&mut bytes).expect("a head that was decoded can be sent");
        let consumed = bytes.len();
        // Written our way it may be longer: a blank behind each colon, a reason where there was none.
        let again = ResponseHead::decode(&bytes);
        let is_as_it_was = if consumed > HEAD_BYTES_MAX {
            again == Err(HeadError::TooLarge)
        } else {
            again == Ok(Decoded::Complete { head, consumed })
        };
        assert!(is_as_it_was, "a head is not what it was when it is sent");
    }
    chunks(data, cut);
    requests(data, cut);
}

/// Requests do not depend on how their bytes are cut; only how soon a fault is found does.
fn requests(data: &[u8], cut: usize) {
    let (whole, of_whole) = served(data, data.len());
    let (pieces, of_pieces) = served(data, cut);
    let (fewer, more) = if whole.len() < pieces.len() { (whole, pieces) } else { (pieces, whole) };
    assert!(more.starts_with(&fewer), "requests depend on the cuts");
    assert!(of_whole || of_pieces || fewer.len() == more.len(), "a request is there in one way only");
}

/// Each whole request's target and body; and whether the connection ended for a fault.
fn served(data: &[u8], step: usize) -> (Vec<(String, Vec<u8>)>, bool) {
    let mut requests = Requests::new(BODY_BYTES_MAX);
    let (mut served, mut target, mut body) = (Vec::new(), String::new(), Vec::new());
    for piece in data.chunks(step.max(1)) {
        requests.hear(piece);
        loop {
            match requests.next(&mut body) {
                Ok(None) => break,
                Ok(Some(Part::Head(head))) => target = head.target,
                Ok(Some(Part::Body)) => assert!(body.len() as u64 <= BODY_BYTES_MAX, "a body over its limit"),
                Ok(Some(Part::End)) => {
                    served.push((std::mem::take(&mut target), std::mem::take(&mut body)));
                    assert!(requests.is_whole());
                    requests.on_answered();
                }
                Err(fault) => {
                    assert_eq!(requests.next(&mut body), Err(fault));
                    return (served, true);
                }
            }
        }
    }
    (served, false)
}

/// What `decode` says of `data` must not depend on what is behind the head, nor be less bad than what it says of its beginning.
fn head<T: Clone + Debug + PartialEq>(
    data: &[u8],
    cut: usize,
    decode: fn(&[u8]) -> Result<Decoded<T>, HeadError>,
) -> Option<T> {
    let whole = decode(data);
    match decode(&data[..cut.min(data.len())]) {
        Ok(Decoded::Partial) => {}
        Ok(complete) => assert_eq!(whole, Ok(complete), "a head needs what follows it"),
        Err(_) => assert!(whole.is_err(), "a head whose beginning was faulty is sound"),
    }
    let Ok(Decoded::Complete { head, consumed }) = whole else { return None };
    assert_eq!(decode(&data[..consumed]), Ok(Decoded::Complete { head: head.clone(), consumed }));
    assert_eq!(decode(&data[..consumed - 1]), Ok(Decoded::Partial), "a head is there before its last byte");
    Some(head)
}

fn chunks(data: &[u8], cut: usize) {
    let mut whole = Vec::new();
    let of_whole = ChunkDecoder::new(BODY_BYTES_MAX).decode(data, &mut whole);
    assert!(whole.len() as u64 <= BODY_BYTES_MAX, "a body over its limit");
    let (mut decoder, mut pieces) = (ChunkDecoder::new(BODY_BYTES_MAX), Vec::new());
    let (mut consumed, mut is_done) = (0, false);
    let mut of_pieces = Ok(());
    for piece in data.chunks(cut.max(1)) {
        match decoder.decode(piece, &mut pieces) {
            Ok(progress) => {
                assert!(progress.is_done || progress.consumed == piece.len(), "bytes of a body are left");
                (consumed, is_done) = (consumed + progress.consumed, progress.is_done);
            }
            Err(error) => of_pieces = Err(error),
        }
        if is_done || of_pieces.is_err() {
            break;
        }
    }
    assert_eq!(
        of_whole.map(|progress| (progress.consumed, progress.is_done)),
        of_pieces.map(|()| (consumed, is_done)),
        "it depends on the cuts"
    );
    assert_eq!(whole, pieces, "a body depends on the cuts");
}
