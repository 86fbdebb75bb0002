//! The reactor's second step: connections are accepted, and what has come is read, opened and handed to the shard.
//!
//! Both go in budgets. A socket that has more to read than one read takes goes to the end of the list, so that no peer keeps the
//! others waiting; a read that found less than it asked for takes it off.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use bgb_hub::{CloseReason, Now, Peer, TICK_MS, Tick};
use bgb_protocol::frame::Frame;
use mio::net::TcpStream;

use super::admission::{Opening, STEPS_PER_TURN, Step, Waiter};
use super::channel::{Carrier, Channel, ChannelState, Progress};
use super::closing::transport_fault;
use super::closing_log::Closing;
use super::entrance::Entrance;
use super::handshakes::{ANSWERED_MAX, IN_FLIGHT_MAX};
use super::layer::{Layer, Stage};
use super::listener::Accepted;
use super::passed::Standing;
use super::readable::Kind;
use super::scratch::Scratch;
use super::slots::{SlotKey, Slots};
use super::socket::{Reading, Socket};
use super::transport::{Course, Transport};
use super::{Reactor, hub_key};
use crate::metrics::RoadName;
use crate::tls::{Established, TlsFault, TlsSession};

/// Connections accepted in one turn: each costs a handshake soon after, and sessions that are there already must not wait.
const ACCEPTS_PER_TURN: usize = 64;
/// Sockets sorted in one turn, and of known devices' sessions so many read, one read each.
const READS_PER_TURN: usize = 512;
/// And of known devices while a task is on its way to many: those who have it answer at once, and what they say would make the others wait for
/// the task. Whoever shakes hands straight over TCP is read all the same, since its time is short; admission bounds what that costs.
const READS_PER_TURN_BESIDE_FAN_OUT: usize = 8;
/// And of sockets on which requests are served, some each, and of strangers' WebSockets: one costs as much as several reads of known devices.
const WEB_READS_PER_TURN: usize = 64;
/// How long a peer may take to say hello, and how long from our answer on to show who it is (docs/promises.md, Strangers).
const HANDSHAKE_TICKS: u64 = 10_000 / TICK_MS;
/// And how long when it is crowded: whoever begins handshakes and leaves them must not take the places of those who end them.
const CROWDED_TICKS: u64 = 2_000 / TICK_MS;
/// How long a peer that has said hello waits for our answer: half of what devices wait. Who is kept longer gives up and begins anew, which only adds
/// to the line.
pub(super) const LINE_TICKS: u64 = 5_000 / TICK_MS;
/// Keys in the line at the most; each that is not of somebody who waits is that of somebody who has gone meanwhile.
const LINE_KEYS_MAX: usize = 4 * IN_FLIGHT_MAX;
/// How long a device's ticket waits at the most to travel with the welcome. A device that is slow to say hello gets it without: one whose connection
/// is lost before it has a ticket comes back with a full handshake.
const TICKET_WAITS_TICKS: u64 = 200 / TICK_MS;

/// The time that a peer has to say something, where so many of so many places are taken.
pub(super) fn patience(taken: usize, places: usize) -> u64 {
    if taken < places / 2 { HANDSHAKE_TICKS } else { CROWDED_TICKS }
}

impl Reactor {
    pub(super) fn may_accept(&self) -> bool {
        !self.room.is_full() && self.may_accept_where_there_is_room()
    }

    fn may_accept_where_there_is_room(&self) -> bool {
        self.handshakes.has_room() && !self.shard.is_backed_up()
    }

