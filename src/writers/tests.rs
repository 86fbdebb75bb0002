use std::path::Path;

use bgb_daemon::disk::{Disk, SimDisk};
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::ids::{DeviceId, KeyId, ServerId, TaskId};
use bgb_protocol::result::SignedResult;
use bgb_protocol::signature::Signature;

use super::*;
use crate::directory::ShardId;
use crate::outgoing::Outgoing;
use crate::reactor::Doorway;

/// How long a test waits for what must happen soon.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    spooler: Spooler,
    items: Sender<SpoolItem>,
    durable: Arc<AtomicU64>,
    /// Its end must be there for the spool to ring.
    _doorway: Doorway,
}

fn bench(disk: &SimDisk) -> Bench {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let spool = Path::new("/spool");
    let outgoing = Outgoing::open(disk, spool, "LAB".parse().unwrap(), ServerId(1), 7).unwrap();
    let (spool, _) = Spool::open(outgoing, spool, 1_000).unwrap();
    let doorway = Doorway::open().unwrap();
    let (items, inbox) = bounded(16);
    let durable: Arc<AtomicU64> = Arc::default();
    let shards = Arc::from([doorway.mailbox.clone()]);
    let shared =
        Shared { metrics: Arc::default(), status: StatusLine::new().0, full_list: FullListWanted::default() };
    let spooler = Spooler::new(spool, inbox, vec![Arc::clone(&durable)], shards, shared);
    Bench { spooler, items, durable, _doorway: doorway }
}

fn item(number: u64) -> SpoolItem {
    let signature = Signature { key: KeyId([1; 8]), bytes: [2; 64] };
    let result = SignedResult { statement: "done".into(), signature, output: Vec::new() };
    let row = ResultRow {
        task: TaskId::from_bytes([1; 16]),
        device: DeviceId(number as u32),
        heard: UnixMillis(5),
        word: DeviceWord::Final(Box::new(result)),
    };
    SpoolItem::Keep { shard: ShardId(0), number, row }
}

#[test]
fn a_stop_on_a_full_disk_ends_and_acknowledges_nothing_that_is_not_on_it() {
    let disk = SimDisk::new();
    let Bench { spooler, items, durable, _doorway } = bench(&disk);
    disk.set_full(true);
    items.send(item(1)).unwrap();
    let (fault, heard) = bounded(1);
    let writer = Writer::start("spool", &fault, move |stop| spooler.run(stop)).unwrap();
    let thread = writer.stop();
    let until = Instant::now() + PATIENCE;
    while !thread.is_finished() {
        assert!(Instant::now() < until, "it waits for room that never comes");
        std::thread::sleep(Duration::from_millis(5));
    }
    thread.join().unwrap();
    assert!(heard.is_empty(), "that is no fault");
    assert_eq!(durable.load(Ordering::Acquire), 0);
}

#[test]
fn a_stop_closes_a_last_file() {
    let disk = SimDisk::new();
    let Bench { spooler, items, durable, _doorway } = bench(&disk);
    items.send(item(1)).unwrap();
    let (fault, _heard) = bounded(1);
    let writer = Writer::start("spool", &fault, move |stop| spooler.run(stop)).unwrap();
    writer.stop().join().unwrap();
    assert_eq!(durable.load(Ordering::Acquire), 1);
    let files = disk.list(Path::new("/spool/outgoing")).unwrap();
    assert!(files.iter().any(|file| file.name.ends_with(".BTS")), "{files:?}");
}

#[test]
fn a_failed_fsync_is_a_fault() {
    let disk = SimDisk::new();
    let Bench { spooler, items, durable, _doorway } = bench(&disk);
    disk.fail_next_sync();
    items.send(item(1)).unwrap();
    let (fault, heard) = bounded(1);
    let writer = Writer::start("spool", &fault, move |stop| spooler.run(stop)).unwrap();
    let sentence = heard.recv_timeout(PATIENCE).unwrap();
    assert!(sentence.contains("could not be made durable"), "{sentence}");
    writer.stop().join().unwrap();
    assert_eq!(durable.load(Ordering::Acquire), 0);
}
