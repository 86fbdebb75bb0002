//! Files in the inbox that are not as they should be: set aside with a reason, and the counts stay right.
//!
//! The site has a second server that never runs; the tests write its files. Devices' results are signed with their real keys, so
//! that only what a test has broken is broken.

use std::fs;

use bgb_protocol::action::Action;
use bgb_protocol::api::{Connectivity, SetAsideFile, SiteStatus};
use bgb_protocol::file::presence::PresenceRow;
use bgb_protocol::file::{END_BYTES, FileKind, HEADER_BYTES};
use bgb_protocol::ids::{ServerId, TaskId};
use bgb_protocol::state::TaskState;
use bgb_protocol::status::StatusId;

use crate::files::{self, FileOfServer, SERVER};
use crate::site::{Device, Site};
use crate::wait::{SOON, stays_true, until_equal, until_true};

/// A manager, devices that are not there, and a task for all of them.
fn site_with_task(devices: usize) -> (Site, Vec<Device>, TaskId) {
    let mut site = Site::new(2);
    site.start_manager();
    let devices = site.add_devices((1..=devices).map(|number| format!("pc-{number}")));
    let task = site.start_task(Action::Ping, "all");
    (site, devices, task)
}

fn everybody_succeeded(sequence: u64, devices: &[Device], task: TaskId) -> FileOfServer {
    let rows: Vec<_> =
        devices.iter().map(|device| files::last_word(device, task, TaskState::Succeeded, b"fine")).collect();
    files::results(sequence, &rows)
}

