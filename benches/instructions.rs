//! One operation, so often as is said: `make bench-instructions` counts the instructions of it under valgrind, which no load on the machine changes.
//!
//! `instructions NAME COUNT` prepares everything, and then does it COUNT times; with 0 it only prepares. The difference is what the operations took.
//! Without arguments it lists the names.

use std::hint::black_box;

use bgb_hub::Tick;
use bgb_hub::wheel::Wheel;
use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::codec;
use bgb_protocol::file::FileBuilder;
use bgb_protocol::file::presence::{Presence, PresenceRow};
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::frame::Frame;
use bgb_protocol::ids::{BootId, DeviceId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::message::{AgentMessage, ServerMessage, TaskPush};
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::DeviceKey;
use bgb_protocol::state::TaskState;
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::TaskStatement;
use bgb_server::reactor::slots::Slots;
use bgb_server::tls::opposite::OppositeEnd;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[path = "../hub/benches/rig/mod.rs"]
mod rig;

const KEYS: u32 = 10_000;
/// Deadlines lie within an hour.
const HORIZON_TICKS: u64 = 36_000;

type Operation = fn(u64);

const OPERATIONS: [(&str, Operation); 18] = [
    ("wheel-arm", wheel_arm),
    ("wheel-move-later", wheel_move_later),
    ("wheel-move-earlier", wheel_move_earlier),
    ("wheel-cancel", wheel_cancel),
    ("wheel-fire", wheel_fire),
    ("slots-reuse", slots_reuse),
    ("keepalive-read", keepalive_read),
    ("task-write", task_write),
    ("task-read", task_read),
    ("presence-row-write", presence_row_write),
    ("presence-row-read", presence_row_read),
    ("result-row-write", result_row_write),
    ("result-row-read", result_row_read),
    ("record-seal", record_seal),
    ("record-open", record_open),
    ("hub-sign-in", hub_sign_in),
    ("hub-keepalive", hub_keepalive),
    ("hub-push", hub_push),
];

/// A record's plaintext, about a task's frame.
const RECORD_BYTES: usize = 200;
/// The content type of application data (RFC 8446, 5.1).
const APPLICATION_DATA: u8 = 23;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [name, count] = arguments.as_slice() else {
        OPERATIONS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (Some((_, operation)), Ok(count)) =
        (OPERATIONS.iter().find(|(known, _)| known == name), count.parse())
    else {
        eprintln!("instructions: {name} {count}: no such operation, or no number");
        std::process::exit(2);
    };
    operation(count);
}

/// Keys and deadlines without an order: the multipliers share no factor with what they are taken modulo of.
fn key(number: u64) -> u32 {
    (number * 7_919 % u64::from(KEYS)) as u32
}

fn deadline(number: u64) -> Tick {
    Tick(1 + number * 6_271 % HORIZON_TICKS)
}

/// A wheel with room for all keys, none of them armed and nothing left lying.
fn empty_wheel() -> Wheel {
    let mut wheel = Wheel::new();
    (0..KEYS).for_each(|key| wheel.arm(key, Tick(1)));
    while wheel.poll_expired(Tick(1)).is_some() {}
    wheel
}

fn full_wheel(at: impl Fn(u64) -> Tick) -> Wheel {
    let mut wheel = empty_wheel();
    (0..u64::from(KEYS)).for_each(|number| wheel.arm(key(number), at(number)));
    wheel
}

/// Counts of the wheel go up to the number of keys: each is armed, moved, cancelled or fires once.
fn at_most_keys(count: u64) -> u64 {
    assert!(count <= u64::from(KEYS), "there are {KEYS} keys");
    count
}

fn wheel_arm(count: u64) {
    let mut wheel = empty_wheel();
    (0..at_most_keys(count)).for_each(|number| wheel.arm(black_box(key(number)), deadline(number)));
    black_box(wheel);
}

fn wheel_move_later(count: u64) {
    let mut wheel = full_wheel(deadline);
    (0..at_most_keys(count)).for_each(|number| {
        wheel.arm(black_box(key(number)), Tick(deadline(number).0 + HORIZON_TICKS));
    });
    black_box(wheel);
}

fn wheel_move_earlier(count: u64) {
    let mut wheel = full_wheel(|number| Tick(deadline(number).0 + HORIZON_TICKS));
    (0..at_most_keys(count)).for_each(|number| wheel.arm(black_box(key(number)), deadline(number)));
    black_box(wheel);
}

fn wheel_cancel(count: u64) {
    let mut wheel = full_wheel(deadline);
    (0..at_most_keys(count)).for_each(|number| wheel.cancel(black_box(key(number))));
    black_box(wheel);
}

fn wheel_fire(count: u64) {
    let mut wheel = full_wheel(deadline);
    let mut left = at_most_keys(count);
    while left > 0 {
        let next = wheel.next_deadline().expect("some are left");
        while left > 0 && black_box(wheel.poll_expired(next)).is_some() {
            left -= 1;
        }
    }
}

fn slots_reuse(count: u64) {
    let mut slots = Slots::default();
    let mut keys: Vec<_> = (0..KEYS).map(|number| slots.insert(number)).collect();
    for number in 0..count {
        let own = &mut keys[key(number) as usize];
        let tenant = slots.remove(*own).expect("it is there");
        *own = slots.insert(tenant);
    }
    black_box(slots.len());
}

fn keepalive_read(count: u64) {
    let mut bytes = Vec::new();
    AgentMessage::Keepalive.encode(&mut bytes);
    for _ in 0..count {
        let (frame, _) = Frame::decode(black_box(&bytes)).expect("it was written").expect("it is whole");
        black_box(AgentMessage::decode(frame).expect("it was written"));
    }
}

/// A task as it goes out, with a signature of zeros: what is counted does not look at it.
fn push() -> ServerMessage {
    let targets = TargetSet::new((0..100_000).collect()).expect("there are some");
    let statement = TaskStatement {
        site: "LAB".parse().expect("a site's code"),
        task: TaskId::from_bytes([7; 16]),
        action: Action::QuickScan.code(),
        parameters: Parameters::none(),
        targets: targets.digest(),
        not_before: UnixMillis(1),
        expires: UnixMillis(2),
        approval: None,
    };
    let mut proof = Vec::new();
    assert!(targets.prove(DeviceId(5_000), &mut proof));
    let mut signed = codec::encode_versioned(&statement);
    signed.resize(signed.len() + 72, 0);
    ServerMessage::Task(Box::new(TaskPush { signed, proof }))
}

fn task_write(count: u64) {
    let (push, mut out) = (push(), Vec::with_capacity(4_096));
    for _ in 0..count {
        out.clear();
        black_box(&push).encode(&mut out);
        black_box(&out);
    }
}

fn task_read(count: u64) {
    let mut bytes = Vec::new();
    push().encode(&mut bytes);
    for _ in 0..count {
        let (frame, _) = Frame::decode(black_box(&bytes)).expect("it was written").expect("it is whole");
        black_box(ServerMessage::decode(frame).expect("it was written"));
    }
}

fn presence_row() -> PresenceRow {
    PresenceRow {
        device: DeviceId(5_000),
        boot: BootId([7; 16]),
        session: SessionNumber(17),
        signed_in: UnixMillis(1_700_000_000_000),
        presence: Presence::Offline { at: UnixMillis(1_700_000_000_000), reason: "reset".to_owned() },
    }
}

fn result_row() -> ResultRow {
    let (site, task, device) =
        ("LAB".parse().expect("a site's code"), TaskId::from_bytes([7; 16]), DeviceId(5_000));
    let statement = ResultStatement {
        site,
        task,
        device,
        state: TaskState::Succeeded,
        refusal: None,
        code: 0,
        started: UnixMillis(1),
        finished: UnixMillis(2),
        output_digest: [0; 32],
    };
    let key = DeviceKey::generate().expect("there is randomness").0;
    let signed = SignedResult::sign(statement, b"done".to_vec(), &key).expect("a key signs");
    ResultRow { task, device, heard: UnixMillis(3), word: DeviceWord::Final(Box::new(signed)) }
}

fn write_rows<R: Serialize>(row: &R, count: u64) {
    let mut builder = FileBuilder::new();
    (0..count).for_each(|_| builder.push(black_box(row)));
    black_box(builder.rows());
}

fn read_rows<R: Serialize + DeserializeOwned>(row: &R, count: u64) {
    let mut bytes = Vec::new();
    codec::encode(row, &mut bytes);
    (0..count).for_each(|_| {
        black_box(codec::decode::<R>("a row", codec::VERSION, black_box(&bytes)).expect("it was written"));
    });
}

fn presence_row_write(count: u64) {
    write_rows(&presence_row(), count);
}

fn presence_row_read(count: u64) {
    read_rows(&presence_row(), count);
}

fn result_row_write(count: u64) {
    write_rows(&result_row(), count);
}

fn result_row_read(count: u64) {
    read_rows(&result_row(), count);
}

fn record_seal(count: u64) {
    let (mut session, _) = OppositeEnd::of_a_connection_at_rest(true);
    let (frame, mut out) = (vec![7; RECORD_BYTES], Vec::with_capacity(1_024));
    for _ in 0..count {
        out.clear();
        session.seal(black_box(&frame), &mut out);
    }
}

/// The other side's sealing is in it, once for each: by the same objects.
fn record_open(count: u64) {
    let (mut session, mut opposite) = OppositeEnd::of_a_connection_at_rest(true);
    let frame = vec![7; RECORD_BYTES];
    let (mut record, mut plain, mut answered) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        record.clear();
        plain.clear();
        opposite.say(APPLICATION_DATA, &frame, &mut record);
        session.feed(black_box(&mut record), &mut plain, &mut answered).expect("the other side is sound");
    }
}

fn hub_sign_in(count: u64) {
    let mut rig = rig::Rig::new(KEYS as usize);
    (0..at_most_keys(count)).for_each(|device| _ = rig.sign_in(device as u32));
    black_box(rig.hub.online());
}

/// A hub with all keys' devices in it.
fn full_hub() -> rig::Rig {
    let mut rig = rig::Rig::new(KEYS as usize);
    (0..KEYS).for_each(|device| _ = rig.sign_in(device));
    rig
}

fn hub_keepalive(count: u64) {
    let mut rig = full_hub();
    (0..count).for_each(|number| _ = rig.input(rig::keepalive(key(number))));
}

fn hub_push(count: u64) {
    let mut rig = full_hub();
    // What making the task takes is no push.
    let task = rig::task(1, (0..KEYS).collect(), rig.now().unix);
    if count > 0 {
        assert_eq!(count, u64::from(KEYS), "it goes to everybody");
        let first = rig.order(task).pushed;
        let pushed = first + rig.advance(rig.tick + 1).pushed;
        assert_eq!(pushed, count, "a task is with everybody");
    }
}
