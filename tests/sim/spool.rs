//! What a server keeps for the site: results on its disk, and who is online.
//!
//! The spool is a model of the product's, and a plain one: results wait for an fsync, are durable when it returns, are
//! acknowledged then, and go into a file a little later. A server that dies loses what was not synced, or keeps some of it; it
//! may also die between a file and the removal of the log behind it, and then says the same results twice.
//!
//! The presence book is the list behind full and delta files, by the rule that an end changes only the very session that it
//! names.

use std::collections::BTreeMap;

use bgb_hub::Input;
use bgb_protocol::file::presence::{Presence, PresenceRow};
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::ids::DeviceId;

use crate::servers::SHARDS;
use crate::tally::Kind;
use crate::world::{Event, World};

/// From one delta of presence to the next (architecture: every few seconds).
const PRESENCE_DELTA_MS: u64 = 3_000;
/// From one file of results to the next.
const RESULTS_FILE_MS: u64 = 2_000;

/// A server's results.
#[derive(Debug, Default)]
pub(crate) struct Spool {
    /// Not yet on their way to the disk: shard, number, row.
    waiting: Vec<(usize, u64, ResultRow)>,
    syncing: Option<Vec<(usize, u64, ResultRow)>>,
    /// On the disk, in no file yet.
    durable: Vec<ResultRow>,
    /// What the last file said, while its log may still be there.
    filed: Vec<ResultRow>,
    hints: Vec<ResultRow>,
    file_is_due: bool,
    /// Until when the disk is slow.
    pub(crate) stalls_until_ms: u64,
    /// The next sync fails.
    pub(crate) next_sync_fails: bool,
    /// When the last file of this server reaches the site: files keep their order.
    file_comes_ms: u64,
}

/// A server's list of who is online.
#[derive(Debug, Default)]
pub(crate) struct PresenceBook {
    online: BTreeMap<DeviceId, PresenceRow>,
    changes: BTreeMap<DeviceId, PresenceRow>,
    file_due_ms: Option<u64>,
    next_full_ms: u64,
}

impl Spool {
    pub(crate) fn hint(&mut self, row: ResultRow) {
        self.hints.push(row);
    }

    /// Whether nothing is on its way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && self.syncing.is_none() && self.durable.is_empty()
    }
}

impl PresenceBook {
    fn take(&mut self, row: PresenceRow) {
        let same = |held: &PresenceRow| (held.boot, held.session) == (row.boot, row.session);
        match row.presence {
            Presence::Online(_) => {
                self.online.insert(row.device, row.clone());
            }
            Presence::Offline { .. } if self.online.get(&row.device).is_some_and(same) => {
                self.online.remove(&row.device);
            }
            Presence::Offline { .. } => return,
        }
        self.changes.insert(row.device, row);
    }
}

impl World {
    /// A server has started: what its disk still has goes into a file.
    pub(crate) fn after_spool_start(&mut self, server: usize) {
        self.servers[server].spool.file_is_due = false;
        if !self.servers[server].spool.durable.is_empty() {
            self.arm_spool_file(server);
        }
    }

    pub(crate) fn spool_keep(&mut self, server: usize, shard: usize, number: u64, row: ResultRow) {
        self.say(format_args!(
            "server {} spools the result of {} by device {}",
            server + 1,
            row.task,
            row.device
        ));
        self.servers[server].spool.waiting.push((shard, number, row));
        self.sync_spool(server);
    }

    fn sync_spool(&mut self, server: usize) {
        let (now_ms, life) = (self.now_ms, self.servers[server].life);
        let spool = &mut self.servers[server].spool;
        if spool.syncing.is_some() || spool.waiting.is_empty() {
            return;
        }
        spool.syncing = Some(std::mem::take(&mut spool.waiting));
        let stalled_ms = spool.stalls_until_ms.saturating_sub(now_ms);
        let after_ms = stalled_ms + self.dice.between(1, self.weather.sync_ms_max);
        self.after(after_ms, Event::SpoolSynced { server, life });
    }

    pub(crate) fn on_spool_synced(&mut self, server: usize, life: u64) {
        if self.servers[server].life != life || self.servers[server].process.is_none() {
            return;
        }
        if std::mem::take(&mut self.servers[server].spool.next_sync_fails) {
            self.tally.count(Kind::SpoolSyncFails);
            let off_ms = self.dice.between(200, 10_000);
            return self.kill_server(server, false, off_ms);
        }
        let synced = self.servers[server].spool.syncing.take().unwrap_or_default();
        let mut up_to = [0; SHARDS];
        for (shard, number, row) in synced {
            up_to[shard] = up_to[shard].max(number);
            self.make_durable(server, row);
        }
        self.say(format_args!("server {}: results up to {up_to:?} are durable", server + 1));
        for (shard, up_to) in up_to.into_iter().enumerate().filter(|(_, up_to)| *up_to > 0) {
            self.tell_hub(server, shard, Input::Durable { up_to });
        }
        self.arm_spool_file(server);
        self.sync_spool(server);
    }

    fn make_durable(&mut self, server: usize, row: ResultRow) {
        self.model.durable.insert((row.task, row.device));
        self.servers[server].spool.durable.push(row);
    }

    fn arm_spool_file(&mut self, server: usize) {
        let life = self.servers[server].life;
        if !std::mem::replace(&mut self.servers[server].spool.file_is_due, true) {
            self.after(RESULTS_FILE_MS, Event::SpoolFileDue { server, life });
        }
    }

