//! Each order, and each way in which it is refused.

use bgb_protocol::action::Action;
use bgb_protocol::api::{Membership, TaskPhase};
use bgb_protocol::file::FileKind;
use bgb_protocol::policy::PolicySettings;

use super::*;
use crate::test_site::{TestSite, header, online_row};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn refused(site: &mut TestSite, order: Order) -> ErrorCode {
    site.order(order).unwrap_err().code
}

fn start(target: Target) -> StartTask {
    StartTask { action: Action::Ping, target, validity_seconds: None, digest: None }
}

fn all() -> Target {
    Target::Collection("all".to_owned())
}

#[test]
fn devices_are_added_all_or_none_and_each_bundle_is_whole() {
    let mut site = TestSite::new(0);
    let add = |list: &[&str]| Order::AddDevices(AddDevices { names: names(list) });
    let Answer::Devices(bundles) = site.order(add(&["a", "b"])).unwrap() else { panic!("bundles") };
    assert_eq!((bundles[0].number, bundles[1].number), (DeviceId(0), DeviceId(1)));
    assert!(bundles[1].certificate_pem.starts_with("-----BEGIN CERTIFICATE"));
    assert!(bundles[1].agent_toml.contains("127.0.0.1:10123"));
    assert_eq!(refused(&mut site, add(&["c", "A"])), ErrorCode::NameTaken);
    assert_eq!(site.manager().store().read().site().unwrap().devices, 2);
    assert_eq!(refused(&mut site, add(&[])), ErrorCode::TooLarge);
    assert_eq!(refused(&mut site, add(&["nice\nname"])), ErrorCode::BadRequest);
}

#[test]
fn a_device_is_blocked_and_unblocked_by_any_of_its_names() {
    let mut site = TestSite::new(2);
    for name in ["pc-1", "1"] {
        let Answer::Device(row) = site.order(Order::BlockDevice(name.to_owned())).unwrap() else {
            panic!("a device")
        };
        assert_eq!((row.number, row.membership), (DeviceId(1), Membership::Blocked));
    }
    let Answer::Device(row) = site.order(Order::UnblockDevice("pc-1".to_owned())).unwrap() else {
        panic!("a device")
    };
    assert_eq!(row.membership, Membership::Active);
    assert_eq!(refused(&mut site, Order::BlockDevice("nobody".to_owned())), ErrorCode::UnknownDevice);
}

#[test]
fn a_blocked_device_is_answered_also_when_another_one_is_named_as_its_number() {
    let mut site = TestSite::new(2);
    // Of a site that was made before names were held to their form.
    let database = rusqlite::Connection::open(site.folder.database()).unwrap();
    database.execute("UPDATE device SET name = '0' WHERE number = 1", []).unwrap();
    let Answer::Device(row) = site.order(Order::BlockDevice("pc-0".to_owned())).unwrap() else {
        panic!("a device")
    };
    assert_eq!((row.number, row.membership), (DeviceId(0), Membership::Blocked));
}

#[test]
fn collections_are_made_and_filled_and_the_built_in_one_stays_as_it_is() {
    let mut site = TestSite::new(3);
    let create = |name: &str| Order::CreateCollection(name.to_owned());
    site.order(create("lab")).unwrap();
    assert_eq!(refused(&mut site, create("LAB")), ErrorCode::NameTaken);
    assert_eq!(refused(&mut site, create("All")), ErrorCode::BuiltIn);
    let change = |add: &[&str], remove: &[&str]| {
        Order::ChangeMembers("lab".to_owned(), ChangeMembers { add: names(add), remove: names(remove) })
    };
    let Answer::Members(changed) = site.order(change(&["0", "pc-1", "pc-1"], &[])).unwrap() else {
        panic!("members")
    };
    assert_eq!((changed.added, changed.collection.members), (2, 2));
    let Answer::Members(changed) = site.order(change(&["2"], &["0"])).unwrap() else { panic!("members") };
    assert_eq!((changed.added, changed.removed, changed.collection.members), (1, 1, 2));
    assert_eq!(refused(&mut site, change(&["0", "nobody"], &[])), ErrorCode::UnknownDevice);
    let none = Order::ChangeMembers("none".to_owned(), ChangeMembers::default());
    assert_eq!(refused(&mut site, none), ErrorCode::UnknownCollection);
    let built_in = Order::ChangeMembers("all".to_owned(), ChangeMembers::default());
    assert_eq!(refused(&mut site, built_in), ErrorCode::BuiltIn);
}

