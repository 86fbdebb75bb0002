//! `bgb-agent` as a process, against a server that is played here over real sockets and TLS.
#![allow(clippy::unwrap_used, unreachable_pub)] // A test that cannot go on should stop where it stands; modules are this binary's own.

mod site;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bgb_protocol::action::Action;
use bgb_protocol::ids::SessionNumber;
use bgb_protocol::message::{AgentMessage, Road, RoadTaken, ServerMessage};
use bgb_protocol::state::TaskState;
use site::{Certificate, Device, Peer, Server, Site};

fn signed_in(server: &Server, site: &Site) -> (Peer, SessionNumber) {
    let mut peer = server.accept();
    let AgentMessage::Hello(hello) = peer.hear() else { panic!("the first message is no hello") };
    peer.say(&ServerMessage::Welcome(Box::new(site.welcome())));
    (peer, hello.session)
}

#[test]
fn an_agent_signs_in_does_what_it_is_told_and_goes_in_good_order() {
    let site = Site::new();
    let server = Server::start(&site, &Certificate::server());
    let device = Device::new(&site, &server, "");
    let mut agent = device.start();
    agent.is_ready();
    let (mut peer, _) = signed_in(&server, &site);

    peer.say(&site.push(1, Action::Ping));
    let result = peer.result_of(1);
    assert_eq!(result.state, TaskState::Succeeded);
    peer.say(&ServerMessage::ResultKept(result.task));
    peer.say(&site.push(2, Action::CollectInventory));
    assert_eq!(peer.result_of(2).state, TaskState::Succeeded);

    agent.terminate();
    while peer.hear() != AgentMessage::Goodbye {}
    assert!(agent.wait().success());
    let log = device.log();
    let record = log.lines().find(|line| line.contains("signed in")).unwrap();
    assert!(
        record.starts_with("<![LOG[") && record.contains("component=\"CcmNotificationAgent\""),
        "{record}"
    );
}

#[test]
fn an_agent_that_may_take_no_tcp_comes_over_a_websocket_and_remembers_it() {
    let site = Site::new();
    let server = Server::start(&site, &Certificate::server());
    let port = server.behind_a_websocket();
    let (blocked, attempts) = blocked_port();
    let roads = format!("roads.tcp = false\nroads.https_port = {blocked}\nroads.http_port = {port}");
    let device = Device::new(&site, &server, &roads);
    for _ in 0..2 {
        let mut agent = device.start();
        let mut peer = server.accept();
        let AgentMessage::Hello(hello) = peer.hear() else { panic!("the first message is no hello") };
        let road = RoadTaken { road: Road::WebSocket, outer_tls: false, proxied: false, reason: None };
        assert_eq!(hello.road, road);
        peer.say(&ServerMessage::Welcome(Box::new(site.welcome())));
        // The second time it has the result, which nobody has kept.
        peer.say(&site.push(1, Action::CollectInventory));
        assert_eq!(peer.result_of(1).state, TaskState::Succeeded);
        agent.terminate();
        while peer.hear() != AgentMessage::Goodbye {}
        assert!(agent.wait().success());
        assert_eq!(device.mode("state/roads") & 0o007, 0);
        assert_eq!(attempts.load(Ordering::Relaxed), 1, "the second time it knows which road leads there");
    }
}

/// A port at which everybody is cut off at once, and how many have come there.
fn blocked_port() -> (u16, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, attempts) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU32::new(0)));
    let counts = Arc::clone(&attempts);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counts.fetch_add(1, Ordering::Relaxed);
            drop(stream);
        }
    });
    (port, attempts)
}

