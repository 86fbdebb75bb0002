//! A hierarchical timer wheel: one deadline per key, armed, moved and cancelled in O(1).
//!
//! Four levels of 64 slots. A slot of level 0 is one tick, of level n 64^n ticks; so the wheel reaches 64^4 ticks, 19 days
//! in ticks of 100 ms. The level of a deadline is that of the highest bit in which it differs from the wheel's time, so a
//! level never holds a slot that lies behind, and the lowest level that is occupied holds the earliest deadline. The top
//! level alone is a ring. A deadline beyond its reach waits in its farthest slot and is put back from there.
//!
//! ```text
//! level 3   [ 7 h each ]     when a slot's first tick comes, its records move down,
//! level 2   [ 7 min    ]     each to the level that its distance then asks for
//! level 1   [ 6.4 s    ]
//! level 0   [ 0.1 s    ]     when a slot's tick comes, its timers are due
//! ```
//!
//! What is random about a timer is its key; what lies in slots is read in the order in which it lies there. So a key's entry has the deadline, and
//! a slot holds records of key and tick, in blocks of half a KiB. A timer that is cancelled, or moved to a later tick, leaves its record where it is:
//! that is one entry touched. When the record's tick comes it is thrown away, or queued anew. One that is moved to an earlier tick gets a second record,
//! and the first one counts no more. Records that count no more are swept when there are more of them than timers.
//!
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

/// Ticks that a record may lie ahead, so that 32 bits tell which one is meant. A later deadline is queued for this one, and then anew.
const QUEUED_AHEAD_MAX: u64 = 1 << 30;

/// Records of a block: with its link and length half a KiB.
const BLOCK_RECORDS: usize = 63;
/// No block.
const NIL: u32 = u32::MAX;
/// `at` of a key that is not armed. A deadline at the end of time is armed one tick before it.
const UNARMED: u64 = u64::MAX;
/// `queued` of a key that has no record.
const NOT_QUEUED: u64 = u64::MAX;
/// Records beyond twice the timers that are worth no sweep.
const LEFT_LYING_MAX: usize = 4_096;

/// The highest key that a wheel takes.
pub const KEY_MAX: u32 = u32::MAX - 1;

/// One key's timer: 16 bytes, so that none straddles a cache line.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    /// The tick of its record, if it has one: never later than `at`, unless that has passed.
    queued: u64,
}

/// That a key is to be looked at, and the low bits of when.
#[derive(Clone, Copy, Debug)]
struct Record {
    key: u32,
    tick: u32,
}

/// Some records of a slot.
#[derive(Clone, Debug)]
struct Block {
    next: u32,
    len: u32,
    records: [Record; BLOCK_RECORDS],
}

