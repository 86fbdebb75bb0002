use bgb_protocol::state::TaskState;

use super::*;

#[test]
fn a_release_reaches_every_online_target_at_once_in_the_order_of_devices() {
    let mut rig = Rig::new();
    for device in [9, 3, 5, 7] {
        rig.sign_in(device);
    }
    assert!(rig.order(task_order(1, &[3, 4, 5, 9], START, HOUR_MS)).is_empty(), "content pushes nothing");
    assert_eq!(pushes(&rig.release(task_id(1))), [(3, 1), (5, 1), (9, 1)]);
    assert!(rig.release(task_id(1)).is_empty(), "once is enough");
}

#[test]
fn few_targets_among_many_sessions_and_few_sessions_among_many_targets_are_all_found() {
    let mut rig = Rig::new();
    for device in 0..200 {
        rig.sign_in(device);
    }
    assert_eq!(pushes(&rig.start_task(1, &[17, 150, 5_000])), [(17, 1), (150, 1)]);
    let many: Vec<_> = (100..60_000).collect();
    assert_eq!(pushes(&rig.start_task(2, &many)).len(), 100);
}

#[test]
fn a_push_is_the_tasks_frame_with_the_devices_proof() {
    let mut rig = Rig::new();
    rig.sign_in(3);
    let out = rig.start_task(1, &[3, 4]);
    let [Output::Push { task, device, .. }] = &out[..] else { panic!("{out:?}") };
    let mut frame = Vec::new();
    assert!(task.encode_push(*device, &mut frame));
    assert!(frame.len() <= task.push_bytes_max());
}

#[test]
fn a_device_that_signs_in_later_gets_what_is_valid_and_released_in_the_order_of_releases() {
    let mut rig = Rig::new();
    rig.order(task_order(1, &[5], START, HOUR_MS));
    rig.start_task(2, &[5, 6]);
    rig.start_task(3, &[6]);
    rig.order(task_order(4, &[5], START, HOUR_MS));
    rig.release(task_id(1));
    let channel = rig.open(5);
    assert_eq!(pushes(&rig.hello(channel, hello(1))), [(5, 2), (5, 1)]);
}

#[test]
fn a_task_that_the_hello_knows_is_not_pushed_and_its_state_is_passed_on() {
    let mut rig = Rig::new();
    for number in 1..=4 {
        rig.start_task(number, &[5]);
    }
    let channel = rig.open(5);
    let known = [
        (1, TaskState::Received),
        (2, TaskState::Running),
        (3, TaskState::Succeeded),
        (9, TaskState::Running),
    ];
    let out = rig.hello(channel, knowing(1, &known));
    assert_eq!(pushes(&out), [(5, 4)]);
    let hint = |output: &Output| match output {
        Output::Hint { row } => Some((row.task.bytes()[0], row.hint().unwrap())),
        _ => None,
    };
    let hints: Vec<_> = out.iter().filter_map(hint).collect();
    assert_eq!(hints, [(1, TaskState::Received), (2, TaskState::Running)]);
}

#[test]
fn a_hello_says_anew_what_the_device_has() {
    let mut rig = Rig::new();
    rig.start_task(1, &[5]);
    let first = rig.open(5);
    assert_eq!(pushes(&rig.hello(first, hello(1))), [(5, 1)]);
    // The push was lost with the connection: the device does not know the task.
    rig.input(Input::Closed { channel: first, reason: CloseReason::Reset });
    let second = rig.open(5);
    assert_eq!(pushes(&rig.hello(second, hello(2))), [(5, 1)]);
    rig.input(Input::Closed { channel: second, reason: CloseReason::Reset });
    let third = rig.open(5);
    assert!(pushes(&rig.hello(third, knowing(3, &[(1, TaskState::Received)]))).is_empty());
}

