//! The agent in production: real clocks, a real disk, threads, a connection; all that [`Agent`] must not know.
//!
//! One thread drives the agent: it waits for the connection, the actions, signals and the agent's next deadline, hands in what has
//! come, and carries out what comes out, in its order. It decides nothing. Laws: an error of the agent ends the process, whose
//! next start recovers from the journal; two agents never share a state folder; when it ends, no action of it runs on.

mod connections;

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bgb_daemon::admin;
use bgb_daemon::clock::{self, Now};
use bgb_daemon::disk::{RealDisk, TimedDisk, create_dir_durably};
use bgb_daemon::http_server::HttpServer;
use bgb_daemon::lock::ProcessLock;
use bgb_daemon::signals::Signal;
use bgb_protocol::ids::{BootId, TaskId};
use crossbeam_channel::{Receiver, bounded, select, unbounded};

use crate::actions::Runner;
use crate::agent::{Agent, AgentOptions, Input, Outcome, Output};
use crate::config::AgentConfig;
use crate::connection::{Destination, Event, Network};
use crate::identity::DeviceIdentity;
use crate::metrics::AgentMetrics;
use crate::platform;
use crate::proxy::Proxies;
use crate::random::Random;
use crate::roads::{Ladder, MemoryFile, Moment};
use crate::tls::{OuterTls, Tls};
use connections::Connections;
pub use connections::STANDING_MS;

/// The component that the agent's records bear.
pub const LOG_COMPONENT: &str = "CcmNotificationAgent";

/// The log file's name, where administrators look for it (docs/promises.md, Files).
pub const LOG_FILE: &str = "CcmNotificationAgent.log";

/// Longest sleep: poll(2) does not count suspend, so that a deadline in the past is noticed this long after waking up.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// The state folder is its owner's alone.
const STATE_MODE: u32 = 0o700;

/// Events of a connection that may wait; past it the connection stops reading.
const EVENTS_MAX: usize = 256;

/// How long the last words may take when the agent ends: the 2 s that a connection has for them, and one more.
const GOODBYE_LIMIT: Duration = Duration::from_secs(3);

/// How often is looked whether they are said.
const GOODBYE_LOOK: Duration = Duration::from_millis(5);

/// Everything that a start needs, read and checked.
pub struct Prepared {
    config: AgentConfig,
    identity: DeviceIdentity,
    network: Network,
}

impl Prepared {
    /// Reads the certificate, the key, the authority and the proxy's password that `config` names.
    ///
    /// # Errors
    /// What is missing or wrong, and what to do about it.
    pub fn new(config: AgentConfig) -> anyhow::Result<Self> {
        let identity = DeviceIdentity::load(&config)?;
        let network = Network {
            tls: Tls::new(&identity)?,
            outer: Arc::new(OuterTls::new(&identity.authority, config.roads.https_issuers.clone())?),
            roads: config.roads.clone(),
            proxies: Proxies::new(&config.proxy, |name| std::env::var(name).ok())?,
            counts: Arc::default(),
        };
        Ok(Self { config, identity, network })
    }

    /// Runs the agent until a signal ends it; `on_ready` is called once it drives, with where metrics and health are told, if anywhere.
    ///
    /// # Errors
    /// When the state is another agent's or cannot be used, or the disk fails.
    pub fn run(
        self,
        signals: &Receiver<Signal>,
        on_ready: impl FnOnce(Option<SocketAddr>),
    ) -> anyhow::Result<()> {
        let _lock = lock(&self.config)?;
        let metrics = Arc::new(AgentMetrics::new(Now::read().boot_ms, Arc::clone(&self.network.counts)));
        let page = self.config.admin.map(|address| serve_admin(address, &metrics)).transpose()?;
        let (outcomes, ended) = unbounded();
        let (events, heard) = bounded(EVENTS_MAX);
        let runner = Runner::new(self.config.scan.clone(), outcomes);
        let options = AgentOptions {
            site: self.identity.site,
            device: self.identity.device,
            boot: BootId(clock::boot_id()?),
            servers: self.config.servers.clone(),
            task_keys: self.config.task_keys()?,
            state: self.config.state.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            platform: platform::platform(),
        };
        let key = self.identity.device_key()?;
        let disk = Arc::new(TimedDisk::new(RealDisk, Arc::clone(&metrics.fsync_times)));
        let agent = Agent::new(options, disk.clone(), key, Now::read(), seed()?)?;
        let memory = MemoryFile::open(disk, &self.config.state);
        let now = Now::read();
        let moment = Moment { boot_ms: now.boot_ms, own: agent.own_time(now) };
        let ladder = Ladder::new(memory.kept().clone(), moment, Random::new(seed()?));
        let connections = Connections::new(Arc::new(self.network), events, ladder, memory);
        tracing::info!(device = %self.identity.device, site = %self.identity.site, "the agent runs");
        let mut driver = Driver { agent, runner, connections, metrics };
        on_ready(page.as_ref().map(HttpServer::local_addr));
        driver.drive(&heard, &ended, signals)
    }
}

/// Drives the agent.
struct Driver {
    agent: Agent,
    runner: Runner,
    connections: Connections,
    metrics: Arc<AgentMetrics>,
}

