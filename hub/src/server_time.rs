//! The server's time: what it judges the validity of tasks and certificates by.
//!
//! It is the later of the wall clock and the site's time: what heads told, plus the ticks since. So a wall clock that is behind
//! does not push what has expired. Each head is a moment that has passed when it is heard, some sooner and some later: the latest that any of
//! them leads to is nearest to the truth, and a head that comes late sets nothing back. It also keeps the newest head itself, for those who are
//! to hear of it.
//!
//! It does not go back by itself either: what has been released by it is released. A wall clock that is set back is waited for; where that
//! is more than slewing does, the caller has all orders come again, and from [`ServerTime::on_reset`] on it goes by the clock as it is.

use std::sync::Arc;

use bgb_protocol::ids::UnixMillis;

use crate::time::{Now, TICK_MS, Tick};

#[derive(Debug, Default)]
pub(crate) struct ServerTime {
    now: Now,
    /// The latest that the wall clock has shown since everything was read last.
    reached: UnixMillis,
    head: Option<Head>,
}

#[derive(Debug)]
struct Head {
    signed: Arc<[u8]>,
    time: UnixMillis,
    /// The site's time when it was heard.
    site: UnixMillis,
    heard: Tick,
}

impl ServerTime {
    /// Takes the caller's clocks; monotonic time that goes back stands still.
    pub(crate) fn set(&mut self, now: Now) {
        self.now = Now { tick: self.now.tick.max(now.tick), unix: now.unix };
        self.reached = self.reached.max(now.unix);
    }

    /// All orders come again: nothing hangs on what the wall clock has shown before.
    pub(crate) fn on_reset(&mut self) {
        self.reached = self.now.unix;
    }

    /// Takes a head, if it is newer than the present one.
    pub(crate) fn on_head(&mut self, signed: Arc<[u8]>, time: UnixMillis) {
        if self.head.as_ref().is_none_or(|head| time > head.time) {
            let site = self.head.as_ref().map_or(time, |_| self.site_time().max(time));
            self.head = Some(Head { signed, time, site, heard: self.now.tick });
        }
    }

    pub(crate) fn tick(&self) -> Tick {
        self.now.tick
    }

    /// The wall clock, for when results were heard.
    pub(crate) fn wall(&self) -> UnixMillis {
        self.now.unix
    }

    /// The server's time.
    pub(crate) fn time(&self) -> UnixMillis {
        self.reached.max(self.site_time())
    }

    /// The site's time, as far as heads tell, or the wall clock where there is none. What is over by
    /// it may be forgotten: a wall clock that is ahead may be set back, and what it made seem over is not then.
    pub(crate) fn site_time(&self) -> UnixMillis {
        self.head.as_ref().map_or(self.reached, |head| head.site.plus(self.since_ms(head)))
    }

    /// The tick at which the site's time will be `time`, as far as can be told now; the present one when it has passed.
    pub(crate) fn tick_of_site(&self, time: UnixMillis) -> Tick {
        self.now.tick.plus(time.since(self.site_time()).div_ceil(TICK_MS))
    }

    fn since_ms(&self, head: &Head) -> u64 {
        self.now.tick.since(head.heard).saturating_mul(TICK_MS)
    }

    /// The tick at which the server's time will be `time`, as far as can be told now; the present one when it has passed.
    pub(crate) fn tick_of(&self, time: UnixMillis) -> Tick {
        self.now.tick.plus(time.since(self.time()).div_ceil(TICK_MS))
    }

    /// Bytes of the newest head; empty while there is none.
    pub(crate) fn head(&self) -> Vec<u8> {
        self.head.as_ref().map_or_else(Vec::new, |head| head.signed.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tick: u64, unix: u64) -> Now {
        Now { tick: Tick(tick), unix: UnixMillis(unix) }
    }

    #[test]
    fn a_wall_clock_that_is_behind_gives_way_to_the_head() {
        let mut time = ServerTime::default();
        time.set(at(10, 1_000));
        time.on_head(vec![1].into(), UnixMillis(50_000));
        time.set(at(30, 1_200));
        assert_eq!(time.time(), UnixMillis(52_000));
        time.set(at(30, 60_000));
        assert_eq!(time.time(), UnixMillis(60_000));
    }

    #[test]
    fn a_wall_clock_that_is_set_back_is_waited_for_until_everything_comes_again() {
        let mut time = ServerTime::default();
        time.set(at(10, 60_000));
        time.set(at(11, 59_500));
        assert_eq!((time.time(), time.wall()), (UnixMillis(60_000), UnixMillis(59_500)));
        time.set(at(20, 60_400));
        assert_eq!(time.time(), UnixMillis(60_400));
        time.set(at(21, 30_000));
        time.on_reset();
        assert_eq!(time.time(), UnixMillis(30_000));
    }

    #[test]
    fn the_sites_time_is_the_heads_whatever_the_wall_clock_says() {
        let mut time = ServerTime::default();
        time.set(at(10, 1_000));
        assert_eq!(time.site_time(), UnixMillis(1_000), "there is no head");
        time.on_head(vec![1].into(), UnixMillis(50_000));
        time.set(at(30, 900_000));
        assert_eq!((time.site_time(), time.time()), (UnixMillis(52_000), UnixMillis(900_000)));
        assert_eq!(time.tick_of_site(UnixMillis(52_150)), Tick(32));
    }

    #[test]
    fn a_head_that_is_heard_late_sets_nothing_back() {
        let mut time = ServerTime::default();
        time.set(at(10, 0));
        time.on_head(vec![1].into(), UnixMillis(50_000));
        time.set(at(810, 0));
        time.on_head(vec![2].into(), UnixMillis(110_000));
        assert_eq!((time.head(), time.site_time()), (vec![2], UnixMillis(130_000)));
        time.on_head(vec![3].into(), UnixMillis(140_000));
        assert_eq!(time.site_time(), UnixMillis(140_000));
    }

    #[test]
    fn an_older_head_or_the_same_again_changes_nothing() {
        let mut time = ServerTime::default();
        time.set(at(10, 0));
        time.on_head(vec![1].into(), UnixMillis(50_000));
        time.set(at(20, 0));
        time.on_head(vec![2].into(), UnixMillis(50_000));
        time.on_head(vec![3].into(), UnixMillis(40_000));
        assert_eq!(time.head(), [1]);
        assert_eq!(time.time(), UnixMillis(51_000));
    }

    #[test]
    fn a_moment_to_come_is_the_tick_at_which_it_has_come() {
        let mut time = ServerTime::default();
        time.set(at(7, 1_000));
        assert_eq!(time.tick_of(UnixMillis(1_001)), Tick(8));
        assert_eq!(time.tick_of(UnixMillis(1_100)), Tick(8));
        assert_eq!(time.tick_of(UnixMillis(500)), Tick(7));
    }
}
