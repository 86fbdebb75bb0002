//! `bgb demo`: a whole site on this machine, made to be looked at and thrown away.
//!
//! It makes a site in a folder of its own, starts manager, notification server and agents as processes on loopback,
//! asks the agents for a few things and shows their answers. It does what an administrator would do, over the same API
//! and with the same configuration files; nothing in the programs knows that it is a demo. It owns its folder
//! (`folder`), its processes (`process`, `household`) and the order of events (`story`). Law: whatever happens, no
//! process of it outlives it, and what went wrong is told with the log that says more.

mod folder;
mod household;
mod launch;
mod ports;
mod process;
mod scanner;
mod story;

use std::cell::Cell;
use std::time::Duration;

use bgb_daemon::signals::{self, Signal};
use crossbeam_channel::Receiver;

pub(crate) use self::launch::launch;

use crate::arguments::DemoArguments;
use crate::demo::folder::DemoFolder;
use crate::demo::household::Household;
use crate::demo::story::Story;
use crate::outcome::{Exit, Failure};
use crate::terminal::Terminal;

/// Runs the demo.
///
/// # Errors
/// A sentence that says what did not work, and the log to look into.
pub(crate) fn run(arguments: &DemoArguments, terminal: &Terminal) -> Result<Exit, Failure> {
    let interrupt = Interrupt::listen()?;
    let folder = DemoFolder::claim(&arguments.dir, terminal)?;
    let mut household = Household::start(&folder, terminal, &interrupt)?;
    let mut story = Story::new(&folder, terminal, &interrupt)?;
    let told = story.tell(&mut household, arguments.agents);
    if told.is_ok() && !arguments.exit {
        story.say_what_next(&household)?;
        household.run_until(&interrupt, terminal);
        terminal.remark("Stopping agents, server and manager …");
    }
    // What went wrong in the story matters more than how its processes ended.
    let stopped = household.stop();
    let outcome = told?;
    stopped?;
    if arguments.exit {
        outcome.conclude(terminal)
    } else {
        terminal.remark(format_args!(
            "Stopped. The folder {} stays; the next demo makes it anew.",
            arguments.dir.display()
        ));
        Ok(outcome.exit())
    }
}

/// Whether somebody wants the demo to end: Ctrl-C, SIGTERM, or a terminal that was closed.
pub(crate) struct Interrupt {
    signals: Receiver<Signal>,
    /// It was wanted once: it stays so.
    wanted: Cell<bool>,
}

impl Interrupt {
    fn listen() -> Result<Self, Failure> {
        Ok(Self { signals: signals::listen()?, wanted: Cell::new(false) })
    }

    /// Fails when somebody wants the demo to end.
    ///
    /// # Errors
    /// Says that the demo was stopped.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.wait(Duration::ZERO) {
            return Err(Failure::failed("the demo was stopped before every answer was in"));
        }
        Ok(())
    }

    /// Waits so long, or until somebody wants the demo to end; says whether that is so.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let wanted = self.wanted.get() || self.signals.recv_timeout(timeout).is_ok();
        self.wanted.set(wanted);
        wanted
    }
}
