//! The steps in which a server starts: each makes one kind of thread, and what ties it to the others.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use anyhow::Context as _;
use bgb_daemon::admin;
use bgb_daemon::clock::Now;
use bgb_daemon::disk::{Disk, RealDisk, TimedDisk};
use bgb_daemon::http_server::HttpServer;
use bgb_daemon::lock::ProcessLock;
use bgb_hub::{Hub, HubOptions, ticks_from_secs};
use bgb_protocol::ids::ServerId;
use bgb_protocol::status::{StatusId, StatusMessage};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Life, Stage, now};
use crate::HTTP_LOG;
use crate::broker::{Bell, Broker, BrokerOptions};
use crate::config::ServerConfig;
use crate::courier::{Courier, StatusLine};
use crate::directory::{Directory, ShardId};
use crate::metrics::{self, ServerMetrics, ShardMetrics};
use crate::network::Network;
use crate::outgoing::Outgoing;
use crate::presence::{PresenceList, PresencePace};
use crate::reactor::entrance::Entrance;
use crate::reactor::mailbox::Mailbox;
use crate::reactor::room::Room;
use crate::reactor::{Doorway, Reactor, ReactorParts, listener};
use crate::shard::{Letter, Links, Shard};
use crate::spool::{Recovered, Spool};
use crate::threads;
use crate::tls::TlsContext;
use crate::writers::{
    PRESENCE_ROWS_MAX, SPOOL_ITEMS_MAX, Shared, Spooler, Writer, run_courier, run_presence,
};

/// Most active tasks of a hub (docs/promises.md).
const ACTIVE_TASKS_MAX: usize = 1_000;
/// How long a channel may go without a hello, in seconds.
const HELLO_SECS: u32 = 10;
/// Resumed handshakes that one core does in a second, rounded down from 104 us of CPU each: what the window for coming back is
/// reckoned with.
const RESUMED_HANDSHAKES_PER_SECOND: u32 = 5_000;
/// Connections above `connections_max` that are let in to be told that the server is full.
const CONNECTIONS_RESERVE: usize = 256;
/// Descriptors that the process needs beside its connections: databases, logs, polls, files on their way.
const DESCRIPTORS_BESIDE: u64 = 256;

/// What most steps need, and the doorways, which are made first so that all threads know the reactors' mailboxes.
pub(super) struct Starting<'a> {
    config: &'a ServerConfig,
    shared: &'a Shared,
    fault: &'a Sender<String>,
    doorways: Vec<Doorway>,
    /// By shard: up to which of its results all are on disk.
    durable: Vec<Arc<AtomicU64>>,
}

impl<'a> Starting<'a> {
    pub(super) fn new(
        config: &'a ServerConfig,
        shared: &'a Shared,
        fault: &'a Sender<String>,
    ) -> anyhow::Result<Self> {
        let doorways: Vec<_> =
            (0..config.reactor_count()).map(|_| Doorway::open()).collect::<Result<_, _>>()?;
        let durable = doorways.iter().map(|_| Arc::default()).collect();
        Ok(Self { config, shared, fault, doorways, durable })
    }

    /// The reactors' mailboxes, by number.
    pub(super) fn shards(&self) -> Arc<[Mailbox<Letter>]> {
        self.doorways.iter().map(|doorway| doorway.mailbox.clone()).collect()
    }

