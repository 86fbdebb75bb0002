use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::frame::Frame;
use bgb_protocol::head::HeadStatement;
use bgb_protocol::ids::Generation;
use bgb_protocol::message::{ServerMessage, TaskPush};
use bgb_protocol::policy::PolicyStatement;
use bgb_protocol::queue::Bitmap;
use bgb_protocol::signature::SigningKey;
use bgb_protocol::task::{CancelStatement, TaskStatement};

use super::*;

fn key() -> SigningKey {
    SigningKey::from_seed([3; 32])
}

fn statement(targets: &RoaringBitmap) -> TaskStatement {
    TaskStatement {
        site: "LAB".parse().unwrap(),
        task: TaskId::from_bytes([9; 16]),
        action: Action::Ping.code(),
        parameters: Parameters::none(),
        targets: TargetSet::new(targets.clone()).unwrap().digest(),
        not_before: UnixMillis(1_000),
        expires: UnixMillis(61_000),
        approval: None,
    }
}

fn targets() -> RoaringBitmap {
    (0..10_000).step_by(3).collect()
}

fn task() -> TaskOrder {
    let signed = SignedTask::sign(statement(&targets()), &key());
    TaskOrder::read(signed.bytes(), targets()).unwrap()
}

fn decoded(frame: &[u8]) -> TaskPush {
    let (frame, used) = Frame::decode(frame).unwrap().unwrap();
    assert_eq!(used, frame.body.len() + HEADER_BYTES);
    match ServerMessage::decode(frame).unwrap() {
        Some(ServerMessage::Task(push)) => *push,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_push_carries_the_signed_bytes_and_a_proof_that_holds() {
    let task = task();
    for device in [0, 3, 9_999] {
        let mut frame = Vec::new();
        assert!(task.encode_push(DeviceId(device), &mut frame));
        assert!(frame.len() <= task.push_bytes_max());
        let push = decoded(&frame);
        let signed = SignedTask::decode(&push.signed).unwrap();
        assert_eq!(signed.statement().targets.verify(DeviceId(device), &push.proof), Ok(()));
    }
}

#[test]
fn nothing_is_encoded_for_a_device_that_is_no_target() {
    let (task, mut out) = (Arc::new(task()), vec![1]);
    assert!(!task.encode_push(DeviceId(1), &mut out));
    assert_eq!(out, [1]);
    let mut frames = PushFrames::default();
    assert!(frames.frame(&task, DeviceId(1)).is_empty());
    assert!(!frames.frame(&task, DeviceId(3)).is_empty());
    assert!(frames.frame(&task, DeviceId(4)).is_empty());
}

#[test]
fn a_kept_frame_is_the_one_that_would_be_encoded() {
    let one = Arc::new(task());
    let other = Arc::new(task());
    let mut frames = PushFrames::default();
    for task in [&one, &other] {
        for device in targets() {
            let mut encoded = Vec::new();
            task.encode_push(DeviceId(device), &mut encoded);
            assert_eq!(frames.frame(task, DeviceId(device)), encoded, "{device}");
        }
    }
}

#[test]
fn a_row_whose_targets_are_not_the_signed_ones_is_no_order() {
    let signed = SignedTask::sign(statement(&targets()), &key());
    let (mut one_more, mut huge) = (targets(), targets());
    one_more.insert(1);
    huge.insert(u32::MAX);
    for wrong in [one_more, huge, RoaringBitmap::new()] {
        assert_eq!(TaskOrder::read(signed.bytes(), wrong).unwrap_err(), OrderError::Targets);
    }
}

#[test]
fn a_task_that_ends_before_it_begins_is_no_order() {
    let backwards = TaskStatement { expires: UnixMillis(999), ..statement(&targets()) };
    let signed = SignedTask::sign(backwards, &key());
    assert_eq!(TaskOrder::read(signed.bytes(), targets()).unwrap_err(), OrderError::Validity);
}

#[test]
fn every_kind_of_row_is_read() {
    let site = "LAB".parse().unwrap();
    let id = TaskId::from_bytes([9; 16]);
    let task = SignedTask::sign(statement(&targets()), &key());
    let cancel = CancelStatement { site, task: id, expires: UnixMillis(61_000), cancelled: UnixMillis(5) };
    let head = HeadStatement { site, generation: Generation([1; 16]), sequence: 4, time: UnixMillis(77) };
    let policy = PolicyStatement {
        site,
        name: "base".to_owned(),
        version: 3,
        priority: 1,
        scope: PolicyScope::Set(TargetSet::new(targets()).unwrap().digest()),
        issued: UnixMillis(5),
        settings: None,
    };
    let bitmap = Bitmap::of(&targets());
    let signed = |bytes: &Arc<[u8]>| bytes.to_vec();
    let cancel = SignedCancel::sign(cancel, &key());
    let head = SignedHead::sign(head, &key());
    let policy = SignedPolicy::sign(policy, &key());
    let read = |item| Order::read(item).unwrap();

    let item = QueueItem::Task { signed: signed(task.bytes()), targets: bitmap.0.clone() };
    assert!(matches!(read(item), Order::Task(task) if task.id == id));
    let item = QueueItem::Release { task: id, devices: Some(bitmap.clone()), from: UnixMillis(6) };
    assert!(matches!(read(item), Order::Release { devices: Some(devices), .. } if *devices == targets()));
    let item = QueueItem::Cancel { signed: signed(cancel.bytes()) };
    assert!(matches!(read(item), Order::Cancel { task, expires: UnixMillis(61_000), .. } if task == id));
    let item = QueueItem::Head { signed: signed(head.bytes()) };
    assert!(matches!(read(item), Order::Head { time: UnixMillis(77), .. }));
    let item = QueueItem::Policy { signed: signed(policy.bytes()), devices: Some(bitmap) };
    let Order::Policy(order) = read(item) else { panic!("a policy is one") };
    assert!(order.withdrawn && order.is_for(DeviceId(3)) && !order.is_for(DeviceId(4)));
    assert!(!order.document(DeviceId(3)).proof.is_empty());
    let item = QueueItem::Policy { signed: signed(policy.bytes()), devices: None };
    assert_eq!(Order::read(item).unwrap_err(), OrderError::Targets);
    let item = QueueItem::Block { device: DeviceId(4) };
    assert!(matches!(read(item), Order::Block { device: DeviceId(4) }));
}

#[test]
fn a_mangled_row_is_an_error_and_no_panic() {
    let task = SignedTask::sign(statement(&targets()), &key());
    let whole = task.bytes().to_vec();
    for cut in 0..whole.len() {
        let item = QueueItem::Task { signed: whole[..cut].to_vec(), targets: Bitmap::of(&targets()).0 };
        assert!(Order::read(item).is_err(), "{cut}");
    }
    let item = QueueItem::Release {
        task: TaskId::from_bytes([9; 16]),
        devices: Some(Bitmap(vec![1, 2, 3])),
        from: UnixMillis(0),
    };
    assert!(matches!(Order::read(item), Err(OrderError::Codec(_))));
}
