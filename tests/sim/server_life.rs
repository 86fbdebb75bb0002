//! The lives of servers: how they start, read the queue, lose it from sight, stop and are killed.
//!
//! It stands here for the product's broker: at the start and after a replaced database everything that is valid is read before
//! anybody may sign in; then rows are handed on as they come; and after a minute without the queue nobody signs in any
//! more. What is barred must have no session a second after the server has read so.
//!
//! A server that is killed loses its hubs, directory, presence and whatever its spool had not made durable.

use bgb_hub::{Input, Order};
use bgb_protocol::ids::UnixMillis;

use crate::network::{ConnId, End, Farewell};
use crate::servers::{Door, Process, SHARDS};
use crate::tally::Kind;
use crate::world::{Bar, Event, World};

/// The queue may be unreadable so long before sign-ins are refused (docs/promises.md).
const REFUSE_AFTER_MS: u64 = 60_000;
/// What is barred has no session after this time (docs/promises.md, invariant 9).
const BARRED_WITHIN_MS: u64 = 1_000;
/// How often a server that stops looks whether its sessions are gone, and how often at most.
const DRAIN_LOOK_MS: u64 = 200;
const DRAIN_LOOKS_MAX: u64 = 25;

impl World {
    pub(crate) fn start_server_after(&mut self, server: usize, after_ms: u64) {
        let simulated = &mut self.servers[server];
        simulated.starts += 1;
        let starts = simulated.starts;
        self.after(after_ms, Event::ServerStarts { server, starts });
    }

    /// The server starts: it reads the whole queue before it listens.
    pub(crate) fn on_server_starts(&mut self, server: usize, starts: u64) {
        let now_unix = self.unix();
        let simulated = &mut self.servers[server];
        if simulated.starts != starts || simulated.process.is_some() {
            return;
        }
        simulated.power_is_on = true;
        simulated.life += 1;
        let life = simulated.life;
        simulated.process = Some(Process::new(&simulated.options));
        self.say(format_args!("server {} starts, life {life}", server + 1));
        self.read_everything(server, now_unix);
        self.after_spool_start(server);
        self.after_presence_start(server);
        self.retransmit();
    }

    /// Reads every valid row anew, as at the start and after the database was replaced.
    pub(crate) fn read_everything(&mut self, server: usize, now: UnixMillis) {
        self.set_door(server, Door::Held);
        for shard in 0..SHARDS {
            self.tell_hub(server, shard, Input::Order(Order::Reset));
        }
        let Some(process) = self.servers[server].process.as_mut() else { return };
        process.barred.clear();
        process.position = 0;
        self.hand_on(server, now);
        self.set_door(server, Door::Open);
    }

    fn set_door(&mut self, server: usize, door: Door) {
        let Some(process) = self.servers[server].process.as_mut() else { return };
        if process.door == Door::Draining {
            return;
        }
        process.door = door;
        for shard in 0..SHARDS {
            self.tell_hub(server, shard, Input::SignIns { allowed: door == Door::Open });
        }
    }

    pub(crate) fn on_orders_come(&mut self, server: usize, life: u64) {
        let is_readable =
            |process: &Process| process.unreadable_since.is_none() && process.door != Door::Draining;
        if self.servers[server].life == life && self.servers[server].process.as_ref().is_some_and(is_readable)
        {
            let now = self.unix();
            self.hand_on(server, now);
        }
    }

    /// Hands the rows that are new and valid to the shards.
    fn hand_on(&mut self, server: usize, now: UnixMillis) {
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let rows = self.site.orders_from(process.position, now);
        process.position = self.site.row_count();
        for order in rows {
            self.note_order(server, &order);
            for shard in 0..SHARDS {
                self.tell_hub(server, shard, Input::Order(order.clone()));
            }
        }
    }

    fn note_order(&mut self, server: usize, order: &Order) {
        let life = self.servers[server].life;
        let Some(process) = self.servers[server].process.as_mut() else { return };
        let bar = match order {
            Order::Block { device } => Bar::Block(*device),
            Order::Revoke { fingerprint } => Bar::Certificate(*fingerprint),
            Order::Unblock { device } => {
                process.barred.remove(&Bar::Block(*device));
                return;
            }
            Order::Cancel { task, .. } => {
                process.cancelled.insert(*task);
                return;
            }
            _ => return,
        };
        process.barred.insert(bar);
        self.after(BARRED_WITHIN_MS, Event::BarCheck { server, life, bar });
    }

