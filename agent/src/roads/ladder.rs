//! The ladder: which road is tried next.
//!
//! ```text
//!            next()                 on_connected()         on_welcome()
//!  Climbing ------> attempt ------------------> Connected ------------> Signed in -- on_ended() --> at rest
//!     ^  \ on_failed()  |                            \ on_ended(): unheard, the climb goes on below it
//!     +---+-------------+
//! ```
//!
//! It owns the order of the rungs, the limit of a climb, the rule that a road which held has its time before anything worse is tried, the moments of probes,
//! and the reason that a hello gives. It reads no clock and touches no socket: time comes in with each call. Laws: a climb begins
//! its last attempt within 40 s; one that was cut short goes on where it stopped, server by server; an agent that had TCP
//! within a day tries nothing else for 10 minutes, and one that had a WebSocket nothing worse for 2, so that a server's restart, or its
//! fall some times in a row, does not move its fleet; a road is known to work when a server has welcomed us on it, not before, and no longer when it does not hold what it bore.

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
/// Nothing but TCP is tried for so long: the longest reconnect window (docs/protocol.md, 5), in which a server's host is back, too.
const TCP_ONLY_MS: u64 = 600_000;
/// And nothing worse than a WebSocket: a server that is started anew has let in who comes to it by then. A proxy may have learned to block it meanwhile.
const WEBSOCKET_ONLY_MS: u64 = 120_000;
/// What worked last is tried first for so long; then a climb begins with the best again, which may work by now.
const WORKED_IS_RECENT_MS: u64 = 24 * 60 * 60 * 1_000;
/// A session that was lost before this was none, as the session machine has it, too …
const HOLDS_MS: u64 = 60_000;
/// … and a road that has lost so many in a row lets through how a session begins and nothing else. Servers that are started anew end one.
const BRIEF_MAX: u32 = 3;
/// A ping goes unanswered on a road that was cut by a timer, or by anything else. A timer cuts at the first silence that is long enough: whoever has
/// had time for another, and for the words that a session begins with, was not cut by one.
const FIRST_WORDS_MS: u64 = 60_000;
/// From HTTP, better roads are tried after so long …
const PROBE_MS: u64 = 5 * 60_000;
/// … and, doubling, this at the most; each give or take a quarter.
const PROBE_MS_MAX: u64 = 6 * 60 * 60_000;
/// Whoever lost TCP after less than this may lose it again, which costs 10 minutes each time: probes go on as rarely as they had become.
const TCP_IS_GOOD_MS: u64 = 60 * 60_000;
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
    /// Where the last climb led, and on what it might.
    server: String,
    allowed: Vec<Rung>,
    /// What is left of climbs that were cut short, by server.
    places: BTreeMap<String, VecDeque<Rung>>,
    /// What rungs above the one that is taken have told of who stands in between, the newest last.
    told: Vec<(Rung, RoadReason)>,
    current: Option<Current>,
    stay: Stay,
    /// How many sessions in a row were lost before they had lasted, by rung.
    brief: BTreeMap<Rung, u32>,
    probe_wait_ms: u64,
    /// When better roads are tried beside a session over HTTP.
    probe_due_ms: Option<u64>,
    next_first: First,
    random: Random,
}

/// What the next climb begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// What worked last.
    Worked,
    /// A better road: a probe has just come through.
    Probed(Rung),
}

/// For a while nothing worse is tried than the road that held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stay {
    /// That of the last session which held; `None` where the process has had none, and what is remembered counts.
    held: Option<Rung>,
    /// From when on the while counts, in milliseconds since boot; `None`: from the next attempt on, which a drain may put off by the whole of its window.
    since_ms: Option<u64>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It fell away, or nothing was heard on it any more.
    Lost,
    /// Server or agent wanted it so.
    Wanted,
}

/// An attempt at one server.
#[derive(Clone, Debug)]
struct Climb {
    until_ms: u64,
    left: VecDeque<Rung>,
}

