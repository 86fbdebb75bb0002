//! HTTP/1.1 heads and chunked bodies.

use bgb_http::{BodyLength, ChunkDecoder, Decoded, RequestHead, ResponseHead};

use crate::bytes::Bytes;

/// Most bytes of a body.
const BODY_BYTES_MAX: u64 = 4_096;

/// A head is the same however much follows it, and a body the same however it is cut.
pub(crate) fn http(data: &[u8]) {
    let mut bytes = Bytes(data);
    let cut = bytes.byte();
    let data = bytes.0;
    if let Ok(Decoded::Complete { head, consumed }) = RequestHead::decode(data) {
        assert!(consumed <= data.len());
        assert!(
            matches!(RequestHead::decode(&data[..consumed]), Ok(Decoded::Complete { consumed: again, .. }) if again == consumed),
            "a head needs what follows it"
        );
        let _ = (head.path(), head.query(), head.keep_alive(), head.expects_continue());
        let _ = BodyLength::of_request(&head);
    }
    if let Ok(Decoded::Complete { head, consumed }) = ResponseHead::decode(data) {
        assert!(consumed <= data.len());
        let _ = BodyLength::of_response(&head, "GET");
    }
    let mut whole = Vec::new();
    let of_whole = ChunkDecoder::new(BODY_BYTES_MAX).decode(data, &mut whole);
    assert!(whole.len() as u64 <= BODY_BYTES_MAX, "a body over its limit");
    let (mut decoder, mut pieces) = (ChunkDecoder::new(BODY_BYTES_MAX), Vec::new());
    let mut is_done = false;
    let mut of_pieces = Ok(());
    for piece in data.chunks(usize::from(cut).max(1)) {
        match decoder.decode(piece, &mut pieces) {
            Ok(progress) if progress.is_done => {
                is_done = true;
                break;
            }
            Ok(_) => {}
            Err(error) => {
                of_pieces = Err(error);
                break;
            }
        }
    }
    assert_eq!(
        of_whole.map(|progress| progress.is_done),
        of_pieces.map(|()| is_done),
        "it depends on the cuts"
    );
    assert_eq!(whole, pieces, "a body depends on the cuts");
}
