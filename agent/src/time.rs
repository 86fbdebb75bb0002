//! The agent's own time: from signed heads, and from no server's and no machine's word alone.
//!
//! It is the newest signed head plus what has passed since on a clock that counts suspend, and never earlier than the
//! floor: the latest signed time ever seen, which the journal keeps. Before the first head it is the wall clock, not below
//! the floor. It reads no clock: readings come in as [`Now`].
//!
//! Law: a head that is not newer than the one before changes nothing, so a server that repeats old heads cannot hold
//! time still. A newer one that lies behind our estimate by less than the tolerance changes nothing either, since heads wait
//! on servers between keepalives; one that lies further behind is taken: then our clock ran fast.

use bgb_daemon::clock::Now;
use bgb_protocol::ids::{BootId, UnixMillis};
use serde::{Deserialize, Serialize};

/// How far behind the estimate a newer head may lie without being taken: what `protocol.md` tolerates of a task's start.
const LATE_HEAD_MS: u64 = bgb_protocol::task::NOT_BEFORE_TOLERANCE_MS;

/// The wall clock's deviation from which on people are told: 5 minutes (protocol.md, Time).
pub(crate) const SKEW_SHOWN_MS: u64 = 5 * 60 * 1000;

/// A signed head, and when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Anchor {
    /// The time that the head says.
    pub(crate) head: UnixMillis,
    /// When it came: milliseconds since boot, suspend included.
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
        let estimate = match &self.anchor {
            Some(anchor) => anchor.head.plus(clock.boot_ms.saturating_sub(anchor.boot_ms)),
            None => UnixMillis(clock.unix_ms),
        };
        estimate.max(self.floor)
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
        let is_newer = self.anchor.is_none_or(|anchor| head > anchor.head);
        let is_taken = is_newer
            && (self.anchor.is_none() || head.plus(LATE_HEAD_MS) < self.at(clock) || head >= self.at(clock));
        if is_taken {
            self.anchor = Some(Anchor { head, boot_ms: clock.boot_ms, boot: self.boot });
        }
        let floor = self.on_signed_time(head);
        if is_taken { TimeChange::Moved } else { floor }
    }

    /// Another verified statement named the time of its making.
    pub(crate) fn on_signed_time(&mut self, time: UnixMillis) -> TimeChange {
        if time <= self.floor {
            return TimeChange::None;
        }
        self.floor = time;
        TimeChange::Moved
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
    fn a_head_that_waited_on_the_server_does_not_turn_time_back_but_a_fast_clock_is_corrected() {
        let mut time = AgentTime::new(BOOT, UnixMillis(0), None);
        let _ = time.on_head(UnixMillis(1_000_000), clock(0, 0));
        let _ = time.on_head(UnixMillis(1_060_000), clock(0, 115_000));
        assert_eq!(time.at(clock(0, 115_000)), UnixMillis(1_115_000));
        let _ = time.on_head(UnixMillis(1_500_000), clock(0, 900_000));
        assert_eq!(time.at(clock(0, 900_000)), UnixMillis(1_500_000));
    }

    #[test]
    fn an_anchor_lives_as_long_as_its_boot_and_the_floor_for_ever() {
        let anchor = Anchor { head: UnixMillis(1_000), boot_ms: 10, boot: BOOT };
        let same = AgentTime::new(BOOT, UnixMillis(1_000), Some(anchor));
        assert_eq!(same.at(clock(0, 510)), UnixMillis(1_500));
        let other = AgentTime::new(BootId([2; 16]), UnixMillis(1_000), Some(anchor));
        assert_eq!(other.at(clock(0, 510)), UnixMillis(1_000));
    }

    #[test]
    fn a_signed_time_lifts_the_floor_and_never_lowers_it() {
        let mut time = AgentTime::new(BOOT, UnixMillis(0), None);
        assert_eq!(time.on_signed_time(UnixMillis(700)), TimeChange::Moved);
        assert_eq!(time.on_signed_time(UnixMillis(600)), TimeChange::None);
        assert_eq!(time.floor(), UnixMillis(700));
    }
}
