//! The reactor: one thread, one poll, and the loop that moves bytes between sockets and a shard.
//!
//! It owns listeners, sockets and channels, and knows no word of the protocol: what a frame says is the [`Shard`]'s business.
//! It never blocks: not on a lock held over I/O, not on a full channel, not on a disk.
//!
//! One turn has seven steps ([`Reactor::turn`]). mio is edge-triggered, so whatever a budget leaves over is kept on a list of
//! the reactor's own; no second event will come for it. While such a list is not empty the poll does not wait.

pub mod admission;
pub mod channel;
mod closing;
pub mod closing_log;
mod covering;
pub mod entrance;
pub mod handshakes;
mod introduction;
pub mod layer;
pub mod listener;
pub mod mailbox;
pub mod passed;
pub mod readable;
mod reading;
pub mod room;
pub mod scratch;
pub mod slots;
pub mod socket;
pub mod transport;
pub mod tunnels;
mod web;
mod websockets;

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bgb_hub::wheel::Wheel;
use bgb_hub::{ChannelKey, CloseReason, Now, TICK_MS, Tick};
use bgb_protocol::ids::{ServerId, UnixMillis};
use mio::{Events, Poll, Token};

use self::admission::Admission;
use self::channel::{Channel, ChannelState};
use self::closing::transport_fault;
use self::closing_log::ClosingLog;
use self::entrance::Entrance;
use self::handshakes::Handshakes;
use self::layer::Stage;
use self::listener::Listener;
use self::mailbox::{Inbox, Mailbox, mailbox};
use self::readable::Readable;
use self::room::Room;
use self::scratch::Scratch;
use self::slots::{SlotKey, Slots};
use self::socket::{CHOKED_BYTES, FLOWING_BYTES, Flow, Flushed, Reading, Socket, UNSENT_BYTES_MAX};
use crate::metrics::ShardMetrics;
use crate::network::Network;
use crate::shard::{Deed, Letter, Shard};
use crate::tls::TlsContext;

/// Events that one poll gives at the most; more come with the next turn.
const EVENTS_MAX: usize = 1024;
/// Letters taken in one turn.
const LETTERS_PER_TURN: usize = 64;
/// And requests that other shards' sockets pass on, and answers to those of ours: they may wait.
const PASSED_PER_TURN: usize = 64;
/// How long a channel that is ended may take to read its last bytes.
const CLOSING_TICKS: u64 = 5_000 / TICK_MS;
/// How soon to look again when another thread's channel was full.
const RETRY: Duration = Duration::from_millis(5);

/// How soon to look again whether there is credit for another handshake's answer.
const CREDIT_LOOK: Duration = Duration::from_millis(4);

/// How soon to look again whether there is room for whoever waits to be accepted.
const ROOM_LOOK: Duration = Duration::from_millis(100);

/// Tokens that are no socket's: a socket's slot number never comes near 2^32 - 1. Those from the first listener's on are listeners'.
const MAILBOX: Token = Token(usize::MAX);
const LISTENERS: usize = usize::MAX - 16;

/// A reactor's poll and mailbox, made before the reactor itself, so that all reactors can know each other's mailboxes.
pub struct Doorway {
    poll: Poll,
    inbox: Inbox<Letter>,
    /// Where letters for the reactor go.
    pub mailbox: Mailbox<Letter>,
}

impl Doorway {
    /// Makes a poll and its mailbox.
    ///
    /// # Errors
    /// When the kernel gives no descriptor.
    pub fn open() -> io::Result<Self> {
        let poll = Poll::new()?;
        let (mailbox, inbox) = mailbox(poll.registry(), MAILBOX)?;
        Ok(Self { poll, inbox, mailbox })
    }
}

/// What a reactor is made of.
pub struct ReactorParts {
    /// Poll and mailbox.
    pub doorway: Doorway,
    /// The hub and its links.
    pub shard: Shard,
    /// The server's number, which is in tunnels' names.
    pub server: ServerId,
    /// What new sessions start from.
    pub tls: Arc<TlsContext>,
    /// Room for connections, shared by all reactors.
    pub room: Arc<Room>,
    /// Networks whose peers may begin as many handshakes as they like.
    pub handshake_exempt: Arc<[Network]>,
    /// Networks of proxies that say whose connections they pass on.
    pub proxies: Arc<[Network]>,
    /// Counters.
    pub metrics: Arc<ShardMetrics>,
}

