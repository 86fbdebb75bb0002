//! What a process holds: memory and descriptors, at the first quiet moment and at each one after it.
//!
//! A process that was killed and started anew is held against the first one of its name: it does the same work.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::process::Process;
use crate::wait::until_equal;

/// Memory that may be held beyond what was held at first, in KiB: hundreds of tasks and their results in maps, and what an allocator
/// keeps of larger buffers. A buffer that stays with each fault would be more after a round of 20.
const GROWTH_KIB_MAX: u64 = 24 * 1024;

/// Descriptors beyond those at first: a file that is just being written, one of the inbox that is just being read, its folder, and
/// a connection that is just being closed.
const DESCRIPTORS_MORE_MAX: usize = 4;

/// How long it may take until everything is put away: a connection's last words take 2 s, and two cores are shared by many.
const PUT_AWAY: Duration = Duration::from_secs(20);

/// What a process holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Footprint {
    pub(crate) kib: u64,
    /// Without those of connections that are there.
    pub(crate) descriptors: usize,
}

/// What processes hold, by name.
pub(crate) type Footprints = BTreeMap<String, Footprint>;

impl Footprint {
    /// Of a process that has so many connections.
    pub(crate) fn of(process: &Process, connections: u64) -> Self {
        let connections = usize::try_from(connections).expect("a world has few connections");
        let descriptors = process.descriptors().saturating_sub(connections);
        Self { kib: process.resident_kib(), descriptors }
    }

    fn is_near(self, first: Self) -> bool {
        self.kib <= first.kib + GROWTH_KIB_MAX && self.descriptors <= first.descriptors + DESCRIPTORS_MORE_MAX
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} KiB and {} descriptors", self.kib, self.descriptors)
    }
}

/// Waits until all processes hold what they held at first, or little more.
pub(crate) fn wait_near(first: &Footprints, mut look: impl FnMut() -> Footprints) {
    until_equal("memory and descriptors are back where they were", PUT_AWAY, &Vec::new(), || {
        let far = look().into_iter().filter_map(|(name, held)| {
            let first = first.get(&name).copied().unwrap_or_default();
            (!held.is_near(first)).then(|| format!("{name} held {first} at first and holds {held}"))
        });
        far.collect()
    });
}
