//! What a session's bytes travel over, and why one did not come about.

use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use bgb_protocol::message::RoadReason;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

/// A road to a server: bytes both ways. Neither reading nor writing ever waits: what cannot be done now is `WouldBlock`, and what is taken may
/// go out later.
///
/// Its user writes and reads what there is, lets it go on ([`Road::go_on`]), asks what to wait for ([`Road::waits`]), waits, and begins anew.
pub(super) trait Road: Read + Write + Send {
    /// Does what is due or can be done without being asked: gives on what was taken, answers pings, makes requests.
    ///
    /// # Errors
    /// Why the road is over.
    fn go_on(&mut self, now: Instant) -> io::Result<()>;

    /// Adds what has to happen before there is anything to do again. `wants_write`: its user has bytes that it did not take.
    fn waits<'a>(&'a self, wants_write: bool, waits: &mut Waits<'a>);

    /// Nothing more is written: says so to the other end, after what was.
    fn finish(&mut self) {}

    /// Whether all that was written has gone out.
    fn is_flushed(&self) -> bool;

    /// The issuer of the certificate around the road, where that is not the site's authority.
    fn intercepted_by(&self) -> Option<String> {
        None
    }

    /// The status of an answer in HTTP, where that is what came instead of TLS.
    fn answer_in_http(&self) -> Option<u16> {
        None
    }

    /// After how long a silence the road, or a request on it, was cut, if it was: told once.
    fn take_cut(&mut self) -> Option<Duration> {
        None
    }
}

/// What poll(2) waits for.
#[derive(Debug, Default)]
pub(super) struct Waits<'a> {
    fds: Vec<PollFd<'a>>,
    until: Option<Instant>,
}

impl<'a> Waits<'a> {
    /// A descriptor that can be read, or written where that is wanted too.
    pub(super) fn socket(&mut self, fd: BorrowedFd<'a>, wants_write: bool) {
        let interest = if wants_write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        self.fds.push(PollFd::from_borrowed_fd(fd, interest));
    }

    /// No longer than this; a moment that has passed means not at all.
    pub(super) fn until(&mut self, moment: Instant) {
        self.until = Some(self.until.map_or(moment, |until| until.min(moment)));
    }

    /// Waits.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn wait(mut self) -> Result<(), RoadFault> {
        let limit = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        // A whole millisecond more, or it would wake a fraction of one too early, and again.
        let limit = limit
            .filter(|limit| !limit.is_zero())
            .map_or(limit, |limit| Some(limit + Duration::from_millis(1)));
        let limit = limit.map(Timespec::try_from).transpose();
        let limit = limit.map_err(|_| RoadFault::new("a time-out is out of range"))?;
        match poll(&mut self.fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(RoadFault::new(error.to_string())),
        }
    }
}

/// Why a road did not come about, or is over.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text}")]
pub(super) struct RoadFault {
    /// For the log.
    pub(super) text: String,
    /// For the hello on another road, where it is one of those that a hello knows.
    pub(super) reason: Option<RoadReason>,
}

impl RoadFault {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), reason: None }
    }

    pub(super) fn because(reason: RoadReason, text: impl Into<String>) -> Self {
        Self { text: text.into(), reason: Some(reason) }
    }
}

impl From<RoadFault> for io::Error {
    fn from(fault: RoadFault) -> Self {
        Self::other(fault)
    }
}

impl From<io::Error> for RoadFault {
    fn from(error: io::Error) -> Self {
        if let Some(fault) = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()) {
            return fault.clone();
        }
        let reason = match error.kind() {
            // The last two are what a firewall's "administratively prohibited" comes to over IPv4 and IPv6 (icmp(7)).
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::PermissionDenied => Some(RoadReason::Refused),
            io::ErrorKind::TimedOut => Some(RoadReason::TimedOut),
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Some(RoadReason::Reset),
            _ => None,
        };
        Self { text: error.to_string(), reason }
    }
}

/// How long something that has to be waited for may take, and who may call it off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience<'a> {
    pub(super) deadline: Instant,
    /// Readable when the owner wants no connection any more.
    pub(super) waker: Option<&'a OwnedFd>,
}

impl<'a> Patience<'a> {
    pub(super) fn of(limit: Duration, waker: Option<&'a OwnedFd>) -> Self {
        Self { deadline: Instant::now() + limit, waker }
    }

    /// Waits for what `waits` says and no longer than this bears it; `what` is being waited for.
    ///
    /// # Errors
    /// When time is up, or it was called off.
    pub(super) fn wait(&self, waits: Waits<'_>, what: &str) -> Result<(), RoadFault> {
        self.check(what)?;
        let mut waits = waits;
        waits.until(self.deadline);
        waits.fds.extend(self.waker.map(|waker| PollFd::new(waker, PollFlags::IN)));
        waits.wait()
    }

    /// Looks whether there is any left; who reads without waiting asks in each turn, since a peer may send nothing of use without end.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub(super) fn check(&self, what: &str) -> Result<(), RoadFault> {
        if self.deadline <= Instant::now() {
            return Err(RoadFault::because(RoadReason::TimedOut, format!("{what} took too long")));
        }
        if self.is_called_off() {
            return Err(RoadFault::new("the attempt was called off"));
        }
        Ok(())
    }

    /// Whether the owner has called it off.
    pub(super) fn is_called_off(&self) -> bool {
        let Some(waker) = self.waker else { return false };
        let mut fds = [PollFd::new(waker, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }
}
