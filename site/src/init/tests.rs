use super::*;
use bgb_protocol::certificate::{Identity, Role};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn options(root: &Path) -> InitOptions {
    InitOptions::new(root, "LAB".parse().unwrap(), vec!["bgb.example.org:10123".to_owned()], NOW)
}

/// A further server.
fn second() -> ServerOptions {
    ServerOptions {
        addresses: vec!["second.example.org:10123".to_owned()],
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        admin: (Ipv4Addr::LOCALHOST, 0).into(),
        now: NOW,
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_new_site_has_all_that_its_daemons_need() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("new").join("site");
    let report = site_init(&options(&root)).unwrap();
    let folder = SiteFolder::new(&root);
    assert_eq!(report.folder, folder);
    assert_eq!(Authority::load(&folder, report.code).unwrap().fingerprint(), report.authority_fingerprint);
    assert_eq!(signing_key::load(&folder).unwrap().id(), report.signing_key);
    let store = Store::open(&folder.database()).unwrap();
    assert_eq!((store.code(), store.generation()), (report.code, report.generation));
    assert_eq!(store.read().servers().unwrap()[0].address.as_deref(), Some("bgb.example.org:10123"));
    assert_eq!(secret::read(&folder.api_token()).unwrap().len(), 65);
    assert!(folder.bell().exists() && folder.server_spool(ServerId(1)).is_dir());
    let config = std::fs::read_to_string(folder.manager_config()).unwrap();
    assert!(config.contains("servers = [\"bgb.example.org:10123\"]"), "{config}");
    // As docs/configuration.md has them.
    assert!(config.contains("listen = \"127.0.0.1:10124\"\nadmin = \"127.0.0.1:10126\"\n"), "{config}");
}

#[test]
fn secrets_are_their_owners_and_the_rest_the_groups() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = site_init(&options(&temporary.path().join("site"))).unwrap().folder;
    let server = ServerId(1);
    for (path, expected) in [
        (folder.authority_key(), 0o600),
        (folder.signing_key(), 0o600),
        (folder.api_token(), 0o600),
        (folder.server_key(server), 0o600),
        (folder.keys(), 0o700),
        (folder.manager(), 0o700),
        (folder.server(server), 0o700),
        (folder.database(), 0o640),
        (folder.bell(), 0o640),
        (folder.inbox(), 0o750),
        (folder.server_inbox(server), 0o770),
        (folder.bad(), 0o700),
        (folder.done(), 0o700),
    ] {
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
}

#[test]
fn the_servers_certificate_names_server_and_hosts() {
    let temporary = tempfile::tempdir().unwrap();
    let mut options = options(&temporary.path().join("site"));
    options.server_addresses =
        vec!["127.0.0.1:10123".to_owned(), "[::1]:10123".to_owned(), "127.0.0.1:443".to_owned()];
    let folder = site_init(&options).unwrap().folder;
    let pem = std::fs::read(folder.server_certificate(ServerId(1))).unwrap();
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    assert_eq!(Identity::from_der(&block.contents).unwrap().holder.role, Role::Server(ServerId(1)));
    let certificate = block.parse_x509().unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 3, "two addresses and the holder");
}

#[test]
fn a_folder_with_something_in_it_is_refused_and_left_alone() {
    let temporary = tempfile::tempdir().unwrap();
    std::fs::write(temporary.path().join("mine.txt"), "mine").unwrap();
    let error = site_init(&options(temporary.path())).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 1);
}

#[test]
fn a_site_that_cannot_be_made_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("site");
    // SQLite cannot open a database whose path is longer than it allows, after authority and keys have been made.
    let deep = root.join("x".repeat(200)).join("x".repeat(200)).join("x".repeat(200));
    assert!(site_init(&options(&deep)).is_err());
    assert!(!deep.exists());
    std::fs::create_dir(&deep).unwrap();
    assert!(site_init(&options(&deep)).is_err());
    assert_eq!(std::fs::read_dir(&deep).unwrap().count(), 0, "the folder that was there is there, empty");
}

