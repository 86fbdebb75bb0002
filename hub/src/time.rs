//! Time as the hub has it: a number that the caller hands in.
//!
//! Deadlines are in ticks of monotonic time. The wall clock is there only for what is said in wall time: the validity of tasks
//! and certificates, and the times in rows.

use bgb_protocol::ids::UnixMillis;

/// Milliseconds of one tick. Keepalives are minutes long and the shortest deadline is a second: a tenth of that is fine enough,
/// and keeps the wheel small.
pub const TICK_MS: u64 = 100;

/// A moment of monotonic time, in ticks of [`TICK_MS`] from whatever origin the caller has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

impl Tick {
    /// This moment and `ticks` more; stays at the far end instead of wrapping.
    #[must_use]
    pub fn plus(self, ticks: u64) -> Self {
        Self(self.0.saturating_add(ticks))
    }

    /// Ticks from `earlier` to this moment; 0 when `earlier` is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What time it is, by both clocks, as the caller read them once for this turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic.
    pub tick: Tick,
    /// The server's wall clock.
    pub unix: UnixMillis,
}

/// Ticks of `seconds`.
#[must_use]
pub fn ticks_from_secs(seconds: u32) -> u64 {
    u64::from(seconds) * (1000 / TICK_MS)
}
