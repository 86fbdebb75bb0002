//! The site: its manager, its queue and its administrator, as plain as they can be.
//!
//! Rows of the queue are really signed and really encoded, and are read back as the broker reads them. What the manager does
//! with results and presence is modelled: the first final word counts, the newest session wins, a full list ends whom it leaves
//! out, and a session that is older than another is ended by a row of the queue.
//!
//! The administrator starts tasks of all kinds, cancels some, blocks devices for a while and assigns policies.

use std::collections::{BTreeMap, BTreeSet};

use bgb_hub::Order;
use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::file::presence::{Presence, PresenceRow};
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::head::{HEAD_INTERVAL_MS, HeadStatement, SignedHead};
use bgb_protocol::ids::{BootId, DeviceId, Generation, SessionNumber, SiteCode, TaskId, UnixMillis};
use bgb_protocol::policy::{PolicyScope, PolicyStatement, SignedPolicy};
use bgb_protocol::queue::{Bitmap, QueueItem};
use bgb_protocol::signature::{SigningKey, TrustedKeys};
use bgb_protocol::state::TaskState;
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{CancelStatement, SignedCancel, SignedTask, TaskStatement};

use crate::agents::Power;
use crate::dice::Dice;
use crate::model::{Ring, TaskFacts};
use crate::spool::is_final;
use crate::tally::Kind;
use crate::world::{Event, World};

/// A committed row is handed to the shards within 10 ms; where its bell is missed, within 250 ms (the broker's look).
const BELL_MS_MAX: u64 = 10;
const MISSED_BELL_MS: u64 = 250;
/// Blocks and the like are valid as long as the world.
const FOR_EVER_MS: u64 = 1 << 40;
/// A head is of use to a server that starts until some newer ones must have come.
const HEAD_VALID_MS: u64 = 5 * HEAD_INTERVAL_MS;

/// The site.
pub(crate) struct Site {
    pub(crate) code: SiteCode,
    pub(crate) trusted: TrustedKeys,
    pub(crate) blocked: BTreeSet<DeviceId>,
    key: SigningKey,
    generation: Generation,
    rows: Vec<Row>,
    seen: BTreeMap<DeviceId, Seen>,
    tasks_started: u64,
    policies: u64,
}

#[derive(Debug)]
struct Row {
    order: Order,
    valid_until: UnixMillis,
}

/// What the manager holds of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) boot: BootId,
    pub(crate) session: SessionNumber,
    /// The server where it is online.
    pub(crate) online_at: Option<usize>,
    last_server: usize,
}

impl Site {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let key = SigningKey::from_seed(dice.bytes());
        Self {
            code: "SIM".parse().expect("three capital letters"),
            trusted: TrustedKeys::new([key.public()]),
            blocked: BTreeSet::new(),
            key,
            generation: Generation(dice.bytes()),
            rows: Vec::new(),
            seen: BTreeMap::new(),
            tasks_started: 0,
            policies: 0,
        }
    }

    /// The valid rows from a place on, as the broker hands them on.
    pub(crate) fn orders_from(&self, position: usize, now: UnixMillis) -> Vec<Order> {
        let rows = self.rows[position..].iter().filter(|row| row.valid_until > now);
        rows.map(|row| row.order.clone()).collect()
    }

    pub(crate) fn row_count(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn seen(&self, device: DeviceId) -> Option<Seen> {
        self.seen.get(&device).copied()
    }
}

impl World {
    /// Rows are committed, and servers get to know of them.
    fn commit(&mut self, items: &[QueueItem], valid_until: UnixMillis) {
        for item in items {
            let read = QueueItem::decode(&item.encode()).map_err(|error| error.to_string());
            match read.and_then(|item| Order::read(item).map_err(|error| error.to_string())) {
                Ok(order) => self.site.rows.push(Row { order, valid_until }),
                Err(error) => self.violated(format!("a {} row cannot be read back: {error}", item.kind())),
            }
        }
        for server in 0..self.servers.len() {
            let life = self.servers[server].life;
            let after_ms =
                if self.dice.chance(100) { MISSED_BELL_MS } else { self.dice.between(1, BELL_MS_MAX) };
            self.after(after_ms, Event::OrdersCome { server, life });
        }
    }

