//! Records of a connection at rest: an opposite end that says whatever the input wants, on a stream that the input may damage and cuts at will.
//!
//! Laws: what comes out is what was said, in its order, and nothing of it after the first thing that is not as it must be; nothing is answered
//! before the end; the end is one alert, and nothing follows it.

use bgb_server::tls::opposite::{Heard, OppositeEnd};

use crate::bytes::Bytes;

/// Content types that a record may bear: change_cipher_spec, alert, handshake, application data, and none at all.
const KINDS: [u8; 5] = [20, ALERT, 22, APPLICATION_DATA, 0];
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;
/// A warning that is passed over: user_canceled (RFC 8446, 6.1).
const USER_CANCELED: [u8; 2] = [1, 90];
/// Records in a row that may say nothing.
const SILENT_MAX: u32 = 32;

/// What was said, up to the first thing that is not as it must be.
#[derive(Default)]
struct Said {
    plaintext: Vec<u8>,
    silent: u32,
    is_unsound: bool,
}

impl Said {
    /// A record of this kind; of kind 0 its own last byte that is not zero says what it is.
    fn add(&mut self, kind: u8, said: &[u8]) {
        let (kind, content) = match (kind, said.iter().rposition(|byte| *byte != 0)) {
            (0, Some(at)) => (said[at], &said[..at]),
            (0, None) => (0, said),
            _ => (kind, said),
        };
        let is_data = kind == APPLICATION_DATA;
        self.silent = if is_data && !content.is_empty() { 0 } else { self.silent + 1 };
        self.is_unsound |=
            self.silent > SILENT_MAX || !(is_data || (kind, content) == (ALERT, &USER_CANCELED));
        if is_data && !self.is_unsound {
            self.plaintext.extend_from_slice(content);
        }
    }
}

pub(crate) fn records(input: &[u8]) {
    let mut bytes = Bytes(input);
    let (mut session, mut opposite) = OppositeEnd::of_a_connection_at_rest(bytes.byte() & 1 == 1);
    let (mut stream, mut said, mut heard): (Vec<u8>, Said, Vec<u8>) = Default::default();
    while !bytes.is_empty() {
        match bytes.below(7) {
            0 | 1 => {
                let piece = bytes.piece();
                said.add(APPLICATION_DATA, piece);
                opposite.say(APPLICATION_DATA, piece, &mut stream);
            }
            2 => {
                let kind = KINDS[usize::from(bytes.below(KINDS.len() as u8))];
                let piece = bytes.piece();
                said.add(kind, piece);
                opposite.say(kind, piece, &mut stream);
            }
            3 => {
                let piece = bytes.piece();
                stream.extend_from_slice(piece);
                said.is_unsound |= !piece.is_empty();
            }
            // Once: a second time might mend it.
            4 if !stream.is_empty() && !said.is_unsound => {
                let at = bytes.wide() as usize % stream.len();
                stream[at] ^= bytes.byte().max(1);
                said.is_unsound = true;
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
                assert!(said.plaintext.starts_with(&heard), "what comes out is what was said");
                match fed {
                    Ok(fed) if !fed.peer_closed => {
                        assert!(answered.is_empty(), "nothing is answered before the end");
                    }
                    ended => {
                        assert!(said.is_unsound, "it ends, and nothing was wrong");
                        return end(session, &mut opposite, ended.is_ok(), answered);
                    }
                }
            }
        }
    }
    if !said.is_unsound {
        assert!(session.feed(&mut stream, &mut heard, &mut Vec::new()).is_ok());
        assert_eq!(heard, said.plaintext, "all of it");
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
    let told = answered.len();
    session.close(&mut answered);
    assert!(in_good_order || answered.len() == told, "a fault is told once");
    let length = answered.len();
    session.seal(b"more", &mut answered);
    session.close(&mut answered);
    assert_eq!(answered.len(), length, "nothing follows the end");
    let heard = opposite.hear(&mut answered);
    assert_eq!(heard, Some(Heard { plaintext: Vec::new(), is_over: true }), "the end is told once");
}
