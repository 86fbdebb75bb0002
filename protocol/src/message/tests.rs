use proptest::prelude::*;

use super::*;
use crate::ids::{KeyId, TaskId};
use crate::signature::Signature;

fn task() -> impl Strategy<Value = TaskId> {
    any::<[u8; 16]>().prop_map(TaskId::from_bytes)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..400)
}

fn text() -> impl Strategy<Value = String> {
    "[a-zäß0-9 .-]{0,40}"
}

prop_compose! {
    fn hello()(
        agent_version in text(), os in text(), hostname in text(), boot in any::<[u8; 16]>(), session in ..=i64::MAX as u64,
        keepalive_secs in prop::option::of(20u32..5000), clock_skew_ms in any::<i64>(), policy_version in ..=i64::MAX as u64,
        known in prop::collection::vec(task(), 0..20), intercepted in prop::option::of(text()), abilities in any::<u64>(),
    ) -> Hello {
        Hello {
            agent_version,
            platform: Platform { os, os_version: "12".into(), arch: "x86_64".into(), hostname },
            boot: BootId(boot),
            session: SessionNumber(session),
            abilities: Abilities(abilities),
            road: RoadTaken { reason: intercepted.map(RoadReason::Intercepted), ..RoadTaken::tcp() },
            keepalive_secs,
            clock_skew_ms,
            policy_version,
            known_tasks: known.into_iter().map(|task| KnownTask { task, state: TaskState::Running }).collect(),
        }
    }
}

fn agent_message() -> impl Strategy<Value = AgentMessage> {
    prop_oneof![
        hello().prop_map(|hello| AgentMessage::Hello(Box::new(hello))),
        Just(AgentMessage::Keepalive),
        task().prop_map(AgentMessage::Received),
        task().prop_map(AgentMessage::Running),
        (bytes(), bytes(), any::<[u8; 8]>()).prop_map(|(statement, output, key)| {
            let signature = Signature { key: KeyId(key), bytes: [7; 64] };
            AgentMessage::Result(Box::new(SignedResult { statement, signature, output }))
        }),
        any::<u32>().prop_map(AgentMessage::PolicyRequest),
        Just(AgentMessage::Goodbye),
    ]
}

fn server_message() -> impl Strategy<Value = ServerMessage> {
    prop_oneof![
        (bytes(), any::<u32>(), prop::option::of(any::<u32>()), prop::collection::vec(text(), 0..3))
            .prop_map(|(head, secs, slot, other_servers)| ServerMessage::Welcome(Box::new(Welcome {
                server: ServerId(3),
                head,
                keepalive_secs: secs,
                reconnect_window_secs: 5,
                reconnect_slot_secs: slot,
                other_servers,
                abilities: Abilities::ALL,
            }))),
        bytes().prop_map(ServerMessage::KeepaliveAnswer),
        (bytes(), bytes())
            .prop_map(|(signed, proof)| ServerMessage::Task(Box::new(TaskPush { signed, proof }))),
        bytes().prop_map(ServerMessage::Cancel),
        task().prop_map(ServerMessage::ResultKept),
        (bytes(), any::<u32>()).prop_map(|(signed, request)| {
            let document = Some(PolicyDocument { signed, proof: Vec::new() });
            ServerMessage::Policy(Box::new(PolicyPart { request, index: 0, count: 1, document }))
        }),
        any::<u32>().prop_map(|window_secs| ServerMessage::Drain(Drain { window_secs, servers: Vec::new() })),
        Just(ServerMessage::Refused(RefusedReason::Superseded)),
    ]
}