    fn for_ever(&self) -> UnixMillis {
        self.unix().plus(FOR_EVER_MS)
    }

    /// The manager signs how far the queue has come, and the time.
    pub(crate) fn on_head_due(&mut self) {
        let statement = HeadStatement {
            site: self.site.code,
            generation: self.site.generation,
            sequence: self.site.rows.len() as u64,
            time: self.unix(),
        };
        let signed = SignedHead::sign(statement, &self.site.key).bytes().to_vec();
        let valid_until = self.unix().plus(HEAD_VALID_MS);
        self.commit(&[QueueItem::Head { signed }], valid_until);
        self.after(HEAD_INTERVAL_MS, Event::HeadDue);
    }

    pub(crate) fn on_administrator_acts(&mut self) {
        match self.dice.below(100) {
            0..70 => self.start_some_task(),
            70..86 => self.cancel_some_task(),
            86..93 if !self.has_healed() => self.block_some_device(),
            _ => self.assign_policy(),
        }
        let after_ms = self.dice.around(self.weather.task_gap_ms);
        self.after(after_ms, Event::AdministratorActs);
    }

    fn start_some_task(&mut self) {
        let action = self.dice.pick(&[
            Action::Ping,
            Action::Ping,
            Action::DownloadPolicy,
            Action::CollectInventory,
            Action::UpdateDefinitions,
            Action::QuickScan,
            Action::QuickScan,
            Action::FullScan,
        ]);
        let mut targets = self.some_targets(700);
        if targets.is_empty() || self.dice.chance(200) {
            // Somebody who is never there, so that the set is not just the present devices.
            targets.insert(DeviceId(self.dice.between(5_000, 9_000) as u32));
        }
        let starts_in_ms = if self.dice.chance(150) { self.dice.between(1_000, 240_000) } else { 0 };
        let valid_ms = self.dice.between(60_000, self.weather.validity_ms_max);
        let is_in_rings = self.dice.chance(150);
        self.start_task(action, targets, starts_in_ms, valid_ms, is_in_rings);
    }

    /// So many devices in a thousand. In some worlds nothing more is sent to those that are switched off for good: then only the
    /// missing keepalive tells that they are gone.
    pub(crate) fn some_targets(&mut self, per_mille: u64) -> BTreeSet<DeviceId> {
        let mut targets = BTreeSet::new();
        for machine in &self.machines {
            let is_left_alone = machine.power == Power::OffForGood && self.weather.leaves_the_dead_alone;
            if self.dice.chance(per_mille) && !is_left_alone {
                targets.insert(machine.device);
            }
        }
        targets
    }

    /// A task and its release, in one transaction.
    pub(crate) fn start_task(
        &mut self,
        action: Action,
        targets: BTreeSet<DeviceId>,
        starts_in_ms: u64,
        valid_ms: u64,
        is_in_rings: bool,
    ) {
        let not_before = self.unix().plus(starts_in_ms);
        let expires = not_before.plus(valid_ms);
        self.site.tasks_started += 1;
        let task = task_id(self.unix(), self.site.tasks_started);
        let Some(set) = TargetSet::new(targets.iter().map(|device| device.0).collect()) else { return };
        let statement = TaskStatement {
            site: self.site.code,
            task,
            action: action.code(),
            parameters: Parameters::none(),
            targets: set.digest(),
            not_before,
            expires,
            approval: None,
        };
        let signed = SignedTask::sign(statement, &self.site.key).bytes().to_vec();
        let Bitmap(bitmap) = Bitmap::of(set.devices());
        let first_ring = is_in_rings.then(|| targets.iter().step_by(2).copied().collect::<BTreeSet<_>>());
        self.say(format_args!(
            "task {task}: {action} for {targets:?}, starts in {starts_in_ms} ms, valid {valid_ms} ms, rings: {is_in_rings}"
        ));
        let rings = vec![Ring { from: not_before, committed: self.unix(), devices: first_ring.clone() }];
        let facts = TaskFacts { action, targets, not_before, expires, rings, cancelled: None };
        self.model.tasks.insert(task, facts);
        self.tally.count(Kind::TaskStarted);
        if starts_in_ms > 0 {
            self.tally.count(Kind::TaskForLater);
        }
        if is_in_rings {
            self.tally.count(Kind::TaskInRings);
            let after_ms = starts_in_ms + self.dice.between(1_000, valid_ms / 2);
            self.after(after_ms, Event::ReleaseDue { task });
        }
        let devices = first_ring.map(|ring| Bitmap::of(&ring.iter().map(|device| device.0).collect()));
        let release = QueueItem::Release { task, devices, from: not_before };
        self.commit(&[QueueItem::Task { signed, targets: bitmap }, release], expires);
    }

