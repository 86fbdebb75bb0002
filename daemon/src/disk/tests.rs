//! What both disks have in common, and replacing a file durably.

use super::*;

/// Runs a check on both disks, each with a folder that exists durably.
fn on_both(check: impl Fn(&dyn Disk, &Path)) {
    let folder = tempfile::tempdir().unwrap();
    check(&RealDisk, folder.path());

    let sim = SimDisk::new();
    sim.create_dir_all(Path::new("/data")).unwrap();
    sim.sync_dir(Path::new("/")).unwrap();
    check(&sim, Path::new("/data"));
}

fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
    match result {
        Ok(_) => panic!("this should have failed"),
        Err(error) => error.kind(),
    }
}

fn write(disk: &dyn Disk, path: &Path, bytes: &[u8]) {
    let mut file = disk.create_new(path).unwrap();
    file.append(bytes).unwrap();
    file.sync().unwrap();
}

#[test]
fn what_is_appended_is_read_whole_and_at_offsets() {
    on_both(|disk, dir| {
        let path = dir.join("spool.log");
        let mut file = disk.open_append(&path).unwrap();
        assert!(file.is_empty().unwrap());
        file.append(b"first ").unwrap();
        file.append(b"second").unwrap();
        file.sync().unwrap();
        assert_eq!(file.len().unwrap(), 12);
        drop(file);

        let mut again = disk.open_append(&path).unwrap();
        again.append(b" third").unwrap();
        assert_eq!(disk.read(&path).unwrap(), b"first second third");

        let reader = disk.open_read(&path).unwrap();
        let mut word = [0; 6];
        reader.read_exact_at(&mut word, 6).unwrap();
        assert_eq!((&word, reader.len().unwrap(), reader.is_empty().unwrap()), (b"second", 18, false));
        assert_eq!(kind(reader.read_exact_at(&mut word, 13)), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(reader.read_exact_at(&mut word, u64::MAX)), io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn a_file_is_cut_and_grows_on_from_there_but_is_never_lengthened() {
    on_both(|disk, dir| {
        let path = dir.join("spool.log");
        let mut file = disk.open_append(&path).unwrap();
        file.append(b"keep and torn").unwrap();
        file.truncate(4).unwrap();
        file.append(b"!").unwrap();
        assert_eq!(kind(file.truncate(6)), io::ErrorKind::InvalidInput);
        assert_eq!(disk.read(&path).unwrap(), b"keep!");
    });
}

#[test]
fn the_usual_mistakes_have_their_kind_and_name_their_path() {
    on_both(|disk, dir| {
        let missing = dir.join("missing");
        assert_eq!(kind(disk.read(&missing)), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.open_read(&missing)), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.remove(&missing)), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.rename(&missing, &dir.join("other"))), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.list(&missing)), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.sync_dir(&missing)), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.free_bytes(&missing)), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.open_append(&missing.join("file"))), io::ErrorKind::NotFound);
        write(disk, &dir.join("there"), b"");
        assert_eq!(kind(disk.create_new(&dir.join("there"))), io::ErrorKind::AlreadyExists);
        assert_eq!(kind(disk.create_dir_all(&dir.join("there"))), io::ErrorKind::AlreadyExists);
        assert_eq!(kind(disk.read(dir)), io::ErrorKind::IsADirectory);
        let text = disk.read(&missing).unwrap_err().to_string();
        assert!(text.contains(&missing.display().to_string()), "{text}");
    });
}

#[test]
fn a_rename_replaces_and_open_files_stay_with_what_they_opened() {
    on_both(|disk, dir| {
        let (old, new) = (dir.join("old"), dir.join("new"));
        write(disk, &old, b"old");
        write(disk, &new, b"new");
        let reader = disk.open_read(&old).unwrap();
        let mut writer = disk.open_append(&new).unwrap();
        disk.rename(&new, &old).unwrap();
        writer.append(b"er").unwrap();
        assert_eq!(disk.read(&old).unwrap(), b"newer");
        assert_eq!(kind(disk.read(&new)), io::ErrorKind::NotFound);
        let mut bytes = [0; 3];
        reader.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"old");
    });
}

#[test]
fn a_folder_is_listed_by_name_with_lengths_and_without_what_lies_deeper() {
    on_both(|disk, dir| {
        disk.create_dir_all(&dir.join("b/deeper")).unwrap();
        disk.create_dir_all(&dir.join("b/deeper")).unwrap();
        write(disk, &dir.join("c.bts"), b"123");
        write(disk, &dir.join("a.bts"), b"");
        write(disk, &dir.join("b/inside"), b"1");
        let names: Vec<_> =
            disk.list(dir).unwrap().into_iter().map(|entry| (entry.name, entry.len, entry.is_dir)).collect();
        assert_eq!(
            names,
            [("a.bts".to_owned(), 0, false), ("b".to_owned(), 0, true), ("c.bts".to_owned(), 3, false)]
        );
        disk.remove(&dir.join("c.bts")).unwrap();
        assert_eq!(disk.list(dir).unwrap().len(), 2);
        assert!(disk.free_bytes(dir).unwrap() > 0);
    });
}

#[test]
fn names_that_are_not_text_are_left_out_of_a_list() {
    use std::os::unix::ffi::OsStrExt as _;
    let folder = tempfile::tempdir().unwrap();
    write(&RealDisk, &folder.path().join("fine"), b"");
    write(&RealDisk, &folder.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), b"");
    let names: Vec<_> = RealDisk.list(folder.path()).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["fine"]);
}

#[test]
fn a_real_file_is_for_its_owner_and_group_at_most() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.log");
    write(&RealDisk, &path, b"");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o037, 0);
}

