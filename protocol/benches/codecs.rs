//! What messages and files cost to write and to read: `cargo bench -p bgb-protocol --bench codecs`.
//!
//! Beside each stands its floor: copying as many bytes, for files with the checksum that they carry.

use std::hint::black_box;

use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::codec;
use bgb_protocol::file::presence::{OnlineDetails, Presence, PresenceRow};
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::file::{
    BlockHead, Epoch, FileBuilder, FileKind, HEADER_BYTES, Header, check_block, check_end, rows,
};
use bgb_protocol::frame::Frame;
use bgb_protocol::ids::{BootId, DeviceId, ServerId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::message::{
    Abilities, AgentMessage, Hello, KnownTask, Platform, RoadTaken, ServerMessage, TaskPush,
};
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::{DeviceKey, SigningKey};
use bgb_protocol::state::TaskState;
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{SignedTask, TaskStatement};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Rows of a file: one server's, some seconds after a storm.
const ROWS: u32 = 10_000;
const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn hello() -> AgentMessage {
    let known =
        |number: u8| KnownTask { task: TaskId::from_bytes([number; 16]), state: TaskState::Succeeded };
    AgentMessage::Hello(Box::new(Hello {
        agent_version: "0.1.0".to_owned(),
        platform: Platform {
            os: "linux".to_owned(),
            os_version: "12".to_owned(),
            arch: "x86_64".to_owned(),
            hostname: "pc-12345.example.org".to_owned(),
        },
        boot: BootId([7; 16]),
        session: SessionNumber(17),
        abilities: Abilities::ALL,
        road: RoadTaken::tcp(),
        keepalive_secs: None,
        clock_skew_ms: 12,
        policy_version: 3,
        known_tasks: (0..8).map(known).collect(),
    }))
}

fn push() -> ServerMessage {
    let targets = TargetSet::new((0..100_000).collect()).expect("there are some");
    let statement = TaskStatement {
        site: "LAB".parse().expect("a site's code"),
        task: TaskId::from_bytes([7; 16]),
        action: Action::QuickScan.code(),
        parameters: Parameters::none(),
        targets: targets.digest(),
        not_before: NOW,
        expires: NOW.plus(3_600_000),
        approval: None,
    };
    let mut proof = Vec::new();
    assert!(targets.prove(DeviceId(5_000), &mut proof));
    let signed = SignedTask::sign(statement, &SigningKey::from_seed([1; 32])).bytes().to_vec();
    ServerMessage::Task(Box::new(TaskPush { signed, proof }))
}

fn messages(criterion: &mut Criterion) {
    let (hello, push) = (hello(), push());
    let (mut of_hello, mut of_push) = (Vec::new(), Vec::new());
    hello.encode(&mut of_hello);
    push.encode(&mut of_push);
    for (name, bytes) in [("hello", &of_hello), ("task", &of_push)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        let mut out = Vec::with_capacity(bytes.len());
        group.bench_function("floor, copied", |bencher| {
            bencher.iter(|| {
                out.clear();
                out.extend_from_slice(black_box(bytes));
                black_box(&out);
            });
        });
        group.bench_function("written", |bencher| {
            bencher.iter(|| {
                out.clear();
                match name {
                    "hello" => black_box(&hello).encode(&mut out),
                    _ => black_box(&push).encode(&mut out),
                }
                black_box(&out);
            });
        });
        group.bench_function("read", |bencher| {
            bencher.iter(|| {
                let (frame, _) =
                    Frame::decode(black_box(bytes)).expect("it was written").expect("it is whole");
                match name {
                    "hello" => _ = black_box(AgentMessage::decode(frame).expect("it was written")),
                    _ => _ = black_box(ServerMessage::decode(frame).expect("it was written")),
                }
            });
        });
    }
}

fn row(device: u32) -> PresenceRow {
    let details = OnlineDetails {
        address: ([10, 1, (device >> 8) as u8, device as u8], 50_000).into(),
        road: RoadTaken::tcp(),
        agent_version: "0.1.0".into(),
        clock_skew_ms: 12,
        policy_version: 3,
        platform: "linux 12 x86_64".into(),
        hostname: format!("pc-{device}.example.org"),
    };
    PresenceRow {
        device: DeviceId(device),
        boot: BootId([7; 16]),
        session: SessionNumber(17),
        signed_in: NOW,
        presence: Presence::Online(Box::new(details)),
    }
}

fn result(device: u32, key: &DeviceKey) -> ResultRow {
    let (site, device) = ("LAB".parse().expect("a site's code"), DeviceId(device));
    let statement = ResultStatement {
        site,
        task: TaskId::from_bytes([7; 16]),
        device,
        state: TaskState::Succeeded,
        refusal: None,
        code: 0,
        started: NOW,
        finished: NOW.plus(10),
        output_digest: [0; 32],
    };
    let task = statement.task;
    let signed = SignedResult::sign(statement, b"done".to_vec(), key).expect("a key signs");
    ResultRow { task, device, heard: NOW, word: DeviceWord::Final(Box::new(signed)) }
}

fn header(kind: FileKind) -> Header {
    Header {
        kind,
        site: "LAB".parse().expect("a site's code"),
        server: ServerId(1),
        epoch: Epoch { counter: 1, nonce: 7 },
        sequence: 1,
        time: NOW,
        rows: 0,
        blocks: 0,
    }
}

fn written<R: Serialize>(kind: FileKind, rows: &[R]) -> Vec<u8> {
    let mut builder = FileBuilder::new();
    rows.iter().for_each(|row| builder.push(row));
    builder.finish(header(kind)).1
}

/// Reads a file as the manager does: header, each block with its checksum and rows, the end. The number of rows.
fn read<R: DeserializeOwned>(bytes: &[u8]) -> usize {
    let header = Header::decode(bytes).expect("it was written");
    let (mut at, mut seen, mut sums) = (HEADER_BYTES, 0, Vec::new());
    for number in 0..header.blocks {
        let head = BlockHead::decode(&bytes[at..], number).expect("it was written");
        let (sum, body) = check_block(&bytes[at..], head).expect("it was written");
        seen += rows::<R>("row", head, body).filter(|row| black_box(row).is_ok()).count();
        sums.push(sum);
        at += head.total_bytes();
    }
    check_end(&bytes[at..], &header, &sums).expect("it was written");
    seen
}

/// One kind of file.
fn file<R: Serialize + DeserializeOwned>(criterion: &mut Criterion, name: &str, kind: FileKind, list: &[R]) {
    let bytes = written(kind, list);
    assert_eq!(read::<R>(&bytes), ROWS as usize);
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(u64::from(ROWS)));
    group.bench_function("floor, copied and summed", |bencher| {
        bencher.iter(|| {
            let copy = black_box(&bytes).clone();
            black_box(crc32c::crc32c(&copy));
        });
    });
    group.bench_function("written", |bencher| bencher.iter(|| black_box(written(kind, black_box(list)))));
    group.bench_function("read", |bencher| bencher.iter(|| black_box(read::<R>(black_box(&bytes)))));
    let mut encoded = Vec::new();
    codec::encode(&list[0], &mut encoded);
    // Presence lists and the spool's logs keep their rows in this form, so that files are written from them.
    group.bench_function("written from encoded rows", |bencher| {
        bencher.iter(|| {
            let mut builder = FileBuilder::new();
            (0..ROWS).for_each(|_| builder.push_encoded(black_box(&encoded)));
            black_box(builder.finish(header(kind)));
        });
    });
}

fn files(criterion: &mut Criterion) {
    let list: Vec<PresenceRow> = (0..ROWS).map(row).collect();
    file(criterion, "online list of 10,000 (BOS)", FileKind::PresenceFull, &list);
    let key = DeviceKey::generate().expect("there is randomness").0;
    let results: Vec<ResultRow> = (0..ROWS).map(|device| result(device, &key)).collect();
    file(criterion, "10,000 results (BTS)", FileKind::Results, &results);
}

criterion_group!(benches, messages, files);
criterion_main!(benches);
