//! Making a site, and adding a server to it: `bgb site init`.
//!
//! A new site is complete or not there: when a step fails, what was made before it is removed again, or the error says what is
//! left. It owns the texts of the first configuration files; what they mean is the daemons' business. Paths in them are relative,
//! so that the folder can be moved.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use bgb_daemon::lock::ProcessLock;
use bgb_daemon::secret;
use bgb_protocol::ids::{Generation, KeyId, ServerId, SiteCode, UnixMillis};
use tracing::info;
use zeroize::Zeroizing;

use crate::authority::Authority;
use crate::error::SiteError;
use crate::folder::SiteFolder;
use crate::named_files::NamedFiles;
use crate::owner::Owner;
use crate::server_numbers;
use crate::signing_key;
use crate::store::Store;

/// Folders with secrets: their owner's alone.
const PRIVATE_MODE: u32 = 0o700;
/// Folders that the servers' group looks into.
const SHARED_MODE: u32 = 0o750;
/// Folders that the servers' group writes into.
const DROP_MODE: u32 = 0o770;
/// Files that the servers' group reads.
const FILE_MODE: u32 = 0o640;
/// Bytes of the API's token before it is written in hexadecimal: 256 bits cannot be guessed.
const TOKEN_BYTES: usize = 32;
/// Most servers of a site, and addresses of one: an agent tries them in order.
const SERVERS_MAX: u32 = 64;

/// What a new site is made from.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Its folder: one that is not there yet, or is empty.
    pub root: PathBuf,
    /// Its code.
    pub code: SiteCode,
    /// Where agents reach its first server: `host:port`, one at least. The hosts stand in the server's certificate.
    pub server_addresses: Vec<String>,
    /// Where that server listens. Port 0 takes any free one.
    pub server_listen: SocketAddr,
    /// Where its metrics and health are answered: loopback.
    pub server_admin: SocketAddr,
    /// Where the manager's API listens: loopback.
    pub manager_listen: SocketAddr,
    /// Where the manager's metrics and health are answered: loopback.
    pub manager_admin: SocketAddr,
    /// The time.
    pub now: UnixMillis,
}

/// Ports of the roads through HTTP (docs/protocol.md, 13).
const HTTP_PORT: u16 = 8080;
const HTTPS_PORT: u16 = 8443;

/// What a further server of a site is made from.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where agents reach it: `host:port`, one at least.
    pub addresses: Vec<String>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where its metrics and health are answered: loopback.
    pub admin: SocketAddr,
    /// The time.
    pub now: UnixMillis,
}

/// A site that has just been made.
#[derive(Clone, Debug)]
pub struct InitReport {
    /// Its folder.
    pub folder: SiteFolder,
    /// Its code.
    pub code: SiteCode,
    /// Its database's generation.
    pub generation: Generation,
    /// SHA-256 of its authority's certificate.
    pub authority_fingerprint: [u8; 32],
    /// The id of the key that signs its tasks.
    pub signing_key: KeyId,
    /// Its first server.
    pub server: ServerReport,
}

/// A server that has just been made.
#[derive(Clone, Debug)]
pub struct ServerReport {
    /// Its number.
    pub server: ServerId,
    /// Its configuration.
    pub config: PathBuf,
    /// Where agents reach it.
    pub addresses: Vec<String>,
    /// When its certificate ends.
    pub certificate_ends: UnixMillis,
    /// Whether `manager.toml` names its addresses for the bundles of new devices; else they are to be added by hand.
    pub named_in_manager_config: bool,
}

impl InitOptions {
    /// A site with the ports that are BGB's own: 10123 for agents, 10124 to 10126 on loopback.
    #[must_use]
    pub fn new(
        root: impl Into<PathBuf>,
        code: SiteCode,
        server_addresses: Vec<String>,
        now: UnixMillis,
    ) -> Self {
        Self {
            root: root.into(),
            code,
            server_addresses,
            server_listen: (Ipv4Addr::UNSPECIFIED, 10_123).into(),
            server_admin: (Ipv4Addr::LOCALHOST, 10_125).into(),
            manager_listen: (Ipv4Addr::LOCALHOST, 10_124).into(),
            manager_admin: (Ipv4Addr::LOCALHOST, 10_126).into(),
            now,
        }
    }
}

