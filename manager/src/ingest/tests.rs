//! Files that are as they should be, and files that are not: what counts, what lies in `bad`, and what is said of it.

use std::path::Path;

use bgb_daemon::disk::Disk as _;
use bgb_protocol::action::Action;
use bgb_protocol::file::presence::{Presence, PresenceRow};
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::file::{FileKind, HEADER_BYTES, Header};
use bgb_protocol::ids::{DeviceId, ServerId, TaskId, UnixMillis};
use bgb_protocol::state::TaskState;
use bgb_protocol::status::StatusId;
use bgb_site::store::{FilePlace, PresenceState};
use proptest::prelude::*;

use crate::manager::Next;
use crate::orders::Order;
use crate::test_site::{TestSite, build, header, online_row, row, server_message};

fn results(sequence: u64) -> Header {
    header(FileKind::Results, sequence)
}

/// The name in `bad` of the rows that were cut out of server 1's file with this header.
fn aside(header: &Header, extension: &str) -> String {
    let name = header.file_name();
    format!("1-{}-rows.{extension}", name.trim_end_matches(extension).trim_end_matches('.'))
}

fn all_succeed(site: &TestSite, task: TaskId, devices: u32) -> Vec<ResultRow> {
    (0..devices).map(|device| site.final_row(task, device, TaskState::Succeeded)).collect()
}

fn presence_of(site: &mut TestSite, device: u32) -> PresenceState {
    site.manager().store().read().device(DeviceId(device)).unwrap().unwrap().presence.state
}

#[test]
fn results_count_once_however_often_and_in_whatever_order_they_come() {
    let mut site = TestSite::new(4);
    let task = site.start_task(Action::Ping);
    let finals = all_succeed(&site, task, 3);
    site.put_rows(results(2), &finals);
    site.settle();
    assert_eq!((site.counts(task).succeeded, site.counts(task).waiting), (3, 1));

    let hints: Vec<_> = (0..3).map(|device| row(task, device, DeviceWord::Running)).collect();
    site.put_rows(results(1), &hints);
    site.put_rows(results(2), &finals);
    site.put_rows(results(3), &finals);
    site.settle();
    let counts = site.counts(task);
    assert_eq!((counts.succeeded, counts.running, counts.waiting), (3, 0, 1));
    assert!(site.names("box/1").is_empty() && site.names("box/bad").is_empty());
    assert_eq!(site.done().len(), 3, "the one that came twice replaced itself");
}

#[test]
fn a_file_torn_at_any_byte_is_set_aside_and_counts_as_far_as_it_is_whole() {
    let mut site = TestSite::new(2);
    let task = site.start_task(Action::Ping);
    let whole = build(results(1), &all_succeed(&site, task, 2)).1;
    let cuts: Vec<usize> =
        (0..whole.len()).step_by(7).chain([HEADER_BYTES - 1, HEADER_BYTES, whole.len() - 1]).collect();
    for (number, cut) in cuts.iter().enumerate() {
        site.put(1, &format!("torn-{number:04}.BTS"), &whole[..*cut]);
    }
    site.settle();
    assert_eq!(site.names("box/bad").len(), cuts.len());
    let said = site.messages(StatusId::FileSetAside);
    assert_eq!(said.len(), cuts.len());
    assert!(said.iter().all(|text| text.contains("early") || text.contains("end")), "{said:?}");
    assert!(site.counts(task).succeeded == 2, "the last cut left the only block whole");

    let other = site.start_task(Action::DownloadPolicy);
    let torn = build(results(2), &all_succeed(&site, other, 2)).1;
    site.put(1, "a.BTS", &torn[..torn.len() - 30]);
    site.settle();
    assert_eq!(site.counts(other).succeeded, 0);
    site.put(1, "a.BTS", &torn);
    site.settle();
    assert_eq!(site.counts(other).succeeded, 2, "mended and put back");
}

