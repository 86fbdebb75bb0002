//! What a timer costs: `make bench-wheel`. Ends in a line of JSON.
//!
//! At 10,000 and at 1,000,000 timers, in random order of keys and deadlines: arming, moving, cancelling, firing. Beside each stands the floor, one
//! random read of an array of the same size with entries of the same size, and the rivals: a `BTreeMap` from deadline and key, and the wheel of
//! `hierarchical_hash_wheel_timer`, whose timers can be cancelled by their key. Time goes from one deadline to the next, as a reactor's does.
//!
//! At 10,000 timers, which lie in the machine's caches, operations follow each other in a row, and each may take 20 ns.
//!
//! At 1,000,000 what an operation costs is what it has to fetch. A machine that sees the next operation coming fetches for a dozen at a time; in a
//! server other work lies between, and nothing is in the cache any more. So each operation is done before the next begins (a memory fence, whose time
//! is in it), and a firing finds the caches swept since its window was opened; opening is in the firings' time, and fetches as many entries at once as
//! the machine can. The floor is a read whose place the read before has told, so that it waits as long as memory takes. An operation may take three of
//! those. The rivals do theirs one by one as well, and have grown before; their caches are not swept when they fire, and the other wheel fires all of a tick
//! at once, which favours them. What our wheel
//! and the reads take in a row, and with warm caches, stands beside.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use bgb_hub::Tick;
use bgb_hub::wheel::Wheel;
use hierarchical_hash_wheel_timer::wheels::Skip;
use hierarchical_hash_wheel_timer::wheels::cancellable::{CancellableTimerEntry, QuadWheelWithOverflow};
use serde_json::{Value, json};

/// How operations follow each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// The machine does as many at a time as it can.
    InARow,
    /// Each is done before the next begins.
    OneByOne,
}

impl Pace {
    fn step(self) {
        if self == Self::OneByOne {
            fence(Ordering::SeqCst);
        }
    }
}

/// Sweeps what was fetched out of the caches that a core has for itself; what that took.
fn sweep(other: &mut [u64]) -> Duration {
    let begun = Instant::now();
    other.iter_mut().step_by(8).for_each(|word| *word = black_box(*word + 1));
    begun.elapsed()
}

/// Words that are more than those caches hold: 16 MiB.
const SWEPT_WORDS: usize = 2 * 1024 * 1024;
/// Ticks of a window of the wheel.
const WINDOW_TICKS: u64 = 256;

/// Deadlines lie within an hour: keepalives are a quarter of one away.
const HORIZON_TICKS: u64 = 36_000;
/// Rounds; the median counts.
const ROUNDS: usize = 9;
/// Operations of a round at the least: a clock that is read more often than that would be measured as well.
const OPERATIONS_MIN: usize = 200_000;

const FEW: usize = 10_000;
const MANY: usize = 1_000_000;
const FEW_NS: f64 = 20.0;
const MANY_READS: f64 = 3.0;

/// xorshift64 (Marsaglia, 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What is done, in which order: keys shuffled, a deadline for each, and another to be moved to.
struct Script {
    keys: Vec<u32>,
    first: Vec<Tick>,
    second: Vec<Tick>,
}

impl Script {
    fn new(timers: usize) -> Self {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut keys: Vec<u32> = (0..timers as u32).collect();
        for at in (1..timers).rev() {
            keys.swap(at, random.below(at as u64 + 1) as usize);
        }
        let mut ticks = || (0..timers).map(|_| Tick(1 + random.below(HORIZON_TICKS))).collect();
        Self { keys, first: ticks(), second: ticks() }
    }
}

/// Nanoseconds for each of the operations.
#[derive(Clone, Copy, Default)]
struct Costs {
    arm: f64,
    rearm: f64,
    cancel: f64,
    fire: f64,
}

impl Costs {
    fn most(self) -> f64 {
        self.arm.max(self.rearm).max(self.cancel).max(self.fire)
    }

    fn json(self) -> Value {
        let Self { arm, rearm, cancel, fire } = self;
        json!({"arm_ns": round(arm), "rearm_ns": round(rearm), "cancel_ns": round(cancel), "fire_ns": round(fire)})
    }

