//! The long-poll tunnel: two streams of bytes in requests and answers of HTTP (docs/protocol.md, 13.2).
//!
//! Nothing here owns a socket or reads a clock. Law: every byte arrives once and in its place, whatever requests and answers are lost, cut
//! short or repeated on their way.

pub mod client;
