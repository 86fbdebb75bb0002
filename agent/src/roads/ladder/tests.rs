use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const DAY_MS: u64 = TCP_IS_RECENT_MS;
const SERVER: &str = "a.example:10123";

/// The agent's own time runs beside the clock since boot.
fn at(boot_ms: u64) -> Moment {
    Moment { boot_ms, own: UnixMillis(1_780_272_000_000 + boot_ms) }
}

fn ladder() -> Ladder {
    Ladder::new(Memory::default(), at(0), Random::new(7))
}

/// All rungs of a climb in which each fails at once.
fn climb(ladder: &mut Ladder, now: Moment) -> Vec<&'static str> {
    ladder.begin(SERVER, &Rung::ALL, now);
    let mut tried = Vec::new();
    while let Some(rung) = ladder.next(now.boot_ms) {
        ladder.on_failed(rung, None);
        tried.push(rung.label());
    }
    tried
}

/// A session on `rung`, from here on.
fn sign_in(ladder: &mut Ladder, rung: Rung, now: Moment) -> RoadTaken {
    ladder.begin(SERVER, &Rung::ALL, now);
    while ladder.next(now.boot_ms).expect("nothing else is tried now") != rung {}
    let taken = ladder.on_connected(rung, None);
    ladder.on_welcome(now);
    taken
}

/// All, those from `place` on before the others.
fn all_from(place: usize) -> Vec<&'static str> {
    let mut all = Rung::ALL.map(Rung::label).to_vec();
    all.rotate_left(place);
    all
}

fn websocket() -> Rung {
    Rung::ALL[1]
}

fn long_poll() -> Rung {
    Rung::ALL[5]
}

/// Better roads are tried beside the session: those that are, the last of which leads to a server where one `works`.
fn probe(ladder: &mut Ladder, now: Moment, works: Option<Rung>, reason: Option<&RoadReason>) -> Vec<Rung> {
    let mut probe = ladder.on_probe(now);
    let mut tried = Vec::new();
    while let Some(rung) = probe.next(now.boot_ms) {
        tried.push(rung);
        if works == Some(rung) {
            probe.on_connected(rung, None);
            break;
        }
        probe.on_failed(rung, reason.cloned());
    }
    ladder.on_probed(probe);
    tried
}

fn probe_due_ms(ladder: &Ladder) -> Option<u64> {
    ladder.probe_due_ms(at(0).own)
}

#[test]
fn an_agent_that_knows_nothing_tries_all_from_the_best_on() {
    let mut ladder = ladder();
    let all: Vec<_> = Rung::ALL.into_iter().map(Rung::label).collect();
    assert_eq!(climb(&mut ladder, at(0)), all);
    assert_eq!(climb(&mut ladder, at(1_000)), all, "and all of them again");
}

#[test]
fn a_climb_that_is_cut_short_goes_on_where_it_stopped_with_each_server() {
    let mut ladder = ladder();
    ladder.begin(SERVER, &Rung::ALL, at(0));
    for place in 0..4 {
        assert_eq!(ladder.next(place * 13_000), Some(Rung::ALL[place as usize]));
    }
    assert_eq!(ladder.next(CLIMB_MS), None);
    ladder.begin("b.example:1", &Rung::ALL, at(50_000));
    assert_eq!(ladder.next(50_000), Some(Rung::TCP));
    let tried = climb(&mut ladder, at(60_000));
    assert_eq!(tried, all_from(4));
    assert_eq!(climb(&mut ladder, at(70_000)).len(), 9);
}

#[test]
fn what_worked_last_is_tried_first() {
    let mut ladder = ladder();
    let rung = Rung::ALL[6];
    sign_in(&mut ladder, rung, at(0));
    ladder.on_ended(End::Lost, at(100_000));
    let tried = climb(&mut ladder, at(101_000));
    assert_eq!((tried[0], tried[1], tried.len()), (rung.label(), "tcp", 9));
    let mut again = Ladder::new(ladder.memory().clone(), at(0), Random::new(8));
    assert_eq!(climb(&mut again, at(0))[0], rung.label(), "also by the next process");
    assert_eq!(climb(&mut ladder, at(WORKED_IS_RECENT_MS - 1))[0], rung.label());
    assert_eq!(climb(&mut ladder, at(WORKED_IS_RECENT_MS)), all_from(0), "what is better may work by now");
}

