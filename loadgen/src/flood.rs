//! A flood of handshakes: ClientHellos that were recorded once, said again and again from 256 addresses, by somebody who never ends one.
//!
//! It runs as a process of its own, and keeps to a part of a core by its own account: so much time it works, the rest it sleeps.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::client::tls::{ALPN, TlsOfSite};
use crate::fleet::Fleet;

/// Addresses that it comes from, in a network that no agent of a run has.
const ADDRESSES: usize = 256;
const FROM: [u8; 2] = [127, 200];
/// Connections that are open at a time: what is older is let go.
const OPEN_MAX: usize = 2_048;
/// The account is looked at after so many.
const BATCH: usize = 64;

/// `bgb-loadgen flood-worker`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FloodArguments {
    #[arg(long)]
    pub(crate) fleet: PathBuf,
    #[arg(long)]
    pub(crate) seconds: u64,
    /// The part of a core that it may have, in percent.
    #[arg(long, default_value_t = 50)]
    pub(crate) core_percent: u32,
}

/// What came of it, in one line of JSON.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Flooded {
    /// Connections that were begun, and on which a hello was said.
    pub(crate) offered: u64,
    pub(crate) said: u64,
    /// The server has answered so many.
    pub(crate) answered: u64,
    /// And refused or dropped so many.
    pub(crate) refused: u64,
    pub(crate) seconds: f64,
}

/// Floods until its time is over.
///
/// # Errors
/// When the fleet cannot be read.
pub(crate) fn run(arguments: &FloodArguments) -> anyhow::Result<()> {
    crate::worker::raise_descriptors();
    let fleet = Fleet::read(&arguments.fleet)?;
    let servers: Vec<SocketAddr> =
        fleet.servers.iter().map(|server| crate::worker::resolve(server)).collect::<anyhow::Result<_>>()?;
    let hello = recorded(&fleet, &arguments.fleet, servers[0])?;
    let (begun, mut flooded, mut open) = (Instant::now(), Flooded::default(), VecDeque::new());
    let (ends, cpu_before) = (begun + Duration::from_secs(arguments.seconds), cpu());
    while Instant::now() < ends {
        for _ in 0..BATCH {
            let place = flooded.offered as usize;
            flooded.offered += 1;
            if let Some(stream) = begin(servers[place % servers.len()], place % ADDRESSES, &hello) {
                flooded.said += 1;
                open.push_back(stream);
            }
            if open.len() > OPEN_MAX
                && let Some(stream) = open.pop_front()
            {
                flooded.note(stream);
            }
        }
        let may_have = begun.elapsed().mul_f64(f64::from(arguments.core_percent) / 100.0);
        std::thread::sleep((cpu() - cpu_before).saturating_sub(may_have).min(Duration::from_millis(100)));
    }
    open.into_iter().for_each(|stream| flooded.note(stream));
    flooded.seconds = begun.elapsed().as_secs_f64();
    println!("{}", serde_json::to_string(&flooded)?);
    Ok(())
}

impl Flooded {
    /// Looks what the server has said, and lets the connection go.
    fn note(&mut self, mut stream: TcpStream) {
        match stream.read(&mut [0; 64]) {
            Ok(bytes) if bytes > 0 => self.answered += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => self.refused += 1,
        }
    }
}

/// What a device of the fleet says first.
fn recorded(fleet: &Fleet, folder: &std::path::Path, server: SocketAddr) -> anyhow::Result<Vec<u8>> {
    let members = Fleet::members(folder, 0, 1)?;
    let device =
        TlsOfSite::new(&fleet.authority()?, Some(ALPN))?.device(&members[0].certificate, &members[0].key)?;
    let mut hello = Vec::new();
    device.session(server.ip(), false)?.write_to(&mut hello)?;
    Ok(hello)
}

/// A connection from one of the addresses, with the hello on it; `None` where there is none to be had.
fn begin(server: SocketAddr, address: usize, hello: &[u8]) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).ok()?;
    // It leaves no trace in the kernel when it goes.
    socket.set_linger(Some(Duration::ZERO)).ok()?;
    let from = Ipv4Addr::new(FROM[0], FROM[1], 0, address as u8);
    socket.bind(&SocketAddr::from((from, 0)).into()).ok()?;
    socket.connect_timeout(&server.into(), Duration::from_millis(200)).ok()?;
    socket.set_nonblocking(true).ok()?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(hello).ok()?;
    Some(stream)
}

/// What this process has spent of a core so far.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}
