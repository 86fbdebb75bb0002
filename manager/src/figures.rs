//! What the manager knows beside the database, for those who ask how it is: its own state, the inbox's, the speed of results, counters.
//!
//! The writer thread notes, the API's threads look; a lock is held for a few instructions. Nothing here survives a restart, and nothing
//! is decided by it.

use std::collections::{BTreeMap, VecDeque};

use bgb_protocol::api::InboxStatus;
use bgb_protocol::file::Epoch;
use bgb_protocol::ids::{ServerId, TaskId, UnixMillis};
use bgb_site::store::VerifiedRow;
use parking_lot::Mutex;

use crate::metrics::ManagerMetrics;

/// Over how many seconds speed is told: long enough to be steady, short enough to be about now.
const SPEED_SECONDS: u64 = 60;
/// Tasks whose speed is kept; those that heard nothing for longest give way.
const TASKS_MAX: usize = 256;

/// The figures.
#[derive(Default)]
pub struct Figures {
    inner: Mutex<Inner>,
    /// Needs no lock.
    pub(crate) metrics: ManagerMetrics,
}

#[derive(Default)]
struct Inner {
    standing: Standing,
    inbox: InboxStatus,
    epochs: BTreeMap<ServerId, Epoch>,
    speed: BTreeMap<TaskId, Speed>,
}

/// How the manager itself is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) started: UnixMillis,
    pub(crate) database_writable: bool,
    pub(crate) head: Option<UnixMillis>,
}

/// Final results of a task by the second in which they were taken in, the newest last.
#[derive(Default)]
struct Speed {
    first_second: u64,
    seconds: VecDeque<(u64, u64)>,
}

impl Figures {
    pub(crate) fn standing(&self) -> Standing {
        self.inner.lock().standing
    }

    pub(crate) fn set_standing(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.inner.lock().standing);
    }

    pub(crate) fn inbox(&self) -> InboxStatus {
        self.inner.lock().inbox
    }

    pub(crate) fn set_inbox(&self, inbox: InboxStatus) {
        self.inner.lock().inbox = inbox;
    }

    /// The life of a server that wrote the newest file.
    pub(crate) fn epoch(&self, server: ServerId) -> Option<Epoch> {
        self.inner.lock().epochs.get(&server).copied()
    }

    pub(crate) fn saw_epoch(&self, server: ServerId, epoch: Epoch) {
        self.inner.lock().epochs.insert(server, epoch);
    }

    /// Notes rows of results that were taken in at `mono_ms`.
    pub(crate) fn saw_results(&self, mono_ms: u64, rows: &[VerifiedRow]) {
        let mut counts = BTreeMap::new();
        for row in rows.iter().filter(|row| row.word.is_some()) {
            *counts.entry(row.task).or_insert(0) += 1;
        }
        if counts.is_empty() {
            return;
        }
        let speed = &mut self.inner.lock().speed;
        for (task, count) in counts {
            speed.entry(task).or_default().add(mono_ms / 1000, count);
        }
        while speed.len() > TASKS_MAX {
            let quietest = speed.iter().min_by_key(|(_, speed)| speed.last_second()).map(|(task, _)| *task);
            quietest.and_then(|task| speed.remove(&task));
        }
    }

    /// Final results of a task a second, over the last minute or since its first.
    pub(crate) fn results_per_second(&self, mono_ms: u64, task: TaskId) -> f64 {
        self.inner.lock().speed.get(&task).map_or(0.0, |speed| speed.per_second(mono_ms / 1000))
    }
}

impl Speed {
    fn add(&mut self, second: u64, count: u64) {
        match self.seconds.back_mut() {
            Some((last, sum)) if *last == second => *sum += count,
            Some(_) => self.seconds.push_back((second, count)),
            None => {
                self.first_second = second;
                self.seconds.push_back((second, count));
            }
        }
        while self.seconds.front().is_some_and(|(old, _)| old + SPEED_SECONDS <= second) {
            self.seconds.pop_front();
        }
    }

    fn last_second(&self) -> u64 {
        self.seconds.back().map_or(0, |(second, _)| *second)
    }

    fn per_second(&self, now: u64) -> f64 {
        let recent = self.seconds.iter().filter(|(second, _)| second + SPEED_SECONDS > now);
        let sum: u64 = recent.map(|(_, count)| count).sum();
        let over = (now.saturating_sub(self.first_second) + 1).min(SPEED_SECONDS);
        sum as f64 / over as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_told_over_the_last_minute_or_since_the_first_result() {
        let mut speed = Speed::default();
        speed.add(100, 30);
        speed.add(101, 30);
        assert!((speed.per_second(101) - 30.0).abs() < 1e-9);
        assert!((speed.per_second(150) - 60.0 / 51.0).abs() < 1e-9);
        assert!(speed.per_second(300).abs() < 1e-9);
        speed.add(400, 60);
        assert_eq!(speed.seconds.len(), 1);
        assert!((speed.per_second(400) - 1.0).abs() < 1e-9);
    }
}
