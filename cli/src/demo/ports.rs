//! Ports for the demo: the defaults where they are free, any other where not.
//!
//! Whether a port is free is asked by binding it, for a moment. Between that and the program's own binding somebody else
//! may take it; then the program ends, and is started again with any port. Port 0 is "any": the program's ready line
//! says which it became.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// The notification server's port for devices.
pub(crate) const SERVER_PORT: u16 = 10_123;
/// The manager's API.
pub(crate) const API_PORT: u16 = 10_124;
/// The notification server's page of metrics and health.
pub(crate) const ADMIN_PORT: u16 = 10_125;
/// The manager's page of metrics and health.
pub(crate) const MANAGER_ADMIN_PORT: u16 = 10_126;

/// Any free port.
pub(crate) const ANY: u16 = 0;

/// A loopback address.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// `port` where nobody listens on it, else [`ANY`].
pub(crate) fn free_or_any(port: u16) -> u16 {
    // The standard library does not share ports (SO_REUSEPORT), so this fails also where a listener would share.
    match TcpListener::bind(loopback(port)) {
        Ok(_) => port,
        Err(_) => ANY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_replaced() {
        let taken = TcpListener::bind(loopback(ANY)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert_eq!(free_or_any(port), ANY);
        drop(taken);
        assert_eq!(free_or_any(port), port);
    }
}