    /// Recovers what an earlier life left, and starts those who write files: spool, presence, courier, to be stopped in this order.
    /// Gives what a shard writes to.
    pub(super) fn writers(&self, messages: Receiver<StatusMessage>) -> anyhow::Result<([Writer; 3], Links)> {
        let Self { config, shared, fault, .. } = self;
        let outgoing = open_outgoing(config, &shared.metrics)?;
        let results_ms = u64::from(config.results_seconds) * 1000;
        let (spool, recovered) = Spool::open(outgoing.clone(), &config.spool, results_ms)?;
        say_recovered(recovered, config, &shared.status);
        let (spool_items, spool_inbox) = bounded(SPOOL_ITEMS_MAX);
        let spooler =
            Spooler::new(spool, spool_inbox, self.durable.clone(), self.shards(), Shared::clone(shared));
        let spool_writer = Writer::start("spool", fault, move |stop| spooler.run(stop))?;

        let pace = PresencePace {
            full_ms: u64::from(config.presence_full_seconds) * 1000,
            delta_ms: u64::from(config.presence_delta_seconds) * 1000,
        };
        let list = PresenceList::new(outgoing.clone(), pace, shared.full_list.clone(), Now::read());
        let (presence_rows, presence_inbox) = bounded(PRESENCE_ROWS_MAX);
        let of_presence = Shared::clone(shared);
        let presence_writer = Writer::start("presence", fault, move |stop| {
            run_presence(list, &presence_inbox, stop, &of_presence)
        })?;

        let courier = Courier::new(outgoing, config.inbox.clone());
        let of_courier = Shared::clone(shared);
        let courier_writer =
            Writer::start("courier", fault, move |stop| run_courier(courier, &messages, stop, &of_courier))?;
        let links = Links {
            spool: spool_items,
            presence: presence_rows,
            durable_up_to: Arc::default(),
            directory: Arc::new(Directory::default()),
            shards: self.shards(),
        };
        Ok(([spool_writer, presence_writer, courier_writer], links))
    }

    /// Binds a socket at each entrance for each reactor; nobody can connect yet.
    pub(super) fn bind_listeners(&self) -> anyhow::Result<Vec<Bound>> {
        let bind = |address| listener::bind(address).with_context(|| format!("cannot listen on {address}"));
        let mut bound = Vec::new();
        for (entrance, address) in self.config.entrances() {
            let first = bind(address)?;
            // With port 0 the first one draws it.
            let address = first.local_addr()?;
            let mut sockets = vec![first];
            for _ in 1..self.doorways.len() {
                sockets.push(bind(address)?);
            }
            bound.push(Bound { entrance, address, sockets });
        }
        Ok(bound)
    }

    /// Starts the reactors, each with its hub. They accept nobody yet.
    pub(super) fn reactors(self, tls: &Arc<TlsContext>, links: &Links) -> anyhow::Result<Reactors> {
        let Self { config, shared, fault, doorways, durable } = self;
        let room = Arc::new(Room::new(config.connections_max as usize, CONNECTIONS_RESERVE));
        let handshake_exempt: Arc<[Network]> = config.handshake_exempt_networks.clone().into();
        let proxies: Arc<[Network]> = config.proxy_protocol_networks.clone().into();
        let server = ServerId(config.server);
        let mut started = Reactors { threads: Vec::new(), metrics: Vec::new() };
        for (number, (doorway, durable_up_to)) in doorways.into_iter().zip(durable).enumerate() {
            let id = ShardId(u16::try_from(number).context("there are 256 reactors at the most")?);
            let metrics: Arc<ShardMetrics> = Arc::default();
            started.metrics.push(Arc::clone(&metrics));
            let hub = Hub::new(hub_options(config, number));
            let links = Links { durable_up_to, ..links.clone() };
            let shard = Shard::new(id, hub, links, Arc::clone(&metrics), shared.status.clone());
            let (tls, room) = (Arc::clone(tls), Arc::clone(&room));
            let (handshake_exempt, proxies) = (Arc::clone(&handshake_exempt), Arc::clone(&proxies));
            let parts =
                ReactorParts { doorway, shard, server, tls, room, handshake_exempt, proxies, metrics };
            started.threads.push(spawn_reactor(number, parts, fault)?);
        }
        Ok(started)
    }
}

/// An entrance whose port is taken.
pub(super) struct Bound {
    pub(super) entrance: Entrance,
    /// Its port may have been drawn.
    pub(super) address: SocketAddr,
    /// By reactor.
    sockets: Vec<TcpListener>,
}

