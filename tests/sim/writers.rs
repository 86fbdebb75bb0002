//! The threads of a server that write, turn by turn: spool, presence list, courier, each the product's own.
//!
//! What takes time in the world takes it here between two turns: an fsync, a file's way, the rest after a disk that was full. A turn is
//! whole, but for a disk that dies at one of its writes: then the machine goes with it, and what the threads had already told each other
//! by then still counts. A sync that failed ends the process a moment later, as the product's main does.

use bgb_daemon::clock::Now;
use bgb_daemon::disk::{ReplaceError, SimFaults};
use bgb_protocol::file::FileKind;
use bgb_protocol::status::{StatusId, StatusMessage};
use bgb_server::spool::SpoolError;
use bgb_server::writers::{COURIER_REST, COURIER_ROUND, SPOOL_RETRY};

use crate::hosts::SITE_HOST;
use crate::servers::{MAIL_MS_MAX, SERVERS, SHARDS, Turns};
use crate::tally::Kind;
use crate::world::{Event, World};

/// How soon a full disk is tried again.
const RETRY_MS: u64 = SPOOL_RETRY.as_millis() as u64;
/// How long the courier rests after the inbox refused.
const COURIER_REST_MS: u64 = COURIER_REST.as_millis() as u64;
/// The courier looks so often for files.
const COURIER_ROUND_MS: u64 = COURIER_ROUND.as_millis() as u64;
/// A thread that fails tells main, which ends the process: within this.
const END_MS_MAX: u64 = 40;

impl World {
    /// Gives every thread that writes its next turn, where it has something to do.
    pub(crate) fn call_writers(&mut self, server: usize) {
        let (now_ms, stalled_until_ms) = (self.now_ms, self.servers[server].stalls_until_ms);
        let Some(process) = self.servers[server].process.as_ref().filter(|process| !process.is_failing)
        else {
            return;
        };
        let (has_items, file_due) = (process.spooler.has_items(), process.spooler.next_due_ms());
        let has_presence_mail = process.presence_mail.iter().any(|mail| !mail.is_empty());
        let presence_due = process.presence.next_due_ms();
        let has_messages = !process.messages.is_empty();
        let disk_stalled_until_ms = stalled_until_ms;
        let stalled_until_ms = stalled_until_ms.max(process.turns.spool_rests_until_ms);
        let soon_ms = now_ms.max(stalled_until_ms) + self.weather.sync_ms_max;
        if has_items && process.turns.spool_ms.is_none_or(|at_ms| at_ms > soon_ms) {
            let at_ms = now_ms.max(stalled_until_ms) + self.dice.between(1, self.weather.sync_ms_max);
            self.arm_spool(server, at_ms);
        }
        if let Some(due_ms) = file_due {
            let at_ms = self.at_mono(due_ms).max(stalled_until_ms);
            self.arm_spool(server, at_ms.max(now_ms + 1));
        }
        let presence_at_ms = if has_presence_mail {
            now_ms + self.dice.below(MAIL_MS_MAX + 1)
        } else {
            self.at_mono(presence_due)
        };
        // The online list is written on the same disk: what shards tell of meanwhile waits, and comes in no order.
        let presence_at_ms = presence_at_ms.max(disk_stalled_until_ms);
        self.arm_presence(server, presence_at_ms);
        if has_messages {
            self.arm_courier(server, COURIER_ROUND_MS);
        }
    }

    fn arm_spool(&mut self, server: usize, at_ms: u64) {
        let (now_ms, life) = (self.now_ms, self.servers[server].life);
        let Some(process) = self.servers[server].process.as_mut() else { return };
        if process.turns.spool_ms.is_none_or(|armed_ms| at_ms < armed_ms) {
            process.turns.spool_ms = Some(at_ms);
            self.after(at_ms - now_ms, Event::SpoolTurn { server, life });
        }
    }

