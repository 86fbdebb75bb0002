//! The manager's own work on virtual time: heads, expiry, silence, and a database that cannot be written.

use bgb_protocol::action::Action;
use bgb_protocol::file::FileKind;
use bgb_protocol::head::HEAD_INTERVAL_MS;
use bgb_protocol::ids::DeviceId;
use bgb_protocol::queue::QueueItem;
use bgb_protocol::state::TaskState;
use bgb_protocol::status::StatusId;
use bgb_site::store::{PresenceState, TaskPhase};

use super::*;
use crate::test_site::{START_MS, TestSite, header, online_row};

/// The times of the heads in the queue.
fn heads(site: &TestSite) -> Vec<u64> {
    let database = rusqlite::Connection::open(site.folder.database()).unwrap();
    let mut statement = database.prepare("SELECT payload FROM queue WHERE kind = 'head'").unwrap();
    let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    rows.map(|payload| {
        let QueueItem::Head { signed } = QueueItem::decode(&payload.unwrap()).unwrap() else {
            panic!("a head's row holds a head")
        };
        SignedHead::decode(&signed).unwrap().statement().time.0
    })
    .collect()
}

#[test]
fn a_signed_head_is_written_at_the_start_and_every_60_seconds() {
    let mut site = TestSite::new(0);
    site.settle();
    assert_eq!(heads(&site), [START_MS]);
    site.advance(HEAD_INTERVAL_MS - 1);
    site.settle();
    assert_eq!(heads(&site), [START_MS]);
    site.advance(1);
    site.settle();
    assert_eq!(heads(&site), [START_MS + HEAD_INTERVAL_MS]);
}

#[test]
fn a_task_expires_by_itself_and_its_counts_add_up_all_the_way_to_no_answer() {
    let mut site = TestSite::new(3);
    let task = site.start_task(Action::Ping);
    site.put_rows(
        header(FileKind::Results, 1),
        &[
            site.final_row(task, 0, TaskState::Succeeded),
            crate::test_site::row(task, 1, bgb_protocol::file::results::DeviceWord::Running),
        ],
    );
    site.settle();
    site.advance(3_600_000);
    site.settle();
    let row = site.manager().store().read().task(task).unwrap();
    assert_eq!(row.phase, TaskPhase::Expired);
    assert_eq!((row.counts.succeeded, row.counts.running, row.counts.expired), (1, 1, 1));
    assert_eq!(site.messages(StatusId::TaskExpired).len(), 1);

    site.advance(25 * 3_600_000);
    site.settle();
    let counts = site.counts(task);
    assert_eq!((counts.succeeded, counts.no_answer, counts.expired), (1, 1, 1));

    // A device's own word beats the silence that was concluded.
    site.put_rows(header(FileKind::Results, 2), &[site.final_row(task, 1, TaskState::Failed)]);
    site.settle();
    assert_eq!((site.counts(task).failed, site.counts(task).no_answer), (1, 0));
}

#[test]
fn a_silent_servers_devices_become_unknown_and_come_back_with_it() {
    let mut site = TestSite::new(1);
    let presence = |site: &mut TestSite| {
        site.manager().store().read().device(DeviceId(0)).unwrap().unwrap().presence.state
    };
    site.put_rows(header(FileKind::PresenceFull, 1), &[online_row(0, 1)]);
    site.settle();
    assert_eq!(presence(&mut site), PresenceState::Online);
    site.advance(750_000 + 5_001);
    site.settle();
    assert_eq!(presence(&mut site), PresenceState::Unknown);
    assert_eq!(site.messages(StatusId::ServerSilent).len(), 1);
    site.put_rows(header(FileKind::PresenceFull, 2), &[online_row(0, 1)]);
    site.settle();
    assert_eq!(presence(&mut site), PresenceState::Online);
    assert_eq!(site.messages(StatusId::ServerHeard).len(), 1);
}

#[test]
fn no_server_is_called_silent_for_what_the_manager_has_not_read_yet() {
    let mut site = TestSite::new(1);
    site.put_rows(header(FileKind::PresenceFull, 1), &[online_row(0, 1)]);
    site.settle();
    // A night without a manager, in which the server went on.
    site.manager = None;
    site.advance(8 * 3_600_000);
    site.start();
    site.settle();
    assert!(site.messages(StatusId::ServerSilent).is_empty(), "it has not listened for long enough");

    // A database that was locked for as long: what came meanwhile waits, and is seen before silence is judged.
    site.advance(750_000 + 1);
    site.put_rows(header(FileKind::PresenceFull, 2), &[online_row(0, 1)]);
    site.settle();
    assert!(site.messages(StatusId::ServerSilent).is_empty(), "its list had come and waited");

    site.advance(750_000 + 5_001);
    site.settle();
    assert_eq!(site.messages(StatusId::ServerSilent).len(), 1, "now it is silent");
}

