//! A session's TLS and frames on a road.
//!
//! It owns the buffers between the two, and knows frames and messages but none of their meaning, and of the road no more than that it is one.
//! Law: what is held of either direction is bounded.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use bgb_protocol::frame::{BODY_BYTES_MAX, Frame, HEADER_BYTES};
use bgb_protocol::message::{RoadReason, ServerMessage};
use crossbeam_channel::{Receiver, TryRecvError};

use super::road::{Patience, Road, RoadFault, Waits};
use super::{Command, Event};
use crate::tls::TlsSession;

/// Time to send what was said last when the connection ends.
const CLOSE: Duration = Duration::from_secs(2);

/// Most bytes that wait to be sent: the results under way at a time, and their like again in small messages.
const WAITING_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Most bytes that were heard and make no whole frame yet, and a read's worth more.
const HEARD_BYTES_MAX: usize = HEADER_BYTES + BODY_BYTES_MAX + 64 * 1024;

/// Most bytes that are read before orders and deadlines are looked at again.
const RECEIVED_BYTES_MAX: usize = 256 * 1024;

/// The road, the TLS session on it, and what is under way in either direction.
pub(super) struct Line {
    road: Box<dyn Road>,
    session: TlsSession,
    /// Bytes of frames, not yet decoded.
    heard: Vec<u8>,
    /// Frames, not yet sealed.
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    peer: Peer,
}

/// What the peer has said of its own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Speaking,
    /// It says nothing more; what it said before is still to be decoded.
    Finished,
}

/// Whether the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Open,
    /// The owner wants no more of it.
    End,
}

impl Line {
    pub(super) fn new(road: Box<dyn Road>, session: TlsSession) -> Self {
        let (heard, waiting) = (Vec::new(), VecDeque::new());
        Self { road, session, heard, waiting, waiting_bytes: 0, peer: Peer::Speaking }
    }

    pub(super) fn road(&self) -> &dyn Road {
        &*self.road
    }

    pub(super) fn session(&self) -> &TlsSession {
        &self.session
    }

    /// The session, after the line came to nothing.
    pub(super) fn into_session(self) -> TlsSession {
        self.session
    }

    /// Makes the TLS session.
    ///
    /// # Errors
    /// Why there is none, and what a hello on another road says of it.
    pub(super) fn shake_hands(&mut self, patience: &Patience<'_>) -> Result<(), RoadFault> {
        self.try_to_shake_hands(patience).map_err(|mut fault| {
            let stranger = self.session.take_stranger().map(RoadReason::Intercepted);
            let in_http = || self.road.answer_in_http().map(RoadReason::ProxyAnswer);
            fault.reason = stranger.or_else(in_http).or(fault.reason);
            fault
        })
    }

    fn try_to_shake_hands(&mut self, patience: &Patience<'_>) -> Result<(), RoadFault> {
        loop {
            self.send()?;
            if !self.session.is_handshaking() && !self.session.wants_write() {
                return Ok(());
            }
            let mut waits = Waits::default();
            self.road.waits(self.wants_write(), &mut waits);
            patience.wait(waits, "the TLS handshake")?;
            if let Err(fault) = self.receive() {
                // The alert that says why; whether it arrives is the server's affair.
                let _ = self.send();
                return Err(fault);
            }
            if self.peer == Peer::Finished {
                let text = "the server closed the connection during the TLS handshake";
                return Err(RoadFault::because(RoadReason::Reset, text));
            }
        }
    }

    /// Hears and speaks until either side has had enough; `Ok` when it was ours.
    ///
    /// # Errors
    /// Why it is over.
    pub(super) fn run(
        mut self,
        orders: &Receiver<Command>,
        waker: &OwnedFd,
        tell: &dyn Fn(Event) -> bool,
    ) -> Result<(), RoadFault> {
        let ended = self.serve(orders, waker, tell);
        if let Some(silence) = self.road.take_cut() {
            tell(Event::Cut(silence));
        }
        match ended {
            Ok(()) => self.close(),
            Err(fault) => Err(fault),
        }
    }

