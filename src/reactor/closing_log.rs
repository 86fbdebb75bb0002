//! One line in the log for each connection that ends, and an end to how many of them others can cause.
//!
//! What is ordinary in a fleet's day is for whoever looks into one device (debug). What a stranger or a device does wrong is for everybody,
//! but the number of such lines in a second is ours to say: beyond it they go to debug as well, and how many did is said.

use std::net::SocketAddr;

use bgb_hub::{CloseReason, TICK_MS, Tick};
use bgb_protocol::ids::DeviceId;
use tracing::Level;

use crate::HTTP_LOG;

/// Lines above debug in a second: enough to see what goes on, and at some 200 bytes each no more than 150 MiB in a day.
const LINES_PER_SECOND: u32 = 10;

/// See the module.
#[derive(Debug, Default)]
pub struct ClosingLog {
    second: u64,
    lines: u32,
    held_back: u64,
}

/// A connection that ends.
#[derive(Debug)]
pub struct Closing<'a> {
    /// The other end.
    pub peer: SocketAddr,
    /// Who it is, if it has shown that.
    pub device: Option<DeviceId>,
    /// Why it ends.
    pub reason: CloseReason,
    /// What TLS said, if it was at fault.
    pub detail: &'a str,
}

impl ClosingLog {
    /// Logs an end.
    pub fn say(&mut self, now: Tick, closing: &Closing<'_>) {
        let Closing { peer, device, reason, detail } = closing;
        let device = device.map(|device| device.0);
        let label = reason.label();
        let detail = Some(*detail).filter(|detail| !detail.is_empty());
        macro_rules! say {
            ($level:ident) => {
                if is_of_http(*reason) {
                    tracing::$level!(target: HTTP_LOG, %peer, device, reason = label, detail, "{reason}");
                } else {
                    tracing::$level!(%peer, device, reason = label, detail, "{reason}");
                }
            };
        }
        match self.level(now, *reason, device.is_some()) {
            Level::WARN => say!(warn),
            Level::INFO => say!(info),
            _ => say!(debug),
        }
    }

    /// The level of a line, which counts as written by that.
    fn level(&mut self, now: Tick, reason: CloseReason, is_known: bool) -> Level {
        // Of somebody who is not known, what no agent of ours does is a stranger's noise.
        let is_known = is_known || reason == CloseReason::BadProxyHeader;
        let level = if is_known { weight(reason) } else { weight(reason).max(Level::INFO) };
        if level == Level::DEBUG {
            return level;
        }
        let second = now.0 * TICK_MS / 1_000;
        if second != self.second {
            if self.held_back > 0 {
                tracing::info!(
                    connections = self.held_back,
                    "more connections ended for a fault than are logged; /metrics counts them by reason"
                );
            }
            *self = Self { second, lines: 0, held_back: 0 };
        }
        if self.lines >= LINES_PER_SECOND {
            self.held_back += 1;
            return Level::DEBUG;
        }
        self.lines += 1;
        level
    }
}

/// Whether it is something that only the roads through HTTP know.
fn is_of_http(reason: CloseReason) -> bool {
    use CloseReason as Why;
    matches!(
        reason,
        Why::BadRequest
            | Why::NoSession
            | Why::Answered
            | Why::BadWebSocket
            | Why::TunnelSilent
            | Why::BadProxyHeader
    )
}

fn weight(reason: CloseReason) -> Level {
    use CloseReason as Why;
    match reason {
        Why::Goodbye
        | Why::PeerClosed
        | Why::HalfClosed
        | Why::Reset
        | Why::Unreachable
        | Why::KeepaliveMissed
        | Why::KeysWornOut
        | Why::Superseded
        | Why::OlderSession
        | Why::Unavailable
        | Why::Draining
        | Why::Answered
        | Why::TunnelSilent => Level::DEBUG,
        // Somebody who was named as a proxy, and is to be set up.
        Why::BadProxyHeader => Level::WARN,
        // A device that has shown who it is, and does what no agent of ours does.
        Why::BadRecord
        | Why::OversizedFrame
        | Why::UnknownType
        | Why::MalformedMessage
        | Why::NotAllowed
        | Why::BadResult
        | Why::ForeignResult
        | Why::TooManyMessages => Level::WARN,
        _ => Level::INFO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_cause_ten_lines_a_second_and_no_more() {
        let mut log = ClosingLog::default();
        let mut lines_at =
            |tick, reason| (0..100).filter(|_| log.level(Tick(tick), reason, true) != Level::DEBUG).count();
        assert_eq!(lines_at(5, CloseReason::HandshakeGarbage), 10);
        assert_eq!(lines_at(9, CloseReason::WrongAuthority), 0, "it is the same second");
        assert_eq!(lines_at(10, CloseReason::BadResult), 10);
        assert_eq!(lines_at(20, CloseReason::Goodbye), 0, "that is ordinary");
        assert_eq!((log.lines, log.held_back), (10, 90));
    }
}