#[test]
fn a_servers_folder_that_cannot_be_read_is_said_once_and_holds_up_no_other_server() {
    let mut site = TestSite::new(1);
    let mut store = bgb_site::Store::open(&site.folder.database()).unwrap();
    store.add_server(bgb_protocol::ids::ServerId(2), "bgb.example.org:10123").unwrap();
    drop(store);
    let task = site.start_task(Action::Ping);
    site.put(1, "unread.BTS", b"");
    site.manager_disk.unreadable.lock().insert(PathBuf::from("box/1"));
    let of_two =
        bgb_protocol::file::Header { server: bgb_protocol::ids::ServerId(2), ..header(FileKind::Results, 1) };
    site.put_rows(of_two, &[site.final_row(task, 0, TaskState::Succeeded)]);
    for _ in 0..5 {
        site.settle();
        site.advance(1_000);
    }
    assert_eq!(site.counts(task).succeeded, 1);
    let said = site.messages(StatusId::InboxUnreadable);
    assert!(said.len() == 1 && said[0].contains("folder of server 1 cannot be read"), "{said:?}");
}

#[test]
fn a_database_that_is_locked_delays_and_loses_nothing() {
    let mut site = TestSite::new(1);
    let task = site.start_task(Action::Ping);
    site.settle();
    let other = rusqlite::Connection::open(site.folder.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    site.put_rows(header(FileKind::Results, 1), &[site.final_row(task, 0, TaskState::Succeeded)]);
    site.manager().on_inbox_changed();
    let retry_at = loop {
        match site.step() {
            Next::Now => {}
            Next::At(due) => break due,
        }
    };
    assert!(retry_at > site.now.mono_ms, "it does not spin");
    assert_eq!(site.step(), Next::At(retry_at), "and does nothing before");
    assert!(!site.manager().figures.standing().database_writable);
    assert_eq!(site.names("box/1").len(), 1, "the file waits where it is");

    other.execute_batch("ROLLBACK").unwrap();
    site.advance(DATABASE_REST_MS_MAX);
    site.settle();
    site.settle();
    assert_eq!(site.counts(task).succeeded, 1);
    assert_eq!(site.messages(StatusId::DatabaseUnwritable).len(), 1);
    assert_eq!(site.messages(StatusId::DatabaseWritable).len(), 1);
    assert!(site.manager().figures.standing().database_writable);
}

#[test]
fn a_chore_that_always_fails_keeps_no_file_waiting() {
    // An error that could be the database's, and one that is the value's.
    for failing in ["INSERT INTO nowhere VALUES (1)", "SELECT RAISE(ABORT, 'no head')"] {
        let mut site = TestSite::new(1);
        let task = site.start_task(Action::Ping);
        site.settle();
        let database = rusqlite::Connection::open(site.folder.database()).unwrap();
        let trigger = format!("CREATE TRIGGER refuse BEFORE INSERT ON queue BEGIN {failing}; END");
        database.execute_batch(&trigger).unwrap();
        site.advance(HEAD_INTERVAL_MS);
        site.put_rows(header(FileKind::Results, 1), &[site.final_row(task, 0, TaskState::Succeeded)]);
        for _ in 0..10 {
            site.settle();
            site.advance(DATABASE_REST_MS_MIN);
        }
        assert_eq!(site.counts(task).succeeded, 1, "{failing}");
        database.execute_batch("DROP TRIGGER refuse").unwrap();
        site.advance(HEAD_INTERVAL_MS);
        site.settle();
        assert_eq!(heads(&site), [site.now.unix_ms], "{failing}");
    }
}

#[test]
fn a_disk_that_fails_makes_a_file_rest_and_not_the_others() {
    let mut site = TestSite::new(2);
    let task = site.start_task(Action::Ping);
    site.settle();
    site.put_rows(header(FileKind::Results, 1), &[site.final_row(task, 0, TaskState::Succeeded)]);
    site.disk.fail_next_sync();
    site.settle();
    let said = site.messages(StatusId::InboxUnreadable);
    assert_eq!(said.len(), 1, "{said:?}");
    site.put_rows(header(FileKind::Results, 2), &[site.final_row(task, 1, TaskState::Succeeded)]);
    site.settle();
    assert_eq!(site.counts(task).succeeded, 2);
    site.advance(60_000);
    site.settle();
    assert!(site.names("box/1").is_empty());
    assert_eq!(site.counts(task).succeeded, 2);
}

#[test]
fn start_and_stop_are_said() {
    let mut site = TestSite::new(0);
    site.settle();
    let now = site.now;
    site.manager().stop(now);
    assert_eq!(site.messages(StatusId::ManagerStarted).len(), 1);
    assert_eq!(site.messages(StatusId::ManagerStopped).len(), 1);
}
