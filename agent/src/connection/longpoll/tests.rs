use std::net::{TcpListener, TcpStream};

use bgb_protocol::message::RoadReason;

use super::*;
use crate::connection::tests::played::{PATIENCE, closed_port};

const ID: &str = "0000000100020000000300112233445566778899aabbccddeeff";

/// A road to a listener.
fn open() -> (LongPoll, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let way = Way::new("127.0.0.1", listener.local_addr().unwrap().port(), None, None).unwrap();
    (LongPoll::open(way, Idle::default(), UnixMillis(0), None).unwrap(), listener)
}

/// Lets the road go on until `is_done`.
fn go_on(road: &mut LongPoll, is_done: impl Fn(&LongPoll) -> bool) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        road.go_on(Instant::now())?;
        if is_done(road) {
            return Ok(());
        }
        assert!(Instant::now() < deadline, "it does not come to that");
        let mut waits = Waits::default();
        road.waits(false, &mut waits);
        waits.until(Instant::now() + Duration::from_millis(20));
        waits.wait().unwrap();
    }
}

/// A request's line, as it came.
fn hear(socket: &mut TcpStream) -> String {
    let mut bytes = [0; 4_096];
    let count = socket.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..count]).lines().next().unwrap_or_default().to_owned()
}

fn say(socket: &mut TcpStream, answer: &str) {
    socket.write_all(answer.replace('\n', "\r\n").as_bytes()).unwrap();
}

/// A tunnel that is open, the connection of its POSTs, and that of the GET that was asked.
fn opened() -> (LongPoll, TcpListener, TcpStream, TcpStream) {
    let (mut road, listener) = open();
    let mut post = listener.accept().unwrap().0;
    assert_eq!(road.write(b"hello").unwrap(), 5);
    road.go_on(Instant::now()).unwrap();
    assert_eq!(hear(&mut post), "POST /bgb/tunnel HTTP/1.1");
    say(
        &mut post,
        &format!("HTTP/1.1 201 Created\nBgb-Tunnel: {ID}\nBgb-Received: 5\nContent-Length: 0\n\n"),
    );
    go_on(&mut road, |road| road.get.asked_at().is_some()).unwrap();
    let mut get = listener.accept().unwrap().0;
    assert_eq!(hear(&mut get), format!("GET /bgb/tunnel/{ID}?from=0&hold=60 HTTP/1.1"));
    (road, listener, post, get)
}

