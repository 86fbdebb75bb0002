//! `bgb-loadgen capacity`: what a site of so many devices needs, computed from what was measured.
//!
//! The model is small on purpose: every figure is a cost that `bgb-loadgen costs` has measured ([`Costs`], `costs.toml`) times how often it is
//! paid ([`Site`]). The costs are compared with what much larger runs have paid, and so is how long a task to everybody takes (`runs/`, in the
//! tests below). There all servers share the cores with the agents and the manager, which no site does: the rest cannot be compared on one machine.
//! docs/capacity.md shows it for three sizes.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::report::{self, Marks, number};

/// What was measured on the machine that BENCHMARKS.md names.
const MEASURED: &str = include_str!("../costs.toml");
/// Servers of one site (docs/configuration.md).
const SERVERS_MAX: u64 = 64;
/// Device numbers of one site (docs/protocol.md).
const DEVICES_MAX: u64 = 1 << 24;
/// How long a site keeps a task's answers after its end (site/src/store/retention.rs).
const DAYS_KEPT: f64 = 90.0;
/// The sizes that are shown where none is asked for.
const SIZES: [u64; 3] = [100_000, 1_000_000, 10_000_000];
/// The marks around the tables of docs/capacity.md.
const COMPARED: Marks = Marks {
    begin: "<!-- compared: written by bgb-loadgen capacity --against loadgen/runs/fleet-200000.json --file docs/capacity.md -->",
    end: "<!-- compared: end -->",
};
const COMPUTED: Marks = Marks {
    begin: "<!-- computed: written by bgb-loadgen capacity --file docs/capacity.md -->",
    end: "<!-- computed: end -->",
};
const DAY_SECS: f64 = 86_400.0;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// `costs.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Costs {
    /// The commit and the machine.
    pub(crate) measured: String,
    /// How many connections there were.
    pub(crate) agents: u64,
    pub(crate) server: ServerCosts,
    pub(crate) wire: WireCosts,
    pub(crate) manager: ManagerCosts,
}

/// What a notification server pays: bytes of memory, and microseconds of one core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServerCosts {
    /// Resident without connections.
    pub(crate) base_bytes: f64,
    /// Resident for each connection at rest.
    pub(crate) connection_bytes: f64,
    /// What the kernel holds for each.
    pub(crate) kernel_bytes: f64,
    pub(crate) full_connect_us: f64,
    pub(crate) resumed_connect_us: f64,
    pub(crate) keepalive_us: f64,
    /// From one push of a task for everybody to the next, by one reactor.
    pub(crate) push_us: f64,
    /// A push, and the answer to it.
    pub(crate) answered_us: f64,
}

/// What travels between server and device: bytes of packets with their headers, both ways together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WireCosts {
    pub(crate) full_connect_bytes: f64,
    pub(crate) resumed_connect_bytes: f64,
    pub(crate) keepalive_bytes: f64,
    /// A task's push, and the answer to it.
    pub(crate) answered_bytes: f64,
}

/// What the site's manager pays: microseconds of one core, and bytes of the database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ManagerCosts {
    /// The one writer's, for a device that comes or goes.
    pub(crate) presence_us: f64,
    /// The one writer's, for each device of a whole online list that says nothing new.
    pub(crate) listed_us: f64,
    /// The one writer's, for an answer.
    pub(crate) writer_us: f64,
    /// A verifier's, for an answer's signature; there is one verifier for each core.
    pub(crate) verifier_us: f64,
    pub(crate) device_bytes: f64,
    pub(crate) answer_bytes: f64,
}