    fn arm_presence(&mut self, server: usize, at_ms: u64) {
        let (now_ms, life) = (self.now_ms, self.servers[server].life);
        let Some(process) = self.servers[server].process.as_mut() else { return };
        if process.turns.presence_ms.is_none_or(|armed_ms| at_ms < armed_ms) {
            process.turns.presence_ms = Some(at_ms);
            self.after(at_ms - now_ms, Event::PresenceTurn { server, life });
        }
    }

    fn arm_courier(&mut self, server: usize, after_ms: u64) {
        let (at_ms, life) = (self.now_ms + after_ms, self.servers[server].life);
        let Some(process) = self.servers[server].process.as_mut() else { return };
        if process.turns.courier_ms.is_none() {
            process.turns.courier_ms = Some(at_ms);
            self.after(after_ms, Event::CourierTurn { server, life });
        }
    }

    /// A file is finished: the courier finds it in one of its next rounds.
    fn call_courier(&mut self, server: usize) {
        let after_ms = self.dice.between(1, self.weather.file_ms_max);
        self.arm_courier(server, after_ms);
    }

    /// A thread's turn comes, unless it is void: the clocks, and what all disks have met so far.
    fn begin_turn(
        &mut self,
        server: usize,
        life: u64,
        of: impl Fn(&mut Turns) -> &mut Option<u64>,
    ) -> Option<(Now, [SimFaults; SERVERS])> {
        let (now_ms, now) = (self.now_ms, self.host_now(self.servers[server].clock.off_ms()));
        let is_present = self.servers[server].life == life;
        let process =
            self.servers[server].process.as_mut().filter(|process| is_present && !process.is_failing)?;
        let armed = of(&mut process.turns);
        if *armed != Some(now_ms) {
            return None;
        }
        *armed = None;
        Some((now, self.disk_faults()))
    }

    pub(crate) fn on_spool_turn(&mut self, server: usize, life: u64) {
        let Some((now, before)) = self.begin_turn(server, life, |turns| &mut turns.spool_ms) else { return };
        let now_ms = self.now_ms;
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let done = process.spooler.step(now, None, false);
        self.say(format_args!(
            "server {}: the spool's turn: {}",
            server + 1,
            if done.is_ok() { "done" } else { "failed" }
        ));
        if let Err(error) = &done {
            self.expect_reason("a spool", before, false, &error.to_string());
        }
        // Whatever it has said to be durable, shards acknowledge at their next turn, also when it fails right after.
        for shard in 0..SHARDS {
            self.wake_shard(server, shard);
        }
        match done {
            Ok(()) => self.call_writers(server),
            Err(SpoolError::Write { .. }) => {
                self.tally.count(Kind::SpoolWaitsForRoom);
                if let Some(process) = self.servers[server].process.as_mut() {
                    process.turns.spool_rests_until_ms = now_ms + RETRY_MS;
                }
                self.arm_spool(server, now_ms + RETRY_MS);
            }
            Err(error @ (SpoolError::Sync { .. } | SpoolError::Read { .. })) => {
                self.fail_server(server, &error.to_string());
            }
        }
        self.call_courier(server);
        self.check_dying(server);
    }

    pub(crate) fn on_presence_turn(&mut self, server: usize, life: u64) {
        let Some((now, before)) = self.begin_turn(server, life, |turns| &mut turns.presence_ms) else {
            return;
        };
        let now_ms = self.now_ms;
        let Some(process) = self.servers[server].process.as_mut() else { return };
        // Two shards tell of their sessions in no order.
        if self.dice.chance(500) {
            process.presence_mail.reverse();
        }
        for told in process.presence_mail.iter_mut().flat_map(|mail| mail.drain(..)) {
            process.presence.handle_told(told);
        }
        let done = process.presence.handle_time(now);
        if let Err(ReplaceError::Write(error) | ReplaceError::Sync(error)) = &done {
            self.expect_reason("a presence list", before, false, &error.to_string());
        }
        match done {
            Ok(None) => self.call_writers(server),
            Ok(Some(kind)) => {
                self.say(format_args!("server {} files presence: {kind:?}", server + 1));
                if kind == FileKind::PresenceFull {
                    self.tally.count(Kind::FullListWritten);
                }
                self.call_writers(server);
                self.call_courier(server);
            }
            Err(ReplaceError::Write(_)) => self.arm_presence(server, now_ms + RETRY_MS),
            Err(ReplaceError::Sync(error)) => self.fail_server(server, &error.to_string()),
        }
        self.check_dying(server);
    }