/// What the message in `frame` reads as when its body is cut short (if it has one), when a byte follows, and when a byte follows
/// and the version is a newer minor one.
fn cut_and_longer<M>(
    frame: &[u8],
    cut: prop::sample::Index,
    decode: fn(Frame<'_>) -> Result<Option<M>, MessageError>,
) -> (Option<M>, Option<M>, Option<M>) {
    let (frame, _) = Frame::decode(frame).unwrap().unwrap();
    let read = |version, body: &[u8]| decode(Frame { version, body, ..frame }).ok().flatten();
    let short = (!frame.body.is_empty()).then(|| read(VERSION, &frame.body[..cut.index(frame.body.len())]));
    let longer = [frame.body, &[0]].concat();
    (short.flatten(), read(VERSION, &longer), read(VERSION + 1, &longer))
}

proptest! {
    #[test]
    fn every_agent_message_reads_back_as_it_was_written(message in agent_message()) {
        let mut out = Vec::new();
        message.encode(&mut out);
        let (frame, used) = Frame::decode(&out).unwrap().unwrap();
        prop_assert_eq!(used, out.len());
        prop_assert_eq!(AgentMessage::decode(frame).unwrap(), Some(message));
    }

    #[test]
    fn every_server_message_reads_back_as_it_was_written(message in server_message()) {
        let mut out = Vec::new();
        message.encode(&mut out);
        let (frame, used) = Frame::decode(&out).unwrap().unwrap();
        prop_assert_eq!(used, out.len());
        prop_assert_eq!(ServerMessage::decode(frame).unwrap(), Some(message));
    }

    #[test]
    fn a_message_cut_short_or_with_more_behind_it_is_refused(
        said in agent_message(), answered in server_message(), cut in any::<prop::sample::Index>(),
    ) {
        let mut out = Vec::new();
        said.encode(&mut out);
        let outcomes = cut_and_longer(&out, cut, AgentMessage::decode);
        prop_assert_eq!(outcomes, (None, None, Some(said)));
        out.clear();
        answered.encode(&mut out);
        let outcomes = cut_and_longer(&out, cut, ServerMessage::decode);
        prop_assert_eq!(outcomes, (None, None, Some(answered)));
    }

    #[test]
    fn a_shared_push_is_the_task_message(signed in bytes(), proof in bytes()) {
        let (mut shared, mut whole) = (Vec::new(), Vec::new());
        SharedPush::new(&signed).encode(&proof, &mut shared);
        ServerMessage::Task(Box::new(TaskPush { signed, proof })).encode(&mut whole);
        prop_assert_eq!(shared, whole);
    }

    #[test]
    fn arbitrary_bodies_never_panic(kind in 0u16..0x120, version in any::<u8>(), body in bytes()) {
        let frame = Frame { kind, version, body: &body };
        let _ = AgentMessage::decode(frame);
        let _ = ServerMessage::decode(frame);
    }
}

#[test]
fn an_unknown_type_ends_the_session_unless_it_may_be_skipped() {
    let frame = |kind| Frame { kind, version: VERSION, body: &[] };
    assert_eq!(AgentMessage::decode(frame(0x8001)), Ok(None));
    assert_eq!(AgentMessage::decode(frame(0x0777)), Err(MessageError::UnknownType(0x0777)));
    assert_eq!(AgentMessage::decode(frame(kind::WELCOME)), Err(MessageError::UnknownType(kind::WELCOME)));
    assert_eq!(ServerMessage::decode(frame(kind::HELLO)), Err(MessageError::UnknownType(kind::HELLO)));
}

#[test]
fn a_hello_over_a_limit_is_refused() {
    let known = KnownTask { task: TaskId::from_bytes([0; 16]), state: TaskState::Received };
    let hello = Hello {
        agent_version: String::new(),
        platform: Platform::default(),
        boot: BootId([0; 16]),
        session: SessionNumber(0),
        abilities: Abilities::ALL,
        road: RoadTaken::tcp(),
        keepalive_secs: None,
        clock_skew_ms: 0,
        policy_version: 0,
        known_tasks: vec![known; KNOWN_TASKS_MAX + 1],
    };
    for hello in [
        hello.clone(),
        Hello { known_tasks: Vec::new(), agent_version: "x".repeat(257), ..hello.clone() },
        Hello { known_tasks: Vec::new(), keepalive_secs: Some(19), ..hello.clone() },
        Hello { known_tasks: Vec::new(), session: SessionNumber(1 << 63), ..hello.clone() },
        Hello { known_tasks: Vec::new(), policy_version: 1 << 63, ..hello },
    ] {
        let mut out = Vec::new();
        AgentMessage::Hello(Box::new(hello)).encode(&mut out);
        let (frame, _) = Frame::decode(&out).unwrap().unwrap();
        let refused = AgentMessage::decode(frame).unwrap_err();
        assert!(
            matches!(&refused, MessageError::Body(CodecError::Limit { .. } | CodecError::Least { .. })),
            "{refused}"
        );
    }
}

#[test]
fn a_hello_whose_texts_would_drive_a_terminal_is_refused() {
    let plain = Platform { os: "linux".into(), ..Platform::default() };
    for (agent_version, hostname, issuer) in [
        ("1\n", "host", "CA"),
        ("1", "\u{1b}[2Jhost", "CA"),
        ("1", "host", "CA\u{9b}31m"),
        ("1", "host", "CA"),
    ] {
        let reason = Some(RoadReason::Intercepted(issuer.to_owned()));
        let hello = Hello {
            agent_version: agent_version.to_owned(),
            platform: Platform { hostname: hostname.to_owned(), ..plain.clone() },
            boot: BootId([0; 16]),
            session: SessionNumber(1),
            abilities: Abilities::ALL,
            road: RoadTaken { reason, ..RoadTaken::tcp() },
            keepalive_secs: None,
            clock_skew_ms: 0,
            policy_version: 0,
            known_tasks: Vec::new(),
        };
        let mut out = Vec::new();
        AgentMessage::Hello(Box::new(hello)).encode(&mut out);
        let (frame, _) = Frame::decode(&out).unwrap().unwrap();
        let is_plain = (agent_version, hostname, issuer) == ("1", "host", "CA");
        match AgentMessage::decode(frame) {
            Ok(_) => assert!(is_plain),
            Err(error) => assert!(!is_plain && error.to_string().contains("control characters"), "{error}"),
        }
    }
}
