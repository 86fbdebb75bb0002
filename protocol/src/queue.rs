//! Rows of the queue: all that goes down from the site to its notification servers.
//!
//! The manager writes them, in the transaction of what they are about; servers only read them, everything that is still valid at
//! their start, then what follows. A row's payload is a [`QueueItem`] behind a version byte.

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::ids::{BootId, DeviceId, SessionNumber, TaskId, UnixMillis};

/// One row's meaning. New kinds are added at the end, and a server passes over one that it does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueItem {
    /// A task's content. It pushes nothing by itself.
    Task {
        /// Signed bytes of a [`crate::task::SignedTask`].
        #[serde(with = "serde_bytes")]
        signed: Vec<u8>,
        /// The whole target set: a Roaring bitmap in its portable form.
        #[serde(with = "serde_bytes")]
        targets: Vec<u8>,
    },
    /// Targets of a task that may have it now.
    Release {
        /// The task.
        task: TaskId,
        /// The devices, as a Roaring bitmap in its portable form; `None` for all targets.
        devices: Option<Bitmap>,
        /// From when on.
        from: UnixMillis,
    },
    /// A task ends.
    Cancel {
        /// Signed bytes of a [`crate::task::SignedCancel`].
        #[serde(with = "serde_bytes")]
        signed: Vec<u8>,
    },
    /// A device may not sign in, and loses the session that it has.
    Block {
        /// The device.
        device: DeviceId,
    },
    /// A device may sign in again.
    Unblock {
        /// The device.
        device: DeviceId,
    },
    /// A certificate counts no more.
    Revoke {
        /// SHA-256 of the certificate's DER form.
        fingerprint: [u8; 32],
    },
    /// A policy document.
    Policy {
        /// Signed bytes of a [`crate::policy::SignedPolicy`].
        #[serde(with = "serde_bytes")]
        signed: Vec<u8>,
        /// The devices that it is for, as a Roaring bitmap in its portable form; `None` for everyone.
        devices: Option<Bitmap>,
    },
    /// A device has a newer session on another server: end the one that you have, if it is this one or an older one.
    Supersede {
        /// The device.
        device: DeviceId,
        /// Boot of the session that ends.
        boot: BootId,
        /// Number of the session that ends.
        session: SessionNumber,
    },
    /// How far the queue has come, and the time.
    Head {
        /// Signed bytes of a [`crate::head::SignedHead`].
        #[serde(with = "serde_bytes")]
        signed: Vec<u8>,
    },
}

/// A set of devices as the bytes of a Roaring bitmap in its portable form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bitmap(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl QueueItem {
    /// The payload's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        codec::encode_versioned(self)
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`CodecError`] when it is malformed, of another major version or of a kind that is not known here.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode_versioned("queue row", bytes)
    }

    /// The kind's name, as it stands beside the payload for people who look into the database.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Task { .. } => "task",
            Self::Release { .. } => "release",
            Self::Cancel { .. } => "cancel",
            Self::Block { .. } => "block",
            Self::Unblock { .. } => "unblock",
            Self::Revoke { .. } => "revoke",
            Self::Policy { .. } => "policy",
            Self::Supersede { .. } => "supersede",
            Self::Head { .. } => "head",
        }
    }
}

impl Bitmap {
    /// The portable form of `devices`.
    #[must_use]
    pub fn of(devices: &roaring::RoaringBitmap) -> Self {
        let mut bytes = Vec::with_capacity(devices.serialized_size());
        devices.serialize_into(&mut bytes).expect("writing into memory does not fail");
        Self(bytes)
    }

    /// The set.
    ///
    /// # Errors
    /// [`CodecError::Malformed`].
    pub fn read(&self) -> Result<roaring::RoaringBitmap, CodecError> {
        read_bitmap(&self.0)
    }
}

