//! `bgb-loadgen peers`: the same connections, the same load, at our server and at other people's, one after the other in one run.
//!
//! Each server is started on loopback with mutual TLS and as many clients; measured are connecting (full handshakes), resting and one message to
//! everybody. Our own agents verify each task and its proof and sign an answer, which the server keeps; the others' clients only hear.

mod program; // other servers: configurations and processes
mod publisher; // whoever publishes there

use std::time::{Duration, Instant};

use bgb_protocol::ids::TaskId;
use serde::Serialize;

use crate::authority::Authority;
use crate::clock::{SECOND_NS, now_ns};
use crate::crew::{Connecting, Crew, Playing, Waited};
use crate::fleet::Fleet;
use crate::interrupt;
use crate::lab::{Lab, LabOptions};
use crate::manager::Manager;
use crate::measure::{Cost, Latencies, Summary, median};
use crate::report;
use crate::worker::link::Progress;
use program::{Peer, RunningPeer};
use publisher::Publisher;

/// What connecting left behind settles within this.
const SETTLE_NS: u64 = 3 * SECOND_NS;
/// Messages to everybody; the median of them counts.
const MESSAGES: u8 = 7;
/// Handshakes under way at the most: few enough for the slowest.
const WINDOW: usize = 64;
/// How long connecting may take for each client, and a message to everybody.
const PER_CONNECT: Duration = Duration::from_millis(30);
const HAD_WITHIN: Duration = Duration::from_secs(60);
/// How often the site is asked how many answers it has.
const ASK_NS: u64 = SECOND_NS / 10;
/// In peace before a message, in nanoseconds.
const PAUSE_NS: u64 = SECOND_NS;

/// What came of one server.
#[derive(Clone, Debug, Serialize)]
struct Row {
    server: String,
    settings: String,
    connections: usize,
    connects_per_second: f64,
    cpu_us_per_connect: f64,
    kib_per_connection: f64,
    fan_out_per_second: f64,
    cpu_us_per_push: f64,
    latency: Summary,
}

/// `bgb-loadgen peers`.
#[derive(clap::Args)]
pub(crate) struct PeersArguments {
    /// Connections at each server
    #[arg(long, default_value_t = 15_000)]
    pub(crate) agents: usize,
    /// The file with the table, between marks of its own; without it the table is only printed
    #[arg(long)]
    pub(crate) file: Option<std::path::PathBuf>,
}

