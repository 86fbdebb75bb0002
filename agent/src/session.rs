//! The agent's session: when to connect, to whom, how often to speak, and when to give up.
//!
//! ```text
//!            Act::Connect            connected, hello said        welcome
//!  Resting ---------------> Connecting ----------------> Greeting ---------> Active
//!     ^                         |  failed, too slow         |                  |  lost, refused, drained,
//!     +-------------------------+---------------------------+------------------+  no answer to a keepalive
//! ```
//!
//! It owns the state, the back-off and the list of servers. It reads no clock (milliseconds since boot come in), touches no
//! socket and knows no task. Laws: each way back leads through Resting with a jittered delay, and the delay grows with
//! the time that there has been no session, until one has lasted; a device that was told of a newer session of its own does not fight for its place: it
//! comes back rarely, and ever more rarely, until somebody has looked into the clone.

mod servers;
#[cfg(test)]
mod tests;

use bgb_protocol::message::{
    Abilities, Drain, KEEPALIVE_SECS_DEFAULT, KEEPALIVE_SECS_MIN, RefusedReason, Welcome,
};

use crate::parting::Parting;
use crate::random::Random;
use crate::roads::CLIMB_MS;
use servers::Servers;
pub(crate) use servers::is_address;

/// Full-jitter back-off begins with a delay of up to 1 s: late enough for nobody to notice, spread enough for a fleet.
const BACK_OFF_BASE_MS: u64 = 1_000;
/// And ends with one of up to 60 s.
const BACK_OFF_CAP_MS: u64 = 60_000;
/// Longest rest of a device that keeps being told of a newer session of its own: a clone must not flap the fleet's list.
const SUPERSEDED_CAP_MS: u64 = 15 * 60_000;
/// A session that lasted this long was a good one: the next back-off begins at its base again.
const SESSION_IS_GOOD_MS: u64 = 60_000;
/// Longest that one road may take: 5 s to connect, 10 s for a proxy's answer and the outer TLS, 10 s for the upgrade and 10 s for the session's own
/// TLS (docs/protocol.md, 9.7).
const ROAD_MS: u64 = 35_000;
/// Longest that a connection may take to be made: a climb begins its last attempt after 40 s.
const CONNECT_MS: u64 = CLIMB_MS + ROAD_MS;
/// Longest from hello to welcome: three times the 10 s that a server gives a hello.
const WELCOME_MS: u64 = 30_000;
/// Longest from a keepalive to its answer, as the server's TCP_USER_TIMEOUT (docs/promises.md, Presence).
const ANSWER_MS: u64 = 30_000;
/// When nothing was heard for so long after something was said, a keepalive asks. TCP's own questions rest while bytes are under
/// way, and it repeats those for a quarter of an hour: with the 230 s that it may have been asking before, and the time for an answer
/// after this, a dead connection is found in time for the device to be back within 300 s (docs/promises.md, invariant 2).
const HEARD_WITHIN_MS: u64 = 30_000;
/// A session's ticket is good for 7 days, and a server that goes away for good does not say so before: a session older than 5 makes place for
/// a new one, which is resumed by the ticket of the old. Somewhen within a day, so that a fleet that came together does not do so again.
const RENEW_MS: std::ops::RangeInclusive<u64> = 5 * DAY_MS..=6 * DAY_MS;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
/// A drain's window, whatever the server says: 5 to 600 s (protocol.md).
const WINDOW_SECS: std::ops::RangeInclusive<u32> = 5..=600;

/// What the session wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Connect to this `host:port`.
    Connect(String),
    /// End the connection, or the attempt at one.
    Disconnect(Parting),
    /// Say that we are still there.
    Keepalive,
}

#[derive(Clone, Debug)]
enum State {
    Resting { until_ms: u64 },
    Connecting { give_up_ms: u64 },
    Greeting { give_up_ms: u64 },
    Active(Active),
    Stopped,
}

#[derive(Clone, Debug)]
struct Active {
    since_ms: u64,
    keepalive_ms: u64,
    /// When to speak next.
    speak_ms: u64,
    /// When the answer to the last keepalive is overdue.
    answer_by_ms: Option<u64>,
    /// When the server is asked whether it is still there: something was said, and nothing heard since.
    ask_ms: Option<u64>,
    abilities: Abilities,
    /// When the session is to make place for one with a new ticket.
    renew_ms: u64,
    /// Since when there has been a better road, where there is one.
    better_road_ms: Option<u64>,
    /// The moment within a drain's window that the server gave us.
    slot_secs: Option<u32>,
}

