//! One connection of the small HTTP server, served from its first request to its last.
//!
//! ```text
//!   rest --(first byte)--> head --> body --> handler --> response --> rest
//!     |                      \________\______ fault: its status ______/ \
//!     +-- silence, a stop, or others wait -----------------------------> closed
//! ```
//!
//! It owns the bytes that came and are not used yet: a request that was sent ahead of its turn waits there.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bgb_http::{BodyLength, ChunkDecoder, Decoded, RequestHead};
use crossbeam_channel::Receiver;

use super::{Deadline, Handler, HttpServerOptions, Persistence, Request, Response};

/// Bytes read at once: a whole request of ours and a part of a long body.
const READ_BYTES: usize = 8 * 1024;

/// How often a connection at rest looks whether the server stops or others wait. At most `threads`
/// connections rest, for 10 s each, so that this costs nothing to speak of.
const REST_LOOK: Duration = Duration::from_millis(100);

/// After a fault, what the peer still sends is read and forgotten for so long and so much, so that the
/// kernel does not reset the connection before the answer was read (RFC 9112 section 9.6).
const LINGER_TIME: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// One serving thread's means.
pub(super) struct Worker {
    pub(super) waiting: Receiver<TcpStream>,
    pub(super) handler: Handler,
    pub(super) options: HttpServerOptions,
    pub(super) stopping: Arc<AtomicBool>,
}

