//! HTTP/1.1 heads and body framing, WebSocket frames, and long-poll tunnels, without I/O and without a clock.
//!
//! Bytes come in, values go out. The callers own the sockets and the time-outs: the small server on
//! loopback (bgb-daemon) and the notification server's HTTP roads. httparse does the splitting into lines
//! and words; what stands here is what it leaves open: limits, and the refusal of every head that two
//! parties could read in two ways (RFC 9112 section 11.2, request smuggling).
//!
//! Law: what is decoded does not depend on how the bytes were split on their way here, and no input panics.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))] // A test that cannot go on should stop where it stands.

pub mod body;
pub mod head;
pub mod proxy_protocol;
pub mod request;
pub mod requests;
pub mod response;
pub mod tunnel;
pub mod websocket;

pub use body::{BodyLength, ChunkDecoder, ChunkError, ChunkProgress};
pub use head::{Decoded, HEAD_BYTES_MAX, HEADERS_MAX, HeadError};
pub use request::RequestHead;
pub use requests::{Part, RequestFault, Requests};
pub use response::{HeaderError, ResponseHead, reason_phrase};
