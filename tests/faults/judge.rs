//! What must hold at a quiet moment: nothing is broken, nobody starts tasks, all have come to their ends.
//!
//! It holds what the site says of tasks against what was accepted, and what devices have said against the marks of their scanners. It
//! knows of each machine how much of that it has seen before, so that each moment is judged by what is new: between two of them, an
//! execution without a result needs an interruption of its own, and that a kill of its own.

use std::collections::{BTreeMap, BTreeSet};

use bgb_protocol::api::{TaskPhase, TaskResult, TaskRow};
use bgb_protocol::ids::{DeviceId, TaskId};
use bgb_protocol::state::TaskState;

use crate::machine::{Machine, mark_in};
use crate::site::Site;

/// What was judged so far.
#[derive(Default)]
pub(crate) struct Judge {
    tasks: BTreeMap<TaskId, BTreeMap<DeviceId, TaskState>>,
    claimed: BTreeSet<String>,
    machines: BTreeMap<DeviceId, Seen>,
}

/// What was seen of a machine, since its agent is new.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    executions: u64,
    /// Executions that a result names.
    claimed: u64,
    /// Scans that were interrupted.
    interrupted: u64,
    /// Scans that were cancelled without a word of the scanner.
    cut_short: u64,
    kills: u64,
}

impl Judge {
    /// Tasks that have been judged.
    pub(crate) fn tasks(&self) -> u64 {
        self.tasks.len() as u64
    }

    /// Final words of devices that have been judged.
    pub(crate) fn results(&self) -> u64 {
        self.tasks.values().map(|states| states.len() as u64).sum()
    }

    /// Scans that have left a mark.
    pub(crate) fn executions(&self) -> u64 {
        self.machines.values().map(|seen| seen.executions).sum()
    }

    /// Scans that devices have told as interrupted.
    pub(crate) fn interrupted(&self) -> u64 {
        self.machines.values().map(|seen| seen.interrupted).sum()
    }

    /// Judges what is new since the last time.
    pub(crate) fn judge(
        &mut self,
        site: &Site,
        machines: &[Machine],
        rows: &[TaskRow],
        accepted: &BTreeSet<TaskId>,
    ) {
        let there: BTreeSet<TaskId> = rows.iter().map(|row| row.task).collect();
        let lost: Vec<_> = accepted.difference(&there).collect();
        assert!(lost.is_empty(), "accepted tasks are not there: {lost:?}");
        let before = self.machines.clone();
        for row in rows {
            if !self.tasks.contains_key(&row.task) {
                self.judge_task(site, machines, row);
            }
        }
        for machine in machines {
            let seen = self.machines.entry(machine.device.number).or_default();
            seen.executions = machine.begun().len() as u64;
            seen.kills = machine.kills;
            let before = before.get(&machine.device.number).copied().unwrap_or_default();
            judge_machine(&machine.device.name, before, *seen);
        }
    }

    /// The first final word stands: whatever was judged at any time is what is said now.
    pub(crate) fn judge_again(&self, site: &Site) {
        for (task, judged) in &self.tasks {
            assert_eq!(&states(&site.results(*task)), judged, "task {task} has changed after its end");
        }
    }

    /// One task, whose devices have all ended it.
    fn judge_task(&mut self, site: &Site, machines: &[Machine], row: &TaskRow) {
        let task = row.task;
        assert!(row.counts.adds_up(), "the counts of task {task} do not add up: {:?}", row.counts);
        assert_eq!(row.counts.targets, machines.len() as u64, "task {task} is for all machines");
        let results = site.results(task);
        let states = states(&results);
        assert_eq!(states.len(), results.len(), "task {task} has two results of one device");
        let count = |state| states.values().filter(|said| **said == state).count() as u64;
        let unheard = row.counts.targets - states.len() as u64;
        let counted = [
            (TaskState::Succeeded, row.counts.succeeded, 0),
            (TaskState::Failed, row.counts.failed, 0),
            (TaskState::Interrupted, row.counts.interrupted, 0),
            (TaskState::Refused, row.counts.refused, 0),
            // Those who never heard of it are cancelled with it.
            (TaskState::Cancelled, row.counts.cancelled, unheard),
        ];
        for (state, counted, more) in counted {
            assert_eq!(
                counted,
                count(state) + more,
                "task {task}: devices that are {state}; {:?}",
                row.counts
            );
        }
        for result in &results {
            self.judge_result(machines, row, result);
        }
        self.tasks.insert(task, states);
    }

    fn judge_result(&mut self, machines: &[Machine], row: &TaskRow, result: &TaskResult) {
        let told = || format!("task {} ({}) at {}: {result:?}", row.task, row.action, result.name);
        let may_be = match result.state {
            TaskState::Succeeded => true,
            TaskState::Cancelled => row.phase == TaskPhase::Cancelled,
            TaskState::Interrupted => !row.action.is_repeatable(),
            _ => false,
        };
        assert!(may_be, "no fault explains how this ended: {}", told());
        if !row.action.is_scan() {
            return;
        }
        let machine = machines.iter().find(|machine| machine.device.number == result.device);
        let machine = machine.unwrap_or_else(|| panic!("of a device that is no target: {}", told()));
        let seen = self.machines.entry(result.device).or_default();
        let mark = result.output.as_deref().and_then(mark_in);
        if let Some(mark) = mark {
            assert!(machine.begun().iter().any(|begun| begun == mark), "it was never executed: {}", told());
            assert!(self.claimed.insert(mark.to_owned()), "two tasks claim one execution: {}", told());
            seen.claimed += 1;
        }
        match result.state {
            TaskState::Succeeded => {
                let is_whole = mark.is_some_and(|mark| machine.ended().contains(mark));
                assert!(is_whole, "it is told as done and was not executed to its end: {}", told());
            }
            TaskState::Interrupted => seen.interrupted += 1,
            _ => seen.cut_short += u64::from(mark.is_none()),
        }
    }
}

/// What is new of a machine: executions that no result names are those that were interrupted, at most one by each kill.
fn judge_machine(name: &str, before: Seen, now: Seen) {
    let unclaimed = (now.executions - now.claimed) - (before.executions - before.claimed);
    let interrupted = now.interrupted - before.interrupted;
    let cut_short = now.cut_short - before.cut_short;
    let kills = now.kills - before.kills;
    assert!(
        unclaimed <= interrupted + cut_short,
        "{name}: {unclaimed} executions have no result of their own, and only {interrupted} scans were interrupted and {cut_short} \
         cancelled early: something was executed twice"
    );
    assert!(interrupted <= kills, "{name}: {interrupted} scans were interrupted by {kills} kills");
}

fn states(results: &[TaskResult]) -> BTreeMap<DeviceId, TaskState> {
    results.iter().map(|result| (result.device, result.state)).collect()
}
