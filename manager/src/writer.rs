//! The writer thread: drives the manager, orders first.
//!
//! Its turn: every order that waits (a few at a time), then one step of the manager's own work, which is at most one chunk; so an order
//! waits for one chunk and not for a file. It sleeps until the next thing is due, an order comes, a verifier is done, or the inbox
//! changes. It owns the manager; whoever wants something written sends an [`Order`] through an [`OrderSender`].

use std::time::Duration;

use bgb_daemon::clock::Now;
use bgb_protocol::api::{ErrorBody, ErrorCode};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded, select};

use crate::manager::{Manager, Next};
use crate::orders::{Answer, Order};
use crate::refusal::refusal;

/// Orders that may wait: a few seconds of work.
const ORDERS_WAITING_MAX: usize = 64;
/// Orders of one turn: the manager's own work comes in between, however many orders there are.
const ORDERS_PER_TURN: usize = 8;
/// How long whoever sent an order waits for its answer: far longer than any takes.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

type Reply = Result<Answer, ErrorBody>;

/// An order and where its answer goes.
pub(crate) struct Placed {
    order: Order,
    reply: Sender<Reply>,
}

/// Sends orders to the writer thread.
#[derive(Clone)]
pub struct OrderSender {
    orders: Sender<Placed>,
}

/// The writer thread's work.
pub(crate) struct Writer {
    pub(crate) manager: Manager,
    pub(crate) orders: Receiver<Placed>,
    /// A verifier is done with a block.
    pub(crate) verified: Receiver<()>,
    /// Something changed in the inbox.
    pub(crate) inbox: Receiver<()>,
    /// Disconnected when the manager is to stop.
    pub(crate) stop: Receiver<()>,
}

/// What the writer does after it has slept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    GoesOn,
    Stops,
}

impl OrderSender {
    pub(crate) fn new() -> (Self, Receiver<Placed>) {
        let (orders, receiver) = bounded(ORDERS_WAITING_MAX);
        (Self { orders }, receiver)
    }

    /// Has an order carried out and waits for the answer.
    ///
    /// # Errors
    /// The order's own, or [`ErrorCode::Unavailable`] when too many wait or the manager stops.
    pub fn place(&self, order: Order) -> Reply {
        let (reply, answer) = bounded(1);
        match self.orders.try_send(Placed { order, reply }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                let error = "the manager has too many orders waiting; try again in a second";
                return Err(refusal(ErrorCode::Unavailable, error));
            }
            Err(TrySendError::Disconnected(_)) => return Err(stopping()),
        }
        answer.recv_timeout(ANSWER_WAIT).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => Err(refusal(
                ErrorCode::Unavailable,
                "the manager has not answered for 30 s; look whether the order was carried out before you repeat it",
            )),
            RecvTimeoutError::Disconnected => Err(stopping()),
        })
    }
}

impl Writer {
    /// Works until it is told to stop; orders that came before that are carried out.
    pub(crate) fn run(mut self) {
        loop {
            self.answer_waiting();
            let next = self.manager.step(Now::read());
            if self.sleep(next) == Woken::Stops {
                break;
            }
        }
        while let Ok(placed) = self.orders.try_recv() {
            self.answer(placed);
        }
        self.manager.stop(Now::read());
    }

    fn answer_waiting(&mut self) {
        for _ in 0..ORDERS_PER_TURN {
            match self.orders.try_recv() {
                Ok(placed) => self.answer(placed),
                Err(_) => return,
            }
        }
    }

    fn answer(&mut self, placed: Placed) {
        let reply = self.manager.handle_order(Now::read(), placed.order);
        // Whoever asked may have gone; the order was carried out all the same.
        let _ = placed.reply.send(reply);
    }

    fn sleep(&mut self, next: Next) -> Woken {
        let wait = Duration::from_millis(next.wait_ms(Now::read().mono_ms));
        select! {
            recv(self.orders) -> placed => match placed {
                Ok(placed) => self.answer(placed),
                Err(_) => return Woken::Stops,
            },
            recv(self.stop) -> _ => return Woken::Stops,
            recv(self.verified) -> _ => {}
            recv(self.inbox) -> _ => self.manager.on_inbox_changed(),
            default(wait) => {}
        }
        Woken::GoesOn
    }
}

fn stopping() -> ErrorBody {
    refusal(ErrorCode::Unavailable, "the manager is stopping; try again when it has started anew")
}
