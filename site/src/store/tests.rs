//! A site in a temporary folder for the tests of every theme.

use super::*;
use crate::authority::CertificateRecord;
use crate::check::check;
use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::file::{Epoch, FileKind, Header};
use bgb_protocol::ids::{DeviceId, KeyId, ServerId, TaskId};
use bgb_protocol::policy::{PolicyStatement, SignedPolicy};
use bgb_protocol::queue::QueueItem;
use bgb_protocol::signature::SigningKey;
use bgb_protocol::state::TaskState;
use bgb_protocol::task::SignedTask;

mod devices;
mod plans;
mod policies;
mod presence;
mod presence_world;
mod queue;
mod results;
mod results_model;
mod roads;
mod speed;
mod status;
mod tasks;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
/// Servers of the site, numbered from 1.
const SERVERS: u32 = 3;
const HOUR_MS: u64 = 60 * 60 * 1000;

struct Site {
    /// Removed with everything in it when the test ends.
    _folder: tempfile::TempDir,
    path: PathBuf,
    store: Store,
}

fn site() -> Site {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("site.db");
    let mut store = Store::create(&path, "LAB".parse().unwrap(), NOW).unwrap();
    // These tests outlive no power cut, and the disk has better to do.
    store.connection.pragma_update(None, "synchronous", "off").unwrap();
    for server in 1..=SERVERS {
        store.add_server(ServerId(server), "bgb.example:10123").unwrap();
    }
    Site { _folder: folder, path, store }
}

fn site_with(devices: u32) -> Site {
    let mut site = site();
    let new: Vec<_> = (0..devices).map(|number| named(&format!("pc-{number:07}"))).collect();
    site.store.add_devices(&new, NOW, |device, _| Ok(record(device))).unwrap();
    site
}

impl Site {
    fn is_sound(&self) {
        assert_eq!(check(&self.path).unwrap().findings, []);
        assert_eq!(self.store.online, self.store.read().online_devices().unwrap());
    }

    /// Starts a plain task for everyone that lasts an hour.
    fn start(&mut self, action: Action) -> TaskId {
        self.store.start_task(&new_task(action, Targets::Everyone), NOW, sign).unwrap().id
    }

    fn queue(&self) -> Vec<QueueItem> {
        let reader = crate::QueueReader::open(&self.path).unwrap();
        let rows = reader.all_valid(ServerId(1), NOW).unwrap().rows;
        rows.iter().map(|row| QueueItem::decode(&row.item_bytes).unwrap()).collect()
    }

    fn statuses(&self) -> Vec<u16> {
        let all = self.store.read().status_messages(None, StatusFilter::default(), 1_000).unwrap();
        all.iter().rev().map(|stored| stored.message.id).collect()
    }
}

fn named(name: &str) -> NewDevice {
    NewDevice { name: name.to_owned(), labels: Labels::new() }
}

/// A certificate's facts, different for each device, without the work of making one.
fn record(device: DeviceId) -> CertificateRecord {
    let mut fingerprint = [0; 32];
    fingerprint[..4].copy_from_slice(&device.0.to_be_bytes());
    let mut key = [0; 8];
    key[..4].copy_from_slice(&device.0.to_be_bytes());
    CertificateRecord {
        fingerprint,
        public_key: vec![4; 65],
        key_id: KeyId(key),
        serial: [1; 16],
        not_before: NOW,
        not_after: NOW.plus(HOUR_MS),
    }
}

fn key() -> SigningKey {
    SigningKey::from_seed([7; 32])
}

fn sign(statement: bgb_protocol::task::TaskStatement) -> SignedTask {
    SignedTask::sign(statement, &key())
}

fn sign_policy(statement: PolicyStatement) -> SignedPolicy {
    SignedPolicy::sign(statement, &key())
}

