//! A site under test: its folder, its processes, and what a test asks of them.
//!
//! It owns a temporary folder, the manager and the servers; agents belong to the tests that start them. Each site has a loopback
//! address of its own (Linux has the whole of 127.0.0.0/8), so that its ports are nobody else's, stay the same over restarts,
//! and lie outside the range that the kernel draws from. When a test fails, the ends of all logs are printed before the folder goes.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use bgb_protocol::action::Action;
use bgb_protocol::api::{
    AddDevices, ChangeMembers, CollectionRow, Connectivity, CreateCollection, DeviceBundle, DeviceBundles,
    DeviceDetails, DeviceRow, MembersChanged, MessageRow, PolicyRow, PutPolicy, StartTask, Target,
    TaskCounts, TaskResult, TaskRow,
};
use bgb_protocol::ids::{DeviceId, ServerId, SiteCode, TaskId, UnixMillis};
use bgb_protocol::policy::PolicySettings;
use bgb_protocol::status::StatusId;
use bgb_site::{Authority, SiteFolder};
use tempfile::TempDir;
use toml::{Table, Value};

use crate::api::{Api, ApiFailure};
use crate::process::{self, Account, Ended, Process, Program, Surroundings};
use crate::wait::{SOON, until, until_equal, until_true};

/// The site's code in every test.
pub(crate) const CODE: &str = "LAB";

/// Below the ports that the kernel gives to outgoing connections (32768 and above).
const API_PORT: u16 = 20_000;
const LISTEN_PORTS: u16 = 21_000;
const HTTP_PORTS: u16 = 23_000;
const HTTPS_PORTS: u16 = 24_000;
/// The manager's; servers have those behind it, by number.
const ADMIN_PORTS: u16 = 22_000;

/// Lines of each log that a failing test shows.
const LINES_SHOWN: usize = 40;
/// Logs that a failing test shows.
const LOGS_SHOWN: usize = 24;

/// See the module.
pub(crate) struct Site {
    root: TempDir,
    /// For what only this machine reaches.
    address: Ipv4Addr,
    /// For what devices reach.
    listening: Ipv4Addr,
    manager: Option<Process>,
    servers: BTreeMap<u32, Process>,
    surroundings: BTreeMap<String, Surroundings>,
}

/// A device that was added to the site, with the folder that its agent needs.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) number: DeviceId,
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) bundle: DeviceBundle,
}

/// Changes a configuration file.
pub(crate) fn edit_toml(path: &Path, change: impl FnOnce(&mut Table)) {
    let mut table: Table = fs::read_to_string(path).unwrap().parse().unwrap();
    change(&mut table);
    fs::write(path, table.to_string()).unwrap();
}

/// The wall clock.
pub(crate) fn now() -> UnixMillis {
    UnixMillis(bgb_daemon::clock::Now::read().unix_ms)
}

impl Site {
    /// A new site with as many servers, nothing of it running.
    pub(crate) fn new(servers: u16) -> Self {
        let address = own_address();
        Self::listening_at(address, tempfile::tempdir().unwrap(), address, servers)
    }

    /// The same in a folder of the test's, whose devices reach its servers at `listening`; `address` is a loopback address.
    pub(crate) fn listening_at(listening: Ipv4Addr, root: TempDir, address: Ipv4Addr, servers: u16) -> Self {
        let (manager, surroundings) = (None, BTreeMap::new());
        let site = Self { root, address, listening, manager, servers: BTreeMap::new(), surroundings };
        fs::create_dir(site.outputs()).unwrap();
        let folder = site.folder().root().to_str().unwrap().to_owned();
        let listen = |server| SocketAddr::from((site.listening, LISTEN_PORTS + server)).to_string();
        let api = SocketAddr::from((site.address, API_PORT)).to_string();
        let admin = site.admin_of_manager().to_string();
        site.bgb_done(&[
            "site",
            "init",
            &folder,
            "--code",
            CODE,
            "--server-address",
            &listen(1),
            "--manager-listen",
            &api,
            "--manager-admin",
            &admin,
        ]);
        for server in 2..=servers {
            site.bgb_done(&["site", "server-add", &folder, "--server-address", &listen(server)]);
        }
        edit_toml(&site.folder().manager_config(), |manager| {
            manager.insert("presence_full_seconds".into(), Value::Integer(10));
            manager.insert("servers".into(), (1..=servers).map(listen).collect::<Vec<_>>().into());
        });
        (1..=servers).for_each(|server| site.hasten_server(server));
        site
    }

