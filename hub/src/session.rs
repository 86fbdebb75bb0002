//! One device's session: its state, its deadlines, and how far it is behind.
//!
//! ```text
//!             hello              claim granted
//! AwaitingHello --> Claiming --------------------> Active
//!       |              | older session               |
//!       |              |                             | goodbye, superseded, blocked, revoked, certificate ended,
//!       |              |                             | keepalive missed, too slow, protocol violation, drain
//!       +--------------+-----------------------------+--> Closing (Output::Close)
//! ```
//!
//! Closing is the caller's: with `Output::Close` the hub forgets the session, and what still comes from its channel is
//! counted and ignored.
//!
//! There are as many of these as connections, so a session is small: strings of the hello go out with the online row, pushes
//! are never queued here, and what is large and rare is boxed. It knows no other session.

use std::net::SocketAddr;
use std::sync::Arc;

use bgb_protocol::file::presence::{OnlineDetails, Presence, PresenceRow};
use bgb_protocol::ids::{BootId, DeviceId, SessionNumber, UnixMillis};
use bgb_protocol::message::{Abilities, Hello, KEEPALIVE_SECS_MIN};

use crate::close_reason::CloseReason;
use crate::input::Peer;
use crate::order::PolicyOrder;
use crate::server_time::ServerTime;
use crate::time::{Tick, ticks_from_secs};

/// How long unsent bytes may stay above the mark: 25 s. After 30 s the kernel gives up on a window that stays shut
/// (`TCP_USER_TIMEOUT`), and would say that the peer cannot be reached, when it only does not read.
pub(crate) const CHOKED_TICKS_MAX: u64 = 250;

/// Least time from one policy answer to the next of a session: 1 s. An agent asks once in minutes, and an answer may be
/// thousands of times as long as its request.
pub(crate) const POLICY_SPACING_TICKS: u64 = 10;

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) generation: u32,
    pub(crate) device: DeviceId,
    pub(crate) fingerprint: [u8; 32],
    certificate_ends: UnixMillis,
    /// When the agent last spoke; before its first word, when the channel was opened.
    pub(crate) last_seen: Tick,
    pub(crate) stage: Stage,
}

#[derive(Debug)]
pub(crate) enum Stage {
    AwaitingHello { address: SocketAddr },
    Claiming(Box<Claim>),
    Active(Active),
}

/// A hello whose claim the directory has not answered.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) address: SocketAddr,
    pub(crate) hello: Hello,
}

#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) boot: BootId,
    pub(crate) session: SessionNumber,
    signed_in: UnixMillis,
    pub(crate) abilities: Abilities,
    /// How long the agent may be silent: 1.5 times what it was told.
    silence_ticks_max: u32,
    /// Whether the session stands in the hub's line of those that have more to be sent.
    pub(crate) in_line: bool,
    pub(crate) flow: Flow,
    pub(crate) policy: PolicyTurn,
}

/// Whether the session has seen every step of the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// All of them, but for fan-outs that are on their way.
    Current,
    /// Up to this one; the rest comes when its turn does.
    Behind { step: u64 },
    /// Up to this one, and nothing more is sent for now.
    Choked { step: u64, since: Tick, keepalive_owed: bool },
}

/// Where the session's policy request stands. One is answered at a time; of those that come meanwhile the last one
/// stays.
#[derive(Debug)]
pub(crate) enum PolicyTurn {
    /// None is open; the next one is answered from this tick on.
    Idle { again: Tick },
    /// One came too soon, and is answered at this tick.
    Waiting { request: u32, at: Tick },
    /// One is being answered.
    Answering(Box<PolicyAnswer>),
}

#[derive(Debug)]
pub(crate) struct PolicyAnswer {
    pub(crate) request: u32,
    /// The next document to be sent.
    pub(crate) next: usize,
    pub(crate) documents: Vec<Arc<PolicyOrder>>,
    /// A request that came meanwhile.
    pub(crate) asked: Option<u32>,
}

/// What a session's deadline brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deadline {
    End(CloseReason),
    AnswerPolicy,
}

impl Session {
    pub(crate) fn new(generation: u32, peer: Peer, now: Tick) -> Self {
        let Peer { device, address, fingerprint, certificate_ends } = peer;
        let stage = Stage::AwaitingHello { address };
        Self { generation, device, fingerprint, certificate_ends, last_seen: now, stage }
    }

    /// The session's state while it is active.
    pub(crate) fn active(&self) -> Option<&Active> {
        match &self.stage {
            Stage::Active(active) => Some(active),
            Stage::AwaitingHello { .. } | Stage::Claiming(_) => None,
        }
    }

    /// The session's state while it is active.
    pub(crate) fn active_mut(&mut self) -> Option<&mut Active> {
        match &mut self.stage {
            Stage::Active(active) => Some(active),
            Stage::AwaitingHello { .. } | Stage::Claiming(_) => None,
        }
    }

