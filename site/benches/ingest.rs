//! What taking in a file of a million rows costs the writer: `make bench-ingest`. Ends in a line of JSON.
//!
//! Two files: a full online list (BOS) after which a million devices are shown as online, and a file of results (BTS) with a last word of each of
//! them on one task. Rows come in chunks of one transaction each, as the manager takes them in; every row changes something. Between chunks, now
//! and then, an order for one device is committed: it waits for a chunk at most, so what it takes is its own time and the longest chunk's.
//!
//! The ratio's part is taken in by a store alone, which has SQLite move its log with its commits, as the floor does. An order's time is that of a
//! store as the manager has it, whose log is moved beside it.
//!
//! The floor is a bare loop over the same rows on a copy of the same database, with the same settings: one prepared statement, the same columns, the
//! same number of rows in a transaction. Signatures are verified ahead of the writer, on threads of their own: what that costs stands beside.
//!
//! The goal: 1.5 times the bare loop's time or less, and an order within 100 ms.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::file::presence::{OnlineDetails, Presence, PresenceRow};
use bgb_protocol::file::{Epoch, FileKind, Header};
use bgb_protocol::ids::{BootId, DeviceId, KeyId, ServerId, SessionNumber, SiteCode, TaskId, UnixMillis};
use bgb_protocol::message::RoadTaken;
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::{DeviceKey, SigningKey};
use bgb_protocol::state::TaskState;
use bgb_protocol::task::SignedTask;
use bgb_site::Store;
use bgb_site::authority::CertificateRecord;
use bgb_site::store::{FilePlace, NewDevice, NewTask, Targets, VerifiedRow};
use rusqlite::{Connection, params};
use serde_json::json;

const ROWS: u32 = 1_000_000;
/// Rows of a transaction. The manager learns how many fit into 50 ms, up to 20,000.
const CHUNK: u32 = 4_000;
/// An order comes after so many chunks.
const ORDER_EVERY: u32 = 10;
const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

const TIMES: f64 = 1.5;
const ORDER_MS: f64 = 100.0;

/// What taking a file in came to.
struct Taken {
    seconds: f64,
    longest_chunk: Duration,
    longest_order: Duration,
}

impl Taken {
    fn order_ms(&self) -> f64 {
        (self.longest_chunk + self.longest_order).as_secs_f64() * 1_000.0
    }
}

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let (ours, bare, managed) = (path("site.db"), path("bare.db"), path("managed.db"));
    eprintln!("ingest: making a site of {ROWS} devices");
    let task = make_site(&ours)?;
    std::fs::copy(&ours, &bare)?;
    std::fs::copy(&ours, &managed)?;
    let key = DeviceKey::generate().map_err(|error| anyhow::anyhow!("{error}"))?.0;
    let take_in_both = |store: &mut Store| -> anyhow::Result<[Taken; 2]> {
        eprintln!("ingest: the online list");
        let list = take_in(store, presence_chunk)?;
        eprintln!("ingest: the results");
        let results = take_in(store, |store, first, rows| results_chunk(store, task, &key, first, rows))?;
        let online = store.read().device_counts()?;
        anyhow::ensure!(online.0 == u64::from(ROWS), "not every row was taken in: {online:?}");
        Ok([list, results])
    };
    let [list, results] = take_in_both(&mut Store::open(&ours)?)?;

    eprintln!("ingest: the same with the log moved beside it");
    let mut store = Store::open(&managed)?;
    let checkpointer = store.checkpointer()?;
    let checkpointer = std::thread::spawn(|| checkpointer.run());
    let of_manager = take_in_both(&mut store)?;
    let log_bytes = std::fs::metadata(path("managed.db-wal"))?.len();
    drop(store);
    checkpointer.join().map_err(|_| anyhow::anyhow!("the checkpointer panicked"))?;

    let mut connection = open_bare(&bare)?;
    eprintln!("ingest: the bare loops");
    let bare_list = bare_list(&mut connection)?;
    let bare_results = bare_results(&mut connection, task, &key)?;
    let ratios = [list.seconds / bare_list, results.seconds / bare_results];
    let ratio = ratios[0].max(ratios[1]);
    let order_ms = of_manager.iter().map(Taken::order_ms).fold(0.0, f64::max);
    let line = json!({
        "bench": "ingest",
        "figures": {
            "rows": ROWS, "rows_in_a_chunk": CHUNK,
            "bos_seconds": rounded(list.seconds), "bts_seconds": rounded(results.seconds),
            "bos_ratio": rounded(ratios[0]), "bts_ratio": rounded(ratios[1]), "order_ms": rounded(order_ms),
            "bos_seconds_of_manager": rounded(of_manager[0].seconds), "bts_seconds_of_manager": rounded(of_manager[1].seconds),
            "log_bytes_of_manager": log_bytes,
            "order_ms_without_checkpointer": rounded(list.order_ms().max(results.order_ms())),
            "verify_us": rounded(verify_us(&key, task)?),
        },
        "floor": {"bos_seconds": rounded(bare_list), "bts_seconds": rounded(bare_results)},
        "ratio": rounded(ratio),
        "goal": {"ratio": TIMES, "order_ms": ORDER_MS},
        "holds": ratio <= TIMES && order_ms <= ORDER_MS,
    });
    println!("{line}");
    Ok(())
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn site_code() -> anyhow::Result<SiteCode> {
    "LAB".parse().context("three letters are a site's code")
}

