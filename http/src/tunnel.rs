//! Long-poll: two streams of bytes in requests and answers (docs/protocol.md, 13.2).
//!
//! Bytes come in, values go out; nothing here owns a socket or reads a clock. Offsets make repeating harmless: a POST says where its bytes belong, a
//! GET which bytes it wants, and acknowledges those before them. Law: whatever requests and answers are lost, repeated or cut short on the way, each
//! stream's bytes arrive once and in order, or the tunnel ends.

pub mod client;
mod id;
mod request;
pub mod server;

pub use id::{TunnelId, TunnelIdError};
pub use request::{HOLD_SECS_MAX, TUNNEL_PATH, TunnelRefusal, TunnelRequest};
