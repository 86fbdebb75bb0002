use std::path::Path;

use bgb_daemon::disk::SimDisk;
use bgb_protocol::file::{BlockHead, HEADER_BYTES, Header, check_block, rows};
use bgb_protocol::ids::{KeyId, ServerId, SiteCode};
use bgb_protocol::result::SignedResult;
use bgb_protocol::signature::Signature;
use proptest::prelude::*;

use super::*;

fn site() -> SiteCode {
    "LAB".parse().unwrap()
}

fn open(disk: &SimDisk) -> (Spool, Recovered) {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let outgoing = Outgoing::open(disk, Path::new("/spool"), site(), ServerId(1), 7).unwrap();
    Spool::open(outgoing, Path::new("/spool"), 1_000).unwrap()
}

fn at(ms: u64) -> Now {
    Now { unix_ms: ms, boot_ms: ms, mono_ms: ms }
}

fn result(device: u32, word: &str) -> ResultRow {
    let signature = Signature { key: KeyId([1; 8]), bytes: [2; 64] };
    let result = SignedResult { statement: word.into(), signature, output: Vec::new() };
    ResultRow {
        task: TaskId::from_bytes([1; 16]),
        device: DeviceId(device),
        heard: UnixMillis(5),
        word: DeviceWord::Final(Box::new(result)),
    }
}

fn hint(device: u32, word: DeviceWord) -> ResultRow {
    ResultRow { word, ..result(device, "") }
}

/// All rows of all finished files.
fn filed(disk: &SimDisk) -> Vec<ResultRow> {
    let folder = Path::new("/spool/outgoing");
    let mut all = Vec::new();
    for entry in disk.list(folder).unwrap().into_iter().filter(|entry| entry.name.ends_with(".BTS")) {
        let bytes = disk.read(&folder.join(entry.name)).unwrap();
        let header = Header::decode(&bytes).unwrap();
        let mut at = HEADER_BYTES;
        for number in 0..header.blocks {
            let head = BlockHead::decode(&bytes[at..], number).unwrap();
            let (_, body) = check_block(&bytes[at..], head).unwrap();
            all.extend(rows::<ResultRow>("result row", head, body).map(Result::unwrap));
            at += head.total_bytes();
        }
    }
    all
}

#[test]
fn what_was_synced_survives_a_crash_and_is_in_the_next_file() {
    let disk = SimDisk::new();
    let (mut spool, _) = open(&disk);
    spool.keep(result(1, "kept")).unwrap();
    spool.sync().unwrap();
    spool.keep(result(2, "never acknowledged")).unwrap();
    disk.crash(3);
    let (mut spool, recovered) = open(&disk);
    assert!(recovered.results >= 1);
    spool.close_file(at(9)).unwrap();
    assert!(filed(&disk).contains(&result(1, "kept")));
}

#[test]
fn a_file_holds_the_newest_word_of_each_device() {
    let disk = SimDisk::new();
    let (mut spool, _) = open(&disk);
    spool.hint(hint(1, DeviceWord::Running));
    spool.hint(hint(1, DeviceWord::Received));
    spool.hint(hint(2, DeviceWord::Received));
    spool.keep(result(2, "done")).unwrap();
    spool.keep(result(2, "done")).unwrap();
    assert_eq!(spool.close_file(at(9)).unwrap(), 2);
    assert_eq!(filed(&disk), [hint(1, DeviceWord::Running), result(2, "done")]);
}

#[test]
fn a_differing_second_result_travels_as_well() {
    let disk = SimDisk::new();
    let (mut spool, _) = open(&disk);
    spool.keep(result(1, "interrupted")).unwrap();
    spool.keep(result(1, "succeeded")).unwrap();
    assert_eq!(spool.close_file(at(9)).unwrap(), 2);
}

#[test]
fn the_first_word_goes_at_once_and_later_ones_gather() {
    let disk = SimDisk::new();
    let (mut spool, _) = open(&disk);
    assert_eq!(spool.next_due_ms(), None);
    spool.keep(result(1, "one")).unwrap();
    assert_eq!(spool.next_due_ms(), Some(0));
    spool.close_file(at(500)).unwrap();
    assert_eq!(spool.next_due_ms(), None);
    spool.keep(result(2, "two")).unwrap();
    assert_eq!(spool.next_due_ms(), Some(1_500));
}

