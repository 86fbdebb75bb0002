//! `bgb-server`: arguments, then [`bgb_server::server`].

use std::path::PathBuf;
use std::process::ExitCode;

use bgb_server::config::ServerConfig;
use clap::Parser;
use tikv_jemallocator::Jemalloc;

/// It takes less time for what a handshake needs and leaves, and less memory for what stays, than the C library's (ARCHITECTURE.md). How soon it gives
/// back what it does not need is in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

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
