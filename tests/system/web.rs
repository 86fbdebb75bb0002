//! What the HTTP ports answer to whoever is no agent: proper answers to what is proper, and an end to everything else.

use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::peer::READ_WAIT;
use crate::road::{Answer, Http};
use crate::site::Site;
use crate::wait::{SOON, until_equal, until_true};

fn server() -> Site {
    let mut site = Site::new(1);
    site.start_server(1);
    site
}

fn ask(site: &Site, method: &str, target: &str) -> Answer {
    let mut http = Http::connect(site.http_address(1), false);
    http.ask(method, target, b"").unwrap();
    http.wait()
}

#[test]
fn what_is_no_tunnel_gets_a_small_and_proper_answer() {
    let site = server();
    let tunnel = format!("/bgb/tunnel/{}", "0".repeat(52));
    for (method, target, status, allowed) in [
        ("GET", "/", 200, None),
        ("POST", "/", 405, Some("GET, HEAD")),
        ("GET", "/index.html", 404, None),
        ("GET", "/bgb", 404, None),
        ("OPTIONS", "*", 404, None),
        ("DELETE", "/bgb/tunnel", 405, Some("POST")),
        ("PUT", &tunnel, 405, Some("GET, POST")),
        ("GET", &tunnel, 400, None),
        ("GET", "/bgb/tunnel/guess", 404, None),
        ("POST", "/bgb/websocket", 405, Some("GET")),
        ("GET", "/bgb/websocket", 426, None),
    ] {
        let answer = ask(&site, method, target);
        assert_eq!(
            (answer.status, answer.field("Allow")),
            (status, allowed),
            "{method} {target}: {answer:?}"
        );
        let text = String::from_utf8(answer.body).unwrap();
        assert!(!text.contains("LAB") && text.len() < 200, "{text}");
        assert!(answer.fields.iter().any(|(name, _)| name == "Date"), "{:?}", answer.fields);
    }
    let text = ask(&site, "GET", "/").body;
    assert!(String::from_utf8(text).unwrap().contains("BGB notification server"));
    assert_eq!(ask(&site, "GET", "/bgb/websocket").field("Upgrade"), Some("websocket"));
}

#[test]
fn requests_may_follow_each_other_on_a_connection_and_before_their_answers() {
    let site = server();
    for is_covered in [false, true] {
        let address = if is_covered { site.https_address(1) } else { site.http_address(1) };
        let mut http = Http::connect(address, is_covered);
        http.send(
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\
              POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
              GET /y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
        assert_eq!([http.wait().status, http.wait().status], [200, 404]);
        let last = http.wait();
        assert_eq!((last.status, last.field("Connection")), (404, Some("close")));
        assert!(http.is_ended());
        // HTTP/1.0 closes by itself, and a HEAD's answer has no body.
        let mut http = Http::connect(address, is_covered);
        http.send(b"HEAD / HTTP/1.0\r\n\r\n").unwrap();
        assert!(http.is_ended());
    }
}

#[test]
fn what_two_could_read_in_two_ways_is_refused_and_the_connection_ends() {
    let site = server();
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n", "x".repeat(20_000));
    let many: String = (0..100).map(|number| format!("X-{number}: y\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n");
    let shapes = [
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", 400),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nabcde\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 262145\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n40001\r\n", 413),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (&long, 431),
        (&many, 431),
    ];
    for (bytes, status) in shapes {
        let mut http = Http::connect(site.http_address(1), false);
        // What is refused early may be closed before it has all been sent.
        let _ = http.send(bytes.as_bytes());
        let answer = http.wait();
        assert_eq!((answer.status, answer.field("Connection")), (status, Some("close")), "{bytes:.80?}");
        assert!(http.is_ended(), "{bytes:.80?}");
    }
    site.wait_closed("bad-request", shapes.len() as u64);
    let log = site.http_log();
    assert!(log.contains("bad-request") && log.contains("component=\"BgbHttpProxy\""), "{log}");
    assert!(!site.server_log().contains("bad-request"), "it has a log of its own");
    // TLS on the port of HTTP, and HTTP on that of HTTPS.
    let mut http = Http::connect(site.http_address(1), false);
    http.send(&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]).unwrap();
    assert_eq!(http.wait().status, 400);
    let mut https = Http::connect(site.https_address(1), false);
    https.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(https.is_ended());
}

