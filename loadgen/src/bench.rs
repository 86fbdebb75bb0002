//! Benchmarks: each runs a scenario at a size, measures the floor in the same run, and ends in one line of JSON that says whether its goal holds.
//!
//! ```text
//! {"bench":"fanout","figures":{…},"floor":{…},"ratio":0.93,"goal":0.9,"holds":true}
//! ```
//!
//! The goals are those of BENCHMARKS.md. A bench that could not be run to its end says so and holds nothing.

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::arguments::{
    BenchArguments, Command, ConnectArguments, FanoutArguments, IdleArguments, RunArguments, StormArguments,
    TrickleArguments,
};
use crate::floor::handshake::{self, HandshakeFloor};
use crate::floor::writes;
use crate::scenario;

mod roads; // how roads through HTTP are judged

/// Connections where nobody has said how many: few enough for two sockets each and one process's descriptors where roads are compared.
const AGENTS: usize = 15_000;
const ROADS_AGENTS: usize = 5_000;
/// A server's memory for each connection at rest: 1 KiB.
const IDLE_BYTES: f64 = 1_024.0;
/// How many in-memory handshakes the floor takes: a second's worth.
const HANDSHAKES: u32 = 2_000;
/// Tasks for everybody, and rounds of bare writes; the median of either counts.
const FAN_OUTS: usize = 7;
/// How old everybody's ticket is in a storm: a day younger than the oldest that is taken.
const STORM_TICKET_DAYS: u32 = 6;
/// From the order to the last agent's having the task: so many times the fan-out itself, and this beside.
const LAST_TIMES: f64 = 1.2;
const LAST_MARGIN_MS: f64 = 10.0;
/// Servers that follow one queue, for how long, and what all of them may use of a core meanwhile.
const FOLLOWERS: usize = 10;
const FOLLOWED_SECS: u64 = 30;
const FOLLOWED_PERCENT: f64 = 3.0;
/// Connections that a server is configured for, and has, that is compared with.
const FEW: usize = 100;

/// The benchmarks that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// Memory of a connection at rest, over 1 KiB
    Idle,
    /// Server's CPU of a full connect, over that of an in-memory handshake
    Connect,
    /// Rate of a task to everybody, over that of a bare loop of writes
    Fanout,
    /// From the order to the device's having it, while all others are idle
    Latency,
    /// Time until all are back after a kill -9 of the server, over what resuming takes in peace
    Storm,
    /// CPU of ten servers of one site while nothing happens
    Follow,
    /// Memory, connecting and how late a task is by WebSocket and long-poll, over HTTP and HTTPS, each beside TCP in the same run
    Roads,
}

/// What a bench comes to.
struct Outcome {
    figures: Value,
    floor: Value,
    ratio: Option<f64>,
    goal: Value,
    holds: bool,
}

/// Runs a benchmark and says its line.
///
/// # Errors
/// When it cannot be run.
pub(crate) fn run(arguments: &BenchArguments) -> anyhow::Result<()> {
    let usual = if arguments.bench == Bench::Roads { ROADS_AGENTS } else { AGENTS };
    let mut common = RunArguments::of_bench(arguments.agents.unwrap_or(usual), 1);
    if let Some(folder) = &arguments.plots {
        std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        let value = arguments.bench.to_possible_value().context("every bench has a name")?;
        common.hgrm = Some(folder.join(format!("{}.hgrm", value.get_name())));
        common.plots = Some(folder.clone());
    }
    let outcome = match arguments.bench {
        Bench::Idle => idle(&common)?,
        Bench::Connect => connect(&common)?,
        Bench::Fanout => fanout(&common)?,
        Bench::Latency => latency(&common)?,
        Bench::Storm => storm(&common)?,
        Bench::Follow => follow()?,
        Bench::Roads => roads::measure(&common)?,
    };
    let name = arguments.bench.to_possible_value().map(|value| value.get_name().to_owned());
    let Outcome { figures, floor, ratio, goal, holds } = outcome;
    let line = json!({
        "bench": name, "figures": figures, "floor": floor, "ratio": ratio, "goal": goal, "holds": holds,
    });
    println!("{line}");
    Ok(())
}

/// The scenario's result; one that was cut short is none.
fn whole(command: &Command) -> anyhow::Result<Value> {
    let result = scenario::figures_of(command)?;
    anyhow::ensure!(result["partial"] == false, "the run was cut short: {result}");
    Ok(result)
}

fn number(result: &Value, name: &str) -> anyhow::Result<f64> {
    number_of(&result["figures"], name)
}

fn number_of(figures: &Value, name: &str) -> anyhow::Result<f64> {
    figures[name].as_f64().ok_or_else(|| anyhow::anyhow!("the run has no figure {name}: {figures}"))
}

fn idle(run: &RunArguments) -> anyhow::Result<Outcome> {
    anyhow::ensure!(run.agents > FEW, "--agents is more than {FEW}, with which they are compared");
    let at_rest = |agents| {
        let run = RunArguments { agents, connections_max: Some(agents), ..run.clone() };
        whole(&Command::Idle(IdleArguments { run, seconds: 10 }))
    };
    let (few, many) = (at_rest(FEW)?, at_rest(run.agents)?);
    let bytes = |result| number(result, "server_resident_bytes");
    let per_connection = (bytes(&many)? - bytes(&few)?) / (run.agents - FEW) as f64;
    let ratio = per_connection / IDLE_BYTES;
    let figures = json!({
        "connections": run.agents, "bytes_per_connection": per_connection,
        "resident_bytes": bytes(&many)?, "resident_bytes_of_100": bytes(&few)?,
        "cpu_percent": many["figures"]["server_cpu_percent"],
        "kernel_bytes_per_connection_both_ends": many["figures"]["kernel_bytes_per_connection_both_ends"],
    });
    Ok(Outcome {
        figures,
        floor: json!({"bytes": IDLE_BYTES}),
        ratio: Some(ratio),
        goal: json!(1.0),
        holds: ratio <= 1.0,
    })
}

