//! Notification servers: each several shards with the product's hubs, and the product's directory between them.
//!
//! What stands here for the reactor gives channels their keys as a slab does, hands frames to hubs and hubs' outputs to the
//! network, and does with claims and displaced sessions what a shard of the product does. How a server starts, follows the queue
//! and ends is in `server_life.rs`; what stays of it on its disk in `spool.rs`.
//!
//! The law that is checked at every turn: a hub holds as many sessions as there are channels, speaks of no channel that is
//! closed, and has one active session of a device at most.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use bgb_hub::{ChannelKey, CloseReason, Hub, HubOptions, Input, Output, Peer, PushFrames, TaskOrder, Tick};
use bgb_protocol::file::presence::PresenceRow;
use bgb_protocol::frame::Frame;
use bgb_protocol::ids::{BootId, DeviceId, ServerId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::message::{AgentMessage, RefusedReason, ServerMessage};
use bgb_server::directory::{Claim, Directory, Place, ShardId};

use crate::agents::{Certificate, said_by_server};
use crate::faults::Weather;
use crate::network::{ConnId, End, Farewell, Way};
use crate::spool::{PresenceBook, Spool};
use crate::tally::Kind;
use crate::world::{Bar, EPOCH_UNIX_MS, Event, World};

/// Servers of the site.
pub(crate) const SERVERS: usize = 2;
/// Shards of each.
pub(crate) const SHARDS: usize = 2;
/// The hello is awaited this long (docs/promises.md: 10 s), in ticks.
const HELLO_TICKS: u64 = 100;
/// A letter from shard to shard takes so long at most: a busy reactor's turn.
const MAIL_MS_MAX: u64 = 25;
/// A certificate that outlives every world: 90 days (docs/promises.md).
const NEVER_ENDS_MS: u64 = 90 * 24 * 3_600_000;

/// A server.
pub(crate) struct SimServer {
    pub(crate) process: Option<Process>,
    pub(crate) power_is_on: bool,
    /// The wall clock is so far behind the true time.
    pub(crate) clock_behind_ms: u64,
    /// What is on its disk.
    pub(crate) spool: Spool,
    /// Counts the processes: what was meant for an earlier one is void.
    pub(crate) life: u64,
    pub(crate) starts: u64,
    pub(crate) options: HubOptions,
}

/// A server's process, and all that goes with it.
pub(crate) struct Process {
    pub(crate) shards: Vec<Shard>,
    pub(crate) presence: PresenceBook,
    /// Rows of the queue that were handed to the shards.
    pub(crate) position: usize,
    pub(crate) door: Door,
    /// Since when the queue cannot be read.
    pub(crate) unreadable_since: Option<u64>,
    pub(crate) barred: BTreeSet<Bar>,
    pub(crate) cancelled: BTreeSet<TaskId>,
    directory: Directory,
    /// Displaced sessions whose letters are under way.
    letters: BTreeSet<(usize, ChannelKey)>,
}

/// Whether the server takes anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Open,
    Held,
    Draining,
}

/// A shard: a hub and its channels.
pub(crate) struct Shard {
    pub(crate) hub: Hub,
    /// Online rows that were not followed by an offline one.
    pub(crate) active: BTreeMap<DeviceId, Active>,
    slots: Vec<Slot>,
    displaced_here: VecDeque<ChannelKey>,
    flows: VecDeque<(ChannelKey, bool)>,
    frames: PushFrames,
}

