use super::*;
use bgb_protocol::file::presence::{OnlineDetails, Presence, PresenceRow};
use bgb_protocol::ids::{BootId, SessionNumber};
use bgb_protocol::message::RoadTaken;

const INTERVAL_MS: u64 = 300_000;

pub(super) fn online(device: u32, boot: u8, session: u64) -> PresenceRow {
    let details = OnlineDetails {
        address: "192.0.2.7:5000".parse().unwrap(),
        road: RoadTaken::tcp(),
        agent_version: "0.1.0".to_owned(),
        clock_skew_ms: 0,
        policy_version: 3,
        platform: "linux Debian 12 x86_64".to_owned(),
        hostname: format!("host-{device}"),
    };
    PresenceRow {
        device: DeviceId(device),
        boot: BootId([boot; 16]),
        session: SessionNumber(session),
        signed_in: NOW.plus(session * 1_000),
        presence: Presence::Online(Box::new(details)),
    }
}

pub(super) fn offline(device: u32, boot: u8, session: u64) -> PresenceRow {
    let at = NOW.plus(session * 1_000 + 500);
    PresenceRow {
        presence: Presence::Offline { at, reason: "goodbye".to_owned() },
        ..online(device, boot, session)
    }
}

impl Site {
    fn delta(&mut self, server: u32, sequence: u64, rows: &[PresenceRow]) -> PresenceOutcome {
        self.presence(header(FileKind::PresenceDelta, server, sequence, rows.len() as u64), rows)
    }

    fn presence(&mut self, header: Header, rows: &[PresenceRow]) -> PresenceOutcome {
        let place = FilePlace::of(&header, header.rows, true);
        self.store.apply_presence(rows, &header, &place, NOW).unwrap()
    }

    /// Takes in a whole full list, and says how many devices are gone by it.
    fn full(&mut self, server: u32, sequence: u64, rows: &[PresenceRow]) -> u64 {
        let header = header(FileKind::PresenceFull, server, sequence, rows.len() as u64);
        self.presence(header, rows);
        self.finish(&header)
    }

    fn finish(&mut self, header: &Header) -> u64 {
        let mut gone = 0;
        loop {
            let step = self.store.finish_full_list(header, NOW).unwrap();
            gone += step.changed;
            if !step.more {
                return gone;
            }
        }
    }

    fn presence_of(&self, device: u32) -> PresenceOfDevice {
        self.store.read().device(DeviceId(device)).unwrap().unwrap().presence
    }
}

#[test]
fn a_device_comes_and_goes_and_its_times_are_kept() {
    let mut site = site_with(2);
    assert_eq!(site.delta(1, 1, &[online(0, 1, 5), online(9, 1, 1)]).unknown_devices, 1);
    let there = site.presence_of(0);
    assert_eq!(
        (there.state, there.session, there.server),
        (PresenceState::Online, Some(SessionNumber(5)), Some(ServerId(1)))
    );
    assert_eq!(
        (there.since, there.last_online, there.last_offline),
        (Some(NOW.plus(5_000)), Some(NOW.plus(5_000)), None)
    );
    assert_eq!((there.road, there.policy_version), (Some(RoadTaken::tcp()), Some(3)));
    assert_eq!(there.address.unwrap().to_string(), "192.0.2.7:5000");
    assert_eq!(site.store.read().device_counts().unwrap(), (1, 2));
    assert_eq!(site.store.read().servers().unwrap()[0].devices_online, 1);
    site.delta(1, 2, &[offline(0, 1, 5)]);
    let gone = site.presence_of(0);
    assert_eq!((gone.state, gone.since), (PresenceState::Offline, Some(NOW.plus(5_500))));
    assert_eq!((gone.last_online, gone.last_offline), (Some(NOW.plus(5_000)), Some(NOW.plus(5_500))));
    assert_eq!(gone.offline_reason.as_deref(), Some("goodbye"));
    site.is_sound();
}