#[test]
fn a_climb_that_goes_on_asks_what_worked_first_and_what_it_has_tried_last() {
    let mut ladder = ladder();
    sign_in(&mut ladder, long_poll(), at(0));
    ladder.on_ended(End::Lost, at(100_000));
    ladder.begin(SERVER, &Rung::ALL, at(100_000));
    for second in (0..40).step_by(5) {
        assert!(ladder.next(100_000 + second * 1_000).is_some());
    }
    assert_eq!(ladder.next(100_000 + CLIMB_MS), None);
    // The network is back: the worst road is not the one on which that is found out.
    let tried = climb(&mut ladder, at(150_000));
    assert_eq!(tried[..3], [long_poll().label(), "long-poll-http-proxy", "tcp"]);
    assert_eq!(tried.len(), 9);
}

#[test]
fn what_a_climb_has_learned_that_was_given_up_is_known_to_the_next() {
    let mut late = ladder();
    late.begin(SERVER, &Rung::ALL, at(0));
    assert_eq!([late.next(0), late.next(38_000)], [Some(Rung::TCP), Some(websocket())]);
    late.on_called_off();
    let mut ladder = ladder();
    ladder.begin("b.example:1", &Rung::ALL, at(80_000));
    ladder.on_late(late);
    assert_eq!(ladder.next(80_000), Some(Rung::TCP));
    assert_eq!(climb(&mut ladder, at(90_000)), all_from(2));
}

#[test]
fn a_road_that_loses_each_session_at_once_is_passed_over() {
    for rung in [Rung::TCP, websocket()] {
        let mut ladder = ladder();
        for round in 1..=BRIEF_MAX {
            sign_in(&mut ladder, rung, at(0));
            ladder.on_ended(End::Lost, at(HOLDS_MS - 1));
            let first = ladder.clone().begin_first();
            assert_eq!(first == rung, round < BRIEF_MAX, "{} {round}", rung.label());
        }
        let tried = climb(&mut ladder, at(HOLDS_MS));
        assert_eq!((tried.len(), tried.contains(&rung.label())), (9, true), "no road is forgotten");
        assert_eq!(climb(&mut ladder, at(HOLDS_MS)), all_from(0), "nor waited for");

        // What has lasted once is as good as any, and what somebody wanted is nobody's fault.
        sign_in(&mut ladder, rung, at(0));
        ladder.on_ended(End::Lost, at(HOLDS_MS));
        for _ in 0..=BRIEF_MAX {
            sign_in(&mut ladder, rung, at(0));
            ladder.on_ended(End::Wanted, at(1_000));
        }
        assert_eq!(ladder.begin_first(), rung);
    }
}

impl Ladder {
    /// What a climb begins with.
    fn begin_first(mut self) -> Rung {
        self.begin(SERVER, &Rung::ALL, at(HOLDS_MS));
        self.next(HOLDS_MS).unwrap()
    }
}

#[test]
fn whoever_had_tcp_within_a_day_waits_ten_minutes_for_it() {
    let mut ladder = ladder();
    sign_in(&mut ladder, Rung::TCP, at(0));
    let lost_ms = 5 * DAY_MS;
    ladder.on_ended(End::Lost, at(lost_ms));
    // A drain's window may be over when it is back.
    let back_ms = lost_ms + 600_000;
    assert_eq!(climb(&mut ladder, at(back_ms)), ["tcp"]);
    assert_eq!(climb(&mut ladder, at(back_ms + 599_000)), ["tcp"]);
    assert_eq!(climb(&mut ladder, at(back_ms + 600_000)).len(), 9);

    // A process that begins has lost it as well, unless it is long ago.
    let begin = |own_ms: u64| {
        let now = Moment { boot_ms: 0, own: UnixMillis(at(lost_ms).own.0 + own_ms) };
        let mut ladder = Ladder::new(ladder.memory().clone(), now, Random::new(1));
        climb(&mut ladder, now).len()
    };
    assert_eq!(begin(DAY_MS - 2 * TCP_AT_STEP_MS), 1);
    assert_eq!(begin(DAY_MS), 9);
    // Nor where the agent's own time was ahead when it was noted.
    let now = Moment { boot_ms: 0, own: UnixMillis(at(lost_ms).own.0 - DAY_MS) };
    assert_eq!(climb(&mut Ladder::new(ladder.memory().clone(), now, Random::new(1)), now).len(), 9);
}

