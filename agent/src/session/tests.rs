use bgb_protocol::ids::ServerId;
use proptest::prelude::*;

use super::*;

fn session() -> Session {
    Session::new(vec!["a:1".to_owned(), "b:1".to_owned()], Random::new(7))
}

fn welcome(keepalive_secs: u32) -> Welcome {
    Welcome {
        server: ServerId(1),
        head: Vec::new(),
        keepalive_secs,
        reconnect_window_secs: 5,
        reconnect_slot_secs: None,
        other_servers: Vec::new(),
        abilities: Abilities::ALL,
    }
}

/// A session that was welcomed at `now_ms`.
fn active(now_ms: u64) -> Session {
    let mut session = session();
    assert_eq!(session.poll(now_ms), Some(Act::Connect("a:1".to_owned())));
    assert!(session.handle_connected(now_ms));
    assert!(session.handle_welcome(now_ms, &welcome(900), None));
    session
}

fn rest_ms(session: &Session, now_ms: u64) -> u64 {
    assert_eq!(session.phase(), SessionPhase::Resting);
    session.next_deadline().unwrap() - now_ms
}

#[test]
fn failures_go_round_the_servers_with_a_delay_that_grows_with_the_time_to_its_cap() {
    let (mut session, mut now_ms, mut longest_ms) = (session(), 0, 0);
    for round in 0..60 {
        let server = if round % 2 == 0 { "a:1" } else { "b:1" };
        assert_eq!(session.poll(now_ms), Some(Act::Connect(server.to_owned())));
        session.handle_lost(now_ms);
        let rest_ms = rest_ms(&session, now_ms);
        assert!(rest_ms <= now_ms.clamp(BACK_OFF_BASE_MS, BACK_OFF_CAP_MS), "{rest_ms} after {now_ms}");
        longest_ms = longest_ms.max(rest_ms);
        now_ms = session.next_deadline().unwrap();
    }
    assert!(longest_ms > BACK_OFF_CAP_MS / 2, "{longest_ms}");
}

#[test]
fn whoever_asked_in_vain_at_once_asks_again_as_soon_as_the_others() {
    let mut session = active(0);
    session.handle_lost(SESSION_IS_GOOD_MS);
    for tenth in 1..10 {
        let now_ms = SESSION_IS_GOOD_MS + tenth * 100;
        session.poll(now_ms.max(session.next_deadline().unwrap()));
        session.handle_lost(now_ms);
        assert!(rest_ms(&session, now_ms) <= BACK_OFF_BASE_MS);
    }
}

#[test]
fn a_session_that_was_not_good_does_not_count_as_time_without() {
    let mut session = session();
    session.poll(0);
    session.handle_lost(0);
    let now_ms = 2_000;
    session.poll(now_ms);
    assert!(session.handle_connected(now_ms));
    assert!(session.handle_welcome(now_ms, &welcome(900), None));
    let end_ms = now_ms + SESSION_IS_GOOD_MS - 1;
    session.handle_lost(end_ms);
    assert!(rest_ms(&session, end_ms) <= now_ms);
}

#[test]
fn a_hello_without_welcome_and_a_connection_that_hangs_are_given_up() {
    let mut session = session();
    session.poll(0);
    assert_eq!(session.next_deadline(), Some(CONNECT_MS));
    assert!(matches!(session.poll(CONNECT_MS), Some(Act::Disconnect(_))));
    let now_ms = session.next_deadline().unwrap();
    assert_eq!(session.poll(now_ms), Some(Act::Connect("b:1".to_owned())));
    assert!(session.handle_connected(now_ms));
    assert_eq!(session.poll(now_ms + WELCOME_MS - 1), None);
    assert!(matches!(session.poll(now_ms + WELCOME_MS), Some(Act::Disconnect(_))));
}