/// What the session is at, for those who only look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionPhase {
    /// No connection; waits for its moment.
    Resting,
    /// A connection is being made.
    Connecting,
    /// Hello was said.
    Greeting,
    /// Welcome was heard.
    Active,
    /// Stopped for good.
    Stopped,
}

/// The session machine.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    state: State,
    servers: Servers,
    /// Since when there has been no good session, the time of those that were not good left out. The next try is not later than that again.
    failing_since_ms: Option<u64>,
    /// Times in a row that a newer session of this device was named.
    superseded: u32,
    random: Random,
}

impl Session {
    /// At rest until the first call of [`Self::poll`].
    pub(crate) fn new(servers: Vec<String>, random: Random) -> Self {
        let state = State::Resting { until_ms: 0 };
        Self { state, servers: Servers::new(servers), failing_since_ms: None, superseded: 0, random }
    }

    pub(crate) fn phase(&self) -> SessionPhase {
        match self.state {
            State::Resting { .. } => SessionPhase::Resting,
            State::Connecting { .. } => SessionPhase::Connecting,
            State::Greeting { .. } => SessionPhase::Greeting,
            State::Active(_) => SessionPhase::Active,
            State::Stopped => SessionPhase::Stopped,
        }
    }

    /// Whether the session is active with a server that can do `ability`.
    pub(crate) fn can(&self, ability: Abilities) -> bool {
        matches!(&self.state, State::Active(active) if active.abilities.has(ability))
    }

    /// The addresses that policy and configuration name, in their order, and how many of them are to be preferred.
    pub(crate) fn set_servers(&mut self, servers: Vec<String>, preferred: usize) {
        self.servers.set_configured(servers, preferred);
    }

    /// A policy that asks for more frequent keepalives holds at once; a longer interval is agreed with the next hello.
    pub(crate) fn shorten_keepalive(&mut self, now_ms: u64, policy_secs: Option<u32>) {
        if let (State::Active(active), Some(secs)) = (&mut self.state, policy_secs) {
            let keepalive_ms = u64::from(secs.max(KEEPALIVE_SECS_MIN)) * 1_000;
            if keepalive_ms < active.keepalive_ms {
                active.keepalive_ms = keepalive_ms;
                active.speak_ms = active.speak_ms.min(next_keepalive(now_ms, keepalive_ms, &mut self.random));
            }
        }
    }

    /// What is due at `now_ms`; asked again until it says `None`.
    pub(crate) fn poll(&mut self, now_ms: u64) -> Option<Act> {
        match &mut self.state {
            State::Resting { until_ms } if now_ms >= *until_ms => {
                self.state = State::Connecting { give_up_ms: now_ms + CONNECT_MS };
                Some(Act::Connect(self.servers.current().to_owned()))
            }
            State::Connecting { give_up_ms } if now_ms >= *give_up_ms => {
                self.on_failed(now_ms);
                Some(Act::Disconnect(Parting::ConnectTimedOut))
            }
            State::Greeting { give_up_ms } if now_ms >= *give_up_ms => {
                self.on_failed(now_ms);
                Some(Act::Disconnect(Parting::HelloUnanswered))
            }
            State::Active(active) if active.answer_by_ms.is_some_and(|by_ms| now_ms >= by_ms) => {
                self.handle_lost(now_ms);
                Some(Act::Disconnect(Parting::KeepaliveUnanswered))
            }
            State::Active(active) if now_ms >= active.leave_ms() && active.is_quiet() => {
                let reason = active.better_road_ms.map_or(Parting::TicketOld, |_| Parting::RoadBetter);
                self.failing_since_ms = None;
                self.state = State::Resting { until_ms: now_ms };
                Some(Act::Disconnect(reason))
            }
            State::Active(active) if now_ms >= active.next_word_ms() => {
                active.speak_ms = next_keepalive(now_ms, active.keepalive_ms, &mut self.random);
                active.answer_by_ms.get_or_insert(now_ms + ANSWER_MS);
                Some(Act::Keepalive)
            }
            _ => None,
        }
    }

