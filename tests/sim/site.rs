//! The site: the product's manager on a real database, the inbox that it reads, and what is kept of them for comparison.
//!
//! The manager is driven a step at a time on virtual time. Its database is SQLite's, in a folder of its own, and outside the simulated
//! disks: a manager that is killed loses what it had not committed, and no more. After every commit what the database says is compared
//! with the model.
//!
//! Making a site and its devices' certificates takes longer than a world, so all worlds of a process begin with copies of one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bgb_daemon::disk::SimDisk;
use bgb_manager::bell::Bell;
use bgb_manager::figures::Figures;
use bgb_manager::key_book::SiteKeyBook;
use bgb_manager::manager::{Manager, ManagerParts, Next};
use bgb_manager::orders::{Answer, Order};
use bgb_manager::verifier::Verifier;
use bgb_protocol::api::{AddDevices, ErrorBody};
use bgb_protocol::file::{FileKind, Header};
use bgb_protocol::ids::{BootId, DeviceId, ServerId, SessionNumber, SiteCode, TaskId, UnixMillis};
use bgb_protocol::message::RoadTaken;
use bgb_protocol::signature::{SigningKey, TrustedKeys};
use bgb_protocol::state::TaskState;
use bgb_site::init::{InitOptions, ServerOptions, server_add, site_init};
use bgb_site::store::PresenceState;
use bgb_site::{Authority, Reader, SiteFolder, Store, check, signing_key};
use rusqlite::{Connection, OpenFlags};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use tempfile::TempDir;

use crate::dice::Dice;
use crate::hosts::{INBOX, SITE_HOST, inbox_of};
use crate::servers::{Late, SERVERS, address_of};
use crate::tally::Kind;
use crate::world::{EPOCH_UNIX_MS, Event, World};

/// Devices of the site, of which a world has some.
const DEVICES: u32 = 7;
/// Devices of the second block of a target set (2,048 in each) have numbers from here on.
const SECOND_BLOCK: u32 = 2_050;
/// So many numbers before it are no device's.
pub(crate) const NUMBERS_OF_NOBODY: u64 = SECOND_BLOCK as u64 - 5;
/// How often the manager looks into its inbox by itself: it is told of every file.
const SCAN_MS: u64 = 10_000;
/// A change of the inbox is noticed within this.
const NOTICED_MS_MAX: u64 = 30;
/// So many files in a thousand that are held up are so while their server is started anew, by another clock.
const OUTLIVES_ITS_SERVER_PER_MILLE: u64 = 400;
/// How late a file is on average; a full list, until the next life of its server has said who is there.
const LATE_FILE_MS: u64 = 20_000;
const LATE_FULL_LIST_MS: u64 = 40_000;
/// A late file that the disk refuses tries again after this.
const LATE_FILE_AGAIN_MS: u64 = 500;
/// Whoever starts a manager that could not start tries again within this.
const START_AGAIN_MS_MAX: u64 = 5_000;

/// The site.
pub(crate) struct Site {
    pub(crate) code: SiteCode,
    pub(crate) trusted: TrustedKeys,
    pub(crate) key: SigningKey,
    pub(crate) manager: Option<Manager>,
    /// When the manager wants its next step, in virtual time.
    pub(crate) due_ms: Option<u64>,
    /// Whether the administrator's collection has been made.
    pub(crate) has_offices: bool,
    folder: SiteFolder,
    bell: Arc<AtomicU64>,
    bell_heard: u64,
    starts: u64,
    /// A connection of the one who looks on.
    watch: Option<Connection>,
    version: i64,
    /// Of all results, when they were compared last.
    results_mark: (i64, i64, i64),
    root: TempDir,
}

/// What the site has counted of a device.
pub(crate) type FinalWord = (TaskId, DeviceId, TaskState);

/// What the database has of a device.
pub(crate) type Shown = (usize, BootId, SessionNumber);

/// A site as every world begins with it.
struct Template {
    root: TempDir,
    devices: Vec<TemplateDevice>,
}

/// A device of the site.
#[derive(Clone)]
pub(crate) struct TemplateDevice {
    pub(crate) number: DeviceId,
    /// PKCS#8.
    pub(crate) key: Vec<u8>,
}

