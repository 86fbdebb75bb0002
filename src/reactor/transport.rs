//! What stands between a socket's bytes and those of a channel: bytes in, bytes out.
//!
//! ```text
//!   TCP        socket ------------------------------------------ channel
//!   WebSocket  socket -- [outer TLS] -- frames ----------------- channel
//!   long-poll  socket -- [outer TLS] -- requests -- (a tunnel) -- channel        any socket, any number of them
//! ```
//!
//! What a socket speaks is settled step by step: a proxy says whose connection it is, HTTPS shakes hands, a request asks for a WebSocket. The steps are the
//! reactor's ([`super::web`], [`super::tunnels`]); here is what is kept between two of them.

use bgb_http::requests::Requests;
use bgb_http::tunnel::TunnelId;
use bgb_http::websocket::{self, Decoder};
use bgb_http::{RequestHead, ResponseHead};
use bgb_hub::CloseReason;

use super::layer::Layer;

/// Bytes of a request's body at the most (docs/protocol.md, 13.2).
const BODY_BYTES_MAX: u64 = 256 * 1024;

/// By which of the server's ports a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Sessions, straight.
    Tcp,
    /// HTTP.
    Http,
    /// HTTP in an outer TLS.
    Https,
}

impl Entrance {
    /// Its name, where people read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

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
    /// What the present one asks for.
    pub asked: Asked,
    /// How its answer is to be.
    pub manner: Manner,
    /// The tunnel that the present request has opened.
    pub opened: Option<TunnelId>,
    /// Why the connection ends, and the details, once that is settled.
    pub end: Option<(CloseReason, String)>,
    /// Whether it is a stranger's: it holds a place among the handshakes until it has named a living tunnel.
    pub is_strange: bool,
    /// The last answer was given: what still comes is read over until the peer has gone.
    pub is_parting: bool,
}

/// How a request is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// The connection ends with it.
    pub closes: bool,
    /// Without a body (HEAD).
    pub is_bodiless: bool,
}

/// What a request asks for.
#[derive(Debug)]
pub enum Asked {
    /// There is none.
    Nothing,
    /// What is answered when it is whole, whatever its body.
    Known(Box<Reply>),
    /// A tunnel is to be opened with what its body has.
    Open,
    /// A tunnel is to take its body's bytes, of which the next has this offset.
    Up(TunnelId, u64),
    /// Bytes of a tunnel are wanted, when it is whole.
    Down(TunnelId, u64, u32),
    /// It is whole, and a tunnel has it; it is that of a GET which may be held.
    Underway(Option<TunnelId>),
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
    /// A close frame is out: nothing follows it.
    pub has_closed: bool,
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
                asked: Asked::Nothing,
                manner: Manner::default(),
                opened: None,
                end: None,
                is_strange: true,
                is_parting: false,
            })),
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
    /// A request begins: how its answer will be.
    pub fn begin(&mut self, head: &RequestHead) {
        self.manner = Manner { closes: !head.keep_alive(), is_bodiless: head.method == "HEAD" };
    }
}
