//! What stands between a socket's bytes and those of a channel: bytes in, bytes out.
//!
//! ```text
//!   TCP        socket ------------------------------------------ channel
//!   WebSocket  socket -- [outer TLS] -- frames ----------------- channel
//!   long-poll  socket -- [outer TLS] -- requests -- (a tunnel) -- channel        any socket, any number of them
//! ```
//!
//! What a socket speaks is settled step by step: a proxy says whose connection it is, HTTPS shakes hands, a request asks for a WebSocket. The steps are the
//! reactor's (`web.rs`, `tunnels.rs`); here is what is kept between two of them.

use bgb_http::requests::Requests;
use bgb_http::tunnel::TunnelId;
use bgb_http::websocket::{self, Control, Decoder, Side};
use bgb_http::{RequestHead, ResponseHead};
use bgb_hub::{CloseReason, Tick};

use super::entrance::Entrance;
use super::layer::Layer;
use super::passed::Standing;
use crate::metrics::RoadName;

/// Bytes of a request's body at the most (docs/protocol.md, 13.2).
const BODY_BYTES_MAX: u64 = 256 * 1024;

/// The code of a close frame when nothing is wrong (RFC 6455, 7.4.1).
const NORMAL: u16 = 1000;

/// A header of a client's frame: two bytes, eight of length, four of mask.
const HEADER_BYTES_MAX: usize = 14;
/// Bytes of frames that hold nothing before the peer is known, as much as a handshake may have: 1,365 empty frames, where an agent sends none.
const IDLE_BYTES_MAX: u32 = 8 * 1024;

/// See the module.
#[derive(Debug)]
pub enum Transport {
    /// The bytes are the channel's.
    Raw,
    /// A proxy is to say whose connection it is; what it has said of that.
    Introduced(Entrance, Box<Vec<u8>>),
    /// Requests.
    Web(Box<Web>),
    /// Frames.
    WebSocket(Box<WebSocket>),
}

/// A socket on which HTTP is spoken.
#[derive(Debug)]
pub struct Web {
    /// The outer TLS.
    pub outer: Option<Box<Layer>>,
    /// What came of requests.
    pub requests: Requests,
    /// The present one.
    pub request: Request,
    /// Why the connection ends, and the details, once that is settled.
    pub end: Option<(CloseReason, String)>,
    /// It holds a place among the handshakes until it has named the tunnel of a known device, and has time until then; afterwards it has none.
    pub strange_until: Option<Tick>,
    /// How far the connection has got.
    pub course: Course,
}

/// How far a socket has got on which HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Requests are served as they come.
    Listening,
    /// As many were served as are in one go, and it has its turn again.
    Owed,
    /// The last answer was given: what still comes is read over until the peer has gone.
    Parting,
}

/// A request, or what there is of it.
#[derive(Debug, Default)]
pub struct Request {
    /// Counts a connection's requests: an answer to an earlier one is void.
    pub number: u32,
    /// What it asks for.
    pub asked: Asked,
    /// How its answer is to be.
    pub manner: Manner,
    /// The tunnel that it has opened.
    pub opened: Option<TunnelId>,
    /// What it is answered when it is whole, if bytes of it were refused.
    pub refused: Option<Box<Reply>>,
}

/// How a request is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// Whether the connection lives on.
    pub keeping: Keeping,
    /// Without a body (HEAD).
    pub is_bodiless: bool,
}

/// Whether a connection lives on behind an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keeping {
    /// It does, as it does in HTTP/1.1.
    #[default]
    Silent,
    /// It does, and a peer of HTTP/1.0 that asked for it is told.
    Said,
    /// It ends, and that is said.
    Closes,
}

