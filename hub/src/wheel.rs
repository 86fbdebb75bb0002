//! A hierarchical timer wheel: one deadline per key, armed, moved and cancelled in O(1).
//!
//! Four levels of 64 slots. A slot of level 0 is one tick, of level n 64^n ticks; so the wheel reaches 64^4 ticks, 19 days
//! in ticks of 100 ms. The level of a deadline is that of the highest bit in which it differs from the wheel's time, so a
//! level never holds a slot that lies behind, and the lowest level that is occupied holds the earliest deadline. The top
//! level alone is a ring. A deadline beyond its reach waits in its farthest slot and is put back from there.
//!
//! ```text
//! level 3   [ 7 h each ]     when a slot's first tick comes, its timers move down,
//! level 2   [ 7 min    ]     each to the level that its distance then asks for
//! level 1   [ 6.4 s    ]
//! level 0   [ 0.1 s    ]     when a slot's tick comes, its timers are due
//! ```
//!
//! Slots are doubly linked lists over one array of 16-byte entries, indexed by key: no allocation but the array's growth.
//! Keys are the caller's and should be dense. The wheel reads no clock, and must not know what a timer means.

use crate::time::Tick;

/// Bits of a deadline that one level decides: 64 slots, so that one word tells which are occupied.
const SLOT_BITS: u32 = 6;
const SLOTS: u64 = 1 << SLOT_BITS;
/// 64^4 ticks of 100 ms are 19 days: deadlines of sessions are minutes away.
const LEVELS: usize = 4;
const TOP: usize = LEVELS - 1;
const LISTS: usize = LEVELS * SLOTS as usize;

/// Ticks that the wheel reaches ahead.
const REACH: u64 = 1 << (SLOT_BITS * LEVELS as u32);

/// End of a list.
const NIL: u32 = u32::MAX;
/// `previous` of the first entry of list `n` is this and `n`; keys are below it.
const FIRST: u32 = u32::MAX - (LISTS as u32 - 1);
/// `at` of a key that is not armed. A deadline at the end of time is armed one tick before it.
const UNARMED: u64 = u64::MAX;

/// The highest key that a wheel takes.
pub const KEY_MAX: u32 = FIRST - 1;

/// One key's timer: 16 bytes, so that none straddles a cache line.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    next: u32,
    previous: u32,
}

/// Deadlines by key.
#[derive(Debug)]
pub struct Wheel {
    now: u64,
    /// One bit for each slot of a level that holds a timer.
    occupied: [u64; LEVELS],
    heads: [u32; LISTS],
    entries: Vec<Entry>,
    armed: usize,
}

impl Default for Wheel {
    fn default() -> Self {
        Self::new()
    }
}

impl Wheel {
    /// A wheel without timers, at tick 0.
    #[must_use]
    pub fn new() -> Self {
        Self { now: 0, occupied: [0; LEVELS], heads: [NIL; LISTS], entries: Vec::new(), armed: 0 }
    }

    /// Arms the timer of `key`, or moves it if it is armed. A deadline that is not ahead is due at the next poll.
    ///
    /// # Panics
    /// When `key` is over [`KEY_MAX`].
    pub fn arm(&mut self, key: u32, at: Tick) {
        assert!(key <= KEY_MAX, "keys are indices of a slab, which stays far below");
        let place = key as usize;
        if place >= self.entries.len() {
            self.entries.resize(place + 1, Entry { at: UNARMED, next: NIL, previous: NIL });
        }
        if self.entries[place].at == UNARMED {
            self.armed += 1;
        } else {
            self.unlink(key);
        }
        self.link(key, at.0.min(UNARMED - 1));
    }

    /// Disarms the timer of `key`; nothing happens if it is not armed.
    pub fn cancel(&mut self, key: u32) {
        if self.deadline(key).is_some() {
            self.disarm(key);
        }
    }

    /// When the timer of `key` is due, if it is armed.
    #[must_use]
    pub fn deadline(&self, key: u32) -> Option<Tick> {
        let at = self.entries.get(key as usize)?.at;
        (at != UNARMED).then_some(Tick(at))
    }

