//! The server is killed and started again: how long until everybody is back, by tickets that the new process still takes.
//!
//! Where tickets are to be some days old, site, manager and servers begin with wall clocks that are so far behind, and go on with the right time.
//!
//! Beside it stands how fast everybody resumes in peace, over the same sockets: a storm cannot be over sooner than that.

use serde_json::Value;
use std::time::Duration;

use anyhow::Context as _;

use crate::clock::{SECOND_NS, now_ns};
use crate::scenario::Run;

/// An agent's longest pause between attempts, and what all may take beside.
const BACK_WITHIN: Duration = Duration::from_secs(180);
/// How long it may take until all have noticed that the server is gone.
const NOTICED_WITHIN: Duration = Duration::from_secs(60);

pub(super) fn run(mut run: Run) -> anyhow::Result<Value> {
    let mut lab = run.lab.take().context("a storm needs a site of the run's own: leave --site out")?;
    run.connect(true, false)?;
    run.disconnect()?;
    let from_ns = run.connect(true, true)?;
    let in_peace = run.crew.connects()?;
    let peace_seconds = in_peace.last_ns.saturating_sub(from_ns) as f64 / SECOND_NS as f64;
    let all = run.crew.progress().active;
    let servers = lab.kill_servers();
    run.wait(
        NOTICED_WITHIN,
        |progress| progress.active == 0,
        |progress, _| format!("the server is gone; {} have not noticed", progress.active),
    );
    lab.come_to_the_present()?;
    lab.start_servers(servers)?;
    let listens_ns = now_ns();
    run.server_pids = lab.server_pids();
    run.lab = Some(lab);
    run.wait(
        BACK_WITHIN,
        |progress| progress.active >= all,
        |progress, passed| {
            format!("coming back: {} of {all} after {:.1} s", progress.active, passed.as_secs_f64())
        },
    );
    let connects = run.crew.connects()?;
    let seconds = connects.last_ns.saturating_sub(listens_ns) as f64 / SECOND_NS as f64;
    run.figure("resumed_per_second_in_peace", in_peace.resumed as f64 / peace_seconds.max(1e-9));
    run.figure("back", run.crew.progress().active);
    run.figure("resumed", connects.resumed);
    run.figure("full", connects.full);
    run.figure("seconds", seconds);
    run.latencies = Some(connects.latencies);
    run.end("storm")
}
