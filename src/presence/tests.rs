use bgb_protocol::file::presence::Presence;
use std::path::Path;
use std::sync::Arc;

use bgb_daemon::disk::{Disk, SimDisk};
use bgb_protocol::file::presence::OnlineDetails;
use bgb_protocol::file::{BlockHead, HEADER_BYTES, Header, check_block, rows};
use bgb_protocol::ids::ServerId;
use bgb_protocol::message::RoadTaken;

use super::*;

const PACE: PresencePace = PresencePace { full_ms: 300_000, delta_ms: 3_000 };

fn list(disk: &SimDisk) -> PresenceList {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let outgoing = Outgoing::open(disk, Path::new("/spool"), "LAB".parse().unwrap(), ServerId(1), 7).unwrap();
    PresenceList::new(outgoing, PACE, FullListWanted::default(), at(0))
}

fn at(ms: u64) -> Now {
    Now { unix_ms: ms, boot_ms: ms, mono_ms: ms }
}

fn online(device: u32, session: u64) -> PresenceRow {
    let details = OnlineDetails {
        address: ([127, 0, 0, 1], 5_000).into(),
        road: RoadTaken::tcp(),
        agent_version: "0.1.0".into(),
        clock_skew_ms: 0,
        policy_version: 0,
        platform: "linux 12 x86_64".into(),
        hostname: format!("pc-{device}"),
    };
    row(device, session, Presence::Online(Box::new(details)))
}

fn offline(device: u32, session: u64) -> PresenceRow {
    row(device, session, Presence::Offline { at: UnixMillis(9), reason: "reset".into() })
}

/// Claims are numbered as sessions are.
fn told(row: PresenceRow) -> Told {
    match row.presence {
        Presence::Online(_) => Told::Began { claim: row.session.0, row },
        Presence::Offline { .. } => Told::Ended { row },
    }
}

fn row(device: u32, session: u64, presence: Presence) -> PresenceRow {
    PresenceRow {
        device: DeviceId(device),
        boot: BootId([1; 16]),
        session: SessionNumber(session),
        signed_in: UnixMillis(1),
        presence,
    }
}

/// Kind, sequence and rows of each file, in the order of writing.
fn files(disk: &SimDisk) -> Vec<(FileKind, u64, Vec<PresenceRow>)> {
    let folder = Path::new("/spool/outgoing");
    let read = |name: String| {
        let bytes = disk.read(&folder.join(name)).unwrap();
        let header = Header::decode(&bytes).unwrap();
        let mut seen = Vec::new();
        let mut at = HEADER_BYTES;
        for number in 0..header.blocks {
            let head = BlockHead::decode(&bytes[at..], number).unwrap();
            let (_, body) = check_block(&bytes[at..], head).unwrap();
            seen.extend(rows::<PresenceRow>("presence row", head, body).map(Result::unwrap));
            at += head.total_bytes();
        }
        (header.kind, header.sequence, seen)
    };
    disk.list(folder).unwrap().into_iter().map(|entry| read(entry.name)).collect()
}

#[test]
fn a_full_list_that_is_asked_for_is_written_as_soon_as_a_delta_would_be_and_once() {
    let disk = SimDisk::new();
    let mut list = list(&disk);
    let wanted = list.full_wanted.clone();
    list.handle_told(told(online(5, 1)));
    assert_eq!(list.handle_time(at(3_000)).unwrap(), Some(FileKind::PresenceFull));
    wanted.ask();
    assert_eq!(list.next_due_ms(), 6_000);
    assert_eq!(list.handle_time(at(5_999)).unwrap(), None);
    disk.set_full(true);
    assert!(list.handle_time(at(6_000)).is_err());
    disk.set_full(false);
    assert_eq!(list.handle_time(at(6_001)).unwrap(), Some(FileKind::PresenceFull), "it is still owed");
    assert_eq!(list.next_due_ms(), 306_001);
    assert_eq!(files(&disk).last().unwrap().2, [online(5, 1)]);
}

