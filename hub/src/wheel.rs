//! A hierarchical timer wheel: one deadline per key, armed, moved and cancelled in O(1).
//!
//! Three levels of 256 slots. A slot of level 0 is one tick, of level n 256^n ticks; so the wheel reaches 256^3 ticks, 19 days
//! in ticks of 100 ms. Level 0 has the 256 ticks that time is in, the *window*; the others are rings, and a deadline goes to the lowest that
//! reaches as far. One beyond the reach waits in the farthest slot and is put back from there.
//!
//! ```text
//! level 2   [ 1.8 h each ]   when a slot's first tick comes, its records move down
//! level 1   [ 25.6 s     ]   when a slot's first tick comes, its records are sorted by tick, and are the window
//! level 0   [ 0.1 s      ]   what is armed for a tick of the window since
//! ```
//!
//! What is random about a timer is its key; what lies in slots is read in the order in which it lies there. So a key's entry has the deadline and the
//! place of its record, and a slot holds records of key and tick, in blocks of two cache lines. When a record is taken out, the slot's last one
//! moves into its place. Only in the window's list a record stays where it is when its timer is moved or cancelled; it is passed over then.
//!
//! A poll that comes to a slot of a ring moves all that lies in it, at some nanoseconds each: opening a window takes no branch on a timer's
//! entry, so that a machine can fetch many at once. What is minutes away moves once, and is in a list to walk then.
//!
//! Keys are the caller's and should be dense. The wheel reads no clock, and must not know what a timer means.

use crate::time::Tick;

/// Bits of a deadline that one level decides.
const SLOT_BITS: u32 = 8;
const SLOTS: usize = 1 << SLOT_BITS;
/// 256^3 ticks of 100 ms are 19 days: deadlines of sessions are minutes away.
const LEVELS: usize = 3;
const TOP: usize = LEVELS - 1;

/// Ticks that the wheel reaches ahead.
const REACH: u64 = 1 << (SLOT_BITS * LEVELS as u32);

/// Records of a block: with its link two cache lines.
const BLOCK_RECORDS: usize = 15;
/// Bits of a place that say which record of its block it is.
const PLACE_BITS: u32 = 4;
/// No block.
const NIL: u32 = u32::MAX;
/// `at` of a key that is not armed. A deadline at the end of time is armed one tick before it.
const UNARMED: u64 = u64::MAX;
/// `place` of a key that has no record in a slot: it is not armed, or its record is in the window.
const NOWHERE: u32 = u32::MAX;

/// The highest key that a wheel takes: a record of each has a place in 32 bits.
pub const KEY_MAX: u32 = 1 << 31;

/// One key's timer: 16 bytes, so that none straddles a cache line.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    /// Where its record is: the block's number and the place in it, see [`place_of`].
    place: u32,
    /// And whose that block is.
    level: u8,
    slot: u8,
}

impl Entry {
    const UNARMED: Self = Self { at: UNARMED, place: NOWHERE, level: 0, slot: 0 };
}

/// That a key is to be looked at, and the low bits of when.
#[derive(Clone, Copy, Debug)]
struct Record {
    key: u32,
    tick: u32,
}

impl Record {
    const NONE: Self = Self { key: 0, tick: 0 };

    /// Its tick's number in a window.
    fn number(self) -> usize {
        self.tick as usize % SLOTS
    }
}

/// A slot's records: its first block is filled up to `len`, those behind it are full. An empty slot has no block and counts as full, so that its
/// first record gets one.
#[derive(Clone, Copy, Debug)]
struct Slot {
    head: u32,
    len: u32,
}

impl Slot {
    const EMPTY: Self = Self { head: NIL, len: BLOCK_RECORDS as u32 };
}

/// Some records of a slot, and the next block of them.
#[derive(Clone, Debug)]
#[repr(align(128))]
struct Block {
    records: [Record; BLOCK_RECORDS],
    next: u32,
}

/// The place of a record, as an entry has it.
fn place_of(block: u32, number: u32) -> u32 {
    block << PLACE_BITS | number
}

/// Slots of one level.
#[derive(Clone, Debug)]
struct Level {
    slots: [Slot; SLOTS],
    /// A bit for each slot that holds a record.
    occupied: [u64; SLOTS / 64],
    /// A bit for each word of those that is not 0.
    words: u32,
}

impl Level {
    const EMPTY: Self = Self { slots: [Slot::EMPTY; SLOTS], occupied: [0; SLOTS / 64], words: 0 };