#[test]
fn replacing_durably_replaces_creates_and_clears_up_what_a_crash_left() {
    on_both(|disk, dir| {
        let path = dir.join("state");
        write(disk, &dir.join(".state.tmp"), b"left over");
        replace_durably(disk, &path, b"one").unwrap();
        replace_durably(disk, &path, b"two").unwrap();
        assert_eq!(disk.read(&path).unwrap(), b"two");
        assert_eq!(disk.list(dir).unwrap().len(), 1);
        assert_eq!(kind(replace_durably(disk, Path::new("/"), b"")), io::ErrorKind::InvalidInput);
    });
}

#[test]
fn a_replacement_that_dies_at_any_step_leaves_the_old_bytes_or_the_new_ones() {
    let (mut old, mut new) = (0, 0);
    for steps in 0..8 {
        for seed in 0..64 {
            let disk = SimDisk::new();
            let path = Path::new("state");
            replace_durably(&disk, path, b"the old state").unwrap();
            disk.fail_after_ops(steps);
            let result = replace_durably(&disk, path, b"the new state, which is longer");
            disk.crash(seed);
            match disk.read(path).unwrap().as_slice() {
                b"the old state" => {
                    assert!(result.is_err(), "after {steps} steps, seed {seed}: said to be done and lost");
                    old += 1;
                }
                b"the new state, which is longer" => new += 1,
                torn => panic!("after {steps} steps, seed {seed}: {torn:?}"),
            }
            replace_durably(&disk, path, b"after").unwrap();
            assert_eq!(disk.read(path).unwrap(), b"after");
        }
    }
    assert!(old > 0 && new > 0, "both were seen: {old} old, {new} new");
}

/// The first process is killed, or the power is cut, at any step; the next one comes as far as it comes, and then the power is cut.
#[test]
fn two_replacements_that_die_one_after_the_other_leave_the_whole_of_one_of_them() {
    let path = Path::new("state");
    let whole: [&[u8]; 3] = [b"the old state", b"the first new state, longer than both", b"the second"];
    let mut seen = [0; 3];
    for (first, second, is_power_cut) in (0..8)
        .flat_map(|first| (0..9).flat_map(move |second| [(first, second, true), (first, second, false)]))
    {
        for seed in 0..32 {
            let disk = SimDisk::new();
            replace_durably(&disk, path, whole[0]).unwrap();
            disk.fail_after_ops(first);
            let _ = replace_durably(&disk, path, whole[1]);
            if is_power_cut {
                disk.crash(seed);
            } else {
                disk.kill();
            }
            disk.fail_after_ops(second);
            let told = replace_durably(&disk, path, whole[2]);
            disk.crash(seed + 1);
            let found = disk.read(path).unwrap();
            let Some(which) = whole.iter().position(|whole| *whole == found) else {
                panic!("steps {first} and {second}, power cut {is_power_cut}, seed {seed}: {found:?}");
            };
            assert!(told.is_err() || which == 2, "said to be done and lost");
            seen[which] += 1;
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[test]
fn a_replacement_whose_sync_fails_or_that_does_not_fit_leaves_the_old_bytes() {
    let disk = SimDisk::new();
    let path = Path::new("state");
    replace_durably(&disk, path, b"old").unwrap();
    disk.fail_next_sync();
    assert!(replace_durably(&disk, path, b"new").is_err());
    disk.set_full(true);
    assert_eq!(kind(replace_durably(&disk, path, b"new")), io::ErrorKind::StorageFull);
    disk.set_full(false);
    assert_eq!(disk.read(path).unwrap(), b"old");
    disk.crash(1);
    assert_eq!(disk.read(path).unwrap(), b"old");
}

#[test]
fn a_folder_that_was_created_durably_is_there_after_any_crash() {
    for seed in 0..50 {
        let disk = SimDisk::new();
        create_dir_durably(&disk, Path::new("/var/spool/bgb")).unwrap();
        disk.crash(seed);
        assert!(disk.list(Path::new("/var/spool/bgb")).unwrap().is_empty(), "seed {seed}");
        create_dir_durably(&disk, Path::new("/var/spool/bgb")).unwrap();
    }
}

#[test]
fn a_pipe_in_a_files_place_is_refused_and_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_eq!(kind(RealDisk.open_read(&path)), io::ErrorKind::InvalidInput);
    assert_eq!(kind(RealDisk.open_read(folder.path())), io::ErrorKind::InvalidInput);
    // Nobody reads from it, which would hold a writer up for ever.
    assert!(RealDisk.open_append(&path).is_err());
    let (target, link) = (folder.path().join("target"), folder.path().join(".state.tmp"));
    std::fs::write(&target, "somebody's").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert!(replace_durably(&RealDisk, &folder.path().join("state"), b"new").is_err());
    assert_eq!(std::fs::read(&target).unwrap(), b"somebody's", "a link is not followed");
}

#[test]
fn a_replacement_says_whether_it_was_a_write_or_a_sync_that_failed() {
    let disk = SimDisk::new();
    let path = Path::new("state");
    disk.set_full(true);
    assert!(matches!(try_replace(&disk, path, b"new"), Err(ReplaceError::Write(_))));
    disk.set_full(false);
    replace_durably(&disk, path, b"old").unwrap();
    disk.fail_next_sync();
    assert!(matches!(try_replace(&disk, path, b"new"), Err(ReplaceError::Sync(_))));
    assert_eq!(disk.read(path).unwrap(), b"old");
    assert!(disk.read(Path::new(".state.tmp")).unwrap().is_empty(), "a full disk has its room again");
    // Whoever may try again after a temporary file's sync that failed has written all of it anew.
    replace_durably(&disk, path, b"newer").unwrap();
    disk.crash(1);
    assert_eq!(disk.read(path).unwrap(), b"newer");
}
