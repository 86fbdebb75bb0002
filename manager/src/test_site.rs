//! A whole site for tests: a real database in a folder of its own, an inbox on a simulated disk, and devices that can sign.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bgb_daemon::clock::Now;
use bgb_daemon::disk::{AppendFile, DirEntry, Disk, ReadAt, SimDisk};
use bgb_protocol::action::Action;
use bgb_protocol::api::{AddDevices, DEVICES_PER_REQUEST_MAX, ErrorBody, StartTask, Target, TaskRow};
use bgb_protocol::file::presence::{OnlineDetails, Presence, PresenceRow};
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::file::{Epoch, FileBuilder, FileKind, Header};
use bgb_protocol::ids::{BootId, DeviceId, ServerId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::message::RoadTaken;
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::DeviceKey;
use bgb_protocol::state::TaskState;
use bgb_protocol::status::{StatusId, StatusMessage};
use bgb_site::init::{InitOptions, site_init};
use bgb_site::store::{StatusFilter, TaskCounts};
use bgb_site::{Authority, SiteFolder, Store, signing_key};
use parking_lot::Mutex;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;

use crate::bell::NoBell;
use crate::figures::Figures;
use crate::key_book::SiteKeyBook;
use crate::manager::{Manager, ManagerParts, Next};
use crate::orders::{Answer, Order};
use crate::verifier::Verifier;

/// When tests begin.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

pub(crate) struct TestSite {
    pub(crate) manager: Option<Manager>,
    pub(crate) disk: SimDisk,
    /// The same disk, as the manager has it.
    pub(crate) manager_disk: TestDisk,
    pub(crate) folder: SiteFolder,
    pub(crate) now: Now,
    keys: Vec<DeviceKey>,
    _root: tempfile::TempDir,
}

/// A simulated disk some of whose folders cannot be read and some of whose files cannot be moved, and that notes which folders were read.
#[derive(Clone, Default)]
pub(crate) struct TestDisk {
    pub(crate) disk: SimDisk,
    pub(crate) unreadable: Arc<Mutex<BTreeSet<PathBuf>>>,
    pub(crate) immovable: Arc<Mutex<BTreeSet<PathBuf>>>,
    pub(crate) listed: Arc<Mutex<Vec<PathBuf>>>,
}

impl Disk for TestDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.disk.read(path)
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn ReadAt>> {
        self.disk.open_read(path)
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        self.disk.open_append(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        self.disk.create_new(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.immovable.lock().contains(from) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.listed.lock().push(dir.to_owned());
        if self.unreadable.lock().contains(dir) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.disk.list(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.disk.free_bytes(dir)
    }
}

impl TestSite {
    /// A site with `devices` devices, its manager running.
    pub(crate) fn new(devices: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = InitOptions::new(
            root.path().join("site"),
            "LAB".parse().unwrap(),
            vec!["127.0.0.1:10123".to_owned()],
            UnixMillis(START_MS),
        );
        let folder = site_init(&options).unwrap().folder;
        let now = Now { unix_ms: START_MS, boot_ms: 1_000_000, mono_ms: 1_000_000 };
        let manager_disk = TestDisk::default();
        let (disk, keys) = (manager_disk.disk.clone(), Vec::new());
        let mut site = Self { manager: None, disk, manager_disk, folder, now, keys, _root: root };
        site.start();
        site.add_devices(devices);
        site
    }

    /// Starts the manager, as after a crash when there was one.
    pub(crate) fn start(&mut self) {
        let store = Store::open(&self.folder.database()).unwrap();
        let authority = Authority::load(&self.folder, store.code()).unwrap();
        let keys = SiteKeyBook::open(&self.folder.database()).unwrap();
        let parts = ManagerParts {
            key: signing_key::load(&self.folder).unwrap(),
            authority,
            disk: Arc::new(self.manager_disk.clone()),
            inbox: PathBuf::from("box"),
            bell: Box::new(NoBell),
            verifier: Verifier::inline(Box::new(keys)),
            figures: Arc::new(Figures::default()),
            servers: vec!["127.0.0.1:10123".to_owned()],
            presence_full_ms: 300_000,
            scan_ms: 1_000,
            stopwatch: Box::new(|| Duration::ZERO),
            random: Box::new(crate::service::random_bytes),
            store,
        };
        self.manager = Some(Manager::new(parts, self.now).unwrap());
    }

    pub(crate) fn manager(&mut self) -> &mut Manager {
        self.manager.as_mut().unwrap()
    }

    pub(crate) fn order(&mut self, order: Order) -> Result<Answer, ErrorBody> {
        let now = self.now;
        self.manager().handle_order(now, order)
    }

    fn add_devices(&mut self, count: usize) {
        for first in (0..count).step_by(DEVICES_PER_REQUEST_MAX) {
            let names = (first..count.min(first + DEVICES_PER_REQUEST_MAX))
                .map(|number| format!("pc-{number}"))
                .collect();
            let Answer::Devices(bundles) = self.order(Order::AddDevices(AddDevices { names })).unwrap()
            else {
                panic!("devices are answered with their bundles")
            };
            for bundle in bundles {
                let der = PrivatePkcs8KeyDer::from_pem_slice(bundle.key_pem.as_bytes()).unwrap();
                self.keys.push(DeviceKey::from_pkcs8(der.secret_pkcs8_der()).unwrap());
            }
        }
    }

    /// Starts a task for every device.
    pub(crate) fn start_task(&mut self, action: Action) -> TaskId {
        let target = Target::Collection("all".to_owned());
        let start = StartTask { action, target, validity_seconds: None, digest: None };
        let Answer::Task(TaskRow { task, .. }) = self.order(Order::StartTask(start)).unwrap() else {
            panic!("a start is answered with the task")
        };
        task
    }

    pub(crate) fn advance(&mut self, ms: u64) {
        self.now.unix_ms += ms;
        self.now.boot_ms += ms;
        self.now.mono_ms += ms;
    }

    pub(crate) fn step(&mut self) -> Next {
        let now = self.now;
        self.manager().step(now)
    }

    /// Has the manager do all that is due and all that lies in the inbox; time stands still.
    pub(crate) fn settle(&mut self) {
        self.manager().on_inbox_changed();
        for _ in 0..1_000_000 {
            match self.step() {
                Next::Now => {}
                Next::At(due) if due > self.now.mono_ms => return,
                Next::At(_) => {}
            }
        }
        panic!("the manager does not come to rest");
    }

    pub(crate) fn counts(&mut self, task: TaskId) -> TaskCounts {
        self.manager().store().read().task(task).unwrap().counts
    }

    /// The texts of the status messages with this id, the newest first.
    pub(crate) fn messages(&mut self, id: StatusId) -> Vec<String> {
        let rows =
            self.manager().store().read().status_messages(None, StatusFilter::default(), 10_000).unwrap();
        rows.into_iter().filter(|row| row.message.id == id.number()).map(|row| row.message.text).collect()
    }

    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let entries = self.disk.list(Path::new(folder)).unwrap();
        entries.into_iter().map(|entry| entry.name).collect()
    }

    /// The names of all files in `done`, by the folder and then the name.
    pub(crate) fn done(&self) -> Vec<String> {
        files_below(&self.disk, Path::new("box/done"))
    }

    /// Puts a finished file into a server's folder, durably.
    pub(crate) fn put(&self, server: u32, name: &str, bytes: &[u8]) {
        let folder = PathBuf::from(format!("box/{server}"));
        self.disk.create_dir_all(&folder).unwrap();
        let temporary = folder.join(format!(".tmp-{name}"));
        let mut file = self.disk.create_new(&temporary).unwrap();
        file.append(bytes).unwrap();
        file.sync().unwrap();
        self.disk.rename(&temporary, &folder.join(name)).unwrap();
        for dir in [folder.as_path(), Path::new("box"), Path::new("")] {
            self.disk.sync_dir(dir).unwrap();
        }
    }

    pub(crate) fn put_rows<R: Serialize>(&self, header: Header, rows: &[R]) {
        let (header, bytes) = build(header, rows);
        self.put(header.server.0, &header.file_name(), &bytes);
    }

    /// What `device` says when it ends.
    pub(crate) fn final_row(&self, task: TaskId, device: u32, state: TaskState) -> ResultRow {
        let statement = statement(task, device, state);
        let signed = SignedResult::sign(statement, b"done".to_vec(), &self.keys[device as usize]).unwrap();
        row(task, device, DeviceWord::Final(Box::new(signed)))
    }

    /// The same, signed by another device's key.
    pub(crate) fn forged_row(&self, task: TaskId, device: u32, by: u32) -> ResultRow {
        let statement = statement(task, device, TaskState::Succeeded);
        let signed = SignedResult::sign(statement, b"done".to_vec(), &self.keys[by as usize]).unwrap();
        row(task, device, DeviceWord::Final(Box::new(signed)))
    }
}

/// The names of all files in a folder and in those below it.
pub(crate) fn files_below(disk: &SimDisk, folder: &Path) -> Vec<String> {
    let entries = disk.list(folder).unwrap();
    let names = entries.into_iter().map(|entry| match entry.is_dir {
        true => files_below(disk, &folder.join(entry.name)),
        false => vec![entry.name],
    });
    names.flatten().collect()
}

pub(crate) fn statement(task: TaskId, device: u32, state: TaskState) -> ResultStatement {
    ResultStatement {
        site: "LAB".parse().unwrap(),
        task,
        device: DeviceId(device),
        state,
        refusal: None,
        code: 0,
        started: UnixMillis(START_MS + 10),
        finished: UnixMillis(START_MS + 20),
        output_digest: [0; 32],
    }
}

pub(crate) fn row(task: TaskId, device: u32, word: DeviceWord) -> ResultRow {
    ResultRow { task, device: DeviceId(device), heard: UnixMillis(START_MS + 30), word }
}

pub(crate) fn online_row(device: u32, session: u64) -> PresenceRow {
    let details = OnlineDetails {
        address: "192.0.2.7:50000".parse().unwrap(),
        road: RoadTaken::tcp(),
        agent_version: "0.1.0".to_owned(),
        clock_skew_ms: 0,
        policy_version: 0,
        platform: "linux 13 x86_64".to_owned(),
        hostname: format!("pc-{device}"),
    };
    PresenceRow {
        device: DeviceId(device),
        boot: BootId([device as u8; 16]),
        session: SessionNumber(session),
        signed_in: UnixMillis(START_MS),
        presence: Presence::Online(Box::new(details)),
    }
}

pub(crate) fn server_message(text: &str) -> StatusMessage {
    StatusId::ServerStarted.message(UnixMillis(START_MS), "server 1", text)
}

pub(crate) fn header(kind: FileKind, sequence: u64) -> Header {
    Header {
        kind,
        site: "LAB".parse().unwrap(),
        server: ServerId(1),
        epoch: Epoch { counter: 1, nonce: 77 },
        sequence,
        time: UnixMillis(START_MS + sequence),
        rows: 0,
        blocks: 0,
    }
}

pub(crate) fn build<R: Serialize>(header: Header, rows: &[R]) -> (Header, Vec<u8>) {
    let mut builder = FileBuilder::new();
    rows.iter().for_each(|row| builder.push(row));
    builder.finish(header)
}
