//! What the agent counts of itself: plain numbers, which whoever drives it copies to where others look.

use bgb_protocol::state::TaskState;

use crate::parting::Parting;

/// What the agent has met since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that came about.
    pub connects: u64,
    /// Sessions that were welcomed.
    pub sessions: u64,
    /// Pushes that came.
    pub pushes: u64,
    /// Pushes that were dropped unanswered: not signed, a false proof, or no room for one more.
    pub pushes_dropped: u64,
    /// Cancels and heads that were dropped: not signed, or no room.
    pub statements_dropped: u64,
    /// Times that heads ceased to come.
    pub heads_ceased: u64,
    /// Actions that were begun.
    pub begun: u64,
    /// Tasks that came to an end, refused ones included.
    pub ended: u64,
    /// The same by their last state, in the order of [`TaskState::ALL`].
    ends: [u64; TaskState::ALL.len()],
    /// Connections, and attempts at one, that ended, in the order of [`Parting::ALL`].
    partings: [u64; Parting::ALL.len()],
}

impl Counters {
    /// Tasks that came to their end in this state.
    #[must_use]
    pub fn ends_of(&self, state: TaskState) -> u64 {
        let ends = TaskState::ALL.into_iter().zip(self.ends);
        ends.filter(|(known, _)| *known == state).map(|(_, count)| count).sum()
    }

    /// Connections, and attempts at one, that ended for this reason.
    #[must_use]
    pub fn partings_of(&self, parting: Parting) -> u64 {
        self.partings[parting as usize]
    }

    pub(super) fn count_end(&mut self, state: TaskState) {
        self.ended += 1;
        for (known, count) in TaskState::ALL.into_iter().zip(&mut self.ends) {
            *count += u64::from(known == state);
        }
    }

    pub(super) fn count_parting(&mut self, parting: Parting) {
        self.partings[parting as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_partings_are_told_apart() {
        let mut counters = Counters::default();
        counters.count_end(TaskState::Refused);
        counters.count_end(TaskState::Refused);
        counters.count_end(TaskState::Succeeded);
        counters.count_parting(Parting::Stopped);
        assert_eq!(counters.ended, 3);
        assert_eq!(
            [TaskState::Refused, TaskState::Succeeded, TaskState::Failed]
                .map(|state| counters.ends_of(state)),
            [2, 1, 0]
        );
        assert_eq!([Parting::Stopped, Parting::Lost].map(|parting| counters.partings_of(parting)), [1, 0]);
    }
}
