//! How much this machine holds: more and more connections, and at each step what a push to all and to one takes, until a limit is met.
//!
//! It ends in a page for people: a row a step, and which limit it was. Server and agents share the machine, so the figures are on the safe side.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::arguments::SizeArguments;
use crate::clock::{SECOND_NS, now_ns};
use crate::interrupt;
use crate::plots::{self, Series};
use crate::scenario::Run;
use crate::scenario::trickle::trickle;

/// The first step; each is twice the one before.
const FIRST: usize = 500;
/// Tasks to single devices at each step, so far apart.
const SINGLE_TASKS: u64 = 100;
const SINGLE_GAP_NS: u64 = SECOND_NS / 20;
/// How long everybody may take to have a task and answer it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(120);

/// What a step came to.
#[derive(Clone, Copy, Debug, Serialize)]
struct Step {
    connections: usize,
    connects_per_second: f64,
    server_bytes_per_connection: f64,
    all_have_it_ms: f64,
    one_has_it_p99_ms: f64,
}

pub(super) fn run(mut run: Run, arguments: &SizeArguments) -> anyhow::Result<Value> {
    let empty = run.server_cost();
    let (mut steps, mut held): (Vec<Step>, usize) = (Vec::new(), 0);
    let mut limit = format!("none was met: --agents {} is the most that was asked for", run.agents());
    while held < run.agents() && !run.is_partial {
        let upto = run.agents().min(if held == 0 { FIRST } else { 2 * held });
        let from_ns = run.connect_upto(upto, true, true);
        let connects = run.connects();
        if let Some(why) = stopped(&run, upto) {
            limit = why;
            break;
        }
        let seconds = connects.last_ns.saturating_sub(from_ns) as f64 / SECOND_NS as f64;
        let grown = run
            .server_cost()
            .zip(empty)
            .map(|(now, empty)| now.resident_bytes.saturating_sub(empty.resident_bytes) as f64 / upto as f64);
        let Some(all_have_it_ms) = push_to_all(&mut run, upto as u64)? else {
            limit = stopped(&run, upto).unwrap_or_else(|| {
                format!("not all {upto} had a task within {} s", ANSWERED_WITHIN.as_secs())
            });
            break;
        };
        let ones = trickle(&mut run, SINGLE_TASKS, SINGLE_GAP_NS)?;
        let step = Step {
            connections: upto,
            connects_per_second: (upto - held) as f64 / seconds.max(1e-9),
            server_bytes_per_connection: grown.unwrap_or_default(),
            all_have_it_ms,
            one_has_it_p99_ms: ones.latencies.summary().p99_ms,
        };
        eprintln!("{}", row(&step));
        steps.push(step);
        held = upto;
        if let Some(why) = stopped(&run, upto) {
            limit = why;
            break;
        }
        if ones.missing > 0 {
            limit = format!("{} of {SINGLE_TASKS} tasks for one device did not reach it", ones.missing);
            break;
        }
        if step.one_has_it_p99_ms > arguments.latency_ms {
            limit =
                format!("a push to one device takes more than {} ms (--latency-ms)", arguments.latency_ms);
            break;
        }
    }
    if let Some(folder) = run.plots() {
        std::fs::create_dir_all(&folder)?;
        let kib = |step: &Step| (step.connections as f64, step.server_bytes_per_connection / 1_024.0);
        let memory = [Series { name: "memory".to_owned(), points: steps.iter().map(kib).collect() }];
        plots::by_connections(
            &folder.join("size-memory.svg"),
            "the server's memory of a connection",
            "KiB",
            &memory,
        )?;
    }
    run.figure("steps", &steps);
    run.figure("limit", &limit);
    run.figure("page", page(&steps, &limit));
    run.end("size")
}

/// Why no more can be held, if so.
fn stopped(run: &Run, upto: usize) -> Option<String> {
    let progress = run.crew.progress();
    if interrupt::is_wanted() {
        return Some("somebody has ended it, and this is as far as it came".to_owned());
    }
    if let Some(trouble) = run.crew.troubles.first() {
        return Some(trouble.clone());
    }
    (progress.active < upto).then(|| format!("of {upto} connections {} came about", progress.active))
}

/// Milliseconds from the order to the last one's having it; `None` when somebody does not have it.
fn push_to_all(run: &mut Run, all: u64) -> anyhow::Result<Option<f64>> {
    let before = run.crew.progress();
    let origin_ns = now_ns();
    let Some(task) = run.ping_all() else { return Ok(None) };
    run.wait(
        ANSWERED_WITHIN,
        |now| now.kept >= before.kept + all,
        |now, _| format!("a task for all: {} of {all} have it", now.had - before.had),
    );
    // Else whoever joins at the next step would hear of it then.
    let cancelled = run.manager.cancel_task(task);
    run.or_partial(cancelled);
    let times = run.task_times(task, origin_ns);
    let ms = times.last_ns.saturating_sub(origin_ns) as f64 * 1_000.0 / SECOND_NS as f64;
    Ok((times.count >= all).then_some(ms))
}

fn row(step: &Step) -> String {
    format!(
        "{:>11} {:>12.0} {:>14.1} {:>16.0} {:>16.1}",
        step.connections,
        step.connects_per_second,
        step.server_bytes_per_connection / 1_024.0,
        step.all_have_it_ms,
        step.one_has_it_p99_ms,
    )
}

/// The page.
fn page(steps: &[Step], limit: &str) -> String {
    let mut page =
        String::from("connections   connects/s   server KiB each   all have a task   one has it (p99)\n");
    for step in steps {
        let _ = writeln!(page, "{} ms", row(step));
    }
    let _ = write!(page, "The limit: {limit}.");
    page
}
