use super::*;

#[test]
fn a_channel_without_a_hello_is_closed_after_ten_seconds() {
    let mut rig = Rig::new();
    let channel = rig.open(1);
    assert!(rig.pass(99).is_empty());
    let out = rig.pass(1);
    assert_eq!(closes(&out), [(channel, CloseReason::HelloTimedOut)]);
}

#[test]
fn a_silent_agent_is_closed_after_one_and_a_half_keepalives() {
    let mut rig = Rig::new();
    let channel = rig.open(1);
    let out = rig.hello(channel, Hello { keepalive_secs: Some(20), ..hello(1) });
    assert!(is_welcomed(&out));
    assert!(rig.pass(299).is_empty());
    let out = rig.pass(1);
    assert_eq!(closes(&out), [(channel, CloseReason::KeepaliveMissed)]);
    assert_eq!(presence(&out), [(1, false)]);
    assert!(refusals(&out).is_empty(), "nobody listens");
}

#[test]
fn the_keepalive_counts_from_the_hello_and_not_from_the_opening() {
    let mut rig = Rig::new();
    let channel = rig.open(1);
    rig.pass(90);
    rig.hello(channel, Hello { keepalive_secs: Some(20), ..hello(1) });
    assert!(rig.pass(299).is_empty());
    assert_eq!(closes(&rig.pass(1)), [(channel, CloseReason::KeepaliveMissed)]);
}

#[test]
fn any_message_counts_as_a_sign_of_life_and_moves_the_deadline() {
    let mut rig = Rig::new();
    let channel = rig.open(1);
    rig.hello(channel, Hello { keepalive_secs: Some(20), ..hello(1) });
    for _ in 0..10 {
        assert!(closes(&rig.pass(250)).is_empty());
        rig.say(channel, AgentMessage::Received(task_id(1)));
    }
    assert!(closes(&rig.pass(299)).is_empty());
    assert_eq!(closes(&rig.pass(1)), [(channel, CloseReason::KeepaliveMissed)]);
}

#[test]
fn a_session_ends_when_its_certificate_does() {
    let mut rig = Rig::new();
    let certificate_ends = START.plus(5 * MINUTE_MS);
    let (channel, _) = rig.open_as(1, Peer { certificate_ends, ..peer(1) });
    rig.hello(channel, hello(1));
    assert!(rig.pass(5 * MINUTE - 1).is_empty());
    let out = rig.pass(1);
    assert_eq!(closes(&out), [(channel, CloseReason::CertificateEnded)]);
    assert_eq!(refusals(&out), [RefusedReason::Certificate]);
}

#[test]
fn a_certificates_end_is_judged_by_the_clock_as_it_is_then() {
    let mut rig = Rig::new();
    let certificate_ends = START.plus(HOUR_MS);
    rig.wall_ahead = 10 * MINUTE_MS;
    let (channel, _) = rig.open_as(1, Peer { certificate_ends, ..peer(1) });
    rig.hello(channel, hello(1));
    // The wall clock is put right, back by ten minutes: the certificate has that much longer.
    rig.wall_ahead = 0;
    let mut out = Vec::new();
    for _ in 0..60 {
        out.extend(rig.pass(MINUTE - 1));
        assert!(closes(&out).is_empty());
        rig.say(channel, AgentMessage::Keepalive);
        out.extend(rig.pass(1));
    }
    assert_eq!(closes(&out), [(channel, CloseReason::CertificateEnded)]);
}

#[test]
fn a_peer_that_does_not_read_is_closed_after_25_seconds() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    rig.input(Input::Choked { channel });
    rig.pass(200);
    rig.input(Input::Flowing { channel });
    rig.input(Input::Choked { channel });
    rig.pass(200);
    rig.input(Input::Choked { channel });
    assert!(closes(&rig.pass(49)).is_empty(), "choking again while choked does not start anew");
    assert_eq!(closes(&rig.pass(1)), [(channel, CloseReason::TooSlow)]);
}