    fn median_of(rounds: &[Self]) -> Self {
        let of = |get: fn(&Self) -> f64| median(rounds.iter().map(get).collect());
        Self {
            arm: of(|costs| costs.arm),
            rearm: of(|costs| costs.rearm),
            cancel: of(|costs| costs.cancel),
            fire: of(|costs| costs.fire),
        }
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn round(ns: f64) -> f64 {
    (ns * 100.0).round() / 100.0
}

/// Nanoseconds that `act` takes for each of `count`.
fn time(count: usize, act: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    act();
    begun.elapsed().as_nanos() as f64 / count as f64
}

/// Rounds over as many timers at a time as make the clock's own cost small.
fn rounds(timers: usize, mut once: impl FnMut() -> Costs) -> Costs {
    let repeats = OPERATIONS_MIN.div_ceil(timers);
    let rounds: Vec<Costs> =
        (0..ROUNDS).map(|_| Costs::median_of(&(0..repeats).map(|_| once()).collect::<Vec<_>>())).collect();
    Costs::median_of(&rounds)
}

fn wheel(script: &Script, pace: Pace) -> Costs {
    let (keys, timers) = (&script.keys, script.keys.len());
    // As a server has it after its first hour: grown already, and its time has gone on.
    let mut wheel = Wheel::new();
    (0..timers as u32).for_each(|key| wheel.arm(key, Tick(1)));
    let mut now = Tick(0);
    let mut other = vec![0; if pace == Pace::OneByOne { SWEPT_WORDS } else { 0 }];
    rounds(timers, || {
        now = Tick(now.0 + 2 * HORIZON_TICKS);
        while wheel.poll_expired(now).is_some() {}
        let later = |tick: Tick| Tick(now.0 + tick.0);
        let mut arm_all = |ticks: &[Tick]| {
            time(timers, || {
                for (key, at) in keys.iter().zip(ticks) {
                    wheel.arm(*key, later(*at));
                    pace.step();
                }
            })
        };
        let (arm, rearm) = (arm_all(&script.first), arm_all(&script.second));
        let (mut fired, mut window, mut swept) = (0, 0, Duration::ZERO);
        let fire = time(timers, || {
            while let Some(tick) = wheel.next_deadline() {
                while let Some(key) = wheel.poll_expired(tick) {
                    black_box(key);
                    pace.step();
                    fired += 1;
                }
                if tick.0 / WINDOW_TICKS != window {
                    window = tick.0 / WINDOW_TICKS;
                    swept += sweep(&mut other);
                }
            }
        }) - swept.as_nanos() as f64 / timers as f64;
        assert_eq!(fired, timers);
        now = Tick(now.0 + HORIZON_TICKS);
        keys.iter().zip(&script.first).for_each(|(key, at)| wheel.arm(*key, Tick(now.0 + at.0)));
        let cancel = time(timers, || {
            for key in keys {
                wheel.cancel(*key);
                pace.step();
            }
        });
        assert!(wheel.is_empty());
        Costs { arm, rearm, cancel, fire }
    })
}

/// A timer of the other wheel.
#[derive(Debug)]
struct Timer(u32);

impl CancellableTimerEntry for Timer {
    type Id = u32;

    fn id(&self) -> &u32 {
        &self.0
    }
}

/// The other wheel: a map of timers that are counted, and slots of weak references to them.
fn other_wheel(script: &Script, pace: Pace) -> Costs {
    let (keys, timers) = (&script.keys, script.keys.len());
    let arm_all = |wheel: &mut QuadWheelWithOverflow<Timer>, ticks: &[Tick], moves: bool| {
        for (key, at) in keys.iter().zip(ticks) {
            if moves {
                wheel.cancel(key).expect("it is armed");
            }
            let armed = wheel.insert_ref_with_delay(Rc::new(Timer(*key)), Duration::from_millis(at.0));
            assert!(armed.is_ok());
            pace.step();
        }
    };
    // What was cancelled lies in it until its time comes.
    let empty = |wheel: &mut QuadWheelWithOverflow<Timer>| loop {
        match wheel.can_skip() {
            Skip::Empty => break,
            Skip::Millis(ticks) => wheel.skip(ticks),
            Skip::None => drop(wheel.tick()),
        }
    };
    let mut wheel = QuadWheelWithOverflow::new();
    arm_all(&mut wheel, &script.first, false);
    rounds(timers, || {
        empty(&mut wheel);
        let arm = time(timers, || arm_all(&mut wheel, &script.first, false));
        let rearm = time(timers, || arm_all(&mut wheel, &script.second, true));
        let mut fired = 0;
        let fire = time(timers, || {
            while fired < timers {
                match wheel.can_skip() {
                    Skip::Millis(ticks) => wheel.skip(ticks),
                    _ => fired += black_box(wheel.tick()).len(),
                }
                pace.step();
            }
        });
        arm_all(&mut wheel, &script.first, false);
        let cancel = time(timers, || {
            for key in keys {
                wheel.cancel(key).expect("it is armed");
                pace.step();
            }
        });
        Costs { arm, rearm, cancel, fire }
    })
}

/// The other rival: the earliest deadline first, and each key's deadline beside it.
fn tree(script: &Script, pace: Pace) -> Costs {
    let (keys, timers) = (&script.keys, script.keys.len());
    let mut tree: BTreeMap<(u64, u32), ()> = BTreeMap::new();
    let mut at_of = vec![0_u64; timers];
    rounds(timers, || {
        let arm = time(timers, || {
            for (key, at) in keys.iter().zip(&script.first) {
                tree.insert((at.0, *key), ());
                at_of[*key as usize] = at.0;
                pace.step();
            }
        });
        let rearm = time(timers, || {
            for (key, at) in keys.iter().zip(&script.second) {
                tree.remove(&(at_of[*key as usize], *key));
                tree.insert((at.0, *key), ());
                at_of[*key as usize] = at.0;
                pace.step();
            }
        });
        let fire = time(timers, || {
            while let Some(fired) = tree.pop_first() {
                black_box(fired);
                pace.step();
            }
        });
        keys.iter().zip(&script.first).for_each(|(key, at)| {
            tree.insert((at.0, *key), ());
            at_of[*key as usize] = at.0;
        });
        let cancel = time(timers, || {
            for key in keys {
                tree.remove(&(at_of[*key as usize], *key));
                pace.step();
            }
        });
        Costs { arm, rearm, cancel, fire }
    })
}

/// The floor: reads as far apart as the keys are, each from an entry of a timer's size.
fn random_read_ns(script: &Script, pace: Pace) -> f64 {
    let entries = vec![[1_u64; 2]; script.keys.len()];
    let repeats = OPERATIONS_MIN.div_ceil(entries.len());
    let read = || {
        let mut sum = 0_u64;
        let took = time(entries.len() * repeats, || {
            for _ in 0..repeats {
                let keys = black_box(&script.keys);
                if pace == Pace::InARow {
                    sum += keys.iter().map(|key| black_box(&entries)[*key as usize][0]).sum::<u64>();
                    continue;
                }
                // The place is the next key's whatever was read, but the machine has to wait for it.
                let mut last = 1;
                for key in keys {
                    last = black_box(&entries)[(*key ^ (last as u32 >> 1)) as usize][0];
                    sum += last;
                }
            }
        });
        black_box(sum);
        took
    };
    median((0..ROUNDS).map(|_| read()).collect())
}

fn main() {
    let (few, many) = (Script::new(FEW), Script::new(MANY));
    let (wheel_few, wheel_many) = (wheel(&few, Pace::InARow), wheel(&many, Pace::OneByOne));
    let (read_few_ns, read_many_ns) =
        (random_read_ns(&few, Pace::InARow), random_read_ns(&many, Pace::OneByOne));
    let (wheel_row, read_row_ns) = (wheel(&many, Pace::InARow), random_read_ns(&many, Pace::InARow));
    let holds = wheel_few.most() <= FEW_NS && wheel_many.most() <= MANY_READS * read_many_ns;
    let line = json!({
        "bench": "wheel",
        "figures": {
            "timers_10000": wheel_few.json(), "timers_1000000": wheel_many.json(),
            "timers_1000000_in_a_row": wheel_row.json(),
        },
        "floor": {
            "random_read_10000_ns": round(read_few_ns), "random_read_1000000_ns": round(read_many_ns),
            "random_read_1000000_in_a_row_ns": round(read_row_ns),
            "other_wheel_10000": other_wheel(&few, Pace::InARow).json(),
            "other_wheel_1000000": other_wheel(&many, Pace::OneByOne).json(),
            "btreemap_10000": tree(&few, Pace::InARow).json(), "btreemap_1000000": tree(&many, Pace::OneByOne).json(),
        },
        "ratio": Value::Null,
        "goal": {"timers_10000_ns": FEW_NS, "timers_1000000_random_reads": MANY_READS},
        "holds": holds,
    });
    println!("{line}");
}
