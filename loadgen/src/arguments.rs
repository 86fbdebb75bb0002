//! What people type.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::capacity::CapacityArguments;
use crate::client::road::Way;
use crate::flood::FloodArguments;
use crate::floor::writes::ReaderArguments;
use crate::peers::PeersArguments;
use crate::sources::Sources;
use crate::worker::WorkerArguments;

/// Thousands of agents in a process, and what they measure.
#[derive(Parser)]
#[command(name = "bgb-loadgen", version, about, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Adds devices to a site in bulk and keeps them, with their keys, in a folder
    Devices(DevicesArguments),
    /// Connects everybody: how fast, and at what cost
    Connect(ConnectArguments),
    /// Holds connections at rest: what each costs
    Idle(IdleArguments),
    /// Sends tasks to everybody: how fast, to the last one
    Fanout(FanoutArguments),
    /// Sends tasks to single devices while all others are idle: how late
    Trickle(TrickleArguments),
    /// Holds as many connections as are asked for at several servers, sends a task to all, and waits until the site has every answer
    Fleet(FleetArguments),
    /// Plays a day in some minutes: everybody comes, tasks for one and for all, naps, everybody goes
    Mixed(MixedArguments),
    /// Has the same agents come by every road, in turns: memory of a connection, rate of connecting, how late a task for one is (with a site of its own only)
    Roads(RoadsArguments),
    /// Goes on for hours, and tells what the servers have grown to
    Soak(SoakArguments),
    /// Has strangers flood the server with handshakes: who stays signed in, and how late a push is then (with a site of its own only)
    Flood(FloodScenarioArguments),
    /// Kills the server, starts it again, and waits until all are back (with a site of its own only)
    Storm(StormArguments),
    /// Finds how many connections this machine holds, and at what push latency: a page
    Size(SizeArguments),
    /// Measures what a server and a manager of this machine pay for each thing that happens: what `capacity` computes with
    Costs(CostsArguments),
    /// What a site of so many devices needs, computed from measured costs: a table
    Capacity(CapacityArguments),
    /// Measures one of the goals, and the floor beside it: ends in a line of JSON
    Bench(BenchArguments),
    /// Measures other people's servers beside ours, under the same load
    Peers(PeersArguments),
    /// Writes the table of BENCHMARKS.md from the lines of benchmarks
    #[command(hide = true)]
    Report(ReportArguments),
    /// Begins handshakes and never ends one
    #[command(hide = true)]
    FloodWorker(FloodArguments),
    /// Reads what a floor writes
    #[command(hide = true)]
    FloorReader(ReaderArguments),
    /// Plays a part of a fleet for another process of this program
    #[command(hide = true)]
    Worker(WorkerArguments),
}

/// `bgb-loadgen devices`.
#[derive(Args)]
pub(crate) struct DevicesArguments {
    /// The site's folder
    #[arg(long, env = "BGB_SITE")]
    pub(crate) site: PathBuf,
    /// How many
    #[arg(long)]
    pub(crate) count: usize,
    /// The folder to be made
    #[arg(long)]
    pub(crate) fleet: PathBuf,
}

