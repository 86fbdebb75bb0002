//! Where agents connect from: a network of which each takes an address of its own, so that no address runs out of ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sources {
    base: u32,
    bits: u32,
}

/// What is taken where servers are on this machine: 4 million addresses of loopback, out of the way of what is configured on it.
pub(crate) const LOOPBACK: Sources = Sources { base: 0x7F40_0000, bits: 10 };

impl Sources {
    /// The address of the `place`-th agent; they come again when all were given.
    pub(crate) fn address(self, place: usize) -> IpAddr {
        // Neither the network's own address nor its last.
        let hosts = (1_u64 << (32 - self.bits)).saturating_sub(2).max(1);
        let host = (place as u64 % hosts) as u32 + u32::from(self.bits < 31);
        IpAddr::V4(Ipv4Addr::from(self.base + host))
    }
}

impl FromStr for Sources {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no network: 127.64.0.0/10");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let bits: u32 = bits.parse().ok().filter(|bits| (8..=32).contains(bits)).ok_or_else(wrong)?;
        let mask = u32::MAX << (32 - bits);
        let base = u32::from(address);
        if base & !mask != 0 {
            return Err(format!("{text:?} is no network: it has bits behind the first {bits}"));
        }
        Ok(Self { base, bits })
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", Ipv4Addr::from(self.base), self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_agent_has_an_address_until_all_are_given() {
        let small: Sources = "127.0.0.8/29".parse().unwrap();
        let given: Vec<_> = (0..7).map(|place| small.address(place).to_string()).collect();
        assert_eq!(given[0], "127.0.0.9");
        assert_eq!(given[5], "127.0.0.14");
        assert_eq!(given[6], given[0]);
        let one: Sources = "10.0.0.7/32".parse().unwrap();
        assert_eq!(one.address(3).to_string(), "10.0.0.7");
        assert_eq!(LOOPBACK.to_string().parse::<Sources>().unwrap(), LOOPBACK);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for wrong in ["", "127.0.0.1", "127.0.0.1/8", "1.2.3.4/33", "1.2.3.0/7", "::1/64"] {
            assert!(wrong.parse::<Sources>().is_err(), "{wrong}");
        }
    }
}
