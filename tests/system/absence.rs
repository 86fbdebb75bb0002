//! When a part is not there: orders wait for the server, the server goes on without the manager, nothing starts too late.

use std::time::{Duration, Instant};

use bgb_protocol::action::Action;
use bgb_protocol::api::{Connectivity, TaskPhase};
use bgb_protocol::message::{AgentMessage, ServerMessage};
use bgb_protocol::status::StatusId;

use crate::peer::{Heard, Peer};
use crate::site::Site;
use crate::wait::{SOON, until_equal, until_true};

#[test]
fn a_task_that_is_started_while_the_server_is_down_arrives_after_it_starts() {
    let mut site = Site::running(1);
    let devices = site.add_devices((1..=3).map(|number| format!("pc-{number}")));
    let _agents: Vec<_> = devices.iter().map(|device| site.start_agent(device)).collect();
    site.wait_online(3);
    site.take_server(1).kill();
    let task = site.start_task(Action::CollectInventory, "all");
    assert_eq!(site.counts(task).waiting, 3);
    site.start_server(1);
    site.wait_succeeded(task, 3);
    site.check();
}

#[test]
fn a_task_that_expires_while_the_server_is_down_starts_nowhere() {
    let mut site = Site::running(1);
    let devices = site.add_devices((1..=2).map(|number| format!("pc-{number}")));
    site.take_server(1).kill();
    // The shortest validity that there is.
    let late = site.try_start_task(Action::CollectInventory, "all", Some(60)).unwrap().task;
    until_true("the task has expired", SOON + Duration::from_secs(60), || {
        site.task(late).phase == TaskPhase::Expired
    });
    site.start_server(1);
    let _agents: Vec<_> = devices.iter().map(|device| site.start_agent(device)).collect();
    // A task behind it has gone all the way, so the first one will not come any more.
    let next = site.start_task(Action::Ping, "all");
    site.wait_succeeded(next, 2);
    let counts = site.counts(late);
    assert_eq!((counts.expired, counts.delivered), (2, 0), "{counts:?}");
    assert_eq!(site.metric(1, "bgb_server_pushes_total"), 2);
    site.check();
}

#[test]
fn a_server_keeps_its_sessions_while_the_manager_is_away_and_takes_new_ones() {
    let mut site = Site::running(1);
    let devices = site.add_devices(["pc-1".to_owned(), "pc-2".to_owned()]);
    let (mut first, _) = Peer::sign_in(&site, 1, &devices[0], 1, 1);
    let mut kept = Vec::new();
    // Once by a crash, once in good order, which is when a database's log would be cleared away.
    for (crash, session) in [(true, 1), (false, 2)] {
        let manager = site.take_manager();
        if crash {
            manager.kill();
        } else {
            assert_eq!(manager.stop().code(), 0);
        }
        let (mut second, _) = Peer::sign_in(&site, 1, &devices[1], 1, session);
        for peer in [&mut first, &mut second] {
            peer.say(&AgentMessage::Keepalive);
            let Heard::Message(answer) = peer.hear() else { panic!("the session ended") };
            assert!(matches!(*answer, ServerMessage::KeepaliveAnswer(_)), "{answer:?}");
        }
        kept.push(second);
        site.start_manager();
    }
    site.wait_online(2);
}

#[test]
fn a_server_starts_and_serves_while_the_manager_is_away() {
    let mut site = Site::running(1);
    let device = site.add_device("pc-1");
    let mut agent = site.start_agent(&device);
    agent.wait_ready();
    site.wait_online(1);
    let task = site.start_task(Action::CollectInventory, "all");
    site.wait_succeeded(task, 1);
    assert_eq!(site.take_server(1).stop().code(), 0);
    assert_eq!(site.take_manager().stop().code(), 0);

    site.start_server(1);
    until_true("the agent has signed in", SOON, || site.metric(1, "bgb_server_sessions") == 1);
    site.start_manager();
    let task = site.start_task(Action::Ping, "all");
    site.wait_succeeded(task, 1);
    site.check();
}

#[test]
fn orders_arrive_also_when_nobody_rings_the_bell() {
    let mut site = Site::new(1);
    std::fs::remove_file(site.folder().bell()).unwrap();
    // The server begins without a bell to listen to, and the manager has rung another one by the time that there is an order.
    site.start_server(1);
    site.wait_server_log(&["bell cannot be watched"]);
    site.start_manager();
    let device = site.add_device("pc-1");
    let _agent = site.start_agent(&device);
    site.wait_online(1);
    let task = site.start_task(Action::Ping, "all");
    site.wait_succeeded(task, 1);
}

#[test]
fn the_devices_of_a_server_that_has_fallen_silent_are_shown_as_unknown() {
    let mut site = Site::running(1);
    let device = site.add_device("pc-1");
    let (_peer, _) = Peer::sign_in(&site, 1, &device, 1, 1);
    site.wait_online(1);
    site.take_server(1).kill();
    // Two and a half full intervals of ten seconds.
    until_equal("it is unknown", SOON * 2, &Connectivity::Unknown, || site.device(&device).row.connectivity);
    site.wait_message(StatusId::ServerSilent, &[]);
    site.start_server(1);
    // Its first whole list does not name the device.
    until_equal("it is offline", SOON, &Connectivity::Offline, || site.device(&device).row.connectivity);
    site.wait_message(StatusId::ServerHeard, &[]);
    site.check();
}

#[test]
fn a_device_that_falls_silent_is_offline_after_one_and_a_half_keepalives() {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    let begun = Instant::now();
    let (mut peer, welcome) = Peer::sign_in(&site, 1, &device, 1, 1);
    site.wait_online(1);
    // The connection stays as it is; only the agent says nothing.
    assert!(peer.is_ended_within(SOON * 2));
    let silence = Duration::from_secs(welcome.keepalive_secs.into()) * 3 / 2;
    assert!(begun.elapsed() >= silence - Duration::from_secs(1), "after {:?}", begun.elapsed());
    site.wait_closed("keepalive-missed", 1);
    site.wait_online(0);
}
