//! Python's websockets, and frames that no library would send: what a server says to them, and that it says nothing behind its close.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use crate::device::{connect_from, fleet};
use crate::peer::Peer;
use crate::process;
use crate::road::{Socket, WebSocketLine};
use crate::site::Site;
use crate::wait::SOON;

/// The interpreter of the system, whose packages are Debian's.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/network/websocket_client.py");

#[test]
fn python_websockets_is_answered_as_the_standard_says_over_http_and_https() {
    let mut site = Site::new(1);
    site.start_server(1);
    for (scheme, address) in [("ws", site.http_address(1)), ("wss", site.https_address(1))] {
        let expected = [
            ("garbage", 1000),
            ("fragments", 1000),
            ("text", 1003),
            ("ping", 1000),
            ("long", 1009),
            ("close", 1000),
        ];
        let mut command = Command::new(PYTHON);
        command.arg(SCRIPT).arg(format!("{scheme}://{address}/bgb/websocket"));
        command.args(expected.map(|(case, _)| case));
        let ended = process::start_command(command, "websockets", &site.outputs()).wait_end();
        assert_eq!(ended.code(), 0, "{scheme}: {}{}", ended.stdout, ended.stderr);
        let told: Vec<serde_json::Value> =
            ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(told.len(), expected.len(), "{scheme}: {told:?}");
        for (told, (case, code)) in told.iter().zip(expected) {
            assert_eq!((&told["case"], &told["code"]), (&case.into(), &code.into()), "{scheme}: {told}");
            assert_eq!((&told["subprotocol"], &told["extensions"]), (&().into(), &0.into()), "{told}");
            if matches!(case, "garbage" | "fragments") {
                // A record of the type alert, and a fatal one (RFC 8446, 5.1 and 6).
                let heard = told["heard"].as_str().unwrap();
                assert!(heard.starts_with("1503"), "{scheme}: {told}");
            }
        }
    }
}

/// A frame, as it comes from a server: never masked.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    opcode: u8,
    payload: Vec<u8>,
}

/// All frames until the server's end; anything behind a whole frame that is none is shown as opcode 255.
fn frames(stream: &mut TcpStream) -> Vec<Frame> {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut bytes = Vec::new();
    // A reset is an end as well: words of ours were left unread.
    let _ = stream.read_to_end(&mut bytes);
    let (mut frames, mut rest) = (Vec::new(), &bytes[..]);
    while let [first, length, behind @ ..] = rest {
        let (length, behind) = match (length, behind) {
            (126, [high, low, behind @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), behind),
            (0..126, behind) => (usize::from(*length), behind),
            _ => (usize::MAX, behind),
        };
        if behind.len() < length {
            frames.push(Frame { opcode: 255, payload: rest.to_vec() });
            break;
        }
        frames.push(Frame { opcode: first & 15, payload: behind[..length].to_vec() });
        rest = &behind[length..];
    }
    frames
}

/// What the session has to say comes first, and a close frame with this code last.
#[track_caller]
fn closes_with(heard: &[Frame], code: u16, what: &str) {
    let Some((close, before)) = heard.split_last() else { panic!("{what}: nothing is said") };
    assert_eq!((close.opcode, &close.payload[..]), (8, &code.to_be_bytes()[..]), "{what}: {heard:?}");
    assert!(before.iter().all(|frame| frame.opcode == 2), "{what}: {heard:?}");
}

const BROKEN: [(&str, &[u8], u16); 10] = [
    ("not masked", &[0x82, 1, 7], 1002),
    ("a reserved bit", &[0xc2, 0x81, 0, 0, 0, 0, 7], 1002),
    ("an opcode that is none", &[0x83, 0x80, 0, 0, 0, 0], 1002),
    ("a control frame in pieces", &[0x09, 0x80, 0, 0, 0, 0], 1002),
    ("a control frame of 126 bytes", &[0x89, 0xfe, 0, 126, 0, 0, 0, 0], 1002),
    ("a length in more bytes than it needs", &[0x82, 0xfe, 0, 5, 0, 0, 0, 0], 1002),
    ("a continuation of nothing", &[0x80, 0x80, 0, 0, 0, 0], 1002),
    ("a message within another", &[0x02, 0x80, 0, 0, 0, 0, 0x82, 0x80, 0, 0, 0, 0], 1002),
    ("a close whose code is none", &[0x88, 0x82, 0, 0, 0, 0, 0, 7], 1002),
    ("more than 1 MiB", &[0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0], 1009),
];

#[test]
fn frames_that_break_the_standard_are_answered_with_the_code_for_it_and_nothing_more() {
    let site = Site::running(1);
    let devices = fleet(&site, 1);
    let address = site.http_address(1);
    let local = std::net::Ipv4Addr::LOCALHOST;
    for (what, bytes, code) in BROKEN {
        // Of somebody who has not said who it is.
        let mut stream = connect_from(local, address);
        drop(WebSocketLine::over(Socket::cover(stream.try_clone().unwrap(), false), address));
        stream.write_all(bytes).unwrap();
        closes_with(&frames(&mut stream), code, &format!("a stranger's: {what}"));
    }
    for (session, (what, bytes, code)) in (1..).zip(BROKEN) {
        // Of a device in its session.
        let mut stream = connect_from(local, address);
        let line = WebSocketLine::over(Socket::cover(stream.try_clone().unwrap(), false), address);
        let (peer, _) = Peer::by(&site, &devices[0], line).greet(1, session);
        stream.write_all(bytes).unwrap();
        closes_with(&frames(&mut stream), code, &format!("a device's: {what}"));
        drop(peer);
    }
    site.wait_closed("bad-websocket", 2 * BROKEN.len() as u64);
}
