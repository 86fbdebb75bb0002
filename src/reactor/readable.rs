//! Sockets that may have something to read, and in which order they are read.
//!
//! What has come is sorted by whose it is, and each kind has a line of its own, so that a turn's budget for one kind is spent on those of it who have waited
//! longest, and no kind waits behind another. Law: whoever is read and has more goes to the end of its line.

use std::collections::VecDeque;

use super::slots::SlotKey;

/// Whose socket it is, as far as budgets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One that carries a known device's session.
    Session,
    /// One on which a known device's requests come.
    Requests,
    /// One on which a stranger speaks HTTP, or in WebSocket frames.
    Stranger,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Readable {
    unsorted: VecDeque<SlotKey>,
    sessions: VecDeque<SlotKey>,
    requests: VecDeque<SlotKey>,
    strangers: VecDeque<SlotKey>,
}

impl Readable {
    /// Whether nobody has anything to read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unsorted.is_empty()
            && self.sessions.is_empty()
            && self.requests.is_empty()
            && self.strangers.is_empty()
    }

    /// A socket may have something to read.
    pub fn push_back(&mut self, key: SlotKey) {
        self.unsorted.push_back(key);
    }

    /// How many are not sorted yet.
    #[must_use]
    pub fn unsorted(&self) -> usize {
        self.unsorted.len()
    }

    /// The next one that is not sorted yet.
    pub fn pop_unsorted(&mut self) -> Option<SlotKey> {
        self.unsorted.pop_front()
    }

    /// A socket waits for its turn among those of its kind.
    pub fn sort(&mut self, kind: Kind, key: SlotKey) {
        self.line(kind).push_back(key);
    }

    /// Whose turn it is among those of a kind.
    pub fn pop(&mut self, kind: Kind) -> Option<SlotKey> {
        self.line(kind).pop_front()
    }

    fn line(&mut self, kind: Kind) -> &mut VecDeque<SlotKey> {
        match kind {
            Kind::Session => &mut self.sessions,
            Kind::Requests => &mut self.requests,
            Kind::Stranger => &mut self.strangers,
        }
    }
}
