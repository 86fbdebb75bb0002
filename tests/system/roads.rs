//! Devices on roads through HTTP: a push is a push on every road, and what is lost on the way is repeated.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bgb_protocol::action::Action;
use bgb_protocol::message::{AgentMessage, ServerMessage};
use rustls::ClientConnection;

use crate::peer::{ByteStream, Heard, Peer};
use crate::road::{Http, LongPollLine, WebSocketLine};
use crate::site::{Device, Site};
use crate::wait::{SOON, until_equal};

/// Every road through HTTP to server 1 of the site.
fn roads(site: &Site) -> Vec<(&'static str, Box<dyn ByteStream>)> {
    let (http, https) = (site.http_address(1), site.https_address(1));
    let anew = |address: SocketAddr, is_covered: bool| {
        let mut line = LongPollLine::connect(address, is_covered);
        line.comes_anew = true;
        line
    };
    vec![
        ("WebSocket over HTTP", Box::new(WebSocketLine::connect(http, false))),
        ("WebSocket over HTTPS", Box::new(WebSocketLine::connect(https, true))),
        ("long-poll over HTTP", Box::new(LongPollLine::connect(http, false))),
        ("long-poll over HTTPS", Box::new(LongPollLine::connect(https, true))),
        ("long-poll over HTTP, each request on its own connection", Box::new(anew(http, false))),
        ("long-poll over HTTPS, each request on its own connection", Box::new(anew(https, true))),
    ]
}

/// The next task.
#[track_caller]
fn hear_task(peer: &mut Peer<ClientConnection>, road: &str) {
    match peer.hear() {
        Heard::Message(message) => {
            assert!(matches!(*message, ServerMessage::Task(_)), "{road}: {message:?}");
        }
        Heard::End => panic!("{road}: the server ended it"),
    }
}

#[test]
fn a_task_reaches_a_device_on_every_road_and_comes_again_with_its_next_session() {
    let site = Site::running(1);
    let devices = site.add_devices((0..6).map(|number| format!("pc-{number}")));
    site.collect("lab", &devices);
    let mut peers: Vec<_> = roads(&site)
        .into_iter()
        .zip(&devices)
        .map(|((road, line), device)| {
            let peer = Peer::by(&site, device, line);
            (road, peer.greet(1, 1).0)
        })
        .collect();
    site.wait_online(6);
    site.start_task(Action::Ping, "lab");
    for (road, peer) in &mut peers {
        hear_task(peer, road);
        peer.say(&AgentMessage::Keepalive);
        let answer = peer.hear();
        let is_answer = |message: &ServerMessage| matches!(message, ServerMessage::KeepaliveAnswer(_));
        assert!(matches!(&answer, Heard::Message(message) if is_answer(message)), "{road}: {answer:?}");
    }
    // The same devices by TCP: newest wins, whatever the road.
    for ((road, old), device) in peers.iter_mut().zip(&devices) {
        let (mut new, _) = Peer::sign_in(&site, 1, device, 1, 2);
        hear_task(&mut new, road);
        assert!(old.is_ended_within(SOON), "{road}");
    }
    site.wait_closed("superseded", 6);
}

#[test]
fn goodbye_ends_a_session_on_every_road_and_leaves_nothing_behind() {
    let site = Site::running(1);
    let devices = site.add_devices((0..6).map(|number| format!("pc-{number}")));
    for ((road, line), device) in roads(&site).into_iter().zip(&devices) {
        let (mut peer, _) = Peer::by(&site, device, line).greet(1, 1);
        peer.say(&AgentMessage::Goodbye);
        assert!(peer.is_ended_within(SOON), "{road}");
    }
    until_equal("goodbyes", SOON, &6, || site.closed(1, "goodbye"));
    until_equal("tunnels", SOON, &0, || site.metric(1, "bgb_server_tunnels"));
    until_equal("connections", SOON, &0, || site.metric(1, "bgb_server_connections"));
    assert_eq!(site.metric(1, "bgb_server_sessions"), 0);
}

#[test]
fn a_server_that_stops_says_so_on_every_road() {
    let mut site = Site::running(1);
    let devices = site.add_devices((0..6).map(|number| format!("pc-{number}")));
    let mut peers: Vec<_> = roads(&site)
        .into_iter()
        .zip(&devices)
        .map(|((road, line), device)| (road, Peer::by(&site, device, line).greet(1, 1).0))
        .collect();
    // A GET is held by each of those on long-poll before the server stops.
    let heard: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            peers.iter_mut().map(|(road, peer)| scope.spawn(|| (*road, peer.hear_until_end()))).collect();
        std::thread::sleep(Duration::from_millis(500));
        let begun = Instant::now();
        let server = site.take_server(1);
        assert_eq!(server.stop().code(), 0);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (road, heard) in heard {
        assert!(matches!(heard[..], [ServerMessage::Drain(_)]), "{road}: {heard:?}");
    }
}