    /// A second has passed since the server heard that something is barred.
    pub(crate) fn on_bar_check(&mut self, server: usize, life: u64, bar: Bar) {
        let simulated = &self.servers[server];
        let Some(process) = simulated.process.as_ref().filter(|_| simulated.life == life) else { return };
        if !process.barred.contains(&bar) {
            return;
        }
        for shard in &process.shards {
            for (device, active) in &shard.active {
                let certificate = shard.fingerprint(active.channel).map(Bar::Certificate);
                if bar == Bar::Block(*device) || certificate == Some(bar) {
                    return self.violated(format!("device {device} has a session a second after {bar:?}"));
                }
            }
        }
    }

    /// The queue cannot be read for a while.
    pub(crate) fn lose_queue(&mut self, server: usize, for_ms: u64) {
        let (now_ms, life) = (self.now_ms, self.servers[server].life);
        let Some(process) = self.servers[server].process.as_mut() else { return };
        if process.unreadable_since.is_some() {
            return;
        }
        process.unreadable_since = Some(now_ms);
        self.tally.count(Kind::QueueUnreadable);
        self.say(format_args!("server {} cannot read the queue for {for_ms} ms", server + 1));
        self.after(for_ms, Event::QueueReadable { server, life });
        self.after(REFUSE_AFTER_MS, Event::SignInsHeld { server, life, since_ms: now_ms });
    }

    pub(crate) fn on_sign_ins_held(&mut self, server: usize, life: u64, since_ms: u64) {
        let is_same = |process: &Process| process.unreadable_since == Some(since_ms);
        if self.servers[server].life == life && self.servers[server].process.as_ref().is_some_and(is_same) {
            self.say(format_args!("server {} takes no sign-ins", server + 1));
            self.set_door(server, Door::Held);
        }
    }

    pub(crate) fn on_queue_readable(&mut self, server: usize, life: u64) {
        if self.servers[server].life != life {
            return;
        }
        let Some(process) = self.servers[server].process.as_mut() else { return };
        if process.unreadable_since.take().is_none() {
            return;
        }
        let was_held = process.door == Door::Held;
        self.say(format_args!("server {} can read the queue again", server + 1));
        self.on_orders_come(server, life);
        if was_held {
            self.set_door(server, Door::Open);
        }
    }

    /// The server stops as it is asked to: everybody is told, then the process ends.
    pub(crate) fn drain_server(&mut self, server: usize) {
        let life = self.servers[server].life;
        let Some(process) = self.servers[server].process.as_mut() else { return };
        if process.door == Door::Draining {
            return;
        }
        process.door = Door::Draining;
        self.tally.count(Kind::ServerDrained);
        self.say(format_args!("server {} stops", server + 1));
        for shard in 0..SHARDS {
            self.tell_hub(server, shard, Input::Drain);
        }
        self.after(DRAIN_LOOK_MS, Event::ServerDrained { server, life, looks: 1 });
    }

    pub(crate) fn on_server_drained(&mut self, server: usize, life: u64, looks: u64) {
        let simulated = &self.servers[server];
        let Some(process) = simulated.process.as_ref().filter(|_| simulated.life == life) else { return };
        let left: usize = process.shards.iter().map(|shard| shard.hub.sessions()).sum();
        if left > 0 && looks < DRAIN_LOOKS_MAX {
            return self.after(DRAIN_LOOK_MS, Event::ServerDrained { server, life, looks: looks + 1 });
        }
        if left > 0 {
            self.violated(format!(
                "server {} still holds {left} sessions 5 s after it began to stop",
                server + 1
            ));
        }
        self.finish_presence(server);
        self.finish_spool(server);
        self.end_connections(server, Farewell::Flushed);
        self.servers[server].process = None;
        self.say(format_args!("server {} has stopped", server + 1));
        let after_ms = self.dice.between(500, 20_000);
        self.start_server_after(server, after_ms);
    }

    /// The server's process dies, and perhaps its machine with it.
    pub(crate) fn kill_server(&mut self, server: usize, with_power: bool, off_ms: u64) {
        if self.servers[server].process.take().is_none() {
            return;
        }
        self.say(format_args!("server {} dies, power cut: {with_power}, for {off_ms} ms", server + 1));
        self.servers[server].power_is_on = !with_power;
        self.break_spool(server);
        let farewell = match (with_power, self.dice.chance(500)) {
            (true, _) => Farewell::Silent,
            (false, true) => Farewell::Flushed,
            (false, false) => Farewell::Reset,
        };
        self.end_connections(server, farewell);
        self.start_server_after(server, off_ms);
    }

    fn end_connections(&mut self, server: usize, farewell: Farewell) {
        let open: Vec<ConnId> = self
            .network
            .conns
            .iter()
            .filter(|(_, conn)| conn.server == server && conn.server_end != End::Closed)
            .map(|(id, _)| *id)
            .collect();
        for id in open {
            self.end_server_side(id, farewell);
        }
    }
}