#[test]
fn an_agent_killed_in_the_middle_of_a_scan_says_interrupted_and_does_not_scan_again() {
    let site = Site::new();
    let server = Server::start(&site, &Certificate::server());
    let device = Device::new(&site, &server, "");
    let count = device.folder().join("scans");
    device.set_scan_command(&format!("echo scan >> {}; sleep 600; true", count.display()));
    let mut agent = device.start();
    let (mut peer, first) = signed_in(&server, &site);
    peer.say(&site.push(1, Action::QuickScan));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !count.exists() {
        assert!(Instant::now() < deadline, "the scan does not begin: {}", device.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    let scanner = agent.child_of("sleep");
    agent.kill();
    assert!(agent.wait().code().is_none());
    assert!(site::is_dead_soon(scanner), "the scanner outlives its agent");

    let agent = device.start();
    let (mut peer, second) = signed_in(&server, &site);
    assert!(second > first);
    peer.say(&site.push(1, Action::QuickScan));
    assert_eq!(peer.result_of(1).state, TaskState::Interrupted);
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "scan\n");
    drop(agent);
}

#[test]
fn a_stopping_agent_leaves_no_scan_behind() {
    let site = Site::new();
    let server = Server::start(&site, &Certificate::server());
    let device = Device::new(&site, &server, "");
    device.set_scan_command("sleep 600");
    let mut agent = device.start();
    let (mut peer, _) = signed_in(&server, &site);
    peer.say(&site.push(1, Action::FullScan));
    let scanner = agent.child_of("sleep");
    agent.terminate();
    assert!(agent.wait().success());
    assert!(site::is_dead_soon(scanner));
}

#[test]
fn a_cancelled_scan_ends_with_its_processes() {
    let site = Site::new();
    let server = Server::start(&site, &Certificate::server());
    let device = Device::new(&site, &server, "");
    device.set_scan_command("sleep 600");
    let agent = device.start();
    let (mut peer, _) = signed_in(&server, &site);
    peer.say(&site.push(1, Action::QuickScan));
    let scanner = agent.child_of("sleep");
    peer.say(&site.cancel(1));
    assert_eq!(peer.result_of(1).state, TaskState::Cancelled);
    assert!(site::is_dead_soon(scanner));
}

#[test]
fn a_program_ends_as_it_does_without_a_launcher() {
    let site = Site::new();
    let server = Server::start(&site, &Certificate::server());
    for (script, code, output) in [
        ("echo found; exit 1", 1, "found"),
        ("exit 7", 7, ""),
        ("kill -9 $$", -1, "ended by signal 9"),
        ("env | cut -d= -f1 | sort | xargs", 0, "LANG PATH PWD"),
    ] {
        let device = Device::new(&site, &server, "");
        device.set_scan_command(script);
        let _agent = device.start();
        let (mut peer, _) = signed_in(&server, &site);
        peer.say(&site.push(1, Action::QuickScan));
        let (result, said) = peer.result_and_output_of(1);
        assert_eq!(result.code, code, "{said}");
        assert!(said.contains(output), "{said}");
    }
    let device = Device::new(&site, &server, "");
    device.set_scan_program("no-such-scanner");
    let _agent = device.start();
    let (mut peer, _) = signed_in(&server, &site);
    peer.say(&site.push(1, Action::QuickScan));
    let (_, said) = peer.result_and_output_of(1);
    assert!(said.contains("no-such-scanner cannot be started"), "{said}");
}

#[test]
fn a_server_that_goes_away_is_found_again_and_the_result_arrives() {
    let site = Site::new();
    let server = Server::start(&site, &Certificate::server());
    let device = Device::new(&site, &server, "");
    let _agent = device.start();
    let (mut peer, _) = signed_in(&server, &site);
    peer.say(&site.push(1, Action::Ping));
    assert_eq!(peer.result_of(1).state, TaskState::Succeeded);
    drop(peer);
    let (mut peer, _) = signed_in(&server, &site);
    assert!(peer.is_resumed(), "the second session costs no second certificate exchange");
    assert_eq!(peer.result_of(1).state, TaskState::Succeeded);
}

#[test]
fn a_server_that_does_not_stop_talking_does_not_keep_an_agent_from_ending() {
    let site = Site::new();
    let server = Server::start(&site, &Certificate::server());
    let device = Device::new(&site, &server, "");
    let mut agent = device.start();
    let (mut peer, _) = signed_in(&server, &site);
    let talker = std::thread::spawn(move || peer.talk());
    device.log_says("signed in");
    agent.terminate();
    assert!(agent.wait().success());
    talker.join().unwrap();
}

#[test]
fn garbage_from_a_server_ends_the_connection_and_not_the_agent() {
    let site = Site::new();
    let server = Server::start(&site, &Certificate::server());
    let device = Device::new(&site, &server, "");
    let mut agent = device.start();
    for garbage in
        [&b"\x01\x02\x10\xff\xff\xff"[..], b"\x7f\xff\x10\x00\x00\x00", b"\x01\x03\x10\x00\x00\x01\xff"]
    {
        let (mut peer, _) = signed_in(&server, &site);
        peer.say_bytes(garbage);
        assert!(peer.is_closed(), "{garbage:?}");
    }
    agent.terminate();
    assert!(agent.wait().success());
}

#[test]
fn nobody_but_a_server_of_the_site_hears_a_word() {
    let site = Site::new();
    for (certificate, reason) in [
        (
            Certificate { uri: "urn:bgb:XYZ:server:1".to_owned(), ..Certificate::server() },
            "a server of site XYZ",
        ),
        (Certificate { uri: Site::device_uri(9), ..Certificate::server() }, "which is no server"),
        (Certificate { name: "203.0.113.9".to_owned(), ..Certificate::server() }, "not valid for name"),
    ] {
        let server = Server::start(&site, &certificate);
        let device = Device::new(&site, &server, "");
        let _agent = device.start();
        assert!(server.accept().is_closed(), "{reason}");
        device.log_says(reason);
    }
    let (stranger, server) = (Site::new(), Server::start(&site, &Certificate::server()));
    let device = Device::new(&stranger, &server, "");
    let _agent = device.start();
    assert!(server.accept().is_closed());
    device.log_says("invalid peer certificate");
}

#[test]
fn a_start_that_cannot_work_ends_with_a_sentence() {
    let site = Site::new();
    let server = Server::start(&site, &Certificate::server());
    let device = Device::new(&site, &server, "");
    assert_eq!(device.check(), Ok(()));
    let mut first = device.start();
    first.is_ready();
    assert_eq!(device.mode("state"), 0o700);
    let fault = device.start().fails();
    assert!(fault.contains("another agent (process "), "{fault}");
    first.terminate();
    assert!(first.wait().success());

    device.set_mode("device.key", 0o644);
    assert!(device.check().unwrap_err().contains("chmod 600"));
    device.set_mode("device.key", 0o600);
    let device = Device::new(&site, &server, "colour = \"blue\"");
    assert!(device.check().unwrap_err().contains("unknown field `colour`"));
    let device = Device::new(&site, &server, "");
    std::fs::write(device.folder().join("device.pem"), site.server_pem()).unwrap();
    assert!(device.check().unwrap_err().contains("which is no device"));
}
