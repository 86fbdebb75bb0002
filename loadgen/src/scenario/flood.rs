//! Strangers flood the server with handshakes that they never end, while everybody else is signed in: who stays, and how late a push is then,
//! against what it is in peace.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::arguments::FloodScenarioArguments;
use crate::clock::{SECOND_NS, now_ns};
use crate::flood::Flooded;
use crate::scenario::Run;
use crate::scenario::trickle::{Trickled, trickle};

/// Tasks to single devices in each half, so far apart: a site has no more active than those of a minute.
const GAP_NS: u64 = SECOND_NS / 16;
/// What is to hold: so many of the live sessions stay, and their pushes take so many times what they take in peace at the most.
const KEPT_PERCENT_MIN: f64 = 95.0;
const P99_TIMES_MAX: f64 = 2.0;
/// The flood goes on for a moment before and after what is measured.
const MARGIN_SECS: u64 = 2;
/// A flood that had less of what it may have of a core was none.
const HAD_OF_ITS_PART: f64 = 0.9;

pub(super) fn run(mut run: Run, arguments: &FloodScenarioArguments) -> anyhow::Result<Value> {
    ensure!(run.lab.is_some(), "a flood needs a site of the run's own: leave --site out");
    ensure!((1..=100).contains(&arguments.core_percent), "--core-percent is 1 to 100");
    run.connect(true, true);
    let before = run.crew.progress();
    let tasks = arguments.seconds * SECOND_NS / GAP_NS;
    let fleet = run.lab.as_ref().map(crate::lab::Lab::fleet).context("the run has no site")?;
    let (mut in_peace, mut flooded) = (Trickled::default(), Trickled::default());
    let mut told = Flooded::default();
    for _ in 0..arguments.rounds {
        in_peace.add(&trickle(&mut run, tasks, GAP_NS)?)?;
        let mut flood = start(&fleet, arguments.seconds + 2 * MARGIN_SECS, arguments)?;
        run.rest_until(now_ns() + MARGIN_SECS * SECOND_NS);
        flooded.add(&trickle(&mut run, tasks, GAP_NS)?)?;
        if run.is_partial {
            break;
        }
        let said = flood.told();
        match run.or_partial(said) {
            Some(said) => told.add(&said),
            None => break,
        }
    }
    let after = run.crew.progress();
    let (peace_ms, flood_ms) = (in_peace.latencies.summary().p99_ms, flooded.latencies.summary().p99_ms);
    run.figure("sessions_before", before.active);
    run.figure("sessions_after", after.active);
    run.figure("lost", after.lost - before.lost);
    run.figure("missing", in_peace.missing + flooded.missing);
    run.figure("peace_p99_ms", peace_ms);
    run.figure("flood_p99_ms", flood_ms);
    run.figure("p99_times", flood_ms / peace_ms.max(1e-9));
    let kept_percent = (before.active.saturating_sub((after.lost - before.lost) as usize)) as f64 * 100.0
        / before.active.max(1) as f64;
    run.figure("sessions_kept_percent", kept_percent);
    run.figure(
        "strangers",
        json!({"hold": arguments.holds, "nice": arguments.nice, "core_percent": arguments.core_percent}),
    );
    run.figure("rounds_of_seconds", [arguments.rounds, arguments.seconds]);
    run.latencies = Some(flooded.latencies);
    if told.seconds == 0.0 {
        return run.end("flood");
    }
    let core_percent = told.core_seconds * 100.0 / told.seconds;
    let is_flood = core_percent >= HAD_OF_ITS_PART * f64::from(arguments.core_percent);
    if !is_flood {
        run.crew.trouble(format!(
            "the flood had {core_percent:.0} % of a core instead of {} %: this machine had no more for it, or all its places were taken",
            arguments.core_percent
        ));
    }
    let holds = is_flood && kept_percent >= KEPT_PERCENT_MIN && flood_ms <= P99_TIMES_MAX * peace_ms;
    run.figure("holds", holds);
    run.figure("connections_tried_per_second", told.tried as f64 / told.seconds);
    run.figure("handshakes_offered_per_second", told.offered as f64 / told.seconds);
    run.figure("handshakes_answered_per_second", told.answered as f64 / told.seconds);
    run.figure("handshakes_refused", told.refused);
    run.figure("flood_core_percent", core_percent);
    run.end("flood")
}

/// The process that floods; it is ended when this is dropped.
struct Flood(std::process::Child);

impl Flood {
    /// What it tells when it ends, which it does by itself.
    fn told(&mut self) -> anyhow::Result<Flooded> {
        let mut said = Vec::new();
        if let Some(mut out) = self.0.stdout.take() {
            std::io::Read::read_to_end(&mut out, &mut said)?;
        }
        let status = self.0.wait()?;
        serde_json::from_slice(&said)
            .with_context(|| format!("the flood has ended and told nothing: {status}"))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(fleet: &Path, seconds: u64, asked: &FloodScenarioArguments) -> anyhow::Result<Flood> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("flood-worker").arg("--fleet").arg(fleet);
    command.args(["--seconds", &seconds.to_string(), "--core-percent", &asked.core_percent.to_string()]);
    command.args(asked.holds.then_some("--holds"));
    command.args(["--nice", &asked.nice.to_string()]);
    Ok(Flood(command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn()?))
}
