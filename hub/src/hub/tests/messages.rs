use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::message::PolicyPart;
use bgb_protocol::policy::{PolicyScope, PolicyStatement, SignedPolicy};
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::DeviceKey;
use bgb_protocol::state::TaskState;

use super::*;
use crate::order::PolicyOrder;

fn result(task: u8, device: u32, state: TaskState) -> SignedResult {
    let (key, _) = DeviceKey::generate().unwrap();
    let statement = ResultStatement {
        site: "LAB".parse().unwrap(),
        task: task_id(task),
        device: DeviceId(device),
        state,
        refusal: None,
        code: 0,
        started: START,
        finished: START,
        output_digest: [0; 32],
    };
    SignedResult::sign(statement, b"fine".to_vec(), &key).unwrap()
}

fn say_result(rig: &mut Rig, channel: ChannelKey, result: SignedResult) -> Vec<Output> {
    rig.say(channel, AgentMessage::Result(Box::new(result)))
}

fn kept(out: &[Output]) -> Vec<(u64, ResultRow)> {
    let keep = |output: &Output| match output {
        Output::Keep { number, row, .. } => Some((*number, row.clone())),
        _ => None,
    };
    out.iter().filter_map(keep).collect()
}

#[test]
fn a_keepalive_is_answered_with_the_newest_head() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    assert_eq!(
        sent(&rig.say(channel, AgentMessage::Keepalive), channel),
        [ServerMessage::KeepaliveAnswer(Vec::new())]
    );
    rig.order(Order::Head { signed: vec![2].into(), time: UnixMillis(20) });
    rig.order(Order::Head { signed: vec![1].into(), time: UnixMillis(10) });
    assert_eq!(
        sent(&rig.say(channel, AgentMessage::Keepalive), channel),
        [ServerMessage::KeepaliveAnswer(vec![2])]
    );
}

#[test]
fn a_choked_session_is_owed_one_keepalive_answer_however_often_it_asks() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    rig.input(Input::Choked { channel });
    for _ in 0..50 {
        assert!(rig.say(channel, AgentMessage::Keepalive).is_empty());
    }
    assert_eq!(sent(&rig.input(Input::Flowing { channel }), channel).len(), 1);
}

#[test]
fn a_result_is_kept_and_acknowledged_only_when_durable() {
    let mut rig = Rig::new();
    let (one, two) = (rig.sign_in(1), rig.sign_in(2));
    let out = say_result(&mut rig, one, result(7, 1, TaskState::Succeeded));
    let [(1, row)] = &kept(&out)[..] else { panic!("{out:?}") };
    assert_eq!((row.device, row.task, row.heard), (DeviceId(1), task_id(7), rig.time()));
    assert!(matches!(row.word, DeviceWord::Final(_)));
    assert_eq!(out.len(), 1, "no acknowledgement before it is on disk");
    say_result(&mut rig, two, result(7, 2, TaskState::Failed));
    say_result(&mut rig, one, result(8, 1, TaskState::Failed));
    let out = rig.input(Input::Durable { up_to: 2 });
    assert_eq!(sent(&out, one), [ServerMessage::ResultKept(task_id(7))]);
    assert_eq!(sent(&out, two), [ServerMessage::ResultKept(task_id(7))]);
    assert!(rig.input(Input::Durable { up_to: 2 }).is_empty());
    assert_eq!(sent(&rig.input(Input::Durable { up_to: 9 }), one), [ServerMessage::ResultKept(task_id(8))]);
}

#[test]
fn a_later_session_of_the_device_is_not_told_of_the_earlier_ones_result() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    say_result(&mut rig, channel, result(7, 1, TaskState::Succeeded));
    rig.input(Input::Closed { channel, reason: CloseReason::Reset });
    rig.sign_in(1);
    assert!(rig.input(Input::Durable { up_to: 1 }).is_empty());
}

#[test]
fn a_result_in_another_devices_name_or_one_that_contradicts_itself_ends_the_session() {
    let forged_output = SignedResult { output: b"other".to_vec(), ..result(7, 1, TaskState::Failed) };
    for (result, reason) in [
        (result(7, 2, TaskState::Succeeded), CloseReason::ForeignResult),
        (result(7, 1, TaskState::Running), CloseReason::BadResult),
        (forged_output, CloseReason::BadResult),
    ] {
        let mut rig = Rig::new();
        let channel = rig.sign_in(1);
        let out = say_result(&mut rig, channel, result);
        assert!(kept(&out).is_empty());
        assert_eq!(closes(&out), [(channel, reason)]);
        assert_eq!(refusals(&out), [RefusedReason::Protocol]);
    }
}

