//! The simulator: the whole site on virtual time, from one seed.
//!
//! The product's own code runs in it: servers with their shards and hubs, directory, broker, spool, presence list and courier
//! (`bgb_server`), the manager with its inbox, ingest and chores on a real SQLite database (`bgb_manager`, `bgb_site`), agents with their
//! journals (`bgb_agent`), the frames and files of `bgb_protocol`, statements that are really signed. What is modelled is what is around
//! them, and it can break: the network, disks, power, clocks, the moment at which a thread gets its turn. Then everything heals, and
//! what was promised must have come about. A seed is a whole world: one thread, no clock, no randomness from outside, no hash order, the
//! same trace each time.
//!
//! - `cargo test --test sim`: the seeds from 0 to 511;
//! - `make sim SEEDS=n`: so many seeds, in several processes, and how often everything happened;
//! - `BGB_SIM_SEED=n cargo test --test sim -- --nocapture`: replays one and prints its steps;
//! - `BGB_SIM_HUNT=n`: the seeds from 0 to n - 1, up to the first that breaks a promise;
//! - `make sim-plants`: the simulator itself is tested, with mistakes in the product that it must find (`plants/`).

mod actions; // what actions do on a device
mod administrator; // orders of all kinds, and what the model is told of them
mod agents; // devices: boot, clock, disk, power and the agent on it
mod checks; // what must have come about after the healing
mod dice; // chance, from the seed
mod ends; // how connections end, and how an end is found to be gone
mod faults; // the weather of a seed, the faults that it brings, the healing
mod forger; // a server in hostile hands
mod frames; // a connection over a WebSocket
mod hosts; // the machines of servers and manager: power, disks, the inbox that they share
mod longpoll; // a connection by long-poll, at its agent's end
mod model; // the plain model: what may be begun, pushed, ended and counted
mod moves; // a second connection over a better road, and how a session moves over to it
mod network; // links and connections that carry bytes, late, in pieces, and not always
mod plants; // mistakes in the product, which test the simulator
mod policies; // the policy documents in force
mod processes; // many seeds in several processes
mod proxies; // proxies that cut, and answer for others
mod requests; // requests and answers of long-poll on their way
mod restore; // copies of the database, and what putting one back means
mod roads; // by which road connections come, and the ledger of what they carry
mod seeds; // many seeds on many cores
mod server_laws; // whom servers may hold, and what they may push
mod server_life; // how servers are put together, follow the queue, stop and are killed
mod servers; // shards, their channels, the letters between threads
mod site; // the manager on a real database, and what is compared with the model
mod tally; // how often everything happened
mod trace; // every step, one line, and the hash of all
mod tunnels; // servers' ends of long-poll tunnels
mod world; // virtual time and the order of what happens
mod writers; // the turns of spool, presence list and courier

use std::num::NonZero;

use processes::{END, FIRST, HUNT, SEED, run_as_one_of_several, run_in_processes};
use seeds::{After, Summary, number_from_environment, run_seed, run_seeds};

/// Seeds of every test run. A kind of fault, or of what happens, that is seen in none of them fails the run.
const SEEDS: u64 = 512;

/// Violations that are shown in a line each; the first one is shown in full.
const VIOLATIONS_SHOWN: usize = 20;

#[test]
fn every_seed_keeps_what_is_promised_and_sees_every_kind_of_fault() {
    if let (Some(first), Some(end)) = (number_from_environment(FIRST), number_from_environment(END)) {
        return run_as_one_of_several(first, end);
    }
    if let Some(seed) = number_from_environment(SEED) {
        return replay(seed);
    }
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    if let Some(seeds) = number_from_environment(HUNT) {
        return tell(&run_seeds(0, seeds, threads, After::Stop, || ()));
    }
    let summary = match number_from_environment(processes::SEEDS) {
        Some(seeds) => run_in_processes(seeds),
        None => run_seeds(0, SEEDS, threads, After::GoOn, || ()),
    };
    print!("{}", summary.tally.table());
    let mut summary = summary;
    let never = summary.tally.never();
    if summary.seeds >= SEEDS && !never.is_empty() {
        summary
            .violations
            .push((summary.seeds, format!("never happened in {} seeds: {never:#?}", summary.seeds)));
    }
    tell(&summary);
}

fn replay(seed: u64) {
    let report = run_seed(seed, true);
    println!("{}", report.in_short());
    assert!(report.violation.is_none(), "{}", report.violation.unwrap_or_default());
}

fn tell(summary: &Summary) {
    for (_, violation) in summary.violations.iter().take(VIOLATIONS_SHOWN) {
        println!("{}", violation.lines().next().unwrap_or_default());
    }
    if let Some((_, violation)) = summary.violations.first() {
        println!("\n{violation}");
    }
    println!(
        "sim: {} seeds, {} virtual hours, {} faults, {} violations",
        summary.seeds,
        summary.virtual_ms / 3_600_000,
        summary.tally.faults(),
        summary.violations.len()
    );
    let seeds_violated: Vec<_> = summary.violations.iter().map(|(seed, _)| *seed).collect();
    assert!(seeds_violated.is_empty(), "what is promised does not hold with seeds {seeds_violated:?}");
}