    /// A new site with its manager and servers running.
    pub(crate) fn running(servers: u16) -> Self {
        let mut site = Self::new(servers);
        site.start_manager();
        (1..=servers).for_each(|server| site.start_server(server.into()));
        site
    }

    /// Intervals at their shortest, so that no test waits for what is minutes in production; ports of the site's own.
    fn hasten_server(&self, server: u16) {
        edit_toml(&self.folder().server_config(ServerId(server.into())), |config| {
            let text = |address, port| Value::String(SocketAddr::from((address, port)).to_string());
            config.insert("listen".into(), text(self.listening, LISTEN_PORTS + server));
            config.insert("listen_http".into(), text(self.listening, HTTP_PORTS + server));
            config.insert("listen_https".into(), text(self.listening, HTTPS_PORTS + server));
            config.insert("admin".into(), text(self.address, ADMIN_PORTS + server));
            config.insert("reactors".into(), Value::Integer(2));
            config.insert("connections_max".into(), Value::Integer(1_000));
            config.insert("keepalive_seconds".into(), Value::Integer(20));
            config.insert("presence_full_seconds".into(), Value::Integer(10));
            config.insert("presence_delta_seconds".into(), Value::Integer(1));
        });
    }

    // Where things are.

    /// The site's folder.
    pub(crate) fn folder(&self) -> SiteFolder {
        SiteFolder::new(self.root.path().join("site"))
    }

    /// A path beside the site's folder, for a test's own files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Where what processes print is kept.
    pub(crate) fn outputs(&self) -> PathBuf {
        self.path("outputs")
    }

    /// The site's own address.
    pub(crate) fn address(&self) -> IpAddr {
        self.address.into()
    }

    /// Where devices reach a server.
    pub(crate) fn server_address(&self, server: u16) -> SocketAddr {
        (self.listening, LISTEN_PORTS + server).into()
    }

    /// Where a server speaks HTTP.
    pub(crate) fn http_address(&self, server: u16) -> SocketAddr {
        (self.listening, HTTP_PORTS + server).into()
    }

    /// Where it speaks HTTPS.
    pub(crate) fn https_address(&self, server: u16) -> SocketAddr {
        (self.listening, HTTPS_PORTS + server).into()
    }

    /// Changes what a server is told; to be called before it starts.
    pub(crate) fn configure_server(&self, server: u32, change: impl FnOnce(&mut Table)) {
        edit_toml(&self.folder().server_config(ServerId(server)), change);
    }

    /// The site's certificate authority.
    pub(crate) fn authority(&self) -> Authority {
        Authority::load(&self.folder(), code()).unwrap()
    }

    // Processes.

    /// Starts the manager and waits until it answers.
    pub(crate) fn start_manager(&mut self) {
        let mut manager = self.spawn_manager(None);
        manager.wait_ready();
        self.manager = Some(manager);
    }

    /// Starts the manager, as `account` if there is one, and waits for nothing.
    pub(crate) fn spawn_manager(&self, account: Option<Account>) -> Process {
        self.spawn(Program::Manager, "manager", &self.folder().manager_config(), account)
    }

    /// Starts a server and waits until it listens.
    pub(crate) fn start_server(&mut self, server: u32) {
        let mut process = self.spawn_server(server, None);
        process.wait_ready();
        self.servers.insert(server, process);
    }

    /// Starts a server, as `account` if there is one, and waits for nothing.
    pub(crate) fn spawn_server(&self, server: u32, account: Option<Account>) -> Process {
        let config = self.folder().server_config(ServerId(server));
        self.spawn(Program::Server, &format!("server-{server}"), &config, account)
    }

    /// Starts a device's agent; it signs in by itself.
    pub(crate) fn start_agent(&self, device: &Device) -> Process {
        self.spawn(Program::Agent, &format!("agent-{}", device.name), &device.config(), None)
    }

    /// From now on the process of this name (`manager`, `server-1`, `agent-pc-1`) is started within these surroundings.
    pub(crate) fn surround(&mut self, name: &str, surroundings: Surroundings) {
        self.surroundings.insert(name.to_owned(), surroundings);
    }

