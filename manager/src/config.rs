//! `manager.toml`: what the manager is told before it starts.
//!
//! Paths are relative to the file's own folder. Every key but `site`, `database`, `inbox`, `task_key`, `authority`, `token` and `servers`
//! has a default. What cannot be is refused here, with the key's name, before anything is opened; above all an API address that is
//! not loopback, since whoever has the token commands the fleet.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bgb_daemon::log::LogConfig;
use bgb_protocol::ids::SiteCode;
use bgb_site::{NamedFiles, SiteFolder};
use serde::{Deserialize, Serialize};

/// Servers write a full online list every 5 minutes unless told otherwise.
const PRESENCE_FULL_SECONDS_DEFAULT: u64 = 300;
/// Between two scans of the inbox: file events come first, a scan finds what they missed (network file systems).
const SCAN_SECONDS_DEFAULT: u64 = 1;
/// Addresses in a bundle: a site has a handful of servers, and an agent tries them in order.
const SERVERS_MAX: usize = 64;
/// Threads that verify results: more than a machine has cores is of no use, and 64 is more than it should take.
const VERIFIERS_MAX: usize = 64;
/// Links that are followed one after the other: as many as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManagerConfig {
    /// The site's code; it must be that of the database.
    pub site: SiteCode,
    /// The site database.
    pub database: PathBuf,
    /// The doorbell that servers watch; `site.bell` beside the database unless named.
    #[serde(default)]
    pub bell: Option<PathBuf>,
    /// The inbox, `…/bgb.box`: one folder per server, `bad` and `done`.
    pub inbox: PathBuf,
    /// The private key that signs tasks, cancels, heads and policies (0600).
    pub task_key: PathBuf,
    /// The folder of the site's authority: `ca.pem` and `ca.key` (0600).
    pub authority: PathBuf,
    /// Where the API listens: a loopback address. Port 0 takes any free one.
    #[serde(default = "listen_default")]
    pub listen: SocketAddr,
    /// Where metrics and health are told: a loopback address.
    #[serde(default = "admin_default")]
    pub admin: SocketAddr,
    /// The file with the API's token (0600).
    pub token: PathBuf,
    /// Addresses of notification servers for new devices' configuration, `host:port`.
    pub servers: Vec<String>,
    /// How often servers write a full online list, in seconds, 1 to 86,400. One that is silent for 2.5 times that has its devices
    /// shown as unknown.
    #[serde(default = "presence_full_seconds_default")]
    pub presence_full_seconds: u64,
    /// Seconds between two scans of the inbox, 1 to 60.
    #[serde(default = "scan_seconds_default")]
    pub scan_seconds: u64,
    /// Threads that verify results' signatures, 1 to 64; one per core unless set.
    #[serde(default)]
    pub verifiers: Option<usize>,
    /// What is logged, and where to; the file is `bgbmgr.log`.
    #[serde(default)]
    pub log: LogConfig,
}

impl ManagerConfig {
    /// Reads and checks `path`; the paths in it become those that the process can open from where it is.
    ///
    /// # Errors
    /// With the file, the place or the key, and what it may be.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let config: Self = bgb_daemon::config::load(path)?;
        config.check().with_context(|| path.display().to_string())?;
        let config = config.relative_to(path.parent().unwrap_or(Path::new("")));
        config.check_bell().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    /// The doorbell's path.
    #[must_use]
    pub fn bell(&self) -> PathBuf {
        self.bell.clone().unwrap_or_else(|| NamedFiles::bell_beside(&self.database))
    }

    fn check(&self) -> anyhow::Result<()> {
        if !self.listen.ip().is_loopback() {
            bail!(
                "listen is {}, which other machines can reach; the API takes a loopback address such as 127.0.0.1:10124",
                self.listen
            );
        }
        bgb_daemon::admin::check_address(self.admin, "127.0.0.1:10126")?;
        if self.servers.is_empty() || self.servers.len() > SERVERS_MAX {
            bail!(
                "servers has {} addresses; name 1 to {SERVERS_MAX}, such as bgb.example.org:10123",
                self.servers.len()
            );
        }
        if let Some(wrong) = self.servers.iter().find(|address| !is_address(address)) {
            bail!(
                "servers holds {wrong:?}, which is no address; one is written host:port, such as bgb.example.org:10123"
            );
        }
        in_range("presence_full_seconds", self.presence_full_seconds, 1, 86_400)?;
        in_range("scan_seconds", self.scan_seconds, 1, 60)?;
        if let Some(verifiers) = self.verifiers {
            in_range("verifiers", verifiers as u64, 1, VERIFIERS_MAX as u64)?;
        }
        Ok(())
    }

    /// The bell is written to: a ring would be a byte of rubbish in the database, or in its log.
    fn check_bell(&self) -> anyhow::Result<()> {
        let (bell, database) = (resolved(&self.bell()), resolved(&self.database));
        if is_same_file(&bell, &database) {
            bail!("bell is the database itself, {database:?}; it is a file of its own, such as site.bell");
        }
        if let Some(beside) =
            SiteFolder::beside_database(&database).iter().find(|beside| is_same_file(&bell, beside))
        {
            bail!(
                "bell is {beside:?}, which belongs to the database; it is a file of its own, such as site.bell"
            );
        }
        Ok(())
    }

    fn relative_to(mut self, folder: &Path) -> Self {
        let own =
            [&mut self.database, &mut self.inbox, &mut self.task_key, &mut self.authority, &mut self.token];
        for path in own.into_iter().chain(self.bell.as_mut()).chain(self.log.directory.as_mut()) {
            *path = folder.join(&*path);
        }
        self
    }
}

