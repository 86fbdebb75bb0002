//! `server.toml`: what a notification server is told.
//!
//! Relative paths are relative to the file's own folder. Unknown keys are errors, named with line and column.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bgb_daemon::log::LogConfig;
use bgb_protocol::ids::SiteCode;
use serde::Deserialize;

use crate::network::Network;
use crate::reactor::entrance::Entrance;
use crate::tls::TlsFiles;

/// The configuration of one notification server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// The site's code.
    pub site: SiteCodeText,
    /// The server's number within the site.
    pub server: u32,
    /// Where devices connect. Port 0 takes any free one.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where those connect that only get out by HTTP; without the key, at port 8080 of `listen`'s address.
    #[serde(default)]
    pub listen_http: Option<Entry>,
    /// The same in HTTPS; without the key, at port 8443 of `listen`'s address.
    #[serde(default)]
    pub listen_https: Option<Entry>,
    /// Networks of reverse proxies and balancers that say whose connections they pass on (PROXY protocol, version 2), on every port: from
    /// there a connection that does not begin so is closed.
    #[serde(default)]
    pub proxy_protocol_networks: Vec<Network>,
    /// Where `/metrics`, `/healthz` and `/readyz` are answered: a loopback address.
    #[serde(default = "default_admin")]
    pub admin: SocketAddr,
    /// The site database; it is only read.
    pub database: PathBuf,
    /// The doorbell that the manager rings when the queue has grown.
    pub bell: PathBuf,
    /// The server's own sub-folder of the site's inbox.
    pub inbox: PathBuf,
    /// The server's own folder: results that are not yet on their way, files that wait to be carried.
    pub spool: PathBuf,
    /// Certificate, key and authority.
    pub tls: TlsFiles,
    /// Reactor threads, 1 to 256; 0 for one per core.
    #[serde(default)]
    pub reactors: usize,
    /// Most connections that the server holds, 1 to 10,000,000.
    #[serde(default = "default_connections_max")]
    pub connections_max: u32,
    /// Networks from which more than 64 handshakes in flight and 200 in a second may come from one address: where proxies and relays
    /// are.
    #[serde(default = "default_handshake_exempt_networks")]
    pub handshake_exempt_networks: Vec<Network>,
    /// How often devices speak when they have nothing to say, in seconds, 20 to 3,600.
    #[serde(default = "default_keepalive_seconds")]
    pub keepalive_seconds: u32,
    /// From one full presence list to the next, in seconds, 10 to 3,600.
    #[serde(default = "default_presence_full_seconds")]
    pub presence_full_seconds: u32,
    /// From one presence delta to the next while anything changes, in seconds, 1 to 300.
    #[serde(default = "default_presence_delta_seconds")]
    pub presence_delta_seconds: u32,
    /// How long results gather for a file after the one before it, in seconds, 1 to 300.
    #[serde(default = "default_results_seconds")]
    pub results_seconds: u32,
    /// How long the queue may be unreadable before new sign-ins are refused, in seconds, 1 to 86,400.
    #[serde(default = "default_queue_unreadable_refuse_seconds")]
    pub queue_unreadable_refuse_seconds: u32,
    /// Other servers of the site, `host:port`, told to devices.
    #[serde(default)]
    pub other_servers: Vec<String>,
    /// Logs.
    #[serde(default)]
    pub log: LogConfig,
}

/// Other servers that devices are told: a handful is enough to find one that works, and a welcome must fit its frame.
const OTHER_SERVERS_MAX: usize = 16;
/// A DNS name has 253 bytes at the most (RFC 1035 section 2.3.4), a port 5, and a colon stands between.
const ADDRESS_BYTES_MAX: usize = 260;

/// Ports of HTTP's roads (docs/protocol.md, 13).
const HTTP_PORT: u16 = 8080;
const HTTPS_PORT: u16 = 8443;

/// What else can be done about one of HTTP's ports.
const OR_OFF: &str = ", or set one of HTTP's to \"off\"";

/// Networks of one kind: each is looked at for every connection.
const NETWORKS_MAX: usize = 64;

/// A port that can be off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Entry {
    /// Nobody listens.
    Off,
    /// Here.
    At(SocketAddr),
}

impl TryFrom<String> for Entry {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "off" => Ok(Self::Off),
            address => address
                .parse()
                .map(Self::At)
                .map_err(|_| format!("{text:?} is neither an address such as \"0.0.0.0:8080\" nor \"off\"")),
        }
    }
}

/// A site code in a config file.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct SiteCodeText(pub SiteCode);

