//! Notification servers as they run: each with several of the product's shards (hubs in them), the product's directory between them,
//! its broker, spool, presence list and courier.
//!
//! What stands here for the reactor gives channels their keys from the product's slots, hands frames to shards, does what shards want
//! done, and carries letters between threads, each with a delay of its own. How a server starts and ends is in `server_life.rs`, when its
//! threads that write get their turns in `writers.rs`, whom it may hold and what it may push in `server_laws.rs`.
//!
//! The law that is checked at every turn: a hub holds as many sessions as there are channels, speaks of no channel that is
//! closed, and has one active session of a device at most.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use bgb_hub::{ChannelKey, CloseReason, HubOptions, Now as HubNow, Peer, TICK_MS, Tick};
use bgb_protocol::file::presence::Presence;
use bgb_protocol::frame::Frame;
use bgb_protocol::ids::{BootId, DeviceId, ServerId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::message::{AgentMessage, RefusedReason, ServerMessage};
use bgb_protocol::status::StatusMessage;
use bgb_protocol::task::SignedTask;
use bgb_server::broker::Broker;
use bgb_server::courier::Courier;
use bgb_server::presence::{PresenceList, Told};
use bgb_server::reactor::mailbox::Inbox;
use bgb_server::reactor::slots::{SlotKey, Slots};
use bgb_server::shard::{Deed, Letter, Shard};
use bgb_server::writers::Spooler;
use crossbeam_channel::Receiver;

use crate::agents::Certificate;
use crate::faults::Weather;
use crate::model::Bar;
use crate::network::{Conn, ConnId, End, Farewell, Way};
use crate::tally::Kind;
use crate::trace::said_by_server;
use crate::world::{EPOCH_UNIX_MS, Event, World};

/// Servers of the site, each on a host of its own number.
pub(crate) const SERVERS: usize = 2;
/// Shards of each.
pub(crate) const SHARDS: usize = 2;
/// The hello is awaited this long (docs/promises.md: 10 s), in ticks.
const HELLO_TICKS: u64 = 100;
/// A letter from thread to thread takes so long at most: a busy reactor's turn.
pub(crate) const MAIL_MS_MAX: u64 = 25;
/// How long after its clock was set back a server that can read the queue may not have noticed: it looks every 250 ms, and then reads
/// everything anew.
const SET_BACK_SHOWS_MS: u64 = 500;
/// What a clock is set back by without anything having to be done (the broker's own figure).
pub(crate) const SLEWED_MS_MAX: i64 = 1_000;
/// A certificate that outlives every world: 90 days (docs/promises.md).
const NEVER_ENDS_MS: u64 = 90 * 24 * 3_600_000;

/// A server.
pub(crate) struct SimServer {
    pub(crate) process: Option<Process>,
    pub(crate) clock: ServerClock,
    /// Until when its spool's disk is slow.
    pub(crate) stalls_until_ms: u64,
    /// It cannot read the queue, since then.
    pub(crate) queue_hidden_since: Option<u64>,
    /// Since when it can again.
    pub(crate) queue_shown_ms: u64,
    /// When its process was started last.
    pub(crate) started_ms: u64,
    /// Which of its files is overtaken on its way.
    pub(crate) late_next: Late,
    /// Counts the processes: what was meant for an earlier one is void.
    pub(crate) life: u64,
    pub(crate) starts: u64,
    pub(crate) options: HubOptions,
}

/// Which file of a server is to be late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Late {
    #[default]
    None,
    Any,
    /// A full list of who is online: all its sessions are gone when it comes, with the server that wrote it.
    FullList,
}

/// How wrong a server's wall clock is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ServerClock {
    /// It, less the true time.
    off_ms: i64,
    /// It was set back, and until when a server that can read the queue may not have noticed.
    set_back_until_ms: u64,
    /// A server that lives has gone by it.
    is_felt: bool,
}

impl ServerClock {
    /// Sets it.
    pub(crate) fn set(&mut self, off_ms: i64, now_ms: u64) {
        if self.off_ms - off_ms > SLEWED_MS_MAX {
            self.set_back_until_ms = now_ms + SET_BACK_SHOWS_MS;
        }
        (self.off_ms, self.is_felt) = (off_ms, false);
    }

