//! A site that goes back to a copy of its database in the middle of everything, on virtual time.

use std::path::PathBuf;

use bgb_daemon::disk::Disk as _;
use bgb_protocol::action::Action;
use bgb_protocol::file::{Epoch, FileKind, Header};
use bgb_protocol::ids::{DeviceId, ServerId, TaskId};
use bgb_protocol::policy::PolicySettings;
use bgb_protocol::state::TaskState;
use bgb_site::backup::backup;
use bgb_site::check::check;
use bgb_site::restore::{RestoreOptions, restore};
use bgb_site::store::{PolicyAudience, PresenceState, PutPolicy};

use super::*;
use crate::manager::Next;
use crate::test_site::{TestSite, header, online_row};

const MINUTE_MS: u64 = 60_000;

fn copy(site: &TestSite) -> PathBuf {
    let to = site.folder.root().join(format!("copy-{}", site.now.unix_ms));
    backup(&site.folder.database(), &to).unwrap();
    to
}

/// Stops the manager, restores, and starts it anew.
fn go_back_to(site: &mut TestSite, copy: &std::path::Path) {
    let now = UnixMillis(site.now.unix_ms);
    site.manager = None;
    let options = RestoreOptions { site: None, servers: vec![ServerId(1)], now };
    restore(&site.folder.database(), copy, &options).unwrap();
    site.start();
}

/// Lets the manager finish what a restore has left.
fn finish(site: &mut TestSite) {
    for _ in 0..1_000 {
        site.settle();
        if !site.manager().is_being_restored() {
            site.settle();
            return;
        }
        site.advance(20);
    }
    panic!("it comes to no end");
}

/// A site, its only task and a copy of its database; 600 files have come since, more than a few steps move.
fn site_with_many_files() -> (TestSite, TaskId, PathBuf) {
    let mut site = TestSite::new(1);
    let task = site.start_task(Action::Ping);
    site.settle();
    let copy = copy(&site);
    let row = site.final_row(task, 0, TaskState::Succeeded);
    for sequence in 1..=600 {
        site.put_rows(header(FileKind::Results, sequence), std::slice::from_ref(&row));
    }
    site.settle();
    (site, task, copy)
}

#[track_caller]
fn is_sound(site: &TestSite) {
    assert_eq!(check(&site.folder.database()).unwrap().findings, []);
}

#[test]
fn results_that_came_after_the_copy_count_again_and_only_once() {
    let mut site = TestSite::new(5);
    let task = site.start_task(Action::Ping);
    site.put_rows(header(FileKind::Results, 1), &[site.final_row(task, 0, TaskState::Succeeded)]);
    site.settle();
    site.advance(10 * MINUTE_MS);
    site.put_rows(header(FileKind::Results, 2), &[site.final_row(task, 1, TaskState::Succeeded)]);
    site.settle();
    let copy = copy(&site);

    site.advance(10 * MINUTE_MS);
    let lost = site.start_task(Action::Ping);
    site.put_rows(header(FileKind::Results, 3), &[site.final_row(task, 2, TaskState::Failed)]);
    site.put_rows(header(FileKind::Results, 4), &[site.final_row(lost, 2, TaskState::Succeeded)]);
    site.settle();
    // One that still waits when the manager ends.
    site.put_rows(header(FileKind::Results, 5), &[site.final_row(task, 3, TaskState::Succeeded)]);
    let (before, done) = (site.manager().store().generation(), site.done().len());

    go_back_to(&mut site, &copy);
    assert_ne!(site.manager().store().generation(), before);
    assert_eq!((site.counts(task).succeeded, site.counts(task).failed), (2, 0));
    finish(&mut site);
    let counts = site.counts(task);
    assert_eq!((counts.succeeded, counts.failed, counts.waiting), (3, 1, 1));
    assert!(site.manager().store().read().task(lost).is_err(), "it was ordered after the copy");
    let said = site.messages(StatusId::ResultUnknown);
    assert!(said.iter().any(|text| text.contains(&lost.to_string())), "{said:?}");
    // The second was taken in just before the copy was made: within the margin, and harmless.
    let said = site.messages(StatusId::ResultsRetaken);
    assert!(said.len() == 1 && said[0].contains("3 result files"), "{said:?}");
    assert_eq!(site.messages(StatusId::DatabaseRestored).len(), 1);
    assert_eq!((site.done().len(), site.names("box/1").len()), (done + 1, 0));
    is_sound(&site);

    // Said and done: another start does nothing of it again.
    site.start();
    finish(&mut site);
    assert_eq!(site.messages(StatusId::ResultsRetaken).len(), 1);
    assert_eq!(site.counts(task).succeeded, 3);
}

