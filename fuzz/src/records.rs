//! Records of a connection at rest: an opposite end that says whatever the input wants, on a stream that the input may damage and cuts at will.
//!
//! Laws: what comes out is what was said, in its order, and nothing of it after the first thing that is not as it must be; nothing is answered
//! before the end; the end is one alert, and nothing follows it.

use bgb_server::tls::opposite::{Heard, OppositeEnd};

use crate::bytes::Bytes;

/// Content types that a record may bear: change_cipher_spec, alert, handshake, application data, and none at all.
const KINDS: [u8; 5] = [20, 21, 22, 23, 0];
const APPLICATION_DATA: u8 = 23;
/// Records in a row that may say nothing.
const SILENT_MAX: u32 = 32;

pub(crate) fn records(input: &[u8]) {
    let mut bytes = Bytes(input);
    let (mut session, mut opposite) = OppositeEnd::of_a_connection_at_rest(bytes.byte() & 1 == 1);
    let (mut stream, mut said, mut heard): (Vec<u8>, Vec<u8>, Vec<u8>) = Default::default();
    let (mut is_sound, mut silent) = (true, 0);
    while !bytes.is_empty() {
        match bytes.below(7) {
            0 | 1 => {
                let piece = bytes.piece();
                silent = if piece.is_empty() { silent + 1 } else { 0 };
                is_sound &= silent <= SILENT_MAX;
                said.extend_from_slice(piece);
                opposite.say(APPLICATION_DATA, piece, &mut stream);
            }
            2 => {
                let kind = KINDS[usize::from(bytes.below(KINDS.len() as u8))];
                let piece = bytes.piece();
                silent = if piece.is_empty() { silent + 1 } else { 0 };
                is_sound &= kind == APPLICATION_DATA && silent <= SILENT_MAX;
                said.extend_from_slice(app_data(kind, piece));
                opposite.say(kind, piece, &mut stream);
            }
            3 => {
                stream.extend_from_slice(bytes.piece());
                is_sound = false;
            }
            4 if !stream.is_empty() => {
                let at = bytes.wide() as usize % stream.len();
                stream[at] ^= bytes.byte().max(1);
                is_sound = false;
            }
            5 => {
                let piece = bytes.piece();
                let mut sealed = Vec::new();
                session.seal(piece, &mut sealed);
                let expected = Heard { plaintext: piece.to_vec(), is_over: false };
                assert_eq!(opposite.hear(&mut sealed), Some(expected), "what is sealed is opened");
            }
            _ => {
                let count = (bytes.wide() as usize).min(stream.len());
                let mut received: Vec<u8> = stream.drain(..count).collect();
                let mut answered = Vec::new();
                let fed = session.feed(&mut received, &mut heard, &mut answered);
                assert!(said.starts_with(&heard), "what comes out is what was said");
                match fed {
                    Ok(fed) if !fed.peer_closed => {
                        assert!(answered.is_empty(), "nothing is answered before the end");
                    }
                    ended => return end(session, &mut opposite, ended.is_ok(), answered),
                }
            }
        }
    }
    if is_sound {
        assert!(session.feed(&mut stream, &mut heard, &mut Vec::new()).is_ok());
        assert_eq!(heard, said, "all of it");
    }
}

/// What of a record counts as said: all of application data, and of what is padded what stands before its type and the zeros after that.
fn app_data(kind: u8, said: &[u8]) -> &[u8] {
    match (kind, said.iter().rposition(|byte| *byte != 0)) {
        (APPLICATION_DATA, _) => said,
        (0, Some(at)) if said[at] == APPLICATION_DATA => &said[..at],
        _ => &[],
    }
}

/// It is over: by a close_notify of the peer's, or for a fault, which is told.
fn end(
    mut session: bgb_server::tls::TlsSession,
    opposite: &mut OppositeEnd,
    in_good_order: bool,
    mut answered: Vec<u8>,
) {
    assert_eq!(
        answered.is_empty(),
        in_good_order,
        "a fault is told, and close_notify waits for what is still to be said"
    );
    session.close(&mut answered);
    let length = answered.len();
    session.seal(b"more", &mut answered);
    session.close(&mut answered);
    assert_eq!(answered.len(), length, "nothing follows the end");
    let heard = opposite.hear(&mut answered);
    assert_eq!(heard, Some(Heard { plaintext: Vec::new(), is_over: true }), "the end is told once");
}
