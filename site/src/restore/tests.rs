use super::former::{FormerSite, fold, keep_beside, way_out};
use super::*;
use crate::QueueReader;
use crate::authority::CertificateRecord;
use crate::backup::backup;
use crate::check::check;
use crate::folder::SiteFolder;
use crate::queue_reader::QueueRow;
use crate::store::{Labels, NewDevice, NewTask, PolicyAudience, PutPolicy, Store, Targets};
use bgb_daemon::lock::ProcessLock;
use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::head::SignedHead;
use bgb_protocol::ids::{DeviceId, KeyId, TaskId};
use bgb_protocol::policy::{PolicySettings, SignedPolicy};
use bgb_protocol::queue::QueueItem;
use bgb_protocol::signature::SigningKey;
use bgb_protocol::task::{SignedCancel, SignedTask};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

struct Site {
    folder: tempfile::TempDir,
    database: PathBuf,
    copy: PathBuf,
    /// The generation that was copied.
    generation: Generation,
}

fn key() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

fn add_device(store: &mut Store, name: &str) -> DeviceId {
    let new = NewDevice { name: name.to_owned(), labels: Labels::new() };
    let record = |device: DeviceId, _| {
        let (mut fingerprint, mut key_id) = ([0; 32], [0; 8]);
        fingerprint[..4].copy_from_slice(&device.0.to_be_bytes());
        key_id[..4].copy_from_slice(&device.0.to_be_bytes());
        let (not_before, not_after) = (NOW, NOW.plus(1));
        let (public_key, key_id, serial) = (vec![4; 65], KeyId(key_id), [1; 16]);
        Ok(CertificateRecord { fingerprint, public_key, key_id, serial, not_before, not_after })
    };
    store.add_devices(&[new], NOW, record).unwrap()
}

