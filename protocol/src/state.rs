//! The states of a task on one device, and which may follow which.
//!
//! ```text
//! received --> running --> succeeded | failed | interrupted | refused | cancelled
//!     \___________\______> no answer            (the manager's word, after everything is over)
//! ```
//!
//! The first final state stands. Two exceptions: `interrupted` may be followed by another final state where the
//! action is repeatable, and a device's own word beats `no answer`, which only means that none had come.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a device has said of a task, or what the manager concluded from its silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// The device has the task and has verified it.
    Received,
    /// The device has begun to act.
    Running,
    /// It did what was asked.
    Succeeded,
    /// It tried and could not.
    Failed,
    /// It crashed between beginning and end, and did not begin again.
    Interrupted,
    /// It would not: see [`RefusalReason`].
    Refused,
    /// It was cancelled before its end.
    Cancelled,
    /// Received or running was the last word, and the time for an answer is over. Never said by a device.
    NoAnswer,
}

impl TaskState {
    /// Every state, in order.
    pub const ALL: [Self; 8] = [
        Self::Received,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Interrupted,
        Self::Refused,
        Self::Cancelled,
        Self::NoAnswer,
    ];

    /// Whether a device has said its last word with it.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Received | Self::Running | Self::NoAnswer)
    }

    /// Whether a row in this state gives way to `next`, for an action that is `repeatable` or not.
    #[must_use]
    pub fn gives_way_to(self, next: Self, repeatable: bool) -> bool {
        match (self, next) {
            (Self::Received, next) => next != Self::Received,
            (Self::Running, next) => !matches!(next, Self::Received | Self::Running),
            (Self::NoAnswer, next) => next.is_final(),
            (Self::Interrupted, next) => repeatable && next.is_final() && next != Self::Interrupted,
            _ => false,
        }
    }

    /// The number that stands for the state in the database and in files; never reused.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Received => 1,
            Self::Running => 2,
            Self::Succeeded => 3,
            Self::Failed => 4,
            Self::Interrupted => 5,
            Self::Refused => 6,
            Self::Cancelled => 7,
            Self::NoAnswer => 8,
        }
    }

    /// The state with this [`code`](Self::code).
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.code() == code)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Received => "received",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
            Self::NoAnswer => "no answer",
        })
    }
}

/// Why an agent would not carry out a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// Its validity was over by the agent's time.
    Expired,
    /// Its validity had not begun, by more than the tolerance.
    NotYetValid,
    /// The device is not in the signed target set.
    NotATarget,
    /// No trusted key signed it, or the bytes were altered.
    BadSignature,
    /// It was made for another site.
    WrongSite,
    /// This agent does not know the action, or its parameters.
    UnknownAction,
    /// The device's policy does not allow the action.
    NotAllowed,
    /// As many tasks wait on the device as it holds.
    TooManyTasks,
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not yet valid",
            Self::NotATarget => "not a target",
            Self::BadSignature => "bad signature",
            Self::WrongSite => "made for another site",
            Self::UnknownAction => "unknown action",
            Self::NotAllowed => "not allowed by policy",
            Self::TooManyTasks => "too many tasks wait on the device",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_final_state_stands() {
        for first in TaskState::ALL.into_iter().filter(|state| state.is_final()) {
            for next in TaskState::ALL {
                let allowed = first == TaskState::Interrupted && next.is_final() && next != first;
                assert_eq!(first.gives_way_to(next, true), allowed, "{first} -> {next}");
                assert!(!first.gives_way_to(next, false), "{first} -> {next}");
            }
        }
    }

    #[test]
    fn a_devices_word_beats_no_answer_only_when_it_is_final() {
        assert!(TaskState::NoAnswer.gives_way_to(TaskState::Failed, false));
        assert!(!TaskState::NoAnswer.gives_way_to(TaskState::Running, false));
        assert!(TaskState::Running.gives_way_to(TaskState::NoAnswer, false));
    }

    #[test]
    fn no_state_ever_goes_back() {
        assert!(!TaskState::Running.gives_way_to(TaskState::Received, true));
        for state in TaskState::ALL {
            assert!(!state.gives_way_to(state, true), "{state}");
            assert_eq!(TaskState::from_code(state.code()), Some(state));
        }
    }
}