#[test]
fn a_body_in_chunks_is_heard_and_the_next_get_asks_behind_it() {
    let (mut road, _listener, _post, mut get) = opened();
    say(
        &mut get,
        "HTTP/1.1 200 OK\nBgb-From: 0\nBgb-Received: 5\nTransfer-Encoding: chunked\n\n2\nab\n3\ncde\n0\n\n",
    );
    go_on(&mut road, |road| road.tunnel.has_heard()).unwrap();
    let mut buffer = [0; 9];
    assert_eq!(road.read(&mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"abcde");
    assert_eq!(road.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    go_on(&mut road, |road| road.get.asked_at().is_some()).unwrap();
    assert_eq!(hear(&mut get), format!("GET /bgb/tunnel/{ID}?from=5&hold=60 HTTP/1.1"));
}

#[test]
fn a_lost_request_is_made_again_over_another_connection() {
    let (mut road, listener, post, get) = opened();
    drop(get);
    go_on(&mut road, |road| road.get_rest.losses == 1 && road.get.asked_at().is_some()).unwrap();
    let mut get = listener.accept().unwrap().0;
    assert_eq!(hear(&mut get), format!("GET /bgb/tunnel/{ID}?from=0&hold=60 HTTP/1.1"));
    // One that was closed while nothing was asked is no loss.
    drop(post);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(road.write(b"more").unwrap(), 4);
    go_on(&mut road, |road| road.post.asked_at().is_some()).unwrap();
    let mut post = listener.accept().unwrap().0;
    assert_eq!(hear(&mut post), format!("POST /bgb/tunnel/{ID}?from=5 HTTP/1.1"));
    assert!(!road.is_flushed());
    say(&mut post, "HTTP/1.1 204 No Content\nBgb-Received: 9\n\n");
    go_on(&mut road, Road::is_flushed).unwrap();
    assert_eq!(road.post_rest.losses, 0);
}

#[test]
fn what_a_proxy_gives_up_after_a_time_is_asked_for_a_shorter_one() {
    let (mut road, _listener, _post, mut get) = opened();
    for (round, hold) in [(0, 60), (1, 40)] {
        // As if it had been held that long.
        let now = Instant::now() + Duration::from_secs(60 * (round + 1));
        say(&mut get, "HTTP/1.1 504 Gateway Timeout\nContent-Length: 4\n\nlate");
        let deadline = Instant::now() + PATIENCE;
        let cut = loop {
            assert!(Instant::now() < deadline);
            road.go_on(now).unwrap();
            if let Some(cut) = road.take_cut() {
                break cut;
            }
        };
        assert!((55..=65).contains(&cut.as_secs()), "{cut:?}");
        road.get_rest = Rest::default();
        // The clock of the next request begins where this test has put it.
        go_on(&mut road, |road| road.get.asked_at().is_some()).unwrap();
        assert_eq!(hear(&mut get), format!("GET /bgb/tunnel/{ID}?from=0&hold={hold} HTTP/1.1"));
    }
}

#[test]
fn a_pause_is_kept_and_losses_in_a_row_are_the_end() {
    let (mut road, listener, mut post, get) = opened();
    road.write_all(b"more").unwrap();
    road.go_on(Instant::now()).unwrap();
    hear(&mut post);
    say(
        &mut post,
        "HTTP/1.1 503 Service Unavailable\nRetry-After: 30\nBgb-Received: 5\nContent-Length: 0\n\n",
    );
    go_on(&mut road, |road| road.post_rest.until.is_some()).unwrap();
    assert!(road.post.asked_at().is_none());
    road.go_on(Instant::now() + Duration::from_secs(31)).unwrap();
    assert!(road.post.asked_at().is_some());

    drop((get, post, listener));
    let error = go_on(&mut road, |_| false).unwrap_err();
    assert_eq!(RoadFault::from(error).reason, Some(RoadReason::Refused));
}

#[test]
fn what_is_answered_with_nothing_at_once_is_not_asked_again_without_end() {
    let (mut road, listener, _post, mut get) = opened();
    drop(listener);
    let began = Instant::now();
    get.set_read_timeout(Some(PATIENCE)).unwrap();
    let server = std::thread::spawn(move || {
        let mut asked = 1;
        loop {
            say(&mut get, "HTTP/1.1 204 No Content\nBgb-From: 0\nBgb-Received: 5\n\n");
            if hear(&mut get).is_empty() {
                return asked;
            }
            asked += 1;
        }
    });
    let error = go_on(&mut road, |_| false).unwrap_err();
    assert!(error.to_string().contains("at once"), "{error}");
    assert!(began.elapsed() > Duration::from_secs(7), "{:?}", began.elapsed());
    assert_eq!(road.take_cut(), None, "that tells of no timer");
    drop(road);
    assert_eq!(server.join().unwrap(), LOSSES_MAX);
}

#[test]
fn of_a_page_that_is_longer_than_any_answer_the_status_is_told() {
    let page = "x".repeat(100_000);
    for (field, body) in [
        ("Content-Length: 100000", page.clone()),
        ("Content-Length: 99999999999", page.clone()),
        ("Transfer-Encoding: chunked", format!("186a0\n{page}\n")),
        ("Connection: close", page.clone()),
    ] {
        let (mut road, listener) = open();
        let mut post = listener.accept().unwrap().0;
        assert_eq!(road.write(b"hello").unwrap(), 5);
        road.go_on(Instant::now()).unwrap();
        hear(&mut post);
        let answer = format!("HTTP/1.1 403 Forbidden\n{field}\n\n{body}");
        let server = std::thread::spawn(move || {
            let _ = post.write_all(answer.replace('\n', "\r\n").as_bytes());
            post
        });
        let error = go_on(&mut road, |_| false).unwrap_err();
        assert_eq!(RoadFault::from(error).reason, Some(RoadReason::ProxyAnswer(403)), "{field}");
        server.join().unwrap();
    }
}

#[test]
fn an_answer_that_is_announced_without_end_is_lost() {
    let (mut road, _listener, _post, mut get) = opened();
    say(&mut get, &"HTTP/1.1 100 Continue\n\n".repeat(9));
    go_on(&mut road, |road| road.get_rest.losses == 1).unwrap();
}

#[test]
fn a_lane_that_connects_anew_keeps_nobody_waiting() {
    let (mut road, _listener, mut post, get) = opened();
    // Whoever is there takes the connection, and never shakes hands.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let authority = crate::tls::tests::Authority::new();
    let outer = crate::tls::OuterTls::new(authority.certificate(), Vec::new()).unwrap();
    let port = silent.local_addr().unwrap().port();
    road.way = Way::new("127.0.0.1", port, Some(std::sync::Arc::new(outer)), None).unwrap();
    let began = Instant::now();
    drop(get);
    go_on(&mut road, |road| road.get_rest.losses == 1 && !road.get.is_at_rest()).unwrap();
    assert_eq!(road.write(b"more").unwrap(), 4);
    road.go_on(Instant::now()).unwrap();
    assert_eq!(hear(&mut post), format!("POST /bgb/tunnel/{ID}?from=5 HTTP/1.1"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // And whoever ends calls the connection off.
    let (mut socket, _) = silent.accept().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    drop(road);
    io::copy(&mut socket, &mut io::sink()).unwrap();
}

#[test]
fn of_several_cuts_in_a_turn_the_longest_is_told() {
    let (mut road, ..) = opened();
    for secs in [60, 0] {
        let lost = RoadFault::new("lost");
        road.on_lost(Lane::Get, Some(Duration::from_secs(secs)), Instant::now(), lost).unwrap();
    }
    assert_eq!(road.take_cut(), Some(Duration::from_secs(60)));
}

#[test]
fn where_nothing_listens_there_is_no_road() {
    let way = Way::new("127.0.0.1", closed_port(), None, None).unwrap();
    let Err(fault) = LongPoll::open(way, Idle::default(), UnixMillis(0), None) else {
        panic!("it leads nowhere")
    };
    assert_eq!(fault.reason, Some(RoadReason::Refused));
    assert!(Way::new("evil\r\nHost: x", 1, None, None).is_err());
}