/// The connection that there is.
#[derive(Clone, Debug)]
struct Current {
    rung: Rung,
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
        Self {
            memory,
            climb: None,
            server: String::new(),
            allowed: Vec::new(),
            places: BTreeMap::new(),
            told: Vec::new(),
            current: None,
            stay: Stay { held: None, since_ms: Some(now.boot_ms) },
            brief: BTreeMap::new(),
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

    /// A climb to `server` begins, on the rungs that are `allowed` there.
    pub(crate) fn begin(&mut self, server: &str, allowed: &[Rung], now: Moment) {
        self.current = None;
        self.stay.since_ms.get_or_insert(now.boot_ms);
        if !allowed.contains(&Rung::TCP) {
            // Nobody asks for it, and nobody would find out when it holds no more.
            self.memory.tcp_reason = None;
        }
        let first = std::mem::replace(&mut self.next_first, First::Worked);
        let place = self.places.remove(server);
        let goes_on = place.is_some();
        let order = self.order(allowed, now);
        let mut left: VecDeque<_> = match place {
            _ if let First::Probed(rung) = first
                && allowed.contains(&rung) =>
            {
                in_turn([rung], order)
            }
            // What worked was tried longest ago, and is better than what nobody has tried.
            Some(left) => {
                let left = left.into_iter().filter(|rung| allowed.contains(rung));
                in_turn(
                    self.worked(now.own).filter(|rung| order.front() == Some(rung)).into_iter().chain(left),
                    order,
                )
            }
            None => order,
        };
        if let Some(worst) = self.worst(allowed, now) {
            left.retain(|rung| rung.place() <= worst.place());
        }
        // All that was told is told anew, or of somebody else.
        if *server != *self.server || (!goes_on && left.front() == allowed.first()) {
            self.told.clear();
        }
        (self.server, self.allowed) = (server.to_owned(), allowed.to_vec());
        self.climb = Some(Climb { until_ms: now.boot_ms + CLIMB_MS, left });
    }

    /// The rung to be tried now; `None` when the climb is over, for this time or altogether.
    pub(crate) fn next(&mut self, now_ms: u64) -> Option<Rung> {
        let climb = self.climb.as_mut()?;
        if now_ms < climb.until_ms
            && let Some(rung) = climb.left.pop_front()
        {
            return Some(rung);
        }
        self.on_called_off();
        None
    }

    /// The climb is over before its end: the next one goes on there.
    pub(crate) fn on_called_off(&mut self) {
        if let Some(Climb { left, .. }) = self.climb.take() {
            self.keep_place(left);
        }
    }

    /// What a climb has learned that was given up, and comes back when another may have begun.
    pub(crate) fn on_late(&mut self, mut late: Self) {
        if let Some(left) = late.places.remove(&late.server) {
            if late.server == self.server {
                (self.told, self.memory.tcp_reason) = (late.told, late.memory.tcp_reason);
            }
            self.places.insert(late.server, left);
        }
    }

    /// Whether a climb goes on, or was given up.
    pub(crate) fn is_climbing(&self) -> bool {
        self.climb.is_some()
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
        let left = self.climb.take().map_or_else(Default::default, |climb| climb.left);
        self.current = Some(Current { rung, left, stage: Stage::Connected });
        // A probe that came through and is taken has no climb that could do this.
        self.next_first = First::Worked;
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
    pub(crate) fn on_welcome(&mut self, now: Moment) {
        let Some(current) = &mut self.current else { return };
        current.stage = Stage::Welcomed(now.boot_ms);
        let rung = current.rung;
        if self.worked(now.own) != Some(rung) {
            (self.memory.worked, self.memory.worked_at) = (Some(rung), now.own);
        }
        if rung == Rung::TCP {
            (self.memory.tcp_reason, self.probe_due_ms) = (None, None);
            self.told.clear();
            self.note_tcp(now.own);
            return;
        }
        // Whoever is on another road has no TCP to come back to.
        self.memory.tcp_at = None;
        if self.probe_due_ms.is_none() {
            self.plan_probe(now.boot_ms);
        }
    }

    /// The connection is over.
    pub(crate) fn on_ended(&mut self, end: End, now: Moment) {
        let Some(Current { rung, left, stage }) = self.current.take() else { return };
        match stage {
            // What answers there lets the handshake through and nothing else; or it is a server that falls while it is started.
            Stage::Connected if end == End::Lost && !self.stays_on(rung, now) => {
                self.pass_over(rung, left, now);
            }
            Stage::Connected | Stage::Heard => {}
            Stage::Welcomed(since_ms) => {
                let lasted_ms = now.boot_ms.saturating_sub(since_ms);
                // Whoever has come from a good road and is cut off at once on a better one goes back there.
                if lasted_ms >= HOLDS_MS || end == End::Wanted {
                    self.stay = Stay { held: Some(rung), since_ms: None };
                }
                if rung == Rung::TCP {
                    self.note_tcp(now.own);
                    if lasted_ms >= TCP_IS_GOOD_MS {
                        self.probe_wait_ms = PROBE_MS;
                    }
                }
                if self.is_no_good(rung, end, lasted_ms, now) {
                    if rung == Rung::TCP {
                        self.memory.tcp_at = None;
                    }
                    self.pass_over(rung, left, now);
                }
            }
        }
    }

    /// Whether `rung` held, and has its time still.
    fn stays_on(&self, rung: Rung, now: Moment) -> bool {
        self.stay.held == Some(rung) && self.worst(&self.allowed, now) == Some(rung)
    }

    /// Whether `rung` has lost one session after the other; what has lasted once begins anew. A server that falls again and again while it is started does
    /// the same to a road that held before: that has its time.
    fn is_no_good(&mut self, rung: Rung, end: End, lasted_ms: u64, now: Moment) -> bool {
        if lasted_ms >= HOLDS_MS {
            self.brief.remove(&rung);
            return false;
        }
        if end == End::Wanted || self.stays_on(rung, now) {
            return false;
        }
        let brief = self.brief.entry(rung).or_default();
        *brief = brief.saturating_add(1);
        *brief >= BRIEF_MAX
    }

    /// The next climb begins with others than `rung`: those that are `left`, or all.
    fn pass_over(&mut self, rung: Rung, left: VecDeque<Rung>, now: Moment) {
        self.memory.worked = self.memory.worked.filter(|worked| *worked != rung);
        let left = if left.is_empty() { self.order(&self.allowed, now) } else { left };
        self.keep_place(left.into_iter().filter(|other| *other != rung).collect());
    }

    /// The road was cut after so long a silence.
    pub(crate) fn on_cut(&mut self, silence: Duration, now: Moment) {
        let Some(Current { rung, stage, .. }) = self.current else { return };
        let mut idle = self.idle(rung, now.own);
        let is_by_ping =
            rung.road == Road::WebSocket && idle.ping_every().is_some_and(|every| silence >= every);
        if let Stage::Welcomed(since_ms) = stage
            && is_by_ping
            && now.boot_ms.saturating_sub(since_ms) >= 2 * silence.as_millis() as u64 + FIRST_WORDS_MS
        {
            return;
        }
        if idle.note_cut(silence, now.own) {
            self.memory.idle.insert(rung, idle);
        }
    }

    /// What is known of how long `rung` bears silence.
    pub(crate) fn idle(&self, rung: Rung, now: UnixMillis) -> Idle {
        self.memory.idle.get(&rung).copied().unwrap_or_default().at(now)
    }

    /// When better roads are to be tried beside the session, in milliseconds since boot.
    pub(crate) fn probe_due_ms(&self, own: UnixMillis) -> Option<u64> {
        self.probe_due_ms.filter(|_| !self.better(own).is_empty())
    }

    /// A probe begins, and counts as one that came to nothing until more is known: a climb of its own, on the rungs that are better than the session's.
    pub(crate) fn on_probe(&mut self, now: Moment) -> Self {
        self.probe_wait_ms = (2 * self.probe_wait_ms).min(PROBE_MS_MAX);
        self.plan_probe(now.boot_ms);
        let climb = Climb { until_ms: now.boot_ms + CLIMB_MS, left: self.better(now.own) };
        Self { climb: Some(climb), current: None, ..self.clone() }
    }

    /// A probe is over, or stands: what it has learned of TCP, and where it came through the next climb begins there.
    pub(crate) fn on_probed(&mut self, probe: Self) {
        self.memory.tcp_reason = probe.memory.tcp_reason;
        if probe.server == self.server {
            self.told = probe.told;
        }
        if let Some(Current { rung, .. }) = probe.current {
            self.next_first = First::Probed(rung);
        }
    }

    /// Where a probe had come through nobody is any more.
    pub(crate) fn on_probe_lost(&mut self) {
        self.next_first = First::Worked;
    }

    /// The rungs that a session over HTTP would rather have: those of a road that is better than its own, as far as they bear silence.
    fn better(&self, own: UnixMillis) -> VecDeque<Rung> {
        let Some(Current { rung: taken, stage: Stage::Welcomed(_), .. }) = &self.current else {
            return VecDeque::new();
        };
        let is_better =
            |rung: &Rung| rung.road != taken.road && rung.place() < taken.place() && self.is_fit(*rung, own);
        self.allowed.iter().copied().filter(is_better).collect()
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

    /// The worst rung that is tried for now, where not all are: the one that held, or may again.
    fn worst(&self, allowed: &[Rung], now: Moment) -> Option<Rung> {
        let worked = self.memory.worked.unwrap_or(Rung::TCP);
        let is_recent = match worked.road {
            Road::Tcp => self.memory.tcp_at.is_some_and(|at| now.own.0.abs_diff(at.0) < TCP_IS_RECENT_MS),
            // However long the session had lasted. One that bears no silence is worth no wait.
            Road::WebSocket => {
                (self.stay.held == Some(worked) || self.worked(now.own).is_some())
                    && self.is_fit(worked, now.own)
            }
            Road::LongPoll => false,
        };
        let time_ms = if worked == Rung::TCP { TCP_ONLY_MS } else { WEBSOCKET_ONLY_MS };
        let is_time = self.stay.since_ms.is_some_and(|since_ms| now.boot_ms < since_ms + time_ms);
        // Whoever was on another road since has none to come back to, unless that held as well.
        let held = self.stay.held.is_none_or(|held| held == worked);
        (is_recent && is_time && held && allowed.contains(&worked)).then_some(worked)
    }

    /// What worked last, if that is not too long ago to be asked first.
    fn worked(&self, own: UnixMillis) -> Option<Rung> {
        self.memory.worked.filter(|_| own.0.abs_diff(self.memory.worked_at.0) < WORKED_IS_RECENT_MS)
    }

    /// Whether a WebSocket there would not have to be pinged all the time.
    fn is_fit(&self, rung: Rung, own: UnixMillis) -> bool {
        rung.road != Road::WebSocket || self.idle(rung, own).ping_every().is_some()
    }

    /// What worked last, then the others, the best first; those that bear no silence come last, since they are better than none.
    fn order(&self, allowed: &[Rung], now: Moment) -> VecDeque<Rung> {
        let (mut order, unfit): (VecDeque<_>, VecDeque<_>) =
            allowed.iter().copied().partition(|rung| self.is_fit(*rung, now.own));
        let worked = self.worked(now.own).and_then(|rung| order.iter().position(|other| *other == rung));
        if let Some(rung) = worked.and_then(|at| order.remove(at)) {
            order.push_front(rung);
        }
        order.extend(unfit);
        order
    }

    fn keep_place(&mut self, left: VecDeque<Rung>) {
        if left.is_empty() {
            return;
        }
        if self.places.len() == PLACES_MAX {
            self.places.clear();
        }
        self.places.insert(self.server.clone(), left);
    }
}

/// Those that come `first`, then the `others`; each once.
fn in_turn(first: impl IntoIterator<Item = Rung>, others: VecDeque<Rung>) -> VecDeque<Rung> {
    let mut turn = VecDeque::new();
    for rung in first.into_iter().chain(others) {
        if !turn.contains(&rung) {
            turn.push_back(rung);
        }
    }
    turn
}

#[cfg(test)]
mod tests;
