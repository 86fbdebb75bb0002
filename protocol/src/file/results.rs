//! Rows of a `.BTS` file: what devices said of their tasks.
//!
//! Received and running are hints and stand alone. A final state comes with the result that the device signed, and counts
//! only by that.

use serde::{Deserialize, Serialize};

use crate::ids::{DeviceId, TaskId, UnixMillis};
use crate::result::SignedResult;
use crate::state::TaskState;

/// A device's newest word on a task. Rows are in the order of task, then device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultRow {
    /// The task.
    pub task: TaskId,
    /// The device, as it was signed in when it said so.
    pub device: DeviceId,
    /// When the server heard it, by the server's clock.
    pub heard: UnixMillis,
    /// What it said.
    pub word: DeviceWord,
}

/// What a device said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceWord {
    /// It has the task.
    Received,
    /// It has begun.
    Running,
    /// It has ended: the signed result.
    Final(Box<SignedResult>),
}

impl ResultRow {
    /// The state that an unsigned hint stands for; `None` for a final word, whose state is in its signed bytes.
    #[must_use]
    pub fn hint(&self) -> Option<TaskState> {
        match self.word {
            DeviceWord::Received => Some(TaskState::Received),
            DeviceWord::Running => Some(TaskState::Running),
            DeviceWord::Final(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::laws::{device, hold_for, signed_result, task, time};

    fn word() -> impl Strategy<Value = DeviceWord> {
        prop_oneof![
            Just(DeviceWord::Received),
            Just(DeviceWord::Running),
            signed_result().prop_map(|result| DeviceWord::Final(Box::new(result))),
        ]
    }

    proptest! {
        #[test]
        fn a_row_keeps_the_laws_of_the_codec(task in task(), device in device(), heard in time(), word in word()) {
            hold_for(&ResultRow { task, device, heard, word });
        }
    }
}
