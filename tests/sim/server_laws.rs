//! The laws of servers: whom they may hold, and what they may push to them.
//!
//! Two measures are laid on. What a shard was told it heeds at once. And what was committed (blocks, revoked certificates, cancels) every
//! server heeds a second later that has been able to read the queue for as long, whatever its shards were told.

use std::collections::BTreeSet;

use bgb_hub::{ChannelKey, Order};
use bgb_protocol::file::presence::PresenceRow;
use bgb_protocol::ids::{DeviceId, TaskId, UnixMillis};
use bgb_protocol::message::TaskPush;
use bgb_protocol::task::SignedCancel;

use crate::forger::HeardPush;
use crate::model::Bar;
use crate::network::{ConnId, End};
use crate::servers::{Active, Process, slot_key};
use crate::tally::Kind;
use crate::world::{EPOCH_UNIX_MS, Event, World};

/// What is committed counts on every server that can read the queue after this time (docs/promises.md, invariant 9).
pub(crate) const HEEDED_WITHIN_MS: u64 = 1_000;
/// An older session of a device is gone from its server this long after the newer one came: a letter's way and a turn.
const DISPLACED_WITHIN_MS: u64 = 200;

impl World {
    /// What a shard was told.
    pub(crate) fn note_order(&mut self, server: usize, shard: usize, order: &Order) {
        let (now, was_set_back) = (self.unix(), self.servers[server].clock.was_set_back(self.now_ms));
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let own = &mut process.shards[shard];
        match order {
            Order::Block { device } => {
                own.barred.insert(Bar::Block(*device));
            }
            Order::Revoke { fingerprint } => {
                own.barred.insert(Bar::Certificate(*fingerprint));
            }
            Order::Unblock { device } => {
                own.barred.remove(&Bar::Block(*device));
            }
            Order::Cancel { task, .. } => {
                own.cancelled.insert(*task);
                if own.pushed_by_letter.contains(task) {
                    self.violated(format!("task {task} is pushed, and its cancel was read with it"));
                }
            }
            Order::Head { time, .. } if *time > own.newest_head => {
                own.newest_head = *time;
                own.head_lag_ms = Some(now.since(*time));
            }
            Order::Reset => {
                own.barred.clear();
                own.cancelled.clear();
                own.was_ahead_ms = 0;
                if was_set_back && shard == 0 {
                    self.tally.count(Kind::ReadAnew);
                }
            }
            _ => {}
        }
    }

    /// Whether a server heeds by now what was committed then: it has read it at its start, or has been able to for long enough.
    fn heeds(&self, server: usize, committed: UnixMillis) -> bool {
        let simulated = &self.servers[server];
        let committed_ms = committed.0 - EPOCH_UNIX_MS;
        let has_had_time = self.now_ms >= committed_ms.max(simulated.queue_shown_ms) + HEEDED_WITHIN_MS;
        simulated.queue_hidden_since.is_none() && (committed_ms < simulated.started_ms || has_had_time)
    }

    /// Something may be barred since a second ago: nobody whom it concerns has a session.
    pub(crate) fn on_bars_due(&mut self) {
        for server in 0..self.servers.len() {
            let shards = self.servers[server].process.iter().flat_map(|process| &process.shards);
            let sessions =
                shards.flat_map(|own| own.active.iter().map(move |(device, active)| (own, *device, active)));
            let barred = sessions.filter_map(|(own, device, active)| {
                let fingerprint = own.fingerprint(active.channel)?;
                let bar = self.bar_heeded(server, device, fingerprint)?;
                Some(format!("device {device} has a session on server {} a second after {bar:?}", server + 1))
            });
            if let Some(what) = barred.take(1).next() {
                return self.violated(what);
            }
        }
    }

    /// A task was cancelled a second ago: every shard of every server that could read the queue since knows of it, whatever its clock says.
    pub(crate) fn on_cancel_due(&mut self, task: TaskId) {
        let Some(committed) = self.model.cancelled_since(task) else { return };
        if self.model.tasks.get(&task).is_none_or(|facts| facts.expires <= self.unix()) {
            return;
        }
        for server in 0..self.servers.len() {
            let simulated = &self.servers[server];
            let Some(process) = &simulated.process else { continue };
            let has_begun = self.now_ms >= simulated.started_ms + HEEDED_WITHIN_MS;
            let is_to_know =
                has_begun && !process.is_draining && !process.is_failing && self.heeds(server, committed);
            if is_to_know && process.shards.iter().any(|own| !own.cancelled.contains(&task)) {
                return self
                    .violated(format!("server {} has not heard that task {task} is cancelled", server + 1));
            }
            if let Some(device) = self.not_taken_back(server, process, task).filter(|_| is_to_know) {
                return self.violated(format!(
                    "device {device} has task {task}, is signed in on server {}, and was not told of its cancel",
                    server + 1
                ));
            }
        }
    }

