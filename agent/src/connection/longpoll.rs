//! The road over long-poll: numbered POSTs up, held GETs down (docs/protocol.md, 13.2).
//!
//! [`Tunnel`] knows what to ask for and what an answer means; here are the two connections, the limits of time, and what is done about losses.
//! Laws: nothing here waits, also where a connection has to be made anew; a lost request is made again, at once and then ever later, a few times in a
//! row; what a proxy cuts or gives up is asked for more shortly from then on.

mod exchange;
mod opening;

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bgb_http::tunnel::client::{Fault, Lane, Next, Tunnel};
use bgb_protocol::ids::UnixMillis;

use super::road::{Road, RoadFault, Waits};
use super::way::{Passage, Way};
use crate::roads::Idle;
use exchange::{Answer, Exchange};

/// How long a POST waits for its answer, and a GET beyond what it may be held: as long as a keepalive does (docs/protocol.md, 5).
pub const OVERDUE: Duration = Duration::from_secs(30);
/// After a second loss in a row a lane rests this long, and twice as long after each further one.
pub const REST: Duration = Duration::from_millis(500);
/// So many losses in a row, which take 7.5 s (no rest, then 0.5, 1, 2 and 4 s) and what each of them takes, and the road is over.
pub const LOSSES_MAX: u32 = 6;
/// A GET is held for 5 s at the least where there is nothing to say: one that is answered with nothing sooner than this was answered by somebody between,
/// who would be asked again without end.
const HELD_LEAST: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct LongPoll {
    way: Way,
    tunnel: Tunnel,
    post: Exchange,
    get: Exchange,
    post_rest: Rest,
    get_rest: Rest,
    idle: Idle,
    /// The agent's own time when the road was made, and the moment that was.
    made: (UnixMillis, Instant),
    stranger: Option<String>,
    cut: Option<Duration>,
}

/// When a lane makes its next request.
#[derive(Clone, Copy, Debug, Default)]
struct Rest {
    until: Option<Instant>,
    /// Losses in a row.
    losses: u32,
}

impl LongPoll {
    /// One along `way`. Its tunnel is opened with the first bytes that are written.
    ///
    /// # Errors
    /// Why nothing is reached there.
    pub(super) fn open(
        way: Way,
        idle: Idle,
        own: UnixMillis,
        waker: Option<&OwnedFd>,
    ) -> Result<Self, RoadFault> {
        let stream = way.open(Passage::Requests, waker)?;
        Ok(Self {
            way,
            tunnel: Tunnel::new(),
            stranger: stream.stranger().map(str::to_owned),
            post: Exchange::over(stream),
            get: Exchange::default(),
            post_rest: Rest::default(),
            get_rest: Rest::default(),
            idle,
            made: (own, Instant::now()),
            cut: None,
        })
    }

    /// The agent's own time.
    fn own(&self, now: Instant) -> UnixMillis {
        let (own, made) = self.made;
        UnixMillis(own.0.saturating_add(now.saturating_duration_since(made).as_millis() as u64))
    }

    fn lane(&mut self, lane: Lane) -> (&mut Exchange, &mut Rest) {
        match lane {
            Lane::Post => (&mut self.post, &mut self.post_rest),
            Lane::Get => (&mut self.get, &mut self.get_rest),
        }
    }

    /// Lets a lane go on until it waits: for an answer, for its rest to be over, or for something to ask.
    fn drive(&mut self, lane: Lane, now: Instant) -> Result<(), RoadFault> {
        // What was heard is read before more is asked for: a tunnel whose session has ended is gone with its last bytes.
        while lane == Lane::Post || !self.tunnel.has_heard() {
            let (exchange, rest) = self.lane(lane);
            if exchange.is_at_rest() && rest.until.is_none_or(|until| now >= until) {
                self.ask(lane, now)?;
            }
            let (exchange, _) = self.lane(lane);
            let asked_at = exchange.asked_at();
            match exchange.go_on(now) {
                Ok(None) => return Ok(()),
                Ok(Some(answer)) => self.on_answer(lane, &answer, now)?,
                Err(fault) => {
                    let held = asked_at.map(|at| now.saturating_duration_since(at));
                    self.on_lost(lane, held, now, fault)?;
                }
            }
        }
        Ok(())
    }

