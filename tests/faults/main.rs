//! Faults on real processes: killed, starved, cut off, misled about the time, while tasks are started all the time. Then all is
//! healed, and what was promised must hold.
//!
//! A program of its own, called by `make test-faults`: it prints how often each kind of fault was injected, and takes minutes. Several
//! worlds run side by side, each a site with servers, agents and an administrator who never rests, and with kinds of faults of its own.
//! A world goes through them in rounds: faults of one kind at random moments, healing, and a quiet moment at which everything is
//! judged; then rounds of all its kinds together until the time is over. Which fault hits whom and when is decided by dice, whose seed
//! is printed; what the processes were at when it hit them is theirs, so the same seed is the same storm and not the same course.
//!
//! It runs in namespaces of its own: what it mounts, cuts and starts is nobody else's, and vanishes with it.
//!
//! - `make test-faults`: installs what is needed, builds, runs;
//! - `BGB_FAULTS_SEED=n make test-faults`: with these dice.
// What is unwrapped here is the harness's own, and fails with the line that did it.
#![allow(clippy::unwrap_used)]

#[path = "../sim/dice.rs"]
#[allow(dead_code, reason = "the simulator's, who throws them in more ways")]
mod dice;
#[path = "../rig/mod.rs"]
mod rig;
use rig::{api, peer, process, site, wait};

mod administrator; // starts tasks, and remembers which were accepted
mod clock; // wall clocks that can be moved
mod disk; // small disks that can be filled
mod footprint; // memory and descriptors, now and at first
mod ground; // the namespaces that all of it happens in
mod injection; // what is done to whom, and how it is undone
mod judge; // what must hold at a quiet moment
mod kind; // the kinds of faults, and how often each was injected
mod link; // a machine's network, which can be cut
mod machine; // a managed machine: its link, its disk, its clock, its agent, its scanner
mod plan; // which world has which faults
mod world; // a site, its machines and their rounds

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kind::Tally;
use plan::PLANS;
use world::{Checked, World};

/// How long rounds of all kinds go on, from the start: with what comes before and after, the whole stays below 10 minutes.
const MIXED_UNTIL: Duration = Duration::from_secs(390);

/// After so long the whole is given up: 10 minutes are all that there is, with the build.
const LIMIT: Duration = Duration::from_secs(570);

fn main() -> ExitCode {
    if let Err(missing) = ground::enter().and_then(|()| link::make_rules()) {
        eprintln!("faults: cannot run: {missing}");
        return ExitCode::FAILURE;
    }
    let seed = seed();
    eprintln!("faults: seed {seed} (BGB_FAULTS_SEED={seed} throws the same dice again)");
    let begun = Instant::now();
    let tally = Arc::new(Tally::default());
    let (checked, mut violations) = run_worlds(seed, begun, &tally);
    print!("{}", tally.table());
    println!("\n{checked}");
    violations.extend(tally.rare().into_iter().map(|(kind, times)| {
        format!("{} was injected {times} times, and {} are wanted", kind.label(), kind::TIMES_LEAST)
    }));
    for violation in &violations {
        println!("violation: {violation}");
    }
    if !violations.is_empty() {
        println!("seed {seed}; what the worlds have left lies in {}", ground::LEFT_OVERS);
    }
    println!(
        "faults: {} kinds, {} injected, {} violations",
        tally.kinds(),
        tally.injected(),
        violations.len()
    );
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs all worlds to their ends; what was checked, and what did not hold.
fn run_worlds(seed: u64, begun: Instant, tally: &Arc<Tally>) -> (Checked, Vec<String>) {
    let (ended, ends) = mpsc::channel();
    for (number, plan) in PLANS.iter().enumerate() {
        let (ended, tally) = (ended.clone(), Arc::clone(tally));
        let run = move || {
            let world = || World::new(number, plan, seed, tally).run(begun + MIXED_UNTIL);
            // Nobody listens any more when the time was up.
            let _ =
                ended.send((plan.name, catch_unwind(AssertUnwindSafe(world)).map_err(|panic| told(&*panic))));
        };
        std::thread::Builder::new().name(plan.name.to_owned()).spawn(run).unwrap();
    }
    let (mut checked, mut violations) = (Checked::default(), Vec::new());
    for _ in PLANS {
        match ends.recv_timeout((begun + LIMIT).saturating_duration_since(Instant::now())) {
            Ok((_, Ok(of_world))) => checked.add(&of_world),
            Ok((name, Err(violation))) => violations.push(format!("{name}: {violation}")),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                violations.push(format!("not all worlds came to their end within {LIMIT:?}"));
                break;
            }
        }
    }
    (checked, violations)
}

/// What a panic has to say.
fn told(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "something that is no text".to_owned())
}

/// The dice's seed: from the environment, or another one each time.
fn seed() -> u64 {
    match std::env::var("BGB_FAULTS_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("BGB_FAULTS_SEED is a number; this is {text:?}")),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs(),
    }
}
