//! `bgb site`: make a site, add a server to it, check it, copy and restore its database. The only commands that work on the folder itself.
//!
//! What they make is told to `BgbSetup.log` in the site's own logs. Secrets are never printed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use bgb_daemon::log::{self, LogGuard, LogOptions, StderrFormat};
use bgb_site::init::{InitOptions, InitReport, ServerOptions, ServerReport, server_add, site_init};
use bgb_site::{Authority, NamedFiles, Reader, SiteError, SiteFolder, check, signing_key};
use serde::Serialize;

use crate::arguments::{SiteCheck, SiteCommand, SiteCopy, SiteInit, SiteServerAdd};
use crate::endpoint::site_folder;
use crate::figures::{Clock, exact};
use crate::outcome::{Exit, Failure};
use crate::terminal::{Terminal, Tone};

mod copies;

/// The log of set-up, by the name that administrators look for.
const SETUP_LOG: &str = "BgbSetup.log";

/// Does what was typed; `site` is the folder that `--site` or BGB_SITE names.
///
/// # Errors
/// As the site's; when no folder is named.
pub(crate) fn run(command: SiteCommand, site: Option<&Path>, terminal: &Terminal) -> Result<Exit, Failure> {
    let folder = |named: Option<PathBuf>| site_folder(named.as_deref().or(site)).map(SiteFolder::new);
    match command {
        SiteCommand::Init(init) => self::init(init, terminal),
        SiteCommand::ServerAdd(add) => self::add_server(&folder(add.folder.clone())?, add, terminal),
        SiteCommand::Backup(SiteCopy { file }) => copies::make(&folder(None)?, &file, terminal),
        SiteCommand::Restore(SiteCopy { file }) => copies::put_back(&folder(None)?, &file, terminal),
        SiteCommand::Check(SiteCheck { folder: named }) => self::check(&folder(named)?, terminal),
    }
}

/// The failure that an error of the site stands for.
pub(crate) fn failure(error: &SiteError) -> Failure {
    let exit = match error {
        SiteError::Missing { .. } | SiteError::NotFound { .. } => Exit::NotFound,
        SiteError::FolderNotEmpty { .. }
        | SiteError::FileExists { .. }
        | SiteError::CopyIsMade { .. }
        | SiteError::SetUpRuns { .. } => Exit::Conflict,
        SiteError::Address(_) => Exit::Usage,
        _ => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

/// Logs to the site's set-up log for as long as the guard lives.
fn set_up_log(folder: &SiteFolder) -> Result<LogGuard, Failure> {
    let options = LogOptions {
        component: "BgbSetup",
        file: Some(folder.log(SETUP_LOG)),
        stderr: StderrFormat::Off,
        level: "info".to_owned(),
        apart: None,
    };
    Ok(log::init(options)?)
}

/// What `site init --json` tells.
#[derive(Serialize)]
struct Made<'a> {
    folder: &'a Path,
    site: String,
    generation: String,
    authority_sha256: String,
    signing_key: String,
    server: Added<'a>,
}

/// What `site server-add --json` tells.
#[derive(Serialize)]
struct Added<'a> {
    server: u32,
    config: &'a Path,
    addresses: &'a [String],
    certificate_ends: u64,
    named_in_manager_config: bool,
}

impl<'a> Added<'a> {
    fn new(report: &'a ServerReport) -> Self {
        Self {
            server: report.server.0,
            config: &report.config,
            addresses: &report.addresses,
            certificate_ends: report.certificate_ends.0,
            named_in_manager_config: report.named_in_manager_config,
        }
    }
}