    fn spawn(&self, program: Program, name: &str, config: &Path, account: Option<Account>) -> Process {
        let mut surroundings = self.surroundings.get(name).cloned().unwrap_or_default();
        surroundings.account = account;
        let arguments = [Path::new("--config"), config];
        process::start(program, name, arguments, &self.outputs(), &surroundings)
    }

    /// The running manager.
    pub(crate) fn manager(&mut self) -> &mut Process {
        self.manager.as_mut().expect("the test has started the manager")
    }

    /// A running server.
    pub(crate) fn server(&mut self, server: u32) -> &mut Process {
        self.servers.get_mut(&server).expect("the test has started the server")
    }

    /// Takes the manager out, to end it.
    pub(crate) fn take_manager(&mut self) -> Process {
        self.manager.take().expect("the test has started the manager")
    }

    /// Takes a server out, to end it.
    pub(crate) fn take_server(&mut self, server: u32) -> Process {
        self.servers.remove(&server).expect("the test has started the server")
    }

    // `bgb`.

    /// Runs `bgb` with these arguments.
    pub(crate) fn bgb(&self, arguments: &[&str]) -> Ended {
        process::run(Program::Cli, arguments, &self.outputs())
    }

    /// Runs `bgb` for this site, which has to succeed; gives what it said.
    #[track_caller]
    pub(crate) fn bgb_done(&self, arguments: &[&str]) -> String {
        let ended = self.bgb(arguments);
        assert_eq!(ended.code(), 0, "bgb {arguments:?}: {}{}", ended.stdout, ended.stderr);
        ended.stdout
    }

    /// Runs `bgb --site` with these arguments.
    pub(crate) fn bgb_of_site(&self, arguments: &[&str]) -> Ended {
        let folder = self.folder().root().to_str().unwrap().to_owned();
        let arguments: Vec<_> = ["--site", &folder].iter().chain(arguments).copied().collect();
        self.bgb(&arguments)
    }

    /// `bgb site check` has nothing to say against the site.
    #[track_caller]
    pub(crate) fn check(&self) {
        self.bgb_done(&["site", "check", self.folder().root().to_str().unwrap()]);
    }

    // The manager's API.

    /// The manager's API.
    pub(crate) fn api(&self) -> Api {
        self.api_with_token(fs::read_to_string(self.folder().api_token()).unwrap().trim())
    }

    /// The manager's API for somebody who believes that this is its token.
    pub(crate) fn api_with_token(&self, token: &str) -> Api {
        Api::new(format!("http://{}:{API_PORT}", self.address), token.to_owned())
    }

    /// Adds devices, all at once, and writes the folders that their agents need.
    pub(crate) fn add_devices(&self, names: impl IntoIterator<Item = String>) -> Vec<Device> {
        let names: Vec<_> = names.into_iter().collect();
        let DeviceBundles { devices } = self.api().post("/devices/bulk", &AddDevices { names }).unwrap();
        devices.into_iter().map(|bundle| Device::unpack(bundle, &self.path("devices"))).collect()
    }

    /// Adds one device.
    pub(crate) fn add_device(&self, name: &str) -> Device {
        self.add_devices([name.to_owned()]).remove(0)
    }

    /// Makes a collection of these devices.
    pub(crate) fn collect(&self, collection: &str, devices: &[Device]) {
        let api = self.api();
        let _: CollectionRow =
            api.post("/collections", &CreateCollection { name: collection.to_owned() }).unwrap();
        let add = devices.iter().map(|device| device.name.clone()).collect();
        let _: MembersChanged = api
            .post(&format!("/collections/{collection}/members"), &ChangeMembers { add, remove: Vec::new() })
            .unwrap();
    }

    /// Issues policy documents near their limit of 60 KiB each, for everybody or for one collection: an answer of 2 MiB to a request
    /// of a few bytes.
    pub(crate) fn issue_long_policies(&self, collection: Option<&str>) {
        let path = |number| format!("/srv/{number:0>100}");
        for number in 0..40 {
            let quick_scan_paths = Some((0..500).map(path).collect());
            let settings = PolicySettings { quick_scan_paths, ..PolicySettings::default() };
            let collection = collection.map(str::to_owned);
            let document = PutPolicy { priority: number, collection, settings };
            let _: PolicyRow = self.api().put(&format!("/policies/long-{number}"), &document).unwrap();
        }
    }

    /// Starts a task for a collection, valid for an hour.
    #[track_caller]
    pub(crate) fn start_task(&self, action: Action, collection: &str) -> TaskId {
        self.try_start_task(action, collection, None).unwrap().task
    }