/// What a request asks for.
#[derive(Debug, Default)]
pub enum Asked {
    /// There is none.
    #[default]
    Nothing,
    /// What is answered when it is whole, whatever its body.
    Known(Box<Reply>),
    /// A tunnel is to be opened with what its body has.
    Open,
    /// A tunnel is to take its body's bytes, of which the next has this offset.
    Up(TunnelId, u64),
    /// Bytes of a tunnel are wanted, when it is whole.
    Down(TunnelId, u64, u32),
    /// It is whole, and a tunnel has its bytes.
    UpUnderway,
    /// It is whole, and this tunnel has it and may hold it for so many seconds.
    DownUnderway(TunnelId, u32),
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status and fields, without those that every answer has.
    pub head: ResponseHead,
    /// The body, and what it is.
    pub body: Vec<u8>,
    /// What the body is.
    pub content_type: &'static str,
}

impl Reply {
    /// A sentence.
    #[must_use]
    pub fn sentence(head: ResponseHead, text: &str) -> Self {
        let body = format!("{text}\n").into_bytes();
        Self { head, body, content_type: "text/plain; charset=utf-8" }
    }

    /// An answer without a body.
    #[must_use]
    pub fn empty(head: ResponseHead) -> Self {
        Self { head, body: Vec::new(), content_type: "" }
    }
}

/// A WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    /// The outer TLS.
    pub outer: Option<Box<Layer>>,
    /// What came of frames.
    pub decoder: Decoder,
    /// Until its peer is known: bytes of frames beyond what the data in them needs, 14 for a byte.
    idle_bytes: u32,
    /// The code of the close frame with which it ends.
    pub closing_code: u16,
    /// That is out: nothing follows it.
    pub has_closed: bool,
}

impl WebSocket {
    /// Before the first frame.
    #[must_use]
    pub fn new(outer: Option<Box<Layer>>) -> Self {
        Self {
            outer,
            decoder: Decoder::new(Side::Server),
            idle_bytes: 0,
            closing_code: NORMAL,
            has_closed: false,
        }
    }

    /// A stranger's frames came, so many bytes with so many of data in them; `false` when too much of them was nothing.
    pub fn hear_stranger(&mut self, bytes: usize, data: usize) -> bool {
        let heard = self.idle_bytes.saturating_add(u32::try_from(bytes - data).unwrap_or(u32::MAX));
        let needed = u32::try_from(data * HEADER_BYTES_MAX).unwrap_or(u32::MAX);
        self.idle_bytes = heard.saturating_sub(needed);
        self.idle_bytes <= IDLE_BYTES_MAX
    }
}

/// Room to put together what goes out.
#[derive(Debug, Default)]
pub struct Wrapping {
    framed: Vec<u8>,
    sealed: Vec<u8>,
}

impl Transport {
    /// What a connection begins with; where a proxy `introduces` its peers, with that.
    #[must_use]
    pub fn new(entrance: Entrance, introduces: bool, outer: Option<Box<Layer>>) -> Self {
        if introduces {
            return Self::Introduced(entrance, Box::default());
        }
        match entrance {
            Entrance::Tcp => Self::Raw,
            Entrance::Http | Entrance::Https => Self::Web(Box::new(Web {
                outer,
                requests: Requests::new(BODY_BYTES_MAX),
                request: Request::default(),
                end: None,
                strange_until: Some(Tick(0)),
                course: Course::Listening,
            })),
        }
    }

    /// The road of a session whose bytes this socket carries.
    #[must_use]
    pub fn road(&self) -> RoadName {
        match self {
            Self::WebSocket(socket) if socket.outer.is_some() => RoadName::WebSocketHttps,
            Self::WebSocket(_) => RoadName::WebSocket,
            Self::Raw | Self::Introduced(..) | Self::Web(_) => RoadName::Tcp,
        }
    }

    /// The outer TLS, if there is one.
    pub fn outer(&mut self) -> Option<&mut Layer> {
        match self {
            Self::Raw | Self::Introduced(..) => None,
            Self::Web(web) => web.outer.as_deref_mut(),
            Self::WebSocket(socket) => socket.outer.as_deref_mut(),
        }
    }

    /// The requests' state, while requests are what is spoken.
    pub fn web(&mut self) -> Option<&mut Web> {
        match self {
            Self::Web(web) => Some(web),
            _ => None,
        }
    }

