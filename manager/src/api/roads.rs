//! `/roads`.

use bgb_protocol::api::{ErrorCode, NetworkRoads, RoadCount, RoadSurvey, RoadTotal};
use bgb_protocol::ids::UnixMillis;
use bgb_site::store::{self, Network};

use super::query::Query;
use super::{Api, Routed, json, now};
use crate::refusal::refusal;

impl Api {
    /// One request counts at a time: each keeps a core busy, and the machine's others are the servers' and the writer's.
    pub(super) fn roads(&self, mut query: Query) -> Routed {
        let networks_max = query.take_limit()?;
        query.finish()?;
        // Another one would wait with a thread of the API's, which orders need.
        let Some(_counting) = self.counting_roads.try_lock() else {
            let sentence = "somebody else is having the devices' roads counted; ask again in a second";
            return Err(refusal(ErrorCode::Unavailable, sentence));
        };
        let time = UnixMillis(now().unix_ms);
        let survey = self.read(|queries| queries.road_survey(networks_max))?;
        Ok(json(&RoadSurvey {
            time,
            online: survey.online,
            roads: survey.roads.iter().map(total).collect(),
            networks_all: survey.networks_all,
            networks_off_tcp: survey.networks_off_tcp,
            networks: survey.networks.into_iter().map(network).collect(),
        }))
    }
}

fn total(total: &store::RoadTotal) -> RoadTotal {
    RoadTotal {
        road: total.kind.map(|kind| kind.road),
        outer_tls: total.kind.is_some_and(|kind| kind.outer_tls),
        proxied: total.kind.is_some_and(|kind| kind.proxied),
        devices: total.devices,
    }
}

fn network(counted: store::NetworkRoads) -> NetworkRoads {
    NetworkRoads {
        network: (counted.network != Network::Unknown).then(|| counted.network.to_string()),
        devices: counted.devices,
        off_tcp: counted.off_tcp,
        roads: counted.roads.into_iter().map(count).collect(),
        others: counted.others,
    }
}

fn count(counted: store::RoadCount) -> RoadCount {
    let taken = counted.taken.as_ref();
    RoadCount {
        road: taken.map(|taken| taken.road),
        outer_tls: taken.is_some_and(|taken| taken.outer_tls),
        proxied: taken.is_some_and(|taken| taken.proxied),
        devices: counted.devices,
        reason: counted.taken.and_then(|taken| taken.reason),
    }
}
