//! Why a connection ends: every reason there is, the transport's and the protocol's alike.
//!
//! What a peer does wrong is data. Each reason has one metric (its label, which is stable) and one sentence for the log; some
//! are said to the agent before the connection closes.

use std::fmt;

use bgb_protocol::message::RefusedReason;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CloseReason {
    /// TLS: the peer showed no certificate.
    NoCertificate,
    /// TLS: the certificate is not by the site's authority.
    WrongAuthority,
    /// TLS: the certificate's validity is over.
    CertificateExpired,
    /// TLS: the certificate's validity has not begun.
    CertificateNotYetValid,
    /// TLS: the certificate cannot be used: malformed, of another purpose, or naming no holder.
    BadCertificate,
    /// TLS: the certificate is not a device's.
    WrongRole,
    /// TLS: the certificate is of another site.
    WrongSite,
    /// TLS: the handshake took too long, or its turn did not come.
    HandshakeTimedOut,
    /// TLS: what came is no handshake.
    HandshakeGarbage,
    /// TLS: the handshake failed otherwise: no common version or cipher, another ALPN, the peer's alert.
    HandshakeFailed,
    /// As many handshakes are in flight as are allowed.
    TooManyHandshakes,
    /// TLS: a record after the handshake does not decrypt or is out of place.
    BadRecord,
    /// TLS: the session's keys have to be made anew, which takes a new session.
    KeysWornOut,
    /// A frame over 64 KiB was announced.
    OversizedFrame,
    /// A frame of a type that is not known and may not be skipped.
    UnknownType,
    /// A message's body is not what its type says, or is over a limit.
    MalformedMessage,
    /// A message that this state does not allow.
    NotAllowed,
    /// A result that is malformed, not final, or does not match its output.
    BadResult,
    /// A result that another device signed.
    ForeignResult,
    /// More messages in a time than are taken.
    TooManyMessages,
    /// No hello came in time.
    HelloTimedOut,
    /// The agent did not speak for 1.5 times its keepalive.
    KeepaliveMissed,
    /// The peer does not read: what waits for it was above the mark for too long, or over its cap.
    TooSlow,
    /// The peer closed both directions.
    PeerClosed,
    /// The peer closed its sending direction; such a session cannot go on.
    HalfClosed,
    /// The peer reset the connection.
    Reset,
    /// Data in flight was not acknowledged in time (`TCP_USER_TIMEOUT`), or the network says that there is no way.
    Unreachable,
    /// Another error of the transport.
    TransportError,
    /// A newer session of the device took its place.
    Superseded,
    /// The device has a newer session already.
    OlderSession,
    /// The device is blocked.
    Blocked,
    /// The certificate is revoked.
    Revoked,
    /// The certificate ended during the session.
    CertificateEnded,
    /// The server has as many sessions as it holds.
    ServerFull,
    /// The server takes no sign-ins: it cannot read the queue.
    Unavailable,
    /// The server stops.
    Draining,
    /// The agent said goodbye.
    Goodbye,
    /// HTTP: what the peer sent is no request that can be taken; it was told so.
    BadRequest,
    /// HTTP: no session came of the connection in time.
    NoSession,
    /// HTTP: the connection ended after an answer, or rested too long after one.
    Answered,
    /// A WebSocket frame that breaks the protocol.
    BadWebSocket,
    /// The agent of a long-poll tunnel asked for nothing for too long.
    TunnelSilent,
    /// A proxy that is to say whose connection it passes on did not.
    BadProxyHeader,
}

