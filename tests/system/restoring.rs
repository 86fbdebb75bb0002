//! The site's database goes back to a copy, and the site goes on.

use bgb_protocol::action::Action;
use bgb_protocol::api::{ErrorCode, TaskRow};
use bgb_protocol::status::StatusId;

use crate::site::Site;

#[test]
fn a_site_that_goes_back_to_a_copy_goes_on_and_loses_no_result() {
    let mut site = Site::running(1);
    let devices = site.add_devices(["pc-1".to_owned(), "pc-2".to_owned()]);
    let mut agents = vec![site.start_agent(&devices[0])];
    let task = site.start_task(Action::CollectInventory, "all");
    site.wait_succeeded(task, 1);
    let copy = site.path("copy");
    let copy = copy.to_str().unwrap();
    let said = site.bgb_of_site(&["site", "backup", copy]);
    assert_eq!(said.code(), 0, "{}", said.stderr);
    let again = site.bgb_of_site(&["site", "backup", copy]);
    assert_eq!(again.code(), 4, "{}", again.stderr);

    // After the copy: a result of the task that it has, and a task that it does not have.
    agents.push(site.start_agent(&devices[1]));
    site.wait_succeeded(task, 2);
    let lost = site.start_task(Action::Ping, "all");
    site.wait_succeeded(lost, 2);
    let refused = site.bgb_of_site(&["site", "restore", copy]);
    assert_eq!(refused.code(), 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("stop it"), "{}", refused.stderr);

    assert_eq!(site.take_manager().stop().code(), 0);
    let restored = site.bgb_of_site(&["site", "restore", copy]);
    assert_eq!(restored.code(), 0, "{}", restored.stderr);
    assert!(restored.stdout.contains("bgb-manager --config"), "{}", restored.stdout);
    // The server sees it before any manager runs, and its sessions stay.
    site.wait_server_log(&["restored", "anew"]);
    assert_eq!(site.metric(1, "bgb_server_sessions"), 2);

    site.start_manager();
    site.wait_message(StatusId::ResultsRetaken, &["taken in again"]);
    site.wait_succeeded(task, 2);
    site.wait_message(StatusId::ResultUnknown, &[&lost.to_string()]);
    site.wait_message(StatusId::GenerationChanged, &["restored"]);
    let listed: Vec<TaskRow> = site.api().list("/tasks").unwrap();
    assert_eq!(listed.iter().map(|row| row.task).collect::<Vec<_>>(), [task]);
    let (code, _) = site.api().fetch::<TaskRow>(&format!("/tasks/{lost}")).unwrap_err().refusal();
    assert_eq!(code, ErrorCode::UnknownTask);
    site.wait_online(2);
    let next = site.start_task(Action::Ping, "all");
    site.wait_succeeded(next, 2);
    site.check();

    // And it can be done without the former database, with a device that the copy does not have.
    let stranger = site.add_device("pc-3");
    let _agent = site.start_agent(&stranger);
    site.wait_online(3);
    site.take_manager().kill();
    std::fs::remove_file(site.folder().database()).unwrap();
    let restored = site.bgb_of_site(&["site", "restore", copy]);
    assert_eq!(restored.code(), 0, "{}", restored.stderr);
    site.start_manager();
    let newcomer = site.add_device("pc-4");
    assert!(newcomer.number > stranger.number, "{} was given before", newcomer.number);
    let last = site.start_task(Action::Ping, "all");
    site.wait_succeeded(last, 2);
    // What has a certificate and is not the site's any more is asked nothing.
    assert_eq!(site.counts(last).targets, 3);
    site.check();
}