    pub(super) fn accept(&mut self) {
        let now = Instant::now();
        if self.room.is_full()
            && self.may_accept_where_there_is_room()
            && self.listeners.iter().any(|(_, listener)| listener.has_work(now))
        {
            self.make_room(self.now());
        }
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.may_accept() {
                return;
            }
            // Each listener in its turn, so that a crowd at one port does not keep the others waiting.
            let count = self.listeners.len();
            let has_work = |at: &usize| self.listeners[*at].1.has_work(now);
            let Some(at) = (0..count).map(|at| (self.next_listener + at) % count).find(has_work) else {
                return;
            };
            if !self.room.enter() {
                return;
            }
            self.next_listener = (at + 1) % count;
            let (entrance, listener) = &mut self.listeners[at];
            let entrance = *entrance;
            match listener.accept(now) {
                Accepted::Connection(stream, peer) => {
                    if !self.take_in(entrance, stream, peer) {
                        self.room.leave();
                    }
                }
                Accepted::Nobody => self.room.leave(),
                Accepted::Resting(error) => {
                    self.room.leave();
                    self.metrics.accept_failures.add(1);
                    tracing::warn!(
                        %error,
                        connections = self.sockets.len(),
                        "no connection can be accepted for a moment; raise LimitNOFILE, or lower connections_max"
                    );
                    return;
                }
            }
        }
    }

    /// Takes a connection in; `false` when it is let go at once.
    fn take_in(&mut self, entrance: Entrance, stream: TcpStream, peer: SocketAddr) -> bool {
        let now = self.now();
        self.metrics.accepted.add(1);
        // From a proxy it is not known yet who the peer is.
        let introduces = self.proxies.iter().any(|network| network.contains(peer.ip()));
        let origin = (!introduces).then(|| peer.ip());
        if !self.handshakes.begin(origin, now.tick) {
            let reason = CloseReason::TooManyHandshakes;
            self.note_closing(now, &Closing { peer, device: None, reason, detail: "" });
            return false;
        }
        let begun = self.begin_socket(now, entrance, introduces, stream, peer);
        if !begun {
            self.handshakes.end(origin, None);
        }
        self.note_handshakes();
        begun
    }

    fn begin_socket(
        &mut self,
        now: Now,
        entrance: Entrance,
        introduces: bool,
        stream: TcpStream,
        peer: SocketAddr,
    ) -> bool {
        let outer = match self.outer_of(entrance) {
            Ok(outer) => outer,
            Err(error) => {
                tracing::error!(%error, "an outer TLS session could not be begun");
                return false;
            }
        };
        let transport = Transport::new(entrance, introduces, outer);
        let key = self.sockets.insert(Socket::new(stream, peer, transport));
        let socket = self.sockets.tenant_mut(key).expect("it was put in just now");
        if let Err(error) = socket.register(self.poll.registry(), key) {
            tracing::warn!(%peer, %error, "a connection cannot be polled; it is closed");
            self.sockets.remove(key);
            return false;
        }
        let is_raw = matches!(socket.transport, Transport::Raw);
        if is_raw && !self.begin_channel(now, key) {
            self.sockets.remove(key);
            return false;
        }
        if !is_raw {
            let patience = self.patience();
            self.give_stranger_time(now, key, patience);
        }
        // It may have spoken before it was registered; an edge that came first would be lost.
        if let Some(socket) = self.sockets.tenant_mut(key) {
            socket.reading = Reading::Listed;
        }
        self.readable.push_back(key);
        self.metrics.connections.set(self.sockets.len() as u64);
        true
    }

    /// The outer TLS that a connection by this entrance begins with, if any.
    ///
    /// # Errors
    /// When there is none to be had.
    pub(super) fn outer_of(&self, entrance: Entrance) -> anyhow::Result<Option<Box<Layer>>> {
        match entrance {
            Entrance::Tcp | Entrance::Http => Ok(None),
            Entrance::Https => Ok(Some(Box::new(Layer::new(TlsSession::outer(&self.tls)?)))),
        }
    }

    /// A socket has a channel from now on, whose handshake has the place that the socket had.
    pub(super) fn begin_channel(&mut self, now: Now, key: SlotKey) -> bool {
        let tls = match TlsSession::new(&self.tls) {
            Ok(tls) => tls,
            Err(error) => {
                tracing::error!(%error, "a TLS session could not be begun");
                return false;
            }
        };
        let channel = self.channels.insert(Channel::new(Carrier::Socket(key), tls));
        self.deadlines.arm(channel.index, Tick(now.tick.0 + self.patience()));
        if let Some(socket) = self.sockets.tenant_mut(key) {
            socket.channel = Some(channel);
        }
        true
    }

    pub(super) fn read(&mut self, now: Now) {
        for _ in 0..READS_PER_TURN.min(self.readable.unsorted()) {
            let Some(key) = self.readable.pop_unsorted() else { break };
            match self.kind(key) {
                Some(kind) => self.readable.sort(kind, key),
                None => self.read_one(now, key),
            }
        }
        let is_fanning_out = self.shard.is_fanning_out();
        for (kind, reads) in [
            (Kind::Session, READS_PER_TURN),
            (Kind::Requests, WEB_READS_PER_TURN),
            (Kind::Stranger, WEB_READS_PER_TURN),
        ] {
            let reads = if is_fanning_out { READS_PER_TURN_BESIDE_FAN_OUT } else { reads };
            for _ in 0..reads {
                let Some(key) = self.readable.pop(kind) else { break };
                self.read_one(now, key);
            }
        }
    }

    /// Whose socket it is; `None` of one that shakes hands by itself, which is read at once.
    fn kind(&mut self, key: SlotKey) -> Option<Kind> {
        let is_known = self.is_known(key);
        match &self.sockets.tenant(key)?.transport {
            Transport::Web(web) if web.standing() == Standing::Welcome => Some(Kind::Requests),
            Transport::Web(_) => Some(Kind::Stranger),
            Transport::WebSocket(_) if !is_known => Some(Kind::Stranger),
            Transport::WebSocket(_) | Transport::Raw => is_known.then_some(Kind::Session),
            Transport::Introduced(..) => None,
        }
    }

    /// Whether the socket's peer has shown who it is.
    fn is_known(&self, key: SlotKey) -> bool {
        let channel = self.sockets.tenant(key).and_then(|socket| self.channels.tenant(socket.channel?));
        channel.is_some_and(|channel| !channel.is_handshaking())
    }

    /// Reads a socket once. If that filled the buffer, more may be there, and it goes to the end of the list.
    fn read_one(&mut self, now: Now, key: SlotKey) {
        // Requests that waited for the answer before them go first.
        self.take_requests(now, key);
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        if socket.reading != Reading::Listed {
            return;
        }
        let is_unsent = socket.unsent_bytes() > 0;
        if let Some(web) = socket.transport.web().filter(|web| !web.is_parting()) {
            if web.course == Course::Owed {
                return self.readable.push_back(key);
            }
            // Its end came before they were served.
            if web.end.is_some() && !web.is_owed(is_unsent) {
                return self.on_half_closed(now, key, CloseReason::PeerClosed);
            }
            if web.requests.is_full() {
                // Of somebody who has gone nobody waits for the answer.
                if socket.read_closed {
                    return self.on_half_closed(now, key, CloseReason::HalfClosed);
                }
                socket.reading = Reading::Behind;
                return;
            }
        }
        // A stranger has no more kept for it than a handshake may have.
        let is_raw = matches!(socket.transport, Transport::Raw);
        let strange = match socket.channel.filter(|_| is_raw) {
            Some(channel) => self.channels.tenant(channel).and_then(Channel::strange_layer),
            None => socket.transport.outer().filter(|outer| !outer.is_up()).map(|outer| &*outer),
        };
        let room = match strange {
            Some(layer) => layer.room(),
            None if is_raw => self.scratch.received.len(),
            // What is unwrapped of it has to fit as well.
            None => self.scratch.received.len() / 2,
        };
        match socket.read(&mut self.scratch.received[..room]) {
            Ok(0) => {
                socket.reading = Reading::Over;
                self.on_half_closed(now, key, CloseReason::HalfClosed);
            }
            Ok(bytes) => {
                self.metrics.received_bytes.add(bytes as u64);
                match socket.channel.filter(|_| is_raw) {
                    Some(channel) => self.hear_channel(now, key, channel, bytes),
                    None => self.hear_socket(now, key, bytes),
                }
                let Some(socket) = self.sockets.tenant_mut(key) else { return };
                if socket.reading != Reading::Listed {
                    return;
                }
                let is_owed = socket.transport.web().is_some_and(|web| web.course == Course::Owed);
                if bytes < room && !socket.read_closed && !is_owed {
                    // A stream that gave less than was asked for is empty, and its next edge is armed (epoll(7)). But an end that was
                    // told together with these bytes is not told again.
                    socket.reading = Reading::Waiting;
                } else {
                    self.readable.push_back(key);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.reading = Reading::Waiting,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.readable.push_back(key),
            Err(error) => {
                tracing::debug!(peer = %socket.peer, %error, "a connection broke");
                self.end_socket(now, key, transport_fault(&error), "");
            }
        }
    }

    /// The peer has closed its half of a socket.
    pub(super) fn on_half_closed(&mut self, now: Now, key: SlotKey, reason: CloseReason) {
        match self.sockets.tenant(key).and_then(|socket| socket.channel) {
            Some(channel) => self.on_peer_closed(now, channel, reason),
            None => self.on_web_closed(now, key, reason),
        }
    }

    /// Bytes of a channel that one socket carries, at the beginning of the scratch.
    pub(super) fn hear_channel(&mut self, now: Now, key: SlotKey, channel_key: SlotKey, bytes: usize) {
        if self.channels.tenant(channel_key).is_some_and(|channel| !channel.is_handshaking()) {
            return self.feed(now, channel_key, bytes);
        }
        if let Some(step) = self.hear_strange_channel(now, channel_key, bytes)
            && let Some(socket) = self.sockets.tenant_mut(key)
        {
            // Who has closed its half without an answer goes no further, and is read to its end.
            let is_going = matches!(step, Step::Begins(_)) && socket.read_closed;
            if !is_going {
                socket.reading = Reading::InLine;
            }
        }
    }

    /// Takes those steps of handshakes that are due in this turn.
    pub(super) fn shake_hands(&mut self, now: Now) {
        self.handshakes.fill(self.started.elapsed().as_millis() as u64);
        for _ in 0..STEPS_PER_TURN {
            let (sockets, channels) = (&self.sockets, &self.channels);
            let waits = |waiter| waits(sockets, channels, waiter);
            let Some(waiter) = self.admission.pop(self.handshakes.admits(), waits) else { return };
            let channel_key = match waiter {
                Waiter::Socket(key) => {
                    self.step_outer(now, key);
                    continue;
                }
                Waiter::Channel(key) => key,
            };
            let Some(channel) =
                self.channels.tenant_mut(channel_key).filter(|channel| channel.is_handshaking())
            else {
                continue;
            };
            channel.is_in_line = false;
            let bytes = channel.waited_with(&mut self.scratch.received);
            if let Some(key) = channel.socket()
                && let Some(socket) = self.sockets.tenant_mut(key)
            {
                // More may have come meanwhile, and its edge was not heeded.
                socket.reading = Reading::Listed;
                self.readable.push_back(key);
            }
            self.feed(now, channel_key, bytes);
        }
    }

    /// A peer that is not known has said something: what it is, is decided when its hello is whole, and then it waits for its step, which is given.
    pub(super) fn hear_strange_channel(
        &mut self,
        now: Now,
        channel_key: SlotKey,
        bytes: usize,
    ) -> Option<Step> {
        let channel = self.channels.tenant_mut(channel_key)?;
        let was_silent = channel.stage() == Some(Stage::Silent);
        let step = channel.wait_with(&self.scratch.received[..bytes], &self.tls);
        if let Some(too_much) = channel.strange_layer().and_then(Layer::kept_too_much) {
            self.fail(now, channel_key, &TlsFault::handshake_too_long(too_much));
            return None;
        }
        let step = step?;
        let was_in_line = std::mem::replace(&mut channel.is_in_line, true);
        if was_silent {
            self.deadlines.arm(channel_key.index, Tick(now.tick.0 + LINE_TICKS));
        }
        if !was_in_line {
            self.stand_in_line(Waiter::Channel(channel_key), step);
        }
        Some(step)
    }

    /// Puts somebody in line. Those that are gone stay in it until they are due, but not too many of them.
    pub(super) fn stand_in_line(&mut self, waiter: Waiter, step: Step) {
        if self.admission.keys() >= LINE_KEYS_MAX {
            let (sockets, channels) = (&self.sockets, &self.channels);
            self.admission.retain(|waiter| waits(sockets, channels, waiter));
        }
        self.admission.push(waiter, step);
    }

    /// A peer has its first answer: now it is to show who it is, and its time for that begins.
    fn on_answered(&mut self, now: Now, channel_key: SlotKey, opening: Opening) {
        self.handshakes.answer(opening);
        let until = Tick(now.tick.0 + self.patience_of_answered());
        self.deadlines.arm(channel_key.index, until);
    }

    /// The time that a peer has from our answer on.
    pub(super) fn patience_of_answered(&self) -> u64 {
        patience(self.handshakes.answered(), ANSWERED_MAX)
    }

    pub(super) fn feed(&mut self, now: Now, channel_key: SlotKey, bytes: usize) {
        let Scratch { received, plaintext, records, .. } = &mut self.scratch;
        plaintext.clear();
        records.clear();
        let Some(channel) = self.channels.tenant_mut(channel_key) else { return };
        if let ChannelState::Closing(_) = channel.state {
            // What a closing peer still says is not heard; reading on only waits for its own end.
            return;
        }
        let answered_before = channel.stage().and_then(Stage::answered);
        let fed = channel.feed(&mut received[..bytes], plaintext, records);
        if let Some(opening) = channel.stage().and_then(Stage::answered).filter(|_| answered_before.is_none())
        {
            self.on_answered(now, channel_key, opening);
        }
        match &fed {
            // The ticket: the device's hello is on its way as a rule, and one write does for both it and the welcome.
            Ok((Progress::Opened(_), _)) => self.hold_records_back(now, channel_key),
            _ => self.send_records(now, channel_key),
        }
        match fed {
            Err(fault) => {
                // What was said before the fault, by whoever is known, is heard; where not even the alert could be written the connection is
                // gone, and a result comes again with the device's next session.
                self.take_frames(now, channel_key);
                self.fail(now, channel_key, &fault);
            }
            Ok((progress, peer_closed)) => {
                let is_opened = if let Progress::Opened(established) = progress {
                    self.open(now, channel_key, &established);
                    true
                } else {
                    false
                };
                self.take_frames(now, channel_key);
                if is_opened {
                    self.limit_wait(now, channel_key);
                }
                if peer_closed {
                    self.on_peer_closed(now, channel_key, CloseReason::PeerClosed);
                }
            }
        }
    }

    fn open(&mut self, now: Now, channel_key: SlotKey, established: &Established) {
        let Established { device, identity, is_resumed } = established;
        let peer = self.peer_of(channel_key);
        let (Some(address), Some(channel)) = (peer, self.channels.tenant_mut(channel_key)) else { return };
        channel.device = Some(*device);
        self.metrics.handshakes.add(1);
        self.metrics.resumed.add(u64::from(*is_resumed));
        if !self.room.take_seat() {
            return self.turn_away(now, channel_key, CloseReason::ServerFull);
        }
        let (answered, socket) = (channel.stage().and_then(Stage::answered), channel.socket());
        let socket = socket.and_then(|key| self.sockets.tenant(key));
        let road = socket.map_or(RoadName::LongPoll, |socket| socket.transport.road());
        channel.state = ChannelState::Open;
        channel.road = Some(road);
        self.metrics.begin_session(road);
        let peer = Peer {
            device: *device,
            address,
            fingerprint: identity.fingerprint,
            certificate_ends: identity.not_after,
        };
        self.deadlines.cancel(channel_key.index);
        if let Some(opening) = answered {
            self.handshakes.earn(opening);
        }
        if road == RoadName::WebSocketHttps {
            // Of those that complete an outer handshake only devices earn its answers.
            self.handshakes.earn(Opening::Full);
        }
        self.on_handshake_over(peer.address, answered);
        self.shard.handle_opened(now, hub_key(channel_key), peer);
        self.do_deeds(now);
        self.on_tunnel_open(now, channel_key);
    }

    /// What was held back for an open channel goes by itself after a while.
    fn limit_wait(&mut self, now: Now, channel_key: SlotKey) {
        let Some(channel) = self.channels.tenant_mut(channel_key) else { return };
        if channel.state != ChannelState::Open {
            return;
        }
        let holds_back = match channel.socket() {
            Some(key) => self.sockets.tenant(key).is_some_and(Socket::holds_back),
            None => true,
        };
        if holds_back {
            self.deadlines.arm(channel_key.index, Tick(now.tick.0 + TICKET_WAITS_TICKS));
        }
    }

    /// Gives each whole frame of what has come to the shard, and does what it wants done before the next.
    fn take_frames(&mut self, now: Now, channel_key: SlotKey) {
        if self.scratch.plaintext.is_empty() {
            return;
        }
        // Lent out, since doing deeds needs the rest of the scratch.
        let plaintext = std::mem::take(&mut self.scratch.plaintext);
        if let Some(stream) = self.channels.tenant_mut(channel_key).map(|channel| channel.join(&plaintext)) {
            let mut taken = 0;
            let reason = loop {
                if self.channels.tenant(channel_key).is_none_or(|channel| channel.state != ChannelState::Open)
                {
                    break None;
                }
                match Frame::decode(&stream[taken..]) {
                    Err(_) => break Some(CloseReason::OversizedFrame),
                    Ok(None) => break None,
                    Ok(Some((frame, used))) => {
                        taken += used;
                        let channel = self.channels.tenant_mut(channel_key);
                        if !channel.is_some_and(|channel| channel.spend_message(now.tick)) {
                            break Some(CloseReason::TooManyMessages);
                        }
                        if let Err(reason) = self.shard.handle_frame(now, hub_key(channel_key), frame) {
                            break Some(reason);
                        }
                        self.do_deeds(now);
                    }
                }
            };
            match reason {
                Some(reason) => {
                    if self.shard.put_refusal(reason, &mut self.scratch.frame) {
                        self.write(now, channel_key);
                    }
                    self.close(now, channel_key, reason);
                }
                None => {
                    if let Some(channel) = self.channels.tenant_mut(channel_key) {
                        channel.keep(stream, taken);
                    }
                }
            }
        }
        self.scratch.plaintext = plaintext;
    }
}

/// Whether somebody in the line waits still.
fn waits(sockets: &Slots<Socket>, channels: &Slots<Channel>, waiter: Waiter) -> bool {
    let is_in_line = |key| sockets.tenant(key).is_some_and(|socket| socket.reading == Reading::InLine);
    match waiter {
        Waiter::Socket(key) => is_in_line(key),
        Waiter::Channel(key) => channels
            .tenant(key)
            .is_some_and(|channel| channel.is_in_line && channel.socket().is_none_or(is_in_line)),
    }
}
