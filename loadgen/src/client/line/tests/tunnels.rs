//! A server of tunnels, with faults.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};

use bgb_http::{BodyLength, Decoded, RequestHead};

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123";

/// What becomes of a POST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Good,
    /// Answered, and the connection ends without a word some time later.
    AnsweredAndClosed,
    /// The same, and the answer says so.
    AnsweredAndClosing,
    /// Taken, and the connection ends instead of an answer.
    Lost,
    /// There is no room for it at present.
    Busy,
    /// There is no such tunnel.
    Gone,
}

/// The one tunnel: it gives back what it is told.
#[derive(Default)]
struct Server {
    up: Mutex<Up>,
    grown: Condvar,
}

#[derive(Default)]
struct Up {
    bytes: Vec<u8>,
    posts: usize,
    courses: VecDeque<Course>,
}

impl Server {
    fn with(courses: impl IntoIterator<Item = Course>) -> Arc<Self> {
        let up = Up { courses: courses.into_iter().collect(), ..Up::default() };
        Arc::new(Self { up: Mutex::new(up), grown: Condvar::new() })
    }

    fn listen(self: &Arc<Self>, way: Way) -> SocketAddr {
        let server = Arc::clone(self);
        serve(way, move |stream| server.serve(stream))
    }

    fn posts(&self) -> usize {
        self.up.lock().unwrap().posts
    }

    fn serve(&self, mut stream: impl Stream) {
        while let Some((head, body)) = request(&mut stream) {
            let (answer, course) = match head.method.as_str() {
                "POST" => self.post(&head, &body),
                _ => self.get(&head),
            };
            if course == Course::Lost || stream.write_all(&answer).is_err() {
                return;
            }
            if matches!(course, Course::AnsweredAndClosed | Course::AnsweredAndClosing) {
                return;
            }
        }
    }

    fn post(&self, head: &RequestHead, body: &[u8]) -> (Vec<u8>, Course) {
        let mut up = self.up.lock().unwrap();
        up.posts += 1;
        let course = up.courses.pop_front().unwrap_or(Course::Good);
        let status = match (course, head.path() == "/bgb/tunnel") {
            (Course::Busy, _) => "503 Busy\r\nRetry-After: 1",
            (Course::Gone, _) => "404 Gone",
            (_, true) => "201 Created\r\nBgb-Tunnel: 0123456789abcdef0123456789abcdef0123456789abcdef0123",
            (_, false) => "204 Taken",
        };
        if !matches!(course, Course::Busy | Course::Gone) {
            let from = number(head, "from").unwrap_or(0);
            assert!(from <= up.bytes.len(), "bytes were left out");
            let known = up.bytes.len() - from;
            up.bytes.extend_from_slice(&body[known.min(body.len())..]);
            self.grown.notify_all();
        }
        let (received, close) = (up.bytes.len(), course == Course::AnsweredAndClosing);
        let close = if close { "Connection: close\r\n" } else { "" };
        let length = if status.starts_with("204") { "" } else { "Content-Length: 0\r\n" };
        let answer = format!("HTTP/1.1 {status}\r\nBgb-Received: {received}\r\n{length}{close}\r\n");
        (answer.into_bytes(), course)
    }

    fn get(&self, head: &RequestHead) -> (Vec<u8>, Course) {
        assert!(head.path().ends_with(ID) && number(head, "hold") == Some(60), "{head:?}");
        let from = number(head, "from").unwrap();
        // Held for as long as a test takes.
        let up = self.up.lock().unwrap();
        let (up, _) = self.grown.wait_timeout_while(up, SOON, |up| up.bytes.len() <= from).unwrap();
        let (bytes, received) = (&up.bytes[from..], up.bytes.len());
        let bytes = &bytes[..bytes.len().min(10_000)];
        let head = format!(
            "HTTP/1.1 200 OK\r\nBgb-From: {from}\r\nBgb-Received: {received}\r\nContent-Length: {}\r\n\r\n",
            bytes.len()
        );
        ([head.as_bytes(), bytes].concat(), Course::Good)
    }
}