    /// A server goes by it: whether for the first time since it was set.
    pub(crate) fn feel(&mut self) -> bool {
        !std::mem::replace(&mut self.is_felt, true)
    }

    /// Whether it was set back a moment ago.
    pub(crate) fn was_set_back(&self, now_ms: u64) -> bool {
        now_ms < self.set_back_until_ms
    }

    /// It, less the true time.
    pub(crate) fn off_ms(&self) -> i64 {
        self.off_ms
    }

    /// How much too early it may do something now.
    pub(crate) fn ahead_ms(&self) -> u64 {
        self.off_ms.max(0).unsigned_abs()
    }

    /// And how much too late.
    pub(crate) fn behind_ms(&self) -> u64 {
        self.off_ms.min(0).unsigned_abs()
    }
}

/// A server's process, and all that goes with it.
pub(crate) struct Process {
    pub(crate) shards: Vec<SimShard>,
    pub(crate) broker: Broker,
    pub(crate) spooler: Spooler,
    pub(crate) presence: PresenceList,
    pub(crate) courier: Courier,
    /// What its threads say to the site.
    pub(crate) messages: Receiver<StatusMessage>,
    /// Presence rows on their way from a shard to the list.
    pub(crate) presence_mail: Vec<VecDeque<Told>>,
    pub(crate) is_draining: bool,
    /// A sync has failed: the process is about to end.
    pub(crate) is_failing: bool,
    /// When the threads that write get their next turns.
    pub(crate) turns: Turns,
}

/// When a thread has its next turn; one that is armed for another moment is void.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    pub(crate) spool_ms: Option<u64>,
    pub(crate) presence_ms: Option<u64>,
    pub(crate) courier_ms: Option<u64>,
    /// The spool rests until then: its disk was full.
    pub(crate) spool_rests_until_ms: u64,
}

/// A shard of the product, and what stands for its reactor.
pub(crate) struct SimShard {
    pub(crate) shard: Shard,
    pub(crate) inbox: Inbox<Letter>,
    /// What the mailbox wakes: it must be there for as long.
    _poll: mio::Poll,
    pub(crate) presence_rows: Receiver<Told>,
    /// Online rows that were not followed by an offline one.
    pub(crate) active: BTreeMap<DeviceId, Active>,
    pub(crate) slots: Slots<Channel>,
    /// Whether it takes sign-ins, as it was told.
    pub(crate) takes_sign_ins: bool,
    pub(crate) barred: BTreeSet<Bar>,
    /// How old the newest head was when it came, and its time: the server's own is not further behind.
    pub(crate) head_lag_ms: Option<u64>,
    pub(crate) newest_head: UnixMillis,
    /// The most that its clock was ahead since everything was read last: what that has brought about stays until it is read anew.
    pub(crate) was_ahead_ms: u64,
    pub(crate) cancelled: BTreeSet<TaskId>,
    /// Results that it heard, and ends that hellos of sessions told of.
    pub(crate) answered: BTreeSet<(TaskId, DeviceId)>,
    /// Tasks that went out while the shard read the letter that it is at.
    pub(crate) pushed_by_letter: BTreeSet<TaskId>,
    /// Channels whose older session was told to go by a letter.
    displaced: BTreeSet<ChannelKey>,
    /// Connections that are not read until the shard is no longer backed up.
    held: Vec<ConnId>,
    flows: VecDeque<(ChannelKey, bool)>,
    /// A letter is on its way to it.
    is_called: bool,
    frame: Vec<u8>,
}

/// A session that the hub has said to be online.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    pub(crate) channel: ChannelKey,
    pub(crate) boot: BootId,
    pub(crate) session: SessionNumber,
    pub(crate) since_ms: u64,
    pub(crate) known: BTreeSet<TaskId>,
    pub(crate) known_open: BTreeSet<TaskId>,
    pub(crate) pushed: BTreeSet<TaskId>,
    /// Whose cancel went out to it.
    pub(crate) taken_back: BTreeSet<TaskId>,
}