static TEMPLATE: LazyLock<Template> = LazyLock::new(Template::make);

struct CountingBell(Arc<AtomicU64>);

impl Bell for CountingBell {
    fn ring(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A folder in memory, where there is one: the database syncs at every commit.
fn new_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary folder can be made")
}

impl Template {
    fn make() -> Self {
        let root = new_folder();
        let now = UnixMillis(EPOCH_UNIX_MS);
        let code = "SIM".parse().expect("three capital letters");
        let options = InitOptions::new(root.path().join("site"), code, vec![address_of(0)], now);
        let folder = site_init(&options).expect("a site can be made").folder;
        for server in 1..SERVERS {
            let options = ServerOptions {
                addresses: vec![address_of(server)],
                listen: options.server_listen,
                admin: options.server_admin,
                now,
            };
            server_add(&folder, &options).expect("a server can be added");
        }
        let parts = parts(&folder, Arc::default(), Dice::new(0), 300_000, SimDisk::new());
        let clock = bgb_daemon::clock::Now { unix_ms: now.0, boot_ms: 1, mono_ms: 1 };
        let mut manager = Manager::new(parts.expect("a new site can be opened"), clock)
            .expect("an empty disk takes the inbox's folders");
        let is_in_second = |device: &u32| device % 3 == 2;
        let (second, first): (Vec<_>, Vec<_>) = (0..DEVICES).partition(is_in_second);
        let mut devices = add_devices(&mut manager, clock, &first);
        let sql = format!("UPDATE site SET device_next = {SECOND_BLOCK}");
        let connection = Connection::open(folder.database()).expect("the database is there");
        connection.execute(&sql, []).expect("the site has its row");
        devices.extend(add_devices(&mut manager, clock, &second));
        manager.stop(clock);
        drop(manager);
        let log = "PRAGMA wal_checkpoint(TRUNCATE)";
        connection.query_row(log, [], |_| Ok(())).expect("nobody is in the way");
        devices.sort_by_key(|device| device.0);
        Self { root, devices: devices.into_iter().map(|(_, device)| device).collect() }
    }
}

fn add_devices(
    manager: &mut Manager,
    now: bgb_daemon::clock::Now,
    numbers: &[u32],
) -> Vec<(u32, TemplateDevice)> {
    let names = numbers.iter().map(|number| format!("pc-{number}")).collect();
    let answer = manager.handle_order(now, Order::AddDevices(AddDevices { names }));
    let Ok(Answer::Devices(bundles)) = answer else { panic!("devices cannot be added: {answer:?}") };
    let device = |bundle: bgb_protocol::api::DeviceBundle| {
        let key = PrivatePkcs8KeyDer::from_pem_slice(bundle.key_pem.as_bytes()).expect("the key is PEM");
        TemplateDevice { number: bundle.number, key: key.secret_pkcs8_der().to_vec() }
    };
    numbers.iter().copied().zip(bundles.into_iter().map(device)).collect()
}

/// The devices of the site, by the number of their machine; more than a world has.
pub(crate) fn devices() -> &'static [TemplateDevice] {
    &TEMPLATE.devices
}

/// What a manager of the site is made of. Nothing of it comes from outside the world but the database's bytes.
fn parts(
    folder: &SiteFolder,
    bell: Arc<AtomicU64>,
    mut dice: Dice,
    presence_full_ms: u64,
    disk: SimDisk,
) -> Result<ManagerParts, String> {
    let store = Store::open(&folder.database()).map_err(|error| error.to_string())?;
    let keys = SiteKeyBook::open(&folder.database()).map_err(|error| error.to_string())?;
    Ok(ManagerParts {
        key: signing_key::load(folder).map_err(|error| error.to_string())?,
        authority: Authority::load(folder, store.code()).map_err(|error| error.to_string())?,
        store,
        disk: Arc::new(disk),
        inbox: PathBuf::from(INBOX),
        bell: Box::new(CountingBell(bell)),
        verifier: Verifier::inline(Box::new(keys)),
        figures: Arc::new(Figures::default()),
        servers: (0..SERVERS).map(address_of).collect(),
        presence_full_ms,
        scan_ms: SCAN_MS,
        stopwatch: Box::new(|| Duration::ZERO),
        random: Box::new(move || dice.bytes()),
    })
}

