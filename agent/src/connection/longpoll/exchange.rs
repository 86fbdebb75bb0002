//! One lane of a long-poll: request and answer, one after the other, over a connection that is kept.
//!
//! ```text
//!   Rest --begin--> Connecting --it stands--> Head --head whole--> Body --body whole--> Rest
//!      \                \                   ^   \                    \
//!       +-- over a connection that stands --+     +--------------------+--> an error: the connection is dropped, the request is lost
//! ```

use std::io::{self, Read as _};
use std::time::{Duration, Instant};

use bgb_http::tunnel::client::DOWN_BYTES_MAX;
use bgb_http::{BodyLength, ChunkDecoder, ResponseHead};

use super::opening::Opening;
use crate::connection::road::{RoadFault, Waits};
use crate::connection::stream::Stream;
use crate::connection::way::{Interim, READ_BYTES, Way, take_head};

/// A lane.
#[derive(Default)]
pub(super) struct Exchange {
    stream: Option<Stream>,
    /// Of the request, not taken by the stream.
    waiting: Vec<u8>,
    heard: Vec<u8>,
    course: Course,
}

#[derive(Default)]
enum Course {
    #[default]
    Rest,
    /// The request waits for its connection.
    Connecting {
        opening: Opening,
        method: &'static str,
        limit: Duration,
    },
    Head(Asked, Interim),
    Body {
        asked: Asked,
        head: ResponseHead,
        left: Left,
        body: Vec<u8>,
    },
}

/// The request under way.
#[derive(Clone, Copy)]
struct Asked {
    method: &'static str,
    at: Instant,
    /// When its answer is overdue.
    by: Instant,
}

/// What belongs to the body still.
enum Left {
    Bytes(usize),
    Chunks(Box<ChunkDecoder>),
    UntilClose,
}

/// An answer, and how long it took.
pub(super) struct Answer {
    pub(super) head: ResponseHead,
    pub(super) body: Vec<u8>,
    pub(super) took: Duration,
}

impl Exchange {
    /// Over a connection that was made.
    pub(super) fn over(stream: Stream) -> Self {
        Self { stream: Some(stream), ..Self::default() }
    }

    /// Whether no request is under way.
    pub(super) fn is_at_rest(&self) -> bool {
        matches!(self.course, Course::Rest)
    }

    /// When the request under way was made, if there is one that has a connection.
    pub(super) fn asked_at(&self) -> Option<Instant> {
        self.asked().map(|asked| asked.at)
    }

    fn asked(&self) -> Option<Asked> {
        match &self.course {
            Course::Rest | Course::Connecting { .. } => None,
            Course::Head(asked, _) | Course::Body { asked, .. } => Some(*asked),
        }
    }

    /// Whether there is a connection for the next request: one that the peer has closed meanwhile is none.
    pub(super) fn is_standing(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        // Neither its end nor anything that was not asked for.
        let is_silent = stream.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        if !is_silent {
            self.drop_connection();
        }
        is_silent
    }

    /// Makes a request once there is a connection along `way`; its answer is overdue after `limit` from then on.
    ///
    /// # Errors
    /// Why that cannot even be begun.
    pub(super) fn connect_and_begin(
        &mut self,
        way: &Way,
        method: &'static str,
        request: Vec<u8>,
        limit: Duration,
    ) -> Result<(), RoadFault> {
        let course = Course::Connecting { opening: Opening::begin(way)?, method, limit };
        *self = Self { waiting: request, course, ..Self::default() };
        Ok(())
    }

    /// Makes a request over the connection that stands; its answer is overdue after `limit`.
    pub(super) fn begin(&mut self, method: &'static str, request: Vec<u8>, now: Instant, limit: Duration) {
        self.waiting = request;
        self.course = Course::Head(Asked { method, at: now, by: now + limit }, Interim::default());
    }

    /// Sends and hears what can be; the answer when it is whole.
    ///
    /// # Errors
    /// Why the request is lost; the connection is dropped.
    pub(super) fn go_on(&mut self, now: Instant) -> Result<Option<Answer>, RoadFault> {
        self.take_opened(now)?;
        let Some(asked) = self.asked() else { return Ok(None) };
        let gone_on = self.try_go_on();
        match gone_on {
            Ok(None) if now >= asked.by => {
                self.drop_connection();
                let text = format!("a {} was not answered in time", asked.method);
                Err(io::Error::new(io::ErrorKind::TimedOut, text).into())
            }
            Ok(None) => Ok(None),
            Ok(Some((head, body))) => {
                let took = now.saturating_duration_since(asked.at);
                Ok(Some(Answer { head, body, took }))
            }
            Err(fault) => {
                self.drop_connection();
                Err(fault)
            }
        }
    }