fn number(head: &RequestHead, name: &str) -> Option<usize> {
    head.query()?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// The next request on a connection, if there is one.
fn request(stream: &mut impl Stream) -> Option<(RequestHead, Vec<u8>)> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.extend_from_slice(&byte);
    }
    let Decoded::Complete { head, .. } = RequestHead::decode(&head).unwrap() else { panic!("no head") };
    let BodyLength::Length(length) = BodyLength::of_request(&head).unwrap() else {
        return Some((head, Vec::new()));
    };
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).ok()?;
    Some((head, body))
}

#[test]
fn a_tunnel_carries_bytes_in_requests_and_answers() {
    for way in Way::ALL.into_iter().filter(|way| way.road == Road::LongPoll) {
        let mut bench = Bench::connected(way, Server::default_at(way));
        for count in [1, 100, 9_999, 70_000] {
            bench.echo(&bytes(count));
            bench.line.rest().unwrap();
        }
        assert!(!bench.line.ends_with_its_sockets());
    }
}

impl Server {
    fn default_at(way: Way) -> SocketAddr {
        Self::with([]).listen(way)
    }
}

#[test]
fn what_is_lost_on_a_connection_that_was_kept_is_made_again() {
    for way in Way::ALL.into_iter().filter(|way| way.road == Road::LongPoll) {
        let courses =
            [Course::Good, Course::Lost, Course::AnsweredAndClosed, Course::AnsweredAndClosing, Course::Good];
        let server = Server::with(courses);
        let mut bench = Bench::connected(way, server.listen(way));
        for number in 0..6 {
            bench.echo(&bytes(1_000 + number));
        }
        // The one that was lost is made twice, unless a GET's answer has told before that it was taken.
        let posts = server.posts();
        assert!(matches!(posts, 6 | 7), "{posts} POSTs");
    }
}

#[test]
fn whoever_loses_the_first_request_of_a_connection_is_not_there() {
    let [.., way, _] = Way::ALL;
    let mut bench = Bench::connected(way, Server::with([Course::Lost]).listen(way));
    bench.say(b"hello");
    assert_eq!(bench.run_until(|_| false).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_lane_pauses_when_the_server_asks_for_it_until_it_is_told_to_go_on() {
    let [.., way, _] = Way::ALL;
    let server = Server::with([Course::Good, Course::Busy]);
    let mut bench = Bench::connected(way, server.listen(way));
    bench.echo(b"hello");
    bench.say(b"somebody there?");
    let mut pauses = Default::default();
    bench
        .run_until(|bench| {
            pauses = bench.line.take_pauses();
            pauses != [None; SOCKETS_MAX]
        })
        .unwrap();
    assert_eq!((pauses, bench.line.take_pauses()), ([Some(1), None], [None; SOCKETS_MAX]));
    bench.look().unwrap();
    assert_eq!(server.posts(), 2);
    bench.heard.clear();
    bench.line.go_on(0);
    bench.look().unwrap();
    bench.run_until(|bench| bench.heard == b"somebody there?").unwrap();
    assert_eq!(server.posts(), 3);
}

#[test]
fn a_tunnel_that_is_no_longer_there_ends_the_line_as_a_connection_ends() {
    let [.., way, _] = Way::ALL;
    let mut bench = Bench::connected(way, Server::with([Course::Good, Course::Gone]).listen(way));
    bench.echo(b"hello");
    bench.say(b"somebody there?");
    assert_eq!(bench.run_until(|_| false).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
}

#[test]
fn an_answer_that_no_server_of_ours_gives_is_an_error() {
    let [.., way, _] = Way::ALL;
    for said in [
        "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\nand more",
        "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n\r\n",
    ] {
        let server = serve(way, |mut stream| {
            request(&mut stream);
            stream.write_all(said.as_bytes()).unwrap();
            request(&mut stream);
        });
        let mut bench = Bench::connected(way, server);
        bench.say(b"hello");
        assert_eq!(bench.run_until(|_| false).unwrap_err().kind(), io::ErrorKind::InvalidData, "{said}");
    }
}
