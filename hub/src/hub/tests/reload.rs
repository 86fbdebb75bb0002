use bgb_protocol::state::TaskState;

use super::*;

/// Rows of the present database, as a reload brings them.
fn rows(rig: &Rig) -> [Order; 2] {
    let task = task_order(1, &[1, 2, 3, 4], START, 2 * HOUR_MS);
    let _ = rig;
    [task, Order::Release { task: task_id(1), devices: None, from: UnixMillis(0) }]
}

fn reload(rig: &mut Rig) -> Vec<Output> {
    let mut out = rig.order(Order::Reset);
    for row in rows(rig) {
        out.extend(rig.order(row));
    }
    out.extend(rig.input(Input::SignIns { allowed: true }));
    out.extend(rig.turn());
    out
}

#[test]
fn what_was_pushed_before_a_reset_is_not_pushed_again_and_what_was_not_is() {
    let mut rig = Rig::new();
    rig.sign_in(1);
    let choked = rig.sign_in(2);
    rig.input(Input::Choked { channel: choked });
    for row in rows(&rig) {
        rig.order(row);
    }
    let out = reload(&mut rig);
    assert!(pushes(&out).is_empty(), "{out:?}");
    assert_eq!(pushes(&rig.input(Input::Flowing { channel: choked })), [(2, 1)]);
    rig.open(3);
    let knows = rig.open(4);
    rig.hello(knows, knowing(1, &[(1, TaskState::Received)]));
    assert!(pushes(&reload(&mut rig)).is_empty());
    assert!(pushes(&reload(&mut rig)).is_empty());
}

#[test]
fn a_device_that_signs_in_during_the_reload_gets_the_task_when_its_row_comes_unless_it_knows_it() {
    let mut rig = Rig::new();
    for row in rows(&rig) {
        rig.order(row);
    }
    rig.sign_in(3);
    rig.order(Order::Reset);
    let again = rig.open(3);
    assert!(pushes(&rig.hello(again, hello(2))).is_empty());
    let knows = rig.open(4);
    let out = rig.hello(knows, knowing(1, &[(1, TaskState::Running)]));
    assert!(
        matches!(out.last(), Some(Output::Hint { .. })),
        "a state of a task that was active is passed on"
    );
    let mut out = Vec::new();
    for row in rows(&rig) {
        out.extend(rig.order(row));
    }
    assert_eq!(pushes(&out), [(3, 1)]);
}

#[test]
fn a_fan_out_that_a_reset_cut_off_goes_on_with_its_row() {
    let mut rig = Rig::new();
    for device in 0..400 {
        rig.sign_in(device);
    }
    let targets: Vec<_> = (0..400).collect();
    let mut out = rig.start_task(1, &targets);
    assert_eq!(pushes(&out).len(), 256);
    rig.order(Order::Reset);
    assert!(rig.turn().is_empty());
    out.extend(rig.start_task(1, &targets));
    out.extend(rig.pass(1));
    let mut devices: Vec<_> = pushes(&out).iter().map(|(device, _)| *device).collect();
    assert_eq!(devices.len(), 400);
    devices.dedup();
    assert_eq!(devices, targets);
}

#[test]
fn a_cancelled_task_that_comes_again_is_not_pushed_to_anybody() {
    let mut rig = Rig::new();
    rig.sign_in(1);
    for row in rows(&rig) {
        rig.order(row);
    }
    let out = rig.cancel(1);
    assert_eq!(cancels(&out).len(), 1);
    rig.sign_in(2);
    let mut out = reload(&mut rig);
    out.extend(rig.cancel(1));
    assert!(pushes(&out).is_empty() && cancels(&out).is_empty(), "{out:?}");
}

#[test]
fn a_blocked_device_does_not_slip_in_during_a_reload() {
    let mut rig = Rig::new();
    rig.order(Order::Block { device: DeviceId(1) });
    rig.order(Order::Reset);
    let (channel, out) = rig.open_as(1, peer(1));
    assert_eq!(closes(&out), [(channel, CloseReason::Blocked)]);
    rig.order(Order::Block { device: DeviceId(1) });
    rig.input(Input::SignIns { allowed: true });
    let (channel, out) = rig.open_as(1, peer(1));
    assert_eq!(closes(&out), [(channel, CloseReason::Blocked)]);
    rig.order(Order::Reset);
    rig.input(Input::SignIns { allowed: true });
    rig.sign_in(1);
}

#[test]
fn sessions_and_the_head_outlive_a_reset() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    rig.order(Order::Head { signed: vec![4].into(), time: START });
    assert!(rig.order(Order::Reset).is_empty());
    let out = rig.say(channel, AgentMessage::Keepalive);
    assert_eq!(sent(&out, channel), [ServerMessage::KeepaliveAnswer(vec![4])]);
}