#[test]
fn what_was_made_before_a_failure_is_taken_away_again() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("site");
    assert!(!claim(&root).unwrap());
    make_folders(&SiteFolder::new(&root)).unwrap();
    let failed = || SiteError::Address("x".to_owned());
    assert!(matches!(undo(&root, false, failed()), SiteError::Address(_)));
    assert!(!root.exists());
    std::fs::create_dir(&root).unwrap();
    assert!(claim(&root).unwrap());
    make_folders(&SiteFolder::new(&root)).unwrap();
    undo(&root, true, failed());
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
}

#[test]
fn addresses_are_hosts_with_ports() {
    let temporary = tempfile::tempdir().unwrap();
    for wrong in ["bgb.example.org", ":10123", "host:99999", "::1:10123", "[::1:10123", "a b:1", "a\"b:1"] {
        let mut options = options(&temporary.path().join("site"));
        options.server_addresses = vec![wrong.to_owned()];
        assert!(matches!(site_init(&options), Err(SiteError::Address(_))), "{wrong}");
    }
    assert_eq!(host("[::1]:10123"), Some("::1"));
    assert_eq!(host("bgb.example.org:1"), Some("bgb.example.org"));
}

#[test]
fn a_second_server_gets_its_own_number_and_is_named_for_new_devices() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = site_init(&options(&temporary.path().join("site"))).unwrap().folder;
    let report = server_add(&folder, &second()).unwrap();
    assert_eq!(report.server, ServerId(2));
    assert!(report.named_in_manager_config);
    let config = std::fs::read_to_string(folder.manager_config()).unwrap();
    assert!(
        config.contains("servers = [\"bgb.example.org:10123\", \"second.example.org:10123\"]"),
        "{config}"
    );
    assert_eq!(mode(&folder.manager_config()), 0o640);
    assert!(folder.server_inbox(ServerId(2)).is_dir());
    let own = std::fs::read_to_string(folder.server_config(ServerId(2))).unwrap();
    assert!(own.contains("server = 2") && own.contains("bgb.box/2"), "{own}");
    let logs = own.lines().find_map(|line| line.strip_prefix("directory = ")).unwrap().trim_matches('"');
    let logs = folder.server(ServerId(2)).join(logs);
    assert_eq!(logs.canonicalize().unwrap(), folder.server_logs(ServerId(2)).canonicalize().unwrap());
    assert_eq!(mode(&logs), 0o770);
    let store = Store::open(&folder.database()).unwrap();
    assert_eq!(store.read().servers().unwrap().len(), 2);
}

#[test]
fn a_managers_configuration_that_was_edited_is_left_to_its_editor() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = site_init(&options(&temporary.path().join("site"))).unwrap().folder;
    let edited = "servers = [\n  \"bgb.example.org:10123\",\n]\n";
    std::fs::write(folder.manager_config(), edited).unwrap();
    assert!(!name_in_manager_config(&folder.manager_config(), &["b:1".to_owned()]).unwrap());
    assert_eq!(std::fs::read_to_string(folder.manager_config()).unwrap(), edited);
}

/// Every path below a folder, and what is in the files.
fn contents(folder: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path.clone()),
                false => found.push((path.clone(), std::fs::read(&path).ok())),
            }
            found.push((path, None));
        }
    }
    found.sort();
    found
}

#[test]
fn a_number_that_a_folder_bears_is_passed_over_and_what_is_there_stays() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = site_init(&options(&temporary.path().join("site"))).unwrap().folder;
    // Server 2 was added after the copy that the database was restored from; of server 3, on another machine, there is the inbox only.
    for (path, text) in
        [(folder.server_key(ServerId(2)), "a key"), (folder.server_spool(ServerId(2)), "a spool")]
    {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    std::fs::create_dir(folder.server_inbox(ServerId(3))).unwrap();
    let before = contents(&folder.server(ServerId(2)));
    assert_eq!(server_add(&folder, &second()).unwrap().server, ServerId(4));
    assert_eq!(contents(&folder.server(ServerId(2))), before);
    assert!(folder.server_inbox(ServerId(3)).is_dir());
    assert_eq!(server_add(&folder, &second()).unwrap().server, ServerId(5));
}

