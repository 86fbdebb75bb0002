//! The roads of connections: straight over TCP, over a WebSocket, or by long-poll; and what a device says of why it is not on TCP.
//!
//! A device has a usual road and takes another now and then. HTTP's roads lead through a proxy as a rule (`proxies.rs`). Whatever the road, what a side
//! says goes into a ledger, and what the other side hears is held against it. Law: what is heard is what was said, byte for byte and in its
//! order, as far as it comes.

use std::collections::VecDeque;
use std::time::Duration;

use bgb_agent::rules::{Idle, PONG};
use bgb_protocol::file::presence::{Presence, PresenceRow};
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::message::{Road, RoadReason, RoadTaken};

use crate::dice::Dice;
use crate::frames::Frames;
use crate::longpoll::LongPoll;
use crate::network::Conn;
use crate::proxies::{PROXIES, Stands};
use crate::tally::Kind;
use crate::world::World;

/// So many devices in a thousand reach servers over HTTP without a proxy.
const DIRECT_PER_MILLE: u64 = 200;
/// So many connections over HTTP in a thousand have an outer TLS.
const OUTER_TLS_PER_MILLE: u64 = 500;

const ROADS: [Road; 3] = [Road::Tcp, Road::WebSocket, Road::LongPoll];

/// What carries a connection's bytes.
#[derive(Debug)]
pub(crate) enum Carriage {
    /// Nothing but the network.
    Straight,
    /// A WebSocket's frames.
    Frames(Box<Frames>),
    /// Requests and answers.
    Requests(Box<LongPoll>),
}

/// A device's habits on the way to its servers, and what its transport has learned there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    usual: Road,
    /// The proxy that its HTTP goes through.
    proxy: Option<usize>,
    /// What it has learned of silences: over WebSockets, and by long-poll.
    websockets: Idle,
    pub(crate) long_polls: Idle,
    /// When a proxy last cut its connection since that was idle.
    pub(crate) cut_ms: Option<u64>,
    /// How often a proxy's timer has cut something of it since the healing.
    pub(crate) cuts_in_peace: u32,
    last: Option<Road>,
}

impl Habits {
    pub(crate) fn draw(agent: usize, dice: &mut Dice) -> Self {
        // Neighbours differ, so that a world with three devices has all roads from the beginning on.
        let usual = ROADS[agent % ROADS.len()];
        let proxy = (!dice.chance(DIRECT_PER_MILLE)).then(|| dice.place(PROXIES));
        Self {
            usual,
            proxy,
            websockets: Idle::default(),
            long_polls: Idle::default(),
            cut_ms: None,
            cuts_in_peace: 0,
            last: None,
        }
    }
    /// How often a WebSocket is pinged, in milliseconds; one that needs it more often than is worth the noise is not taken, and if it was, is pinged as
    /// one of which nothing is known.
    pub(crate) fn ping_ms(&self) -> u64 {
        let every = self.websockets.ping_every().or(Idle::default().ping_every());
        every.unwrap_or(PONG).as_millis() as u64
    }

    /// Whether a WebSocket bears silence for long enough, as far as is known.
    pub(crate) fn bears_websockets(&self) -> bool {
        self.websockets.ping_every().is_some()
    }

    /// What was cut by a timer, or may have been.
    pub(crate) fn note_cut(&mut self, road: Road, silence: Duration, own: UnixMillis) {
        let idle = match road {
            Road::LongPoll => &mut self.long_polls,
            Road::Tcp | Road::WebSocket => &mut self.websockets,
        };
        *idle = idle.at(own);
        idle.note_cut(silence, own);
    }
}

/// What one side has said and the other has not heard.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    on_its_way: VecDeque<u8>,
    heard: u64,
}

impl Ledger {
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.on_its_way.extend(bytes);
    }

    /// Whether all that was said was heard.
    pub(crate) fn is_heard(&self) -> bool {
        self.on_its_way.is_empty()
    }

    /// Bytes were heard; whether they are those that came next.
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> Result<(), String> {
        let at = self.heard;
        if bytes.len() > self.on_its_way.len() {
            let excess = bytes.len() - self.on_its_way.len();
            return Err(format!("{excess} bytes are heard behind offset {at} that nobody has said there"));
        }
        let wrong =
            bytes.iter().zip(self.on_its_way.drain(..bytes.len())).position(|(own, said)| *own != said);
        self.heard += bytes.len() as u64;
        match wrong {
            Some(place) => Err(format!(
                "the byte that is heard at offset {} is not the one that was said there",
                at + place as u64
            )),
            None => Ok(()),
        }
    }
}

impl World {
    /// The road that the device's next connection takes.
    pub(crate) fn draw_road(&mut self, agent: usize) -> Road {
        let is_usual = !self.dice.chance(self.weather.other_road_per_mille);
        let habits = self.machines[agent].habits;
        let road = if is_usual { habits.usual } else { self.dice.pick(&ROADS) };
        if road == Road::WebSocket && !habits.bears_websockets() { Road::LongPoll } else { road }
    }

    /// The device takes a road: what it has to say of that, and the proxy on it.
    pub(crate) fn take_road(&mut self, agent: usize, road: Road) -> (RoadTaken, Option<usize>) {
        let habits = self.machines[agent].habits;
        if self.machines[agent].habits.last.replace(road).is_some_and(|last| last != road) {
            self.tally.count(Kind::RoadChanged);
        }
        if road == Road::Tcp {
            return (RoadTaken::tcp(), None);
        }
        let reason = match self.dice.below(5) {
            0 => RoadReason::Refused,
            1 => RoadReason::TimedOut,
            2 => RoadReason::Reset,
            3 => RoadReason::ProxyAnswer(407),
            _ => RoadReason::Intercepted("Gateway of the site's".to_owned()),
        };
        // Of a proxy before the servers a device knows nothing.
        let proxied =
            habits.proxy.is_some_and(|proxy| self.network.proxies[proxy].stands == Stands::AtAgents);
        let outer_tls = self.dice.chance(OUTER_TLS_PER_MILLE);
        (RoadTaken { road, outer_tls, proxied, reason: Some(reason) }, habits.proxy)
    }

    /// A device is said to be online by some road: by the one that its connection takes.
    pub(crate) fn check_road(&mut self, row: &PresenceRow, taken: Option<&RoadTaken>) {
        let Presence::Online(details) = &row.presence else { return };
        if taken != Some(&details.road) {
            let device = row.device;
            return self.violated(format!(
                "device {device} is online by {:?}, and comes by {taken:?}",
                details.road
            ));
        }
        self.tally.count(match details.road.road {
            Road::Tcp => Kind::SignedInOverTcp,
            Road::WebSocket => Kind::SignedInOverWebSocket,
            Road::LongPoll => Kind::SignedInOverLongPoll,
        });
    }
}

impl Conn {
    pub(crate) fn frames(&mut self) -> Option<&mut Frames> {
        match &mut self.carriage {
            Carriage::Frames(frames) => Some(frames),
            Carriage::Straight | Carriage::Requests(_) => None,
        }
    }

    pub(crate) fn long_poll(&mut self) -> Option<&mut LongPoll> {
        match &mut self.carriage {
            Carriage::Requests(requests) => Some(requests),
            Carriage::Straight | Carriage::Frames(_) => None,
        }
    }

    pub(crate) fn is_long_poll(&self) -> bool {
        matches!(self.carriage, Carriage::Requests(_))
    }
}
