//! A site of the load generator's own, in a folder that goes with it: a manager, servers and as many devices as are asked for.
//!
//! The programs are those that lie beside this one. Their ports are on a loopback address of the lab's own, below those that the system
//! gives to outgoing connections.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use toml::{Table, Value};

use crate::distance::Distance;
use crate::fleet::{Fleet, Web};
use crate::interrupt;
use crate::manager::Manager;

/// How long a program may take until it answers.
const START: Duration = Duration::from_secs(30);
/// And how long an answer may take, before it is asked again.
const ASK: Duration = Duration::from_secs(2);
/// So many of the last lines of a log say why a program has ended.
const LOG_LINES: usize = 5;
/// How long it may take to end.
const END: Duration = Duration::from_secs(15);

/// What a lab is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LabOptions {
    pub(crate) devices: usize,
    pub(crate) reactors: usize,
    /// Notification servers of the site, a process each.
    pub(crate) servers: usize,
    /// What each server is configured for.
    pub(crate) connections_max: usize,
    /// Whether devices come through HTTP, too.
    pub(crate) has_web: bool,
    /// How often devices speak when they have nothing to say, if not as often as servers have it by default.
    pub(crate) keepalive_seconds: Option<u32>,
    /// How often servers write the whole list of who is online, if not as often as by default.
    pub(crate) presence_full_seconds: Option<u32>,
    /// Whether addresses of this machine count as strangers', whose handshakes are limited.
    pub(crate) has_strangers: bool,
    /// By so many days the wall clocks of all its programs are behind, until [`Lab::come_to_the_present`].
    pub(crate) days_ago: u32,
}

/// Debian's places of libfaketime, in its variant for programs with threads.
const FAKETIME: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// Ports of the first server: for agents, for its metrics, and for agents that come by HTTP or HTTPS; those of the next are this much higher.
const SERVER_PORT: u16 = 10_123;
const ADMIN_PORT: u16 = 10_125;
const PORTS_APART: u16 = 10;
const HTTP_PORT: u16 = 10_127;
const HTTPS_PORT: u16 = 10_128;
/// The manager's: its API, and its metrics.
const API_PORT: u16 = 10_124;
const MANAGER_ADMIN_PORT: u16 = 10_126;

/// See the module.
pub(crate) struct Lab {
    // In the order in which they go: the folder last.
    servers: Vec<Running>,
    manager: Option<Running>,
    address: Ipv4Addr,
    days_ago: u32,
    has_web: bool,
    /// Between the fleet and its servers, where they are far apart.
    distance: Option<Distance>,
    folder: TempDir,
}

/// A program that was started, and is ended when this is dropped.
pub(crate) struct Running {
    name: &'static str,
    process: Child,
}

