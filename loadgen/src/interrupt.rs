//! Whether somebody wants the run to end: Ctrl-C, or a polite signal. What was measured by then is kept, and everything that was started ends.
//!
//! Only the coordinator hears of it. What it starts is in process groups of its own, so that a terminal's Ctrl-C does not end the servers and agents
//! that are still to be asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

static IS_INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Listens from now on; not to signals that whoever started this wants ignored, as nohup(1) does.
///
/// # Errors
/// As the system says.
pub(crate) fn listen() -> anyhow::Result<()> {
    let is_interrupted = IS_INTERRUPTED.get_or_init(Arc::default);
    let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if ignored & 1 << (signal - 1) == 0 {
            flag::register(signal, Arc::clone(is_interrupted))?;
        }
    }
    Ok(())
}

/// The signals that a process ignores, by its status: a bit each (proc(5)).
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// Whether it has come to that.
pub(crate) fn is_wanted() -> bool {
    IS_INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// An error once it has: for work that leaves nothing behind worth keeping.
///
/// # Errors
/// See above.
pub(crate) fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!is_wanted(), "interrupted");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_ignored_is_found_in_the_status() {
        let status = "Name:\tbgb-loadgen\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored(status) & 1 << (SIGHUP - 1), 1);
        assert_eq!(ignored(status) & 1 << (SIGINT - 1), 0);
        assert_eq!(ignored(""), 0);
    }
}