impl Site {
    /// A copy of the site that all worlds begin with.
    pub(crate) fn new() -> Self {
        let root = new_folder();
        copy_folder(&TEMPLATE.root.path().join("site"), &root.path().join("site"));
        let folder = SiteFolder::new(root.path().join("site"));
        let key = signing_key::load(&folder).expect("the site has a signing key");
        let site = Self {
            code: "SIM".parse().expect("three capital letters"),
            trusted: TrustedKeys::new([key.public()]),
            key,
            manager: None,
            due_ms: None,
            has_offices: false,
            folder,
            bell: Arc::default(),
            bell_heard: 0,
            starts: 0,
            watch: None,
            version: 0,
            results_mark: (0, 0, 0),
            root,
        };
        for server in 0..SERVERS {
            site.link(&site.root.path().join(format!("server{}.db", server + 1)));
        }
        site
    }

    /// The folder that holds all of it.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.database()
    }

    /// Makes the link by which a server reaches the database.
    pub(crate) fn link(&self, link: &Path) {
        std::os::unix::fs::symlink(self.folder.database(), link).expect("a link can be made");
    }

    /// Where the site shows a device as online.
    pub(crate) fn shown(&self, device: DeviceId) -> Option<Shown> {
        let reader = Reader::open(&self.folder.database()).expect("the database can be read");
        let row = reader.read().device(device).expect("the database can be read")?;
        let presence = row.presence;
        if presence.state != PresenceState::Online {
            return None;
        }
        let ServerId(server) = presence.server?;
        Some((server as usize - 1, presence.boot?, presence.session?))
    }

    /// By which road the site has the device come.
    pub(crate) fn road_shown(&self, device: DeviceId) -> Option<RoadTaken> {
        let reader = Reader::open(&self.folder.database()).expect("the database can be read");
        reader.read().device(device).expect("the database can be read")?.presence.road
    }

    /// Devices that the site shows as online, or as gone, and with which session.
    pub(crate) fn sessions_shown(&mut self) -> Vec<(DeviceId, Shown, bool)> {
        let sql = "SELECT number, server, boots, session, presence = 1 FROM device WHERE presence IN (1, 2)";
        let mut statement = self.watch().prepare_cached(sql).expect("the database has these columns");
        let read = |row: &rusqlite::Row<'_>| {
            let boots: Vec<u8> = row.get(2)?;
            let boot = BootId(boots.first_chunk().copied().unwrap_or_default());
            let session = SessionNumber(row.get::<_, i64>(3)? as u64);
            Ok((DeviceId(row.get(0)?), (row.get::<_, u32>(1)? as usize - 1, boot, session), row.get(4)?))
        };
        let rows = statement.query_map([], read).expect("the database can be read");
        rows.collect::<Result<_, _>>().expect("the database can be read")
    }

    /// Nobody looks on while the file is replaced.
    pub(crate) fn close(&mut self) {
        self.watch = None;
        self.results_mark = (0, 0, 0);
    }

    fn watch(&mut self) -> &Connection {
        let database = self.folder.database();
        self.watch.get_or_insert_with(|| {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            Connection::open_with_flags(database, flags).expect("the database can be read")
        })
    }

    /// Whether anything was committed since this was asked last.
    fn has_changed(&mut self) -> bool {
        let version = self.watch().pragma_query_value(None, "data_version", |row| row.get(0));
        let version = version.expect("the database can be read");
        std::mem::replace(&mut self.version, version) != version
    }

    /// What the database has of results, when it is not as it was compared last: every final word, and every count that is not the
    /// number of its rows.
    fn new_results(&mut self) -> Option<(Vec<FinalWord>, Vec<String>)> {
        let mark = "SELECT (SELECT count(*) FROM result), (SELECT total(state) + total(heard) FROM result), \
             (SELECT total(n * (state + 1)) FROM task_count)";
        let read = |row: &rusqlite::Row<'_>| {
            Ok((row.get(0)?, row.get::<_, f64>(1)? as i64, row.get::<_, f64>(2)? as i64))
        };
        let mark = self.watch().query_row(mark, [], read).expect("the database can be read");
        if std::mem::replace(&mut self.results_mark, mark) == mark {
            return None;
        }
        let read = |(task, device, state)| Some((task, device, TaskState::from_code(state)?));
        let finals =
            self.words().into_iter().filter_map(read).filter(|(.., state)| state.is_final()).collect();
        Some((finals, self.miscounted()))
    }

    /// The tasks that the site has.
    fn tasks(&mut self) -> BTreeSet<TaskId> {
        let mut statement =
            self.watch().prepare_cached("SELECT id FROM task").expect("the database has this column");
        let tasks = statement.query_map([], |row| Ok(TaskId::from_bytes(row.get(0)?)));
        tasks.expect("the database can be read").collect::<Result<_, _>>().expect("the database can be read")
    }

    /// What devices have said of tasks so far: the state's code.
    fn words(&mut self) -> Vec<(TaskId, DeviceId, u8)> {
        let sql = "SELECT id, device, result.state FROM result JOIN task ON task.number = result.task";
        let mut statement = self.watch().prepare_cached(sql).expect("the database has these columns");
        let words = statement
            .query_map([], |row| Ok((TaskId::from_bytes(row.get(0)?), DeviceId(row.get(1)?), row.get(2)?)));
        words.expect("the database can be read").collect::<Result<_, _>>().expect("the database can be read")
    }

    /// Counts that are not the number of their rows.
    fn miscounted(&mut self) -> Vec<String> {
        let sql = "SELECT lower(hex(id)) || ': ' || counted.state || ', ' || counted.n FROM \
             (SELECT task, state, sum(n) AS n FROM \
                (SELECT task, state, n FROM task_count UNION ALL SELECT task, state, -count(*) FROM result GROUP BY task, state) \
              GROUP BY task, state HAVING sum(n) <> 0) AS counted JOIN task ON task.number = counted.task";
        let mut statement = self.watch().prepare_cached(sql).expect("the database has these columns");
        let rows = statement.query_map([], |row| row.get(0)).expect("the database can be read");
        rows.collect::<Result<_, _>>().expect("the database can be read")
    }
}

