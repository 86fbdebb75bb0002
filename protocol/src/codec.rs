//! Versioned bodies: postcard behind a version byte.
//!
//! Every body that may change with a release is written as postcard (serde's fields in order, integers as varints;
//! `docs/protocol.md` has the rules) and goes with a version byte: the major version in the high four bits, the minor
//! one in the low four. A decoder refuses another major version. Within a major version fields are only ever added
//! at the end: bytes after the last known field are skipped when the minor version is higher than ours, and are an
//! error when it is not.

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Version of every body that this release writes: 1.0.
pub const VERSION: u8 = 0x10;

/// Why a body was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodecError {
    /// Another major version than ours.
    #[error(
        "version {major}.{minor} is not understood here (this release reads 1.x); upgrade this side first",
        major = .0 >> 4, minor = .0 & 15
    )]
    Version(u8),
    /// The bytes are not a body of this type.
    #[error("the bytes are not a well-formed {0}")]
    Malformed(&'static str),
    /// Bytes follow the last field although the version is not a newer one.
    #[error("{bytes} bytes follow the end of a {what}")]
    Trailing {
        /// The type's name.
        what: &'static str,
        /// How many bytes too many.
        bytes: usize,
    },
    /// Well-formed, but over a limit of the protocol.
    #[error("{what}: {found} is over the limit of {limit}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// What was found.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Well-formed, but a text with control characters where they have no business.
    #[error("{0} holds control characters")]
    Control(&'static str),
    /// Well-formed, but under what the protocol asks for at least.
    #[error("{what}: {found} is under the least of {least}")]
    Least {
        /// What has a least.
        what: &'static str,
        /// What was found.
        found: usize,
        /// The least.
        least: usize,
    },
}

/// Appends `body` to `out`.
pub fn encode<T: Serialize>(body: &T, out: &mut Vec<u8>) {
    let bytes = postcard::to_allocvec(body).expect("bodies hold no type that postcard cannot write");
    out.extend_from_slice(&bytes);
}

/// Reads a body of the version `version`; `what` names the type in errors.
///
/// # Errors
/// As [`CodecError`] says; never panics, whatever the bytes.
pub fn decode<T: DeserializeOwned>(what: &'static str, version: u8, bytes: &[u8]) -> Result<T, CodecError> {
    if version >> 4 != VERSION >> 4 {
        return Err(CodecError::Version(version));
    }
    let (body, rest) = postcard::take_from_bytes(bytes).map_err(|_| CodecError::Malformed(what))?;
    if !rest.is_empty() && version <= VERSION {
        return Err(CodecError::Trailing { what, bytes: rest.len() });
    }
    Ok(body)
}

/// A body with its version byte in front: the form that is signed, and that queue rows and file rows have.
#[must_use]
pub fn encode_versioned<T: Serialize>(body: &T) -> Vec<u8> {
    let mut out = vec![VERSION];
    encode(body, &mut out);
    out
}

/// Reads what [`encode_versioned`] wrote.
///
/// # Errors
/// As [`CodecError`] says.
pub fn decode_versioned<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    let (version, body) = bytes.split_first().ok_or(CodecError::Malformed(what))?;
    decode(what, *version, body)
}

/// Appends `value` as a varint: seven bits a byte, least significant first, high bit set on all but the last.
pub fn encode_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
pub(crate) mod laws;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_minor_version_may_bring_more_fields() {
        let mut bytes = Vec::new();
        encode(&(7_u32, 9_u32), &mut bytes);
        assert_eq!(decode::<u32>("number", 0x11, &bytes), Ok(7));
        assert_eq!(
            decode::<u32>("number", 0x10, &bytes),
            Err(CodecError::Trailing { what: "number", bytes: 1 })
        );
    }

    #[test]
    fn another_major_version_is_refused() {
        assert_eq!(decode::<u32>("number", 0x20, &[7]), Err(CodecError::Version(0x20)));
        assert_eq!(decode_versioned::<u32>("number", &[]), Err(CodecError::Malformed("number")));
    }

    #[test]
    fn varints_are_those_of_postcard() {
        for value in [0, 1, 127, 128, 300, 65_535, u64::from(u32::MAX), u64::MAX] {
            let mut ours = Vec::new();
            encode_varint(value, &mut ours);
            assert_eq!(ours, postcard::to_allocvec(&value).unwrap());
        }
    }
}