impl Lab {
    /// Makes the site and its devices, and starts manager and server; `told` hears how far it is.
    ///
    /// # Errors
    /// When a program is missing, or does not start.
    pub(crate) fn make(options: &LabOptions, told: impl Fn(&str)) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("bgb-loadgen-").tempdir()?;
        let address = own_address();
        let site = folder.path().join("site");
        told("making a site");
        let api = SocketAddr::from((address, API_PORT));
        let metrics = SocketAddr::from((address, MANAGER_ADMIN_PORT));
        let of_manager = ["--manager-listen", &api.to_string(), "--manager-admin", &metrics.to_string()];
        for number in 1..=options.servers {
            let (listen, admin) = (server_of(address, number), admin_of(address, number));
            let made_by = if number == 1 { "init" } else { "server-add" };
            let mut command = Command::new(beside("bgb")?);
            set_back(&mut command, options.days_ago)?;
            command.args(["site", made_by]).arg(&site);
            if number == 1 {
                command.args(["--code", "LAB"]).args(of_manager);
            }
            interrupt::check()?;
            for (name, value) in [("address", listen), ("listen", listen), ("admin", admin)] {
                command.args([format!("--server-{name}"), value.to_string()]);
            }
            let made = command.stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
            if !made.status.success() {
                bail!("bgb site {made_by}: {}", String::from_utf8_lossy(&made.stderr).trim());
            }
            edit(&server_config(&site, number), |config| {
                for (road, port) in [("listen_http", HTTP_PORT), ("listen_https", HTTPS_PORT)] {
                    let listen = options.has_web.then(|| port_of(address, port, number).to_string());
                    config.insert(road.to_owned(), Value::String(listen.unwrap_or_else(|| "off".to_owned())));
                }
                config.insert("reactors".to_owned(), Value::Integer(options.reactors as i64));
                config.insert("connections_max".to_owned(), Value::Integer(options.connections_max as i64));
                if let Some(seconds) = options.keepalive_seconds {
                    config.insert("keepalive_seconds".to_owned(), Value::Integer(seconds.into()));
                }
                if let Some(seconds) = options.presence_full_seconds {
                    config.insert("presence_full_seconds".to_owned(), Value::Integer(seconds.into()));
                }
                if options.has_strangers {
                    config.insert("handshake_exempt_networks".to_owned(), Value::Array(Vec::new()));
                }
            })?;
        }
        let (days_ago, has_web) = (options.days_ago, options.has_web);
        let (servers, manager, distance) = (Vec::new(), None, None);
        let mut lab = Self { servers, manager, address, days_ago, has_web, distance, folder };
        lab.start_manager()?;
        lab.start_servers(options.servers)?;
        let manager = lab.api()?;
        let all =
            |port| (1..=options.servers).map(|number| port_of(address, port, number).to_string()).collect();
        let web = options.has_web.then(|| Web { http: all(HTTP_PORT), https: all(HTTPS_PORT) });
        Fleet::make(&manager, &lab.fleet(), options.devices, web.unwrap_or_default(), |made| {
            told(&format!("making devices: {made} of {}", options.devices));
        })?;
        Ok(lab)
    }

    fn start_manager(&mut self) -> anyhow::Result<()> {
        let config = self.site().join("manager.toml");
        self.manager = Some(Running::start("bgb-manager", &config, self.folder.path(), self.days_ago)?);
        let api = SocketAddr::from((self.address, API_PORT));
        let folder = self.folder.path().to_owned();
        let manager = self.manager.as_mut().context("it was started just now")?;
        wait_for_program(manager, &folder, || TcpStream::connect(api).is_ok())
    }

    /// Programs that are started from now on have the time as it is; the manager is started again.
    ///
    /// # Errors
    /// When the manager does not start.
    pub(crate) fn come_to_the_present(&mut self) -> anyhow::Result<()> {
        if std::mem::take(&mut self.days_ago) == 0 {
            return Ok(());
        }
        self.manager = None;
        self.start_manager()
    }

    /// The site's folder.
    pub(crate) fn site(&self) -> PathBuf {
        self.folder.path().join("site")
    }

    /// The fleet's folder.
    pub(crate) fn fleet(&self) -> PathBuf {
        self.folder.path().join(if self.distance.is_some() { "fleet-afar" } else { "fleet" })
    }

    /// Who connects from now on is so far away from the servers.
    ///
    /// # Errors
    /// When there is no relay, or this was done before.
    pub(crate) fn move_afar(&mut self, round_trip: Duration) -> anyhow::Result<()> {
        let (near, count) = (self.fleet(), self.servers.len());
        let ports: &[u16] = if self.has_web { &[SERVER_PORT, HTTP_PORT, HTTPS_PORT] } else { &[SERVER_PORT] };
        let all =
            |port: &u16| (1..=count).map(|number| port_of(self.address, *port, number)).collect::<Vec<_>>();
        let distance =
            Distance::start(self.address.into(), ports.iter().flat_map(all).collect(), round_trip)?;
        let mut at =
            distance.addresses().chunks(count).map(|part| part.iter().map(SocketAddr::to_string).collect());
        let mut next = || at.next().unwrap_or_default();
        let (servers, web) = (next(), Web { http: next(), https: next() });
        self.distance = Some(distance);
        Fleet::with_servers_at(&near, &self.fleet(), servers, web)
    }

    /// The manager's API.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub(crate) fn api(&self) -> anyhow::Result<Manager> {
        Manager::of_site(&self.site())
    }

    /// The servers' processes.
    pub(crate) fn server_pids(&self) -> Vec<u32> {
        self.servers.iter().map(Running::pid).collect()
    }

    /// The manager's process.
    pub(crate) fn manager_pid(&self) -> Option<u32> {
        self.manager.as_ref().map(Running::pid)
    }

    /// Bytes of the site's database, without what only waits beside it: those of a copy.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub(crate) fn database_bytes(&self) -> anyhow::Result<u64> {
        let copy = self.folder.path().join("copy.db");
        let mut command = Command::new(beside("bgb")?);
        let made = command.args(["site", "backup"]).arg(&copy).env("BGB_SITE", self.site()).output()?;
        if !made.status.success() {
            bail!("bgb site backup: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        let bytes = fs::metadata(&copy)?.len();
        fs::remove_file(&copy)?;
        Ok(bytes)
    }

    /// Starts so many servers, and waits until they take connections.
    ///
    /// # Errors
    /// When one does not.
    pub(crate) fn start_servers(&mut self, count: usize) -> anyhow::Result<()> {
        for number in 1..=count {
            let config = server_config(&self.site(), number);
            self.servers.push(Running::start("bgb-server", &config, self.folder.path(), self.days_ago)?);
        }
        let (address, folder) = (self.address, self.folder.path().to_owned());
        for (server, number) in self.servers.iter_mut().zip(1..) {
            wait_for_program(server, &folder, || is_ready(admin_of(address, number)))?;
        }
        Ok(())
    }

    /// Ends the servers in good order and starts as many anew, each configured for so many connections.
    ///
    /// # Errors
    /// When one does not start.
    pub(crate) fn renew_servers(&mut self, connections_max: usize) -> anyhow::Result<()> {
        let count = self.servers.len();
        self.servers.clear();
        for number in 1..=count {
            edit(&server_config(&self.site(), number), |config| {
                config.insert("connections_max".to_owned(), Value::Integer(connections_max as i64));
            })?;
        }
        self.start_servers(count)
    }

    /// Kills the servers (SIGKILL); how many there were.
    pub(crate) fn kill_servers(&mut self) -> usize {
        let servers = std::mem::take(&mut self.servers);
        let count = servers.len();
        servers.into_iter().for_each(|mut server| server.kill());
        count
    }
}