#[test]
fn a_keepalive_is_said_in_time_and_its_answer_awaited() {
    let mut session = active(1_000);
    let speak_ms = session.next_deadline().unwrap();
    assert!((811_000..=901_000).contains(&speak_ms), "{speak_ms}");
    assert_eq!(session.poll(speak_ms), Some(Act::Keepalive));
    session.handle_keepalive_answer();
    assert_eq!(session.poll(speak_ms + ANSWER_MS), None);
    let again_ms = session.next_deadline().unwrap();
    assert_eq!(session.poll(again_ms), Some(Act::Keepalive));
    assert_eq!(session.poll(again_ms + ANSWER_MS - 1), None);
    assert!(matches!(session.poll(again_ms + ANSWER_MS), Some(Act::Disconnect(_))));
    assert!(rest_ms(&session, again_ms + ANSWER_MS) <= BACK_OFF_BASE_MS);
}

#[test]
fn a_server_that_is_not_heard_after_something_was_said_is_asked_and_then_given_up() {
    let mut session = active(1_000);
    session.handle_said(5_000);
    session.handle_said(9_000);
    session.handle_heard();
    session.handle_said(20_000);
    let ask_ms = 20_000 + HEARD_WITHIN_MS;
    assert_eq!(session.next_deadline(), Some(ask_ms));
    assert_eq!(session.poll(ask_ms - 1), None);
    assert_eq!(session.poll(ask_ms), Some(Act::Keepalive));
    session.handle_said(ask_ms);
    assert_eq!(session.next_deadline(), Some(ask_ms + ANSWER_MS), "one question is enough");
    assert!(matches!(session.poll(ask_ms + ANSWER_MS), Some(Act::Disconnect(_))));
    // TCP would have asked after 200 s of rest; what is said just before puts that off: back within 300 s all the same, where the first
    // road that is tried leads there.
    let back_ms = 200_000 + session.next_deadline().unwrap() - 20_000 + BACK_OFF_BASE_MS + ROAD_MS;
    assert!(back_ms <= 300_000, "{back_ms}");
}

#[test]
fn a_cut_line_leads_back_to_the_same_server_at_once() {
    let mut session = active(0);
    session.handle_lost(SESSION_IS_GOOD_MS);
    assert!(rest_ms(&session, SESSION_IS_GOOD_MS) <= BACK_OFF_BASE_MS);
    assert_eq!(session.poll(session.next_deadline().unwrap()), Some(Act::Connect("a:1".to_owned())));
}

#[test]
fn a_server_that_welcomes_and_hangs_up_is_not_hammered() {
    let mut session = session();
    let mut now_ms = 0;
    let mut rests = Vec::new();
    for _ in 0..40 {
        session.poll(now_ms);
        session.handle_connected(now_ms);
        session.handle_welcome(now_ms, &welcome(900), None);
        session.handle_lost(now_ms);
        rests.push(rest_ms(&session, now_ms));
        now_ms = session.next_deadline().unwrap();
    }
    assert!(rests.iter().any(|rest_ms| *rest_ms > 10_000), "{rests:?}");
}

#[test]
fn a_drain_names_window_and_place() {
    let mut session = active(0);
    let drain = Drain { window_secs: 300, servers: vec!["c:1".to_owned()] };
    assert!(session.handle_drain(0, &drain));
    assert!(rest_ms(&session, 0) <= 300_000);
    assert_eq!(session.poll(300_000), Some(Act::Connect("c:1".to_owned())));
    assert!(!session.handle_drain(0, &drain), "no session, no drain");
}

#[test]
fn a_slot_that_the_server_gave_is_kept() {
    let mut session = session();
    session.poll(0);
    session.handle_connected(0);
    session.handle_welcome(0, &Welcome { reconnect_slot_secs: Some(42), ..welcome(900) }, None);
    session.handle_drain(0, &Drain { window_secs: 100, servers: Vec::new() });
    assert!((42_000..=43_000).contains(&rest_ms(&session, 0)));
}

#[test]
fn a_session_that_is_older_than_five_days_makes_place_for_one_with_a_new_ticket() {
    let mut session = active(0);
    let renewed_ms = loop {
        let now_ms = session.next_deadline().unwrap();
        match session.poll(now_ms) {
            Some(Act::Keepalive) => session.handle_keepalive_answer(),
            Some(Act::Disconnect(Parting::TicketOld)) => break now_ms,
            other => panic!("{other:?} at {now_ms}"),
        }
    };
    assert!(RENEW_MS.contains(&renewed_ms), "{renewed_ms}");
    assert_eq!(session.poll(renewed_ms), Some(Act::Connect("a:1".to_owned())), "at once, to the same server");
}