#[test]
fn a_task_that_was_answered_is_not_pushed_again_even_if_the_hello_leaves_it_out() {
    let mut rig = Rig::new();
    rig.start_task(1, &[5]);
    let channel = rig.open(5);
    rig.hello(channel, knowing(1, &[(1, TaskState::Succeeded)]));
    rig.input(Input::Closed { channel, reason: CloseReason::Reset });
    let channel = rig.open(5);
    assert!(pushes(&rig.hello(channel, hello(2))).is_empty());
}

#[test]
fn a_release_of_some_devices_reaches_these_and_a_later_one_the_others() {
    let mut rig = Rig::new();
    for device in 1..=4 {
        rig.sign_in(device);
    }
    rig.order(task_order(1, &[1, 2, 3], START, HOUR_MS));
    let ring = Arc::new(RoaringBitmap::from_iter([2u32, 4]));
    let release = |devices| Order::Release { task: task_id(1), devices, from: UnixMillis(0) };
    assert_eq!(pushes(&rig.order(release(Some(ring)))), [(2, 1)], "4 is released and no target");
    rig.open(2);
    let ring = Arc::new(RoaringBitmap::from_iter([2u32, 3]));
    assert_eq!(pushes(&rig.order(release(Some(ring)))), [(3, 1)]);
    assert_eq!(pushes(&rig.order(release(None))), [(1, 1)]);
}

#[test]
fn a_release_waits_for_its_own_time_and_for_the_tasks() {
    let mut rig = Rig::new();
    rig.sign_in(1);
    rig.order(task_order(1, &[1], START.plus(2 * MINUTE_MS), HOUR_MS));
    rig.order(task_order(2, &[1], START, HOUR_MS));
    assert!(rig.release(task_id(1)).is_empty());
    let from = START.plus(3 * MINUTE_MS);
    assert!(rig.order(Order::Release { task: task_id(2), devices: None, from }).is_empty());
    assert!(rig.pass(2 * MINUTE - 1).is_empty());
    assert_eq!(pushes(&rig.pass(1)), [(1, 1)]);
    assert!(rig.pass(MINUTE - 1).is_empty());
    assert_eq!(pushes(&rig.pass(1)), [(1, 2)]);
}

#[test]
fn a_held_release_does_not_wait_for_a_wall_clock_that_jumped_ahead() {
    let mut rig = Rig::new();
    rig.sign_in(1);
    rig.order(task_order(1, &[1], START.plus(30 * MINUTE_MS), HOUR_MS));
    rig.release(task_id(1));
    rig.wall_ahead = 29 * MINUTE_MS;
    assert_eq!(pushes(&rig.pass(MINUTE)), [(1, 1)], "the wall clock is looked at once a minute");
}

#[test]
fn a_wall_clock_that_is_behind_pushes_nothing_that_the_heads_time_has_ended() {
    let mut rig = Rig::new();
    rig.order(task_order(1, &[1], START, MINUTE_MS));
    rig.release(task_id(1));
    rig.order(Order::Head { signed: vec![1].into(), time: START.plus(2 * MINUTE_MS) });
    let channel = rig.open(1);
    assert!(pushes(&rig.hello(channel, hello(1))).is_empty());
}

#[test]
fn an_expired_task_reaches_nobody_and_makes_room() {
    let mut rig = Rig::with(|options| options.active_tasks_max = 1);
    rig.start_task(1, &[1, 2]);
    rig.pass(60 * MINUTE);
    let channel = rig.open(1);
    assert!(pushes(&rig.hello(channel, hello(1))).is_empty());
    assert_eq!(pushes(&rig.start_task(2, &[1])), [(1, 2)]);
    let before = rig.hub.counters().orders_expired;
    rig.order(task_order(3, &[1], START, MINUTE_MS));
    rig.release(task_id(3));
    assert_eq!(rig.hub.counters().orders_expired, before + 2);
}

