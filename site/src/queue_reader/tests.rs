//! Among them: a reader in another process, as another user, with a folder that it may not write.

use super::*;
use crate::store::Store;
use bgb_protocol::head::SignedHead;
use bgb_protocol::queue::QueueItem;
use bgb_protocol::signature::SigningKey;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
/// Names the database to the test that runs as another user.
const DATABASE_VARIABLE: &str = "BGB_TEST_OTHER_USER_DATABASE";
/// The user and group that systems have for nobody in particular.
const NOBODY: u32 = 65_534;

fn site() -> (tempfile::TempDir, PathBuf, Store) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("site.db");
    let store = Store::create(&path, "LAB".parse().unwrap(), NOW).unwrap();
    (folder, path, store)
}

fn head(store: &mut Store, now: UnixMillis) {
    store.write_head(now, |statement| SignedHead::sign(statement, &SigningKey::from_seed([1; 32]))).unwrap();
}

fn insert(path: &Path, server: Option<u32>, valid_until: UnixMillis) {
    let item = QueueItem::Block { device: bgb_protocol::ids::DeviceId(1) };
    Connection::open(path)
        .unwrap()
        .execute(
            "INSERT INTO queue (kind, server, payload, valid_until) VALUES ('block', ?1, ?2, ?3)",
            params![server, item.encode(), millis(valid_until)],
        )
        .unwrap();
}

#[test]
fn rows_of_others_and_rows_that_are_over_are_passed_over() {
    let (_folder, path, _store) = site();
    let late = NOW.plus(1);
    for (server, valid_until) in [(None, late), (Some(2), late), (Some(1), late), (None, NOW)] {
        insert(&path, server, valid_until);
    }
    let reader = QueueReader::open(&path).unwrap();
    let sequences = |rows: Vec<QueueRow>| rows.iter().map(|row| row.sequence).collect::<Vec<_>>();
    assert_eq!(sequences(reader.rows_after(0, ServerId(1), NOW, 10).unwrap()), [1, 3]);
    assert_eq!(sequences(reader.rows_after(1, ServerId(2), NOW, 10).unwrap()), [2]);
    assert_eq!(sequences(reader.rows_after(0, ServerId(1), NOW, 1).unwrap()), [1]);
    let snapshot = reader.all_valid(ServerId(1), NOW).unwrap();
    assert_eq!((sequences(snapshot.rows), snapshot.sequence), (vec![1, 3], 4));
}

#[test]
fn everything_valid_is_read_in_pages_of_one_moment() {
    let (_folder, path, _store) = site();
    let connection = Connection::open(&path).unwrap();
    let rows = 2 * PAGE_ROWS + 7;
    connection
        .execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
             INSERT INTO queue (kind, payload, valid_until) SELECT 'head', x'00', ?2 FROM n",
            params![integer(rows as u64), millis(NOW.plus(1))],
        )
        .unwrap();
    let snapshot = QueueReader::open(&path).unwrap().all_valid(ServerId(1), NOW).unwrap();
    assert_eq!((snapshot.rows.len(), snapshot.sequence), (rows, rows as u64));
    assert!(snapshot.rows.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
}

#[test]
fn a_commit_changes_the_data_version_and_reading_does_not() {
    let (_folder, path, mut store) = site();
    let reader = QueueReader::open(&path).unwrap();
    let before = reader.data_version().unwrap();
    reader.all_valid(ServerId(1), NOW).unwrap();
    assert_eq!(reader.data_version().unwrap(), before);
    head(&mut store, NOW);
    assert_ne!(reader.data_version().unwrap(), before);
    assert_eq!(reader.generation().unwrap(), store.generation());
}

#[test]
fn a_file_that_was_put_in_its_place_is_noticed() {
    let (folder, path, store) = site();
    let reader = QueueReader::open(&path).unwrap();
    assert!(!reader.is_replaced().unwrap());
    let other = folder.path().join("restored.db");
    let restored = Store::create(&other, "LAB".parse().unwrap(), NOW).unwrap();
    assert_ne!(restored.generation(), store.generation());
    drop((restored, store));
    std::fs::rename(&other, &path).unwrap();
    assert!(reader.is_replaced().unwrap());
}

#[test]
fn a_link_that_leads_elsewhere_is_noticed_and_so_is_one_that_leads_nowhere() {
    let (folder, path, _store) = site();
    let (other, link) = (folder.path().join("restored.db"), folder.path().join("current"));
    drop(Store::create(&other, "LAB".parse().unwrap(), NOW).unwrap());
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let reader = QueueReader::open(&link).unwrap();
    assert!(!reader.is_replaced().unwrap());
    std::fs::remove_file(&link).unwrap();
    let error = reader.is_replaced().unwrap_err();
    assert!(matches!(error, SiteError::Missing { .. }), "{error}");
    std::os::unix::fs::symlink(&other, &link).unwrap();
    assert!(reader.is_replaced().unwrap());
    let anew = QueueReader::open(&link).unwrap();
    assert!(!anew.is_replaced().unwrap());
    assert_ne!(anew.generation().unwrap(), reader.generation().unwrap());
}

