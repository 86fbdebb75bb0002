//! The server is killed and started again: how long until everybody is back, by tickets that the new process still takes.
//!
//! Where tickets are to be some days old, site, manager and servers begin with wall clocks that are so far behind, and go on with the right time.
//!
//! It counts from the start of the server's process, which listens some tenths of a second later. Beside it stands how fast everybody resumes in peace
//! afterwards, at the same server: with so many handshakes under way at a time as makes it fastest. An agent's latency counts from its first attempt.

use serde_json::Value;
use std::time::Duration;

use anyhow::Context as _;

use crate::clock::{SECOND_NS, now_ns};
use crate::scenario::Run;

/// An agent's longest pause between attempts, and what all may take beside.
const BACK_WITHIN: Duration = Duration::from_secs(180);
/// What everybody's going leaves the server to do is done within this.
const SETTLE_NS: u64 = 3 * SECOND_NS;
/// Handshakes under way at a time in peace; and all of them.
const WINDOWS: [usize; 2] = [128, 1_024];
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
    let gone = ("the server is gone, noticed by", all as u64);
    run.wait(NOTICED_WITHIN, gone, |now| all.saturating_sub(now.active) as u64);
    if run.is_partial {
        run.lab = Some(lab);
        return run.end("storm");
    }
    let begun_ns = now_ns();
    let started = lab.start_servers(servers);
    if run.or_partial(started).is_none() {
        run.lab = Some(lab);
        return run.end("storm");
    }
    run.server_pids = lab.server_pids();
    run.lab = Some(lab);
    run.wait(BACK_WITHIN, ("coming back", all as u64), |now| now.active as u64);
    let connects = run.connects();
    let seconds = connects.last_ns.saturating_sub(begun_ns) as f64 / SECOND_NS as f64;
    let back = run.crew.progress().active;
    // In peace, at the very server that the storm has met, once it has done with everybody's going.
    let (mut in_peace, window) = (Vec::new(), run.arguments.window);
    for window in WINDOWS.into_iter().chain([run.agents()]) {
        run.disconnect();
        run.rest_until(now_ns() + SETTLE_NS);
        run.arguments.window = window;
        let from_ns = run.connect(true, true);
        let connects = run.connects();
        if run.is_partial {
            break;
        }
        let seconds = connects.last_ns.saturating_sub(from_ns) as f64 / SECOND_NS as f64;
        in_peace.push(connects.resumed as f64 / seconds.max(1e-9));
    }
    run.arguments.window = window;
    run.figure("resumed_per_second_in_peace_by_window", &in_peace);
    if let Some(fastest) = in_peace.iter().copied().reduce(f64::max) {
        run.figure("resumed_per_second_in_peace", fastest);
    }
    run.figure("back", back);
    run.figure("resumed", connects.resumed);
    run.figure("full", connects.full);
    run.figure("seconds", seconds);
    run.latencies = Some(connects.latencies);
    run.end("storm")
}
