//! What a server and a manager of this machine pay for each thing that happens, one after the other at the same site: connecting, resting, a
//! keepalive, a task for everybody with everybody's answers. The capacity of a site is computed from these.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::arguments::{CostsArguments, RunArguments};
use crate::capacity::{Costs, ManagerCosts, ServerCosts, WireCosts};
use crate::clock::{SECOND_NS, now_ns};
use crate::measure::{Cost, kernel_bytes, loopback_bytes, median};
use crate::report;
use crate::scenario::Run;

/// Until the site's database has what the servers told of connecting: a full list or a delta, and a scan of the inbox.
const TOLD_NS: u64 = 8 * SECOND_NS;
/// How often agents speak during the measurement, so that a minute has enough of it and the rest of the run not much.
const KEEPALIVE_SECONDS: u32 = 60;
/// How often the server writes the whole list of who is online meanwhile.
const PRESENCE_FULL_SECONDS: u32 = 20;
/// In peace before the next task.
const REST_NS: u64 = SECOND_NS / 2;
/// Tasks for everybody.
const TASKS: usize = 5;
/// How long everybody may take to answer a task.
const ANSWERED_WITHIN: Duration = Duration::from_secs(120);

/// With fewer, what a site has anyway would seem to be a device's.
const AGENTS_MIN: usize = 100;

/// What everything has cost until a moment.
#[derive(Clone, Copy, Debug)]
struct Spent {
    server: Cost,
    writer_secs: f64,
    verifier_secs: f64,
    wire_bytes: u64,
}

impl Spent {
    fn by_now(run: &Run) -> anyhow::Result<Self> {
        let server = run.server_cost().context("it is not known which process the server is")?;
        let manager = run.manager_pid().context("it is not known which process the manager is")?;
        let threads = |name| Cost::cpu_secs_of_threads(manager, name);
        // The log that one writes the other moves into the database, on another core where there is one; here it counts as the writer's.
        Ok(Self {
            server,
            writer_secs: threads("writer") + threads("checkpointer"),
            verifier_secs: threads("verifier"),
            wire_bytes: loopback_bytes(),
        })
    }

    fn server_us(&self, since: &Self, events: f64) -> f64 {
        self.server.since(since.server).cpu_secs * 1e6 / events
    }

    fn writer_us(&self, since: &Self, events: f64) -> f64 {
        (self.writer_secs - since.writer_secs) * 1e6 / events
    }

    fn wire_bytes(&self, since: &Self, events: f64) -> f64 {
        self.wire_bytes.saturating_sub(since.wire_bytes) as f64 / events
    }
}

/// What the run is to be like, where nothing else was asked for.
pub(super) fn arguments_of(arguments: &CostsArguments) -> anyhow::Result<RunArguments> {
    let mut run = arguments.run.clone();
    ensure!(run.site.is_none(), "costs are measured at a site of the run's own: leave --site out");
    ensure!(
        run.servers == 1 && run.reactors == 1,
        "costs are those of one server with one reactor: leave --servers and --reactors out"
    );
    ensure!(
        run.agents >= AGENTS_MIN,
        "costs are measured with {AGENTS_MIN} agents at the least: --agents 15000"
    );
    run.keepalive_seconds.get_or_insert(KEEPALIVE_SECONDS);
    run.presence_full_seconds.get_or_insert(PRESENCE_FULL_SECONDS);
    Ok(run)
}