/// Names of what lies in `bad`.
fn set_aside(site: &Site) -> Vec<String> {
    let entries = fs::read_dir(site.folder().bad()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until the server's inbox is empty: everything in it was taken in or set aside.
#[track_caller]
fn wait_taken(site: &Site) {
    let inbox = site.folder().server_inbox(SERVER);
    until_true("the inbox is empty", SOON, || fs::read_dir(&inbox).unwrap().next().is_none());
}

#[test]
fn a_file_that_is_torn_anywhere_is_set_aside_and_can_be_put_back_whole() {
    let (site, devices, task) = site_with_task(4);
    let length = everybody_succeeded(1, &devices, task).bytes.len();
    let cuts =
        [0, HEADER_BYTES / 2, HEADER_BYTES, HEADER_BYTES + 10, length / 2, length - END_BYTES, length - 1];
    for (number, cut) in cuts.into_iter().enumerate() {
        let whole = everybody_succeeded(number as u64 + 1, &devices, task);
        whole.torn_at(cut).deliver(&site);
        site.wait_message(StatusId::FileSetAside, &[&whole.name]);
        site.counts(task);
    }
    wait_taken(&site);
    assert_eq!(set_aside(&site).len(), cuts.len(), "{:?}", set_aside(&site));
    let listed: Vec<SetAsideFile> = site.api().list("/files").unwrap();
    assert!(listed.len() == cuts.len() && listed.iter().all(|file| file.reason.is_some()), "{listed:?}");

    // A repaired one, under its own name, and then all the others: each device counts once.
    everybody_succeeded(5, &devices, task).deliver(&site);
    site.wait_succeeded(task, 4);
    (1..=cuts.len() as u64).for_each(|sequence| {
        everybody_succeeded(sequence, &devices, task).deliver(&site);
    });
    wait_taken(&site);
    assert_eq!(site.counts(task).succeeded, 4);
    site.check();
}

#[test]
fn a_flipped_bit_takes_its_block_with_it_and_no_other() {
    let (site, devices, task) = site_with_task(8);
    // Outputs so long that four rows fill a block.
    let output = vec![b'x'; 32 * 1024];
    let rows: Vec<_> =
        devices.iter().map(|device| files::last_word(device, task, TaskState::Succeeded, &output)).collect();
    let whole = files::results(1, &rows);
    // In the output of the last row.
    let flipped = whole.flipped_at(whole.bytes.len() - END_BYTES - 1_000);
    flipped.deliver(&site);
    site.wait_message(StatusId::RowsSetAside, &["block 1 does not match its checksum"]);
    wait_taken(&site);
    assert_eq!(set_aside(&site).len(), 1);
    let succeeded = site.counts(task).succeeded;
    assert!((1..8).contains(&succeeded), "the sound block counts, the other does not: {succeeded}");

    whole.deliver(&site);
    site.wait_succeeded(task, 8);
    site.check();
}

#[test]
fn a_flipped_bit_in_header_or_end_is_found() {
    let (site, devices, task) = site_with_task(2);
    for (sequence, from_end) in [(1, None), (2, Some(3))] {
        let whole = everybody_succeeded(sequence, &devices, task);
        let at = from_end.map_or(20, |from_end| whole.bytes.len() - from_end);
        whole.flipped_at(at).deliver(&site);
        site.wait_message(StatusId::FileSetAside, &[&whole.name]);
    }
    wait_taken(&site);
    assert_eq!(set_aside(&site).len(), 2);
    everybody_succeeded(3, &devices, task).deliver(&site);
    site.wait_succeeded(task, 2);
    site.check();
}

#[test]
fn files_that_come_twice_or_in_the_wrong_order_count_once() {
    let (site, devices, task) = site_with_task(3);
    for sequence in [3, 1, 2] {
        let device = &devices[sequence as usize - 1];
        let file = files::results(sequence, &[files::last_word(device, task, TaskState::Succeeded, b"fine")]);
        file.deliver(&site);
        wait_taken(&site);
        file.deliver(&site);
        wait_taken(&site);
    }
    site.wait_succeeded(task, 3);
    // The whole of it once more, under a number that was not there yet.
    everybody_succeeded(9, &devices, task).deliver(&site);
    wait_taken(&site);
    let counts = site.counts(task);
    assert_eq!((counts.succeeded, counts.delivered), (3, 3));
    assert_eq!(set_aside(&site), Vec::<String>::new());
    site.check();
}

#[test]
fn a_second_last_word_that_differs_is_told_and_the_first_one_stands() {
    let (site, devices, task) = site_with_task(1);
    everybody_succeeded(1, &devices, task).deliver(&site);
    site.wait_succeeded(task, 1);
    let other = files::last_word(&devices[0], task, TaskState::Failed, b"after all");
    files::results(2, &[other]).deliver(&site);
    site.wait_message(StatusId::ResultDiffers, &[]);
    let counts = site.counts(task);
    assert_eq!((counts.succeeded, counts.failed), (1, 0));
}

#[test]
fn a_file_of_a_newer_version_another_server_or_another_program_is_set_aside() {
    let (site, devices, task) = site_with_task(2);
    let mut newer = everybody_succeeded(1, &devices, task);
    newer.bytes[8] = 0x20;
    newer.deliver(&site);
    site.wait_message(StatusId::FileSetAside, &[&newer.name, "version 2.0"]);

    let mut header = files::header(FileKind::Results, 2);
    header.server = ServerId(1);
    let rows: Vec<_> =
        devices.iter().map(|device| files::last_word(device, task, TaskState::Succeeded, b"")).collect();
    let foreign = files::build(header, &rows);
    foreign.deliver(&site);
    site.wait_message(StatusId::FileSetAside, &[&foreign.name, "server"]);

    let stray =
        FileOfServer { name: "0000000001-0000000003.BTS".to_owned(), bytes: b"PK\x03\x04".repeat(50) };
    stray.deliver(&site);
    site.wait_message(StatusId::FileSetAside, &[&stray.name, "mark of a BGB file"]);

    wait_taken(&site);
    assert_eq!((set_aside(&site).len(), site.counts(task).succeeded), (3, 0));
}

#[test]
fn a_forged_result_is_set_aside_alone() {
    let (site, devices, task) = site_with_task(3);
    let rows = [
        files::last_word(&devices[0], task, TaskState::Succeeded, b"fine"),
        // Signed with a good key of the site's, which is another device's.
        files::signed_by(&devices[0], &devices[1], task, TaskState::Succeeded, b"fine"),
        files::last_word(&devices[2], task, TaskState::Succeeded, b"fine"),
    ];
    files::results(1, &rows).deliver(&site);
    site.wait_message(StatusId::ResultForged, &[]);
    site.wait_succeeded(task, 2);
    let states: Vec<_> = site.results(task).into_iter().map(|result| result.device).collect();
    assert_eq!(states, [devices[0].number, devices[2].number]);
    assert_eq!(set_aside(&site).len(), 1);
    // The device itself may still speak.
    files::results(2, &[files::last_word(&devices[1], task, TaskState::Failed, b"no")]).deliver(&site);
    until_equal("the device's own word counts", SOON, &1, || site.counts(task).failed);
    site.check();
}

#[test]
fn a_result_for_a_task_or_device_that_is_not_there_is_told_and_nothing_else_suffers() {
    let (site, devices, task) = site_with_task(1);
    let unknown = TaskId::from_bytes([9; 16]);
    let rows = [
        files::last_word(&devices[0], unknown, TaskState::Succeeded, b""),
        files::last_word(&devices[0], task, TaskState::Succeeded, b""),
    ];
    files::results(1, &rows).deliver(&site);
    site.wait_message(StatusId::ResultUnknown, &[]);
    site.wait_succeeded(task, 1);
    site.check();
}

fn is_online(site: &Site, device: &Device) -> bool {
    site.device(device).row.connectivity == Connectivity::Online
}

#[test]
fn a_torn_list_of_who_is_online_sends_nobody_offline() {
    let mut site = Site::new(2);
    site.start_manager();
    let devices = site.add_devices((1..=3).map(|number| format!("pc-{number}")));
    let everybody: Vec<PresenceRow> = devices.iter().map(|device| files::online(device, 1)).collect();
    files::presence(FileKind::PresenceFull, 1, &everybody).deliver(&site);
    site.wait_online(3);

    // A list that names nobody, but has lost its end: it cannot be known who was to come.
    let torn = files::presence(FileKind::PresenceFull, 2, &everybody[..1]);
    torn.torn_at(torn.bytes.len() - 3).deliver(&site);
    site.wait_message(StatusId::FileSetAside, &[&torn.name]);
    wait_taken(&site);
    assert!(devices.iter().all(|device| is_online(&site, device)));

    // A whole one says by leaving a device out that it is not there.
    files::presence(FileKind::PresenceFull, 3, &everybody[..1]).deliver(&site);
    site.wait_online(1);

    // An older list that comes late changes nothing.
    files::presence(FileKind::PresenceFull, 1, &everybody).deliver(&site);
    wait_taken(&site);
    assert!(is_online(&site, &devices[0]) && !is_online(&site, &devices[1]));
    site.check();
}

#[test]
fn a_list_of_who_is_online_that_is_damaged_newer_or_anothers_says_nothing() {
    let mut site = Site::new(2);
    site.start_manager();
    let devices = site.add_devices((1..=2).map(|number| format!("pc-{number}")));
    let everybody: Vec<PresenceRow> = devices.iter().map(|device| files::online(device, 1)).collect();
    let whole = |sequence| files::presence(FileKind::PresenceFull, sequence, &everybody);
    whole(1).flipped_at(20).deliver(&site);
    let end = whole(2).bytes.len() - 3;
    whole(2).flipped_at(end).deliver(&site);
    let mut newer = whole(3);
    newer.bytes[8] = 0x20;
    newer.deliver(&site);
    let mut header = files::header(FileKind::PresenceFull, 4);
    header.server = ServerId(1);
    files::build(header, &everybody).deliver(&site);
    for sequence in 1..=4 {
        site.wait_message(StatusId::FileSetAside, &[&whole(sequence).name]);
    }
    wait_taken(&site);
    assert_eq!(set_aside(&site).len(), 4, "{:?}", set_aside(&site));
    // Nobody is at server 1 for server 2's saying so, and no row of a damaged list sent anybody away.
    assert!(devices.iter().all(|device| site.device(device).row.server != Some(ServerId(1))));
    whole(5).deliver(&site);
    site.wait_online(2);
    // The same list once more, and then one that lost a bit within its rows: what was known stays.
    whole(5).deliver(&site);
    wait_taken(&site);
    whole(6).flipped_at(HEADER_BYTES + 40).deliver(&site);
    wait_taken(&site);
    assert!(devices.iter().all(|device| is_online(&site, device)));
    site.check();
}

#[test]
fn a_gap_between_presence_files_is_told_and_waits_for_the_next_whole_list() {
    let mut site = Site::new(2);
    site.start_manager();
    let devices = site.add_devices((1..=2).map(|number| format!("pc-{number}")));
    files::presence(FileKind::PresenceFull, 1, &[files::online(&devices[0], 1)]).deliver(&site);
    site.wait_online(1);
    files::presence(FileKind::PresenceDelta, 4, &[files::online(&devices[1], 1)]).deliver(&site);
    site.wait_message(StatusId::PresenceGap, &[]);
    let everybody: Vec<_> = devices.iter().map(|device| files::online(device, 1)).collect();
    files::presence(FileKind::PresenceFull, 5, &everybody).deliver(&site);
    site.wait_online(2);
    stays_true("nothing is set aside", std::time::Duration::from_millis(200), || set_aside(&site).is_empty());
}

#[test]
fn what_is_no_file_in_an_inbox_holds_nobody_up() {
    let (site, devices, task) = site_with_task(1);
    let inbox = site.folder().server_inbox(SERVER);
    // Whoever may write there can also make these; their names come first.
    let name = |number: u32| inbox.join(format!("0000000000-{number:010}.BTS"));
    let pipe_mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mkfifoat(rustix::fs::CWD, name(1), pipe_mode).unwrap();
    std::os::unix::fs::symlink(site.folder().signing_key(), name(2)).unwrap();
    std::os::unix::fs::symlink("/nonexistent", name(3)).unwrap();
    std::os::unix::fs::symlink("/dev/zero", name(4)).unwrap();
    fs::create_dir(name(5)).unwrap();
    everybody_succeeded(1, &devices, task).deliver(&site);
    site.wait_succeeded(task, 1);
    // The key that a link led to is where it was, and the manager still signs with it.
    assert!(fs::symlink_metadata(site.folder().signing_key()).unwrap().is_file());
    let next = site.start_task(Action::Ping, "all");
    assert_eq!(site.counts(next).waiting, 1);
    site.check();
}

#[test]
fn a_folder_of_a_server_that_the_site_does_not_have_makes_no_server() {
    let (site, devices, task) = site_with_task(1);
    let folder = site.folder().inbox().join("9");
    fs::create_dir(&folder).unwrap();
    let mut header = files::header(FileKind::Results, 1);
    header.server = ServerId(9);
    let file = files::build(header, &[files::last_word(&devices[0], task, TaskState::Succeeded, b"")]);
    fs::write(folder.join(&file.name), &file.bytes).unwrap();
    everybody_succeeded(2, &devices, task).deliver(&site);
    site.wait_succeeded(task, 1);
    let status: SiteStatus = site.api().fetch("/status").unwrap();
    let servers: Vec<_> = status.servers.iter().map(|server| server.server.0).collect();
    assert_eq!(servers, [1, 2]);
    site.wait_message(StatusId::FileSetAside, &["no server 9", "server-add"]);
    assert_eq!(set_aside(&site).len(), 1);
    site.check();
}