#[test]
fn a_session_is_not_renewed_while_something_that_was_said_waits_for_its_answer() {
    let mut session = active(0);
    session.shorten_keepalive(0, None);
    let late_ms = RENEW_MS.end() + 1;
    session.handle_said(late_ms - 1);
    // Its keepalives are overdue by now: one goes out first.
    assert_eq!(session.poll(late_ms), Some(Act::Keepalive));
    assert_eq!(session.poll(late_ms), None);
    session.handle_heard();
    assert_eq!(session.poll(late_ms), None, "the keepalive is not answered yet");
    session.handle_keepalive_answer();
    assert!(matches!(session.poll(late_ms), Some(Act::Disconnect(_))));
}

#[test]
fn a_session_moves_over_to_a_better_road_once_it_is_quiet_and_to_the_same_server() {
    let mut session = active(0);
    session.handle_said(1_000);
    session.handle_better_road(2_000);
    assert_eq!(session.poll(2_000), None, "an answer is on its way");
    session.handle_heard();
    assert_eq!(session.poll(2_500), Some(Act::Disconnect(Parting::RoadBetter)));
    assert_eq!(session.poll(2_500), Some(Act::Connect("a:1".to_owned())));
    session.handle_better_road(3_000);
    assert_eq!(session.phase(), SessionPhase::Connecting, "without a session nothing moves");
}

#[test]
fn a_better_road_that_is_gone_before_the_session_is_quiet_costs_it_nothing() {
    let mut session = active(0);
    session.handle_said(1_000);
    session.handle_better_road(2_000);
    session.handle_road_gone();
    session.handle_heard();
    assert_eq!(session.poll(2_500), None);
    assert_eq!(session.phase(), SessionPhase::Active);
    assert!(session.next_deadline().is_some_and(|due_ms| due_ms > 800_000));
}

#[test]
fn a_blocked_device_rests_long_and_a_superseded_one_ever_longer() {
    let mut session = active(0);
    assert!(session.handle_refused(0, RefusedReason::Blocked));
    assert!((30_000..=60_000).contains(&rest_ms(&session, 0)));

    let mut session = active(0);
    let mut now_ms = 0;
    for round in 0..6 {
        assert!(session.handle_refused(now_ms, RefusedReason::Superseded));
        let most_ms = (BACK_OFF_CAP_MS << round).min(SUPERSEDED_CAP_MS);
        assert!((most_ms / 2..=most_ms).contains(&rest_ms(&session, now_ms)));
        now_ms = session.next_deadline().unwrap();
        session.poll(now_ms);
        session.handle_connected(now_ms);
    }
}

#[test]
fn after_a_good_session_the_back_off_begins_anew_however_that_ended() {
    for reason in [RefusedReason::Unavailable, RefusedReason::Full, RefusedReason::Protocol] {
        let mut session = session();
        let mut now_ms = 0;
        for _ in 0..40 {
            session.poll(now_ms);
            session.handle_lost(now_ms);
            now_ms = session.next_deadline().unwrap();
        }
        session.poll(now_ms);
        assert!(session.handle_connected(now_ms));
        assert!(session.handle_welcome(now_ms, &welcome(900), None));
        let end_ms = now_ms + SESSION_IS_GOOD_MS;
        assert!(session.handle_refused(end_ms, reason));
        assert!(rest_ms(&session, end_ms) <= BACK_OFF_BASE_MS, "{reason:?}");
    }
}