/// What is behind a channel's key.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    conn: ConnId,
    pub(crate) fingerprint: [u8; 32],
    /// Tasks that the hello named.
    pub(crate) known: BTreeSet<TaskId>,
    /// Those of them that had not ended.
    pub(crate) known_open: BTreeSet<TaskId>,
    /// And those that had.
    pub(crate) known_ended: BTreeSet<TaskId>,
    /// Results that were said here and are not known to be kept.
    owed: Vec<TaskId>,
    /// When something was heard here last, and how long it may stay silent from then on.
    pub(crate) heard_ms: u64,
    pub(crate) silent_ms_max: u64,
    /// Its hub was told that too much waits to be sent.
    pub(crate) is_choked: bool,
}

impl Channel {
    /// Whether a result of this task was said here and was not known to be kept until now.
    fn is_owed(&mut self, task: TaskId) -> bool {
        let place = self.owed.iter().position(|owed| *owed == task);
        place.map(|place| self.owed.swap_remove(place)).is_some()
    }
}

/// The address of a server, as agents are configured with it.
pub(crate) fn address_of(server: usize) -> String {
    format!("server{}.test:10123", server + 1)
}

/// The server at an address.
pub(crate) fn server_at(address: &str) -> Option<usize> {
    (0..SERVERS).find(|server| address_of(*server) == address)
}

impl SimServer {
    pub(crate) fn new(server: usize, weather: &Weather) -> Self {
        let options = HubOptions {
            server: ServerId(server as u32 + 1),
            sessions_max: 1_000,
            keepalive_secs: weather.keepalive_secs,
            hello_ticks: HELLO_TICKS,
            active_tasks_max: 1_000,
            other_servers: (0..SERVERS).filter(|other| *other != server).map(address_of).collect(),
            reconnect_window_secs: weather.reconnect_window_secs,
            jitter_seed: weather.jitter_seed,
        };
        Self {
            process: None,
            clock: ServerClock::default(),
            stalls_until_ms: 0,
            queue_hidden_since: None,
            queue_shown_ms: 0,
            started_ms: 0,
            late_next: Late::None,
            life: 0,
            starts: 0,
            options,
        }
    }

    pub(crate) fn is_listening(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.is_draining)
    }

    pub(crate) fn deadlines(&self) -> impl Iterator<Item = (usize, Tick)> + '_ {
        let shards = self.process.iter().flat_map(|process| process.shards.iter().enumerate());
        shards.filter_map(|(place, own)| Some((place, own.shard.next_deadline()?)))
    }

    /// The device's active session here, its newest if there are two for a moment, and its shard.
    pub(crate) fn active(&self, device: DeviceId) -> Option<(usize, &Active)> {
        let shards = self.process.as_ref()?.shards.iter().enumerate();
        let found = shards.filter_map(|(place, own)| Some((place, own.active.get(&device)?)));
        found.max_by_key(|(_, active)| active.since_ms)
    }
}

impl World {
    /// The handshake is over: the channel gets its place.
    pub(crate) fn open_channel(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let certificate = &mut self.machines[conn.agent].certificate;
        if certificate.ends_ms.is_some_and(|ends_ms| ends_ms <= self.now_ms) {
            // Renewed in time on another road, which is not simulated.
            *certificate = Certificate { fingerprint: self.dice.bytes(), ends_ms: None };
        }
        let ends_ms = certificate.ends_ms.unwrap_or(NEVER_ENDS_MS);
        let certificate_ends = UnixMillis(EPOCH_UNIX_MS + ends_ms);
        let (agent, server, shard) = (conn.agent, conn.server, conn.shard);
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let machine = &self.machines[agent];
        let fingerprint = machine.certificate.fingerprint;
        let own = &mut process.shards[shard];
        let tenant = Channel {
            conn: id,
            fingerprint,
            known: BTreeSet::new(),
            known_open: BTreeSet::new(),
            known_ended: BTreeSet::new(),
            owed: Vec::new(),
            heard_ms: self.now_ms,
            silent_ms_max: HELLO_TICKS * TICK_MS,
            is_choked: false,
        };
        let channel = hub_key(own.slots.insert(tenant));
        conn.server_end = End::Open;
        conn.channel = Some(channel);
        let address = SocketAddr::from(([127, 0, 0, 1], 40_000 + agent as u16));
        let peer = Peer { device: machine.device, address, fingerprint, certificate_ends };
        self.say(format_args!("server {} shard {shard} opens {channel:?} for agent {agent}", server + 1));
        self.with_shard(server, shard, |own, now| own.handle_opened(now, channel, peer));
    }

