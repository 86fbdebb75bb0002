//! The server as peers see it: raw bytes over real sockets on loopback.

use std::io::Read as _;
use std::sync::atomic::AtomicUsize;

use super::*;

/// No answer may take longer; a test that waits so long fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn options() -> HttpServerOptions {
    HttpServerOptions::new(2, 1_000)
}

/// Answers with what it was asked.
fn echo() -> Handler {
    Arc::new(|request: Request| match request.head.path() {
        "/panic" => panic!("as it was told to"),
        "/missing" => Response::error(404, "There is no such page; see /."),
        "/injected" => Response::text("").with_header("x-name", "a\r\nset-cookie: b"),
        "/none" => Response::text("left out").with_status(204),
        path => {
            let body = String::from_utf8_lossy(&request.body);
            Response::text(format!("{} {path} {:?} {body}", request.head.method, request.head.query()))
                .with_header("x-peer", request.peer.ip().to_string())
        }
    })
}

fn start_with(options: HttpServerOptions, handler: Handler) -> HttpServer {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    HttpServer::start_with(listener, "test", options, handler).unwrap()
}

fn start() -> HttpServer {
    start_with(options(), echo())
}

fn connect(server: &HttpServer) -> TcpStream {
    let stream = TcpStream::connect(server.local_addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn read_to_end(mut stream: &TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer is an end too.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

/// Sends bytes and gives all that comes back until the server closes.
fn exchange(server: &HttpServer, bytes: &[u8]) -> String {
    let mut stream = connect(server);
    stream.write_all(bytes).unwrap();
    read_to_end(&stream)
}

/// Reads until `count` answers are there, on a connection that lives on.
fn read_answers(mut stream: &TcpStream, count: usize, last: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while text.matches("HTTP/1.1 200 OK").count() < count || !text.ends_with(last) {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    text
}

#[test]
fn a_request_is_answered_with_its_length_type_date_and_peer() {
    let server = start();
    let answer = exchange(&server, b"GET /status?full=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "GET /status Some(\"full=1\") ");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for field in
        ["content-type: text/plain; charset=utf-8", "content-length: 27", "x-peer: 127.0.0.1", " GMT"]
    {
        assert!(head.contains(field), "{field} in {head}");
    }
    assert!(head.contains("connection: close"));
}

#[test]
fn errors_are_json_with_a_sentence_and_heads_and_empty_answers_have_no_body() {
    let server = start();
    let answer = exchange(&server, b"GET /missing HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
    assert!(answer.ends_with("{\"error\":\"There is no such page; see /.\"}"), "{answer}");
    let answer = exchange(&server, b"HEAD / HTTP/1.0\r\n\r\n");
    assert!(answer.contains("content-length: 12\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = exchange(&server, b"GET /none HTTP/1.0\r\n\r\n");
    assert!(!answer.contains("content-") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn several_requests_use_one_connection_one_after_the_other_and_ahead_of_their_turn() {
    let server = start();
    let mut stream = connect(&server);
    for number in 0..3 {
        stream.write_all(format!("GET /{number} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).unwrap();
        read_answers(&stream, 1, &format!("GET /{number} None "));
    }
    let pipelined =
        b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbodyGET /b HTTP/1.1\r\nhost: x\r\n\r\n\
        POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nch\r\n4\r\nunks\r\n0\r\n\r\n\
        GET /d HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\nGET /e HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(pipelined).unwrap();
    let answers = read_to_end(&stream);
    let places: Vec<_> = ["POST /a None body", "GET /b None", "POST /c None chunks", "GET /d None"]
        .iter()
        .map(|text| answers.find(text).unwrap_or_else(|| panic!("{text} in {answers}")))
        .collect();
    assert!(places.is_sorted(), "in their order");
    assert!(!answers.contains("/e"), "nothing after the one that closes");
}

#[test]
fn a_request_that_comes_byte_by_byte_is_the_same_request() {
    let server = start();
    let mut stream = connect(&server);
    stream.set_nodelay(true).unwrap();
    for byte in b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok" {
        stream.write_all(&[*byte]).unwrap();
    }
    assert!(read_to_end(&stream).ends_with("POST /slow None ok"));
}

#[test]
fn bad_heads_get_their_status_and_the_connections_end() {
    let server = start();
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(100));
    let cases: [(&[u8], &str); 9] = [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this was TLS", "400"),
        (b"GET / HTTP/1.1\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\nhost: x\n\n", "400"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n", "501"),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", "505"),
        (long.as_bytes(), "431"),
        (many.as_bytes(), "431"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", "400"),
    ];
    for (bytes, status) in cases {
        let answer = exchange(&server, bytes);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
        assert!(answer.contains("connection: close") && answer.contains("{\"error\":"), "{answer}");
    }
    assert!(exchange(&server, b"GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200 OK"), "and goes on");
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_read_and_one_at_the_limit_is_taken() {
    let server = start();
    let post = |length: usize| {
        let mut bytes = format!("POST / HTTP/1.0\r\ncontent-length: {length}\r\n\r\n").into_bytes();
        bytes.extend(std::iter::repeat_n(b'x', length));
        exchange(&server, &bytes)
    };
    assert!(post(1_000).starts_with("HTTP/1.1 200 OK"));
    assert!(post(1_001).starts_with("HTTP/1.1 413 "));
    assert!(post(500_000).starts_with("HTTP/1.1 413 "), "the answer arrives although more was being sent");
    let never_sent = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551615\r\n\r\n";
    assert!(exchange(&server, never_sent).starts_with("HTTP/1.1 413 "));
    let chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nfff\r\n";
    assert!(exchange(&server, chunked).starts_with("HTTP/1.1 413 "));
}

#[test]
fn a_peer_that_waits_for_leave_to_send_its_body_gets_it() {
    let server = start();
    let mut stream = connect(&server);
    stream
        .write_all(
            b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\n",
        )
        .unwrap();
    let mut leave = [0; 25];
    stream.read_exact(&mut leave).unwrap();
    assert_eq!(&leave, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ok").unwrap();
    assert!(read_to_end(&stream).ends_with("POST / None ok"));
}

#[test]
fn a_request_that_does_not_arrive_in_time_gets_a_408_and_silence_gets_nothing() {
    let mut options = options();
    options.read_timeout = Duration::from_millis(200);
    let server = start_with(options, echo());
    for half in [&b"GET / HT"[..], b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf"] {
        assert!(exchange(&server, half).starts_with("HTTP/1.1 408 Request Timeout\r\n"));
    }
    assert_eq!(exchange(&server, b""), "");
}

#[test]
fn a_trickle_does_not_keep_a_request_alive() {
    let mut options = options();
    options.read_timeout = Duration::from_millis(300);
    let server = start_with(options, echo());
    let stream = connect(&server);
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let started = Instant::now();
    let mut answer = Vec::new();
    (&stream).write_all(b"GET /").unwrap();
    while !answer.starts_with(b"HTTP/1.1 408") {
        assert!(started.elapsed() < PATIENCE, "each byte started the time-out anew");
        // The server may have closed by now.
        let _ = (&stream).write_all(b"a");
        let mut buffer = [0; 256];
        if let Ok(count) = (&stream).read(&mut buffer) {
            answer.extend_from_slice(&buffer[..count]);
        }
    }
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_peer_that_does_not_read_loses_its_answer_and_not_our_thread() {
    let mut options = options();
    options.threads = 1;
    options.write_timeout = Duration::from_millis(200);
    let handler: Handler = Arc::new(|request: Request| match request.head.path() {
        "/large" => Response::text("x".repeat(64 * 1024 * 1024)),
        _ => Response::text("small"),
    });
    let server = start_with(options, handler);
    let mut deaf = connect(&server);
    deaf.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert!(exchange(&server, b"GET / HTTP/1.0\r\n\r\n").ends_with("small"));
}

#[test]
fn a_handler_that_panics_costs_its_own_request_only() {
    let server = start();
    let mut stream = connect(&server);
    stream.write_all(b"GET /panic HTTP/1.1\r\nhost: x\r\n\r\nGET /next HTTP/1.0\r\n\r\n").unwrap();
    let answers = read_to_end(&stream);
    assert!(answers.starts_with("HTTP/1.1 500 Internal Server Error\r\n"), "{answers}");
    assert!(answers.ends_with("GET /next None "), "{answers}");
}

#[test]
fn a_header_that_would_split_the_answer_becomes_a_500() {
    let server = start();
    let answer = exchange(&server, b"GET /injected HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 500 ") && !answer.contains("set-cookie"), "{answer}");
}

#[test]
fn connections_beyond_the_limit_get_a_503_and_resting_ones_make_room() {
    let (entered, inside) = bounded::<()>(4);
    let (release, gate) = bounded::<()>(4);
    let handler: Handler = Arc::new(move |_| {
        entered.send(()).unwrap();
        gate.recv_timeout(PATIENCE).unwrap();
        Response::text("served")
    });
    let mut options = options();
    (options.threads, options.waiting_max) = (1, 1);
    let server = start_with(options, handler);
    let ask = |stream: &mut TcpStream| stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();

    let mut first = connect(&server);
    ask(&mut first);
    inside.recv_timeout(PATIENCE).unwrap();
    // The one thread is in the handler; one connection may wait, the next is one too many.
    let mut second = connect(&server);
    ask(&mut second);
    let third = connect(&server);
    let answer = read_to_end(&third);
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1"), "{answer}");

    release.send(()).unwrap();
    assert!(read_answers(&first, 1, "served").contains("200 OK"));
    // The first connection rests now, and gives its thread to the second one long before its time-out.
    inside.recv_timeout(Duration::from_secs(5)).unwrap();
    release.send(()).unwrap();
    assert!(read_answers(&second, 1, "served").contains("200 OK"));
}

#[test]
fn a_stop_closes_resting_connections_ends_the_threads_and_frees_the_port() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let handler: Handler = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Response::text("served")
    });
    let server = start_with(options(), Arc::clone(&handler));
    let address = server.local_addr();
    let mut resting = connect(&server);
    resting.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    read_answers(&resting, 1, "served");

    let started = Instant::now();
    server.stop();
    assert!(started.elapsed() < STOP_WAIT_MAX, "did not have to give up waiting");
    assert_eq!(read_to_end(&resting), "");
    assert!(TcpStream::connect(address).is_err(), "nobody listens there any more");
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    drop(resting);
    assert_eq!(Arc::strong_count(&handler), 1, "every thread has let go of the handler");
}

#[test]
fn json_and_dates_look_as_they_must() {
    let response = Response::json(&serde_json::json!({ "online": 5 }));
    assert_eq!((response.status, response.content_type), (200, "application/json"));
    assert_eq!(response.body, b"{\"online\":5}");
    // RFC 9110's own example has this shape.
    assert_eq!(date().len(), "Sun, 06 Nov 1994 08:49:37 GMT".len());
    let unserialisable = std::collections::BTreeMap::from([((1, 2), 3)]);
    assert_eq!(Response::json(&unserialisable).status, 500);
}
