use bgb_daemon::disk::SimDisk;
use bgb_protocol::file::Epoch;

use super::*;
use crate::test_site::{TestDisk, files_below};

fn header(kind: FileKind, sequence: u64) -> Header {
    Header {
        kind,
        site: "LAB".parse().unwrap(),
        server: ServerId(1),
        epoch: Epoch { counter: 3, nonce: 4 },
        sequence,
        time: UnixMillis(0),
        rows: 0,
        blocks: 0,
    }
}

fn put(disk: &SimDisk, path: &str, bytes: &[u8]) {
    let path = Path::new(path);
    disk.create_dir_all(path.parent().unwrap()).unwrap();
    disk.create_new(path).unwrap().append(bytes).unwrap();
}

fn names(disk: &SimDisk, folder: &str) -> Vec<String> {
    disk.list(Path::new(folder)).unwrap().into_iter().map(|entry| entry.name).collect()
}

fn inbox(disk: &SimDisk) -> Inbox {
    Inbox::open(Arc::new(disk.clone()), PathBuf::from("box")).unwrap()
}

/// A whole sweep.
fn sweep(inbox: &mut Inbox, now: UnixMillis) {
    while inbox.sweep(now).unwrap() {}
}

fn waiting(name: &str) -> Waiting {
    Waiting { server: ServerId(1), name: name.to_owned(), bytes: 0 }
}

#[test]
fn files_come_in_the_order_of_their_names_and_servers_take_turns() {
    let disk = SimDisk::new();
    for path in [
        "box/2/b",
        "box/2/a",
        "box/1/z",
        "box/1/y",
        "box/1/.tmp-x",
        "box/strange/q",
        "box/01/q",
        "box/done/q",
    ] {
        put(&disk, path, b"1234");
    }
    let mut inbox = inbox(&disk);
    inbox.scan(0).unwrap();
    assert_eq!(inbox.backlog(), (4, 16));
    let order: Vec<_> =
        std::iter::from_fn(|| inbox.take_next()).map(|file| (file.server.0, file.name)).collect();
    let expected = [(1, "y"), (2, "a"), (1, "z"), (2, "b")];
    assert_eq!(order, expected.map(|(server, name)| (server, name.to_owned())));
    assert!(inbox.is_empty());
}

#[test]
fn nothing_in_bad_is_ever_overwritten() {
    let disk = SimDisk::new();
    let mut inbox = inbox(&disk);
    for content in [b"first", b"other", b"third"] {
        put(&disk, "box/1/a.BTS", content);
        inbox.set_aside(&waiting("a.BTS")).unwrap();
    }
    assert_eq!(names(&disk, "box/bad"), ["1-a-2.BTS", "1-a-3.BTS", "1-a.BTS"]);
    assert_eq!(disk.read(Path::new("box/bad/1-a.BTS")).unwrap(), b"first");
    assert_eq!(inbox.set_aside_count(), 3);
}

#[test]
fn rows_that_were_cut_out_before_a_crash_are_not_kept_twice() {
    let disk = SimDisk::new();
    let mut inbox = inbox(&disk);
    let first = inbox.set_aside_part(&waiting("a.BTS"), "-rows", b"rows").unwrap();
    let again = inbox.set_aside_part(&waiting("a.BTS"), "-rows", b"rows").unwrap();
    let other = inbox.set_aside_part(&waiting("a.BTS"), "-rows", b"others").unwrap();
    assert_eq!(
        (first.as_str(), again.as_str(), other.as_str()),
        ("1-a-rows.BTS", "1-a-rows.BTS", "1-a-rows-2.BTS")
    );
    assert_eq!(names(&disk, "box/bad").len(), 2);
}

#[test]
fn a_strange_name_becomes_a_plain_one_when_it_is_set_aside() {
    let disk = SimDisk::new();
    let mut inbox = inbox(&disk);
    let name = format!("a b\n{}", "ü".repeat(120));
    put(&disk, &format!("box/1/{name}"), b"");
    let aside = inbox.set_aside(&waiting(&name)).unwrap();
    assert!(aside.starts_with("1-a_b__") && aside.len() < 200 && aside.is_ascii(), "{aside}");
}

