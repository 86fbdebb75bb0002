//! Connections over every road, to servers and proxies that are played here.

pub(crate) mod played;

use std::sync::atomic::Ordering;
use std::time::Instant;

use bgb_daemon::metrics::SharedCell;
use bgb_protocol::message::{Road, RoadReason};
use crossbeam_channel::unbounded;

use super::*;
use crate::config::ProxyConfig;
use crate::random::Random;
use crate::roads::{self, Ladder, Moment, Rung};
use crate::tls::tests::{Authority, IN_2026};
use played::{Http, PATIENCE, Proxy, Site, closed_port};

/// What `roads` and `proxy` (the section of agent.toml) lead a device of the site along.
fn network(site: &Site, roads: RoadsConfig, proxy: &str) -> Arc<Network> {
    let config: ProxyConfig = bgb_daemon::config::parse(std::path::Path::new("agent.toml"), proxy).unwrap();
    site.network(roads, Proxies::new(&config, |_| None).unwrap())
}

/// Nothing but what a test opens, on ports where nobody listens.
fn none() -> RoadsConfig {
    let (http_port, https_port) = (closed_port(), closed_port());
    RoadsConfig {
        tcp: true,
        websocket: false,
        long_poll: false,
        https: false,
        http: false,
        http_port,
        https_port,
        https_issuers: Vec::new(),
    }
}

fn connect(network: &Arc<Network>, port: u16) -> (Connection, Receiver<(u64, Event)>) {
    let (events, heard) = unbounded();
    let now = Moment { boot_ms: bgb_daemon::clock::Now::read().boot_ms, own: IN_2026 };
    let mut ladder = Ladder::new(Default::default(), now, Random::new(7));
    let destination = Destination { server: format!("127.0.0.1:{port}"), now: IN_2026, floor: IN_2026 };
    ladder.begin(
        &destination.server,
        &roads::allowed(&network.roads, &network.proxies, &destination.server),
        now,
    );
    (Connection::open(destination, Box::new(ladder), Arc::clone(network), 1, events).unwrap(), heard)
}

fn next(heard: &Receiver<(u64, Event)>) -> Event {
    heard.recv_timeout(PATIENCE).unwrap().1
}

/// Connects, has a conversation, and ends in good order: how the bytes travelled.
fn converse(network: &Arc<Network>, port: u16, site: &Site) -> RoadTaken {
    let (connection, heard) = connect(network, port);
    let road = match next(&heard) {
        Event::Connected { road, .. } => road,
        other => panic!("{other:?}"),
    };
    for round in 0..20 {
        connection.say(AgentMessage::Keepalive);
        if round % 2 == 0 {
            connection.say(AgentMessage::Keepalive);
        }
        for _ in 0..2 - round % 2 {
            let answer = loop {
                match next(&heard) {
                    Event::Cut(_) => {}
                    other => break other,
                }
            };
            assert!(
                matches!(&answer, Event::Said(ServerMessage::KeepaliveAnswer(head)) if *head == site.answer()),
                "{answer:?}"
            );
        }
    }
    connection.say(AgentMessage::Goodbye);
    let thread = connection.end();
    assert!(site.hears_goodbye(), "the last word has arrived, and close_notify after it");
    thread.join().unwrap();
    road
}