#[test]
fn a_servers_folder_that_is_there_is_refused_and_nothing_is_removed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = site_init(&options(&temporary.path().join("site"))).unwrap().folder;
    let (server, files) = (ServerId(2), NamedFiles::of(&folder).unwrap());
    std::fs::create_dir(folder.server_inbox(server)).unwrap();
    // Also one that leads nowhere, and an empty one.
    let makes: [fn(&Path); 3] = [
        |own| std::os::unix::fs::symlink("nowhere", own).unwrap(),
        |own| {
            std::fs::remove_file(own).unwrap();
            std::fs::create_dir(own).unwrap();
        },
        |own| std::fs::write(own.join("server.key"), "somebody's").unwrap(),
    ];
    for make in makes {
        make(&folder.server(server));
        let before = contents(folder.root());
        let mut store = Store::open(&folder.database()).unwrap();
        let authority = Authority::load(&folder, store.code()).unwrap();
        let error = add_numbered(&folder, &files, &authority, &mut store, server, &second()).unwrap_err();
        drop(store);
        assert!(matches!(error, SiteError::FolderNotEmpty { .. }), "{error}");
        let names =
            |all: Vec<(PathBuf, Option<Vec<u8>>)>| all.into_iter().map(|(path, _)| path).collect::<Vec<_>>();
        assert_eq!(names(contents(folder.root())), names(before));
    }
    assert_eq!(Store::open(&folder.database()).unwrap().read().servers().unwrap().len(), 1);
}

#[test]
fn while_the_site_is_changed_otherwise_no_server_is_added() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = site_init(&options(&temporary.path().join("site"))).unwrap().folder;
    let lock = lock_set_up(&folder.database()).unwrap();
    let before = contents(&folder.servers());
    let error = server_add(&folder, &second()).unwrap_err();
    assert!(matches!(error, SiteError::SetUpRuns { .. }), "{error}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    assert_eq!(contents(&folder.servers()), before);
    drop(lock);
    assert_eq!(server_add(&folder, &second()).unwrap().server, ServerId(2));
}

#[test]
fn a_server_is_added_to_the_database_that_the_manager_has() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = site_init(&options(&temporary.path().join("site"))).unwrap().folder;
    let (database, inbox) = (temporary.path().join("other \"lab\".db"), folder.root().join("in"));
    std::fs::rename(folder.database(), &database).unwrap();
    for side in ["-wal", "-shm"] {
        let side = |path: &Path| crate::folder::beside(path, side);
        std::fs::rename(side(&folder.database()), side(&database)).unwrap();
    }
    std::fs::rename(folder.inbox(), &inbox).unwrap();
    let config = std::fs::read_to_string(folder.manager_config()).unwrap();
    let config = config
        .replace("\"site.db\"", "'../other \"lab\".db'")
        .replace("\"inboxes/bgb.box\"", "\"in\"")
        .replace("bell = \"site.bell\"", "");
    std::fs::write(folder.manager_config(), config).unwrap();
    let report = server_add(&folder, &second()).unwrap();
    assert_eq!(Store::open(&database).unwrap().read().servers().unwrap().len(), 2);
    assert!(!folder.database().exists() && inbox.join("2").is_dir());
    let own: toml_paths::Paths = bgb_daemon::config::load(&report.config).unwrap();
    let found = |path: &Path| folder.server(ServerId(2)).join(path);
    assert_eq!(found(&own.database).canonicalize().unwrap(), database.canonicalize().unwrap());
    assert_eq!(found(&own.inbox).canonicalize().unwrap(), inbox.join("2").canonicalize().unwrap());
    assert_eq!(own.bell, Path::new("../../../other \"lab\".bell"));
}

mod toml_paths {
    use std::path::PathBuf;

    /// What is read of a server's configuration.
    #[derive(serde::Deserialize)]
    pub(super) struct Paths {
        pub(super) database: PathBuf,
        pub(super) bell: PathBuf,
        pub(super) inbox: PathBuf,
    }
}
