//! Handshakes in flight: how many a stranger may have, how many there may be in all, and how many of them may be answered.
//!
//! It is asked before TLS begins, since a handshake is what costs us most and a stranger least. It owns counts and no connection: the
//! reactor says when a handshake begins, when it is answered and when it is over, however it ends. Each reactor has its own, so that no
//! lock is shared; the kernel spreads a stranger's connections over them.
//!
//! Answers are given on credit. Each costs some 150 us, and whoever floods a server with hellos never ends what it begins; so a handshake that ends well
//! earns two more answers, and without that there are some hundreds in a second, which no push has to wait for. A fleet that comes all at once earns as it
//! goes, and is not held up.
//!
//! More may wait for their turn than may be answered at a time: whoever waits costs little, and is not forgotten as in the kernel, which
//! takes no more than its backlog and leaves the others to try again after 1, 3 and 7 s.
//!
//! Law: it remembers no more than `ORIGINS_MAX` strangers, whatever comes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use bgb_hub::{TICK_MS, Tick};

use super::admission::{Admits, Opening};
use crate::network::{Network, Origin};

/// Handshakes in flight in all, at some 6 KiB for one that is not answered yet, and 8 more where its peer says as much as it may; in HTTP a head's 16 KiB
/// instead, and up to 48 behind a request that is being answered. What comes beyond waits in the kernel.
pub const IN_FLIGHT_MAX: usize = 2_048;
/// Those of them that are answered and not over, at some 20 KiB each.
pub const ANSWERED_MAX: usize = 1_024;
/// And of those so many that resume, and so many that do not: whoever begins one kind and leaves it leaves places for the other.
const ANSWERED_OF_KIND_MAX: usize = ANSWERED_MAX / 4 * 3;
/// Answers of each kind that are given in a second, however few handshakes end well, and at once where there was no need for any before.
const CREDIT_PER_SECOND: u64 = 500;
const CREDIT_MAX: u64 = ANSWERED_MAX as u64;
/// Answers that a handshake which ends well has earned.
const EARNED: u64 = 2;
/// Handshakes in flight of one origin (docs/promises.md).
const IN_FLIGHT_OF_ORIGIN_MAX: u32 = 64;
/// Handshakes that one origin may begin in a second, and at once (docs/promises.md).
const BEGUN_PER_SECOND: u64 = 200;
/// Origins that are remembered, at some 40 bytes each. Only those with a handshake in flight must be, and they are fewer.
const ORIGINS_MAX: usize = 16 * 1_024;

/// See the module.
#[derive(Debug)]
pub struct Handshakes {
    exempt: Arc<[Network]>,
    in_flight: usize,
    resumed: OfKind,
    full: OfKind,
    origins: HashMap<Origin, Strangers>,
}

/// Handshakes that begin in one way.
#[derive(Debug)]
struct OfKind {
    answered: usize,
    /// Answers that may be given, in thousandths, at `filled_ms`.
    credit: u64,
    filled_ms: u64,
}

impl OfKind {
    const CREDIT_MAX: u64 = CREDIT_MAX * 1_000;

    fn new() -> Self {
        Self { answered: 0, credit: Self::CREDIT_MAX, filled_ms: 0 }
    }

    fn fill(&mut self, now_ms: u64) {
        let gained = now_ms.saturating_sub(self.filled_ms) * CREDIT_PER_SECOND;
        self.credit = self.credit.saturating_add(gained).min(Self::CREDIT_MAX);
        self.filled_ms = self.filled_ms.max(now_ms);
    }

    fn has_credit(&self) -> bool {
        self.credit >= 1_000
    }
}

/// What is known of one origin.
#[derive(Clone, Copy, Debug)]
struct Strangers {
    in_flight: u32,
    /// Handshakes that it may begin at `filled`, in thousandths.
    allowance: u64,
    filled: Tick,
}

impl Strangers {
    const ALLOWANCE_MAX: u64 = BEGUN_PER_SECOND * 1_000;

    fn begin(&mut self, now: Tick) -> bool {
        let gained = now.since(self.filled).saturating_mul(TICK_MS * BEGUN_PER_SECOND);
        self.allowance = self.allowance.saturating_add(gained).min(Self::ALLOWANCE_MAX);
        self.filled = now;
        if self.in_flight >= IN_FLIGHT_OF_ORIGIN_MAX || self.allowance < 1_000 {
            return false;
        }
        self.allowance -= 1_000;
        self.in_flight += 1;
        true
    }
}