#[test]
fn a_crash_at_any_step_of_it_loses_nothing_and_counts_nothing_twice() {
    let devices = 30;
    let mut site = TestSite::new(devices);
    let task = site.start_task(Action::Ping);
    site.settle();
    let copy = copy(&site);
    for device in 0..devices as u32 {
        site.advance(MINUTE_MS);
        let header = header(FileKind::Results, u64::from(device) + 1);
        site.put_rows(header, &[site.final_row(task, device, TaskState::Succeeded)]);
        site.settle();
    }
    for crash_after in 0..25 {
        site.advance(MINUTE_MS);
        go_back_to(&mut site, &copy);
        assert_eq!(site.counts(task).succeeded, 0);
        for _ in 0..crash_after {
            if let Next::At(due) = site.step() {
                let ms = due.saturating_sub(site.now.mono_ms);
                site.advance(ms);
            }
        }
        site.manager = None;
        site.disk.crash(crash_after);
        site.start();
        finish(&mut site);
        assert_eq!(site.counts(task).succeeded, devices as u64, "after {crash_after} steps");
        assert_eq!(site.done().len(), devices, "after {crash_after} steps");
        assert_eq!(site.messages(StatusId::ResultsRetaken).len(), 1, "after {crash_after} steps");
        is_sound(&site);
    }
}

#[test]
fn what_a_failed_sync_leaves_to_a_power_cut_is_taken_in_again_by_the_next_start() {
    let devices = 6;
    let mut site = TestSite::new(devices);
    let task = site.start_task(Action::Ping);
    site.settle();
    let copy = copy(&site);
    for device in 0..devices as u32 {
        let header = header(FileKind::Results, u64::from(device) + 1);
        site.put_rows(header, &[site.final_row(task, device, TaskState::Succeeded)]);
    }
    site.settle();
    for seed in 0..8 {
        site.advance(MINUTE_MS);
        go_back_to(&mut site, &copy);
        site.disk.fail_next_sync();
        for _ in 0..1_000 {
            if !site.manager().is_being_restored() {
                break;
            }
            if let Next::At(due) = site.step() {
                let ms = due.saturating_sub(site.now.mono_ms);
                site.advance(ms);
            }
        }
        site.manager = None;
        site.disk.crash(seed);
        site.start();
        finish(&mut site);
        assert_eq!(site.counts(task).succeeded, devices as u64, "seed {seed}");
    }
}

#[test]
fn two_files_of_one_name_are_both_taken_in_again() {
    let mut site = TestSite::new(3);
    let task = site.start_task(Action::Ping);
    site.settle();
    let copy = copy(&site);
    // A part of a file that was set aside and came back mended has the header of the whole.
    for device in 0..2 {
        site.put_rows(header(FileKind::Results, 1), &[site.final_row(task, device, TaskState::Succeeded)]);
        site.settle();
        site.advance(1_000);
    }
    go_back_to(&mut site, &copy);
    // And one waits under the same name.
    site.put_rows(header(FileKind::Results, 1), &[site.final_row(task, 2, TaskState::Succeeded)]);
    finish(&mut site);
    assert_eq!(site.counts(task).succeeded, 3);
    is_sound(&site);
}

#[test]
fn many_files_are_moved_a_bounded_number_a_step_and_heads_go_on_meanwhile() {
    let (mut site, task, copy) = site_with_many_files();
    let files = site.done().len();
    assert_eq!(files, 600);
    go_back_to(&mut site, &copy);
    let mut left = files;
    for _ in 0..10_000 {
        if let Next::At(_) = site.step() {
            site.advance(20);
        }
        let now_left = site.done().len();
        assert!(left - now_left.min(left) <= 250, "{left}, then {now_left}");
        assert!(!site.manager().is_being_restored() || site.names("box/1").len() + now_left == files);
        left = now_left;
        if !site.manager().is_being_restored() {
            break;
        }
    }
    assert!(site.manager().store().read().queue_sequence().unwrap() > 0);
    finish(&mut site);
    assert_eq!((site.counts(task).succeeded, site.done().len()), (1, files));
}

#[test]
fn what_cannot_be_moved_back_is_told_and_keeps_nothing_waiting() {
    let mut site = TestSite::new(2);
    let task = site.start_task(Action::Ping);
    site.settle();
    let copy = copy(&site);
    site.put_rows(header(FileKind::Results, 1), &[site.final_row(task, 0, TaskState::Succeeded)]);
    site.settle();
    let hour = format!("box/done/1/{:02}", site.now.unix_ms / 3_600_000 % 24);
    site.manager_disk.unreadable.lock().insert(PathBuf::from(&hour));
    go_back_to(&mut site, &copy);
    site.put_rows(header(FileKind::Results, 2), &[site.final_row(task, 1, TaskState::Succeeded)]);
    finish(&mut site);
    assert_eq!(site.counts(task).succeeded, 1);
    let said = site.messages(StatusId::InboxUnreadable);
    assert!(
        said.len() == 1 && said[0].contains(&hour) && said[0].contains("move the .BTS files"),
        "{said:?}"
    );
    // By the advice that was given.
    site.manager_disk.unreadable.lock().clear();
    let name = site.names(&hour).into_iter().next().unwrap();
    let (from, to) = (PathBuf::from(&hour).join(&name), PathBuf::from("box/1").join(&name));
    site.disk.rename(&from, &to).unwrap();
    site.settle();
    assert_eq!(site.counts(task).succeeded, 2);
}

