//! Scenarios: what the crew is told to do, what is asked of it then, and the figures that come of it.
//!
//! Each ends with figures also where it was cut short, marked as partial: what was measured until then is kept.

mod connect;
mod costs;
mod fanout;
mod fleet;
mod flood;
mod idle;
mod mixed;
mod roads;
mod size;
mod soak;
mod storm;
mod trickle;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bgb_protocol::api::Target;
use bgb_protocol::ids::TaskId;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::arguments::{Command, RunArguments};
use crate::client::road::Way;
use crate::clock::{SECOND_NS, now_ns};
use crate::crew::{Connecting, Connects, Crew, Moment, Playing, TaskTimes, Waited};
use crate::fleet::Fleet;
use crate::interrupt;
use crate::lab::{Lab, LabOptions};
use crate::manager::{Manager, VALID_FOR_ONE};
use crate::measure::{Cost, Latencies, descriptors, descriptors_max};
use crate::plots::{self, Series};
use crate::report;
use crate::worker::link::{self, Progress};

/// Connecting may take so long for each agent before the run gives up, and so long in all at least.
const PER_CONNECT: Duration = Duration::from_millis(20);
const CONNECT_AT_LEAST: Duration = Duration::from_secs(60);
/// So long nobody new is there: the others do not come.
const NOBODY_COMES: Duration = Duration::from_secs(90);
/// How long it may take until all have ended their connections.
const ENDED_WITHIN: Duration = Duration::from_secs(60);
/// Servers of one site (docs/configuration.md).
const SERVERS_MAX: usize = 64;
/// Connections that each reactor has room for beside the agents where strangers come.
const STRANGERS_MAX: usize = 4_096;
/// A server with so few descriptors left takes no more connections: it keeps some for its files.
const DESCRIPTORS_LEFT: u64 = 64;
/// How often the site is asked how many answers it has.
const ASK_NS: u64 = SECOND_NS / 10;
/// The loop of a worker that is later than this may have been the limit itself.
const LATE: Duration = Duration::from_millis(250);

/// A run: a site, a crew, and what is kept of both.
pub(crate) struct Run {
    arguments: RunArguments,
    /// Goes with everything in it when the run is over; before the crew there is nobody in it.
    crew: Crew,
    manager: Manager,
    server_pids: Vec<u32>,
    figures: Map<String, Value>,
    is_partial: bool,
    latencies: Option<Latencies>,
    /// Last, so that it goes last: who plays in it ends before.
    lab: Option<Lab>,
}

/// What is special about a site of a run's own.
#[derive(Clone, Copy, Debug, Default)]
struct Setting {
    /// Servers take addresses of this machine for strangers'.
    has_strangers: bool,
    /// So many days the programs' wall clocks are behind.
    days_ago: u32,
    /// Servers listen for HTTP and HTTPS, also where nobody comes by them at first.
    has_web: bool,
}

/// How agents are to be played.
fn playing(arguments: &RunArguments) -> Playing {
    let RunArguments { sources, at_rest, way, .. } = *arguments;
    Playing { sources, at_rest, dialect: None, way }
}

/// Runs a scenario and says what came of it.
///
/// # Errors
/// When it cannot be run at all.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let result = figures_of(command)?;
    match result["figures"]["page"].as_str() {
        Some(page) => println!("{page}"),
        None => println!("{}", serde_json::to_string_pretty(&result)?),
    }
    Ok(())
}

/// Runs a scenario and gives what came of it.
///
/// # Errors
/// When it cannot be run at all.
pub(crate) fn figures_of(command: &Command) -> anyhow::Result<Value> {
    match command {
        Command::Connect(own) => connect::run(Run::begin(&own.run)?, own),
        Command::Costs(own) => costs::run(Run::begin(&costs::arguments_of(own)?)?, own),
        Command::Idle(own) => idle::run(Run::begin(&own.run)?, own),
        Command::Fanout(own) => fanout::run(Run::begin(&own.run)?, own),
        Command::Trickle(own) => trickle::run(Run::begin(&own.run)?, own),
        Command::Flood(own) => flood::run(Run::begin_among_strangers(&own.run)?, own),
        Command::Mixed(own) => mixed::run(Run::begin(&own.run)?, own),
        Command::Roads(own) => roads::run(Run::begin_on_all_roads(&own.run)?, own),
        Command::Soak(own) => soak::run(Run::begin(&own.run)?, own),
        Command::Fleet(own) => fleet::run(Run::begin(&own.run)?, own),
        Command::Storm(own) => storm::run(Run::begin_days_ago(&own.run, own.ticket_days)?),
        Command::Size(own) => size::run(Run::begin(&size::arguments_of(own))?, own),
        Command::Devices(_)
        | Command::Worker(_)
        | Command::Bench(_)
        | Command::Capacity(_)
        | Command::Peers(_)
        | Command::Report(_)
        | Command::FloodWorker(_)
        | Command::FloorReader(_) => bail!("that is no scenario"),
    }
}