/// Reads a Roaring bitmap in its portable form. Memory stays within some ten times the bytes: runs are not unfolded.
///
/// # Errors
/// [`CodecError::Malformed`], or [`CodecError::Trailing`] when bytes follow it.
pub fn read_bitmap(bytes: &[u8]) -> Result<roaring::RoaringBitmap, CodecError> {
    let what = "set of devices";
    let mut rest = bytes;
    let devices =
        roaring::RoaringBitmap::deserialize_from(&mut rest).map_err(|_| CodecError::Malformed(what))?;
    if rest.is_empty() { Ok(devices) } else { Err(CodecError::Trailing { what, bytes: rest.len() }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::laws::{boot, bytes, device, hold_for, session, task, time};

    fn set() -> impl Strategy<Value = roaring::RoaringBitmap> {
        let ranges = prop::collection::vec((any::<u32>(), 0u32..10_000), 0..4);
        ranges.prop_map(|ranges| {
            let mut devices = roaring::RoaringBitmap::new();
            for (first, count) in ranges {
                devices.insert_range(first..=first.saturating_add(count));
            }
            devices
        })
    }

    fn item() -> impl Strategy<Value = QueueItem> {
        let bitmap = || prop::option::of(bytes().prop_map(Bitmap));
        prop_oneof![
            (bytes(), bytes()).prop_map(|(signed, targets)| QueueItem::Task { signed, targets }),
            (task(), bitmap(), time()).prop_map(|(task, devices, from)| QueueItem::Release {
                task,
                devices,
                from
            }),
            bytes().prop_map(|signed| QueueItem::Cancel { signed }),
            device().prop_map(|device| QueueItem::Block { device }),
            device().prop_map(|device| QueueItem::Unblock { device }),
            any::<[u8; 32]>().prop_map(|fingerprint| QueueItem::Revoke { fingerprint }),
            (bytes(), bitmap()).prop_map(|(signed, devices)| QueueItem::Policy { signed, devices }),
            (device(), boot(), session()).prop_map(|(device, boot, session)| QueueItem::Supersede {
                device,
                boot,
                session
            }),
            bytes().prop_map(|signed| QueueItem::Head { signed }),
        ]
    }

    proptest! {
        #[test]
        fn a_row_keeps_the_laws_of_the_codec(item in item()) {
            hold_for(&item);
        }

        #[test]
        fn a_set_of_devices_reads_back_whole_or_not_at_all(devices in set(), cut in any::<prop::sample::Index>()) {
            let bitmap = Bitmap::of(&devices);
            prop_assert_eq!(bitmap.read().unwrap(), devices);
            let torn = &bitmap.0[..cut.index(bitmap.0.len())];
            prop_assert_eq!(read_bitmap(torn), Err(CodecError::Malformed("set of devices")));
            let longer = [&bitmap.0[..], &[0]].concat();
            prop_assert_eq!(read_bitmap(&longer), Err(CodecError::Trailing { what: "set of devices", bytes: 1 }));
        }

        #[test]
        fn a_set_of_arbitrary_bytes_is_no_panic(
            devices in set(), at in any::<prop::sample::Index>(), altered in any::<u8>(), garbage in bytes(),
        ) {
            let Bitmap(mut bytes) = Bitmap::of(&devices);
            let at = at.index(bytes.len());
            bytes[at] = altered;
            if let Ok(read) = read_bitmap(&bytes) {
                // What was taken can be worked with.
                prop_assert!(Bitmap::of(&(&read | &devices)).read().is_ok());
            }
            let _ = read_bitmap(&garbage);
        }
    }

    #[test]
    fn a_row_reads_back_as_it_was_written() {
        let devices = (0..5_000).step_by(3).collect();
        let item = QueueItem::Release {
            task: TaskId::from_bytes([4; 16]),
            devices: Some(Bitmap::of(&devices)),
            from: UnixMillis(77),
        };
        assert_eq!(QueueItem::decode(&item.encode()), Ok(item.clone()));
        let QueueItem::Release { devices: Some(read), .. } = item else { unreachable!("made above") };
        assert_eq!(read.read().unwrap(), devices);
    }

    #[test]
    fn a_kind_from_a_later_release_is_an_error_and_no_panic() {
        assert!(QueueItem::decode(&[codec::VERSION, 0x7f, 1, 2, 3]).is_err());
    }
}
