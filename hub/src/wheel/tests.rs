use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// All keys that are due at `now`.
fn expired(wheel: &mut Wheel, now: u64) -> Vec<u32> {
    std::iter::from_fn(|| wheel.poll_expired(Tick(now))).collect()
}

#[test]
fn a_timer_is_due_at_its_tick_and_not_before() {
    for at in
        [0, 1, 255, 256, 257, 65_535, 65_536, 16_777_215, 16_777_216, 16_777_217, 20_000_000, 900_000_000]
    {
        let mut wheel = Wheel::new();
        wheel.arm(3, Tick(at));
        if at > 0 {
            assert!(expired(&mut wheel, at - 1).is_empty());
        }
        assert_eq!(expired(&mut wheel, at), [3], "{at}");
        assert!(wheel.is_empty());
        assert_eq!(wheel.next_deadline(), None);
    }
}

#[test]
fn a_deadline_that_has_passed_is_due_at_once() {
    let mut wheel = Wheel::new();
    assert!(expired(&mut wheel, 1_000_000).is_empty());
    wheel.arm(0, Tick(5));
    assert_eq!(wheel.next_deadline(), Some(Tick(1_000_000)));
    assert_eq!(expired(&mut wheel, 1_000_000), [0]);
}

#[test]
fn a_timer_crosses_the_edge_of_every_level() {
    for edge in [256_u64, 65_536, 16_777_216, 33_554_432] {
        let mut wheel = Wheel::new();
        expired(&mut wheel, edge - 1);
        wheel.arm(1, Tick(edge));
        wheel.arm(2, Tick(edge + 1));
        assert!(expired(&mut wheel, edge - 1).is_empty());
        assert_eq!(expired(&mut wheel, edge), [1], "{edge}");
        assert_eq!(expired(&mut wheel, edge + 1), [2], "{edge}");
    }
}

#[test]
fn timers_beyond_the_reach_are_put_back_until_their_time() {
    let year = 365 * 24 * 3600 * 10;
    let mut wheel = Wheel::new();
    wheel.arm(0, Tick(year));
    wheel.arm(1, Tick(u64::MAX));
    let mut wakes = 0;
    while let Some(deadline) = wheel.next_deadline().filter(|deadline| deadline.0 <= year) {
        wakes += 1;
        assert!(wakes < 100, "a year is some 19 turns of the top level");
        if expired(&mut wheel, deadline.0) == [0] {
            assert_eq!(deadline.0, year);
        }
    }
    assert_eq!(wheel.deadline(0), None);
    assert_eq!(wheel.len(), 1);
    assert_eq!(expired(&mut wheel, u64::MAX), [1]);
}

#[test]
fn a_cancelled_timer_is_never_due_and_cancelling_twice_is_nothing() {
    let mut wheel = Wheel::new();
    wheel.arm(0, Tick(10));
    wheel.arm(1, Tick(10));
    wheel.arm(2, Tick(10));
    wheel.cancel(1);
    wheel.cancel(1);
    wheel.cancel(77);
    let due: BTreeSet<_> = expired(&mut wheel, 10).into_iter().collect();
    assert_eq!(due, BTreeSet::from([0, 2]));
}

#[test]
fn time_that_goes_back_is_taken_as_standing_still() {
    let mut wheel = Wheel::new();
    expired(&mut wheel, 500);
    wheel.arm(0, Tick(400));
    assert!(expired(&mut wheel, 300).is_empty());
    assert_eq!(expired(&mut wheel, 500), [0]);
}

#[test]
fn an_entry_has_16_bytes_and_a_block_two_cache_lines() {
    assert_eq!((size_of::<Entry>(), size_of::<Block>()), (16, 128));
}

/// How many blocks are in slots.
fn blocks_in_use(wheel: &Wheel) -> usize {
    wheel.blocks.len() - wheel.spare.len()
}

