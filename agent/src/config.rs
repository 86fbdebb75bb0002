//! `agent.toml`: what a device is told about its site.
//!
//! It owns the file's form and its checks. Relative paths are relative to the file's folder. It reads no key: that is
//! the affair of who loads the identity. Law: what is wrong is said with the key that it is wrong in, before anything
//! else has begun.

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bgb_daemon::log::LogConfig;
use bgb_protocol::ids::SiteCode;
use bgb_protocol::signature::TrustedKeys;
use serde::Deserialize;

use crate::proxy::has_password;
use crate::session::is_address;

/// Most servers that the file may name: more than a site has.
const SERVERS_MAX: usize = 64;

/// The permission bits by which others than its owner write a file.
const OTHERS_WRITE: u32 = 0o022;

/// Those by which they do anything with it.
const OTHERS: u32 = 0o077;

/// The whole of `agent.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// The site's code, three characters.
    site: String,
    /// Notification servers, `host:port`, in the order in which they are tried.
    pub servers: Vec<String>,
    /// The folder of journal and policy; `state` by default.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// Where metrics and health are told: a loopback address; nowhere by default.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// Who this device is, and whom it trusts.
    pub identity: IdentityConfig,
    /// How it scans.
    #[serde(default)]
    pub scan: ScanConfig,
    /// The roads that it may take to a server.
    #[serde(default)]
    pub roads: RoadsConfig,
    /// The HTTP proxy that they may lead through.
    #[serde(default)]
    pub proxy: ProxyConfig,
    /// What it logs; the file lies in the folder of `agent.toml` by default.
    #[serde(default)]
    pub log: LogConfig,
}

/// The section `[identity]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// The device's certificate, PEM; `device.pem` by default.
    #[serde(default = "default_certificate")]
    pub certificate: PathBuf,
    /// Its private key, PEM, mode 0600; `device.key` by default.
    #[serde(default = "default_key")]
    pub key: PathBuf,
    /// The site's authority, PEM; `authority.pem` by default.
    #[serde(default = "default_authority")]
    pub authority: PathBuf,
    /// The keys that sign tasks: 64 hexadecimal digits each.
    task_keys: Vec<String>,
}

/// The section `[scan]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScanConfig {
    /// Which of ClamAV's front ends scans.
    pub engine: Engine,
    /// A program and its first arguments that scan instead of ClamAV. The action's name and the paths follow them; exit
    /// code 0 is nothing found, 1 something found, others a failure.
    pub command: Option<Vec<String>>,
    /// The folder of the signatures for `clamscan` and `freshclam`; theirs by default.
    pub database: Option<PathBuf>,
    /// The configuration of clamd, for `clamdscan`; its own default by default.
    pub clamd_config: Option<PathBuf>,
    /// The configuration of freshclam, for update-definitions; its own default by default.
    pub freshclam_config: Option<PathBuf>,
}

/// The section `[roads]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoadsConfig {
    /// Straight over TCP, to the port that `servers` names.
    pub tcp: bool,
    /// A WebSocket.
    pub websocket: bool,
    /// Long-poll.
    pub long_poll: bool,
    /// Both over HTTPS.
    pub https: bool,
    /// Both over HTTP.
    pub http: bool,
    /// The servers' HTTP port.
    pub http_port: u16,
    /// Their HTTPS port.
    pub https_port: u16,
    /// Who else than the site's authority signs what the servers show there, by the issuer's common name: nobody stands in between then.
    pub https_issuers: Vec<String>,
}

impl Default for RoadsConfig {
    fn default() -> Self {
        let (http_port, https_port) = (8080, 8443);
        let https_issuers = Vec::new();
        Self {
            tcp: true,
            websocket: true,
            long_poll: true,
            https: true,
            http: true,
            http_port,
            https_port,
            https_issuers,
        }
    }
}

/// The section `[proxy]`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// `http://host:port`, with `user:password@` before the host where the proxy asks for them.
    url: Option<String>,
    /// The file with the password, mode 0600, where the URL has none.
    pub password_file: Option<PathBuf>,
    /// Hosts that are reached without it.
    pub no_proxy: Vec<String>,
    /// Whether the environment's proxy is taken where there is no `url`.
    pub use_environment: bool,
}

impl ProxyConfig {
    /// The URL; it may hold a password.
    pub(crate) fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    fn has_password(&self) -> bool {
        self.url().is_some_and(has_password)
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self { url: None, password_file: None, no_proxy: Vec::new(), use_environment: true }
    }
}

impl fmt::Debug for ProxyConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URL and its password.
        let Self { url, password_file, no_proxy, use_environment } = self;
        formatter
            .debug_struct("ProxyConfig")
            .field("has_url", &url.is_some())
            .field("password_file", password_file)
            .field("no_proxy", no_proxy)
            .field("use_environment", use_environment)
            .finish()
    }
}

