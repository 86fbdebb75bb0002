//! The signals that a daemon answers, as messages on a channel.
//!
//! One thread waits for them, so that no handler does more than the signal-hook crate's own wake-up.
//! SIGPIPE needs no care: Rust's start-up code ignores it. When the daemon has let go of the receiver,
//! a signal does again what it does by default: a process that no longer listens can still be ended.

use anyhow::Context as _;
use crossbeam_channel::{Receiver, Sender, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Signals that may wait to be read; past it the thread waits, and the kernel folds repeats into one.
const WAITING_MAX: usize = 8;

/// What somebody wants of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: stop in good order.
    Terminate,
    /// SIGHUP: read configuration and certificates again.
    Reload,
}

/// Begins to listen for SIGTERM, SIGINT and SIGHUP. Called once, before other threads need them.
///
/// # Errors
/// When the kernel refuses the handlers or the thread.
pub fn listen() -> anyhow::Result<Receiver<Signal>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("signal handlers cannot be set")?;
    let (sender, receiver) = bounded(WAITING_MAX);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for number in signals.forever() {
                deliver(&sender, number);
            }
        })
        .context("the thread that waits for signals cannot be started")?;
    Ok(receiver)
}

fn deliver(sender: &Sender<Signal>, number: i32) {
    let signal = if number == SIGHUP { Signal::Reload } else { Signal::Terminate };
    if sender.send(signal).is_err() {
        // Fails only for numbers that have no default action; ours all have one.
        let _ = signal_hook::low_level::emulate_default_handler(number);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use super::*;

    /// Set in the process that the test below starts.
    const CHILD: &str = "BGB_TEST_SIGNALS_CHILD";

    /// Signals are a process's, so that the test has one of its own: this one, started by the next.
    #[test]
    fn child_that_prints_the_signals_it_gets() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let signals = listen().unwrap();
        println!("listening");
        for _ in 0..3 {
            println!("{:?}", signals.recv_timeout(Duration::from_secs(30)).unwrap());
        }
        drop(signals);
        println!("deaf");
        // Ends by the signal that nobody listens to any more, or else fails.
        std::thread::park_timeout(Duration::from_secs(30));
        panic!("the signal after the last one that was listened to did nothing");
    }

    fn send(child: &Child, signal: rustix::process::Signal) {
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    #[test]
    fn each_signal_arrives_and_after_the_listener_is_gone_it_ends_the_process() {
        use rustix::process::Signal as Number;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "signals::tests::child_that_prints_the_signals_it_gets", "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut wait_for = |expected: &str| {
            let mut line = String::new();
            while !line.trim_end().ends_with(expected) {
                line.clear();
                assert!(
                    lines.read_line(&mut line).unwrap() > 0,
                    "the child ended before it said {expected:?}"
                );
            }
        };
        wait_for("listening");
        send(&child, Number::HUP);
        wait_for("Reload");
        send(&child, Number::TERM);
        wait_for("Terminate");
        send(&child, Number::INT);
        wait_for("Terminate");
        wait_for("deaf");
        send(&child, Number::TERM);
        lines.read_to_string(&mut String::new()).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(SIGTERM));
    }
}