/// What a file is called until it comes: as one that is not finished, which the manager leaves alone.
fn late(name: &str) -> String {
    format!(".tmp-late-{name}")
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder can be made");
    for entry in std::fs::read_dir(from).expect("the template is there").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("the template can be copied");
        }
    }
}

impl World {
    pub(crate) fn start_manager_after(&mut self, after_ms: u64) {
        self.site.starts += 1;
        let starts = self.site.starts;
        self.after(after_ms, Event::ManagerStarts { starts });
    }

    pub(crate) fn on_manager_starts(&mut self, starts: u64) {
        if self.site.starts != starts || self.site.manager.is_some() || !self.hosts[SITE_HOST].has_power() {
            return;
        }
        let (now, before) = (self.host_now(0), self.disk_faults());
        let disk = self.hosts[SITE_HOST].disk.clone();
        let (bell, dice) = (Arc::clone(&self.site.bell), Dice::new(self.dice.next()));
        let parts = parts(&self.site.folder, bell, dice, self.weather.presence_full_ms, disk);
        let made = parts.and_then(|parts| Manager::new(parts, now).map_err(|error| error.to_string()));
        match made {
            Ok(manager) => {
                self.say(format_args!("the manager starts"));
                self.site.manager = Some(manager);
                self.site.due_ms = Some(self.now_ms);
                self.check_site();
            }
            Err(error) => {
                let error = error.replace(&*self.site.root().to_string_lossy(), "");
                self.say(format_args!("the manager cannot start: {error}"));
                self.tally.count(Kind::ManagerCannotStart);
                self.expect_reason("a manager that starts", before, false, &error);
                let after_ms = self.dice.between(500, START_AGAIN_MS_MAX);
                self.start_manager_after(after_ms);
            }
        }
        self.check_hosts();
    }

    /// The manager's process is gone.
    pub(crate) fn drop_manager(&mut self) {
        if self.site.manager.take().is_some() {
            self.say(format_args!("the manager is gone"));
        }
        self.site.due_ms = None;
    }