    /// What a channel's bytes are on the wire.
    pub fn wrap<'a>(&mut self, bytes: &'a [u8], room: &'a mut Wrapping) -> &'a [u8] {
        match self {
            Self::WebSocket(socket) if socket.has_closed => &[],
            Self::WebSocket(socket) => {
                room.framed.clear();
                websocket::encode_data(bytes, None, &mut room.framed);
                seal(socket.outer.as_deref_mut(), &room.framed, &mut room.sealed)
            }
            Self::Raw | Self::Introduced(..) | Self::Web(_) => bytes,
        }
    }

    /// What a channel's last bytes are on the wire, with all that the road has to say at its end.
    pub fn wrap_last<'a>(&mut self, bytes: &'a [u8], room: &'a mut Wrapping) -> &'a [u8] {
        match self {
            Self::WebSocket(socket) => {
                room.framed.clear();
                room.sealed.clear();
                if !socket.has_closed {
                    websocket::encode_data(bytes, None, &mut room.framed);
                    let close = Control::Close(Some(socket.closing_code));
                    websocket::encode_control(&close, None, &mut room.framed);
                    socket.has_closed = true;
                }
                let Some(outer) = &mut socket.outer else { return &room.framed };
                outer.seal(&room.framed, &mut room.sealed);
                outer.close(&mut room.sealed);
                &room.sealed
            }
            Self::Raw | Self::Introduced(..) | Self::Web(_) => bytes,
        }
    }

    /// Whether the outer TLS has sealed nearly as much as it may.
    #[must_use]
    pub fn is_worn_out(&self) -> bool {
        match self {
            Self::Raw | Self::Introduced(..) => false,
            Self::Web(web) => web.outer.as_ref().is_some_and(|outer| outer.is_worn_out()),
            Self::WebSocket(socket) => socket.outer.as_ref().is_some_and(|outer| outer.is_worn_out()),
        }
    }

    /// What HTTP's own bytes, or a WebSocket's control frames, are on the wire.
    pub fn cover<'a>(&mut self, bytes: &'a [u8], room: &'a mut Wrapping) -> &'a [u8] {
        seal(self.outer(), bytes, &mut room.sealed)
    }
}

fn seal<'a>(outer: Option<&mut Layer>, bytes: &'a [u8], sealed: &'a mut Vec<u8>) -> &'a [u8] {
    match outer {
        None => bytes,
        Some(outer) => {
            sealed.clear();
            outer.seal(bytes, sealed);
            sealed
        }
    }
}

impl Web {
    /// Whether the last answer was given.
    #[must_use]
    pub fn is_parting(&self) -> bool {
        self.course == Course::Parting
    }

    /// Whose limits it has.
    #[must_use]
    pub fn standing(&self) -> Standing {
        if self.strange_until.is_some() { Standing::Stranger } else { Standing::Welcome }
    }

    /// Whether requests came that wait for nothing but their turn, or for answers before them that are not sent.
    #[must_use]
    pub fn is_owed(&self, is_unsent: bool) -> bool {
        match self.course {
            Course::Owed => true,
            Course::Listening => is_unsent && self.requests.is_busy(),
            Course::Parting => false,
        }
    }

    /// Whether it is a known device's between two requests.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let is_idle = matches!(self.request.asked, Asked::Nothing) && !self.requests.is_busy();
        self.standing() == Standing::Welcome && self.course == Course::Listening && is_idle
    }

    /// Whether a tunnel has the present request.
    #[must_use]
    pub fn is_underway(&self) -> bool {
        matches!(self.request.asked, Asked::UpUnderway | Asked::DownUnderway(..))
    }

    /// A request begins: how its answer will be.
    pub fn begin(&mut self, head: &RequestHead) {
        let keeping = match (head.keep_alive(), head.minor_version) {
            (false, _) => Keeping::Closes,
            (true, 0) => Keeping::Said,
            (true, _) => Keeping::Silent,
        };
        let manner = Manner { keeping, is_bodiless: head.method == "HEAD" };
        self.request = Request { number: self.request.number.wrapping_add(1), manner, ..Request::default() };
    }
}