#[test]
fn whoever_had_a_websocket_waits_two_minutes_for_nothing_worse() {
    let mut ladder = ladder();
    let worse = Rung::ALL[3];
    sign_in(&mut ladder, worse, at(0));
    ladder.on_ended(End::Lost, at(HOLDS_MS));
    let back_ms = 2 * HOLDS_MS;
    let until_then = [worse.label(), "tcp", "websocket-https", "websocket-https-proxy"];
    assert_eq!(climb(&mut ladder, at(back_ms)), until_then);
    assert_eq!(climb(&mut ladder, at(back_ms + WEBSOCKET_ONLY_MS - 1)), until_then);
    assert_eq!(climb(&mut ladder, at(back_ms + WEBSOCKET_ONLY_MS)).len(), 9);

    // A process that begins has lost it as well; from long-poll everything is tried.
    let begin = |ladder: &Ladder, own_ms: u64| {
        let now = Moment { boot_ms: 0, own: at(own_ms).own };
        climb(&mut Ladder::new(ladder.memory().clone(), now, Random::new(1)), now).len()
    };
    assert_eq!([begin(&ladder, back_ms), begin(&ladder, WORKED_IS_RECENT_MS)], [4, 9]);
    sign_in(&mut ladder, long_poll(), at(back_ms + WEBSOCKET_ONLY_MS));
    ladder.on_ended(End::Lost, at(back_ms + WEBSOCKET_ONLY_MS + HOLDS_MS));
    assert_eq!(climb(&mut ladder, at(back_ms + WEBSOCKET_ONLY_MS + HOLDS_MS)).len(), 9);
}

#[test]
fn a_websocket_is_waited_for_however_long_its_session_had_lasted() {
    let mut ladder = ladder();
    sign_in(&mut ladder, websocket(), at(0));
    let lost_ms = 5 * DAY_MS;
    ladder.on_ended(End::Lost, at(lost_ms));
    assert_eq!(climb(&mut ladder, at(lost_ms)), ["tcp", websocket().label()]);
    // It falls before it has said a word, too.
    ladder.begin(SERVER, &Rung::ALL, at(lost_ms + 1_000));
    while ladder.next(lost_ms + 1_000).unwrap() != websocket() {}
    ladder.on_connected(websocket(), None);
    ladder.on_ended(End::Lost, at(lost_ms + 2_000));
    assert_eq!(climb(&mut ladder, at(lost_ms + 3_000)), ["tcp", websocket().label()]);
}

#[test]
fn whoever_was_on_another_road_since_has_no_tcp_to_wait_for() {
    let mut ladder = ladder();
    sign_in(&mut ladder, Rung::TCP, at(0));
    ladder.on_ended(End::Lost, at(HOLDS_MS));
    climb(&mut ladder, at(HOLDS_MS));
    sign_in(&mut ladder, websocket(), at(HOLDS_MS + TCP_ONLY_MS));
    let again_ms = HOLDS_MS + 2 * TCP_ONLY_MS;
    let mut ladder = Ladder::new(ladder.memory().clone(), at(again_ms), Random::new(8));
    for _ in 0..BRIEF_MAX {
        sign_in(&mut ladder, websocket(), at(again_ms));
        ladder.on_ended(End::Lost, at(again_ms));
    }
    assert_eq!(climb(&mut ladder, at(again_ms)).len(), 9);
}

