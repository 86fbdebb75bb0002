//! Tasks to everybody, one after the other: from the moment at which the order is given to each agent's having it, and to the last one's; and
//! from the first one's having it to the last one's, which is the server's own part.
//!
//! The next is given when the site has counted everybody's answer to the one before, and rests: else signatures, given and verified, would be
//! measured.

use serde_json::Value;
use std::time::Duration;

use crate::arguments::FanoutArguments;
use crate::clock::{SECOND_NS, now_ns};
use crate::measure::{Cost, Latencies, median};
use crate::scenario::Run;

/// What TLS 1.3 puts around a frame: header, type and tag (RFC 8446, 5.2).
const RECORD_OVERHEAD: usize = 5 + 1 + 16;
/// In peace before the next task.
const REST_NS: u64 = SECOND_NS / 2;
/// How long everybody may take to have a task and answer it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(120);

pub(super) fn run(mut run: Run, arguments: &FanoutArguments) -> anyhow::Result<Value> {
    run.connect(true, true);
    let all = run.crew.progress().active as u64;
    let (mut latencies, mut last_ms, mut costs_us) = (Latencies::default(), Vec::new(), Vec::new());
    let (mut accepted_ms, mut spread_ms) = (Vec::new(), Vec::new());
    let ms = |from_ns: u64, to_ns: u64| to_ns.saturating_sub(from_ns) as f64 * 1_000.0 / SECOND_NS as f64;
    let mut frame_bytes = 0;
    for number in 1..=arguments.tasks {
        if run.is_partial {
            break;
        }
        let (before, progress) = (run.server_cost(), run.crew.progress());
        let origin_ns = now_ns();
        let Some(task) = run.ping_all() else { break };
        let accepted = ms(origin_ns, now_ns());
        run.wait(ANSWERED_WITHIN, (&format!("task {number}, had"), all), |now| now.had - progress.had);
        let kept = format!("task {number}, answers kept");
        run.wait(ANSWERED_WITHIN, (&kept, all), |now| now.kept - progress.kept);
        run.await_answers(task, all, ANSWERED_WITHIN);
        run.rest_until(now_ns() + REST_NS);
        let times = run.task_times(task, origin_ns);
        run.is_partial |= times.count < all;
        if run.is_partial {
            // A part of a fan-out has no rate that could stand beside that of a whole one.
            break;
        }
        frame_bytes = times.frame_bytes;
        accepted_ms.push(accepted);
        last_ms.push(ms(origin_ns, times.last_ns));
        spread_ms.push(ms(times.first_ns, times.last_ns));
        if let (Some(before), Some(after)) = (before, run.server_cost()) {
            let Cost { cpu_secs, .. } = after.since(before);
            costs_us.push(cpu_secs * 1e6 / all.max(1) as f64);
        }
        latencies.add(&times.latencies.pack())?;
    }
    // In their order, before they are sorted for the medians.
    run.figure("from_first_to_last_ms", &spread_ms);
    run.figure("last_has_it_ms", &last_ms);
    run.figure("tasks", last_ms.len());
    if !spread_ms.is_empty() {
        let fan_out_ms = median(&mut spread_ms);
        run.figure("push_record_bytes", frame_bytes + RECORD_OVERHEAD);
        run.figure("accepted_median_ms", median(&mut accepted_ms));
        run.figure("last_has_it_median_ms", median(&mut last_ms));
        run.figure("from_first_to_last_median_ms", fan_out_ms);
        run.figure("pushes_per_second", all.saturating_sub(1) as f64 * 1_000.0 / fan_out_ms.max(1e-9));
    }
    run.figure("server_cpu_us_per_task_and_answer", &costs_us);
    run.latencies = Some(latencies);
    run.end("fanout")
}
