//! The lives of servers: how they start, follow the queue, lose it from sight, stop and are killed.
//!
//! All of it is the product's: a start recovers the spool's log and reads the whole queue before anybody is let in; then the broker looks
//! whenever the bell rings, or by itself when it does not. Each server reaches the database by a link of its own, so that it can lose it
//! from sight alone.
//!
//! A server that is killed loses its hubs, directory, presence and whatever its spool had not made durable.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bgb_hub::Hub;
use bgb_protocol::ids::ServerId;
use bgb_server::broker::{Broker, BrokerOptions};
use bgb_server::courier::{Courier, StatusLine};
use bgb_server::directory::{Directory, ShardId};
use bgb_server::outgoing::Outgoing;
use bgb_server::presence::{FullListWanted, PresenceList, PresencePace};
use bgb_server::reactor::mailbox::{Mailbox, mailbox};
use bgb_server::shard::{Letter, Links, Shard};
use bgb_server::spool::Spool;
use bgb_server::writers::{Shared, Spooler};
use crossbeam_channel::bounded;

use crate::hosts::inbox_of;
use crate::network::{ConnId, End, Farewell};
use crate::server_laws::HEEDED_WITHIN_MS;
use crate::servers::{Process, SHARDS, SimShard, Turns};
use crate::tally::Kind;
use crate::world::{Event, World};

/// The queue may be unreadable so long before sign-ins are refused (docs/promises.md).
const REFUSE_AFTER_MS: u64 = 60_000;
/// A committed row is handed to the shards within 10 ms; where its bell is missed, within 250 ms (the broker's look).
const BELL_MS_MAX: u64 = 10;
pub(crate) const LOOK_MS: u64 = 250;
/// How often a server that stops looks whether its sessions are gone, and how often at most.
const DRAIN_LOOK_MS: u64 = 200;
const DRAIN_LOOKS_MAX: u64 = 25;
/// From one file of results to the next.
const RESULTS_FILE_MS: u64 = 2_000;
/// From one delta of presence to the next (architecture: every few seconds).
const PRESENCE_DELTA_MS: u64 = 3_000;
/// Presence rows that a shard tells before it is looked at.
const PRESENCE_ROWS: usize = 64;
/// Whoever starts a server that could not start tries again within this.
const START_AGAIN_MS_MAX: u64 = 5_000;

/// Why a server does not start.
struct Unstarted {
    why: String,
    /// The queue cannot be read; else it is its own disk.
    of_queue: bool,
}

impl<E: std::error::Error> From<E> for Unstarted {
    fn from(error: E) -> Self {
        Self { why: error.to_string(), of_queue: false }
    }
}

impl World {
    pub(crate) fn start_server_after(&mut self, server: usize, after_ms: u64) {
        let simulated = &mut self.servers[server];
        simulated.starts += 1;
        let starts = simulated.starts;
        self.after(after_ms, Event::ServerStarts { server, starts });
    }

    pub(crate) fn on_server_starts(&mut self, server: usize, starts: u64) {
        let simulated = &mut self.servers[server];
        if simulated.starts != starts || simulated.process.is_some() || !self.hosts[server].has_power() {
            return;
        }
        simulated.life += 1;
        let (life, is_queue_hidden) = (simulated.life, simulated.queue_hidden_since.is_some());
        let before = self.disk_faults();
        match self.make_server(server) {
            Ok(process) => {
                self.servers[server].process = Some(process);
                self.servers[server].started_ms = self.now_ms;
                self.say(format_args!("server {} starts, life {life}", server + 1));
                // Nobody can connect before the first full read has been taken in.
                for shard in 0..SHARDS {
                    self.take_letters(server, shard);
                    self.advance_shard(server, shard);
                }
                self.call_writers(server);
                self.retransmit();
            }
            Err(Unstarted { why, of_queue }) => {
                self.say(format_args!("server {} cannot start: {why}", server + 1));
                self.tally.count(Kind::ServerCannotStart);
                self.expect_reason("a server that starts", before, of_queue && is_queue_hidden, &why);
                self.check_hosts();
                let after_ms = self.dice.between(500, START_AGAIN_MS_MAX);
                self.start_server_after(server, after_ms);
            }
        }
    }

