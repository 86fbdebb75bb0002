//! What BGB says on the wire and in files, and what it signs.
//!
//! This crate is pure: bytes go in, values come out. It owns every byte layout of the product (`docs/protocol.md`
//! describes them for a stranger) and the rules that can be judged from bytes alone: is this frame whole, is this
//! signature good, is this device a member of that set.
//!
//! It must not know a clock, a socket, a disk or a thread. Whatever comes from outside may be hostile: decoding
//! never panics, never allocates more than a small multiple of its input, and says why it refused.
#![forbid(unsafe_code)]
// A test that unwraps fails with the line that did it, which is what a test is for.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod action;
pub mod api;
pub mod certificate;
pub mod codec;
pub mod file;
pub mod frame;
pub mod head;
pub mod ids;
pub mod message;
pub mod policy;
pub mod queue;
pub mod result;
pub mod signature;
pub mod state;
pub mod status;
pub mod target_set;
pub mod task;