/// See the module.
pub struct Reactor {
    poll: Poll,
    events: Events,
    inbox: Inbox<Letter>,
    listeners: Vec<(Entrance, Listener)>,
    /// Which of them is asked first for the next connection.
    next_listener: usize,
    /// Which slot of a socket is looked at first when room is to be made.
    next_to_go: u32,
    sockets: Slots<Socket>,
    channels: Slots<Channel>,
    shard: Shard,
    server: ServerId,
    tls: Arc<TlsContext>,
    room: Arc<Room>,
    proxies: Arc<[Network]>,
    handshakes: Handshakes,
    admission: Admission,
    metrics: Arc<ShardMetrics>,
    closing_log: ClosingLog,
    scratch: Scratch,
    /// Ends of handshakes, of tickets' waiting and of closings, by channel slot. The hub has a wheel of its own.
    deadlines: Wheel,
    /// Ends of what sockets without a channel may take, by socket slot.
    socket_deadlines: Wheel,
    /// Sockets that may have something to read.
    readable: Readable,
    /// Sockets with something to write, or just written to.
    dirty: Vec<SlotKey>,
    /// Channels in tunnels that have something for who is held.
    answering: Vec<SlotKey>,
    /// Tunnels now.
    tunnels: u64,
    /// Sockets that are not read until the spool has room.
    held: Vec<SlotKey>,
    more_letters: bool,
    started: Instant,
    /// While stopping: when to give up on peers that do not read.
    stopping_until: Option<Instant>,
}