/// Measures all of them, and says the table and a line of JSON.
///
/// # Errors
/// When one cannot be measured.
pub(crate) fn run(arguments: &PeersArguments) -> anyhow::Result<()> {
    crate::worker::raise_descriptors();
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    // What cannot be measured is said, and the others are measured all the same.
    let mut note = |row: anyhow::Result<Row>, what: String| match row {
        Ok(row) => {
            eprintln!("bgb-loadgen: {}", line_of(&row).trim());
            rows.push(row);
        }
        Err(error) => {
            eprintln!("bgb-loadgen: {what} could not be measured: {error:#}");
            failed.push(what);
        }
    };
    for reactors in [1, 2] {
        interrupt::check()?;
        note(ours(arguments.agents, reactors), format!("bgb-server with {reactors} reactors"));
    }
    for peer in [Peer::Mosquitto, Peer::Nats, Peer::Nchan { workers: 1 }, Peer::Nchan { workers: 2 }] {
        if !interrupt::is_wanted() {
            note(theirs(peer, arguments.agents), format!("{peer:?}"));
        }
    }
    let is_ahead = is_ahead(&rows);
    let table = table(&rows);
    anyhow::ensure!(!interrupt::is_wanted(), "interrupted; what was measured until then:\n{table}");
    if let Some(file) = &arguments.file {
        report::write_between(file, &report::PEERS, &format!("{}\n\n{table}", report::machine()))?;
    }
    println!("{table}");
    println!(
        "{}",
        serde_json::json!({
            "bench": "peers", "figures": rows, "floor": null, "ratio": is_ahead, "goal": "more than 1: fan-out of two reactors over that of nginx's two workers",
            "holds": is_ahead.is_some_and(|times| times > 1.0),
        })
    );
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// Our fan-out with two reactors, over that of nginx with two workers.
fn is_ahead(rows: &[Row]) -> Option<f64> {
    let rate = |of: &str, settings: &str| {
        let row = rows.iter().find(|row| row.server.starts_with(of) && row.settings.starts_with(settings));
        row.map(|row| row.fan_out_per_second)
    };
    Some(rate("bgb-server", "2 ")? / rate("nginx", "2 ")?)
}

fn ours(agents: usize, reactors: usize) -> anyhow::Result<Row> {
    let server = format!("bgb-server {}", env!("CARGO_PKG_VERSION"));
    eprintln!("bgb-loadgen: {server}, {reactors} reactors");
    let options = LabOptions {
        devices: agents,
        reactors,
        servers: 1,
        connections_max: agents,
        has_web: false,
        keepalive_seconds: None,
        presence_full_seconds: None,
        has_strangers: false,
        days_ago: 0,
    };
    let lab = Lab::make(&options, |how_far| eprintln!("bgb-loadgen: {how_far}"))?;
    let (pid, manager) = (lab.server_pids()[0], lab.api()?);
    let crew = Crew::start(&lab.fleet(), agents, Playing::default())?;
    let settings = format!("{reactors} {}", if reactors == 1 { "reactor" } else { "reactors" });
    let cost = Box::new(move || Cost::of(pid));
    let mut contest = Contest { crew, agents, cost, answered_at: Some(lab.api()?) };
    contest.measure(server, settings, |_| manager.ping_all())
}

fn theirs(peer: Peer, agents: usize) -> anyhow::Result<Row> {
    let server = peer.version()?;
    eprintln!("bgb-loadgen: {server}, {}", peer.settings());
    let folder = tempfile::Builder::new().prefix("bgb-loadgen-").tempdir()?;
    let authority = Authority::new()?;
    let running = RunningPeer::start(peer, &authority, folder.path(), agents)?;
    let fleet = folder.path().join("fleet");
    Fleet::make_of(&authority, &fleet, running.address, agents)?;
    let crew = Crew::start(&fleet, agents, Playing { dialect: Some(peer.dialect()), ..Playing::default() })?;
    let mut publisher = Publisher::connect(peer.dialect(), &authority, running.address)?;
    let pid = running.pid();
    let cost = Box::new(move || Cost::of_family(pid));
    let mut contest = Contest { crew, agents, cost, answered_at: None };
    contest.measure(server, peer.settings(), |number| {
        let id = TaskId::from_bytes([number; 16]);
        publisher.publish(id)?;
        Ok(id)
    })
}

/// A server with its clients.
struct Contest {
    crew: Crew,
    agents: usize,
    cost: Box<dyn Fn() -> Cost>,
    /// Where clients answer what they hear, who counts the answers: the next message waits until that is done, since signatures that are verified
    /// meanwhile are no part of it.
    answered_at: Option<Manager>,
}

impl Contest {
    fn measure(
        &mut self,
        server: String,
        settings: String,
        mut publish: impl FnMut(u8) -> anyhow::Result<TaskId>,
    ) -> anyhow::Result<Row> {
        let all = self.agents as u64;
        let empty = (self.cost)();
        let from_ns = now_ns();
        let upto = self.agents;
        self.crew.connect(upto, from_ns, 0, Connecting { window: WINDOW, resumes: false, returns: false });
        let within = HAD_WITHIN.max(PER_CONNECT * self.agents as u32);
        self.wait(within, ("connected", all), |now| now.active as u64)?;
        let connected = (self.cost)().since(empty);
        let connects = self.crew.connects()?;
        let seconds = connects.last_ns.saturating_sub(from_ns) as f64 / SECOND_NS as f64;
        self.crew.rest_until(now_ns() + SETTLE_NS);
        let grown = (self.cost)().resident_bytes.saturating_sub(empty.resident_bytes);
        let (mut rates, mut spent_secs, mut latencies) = (Vec::new(), 0.0, Latencies::default());
        for number in 1..=MESSAGES {
            self.crew.rest_until(now_ns() + PAUSE_NS);
            let (before, progress, origin_ns) = ((self.cost)(), self.crew.progress(), now_ns());
            let id = publish(number)?;
            self.wait(HAD_WITHIN, ("message had", all), |now| now.had - progress.had)?;
            // All of them together: the kernel counts in hundredths of a second.
            spent_secs += (self.cost)().since(before).cpu_secs;
            if self.answered_at.is_some() {
                self.wait(HAD_WITHIN, ("answers kept", all), |now| now.kept - progress.kept)?;
                self.wait_until_counted(id, all)?;
            }
            let times = self.crew.task_times(id, origin_ns)?;
            anyhow::ensure!(times.count == all, "{} of {all} have the message", times.count);
            let seconds = times.last_ns.saturating_sub(times.first_ns) as f64 / SECOND_NS as f64;
            rates.push((all - 1) as f64 / seconds.max(1e-9));
            latencies.add(&times.latencies.pack())?;
        }
        Ok(Row {
            server,
            settings,
            connections: self.agents,
            connects_per_second: all as f64 / seconds.max(1e-9),
            cpu_us_per_connect: connected.cpu_secs * 1e6 / all as f64,
            kib_per_connection: grown as f64 / 1_024.0 / all as f64,
            fan_out_per_second: median(&mut rates),
            cpu_us_per_push: spent_secs * 1e6 / (all * u64::from(MESSAGES)) as f64,
            latency: latencies.summary(),
        })
    }

    /// Waits until the site has counted so many answers.
    fn wait_until_counted(&mut self, task: TaskId, all: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + HAD_WITHIN;
        while let Some(manager) = &self.answered_at {
            let counted = manager.task(task)?.counts.succeeded;
            if counted >= all {
                break;
            }
            anyhow::ensure!(Instant::now() < deadline, "the site has counted {counted} of {all} answers");
            self.crew.rest_until(now_ns() + ASK_NS);
            interrupt::check()?;
        }
        Ok(())
    }

    /// Waits; what does not come about is an error, since a comparison of halves is none.
    fn wait(
        &mut self,
        within: Duration,
        what: (&str, u64),
        count: impl Fn(&Progress) -> u64,
    ) -> anyhow::Result<()> {
        match self.crew.wait(within, what, count, |_| false) {
            Waited::Done => Ok(()),
            Waited::Interrupted => anyhow::bail!("interrupted"),
            Waited::TooLong | Waited::Limited => anyhow::bail!(
                "not all of {} {} within {} s: {:?}; {}",
                what.1,
                what.0,
                within.as_secs(),
                self.crew.progress(),
                self.crew.troubles.join("; ")
            ),
        }
    }
}

fn table(rows: &[Row]) -> String {
    let mut table = String::from(
        "| server | settings | connects a second | CPU of a connect, us | memory of a connection, KiB | to everybody, a second | CPU of a push, us | to everybody, p50, ms | p99, ms |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        table.push_str(&line_of(row));
    }
    table
}

fn line_of(row: &Row) -> String {
    let Row { server, settings, latency, .. } = row;
    let numbers = [
        row.connects_per_second,
        row.cpu_us_per_connect,
        row.kib_per_connection,
        row.fan_out_per_second,
        row.cpu_us_per_push,
        latency.p50_ms,
        latency.p99_ms,
    ];
    let numbers = numbers.map(report::number).join(" | ");
    format!("| {server} | {settings} | {numbers} |\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_each_figure_with_three_digits() {
        let latency = Latencies::default().summary();
        let row = Row {
            server: "server 1.0".to_owned(),
            settings: "1 thread".to_owned(),
            connections: 10,
            connects_per_second: 1_234.5,
            cpu_us_per_connect: 567.8,
            kib_per_connection: 0.98,
            fan_out_per_second: 55_555.5,
            cpu_us_per_push: 17.25,
            latency,
        };
        let table = table(&[row]);
        assert!(table.contains("| server 1.0 | 1 thread | 1,234 | 568 | 0.98 | 55,556 | 17.2 |"), "{table}");
    }
}
