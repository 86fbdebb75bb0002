//! The notification agent: verifies, journals, acts and answers.
//!
//! Inside is [`agent::Agent`], a step machine without threads, sockets, clocks or processes: it is driven by
//! [`daemon`] in production and by the simulator on virtual time. Around it stand the connection to a server, the
//! actions that touch the machine, and the configuration.
//!
//! Its law: nothing is carried out that the site did not sign for this device, nothing is begun before the journal
//! holds it durably, and no server is trusted with what may run here nor with the time.
#![cfg_attr(test, allow(clippy::unwrap_used))] // A test that unwraps fails with the line that did it.

mod actions;
pub mod agent;
pub mod config;
mod connection;
pub mod daemon;
mod durable;
mod identity;
mod journal;
pub mod launch;
mod metrics;
pub mod parting;
mod platform;
mod policy;
mod proxy;
mod random;
mod roads;
mod session;
mod time;
mod tls;
mod verify;

/// What the agent's connections go by, for the simulator: it stands where they do, and goes by the same.
pub mod rules {
    pub use crate::connection::{LOSSES_MAX, OVERDUE, PONG, REST};
    pub use crate::roads::Idle;
}

pub use journal::JournalError;
