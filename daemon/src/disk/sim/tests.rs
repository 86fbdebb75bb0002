//! The laws of the simulated disk, over many crash seeds.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::disk::replace_durably;

/// Enough that each of a crash's choices is met: the rarest is one in 16.
const SEEDS: u64 = 256;

fn with_file(bytes: &[u8]) -> (SimDisk, Box<dyn AppendFile>) {
    let disk = SimDisk::new();
    let mut file = disk.create_new(Path::new("file")).unwrap();
    file.append(bytes).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    (disk, file)
}

/// What a crash leaves of `file`, for every seed.
fn after_crashes(prepare: impl Fn() -> SimDisk) -> Vec<Option<Vec<u8>>> {
    (0..SEEDS)
        .map(|seed| {
            let disk = prepare();
            disk.crash(seed);
            disk.read(Path::new("file")).ok()
        })
        .collect()
}

#[test]
fn a_copy_has_what_could_be_read_and_goes_its_own_way() {
    let (disk, mut file) = with_file(b"synced");
    file.append(b", and not").unwrap();
    let copy = disk.image();
    file.append(b" copied").unwrap();
    for seed in 0..SEEDS {
        copy.crash(seed);
    }
    assert_eq!(copy.read(Path::new("file")).unwrap(), b"synced, and not");
    copy.remove(Path::new("file")).unwrap();
    assert_eq!(disk.read(Path::new("file")).unwrap(), b"synced, and not copied");
}

#[test]
fn what_was_synced_survives_every_crash() {
    let left = after_crashes(|| with_file(b"synced").0);
    assert!(left.iter().all(|bytes| bytes.as_deref() == Some(b"synced")));
}

#[test]
fn what_was_not_synced_is_kept_lost_or_torn_at_any_byte_behind_what_was() {
    let left = after_crashes(|| {
        let (disk, mut file) = with_file(b"synced");
        file.append(b"abcdef").unwrap();
        disk
    });
    let mut lengths = BTreeSet::new();
    let mut zeros = 0;
    for bytes in left {
        let bytes = bytes.unwrap();
        let tail = bytes.strip_prefix(b"synced").expect("the synced bytes stay");
        for (index, byte) in tail.iter().enumerate() {
            assert!(*byte == b"abcdef"[index] || *byte == 0);
        }
        zeros += usize::from(tail.contains(&0));
        lengths.insert(tail.len());
    }
    assert_eq!(lengths, (0..=6).collect(), "every length was met");
    assert!(zeros > 0, "and an end of zeros");
}

#[test]
fn a_file_whose_folder_was_not_synced_may_be_gone_although_its_bytes_were() {
    let left = after_crashes(|| {
        let disk = SimDisk::new();
        let mut file = disk.create_new(Path::new("file")).unwrap();
        file.append(b"synced").unwrap();
        file.sync().unwrap();
        disk
    });
    assert!(left.iter().any(Option::is_none));
    assert!(left.iter().flatten().all(|bytes| bytes == b"synced"));
    assert!(left.iter().any(Option::is_some));
}

#[test]
fn a_rename_without_sync_of_its_folder_is_kept_or_undone_but_never_half() {
    let (mut kept, mut undone) = (0, 0);
    for seed in 0..SEEDS {
        let (disk, _file) = with_file(b"new");
        replace_durably(&disk, Path::new("target"), b"old").unwrap();
        disk.rename(Path::new("file"), Path::new("target")).unwrap();
        disk.crash(seed);
        let target = disk.read(Path::new("target")).unwrap();
        match (disk.read(Path::new("file")).is_ok(), target.as_slice()) {
            (false, b"new") => kept += 1,
            (true, b"old") => undone += 1,
            half => panic!("seed {seed}: {half:?}"),
        }
    }
    assert!(kept > 0 && undone > 0, "{kept} kept, {undone} undone");
}

#[test]
fn a_rename_between_folders_is_durable_only_when_both_are_synced() {
    let (from, to) = (Path::new("spool/f"), Path::new("inbox/f"));
    let run = |synced: &[&str], seed| {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("spool")).unwrap();
        disk.create_dir_all(Path::new("inbox")).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        replace_durably(&disk, from, b"rows").unwrap();
        disk.rename(from, to).unwrap();
        for dir in synced {
            disk.sync_dir(Path::new(dir)).unwrap();
        }
        disk.crash(seed);
        let (old, new) = (disk.read(from).is_ok(), disk.read(to).is_ok());
        assert_ne!(old, new, "seed {seed}: in one folder or the other");
        new
    };
    assert!((0..SEEDS).all(|seed| run(&["spool", "inbox"], seed)));
    for one in [&["spool"][..], &["inbox"], &[]] {
        assert!((0..SEEDS).any(|seed| !run(one, seed)), "{one:?} is not enough");
    }
}