impl Worker {
    /// Serves one connection after the other, until the accepting thread has ended.
    pub(super) fn run(&self) {
        while let Ok(stream) = self.waiting.recv() {
            if self.is_stopping() {
                continue;
            }
            let Ok(peer) = stream.peer_addr() else { continue };
            let mut connection = Connection { worker: self, stream, peer, unused: Vec::new() };
            if let Err(error) = connection.serve() {
                tracing::debug!(%peer, %error, "an HTTP connection ended");
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

struct Connection<'a> {
    worker: &'a Worker,
    stream: TcpStream,
    peer: SocketAddr,
    /// What came and is not used yet.
    unused: Vec<u8>,
}

/// Why there is no request.
enum NoRequest {
    /// The peer has closed, or rested too long, or the server wants its thread: nothing is owed.
    Over,
    /// The peer did something wrong: this is the answer.
    Fault(Response),
    /// The connection broke.
    Broken(io::Error),
}

impl From<io::Error> for NoRequest {
    fn from(error: io::Error) -> NoRequest {
        match error.kind() {
            io::ErrorKind::TimedOut => NoRequest::Fault(Response::error(
                408,
                "The request did not arrive in time; send it again without a pause.",
            )),
            _ => NoRequest::Broken(error),
        }
    }
}

impl Connection<'_> {
    fn serve(&mut self) -> io::Result<()> {
        // Responses are written whole; waiting to fill a segment would only delay them.
        self.stream.set_nodelay(true)?;
        loop {
            let request = match self.next_request() {
                Ok(request) => request,
                Err(NoRequest::Over) => return Ok(()),
                Err(NoRequest::Broken(error)) => return Err(error),
                Err(NoRequest::Fault(response)) => {
                    tracing::debug!(peer = %self.peer, status = response.status, "an HTTP request was refused");
                    self.send(&response, "GET", Persistence::Close)?;
                    return self.linger();
                }
            };
            let method = request.head.method.clone();
            let persistence = if request.head.keep_alive() && !self.worker.is_stopping() {
                Persistence::KeepAlive
            } else {
                Persistence::Close
            };
            let response = self.answer(request);
            self.send(&response, &method, persistence)?;
            if persistence == Persistence::Close {
                return self.linger();
            }
        }
    }

    /// Calls the handler; its panic is a 500 of this request.
    fn answer(&self, request: Request) -> Response {
        let target = format!("{} {}", request.head.method, request.head.path());
        // Unwind safe: what the handler shares is its own to keep sound, behind locks that do not poison.
        catch_unwind(AssertUnwindSafe(|| (self.worker.handler)(request))).unwrap_or_else(|_| {
            tracing::error!(request = target, "the handler of an HTTP request panicked");
            Response::error(500, "The server made a mistake with this request; its log says more.")
        })
    }

    fn next_request(&mut self) -> Result<Request, NoRequest> {
        self.rest()?;
        let deadline = Deadline::after(self.worker.options.read_timeout);
        let head = self.read_head(deadline)?;
        let body = self.read_body(&head, deadline)?;
        Ok(Request { head, body, peer: self.peer })
    }

    /// Waits for the first byte of a request.
    fn rest(&mut self) -> Result<(), NoRequest> {
        let deadline = Deadline::after(self.worker.options.read_timeout);
        while self.unused.is_empty() {
            // Silence is no fault: there is no request to answer with a 408.
            let Ok(left) = deadline.left() else { return Err(NoRequest::Over) };
            match self.read_within(left.min(REST_LOOK)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    if self.worker.is_stopping() || !self.worker.waiting.is_empty() {
                        return Err(NoRequest::Over);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(NoRequest::Over),
                Err(error) => return Err(NoRequest::Broken(error)),
            }
        }
        Ok(())
    }

    fn read_head(&mut self, deadline: Deadline) -> Result<RequestHead, NoRequest> {
        loop {
            match RequestHead::decode(&self.unused) {
                Ok(Decoded::Complete { head, consumed }) => {
                    self.unused.drain(..consumed);
                    return Ok(head);
                }
                Ok(Decoded::Partial) => self.read_within(deadline.left()?)?,
                Err(error) => {
                    return Err(NoRequest::Fault(Response::error(
                        error.status(),
                        format!("Bad request: {error}."),
                    )));
                }
            }
        }
    }

    fn read_body(&mut self, head: &RequestHead, deadline: Deadline) -> Result<Vec<u8>, NoRequest> {
        let length = match BodyLength::of_request(head) {
            Ok(length) => length,
            Err(error) => {
                return Err(NoRequest::Fault(Response::error(
                    error.status(),
                    format!("Bad request: {error}."),
                )));
            }
        };
        if let BodyLength::Length(bytes) = length
            && bytes > self.worker.options.body_bytes_max as u64
        {
            return Err(NoRequest::Fault(self.body_too_long()));
        }
        if length != BodyLength::None && head.expects_continue() && self.unused.is_empty() {
            self.write_whole(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        match length {
            BodyLength::None => Ok(Vec::new()),
            BodyLength::Length(bytes) => self.read_counted(bytes, deadline),
            BodyLength::Chunked => self.read_chunked(deadline),
            // Of responses only; a request that says nothing of its length has no body.
            BodyLength::UntilClose => Ok(Vec::new()),
        }
    }

    fn read_counted(&mut self, bytes: u64, deadline: Deadline) -> Result<Vec<u8>, NoRequest> {
        let bytes = usize::try_from(bytes).map_err(|_| NoRequest::Fault(self.body_too_long()))?;
        while self.unused.len() < bytes {
            self.read_within(deadline.left()?)?;
        }
        let rest = self.unused.split_off(bytes);
        Ok(std::mem::replace(&mut self.unused, rest))
    }

    fn read_chunked(&mut self, deadline: Deadline) -> Result<Vec<u8>, NoRequest> {
        let mut decoder = ChunkDecoder::new(self.worker.options.body_bytes_max as u64);
        let mut body = Vec::new();
        loop {
            match decoder.decode(&self.unused, &mut body) {
                Ok(progress) => {
                    self.unused.drain(..progress.consumed);
                    if progress.is_done {
                        return Ok(body);
                    }
                }
                Err(bgb_http::ChunkError::TooLarge) => return Err(NoRequest::Fault(self.body_too_long())),
                Err(error) => {
                    return Err(NoRequest::Fault(Response::error(
                        error.status(),
                        format!("Bad request: {error}."),
                    )));
                }
            }
            self.read_within(deadline.left()?)?;
        }
    }

    fn body_too_long(&self) -> Response {
        Response::error(
            413,
            format!("The request's body is longer than {} bytes.", self.worker.options.body_bytes_max),
        )
    }

    /// Reads what is there, or waits for it: `TimedOut` after `timeout`, `UnexpectedEof` at the end.
    fn read_within(&mut self, timeout: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout))?;
        let mut buffer = [0; READ_BYTES];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.unused.extend_from_slice(&buffer[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A socket's time-out comes as EAGAIN on Linux.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, response: &Response, method: &str, persistence: Persistence) -> io::Result<()> {
        let bytes = response.encode(method, persistence).or_else(|error| {
            tracing::error!(%error, "an HTTP answer cannot be sent as it is");
            Response::error(500, "The answer could not be written; the server's log says why.")
                .encode(method, persistence)
        });
        self.write_whole(&bytes.map_err(io::Error::other)?)
    }

    /// Writes all of it before the write time-out, however slowly the peer takes it.
    fn write_whole(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = Deadline::after(self.worker.options.write_timeout);
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(deadline.left()?))?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends the connection so that the peer can still read the answer.
    fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        let deadline = Deadline::after(LINGER_TIME);
        let mut lingered_bytes = 0;
        while let Ok(left) = deadline.left() {
            self.unused.clear();
            if lingered_bytes > LINGER_BYTES_MAX || self.read_within(left).is_err() {
                break;
            }
            lingered_bytes += self.unused.len();
        }
        Ok(())
    }
}