    /// Makes the lane's next request, if there is one.
    fn ask(&mut self, lane: Lane, now: Instant) -> Result<(), RoadFault> {
        self.idle = self.idle.at(self.own(now));
        let hold_secs = self.idle.hold_secs();
        let Some(request) = self.tunnel.poll_request(lane, hold_secs) else { return Ok(()) };
        // The same GET comes again and again: nothing between may answer it from memory.
        let mut fields = vec![("Cache-Control", "no-store".to_owned())];
        let mut limit = OVERDUE;
        match lane {
            Lane::Post => fields.extend([
                ("Content-Type", "application/octet-stream".to_owned()),
                ("Content-Length", request.body.len().to_string()),
            ]),
            Lane::Get => limit += Duration::from_secs(u64::from(hold_secs)),
        }
        let mut bytes = Vec::new();
        let (method, target) = (request.method, &request.target);
        self.way.encode(Passage::Requests, method, target, &fields, &request.body, &mut bytes);
        let exchange = match lane {
            Lane::Post => &mut self.post,
            Lane::Get => &mut self.get,
        };
        if exchange.is_standing() {
            exchange.begin(method, bytes, now, limit);
            return Ok(());
        }
        let begun = exchange.connect_and_begin(&self.way, method, bytes, limit);
        begun.or_else(|fault| self.on_lost(lane, None, now, fault))
    }

    fn on_answer(&mut self, lane: Lane, answer: &Answer, now: Instant) -> Result<(), RoadFault> {
        match self.tunnel.handle_answer(lane, &answer.head, &answer.body) {
            Ok(Next::GoOn) if lane == Lane::Get && answer.body.is_empty() && answer.took < HELD_LEAST => {
                let fault = RoadFault::new("a GET is answered with nothing at once, as no server does");
                self.on_lost(lane, None, now, fault)
            }
            Ok(Next::GoOn) => {
                *self.lane(lane).1 = Rest::default();
                Ok(())
            }
            Ok(Next::Pause(secs)) => {
                let until = Some(now + Duration::from_secs(u64::from(secs)));
                *self.lane(lane).1 = Rest { until, losses: 0 };
                Ok(())
            }
            Ok(Next::Lost(status)) => {
                let text = format!("a request of the tunnel is answered with {status}");
                let fault = RoadFault { text, reason: self.way.reason_of(status) };
                self.on_lost(lane, Some(answer.took), now, fault)
            }
            Err(fault) => {
                let reason = match fault {
                    Fault::Status(status) => self.way.reason_of(status),
                    _ => None,
                };
                Err(RoadFault { text: fault.to_string(), reason })
            }
        }
    }

    /// A request was lost, which was under way for so long.
    fn on_lost(
        &mut self,
        lane: Lane,
        held: Option<Duration>,
        now: Instant,
        fault: RoadFault,
    ) -> Result<(), RoadFault> {
        self.tunnel.handle_lost(lane);
        if lane == Lane::Get
            && let Some(held) = held
        {
            let own = self.own(now);
            self.idle.note_cut(held, own);
            // The longest, where one turn has several: a GET that is asked for again and refused at once tells of no timer.
            self.cut = self.cut.max(Some(held));
        }
        let (_, rest) = self.lane(lane);
        rest.losses += 1;
        if rest.losses >= LOSSES_MAX {
            return Err(fault);
        }
        tracing::debug!(?lane, %fault, "a request of the long-poll is made again");
        let again = if rest.losses > 1 { now + REST * (1 << (rest.losses - 2)) } else { now };
        rest.until = Some(again);
        Ok(())
    }
}

impl Read for LongPoll {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.tunnel.read(buffer) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for LongPoll {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.tunnel.send(bytes) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Road for LongPoll {
    fn go_on(&mut self, now: Instant) -> io::Result<()> {
        self.drive(Lane::Post, now)?;
        self.drive(Lane::Get, now)?;
        Ok(())
    }

    fn waits<'a>(&'a self, wants_write: bool, waits: &mut Waits<'a>) {
        if self.tunnel.has_heard() || (wants_write && self.tunnel.room() > 0) {
            waits.until(Instant::now());
        }
        for (exchange, rest, is_wanted) in
            [(&self.post, self.post_rest, !self.tunnel.is_taken()), (&self.get, self.get_rest, true)]
        {
            exchange.waits(waits);
            if exchange.is_at_rest() && is_wanted {
                rest.until.into_iter().for_each(|until| waits.until(until));
            }
        }
    }

    fn is_flushed(&self) -> bool {
        self.tunnel.is_taken()
    }

    fn intercepted_by(&self) -> Option<String> {
        self.stranger.clone()
    }

    fn take_cut(&mut self) -> Option<Duration> {
        self.cut.take()
    }
}

#[cfg(test)]
mod tests;
