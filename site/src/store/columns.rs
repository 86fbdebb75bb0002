//! How the protocol's values stand in SQLite's columns: there are signed 64-bit integers only.

use bgb_protocol::codec::CodecError;
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::queue::{Bitmap, read_bitmap};
use roaring::RoaringBitmap;

use crate::error::SiteError;

/// A count, or a number that is compared; what does not fit stays at the far end.
pub(crate) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The way back; no column holds a negative number of this kind.
pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A time.
pub(crate) fn millis(time: UnixMillis) -> i64 {
    integer(time.0)
}

/// The way back.
pub(crate) fn time(value: i64) -> UnixMillis {
    UnixMillis(unsigned(value))
}

/// Random bits: compared for equality only.
pub(crate) fn bits(value: u64) -> i64 {
    value.cast_signed()
}

/// A device's number as it stands in a column whose CHECK bounds it.
pub(crate) fn device_number(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A set of devices as bytes.
pub(crate) fn set_bytes(devices: &RoaringBitmap) -> Vec<u8> {
    Bitmap::of(devices).0
}

/// The way back.
pub(crate) fn read_set(bytes: &[u8]) -> Result<RoaringBitmap, SiteError> {
    read_bitmap(bytes).map_err(|error| damaged(&error))
}

/// What we wrote ourselves and cannot read.
pub(crate) fn damaged(error: &CodecError) -> SiteError {
    SiteError::Corrupt(error.to_string())
}