impl Bound {
    /// Begins to listen, and has the reactors accept what comes.
    pub(super) fn listen(self, shards: &[Mailbox<Letter>]) -> anyhow::Result<()> {
        for (shard, socket) in shards.iter().zip(self.sockets) {
            listener::listen(&socket).with_context(|| format!("cannot listen on {}", self.address))?;
            shard.send(Letter::Listen(self.entrance, Arc::new(socket)));
        }
        if self.entrance != Entrance::Tcp {
            let road = self.entrance.name();
            tracing::info!(target: HTTP_LOG, address = %self.address, road, "WebSocket and long-poll are taken here");
        }
        Ok(())
    }
}

/// The reactors' threads and their counters, by number.
pub(super) struct Reactors {
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) metrics: Vec<Arc<ShardMetrics>>,
}

fn say_recovered(recovered: Recovered, config: &ServerConfig, status: &StatusLine) {
    if recovered.results > 0 || recovered.torn_bytes > 0 {
        tracing::info!(
            results = recovered.results,
            torn_bytes = recovered.torn_bytes,
            "results of an earlier life were recovered from the spool's log"
        );
    }
    if recovered.damaged_bytes > 0 {
        let text = format!(
            "{} bytes of the spool's log are damaged, and results in them that devices no longer hold are lost; all others were \
             recovered, and the log is kept as *.bad in {}: see to the disk",
            recovered.damaged_bytes,
            config.spool.join("log").display()
        );
        status.say(StatusId::SpoolDamaged, now(), "spool", text);
    }
}

/// The broker's first full read of the queue, into the hubs; and the bell, which is watched since before.
pub(super) fn read_queue(
    config: &ServerConfig,
    shards: &Arc<[Mailbox<Letter>]>,
    shared: &Shared,
) -> anyhow::Result<(Broker, Bell)> {
    let options = BrokerOptions {
        database: config.database.clone(),
        server: ServerId(config.server),
        refuse_after_ms: u64::from(config.queue_unreadable_refuse_seconds) * 1_000,
    };
    let bell = Bell::watch(&config.bell);
    let broker = Broker::start(options, Arc::clone(shards), Shared::clone(shared), Now::read())?;
    Ok((broker, bell))
}

/// Starts the broker's thread.
pub(super) fn follow_queue(
    (broker, bell): (Broker, Bell),
    life: Arc<Life>,
    fault: &Sender<String>,
) -> anyhow::Result<JoinHandle<()>> {
    let run = move || {
        broker.run(bell, || life.is_at(Stage::Closing));
        Ok(())
    };
    threads::spawn("broker", fault, run).context("the system gives no thread for the broker")
}

/// Two servers on one spool would remove each other's logs and draw the same numbers.
pub(super) fn lock_spool(config: &ServerConfig) -> anyhow::Result<ProcessLock> {
    let cannot = || format!("the spool {} cannot be used", config.spool.display());
    std::fs::create_dir_all(&config.spool).with_context(cannot)?;
    ProcessLock::take(&config.spool.join("lock"), "server").with_context(cannot)
}

/// Reads certificate, key and authority; the keys of session tickets lie in the spool, which must be locked.
pub(super) fn load_tls(config: &ServerConfig, former: Option<&TlsContext>) -> anyhow::Result<TlsContext> {
    let ticket_keys = config.spool.join("ticket.keys");
    TlsContext::load(&config.tls, config.site.0, ServerId(config.server), &ticket_keys, former)
}

fn open_outgoing(config: &ServerConfig, metrics: &ServerMetrics) -> anyhow::Result<Outgoing> {
    let disk: Arc<dyn Disk> = Arc::new(TimedDisk::new(RealDisk, Arc::clone(&metrics.fsync_times)));
    let mut nonce = [0; 8];
    aws_lc_rs::rand::fill(&mut nonce).context("the system gives no randomness")?;
    let nonce = u64::from_be_bytes(nonce);
    Outgoing::open(disk, &config.spool, config.site.0, ServerId(config.server), nonce)
        .with_context(|| format!("the spool {} cannot be used", config.spool.display()))
}