#[test]
fn who_is_online_in_a_changed_collection_is_told_from_memory() {
    let mut site = TestSite::new(2);
    let rows = [online_row(0, 1), online_row(1, 1)];
    site.put_rows(header(FileKind::PresenceFull, 1), &rows);
    site.settle();
    site.order(Order::CreateCollection("lab".to_owned())).unwrap();
    // Behind the manager's back: whoever asks the database is told something else.
    let database = rusqlite::Connection::open(site.folder.database()).unwrap();
    database.execute("UPDATE device SET presence = 2", []).unwrap();
    let change = ChangeMembers { add: names(&["0", "pc-1"]), remove: Vec::new() };
    let Answer::Members(changed) = site.order(Order::ChangeMembers("lab".to_owned(), change)).unwrap() else {
        panic!("members")
    };
    assert_eq!((changed.collection.members, changed.collection.online), (2, 2));
}

#[test]
fn a_policy_is_issued_in_versions_and_withdrawn() {
    let mut site = TestSite::new(1);
    let settings = PolicySettings { keepalive_seconds: Some(60), ..PolicySettings::default() };
    let put = |collection: Option<&str>, settings: &PolicySettings| {
        let put =
            PutPolicy { priority: 5, collection: collection.map(str::to_owned), settings: settings.clone() };
        Order::PutPolicy("base".to_owned(), put)
    };
    let Answer::Policy(first) = site.order(put(None, &settings)).unwrap() else { panic!("a policy") };
    let Answer::Policy(second) = site.order(put(None, &settings)).unwrap() else { panic!("a policy") };
    assert!(second.version > first.version && second.devices.is_none());
    assert_eq!(refused(&mut site, put(Some("none"), &settings)), ErrorCode::UnknownCollection);
    let wrong = PolicySettings { keepalive_seconds: Some(1), ..PolicySettings::default() };
    assert_eq!(refused(&mut site, put(None, &wrong)), ErrorCode::BadRequest);
    assert_eq!(site.order(Order::WithdrawPolicy("base".to_owned())), Ok(Answer::PolicyWithdrawn));
    assert_eq!(refused(&mut site, Order::WithdrawPolicy("base".to_owned())), ErrorCode::UnknownPolicy);
}

#[test]
fn a_task_is_started_for_the_very_set_that_was_shown() {
    let mut site = TestSite::new(2);
    let shown = site.manager().store().read().preview(&Targets::Everyone).unwrap().digest;
    let with = |digest: String| Order::StartTask(StartTask { digest: Some(digest), ..start(all()) });
    let Answer::Task(row) = site.order(with(views::hex(&shown.root).to_uppercase())).unwrap() else {
        panic!("a task")
    };
    assert_eq!((row.counts.targets, row.counts.waiting, row.phase), (2, 2, TaskPhase::Active));
    assert!(row.counts.adds_up());
    site.order(Order::AddDevices(AddDevices { names: names(&["late"]) })).unwrap();
    assert_eq!(refused(&mut site, with(views::hex(&shown.root))), ErrorCode::TargetsChanged);
    for gibberish in ["gibberish".to_owned(), "é".repeat(32), "0".repeat(64), String::new()] {
        assert_eq!(refused(&mut site, with(gibberish)), ErrorCode::TargetsChanged);
    }
}

#[test]
fn a_task_needs_targets_and_a_validity_within_bounds() {
    let mut site = TestSite::new(0);
    assert_eq!(refused(&mut site, Order::StartTask(start(all()))), ErrorCode::NoTargets);
    site.order(Order::CreateCollection("empty".to_owned())).unwrap();
    let empty = start(Target::Collection("empty".to_owned()));
    assert_eq!(refused(&mut site, Order::StartTask(empty)), ErrorCode::NoTargets);
    let unknown = start(Target::Collection("none".to_owned()));
    assert_eq!(refused(&mut site, Order::StartTask(unknown)), ErrorCode::UnknownCollection);
    let nobody = start(Target::Devices(names(&["nobody"])));
    assert_eq!(refused(&mut site, Order::StartTask(nobody)), ErrorCode::UnknownDevice);
    site.order(Order::AddDevices(AddDevices { names: names(&["one"]) })).unwrap();
    for seconds in [0, 59, 604_801, u64::MAX] {
        let start = StartTask { validity_seconds: Some(seconds), ..start(all()) };
        assert_eq!(refused(&mut site, Order::StartTask(start)), ErrorCode::BadRequest, "{seconds}");
    }
    let least = StartTask { validity_seconds: Some(60), ..start(all()) };
    assert!(site.order(Order::StartTask(least)).is_ok());
}

#[test]
fn a_task_is_cancelled_once() {
    let mut site = TestSite::new(1);
    let task = site.start_task(Action::QuickScan);
    let Answer::Task(row) = site.order(Order::CancelTask(task)).unwrap() else { panic!("a task") };
    assert_eq!((row.phase, row.counts.cancelled), (TaskPhase::Cancelled, 1));
    assert!(row.cancelled.is_some());
    assert_eq!(refused(&mut site, Order::CancelTask(task)), ErrorCode::TaskOver);
    assert_eq!(refused(&mut site, Order::CancelTask(TaskId::from_bytes([1; 16]))), ErrorCode::UnknownTask);
}
