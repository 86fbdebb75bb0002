//! The administrator: orders of all kinds, by the manager's own face, and what the model is told of them.
//!
//! Some rows of the queue that hubs heed are not written by any order yet: tasks that begin later, releases in rings, certificates that
//! are revoked. They are written here as a manager would write them, so that hubs and agents are held to them already.

use std::collections::BTreeSet;

use bgb_manager::orders::{Answer, Order};
use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::api::{ALL_DEVICES, ChangeMembers, ErrorCode, PutPolicy, StartTask, Target};
use bgb_protocol::ids::{DeviceId, TaskId, UnixMillis};
use bgb_protocol::policy::PolicySettings;
use bgb_protocol::queue::{Bitmap, QueueItem};
use bgb_protocol::task::SignedTask;
use bgb_site::Store;
use bgb_site::store::{NewTask, Targets};
use rusqlite::Connection;
use uuid::Builder;

use crate::agents::Power;
use crate::model::{Bar, Ring, TaskFacts};
use crate::server_laws::HEEDED_WITHIN_MS;
use crate::site;
use crate::tally::Kind;
use crate::world::{Event, World};

/// The collection that the administrator has made.
const OFFICES: &str = "offices";
/// What policies are called.
const NAMES: [&str; 3] = ["default", "offices", "servers"];
/// Revoked certificates are heeded as long as the world lasts.
const FOR_EVER_MS: u64 = 1 << 40;

impl World {
    pub(crate) fn on_administrator_acts(&mut self) {
        if self.site.manager.is_none() {
            self.tally.count(Kind::NobodyTakesOrders);
        } else {
            match self.dice.below(100) {
                0..70 => self.start_some_task(),
                70..86 => self.cancel_some_task(),
                86..93 if !self.has_healed() => self.block_some_device(),
                93..95 if !self.has_healed() => self.change_offices(),
                95.. if !self.has_healed() => self.assign_policy(),
                _ => self.start_some_task(),
            }
        }
        let after_ms = self.dice.around(self.weather.task_gap_ms);
        self.after(after_ms, Event::AdministratorActs);
    }

