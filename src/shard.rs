//! A shard: one reactor's hub, and what ties it to the rest of the server.
//!
//! The reactor moves bytes and knows no word of the protocol; the hub knows the protocol and no thread. Between them stands the
//! shard: it decodes frames into the hub's inputs, and carries out the hub's outputs: claims go to the directory, results to the
//! spool, presence to its list, frames back to the reactor as [`Deed`]s.
//!
//! Nothing here waits. What the spool or the presence list cannot take now is kept in order on a list of the shard's own, and
//! the channel that it came from is held: not read until the list is empty.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bgb_hub::{ChannelKey, CloseReason, Hub, Input, Now, Order, Output, Peer, PushFrames, Tick};
use bgb_protocol::file::results::ResultRow;
use bgb_protocol::frame::Frame;
use bgb_protocol::message::{AgentMessage, MessageError, ServerMessage};
use bgb_protocol::status::StatusId;
use crossbeam_channel::{Sender, TrySendError};

use crate::courier::StatusLine;
use crate::directory::{Claim, Directory, Place, ShardId};
use crate::metrics::ShardMetrics;
use crate::presence::Told;
use crate::reactor::entrance::Entrance;
use crate::reactor::mailbox::{Mailbox, Undelivered};
use crate::reactor::passed::{Ask, Passed, Standing};
use crate::tls::TlsContext;

/// What other threads say to a shard.
#[derive(Clone, Debug)]
pub enum Letter {
    /// Rows of the queue, in their order.
    Orders(Arc<[Order]>),
    /// A newer session of the channel's device was claimed on another shard.
    Displaced(ChannelKey),
    /// Whether devices may sign in.
    SignIns(bool),
    /// The queue has been read, and the socket listens: accept what comes to it.
    Listen(Entrance, Arc<TcpListener>),
    /// A request to a long-poll tunnel that came to another shard than the tunnel's, or its answer.
    Passed(Passed),
    /// New sessions start from these certificates.
    Tls(Arc<TlsContext>),
    /// Say good-bye to everybody, and end.
    Stop,
}

/// A result on its way to the spool.
#[derive(Debug)]
pub enum SpoolItem {
    /// To be made durable, and then acknowledged up to `number` to `shard`.
    Keep {
        /// Who wants to know.
        shard: ShardId,
        /// The shard's running number, from 1.
        number: u64,
        /// The result.
        row: ResultRow,
    },
    /// A hint.
    Hint(ResultRow),
}

/// What the reactor is to do for the shard.
#[derive(Debug, PartialEq, Eq)]
pub enum Deed {
    /// Send the frame that was put together.
    Write(ChannelKey),
    /// Send what waits, then end the channel.
    Close(ChannelKey, CloseReason),
    /// Do not read from it until [`Shard::is_backed_up`] says no more.
    Hold(ChannelKey),
}

/// The ends of the channels that a shard writes to.
#[derive(Clone)]
pub struct Links {
    /// The spool's.
    pub spool: Sender<SpoolItem>,
    /// The presence list's.
    pub presence: Sender<Told>,
    /// Highest number of this shard's results that is on disk.
    pub durable_up_to: Arc<AtomicU64>,
    /// Which shard has which device.
    pub directory: Arc<Directory>,
    /// All shards' mailboxes, by number.
    pub shards: Arc<[Mailbox<Letter>]>,
}

/// See the module.
pub struct Shard {
    id: ShardId,
    hub: Hub,
    links: Links,
    metrics: Arc<ShardMetrics>,
    durable_seen: u64,
    unspooled: VecDeque<SpoolItem>,
    unlisted: VecDeque<Told>,
    /// Older sessions on other shards that are still to be told.
    undisplaced: VecDeque<Place>,
    /// Answers that other shards' requests are still to have.
    unpassed: VecDeque<(ShardId, Passed)>,
    /// Older sessions on this one.
    displaced_here: VecDeque<ChannelKey>,
    /// Pushes of one block of targets share a frame.
    frames: PushFrames,
    status: StatusLine,
}

