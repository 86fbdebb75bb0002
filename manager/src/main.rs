//! `bgb-manager --config manager.toml`: the notification manager of a site.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use bgb_daemon::ready::{self, Ready};
use bgb_daemon::signals::{self, Signal};
use bgb_manager::config::ManagerConfig;
use bgb_manager::service::Service;
use clap::Parser;
use crossbeam_channel::select;

/// Notification manager of a BGB site: takes orders, signs tasks, takes in what servers send.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration; `bgb site init` makes one.
    #[arg(long, value_name = "FILE", default_value = "manager.toml")]
    config: PathBuf,
    /// Only says whether the configuration can be used.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bgb-manager: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = ManagerConfig::load(&arguments.config)?;
    if arguments.check {
        println!("{}: can be used", arguments.config.display());
        return Ok(());
    }
    let log = bgb_daemon::log::init(config.log.options("SMS_NOTIFICATION_MANAGER", "bgbmgr.log"))?;
    let signals = signals::listen()?;
    let service = Service::start(&config)?;
    ready::tell(&Ready::of_this_process(
        "bgb-manager",
        BTreeMap::from([
            ("api".to_owned(), service.api_address()),
            ("admin".to_owned(), service.admin_address()),
        ]),
    ));
    loop {
        select! {
            recv(signals) -> signal => match signal? {
                Signal::Reload => log.reopen(),
                Signal::Terminate => break,
            },
            recv(service.ended()) -> _ => break,
        }
    }
    ready::stopping();
    service.stop()
}
