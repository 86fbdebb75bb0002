//! What a device may not say once it is let in: frames and messages that the protocol does not allow.
//!
//! The session ends with a refusal that the agent can read, a counter that says why, and nothing else suffers.

use bgb_protocol::frame;
use bgb_protocol::ids::{DeviceId, TaskId};
use bgb_protocol::message::{AgentMessage, RefusedReason, ServerMessage};
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::DeviceKey;
use bgb_protocol::state::TaskState;
use rustls::ClientConnection;

use crate::peer::{self, Credentials, Heard, Peer};
use crate::site::{Device, Site, code, now};
use crate::wait::{SOON, until_equal};

fn site_with_device() -> (Site, Device) {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    (site, device)
}

/// The server says why, ends the session and counts it; and the device may come again.
#[track_caller]
fn is_ended(site: &Site, mut peer: Peer<ClientConnection>, reason: &str) {
    let heard = peer.hear_until_end();
    let refused = ServerMessage::Refused(RefusedReason::Protocol);
    assert_eq!(heard.last(), Some(&refused), "{heard:?}");
    site.wait_closed(reason, 1);
}

#[test]
fn frames_that_are_too_long_or_of_no_known_kind_end_the_session() {
    let (site, device) = site_with_device();
    let (mut peer, _) = Peer::sign_in(&site, 1, &device, 1, 1);
    // The header alone is enough: nobody waits for 16 MiB.
    peer.send(&[0, 2, 0x10, 0xff, 0xff, 0xff]).unwrap();
    is_ended(&site, peer, "oversized-frame");

    let (mut peer, _) = Peer::sign_in(&site, 1, &device, 1, 2);
    peer.send(&frame::header(0x0777, 0x10, 0)).unwrap();
    is_ended(&site, peer, "unknown-type");

    // A server's message is not an agent's.
    let (mut peer, _) = Peer::sign_in(&site, 1, &device, 1, 3);
    peer.send(&frame::header(0x0103, 0x10, 0)).unwrap();
    assert!(peer.is_ended_within(SOON));
    site.wait_closed("unknown-type", 2);
}

#[test]
fn a_frame_that_may_be_skipped_is_skipped() {
    let (site, device) = site_with_device();
    let (mut peer, _) = Peer::sign_in(&site, 1, &device, 1, 1);
    let mut frame = frame::header(0x8001, 0x10, 3).to_vec();
    frame.extend_from_slice(b"new");
    peer.send(&frame).unwrap();
    peer.say(&AgentMessage::Keepalive);
    let Heard::Message(answer) = peer.hear() else { panic!("the session ended") };
    assert!(matches!(*answer, ServerMessage::KeepaliveAnswer(_)), "{answer:?}");
}

#[test]
fn a_message_that_is_not_what_its_type_says_ends_the_session() {
    let (site, device) = site_with_device();
    let mut peer = peer::connect(&site, 1, Some(&Credentials::of(&device)));
    let mut frame = frame::header(0x0001, 0x10, 4).to_vec();
    frame.extend_from_slice(&[0xff; 4]);
    peer.send(&frame).unwrap();
    is_ended(&site, peer, "malformed-message");
}

#[test]
fn whatever_comes_before_a_hello_or_a_second_hello_ends_the_session() {
    let (site, device) = site_with_device();
    let mut peer = peer::connect(&site, 1, Some(&Credentials::of(&device)));
    peer.say(&AgentMessage::Keepalive);
    is_ended(&site, peer, "not-allowed");

    let (mut peer, _) = Peer::sign_in(&site, 1, &device, 1, 1);
    peer.say(&AgentMessage::Hello(Box::new(peer::hello(1, 2))));
    assert!(peer.is_ended_within(SOON));
    site.wait_closed("not-allowed", 2);
    until_equal("sessions of the server", SOON, &0, || site.metric(1, "bgb_server_sessions"));
}

#[test]
fn a_device_that_never_says_hello_is_not_waited_for() {
    let (site, device) = site_with_device();
    let mut peer = peer::connect(&site, 1, Some(&Credentials::of(&device)));
    peer.shake_hands().unwrap();
    is_ended(&site, peer, "hello-timed-out");
}

#[test]
fn a_result_in_another_devices_name_ends_the_session_and_counts_nowhere() {
    let (site, device) = site_with_device();
    let (mut peer, _) = Peer::sign_in(&site, 1, &device, 1, 1);
    let (key, _) = DeviceKey::generate().unwrap();
    let statement = ResultStatement {
        site: code(),
        task: TaskId::from_bytes([7; 16]),
        device: DeviceId(device.number.0 + 1),
        state: TaskState::Succeeded,
        refusal: None,
        code: 0,
        started: now(),
        finished: now(),
        output_digest: [0; 32],
    };
    let result = SignedResult::sign(statement, Vec::new(), &key).unwrap();
    peer.say(&AgentMessage::Result(Box::new(result)));
    is_ended(&site, peer, "foreign-result");
    assert_eq!(site.metric(1, "bgb_server_results_total"), 0);
}