#[test]
fn one_task_too_many_is_refused_aloud() {
    let mut rig = Rig::with(|options| options.active_tasks_max = 2);
    rig.start_task(1, &[1]);
    rig.start_task(2, &[1]);
    let out = rig.order(task_order(3, &[1], START, HOUR_MS));
    let [Output::OrderRefused { refusal }] = &out[..] else { panic!("{out:?}") };
    assert_eq!(*refusal, OrderRefusal::TooManyTasks { task: task_id(3), limit: 2 });
    assert_eq!(rig.hub.counters().orders_refused, 1);
}

#[test]
fn a_cancelled_task_makes_room_and_is_still_taken_from_those_who_have_it() {
    let mut rig = Rig::with(|options| options.active_tasks_max = 2);
    rig.start_task(1, &[1]);
    rig.start_task(2, &[1]);
    rig.cancel(1);
    assert!(rig.order(task_order(3, &[1], START, HOUR_MS)).is_empty(), "it is taken");
    let out = rig.order(task_order(4, &[1], START, HOUR_MS));
    assert!(matches!(out[..], [Output::OrderRefused { .. }]), "{out:?}");
    let late = rig.open(1);
    assert_eq!(cancels(&rig.hello(late, knowing(1, &[(1, TaskState::Received)]))), [late]);
}

#[test]
fn a_cancel_reaches_those_who_have_the_task_unanswered() {
    let mut rig = Rig::new();
    let has = rig.sign_in(1);
    rig.sign_in(2);
    rig.start_task(1, &[1, 3, 4]);
    let done = rig.open(3);
    rig.hello(done, knowing(1, &[(1, TaskState::Failed)]));
    let knows = rig.open(4);
    rig.hello(knows, knowing(1, &[(1, TaskState::Running)]));
    assert_eq!(cancels(&rig.cancel(1)), [has, knows]);
    assert!(cancels(&rig.cancel(1)).is_empty(), "told once");
}

#[test]
fn a_cancelled_task_is_pushed_to_nobody_and_told_at_sign_in_to_those_who_know_it() {
    let mut rig = Rig::new();
    rig.start_task(1, &[1, 2, 3]);
    rig.cancel(1);
    for (device, state, told) in [(2, TaskState::Running, true), (3, TaskState::Succeeded, false)] {
        let channel = rig.open(device);
        let out = rig.hello(channel, knowing(1, &[(1, state)]));
        assert_eq!(!cancels(&out).is_empty(), told, "{state}");
    }
    let channel = rig.open(1);
    let out = rig.hello(channel, hello(1));
    assert!(pushes(&out).is_empty() && cancels(&out).is_empty());
}

#[test]
fn a_cancel_that_comes_before_its_task_holds() {
    let mut rig = Rig::new();
    rig.sign_in(1);
    assert!(rig.cancel(1).is_empty());
    assert!(rig.start_task(1, &[1]).is_empty());
    let knows = rig.open(2);
    let out = rig.hello(knows, knowing(1, &[(9, TaskState::Running)]));
    assert!(cancels(&out).is_empty());
}

#[test]
fn a_choked_session_is_passed_over_and_catches_up_in_order_when_it_flows() {
    let mut rig = Rig::new();
    let (choked, flowing) = (rig.sign_in(1), rig.sign_in(2));
    rig.start_task(1, &[1, 2]);
    rig.input(Input::Choked { channel: choked });
    assert_eq!(pushes(&rig.start_task(2, &[1, 2])), [(2, 2)]);
    assert_eq!(pushes(&rig.start_task(3, &[1, 2])), [(2, 3)]);
    assert_eq!(cancels(&rig.cancel(1)), [flowing]);
    rig.cancel(2);
    let out = rig.input(Input::Flowing { channel: choked });
    assert_eq!(pushes(&out), [(1, 3)], "2 was cancelled meanwhile and never given");
    assert_eq!(cancels(&out), [choked], "1 it has");
    assert!(rig.input(Input::Flowing { channel: choked }).is_empty());
}