    pub(crate) fn free_channel(&mut self, server: usize, shard: usize, channel: ChannelKey) {
        if let Some(process) = self.servers[server].process.as_mut() {
            process.shards[shard].slots.remove(slot_key(channel));
            process.shards[shard].displaced.remove(&channel);
        }
    }

    /// The transport of a channel is gone for a reason that its hub hears of.
    pub(crate) fn lose_channel(
        &mut self,
        server: usize,
        shard: usize,
        channel: ChannelKey,
        reason: CloseReason,
    ) {
        self.free_channel(server, shard, channel);
        self.count_close(reason);
        self.say(format_args!("server {} loses {:?}: {}", server + 1, channel, reason.label()));
        self.with_shard(server, shard, |own, now| own.handle_closed(now, channel, reason));
    }

    /// A frame of an agent has arrived whole.
    pub(crate) fn hear_from_agent(&mut self, id: ConnId, frame: Frame<'_>) {
        let message = match AgentMessage::decode(frame) {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => return self.violated(format!("a server cannot read an agent's message: {error}")),
        };
        let Some(conn) = self.network.conns.get(&id) else { return };
        let (server, shard, agent) = (conn.server, conn.shard, conn.agent);
        let Some(channel) = conn.channel else { return };
        let now_ms = self.now_ms;
        if let Some(own) = self.channel_mut(server, shard, channel) {
            own.heard_ms = now_ms;
        }
        match &message {
            AgentMessage::Hello(hello) => {
                let device = self.machines[agent].device;
                let ended = hello.known_tasks.iter().filter(|known| known.state.is_final());
                let ended: BTreeSet<_> = ended.map(|known| known.task).collect();
                self.model.ends_named.extend(ended.iter().map(|task| (*task, device)));
                if let Some(own) = self.channel_mut(server, shard, channel) {
                    own.known = hello.known_tasks.iter().map(|known| known.task).collect();
                    let open = hello.known_tasks.iter().filter(|known| !known.state.is_final());
                    own.known_open = open.map(|known| known.task).collect();
                    own.known_ended = ended;
                }
            }
            AgentMessage::Result(result) => {
                let device = self.machines[agent].device;
                let task = result.read().ok().map(|statement| statement.task);
                if let Some(own) = self.channel_mut(server, shard, channel) {
                    own.owed.extend(task);
                }
                if let Some(process) = self.servers[server].process.as_mut() {
                    process.shards[shard].answered.extend(task.map(|task| (task, device)));
                }
                if task.is_some_and(|task| !self.model.results_heard.insert((task, device))) {
                    self.tally.count(Kind::ResultSentAgain);
                }
            }
            _ => {}
        }
        let mut heard = Ok(());
        self.with_shard(server, shard, |own, now| heard = own.handle_frame(now, channel, frame));
        if let Err(reason) = heard {
            self.violated(format!("agent {agent}'s frame ends its channel: {reason:?}"));
        }
    }

    /// Has a shard do something, and does what it wants done then.
    pub(crate) fn with_shard(&mut self, server: usize, shard: usize, act: impl FnOnce(&mut Shard, HubNow)) {
        let now = self.hub_now(server);
        if let Some(process) = self.servers[server].process.as_mut() {
            act(&mut process.shards[shard].shard, now);
            self.carry_out_shard(server, shard);
        }
    }

    pub(crate) fn advance_shard(&mut self, server: usize, shard: usize) {
        self.with_shard(server, shard, Shard::advance);
        self.let_go_of_held(server, shard);
    }

