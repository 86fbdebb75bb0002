//! A site database that is busy, read-only, gone, or of a newer release.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::time::Duration;

use bgb_protocol::action::Action;
use bgb_protocol::api::{CollectionRow, CreateCollection, ErrorCode};
use bgb_protocol::ids::ServerId;
use bgb_protocol::message::{AgentMessage, RefusedReason, ServerMessage};
use bgb_protocol::status::StatusId;
use rusqlite::Connection;
use toml::Value;

use crate::peer::{self, Credentials, Heard, Peer};
use crate::process::Account;
use crate::site::{Site, edit_toml, find_files};
use crate::wait::{SOON, until, until_true};

/// An account that is nobody's on any machine: what matters is that it is not root.
const STRANGER: Account = Account { user: 61_234, group: 61_234 };

fn create_collection(site: &Site, name: &str) -> Result<CollectionRow, crate::api::ApiFailure> {
    site.api().post("/collections", &CreateCollection { name: name.to_owned() })
}

#[test]
fn while_the_database_is_busy_orders_are_refused_and_sessions_stay() {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    let (mut peer, _) = Peer::sign_in(&site, 1, &device, 1, 1);
    site.wait_online(1);

    let other = Connection::open(site.folder().database()).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let (code, error) = create_collection(&site, "one").unwrap_err().refusal();
    assert_eq!(code, ErrorCode::DatabaseUnavailable);
    assert!(error.contains("busy"), "{error}");
    let ended = site.bgb_of_site(&["collection", "create", "two"]);
    assert_eq!(ended.code(), 5, "{}", ended.stderr);
    assert!(ended.stderr.contains("busy"), "{}", ended.stderr);
    // What only reads goes on.
    peer.say(&AgentMessage::Keepalive);
    assert!(matches!(peer.hear(), Heard::Message(_)));
    let listed = site.bgb_of_site(&["device", "ls"]);
    assert_eq!(listed.code(), 0, "{}", listed.stderr);

    other.execute_batch("ROLLBACK").unwrap();
    until("orders are taken again", SOON, || create_collection(&site, "one").ok());
    site.wait_message(StatusId::DatabaseUnwritable, &["busy"]);
    site.wait_message(StatusId::DatabaseWritable, &[]);
    site.check();
}

#[test]
fn a_database_of_a_newer_release_is_refused_by_everybody() {
    let mut site = Site::new(1);
    site.start_manager();
    assert_eq!(site.take_manager().stop().code(), 0);
    let database = Connection::open(site.folder().database()).unwrap();
    database.pragma_update(None, "user_version", 9_999).unwrap();
    drop(database);
    let check = site.bgb(&["site", "check", site.folder().root().to_str().unwrap()]);
    let manager = site.spawn_manager(None).wait_end();
    let server = site.spawn_server(1, None).wait_end();
    for ended in [check, manager, server] {
        assert_eq!(ended.code(), 1, "{}", ended.stderr);
        for word in ["9999", "site.db", "newer release"] {
            assert!(ended.stderr.contains(word), "{word:?} is missing: {}", ended.stderr);
        }
    }
}

#[test]
fn a_manager_that_may_not_write_the_database_says_so_and_does_not_start() {
    let mut site = Site::new(1);
    site.start_manager();
    assert_eq!(site.take_manager().stop().code(), 0);
    // Root may write whatever the mode says, so there another account starts it.
    let account = rustix::process::geteuid().is_root().then_some(STRANGER);
    if account.is_some() {
        give_away(&site, &[site.folder().root().to_owned()]);
    }
    let mut files = Vec::new();
    find_files(site.folder().root(), &mut files);
    let of_database =
        files.iter().filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("site.db"));
    for path in of_database {
        // The lock is the manager's own.
        if path.extension().is_some_and(|extension| extension == "manager-lock") {
            continue;
        }
        if account.is_some() {
            chown(path, Some(0), Some(0)).unwrap();
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
    }
    let ended = site.spawn_manager(account).wait_end();
    assert_eq!(ended.code(), 1, "{}", ended.stderr);
    for word in ["site.db", "read-only"] {
        assert!(ended.stderr.contains(word), "{word:?} is missing: {}", ended.stderr);
    }
}