impl Handshakes {
    /// None in flight. Peers in the `exempt` networks count in all only: many devices come from one address there.
    #[must_use]
    pub fn new(exempt: Arc<[Network]>) -> Self {
        Self { exempt, in_flight: 0, resumed: OfKind::new(), full: OfKind::new(), origins: HashMap::new() }
    }

    /// Whether another one may begin, whoever it is.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.in_flight < IN_FLIGHT_MAX
    }

    /// Handshakes in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// `peer` begins a handshake; one of which it is not known yet where it comes from counts in all only. `false` when it has begun too many: then it has
    /// not begun this one.
    pub fn begin(&mut self, peer: Option<IpAddr>, now: Tick) -> bool {
        if let Some(peer) = peer.filter(|peer| !self.is_exempt(*peer)) {
            if self.origins.len() >= ORIGINS_MAX {
                // So many came within a second: that each begins anew costs less than to remember more of them.
                self.origins.retain(|_, strangers| strangers.in_flight > 0);
            }
            let new = Strangers { in_flight: 0, allowance: Strangers::ALLOWANCE_MAX, filled: now };
            if !self.origins.entry(peer.into()).or_insert(new).begin(now) {
                return false;
            }
        }
        self.in_flight += 1;
        true
    }

    /// So many milliseconds have passed since the reactor began.
    pub fn fill(&mut self, now_ms: u64) {
        self.resumed.fill(now_ms);
        self.full.fill(now_ms);
    }

    /// For whose answers there are places.
    #[must_use]
    pub fn has_places(&self) -> Admits {
        let has_place =
            |kind: &OfKind| kind.answered < ANSWERED_OF_KIND_MAX && self.answered() < ANSWERED_MAX;
        Admits { resumed: has_place(&self.resumed), full: has_place(&self.full) }
    }

    /// Whose handshakes may be answered: there is a place, and credit.
    #[must_use]
    pub fn admits(&self) -> Admits {
        let Admits { resumed, full } = self.has_places();
        Admits { resumed: resumed && self.resumed.has_credit(), full: full && self.full.has_credit() }
    }

    /// Handshakes that are answered and not over.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.resumed.answered + self.full.answered
    }

    /// A handshake that was begun has its first answer.
    pub fn answer(&mut self, opening: Opening) {
        let kind = self.of_kind(opening);
        kind.answered += 1;
        kind.credit = kind.credit.saturating_sub(1_000);
    }

    /// A handshake that was answered ends well.
    pub fn earn(&mut self, opening: Opening) {
        let kind = self.of_kind(opening);
        kind.credit = (kind.credit + EARNED * 1_000).min(OfKind::CREDIT_MAX);
    }

    /// A handshake that was answered is over, and its peer is to show who it is in another, inside: it keeps its place.
    pub fn settle(&mut self, opening: Opening) {
        let kind = self.of_kind(opening);
        kind.answered = kind.answered.saturating_sub(1);
    }

    /// A handshake of `peer` that was begun is over; where it was answered, it was one that began so.
    pub fn end(&mut self, peer: Option<IpAddr>, answered: Option<Opening>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(opening) = answered {
            self.settle(opening);
        }
        if let Some(peer) = peer.filter(|peer| !self.is_exempt(*peer))
            && let Some(strangers) = self.origins.get_mut(&peer.into())
        {
            strangers.in_flight = strangers.in_flight.saturating_sub(1);
        }
    }

    fn of_kind(&mut self, opening: Opening) -> &mut OfKind {
        match opening {
            Opening::Resumed => &mut self.resumed,
            Opening::Full => &mut self.full,
        }
    }

    fn is_exempt(&self, peer: IpAddr) -> bool {
        self.exempt.iter().any(|network| network.contains(peer))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    const SECOND: u64 = 1_000 / TICK_MS;

    fn none_exempt() -> Handshakes {
        Handshakes::new(Arc::from([]))
    }

    #[test]
    fn one_origin_has_64_in_flight_and_the_others_have_theirs() {
        let mut handshakes = none_exempt();
        assert_eq!((0..100).filter(|_| handshakes.begin(Some(ONE), Tick(0))).count(), 64);
        assert!(handshakes.begin(Some(OTHER), Tick(0)));
        handshakes.end(Some(ONE), None);
        assert!(handshakes.begin(Some(ONE), Tick(0)));
        assert!(!handshakes.begin(Some(ONE), Tick(0)));
        assert_eq!(handshakes.in_flight(), 65, "those that were refused do not count");
    }

    #[test]
    fn one_origin_begins_200_in_a_second_however_quickly_they_end() {
        let mut handshakes = none_exempt();
        let mut begun_at = |tick| {
            let begin = |_: &i32| {
                let begun = handshakes.begin(Some(ONE), Tick(tick));
                if begun {
                    handshakes.end(Some(ONE), None);
                }
                begun
            };
            (0..1_000).filter(begin).count()
        };
        assert_eq!((begun_at(0), begun_at(0)), (200, 0));
        assert_eq!(begun_at(SECOND / 2), 100);
        assert_eq!(begun_at(1_000 * SECOND), 200, "a long rest saves up no more than a second's worth");
    }

    #[test]
    fn an_exempt_network_counts_in_all_only() {
        let mut handshakes = Handshakes::new(Arc::from(["192.0.2.1/32".parse().unwrap()]));
        assert!((0..IN_FLIGHT_MAX).all(|_| handshakes.has_room() && handshakes.begin(Some(ONE), Tick(0))));
        assert!(!handshakes.has_room());
        handshakes.end(Some(ONE), None);
        assert!(handshakes.has_room());
        assert!(handshakes.origins.is_empty());
    }

    #[test]
    fn neither_kind_has_all_the_places_for_answers() {
        for (first, other) in [(Opening::Full, Opening::Resumed), (Opening::Resumed, Opening::Full)] {
            let mut handshakes = none_exempt();
            let admits = |handshakes: &Handshakes, kind| match (handshakes.has_places(), kind) {
                (Admits { resumed, .. }, Opening::Resumed) => resumed,
                (Admits { full, .. }, Opening::Full) => full,
            };
            (0..ANSWERED_OF_KIND_MAX).for_each(|_| handshakes.answer(first));
            assert_eq!((admits(&handshakes, first), admits(&handshakes, other)), (false, true));
            (ANSWERED_OF_KIND_MAX..ANSWERED_MAX).for_each(|_| handshakes.answer(other));
            assert_eq!((admits(&handshakes, first), admits(&handshakes, other)), (false, false));
            handshakes.end(Some(ONE), None);
            assert_eq!(handshakes.answered(), ANSWERED_MAX, "that one was not answered");
            handshakes.end(Some(ONE), Some(first));
            assert_eq!((admits(&handshakes, first), admits(&handshakes, other)), (true, true));
        }
    }

    #[test]
    fn answers_are_given_on_credit_that_those_earn_who_end_what_they_begin() {
        let answers = |handshakes: &mut Handshakes, ends_well: bool| {
            let mut count = 0;
            while count < 100_000 && handshakes.admits().full {
                handshakes.answer(Opening::Full);
                if ends_well {
                    handshakes.earn(Opening::Full);
                }
                handshakes.end(Some(ONE), Some(Opening::Full));
                count += 1;
            }
            count
        };
        let mut handshakes = none_exempt();
        assert_eq!(answers(&mut handshakes, false), CREDIT_MAX);
        assert!(handshakes.admits().resumed, "the other kind has its own");
        handshakes.fill(10);
        assert_eq!(answers(&mut handshakes, false), 10 * CREDIT_PER_SECOND / 1_000);
        handshakes.fill(12);
        assert_eq!(answers(&mut handshakes, true), 100_000, "a fleet that comes is not held up");
        handshakes.fill(1_000_000);
        assert_eq!(answers(&mut handshakes, false), CREDIT_MAX, "a long rest saves up no more");
    }

    #[test]
    fn however_many_strangers_come_few_are_remembered() {
        let mut handshakes = none_exempt();
        assert!((0..60).all(|_| handshakes.begin(Some(ONE), Tick(0))));
        for network in 0..100_000_u128 {
            let stranger = IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) | (network << 64)));
            assert!(handshakes.begin(Some(stranger), Tick(0)));
            handshakes.end(Some(stranger), None);
            assert!(handshakes.origins.len() <= ORIGINS_MAX);
        }
        assert_eq!(
            (0..10).filter(|_| handshakes.begin(Some(ONE), Tick(0))).count(),
            4,
            "what is in flight is known"
        );
    }
}