/// The scanning program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// `clamdscan` if its daemon answers, else `clamscan`.
    #[default]
    Auto,
    /// Always `clamscan`.
    Clamscan,
    /// Always `clamdscan`.
    Clamdscan,
}

impl AgentConfig {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// What is wrong with it, for the person who wrote it.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        refuse_if_others_write(path)?;
        let mut config: Self = bgb_daemon::config::load(path)?;
        config.check().with_context(|| format!("{}: correct this file", path.display()))?;
        if config.proxy.has_password() {
            refuse_if_others_read(path)?;
        }
        let folder = std::path::absolute(path)
            .with_context(|| format!("the folder of {} cannot be told", path.display()))?;
        config.anchor(folder.parent().unwrap_or(Path::new("/")));
        Ok(config)
    }

    /// The site.
    ///
    /// # Errors
    /// When it is not a site's code.
    pub fn site(&self) -> anyhow::Result<SiteCode> {
        self.site.parse().context("site")
    }

    /// The keys that sign tasks.
    ///
    /// # Errors
    /// When one is not 64 hexadecimal digits, or there is none.
    pub fn task_keys(&self) -> anyhow::Result<TrustedKeys> {
        if self.identity.task_keys.is_empty() {
            bail!("identity.task_keys names no key; without one no task could ever be verified");
        }
        let keys: Option<Vec<_>> = self.identity.task_keys.iter().map(|text| key_of_hex(text)).collect();
        let keys = keys.context("identity.task_keys: a key is 64 hexadecimal digits")?;
        Ok(TrustedKeys::new(keys))
    }

    fn check(&self) -> anyhow::Result<()> {
        self.site()?;
        self.task_keys()?;
        if self.servers.is_empty() || self.servers.len() > SERVERS_MAX {
            bail!("servers: name 1 to {SERVERS_MAX} notification servers, such as \"bgb.example.org:10123\"");
        }
        if let Some(wrong) = self.servers.iter().find(|address| !is_address(address)) {
            bail!("servers: {wrong:?} is no address such as \"bgb.example.org:10123\"");
        }
        if let Some(admin) = self.admin {
            bgb_daemon::admin::check_address(admin, "127.0.0.1:10127")?;
        }
        if self.scan.command.as_ref().is_some_and(Vec::is_empty) {
            bail!("scan.command: name a program, or leave the key out");
        }
        let RoadsConfig { tcp, websocket, long_poll, https, http, .. } = self.roads;
        if !tcp && !((websocket || long_poll) && (https || http)) {
            bail!("roads: no road is left; allow tcp, or websocket or long_poll together with https or http");
        }
        if self.roads.http_port == 0 || self.roads.https_port == 0 {
            bail!("roads: a port is 1 to 65535");
        }
        Ok(())
    }

    /// Makes relative paths absolute.
    fn anchor(&mut self, folder: &Path) {
        let log = self.log.directory.get_or_insert_default();
        let IdentityConfig { certificate, key, authority, .. } = &mut self.identity;
        for path in [&mut self.state, certificate, key, authority, log] {
            *path = folder.join(&*path);
        }
        let ScanConfig { database, clamd_config, freshclam_config, .. } = &mut self.scan;
        let password_file = &mut self.proxy.password_file;
        for path in [database, clamd_config, freshclam_config, password_file].into_iter().flatten() {
            *path = folder.join(&*path);
        }
    }
}

/// The file says whose tasks are carried out and which program scans: whoever may write it, is the agent.
fn refuse_if_others_write(path: &Path) -> anyhow::Result<()> {
    // One that cannot be looked at is told of by who reads it.
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(()) };
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        bail!(
            "{}: others can write this file (mode {mode:04o}), which says what is carried out here; look through it and run \
             `chmod go-w {}`",
            path.display(),
            path.display()
        );
    }
    Ok(())
}

/// A proxy's password is a secret like any other.
fn refuse_if_others_read(path: &Path) -> anyhow::Result<()> {
    let metadata = std::fs::metadata(path).with_context(|| path.display().to_string())?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        bail!(
            "{}: others can read the password in proxy.url (mode {mode:04o}); run `chmod 600 {}`, or put it into a file of its own \
             and name that with proxy.password_file",
            path.display(),
            path.display()
        );
    }
    Ok(())
}

fn key_of_hex(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in key.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(key)
}

fn default_state() -> PathBuf {
    PathBuf::from("state")
}

fn default_certificate() -> PathBuf {
    PathBuf::from("device.pem")
}

fn default_key() -> PathBuf {
    PathBuf::from("device.key")
}

