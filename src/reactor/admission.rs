//! Who shakes hands next, when more want to than one turn has time for.
//!
//! A step of a handshake costs as much as a dozen pushes, and whoever is signed in must not wait for strangers. So what a peer says before it
//! is known is kept until its step is due, and a turn takes a few steps. What was begun is ended first as a rule, since only that makes room; then
//! come those that resume by a ticket of ours, which is cheap and most likely a device that is coming back; then the others. None of them is
//! passed over for long.

use std::collections::VecDeque;

use super::slots::SlotKey;

/// Steps that are taken in one turn: at some 150 us each about a millisecond, so that no push waits longer for strangers.
pub const STEPS_PER_TURN: usize = 8;
/// So many go on in a row before one that begins has its turn: who was answered and drips single bytes must not have them all.
const GOING_ON_IN_A_ROW: u32 = 3;
/// Of those that begin, so many resume in a row before one that does not has its turn.
const RESUMING_IN_A_ROW: u32 = 7;

/// How a handshake begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// The peer shows a ticket that opens.
    Resumed,
    /// A handshake in full.
    Full,
}

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The peer has been answered already.
    GoesOn,
    /// It waits for its first answer.
    Begins(Opening),
}

/// Whose handshakes may be answered at present. Those that were answered go on in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admits {
    /// Those of devices that come back.
    pub resumed: bool,
    /// Those in full.
    pub full: bool,
}

impl Admits {
    /// Everybody's.
    pub const ALL: Self = Self { resumed: true, full: true };
}

/// Who waits for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiter {
    /// A channel's handshake.
    Channel(SlotKey),
    /// A socket's own: the outer one of HTTPS.
    Socket(SlotKey),
}

/// Those whose peers have said something and are not known yet.
#[derive(Debug, Default)]
pub struct Admission {
    going_on: VecDeque<Waiter>,
    resuming: VecDeque<Waiter>,
    beginning: VecDeque<Waiter>,
    went_on_in_a_row: u32,
    resumed_in_a_row: u32,
}

impl Admission {
    /// Puts somebody in line.
    pub fn push(&mut self, waiter: Waiter, step: Step) {
        match step {
            Step::GoesOn => &mut self.going_on,
            Step::Begins(Opening::Resumed) => &mut self.resuming,
            Step::Begins(Opening::Full) => &mut self.beginning,
        }
        .push_back(waiter);
    }

    /// Whose step is due, of those of whom `waits` says that they wait still.
    pub fn pop(&mut self, admits: Admits, mut waits: impl FnMut(Waiter) -> bool) -> Option<Waiter> {
        for line in [&mut self.going_on, &mut self.resuming, &mut self.beginning] {
            while line.pop_front_if(|waiter| !waits(*waiter)).is_some() {}
        }
        let resumed_wait = admits.resumed && !self.resuming.is_empty();
        let full_wait = admits.full && !self.beginning.is_empty();
        let goes_on = self.went_on_in_a_row < GOING_ON_IN_A_ROW || !(resumed_wait || full_wait);
        if let Some(waiter) = self.going_on.pop_front_if(|_| goes_on) {
            self.went_on_in_a_row += 1;
            return Some(waiter);
        }
        self.went_on_in_a_row = 0;
        if resumed_wait && !(full_wait && self.resumed_in_a_row >= RESUMING_IN_A_ROW) {
            self.resumed_in_a_row += 1;
            return self.resuming.pop_front();
        }
        self.resumed_in_a_row = 0;
        self.beginning.pop_front_if(|_| full_wait)
    }

    /// Whether somebody waits who need not be kept waiting.
    #[must_use]
    pub fn is_owing(&self, admits: Admits) -> bool {
        !self.going_on.is_empty()
            || admits.resumed && !self.resuming.is_empty()
            || admits.full && !self.beginning.is_empty()
    }

    /// How many there are, those that are gone as well.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.going_on.len() + self.resuming.len() + self.beginning.len()
    }

    /// Forgets those of whom `waits` does not say that they wait.
    pub fn retain(&mut self, mut waits: impl FnMut(Waiter) -> bool) {
        for line in [&mut self.going_on, &mut self.resuming, &mut self.beginning] {
            line.retain(|waiter| waits(*waiter));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESUMES: Step = Step::Begins(Opening::Resumed);
    const BEGINS: Step = Step::Begins(Opening::Full);

    fn key(index: u32) -> Waiter {
        Waiter::Channel(SlotKey { index, generation: 0 })
    }

    fn index(waiter: Waiter) -> u32 {
        match waiter {
            Waiter::Channel(key) | Waiter::Socket(key) => key.index,
        }
    }

    fn order(admission: &mut Admission, admits: Admits) -> Vec<u32> {
        std::iter::from_fn(|| admission.pop(admits, |_| true)).map(index).collect()
    }

    #[test]
    fn what_was_begun_is_ended_first_then_come_those_that_resume() {
        let mut admission = Admission::default();
        admission.push(key(1), BEGINS);
        admission.push(key(2), RESUMES);
        admission.push(key(3), Step::GoesOn);
        admission.push(key(4), RESUMES);
        assert_eq!(order(&mut admission, Admits::ALL), [3, 2, 4, 1]);
        assert!(!admission.is_owing(Admits::ALL));
    }

    #[test]
    fn those_that_shake_hands_in_full_are_not_passed_over_for_ever() {
        let mut admission = Admission::default();
        admission.push(key(1_000), BEGINS);
        admission.push(key(1_001), BEGINS);
        (0..100).for_each(|index| admission.push(key(index), RESUMES));
        let order = order(&mut admission, Admits::ALL);
        assert_eq!(order.len(), 102);
        assert_eq!((order[7], order[15]), (1_000, 1_001));
    }

    #[test]
    fn those_that_were_answered_and_drip_leave_steps_to_those_that_begin() {
        let mut admission = Admission::default();
        (0..100).for_each(|index| admission.push(key(index), Step::GoesOn));
        admission.push(key(1_000), RESUMES);
        admission.push(key(1_001), BEGINS);
        let order = order(&mut admission, Admits::ALL);
        assert_eq!((order.len(), order[3], order[7]), (102, 1_000, 1_001));
    }

    #[test]
    fn where_places_have_run_out_whoever_was_answered_goes_on_and_the_others_wait() {
        let (nobody, who_resumes) =
            (Admits { resumed: false, full: false }, Admits { resumed: true, full: false });
        let mut admission = Admission::default();
        admission.push(key(1), BEGINS);
        admission.push(key(2), RESUMES);
        admission.push(key(3), Step::GoesOn);
        assert_eq!(order(&mut admission, nobody), [3]);
        assert!(!admission.is_owing(nobody) && admission.is_owing(who_resumes));
        assert_eq!(order(&mut admission, who_resumes), [2]);
        assert!(!admission.is_owing(who_resumes) && admission.is_owing(Admits::ALL));
        admission.retain(|of| of != key(1));
        assert_eq!((admission.keys(), admission.pop(Admits::ALL, |_| true)), (0, None));
    }

    #[test]
    fn those_that_have_gone_cost_nobody_a_turn() {
        let mut admission = Admission::default();
        (0..50).for_each(|index| admission.push(key(index), BEGINS));
        admission.push(key(1_000), BEGINS);
        (100..120).for_each(|index| admission.push(key(index), RESUMES));
        let order: Vec<_> = std::iter::from_fn(|| admission.pop(Admits::ALL, |waiter| index(waiter) >= 100))
            .map(index)
            .collect();
        assert_eq!((order.len(), order[7]), (21, 1_000));
    }
}
