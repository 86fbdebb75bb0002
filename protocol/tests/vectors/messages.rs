//! The messages of the present release's vectors, and frames that it tolerates or refuses.

use bgb_protocol::codec;
use bgb_protocol::frame::{self, Frame};
use bgb_protocol::ids::{BootId, ServerId, SessionNumber};
use bgb_protocol::message::{
    Abilities, AgentMessage, Drain, Hello, KnownTask, Platform, PolicyDocument, PolicyPart, RefusedReason,
    Road, RoadReason, RoadTaken, ServerMessage, TaskPush, Welcome, kind,
};
use bgb_protocol::state::TaskState;
use serde_json::{Value, json};

use super::reading::{agent_value, hex, readable, server_value};
use super::samples::{Signed, task_id};

/// A hello over TCP.
fn hello() -> Hello {
    Hello {
        agent_version: "0.1.0".to_owned(),
        platform: Platform {
            os: "linux".to_owned(),
            os_version: "Debian GNU/Linux 12".to_owned(),
            arch: "x86_64".to_owned(),
            hostname: "pc-0005".to_owned(),
        },
        boot: BootId([0x11; 16]),
        session: SessionNumber(1_772_366_401),
        abilities: Abilities::ALL,
        road: RoadTaken::tcp(),
        keepalive_secs: Some(300),
        clock_skew_ms: -1_250,
        policy_version: 7,
        known_tasks: vec![
            KnownTask { task: task_id(2), state: TaskState::Refused },
            KnownTask { task: task_id(1), state: TaskState::Running },
        ],
    }
}

/// A hello through a tunnel.
pub(crate) fn tunnelled_hello() -> Hello {
    let issuer = "CN=Inspecting proxy".to_owned();
    let reason = Some(RoadReason::Intercepted(issuer));
    Hello {
        road: RoadTaken { road: Road::WebSocket, outer_tls: true, proxied: true, reason },
        keepalive_secs: None,
        clock_skew_ms: 0,
        policy_version: 0,
        known_tasks: Vec::new(),
        ..hello()
    }
}

/// Every message of both sides.
pub(crate) fn messages(signed: &Signed) -> Value {
    let (task, cancel) = (&signed.tasks[0].1, &signed.cancel);
    let document = |index: usize, proof| {
        Some(PolicyDocument { signed: signed.policies[index].1.bytes().to_vec(), proof })
    };
    let part = |index, count, document| {
        ServerMessage::Policy(Box::new(PolicyPart { request: 3, index, count, document }))
    };
    let welcome = Welcome {
        server: ServerId(1),
        head: signed.head.bytes().to_vec(),
        keepalive_secs: 291,
        reconnect_window_secs: 30,
        reconnect_slot_secs: None,
        other_servers: vec!["bgb2.example.org:10123".to_owned()],
        abilities: Abilities::ALL,
    };
    let push = TaskPush { signed: task.bytes().to_vec(), proof: signed.proof() };
    let drain = Drain { window_secs: 60, servers: vec!["bgb2.example.org:10123".to_owned()] };
    let bare_welcome = Welcome {
        head: Vec::new(),
        reconnect_slot_secs: Some(12),
        other_servers: Vec::new(),
        ..welcome.clone()
    };
    let mut out = vec![
        from_agent("hello", &AgentMessage::Hello(Box::new(hello()))),
        from_agent("hello from behind a proxy", &AgentMessage::Hello(Box::new(tunnelled_hello()))),
        from_agent("keepalive", &AgentMessage::Keepalive),
        from_agent("received", &AgentMessage::Received(task_id(1))),
        from_agent("running", &AgentMessage::Running(task_id(1))),
    ];
    out.extend(signed.results.iter().map(|(name, result)| {
        from_agent(&format!("result: {name}"), &AgentMessage::Result(Box::new(result.clone())))
    }));
    out.extend([
        from_agent("policy request", &AgentMessage::PolicyRequest(3)),
        from_agent("goodbye", &AgentMessage::Goodbye),
        from_server("welcome", &ServerMessage::Welcome(Box::new(welcome))),
        from_server("welcome before the first head", &ServerMessage::Welcome(Box::new(bare_welcome))),
        from_server("keepalive answer", &ServerMessage::KeepaliveAnswer(signed.head.bytes().to_vec())),
        from_server("keepalive answer before the first head", &ServerMessage::KeepaliveAnswer(Vec::new())),
        from_server("task", &ServerMessage::Task(Box::new(push))),
        from_server("cancel", &ServerMessage::Cancel(cancel.bytes().to_vec())),
        from_server("result kept", &ServerMessage::ResultKept(task_id(1))),
        from_server("first policy of two", &part(0, 2, document(1, signed.proof()))),
        from_server("second policy of two", &part(1, 2, document(0, Vec::new()))),
        from_server("no policy at all", &part(0, 0, None)),
        from_server("drain", &ServerMessage::Drain(drain)),
    ]);
    for reason in [
        RefusedReason::Blocked,
        RefusedReason::Certificate,
        RefusedReason::Superseded,
        RefusedReason::Unavailable,
        RefusedReason::Full,
        RefusedReason::Protocol,
    ] {
        out.push(from_server(&format!("refused: {reason:?}"), &ServerMessage::Refused(reason)));
    }
    Value::Array(out)
}

