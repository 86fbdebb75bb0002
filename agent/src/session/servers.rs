//! The servers that an agent may go to, and whose turn it is.
//!
//! Those that policy and configuration name come first, in their order; then those that servers named. A server's word is
//! not signed, so what it names is bounded, is tried last, and is not kept on disk; whoever answers there has to show
//! the site's certificate for that very name like any other.

/// Most servers that are remembered from other servers' word: more than a site of this release has.
const LEARNED_MAX: usize = 16;

/// Longest address taken from a server: a host name has 253 characters (RFC 1035), a port 5.
const ADDRESS_BYTES_MAX: usize = 260;

/// A list that is gone through in a circle.
#[derive(Clone, Debug)]
pub(super) struct Servers {
    configured: Vec<String>,
    learned: Vec<String>,
    at: usize,
}

impl Servers {
    pub(super) fn new(configured: Vec<String>) -> Self {
        assert!(!configured.is_empty(), "configuration and policy name one server at least");
        Self { configured, learned: Vec::new(), at: 0 }
    }

    /// The server whose turn it is.
    pub(super) fn current(&self) -> &str {
        match self.configured.get(self.at) {
            Some(address) => address,
            None => &self.learned[self.at - self.configured.len()],
        }
    }

    /// The next one's turn.
    pub(super) fn advance(&mut self) {
        self.at = (self.at + 1) % self.count();
    }

    /// Takes another list; the present server keeps its turn where it is among the first `preferred` of the new one, which are
    /// those that a policy names.
    pub(super) fn set_configured(&mut self, configured: Vec<String>, preferred: usize) {
        if configured.is_empty() || configured == self.configured {
            return;
        }
        let current = self.current().to_owned();
        self.configured = configured;
        self.learned.retain(|address| !self.configured.contains(address));
        self.at = self.position(&current).filter(|at| *at < preferred).unwrap_or(0);
    }

    /// Remembers what a server named.
    pub(super) fn learn(&mut self, addresses: &[String]) {
        for address in addresses {
            if is_address(address) && self.position(address).is_none() && self.learned.len() < LEARNED_MAX {
                self.learned.push(address.clone());
            }
        }
    }

    /// The first of `addresses` has its turn; without any, the present one keeps it.
    pub(super) fn go_to(&mut self, addresses: &[String]) {
        self.learn(addresses);
        if let Some(at) = addresses.iter().find_map(|address| self.position(address)) {
            self.at = at;
        }
    }

    fn count(&self) -> usize {
        self.configured.len() + self.learned.len()
    }

    fn position(&self, address: &str) -> Option<usize> {
        self.configured.iter().chain(&self.learned).position(|known| known == address)
    }
}

/// Whether a text looks like `host:port`.
pub(crate) fn is_address(text: &str) -> bool {
    text.len() <= ADDRESS_BYTES_MAX
        && text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(addresses: &[&str]) -> Vec<String> {
        addresses.iter().map(|address| (*address).to_owned()).collect()
    }

    #[test]
    fn servers_have_their_turn_in_a_circle_with_those_learned_last() {
        let mut servers = Servers::new(list(&["a:1", "b:1"]));
        servers.learn(&list(&["c:1", "a:1", "nowhere", ":5", "d:0"]));
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(servers.current().to_owned());
            servers.advance();
        }
        assert_eq!(seen, list(&["a:1", "b:1", "c:1", "a:1"]));
    }

    #[test]
    fn a_new_list_keeps_the_present_server_where_it_can() {
        let mut servers = Servers::new(list(&["a:1", "b:1"]));
        servers.advance();
        servers.set_configured(list(&["x:1", "b:1"]), 2);
        assert_eq!(servers.current(), "b:1");
        servers.set_configured(list(&["y:1", "x:1", "b:1"]), 1);
        assert_eq!(servers.current(), "y:1", "a policy moves its devices");
    }

    #[test]
    fn a_server_cannot_name_more_than_is_remembered() {
        let mut servers = Servers::new(list(&["a:1"]));
        servers.learn(&(1..100).map(|port| format!("h:{port}")).collect::<Vec<_>>());
        assert_eq!(servers.count(), 1 + LEARNED_MAX);
        servers.go_to(&list(&["unheard.of:9"]));
        assert_eq!(servers.current(), "a:1");
    }
}
