use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream as StdStream};

use bgb_hub::{Hub, HubOptions};
use bgb_protocol::frame::Frame;
use bgb_protocol::ids::{DeviceId, ServerId};
use bgb_protocol::message::{RefusedReason, ServerMessage};
use bgb_site::folder::SiteFolder;
use crossbeam_channel::bounded;

use super::admission::Opening;
use super::channel::Carrier;
use super::*;
use crate::courier::StatusLine;
use crate::directory::{Directory, ShardId};
use crate::shard::Links;
use crate::tls::tests::{device_tls, hear, site_and_context};
use crate::tls::{ALPN, TlsSession};

/// How long a test waits for what must happen within a few turns.
const PATIENCE: Duration = Duration::from_secs(20);

mod web;

struct Bench {
    reactor: Reactor,
    mailbox: Mailbox<Letter>,
    address: SocketAddr,
    http: SocketAddr,
    https: SocketAddr,
    site: SiteFolder,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(connections_max: usize) -> Self {
        Self::with(Room::new(connections_max, 0), &["127.0.0.0/8"])
    }

    fn with(room: Room, exempt: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (site, tls) = site_and_context(folder.path());
        let (server, tls) = (ServerId(1), Arc::new(tls));
        let doorway = Doorway::open().unwrap();
        let mailbox = doorway.mailbox.clone();
        let metrics = Arc::new(ShardMetrics::default());
        let links = Links {
            spool: bounded(8).0,
            presence: bounded(8).0,
            durable_up_to: Arc::default(),
            directory: Arc::new(Directory::default()),
            shards: Arc::from([mailbox.clone()]),
        };
        let hub = Hub::new(HubOptions {
            server,
            sessions_max: 10,
            keepalive_secs: 900,
            hello_ticks: 100,
            active_tasks_max: 10,
            other_servers: Vec::new(),
            reconnect_window_secs: 5,
            jitter_seed: 1,
        });
        let shard = Shard::new(ShardId(0), hub, links, Arc::clone(&metrics), StatusLine::new().0);
        let reactor = Reactor::new(ReactorParts {
            doorway,
            shard,
            server,
            tls,
            room: Arc::new(room),
            handshake_exempt: exempt.iter().map(|network| network.parse().unwrap()).collect(),
            proxies: Arc::from([]),
            metrics,
        });
        let [address, http, https] = [Entrance::Tcp, Entrance::Http, Entrance::Https].map(|entrance| {
            let socket: TcpListener = listener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let address = socket.local_addr().unwrap();
            listener::listen(&socket).unwrap();
            mailbox.send(Letter::Listen(entrance, Arc::new(socket)));
            address
        });
        Self { reactor, mailbox, address, http, https, site, _folder: folder }
    }

    fn connect(&self) -> StdStream {
        let stream = StdStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// What a device hears that offers `alpn`, on a thread of its own.
    fn hear(&self, device: u32, alpn: &[&[u8]]) -> std::thread::JoinHandle<Vec<u8>> {
        let tls = device_tls(&self.site, DeviceId(device), alpn);
        let address = self.address;
        std::thread::spawn(move || hear(tls, address))
    }

    /// Turns until `done`. The poll may wait long, so the mailbox is rung before each turn.
    fn turn_until(&mut self, mut done: impl FnMut(&Reactor) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(&self.reactor) {
            assert!(Instant::now() < until, "it did not happen: {:?}", self.reactor.metrics);
            self.mailbox.wake();
            assert!(self.reactor.turn().unwrap().is_continue());
        }
    }
}

fn closed(reactor: &Reactor, reason: CloseReason) -> bool {
    let shards = [Arc::clone(&reactor.metrics)];
    let text = crate::metrics::expose(&crate::metrics::ServerMetrics::default(), &shards).into_text();
    text.contains(&format!("{{reason=\"{}\"}} 1\n", reason.label()))
}

#[test]
fn garbage_is_answered_with_an_alert_and_counted() {
    let mut bench = Bench::new(10);
    let mut peer = bench.connect();
    peer.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n").unwrap();
    bench.turn_until(|reactor| closed(reactor, CloseReason::HandshakeGarbage) && reactor.sockets.is_empty());
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.first(), Some(&21), "a TLS alert (RFC 8446 section 5.1)");
    assert!(bench.reactor.channels.is_empty());
}

