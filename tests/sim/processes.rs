//! Many seeds in several processes: each runs some and tells what it found; the first one adds up, and shows how far it is.
//!
//! A process that dies takes only its own seeds along, and they are named.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::seeds::{After, Summary, run_seeds};
use crate::tally::Tally;

/// Seeds of one process, before another takes its place.
const SEEDS_PER_PROCESS: u64 = 50;
/// The test that runs worlds.
const TEST: &str = "every_seed_keeps_what_is_promised_and_sees_every_kind_of_fault";
/// The seed that is to be replayed.
pub(crate) const SEED: &str = "BGB_SIM_SEED";
/// How many seeds are to be run in several processes.
pub(crate) const SEEDS: &str = "BGB_SIM_SEEDS";
/// Up to which seed is to be hunted.
pub(crate) const HUNT: &str = "BGB_SIM_HUNT";
/// The first seed of a process that is one of several.
pub(crate) const FIRST: &str = "BGB_SIM_FIRST";
/// And the end of its seeds.
pub(crate) const END: &str = "BGB_SIM_END";
/// What begins a line that one process tells another.
const TOLD: &str = "told ";

/// Runs the seeds from 0 up to `end` in as many processes as there are cores.
pub(crate) fn run_in_processes(end: u64) -> Summary {
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let (summary, begun) = (Mutex::new(Summary::default()), Instant::now());
    let processes = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..processes {
            scope.spawn(|| {
                loop {
                    let first = next.fetch_add(SEEDS_PER_PROCESS, Ordering::Relaxed);
                    if first >= end {
                        return;
                    }
                    let last = end.min(first + SEEDS_PER_PROCESS);
                    let heard = || show_progress(done.fetch_add(1, Ordering::Relaxed) + 1, end, begun);
                    let told = run_process(first, last, heard);
                    for (_, violation) in &told.violations {
                        eprintln!("{}", violation.lines().next().unwrap_or_default());
                    }
                    summary.lock().expect("no thread panics while it adds up").take_in(told);
                }
            });
        }
    });
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    summary.into_inner().expect("no thread panics while it adds up")
}

/// What such a process does: runs its seeds on one thread and tells of them.
pub(crate) fn run_as_one_of_several(first: u64, end: u64) {
    let tell = |what: &str| {
        let mut out = std::io::stdout().lock();
        // Whoever reads it may be gone, and then nobody wants to know.
        let _ = writeln!(out, "{TOLD}{what}");
        let _ = out.flush();
    };
    let summary = run_seeds(first, end, 1, After::GoOn, || tell("seed"));
    for (seed, what) in &summary.violations {
        for line in what.lines() {
            tell(&format!("violation {seed} {line}"));
        }
    }
    let counts: Vec<_> = summary.tally.counts().iter().map(u64::to_string).collect();
    tell(&format!("sum {} {} {} {}", summary.seeds, summary.steps, summary.virtual_ms, counts.join(" ")));
}

fn run_process(first: u64, end: u64, heard: impl Fn()) -> Summary {
    let mut command = this_program();
    let spawned = command.env(FIRST, first.to_string()).env(END, end.to_string()).spawn();
    let mut child = spawned.expect("this program can be started once more");
    let told = hear(&mut child, heard);
    let status = child.wait().expect("a child can be waited for");
    told.filter(|_| status.success()).unwrap_or_else(|| {
        let what = format!("seeds {first} to {}: their process ended by itself: {status}", end - 1);
        Summary { violations: vec![(first, what)], ..Summary::default() }
    })
}

/// What comes of a seed in a process of its own, in short; `None` when that says nothing.
pub(crate) fn run_elsewhere(seed: u64) -> Option<String> {
    let output = this_program().env(SEED, seed.to_string()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().find(|line| line.starts_with(&format!("seed {seed}: "))).map(str::to_owned)
}

/// This program once more, with nothing of what this one was told.
fn this_program() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a process knows its program"));
    command.args([TEST, "--exact", "--nocapture", "--test-threads=1"]).stdout(Stdio::piped());
    for name in [FIRST, END, SEED, SEEDS, HUNT] {
        command.env_remove(name);
    }
    command
}

/// What a process tells; `None` when it did not come to its end.
fn hear(child: &mut Child, heard: impl Fn()) -> Option<Summary> {
    let lines = BufReader::new(child.stdout.take()?).lines();
    let mut violations: Vec<(u64, String)> = Vec::new();
    let mut summary = None;
    for line in lines.map_while(Result::ok) {
        // The test runner says its own words before the first line, without an end of their own.
        let Some((_, told)) = line.split_once(TOLD) else { continue };
        match told.split_once(' ') {
            None if told == "seed" => heard(),
            Some(("violation", rest)) => {
                let (seed, text) = rest.split_once(' ')?;
                let seed = seed.parse().ok()?;
                match violations.last_mut().filter(|(last, _)| *last == seed) {
                    Some((_, whole)) => *whole += &format!("\n{text}"),
                    None => violations.push((seed, text.to_owned())),
                }
            }
            Some(("sum", rest)) => {
                let mut numbers = rest.split(' ').map(str::parse::<u64>);
                let mut number = || numbers.next()?.ok();
                let (seeds, steps, virtual_ms) = (number()?, number()?, number()?);
                let counts: Vec<u64> = numbers.collect::<Result<_, _>>().ok()?;
                summary = Some((seeds, steps, virtual_ms, Tally::of(counts)?));
            }
            _ => {}
        }
    }
    let (seeds, steps, virtual_ms, tally) = summary?;
    Some(Summary { seeds, tally, steps, virtual_ms, violations })
}

fn show_progress(done: u64, all: u64, begun: Instant) {
    let is_terminal = std::io::stderr().is_terminal();
    if !is_terminal && !done.is_multiple_of(100) && done != all {
        return;
    }
    let spent = begun.elapsed().as_secs_f64();
    let left = spent / done as f64 * (all - done) as f64;
    let text = format!("sim: {done} of {all} seeds, {spent:.0} s, about {left:.0} s left");
    if is_terminal {
        eprint!("\r{text}   ");
    } else {
        eprintln!("{text}");
    }
}