/// `bgb-loadgen capacity`.
#[derive(clap::Args)]
pub(crate) struct CapacityArguments {
    /// Devices of the site; may be given several times [default: 100,000, 1,000,000 and 10,000,000]
    #[arg(long)]
    pub(crate) devices: Vec<u64>,
    #[command(flatten)]
    pub(crate) site: Site,
    /// Costs of another machine, as `bgb-loadgen costs --file` writes them
    #[arg(long)]
    pub(crate) costs: Option<PathBuf>,
    /// What `bgb-loadgen fleet --json` wrote: the model's figures beside those of the run, instead of the table
    #[arg(long, conflicts_with = "devices")]
    pub(crate) against: Option<PathBuf>,
    /// A file with marks for the table, between which it is written
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
}

/// A site, as it is planned.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Site {
    /// Connections of one notification server at the most
    #[arg(long, default_value_t = 100_000)]
    per_server: u64,
    /// Reactors of a notification server, a core each
    #[arg(long, default_value_t = 2)]
    reactors: u32,
    /// Cores of the manager: one writes, all verify
    #[arg(long, default_value_t = 4)]
    manager_cores: u32,
    /// Seconds from one keepalive to the next
    #[arg(long, default_value_t = 900)]
    keepalive_seconds: u32,
    /// Tasks for everybody, in a day
    #[arg(long, default_value_t = 10.0)]
    tasks_per_day: f64,
    /// How often a device connects, in a day
    #[arg(long, default_value_t = 4.0)]
    connects_per_day: f64,
    /// Seconds from one whole online list of a server to the next
    #[arg(long, default_value_t = 300)]
    presence_full_seconds: u32,
}

/// What it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Plan {
    sites: u64,
    /// Of all sites together.
    servers: u64,
    connections: f64,
    server_bytes: f64,
    resting_core_percent: f64,
    resting_bits_per_second: f64,
    fan_out_seconds: f64,
    task_bytes: f64,
    answers_seconds: f64,
    rows_per_second: f64,
    rows_per_second_most: f64,
    writer_percent: f64,
    database_bytes: f64,
    server_lost_seconds: f64,
    site_lost_seconds: f64,
    strangers_seconds: f64,
}

impl Site {
    fn plan(&self, devices: u64, costs: &Costs) -> Plan {
        let Costs { server, wire, manager, .. } = costs;
        // One more than the devices need, for when one is lost; a site that needs one only waits for that to come back.
        let servers_of = |devices: u64| match devices.div_ceil(self.per_server) {
            1 => 1,
            needed => needed + 1,
        };
        let is_enough = |sites: &u64| {
            servers_of(devices.div_ceil(*sites)) <= SERVERS_MAX && devices.div_ceil(*sites) <= DEVICES_MAX
        };
        let sites = (1..).find(is_enough).unwrap_or(1);
        let servers_of_site = servers_of(devices.div_ceil(sites));
        let servers = sites * servers_of_site;
        let devices = devices as f64;
        let connections = devices / servers as f64;
        let of_site = devices / sites as f64;
        let (reactors, keepalives) =
            (f64::from(self.reactors), connections / f64::from(self.keepalive_seconds));
        let connects = connections * self.connects_per_day / DAY_SECS;
        let resting_us = keepalives * server.keepalive_us + connects * server.resumed_connect_us;
        let resting_bytes = keepalives * wire.keepalive_bytes + connects * wire.resumed_connect_bytes;
        // Each step works on what the one before has finished, all servers at once; the slowest decides. One of the manager's cores writes, and
        // all of them verify.
        let answered_seconds = connections * server.answered_us / 1e6 / reactors;
        let both_us = (manager.verifier_us + manager.writer_us) / f64::from(self.manager_cores);
        let ingested_seconds = of_site * both_us.max(manager.writer_us) / 1e6;
        let answers_seconds = answered_seconds.max(ingested_seconds);
        let comes_back_within = |per_server: f64, us: f64| per_server * us / 1e6 / reactors;
        // Those of a lost server come to the others of their site, which do not take its tickets; where there is no other, it comes back itself.
        let server_lost_seconds = match servers_of_site - 1 {
            0 => comes_back_within(connections, server.resumed_connect_us),
            others => comes_back_within(connections / others as f64, server.full_connect_us),
        };
        // A device that connects has gone before.
        let presence_rows = of_site * 2.0 * self.connects_per_day / DAY_SECS;
        let answer_rows = of_site * self.tasks_per_day / DAY_SECS;
        let listed_rows = of_site / f64::from(self.presence_full_seconds);
        let writer_us = presence_rows * manager.presence_us
            + listed_rows * manager.listed_us
            + answer_rows * manager.writer_us;
        Plan {
            sites,
            servers,
            connections,
            server_bytes: server.base_bytes + connections * (server.connection_bytes + server.kernel_bytes),
            resting_core_percent: resting_us / 1e4,
            resting_bits_per_second: resting_bytes * 8.0,
            fan_out_seconds: connections * server.push_us / 1e6 / reactors,
            task_bytes: connections * wire.answered_bytes,
            answers_seconds,
            rows_per_second: presence_rows + answer_rows,
            rows_per_second_most: of_site / answers_seconds,
            writer_percent: writer_us / 1e4,
            database_bytes: of_site
                * (manager.device_bytes + self.tasks_per_day * DAYS_KEPT * manager.answer_bytes),
            server_lost_seconds,
            site_lost_seconds: comes_back_within(connections, server.resumed_connect_us),
            strangers_seconds: comes_back_within(connections, server.full_connect_us),
        }
    }
}

