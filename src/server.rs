//! The server: starts the threads, joins them, and says in which order.
//!
//! ```text
//! start     spool (recover) -> courier, presence -> reactors' doorways -> broker (first full read) -> reactors listen -> ready
//! stop      reactors (drain) -> broker -> spool (last file) -> presence (last delta) -> courier (last round)
//! ```
//!
//! Nobody signs in before the blocks are known; nothing is acknowledged after the spool has ended. A thread that ends on its own is
//! a fault: the process ends with it, and the next start recovers.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use bgb_daemon::clock::Now;
use bgb_daemon::disk::{Disk, RealDisk};
use bgb_daemon::http_server::{HttpServer, Request, Response};
use bgb_daemon::lock::ProcessLock;
use bgb_daemon::ready::{self, Ready};
use bgb_daemon::signals::Signal;
use bgb_hub::{Hub, HubOptions, ticks_from_secs};
use bgb_protocol::ids::{ServerId, UnixMillis};
use bgb_protocol::status::StatusId;
use crossbeam_channel::{Receiver, Sender, bounded, select, tick};

use crate::broker::{Broker, BrokerOptions};
use crate::config::ServerConfig;
use crate::courier::{Courier, StatusLine};
use crate::directory::{Directory, ShardId};
use crate::metrics::{self, ServerMetrics, ShardMetrics};
use crate::network::Network;
use crate::outgoing::Outgoing;
use crate::presence::{PresenceList, PresencePace};
use crate::reactor::mailbox::Mailbox;
use crate::reactor::room::Room;
use crate::reactor::{Doorway, Reactor, ReactorParts, listener};
use crate::shard::{Letter, Links, Shard};
use crate::spool::Spool;
use crate::threads;
use crate::tls::TlsContext;
use crate::writers::{
    PRESENCE_ROWS_MAX, SPOOL_ITEMS_MAX, Shared, Spooler, Writer, run_courier, run_presence,
};

/// Most active tasks of a hub (architecture.md).
const ACTIVE_TASKS_MAX: usize = 1_000;
/// How long a channel may go without a hello, in seconds.
const HELLO_SECS: u32 = 10;
/// Resumed handshakes that one core does in a second, rounded down from 104 us of CPU each: what the window for coming back is
/// reckoned with.
const RESUMED_HANDSHAKES_PER_SECOND: u32 = 5_000;
/// Days before its end that the server's certificate is complained about.
const CERTIFICATE_WARNING_MS: u64 = 14 * 24 * 60 * 60 * 1000;
/// Connections above `connections_max` that are let in to be told that the server is full.
const CONNECTIONS_RESERVE: usize = 256;
/// Descriptors that the process needs beside its connections: databases, logs, polls, files on their way.
const DESCRIPTORS_BESIDE: u64 = 256;

/// A running server.
pub struct Server {
    config: ServerConfig,
    shards: Arc<[Mailbox<Letter>]>,
    status: StatusLine,
    tls: Arc<TlsContext>,
    admin: HttpServer,
    listening: SocketAddr,
    stopping: Arc<AtomicBool>,
    fault: Receiver<String>,
    reactors: Vec<JoinHandle<()>>,
    broker: JoinHandle<()>,
    /// Stopped one after the other, in this order.
    writers: [Writer; 3],
    /// Dropped last: until then the spool is ours.
    _lock: ProcessLock,
}

