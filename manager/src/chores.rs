//! The manager's timetable: what is to be done again and again, and how often.
//!
//! It knows when each chore is due and nothing of how it is done. Law: of several that are due, the one that was due first comes first,
//! so that none is forgotten behind another that is always due.

/// Something that is done again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chore {
    FinishRestore,
    WriteHead,
    ExpireTasks,
    ScanInbox,
    MarkSilentServers,
    MarkNoAnswer,
    SweepQueue,
    SweepHistory,
    SweepDone,
    Checkpoint,
}

/// How soon a chore that failed is tried again: a signed head must not come a minute late for a lock of some seconds.
const AFTER_FAILURE_MS: u64 = 5_000;
/// How long other work comes first after one step of a chore that has more.
const BETWEEN_STEPS_MS: u64 = 20;

struct Entry {
    chore: Chore,
    every_ms: u64,
    due: u64,
}

/// When what is due, in milliseconds of monotonic time.
pub(crate) struct Chores {
    entries: Vec<Entry>,
}

impl Chores {
    /// Everything is due at once: a manager that was down has to catch up.
    pub(crate) fn new(mono_ms: u64, scan_ms: u64) -> Self {
        let every = |chore, every_ms| Entry { chore, every_ms, due: mono_ms };
        let entries = vec![
            // Once, and before the others.
            every(Chore::FinishRestore, u64::MAX),
            // Agents take their time from heads (docs/promises.md, Time).
            every(Chore::WriteHead, bgb_protocol::head::HEAD_INTERVAL_MS),
            // Pages show a task as expired within a second.
            every(Chore::ExpireTasks, 1_000),
            every(Chore::ScanInbox, scan_ms),
            // 2.5 intervals of minutes: seconds do not matter.
            every(Chore::MarkSilentServers, 5_000),
            // A day after the task's end: minutes do not matter.
            every(Chore::MarkNoAnswer, 60_000),
            every(Chore::SweepQueue, 30_000),
            every(Chore::SweepHistory, 10 * 60_000),
            every(Chore::SweepDone, 10 * 60_000),
            // Keeps the write-ahead log short where commits are rare.
            every(Chore::Checkpoint, 60_000),
        ];
        Self { entries }
    }

    /// The chore that has been due for longest.
    pub(crate) fn take_due(&mut self, mono_ms: u64) -> Option<Chore> {
        let first = self.entries.iter().min_by_key(|entry| entry.due)?;
        (first.due <= mono_ms).then_some(first.chore)
    }

    /// A step of a chore was done; `more` of it is left to be done soon.
    pub(crate) fn done(&mut self, chore: Chore, mono_ms: u64, more: bool) {
        for entry in self.entries.iter_mut().filter(|entry| entry.chore == chore) {
            entry.due = mono_ms.saturating_add(if more { BETWEEN_STEPS_MS } else { entry.every_ms });
        }
    }

    /// A step of a chore has failed: it is tried again soon, but due as before it would be the first again, and all else behind it.
    pub(crate) fn failed(&mut self, chore: Chore, mono_ms: u64) {
        for entry in self.entries.iter_mut().filter(|entry| entry.chore == chore) {
            entry.due = mono_ms.saturating_add(entry.every_ms.min(AFTER_FAILURE_MS));
        }
    }

    /// Makes a chore due now.
    pub(crate) fn hasten(&mut self, chore: Chore) {
        for entry in self.entries.iter_mut().filter(|entry| entry.chore == chore) {
            entry.due = 0;
        }
    }

    /// When the next is due.
    pub(crate) fn next_due(&self) -> u64 {
        self.entries.iter().map(|entry| entry.due).min().unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_due_at_the_start_and_then_in_its_own_time() {
        let mut chores = Chores::new(1_000, 1_000);
        let mut done = 0;
        while let Some(chore) = chores.take_due(1_000) {
            chores.done(chore, 1_000, false);
            done += 1;
        }
        assert_eq!(done, 10);
        assert_eq!(chores.next_due(), 2_000);
        assert_eq!(chores.take_due(1_999), None);
    }

    #[test]
    fn a_chore_that_fails_is_tried_again_before_its_time_and_lets_others_go_first() {
        let mut chores = Chores::new(0, 1_000);
        chores.failed(Chore::WriteHead, 0);
        assert_ne!(chores.take_due(0), Some(Chore::WriteHead));
        while let Some(chore) = chores.take_due(AFTER_FAILURE_MS - 1) {
            assert_ne!(chore, Chore::WriteHead);
            chores.done(chore, AFTER_FAILURE_MS, false);
        }
        assert_eq!(chores.take_due(AFTER_FAILURE_MS), Some(Chore::WriteHead));
    }

    #[test]
    fn a_chore_with_more_to_do_lets_others_in_between() {
        let mut chores = Chores::new(0, 1_000);
        while let Some(chore) = chores.take_due(0) {
            chores.done(chore, 0, chore == Chore::SweepQueue);
        }
        assert_eq!(chores.next_due(), BETWEEN_STEPS_MS);
        chores.hasten(Chore::ScanInbox);
        assert_eq!(chores.take_due(5), Some(Chore::ScanInbox));
    }
}
