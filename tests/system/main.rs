//! Black-box tests: real processes on loopback, from an administrator's word to a device's answer.
//!
//! Nothing here looks into a process. What a test sees is what the site's people see: the manager's API, `bgb`, status messages,
//! log files, a server's /metrics, exit codes and what is in the folders. The harness is in `rig`, which `tests/faults` has as well:
//! `site` (a site and its processes), `process`, `api`, `peer` (a TLS peer that does whatever a test wants) and `wait`; and in `relay`.
//! The other modules are the tests, by subject. Laws: every site lies in a temporary folder and on a loopback address of its own;
//! tests wait with deadlines; every process that a test has started is killed by its own handle when the test ends.
// A test that unwraps fails with the line that did it, which is what a test is for.
#![allow(clippy::unwrap_used)]

#[path = "../rig/mod.rs"]
mod rig;
use rig::{api, peer, process, road, site, wait};

mod files;
mod relay;

mod absence;
mod crash;
mod database;
mod false_servers;
mod inbox;
mod monitoring;
mod moving;
mod openssl;
mod orders;
mod restoring;
mod resuming;
mod roads;
mod signals;
mod slow_peers;
mod speech;
mod starting;
mod strangers;
mod walk;
mod web;
mod whole_road;