    /// Makes the request that has waited for a connection, if that is there now.
    fn take_opened(&mut self, now: Instant) -> Result<(), RoadFault> {
        let Course::Connecting { opening, method, limit } = &self.course else { return Ok(()) };
        let Some(made) = opening.take() else { return Ok(()) };
        let (method, limit, request) = (*method, *limit, std::mem::take(&mut self.waiting));
        self.drop_connection();
        *self = Self::over(made?);
        self.begin(method, request, now, limit);
        Ok(())
    }

    /// Adds what there is to wait for.
    pub(super) fn waits<'a>(&'a self, waits: &mut Waits<'a>) {
        if let Course::Connecting { opening, .. } = &self.course {
            opening.waits(waits);
        }
        if let (Some(stream), Some(asked)) = (&self.stream, self.asked()) {
            stream.waits(!self.waiting.is_empty(), waits);
            waits.until(asked.by);
        }
    }

    fn drop_connection(&mut self) {
        *self = Self::default();
    }

    fn try_go_on(&mut self) -> Result<Option<(ResponseHead, Vec<u8>)>, RoadFault> {
        loop {
            if let Some(answer) = self.decode()? {
                return Ok(Some(answer));
            }
            let Some(stream) = &mut self.stream else {
                return Err(RoadFault::new("a request has no connection"));
            };
            // An answer may come before all of the request has gone, and the peer's end then says less than that.
            let pushed = stream.push(&mut self.waiting);
            let mut bytes = [0; READ_BYTES];
            match stream.read(&mut bytes) {
                Ok(0) => return self.on_end().map(Some),
                Ok(count) => self.heard.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    pushed?;
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The peer has closed the connection: the end of a body that lasts until then, and of nothing else.
    fn on_end(&mut self) -> Result<(ResponseHead, Vec<u8>), RoadFault> {
        match std::mem::take(&mut self.course) {
            Course::Body { head, body, left: Left::UntilClose, .. } => {
                self.drop_connection();
                Ok((head, body))
            }
            _ => {
                let text = "the connection was closed before an answer was whole";
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, text).into())
            }
        }
    }

    /// Takes what was heard apart.
    fn decode(&mut self) -> Result<Option<(ResponseHead, Vec<u8>)>, RoadFault> {
        loop {
            match &mut self.course {
                Course::Rest | Course::Connecting { .. } => return Ok(None),
                Course::Head(asked, interim) => {
                    let asked = *asked;
                    let Some(head) = take_head(&mut self.heard)? else { return Ok(None) };
                    if head.status < 200 {
                        interim.count()?;
                        continue;
                    }
                    let left = left(&head, asked.method)?;
                    self.course = Course::Body { asked, head, left, body: Vec::new() };
                }
                Course::Body { left, body, .. } => {
                    let is_whole = match left {
                        Left::Bytes(left) => {
                            let count = self.heard.len().min(*left);
                            body.extend(self.heard.drain(..count));
                            *left -= count;
                            *left == 0
                        }
                        Left::Chunks(decoder) => {
                            let progress = decoder.decode(&self.heard, body);
                            let progress = progress.map_err(|error| RoadFault::new(error.to_string()))?;
                            self.heard.drain(..progress.consumed);
                            progress.is_done
                        }
                        Left::UntilClose => {
                            body.append(&mut self.heard);
                            false
                        }
                    };
                    if body.len() > DOWN_BYTES_MAX {
                        return Ok(self.cut_short());
                    }
                    return Ok(if is_whole { self.finish() } else { None });
                }
            }
        }
    }

    /// The answer is longer than any of a tunnel's, a page of somebody between: its head says all that there is to learn.
    fn cut_short(&mut self) -> Option<(ResponseHead, Vec<u8>)> {
        let Course::Body { head, mut body, .. } = std::mem::take(&mut self.course) else { return None };
        body.truncate(DOWN_BYTES_MAX + 1);
        self.drop_connection();
        Some((head, body))
    }

    /// The answer is whole: the connection is kept for the next one, if it may be.
    fn finish(&mut self) -> Option<(ResponseHead, Vec<u8>)> {
        let Course::Body { head, body, .. } = std::mem::take(&mut self.course) else { return None };
        let is_last =
            head.header_lists("connection", "close") || head.header_lists("proxy-connection", "close");
        // Half a request or bytes that nobody asked for: what would follow is not what it seems.
        if is_last || !self.waiting.is_empty() || !self.heard.is_empty() {
            self.drop_connection();
        }
        (self.waiting, self.heard) = (Vec::new(), Vec::new());
        Some((head, body))
    }
}

fn left(head: &ResponseHead, method: &str) -> Result<Left, RoadFault> {
    let length = BodyLength::of_response(head, method).map_err(|error| RoadFault::new(error.to_string()))?;
    Ok(match length {
        BodyLength::None => Left::Bytes(0),
        // How long it may be is judged by what has come.
        BodyLength::Length(bytes) => Left::Bytes(usize::try_from(bytes).unwrap_or(usize::MAX)),
        BodyLength::Chunked => Left::Chunks(Box::new(ChunkDecoder::new(u64::MAX))),
        BodyLength::UntilClose => Left::UntilClose,
    })
}
