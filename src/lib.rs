//! BGB's notification server: holds the fleet's connections and pushes tasks over them.
//!
//! `ARCHITECTURE.md` has the map. In short: a reactor ([`reactor`]) moves bytes, a shard ([`shard`]) ties its hub to the rest, the
//! broker ([`broker`]) brings orders down, spool, presence and courier ([`spool`], [`presence`], [`courier`]) carry words up, and
//! [`server`] starts and stops them all. Only [`tls`] names rustls.
#![deny(unsafe_code)]
// A test that unwraps fails with the line that did it, which is what a test is for.
#![cfg_attr(test, allow(clippy::unwrap_used))]

/// The target of what the log has of the roads through HTTP, which goes to a file of its own (BgbHttpProxy.log).
pub const HTTP_LOG: &str = "bgb_server::http";

pub mod broker;
pub mod config;
pub mod courier;
pub mod directory;
pub mod metrics;
pub mod network;
pub mod outgoing;
pub mod presence;
pub mod reactor;
pub mod server;
pub mod shard;
pub mod spool;
pub mod threads;
pub mod tls;
pub mod writers;
