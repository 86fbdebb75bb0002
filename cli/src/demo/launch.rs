//! `bgb launch`: starts a program that ends when its parent does. Hidden: only the demo uses it.
//!
//! The demo starts each of its processes through it. It asks the kernel to send SIGTERM when the parent ends, in
//! whatever way (prctl(2), PR_SET_PDEATHSIG), and becomes the program by execve(2), which keeps that wish. So the
//! programs need to know nothing of it, and no code runs between fork and exec.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::arguments::LaunchArguments;
use crate::outcome::{Exit, Failure};

/// Becomes the program; returns only when that fails.
///
/// # Errors
/// When the parent is gone already, or the program cannot be started.
pub(crate) fn launch(arguments: &LaunchArguments) -> Result<Exit, Failure> {
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| Failure::failed(format!("the parent cannot be watched: {error}")))?;
    // The parent may have ended before the kernel knew the wish; then this process has another one.
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if i64::from(parent) != i64::from(arguments.parent) {
        return Err(Failure::failed(format!("process {}, which started this, is gone", arguments.parent)));
    }
    let (program, rest) =
        arguments.program.split_first().expect("the command line asks for one word at least");
    let error = Command::new(program).args(rest).exec();
    Err(Failure::failed(format!("{} cannot be started: {error}", program.display())))
}