#[test]
fn requests_that_are_sent_without_reading_wait_and_are_all_answered_in_their_order() {
    let site = server();
    // A fraction of what is served within a stranger's ten seconds, and more than kernels hold of answers.
    let all = 20_000;
    let mut http = Http::connect(site.http_address(1), false);
    let requests: String = (0..all)
        .map(|number| {
            if number % 2 == 0 {
                "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
            } else {
                "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
            }
        })
        .collect();
    let before = site.server_resident_kib();
    let mut writer = http.second_handle();
    let sender =
        std::thread::spawn(move || std::io::Write::write_all(&mut writer, requests.as_bytes()).unwrap());
    // Nobody reads: the server stops as well, and others are served meanwhile.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(ask(&site, "GET", "/").status, 200);
    let grown = site.server_resident_kib().saturating_sub(before);
    assert!(grown < 4 * 1024, "the server keeps {grown} KiB more");
    for number in 0..all {
        let status = if number % 2 == 0 { 200 } else { 404 };
        let answer = http.answer_within(SOON).unwrap_or_else(|| panic!("the {number}th is not answered"));
        assert_eq!(answer.status, status, "the {number}th");
    }
    sender.join().unwrap();
}

#[test]
fn whoever_waits_for_a_word_before_its_body_gets_one() {
    let site = server();
    let mut http = Http::connect(site.http_address(1), false);
    let head = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    };
    http.send(head("/bgb/tunnel").as_bytes()).unwrap();
    assert_eq!(http.wait().status, 100);
    http.send(b"hello").unwrap();
    let opened = http.wait();
    assert_eq!((opened.status, opened.field("Bgb-Received")), (201, Some("5")));
    // What will not be taken need not be sent.
    http.send(head("/nowhere").as_bytes()).unwrap();
    assert_eq!(http.wait().status, 404);
    assert!(http.is_ended());
}

#[test]
fn frames_that_break_the_protocol_end_the_websocket_with_their_code() {
    let site = server();
    let shapes: [(&str, &[u8], u16); 9] = [
        ("unmasked", &[0x82, 1, 7], 1002),
        ("reserved bits", &[0xc2, 0x81, 0, 0, 0, 0, 7], 1002),
        ("an opcode that is none", &[0x83, 0x80, 0, 0, 0, 0], 1002),
        ("text", &[0x81, 0x81, 0, 0, 0, 0, b'x'], 1003),
        ("a ping in fragments", &[0x09, 0x80, 0, 0, 0, 0], 1002),
        ("a ping of 126 bytes", &[0x89, 0xfe, 0, 126, 0, 0, 0, 0], 1002),
        ("a continuation of nothing", &[0x80, 0x80, 0, 0, 0, 0], 1002),
        ("a giant", &[0x82, 0xff, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff], 1009),
        ("a negative length", &[0x82, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0], 1002),
    ];
    for (what, frame, code) in shapes {
        let mut http = websocket(&site);
        http.send(frame).unwrap();
        let said = http.rest(SOON);
        let close = said
            .windows(4)
            .find(|bytes| bytes[..2] == [0x88, 2])
            .map(|close| u16::from_be_bytes([close[2], close[3]]));
        assert_eq!(close, Some(code), "{what}: {said:?}");
    }
    site.wait_closed("bad-websocket", shapes.len() as u64);
    // A ping is answered before anybody is known, and of many the last.
    let mut http = websocket(&site);
    let pings: Vec<u8> = (0..100).flat_map(|number| [0x89, 0x81, 0, 0, 0, 0, number]).collect();
    http.send(&pings).unwrap();
    let mut said = Vec::new();
    until_true("the pong of the last", SOON, || {
        said.extend(http.rest(READ_WAIT));
        said.ends_with(&[0x8a, 1, 99])
    });
    assert!(said.len() < 100, "{said:?}");
    // And a close is answered with a close.
    http.send(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]).unwrap();
    let said = http.rest(SOON);
    assert!(said.ends_with(&[0x88, 2, 0x03, 0xe8]), "{said:?}");
    // What brings nothing is against the rules, and is told so.
    let mut http = websocket(&site);
    // The server may have ended it before all is sent.
    let _ = http.send(&[0x82, 0x80, 1, 2, 3, 4].repeat(2_000));
    let said = http.rest(SOON);
    assert!(said.ends_with(&[0x88, 2, 0x03, 0xf0]), "{said:?}");
    site.wait_closed("bad-websocket", shapes.len() as u64 + 1);
}

/// A connection that has become a WebSocket.
fn websocket(site: &Site) -> Http {
    let mut http = Http::connect(site.http_address(1), false);
    let upgrade = b"GET /bgb/websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    http.send(upgrade).unwrap();
    assert_eq!(http.wait().status, 101);
    http
}

