//! Hosts that no proxy is asked for: `no_proxy`, as curl reads it.
//!
//! A name means itself and all names below it, with or without a dot before it; an address itself; an address with a prefix length its network;
//! `*` everything. Each may have a port, and means that one only then.

use std::net::IpAddr;

use super::is_host;

/// A list of such words.
#[derive(Clone, Debug, Default)]
pub(super) struct Bypass(Vec<Rule>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    All,
    /// Lower case, without a dot at either end.
    Name(String),
    Network {
        address: IpAddr,
        prefix: u32,
    },
}

impl Bypass {
    /// Adds a word; whether it means anything. One that does not matches nothing.
    pub(super) fn add(&mut self, word: &str) -> bool {
        let rule = Rule::parse(word.trim());
        let is_rule = rule.is_some();
        self.0.extend(rule);
        is_rule
    }

    /// Whether `port` of `host` is on the list; an IPv6 address is in brackets.
    pub(super) fn has(&self, host: &str, port: u16) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = bare.trim_end_matches('.').to_ascii_lowercase();
        self.0.iter().any(|rule| rule.port.is_none_or(|only| only == port) && rule.hosts.have(&name))
    }
}

impl Rule {
    fn parse(word: &str) -> Option<Self> {
        if let Some(hosts) = Hosts::parse(word) {
            return Some(Self { hosts, port: None });
        }
        let (host, port) = word.rsplit_once(':')?;
        Some(Self { hosts: Hosts::parse(host)?, port: Some(port.parse().ok()?) })
    }
}

impl Hosts {
    fn parse(word: &str) -> Option<Self> {
        if word == "*" {
            return Some(Self::All);
        }
        let (address, prefix) =
            word.split_once('/').map_or((word, None), |(address, prefix)| (address, Some(prefix)));
        let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
        if let Ok(address) = bare.parse::<IpAddr>() {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.map_or(Some(bits), |prefix| prefix.parse().ok())?;
            return (prefix <= bits).then_some(Self::Network { address, prefix });
        }
        let name = word.trim_matches('.').to_ascii_lowercase();
        (!name.starts_with('[') && is_host(&name)).then_some(Self::Name(name))
    }

    fn have(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Name(own) => {
                name.strip_suffix(own.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Network { address, prefix } => match (address, name.parse()) {
                (IpAddr::V4(own), Ok(IpAddr::V4(other))) => {
                    let differs = u32::from(*own) ^ u32::from(other);
                    differs.checked_shr(32 - prefix).unwrap_or(0) == 0
                }
                (IpAddr::V6(own), Ok(IpAddr::V6(other))) => {
                    let differs = u128::from(*own) ^ u128::from(other);
                    differs.checked_shr(128 - prefix).unwrap_or(0) == 0
                }
                _ => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_networks_and_ports_are_told_apart() {
        for (words, host, is_listed) in [
            ("example.org", "example.org", true),
            ("example.org", "bgb.Example.ORG.", true),
            (".example.org", "example.org", true),
            (".example.org", "bgb.example.org", true),
            ("example.org", "notexample.org", false),
            ("example.org:8443", "example.org", true),
            ("example.org:443", "example.org", false),
            ("*", "anything", true),
            ("10.0.0.0/8", "10.200.3.4", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "11.0.0.1", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7:1", "192.0.2.7", false),
            ("2001:db8::/32", "[2001:db8:1::5]", true),
            ("[2001:db8::1]:8443", "[2001:db8::1]", true),
            ("2001:db8::/32", "[2001:db9::5]", false),
            ("10.0.0.0/33", "10.0.0.0", false),
            ("", "example.org", false),
            ("a,, localhost ,b", "localhost", true),
        ] {
            let mut bypass = Bypass::default();
            for word in words.split(',') {
                bypass.add(word);
            }
            assert_eq!(bypass.has(host, 8443), is_listed, "{words:?} and {host:?}");
        }
    }

    #[test]
    fn a_word_that_means_nothing_is_known() {
        for (word, is_one) in [
            ("localhost", true),
            (" .example.org:8443", true),
            ("2001:db8::/32", true),
            ("10.0.0.0/33", false),
            ("10.0.0/8", false),
            ("example.org:https", false),
            ("*.example.org", false),
            ("a b", false),
            ("http://example.org", false),
            ("", false),
        ] {
            assert_eq!(Bypass::default().add(word), is_one, "{word:?}");
        }
    }
}
