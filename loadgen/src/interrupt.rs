//! Whether somebody wants the run to end: Ctrl-C, or a polite signal. What was measured by then is kept, and everything that was started ends.
//!
//! Only the coordinator hears of it. What it starts is in process groups of its own, so that a terminal's Ctrl-C does not end the servers and agents
//! that are still to be asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

static IS_INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Listens from now on. Whoever presses Ctrl-C a second time does not want to wait.
///
/// # Errors
/// As the system says.
pub(crate) fn listen() -> anyhow::Result<()> {
    let is_interrupted = IS_INTERRUPTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register_conditional_shutdown(signal, 130, Arc::clone(is_interrupted))?;
        flag::register(signal, Arc::clone(is_interrupted))?;
    }
    Ok(())
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
