//! Everybody connects: how fast, and what it costs the server. Latency counts from the moment at which each was meant to begin, to its
//! welcome.

use crate::arguments::ConnectArguments;
use crate::clock::SECOND_NS;
use crate::measure::Cost;
use crate::scenario::Run;
use serde_json::Value;

pub(super) fn run(mut run: Run, arguments: &ConnectArguments) -> anyhow::Result<Value> {
    if arguments.resumed {
        run.connect(true, false);
        run.disconnect();
    }
    let before = run.server_cost();
    let from_ns = run.connect(arguments.resumed, false);
    let after = run.server_cost();
    let connects = run.connects();
    let there = connects.full + connects.resumed;
    let seconds = connects.last_ns.saturating_sub(from_ns) as f64 / SECOND_NS as f64;
    run.figure("connected", there);
    run.figure("resumed", connects.resumed);
    run.figure("seconds", seconds);
    run.figure("per_second", there as f64 / seconds.max(1e-9));
    if let (Some(before), Some(after)) = (before, after) {
        let Cost { cpu_secs, resident_bytes } = after.since(before);
        run.figure("server_cpu_us_per_connect", cpu_secs * 1e6 / there.max(1) as f64);
        run.figure("server_resident_bytes", resident_bytes);
    }
    run.latencies = Some(connects.latencies);
    run.end("connect")
}
