//! Frames: how messages lie in a session's byte stream.
//!
//! A frame is a header of 6 bytes and a body: type (u16), version (u8, see [`crate::codec`]), length of the body
//! (u24), all big-endian. A body has 64 KiB at most.
//!
//! Decoding works on whatever bytes are there and keeps no state: a caller that got `None` reads on and asks again
//! with more. So a stream decodes the same however it is split. What a type means is [`crate::message`]'s business.

use thiserror::Error;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 6;

/// Most bytes that a frame's body may have.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Types from this one on may be skipped by a side that does not know them; unknown ones below it end the session.
pub const SKIPPABLE_FROM: u16 = 0x8000;

/// One whole frame, its body borrowed from the stream's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the body is.
    pub kind: u16,
    /// Version of the body: major in the high four bits, minor in the low four.
    pub version: u8,
    /// The body, 64 KiB at most.
    pub body: &'a [u8],
}

/// Why the stream cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The header announces a body over [`BODY_BYTES_MAX`].
    #[error("a frame of type {kind:#06x} announces {bytes} bytes; the limit is {BODY_BYTES_MAX}")]
    Oversized {
        /// The frame's type.
        kind: u16,
        /// The announced length in bytes.
        bytes: usize,
    },
}

impl<'a> Frame<'a> {
    /// The first frame of `bytes` and how many bytes it takes, or `None` when it is not whole yet.
    ///
    /// # Errors
    /// [`FrameError::Oversized`] as soon as the header says so, before any of the body has come.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [kind_high, kind_low, version, length @ ..] = *header;
        let kind = u16::from_be_bytes([kind_high, kind_low]);
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
        if length > BODY_BYTES_MAX {
            return Err(FrameError::Oversized { kind, bytes: length });
        }
        match rest.get(..length) {
            Some(body) => Ok(Some((Self { kind, version, body }, HEADER_BYTES + length))),
            None => Ok(None),
        }
    }
}

/// Appends a frame whose body is written by `body`.
///
/// # Panics
/// When the body outgrows [`BODY_BYTES_MAX`]: what this side sends is bounded where it is made.
pub fn encode(kind: u16, version: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&header(kind, version, 0));
    body(out);
    let length = out.len() - start - HEADER_BYTES;
    out[start..start + HEADER_BYTES].copy_from_slice(&header(kind, version, length));
}

/// The header of a frame whose body has `length` bytes.
///
/// # Panics
/// When `length` is over [`BODY_BYTES_MAX`].
#[must_use]
pub fn header(kind: u16, version: u8, length: usize) -> [u8; HEADER_BYTES] {
    assert!(length <= BODY_BYTES_MAX, "a frame's body is bounded where it is made");
    let [kind_high, kind_low] = kind.to_be_bytes();
    let [_, high, middle, low] = (length as u32).to_be_bytes();
    [kind_high, kind_low, version, high, middle, low]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_oversized_frame_is_refused_at_its_header() {
        let bytes = [0, 1, 0x10, 0x01, 0x00, 0x01];
        assert_eq!(Frame::decode(&bytes), Err(FrameError::Oversized { kind: 1, bytes: 65_537 }));
        let largest = [0, 1, 0x10, 0x01, 0x00, 0x00];
        assert_eq!(Frame::decode(&largest), Ok(None));
    }

    proptest! {
        #[test]
        fn a_stream_decodes_the_same_however_it_is_split(
            frames in prop::collection::vec((any::<u16>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cuts in prop::collection::vec(1usize..64, 1..40),
        ) {
            let mut stream = Vec::new();
            for (kind, version, body) in &frames {
                encode(*kind, *version, &mut stream, |out| out.extend_from_slice(body));
            }
            let mut seen = Vec::new();
            let mut held = Vec::new();
            let mut rest = &stream[..];
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let take = (*cuts.next().unwrap()).min(rest.len());
                held.extend_from_slice(&rest[..take]);
                rest = &rest[take..];
                let mut from = 0;
                while let Some((frame, used)) = Frame::decode(&held[from..]).unwrap() {
                    seen.push((frame.kind, frame.version, frame.body.to_vec()));
                    from += used;
                }
                held.drain(..from);
            }
            prop_assert!(held.is_empty());
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::decode(&bytes);
        }
    }
}
