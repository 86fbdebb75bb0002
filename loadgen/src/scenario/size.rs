//! How much this machine holds: more and more connections, and at each step what a push to all and to one takes, until a limit is met; where that
//! is how late a push is, it is closed in on.
//!
//! It ends in a page for people: a row a step, and which limit it was. Server and agents share the machine, so the figures are on the safe side.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::arguments::{RunArguments, SizeArguments};
use crate::clock::{SECOND_NS, now_ns};
use crate::interrupt;
use crate::plots::{self, Series};
use crate::scenario::trickle::trickle;
use crate::scenario::{Run, SERVERS_MAX};

/// The first step; each is twice the one before, until it is too many.
const FIRST: usize = 500;
/// Descriptors that a server needs for other things than connections, and has room for beside them.
const DESCRIPTORS_KEPT: usize = 1_000;
/// Tasks to single devices at each step, so far apart.
const SINGLE_TASKS: u64 = 100;
const SINGLE_GAP_NS: u64 = SECOND_NS / 20;
/// How long everybody may take to have a task and answer it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(120);

/// What a step came to.
#[derive(Clone, Copy, Debug, Serialize)]
struct Step {
    connections: usize,
    /// With full handshakes.
    connects_per_second: Option<f64>,
    /// Where it is known which processes the servers are.
    server_bytes_per_connection: Option<f64>,
    all_have_it_ms: f64,
    one_has_it_p99_ms: f64,
}

/// The run's arguments: where nobody has said how many servers, as many as it takes for none to have more connections than descriptors.
pub(super) fn arguments_of(own: &SizeArguments) -> RunArguments {
    let mut run = own.run.clone();
    if run.servers == 0 {
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let of_one = most.map_or(usize::MAX, |most| most as usize).saturating_sub(DESCRIPTORS_KEPT).max(1);
        run.servers = (run.agents * run.way.road.sockets()).div_ceil(of_one).clamp(1, SERVERS_MAX);
    }
    run
}

pub(super) fn run(mut run: Run, arguments: &SizeArguments) -> anyhow::Result<Value> {
    let empty = run.server_cost();
    let (mut steps, mut held, mut too_many): (Vec<Step>, usize, Option<usize>) = (Vec::new(), 0, None);
    let mut limit = format!("none was met: --agents {} is the most that was asked for", run.agents());
    while let Some(upto) = next_step(held, too_many, run.agents()).filter(|_| !run.is_partial) {
        if run.crew.progress().active > upto {
            run.disconnect();
        }
        // Closing in, everybody resumes, and an allocator that has held more does not tell what so many take.
        let is_new = steps.iter().all(|step| step.connections < upto);
        let before = run.crew.progress().active;
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
            connects_per_second: is_new.then(|| (upto - before) as f64 / seconds.max(1e-9)),
            server_bytes_per_connection: grown.filter(|_| is_new),
            all_have_it_ms,
            one_has_it_p99_ms: ones.latencies.summary().p99_ms,
        };
        eprintln!("{}", row(&step));
        steps.push(step);
        if let Some(why) = stopped(&run, upto) {
            limit = why;
            break;
        }
        if ones.missing > 0 {
            limit = format!("{} of {SINGLE_TASKS} tasks for one device did not reach it", ones.missing);
            break;
        }
        if step.one_has_it_p99_ms > arguments.latency_ms {
            too_many = Some(upto);
            limit = format!(
                "with {upto} a push to one device takes more than {} ms (--latency-ms)",
                arguments.latency_ms
            );
        } else {
            held = upto;
        }
    }
    steps.sort_by_key(|step| step.connections);
    run.note_lateness();
    if let Some(folder) = run.plots() {
        std::fs::create_dir_all(&folder)?;
        let kib = |step: &Step| Some((step.connections as f64, step.server_bytes_per_connection? / 1_024.0));
        let memory = [Series { name: "memory".to_owned(), points: steps.iter().filter_map(kib).collect() }];
        plots::by_connections(
            &folder.join("size-memory.svg"),
            "the server's memory of a connection",
            "KiB",
            &memory,
        )?;
    }
    run.figure("steps", &steps);
    run.figure("limit", &limit);
    run.figure("page", page(&steps, held, &limit, &run.crew.troubles));
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
    run.wait(ANSWERED_WITHIN, ("a task for all, answers kept", all), |now| now.kept - before.kept);
    // Else whoever joins at the next step would hear of it then.
    let cancelled = run.manager.cancel_task(task);
    run.or_partial(cancelled);
    let times = run.task_times(task, origin_ns);
    let ms = times.last_ns.saturating_sub(origin_ns) as f64 * 1_000.0 / SECOND_NS as f64;
    Ok((times.count >= all).then_some(ms))
}

/// How many to connect next: twice as many as before until it is too many, and then between the two, until that is known to an eighth.
fn next_step(held: usize, too_many: Option<usize>, most: usize) -> Option<usize> {
    match too_many {
        None if held == 0 => Some(FIRST.min(most)),
        None => (held < most).then(|| (2 * held).min(most)),
        Some(too_many) => (too_many - held > held.max(FIRST) / 8).then_some(usize::midpoint(held, too_many)),
    }
}

fn row(step: &Step) -> String {
    let or_none = |figure: Option<String>| figure.unwrap_or_else(|| "-".to_owned());
    let connects = or_none(step.connects_per_second.map(|often| format!("{often:.0}")));
    let kib = or_none(step.server_bytes_per_connection.map(|bytes| format!("{:.1}", bytes / 1_024.0)));
    format!(
        "{:>11} {connects:>12} {kib:>14} {:>16.0} {:>16.1}",
        step.connections, step.all_have_it_ms, step.one_has_it_p99_ms,
    )
}

/// The page.
fn page(steps: &[Step], held: usize, limit: &str, troubles: &[String]) -> String {
    let mut page =
        String::from("connections   connects/s   server KiB each   all have a task   one has it (p99)\n");
    for step in steps {
        let _ = writeln!(page, "{} ms", row(step));
    }
    let _ = write!(page, "This machine held {held}. The limit: {limit}.");
    for trouble in troubles.iter().filter(|trouble| !limit.contains(*trouble)) {
        let _ = write!(page, "\nBeside it: {trouble}.");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_double_until_it_is_too_many_and_then_close_in() {
        let steps = |fits: usize, most: usize| {
            let (mut held, mut too_many, mut steps) = (0, None, Vec::new());
            while let Some(upto) = next_step(held, too_many, most) {
                steps.push(upto);
                if upto <= fits {
                    held = upto;
                } else {
                    too_many = Some(upto);
                }
            }
            (held, steps)
        };
        assert_eq!(steps(9_999, 1_200), (1_200, vec![500, 1_000, 1_200]));
        assert_eq!(steps(2_600, 50_000), (2_500, vec![500, 1_000, 2_000, 4_000, 3_000, 2_500, 2_750]));
        assert_eq!(steps(100, 50_000).0, 93, "fewer than the first step");
        assert_eq!(steps(0, 3), (0, vec![3]));
    }
}
