//! One thread that writes a record to each of many sockets in turn, and a process that reads them: what a fan-out would be on this machine, over
//! TCP, with nothing else in the way.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mio::{Events, Interest, Poll, Token};
use serde::Serialize;

use crate::measure::median;
use crate::sources::LOOPBACK;

/// How long the reader may take to connect.
const CONNECTED_WITHIN: Duration = Duration::from_secs(60);

/// From one round to the next: the reader has read everything then.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(300);

/// What writing costs.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct WriteFloor {
    pub(crate) sockets: usize,
    pub(crate) record_bytes: usize,
    pub(crate) us_per_write: f64,
    pub(crate) per_second: f64,
}

/// What the reader is told on its command line.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ReaderArguments {
    #[arg(long)]
    pub(crate) address: SocketAddr,
    #[arg(long)]
    pub(crate) count: usize,
}

/// Writes `record_bytes` to each of so many sockets, in so many rounds, and gives the median of them, as is done with what stands beside.
///
/// # Errors
/// When the machine does not give as many sockets, or the reader ends.
pub(crate) fn measure(sockets: usize, record_bytes: usize, rounds: usize) -> anyhow::Result<WriteFloor> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    // The backlog of the standard library is short of what comes at once.
    rustix::net::listen(&listener, 4_096)?;
    let mut reader = Reader::start(listener.local_addr()?, sockets)?;
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
    let mut took = Vec::new();
    for _ in 0..rounds.max(1) {
        let begun = Instant::now();
        for stream in &mut streams {
            stream.write_all(&record)?;
        }
        took.push(begun.elapsed().as_secs_f64());
        reader.is_alive()?;
        std::thread::sleep(BETWEEN_ROUNDS);
    }
    let us_per_write = median(&mut took) * 1e6 / sockets as f64;
    Ok(WriteFloor { sockets, record_bytes, us_per_write, per_second: 1e6 / us_per_write })
}

struct Reader(Child);

impl Reader {
    fn start(address: SocketAddr, count: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["floor-reader", "--address", &address.to_string(), "--count", &count.to_string()]);
        Ok(Self(command.stdin(Stdio::piped()).process_group(0).spawn()?))
    }

    fn is_alive(&mut self) -> anyhow::Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the floor's reader has ended: {status}"),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Its input ends with the pipe.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The reader: connects so often, and throws away what it reads until its input ends.
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
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            // What gave less than was asked for is empty, and is told of again when it is not.
            while matches!(streams[event.token().0].read(&mut buffer), Ok(read) if read == buffer.len()) {}
        }
    }
}