#[test]
fn a_server_that_falls_again_and_again_while_it_is_started_moves_nobody() {
    for (rung, time_ms) in [(Rung::TCP, TCP_ONLY_MS), (websocket(), WEBSOCKET_ONLY_MS)] {
        let mut ladder = ladder();
        sign_in(&mut ladder, rung, at(0));
        ladder.on_ended(End::Lost, at(HOLDS_MS));
        let mut now_ms = HOLDS_MS + 10_000;
        let until_ms = now_ms + time_ms;
        while now_ms < until_ms {
            ladder.begin(SERVER, &Rung::ALL, at(now_ms));
            assert_eq!(ladder.next(now_ms), Some(rung));
            ladder.on_connected(rung, None);
            ladder.on_welcome(at(now_ms));
            ladder.on_ended(End::Lost, at((now_ms + 10_000).min(until_ms - 1)));
            now_ms += 15_000;
        }
        // If that goes on, it is the road.
        for _ in 0..BRIEF_MAX {
            ladder.begin(SERVER, &Rung::ALL, at(now_ms));
            assert_eq!(ladder.next(now_ms), Some(rung));
            ladder.on_connected(rung, None);
            ladder.on_welcome(at(now_ms));
            ladder.on_ended(End::Lost, at(now_ms));
        }
        ladder.begin(SERVER, &Rung::ALL, at(now_ms));
        assert_ne!(ladder.next(now_ms), Some(rung));
    }
}

#[test]
fn tcp_that_answers_and_never_welcomes_is_not_waited_for() {
    let mut ladder = ladder();
    ladder.begin(SERVER, &Rung::ALL, at(0));
    assert_eq!(ladder.next(0), Some(Rung::TCP));
    ladder.on_connected(Rung::TCP, None);
    ladder.on_ended(End::Lost, at(30_000));
    assert_eq!(climb(&mut ladder, at(31_000)), all_from(1));

    // One that refuses in so many words is another matter.
    ladder.begin(SERVER, &Rung::ALL, at(40_000));
    ladder.next(40_000);
    ladder.on_connected(Rung::TCP, None);
    ladder.on_heard();
    ladder.on_ended(End::Lost, at(41_000));
    assert_eq!(climb(&mut ladder, at(42_000)).len(), 9);
}

#[test]
fn a_hello_says_why_it_is_not_on_tcp_and_who_stands_in_between() {
    let reason = |told: &[(usize, RoadReason)], taken: usize, issuer: Option<&str>| {
        let mut ladder = ladder();
        ladder.begin(SERVER, &Rung::ALL, at(0));
        while let Some(rung) = ladder.next(0) {
            if rung.place() == taken {
                return ladder.on_connected(rung, issuer.map(str::to_owned)).reason;
            }
            let reason = told.iter().find(|(place, _)| *place == rung.place());
            ladder.on_failed(rung, reason.map(|(_, reason)| reason.clone()));
        }
        unreachable!("the rung is on the ladder")
    };
    let refused = || (0, RoadReason::Refused);
    assert_eq!(reason(&[refused()], 0, None), None);
    assert_eq!(reason(&[refused(), (1, RoadReason::TimedOut)], 3, None), Some(RoadReason::Refused));
    let proxy = RoadReason::ProxyAnswer(407);
    assert_eq!(reason(&[refused(), (2, proxy.clone())], 3, None), Some(proxy.clone()));
    let issuer = RoadReason::Intercepted("Example".to_owned());
    assert_eq!(reason(&[refused(), (2, proxy)], 3, Some("Example")), Some(issuer));
    assert_eq!(reason(&[], 3, None), None, "it was not tried, or its name has no address");
}