impl Run {
    fn begin(arguments: &RunArguments) -> anyhow::Result<Self> {
        Self::begin_with(arguments, Setting::default())
    }

    /// The same at programs whose wall clocks are so many days behind.
    fn begin_days_ago(arguments: &RunArguments, days_ago: u32) -> anyhow::Result<Self> {
        Self::begin_with(arguments, Setting { days_ago, ..Setting::default() })
    }

    /// The same at servers that take addresses of this machine for strangers'.
    fn begin_among_strangers(arguments: &RunArguments) -> anyhow::Result<Self> {
        Self::begin_with(arguments, Setting { has_strangers: true, ..Setting::default() })
    }

    /// The same at servers to which every road leads, whichever comes first.
    fn begin_on_all_roads(arguments: &RunArguments) -> anyhow::Result<Self> {
        Self::begin_with(arguments, Setting { has_web: true, ..Setting::default() })
    }

    fn begin_with(arguments: &RunArguments, setting: Setting) -> anyhow::Result<Self> {
        let Setting { has_strangers, days_ago, has_web } = setting;
        if arguments.agents == 0 || arguments.window == 0 {
            bail!("--agents and --window are 1 at least");
        }
        if !(1..=SERVERS_MAX).contains(&arguments.servers) {
            bail!("--servers is 1 to {SERVERS_MAX}: more a site does not have");
        }
        if arguments.way.tls_outer && !arguments.way.is_through_http() {
            bail!("--tls-outer is of roads through HTTP: --road ws or longpoll");
        }
        let lab = match arguments.site {
            Some(_) => None,
            None => {
                // Strangers are to meet the limits of handshakes, not that of connections.
                let strangers = if has_strangers { STRANGERS_MAX * arguments.reactors } else { 0 };
                let sockets = arguments.agents * arguments.way.road.sockets();
                let connections_max = arguments.connections_max.unwrap_or(sockets + strangers);
                let options = LabOptions {
                    devices: arguments.agents,
                    reactors: arguments.reactors,
                    servers: arguments.servers,
                    keepalive_seconds: arguments.keepalive_seconds,
                    presence_full_seconds: arguments.presence_full_seconds,
                    has_strangers,
                    days_ago,
                    has_web: has_web || arguments.way.is_through_http(),
                    connections_max: connections_max.div_ceil(arguments.servers),
                };
                Some(Lab::make(&options, |how_far| eprintln!("bgb-loadgen: {how_far}"))?)
            }
        };
        let named = |path: Option<PathBuf>, own: fn(&Lab) -> PathBuf| {
            path.or(lab.as_ref().map(own)).context("--site and --fleet go together")
        };
        let site = named(arguments.site.clone(), Lab::site)?;
        let folder = named(arguments.fleet.clone(), Lab::fleet)?;
        let fleet = Fleet::read(&folder)?;
        if fleet.devices < arguments.agents {
            bail!("the fleet has {} devices; --agents {} are more", fleet.devices, arguments.agents);
        }
        let own_pids = || lab.as_ref().map(Lab::server_pids).unwrap_or_default();
        let server_pids = arguments.server_pid.map_or_else(own_pids, |pid| vec![pid]);
        Ok(Self {
            crew: Crew::start(&folder, arguments.agents, playing(arguments))?,
            manager: Manager::of_site(&site)?,
            server_pids,
            figures: Map::new(),
            is_partial: false,
            latencies: None,
            arguments: arguments.clone(),
            lab,
        })
    }

    fn agents(&self) -> usize {
        self.arguments.agents
    }

    /// Everything but the site begins anew: servers that are configured for so many agents by `way`, and a crew of as many. Who was connected has gone before.
    fn begin_anew(&mut self, way: Way, agents: usize) -> anyhow::Result<()> {
        let lab = self.lab.as_mut().context("the site is not the run's own")?;
        lab.renew_servers((agents * way.road.sockets()).div_ceil(self.arguments.servers))?;
        self.server_pids = lab.server_pids();
        self.arguments.way = way;
        let crew = Crew::start(&lab.fleet(), agents, playing(&self.arguments))?;
        self.crew.relieve(crew);
        Ok(())
    }

