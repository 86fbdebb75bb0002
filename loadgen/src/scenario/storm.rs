//! The server is killed and started again: how long until everybody is back, by tickets that the new process still takes.
//!
//! Where tickets are to be some days old, site, manager and servers begin with wall clocks that are so far behind, and go on with the right time.
//!
//! Beside it stands how fast everybody resumes in peace afterwards, over the same sockets, at the same server: a storm cannot be over sooner than
//! that. An agent's latency counts from its first attempt.

use serde_json::Value;
use std::time::Duration;

use anyhow::Context as _;

use crate::clock::{SECOND_NS, now_ns};
use crate::scenario::Run;

/// An agent's longest pause between attempts, and what all may take beside.
const BACK_WITHIN: Duration = Duration::from_secs(180);
/// What everybody's going leaves the server to do is done within this.
const SETTLE_NS: u64 = 3 * SECOND_NS;
/// How long it may take until all have noticed that the server is gone.
const NOTICED_WITHIN: Duration = Duration::from_secs(60);

pub(super) fn run(mut run: Run) -> anyhow::Result<Value> {
    let mut lab = run.lab.take().context("a storm needs a site of the run's own: leave --site out")?;
    run.connect(true, true);
    run.connects();
    let all = run.crew.progress().active;
    // Before the servers go: nobody is to wait for the manager then.
    let came = lab.come_to_the_present();
    run.or_partial(came);
    let servers = lab.kill_servers();
    run.wait(
        NOTICED_WITHIN,
        |progress| progress.active == 0,
        |progress, _| format!("the server is gone; {} have not noticed", progress.active),
    );
    if run.is_partial {
        run.lab = Some(lab);
        return run.end("storm");
    }
    let started = lab.start_servers(servers);
    if run.or_partial(started).is_none() {
        run.lab = Some(lab);
        return run.end("storm");
    }
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
    let connects = run.connects();
    let seconds = connects.last_ns.saturating_sub(listens_ns) as f64 / SECOND_NS as f64;
    let back = run.crew.progress().active;
    // In peace, at the very server that the storm has met, once it has done with everybody's going.
    run.disconnect();
    run.rest_until(now_ns() + SETTLE_NS);
    let from_ns = run.connect(true, true);
    let in_peace = run.connects();
    let peace_seconds = in_peace.last_ns.saturating_sub(from_ns) as f64 / SECOND_NS as f64;
    run.figure("resumed_per_second_in_peace", in_peace.resumed as f64 / peace_seconds.max(1e-9));
    run.figure("back", back);
    run.figure("resumed", connects.resumed);
    run.figure("full", connects.full);
    run.figure("seconds", seconds);
    run.latencies = Some(connects.latencies);
    run.end("storm")
}
