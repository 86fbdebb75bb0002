//! The manager as a running service: opens what it needs, starts its threads, stops them.
//!
//! Threads: one that writes (the manager itself), one that moves the database's log for it, a pool that verifies, one that watches the
//! inbox, a few that answer the API, two for metrics and health. They speak through bounded channels. The order of start: lock, database,
//! keys, inbox, then the API, so that whoever gets an answer gets a true one; the order of stop is the reverse, but that health is told to
//! the end.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context as _, bail};
use bgb_daemon::admin;
use bgb_daemon::clock::Now;
use bgb_daemon::disk::{Disk, RealDisk};
use bgb_daemon::http_server::HttpServer;
use bgb_daemon::lock::ProcessLock;
use bgb_daemon::secret;
use bgb_protocol::api::BODY_BYTES_MAX;
use bgb_site::{Authority, SiteFolder, Store, signing_key};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use uuid::Uuid;

use crate::api::Api;
use crate::bell::FileBell;
use crate::config::ManagerConfig;
use crate::figures::Figures;
use crate::key_book::SiteKeyBook;
use crate::manager::{Manager, ManagerParts};
use crate::metrics;
use crate::verifier::Verifier;
use crate::watcher::Watcher;
use crate::writer::{OrderSender, Writer};

/// Requests of the API that are served at a time: a person or two, and their scripts.
const API_THREADS: usize = 4;
/// The shortest token that is taken, in bytes: 128 bits in hexadecimal.
const TOKEN_BYTES_MIN: usize = 32;

/// A running manager. It stops when it is dropped; [`Service::stop`] says how that went.
pub struct Service {
    api: Option<HttpServer>,
    address: SocketAddr,
    admin: HttpServer,
    stopping: Arc<AtomicBool>,
    watcher: Option<Watcher>,
    /// Dropped to stop the writer.
    stop: Option<Sender<()>>,
    writer: Option<JoinHandle<()>>,
    /// Ends when the writer has.
    checkpointer: Option<JoinHandle<()>>,
    ended: Receiver<()>,
    _lock: ProcessLock,
}

impl Service {
    /// Starts everything; when it returns, the API answers.
    ///
    /// # Errors
    /// One sentence for whoever started it: what is missing, wrong or taken, and what to do.
    pub fn start(config: &ManagerConfig) -> anyhow::Result<Self> {
        let lock = ProcessLock::take(&SiteFolder::manager_lock(&config.database), "manager")?;
        let mut store = open_store(config)?;
        let checkpointer = store.checkpointer()?;
        let token = secret::read(&config.token)?;
        if token.trim_ascii().len() < TOKEN_BYTES_MIN {
            bail!(
                "{}: the token is shorter than {TOKEN_BYTES_MIN} characters; make a long random one",
                config.token.display()
            );
        }
        let listener = TcpListener::bind(config.listen).with_context(|| {
            format!(
                "the API cannot listen on {}; choose another address with `listen` in manager.toml",
                config.listen
            )
        })?;
        let admin = admin::bind(config.admin, "manager.toml")?;
        let figures = Arc::new(Figures::default());
        let (verified_in, verified) = bounded(1);
        let (changed_in, inbox_changed) = bounded(1);
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let manager = assemble(config, store, Arc::clone(&disk), Arc::clone(&figures), verified_in)?;

        let (orders, placed) = OrderSender::new();
        let (stop, stopped) = bounded(0);
        let (ended_in, ended) = bounded(0);
        let writer = Writer { manager, orders: placed, verified, inbox: inbox_changed, stop: stopped };
        let writer = std::thread::Builder::new().name("writer".to_owned()).spawn(move || {
            writer.run();
            drop(ended_in);
        })?;
        let checkpointer =
            std::thread::Builder::new().name("checkpointer".to_owned()).spawn(move || checkpointer.run())?;
        let watcher = Watcher::start(&config.inbox, changed_in);
        let stopping = Arc::new(AtomicBool::new(false));
        let health =
            Health { figures: Arc::clone(&figures), stopping: Arc::clone(&stopping), ended: ended.clone() };
        let admin = health.serve(admin, config)?;
        let api = Arc::new(Api::new(&token, config.database.clone(), &config.inbox, disk, orders, figures));
        let server = HttpServer::start(listener, "api", API_THREADS, BODY_BYTES_MAX, api.handler())?;
        let address = server.local_addr();
        Ok(Self {
            api: Some(server),
            address,
            admin,
            stopping,
            watcher: Some(watcher),
            stop: Some(stop),
            writer: Some(writer),
            checkpointer: Some(checkpointer),
            ended,
            _lock: lock,
        })
    }