fn put_policy(store: &mut Store, name: &str) -> u64 {
    let settings = PolicySettings::parse(r#"{"keepalive_seconds": 60}"#).unwrap();
    let put = PutPolicy { name: name.to_owned(), priority: 5, audience: PolicyAudience::Everyone, settings };
    store.put_policy(&put, NOW, |statement| SignedPolicy::sign(statement, &key())).unwrap()
}

fn devices(database: &Path) -> Vec<String> {
    let connection = connection::open_read_only(database).unwrap();
    let mut statement = connection.prepare("SELECT name FROM device ORDER BY number").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn options() -> RestoreOptions {
    RestoreOptions { site: Some("LAB".parse().unwrap()), servers: Vec::new(), now: NOW.plus(1_000) }
}

/// A site that was copied with the device `early`, and has `late` since; both are in the log of its database.
fn site() -> (Site, Store) {
    let folder = tempfile::tempdir().unwrap();
    let (database, copy) = (folder.path().join("site.db"), folder.path().join("copy"));
    let mut store = Store::create(&database, "LAB".parse().unwrap(), NOW).unwrap();
    store.add_server(ServerId(1), "bgb.example:10123").unwrap();
    store.write_head(NOW, |statement| SignedHead::sign(statement, &key())).unwrap();
    add_device(&mut store, "early");
    put_policy(&mut store, "base");
    backup(&database, &copy).unwrap();
    add_device(&mut store, "late");
    (Site { folder, database, copy, generation: store.generation() }, store)
}

impl Site {
    /// What is in its folder, without the locks, which stay.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !["site.db.manager-lock", "site.db.set-up-lock"].contains(&name.as_str()));
        names.sort();
        names
    }

    /// It is refused, and nothing has changed.
    #[track_caller]
    fn refuses(&self, copy: &Path, options: &RestoreOptions) -> SiteError {
        let (names, bytes) = (self.names(), std::fs::read(copy).ok());
        let error = restore(&self.database, copy, options).unwrap_err();
        assert_eq!(self.names(), names, "{error}");
        assert!(std::fs::read(copy).ok() == bytes, "the copy was changed: {error}");
        assert_eq!(devices(&self.database), ["early", "late"], "{error}");
        error
    }
}

#[test]
fn a_restored_database_is_a_new_life_and_the_former_one_and_the_copy_are_kept() {
    let (site, store) = site();
    drop(store);
    let copied = std::fs::read(&site.copy).unwrap();
    let report = restore(&site.database, &site.copy, &options()).unwrap();
    assert_eq!(devices(&site.database), ["early"]);
    let store = Store::open(&site.database).unwrap();
    assert_eq!(store.generation(), report.generation);
    assert_ne!(store.generation(), site.generation);
    assert_eq!(report.head, Some(NOW));
    assert_eq!(store.retake_since(), Some(UnixMillis(NOW.0 - RETAKE_MARGIN_MS)));
    assert_eq!(check(&site.database).unwrap().findings, []);
    assert_eq!(std::fs::read(&site.copy).unwrap(), copied);
    assert!(!site.names().iter().any(|name| name.contains("restoring") || name.starts_with("copy-")));
    let kept = report.kept.unwrap();
    assert_eq!(kept.file_name().unwrap(), "site.db.before-restore-20231114T221321Z");
    assert_eq!(
        (report.former, devices(&kept)),
        (Former::Readable, vec!["early".to_owned(), "late".to_owned()])
    );
    assert_eq!(Store::open(&kept).unwrap().generation(), site.generation);
}

#[test]
fn the_formers_log_is_not_applied_to_the_new_database() {
    let (site, store) = site();
    // As after a kill: the log is full of what the database itself does not have.
    let killed = tempfile::tempdir().unwrap();
    for side in ["", "-wal", "-shm"] {
        let name = format!("site.db{side}");
        std::fs::copy(site.folder.path().join(&name), killed.path().join(&name)).unwrap();
    }
    drop(store);
    let database = killed.path().join("site.db");
    assert!(std::fs::metadata(beside(&database, "-wal")).unwrap().len() > 0);
    let report = restore(&database, &site.copy, &options()).unwrap();
    assert_eq!(std::fs::metadata(beside(&database, "-wal")).unwrap().len(), 0);
    assert_eq!(check(&database).unwrap().findings, []);
    assert_eq!(devices(&database), ["early"]);
    assert_eq!(devices(&report.kept.unwrap()), ["early", "late"]);
}

#[test]
fn a_former_database_that_is_damaged_goes_away_together_with_its_log() {
    let (site, store) = site();
    let log = std::fs::read(beside(&site.database, "-wal")).unwrap();
    drop(store);
    std::fs::write(&site.database, vec![0xab; 40_960]).unwrap();
    std::fs::write(beside(&site.database, "-wal"), &log).unwrap();
    let report = restore(&site.database, &site.copy, &options()).unwrap();
    assert!(matches!(report.former, Former::Unreadable(_)), "{report:?}");
    assert_eq!(devices(&site.database), ["early"]);
    assert_eq!(check(&site.database).unwrap().findings, []);
    let kept = report.kept.unwrap();
    assert_eq!(std::fs::read(&kept).unwrap(), vec![0xab; 40_960]);
    assert_eq!(std::fs::read(beside(&kept, "-wal")).unwrap(), log);
}

#[test]
fn a_former_database_that_shows_its_damage_when_its_log_is_folded_is_reported_as_damaged() {
    let (site, mut store) = site();
    let other = Connection::open(&site.database).unwrap();
    let sql = "INSERT INTO queue (kind, payload, valid_until) VALUES ('head', zeroblob(2000000), 0)";
    other.execute(sql, []).unwrap();
    assert!(empty_log(&other).unwrap());
    add_device(&mut store, "last");
    // The end is missing, and what is in the log does not make up for it.
    let damaged = tempfile::tempdir().unwrap();
    let database = damaged.path().join("site.db");
    for side in ["", "-wal"] {
        std::fs::copy(beside(&site.database, side), beside(&database, side)).unwrap();
    }
    File::options().write(true).open(&database).unwrap().set_len(1_000_000).unwrap();
    let (bytes, log) = (std::fs::read(&database).unwrap(), std::fs::read(beside(&database, "-wal")).unwrap());
    assert!(matches!(former::look_at(&database).unwrap(), FormerFile::Readable(_)), "so far it can be read");
    let report = restore(&database, &site.copy, &options()).unwrap();
    let Former::Unreadable(why) = &report.former else { panic!("{report:?}") };
    assert!(why.contains("damaged"), "{why}");
    let kept = report.kept.unwrap();
    assert!(std::fs::read(&kept).unwrap() == bytes && std::fs::read(beside(&kept, "-wal")).unwrap() == log);
    assert_eq!(devices(&database), ["early"]);
    assert_eq!(check(&database).unwrap().findings, []);
}

#[test]
fn a_missing_database_is_restored_and_a_log_that_was_left_is_not_applied() {
    let (site, store) = site();
    let log = std::fs::read(beside(&site.database, "-wal")).unwrap();
    drop(store);
    std::fs::remove_file(&site.database).unwrap();
    std::fs::write(beside(&site.database, "-wal"), &log).unwrap();
    let report = restore(&site.database, &site.copy, &options()).unwrap();
    assert_eq!((report.former, report.kept), (Former::Missing, None));
    assert_eq!(devices(&site.database), ["early"]);
    assert_eq!(check(&site.database).unwrap().findings, []);
}

/// Names the database to the test that is a manager in a process of its own.
const MANAGED_VARIABLE: &str = "BGB_TEST_MANAGED_DATABASE";
/// The time of the head that it writes.
const MANAGED: UnixMillis = UnixMillis(NOW.0 + 5_000);

/// Does nothing unless it was started by [`write_head_as_another_process`].
#[test]
fn the_manager_of_another_process() {
    let Some(database) = std::env::var_os(MANAGED_VARIABLE) else { return };
    let mut store = Store::open(Path::new(&database)).unwrap();
    store.write_head(MANAGED, |statement| SignedHead::sign(statement, &key())).unwrap();
    println!("a head was written");
    // Killed: what it has committed is in the log only.
    std::process::exit(0);
}

/// In this process it would share what SQLite holds open for the readers here.
#[track_caller]
fn write_head_as_another_process(database: &Path) {
    let mut manager = std::process::Command::new(std::env::current_exe().unwrap());
    manager.args(["--exact", "restore::tests::the_manager_of_another_process", "--nocapture"]);
    let output = manager.env(MANAGED_VARIABLE, database).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("a head was written"), "{output:?}");
}

