use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::check::check;
use crate::store::Store;
use bgb_protocol::head::SignedHead;
use bgb_protocol::signature::SigningKey;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn site() -> (tempfile::TempDir, PathBuf, Store) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("site.db");
    let store = Store::create(&path, "LAB".parse().unwrap(), NOW).unwrap();
    (folder, path, store)
}

fn head(store: &mut Store, now: UnixMillis) {
    store.write_head(now, |statement| SignedHead::sign(statement, &SigningKey::from_seed([1; 32]))).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_database_is_copied_whole_while_it_is_written() {
    let (folder, path, mut store) = site();
    head(&mut store, NOW);
    let generation = store.generation();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // One transaction: the name and the set of each collection agree in every copy.
                store.create_collection(&format!("c-{number}"), NOW).unwrap();
            }
        });
        for number in 0..5 {
            let to = folder.path().join(format!("copy-{number}"));
            let report = backup(&path, &to).unwrap();
            assert_eq!((report.site.as_str(), report.generation), ("LAB", generation));
            assert_eq!((report.head, report.bytes), (Some(NOW), std::fs::metadata(&to).unwrap().len()));
            assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o777, DATABASE_MODE);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let copies = names(folder.path()).into_iter().filter(|name| name.starts_with("copy"));
    assert_eq!(
        copies.collect::<Vec<_>>(),
        ["copy-0", "copy-1", "copy-2", "copy-3", "copy-4"],
        "each is one file"
    );
    let count = |number: u32| {
        let copy = folder.path().join(format!("copy-{number}"));
        assert_eq!(check(&copy).unwrap().findings, []);
        Store::open(&copy).unwrap().read().collections(None, 100_000).unwrap().len()
    };
    let counts: Vec<_> = (0..5).map(count).collect();
    assert!(counts.is_sorted(), "{counts:?}");
}

#[test]
fn what_is_in_the_log_only_is_copied_as_well() {
    let (folder, path, mut store) = site();
    store.create_collection("late", NOW).unwrap();
    assert!(std::fs::metadata(beside(&path, "-wal")).unwrap().len() > 0);
    let to = folder.path().join("copy");
    backup(&path, &to).unwrap();
    assert_eq!(Store::open(&to).unwrap().read().collections(None, 100_000).unwrap().len(), 1);
}

#[test]
fn nothing_is_overwritten_and_nothing_is_left_of_what_failed() {
    let (folder, path, store) = site();
    drop(store);
    let to = folder.path().join("copy");
    std::fs::write(&to, "precious").unwrap();
    assert!(matches!(backup(&path, &to), Err(SiteError::FileExists { .. })));
    assert_eq!(std::fs::read(&to).unwrap(), b"precious");
    let before = names(folder.path());
    assert!(matches!(backup(&folder.path().join("none"), &to), Err(SiteError::Missing { .. })));
    // Damaged where it shows only when all is read.
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let other = folder.path().join("other");
    assert!(matches!(backup(&path, &other), Err(SiteError::Corrupt(_))));
    assert_eq!(names(folder.path()), before);
}

#[test]
fn a_copy_has_its_name_only_when_it_is_whole() {
    let (folder, path, mut store) = site();
    for number in 0..200 {
        store.create_collection(&format!("c-{number}"), NOW).unwrap();
    }
    let (made, stop) = (|number: u32| folder.path().join(format!("copy-{number}")), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut shortest = u64::MAX;
            while !stop.load(Ordering::Relaxed) {
                let lengths = (0..20).filter_map(|number| std::fs::metadata(made(number)).ok());
                shortest = lengths.map(|copy| copy.len()).fold(shortest, u64::min);
            }
            shortest
        });
        let lengths = (0..20).map(|number| backup(&path, &made(number)).unwrap().bytes);
        let shortest = lengths.min().unwrap();
        stop.store(true, Ordering::Relaxed);
        assert!(looking.join().unwrap() >= shortest, "one was seen before it was whole");
    });
}

#[test]
fn what_a_killed_attempt_left_is_neither_used_nor_kept() {
    let (folder, path, store) = site();
    drop(store);
    let to = folder.path().join("copy");
    let before = names(folder.path());
    let leave = || {
        for side in ["", "-wal", "-shm", "-journal"] {
            std::fs::write(beside(&to, &format!(".unfinished{side}")), vec![0x55; 8192]).unwrap();
        }
    };
    leave();
    backup(&path, &to).unwrap();
    assert_eq!(check(&to).unwrap().findings, []);
    std::fs::remove_file(&to).unwrap();
    for side in ["-wal", "-shm"] {
        // The check has looked at it as at a database that is in use.
        let _ = std::fs::remove_file(beside(&to, side));
    }
    assert_eq!(names(folder.path()), before);

    leave();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(backup(&path, &to), Err(SiteError::Corrupt(_))));
    assert_eq!(names(folder.path()), before);
}

#[test]
fn a_copy_that_is_being_made_is_not_made_twice() {
    let (folder, path, store) = site();
    drop(store);
    let to = folder.path().join("copy");
    let other = Unfinished::claim(&to).unwrap();
    let before = names(folder.path());
    let error = backup(&path, &to).unwrap_err();
    assert!(matches!(error, SiteError::CopyIsMade { .. }), "{error}");
    assert_eq!(names(folder.path()), before, "what the other makes is left to it");
    drop(other);
    backup(&path, &to).unwrap();
}