impl Reactor {
    /// A reactor that does not listen until a [`Letter::Listen`] comes.
    #[must_use]
    pub fn new(parts: ReactorParts) -> Self {
        let Doorway { poll, inbox, .. } = parts.doorway;
        Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            inbox,
            listeners: Vec::new(),
            next_listener: 0,
            next_to_go: 0,
            sockets: Slots::default(),
            channels: Slots::default(),
            shard: parts.shard,
            server: parts.server,
            tls: parts.tls,
            room: parts.room,
            proxies: parts.proxies,
            handshakes: Handshakes::new(parts.handshake_exempt),
            admission: Admission::default(),
            metrics: parts.metrics,
            closing_log: ClosingLog::default(),
            scratch: Scratch::new(),
            deadlines: Wheel::new(),
            socket_deadlines: Wheel::new(),
            readable: Readable::default(),
            dirty: Vec::new(),
            answering: Vec::new(),
            tunnels: 0,
            held: Vec::new(),
            more_letters: false,
            started: Instant::now(),
            stopping_until: None,
        }
    }

    /// Turns until a [`Letter::Stop`] has been carried out.
    ///
    /// # Errors
    /// When the poll itself fails, which no peer can bring about.
    pub fn run(mut self) -> io::Result<()> {
        while self.turn()?.is_continue() {}
        Ok(())
    }

    /// One turn of the loop.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn turn(&mut self) -> io::Result<ControlFlow<()>> {
        let woken = self.wait()?;
        let now = self.now();
        self.accept();
        self.read(now);
        self.shake_hands(now);
        self.take_letters(now)?;
        self.advance(now);
        self.do_deeds(now);
        self.flush(now);
        self.shard.publish();
        self.metrics.turns.add(1);
        self.metrics.turn_times.observe(woken.elapsed());
        let is_over = self.is_over();
        if is_over.is_break() {
            // Others wait for nobody who would ask for them.
            self.room.end_tunnels(self.tunnels as usize);
        }
        Ok(is_over)
    }

    fn now(&self) -> Now {
        let tick = Tick(self.started.elapsed().as_millis() as u64 / TICK_MS);
        Now { tick, unix: UnixMillis(bgb_daemon::clock::Now::read().unix_ms) }
    }

    // Step 1: poll, and put what has come on the lists.

    /// Gives when the poll came back.
    fn wait(&mut self) -> io::Result<Instant> {
        let timeout = self.timeout();
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let woken = Instant::now();
        for event in &self.events {
            match event.token() {
                MAILBOX => {
                    self.inbox.hear();
                    self.more_letters = true;
                }
                Token(token) if token >= LISTENERS => {
                    if let Some((_, listener)) = self.listeners.get_mut(token - LISTENERS) {
                        listener.on_ready();
                    }
                }
                token => {
                    let key = SlotKey::from(token);
                    let Some(socket) = self.sockets.tenant_mut(key) else { continue };
                    socket.read_closed |= event.is_read_closed();
                    let is_heeded = match socket.reading {
                        Reading::Waiting => true,
                        // Whoever has gone before it was answered gives its place in the line to another. After that its last word is heard: it may
                        // be an alert.
                        Reading::InLine => {
                            let of_channel = |key| self.channels.tenant(key).and_then(Channel::stage);
                            let stage = match socket.channel {
                                Some(channel) => of_channel(channel),
                                None => socket.transport.outer().map(|outer| outer.stage()),
                            };
                            socket.read_closed && stage.and_then(Stage::answered).is_none()
                        }
                        // Its peer has gone, and waits for no answer any more.
                        Reading::Behind => socket.read_closed,
                        Reading::Listed | Reading::Held | Reading::Over => false,
                    };
                    if is_heeded && (event.is_readable() || event.is_read_closed() || event.is_error()) {
                        socket.reading = Reading::Listed;
                        self.readable.push_back(key);
                    }
                    if event.is_writable() && !socket.dirty {
                        socket.dirty = true;
                        self.dirty.push(key);
                    }
                }
            }
        }
        Ok(woken)
    }

    /// How long the poll may wait: not at all while work is left over; else until the next deadline.
    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let somebody_waits = self.listeners.iter().any(|(_, listener)| listener.has_work(now));
        let accepting = somebody_waits && self.may_accept();
        let is_owing = !self.readable.is_empty()
            || !self.answering.is_empty()
            || self.admission.is_owing(self.handshakes.admits());
        if accepting || is_owing || self.more_letters || !self.dirty.is_empty() {
            return Some(Duration::ZERO);
        }
        let until_tick = |tick: Tick| {
            // A millisecond more, so that the tick is over when the poll comes back.
            let at = self.started + Duration::from_millis(tick.0 * TICK_MS + 1);
            at.saturating_duration_since(now)
        };
        let until = |at: Instant| at.saturating_duration_since(now);
        [
            self.shard.next_deadline().map(until_tick),
            self.deadlines.next_deadline().map(until_tick),
            self.socket_deadlines.next_deadline().map(until_tick),
            self.listeners.iter().filter_map(|(_, listener)| listener.next_deadline(now)).min().map(until),
            self.stopping_until.map(until),
            self.shard.is_owing().then_some(RETRY),
            // Whoever waits in line has a place, and gets its answer when there is credit.
            self.admission.is_owing(self.handshakes.has_places()).then_some(CREDIT_LOOK),
            // Another reactor may make room, and does not say so; nor does it say when its last tunnel has ended.
            (somebody_waits && self.room.is_full()).then_some(ROOM_LOOK),
            (self.stopping_until.is_some() && self.others_have_tunnels()).then_some(ROOM_LOOK),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    // Step 3: the mailbox.

    fn take_letters(&mut self, now: Now) -> io::Result<()> {
        for _ in 0..LETTERS_PER_TURN {
            let Some(letter) = self.inbox.next() else { break };
            self.take_letter(now, letter)?;
        }
        for _ in 0..PASSED_PER_TURN {
            let Some(letter) = self.inbox.next_late() else { break };
            self.take_letter(now, letter)?;
        }
        self.more_letters = self.inbox.has_letters();
        Ok(())
    }

    fn take_letter(&mut self, now: Now, letter: Letter) -> io::Result<()> {
        match self.shard.handle_letter(now, letter) {
            Some(Letter::Orders(orders)) => {
                for order in &*orders {
                    self.shard.handle_order(now, order.clone());
                    self.do_deeds(now);
                }
            }
            Some(Letter::Listen(entrance, socket)) => {
                let token = Token(LISTENERS + self.listeners.len());
                let listener = Listener::start(socket.try_clone()?, self.poll.registry(), token)?;
                self.listeners.push((entrance, listener));
            }
            Some(Letter::Passed(passed)) => self.take_passed(now, passed),
            Some(Letter::Tls(tls)) => self.tls = tls,
            Some(Letter::Stop) => self.stop(now),
            _ => {}
        }
        self.do_deeds(now);
        Ok(())
    }

    fn stop(&mut self, now: Now) {
        self.listeners.clear();
        self.stopping_until = Some(Instant::now() + Duration::from_millis(CLOSING_TICKS * TICK_MS));
        self.shard.drain(now);
        // Those that are still shaking hands are nobody's yet. Whoever was not answered hears nothing: what it has said, ticket and all,
        // is good for its next attempt then.
        let keys: Vec<_> = self.channels.keys().collect();
        for key in keys {
            match self.channels.tenant(key).and_then(Channel::stage) {
                Some(Stage::Answered(_)) => self.close(now, key, CloseReason::Draining),
                Some(Stage::Silent | Stage::InLine(_)) => self.end(now, key, CloseReason::Draining),
                None => {}
            }
        }
        self.part_all(now);
    }

    // Step 4: time.

    fn advance(&mut self, now: Now) {
        self.shard.advance(now);
        self.do_deeds(now);
        while let Some(index) = self.deadlines.poll_expired(now.tick) {
            let Some(channel) = self.channels.key_at(index) else { continue };
            let Some(state) = self.channels.tenant(channel).map(|channel| channel.state) else { continue };
            match state {
                ChannelState::Handshaking => self.end(now, channel, CloseReason::HandshakeTimedOut),
                ChannelState::Closing(reason) => self.end(now, channel, reason),
                ChannelState::Open => self.let_held_go(now, channel),
            }
        }
        while let Some(index) = self.socket_deadlines.poll_expired(now.tick) {
            if let Some(socket) = self.sockets.key_at(index) {
                self.on_socket_time(now, socket);
            }
        }
        if !self.shard.is_backed_up() {
            for key in std::mem::take(&mut self.held) {
                if let Some(socket) =
                    self.sockets.tenant_mut(key).filter(|socket| socket.reading == Reading::Held)
                {
                    socket.reading = Reading::Listed;
                    self.readable.push_back(key);
                }
            }
        }
    }

    // Step 5: what the shard wants done.

    /// The hub bounds what one input may bring about, and comes back to the rest with time; so all of it is done here.
    fn do_deeds(&mut self, now: Now) {
        while let Some(deed) = self.shard.poll(now, &mut self.scratch.frame) {
            match deed {
                Deed::Write(channel) => self.write(now, slot_key(channel)),
                Deed::Close(channel, reason) => self.close(now, slot_key(channel), reason),
                Deed::Hold(channel) => self.hold(slot_key(channel)),
            }
        }
    }

    fn write(&mut self, now: Now, channel_key: SlotKey) {
        let Some(channel) = self.channels.tenant(channel_key) else { return };
        if channel.state == ChannelState::Open {
            self.seal_and_send(now, channel_key);
        }
    }

    /// Sends the frame that was put together.
    fn seal_and_send(&mut self, now: Now, channel_key: SlotKey) {
        let Some(channel) = self.channels.tenant_mut(channel_key) else { return };
        self.scratch.records.clear();
        channel.seal(&self.scratch.frame, &mut self.scratch.records);
        let is_worn_out = channel.is_worn_out();
        self.send_records(now, channel_key);
        if is_worn_out {
            self.close(now, channel_key, CloseReason::KeysWornOut);
        }
    }

    fn hold(&mut self, channel: SlotKey) {
        // One in a tunnel has its POSTs refused as long.
        let Some(key) = self.channels.tenant(channel).and_then(Channel::socket) else { return };
        if let Some(socket) = self.sockets.tenant_mut(key).filter(|socket| socket.reading != Reading::Over) {
            socket.reading = Reading::Held;
            self.held.push(key);
        }
    }

    // Step 6 and 7: send what waits, and ask to be told where the kernel takes no more.

    /// Sends the records that were put together for a channel, and keeps the limits of unsent bytes.
    fn send_records(&mut self, now: Now, channel_key: SlotKey) {
        if self.scratch.records.is_empty() {
            return;
        }
        let Some(channel) = self.channels.tenant(channel_key) else { return };
        let Some(key) = channel.socket() else { return self.push_down(now, channel_key, false) };
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let bytes = socket.transport.wrap(&self.scratch.records, &mut self.scratch.wrapping);
        self.metrics.sent_bytes.add(bytes.len() as u64);
        let flushed = socket.write(bytes);
        self.on_flushed(now, key, flushed);
    }

    /// Leaves the records that were put together to whatever is written next.
    fn hold_records_back(&mut self, now: Now, channel_key: SlotKey) {
        if self.scratch.records.is_empty() {
            return;
        }
        let Some(channel) = self.channels.tenant(channel_key) else { return };
        let Some(key) = channel.socket() else { return self.push_down(now, channel_key, true) };
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let bytes = socket.transport.wrap(&self.scratch.records, &mut self.scratch.wrapping);
        self.metrics.sent_bytes.add(bytes.len() as u64);
        socket.hold_back(bytes);
    }

    /// An open channel's moment: nothing was written in time, and what was held back goes by itself.
    fn let_held_go(&mut self, now: Now, channel: SlotKey) {
        let Some(carried) = self.channels.tenant(channel) else { return };
        let Some(key) = carried.socket() else { return self.on_tunnel_time(now, channel) };
        if let Some(socket) = self.sockets.tenant_mut(key).filter(|socket| !socket.dirty) {
            socket.dirty = true;
            self.dirty.push(key);
        }
    }

    fn flush(&mut self, now: Now) {
        self.answer_held(now);
        for key in std::mem::take(&mut self.dirty) {
            let Some(socket) = self.sockets.tenant_mut(key) else { continue };
            socket.dirty = false;
            let flushed = socket.flush();
            self.on_flushed(now, key, flushed);
        }
    }

    fn on_flushed(&mut self, now: Now, key: SlotKey, flushed: Flushed) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        if let Flushed::Broken(error) = flushed {
            tracing::debug!(peer = %socket.peer, %error, "a connection broke");
            return self.end_socket(now, key, transport_fault(&error), "");
        }
        if let Err(error) = socket.ask_for_writable(self.poll.registry(), key) {
            tracing::warn!(%error, "a connection cannot be polled any more; it is closed");
            return self.end_socket(now, key, CloseReason::TransportError, "");
        }
        let unsent = socket.unsent_bytes();
        if unsent > UNSENT_BYTES_MAX {
            return self.end_socket(now, key, CloseReason::TooSlow, "");
        }
        if socket.transport.is_worn_out() {
            return self.end_socket(now, key, CloseReason::KeysWornOut, "");
        }
        let Some(channel) = socket.channel else { return self.on_web_flushed(now, key) };
        let flow = match socket.flow {
            Flow::Flowing if unsent > CHOKED_BYTES => Flow::Choked,
            Flow::Choked if unsent < FLOWING_BYTES => Flow::Flowing,
            same => same,
        };
        if flow != socket.flow {
            socket.flow = flow;
            self.shard.handle_flow(now, hub_key(channel), flow == Flow::Choked);
        }
        if unsent == 0 {
            if let Some(pong) = self.sockets.tenant_mut(key).and_then(Socket::take_pong) {
                self.say_pong(now, key, pong);
            }
            self.finish_closing(channel, now);
        }
    }

    /// The time that a peer has to say something, by how crowded it is.
    fn patience(&self) -> u64 {
        reading::patience(self.handshakes.in_flight(), handshakes::IN_FLIGHT_MAX)
    }

    /// Says how many handshakes are in flight.
    fn note_handshakes(&self) {
        self.metrics.handshakes_in_flight.set(self.handshakes.in_flight() as u64);
    }

    fn others_have_tunnels(&self) -> bool {
        self.room.tunnels() > self.tunnels as usize
    }

    fn is_over(&self) -> ControlFlow<()> {
        let Some(until) = self.stopping_until else { return ControlFlow::Continue(()) };
        // Whoever may still ask for a tunnel's last bytes is waited for as long as there are some, be they another reactor's.
        let is_done = |channel: &Channel| channel.has_given_all();
        let others_have_tunnels = self.others_have_tunnels();
        let is_gone = |socket: &Socket| {
            socket.has_nothing_to_say() && !(others_have_tunnels && socket.may_ask_for_a_tunnel())
        };
        let everybody_gone = self.channels.tenants().all(is_done)
            && self.sockets.tenants().all(is_gone)
            && !self.shard.is_owing()
            && !self.more_letters;
        if everybody_gone || Instant::now() >= until {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

fn hub_key(key: SlotKey) -> ChannelKey {
    ChannelKey { index: key.index, generation: key.generation }
}

fn slot_key(key: ChannelKey) -> SlotKey {
    SlotKey { index: key.index, generation: key.generation }
}

#[cfg(test)]
mod tests;