    pub(crate) fn on_spool_file_due(&mut self, server: usize, life: u64) {
        if self.servers[server].life == life && self.servers[server].process.is_some() {
            self.file_results(server);
        }
    }

    fn file_results(&mut self, server: usize) {
        let spool = &mut self.servers[server].spool;
        spool.file_is_due = false;
        spool.filed = std::mem::take(&mut spool.durable);
        let mut rows = spool.filed.clone();
        rows.append(&mut spool.hints);
        let comes_ms = self.file_comes_ms(server);
        self.say(format_args!("server {} files {} words", server + 1, rows.len()));
        self.after(comes_ms - self.now_ms, Event::ResultsCome { rows });
    }

    /// When a file that is finished now reaches the site.
    fn file_comes_ms(&mut self, server: usize) -> u64 {
        let travels_ms = self.dice.between(20, self.weather.file_ms_max);
        let spool = &mut self.servers[server].spool;
        spool.file_comes_ms = spool.file_comes_ms.max(self.now_ms + travels_ms);
        spool.file_comes_ms
    }

    /// The server stops in order: all that it has goes to the site.
    pub(crate) fn finish_spool(&mut self, server: usize) {
        let spool = &mut self.servers[server].spool;
        let left: Vec<_> =
            spool.syncing.take().into_iter().flatten().chain(spool.waiting.drain(..)).collect();
        for (_, _, row) in left {
            self.make_durable(server, row);
        }
        self.file_results(server);
        self.servers[server].spool.filed.clear();
    }

    /// The server dies: what was not synced is gone, or some of it is not.
    pub(crate) fn break_spool(&mut self, server: usize) {
        let spool = &mut self.servers[server].spool;
        let mut unsynced: Vec<_> = spool.syncing.take().into_iter().flatten().collect();
        let kept = self.dice.place(unsynced.len() + 1);
        let lost = unsynced.split_off(kept).len() + std::mem::take(&mut spool.waiting).len();
        let is_said_again = self.dice.chance(300) && !spool.filed.is_empty();
        let filed = std::mem::take(&mut spool.filed);
        if is_said_again {
            spool.durable.extend(filed);
            self.tally.count(Kind::ResultFiledTwice);
        }
        spool.hints.clear();
        spool.stalls_until_ms = 0;
        spool.next_sync_fails = false;
        for (_, _, row) in unsynced {
            self.make_durable(server, row);
        }
        if lost > 0 {
            self.tally.count(Kind::ResultsLostUnsynced);
            self.say(format_args!("server {} loses {lost} results that it had not acknowledged", server + 1));
        }
    }

    /// The first file of a life is a full one, a delta's time after the start.
    pub(crate) fn after_presence_start(&mut self, server: usize) {
        self.arm_presence_file(server, PRESENCE_DELTA_MS);
    }

    pub(crate) fn presence_changes(&mut self, server: usize, row: PresenceRow) {
        let Some(process) = self.servers[server].process.as_mut() else { return };
        process.presence.take(row);
        if !process.presence.changes.is_empty() {
            self.arm_presence_file(server, PRESENCE_DELTA_MS);
        }
    }

    fn arm_presence_file(&mut self, server: usize, after_ms: u64) {
        let (due_ms, life) = (self.now_ms + after_ms, self.servers[server].life);
        let Some(process) = self.servers[server].process.as_mut() else { return };
        if process.presence.file_due_ms.is_none_or(|armed_ms| due_ms < armed_ms) {
            process.presence.file_due_ms = Some(due_ms);
            self.after(after_ms, Event::PresenceFileDue { server, life });
        }
    }

    pub(crate) fn on_presence_file_due(&mut self, server: usize, life: u64) {
        let (now_ms, full_ms) = (self.now_ms, self.weather.presence_full_ms);
        if self.servers[server].life != life {
            return;
        }
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let book = &mut process.presence;
        if book.file_due_ms != Some(now_ms) {
            return;
        }
        book.file_due_ms = None;
        let is_full = now_ms >= book.next_full_ms;
        let changes = std::mem::take(&mut book.changes);
        let rows = if is_full {
            book.next_full_ms = now_ms + full_ms;
            book.online.values().cloned().collect()
        } else {
            changes.into_values().collect()
        };
        let next_ms = book.next_full_ms.saturating_sub(now_ms);
        self.send_presence(server, is_full, rows);
        self.arm_presence_file(server, next_ms.min(full_ms));
    }

    fn send_presence(&mut self, server: usize, is_full: bool, rows: Vec<PresenceRow>) {
        self.say(format_args!("server {} files presence: {} rows, full: {is_full}", server + 1, rows.len()));
        let comes_ms = self.file_comes_ms(server);
        self.after(comes_ms - self.now_ms, Event::PresenceComes { server, is_full, rows });
    }

    /// The server stops in order: what has changed goes to the site.
    pub(crate) fn finish_presence(&mut self, server: usize) {
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let rows: Vec<_> = std::mem::take(&mut process.presence.changes).into_values().collect();
        if !rows.is_empty() {
            self.send_presence(server, false, rows);
        }
    }
}

/// Whether a word is a device's last on its task.
pub(crate) fn is_final(row: &ResultRow) -> bool {
    matches!(row.word, DeviceWord::Final(_))
}