    /// Every task that is cancelled: a server that can read the queue again may have to catch up.
    pub(crate) fn on_all_cancels_due(&mut self) {
        let cancelled: Vec<TaskId> = self
            .model
            .tasks
            .keys()
            .copied()
            .filter(|task| self.model.cancelled_since(*task).is_some())
            .collect();
        cancelled.into_iter().for_each(|task| self.on_cancel_due(task));
    }

    /// A device that has been signed in for a while and does read, has the task by all that its shard was told, and has not answered it there.
    fn not_taken_back(&self, server: usize, process: &Process, task: TaskId) -> Option<DeviceId> {
        let has_it = |(shard, device, active): &(usize, DeviceId, &Active)| {
            let conn =
                self.conn_of(server, *shard, active.channel).and_then(|id| self.network.conns.get(&id));
            let is_settled = active.since_ms + HEEDED_WITHIN_MS <= self.now_ms;
            let has = active.known_open.contains(&task) || active.pushed.contains(&task);
            let is_answered = process.shards[*shard].answered.contains(&(task, *device));
            is_settled && conn.is_some_and(|conn| !conn.is_choked) && has && !is_answered
        };
        let shards = process.shards.iter().enumerate();
        let mut sessions = shards
            .flat_map(|(shard, own)| own.active.iter().map(move |(device, active)| (shard, *device, active)));
        sessions
            .find(|session| has_it(session) && !session.2.taken_back.contains(&task))
            .map(|(_, device, _)| device)
    }

    pub(crate) fn on_cancel_written(
        &mut self,
        server: usize,
        shard: usize,
        channel: ChannelKey,
        signed: &[u8],
    ) {
        let Ok(cancel) = SignedCancel::decode(signed) else {
            return self.violated("a cancel that is sent cannot be read".to_owned());
        };
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let mut sessions = process.shards[shard].active.values_mut();
        if let Some(active) = sessions.find(|active| active.channel == channel) {
            active.taken_back.insert(cancel.statement().task);
        }
    }

    /// Everybody who has been signed in for a while at a server whose clock is right was given what is to be had there for as long, unless they
    /// do not read: also right after the clock was set back, or the queue came into sight again.
    pub(crate) fn on_pushes_due(&mut self, server: usize, life: u64) {
        let simulated = &self.servers[server];
        let Some(process) = simulated.process.as_ref().filter(|_| simulated.life == life) else { return };
        let is_to_be_trusted = simulated.clock.off_ms() == 0 && !process.is_draining && !process.is_failing;
        if !is_to_be_trusted || simulated.clock.was_set_back(self.now_ms) {
            return;
        }
        if let Some((device, task)) = self.not_given(server, process) {
            self.violated(format!(
                "device {device} is signed in on server {} and was not given task {task}",
                server + 1
            ));
        }
    }

    /// A device that has been signed in for a while and does read, and a task that it should have by now.
    fn not_given(&self, server: usize, process: &Process) -> Option<(DeviceId, TaskId)> {
        let since = UnixMillis(self.unix().0 - HEEDED_WITHIN_MS);
        for (shard, own) in process.shards.iter().enumerate() {
            for (device, active) in &own.active {
                let conn =
                    self.conn_of(server, shard, active.channel).and_then(|id| self.network.conns.get(&id));
                let is_settled = active.since_ms + HEEDED_WITHIN_MS <= self.now_ms;
                if !is_settled || conn.is_none_or(|conn| conn.is_choked) {
                    continue;
                }
                let due = self.model.not_pushed(*device, since, self.unix());
                let missing = due
                    .into_iter()
                    .find(|(task, from)| self.heeds(server, *from) && !active.known.contains(task));
                if let Some((task, _)) = missing {
                    return Some((*device, task));
                }
            }
        }
        None
    }

    /// What bars the device from the server, if the server heeds it by now.
    fn bar_heeded(&self, server: usize, device: DeviceId, fingerprint: [u8; 32]) -> Option<Bar> {
        let bars = [Bar::Block(device), Bar::Certificate(fingerprint)];
        bars.into_iter()
            .find(|bar| self.model.barred_since(*bar).is_some_and(|committed| self.heeds(server, committed)))
    }

    pub(crate) fn on_push(
        &mut self,
        server: usize,
        shard: usize,
        channel: ChannelKey,
        id: ConnId,
        task: TaskId,
        push: &TaskPush,
    ) {
        let Some(device) = self.network.conns.get(&id).map(|conn| self.machines[conn.agent].device) else {
            return;
        };
        let now_ms = self.now_ms;
        let simulated = &self.servers[server];
        let Some(own) = simulated.process.as_ref().map(|process| &process.shards[shard]) else { return };
        let ahead_ms = simulated.clock.ahead_ms().max(own.was_ahead_ms);
        let behind_ms = simulated.clock.behind_ms().min(own.head_lag_ms.unwrap_or(u64::MAX));
        self.expect(self.model.may_be_pushed(task, device, self.unix(), ahead_ms, behind_ms));
        if self.model.cancelled_since(task).is_some_and(|committed| self.heeds(server, committed)) {
            return self
                .violated(format!("task {task} is pushed to device {device} a second after its cancel"));
        }
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let own = &mut process.shards[shard];
        if own.cancelled.contains(&task) {
            return self.violated(format!("task {task} is pushed after its cancel"));
        }
        own.pushed_by_letter.insert(task);
        let Some(active) = own.active.get_mut(&device).filter(|active| active.channel == channel) else {
            return self.violated(format!("task {task} is pushed to a session that is not active"));
        };
        if !active.pushed.insert(task) {
            return self.violated(format!("task {task} is pushed to {channel:?} again"));
        }
        // Later it may be: a server that had not heard of the task when the device came does not note what the hello named.
        let is_late = active.since_ms == now_ms;
        if is_late && active.known.contains(&task) {
            return self.violated(format!("task {task} is pushed to a device whose hello named it"));
        }
        self.tally.count(if is_late { Kind::PushedAtSignIn } else { Kind::PushedAtOnce });
        if !self.model.pushed.insert((task, device)) {
            self.tally.count(Kind::PushedAgain);
        }
        self.overhear(HeardPush { task, device, push: push.clone() });
    }

