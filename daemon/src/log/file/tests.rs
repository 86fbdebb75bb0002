//! Rotation, and what becomes of a log that cannot be written.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn log_file(path: &Path, file_bytes_max: u64) -> LogFile {
    let mut file = LogFile::new(path.to_owned(), "BGBServer", file_bytes_max);
    file.retry_after = Duration::ZERO;
    file
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn a_log_goes_on_where_it_ended_and_others_cannot_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("BGBServer.log");
    log_file(&path, 100).write("one\r\n");
    log_file(&path, 100).write("two\r\n");
    assert_eq!(text(&path), "one\r\ntwo\r\n");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
}

#[test]
fn at_its_limit_a_log_becomes_the_old_one_and_a_new_one_begins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("BGBServer.log");
    let mut file = log_file(&path, 20);
    for number in 0..7 {
        file.write(&format!("line {number}\r\n"));
    }
    assert_eq!(text(&path), "line 6\r\n");
    assert_eq!(text(&folder.path().join("BGBServer.lo_")), "line 4\r\nline 5\r\n");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "one old log is kept");
}

#[test]
fn a_log_that_was_full_at_the_start_is_rotated_by_the_first_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bgbmgr.log");
    std::fs::write(&path, "a line of before\r\n").unwrap();
    log_file(&path, 20).write("new\r\n");
    assert_eq!(text(&path), "new\r\n");
    assert_eq!(text(&folder.path().join("bgbmgr.lo_")), "a line of before\r\n");
}

#[test]
fn half_a_line_left_by_a_crash_does_not_spoil_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bgbmgr.log");
    std::fs::write(&path, "half a li").unwrap();
    log_file(&path, 100).write("whole\r\n");
    assert_eq!(text(&path), "half a li\r\nwhole\r\n");
}

#[test]
fn lines_that_cannot_be_written_are_dropped_counted_and_told_of_later() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("later");
    let path = missing.join("bgbmgr.log");
    let mut file = log_file(&path, 10_000);
    for _ in 0..3 {
        file.write("lost\r\n");
    }
    std::fs::create_dir(&missing).unwrap();
    file.write("found\r\n");
    let text = text(&path);
    let (note, line) = text.split_once("\r\n").unwrap();
    assert!(note.starts_with("<![LOG[3 log records were dropped"), "{note}");
    assert!(note.contains("type=\"2\""));
    assert_eq!(line, "found\r\n");
}

#[test]
fn a_broken_log_is_not_tried_again_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("later");
    let mut file = log_file(&missing.join("bgbmgr.log"), 10_000);
    file.retry_after = Duration::from_secs(3600);
    file.write("lost\r\n");
    std::fs::create_dir(&missing).unwrap();
    file.write("lost too\r\n");
    assert_eq!(std::fs::read_dir(&missing).unwrap().count(), 0);
    assert_eq!(file.dropped.load(Ordering::Relaxed), 2);
}

#[test]
fn a_disk_that_hangs_delays_nobody() {
    // A full pipe hangs whoever writes to it, as a dead network disk does.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe.log");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let blocked = BlockedFile::new(&path);
    let (sink, guard) = start_with(log_file(&path, 10_000), 4).unwrap();
    let started = Instant::now();
    for _ in 0..1_000 {
        sink.write("x".repeat(1_000));
    }
    assert!(started.elapsed() < Duration::from_secs(1));
    // What was dropped before the thread took its first line is in that line's note: the counter alone does not tell.
    assert!(sink.queue.is_full(), "what does not fit the queue is dropped");
    drop(guard);
    assert!(started.elapsed() >= FLUSH_WAIT_MAX, "the disk did hang");
    assert!(started.elapsed() < FLUSH_WAIT_MAX + Duration::from_secs(2));
    drop(blocked);
}

/// A full pipe that nobody reads: whoever writes to it waits.
struct BlockedFile(#[expect(dead_code, reason = "held open, not read")] File);

impl BlockedFile {
    fn new(path: &Path) -> BlockedFile {
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
        let mut pipe = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap();
        while pipe.write(&[0; 4096]).is_ok() {}
        BlockedFile(pipe)
    }
}

#[test]
fn the_guard_writes_out_what_was_queued() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bgbmgr.log");
    let (sink, guard) = start_with(log_file(&path, 1_000_000), QUEUE_LINES_MAX).unwrap();
    for number in 0..1_000 {
        sink.write(format!("{number}\r\n"));
    }
    drop(guard);
    assert_eq!(text(&path).lines().count(), 1_000);
}

#[test]
fn the_old_logs_name_ends_with_an_underscore() {
    assert_eq!(rotated(Path::new("/var/log/bgb/BGBServer.log")), Path::new("/var/log/bgb/BGBServer.lo_"));
}

#[test]
fn a_log_that_was_moved_away_is_begun_anew_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bgbmgr.log");
    let (sink, guard) = start(path.clone(), "bgbmgr").unwrap();
    sink.write("before\r\n".to_owned());
    let deadline = Instant::now() + Duration::from_secs(10);
    while !path.exists() || text(&path).is_empty() {
        assert!(Instant::now() < deadline, "the first line was not written");
        std::thread::yield_now();
    }
    std::fs::rename(&path, folder.path().join("moved.log")).unwrap();
    guard.reopen();
    sink.write("after\r\n".to_owned());
    drop(guard);
    assert_eq!(text(&path), "after\r\n");
    assert_eq!(text(&folder.path().join("moved.log")), "before\r\n");
}
