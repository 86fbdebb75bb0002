//! The server's time: what it judges the validity of tasks and certificates by.
//!
//! It is the later of the wall clock and the site's time, as heads tell it ([`SiteClock`]). So a wall clock that is behind
//! does not push what has expired. It also keeps the newest head itself, for those who are to hear of it.

use std::sync::Arc;

use bgb_protocol::ids::UnixMillis;

use crate::site_clock::SiteClock;
use crate::time::{Now, TICK_MS, Tick};

#[derive(Debug, Default)]
pub(crate) struct ServerTime {
    now: Now,
    site: SiteClock,
    head: Option<Arc<[u8]>>,
}

impl ServerTime {
    /// Takes the caller's clocks; monotonic time that goes back stands still.
    pub(crate) fn set(&mut self, now: Now) {
        self.now = Now { tick: self.now.tick.max(now.tick), unix: now.unix };
    }

    /// Takes a head, if it is newer than the present one.
    pub(crate) fn on_head(&mut self, signed: Arc<[u8]>, time: UnixMillis) {
        if self.site.hear(time, self.mono_ms()) {
            self.head = Some(signed);
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
        self.now.unix.max(self.site_time())
    }

    /// The site's time, as far as heads tell, or the wall clock where there is none. What is over by
    /// it may be forgotten: a wall clock that is ahead may be set back, and what it made seem over is not then.
    pub(crate) fn site_time(&self) -> UnixMillis {
        self.site.time(self.mono_ms()).unwrap_or(self.now.unix)
    }

    /// The tick at which the site's time will be `time`, as far as can be told now; the present one when it has passed.
    pub(crate) fn tick_of_site(&self, time: UnixMillis) -> Tick {
        self.now.tick.plus(time.since(self.site_time()).div_ceil(TICK_MS))
    }

    fn mono_ms(&self) -> u64 {
        self.now.tick.0.saturating_mul(TICK_MS)
    }

    /// The tick at which the server's time will be `time`, as far as can be told now; the present one when it has passed.
    pub(crate) fn tick_of(&self, time: UnixMillis) -> Tick {
        self.now.tick.plus(time.since(self.time()).div_ceil(TICK_MS))
    }

    /// Bytes of the newest head; empty while there is none.
    pub(crate) fn head(&self) -> Vec<u8> {
        self.head.as_ref().map_or_else(Vec::new, |signed| signed.to_vec())
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
