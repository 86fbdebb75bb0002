//! Floors: what the same machine does at its best with nothing of a notification server in the way, measured in the same run.
//!
//! They are as simple as can be, so that nobody can say that a figure beside them is bad luck with the machine.

pub(crate) mod handshake; // mutual TLS handshakes in memory
pub(crate) mod writes; // one thread that writes to many sockets, and a process that reads
