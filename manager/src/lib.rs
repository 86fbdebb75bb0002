//! The notification manager: turns an administrator's word into signed rows of the queue, and devices' words into results.
//!
//! It owns the writing of the site database. [`manager::Manager`] is a machine without clock or thread, which the simulator drives too;
//! [`service::Service`] is the threads around it: one that writes, a few that verify, one that watches the inbox, a few that answer the
//! API. It must not talk to a server or a device: all that goes down is a row of the queue, all that comes up is a file of the inbox.
// A test that unwraps fails with the line that did it, which is what a test is for.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod bell;
mod bundle;
mod chores;
pub mod config;
pub mod figures;
pub mod inbox;
mod ingest;
pub mod key_book;
pub mod manager;
mod messages;
mod metrics;
pub mod orders;
mod refusal;
mod restored;
pub mod service;
#[cfg(test)]
mod test_site;
pub mod verifier;
mod views;
mod watcher;
pub mod writer;