#[test]
fn a_removal_that_was_not_synced_may_be_undone_and_one_that_was_is_not() {
    let remove = |is_synced: bool| {
        after_crashes(|| {
            let (disk, _file) = with_file(b"rows");
            disk.remove(Path::new("file")).unwrap();
            if is_synced {
                disk.sync_dir(Path::new("")).unwrap();
            }
            disk
        })
    };
    assert!(remove(true).iter().all(Option::is_none));
    let left = remove(false);
    assert!(left.iter().any(Option::is_none));
    assert!(left.iter().flatten().all(|bytes| bytes == b"rows"));
    assert!(left.iter().any(Option::is_some));
}

#[test]
fn a_folder_that_was_not_synced_into_its_own_takes_its_files_along() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("inbox/server")).unwrap();
        disk.sync_dir(Path::new("inbox")).unwrap();
        replace_durably(&disk, Path::new("inbox/server/f"), b"rows").unwrap();
        disk.crash(seed);
        match disk.list(Path::new("inbox/server")) {
            Ok(entries) => assert_eq!(entries.len(), 1),
            Err(_) => {
                lost += 1;
                assert!(disk.read(Path::new("inbox/server/f")).is_err());
            }
        }
    }
    assert!(lost > 0);
}

#[test]
fn a_later_change_that_is_durable_takes_the_earlier_ones_of_its_name_along() {
    for seed in 0..SEEDS {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("a")).unwrap();
        disk.create_dir_all(Path::new("b")).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        replace_durably(&disk, Path::new("a/f"), b"rows").unwrap();
        disk.rename(Path::new("a/f"), Path::new("b/f")).unwrap();
        disk.rename(Path::new("b/f"), Path::new("b/g")).unwrap();
        disk.sync_dir(Path::new("b")).unwrap();
        disk.crash(seed);
        assert_eq!(disk.read(Path::new("b/g")).unwrap(), b"rows", "seed {seed}");
        assert!(disk.read(Path::new("a/f")).is_err() && disk.read(Path::new("b/f")).is_err());
    }
}

#[test]
fn a_truncation_may_be_undone_until_it_is_synced() {
    let truncated = |is_synced: bool| {
        after_crashes(|| {
            let (disk, mut file) = with_file(b"good torn");
            file.truncate(4).unwrap();
            if is_synced {
                file.sync().unwrap();
            }
            disk
        })
    };
    assert!(truncated(true).iter().all(|bytes| bytes.as_deref() == Some(b"good")));
    let left = truncated(false);
    assert!(left.iter().any(|bytes| bytes.as_deref() == Some(b"good")));
    assert!(left.iter().any(|bytes| bytes.as_deref() == Some(b"good torn")));
    assert!(left.iter().flatten().all(|bytes| bytes == b"good" || bytes == b"good torn"));
}

#[test]
fn after_a_sync_that_failed_no_later_sync_saves_its_bytes() {
    for seed in 0..SEEDS {
        let (disk, mut file) = with_file(b"synced");
        file.append(b"dropped").unwrap();
        disk.fail_next_sync();
        assert!(file.sync().is_err());
        assert!(file.sync().is_err(), "the handle refuses");
        assert!(file.append(b"more").is_err());
        assert_eq!(disk.read(Path::new("file")).unwrap(), b"synceddropped", "it looks written");

        let mut again = disk.open_append(Path::new("file")).unwrap();
        again.append(b"later").unwrap();
        again.sync().expect("the kernel calls the next one a success");
        disk.crash(seed);
        assert_eq!(disk.read(Path::new("file")).unwrap(), b"synced\0\0\0\0\0\0\0later");
    }
    let (disk, mut file) = with_file(b"");
    disk.fail_next_sync();
    assert!(file.sync().is_err());
    assert_eq!(disk.faults().syncs_failed, 1);
}

#[test]
fn a_folders_sync_fails_when_ordered_and_promises_nothing() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..SEEDS {
        let disk = SimDisk::new();
        disk.create_new(Path::new("file")).unwrap();
        disk.fail_next_sync();
        assert!(disk.sync_dir(Path::new("")).is_err());
        disk.crash(seed);
        if disk.read(Path::new("file")).is_ok() { kept += 1 } else { lost += 1 }
    }
    assert!(kept > 0 && lost > 0);
}

#[test]
fn a_full_disk_takes_half_of_an_append_and_begins_nothing() {
    let (disk, mut file) = with_file(b"");
    disk.set_full(true);
    assert_eq!(file.append(b"123456").unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.read(Path::new("file")).unwrap(), b"123");
    assert!(disk.create_new(Path::new("other")).is_err());
    assert!(disk.create_dir_all(Path::new("folder")).is_err());
    assert_eq!(disk.free_bytes(Path::new("")).unwrap(), 0);
    file.truncate(0).expect("what takes no space goes on");
    file.sync().unwrap();
    disk.set_full(false);
    file.append(b"123456").unwrap();
    assert_eq!(disk.faults().full, 3);
}

