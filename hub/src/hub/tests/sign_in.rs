use bgb_protocol::message::Welcome;

use super::*;

fn welcome(out: &[Output], channel: ChannelKey) -> Welcome {
    let mut messages = sent(out, channel).into_iter();
    let Some(ServerMessage::Welcome(welcome)) = messages.next() else { panic!("{out:?}") };
    *welcome
}

#[test]
fn a_hello_claims_and_a_granted_claim_is_online_and_welcomed() {
    let mut rig = Rig::new();
    rig.order(Order::Head { signed: vec![7, 7].into(), time: START });
    let channel = rig.open(5);
    rig.hub.handle(rig.now(), Input::Said { channel, message: AgentMessage::Hello(Box::new(hello(9))) });
    let Some(Output::Claim { device, session, .. }) = rig.hub.poll_output() else {
        panic!("a claim comes first")
    };
    assert_eq!((device, session), (DeviceId(5), SessionNumber(9)));
    assert!(rig.hub.poll_output().is_none());
    let out = rig.input(Input::Claimed { channel, granted: Some(7) });
    assert_eq!(presence(&out), [(5, true)]);
    let welcome = welcome(&out, channel);
    assert_eq!((welcome.head, welcome.server), (vec![7, 7], ServerId(1)));
    assert_eq!((rig.hub.online(), rig.hub.sessions()), (1, 1));
}

#[test]
fn the_online_row_carries_what_the_hello_and_the_certificate_said() {
    let mut rig = Rig::new();
    rig.pass(30);
    let channel = rig.open(5);
    let out = rig.hello(channel, hello(9));
    let Some(Output::Online { row, .. }) = out.first() else { panic!("{out:?}") };
    let Presence::Online(details) = &row.presence else { panic!("{row:?}") };
    assert_eq!((row.device, row.session, row.signed_in), (DeviceId(5), SessionNumber(9), rig.time()));
    assert_eq!((details.address, &*details.platform), (peer(5).address, "linux 12 x86_64"));
}

#[test]
fn a_sign_in_is_dated_by_the_newest_head_where_the_wall_clock_is_behind() {
    let mut rig = Rig::new();
    rig.order(Order::Head { signed: vec![7].into(), time: START.plus(HOUR_MS) });
    rig.pass(30);
    let channel = rig.open(5);
    let out = rig.hello(channel, hello(9));
    let Some(Output::Online { row, .. }) = out.first() else { panic!("{out:?}") };
    assert_eq!(row.signed_in, START.plus(HOUR_MS + 30 * TICK_MS));
}

#[test]
fn a_claim_that_is_not_granted_is_refused_as_superseded_and_releases_nothing() {
    let mut rig = Rig::new();
    let channel = rig.open(5);
    rig.hub.handle(rig.now(), Input::Said { channel, message: AgentMessage::Hello(Box::new(hello(9))) });
    assert!(matches!(rig.hub.poll_output(), Some(Output::Claim { .. })));
    let out = rig.input(Input::Claimed { channel, granted: None });
    assert_eq!(refusals(&out), [RefusedReason::Superseded]);
    assert_eq!(closes(&out), [(channel, CloseReason::OlderSession)]);
    assert_eq!(out.len(), 2, "{out:?}");
}

#[test]
fn a_displaced_session_is_told_released_offline_and_closed_in_this_order() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(5);
    let out = rig.input(Input::Displaced { channel });
    assert!(
        matches!(
            &out[..],
            [
                Output::Send { message: ServerMessage::Refused(RefusedReason::Superseded), .. },
                Output::Release { .. },
                Output::Offline { .. },
                Output::Close { reason: CloseReason::Superseded, .. },
            ]
        ),
        "{out:?}"
    );
    assert_eq!((rig.hub.online(), rig.hub.sessions()), (0, 0));
}

#[test]
fn a_newer_session_in_the_same_hub_takes_the_place_of_the_older_one() {
    let mut rig = Rig::new();
    let older = rig.sign_in(5);
    let (newer, _) = rig.open_as(77, peer(5));
    let out = rig.hello(newer, hello(2));
    assert_eq!(closes(&out), [(older, CloseReason::Superseded)]);
    assert_eq!(presence(&out), [(5, false), (5, true)]);
    assert_eq!(rig.hub.online(), 1);
    let late = rig.input(Input::Displaced { channel: older });
    assert!(late.is_empty(), "{late:?}");
}

#[test]
fn the_welcome_tells_the_shorter_of_both_keepalives_less_its_jitter() {
    let mut rig = Rig::new();
    let channel = rig.open(5);
    let asked = Hello { keepalive_secs: Some(100), ..hello(1) };
    let out = rig.hello(channel, asked);
    assert!((90..=100).contains(&welcome(&out, channel).keepalive_secs));
    let channel = rig.open(6);
    let asked = Hello { keepalive_secs: Some(100_000), ..hello(1) };
    let out = rig.hello(channel, asked);
    assert!((810..=900).contains(&welcome(&out, channel).keepalive_secs));
}

