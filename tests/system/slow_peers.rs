//! Peers that do not read, or close half a connection: they cost little, spin nothing, and go.

use std::io::Write as _;
use std::time::Duration;

use bgb_protocol::action::Action;
use bgb_protocol::message::AgentMessage;

use crate::peer::{self, Credentials, Heard, Peer};
use crate::road::LongPollLine;
use crate::site::Site;
use crate::wait::{SOON, until_equal, until_true};

/// A share of one core that a server with nothing to do stays under, in per cent: it wakes a few times a second.
const IDLE_PERCENT: f64 = 5.0;

/// What a server may grow by for one peer that does not read: 8 MiB of unsent bytes at the most, a buffer that doubles as it
/// grows, and what the allocator rounds up.
const GROWTH_KIB_MAX: u64 = 32 * 1024;

#[test]
fn a_peer_that_never_reads_is_dropped_and_the_server_neither_spins_nor_swells() {
    let mut site = Site::running(1);
    site.issue_long_policies(None);
    let devices = site.add_devices(["deaf".to_owned(), "sound".to_owned()]);
    let (mut sound, _) = Peer::sign_in(&site, 1, &devices[1], 1, 1);
    let before_kib = site.server(1).resident_kib();

    let (mut deaf, _) = Peer::sign_in(&site, 1, &devices[0], 1, 1);
    deaf.say(&AgentMessage::PolicyRequest(1));
    until_true("the answer has begun", SOON, || site.metric(1, "bgb_server_sent_bytes_total") > 100_000);
    let busy = site.server(1).cpu_percent(Duration::from_secs(2));
    assert!(busy < IDLE_PERCENT, "the server uses {busy:.1} % of a core with a peer that does not read");

    // What a peer asks for is bounded by what it takes, and after 25 s it has had its time. The other device speaks meanwhile.
    let mut requests = 2..;
    let mut grown_kib = 0;
    until_true("the peer is dropped", SOON * 2, || {
        let mut frame = Vec::new();
        AgentMessage::PolicyRequest(requests.next().unwrap()).encode(&mut frame);
        // It may have been dropped just now.
        let _ = deaf.send(&frame);
        sound.say(&AgentMessage::Keepalive);
        assert!(matches!(sound.hear(), Heard::Message(_)));
        grown_kib = grown_kib.max(site.server(1).resident_kib().saturating_sub(before_kib));
        site.closed(1, "too-slow") == 1
    });
    assert!(grown_kib < GROWTH_KIB_MAX, "the server has grown by {grown_kib} KiB");

    until_equal("sessions of the server", SOON, &1, || site.metric(1, "bgb_server_sessions"));
}

#[test]
fn a_device_that_asks_its_tunnel_for_nothing_while_much_waits_there_is_dropped() {
    let mut site = Site::running(1);
    site.issue_long_policies(None);
    let device = site.add_device("deaf");
    let before_kib = site.server(1).resident_kib();
    let line = LongPollLine::connect(site.http_address(1), false);
    let (mut deaf, _) = Peer::by(&site, &device, line).greet(1, 1);
    let mut grown_kib = 0;
    let mut requests = 1..;
    until_true("the peer is dropped", SOON * 2, || {
        let mut frame = Vec::new();
        AgentMessage::PolicyRequest(requests.next().unwrap()).encode(&mut frame);
        // It may have been dropped just now.
        let _ = deaf.send(&frame);
        grown_kib = grown_kib.max(site.server(1).resident_kib().saturating_sub(before_kib));
        site.closed(1, "too-slow") == 1
    });
    assert!(grown_kib < GROWTH_KIB_MAX, "the server has grown by {grown_kib} KiB");
    until_equal("tunnels", SOON, &0, || site.metric(1, "bgb_server_tunnels"));
    assert_eq!(site.metric(1, "bgb_server_sessions"), 0);
}