#[test]
fn a_full_list_that_says_nothing_new_writes_no_device() {
    let mut site = site_with(100);
    let rows: Vec<_> = (0..100).map(|device| online(device, 1, 5)).collect();
    assert_eq!(site.full(1, 1, &rows), 0);
    let outcome = site.presence(header(FileKind::PresenceFull, 1, 2, 100), &rows);
    assert_eq!((outcome.changed, outcome.unchanged), (0, 100));
}

#[test]
fn who_is_not_in_a_whole_list_is_gone_but_not_who_came_after_it() {
    let mut site = site_with(4);
    site.delta(1, 1, &[online(0, 1, 5), online(1, 1, 5)]);
    site.delta(2, 1, &[online(3, 1, 5)]);
    site.delta(1, 3, &[online(2, 1, 5)]);
    assert_eq!(site.full(1, 2, &[online(0, 1, 5)]), 1);
    let states = [0, 1, 2, 3].map(|device| site.presence_of(device).state);
    let there = PresenceState::Online;
    assert_eq!(states, [there, PresenceState::Offline, there, there]);
    assert_eq!(site.presence_of(1).offline_reason.as_deref(), Some("not in its server's list"));
}

#[test]
fn a_large_list_is_finished_in_steps_with_anything_between_them() {
    let mut site = site_with(45_000);
    let rows: Vec<_> = (0..45_000).map(|device| online(device, 1, 5)).collect();
    for (sequence, rows) in (1..).zip(rows.chunks(15_000)) {
        site.delta(1, sequence, rows);
    }
    let header = header(FileKind::PresenceFull, 1, 4, 2);
    site.presence(header, &[online(7, 1, 5), online(44_999, 1, 5)]);
    assert_eq!(site.store.finish_full_list(&header, NOW).unwrap(), Step { changed: 19_999, more: true });
    site.delta(1, 5, &[online(30_000, 1, 6)]);
    site.start(Action::Ping);
    assert_eq!(site.finish(&header), 45_000 - 19_999 - 3);
    let there: Vec<_> = site.store.read().online_devices().unwrap().iter().collect();
    assert_eq!(there, [7, 30_000, 44_999]);
    site.is_sound();
}

#[test]
fn a_list_that_is_not_whole_takes_nobody_away() {
    let mut site = site_with(2);
    site.delta(1, 1, &[online(0, 1, 5), online(1, 1, 5)]);
    let header = header(FileKind::PresenceFull, 1, 2, 2);
    let half = FilePlace::of(&header, 1, false);
    site.store.apply_presence(&[online(0, 1, 5)], &header, &half, NOW).unwrap();
    assert_eq!(site.presence_of(1).state, PresenceState::Online);
    let stored = site.store.read().file_place(ServerId(1), header.epoch, header.kind, 2).unwrap().unwrap();
    assert_eq!((stored.rows_done, stored.complete), (1, false));
    // The manager starts again here, and goes on with the second half.
    let rest = FilePlace::of(&header, 2, true);
    site.store.apply_presence(&[online(1, 1, 5)], &header, &rest, NOW).unwrap();
    let unknown_is_next = Step { changed: 0, more: true };
    assert_eq!(site.store.finish_full_list(&header, NOW).unwrap(), unknown_is_next);
    assert_eq!(site.store.finish_full_list(&header, NOW).unwrap(), Step::default());
    assert_eq!(site.presence_of(0).state, PresenceState::Online, "the first half is remembered");
    let stored = site.store.read().file_place(ServerId(1), header.epoch, header.kind, 2).unwrap().unwrap();
    assert!(stored.complete);
    assert!(site.store.apply_presence(&[online(1, 1, 5)], &header, &rest, NOW).unwrap().repeated);
}