impl CloseReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Every reason, in the order of declaration.
    pub const ALL: [Self; 43] = [
        Self::NoCertificate,
        Self::WrongAuthority,
        Self::CertificateExpired,
        Self::CertificateNotYetValid,
        Self::BadCertificate,
        Self::WrongRole,
        Self::WrongSite,
        Self::HandshakeTimedOut,
        Self::HandshakeGarbage,
        Self::HandshakeFailed,
        Self::TooManyHandshakes,
        Self::BadRecord,
        Self::KeysWornOut,
        Self::OversizedFrame,
        Self::UnknownType,
        Self::MalformedMessage,
        Self::NotAllowed,
        Self::BadResult,
        Self::ForeignResult,
        Self::TooManyMessages,
        Self::HelloTimedOut,
        Self::KeepaliveMissed,
        Self::TooSlow,
        Self::PeerClosed,
        Self::HalfClosed,
        Self::Reset,
        Self::Unreachable,
        Self::TransportError,
        Self::Superseded,
        Self::OlderSession,
        Self::Blocked,
        Self::Revoked,
        Self::CertificateEnded,
        Self::ServerFull,
        Self::Unavailable,
        Self::Draining,
        Self::Goodbye,
        Self::BadRequest,
        Self::NoSession,
        Self::Answered,
        Self::BadWebSocket,
        Self::TunnelSilent,
        Self::BadProxyHeader,
    ];

    /// The label of its metric, and the word in presence rows; never changed.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.texts().0
    }

    /// What happened, in a sentence for the log.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        self.texts().1
    }

    /// What the agent is told before the connection closes; `None` when nothing is.
    #[must_use]
    pub fn refusal(self) -> Option<RefusedReason> {
        match self {
            Self::Blocked => Some(RefusedReason::Blocked),
            Self::Revoked | Self::CertificateEnded => Some(RefusedReason::Certificate),
            Self::Superseded | Self::OlderSession => Some(RefusedReason::Superseded),
            Self::Unavailable | Self::Draining => Some(RefusedReason::Unavailable),
            Self::ServerFull => Some(RefusedReason::Full),
            Self::OversizedFrame
            | Self::UnknownType
            | Self::MalformedMessage
            | Self::NotAllowed
            | Self::BadResult
            | Self::ForeignResult
            | Self::TooManyMessages
            | Self::HelloTimedOut => Some(RefusedReason::Protocol),
            _ => None,
        }
    }

    /// Whether what is queued for the peer is worth flushing before the close: not when it does not read, is silent, or is gone.
    #[must_use]
    pub fn flushes(self) -> bool {
        self.refusal().is_some() || matches!(self, Self::Goodbye)
    }

    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::NoCertificate => ("no-certificate", "the peer showed no certificate"),
            Self::WrongAuthority => {
                ("wrong-authority", "the peer's certificate is not by the site's authority")
            }
            Self::CertificateExpired => ("certificate-expired", "the peer's certificate has expired"),
            Self::CertificateNotYetValid => {
                ("certificate-not-yet-valid", "the peer's certificate is not valid yet; compare the clocks")
            }
            Self::BadCertificate => ("bad-certificate", "the peer's certificate cannot be used here"),
            Self::WrongRole => ("wrong-role", "the peer's certificate is not a device's"),
            Self::WrongSite => ("wrong-site", "the peer's certificate is of another site"),
            Self::HandshakeTimedOut => {
                ("handshake-timed-out", "the TLS handshake took too long, or its turn did not come")
            }
            Self::HandshakeGarbage => ("handshake-garbage", "what the peer sent is no TLS handshake"),
            Self::HandshakeFailed => ("handshake-failed", "the TLS handshake failed"),
            Self::TooManyHandshakes => ("too-many-handshakes", "too many TLS handshakes are in flight"),
            Self::BadRecord => ("bad-record", "a TLS record of the peer does not decrypt or is out of place"),
            Self::KeysWornOut => (
                "keys-worn-out",
                "the session's TLS keys must be made anew: the peer asked for it, or they were used up",
            ),
            Self::OversizedFrame => ("oversized-frame", "the peer announced a frame over 64 KiB"),
            Self::UnknownType => ("unknown-type", "the peer sent a frame of an unknown type"),
            Self::MalformedMessage => ("malformed-message", "the peer sent a message that cannot be read"),
            Self::NotAllowed => ("not-allowed", "the peer sent a message that is not allowed at this point"),
            Self::BadResult => ("bad-result", "the peer sent a result that contradicts itself"),
            Self::ForeignResult => ("foreign-result", "the peer sent a result in another device's name"),
            Self::TooManyMessages => ("too-many-messages", "the peer sent more messages than are taken"),
            Self::HelloTimedOut => ("hello-timed-out", "the peer said no hello in time"),
            Self::KeepaliveMissed => {
                ("keepalive-missed", "the agent did not speak for 1.5 times its keepalive")
            }
            Self::TooSlow => ("too-slow", "the peer did not read what waited for it"),
            Self::PeerClosed => ("peer-closed", "the peer closed the connection"),
            Self::HalfClosed => ("half-closed", "the peer closed its direction of the connection"),
            Self::Reset => ("reset", "the peer reset the connection"),
            Self::Unreachable => ("unreachable", "the peer cannot be reached any more"),
            Self::TransportError => ("transport-error", "the connection failed"),
            Self::Superseded => ("superseded", "a newer session of the device took its place"),
            Self::OlderSession => ("older-session", "the device has a newer session already"),
            Self::Blocked => ("blocked", "the device is blocked"),
            Self::Revoked => ("revoked", "the device's certificate is revoked"),
            Self::CertificateEnded => ("certificate-ended", "the device's certificate has ended"),
            Self::ServerFull => ("server-full", "the server has as many sessions as it holds"),
            Self::Unavailable => ("unavailable", "the server takes no sign-ins: it cannot read the queue"),
            Self::Draining => ("draining", "the server stops"),
            Self::Goodbye => ("goodbye", "the agent said goodbye"),
            Self::BadRequest => ("bad-request", "the peer sent no HTTP request that can be taken"),
            Self::NoSession => ("no-session", "no session came of the peer's HTTP connection in time"),
            Self::Answered => ("answered", "the HTTP connection ended after an answer"),
            Self::BadWebSocket => {
                ("bad-websocket", "the peer sent a WebSocket frame that breaks the protocol")
            }
            Self::TunnelSilent => ("tunnel-silent", "the agent has not asked its long-poll tunnel for 90 s"),
            Self::BadProxyHeader => (
                "bad-proxy-header",
                "the proxy did not say whose connection it passes on (PROXY protocol, version 2)",
            ),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.sentence())
    }
}