    /// The manager does one piece of what is due.
    pub(crate) fn step_manager(&mut self) {
        let now = self.host_now(0);
        let Some(manager) = self.site.manager.as_mut() else { return };
        let next = manager.step(now);
        self.site.due_ms = Some(match next {
            // Each step takes its time.
            Next::Now => self.now_ms + 1,
            Next::At(due_ms) => self.at_mono(due_ms).max(self.now_ms + 1),
        });
        self.after_manager();
    }

    /// An administrator orders something; `None` when nobody is there to take it.
    pub(crate) fn order(&mut self, order: Order) -> Option<Result<Answer, ErrorBody>> {
        let now = self.host_now(0);
        let answer = self.site.manager.as_mut()?.handle_order(now, order);
        self.after_manager();
        Some(answer)
    }

    /// Files have come into the inbox.
    pub(crate) fn inbox_changes(&mut self) {
        let after_ms = self.dice.between(1, NOTICED_MS_MAX);
        self.after(after_ms, Event::InboxNoticed);
    }

    pub(crate) fn on_inbox_noticed(&mut self) {
        let now_ms = self.now_ms;
        if let Some(manager) = self.site.manager.as_mut() {
            manager.on_inbox_changed();
            self.site.due_ms = Some(now_ms);
        }
    }