#[test]
fn a_device_on_two_servers_is_at_the_newer_and_the_older_is_told() {
    let mut site = site_with(1);
    site.delta(1, 1, &[online(0, 1, 5)]);
    assert_eq!(site.delta(2, 1, &[online(0, 1, 6)]).superseded, 1);
    assert_eq!(site.presence_of(0).server, Some(ServerId(2)));
    let (device, boot, session) = (DeviceId(0), BootId([1; 16]), SessionNumber(5));
    assert_eq!(site.queue(), [QueueItem::Supersede { device, boot, session }]);
    let reader = crate::QueueReader::open(&site.path).unwrap();
    assert!(reader.all_valid(ServerId(2), NOW).unwrap().rows.is_empty(), "it is for server 1 alone");
    // The half-open session of the older one ends at last, and its list without the device comes: nothing changes.
    site.delta(1, 2, &[offline(0, 1, 5)]);
    site.full(1, 3, &[]);
    assert_eq!(
        (site.presence_of(0).state, site.presence_of(0).server),
        (PresenceState::Online, Some(ServerId(2)))
    );
    assert_eq!(site.store.read().device_counts().unwrap().0, 1, "online, once");
}

#[test]
fn a_server_that_lists_an_older_session_is_told_so() {
    let mut site = site_with(1);
    site.delta(2, 1, &[online(0, 1, 6)]);
    assert_eq!(site.delta(1, 1, &[online(0, 1, 5)]).superseded, 1);
    assert_eq!(site.presence_of(0).session, Some(SessionNumber(6)));
    assert_eq!(site.queue().len(), 1);
}

#[test]
fn a_restored_snapshot_is_taken_and_said() {
    let mut site = site_with(1);
    site.delta(1, 1, &[online(0, 1, 50)]);
    let lower = PresenceRow { signed_in: NOW.plus(60_000), ..online(0, 2, 3) };
    assert_eq!(site.delta(1, 2, std::slice::from_ref(&lower)).restored, 1);
    assert_eq!(site.presence_of(0).session, Some(SessionNumber(3)));
    assert_eq!(site.statuses(), [2027]);
    let back = PresenceRow { signed_in: NOW.plus(70_000), ..online(0, 1, 2) };
    assert_eq!(site.delta(1, 3, &[back]).restored, 0, "its boot is among the last four");
}

#[test]
fn a_silent_servers_devices_are_unknown_until_it_speaks() {
    let mut site = site_with(3);
    site.full(1, 1, &[online(0, 1, 5), online(1, 1, 5)]);
    let limit = NOW.plus(INTERVAL_MS * 5 / 2);
    site.store.expect_full_lists_every(INTERVAL_MS);
    assert_eq!(site.store.mark_silent_servers(|_| false, limit).unwrap(), Step::default());
    let mut changed = 0;
    loop {
        let step = site.store.mark_silent_servers(|_| false, limit.plus(1)).unwrap();
        changed += step.changed;
        if !step.more {
            break;
        }
    }
    assert_eq!(
        (changed, site.presence_of(0).state, site.presence_of(2).state),
        (2, PresenceState::Unknown, PresenceState::Never)
    );
    assert!(site.store.read().servers().unwrap()[0].silent);
    site.full(1, 2, &[online(0, 1, 5)]);
    assert_eq!(
        (site.presence_of(0).state, site.presence_of(1).state),
        (PresenceState::Online, PresenceState::Offline)
    );
    assert_eq!(site.statuses(), [2025, 2026]);
}

#[test]
fn a_gap_is_said_once_and_mended_by_the_next_full_list() {
    let mut site = site_with(1);
    site.full(1, 1, &[]);
    site.delta(1, 4, &[online(0, 1, 5)]);
    site.delta(1, 7, &[]);
    let has_gap = |site: &Site| site.store.read().servers().unwrap()[0].has_gap;
    assert!(has_gap(&site));
    assert_eq!(site.statuses(), [2024]);
    site.full(1, 5, &[]);
    assert!(has_gap(&site), "6 is missing still");
    site.full(1, 8, &[]);
    assert!(!has_gap(&site));
}