    /// Carries out an order that nothing speaks against.
    fn order_done(&mut self, order: Order) -> Option<Answer> {
        let what = format!("{order:?}");
        match self.order(order)? {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.violated(format!("{what} is refused: {}", error.error));
                None
            }
        }
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
        let valid_ms = self.dice.between(60_000, self.weather.validity_ms_max) / 1_000 * 1_000;
        let targets = self.some_targets(700);
        match self.dice.below(100) {
            0..15 => {
                let starts_in_ms = self.dice.between(1_000, 240_000);
                self.start_task_ahead(action, &targets, starts_in_ms, valid_ms, false);
            }
            15..30 => self.start_task_ahead(action, &targets, 0, valid_ms, true),
            30..50 => {
                self.start_task(action, None, valid_ms);
            }
            _ => {
                self.start_task(action, Some(&targets), valid_ms);
            }
        }
    }

    /// So many devices in a thousand, one at least. In some worlds nothing more is sent to those that are switched off for good: then only
    /// the missing keepalive tells that they are gone.
    pub(crate) fn some_targets(&mut self, per_mille: u64) -> BTreeSet<DeviceId> {
        let mut targets = BTreeSet::new();
        for machine in &self.machines {
            let is_left_alone = machine.power == Power::OffForGood && self.weather.leaves_the_dead_alone;
            if self.dice.chance(per_mille) && !is_left_alone {
                targets.insert(machine.device);
            }
        }
        if targets.is_empty() || self.dice.chance(200) {
            // Somebody who is never there, so that the set is not just the present devices.
            targets.extend(site::devices().last().map(|device| device.number));
        }
        targets
    }

    /// A task for these devices, or for all; `None` when nobody takes the order, or nobody can be asked.
    pub(crate) fn start_task(
        &mut self,
        action: Action,
        targets: Option<&BTreeSet<DeviceId>>,
        valid_ms: u64,
    ) -> Option<TaskId> {
        let all = || site::devices().iter().map(|device| device.number).collect();
        let meant: BTreeSet<DeviceId> = targets.cloned().unwrap_or_else(all);
        let asked: BTreeSet<DeviceId> =
            meant.iter().copied().filter(|device| self.is_active(*device)).collect();
        let target = match targets {
            None => Target::Collection(ALL_DEVICES.to_owned()),
            Some(_) => Target::Devices(meant.iter().map(ToString::to_string).collect()),
        };
        let order = StartTask { action, target, validity_seconds: Some(valid_ms / 1_000), digest: None };
        let row = match self.order(Order::StartTask(order))? {
            Ok(Answer::Task(row)) => row,
            Err(_) if asked.is_empty() => return None,
            other => {
                self.violated(format!("{action} for {meant:?} is not started: {other:?}"));
                return None;
            }
        };
        let counted: u64 = row.counts.targets;
        // Numbers that were drawn and are nobody's are among all.
        let nobody = if targets.is_none() { site::NUMBERS_OF_NOBODY } else { 0 };
        if counted != asked.len() as u64 + nobody {
            self.violated(format!("{counted} devices are asked where {asked:?} can be"));
        }
        let now = self.unix();
        self.note_task(row.task, action, asked, (now, row.expires), None);
        Some(row.task)
    }

    /// A task that begins later or goes out in two rings: no order of the manager does that yet.
    fn start_task_ahead(
        &mut self,
        action: Action,
        targets: &BTreeSet<DeviceId>,
        starts_in_ms: u64,
        valid_ms: u64,
        is_in_rings: bool,
    ) {
        let now = self.unix();
        let not_before = now.plus(starts_in_ms);
        let asked: BTreeSet<DeviceId> =
            targets.iter().copied().filter(|device| self.is_active(*device)).collect();
        if asked.is_empty() {
            return;
        }
        let random = self.dice.bytes();
        let new = NewTask {
            id: TaskId(Builder::from_unix_timestamp_millis(now.0, &random).into_uuid()),
            action,
            parameters: Parameters::none(),
            targets: Targets::Devices(asked.iter().copied().collect()),
            expected: None,
            not_before,
            validity_ms: valid_ms,
            by: "somebody".to_owned(),
        };
        let first_ring = is_in_rings.then(|| asked.iter().step_by(2).copied().collect::<BTreeSet<_>>());
        let (database, key) = (self.site.database(), &self.site.key);
        let started = Store::open(&database)
            .and_then(|mut store| store.start_task(&new, now, |statement| SignedTask::sign(statement, key)));
        let started = match started {
            Ok(started) => started,
            Err(error) => return self.violated(format!("a task cannot be started: {error}")),
        };
        if let Some(ring) = &first_ring {
            let devices = Some(Bitmap::of(&ring.iter().map(|device| device.0).collect()));
            let item = QueueItem::Release { task: started.id, devices, from: not_before };
            let sql = "UPDATE queue SET payload = ?1 WHERE sequence = (SELECT max(sequence) FROM queue WHERE kind = ?2)";
            self.write_database(sql, &[&item.encode(), &item.kind()]);
            self.tally.count(Kind::TaskInRings);
            let after_ms = self.dice.between(1_000, valid_ms / 2);
            self.after(after_ms, Event::ReleaseDue { task: started.id });
        }
        if starts_in_ms > 0 {
            self.tally.count(Kind::TaskForLater);
        }
        self.note_task(started.id, action, asked, (not_before, started.expires), first_ring);
        self.ring_bell();
    }

    fn note_task(
        &mut self,
        task: TaskId,
        action: Action,
        targets: BTreeSet<DeviceId>,
        (not_before, expires): (UnixMillis, UnixMillis),
        first_ring: Option<BTreeSet<DeviceId>>,
    ) {
        self.tally.count(Kind::TaskStarted);
        let committed = self.unix();
        self.say(format_args!(
            "task {task}: {action} for {targets:?}, begins in {} ms, valid {} ms, first ring {first_ring:?}",
            not_before.since(committed),
            expires.since(not_before)
        ));
        let rings = vec![Ring { from: not_before, committed, devices: first_ring, is_disowned: false }];
        let facts =
            TaskFacts { action, targets, not_before, expires, rings, cancelled: None, is_disowned: false };
        self.model.tasks.insert(task, facts);
    }

    /// The second ring of a task: everybody.
    pub(crate) fn on_release_due(&mut self, task: TaskId) {
        let (from, committed) = (self.unix(), self.unix());
        let Some(facts) = self.model.tasks.get_mut(&task).filter(|facts| !facts.is_disowned) else { return };
        facts.rings.push(Ring { from, committed, devices: None, is_disowned: false });
        let expires = facts.expires;
        self.say(format_args!("task {task} is released to all its targets"));
        self.add_row(&QueueItem::Release { task, devices: None, from }, expires);
    }

    /// A certificate counts no more.
    pub(crate) fn revoke(&mut self, fingerprint: [u8; 32]) {
        let for_ever = self.unix().plus(FOR_EVER_MS);
        self.add_row(&QueueItem::Revoke { fingerprint }, for_ever);
        self.bar(Bar::Certificate(fingerprint));
    }

    fn add_row(&mut self, item: &QueueItem, valid_until: UnixMillis) {
        let sql = "INSERT INTO queue (kind, payload, valid_until) VALUES (?1, ?2, ?3)";
        self.write_database(sql, &[&item.kind(), &item.encode(), &(valid_until.0 as i64)]);
        self.ring_bell();
    }

    fn write_database(&mut self, sql: &str, values: &[&dyn rusqlite::ToSql]) {
        let written =
            Connection::open(self.site.database()).and_then(|connection| connection.execute(sql, values));
        if let Err(error) = written {
            self.violated(format!("the database cannot be written: {error}"));
        }
    }

    fn cancel_some_task(&mut self) {
        let now = self.unix();
        let is_open = |task: &TaskId, facts: &TaskFacts| {
            let is_over = facts.cancelled.is_some() || facts.expires <= now || facts.is_disowned;
            !is_over && !self.peace_tasks.contains(task)
        };
        let tasks = self.model.tasks.iter();
        let valid: Vec<_> =
            tasks.filter(|(task, facts)| is_open(task, facts)).map(|(task, _)| *task).collect();
        if valid.is_empty() {
            return;
        }
        // The newest one often: so that cancels overtake.
        let task = if self.dice.chance(500) { valid[valid.len() - 1] } else { self.dice.pick(&valid) };
        if self.order_done(Order::CancelTask(task)).is_none() {
            return;
        }
        if let Some(facts) = self.model.tasks.get_mut(&task) {
            facts.cancelled = Some(now);
        }
        self.say(format_args!("task {task} is cancelled"));
        self.after(HEEDED_WITHIN_MS, Event::CancelDue(task));
        self.tally.count(Kind::TaskCancelled);
    }

    fn block_some_device(&mut self) {
        let agent = self.dice.place(self.machines.len());
        let device = self.machines[agent].device;
        if self.model.is_blocked(device) {
            return;
        }
        if self.order_done(Order::BlockDevice(device.to_string())).is_none() {
            return;
        }
        self.bar(Bar::Block(device));
        self.tally.count(Kind::DeviceBlocked);
        self.say(format_args!("device {device} is blocked"));
        if self.dice.chance(800) {
            let left_ms = self.weather.heals_at_ms - self.now_ms;
            let after_ms = self.dice.between(1, 120_000).min(left_ms);
            self.after(after_ms, Event::UnblockDue { device });
        }
    }

    fn bar(&mut self, bar: Bar) {
        self.model.bar(bar, self.unix());
        self.after(HEEDED_WITHIN_MS, Event::BarsDue);
    }

    pub(crate) fn on_unblock_due(&mut self, device: DeviceId) {
        if !self.model.is_blocked(device) {
            return;
        }
        if self.site.manager.is_none() {
            // Later, when somebody takes orders again.
            return self.after(1_000, Event::UnblockDue { device });
        }
        if self.order_done(Order::UnblockDevice(device.to_string())).is_some() {
            self.model.unbar(Bar::Block(device));
            self.say(format_args!("device {device} is unblocked"));
        }
    }

    /// The collection of offices gets or loses some devices.
    fn change_offices(&mut self) {
        if !self.site.has_offices {
            self.site.has_offices = self.order_done(Order::CreateCollection(OFFICES.to_owned())).is_some();
        }
        let names = |machines: Vec<DeviceId>| machines.iter().map(ToString::to_string).collect();
        let offices = self.some_targets(500);
        let some: Vec<_> = offices.iter().copied().collect();
        let others = self.machines.iter().map(|machine| machine.device);
        let others: Vec<_> = others.filter(|device| !some.contains(device)).collect();
        let change = ChangeMembers { add: names(some), remove: names(others) };
        self.say(format_args!("the offices are {:?}", change.add));
        if self.order_done(Order::ChangeMembers(OFFICES.to_owned(), change)).is_some() {
            self.model.policies.set_offices(offices);
        }
    }

    fn assign_policy(&mut self) {
        let place = self.dice.place(NAMES.len());
        let name = NAMES[place].to_owned();
        let keepalive_secs = self.dice.between(20, u64::from(self.weather.keepalive_secs)) as u32;
        if self.dice.chance(150) {
            self.say(format_args!("policy {name} is withdrawn"));
            self.model.policies.withdraw(&name);
            // Perhaps there is none of this name, or none any more.
            if let Some(Err(error)) = self.order(Order::WithdrawPolicy(name))
                && error.code != ErrorCode::UnknownPolicy
            {
                self.violated(format!("a policy is not withdrawn: {}", error.error));
            }
            return;
        }
        let collection = (self.site.has_offices && self.dice.chance(400)).then(|| OFFICES.to_owned());
        let settings =
            PolicySettings { keepalive_seconds: Some(keepalive_secs), ..PolicySettings::default() };
        // Of three names each has its own, whatever is drawn.
        let priority = (self.dice.place(3) * NAMES.len() + place) as i32;
        let is_for_offices = collection.is_some();
        let put = PutPolicy { priority, collection, settings };
        self.say(format_args!("policy {name} is put: keepalive {keepalive_secs} s"));
        if self.order_done(Order::PutPolicy(name.clone(), put)).is_some() {
            self.model.policies.put(name, priority, is_for_offices, keepalive_secs);
        }
    }
}