impl Server {
    /// Starts everything, and listens.
    ///
    /// # Errors
    /// A sentence that says what cannot be used, and what to do.
    pub fn start(config: ServerConfig) -> anyhow::Result<Self> {
        let server = ServerId(config.server);
        let tls = Arc::new(TlsContext::load(&config.tls, config.site.0, server, None)?);
        check_address(config.listen)?;
        let (status, messages) = StatusLine::new();
        let (fault_line, fault) = bounded(16);
        let shared = Shared { metrics: Arc::default(), status: status.clone() };
        warn_of_limits(&config, &status);

        let lock = lock_spool(&config)?;
        let outgoing = open_outgoing(&config, server)?;
        let (spool, recovered) =
            Spool::open(outgoing.clone(), &config.spool, u64::from(config.results_seconds) * 1000)?;
        if recovered.results > 0 || recovered.torn_bytes > 0 {
            tracing::info!(
                results = recovered.results,
                torn_bytes = recovered.torn_bytes,
                "results of an earlier life were recovered from the spool's log"
            );
        }
        if recovered.damaged_bytes > 0 {
            let text = format!(
                "{} bytes of the spool's log are damaged, and results in them that devices no longer hold are lost; all others were                  recovered, and the log is kept as *.bad in {}: see to the disk",
                recovered.damaged_bytes,
                config.spool.join("log").display()
            );
            status.say(StatusId::SpoolFailed, now(), "spool", text);
        }
        let reactor_count = config.reactor_count();
        let doorways: Vec<_> = (0..reactor_count).map(|_| Doorway::open()).collect::<Result<_, _>>()?;
        let shards: Arc<[Mailbox<Letter>]> = doorways.iter().map(|doorway| doorway.mailbox.clone()).collect();
        let durable: Vec<Arc<AtomicU64>> = (0..reactor_count).map(|_| Arc::default()).collect();
        let (spool_items, spool_inbox) = bounded(SPOOL_ITEMS_MAX);
        let (presence_rows, presence_inbox) = bounded(PRESENCE_ROWS_MAX);

        let spooler = Spooler::new(spool, spool_inbox, durable.clone(), Arc::clone(&shards), shared.clone());
        let spool_writer = Writer::start("spool", &fault_line, move |stop| spooler.run(stop))?;
        let pace = PresencePace {
            full_ms: u64::from(config.presence_full_seconds) * 1000,
            delta_ms: u64::from(config.presence_delta_seconds) * 1000,
        };
        let list = PresenceList::new(outgoing.clone(), pace, Now::read());
        let presence_shared = shared.clone();
        let presence_writer = Writer::start("presence", &fault_line, move |stop| {
            run_presence(list, &presence_inbox, stop, &presence_shared)
        })?;
        let courier = Courier::new(outgoing, config.inbox.clone());
        let courier_shared = shared.clone();
        let courier_writer = Writer::start("courier", &fault_line, move |stop| {
            run_courier(courier, &messages, stop, &courier_shared)
        })?;

        let stopping = Arc::new(AtomicBool::new(false));
        let links = Links {
            spool: spool_items,
            presence: presence_rows,
            durable_up_to: Arc::default(),
            directory: Arc::new(Directory::default()),
            shards: Arc::clone(&shards),
        };
        let shard_metrics: Vec<Arc<ShardMetrics>> = (0..reactor_count).map(|_| Arc::default()).collect();
        let broker_options = BrokerOptions {
            database: config.database.clone(),
            bell: config.bell.clone(),
            server,
            refuse_after: Duration::from_secs(u64::from(config.queue_unreadable_refuse_seconds)),
        };
        let listeners = bind_all(config.listen, reactor_count)?;
        let listening = listeners[0].local_addr()?;
        let room = Arc::new(Room::new(config.connections_max as usize, CONNECTIONS_RESERVE));
        let handshake_exempt: Arc<[Network]> = config.handshake_exempt_networks.clone().into();
        let mut parts = Vec::new();
        for (number, doorway) in doorways.into_iter().enumerate() {
            let id = ShardId(u16::try_from(number).context("there are 256 reactors at the most")?);
            let links = Links { durable_up_to: Arc::clone(&durable[number]), ..links.clone() };
            let metrics = Arc::clone(&shard_metrics[number]);
            let hub = Hub::new(hub_options(&config, number));
            let shard = Shard::new(id, hub, links, Arc::clone(&metrics), status.clone());
            let (tls, room) = (Arc::clone(&tls), Arc::clone(&room));
            let handshake_exempt = Arc::clone(&handshake_exempt);
            parts.push(ReactorParts { doorway, shard, tls, room, handshake_exempt, metrics });
        }
        drop(links);
        // The reactors turn before the broker reads, since it waits for them when their mailboxes are full; they listen after it.
        let reactors = parts
            .into_iter()
            .enumerate()
            .map(|(number, parts)| spawn_reactor(number, parts, &fault_line))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let broker =
            Broker::start(broker_options, Arc::clone(&shards), status.clone(), Arc::clone(&shared.metrics))?;
        for (shard, socket) in shards.iter().zip(listeners) {
            listener::listen(&socket).with_context(|| format!("cannot listen on {listening}"))?;
            shard.send(Letter::Listen(Arc::new(socket)));
        }
        let broker_stopping = Arc::clone(&stopping);
        let broker = threads::spawn("broker", &fault_line, move || {
            broker.run(|| broker_stopping.load(Ordering::Acquire));
            Ok(())
        })?;
        let admin = start_admin(&config, &shared.metrics, shard_metrics)?;
        Ok(Self {
            config,
            shards,
            status,
            tls,
            admin,
            listening,
            stopping,
            fault,
            reactors,
            broker,
            writers: [spool_writer, presence_writer, courier_writer],
            _lock: lock,
        })
    }

