//! What the programs that test real processes have in common: a site and its processes, the manager's API, a TLS peer that does whatever
//! a test wants, and waiting with deadlines.
//!
//! Nothing here looks into a process, and nothing here is a test. Each program names these modules at its root, where they find each
//! other.
#![allow(dead_code, reason = "each program uses its part of it")]

pub(crate) mod api;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod road;
pub(crate) mod site;
pub(crate) mod wait;
