//! The ladder: which road is tried next.
//!
//! ```text
//!            next()                 on_connected()         on_welcome()
//!  Climbing ------> attempt ------------------> Connected ------------> Signed in -- on_ended() --> at rest
//!     ^  \ on_failed()  |                            \ on_ended(): unheard, the climb goes on below it
//!     +---+-------------+
//! ```
//!
//! It owns the order of the rungs, the limit of a climb, the rule that TCP has its time before anything else is tried, the moments of probes,
//! and the reason that a hello gives. It reads no clock and touches no socket: time comes in with each call. Laws: a climb begins
//! its last attempt within 40 s; one that was cut short goes on where it stopped, server by server; an agent that had TCP
//! within a day tries nothing else in the reconnect window, so that a server's restart does not move its fleet; a road is known to
//! work when a server has welcomed us on it, not before.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bgb_protocol::ids::UnixMillis;
use bgb_protocol::message::{Road, RoadReason, RoadTaken};

use super::CLIMB_MS;
use super::idle::Idle;
use super::memory::Memory;
use super::rung::Rung;
use crate::random::Random;

/// Whoever had TCP so long ago has it no more.
const TCP_IS_RECENT_MS: u64 = 24 * 60 * 60 * 1_000;
/// The reconnect window of a server that named none, and its bounds (docs/protocol.md, 5).
const WINDOW_SECS: u32 = 600;
const WINDOW_SECS_MIN: u32 = 5;
/// From HTTP, TCP is tried after so long …
const PROBE_MS: u64 = 5 * 60_000;
/// … and, doubling, this at the most; each give or take a quarter.
const PROBE_MS_MAX: u64 = 6 * 60 * 60_000;
/// Whoever lost TCP after less than this may lose it again: probes go on as rarely as they had become.
const TCP_IS_GOOD_MS: u64 = 10 * 60_000;
/// `tcp_at` on disk is as exact as it needs to be.
const TCP_AT_STEP_MS: u64 = 60 * 60_000;
/// Servers whose climb was cut short; more than an agent goes round.
const PLACES_MAX: usize = 64;

/// When something is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Milliseconds since boot.
    pub(crate) boot_ms: u64,
    /// The agent's own time, which goes on over a restart.
    pub(crate) own: UnixMillis,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Ladder {
    memory: Memory,
    climb: Option<Climb>,
    /// What is left of climbs that were cut short, by server.
    places: BTreeMap<String, VecDeque<Rung>>,
    /// What rungs above the one that is taken have told of who stands in between, the newest last.
    told: Vec<(Rung, RoadReason)>,
    current: Option<Current>,
    /// Only TCP until then, in milliseconds since boot.
    tcp_only_until_ms: u64,
    window_ms: u64,
    probe_wait_ms: u64,
    /// When TCP is tried beside a session over HTTP.
    probe_due_ms: Option<u64>,
    next_first: First,
    random: Random,
}

/// What the next climb begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// What worked last.
    Worked,
    /// TCP: a probe has just come through.
    Tcp,
}

/// An attempt at one server.
#[derive(Clone, Debug)]
struct Climb {
    server: String,
    until_ms: u64,
    left: VecDeque<Rung>,
}

/// The connection that there is.
#[derive(Clone, Debug)]
struct Current {
    rung: Rung,
    server: String,
    /// The rungs below it that were not tried.
    left: VecDeque<Rung>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its TLS stands.
    Connected,
    /// The server has said something.
    Heard,
    /// Signed in, at this time in milliseconds since boot.
    Welcomed(u64),
}

impl Ladder {
    /// With what was remembered; the process begins now.
    pub(crate) fn new(memory: Memory, now: Moment, random: Random) -> Self {
        let window_ms = u64::from(WINDOW_SECS) * 1_000;
        Self {
            memory,
            climb: None,
            places: BTreeMap::new(),
            told: Vec::new(),
            current: None,
            tcp_only_until_ms: now.boot_ms + window_ms,
            window_ms,
            probe_wait_ms: PROBE_MS,
            probe_due_ms: None,
            next_first: First::Worked,
            random,
        }
    }

