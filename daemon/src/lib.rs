//! What every BGB daemon does alike: configuration, logs, signals, readiness, descriptor limits, locks,
//! key files, clocks, the disk behind a trait, counters and histograms for Prometheus, and a small HTTP server
//! for loopback.
//!
//! It owns no thread beyond those of the log, the signals and the HTTP server, and it knows nothing of
//! the protocol, the site or a device. A daemon takes from it what it needs; nothing here calls back up.
//! Its law: nothing in this crate stops a daemon that is running; what cannot be done is said, once, and
//! the daemon goes on.
#![cfg_attr(test, allow(clippy::unwrap_used))] // A test that cannot go on should stop where it stands.

pub mod admin;
pub mod clock;
pub mod config;
pub mod disk;
pub mod http_server;
pub mod limits;
pub mod lock;
pub mod log;
pub mod metrics;
pub mod ready;
pub mod secret;
pub mod signals;