    fn carry_out_shard(&mut self, server: usize, shard: usize) {
        loop {
            let now = self.hub_now(server);
            let Some(process) = self.servers[server].process.as_mut() else { return };
            let own = &mut process.shards[shard];
            let deed = own.shard.poll(now, &mut own.frame);
            // What it has told the presence list came before the deed.
            self.hear_of_presence(server, shard);
            let Some(process) = self.servers[server].process.as_mut() else { return };
            let own = &mut process.shards[shard];
            match deed {
                Some(Deed::Write(channel)) => {
                    let frame = std::mem::take(&mut own.frame);
                    self.on_write(server, shard, channel, &frame);
                }
                Some(Deed::Close(channel, reason)) => self.on_close(server, shard, channel, reason),
                Some(Deed::Hold(channel)) => self.on_hold(server, shard, channel),
                None => {
                    let Some((channel, is_choked)) = own.flows.pop_front() else { break };
                    if let Some(tenant) = own.slots.tenant_mut(slot_key(channel)) {
                        tenant.is_choked = is_choked;
                    }
                    own.shard.handle_flow(now, channel, is_choked);
                }
            }
        }
        self.check_hub(server, shard);
        self.call_threads(server);
    }

    /// Whoever has something to do that a shard gave them gets a turn.
    fn call_threads(&mut self, server: usize) {
        let life = self.servers[server].life;
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let mut called = Vec::new();
        for (shard, own) in process.shards.iter_mut().enumerate() {
            if own.inbox.has_letters() && !std::mem::replace(&mut own.is_called, true) {
                called.push(shard);
            }
        }
        for shard in called {
            let after_ms = self.dice.below(MAIL_MS_MAX + 1);
            self.after(after_ms, Event::ShardWakes { server, life, shard });
        }
        self.call_writers(server);
    }

    /// Has a shard look into its mailbox soon, and at what the spool has made durable.
    pub(crate) fn wake_shard(&mut self, server: usize, shard: usize) {
        let life = self.servers[server].life;
        let Some(process) = self.servers[server].process.as_mut() else { return };
        if !std::mem::replace(&mut process.shards[shard].is_called, true) {
            let after_ms = self.dice.below(MAIL_MS_MAX + 1);
            self.after(after_ms, Event::ShardWakes { server, life, shard });
        }
    }

    pub(crate) fn on_shard_wakes(&mut self, server: usize, life: u64, shard: usize) {
        if self.servers[server].life != life || self.servers[server].process.is_none() {
            return;
        }
        self.take_letters(server, shard);
        self.advance_shard(server, shard);
    }

    /// Reads the letters that have come to a shard.
    pub(crate) fn take_letters(&mut self, server: usize, shard: usize) {
        loop {
            let Some(process) = self.servers[server].process.as_mut() else { return };
            let own = &mut process.shards[shard];
            own.is_called = false;
            own.inbox.hear();
            let Some(letter) = own.inbox.next() else { break };
            match letter {
                Letter::Orders(orders) => {
                    own.pushed_by_letter.clear();
                    for order in orders.iter() {
                        self.note_order(server, shard, order);
                        let order = order.clone();
                        self.with_shard(server, shard, |own, now| own.handle_order(now, order));
                    }
                }
                letter => {
                    match &letter {
                        Letter::Displaced(channel) => {
                            own.displaced.insert(*channel);
                            self.tally.count(Kind::DisplacedAcrossShards);
                        }
                        Letter::SignIns(allowed) => own.takes_sign_ins = *allowed,
                        _ => {}
                    }
                    self.with_shard(server, shard, |own, now| {
                        let _ = own.handle_letter(now, letter);
                    });
                }
            }
        }
    }