#[test]
fn a_timer_that_is_moved_or_cancelled_leaves_no_record_in_a_slot() {
    let mut wheel = Wheel::new();
    for round in 0..1_000_000_u64 {
        let key = (round % 100) as u32;
        if round % 3 == 0 {
            wheel.cancel(key);
        }
        wheel.arm(key, Tick(20_000_000 - round));
        assert!(blocks_in_use(&wheel) <= 100);
    }
    assert!(wheel.blocks.len() <= 101, "{}", wheel.blocks.len());
    assert_eq!(expired(&mut wheel, 20_000_000).len(), 100);
    assert_eq!(blocks_in_use(&wheel), 0);
}

#[test]
fn a_timer_of_the_window_is_moved_within_it_out_of_it_and_cancelled() {
    let mut wheel = Wheel::new();
    (0..6).for_each(|key| wheel.arm(key, Tick(300 + u64::from(key))));
    assert_eq!(expired(&mut wheel, 300), [0]);
    assert_eq!(wheel.window.records.len(), 6);
    wheel.arm(1, Tick(303));
    wheel.arm(2, Tick(301));
    wheel.arm(3, Tick(600));
    wheel.cancel(4);
    wheel.arm(4, Tick(304));
    wheel.cancel(5);
    assert_eq!(expired(&mut wheel, 301), [2]);
    assert!(expired(&mut wheel, 302).is_empty());
    assert_eq!(expired(&mut wheel, 303), [1]);
    assert_eq!(expired(&mut wheel, 304), [4]);
    assert!(expired(&mut wheel, 599).is_empty());
    assert_eq!(expired(&mut wheel, 600), [3]);
    assert!(wheel.is_empty() && blocks_in_use(&wheel) == 0);
}

#[test]
fn blocks_of_slots_that_are_over_are_used_again() {
    let mut wheel = Wheel::new();
    for round in 0..50_u64 {
        (0..10_000).for_each(|key| wheel.arm(key, Tick(round * 10_000 + 1 + u64::from(key) % 9_000)));
        assert_eq!(expired(&mut wheel, round * 10_000 + 9_999).len(), 10_000);
        assert_eq!(blocks_in_use(&wheel), 0);
    }
    assert!(wheel.is_empty());
    assert!(wheel.blocks.len() <= 10_000 / BLOCK_RECORDS + LEVELS * SLOTS, "{}", wheel.blocks.len());
}

#[test]
fn what_a_crowded_window_took_is_given_back() {
    let mut wheel = Wheel::new();
    (0..100_000).for_each(|key| wheel.arm(key, Tick(300)));
    assert_eq!(expired(&mut wheel, 300).len(), 100_000);
    wheel.arm(0, Tick(600));
    assert_eq!(expired(&mut wheel, 600), [0]);
    assert!(wheel.window.records.capacity() <= 2 * BLOCK_RECORDS);
}

#[test]
fn the_next_slot_round_the_ring_is_found() {
    for at in 0..SLOTS {
        let mut level = Level::EMPTY;
        assert_eq!(level.ahead(at), None);
        for ahead in [0, 1, 63, 64, 65, 200, 255] {
            level.set((at + ahead) % SLOTS);
            assert_eq!(level.ahead(at), Some(ahead));
            level.clear((at + ahead) % SLOTS);
        }
        assert!(level.is_empty());
        level.set(at);
        level.set((at + 255) % SLOTS);
        assert_eq!(level.ahead((at + 1) % SLOTS), Some(254));
    }
}

#[test]
fn what_is_minutes_away_does_not_pass_through_the_top_level() {
    let mut wheel = Wheel::new();
    for start in [0, 60_000, 65_535, 65_536, 130_000] {
        expired(&mut wheel, start);
        (0..1_000).for_each(|key| wheel.arm(key, Tick(start + 9_000 + u64::from(key))));
        assert!(wheel.levels[TOP].is_empty());
        assert!(expired(&mut wheel, start + 8_999).is_empty());
        assert_eq!(expired(&mut wheel, start + 9_999).len(), 1_000);
    }
}

#[test]
fn what_moves_down_may_belong_to_a_window_that_is_there_already() {
    let mut wheel = Wheel::new();
    wheel.arm(0, Tick(65_540));
    expired(&mut wheel, 60_000);
    wheel.arm(1, Tick(65_539));
    assert!(!wheel.levels[TOP].is_empty() && !wheel.levels[1].is_empty());
    assert!(expired(&mut wheel, 65_538).is_empty());
    assert_eq!(expired(&mut wheel, 65_539), [1]);
    assert_eq!(expired(&mut wheel, 65_540), [0]);
}

