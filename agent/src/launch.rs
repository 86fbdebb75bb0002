//! The process between the agent and a program that it runs: ends the program when the agent is gone.
//!
//! An agent that is killed cannot end its scanner. So it starts programs through its own executable, which asks the kernel for a signal
//! when its parent ends, in whatever way (prctl(2), PR_SET_PDEATHSIG), runs the program, and then kills the whole process
//! group, of which it is the leader. It ends as the program does. The wish is tied to the thread that started it, which is the
//! action's and lives as long as the program.
//!
//! It owns nothing of the agent's and reads no file. Other signals to the group are the program's affair: it waits on.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::OnceLock;

use bgb_daemon::signals;
use rustix::process::{Signal, getpgrp, getpid, getppid, kill_process, kill_process_group};

/// The first argument by which the executable knows what it is to be.
const WORD: &str = "launch-for-agent";

/// This executable, also after another was put in its place.
const EXECUTABLE: &str = "/proc/self/exe";

/// Exit code for a program that cannot be started (POSIX, 2.8.2 of the shell).
const CANNOT_START: u8 = 127;

/// Whether this process's executable can be started as a launcher.
static IS_LAUNCHER: OnceLock<()> = OnceLock::new();

/// To be called first of all by an executable that is a launcher as well: the code to end with, when it was started as one.
pub fn launched() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|word| word != WORD) {
        // What this process starts may count on it.
        IS_LAUNCHER.get_or_init(|| ());
        return None;
    }
    Some(launch(arguments).unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::from(CANNOT_START)
    }))
}

/// The beginning of a command that ends with this process, the program and its arguments still to be added; `None` where the
/// executable is no launcher, as in a test.
pub(crate) fn launcher() -> Option<Command> {
    IS_LAUNCHER.get().map(|()| {
        let mut command = Command::new(EXECUTABLE);
        command.arg0("bgb-agent").arg(WORD).arg(std::process::id().to_string());
        command
    })
}

fn launch(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let parent = arguments.next().and_then(|parent| parent.to_str()?.parse().ok());
    let is_orphan = move || getppid().map(|pid| pid.as_raw_nonzero().get()) != parent;
    let signals = signals::listen()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    if is_orphan() {
        // It ended before the kernel knew the wish.
        anyhow::bail!("the agent that started this is gone");
    }
    let program = arguments.next().unwrap_or_default();
    let mut child = Command::new(&program)
        .args(arguments)
        .spawn()
        .map_err(|error| anyhow::anyhow!("{} cannot be started: {error}", program.display()))?;
    std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
        while signals.recv().is_ok() {
            if is_orphan() {
                // This process among them.
                let _ = kill_process_group(getpgrp(), Signal::KILL);
            }
        }
    })?;
    Ok(end_as(child.wait()?))
}

/// Ends as the program did.
fn end_as(status: ExitStatus) -> ExitCode {
    match (status.code(), status.signal().and_then(Signal::from_named_raw)) {
        (Some(code), _) => ExitCode::from(code as u8),
        (None, signal) => {
            let _ = signal.map(|signal| kill_process(getpid(), signal));
            // One that is ignored, or was listened to.
            ExitCode::FAILURE
        }
    }
}
