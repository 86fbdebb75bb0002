//! How time and memory grow with the fleet, from 1,000 to 1,000,000 sessions: `make bench-growth`. Ends in a line of JSON.
//!
//! At each size: what a sign-in takes, what a task to everybody takes for each of them, what a keepalive takes, and what a session holds in memory.
//! Growth is flat when the cost of each stays the same; it may rise with what a processor's caches do not hold any more, and with the depth of a
//! tree, but no further. What the caches make of it is measured beside: a walk over as many places, as far from each other as sessions are, in the
//! same order, where each read waits for the one before.
//!
//! The goal: at 1,000,000 each takes four times what it takes at 1,000 at the most; a keepalive, which takes less than a quarter of such a read
//! at 1,000, where all that it touches is at hand, may take three reads more instead (as many as the wheel's goal grants a timer); and a session's
//! memory is no more.

use std::time::Instant;

use serde_json::{Value, json};

mod rig;
use rig::{Rig, keepalive, median, resident_bytes, rounded};

const SIZES: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// Sessions that are measured at each size at the least, in as many hubs as that takes.
const MEASURED_MIN: u32 = 100_000;
const TIMES: f64 = 4.0;
const READS: f64 = 3.0;
/// Memory comes in pages and in doublings, so a session's share of it is not the same at all sizes.
const MEMORY_TIMES: f64 = 1.5;

/// What one session costs.
struct Costs {
    sign_in_ns: f64,
    push_ns: f64,
    keepalive_ns: f64,
    /// Of memory, in places of a session's size.
    read_ns: f64,
    bytes: f64,
}

/// What is to stay flat, by its name.
type Operation = (&'static str, fn(&Costs) -> f64);

/// In no order that any structure would like.
fn in_disorder(sessions: u32) -> impl Iterator<Item = u32> {
    (0..sessions).map(move |number| (u64::from(number) * 7_919 % u64::from(sessions)) as u32)
}

/// What a read of the next of so many places takes, when the place before says where it is.
fn read_ns(sessions: u32, bytes: f64) -> f64 {
    let words = (bytes.max(64.0) / 8.0) as usize;
    let mut places = vec![0_u64; sessions as usize * words];
    let mut last = 0;
    for place in in_disorder(sessions).skip(1).chain([0]) {
        places[last] = u64::from(place) * words as u64;
        last = place as usize * words;
    }
    let begun = Instant::now();
    let end = (0..sessions).fold(0, |at, _| places[at as usize]);
    let took = begun.elapsed();
    assert_eq!(std::hint::black_box(end), 0, "the walk ends where it began");
    took.as_nanos() as f64 / f64::from(sessions)
}

/// In a hub with so many sessions.
fn costs(sessions: u32) -> Costs {
    let before = resident_bytes();
    let mut rig = Rig::new(sessions as usize);
    let order: Vec<u32> = in_disorder(sessions).collect();
    let each = |took: std::time::Duration| took.as_nanos() as f64 / f64::from(sessions);
    let sign_in_ns = order.iter().map(|device| rig.sign_in(*device).1.as_nanos() as f64).sum::<f64>();
    let grown = resident_bytes().saturating_sub(before);

    let begun = Instant::now();
    let mut pushed = rig.start_task(1, (0..sessions).collect()).pushed;
    pushed += rig.advance(rig.tick + 1).pushed;
    let push_ns = each(begun.elapsed());
    assert_eq!(pushed, u64::from(sessions));

    let begun = Instant::now();
    order.iter().for_each(|device| assert_eq!(rig.input(keepalive(*device)).sent, 1));
    let keepalive_ns = each(begun.elapsed());
    let bytes = grown as f64 / f64::from(sessions);
    Costs {
        sign_in_ns: sign_in_ns / f64::from(sessions),
        push_ns,
        keepalive_ns,
        read_ns: read_ns(sessions, bytes),
        bytes,
    }
}

/// The median of as many hubs of this size as it takes to measure enough sessions. Memory is that of the first, which finds nothing left over.
fn median_costs(sessions: u32) -> Costs {
    let rounds: Vec<Costs> = (0..MEASURED_MIN.div_ceil(sessions)).map(|_| costs(sessions)).collect();
    let of = |get: fn(&Costs) -> f64| median(rounds.iter().map(get).collect());
    Costs {
        sign_in_ns: of(|costs| costs.sign_in_ns),
        push_ns: of(|costs| costs.push_ns),
        keepalive_ns: of(|costs| costs.keepalive_ns),
        read_ns: of(|costs| costs.read_ns),
        bytes: rounds[0].bytes,
    }
}

fn json_of(sessions: u32, costs: &Costs) -> Value {
    json!({
        "sessions": sessions, "sign_in_ns": rounded(costs.sign_in_ns), "push_ns": rounded(costs.push_ns),
        "keepalive_ns": rounded(costs.keepalive_ns), "read_ns": rounded(costs.read_ns), "bytes": costs.bytes.round(),
    })
}

fn main() {
    // From the smallest on: each finds little left over of those before it.
    let steps: Vec<(u32, Costs)> =
        SIZES.iter().map(|sessions| (*sessions, median_costs(*sessions))).collect();
    let (few, many) = (&steps[0].1, &steps[steps.len() - 1].1);
    let ten_thousand = &steps[1].1;
    let operations: [Operation; 3] = [
        ("sign_in", |costs| costs.sign_in_ns),
        ("push", |costs| costs.push_ns),
        ("keepalive", |costs| costs.keepalive_ns),
    ];
    let memory_times = many.bytes / ten_thousand.bytes;
    let is_flat = |(name, of): &Operation| {
        let reads = if *name == "keepalive" { READS } else { 0.0 };
        of(many) <= (of(few) * TIMES).max(of(few) + reads * many.read_ns)
    };
    let holds = operations.iter().all(is_flat) && memory_times <= MEMORY_TIMES;
    let mut figures = json!({
        "steps": steps.iter().map(|(sessions, costs)| json_of(*sessions, costs)).collect::<Vec<_>>(),
        "memory_times_of_10000": rounded(memory_times),
    });
    for (name, of) in operations {
        figures[format!("{name}_times")] = json!(rounded(of(many) / of(few)));
        figures[format!("{name}_reads_more")] = json!(rounded((of(many) - of(few)) / many.read_ns));
    }
    let line = json!({
        "bench": "growth",
        "figures": figures,
        "floor": Value::Null,
        "ratio": Value::Null,
        "goal": {"times": TIMES, "or_reads_more_of_a_keepalive": READS, "memory_times": MEMORY_TIMES},
        "holds": holds,
    });
    println!("{line}");
}