/// Prints the table, or writes it where it was asked for.
///
/// # Errors
/// When costs cannot be read, or the site is none.
pub(crate) fn run(arguments: &CapacityArguments) -> anyhow::Result<()> {
    let CapacityArguments { devices, site, costs, against, file } = arguments;
    let counts = [site.reactors, site.manager_cores, site.keepalive_seconds, site.presence_full_seconds];
    ensure!(
        site.per_server > 0 && counts.iter().all(|count| *count > 0),
        "--per-server, --reactors, --manager-cores, --keepalive-seconds and --presence-full-seconds are 1 at least"
    );
    ensure!(
        [site.tasks_per_day, site.connects_per_day].iter().all(|often| (0.0..=1e6).contains(often)),
        "--tasks-per-day and --connects-per-day are 0 to 1,000,000"
    );
    let sizes = if devices.is_empty() { &SIZES[..] } else { devices };
    ensure!(!sizes.contains(&0), "--devices is 1 at least");
    let costs = match costs {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
            read(&text).with_context(|| format!("{}", path.display()))?
        }
        None => read(MEASURED)?,
    };
    if let Some(path) = against {
        let run: Value =
            serde_json::from_slice(&fs::read(path).with_context(|| format!("{}", path.display()))?)
                .with_context(|| format!("{}", path.display()))?;
        let is_whole = run["scenario"] == "fleet" && run["partial"] == false;
        ensure!(is_whole, "{} is no run of `bgb-loadgen fleet` that came to its end", path.display());
        let compared = comparison(&costs, &run).with_context(|| format!("{}", path.display()))?;
        return tell(file.as_deref(), &COMPARED, &compared);
    }
    let table = format!("Costs: {}\n\n{}", costs.measured, table(site, sizes, &costs));
    tell(file.as_deref(), &COMPUTED, &table)
}

/// Writes a table between its marks where that was asked for, or prints it.
fn tell(file: Option<&Path>, marks: &Marks, table: &str) -> anyhow::Result<()> {
    match file {
        Some(file) => report::write_between(file, marks, table),
        None => {
            print!("{table}");
            Ok(())
        }
    }
}

fn read(text: &str) -> anyhow::Result<Costs> {
    let costs: Costs = toml::from_str(text)?;
    costs.check()?;
    Ok(costs)
}

impl Costs {
    /// Nothing is for nothing, and nothing costs more than can be counted.
    ///
    /// # Errors
    /// Which cost is none.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let costs = serde_json::to_value(self)?;
        let parts = costs.as_object().into_iter().flatten().filter_map(|(_, part)| part.as_object());
        for (name, cost) in parts.flatten() {
            let is_cost = cost.as_f64().is_some_and(|cost| cost > 0.0);
            ensure!(is_cost, "{name} is {cost}, which is no cost: it could not be measured on this machine");
        }
        Ok(())
    }
}