#[test]
fn done_keeps_results_for_48_hours_and_the_last_two_full_lists_of_each_server() {
    let disk = SimDisk::new();
    let mut inbox = inbox(&disk);
    for sequence in 1..=4 {
        put(&disk, "box/1/full.BOS", b"");
        inbox
            .keep(UnixMillis(sequence), &waiting("full.BOS"), &header(FileKind::PresenceFull, sequence))
            .unwrap();
    }
    put(&disk, "box/2/full.BOS", b"");
    let of_two = Waiting { server: ServerId(2), name: "full.BOS".to_owned(), bytes: 0 };
    inbox.keep(UnixMillis(9), &of_two, &header(FileKind::PresenceFull, 1)).unwrap();
    let done = || files_below(&disk, Path::new("box/done"));
    assert_eq!(done().len(), 3);

    put(&disk, "box/1/a.BTS", b"");
    inbox.keep(UnixMillis(10), &waiting("a.BTS"), &header(FileKind::Results, 1)).unwrap();
    sweep(&mut inbox, UnixMillis(10 + DONE_KEPT_MS - 1));
    assert_eq!(done().len(), 4);
    sweep(&mut inbox, UnixMillis(10 + DONE_KEPT_MS));
    assert_eq!(done().len(), 3);
    assert!(done().iter().all(|name| name.ends_with(".BOS")));
}

#[test]
fn no_folder_that_grows_is_listed_but_by_a_sweep_and_then_one_a_step() {
    let test_disk = TestDisk::default();
    let disk = test_disk.disk.clone();
    let mut inbox = Inbox::open(Arc::new(test_disk.clone()), PathBuf::from("box")).unwrap();
    test_disk.listed.lock().clear();
    for hour in 0..30 {
        let now = UnixMillis(hour * HOUR_MS);
        put(&disk, "box/1/a.BTS", b"");
        inbox.keep(now, &waiting("a.BTS"), &header(FileKind::Results, hour)).unwrap();
        put(&disk, "box/1/b.BTS", b"");
        inbox.set_aside(&waiting("b.BTS")).unwrap();
        put(&disk, "box/1/full.BOS", b"");
        inbox.keep(now, &waiting("full.BOS"), &header(FileKind::PresenceFull, hour)).unwrap();
        inbox.scan(hour).unwrap();
        let listed = std::mem::take(&mut *test_disk.listed.lock());
        let small = ["box/done/1", "box", "box/1"].map(PathBuf::from);
        assert!(listed.iter().all(|folder| small.contains(folder)), "{listed:?}");
    }
    loop {
        let more = inbox.sweep(UnixMillis(200 * HOUR_MS)).unwrap();
        assert!(std::mem::take(&mut *test_disk.listed.lock()).len() <= 1);
        if !more {
            break;
        }
    }
    assert_eq!(files_below(&disk, Path::new("box/done")).len(), FULL_LISTS_KEPT);
}

#[test]
fn the_count_of_what_is_set_aside_follows_what_somebody_took_away() {
    let disk = SimDisk::new();
    let mut inbox = inbox(&disk);
    put(&disk, "box/1/a.BTS", b"");
    let aside = inbox.set_aside(&waiting("a.BTS")).unwrap();
    disk.remove(&Path::new("box/bad").join(aside)).unwrap();
    sweep(&mut inbox, UnixMillis(1));
    assert_eq!(inbox.set_aside_count(), 0);
}

