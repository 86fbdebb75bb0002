//! `bgb-loadgen`: thousands of agents in a process, many processes at once, and what they measure.
//!
//! A coordinator, which is what people start, makes or reads a *fleet* (devices of a site, with their keys), starts *workers* that play it,
//! and runs a *scenario*: what they are told to do, and what is asked of them then. Workers and coordinator are the same program.
//!
//! It shares the crates of the protocol and of HTTP with server and agent, and not a line more.
#![cfg_attr(test, allow(clippy::unwrap_used))] // A test that cannot go on should stop where it stands.

mod arguments; // what people type
mod authority; // certificates for those who belong to no site
mod bench; // the goals, and the floors beside them
mod capacity; // what a site of so many devices needs
mod client; // one agent: what it says, over which TLS and socket
mod clock; // time that all processes share
mod crew; // the workers, as their coordinator has them
mod distance; // agents that are far away
mod fleet; // devices made in bulk, in a folder
mod flood; // strangers who begin handshakes and never end them
mod floor; // what the machine does at its best
mod interrupt; // Ctrl-C
mod lab; // a site of its own
mod manager; // the manager's API
mod measure; // histograms, and what a process costs
mod peers; // other people's servers under the same load
mod plots; // pictures of what was measured
mod report; // BENCHMARKS.md
mod scenario; // connect, idle, fanout, trickle, mixed, roads, soak, fleet, storm, costs
mod sources; // the addresses that agents connect from
mod worker; // one process of agents

use std::process::ExitCode;

use arguments::{Arguments, Command, DevicesArguments};
use clap::Parser as _;
use fleet::{Fleet, Web};
use manager::Manager;

fn main() -> ExitCode {
    worker::raise_descriptors();
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bgb-loadgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    // Those that a coordinator has started end when it does.
    match command {
        Command::Worker(own) => return worker::run(own),
        Command::FloodWorker(own) => return flood::run(own),
        Command::FloorReader(own) => return floor::writes::run_reader(own),
        _ => interrupt::listen()?,
    }
    match command {
        Command::Devices(own) => make_devices(own),
        Command::Bench(own) => bench::run(own),
        Command::Peers(own) => peers::run(own),
        Command::Report(own) => report::run(own),
        Command::Capacity(own) => capacity::run(own),
        scenario => scenario::run(scenario),
    }
}

fn make_devices(arguments: &DevicesArguments) -> anyhow::Result<()> {
    let DevicesArguments { site, count, fleet } = arguments;
    let manager = Manager::of_site(site)?;
    let told = |made| eprintln!("bgb-loadgen: {made} of {count} devices");
    Fleet::make(&manager, fleet, *count, Web::default(), told)?;
    println!("{count} devices are in {}", fleet.display());
    Ok(())
}
