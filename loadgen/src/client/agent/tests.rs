use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::ids::ServerId;
use bgb_protocol::message::Welcome;
use bgb_protocol::signature::SigningKey;
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::TaskStatement;

use super::*;

const DEVICE: DeviceId = DeviceId(5);
const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

fn key() -> SigningKey {
    SigningKey::from_seed([3; 32])
}

fn agent() -> (Agent, Vec<u8>) {
    let (device_key, _) = DeviceKey::generate().unwrap();
    let public = device_key.public();
    let (code, task_keys) = ("LAB".parse().unwrap(), TrustedKeys::new([key().public()]));
    let site = Site { code, task_keys, road: RoadTaken::tcp() };
    (Agent::new(Arc::new(site), DEVICE, Arc::new(device_key), SessionNumber(9)), public)
}

fn push(for_device: DeviceId) -> TaskPush {
    let targets = TargetSet::new([4, 5].into_iter().collect()).unwrap();
    let statement = TaskStatement {
        site: "LAB".parse().unwrap(),
        task: TaskId::from_bytes([7; 16]),
        action: Action::Ping.code(),
        parameters: Parameters::none(),
        targets: targets.digest(),
        not_before: NOW,
        expires: NOW.plus(60_000),
        approval: None,
    };
    let mut proof = Vec::new();
    assert!(targets.prove(for_device, &mut proof));
    TaskPush { signed: SignedTask::sign(statement, &key()).bytes().to_vec(), proof }
}

fn said(bytes: &[u8]) -> Vec<AgentMessage> {
    let (mut at, mut said) = (0, Vec::new());
    while let Some((frame, length)) = Frame::decode(&bytes[at..]).unwrap() {
        said.push(AgentMessage::decode(frame).unwrap().unwrap());
        at += length;
    }
    assert_eq!(at, bytes.len());
    said
}

#[test]
fn a_task_is_answered_as_a_real_agent_answers_and_named_in_the_next_hello() {
    let (mut agent, public) = agent();
    let mut out = Vec::new();
    let task = agent.carry_out(&push(DEVICE), NOW, &mut out).unwrap();
    let said_then = said(&out);
    let [AgentMessage::Received(received), AgentMessage::Running(running), AgentMessage::Result(result)] =
        said_then.as_slice()
    else {
        panic!("{said_then:?}")
    };
    assert_eq!((*received, *running), (task, task));
    result.verify(&public).unwrap();
    let statement = result.read().unwrap();
    assert_eq!((statement.task, statement.device, statement.state), (task, DEVICE, TaskState::Succeeded));
    out.clear();
    agent.greet(&mut out);
    let hello = said(&out);
    let [AgentMessage::Hello(hello)] = hello.as_slice() else { panic!("{hello:?}") };
    assert_eq!(hello.session, SessionNumber(10));
    assert_eq!(hello.known_tasks, [KnownTask { task, state: TaskState::Succeeded }]);
}

#[test]
fn what_is_not_signed_or_not_meant_is_not_answered() {
    let (mut agent, _) = agent();
    let mut out = Vec::new();
    let mut altered = push(DEVICE);
    altered.signed[20] ^= 1;
    assert!(agent.carry_out(&altered, NOW, &mut out).is_err());
    let mut altered = push(DEVICE);
    altered.proof[0] ^= 1;
    assert!(agent.carry_out(&altered, NOW, &mut out).is_err());
    agent.device = DeviceId(6);
    assert!(agent.carry_out(&push(DEVICE), NOW, &mut out).is_err());
    assert!(out.is_empty());
}

#[test]
fn a_result_is_said_again_until_it_is_kept() {
    let (mut agent, _) = agent();
    let mut out = Vec::new();
    let task = agent.carry_out(&push(DEVICE), NOW, &mut out).unwrap();
    agent.lose();
    let mut again = Vec::new();
    agent.say_again(&mut again);
    assert!(matches!(said(&again).as_slice(), [AgentMessage::Result(_)]) && out.ends_with(&again));
    let (mut kept, mut told) = (Vec::new(), 0);
    ServerMessage::ResultKept(task).encode(&mut kept);
    for _ in 0..2 {
        agent.hear(&kept, |heard| told += u32::from(matches!(heard, Heard::Kept))).unwrap();
    }
    assert_eq!(told, 1, "it is counted once");
    again.clear();
    agent.say_again(&mut again);
    assert!(again.is_empty());
}

#[test]
fn what_comes_in_pieces_is_heard_as_what_comes_whole() {
    let welcome = Welcome {
        server: ServerId(1),
        head: Vec::new(),
        keepalive_secs: 900,
        reconnect_window_secs: 60,
        reconnect_slot_secs: None,
        other_servers: Vec::new(),
        abilities: Abilities::ALL,
    };
    let mut bytes = Vec::new();
    ServerMessage::Welcome(Box::new(welcome)).encode(&mut bytes);
    ServerMessage::Task(Box::new(push(DEVICE))).encode(&mut bytes);
    let task = agent().0.carry_out(&push(DEVICE), NOW, &mut Vec::new()).unwrap();
    ServerMessage::ResultKept(task).encode(&mut bytes);
    for cut in 0..=bytes.len() {
        let (mut agent, _) = agent();
        agent.carry_out(&push(DEVICE), NOW, &mut Vec::new()).unwrap();
        let mut heard = Vec::new();
        for piece in [&bytes[..cut], &bytes[cut..]] {
            agent.hear(piece, |one| heard.push(one)).unwrap();
        }
        assert!(
            matches!(
                heard.as_slice(),
                [Heard::Welcome { keepalive_secs: 900, .. }, Heard::Task(_), Heard::Kept]
            ),
            "cut at {cut}: {heard:?}"
        );
        assert!(agent.is_active() && agent.heard.capacity() == 0);
    }
    let (mut agent, _) = agent();
    assert!(agent.hear(&[0xFF; 64], |_| ()).is_err());
}