    fn is_empty(&self) -> bool {
        self.words == 0
    }

    fn set(&mut self, slot: usize) {
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.words |= 1 << (slot / 64);
    }

    fn clear(&mut self, slot: usize) {
        let word = &mut self.occupied[slot / 64];
        *word &= !(1 << (slot % 64));
        self.words &= !(u32::from(*word == 0) << (slot / 64));
    }

    /// The first slot that is occupied, of those that there are.
    fn first(&self) -> usize {
        let word = self.words.trailing_zeros() as usize;
        64 * word + self.occupied[word].trailing_zeros() as usize
    }

    /// How far from `slot` on, round the ring, the next one lies that is occupied; `None` when none is.
    fn ahead(&self, slot: usize) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let (word, bit) = (slot / 64, slot % 64);
        let at_once = self.occupied[word] >> bit;
        if at_once != 0 {
            return Some(at_once.trailing_zeros() as usize);
        }
        let words = self.occupied.len();
        let later = |step: usize| self.occupied[(word + step) % words];
        let step = (1..=words).find(|step| later(*step) != 0)?;
        Some(64 * step - bit + later(step).trailing_zeros() as usize)
    }

    /// Takes all that is in a slot.
    fn take(&mut self, slot: usize) -> Slot {
        self.clear(slot);
        std::mem::replace(&mut self.slots[slot], Slot::EMPTY)
    }
}

/// The slot of level 1 that time has come to: records in the order of their ticks.
#[derive(Clone, Debug, Default)]
struct Window {
    start: u64,
    records: Vec<Record>,
    /// How many of them have been taken.
    taken: usize,
}

impl Window {
    /// The tick of the next record.
    fn earliest(&self) -> Option<u64> {
        self.records.get(self.taken).map(|record| self.start + record.number() as u64)
    }
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The next record of the window.
    Window,
    /// A slot of this level.
    Slot(usize, usize),
}

