//! `bgb-server`: arguments, then [`bgb_server::server`].

use std::path::PathBuf;
use std::process::ExitCode;

use bgb_server::config::ServerConfig;
use clap::Parser;

/// BGB's notification server: holds the fleet's connections and pushes tasks over them.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// The server's configuration.
    #[arg(long, value_name = "FILE", default_value = "server.toml")]
    config: PathBuf,
    /// Only read and check the configuration.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = if arguments.check {
        ServerConfig::load(&arguments.config).map(|_| println!("{}: good", arguments.config.display()))
    } else {
        bgb_server::server::main(&arguments.config)
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bgb-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}
