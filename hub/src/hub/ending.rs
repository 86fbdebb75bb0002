//! Every way in which a session ends, and the deadlines that lead there.
//!
//! The wheel holds one timer for each session, never later than its earliest deadline. What an agent says moves the deadline
//! and not the timer: one that fires early is put back.

use bgb_protocol::message::{Abilities, Drain, ServerMessage};

use super::{Hub, channel_of};
use crate::close_reason::CloseReason;
use crate::output::Output;
use crate::session::{Deadline, Stage};

/// Timers that one turn looks at: a fleet whose deadlines all come at once (a machine that slept) must not hold up the
/// reactor. At some 100 ns each this is under a millisecond; what the wheel moves when it comes to a slot is on top of it.
const TIMERS_PER_TURN: usize = 4_096;

/// Sessions that one turn of a drain ends, each with a message to encode and write.
const DRAINED_PER_TURN: usize = 256;

/// Places that one turn of a drain looks at, empty ones included.
const DRAIN_PLACES_PER_TURN: usize = 16_384;

impl Hub {
    /// Ends the session at `at`: says why, where that is to be said, and closes.
    pub(super) fn end(&mut self, at: u32, reason: CloseReason) {
        let Some(session) = self.session(at) else { return };
        let channel = channel_of(at, session);
        let takes_drain = session.active().is_some_and(|active| active.abilities.has(Abilities::DRAIN));
        if reason == CloseReason::Draining && takes_drain {
            let (window_secs, servers) =
                (self.options.reconnect_window_secs, self.options.other_servers.clone());
            self.send(channel, ServerMessage::Drain(Drain { window_secs, servers }));
        } else if let Some(refusal) = reason.refusal() {
            self.send(channel, ServerMessage::Refused(refusal));
        }
        self.forget(at, reason);
        self.outputs.push_back(Output::Close { channel, reason });
    }

    /// Forgets the session at `at`, whose channel is gone or is about to be closed.
    pub(super) fn forget(&mut self, at: u32, reason: CloseReason) {
        let Some(session) = self.sessions.get_mut(at as usize).and_then(Option::take) else { return };
        let (channel, device) = (channel_of(at, &session), session.device);
        self.wheel.cancel(at);
        self.open -= 1;
        self.counters.closed.count(reason);
        match session.stage {
            Stage::AwaitingHello { .. } => {}
            Stage::Claiming(_) => self.outputs.push_back(Output::Release { channel, device }),
            Stage::Active(active) => {
                let registered = self.registry.remove(&device);
                assert_eq!(registered, Some(at), "an active session is the registered one of its device");
                self.outputs.push_back(Output::Release { channel, device });
                let row = active.offline_row(device, self.time.time(), reason);
                self.outputs.push_back(Output::Offline { row });
            }
        }
    }

    /// Sees to it that the wheel's timer for the session at `at` is not later than its earliest deadline.
    pub(super) fn arm(&mut self, at: u32) {
        let Some(session) = self.session(at) else { return };
        let (deadline, _) = session.deadline(&self.time, self.options.hello_ticks);
        if self.wheel.deadline(at).is_none_or(|armed| armed > deadline) {
            self.wheel.arm(at, deadline);
        }
    }

    pub(super) fn poll_timers(&mut self) {
        let tick = self.time.tick();
        for _ in 0..TIMERS_PER_TURN {
            let Some(at) = self.wheel.poll_expired(tick) else { return };
            self.on_timer(at);
        }
    }

    /// The timer of the session at `at` fired: does what is due, or puts the timer back.
    fn on_timer(&mut self, at: u32) {
        while let Some(session) = self.session(at) {
            let (deadline, what) = session.deadline(&self.time, self.options.hello_ticks);
            if deadline > self.time.tick() {
                return self.wheel.arm(at, deadline);
            }
            match what {
                Deadline::End(reason) => self.end(at, reason),
                Deadline::AnswerPolicy => self.on_policy_due(at),
            }
        }
    }

    /// Ends some of the sessions of a server that stops.
    pub(super) fn drain_some(&mut self) {
        let Some(from) = self.drained_to else { return };
        let until = self.sessions.len().min(from + DRAIN_PLACES_PER_TURN);
        let mut ended = 0;
        for at in from..until {
            if ended == DRAINED_PER_TURN {
                self.drained_to = Some(at);
                return;
            }
            ended += usize::from(self.sessions[at].is_some());
            self.end(at as u32, CloseReason::Draining);
        }
        self.drained_to = Some(until);
    }

    /// Whether a drain has sessions left.
    pub(super) fn is_draining(&self) -> bool {
        self.drained_to.is_some() && self.open > 0
    }

    /// Whether a timer that is due was left for the next turn.
    pub(super) fn has_timers_due(&self) -> bool {
        self.wheel.next_deadline().is_some_and(|deadline| deadline <= self.time.tick())
    }
}