fn init(arguments: SiteInit, terminal: &Terminal) -> Result<Exit, Failure> {
    check_loopback("--manager-listen", arguments.manager_listen)?;
    check_loopback("--server-admin", arguments.server_admin)?;
    check_loopback("--manager-admin", arguments.manager_admin)?;
    let _log = set_up_log(&SiteFolder::new(&arguments.folder))?;
    let listen = arguments.server_listen.unwrap_or_else(|| everywhere(&arguments.server_address));
    let now = Clock::of_this_machine(true).now;
    let report = site_init(&InitOptions {
        server_listen: listen,
        server_admin: arguments.server_admin,
        manager_listen: arguments.manager_listen,
        manager_admin: arguments.manager_admin,
        ..InitOptions::new(arguments.folder, arguments.code, arguments.server_address, now)
    })
    .map_err(|error| failure(&error))?;
    let made = Made {
        folder: report.folder.root(),
        site: report.code.to_string(),
        generation: report.generation.to_string(),
        authority_sha256: report.authority_fingerprint.iter().map(|byte| format!("{byte:02x}")).collect(),
        signing_key: report.signing_key.to_string(),
        server: Added::new(&report.server),
    };
    terminal.answer(&made, || made_in_words(&made, &report))?;
    Ok(Exit::Done)
}

fn made_in_words(made: &Made<'_>, report: &InitReport) -> String {
    let folder = report.folder.root().display();
    format!(
        "Site {} is in {folder}.\nIts authority's certificate has SHA-256 {}.\nTasks are signed by key {}; keep {} and {} \
         to yourself.\n\nStart it:\n  bgb-manager --config {}\n  bgb-server --config {}\n\nThen add devices:\n  bgb --site \
         {folder} device add NAME",
        made.site,
        made.authority_sha256,
        made.signing_key,
        report.folder.signing_key().display(),
        report.folder.authority_key().display(),
        report.folder.manager_config().display(),
        report.server.config.display(),
    )
}

fn add_server(folder: &SiteFolder, add: SiteServerAdd, terminal: &Terminal) -> Result<Exit, Failure> {
    check_loopback("--server-admin", add.server_admin)?;
    let _log = set_up_log(folder)?;
    let options = ServerOptions {
        listen: add.server_listen.unwrap_or_else(|| everywhere(&add.server_address)),
        addresses: add.server_address,
        admin: add.server_admin,
        now: Clock::of_this_machine(true).now,
    };
    let report = server_add(folder, &options).map_err(|error| failure(&error))?;
    terminal.answer(&Added::new(&report), || added_in_words(&report, folder))?;
    Ok(Exit::Done)
}

fn added_in_words(report: &ServerReport, folder: &SiteFolder) -> String {
    let manager = folder.manager_config();
    let then = if report.named_in_manager_config {
        format!("{} names it now: restart the manager, so that new devices learn of it.", manager.display())
    } else {
        format!(
            "Add its addresses ({}) to `servers` in {} and restart the manager, so that new devices learn of it.",
            report.addresses.join(", "),
            manager.display()
        )
    };
    format!(
        "Server {} is made; its certificate ends {}.\n{then}\nStart it:\n  bgb-server --config {}",
        report.server,
        exact(report.certificate_ends),
        report.config.display()
    )
}

/// What `site check --json` tells.
#[derive(Serialize)]
struct Checked {
    sound: bool,
    checked: Vec<String>,
    findings: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    check: String,
    text: String,
}

fn check(folder: &SiteFolder, terminal: &Terminal) -> Result<Exit, Failure> {
    let files = NamedFiles::of(folder).map_err(|error| failure(&error))?;
    let report = check::check(&files.database).map_err(|error| failure(&error))?;
    let mut findings: Vec<Found> = report
        .findings
        .into_iter()
        .map(|finding| Found { check: finding.check.to_owned(), text: finding.text })
        .collect();
    let mut checked = report.checked;
    let reader = Reader::open(&files.database).map_err(|error| failure(&error))?;
    let site = reader.read().site().map_err(|error| failure(&error))?;
    for (what, error) in [
        ("authority", Authority::load(folder, site.code).err()),
        ("signing key", signing_key::load(folder).err()),
    ] {
        checked.push(format!("the {what}"));
        findings.extend(error.map(|error| Found { check: what.to_owned(), text: error.to_string() }));
    }
    let checked = Checked { sound: findings.is_empty(), checked, findings };
    terminal.answer(&checked, || checked_in_words(&checked, folder, terminal))?;
    Ok(if checked.sound { Exit::Done } else { Exit::Failed })
}

