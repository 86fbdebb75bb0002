//! A small HTTP/1.1 server on blocking sockets, for loopback: health and metrics, the manager's API.
//!
//! It owns one thread that accepts and a fixed number that serve, each one connection at a time from its
//! first request to its last; it knows neither paths nor who may ask: that is the handler's. It is no
//! server for the fleet: the notification server's own roads live in its reactors.
//!
//! Laws: every wait has an end (a request has a deadline as a whole, not per read); everything is bounded
//! (head, body, connections); a connection at rest gives its thread up when others wait for one; what a
//! peer does wrong gets the status for it and the connection's end; a handler that panics costs its own
//! request and no more.

mod connection;
#[cfg(test)]
mod tests;

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bgb_http::{HeaderError, RequestHead, ResponseHead};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde::Serialize;

/// What answers the requests: called on several threads at once.
pub type Handler = Arc<dyn Fn(Request) -> Response + Send + Sync>;

/// How long [`HttpServer::stop`] waits for its threads: a request's time-out is 10 s, and whoever stops a
/// daemon (systemd: 90 s, a person: less) should not wait for a handler that hangs.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);

/// After accept failed for want of descriptors or memory: long enough not to spin, short enough not to be felt.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);

/// Limits of an [`HttpServer`].
#[derive(Clone, Copy, Debug)]
pub struct HttpServerOptions {
    /// Threads that serve, hence connections served at the same time; at least 1.
    pub threads: usize,
    /// Connections that may wait for a thread; those beyond are answered 503.
    pub waiting_max: usize,
    /// The longest request body, in bytes; longer ones are answered 413.
    pub body_bytes_max: usize,
    /// How long a request may take to arrive, from its first byte to its last, and how long a connection
    /// may rest between two requests.
    pub read_timeout: Duration,
    /// How long a response may take to leave.
    pub write_timeout: Duration,
}

impl HttpServerOptions {
    /// The usual time-outs, 10 s each: on loopback a request takes milliseconds, and a person with telnet
    /// some seconds. Four connections may wait per thread.
    pub fn new(threads: usize, body_bytes_max: usize) -> HttpServerOptions {
        HttpServerOptions {
            threads: threads.max(1),
            waiting_max: threads.max(1) * 4,
            body_bytes_max,
            read_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
        }
    }
}

/// A running server; it stops when it is dropped.
pub struct HttpServer {
    local_addr: SocketAddr,
    listener: Arc<TcpListener>,
    stopping: Arc<AtomicBool>,
    /// Nothing is sent on it: every thread holds a sender, so that it disconnects when the last has ended.
    ended: Receiver<()>,
}

impl HttpServer {
    /// Starts to serve on `listener` with the usual time-outs. `name` begins the threads' names.
    ///
    /// # Errors
    /// When the listener has no address or the system gives no thread.
    pub fn start(
        listener: TcpListener,
        name: &str,
        threads: usize,
        body_bytes_max: usize,
        handler: Handler,
    ) -> io::Result<HttpServer> {
        HttpServer::start_with(listener, name, HttpServerOptions::new(threads, body_bytes_max), handler)
    }

    /// Starts to serve with limits of the caller's own.
    ///
    /// # Errors
    /// As [`HttpServer::start`].
    pub fn start_with(
        listener: TcpListener,
        name: &str,
        options: HttpServerOptions,
        handler: Handler,
    ) -> io::Result<HttpServer> {
        let local_addr = listener.local_addr()?;
        let (waiting_in, waiting_out) = bounded(options.waiting_max);
        let (alive, ended) = bounded(0);
        let server = HttpServer { local_addr, listener: Arc::new(listener), stopping: Arc::default(), ended };

        let worker = Arc::new(connection::Worker {
            waiting: waiting_out,
            handler,
            options,
            stopping: Arc::clone(&server.stopping),
        });
        for number in 0..options.threads.max(1) {
            let worker = Arc::clone(&worker);
            let alive = alive.clone();
            std::thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                worker.run();
                // Before it is told that the thread has ended, it has let go of the handler.
                drop(worker);
                drop(alive);
            })?;
        }
        let acceptor = Acceptor {
            listener: Arc::clone(&server.listener),
            waiting: waiting_in,
            stopping: Arc::clone(&server.stopping),
        };
        std::thread::Builder::new().name(format!("{name}-accept")).spawn(move || {
            acceptor.run();
            drop(acceptor);
            drop(alive);
        })?;
        Ok(server)
    }

    /// Where it listens, with the port that it really has.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops: no new connection, resting ones are closed, requests under way are answered. Waits 5 s at most.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the accepting thread: Linux lets a listening socket be shut down, and accept then fails.
        if let Err(error) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            tracing::debug!(%error, "the HTTP listener was down before it was stopped");
        }
        if let Err(crossbeam_channel::RecvTimeoutError::Timeout) = self.ended.recv_timeout(STOP_WAIT_MAX) {
            tracing::warn!(address = %self.local_addr, "HTTP requests were still under way at the stop");
        }
    }
}