/// A session that the hub has said to be online.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    pub(crate) channel: ChannelKey,
    pub(crate) boot: BootId,
    pub(crate) session: SessionNumber,
    pub(crate) since_ms: u64,
    known: BTreeSet<TaskId>,
    pushed: BTreeSet<TaskId>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    generation: u32,
    conn: Option<ConnId>,
    fingerprint: [u8; 32],
    /// Tasks that the hello named.
    known: BTreeSet<TaskId>,
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
            power_is_on: true,
            clock_behind_ms: if server == 0 { weather.clock_behind_ms } else { 0 },
            spool: Spool::default(),
            life: 0,
            starts: 0,
            options,
        }
    }

    pub(crate) fn has_power(&self) -> bool {
        self.power_is_on
    }

    pub(crate) fn is_listening(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.door != Door::Draining)
    }

    pub(crate) fn deadlines(&self) -> impl Iterator<Item = (usize, Tick)> + '_ {
        let shards = self.process.iter().flat_map(|process| process.shards.iter().enumerate());
        shards.filter_map(|(place, shard)| Some((place, shard.hub.next_deadline()?)))
    }

    /// The device's active session here, its newest if there are two for a moment, and its shard.
    pub(crate) fn active(&self, device: DeviceId) -> Option<(usize, &Active)> {
        let shards = self.process.as_ref()?.shards.iter().enumerate();
        let found = shards.filter_map(|(place, shard)| Some((place, shard.active.get(&device)?)));
        found.max_by_key(|(_, active)| active.session)
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
        let channel = process.shards[shard].take_slot(id, fingerprint);
        conn.server_end = End::Open;
        conn.channel = Some(channel);
        let address = SocketAddr::from(([127, 0, 0, 1], 40_000 + agent as u16));
        let peer = Peer { device: machine.device, address, fingerprint, certificate_ends };
        self.say(format_args!("server {} shard {shard} opens {channel:?} for agent {agent}", server + 1));
        self.tell_hub(server, shard, Input::Opened { channel, peer });
    }

    pub(crate) fn free_channel(&mut self, server: usize, shard: usize, channel: ChannelKey) {
        if let Some(process) = self.servers[server].process.as_mut() {
            process.shards[shard].free_slot(channel);
        }
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
        match &message {
            AgentMessage::Hello(hello) => {
                let known = hello.known_tasks.iter().map(|known| known.task).collect();
                if let Some(process) = self.servers[server].process.as_mut() {
                    process.shards[shard].note_known(channel, known);
                }
            }
            AgentMessage::Result(result) => {
                let device = self.machines[agent].device;
                let task = result.read().ok().map(|statement| statement.task);
                if task.is_some_and(|task| !self.model.results_heard.insert((task, device))) {
                    self.tally.count(Kind::ResultSentAgain);
                }
            }
            _ => {}
        }
        self.tell_hub(server, shard, Input::Said { channel, message });
    }

    /// Hands a hub something and does what it says.
    pub(crate) fn tell_hub(&mut self, server: usize, shard: usize, input: Input) {
        let now = self.hub_now(server);
        if let Some(process) = self.servers[server].process.as_mut() {
            process.shards[shard].hub.handle(now, input);
            self.carry_out_hub(server, shard);
        }
    }

    pub(crate) fn advance_hub(&mut self, server: usize, shard: usize) {
        let now = self.hub_now(server);
        if let Some(process) = self.servers[server].process.as_mut() {
            process.shards[shard].hub.advance(now);
            self.carry_out_hub(server, shard);
        }
    }

    fn carry_out_hub(&mut self, server: usize, shard: usize) {
        loop {
            let now = self.hub_now(server);
            let Some(process) = self.servers[server].process.as_mut() else { return };
            let own = &mut process.shards[shard];
            if let Some(output) = own.hub.poll_output() {
                self.on_hub_output(server, shard, output);
            } else if let Some(channel) = own.displaced_here.pop_front() {
                own.hub.handle(now, Input::Displaced { channel });
            } else if let Some((channel, is_choked)) = own.flows.pop_front() {
                let input = if is_choked { Input::Choked { channel } } else { Input::Flowing { channel } };
                own.hub.handle(now, input);
            } else {
                break;
            }
        }
        self.check_hub(server, shard);
    }

    fn on_hub_output(&mut self, server: usize, shard: usize, output: Output) {
        match output {
            Output::Claim { channel, device, boot, session } => {
                self.on_claim(server, shard, channel, device, (boot, session));
            }
            Output::Release { channel, device } => {
                if let Some(process) = &self.servers[server].process {
                    process.directory.release(device, Place { shard: ShardId(shard as u16), channel });
                }
            }
            Output::Send { channel, message } => self.on_send(server, shard, channel, &message),
            Output::Push { channel, task, device } => self.on_push(server, shard, channel, &task, device),
            Output::Close { channel, reason } => self.on_close(server, shard, channel, reason),
            Output::Online { channel, row } => self.on_online(server, shard, channel, row),
            Output::Offline { row } => self.on_offline(server, shard, row),
            Output::Hint { row } => self.servers[server].spool.hint(row),
            Output::Keep { number, row, .. } => self.spool_keep(server, shard, number, row),
            Output::OrderRefused { refusal } => self.violated(format!("an order was refused: {refusal}")),
        }
    }

    fn on_claim(
        &mut self,
        server: usize,
        shard: usize,
        channel: ChannelKey,
        device: DeviceId,
        stamp: (BootId, SessionNumber),
    ) {
        let (now, life) = (self.hub_now(server), self.servers[server].life);
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let place = Place { shard: ShardId(shard as u16), channel };
        let claim = process.directory.claim(device, stamp, place);
        let own = &mut process.shards[shard].hub;
        own.handle(now, Input::Claimed { channel, granted: claim != Claim::Refused });
        let Claim::Granted { displaced: Some(former) } = claim else { return };
        let there = usize::from(former.shard.0);
        if there == shard {
            self.tally.count(Kind::DisplacedOnShard);
            process.shards[shard].displaced_here.push_back(former.channel);
        } else {
            self.tally.count(Kind::DisplacedAcrossShards);
            process.letters.insert((there, former.channel));
            let after_ms = self.dice.below(MAIL_MS_MAX + 1);
            self.after(after_ms, Event::Displaced { server, life, shard: there, channel: former.channel });
        }
    }

    pub(crate) fn on_displaced(&mut self, server: usize, life: u64, shard: usize, channel: ChannelKey) {
        if self.servers[server].life == life {
            if let Some(process) = self.servers[server].process.as_mut() {
                process.letters.remove(&(shard, channel));
            }
            self.tell_hub(server, shard, Input::Displaced { channel });
        }
    }

    fn on_send(&mut self, server: usize, shard: usize, channel: ChannelKey, message: &ServerMessage) {
        let Some(id) = self.conn_of(server, shard, channel) else {
            return self.violated(format!("server {} speaks to {channel:?}, which is closed", server + 1));
        };
        match message {
            ServerMessage::KeepaliveAnswer(_) => self.tally.count(Kind::KeepaliveAnswered),
            ServerMessage::ResultKept(task) => {
                self.tally.count(Kind::ResultAcknowledged);
                let device = self.network.conns.get(&id).map(|conn| self.machines[conn.agent].device);
                if device.is_some_and(|device| !self.model.durable.contains(&(*task, device))) {
                    self.violated(format!("the result of task {task} is acknowledged and not durable"));
                }
            }
            ServerMessage::Refused(RefusedReason::Blocked) => self.tally.count(Kind::RefusedBlocked),
            ServerMessage::Refused(RefusedReason::Unavailable) => self.tally.count(Kind::RefusedUnavailable),
            _ => {}
        }
        self.say(format_args!("server {} to {channel:?}: {}", server + 1, said_by_server(message)));
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.write_down(server, shard, channel, id, &bytes);
    }

    fn on_push(
        &mut self,
        server: usize,
        shard: usize,
        channel: ChannelKey,
        task: &Arc<TaskOrder>,
        device: DeviceId,
    ) {
        self.say(format_args!("server {} to {channel:?}: push of {}", server + 1, task.id));
        let Some(id) = self.conn_of(server, shard, channel) else {
            return self.violated(format!("server {} pushes to {channel:?}, which is closed", server + 1));
        };
        // A server that is behind judges by the last head and the ticks since: so it may be late, and never wrong by more.
        let judged = (self.servers[server].clock_behind_ms == 0).then(|| self.unix());
        self.expect(self.model.may_be_pushed(task.id, device, judged));
        let now_ms = self.now_ms;
        let Some(process) = self.servers[server].process.as_mut() else { return };
        if process.cancelled.contains(&task.id) {
            return self.violated(format!("task {} is pushed after its cancel", task.id));
        }
        let own = &mut process.shards[shard];
        let frame = own.frames.frame(task, device).to_vec();
        let Some(active) = own.active.get_mut(&device).filter(|active| active.channel == channel) else {
            return self.violated(format!("task {} is pushed to a session that is not active", task.id));
        };
        if !active.pushed.insert(task.id) {
            return self.violated(format!("task {} is pushed to {channel:?} again", task.id));
        }
        // Later it may be: a server that had not heard of the task when the device came does not note what the hello named.
        let is_late = active.since_ms == now_ms;
        if is_late && active.known.contains(&task.id) {
            return self.violated(format!("task {} is pushed to a device whose hello named it", task.id));
        }
        self.tally.count(if is_late { Kind::PushedAtSignIn } else { Kind::PushedAtOnce });
        if !self.model.pushed.insert((task.id, device)) {
            self.tally.count(Kind::PushedAgain);
        }
        self.write_down(server, shard, channel, id, &frame);
    }

    fn write_down(&mut self, server: usize, shard: usize, channel: ChannelKey, id: ConnId, bytes: &[u8]) {
        self.write(id, Way::Down, bytes);
        let high_bytes = self.weather.choked_bytes;
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        if !conn.is_choked && conn.unsent_bytes() > high_bytes {
            conn.is_choked = true;
            self.tally.count(Kind::Choked);
            if let Some(process) = self.servers[server].process.as_mut() {
                process.shards[shard].flows.push_back((channel, true));
            }
        }
    }

    /// Bytes have gone out: perhaps there is room again.
    pub(crate) fn note_flow(&mut self, id: ConnId) {
        let low_bytes = self.weather.choked_bytes / 4;
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        if conn.is_choked && conn.unsent_bytes() < low_bytes && conn.server_end == End::Open {
            conn.is_choked = false;
            let (server, shard) = (conn.server, conn.shard);
            if let Some(channel) = conn.channel {
                self.tell_hub(server, shard, Input::Flowing { channel });
            }
        }
    }

    fn on_close(&mut self, server: usize, shard: usize, channel: ChannelKey, reason: CloseReason) {
        self.say(format_args!("server {} closes {channel:?}: {}", server + 1, reason.label()));
        let Some(id) = self.conn_of(server, shard, channel) else {
            return self.violated(format!("server {} closes {channel:?}, which is closed", server + 1));
        };
        self.count_close(reason);
        self.free_channel(server, shard, channel);
        self.end_server_side(id, if reason.flushes() { Farewell::Flushed } else { Farewell::Reset });
    }

    fn on_online(&mut self, server: usize, shard: usize, channel: ChannelKey, row: PresenceRow) {
        self.tally.count(Kind::SignedIn);
        let device = row.device;
        self.say(format_args!(
            "server {} shard {shard}: device {device} online, {}",
            server + 1,
            row.session
        ));
        let now_ms = self.now_ms;
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let slot = process.shards[shard].slot(channel).cloned().unwrap_or_default();
        let door = process.door;
        if door != Door::Open {
            return self.violated(format!("device {device} signs in while the door is {door:?}"));
        }
        let bars = [Bar::Block(device), Bar::Certificate(slot.fingerprint)];
        if let Some(bar) = bars.into_iter().find(|bar| process.barred.contains(bar)) {
            return self.violated(format!("device {device} signs in after {bar:?}"));
        }
        let active = Active {
            channel,
            boot: row.boot,
            session: row.session,
            since_ms: now_ms,
            known: slot.known,
            pushed: BTreeSet::new(),
        };
        if process.shards[shard].active.insert(device, active).is_some() {
            return self.violated(format!("device {device} has two active sessions on a shard"));
        }
        let elsewhere = process.shards.iter().enumerate().filter(|(place, _)| *place != shard);
        let unannounced =
            elsewhere.filter_map(|(place, other)| Some((place, other.active.get(&device)?.channel)));
        if unannounced.into_iter().any(|former| !process.letters.contains(&former)) {
            return self
                .violated(format!("device {device} has two active sessions on server {}", server + 1));
        }
        self.presence_changes(server, row);
    }

    fn on_offline(&mut self, server: usize, shard: usize, row: PresenceRow) {
        let device = row.device;
        self.say(format_args!(
            "server {} shard {shard}: device {device} offline, {}",
            server + 1,
            row.session
        ));
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let was = process.shards[shard].active.remove(&device);
        if was.is_none_or(|active| (active.boot, active.session) != (row.boot, row.session)) {
            return self.violated(format!("device {device} goes offline with a session that was not online"));
        }
        self.presence_changes(server, row);
    }

    fn conn_of(&self, server: usize, shard: usize, channel: ChannelKey) -> Option<ConnId> {
        self.servers[server].process.as_ref()?.shards[shard].slot(channel)?.conn
    }

    fn check_hub(&mut self, server: usize, shard: usize) {
        let Some(process) = &self.servers[server].process else { return };
        let own = &process.shards[shard];
        let (sessions, channels) = (own.hub.sessions(), own.channels());
        let (online, active) = (own.hub.online(), own.active.len());
        if sessions != channels || online != active {
            self.violated(format!(
                "server {} shard {shard} holds {sessions} sessions, {online} of them online; there are {channels} \
                 channels, {active} of them active",
                server + 1
            ));
        }
    }
}

