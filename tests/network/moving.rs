//! The way back: a network that lets TCP through again has its devices on it some minutes later, and nothing is lost or done twice meanwhile.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use bgb_protocol::action::Action;
use bgb_protocol::message::{Road, RoadTaken};

use crate::agent;
use crate::carrier::Carrier;
use crate::device::fleet;
use crate::proxy;
use crate::site::Site;
use crate::wait::{SOON, until_equal};

/// TCP is tried 5 minutes after a session over HTTP began, give or take a quarter (docs/protocol.md, 9.7).
const PROBED_WITHIN: Duration = Duration::from_secs(5 * 60 * 5 / 4 + 30);
/// Tasks are ordered all the while, some of which take as long as an inventory, so that some are under way when a session moves.
const ORDERED_EVERY: Duration = Duration::from_millis(500);

#[test]
fn once_tcp_leads_there_sessions_move_over_and_every_task_is_done_once() {
    let site = Site::running(1);
    let devices = fleet(&site, 2);
    let tcp = proxy::address(&site, 1);
    let agents: Vec<_> = devices
        .iter()
        .zip(["long_poll", "websocket"])
        .map(|(device, other)| {
            agent::configure(&site, device, site.https_address(1).port(), site.http_address(1).port());
            device.point_at(&[tcp]);
            agent::change(device, &format!("[roads]\n{other} = false\n[log]\nlevel = \"info\""));
            site.start_agent(device)
        })
        .collect();
    for (device, road) in devices.iter().zip([Road::WebSocket, Road::LongPoll]) {
        assert_eq!(agent::road(&site, device).road, road);
    }
    let _opened = Carrier::between(TcpListener::bind(tcp).unwrap(), site.server_address(1));
    let (begun, mut tasks, mut moved) = (Instant::now(), Vec::new(), 0);
    while moved < devices.len() {
        assert!(begun.elapsed() < PROBED_WITHIN, "{moved} of {} devices have moved", devices.len());
        let action = if tasks.len() % 2 == 0 { Action::CollectInventory } else { Action::Ping };
        tasks.push(site.start_task(action, "lab"));
        std::thread::sleep(ORDERED_EVERY);
        let is_on_tcp = |device| site.device(device).row.road == Some(RoadTaken::tcp());
        moved = devices.iter().filter(|device| is_on_tcp(device)).count();
    }
    println!("moving: all on TCP after {:.0?}, {} tasks meanwhile", begun.elapsed(), tasks.len());
    for task in &tasks {
        site.wait_succeeded(*task, devices.len() as u64);
    }
    until_equal("sessions", SOON, &2, || site.metric(1, "bgb_server_sessions"));
    for device in &devices {
        let log = device.log();
        for task in &tasks {
            let begun = log.lines().filter(|line| line.contains(&format!("task begun task={task}"))).count();
            assert_eq!(begun, 1, "{}: {task}", device.name);
        }
    }
    drop(agents);
}