/// Makes a site.
///
/// # Errors
/// When the folder is not empty, an address is none, or the system refuses; then nothing is left behind, or
/// [`SiteError::LeftBehind`] says what is.
pub fn site_init(options: &InitOptions) -> Result<InitReport, SiteError> {
    check_addresses(&options.server_addresses)?;
    let root = &options.root;
    let was_there = claim(root)?;
    match fill(options) {
        Ok(report) => Ok(report),
        Err(error) => Err(undo(root, was_there, error)),
    }
}

/// Adds a server to a site: its number, certificate, folder, inbox and configuration. The manager may be running.
///
/// # Errors
/// When an address is none, the site's files cannot be read, the database is being restored, or the system refuses.
pub fn server_add(folder: &SiteFolder, options: &ServerOptions) -> Result<ServerReport, SiteError> {
    check_addresses(&options.addresses)?;
    let files = NamedFiles::of(folder)?;
    // Before the database is opened: it may be the one that a restore is about to put away.
    let _lock = lock_set_up(&files.database)?;
    let mut store = Store::open(&files.database)?;
    let authority = Authority::load(folder, store.code())?;
    let server = free_number(folder, &files, &store)?;
    let mut report = add_numbered(folder, &files, &authority, &mut store, server, options)?;
    report.named_in_manager_config = name_in_manager_config(&folder.manager_config(), &options.addresses)?;
    Ok(report)
}

fn lock_set_up(database: &Path) -> Result<ProcessLock, SiteError> {
    if !database.exists() {
        return Err(SiteError::Missing { path: database.to_owned() });
    }
    Owner::of(database)?.lock_set_up(database)
}

/// The next number that no server has, nor ever had as far as database or folders tell: one that was added after the copy was made that the
/// database was restored from has a certificate and a spool.
fn free_number(folder: &SiteFolder, files: &NamedFiles, store: &Store) -> Result<ServerId, SiteError> {
    let last = store.read().servers()?.last().map_or(0, |row| row.server.0);
    let taken = server_numbers::taken(folder, &files.inbox)?;
    let free = (last.saturating_add(1)..=SERVERS_MAX).find(|number| !taken.contains(number));
    let advice = "give the servers that are there more connections";
    let limit = u64::from(SERVERS_MAX);
    free.map(ServerId).ok_or(SiteError::Limit { what: "servers of a site", limit, advice })
}

/// Adds the server of a number that is free; when that fails, what was made of it is removed again.
fn add_numbered(
    folder: &SiteFolder,
    files: &NamedFiles,
    authority: &Authority,
    store: &mut Store,
    server: ServerId,
    options: &ServerOptions,
) -> Result<ServerReport, SiteError> {
    let own = folder.server(server);
    if std::fs::symlink_metadata(&own).is_ok() {
        // What is in it is somebody's key and spool.
        return Err(SiteError::FolderNotEmpty { path: own });
    }
    make_server(folder, files, authority, store, server, options).map_err(|error| {
        for beside in [files.inbox.join(server.to_string()), folder.server_logs(server)] {
            let _ = std::fs::remove_dir(&beside);
        }
        undo(&own, false, error)
    })
}

/// Makes sure that the folder is there and empty; says whether it was there before.
fn claim(root: &Path) -> Result<bool, SiteError> {
    match std::fs::read_dir(root) {
        Ok(mut entries) => match entries.next() {
            None => Ok(true),
            Some(_) => Err(SiteError::FolderNotEmpty { path: root.to_owned() }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let made = DirBuilder::new().recursive(true).mode(SHARED_MODE).create(root);
            made.map_err(SiteError::io(root, "the folder cannot be made"))?;
            Ok(false)
        }
        Err(error) => Err(SiteError::io(root, "the folder cannot be read")(error)),
    }
}

/// Removes what was made; a folder that was there before stays, empty.
fn undo(root: &Path, was_there: bool, error: SiteError) -> SiteError {
    let removed = std::fs::remove_dir_all(root).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    });
    let restored = removed.and_then(|()| if was_there { std::fs::create_dir(root) } else { Ok(()) });
    match restored {
        Ok(()) => error,
        Err(_) => SiteError::LeftBehind { path: root.to_owned(), error: Box::new(error) },
    }
}