    /// Where devices connect.
    #[must_use]
    pub fn listening(&self) -> SocketAddr {
        self.listening
    }

    /// Serves until a signal ends it, or a thread does.
    ///
    /// # Errors
    /// What a thread ended of.
    pub fn run(mut self, signals: &Receiver<Signal>) -> anyhow::Result<()> {
        let text = format!(
            "listening on {} with {} reactors, for {} connections at the most",
            self.listening,
            self.shards.len(),
            self.config.connections_max
        );
        self.status.say(StatusId::ServerStarted, now(), "", text);
        let listen = BTreeMap::from([
            ("tcp".to_owned(), self.listening),
            ("admin".to_owned(), self.admin.local_addr()),
        ]);
        ready::tell(&Ready::of_this_process("bgb-server", listen));
        let hourly = tick(Duration::from_secs(3_600));
        self.check_certificate();
        let fault = loop {
            select! {
                recv(signals) -> signal => match signal {
                    Ok(Signal::Reload) => self.reload(),
                    Ok(Signal::Terminate) | Err(_) => break None,
                },
                recv(self.fault) -> fault => break fault.ok(),
                recv(hourly) -> _ => self.check_certificate(),
            }
        };
        ready::stopping();
        if fault.is_none() {
            self.status.say(StatusId::ServerStopped, now(), "", "stopping in good order");
        }
        self.stop();
        match fault {
            Some(fault) => Err(anyhow::anyhow!(fault)),
            None => Ok(()),
        }
    }

    fn reload(&mut self) {
        ready::reloading();
        let server = ServerId(self.config.server);
        match TlsContext::load(&self.config.tls, self.config.site.0, server, Some(&self.tls)) {
            Ok(tls) => {
                self.tls = Arc::new(tls);
                for shard in &*self.shards {
                    shard.send(Letter::Tls(Arc::clone(&self.tls)));
                }
                let text = "certificates were read anew; sessions that are there go on with the old ones";
                self.status.say(StatusId::CertificatesReloaded, now(), "", text);
            }
            Err(error) => {
                let text = format!("certificates could not be read anew, the old ones stay: {error:#}");
                self.status.say(StatusId::CertificatesNotReloaded, now(), "", text);
            }
        }
        ready::reloaded();
    }

    fn check_certificate(&self) {
        let ends = self.tls.identity.not_after;
        if now().plus(CERTIFICATE_WARNING_MS) > ends {
            let days = ends.since(now()) / (24 * 60 * 60 * 1000);
            let text = format!(
                "the server's certificate {} ends in {days} days; issue a new one, put it there, and send SIGHUP",
                self.config.tls.certificate.display()
            );
            self.status.say(StatusId::CertificateEnding, now(), "", text);
        }
    }