#[test]
fn a_wall_clock_that_is_set_back_holds_no_file_back() {
    let disk = SimDisk::new();
    let (mut spool, _) = open(&disk);
    spool.keep(result(1, "one")).unwrap();
    spool.close_file(Now { unix_ms: 9_000_000, boot_ms: 500, mono_ms: 500 }).unwrap();
    spool.keep(result(2, "two")).unwrap();
    assert_eq!(spool.next_due_ms(), Some(1_500));
}

/// Results of five devices in a log, changed by `damage` before the next life reads it.
fn damaged(damage: impl FnOnce(&mut Vec<u8>)) -> (SimDisk, Spool, Recovered) {
    let disk = SimDisk::new();
    let (mut spool, _) = open(&disk);
    (1..=5).for_each(|device| spool.keep(result(device, "acknowledged")).unwrap());
    spool.sync().unwrap();
    let path = spool.log.path.clone();
    drop(spool);
    let mut bytes = disk.read(&path).unwrap();
    damage(&mut bytes);
    disk.remove(&path).unwrap();
    disk.create_new(&path).unwrap().append(&bytes).unwrap();
    let (spool, recovered) = open(&disk);
    (disk, spool, recovered)
}

fn logs(disk: &SimDisk) -> Vec<String> {
    disk.list(Path::new("/spool/log")).unwrap().into_iter().map(|entry| entry.name).collect()
}

#[test]
fn a_bad_record_costs_none_of_those_behind_it_and_its_log_is_kept() {
    for at_fifth in 5..10 {
        let (disk, mut spool, recovered) = damaged(|bytes| {
            let place = bytes.len() * at_fifth / 25;
            bytes[place] ^= 0x55;
        });
        assert_eq!(recovered.results, 4);
        assert!(recovered.damaged_bytes > 0 && recovered.torn_bytes == 0, "{recovered:?}");
        spool.close_file(at(9)).unwrap();
        assert_eq!(filed(&disk).len(), 4);
        assert_eq!(logs(&disk).iter().filter(|name| name.ends_with(".log.bad")).count(), 1);
        assert_eq!(open(&disk).1, Recovered::default(), "it is not read again");
    }
}

#[test]
fn a_torn_end_is_no_damage_and_a_whole_record_that_is_wrong_is() {
    let (disk, mut spool, recovered) = damaged(|bytes| bytes.truncate(bytes.len() - 3));
    assert_eq!((recovered.results, recovered.damaged_bytes), (4, 0));
    assert!(recovered.torn_bytes > 0);
    spool.close_file(at(9)).unwrap();
    assert!(logs(&disk).iter().all(|name| !name.ends_with(".bad")));
    let (_, _, zeros) = damaged(|bytes| bytes.extend_from_slice(&[0; 200_000]));
    assert_eq!((zeros.results, zeros.torn_bytes, zeros.damaged_bytes), (5, 200_000, 0));
    let (_, _, wrong) = damaged(|bytes| *bytes.last_mut().unwrap() ^= 0x55);
    assert_eq!((wrong.results, wrong.torn_bytes), (4, 0));
    assert!(wrong.damaged_bytes > 0, "the last record may have been acknowledged");
}

#[test]
fn a_full_disk_loses_nothing_and_is_tried_again() {
    let disk = SimDisk::new();
    let (mut spool, _) = open(&disk);
    spool.keep(result(1, "before")).unwrap();
    disk.set_full(true);
    assert!(matches!(spool.keep(result(2, "during")), Err(SpoolError::Write { .. })));
    assert!(spool.close_file(at(1)).is_err());
    disk.set_full(false);
    spool.keep(result(2, "during")).unwrap();
    spool.sync().unwrap();
    disk.crash(1);
    let (mut spool, recovered) = open(&disk);
    assert_eq!(recovered, Recovered { results: 2, torn_bytes: 0, damaged_bytes: 0 });
    assert_eq!(spool.close_file(at(2)).unwrap(), 2);
}

