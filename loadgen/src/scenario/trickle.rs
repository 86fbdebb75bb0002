//! Tasks to single devices, at a steady pace, while all others are idle: from the moment at which each was meant to be ordered to its
//! device's having it.

use std::time::Duration;

use serde_json::Value;

use crate::arguments::TrickleArguments;
use crate::clock::{SECOND_NS, now_ns};
use crate::manager::VALID_FOR_ONE;
use crate::measure::Latencies;
use crate::scenario::Run;

/// Active tasks of a site (docs/configuration.md).
const TASKS_MAX: u64 = 1_000;
/// How long the last ones may take.
const HAD_WITHIN: Duration = Duration::from_secs(10);

/// What came of some tasks to single devices.
#[derive(Default)]
pub(super) struct Trickled {
    pub(super) tasks: u64,
    /// Tasks that their device never had.
    pub(super) missing: u64,
    pub(super) latencies: Latencies,
}

impl Trickled {
    /// Others as well.
    pub(super) fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        (self.tasks, self.missing) = (self.tasks + other.tasks, self.missing + other.missing);
        self.latencies.add(&other.latencies.pack())
    }
}

pub(super) fn run(mut run: Run, arguments: &TrickleArguments) -> anyhow::Result<Value> {
    anyhow::ensure!(arguments.tasks_per_second > 0.0, "--tasks-per-second is more than 0");
    let at_a_time = arguments.tasks_per_second * arguments.seconds.min(VALID_FOR_ONE.as_secs()) as f64;
    anyhow::ensure!(
        at_a_time <= TASKS_MAX as f64,
        "a site has {TASKS_MAX} active tasks at a time, and each is valid for a minute: --tasks-per-second is 16 at the most, or --seconds less"
    );
    run.connect(true, true);
    let gap_ns = (SECOND_NS as f64 / arguments.tasks_per_second) as u64;
    let count = (arguments.seconds * SECOND_NS / gap_ns.max(1)).max(1);
    let Trickled { tasks, missing, latencies } = trickle(&mut run, count, gap_ns)?;
    run.figure("tasks", tasks);
    run.figure("missing", missing);
    run.latencies = Some(latencies);
    run.end("trickle")
}

/// Orders so many tasks, `gap_ns` from one to the next, each for one of those who are connected.
pub(super) fn trickle(run: &mut Run, count: u64, gap_ns: u64) -> anyhow::Result<Trickled> {
    let before = run.crew.progress();
    let mut tasks = Vec::new();
    let from_ns = now_ns();
    run.crew.begin("tasks for one", from_ns + count * gap_ns);
    for number in 0..count {
        let intended_ns = from_ns + number * gap_ns;
        run.rest_until(intended_ns);
        if run.is_partial {
            break;
        }
        // Devices in an order that meets each once, far from the one before.
        let device = (number as usize).wrapping_mul(7_919) % before.active.max(1);
        let Some(task) = run.ping_one(device) else { break };
        tasks.push((task, intended_ns));
    }
    let all = tasks.len() as u64;
    run.crew.finish();
    run.wait(HAD_WITHIN, ("tasks for one, had", all), |now| now.had - before.had);
    let mut trickled = Trickled { tasks: all, missing: 0, latencies: Latencies::default() };
    for (task, intended_ns) in tasks {
        let times = run.task_times(task, intended_ns);
        trickled.missing += u64::from(times.count == 0);
        trickled.latencies.add(&times.latencies.pack())?;
    }
    Ok(trickled)
}