#[test]
fn a_peer_that_closes_its_half_is_let_go() {
    let mut bench = Bench::new(10);
    let peer = bench.connect();
    peer.shutdown(Shutdown::Write).unwrap();
    bench.turn_until(|reactor| closed(reactor, CloseReason::HalfClosed) && reactor.sockets.is_empty());
}

#[test]
fn an_end_that_comes_together_with_bytes_is_seen_at_once() {
    let mut bench = Bench::new(10);
    let mut peer = bench.connect();
    bench.turn_until(|reactor| reactor.sockets.len() == 1 && reactor.readable.is_empty());
    // The beginning of a handshake record; both are there before the reactor looks.
    peer.write_all(&[22, 3, 1]).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    bench.turn_until(|reactor| closed(reactor, CloseReason::HalfClosed) && reactor.sockets.is_empty());
}

#[test]
fn no_more_connections_than_configured_are_held_and_the_next_comes_when_one_goes() {
    let mut bench = Bench::new(2);
    let first = bench.connect();
    let _second = bench.connect();
    let _third = bench.connect();
    bench.turn_until(|reactor| reactor.sockets.len() == 2);
    for _ in 0..20 {
        bench.mailbox.wake();
        assert!(bench.reactor.turn().unwrap().is_continue());
        assert_eq!(bench.reactor.sockets.len(), 2);
    }
    drop(first);
    bench.turn_until(|reactor| reactor.metrics.accepted.value() == 3);
}

#[test]
fn a_device_for_which_there_is_no_seat_is_told_so() {
    let mut bench = Bench::with(Room::new(1, 1), &["127.0.0.0/8"]);
    let _seated = bench.hear(1, &[ALPN]);
    bench.turn_until(|reactor| {
        reactor.shard.next_deadline().is_some() && reactor.metrics.handshakes.value() == 1
    });
    let late = bench.hear(2, &[ALPN]);
    bench.turn_until(|_| late.is_finished());
    let heard = late.join().unwrap();
    let (frame, _) = Frame::decode(&heard).unwrap().unwrap();
    assert!(matches!(ServerMessage::decode(frame), Ok(Some(ServerMessage::Refused(RefusedReason::Full)))));
    assert!(closed(&bench.reactor, CloseReason::ServerFull));
    bench.turn_until(|reactor| reactor.sockets.len() == 1);
    // The seated one says no hello, and is let go in time; its seat is free again.
    assert!(!bench.reactor.room.take_seat());
}

#[test]
fn a_device_that_is_slow_to_say_hello_has_its_ticket_meanwhile() {
    let mut bench = Bench::new(10);
    let (mut tls, mut stream) = (device_tls(&bench.site, DeviceId(1), &[ALPN]), bench.connect());
    let device = std::thread::spawn(move || {
        while tls.tls13_tickets_received() == 0 {
            tls.complete_io(&mut stream).unwrap();
        }
        stream
    });
    let holds = |reactor: &Reactor| {
        let mut keys = reactor.sockets.keys();
        keys.any(|key| reactor.sockets.tenant(key).is_some_and(Socket::holds_back))
    };
    bench.turn_until(|reactor| reactor.metrics.handshakes.value() == 1);
    assert!(holds(&bench.reactor), "it waits for the hello");
    // Nobody rings: it is the ticket that wakes the reactor.
    let held_at = Instant::now();
    while holds(&bench.reactor) {
        assert!(held_at.elapsed() < Duration::from_secs(5) && !device.is_finished());
        assert!(bench.reactor.timeout().is_some_and(|timeout| timeout <= Duration::from_millis(201)));
        assert!(bench.reactor.turn().unwrap().is_continue());
    }
    bench.turn_until(|_| device.is_finished());
    let _stream = device.join().unwrap();
    assert!(bench.reactor.shard.hub().online() == 0 && !bench.reactor.channels.is_empty());
}