#[test]
fn a_session_that_chokes_in_the_middle_of_a_fan_out_still_gets_its_task() {
    let mut rig = Rig::new();
    let channels: Vec<_> = (0..600).map(|device| rig.sign_in(device)).collect();
    let targets: Vec<_> = (0..600).collect();
    let mut out = rig.start_task(1, &targets);
    assert_eq!(pushes(&out).len(), 256);
    for at in [10, 500] {
        rig.input(Input::Choked { channel: channels[at] });
    }
    out.extend(rig.pass(1));
    assert_eq!(pushes(&out).len(), 599);
    assert!(pushes(&rig.input(Input::Flowing { channel: channels[10] })).is_empty());
    assert_eq!(pushes(&rig.input(Input::Flowing { channel: channels[500] })), [(500, 1)]);
}

#[test]
fn a_device_that_signs_in_during_a_fan_out_gets_its_task_once() {
    let mut rig = Rig::new();
    for device in 0..400 {
        rig.sign_in(device);
    }
    let targets: Vec<_> = (0..402).collect();
    rig.start_task(1, &targets);
    let channel = rig.open(401);
    assert_eq!(pushes(&rig.hello(channel, hello(1))), [(401, 1)]);
    assert_eq!(pushes(&rig.pass(1)).len(), 400 - 256);
}

#[test]
fn many_large_tasks_reach_a_session_in_portions_and_stop_when_it_chokes() {
    let mut rig = Rig::new();
    for number in 1..=40 {
        rig.order(task_order_with(number, &[1], START, HOUR_MS, 8_000));
        rig.release(task_id(number));
    }
    let channel = rig.open(1);
    let mut out = rig.hello(channel, hello(1));
    assert_eq!(pushes(&out).len(), 8, "64 KiB");
    assert_eq!(rig.hub.next_deadline(), Some(Tick(rig.tick)), "the rest is due at once");
    out.extend(rig.turn());
    assert_eq!(pushes(&out).len(), 16);
    rig.input(Input::Choked { channel });
    assert!(rig.turn().is_empty());
    assert_ne!(rig.hub.next_deadline(), Some(Tick(rig.tick)));
    out.extend(rig.input(Input::Flowing { channel }));
    out.extend(rig.pass(1));
    let numbers: Vec<_> = pushes(&out).iter().map(|(_, number)| *number).collect();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
}

#[test]
fn a_fan_out_stops_after_its_portion_of_bytes_so_that_a_choked_session_can_be_told_apart() {
    let mut rig = Rig::new();
    for device in 0..250 {
        rig.sign_in(device);
    }
    let targets: Vec<_> = (0..250).collect();
    rig.order(task_order_with(1, &targets, START, HOUR_MS, 8_000));
    let first = pushes(&rig.release(task_id(1))).len();
    assert!((100..150).contains(&first), "{first} of some 9 KiB each");
    assert_eq!(first + pushes(&rig.pass(1)).len(), 250);
}

#[test]
fn a_cancel_that_is_read_before_its_task_is_taken_from_those_who_have_it() {
    let mut rig = Rig::new();
    let has = rig.sign_in(1);
    rig.start_task(1, &[1, 2]);
    rig.order(Order::Reset);
    assert!(cancels(&rig.cancel(1)).is_empty(), "the task has not come again");
    assert_eq!(cancels(&rig.start_task(1, &[1, 2])), [has]);
    rig.input(Input::SignIns { allowed: true });
    assert!(cancels(&rig.cancel(1)).is_empty(), "told once");
}

