//! What must hold of every body, and values to try it with.
//!
//! Tests of the modules that own a body make values of it and hand them to [`hold_for`]. Nothing here knows what a body means.

use std::fmt::Debug;

use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};

use super::{CodecError, VERSION, decode, decode_versioned, encode, encode_versioned};
use crate::action::Parameters;
use crate::ids::{BootId, DeviceId, SessionNumber, SiteCode, TaskId, UnixMillis};
use crate::result::SignedResult;
use crate::signature::Signature;
use crate::state::TaskState;
use crate::target_set::TargetDigest;

/// A body reads back as it was written; no part of it reads as the whole; what follows it is an error, but for a newer minor
/// version; and no altered byte makes reading it panic.
pub(crate) fn hold_for<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let mut bytes = Vec::new();
    encode(value, &mut bytes);
    assert_eq!(decode::<T>("body", VERSION, &bytes).as_ref(), Ok(value));
    assert_eq!(decode_versioned::<T>("body", &encode_versioned(value)).as_ref(), Ok(value));
    for cut in 0..bytes.len() {
        let torn = decode::<T>("body", VERSION, &bytes[..cut]);
        assert_eq!(torn, Err(CodecError::Malformed("body")), "{cut} of {} bytes", bytes.len());
    }
    assert_eq!(decode::<T>("body", 0x20, &bytes), Err(CodecError::Version(0x20)));
    for at in 0..bytes.len() {
        for altered in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] = altered;
            let _ = decode::<T>("body", VERSION, &bytes);
        }
    }
    bytes.push(0);
    let trailing = CodecError::Trailing { what: "body", bytes: 1 };
    assert_eq!(decode::<T>("body", VERSION, &bytes), Err(trailing));
    assert_eq!(decode::<T>("body", VERSION + 1, &bytes).as_ref(), Ok(value));
}

pub(crate) fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

pub(crate) fn text() -> impl Strategy<Value = String> {
    "[a-zäß0-9 €.-]{0,20}"
}

pub(crate) fn device() -> impl Strategy<Value = DeviceId> {
    any::<u32>().prop_map(DeviceId)
}

pub(crate) fn task() -> impl Strategy<Value = TaskId> {
    any::<[u8; 16]>().prop_map(TaskId::from_bytes)
}

pub(crate) fn boot() -> impl Strategy<Value = BootId> {
    any::<[u8; 16]>().prop_map(BootId)
}

pub(crate) fn session() -> impl Strategy<Value = SessionNumber> {
    any::<u64>().prop_map(SessionNumber)
}

pub(crate) fn time() -> impl Strategy<Value = UnixMillis> {
    any::<u64>().prop_map(UnixMillis)
}

pub(crate) fn site() -> impl Strategy<Value = SiteCode> {
    "[A-Z0-9]{3}".prop_map(|code| code.parse().unwrap())
}

pub(crate) fn state() -> impl Strategy<Value = TaskState> {
    prop::sample::select(&TaskState::ALL[..])
}

pub(crate) fn digest() -> impl Strategy<Value = TargetDigest> {
    any::<([u8; 32], u32)>().prop_map(|(root, blocks)| TargetDigest { root, blocks })
}

pub(crate) fn parameters() -> impl Strategy<Value = Parameters> {
    prop_oneof![
        bytes().prop_map(Parameters::Inline),
        any::<([u8; 32], u64)>().prop_map(|(digest, bytes)| Parameters::Blob { digest, bytes }),
    ]
}

pub(crate) fn signature() -> impl Strategy<Value = Signature> {
    (any::<[u8; 8]>(), prop::array::uniform32(any::<u8>())).prop_map(|(key, half)| {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&half);
        Signature { key: crate::ids::KeyId(key), bytes }
    })
}

pub(crate) fn signed_result() -> impl Strategy<Value = SignedResult> {
    (bytes(), signature(), bytes()).prop_map(|(statement, signature, output)| SignedResult {
        statement,
        signature,
        output,
    })
}