fn checked_in_words(checked: &Checked, folder: &SiteFolder, terminal: &Terminal) -> String {
    let mut lines = vec![format!("{}: looked at {}.", folder.root().display(), checked.checked.join(", "))];
    for finding in &checked.findings {
        lines.push(terminal.paint(Tone::Bad, format_args!("✗ {}: {}", finding.check, finding.text)));
    }
    lines.push(match checked.sound {
        true => terminal.paint(Tone::Good, "● All is in order."),
        false => {
            "Restore the last copy that was in order (`bgb site restore`), or ask for help with these lines."
                .to_owned()
        }
    });
    lines.join("\n")
}

/// Every address of this machine, of IPv4 or, where agents are told an address of IPv6, of both; with the port that agents connect to.
fn everywhere(addresses: &[String]) -> SocketAddr {
    let port = addresses
        .first()
        .and_then(|address| address.rsplit_once(':'))
        .and_then(|(_, port)| port.parse().ok());
    let port = port.expect("the command line takes one address at least, and only such with a port");
    let is_ipv6 = addresses.iter().any(|address| address.starts_with('['));
    let every = if is_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv4Addr::UNSPECIFIED) };
    SocketAddr::new(every, port)
}

fn check_loopback(option: &str, address: SocketAddr) -> Result<(), Failure> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    let why = "other machines could reach it; take a loopback address such as 127.0.0.1";
    Err(Failure::usage(format!("{option} {address}: {why}")))
}

#[cfg(test)]
mod tests {
    use bgb_protocol::ids::UnixMillis;
    use bgb_site::backup::backup;
    use bgb_site::restore::{RestoreOptions, restore};

    use super::*;

    fn site() -> (tempfile::TempDir, SiteFolder) {
        let folder = tempfile::tempdir().unwrap();
        let addresses = vec!["127.0.0.1:10123".to_owned()];
        let root = folder.path().join("lab");
        let now = UnixMillis(1_795_435_200_000);
        let report = site_init(&InitOptions::new(root, "LAB".parse().unwrap(), addresses, now)).unwrap();
        (folder, report.folder)
    }

    #[test]
    fn a_new_site_is_in_order() {
        let (_keep, folder) = site();
        assert_eq!(check(&folder, &Terminal::plain()).unwrap(), Exit::Done);
    }

