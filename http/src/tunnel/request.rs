//! What a request asks of a tunnel.

use thiserror::Error;

use super::id::TunnelId;
use crate::head::decimal;
use crate::request::RequestHead;
use crate::response::ResponseHead;

/// Where tunnels are: a POST there opens one, and each has its own path below.
pub const TUNNEL_PATH: &str = "/bgb/tunnel";
/// The longest that a GET is held, and what it is where the request does not say, in seconds.
pub const HOLD_SECS_MAX: u32 = 60;

/// A request to a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelRequest {
    /// Open one; the body has its first bytes.
    Open,
    /// Take the body's bytes, which belong at this offset.
    Up {
        /// The tunnel.
        id: TunnelId,
        /// The first byte's offset.
        from: u64,
    },
    /// Give bytes from this offset on; those before it have arrived.
    Down {
        /// The tunnel.
        id: TunnelId,
        /// The first byte's offset.
        from: u64,
        /// How long to wait where there are none.
        hold_secs: u32,
    },
}

/// Why a request to a path of tunnels asks for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TunnelRefusal {
    /// The path is that of no tunnel.
    #[error("there is no such tunnel")]
    NotFound,
    /// Another method; those that are taken.
    #[error("a tunnel is not asked in this way")]
    Method(&'static str),
    /// The query is not as it must be.
    #[error("the query is not from=OFFSET, and for GET &hold=SECONDS of 1 to {HOLD_SECS_MAX}")]
    Query,
}

impl TunnelRefusal {
    /// The answer, without a body.
    #[must_use]
    pub fn answer(self) -> ResponseHead {
        match self {
            Self::NotFound => ResponseHead::new(404),
            Self::Method(allowed) => ResponseHead::new(405).with("Allow", allowed),
            Self::Query => ResponseHead::new(400),
        }
    }
}

impl TunnelRequest {
    /// Whether a path belongs to tunnels.
    #[must_use]
    pub fn is_about(path: &str) -> bool {
        path.strip_prefix(TUNNEL_PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// What a request whose path [`is_about`](Self::is_about) tunnels asks for.
    ///
    /// # Errors
    /// Why it asks for nothing.
    pub fn of(head: &RequestHead) -> Result<Self, TunnelRefusal> {
        let name = head.path().strip_prefix(TUNNEL_PATH).ok_or(TunnelRefusal::NotFound)?;
        if name.is_empty() {
            return if head.method == "POST" { Ok(Self::Open) } else { Err(TunnelRefusal::Method("POST")) };
        }
        let id = name.strip_prefix('/').and_then(|name| name.parse().ok()).ok_or(TunnelRefusal::NotFound)?;
        let query = Query::of(head.query().unwrap_or_default()).ok_or(TunnelRefusal::Query)?;
        match (head.method.as_str(), query.from, query.hold_secs) {
            ("POST", Some(from), None) => Ok(Self::Up { id, from }),
            ("GET", Some(from), hold_secs) => {
                Ok(Self::Down { id, from, hold_secs: hold_secs.unwrap_or(HOLD_SECS_MAX) })
            }
            ("POST" | "GET", ..) => Err(TunnelRefusal::Query),
            _ => Err(TunnelRefusal::Method("GET, POST")),
        }
    }

    /// Which tunnel it is about.
    #[must_use]
    pub fn id(&self) -> Option<TunnelId> {
        match self {
            Self::Open => None,
            Self::Up { id, .. } | Self::Down { id, .. } => Some(*id),
        }
    }

    /// Its target.
    #[must_use]
    pub fn target(&self) -> String {
        match self {
            Self::Open => TUNNEL_PATH.to_owned(),
            Self::Up { id, from } => format!("{TUNNEL_PATH}/{id}?from={from}"),
            Self::Down { id, from, hold_secs } => format!("{TUNNEL_PATH}/{id}?from={from}&hold={hold_secs}"),
        }
    }
}

#[derive(Default)]
struct Query {
    from: Option<u64>,
    hold_secs: Option<u32>,
}

impl Query {
    /// Each name once, others ignored: a cache-breaking word of somebody between changes nothing.
    fn of(text: &str) -> Option<Self> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let is_repeated = match pair.split_once('=') {
                Some(("from", value)) => query.from.replace(decimal(value.as_bytes())?).is_some(),
                Some(("hold", value)) => {
                    let secs = u32::try_from(decimal(value.as_bytes())?).ok()?;
                    let secs = Some(secs).filter(|secs| (1..=HOLD_SECS_MAX).contains(secs))?;
                    query.hold_secs.replace(secs).is_some()
                }
                _ => false,
            };
            if is_repeated {
                return None;
            }
        }
        Some(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::Decoded;

    fn request(line: &str) -> RequestHead {
        let text = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
        match RequestHead::decode(text.as_bytes()) {
            Ok(Decoded::Complete { head, .. }) => head,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn each_request_is_read_as_its_target_is_written() {
        let id = TunnelId { server: 3, shard: 1, slot: 9, secret: [5; 16] };
        for (method, asked) in [
            ("POST", TunnelRequest::Open),
            ("POST", TunnelRequest::Up { id, from: 17 }),
            ("GET", TunnelRequest::Down { id, from: u64::MAX, hold_secs: 25 }),
        ] {
            let head = request(&format!("{method} {}", asked.target()));
            assert!(TunnelRequest::is_about(head.path()));
            assert_eq!(TunnelRequest::of(&head), Ok(asked));
        }
        let head = request(&format!("GET http://proxied.example{TUNNEL_PATH}/{id}?_=1&from=0"));
        assert_eq!(
            TunnelRequest::of(&head),
            Ok(TunnelRequest::Down { id, from: 0, hold_secs: HOLD_SECS_MAX })
        );
    }

    #[test]
    fn what_asks_for_nothing_is_told_what_is_wrong() {
        let id = "0".repeat(52);
        for (line, refusal) in [
            ("GET /bgb/tunnel".to_owned(), TunnelRefusal::Method("POST")),
            ("GET /bgb/tunnel/".to_owned(), TunnelRefusal::NotFound),
            ("GET /bgb/tunnel/12?from=0".to_owned(), TunnelRefusal::NotFound),
            (format!("GET /bgb/tunnel/{id}/x?from=0"), TunnelRefusal::NotFound),
            (format!("PUT /bgb/tunnel/{id}?from=0"), TunnelRefusal::Method("GET, POST")),
            (format!("GET /bgb/tunnel/{id}"), TunnelRefusal::Query),
            (format!("POST /bgb/tunnel/{id}?from="), TunnelRefusal::Query),
            (format!("POST /bgb/tunnel/{id}?from=-1"), TunnelRefusal::Query),
            (format!("POST /bgb/tunnel/{id}?from=1&from=1"), TunnelRefusal::Query),
            (format!("POST /bgb/tunnel/{id}?from=1&hold=5"), TunnelRefusal::Query),
            (format!("POST /bgb/tunnel/{id}?from=18446744073709551616"), TunnelRefusal::Query),
            (format!("GET /bgb/tunnel/{id}?from=1&hold=0"), TunnelRefusal::Query),
            (format!("GET /bgb/tunnel/{id}?from=1&hold=61"), TunnelRefusal::Query),
        ] {
            assert_eq!(TunnelRequest::of(&request(&line)), Err(refusal), "{line}");
        }
        assert!(!TunnelRequest::is_about("/bgb/tunnels"));
    }
}
