//! The roads that the devices which are online come by, and why, summed by the network that they come from.
//!
//! One pass over the devices that are online, which keeps for each of them where it comes from and by which road, sorts that and counts;
//! a reading connection runs it, so that nobody waits for it but who asked. It counts what the database has and judges nothing.
//!
//! Law: how much memory that takes depends on how many devices there are, never on what they say. Of roads and reasons a few thousand are
//! told apart; those met after that are counted by their road, without the reason.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bgb_protocol::message::{Road, RoadTaken};
use rusqlite::Row;

use super::Queries;
use crate::error::SiteError;

/// Roads that are told apart, each with its reason: far more than a fleet has, and 2 MiB with the longest issuers.
const ROADS_MAX: usize = 4_096;

/// Roads that are told of one network, those that most of its devices come by: a screen's half.
const ROADS_OF_NETWORK_MAX: usize = 12;

/// How the devices that are online come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoadSurvey {
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

/// Devices of one road.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoadTotal {
    /// The road; `None` while no server has told it.
    pub kind: Option<RoadKind>,
    /// The devices.
    pub devices: u64,
}

/// A road, whatever the reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoadKind {
    /// How the bytes travel.
    pub road: Road,
    /// Whether an outer TLS is around it.
    pub outer_tls: bool,
    /// Whether it goes through an HTTP proxy.
    pub proxied: bool,
}

/// How the devices of one network come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRoads {
    /// The network.
    pub network: Network,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoadCount {
    /// The road and why; `None` while no server has told it.
    pub taken: Option<RoadTaken>,
    /// The devices.
    pub devices: u64,
}

/// The network of an address: what one place mostly has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// The first 24 bits of an IPv4 address.
    V4([u8; 3]),
    /// The first 48 bits of an IPv6 address: what a site gets (RFC 6177, section 2).
    V6([u8; 6]),
    /// No server has told the address.
    Unknown,
}

impl Network {
    /// The network that an address is in. One of IPv4 that is written as IPv6's is IPv4's.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, ..] = address.octets();
                Self::V6([a, b, c, d, e, f])
            }
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::V4([a, b, c]) => write!(formatter, "{}/24", Ipv4Addr::new(a, b, c, 0)),
            Self::V6([a, b, c, d, e, f]) => {
                let first = [a, b, c, d, e, f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                write!(formatter, "{}/48", Ipv6Addr::from(first))
            }
            Self::Unknown => formatter.write_str("unknown"),
        }
    }
}

impl Queries<'_> {
    /// How the devices that are online come, with the first `networks_max` of their networks.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn road_survey(&self, networks_max: usize) -> Result<RoadSurvey, SiteError> {
        let mut book = RoadBook::default();
        let mut comers = Vec::new();
        let mut statement = self.connection.prepare_cached(ROADS_ONLINE)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            comers.push(read(row, &mut book)?);
        }
        Ok(survey(&book, comers, networks_max))
    }
}

/// Where the devices that are online come from, and by which road.
pub(super) const ROADS_ONLINE: &str = "SELECT address, road FROM device WHERE presence = 1";

fn read(row: &Row<'_>, book: &mut RoadBook) -> Result<Comer, SiteError> {
    let text = |column| {
        let value = row.get_ref(column)?.as_str_or_null();
        value.map_err(|error| SiteError::Corrupt(format!("a device's road: {error}")))
    };
    let address = text(0)?.and_then(|address| address.parse::<SocketAddr>().ok());
    let network = address.map_or(Network::Unknown, |address| Network::of(address.ip()));
    Ok(Comer { network, place: book.place_of(text(1)?) })
}

/// A device that is online: ten bytes of it. In their order, networks stand together and in them roads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Comer {
    network: Network,
    /// Its road's place in the [`RoadBook`].
    place: u16,
}

const _: () = assert!(size_of::<Comer>() == 10);

/// The roads that were met, in the order of meeting.
#[derive(Default)]
struct RoadBook {
    /// By what the database has of them.
    places: HashMap<String, u16>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// One road with its reason, or one that nobody has told.
    One(Option<RoadTaken>),
    /// All further ones of a kind.
    Further(RoadKind),
}

impl Entry {
    fn kind(&self) -> Option<RoadKind> {
        match self {
            Self::One(taken) => taken.as_ref().map(RoadKind::of),
            Self::Further(kind) => Some(*kind),
        }
    }

    fn is_off_tcp(&self) -> bool {
        self.kind().is_some_and(|kind| kind.road != Road::Tcp)
    }
}

impl RoadKind {
    fn of(taken: &RoadTaken) -> Self {
        Self { road: taken.road, outer_tls: taken.outer_tls, proxied: taken.proxied }
    }
}

