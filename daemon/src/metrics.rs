//! What a daemon counts of itself, and how Prometheus is told of it.
//!
//! Counters are atomics without a lock: what is counted often is a [`Cell`], which one thread owns, and whoever is asked adds up the
//! cells of all threads. [`Histogram`] keeps times in fixed buckets. [`Exposition`] is the text (Prometheus's format 0.0.4), and what
//! every process tells of itself. Law: counting never waits, and being asked holds nobody up who counts.

mod exposition;
mod histogram;
mod process;

use std::sync::atomic::{AtomicU64, Ordering};

pub use exposition::Exposition;
pub use histogram::{Bounds, Histogram, OF_DISKS, OF_TURNS};

/// A number that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds; for the owner only.
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// Sets; for the owner only.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it holds.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter that several threads add to, each seldom.
#[derive(Debug, Default)]
pub struct SharedCell(AtomicU64);

impl SharedCell {
    /// Adds one.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// What it holds.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