/// One request, whole.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its head.
    pub head: RequestHead,
    /// Its body; empty if it had none.
    pub body: Vec<u8>,
    /// Who sent it.
    pub peer: SocketAddr,
}

/// The answer to a request. Content-Length, Date and Connection are added when it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 200 to 599.
    pub status: u16,
    /// Content-Type; with an empty one the field is left out.
    pub content_type: &'static str,
    /// The body. Not sent in answer to HEAD, and with 204 and 304.
    pub body: Vec<u8>,
    /// Further fields.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Response {
    /// 200 with plain text.
    pub fn text(text: impl Into<String>) -> Response {
        Response {
            status: 200,
            content_type: "text/plain; charset=utf-8",
            body: text.into().into_bytes(),
            headers: Vec::new(),
        }
    }

    /// 200 with a value as JSON; 500 if it cannot be said in JSON.
    pub fn json(value: &impl Serialize) -> Response {
        match serde_json::to_vec(value) {
            Ok(body) => Response { status: 200, content_type: "application/json", body, headers: Vec::new() },
            Err(error) => {
                tracing::error!(%error, "an answer cannot be written as JSON");
                Response::error(500, "The answer could not be written as JSON; the log says why.")
            }
        }
    }

    /// An error as `{"error": "…"}`; the sentence says what happened and what to do next.
    pub fn error(status: u16, sentence: impl Into<String>) -> Response {
        let sentence: String = sentence.into();
        Response::json(&serde_json::json!({ "error": sentence })).with_status(status)
    }

    /// The same with another status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Response {
        self.status = status;
        self
    }

    /// The same with one more field. A value with a line end in it makes the answer a 500 when it is sent.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Response {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The bytes of the whole message.
    fn encode(&self, request_method: &str, persistence: Persistence) -> Result<Vec<u8>, HeaderError> {
        let has_body = !matches!(self.status, 100..=199 | 204 | 304);
        let mut head =
            ResponseHead { status: self.status, headers: self.headers.clone() }.with("date", date());
        if !self.content_type.is_empty() && has_body {
            head = head.with("content-type", self.content_type);
        }
        if has_body {
            head = head.with("content-length", self.body.len().to_string());
        }
        if persistence == Persistence::Close {
            head = head.with("connection", "close");
        }
        let mut bytes = Vec::with_capacity(256 + self.body.len());
        head.encode(&mut bytes)?;
        if has_body && request_method != "HEAD" {
            bytes.extend_from_slice(&self.body);
        }
        Ok(bytes)
    }
}

/// Whether a connection lives on after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Persistence {
    KeepAlive,
    Close,
}

/// Now, as RFC 9110 section 5.6.7 wants it.
pub fn date() -> String {
    jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

struct Acceptor {
    listener: Arc<TcpListener>,
    waiting: Sender<TcpStream>,
    stopping: Arc<AtomicBool>,
}

impl Acceptor {
    /// Accepts until the server stops; the serving threads end when this one has let go of their channel.
    fn run(&self) {
        let mut is_failing = false;
        loop {
            let accepted = self.listener.accept();
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            let was_failing = std::mem::replace(&mut is_failing, accepted.is_err());
            match accepted {
                Ok((stream, _)) => match self.waiting.try_send(stream) {
                    Ok(()) => {}
                    Err(TrySendError::Full(stream)) => refuse(&stream),
                    Err(TrySendError::Disconnected(_)) => return,
                },
                Err(error) => {
                    // Once per spell: descriptors can be short for hours.
                    if !was_failing {
                        tracing::warn!(%error, "the HTTP listener cannot accept connections for now");
                    }
                    std::thread::sleep(ACCEPT_BACK_OFF);
                }
            }
        }
    }
}

/// Answers 503 without ever waiting for the peer.
fn refuse(stream: &TcpStream) {
    tracing::debug!("an HTTP connection was refused: all threads are busy");
    let response = Response::error(503, "All connections of this server are in use; try again in a second.")
        .with_header("retry-after", "1");
    let Ok(bytes) = response.encode("GET", Persistence::Close) else { return };
    if stream.set_nonblocking(true).is_ok() {
        let mut out = stream;
        // The peer may be gone; it is being refused anyhow.
        let _ = out.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
}

/// A moment by which something must be over.
#[derive(Clone, Copy, Debug)]
struct Deadline(Instant);

impl Deadline {
    fn after(duration: Duration) -> Deadline {
        Deadline(Instant::now() + duration)
    }

    /// What is left of it; `TimedOut` when that is nothing.
    fn left(self) -> io::Result<Duration> {
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}
