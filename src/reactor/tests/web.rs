//! Sockets that speak HTTP, and tunnels, on a bench of one reactor whose time the test moves.

use bgb_http::tunnel::TunnelId;

use super::*;
use crate::reactor::passed::{Ask, Asker, Passed, Standing};
use crate::reactor::web::REST_TICKS;

/// A socket of the bench's HTTP port.
struct Line {
    stream: StdStream,
    heard: Vec<u8>,
}

impl Line {
    fn connect(bench: &Bench) -> Self {
        let stream = StdStream::connect(bench.http).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self { stream, heard: Vec::new() }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// What there is to hear now; whether the server has ended the connection.
    fn hear(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(bytes) => self.heard.extend_from_slice(&buffer[..bytes]),
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }

    /// The next answer's head, if it is there; what has no body.
    fn answer(&mut self) -> Option<String> {
        self.hear();
        let end = self.heard.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(self.heard.drain(..end).collect()).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        self.heard.drain(..length.map_or(0, |length| length.parse().unwrap()));
        Some(head)
    }

    /// Asks for something that is answered at once; gives the status.
    fn ask(&mut self, bench: &mut Bench, method: &str, target: &str) -> String {
        self.say(format!("{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").as_bytes());
        let mut head = None;
        bench.turn_until(|_| {
            head = self.answer();
            head.is_some()
        });
        head.unwrap()[9..12].to_owned()
    }
}

impl Bench {
    /// A tunnel as one is whose device has signed in.
    fn known_tunnel(&mut self) -> TunnelId {
        let now = self.reactor.now();
        let id = self.reactor.open_tunnel(now, self.http).unwrap();
        let key = self.reactor.channels.key_at(id.slot).unwrap();
        self.become_known(key);
        id
    }

    /// A tunnel's device has shown itself.
    fn become_known(&mut self, key: SlotKey) {
        assert!(self.reactor.room.take_seat());
        let channel = self.reactor.channels.tenant_mut(key).unwrap();
        (channel.state, channel.device) = (ChannelState::Open, Some(DeviceId(1)));
        let now = self.reactor.now();
        self.reactor.on_tunnel_open(now, key);
    }

    /// The reactor's time is so much later. The bench turns no more after that.
    fn advance(&mut self, ticks: u64) {
        let tick = Tick(self.reactor.now().tick.0 + ticks);
        self.reactor.advance(Now { tick, unix: UnixMillis(0) });
    }