    /// Where the API listens, with the port that it really has.
    #[must_use]
    pub fn api_address(&self) -> SocketAddr {
        self.address
    }

    /// Where metrics and health are told, with the port that it really has.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    /// Disconnected when the writer has ended by itself: something is broken, and the service with it.
    #[must_use]
    pub fn ended(&self) -> &Receiver<()> {
        &self.ended
    }

    /// Stops in good order: the API first, then the orders that it took, then the manager.
    ///
    /// # Errors
    /// When the writer had ended with a panic.
    pub fn stop(mut self) -> anyhow::Result<()> {
        match self.join() {
            Some(Err(_)) => bail!("the writer thread ended with a panic; the log says where"),
            _ => Ok(()),
        }
    }

    fn join(&mut self) -> Option<std::thread::Result<()>> {
        self.stopping.store(true, Ordering::Release);
        drop(self.api.take());
        drop(self.watcher.take());
        drop(self.stop.take());
        let writer = self.writer.take().map(JoinHandle::join);
        if let Some(Err(_)) = self.checkpointer.take().map(JoinHandle::join) {
            tracing::error!("the thread that moves the database's log ended with a panic");
        }
        writer
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(Err(_)) = self.join() {
            tracing::error!("the writer thread ended with a panic");
        }
    }
}

/// What the page of metrics and health is told from.
struct Health {
    figures: Arc<Figures>,
    stopping: Arc<AtomicBool>,
    /// Disconnected when the writer has ended.
    ended: Receiver<()>,
}

impl Health {
    fn serve(self, listener: TcpListener, config: &ManagerConfig) -> anyhow::Result<HttpServer> {
        let (figures, database) = (Arc::clone(&self.figures), config.database.clone());
        let page = move || metrics::expose(&figures, &database);
        Ok(admin::serve(listener, page, move || self.unready())?)
    }

    /// Why no order can be carried out and no file taken in. That the database is this manager's alone is certain as long as it runs.
    fn unready(&self) -> Option<&'static str> {
        if self.stopping.load(Ordering::Acquire) {
            return Some("the manager stops");
        }
        if self.ended.try_recv() == Err(TryRecvError::Disconnected) {
            return Some("the manager's writer has ended; the log says why");
        }
        (!self.figures.standing().database_writable)
            .then_some("the site database cannot be written; the status messages say why")
    }
}

fn open_store(config: &ManagerConfig) -> anyhow::Result<Store> {
    let store = Store::open(&config.database)?;
    let (found, named) = (store.code(), config.site);
    if found != named {
        bail!(
            "{} is the database of site {found}, and manager.toml names site {named}",
            config.database.display()
        );
    }
    Ok(store)
}

fn assemble(
    config: &ManagerConfig,
    store: Store,
    disk: Arc<dyn Disk>,
    figures: Arc<Figures>,
    verified: Sender<()>,
) -> anyhow::Result<Manager> {
    let key = signing_key::load_from(&config.task_key)?;
    let (certificate, authority_key) = (config.authority.join("ca.pem"), config.authority.join("ca.key"));
    let authority = Authority::load_from(&certificate, &authority_key, config.site)?;
    let bell = FileBell::open(&config.bell())
        .with_context(|| format!("{}: the doorbell cannot be opened", config.bell().display()))?;
    let threads =
        config.verifiers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
        // Full means that the writer is told already.
        let _ = verified.try_send(());
    });
    let verifier = Verifier::pool(threads, &SiteKeyBook::opener(&config.database), &wake)
        .context("the threads that verify results cannot be started")?;
    let parts = ManagerParts {
        store,
        key,
        authority,
        disk,
        inbox: config.inbox.clone(),
        bell: Box::new(bell),
        verifier,
        figures,
        servers: config.servers.clone(),
        presence_full_ms: config.presence_full_seconds * 1000,
        scan_ms: config.scan_seconds * 1000,
        stopwatch: {
            let started = Instant::now();
            Box::new(move || started.elapsed())
        },
        random: Box::new(random_bytes),
    };
    Manager::new(parts, Now::read()).context("the inbox cannot be used; check its owner and mode")
}

/// Ten bytes of the system's randomness.
pub(crate) fn random_bytes() -> [u8; 10] {
    // A UUID of version 4 is random but for parts of its bytes 6 and 8, which are left out.
    let drawn = Uuid::new_v4().into_bytes();
    let (mut bytes, parts) = ([0; 10], [&drawn[..6], &drawn[9..13]]);
    bytes[..6].copy_from_slice(parts[0]);
    bytes[6..].copy_from_slice(parts[1]);
    bytes
}

#[cfg(test)]
mod tests;
