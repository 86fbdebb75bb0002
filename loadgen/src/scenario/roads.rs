//! The same agents by every road, one road after the other: what a connection at rest costs the server's memory, how fast all connect in full, and how late
//! tasks for single devices are while the others are idle. TCP is one of them, so that all stand beside it.
//!
//! Servers and agents begin anew each time: no road finds what another has left in an allocator. First comes memory, before there are tasks, which would
//! be in it: of a server that holds all, less that of one that holds few, each configured for as many. Then come rounds, in each of which every road has its
//! turn, so that the machine's pace is common to all. What it does now and then is in single rounds: the median of the rounds counts. In the last round
//! some agents are far away (`distance.rs`): on loopback a round trip more, or less, is nothing that could be told.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::arguments::RoadsArguments;
use crate::client::road::Way;
use crate::clock::{SECOND_NS, now_ns};
use crate::measure::{Summary, kernel_bytes, median};
use crate::scenario::Run;
use crate::scenario::trickle::{Trickled, trickle};

/// Connections of a server that is compared with, or half of all.
const FEW: usize = 100;
/// Agents that are far away, at the most.
const AFAR: usize = 200;
/// What connecting left behind settles within this, before tasks are ordered.
const SETTLE_NS: u64 = 3 * SECOND_NS;
/// Tasks to single devices are so far apart: each is valid for a minute, and a site has 1,000 at a time.
const GAP_NS: u64 = SECOND_NS / 16;

/// What a road comes to.
#[derive(Serialize)]
struct Figures {
    bytes_per_connection: Option<f64>,
    /// Of sockets' structures and buffers, and of whatever else this machine did meanwhile.
    kernel_bytes_per_connection_both_ends: f64,
    connects_per_second: f64,
    server_cpu_us_per_connect: f64,
    tasks: u64,
    missing: u64,
    lost: u64,
    /// Of all rounds.
    latency: Summary,
    /// The medians of the rounds.
    p50_ms: f64,
    p99_ms: f64,
    p99_ms_by_round: Vec<f64>,
    /// The same from afar.
    afar: Option<Afar>,
}

/// Tasks for some of those who are far away.
#[derive(Serialize)]
struct Afar {
    agents: usize,
    round_trip_ms: u64,
    tasks: u64,
    missing: u64,
    lost: u64,
    latency: Summary,
}

/// What is known of a road so far.
struct Measured {
    way: Way,
    bytes: Option<f64>,
    kernel_bytes: f64,
    per_second: Vec<f64>,
    cpu_us: Vec<f64>,
    trickled: Trickled,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
    lost: u64,
    afar: Option<Afar>,
}

/// What a server and the kernel have for connections at rest.
struct Resident {
    server: Option<f64>,
    kernel: f64,
}

pub(super) fn run(mut run: Run, arguments: &RoadsArguments) -> anyhow::Result<Value> {
    ensure!(run.lab.is_some(), "roads are compared at a site of the run's own: leave --site out");
    ensure!(run.agents() > 1, "--agents is 2 at least");
    let all = run.agents();
    let rest_ns = arguments.rest_seconds * SECOND_NS;
    let tasks = (arguments.seconds * SECOND_NS / GAP_NS).max(1);
    let mut roads = Way::ALL.map(Measured::of);
    for road in &mut roads {
        road.measure_memory(&mut run, (FEW.min(all / 2), all), rest_ns);
    }
    for number in 1..=arguments.rounds {
        // Another one is first each time: what the run itself leaves behind is not always the same road's.
        roads.rotate_left(1);
        for road in &mut roads {
            if run.is_partial {
                break;
            }
            eprintln!("bgb-loadgen: round {number} of {}, {}", arguments.rounds, road.way.name());
            road.play_round(&mut run, tasks)?;
        }
    }
    if arguments.round_trip_ms > 0 && !run.is_partial {
        let lab = run.lab.as_mut().context("the site is not the run's own")?;
        lab.move_afar(Duration::from_millis(arguments.round_trip_ms))?;
        for road in &mut roads {
            eprintln!("bgb-loadgen: {} ms away, {}", arguments.round_trip_ms, road.way.name());
            road.play_afar(&mut run, tasks, arguments.round_trip_ms)?;
        }
    }
    let figures: Map<String, Value> = roads
        .into_iter()
        .map(|road| Ok((road.way.name().to_owned(), serde_json::to_value(road.figures())?)))
        .collect::<anyhow::Result<_>>()?;
    run.figure("few", FEW.min(all / 2));
    run.figure("rounds", arguments.rounds);
    run.figure("roads", figures);
    run.end("roads")
}