#[test]
fn a_folder_that_cannot_be_read_is_told_once_and_holds_up_no_other() {
    let test_disk = TestDisk::default();
    put(&test_disk.disk, "box/1/a", b"");
    put(&test_disk.disk, "box/2/b", b"");
    let mut inbox = Inbox::open(Arc::new(test_disk.clone()), PathBuf::from("box")).unwrap();
    let unreadable = |inbox: &mut Inbox| {
        let folders = inbox.scan(0).unwrap();
        folders.into_iter().map(|folder| folder.server.0).collect::<Vec<_>>()
    };
    test_disk.unreadable.lock().insert(PathBuf::from("box/1"));
    assert_eq!(unreadable(&mut inbox), [1]);
    assert!(unreadable(&mut inbox).is_empty());
    assert_eq!(inbox.take_next().unwrap().name, "b");
    test_disk.unreadable.lock().clear();
    assert!(unreadable(&mut inbox).is_empty());
    assert_eq!(inbox.take_next().unwrap().name, "a");
    test_disk.unreadable.lock().insert(PathBuf::from("box/1"));
    assert_eq!(unreadable(&mut inbox), [1], "told again after it was mended");
}

#[test]
fn presence_does_not_wait_behind_a_backlog_of_results() {
    let disk = SimDisk::new();
    for number in 0..WAITING_PER_SERVER_MAX + 1 {
        put(&disk, &format!("box/1/1-{number:05}.BTS"), b"");
    }
    put(&disk, "box/1/2-00002.BOS", b"");
    put(&disk, "box/1/2-00001.BOS", b"");
    let mut inbox = inbox(&disk);
    inbox.scan(0).unwrap();
    assert!(inbox.has_presence_waiting(ServerId(1)) && !inbox.has_presence_waiting(ServerId(2)));
    let first: Vec<_> = (0..3).map(|_| inbox.take_next().unwrap().name).collect();
    assert_eq!(first, ["2-00001.BOS", "2-00002.BOS", "1-00000.BTS"]);
    assert!(!inbox.has_presence_waiting(ServerId(1)));
}

#[test]
fn a_file_that_cannot_be_handled_rests_and_comes_back() {
    let disk = SimDisk::new();
    put(&disk, "box/1/a", b"");
    let mut inbox = inbox(&disk);
    inbox.scan(0).unwrap();
    let file = inbox.take_next().unwrap();
    inbox.let_rest(0, &file);
    inbox.scan(REST_MS - 1).unwrap();
    assert!(inbox.is_empty());
    inbox.scan(REST_MS).unwrap();
    assert_eq!(inbox.take_next(), Some(file));
}

#[test]
fn a_move_survives_a_crash_or_never_happened() {
    for seed in 0..64 {
        let disk = SimDisk::new();
        put(&disk, "box/1/a.BTS", b"content");
        disk.sync_dir(Path::new("box")).unwrap();
        disk.sync_dir(Path::new("box/1")).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        disk.open_append(Path::new("box/1/a.BTS")).unwrap().sync().unwrap();
        let mut inbox = inbox(&disk);
        disk.fail_after_ops(seed % 4);
        let _ = inbox.set_aside(&waiting("a.BTS"));
        disk.crash(seed);
        let inbox = self::inbox(&disk);
        let there = names(&disk, "box/1").len() + names(&disk, "box/bad").len();
        assert_eq!(there, 1, "seed {seed}");
        drop(inbox);
    }
}

#[test]
fn what_was_taken_in_survives_a_crash_in_its_folder_or_in_done() {
    for seed in 0..128 {
        let disk = SimDisk::new();
        put(&disk, "box/1/a.BTS", b"content");
        for folder in ["box", "box/1", ""] {
            disk.sync_dir(Path::new(folder)).unwrap();
        }
        disk.open_append(Path::new("box/1/a.BTS")).unwrap().sync().unwrap();
        let mut inbox = inbox(&disk);
        disk.fail_after_ops(seed % 8);
        let kept = inbox.keep(UnixMillis(1), &waiting("a.BTS"), &header(FileKind::Results, 1));
        disk.crash(seed);
        let _inbox = self::inbox(&disk);
        let (there, done) = (names(&disk, "box/1").len(), files_below(&disk, Path::new("box/done")).len());
        assert_eq!(there + done, 1, "seed {seed}");
        assert!(kept.is_err() || done == 1, "seed {seed}");
    }
}