    fn serve(
        &mut self,
        orders: &Receiver<Command>,
        waker: &OwnedFd,
        tell: &dyn Fn(Event) -> bool,
    ) -> Result<(), RoadFault> {
        loop {
            // What came with the end of the handshake is decoded before waiting for more.
            if self.decode(tell)? == Course::End {
                return Ok(());
            }
            if self.peer == Peer::Finished {
                return Err(RoadFault::new("the server closed the connection"));
            }
            let course = self.take_orders(orders)?;
            self.send()?;
            if course == Course::End {
                return Ok(());
            }
            if let Some(silence) = self.road.take_cut()
                && !tell(Event::Cut(silence))
            {
                return Ok(());
            }
            let mut waits = Waits::default();
            self.road.waits(self.wants_write(), &mut waits);
            waits.socket(waker.as_fd(), false);
            waits.wait()?;
            // Before the orders are looked at: one that comes later wakes again.
            let _ = rustix::io::read(waker, &mut [0; 8]);
            self.receive()?;
        }
    }

    fn wants_write(&self) -> bool {
        self.session.wants_write() || !self.waiting.is_empty()
    }

    fn take_orders(&mut self, orders: &Receiver<Command>) -> Result<Course, RoadFault> {
        loop {
            match orders.try_recv() {
                Ok(Command::Say(message)) => {
                    let mut frame = Vec::new();
                    message.encode(&mut frame);
                    self.waiting_bytes += frame.len();
                    self.waiting.push_back(frame);
                    if self.waiting_bytes > WAITING_BYTES_MAX {
                        return Err(RoadFault::new("the server does not take what it is sent"));
                    }
                }
                Ok(Command::End) | Err(TryRecvError::Disconnected) => return Ok(Course::End),
                Err(TryRecvError::Empty) => return Ok(Course::Open),
            }
        }
    }

    /// Reads what is there, into `heard`.
    fn receive(&mut self) -> Result<(), RoadFault> {
        // Tickets and empty records make nothing to hear: what is read in one turn has a bound of its own.
        let mut read = 0;
        while self.heard.len() < HEARD_BYTES_MAX && read < RECEIVED_BYTES_MAX {
            match self.session.read_from(&mut self.road) {
                Ok(0) => {
                    self.peer = Peer::Finished;
                    return Ok(());
                }
                Ok(count) => {
                    read += count;
                    if !self.session.open(&mut self.heard).map_err(RoadFault::new)? {
                        self.peer = Peer::Finished;
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Hands on every whole frame that was heard.
    fn decode(&mut self, tell: &dyn Fn(Event) -> bool) -> Result<Course, RoadFault> {
        let mut from = 0;
        while let Some((frame, used)) =
            Frame::decode(&self.heard[from..]).map_err(|error| RoadFault::new(error.to_string()))?
        {
            from += used;
            let message = ServerMessage::decode(frame).map_err(|error| RoadFault::new(error.to_string()))?;
            if let Some(message) = message
                && !tell(Event::Said(message))
            {
                return Ok(Course::End);
            }
        }
        self.heard.drain(..from);
        if self.heard.is_empty() {
            // At rest a connection holds no buffer.
            self.heard = Vec::new();
        }
        Ok(Course::Open)
    }

    /// Seals and writes as much as the road takes, and lets it go on.
    fn send(&mut self) -> Result<(), RoadFault> {
        self.write()?;
        self.road.go_on(Instant::now())?;
        Ok(())
    }

    fn write(&mut self) -> Result<(), RoadFault> {
        loop {
            while self.session.wants_write() {
                match self.session.write_to(&mut self.road) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let Some(frame) = self.waiting.front_mut() else { return Ok(()) };
            let sealed = self.session.seal(frame).map_err(RoadFault::new)?;
            self.waiting_bytes -= sealed;
            frame.drain(..sealed);
            if frame.is_empty() {
                self.waiting.pop_front();
            }
        }
    }

    /// Sends what is left and says that nothing follows: first in the session, then on the road.
    fn close(mut self) -> Result<(), RoadFault> {
        let deadline = Instant::now() + CLOSE;
        let mut is_told = false;
        loop {
            self.send()?;
            if self.waiting.is_empty() && !is_told {
                self.session.close();
                is_told = true;
                continue;
            }
            if is_told && !self.session.wants_write() {
                self.road.finish();
                self.road.go_on(Instant::now())?;
                if self.road.is_flushed() {
                    return Ok(());
                }
            }
            if self.peer == Peer::Finished || deadline <= Instant::now() {
                return Ok(());
            }
            let mut waits = Waits::default();
            self.road.waits(self.wants_write(), &mut waits);
            waits.until(deadline);
            waits.wait()?;
            // What it says now, nobody here waits for any more.
            self.heard.clear();
            self.receive()?;
        }
    }
}