#[test]
fn a_peer_that_does_not_offer_the_protocol_is_closed() {
    let mut bench = Bench::new(10);
    let peer = bench.hear(1, &[]);
    bench.turn_until(|_| peer.is_finished());
    assert!(peer.join().unwrap().is_empty());
    bench.turn_until(|reactor| closed(reactor, CloseReason::HandshakeFailed) && reactor.sockets.is_empty());
    assert_eq!(bench.reactor.handshakes.in_flight(), 0);
    assert!(!bench.reactor.room.is_full());
}

#[test]
fn a_stranger_with_too_many_handshakes_in_flight_is_closed_and_may_come_again_when_one_is_over() {
    let mut bench = Bench::with(Room::new(1_000, 0), &[]);
    let mut peers: Vec<_> = (0..64).map(|_| bench.connect()).collect();
    bench.turn_until(|reactor| reactor.sockets.len() == 64);
    let refused = bench.connect();
    bench.turn_until(|reactor| closed(reactor, CloseReason::TooManyHandshakes));
    let mut answer = Vec::new();
    (&refused).read_to_end(&mut answer).unwrap();
    assert_eq!((answer.len(), bench.reactor.sockets.len()), (0, 64));
    drop(peers.pop());
    bench.turn_until(|reactor| reactor.sockets.len() == 63);
    let _again = bench.connect();
    bench.turn_until(|reactor| reactor.sockets.len() == 64);
}

#[test]
fn a_silent_peer_costs_no_turns() {
    let mut bench = Bench::new(10);
    let _peer = bench.connect();
    bench.turn_until(|reactor| reactor.sockets.len() == 1 && reactor.readable.is_empty());
    let wait = bench.reactor.timeout().unwrap();
    assert!(wait > Duration::from_secs(1), "the next thing is the end of its handshake, and not in {wait:?}");
}

#[test]
fn whoever_leaves_handshakes_lying_is_let_go_sooner_when_it_is_crowded() {
    let mut bench = Bench::new(10);
    let elsewhere = Some(Ipv4Addr::new(127, 0, 0, 2).into());
    (0..handshakes::IN_FLIGHT_MAX / 2)
        .for_each(|_| assert!(bench.reactor.handshakes.begin(elsewhere, Tick(0))));
    let _peer = bench.connect();
    bench.turn_until(|reactor| reactor.sockets.len() == 1 && reactor.readable.is_empty());
    let wait = bench.reactor.timeout().unwrap();
    assert!(wait <= Duration::from_millis(2_200), "{wait:?}");
}

/// Takes all places for answers.
fn take_answers(bench: &mut Bench) {
    for kind in [Opening::Full, Opening::Resumed] {
        (0..handshakes::ANSWERED_MAX / 2).for_each(|_| bench.reactor.handshakes.answer(kind));
    }
}

/// The one channel that there is.
fn only_channel(reactor: &Reactor) -> Option<&Channel> {
    let mut keys = reactor.channels.keys();
    let key = keys.next().filter(|_| keys.next().is_none())?;
    reactor.channels.tenant(key)
}

fn is_in_line(reactor: &Reactor) -> bool {
    only_channel(reactor).and_then(Channel::stage) == Some(Stage::InLine(Opening::Full))
}

#[test]
fn while_places_for_answers_are_taken_a_peer_waits_in_line_for_some_seconds_and_costs_no_turns() {
    let mut bench = Bench::new(10);
    take_answers(&mut bench);
    let (mut peer, before) = (bench.connect(), bench.reactor.now().tick);
    peer.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    bench.turn_until(is_in_line);
    let after = bench.reactor.now().tick;
    let wait = bench.reactor.timeout().unwrap();
    assert!(wait > Duration::from_secs(1), "{wait:?}");
    let at = |tick| Now { tick, unix: UnixMillis(0) };
    bench.reactor.advance(at(before.plus(49)));
    assert_eq!(bench.reactor.sockets.len(), 1, "it is not its fault");
    bench.reactor.advance(at(after.plus(52)));
    assert!(bench.reactor.sockets.is_empty() && closed(&bench.reactor, CloseReason::HandshakeTimedOut));
    assert_eq!(bench.reactor.handshakes.answered(), handshakes::ANSWERED_MAX, "it had no place");
}