#[test]
fn a_server_under_an_account_of_its_own_serves_also_while_the_manager_is_away() {
    if !is_root("a_server_under_an_account_of_its_own_serves_also_while_the_manager_is_away") {
        return;
    }
    let mut site = Site::new(1);
    site.start_manager();
    let device = site.add_device("pc-1");
    let task = site.start_task(Action::CollectInventory, "all");
    // The server's group reads the site; its own folders are its own. It may write neither database nor folder.
    let folder = site.folder();
    let mut files = Vec::new();
    find_files(folder.root(), &mut files);
    let folders =
        [folder.root().to_owned(), folder.authority(), folder.servers(), folder.inbox(), folder.logs()];
    let inboxes = folder.root().join("inboxes");
    for path in folders.iter().chain([&inboxes]).chain(&files) {
        chown(path, None, Some(STRANGER.group)).unwrap();
    }
    give_away(&site, &[folder.server(ServerId(1)), folder.server_inbox(ServerId(1))]);

    assert_eq!(site.take_manager().stop().code(), 0);
    let mut server = site.spawn_server(1, Some(STRANGER));
    server.wait_ready();
    let _agent = site.start_agent(&device);
    until_true("the agent has its task and has answered", SOON, || {
        site.metric(1, "bgb_server_results_acknowledged_total") == 1
    });
    assert_eq!(fs::metadata(folder.database()).unwrap().permissions().mode() & 0o7777, 0o640);
    site.start_manager();
    site.wait_succeeded(task, 1);
    let next = site.start_task(Action::Ping, "all");
    site.wait_succeeded(next, 1);
    site.check();
}

#[test]
fn while_the_queue_cannot_be_read_sessions_stay_and_new_ones_are_refused_after_a_while() {
    let mut site = Site::new(1);
    edit_toml(&site.folder().server_config(ServerId(1)), |server| {
        server.insert("queue_unreadable_refuse_seconds".into(), Value::Integer(11));
    });
    site.start_manager();
    site.start_server(1);
    let devices = site.add_devices(["pc-1".to_owned(), "pc-2".to_owned()]);
    let (mut session, _) = Peer::sign_in(&site, 1, &devices[0], 1, 1);
    site.wait_online(1);
    assert_eq!(site.take_manager().stop().code(), 0);

    let (database, away) = (site.folder().database(), site.path("site/site.db-away"));
    fs::rename(&database, &away).unwrap();
    site.wait_server_log(&["queue", "cannot be read"]);
    site.wait_server_log(&["may not sign in"]);
    let mut refused = peer::connect(&site, 1, Some(&Credentials::of(&devices[1])));
    refused.say(&AgentMessage::Hello(Box::new(peer::hello(1, 1))));
    let heard = refused.hear_until_end();
    assert_eq!(heard.last(), Some(&ServerMessage::Refused(RefusedReason::Unavailable)));
    session.say(&AgentMessage::Keepalive);
    assert!(matches!(session.hear(), Heard::Message(_)));
    // It is not this session's silence that is looked at from here on.
    session.say(&AgentMessage::Goodbye);
    session.hear_until_end();

    fs::rename(&away, &database).unwrap();
    site.wait_server_log(&["can be read again"]);
    site.start_manager();
    for (id, word) in [
        (StatusId::QueueUnreadable, "cannot be read"),
        (StatusId::SignInsRefused, "may not sign in"),
        (StatusId::QueueReadable, "again"),
    ] {
        site.wait_message(id, &[word]);
    }
    // Orders flow as before.
    let (mut session, _) = Peer::sign_in(&site, 1, &devices[1], 1, 2);
    let task = site.start_task(Action::Ping, "all");
    until_true(
        "the task is pushed",
        Duration::from_secs(30),
        || matches!(session.hear(), Heard::Message(message) if matches!(*message, ServerMessage::Task(_))),
    );
    assert_eq!(site.counts(task).targets, 2);
}

/// Whether processes can be started under other accounts; says so where not.
fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("{test}: skipped, since only root can start a process under another account");
    }
    root
}

/// Gives these folders, and all in them, to the account, and lets it come to them.
fn give_away(site: &Site, folders: &[std::path::PathBuf]) {
    fs::set_permissions(site.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(site.outputs(), fs::Permissions::from_mode(0o777)).unwrap();
    for folder in folders {
        give(folder);
    }
}

fn give(path: &std::path::Path) {
    chown(path, Some(STRANGER.user), Some(STRANGER.group)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path()));
    }
}
