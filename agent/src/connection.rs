//! One connection to a server, on a thread of its own: a road, TLS, frames.
//!
//! ```text
//!  climbing --> open --end asked--> closing
//!       \          \                    \
//!        +--> Failed +--> Lost           +--> (nothing is said)
//! ```
//!
//! A climb tries road after road (`climb.rs`, `crate::roads`); what stands then is a [`line::Line`] of TLS and frames on a
//! [`road::Road`]: TCP (`tcp.rs`), a WebSocket (`websocket.rs`) or long-poll (`longpoll.rs`), the last two over streams that `way.rs` opens. The
//! thread owns all of it; it waits in poll(2) for the road's sockets and for a waker, so it both hears and speaks without delay and costs nothing
//! at rest. Laws: what is held of either direction is bounded; a connection says Connected before anything else, and Failed or
//! Lost once, as its last word; after [`Connection::end`], or when dropped, it says nothing that its owner would still listen to.

mod climb;
mod line;
mod longpoll;
mod road;
mod stream;
mod tcp;
#[cfg(test)]
pub(crate) mod tests;
mod way;
mod websocket;

pub use longpoll::{LOSSES_MAX, OVERDUE, REST};
pub use websocket::PONG;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bgb_protocol::ids::UnixMillis;
use bgb_protocol::message::{AgentMessage, RoadTaken, ServerMessage};
use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{EventfdFlags, eventfd};

use crate::config::RoadsConfig;
use crate::metrics::RoadCounts;
use crate::proxy::Proxies;
use crate::roads::Ladder;
use crate::tls::{OuterTls, Tls};

/// What a connection says.
#[derive(Debug)]
pub(crate) enum Event {
    /// It stands, and the server is one.
    Connected {
        road: RoadTaken,
        /// The attempt's, with what it has learned.
        ladder: Box<Ladder>,
    },
    /// It did not come about.
    Failed { reason: String, ladder: Box<Ladder> },
    /// The server said something.
    Said(ServerMessage),
    /// The road, or a request on it, was cut after so long a silence.
    Cut(Duration),
    /// It is gone.
    Lost(String),
}

/// What is asked of the thread.
enum Command {
    Say(AgentMessage),
    End,
}

/// A connection, seen from its owner. Dropped, it ends without waiting.
pub(crate) struct Connection {
    orders: Orders,
    thread: JoinHandle<()>,
}

/// What a connection is told. Dropped, it is told to end.
struct Orders {
    commands: Sender<Command>,
    waker: Arc<OwnedFd>,
}

/// Where to connect.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// `host:port`.
    pub(crate) server: String,
    /// The agent's own time.
    pub(crate) now: UnixMillis,
    /// Its time floor.
    pub(crate) floor: UnixMillis,
}

/// What all connections of an agent share.
pub(crate) struct Network {
    pub(crate) tls: Tls,
    pub(crate) outer: Arc<OuterTls>,
    pub(crate) roads: RoadsConfig,
    pub(crate) proxies: Proxies,
    pub(crate) counts: Arc<RoadCounts>,
}

impl Connection {
    /// Begins to connect, by the roads that `ladder` names, whose climb has begun and which is given back with the first event. Events come with
    /// `number`, by which their receiver tells this connection's from another's.
    ///
    /// # Errors
    /// When there is no thread or descriptor to be had.
    pub(crate) fn open(
        destination: Destination,
        ladder: Box<Ladder>,
        network: Arc<Network>,
        number: u64,
        events: Sender<(u64, Event)>,
    ) -> io::Result<Self> {
        let waker = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, orders) = unbounded();
        let its_waker = Arc::clone(&waker);
        let thread = std::thread::Builder::new().name("connection".to_owned()).spawn(move || {
            let tell = |event| events.send((number, event)).is_ok();
            connect_and_run(&destination, ladder, &network, &orders, &its_waker, &tell);
        })?;
        Ok(Self { orders: Orders { commands, waker }, thread })
    }

    /// Says something, as soon as the line takes it.
    pub(crate) fn say(&self, message: AgentMessage) {
        self.orders.give(Command::Say(message));
    }

    /// Ends the connection after what was said on it; the thread that is given ends within seconds.
    pub(crate) fn end(self) -> JoinHandle<()> {
        drop(self.orders);
        self.thread
    }
}

impl Orders {
    fn give(&self, command: Command) {
        // A thread that has ended says so in its last event, not here.
        if self.commands.send(command).is_ok() {
            let _ = rustix::io::write(&*self.waker, &1_u64.to_ne_bytes());
        }
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        self.give(Command::End);
    }
}

/// What the thread does.
fn connect_and_run(
    destination: &Destination,
    mut ladder: Box<Ladder>,
    network: &Network,
    orders: &Receiver<Command>,
    waker: &OwnedFd,
    tell: &dyn Fn(Event) -> bool,
) {
    let last_word = match climb::climb(&mut ladder, destination, network, waker) {
        Err(fault) => Event::Failed { reason: format!("{}: {fault}", destination.server), ladder },
        Ok((line, road)) => {
            if !tell(Event::Connected { road, ladder }) {
                return;
            }
            match line.run(orders, waker, tell) {
                Ok(()) => return,
                Err(fault) => Event::Lost(format!("{}: {fault}", destination.server)),
            }
        }
    };
    tell(last_word);
}