#[test]
fn the_file_that_sqlite_locks_is_locked_by_nobody_else() {
    let (folder, path, store) = site();
    drop(store);
    let to = folder.path().join("copy");
    let unfinished = Unfinished::claim(&to).unwrap();
    File::open(folder.path().join("copy.unfinished")).unwrap().try_lock().unwrap();
    copy(&connection::open_to_copy(&path).unwrap(), &unfinished).unwrap();
}

#[test]
fn of_attempts_at_one_copy_never_two_work() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("copy");
    let (working, claims) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while claims.load(Ordering::SeqCst) < 2_000 {
                    let Ok(claimed) = Unfinished::claim(&to) else { continue };
                    assert_eq!(working.fetch_add(1, Ordering::SeqCst), 0);
                    claims.fetch_add(1, Ordering::SeqCst);
                    std::thread::yield_now();
                    assert_eq!(working.fetch_sub(1, Ordering::SeqCst), 1);
                    drop(claimed);
                }
            });
        }
    });
    assert_eq!(names(folder.path()), ["copy.unfinished"], "as after a kill, and no lock");
}

#[test]
fn a_file_of_somebody_elses_is_neither_used_nor_emptied() {
    let (folder, path, store) = site();
    drop(store);
    let (to, theirs) = (folder.path().join("copy"), folder.path().join("theirs"));
    let unfinished = beside(&to, ".unfinished");
    let put = || std::fs::write(&theirs, "precious").unwrap();
    // A second name of an earlier copy is what a kill leaves between the link and the end of the first name.
    put();
    std::fs::hard_link(&theirs, &unfinished).unwrap();
    backup(&path, &to).unwrap();
    assert_eq!(std::fs::read(&theirs).unwrap(), b"precious");
    std::fs::remove_file(&to).unwrap();
    std::os::unix::fs::symlink(&theirs, &unfinished).unwrap();
    backup(&path, &to).unwrap();
    assert_eq!(std::fs::read(&theirs).unwrap(), b"precious");
    assert_eq!(check(&to).unwrap().findings, []);
    assert!(!unfinished.is_symlink());
}

#[test]
fn an_attempt_whose_file_was_taken_away_names_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("copy");
    let unfinished = Unfinished::claim(&to).unwrap();
    // Where locks keep nobody out.
    std::fs::remove_file(&unfinished.path).unwrap();
    std::fs::write(&unfinished.path, "half of theirs").unwrap();
    assert!(matches!(unfinished.give_name(&to), Err(SiteError::CopyIsMade { .. })));
    unfinished.remove(&to);
    assert_eq!(std::fs::read(&unfinished.path).unwrap(), b"half of theirs");
    assert!(!to.exists());
}

#[test]
fn a_name_that_is_given_by_a_link_is_never_that_of_an_empty_file() {
    let folder = tempfile::tempdir().unwrap();
    let (to, stop) = (folder.path().join("copy"), AtomicBool::new(false));
    let unfinished = folder.path().join("copy.unfinished");
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut found = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                found.extend(std::fs::read(&to).ok().filter(|bytes| bytes != b"whole"));
            }
            found
        });
        for _ in 0..500 {
            std::fs::write(&unfinished, "whole").unwrap();
            give_name_by_link(&unfinished, &to).unwrap();
            assert!(!unfinished.exists());
            std::fs::remove_file(&to).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(looking.join().unwrap(), [[0; 0]; 0]);
    });
    // Its own link, of which the file system did not say that it was made.
    std::fs::write(&unfinished, "whole").unwrap();
    std::fs::hard_link(&unfinished, &to).unwrap();
    give_name_by_link(&unfinished, &to).unwrap();
    assert_eq!(names(folder.path()), ["copy"]);
}

#[test]
fn only_where_there_are_no_links_are_two_steps_needed() {
    let refused = |errno: Errno| has_no_links(&errno.into());
    assert!([Errno::PERM, Errno::NOSYS, Errno::OPNOTSUPP].into_iter().all(refused));
    assert!(
        ![Errno::EXIST, Errno::NOENT, Errno::ACCESS, Errno::NOSPC, Errno::ROFS, Errno::IO]
            .into_iter()
            .any(refused)
    );
}

#[test]
fn no_name_is_taken_from_anybody_also_where_the_file_system_needs_two_steps() {
    let (folder, _path, _store) = site();
    let file = |name: &str| folder.path().join(name);
    let put = |name: &str, text: &str| std::fs::write(file(name), text).unwrap();
    let text = |name: &str| std::fs::read_to_string(file(name)).unwrap();
    for give in [give_name, give_name_by_link, give_name_in_two_steps] {
        put("new", "new");
        put("theirs", "theirs");
        assert!(matches!(give(&file("new"), &file("theirs")), Err(SiteError::FileExists { .. })));
        assert_eq!((text("new"), text("theirs")), ("new".to_owned(), "theirs".to_owned()));
        give(&file("new"), &file("copy")).unwrap();
        assert_eq!(text("copy"), "new");
        std::fs::remove_file(file("copy")).unwrap();
        assert!(give(&file("new"), &file("copy")).is_err(), "there is nothing to be named");
        assert!(!file("copy").exists());
    }
}
