use super::*;
use bgb_protocol::status::{Component, Severity, StatusId};

#[test]
fn messages_are_paged_from_the_newest_back_and_filtered() {
    let mut site = site();
    let ids =
        [StatusId::ServerStarted, StatusId::TaskStarted, StatusId::QueueUnreadable, StatusId::FileSetAside];
    for round in 0..3 {
        for id in ids {
            site.store.add_status(&id.message(NOW.plus(round), "x", "y")).unwrap();
        }
    }
    let ask = |before, filter| site.store.read().status_messages(before, filter, 5).unwrap();
    let first = ask(None, StatusFilter::default());
    let second = ask(Some(first[4].id), StatusFilter::default());
    assert_eq!((first.len(), second[0].id), (5, first[4].id - 1));
    let errors = StatusFilter { severity: Some(Severity::Error), component: None };
    assert!(ask(None, errors).iter().all(|stored| stored.message.severity == Severity::Error));
    let servers = StatusFilter { component: Some(Component::NotificationServer), ..StatusFilter::default() };
    assert!(ask(None, servers).iter().all(|stored| stored.message.id < 2000));
    let both = StatusFilter { component: Some(Component::NotificationServer), ..errors };
    let found: Vec<_> = ask(None, both).iter().map(|stored| stored.message.id).collect();
    assert_eq!(found, [1002, 1002, 1002]);
}

#[test]
fn a_servers_messages_are_kept_once() {
    let mut site = site();
    let rows = [StatusId::ServerStarted.message(NOW, "server 1", "It listens.")];
    let place = FilePlace::of(&header(FileKind::Status, 1, 1, 1), 1, true);
    assert_eq!(site.store.apply_status(&rows, &place, NOW).unwrap(), 1);
    assert_eq!(site.store.apply_status(&rows, &place, NOW).unwrap(), 0);
    assert_eq!(site.statuses(), [1000]);
    assert_eq!(site.store.read().servers().unwrap()[0].last_seen, Some(NOW));
}

#[test]
fn old_messages_and_file_places_are_swept() {
    let mut site = site();
    site.store.add_status(&StatusId::ManagerStarted.message(NOW, "", "")).unwrap();
    site.store.apply_status(&[], &FilePlace::of(&header(FileKind::Status, 1, 1, 0), 0, true), NOW).unwrap();
    let retention = Retention::default();
    let later = NOW.plus(retention.files_ms + 1);
    assert_eq!(site.store.sweep_history(&retention, later).unwrap().changed, 1);
    assert_eq!(site.statuses().len(), 1);
    let later = NOW.plus(retention.status_ms + 1);
    assert_eq!(site.store.sweep_history(&retention, later).unwrap().changed, 1);
    assert_eq!(site.statuses().len(), 0);
}