/// Where a path leads, links followed also where they lead to nothing yet: whoever makes a file there makes it at their end.
fn resolved(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        if let Ok(there) = path.canonicalize() {
            return there;
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { break };
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        match std::fs::read_link(&path) {
            Ok(target) => path = folder.join(target),
            Err(_) => return folder.join(name),
        }
    }
    path
}

/// By name, or because one file has both.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|there| (there.dev(), there.ino()));
    one == other || matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

fn listen_default() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 10_124))
}

fn admin_default() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 10_126))
}

fn presence_full_seconds_default() -> u64 {
    PRESENCE_FULL_SECONDS_DEFAULT
}

fn scan_seconds_default() -> u64 {
    SCAN_SECONDS_DEFAULT
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn in_range(key: &str, value: u64, least: u64, most: u64) -> anyhow::Result<()> {
    if !(least..=most).contains(&value) {
        bail!("{key} is {value}; it may be {least} to {most}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = r#"
        site = "LAB"
        database = "site.db"
        inbox = "inboxes/bgb.box"
        task_key = "keys/task-signing.key"
        authority = "authority"
        token = "manager/api.token"
        servers = ["bgb.example.org:10123"]
    "#;

    fn load(text: &str) -> anyhow::Result<ManagerConfig> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manager.toml");
        std::fs::write(&path, text).unwrap();
        ManagerConfig::load(&path)
    }

    #[test]
    fn the_least_configuration_has_defaults_for_the_rest() {
        let config = load(LEAST).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:10124");
        assert_eq!(config.admin.to_string(), "127.0.0.1:10126");
        assert_eq!((config.presence_full_seconds, config.scan_seconds), (300, 1));
        assert!(config.database.is_absolute() && config.bell().ends_with("site.bell"));
    }

    #[test]
    fn an_address_that_others_reach_is_refused() {
        let error = load(&format!("listen = \"0.0.0.0:10124\"\n{LEAST}")).unwrap_err();
        assert!(format!("{error:#}").contains("listen is 0.0.0.0:10124"), "{error:#}");
        assert!(load(&format!("listen = \"[::1]:0\"\n{LEAST}")).is_ok());
        let error = load(&format!("admin = \"0.0.0.0:10126\"\n{LEAST}")).unwrap_err();
        assert!(format!("{error:#}").contains("admin is 0.0.0.0:10126"), "{error:#}");
    }

    #[test]
    fn a_bell_that_is_the_database_is_refused() {
        let error = load(&format!("bell = \"./site.db\"\n{LEAST}")).unwrap_err();
        assert!(format!("{error:#}").contains("bell is the database itself"), "{error:#}");
        assert!(load(&LEAST.replace("site.db", "site.bell")).is_err());
    }

    #[test]
    fn a_bell_that_leads_to_the_database_or_to_what_lies_beside_it_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("db")).unwrap();
        std::fs::write(at("db/real.db"), "").unwrap();
        std::os::unix::fs::symlink("db/real.db", at("site.db")).unwrap();
        std::os::unix::fs::symlink("db", at("linked")).unwrap();
        std::os::unix::fs::symlink("site.db", at("link-to-link")).unwrap();
        std::os::unix::fs::symlink("linked/real.db-wal", at("link-to-what-is-not-there")).unwrap();
        std::fs::hard_link(at("db/real.db"), at("second-name")).unwrap();
        std::fs::write(at("db/real.db-shm"), "").unwrap();
        std::fs::hard_link(at("db/real.db-shm"), at("second-name-of-the-index")).unwrap();
        let load = |bell: &str| {
            std::fs::write(at("manager.toml"), format!("bell = {bell:?}\n{LEAST}")).unwrap();
            ManagerConfig::load(&at("manager.toml"))
        };
        for (bell, what) in [
            ("db/real.db", "the database itself"),
            ("linked/real.db", "the database itself"),
            ("db/../linked/./real.db", "the database itself"),
            ("link-to-link", "the database itself"),
            ("second-name", "the database itself"),
            ("db/real.db-wal", "belongs to the database"),
            ("linked/real.db-journal", "belongs to the database"),
            ("link-to-what-is-not-there", "belongs to the database"),
            ("second-name-of-the-index", "belongs to the database"),
            ("db/real.db.manager-lock", "belongs to the database"),
        ] {
            let error = format!("{:#}", load(bell).unwrap_err());
            assert!(error.contains(what) && error.contains("manager.toml"), "{bell}: {error}");
        }
        for bell in ["site.bell", "db/site.bell", "linked/real.db.bell", "nowhere/bell"] {
            assert!(load(bell).is_ok(), "{bell}");
        }
        std::os::unix::fs::symlink("itself", at("itself")).unwrap();
        assert!(load("itself").is_ok(), "it cannot be opened, which is said then");
    }

    #[test]
    fn what_cannot_be_is_named_with_its_key() {
        for (line, key) in [
            ("scan_seconds = 0", "scan_seconds"),
            ("presence_full_seconds = 100000", "presence_full_seconds"),
            ("verifiers = 1000", "verifiers"),
            ("colour = 1", "colour"),
        ] {
            let error = format!("{:#}", load(&format!("{line}\n{LEAST}")).unwrap_err());
            assert!(error.contains(key), "{error}");
        }
        let error = format!("{:#}", load(&LEAST.replace(":10123", "")).unwrap_err());
        assert!(error.contains("host:port"), "{error}");
        let error = format!("{:#}", load(&LEAST.replace("LAB", "lab")).unwrap_err());
        assert!(error.contains("three characters"), "{error}");
    }
}