#[test]
fn tcp_is_probed_ever_more_rarely_and_as_often_as_before_once_it_was_good() {
    let mut ladder = ladder();
    assert_eq!(probe_due_ms(&ladder), None);
    sign_in(&mut ladder, websocket(), at(0));
    let mut now_ms = 0;
    for doubling in 0..10 {
        let wait_ms = (PROBE_MS << doubling).min(PROBE_MS_MAX);
        let due_ms = probe_due_ms(&ladder).unwrap();
        assert!((wait_ms * 3 / 4..=wait_ms * 5 / 4).contains(&(due_ms - now_ms)), "{doubling}");
        now_ms = due_ms;
        let tried = probe(&mut ladder, at(now_ms), None, Some(&RoadReason::TimedOut));
        assert_eq!(tried, [Rung::TCP]);
    }
    // A session that is lost and comes again puts no probe off.
    let due_ms = probe_due_ms(&ladder);
    ladder.on_ended(End::Lost, at(now_ms));
    assert_eq!(probe_due_ms(&ladder), None);
    let taken = sign_in(&mut ladder, websocket(), at(now_ms));
    assert_eq!((probe_due_ms(&ladder), taken.reason), (due_ms, Some(RoadReason::TimedOut)));

    let wait_ms = |ladder: &mut Ladder, lasted_ms: u64| {
        ladder.on_connected(Rung::TCP, None);
        ladder.on_welcome(at(now_ms));
        assert_eq!(probe_due_ms(ladder), None);
        ladder.on_ended(End::Lost, at(now_ms + lasted_ms));
        climb(ladder, at(now_ms + lasted_ms));
        let later_ms = now_ms + lasted_ms + TCP_ONLY_MS;
        sign_in(ladder, websocket(), at(later_ms));
        probe_due_ms(ladder).unwrap() - later_ms
    };
    assert!(wait_ms(&mut ladder, TCP_IS_GOOD_MS - 1) > PROBE_MS_MAX / 2);
    assert!(wait_ms(&mut ladder, TCP_IS_GOOD_MS) <= PROBE_MS * 5 / 4);
}

#[test]
fn after_a_probe_that_came_through_the_next_climb_begins_with_tcp() {
    let mut ladder = ladder();
    sign_in(&mut ladder, websocket(), at(0));
    probe(&mut ladder, at(1_000), Some(Rung::TCP), None);
    ladder.on_ended(End::Lost, at(2_000));
    assert_eq!(climb(&mut ladder, at(2_000)), ["tcp", websocket().label()]);
    assert_eq!(climb(&mut ladder, at(3_000)), [websocket().label(), "tcp"], "once");
}

#[test]
fn a_probe_that_is_taken_and_never_welcomed_leads_back_to_what_worked() {
    let mut ladder = ladder();
    sign_in(&mut ladder, websocket(), at(0));
    probe(&mut ladder, at(1_000), Some(Rung::TCP), None);
    ladder.on_ended(End::Wanted, at(2_000));
    ladder.on_connected(Rung::TCP, None);
    ladder.on_ended(End::Lost, at(32_000));
    assert_eq!(climb(&mut ladder, at(33_000)), [websocket().label(), "tcp"]);
}

#[test]
fn a_probe_that_is_welcomed_and_cut_off_at_once_does_not_have_tcp_waited_for() {
    let mut ladder = ladder();
    let moved_ms = 2 * TCP_ONLY_MS;
    sign_in(&mut ladder, websocket(), at(moved_ms - 1_000));
    probe(&mut ladder, at(moved_ms - 1), Some(Rung::TCP), None);
    ladder.on_ended(End::Wanted, at(moved_ms));
    ladder.on_connected(Rung::TCP, None);
    ladder.on_welcome(at(moved_ms));
    ladder.on_ended(End::Lost, at(moved_ms + HOLDS_MS - 1));
    assert_eq!(climb(&mut ladder, at(moved_ms + HOLDS_MS)), all_from(0));
}

#[test]
fn where_tcp_is_not_allowed_it_is_not_probed() {
    let mut ladder = ladder();
    ladder.begin(SERVER, &Rung::ALL[1..], at(0));
    assert_eq!(ladder.next(0), Some(websocket()));
    ladder.on_connected(websocket(), None);
    ladder.on_welcome(at(0));
    assert_eq!(probe_due_ms(&ladder), None);
    // But it is not the only road that is better than long-poll.
    let now_ms = WEBSOCKET_ONLY_MS;
    ladder.on_ended(End::Lost, at(1_000));
    ladder.begin(SERVER, &Rung::ALL[1..], at(now_ms));
    while ladder.next(now_ms).unwrap() != long_poll() {}
    ladder.on_connected(long_poll(), None);
    ladder.on_welcome(at(now_ms));
    assert_eq!(probe(&mut ladder, at(now_ms), None, None), Rung::ALL[1..5]);
}

