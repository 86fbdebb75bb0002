use bgb_daemon::disk::{SimDisk, create_dir_durably};
use bgb_protocol::ids::ServerId;

use super::*;

const INBOX: &str = "/inbox/1";

fn courier(disk: &SimDisk) -> Courier {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let outgoing = Outgoing::open(disk, Path::new("/spool"), "LAB".parse().unwrap(), ServerId(1), 7).unwrap();
    Courier::new(outgoing, PathBuf::from(INBOX))
}

fn at(ms: u64) -> Now {
    Now { unix_ms: ms, boot_ms: ms, mono_ms: ms }
}

fn put(courier: &Courier, kind: FileKind, sequence: u64) -> String {
    courier.outgoing.put(kind, sequence, UnixMillis(1), FileBuilder::new()).unwrap().file_name()
}

fn names(disk: &SimDisk, folder: &str) -> Vec<String> {
    disk.list(Path::new(folder)).unwrap().into_iter().map(|entry| entry.name).collect()
}

#[test]
fn files_arrive_and_are_there_after_a_crash() {
    let disk = SimDisk::new();
    let mut courier = courier(&disk);
    create_dir_durably(&disk, Path::new(INBOX)).unwrap();
    let name = put(&courier, FileKind::Results, 1);
    let round = courier.run(at(1));
    assert_eq!((round.carried, round.failed.is_none()), (1, true));
    disk.crash(5);
    assert_eq!(names(&disk, INBOX), [name]);
    assert!(names(&disk, "/spool/outgoing").is_empty());
}

#[test]
fn while_the_inbox_is_gone_results_wait_and_old_presence_is_dropped() {
    let disk = SimDisk::new();
    let mut courier = courier(&disk);
    let outdated = [put(&courier, FileKind::PresenceFull, 1), put(&courier, FileKind::PresenceDelta, 2)];
    let full = put(&courier, FileKind::PresenceFull, 3);
    let delta = put(&courier, FileKind::PresenceDelta, 4);
    let results = put(&courier, FileKind::Results, 1);
    assert!(courier.run(at(1)).failed.is_some());
    let waiting = names(&disk, "/spool/outgoing");
    assert!(outdated.iter().all(|name| !waiting.contains(name)), "{waiting:?}");
    assert!([full, delta, results].iter().all(|name| waiting.contains(name)), "{waiting:?}");
    create_dir_durably(&disk, Path::new(INBOX)).unwrap();
    assert_eq!(courier.run(at(2)).carried, 3);
}

#[test]
fn a_file_that_cannot_go_does_not_keep_the_others() {
    let disk = SimDisk::new();
    let mut courier = courier(&disk);
    create_dir_durably(&disk, Path::new(INBOX)).unwrap();
    let stuck = put(&courier, FileKind::Results, 1);
    let free = put(&courier, FileKind::Results, 2);
    // Something that is no file has its name.
    disk.create_dir_all(&Path::new(INBOX).join(&stuck)).unwrap();
    let round = courier.run(at(1));
    assert_eq!((round.carried, round.failed.is_some()), (1, true));
    assert_eq!(names(&disk, "/spool/outgoing"), [stuck]);
    assert!(names(&disk, INBOX).contains(&free));
}

#[test]
fn a_name_that_the_inbox_did_not_sync_is_synced_in_the_next_round() {
    let disk = SimDisk::new();
    let mut courier = courier(&disk);
    create_dir_durably(&disk, Path::new(INBOX)).unwrap();
    let name = put(&courier, FileKind::Results, 1);
    disk.fail_next_sync();
    assert!(courier.run(at(1)).failed.is_some());
    assert!(courier.run(at(2)).failed.is_none(), "nothing waits, but something was owed");
    disk.sync_dir(Path::new("/spool/outgoing")).unwrap();
    for seed in 0..20 {
        disk.crash(seed);
        assert_eq!(names(&disk, INBOX), std::slice::from_ref(&name));
    }
}

#[test]
fn an_inbox_that_stays_away_is_said_once_it_is_back() {
    let disk = SimDisk::new();
    let mut courier = courier(&disk);
    put(&courier, FileKind::Results, 1);
    for second in 0..15 {
        courier.run(at(second * 1_000));
    }
    create_dir_durably(&disk, Path::new(INBOX)).unwrap();
    courier.run(at(16_000));
    let said: Vec<_> = names(&disk, INBOX).into_iter().filter(|name| name.ends_with("SVF")).collect();
    assert_eq!(said.len(), 1);
}

#[test]
fn a_copy_to_another_file_system_is_whole_under_its_name() {
    let disk = SimDisk::new();
    let courier = courier(&disk);
    create_dir_durably(&disk, Path::new(INBOX)).unwrap();
    let name = put(&courier, FileKind::Results, 1);
    let from = Path::new("/spool/outgoing").join(&name);
    copy(&disk, &from, Path::new(INBOX), &name).unwrap();
    assert_eq!(disk.read(&from).unwrap(), disk.read(&Path::new(INBOX).join(&name)).unwrap());
    assert_eq!(names(&disk, INBOX), [name]);
}