pub(super) fn run(mut run: Run, arguments: &CostsArguments) -> anyhow::Result<Value> {
    // Where it is cut short, what was measured until then is told, and written to no file.
    let all = run.agents() as f64;
    let empty_kernel = kernel_bytes();
    let empty = Spent::by_now(&run)?;

    run.connect(false, true);
    let connected = Spent::by_now(&run)?;
    run.rest_until(now_ns() + TOLD_NS);
    let (told, kernel) = (Spent::by_now(&run)?, kernel_bytes());
    if run.is_partial {
        return run.end("costs");
    }
    run.figure("full_connect_us", connected.server_us(&empty, all));
    run.disconnect();
    run.rest_until(now_ns() + TOLD_NS);
    let alone = Spent::by_now(&run)?;
    run.connect(true, true);
    let resumed = Spent::by_now(&run)?;
    run.rest_until(now_ns() + TOLD_NS);
    let at_rest = Spent::by_now(&run)?;
    if run.is_partial {
        return run.end("costs");
    }
    run.figure("resumed_connect_us", resumed.server_us(&alone, all));

    let said = run.crew.progress().keepalives;
    let interval_ns = u64::from(run.arguments.keepalive_seconds.unwrap_or(KEEPALIVE_SECONDS)) * SECOND_NS;
    run.rest_until(now_ns() + interval_ns);
    let kept_alive = Spent::by_now(&run)?;
    let keepalives = (run.crew.progress().keepalives - said) as f64;
    if run.is_partial {
        return run.end("costs");
    }
    run.figure("keepalive_us", kept_alive.server_us(&at_rest, keepalives));
    let lists = interval_ns as f64
        / SECOND_NS as f64
        / f64::from(run.arguments.presence_full_seconds.unwrap_or(PRESENCE_FULL_SECONDS));

    let devices_bytes = run.database_bytes();
    let before = Spent::by_now(&run)?;
    let mut push_us = Vec::new();
    for _ in 0..TASKS {
        match task(&mut run) {
            Some(spread_ns) => push_us.push(spread_ns / 1e3 / (all - 1.0).max(1.0)),
            None => break,
        }
    }
    let after = Spent::by_now(&run)?;
    if run.is_partial {
        run.figure("push_us", &push_us);
        return run.end("costs");
    }
    let answers = push_us.len() as f64 * all;
    let answers_bytes =
        run.database_bytes().zip(devices_bytes).map(|(after, before)| after.saturating_sub(before));

    let costs = Costs {
        measured: report::machine(),
        agents: run.agents() as u64,
        server: ServerCosts {
            base_bytes: empty.server.resident_bytes as f64,
            connection_bytes: told.server.resident_bytes.saturating_sub(empty.server.resident_bytes) as f64
                / all,
            // The other half is the agents'.
            kernel_bytes: kernel.saturating_sub(empty_kernel) as f64 / all / 2.0,
            full_connect_us: connected.server_us(&empty, all),
            resumed_connect_us: resumed.server_us(&alone, all),
            keepalive_us: kept_alive.server_us(&at_rest, keepalives),
            push_us: median(&mut push_us),
            answered_us: after.server_us(&before, answers),
        },
        wire: WireCosts {
            full_connect_bytes: connected.wire_bytes(&empty, all),
            resumed_connect_bytes: resumed.wire_bytes(&alone, all),
            keepalive_bytes: kept_alive.wire_bytes(&at_rest, keepalives),
            answered_bytes: after.wire_bytes(&before, answers),
        },
        manager: ManagerCosts {
            presence_us: told.writer_us(&empty, all),
            listed_us: kept_alive.writer_us(&at_rest, all * lists),
            writer_us: after.writer_us(&before, answers),
            verifier_us: (after.verifier_secs - before.verifier_secs) * 1e6 / answers,
            device_bytes: devices_bytes.unwrap_or_default() as f64 / all,
            answer_bytes: answers_bytes.unwrap_or_default() as f64 / answers,
        },
    };
    let text = toml::to_string(&costs)?;
    costs.check()?;
    run.figure("costs", &costs);
    match &arguments.file {
        Some(file) => fs::write(file, text).with_context(|| format!("{}", file.display()))?,
        None => run.figure("page", text),
    }
    run.end("costs")
}

/// A task for everybody, until the site has every answer. Nanoseconds from the first agent's having it to the last one's; `None` where the run
/// is cut short.
fn task(run: &mut Run) -> Option<f64> {
    let all = run.agents() as u64;
    let (before, origin_ns) = (run.crew.progress(), now_ns());
    let task = run.ping_all()?;
    run.wait(ANSWERED_WITHIN, ("a task for all, answers kept", all), |now| now.kept - before.kept);
    run.await_answers(task, all, ANSWERED_WITHIN);
    run.rest_until(now_ns() + REST_NS);
    let times = run.task_times(task, origin_ns);
    (!run.is_partial).then(|| times.last_ns.saturating_sub(times.first_ns) as f64)
}
