use std::net::TcpListener;

use bgb_protocol::message::RoadReason;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Message};

use super::*;
use crate::connection::tests::played::PATIENCE;

type Peer = tungstenite::WebSocket<std::net::TcpStream>;

/// A road, and the peer at its other end.
fn open() -> (WebSocket, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = std::thread::spawn(move || tungstenite::accept(listener.accept().unwrap().0).unwrap());
    let way = Way::new("127.0.0.1", port, None, None).unwrap();
    let road = WebSocket::open(&way, Idle::default(), None).unwrap();
    (road, peer.join().unwrap())
}

/// What is read next, or why nothing is.
fn read(road: &mut WebSocket) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 5];
    loop {
        road.go_on(Instant::now())?;
        match road.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < deadline, "nothing comes");
                let mut waits = Waits::default();
                road.waits(false, &mut waits);
                waits.wait().unwrap();
            }
            read => return read.map(|count| buffer[..count].to_vec()),
        }
    }
}

#[test]
fn where_messages_end_means_nothing_and_pings_are_answered() {
    let (mut road, mut peer) = open();
    peer.send(Message::Binary(vec![1, 2, 3].into())).unwrap();
    peer.send(Message::Ping(vec![9].into())).unwrap();
    peer.send(Message::Binary(vec![4, 5, 6, 7].into())).unwrap();
    let mut heard = Vec::new();
    while heard.len() < 7 {
        heard.extend(read(&mut road).unwrap());
    }
    assert_eq!(heard, [1, 2, 3, 4, 5, 6, 7]);
    road.go_on(Instant::now()).unwrap();
    assert_eq!(peer.read().unwrap(), Message::Pong(vec![9].into()));
}

#[test]
fn text_is_refused_with_its_code_and_what_we_close_is_closed_in_good_order() {
    let (mut road, mut peer) = open();
    peer.send(Message::Text("hello".into())).unwrap();
    assert!(read(&mut road).unwrap_err().to_string().contains("text"));
    let Message::Close(Some(CloseFrame { code, .. })) = peer.read().unwrap() else { panic!("no close") };
    assert_eq!(code, CloseCode::Unsupported);

    let (mut road, mut peer) = open();
    road.write_all(b"last").unwrap();
    road.finish();
    assert!(road.write(b"more").is_err());
    while !road.is_flushed() {
        road.go_on(Instant::now()).unwrap();
    }
    assert_eq!(peer.read().unwrap(), Message::Binary(b"last".to_vec().into()));
    let Message::Close(Some(CloseFrame { code, .. })) = peer.read().unwrap() else { panic!("no close") };
    assert_eq!(code, CloseCode::Normal);
    let _ = peer.flush();
    assert_eq!(read(&mut road).unwrap(), b"", "its close is the end");
    assert_eq!(road.take_cut(), None);
}

#[test]
fn a_close_is_answered_before_the_road_is_dropped() {
    let (mut road, mut peer) = open();
    peer.close(Some(CloseFrame { code: CloseCode::Away, reason: "".into() })).unwrap();
    assert_eq!(read(&mut road).unwrap(), b"");
    drop(road);
    let Message::Close(Some(CloseFrame { code, .. })) = peer.read().unwrap() else { panic!("no close") };
    assert_eq!(code, CloseCode::Away);
}

#[test]
fn after_a_silence_it_pings_and_a_peer_that_answers_none_is_gone() {
    let (mut road, mut peer) = open();
    road.ping_every = Duration::from_millis(20);
    let asked = std::thread::spawn(move || {
        let ping = peer.read().unwrap();
        peer.flush().unwrap();
        (ping, peer)
    });
    let deadline = Instant::now() + PATIENCE;
    while road.pinged.is_none() {
        assert!(Instant::now() < deadline);
        road.go_on(Instant::now()).unwrap();
    }
    let (ping, peer) = asked.join().unwrap();
    assert!(matches!(ping, Message::Ping(_)));
    while road.pinged.is_some() {
        assert!(Instant::now() < deadline);
        let _ = road.read(&mut [0]);
    }
    let overdue = Instant::now() + Duration::from_secs(60);
    road.go_on(overdue).unwrap();
    let error = road.go_on(overdue + PONG).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(road.take_cut().is_some_and(|silence| silence > Duration::from_secs(50)));
    drop(peer);
}

#[test]
fn a_cut_tells_of_the_silence_before_it() {
    let (mut road, peer) = open();
    road.heard_at = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
    road.said_at = road.heard_at;
    drop(peer);
    let _ = road.stream.push(&mut Vec::new());
    let deadline = Instant::now() + PATIENCE;
    while road.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
        assert!(Instant::now() < deadline);
    }
    assert!(road.take_cut().is_some_and(|silence| silence.as_secs() == 60));
    assert_eq!(road.take_cut(), None);
}

#[test]
fn what_nobody_takes_is_held_to_a_bound() {
    let (mut road, _peer) = open();
    let bytes = vec![7; 64 * 1024];
    let mut taken = 0;
    while let Ok(count) = road.write(&bytes) {
        taken += count;
        assert!(taken < 64 * 1024 * 1024, "it takes without end");
    }
    assert!(road.waiting.len() < WAITING_BYTES_MAX + 2 * FRAME_BYTES);
    assert!(!road.is_flushed());
}

#[test]
fn an_answer_that_is_no_upgrade_is_a_proxys() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let _ = socket.read(&mut [0; 4_096]);
        socket
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\nlog in")
            .unwrap();
    });
    let way = Way::new("127.0.0.1", port, None, None).unwrap();
    let Err(fault) = WebSocket::open(&way, Idle::default(), None) else { panic!("that is no WebSocket") };
    assert_eq!(fault.reason, Some(RoadReason::ProxyAnswer(200)));
}