#[test]
fn from_long_poll_websockets_are_probed_as_well_but_for_those_that_bear_no_silence() {
    let mut ladder = ladder();
    for _ in 0..2 {
        sign_in(&mut ladder, Rung::ALL[3], at(0));
        ladder.on_cut(Duration::from_secs(10), at(0));
        ladder.on_ended(End::Wanted, at(0));
    }
    sign_in(&mut ladder, long_poll(), at(0));
    let better = [Rung::TCP, websocket(), Rung::ALL[2], Rung::ALL[4]];
    assert_eq!(probe(&mut ladder, at(1_000), None, None), better);
    assert_eq!(probe(&mut ladder, at(2_000), Some(websocket()), Some(&RoadReason::Refused)), better[..2]);
    ladder.on_ended(End::Wanted, at(3_000));
    ladder.begin(SERVER, &Rung::ALL, at(3_000));
    assert_eq!(ladder.next(3_000), Some(websocket()));
    assert_eq!(ladder.on_connected(websocket(), None).reason, Some(RoadReason::Refused));
    ladder.on_welcome(at(3_000));
    // Pauses go on growing: nothing is known of TCP by that.
    assert!(probe_due_ms(&ladder).unwrap() > 2 * PROBE_MS);
    assert_eq!(probe(&mut ladder, at(4_000), None, None), [Rung::TCP]);
}

#[test]
fn what_was_told_of_another_network_is_not_told_of_this_one() {
    let mut ladder = ladder();
    let reason = |ladder: &mut Ladder, server: &str, answer: Option<RoadReason>, now: Moment| {
        ladder.begin(server, &Rung::ALL, now);
        while let Some(rung) = ladder.next(now.boot_ms) {
            if rung == Rung::ALL[3] {
                let reason = ladder.on_connected(rung, None).reason;
                ladder.on_welcome(now);
                ladder.on_ended(End::Lost, Moment { boot_ms: now.boot_ms + HOLDS_MS, ..now });
                return reason;
            }
            ladder.on_failed(rung, answer.clone().filter(|_| rung == Rung::ALL[2]));
        }
        unreachable!("the rung is on the ladder")
    };
    let hotel = Some(RoadReason::ProxyAnswer(407));
    assert_eq!(reason(&mut ladder, SERVER, hotel.clone(), at(0)), hotel);
    assert_eq!(reason(&mut ladder, SERVER, None, at(100_000)), hotel, "nobody has tried that road again");
    assert_eq!(reason(&mut ladder.clone(), "b.example:1", None, at(200_000)), None);
    assert_eq!(reason(&mut ladder, SERVER, None, at(DAY_MS)), None);
}

#[test]
fn a_ping_that_is_not_answered_proves_a_timer_only_where_that_was_the_first_silence() {
    let mut ladder = ladder();
    let mut cut_after = |lasted_secs: u64| {
        sign_in(&mut ladder, websocket(), at(0));
        let now = at(lasted_secs * 1_000);
        ladder.on_cut(Duration::from_secs(200), now);
        ladder.on_ended(End::Lost, now);
        ladder.idle(websocket(), now.own).ping_every().map(|every| every.as_secs())
    };
    // Carried from one network to the next.
    assert_eq!([cut_after(3_600), cut_after(7_200), cut_after(3_600)], [Some(200); 3]);
    assert_eq!([cut_after(230), cut_after(250)], [Some(200), Some(133)]);
}

