use bgb_daemon::disk::SimDisk;
use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::result::ResultStatement;
use bgb_protocol::signature::{DeviceKey, SigningKey};
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::TaskStatement;

use super::*;

const EXPIRES: UnixMillis = UnixMillis(1_000_000);

fn open(disk: &Arc<SimDisk>) -> Journal {
    disk.create_dir_all(Path::new("/state")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    try_open(disk).unwrap()
}

fn try_open(disk: &Arc<SimDisk>) -> Result<Journal, JournalError> {
    let disk = Arc::clone(disk) as Arc<dyn Disk>;
    Journal::open(disk, Path::new("/state"), "LAB".parse().unwrap(), DeviceId(5), 100)
}

fn id(number: u32) -> TaskId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    TaskId::from_bytes(bytes)
}

fn task(number: u32) -> SignedTask {
    let statement = TaskStatement {
        site: "LAB".parse().unwrap(),
        task: id(number),
        action: Action::Ping.code(),
        parameters: Parameters::none(),
        targets: TargetSet::new([5].into_iter().collect()).unwrap().digest(),
        not_before: UnixMillis(0),
        expires: EXPIRES,
        approval: None,
    };
    SignedTask::sign(statement, &SigningKey::from_seed([1; 32]))
}

fn result(number: u32, output: &[u8]) -> SignedResult {
    let statement = ResultStatement {
        site: "LAB".parse().unwrap(),
        task: id(number),
        device: DeviceId(5),
        state: TaskState::Succeeded,
        refusal: None,
        code: 0,
        started: UnixMillis(1),
        finished: UnixMillis(2),
        output_digest: [0; 32],
    };
    SignedResult::sign(statement, output.to_vec(), &DeviceKey::generate().unwrap().0).unwrap()
}

fn expect_room(written: Written) {
    assert_eq!(written, Written::Yes);
}

fn finish(journal: &mut Journal, number: u32, output: &[u8]) {
    journal
        .finish(id(number), EXPIRES, TaskState::Succeeded, &result(number, output))
        .map(expect_room)
        .unwrap();
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let disk = Arc::new(SimDisk::new());
    let mut journal = open(&disk);
    for number in 1..=4 {
        journal.accept(task(number)).map(expect_room).unwrap();
    }
    journal.begin(id(2), UnixMillis(7)).map(expect_room).unwrap();
    journal.begin(id(3), UnixMillis(8)).map(expect_room).unwrap();
    finish(&mut journal, 3, b"out");
    finish(&mut journal, 4, b"out");
    journal.acknowledge(id(4)).unwrap();
    assert!(journal.entomb(id(9), EXPIRES).unwrap());
    journal.keep_time(UnixMillis(77), None).unwrap();
    for _ in 0..2 {
        journal = open(&disk);
        assert_eq!(journal.unfinished(), [id(1), id(2)]);
        assert_eq!(journal.unacknowledged(), [id(3)]);
        assert!(journal.is_cancelled(id(9)) && !journal.is_cancelled(id(1)));
        assert_eq!(journal.time(), (UnixMillis(77), None));
        assert!(matches!(
            journal.task(id(2)).unwrap().progress,
            Progress::Begun { first: UnixMillis(7), times: 1, .. }
        ));
        let known: Vec<_> = journal.known(UnixMillis(0)).iter().map(|known| known.state).collect();
        use TaskState::{Received, Running, Succeeded};
        assert_eq!(known, [Succeeded, Succeeded, Running, Received]);
        assert_eq!(journal.known(EXPIRES), []);
    }
}

#[test]
fn session_numbers_only_ever_rise_and_most_of_them_cost_no_sync() {
    let disk = Arc::new(SimDisk::new());
    let mut last = 0;
    for life in 0..5 {
        let mut journal = open(&disk);
        let before = disk.ops();
        for _ in 0..SESSIONS_RESERVED {
            let SessionNumber(number) = journal.next_session().unwrap().unwrap();
            assert!(number > last && number > 100);
            last = number;
        }
        assert!(disk.ops() - before <= 2, "one record and one sync");
        disk.crash(life);
    }
}

