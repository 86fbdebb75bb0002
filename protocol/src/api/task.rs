//! The API's types for tasks: preview, start, watch, results, cancel.
//!
//! A task is started in two steps. The preview resolves who is meant and gives the digest of that very set; the start names the digest,
//! and is refused when the set has changed in between. So what a person has agreed to is what is signed.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Connectivity;
use crate::action::Action;
use crate::ids::{DeviceGuid, DeviceId, TaskId, UnixMillis};
use crate::state::{RefusalReason, TaskState};

/// Who is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Target {
    /// The members of a collection, as they are at the start.
    Collection(String),
    /// Devices picked by hand, each by number, GUID or name; [`super::MEMBERS_PER_REQUEST_MAX`] at most.
    Devices(Vec<String>),
}

/// `POST /tasks/preview`: who would be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviewTask {
    /// What is asked for.
    pub action: Action,
    /// Who is meant.
    pub target: Target,
    /// How long it would be valid, in seconds: 60 to 604,800; `None` for an hour.
    pub validity_seconds: Option<u64>,
}

/// The answer to [`PreviewTask`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskPreview {
    /// What is asked for.
    pub action: Action,
    /// Devices that are meant.
    pub targets: u64,
    /// Those of them that are online now.
    pub online: u64,
    /// Root of the target set's tree, in hexadecimal: what the start has to name.
    pub digest: String,
    /// How long it would be valid, in seconds.
    pub validity_seconds: u64,
    /// All of this in a sentence.
    pub sentence: String,
}

/// `POST /tasks`: starts a task; the answer is its [`TaskRow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartTask {
    /// What is asked for.
    pub action: Action,
    /// Who is meant.
    pub target: Target,
    /// How long it is valid, in seconds: 60 to 604,800; `None` for an hour.
    pub validity_seconds: Option<u64>,
    /// The preview's digest; `None` takes the set as it is.
    pub digest: Option<String>,
}

/// Where a task is in its own life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskPhase {
    /// It is valid, and goes to targets that come online.
    Active,
    /// Its validity is over.
    Expired,
    /// It was cancelled.
    Cancelled,
}

impl fmt::Display for TaskPhase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        })
    }
}

/// Devices of a task by state. All but `targets` and `delivered` add up to `targets`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskCounts {
    /// All that are meant.
    pub targets: u64,
    /// All that have said something.
    pub delivered: u64,
    /// Not heard of; the task is valid still.
    pub waiting: u64,
    /// They have it.
    pub received: u64,
    /// They have begun.
    pub running: u64,
    /// They did it.
    pub succeeded: u64,
    /// They could not.
    pub failed: u64,
    /// They crashed in the middle.
    pub interrupted: u64,
    /// They would not.
    pub refused: u64,
    /// They were stopped before their end, or the task was cancelled before it came to them.
    pub cancelled: u64,
    /// They had it and never said how it ended.
    pub no_answer: u64,
    /// Not heard of before the validity was over.
    pub expired: u64,
}

impl TaskCounts {
    /// Devices of which nothing more is awaited: all but those waiting, received or running.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.targets.saturating_sub(self.waiting + self.received + self.running)
    }

    /// Whether the states add up to the targets.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        let open = self.waiting + self.received + self.running;
        let ended = self.succeeded + self.failed + self.interrupted + self.refused;
        open + ended + self.cancelled + self.no_answer + self.expired == self.targets
    }
}

/// `GET /tasks?after=&limit=` (the newest first), `GET /tasks/TASK`, and the answer to start and to `POST /tasks/TASK/cancel`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRow {
    /// Its id.
    pub task: TaskId,
    /// What is asked for.
    pub action: Action,
    /// Who is meant, in a few words.
    pub target: String,
    /// Where it is in its life.
    pub phase: TaskPhase,
    /// When it was started.
    pub started: UnixMillis,
    /// End of its validity.
    pub expires: UnixMillis,
    /// When it was cancelled.
    pub cancelled: Option<UnixMillis>,
    /// Root of the signed target set, in hexadecimal.
    pub digest: String,
    /// Its devices by state.
    pub counts: TaskCounts,
    /// Final results that were taken in during the last minute, a second; `None` in lists.
    pub results_per_second: Option<f64>,
}

/// `GET /tasks/TASK/results?state=&after=&limit=`: what devices said, by device number; `state` picks one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The device's number.
    pub device: DeviceId,
    /// Its GUID.
    pub guid: DeviceGuid,
    /// Its name.
    pub name: String,
    /// How far it has come.
    pub state: TaskState,
    /// Why it refused, when it did.
    pub refusal: Option<RefusalReason>,
    /// What the action returned; -1 where there is no code. `None` before the end.
    pub code: Option<i32>,
    /// When it began to act, by the device's time.
    pub started: Option<UnixMillis>,
    /// When it ended, by the device's time.
    pub finished: Option<UnixMillis>,
    /// When its server heard this last word.
    pub heard: Option<UnixMillis>,
    /// What the action said; bytes that are no UTF-8 are replaced.
    pub output: Option<String>,
}

/// `GET /tasks/TASK/waiting?after=&limit=`: targets that have not been heard of, by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingDevice {
    /// The device's number.
    pub device: DeviceId,
    /// Its GUID.
    pub guid: DeviceGuid,
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub connectivity: Connectivity,
    /// Whether it is blocked.
    pub blocked: bool,
    /// When it was last there.
    pub last_seen: Option<UnixMillis>,
}
