//! The service as a whole: what keeps it from starting, and each sentence that says so; and files that come while it runs.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use bgb_protocol::file::FileKind;
use bgb_protocol::ids::UnixMillis;
use bgb_site::init::{InitOptions, site_init};
use bgb_site::{Reader, SiteFolder};

use super::*;
use crate::test_site::{build, header, server_message};

struct Site {
    _root: tempfile::TempDir,
    folder: SiteFolder,
}

impl Site {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let now = UnixMillis(Now::read().unix_ms);
        let addresses = vec!["127.0.0.1:10123".to_owned()];
        let mut options = InitOptions::new(root.path().join("site"), "LAB".parse().unwrap(), addresses, now);
        options.manager_listen = "127.0.0.1:0".parse().unwrap();
        options.manager_admin = "127.0.0.1:0".parse().unwrap();
        let folder = site_init(&options).unwrap().folder;
        Self { _root: root, folder }
    }

    fn config(&self) -> ManagerConfig {
        ManagerConfig::load(&self.folder.manager_config()).unwrap()
    }

    fn fault(&self, change: impl FnOnce(&mut ManagerConfig)) -> String {
        let mut config = self.config();
        change(&mut config);
        match Service::start(&config) {
            Ok(_) => panic!("it started"),
            Err(error) => format!("{error:#}"),
        }
    }
}

#[test]
fn a_second_manager_of_the_same_site_does_not_start() {
    let site = Site::new();
    let first = Service::start(&site.config()).unwrap();
    let fault = site.fault(|_| {});
    assert!(
        fault.contains(&format!("another manager (process {}) is at work here", std::process::id())),
        "{fault}"
    );
    first.stop().unwrap();
    Service::start(&site.config()).unwrap().stop().unwrap();
}

#[test]
fn what_is_missing_or_wrong_is_said_in_a_sentence() {
    let site = Site::new();
    let fault = site.fault(|config| config.database = config.database.with_file_name("none.db"));
    assert!(fault.contains("there is no site database"), "{fault}");
    let fault = site.fault(|config| config.site = "XYZ".parse().unwrap());
    assert!(fault.contains("is the database of site LAB, and manager.toml names site XYZ"), "{fault}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let fault = site.fault(|config| config.listen = taken.local_addr().unwrap());
    assert!(fault.contains("the API cannot listen on 127.0.0.1:"), "{fault}");
    let token = site.folder.api_token();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    let fault = site.fault(|_| {});
    assert!(fault.contains("others can read this key file"), "{fault}");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let key = site.folder.authority_key();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(site.fault(|_| {}).contains("others can read this key file"));
}

#[test]
fn a_pipe_in_a_servers_folder_is_set_aside_and_holds_nothing_up() {
    let site = Site::new();
    let folder = site.folder.server_inbox(bgb_protocol::ids::ServerId(1));
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, folder.join("a.BTS"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let service = Service::start(&site.config()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !site.folder.bad().join("1-a.BTS").exists() {
        assert!(Instant::now() < deadline, "the pipe was not set aside");
        std::thread::yield_now();
    }
    service.stop().unwrap();
}

#[test]
fn a_database_of_a_newer_schema_is_refused() {
    let site = Site::new();
    rusqlite::Connection::open(site.folder.database())
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let fault = site.fault(|_| {});
    assert!(fault.contains("its schema has version 99"), "{fault}");
}

#[test]
fn a_file_that_comes_while_it_runs_is_taken_in_by_the_threads() {
    let site = Site::new();
    let mut config = site.config();
    // Far beyond the test's patience: it is the event that tells of the file.
    config.scan_seconds = 60;
    let service = Service::start(&config).unwrap();
    let folder = site.folder.server_inbox(bgb_protocol::ids::ServerId(1));
    let (head, bytes) = build(header(FileKind::Status, 1), &[server_message("it came by the inbox")]);
    std::fs::write(folder.join(".tmp-x"), bytes).unwrap();
    std::fs::rename(folder.join(".tmp-x"), folder.join(head.file_name())).unwrap();
    let reader = Reader::open(&site.folder.database()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let came = || {
        let rows = reader.read().status_messages(None, Default::default(), 100).unwrap();
        rows.iter().any(|row| row.message.text == "it came by the inbox")
    };
    while !came() || std::fs::read_dir(&folder).unwrap().count() > 0 {
        assert!(Instant::now() < deadline, "the file was not taken in");
        std::thread::yield_now();
    }
    service.stop().unwrap();
}

#[test]
fn a_manager_is_ready_while_it_can_write_and_does_not_stop() {
    let (figures, stopping) = (Arc::new(Figures::default()), Arc::new(AtomicBool::new(false)));
    let (alive, ended) = bounded::<()>(0);
    let health = Health { figures: Arc::clone(&figures), stopping: Arc::clone(&stopping), ended };
    assert!(health.unready().is_some_and(|why| why.contains("cannot be written")));
    figures.set_standing(|standing| standing.database_writable = true);
    assert_eq!(health.unready(), None);
    drop(alive);
    assert!(health.unready().is_some_and(|why| why.contains("has ended")));
    stopping.store(true, Ordering::Release);
    assert!(health.unready().is_some_and(|why| why.contains("stops")));
}
