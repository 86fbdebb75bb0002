//! Presence: who is online at this server, told to the site in `.BOS` files.
//!
//! A full list every five minutes, deltas every few seconds while anything changes. Another full list is due at once when the site's database
//! was restored ([`FullListWanted`]): it has forgotten what deltas have told. Rows wait in their encoded form, some
//! hundred bytes a device, in the order of device numbers, so that a full list is one walk.
//!
//! Each row names its session. A session's end changes the list only if the list still names that very session: the end of an
//! old one, told late, must not hide the new one. Nor must its beginning: two shards tell of their sessions in no order. Which of two began
//! later the number of its claim says (`directory.rs`); its date does not, since clocks are set.
//!
//! [`PresenceList`] is the machine, driven by time and input; its thread is in [`crate::server`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bgb_daemon::clock::Now;
use bgb_daemon::disk::ReplaceError;
use bgb_protocol::codec;
use bgb_protocol::file::presence::PresenceRow;
use bgb_protocol::file::{FileBuilder, FileKind};
use bgb_protocol::ids::{BootId, DeviceId, SessionNumber, UnixMillis};

use crate::outgoing::Outgoing;

/// Somebody wants a full list before its time. Whoever has a clone of it may ask.
#[derive(Clone, Debug, Default)]
pub struct FullListWanted(Arc<AtomicBool>);

impl FullListWanted {
    /// Asks; the list is written as soon as a delta would be.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// What the list holds from now on is what was asked for.
    fn take(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// See the module.
pub struct PresenceList {
    outgoing: Outgoing,
    full_wanted: FullListWanted,
    online: BTreeMap<DeviceId, Row>,
    /// Devices that came or whose row changed since the last file.
    came: BTreeSet<DeviceId>,
    /// Devices that went since the last file, with the row that says so.
    went: BTreeMap<DeviceId, PresenceRow>,
    sequence: u64,
    full_ms: u64,
    delta_ms: u64,
    /// When the next full list is due, and when the last file was written: milliseconds of monotonic time.
    next_full_ms: u64,
    last_file_ms: u64,
}

/// What a shard tells of a session.
#[derive(Clone, Debug)]
pub enum Told {
    /// It began, by the claim of this number.
    Began {
        /// The claim's number.
        claim: u64,
        /// The session.
        row: PresenceRow,
    },
    /// It ended.
    Ended {
        /// The session, and why.
        row: PresenceRow,
    },
}

impl Told {
    /// The row in which it is told on.
    #[must_use]
    pub fn row(&self) -> &PresenceRow {
        match self {
            Self::Began { row, .. } | Self::Ended { row } => row,
        }
    }
}

/// A device's row as it stands in files, and what is needed to know its session again.
#[derive(Debug)]
struct Row {
    boot: BootId,
    session: SessionNumber,
    claim: u64,
    encoded: Box<[u8]>,
}

/// How often files are written.
#[derive(Clone, Copy, Debug)]
pub struct PresencePace {
    /// From one full list to the next, in milliseconds.
    pub full_ms: u64,
    /// From one delta to the next while anything changes, in milliseconds.
    pub delta_ms: u64,
}

impl PresenceList {
    /// An empty list. Its first file is a full one, a delta's time after the start: it tells the site that the sessions of the
    /// server's former life are over, and who is back already.
    #[must_use]
    pub fn new(outgoing: Outgoing, pace: PresencePace, full_wanted: FullListWanted, now: Now) -> Self {
        Self {
            outgoing,
            full_wanted,
            online: BTreeMap::new(),
            came: BTreeSet::new(),
            went: BTreeMap::new(),
            sequence: 0,
            full_ms: pace.full_ms,
            delta_ms: pace.delta_ms,
            next_full_ms: now.mono_ms + pace.delta_ms,
            last_file_ms: now.mono_ms,
        }
    }

    /// A session began or ended.
    pub fn handle_told(&mut self, told: Told) {
        let device = told.row().device;
        match told {
            Told::Began { claim, row } => {
                if self.online.get(&device).is_some_and(|held| claim < held.claim) {
                    return;
                }
                let mut encoded = Vec::with_capacity(160);
                codec::encode(&row, &mut encoded);
                let encoded = encoded.into_boxed_slice();
                self.online.insert(device, Row { boot: row.boot, session: row.session, claim, encoded });
                self.went.remove(&device);
                self.came.insert(device);
            }
            Told::Ended { row } => {
                let same = |held: &Row| (held.boot, held.session) == (row.boot, row.session);
                if self.online.get(&device).is_some_and(same) {
                    self.online.remove(&device);
                    self.came.remove(&device);
                    self.went.insert(device, row);
                }
            }
        }
    }

    /// When the next file is due, in milliseconds of monotonic time ([`Now::mono_ms`]).
    #[must_use]
    pub fn next_due_ms(&self) -> u64 {
        let soon_ms = self.last_file_ms + self.delta_ms;
        let changed = !self.came.is_empty() || !self.went.is_empty();
        if changed || self.full_wanted.is_asked() {
            self.next_full_ms.min(soon_ms)
        } else {
            self.next_full_ms
        }
    }

    /// Writes the file that is due, if one is. Gives its kind.
    ///
    /// # Errors
    /// After [`ReplaceError::Write`] nothing is forgotten, and the same file is tried again at the next call. After
    /// [`ReplaceError::Sync`] the list must not be used any more.
    pub fn handle_time(&mut self, now: Now) -> Result<Option<FileKind>, ReplaceError> {
        if now.mono_ms < self.next_due_ms() {
            return Ok(None);
        }
        let is_full = now.mono_ms >= self.next_full_ms || self.full_wanted.is_asked();
        let kind = if is_full { FileKind::PresenceFull } else { FileKind::PresenceDelta };
        self.write(kind, now)?;
        Ok(Some(kind))
    }

    /// Writes what has changed, whatever the time: the server stops.
    ///
    /// # Errors
    /// As the disk says.
    pub fn finish(&mut self, now: Now) -> Result<(), ReplaceError> {
        if self.came.is_empty() && self.went.is_empty() {
            return Ok(());
        }
        self.write(FileKind::PresenceDelta, now)
    }

    /// Devices online now.
    #[must_use]
    pub fn online(&self) -> usize {
        self.online.len()
    }

    fn write(&mut self, kind: FileKind, now: Now) -> Result<(), ReplaceError> {
        let mut builder = FileBuilder::new();
        if kind == FileKind::PresenceFull {
            self.full_wanted.take();
            self.online.values().for_each(|row| builder.push_encoded(&row.encoded));
        } else {
            self.changed_rows(&mut builder);
        }
        let put = self.outgoing.put(kind, self.sequence + 1, UnixMillis(now.unix_ms), builder);
        if put.is_err() && kind == FileKind::PresenceFull {
            // It is still owed.
            self.full_wanted.ask();
        }
        put?;
        self.sequence += 1;
        self.came.clear();
        self.went.clear();
        self.last_file_ms = now.mono_ms;
        if kind == FileKind::PresenceFull {
            self.next_full_ms = now.mono_ms + self.full_ms;
        }
        Ok(())
    }

    fn changed_rows(&self, builder: &mut FileBuilder) {
        let changed: BTreeSet<_> = self.came.iter().chain(self.went.keys()).collect();
        for device in changed {
            match (self.online.get(device), self.went.get(device)) {
                (Some(row), _) => builder.push_encoded(&row.encoded),
                (None, Some(row)) => builder.push(row),
                (None, None) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
