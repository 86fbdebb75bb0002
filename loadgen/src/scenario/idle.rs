//! Connections at rest: what each costs the server in memory, beyond what it has without them, and in time.

use crate::arguments::IdleArguments;
use crate::clock::{SECOND_NS, now_ns};
use crate::measure::{Cost, kernel_bytes};
use crate::scenario::Run;
use serde_json::Value;

/// What connecting left behind in the allocator and in files that are under way settles within this.
const SETTLE_NS: u64 = 3 * SECOND_NS;

pub(super) fn run(mut run: Run, arguments: &IdleArguments) -> anyhow::Result<Value> {
    let (empty, kernel_empty) = (run.server_cost(), kernel_bytes());
    run.connect(true, true);
    run.rest_until(now_ns() + SETTLE_NS);
    let (before, kernel) = (run.server_cost(), kernel_bytes());
    let from_ns = now_ns();
    run.rest_until(from_ns + arguments.seconds * SECOND_NS);
    let (after, rested_ns) = (run.server_cost(), now_ns() - from_ns);
    let (active, lost) = (run.crew.progress().active, run.agents() - run.crew.progress().active);
    run.figure("rested_seconds", rested_ns as f64 / SECOND_NS as f64);
    run.figure("held", active);
    run.figure("not_held", lost);
    // Of sockets' structures and buffers, and of whatever else this machine does meanwhile.
    let kernel = kernel.saturating_sub(kernel_empty) as f64;
    run.figure("kernel_bytes_per_connection_both_ends", kernel / active.max(1) as f64);
    if let (Some(empty), Some(before), Some(after)) = (empty, before, after) {
        let Cost { cpu_secs, resident_bytes } = after.since(before);
        let grown = resident_bytes.saturating_sub(empty.resident_bytes);
        run.figure("server_resident_bytes", resident_bytes);
        run.figure("bytes_per_connection", grown as f64 / active.max(1) as f64);
        run.figure("server_cpu_percent", cpu_secs * 100.0 * SECOND_NS as f64 / rested_ns.max(1) as f64);
    }
    run.end("idle")
}