fn failure(network: &Arc<Network>, port: u16) -> String {
    let (_connection, heard) = connect(network, port);
    match next(&heard) {
        Event::Failed { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn straight_over_tcp() {
    let site = Site::new();
    let port = site.serve_tcp();
    assert_eq!(converse(&network(&site, none(), ""), port, &site), RoadTaken::tcp());
}

#[test]
fn over_a_websocket_where_tcp_is_refused() {
    let site = Site::new();
    let roads =
        RoadsConfig { websocket: true, http: true, http_port: site.serve_websocket(Http::Plain), ..none() };
    let network = network(&site, roads, "");
    let road = converse(&network, closed_port(), &site);
    assert_eq!(
        road,
        Rung { road: Road::WebSocket, outer_tls: false, proxied: false }.taken(Some(RoadReason::Refused))
    );
    let counted = |all: &[SharedCell; 9]| all.each_ref().map(SharedCell::value);
    assert_eq!(counted(&network.counts.attempts), [1, 0, 0, 1, 0, 0, 0, 0, 0]);
    assert_eq!(counted(&network.counts.failures), [1, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn over_https_with_whatever_certificate_and_whoever_signed_it_is_told() {
    let site = Site::new();
    let rung = Rung { road: Road::WebSocket, outer_tls: true, proxied: false };
    let through = |https: Http| {
        let roads =
            RoadsConfig { websocket: true, https: true, https_port: site.serve_websocket(https), ..none() };
        converse(&network(&site, roads, ""), closed_port(), &site)
    };
    assert_eq!(through(Http::Outer(site.authority())), rung.taken(Some(RoadReason::Refused)));
    let stranger = Arc::new(Authority::named("Example Proxy CA"));
    let intercepted = RoadReason::Intercepted("Example Proxy CA".to_owned());
    assert_eq!(through(Http::Outer(Arc::clone(&stranger))), rung.taken(Some(intercepted.clone())));
    assert_eq!(through(Http::OldOuter(stranger)), rung.taken(Some(intercepted)), "of a box that is old");
}

#[test]
fn through_a_proxy_with_connect_and_credentials() {
    let site = Site::new();
    for (outer_tls, credentials) in [(false, None), (true, Some("user:p@ss"))] {
        let proxy = Proxy::start(credentials, 200);
        let user = if credentials.is_some() { "user:p%40ss@" } else { "" };
        let section = format!("url = \"http://{user}127.0.0.1:{}\"", proxy.port);
        let http = if outer_tls { Http::Outer(site.authority()) } else { Http::Plain };
        let port = site.serve_websocket(http);
        // Straight it cannot be reached: what the proxy is asked for is another name of it.
        let roads = RoadsConfig { websocket: true, https: outer_tls, http: !outer_tls, ..none() };
        proxy.lead(if outer_tls { roads.https_port } else { roads.http_port }, port);
        let road = converse(&network(&site, roads, &section), closed_port(), &site);
        assert_eq!(
            road,
            Rung { road: Road::WebSocket, outer_tls, proxied: true }.taken(Some(RoadReason::Refused))
        );
    }
}

#[test]
fn a_proxy_that_does_not_let_through_is_told_on_the_next_road() {
    let site = Site::new();
    for (credentials, status, word) in
        [(Some("user:password"), 407, "credentials"), (None, 403, "403"), (None, 502, "502")]
    {
        let proxy = Proxy::start(credentials, if status == 407 { 200 } else { status });
        let section = format!("url = \"http://127.0.0.1:{}\"", proxy.port);
        let roads = RoadsConfig { websocket: true, https: true, ..none() };
        let fault = failure(&network(&site, roads.clone(), &section), closed_port());
        assert!(fault.contains("websocket-https-proxy") && fault.contains(word), "{fault}");
        let roads = RoadsConfig { http: true, http_port: site.serve_websocket(Http::Plain), ..roads };
        let road = converse(&network(&site, roads, &section), closed_port(), &site);
        let rung = Rung { road: Road::WebSocket, outer_tls: false, proxied: false };
        assert_eq!(road, rung.taken(Some(RoadReason::ProxyAnswer(status))));
    }
}

#[test]
fn over_long_poll() {
    let site = Site::new();
    for outer_tls in [false, true] {
        let http = if outer_tls { Http::Outer(site.authority()) } else { Http::Plain };
        let port = site.serve_tunnels(http, None).port();
        let ports = RoadsConfig { http_port: port, https_port: port, ..none() };
        let roads = RoadsConfig { long_poll: true, https: outer_tls, http: !outer_tls, ..ports };
        let road = converse(&network(&site, roads, ""), closed_port(), &site);
        assert_eq!(
            road,
            Rung { road: Road::LongPoll, outer_tls, proxied: false }.taken(Some(RoadReason::Refused))
        );
    }
}

#[test]
fn over_long_poll_whose_requests_and_answers_are_lost() {
    let site = Site::new();
    let tunnels = site.serve_tunnels(Http::Plain, None);
    tunnels.lose_every.store(3, Ordering::Relaxed);
    let roads = RoadsConfig { long_poll: true, http: true, http_port: tunnels.port(), tcp: false, ..none() };
    let road = converse(&network(&site, roads, ""), closed_port(), &site);
    assert_eq!(road.road, Road::LongPoll);
    assert!(tunnels.lost.load(Ordering::Relaxed) > 5, "it was a bad line");
}

#[test]
fn over_long_poll_through_a_proxy_that_forwards_requests() {
    let site = Site::new();
    let tunnels = site.serve_tunnels(Http::Plain, Some("Basic dXNlcjpwQHNz"));
    let section = format!("url = \"http://user:p%40ss@127.0.0.1:{}\"", tunnels.port());
    let roads = RoadsConfig { long_poll: true, http: true, ..none() };
    let road = converse(&network(&site, roads.clone(), &section), closed_port(), &site);
    assert_eq!(
        road,
        Rung { road: Road::LongPoll, outer_tls: false, proxied: true }.taken(Some(RoadReason::Refused))
    );
    let fault = failure(&network(&site, roads, &section.replace("%40", "")), closed_port());
    assert!(fault.contains("407"), "{fault}");
}

#[test]
fn what_answers_in_http_where_tls_was_asked_for_is_a_proxys_answer() {
    let site = Site::new();
    let refusing = played::answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    let roads =
        RoadsConfig { websocket: true, http: true, http_port: site.serve_websocket(Http::Plain), ..none() };
    let road = converse(&network(&site, roads, ""), refusing, &site);
    assert_eq!(road.reason, Some(RoadReason::ProxyAnswer(403)));
    // And whoever closes without a word has reset.
    let roads =
        RoadsConfig { websocket: true, http: true, http_port: site.serve_websocket(Http::Plain), ..none() };
    let road = converse(&network(&site, roads, ""), played::answering(b""), &site);
    assert_eq!(road.reason, Some(RoadReason::Reset));
}

#[test]
fn whoever_answers_on_a_road_and_is_no_server_of_the_site_is_passed_over() {
    let (site, other) = (Site::new(), Site::named("Example Firewall"));
    let roads =
        RoadsConfig { websocket: true, http: true, http_port: site.serve_websocket(Http::Plain), ..none() };
    let road = converse(&network(&site, roads, ""), other.serve_tcp(), &site);
    assert_eq!(
        (road.road, road.reason),
        (Road::WebSocket, Some(RoadReason::Intercepted("Example Firewall".to_owned())))
    );
    let only = RoadsConfig {
        tcp: false,
        websocket: true,
        http: true,
        http_port: other.serve_websocket(Http::Plain),
        ..none()
    };
    let fault = failure(&network(&site, only, ""), closed_port());
    assert!(fault.contains("not by the site's authority"), "{fault}");
}

#[test]
fn a_server_that_lets_go_without_a_word_is_told_the_same_hello_again() {
    let site = Site::new();
    let network = network(&site, none(), "");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hello = || {
        std::thread::scope(|scope| {
            let heard = scope.spawn(|| played::first_record(&mut listener.accept().unwrap().0));
            let fault = failure(&network, listener.local_addr().unwrap().port());
            assert!(fault.contains("closed the connection during"), "{fault}");
            heard.join().unwrap()
        })
    };
    let first = hello();
    assert_eq!(hello(), first);
    assert_eq!(hello(), first);
}

/// Ends it, and its thread ends within `limit`.
fn end_within(limit: Duration, connection: Connection) {
    let (thread, began) = (connection.end(), Instant::now());
    while !thread.is_finished() {
        assert!(began.elapsed() < limit, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    thread.join().unwrap();
}

#[test]
fn pings_without_end_keep_nobody_from_ending() {
    let site = Site::new();
    let http_port = played::flooding(true, &[0x8A, 0]);
    let roads = RoadsConfig { websocket: true, http: true, tcp: false, http_port, ..none() };
    let network = network(&site, roads, "");
    let (connection, heard) = connect(&network, closed_port());
    // Into the flood, since nothing is told before a session stands.
    assert!(heard.recv_timeout(Duration::from_millis(300)).is_err());
    end_within(Duration::from_secs(5), connection);
}

#[test]
fn an_answer_that_is_announced_without_end_is_none() {
    let site = Site::new();
    let http_port = played::flooding(false, b"HTTP/1.1 100 Continue\r\n\r\n");
    let roads = RoadsConfig { websocket: true, http: true, tcp: false, http_port, ..none() };
    let fault = failure(&network(&site, roads, ""), closed_port());
    assert!(fault.contains("again and again"), "{fault}");
    let roads = RoadsConfig { websocket: true, http: true, tcp: false, ..none() };
    let section = format!("url = \"http://127.0.0.1:{http_port}\"");
    let fault = failure(&network(&site, roads, &section), closed_port());
    assert!(fault.contains("again and again"), "{fault}");
}

#[test]
fn a_long_poll_that_has_to_connect_anew_ends_in_the_time_that_an_end_has() {
    let site = Site::new();
    let tunnels = site.serve_tunnels(Http::Outer(site.authority()), None);
    let https_port = tunnels.port();
    let roads = RoadsConfig { long_poll: true, https: true, tcp: false, https_port, ..none() };
    let (connection, heard) = connect(&network(&site, roads, ""), closed_port());
    assert!(matches!(next(&heard), Event::Connected { .. }));
    tunnels.is_silent.store(true, Ordering::Relaxed);
    let deadline = Instant::now() + PATIENCE;
    while tunnels.unanswered.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "it does not connect anew");
        std::thread::sleep(Duration::from_millis(5));
    }
    connection.say(AgentMessage::Goodbye);
    // Two seconds, and as many again for a busy machine; the connection by itself would wait for ten.
    end_within(Duration::from_secs(4), connection);
}

#[test]
fn an_attempt_that_is_called_off_ends_at_once() {
    let site = Site::new();
    let network = network(&site, none(), "");
    // It accepts and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (connection, _heard) = connect(&network, listener.local_addr().unwrap().port());
    let _socket = listener.accept().unwrap();
    end_within(Duration::from_secs(2), connection);
}
