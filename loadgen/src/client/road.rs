//! By which road agents come: straight over TCP, or through HTTP (docs/protocol.md, 13), and that in a TLS of its own or not.

use bgb_protocol::message::{self, RoadTaken};
use clap::{Args, ValueEnum};

/// How an agent's bytes travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Road {
    /// Straight over TCP
    #[default]
    Tcp,
    /// Binary messages of a WebSocket, at the server's HTTP port
    #[value(name = "ws")]
    WebSocket,
    /// Numbered POSTs up and held GETs down, at the server's HTTP port: two sockets each
    #[value(name = "longpoll")]
    LongPoll,
}

/// A road, and what is around it.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Way {
    /// By which road agents come
    #[arg(long, value_enum, default_value_t = Road::Tcp)]
    pub(crate) road: Road,
    /// In an outer TLS, at the server's HTTPS port: --road ws or longpoll
    #[arg(long)]
    pub(crate) tls_outer: bool,
}

impl Road {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::WebSocket => "ws",
            Self::LongPoll => "longpoll",
        }
    }

    /// Sockets that an agent has, and that its server has for it.
    pub(crate) fn sockets(self) -> usize {
        match self {
            Self::Tcp | Self::WebSocket => 1,
            Self::LongPoll => 2,
        }
    }
}

impl Way {
    /// All that there are.
    pub(crate) const ALL: [Self; 5] = [
        Self::of(Road::Tcp, false),
        Self::of(Road::WebSocket, false),
        Self::of(Road::WebSocket, true),
        Self::of(Road::LongPoll, false),
        Self::of(Road::LongPoll, true),
    ];

    const fn of(road: Road, tls_outer: bool) -> Self {
        Self { road, tls_outer }
    }

    /// Whether it leads to a port for HTTP or HTTPS.
    pub(crate) fn is_through_http(self) -> bool {
        self.road != Road::Tcp
    }

    /// Its name among figures.
    pub(crate) fn name(self) -> &'static str {
        match (self.road, self.tls_outer) {
            (Road::Tcp, _) => "tcp",
            (Road::WebSocket, false) => "ws_http",
            (Road::WebSocket, true) => "ws_https",
            (Road::LongPoll, false) => "longpoll_http",
            (Road::LongPoll, true) => "longpoll_https",
        }
    }

    /// What an agent says of it in its hello. Nothing was in the way of another road: somebody has chosen this one.
    pub(crate) fn taken(self) -> RoadTaken {
        let road = match self.road {
            Road::Tcp => message::Road::Tcp,
            Road::WebSocket => message::Road::WebSocket,
            Road::LongPoll => message::Road::LongPoll,
        };
        RoadTaken { road, outer_tls: self.tls_outer, proxied: false, reason: None }
    }

    /// For another process of this program.
    pub(crate) fn arguments(self) -> impl Iterator<Item = String> {
        let outer = self.tls_outer.then(|| "--tls-outer".to_owned());
        std::iter::once(format!("--road={}", self.road.name())).chain(outer)
    }
}