#[test]
fn a_peer_that_closes_half_of_its_connection_is_let_go() {
    let mut site = Site::running(1);
    let device = site.add_device("pc-1");
    let (mut peer, _) = Peer::sign_in(&site, 1, &device, 1, 1);
    peer.close_half();
    assert!(peer.is_ended_within(SOON));
    site.wait_closed("half-closed", 1);

    let (mut peer, _) = Peer::sign_in(&site, 1, &device, 1, 2);
    peer.say_closed();
    assert!(peer.is_ended_within(SOON));
    site.wait_closed("peer-closed", 1);

    // In the middle of a handshake.
    let mut peer = peer::connect(&site, 1, None);
    peer.close_half();
    assert!(peer.is_ended_within(SOON));
    site.wait_closed("half-closed", 2);
    until_true("no session and no connection is left", SOON, || {
        site.metric(1, "bgb_server_sessions") + site.metric(1, "bgb_server_connections") == 0
    });
    let busy = site.server(1).cpu_percent(Duration::from_secs(1));
    assert!(busy < IDLE_PERCENT, "the server uses {busy:.1} % of a core after peers that closed half");
}

#[test]
fn peers_that_say_nothing_cost_no_time() {
    let mut site = Site::running(1);
    let devices = site.add_devices((1..=20).map(|number| format!("pc-{number}")));
    let _signed_in: Vec<_> = devices.iter().map(|device| Peer::sign_in(&site, 1, device, 1, 1)).collect();
    // Some have not shaken hands, some have not said hello.
    let _strangers: Vec<_> = (0..20).map(|_| peer::connect(&site, 1, None)).collect();
    let _mute: Vec<_> = devices
        .iter()
        .map(|device| {
            let mut peer = peer::connect(&site, 1, Some(&Credentials::of(device)));
            peer.shake_hands().unwrap();
            peer
        })
        .collect();
    until_true("all of them are connected", SOON, || site.metric(1, "bgb_server_connections") == 60);
    let busy = site.server(1).cpu_percent(Duration::from_secs(2));
    assert!(busy < IDLE_PERCENT, "the server uses {busy:.1} % of a core with 60 silent peers");
}

#[test]
fn a_task_reaches_those_who_read_while_another_does_not() {
    let site = Site::running(1);
    let devices = site.add_devices((1..=3).map(|number| format!("pc-{number}")));
    let (_deaf, _) = Peer::sign_in(&site, 1, &devices[0], 1, 1);
    let _agents: Vec<_> = devices[1..].iter().map(|device| site.start_agent(device)).collect();
    site.wait_online(3);
    let tasks: Vec<_> = (0..20).map(|_| site.start_task(Action::Ping, "all")).collect();
    for task in tasks {
        site.wait_succeeded(task, 2);
        assert_eq!(site.counts(task).waiting, 1);
    }
}

#[test]
fn connections_that_come_and_go_leave_no_descriptor_behind() {
    let mut site = Site::running(1);
    let device = site.add_device("pc-1");
    let idle = |site: &Site| site.metric(1, "bgb_server_connections") == 0;
    until_true("nobody is connected", SOON, || idle(&site));
    let before = site.server(1).descriptors();
    for session in 1..=50 {
        // Gone before a word, in the middle of a handshake, after it, and signed in.
        drop(peer::connect(&site, 1, None));
        let mut half = peer::connect(&site, 1, None);
        half.stream().write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
        let mut mute = peer::connect(&site, 1, Some(&Credentials::of(&device)));
        mute.shake_hands().unwrap();
        let _ = Peer::sign_in(&site, 1, &device, 1, session);
    }
    until_true("nobody is connected any more", SOON, || idle(&site));
    assert_eq!(site.metric(1, "bgb_server_connections_accepted_total"), 200);
    until_equal("sessions of the server", SOON, &0, || site.metric(1, "bgb_server_sessions"));
    // Files on their way to the inbox come and go.
    until_true("no descriptor is left over", SOON, || site.server(1).descriptors() <= before);
}
