//! A device that is carried from one server to another while its old connection is half-open.

use bgb_protocol::action::Action;
use bgb_protocol::api::Connectivity;
use bgb_protocol::ids::ServerId;

use crate::peer::Peer;
use crate::relay::Relay;
use crate::site::Site;
use crate::wait::{SOON, until_equal, until_true};

#[test]
fn a_device_that_moves_while_its_old_connection_is_half_open_ends_as_online_once() {
    let site = Site::running(2);
    let device = site.add_device("pc-1");
    let mut relay = Relay::to(site.server_address(1));
    device.point_at(&[relay.address(), site.server_address(2)]);
    let _agent = site.start_agent(&device);
    site.wait_online(1);
    until_equal("it is at server 1", SOON, &Some(ServerId(1)), || site.device(&device).row.server);

    relay.sever();
    until_equal("it is at server 2", SOON, &Some(ServerId(2)), || site.device(&device).row.server);
    assert_eq!(site.device(&device).row.connectivity, Connectivity::Online);
    // The old connection is open still, and server 1 has no way to know better, until the manager tells it.
    until_true("server 1 has let the old session go", SOON, || {
        site.closed(1, "superseded") == 1 && site.metric(1, "bgb_server_sessions") == 0
    });
    // What server 1 says of that end does not send the device offline: it is asked something, and answers once.
    let task = site.start_task(Action::Ping, "all");
    site.wait_succeeded(task, 1);
    let details = site.device(&device);
    assert_eq!((details.row.connectivity, details.row.server), (Connectivity::Online, Some(ServerId(2))));
    assert_eq!(site.metric(2, "bgb_server_sessions"), 1);
    site.check();
}

#[test]
fn the_newest_session_wins_on_one_server_whichever_reactor_has_the_old_one() {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    let (mut newest, _) = Peer::sign_in(&site, 1, &device, 1, 1);
    // Often enough that both reactors have had one of a pair.
    for session in 2..=12 {
        let (next, _) = Peer::sign_in(&site, 1, &device, 1, session);
        assert!(newest.is_ended_within(SOON), "session {} goes on", session - 1);
        newest = next;
    }
    site.wait_closed("superseded", 11);
    until_equal("there is one session", SOON, &1, || site.metric(1, "bgb_server_sessions"));
    site.wait_online(1);
    assert_eq!(site.device(&device).session, Some(12));
    drop(newest);
    site.wait_online(0);
}

#[test]
fn when_one_of_two_servers_goes_its_agents_come_to_the_other() {
    let mut site = Site::running(2);
    let devices = site.add_devices((1..=4).map(|number| format!("pc-{number}")));
    let _agents: Vec<_> = devices.iter().map(|device| site.start_agent(device)).collect();
    site.wait_online(4);
    let at = |site: &Site, server| {
        site.devices().iter().filter(|device| device.server == Some(ServerId(server))).count()
    };
    // In good order first, and then without a word.
    assert_eq!(site.take_server(1).stop().code(), 0);
    until_equal("all are at server 2", SOON, &4, || site.metric(2, "bgb_server_sessions"));
    until_equal("and the manager knows", SOON, &4, || at(&site, 2));
    site.start_server(1);
    site.take_server(2).kill();
    until_equal("all are at server 1", SOON, &4, || site.metric(1, "bgb_server_sessions"));
    until_equal("and the manager knows", SOON, &4, || at(&site, 1));
    site.wait_online(4);
    let task = site.start_task(Action::Ping, "all");
    site.wait_succeeded(task, 4);
    site.check();
}