fn from_agent(name: &str, message: &AgentMessage) -> Value {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    frame_entry(name, "agent", &bytes, &agent_value(message))
}

fn from_server(name: &str, message: &ServerMessage) -> Value {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    frame_entry(name, "server", &bytes, &server_value(message))
}

fn frame_entry(name: &str, from: &str, bytes: &[u8], value: &Value) -> Value {
    let (frame, _) = Frame::decode(bytes).unwrap().unwrap();
    json!({ "name": name, "from": from, "type": frame.kind, "hex": hex(bytes), "value": value })
}

fn raw(kind: u16, version: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(kind, version, &mut bytes, |out| out.extend_from_slice(body));
    bytes
}

/// Frames of a later minor version, which this release takes.
pub(crate) fn tolerated() -> Value {
    let mut received = Vec::new();
    codec::encode(&task_id(1), &mut received);
    received.push(0xff);
    let mut later = frame_entry(
        "received, with a field more, of version 1.1",
        "agent",
        &raw(kind::RECEIVED, 0x11, &received),
        &readable(&task_id(1)),
    );
    later["version"] = "1.1".into();
    let mut skipped =
        frame_entry("a type that may be skipped", "server", &raw(0x8001, 0x10, b"anything"), &Value::Null);
    skipped["skipped"] = true.into();
    Value::Array(vec![later, skipped])
}

/// Frames that end a session.
pub(crate) fn refused() -> Value {
    let mut task = Vec::new();
    codec::encode(&task_id(1), &mut task);
    let longer = [&task[..], &[0]].concat();
    let short_keepalive = Hello { keepalive_secs: Some(19), ..hello() };
    let known = KnownTask { task: task_id(1), state: TaskState::Running };
    let too_many = Hello { known_tasks: vec![known; 257], ..hello() };
    let of_hello = |hello: Hello| {
        let mut bytes = Vec::new();
        AgentMessage::Hello(Box::new(hello)).encode(&mut bytes);
        bytes
    };
    let entries = [
        ("a body over 64 KiB is announced", "agent", vec![0, 5, 0x10, 0x01, 0x00, 0x01]),
        ("a type that nobody knows", "agent", raw(0x0777, 0x10, &[])),
        ("a server's type from an agent", "agent", raw(kind::DRAIN, 0x10, &[])),
        ("another major version", "agent", raw(kind::KEEPALIVE, 0x20, &[])),
        ("a body cut short", "agent", raw(kind::RECEIVED, 0x10, &task[..15])),
        ("a byte too many", "agent", raw(kind::RECEIVED, 0x10, &longer)),
        ("a keepalive with a body", "agent", raw(kind::KEEPALIVE, 0x10, &[0])),
        (
            "a number that does not fit",
            "agent",
            raw(kind::POLICY_REQUEST, 0x10, &[0xff, 0xff, 0xff, 0xff, 0x1f]),
        ),
        ("a reason that does not exist", "server", raw(kind::REFUSED, 0x10, &[6])),
        ("a keepalive shorter than 20 s", "agent", of_hello(short_keepalive)),
        ("more than 256 known tasks", "agent", of_hello(too_many)),
    ];
    entries
        .map(|(name, from, bytes)| json!({ "name": name, "from": from, "hex": hex(&bytes) }))
        .to_vec()
        .into()
}
