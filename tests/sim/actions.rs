//! What actions do on a device: they begin, take their time or hang, are ended at their limit or when somebody kills them, and end.
//!
//! Once everything has healed none hangs, and all are quick: what waits must have its turn then.

use std::collections::BTreeMap;

use bgb_agent::agent::{Agent, Ending, Input, Outcome, Start};
use bgb_protocol::action::Action;
use bgb_protocol::ids::TaskId;
use bgb_protocol::state::TaskState;

use crate::tally::Kind;
use crate::world::{Event, World};

/// How long a scan takes at most, and once everything has healed.
const SCAN_MS_MAX: u64 = 120_000;
const SCAN_IN_PEACE_MS_MAX: u64 = 2_000;
/// And any other action.
const OTHER_MS_MAX: u64 = 8_000;
/// What hangs when everything heals ends within this time.
const RELEASED_MS_MAX: u64 = 1_000;

/// The actions that run on a device.
#[derive(Debug, Default)]
pub(crate) struct Actions {
    running: BTreeMap<TaskId, Running>,
    /// Counts beginnings and endings that are ordered: an end that was ordered before another one is void.
    serial: u64,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    serial: u64,
    ending: Ending,
    is_scan: bool,
    /// Nothing ends it.
    hangs: bool,
}

impl Actions {
    /// Whether an action of this task runs.
    pub(crate) fn runs(&self, task: TaskId) -> bool {
        self.running.contains_key(&task)
    }

    /// All of them are over; whose they were.
    pub(crate) fn end_all(&mut self) -> Vec<TaskId> {
        std::mem::take(&mut self.running).into_keys().collect()
    }

    /// Notes what is to become of an action; the number by which its end is known.
    fn note(&mut self, task: TaskId, running: Running) -> u64 {
        self.serial += 1;
        self.running.insert(task, Running { serial: self.serial, ..running });
        self.serial
    }
}

impl World {
    pub(crate) fn on_agent_begins(&mut self, agent: usize, start: &Start) {
        let Start { task, action, limit, .. } = start;
        self.say(format_args!("agent {agent} begins {action} of task {task}"));
        let machine = &self.machines[agent];
        let witness = self.witness(agent);
        let begun = self.model.on_begun(agent, *task, *action, witness, machine.head_lag_ms);
        // One that the agent has given up, since nothing ended it, is over for it.
        let is_over = |task: &TaskId| machine.agent.as_ref().is_some_and(|present| has_ended(present, *task));
        let running = &machine.actions.running;
        let scans = running.iter().filter(|(task, running)| running.is_scan && !is_over(task)).count();
        if machine.actions.runs(*task) || (action.is_scan() && scans > 0) {
            self.violated(format!("agent {agent} begins {action} of task {task} beside another"));
        }
        match begun {
            Ok(1) => {}
            Ok(_) => self.tally.count(Kind::BegunAgain),
            Err(what) => self.violated(what),
        }
        self.draw_end(agent, *task, *action, limit.as_millis() as u64);
        self.tempt_fate(agent);
    }

    /// How an action that begins will end, and when.
    fn draw_end(&mut self, agent: usize, task: TaskId, action: Action, limit_ms: u64) {
        let takes_ms = match (action.is_scan(), self.has_healed()) {
            (true, true) => self.dice.between(500, SCAN_IN_PEACE_MS_MAX),
            (true, false) => self.dice.between(500, SCAN_MS_MAX),
            (false, _) => self.dice.between(5, OTHER_MS_MAX),
        };
        // What the runner does not end at its limit either is given up by the agent, later.
        let hangs = self.dice.chance(self.weather.hang_per_mille) && !self.has_healed();
        let is_ended_at_limit = hangs && self.dice.chance(500);
        let has_failed = is_ended_at_limit || takes_ms > limit_ms || self.dice.chance(150);
        let ending = if has_failed { Ending::Failed } else { Ending::Succeeded };
        let running = Running { serial: 0, ending, is_scan: action.is_scan(), hangs };
        let serial = self.machines[agent].actions.note(task, running);
        if hangs {
            self.tally.count(Kind::ActionHangs);
        }
        let after_ms = if is_ended_at_limit { limit_ms } else { takes_ms.min(limit_ms) };
        if !hangs || is_ended_at_limit {
            self.after(after_ms, Event::ActionEnds { agent, task, serial });
        }
    }

    pub(crate) fn on_agent_kills(&mut self, agent: usize, task: TaskId) {
        self.say(format_args!("agent {agent} kills task {task}"));
        let actions = &mut self.machines[agent].actions;
        let Some(running) = actions.running.get(&task).copied() else {
            // It ended while the agent gave it up.
            return;
        };
        let serial = actions.note(task, Running { ending: Ending::Cancelled, hangs: false, ..running });
        let after_ms = self.dice.between(1, 3_000);
        self.after(after_ms, Event::ActionEnds { agent, task, serial });
    }

    /// Everything has healed: what hangs on the device is let go, and ends.
    pub(crate) fn release_actions(&mut self, agent: usize) {
        let hanging = self.machines[agent].actions.running.iter().filter(|(_, running)| running.hangs);
        let hanging: Vec<_> = hanging.map(|(task, running)| (*task, running.serial)).collect();
        for (task, serial) in hanging {
            let after_ms = self.dice.between(1, RELEASED_MS_MAX);
            self.after(after_ms, Event::ActionEnds { agent, task, serial });
        }
    }

    pub(crate) fn on_action_ends(&mut self, agent: usize, task: TaskId, serial: u64) {
        let actions = &mut self.machines[agent].actions;
        let running = actions.running.get(&task).copied();
        let Some(running) = running.filter(|running| running.serial == serial) else { return };
        actions.running.remove(&task);
        let length = self.dice.pick(&[0, 20, 20, 300, 2_000, 40_000]);
        let code = i32::from(running.ending != Ending::Succeeded);
        let output = vec![b'o'; length];
        self.say(format_args!("agent {agent}: task {task} ends, {:?}, {length} bytes", running.ending));
        let outcome = Outcome { ending: running.ending, code, output };
        self.tell_agent(agent, Input::Finished { task, outcome });
    }
}

fn has_ended(agent: &Agent, task: TaskId) -> bool {
    agent.task_state(task).is_some_and(TaskState::is_final)
}