#[test]
fn a_tombstone_a_time_and_an_end_are_durable_as_soon_as_they_are_written() {
    for seed in 0..32 {
        let disk = Arc::new(SimDisk::new());
        let mut journal = open(&disk);
        journal.entomb(id(9), EXPIRES).unwrap();
        disk.crash(seed);
        let mut journal = open(&disk);
        assert!(journal.is_cancelled(id(9)));
        journal.keep_time(UnixMillis(77), None).unwrap();
        disk.crash(seed);
        let mut journal = open(&disk);
        assert_eq!(journal.time().0, UnixMillis(77));
        finish(&mut journal, 1, b"out");
        disk.crash(seed);
        assert_eq!(open(&disk).unacknowledged(), [id(1)]);
    }
}

#[test]
fn a_first_end_stands() {
    let mut journal = open(&Arc::new(SimDisk::new()));
    finish(&mut journal, 1, b"first");
    journal.finish(id(1), EXPIRES, TaskState::Failed, &result(1, b"second")).map(expect_room).unwrap();
    assert_eq!(journal.task(id(1)).unwrap().state(), TaskState::Succeeded);
}

#[test]
fn only_what_is_acknowledged_and_a_day_past_its_expiry_is_forgotten() {
    let mut journal = open(&Arc::new(SimDisk::new()));
    finish(&mut journal, 1, b"");
    finish(&mut journal, 2, b"");
    journal.acknowledge(id(1)).unwrap();
    journal.entomb(id(3), EXPIRES).unwrap();
    journal.sweep(EXPIRES.plus(REMEMBERED_MS));
    assert!(journal.task(id(1)).is_some() && !journal.is_cancelled(id(3)));
    journal.sweep(EXPIRES.plus(REMEMBERED_MS + 1));
    assert!(journal.task(id(1)).is_none() && journal.task(id(2)).is_some());
}

#[test]
fn the_file_stays_in_proportion_to_what_is_remembered() {
    let disk = Arc::new(SimDisk::new());
    let mut journal = open(&disk);
    for number in 0..2_000 {
        finish(&mut journal, number, &[b'x'; 1_000]);
        journal.acknowledge(id(number)).unwrap();
        journal.sweep(EXPIRES.plus(REMEMBERED_MS + 1));
    }
    assert!(journal.log.bytes() <= REWRITE_BYTES_MIN + 4_096, "{} bytes", journal.log.bytes());
    assert!(journal.has_room());
}

#[test]
fn acknowledged_results_give_way_to_new_ones_and_open_ones_do_not() {
    let disk = Arc::new(SimDisk::new());
    let mut journal = open(&disk);
    let output = vec![b'x'; 30_000];
    finish(&mut journal, 0, &output);
    let mut number = 0;
    while journal.has_room() {
        number += 1;
        finish(&mut journal, number, &output);
        assert!(number < 1_000);
    }
    assert_eq!(journal.unacknowledged().len() as u32, number + 1, "none was dropped");
    journal.acknowledge(id(0)).unwrap();
    assert!(matches!(journal.task(id(0)).unwrap().progress, Progress::Finished { result: None, .. }));
    assert_eq!(open(&disk).unacknowledged().len() as u32, number);
}

#[test]
fn a_damaged_journal_takes_what_waits_for_begun() {
    let disk = Arc::new(SimDisk::new());
    let mut journal = open(&disk);
    for number in 1..=3 {
        journal.accept(task(number)).map(expect_room).unwrap();
    }
    let path = Path::new("/state/journal");
    let mut bytes = disk.read(path).unwrap();
    let middle = bytes.len() * 2 / 3;
    bytes[middle] ^= 1;
    bgb_daemon::disk::replace_durably(&*disk, path, &bytes).unwrap();
    let journal = open(&disk);
    assert_eq!(journal.unfinished(), [id(1), id(3)]);
    for number in [1, 3] {
        assert!(matches!(journal.task(id(number)).unwrap().progress, Progress::Begun { .. }));
    }
}

