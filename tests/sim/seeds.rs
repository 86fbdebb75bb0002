//! Running many seeds: on all cores, each on a thread of its own choosing, with the counts added up.
//!
//! A world is one thread's; threads share nothing but the number of the next seed. A panic of the product inside a
//! world is a violation like any other, told with its seed. Every hundredth seed runs a second time, in a process of its own with keys of its
//! own, and must give the same trace.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::processes::run_elsewhere;
use crate::tally::Tally;
use crate::world::{Report, World};

/// Every so manieth seed runs twice, and the traces are compared.
const COMPARED: u64 = 100;

/// What came of many seeds.
#[derive(Clone, Default)]
pub(crate) struct Summary {
    pub(crate) seeds: u64,
    pub(crate) tally: Tally,
    pub(crate) steps: u64,
    pub(crate) virtual_ms: u64,
    pub(crate) violations: Vec<(u64, String)>,
}

/// Whether seeds are run on after one that breaks a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    GoOn,
    /// Only those before it are still run.
    Stop,
}

/// A number from the environment, where there is one.
pub(crate) fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number of a seed, or of seeds; this is {text:?}")),
    )
}

/// Runs one seed; a panic inside becomes a violation.
pub(crate) fn run_seed(seed: u64, is_printed: bool) -> Report {
    catch_unwind(AssertUnwindSafe(|| World::run(seed, is_printed))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let what = text.unwrap_or_else(|| "something that is no text".to_owned());
        let violation = Some(format!(
            "seed {seed}: panic: {what}\nreplay: BGB_SIM_SEED={seed} cargo test --test sim -- --nocapture"
        ));
        Report { seed, tally: Tally::default(), hash: 0, steps: 0, virtual_ms: 0, violation }
    })
}

/// Runs a seed, and a second time where it is its turn to be compared.
fn run_and_compare(seed: u64) -> Report {
    let mut report = run_seed(seed, false);
    if seed.is_multiple_of(COMPARED) && report.violation.is_none() {
        let (here, elsewhere) = (report.in_short(), run_elsewhere(seed));
        if elsewhere.as_ref() != Some(&here) {
            report.violation = Some(format!(
                "two runs differ, and something comes from outside of the world: {here}; in a process of its own: {elsewhere:?}"
            ));
        }
    }
    report
}

/// Runs the seeds from `first` up to `end` exclusively, on so many threads; `heard` is told of each.
pub(crate) fn run_seeds(
    first: u64,
    end: u64,
    threads: usize,
    after: After,
    heard: impl Fn() + Sync,
) -> Summary {
    let (next, last) = (AtomicU64::new(first), AtomicU64::new(u64::MAX));
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || seed > last.load(Ordering::Relaxed) {
                        return;
                    }
                    let report = run_and_compare(seed);
                    if report.violation.is_some() && after == After::Stop {
                        last.fetch_min(seed, Ordering::Relaxed);
                    }
                    summary.lock().expect("no thread panics while it adds up").add(report);
                    heard();
                }
            });
        }
    });
    let mut summary = summary.into_inner().expect("no thread panics while it adds up");
    summary.violations.sort_by_key(|(seed, _)| *seed);
    summary
}

impl Summary {
    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.tally.add(&report.tally);
        self.steps += report.steps;
        self.virtual_ms += report.virtual_ms;
        self.violations.extend(report.violation.map(|what| (report.seed, what)));
    }

    /// Takes in what another process has found.
    pub(crate) fn take_in(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.tally.add(&other.tally);
        self.steps += other.steps;
        self.virtual_ms += other.virtual_ms;
        self.violations.extend(other.violations);
        self.violations.sort_by_key(|(seed, _)| *seed);
    }
}