    /// What is to be remembered.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The rung of the connection that there is.
    pub(crate) fn current(&self) -> Option<Rung> {
        self.current.as_ref().map(|current| current.rung)
    }

    /// A climb to `server` begins, on the rungs that are `allowed` there.
    pub(crate) fn begin(&mut self, server: &str, allowed: &[Rung], now: Moment) {
        self.current = None;
        let first = std::mem::replace(&mut self.next_first, First::Worked);
        let left = match self.places.remove(server) {
            _ if self.is_tcp_only(allowed, now) => VecDeque::from([Rung::TCP]),
            _ if first == First::Tcp && allowed.contains(&Rung::TCP) => {
                let others = self.order(allowed, now).into_iter().filter(|rung| *rung != Rung::TCP);
                std::iter::once(Rung::TCP).chain(others).collect()
            }
            Some(left) if left.iter().any(|rung| allowed.contains(rung)) => {
                left.into_iter().filter(|rung| allowed.contains(rung)).collect()
            }
            _ => self.order(allowed, now),
        };
        self.climb = Some(Climb { server: server.to_owned(), until_ms: now.boot_ms + CLIMB_MS, left });
    }

    /// The rung to be tried now; `None` when the climb is over, for this time or altogether.
    pub(crate) fn next(&mut self, now_ms: u64) -> Option<Rung> {
        let climb = self.climb.as_mut()?;
        if now_ms < climb.until_ms
            && let Some(rung) = climb.left.pop_front()
        {
            return Some(rung);
        }
        let Climb { server, left, .. } = self.climb.take()?;
        self.keep_place(server, left);
        None
    }

    /// The attempt on `rung` came to nothing.
    pub(crate) fn on_failed(&mut self, rung: Rung, reason: Option<RoadReason>) {
        self.told.retain(|(known, _)| *known != rung);
        match reason {
            reason if rung == Rung::TCP => self.memory.tcp_reason = reason,
            Some(reason @ (RoadReason::Intercepted(_) | RoadReason::ProxyAnswer(_))) => {
                self.told.push((rung, reason));
            }
            _ => {}
        }
    }

    /// A connection stands on `rung`, which somebody has opened whose certificates bear `issuer`: what the hello says of it.
    pub(crate) fn on_connected(&mut self, rung: Rung, issuer: Option<String>) -> RoadTaken {
        let climb = self.climb.take();
        let (server, left) = climb.map_or_else(Default::default, |climb| (climb.server, climb.left));
        self.current = Some(Current { rung, server, left, stage: Stage::Connected });
        if rung == Rung::TCP {
            return rung.taken(None);
        }
        let better = self.told.iter().rev().find(|(told, _)| told.place() < rung.place());
        let told = issuer.map(RoadReason::Intercepted).or_else(|| better.map(|(_, reason)| reason.clone()));
        rung.taken(told.or_else(|| self.memory.tcp_reason.clone()))
    }

    /// The server has said something: the road works, whatever it said.
    pub(crate) fn on_heard(&mut self) {
        if let Some(current) = &mut self.current
            && current.stage == Stage::Connected
        {
            current.stage = Stage::Heard;
        }
    }

    /// Signed in.
    pub(crate) fn on_welcome(&mut self, window_secs: u32, now: Moment) {
        self.on_window(window_secs);
        let Some(current) = &mut self.current else { return };
        current.stage = Stage::Welcomed(now.boot_ms);
        let rung = current.rung;
        self.memory.worked = Some(rung);
        if rung == Rung::TCP {
            (self.memory.tcp_reason, self.probe_due_ms) = (None, None);
            self.told.clear();
            self.note_tcp(now.own);
        } else if self.probe_due_ms.is_none() {
            self.plan_probe(now.boot_ms);
        }
    }

    /// The server said within what time its devices come back.
    pub(crate) fn on_window(&mut self, window_secs: u32) {
        self.window_ms = u64::from(window_secs.clamp(WINDOW_SECS_MIN, WINDOW_SECS)) * 1_000;
    }

