//! Roads to a server: which there are, which is tried next, and what was learned of them.
//!
//! ```text
//!   better   TCP
//!     ^      WebSocket over HTTPS, over HTTPS through the proxy, over HTTP, over HTTP through the proxy
//!     |      long-poll likewise
//! ```
//!
//! [`Ladder`] decides, by what is told it; [`Rung`] names a road, [`Memory`] is what outlives the process. Nothing here opens a connection or
//! reads a clock: that is `connection`'s affair. Law: a road is only ever a way for bytes; who is at its end is proved anew on each.

mod idle;
mod ladder;
mod memory;
mod rung;

use bgb_protocol::message::Road;

use crate::config::RoadsConfig;
use crate::proxy::Proxies;
pub use idle::Idle;
pub(crate) use ladder::{End, Ladder, Moment};
pub(crate) use memory::MemoryFile;
pub(crate) use rung::Rung;

/// What a climb may take to begin its last attempt (docs/protocol.md, 9.7).
pub(crate) const CLIMB_MS: u64 = 40_000;

/// The rungs that `config` allows to the server at `address` (`host:port`), the best first.
pub(crate) fn allowed(config: &RoadsConfig, proxies: &Proxies, address: &str) -> Vec<Rung> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let is_allowed = |rung: &Rung| {
        let (is_road, is_wrapping) = match rung.road {
            Road::Tcp => return config.tcp,
            Road::WebSocket => (config.websocket, config.https),
            Road::LongPoll => (config.long_poll, config.https),
        };
        let (is_wrapping, port) =
            if rung.outer_tls { (is_wrapping, config.https_port) } else { (config.http, config.http_port) };
        let is_there = !rung.proxied || proxies.to(host, port, rung.outer_tls).is_some();
        is_road && is_wrapping && is_there
    };
    Rung::ALL.into_iter().filter(is_allowed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProxyConfig;

    fn labels(config: &RoadsConfig, proxies: &Proxies, address: &str) -> Vec<&'static str> {
        allowed(config, proxies, address).into_iter().map(Rung::label).collect()
    }

    #[test]
    fn configuration_and_proxies_say_which_rungs_there_are() {
        let all = RoadsConfig::default();
        assert_eq!(
            labels(&all, &Proxies::default(), "bgb.example:10123"),
            ["tcp", "websocket-https", "websocket-http", "long-poll-https", "long-poll-http"]
        );
        let environment = |name: &str| match name {
            "https_proxy" => Some("http://proxy.example:3128".to_owned()),
            "no_proxy" => Some("lab.example".to_owned()),
            _ => None,
        };
        let proxies = Proxies::new(&ProxyConfig::default(), environment).unwrap();
        let only = RoadsConfig { tcp: false, http: false, long_poll: false, ..all };
        assert_eq!(labels(&only, &proxies, "bgb.example:1"), ["websocket-https", "websocket-https-proxy"]);
        assert_eq!(labels(&only, &proxies, "bgb.lab.example:1"), ["websocket-https"]);
    }
}
