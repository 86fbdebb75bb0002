//! How long a road bears silence: what proxies that cut idle connections have taught.
//!
//! A single cut proves nothing: servers and lines fail at any time. What cuts by a timer does so after the same silence again, and
//! is believed then. After a day it is forgotten, since networks change.

use std::time::Duration;

use bgb_protocol::ids::UnixMillis;
use serde::{Deserialize, Serialize};

/// How often a WebSocket is pinged of which nothing is known: as TCP keepalive is (docs/promises.md, Presence).
const PING_SECS: u32 = 200;
/// A road on which more frequent pings were needed is not worth its noise.
const PING_SECS_MIN: u32 = 15;
/// How long a GET is held of which nothing is known (docs/protocol.md, 13.2).
const HOLD_SECS: u32 = 60;
/// Shorter ones would be polling.
const HOLD_SECS_MIN: u32 = 5;
/// A silence that is no longer than this is none.
const SILENCE_SECS_MIN: u32 = 5;
/// Two cuts are by one timer when they differ by no more than a tenth, or this.
const SAME_SECS: u32 = 2;
/// How long it is believed.
const BELIEVED_MS: u64 = 24 * 60 * 60 * 1_000;

/// What is known of one road.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// After how long a silence it was cut last, once.
    suspected_secs: Option<u32>,
    /// The shortest after which it was cut more than once.
    learned_secs: Option<u32>,
    /// When that was.
    at: UnixMillis,
}

impl Idle {
    /// The road was cut after so long a silence; whether anything new is known by it.
    pub fn note_cut(&mut self, silence: Duration, now: UnixMillis) -> bool {
        let secs = u32::try_from(silence.as_secs()).unwrap_or(u32::MAX);
        if secs < SILENCE_SECS_MIN {
            return false;
        }
        let is_same = |other: u32| secs.abs_diff(other) <= SAME_SECS.max(other / 10);
        let is_regular = self.suspected_secs.is_some_and(is_same);
        self.suspected_secs = Some(secs);
        // Another cut says nothing of the timer that is known.
        if self.learned_secs.is_none_or(is_same) {
            self.at = now;
        }
        if is_regular && self.learned_secs.is_none_or(|known| secs < known) {
            (self.learned_secs, self.at) = (Some(secs), now);
        }
        true
    }

    /// What still holds of it.
    #[must_use]
    pub fn at(self, now: UnixMillis) -> Self {
        if now.0.abs_diff(self.at.0) < BELIEVED_MS { self } else { Self::default() }
    }

    /// How often a WebSocket is pinged where nothing helps: that bears no silence, and there is no other road.
    pub(crate) const PING_EVERY_ANYWAY: Duration = Duration::from_secs(PING_SECS as u64);

    /// How often a WebSocket is to be pinged; `None` where that would be too often.
    #[must_use]
    pub fn ping_every(self) -> Option<Duration> {
        let secs = self.learned_secs.map_or(PING_SECS, |secs| two_thirds(secs).min(PING_SECS));
        (secs >= PING_SECS_MIN).then(|| Duration::from_secs(u64::from(secs)))
    }

    /// How long a GET may be held, in seconds.
    #[must_use]
    pub fn hold_secs(self) -> u32 {
        self.learned_secs.map_or(HOLD_SECS, |secs| two_thirds(secs).clamp(HOLD_SECS_MIN, HOLD_SECS))
    }
}

fn two_thirds(secs: u32) -> u32 {
    (u64::from(secs) * 2 / 3) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(idle: &mut Idle, secs: u64) -> (Option<u64>, u32) {
        idle.note_cut(Duration::from_secs(secs), UnixMillis(0));
        (idle.ping_every().map(|every| every.as_secs()), idle.hold_secs())
    }

    #[test]
    fn a_timer_is_believed_when_it_cuts_again_and_the_shortest_counts() {
        let mut idle = Idle::default();
        assert_eq!(cut(&mut idle, 60), (Some(200), 60), "once is chance");
        assert_eq!(cut(&mut idle, 20), (Some(200), 60), "and so is another time");
        assert_eq!(cut(&mut idle, 60), (Some(200), 60));
        assert_eq!(cut(&mut idle, 61), (Some(40), 40), "nginx");
        assert_eq!(cut(&mut idle, 30), (Some(40), 40));
        assert_eq!(cut(&mut idle, 30), (Some(20), 20), "haproxy");
        assert_eq!(cut(&mut idle, 60), (Some(20), 20));
        assert_eq!(cut(&mut idle, 60), (Some(20), 20));
    }

    #[test]
    fn below_the_least_a_websocket_is_given_up_and_a_get_held_no_shorter() {
        let mut idle = Idle::default();
        assert_eq!(cut(&mut idle, 3), (Some(200), 60), "that is no silence");
        cut(&mut idle, 6);
        assert_eq!(cut(&mut idle, 6), (None, 5));
    }

    #[test]
    fn it_is_forgotten_after_a_day() {
        let mut idle = Idle::default();
        cut(&mut idle, 60);
        cut(&mut idle, 60);
        assert_eq!(idle.at(UnixMillis(BELIEVED_MS - 1)).hold_secs(), 40);
        assert_eq!(idle.at(UnixMillis(BELIEVED_MS)), Idle::default());
        // What is cut by something else meanwhile does not make it last.
        cut(&mut idle, 60);
        cut(&mut idle, 60);
        idle.note_cut(Duration::from_secs(300), UnixMillis(BELIEVED_MS / 2));
        assert_eq!(idle.at(UnixMillis(BELIEVED_MS)), Idle::default());
        idle.note_cut(Duration::from_secs(60), UnixMillis(BELIEVED_MS / 2));
        assert_eq!(idle.at(UnixMillis(BELIEVED_MS)).hold_secs(), 40);
        // The agent's own time was ahead when it was noted.
        idle.at = UnixMillis(BELIEVED_MS);
        assert_eq!(idle.at(UnixMillis(0)), Idle::default());
    }
}
