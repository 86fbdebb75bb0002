//! An administrator who starts tasks all the time, and remembers those that were accepted.
//!
//! It asks on a thread of its own, by the manager's API. What is refused or not answered, because of some fault, is no task;
//! what was accepted has to be there for good. Now and then it takes a scan back. What it was told instead goes to a file beside what
//! the processes print.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bgb_protocol::action::Action;
use bgb_protocol::api::{StartTask, Target, TaskRow};
use bgb_protocol::ids::TaskId;

use crate::api::Api;
use crate::dice::Dice;

/// Between two orders, in milliseconds: a run's tasks stay well below the 1,000 that a site holds active, and scans, which a
/// device does one at a time, do not pile up.
const PAUSE_MS: (u64, u64) = (400, 900);

/// Between two looks whether there is something to do again.
const LOOK: Duration = Duration::from_millis(20);

/// Of a thousand scans so many are cancelled.
const CANCELLED_PER_MILLE: u64 = 120;

/// What it does at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Steady,
    Resting,
    Over,
}

struct Desk {
    pace: Pace,
    accepted: BTreeSet<TaskId>,
}

/// See the module.
pub(crate) struct Administrator {
    desk: Arc<Mutex<Desk>>,
    thread: Option<JoinHandle<()>>,
}

impl Administrator {
    /// One who rests until told to work, and whose tasks are for `collection`.
    pub(crate) fn new(api: Api, collection: &'static str, outputs: &Path, dice: Dice) -> Self {
        let desk = Arc::new(Mutex::new(Desk { pace: Pace::Resting, accepted: BTreeSet::new() }));
        let its = Arc::clone(&desk);
        let refusals = File::create(outputs.join("administrator.err")).unwrap();
        let thread = std::thread::spawn(move || work(&its, &api, collection, &refusals, dice));
        Self { desk, thread: Some(thread) }
    }

    /// Starts tasks from now on.
    pub(crate) fn work(&self) {
        self.desk.lock().unwrap().pace = Pace::Steady;
    }

    /// Starts none from now on; when this returns, none is under way.
    pub(crate) fn rest(&self) {
        self.desk.lock().unwrap().pace = Pace::Resting;
    }

    /// All that were accepted so far.
    pub(crate) fn accepted(&self) -> BTreeSet<TaskId> {
        self.desk.lock().unwrap().accepted.clone()
    }
}

impl Drop for Administrator {
    fn drop(&mut self) {
        // A panic of the thread is told by the thread.
        if let Ok(mut desk) = self.desk.lock() {
            desk.pace = Pace::Over;
        }
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn work(desk: &Mutex<Desk>, api: &Api, collection: &str, mut refusals: &File, mut dice: Dice) {
    loop {
        let mut at_work = desk.lock().unwrap();
        let pause = match at_work.pace {
            Pace::Over => return,
            Pace::Resting => LOOK,
            Pace::Steady => {
                let action = dice.pick(&[
                    Action::QuickScan,
                    Action::QuickScan,
                    Action::Ping,
                    Action::CollectInventory,
                ]);
                let target = Target::Collection(collection.to_owned());
                let order = StartTask { action, target, validity_seconds: None, digest: None };
                match api.post::<TaskRow>("/tasks", &order) {
                    Ok(row) => {
                        at_work.accepted.insert(row.task);
                        if action.is_scan() && dice.chance(CANCELLED_PER_MILLE) {
                            std::thread::sleep(Duration::from_millis(dice.below(PAUSE_MS.0)));
                            // Over already, or not answered: it is as it is.
                            let _ = api.post::<TaskRow>(&format!("/tasks/{}/cancel", row.task), &());
                        }
                    }
                    Err(refusal) => writeln!(refusals, "{refusal:?}").unwrap(),
                }
                Duration::from_millis(dice.between(PAUSE_MS.0, PAUSE_MS.1))
            }
        };
        drop(at_work);
        std::thread::sleep(pause);
    }
}