#[test]
fn a_log_that_was_put_in_its_place_is_noticed_and_the_reader_lets_go() {
    for side in ["-wal", "-shm"] {
        let (folder, path, store) = site();
        let generation = store.generation();
        drop(store);
        let reader = QueueReader::open(&path).unwrap();
        std::fs::write(folder.path().join("other"), "").unwrap();
        std::fs::rename(folder.path().join("other"), beside(&path, side)).unwrap();
        assert!(reader.is_replaced().unwrap());
        let error = reader.generation().unwrap_err();
        assert!(matches!(error, SiteError::LogReplaced { .. }), "{error}");
        assert!(reader.is_replaced().unwrap(), "it stays so");
        let anew = QueueReader::open(&path).unwrap();
        assert_eq!((anew.generation().unwrap(), anew.is_replaced().unwrap()), (generation, false));
    }
}

#[test]
fn a_log_that_is_made_by_opening_written_or_emptied_is_no_replacement() {
    let (_folder, path, store) = site();
    drop(store);
    // What is restored by hand has no log; while no manager runs, the reader makes it.
    for side in ["-wal", "-shm"] {
        std::fs::remove_file(beside(&path, side)).unwrap();
    }
    let reader = QueueReader::open(&path).unwrap();
    let is_still_there = || assert!(!reader.is_replaced().unwrap());
    is_still_there();
    for life in 0..2 {
        let mut store = Store::open(&path).unwrap();
        is_still_there();
        head(&mut store, NOW.plus(life));
        is_still_there();
        let other = connection::open(&path).unwrap();
        other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        is_still_there();
        drop((other, store));
        is_still_there();
    }
}

#[test]
fn a_database_that_gets_its_log_from_the_manager_is_replaced_once() {
    let (_folder, path, store) = site();
    drop(store);
    Connection::open(&path).unwrap().pragma_update(None, "journal_mode", "delete").unwrap();
    let reader = QueueReader::open(&path).unwrap();
    assert!(!reader.is_replaced().unwrap());
    assert!(!beside(&path, "-wal").exists(), "a copy that was put there by hand is like that");
    let mut store = Store::open(&path).unwrap();
    assert!(reader.is_replaced().unwrap());
    let anew = QueueReader::open(&path).unwrap();
    drop(reader);
    head(&mut store, NOW);
    assert!(!anew.is_replaced().unwrap());
    assert_eq!(anew.all_valid(ServerId(1), NOW).unwrap().rows.len(), 1);
}

#[test]
fn a_missing_database_is_named() {
    let error = QueueReader::open(Path::new("/nowhere/site.db")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/site.db") && error.contains("bgb site init"), "{error}");
}

/// Runs [`the_other_user`] on the database in a process of its own, without the right to write anything there.
fn read_as_another_user(folder: &Path, database: &Path) {
    for name in ["site.db", "site.db-wal", "site.db-shm"] {
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o444)).unwrap();
    }
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o555)).unwrap();
    let own = std::env::current_exe().unwrap();
    // The other user may not look into the folder of the build; the program lies beside the database then.
    let (program, is_root) = (folder.with_extension("test-program"), rustix::process::geteuid().is_root());
    std::fs::copy(own, &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["--exact", "queue_reader::tests::the_other_user", "--nocapture"]);
    command.env(DATABASE_VARIABLE, database).current_dir("/");
    if is_root {
        // Root may write anything: whatever its mode.
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap();
    std::fs::remove_file(&program).unwrap();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(database, std::fs::Permissions::from_mode(0o644)).unwrap();
    for name in ["site.db-wal", "site.db-shm"] {
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("read as another user"), "{said}");
}

/// Does nothing unless it was started by [`read_as_another_user`].
#[test]
fn the_other_user() {
    let Some(database) = std::env::var_os(DATABASE_VARIABLE) else { return };
    let database = PathBuf::from(database);
    assert!(std::fs::OpenOptions::new().write(true).open(&database).is_err(), "this user must not write");
    let reader = QueueReader::open(&database).unwrap();
    reader.data_version().unwrap();
    let snapshot = reader.all_valid(ServerId(1), NOW).unwrap();
    assert_eq!(snapshot.rows.len(), 1);
    assert!(matches!(QueueItem::decode(&snapshot.rows[0].item_bytes), Ok(QueueItem::Head { .. })));
    assert_eq!(reader.rows_after(snapshot.sequence, ServerId(1), NOW, 10).unwrap(), []);
    let error = Store::open(&database).unwrap_err();
    assert!(matches!(error, crate::SiteError::ReadOnly), "{error}");
    println!("read as another user");
}

#[test]
fn another_user_reads_while_the_manager_runs_after_it_stopped_and_after_it_was_killed() {
    let (folder, path, mut store) = site();
    head(&mut store, NOW);
    // Running: the writer has the database open, and its last commit is in the log only.
    read_as_another_user(folder.path(), &path);
    // Killed: log and index are as they were; a copy of the three files is what a killed process leaves.
    let killed = tempfile::tempdir().unwrap();
    for name in ["site.db", "site.db-wal", "site.db-shm"] {
        std::fs::copy(folder.path().join(name), killed.path().join(name)).unwrap();
    }
    read_as_another_user(killed.path(), &killed.path().join("site.db"));
    // Stopped in good order: the log was emptied and left where it was.
    drop(store);
    read_as_another_user(folder.path(), &path);
}