#[test]
fn a_cancel_that_is_read_before_its_task_reaches_those_who_knew_the_task_before_the_hub_did() {
    let mut rig = Rig::new();
    let (knows, other) = (rig.open(1), rig.open(2));
    rig.hello(knows, knowing(1, &[(1, TaskState::Received)]));
    rig.hello(other, hello(1));
    assert!(cancels(&rig.cancel(1)).is_empty(), "nobody knows whose it is yet");
    let told = cancels(&rig.start_task(1, &[1, 3]));
    assert_eq!(told, [knows], "not those whom it does not concern");
    assert!(pushes(&rig.turn()).is_empty());
}

#[test]
fn a_held_cancel_is_told_once_to_those_who_name_the_task_before_the_hub_has_it() {
    let mut rig = Rig::new();
    rig.cancel(1);
    let knows = rig.open(1);
    assert_eq!(cancels(&rig.hello(knows, knowing(1, &[(1, TaskState::Received)]))), [knows]);
    let told = rig.start_task(1, &[1]);
    assert!(cancels(&told).is_empty() && pushes(&told).is_empty(), "{told:?}");
}

#[test]
fn a_cancel_that_comes_while_the_wall_clock_is_ahead_holds_when_it_is_right_again() {
    let mut rig = Rig::new();
    rig.order(Order::Head { signed: vec![1].into(), time: START });
    rig.start_task(1, &[1]);
    rig.wall_ahead = 2 * HOUR_MS;
    rig.cancel(1);
    rig.wall_ahead = 0;
    let late = rig.open(1);
    assert!(pushes(&rig.hello(late, hello(1))).is_empty());
}

#[test]
fn a_task_that_comes_anew_while_the_wall_clock_is_ahead_is_not_pushed_again_when_it_is_right() {
    let mut rig = Rig::new();
    rig.order(Order::Head { signed: vec![1].into(), time: START });
    rig.sign_in(1);
    assert_eq!(pushes(&rig.start_task(1, &[1])), [(1, 1)]);
    let again = |rig: &mut Rig| {
        rig.order(Order::Reset);
        let mut out = rig.order(task_order(1, &[1], START, HOUR_MS));
        out.extend(rig.release(task_id(1)));
        out.extend(rig.input(Input::SignIns { allowed: true }));
        out
    };
    rig.wall_ahead = 2 * HOUR_MS;
    assert!(pushes(&again(&mut rig)).is_empty());
    rig.wall_ahead = 0;
    assert!(pushes(&again(&mut rig)).is_empty());
}

#[test]
fn what_a_wall_clock_that_is_ahead_ends_is_not_forgotten_before_the_heads_time_ends_it() {
    let mut rig = Rig::new();
    rig.order(Order::Head { signed: vec![1].into(), time: START });
    let has = rig.sign_in(1);
    rig.start_task(1, &[1, 2]);
    rig.wall_ahead = 2 * HOUR_MS;
    rig.pass(2 * MINUTE);
    let late = rig.open(2);
    assert!(pushes(&rig.hello(late, hello(1))).is_empty(), "nothing is pushed that may be over");
    rig.wall_ahead = 0;
    rig.turn();
    assert_eq!(cancels(&rig.cancel(1)), [has]);
    // Then it is: nothing is waited for any more.
    rig.pass(HOUR_MS / TICK_MS);
    assert_eq!(rig.hub.next_deadline(), None);
}

#[test]
fn a_task_whose_cancel_is_read_behind_another_does_not_go_out_in_between() {
    let mut rig = Rig::new();
    rig.sign_in(5);
    rig.start_task(1, &[5]);
    rig.order(task_order(2, &[5], rig.time(), HOUR_MS));
    rig.order(Order::Release { task: task_id(2), devices: None, from: rig.time().plus(TICK_MS) });
    // The release has come, and nobody has looked yet.
    rig.tick += 1;
    let mut out = rig.input(Input::Order(cancel_order(1, rig.time().plus(HOUR_MS))));
    out.extend(rig.input(Input::Order(cancel_order(2, rig.time().plus(HOUR_MS)))));
    out.extend(rig.pass(0));
    assert!(pushes(&out).is_empty(), "{out:?}");
}
