//! A flood of handshakes: ClientHellos that were recorded once, said again and again from 256 addresses, by somebody who never ends one.
//!
//! It runs as a process of its own, and keeps to a part of a core by its own account: so much time it works, the rest it sleeps. It stands for
//! strangers on machines of their own; at the lowest priority (`--nice 19`) it does to the server what they do by what they say, and not what a program
//! does that wants the same processor.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use anyhow::bail;

use crate::client::tls::{ALPN, TlsOfSite};
use crate::fleet::Fleet;

/// Addresses that it comes from, in a network that no agent of a run has.
const ADDRESSES: usize = 256;
const FROM: [u8; 2] = [127, 200];
/// Connections that are open at a time, and how long each waits for an answer: then it is let go, and so it is as soon as there is one, unless it is
/// to be held all the same.
const OPEN_MAX: usize = 16_384;
const HELD: Duration = Duration::from_secs(1);
/// While so many are open, it is looked so often whether one of them may go.
const FULL: Duration = Duration::from_millis(1);
/// The type of a record with which a server goes on (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;
/// The account is looked at after so many; and of those that are open it is looked at so many whether there is an answer.
const BATCH: usize = 64;
const HEARD_AT_ONCE: usize = 1_024;

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
    /// Hold what was answered for as long as what was not.
    #[arg(long)]
    pub(crate) holds: bool,
    #[arg(long, default_value_t = 0)]
    pub(crate) nice: i32,
}

/// A connection that was begun.
struct Begun {
    stream: TcpStream,
    since: Instant,
    is_heard: bool,
}

/// What came of it, in one line of JSON.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Flooded {
    /// Connections that were tried, and on how many of them a hello was said: the server's queue was not full.
    pub(crate) tried: u64,
    pub(crate) offered: u64,
    /// With how many the server went on: it has computed its part of a handshake.
    pub(crate) answered: u64,
    /// And how many it has refused or dropped.
    pub(crate) refused: u64,
    pub(crate) seconds: f64,
    /// What it had of a core.
    pub(crate) core_seconds: f64,
}

/// Floods until its time is over.
///
/// # Errors
/// When the fleet cannot be read.
pub(crate) fn run(arguments: &FloodArguments) -> anyhow::Result<()> {
    let fleet = Fleet::read(&arguments.fleet)?;
    let servers: Vec<SocketAddr> =
        fleet.servers.iter().map(|server| crate::worker::resolve(server)).collect::<anyhow::Result<_>>()?;
    let hello = recorded(&fleet, &arguments.fleet, servers[0])?;
    rustix::process::nice(arguments.nice)?;
    let (begun, mut flooded) = (Instant::now(), Flooded::default());
    let mut open: VecDeque<Begun> = VecDeque::new();
    let (ends, cpu_before) = (begun + Duration::from_secs(arguments.seconds), cpu());
    while Instant::now() < ends {
        for _ in 0..HEARD_AT_ONCE.min(open.len()) {
            let Some(mut begun) = open.pop_front() else { break };
            begun.is_heard = begun.is_heard || flooded.hear(&mut begun.stream);
            if (arguments.holds || !begun.is_heard) && begun.since.elapsed() < HELD {
                open.push_back(begun);
            }
        }
        for _ in 0..BATCH.min(OPEN_MAX - open.len()) {
            let place = flooded.tried as usize;
            flooded.tried += 1;
            match begin(servers[place % servers.len()], place % ADDRESSES, &hello) {
                Ok(stream) => {
                    flooded.offered += 1;
                    open.push_back(Begun { stream, since: Instant::now(), is_heard: false });
                }
                Err(error) if is_the_queue(&error) => {}
                Err(error) => bail!("this machine gives the flood no connection: {error}"),
            }
        }
        let may_have = begun.elapsed().mul_f64(f64::from(arguments.core_percent) / 100.0);
        let pause = (cpu() - cpu_before).saturating_sub(may_have).min(Duration::from_millis(100));
        std::thread::sleep(if open.len() < OPEN_MAX { pause } else { pause.max(FULL) });
    }
    flooded.seconds = begun.elapsed().as_secs_f64();
    flooded.core_seconds = (cpu() - cpu_before).as_secs_f64();
    println!("{}", serde_json::to_string(&flooded)?);
    Ok(())
}

impl Flooded {
    /// Another flood as well.
    pub(crate) fn add(&mut self, other: &Self) {
        self.tried += other.tried;
        self.offered += other.offered;
        self.answered += other.answered;
        self.refused += other.refused;
        self.seconds += other.seconds;
        self.core_seconds += other.core_seconds;
    }

    /// Looks what the server has said; `false` when it has not said anything.
    fn hear(&mut self, stream: &mut TcpStream) -> bool {
        let mut answer = [0];
        match stream.read(&mut answer) {
            Ok(bytes) if bytes > 0 && answer == [HANDSHAKE] => self.answered += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            _ => self.refused += 1,
        }
        true
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

/// A connection from one of the addresses, with the hello on it.
fn begin(server: SocketAddr, address: usize, hello: &[u8]) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    // It leaves no trace in the kernel when it goes.
    socket.set_linger(Some(Duration::ZERO))?;
    let from = Ipv4Addr::new(FROM[0], FROM[1], 0, address as u8);
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.set_nonblocking(true)?;
    match socket.connect(&server.into()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            return Err(error);
        }
        _ => {}
    }
    // On one machine it is there by now, or the server's queue is full and nothing can be said.
    let mut stream = TcpStream::from(socket);
    stream.write_all(hello)?;
    Ok(stream)
}

/// Whether the server's queue was full, or the server has let go of the connection at once.
fn is_the_queue(error: &std::io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected, WouldBlock};
    matches!(error.kind(), WouldBlock | NotConnected | BrokenPipe | ConnectionReset | ConnectionRefused)
}

/// What this process has spent of a core so far.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}
