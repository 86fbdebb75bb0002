//! The API's types for roads: why devices are not on TCP, summed by the networks that they come from.

use serde::{Deserialize, Serialize};

use crate::ids::UnixMillis;
use crate::message::{Road, RoadReason};

/// `GET /roads?limit=`: how the devices come that are online, with the first `limit` of their networks. It is counted anew for each request: a
/// second's work at a million devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoadSurvey {
    /// The manager's time when it counted.
    pub time: UnixMillis,
    /// Devices that are online.
    pub online: u64,
    /// They by their roads, those of most devices first.
    pub roads: Vec<RoadTotal>,
    /// Networks that they come from.
    pub networks_all: u64,
    /// Those of the networks in which some device is not on TCP.
    pub networks_off_tcp: u64,
    /// The first of the networks: those with most devices that are not on TCP, then those with most devices.
    pub networks: Vec<NetworkRoads>,
}

/// Devices of one road, whatever the reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoadTotal {
    /// How the bytes travel; `None` while no server has told it.
    pub road: Option<Road>,
    /// Whether an outer TLS is around it (HTTPS).
    pub outer_tls: bool,
    /// Whether it goes through an HTTP proxy.
    pub proxied: bool,
    /// The devices.
    pub devices: u64,
}

/// How the devices of one network come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRoads {
    /// The network, as servers see its devices' addresses: `192.0.2.0/24` or `2001:db8:1::/48`; `None` where no address is told.
    pub network: Option<String>,
    /// Devices of it that are online.
    pub devices: u64,
    /// Those of them that are not on TCP.
    pub off_tcp: u64,
    /// Their roads and the reasons, those of most devices first; twelve at the most.
    pub roads: Vec<RoadCount>,
    /// Devices whose road and reason are none of these.
    pub others: u64,
}

/// Devices of one road and reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoadCount {
    /// How the bytes travel; `None` while no server has told it.
    pub road: Option<Road>,
    /// Whether an outer TLS is around it (HTTPS).
    pub outer_tls: bool,
    /// Whether it goes through an HTTP proxy.
    pub proxied: bool,
    /// Why it is not TCP, when it is not.
    pub reason: Option<RoadReason>,
    /// The devices.
    pub devices: u64,
}