impl TryFrom<String> for SiteCodeText {
    type Error = bgb_protocol::ids::IdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// The original's port for client notification.
fn default_listen() -> SocketAddr {
    ([0, 0, 0, 0], 10123).into()
}

fn default_admin() -> SocketAddr {
    ([127, 0, 0, 1], 10125).into()
}

/// What a machine with 1 GiB to spare for the fleet holds with ease, and most sites need less of one server.
fn default_connections_max() -> u32 {
    100_000
}

/// Whoever is on this machine already has better ways to harm it than handshakes.
fn default_handshake_exempt_networks() -> Vec<Network> {
    ["127.0.0.0/8", "::1/128"].map(|network| network.parse().expect("these are networks")).to_vec()
}

fn default_keepalive_seconds() -> u32 {
    bgb_protocol::message::KEEPALIVE_SECS_DEFAULT
}

/// Five minutes, as the original writes its online files.
fn default_presence_full_seconds() -> u32 {
    300
}

fn default_presence_delta_seconds() -> u32 {
    3
}

/// Results reach the console within two seconds of the first; a file each second is little work for either side.
fn default_results_seconds() -> u32 {
    1
}

fn default_queue_unreadable_refuse_seconds() -> u32 {
    60
}

impl ServerConfig {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// A sentence that names file, line and column, or the key that is out of its range.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let mut config: Self = bgb_daemon::config::load(path)?;
        config.check().map_err(|error| error.context(format!("{}", path.display())))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        config.resolve(folder);
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        let ranges = [
            ("server", self.server, 1, u32::MAX),
            ("connections_max", self.connections_max, 1, 10_000_000),
            ("keepalive_seconds", self.keepalive_seconds, 20, 3_600),
            ("presence_full_seconds", self.presence_full_seconds, 10, 3_600),
            ("presence_delta_seconds", self.presence_delta_seconds, 1, 300),
            ("results_seconds", self.results_seconds, 1, 300),
            ("queue_unreadable_refuse_seconds", self.queue_unreadable_refuse_seconds, 1, 86_400),
        ];
        for (key, value, least, most) in ranges {
            anyhow::ensure!(
                (least..=most).contains(&value),
                "{key} is {value}; it is {least} to {most}: correct the line"
            );
        }
        anyhow::ensure!(self.reactors <= 256, "reactors is {}; it is 0 (one per core) to 256", self.reactors);
        anyhow::ensure!(
            self.other_servers.len() <= OTHER_SERVERS_MAX
                && self.other_servers.iter().all(|address| address.len() <= ADDRESS_BYTES_MAX),
            "other_servers names more than {OTHER_SERVERS_MAX} servers, or one of more than {ADDRESS_BYTES_MAX} bytes: devices are \
             told a handful, each as host:port"
        );
        for (key, networks) in [
            ("handshake_exempt_networks", &self.handshake_exempt_networks),
            ("proxy_protocol_networks", &self.proxy_protocol_networks),
        ] {
            anyhow::ensure!(
                networks.len() <= NETWORKS_MAX,
                "{key} names more than {NETWORKS_MAX} networks: name larger ones"
            );
        }
        self.check_entrances()?;
        bgb_daemon::admin::check_address(self.admin, "127.0.0.1:10125")
    }

    /// SO_REUSEPORT would let two entrances share a port, and half of the devices meet the wrong one; beside `admin` the server would not start.
    fn check_entrances(&self) -> anyhow::Result<()> {
        let listeners: Vec<_> = self
            .entrances()
            .into_iter()
            .map(|(entrance, address)| (entrance.key(), address))
            .chain([("admin", self.admin)])
            .collect();
        for (at, (one, first)) in listeners.iter().enumerate() {
            for (other, second) in &listeners[at + 1..] {
                let is_shared = first.port() == second.port()
                    && first.port() != 0
                    && (first.ip() == second.ip()
                        || first.ip().is_unspecified()
                        || second.ip().is_unspecified());
                anyhow::ensure!(
                    !is_shared,
                    "{one} ({first}) and {other} ({second}) are one port: change one of them{}",
                    if (*one, *other) == (Entrance::Tcp.key(), "admin") { "" } else { OR_OFF }
                );
            }
        }
        Ok(())
    }

    fn resolve(&mut self, folder: &Path) {
        let TlsFiles { certificate, key, authority, https_certificate, https_key } = &mut self.tls;
        let paths = [
            &mut self.database,
            &mut self.bell,
            &mut self.inbox,
            &mut self.spool,
            certificate,
            key,
            authority,
        ];
        for path in paths.into_iter().chain([https_certificate, https_key].into_iter().flatten()) {
            *path = folder.join(&path);
        }
        if let Some(directory) = &mut self.log.directory {
            *directory = folder.join(&directory);
        }
    }

    /// By which ports connections come, and where each listens; those that are off are left out.
    #[must_use]
    pub fn entrances(&self) -> Vec<(Entrance, SocketAddr)> {
        let at = |entry: Option<Entry>, port| match entry {
            None => Some(SocketAddr::new(self.listen.ip(), port)),
            Some(Entry::At(address)) => Some(address),
            Some(Entry::Off) => None,
        };
        [
            (Entrance::Tcp, Some(self.listen)),
            (Entrance::Http, at(self.listen_http, HTTP_PORT)),
            (Entrance::Https, at(self.listen_https, HTTPS_PORT)),
        ]
        .into_iter()
        .filter_map(|(entrance, address)| Some((entrance, address?)))
        .collect()
    }