impl Measured {
    fn of(way: Way) -> Self {
        Self {
            way,
            bytes: None,
            kernel_bytes: 0.0,
            per_second: Vec::new(),
            cpu_us: Vec::new(),
            trickled: Trickled::default(),
            p50_ms: Vec::new(),
            p99_ms: Vec::new(),
            lost: 0,
            afar: None,
        }
    }

    fn measure_memory(&mut self, run: &mut Run, (few, all): (usize, usize), rest_ns: u64) {
        if run.is_partial {
            return;
        }
        eprintln!("bgb-loadgen: memory, {}", self.way.name());
        let [of_few, of_all] = [few, all].map(|agents| self.at_rest(run, agents, rest_ns));
        let each = |of_all: f64, of_few: f64| (of_all - of_few) / (all - few) as f64;
        self.bytes = of_all.server.zip(of_few.server).map(|(of_all, of_few)| each(of_all, of_few));
        self.kernel_bytes = each(of_all.kernel, of_few.kernel);
    }

    /// What so many connections have at rest.
    fn at_rest(&mut self, run: &mut Run, agents: usize, rest_ns: u64) -> Resident {
        let begun = run.begin_anew(self.way, agents);
        if run.or_partial(begun).is_none() {
            return Resident { server: None, kernel: 0.0 };
        }
        let kernel = kernel_bytes();
        run.connect_upto(agents, false, true);
        run.rest_until(now_ns() + rest_ns);
        let server = run.server_cost().map(|cost| cost.resident_bytes as f64);
        let kernel = kernel_bytes().saturating_sub(kernel) as f64;
        self.go(run);
        Resident { server, kernel }
    }

    /// Everybody connects, and some have tasks.
    fn play_round(&mut self, run: &mut Run, tasks: u64) -> anyhow::Result<()> {
        let all = run.agents();
        let begun = run.begin_anew(self.way, all);
        if run.or_partial(begun).is_none() {
            return Ok(());
        }
        let before = run.server_cost();
        let from_ns = run.connect(false, true);
        let connects = run.connects();
        let seconds = connects.last_ns.saturating_sub(from_ns) as f64 / SECOND_NS as f64;
        if run.is_partial {
            // The rate of a part could not stand beside that of all.
            return Ok(());
        }
        self.per_second.push(all as f64 / seconds.max(1e-9));
        if let (Some(before), Some(after)) = (before, run.server_cost()) {
            self.cpu_us.push(after.since(before).cpu_secs * 1e6 / all as f64);
        }
        run.rest_until(now_ns() + SETTLE_NS);
        let trickled = trickle(run, tasks, GAP_NS)?;
        let Summary { p50_ms, p99_ms, .. } = trickled.latencies.summary();
        self.p50_ms.push(p50_ms);
        self.p99_ms.push(p99_ms);
        self.trickled.add(&trickled)?;
        self.go(run);
        Ok(())
    }

    /// Some connect from afar, and have tasks.
    fn play_afar(&mut self, run: &mut Run, tasks: u64, round_trip_ms: u64) -> anyhow::Result<()> {
        let agents = run.agents().min(AFAR);
        let begun = run.begin_anew(self.way, agents);
        if run.is_partial || run.or_partial(begun).is_none() {
            return Ok(());
        }
        run.connect_upto(agents, false, true);
        run.rest_until(now_ns() + SETTLE_NS);
        let Trickled { tasks, missing, latencies } = trickle(run, tasks, GAP_NS)?;
        let lost = run.crew.progress().lost;
        self.afar = Some(Afar { agents, round_trip_ms, tasks, missing, lost, latency: latencies.summary() });
        run.disconnect();
        Ok(())
    }

    /// Everybody goes, and is counted who was lost before.
    fn go(&mut self, run: &mut Run) {
        self.lost += run.crew.progress().lost;
        run.disconnect();
    }

    fn figures(mut self) -> Figures {
        let Trickled { tasks, missing, latencies } = &self.trickled;
        let p99_ms_by_round = self.p99_ms.clone();
        Figures {
            bytes_per_connection: self.bytes,
            kernel_bytes_per_connection_both_ends: self.kernel_bytes,
            connects_per_second: median(&mut self.per_second),
            server_cpu_us_per_connect: median(&mut self.cpu_us),
            tasks: *tasks,
            missing: *missing,
            lost: self.lost,
            latency: latencies.summary(),
            p50_ms: median(&mut self.p50_ms),
            p99_ms: median(&mut self.p99_ms),
            p99_ms_by_round,
            afar: self.afar,
        }
    }
}
