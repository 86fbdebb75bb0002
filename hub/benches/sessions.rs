//! What sessions cost the hub: `make bench-sessions`. Ends in a line of JSON.
//!
//! - At rest: a million sessions, each of which speaks every 15 minutes. Ten minutes of virtual time are played, each keepalive at its moment
//!   and all timers with them; the time that it really took, over those ten minutes, is the part of a core that they need. What a socket and TLS
//!   cost for each word is not in it.
//! - Signing in: while 1,000 tasks are active, each for a thousandth of the fleet and one for all, from the opened channel to the welcome and the
//!   pushes that are due.
//!
//! The goals: under 5 % of a core, and 50 us or less.

use std::time::{Duration, Instant};

use roaring::RoaringBitmap;
use serde_json::{Value, json};

mod rig;
use rig::{Rig, keepalive, median, rounded};

const SESSIONS: u32 = 1_000_000;
const KEEPALIVE_SECS: u64 = 900;
const TICKS_PER_SECOND: u64 = 10;
/// Virtual seconds that are played.
const PLAYED_SECS: u64 = 600;
const CORE_PERCENT: f64 = 5.0;

const TASKS: u32 = 1_000;
const SIGN_INS: u32 = 20_000;
const SIGN_IN_US: f64 = 50.0;

/// The part of a core, in percent, and nanoseconds for each keepalive.
fn at_rest() -> (f64, f64) {
    let mut rig = Rig::new(SESSIONS as usize);
    (0..SESSIONS).for_each(|device| assert_eq!(rig.sign_in(device).0.sent, 1));
    let first = rig.tick;
    let period = KEEPALIVE_SECS * TICKS_PER_SECOND;
    // Each device has its moment within the period, scattered over it as jitter does.
    let scattered = |number: u64| (number * 7_919 % u64::from(SESSIONS)) as u32;
    let (mut said, mut answered) = (0, 0);
    let begun = Instant::now();
    for tick in 1..=PLAYED_SECS * TICKS_PER_SECOND {
        let due = u64::from(SESSIONS) * tick / period;
        rig.tick = first + tick;
        while said < due {
            answered += rig.input(keepalive(scattered(said))).sent;
            said += 1;
        }
        assert_eq!(rig.advance(first + tick).closed, 0);
    }
    let took = begun.elapsed();
    assert_eq!(answered, said);
    (took.as_secs_f64() * 100.0 / PLAYED_SECS as f64, took.as_nanos() as f64 / said as f64)
}

/// Microseconds: the median, and the 99th of 100.
fn signing_in() -> (f64, f64) {
    let mut rig = Rig::new(SESSIONS as usize);
    for number in 0..TASKS - 1 {
        let targets = (0..SESSIONS).skip(number as usize).step_by(TASKS as usize);
        rig.start_task(number, RoaringBitmap::from_sorted_iter(targets).expect("they rise"));
    }
    rig.start_task(TASKS - 1, (0..SESSIONS).collect());
    let mut took: Vec<Duration> = (0..SIGN_INS)
        .map(|number| {
            // The last class has the task for all only.
            let (out, took) = rig.sign_in(number * (SESSIONS / SIGN_INS) + number % 50);
            assert!(out.pushed == 2 || out.pushed == 1, "{out:?}");
            took
        })
        .collect();
    took.sort();
    let us = |at: usize| took[at].as_secs_f64() * 1e6;
    (median(took.iter().map(|took| took.as_secs_f64() * 1e6).collect()), us(took.len() * 99 / 100))
}

fn main() {
    let (core_percent, keepalive_ns) = at_rest();
    let (sign_in_us, sign_in_p99_us) = signing_in();
    let holds = core_percent < CORE_PERCENT && sign_in_us <= SIGN_IN_US;
    let line = json!({
        "bench": "sessions",
        "figures": {
            "sessions": SESSIONS, "core_percent": rounded(core_percent), "keepalive_ns": rounded(keepalive_ns),
            "active_tasks": TASKS, "sign_in_us": rounded(sign_in_us), "sign_in_p99_us": rounded(sign_in_p99_us),
        },
        "floor": Value::Null,
        "ratio": Value::Null,
        "goal": {"core_percent": CORE_PERCENT, "sign_in_us": SIGN_IN_US},
        "holds": holds,
    });
    println!("{line}");
}