    fn after_manager(&mut self) {
        if self.site.has_changed() {
            self.compare_results();
            self.compare_presence();
        }
        let rung = self.site.bell.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.site.bell_heard, rung) != rung {
            self.ring_bell();
        }
        self.check_hosts();
    }

    /// Holds what the database says of results against the model. Invariants 5, 6 and 12.
    fn compare_results(&mut self) {
        let Some((finals, miscounted)) = self.site.new_results() else { return };
        self.say(format_args!("the site has {} final words", finals.len()));
        if let Some(first) = miscounted.first() {
            return self.violated(format!("the counts of a task do not add up: {first}"));
        }
        match self.model.on_counted(&finals) {
            Ok(new) => new.into_iter().for_each(|state| self.count_state(state)),
            Err(what) => self.violated(what),
        }
    }

    /// A session that its server holds is not shown as gone, and one that has gone does not come back, whatever files come late or
    /// again. Invariants 7 and 12.
    fn compare_presence(&mut self) {
        for (device, (server, boot, session), is_online) in self.site.sessions_shown() {
            let shards = self.servers[server].process.iter().flat_map(|process| &process.shards);
            let mut sessions = shards.filter_map(|own| own.active.get(&device));
            let is_held = sessions.any(|active| (active.boot, active.session) == (boot, session));
            let server = server + 1;
            if !is_online && is_held {
                self.violated(format!(
                    "device {device} is shown as gone from server {server}, which holds its session {session}"
                ));
            }
            let kept = self.model.on_shown(device, (boot, session), is_online);
            self.expect(kept);
        }
    }

    /// `bgb site check`.
    pub(crate) fn check_site(&mut self) {
        match check::check(&self.site.database()) {
            Ok(report) if report.is_sound() => {
                let there = self.site.tasks();
                self.expect(self.model.has_all_tasks(&there));
            }
            Ok(report) => self.violated(format!("the site is not sound: {:?}", report.findings)),
            Err(error) => self.violated(format!("the site cannot be checked: {error}")),
        }
    }

    fn count_state(&mut self, state: TaskState) {
        match state {
            TaskState::Succeeded => self.tally.count(Kind::EndedSucceeded),
            TaskState::Failed => self.tally.count(Kind::EndedFailed),
            TaskState::Interrupted => self.tally.count(Kind::EndedInterrupted),
            TaskState::Refused => self.tally.count(Kind::EndedRefused),
            TaskState::Cancelled => self.tally.count(Kind::EndedCancelled),
            TaskState::Received | TaskState::Running | TaskState::NoAnswer => {}
        }
    }

    /// A file that was taken in comes again: somebody has put it back.
    pub(crate) fn repeat_file(&mut self) {
        let disk = self.hosts[SITE_HOST].disk.clone();
        let Some((path, server)) = self.some_done_file() else { return };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // `<when>-<server>-<the name that its header gives it>`
        let Some(name) = name.splitn(3, '-').nth(2).map(str::to_owned) else { return };
        let target = Path::new(INBOX).join(server.to_string());
        let copied = bgb_daemon::disk::Disk::read(&disk, &path)
            .and_then(|bytes| bgb_daemon::disk::replace_durably(&disk, &target.join(&name), &bytes));
        if copied.is_ok() {
            self.tally.count(Kind::FileRepeated);
            self.say(format_args!("file {name} of server {server} comes again"));
            self.inbox_changes();
        }
        self.check_hosts();
    }

    /// If a file of the server is to be late, one that has just come is on its way again: those after it overtake it, as they do where
    /// one cannot be carried for itself.
    pub(crate) fn hold_up_file(&mut self, server: usize) {
        use bgb_daemon::disk::Disk as _;
        let left_ms = self.weather.heals_at_ms.saturating_sub(self.now_ms);
        let late_next = self.servers[server].late_next;
        if late_next == Late::None || left_ms == 0 {
            return;
        }
        let (disk, folder) = (self.hosts[SITE_HOST].disk.clone(), inbox_of(server));
        let there = disk.list(&folder).unwrap_or_default().into_iter().map(|entry| entry.name);
        let is_full_list = |name: &String| {
            let header = disk.read(&folder.join(name)).ok().and_then(|bytes| Header::decode(&bytes).ok());
            header.is_some_and(|header| header.kind == FileKind::PresenceFull && header.rows > 0)
        };
        let is_meant = |name: &String| late_next == Late::Any || is_full_list(name);
        let names: Vec<_> = there.filter(|name| !name.starts_with('.') && is_meant(name)).collect();
        let Some(name) = names.into_iter().next_back() else {
            // A full list may be a while in coming.
            if late_next == Late::Any {
                self.servers[server].late_next = Late::None;
            }
            return;
        };
        self.servers[server].late_next = Late::None;
        if disk.rename(&folder.join(&name), &folder.join(late(&name))).is_ok() {
            // If this fails, a crash may bring it back under its own name, and then it is not late.
            let _ = disk.sync_dir(&folder);
            self.tally.count(Kind::FileOvertaken);
            self.say(format_args!("file {name} of server {} is held up", server + 1));
            let mean_ms = if late_next == Late::FullList { LATE_FULL_LIST_MS } else { LATE_FILE_MS };
            let after_ms = self.dice.around(mean_ms).min(left_ms);
            self.after(after_ms, Event::LateFileComes { server, name });
            if late_next == Late::FullList || self.dice.chance(OUTLIVES_ITS_SERVER_PER_MILLE) {
                let comes_ms = self.dice.below(after_ms / 2 + 1);
                self.after(comes_ms, Event::ServerComesAnew { server });
            }
        }
    }

    pub(crate) fn on_late_file_comes(&mut self, server: usize, name: String) {
        use bgb_daemon::disk::Disk as _;
        let (disk, folder) = (self.hosts[SITE_HOST].disk.clone(), inbox_of(server));
        let came =
            disk.rename(&folder.join(late(&name)), &folder.join(&name)).and_then(|()| disk.sync_dir(&folder));
        if came.is_ok() {
            self.tally.count(Kind::FileCameLate);
            self.say(format_args!("file {name} of server {} comes, late", server + 1));
            self.inbox_changes();
        } else if disk.open_read(&folder.join(late(&name))).is_ok() {
            self.after(LATE_FILE_AGAIN_MS, Event::LateFileComes { server, name });
        }
        self.check_hosts();
    }

    fn some_done_file(&mut self) -> Option<(PathBuf, u32)> {
        use bgb_daemon::disk::Disk as _;
        let disk = self.hosts[SITE_HOST].disk.clone();
        let server = self.dice.between(1, SERVERS as u64) as u32;
        let folder = Path::new(INBOX).join("done").join(server.to_string());
        let hours = disk.list(&folder).ok()?;
        let mut files = Vec::new();
        for entry in hours {
            let path = folder.join(&entry.name);
            if entry.is_dir {
                files.extend(disk.list(&path).ok()?.into_iter().map(|file| path.join(file.name)));
            } else {
                files.push(path);
            }
        }
        (!files.is_empty()).then(|| (files.swap_remove(self.dice.place(files.len())), server))
    }

    /// Devices that the site does not leave out of a target set.
    pub(crate) fn is_active(&self, device: DeviceId) -> bool {
        !self.model.is_blocked(device)
    }
}
