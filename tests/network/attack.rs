//! Hundreds of connections that speak as slowly as they may (slowhttptest), or ask for much and read as slowly, and what devices notice of them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::device::{Visitor, connect_from, fleet, lines, push};
use crate::process::{self, Process};
use crate::proxy::Home;
use crate::site::Site;
use crate::wait::{SOON, until_true};

/// Connections of each attack.
const CONNECTIONS: usize = 500;
/// Those who are so few that a server answers in their ten seconds more than kernels keep for them.
const FEW: usize = 30;
/// How long each lasts.
const LASTS: Duration = Duration::from_secs(20);
/// Nine of ten pushes while it goes on, against those of a quiet while: so many times that. A while may be lucky where machines share cores, so it is no less than
/// this; and none of all is to take a second.
const TIMES_MAX: u32 = 5;
const LATENCY_MIN: Duration = Duration::from_millis(100);
const LATENCY_MAX: Duration = Duration::from_secs(1);

#[test]
fn slow_strangers_by_the_hundred_are_not_noticed_by_devices() {
    let site = Site::running(1);
    let devices = fleet(&site, 5);
    let mut others = devices.iter();
    let mut visitors = vec![Visitor::sign_in(
        &site,
        others.next().unwrap(),
        "TCP",
        connect_from(Ipv4Addr::LOCALHOST, site.server_address(1)),
    )];
    let roads =
        [lines("attacked", site.http_address(1), false), lines("attacked", site.https_address(1), true)];
    for ((road, line), device) in roads.into_iter().flatten().zip(others) {
        visitors.push(Visitor::sign_in(&site, device, road, line));
    }
    site.wait_online(5);
    let (root, tunnel) =
        (format!("http://{}/", site.http_address(1)), format!("http://{}/bgb/tunnel", site.http_address(1)));
    let quiet = nine_of_ten(&pushes(&site, &mut visitors));
    let latency_max = (TIMES_MAX * quiet).clamp(LATENCY_MIN, LATENCY_MAX);
    // From its manual: heads that do not end, and bodies that do not.
    let attacks = [
        ("slow heads", Way::Tool(vec!["-H", "-i", "1", "-x", "24", "-t", "GET", "-u", &*root])),
        (
            "slow bodies",
            Way::Tool(vec!["-B", "-i", "1", "-s", "8192", "-x", "10", "-t", "POST", "-u", &*tunnel]),
        ),
        ("asking without end", Way::Readers(CONNECTIONS)),
        ("slow reading", Way::Readers(FEW)),
    ];
    for (what, way) in attacks {
        let count = match way {
            Way::Tool(_) => CONNECTIONS,
            Way::Readers(count) => count,
        };
        let attacked = Attack::begin(&site, count, |stopping| match way {
            Way::Tool(arguments) => slowhttptest(&site, &arguments, stopping),
            Way::Readers(count) => read_slowly(site.http_address(1), count, stopping),
        });
        let pushes = pushes(&site, &mut visitors);
        let (usual, worst) = (nine_of_ten(&pushes), pushes[pushes.len() - 1]);
        // Somebody comes anew, on each road.
        let names = (0..2).map(|number| format!("{}-{number}", what.replace(' ', "-")));
        let newcomers = site.add_devices(names);
        for ((road, line), device) in lines(what, site.http_address(1), false).into_iter().zip(&newcomers) {
            let begun = Instant::now();
            drop(Visitor::sign_in(&site, device, road.clone(), line));
            println!("{road}: signed in after {:.1?} amid {what}", begun.elapsed());
        }
        let connections = attacked.end();
        println!(
            "{what}: {connections} connections, {} pushes to five devices, nine of ten within {usual:.1?}, the slowest took {worst:.1?}; nine of ten \
             within {quiet:.1?} before",
            pushes.len()
        );
        assert!(connections >= count as u64, "{what}: {connections} of {count} connections");
        assert!(usual < latency_max, "{what}: nine of ten pushes took {usual:?}, and {quiet:?} before");
        assert!(worst < LATENCY_MAX, "{what}: the slowest push took {worst:?}");
    }
    visitors.iter_mut().for_each(Visitor::keep_alive);
}

/// How an attack is made.
enum Way<'a> {
    /// By slowhttptest, with these arguments.
    Tool(Vec<&'a str>),
    /// By so many who ask for much and read little.
    Readers(usize),
}

