//! Roads and the reasons for them in words: the same wherever they are shown.

use bgb_protocol::message::{Road, RoadReason, RoadTaken};

use crate::terminal::one_line;

/// Letters of an issuer that are shown: a name of its own, and most of what directories put around it.
const ISSUER_LETTERS_MAX: usize = 80;

/// The road and why: `TCP`, `WebSocket over HTTPS through a proxy (TCP timed out)`.
pub(crate) fn taken_in_words(taken: &RoadTaken) -> String {
    let road = road_in_words(taken.road, taken.outer_tls, taken.proxied);
    match &taken.reason {
        None => road,
        Some(reason) => format!("{road} ({})", reason_in_words(reason)),
    }
}

/// A road: `TCP`, `long-poll over HTTP through a proxy`.
pub(crate) fn road_in_words(road: Road, outer_tls: bool, proxied: bool) -> String {
    let carrier = if outer_tls { "HTTPS" } else { "HTTP" };
    let way = match road {
        Road::Tcp => "TCP".to_owned(),
        Road::WebSocket => format!("WebSocket over {carrier}"),
        Road::LongPoll => format!("long-poll over {carrier}"),
    };
    if proxied { format!("{way} through a proxy") } else { way }
}

/// A reason: `TCP timed out`, `intercepted by CN=Gateway`. What a device says of an issuer is cut to one short line.
pub(crate) fn reason_in_words(reason: &RoadReason) -> String {
    match reason {
        RoadReason::Refused => "TCP was refused".to_owned(),
        RoadReason::TimedOut => "TCP timed out".to_owned(),
        RoadReason::Reset => "TCP was reset".to_owned(),
        RoadReason::ProxyAnswer(status) => format!("a proxy answered {status}"),
        RoadReason::Intercepted(issuer) => match one_line(issuer, ISSUER_LETTERS_MAX).trim() {
            "" => "intercepted by somebody without a name".to_owned(),
            issuer => format!("intercepted by {issuer}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_words(road: Road, outer_tls: bool, proxied: bool, reason: Option<RoadReason>) -> String {
        taken_in_words(&RoadTaken { road, outer_tls, proxied, reason })
    }

    fn intercepted(issuer: &str) -> RoadReason {
        RoadReason::Intercepted(issuer.to_owned())
    }

    #[test]
    fn a_road_that_is_not_tcp_says_why() {
        assert_eq!(taken_in_words(&RoadTaken::tcp()), "TCP");
        for (road, outer_tls, proxied, reason, expected) in [
            (Road::WebSocket, false, false, Some(RoadReason::Reset), "WebSocket over HTTP (TCP was reset)"),
            (
                Road::WebSocket,
                true,
                true,
                Some(RoadReason::TimedOut),
                "WebSocket over HTTPS through a proxy (TCP timed out)",
            ),
            (
                Road::LongPoll,
                false,
                true,
                Some(RoadReason::ProxyAnswer(407)),
                "long-poll over HTTP through a proxy (a proxy answered 407)",
            ),
            (
                Road::LongPoll,
                true,
                false,
                Some(RoadReason::Refused),
                "long-poll over HTTPS (TCP was refused)",
            ),
            (
                Road::WebSocket,
                true,
                false,
                Some(intercepted("CN=Gateway, O=Office")),
                "WebSocket over HTTPS (intercepted by CN=Gateway, O=Office)",
            ),
            (Road::WebSocket, true, false, None, "WebSocket over HTTPS"),
            (Road::Tcp, false, true, None, "TCP through a proxy"),
        ] {
            assert_eq!(in_words(road, outer_tls, proxied, reason), expected);
        }
    }

    #[test]
    fn an_issuer_is_one_short_line_whatever_a_device_says() {
        let said = reason_in_words(&intercepted("\u{1b}[31mGate\nState  ● online\u{202e}\u{9b}2J"));
        assert_eq!(said, "intercepted by [31mGateState  ● online2J");
        let long = reason_in_words(&intercepted(&"ü".repeat(128)));
        assert_eq!(long, format!("intercepted by {}…", "ü".repeat(79)));
        for nobody in ["", " ", "\u{7}"] {
            assert_eq!(reason_in_words(&intercepted(nobody)), "intercepted by somebody without a name");
        }
    }
}
