//! Times in fixed buckets, in atomics: any thread may add to it, none ever waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The buckets' upper bounds in nanoseconds, rising.
pub type Bounds = &'static [u64];

/// For fsyncs and transactions: from 100 us, which a good disk with a battery takes, to 10 s, after which nobody waits any more.
pub const OF_DISKS: Bounds = &[
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// For turns of a loop that must not block: from 10 us, which one small message takes, to 1 s, which should never be.
pub const OF_TURNS: Bounds = &[
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
];

/// How often something took how long.
#[derive(Debug)]
pub struct Histogram {
    bounds: Bounds,
    /// One for each bound, and one for what is longer than the last.
    buckets: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
}

/// What histograms held when they were looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) bounds: Bounds,
    /// By bucket, not added up.
    pub(super) counts: Vec<u64>,
    pub(super) sum_ns: u64,
}

impl Histogram {
    /// An empty one.
    ///
    /// # Panics
    /// When the bounds do not rise, which is a mistake in the program.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        assert!(bounds.is_sorted_by(|one, next| one < next), "the bounds of buckets rise: {bounds:?}");
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum_ns: AtomicU64::new(0) }
    }

    /// Adds something that took this long.
    pub fn observe(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.bounds.partition_point(|bound| *bound < ns);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Does `work` and adds how long it took.
    pub fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.observe(begun.elapsed());
        done
    }

    /// Several that have the same bounds, added up; `None` of none. What is added meanwhile may be in one figure and not yet in another.
    pub(super) fn read(parts: &[&Self]) -> Option<Reading> {
        let bounds = parts.first()?.bounds;
        debug_assert!(parts.iter().all(|part| part.bounds == bounds), "only like is added to like");
        let mut reading = Reading { bounds, counts: vec![0; bounds.len() + 1], sum_ns: 0 };
        for part in parts {
            for (sum, bucket) in reading.counts.iter_mut().zip(&part.buckets) {
                *sum += bucket.load(Ordering::Relaxed);
            }
            reading.sum_ns = reading.sum_ns.wrapping_add(part.sum_ns.load(Ordering::Relaxed));
        }
        Some(reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_that_is_not_below_it() {
        let histogram = Histogram::new(&[1_000, 2_000]);
        for ns in [0, 1_000, 1_001, 2_000, 2_001, 5_000] {
            histogram.observe(Duration::from_nanos(ns));
        }
        let reading = Histogram::read(&[&histogram]).unwrap();
        assert_eq!((reading.counts, reading.sum_ns), (vec![2, 2, 2], 11_002));
    }

    #[test]
    fn those_of_several_threads_are_added_up_and_none_are_nothing() {
        let parts = [Histogram::new(OF_TURNS), Histogram::new(OF_TURNS)];
        std::thread::scope(|scope| {
            for part in &parts {
                scope.spawn(|| (0..1_000).for_each(|_| part.observe(Duration::from_micros(30))));
            }
        });
        let reading = Histogram::read(&[&parts[0], &parts[1]]).unwrap();
        assert_eq!((reading.counts[2], reading.counts.iter().sum::<u64>()), (2_000, 2_000));
        assert_eq!(reading.sum_ns, 60_000_000);
        assert_eq!(Histogram::read(&[]), None);
    }

    #[test]
    fn what_is_timed_is_done_and_counted() {
        let histogram = Histogram::new(OF_DISKS);
        assert_eq!(histogram.time(|| 7), 7);
        assert_eq!(Histogram::read(&[&histogram]).unwrap().counts.iter().sum::<u64>(), 1);
    }
}