/// What is asked of the wheel and of the model.
#[derive(Clone, Debug)]
enum Op {
    Arm(u32, u64),
    /// For a moment that has passed.
    ArmLate(u32, u64),
    Cancel(u32),
    Pass(u64),
    /// Time passes, and no more than so many are asked for.
    PassPartly(u64, usize),
    /// On to the wheel's own next deadline.
    Wake,
}

fn distance() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0u64..20,
        4 => 0u64..600,
        4 => 0u64..20_000,
        2 => 0u64..2_000_000,
        2 => 0u64..100_000_000,
        1 => 0u64..1 << 45,
        1 => Just(u64::MAX / 2),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0u32..200;
    prop_oneof![
        12 => (key(), distance()).prop_map(|(key, distance)| Op::Arm(key, distance)),
        1 => (key(), 0u64..1_000).prop_map(|(key, late)| Op::ArmLate(key, late)),
        4 => key().prop_map(Op::Cancel),
        2 => distance().prop_map(Op::Pass),
        2 => (distance(), 0usize..5).prop_map(|(distance, most)| Op::PassPartly(distance, most)),
        3 => Just(Op::Wake),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn the_wheel_does_what_an_ordered_map_does(ops in prop::collection::vec(op(), 1..600), start in distance()) {
        let mut wheel = Wheel::new();
        let mut model: BTreeMap<u32, u64> = BTreeMap::new();
        let mut now = start.min(1 << 50);
        prop_assert!(expired(&mut wheel, now).is_empty());
        let mut is_behind = false;
        for op in ops {
            let (mut most, before) = (usize::MAX, now);
            match op {
                Op::Arm(key, distance) => {
                    let at = now.saturating_add(distance).min(u64::MAX - 1);
                    wheel.arm(key, Tick(at));
                    model.insert(key, at);
                    continue;
                }
                Op::ArmLate(key, late) => {
                    wheel.arm(key, Tick(now.saturating_sub(late)));
                    model.insert(key, now.saturating_sub(late));
                    continue;
                }
                Op::Cancel(key) => {
                    wheel.cancel(key);
                    model.remove(&key);
                    continue;
                }
                Op::Pass(distance) => now = now.saturating_add(distance).min(1 << 62),
                Op::PassPartly(distance, some) => {
                    now = now.saturating_add(distance).min(1 << 62);
                    most = some;
                }
                Op::Wake => {
                    let earliest = model.values().min().copied();
                    let next = wheel.next_deadline().map(|next| next.0);
                    prop_assert_eq!(next.is_some(), earliest.is_some());
                    if let (Some(next), Some(earliest)) = (next, earliest) {
                        prop_assert!(next <= earliest.max(now), "{} is after {}", next, earliest);
                        now = now.max(next).min(1 << 62);
                    }
                }
            }
            let mut latest = 0;
            for _ in 0..most {
                let Some(key) = wheel.poll_expired(Tick(now)) else { break };
                let at = model.remove(&key);
                prop_assert!(at.is_some_and(|at| at <= now), "{} is due at {:?}, not at {}", key, at, now);
                // What was late when it was armed comes at once, and a leap beyond the reach mixes what it leaps over.
                let at = at.unwrap_or_default().max(before);
                prop_assert!(at >= latest || is_behind || now - before >= REACH, "{} after {}", at, latest);
                latest = at;
            }
            is_behind = most != usize::MAX;
            if most == usize::MAX {
                prop_assert!(model.values().all(|at| *at > now), "not all that are due came");
                // A wake-up makes progress: the next one is ahead.
                prop_assert!(wheel.next_deadline().is_none_or(|next| next.0 > now));
            }
            prop_assert_eq!(wheel.len(), model.len());
            for (key, at) in &model {
                prop_assert_eq!(wheel.deadline(*key), Some(Tick(*at)));
            }
        }
        (0..200).for_each(|key| wheel.cancel(key));
        prop_assert_eq!(blocks_in_use(&wheel), 0);
    }
}