impl RoadBook {
    fn place_of(&mut self, text: Option<&str>) -> u16 {
        // No road is written as nothing.
        let text = text.unwrap_or_default();
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let taken: Option<RoadTaken> = serde_json::from_str(text).ok();
        match &taken {
            Some(taken) if self.places.len() >= ROADS_MAX => {
                let further = Entry::Further(RoadKind::of(taken));
                let known = self.entries.iter().rposition(|entry| *entry == further);
                known.map_or_else(|| self.enter(further), place)
            }
            // One that cannot be read is not told, whatever it says: it must not hide all others.
            None if !text.is_empty() => self.place_of(None),
            _ => {
                let new = self.enter(Entry::One(taken));
                self.places.insert(text.to_owned(), new);
                new
            }
        }
    }

    fn enter(&mut self, entry: Entry) -> u16 {
        self.entries.push(entry);
        place(self.entries.len() - 1)
    }

    fn entry(&self, place: u16) -> &Entry {
        &self.entries[usize::from(place)]
    }
}

fn place(index: usize) -> u16 {
    u16::try_from(index)
        .expect("the roads that are told apart, and one further of each kind, are fewer than 65,536")
}

/// How much a network is to be looked at: more devices that are not on TCP, then more devices, then the lower address. And the index of
/// its first device.
type Rank = (u64, u64, Reverse<Network>, usize);

/// Counts. `comers` are in any order.
fn survey(book: &RoadBook, mut comers: Vec<Comer>, networks_max: usize) -> RoadSurvey {
    comers.sort_unstable();
    let mut survey = RoadSurvey { online: comers.len() as u64, ..RoadSurvey::default() };
    let mut by_place = vec![0_u64; book.entries.len()];
    let mut first: BTreeSet<Rank> = BTreeSet::new();
    let mut begin = 0;
    for network in comers.chunk_by(|one, next| one.network == next.network) {
        let mut off_tcp = 0;
        for road in network.chunk_by(|one, next| one.place == next.place) {
            by_place[usize::from(road[0].place)] += road.len() as u64;
            if book.entry(road[0].place).is_off_tcp() {
                off_tcp += road.len() as u64;
            }
        }
        survey.networks_all += 1;
        survey.networks_off_tcp += u64::from(off_tcp > 0);
        first.insert((off_tcp, network.len() as u64, Reverse(network[0].network), begin));
        if first.len() > networks_max {
            first.pop_first();
        }
        begin += network.len();
    }
    survey.roads = totals(book, &by_place);
    survey.networks = first.into_iter().rev().map(|rank| network_roads(book, &comers, rank)).collect();
    survey
}

fn totals(book: &RoadBook, by_place: &[u64]) -> Vec<RoadTotal> {
    let mut by_kind: BTreeMap<Option<RoadKind>, u64> = BTreeMap::new();
    for (entry, devices) in book.entries.iter().zip(by_place) {
        *by_kind.entry(entry.kind()).or_default() += devices;
    }
    let mut totals: Vec<_> = by_kind.into_iter().map(|(kind, devices)| RoadTotal { kind, devices }).collect();
    totals.sort_by_key(|total| Reverse(total.devices));
    totals
}

fn network_roads(book: &RoadBook, comers: &[Comer], rank: Rank) -> NetworkRoads {
    let (off_tcp, devices, Reverse(network), begin) = rank;
    let its = comers[begin..].chunk_by(|one, next| one.network == next.network).next().unwrap_or_default();
    let mut counted: Vec<(u64, u16)> = its
        .chunk_by(|one, next| one.place == next.place)
        .map(|road| (road.len() as u64, road[0].place))
        .collect();
    counted.sort_unstable_by_key(|&(devices, place)| (Reverse(devices), place));
    let told = counted.into_iter().filter_map(|(devices, place)| match book.entry(place) {
        Entry::One(taken) => Some(RoadCount { taken: taken.clone(), devices }),
        Entry::Further(_) => None,
    });
    let roads: Vec<_> = told.take(ROADS_OF_NETWORK_MAX).collect();
    let others = devices - roads.iter().map(|road| road.devices).sum::<u64>();
    NetworkRoads { network, devices, off_tcp, roads, others }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roads_that_cannot_be_read_are_one_road_however_many_they_are() {
        let mut book = RoadBook::default();
        let places = (0..70_000).map(|number| book.place_of(Some(&format!("pigeon {number}"))));
        assert_eq!((places.max(), book.entries.len(), book.places.len()), (Some(0), 1, 1));
        assert_eq!(book.place_of(None), 0);
    }
}