fn new_task(action: Action, targets: Targets) -> NewTask {
    NewTask {
        id: TaskId(uuid::Uuid::now_v7()),
        action,
        parameters: Parameters::none(),
        targets,
        expected: None,
        not_before: NOW,
        validity_ms: HOUR_MS,
        by: "anna".to_owned(),
    }
}

fn header(kind: FileKind, server: u32, sequence: u64, rows: u64) -> Header {
    Header {
        kind,
        site: "LAB".parse().unwrap(),
        server: ServerId(server),
        epoch: Epoch { counter: 1, nonce: 77 },
        sequence,
        time: NOW.plus(sequence.saturating_mul(1_000)),
        rows,
        blocks: 1,
    }
}

/// The place at the end of a results file.
fn results_place(sequence: u64, rows: u64) -> FilePlace {
    FilePlace::of(&header(FileKind::Results, 1, sequence, rows), rows, true)
}

fn hint(task: TaskId, device: u32, state: TaskState) -> VerifiedRow {
    VerifiedRow { task, device: DeviceId(device), heard: NOW, state, word: None }
}

/// A final word whose receipt is told apart by state and `mark`.
fn final_row(task: TaskId, device: u32, state: TaskState, mark: u8) -> VerifiedRow {
    let word = FinalWord {
        code: 0,
        started: NOW,
        finished: NOW.plus(5),
        output: b"fine".to_vec(),
        statement: signed_statement(task, device, state, mark),
        signature: bgb_protocol::signature::Signature { key: KeyId([1; 8]), bytes: [9; 64] },
    };
    VerifiedRow { word: Some(word), ..hint(task, device, state) }
}

fn signed_statement(task: TaskId, device: u32, state: TaskState, mark: u8) -> Vec<u8> {
    bgb_protocol::codec::encode_versioned(&bgb_protocol::result::ResultStatement {
        site: "LAB".parse().unwrap(),
        task,
        device: DeviceId(device),
        state,
        refusal: None,
        code: 0,
        started: NOW,
        finished: NOW.plus(5),
        output_digest: [mark; 32],
    })
}

#[test]
fn a_second_writer_waits_and_then_says_that_it_is_busy() {
    let mut site = site();
    let other = Connection::open(&site.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = site.store.create_collection("all", NOW).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("busy"), "{error}");
    site.store.read().collections(None, 10).unwrap();
    other.execute_batch("COMMIT").unwrap();
    site.store.create_collection("all", NOW).unwrap();
}

#[test]
fn a_store_that_is_opened_again_is_the_same_site() {
    let site = site_with(3);
    let (code, generation) = (site.store.code(), site.store.generation());
    drop(site.store);
    let store = Store::open(&site.path).unwrap();
    assert_eq!((store.code(), store.generation()), (code, generation));
    assert_eq!(store.read().site().unwrap().devices, 3);
    assert!(Store::create(&site.path, code, NOW).is_err(), "a site is never made over another");
}

#[test]
fn a_reader_sees_what_was_committed_and_cannot_write() {
    let mut site = site_with(2);
    let reader = Reader::open(&site.path).unwrap();
    site.store.create_collection("berlin", NOW).unwrap();
    let names = reader.snapshot(|queries| queries.collections(None, 10)).unwrap();
    assert_eq!(names[0].name, "berlin");
    let error = SiteError::from(reader.connection.execute("DELETE FROM collection", []).unwrap_err());
    assert!(matches!(error, SiteError::ReadOnly), "{error}");
}

#[test]
fn commits_are_durable_and_the_log_stays_beside_the_database() {
    let mut site = site();
    site.store = Store::open(&site.path).unwrap();
    let pragma =
        |name| site.store.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!((pragma("synchronous"), pragma("foreign_keys")), (2, 1));
    let log = PathBuf::from(format!("{}-wal", site.path.display()));
    let index = PathBuf::from(format!("{}-shm", site.path.display()));
    drop(site.store);
    assert!(log.exists() && index.exists());
}
