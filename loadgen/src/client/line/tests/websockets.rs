//! A server of WebSockets.

use bgb_http::websocket::{Control, Decoder, Side, answer, encode_control, encode_data};
use bgb_http::{Decoded, RequestHead};

use super::*;

/// Gives back what it is told in frames of three bytes, asks whether somebody is there before each, and ends when it is told `bye`. `garbage` is said after
/// the answer to the upgrade.
fn echo(mut stream: impl Stream, garbage: &[u8]) {
    let (mut head, mut room) = (Vec::new(), [0; 1_000]);
    while !head.ends_with(b"\r\n\r\n") {
        let bytes = stream.read(&mut room[..1]).unwrap();
        head.extend_from_slice(&room[..bytes]);
    }
    let Decoded::Complete { head, .. } = RequestHead::decode(&head).unwrap() else { panic!("no head") };
    assert_eq!(head.path(), "/bgb/websocket");
    let mut out = Vec::new();
    answer(&head).unwrap().encode(&mut out).unwrap();
    out.extend_from_slice(garbage);
    stream.write_all(&out).unwrap();
    let (mut decoder, mut asked, mut answered) = (Decoder::new(Side::Server), 0, 0);
    while !decoder.is_closed() {
        let (mut data, mut controls) = (Vec::new(), Vec::new());
        let bytes = stream.read(&mut room).unwrap();
        assert!(bytes > 0, "whoever is told of the end says so as well");
        decoder.decode(&mut room[..bytes], &mut data, &mut controls).unwrap();
        answered += controls
            .iter()
            .filter(|control| matches!(control, Control::Pong(payload) if payload == b"?"))
            .count();
        let mut out = Vec::new();
        for part in data.chunks(3) {
            encode_control(&Control::Ping(b"?".to_vec()), None, &mut out);
            asked += 1;
            encode_data(part, None, &mut out);
        }
        if data.ends_with(b"bye") {
            encode_control(&Control::Close(Some(1_000)), None, &mut out);
        }
        stream.write_all(&out).unwrap();
    }
    assert_eq!(asked, answered, "each ping has its answer");
}

#[test]
fn a_websocket_carries_bytes_however_they_are_framed_and_its_end() {
    for way in Way::ALL.into_iter().filter(|way| way.road == Road::WebSocket) {
        let (over, is_over) = std::sync::mpsc::channel();
        let server = serve(way, move |stream| {
            echo(stream, b"");
            over.send(()).unwrap();
        });
        let mut bench = Bench::connected(way, server);
        for count in [1, 125, 126, 70_000] {
            bench.echo(&bytes(count));
            bench.line.rest().unwrap();
        }
        bench.say(b"bye");
        let end = bench.run_until(|_| false).unwrap_err();
        assert_eq!((end.kind(), bench.heard.ends_with(b"bye")), (io::ErrorKind::UnexpectedEof, true));
        bench.line.flush().unwrap();
        is_over.recv_timeout(SOON).unwrap();
    }
}

#[test]
fn frames_may_come_with_the_answer_and_what_is_none_ends_the_line() {
    let [_, way, ..] = Way::ALL;
    // One whole frame, and then one of a kind that there is not.
    let server = serve(way, |stream| echo(stream, b"\x82\x03one\x83\x00"));
    let end = Bench::new(way, server).run_until(|_| false).unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::InvalidData);
    let server = serve(way, |stream| echo(stream, b"\x82\x03one"));
    let mut bench = Bench::connected(way, server);
    bench.look().unwrap();
    assert_eq!(bench.heard, b"one");
    bench.echo(b"and more");
}

#[test]
fn whoever_answers_the_upgrade_with_something_else_is_no_server_of_ours() {
    let [_, way, ..] = Way::ALL;
    for said in ["HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "SSH-2.0-OpenSSH\r\n\r\n"] {
        let server = serve(way, |mut stream| {
            let _ = stream.read(&mut [0; 1_000]).unwrap();
            stream.write_all(said.as_bytes()).unwrap();
            // Whoever is not answered reads on.
            let _ = stream.read(&mut [0; 1_000]);
        });
        let end = Bench::new(way, server).run_until(|_| false).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::InvalidData, "{said}");
    }
}