#[test]
fn a_blocked_device_is_refused_when_it_opens_and_when_it_says_hello() {
    let mut rig = Rig::new();
    let opened_before = rig.open(5);
    rig.order(Order::Block { device: DeviceId(5) });
    let out = rig.hello(opened_before, hello(1));
    assert_eq!(closes(&out), [(opened_before, CloseReason::Blocked)]);
    assert!(!out.iter().any(|output| matches!(output, Output::Release { .. })), "nothing was claimed");
    let (channel, out) = rig.open_as(6, peer(5));
    assert_eq!(
        (refusals(&out), closes(&out)),
        (vec![RefusedReason::Blocked], vec![(channel, CloseReason::Blocked)])
    );
    rig.order(Order::Unblock { device: DeviceId(5) });
    rig.sign_in(5);
}

#[test]
fn a_revoked_certificate_is_refused_and_its_device_may_come_with_another() {
    let mut rig = Rig::new();
    rig.order(Order::Revoke { fingerprint: [5; 32] });
    let (channel, out) = rig.open_as(5, peer(5));
    assert_eq!(refusals(&out), [RefusedReason::Certificate]);
    assert_eq!(closes(&out), [(channel, CloseReason::Revoked)]);
    let (channel, _) = rig.open_as(5, Peer { fingerprint: [200; 32], ..peer(5) });
    assert!(is_welcomed(&rig.hello(channel, hello(1))));
}

#[test]
fn a_certificate_that_has_ended_by_the_servers_time_opens_nothing() {
    let mut rig = Rig::new();
    let ends = START.plus(MINUTE_MS);
    // The wall clock is an hour behind; the head knows better.
    rig.order(Order::Head { signed: vec![1].into(), time: START.plus(HOUR_MS) });
    let (channel, out) = rig.open_as(5, Peer { certificate_ends: ends, ..peer(5) });
    assert_eq!(closes(&out), [(channel, CloseReason::CertificateEnded)]);
}

#[test]
fn a_full_hub_says_so_and_takes_again_when_one_has_left() {
    let mut rig = Rig::with(|options| options.sessions_max = 2);
    let first = rig.sign_in(1);
    rig.open(2);
    let (channel, out) = rig.open_as(3, peer(3));
    assert_eq!(refusals(&out), [RefusedReason::Full]);
    assert_eq!(closes(&out), [(channel, CloseReason::ServerFull)]);
    rig.say(first, AgentMessage::Goodbye);
    rig.sign_in(3);
}

#[test]
fn while_sign_ins_are_held_new_sessions_are_refused_and_old_ones_stay() {
    let mut rig = Rig::new();
    rig.sign_in(1);
    let waiting = rig.open(2);
    rig.input(Input::SignIns { allowed: false });
    let out = rig.hello(waiting, hello(1));
    assert_eq!(
        (refusals(&out), closes(&out)),
        (vec![RefusedReason::Unavailable], vec![(waiting, CloseReason::Unavailable)])
    );
    assert_eq!(rig.hub.online(), 1);
    rig.input(Input::SignIns { allowed: true });
    rig.sign_in(2);
}

#[test]
fn anything_before_the_hello_and_a_second_hello_close_with_a_reason() {
    for message in [AgentMessage::Keepalive, AgentMessage::Goodbye, AgentMessage::PolicyRequest(1)] {
        let mut rig = Rig::new();
        let channel = rig.open(1);
        let out = rig.say(channel, message);
        assert_eq!(refusals(&out), [RefusedReason::Protocol]);
        assert_eq!(closes(&out), [(channel, CloseReason::NotAllowed)]);
    }
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    let out = rig.hello(channel, hello(2));
    assert_eq!(closes(&out), [(channel, CloseReason::NotAllowed)]);
    assert_eq!(presence(&out), [(1, false)]);
}

#[test]
fn what_comes_from_a_channel_that_is_not_known_is_counted_and_ignored() {
    let mut rig = Rig::new();
    let channel = rig.sign_in(1);
    rig.input(Input::Closed { channel, reason: CloseReason::Reset });
    let stranger = ChannelKey { index: 900, generation: 1 };
    for channel in [channel, stranger] {
        for input in [
            Input::Said { channel, message: AgentMessage::Keepalive },
            Input::Closed { channel, reason: CloseReason::Reset },
            Input::Claimed { channel, granted: Some(7) },
            Input::Displaced { channel },
            Input::Choked { channel },
            Input::Flowing { channel },
        ] {
            assert!(rig.input(input).is_empty());
        }
    }
    assert_eq!(rig.hub.counters().stale_inputs, 12);
    assert_eq!(rig.hub.counters().closed.of(CloseReason::Reset), 1);
}

#[test]
fn a_place_that_was_not_reported_as_free_is_taken_over_and_its_device_goes_offline() {
    let mut rig = Rig::new();
    rig.sign_in(1);
    let (_, out) = rig.open_as(1, peer(2));
    assert_eq!(presence(&out), [(1, false)]);
    assert_eq!((rig.hub.sessions(), rig.hub.online()), (1, 0));
}