/// What all scenarios take.
#[derive(Args, Clone)]
pub(crate) struct RunArguments {
    /// The site's folder; without it the run makes a site of its own, and removes it afterwards
    #[arg(long, requires = "fleet")]
    pub(crate) site: Option<PathBuf>,
    /// The fleet's folder, made by `bgb-loadgen devices`
    #[arg(long, requires = "site")]
    pub(crate) fleet: Option<PathBuf>,
    /// Agents
    #[arg(long, default_value_t = 1_000)]
    pub(crate) agents: usize,
    /// Reactors of each server, in a site of the run's own
    #[arg(long, default_value_t = 1)]
    pub(crate) reactors: usize,
    /// Servers, a process each, in a site of the run's own: a process holds no more connections than it may have descriptors
    #[arg(long, default_value_t = 1)]
    pub(crate) servers: usize,
    /// The server's process, to measure what it costs, where the site is not the run's own
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
    /// The network that agents connect from, an address each [default: 127.64.0.0/10 for servers on this machine]
    #[arg(long)]
    pub(crate) sources: Option<Sources>,
    #[command(flatten)]
    pub(crate) way: Way,
    /// Agents that are signed in keep only the keys of their sessions, outer ones too, 6 KiB each in all instead of 13: for runs whose limit is the agents' memory
    #[arg(long)]
    pub(crate) at_rest: bool,
    /// Handshakes under way at the most, of all processes together
    #[arg(long, default_value_t = 128)]
    pub(crate) window: usize,
    /// Connections that are begun in a second while connecting; 0: whenever there is room
    #[arg(long, default_value_t = 0.0)]
    pub(crate) rate: f64,
    /// Connections that the server is configured for, in a site of the run's own [default: as many as the agents have sockets]
    #[arg(long)]
    pub(crate) connections_max: Option<usize>,
    /// How often agents speak when they have nothing to say, 20 to 3,600, in a site of the run's own [default: the server's own]
    #[arg(long, value_parser = clap::value_parser!(u32).range(20..=3_600))]
    pub(crate) keepalive_seconds: Option<u32>,
    /// How often servers write the whole list of who is online, 10 to 3,600, in a site of the run's own [default: the server's own]
    #[arg(long, value_parser = clap::value_parser!(u32).range(10..=3_600))]
    pub(crate) presence_full_seconds: Option<u32>,
    /// Where to write the figures as JSON
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Where to write the latencies for HdrHistogram's plotter
    #[arg(long)]
    pub(crate) hgrm: Option<PathBuf>,
    /// A folder for pictures (SVG) of latencies, of what happened over time, and of what connections cost
    #[arg(long)]
    pub(crate) plots: Option<PathBuf>,
}

impl RunArguments {
    /// What a run's figures depend on.
    pub(crate) fn told(&self) -> Value {
        let Self { servers, reactors, window, rate, at_rest, connections_max, keepalive_seconds, .. } = self;
        json!({
            "road": self.way.road.name(), "tls_outer": self.way.tls_outer,
            "servers": servers, "reactors": reactors, "window": window, "rate": rate, "at_rest": at_rest,
            "connections_max": connections_max, "keepalive_seconds": keepalive_seconds,
            "presence_full_seconds": self.presence_full_seconds,
        })
    }

    /// A run of a benchmark: a site of its own, connected as fast as it goes.
    pub(crate) fn of_bench(agents: usize, reactors: usize) -> Self {
        Self {
            site: None,
            fleet: None,
            agents,
            reactors,
            servers: 1,
            server_pid: None,
            sources: None,
            way: Way::default(),
            at_rest: false,
            window: 128,
            rate: 0.0,
            connections_max: None,
            keepalive_seconds: None,
            presence_full_seconds: None,
            json: None,
            hgrm: None,
            plots: None,
        }
    }
}

/// `bgb-loadgen size`.
#[derive(Args)]
#[command(
    mut_arg("agents", |agents| agents.default_value("50000").help("Connections to go up to")),
    mut_arg("servers", |servers| {
        servers.default_value("0").help("Servers, a process each; 0: as many as the limit of descriptors asks for")
    })
)]
pub(crate) struct SizeArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// It is enough when a push to one device takes longer than this, 99 times of 100
    #[arg(long, default_value_t = 100.0)]
    pub(crate) latency_ms: f64,
}

/// `bgb-loadgen costs`.
#[derive(Args)]
pub(crate) struct CostsArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// Where to write them; without it they are only printed
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
}

/// `bgb-loadgen bench`.
#[derive(Args)]
pub(crate) struct BenchArguments {
    /// Which
    pub(crate) bench: Bench,
    /// Connections [default: 15,000; 5,000 for roads, of which some take two sockets each]
    #[arg(long)]
    pub(crate) agents: Option<usize>,
    /// A folder for pictures (SVG), and for latencies as HdrHistogram's plotter reads them
    #[arg(long)]
    pub(crate) plots: Option<PathBuf>,
}

/// `bgb-loadgen report`.
#[derive(Args)]
pub(crate) struct ReportArguments {
    /// A folder with a file NAME.json for each benchmark
    pub(crate) lines: PathBuf,
    /// The file with the table
    pub(crate) file: PathBuf,
    /// A folder for pictures (SVG) of how costs grow
    #[arg(long)]
    pub(crate) plots: Option<PathBuf>,
}

