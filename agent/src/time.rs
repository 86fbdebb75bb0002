//! The agent's own time: from signed heads, and from no server's and no machine's word alone.
//!
//! It is the anchor, a signed head's time, plus what has passed since on a clock that counts suspend, and never earlier than the
//! floor: the latest signed time ever seen, which the journal keeps. Before the first head of a boot there is no anchor: then
//! it is the wall clock, not below the floor, good enough to judge a certificate by and no task. It reads no clock:
//! readings come in as [`Now`].
//!
//! Law: no head turns time back by more than our own clock can have run fast since the anchor. Heads wait on servers, also
//! for long, while the manager is down; and whoever hands out old heads on purpose, each newer than the one before, must
//! not hold time back with them.

use bgb_daemon::clock::Now;
use bgb_protocol::ids::{BootId, UnixMillis};
use serde::{Deserialize, Serialize};

/// How far behind the estimate a newer head may lie without changing it: what `protocol.md` tolerates of a task's start.
const LATE_HEAD_MS: u64 = bgb_protocol::task::NOT_BEFORE_TOLERANCE_MS;

/// A clock runs fast by one part in so many at most: 500 ppm, beyond which NTP takes a clock for broken, and by which it slews
/// one at most (RFC 5905, MAXFREQ).
const DRIFT_PARTS: u64 = 2_000;

/// The wall clock's deviation from which on people are told: 5 minutes (docs/promises.md, Time).
pub(crate) const SKEW_SHOWN_MS: u64 = 5 * 60 * 1000;

/// What the time was at one reading of the clock, by a signed head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Anchor {
    /// The agent's time then.
    pub(crate) time: UnixMillis,
    /// The reading: milliseconds since boot, suspend included.
    pub(crate) boot_ms: u64,
    /// The boot that these are counted from.
    pub(crate) boot: BootId,
}

/// The agent's own time.
#[derive(Clone, Debug)]
pub(crate) struct AgentTime {
    boot: BootId,
    floor: UnixMillis,
    anchor: Option<Anchor>,
}

/// Whether what the journal keeps of the time has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum TimeChange {
    /// Nothing to write.
    None,
    /// Floor or anchor moved.
    Moved,
}

impl AgentTime {
    /// From what the journal kept. An anchor of another boot says nothing about this one's clock.
    pub(crate) fn new(boot: BootId, floor: UnixMillis, anchor: Option<Anchor>) -> Self {
        Self { boot, floor, anchor: anchor.filter(|anchor| anchor.boot == boot) }
    }

    /// The agent's time at the reading `clock`.
    pub(crate) fn at(&self, clock: Now) -> UnixMillis {
        if self.anchor.is_some() { self.at_least(clock) } else { self.floor.max(UnixMillis(clock.unix_ms)) }
    }

    /// The agent's time as far as signed words go: no machine's clock set wrong makes it later than it is.
    pub(crate) fn at_least(&self, clock: Now) -> UnixMillis {
        let since = |anchor: &Anchor| anchor.time.plus(clock.boot_ms.saturating_sub(anchor.boot_ms));
        self.anchor.as_ref().map_or(self.floor, |anchor| since(anchor).max(self.floor))
    }

    /// Whether a head has come in this boot.
    pub(crate) fn is_anchored(&self) -> bool {
        self.anchor.is_some()
    }

    /// The latest signed time ever seen.
    pub(crate) fn floor(&self) -> UnixMillis {
        self.floor
    }

    /// The anchor, to be kept in the journal.
    pub(crate) fn anchor(&self) -> Option<Anchor> {
        self.anchor
    }

    /// The wall clock less the agent's time, in milliseconds; 0 before the first head of this boot.
    pub(crate) fn skew_ms(&self, clock: Now) -> i64 {
        match self.anchor {
            None => 0,
            Some(_) => {
                let wall = i64::try_from(clock.unix_ms).unwrap_or(i64::MAX);
                wall.saturating_sub(i64::try_from(self.at(clock).0).unwrap_or(i64::MAX))
            }
        }
    }

    /// A verified head came.
    pub(crate) fn on_head(&mut self, head: UnixMillis, clock: Now) -> TimeChange {
        let Some(anchor) = &self.anchor else {
            self.floor = self.floor.max(head);
            self.set_anchor(self.floor, clock);
            return TimeChange::Moved;
        };
        if head <= self.floor {
            return TimeChange::None;
        }
        let estimate = self.at(clock);
        if head.plus(LATE_HEAD_MS) < estimate {
            let drift_ms = clock.boot_ms.saturating_sub(anchor.boot_ms) / DRIFT_PARTS;
            let slowest = UnixMillis(estimate.0.saturating_sub(drift_ms));
            self.set_anchor(slowest.max(head), clock);
        }
        self.on_signed_time(head, clock)
    }

    /// A verified statement named the time of its making.
    pub(crate) fn on_signed_time(&mut self, time: UnixMillis, clock: Now) -> TimeChange {
        if time <= self.floor {
            return TimeChange::None;
        }
        if self.anchor.is_some() && time >= self.at(clock) {
            self.set_anchor(time, clock);
        }
        self.floor = time;
        TimeChange::Moved
    }