#[test]
fn a_newer_version_another_site_and_another_servers_name_are_told_as_what_they_are() {
    let mut site = TestSite::new(1);
    let task = site.start_task(Action::Ping);
    let rows = all_succeed(&site, task, 1);
    let mut newer = build(results(1), &rows).1;
    newer[8] = 0x20;
    site.put(1, "newer.BTS", &newer);
    site.put(1, "elsewhere.BTS", &build(Header { site: "XYZ".parse().unwrap(), ..results(2) }, &rows).1);
    site.put(1, "server2.BTS", &build(Header { server: ServerId(2), ..results(3) }, &rows).1);
    site.put(1, "notes.txt", b"remember the milk");
    site.put(1, "empty", b"");
    site.settle();
    let said = site.messages(StatusId::FileSetAside).join("\n");
    for words in [
        "it has version 2.0; this release reads 1.x",
        "it is of site XYZ, and this is LAB",
        "it names server 2, and lay in the folder of server 1",
        "it does not begin with the mark of a BGB file",
        "it ends too early, in its header",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(site.names("box/bad").len(), 5);
    assert_eq!(site.counts(task).waiting, 1);
}

#[test]
fn forged_results_do_not_count_and_lie_in_bad_while_the_good_rows_count() {
    let mut site = TestSite::new(6);
    let task = site.start_task(Action::Ping);
    let good = site.final_row(task, 0, TaskState::Succeeded);
    let by_another = site.forged_row(task, 1, 2);
    // Signed by device 3, and put under the name of device 2.
    let mut as_another = site.final_row(task, 3, TaskState::Succeeded);
    as_another.device = DeviceId(2);
    let mut other_output = site.final_row(task, 4, TaskState::Succeeded);
    let DeviceWord::Final(signed) = &mut other_output.word else { unreachable!("made so above") };
    signed.output = b"fine, really".to_vec();
    let mut other_state = site.final_row(task, 5, TaskState::Failed);
    let DeviceWord::Final(signed) = &mut other_state.word else { unreachable!("made so above") };
    let DeviceWord::Final(better) = site.final_row(task, 5, TaskState::Succeeded).word else {
        unreachable!("likewise")
    };
    signed.statement = better.statement;

    site.put_rows(results(1), &[good, by_another, as_another, other_output, other_state]);
    site.settle();
    let counts = site.counts(task);
    assert_eq!((counts.succeeded, counts.waiting), (1, 5));
    let said = site.messages(StatusId::ResultForged);
    assert_eq!(said.len(), 1);
    assert!(said[0].starts_with("3 results were not signed by the device that they name"), "{}", said[0]);
    assert!(said[0].contains("device 2: the signed result is device 3's"), "{}", said[0]);
    let said = site.messages(StatusId::RowsSetAside);
    assert!(said[0].contains("the output does not match its signed digest"), "{}", said[0]);
    let mended = format!("Mended, {} can be put back into the folder of server 1", aside(&results(1), "BTS"));
    assert!(said[0].contains(&mended) && !said[0].contains("cannot be put back"), "{}", said[0]);

    assert_eq!(site.names("box/bad"), [aside(&results(1), "BTS")]);
    let bytes = site.disk.read(&Path::new("box/bad").join(aside(&results(1), "BTS"))).unwrap();
    assert_eq!(Header::decode(&bytes).unwrap().rows, 4);
}

#[test]
fn a_result_counts_also_when_its_devices_key_was_revoked_meanwhile() {
    let mut site = TestSite::new(1);
    let task = site.start_task(Action::Ping);
    let database = rusqlite::Connection::open(site.folder.database()).unwrap();
    database.execute("UPDATE certificate SET state = 2", []).unwrap();
    site.put_rows(results(1), &[site.final_row(task, 0, TaskState::Succeeded)]);
    site.settle();
    assert_eq!(site.counts(task).succeeded, 1);
    assert!(site.messages(StatusId::ResultForged).is_empty());
}

#[test]
fn rows_that_were_set_aside_count_when_they_are_put_back_mended() {
    let mut site = TestSite::new(2);
    let task = site.start_task(Action::Ping);
    site.put_rows(results(1), &[site.final_row(task, 0, TaskState::Succeeded), site.forged_row(task, 1, 0)]);
    site.settle();
    assert_eq!(site.counts(task).succeeded, 1);
    // The same header, with the row as it should have been.
    site.put(1, "mended.BTS", &build(results(1), &[site.final_row(task, 1, TaskState::Succeeded)]).1);
    site.settle();
    assert_eq!(site.counts(task).succeeded, 2);
}

#[test]
fn a_damaged_block_takes_no_other_with_it() {
    let devices = 1_500;
    let mut site = TestSite::new(devices);
    let task = site.start_task(Action::Ping);
    let rows = all_succeed(&site, task, devices as u32);
    let (sound_header, sound) = build(results(1), &rows);
    assert!(sound_header.blocks >= 2);
    let mut damaged = sound.clone();
    damaged[HEADER_BYTES + 5_000] ^= 0x40;
    site.put(1, "a.BTS", &damaged);
    site.settle();
    let counted = site.counts(task).succeeded;
    assert!(counted > 0 && counted < devices as u64, "{counted}");
    let said = site.messages(StatusId::RowsSetAside);
    assert!(said[0].contains("block 0 does not match its checksum"), "{}", said[0]);
    assert!(said[0].contains("1-a-blocks.BTS cannot be put back"), "{}", said[0]);
    assert!(said[0].contains("whole file stays in done for 48 hours"), "{}", said[0]);
    assert_eq!(site.names("box/bad"), ["1-a-blocks.BTS"]);
    assert_eq!(site.done().len(), 1);

    site.put(1, "a.BTS", &sound);
    site.settle();
    assert_eq!(site.counts(task).succeeded, devices as u64);
}

#[test]
fn a_file_with_a_value_that_the_database_refuses_is_set_aside_and_the_next_one_counts() {
    let mut site = TestSite::new(2);
    let task = site.start_task(Action::Ping);
    let database = rusqlite::Connection::open(site.folder.database()).unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON result WHEN new.device = 0 \
        BEGIN SELECT RAISE(ABORT, 'not this one'); END";
    database.execute_batch(refuse).unwrap();
    site.put_rows(results(1), &[site.final_row(task, 0, TaskState::Succeeded)]);
    site.put_rows(results(2), &[site.final_row(task, 1, TaskState::Succeeded)]);
    site.settle();
    assert_eq!(site.counts(task).succeeded, 1);
    assert_eq!(site.names("box/bad").len(), 1);
    let said = site.messages(StatusId::FileSetAside);
    assert!(said[0].contains("does not take what it was given: not this one"), "{said:?}");
    assert!(site.messages(StatusId::DatabaseUnwritable).is_empty());

    database.execute_batch("DROP TRIGGER refuse").unwrap();
    site.put_rows(results(1), &[site.final_row(task, 0, TaskState::Succeeded)]);
    site.settle();
    assert_eq!(site.counts(task).succeeded, 2, "put back, it counts");
}

#[test]
fn results_for_unknown_tasks_are_told_and_pass() {
    let mut site = TestSite::new(1);
    let unknown = TaskId::from_bytes([9; 16]);
    site.put_rows(results(1), &[site.final_row(unknown, 0, TaskState::Succeeded)]);
    site.settle();
    assert_eq!(site.messages(StatusId::ResultUnknown).len(), 1);
    assert!(site.names("box/bad").is_empty() && site.names("box/1").is_empty());
}

#[test]
fn a_second_last_word_that_differs_is_told_and_the_first_stands() {
    let mut site = TestSite::new(1);
    let task = site.start_task(Action::QuickScan);
    site.put_rows(results(1), &[site.final_row(task, 0, TaskState::Failed)]);
    site.put_rows(results(2), &[site.final_row(task, 0, TaskState::Succeeded)]);
    site.settle();
    assert_eq!((site.counts(task).failed, site.counts(task).succeeded), (1, 0));
    assert_eq!(site.messages(StatusId::ResultDiffers).len(), 1);
}

#[test]
fn only_a_whole_full_list_says_who_is_absent() {
    let mut site = TestSite::new(3);
    let all: Vec<_> = (0..3).map(|device| online_row(device, 1)).collect();
    site.put_rows(header(FileKind::PresenceFull, 1), &all);
    site.settle();
    assert_eq!(presence_of(&mut site, 2), PresenceState::Online);

    // A list without device 2, one row of which cannot be: it says nothing about device 2.
    let offline = PresenceRow {
        presence: Presence::Offline { at: UnixMillis(1), reason: "no".to_owned() },
        ..online_row(1, 1)
    };
    site.put_rows(header(FileKind::PresenceFull, 2), &[online_row(0, 1), offline]);
    site.settle();
    assert_eq!(presence_of(&mut site, 2), PresenceState::Online);
    assert_eq!(site.names("box/bad"), [aside(&header(FileKind::PresenceFull, 2), "BOS")]);

    // What was cut out is no full list either, when it is put back as it is.
    let part =
        site.disk.read(&Path::new("box/bad").join(aside(&header(FileKind::PresenceFull, 2), "BOS"))).unwrap();
    assert_eq!(Header::decode(&part).unwrap().kind, FileKind::PresenceDelta);

    site.put_rows(header(FileKind::PresenceFull, 3), &all[..2]);
    site.settle();
    assert_eq!(presence_of(&mut site, 2), PresenceState::Offline);
    assert_eq!(presence_of(&mut site, 1), PresenceState::Online);
}

#[test]
fn a_device_that_counts_beyond_every_number_keeps_nobody_else_online() {
    let mut site = TestSite::new(2);
    let mut boundless = online_row(0, u64::MAX);
    let Presence::Online(details) = &mut boundless.presence else { unreachable!("made so above") };
    details.policy_version = u64::MAX;
    site.put_rows(header(FileKind::PresenceFull, 1), &[boundless.clone(), online_row(1, 1)]);
    site.settle();
    assert_eq!(presence_of(&mut site, 1), PresenceState::Online);
    site.put_rows(header(FileKind::PresenceFull, 2), &[boundless]);
    site.settle();
    assert_eq!(presence_of(&mut site, 1), PresenceState::Offline);
    let device = site.manager().store().read().device(DeviceId(0)).unwrap().unwrap();
    assert_eq!(device.presence.state, PresenceState::Online);
    assert_eq!(device.presence.policy_version, Some(i64::MAX as u64));
    assert!(site.names("box/bad").is_empty());
}

#[test]
fn the_last_two_full_lists_stay_and_deltas_go() {
    let mut site = TestSite::new(2);
    for sequence in 1..=6 {
        let kind = if sequence % 2 == 0 { FileKind::PresenceDelta } else { FileKind::PresenceFull };
        site.put_rows(header(kind, sequence), &[online_row(0, 1), online_row(1, 1)]);
        site.settle();
        site.advance(1_000);
    }
    let done = site.done();
    assert_eq!(done.len(), 2, "{done:?}");
    assert!(done[0].ends_with("0000000003.BOS") && done[1].ends_with("0000000005.BOS"), "{done:?}");
}

#[test]
fn a_servers_messages_are_kept_once_and_it_cannot_speak_for_the_manager() {
    let mut site = TestSite::new(0);
    let for_the_manager = StatusId::FileSetAside.message(UnixMillis(1), "", "all is well");
    let rows = [server_message("listens"), for_the_manager];
    site.put_rows(header(FileKind::Status, 1), &rows[..1]);
    site.put_rows(header(FileKind::Status, 2), &rows[1..]);
    site.settle();
    site.put_rows(header(FileKind::Status, 1), &rows[..1]);
    site.settle();
    assert_eq!(site.messages(StatusId::ServerStarted), ["listens"]);
    assert!(site.messages(StatusId::FileSetAside).is_empty());
    let said = site.messages(StatusId::RowsSetAside);
    assert!(said[0].contains("a server speaks for SMS_NOTIFICATION_MANAGER"), "{}", said[0]);
}

#[test]
fn an_order_is_carried_out_between_two_chunks_of_a_long_file() {
    let mut site = TestSite::new(1);
    let task = site.start_task(Action::Ping);
    let header = results(1);
    // Hints of devices that the site does not have: chunks like any others, and no keys to make.
    let rows: Vec<_> = (0..60_000).map(|device| row(task, device, DeviceWord::Received)).collect();
    site.put_rows(header, &rows);
    site.manager().on_inbox_changed();
    let (mut before, mut orders, mut largest) = (0, 0, 0);
    while let Next::Now = site.step() {
        let done = rows_done(&mut site, &header);
        largest = largest.max(done - before.min(done));
        if done > before && done < 60_000 {
            site.order(Order::CreateCollection(format!("made at row {done}"))).unwrap();
            orders += 1;
        }
        before = done;
    }
    assert!(orders >= 3, "{orders} orders came between chunks");
    assert!(largest <= super::chunk_size::ROWS_MAX as u64, "one step applied {largest} rows");
    assert_eq!(rows_done(&mut site, &header), 60_000);
}

fn rows_done(site: &mut TestSite, header: &Header) -> u64 {
    let Header { server, epoch, kind, sequence, .. } = *header;
    let place: Option<FilePlace> =
        site.manager().store().read().file_place(server, epoch, kind, sequence).unwrap();
    place.map_or(0, |place| place.rows_done)
}

#[test]
fn a_crash_at_any_step_loses_nothing_and_counts_nothing_twice() {
    let devices = 600;
    let mut site = TestSite::new(devices);
    let full: Vec<_> = (0..devices as u32).map(|device| online_row(device, 1)).collect();
    for crash_after in 0..40 {
        let task = site.start_task(Action::Ping);
        let mut rows = all_succeed(&site, task, 8);
        rows.push(site.forged_row(task, 8, 7));
        rows.extend((9..devices as u32).map(|device| row(task, device, DeviceWord::Received)));
        let sequence = crash_after + 1;
        site.put_rows(results(sequence), &rows);
        site.put_rows(header(FileKind::PresenceFull, sequence), &full[..devices - crash_after as usize]);
        site.manager().on_inbox_changed();
        for _ in 0..crash_after {
            site.step();
        }
        site.manager = None;
        site.disk.crash(crash_after);
        site.start();
        site.settle();
        let counts = site.counts(task);
        assert_eq!((counts.succeeded, counts.received), (8, devices as u64 - 9), "after {crash_after} steps");
        let online = site.manager().store().read().online_devices().unwrap();
        assert_eq!(online.len(), devices as u64 - crash_after, "after {crash_after} steps");
        let stem = results(sequence).file_name().replace(".BTS", "-rows");
        let kept = site.names("box/bad").iter().filter(|bad| bad.contains(&stem)).count();
        assert_eq!(kept, 1, "after {crash_after} steps: {:?}", site.names("box/bad"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// However a file is damaged: no panic, no row that was not sent, and the sound file afterwards brings everything.
    #[test]
    fn flipped_bits_invent_nothing_and_spoil_nothing_for_ever(
        flips in proptest::collection::vec((0usize..1_000_000, 0u8..8), 1..6),
        cut in proptest::option::of(0usize..1_000_000),
    ) {
        let mut site = TestSite::new(5);
        let task = site.start_task(Action::Ping);
        let sound = build(results(1), &all_succeed(&site, task, 4)).1;
        let mut damaged = sound.clone();
        for (position, bit) in flips {
            let position = position % damaged.len();
            damaged[position] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            damaged.truncate(cut % damaged.len());
        }
        site.put(1, "a.BTS", &damaged);
        site.settle();
        let counts = site.counts(task);
        prop_assert!(counts.succeeded <= 4 && counts.targets == counts.succeeded + counts.waiting);
        prop_assert!(site.names("box/1").is_empty());
        site.put(1, "b.BTS", &sound);
        site.settle();
        prop_assert_eq!(site.counts(task).succeeded, 4);
    }
}