fn table(site: &Site, sizes: &[u64], costs: &Costs) -> String {
    let plans: Vec<Plan> = sizes.iter().map(|devices| site.plan(*devices, costs)).collect();
    let mut table = String::from("| devices |");
    for devices in sizes {
        let _ = write!(table, " {} |", number(*devices as f64));
    }
    table.push_str("\n|---|");
    table.push_str(&"---:|".repeat(sizes.len()));
    table.push('\n');
    let mut row = |what: &str, show: &dyn Fn(&Plan) -> String| {
        let _ = write!(table, "| {what} |");
        for plan in &plans {
            let _ = write!(table, " {} |", show(plan));
        }
        table.push('\n');
    };
    row("sites", &|plan| plan.sites.to_string());
    row("notification servers in all", &|plan| plan.servers.to_string());
    row("connections of each", &|plan| number(plan.connections));
    row("its memory at rest, kernel's part included", &|plan| {
        format!("{} GiB", number(plan.server_bytes / GIB))
    });
    row("its CPU at rest", &|plan| format!("{} % of a core", number(plan.resting_core_percent)));
    row("its network at rest", &|plan| format!("{} kbit/s", number(plan.resting_bits_per_second / 1_000.0)));
    row("a task is with everybody after", &|plan| seconds(plan.fan_out_seconds));
    row("a server's network for that task and its answers", &|plan| {
        format!("{} MB", number(plan.task_bytes / 1e6))
    });
    row("all answers are in the databases after", &|plan| seconds(plan.answers_seconds));
    row("a site's database writes meanwhile", &|plan| {
        format!("{} rows/s", number(plan.rows_per_second_most))
    });
    row("the same, averaged over the day", &|plan| format!("{} rows/s", number(plan.rows_per_second)));
    row("the CPU of a site's writer, averaged over the day", &|plan| {
        format!("{} % of a core", number(plan.writer_percent))
    });
    row("a site's database", &|plan| format!("{} GiB", number(plan.database_bytes / GIB)));
    row("a server is lost: its devices are with the others after", &|plan| seconds(plan.server_lost_seconds));
    row("all servers start again: everybody is back, with tickets, after", &|plan| {
        seconds(plan.site_lost_seconds)
    });
    row("the same where no ticket is good any more", &|plan| seconds(plan.strangers_seconds));
    table
}

fn seconds(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 600.0 => format!("{} s", number(seconds)),
        seconds if seconds < 7_200.0 => format!("{} min", number(seconds / 60.0)),
        seconds => format!("{} h", number(seconds / 3_600.0)),
    }
}

/// A figure of the model, and what a run has measured of it.
#[derive(Clone, Debug)]
struct Compared {
    what: &'static str,
    unit: &'static str,
    model: f64,
    run: f64,
}

/// What the model says of a run of `bgb-loadgen fleet`, beside what that measured.
fn compare(costs: &Costs, run: &Value) -> anyhow::Result<Vec<Compared>> {
    let Costs { server, manager, .. } = costs;
    let compared = |what, unit, model, name: &str| -> anyhow::Result<Compared> {
        let run = run["figures"][name].as_f64().with_context(|| format!("the run has no figure {name}"))?;
        Ok(Compared { what, unit, model, run })
    };
    let manager_us = manager.writer_us + manager.verifier_us;
    let held = run["figures"]["held"].as_f64().context("the run has no figure held")?;
    Ok(vec![
        compared(
            "a server's memory of a connection",
            "bytes",
            server.connection_bytes,
            "server_bytes_per_connection",
        )?,
        compared(
            "the kernel's, at both ends",
            "bytes",
            2.0 * server.kernel_bytes,
            "kernel_bytes_per_connection_both_ends",
        )?,
        compared(
            "a server's CPU of a full connect",
            "us",
            server.full_connect_us,
            "server_cpu_us_per_connect",
        )?,
        compared("of a task and its answer", "us", server.answered_us, "server_cpu_us_per_task_and_answer")?,
        compared("the manager's CPU of an answer", "us", manager_us, "manager_cpu_us_per_answer")?,
        compared(
            "the database's bytes of a device",
            "bytes",
            manager.device_bytes,
            "database_bytes_per_device",
        )?,
        compared("and of an answer", "bytes", manager.answer_bytes, "database_bytes_per_answer")?,
        compared("a task is with everybody after", "s", held * server.push_us / 1e6, "last_has_it_seconds")?,
    ])
}

