//! A line by long-poll: numbered POSTs up, held GETs down (docs/protocol.md, 13.2), each over a connection of its own.
//!
//! What is asked for and what an answer means is [`Tunnel`]'s to know. Laws: what was heard is read before more is asked for, since a tunnel whose session has ended
//! is gone with its last bytes; a lane that the server has asked to wait makes no request until its owner has counted the seconds.

use std::io::{self, Read, Write};
use std::rc::Rc;

use bgb_http::ResponseHead;
use bgb_http::tunnel::client::{Fault, Lane, Next, Tunnel};

use super::exchange::{Came, Exchange, Sent};
use super::{Dial, Ends, SOCKETS_MAX, Told, invalid};

/// How long a GET is held: as long as may be (docs/protocol.md, 13.2), as agents ask for it that know of nothing between.
const HOLD_SECS: u32 = 60;
/// Lanes, in the order of the line's sockets.
const LANES: [Lane; SOCKETS_MAX] = [Lane::Post, Lane::Get];

/// See the module.
pub(crate) struct LongPollLine {
    dial: Rc<Dial>,
    ends: Ends,
    tunnel: Tunnel,
    exchanges: [Exchange; SOCKETS_MAX],
    pauses: [Pause; SOCKETS_MAX],
}

/// Whether a lane waits for its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    No,
    /// For so many seconds, of which nobody knows yet.
    Asked(u32),
    Counted,
}

impl LongPollLine {
    /// Begins to connect for POSTs: the tunnel is opened by the first bytes that are written.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn connect(dial: &Rc<Dial>, ends: Ends) -> io::Result<Self> {
        let mut exchanges = [Exchange::new(0), Exchange::new(1)];
        exchanges[place(Lane::Post)].connect(dial, ends)?;
        let pauses = [Pause::No; SOCKETS_MAX];
        Ok(Self { dial: Rc::clone(dial), ends, tunnel: Tunnel::new(), exchanges, pauses })
    }

    /// Whether the server is there; while it is not, it goes on towards that.
    ///
    /// # Errors
    /// Why it never will be.
    pub(super) fn is_there(&mut self) -> io::Result<bool> {
        self.exchanges[place(Lane::Post)].is_up()
    }

    /// The system tells of a socket.
    pub(super) fn note(&mut self, told: Told) {
        self.exchanges[told.socket].note(told.has_ended);
    }

    /// For how many seconds lanes wait, those that have begun to since the last time.
    pub(super) fn take_pauses(&mut self) -> [Option<u32>; SOCKETS_MAX] {
        self.pauses.each_mut().map(|pause| match *pause {
            Pause::Asked(secs) => {
                *pause = Pause::Counted;
                Some(secs)
            }
            Pause::No | Pause::Counted => None,
        })
    }

    /// They are over.
    pub(super) fn go_on(&mut self, socket: usize) {
        self.pauses[socket] = Pause::No;
    }

    /// Of outer TLS only the keys are left.
    ///
    /// # Errors
    /// When rustls does not give them away.
    pub(super) fn rest(&mut self) -> io::Result<()> {
        self.exchanges.iter_mut().try_for_each(Exchange::rest)
    }

    /// Lets a lane go on until it waits: for the server, for its time, or for something to ask.
    fn drive(&mut self, lane: Lane, room: &mut [u8]) -> io::Result<()> {
        while lane == Lane::Post || !self.tunnel.has_heard() {
            self.ask(lane)?;
            match self.exchanges[place(lane)].go_on(room)? {
                Came::Nothing => return Ok(()),
                Came::Answer(head, body) => self.on_answer(lane, &head, &body)?,
                Came::Loss => self.tunnel.handle_lost(lane),
            }
        }
        Ok(())
    }

    /// Makes the lane's next request, if there is one.
    fn ask(&mut self, lane: Lane) -> io::Result<()> {
        let exchange = &mut self.exchanges[place(lane)];
        if exchange.is_busy() || self.pauses[place(lane)] != Pause::No {
            return Ok(());
        }
        if let Some(request) = self.tunnel.poll_request(lane, HOLD_SECS) {
            exchange.connect(&self.dial, self.ends)?;
            exchange.ask(self.ends, &request);
        }
        Ok(())
    }

    fn on_answer(&mut self, lane: Lane, head: &ResponseHead, body: &[u8]) -> io::Result<()> {
        match self.tunnel.handle_answer(lane, head, body) {
            Ok(Next::GoOn) => {}
            Ok(Next::Pause(secs)) => self.pauses[place(lane)] = Pause::Asked(secs),
            Ok(Next::Lost(status)) => return Err(invalid(format!("a request is answered with {status}"))),
            // As a connection ends: whoever is gone, or was started anew, has no such tunnel.
            Err(Fault::Gone) => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, Fault::Gone)),
            Err(fault) => return Err(invalid(fault)),
        }
        Ok(())
    }
}

fn place(lane: Lane) -> usize {
    match lane {
        Lane::Post => 0,
        Lane::Get => 1,
    }
}

impl Read for LongPollLine {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for lane in LANES {
            self.drive(lane, buffer)?;
        }
        match self.tunnel.read(buffer) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            bytes => Ok(bytes),
        }
    }
}

impl Write for LongPollLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.tunnel.send(bytes) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            self.ask(Lane::Post)?;
            match self.exchanges[place(Lane::Post)].send()? {
                Sent::AsFarAsItGoes => return Ok(()),
                Sent::Lost => self.tunnel.handle_lost(Lane::Post),
            }
        }
    }
}