/// An attack, which goes on until it is ended.
struct Attack<'a> {
    site: &'a Site,
    accepted_before: u64,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl<'a> Attack<'a> {
    fn begin(site: &'a Site, count: usize, begin: impl FnOnce(Arc<AtomicBool>) -> JoinHandle<()>) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let accepted_before = accepted(site);
        let thread = begin(Arc::clone(&stopping));
        until_true("the attack has begun", SOON, || accepted(site) >= accepted_before + count as u64 / 2);
        Self { site, accepted_before, stopping, thread }
    }

    /// How many connections it has made.
    fn end(self) -> u64 {
        self.stopping.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        accepted(self.site) - self.accepted_before
    }
}

fn accepted(site: &Site) -> u64 {
    site.metric(1, "bgb_server_connections_accepted_total")
}

/// slowhttptest, again and again: it ends when the server has let all of its connections go.
fn slowhttptest(site: &Site, arguments: &[&str], stopping: Arc<AtomicBool>) -> JoinHandle<()> {
    let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
    let outputs = site.outputs();
    let start = move |home: &Home| -> Process {
        let mut command = home.command("slowhttptest");
        command.arg("-c").arg(CONNECTIONS.to_string()).arg("-l").arg(LASTS.as_secs().to_string());
        command.args(["-r", "250", "-p", "2"]).args(&arguments);
        process::start_command(command, "slowhttptest", &outputs)
    };
    std::thread::spawn(move || {
        let home = Home::new();
        while !stopping.load(Ordering::Relaxed) {
            let mut tool = start(&home);
            until_true("slowhttptest's end, or the attack's", 2 * LASTS, || {
                !tool.is_running() || stopping.load(Ordering::Relaxed)
            });
        }
    })
}

/// Asks for more than kernels keep of answers, as long as the server takes requests, and reads a few bytes in a second: what slowhttptest asks for (`-X`)
/// lies in a kernel's buffer as a whole, and no server notices who reads it.
fn read_slowly(server: SocketAddr, count: usize, stopping: Arc<AtomicBool>) -> JoinHandle<()> {
    let mut readers: Vec<_> = (0..count).map(|_| Reader::connect(server)).collect();
    std::thread::spawn(move || {
        let requests = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1_000);
        let mut stuck = 0;
        while !stopping.load(Ordering::Relaxed) {
            for reader in &mut readers {
                match reader.ask(&requests) {
                    Ok(taken) => stuck += usize::from(taken == 0),
                    Err(_) => *reader = Reader::connect(server),
                }
            }
            // The pace of the attack, not a wait for anything.
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(stuck > count, "the server took requests without end: {stuck}");
    })
}

/// A connection of a kernel that takes little.
struct Reader {
    stream: TcpStream,
    asked: usize,
    read: Instant,
}

impl Reader {
    fn connect(server: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(2_048).unwrap();
        socket.set_send_buffer_size(16 * 1_024).unwrap();
        socket.connect(&server.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { stream: socket.into(), asked: 0, read: Instant::now() }
    }

    /// Asks as much as is taken of so many requests, and reads a little when it is time; how many bytes were taken.
    fn ask(&mut self, requests: &[u8]) -> std::io::Result<usize> {
        if self.read.elapsed() > Duration::from_secs(1) {
            self.read = Instant::now();
            match self.stream.read(&mut [0; 16]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        let mut taken = 0;
        loop {
            match self.stream.write(&requests[self.asked..]) {
                Ok(bytes) => {
                    taken += bytes;
                    self.asked = (self.asked + bytes) % requests.len();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(taken),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Pushes to all as long as an attack lasts: how long the last of the devices waited for each, the longest last.
fn pushes(site: &Site, visitors: &mut [Visitor]) -> Vec<Duration> {
    let (begun, mut latencies) = (Instant::now(), Vec::new());
    while begun.elapsed() < LASTS {
        let heard = push(site, visitors);
        visitors.iter_mut().for_each(Visitor::keep_alive);
        latencies.push(heard.into_iter().map(|(_, latency)| latency).max().unwrap());
    }
    latencies.sort_unstable();
    latencies
}

fn nine_of_ten(latencies: &[Duration]) -> Duration {
    latencies[latencies.len() * 9 / 10]
}