/// The two beside each other.
fn comparison(costs: &Costs, run: &Value) -> anyhow::Result<String> {
    let mut table = String::from("| what | model | run | run / model |\n|---|---:|---:|---:|\n");
    for Compared { what, unit, model, run } in compare(costs, run)? {
        let (shown, measured) = (number(model), number(run));
        let _ = writeln!(table, "| {what} | {shown} {unit} | {measured} {unit} | {:.2} |", run / model);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// How far a run may be from what is computed with: other sizes, and a machine that changes its pace.
    const DIFFERS_AT_MOST: f64 = 0.5;
    /// And how many times as much time it may take where dozens of processes share two cores and their caches, 122 of them with a million connections: the
    /// costs were measured with three.
    const CROWDED_TIMES: f64 = 4.0;
    const CROWDED_CPU_TIMES: f64 = 3.0;
    /// And where it was some twenty.
    const SHARED_TIMES: f64 = 2.5;

    fn run_of_200_000() -> Value {
        serde_json::from_str(include_str!("../runs/fleet-200000.json")).unwrap()
    }

    fn run_of_500_000() -> Value {
        serde_json::from_str(include_str!("../runs/fleet-500000.json")).unwrap()
    }

    fn run_of_1_000_000() -> Value {
        serde_json::from_str(include_str!("../runs/fleet-1000000.json")).unwrap()
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: CapacityArguments,
    }

    fn arguments(line: &[&str]) -> CapacityArguments {
        Line::parse_from([&["capacity"], line].concat()).arguments
    }

    /// Costs that are easy to reckon with.
    fn costs() -> Costs {
        Costs {
            measured: "nowhere".to_owned(),
            agents: 1,
            server: ServerCosts {
                base_bytes: 1_000.0,
                connection_bytes: 60.0,
                kernel_bytes: 40.0,
                full_connect_us: 500.0,
                resumed_connect_us: 200.0,
                keepalive_us: 30.0,
                push_us: 20.0,
                answered_us: 40.0,
            },
            wire: WireCosts {
                full_connect_bytes: 8_000.0,
                resumed_connect_bytes: 4_000.0,
                keepalive_bytes: 300.0,
                answered_bytes: 1_500.0,
            },
            manager: ManagerCosts {
                presence_us: 5.0,
                listed_us: 1.0,
                writer_us: 10.0,
                verifier_us: 80.0,
                device_bytes: 700.0,
                answer_bytes: 100.0,
            },
        }
    }

    #[test]
    fn each_figure_is_a_cost_times_how_often_it_is_paid() {
        let line =
            ["--per-server", "1000", "--reactors", "2", "--manager-cores", "4", "--keepalive-seconds", "100"];
        let often = ["--connects-per-day", "0", "--tasks-per-day", "2", "--presence-full-seconds", "200"];
        let site = arguments(&[&line[..], &often].concat()).site;
        let plan = site.plan(4_000, &costs());
        assert_eq!((plan.sites, plan.servers, plan.connections), (1, 5, 800.0), "one may be lost");
        assert_eq!(plan.server_bytes, 1_000.0 + 800.0 * 100.0);
        // Eight keepalives a second.
        assert_eq!(plan.resting_core_percent, 0.024);
        assert_eq!(plan.resting_bits_per_second, 19_200.0);
        assert_eq!((plan.fan_out_seconds, plan.task_bytes), (0.008, 1_200_000.0));
        // Servers 0.016 s, the manager's cores 0.09 s, of which its writer 0.04 s.
        assert!((plan.answers_seconds - 0.09).abs() < 1e-9, "{plan:?}");
        assert!((plan.rows_per_second_most - 44_444.4).abs() < 0.1, "{plan:?}");
        // Twenty rows of lists a second, and 8,000 answers a day.
        assert!((plan.writer_percent - (20.0 + 8_000.0 / 86_400.0 * 10.0) / 1e4).abs() < 1e-9, "{plan:?}");
        assert_eq!(plan.database_bytes, 4_000.0 * (700.0 + 2.0 * 90.0 * 100.0));
        assert_eq!((plan.site_lost_seconds, plan.strangers_seconds), (0.08, 0.2));
        assert_eq!(plan.server_lost_seconds, 0.05);
        assert_eq!(site.plan(900, &costs()).server_lost_seconds, 0.09, "its own devices, with their tickets");
    }

    #[test]
    fn a_larger_run_paid_about_what_is_computed_with() {
        let runs = [(run_of_200_000(), false), (run_of_500_000(), true), (run_of_1_000_000(), true)];
        for (whole, is_crowded) in runs {
            for Compared { what, unit, model, run } in compare(&read(MEASURED).unwrap(), &whole).unwrap() {
                let most = match unit {
                    "s" if is_crowded => CROWDED_TIMES,
                    "us" if is_crowded => CROWDED_CPU_TIMES,
                    "s" => SHARED_TIMES,
                    _ => 1.0 + DIFFERS_AT_MOST,
                };
                assert!(
                    (1.0 - DIFFERS_AT_MOST..=most).contains(&(run / model)),
                    "{what}: {model} in the model, {run} in the run"
                );
            }
        }
    }

    #[test]
    fn the_page_has_what_is_computed() {
        let (page, costs) = (include_str!("../../docs/capacity.md"), read(MEASURED).unwrap());
        assert!(
            page.contains(&table(&arguments(&[]).site, &SIZES, &costs)),
            "bgb-loadgen capacity --file docs/capacity.md"
        );
        assert!(page.contains(&comparison(&costs, &run_of_200_000()).unwrap()), "the same with --against");
    }

    #[test]
    fn a_fleet_that_outgrows_a_site_is_parted() {
        let plan = arguments(&["--per-server", "1000"]).site.plan(100_000, &costs());
        assert_eq!((plan.sites, plan.servers), (2, 102));
        assert_eq!(plan.answers_seconds, 1.125, "of 50,000 answers each");
        let plan = arguments(&["--per-server", "1000000"]).site.plan(40_000_000, &costs());
        assert_eq!(plan.sites, 3, "by the numbers that a site has");
    }

    #[test]
    fn costs_that_are_none_are_refused() {
        let text = toml::to_string(&costs()).unwrap();
        assert_eq!(read(&text).unwrap(), costs());
        for none in ["0.0", "-1.0", "inf", "nan"] {
            let altered = text.replace("writer_us = 10.0", &format!("writer_us = {none}"));
            assert!(read(&altered).unwrap_err().to_string().contains("writer_us"), "{none}");
        }
        assert!(read(&text.replace("writer_us", "writer_ms")).is_err());
    }

    #[test]
    fn what_is_no_site_is_refused() {
        for line in [
            ["--per-server", "0"],
            ["--reactors", "0"],
            ["--devices", "0"],
            ["--tasks-per-day=-1", "--devices=5"],
        ] {
            assert!(run(&arguments(&line)).is_err(), "{line:?}");
        }
        assert!(run(&arguments(&["--costs", "/nowhere"])).unwrap_err().to_string().contains("/nowhere"));
    }
}