    /// The second ring of a task: everybody.
    pub(crate) fn on_release_due(&mut self, task: TaskId) {
        let (from, committed) = (self.unix(), self.unix());
        let Some(facts) = self.model.tasks.get_mut(&task) else { return };
        facts.rings.push(Ring { from, committed, devices: None });
        let expires = facts.expires;
        self.say(format_args!("task {task} is released to all its targets"));
        self.commit(&[QueueItem::Release { task, devices: None, from }], expires);
    }

    fn cancel_some_task(&mut self) {
        let now = self.unix();
        let open = |facts: &TaskFacts| facts.cancelled.is_none() && facts.expires > now;
        let valid: Vec<_> =
            self.model.tasks.iter().filter(|(_, facts)| open(facts)).map(|(task, _)| *task).collect();
        if valid.is_empty() {
            return;
        }
        // The newest one often: so that cancels overtake.
        let task = if self.dice.chance(500) { valid[valid.len() - 1] } else { self.dice.pick(&valid) };
        let Some(facts) = self.model.tasks.get_mut(&task) else { return };
        facts.cancelled = Some(now);
        let expires = facts.expires;
        self.say(format_args!("task {task} is cancelled"));
        self.tally.count(Kind::TaskCancelled);
        let statement = CancelStatement { site: self.site.code, task, expires, cancelled: now };
        let signed = SignedCancel::sign(statement, &self.site.key).bytes().to_vec();
        self.commit(&[QueueItem::Cancel { signed }], expires);
    }

    fn block_some_device(&mut self) {
        let agent = self.dice.place(self.machines.len());
        let device = self.machines[agent].device;
        if !self.site.blocked.insert(device) {
            return;
        }
        self.say(format_args!("device {device} is blocked"));
        let for_ever = self.for_ever();
        self.commit(&[QueueItem::Block { device }], for_ever);
        if self.dice.chance(800) {
            let left_ms = self.weather.heals_at_ms - self.now_ms;
            let after_ms = self.dice.between(1, 120_000).min(left_ms);
            self.after(after_ms, Event::UnblockDue { device });
        }
    }

    pub(crate) fn on_unblock_due(&mut self, device: DeviceId) {
        self.site.blocked.remove(&device);
        self.say(format_args!("device {device} is unblocked"));
        let for_ever = self.for_ever();
        self.commit(&[QueueItem::Unblock { device }], for_ever);
    }

    fn assign_policy(&mut self) {
        self.site.policies += 1;
        let version = self.site.policies;
        let keepalive_secs = self.dice.between(20, u64::from(self.weather.keepalive_secs));
        let settings = format!("{{\"keepalive_seconds\":{keepalive_secs}}}");
        let devices =
            self.dice.chance(400).then(|| self.machines.iter().step_by(2).map(|machine| machine.device.0));
        let set = devices.and_then(|devices| TargetSet::new(devices.collect()));
        let scope = set.as_ref().map_or(PolicyScope::Everyone, |set| PolicyScope::Set(set.digest()));
        let statement = PolicyStatement {
            site: self.site.code,
            name: self.dice.pick(&["default", "offices", "servers"]).to_owned(),
            version,
            priority: self.dice.below(3) as i32,
            scope,
            issued: self.unix(),
            settings: self.dice.chance(850).then_some(settings),
        };
        self.say(format_args!("policy {} version {version} is assigned", statement.name));
        let signed = SignedPolicy::sign(statement, &self.site.key).bytes().to_vec();
        let devices = set.as_ref().map(|set| Bitmap::of(set.devices()));
        let for_ever = self.for_ever();
        self.commit(&[QueueItem::Policy { signed, devices }], for_ever);
    }