#[test]
fn received_and_running_of_a_target_are_passed_on_and_others_are_dropped() {
    let mut rig = Rig::new();
    let (target, other) = (rig.sign_in(1), rig.sign_in(2));
    rig.start_task(7, &[1]);
    let out = rig.say(target, AgentMessage::Running(task_id(7)));
    let [Output::Hint { row }] = &out[..] else { panic!("{out:?}") };
    assert_eq!(row.hint(), Some(TaskState::Running));
    assert_eq!(rig.say(target, AgentMessage::Received(task_id(7))).len(), 1);
    assert!(rig.say(target, AgentMessage::Received(task_id(8))).is_empty());
    assert!(rig.say(other, AgentMessage::Received(task_id(7))).is_empty());
    assert_eq!((rig.hub.counters().hints, rig.hub.counters().hints_dropped), (2, 2));
}

fn policy(name: &str, version: u64, bytes: usize) -> Order {
    let statement = PolicyStatement {
        site: "LAB".parse().unwrap(),
        name: name.to_owned(),
        version,
        priority: 0,
        scope: PolicyScope::Everyone,
        issued: START,
        settings: Some(" ".repeat(bytes)),
    };
    let signed = SignedPolicy::sign(statement, &key());
    Order::Policy(Arc::new(PolicyOrder::read(signed.bytes(), None).unwrap()))
}

fn parts(out: &[Output], channel: ChannelKey) -> Vec<PolicyPart> {
    let part = |message| match message {
        ServerMessage::Policy(part) => Some(*part),
        _ => None,
    };
    sent(out, channel).into_iter().filter_map(part).collect()
}

#[test]
fn a_policy_request_is_answered_with_every_document_and_with_one_empty_part_if_there_is_none() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    let out = rig.say(channel, AgentMessage::PolicyRequest(9));
    assert_eq!(parts(&out, channel), [PolicyPart { request: 9, index: 0, count: 0, document: None }]);
    rig.order(policy("base", 1, 10));
    rig.order(policy("more", 2, 10));
    rig.order(policy("base", 3, 10));
    rig.pass(10);
    let parts = parts(&rig.say(channel, AgentMessage::PolicyRequest(10)), channel);
    let places: Vec<_> = parts.iter().map(|part| (part.request, part.index, part.count)).collect();
    assert_eq!(places, [(10, 0, 2), (10, 1, 2)]);
    let versions: Vec<_> = parts
        .iter()
        .map(|part| {
            SignedPolicy::decode(&part.document.as_ref().unwrap().signed).unwrap().statement().version
        })
        .collect();
    assert_eq!(versions, [3, 2]);
}

#[test]
fn a_second_policy_request_within_a_second_waits_and_the_last_of_many_is_answered() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    assert_eq!(parts(&rig.say(channel, AgentMessage::PolicyRequest(1)), channel).len(), 1);
    for request in 2..50 {
        assert!(rig.say(channel, AgentMessage::PolicyRequest(request)).is_empty());
    }
    assert!(rig.pass(9).is_empty());
    let answered: Vec<_> = parts(&rig.pass(1), channel).iter().map(|part| part.request).collect();
    assert_eq!(answered, [49]);
    assert!(rig.pass(100).is_empty());
    assert_eq!(rig.hub.counters().policy_requests_replaced, 47);
}

#[test]
fn a_long_policy_answer_comes_in_portions_and_waits_while_the_session_is_choked() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    for number in 0..4 {
        rig.order(policy(&format!("p{number}"), 1, 50_000));
    }
    let mut all = parts(&rig.say(channel, AgentMessage::PolicyRequest(1)), channel);
    assert_eq!(all.len(), 2, "64 KiB are reached with the second");
    rig.input(Input::Choked { channel });
    assert!(rig.turn().is_empty());
    assert_ne!(rig.hub.next_deadline(), Some(Tick(rig.tick)), "nothing is due while it is choked");
    assert!(rig.say(channel, AgentMessage::PolicyRequest(2)).is_empty());
    all.extend(parts(&rig.input(Input::Flowing { channel }), channel));
    all.extend(parts(&rig.turn(), channel));
    let places: Vec<_> = all.iter().map(|part| (part.request, part.index)).collect();
    assert_eq!(places, [(1, 0), (1, 1), (1, 2), (1, 3)]);
    let next: Vec<_> = parts(&rig.pass(20), channel).iter().map(|part| part.request).collect();
    assert_eq!(next, [2, 2, 2, 2]);
}