    /// The key of a timer that is due at `now`, disarmed by that; `None` when no more are. In ascending order,
    /// unless time has leapt by more than the wheel reaches.
    ///
    /// Time that goes back is taken as standing still. Who arms a key again from inside a loop over this must arm it ahead
    /// of `now`, or the loop does not end.
    pub fn poll_expired(&mut self, now: Tick) -> Option<u32> {
        if now.0.saturating_sub(self.now) >= REACH {
            self.leap(now.0);
        }
        loop {
            let Some((list, start)) = self.earliest().filter(|(_, start)| *start <= now.0) else {
                self.now = self.now.max(now.0);
                return None;
            };
            self.now = self.now.max(start);
            if list < SLOTS as usize {
                let key = self.heads[list];
                self.disarm(key);
                return Some(key);
            }
            self.cascade(list);
        }
    }

    /// A moment at which or before which the earliest timer is due: exact within 6.4 s, else the start of its slot, when
    /// its slot is to be looked at. `None` when no timer is armed.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        self.earliest().map(|(_, start)| Tick(start))
    }

    /// How many timers are armed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.armed
    }

    /// Whether no timer is armed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// The occupied list that comes first, and the tick at which its slot begins.
    fn earliest(&self) -> Option<(usize, u64)> {
        let level = self.occupied.iter().position(|word| *word != 0)?;
        let shift = SLOT_BITS * level as u32;
        let word = self.occupied[level];
        let slot_now = self.now >> shift;
        if level == TOP {
            // A ring: the slots ahead are those after the present one, and the present one itself is never occupied.
            let present = (slot_now % SLOTS) as u32;
            let ahead = u64::from(word.rotate_right(present).trailing_zeros());
            let slot = slot_now.saturating_add(ahead);
            return Some((list(level, slot), slot.checked_mul(1 << shift).unwrap_or(UNARMED)));
        }
        let slot = (slot_now & !(SLOTS - 1)) + u64::from(word.trailing_zeros());
        Some((list(level, slot), slot << shift))
    }

    /// Goes to `now` at once: turn after turn of the top level would take as long as the leap is far.
    fn leap(&mut self, now: u64) {
        self.now = now;
        self.occupied = [0; LEVELS];
        for key in std::mem::replace(&mut self.heads, [NIL; LISTS]) {
            self.relink(key);
        }
    }

    /// Puts every timer of a list where its distance from the present asks for.
    fn cascade(&mut self, list: usize) {
        self.occupied[list / SLOTS as usize] &= !(1 << (list as u64 % SLOTS));
        let key = std::mem::replace(&mut self.heads[list], NIL);
        self.relink(key);
    }

    /// Links `key` and all that follow it, which are in no list any more, anew.
    fn relink(&mut self, mut key: u32) {
        while key != NIL {
            let Entry { at, next, .. } = self.entries[key as usize];
            self.link(key, at);
            key = next;
        }
    }

    /// Puts `key`, which is in no list, into the one for `at`.
    fn link(&mut self, key: u32, at: u64) {
        let list = self.list_for(at);
        let next = std::mem::replace(&mut self.heads[list], key);
        if next != NIL {
            self.entries[next as usize].previous = key;
        }
        self.entries[key as usize] = Entry { at, next, previous: FIRST + list as u32 };
        self.occupied[list / SLOTS as usize] |= 1 << (list as u64 % SLOTS);
    }

    fn disarm(&mut self, key: u32) {
        self.unlink(key);
        self.entries[key as usize].at = UNARMED;
        self.armed -= 1;
    }

    /// Takes `key`, which is in a list, out of it.
    fn unlink(&mut self, key: u32) {
        let Entry { next, previous, .. } = self.entries[key as usize];
        if next != NIL {
            self.entries[next as usize].previous = previous;
        }
        if previous < FIRST {
            self.entries[previous as usize].next = next;
            return;
        }
        let list = (previous - FIRST) as usize;
        self.heads[list] = next;
        if next == NIL {
            self.occupied[list / SLOTS as usize] &= !(1 << (list as u64 % SLOTS));
        }
    }

    /// The list that a timer due at `at` belongs to.
    fn list_for(&self, at: u64) -> usize {
        let at = at.max(self.now);
        let differs = (at ^ self.now) | 1;
        let level = ((63 - differs.leading_zeros()) / SLOT_BITS) as usize;
        if level < TOP {
            return list(level, at >> (SLOT_BITS * level as u32));
        }
        let shift = SLOT_BITS * TOP as u32;
        let farthest = (self.now >> shift) + (SLOTS - 1);
        list(TOP, (at >> shift).min(farthest))
    }
}

/// The list of a level's slot, given the slot's number from the beginning of time.
fn list(level: usize, slot: u64) -> usize {
    level * SLOTS as usize + (slot % SLOTS) as usize
}

#[cfg(test)]
mod tests;