/// `bgb-loadgen connect`.
#[derive(Args)]
pub(crate) struct ConnectArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// Connect once, end, and measure how fast everybody resumes
    #[arg(long)]
    pub(crate) resumed: bool,
}

/// `bgb-loadgen idle`.
#[derive(Args)]
pub(crate) struct IdleArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// How long to stay
    #[arg(long, default_value_t = 10)]
    pub(crate) seconds: u64,
}

/// `bgb-loadgen fanout`.
#[derive(Args)]
pub(crate) struct FanoutArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// How many tasks, one after the other
    #[arg(long, default_value_t = 5)]
    pub(crate) tasks: usize,
}

/// `bgb-loadgen trickle`.
#[derive(Args)]
pub(crate) struct TrickleArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// Tasks in a second, each to one device
    #[arg(long, default_value_t = 20.0)]
    pub(crate) tasks_per_second: f64,
    /// For how long
    #[arg(long, default_value_t = 20)]
    pub(crate) seconds: u64,
}

/// `bgb-loadgen mixed`.
#[derive(Args)]
pub(crate) struct MixedArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// How long the day is
    #[arg(long, default_value_t = 120)]
    pub(crate) seconds: u64,
    /// Tasks in a second, each to one device
    #[arg(long, default_value_t = 5.0)]
    pub(crate) tasks_per_second: f64,
}

/// `bgb-loadgen roads`.
#[derive(Args)]
#[command(mut_arg("road", |road| road.hide(true)), mut_arg("tls_outer", |outer| outer.hide(true)))]
pub(crate) struct RoadsArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// Rounds, in each of which every road has its turn: what a machine does by itself now and then is in some of them, and their median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rounds: u64,
    /// For how long 16 tasks a second go to single devices in each turn
    #[arg(long, default_value_t = 13, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,
    /// How long connections have rested when memory is measured
    #[arg(long, default_value_t = 13)]
    pub(crate) rest_seconds: u64,
    /// In a last round some agents are so far away from the server: a relay holds what they say, and what they hear, for half of it; 0 leaves it out
    #[arg(long, default_value_t = 50)]
    pub(crate) round_trip_ms: u64,
}

/// `bgb-loadgen soak`.
#[derive(Args)]
pub(crate) struct SoakArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// For how long; 30 days at the most
    #[arg(long, default_value_t = 480, value_parser = clap::value_parser!(u64).range(1..=43_200))]
    pub(crate) minutes: u64,
    /// Tasks in a second, each to one device
    #[arg(long, default_value_t = 5.0)]
    pub(crate) tasks_per_second: f64,
}

/// `bgb-loadgen flood`.
#[derive(Args)]
pub(crate) struct FloodScenarioArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// How long tasks go to single devices, in peace and then in the flood, in each round
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,
    /// Rounds, each of peace and of a flood: what a machine does by itself now and then is in both halves of some of them
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rounds: u64,
    /// The part of a core that the flood has, in percent
    #[arg(long, default_value_t = 50)]
    pub(crate) core_percent: u32,
    /// Strangers whose hello was answered hold their place for a second, instead of going at once: fewer hellos, and places that are taken
    #[arg(long)]
    pub(crate) holds: bool,
    /// The flood's priority on this machine, 0 to 19: with 19 everything else goes first, as if strangers had machines of their own
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=19))]
    pub(crate) nice: u8,
}

/// `bgb-loadgen fleet`.
#[derive(Args)]
pub(crate) struct FleetArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// The run ends after so long, with what was measured until then; a day at the most
    #[arg(long, default_value_t = 45, value_parser = clap::value_parser!(u64).range(1..=1_440))]
    pub(crate) minutes: u64,
}

/// `bgb-loadgen storm`.
#[derive(Args)]
pub(crate) struct StormArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// Everybody's ticket is so many days old when the server comes back: its programs had a wall clock that was so far behind (libfaketime)
    #[arg(long, default_value_t = 0)]
    pub(crate) ticket_days: u32,
}
