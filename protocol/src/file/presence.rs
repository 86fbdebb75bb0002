//! Rows of a `.BOS` file: who is online at a server, and who went.
//!
//! Each row names the session that it speaks of, so that a late or repeated one changes nothing that a newer session has
//! said. Only a full list, and only a whole one, says by leaving a device out that it is not there.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, DeviceId, SessionNumber, UnixMillis};
use crate::message::RoadTaken;

/// One device's session at the server that wrote the file. Rows are in the order of device numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceRow {
    /// The device.
    pub device: DeviceId,
    /// Which boot of the device has the session.
    pub boot: BootId,
    /// Which of its sessions.
    pub session: SessionNumber,
    /// When it signed in, by the server's clock.
    pub signed_in: UnixMillis,
    /// Online, or gone.
    pub presence: Presence,
}

/// Whether the session is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// It is.
    Online(Box<OnlineDetails>),
    /// It ended. Deltas only.
    Offline {
        /// When, by the server's clock.
        at: UnixMillis,
        /// In a few words.
        reason: String,
    },
}

/// What the server knows of a session that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnlineDetails {
    /// Where it comes from, as the server sees it.
    pub address: SocketAddr,
    /// How it comes, and why.
    pub road: RoadTaken,
    /// The agent's release.
    pub agent_version: String,
    /// The machine's wall clock less the agent's own time, in milliseconds.
    pub clock_skew_ms: i64,
    /// The highest policy version that is applied there.
    pub policy_version: u64,
    /// `os os_version arch`, for people.
    pub platform: String,
    /// The machine's host name.
    pub hostname: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::laws::{boot, device, hold_for, session, text, time};
    use crate::message::{Road, RoadReason};

    fn road() -> impl Strategy<Value = RoadTaken> {
        let reason = prop_oneof![
            Just(RoadReason::Refused),
            Just(RoadReason::TimedOut),
            Just(RoadReason::Reset),
            any::<u16>().prop_map(RoadReason::ProxyAnswer),
            text().prop_map(RoadReason::Intercepted),
        ];
        let road = prop::sample::select(vec![Road::Tcp, Road::WebSocket, Road::LongPoll]);
        (road, any::<bool>(), any::<bool>(), prop::option::of(reason))
            .prop_map(|(road, outer_tls, proxied, reason)| RoadTaken { road, outer_tls, proxied, reason })
    }

    prop_compose! {
        fn details()(
            address in any::<SocketAddr>(), road in road(), agent_version in text(), clock_skew_ms in any::<i64>(),
            policy_version in any::<u64>(), platform in text(), hostname in text(),
        ) -> OnlineDetails {
            // What a server sees of a peer has no flow label; a link-local address travels without its interface.
            let address = SocketAddr::new(address.ip(), address.port());
            OnlineDetails { address, road, agent_version, clock_skew_ms, policy_version, platform, hostname }
        }
    }

    fn presence() -> impl Strategy<Value = Presence> {
        prop_oneof![
            details().prop_map(|details| Presence::Online(Box::new(details))),
            (time(), text()).prop_map(|(at, reason)| Presence::Offline { at, reason }),
        ]
    }

    proptest! {
        #[test]
        fn a_row_keeps_the_laws_of_the_codec(
            device in device(), boot in boot(), session in session(), signed_in in time(), presence in presence(),
        ) {
            hold_for(&PresenceRow { device, boot, session, signed_in, presence });
        }
    }
}