fn fill(options: &InitOptions) -> Result<InitReport, SiteError> {
    let folder = SiteFolder::new(&options.root);
    make_folders(&folder)?;
    let authority = Authority::create(&folder, options.code, options.now)?;
    info!("certificate authority of site {} made", options.code);
    let signing_key = signing_key::create(&folder)?;
    info!("signing key {} made", signing_key.id());
    let mut store = Store::create(&folder.database(), options.code, options.now)?;
    info!("site database made, generation {}", store.generation());
    write_file(&folder.bell(), "", FILE_MODE)?;
    write_token(&folder)?;
    let server = ServerOptions {
        addresses: options.server_addresses.clone(),
        listen: options.server_listen,
        admin: options.server_admin,
        now: options.now,
    };
    let files = NamedFiles::as_made(&folder);
    let mut server = make_server(&folder, &files, &authority, &mut store, ServerId(1), &server)?;
    write_file(&folder.manager_config(), &manager_config(options), FILE_MODE)?;
    server.named_in_manager_config = true;
    info!("site {} made in {}", options.code, options.root.display());
    Ok(InitReport {
        code: options.code,
        generation: store.generation(),
        authority_fingerprint: authority.fingerprint(),
        signing_key: signing_key.id(),
        server,
        folder,
    })
}

fn make_folders(folder: &SiteFolder) -> Result<(), SiteError> {
    let inboxes = folder.root().join("inboxes");
    for (path, mode) in [
        (folder.authority(), SHARED_MODE),
        (folder.keys(), PRIVATE_MODE),
        (folder.manager(), PRIVATE_MODE),
        (folder.servers(), SHARED_MODE),
        (inboxes, SHARED_MODE),
        (folder.inbox(), SHARED_MODE),
        (folder.bad(), PRIVATE_MODE),
        (folder.done(), PRIVATE_MODE),
        (folder.logs(), DROP_MODE),
    ] {
        make_folder(&path, mode)?;
    }
    Ok(())
}

fn make_server(
    folder: &SiteFolder,
    files: &NamedFiles,
    authority: &Authority,
    store: &mut Store,
    server: ServerId,
    options: &ServerOptions,
) -> Result<ServerReport, SiteError> {
    let names = hosts(&options.addresses);
    let certificate = authority.issue_server(server, &names, options.now)?;
    make_folder(&folder.server(server), PRIVATE_MODE)?;
    make_folder(&folder.server_spool(server), PRIVATE_MODE)?;
    make_folder(&files.inbox.join(server.to_string()), DROP_MODE)?;
    let logs = folder.server_logs(server);
    if logs != folder.logs() {
        make_folder(&logs, DROP_MODE)?;
    }
    secret::write_new(&folder.server_key(server), certificate.key_pem.as_bytes())?;
    write_file(&folder.server_certificate(server), &certificate.certificate_pem, FILE_MODE)?;
    let config = folder.server_config(server);
    write_file(&config, &server_config(folder, files, authority.site(), server, options), FILE_MODE)?;
    store.add_server(server, &options.addresses[0])?;
    info!("server {server} made, its certificate names {}", names.join(", "));
    Ok(ServerReport {
        server,
        config,
        addresses: options.addresses.clone(),
        certificate_ends: certificate.not_after,
        named_in_manager_config: false,
    })
}

fn make_folder(path: &Path, mode: u32) -> Result<(), SiteError> {
    let failed = SiteError::io(path, "the folder cannot be made");
    // The mode is set afterwards as well: the process's umask takes bits away from the first.
    let made = DirBuilder::new().mode(mode).create(path);
    made.and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))).map_err(failed)
}

fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), SiteError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(SiteError::io(path, "cannot be written"))
}

fn write_token(folder: &SiteFolder) -> Result<(), SiteError> {
    let mut token = Zeroizing::new([0_u8; TOKEN_BYTES]);
    rand::fill(token.as_mut_slice()).map_err(|_| SiteError::Certificate {
        what: "the API's token cannot be drawn".to_owned(),
        detail: "the system gives no randomness".to_owned(),
    })?;
    let mut text = Zeroizing::new(String::with_capacity(2 * TOKEN_BYTES + 1));
    for byte in token.iter() {
        text.push_str(&format!("{byte:02x}"));
    }
    text.push('\n');
    Ok(secret::write_new(&folder.api_token(), text.as_bytes())?)
}

