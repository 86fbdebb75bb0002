//! A whole fleet at several servers of one site: everybody connects, a task goes to all, and the site has every answer in its database.
//!
//! It is bounded in time: when the minutes are over, what was measured until then is told, marked as partial.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::arguments::FleetArguments;
use crate::clock::{SECOND_NS, now_ns};
use crate::measure::{Cost, kernel_bytes};
use crate::scenario::Run;

/// What connecting left behind in the allocator and in files that are under way settles within this.
const SETTLE_NS: u64 = 5 * SECOND_NS;
/// The part of the time that connecting may take: the task needs some, too.
const CONNECTING: f64 = 0.7;
/// So long no answer is kept: the others do not come.
const NOBODY_ANSWERS: Duration = Duration::from_secs(60);

pub(super) fn run(mut run: Run, arguments: &FleetArguments) -> anyhow::Result<Value> {
    let whole = Duration::from_secs(60 * arguments.minutes);
    let ends = Instant::now() + whole;
    let (empty, kernel_before) = (run.server_cost(), kernel_bytes());
    let from_ns = run.connect_within(whole.mul_f64(CONNECTING));
    // Where this machine gives no more, those who are there have the task all the same.
    run.crew.make_do();
    run.rest_until(now_ns() + SETTLE_NS);
    let connects = run.connects();
    let active = run.crew.progress().active as u64;
    let seconds = connects.last_ns.saturating_sub(from_ns) as f64 / SECOND_NS as f64;
    run.figure("servers", run.server_pids.len());
    run.figure("workers", run.crew.workers());
    run.figure("held", active);
    run.figure("connect_seconds", seconds);
    run.figure("connects_per_second", active as f64 / seconds.max(1e-9));
    if let (Some(empty), Some(now)) = (empty, run.server_cost()) {
        let grown = now.resident_bytes.saturating_sub(empty.resident_bytes) as f64;
        run.figure("server_bytes_per_connection", grown / active.max(1) as f64);
        run.figure("server_cpu_us_per_connect", (now.cpu_secs - empty.cpu_secs) * 1e6 / active.max(1) as f64);
    }
    let kernel = kernel_bytes().saturating_sub(kernel_before) as f64;
    run.figure("kernel_bytes_per_connection_both_ends", kernel / active.max(1) as f64);
    run.figure("agent_bytes_per_connection", run.crew.resident_bytes() as f64 / active.max(1) as f64);

    let copied = run.database_bytes();
    let costs_before = (run.server_cost(), run.manager_pid().map(Cost::of));
    let before = run.crew.progress();
    let origin_ns = now_ns();
    let Some(task) = run.ping_all() else { return run.end("fleet") };
    let left = |ends: Instant| ends.saturating_duration_since(Instant::now());
    let (mut most, mut since) = (0, Instant::now());
    let nobody_answers = |kept: u64| {
        if kept > most {
            (most, since) = (kept, Instant::now());
        }
        since.elapsed() >= NOBODY_ANSWERS
    };
    let what = ("a task for all, answers kept", active);
    let waited = run.crew.wait(left(ends), what, |now| now.kept - before.kept, nobody_answers);
    run.note_wait(waited);
    let kept_seconds = (now_ns() - origin_ns) as f64 / SECOND_NS as f64;
    let kept = run.crew.progress().kept - before.kept;
    let counted = run.await_answers(task, kept, left(ends));
    let counted_seconds = (now_ns() - origin_ns) as f64 / SECOND_NS as f64;
    run.is_partial |= counted < active;
    let answers = counted.max(1) as f64;
    if let ((Some(before), Some(manager_before)), Some(after), Some(manager)) =
        (costs_before, run.server_cost(), run.manager_pid())
    {
        run.figure("server_cpu_us_per_task_and_answer", after.since(before).cpu_secs * 1e6 / answers);
        run.figure(
            "manager_cpu_us_per_answer",
            Cost::of(manager).since(manager_before).cpu_secs * 1e6 / answers,
        );
    }
    if let (Some(before), Some(after)) = (copied, run.database_bytes()) {
        run.figure("database_bytes_per_device", before as f64 / run.agents() as f64);
        run.figure("database_bytes_per_answer", after.saturating_sub(before) as f64 / answers);
    }
    let times = run.task_times(task, origin_ns);
    run.figure("had", times.count);
    run.figure("last_has_it_seconds", times.last_ns.saturating_sub(origin_ns) as f64 / SECOND_NS as f64);
    run.figure("answers_kept", kept);
    run.figure("all_answers_kept_seconds", kept_seconds);
    run.figure("answers_in_the_database", counted);
    run.figure("all_answers_in_the_database_seconds", counted_seconds);
    run.latencies = Some(times.latencies);
    run.end("fleet")
}
