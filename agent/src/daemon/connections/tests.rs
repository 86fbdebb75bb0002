use bgb_daemon::disk::RealDisk;
use bgb_protocol::ids::ServerId;
use bgb_protocol::message::{Abilities, Road, RoadReason, Welcome};
use crossbeam_channel::{Receiver, unbounded};

use super::*;
use crate::config::RoadsConfig;
use crate::connection::tests::played::{Http, PATIENCE, Site, closed_port};
use crate::proxy::Proxies;
use crate::random::Random;
use crate::tls::tests::IN_2026;

/// The connections of a device that has none yet.
struct Bench {
    site: Site,
    connections: Connections,
    heard: Receiver<(u64, Event)>,
    destination: Destination,
    folder: tempfile::TempDir,
    ahead_ms: u64,
}

impl Bench {
    fn new() -> Self {
        Self::where_tcp_is_allowed(true)
    }

    fn where_tcp_is_allowed(tcp: bool) -> Self {
        let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
        let roads = RoadsConfig {
            http_port: site.serve_websocket(Http::Plain),
            https_port: closed_port(),
            tcp,
            ..RoadsConfig::default()
        };
        let (events, heard) = unbounded();
        let network = site.network(roads, Proxies::default());
        let memory = MemoryFile::open(Arc::new(RealDisk), folder.path());
        let now = Moment { boot_ms: Now::read().boot_ms, own: IN_2026 };
        let ladder = Ladder::new(memory.kept().clone(), now, Random::new(7));
        let connections = Connections::new(network, events, ladder, memory);
        let destination =
            Destination { server: format!("127.0.0.1:{}", closed_port()), now: IN_2026, floor: IN_2026 };
        Self { site, connections, heard, destination, folder, ahead_ms: 0 }
    }

    fn now(&self) -> Now {
        let now = Now::read();
        Now { boot_ms: now.boot_ms + self.ahead_ms, ..now }
    }

    fn connect(&mut self) -> Option<Input> {
        self.connections.connect(self.destination.clone(), self.now())
    }

    /// What the next event that means anything means.
    fn next(&mut self) -> Input {
        loop {
            let (number, event) = self.heard.recv_timeout(PATIENCE).unwrap();
            let input = self.connections.on_event(number, event, IN_2026, self.now());
            if let Some(input) = input {
                return input;
            }
        }
    }

    /// A session over the WebSocket: the server is welcoming, as far as the connections can tell.
    fn sign_in(&mut self) -> RoadTaken {
        assert!(self.connect().is_none());
        let Input::Connected { road } = self.next() else { panic!("no connection") };
        let welcome = ServerMessage::Welcome(Box::new(Welcome {
            server: ServerId(3),
            head: Vec::new(),
            keepalive_secs: 900,
            reconnect_window_secs: 5,
            reconnect_slot_secs: None,
            other_servers: Vec::new(),
            abilities: Abilities::ALL,
        }));
        let said =
            self.connections.on_event(self.connections.number, Event::Said(welcome), IN_2026, self.now());
        assert!(matches!(said, Some(Input::Said(_))));
        road
    }

    /// The time of the next probe has come.
    fn probe(&mut self) {
        let due_ms = self.connections.next_deadline(IN_2026).unwrap();
        self.ahead_ms += due_ms - self.now().boot_ms;
        assert!(self.connections.handle_time(IN_2026, self.now()).is_none());
    }

    /// The server answers in the session.
    fn is_alive(&mut self) {
        self.connections.say(AgentMessage::Keepalive);
        assert!(matches!(self.next(), Input::Said(ServerMessage::KeepaliveAnswer(_))));
    }
}