    fn on_write(&mut self, server: usize, shard: usize, channel: ChannelKey, bytes: &[u8]) {
        let read = Frame::decode(bytes).map_err(|error| error.to_string()).and_then(|frame| {
            let (frame, _) = frame.ok_or("it is cut short")?;
            ServerMessage::decode(frame).map_err(|error| error.to_string())
        });
        let message = match read {
            Ok(Some(message)) => message,
            Ok(None) => return self.violated("a server says what agents pass over".to_owned()),
            Err(error) => return self.violated(format!("a server's own frame cannot be read: {error}")),
        };
        let Some(id) = self.conn_of(server, shard, channel) else {
            return self.violated(format!("server {} speaks to {channel:?}, which is closed", server + 1));
        };
        let waits =
            matches!(&message, ServerMessage::Task(_) | ServerMessage::Cancel(_) | ServerMessage::Policy(_));
        if waits && self.channel_mut(server, shard, channel).is_some_and(|own| own.is_choked) {
            return self.violated(format!("what could wait goes to {channel:?}, which does not read"));
        }
        match &message {
            ServerMessage::Task(push) => match SignedTask::decode(&push.signed) {
                Ok(task) => self.on_push(server, shard, channel, id, task.statement().task, push),
                Err(error) => self.violated(format!("a task that is pushed cannot be read: {error}")),
            },
            ServerMessage::Cancel(signed) => self.on_cancel_written(server, shard, channel, signed),
            ServerMessage::Welcome(welcome) => {
                if let Some(own) = self.channel_mut(server, shard, channel) {
                    own.silent_ms_max = u64::from(welcome.keepalive_secs) * 1_500;
                }
            }
            ServerMessage::KeepaliveAnswer(_) => self.tally.count(Kind::KeepaliveAnswered),
            ServerMessage::ResultKept(task) => {
                self.tally.count(Kind::ResultAcknowledged);
                if let Some(conn) = self.network.conns.get(&id) {
                    let device = self.machines[conn.agent].device;
                    let now = UnixMillis(EPOCH_UNIX_MS + self.now_ms);
                    self.model.on_acknowledged(*task, device, now);
                }
                let own = self.channel_mut(server, shard, channel);
                if !own.is_some_and(|own| own.is_owed(*task)) {
                    self.violated(format!(
                        "{channel:?} hears that a result of task {task} is kept, and has said none"
                    ));
                }
            }
            ServerMessage::Refused(RefusedReason::Blocked) => self.tally.count(Kind::RefusedBlocked),
            ServerMessage::Refused(RefusedReason::Unavailable) => self.tally.count(Kind::RefusedUnavailable),
            _ => {}
        }
        self.say(format_args!("server {} to {channel:?}: {}", server + 1, said_by_server(&message)));
        self.write_down(server, shard, channel, id, bytes);
    }

    fn write_down(&mut self, server: usize, shard: usize, channel: ChannelKey, id: ConnId, bytes: &[u8]) {
        self.write(id, Way::Down, bytes);
        let is_above = self.unsent_bytes(id) > self.weather.choked_bytes;
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        if !conn.is_choked && is_above {
            conn.is_choked = true;
            self.tally.count(Kind::Choked);
            if let Some(process) = self.servers[server].process.as_mut() {
                process.shards[shard].flows.push_back((channel, true));
            }
        }
    }

    /// Bytes have gone out: perhaps there is room again.
    pub(crate) fn note_flow(&mut self, id: ConnId) {
        let is_below = self.unsent_bytes(id) < self.weather.choked_bytes / 4;
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        if conn.is_choked && is_below && conn.server_end == End::Open {
            conn.is_choked = false;
            let (server, shard) = (conn.server, conn.shard);
            if let Some(channel) = conn.channel {
                if let Some(own) = self.channel_mut(server, shard, channel) {
                    own.is_choked = false;
                }
                self.with_shard(server, shard, |own, now| own.handle_flow(now, channel, false));
            }
        }
    }

    fn on_close(&mut self, server: usize, shard: usize, channel: ChannelKey, reason: CloseReason) {
        self.say(format_args!("server {} closes {channel:?}: {}", server + 1, reason.label()));
        let Some(id) = self.conn_of(server, shard, channel) else {
            return self.violated(format!("server {} closes {channel:?}, which is closed", server + 1));
        };
        if reason == CloseReason::Superseded {
            self.count_superseded(server, shard, channel, id);
        } else {
            self.count_close(reason);
        }
        self.free_channel(server, shard, channel);
        self.end_server_side(
            id,
            if reason.flushes() || self.is_in_tunnel(id) { Farewell::InOrder } else { Farewell::Reset },
        );
    }