/// Deadlines by key.
#[derive(Debug)]
pub struct Wheel {
    now: u64,
    levels: Box<[Level; LEVELS]>,
    window: Window,
    blocks: Vec<Block>,
    /// Blocks that are in no slot.
    spare: Vec<u32>,
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
        Self {
            now: 0,
            levels: Box::new([Level::EMPTY; LEVELS]),
            window: Window::default(),
            blocks: Vec::new(),
            spare: Vec::new(),
            entries: Vec::new(),
            armed: 0,
        }
    }

    /// Arms the timer of `key`, or moves it if it is armed. A deadline that is not ahead is due at the next poll.
    ///
    /// # Panics
    /// When `key` is over [`KEY_MAX`].
    pub fn arm(&mut self, key: u32, at: Tick) {
        assert!(key <= KEY_MAX, "keys are indices of a slab, which stays far below");
        if key as usize >= self.entries.len() {
            self.entries.resize(key as usize + 1, Entry::UNARMED);
        }
        let at = at.0.min(UNARMED - 1);
        let entry = &mut self.entries[key as usize];
        self.armed += usize::from(entry.at == UNARMED);
        let former = *entry;
        (entry.at, entry.place) = (at, NOWHERE);
        if former.place != NOWHERE {
            self.take_out(former);
        }
        self.put(key, at);
    }

    /// Disarms the timer of `key`; nothing happens if it is not armed.
    pub fn cancel(&mut self, key: u32) {
        let Some(entry) = self.entries.get_mut(key as usize) else { return };
        let former = std::mem::replace(entry, Entry::UNARMED);
        self.armed -= usize::from(former.at != UNARMED);
        if former.place != NOWHERE {
            self.take_out(former);
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
        let now = now.0.min(UNARMED - 1);
        if now.saturating_sub(self.now) >= REACH {
            // Turn after turn of the top level would take as long as the leap is far.
            self.now = now;
            self.put_anew();
        }
        loop {
            let Some((source, start)) = self.earliest().filter(|(_, start)| *start <= now) else {
                self.now = self.now.max(now);
                return None;
            };
            self.now = self.now.max(start);
            let due = match source {
                Source::Window => self.take_of_window(),
                Source::Slot(0, slot) => Some(self.take_of_tick(slot)),
                Source::Slot(level, slot) => {
                    self.come_to(level, slot, start);
                    None
                }
            };
            if due.is_some() {
                return due;
            }
        }
    }

    /// A moment at which or before which the earliest timer is due: in the window the tick of the earliest record, whose timer may have been moved
    /// or cancelled; beyond it the start of a slot, when that is to be looked at. `None` when no timer is armed.
    #[must_use]
    #[inline]
    pub fn next_deadline(&self) -> Option<Tick> {
        self.earliest().filter(|_| self.armed > 0).map(|(_, start)| Tick(start))
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

    /// What comes first, and the tick at which it begins.
    #[inline]
    fn earliest(&self) -> Option<(Source, u64)> {
        let [ticks, _, _] = &*self.levels;
        let in_window = self.window.earliest();
        if ticks.is_empty() {
            return in_window.map(|tick| (Source::Window, tick)).or_else(|| self.earliest_beyond());
        }
        let slot = ticks.first();
        let tick = (self.now & !(SLOTS as u64 - 1)) + slot as u64;
        match in_window {
            Some(in_window) if in_window <= tick => Some((Source::Window, in_window)),
            _ => Some((Source::Slot(0, slot), tick)),
        }
    }

    /// The same of the levels above the lowest.
    #[inline(never)]
    fn earliest_beyond(&self) -> Option<(Source, u64)> {
        let first_of = |level: usize| {
            // The slots ahead are those after the present one, which itself is never occupied.
            let shift = SLOT_BITS * level as u32;
            let present = self.now >> shift;
            let slot = present.saturating_add(self.levels[level].ahead(present as usize % SLOTS)? as u64);
            let start = slot.checked_mul(1 << shift).unwrap_or(UNARMED);
            Some((Source::Slot(level, slot as usize % SLOTS), start))
        };
        match (first_of(1), first_of(TOP)) {
            // What moves down at the same tick may belong to that very window.
            (Some(window), Some(top)) if window.1 < top.1 => Some(window),
            (window, top) => top.or(window),
        }
    }

    /// The key of the window's next record, of which there is one, if its timer is due.
    fn take_of_window(&mut self) -> Option<u32> {
        let Record { key, .. } = self.window.records[self.window.taken];
        self.window.taken += 1;
        let Entry { at, place, .. } = self.entries[key as usize];
        // A timer that was moved has a record in a slot.
        (place == NOWHERE && at != UNARMED).then(|| self.fire(key))
    }

    /// The key of a record of a slot of level 0, whose tick has come and in which there is one.
    fn take_of_tick(&mut self, at: usize) -> u32 {
        let Slot { head, len } = self.levels[0].slots[at];
        let Record { key, .. } = self.blocks[head as usize].records[len as usize - 1];
        self.shorten(0, at);
        self.entries[key as usize].place = NOWHERE;
        self.fire(key)
    }

    /// The timer of `key` is due: it is disarmed by that.
    fn fire(&mut self, key: u32) -> u32 {
        let at = std::mem::replace(&mut self.entries[key as usize].at, UNARMED);
        debug_assert!(at <= self.now, "the lowest level and the window have it at its own tick");
        self.armed -= 1;
        key
    }

    /// The first tick of a slot above the lowest level has come.
    #[inline(never)]
    fn come_to(&mut self, level: usize, slot: usize, start: u64) {
        let mut taken = self.levels[level].take(slot);
        if level == TOP {
            self.move_down(taken);
            // A window begins at this tick as well.
            taken = self.levels[1].take((start >> SLOT_BITS) as usize % SLOTS);
        }
        self.open(taken, start);
    }

    /// Puts every record of a slot of the top level where its distance from the present asks for.
    fn move_down(&mut self, slot: Slot) {
        let mut rest = slot;
        while let Some(block) = self.blocks.get(rest.head as usize) {
            let (records, next) = (block.records, block.next);
            self.spare.push(rest.head);
            for Record { key, .. } in &records[..rest.len as usize] {
                self.put(*key, self.entries[*key as usize].at);
            }
            rest = Slot { head: next, ..Slot::EMPTY };
        }
    }

    /// Makes what lay in a slot of level 1 the window: its records, sorted by tick.
    fn open(&mut self, slot: Slot, start: u64) {
        let mut places = [0_u32; SLOTS];
        let mut rest = slot;
        while let Some(block) = self.blocks.get(rest.head as usize) {
            for record in &block.records[..rest.len as usize] {
                places[record.number()] += 1;
            }
            rest = Slot { head: block.next, ..Slot::EMPTY };
        }
        let mut length = 0;
        for place in &mut places {
            length += std::mem::replace(place, length);
        }
        let records = &mut self.window.records;
        records.resize(length as usize, Record::NONE);
        // What a crowded window took is given back when the next one opens.
        records.shrink_to(2 * records.len().max(BLOCK_RECORDS));
        let mut rest = slot;
        while let Some(block) = self.blocks.get(rest.head as usize) {
            for record in &block.records[..rest.len as usize] {
                let place = &mut places[record.number()];
                records[*place as usize] = *record;
                *place += 1;
                self.entries[record.key as usize].place = NOWHERE;
            }
            self.spare.push(rest.head);
            rest = Slot { head: block.next, ..Slot::EMPTY };
        }
        (self.window.start, self.window.taken) = (start, 0);
    }

    /// Takes the record out of its slot to which an entry led: the slot's last one moves into its place.
    fn take_out(&mut self, former: Entry) {
        let Entry { place, level, slot, .. } = former;
        let (block, number) = (place >> PLACE_BITS, place as usize % (1 << PLACE_BITS));
        let (level, slot) = (usize::from(level), usize::from(slot));
        let Slot { head, len } = self.levels[level].slots[slot];
        let last = self.blocks[head as usize].records[len as usize - 1];
        if (head, len as usize - 1) != (block, number) {
            self.blocks[block as usize].records[number] = last;
            self.entries[last.key as usize].place = place;
        }
        self.shorten(level, slot);
    }

    /// Forgets the last record of a slot.
    fn shorten(&mut self, level: usize, at: usize) {
        let level = &mut self.levels[level];
        let slot = &mut level.slots[at];
        slot.len -= 1;
        if slot.len == 0 {
            self.spare.push(slot.head);
            *slot = Slot { head: self.blocks[slot.head as usize].next, ..Slot::EMPTY };
            if slot.head == NIL {
                level.clear(at);
            }
        }
    }

    /// Puts every timer that is armed where the present asks for it.
    #[inline(never)]
    fn put_anew(&mut self) {
        *self.levels = [Level::EMPTY; LEVELS];
        self.window = Window::default();
        self.blocks.clear();
        self.spare.clear();
        for key in 0..self.entries.len() {
            let entry = &mut self.entries[key];
            entry.place = NOWHERE;
            let at = entry.at;
            if at != UNARMED {
                self.put(key as u32, at);
            }
        }
    }

    /// Puts a record of a timer that has none into the slot for its deadline.
    fn put(&mut self, key: u32, at: u64) {
        let record = Record { key, tick: at.max(self.now) as u32 };
        let (level, at) = self.slot_for(at);
        let slot = &mut self.levels[level].slots[at];
        if (slot.len as usize) < BLOCK_RECORDS {
            self.blocks[slot.head as usize].records[slot.len as usize] = record;
            let place = place_of(slot.head, slot.len);
            slot.len += 1;
            self.lead_to(key, place, level, at);
        } else {
            self.put_into_fresh(record, level, at);
        }
    }

    /// The same where the slot has no block, or a full one.
    #[inline(never)]
    fn put_into_fresh(&mut self, record: Record, level: usize, at: usize) {
        let of_level = &mut self.levels[level];
        let block = Block { records: [record; BLOCK_RECORDS], next: of_level.slots[at].head };
        let fresh = match self.spare.pop() {
            Some(fresh) => {
                self.blocks[fresh as usize] = block;
                fresh
            }
            None => {
                self.blocks.push(block);
                (self.blocks.len() - 1) as u32
            }
        };
        of_level.slots[at] = Slot { head: fresh, len: 1 };
        of_level.set(at);
        self.lead_to(record.key, place_of(fresh, 0), level, at);
    }

    /// Has a key's entry lead to its record.
    fn lead_to(&mut self, key: u32, place: u32, level: usize, slot: usize) {
        let entry = &mut self.entries[key as usize];
        (entry.place, entry.level, entry.slot) = (place, level as u8, slot as u8);
    }

    /// Level and slot for a timer that is due at `at`.
    fn slot_for(&self, at: u64) -> (usize, usize) {
        let at = at.max(self.now);
        let windows_ahead = (at >> SLOT_BITS) - (self.now >> SLOT_BITS);
        if windows_ahead == 0 {
            return (0, at as usize % SLOTS);
        }
        if windows_ahead < SLOTS as u64 {
            return (1, (at >> SLOT_BITS) as usize % SLOTS);
        }
        let shift = SLOT_BITS * TOP as u32;
        let farthest = (self.now >> shift) + (SLOTS as u64 - 1);
        (TOP, (at >> shift).min(farthest) as usize % SLOTS)
    }
}

#[cfg(test)]
mod tests;