    pub(crate) fn on_courier_turn(&mut self, server: usize, life: u64) {
        let Some((now, before)) = self.begin_turn(server, life, |turns| &mut turns.courier_ms) else {
            return;
        };
        let Some(process) = self.servers[server].process.as_mut() else { return };
        while let Ok(message) = process.messages.try_recv() {
            if is_complaint(&message) {
                return self.violated(format!("server {} says: {}", server + 1, message.text));
            }
            process.courier.handle_message(message);
        }
        let round = process.courier.run(now);
        if round.carried > 0 {
            self.say(format_args!("server {}: the courier has carried {} files", server + 1, round.carried));
            self.hold_up_file(server);
            self.inbox_changes();
        }
        if let Some(error) = round.ended.as_ref().or(round.failed.as_ref()) {
            let is_inbox_away = !self.hosts[SITE_HOST].has_power();
            self.expect_reason("a courier", before, is_inbox_away, &error.to_string());
        }
        if let Some(error) = round.ended {
            self.fail_server(server, &error.to_string());
        } else if round.failed.is_some() {
            self.tally.count(Kind::CourierHeldUp);
            self.arm_courier(server, COURIER_REST_MS);
        }
        self.check_dying(server);
    }

    /// The last turns of a server that stops: what is durable goes into files, and what can go to the inbox goes.
    pub(crate) fn finish_writers(&mut self, server: usize) {
        let (now, before) = (self.host_now(self.servers[server].clock.off_ms()), self.disk_faults());
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let spooled = loop {
            let done = process.spooler.step(now, None, true);
            if done.is_err() || !process.spooler.has_items() {
                break done;
            }
        };
        for told in process.presence_mail.iter_mut().flat_map(|mail| mail.drain(..)) {
            process.presence.handle_told(told);
        }
        // As the product does: what cannot be written now is in the log, or in the next start's full list.
        let listed = process.presence.finish(now);
        while let Ok(message) = process.messages.try_recv() {
            if is_complaint(&message) {
                return self.violated(format!("server {} says: {}", server + 1, message.text));
            }
            process.courier.handle_message(message);
        }
        let round = process.courier.run(now);
        if round.carried > 0 {
            self.inbox_changes();
        }
        let is_inbox_away = !self.hosts[SITE_HOST].has_power();
        if let Err(error) = spooled {
            self.expect_reason("a spool that ends", before, false, &error.to_string());
        }
        if let Err(ReplaceError::Write(error) | ReplaceError::Sync(error)) = listed {
            self.expect_reason("a presence list that ends", before, false, &error.to_string());
        }
        if let Some(error) = round.ended.or(round.failed) {
            self.expect_reason("a courier that ends", before, is_inbox_away, &error.to_string());
        }
    }

    fn fail_server(&mut self, server: usize, why: &str) {
        let life = self.servers[server].life;
        let Some(process) = self.servers[server].process.as_mut() else { return };
        process.is_failing = true;
        self.say(format_args!("server {} fails: {why}", server + 1));
        let after_ms = self.dice.between(1, END_MS_MAX);
        self.after(after_ms, Event::ServerFails { server, life });
    }

    /// A disk that has died takes its machine along, a moment after whoever met it: others may have spoken in between.
    fn check_dying(&mut self, server: usize) {
        if self.servers[server].process.as_ref().is_some_and(|process| process.is_failing) {
            return;
        }
        self.check_hosts();
    }
}

/// Whether a server complains of what the site has given it.
fn is_complaint(message: &StatusMessage) -> bool {
    [StatusId::OrderRefused, StatusId::QueueRowUnreadable].iter().any(|id| message.id == id.number())
}
