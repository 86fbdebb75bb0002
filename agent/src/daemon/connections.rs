//! The connections that the agent has: that of its session, and at times one that tries better roads beside it.
//!
//! ```text
//!            due           stands               the session asks to connect
//!   (none) ------> trying --------> standing -------------------------------> the session's; the former one ends
//!                    \  failed          \  8 s, or its end: the session stays
//!                     +------------------+--> (none)
//! ```
//!
//! A session over HTTP moves over to a better road in the order that loses nothing: the new connection is made beside the old one, the session is asked to
//! leave as soon as nothing that it has said waits for an answer, its hello is said on the new connection, and then the old one ends. The server lets the
//! newest session win; results wait in the outbox until they are kept, and tasks are in the journal. So a probe costs no session, and one that stands is
//! not made twice. It owns the ladder and its memory, and decides nothing about the session.

use std::sync::Arc;
use std::thread::JoinHandle;

use bgb_daemon::clock::Now;
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::message::{AgentMessage, RoadTaken, ServerMessage};
use crossbeam_channel::Sender;

use crate::agent::Input;
use crate::connection::{Connection, Destination, Event, Network};
use crate::parting::Parting;
use crate::roads::{self, End, Ladder, MemoryFile, Moment, Rung};

/// How long a connection that stands waits for its session: a server gives a hello 10 s from the handshake (docs/protocol.md, 5).
pub const STANDING_MS: u64 = 8_000;

/// See the module.
pub(super) struct Connections {
    network: Arc<Network>,
    events: Sender<(u64, Event)>,
    ladder: Ladder,
    memory: MemoryFile,
    session: Option<Numbered>,
    probe: Probe,
    /// That of the session before, until the next one has said hello.
    leaving: Option<Connection>,
    /// Where the session's connection leads.
    destination: Option<Destination>,
    /// Of the connection that was opened last.
    number: u64,
    /// That of the last climb which was given up; what it has learned may come yet.
    given_up: Option<u64>,
    /// What such a one has learned, while another climbs.
    late: Option<Box<Ladder>>,
}

/// A connection, and the number that its events bear.
struct Numbered {
    connection: Connection,
    number: u64,
}

enum Probe {
    None,
    Trying(Numbered),
    Standing { connection: Numbered, road: RoadTaken, until_ms: u64 },
}

impl Probe {
    fn number(&self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Trying(connection) | Self::Standing { connection, .. } => Some(connection.number),
        }
    }
}

impl Connections {
    pub(super) fn new(
        network: Arc<Network>,
        events: Sender<(u64, Event)>,
        ladder: Ladder,
        memory: MemoryFile,
    ) -> Self {
        let (session, probe, leaving, destination, number) = (None, Probe::None, None, None, 0);
        let (given_up, late) = (None, None);
        Self { network, events, ladder, memory, session, probe, leaving, destination, number, given_up, late }
    }

    /// Connects, and says so at once where a connection stands already.
    pub(super) fn connect(&mut self, destination: Destination, now: Now) -> Option<Input> {
        let is_there = self.destination.as_ref().is_some_and(|last| last.server == destination.server);
        self.destination = Some(destination.clone());
        match std::mem::replace(&mut self.probe, Probe::None) {
            Probe::Standing { connection, road, until_ms } if is_there && now.boot_ms < until_ms => {
                self.session = Some(connection);
                self.ladder.on_connected(Rung::of(&road), None);
                return Some(Input::Connected { road });
            }
            other => drop(self.end_probe(other)),
        }
        self.end_leaving();
        let allowed = roads::allowed(&self.network.roads, &self.network.proxies, &destination.server);
        let moment = Moment { boot_ms: now.boot_ms, own: destination.now };
        self.ladder.begin(&destination.server, &allowed, moment);
        self.session = self.open(destination, self.ladder.clone());
        None
    }

    fn open(&mut self, destination: Destination, ladder: Ladder) -> Option<Numbered> {
        self.number += 1;
        let number = self.number;
        let network = Arc::clone(&self.network);
        match Connection::open(destination, Box::new(ladder), network, number, self.events.clone()) {
            Ok(connection) => Some(Numbered { connection, number }),
            // The agent gives this attempt up by its own time-out, and tries again.
            Err(error) => {
                tracing::error!(%error, "no thread for a connection; is the machine out of memory?");
                None
            }
        }
    }

    /// Says something in the session.
    pub(super) fn say(&mut self, message: AgentMessage) {
        if let Some(session) = &self.session {
            session.connection.say(message);
            self.end_leaving();
        }
    }

    /// The session's connection, or the attempt at one, ends, after what was said on it.
    pub(super) fn disconnect(&mut self, reason: Parting, own: UnixMillis, now: Now) {
        if reason == Parting::ConnectTimedOut {
            self.given_up = self.session.as_ref().map(|session| session.number);
        }
        let end = match reason {
            Parting::HelloUnanswered | Parting::KeepaliveUnanswered | Parting::Lost => End::Lost,
            _ => End::Wanted,
        };
        self.note_end(end, own, now);
        let session = self.session.take().map(|session| session.connection);
        if reason == Parting::RoadBetter && matches!(self.probe, Probe::Standing { .. }) {
            self.leaving = session;
        } else {
            // It ends by itself, within seconds.
            drop(session.map(Connection::end));
        }
    }