    /// A certificate counts no more.
    pub(crate) fn revoke(&mut self, fingerprint: [u8; 32]) {
        let for_ever = self.for_ever();
        self.commit(&[QueueItem::Revoke { fingerprint }], for_ever);
    }

    /// A file of a server's presence reaches the manager.
    pub(crate) fn on_presence_comes(&mut self, server: usize, is_full: bool, rows: &[PresenceRow]) {
        self.say(format_args!("the site hears of server {}'s presence, {} rows", server + 1, rows.len()));
        for row in rows {
            match row.presence {
                Presence::Online(_) => self.on_seen_online(server, row),
                Presence::Offline { .. } => {
                    let ends = |seen: &&mut Seen| {
                        (seen.boot, seen.session, seen.online_at) == (row.boot, row.session, Some(server))
                    };
                    if let Some(seen) = self.site.seen.get_mut(&row.device).filter(ends) {
                        seen.online_at = None;
                    }
                }
            }
        }
        if is_full {
            let listed: BTreeSet<_> = rows.iter().map(|row| row.device).collect();
            for (device, seen) in &mut self.site.seen {
                if seen.online_at == Some(server) && !listed.contains(device) {
                    seen.online_at = None;
                }
            }
        }
    }

    fn on_seen_online(&mut self, server: usize, row: &PresenceRow) {
        let PresenceRow { device, boot, session, .. } = *row;
        let new = Seen { boot, session, online_at: Some(server), last_server: server };
        let older = match self.site.seen.get(&device).copied() {
            Some(seen) if (seen.boot, seen.session) == (boot, session) => {
                self.site.seen.insert(device, new);
                return;
            }
            Some(seen) if seen.session > session => (boot, session, server),
            Some(seen) => {
                self.site.seen.insert(device, new);
                if seen.online_at.is_none() || seen.last_server == server {
                    return;
                }
                (seen.boot, seen.session, seen.last_server)
            }
            None => {
                self.site.seen.insert(device, new);
                return;
            }
        };
        let (boot, session, at) = older;
        self.say(format_args!("the site ends session {session} of device {device} at server {}", at + 1));
        let valid_until = self.unix().plus(HEAD_VALID_MS);
        self.commit(&[QueueItem::Supersede { device, boot, session }], valid_until);
    }

    /// A file of results reaches the manager.
    pub(crate) fn on_results_come(&mut self, rows: &[ResultRow]) {
        self.say(format_args!("the site hears {} words", rows.len()));
        for row in rows.iter().filter(|row| is_final(row)) {
            let DeviceWord::Final(result) = &row.word else { continue };
            let Some(machine) = self.machines.iter().find(|machine| machine.device == row.device) else {
                self.violated(format!("a result by device {}, which is not there", row.device));
                return;
            };
            let statement = match (result.read(), result.verify(&machine.public)) {
                (Ok(statement), Ok(())) => statement,
                (read, verified) => {
                    let faults = (read.err(), verified.err());
                    return self.violated(format!("a result of {} does not hold: {faults:?}", row.task));
                }
            };
            if (statement.task, statement.device) != (row.task, row.device) {
                return self.violated(format!("a result of {} says that it is another's", row.task));
            }
            match self.model.on_counted(&statement) {
                Ok(true) => self.count_state(statement.state),
                Ok(false) => {}
                Err(what) => return self.violated(what),
            }
        }
    }

    fn count_state(&mut self, state: TaskState) {
        match state {
            TaskState::Succeeded => self.tally.count(Kind::EndedSucceeded),
            TaskState::Failed => self.tally.count(Kind::EndedFailed),
            TaskState::Interrupted => self.tally.count(Kind::EndedInterrupted),
            TaskState::Refused => self.tally.count(Kind::EndedRefused),
            TaskState::Cancelled => self.tally.count(Kind::EndedCancelled),
            TaskState::Received | TaskState::Running | TaskState::NoAnswer => {}
        }
    }
}

/// An id as UUID version 7 has it: the time in milliseconds, then what tells it apart.
fn task_id(now: UnixMillis, number: u64) -> TaskId {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&now.0.to_be_bytes()[2..]);
    bytes[6] = 0x70;
    bytes[8] = 0x80;
    bytes[12..].copy_from_slice(&(number as u32).to_be_bytes());
    TaskId::from_bytes(bytes)
}