fn make_site(path: &Path) -> anyhow::Result<TaskId> {
    let mut store = Store::create(path, site_code()?, NOW)?;
    store.add_server(ServerId(1), "bgb.example:10123")?;
    for first in (0..ROWS).step_by(20_000) {
        let device = |number: u32| NewDevice { name: hostname(number), labels: BTreeMap::new() };
        let new: Vec<_> = (first..first + 20_000).map(device).collect();
        store.add_devices(&new, NOW, |device, _| Ok(record(device)))?;
    }
    let task = start(&mut store, Targets::Everyone)?;
    store.checkpoint()?;
    Ok(task)
}

fn hostname(number: u32) -> String {
    format!("pc-{number:07}")
}

/// A certificate's facts, different for each device, without the work of making one.
fn record(device: DeviceId) -> CertificateRecord {
    let (mut fingerprint, mut key) = ([0; 32], [0; 8]);
    fingerprint[..4].copy_from_slice(&device.0.to_be_bytes());
    key[..4].copy_from_slice(&device.0.to_be_bytes());
    CertificateRecord {
        fingerprint,
        public_key: vec![4; 65],
        key_id: KeyId(key),
        serial: [1; 16],
        not_before: NOW,
        not_after: NOW.plus(365 * DAY_MS),
    }
}

fn start(store: &mut Store, targets: Targets) -> anyhow::Result<TaskId> {
    let new = NewTask {
        id: TaskId(uuid::Uuid::now_v7()),
        action: Action::Ping,
        parameters: Parameters::none(),
        targets,
        expected: None,
        not_before: NOW,
        validity_ms: DAY_MS,
        by: "bench".to_owned(),
    };
    let key = SigningKey::from_seed([7; 32]);
    Ok(store.start_task(&new, NOW, |statement| SignedTask::sign(statement, &key))?.id)
}

/// Takes a file in, chunk by chunk; `apply` makes the rows, and gives the time that applying them took.
fn take_in(
    store: &mut Store,
    mut apply: impl FnMut(&mut Store, u32, u32) -> anyhow::Result<Duration>,
) -> anyhow::Result<Taken> {
    let (mut spent, mut longest_chunk, mut longest_order) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for (number, first) in (0_u32..).zip((0..ROWS).step_by(CHUNK as usize)) {
        let took = apply(store, first, CHUNK)?;
        spent += took;
        longest_chunk = longest_chunk.max(took);
        if number % ORDER_EVERY == 0 {
            let begun = Instant::now();
            let task = start(store, Targets::Devices(vec![DeviceId(first)]))?;
            longest_order = longest_order.max(begun.elapsed());
            // 1,000 may be active at a time; these are only for measuring.
            store.cancel_task(task, "bench", NOW, |statement| {
                bgb_protocol::task::SignedCancel::sign(statement, &SigningKey::from_seed([7; 32]))
            })?;
        }
    }
    Ok(Taken { seconds: spent.as_secs_f64(), longest_chunk, longest_order })
}

fn header(kind: FileKind) -> anyhow::Result<Header> {
    Ok(Header {
        kind,
        site: site_code()?,
        server: ServerId(1),
        epoch: Epoch { counter: 1, nonce: 77 },
        sequence: 1,
        time: NOW,
        rows: ROWS.into(),
        blocks: ROWS.div_ceil(CHUNK),
    })
}

fn details(number: u32) -> OnlineDetails {
    let [_, a, b, c] = number.to_be_bytes();
    OnlineDetails {
        address: ([10, a, b, c], 50_000).into(),
        road: RoadTaken::tcp(),
        agent_version: "0.1.0".to_owned(),
        clock_skew_ms: 12,
        policy_version: 3,
        platform: "linux 12 x86_64".to_owned(),
        hostname: hostname(number),
    }
}

fn boot(number: u32) -> BootId {
    let mut boot = [0; 16];
    boot[..4].copy_from_slice(&number.to_be_bytes());
    BootId(boot)
}

fn presence_row(number: u32) -> PresenceRow {
    PresenceRow {
        device: DeviceId(number),
        boot: boot(number),
        session: SessionNumber(1),
        signed_in: NOW,
        presence: Presence::Online(Box::new(details(number))),
    }
}

fn presence_chunk(store: &mut Store, first: u32, rows: u32) -> anyhow::Result<Duration> {
    let header = header(FileKind::PresenceFull)?;
    let chunk: Vec<_> = (first..first + rows).map(presence_row).collect();
    let begun = Instant::now();
    let outcome =
        store.apply_presence(&chunk, &header, &FilePlace::of(&header, (first + rows).into(), false), NOW)?;
    let took = begun.elapsed();
    anyhow::ensure!(outcome.changed == u64::from(rows), "a row changed nothing: {outcome:?}");
    Ok(took)
}