    /// Puts a server together as `bgb-server` does.
    fn make_server(&mut self, server: usize) -> Result<Process, Unstarted> {
        let number = ServerId(server as u32 + 1);
        let now = self.host_now(self.servers[server].clock.off_ms());
        let (status, messages) = StatusLine::new();
        let shared =
            Shared { metrics: Arc::default(), status: status.clone(), full_list: FullListWanted::default() };
        let (mut boxes, mut mailboxes, mut polls) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..SHARDS {
            let poll = mio::Poll::new()?;
            let made = mailbox::<Letter>(poll.registry(), mio::Token(0))?;
            polls.push(poll);
            mailboxes.push(made.0);
            boxes.push(made.1);
        }
        let shards: Arc<[Mailbox<Letter>]> = mailboxes.into();

        let (outgoing, spool) = self.open_spool(server)?;
        let durable: Vec<Arc<AtomicU64>> = (0..SHARDS).map(|_| Arc::default()).collect();
        let (spool_items, spool_inbox) = bounded(self.weather.spool_items);
        let spooler = Spooler::new(spool, spool_inbox, durable.clone(), Arc::clone(&shards), shared.clone());
        let pace = PresencePace { full_ms: self.weather.presence_full_ms, delta_ms: PRESENCE_DELTA_MS };
        let presence = PresenceList::new(outgoing.clone(), pace, shared.full_list.clone(), now);
        let courier = Courier::new(outgoing, inbox_of(server));

        let directory = Arc::new(Directory::default());
        let mut made = Vec::new();
        for (shard, ((inbox, poll), durable_up_to)) in boxes.into_iter().zip(polls).zip(durable).enumerate() {
            let (presence_rows, presence_inbox) = bounded(PRESENCE_ROWS);
            let links = Links {
                spool: spool_items.clone(),
                presence: presence_rows,
                durable_up_to,
                directory: Arc::clone(&directory),
                shards: Arc::clone(&shards),
            };
            let hub = Hub::new(self.servers[server].options.clone());
            let id = ShardId(shard as u16);
            let own = Shard::new(id, hub, links, Arc::default(), status.clone());
            made.push(SimShard::new(own, inbox, poll, presence_inbox));
        }
        let options = BrokerOptions {
            database: self.link_of(server),
            server: number,
            refuse_after_ms: REFUSE_AFTER_MS,
        };
        let broker = Broker::start(options, shards, shared, now).map_err(|error| {
            let why = format!("{error:#}").replace(&*self.site.root().to_string_lossy(), "");
            Unstarted { why, of_queue: true }
        })?;
        Ok(Process {
            shards: made,
            broker,
            spooler,
            presence,
            courier,
            messages,
            presence_mail: vec![Default::default(); SHARDS],
            is_draining: false,
            is_failing: false,
            turns: Turns::default(),
        })
    }

    /// Opens a server's spool, and counts what it recovers.
    fn open_spool(&mut self, server: usize) -> Result<(Outgoing, Spool), Unstarted> {
        let number = ServerId(server as u32 + 1);
        let (disk, folder) = (self.disk_of(server), spool_of(server));
        let outgoing = Outgoing::open(disk, &folder, self.site.code, number, self.dice.next())?;
        let (spool, recovered) = Spool::open(outgoing.clone(), &folder, RESULTS_FILE_MS)?;
        if recovered.results > 0 {
            self.tally.count(Kind::ResultsRecovered);
        }
        if recovered.torn_bytes > 0 {
            self.tally.count(Kind::SpoolTorn);
        }
        if recovered.damaged_bytes > 0 {
            let bytes = recovered.damaged_bytes;
            self.violated(format!("server {}: {bytes} bytes of the spool's log are damaged", server + 1));
        }
        Ok((outgoing, spool))
    }

    /// The link by which a server reaches the database.
    pub(crate) fn link_of(&self, server: usize) -> PathBuf {
        self.site.root().join(format!("server{}.db", server + 1))
    }

    /// Rows were committed, and the bell was rung: servers look, sooner or later.
    pub(crate) fn ring_bell(&mut self) {
        for server in 0..self.servers.len() {
            let life = self.servers[server].life;
            let is_missed = self.dice.chance(100);
            if is_missed {
                self.tally.count(Kind::BellMissed);
            }
            let after_ms = if is_missed { LOOK_MS } else { self.dice.between(1, BELL_MS_MAX) };
            self.after(after_ms, Event::BrokerLooks { server, life, rung: !is_missed });
        }
    }

    pub(crate) fn on_broker_looks(&mut self, server: usize, life: u64, rung: bool) {
        let now = self.host_now(self.servers[server].clock.off_ms());
        if self.servers[server].life != life {
            return;
        }
        let Some(process) = self.servers[server].process.as_mut() else { return };
        process.broker.look(now, rung);
        let clock = &mut self.servers[server].clock;
        if clock.off_ms() != 0 && clock.feel() {
            let is_ahead = clock.off_ms() > 0;
            self.tally.count(if is_ahead { Kind::ServerClockAhead } else { Kind::ServerClockBehind });
        }
        for shard in 0..SHARDS {
            if process_has_letters(self.servers[server].process.as_ref(), shard) {
                self.wake_shard(server, shard);
            }
        }
        if self.servers[server].queue_hidden_since.is_some() {
            // It looks four times a second by itself; while it sees nothing, once a second shows the same.
            self.after(4 * LOOK_MS, Event::BrokerLooks { server, life, rung: false });
        }
        self.call_writers(server);
    }

