//! One rung of the ladder: a way for a session's bytes to travel.

use bgb_protocol::message::{Road, RoadReason, RoadTaken};
use serde::{Deserialize, Serialize};

/// How, in which wrapping, and through whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Rung {
    pub(crate) road: Road,
    pub(crate) outer_tls: bool,
    pub(crate) proxied: bool,
}

const fn over_http(road: Road, outer_tls: bool, proxied: bool) -> Rung {
    Rung { road, outer_tls, proxied }
}

impl Rung {
    pub(crate) const TCP: Self = Self { road: Road::Tcp, outer_tls: false, proxied: false };

    /// All, the best first (docs/protocol.md, 9.7).
    pub(crate) const ALL: [Self; 9] = [
        Self::TCP,
        over_http(Road::WebSocket, true, false),
        over_http(Road::WebSocket, true, true),
        over_http(Road::WebSocket, false, false),
        over_http(Road::WebSocket, false, true),
        over_http(Road::LongPoll, true, false),
        over_http(Road::LongPoll, true, true),
        over_http(Road::LongPoll, false, false),
        over_http(Road::LongPoll, false, true),
    ];

    /// Its place in [`Self::ALL`]; TCP's for what is none of them.
    pub(crate) fn place(self) -> usize {
        Self::ALL.iter().position(|rung| *rung == self).unwrap_or(0)
    }

    /// Its name in the log and in metrics, where it is never changed.
    pub(crate) fn label(self) -> &'static str {
        match (self.road, self.outer_tls, self.proxied) {
            (Road::Tcp, ..) => "tcp",
            (Road::WebSocket, true, false) => "websocket-https",
            (Road::WebSocket, true, true) => "websocket-https-proxy",
            (Road::WebSocket, false, false) => "websocket-http",
            (Road::WebSocket, false, true) => "websocket-http-proxy",
            (Road::LongPoll, true, false) => "long-poll-https",
            (Road::LongPoll, true, true) => "long-poll-https-proxy",
            (Road::LongPoll, false, false) => "long-poll-http",
            (Road::LongPoll, false, true) => "long-poll-http-proxy",
        }
    }

    /// The one that a hello speaks of.
    pub(crate) fn of(taken: &RoadTaken) -> Self {
        let RoadTaken { road, outer_tls, proxied, .. } = *taken;
        Self { road, outer_tls, proxied }
    }

    /// As a hello says it.
    pub(crate) fn taken(self, reason: Option<RoadReason>) -> RoadTaken {
        RoadTaken { road: self.road, outer_tls: self.outer_tls, proxied: self.proxied, reason }
    }
}
