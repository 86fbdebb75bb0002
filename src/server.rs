//! The server: starts the threads, joins them, and says in which order.
//!
//! ```text
//! start     spool (recover) -> courier, presence -> reactors' doorways -> broker (first full read) -> reactors listen -> ready
//! stop      reactors (drain) -> broker -> spool (last file) -> presence (last delta) -> courier (last round)
//! ```
//!
//! Nobody signs in before the blocks are known; nothing is acknowledged after the spool has ended. A thread that ends on its own is
//! a fault: the process ends with it, and the next start recovers.

mod starting;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bgb_daemon::admin;
use bgb_daemon::http_server::HttpServer;
use bgb_daemon::lock::ProcessLock;
use bgb_daemon::log::LogGuard;
use bgb_daemon::ready::{self, Ready};
use bgb_daemon::signals::Signal;
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::status::StatusId;
use crossbeam_channel::{Receiver, bounded, select, tick};

use self::starting::Starting;
use crate::HTTP_LOG;
use crate::config::ServerConfig;
use crate::courier::StatusLine;
use crate::presence::FullListWanted;
use crate::reactor::mailbox::Mailbox;
use crate::shard::Letter;
use crate::tls::TlsContext;
use crate::writers::{Shared, Writer};

/// Days before its end that the server's certificate is complained about.
const CERTIFICATE_WARNING_MS: u64 = 14 * 24 * 60 * 60 * 1000;

/// How far the server has got, for its threads.
#[derive(Debug)]
struct Life(AtomicU8);

/// See [`Life`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Devices may sign in.
    Serving,
    /// They are told to come back later; what they have said goes its way.
    Draining,
    /// They are gone.
    Closing,
}

impl Life {
    fn new() -> Self {
        Self(AtomicU8::new(Stage::Serving as u8))
    }

    /// A stage has begun.
    fn on(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Release);
    }

    /// Whether a stage has begun.
    fn is_at(&self, stage: Stage) -> bool {
        self.0.load(Ordering::Acquire) >= stage as u8
    }
}

/// A running server.
pub struct Server {
    config: ServerConfig,
    shards: Arc<[Mailbox<Letter>]>,
    status: StatusLine,
    tls: Arc<TlsContext>,
    admin: HttpServer,
    /// Where devices connect, by entrance.
    listening: BTreeMap<String, SocketAddr>,
    life: Arc<Life>,
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
        starting::check_addresses(&config)?;
        // Before anything that devices could notice: a port that is taken must not be found out when they are signed in.
        let admin = admin::bind(config.admin, "server.toml")?;
        let (status, messages) = StatusLine::new();
        let (fault_line, fault) = bounded(16);
        let shared =
            Shared { metrics: Arc::default(), status: status.clone(), full_list: FullListWanted::default() };
        starting::warn_of_limits(&config, &status);

        let lock = starting::lock_spool(&config)?;
        let tls = Arc::new(starting::load_tls(&config, None)?);
        let start = Starting::new(&config, &shared, &fault_line)?;
        let shards = start.shards();
        let (writers, links) = start.writers(messages)?;
        let bound = start.bind_listeners()?;
        // The reactors turn before the broker reads, since it waits for them when their mailboxes are full; they listen after it.
        let reactors = start.reactors(&tls, &links)?;
        // What is left are the reactors' own ends: when they are gone, spool and presence list know that nothing more comes.
        drop(links);
        let life = Arc::new(Life::new());
        let broker = starting::read_queue(&config, &shards, &shared)?;
        let mut listening = BTreeMap::new();
        for bound in bound {
            listening.insert(bound.entrance.name().to_owned(), bound.address);
            bound.listen(&shards)?;
        }
        let broker = starting::follow_queue(broker, Arc::clone(&life), &fault_line)?;
        let admin =
            starting::serve_admin(admin, &config, Arc::clone(&life), &shared.metrics, reactors.metrics)?;
        Ok(Self {
            config,
            shards,
            status,
            tls,
            admin,
            listening,
            life,
            fault,
            reactors: reactors.threads,
            broker,
            writers,
            _lock: lock,
        })
    }

    /// Serves until a signal ends it, or a thread does. A reload also opens the `log` anew, for those who move its file away.
    ///
    /// # Errors
    /// What a thread ended of.
    pub fn run(mut self, signals: &Receiver<Signal>, log: &LogGuard) -> anyhow::Result<()> {
        let ports: Vec<_> =
            self.listening.iter().map(|(name, address)| format!("{address} ({name})")).collect();
        let text = format!(
            "listening on {} with {} reactors, for {} connections at the most",
            ports.join(", "),
            self.shards.len(),
            self.config.connections_max
        );
        self.status.say(StatusId::ServerStarted, now(), "", text);
        let mut listen = self.listening.clone();
        listen.insert("admin".to_owned(), self.admin.local_addr());
        ready::tell(&Ready::of_this_process("bgb-server", listen));
        let hourly = tick(Duration::from_secs(3_600));
        self.check_certificate();
        let fault = loop {
            select! {
                recv(signals) -> signal => match signal {
                    Ok(Signal::Reload) => {
                        log.reopen();
                        self.reload();
                    }
                    Ok(Signal::Terminate) | Err(_) => break None,
                },
                recv(self.fault) -> fault => break fault.ok(),
                recv(hourly) -> _ => {
                    self.check_certificate();
                    self.rotate_tickets();
                }
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
        match starting::load_tls(&self.config, Some(&self.tls)) {
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

    fn rotate_tickets(&self) {
        if let Err(error) = self.tls.rotate_tickets() {
            tracing::warn!(error = %format!("{error:#}"), "there is no new key for session tickets, or it cannot be kept and ends with this process; it is tried again in an hour");
        }
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
        self.life.on(Stage::Draining);
        for shard in &*self.shards {
            shard.send(Letter::Stop);
        }
        for reactor in self.reactors {
            join(reactor);
        }
        self.life.on(Stage::Closing);
        join(self.broker);
        for writer in self.writers {
            join(writer.stop());
        }
        self.admin.stop();
    }
}

fn join(thread: JoinHandle<()>) {
    let name = thread.thread().name().unwrap_or("a thread").to_owned();
    if thread.join().is_err() {
        tracing::error!(thread = name, "a thread panicked; standard error says where");
    }
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
    let log = bgb_daemon::log::init(config.log.options_with(
        ("SMS_NOTIFICATION_SERVER", "BGBServer.log"),
        (HTTP_LOG, "BgbHttpProxy", "BgbHttpProxy.log"),
    ))?;
    let signals = bgb_daemon::signals::listen()?;
    Server::start(config)?.run(&signals, &log)
}
