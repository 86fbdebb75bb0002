//! How many rows go into one transaction: as many as fit a fraction of the time that an order may wait.
//!
//! An order waits for one chunk at most and should be committed within 100 ms, so that a chunk has 50. How many rows that is depends on
//! the machine and on the rows; it is learnt from the chunks before, which the caller has timed. Where time stands still, as in a
//! simulation, the limit of rows alone holds.

/// Most rows of a chunk, however fast the machine.
pub(crate) const ROWS_MAX: usize = 20_000;
/// Fewest rows, however slow: below it the commit costs more than the rows.
const ROWS_MIN: usize = 250;
/// Before anything has been measured: some 20 ms on a slow machine.
const ROWS_FIRST: usize = 2_000;
/// What a chunk may take, in milliseconds.
const CHUNK_MS_MAX: u64 = 50;
/// What a chunk is sized for, in milliseconds: leaves room for a commit that is slower than the last.
const CHUNK_MS_WANTED: u64 = 30;

/// The size of the next chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkSize {
    rows: usize,
}

impl ChunkSize {
    pub(crate) fn new() -> Self {
        Self { rows: ROWS_FIRST }
    }

    /// Rows of the next chunk, at most.
    pub(crate) fn rows(self) -> usize {
        self.rows
    }

    /// Learns from a chunk of `rows` rows that took `elapsed_ms`.
    pub(crate) fn learn(&mut self, rows: usize, elapsed_ms: u64) {
        if elapsed_ms > CHUNK_MS_MAX {
            let fits = rows as u64 * CHUNK_MS_WANTED / elapsed_ms;
            self.rows = (fits as usize).clamp(ROWS_MIN, self.rows.max(ROWS_MIN));
        } else if elapsed_ms <= CHUNK_MS_WANTED / 2 && rows >= self.rows {
            self.rows = (self.rows * 2).min(ROWS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_chunks_grow_to_the_limit_of_rows() {
        let mut size = ChunkSize::new();
        for _ in 0..10 {
            size.learn(size.rows(), 0);
        }
        assert_eq!(size.rows(), ROWS_MAX);
    }

    #[test]
    fn a_slow_chunk_is_followed_by_one_that_fits() {
        let mut size = ChunkSize { rows: 20_000 };
        size.learn(20_000, 300);
        assert_eq!(size.rows(), 2_000);
        size.learn(2_000, 40);
        assert_eq!(size.rows(), 2_000);
    }

    #[test]
    fn a_small_file_neither_grows_nor_starves_the_next_chunk() {
        let mut size = ChunkSize::new();
        size.learn(3, 1);
        assert_eq!(size.rows(), ROWS_FIRST);
        size.learn(3, 500);
        assert_eq!(size.rows(), ROWS_MIN);
    }
}