    /// What the servers have cost so far, where it is known which processes they are.
    fn server_cost(&self) -> Option<Cost> {
        self.server_pids.iter().copied().map(Cost::of).reduce(Cost::plus)
    }

    /// The manager's process, where it is the run's own.
    fn manager_pid(&self) -> Option<u32> {
        self.lab.as_ref()?.manager_pid()
    }

    /// The size of the site's database, where it is the run's own.
    fn database_bytes(&mut self) -> Option<u64> {
        let bytes = self.lab.as_ref()?.database_bytes();
        self.or_partial(bytes)
    }

    /// A figure of the result.
    fn figure(&mut self, name: &str, value: impl Serialize) {
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        self.figures.insert(name.to_owned(), value);
    }

    /// Has everybody connect, and waits for it. When the first was meant to begin, by the shared clock.
    fn connect(&mut self, resumes: bool, returns: bool) -> u64 {
        self.connect_upto(self.agents(), resumes, returns)
    }

    /// The same for the first `all` of the fleet.
    fn connect_upto(&mut self, all: usize, resumes: bool, returns: bool) -> u64 {
        // By a pace that was asked for, the last one is due so late.
        let paced = Duration::from_nanos(self.gap_ns().saturating_mul(all as u64));
        self.connect_in(paced + CONNECT_AT_LEAST.max(PER_CONNECT * all as u32), all, resumes, returns)
    }

    /// The same for everybody, in the time that is given.
    fn connect_within(&mut self, within: Duration) -> u64 {
        self.connect_in(within, self.agents(), true, true)
    }

    /// From one agent's connecting to the next one's; 0 where each connects when there is room.
    fn gap_ns(&self) -> u64 {
        if self.arguments.rate > 0.0 { (1e9 / self.arguments.rate) as u64 } else { 0 }
    }

    fn connect_in(&mut self, within: Duration, all: usize, resumes: bool, returns: bool) -> u64 {
        let from_ns = now_ns();
        let gap_ns = self.gap_ns();
        let window = self.arguments.window;
        self.crew.connect(all, from_ns, gap_ns, Connecting { window, resumes, returns });
        let (mut most, mut since) = (0, Instant::now());
        let nobody_comes = |active: u64| {
            if active > most {
                (most, since) = (active, Instant::now());
            }
            // By a pace that was asked for, nobody may be due for a while.
            gap_ns == 0 && since.elapsed() >= NOBODY_COMES
        };
        let waited =
            self.crew.wait(within, ("connecting", all as u64), |now| now.active as u64, nobody_comes);
        self.note_wait(waited);
        let active = self.crew.progress().active;
        if active < all && !self.is_partial {
            self.is_partial = true;
            let why = self.servers_at_their_limit().unwrap_or_default();
            self.crew.trouble(format!("{} of {all} connections did not come about{why}", all - active));
        }
        from_ns
    }

    /// Where a server has nearly all the descriptors that it may have: that, and what helps.
    fn servers_at_their_limit(&self) -> Option<String> {
        self.server_pids.iter().find_map(|pid| {
            let most = descriptors_max(*pid).filter(|most| descriptors(*pid) + DESCRIPTORS_LEFT >= *most)?;
            Some(format!(
                ": a server has all of the {most} descriptors that this machine lets a process have; raise its limit (LimitNOFILE, \
                 ulimit -Hn), or take more --servers"
            ))
        })
    }

    /// Has everybody end its connection, and waits for it; what was measured of connecting is forgotten.
    fn disconnect(&mut self) {
        self.crew.tell(&link::Command::Disconnect);
        let there = |progress: &Progress| (progress.active + progress.connecting) as u64;
        let all = there(&self.crew.progress());
        self.wait(ENDED_WITHIN, ("ending", all), |now| all.saturating_sub(there(now)));
        self.connects();
    }

    /// What connecting took since this was asked last.
    fn connects(&mut self) -> Connects {
        let told = self.crew.connects();
        self.or_partial(told).unwrap_or_default()
    }

    /// When a task was had, counted from a moment.
    fn task_times(&mut self, task: TaskId, origin_ns: u64) -> TaskTimes {
        let told = self.crew.task_times(task, origin_ns);
        self.or_partial(told).unwrap_or_default()
    }

    /// Orders a task for everybody.
    fn ping_all(&mut self) -> Option<TaskId> {
        let ordered = self.manager.ping_all();
        self.or_partial(ordered)
    }

    /// Orders a task for one device of the fleet.
    fn ping_one(&mut self, device: usize) -> Option<TaskId> {
        let target = Target::Devices(vec![format!("load-{device}")]);
        let ordered = self.manager.ping(target, VALID_FOR_ONE);
        self.or_partial(ordered)
    }

