//! slowhttptest: hundreds of connections that speak as slowly as they may, and what devices notice of them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::device::{Visitor, connect_from, fleet, lines, push};
use crate::process::{self, Process};
use crate::proxy::Home;
use crate::site::Site;
use crate::wait::{SOON, until_true};

/// Connections of each attack.
const CONNECTIONS: u64 = 500;
/// How long each lasts.
const LASTS: Duration = Duration::from_secs(20);
/// A push while it goes on: a hundred times what it takes otherwise.
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
    // From its manual: heads that do not end, bodies that do not, and answers that are not read.
    let attacks = [
        ("slow heads", vec!["-H", "-i", "1", "-x", "24", "-t", "GET", "-u", &*root]),
        ("slow bodies", vec!["-B", "-i", "1", "-s", "8192", "-x", "10", "-t", "POST", "-u", &*tunnel]),
        ("slow reading", vec!["-X", "-w", "1", "-y", "2", "-n", "5", "-z", "1", "-k", "3", "-u", &*root]),
    ];
    for (what, arguments) in attacks {
        let attacked = Attack::begin(&site, &arguments);
        let (begun, mut worst, mut pushes) = (Instant::now(), Duration::ZERO, 0);
        while begun.elapsed() < LASTS {
            worst = worst.max(push_during_attack(&site, &mut visitors));
            pushes += 1;
        }
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
            "{what}: {connections} connections, {pushes} pushes to five devices, the slowest took {worst:.1?}"
        );
        assert!(worst < LATENCY_MAX, "{what}: the slowest push took {worst:?}");
    }
    visitors.iter_mut().for_each(Visitor::keep_alive);
}

/// slowhttptest, again and again: it ends when the server has let all of its connections go.
struct Attack<'a> {
    site: &'a Site,
    accepted_before: u64,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl<'a> Attack<'a> {
    fn begin(site: &'a Site, arguments: &[&str]) -> Self {
        let start = {
            let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
            let outputs = site.outputs();
            move |home: &Home| -> Process {
                let mut command = home.command("slowhttptest");
                command.arg("-c").arg(CONNECTIONS.to_string()).arg("-l").arg(LASTS.as_secs().to_string());
                command.args(["-r", "250", "-p", "2"]).args(&arguments);
                process::start_command(command, "slowhttptest", &outputs)
            }
        };
        let stopping = Arc::new(AtomicBool::new(false));
        let is_stopping = Arc::clone(&stopping);
        let accepted_before = accepted(site);
        let thread = std::thread::spawn(move || {
            let home = Home::new();
            while !is_stopping.load(Ordering::Relaxed) {
                let mut tool = start(&home);
                until_true("slowhttptest's end, or the attack's", 2 * LASTS, || {
                    !tool.is_running() || is_stopping.load(Ordering::Relaxed)
                });
            }
        });
        until_true("the attack has begun", SOON, || accepted(site) >= accepted_before + CONNECTIONS / 2);
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

/// A push to all; how long the last of them waited for it.
fn push_during_attack(site: &Site, visitors: &mut [Visitor]) -> Duration {
    let heard = push(site, visitors);
    visitors.iter_mut().for_each(Visitor::keep_alive);
    heard.into_iter().map(|(_, latency)| latency).max().unwrap()
}
