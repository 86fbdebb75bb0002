//! A day, compressed: in the morning everybody comes, over the day tasks go to one, to some and to all while machines sleep and come back, and in
//! the evening everybody goes.
//!
//! ```text
//! 0 %      20 %                                          90 %    100 %
//! | coming |  tasks for one, all the time; naps; a task for all at 40 % and at 65 %  | going |
//! ```

use std::time::Duration;

use bgb_protocol::ids::TaskId;
use serde_json::Value;

use crate::arguments::MixedArguments;
use crate::clock::{SECOND_NS, now_ns};
use crate::measure::Latencies;
use crate::scenario::Run;
use crate::worker::link;

/// Parts of the day, in hundredths.
const MORNING_ENDS: u64 = 20;
const EVENING_BEGINS: u64 = 90;
const FOR_ALL: [u64; 2] = [40, 65];
/// One machine in so many takes a nap at a time; over a day each does a few times.
const NAPS_ONE_IN: usize = 50;
/// Naps come so far apart, in hundredths.
const NAPS_APART: u64 = 5;
/// How long the last answers may take.
const KEPT_WITHIN: Duration = Duration::from_secs(60);

/// The shortest day.
const SECONDS_MIN: u64 = 5;

/// A task, and when it was meant to be ordered.
type Ordered = (TaskId, u64);

/// What happens next, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Naps,
    TaskForOne,
    TaskForAll,
}

pub(super) fn run(mut run: Run, arguments: &MixedArguments) -> anyhow::Result<Value> {
    anyhow::ensure!(arguments.seconds >= SECONDS_MIN, "--seconds is {SECONDS_MIN} at least: less is no day");
    // A site has 1,000 active tasks, and each is valid for a minute.
    anyhow::ensure!(
        arguments.tasks_per_second > 0.0 && arguments.tasks_per_second <= 16.0,
        "--tasks-per-second is more than 0, and 16 at the most"
    );
    let day_ns = arguments.seconds * SECOND_NS;
    let part = |hundredths: u64| day_ns / 100 * hundredths;
    run.arguments.rate = run.agents() as f64 / (part(MORNING_ENDS) as f64 / SECOND_NS as f64);
    let begun_ns = now_ns();
    run.connect(true, true);
    run.crew.begin("a day", begun_ns + part(EVENING_BEGINS));
    run.rest_until(begun_ns + part(MORNING_ENDS));
    let active = run.crew.progress().active.max(1);

    let (mut ones, mut alls) = (Vec::<Ordered>::new(), Vec::<Ordered>::new());
    for (number, (at, what)) in plan(&part, arguments.tasks_per_second).into_iter().enumerate() {
        let intended_ns = begun_ns + at;
        run.rest_until(intended_ns);
        if run.is_partial {
            break;
        }
        match what {
            Happening::Naps => {
                run.crew.tell(&link::Command::Nap { one_in: NAPS_ONE_IN, turn: number % NAPS_ONE_IN });
            }
            Happening::TaskForOne => {
                let device = number.wrapping_mul(7_919) % active;
                ones.extend(run.ping_one(device).map(|task| (task, intended_ns)));
            }
            Happening::TaskForAll => {
                alls.extend(run.ping_all().map(|task| (task, intended_ns)));
            }
        }
    }
    let asked = ones.len() as u64 + alls.len() as u64 * active as u64;
    run.crew.finish();
    run.wait(KEPT_WITHIN, ("evening, answers kept", asked), |now| now.kept);
    let (for_one, missing) = latencies_of(&mut run, &ones)?;
    let (for_all, _) = latencies_of(&mut run, &alls)?;
    let kept = run.crew.progress().kept;
    run.disconnect();
    run.figure("tasks_for_one", ones.len());
    run.figure("missing", missing);
    run.figure("tasks_for_all", alls.len());
    run.figure("answers_asked", asked);
    run.figure("answers_kept", kept);
    run.figure("for_all_latency", for_all.summary());
    run.latencies = Some(for_one);
    run.end("mixed")
}

/// What happens from morning to evening, in its order.
fn plan(part: &impl Fn(u64) -> u64, tasks_per_second: f64) -> Vec<(u64, Happening)> {
    let gap_ns = ((SECOND_NS as f64 / tasks_per_second) as u64).max(1);
    let (from, until) = (part(MORNING_ENDS), part(EVENING_BEGINS));
    let ones = (0..(until - from) / gap_ns).map(|number| (from + number * gap_ns, Happening::TaskForOne));
    let alls = FOR_ALL.map(|hundredths| (part(hundredths), Happening::TaskForAll));
    let naps = (MORNING_ENDS..EVENING_BEGINS).step_by(NAPS_APART as usize);
    let naps = naps.map(|hundredths| (part(hundredths), Happening::Naps));
    let mut plan: Vec<_> = ones.chain(alls).chain(naps).collect();
    plan.sort_unstable();
    plan
}

/// From the moments at which the tasks were meant to be ordered to their devices' having them; and how many nobody has had.
fn latencies_of(run: &mut Run, tasks: &[Ordered]) -> anyhow::Result<(Latencies, u64)> {
    let (mut latencies, mut missing) = (Latencies::default(), 0);
    for (task, intended_ns) in tasks {
        let times = run.task_times(*task, *intended_ns);
        missing += u64::from(times.count == 0);
        latencies.add(&times.latencies.pack())?;
    }
    Ok((latencies, missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_its_parts_in_their_order() {
        let plan = plan(&|hundredths| hundredths * SECOND_NS, 2.0);
        assert!(plan.is_sorted());
        let count = |what| plan.iter().filter(|(_, planned)| *planned == what).count();
        assert_eq!(
            (count(Happening::TaskForOne), count(Happening::TaskForAll), count(Happening::Naps)),
            (140, 2, 14)
        );
        assert_eq!(plan[0].0, 20 * SECOND_NS);
        assert!(plan.iter().all(|(at, _)| (20 * SECOND_NS..90 * SECOND_NS).contains(at)));
    }
}
