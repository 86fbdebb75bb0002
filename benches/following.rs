//! What following the queue costs, by four ways: `cargo bench --bench follow`. Ends in a line of JSON.
//!
//! Ten followers of one SQLite database, each on a thread with a connection of its own, as ten servers on one host would be. For each way:
//! the CPU that all ten use while nothing happens, and how long after a commit the slowest of them has seen it.
//!
//! - `bell`: inotify on a file that the writer writes to after its commit, and `data_version` every 250 ms. What the server does.
//! - `version`: `data_version` every 5 ms.
//! - `log`: inotify on the write-ahead log; it changes before the commit can be read, so after each event `data_version` is
//!   asked every millisecond until it changes, 20 times at the most.
//! - `index`: 48 bytes at the head of the shared-memory index, every 5 ms: SQLite's own format, read behind its back.
//!
//! The goal: all ten use less than 3 % of a core while nothing happens, by the server's way.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use inotify::{Inotify, WatchMask};
use rusqlite::{Connection, OpenFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

const FOLLOWERS: usize = 10;
const IDLE_PERCENT: f64 = 3.0;
const IDLE: Duration = Duration::from_secs(5);
const COMMITS: usize = 200;
/// Commits come apart, so that each finds everybody waiting.
const PAUSE: Duration = Duration::from_millis(13);
/// Longer than the fallback look of any way: whoever has not seen a commit by then never will.
const GIVE_UP: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
enum Way {
    Bell,
    Version,
    Log,
    Index,
}

/// What a way came to.
struct Cost {
    idle_percent: f64,
    seen_p50_ms: f64,
    seen_p99_ms: f64,
    seen_max_ms: f64,
}

impl Cost {
    fn json(&self) -> Value {
        let Self { idle_percent, seen_p50_ms, seen_p99_ms, seen_max_ms } = self;
        json!({
            "idle_percent": idle_percent, "seen_p50_ms": seen_p50_ms, "seen_p99_ms": seen_p99_ms,
            "seen_max_ms": seen_max_ms,
        })
    }
}

struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn main() -> anyhow::Result<()> {
    println!(
        "{:<8} {:>16} {:>14} {:>14} {:>14}",
        "way", "idle, % of core", "seen p50, ms", "seen p99, ms", "seen max, ms"
    );
    let bell = measure(Way::Bell)?;
    let [version, log, index] = [measure(Way::Version)?, measure(Way::Log)?, measure(Way::Index)?];
    println!(
        "{FOLLOWERS} followers together; {} s idle, {COMMITS} commits each; the slowest follower of a commit counts",
        IDLE.as_secs()
    );
    let line = json!({
        "bench": "follow",
        "figures": bell.json(),
        "floor": {"version": version.json(), "log": log.json(), "index": index.json()},
        "ratio": Value::Null,
        "goal": {"idle_percent": IDLE_PERCENT},
        "holds": bell.idle_percent < IDLE_PERCENT,
    });
    println!("{line}");
    Ok(())
}

fn measure(way: Way) -> anyhow::Result<Cost> {
    let site = Site { folder: tempfile::tempdir()? };
    let mut writer = Connection::open(site.file("site.db"))?;
    writer.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE queue (sequence INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL) STRICT;
         INSERT INTO queue (payload) VALUES (x'00');",
    )?;
    let mut bell = File::create(site.file("site.bell"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let seen: Vec<Arc<AtomicI64>> = (0..FOLLOWERS).map(|_| Arc::new(AtomicI64::new(1))).collect();
    let ready = Arc::new(Barrier::new(FOLLOWERS + 1));
    let threads: Vec<_> = seen
        .iter()
        .map(|seen| {
            let (folder, seen, stop, ready) =
                (site.folder.path().to_owned(), Arc::clone(seen), Arc::clone(&stop), Arc::clone(&ready));
            std::thread::spawn(move || follow(way, &folder, &seen, &stop, &ready))
        })
        .collect();
    ready.wait();

    let before = cpu();
    std::thread::sleep(IDLE);
    let idle = 100.0 * (cpu() - before).as_secs_f64() / IDLE.as_secs_f64();

    let mut took = Vec::new();
    for number in 0..COMMITS {
        std::thread::sleep(PAUSE);
        let transaction = writer.transaction()?;
        transaction.execute("INSERT INTO queue (payload) VALUES (x'01')", [])?;
        transaction.commit()?;
        let committed = Instant::now();
        bell.write_all(b"\n")?;
        let target = number as i64 + 2;
        while seen.iter().any(|seen| seen.load(Ordering::Acquire) < target) {
            anyhow::ensure!(committed.elapsed() < GIVE_UP, "{way:?}: a follower did not see commit {number}");
            std::thread::sleep(Duration::from_micros(50));
        }
        took.push(committed.elapsed().as_secs_f64() * 1000.0);
    }
    stop.store(true, Ordering::Release);
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a follower panicked"))??;
    }
    took.sort_by(f64::total_cmp);
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
    let name = format!("{way:?}").to_lowercase();
    println!("{name:<8} {idle:>16.2} {:>14.2} {:>14.2} {:>14.2}", at(0.5), at(0.99), at(1.0));
    Ok(Cost { idle_percent: idle, seen_p50_ms: at(0.5), seen_p99_ms: at(0.99), seen_max_ms: at(1.0) })
}

/// One follower: waits its way, then reads how far the queue is.
fn follow(
    way: Way,
    folder: &Path,
    seen: &AtomicI64,
    stop: &AtomicBool,
    ready: &Barrier,
) -> anyhow::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(folder.join("site.db"), flags)?;
    let mut highest = connection.prepare("SELECT max(sequence) FROM queue")?;
    let _: i64 = highest.query_row([], |row| row.get(0))?;
    let version = || connection.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0));
    let mut inotify = Inotify::init()?;
    let watched = if matches!(way, Way::Log) { "site.db-wal" } else { "site.bell" };
    inotify.watches().add(folder.join(watched), WatchMask::MODIFY)?;
    let index = File::open(folder.join("site.db-shm"))?;
    let (mut head, mut last_version) = ([0; 48], version()?);
    index.read_exact_at(&mut head, 0)?;
    ready.wait();
    while !stop.load(Ordering::Acquire) {
        let changed = match way {
            Way::Bell => wait(&mut inotify, Duration::from_millis(250)) || version()? != last_version,
            Way::Version => {
                std::thread::sleep(Duration::from_millis(5));
                version()? != last_version
            }
            Way::Log => {
                let woken = wait(&mut inotify, Duration::from_millis(250));
                let mut asked = 0;
                while woken && asked < 20 && version()? == last_version {
                    asked += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                version()? != last_version
            }
            Way::Index => {
                std::thread::sleep(Duration::from_millis(5));
                let mut now = [0; 48];
                index.read_exact_at(&mut now, 0)?;
                std::mem::replace(&mut head, now) != now
            }
        };
        if changed {
            seen.store(highest.query_row([], |row| row.get(0))?, Ordering::Release);
            last_version = version()?;
        }
    }
    Ok(())
}

fn wait(inotify: &mut Inotify, most: Duration) -> bool {
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(most.subsec_nanos()) };
    let mut fds = [PollFd::from_borrowed_fd(inotify.as_fd(), PollFlags::IN)];
    let ready = poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0);
    let mut buffer = [0; 4096];
    while ready && inotify.read_events(&mut buffer).is_ok_and(|events| events.count() > 0) {}
    ready
}

/// CPU time of this process so far.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
