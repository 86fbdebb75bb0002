//! `bgb`: what an administrator of BGB types.
//!
//! It reads the command line, finds the site's manager, asks it over its API, and shows the answer: tables for people,
//! JSON for programs. It owns no state and no site: `site …` works on the folder through the site crate, `files` reads
//! a server's files through the protocol crate, since these must work when nothing runs; everything else goes over the wire. It must not know the database, the queue or a device's session.
#![cfg_attr(test, allow(clippy::unwrap_used))] // A test that cannot go on should stop where it stands.

mod arguments;
mod command;
mod demo;
mod endpoint;
mod figures;
mod manager;
mod outcome;
mod road;
mod terminal;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::{Arguments, Command, Globals};
use crate::endpoint::{Endpoint, SITE_VARIABLE, Wanted};
use crate::manager::Manager;
use crate::outcome::{Exit, Failure};
use crate::terminal::Terminal;

fn main() -> ExitCode {
    let Arguments { globals, command } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return not_understood(&error),
    };
    let terminal = Terminal::of_this_process(globals.json, globals.quiet, globals.utc);
    let exit = run(command, globals, &terminal).unwrap_or_else(|failure| {
        if !matches!(failure, Failure::OutputClosed) {
            terminal.complain(&failure);
        }
        failure.exit()
    });
    ExitCode::from(exit.code())
}

/// A command line that was not understood, or that asked for help: in clap's words, or as JSON for whoever asked for that.
fn not_understood(error: &clap::Error) -> ExitCode {
    let wants_json = std::env::args_os().any(|argument| argument == "--json");
    if wants_json && error.use_stderr() {
        let failure = Failure::usage(error.render().to_string().trim_end());
        Terminal::of_this_process(true, false, false).complain(&failure);
        return ExitCode::from(failure.exit().code());
    }
    error.exit()
}

fn run(command: Command, globals: Globals, terminal: &Terminal) -> Result<Exit, Failure> {
    let wanted = Wanted {
        site: globals.site.or_else(|| std::env::var_os(SITE_VARIABLE).map(Into::into)),
        api: globals.api,
        token_file: globals.token_file,
    };
    let manager = || Ok::<_, Failure>(Manager::new(Endpoint::find(&wanted)?));
    match command {
        Command::Device(device) => command::device::run(device, &manager()?, terminal),
        Command::Collection(collection) => command::collection::run(collection, &manager()?, terminal),
        Command::Policy(policy) => command::policy::run(policy, &manager()?, terminal),
        Command::Task(task) => command::task::run(task, &manager()?, terminal),
        Command::Status(status) => command::status::run(&status, &manager()?, terminal),
        Command::Files(files) => command::files::run(files, terminal),
        Command::Site(site) => command::site::run(site, wanted.site.as_deref(), terminal),
        Command::Demo(arguments) => demo::run(&arguments, terminal),
        Command::Launch(arguments) => demo::launch(&arguments),
    }
}
