//! Who shakes hands next, when more want to than one turn has time for.
//!
//! A step of a handshake costs as much as a dozen pushes, and whoever is signed in must not wait for strangers. So what a peer says before it
//! is known is kept until its step is due, and a turn takes a few steps. What was begun is ended first, since only that makes room; then come
//! those that resume by a ticket of ours, which is cheap and most likely a device that is coming back; then the others, who are never passed
//! over for long.

use std::collections::VecDeque;

use super::slots::SlotKey;

/// Steps that are taken in one turn: at some 150 us each about a millisecond, so that no push waits longer for strangers.
pub const STEPS_PER_TURN: usize = 8;
/// Of those that begin, so many resume in a row before one that does not has its turn.
const RESUMING_IN_A_ROW: u32 = 7;

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The peer has been answered already.
    GoesOn,
    /// The peer shows a ticket that opens.
    Resumes,
    /// A handshake in full.
    Begins,
}

/// Sockets whose peers have said something and are not known yet.
#[derive(Debug, Default)]
pub struct Admission {
    going_on: VecDeque<SlotKey>,
    resuming: VecDeque<SlotKey>,
    beginning: VecDeque<SlotKey>,
    resumed_in_a_row: u32,
}

impl Admission {
    /// Puts a socket in line.
    pub fn push(&mut self, key: SlotKey, step: Step) {
        match step {
            Step::GoesOn => &mut self.going_on,
            Step::Resumes => &mut self.resuming,
            Step::Begins => &mut self.beginning,
        }
        .push_back(key);
    }

    /// Whose step is due. It may be gone by now.
    pub fn pop(&mut self) -> Option<SlotKey> {
        if let Some(key) = self.going_on.pop_front() {
            return Some(key);
        }
        let passed_over = self.resumed_in_a_row >= RESUMING_IN_A_ROW && !self.beginning.is_empty();
        match self.resuming.pop_front_if(|_| !passed_over) {
            Some(key) => {
                self.resumed_in_a_row += 1;
                Some(key)
            }
            None => {
                self.resumed_in_a_row = 0;
                self.beginning.pop_front()
            }
        }
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.going_on.is_empty() && self.resuming.is_empty() && self.beginning.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> SlotKey {
        SlotKey { index, generation: 0 }
    }

    #[test]
    fn what_was_begun_is_ended_first_then_come_those_that_resume() {
        let mut admission = Admission::default();
        admission.push(key(1), Step::Begins);
        admission.push(key(2), Step::Resumes);
        admission.push(key(3), Step::GoesOn);
        admission.push(key(4), Step::Resumes);
        let order: Vec<_> = std::iter::from_fn(|| admission.pop()).map(|key| key.index).collect();
        assert_eq!(order, [3, 2, 4, 1]);
        assert!(admission.is_empty());
    }

    #[test]
    fn those_that_shake_hands_in_full_are_not_passed_over_for_ever() {
        let mut admission = Admission::default();
        admission.push(key(1_000), Step::Begins);
        admission.push(key(1_001), Step::Begins);
        (0..100).for_each(|index| admission.push(key(index), Step::Resumes));
        let order: Vec<_> = std::iter::from_fn(|| admission.pop()).map(|key| key.index).collect();
        assert_eq!(order.len(), 102);
        assert_eq!((order[7], order[15]), (1_000, 1_001));
    }
}