#[test]
fn a_place_that_becomes_free_goes_to_whoever_waits() {
    let mut bench = Bench::new(10);
    take_answers(&mut bench);
    let mut peer = bench.connect();
    peer.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    bench.turn_until(is_in_line);
    bench.reactor.handshakes.end(Some(Ipv4Addr::LOCALHOST.into()), Some(Opening::Full));
    assert!(bench.reactor.timeout().unwrap() <= CREDIT_LOOK);
    bench.turn_until(|reactor| closed(reactor, CloseReason::HandshakeGarbage) && reactor.sockets.is_empty());
}

#[test]
fn whoever_goes_while_it_waits_in_line_leaves_its_place_at_once() {
    let mut bench = Bench::new(10);
    take_answers(&mut bench);
    let mut peer = bench.connect();
    peer.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    bench.turn_until(is_in_line);
    drop(peer);
    bench.turn_until(|reactor| reactor.sockets.is_empty());
    assert_eq!(bench.reactor.handshakes.in_flight(), 0);
}

#[test]
fn a_hello_that_comes_in_pieces_is_looked_at_when_it_is_whole() {
    let mut bench = Bench::new(10);
    let mut peer = bench.connect();
    // A record of a handshake with 4 bytes in it, which are no hello.
    peer.write_all(&[22, 3, 1, 0, 4, 1]).unwrap();
    bench.turn_until(|reactor| {
        only_channel(reactor).and_then(Channel::stage) == Some(Stage::Silent) && reactor.readable.is_empty()
    });
    assert!(!bench.reactor.admission.is_owing(admission::Admits::ALL));
    peer.write_all(&[0, 0, 0]).unwrap();
    bench.turn_until(|reactor| closed(reactor, CloseReason::HandshakeGarbage) && reactor.sockets.is_empty());
}

#[test]
fn a_place_for_an_answer_is_given_back_however_the_handshake_ends() {
    let mut bench = Bench::new(10);
    let places = |reactor: &Reactor| (reactor.handshakes.answered(), reactor.handshakes.in_flight());
    // One that says hello, is answered, and goes.
    let mut tls = device_tls(&bench.site, DeviceId(1), &[ALPN]);
    let mut peer = bench.connect();
    tls.write_tls(&mut peer).unwrap();
    bench.turn_until(|reactor| places(reactor) == (1, 1));
    drop(peer);
    bench.turn_until(|reactor| reactor.sockets.is_empty() && places(reactor) == (0, 0));
    // One of a peer without the protocol, and one that ends well.
    let without = bench.hear(1, &[]);
    bench.turn_until(|_| without.is_finished());
    bench.turn_until(|reactor| closed(reactor, CloseReason::HandshakeFailed) && reactor.sockets.is_empty());
    assert_eq!(places(&bench.reactor), (0, 0));
    let _sound = bench.hear(1, &[ALPN]);
    bench.turn_until(|reactor| reactor.metrics.handshakes.value() == 1);
    assert_eq!((places(&bench.reactor), bench.reactor.sockets.len()), ((0, 0), 1));
}

#[test]
fn an_alert_that_comes_together_with_the_end_is_heard() {
    let mut bench = Bench::new(10);
    let mut tls = device_tls(&bench.site, DeviceId(1), &[ALPN]);
    let mut peer = bench.connect();
    tls.write_tls(&mut peer).unwrap();
    bench.turn_until(|reactor| reactor.handshakes.answered() == 1);
    // Fatal, bad certificate (RFC 8446, 6.2), in the clear as before the keys.
    peer.write_all(&[21, 3, 3, 0, 2, 2, 42]).unwrap();
    drop(peer);
    bench.turn_until(|reactor| closed(reactor, CloseReason::HandshakeFailed) && reactor.sockets.is_empty());
}