/// Whether a server that goes by what `reader` says comes to see the head; it opens anew before it lets go.
#[track_caller]
fn sees_the_head(mut reader: QueueReader) -> bool {
    if reader.is_replaced().unwrap() {
        reader = QueueReader::open(reader.path()).unwrap();
        assert!(!reader.is_replaced().unwrap(), "nothing has changed since");
    }
    let is_it = |row: &QueueRow| match QueueItem::decode(&row.item_bytes) {
        Ok(QueueItem::Head { signed }) => SignedHead::decode(&signed).unwrap().statement().time == MANAGED,
        _ => false,
    };
    reader.all_valid(ServerId(1), NOW).unwrap().rows.iter().any(is_it)
}

#[test]
fn wherever_it_is_interrupted_the_database_is_the_former_one_or_the_new_one_and_servers_follow_it() {
    for done in 0..=3 {
        let (site, store) = site();
        drop(store);
        let reader = QueueReader::open(&site.database).unwrap();
        let place = Place::of(&site.database, NOW).unwrap();
        let (life, former) = prepare(&place, &site.copy, &options()).unwrap();
        let FormerFile::Readable(former) = former else { panic!("it can be read") };
        fold(&place, &former.connection).unwrap();
        keep_beside(&place).unwrap();
        for (from, to) in renames(&place).into_iter().take(done) {
            std::fs::rename(from, to).unwrap();
        }
        drop(former);
        assert_eq!(reader.is_replaced().unwrap(), done > 0, "after {done} renames");
        write_head_as_another_process(&site.database);
        assert!(sees_the_head(reader), "after {done} renames");
        let generation = if done < 3 { site.generation } else { life.generation };
        assert_eq!(Store::open(&site.database).unwrap().generation(), generation, "after {done} renames");
        assert_eq!(devices(&site.database).len(), if done < 3 { 2 } else { 1 });
        assert_eq!(check(&site.database).unwrap().findings, []);
        // And it can be done again.
        let again = RestoreOptions { now: NOW.plus(60_000), ..options() };
        restore(&site.database, &site.copy, &again).unwrap();
        assert_eq!(devices(&site.database), ["early"]);
    }
}

