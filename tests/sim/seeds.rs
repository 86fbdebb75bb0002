//! Running many seeds: on all cores, each on a thread of its own choosing, with the counts added up.
//!
//! A world is one thread's; threads share nothing but the number of the next seed. A panic of the product inside a
//! world is a violation like any other, told with its seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::tally::Tally;
use crate::world::{Report, World};

/// What came of many seeds.
#[derive(Default)]
pub(crate) struct Summary {
    pub(crate) seeds: u64,
    pub(crate) tally: Tally,
    pub(crate) steps: u64,
    pub(crate) virtual_ms: u64,
    pub(crate) violations: Vec<(u64, String)>,
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

/// Runs the seeds from `first` up to `end` exclusively.
pub(crate) fn run_seeds(first: u64, end: u64) -> Summary {
    let next = AtomicU64::new(first);
    let summary = Mutex::new(Summary::default());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let report = run_seed(seed, false);
                    summary.lock().expect("no thread panics while it adds up").add(report);
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
}
