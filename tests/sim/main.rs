//! The simulator: several shards' hubs and the agents' sessions and journals, on virtual time, from one seed.
//!
//! The product's own code runs in it: `bgb_hub::Hub`, `bgb_server::directory::Directory`, `bgb_agent::agent::Agent` with its
//! journal on `bgb_daemon::disk::SimDisk`, the frames of `bgb_protocol`, tasks that are really signed. Around it everything is
//! modelled and can break: network, disks, power, clocks, the spool, the queue's following, the manager. Then everything
//! heals, and what was promised must have come about. A seed is a whole world: one thread, no clock, no randomness from
//! outside, no hash order, the same trace each time.
//!
//! - `cargo test --test sim`: the seeds from 0 to 255;
//! - `BGB_SIM_SEED=n cargo test --test sim -- --nocapture`: replays one and prints its steps;
//! - `BGB_SIM_SEEDS=n cargo test --test sim -- --nocapture`: so many seeds, and how often everything happened.

mod administrator; // orders of all kinds, and what the model is told of them
mod agents; // devices: boot, clock, disk, power, the agent on it and its modelled actions
mod checks; // what must have come about after the healing
mod dice; // chance, from the seed
mod faults; // the weather of a seed, the faults that it brings, the healing
mod hosts; // the machines of servers and manager: power, disks, the inbox that they share
mod model; // the plain model: what may be begun, pushed, ended and counted
mod network; // links and connections that carry bytes, late, in pieces, and not always
mod restore; // copies of the database, and what putting one back means
mod seeds; // many seeds on many cores
mod server_life; // how servers are put together, follow the queue, stop and are killed
mod servers; // shards, their channels, the letters between threads
mod site; // the manager on a real database, and what is compared with the model
mod tally; // how often everything happened
mod trace; // every step, one line, and the hash of all
mod world; // virtual time and the order of what happens
mod writers; // the turns of spool, presence list and courier

use seeds::{number_from_environment, run_seed, run_seeds};

/// Seeds of every test run.
const SEEDS: u64 = 256;

/// Seeds whose traces are compared: one in a hundred, as many as take a second.
const SEEDS_COMPARED: [u64; 3] = [0, 100, 200];

/// Violations that are shown in a line each; the first one is shown in full.
const VIOLATIONS_SHOWN: usize = 20;

#[test]
fn every_seed_keeps_what_is_promised_and_sees_every_kind_of_fault() {
    if let Some(seed) = number_from_environment("BGB_SIM_SEED") {
        let report = run_seed(seed, true);
        println!(
            "seed {seed}: {} steps, {} faults, trace {:016x}",
            report.steps,
            report.tally.faults(),
            report.hash
        );
        assert!(report.violation.is_none(), "{}", report.violation.unwrap_or_default());
        return;
    }
    let seeds = number_from_environment("BGB_SIM_SEEDS").unwrap_or(SEEDS);
    let summary = run_seeds(0, seeds);
    print!("{}", summary.tally.table());
    println!(
        "sim: {} seeds, {} virtual hours, {} steps, {} faults, {} violations",
        summary.seeds,
        summary.virtual_ms / 3_600_000,
        summary.steps,
        summary.tally.faults(),
        summary.violations.len()
    );
    for (_, violation) in summary.violations.iter().take(VIOLATIONS_SHOWN) {
        println!("{}", violation.lines().next().unwrap_or_default());
    }
    if let Some((_, violation)) = summary.violations.first() {
        println!("\n{violation}");
    }
    let seeds_violated: Vec<_> = summary.violations.iter().map(|(seed, _)| *seed).collect();
    assert!(seeds_violated.is_empty(), "what is promised does not hold with seeds {seeds_violated:?}");
    let never = summary.tally.never();
    assert!(seeds < SEEDS || never.is_empty(), "never happened in {seeds} seeds: {never:#?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let compared = number_from_environment("BGB_SIM_SEED").map_or(SEEDS_COMPARED.to_vec(), |seed| vec![seed]);
    for seed in compared {
        let (first, second) = (run_seed(seed, false), run_seed(seed, false));
        assert_eq!((first.steps, first.hash), (second.steps, second.hash), "seed {seed}");
    }
}