/// A device on long-poll whose tunnel's name and state the test knows.
fn in_a_tunnel(site: &Site, device: &Device) -> (Peer<ClientConnection>, String) {
    let line = LongPollLine::connect(site.http_address(1), false);
    let shared = std::sync::Arc::new(std::sync::Mutex::new(line));
    let (peer, _) = Peer::by(site, device, Shared(std::sync::Arc::clone(&shared))).greet(1, 1);
    let id = shared.lock().unwrap().id();
    (peer, id)
}

/// A line that the test looks into.
struct Shared(std::sync::Arc<std::sync::Mutex<LongPollLine>>);

impl std::io::Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().read(buffer)
    }
}

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_tunnel_is_nothing_without_the_keys_inside() {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    let (mut peer, id) = in_a_tunnel(&site, &device);
    let mut thief = Http::connect(site.http_address(1), false);
    let mut ask = |method: &str, target: &str, body: &[u8]| {
        thief.ask(method, target, body).unwrap();
        thief.wait()
    };
    // A name that was guessed, of this server and of another.
    let last = if id.ends_with('0') { "1" } else { "0" };
    let guessed = format!("{}{last}", &id[..51]);
    assert_eq!(ask("GET", &format!("/bgb/tunnel/{guessed}?from=0"), b"").status, 404);
    assert_eq!(ask("POST", &format!("/bgb/tunnel/{guessed}?from=0"), b"x").status, 404);
    assert_eq!(ask("GET", &format!("/bgb/tunnel/00000002{}?from=0", &id[8..]), b"").status, 421);
    // One that was stolen: numbers from the future, and bytes that are old.
    let target = |from: u64| format!("/bgb/tunnel/{id}?from={from}");
    let answer = ask("POST", &target(1_000_000), b"x");
    assert_eq!(answer.status, 409);
    let received: u64 = answer.field("Bgb-Received").unwrap().parse().unwrap();
    assert_eq!(ask("GET", &target(1_000_000), b"").status, 409);
    assert_eq!(ask("GET", &target(0), b"").status, 409, "what was acknowledged is gone");
    assert_eq!(ask("POST", &target(0), &vec![7; received as usize]).status, 204);
    peer.say(&AgentMessage::Keepalive);
    assert!(matches!(peer.hear(), Heard::Message(_)), "old bytes have changed nothing");
    // New ones that are not the device's own records end its session, and tell the thief nothing.
    let received: u64 = {
        let answer = ask("POST", &target(0), b"");
        answer.field("Bgb-Received").unwrap().parse().unwrap()
    };
    let answer = ask(
        "POST",
        &target(received),
        &[23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
    );
    assert!(matches!(answer.status, 204 | 404), "{answer:?}");
    site.wait_closed("bad-record", 1);
    assert!(peer.is_ended_within(SOON));
}

#[test]
fn of_two_gets_the_later_is_held_and_a_lost_answer_is_given_again() {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    site.collect("lab", std::slice::from_ref(&device));
    let line = LongPollLine::connect(site.http_address(1), false);
    let shared = std::sync::Arc::new(std::sync::Mutex::new(line));
    let (mut peer, _) = Peer::by(&site, &device, Shared(std::sync::Arc::clone(&shared))).greet(1, 1);
    let id = shared.lock().unwrap().id();
    site.wait_online(1);
    // Where the device is: nothing is held by it now, since it reads only when it hears.
    let heard = shared.lock().unwrap().heard_bytes();
    let target = format!("/bgb/tunnel/{id}?from={heard}");
    let (mut first, mut second) =
        (Http::connect(site.http_address(1), false), Http::connect(site.http_address(1), false));
    first.ask("GET", &target, b"").unwrap();
    // The first is held before the second comes.
    until_equal("held GETs", SOON, &None, || first.answer().unwrap());
    second.ask("GET", &target, b"").unwrap();
    assert_eq!(first.wait().status, 409);
    site.start_task(Action::Ping, "lab");
    let lost = second.wait();
    assert_eq!((lost.status, lost.field("Bgb-From")), (200, Some(heard.to_string().as_str())));
    assert!(!lost.body.is_empty());
    // The device never saw that answer, and asks from where it is.
    hear_task(&mut peer, "long-poll");
}

#[test]
fn a_tunnel_of_which_nobody_asks_is_not_for_ever() {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    let (peer, id) = in_a_tunnel(&site, &device);
    let mut other = Http::connect(site.http_address(1), false);
    other.ask("POST", &format!("/bgb/tunnel/{id}?from=0"), b"").unwrap();
    assert_eq!(other.wait().status, 204);
    until_equal("sessions", Duration::from_secs(130), &0, || site.metric(1, "bgb_server_sessions"));
    // By its keepalive of 20 s or by the tunnel's 90 s, whichever is sooner: nothing is left of it.
    until_equal("tunnels", SOON, &0, || site.metric(1, "bgb_server_tunnels"));
    drop(peer);
}
