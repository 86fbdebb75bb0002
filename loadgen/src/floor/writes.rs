//! One thread that writes a record to each of many sockets in turn, and a process that reads them: what a fan-out would be on this machine, over
//! TCP, with nothing else in the way.
//!
//! The reader says when it had read the first and the last of a round, which is what agents are asked for in a fan-out, too.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use mio::{Events, Interest, Poll, Token};
use serde::Serialize;

use crate::clock::now_ns;
use crate::interrupt;
use crate::measure::median;
use crate::sources::LOOPBACK;

/// How long the reader may take to connect.
const CONNECTED_WITHIN: Duration = Duration::from_secs(60);

/// How long it may take to read a round, and how often it is looked whether somebody wants to end it.
const READ_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);

/// From one round to the next.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(300);

/// What writing costs.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct WriteFloor {
    pub(crate) sockets: usize,
    pub(crate) record_bytes: usize,
    /// What the writer takes for each.
    pub(crate) us_per_write: f64,
    pub(crate) written_per_second: f64,
    /// How many are read in a second, from the first to the last: what a fan-out is compared with.
    pub(crate) per_second: f64,
}

/// What the reader is told on its command line.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ReaderArguments {
    #[arg(long)]
    pub(crate) address: SocketAddr,
    #[arg(long)]
    pub(crate) count: usize,
    #[arg(long)]
    pub(crate) record_bytes: usize,
}

/// Writes `record_bytes` to each of so many sockets, in so many rounds, and gives the median of them, as is done with what stands beside.
///
/// # Errors
/// When the machine does not give as many sockets, or the reader ends.
pub(crate) fn measure(sockets: usize, record_bytes: usize, rounds: usize) -> anyhow::Result<WriteFloor> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    // The backlog of the standard library is short of what comes at once.
    rustix::net::listen(&listener, 4_096)?;
    let mut reader = Reader::start(listener.local_addr()?, sockets, record_bytes)?;
    let mut streams = Vec::with_capacity(sockets);
    let deadline = Instant::now() + CONNECTED_WITHIN;
    listener.set_nonblocking(true)?;
    while streams.len() < sockets {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nodelay(true)?;
                streams.push(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                anyhow::ensure!(Instant::now() < deadline, "only {} sockets were connected", streams.len());
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error).context("this machine gives no more sockets"),
        }
    }
    let record = vec![0x5A; record_bytes];
    let (mut written, mut read) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        let begun = Instant::now();
        for stream in &mut streams {
            stream.write_all(&record)?;
        }
        written.push(begun.elapsed().as_secs_f64());
        read.push(reader.round()?.as_secs_f64());
        std::thread::sleep(BETWEEN_ROUNDS);
    }
    let us_per_write = median(&mut written) * 1e6 / sockets as f64;
    let per_second = sockets.saturating_sub(1) as f64 / median(&mut read).max(1e-9);
    Ok(WriteFloor { sockets, record_bytes, us_per_write, written_per_second: 1e6 / us_per_write, per_second })
}

struct Reader {
    process: Child,
    /// What it says, a line a round.
    said: Receiver<String>,
}

impl Reader {
    fn start(address: SocketAddr, count: usize, record_bytes: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["floor-reader", "--address", &address.to_string(), "--count", &count.to_string()]);
        command.args(["--record-bytes", &record_bytes.to_string()]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn()?;
        let output = process.stdout.take().context("the floor's reader has no output")?;
        let (told, said) = unbounded();
        std::thread::Builder::new().name("floor".to_owned()).spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.take_while(|line| told.send(line.clone()).is_ok()).for_each(drop);
        })?;
        Ok(Self { process, said })
    }

    /// From the first to the last that it read in the round.
    fn round(&mut self) -> anyhow::Result<Duration> {
        let deadline = Instant::now() + READ_WITHIN;
        let line = loop {
            interrupt::check()?;
            match self.said.recv_timeout(LOOK) {
                Ok(line) => break line,
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the floor's reader has not read everything within {} s", READ_WITHIN.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the floor's reader has ended: {}", self.process.wait()?)
                }
            }
        };
        Ok(Duration::from_nanos(
            line.trim().parse().with_context(|| format!("the floor's reader says {line:?}"))?,
        ))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Its input ends with the pipe.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The reader: connects so often, and throws away what it reads until its input ends. Of each round it says, in nanoseconds, how long it was from
/// the first record to the last.
///
/// # Errors
/// When it cannot connect.
pub(crate) fn run_reader(arguments: &ReaderArguments) -> anyhow::Result<()> {
    let (mut poll, mut streams) = (Poll::new()?, Vec::with_capacity(arguments.count));
    for place in 0..arguments.count {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(LOOPBACK.address(place), 0).into())?;
        socket.connect(&arguments.address.into())?;
        let stream = TcpStream::from(socket);
        stream.set_nonblocking(true)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(place), Interest::READABLE)?;
        streams.push(stream);
    }
    std::thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let (mut events, mut buffer) = (Events::with_capacity(1_024), vec![0; 64 * 1024]);
    let (round, mut heard, mut first_ns) = (arguments.count * arguments.record_bytes, 0, 0);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            loop {
                let bytes = match streams[event.token().0].read(&mut buffer) {
                    Ok(0) => bail!("the floor's writer has closed a connection"),
                    Ok(bytes) => bytes,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                };
                // Agents look at the clock for each task, too.
                let now = now_ns();
                if heard == 0 {
                    first_ns = now;
                }
                heard += bytes;
                if heard == round {
                    heard = 0;
                    println!("{}", now - first_ns);
                }
                // What gave less than was asked for is empty, and is told of again when it is not.
                if bytes < buffer.len() {
                    break;
                }
            }
        }
    }
}
