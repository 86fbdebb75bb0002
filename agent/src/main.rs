//! `bgb-agent`: arguments, configuration, log, and then [`bgb_agent::daemon`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use bgb_agent::config::AgentConfig;
use bgb_agent::daemon::{LOG_COMPONENT, LOG_FILE, Prepared};
use bgb_daemon::ready::{self, Ready};
use bgb_daemon::{log, signals};
use clap::Parser;

/// BGB's notification agent: keeps a connection to the site's servers and carries out what the site has signed.
#[derive(Parser)]
#[command(name = "bgb-agent", version)]
struct Arguments {
    /// The agent's configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Read and check the configuration, the certificate and the keys, and end.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    if let Some(code) = bgb_agent::launch::launched() {
        return code;
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bgb-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = AgentConfig::load(&arguments.config)?;
    let options = config.log.options(LOG_COMPONENT, LOG_FILE);
    let prepared = Prepared::new(config)?;
    if arguments.check {
        return Ok(());
    }
    let signals = signals::listen()?;
    let _log = log::init(options)?;
    let done = prepared.run(&signals, |admin| {
        let listen = admin.map(|address| ("admin".to_owned(), address));
        ready::tell(&Ready::of_this_process("bgb-agent", BTreeMap::from_iter(listen)));
    });
    if let Err(error) = &done {
        tracing::error!("the agent cannot go on: {error:#}");
    }
    done
}