#[test]
fn a_session_over_http_moves_over_to_tcp_once_that_leads_there() {
    let mut bench = Bench::new();
    let road = bench.sign_in();
    assert_eq!((road.road, road.reason), (Road::WebSocket, Some(RoadReason::Refused)));
    let kept = MemoryFile::open(Arc::new(RealDisk), bench.folder.path());
    assert_eq!(kept.kept().worked.map(Rung::label), Some("websocket-http"));

    // Nobody listens there yet.
    bench.probe();
    assert!(matches!(bench.connections.probe, Probe::Trying(_)));
    let (number, event) = bench.heard.recv_timeout(PATIENCE).unwrap();
    assert!(bench.connections.on_event(number, event, IN_2026, bench.now()).is_none());
    bench.is_alive();

    let destination =
        Destination { server: format!("127.0.0.1:{}", bench.site.serve_tcp()), ..bench.destination.clone() };
    bench.connections.destination = Some(destination.clone());
    bench.destination = destination;
    bench.probe();
    assert!(matches!(bench.next(), Input::RoadBetter));
    bench.is_alive();
    bench.connections.say(AgentMessage::Goodbye);
    bench.connections.disconnect(Parting::RoadBetter, IN_2026, bench.now());
    assert!(bench.connections.leaving.is_some(), "it waits for the hello on the new one");
    assert!(matches!(bench.connect(), Some(Input::Connected { road }) if road == RoadTaken::tcp()));
    bench.is_alive();
    assert!(bench.connections.leaving.is_none());
    assert!(bench.site.hears_goodbye());
    assert_eq!(bench.connections.next_deadline(IN_2026), None, "there is nothing better than TCP");
    bench.connections.say(AgentMessage::Goodbye);
    bench.connections.end(IN_2026, bench.now()).unwrap().join().unwrap();
    assert!(bench.site.hears_goodbye());
}

#[test]
fn where_tcp_is_forbidden_nothing_is_tried_beside_a_session_over_http() {
    let mut bench = Bench::where_tcp_is_allowed(false);
    assert_eq!(bench.sign_in().road, Road::WebSocket);
    assert_eq!(bench.connections.next_deadline(IN_2026), None);
}

#[test]
fn a_probe_that_ends_before_the_session_has_left_is_a_better_road_no_more() {
    let mut bench = Bench::new();
    bench.sign_in();
    bench.connections.destination.as_mut().unwrap().server = format!("127.0.0.1:{}", bench.site.serve_tcp());
    bench.probe();
    assert!(matches!(bench.next(), Input::RoadBetter));
    let lost = Event::Lost("the server is full".to_owned());
    let input = bench.connections.on_event(bench.connections.number, lost, IN_2026, bench.now());
    assert!(matches!(input, Some(Input::RoadGone)));
    bench.is_alive();
}

#[test]
fn a_climb_that_was_given_up_tells_the_next_one_where_to_go_on() {
    for is_climbing in [false, true] {
        let mut bench = Bench::new();
        assert!(bench.connect().is_none());
        let number = bench.connections.number;
        let now = Moment { boot_ms: bench.now().boot_ms, own: IN_2026 };
        let mut late = bench.connections.ladder.clone();
        let server = bench.destination.server.clone();
        late.begin(&server, &Rung::ALL, now);
        assert_eq!(late.next(now.boot_ms), Some(Rung::TCP));
        late.on_called_off();
        bench.connections.disconnect(Parting::ConnectTimedOut, IN_2026, bench.now());
        if is_climbing {
            // To another server, where nothing answers.
            bench.destination.server = "localhost".to_owned();
            assert!(bench.connect().is_none());
        }
        let failed = Event::Failed { reason: String::new(), ladder: Box::new(late) };
        assert!(bench.connections.on_event(number, failed, IN_2026, bench.now()).is_none());
        if is_climbing {
            while !matches!(bench.next(), Input::ConnectFailed { .. }) {}
        }
        let mut ladder = bench.connections.ladder.clone();
        ladder.begin(&server, &Rung::ALL, now);
        assert_eq!(ladder.next(now.boot_ms), Some(Rung::ALL[1]));
    }
}

#[test]
fn a_probe_that_waits_too_long_is_given_up_and_the_session_stays() {
    let mut bench = Bench::new();
    bench.sign_in();
    bench.connections.destination.as_mut().unwrap().server = format!("127.0.0.1:{}", bench.site.serve_tcp());
    bench.probe();
    assert!(matches!(bench.next(), Input::RoadBetter));
    bench.ahead_ms += STANDING_MS;
    assert!(matches!(bench.connections.handle_time(IN_2026, bench.now()), Some(Input::RoadGone)));
    assert!(matches!(bench.connections.probe, Probe::None));
    bench.is_alive();
    // When the session leaves all the same, the climb begins with TCP.
    bench.destination = bench.connections.destination.clone().unwrap();
    bench.connections.disconnect(Parting::RoadBetter, IN_2026, bench.now());
    assert!(bench.connect().is_none());
    assert!(matches!(bench.next(), Input::Connected { road } if road == RoadTaken::tcp()));
}