impl Process {
    pub(crate) fn new(options: &HubOptions) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::new(options)).collect(),
            presence: PresenceBook::default(),
            position: 0,
            door: Door::Held,
            unreadable_since: None,
            barred: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            directory: Directory::default(),
            letters: BTreeSet::new(),
        }
    }
}

impl Shard {
    fn new(options: &HubOptions) -> Self {
        Self {
            hub: Hub::new(options.clone()),
            active: BTreeMap::new(),
            slots: Vec::new(),
            displaced_here: VecDeque::new(),
            flows: VecDeque::new(),
            frames: PushFrames::default(),
        }
    }

    /// The lowest free place, as a slab gives it, and never the same generation of it twice.
    fn take_slot(&mut self, conn: ConnId, fingerprint: [u8; 32]) -> ChannelKey {
        let free = self.slots.iter().position(|slot| slot.conn.is_none());
        let index = free.unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        let generation = slot.generation + 1;
        *slot = Slot { generation, conn: Some(conn), fingerprint, known: BTreeSet::new() };
        ChannelKey { index: index as u32, generation }
    }

    fn free_slot(&mut self, channel: ChannelKey) {
        if let Some(slot) = self.slots.get_mut(channel.index as usize)
            && slot.generation == channel.generation
        {
            slot.conn = None;
        }
    }

    /// The certificate that was shown on a channel.
    pub(crate) fn fingerprint(&self, channel: ChannelKey) -> Option<[u8; 32]> {
        Some(self.slot(channel)?.fingerprint)
    }

    fn slot(&self, channel: ChannelKey) -> Option<&Slot> {
        let slot = self.slots.get(channel.index as usize)?;
        (slot.generation == channel.generation && slot.conn.is_some()).then_some(slot)
    }

    fn note_known(&mut self, channel: ChannelKey, known: BTreeSet<TaskId>) {
        if self.slot(channel).is_some() {
            self.slots[channel.index as usize].known = known;
        }
    }

    fn channels(&self) -> usize {
        self.slots.iter().filter(|slot| slot.conn.is_some()).count()
    }
}