#[test]
fn a_server_that_opens_the_database_between_two_renames_follows_it_too() {
    for opened_after in 0..3 {
        for done in opened_after + 1..=3 {
            let (site, store) = site();
            drop(store);
            let place = Place::of(&site.database, NOW).unwrap();
            let (_, former) = prepare(&place, &site.copy, &options()).unwrap();
            let put_away = former::put_away(&place, former).unwrap();
            let take = |renames: &[(PathBuf, PathBuf)]| {
                renames.iter().for_each(|(from, to)| std::fs::rename(from, to).unwrap());
            };
            let renames = renames(&place);
            take(&renames[..opened_after]);
            drop(put_away);
            let reader = QueueReader::open(&site.database).unwrap();
            take(&renames[opened_after..done]);
            write_head_as_another_process(&site.database);
            assert!(sees_the_head(reader), "opened after {opened_after} of {done} renames");
        }
    }
}

#[test]
fn interrupted_after_a_damaged_database_went_away_there_is_none_until_it_is_done_again() {
    for done in 0..3 {
        let (site, store) = site();
        drop(store);
        std::fs::write(&site.database, "these are no pages of any database, and never were").unwrap();
        let place = Place::of(&site.database, NOW).unwrap();
        prepare(&place, &site.copy, &options()).unwrap();
        way_out(&place).iter().try_for_each(former::Step::take).unwrap();
        for (from, to) in renames(&place).into_iter().take(done) {
            std::fs::rename(from, to).unwrap();
        }
        assert!(matches!(Store::open(&site.database), Err(SiteError::Missing { .. })));
        restore(&site.database, &site.copy, &options()).unwrap();
        assert_eq!(devices(&site.database), ["early"]);
    }
}

