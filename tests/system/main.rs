//! Black-box tests: real processes on loopback, from an administrator's word to a device's answer.
//!
//! Nothing here looks into a process. What a test sees is what the site's people see: the manager's API, `bgb`, status messages,
//! log files, a server's /metrics, exit codes and what is in the folders. The harness is in `site` (a site and its processes),
//! `process`, `api`, `peer` (a TLS peer that does whatever a test wants) and `wait`, which lie in `tests/rig` since `tests/faults`
//! has them too, and in `relay`; the other modules are the tests, by subject. Laws: every site lies in a temporary folder and on a loopback address of its own; tests wait with deadlines; every
//! process that a test has started is killed by its own handle when the test ends.
// A test that unwraps fails with the line that did it, which is what a test is for.
#![allow(clippy::unwrap_used)]

#[path = "../rig/api.rs"]
mod api;
mod files;
#[path = "../rig/peer.rs"]
mod peer;
#[path = "../rig/process.rs"]
mod process;
mod relay;
#[path = "../rig/site.rs"]
mod site;
#[path = "../rig/wait.rs"]
mod wait;

mod absence;
mod crash;
mod database;
mod false_servers;
mod inbox;
mod moving;
mod orders;
mod road;
mod signals;
mod slow_peers;
mod speech;
mod starting;
mod strangers;
mod walk;
