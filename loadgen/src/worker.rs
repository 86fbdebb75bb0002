//! A worker: one process that plays a part of the fleet, and does what it is told on its standard input.
//!
//! ```text
//! coordinator --- a command a line ---> worker      (JSON)
//! coordinator <-- a report a line ----- worker
//! ```
//!
//! A thread reads the commands and wakes the loop; all else happens on the loop's one thread. When the input ends the worker ends: no
//! worker outlives its coordinator.

pub(crate) mod crowd; // the loop: many agents, their sockets, their moments
pub(crate) mod link; // what is said between the two

use std::io::BufRead as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use crossbeam_channel::unbounded;
use mio::{Poll, Token, Waker};

use crate::client::agent::Site;
use crate::client::road::Way;
use crate::client::subscriber::Dialect;
use crate::client::tls::{ALPN, TlsOfSite};
use crate::fleet::Fleet;
use crowd::{Crowd, CrowdOptions};
use link::{Command, Report};

/// The token of whoever wakes the loop; agents' sockets have theirs from 0 on.
const WAKER: Token = Token(usize::MAX);

/// Which part of which fleet a worker plays.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WorkerArguments {
    /// The fleet's folder.
    #[arg(long)]
    pub(crate) fleet: PathBuf,
    /// The first of its devices.
    #[arg(long)]
    pub(crate) first: usize,
    /// How many.
    #[arg(long)]
    pub(crate) count: usize,
    /// The network from which agents connect, one address each.
    #[arg(long)]
    pub(crate) sources: Option<crate::sources::Sources>,
    /// What the agents' places are taken by: clients of another server.
    #[arg(long)]
    pub(crate) dialect: Option<Dialect>,
    /// Of a session only its keys are kept, once it is signed in.
    #[arg(long)]
    pub(crate) at_rest: bool,
    #[command(flatten)]
    pub(crate) way: Way,
}

/// Runs until the standard input ends.
///
/// # Errors
/// When the fleet cannot be read, or the system gives no descriptors.
pub(crate) fn run(arguments: &WorkerArguments) -> anyhow::Result<()> {
    let fleet = Fleet::read(&arguments.fleet)?;
    let alpn = arguments.dialect.map_or(Some(ALPN), Dialect::alpn);
    let tls = TlsOfSite::new(&fleet.authority()?, alpn)?;
    let (code, task_keys, road) = (fleet.code()?, fleet.trusted()?, arguments.way.taken());
    let site = Arc::new(Site { code, task_keys, road });
    let members = Fleet::members(&arguments.fleet, arguments.first, arguments.count)?;
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKER)?;
    let (commands, orders) = unbounded();
    std::thread::Builder::new().name("commands".to_owned()).spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let command = serde_json::from_str(&line)
                .unwrap_or_else(|error| Command::Unreadable { line: line.clone(), error: error.to_string() });
            if commands.send(command).is_err() || waker.wake().is_err() {
                return;
            }
        }
        let _ = commands.send(Command::Stop);
        let _ = waker.wake();
    })?;
    let options = CrowdOptions {
        servers: fleet
            .servers_by(arguments.way)?
            .iter()
            .map(|text| resolve(text))
            .collect::<anyhow::Result<_>>()?,
        way: arguments.way,
        sources: arguments.sources,
        first: arguments.first,
        dialect: arguments.dialect,
        rests: arguments.at_rest,
    };
    let mut crowd = Crowd::new(options, &tls, &site, &members, poll)?;
    drop(members);
    Report::Ready { devices: crowd.len() }.say()?;
    crowd.run(&orders)
}

pub(crate) fn resolve(server: &str) -> anyhow::Result<std::net::SocketAddr> {
    use std::net::ToSocketAddrs as _;
    let mut addresses =
        server.to_socket_addrs().with_context(|| format!("{server}: the server's name is not known"))?;
    addresses.next().with_context(|| format!("{server}: the server's name has no address"))
}

/// As many descriptors as this process may have.
pub(crate) fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where this fails, connecting says so, with a count.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
