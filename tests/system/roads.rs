//! Devices on roads through HTTP: a push is a push on every road, and what is lost on the way is repeated.

use std::io::{Read as _, Write as _};
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
    for (road, sessions) in [("websocket-http", 1), ("websocket-https", 1), ("long-poll", 4), ("tcp", 0)] {
        assert_eq!(
            site.metric(1, &format!("bgb_server_sessions_by_road{{road=\"{road}\"}}")),
            sessions,
            "{road}"
        );
    }
    assert!(site.metric(1, "bgb_server_tunnel_requests_passed_total") > 0, "there are two reactors");
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
    until_equal("handshakes in flight", SOON, &0, || site.metric(1, "bgb_server_handshakes_in_flight"));
    assert_eq!(site.metric(1, "bgb_server_sessions"), 0);
    assert_eq!(site.closed(1, "no-session"), 0, "what brings a session about is no stranger's");
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
struct Shared<T>(std::sync::Arc<std::sync::Mutex<T>>);

impl<T: std::io::Read> std::io::Read for Shared<T> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().read(buffer)
    }
}

impl<T: std::io::Write> std::io::Write for Shared<T> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.lock().unwrap().flush()
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
    let mut first = Http::connect(site.http_address(1), false);
    first.ask("GET", &target, b"").unwrap();
    // Whichever is later is held, and the first is when its socket, beside the device's two, is no stranger's any more.
    until_equal("connections, and those of strangers", SOON, &(3, 0), || {
        let accepted = site.metric(1, "bgb_server_connections_accepted_total");
        (accepted, site.metric(1, "bgb_server_handshakes_in_flight"))
    });
    let mut second = Http::connect(site.http_address(1), false);
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
fn a_tunnel_of_which_nobody_asks_ends_after_ninety_seconds() {
    let mut site = Site::new(1);
    // Its keepalive is not what ends it.
    site.configure_server(1, |config| {
        config.insert("keepalive_seconds".into(), 900.into());
    });
    site.start_manager();
    site.start_server(1);
    let device = site.add_device("pc-1");
    let begun = Instant::now();
    let (peer, id) = in_a_tunnel(&site, &device);
    let mut other = Http::connect(site.http_address(1), false);
    other.ask("POST", &format!("/bgb/tunnel/{id}?from=0"), b"").unwrap();
    assert_eq!(other.wait().status, 204);
    until_equal("tunnels that were silent", Duration::from_secs(130), &1, || site.closed(1, "tunnel-silent"));
    assert!(begun.elapsed() > Duration::from_secs(85), "{:?}", begun.elapsed());
    until_equal("tunnels", SOON, &0, || site.metric(1, "bgb_server_tunnels"));
    other = Http::connect(site.http_address(1), false);
    other.ask("GET", &format!("/bgb/tunnel/{id}?from=0"), b"").unwrap();
    assert_eq!(other.wait().status, 404);
    drop(peer);
}

#[test]
fn a_session_that_ends_closes_its_websocket_as_the_rfc_says() {
    let site = Site::running(1);
    let devices = site.add_devices((0..2).map(|number| format!("pc-{number}")));
    for (device, is_covered) in devices.iter().zip([false, true]) {
        let address = if is_covered { site.https_address(1) } else { site.http_address(1) };
        let line = std::sync::Arc::new(std::sync::Mutex::new(WebSocketLine::connect(address, is_covered)));
        let (mut peer, _) = Peer::by(&site, device, Shared(std::sync::Arc::clone(&line))).greet(1, 1);
        peer.say(&AgentMessage::Goodbye);
        assert!(peer.is_ended_within(SOON));
        // TLS's own end is inside a message before it.
        let mut line = line.lock().unwrap();
        let code = line.close_code(SOON);
        assert_eq!(code, Some(1000));
    }
    site.wait_closed("goodbye", 2);
}

#[test]
fn a_proxy_says_whose_connection_it_is_where_the_server_was_told_of_it() {
    let mut site = Site::new(1);
    site.configure_server(1, |config| {
        config.insert("proxy_protocol_networks".into(), vec!["127.0.0.0/8"].into());
    });
    site.start_manager();
    site.start_server(1);
    let device = site.add_device("pc-1");
    let mut header = Vec::new();
    let client = "192.0.2.7:50000".parse().unwrap();
    bgb_http::proxy_protocol::ProxyHeader::encode(client, site.server_address(1), &mut header);
    // TCP and HTTP, also in pieces; HTTPS is in tests/network/introduction.rs.
    for (address, is_cut) in
        [(site.server_address(1), false), (site.http_address(1), true), (site.server_address(1), true)]
    {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        for piece in header.chunks(if is_cut { 5 } else { header.len() }) {
            stream.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        if address == site.http_address(1) {
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        } else {
            let (peer, _) = Peer::on(&site, &device, stream).greet(1, if is_cut { 2 } else { 1 });
            until_equal("the device's address", SOON, &Some("192.0.2.7".to_owned()), || {
                let address = site.device(&device).row.address;
                address.and_then(|address| address.rsplit_once(':').map(|(host, _)| host.to_owned()))
            });
            drop(peer);
        }
    }
    // Whoever does not say it is sent away.
    let mut peer = crate::peer::connect(&site, 1, None);
    let _ = peer.shake_hands();
    assert!(peer.is_ended_within(SOON));
    let mut http = Http::connect(site.http_address(1), false);
    http.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(http.is_ended());
    site.wait_closed("bad-proxy-header", 2);
    assert!(site.http_log().contains("PROXY protocol"));
}