/// How often connections ended for each reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseCounts([u64; CloseReason::COUNT]);

impl Default for CloseCounts {
    fn default() -> Self {
        Self([0; CloseReason::COUNT])
    }
}

impl CloseCounts {
    /// Counts one more.
    pub fn count(&mut self, reason: CloseReason) {
        self.0[reason as usize] += 1;
    }

    /// How many there were.
    #[must_use]
    pub fn of(&self, reason: CloseReason) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason with its number.
    pub fn iter(&self) -> impl Iterator<Item = (CloseReason, u64)> + '_ {
        CloseReason::ALL.into_iter().map(|reason| (reason, self.of(reason)))
    }

    /// Adds another shard's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine += theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_stands_at_its_own_place_with_its_own_label() {
        let mut labels = BTreeSet::new();
        for (place, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{reason:?}");
            assert!(labels.insert(reason.label()), "{reason:?}");
            let plain = |letter: char| letter.is_ascii_lowercase() || letter == '-';
            assert!(reason.label().chars().all(plain), "{reason:?}");
        }
    }

    #[test]
    fn counts_of_two_shards_add_up() {
        let (mut one, mut other) = (CloseCounts::default(), CloseCounts::default());
        one.count(CloseReason::Goodbye);
        other.count(CloseReason::Goodbye);
        other.count(CloseReason::NoCertificate);
        one.add(&other);
        assert_eq!(one.of(CloseReason::Goodbye), 2);
        assert_eq!(one.iter().map(|(_, count)| count).sum::<u64>(), 3);
    }
}