    #[test]
    fn a_key_that_others_can_read_is_found() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_keep, folder) = site();
        std::fs::set_permissions(folder.signing_key(), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(check(&folder, &Terminal::plain()).unwrap(), Exit::Failed);
    }

    #[test]
    fn a_copy_is_made_once_and_restored_with_what_the_folder_knows() {
        let (keep, folder) = site();
        let copy = keep.path().join("copy");
        assert_eq!(copies::make(&folder, &copy, &Terminal::plain()).unwrap(), Exit::Done);
        let again = copies::make(&folder, &copy, &Terminal::plain()).unwrap_err();
        assert_eq!(again.exit(), Exit::Conflict);
        // A server that the copy does not have.
        let options = ServerOptions {
            addresses: vec!["127.0.0.2:10123".to_owned()],
            listen: "127.0.0.1:1".parse().unwrap(),
            admin: "127.0.0.1:2".parse().unwrap(),
            now: UnixMillis(1_795_435_200_000),
        };
        server_add(&folder, &options).unwrap();
        std::fs::remove_file(folder.database()).unwrap();
        assert_eq!(copies::put_back(&folder, &copy, &Terminal::plain()).unwrap(), Exit::Done);
        let servers = Reader::open(&folder.database()).unwrap().read().servers().unwrap();
        assert_eq!(servers.len(), 2);
        assert_eq!(check(&folder, &Terminal::plain()).unwrap(), Exit::Done);
        let none = copies::put_back(&folder, &keep.path().join("none"), &Terminal::plain()).unwrap_err();
        assert_eq!(none.exit(), Exit::NotFound);
        assert!(none.to_string().contains("bgb site backup"), "{none}");
    }

    #[test]
    fn the_database_is_the_one_that_the_managers_configuration_names() {
        let (keep, folder) = site();
        let (database, copy) = (keep.path().join("elsewhere.db"), keep.path().join("copy"));
        // A database that nobody uses any more lies where a new site has its own.
        backup(&folder.database(), &database).unwrap();
        let config = std::fs::read_to_string(folder.manager_config()).unwrap();
        std::fs::write(folder.manager_config(), config.replace("\"site.db\"", "\"../elsewhere.db\""))
            .unwrap();
        let disused = std::fs::read(folder.database()).unwrap();
        let options = ServerOptions {
            addresses: vec!["127.0.0.2:10123".to_owned()],
            listen: "127.0.0.1:1".parse().unwrap(),
            admin: "127.0.0.1:2".parse().unwrap(),
            now: UnixMillis(1_795_435_200_000),
        };
        let servers = |database: &Path| Reader::open(database).unwrap().read().servers().unwrap().len();
        server_add(&folder, &options).unwrap();
        assert_eq!((servers(&database), servers(&folder.database())), (2, 1));
        assert_eq!(copies::make(&folder, &copy, &Terminal::plain()).unwrap(), Exit::Done);
        let copied = keep.path().join("copied");
        std::fs::copy(&copy, &copied).unwrap();
        assert_eq!(restore(&copied, &copy, &options_of_copy()).unwrap().servers_added, []);
        assert_eq!(servers(&copied), 2);

        std::fs::write(&database, "this was a database").unwrap();
        assert_eq!(check(&folder, &Terminal::plain()).unwrap_err().exit(), Exit::Failed);
        assert_eq!(copies::put_back(&folder, &copy, &Terminal::plain()).unwrap(), Exit::Done);
        assert_eq!(servers(&database), 2);
        assert_eq!(check(&folder, &Terminal::plain()).unwrap(), Exit::Done);
        assert!(std::fs::read(folder.database()).unwrap() == disused, "nobody has touched it");

        // One that cannot be read is no reason to take another database.
        std::fs::write(folder.manager_config(), "site = LAB").unwrap();
        let other = keep.path().join("other");
        for failure in [
            copies::make(&folder, &other, &Terminal::plain()).unwrap_err(),
            copies::put_back(&folder, &copy, &Terminal::plain()).unwrap_err(),
            check(&folder, &Terminal::plain()).unwrap_err(),
        ] {
            assert!(failure.to_string().contains("manager.toml:1:"), "{failure}");
        }
        assert!(!other.exists());
    }

    fn options_of_copy() -> RestoreOptions {
        RestoreOptions { site: None, servers: Vec::new(), now: UnixMillis(1_795_435_200_000) }
    }

    #[test]
    fn a_servers_folder_that_cannot_be_read_is_told_and_nothing_is_restored() {
        let (keep, folder) = site();
        let copy = keep.path().join("copy");
        assert_eq!(copies::make(&folder, &copy, &Terminal::plain()).unwrap(), Exit::Done);
        let before = std::fs::read(folder.database()).unwrap();
        // Nobody can follow a link to itself.
        let config = folder.server_config(bgb_protocol::ids::ServerId(1));
        std::fs::remove_file(&config).unwrap();
        std::os::unix::fs::symlink("server.toml", &config).unwrap();
        let failure = copies::put_back(&folder, &copy, &Terminal::plain()).unwrap_err();
        let said = failure.to_string();
        assert!(said.contains("servers/1/server.toml: cannot be read") && said.contains("as root"), "{said}");
        assert!(std::fs::read(folder.database()).unwrap() == before);
    }

    #[test]
    fn a_folder_without_a_site_is_not_found() {
        let folder = tempfile::tempdir().unwrap();
        let failure = check(&SiteFolder::new(folder.path()), &Terminal::plain()).unwrap_err();
        assert_eq!(failure.exit(), Exit::NotFound);
        assert!(failure.to_string().contains("bgb site init"), "{failure}");
    }

    #[test]
    fn a_server_listens_on_the_port_that_agents_are_told() {
        assert_eq!(everywhere(&["bgb.example.org:20123".to_owned()]).to_string(), "0.0.0.0:20123");
        assert_eq!(everywhere(&["[::1]:7".to_owned()]).to_string(), "[::]:7");
        assert!(check_loopback("--manager-listen", "0.0.0.0:1".parse().unwrap()).is_err());
    }
}