    /// All end: the thread of the session's connection, which has something to say still.
    pub(super) fn end(&mut self, own: UnixMillis, now: Now) -> Option<JoinHandle<()>> {
        self.note_end(End::Wanted, own, now);
        self.end_leaving();
        let probe = std::mem::replace(&mut self.probe, Probe::None);
        drop(self.end_probe(probe));
        self.session.take().map(|session| session.connection.end())
    }

    /// What an event means for the agent, if anything.
    pub(super) fn on_event(&mut self, number: u64, event: Event, own: UnixMillis, now: Now) -> Option<Input> {
        if self.probe.number() == Some(number) {
            return self.on_probe_event(event, now);
        }
        if self.session.as_ref().is_none_or(|session| session.number != number) {
            self.on_late_event(number, event);
            return None;
        }
        match event {
            Event::Connected { road, ladder } => {
                self.take_back(ladder);
                Some(Input::Connected { road })
            }
            Event::Failed { reason, ladder } => {
                self.session = None;
                self.take_back(ladder);
                Some(Input::ConnectFailed { reason })
            }
            Event::Said(message) => {
                self.note_said(&message, Moment { boot_ms: now.boot_ms, own });
                Some(Input::Said(message))
            }
            Event::Cut(silence) => {
                self.ladder.on_cut(silence, Moment { boot_ms: now.boot_ms, own });
                self.memory.keep(self.ladder.memory());
                None
            }
            Event::Lost(reason) => {
                self.session = None;
                self.note_end(End::Lost, own, now);
                Some(Input::Disconnected { reason })
            }
        }
    }

    fn on_probe_event(&mut self, event: Event, now: Now) -> Option<Input> {
        match (event, std::mem::replace(&mut self.probe, Probe::None)) {
            (Event::Connected { road, ladder }, Probe::Trying(connection)) => {
                let better = Rung::of(&road).label();
                tracing::info!(road = better, "a better road leads to the server; the session moves over");
                self.ladder.on_probed(*ladder);
                self.probe = Probe::Standing { connection, road, until_ms: now.boot_ms + STANDING_MS };
                Some(Input::RoadBetter)
            }
            (Event::Failed { reason, ladder }, _) => {
                tracing::debug!(%reason, "no better road leads to the server yet");
                self.ladder.on_probed(*ladder);
                self.memory.keep(self.ladder.memory());
                None
            }
            // It has nothing to say before a hello but that it goes away.
            (_, probe) => {
                self.ladder.on_probe_lost();
                self.end_probe(probe)
            }
        }
    }

    /// A connection says something that is the session's no more: a climb that was given up has learned what the next one is to know.
    fn on_late_event(&mut self, number: u64, event: Event) {
        if self.given_up == Some(number)
            && let Event::Failed { ladder, .. } = event
        {
            self.given_up = None;
            if self.session.is_some() && self.ladder.is_climbing() {
                // Its own ladder takes the place of this one when it comes back.
                self.late = Some(ladder);
            } else {
                self.ladder.on_late(*ladder);
            }
        }
    }

    fn note_said(&mut self, message: &ServerMessage, now: Moment) {
        self.ladder.on_heard();
        match message {
            ServerMessage::Welcome(_) => self.ladder.on_welcome(now),
            _ => return,
        }
        self.memory.keep(self.ladder.memory());
    }

    fn note_end(&mut self, end: End, own: UnixMillis, now: Now) {
        self.ladder.on_ended(end, Moment { boot_ms: now.boot_ms, own });
        self.memory.keep(self.ladder.memory());
    }

    fn take_back(&mut self, ladder: Box<Ladder>) {
        self.ladder = *ladder;
        if let Some(late) = self.late.take() {
            self.ladder.on_late(*late);
        }
        self.memory.keep(self.ladder.memory());
    }

    /// Tries better roads when that is due, and gives up what waits too long; what that means for the agent, if anything.
    pub(super) fn handle_time(&mut self, own: UnixMillis, now: Now) -> Option<Input> {
        let mut input = None;
        if matches!(&self.probe, Probe::Standing { until_ms, .. } if now.boot_ms >= *until_ms) {
            let probe = std::mem::replace(&mut self.probe, Probe::None);
            input = self.end_probe(probe);
        }
        let is_due = self.ladder.probe_due_ms(own).is_some_and(|due_ms| now.boot_ms >= due_ms);
        if is_due
            && matches!(self.probe, Probe::None)
            && let Some(destination) = self.destination.clone()
        {
            let ladder = self.ladder.on_probe(Moment { boot_ms: now.boot_ms, own });
            let destination = Destination { now: own, ..destination };
            self.probe = self.open(destination, ladder).map_or(Probe::None, Probe::Trying);
        }
        input
    }

    /// When [`Self::handle_time`] has something to do, in milliseconds since boot.
    pub(super) fn next_deadline(&self, own: UnixMillis) -> Option<u64> {
        match &self.probe {
            Probe::None => self.ladder.probe_due_ms(own),
            Probe::Trying(_) => None,
            Probe::Standing { until_ms, .. } => Some(*until_ms),
        }
    }

    fn end_leaving(&mut self) {
        drop(self.leaving.take().map(Connection::end));
    }

    /// Ends a probe; the agent is to know of it where it was told of a better road.
    fn end_probe(&mut self, probe: Probe) -> Option<Input> {
        match probe {
            Probe::None => None,
            Probe::Trying(Numbered { connection, .. }) => {
                drop(connection.end());
                None
            }
            Probe::Standing { connection: Numbered { connection, .. }, .. } => {
                drop(connection.end());
                Some(Input::RoadGone)
            }
        }
    }
}

#[cfg(test)]
mod tests;