#[test]
fn a_database_that_is_locked_delays_it_and_the_number_that_is_told_stays_right() {
    let mut site = TestSite::new(1);
    let task = site.start_task(Action::Ping);
    site.settle();
    let copy = copy(&site);
    site.put_rows(header(FileKind::Results, 1), &[site.final_row(task, 0, TaskState::Succeeded)]);
    site.settle();
    go_back_to(&mut site, &copy);
    // All is moved, and what is left is the last transaction.
    let since = site.manager().store().retake_since().unwrap();
    while site.manager().retake_step(since).unwrap().is_none() {}
    let other = rusqlite::Connection::open(site.folder.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let unix = UnixMillis(site.now.unix_ms);
    assert!(site.manager().restore_step(unix).is_err());
    other.execute_batch("ROLLBACK").unwrap();
    finish(&mut site);
    let said = site.messages(StatusId::ResultsRetaken);
    assert!(said.len() == 1 && said[0].contains("1 result files"), "{said:?}");
}

#[test]
fn policies_get_versions_that_agents_take() {
    let mut site = TestSite::new(1);
    let put = |site: &mut TestSite| {
        let settings = PolicySettings::parse(r#"{"keepalive_seconds": 60}"#).unwrap();
        let audience = PolicyAudience::Everyone;
        let put = PutPolicy { name: "base".to_owned(), priority: 5, audience, settings };
        let manager = site.manager();
        let (store, key) = (&mut manager.store, &manager.key);
        store.put_policy(&put, UnixMillis(1), |statement| SignedPolicy::sign(statement, key)).unwrap()
    };
    put(&mut site);
    let copy = copy(&site);
    let newest = put(&mut site);
    go_back_to(&mut site, &copy);
    finish(&mut site);
    let policies = site.manager().store().read().policies().unwrap();
    assert!(policies.len() == 1 && policies[0].version > newest, "{policies:?}");
    is_sound(&site);
}

#[test]
fn presence_is_right_again_with_the_next_full_lists() {
    let mut site = TestSite::new(3);
    let state = |site: &mut TestSite, device| {
        site.manager().store().read().device(DeviceId(device)).unwrap().unwrap().presence.state
    };
    site.put_rows(header(FileKind::PresenceFull, 1), &[online_row(0, 1), online_row(1, 1)]);
    site.settle();
    let copy = copy(&site);
    // The server starts anew; one device goes, one comes back in a later session, one comes for the first time.
    let next = |sequence| Header {
        epoch: Epoch { counter: 2, nonce: 78 },
        time: UnixMillis(header(FileKind::PresenceFull, 1).time.0 + 60_000 + sequence),
        ..header(FileKind::PresenceFull, sequence)
    };
    let rows = [online_row(1, 7), online_row(2, 1)];
    site.put_rows(next(1), &rows);
    site.settle();
    let delta = Header { kind: FileKind::PresenceDelta, ..next(2) };
    site.put_rows(delta, &rows);
    site.settle();
    go_back_to(&mut site, &copy);
    finish(&mut site);
    assert_eq!(state(&mut site, 0), PresenceState::Online, "as the copy has it");
    site.put_rows(next(3), &rows);
    site.settle();
    let states = [0, 1, 2].map(|device| state(&mut site, device));
    assert_eq!(states, [PresenceState::Offline, PresenceState::Online, PresenceState::Online]);
    let session = site.manager().store().read().device(DeviceId(1)).unwrap().unwrap().presence;
    assert_eq!(session.session.map(|session| session.0), Some(7));
    is_sound(&site);
}

#[test]
fn what_is_to_be_taken_in_again_is_not_swept_before() {
    let (mut site, task, copy) = site_with_many_files();
    // Nobody starts the manager for days; what is in done is due to be swept at its start.
    site.advance(49 * 60 * MINUTE_MS);
    go_back_to(&mut site, &copy);
    finish(&mut site);
    let said = site.messages(StatusId::ResultsRetaken);
    assert!(said.len() == 1 && said[0].contains("600 result files"), "{said:?}");
    assert_eq!(site.counts(task).succeeded, 1);
}

#[test]
fn results_that_were_taken_in_while_the_clock_was_behind_count_again() {
    let mut site = TestSite::new(3);
    let task = site.start_task(Action::Ping);
    site.put_rows(header(FileKind::Results, 1), &[site.final_row(task, 0, TaskState::Succeeded)]);
    site.settle();
    site.advance(10 * MINUTE_MS);
    site.settle();
    let copy = copy(&site);
    // An hour back; what comes now is older, by its name in done, than all that the copy has.
    site.now.unix_ms -= 60 * MINUTE_MS;
    site.put_rows(header(FileKind::Results, 2), &[site.final_row(task, 1, TaskState::Succeeded)]);
    site.settle();
    site.now.unix_ms += 60 * MINUTE_MS;
    site.put_rows(header(FileKind::Results, 3), &[site.final_row(task, 2, TaskState::Succeeded)]);
    site.settle();
    go_back_to(&mut site, &copy);
    assert_eq!(site.counts(task).succeeded, 1);
    finish(&mut site);
    assert_eq!(site.counts(task).succeeded, 3);
    // The first one is known, and stays where it is.
    let said = site.messages(StatusId::ResultsRetaken);
    assert!(said.len() == 1 && said[0].contains("2 result files"), "{said:?}");
    is_sound(&site);
}

#[test]
fn a_file_that_cannot_be_moved_is_tried_again_by_each_start_and_nothing_else_is() {
    let mut site = TestSite::new(3);
    let task = site.start_task(Action::Ping);
    site.settle();
    let copy = copy(&site);
    for device in 0..3 {
        let header = header(FileKind::Results, u64::from(device) + 1);
        site.put_rows(header, &[site.final_row(task, device, TaskState::Succeeded)]);
    }
    site.settle();
    let folder = format!("box/done/1/{:02}", site.now.unix_ms / 3_600_000 % 24);
    let stuck = PathBuf::from(&folder).join(&site.names(&folder)[1]);
    site.manager_disk.immovable.lock().insert(stuck.clone());
    go_back_to(&mut site, &copy);
    finish(&mut site);
    assert_eq!(site.counts(task).succeeded, 2);
    let taken_in = site.names(&folder);
    for start in 1..4 {
        // Each start says it once, with its path.
        let said = site.messages(StatusId::InboxUnreadable);
        let path = stuck.to_str().unwrap();
        assert!(said.len() == start && said.iter().all(|text| text.contains(path)), "{said:?}");
        assert_eq!(site.messages(StatusId::ResultsRetaken).len(), 1);
        // Whatever is taken in again bears the time of that in done.
        assert_eq!(site.names(&folder), taken_in);
        site.advance(MINUTE_MS);
        site.start();
        finish(&mut site);
    }
    site.manager_disk.immovable.lock().clear();
    site.start();
    finish(&mut site);
    assert_eq!(site.counts(task).succeeded, 3);
    assert_eq!(site.manager().store().retake_since(), None);
    assert_eq!(site.messages(StatusId::InboxUnreadable).len(), 4);
    let said = site.messages(StatusId::ResultsRetaken);
    assert!(said.len() == 2 && said.iter().any(|text| text.contains("1 result files")), "{said:?}");
    is_sound(&site);
}

#[test]
fn a_file_that_was_moved_by_hand_is_not_said_to_be_taken_in_again_by_the_next_start() {
    let mut site = TestSite::new(1);
    let task = site.start_task(Action::Ping);
    site.settle();
    let copy = copy(&site);
    site.put_rows(header(FileKind::Results, 1), &[site.final_row(task, 0, TaskState::Succeeded)]);
    site.settle();
    let folder = PathBuf::from(format!("box/done/1/{:02}", site.now.unix_ms / 3_600_000 % 24));
    let name = site.names(folder.to_str().unwrap()).remove(0);
    site.manager_disk.immovable.lock().insert(folder.join(&name));
    go_back_to(&mut site, &copy);
    finish(&mut site);
    assert!(site.manager().store().retake_since().is_some(), "the file is still there");
    // By the advice that was given.
    site.manager_disk.immovable.lock().clear();
    site.disk.rename(&folder.join(&name), &PathBuf::from("box/1").join(&name)).unwrap();
    site.settle();
    assert_eq!(site.counts(task).succeeded, 1);

    site.start();
    finish(&mut site);
    assert_eq!(site.manager().store().retake_since(), None);
    let said = site.messages(StatusId::ResultsRetaken);
    assert!(!said.iter().any(|text| text.starts_with("0 result files")), "{said:?}");
    assert_eq!(said.iter().filter(|text| text.contains("Nothing is left to do of the restore")).count(), 1);
    is_sound(&site);
}