#[test]
fn a_websocket_of_which_one_end_alone_says_that_it_is_over_is_over() {
    let site = server();
    // The peer says it in a frame, and keeps the connection open.
    let mut closed = websocket(&site);
    closed.send(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]).unwrap();
    assert!(closed.rest(SOON).ends_with(&[0x88, 2, 0x03, 0xe8]));
    site.wait_closed("peer-closed", 1);
    // The server says it, and is not answered.
    let mut refused = websocket(&site);
    refused.send(&[0x81, 0x81, 0, 0, 0, 0, b'x']).unwrap();
    assert!(refused.rest(SOON).ends_with(&[0x88, 2, 0x03, 0xeb]));
    // The peer closes its half of the connection, and says nothing.
    let mut half = websocket(&site);
    half.second_handle().shutdown(Shutdown::Write).unwrap();
    assert!(half.is_ended());
    site.wait_closed("half-closed", 1);
    // None of them has hung up.
    until_equal("connections", SOON, &0, || site.metric(1, "bgb_server_connections"));
    until_equal("handshakes in flight", SOON, &0, || site.metric(1, "bgb_server_handshakes_in_flight"));
    drop([closed, refused, half]);
}

#[test]
fn a_port_that_is_off_is_closed() {
    for (key, is_covered) in [("listen_http", false), ("listen_https", true)] {
        let mut site = Site::new(1);
        site.configure_server(1, |config| {
            config.insert(key.into(), "off".into());
        });
        site.start_server(1);
        let (mut off, mut on) = (site.http_address(1), site.https_address(1));
        if is_covered {
            (off, on) = (on, off);
        }
        let refused = TcpStream::connect(off).map_err(|error| error.kind());
        assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused), "{key}");
        let mut http = Http::connect(on, !is_covered);
        http.ask("GET", "/", b"").unwrap();
        assert_eq!(http.wait().status, 200);
    }
}

#[test]
fn whoever_brings_no_session_about_is_let_go_however_slowly_it_speaks() {
    let site = server();
    let (http, https) = (site.http_address(1), site.https_address(1));
    let lasts = |mut line: Http, begin: Vec<u8>, drip: &'static [u8]| {
        std::thread::spawn(move || {
            line.send(&begin).unwrap();
            let begun = Instant::now();
            while begun.elapsed() < SOON && line.send(drip).is_ok() {
                if line.answer().is_err() {
                    break;
                }
                // The pace of the attack, not a wait for anything.
                std::thread::sleep(Duration::from_millis(200));
            }
            begun.elapsed()
        })
    };
    let requests = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let bogus =
        format!("GET /bgb/tunnel/00000001000000000000{}?from=0 HTTP/1.1\r\nHost: a\r\n\r\n", "0".repeat(32));
    let threads = [
        ("says nothing", lasts(Http::connect(http, false), Vec::new(), b"")),
        (
            "slow head",
            lasts(Http::connect(http, false), b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec(), b"X: y\r\n"),
        ),
        (
            "slow body",
            lasts(
                Http::connect(http, false),
                b"POST /bgb/tunnel HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n".to_vec(),
                b"x",
            ),
        ),
        ("asks again and again", lasts(Http::connect(http, false), requests.to_vec(), requests)),
        (
            "asks for a tunnel that there is not",
            lasts(
                Http::connect(http, false),
                bogus.clone().into_bytes(),
                Box::leak(bogus.into_boxed_str()).as_bytes(),
            ),
        ),
        ("goes on after its tunnel has failed", {
            let mut line = Http::connect(http, false);
            line.ask("POST", "/bgb/tunnel", b"x").unwrap();
            let opened = line.wait();
            assert_eq!(opened.status, 201);
            let id = opened.field("Bgb-Tunnel").unwrap().to_owned();
            let again = format!("GET /bgb/tunnel/{id}?from=0&hold=1 HTTP/1.1\r\nHost: a\r\n\r\n");
            lasts(line, again.clone().into_bytes(), Box::leak(again.into_boxed_str()).as_bytes())
        }),
        ("says not even a hello to HTTPS", lasts(Http::connect(https, false), Vec::new(), b"")),
        ("half a hello", lasts(Http::connect(https, false), vec![22, 3, 1, 1, 0, 1, 0, 0, 0xfc], b"")),
        (
            "a hello that drips in",
            lasts(Http::connect(https, false), vec![22, 3, 1, 1, 0, 1, 0, 0, 0xfc], b"x"),
        ),
        ("says nothing in HTTPS", lasts(Http::connect(https, true), Vec::new(), b"")),
        (
            "slow head in HTTPS",
            lasts(Http::connect(https, true), b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec(), b"X: y\r\n"),
        ),
    ];
    for (what, thread) in threads {
        let lasted = thread.join().unwrap();
        assert!(lasted < Duration::from_secs(15), "{what}: it lasted {lasted:?}");
        assert!(lasted > Duration::from_secs(1), "{what}: it lasted {lasted:?}");
    }
    until_equal("connections", SOON, &0, || site.metric(1, "bgb_server_connections"));
    until_equal("handshakes in flight", SOON, &0, || site.metric(1, "bgb_server_handshakes_in_flight"));
    until_equal("tunnels", SOON, &0, || site.metric(1, "bgb_server_tunnels"));
}