    /// Waits until the site's database has so many good answers to a task. How many it has then; it is less where the time is over.
    fn await_answers(&mut self, task: TaskId, count: u64, within: Duration) -> u64 {
        let until = Instant::now() + within;
        loop {
            let told = self.manager.task(task);
            let Some(row) = self.or_partial(told) else { return 0 };
            let counted = row.counts.succeeded;
            if counted >= count || interrupt::is_wanted() {
                return counted;
            }
            if Instant::now() >= until {
                self.is_partial = true;
                return counted;
            }
            if self.crew.rest_until(now_ns() + ASK_NS) != Waited::Done {
                self.is_partial = true;
                return counted;
            }
        }
    }

    /// What goes wrong in the middle of a run cuts it short, and what was measured until then is told all the same.
    fn or_partial<T>(&mut self, came: anyhow::Result<T>) -> Option<T> {
        came.inspect_err(|error| {
            self.crew.trouble(format!("{error:#}"));
            self.is_partial = true;
        })
        .ok()
    }

    /// Waits for so many of something; a wait that does not end as it should makes the run partial.
    fn wait(&mut self, within: Duration, what: (&str, u64), count: impl Fn(&Progress) -> u64) {
        let waited = self.crew.wait(within, what, count, |_| false);
        self.note_wait(waited);
    }

    /// Rests until a moment of the shared clock.
    fn rest_until(&mut self, until_ns: u64) {
        let waited = self.crew.rest_until(until_ns);
        self.note_wait(waited);
    }

    fn note_wait(&mut self, waited: Waited) {
        match waited {
            Waited::Done => {}
            Waited::TooLong => {
                self.is_partial = true;
                eprintln!("bgb-loadgen: this takes too long: {:?}", self.crew.progress());
            }
            Waited::Interrupted | Waited::Limited => self.is_partial = true,
        }
    }

    /// Where pictures go, if they are wanted.
    fn plots(&self) -> Option<PathBuf> {
        self.arguments.plots.clone()
    }

    fn draw(&self, folder: &Path, scenario: &str) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        if let Some(latencies) = &self.latencies {
            plots::percentiles(&folder.join(format!("{scenario}-latency.svg")), scenario, latencies)?;
        }
        let timeline = self.crew.timeline();
        let series = |name: &str, get: fn(&Moment) -> f64| Series {
            name: name.to_owned(),
            points: timeline.iter().map(|moment| (moment.seconds, get(moment))).collect(),
        };
        let sessions = [series("signed in", |moment| moment.active)];
        plots::over_time(&folder.join(format!("{scenario}-sessions.svg")), scenario, "sessions", &sessions)?;
        let rates = [
            series("tasks had", |moment| moment.had_per_second),
            series("answers kept", |moment| moment.kept_per_second),
        ];
        plots::over_time(&folder.join(format!("{scenario}-rates.svg")), scenario, "a second", &rates)
    }

    /// How late the agents were themselves at the most, which is said where it is much.
    fn note_lateness(&mut self) -> Duration {
        let late = self.crew.lateness();
        if late > LATE {
            self.crew.trouble(format!(
                "a process of agents was {} ms late once: this machine may have been the limit, not the server",
                late.as_millis()
            ));
        }
        late
    }

    /// Ends the run: the figures, written where they were asked for.
    fn end(mut self, scenario: &str) -> anyhow::Result<Value> {
        let late = self.note_lateness();
        self.figure("generator_late_ms", late.as_secs_f64() * 1_000.0);
        if let Some(folder) = self.plots() {
            self.draw(&folder, scenario)?;
        }
        if let Some(latencies) = &self.latencies {
            let summary = latencies.summary();
            if let Some(path) = &self.arguments.hgrm {
                std::fs::write(path, latencies.to_hgrm()).with_context(|| format!("{}", path.display()))?;
            }
            self.figure("latency", summary);
        }
        let lost = self.crew.progress().lost;
        self.figure("connections_lost", lost);
        let whole = json!({
            "scenario": scenario,
            "agents": self.agents(),
            "measured": report::machine(),
            "options": self.arguments.told(),
            "partial": self.is_partial,
            "troubles": self.crew.troubles,
            "figures": self.figures,
        });
        if let Some(path) = &self.arguments.json {
            std::fs::write(path, serde_json::to_vec_pretty(&whole)?)
                .with_context(|| format!("{}", path.display()))?;
        }
        Ok(whole)
    }
}