    /// Sockets with the limits of known devices, and with those of strangers.
    fn standings(&mut self) -> (usize, usize) {
        let keys: Vec<_> = self.reactor.sockets.keys().collect();
        let of = |key| Some(self.reactor.sockets.tenant_mut(key)?.transport.web()?.standing());
        let (strangers, freed): (Vec<_>, Vec<_>) =
            keys.into_iter().filter_map(of).partition(|standing| *standing == Standing::Stranger);
        (freed.len(), strangers.len())
    }
}

#[test]
fn a_get_is_held_as_long_as_it_asks_however_much_was_asked_before() {
    let mut bench = Bench::new(10);
    let id = bench.known_tunnel();
    let mut line = Line::connect(&bench);
    for _ in 0..40 {
        assert_eq!(line.ask(&mut bench, "POST", &format!("/bgb/tunnel/{id}?from=0")), "204");
    }
    line.say(format!("GET /bgb/tunnel/{id}?from=0&hold=60 HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    bench.turn_until(|reactor| only_channel(reactor).is_some_and(is_held));
    bench.advance(590);
    assert_eq!((line.hear(), line.heard.len()), (false, 0), "it is held");
    bench.advance(602);
    assert!(line.answer().is_some_and(|head| head.starts_with("HTTP/1.1 204 ")));
    bench.advance(602 + REST_TICKS - 10);
    assert!(!line.hear(), "it rests");
}

fn is_held(channel: &Channel) -> bool {
    matches!(&channel.carrier, Carrier::Tunnel(end) if end.holds())
}

#[test]
fn a_tunnel_that_has_freed_many_sockets_holds_a_stranger_s_get_as_long_as_it_asks() {
    let mut bench = Bench::new(100);
    let id = bench.known_tunnel();
    let mut lines: Vec<_> = (0..50).map(|_| Line::connect(&bench)).collect();
    for line in &mut lines {
        assert_eq!(line.ask(&mut bench, "POST", &format!("/bgb/tunnel/{id}?from=0")), "204");
    }
    let (freed, strangers) = bench.standings();
    assert!((32..=42).contains(&freed), "{freed} were freed, {strangers} were not");
    let line = lines.last_mut().unwrap();
    line.say(format!("GET /bgb/tunnel/{id}?from=0&hold=60 HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    bench.turn_until(|reactor| only_channel(reactor).is_some_and(is_held));
    bench.advance(590);
    assert_eq!((line.hear(), line.heard.len()), (false, 0), "it is held");
    bench.advance(602);
    let answer = line.answer().unwrap();
    assert!(answer.starts_with("HTTP/1.1 204 ") && answer.contains("Connection: close"), "{answer}");
}

#[test]
fn a_stolen_name_frees_no_more_sockets_than_a_device_needs() {
    for is_given_something in [true, false] {
        let mut bench = Bench::new(200);
        let id = bench.known_tunnel();
        let key = bench.reactor.channels.key_at(id.slot).unwrap();
        if is_given_something {
            bench.reactor.scratch.records = vec![7; 10];
            bench.reactor.push_down(bench.reactor.now(), key, false);
        }
        let target = format!("/bgb/tunnel/{id}?from=0&hold=1");
        let mut lines: Vec<_> = (0..100).map(|_| Line::connect(&bench)).collect();
        for line in &mut lines {
            if is_given_something {
                assert_eq!(line.ask(&mut bench, "GET", &target), "200");
            } else {
                line.say(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
                bench.turn_until(|reactor| only_channel(reactor).is_some_and(is_held));
                let tick = bench.reactor.now().tick.plus(10);
                bench.reactor.on_tunnel_time(Now { tick, unix: UnixMillis(0) }, key);
                assert!(line.answer().is_some_and(|head| head.starts_with("HTTP/1.1 204 ")));
            }
        }
        let (freed, strangers) = bench.standings();
        assert!((32..=42).contains(&freed), "{freed} were freed, {strangers} were not");
    }
}

const UPGRADE: &[u8] =
    b"GET /bgb/websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Asks for a WebSocket; it is one from then on.
fn become_websocket(bench: &mut Bench, line: &mut Line) {
    line.say(UPGRADE);
    bench.turn_until(|_| line.answer().is_some_and(|head| head.starts_with("HTTP/1.1 101 ")));
}

#[test]
fn a_stranger_s_websocket_that_brings_nothing_is_ended_for_that() {
    for (frame, reason) in
        [(&[0x82, 0x80, 1, 2, 3, 4][..], "empty frames"), (&[0x89, 0x81, 0, 0, 0, 0, 7], "pings")]
    {
        let mut bench = Bench::new(10);
        let mut line = Line::connect(&bench);
        become_websocket(&mut bench, &mut line);
        let received = |reactor: &Reactor| reactor.metrics.received_bytes.value();
        let before = received(&bench.reactor);
        let said = frame.repeat(1_000);
        line.say(&said);
        bench.turn_until(|reactor| received(reactor) == before + said.len() as u64);
        assert!(!line.hear(), "{reason}: a thousand are borne");
        line.say(&frame.repeat(500));
        bench.turn_until(|reactor| closed(reactor, CloseReason::BadWebSocket) && reactor.sockets.is_empty());
        assert!(line.hear());
        assert!(line.heard.ends_with(&[0x88, 2, 0x03, 0xf0]), "{reason}: {:?}", line.heard);
        assert_eq!(bench.reactor.handshakes.in_flight(), 0);
    }
}

#[test]
fn a_handshake_that_comes_byte_by_byte_in_frames_of_its_own_is_one() {
    let mut socket = transport::WebSocket::new(None);
    for _ in 0..layer::HANDSHAKE_BYTES_MAX {
        assert!(socket.hear_stranger(13, 0) && socket.hear_stranger(2, 1));
    }
    assert!((0..8_192 / 6).all(|_| socket.hear_stranger(6, 0)));
    assert!(!socket.hear_stranger(6, 0));
}

#[test]
fn strangers_websockets_are_read_in_a_budget_of_their_own() {
    let mut bench = Bench::new(200);
    let mut lines: Vec<_> = (0..100).map(|_| Line::connect(&bench)).collect();
    for line in &mut lines {
        become_websocket(&mut bench, line);
    }
    bench.turn_until(|reactor| reactor.readable.is_empty());
    for line in &mut lines {
        line.say(&[0x82, 0x80, 1, 2, 3, 4]);
    }
    let before = bench.reactor.metrics.received_bytes.value();
    bench.mailbox.wake();
    assert!(bench.reactor.turn().unwrap().is_continue());
    let read = (bench.reactor.metrics.received_bytes.value() - before) / 6;
    assert!((1..=64).contains(&read), "{read} were read in one turn");
}

#[test]
fn a_ping_is_answered_when_what_was_said_before_is_sent_and_of_two_the_later() {
    let mut bench = Bench::new(10);
    let mut line = Line::connect(&bench);
    become_websocket(&mut bench, &mut line);
    let key = bench.reactor.sockets.keys().next().unwrap();
    // A frame, as the ticket's records are held back.
    bench.reactor.sockets.tenant_mut(key).unwrap().hold_back(&[0x82, 1, b'x']);
    for number in [7, 8] {
        let before = bench.reactor.metrics.received_bytes.value();
        line.say(&[0x89, 0x81, 0, 0, 0, 0, number]);
        bench.turn_until(|reactor| reactor.metrics.received_bytes.value() == before + 7);
        assert_eq!((line.hear(), &line.heard[..]), (false, &[][..]));
    }
    bench.reactor.dirty.push(key);
    bench.turn_until(|_| {
        line.hear();
        line.heard.len() >= 6
    });
    assert_eq!(line.heard, [0x82, 1, b'x', 0x8a, 1, 8]);
    assert!(bench.reactor.sockets.tenant_mut(key).unwrap().take_pong().is_none());
}

/// The only socket's, which is a stranger's, time is over as when it is crowded.
fn time_of_crowds(bench: &mut Bench) {
    let key = bench.reactor.sockets.keys().next().unwrap();
    let now = bench.reactor.now();
    bench.reactor.give_stranger_time(now, key, 20);
}

#[test]
fn whoever_has_had_its_answer_keeps_no_stranger_s_place_longer_than_promised() {
    let mut bench = Bench::new(10);
    let mut line = Line::connect(&bench);
    bench.turn_until(|reactor| reactor.sockets.len() == 1);
    time_of_crowds(&mut bench);
    line.say(b"GET / HTTP/1.0\r\n\r\n");
    bench.turn_until(|_| line.answer().is_some());
    // It has been told the end, and stays.
    assert!(bench.reactor.sockets.len() == 1 && bench.reactor.handshakes.in_flight() == 1);
    bench.advance(22);
    assert!(bench.reactor.sockets.is_empty() && bench.reactor.handshakes.in_flight() == 0);
    assert!(closed(&bench.reactor, CloseReason::Answered));
}

#[test]
fn whoever_still_takes_in_its_answer_has_time_for_it_without_a_place() {
    let mut bench = Bench::new(10);
    let mut line = Line::connect(&bench);
    bench.turn_until(|reactor| reactor.sockets.len() == 1);
    let key = bench.reactor.sockets.keys().next().unwrap();
    // Of an answer that the kernel would not take.
    bench.reactor.sockets.tenant_mut(key).unwrap().hold_back(&[b'x'; 100]);
    time_of_crowds(&mut bench);
    let now = bench.reactor.now();
    bench.reactor.part(now, key, CloseReason::Answered);
    assert!(!line.hear());
    bench.advance(22);
    assert_eq!((bench.reactor.sockets.len(), bench.reactor.handshakes.in_flight()), (1, 0));
    bench.advance(22 + CLOSING_TICKS);
    assert!(bench.reactor.sockets.is_empty() && bench.reactor.handshakes.in_flight() == 0);
}

#[test]
fn a_reactor_that_stops_waits_for_devices_of_other_reactors_tunnels() {
    let mut bench = Bench::new(10);
    let id = bench.known_tunnel();
    let mut line = Line::connect(&bench);
    assert_eq!(line.ask(&mut bench, "POST", &format!("/bgb/tunnel/{id}?from=0")), "204");
    // The tunnel is gone, and another reactor has one.
    let key = bench.reactor.channels.key_at(id.slot).unwrap();
    let now = bench.reactor.now();
    bench.reactor.end(now, key, CloseReason::Goodbye);
    bench.reactor.room.begin_tunnel();
    bench.mailbox.send(Letter::Stop);
    for _ in 0..20 {
        bench.mailbox.wake();
        assert!(bench.reactor.turn().unwrap().is_continue());
    }
    assert!(!line.hear(), "it may ask");
    assert!(bench.reactor.timeout().unwrap() <= ROOM_LOOK, "nobody rings when it may go");
    bench.reactor.room.end_tunnels(1);
    assert!(bench.reactor.turn().unwrap().is_break());
}

/// The outer TLS of an agent on the bench's HTTPS port.
fn outer(bench: &Bench) -> (rustls::ClientConnection, StdStream) {
    let mut tls = device_tls(&bench.site, DeviceId(1), &[b"http/1.1"]);
    tls.set_buffer_limit(None);
    (tls, StdStream::connect(bench.https).unwrap())
}

#[test]
fn what_is_asked_together_with_the_end_is_answered_in_https_too() {
    let mut bench = Bench::new(10);
    let (mut tls, mut stream) = outer(&bench);
    tls.write_tls(&mut stream).unwrap();
    bench.turn_until(|reactor| reactor.handshakes.answered() == 1);
    while tls.wants_read() && tls.is_handshaking() {
        tls.read_tls(&mut stream).unwrap();
        tls.process_new_packets().unwrap();
    }
    // More requests than are served in one go.
    for _ in 0..20 {
        tls.writer().write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }
    tls.send_close_notify();
    let mut last = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut last).unwrap();
    }
    stream.write_all(&last).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    bench.turn_until(|reactor| reactor.sockets.is_empty());
    let mut answers = String::new();
    let mut heard = rustls::Stream::new(&mut tls, &mut stream);
    // It ends with the connection, if not with close_notify.
    let _ = heard.read_to_string(&mut answers);
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 20, "{answers}");
    assert_eq!((bench.reactor.handshakes.in_flight(), bench.reactor.handshakes.answered()), (0, 0));
}

#[test]
fn connections_that_rest_between_two_requests_go_when_others_want_room() {
    let mut bench = Bench::new(3);
    let id = bench.known_tunnel();
    let mut lines: Vec<_> = (0..3).map(|_| Line::connect(&bench)).collect();
    let rested_since = Instant::now();
    for line in &mut lines[..2] {
        assert_eq!(line.ask(&mut bench, "POST", &format!("/bgb/tunnel/{id}?from=0")), "204");
    }
    lines[2].say(format!("GET /bgb/tunnel/{id}?from=0&hold=60 HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    bench.turn_until(|reactor| only_channel(reactor).is_some_and(is_held));
    let _first = bench.connect();
    bench.turn_until(|reactor| reactor.metrics.accepted.value() == 4);
    assert!(rested_since.elapsed() > Duration::from_millis(800), "the next request may be on its way");
    let _second = bench.connect();
    bench.turn_until(|reactor| reactor.metrics.accepted.value() == 5);
    let has_ended: Vec<_> = lines.iter_mut().map(Line::hear).collect();
    assert_eq!(has_ended, [true, true, false], "whoever waits for an answer stays");
    assert_eq!(bench.standings(), (1, 0));
}

#[test]
fn an_order_stands_behind_no_request_that_another_shard_passes_on() {
    let mut bench = Bench::new(10);
    let asker = Asker { shard: ShardId(0), socket: SlotKey { index: 0, generation: 0 }, number: 0 };
    let id = TunnelId { server: 1, shard: 0, slot: 0, secret: [0; 16] };
    let passed = || {
        let ask = Ask::Up { from: 0, bytes: vec![0; 1_000], is_last: true };
        Letter::Passed(Passed::Ask { asker, standing: Standing::Stranger, id, ask })
    };
    while bench.mailbox.try_send_late(passed()).is_ok() {}
    // What stands for an order: a letter of which the reactor shows that it has come.
    let tls = Arc::new(site_and_context(tempfile::tempdir().unwrap().path()).1);
    assert!(bench.mailbox.try_send(Letter::Tls(Arc::clone(&tls))).is_ok(), "there is room for it");
    assert!(bench.reactor.turn().unwrap().is_continue());
    assert!(Arc::ptr_eq(&bench.reactor.tls, &tls), "it is taken in the first turn");
    assert!(bench.reactor.inbox.has_letters(), "and the others wait");
    bench.turn_until(|reactor| !reactor.inbox.has_letters());
}

#[test]
fn when_it_is_crowded_another_tunnel_or_websocket_is_refused_for_now() {
    let mut bench = Bench::new(10);
    let id = bench.known_tunnel();
    let mut line = Line::connect(&bench);
    assert_eq!(line.ask(&mut bench, "POST", &format!("/bgb/tunnel/{id}?from=0")), "204");
    while bench.reactor.handshakes.has_room() {
        assert!(bench.reactor.handshakes.begin(None, Tick(0)));
    }
    let mut refusal = |request: &[u8]| {
        line.say(request);
        let mut head = None;
        bench.turn_until(|_| {
            head = line.answer();
            head.is_some()
        });
        head.unwrap()
    };
    let post = b"POST /bgb/tunnel HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let head = refusal(post);
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("Retry-After: 2\r\n"), "{head}");
    assert!(head.contains("Bgb-Received: 0\r\n") && !head.contains("Bgb-Tunnel"), "{head}");
    // The socket is a device's, and lives on; a tunnel that there is answers as ever.
    let head = refusal(format!("POST /bgb/tunnel/{id}?from=0 HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
    let head = refusal(UPGRADE);
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("Connection: close"), "{head}");
    assert!(!head.contains("Bgb-Received"), "{head}");
}

#[test]
fn strangers_who_have_always_more_to_ask_are_served_in_turn_and_nobody_waits_behind_them() {
    let mut bench = Bench::new(300);
    let id = bench.known_tunnel();
    let mut device = Line::connect(&bench);
    let target = format!("/bgb/tunnel/{id}?from=0");
    assert_eq!(device.ask(&mut bench, "POST", &target), "204");
    let requests = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(500);
    let mut strangers: Vec<_> = (0..200).map(|_| Line::connect(&bench)).collect();
    strangers.iter_mut().for_each(|stranger| stranger.say(&requests));
    bench.turn_until(|reactor| reactor.metrics.accepted.value() == 201 && !reactor.readable.is_empty());
    device.say(format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").as_bytes());
    let mut turns = 0;
    while device.answer().is_none() {
        assert!(bench.reactor.turn().unwrap().is_continue());
        turns += 1;
        assert!(turns <= 3, "a device waits for strangers");
    }
    // Each of them has an answer when all have had their turn.
    for _ in 0..2 * 200 / 64 {
        assert!(bench.reactor.turn().unwrap().is_continue());
    }
    let unanswered =
        strangers.iter_mut().filter_map(|stranger| stranger.answer().is_none().then_some(())).count();
    assert_eq!(unanswered, 0);
}

#[test]
fn whoever_closes_its_half_while_its_get_is_held_is_gone_and_its_tunnel_stays() {
    let mut bench = Bench::new(10);
    let id = bench.known_tunnel();
    let mut line = Line::connect(&bench);
    line.say(format!("GET /bgb/tunnel/{id}?from=0&hold=60 HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    bench.turn_until(|reactor| only_channel(reactor).is_some_and(is_held));
    line.stream.shutdown(Shutdown::Write).unwrap();
    bench.turn_until(|reactor| reactor.sockets.is_empty());
    assert!(line.hear() && line.heard.is_empty());
    assert!(only_channel(&bench.reactor).is_some_and(|channel| !is_held(channel)));
    // What comes down now waits for the next GET.
    let key = bench.reactor.channels.key_at(id.slot).unwrap();
    bench.reactor.scratch.records = vec![7; 10];
    let now = bench.reactor.now();
    bench.reactor.push_down(now, key, false);
    let mut line = Line::connect(&bench);
    assert_eq!(line.ask(&mut bench, "GET", &format!("/bgb/tunnel/{id}?from=0")), "200");
}

#[test]
fn whoever_is_held_in_a_handshake_is_freed_and_has_its_time_when_the_device_is_known() {
    let mut bench = Bench::new(10);
    let now = bench.reactor.now();
    let id = bench.reactor.open_tunnel(now, bench.http).unwrap();
    let key = bench.reactor.channels.key_at(id.slot).unwrap();
    let mut line = Line::connect(&bench);
    line.say(format!("GET /bgb/tunnel/{id}?from=0&hold=60 HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    bench.turn_until(|reactor| only_channel(reactor).is_some_and(is_held));
    assert_eq!(bench.standings(), (0, 1), "nobody is known");
    bench.become_known(key);
    assert_eq!(bench.standings(), (1, 0));
    bench.advance(590);
    assert_eq!((line.hear(), line.heard.len()), (false, 0), "it is held");
    bench.advance(602);
    assert!(line.answer().is_some_and(|head| head.starts_with("HTTP/1.1 204 ")));
}