fn connect(run: &RunArguments) -> anyhow::Result<Outcome> {
    let before = handshake::measure(HANDSHAKES)?;
    let result = whole(&Command::Connect(ConnectArguments { run: run.clone(), resumed: false }))?;
    let floor = HandshakeFloor::between(before, handshake::measure(HANDSHAKES)?);
    let cpu_us = number(&result, "server_cpu_us_per_connect")?;
    let ratio = cpu_us / floor.full_us;
    let figures = json!({
        "connections": run.agents, "cpu_us_per_connect": cpu_us,
        "times_own_suite": cpu_us / floor.full_own_suite_us,
        "per_second": result["figures"]["per_second"], "latency": result["figures"]["latency"],
    });
    Ok(Outcome { figures, floor: json!(floor), ratio: Some(ratio), goal: json!(1.25), holds: ratio <= 1.25 })
}

fn fanout(run: &RunArguments) -> anyhow::Result<Outcome> {
    let result = whole(&Command::Fanout(FanoutArguments { run: run.clone(), tasks: FAN_OUTS }))?;
    let record_bytes = number(&result, "push_record_bytes")? as usize;
    let floor = writes::measure(run.agents, record_bytes, FAN_OUTS)?;
    let ratio = number(&result, "pushes_per_second")? / floor.per_second;
    let (fan_out_ms, last_ms) =
        (number(&result, "from_first_to_last_median_ms")?, number(&result, "last_has_it_median_ms")?);
    // Counted from the order: what the manager does before the commit is in it.
    let is_prompt = last_ms <= LAST_TIMES * fan_out_ms + LAST_MARGIN_MS;
    let figures = json!({
        "connections": run.agents, "per_second": result["figures"]["pushes_per_second"],
        "record_bytes": record_bytes, "fan_out_ms": fan_out_ms, "last_has_it_ms": last_ms,
        "accepted_ms": result["figures"]["accepted_median_ms"], "last_has_it_most_ms": LAST_TIMES * fan_out_ms + LAST_MARGIN_MS,
    });
    let holds = ratio >= 0.9 && is_prompt;
    Ok(Outcome { figures, floor: json!(floor), ratio: Some(ratio), goal: json!(0.9), holds })
}

fn latency(run: &RunArguments) -> anyhow::Result<Outcome> {
    let own = TrickleArguments { run: run.clone(), tasks_per_second: 20.0, seconds: 30 };
    let result = whole(&Command::Trickle(own))?;
    let p99_ms = result["figures"]["latency"]["p99_ms"].as_f64().unwrap_or(f64::INFINITY);
    let holds = p99_ms <= 10.0 && result["figures"]["missing"] == 0;
    let figures = json!({"idle": run.agents, "latency": result["figures"]["latency"], "tasks": result["figures"]["tasks"]});
    Ok(Outcome { figures, floor: Value::Null, ratio: None, goal: json!({"p99_ms": 10.0}), holds })
}

fn storm(run: &RunArguments) -> anyhow::Result<Outcome> {
    let result = whole(&Command::Storm(StormArguments { run: run.clone(), ticket_days: STORM_TICKET_DAYS }))?;
    let per_second = number(&result, "resumed_per_second_in_peace")?;
    let at_best_seconds = run.agents as f64 / per_second.max(1e-9);
    let ratio = number(&result, "seconds")? / at_best_seconds;
    // Whoever is refused while the server begins resumes twice.
    let resumed = number(&result, "resumed")? as usize;
    let holds = ratio <= 1.5
        && result["figures"]["back"] == run.agents
        && resumed >= run.agents
        && result["figures"]["full"] == 0;
    let figures = json!({
        "clients": run.agents, "ticket_days": STORM_TICKET_DAYS, "seconds": result["figures"]["seconds"], "resumed": result["figures"]["resumed"],
        "full": result["figures"]["full"], "latency": result["figures"]["latency"],
    });
    let floor = json!({"resumed_per_second": per_second, "seconds": at_best_seconds});
    Ok(Outcome { figures, floor, ratio: Some(ratio), goal: json!(1.5), holds })
}

/// Ten servers, each with an agent that says nothing.
fn follow() -> anyhow::Result<Outcome> {
    let run = RunArguments { servers: FOLLOWERS, ..RunArguments::of_bench(FOLLOWERS, 1) };
    let result = whole(&Command::Idle(IdleArguments { run, seconds: FOLLOWED_SECS }))?;
    let idle_percent = number(&result, "server_cpu_percent")?;
    Ok(Outcome {
        figures: json!({"servers": FOLLOWERS, "seconds": FOLLOWED_SECS, "idle_percent": idle_percent}),
        floor: Value::Null,
        ratio: None,
        goal: json!({"idle_percent": FOLLOWED_PERCENT}),
        holds: idle_percent < FOLLOWED_PERCENT,
    })
}
