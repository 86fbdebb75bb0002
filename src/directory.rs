//! The directory: which shard has a device's newest session.
//!
//! The only map that the shards share. A shard claims a device when its hello comes; whoever held it before, if its session is
//! the older one, is told to let go. A shard removes a device only if the entry is still its own: the news that an old
//! session ended must not hide the new one.
//!
//! Locks are held for one look-up each, never over I/O; the map is cut into parts so that shards rarely meet.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bgb_hub::{ChannelKey, newest};
use bgb_protocol::ids::{BootId, DeviceId, SessionNumber};
use parking_lot::Mutex;

/// Parts of the map. A power of two, well above the number of reactors that one machine runs.
const PARTS: usize = 64;

/// Number of a reactor and its hub within the server, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// Where a device's session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The shard.
    pub shard: ShardId,
    /// Its channel there.
    pub channel: ChannelKey,
}

/// What came of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is the newest session; the one before it, if any, is to be told.
    Granted {
        /// Whoever held the device until now.
        displaced: Option<Place>,
        /// Numbers the claims of this server that were granted: of two of a device, the later one has the higher number, whatever
        /// clocks say.
        number: u64,
    },
    /// The device has a newer session.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    place: Place,
    stamp: Stamp,
}

/// Which session of a device: its boot and its number.
pub type Stamp = (BootId, SessionNumber);

/// See the module.
#[derive(Debug)]
pub struct Directory {
    parts: [Mutex<HashMap<DeviceId, Entry>>; PARTS],
    granted: AtomicU64,
}

impl Default for Directory {
    fn default() -> Self {
        Self { parts: std::array::from_fn(|_| Mutex::default()), granted: AtomicU64::new(0) }
    }
}

impl Directory {
    /// A session says that it is the device's newest.
    pub fn claim(&self, device: DeviceId, stamp: Stamp, place: Place) -> Claim {
        let mut part = self.part(device).lock();
        let displaced = match part.get(&device) {
            Some(present) if present.place == place => None,
            Some(present) if !newest::wins(stamp, present.stamp) => return Claim::Refused,
            present => present.map(|present| present.place),
        };
        part.insert(device, Entry { place, stamp });
        // Under the lock: so the numbers of a device follow its claims.
        let number = self.granted.fetch_add(1, Ordering::Relaxed) + 1;
        Claim::Granted { displaced, number }
    }

    /// A session is over. Nothing happens when the device has another by now.
    pub fn release(&self, device: DeviceId, place: Place) {
        let mut part = self.part(device).lock();
        if part.get(&device).is_some_and(|present| present.place == place) {
            part.remove(&device);
        }
    }

    /// How many devices have a session.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.lock().len()).sum()
    }

    /// Whether no device has one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn part(&self, device: DeviceId) -> &Mutex<HashMap<DeviceId, Entry>> {
        &self.parts[device.0 as usize % PARTS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(session: u64) -> Stamp {
        (BootId([1; 16]), SessionNumber(session))
    }

    fn place(shard: u16, index: u32) -> Place {
        Place { shard: ShardId(shard), channel: ChannelKey { index, generation: 0 } }
    }

    const DEVICE: DeviceId = DeviceId(70);

    #[test]
    fn the_newest_session_wins_whatever_comes_first() {
        let directory = Directory::default();
        let first = Claim::Granted { displaced: None, number: 1 };
        assert_eq!(directory.claim(DEVICE, stamp(2), place(0, 1)), first);
        assert_eq!(directory.claim(DEVICE, stamp(1), place(1, 1)), Claim::Refused);
        let displaced = Some(place(0, 1));
        assert_eq!(directory.claim(DEVICE, stamp(3), place(1, 1)), Claim::Granted { displaced, number: 2 });
        assert_eq!(directory.len(), 1);
    }

    #[test]
    fn only_the_present_holder_removes_a_device() {
        let directory = Directory::default();
        directory.claim(DEVICE, stamp(1), place(0, 1));
        directory.claim(DEVICE, stamp(2), place(1, 9));
        directory.release(DEVICE, place(0, 1));
        assert_eq!(directory.len(), 1, "the old holder's end changes nothing");
        directory.release(DEVICE, place(1, 9));
        assert!(directory.is_empty());
    }
}