    /// The earliest of the session's deadlines, and what it brings.
    pub(crate) fn deadline(&self, time: &ServerTime, hello_ticks: u64) -> (Tick, Deadline) {
        let certificate = (time.tick_of(self.certificate_ends), Deadline::End(CloseReason::CertificateEnded));
        let Stage::Active(active) = &self.stage else {
            let hello = (self.last_seen.plus(hello_ticks), Deadline::End(CloseReason::HelloTimedOut));
            return earlier(hello, certificate);
        };
        let silent = self.last_seen.plus(u64::from(active.silence_ticks_max));
        let mut next = earlier((silent, Deadline::End(CloseReason::KeepaliveMissed)), certificate);
        if let Flow::Choked { since, .. } = active.flow {
            next = earlier(next, (since.plus(CHOKED_TICKS_MAX), Deadline::End(CloseReason::TooSlow)));
        }
        if let PolicyTurn::Waiting { at, .. } = active.policy {
            next = earlier(next, (at, Deadline::AnswerPolicy));
        }
        next
    }
}

impl Active {
    pub(crate) fn new(hello: &Hello, keepalive_secs: u32, time: &ServerTime) -> Self {
        let silence_ticks_max = ticks_from_secs(keepalive_secs) * 3 / 2;
        Self {
            boot: hello.boot,
            session: hello.session,
            // Compared with what other servers say of the device: a wall clock that is behind must not make a session look old.
            signed_in: time.time(),
            abilities: hello.abilities,
            silence_ticks_max: u32::try_from(silence_ticks_max).unwrap_or(u32::MAX),
            in_line: false,
            flow: Flow::Current,
            policy: PolicyTurn::Idle { again: time.tick() },
        }
    }

    /// The session's row of the online list.
    pub(crate) fn online_row(&self, device: DeviceId, claim: Claim) -> PresenceRow {
        let Claim { address, hello } = claim;
        let platform = hello.platform;
        let details = OnlineDetails {
            address,
            road: hello.road,
            agent_version: hello.agent_version,
            clock_skew_ms: hello.clock_skew_ms,
            policy_version: hello.policy_version,
            platform: format!("{} {} {}", platform.os, platform.os_version, platform.arch),
            hostname: platform.hostname,
        };
        self.row(device, Presence::Online(Box::new(details)))
    }

    /// The row that says that the session ended.
    pub(crate) fn offline_row(&self, device: DeviceId, at: UnixMillis, reason: CloseReason) -> PresenceRow {
        self.row(device, Presence::Offline { at, reason: reason.label().to_owned() })
    }

    fn row(&self, device: DeviceId, presence: Presence) -> PresenceRow {
        PresenceRow { device, boot: self.boot, session: self.session, signed_in: self.signed_in, presence }
    }
}

/// How often the agent is to speak: what it asked for or the server's own, whichever is less, and up to a tenth less of
/// that, so that a fleet that signed in together does not speak together.
pub(crate) fn keepalive_secs(asked: Option<u32>, server: u32, device: DeviceId, jitter_seed: u64) -> u32 {
    let interval = asked.map_or(server, |asked| asked.min(server)).max(1);
    let jitter = splitmix64(jitter_seed ^ u64::from(device.0)) % (u64::from(interval / 10) + 1);
    let least = interval.min(KEEPALIVE_SECS_MIN);
    (interval - jitter as u32).max(least)
}

/// The second of the window in which the device is to come back when this server goes away: the fleet is spread over all of them, and each
/// device hears the same from the same server for as long as it runs.
pub(crate) fn return_slot_secs(window_secs: u32, device: DeviceId, jitter_seed: u64) -> u32 {
    // Not the number that spreads keepalives: whoever speaks late need not come back late.
    (splitmix64(!jitter_seed ^ u64::from(device.0)) % u64::from(window_secs.max(1))) as u32
}

/// The finaliser of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
fn splitmix64(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn earlier(one: (Tick, Deadline), other: (Tick, Deadline)) -> (Tick, Deadline) {
    if other.0 < one.0 { other } else { one }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_fleet_comes_back_spread_over_the_whole_window() {
        let mut seconds = [0_u32; 60];
        for device in 0..60_000 {
            let slot_secs = return_slot_secs(60, DeviceId(device), 7);
            assert_eq!(slot_secs, return_slot_secs(60, DeviceId(device), 7), "told again, it is the same");
            seconds[slot_secs as usize] += 1;
        }
        assert!(seconds.iter().all(|devices| (850..1_150).contains(devices)), "{seconds:?}");
        assert_eq!(return_slot_secs(0, DeviceId(1), 7), 0);
    }

    #[test]
    fn a_session_is_small() {
        // The goal is 1 KiB a connection in all; the wheel adds 24 bytes and the registry some 12.
        assert!(size_of::<Option<Session>>() <= 168, "{}", size_of::<Option<Session>>());
    }

    #[test]
    fn keepalives_are_spread_over_a_tenth_and_never_under_what_may_be_asked() {
        let told: BTreeSet<_> =
            (0..1000).map(|device| keepalive_secs(None, 900, DeviceId(device), 7)).collect();
        assert!(told.len() > 80 && told.first() >= Some(&810) && told.last() <= Some(&900), "{told:?}");
        for device in 0..100 {
            assert_eq!(keepalive_secs(Some(20), 900, DeviceId(device), 7), 20);
            assert!((20..=22).contains(&keepalive_secs(Some(22), 900, DeviceId(device), 7)));
            assert!(keepalive_secs(Some(5000), 900, DeviceId(device), 7) <= 900);
            assert_eq!(keepalive_secs(None, 2, DeviceId(device), 7), 2);
        }
    }
}
