//! What the agent does to the machine it runs on: one thread for each action that runs.
//!
//! It owns the threads and the means to end them. It knows no server, no signature and no journal: what it is told to
//! start has passed all of that. Laws: each start is answered by exactly one outcome, also when the action panics; an action
//! ends at its limit, as failed, with what it had said.

mod definitions;
mod inventory;
mod output;
mod process;
mod scan;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bgb_protocol::action::Action;
use bgb_protocol::ids::TaskId;
use crossbeam_channel::Sender;

use crate::agent::{Ending, Outcome, Start};
use crate::config::ScanConfig;
use output::Output;
use process::{End, Stop};

/// How long actions may take to end when the agent does: the grace that a program has between its two signals, and as much again.
const END_LIMIT: Duration = Duration::from_secs(4);

/// How often is looked whether they have.
const END_LOOK: Duration = Duration::from_millis(10);

/// Where actions are begun and ended.
pub(crate) struct Runner {
    scan: Arc<ScanConfig>,
    outcomes: Sender<(TaskId, Outcome)>,
    running: BTreeMap<TaskId, (Stop, JoinHandle<()>)>,
}

impl Runner {
    /// Outcomes go to `outcomes`; one that nobody receives any more is dropped.
    pub(crate) fn new(scan: ScanConfig, outcomes: Sender<(TaskId, Outcome)>) -> Self {
        Self { scan: Arc::new(scan), outcomes, running: BTreeMap::new() }
    }

    /// Begins an action.
    pub(crate) fn start(&mut self, start: Start) {
        self.running.retain(|_, (_, thread)| !thread.is_finished());
        let task = start.task;
        if start.action == Action::Ping {
            self.tell(task, Outcome { ending: Ending::Succeeded, code: 0, output: Vec::new() });
            return;
        }
        let begun = Stop::new().and_then(|stop| {
            let (scan, outcomes, its_stop) = (Arc::clone(&self.scan), self.outcomes.clone(), stop.clone());
            let thread =
                std::thread::Builder::new().name(start.action.name().to_owned()).spawn(move || {
                    let outcome = catch_unwind(AssertUnwindSafe(|| carry_out(&start, &scan, &its_stop)))
                        .unwrap_or_else(|_| failed("the action met a fault of the agent; see its log"));
                    // Nobody listens any more: the agent ends.
                    let _ = outcomes.send((start.task, outcome));
                })?;
            Ok((stop, thread))
        });
        match begun {
            Ok(running) => {
                self.running.insert(task, running);
            }
            Err(error) => self.tell(task, failed(&format!("the action cannot be begun: {error}"))),
        }
    }

    /// Ends an action, if it still runs.
    pub(crate) fn kill(&self, task: TaskId) {
        if let Some((stop, _)) = self.running.get(&task) {
            stop.tell();
        }
    }

    /// Ends whatever runs, and waits for its end as long as a program may take to be killed.
    pub(crate) fn end(&mut self) {
        for (stop, _) in self.running.values() {
            stop.tell();
        }
        let deadline = Instant::now() + END_LIMIT;
        while Instant::now() < deadline && !self.running.is_empty() {
            self.running.retain(|_, (_, thread)| !thread.is_finished());
            std::thread::sleep(END_LOOK);
        }
    }

    fn tell(&self, task: TaskId, outcome: Outcome) {
        // Nobody listens any more: the agent ends.
        let _ = self.outcomes.send((task, outcome));
    }
}

impl Drop for Runner {
    /// However the agent ends, short of being killed itself, its actions end with it.
    fn drop(&mut self) {
        self.end();
    }
}

fn carry_out(start: &Start, scan: &ScanConfig, stop: &Stop) -> Outcome {
    match start.action {
        Action::CollectInventory => inventory::collect(start.limit, stop),
        Action::UpdateDefinitions => definitions::update(scan, start.limit, stop),
        Action::QuickScan | Action::FullScan => {
            scan::scan(start.action, scan, &start.settings, start.limit, stop)
        }
        Action::Ping | Action::DownloadPolicy => {
            failed("this action is not carried out by a thread of its own")
        }
    }
}

fn failed(text: &str) -> Outcome {
    Outcome { ending: Ending::Failed, code: -1, output: text.as_bytes().to_vec() }
}

/// The outcome of a program whose exit code 0 is success and whose output is the action's.
fn outcome_of(end: End, mut said: Output, limit: Duration) -> Outcome {
    let (ending, code) = match end {
        End::Exited(0) => (Ending::Succeeded, 0),
        End::Exited(code) => (Ending::Failed, code),
        End::Signalled(signal) => {
            said.push(format!("\n[ended by signal {signal}]\n").as_bytes());
            (Ending::Failed, -1)
        }
        End::LimitReached => {
            said.push(limit_note(limit).as_bytes());
            (Ending::Failed, -1)
        }
        End::Stopped => (Ending::Cancelled, -1),
    };
    Outcome { ending, code, output: said.into_text() }
}

fn limit_note(limit: Duration) -> String {
    format!("\n[ended at the action's limit of {} s]\n", limit.as_secs())
}