    /// Starts a task for a collection.
    pub(crate) fn try_start_task(
        &self,
        action: Action,
        collection: &str,
        validity_seconds: Option<u64>,
    ) -> Result<TaskRow, ApiFailure> {
        let target = Target::Collection(collection.to_owned());
        self.api().post("/tasks", &StartTask { action, target, validity_seconds, digest: None })
    }

    /// A task.
    pub(crate) fn task(&self, task: TaskId) -> TaskRow {
        self.api().fetch(&format!("/tasks/{task}")).unwrap()
    }

    /// A task's counts, which add up whenever they are looked at.
    #[track_caller]
    pub(crate) fn counts(&self, task: TaskId) -> TaskCounts {
        let counts = self.task(task).counts;
        assert!(counts.adds_up(), "the counts do not add up: {counts:?}");
        counts
    }

    /// What devices have said of a task, by device number.
    pub(crate) fn results(&self, task: TaskId) -> Vec<TaskResult> {
        self.api().list(&format!("/tasks/{task}/results")).unwrap()
    }

    /// Every device, by number.
    pub(crate) fn devices(&self) -> Vec<DeviceRow> {
        self.api().list("/devices").unwrap()
    }

    /// All that is known of a device.
    pub(crate) fn device(&self, device: &Device) -> DeviceDetails {
        self.api().fetch(&format!("/devices/{}", device.number)).unwrap()
    }

    /// The texts of all status messages with this id, the newest first.
    pub(crate) fn messages(&self, id: StatusId) -> Vec<String> {
        let rows: Vec<MessageRow> = self.api().list("/messages").unwrap();
        let of_id = rows.into_iter().filter(|row| row.message.id == id.number());
        of_id.map(|row| format!("{} {}", row.message.about, row.message.text)).collect()
    }

    /// Waits for a status message with this id whose text holds every one of `words`.
    #[track_caller]
    pub(crate) fn wait_message(&self, id: StatusId, words: &[&str]) -> String {
        until(&format!("a status message {id:?} with {words:?}"), SOON, || {
            self.messages(id).into_iter().find(|text| words.iter().all(|word| text.contains(word)))
        })
    }

    /// Waits until so many devices are online.
    #[track_caller]
    pub(crate) fn wait_online(&self, wanted: usize) {
        until_equal("so many devices are online", SOON * 2, &wanted, || {
            self.devices().iter().filter(|device| device.connectivity == Connectivity::Online).count()
        });
    }

    /// Waits until so many devices of a task have succeeded.
    #[track_caller]
    pub(crate) fn wait_succeeded(&self, task: TaskId, wanted: u64) {
        until_equal("so many devices have succeeded", SOON * 2, &wanted, || self.counts(task).succeeded);
    }

    // A server's own word.

    /// What server 1 holds in memory.
    pub(crate) fn server_resident_kib(&self) -> u64 {
        self.servers[&1].resident_kib()
    }

