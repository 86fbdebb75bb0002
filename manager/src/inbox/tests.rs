use bgb_daemon::disk::SimDisk;
use bgb_protocol::file::Epoch;

use super::*;

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
    assert_eq!(names(&disk, "box/done").len(), 3);

    put(&disk, "box/1/a.BTS", b"");
    inbox.keep(UnixMillis(10), &waiting("a.BTS"), &header(FileKind::Results, 1)).unwrap();
    assert!(!inbox.sweep(UnixMillis(10 + DONE_KEPT_MS - 1)).unwrap());
    assert_eq!(names(&disk, "box/done").len(), 4);
    inbox.sweep(UnixMillis(10 + DONE_KEPT_MS)).unwrap();
    assert!(names(&disk, "box/done").iter().all(|name| name.ends_with(".BOS")));
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