#[test]
fn after_so_many_operations_all_that_change_the_disk_fail_until_the_crash() {
    let (disk, mut file) = with_file(b"");
    let before = disk.ops();
    disk.fail_after_ops(2);
    file.append(b"1").unwrap();
    file.sync().unwrap();
    assert!(file.append(b"2").is_err());
    assert!(file.sync().is_err());
    assert!(disk.sync_dir(Path::new("")).is_err());
    assert!(disk.remove(Path::new("file")).is_err());
    assert_eq!((disk.ops() - before, disk.faults().ops_failed), (6, 4));
    disk.crash(7);
    assert_eq!(disk.read(Path::new("file")).unwrap(), b"1");
    disk.remove(Path::new("file")).unwrap();
}

#[test]
fn handles_from_before_a_crash_are_dead() {
    let (disk, mut file) = with_file(b"rows");
    let reader = disk.open_read(Path::new("file")).unwrap();
    disk.crash(1);
    assert!(file.append(b"1").is_err() && file.sync().is_err() && file.truncate(0).is_err());
    assert!(file.len().is_err() && reader.len().is_err() && reader.read_exact_at(&mut [0], 0).is_err());
    assert_eq!(disk.read(Path::new("file")).unwrap(), b"rows");
    assert_eq!(disk.faults().crashes, 1);
}

#[test]
fn a_clone_is_the_same_disk_and_a_path_with_a_dot_the_same_file() {
    let (disk, _file) = with_file(b"rows");
    assert_eq!(disk.clone().read(Path::new("./file")).unwrap(), b"rows");
    assert_eq!(disk.list(Path::new(".")).unwrap().len(), 1);
}

/// What a random history does.
#[derive(Clone, Debug)]
enum Step {
    Append(u8, Vec<u8>),
    Sync(u8),
    Rename(u8, u8),
    Remove(u8),
    SyncDir,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0u8..3;
    prop_oneof![
        (name.clone(), proptest::collection::vec(1u8..=255, 1..20))
            .prop_map(|(name, bytes)| Step::Append(name, bytes)),
        name.clone().prop_map(Step::Sync),
        (name.clone(), name.clone()).prop_map(|(from, to)| Step::Rename(from, to)),
        name.prop_map(Step::Remove),
        Just(Step::SyncDir),
    ]
}

fn run(disk: &SimDisk, step: &Step) {
    let path = |name: &u8| PathBuf::from(format!("f{name}"));
    // Renaming or removing what is not there fails, which is a part of the history too.
    match step {
        Step::Append(name, bytes) => disk.open_append(&path(name)).unwrap().append(bytes).unwrap(),
        Step::Sync(name) => drop(disk.open_append(&path(name)).unwrap().sync()),
        Step::Rename(from, to) => drop(disk.rename(&path(from), &path(to))),
        Step::Remove(name) => drop(disk.remove(&path(name))),
        Step::SyncDir => disk.sync_dir(Path::new("")).unwrap(),
    }
}

fn contents(disk: &SimDisk) -> Vec<(String, Vec<u8>)> {
    let entries = disk.list(Path::new("")).unwrap();
    entries
        .into_iter()
        .map(|entry| (entry.name.clone(), disk.read(Path::new(&entry.name)).unwrap()))
        .collect()
}

proptest! {
    #[test]
    fn the_same_history_and_seed_give_the_same_disk(steps in proptest::collection::vec(step(), 0..40), seed: u64) {
        let (left, right) = (SimDisk::new(), SimDisk::new());
        for disk in [&left, &right] {
            steps.iter().for_each(|step| run(disk, step));
            disk.crash(seed);
        }
        prop_assert_eq!(contents(&left), contents(&right));
        prop_assert_eq!(left.faults(), right.faults());
    }

    #[test]
    fn a_disk_on_which_all_was_synced_loses_nothing(steps in proptest::collection::vec(step(), 0..40), seed: u64) {
        let disk = SimDisk::new();
        steps.iter().for_each(|step| run(&disk, step));
        (0..3).for_each(|name| run(&disk, &Step::Sync(name)));
        run(&disk, &Step::SyncDir);
        let before = contents(&disk);
        disk.crash(seed);
        prop_assert_eq!(contents(&disk), before);
    }

    #[test]
    fn after_a_crash_the_disk_has_nothing_left_to_lose(
        steps in proptest::collection::vec(step(), 0..40), seed: u64, later: u64,
    ) {
        let disk = SimDisk::new();
        steps.iter().for_each(|step| run(&disk, step));
        disk.crash(seed);
        let before = contents(&disk);
        disk.crash(later);
        prop_assert_eq!(contents(&disk), before);
    }
}