fn default_authority() -> PathBuf {
    PathBuf::from("authority.pem")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29";

    fn load(text: &str) -> (PathBuf, anyhow::Result<AgentConfig>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        (folder.path().to_owned(), AgentConfig::load(&path))
    }

    fn fault(text: &str) -> String {
        format!("{:#}", load(text).1.unwrap_err())
    }

    fn sound(servers: &str, rest: &str) -> String {
        format!("site = \"LAB\"\nservers = {servers}\n[identity]\ntask_keys = [\"{KEY}\"]\n{rest}")
    }

    #[test]
    fn a_short_file_is_enough_and_paths_are_those_beside_it() {
        let (folder, config) = load(&sound("[\"localhost:10123\"]", "[scan]\ndatabase = \"sigs\"\n"));
        let config = config.unwrap();
        assert_eq!(config.state, folder.join("state"));
        assert_eq!(config.identity.key, folder.join("device.key"));
        assert_eq!(config.scan.database, Some(folder.join("sigs")));
        assert_eq!(config.log.directory, Some(folder.join("")));
        assert_eq!(config.scan.engine, Engine::Auto);
        assert_eq!(config.admin, None);
        assert!(!config.task_keys().unwrap().is_empty());
    }

    #[test]
    fn a_file_that_others_can_write_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, sound("[\"a:1\"]", "")).unwrap();
        for (mode, is_taken) in [(0o600, true), (0o644, true), (0o664, false), (0o646, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match AgentConfig::load(&path) {
                Ok(_) => assert!(is_taken, "{mode:o}"),
                Err(fault) => {
                    let fault = fault.to_string();
                    assert!(
                        !is_taken && fault.contains(&format!("chmod go-w {}", path.display())),
                        "{fault}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_password_that_others_can_read_is_refused_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        for (url, mode, is_taken) in [
            ("http://user:secret@proxy.example:3128", 0o600, true),
            ("http://user:secret@proxy.example:3128", 0o644, false),
            ("user:secret@proxy.example:3128", 0o640, false),
            ("http://user:secret//w@proxy.example:3128", 0o644, false),
            ("user:secret://w@proxy.example:3128", 0o644, false),
            ("http://user@proxy.example:3128", 0o644, true),
            ("http://proxy.example:3128", 0o644, true),
        ] {
            std::fs::write(&path, sound("[\"a:1\"]", &format!("[proxy]\nurl = \"{url}\"\n"))).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let shown = match AgentConfig::load(&path) {
                Ok(config) => {
                    assert!(is_taken, "{url} {mode:o}");
                    format!("{config:?}")
                }
                Err(fault) => {
                    assert!(!is_taken && fault.to_string().contains("chmod 600"), "{fault}");
                    format!("{fault:#} {fault:?}")
                }
            };
            assert!(!shown.contains("secret"), "{shown}");
        }
    }

    #[test]
    fn a_proxy_in_the_wrong_place_is_refused_without_its_password() {
        for line in [
            "proxy = URL",
            "[proxy]\nno_proxy = URL",
            "[proxy]\nuse_environment = URL",
            "[scan]\nengine = URL",
        ] {
            let line = line.replace("URL", r#""http://us\"er:secret@proxy.example:3128""#);
            let text = if line.starts_with("proxy") {
                format!("{line}\n{}", sound("[\"a:1\"]", ""))
            } else {
                sound("[\"a:1\"]", &line)
            };
            let fault = load(&text).1.unwrap_err();
            let fault = format!("{fault:#} {fault:?}");
            assert!(!fault.contains("secret") && fault.contains("agent.toml:"), "{fault}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, name) in [
            (sound("[]", ""), "servers"),
            (sound("[\"localhost\"]", ""), "localhost"),
            (sound("[\"a:1\"]", "[scan]\ncommand = []\n"), "scan.command"),
            (sound("[\"a:1\"]", "[roads]\ntcp = false\nhttps = false\nhttp = false\n"), "no road is left"),
            (sound("[\"a:1\"]", "[roads]\nhttp_port = 0\n"), "a port is"),
            (sound("[\"a:1\"]", "[scan]\nengine = \"norton\"\n"), "norton"),
            (sound("[\"a:1\"]", "").replace("LAB", "lab"), "site"),
            (format!("admin = \"192.0.2.1:10127\"\n{}", sound("[\"a:1\"]", "")), "admin is 192.0.2.1:10127"),
            (sound("[\"a:1\"]", "").replace(KEY, "12"), "identity.task_keys"),
            (sound("[\"a:1\"]", "").replace(&format!("\"{KEY}\""), ""), "identity.task_keys"),
            (sound("[\"a:1\"]", "colour = 1\n"), "agent.toml:5:1: unknown field `colour`"),
        ] {
            let text = fault(&text);
            assert!(text.contains(name) && text.contains("agent.toml"), "{text}");
        }
    }
}