fn hub_options(config: &ServerConfig, number: usize) -> HubOptions {
    HubOptions {
        server: ServerId(config.server),
        // All of them may be at one reactor: how many there are in all is the room's to say.
        sessions_max: config.connections_max as usize,
        keepalive_secs: config.keepalive_seconds,
        hello_ticks: ticks_from_secs(HELLO_SECS),
        active_tasks_max: ACTIVE_TASKS_MAX,
        other_servers: config.other_servers.clone(),
        reconnect_window_secs: (config.connections_max / RESUMED_HANDSHAKES_PER_SECOND).clamp(5, 600),
        jitter_seed: number as u64,
    }
}

/// SO_REUSEPORT lets a second process of the same user share our port without a word, and take half of our devices.
pub(super) fn check_addresses(config: &ServerConfig) -> anyhow::Result<()> {
    for (entrance, address) in config.entrances() {
        if address.port() == 0 {
            continue;
        }
        let (key, or_off) = match entrance {
            Entrance::Tcp => (entrance.key(), ""),
            Entrance::Http | Entrance::Https => (entrance.key(), ", or set it to \"off\""),
        };
        listener::probe(address).with_context(|| {
            format!(
                "cannot listen on {address}; if the port is in use, `ss -ltnp 'sport = :{}'` shows by whom: stop it, or change `{key}` in \
                 server.toml{or_off}",
                address.port()
            )
        })?;
    }
    Ok(())
}

pub(super) fn warn_of_limits(config: &ServerConfig, status: &StatusLine) {
    let wanted = u64::from(config.connections_max) + CONNECTIONS_RESERVE as u64 + DESCRIPTORS_BESIDE;
    if let Some(warning) = bgb_daemon::limits::raise_descriptors(wanted).warning() {
        status.say(StatusId::DescriptorLimitLow, now(), "", warning);
    }
}

fn spawn_reactor(
    number: usize,
    parts: ReactorParts,
    fault: &Sender<String>,
) -> anyhow::Result<JoinHandle<()>> {
    let run = move || Reactor::new(parts).run().map_err(|error| format!("reactor {number} ended: {error}"));
    threads::spawn(&format!("reactor-{number}"), fault, run)
        .context("the system gives no thread for a reactor")
}

/// Answers `/metrics` and its like. It is called once the server listens.
pub(super) fn serve_admin(
    listener: TcpListener,
    config: &ServerConfig,
    life: Arc<Life>,
    server: &Arc<ServerMetrics>,
    shards: Vec<Arc<ShardMetrics>>,
) -> anyhow::Result<HttpServer> {
    let (spool, of_page) = (config.spool.clone(), Arc::clone(server));
    let page = move || {
        let mut out = metrics::expose(&of_page, &shards);
        metrics::expose_free(&mut out, RealDisk.free_bytes(&spool).ok());
        out.into_text()
    };
    let server = Arc::clone(server);
    Ok(admin::serve(listener, page, move || unready(&life, &server))?)
}

/// Why no device can sign in at present.
fn unready(life: &Life, metrics: &ServerMetrics) -> Option<&'static str> {
    if life.is_at(Stage::Draining) {
        return Some("the server stops");
    }
    (metrics.sign_ins_refused.value() > 0)
        .then_some("devices may not sign in: the site's queue cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ready_while_devices_may_sign_in() {
        let (life, metrics) = (Life::new(), ServerMetrics::default());
        assert_eq!(unready(&life, &metrics), None);
        metrics.sign_ins_refused.set(1);
        assert!(unready(&life, &metrics).is_some_and(|why| why.contains("queue")));
        metrics.sign_ins_refused.set(0);
        life.on(Stage::Draining);
        assert!(unready(&life, &metrics).is_some_and(|why| why.contains("stops")));
    }
}
