//! Connections at rest: what each costs the server in memory, beyond what it has without them, and in time.

use std::time::Duration;

use crate::arguments::IdleArguments;
use crate::measure::Cost;
use crate::scenario::Run;

pub(super) fn run(mut run: Run, arguments: &IdleArguments) -> anyhow::Result<()> {
    let empty = run.server_cost();
    run.connect(true, true)?;
    // What connecting left behind in the allocator and in files that are under way settles.
    rest(&mut run, 3);
    let before = run.server_cost();
    rest(&mut run, arguments.seconds);
    let after = run.server_cost();
    let (active, lost) = (run.crew.progress().active, run.agents() - run.crew.progress().active);
    run.figure("held", active);
    run.figure("not_held", lost);
    if let (Some(empty), Some(before), Some(after)) = (empty, before, after) {
        let Cost { cpu_secs, resident_bytes } = after.since(before);
        let grown = resident_bytes.saturating_sub(empty.resident_bytes);
        run.figure("server_resident_bytes", resident_bytes);
        run.figure("bytes_per_connection", grown as f64 / active.max(1) as f64);
        run.figure("server_cpu_percent", cpu_secs * 100.0 / arguments.seconds.max(1) as f64);
    }
    run.end("idle")
}

fn rest(run: &mut Run, seconds: u64) {
    let until = std::time::Instant::now() + Duration::from_secs(seconds);
    run.wait(
        Duration::from_secs(seconds + 1),
        |_| std::time::Instant::now() >= until,
        |progress, passed| {
            let left = seconds.saturating_sub(passed.as_secs());
            format!("at rest: {} connections, {left} s left", progress.active)
        },
    );
}