#[test]
fn goodbye_takes_the_device_offline_with_that_reason() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    let out = rig.say(channel, AgentMessage::Goodbye);
    let Some(Output::Offline { row }) = out.iter().find(|output| matches!(output, Output::Offline { .. }))
    else {
        panic!("{out:?}")
    };
    let at = rig.time();
    assert_eq!(row.presence, Presence::Offline { at, reason: "goodbye".to_owned() });
    assert_eq!(closes(&out), [(channel, CloseReason::Goodbye)]);
}

#[test]
fn a_block_ends_the_live_session_at_once() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    rig.sign_in(2);
    let out = rig.order(Order::Block { device: DeviceId(1) });
    assert_eq!(
        (refusals(&out), closes(&out)),
        (vec![RefusedReason::Blocked], vec![(channel, CloseReason::Blocked)])
    );
    assert_eq!(rig.hub.online(), 1);
}

#[test]
fn a_revoked_certificate_ends_every_session_that_has_it() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    let (same, _) = rig.open_as(2, Peer { fingerprint: [1; 32], ..peer(2) });
    rig.sign_in(3);
    let out = rig.order(Order::Revoke { fingerprint: [1; 32] });
    assert_eq!(closes(&out), [(channel, CloseReason::Revoked), (same, CloseReason::Revoked)]);
}

#[test]
fn supersede_ends_the_session_that_it_names_or_an_older_one_and_no_other() {
    let boot = BootId([1; 16]);
    for (boot, session, ends) in
        [(boot, 6, false), (boot, 7, true), (boot, 8, true), (BootId([2; 16]), 9, false)]
    {
        let mut rig = Rig::new();
        let channel = rig.open(1);
        rig.hello(channel, hello(7));
        let session = SessionNumber(session);
        let out = rig.order(Order::Supersede { device: DeviceId(1), boot, session });
        assert_eq!(!closes(&out).is_empty(), ends, "{session}");
    }
}

#[test]
fn a_drain_tells_every_session_where_to_go_and_closes_it_in_portions() {
    let mut rig = Rig::new();
    for device in 0..300 {
        rig.sign_in(device);
    }
    let nameless = Hello { abilities: Abilities(0), ..hello(1) };
    let plain = rig.open(300);
    rig.hello(plain, nameless);
    let waiting = rig.open(301);
    let mut out = rig.input(Input::Drain);
    assert_eq!(closes(&out).len(), 256);
    assert_eq!(rig.hub.next_deadline(), Some(Tick(rig.tick)), "the rest is due at once");
    out.extend(rig.turn());
    assert_eq!((closes(&out).len(), rig.hub.sessions()), (302, 0));
    let drains = out.iter().filter(|output| {
        matches!(output, Output::Send { message: ServerMessage::Drain(drain), .. }
        if drain.window_secs == 60 && drain.servers == ["two.example.org:10123"])
    });
    assert_eq!(drains.count(), 300);
    for channel in [plain, waiting] {
        assert_eq!(sent(&out, channel), [ServerMessage::Refused(RefusedReason::Unavailable)]);
    }
    let (late, out) = rig.open_as(500, peer(5));
    assert_eq!(closes(&out), [(late, CloseReason::Draining)]);
    assert_eq!(rig.hub.next_deadline(), None);
}

#[test]
fn many_deadlines_at_once_are_looked_at_in_portions() {
    let mut rig = Rig::with(|options| options.sessions_max = 10_000);
    for device in 0..5_000 {
        rig.open(device);
    }
    rig.tick += 100;
    assert_eq!(closes(&rig.turn()).len(), 4_096);
    assert_eq!(rig.hub.next_deadline(), Some(Tick(rig.tick)));
    assert_eq!(closes(&rig.turn()).len(), 904);
    assert_eq!(rig.hub.next_deadline(), None);
}