fn check_addresses(addresses: &[String]) -> Result<(), SiteError> {
    if addresses.is_empty() {
        return Err(SiteError::Address(String::new()));
    }
    if addresses.len() > SERVERS_MAX as usize {
        let advice = "name those that agents are to try";
        return Err(SiteError::Limit {
            what: "addresses of a server",
            limit: u64::from(SERVERS_MAX),
            advice,
        });
    }
    // Such a host may stand in a certificate and in a configuration file without further ado.
    let plain =
        |host: &str| host.chars().all(|letter| letter.is_ascii_alphanumeric() || ".-:[]".contains(letter));
    match addresses.iter().find(|address| host(address).is_none_or(|host| !plain(host))) {
        Some(wrong) => Err(SiteError::Address(wrong.clone())),
        None => Ok(()),
    }
}

/// The host of `host:port` or `[address]:port`.
fn host(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then_some(host)
}

/// The hosts of all addresses, each once.
fn hosts(addresses: &[String]) -> Vec<String> {
    let mut hosts = Vec::new();
    for host in addresses.iter().filter_map(|address| host(address)) {
        if !hosts.iter().any(|known| known == host) {
            hosts.push(host.to_owned());
        }
    }
    hosts
}

fn manager_config(options: &InitOptions) -> String {
    format!(
        r#"# The manager of site {code}. Paths are relative to this file's folder.
site = "{code}"
database = "site.db"
bell = "site.bell"
inbox = "inboxes/bgb.box"
task_key = "keys/task-signing.key"
authority = "authority"
token = "manager/api.token"
listen = "{listen}"
admin = "{admin}"

# Where agents reach the site's servers: written into the bundles of new devices.
servers = [{servers}]

[log]
directory = "logs"
"#,
        code = options.code,
        listen = options.manager_listen,
        admin = options.manager_admin,
        servers = quoted(&options.server_addresses),
    )
}

fn server_config(
    folder: &SiteFolder,
    files: &NamedFiles,
    code: SiteCode,
    server: ServerId,
    options: &ServerOptions,
) -> String {
    let logs = folder.server_logs(server);
    let [database, bell, inbox, logs] =
        [&files.database, &files.bell, &files.inbox.join(server.to_string()), &logs]
            .map(|path| from_server_folder(folder, path));
    format!(
        r#"# Notification server {server} of site {code}. Paths are relative to this file's folder.
site = "{code}"
server = {server}
listen = "{listen}"
# For devices that only get out by HTTP; "off" where nobody needs it.
listen_http = "{http}"
listen_https = "{https}"
admin = "{admin}"
database = "{database}"
bell = "{bell}"
inbox = "{inbox}"
spool = "spool"

[tls]
certificate = "server.pem"
key = "server.key"
authority = "../../authority/ca.pem"

[log]
directory = "{logs}"
"#,
        listen = options.listen,
        http = SocketAddr::new(options.listen.ip(), HTTP_PORT),
        https = SocketAddr::new(options.listen.ip(), HTTPS_PORT),
        admin = options.admin,
    )
}

/// A path as it is written in a server's configuration, between quotes: from the server's own folder where it leads from the site's.
fn from_server_folder(folder: &SiteFolder, path: &Path) -> String {
    let path = match path.strip_prefix(folder.root()) {
        Ok(inside) => Path::new("../..").join(inside),
        Err(_) => path.to_owned(),
    };
    path.to_string_lossy().chars().map(escaped).collect()
}

/// A character of a basic string of TOML (1.0, String).
fn escaped(letter: char) -> String {
    match letter {
        '"' | '\\' => format!("\\{letter}"),
        _ if letter.is_control() => format!("\\u{:04X}", u32::from(letter)),
        _ => letter.to_string(),
    }
}

fn quoted(addresses: &[String]) -> String {
    addresses.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ")
}

/// Adds addresses to the line that `site_init` wrote; says `false`, and changes nothing, when there is no such line any more.
fn name_in_manager_config(path: &Path, addresses: &[String]) -> Result<bool, SiteError> {
    let text = std::fs::read_to_string(path).map_err(SiteError::io(path, "cannot be read"))?;
    let Some(line) = text.lines().find(|line| line.starts_with("servers = [\"") && line.ends_with("\"]"))
    else {
        return Ok(false);
    };
    let longer = format!("{}, {}]", &line[..line.len() - 1], quoted(addresses));
    let text = text.replacen(line, &longer, 1);
    let new = path.with_extension("toml.new");
    let replace = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    replace().map_err(SiteError::io(&new, "cannot be written"))?;
    Ok(true)
}

#[cfg(test)]
mod tests;