    /// Reactor threads to run.
    #[must_use]
    pub fn reactor_count(&self) -> usize {
        match self.reactors {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            some => some,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        site = "LAB"
        server = 1
        database = "../../site.db"
        bell = "../../site.bell"
        inbox = "../../inboxes/bgb.box/1"
        spool = "/var/spool/bgb"
        [tls]
        certificate = "server.pem"
        key = "server.key"
        authority = "../../authority/ca.pem"
    "#;

    fn load(text: &str) -> anyhow::Result<ServerConfig> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        std::fs::write(&path, text).unwrap();
        ServerConfig::load(&path)
    }

    #[test]
    fn defaults_are_the_documented_ones_and_paths_follow_the_file() {
        let config = load(GOOD).unwrap();
        assert_eq!(
            (config.listen.port(), config.keepalive_seconds, config.presence_full_seconds),
            (10123, 900, 300)
        );
        assert!(config.tls.key.is_absolute() && config.tls.key.ends_with("server.key"));
        assert_eq!(config.spool, Path::new("/var/spool/bgb"));
        let exempt = |address: &str| {
            let address = address.parse().unwrap();
            config.handshake_exempt_networks.iter().any(|network| network.contains(address))
        };
        assert!(exempt("127.0.0.1") && exempt("::1") && !exempt("192.0.2.1") && !exempt("2001:db8::1"));
    }

    #[test]
    fn http_is_at_the_usual_ports_of_the_same_address_unless_it_is_said_otherwise() {
        let entrances = |lines: &str| load(&format!("{lines}\n{GOOD}")).unwrap().entrances();
        let at = |entrance, address: &str| (entrance, address.parse().unwrap());
        assert_eq!(
            entrances("listen = \"192.0.2.1:10123\""),
            [
                at(Entrance::Tcp, "192.0.2.1:10123"),
                at(Entrance::Http, "192.0.2.1:8080"),
                at(Entrance::Https, "192.0.2.1:8443")
            ]
        );
        assert_eq!(
            entrances("listen_http = \"off\"\nlisten_https = \"[::]:443\""),
            [at(Entrance::Tcp, "0.0.0.0:10123"), at(Entrance::Https, "[::]:443")]
        );
        let fault = format!("{:#}", load(&format!("listen_http = \"8080\"\n{GOOD}")).unwrap_err());
        assert!(fault.contains("server.toml:1:") && fault.contains("\"off\""), "{fault}");
    }

    #[test]
    fn two_entrances_have_two_ports() {
        for lines in [
            "listen = \"0.0.0.0:8080\"",
            "listen = \"127.0.0.1:10123\"\nlisten_http = \"0.0.0.0:10123\"",
            "listen_http = \"0.0.0.0:443\"\nlisten_https = \"0.0.0.0:443\"",
        ] {
            let fault = format!("{:#}", load(&format!("{lines}\n{GOOD}")).unwrap_err());
            assert!(fault.contains("are one port") && fault.contains("listen_http"), "{fault}");
        }
        let fault = format!("{:#}", load(&format!("admin = \"127.0.0.1:8080\"\n{GOOD}")).unwrap_err());
        assert!(fault.contains("listen_http (0.0.0.0:8080) and admin (127.0.0.1:8080)"), "{fault}");
        let apart = "listen = \"192.0.2.1:443\"\nlisten_http = \"off\"\nlisten_https = \"192.0.2.2:443\"";
        assert!(load(&format!("{apart}\n{GOOD}")).is_ok());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = load(&format!("prot = 5\n{GOOD}")).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("server.toml:1:1") && text.contains("prot"), "{text}");
    }

    #[test]
    fn an_exempt_network_that_is_none_is_named_with_its_line() {
        let line = "handshake_exempt_networks = [\"10.0.0.0/40\"]";
        let text = format!("{:#}", load(&format!("{line}\n{GOOD}")).unwrap_err());
        assert!(text.contains("server.toml:1:") && text.contains("10.0.0.0/40"), "{text}");
    }

    #[test]
    fn a_value_out_of_range_says_the_range() {
        for line in
            ["keepalive_seconds = 5", "connections_max = 0", "reactors = 1000", "admin = \"0.0.0.0:1\""]
        {
            let text = format!("{:#}", load(&format!("{line}\n{GOOD}")).unwrap_err());
            assert!(text.contains(line.split(' ').next().unwrap()), "{text}");
        }
        assert!(load(&GOOD.replace("LAB", "lab")).is_err());
    }
}
