//! Somebody in the middle who alters what goes by: the session inside notices, ends, and is made anew; the task is done once all the same.

use std::net::TcpListener;

use bgb_protocol::action::Action;
use bgb_protocol::message::Road;

use crate::agent;
use crate::carrier::{Carrier, Way};
use crate::device::fleet;
use crate::proxy;
use crate::site::Site;
use crate::wait::{LONG, until_true};

#[test]
fn what_is_altered_on_the_way_ends_the_session_and_not_the_task() {
    for (other, road) in [("long_poll", Road::WebSocket), ("websocket", Road::LongPoll)] {
        for way in [Way::ToServer, Way::FromServer] {
            let site = Site::running(1);
            let device = fleet(&site, 1).remove(0);
            let listen = proxy::address(&site, 1);
            let middle = Carrier::between(TcpListener::bind(listen).unwrap(), site.http_address(1));
            agent::configure(&site, &device, agent::NOBODY, listen.port());
            agent::change(&device, &format!("[roads]\n{other} = false\nhttps = false"));
            let _agent = site.start_agent(&device);
            assert_eq!(agent::road(&site, &device).road, road);
            let session = site.device(&device).session;
            middle.alter(way);
            let task = site.start_task(Action::CollectInventory, "lab");
            until_true("a bit is altered", LONG, || middle.has_altered());
            site.wait_succeeded(task, 1);
            // Whoever hears what was altered says so, and the device has signed in anew.
            match way {
                Way::ToServer => until_true("the server ends it", LONG, || {
                    site.metric(1, "bgb_server_closed_total{reason=\"bad-record\"}") >= 1
                }),
                Way::FromServer => device.wait_log(&["cannot decrypt"]),
            }
            until_true("another session", LONG, || site.device(&device).session > session);
            assert_eq!(agent::road(&site, &device).road, road);
            let begun = device
                .log()
                .lines()
                .filter(|line| line.contains(&task.to_string()) && line.contains("begun"))
                .count();
            assert!(begun == 1, "{road:?} {way:?}: {}", device.log());
        }
    }
}