impl Driver {
    fn drive(
        &mut self,
        heard: &Receiver<(u64, Event)>,
        ended: &Receiver<(TaskId, Outcome)>,
        signals: &Receiver<Signal>,
    ) -> anyhow::Result<()> {
        loop {
            let now = Now::read();
            if let Some(input) = self.connections.handle_time(self.agent.own_time(now), now) {
                self.agent.handle(now, input)?;
            }
            self.carry_out()?;
            self.metrics.note(&self.agent);
            let of_connections = self.connections.next_deadline(self.agent.own_time(now));
            let deadlines = [self.agent.next_deadline(), of_connections];
            let sleep = deadlines.into_iter().flatten().min().map_or(SLEEP_MAX, |deadline_ms| {
                Duration::from_millis(deadline_ms.saturating_sub(Now::read().boot_ms)).min(SLEEP_MAX)
            });
            select! {
                recv(heard) -> event => {
                    let (number, event) = event.context("the sender of events is held here")?;
                    self.on_event(number, event)?;
                }
                recv(ended) -> ended => {
                    let (task, outcome) = ended.context("the sender of outcomes is held here")?;
                    self.agent.handle(Now::read(), Input::Finished { task, outcome })?;
                }
                recv(signals) -> signal => match signal {
                    Ok(Signal::Reload) => {
                        tracing::info!("SIGHUP: nothing is read anew while the agent runs; restart it instead");
                    }
                    Ok(Signal::Terminate) | Err(_) => return self.stop(heard, ended),
                },
                default(sleep) => self.agent.handle_time(Now::read())?,
            }
        }
    }

    fn on_event(&mut self, number: u64, event: Event) -> anyhow::Result<()> {
        let now = Now::read();
        let Some(input) = self.connections.on_event(number, event, self.agent.own_time(now), now) else {
            return Ok(());
        };
        if matches!(input, Input::Said(_)) {
            self.metrics.heard(now.boot_ms);
        }
        Ok(self.agent.handle(now, input)?)
    }

    /// Carries out what the agent wants done.
    fn carry_out(&mut self) -> anyhow::Result<()> {
        while let Some(output) = self.agent.poll_output() {
            match output {
                Output::Connect { server, now, floor } => {
                    let destination = Destination { server, now, floor };
                    if let Some(input) = self.connections.connect(destination, Now::read()) {
                        self.agent.handle(Now::read(), input)?;
                    }
                }
                Output::Disconnect { reason } => {
                    tracing::info!(reason = reason.sentence(), "the connection ends");
                    let now = Now::read();
                    self.connections.disconnect(reason, self.agent.own_time(now), now);
                }
                Output::Say(message) => self.connections.say(message),
                Output::Start(start) => self.runner.start(start),
                Output::Kill { task } => self.runner.kill(task),
            }
        }
        Ok(())
    }

    /// Goodbye; what runs is ended, and what has ended is written down.
    fn stop(
        &mut self,
        heard: &Receiver<(u64, Event)>,
        ended: &Receiver<(TaskId, Outcome)>,
    ) -> anyhow::Result<()> {
        bgb_daemon::ready::stopping();
        tracing::info!("the agent ends");
        let now = Now::read();
        self.agent.handle(now, Input::Stop)?;
        let mut closing = None;
        while let Some(output) = self.agent.poll_output() {
            match output {
                Output::Say(message) => self.connections.say(message),
                Output::Kill { task } => self.runner.kill(task),
                Output::Disconnect { .. } => closing = self.connections.end(self.agent.own_time(now), now),
                Output::Connect { .. } | Output::Start(_) => {}
            }
        }
        self.runner.end();
        while let Ok((task, outcome)) = ended.try_recv() {
            self.agent.handle(Now::read(), Input::Finished { task, outcome })?;
        }
        if let Some(thread) = closing {
            wait_for_goodbye(&thread, heard);
        }
        Ok(())
    }
}

/// Waits until a connection that was ended has sent its goodbye, but not longer than that may take. What it still hears is thrown
/// away: a server that does not stop talking would else have its thread wait for somebody to listen, and the agent for the thread.
fn wait_for_goodbye(thread: &JoinHandle<()>, heard: &Receiver<(u64, Event)>) {
    let deadline = Instant::now() + GOODBYE_LIMIT;
    while !thread.is_finished() && Instant::now() < deadline {
        while heard.try_recv().is_ok() && Instant::now() < deadline {}
        std::thread::sleep(GOODBYE_LOOK);
    }
}

/// Answers `/metrics` and its like.
fn serve_admin(address: SocketAddr, metrics: &Arc<AgentMetrics>) -> anyhow::Result<HttpServer> {
    let listener = admin::bind(address, "agent.toml")?;
    let (of_page, of_health) = (Arc::clone(metrics), Arc::clone(metrics));
    let page = move || of_page.expose(Now::read().boot_ms);
    Ok(admin::serve(listener, page, move || of_health.unready())?)
}

/// Takes the state folder for this process, until the lock is dropped.
fn lock(config: &AgentConfig) -> anyhow::Result<ProcessLock> {
    let folder = &config.state;
    create_dir_durably(&RealDisk, folder)
        .with_context(|| format!("{}: the state folder cannot be made", folder.display()))?;
    // What a device was asked to do, and has found, is nobody else's business.
    std::fs::set_permissions(folder, Permissions::from_mode(STATE_MODE))
        .with_context(|| format!("{}: the state folder is not this user's", folder.display()))?;
    Ok(ProcessLock::take(&folder.join("lock"), "agent")?)
}

/// A seed for jitter.
fn seed() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).context("the system gives no randomness")?;
    Ok(u64::from_ne_bytes(bytes))
}
