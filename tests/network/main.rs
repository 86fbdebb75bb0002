//! Tests against programs that stand between devices and servers in real networks: nginx, haproxy, squid, tinyproxy; and against
//! clients that are not ours: curl, Python's websockets, slowhttptest.
//!
//! A program of its own, called by `make test-network`, since it needs those programs, and minutes. The harness is the system tests' `rig`; here
//! are `settings` (what docs/networks.md advises, as it is run) and `proxy` (a program of somebody else's, as a process). The other modules are
//! the tests, by subject. Laws: every process listens on its site's own loopback address, has its own folder, and is killed by its own handle;
//! tests wait with deadlines, but where an idle time-out of minutes is what is tested.
// A test that unwraps fails with the line that did it, which is what a test is for.
#![allow(clippy::unwrap_used)]

#[path = "../rig/mod.rs"]
mod rig;
use rig::{api, peer, process, road, site, wait};

mod agent;
mod carrier;
mod device;
mod island;
mod proxy;
mod settings;

mod altering;
mod attack;
mod balancing;
mod curl;
mod firewall;
mod forward;
mod idling;
mod introduction;
mod moving;
mod reverse;
mod websockets;
