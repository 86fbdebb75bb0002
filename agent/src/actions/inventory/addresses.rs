//! The machine's network addresses, from `/proc/net` and `/sys/class/net`.
//!
//! The kernel tells IPv6 addresses with their interfaces (if_inet6), but IPv4 ones only as local routes of its table (fib_trie); the
//! interface is then the one whose most specific route covers the address. It asks no program and opens no socket.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::{read, short};

/// Every address with its interface, where that can be told, and the interface's hardware address.
pub(super) fn addresses() -> Vec<Value> {
    let routes = routes(&read("/proc/net/route"));
    let v4 = local_v4(&read("/proc/net/fib_trie"));
    let v4 = v4.into_iter().map(|address| (interface_of(address, &routes), address.to_string()));
    let v6 = v6(&read("/proc/net/if_inet6"));
    let v6 = v6.into_iter().map(|(interface, address)| (Some(interface), address.to_string()));
    v4.chain(v6)
        .map(|(interface, address)| {
            let hardware = interface.as_deref().map(|name| read(format!("/sys/class/net/{name}/address")));
            let hardware = hardware.as_deref().map(str::trim).filter(|text| !text.is_empty());
            json!({"interface": interface.as_deref().map(short), "address": address, "hardware": hardware.map(short)})
        })
        .collect()
}

/// A route of the main table.
struct Route {
    interface: String,
    destination: u32,
    mask: u32,
}

/// /proc/net/route: interface, destination, gateway, flags, …, mask (the eighth column), the numbers in the machine's byte order.
fn routes(table: &str) -> Vec<Route> {
    let route = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let number = |at: usize| {
            u32::from_str_radix(columns.get(at)?, 16).ok().map(|raw| u32::from_be_bytes(raw.to_ne_bytes()))
        };
        Some(Route { interface: (*columns.first()?).to_owned(), destination: number(1)?, mask: number(7)? })
    };
    table.lines().skip(1).filter_map(route).collect()
}

/// Local IPv4 addresses: in fib_trie, a leaf `|-- ADDRESS` that is followed by `/32 host LOCAL`.
fn local_v4(trie: &str) -> BTreeSet<Ipv4Addr> {
    let mut found = BTreeSet::new();
    let mut leaf: Option<Ipv4Addr> = None;
    for line in trie.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(leaf);
        }
    }
    found
}

fn interface_of(address: Ipv4Addr, routes: &[Route]) -> Option<String> {
    if address.is_loopback() {
        return Some("lo".to_owned());
    }
    let covers = |route: &&Route| route.mask != 0 && u32::from(address) & route.mask == route.destination;
    let route = routes.iter().filter(covers).max_by_key(|route| route.mask.count_ones())?;
    Some(route.interface.clone())
}

/// /proc/net/if_inet6: address as 32 digits, index, prefix length, scope, flags, interface.
fn v6(table: &str) -> Vec<(String, Ipv6Addr)> {
    let row = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let bits = u128::from_str_radix(columns.first()?, 16).ok()?;
        Some(((*columns.get(5)?).to_owned(), Ipv6Addr::from_bits(bits)))
    };
    table.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_with_the_interface_of_its_most_specific_route() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 192.0.2.0\n        /24 link UNICAST\n     |-- 192.0.2.7\n        \
                    /32 host LOCAL\n";
        let address = Ipv4Addr::new(192, 0, 2, 7);
        assert_eq!(local_v4(trie), BTreeSet::from([address]));
        let hex = |address: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(address));
        let table = format!(
            "Iface Destination Gateway Flags RefCnt Use Metric Mask\nwan0 {} 0 1 0 0 0 {}\neth0 {} 0 1 0 0 0 {}\n",
            hex([192, 0, 0, 0]),
            hex([255, 255, 0, 0]),
            hex([192, 0, 2, 0]),
            hex([255, 255, 255, 0]),
        );
        assert_eq!(interface_of(address, &routes(&table)).as_deref(), Some("eth0"));
        assert_eq!(interface_of(Ipv4Addr::new(198, 51, 100, 1), &routes(&table)), None);
    }

    #[test]
    fn version_6_addresses_come_with_their_interface() {
        let table = "20010db8000000000000000000000001 02 40 00 80     eth0\nnonsense\n";
        assert_eq!(v6(table), [("eth0".to_owned(), "2001:db8::1".parse().unwrap())]);
    }
}