    /// A server cannot read the queue for a while.
    pub(crate) fn hide_queue(&mut self, server: usize, for_ms: u64) {
        if self.servers[server].queue_hidden_since.is_some() {
            return;
        }
        let _ = std::fs::remove_file(self.link_of(server));
        self.servers[server].queue_hidden_since = Some(self.now_ms);
        self.tally.count(Kind::QueueUnreadable);
        self.say(format_args!("server {} cannot read the queue for {for_ms} ms", server + 1));
        let life = self.servers[server].life;
        self.after(LOOK_MS, Event::BrokerLooks { server, life, rung: false });
        self.after(for_ms, Event::QueueShown { server });
    }

    pub(crate) fn show_queue(&mut self, server: usize) {
        if self.servers[server].queue_hidden_since.take().is_none() {
            return;
        }
        self.servers[server].queue_shown_ms = self.now_ms;
        self.after(HEEDED_WITHIN_MS, Event::BarsDue);
        self.after(LOOK_MS + HEEDED_WITHIN_MS, Event::AllCancelsDue);
        let life = self.servers[server].life;
        self.after(LOOK_MS + HEEDED_WITHIN_MS, Event::PushesDue { server, life });
        self.site.link(&self.link_of(server));
        self.say(format_args!("server {} can read the queue again", server + 1));
        let life = self.servers[server].life;
        self.after(LOOK_MS, Event::BrokerLooks { server, life, rung: false });
    }

    /// The server stops as it is asked to: everybody is told, then the process ends.
    pub(crate) fn drain_server(&mut self, server: usize) {
        let life = self.servers[server].life;
        let Some(process) = self.servers[server].process.as_mut() else { return };
        if std::mem::replace(&mut process.is_draining, true) {
            return;
        }
        self.tally.count(Kind::ServerDrained);
        self.say(format_args!("server {} stops", server + 1));
        for shard in 0..SHARDS {
            self.with_shard(server, shard, Shard::drain);
        }
        self.after(DRAIN_LOOK_MS, Event::ServerDrained { server, life, looks: 1 });
    }

    pub(crate) fn on_server_drained(&mut self, server: usize, life: u64, looks: u64) {
        let simulated = &self.servers[server];
        let Some(process) = simulated.process.as_ref().filter(|_| simulated.life == life) else { return };
        let left: usize = process.shards.iter().map(|own| own.shard.hub().sessions()).sum();
        // Those who wait for a tunnel's bytes get its last ones.
        let has_tunnels = self.network.tunnels.values().any(|end| end.server == server);
        if (left > 0 || has_tunnels) && looks < DRAIN_LOOKS_MAX {
            return self.after(DRAIN_LOOK_MS, Event::ServerDrained { server, life, looks: looks + 1 });
        }
        if left > 0 {
            self.violated(format!(
                "server {} still holds {left} sessions 5 s after it began to stop",
                server + 1
            ));
        }
        self.finish_writers(server);
        self.end_connections(server, Farewell::Flushed);
        self.servers[server].process = None;
        self.say(format_args!("server {} has stopped", server + 1));
        self.check_hosts();
        let after_ms = self.dice.between(500, 20_000);
        self.start_server_after(server, after_ms);
    }

    /// A thread of the server has ended with a fault, and main ends the process.
    pub(crate) fn on_server_fails(&mut self, server: usize, life: u64) {
        if self.servers[server].life == life && self.servers[server].process.is_some() {
            self.tally.count(Kind::ServerFails);
            self.kill_server(server, false);
            self.check_hosts();
            let off_ms = self.dice.between(200, 10_000);
            self.start_server_after(server, off_ms);
        }
    }

    /// The server's process is gone, and perhaps its machine's power with it.
    pub(crate) fn kill_server(&mut self, server: usize, with_power: bool) {
        if self.servers[server].process.take().is_none() {
            return;
        }
        self.say(format_args!("server {} dies, power cut: {with_power}", server + 1));
        let farewell = match (with_power, self.dice.chance(500)) {
            (true, _) => Farewell::Silent,
            (false, true) => Farewell::Flushed,
            (false, false) => Farewell::Reset,
        };
        self.end_connections(server, farewell);
    }

    fn end_connections(&mut self, server: usize, farewell: Farewell) {
        let open: Vec<ConnId> = self
            .network
            .conns
            .iter()
            .filter(|(_, conn)| conn.server == server && conn.server_end != End::Closed)
            // A tunnel that is not open yet may still be opened: at the server's next start.
            .filter(|(_, conn)| conn.server_end == End::Open || !conn.is_long_poll())
            .map(|(id, _)| *id)
            .collect();
        self.drop_tunnels(server, farewell);
        for id in open {
            self.end_server_side(id, farewell);
        }
    }
}

fn process_has_letters(process: Option<&Process>, shard: usize) -> bool {
    process.is_some_and(|process| process.shards[shard].inbox.has_letters())
}

/// The folder of a server's spool, on its host's disk.
fn spool_of(server: usize) -> PathBuf {
    Path::new("/spool").join((server + 1).to_string())
}