    /// Why an older session ended: by a letter, by a newer one on its shard, or since the site said so.
    fn count_superseded(&mut self, server: usize, shard: usize, channel: ChannelKey, id: ConnId) {
        let Some(process) = &self.servers[server].process else { return };
        let is_told = process.shards[shard].displaced.contains(&channel);
        let device_of = |conn: &Conn| self.machines[conn.agent].device;
        let device = self.network.conns.get(&id).map(device_of);
        let has_newer_here = self.network.conns.iter().any(|(other, conn)| {
            let is_here = (conn.server, conn.shard) == (server, shard) && conn.server_end == End::Open;
            *other > id && is_here && conn.session.is_some() && Some(device_of(conn)) == device
        });
        // One that was told by a letter was counted when it came.
        if has_newer_here && !is_told {
            self.tally.count(Kind::DisplacedOnShard);
        } else if !is_told {
            self.tally.count(Kind::SupersededBySite);
        }
    }

    fn is_in_tunnel(&self, id: ConnId) -> bool {
        self.network.conns.get(&id).is_some_and(Conn::is_long_poll)
    }

    /// The shard takes no more from a channel for now.
    fn on_hold(&mut self, server: usize, shard: usize, channel: ChannelKey) {
        let Some(id) = self.conn_of(server, shard, channel) else { return };
        self.tally.count(Kind::ChannelHeld);
        if self.is_in_tunnel(id) {
            // Its requests are refused as long.
            return;
        }
        if let Some(conn) = self.network.conns.get_mut(&id) {
            conn.is_held = true;
        }
        if let Some(process) = self.servers[server].process.as_mut() {
            process.shards[shard].held.push(id);
        }
    }

    fn let_go_of_held(&mut self, server: usize, shard: usize) {
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let own = &mut process.shards[shard];
        if own.held.is_empty() || own.shard.is_backed_up() {
            return;
        }
        for id in std::mem::take(&mut own.held) {
            if let Some(conn) = self.network.conns.get_mut(&id) {
                conn.is_held = false;
            }
            self.read_on(id);
        }
    }

    /// What a shard has told the presence list since the last look.
    fn hear_of_presence(&mut self, server: usize, shard: usize) {
        loop {
            let Some(process) = self.servers[server].process.as_mut() else { return };
            let Ok(told) = process.shards[shard].presence_rows.try_recv() else { return };
            process.presence_mail[shard].push_back(told.clone());
            let row = told.row().clone();
            match row.presence {
                Presence::Online(_) => self.on_online(server, shard, &row),
                Presence::Offline { .. } => self.on_offline(server, shard, &row),
            }
        }
    }

    fn channel_mut(&mut self, server: usize, shard: usize, channel: ChannelKey) -> Option<&mut Channel> {
        self.servers[server].process.as_mut()?.shards[shard].slots.tenant_mut(slot_key(channel))
    }

    pub(crate) fn conn_of(&self, server: usize, shard: usize, channel: ChannelKey) -> Option<ConnId> {
        let own = &self.servers[server].process.as_ref()?.shards[shard];
        Some(own.slots.tenant(slot_key(channel))?.conn)
    }
}

impl SimShard {
    pub(crate) fn new(
        shard: Shard,
        inbox: Inbox<Letter>,
        poll: mio::Poll,
        presence_rows: Receiver<Told>,
    ) -> Self {
        Self {
            shard,
            inbox,
            _poll: poll,
            presence_rows,
            active: BTreeMap::new(),
            slots: Slots::default(),
            takes_sign_ins: false,
            barred: BTreeSet::new(),
            head_lag_ms: None,
            newest_head: UnixMillis(0),
            was_ahead_ms: 0,
            cancelled: BTreeSet::new(),
            answered: BTreeSet::new(),
            pushed_by_letter: BTreeSet::new(),
            displaced: BTreeSet::new(),
            held: Vec::new(),
            flows: VecDeque::new(),
            is_called: false,
            frame: Vec::new(),
        }
    }

    /// All channels.
    pub(crate) fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.slots.keys().filter_map(|key| self.slots.tenant(key))
    }

    /// The certificate that was shown on a channel.
    pub(crate) fn fingerprint(&self, channel: ChannelKey) -> Option<[u8; 32]> {
        Some(self.slots.tenant(slot_key(channel))?.fingerprint)
    }
}

fn hub_key(key: SlotKey) -> ChannelKey {
    ChannelKey { index: key.index, generation: key.generation }
}

pub(crate) fn slot_key(key: ChannelKey) -> SlotKey {
    SlotKey { index: key.index, generation: key.generation }
}