    pub(crate) fn on_online(&mut self, server: usize, shard: usize, row: &PresenceRow) {
        self.tally.count(Kind::SignedIn);
        let device = row.device;
        self.say(format_args!(
            "server {} shard {shard}: device {device} online, {}",
            server + 1,
            row.session
        ));
        let now_ms = self.now_ms;
        let found = self.network.conns.values().find_map(|conn| {
            let is_here = (conn.server, conn.shard) == (server, shard) && conn.server_end == End::Open;
            let is_its =
                self.machines[conn.agent].device == device && conn.session == Some((row.boot, row.session));
            let channel = conn.channel.filter(|_| is_here && is_its)?;
            Some((channel, conn.road.clone()))
        });
        self.check_road(row, found.as_ref().map(|(_, road)| road));
        let Some((channel, _)) = found else {
            return self.violated(format!("device {device} is said to be online, and no connection is its"));
        };
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let own = &mut process.shards[shard];
        if !own.takes_sign_ins {
            return self.violated(format!("device {device} signs in while the shard takes no sign-ins"));
        }
        let Some(present) = own.slots.tenant(slot_key(channel)).cloned() else {
            return self.violated(format!("device {device} is online on {channel:?}, which is closed"));
        };
        let bars = [Bar::Block(device), Bar::Certificate(present.fingerprint)];
        if let Some(bar) = bars.into_iter().find(|bar| own.barred.contains(bar)) {
            return self.violated(format!("device {device} signs in after {bar:?}"));
        }
        let heeded = self.bar_heeded(server, device, present.fingerprint);
        if let Some(bar) = heeded {
            return self.violated(format!(
                "device {device} signs in on server {} a second after {bar:?}",
                server + 1
            ));
        }
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let own = &mut process.shards[shard];
        let active = Active {
            channel,
            boot: row.boot,
            session: row.session,
            since_ms: now_ms,
            known: present.known,
            known_open: present.known_open,
            taken_back: BTreeSet::new(),
            pushed: BTreeSet::new(),
        };
        own.answered.extend(present.known_ended.iter().map(|task| (*task, device)));
        if own.active.insert(device, active).is_some() {
            return self.violated(format!("device {device} has two active sessions on a shard"));
        }
        let life = self.servers[server].life;
        self.after(DISPLACED_WITHIN_MS, Event::DoubleCheck { server, life, device });
    }

    pub(crate) fn on_offline(&mut self, server: usize, shard: usize, row: &PresenceRow) {
        let device = row.device;
        self.say(format_args!(
            "server {} shard {shard}: device {device} offline, {}",
            server + 1,
            row.session
        ));
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let was = process.shards[shard].active.remove(&device);
        if was.is_none_or(|active| (active.boot, active.session) != (row.boot, row.session)) {
            self.violated(format!("device {device} goes offline with a session that was not online"));
        }
    }

    /// A newer session came some time ago: the older ones of the device are gone from this server.
    pub(crate) fn on_double_check(&mut self, server: usize, life: u64, device: DeviceId) {
        let simulated = &self.servers[server];
        let Some(process) = simulated.process.as_ref().filter(|_| simulated.life == life) else { return };
        let sessions = process.shards.iter().filter_map(|own| own.active.get(&device));
        let until_ms = self.now_ms.saturating_sub(DISPLACED_WITHIN_MS);
        if sessions.filter(|active| active.since_ms <= until_ms).count() > 1 {
            self.violated(format!("device {device} has two active sessions on server {}", server + 1));
        }
    }

    /// The hub holds as many as there are, and nobody else.
    pub(crate) fn check_hub(&mut self, server: usize, shard: usize) {
        let Some(process) = &self.servers[server].process else { return };
        let own = &process.shards[shard];
        let hub = own.shard.hub();
        let (sessions, channels) = (hub.sessions(), own.slots.len());
        let (online, active) = (hub.online(), own.active.len());
        if sessions != channels || online != active {
            self.violated(format!(
                "server {} shard {shard} holds {sessions} sessions, {online} of them online; there are {channels} \
                 channels, {active} of them active",
                server + 1
            ));
        }
    }
}
