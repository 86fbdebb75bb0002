use super::*;
use crate::authority::CertificateRecord;
use crate::store::{Labels, NewDevice, NewTask, Store, Targets, VerifiedRow};
use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::file::{Epoch, FileKind};
use bgb_protocol::ids::{DeviceId, KeyId, ServerId, TaskId, UnixMillis};
use bgb_protocol::signature::SigningKey;
use bgb_protocol::state::TaskState;
use bgb_protocol::task::SignedTask;
use std::path::PathBuf;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

/// A site with a device that runs a task and is in a collection.
fn site() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("site.db");
    let mut store = Store::create(&path, "LAB".parse().unwrap(), NOW).unwrap();
    store.add_server(ServerId(1), "bgb.example:10123").unwrap();
    let new = NewDevice { name: "pc".to_owned(), labels: Labels::new() };
    let record = CertificateRecord {
        fingerprint: [1; 32],
        public_key: vec![4; 65],
        key_id: KeyId([1; 8]),
        serial: [1; 16],
        not_before: NOW,
        not_after: NOW.plus(1),
    };
    store.add_devices(&[new], NOW, |_, _| Ok(record.clone())).unwrap();
    store.create_collection("all", NOW).unwrap();
    store.add_members("all", &[DeviceId(0)], NOW, |_| unreachable!("no policy is assigned")).unwrap();
    let id = TaskId::from_bytes([5; 16]);
    let task = NewTask {
        id,
        action: Action::Ping,
        parameters: Parameters::none(),
        targets: Targets::Everyone,
        expected: None,
        not_before: NOW,
        validity_ms: 3_600_000,
        by: "anna".to_owned(),
    };
    store
        .start_task(&task, NOW, |statement| SignedTask::sign(statement, &SigningKey::from_seed([1; 32])))
        .unwrap();
    let row =
        VerifiedRow { task: id, device: DeviceId(0), heard: NOW, state: TaskState::Running, word: None };
    let epoch = Epoch { counter: 1, nonce: 1 };
    let place = crate::store::FilePlace {
        server: ServerId(1),
        epoch,
        kind: FileKind::Results,
        sequence: 1,
        rows_done: 1,
        complete: true,
    };
    store.apply_results(&[row], &place, NOW).unwrap();
    (folder, path)
}

#[test]
fn a_site_in_order_has_no_findings_and_says_what_was_looked_at() {
    let (_folder, path) = site();
    let report = check(&path).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    assert!(report.checked.contains(&"1 tasks with 1 results".to_owned()), "{:?}", report.checked);
}

#[test]
fn whatever_disagrees_is_found() {
    let damages = [
        ("UPDATE task_count SET n = 2", "counts"),
        ("DELETE FROM task_count", "counts"),
        ("INSERT INTO task_count VALUES (1, 4, 1)", "counts"),
        ("DELETE FROM membership", "memberships"),
        ("UPDATE collection SET member_count = 7", "memberships"),
        ("UPDATE collection SET members = x'00'", "memberships"),
        ("UPDATE task SET target_count = 9", "targets"),
        ("UPDATE task SET targets = x'00'", "targets"),
        ("UPDATE queue SET payload = x'ff' WHERE sequence = 1", "queue"),
        ("UPDATE queue SET kind = 'block' WHERE sequence = 1", "queue"),
        ("UPDATE sqlite_sequence SET seq = 1 WHERE name = 'queue'", "queue"),
        ("UPDATE device SET presence = 1", "devices"),
        ("UPDATE site SET device_next = 0", "devices"),
        ("UPDATE site SET passed_over_count = 7", "devices"),
        ("DELETE FROM certificate; DELETE FROM membership; DELETE FROM device", "references"),
    ];
    for (damage, expected) in damages {
        let (_folder, path) = site();
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "foreign_keys", false).unwrap();
        connection.execute_batch(damage).unwrap();
        let report = check(&path).unwrap();
        assert!(
            report.findings.iter().any(|finding| finding.check == expected),
            "{damage}: {:?}",
            report.findings
        );
    }
}

#[test]
fn many_findings_of_a_kind_are_counted() {
    let mut report = CheckReport::default();
    report.find_all("queue", (0..50).map(|number| number.to_string()).collect());
    assert_eq!(report.findings.len(), FINDINGS_PER_KIND_MAX + 1);
    assert_eq!(report.findings.last().unwrap().text, "30 more of this kind");
}

#[test]
fn a_damaged_file_is_a_finding_and_no_panic() {
    use std::os::unix::fs::FileExt as _;

    let (_folder, path) = site();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    assert!(pages > 10, "the log was moved into the file when the store was closed");
    // The first page names the file; with it gone, this would be no database.
    for page in 1..pages {
        let mut sound = [0; 4096];
        file.read_exact_at(&mut sound, page * 4096).unwrap();
        file.write_all_at(&[0xa5; 4096], page * 4096).unwrap();
        match check(&path) {
            Ok(report) => assert!(!report.is_sound(), "page {page}"),
            Err(error) => assert!(matches!(error, SiteError::Corrupt(_)), "page {page}: {error}"),
        }
        file.write_all_at(&sound, page * 4096).unwrap();
    }
    assert!(check(&path).unwrap().is_sound());
}