    /// When [`Self::poll`] has something to say, in milliseconds since boot.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        match &self.state {
            State::Resting { until_ms } => Some(*until_ms),
            State::Connecting { give_up_ms } | State::Greeting { give_up_ms } => Some(*give_up_ms),
            State::Active(active) => {
                // While a word is on its way, the ticket waits for the answer, or for its being overdue.
                let leave_ms = if active.is_quiet() { active.leave_ms() } else { u64::MAX };
                let word_ms = active.next_word_ms().min(leave_ms);
                Some(active.answer_by_ms.map_or(word_ms, |by_ms| by_ms.min(word_ms)))
            }
            State::Stopped => None,
        }
    }

    /// The connection stands: the caller says hello. `false` when none was being made.
    pub(crate) fn handle_connected(&mut self, now_ms: u64) -> bool {
        let is_expected = matches!(self.state, State::Connecting { .. });
        if is_expected {
            self.state = State::Greeting { give_up_ms: now_ms + WELCOME_MS };
        }
        is_expected
    }

    /// The connection is gone, or did not come about.
    pub(crate) fn handle_lost(&mut self, now_ms: u64) {
        match &self.state {
            State::Resting { .. } | State::Stopped => {}
            State::Connecting { .. } | State::Greeting { .. } => self.on_failed(now_ms),
            State::Active(_) => {
                if self.note_end(now_ms) {
                    // Told of a newer session long ago: that is over.
                    self.superseded = 0;
                }
                // Likely a cut line: the same server first, the next one after that.
                self.rest_jittered(now_ms);
            }
        }
    }

    /// Signed in. `false` when that is not what was asked.
    pub(crate) fn handle_welcome(
        &mut self,
        now_ms: u64,
        welcome: &Welcome,
        policy_secs: Option<u32>,
    ) -> bool {
        if !matches!(self.state, State::Greeting { .. }) {
            return false;
        }
        self.servers.learn(&welcome.other_servers);
        let secs = welcome.keepalive_secs.clamp(KEEPALIVE_SECS_MIN, KEEPALIVE_SECS_DEFAULT);
        let keepalive_ms = u64::from(policy_secs.map_or(secs, |own| own.min(secs))) * 1_000;
        self.state = State::Active(Active {
            since_ms: now_ms,
            keepalive_ms,
            speak_ms: next_keepalive(now_ms, keepalive_ms, &mut self.random),
            answer_by_ms: None,
            ask_ms: None,
            abilities: welcome.abilities,
            renew_ms: now_ms + self.random.between(*RENEW_MS.start(), *RENEW_MS.end()),
            better_road_ms: None,
            slot_secs: welcome.reconnect_slot_secs,
        });
        true
    }

    /// There is a better road to the server: the session makes place for one on that.
    pub(crate) fn handle_better_road(&mut self, now_ms: u64) {
        if let State::Active(active) = &mut self.state {
            active.better_road_ms = Some(now_ms);
        }
    }

    /// The better road is there no more: the session stays.
    pub(crate) fn handle_road_gone(&mut self) {
        if let State::Active(active) = &mut self.state {
            active.better_road_ms = None;
        }
    }

    /// The server's head is wanted now: a keepalive is answered with it.
    pub(crate) fn want_head(&mut self, now_ms: u64) {
        if let State::Active(active) = &mut self.state {
            active.speak_ms = active.speak_ms.min(now_ms);
        }
    }

    /// The server answered a keepalive.
    pub(crate) fn handle_keepalive_answer(&mut self) {
        if let State::Active(active) = &mut self.state {
            active.answer_by_ms = None;
        }
    }

    /// Something was said to the server.
    pub(crate) fn handle_said(&mut self, now_ms: u64) {
        if let State::Active(active) = &mut self.state {
            active.ask_ms.get_or_insert(now_ms + HEARD_WITHIN_MS);
        }
    }

    /// Something was heard from the server, whatever it is.
    pub(crate) fn handle_heard(&mut self) {
        if let State::Active(active) = &mut self.state {
            active.ask_ms = None;
        }
    }

    /// The server goes away: come back at a moment of its window. `true` when there is a connection to end.
    pub(crate) fn handle_drain(&mut self, now_ms: u64, drain: &Drain) -> bool {
        let slot_secs = match &self.state {
            State::Greeting { .. } => None,
            State::Active(active) => active.slot_secs,
            State::Resting { .. } | State::Connecting { .. } | State::Stopped => return false,
        };
        let window_secs = drain.window_secs.clamp(*WINDOW_SECS.start(), *WINDOW_SECS.end());
        let delay_ms = match slot_secs {
            // Those of the same second spread over it.
            Some(slot_secs) if slot_secs <= window_secs => {
                u64::from(slot_secs) * 1_000 + self.random.up_to(1_000)
            }
            _ => self.random.up_to(u64::from(window_secs) * 1_000),
        };
        self.servers.go_to(&drain.servers);
        self.failing_since_ms = None;
        self.state = State::Resting { until_ms: now_ms + delay_ms };
        true
    }

    /// The server ends the session. `true` when there is a connection to end.
    pub(crate) fn handle_refused(&mut self, now_ms: u64, reason: RefusedReason) -> bool {
        if !matches!(self.state, State::Greeting { .. } | State::Active(_)) {
            return false;
        }
        if self.note_end(now_ms) {
            // Two machines that bear one identity end each other's good sessions: that is not over.
            if reason != RefusedReason::Superseded {
                self.superseded = 0;
            }
        }
        match reason {
            RefusedReason::Blocked | RefusedReason::Certificate => self.rest_long(now_ms, BACK_OFF_CAP_MS),
            RefusedReason::Superseded => {
                let most_ms = BACK_OFF_CAP_MS.saturating_mul(1 << self.superseded.min(8));
                self.superseded = self.superseded.saturating_add(1);
                self.rest_long(now_ms, most_ms.min(SUPERSEDED_CAP_MS));
            }
            RefusedReason::Unavailable | RefusedReason::Full | RefusedReason::Protocol => {
                self.on_failed(now_ms);
            }
        }
        true
    }

    /// The agent ends: no connection any more. `true` when there is one to end.
    pub(crate) fn handle_stop(&mut self) -> bool {
        let had = !matches!(self.state, State::Resting { .. } | State::Stopped);
        self.state = State::Stopped;
        had
    }

    /// A session ends, if there is one: whether it was a good one. The time of one that was not does not count as time without.
    fn note_end(&mut self, now_ms: u64) -> bool {
        let State::Active(active) = &self.state else { return false };
        let lasted_ms = now_ms.saturating_sub(active.since_ms);
        let was_good = lasted_ms >= SESSION_IS_GOOD_MS;
        self.failing_since_ms =
            self.failing_since_ms.filter(|_| !was_good).map(|since_ms| since_ms + lasted_ms);
        was_good
    }

    /// This server did not work out: the next one, after a while.
    fn on_failed(&mut self, now_ms: u64) {
        self.servers.advance();
        self.rest_jittered(now_ms);
    }

    /// Anything from nothing to the time that it has been failing: whoever has just asked in vain asks again as soon as those who have not asked
    /// yet, and when a server is back, so are all its devices in no more than the time that it was away.
    fn rest_jittered(&mut self, now_ms: u64) {
        let since_ms = *self.failing_since_ms.get_or_insert(now_ms);
        let most_ms = now_ms.saturating_sub(since_ms).clamp(BACK_OFF_BASE_MS, BACK_OFF_CAP_MS);
        self.state = State::Resting { until_ms: now_ms + self.random.up_to(most_ms) };
    }

    /// Where trying again soon is of no use: from half the limit to all of it.
    fn rest_long(&mut self, now_ms: u64, most_ms: u64) {
        self.servers.advance();
        self.state = State::Resting { until_ms: now_ms + self.random.between(most_ms / 2, most_ms) };
    }
}

impl Active {
    /// Whether nothing that was said waits for an answer.
    fn is_quiet(&self) -> bool {
        self.answer_by_ms.is_none() && self.ask_ms.is_none()
    }

    /// When the session is to make place for another.
    fn leave_ms(&self) -> u64 {
        self.better_road_ms.unwrap_or(self.renew_ms)
    }

    /// When a keepalive is due: by its interval, or because nothing was heard after what was said. One that waits for its answer
    /// needs no other.
    fn next_word_ms(&self) -> u64 {
        match (self.ask_ms, self.answer_by_ms) {
            (Some(ask_ms), None) => ask_ms.min(self.speak_ms),
            _ => self.speak_ms,
        }
    }
}

/// 90 to 100 % of the interval: devices that signed in together do not go on speaking together.
fn next_keepalive(now_ms: u64, keepalive_ms: u64, random: &mut Random) -> u64 {
    now_ms + random.between(keepalive_ms - keepalive_ms / 10, keepalive_ms)
}
