//! Sessions that are resumed: over a server's death, and no further than the site allows.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use bgb_protocol::action::Action;
use bgb_protocol::api::DeviceRow;
use bgb_protocol::ids::ServerId;

use crate::site::Site;
use crate::wait::{LONG, until_equal, until_true};

#[test]
fn agents_resume_after_the_servers_death_also_when_they_have_tried_in_vain_and_who_is_blocked_does_not() {
    let mut site = Site::running(1);
    let devices = site.add_devices((0..6).map(|number| format!("pc-{number}")));
    let _agents: Vec<_> = devices.iter().map(|device| site.start_agent(device)).collect();
    site.wait_online(6);
    site.take_server(1).kill();
    // Long enough for each to have knocked at a closed door.
    std::thread::sleep(Duration::from_secs(4));
    let _: DeviceRow =
        site.api().post(&format!("/devices/{}/block", devices[0].number), &serde_json::Value::Null).unwrap();
    site.start_server(1);
    until_equal("all but the blocked one are back", LONG, &5, || site.metric(1, "bgb_server_sessions"));
    until_true("the blocked one was turned away", LONG, || site.closed(1, "blocked") >= 1);
    let (all, resumed) = (
        site.metric(1, "bgb_server_handshakes_total"),
        site.metric(1, "bgb_server_handshakes_resumed_total"),
    );
    assert_eq!(resumed, all, "each handshake with the new process resumed a session of the old one");
    let task = site.start_task(Action::Ping, "all");
    site.wait_succeeded(task, 5);

    let keys = site.folder().server_config(ServerId(1)).with_file_name("spool").join("ticket.keys");
    assert_eq!(fs::metadata(keys).unwrap().permissions().mode() & 0o777, 0o600);
}