/// Deadlines by key.
#[derive(Debug)]
pub struct Wheel {
    now: u64,
    /// One bit for each slot of a level that holds a record.
    occupied: [u64; LEVELS],
    /// The first block of each slot.
    heads: [u32; LISTS],
    blocks: Vec<Block>,
    /// The first block that is in no slot.
    spare: u32,
    records: usize,
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
            occupied: [0; LEVELS],
            heads: [NIL; LISTS],
            blocks: Vec::new(),
            spare: NIL,
            records: 0,
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
        let place = key as usize;
        if place >= self.entries.len() {
            self.entries.resize(place + 1, Entry { at: UNARMED, queued: NOT_QUEUED });
        }
        let at = at.0.min(UNARMED - 1);
        let entry = &mut self.entries[place];
        self.armed += usize::from(entry.at == UNARMED);
        entry.at = at;
        if entry.queued > at.max(self.now) {
            self.queue(key, at);
            self.sweep();
        }
    }

    /// Disarms the timer of `key`; nothing happens if it is not armed.
    pub fn cancel(&mut self, key: u32) {
        let Some(entry) = self.entries.get_mut(key as usize) else { return };
        self.armed -= usize::from(entry.at != UNARMED);
        entry.at = UNARMED;
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
            self.queue_anew();
        }
        loop {
            let Some((list, start)) = self.earliest().filter(|(_, start)| *start <= now) else {
                self.now = self.now.max(now);
                return None;
            };
            self.now = self.now.max(start);
            if list >= SLOTS as usize {
                self.cascade(list);
            } else if let Some(key) = self.take_due(list) {
                return Some(key);
            }
        }
    }

    /// A moment at which or before which the earliest timer is due: that of the earliest record, whose timer may have been moved or cancelled;
    /// beyond 6.4 s the start of its slot, when that is to be looked at. `None` when no timer is armed.
    #[must_use]
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

    /// Takes records of a slot of level 0, whose tick has come, up to the first whose timer is due; `None` when there is none in it.
    fn take_due(&mut self, list: usize) -> Option<u32> {
        while let Some(Record { key, tick }) = self.take_record(list) {
            let now = self.now;
            let entry = &mut self.entries[key as usize];
            if entry.queued == NOT_QUEUED || entry.queued as u32 != tick {
                continue;
            }
            entry.queued = NOT_QUEUED;
            match entry.at {
                UNARMED => {}
                at if at > now => self.queue(key, at),
                _ => {
                    entry.at = UNARMED;
                    self.armed -= 1;
                    return Some(key);
                }
            }
        }
        None
    }

    /// Puts every record of a slot where its distance from the present asks for.
    fn cascade(&mut self, list: usize) {
        self.occupied[list / SLOTS as usize] &= !(1 << (list as u64 % SLOTS));
        let mut at = std::mem::replace(&mut self.heads[list], NIL);
        while at != NIL {
            let block = &self.blocks[at as usize];
            let (next, len) = (block.next, block.len as usize);
            for place in 0..len {
                let record = self.blocks[at as usize].records[place];
                let ahead = record.tick.wrapping_sub(self.now as u32);
                self.put(record, self.now + u64::from(ahead));
            }
            self.spare_block(at);
            at = next;
        }
    }

    /// Sees to it that the timer of `key` is looked at when `at` has come, or before.
    fn queue(&mut self, key: u32, at: u64) {
        let farthest = self.now.saturating_add(QUEUED_AHEAD_MAX).min(UNARMED - 1);
        let tick = at.clamp(self.now, farthest);
        self.entries[key as usize].queued = tick;
        self.records += 1;
        self.put(Record { key, tick: tick as u32 }, tick);
    }

    /// Throws away what counts no more, when it is more than what does.
    fn sweep(&mut self) {
        if self.records > 2 * self.armed + LEFT_LYING_MAX.max(self.entries.len() / 4) {
            self.queue_anew();
        }
    }

    /// Queues every timer that is armed, and forgets all records that there were.
    fn queue_anew(&mut self) {
        self.occupied = [0; LEVELS];
        self.heads = [NIL; LISTS];
        self.blocks.clear();
        (self.spare, self.records) = (NIL, 0);
        for key in 0..self.entries.len() {
            let entry = &mut self.entries[key];
            entry.queued = NOT_QUEUED;
            let at = entry.at;
            if at != UNARMED {
                self.queue(key as u32, at);
            }
        }
    }

    /// Puts a record into the slot for its tick.
    fn put(&mut self, record: Record, tick: u64) {
        let list = self.list_for(tick);
        let head = self.heads[list];
        let is_full = |block: &Block| block.len as usize == BLOCK_RECORDS;
        let at = match self.blocks.get(head as usize) {
            Some(block) if !is_full(block) => head,
            _ => {
                let fresh = self.fresh_block(head);
                self.heads[list] = fresh;
                self.occupied[list / SLOTS as usize] |= 1 << (list as u64 % SLOTS);
                fresh
            }
        };
        let block = &mut self.blocks[at as usize];
        block.records[block.len as usize] = record;
        block.len += 1;
    }

    /// The last record of a slot, taken out of it; one that becomes empty is no longer occupied.
    fn take_record(&mut self, list: usize) -> Option<Record> {
        let head = self.heads[list];
        let block = self.blocks.get_mut(head as usize)?;
        block.len -= 1;
        let record = block.records[block.len as usize];
        self.records -= 1;
        if block.len == 0 {
            let next = block.next;
            self.heads[list] = next;
            self.spare_block(head);
            if next == NIL {
                self.occupied[list / SLOTS as usize] &= !(1 << (list as u64 % SLOTS));
            }
        }
        Some(record)
    }

    /// An empty block, before `next`.
    fn fresh_block(&mut self, next: u32) -> u32 {
        let at = self.spare;
        if let Some(block) = self.blocks.get_mut(at as usize) {
            self.spare = block.next;
            (block.next, block.len) = (next, 0);
            return at;
        }
        self.blocks.push(Block { next, len: 0, records: [Record { key: 0, tick: 0 }; BLOCK_RECORDS] });
        (self.blocks.len() - 1) as u32
    }

    fn spare_block(&mut self, at: u32) {
        self.blocks[at as usize].next = self.spare;
        self.spare = at;
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
