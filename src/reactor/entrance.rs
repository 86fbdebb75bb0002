//! The server's ports: what each is called where people configure it and read of it. What is spoken there is [`super::transport`]'s.

/// By which of the server's ports a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Sessions, straight.
    Tcp,
    /// HTTP.
    Http,
    /// HTTP in an outer TLS.
    Https,
}

impl Entrance {
    /// The key of `server.toml` that says where it is.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Tcp => "listen",
            Self::Http => "listen_http",
            Self::Https => "listen_https",
        }
    }

    /// Its name, where people read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}