#[test]
fn the_first_file_is_a_full_list_and_deltas_follow_what_changes() {
    let disk = SimDisk::new();
    let mut list = list(&disk);
    list.handle_told(told(online(5, 1)));
    list.handle_told(told(online(2, 1)));
    assert_eq!(list.handle_time(at(2_999)).unwrap(), None);
    assert_eq!(list.handle_time(at(3_000)).unwrap(), Some(FileKind::PresenceFull));
    assert_eq!(list.handle_time(at(60_000)).unwrap(), None, "nothing has changed");
    list.handle_told(told(offline(5, 1)));
    list.handle_told(told(online(9, 4)));
    assert_eq!(list.handle_time(at(61_000)).unwrap(), Some(FileKind::PresenceDelta));
    assert_eq!(list.handle_time(at(303_000)).unwrap(), Some(FileKind::PresenceFull));
    let expected = [
        (FileKind::PresenceFull, 1, vec![online(2, 1), online(5, 1)]),
        (FileKind::PresenceDelta, 2, vec![offline(5, 1), online(9, 4)]),
        (FileKind::PresenceFull, 3, vec![online(2, 1), online(9, 4)]),
    ];
    assert_eq!(files(&disk), expected);
}

#[test]
fn a_wall_clock_that_is_set_back_holds_no_list_back() {
    let disk = SimDisk::new();
    let mut list = list(&disk);
    let late = |mono_ms| Now { unix_ms: 0, boot_ms: mono_ms, mono_ms };
    list.handle_time(Now { unix_ms: 9_000_000, ..late(3_000) }).unwrap();
    list.handle_told(told(online(5, 1)));
    assert_eq!(list.handle_time(late(6_000)).unwrap(), Some(FileKind::PresenceDelta));
}

#[test]
fn the_late_end_of_an_old_session_hides_no_new_one() {
    let disk = SimDisk::new();
    let mut list = list(&disk);
    list.handle_told(told(online(5, 1)));
    list.handle_told(told(online(5, 2)));
    list.handle_told(told(offline(5, 1)));
    assert_eq!(list.online(), 1);
    list.handle_time(at(3_000)).unwrap();
    assert_eq!(files(&disk), [(FileKind::PresenceFull, 1, vec![online(5, 2)])]);
}

#[test]
fn the_late_beginning_of_an_old_session_hides_no_new_one() {
    let disk = SimDisk::new();
    let mut list = list(&disk);
    list.handle_told(told(online(5, 2)));
    list.handle_told(told(online(5, 1)));
    list.handle_told(told(offline(5, 1)));
    list.handle_time(at(3_000)).unwrap();
    assert_eq!(files(&disk), [(FileKind::PresenceFull, 1, vec![online(5, 2)])]);
}

#[test]
fn the_later_claim_stands_whatever_number_boot_and_date_its_session_has() {
    let disk = SimDisk::new();
    let mut list = list(&disk);
    let before = PresenceRow { signed_in: UnixMillis(9_000_000), ..online(5, 7) };
    let after = PresenceRow { boot: BootId([2; 16]), signed_in: UnixMillis(1), ..online(5, 3) };
    for (row, claim) in [(&before, 1), (&after, 2), (&before, 1)] {
        list.handle_told(Told::Began { row: row.clone(), claim });
    }
    list.handle_told(told(offline(5, 7)));
    list.handle_time(at(3_000)).unwrap();
    assert_eq!(files(&disk), [(FileKind::PresenceFull, 1, vec![after])]);
}

#[test]
fn a_device_that_came_and_went_between_two_files_is_told_as_gone() {
    let disk = SimDisk::new();
    let mut list = list(&disk);
    list.handle_time(at(3_000)).unwrap();
    list.handle_told(told(online(5, 1)));
    list.handle_told(told(offline(5, 1)));
    list.handle_time(at(6_000)).unwrap();
    assert_eq!(files(&disk)[1], (FileKind::PresenceDelta, 2, vec![offline(5, 1)]));
}

#[test]
fn a_disk_that_refuses_is_tried_again_with_the_same_number() {
    let disk = SimDisk::new();
    let mut list = list(&disk);
    list.handle_told(told(online(5, 1)));
    disk.set_full(true);
    assert!(list.handle_time(at(3_000)).is_err());
    disk.set_full(false);
    assert_eq!(list.handle_time(at(3_500)).unwrap(), Some(FileKind::PresenceFull));
    assert_eq!(files(&disk), [(FileKind::PresenceFull, 1, vec![online(5, 1)])]);
}