#[test]
fn a_server_that_starts_again_has_a_new_life_and_its_old_sessions_are_over() {
    let mut site = site_with(2);
    site.full(1, 40, &[online(0, 1, 5), online(1, 1, 5)]);
    let first = Header {
        epoch: Epoch { counter: 2, nonce: 5 },
        time: NOW.plus(100_000),
        ..header(FileKind::PresenceFull, 1, 1, 1)
    };
    site.presence(first, &[online(1, 1, 6)]);
    assert_eq!(site.finish(&first), 1);
    assert_eq!(site.presence_of(0).state, PresenceState::Offline);
    // A late file of the earlier life: its sessions had ended when the server started again.
    site.delta(1, 41, &[online(0, 1, 6)]);
    let late = site.presence_of(0);
    assert_eq!((late.state, late.session), (PresenceState::Offline, Some(SessionNumber(6))));
}

#[test]
fn a_life_that_counts_lower_is_believed_when_the_one_before_has_been_silent_for_long() {
    let mut site = site_with(2);
    let first = Header { epoch: Epoch { counter: 100, nonce: 5 }, ..header(FileKind::PresenceFull, 1, 1, 2) };
    site.presence(first, &[online(0, 1, 5), online(1, 1, 5)]);
    site.finish(&first);
    // A disk that was restored or replaced: as good as a late file of an earlier life.
    let after = Header { epoch: Epoch { counter: 1, nonce: 6 }, rows: 1, ..first };
    site.presence(after, &[online(0, 1, 5)]);
    assert_eq!(site.finish(&after), 0);
    let later = Header { sequence: 2, ..after };
    let (place, now) = (FilePlace::of(&later, 1, true), NOW.plus(silence_ms(300_000) + 1));
    site.store.apply_presence(&[online(0, 1, 5)], &later, &place, now).unwrap();
    assert_eq!(site.store.finish_full_list(&later, now).unwrap().changed, 1);
    assert_eq!(site.presence_of(1).state, PresenceState::Offline);
    assert_eq!(site.store.read().servers().unwrap()[0].last_full, Some(later.time));
    // The next start counts on from there, still below the former disk's, and is believed at once.
    let next = Header { epoch: Epoch { counter: 2, nonce: 7 }, ..after };
    site.presence(next, &[online(1, 1, 6)]);
    assert_eq!(site.finish(&next), 1);
    assert_eq!(site.presence_of(1).state, PresenceState::Online);
    site.is_sound();
}

#[test]
fn a_late_file_of_an_earlier_life_stays_one_whatever_it_is_dated() {
    let mut site = site_with(2);
    let set_back = Header {
        epoch: Epoch { counter: 3, nonce: 5 },
        time: UnixMillis(NOW.0 - 600_000),
        ..header(FileKind::PresenceFull, 1, 1, 1)
    };
    site.presence(set_back, &[online(0, 1, 5)]);
    site.finish(&set_back);
    for (nonce, time) in [(3, UnixMillis(NOW.0 - 1_000)), (4, NOW.plus(600_000))] {
        let earlier = Header { epoch: Epoch { counter: 1, nonce }, time, ..set_back };
        site.presence(earlier, &[online(1, 1, 5)]);
        assert_eq!(site.finish(&earlier), 0);
    }
    site.presence(Header { sequence: 2, ..set_back }, &[online(0, 1, 6)]);
    let shown = site.presence_of(0);
    assert_eq!((shown.state, shown.session), (PresenceState::Online, Some(SessionNumber(6))));
}

#[test]
fn a_clock_that_is_off_is_said_at_sign_in() {
    let mut site = site_with(1);
    let mut row = online(0, 1, 5);
    let Presence::Online(details) = &mut row.presence else { unreachable!("made above") };
    details.clock_skew_ms = -400_000;
    site.delta(1, 1, std::slice::from_ref(&row));
    site.full(1, 2, &[row]);
    assert_eq!(site.statuses(), [2028], "once for the session");
}

#[test]
fn numbers_beyond_what_a_column_holds_do_no_harm() {
    let mut site = site_with(1);
    let far = PresenceRow { signed_in: UnixMillis(u64::MAX), ..online(0, 1, 1) };
    let row = PresenceRow { session: SessionNumber(u64::MAX), ..far };
    site.delta(1, 1, std::slice::from_ref(&row));
    site.full(1, u64::MAX, &[row]);
    assert_eq!(site.presence_of(0).state, PresenceState::Online);
    site.is_sound();
}
