//! The site's time, as its signed heads tell it: each is a moment that has passed when it is heard, some sooner and some later.
//!
//! The latest moment that one of the last few leads to, by the milliseconds since, is nearest to the truth: so one that is heard late sets
//! nothing back. No more than the last few, since milliseconds are counted by a clock that may itself be slewed: a moment of long ago would lead
//! ever further astray.

use bgb_protocol::ids::UnixMillis;

/// Heads that count: one a minute is signed. While a clock is slewed by a tenth, the most that Linux does, they lead some 24 s too far.
const HEADS: usize = 4;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct SiteClock {
    /// Times of heads, the newest first, and the millisecond of monotonic time at which each was heard.
    heads: [Option<(UnixMillis, u64)>; HEADS],
}

impl SiteClock {
    /// A head is heard; one that is not newer than all before it changes nothing. Whether it was newer.
    pub fn hear(&mut self, time: UnixMillis, mono_ms: u64) -> bool {
        let is_newer = self.newest().is_none_or(|newest| time > newest);
        if is_newer {
            self.heads.rotate_right(1);
            self.heads[0] = Some((time, mono_ms));
        }
        is_newer
    }

    /// The newest head's time.
    #[must_use]
    pub fn newest(&self) -> Option<UnixMillis> {
        self.heads[0].map(|(time, _)| time)
    }

    /// The site's time; `None` before the first head.
    #[must_use]
    pub fn time(&self, mono_ms: u64) -> Option<UnixMillis> {
        let leads_to = |(time, heard): &(UnixMillis, u64)| time.plus(mono_ms.saturating_sub(*heard));
        self.heads.iter().flatten().map(leads_to).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_is_heard_late_sets_nothing_back_and_an_older_one_is_nothing() {
        let mut clock = SiteClock::default();
        assert_eq!(clock.time(5), None);
        assert!(clock.hear(UnixMillis(50_000), 1_000));
        assert!(clock.hear(UnixMillis(110_000), 81_000));
        assert_eq!(clock.time(81_000), Some(UnixMillis(130_000)));
        assert!(!clock.hear(UnixMillis(110_000), 81_500) && !clock.hear(UnixMillis(90_000), 81_500));
        assert_eq!(
            (clock.newest(), clock.time(82_000)),
            (Some(UnixMillis(110_000)), Some(UnixMillis(131_000)))
        );
        assert!(clock.hear(UnixMillis(170_000), 82_000));
        assert_eq!(clock.time(82_000), Some(UnixMillis(170_000)));
    }

    #[test]
    fn a_clock_that_counts_too_fast_leads_astray_by_some_minutes_worth_of_it_only() {
        let mut clock = SiteClock::default();
        // A minute of the site's is 65 s of this machine's.
        for minute in 0..1_000_u64 {
            clock.hear(UnixMillis(minute * 60_000), minute * 65_000);
            let time = clock.time(minute * 65_000).unwrap();
            assert!(time <= UnixMillis(minute * 60_000 + 15_000), "{time:?} in minute {minute}");
        }
    }
}
