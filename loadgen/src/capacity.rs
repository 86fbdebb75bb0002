//! `bgb-loadgen capacity`: what a site of so many devices needs, computed from what was measured.
//!
//! The model is small on purpose: every figure is a cost that a benchmark has measured ([`Costs`], `costs.toml`) times how often it is paid
//! ([`Site`]). What it says of runs that were made is compared with what they measured (`runs/`, in the tests below). docs/capacity.md shows it
//! for three sizes.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::report::number;

/// What was measured, with the commands beside it.
const MEASURED: &str = include_str!("../costs.toml");
const DAY_SECS: f64 = 86_400.0;
const HOUR_SECS: f64 = 3_600.0;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// `costs.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Costs {
    server: ServerCosts,
    wire: WireCosts,
    site: SiteCosts,
}

/// What a notification server pays: bytes of memory, and microseconds of one core.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerCosts {
    base_bytes: f64,
    connection_bytes: f64,
    kernel_bytes: f64,
    full_connect_us: f64,
    resumed_connect_us: f64,
    keepalive_us: f64,
    push_us: f64,
    answer_us: f64,
}

/// What travels, in bytes of IP packets, both ways together.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireCosts {
    full_connect_bytes: f64,
    resumed_connect_bytes: f64,
    keepalive_bytes: f64,
    push_bytes: f64,
    answer_bytes: f64,
}

/// What the site's manager and database pay.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteCosts {
    presence_rows_per_second: f64,
    result_rows_per_second: f64,
    verify_us: f64,
    device_bytes: f64,
    result_bytes: f64,
}

/// A site, as it is planned.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Site {
    /// Devices
    #[arg(long, default_value_t = 100_000)]
    devices: u64,
    /// Connections of one notification server at the most
    #[arg(long, default_value_t = 100_000)]
    per_server: u64,
    /// Reactors of a notification server, a core each
    #[arg(long, default_value_t = 2)]
    reactors: u32,
    /// Seconds from one keepalive to the next
    #[arg(long, default_value_t = 900)]
    keepalive_secs: u32,
    /// Tasks for everybody, in a day
    #[arg(long, default_value_t = 10.0)]
    tasks_per_day: f64,
    /// How often a device connects, in a day
    #[arg(long, default_value_t = 4.0)]
    connects_per_day: f64,
    /// For how many days results are kept
    #[arg(long, default_value_t = 30.0)]
    days_kept: f64,
    /// Cores that verify the signatures of results
    #[arg(long, default_value_t = 2)]
    verifiers: u32,
}

/// What it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Plan {
    servers: u64,
    connections: f64,
    server_bytes: f64,
    resting_core_percent: f64,
    resting_bits_per_second: f64,
    fan_out_seconds: f64,
    fan_out_bytes: f64,
    answers_seconds: f64,
    rows_per_second: f64,
    database_bytes: f64,
    server_lost_seconds: f64,
    site_lost_seconds: f64,
    strangers_seconds: f64,
}

impl Site {
    fn plan(&self, costs: &Costs) -> Plan {
        let Costs { server, wire, site } = costs;
        let devices = self.devices as f64;
        let servers = self.devices.div_ceil(self.per_server.max(1)).max(1);
        let connections = devices / servers as f64;
        let (cores, keepalives) = (f64::from(self.reactors), connections / f64::from(self.keepalive_secs));
        let connects = connections * self.connects_per_day / DAY_SECS;
        let resting_us = keepalives * server.keepalive_us + connects * server.resumed_connect_us;
        let resting_bytes = keepalives * wire.keepalive_bytes + connects * wire.resumed_connect_bytes;
        // Answers come while the task still goes out; both are the reactors' work.
        let fan_out_seconds = connections * server.push_us / 1e6 / cores;
        let given_seconds = connections * (server.push_us + server.answer_us) / 1e6 / cores;
        let verified_seconds = devices * site.verify_us / 1e6 / f64::from(self.verifiers);
        let counted_seconds = devices / site.result_rows_per_second;
        // Each step works on what the one before has finished; the slowest decides.
        let answers_seconds = given_seconds.max(verified_seconds).max(counted_seconds);
        let per_second = |us: f64| cores * 1e6 / us;
        // Those who lose their server come to the others, and one that is left alone takes them all.
        let others = (servers as f64 - 1.0).max(1.0);
        let rows = devices * (2.0 * self.connects_per_day + self.tasks_per_day) / DAY_SECS;
        Plan {
            servers,
            connections,
            server_bytes: server.base_bytes + connections * (server.connection_bytes + server.kernel_bytes),
            resting_core_percent: resting_us / 1e6 * 100.0,
            resting_bits_per_second: resting_bytes * 8.0,
            fan_out_seconds,
            fan_out_bytes: connections * (wire.push_bytes + wire.answer_bytes),
            answers_seconds,
            rows_per_second: rows,
            database_bytes: devices
                * (site.device_bytes + self.tasks_per_day * self.days_kept * site.result_bytes),
            server_lost_seconds: connections / (others * per_second(server.resumed_connect_us)),
            site_lost_seconds: connections / per_second(server.resumed_connect_us),
            strangers_seconds: connections / per_second(server.full_connect_us),
        }
    }
}

/// Prints a page.
///
/// # Errors
/// When `costs.toml` of this build says something else than costs.
pub(crate) fn run(site: &Site) -> anyhow::Result<()> {
    print!("{}", page(site, &costs()?));
    Ok(())
}

fn costs() -> anyhow::Result<Costs> {
    Ok(toml::from_str(MEASURED)?)
}

fn page(site: &Site, costs: &Costs) -> String {
    let plan = site.plan(costs);
    let mut page = String::new();
    let mut row = |what: &str, value: String| {
        let _ = writeln!(page, "| {what} | {value} |");
    };
    row("notification servers", format!("{} of {} reactors", plan.servers, site.reactors));
    row("connections of each", number(plan.connections));
    row("memory of each for them, kernel's part included", format!("{} GiB", number(plan.server_bytes / GIB)));
    row("CPU of each at rest", format!("{} % of a core", number(plan.resting_core_percent)));
    row("network of each at rest", format!("{} kbit/s", number(plan.resting_bits_per_second / 1_000.0)));
    row("a task is with everybody after", seconds(plan.fan_out_seconds));
    row("network of each for that task and its answers", format!("{} MB", number(plan.fan_out_bytes / 1e6)));
    row("all answers are in the database after", seconds(plan.answers_seconds));
    row("database writes, averaged over the day", format!("{} rows a second", number(plan.rows_per_second)));
    row("database", format!("{} GiB", number(plan.database_bytes / GIB)));
    row("a server is lost: its devices are with the others after", seconds(plan.server_lost_seconds));
    row("all servers start again: everybody is back, with tickets, after", seconds(plan.site_lost_seconds));
    row("the same without a ticket that is good", seconds(plan.strangers_seconds));
    page
}

fn seconds(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 600.0 => format!("{} s", number(seconds)),
        seconds if seconds < 2.0 * HOUR_SECS => format!("{} min", number(seconds / 60.0)),
        seconds => format!("{} h", number(seconds / HOUR_SECS)),
    }
}