#[test]
fn a_websocket_that_bears_no_silence_is_tried_last_for_a_day() {
    let mut ladder = ladder();
    for _ in 0..2 {
        sign_in(&mut ladder, websocket(), at(0));
        ladder.on_cut(Duration::from_secs(10), at(0));
        ladder.on_ended(End::Lost, at(0));
    }
    let tried = climb(&mut ladder, at(1_000));
    assert_eq!((tried.len(), tried.last()), (9, Some(&websocket().label())), "better than none");
    ladder.begin(SERVER, &[Rung::TCP, websocket()], at(2_000));
    assert_eq!([ladder.next(2_000), ladder.next(2_000)], [Some(Rung::TCP), Some(websocket())]);
    assert_eq!(climb(&mut ladder, at(DAY_MS)), all_from(0));
}

#[derive(Clone, Debug)]
enum Step {
    Begin(bool),
    Next,
    Fail(bool),
    Connect,
    Welcome,
    End(End),
    Cut(u64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => any::<bool>().prop_map(Step::Begin),
        6 => Just(Step::Next),
        3 => any::<bool>().prop_map(Step::Fail),
        2 => Just(Step::Connect),
        2 => Just(Step::Welcome),
        2 => prop_oneof![Just(End::Lost), Just(End::Wanted)].prop_map(Step::End),
        1 => (0u64..300).prop_map(Step::Cut),
        2 => (0u64..1_000_000).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_each_climb_begins_on_an_allowed_rung_and_comes_to_an_end(
        steps in prop::collection::vec(step(), 0..120), allowed in prop::sample::subsequence(Rung::ALL.to_vec(), 1..=9),
    ) {
        let (mut ladder, mut now_ms, mut rung) = (ladder(), 0, None);
        for step in steps {
            match step {
                Step::Begin(is_first) => {
                    let server = if is_first { SERVER } else { "b.example:1" };
                    ladder.begin(server, &allowed, at(now_ms));
                    let mut again = ladder.clone();
                    let tried = std::iter::from_fn(|| again.next(now_ms)).collect::<Vec<_>>();
                    prop_assert!(!tried.is_empty() && tried.len() <= allowed.len());
                    prop_assert!(tried.iter().all(|rung| allowed.contains(rung)));
                }
                Step::Next => rung = ladder.next(now_ms),
                Step::Fail(is_told) => if let Some(rung) = rung.take() {
                    ladder.on_failed(rung, is_told.then_some(RoadReason::ProxyAnswer(403)));
                },
                Step::Connect => if let Some(rung) = rung.take() {
                    prop_assert_eq!(ladder.on_connected(rung, None).road, rung.road);
                },
                Step::Welcome => ladder.on_welcome(at(now_ms)),
                Step::End(end) => ladder.on_ended(end, at(now_ms)),
                Step::Cut(secs) => ladder.on_cut(Duration::from_secs(secs), at(now_ms)),
                Step::Wait(millis) => now_ms += millis,
            }
            prop_assert!(ladder.told.len() < Rung::ALL.len());
            let better = ladder.better(at(now_ms).own);
            prop_assert!(better.iter().all(|rung| allowed.contains(rung)));
            prop_assert!(!better.is_empty() || ladder.probe_due_ms(at(now_ms).own).is_none());
        }
        // Where all fail, each is tried once TCP has had its time.
        let mut failing = ladder.clone();
        let mut tried = BTreeSet::new();
        for later_ms in [0, TCP_ONLY_MS] {
            failing.begin(SERVER, &allowed, at(now_ms + later_ms));
            tried.extend(std::iter::from_fn(|| failing.next(now_ms + later_ms)));
        }
        prop_assert_eq!(tried, allowed.iter().copied().collect());
        // And no road that loses each session is the first for ever.
        let mut firsts = BTreeSet::new();
        // What held before has its time first.
        for _ in 0..BRIEF_MAX + 3 {
            now_ms += TCP_ONLY_MS / 2;
            ladder.begin(SERVER, &allowed, at(now_ms));
            let first = ladder.next(now_ms).unwrap();
            ladder.on_connected(first, None);
            ladder.on_welcome(at(now_ms));
            ladder.on_ended(End::Lost, at(now_ms));
            firsts.insert(first);
        }
        prop_assert!(firsts.len() > 1 || allowed.len() == 1);
    }
}