    /// The connection is over.
    pub(crate) fn on_ended(&mut self, now: Moment) {
        let Some(Current { rung, server, left, stage }) = self.current.take() else { return };
        match stage {
            // What answers there lets the handshake through and nothing else.
            Stage::Connected => self.keep_place(server, left),
            Stage::Heard => {}
            Stage::Welcomed(since_ms) if rung == Rung::TCP => {
                self.tcp_only_until_ms = now.boot_ms + self.window_ms;
                self.note_tcp(now.own);
                if now.boot_ms.saturating_sub(since_ms) >= TCP_IS_GOOD_MS {
                    self.probe_wait_ms = PROBE_MS;
                }
            }
            Stage::Welcomed(_) => {}
        }
    }

    /// The road was cut after so long a silence.
    pub(crate) fn on_cut(&mut self, silence: Duration, now: Moment) {
        let Some(rung) = self.current() else { return };
        let mut idle = self.idle(rung, now.own);
        if idle.note_cut(silence, now.own) {
            self.memory.idle.insert(rung, idle);
        }
    }

    /// What is known of how long `rung` bears silence.
    pub(crate) fn idle(&self, rung: Rung, now: UnixMillis) -> Idle {
        self.memory.idle.get(&rung).copied().unwrap_or_default().at(now)
    }

    /// When TCP is to be tried beside the session, in milliseconds since boot.
    pub(crate) fn probe_due_ms(&self) -> Option<u64> {
        let is_over_http = self
            .current
            .as_ref()
            .is_some_and(|current| current.rung != Rung::TCP && matches!(current.stage, Stage::Welcomed(_)));
        self.probe_due_ms.filter(|_| is_over_http)
    }

    /// A probe begins, and counts as one that came to nothing until more is known.
    pub(crate) fn on_probe(&mut self, now_ms: u64) {
        self.probe_wait_ms = (2 * self.probe_wait_ms).min(PROBE_MS_MAX);
        self.plan_probe(now_ms);
    }

    /// TCP was tried for nothing.
    pub(crate) fn on_probe_failed(&mut self, reason: Option<RoadReason>) {
        self.memory.tcp_reason = reason;
    }

    /// TCP was tried, and a server answered: the next climb begins there.
    pub(crate) fn on_probe_worked(&mut self) {
        self.next_first = First::Tcp;
    }

    fn plan_probe(&mut self, now_ms: u64) {
        let quarter_ms = self.probe_wait_ms / 4;
        let wait_ms = self.random.between(self.probe_wait_ms - quarter_ms, self.probe_wait_ms + quarter_ms);
        self.probe_due_ms = Some(now_ms + wait_ms);
    }

    fn note_tcp(&mut self, own: UnixMillis) {
        if self.memory.tcp_at.is_none_or(|at| own.0.abs_diff(at.0) >= TCP_AT_STEP_MS) {
            self.memory.tcp_at = Some(own);
        }
    }

    fn is_tcp_only(&self, allowed: &[Rung], now: Moment) -> bool {
        let is_recent =
            self.memory.tcp_at.is_some_and(|at| now.own.0.saturating_sub(at.0) < TCP_IS_RECENT_MS);
        // Whoever was on HTTP last has no TCP to come back to.
        let was_last = self.memory.worked.is_none_or(|rung| rung == Rung::TCP);
        is_recent && was_last && now.boot_ms < self.tcp_only_until_ms && allowed.contains(&Rung::TCP)
    }

    /// What worked last, then the others, the best first; those that bear no silence come last, since they are better than none.
    fn order(&self, allowed: &[Rung], now: Moment) -> VecDeque<Rung> {
        let is_fit =
            |rung: &Rung| rung.road != Road::WebSocket || self.idle(*rung, now.own).ping_every().is_some();
        let (mut order, unfit): (VecDeque<_>, VecDeque<_>) = allowed.iter().copied().partition(is_fit);
        let worked = self.memory.worked.and_then(|rung| order.iter().position(|other| *other == rung));
        if let Some(rung) = worked.and_then(|at| order.remove(at)) {
            order.push_front(rung);
        }
        order.extend(unfit);
        order
    }

    fn keep_place(&mut self, server: String, left: VecDeque<Rung>) {
        if left.is_empty() {
            return;
        }
        if self.places.len() == PLACES_MAX {
            self.places.clear();
        }
        self.places.insert(server, left);
    }
}

#[cfg(test)]
mod tests;