fn word(task: TaskId, key: &DeviceKey, number: u32) -> anyhow::Result<(ResultStatement, SignedResult)> {
    let statement = ResultStatement {
        site: site_code()?,
        task,
        device: DeviceId(number),
        state: TaskState::Succeeded,
        refusal: None,
        code: 0,
        started: NOW,
        finished: NOW.plus(10),
        output_digest: [0; 32],
    };
    let signed =
        SignedResult::sign(statement.clone(), Vec::new(), key).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok((statement, signed))
}

fn results_chunk(
    store: &mut Store,
    task: TaskId,
    key: &DeviceKey,
    first: u32,
    rows: u32,
) -> anyhow::Result<Duration> {
    let header = header(FileKind::Results)?;
    let row = |number| {
        let (statement, signed) = word(task, key, number)?;
        anyhow::Ok(VerifiedRow::of_final(NOW, &statement, signed))
    };
    let chunk = (first..first + rows).map(row).collect::<anyhow::Result<Vec<_>>>()?;
    let begun = Instant::now();
    let place = FilePlace::of(&header, (first + rows).into(), first + rows == ROWS);
    let outcome = store.apply_results(&chunk, &place, NOW)?;
    let took = begun.elapsed();
    anyhow::ensure!(outcome.inserted == u64::from(rows), "a row changed nothing: {outcome:?}");
    Ok(took)
}

/// The site's settings (site/src/connection.rs).
fn open_bare(path: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
         PRAGMA wal_autocheckpoint = 10000; PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -65536;",
    )?;
    Ok(connection)
}

fn bare_list(connection: &mut Connection) -> anyhow::Result<f64> {
    let mut spent = Duration::ZERO;
    let road = serde_json::to_string(&RoadTaken::tcp())?;
    for first in (0..ROWS).step_by(CHUNK as usize) {
        let rows: Vec<_> = (first..first + CHUNK)
            .map(|number| (details(number).address.to_string(), details(number), number))
            .collect();
        let begun = Instant::now();
        let transaction = connection.transaction()?;
        let mut statement = transaction.prepare_cached(
            "UPDATE device SET presence = ?2, since = ?3, last_online = ?4, last_offline = ifnull(?5, last_offline), \
             offline_reason = ?6, session = ?7, signed_in = ?4, boots = ?8, server = ?9, heard_life = ?10, heard_sequence = ?11, \
             road = ?12, address = ?13, agent_version = ?14, clock_skew_ms = ?15, policy_version = ?16, platform = ?17, \
             hostname = ?18 WHERE number = ?1",
        )?;
        for (address, details, number) in &rows {
            let (now, none) = (NOW.0 as i64, None::<i64>);
            let OnlineDetails { agent_version, clock_skew_ms, platform, hostname, .. } = details;
            statement.execute(params![
                number,
                1,
                now,
                now,
                none,
                none,
                1,
                boot(*number).0,
                1,
                1,
                1,
                road,
                address,
                agent_version,
                clock_skew_ms,
                3,
                platform,
                hostname,
            ])?;
        }
        drop(statement);
        transaction.commit()?;
        spent += begun.elapsed();
    }
    Ok(spent.as_secs_f64())
}

fn bare_results(connection: &mut Connection, task: TaskId, key: &DeviceKey) -> anyhow::Result<f64> {
    let mut spent = Duration::ZERO;
    let number: i64 =
        connection.query_row("SELECT number FROM task WHERE id = ?1", [task.bytes()], |row| row.get(0))?;
    for first in (0..ROWS).step_by(CHUNK as usize) {
        let rows = (first..first + CHUNK)
            .map(|device| word(task, key, device))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let begun = Instant::now();
        let transaction = connection.transaction()?;
        let mut statement = transaction.prepare_cached(
            "INSERT INTO result (task, device, state, heard, code, started, finished, output, statement, signature, key) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?;
        for (said, signed) in &rows {
            statement.execute(params![
                number,
                said.device.0,
                said.state.code(),
                NOW.0 as i64,
                said.code,
                said.started.0 as i64,
                said.finished.0 as i64,
                signed.output,
                signed.statement,
                signed.signature.bytes.as_slice(),
                signed.signature.key.0,
            ])?;
        }
        drop(statement);
        transaction.commit()?;
        spent += begun.elapsed();
    }
    Ok(spent.as_secs_f64())
}

/// What verifying one result costs a thread of the manager's, in microseconds.
fn verify_us(key: &DeviceKey, task: TaskId) -> anyhow::Result<f64> {
    const COUNT: u32 = 2_000;
    let public = key.public();
    let results = (0..COUNT).map(|number| word(task, key, number)).collect::<anyhow::Result<Vec<_>>>()?;
    let begun = Instant::now();
    for (_, signed) in &results {
        signed.verify(&public).map_err(|error| anyhow::anyhow!("{error}"))?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / f64::from(COUNT))
}
