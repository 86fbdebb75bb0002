//! Hours of the same: tasks for one and naps, and at each minute what the servers have grown to. What grows and does not stop is a leak.
//!
//! The first tenth of the time counts as warming up: caches, pools and the allocator fill in it. After it memory and descriptors must stay.

use serde::Serialize;
use serde_json::Value;

use crate::arguments::SoakArguments;
use crate::clock::{SECOND_NS, now_ns};
use crate::manager::VALID_FOR_ONE;
use crate::measure::{Latencies, descriptors};
use crate::plots::{self, Series};
use crate::scenario::Run;
use crate::worker::link;

/// One machine in so many takes a nap each minute.
const NAPS_ONE_IN: usize = 60;
/// How long the last tasks may take.
const HAD_WITHIN_NS: u64 = 10 * SECOND_NS;
/// From one sample to the next.
const SAMPLE_NS: u64 = 60 * SECOND_NS;

/// What the servers had at a moment.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    minutes: f64,
    resident_bytes: u64,
    descriptors: u64,
    active: usize,
}

pub(super) fn run(mut run: Run, arguments: &SoakArguments) -> anyhow::Result<Value> {
    // A site has 1,000 active tasks, and each is valid for a minute.
    anyhow::ensure!(
        arguments.tasks_per_second > 0.0 && arguments.tasks_per_second <= 16.0,
        "--tasks-per-second is more than 0, and 16 at the most"
    );
    anyhow::ensure!(
        !run.server_pids.is_empty(),
        "--server-pid says which process of the site is to be watched; without it nothing would be measured"
    );
    run.connect(true, true);
    let gap_ns = ((SECOND_NS as f64 / arguments.tasks_per_second) as u64).max(1);
    let active = run.crew.progress().active.max(1);
    let (begun_ns, mut latencies, mut samples) = (now_ns(), Latencies::default(), Vec::new());
    let (mut ordered, mut missing, mut waiting) = (0_usize, 0_u64, Vec::new());
    let ends_ns = begun_ns + arguments.minutes * 60 * SECOND_NS;
    run.crew.begin("soaking", ends_ns);
    let mut minute = 0;
    while !run.is_partial && now_ns() < ends_ns {
        let sample_ns = begun_ns + minute * SAMPLE_NS;
        let mut tasks = Vec::new();
        while !run.is_partial && begun_ns + ordered as u64 * gap_ns < sample_ns + SAMPLE_NS {
            let intended_ns = begun_ns + ordered as u64 * gap_ns;
            run.rest_until(intended_ns);
            if run.is_partial {
                break;
            }
            let device = ordered.wrapping_mul(7_919) % active;
            let Some(task) = run.ping_one(device) else { break };
            tasks.push((task, intended_ns));
            ordered += 1;
        }
        run.rest_until(sample_ns + SAMPLE_NS);
        // Those of the last moments are still on their way; whoever sleeps has its own when it wakes, within its validity.
        let open = waiting.drain(..).chain(tasks).map(|(task, intended_ns)| (task, intended_ns, now_ns()));
        for (task, intended_ns, asked_ns) in open.collect::<Vec<_>>() {
            let is_over = asked_ns.saturating_sub(intended_ns) > VALID_FOR_ONE.as_nanos() as u64;
            let times = run.task_times(task, intended_ns);
            latencies.add(&times.latencies.pack())?;
            match times.count {
                0 if is_over => missing += 1,
                0 => waiting.push((task, intended_ns)),
                _ => {}
            }
        }
        minute += 1;
        if run.is_partial {
            // A part of a minute is no sample.
            break;
        }
        samples.push(Sample {
            minutes: minute as f64,
            resident_bytes: run.server_cost().map_or(0, |cost| cost.resident_bytes),
            descriptors: run.server_pids.iter().map(|pid| descriptors(*pid)).sum(),
            active: run.crew.progress().active,
        });
        run.crew.tell(&link::Command::Nap { one_in: NAPS_ONE_IN, turn: minute as usize % NAPS_ONE_IN });
    }
    run.crew.finish();
    run.rest_until(now_ns() + HAD_WITHIN_NS);
    for (task, intended_ns) in waiting {
        let times = run.task_times(task, intended_ns);
        latencies.add(&times.latencies.pack())?;
        missing += u64::from(times.count == 0);
    }
    if let Some(folder) = run.plots() {
        let megabytes = |sample: &Sample| (sample.minutes * 60.0, sample.resident_bytes as f64 / 1e6);
        let memory =
            [Series { name: "resident".to_owned(), points: samples.iter().map(megabytes).collect() }];
        plots::over_time(&folder.join("soak-memory.svg"), "the servers' memory", "MB", &memory)?;
    }
    run.figure("tasks", ordered);
    run.figure("missing", missing);
    run.figure(
        "memory_growth_bytes_an_hour",
        growth_an_hour(&samples, |sample| sample.resident_bytes as f64),
    );
    run.figure("descriptor_growth_an_hour", growth_an_hour(&samples, |sample| sample.descriptors as f64));
    run.figure("samples", &samples);
    run.latencies = Some(latencies);
    run.end("soak")
}

/// The slope of the line that fits best (least squares) after warming up; `None` where there is too little to tell.
fn growth_an_hour(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> Option<f64> {
    let warm = &samples[samples.len().div_ceil(10)..];
    if warm.len() < 3 {
        return None;
    }
    let count = warm.len() as f64;
    let mean = |get: &dyn Fn(&Sample) -> f64| warm.iter().map(get).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(&|sample| sample.minutes), mean(&|sample| of(sample)));
    let along = |sample: &Sample| sample.minutes - mean_x;
    let above: f64 = warm.iter().map(|sample| along(sample) * (of(sample) - mean_y)).sum();
    let below: f64 = warm.iter().map(|sample| along(sample).powi(2)).sum();
    Some(above / below * 60.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_from_what_only_wavers() {
        let samples = |bytes: &dyn Fn(u64) -> u64| -> Vec<Sample> {
            let sample = |minute: u64| Sample {
                minutes: minute as f64,
                resident_bytes: bytes(minute),
                descriptors: 7,
                active: 1,
            };
            (1..=60).map(sample).collect()
        };
        let growth = |bytes: &dyn Fn(u64) -> u64| {
            growth_an_hour(&samples(bytes), |sample| sample.resident_bytes as f64).unwrap()
        };
        assert!((growth(&|minute| 1_000 + 10 * minute) - 600.0).abs() < 1e-6);
        assert!(growth(&|minute| 1_000 + minute % 2).abs() < 5.0);
        assert!(
            growth(&|minute| if minute < 6 { 0 } else { 1_000 }).abs() < 1e-6,
            "warming up does not count"
        );
        assert_eq!(growth_an_hour(&samples(&|_| 1)[..3], |_| 1.0), None);
    }
}