    fn set_anchor(&mut self, time: UnixMillis, clock: Now) {
        self.anchor = Some(Anchor { time, boot_ms: clock.boot_ms, boot: self.boot });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: BootId = BootId([1; 16]);

    fn clock(unix_ms: u64, boot_ms: u64) -> Now {
        Now { unix_ms, boot_ms, mono_ms: boot_ms }
    }

    #[test]
    fn before_any_head_the_wall_clock_counts_but_not_below_the_floor() {
        let time = AgentTime::new(BOOT, UnixMillis(5_000), None);
        assert_eq!(time.at(clock(9_000, 1)), UnixMillis(9_000));
        assert_eq!(time.at(clock(1_000, 1)), UnixMillis(5_000));
        assert_eq!(time.skew_ms(clock(1_000, 1)), 0);
    }

    #[test]
    fn after_a_head_only_the_clock_that_counts_suspend_moves_time() {
        let mut time = AgentTime::new(BOOT, UnixMillis(0), None);
        assert_eq!(time.on_head(UnixMillis(1_000_000), clock(7, 100)), TimeChange::Moved);
        assert_eq!(time.at(clock(99_999_999, 600)), UnixMillis(1_000_500));
        assert_eq!(time.skew_ms(clock(0, 600)), -1_000_500);
    }

    #[test]
    fn an_old_head_neither_turns_time_back_nor_holds_it_still() {
        let mut time = AgentTime::new(BOOT, UnixMillis(0), None);
        let _ = time.on_head(UnixMillis(1_000_000), clock(0, 0));
        assert_eq!(time.on_head(UnixMillis(1_000_000), clock(0, 60_000)), TimeChange::None);
        assert_eq!(time.on_head(UnixMillis(500_000), clock(0, 60_000)), TimeChange::None);
        assert_eq!(time.at(clock(0, 60_000)), UnixMillis(1_060_000));
    }

    #[test]
    fn a_head_that_waited_on_the_server_does_not_turn_time_back_beyond_what_a_clock_can_drift() {
        let mut time = AgentTime::new(BOOT, UnixMillis(0), None);
        let _ = time.on_head(UnixMillis(1_000_000), clock(0, 0));
        let _ = time.on_head(UnixMillis(1_060_000), clock(0, 115_000));
        assert_eq!(time.at(clock(0, 115_000)), UnixMillis(1_115_000));
        let _ = time.on_head(UnixMillis(1_500_000), clock(0, 900_000));
        assert_eq!(time.at(clock(0, 900_000)), UnixMillis(1_900_000 - 450));
    }

    #[test]
    fn a_clock_that_runs_fast_within_its_drift_is_corrected() {
        let day_ms = 24 * 60 * 60 * 1_000;
        let mut time = AgentTime::new(BOOT, UnixMillis(0), None);
        let _ = time.on_head(UnixMillis(1_000_000), clock(0, 0));
        // 400 ppm over ten days: 345.6 s.
        let own = UnixMillis(1_000_000 + 10 * day_ms);
        let head = UnixMillis(own.0 - 345_600);
        assert_eq!(time.on_head(head, clock(0, 10 * day_ms)), TimeChange::Moved);
        assert_eq!(time.at(clock(0, 10 * day_ms)), head);
    }

    #[test]
    fn whoever_hands_out_old_heads_one_by_one_hardly_slows_time() {
        let mut time = AgentTime::new(BOOT, UnixMillis(0), None);
        let _ = time.on_head(UnixMillis(1_000_000), clock(0, 0));
        for minute in 1..=600 {
            let _ = time.on_head(UnixMillis(1_000_000 + minute), clock(0, minute * 60_000));
        }
        let lost_ms = UnixMillis(1_000_000 + 600 * 60_000).since(time.at(clock(0, 600 * 60_000)));
        assert_eq!(lost_ms, 600 * 60_000 / DRIFT_PARTS);
    }

    #[test]
    fn the_first_head_of_a_boot_counts_from_the_floor_where_that_is_later() {
        let mut time = AgentTime::new(BOOT, UnixMillis(5_000), None);
        assert_eq!((time.is_anchored(), time.at_least(clock(9_000, 1))), (false, UnixMillis(5_000)));
        assert_eq!(time.on_head(UnixMillis(3_000), clock(9_000, 100)), TimeChange::Moved);
        assert_eq!(time.at(clock(9_000, 600)), UnixMillis(5_500));
    }

    #[test]
    fn an_anchor_lives_as_long_as_its_boot_and_the_floor_for_ever() {
        let anchor = Anchor { time: UnixMillis(1_000), boot_ms: 10, boot: BOOT };
        let same = AgentTime::new(BOOT, UnixMillis(1_000), Some(anchor));
        assert_eq!(same.at(clock(0, 510)), UnixMillis(1_500));
        let other = AgentTime::new(BootId([2; 16]), UnixMillis(1_000), Some(anchor));
        assert_eq!(other.at(clock(0, 510)), UnixMillis(1_000));
    }

    #[test]
    fn a_signed_time_lifts_the_floor_and_never_lowers_it() {
        let mut time = AgentTime::new(BOOT, UnixMillis(0), None);
        assert_eq!(time.on_signed_time(UnixMillis(700), clock(0, 0)), TimeChange::Moved);
        assert_eq!(time.on_signed_time(UnixMillis(600), clock(0, 0)), TimeChange::None);
        assert_eq!(time.floor(), UnixMillis(700));
        assert!(!time.is_anchored(), "only a head says what the time is now");
        let _ = time.on_head(UnixMillis(800), clock(0, 0));
        let _ = time.on_signed_time(UnixMillis(5_000), clock(0, 100));
        assert_eq!(time.at(clock(0, 200)), UnixMillis(5_100), "and goes on from there");
    }
}