impl Running {
    fn start(name: &'static str, config: &Path, logs: &Path, days_ago: u32) -> anyhow::Result<Self> {
        let mut command = Command::new(beside(name)?);
        set_back(&mut command, days_ago)?;
        Self::start_program(name, command.arg("--config").arg(config), logs)
    }

    /// Starts a program; what it says goes into a log in `logs`.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) fn start_program(
        name: &'static str,
        command: &mut Command,
        logs: &Path,
    ) -> anyhow::Result<Self> {
        let log = fs::OpenOptions::new().create(true).append(true).open(logs.join(format!("{name}.log")))?;
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let process = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        Ok(Self { name, process })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    fn ask_to_end(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.process.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // All at once; each is waited for when it is dropped itself.
        self.servers.iter().chain(&self.manager).for_each(Running::ask_to_end);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ask_to_end();
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("bgb-loadgen: {} does not end, and is killed", self.name);
        self.kill();
    }
}

/// Has a program believe that it is so many days ago; its monotonic clocks stay as they are.
fn set_back(command: &mut Command, days: u32) -> anyhow::Result<()> {
    if days == 0 {
        return Ok(());
    }
    let library = FAKETIME.into_iter().find(|path| Path::new(path).exists());
    let library = library.context(
        "libfaketime is not installed, and nothing can be some days old; scripts/setup faults installs it",
    )?;
    command.env("LD_PRELOAD", library).env("FAKETIME", format!("-{days}d"));
    command.env("DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
    Ok(())
}

fn server_config(site: &Path, number: usize) -> PathBuf {
    site.join(format!("servers/{number}/server.toml"))
}

fn server_of(address: Ipv4Addr, number: usize) -> SocketAddr {
    port_of(address, SERVER_PORT, number)
}

fn admin_of(address: Ipv4Addr, number: usize) -> SocketAddr {
    port_of(address, ADMIN_PORT, number)
}

/// What is at `port` of the first server, at the one of that number.
fn port_of(address: Ipv4Addr, port: u16, number: usize) -> SocketAddr {
    (address, port + PORTS_APART * (number - 1) as u16).into()
}

/// A program of the same build.
fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.with_file_name(name);
    if path.exists() {
        Ok(path)
    } else {
        bail!("{} is not there; build all programs: make build", path.display())
    }
}

/// A loopback address that no other lab has at this moment: by the number of the process.
pub(crate) fn own_address() -> Ipv4Addr {
    let pid = std::process::id();
    Ipv4Addr::new(127, 32 + (pid >> 14 & 15) as u8, (pid >> 7 & 127) as u8, (pid & 127) as u8 + 1)
}

fn edit(path: &Path, change: impl FnOnce(&mut Table)) -> anyhow::Result<()> {
    let mut table: Table = fs::read_to_string(path)?.parse()?;
    change(&mut table);
    Ok(fs::write(path, table.to_string())?)
}

pub(crate) fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + START;
    while !is_there() {
        if Instant::now() >= deadline {
            bail!("{what} does not answer within {} s", START.as_secs());
        }
        interrupt::check()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits until a program that was started answers; where it has ended instead, its log says why.
fn wait_for_program(
    running: &mut Running,
    logs: &Path,
    mut answers: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let name = running.name;
    wait_for(name, || !running.is_running() || answers())?;
    if !running.is_running() {
        let log = fs::read_to_string(logs.join(format!("{name}.log"))).unwrap_or_default();
        let last: Vec<&str> = log.trim().lines().rev().take(LOG_LINES).collect();
        bail!("{name} has ended: {}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}

/// Whether the server says at its own address that it takes sign-ins.
fn is_ready(admin: SocketAddr) -> bool {
    let asked = ureq::get(format!("http://{admin}/readyz")).config().timeout_global(Some(ASK)).build();
    asked.call().is_ok_and(|answer| answer.status() == 200)
}