    /// A number from a server's /metrics, such as `bgb_server_sessions`; 0 when it does not answer.
    pub(crate) fn metric(&self, server: u16, name: &str) -> u64 {
        let text = self.metrics(server);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.trim().parse().unwrap())
    }

    /// How many connections of a server ended for a reason.
    pub(crate) fn closed(&self, server: u16, reason: &str) -> u64 {
        self.metric(server, &format!("bgb_server_closed_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until so many connections of server 1 have ended for a reason.
    #[track_caller]
    pub(crate) fn wait_closed(&self, reason: &str, wanted: u64) {
        let what = format!("connections have ended with {reason}");
        until_equal(&what, SOON, &wanted, || self.closed(1, reason));
    }

    /// Where a server's metrics are.
    pub(crate) fn admin_of_server(&self, server: u16) -> SocketAddr {
        (self.address, ADMIN_PORTS + server).into()
    }

    /// Where the manager's metrics are.
    pub(crate) fn admin_of_manager(&self) -> SocketAddr {
        (self.address, ADMIN_PORTS).into()
    }

    /// A server's log.
    pub(crate) fn server_log(&self) -> String {
        fs::read_to_string(self.folder().log("BGBServer.log")).unwrap_or_default()
    }

    /// Waits until the log of the servers holds every one of `words` in one line.
    #[track_caller]
    pub(crate) fn wait_server_log(&self, words: &[&str]) {
        until_true(&format!("a line of BGBServer.log with {words:?}"), SOON, || {
            self.server_log().lines().any(|line| words.iter().all(|word| line.contains(word)))
        });
    }

    /// What the servers have logged of their roads through HTTP.
    pub(crate) fn http_log(&self) -> String {
        fs::read_to_string(self.folder().log("BgbHttpProxy.log")).unwrap_or_default()
    }

    fn metrics(&self, server: u16) -> String {
        let url = format!("http://{}/metrics", self.admin_of_server(server));
        let answer = ureq::get(url).call().and_then(|mut answer| answer.body_mut().read_to_string());
        answer.unwrap_or_default()
    }
}

impl Device {
    fn unpack(bundle: DeviceBundle, parent: &Path) -> Self {
        let folder = parent.join(&bundle.name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("agent.toml"), &bundle.agent_toml).unwrap();
        // Whatever the umask: an agent refuses a configuration that others may write.
        fs::set_permissions(folder.join("agent.toml"), fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(folder.join("device.pem"), &bundle.certificate_pem).unwrap();
        fs::write(folder.join("authority.pem"), &bundle.authority_pem).unwrap();
        bgb_daemon::secret::write_new(&folder.join("device.key"), bundle.key_pem.as_bytes()).unwrap();
        Self { number: bundle.number, name: bundle.name.clone(), folder, bundle }
    }

    /// Its agent's configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    /// Lets its agent connect elsewhere.
    pub(crate) fn point_at(&self, servers: &[SocketAddr]) {
        let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
        edit_toml(&self.config(), |config| {
            config.insert("servers".into(), servers.into());
        });
    }

    /// Lets its agent scan by a command of the test's.
    pub(crate) fn scan_by(&self, command: &[&str]) {
        let command: Vec<_> = command.iter().map(ToString::to_string).collect();
        edit_toml(&self.config(), |config| {
            let scan = config.entry("scan").or_insert_with(|| Value::Table(Table::new()));
            scan.as_table_mut().unwrap().insert("command".into(), command.into());
        });
    }

    /// Everything that its agent has logged.
    pub(crate) fn log(&self) -> String {
        let mut logs = Vec::new();
        find_files(&self.folder, &mut logs);
        let is_log = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "log");
        logs.iter().filter(is_log).map(|path| fs::read_to_string(path).unwrap_or_default()).collect()
    }

    /// Waits until its agent's log holds every one of `words` in one line.
    #[track_caller]
    pub(crate) fn wait_log(&self, words: &[&str]) {
        until_true(&format!("a line of {}'s log with {words:?}", self.name), SOON, || {
            self.log().lines().any(|line| words.iter().all(|word| line.contains(word)))
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(self.root.path());
            for server in self.servers.keys() {
                println!("---- server {server}: what is not 0 in its metrics");
                let metrics = self.metrics(u16::try_from(*server).unwrap());
                let told = metrics.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
                told.for_each(|line| println!("{line}"));
            }
        }
    }
}

/// The site's code.
pub(crate) fn code() -> SiteCode {
    CODE.parse().unwrap()
}

/// A loopback address that no other site has that is there at the same time: a window of 256 for each test process, whether it runs
/// one test or all of them, in the 24 bits that there are.
fn own_address() -> Ipv4Addr {
    static SITES: AtomicU32 = AtomicU32::new(0);
    let site = SITES.fetch_add(1, Ordering::Relaxed);
    // Neither the address that everybody uses nor the last one, which is the network's.
    let host =
        (std::process::id().wrapping_mul(256).wrapping_add(site) & 0x00ff_ffff).clamp(256, 0x00ff_fffe);
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 0)) | host)
}

fn show_logs(root: &Path) {
    let mut files = Vec::new();
    find_files(root, &mut files);
    // What a daemon logs stands on its standard error as well.
    let shown = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "err");
    for path in files.iter().filter(shown).take(LOGS_SHOWN) {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        if !lines.is_empty() {
            println!("---- {} ({} lines)", path.strip_prefix(root).unwrap_or(path).display(), lines.len());
            lines[lines.len().saturating_sub(LINES_SHOWN)..].iter().for_each(|line| println!("{line}"));
        }
    }
}

/// Every file below `folder`, in the order of names.
pub(crate) fn find_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() { find_files(&path, found) } else { found.push(path) }
    }
}