#[test]
fn good_sessions_do_not_hide_that_another_machine_bears_the_same_identity() {
    let mut session = active(0);
    let mut now_ms = SESSION_IS_GOOD_MS;
    for round in 0..6 {
        assert!(session.handle_refused(now_ms, RefusedReason::Superseded));
        let most_ms = (BACK_OFF_CAP_MS << round).min(SUPERSEDED_CAP_MS);
        assert!((most_ms / 2..=most_ms).contains(&rest_ms(&session, now_ms)));
        now_ms = session.next_deadline().unwrap();
        session.poll(now_ms);
        session.handle_connected(now_ms);
        session.handle_welcome(now_ms, &welcome(900), None);
        now_ms += SESSION_IS_GOOD_MS;
    }
}

#[test]
fn a_server_without_a_queue_sends_the_agent_to_the_next() {
    let mut session = active(0);
    assert!(session.handle_refused(0, RefusedReason::Unavailable));
    assert!(rest_ms(&session, 0) <= BACK_OFF_BASE_MS);
    assert_eq!(session.poll(BACK_OFF_BASE_MS), Some(Act::Connect("b:1".to_owned())));
}

#[test]
fn policy_may_ask_for_more_frequent_keepalives_and_a_server_for_none_outside_the_bounds() {
    for (server_secs, policy_secs, most_ms) in
        [(900, Some(60), 60_000), (1, None, 20_000), (u32::MAX, None, 900_000)]
    {
        let mut session = session();
        session.poll(0);
        session.handle_connected(0);
        session.handle_welcome(0, &welcome(server_secs), policy_secs);
        let speak_ms = session.next_deadline().unwrap();
        assert!((most_ms * 9 / 10..=most_ms).contains(&speak_ms), "{speak_ms}");
    }
}

#[test]
fn a_policy_may_shorten_the_keepalive_of_a_session_and_not_lengthen_it() {
    let mut session = active(0);
    session.shorten_keepalive(0, Some(60));
    assert!((54_000..=60_000).contains(&session.next_deadline().unwrap()));
    session.shorten_keepalive(0, Some(600));
    session.shorten_keepalive(0, None);
    assert!((54_000..=60_000).contains(&session.next_deadline().unwrap()));
}

#[test]
fn a_stopped_session_does_nothing_any_more() {
    let mut session = active(0);
    assert!(session.handle_stop());
    assert_eq!((session.next_deadline(), session.poll(u64::MAX)), (None, None));
    session.handle_lost(5);
    assert_eq!(session.phase(), SessionPhase::Stopped);
}

#[derive(Clone, Debug)]
enum Step {
    Poll,
    Connected,
    Lost,
    Welcome(u32),
    Answer,
    Drain(u32),
    Refused(RefusedReason),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Poll),
        2 => Just(Step::Connected),
        1 => Just(Step::Lost),
        2 => any::<u32>().prop_map(Step::Welcome),
        1 => Just(Step::Answer),
        1 => any::<u32>().prop_map(Step::Drain),
        1 => prop_oneof![Just(RefusedReason::Blocked), Just(RefusedReason::Superseded), Just(RefusedReason::Full)]
            .prop_map(Step::Refused),
        2 => (0u64..1_000_000).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_there_is_a_deadline_and_polling_comes_to_an_end(
        steps in prop::collection::vec(step(), 0..80), seed in any::<u64>(),
    ) {
        let mut session = Session::new(vec!["a:1".to_owned()], Random::new(seed));
        let mut now_ms = 0;
        for step in steps {
            match step {
                Step::Poll => { session.poll(now_ms); }
                Step::Connected => { session.handle_connected(now_ms); }
                Step::Lost => session.handle_lost(now_ms),
                Step::Welcome(secs) => { session.handle_welcome(now_ms, &welcome(secs), None); }
                Step::Answer => session.handle_keepalive_answer(),
                Step::Drain(window_secs) => {
                    session.handle_drain(now_ms, &Drain { window_secs, servers: Vec::new() });
                }
                Step::Refused(reason) => { session.handle_refused(now_ms, reason); }
                Step::Wait(millis) => now_ms += millis,
            }
            let polls = std::iter::from_fn(|| session.poll(now_ms)).take(5).count();
            prop_assert!(polls < 5);
            prop_assert!(session.next_deadline().is_some_and(|due_ms| due_ms > now_ms));
        }
    }
}
