//! Tasks to single devices, at a steady pace, while all others are idle: from the moment at which each was meant to be ordered to its
//! device's having it.

use serde_json::Value;
use std::time::Duration;

use bgb_protocol::action::Action;
use bgb_protocol::api::Target;

use crate::arguments::TrickleArguments;
use crate::clock::{SECOND_NS, now_ns};
use crate::measure::Latencies;
use crate::scenario::Run;

/// How long the last ones may take.
const HAD_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn run(mut run: Run, arguments: &TrickleArguments) -> anyhow::Result<Value> {
    anyhow::ensure!(arguments.tasks_per_second > 0.0, "--tasks-per-second is more than 0");
    run.connect(true, true)?;
    let gap_ns = (SECOND_NS as f64 / arguments.tasks_per_second) as u64;
    let (from_ns, had_before) = (now_ns(), run.crew.progress().had);
    let count = (arguments.seconds * SECOND_NS / gap_ns.max(1)).max(1);
    let mut tasks = Vec::new();
    for number in 0..count {
        let intended_ns = from_ns + number * gap_ns;
        run.rest_until(intended_ns);
        if run.is_partial {
            break;
        }
        // Devices in an order that meets each once, far from the one before.
        let device = (number as usize).wrapping_mul(7_919) % run.agents();
        let target = Target::Devices(vec![format!("load-{device}")]);
        let task = run.manager.start_task(Action::Ping, target)?.task;
        tasks.push((task, intended_ns));
    }
    let all = tasks.len() as u64;
    run.wait(
        HAD_WITHIN,
        |now| now.had >= had_before + all,
        |now, _| format!("{} of {all} are there", now.had - had_before),
    );
    let mut latencies = Latencies::default();
    let mut missing = 0;
    for (task, intended_ns) in tasks {
        let times = run.crew.task_times(task, intended_ns)?;
        missing += u64::from(times.count == 0);
        latencies.add(&times.latencies.pack())?;
    }
    run.figure("tasks", all);
    run.figure("missing", missing);
    run.latencies = Some(latencies);
    run.end("trickle")
}