#[test]
fn a_turn_takes_a_few_steps_of_handshakes_and_the_rest_stays_in_line() {
    let mut bench = Bench::new(100);
    let peers = 3 * admission::STEPS_PER_TURN;
    let _peers: Vec<_> = (0..peers)
        .map(|_| {
            let mut peer = bench.connect();
            peer.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            peer
        })
        .collect();
    let ended =
        |bench: &Bench| bench.reactor.metrics.accepted.value() as usize - bench.reactor.channels.len();
    let (mut before, mut turns) = (0, 0);
    while before < peers {
        bench.mailbox.wake();
        assert!(bench.reactor.turn().unwrap().is_continue());
        let now = ended(&bench);
        assert!(now - before <= admission::STEPS_PER_TURN, "{before}, then {now}");
        (before, turns) = (now, turns + 1);
        assert!(turns < 10_000);
    }
    assert!(!bench.reactor.admission.is_owing(admission::Admits::ALL));
}

#[test]
fn an_endless_handshake_ends_at_its_limit_of_bytes() {
    let mut bench = Bench::new(10);
    let mut peer = bench.connect();
    // Handshake records (type 22) that announce a ClientHello of 16,000 bytes, and never complete it.
    let mut fragment = vec![22, 3, 1, 0x10, 0x00, 1, 0, 0x3e, 0x80];
    fragment.resize(5 + 0x1000, 0);
    peer.write_all(&fragment).unwrap();
    let more = [&[22, 3, 1, 0x10, 0x00][..], &[0; 0x1000]].concat();
    peer.write_all(&more).unwrap();
    peer.write_all(&more).unwrap();
    bench.turn_until(|reactor| closed(reactor, CloseReason::HandshakeGarbage) && reactor.sockets.is_empty());
}

#[test]
fn a_flood_in_place_of_a_handshake_is_not_parsed_beyond_its_limit() {
    let bench = Bench::new(10);
    let session = TlsSession::new(&bench.reactor.tls).unwrap();
    let mut channel = Channel::new(Carrier::Socket(SlotKey { index: 0, generation: 0 }), session);
    // A ClientHello that is announced with 16,000 bytes, and behind its limit a record that rustls would refuse.
    let mut flood = vec![22, 3, 1, 0x1f, 0xfb, 1, 0, 0x3e, 0x80];
    flood.resize(layer::HANDSHAKE_BYTES_MAX, 0);
    flood.extend_from_slice(&[0xff; 1_000]);
    let fault = channel.feed(&mut flood, &mut Vec::new(), &mut Vec::new()).unwrap_err();
    assert!(fault.detail.contains("the handshake is not over"), "{fault:?}");
}

#[test]
fn a_stop_ends_the_loop_when_everybody_is_gone() {
    let mut bench = Bench::new(10);
    let (peer, mut half) = (bench.connect(), bench.connect());
    // The beginning of a ClientHello.
    half.write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 0xfc]).unwrap();
    bench.turn_until(|reactor| reactor.sockets.len() == 2 && reactor.readable.is_empty());
    bench.mailbox.send(Letter::Stop);
    let until = Instant::now() + PATIENCE;
    while bench.reactor.turn().unwrap().is_continue() {
        assert!(Instant::now() < until, "a peer that says nothing must not keep the server");
    }
    drop(peer);
    // An answer, be it an alert, would cost it the ticket that it has shown.
    let mut answer = Vec::new();
    let _ = half.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:?}");
    assert!(StdStream::connect(bench.address).is_err(), "nobody listens any more");
}

#[test]
fn what_a_connection_at_rest_takes_in_the_reactor_is_known() {
    // With each byte a server of 100,000 devices grows by 100 KB.
    let sizes = (size_of::<Socket>(), size_of::<channel::Channel>(), size_of::<transport::WebSocket>());
    assert!(sizes.0 <= 96 && sizes.1 <= 128 && sizes.2 <= 32, "{sizes:?}");
}