#[test]
fn after_a_failed_sync_the_journal_refuses_to_go_on_and_a_new_one_rests_on_what_is_durable() {
    let disk = Arc::new(SimDisk::new());
    let mut journal = open(&disk);
    journal.accept(task(1)).map(expect_room).unwrap();
    disk.fail_next_sync();
    assert!(journal.begin(id(1), UnixMillis(1)).is_err());
    assert!(journal.begin(id(1), UnixMillis(1)).is_err());
    // The kernel still shows what it has dropped; opened anew, it is made durable by writing it anew.
    let seen = open(&disk).unfinished();
    disk.crash(1);
    assert_eq!(open(&disk).unfinished(), seen);
}

#[test]
fn a_disk_without_room_takes_nothing_and_loses_nothing() {
    let disk = Arc::new(SimDisk::new());
    let mut journal = open(&disk);
    journal.accept(task(1)).map(expect_room).unwrap();
    finish(&mut journal, 2, b"out");
    disk.set_full(true);
    assert_eq!(journal.accept(task(3)).unwrap(), Written::NoRoom);
    assert_eq!(journal.begin(id(1), UnixMillis(1)).unwrap(), Written::NoRoom);
    let end = result(1, b"");
    assert_eq!(journal.finish(id(1), EXPIRES, TaskState::Failed, &end).unwrap(), Written::NoRoom);
    journal.keep_time(UnixMillis(77), None).unwrap();
    assert!(journal.owes_time());
    journal.acknowledge(id(2)).unwrap();
    assert!(journal.entomb(id(9), EXPIRES).unwrap() && journal.is_cancelled(id(9)));
    let numbers: Vec<_> = std::iter::from_fn(|| journal.next_session().unwrap()).collect();
    assert!(numbers.len() as u64 >= SESSIONS_SPARE, "{}", numbers.len());

    // What the file shows may not be on the disk; only writing it anew makes that sure.
    assert!(matches!(try_open(&disk), Err(JournalError::NoRoom)));
    disk.set_full(false);
    let mut journal = open(&disk);
    assert_eq!((journal.unfinished(), journal.unacknowledged()), (vec![id(1)], vec![id(2)]));
    journal.entomb(id(9), EXPIRES).unwrap();
    assert!(journal.next_session().unwrap() > numbers.last().copied());
    journal.begin(id(1), UnixMillis(1)).map(expect_room).unwrap();
    disk.crash(3);
    let journal = open(&disk);
    assert!(matches!(journal.task(id(1)).unwrap().progress, Progress::Begun { .. }));
    assert!(journal.is_cancelled(id(9)), "written with what came after it");
}

#[test]
fn a_torn_tail_on_a_full_disk_is_no_damage_to_what_follows() {
    let disk = Arc::new(SimDisk::new());
    drop(open(&disk));
    let path = Path::new("/state/journal");
    let mut bytes = disk.read(path).unwrap();
    bytes.extend_from_slice(&[0, 0, 0, 9, 1, 2]);
    bgb_daemon::disk::replace_durably(&*disk, path, &bytes).unwrap();
    disk.set_full(true);
    assert!(matches!(try_open(&disk), Err(JournalError::NoRoom)));
    disk.set_full(false);
    let mut journal = open(&disk);
    journal.accept(task(1)).map(expect_room).unwrap();
    assert!(matches!(open(&disk).task(id(1)).unwrap().progress, Progress::Waiting(_)));
}

#[test]
fn a_record_that_this_release_cannot_read_is_not_thrown_away() {
    let disk = Arc::new(SimDisk::new());
    let mut journal = open(&disk);
    journal.accept(task(1)).map(expect_room).unwrap();
    // A kind of record that comes with a later release.
    journal.log.append(&[codec::VERSION, 99]).unwrap();
    journal.accept(task(2)).map(expect_room).unwrap();
    let before = disk.read(Path::new("/state/journal")).unwrap();
    let (disk_again, site) = (Arc::clone(&disk) as Arc<dyn Disk>, "LAB".parse().unwrap());
    let error = Journal::open(disk_again, Path::new("/state"), site, DeviceId(5), 100).err().unwrap();
    assert!(error.to_string().contains("written by a later release"), "{error}");
    assert_eq!(disk.read(Path::new("/state/journal")).unwrap(), before);
}