impl Shard {
    /// A shard around `hub`.
    #[must_use]
    pub fn new(id: ShardId, hub: Hub, links: Links, metrics: Arc<ShardMetrics>, status: StatusLine) -> Self {
        Self {
            id,
            hub,
            links,
            metrics,
            durable_seen: 0,
            unspooled: VecDeque::new(),
            unlisted: VecDeque::new(),
            undisplaced: VecDeque::new(),
            unpassed: VecDeque::new(),
            displaced_here: VecDeque::new(),
            frames: PushFrames::default(),
            status,
        }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Whether there is a shard of that number.
    #[must_use]
    pub fn has(&self, shard: u16) -> bool {
        usize::from(shard) < self.links.shards.len()
    }

    /// Passes a request on to another shard; `false` when that has no room for it.
    pub fn pass(&mut self, shard: ShardId, passed: Passed) -> bool {
        let mailbox = &self.links.shards[usize::from(shard.0)];
        let is_strangers = matches!(&passed, Passed::Ask { standing: Standing::Stranger, ask, .. } if !matches!(ask, Ask::Lost));
        (!is_strangers || mailbox.takes_strangers()) && mailbox.try_send_late(Letter::Passed(passed)).is_ok()
    }

    /// Passes an answer on to another shard, as soon as it has room for it.
    pub fn pass_surely(&mut self, shard: ShardId, passed: Passed) {
        self.unpassed.push_back((shard, passed));
        self.deliver_passed();
    }

    /// A channel's TLS is up and its peer known.
    pub fn handle_opened(&mut self, now: Now, channel: ChannelKey, peer: Peer) {
        self.hub.handle(now, Input::Opened { channel, peer });
    }

    /// A frame came.
    ///
    /// # Errors
    /// Why the channel has to end.
    pub fn handle_frame(
        &mut self,
        now: Now,
        channel: ChannelKey,
        frame: Frame<'_>,
    ) -> Result<(), CloseReason> {
        match AgentMessage::decode(frame) {
            Ok(Some(message)) => {
                self.hub.handle(now, Input::Said { channel, message });
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(MessageError::UnknownType(_)) => Err(CloseReason::UnknownType),
            Err(MessageError::Frame(_)) => Err(CloseReason::OversizedFrame),
            Err(MessageError::Body(error)) => {
                tracing::debug!(?channel, %error, "a message cannot be read");
                Err(CloseReason::MalformedMessage)
            }
        }
    }

    /// Puts what the agent is told of an end that the reactor brings about into `frame`; `false` when it is told nothing.
    pub fn put_refusal(&self, reason: CloseReason, frame: &mut Vec<u8>) -> bool {
        let Some(refusal) = reason.refusal() else { return false };
        frame.clear();
        ServerMessage::Refused(refusal).encode(frame);
        true
    }

    /// A channel's transport is gone.
    pub fn handle_closed(&mut self, now: Now, channel: ChannelKey, reason: CloseReason) {
        self.hub.handle(now, Input::Closed { channel, reason });
    }

    /// A channel's unsent bytes crossed a mark.
    pub fn handle_flow(&mut self, now: Now, channel: ChannelKey, choked: bool) {
        self.hub.handle(now, if choked { Input::Choked { channel } } else { Input::Flowing { channel } });
    }

    /// A row of the queue came.
    pub fn handle_order(&mut self, now: Now, order: Order) {
        self.hub.handle(now, Input::Order(order));
    }

    /// A letter came. Letters that concern the reactor itself are given back.
    pub fn handle_letter(&mut self, now: Now, letter: Letter) -> Option<Letter> {
        match letter {
            Letter::Displaced(channel) => self.hub.handle(now, Input::Displaced { channel }),
            Letter::SignIns(allowed) => self.hub.handle(now, Input::SignIns { allowed }),
            own @ (Letter::Orders(_)
            | Letter::Listen(..)
            | Letter::Passed(_)
            | Letter::Tls(_)
            | Letter::Stop) => {
                return Some(own);
            }
        }
        None
    }

    /// The server stops: everybody is told when to come back.
    pub fn drain(&mut self, now: Now) {
        self.hub.handle(now, Input::Drain);
    }

    /// Time has passed. Takes up what the spool has made durable, and delivers what had to wait.
    pub fn advance(&mut self, now: Now) {
        let durable = self.links.durable_up_to.load(Ordering::Acquire);
        if durable > self.durable_seen {
            self.durable_seen = durable;
            self.hub.handle(now, Input::Durable { up_to: durable });
        }
        self.hub.advance(now);
        self.deliver();
    }

    /// When [`advance`](Self::advance) is due next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        self.hub.next_deadline()
    }

    /// The hub, for those who look on (the simulator).
    #[must_use]
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Whether a task is on its way to many, and not with all of them yet.
    #[must_use]
    pub fn is_fanning_out(&self) -> bool {
        self.hub.is_fanning_out()
    }

    /// Whether something waits for the spool, the presence list or another shard: then it is to be called again soon.
    #[must_use]
    pub fn is_backed_up(&self) -> bool {
        !(self.unspooled.is_empty() && self.unlisted.is_empty() && self.undisplaced.is_empty())
    }

    /// Whether something waits for whoever: then [`advance`](Self::advance) is to be called again soon.
    #[must_use]
    pub fn is_owing(&self) -> bool {
        self.is_backed_up() || !self.unpassed.is_empty()
    }

    /// The next thing that the reactor is to do; a frame to be sent is put into `frame`.
    pub fn poll(&mut self, now: Now, frame: &mut Vec<u8>) -> Option<Deed> {
        loop {
            let Some(output) = self.hub.poll_output() else {
                let channel = self.displaced_here.pop_front()?;
                self.hub.handle(now, Input::Displaced { channel });
                continue;
            };
            if let Some(deed) = self.carry_out(now, output, frame) {
                return Some(deed);
            }
        }
    }

    fn carry_out(&mut self, now: Now, output: Output, frame: &mut Vec<u8>) -> Option<Deed> {
        match output {
            Output::Claim { channel, device, boot, session } => {
                let place = Place { shard: self.id, channel };
                let claim = self.links.directory.claim(device, (boot, session), place);
                let (granted, displaced) = match claim {
                    Claim::Granted { number, displaced } => (Some(number), displaced),
                    Claim::Refused => (None, None),
                };
                self.hub.handle(now, Input::Claimed { channel, granted });
                displaced.into_iter().for_each(|former| self.displace(former));
            }
            Output::Release { channel, device } => {
                self.links.directory.release(device, Place { shard: self.id, channel });
            }
            Output::Send { channel, message } => {
                frame.clear();
                message.encode(frame);
                return Some(Deed::Write(channel));
            }
            Output::Push { channel, task, device } => {
                frame.clear();
                frame.extend_from_slice(self.frames.frame(&task, device));
                self.metrics.pushes.add(1);
                return Some(Deed::Write(channel));
            }
            Output::Close { channel, reason } => return Some(Deed::Close(channel, reason)),
            Output::Online { claim, row, .. } => {
                self.metrics.sign_ins.add(1);
                self.list(Told::Began { claim, row });
            }
            Output::Offline { row } => self.list(Told::Ended { row }),
            Output::Hint { row } => {
                if self.links.spool.try_send(SpoolItem::Hint(row)).is_err() {
                    self.metrics.hints_dropped.add(1);
                }
            }
            Output::Keep { number, channel, row } => return self.keep(number, channel, row),
            Output::OrderRefused { refusal } => {
                self.metrics.refused_orders.add(1);
                self.status.say(StatusId::OrderRefused, now.unix, "queue", refusal.to_string());
            }
        }
        None
    }

    /// Copies the hub's gauges to where others can read them.
    pub fn publish(&self) {
        self.metrics.sessions.set(self.hub.online() as u64);
        self.metrics.acknowledged.set(self.hub.counters().results_acknowledged);
    }

    fn keep(&mut self, number: u64, channel: ChannelKey, row: ResultRow) -> Option<Deed> {
        self.metrics.results.add(1);
        let item = SpoolItem::Keep { shard: self.id, number, row };
        if self.unspooled.is_empty() {
            match self.links.spool.try_send(item) {
                Ok(()) => return None,
                // Without a spool nothing is acknowledged any more; the server is about to end.
                Err(TrySendError::Disconnected(_)) => return Some(Deed::Hold(channel)),
                Err(TrySendError::Full(item)) => self.unspooled.push_back(item),
            }
        } else {
            self.unspooled.push_back(item);
        }
        self.metrics.holds.add(1);
        Some(Deed::Hold(channel))
    }

    fn list(&mut self, told: Told) {
        self.unlisted.push_back(told);
        self.deliver_presence();
    }

    fn displace(&mut self, former: Place) {
        if former.shard == self.id {
            self.displaced_here.push_back(former.channel);
        } else {
            self.undisplaced.push_back(former);
            self.deliver_displaced();
        }
    }

    fn deliver(&mut self) {
        while let Some(item) = self.unspooled.pop_front() {
            if let Err(TrySendError::Full(item)) = self.links.spool.try_send(item) {
                self.unspooled.push_front(item);
                break;
            }
        }
        self.deliver_presence();
        self.deliver_displaced();
        self.deliver_passed();
    }

    fn deliver_passed(&mut self) {
        let mut full = Vec::new();
        for (shard, passed) in std::mem::take(&mut self.unpassed) {
            let mailbox = &self.links.shards[usize::from(shard.0)];
            // In their order for each, and one that has no room holds up nobody else's.
            if full.contains(&shard) {
                self.unpassed.push_back((shard, passed));
            } else if let Err(Undelivered::Full(Letter::Passed(passed))) =
                mailbox.try_send_late(Letter::Passed(passed))
            {
                full.push(shard);
                self.unpassed.push_back((shard, passed));
            }
        }
    }

    fn deliver_presence(&mut self) {
        while let Some(told) = self.unlisted.pop_front() {
            if let Err(TrySendError::Full(told)) = self.links.presence.try_send(told) {
                self.unlisted.push_front(told);
                break;
            }
        }
    }

    fn deliver_displaced(&mut self) {
        while let Some(former) = self.undisplaced.pop_front() {
            let mailbox = &self.links.shards[usize::from(former.shard.0)];
            if let Err(Undelivered::Full(_)) = mailbox.try_send(Letter::Displaced(former.channel)) {
                self.undisplaced.push_front(former);
                break;
            }
        }
    }
}