#[test]
fn what_is_no_copy_of_this_site_is_refused_and_nothing_changes() {
    let (site, store) = site();
    drop(store);
    let file = |name: &str| site.folder.path().join(name);
    let error = site.refuses(&site.database, &options());
    assert!(error.to_string().contains("the site's database itself"), "{error}");
    assert!(matches!(site.refuses(&file("none"), &options()), SiteError::Io { .. }));
    std::fs::write(file("garbage"), "no database of anything, in forty bytes or so").unwrap();
    assert!(matches!(site.refuses(&file("garbage"), &options()), SiteError::NotASite { .. }));
    std::fs::write(file("empty"), "").unwrap();
    assert!(matches!(site.refuses(&file("empty"), &options()), SiteError::NotASite { .. }));
    let whole = std::fs::read(&site.copy).unwrap();
    std::fs::write(file("short"), &whole[..whole.len() / 2]).unwrap();
    let error = site.refuses(&file("short"), &options());
    assert!(matches!(error, SiteError::CopyDamaged { .. }), "{error}");
    assert!(error.to_string().contains("short") && error.to_string().contains("another one"), "{error}");

    let newer = file("newer");
    std::fs::write(&newer, &whole).unwrap();
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = site.refuses(&newer, &options());
    assert!(matches!(error, SiteError::NewerSchema { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("newer"), "{error}");
}

#[test]
fn a_copy_of_another_site_is_refused_also_where_the_database_is_missing() {
    let (site, store) = site();
    drop(store);
    let other = site.folder.path().join("other");
    drop(Store::create(&other, "XYZ".parse().unwrap(), NOW).unwrap());
    for side in ["-wal", "-shm"] {
        std::fs::remove_file(beside(&other, side)).unwrap();
    }
    let error = site.refuses(&other, &options());
    assert!(matches!(error, SiteError::OtherSite { .. }), "{error}");
    assert!(error.to_string().contains("XYZ") && error.to_string().contains("LAB"), "{error}");
    let elsewhere = tempfile::tempdir().unwrap();
    let database = elsewhere.path().join("site.db");
    assert!(matches!(restore(&database, &other, &options()), Err(SiteError::OtherSite { .. })));
    let anything = RestoreOptions { site: None, ..options() };
    assert_eq!(restore(&database, &other, &anything).unwrap().site.as_str(), "XYZ");
}

#[test]
fn while_a_manager_runs_nothing_is_restored() {
    let (site, store) = site();
    drop(store);
    let lock = ProcessLock::take(&SiteFolder::manager_lock(&site.database), "manager").unwrap();
    let error = site.refuses(&site.copy, &options());
    assert!(matches!(error, SiteError::ManagerRuns { .. }), "{error}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(lock);
    restore(&site.database, &site.copy, &options()).unwrap();
}

#[test]
fn while_somebody_reads_the_former_database_nothing_is_restored() {
    let (site, mut store) = site();
    let reader = Connection::open(&site.database).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM device").unwrap();
    add_device(&mut store, "later");
    drop(store);
    let error = restore(&site.database, &site.copy, &options()).unwrap_err();
    assert!(matches!(error, SiteError::InUse { .. }), "{error}");
    reader.execute_batch("ROLLBACK").unwrap();
    assert_eq!(devices(&site.database), ["early", "late", "later"]);
    restore(&site.database, &site.copy, &options()).unwrap();
    assert_eq!(devices(&site.database), ["early"]);
}

#[test]
fn a_server_that_follows_notices_and_finds_a_database_without_the_right_to_write() {
    let (site, store) = site();
    drop(store);
    let reader = QueueReader::open(&site.database).unwrap();
    let before = reader.all_valid(ServerId(1), NOW).unwrap();
    restore(&site.database, &site.copy, &options()).unwrap();
    assert!(reader.is_replaced().unwrap());
    for side in ["-wal", "-shm"] {
        assert!(beside(&site.database, side).exists(), "whoever may not write the folder could not make it");
    }
    let anew = QueueReader::open(&site.database).unwrap().all_valid(ServerId(1), NOW).unwrap();
    assert_ne!(anew.generation, before.generation);
    // What it held open is the former one, unharmed.
    assert_eq!(reader.all_valid(ServerId(1), NOW).unwrap(), before);
}

#[test]
fn numbers_that_were_given_since_are_not_given_again() {
    for damaged in [false, true] {
        let (site, mut store) = site();
        let late = put_policy(&mut store, "base");
        drop(store);
        if damaged {
            std::fs::write(&site.database, "this was a database").unwrap();
        }
        restore(&site.database, &site.copy, &options()).unwrap();
        let mut store = Store::open(&site.database).unwrap();
        // It has not been issued yet, and then it is newer than any that agents have.
        assert_eq!(store.read().policies().unwrap()[0].version, 0);
        let sign = |statement| SignedPolicy::sign(statement, &key());
        let issued = store.reissue_policy(NOW, sign).unwrap().unwrap();
        assert!(issued > late, "{issued} after {late}");
        assert_eq!(store.reissue_policy(NOW, sign).unwrap(), None);
        let device = add_device(&mut store, "new");
        assert_eq!(device.0, if damaged { 1 + 100_000 } else { 2 });
        // And they are not counted as devices.
        assert_eq!(store.read().fleet_counts().unwrap().all, 2);
        assert_eq!(store.read().device_counts().unwrap().1, 2);
        // Whoever has such a number is nobody's target.
        assert_eq!(store.read().preview(&Targets::Everyone).unwrap().targets, 2);
        drop(store);
        assert_eq!(check(&site.database).unwrap().findings, []);
    }
}

#[test]
fn servers_that_were_added_since_are_known_again() {
    let (site, mut store) = site();
    store.add_server(ServerId(2), "two.example:10123").unwrap();
    drop(store);
    let with_folders = RestoreOptions { servers: vec![ServerId(1), ServerId(2), ServerId(3)], ..options() };
    let report = restore(&site.database, &site.copy, &with_folders).unwrap();
    assert_eq!(report.servers_added, [ServerId(2), ServerId(3)]);
    let servers = Store::open(&site.database).unwrap().read().servers().unwrap();
    let addresses: Vec<_> = servers.iter().map(|server| server.address.as_deref()).collect();
    assert_eq!(addresses, [Some("bgb.example:10123"), Some("two.example:10123"), None]);
}

#[test]
fn a_copy_with_a_log_of_its_own_and_one_of_an_older_schema_are_restored() {
    let (site, store) = site();
    // What somebody copied by hand from a manager that was killed.
    let by_hand = site.folder.path().join("by-hand");
    for side in ["", "-wal"] {
        std::fs::copy(beside(&site.database, side), beside(&by_hand, side)).unwrap();
    }
    drop(store);
    restore(&site.database, &by_hand, &options()).unwrap();
    assert_eq!(devices(&site.database), ["early", "late"]);

    let old = Connection::open(&site.copy).unwrap();
    old.execute_batch(
        "ALTER TABLE site DROP COLUMN retake_since; ALTER TABLE site DROP COLUMN passed_over; \
         ALTER TABLE site DROP COLUMN passed_over_count; ALTER TABLE server_life RENAME COLUMN heard TO newest",
    )
    .unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    drop(old);
    let later = RestoreOptions { now: NOW.plus(60_000), ..options() };
    restore(&site.database, &site.copy, &later).unwrap();
    assert_eq!(devices(&site.database), ["early"]);
    assert!(!site.names().iter().any(|name| name.contains("before-000")), "{:?}", site.names());
}

#[test]
fn a_copy_that_was_made_before_a_restores_work_was_done_keeps_that_work() {
    let (site, store) = site();
    drop(store);
    restore(&site.database, &site.copy, &options()).unwrap();
    let mut store = Store::open(&site.database).unwrap();
    store.write_head(NOW.plus(3_600_000), |statement| SignedHead::sign(statement, &key())).unwrap();
    let second = site.folder.path().join("second");
    backup(&site.database, &second).unwrap();
    store.finish_restore("all is done", NOW).unwrap();
    assert_eq!(store.retake_since(), None);
    drop(store);
    assert_eq!(Store::open(&site.database).unwrap().retake_since(), None);
    let later = RestoreOptions { now: NOW.plus(60_000), ..options() };
    let report = restore(&site.database, &second, &later).unwrap();
    assert_eq!(report.retake_since, UnixMillis(NOW.0 - RETAKE_MARGIN_MS));
}

#[test]
fn without_a_head_everything_that_is_kept_is_taken_in_again() {
    let (site, store) = site();
    drop(store);
    Connection::open(&site.copy).unwrap().execute("DELETE FROM queue WHERE kind = 'head'", []).unwrap();
    let report = restore(&site.database, &site.copy, &options()).unwrap();
    assert_eq!((report.head, report.retake_since), (None, UnixMillis(0)));
}

#[test]
fn a_database_behind_a_link_is_replaced_where_it_lies() {
    let (site, store) = site();
    drop(store);
    let link = site.folder.path().join("linked.db");
    std::os::unix::fs::symlink(&site.database, &link).unwrap();
    restore(&link, &site.copy, &options()).unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(devices(&site.database), ["early"]);
}

#[test]
fn what_is_lost_is_told_as_far_as_the_former_database_can() {
    let (site, mut store) = site();
    let start = |store: &mut Store, mark: u8| {
        let task = NewTask {
            id: TaskId::from_bytes([mark; 16]),
            action: Action::Ping,
            parameters: Parameters::none(),
            targets: Targets::Everyone,
            expected: None,
            not_before: NOW,
            validity_ms: 3_600_000,
            by: "anna".to_owned(),
        };
        store.start_task(&task, NOW, |statement| SignedTask::sign(statement, &key())).unwrap();
        task.id
    };
    let task = start(&mut store, 1);
    let copy = site.folder.path().join("second");
    backup(&site.database, &copy).unwrap();
    start(&mut store, 2);
    store.cancel_task(task, "anna", NOW, |statement| SignedCancel::sign(statement, &key())).unwrap();
    store.block_device(DeviceId(0), "anna", NOW).unwrap();
    add_device(&mut store, "later");
    drop(store);
    let report = restore(&site.database, &copy, &options()).unwrap();
    let lost = Lost { blocks: vec!["early".to_owned()], cancels: vec![task], tasks: 1, devices: 1 };
    assert_eq!(report.lost, Some(lost));
}

/// Former databases that are kept, as the endings of their names.
fn kept(site: &Site) -> Vec<String> {
    let kept = site
        .names()
        .into_iter()
        .filter_map(|name| Some(name.strip_prefix("site.db.before-restore-")?.to_owned()));
    kept.collect()
}

#[test]
fn interrupted_while_a_damaged_database_is_moved_away_it_keeps_its_log_and_can_be_done_again() {
    let (database, log) = (vec![0xab; 40_960], b"its own log".to_vec());
    for done in 0..=12 {
        let (site, store) = site();
        drop(store);
        std::fs::write(&site.database, &database).unwrap();
        std::fs::write(beside(&site.database, "-wal"), &log).unwrap();
        let place = Place::of(&site.database, NOW).unwrap();
        prepare(&place, &site.copy, &options()).unwrap();
        let steps = way_out(&place);
        assert_eq!(steps.len(), 11);
        steps.iter().take(done).try_for_each(former::Step::take).unwrap();
        for (from, to) in renames(&place).into_iter().take(done.saturating_sub(steps.len())) {
            std::fs::rename(from, to).unwrap();
        }
        // Whoever opens the database meanwhile finds the former one, damaged as it is, with its own log, or none.
        if site.database.exists() {
            assert_eq!(std::fs::read(&site.database).unwrap(), database, "after {done} steps");
            assert_eq!(std::fs::read(beside(&site.database, "-wal")).unwrap(), log, "after {done} steps");
        }

        restore(&site.database, &site.copy, &RestoreOptions { now: NOW.plus(60_000), ..options() }).unwrap();
        assert_eq!(devices(&site.database), ["early"]);
        assert_eq!(check(&site.database).unwrap().findings, []);
        let bases: Vec<_> = kept(&site).into_iter().filter(|name| name.ends_with('Z')).collect();
        assert_eq!(bases.len(), 1, "after {done} steps: {:?}", site.names());
        let base = beside(&site.database, &format!(".before-restore-{}", bases[0]));
        assert_eq!(std::fs::read(&base).unwrap(), database, "after {done} steps");
        assert_eq!(std::fs::read(beside(&base, "-wal")).unwrap(), log, "after {done} steps");
    }
}

#[test]
fn a_restore_that_is_refused_or_killed_at_the_end_leaves_no_second_name_of_the_database() {
    let (site, store) = site();
    drop(store);
    let before = site.names();
    let place = Place::of(&site.database, NOW).unwrap();
    let (_, former) = prepare(&place, &site.copy, &options()).unwrap();
    std::fs::remove_file(&place.restoring).unwrap();
    assert!(put_in_place(&place, former).is_err(), "the new database has gone");
    assert_eq!(kept(&site).len(), 1, "as after a kill");
    place.remove_unfinished().unwrap();
    assert_eq!(site.names(), before);
    assert_eq!(devices(&site.database), ["early", "late"]);
    // The one that was killed there is followed by one that succeeds.
    keep_beside(&place).unwrap();
    restore(&site.database, &site.copy, &options()).unwrap();
    assert_eq!(kept(&site).len(), 1);
    // And what is kept is never taken for such a leftover, nor written over in the same second.
    restore(&site.database, &site.copy, &options()).unwrap();
    assert_eq!(kept(&site).iter().filter(|name| !name.contains("-wal") && !name.contains("-shm")).count(), 2);
}

#[test]
fn a_rename_that_fails_takes_the_second_name_back() {
    let (site, store) = site();
    drop(store);
    // Where the log's index lies a folder: the former database is opened by nobody, and the new one's index cannot take its place.
    let before = site.names();
    let place = Place::of(&site.database, NOW).unwrap();
    let (_, former) = prepare(&place, &site.copy, &options()).unwrap();
    let index = beside(&site.database, "-shm");
    std::fs::remove_file(&index).unwrap();
    std::fs::create_dir(&index).unwrap();
    let failed = put_in_place(&place, former);
    assert!(matches!(failed, Err(SiteError::Io { .. })), "{failed:?}");
    place.remove_unfinished().unwrap();
    std::fs::remove_dir(&index).unwrap();
    assert_eq!(kept(&site), [""; 0]);
    assert_eq!(site.names().len() + 1, before.len(), "but for the index, which is made anew");
    assert_eq!(devices(&site.database), ["early", "late"]);
}

#[test]
fn what_the_disk_refuses_is_no_damage_and_nothing_is_moved_away() {
    let (site, store) = site();
    drop(store);
    // A log that cannot be opened, by whoever it may be.
    let log = beside(&site.database, "-wal");
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    let before = site.names();
    let error = restore(&site.database, &site.copy, &options()).unwrap_err();
    assert!(matches!(error, SiteError::FormerRefused { .. }), "{error}");
    assert!(error.to_string().contains("nothing was changed"), "{error}");
    assert_eq!(site.names(), before);
    std::fs::remove_dir(&log).unwrap();

    // One that turns out to be read-only when its log is to be folded.
    let place = Place::of(&site.database, NOW).unwrap();
    let (_, former) = prepare(&place, &site.copy, &options()).unwrap();
    let FormerFile::Readable(former) = former else { panic!("it can be read") };
    let before = site.names();
    let connection = connection::open_read_only(&site.database).unwrap();
    let former = FormerSite { connection, ..*former };
    let error = put_in_place(&place, FormerFile::Readable(Box::new(former))).unwrap_err();
    assert!(matches!(error, SiteError::ReadOnly), "{error}");
    assert_eq!(site.names(), before);
    restore(&site.database, &site.copy, &options()).unwrap();
}

#[test]
fn a_manager_that_calls_the_database_by_another_name_is_in_the_way() {
    let (site, store) = site();
    drop(store);
    let link = site.folder.path().join("linked.db");
    std::os::unix::fs::symlink(&site.database, &link).unwrap();
    for (managers, restored) in [(&link, &site.database), (&site.database, &link)] {
        let lock = ProcessLock::take(&SiteFolder::manager_lock(managers), "manager").unwrap();
        let error = restore(restored, &site.copy, &options()).unwrap_err();
        assert!(matches!(error, SiteError::ManagerRuns { .. }), "{error}");
        drop(lock);
    }
    assert_eq!(devices(&site.database), ["early", "late"]);
}

#[test]
fn while_a_server_is_added_nothing_is_restored() {
    let (site, store) = site();
    drop(store);
    let lock = ProcessLock::take(&SiteFolder::set_up_lock(&site.database), "process").unwrap();
    let error = site.refuses(&site.copy, &options());
    assert!(matches!(error, SiteError::SetUpRuns { .. }), "{error}");
    drop(lock);
    restore(&site.database, &site.copy, &options()).unwrap();
}

#[test]
fn a_link_that_leads_nowhere_is_no_missing_database() {
    let (site, store) = site();
    drop(store);
    let link = site.folder.path().join("linked.db");
    std::os::unix::fs::symlink("elsewhere/site.db", &link).unwrap();
    let before = site.names();
    let error = restore(&link, &site.copy, &options()).unwrap_err();
    assert!(matches!(error, SiteError::Io { .. }), "{error}");
    assert!(error.to_string().contains("linked.db: cannot be found"), "{error}");
    assert_eq!(site.names(), before);
    assert!(link.is_symlink() && !link.exists());
}

#[test]
fn what_an_earlier_restore_left_unfinished_is_no_copy() {
    let (site, store) = site();
    drop(store);
    let left = beside(&site.database, ".restoring");
    std::fs::copy(&site.copy, &left).unwrap();
    let link = site.folder.path().join("linked-copy");
    std::os::unix::fs::symlink(&left, &link).unwrap();
    for copy in [&left, &link] {
        let before = std::fs::read(&left).unwrap();
        let error = restore(&site.database, copy, &options()).unwrap_err();
        assert!(matches!(error, SiteError::CopyDamaged { .. }), "{error}");
        assert!(error.to_string().contains("give it another name first"), "{error}");
        // Advice is of use only while the file is there.
        assert_eq!(std::fs::read(&left).unwrap(), before);
    }
    let renamed = site.folder.path().join("renamed");
    std::fs::rename(&left, &renamed).unwrap();
    restore(&site.database, &renamed, &options()).unwrap();
    assert_eq!(devices(&site.database), ["early"]);
}