#[test]
fn a_failed_fsync_is_final() {
    let disk = SimDisk::new();
    let (mut spool, _) = open(&disk);
    spool.keep(result(1, "lost?")).unwrap();
    disk.fail_next_sync();
    assert!(matches!(spool.sync(), Err(SpoolError::Sync { .. })));
    assert!(spool.sync().is_err(), "it is never tried again");
}

#[test]
fn a_failed_fsync_of_a_file_is_final_too() {
    let disk = SimDisk::new();
    let (mut spool, _) = open(&disk);
    spool.keep(result(1, "kept")).unwrap();
    spool.sync().unwrap();
    disk.set_full(true);
    assert!(matches!(spool.close_file(at(1)), Err(SpoolError::Write { .. })));
    disk.set_full(false);
    // The log after it may have to be made first, and its folder is synced as well.
    spool.next_log = Some(Log::create(&disk, Path::new("/spool/log"), 1).unwrap());
    disk.fail_next_sync();
    assert!(matches!(spool.close_file(at(2)), Err(SpoolError::Sync { .. })));
    assert!(filed(&disk).is_empty(), "what could not be synced has no name");
    disk.crash(4);
    let (mut spool, recovered) = open(&disk);
    assert_eq!(recovered.results, 1);
    spool.close_file(at(3)).unwrap();
    assert_eq!(filed(&disk), [result(1, "kept")]);
}

#[test]
fn a_counter_that_was_set_back_costs_no_earlier_log_its_results() {
    let disk = SimDisk::new();
    let (mut spool, _) = open(&disk);
    spool.keep(result(1, "kept")).unwrap();
    spool.sync().unwrap();
    drop(spool);
    disk.remove(Path::new("/spool/epoch")).unwrap();
    let (mut spool, recovered) = open(&disk);
    assert_eq!(recovered.results, 1);
    spool.keep(result(2, "of this life")).unwrap();
    spool.close_file(at(2)).unwrap();
    assert_eq!(filed(&disk), [result(1, "kept"), result(2, "of this life")]);
}

#[test]
fn a_file_that_cannot_be_written_for_long_gathers_no_empty_logs() {
    let disk = SimDisk::new();
    let (mut spool, _) = open(&disk);
    spool.keep(result(1, "before")).unwrap();
    let header = Header {
        kind: FileKind::Results,
        site: site(),
        server: ServerId(1),
        epoch: spool.outgoing.epoch(),
        sequence: 1,
        time: UnixMillis(0),
        rows: 0,
        blocks: 0,
    };
    // A folder in the way of the file, while logs can still be made.
    disk.create_dir_all(&Path::new("/spool/outgoing").join(header.file_name())).unwrap();
    for again in 0..10 {
        assert!(matches!(spool.close_file(at(again)), Err(SpoolError::Write { .. })));
    }
    assert_eq!(disk.list(Path::new("/spool/log")).unwrap().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn what_may_be_acknowledged_is_never_lost_whenever_it_crashes(
        steps in prop::collection::vec((0u32..6, 0u8..4), 1..40),
        crash_after in 1u64..120,
        seed in any::<u64>(),
    ) {
        let disk = SimDisk::new();
        let (mut spool, _) = open(&disk);
        disk.fail_after_ops(crash_after);
        let (mut kept, mut acknowledged) = (Vec::new(), Vec::new());
        for (number, (device, step)) in steps.into_iter().enumerate() {
            let alive = match step {
                0 | 1 => {
                    let row = result(device, &format!("word {number}"));
                    let taken = spool.keep(row.clone());
                    kept.extend(taken.is_ok().then_some(row));
                    taken.is_ok()
                }
                2 => spool.sync().is_ok_and(|()| { acknowledged.append(&mut kept); true }),
                _ => spool.close_file(at(number as u64)).is_ok_and(|_| { acknowledged.append(&mut kept); true }),
            };
            if !alive {
                break;
            }
        }
        drop(spool);
        disk.crash(seed);
        let (mut spool, _) = open(&disk);
        spool.close_file(at(1_000)).unwrap();
        let filed = filed(&disk);
        for row in acknowledged {
            prop_assert!(filed.contains(&row), "{row:?} was acknowledged and is gone");
        }
    }
}
