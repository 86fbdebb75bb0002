//! What an action says, kept within its limit while it says it: the head and the tail, never all of it in memory.
//!
//! It owns at most one and a half times the limit and knows nothing of what is said. Law: what comes out is what
//! [`cut_output`](bgb_protocol::result::cut_output) would have made of the whole, and is UTF-8.

use std::collections::VecDeque;

use bgb_protocol::action::OUTPUT_BYTES_MAX;
use bgb_protocol::result::cut_output;

/// What is kept at either end when not all can be: room for the line between them stays, as in `cut_output`.
const HALF_BYTES: usize = (OUTPUT_BYTES_MAX - 64) / 2;

/// Head and tail of an output.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// The first bytes, all of them while they fit.
    head: Vec<u8>,
    /// The last bytes, as soon as they no longer fit.
    tail: VecDeque<u8>,
    bytes: u64,
}

impl Output {
    /// Takes more of it.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        let room = OUTPUT_BYTES_MAX - self.head.len();
        self.head.extend_from_slice(&bytes[..room.min(bytes.len())]);
        let last = &bytes[bytes.len().saturating_sub(HALF_BYTES)..];
        self.tail.extend(last);
        let surplus = self.tail.len().saturating_sub(HALF_BYTES);
        self.tail.drain(..surplus);
    }

    /// What is kept, as text.
    pub(crate) fn into_text(self) -> Vec<u8> {
        if self.bytes <= OUTPUT_BYTES_MAX as u64 {
            return as_text(self.head);
        }
        let mut kept = self.head;
        kept.truncate(HALF_BYTES);
        let left_out = self.bytes - 2 * HALF_BYTES as u64;
        kept.extend_from_slice(format!("\n[… {left_out} bytes left out …]\n").as_bytes());
        kept.extend(self.tail);
        as_text(kept)
    }
}

/// Bytes that are no UTF-8 are replaced; if it grows over the limit by that, it is cut.
fn as_text(bytes: Vec<u8>) -> Vec<u8> {
    match String::from_utf8(bytes) {
        Ok(text) => text.into_bytes(),
        Err(error) => cut_output(String::from_utf8_lossy(error.as_bytes()).into_owned().into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_output_is_not_held_in_memory() {
        let mut output = Output::default();
        for _ in 0..1_000 {
            output.push(&[b'x'; 10_000]);
        }
        assert!(output.head.capacity() + output.tail.capacity() <= 4 * OUTPUT_BYTES_MAX);
        assert!(output.into_text().len() <= OUTPUT_BYTES_MAX);
    }

    #[test]
    fn bytes_that_are_no_text_become_text_within_the_limit() {
        let mut output = Output::default();
        output.push(&[0xff; OUTPUT_BYTES_MAX]);
        let text = output.into_text();
        assert!(text.len() <= OUTPUT_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_cutting_the_whole_gives(
            parts in prop::collection::vec((0usize..40_000, prop::char::range('a', 'z')), 0..8),
        ) {
            let mut output = Output::default();
            let mut whole = Vec::new();
            for (count, letter) in parts {
                let part = vec![letter as u8; count];
                output.push(&part);
                whole.extend(part);
            }
            prop_assert_eq!(output.into_text(), cut_output(whole));
        }
    }
}