    fn stop(self) {
        for shard in &*self.shards {
            shard.send(Letter::Stop);
        }
        for reactor in self.reactors {
            join(reactor);
        }
        self.stopping.store(true, Ordering::Release);
        join(self.broker);
        for writer in self.writers {
            join(writer.stop());
        }
        self.admin.stop();
    }
}

/// Two servers on one spool would remove each other's logs and draw the same numbers.
fn lock_spool(config: &ServerConfig) -> anyhow::Result<ProcessLock> {
    let cannot = || format!("the spool {} cannot be used", config.spool.display());
    std::fs::create_dir_all(&config.spool).with_context(cannot)?;
    ProcessLock::take(&config.spool.join("lock"), "server").with_context(cannot)
}

fn open_outgoing(config: &ServerConfig, server: ServerId) -> anyhow::Result<Outgoing> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut nonce = [0; 8];
    aws_lc_rs::rand::fill(&mut nonce).context("the system gives no randomness")?;
    let nonce = u64::from_be_bytes(nonce);
    Outgoing::open(disk, &config.spool, config.site.0, server, nonce)
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
fn check_address(address: SocketAddr) -> anyhow::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    listener::probe(address).with_context(|| {
        format!(
            "cannot listen on {address}; if the port is in use, `ss -ltnp 'sport = :{}'` shows by whom: stop it, or change \
             `listen` in server.toml",
            address.port()
        )
    })
}

fn bind_all(address: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpListener>> {
    let bind = |address| listener::bind(address).with_context(|| format!("cannot listen on {address}"));
    let first = bind(address)?;
    // With port 0 the first one draws it.
    let address = first.local_addr()?;
    let mut all = vec![first];
    for _ in 1..count {
        all.push(bind(address)?);
    }
    Ok(all)
}

fn warn_of_limits(config: &ServerConfig, status: &StatusLine) {
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

fn join(thread: JoinHandle<()>) {
    let name = thread.thread().name().unwrap_or("a thread").to_owned();
    if thread.join().is_err() {
        tracing::error!(thread = name, "a thread panicked; standard error says where");
    }
}

fn start_admin(
    config: &ServerConfig,
    server: &Arc<ServerMetrics>,
    shards: Vec<Arc<ShardMetrics>>,
) -> anyhow::Result<HttpServer> {
    let listener = TcpListener::bind(config.admin).with_context(|| {
        format!(
            "cannot listen on {} for metrics; change `admin` in server.toml if the port is in use",
            config.admin
        )
    })?;
    let server = Arc::clone(server);
    let handler = move |request: Request| match (request.head.method.as_str(), request.head.path()) {
        ("GET" | "HEAD", "/metrics") => Response {
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            ..Response::text(metrics::expose(&server, &shards))
        },
        // It answers only once the server listens, and no more when it stops.
        ("GET" | "HEAD", "/healthz" | "/readyz") => Response::text("ok\n"),
        ("GET" | "HEAD", _) => Response::error(404, "there are /metrics, /healthz and /readyz here"),
        _ => Response::error(405, "only GET is answered here").with_header("allow", "GET, HEAD"),
    };
    // Two scrapers and a person; requests have no body.
    Ok(HttpServer::start(listener, "admin", 2, 1024, Arc::new(handler))?)
}

fn now() -> UnixMillis {
    UnixMillis(bgb_daemon::clock::Now::read().unix_ms)
}

/// Reads the configuration, sets up the log, and serves until a signal comes.
///
/// # Errors
/// As [`Server::start`] and [`Server::run`].
pub fn main(config: &Path) -> anyhow::Result<()> {
    let config = ServerConfig::load(config)?;
    let _log = bgb_daemon::log::init(config.log.options("SMS_NOTIFICATION_SERVER", "BGBServer.log"))?;
    let signals = bgb_daemon::signals::listen()?;
    Server::start(config)?.run(&signals)
}
