//! Who is not let in, and why: certificates that are none of ours, and bytes that are no handshake.
//!
//! Each reason is a counter on the server's /metrics and, where a person has to act on it, a line in its log.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use bgb_protocol::ids::{DeviceGuid, DeviceId, ServerId, SiteCode, UnixMillis};
use bgb_protocol::message::AgentMessage;
use bgb_site::authority::Validity;
use bgb_site::{Authority, IssuedCertificate, SiteFolder};

use crate::peer::{self, Credentials, Peer};
use crate::site::{Site, now};
use crate::wait::{SOON, until_equal};

const HOUR_MS: u64 = 60 * 60 * 1000;

/// From two hours ago until one hour ago.
fn over() -> Validity {
    let now = now();
    Validity { not_before: UnixMillis(now.0 - 2 * HOUR_MS), not_after: UnixMillis(now.0 - HOUR_MS) }
}

fn guid() -> DeviceGuid {
    "0193f1c2-7d3a-7c55-8a0e-2b9c5d1e6f70".parse().unwrap()
}

/// An authority that is not the site's, for a site of this code.
fn foreign_authority(site: &Site, code: &str) -> Authority {
    let folder = SiteFolder::new(site.path(&format!("foreign-{code}")));
    std::fs::create_dir_all(folder.authority()).unwrap();
    Authority::create(&folder, code.parse::<SiteCode>().unwrap(), now()).unwrap()
}

/// Whoever shows this is sent away: the connection ends, for this reason, with no session and no push.
#[track_caller]
fn is_sent_away(site: &Site, shown: Option<&IssuedCertificate>, reason: &str) {
    let before = site.closed(1, reason);
    let credentials = shown.map(Credentials::issued);
    let mut peer = peer::connect(site, 1, credentials.as_ref());
    // With TLS 1.3 a client is done before the server has seen its certificate; the answer comes as an alert.
    if peer.shake_hands().is_ok() {
        let mut hello = Vec::new();
        AgentMessage::Hello(Box::new(peer::hello(1, 1))).encode(&mut hello);
        // The server may have closed already.
        let _ = peer.send(&hello);
    }
    assert!(peer.is_ended_within(SOON), "the server keeps a connection that it should refuse");
    site.wait_closed(reason, before + 1);
    site.wait_server_log(&[reason]);
    assert_eq!((site.metric(1, "bgb_server_sessions"), site.metric(1, "bgb_server_sign_ins_total")), (0, 0));
}

/// A server counts an end before it has put the connection away.
#[track_caller]
fn holds_no_connection(site: &Site) {
    until_equal("connections of the server", SOON, &0, || site.metric(1, "bgb_server_connections"));
}

#[test]
fn a_device_without_a_good_certificate_is_refused_and_the_log_and_a_counter_say_why() {
    let mut site = Site::new(1);
    site.start_server(1);
    let ours = site.authority();
    let device = DeviceId(0);

    is_sent_away(&site, None, "no-certificate");
    let foreign = foreign_authority(&site, "LAB").issue_device(device, guid(), now()).unwrap();
    is_sent_away(&site, Some(&foreign), "wrong-authority");
    let expired = ours.issue_device_for(device, guid(), over()).unwrap();
    is_sent_away(&site, Some(&expired), "certificate-expired");
    let early = Validity { not_before: now().plus(HOUR_MS), not_after: now().plus(2 * HOUR_MS) };
    let early = ours.issue_device_for(device, guid(), early).unwrap();
    is_sent_away(&site, Some(&early), "certificate-not-yet-valid");
    // A server's certificate is for servers, and TLS itself says so before its role is read.
    let server = ours.issue_server(ServerId(1), &[site.address().to_string()], now()).unwrap();
    is_sent_away(&site, Some(&server), "bad-certificate");
}

#[test]
fn a_device_of_another_site_is_refused_also_when_the_authority_is_the_same() {
    let mut site = Site::new(1);
    // An authority that has signed for two sites: the server trusts it, and still knows its own site.
    let other = foreign_authority(&site, "OTH");
    let authorities = format!("{}{}", site.authority().certificate_pem(), other.certificate_pem());
    std::fs::write(site.folder().authority_certificate(), authorities).unwrap();
    site.start_server(1);
    let device = other.issue_device(DeviceId(0), guid(), now()).unwrap();
    let mut peer = peer::connect(&site, 1, Some(&Credentials::issued(&device)));
    let _ = peer.shake_hands();
    assert!(peer.is_ended_within(SOON));
    site.wait_closed("wrong-site", 1);
    site.wait_server_log(&["wrong-site", "urn:bgb:OTH:device:0"]);
}

#[test]
fn garbage_instead_of_a_handshake_ends_the_connection_and_is_counted() {
    let mut site = Site::new(1);
    site.start_server(1);
    let mut garbage: Vec<u8> = (0..4096_u32).map(|number| (number * 31 % 251) as u8).collect();
    // Anything but the type of a TLS record at the beginning.
    garbage[0] = b'G';
    let mut peer = peer::connect(&site, 1, None);
    // The server may end it before it has all been sent.
    let _ = peer.stream().write_all(&garbage);
    assert!(peer.is_ended_within(SOON));
    site.wait_closed("handshake-garbage", 1);

    // A record that is one, and says nothing that a handshake begins with.
    let mut peer = peer::connect(&site, 1, None);
    let _ = peer.stream().write_all(&[22, 3, 1, 0, 5, 99, 0, 0, 1, 0]);
    assert!(peer.is_ended_within(SOON));
    site.wait_closed("handshake-failed", 1);
    holds_no_connection(&site);
}

#[test]
fn a_handshake_that_stops_half_way_or_trickles_on_ends_after_ten_seconds() {
    let mut site = Site::new(1);
    site.start_server(1);
    // The beginning of a ClientHello, and then nothing.
    let mut half = peer::connect(&site, 1, None);
    half.stream().write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).unwrap();
    // A connection that says nothing at all.
    let mut silent = peer::connect(&site, 1, None);
    // One that says a byte of a long record now and then: each read is progress, and still it has to end.
    let address = site.server_address(1);
    let trickle = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&[22, 3, 1, 0x40, 0]).unwrap();
        let begun = std::time::Instant::now();
        while begun.elapsed() < SOON && stream.write_all(&[1]).is_ok() {
            // The pace of the attack, not a wait for anything.
            std::thread::sleep(Duration::from_millis(200));
        }
        begun.elapsed()
    });
    assert!(half.is_ended_within(SOON));
    assert!(silent.is_ended_within(SOON));
    let lasted = trickle.join().unwrap();
    assert!(lasted > Duration::from_secs(8) && lasted < SOON, "it lasted {lasted:?}");
    site.wait_closed("handshake-timed-out", 3);
    holds_no_connection(&site);
}

#[test]
fn a_peer_that_never_finishes_its_handshake_may_not_send_without_end() {
    let mut site = Site::new(1);
    site.start_server(1);
    let mut peer = peer::connect(&site, 1, None);
    // One handshake message of 64 KiB, in records as large as TLS allows: more than anybody needs before showing who it is.
    let message = [22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff, 3, 3];
    let _ = peer.stream().write_all(&message);
    let filler = vec![0; 16 * 1024];
    for _ in 0..8 {
        if peer.stream().write_all(&filler).is_err() {
            break;
        }
    }
    // Long before the ten seconds are over.
    assert!(peer.is_ended_within(Duration::from_secs(5)));
    until_equal("connections have ended for their handshake", SOON, &1, || {
        site.closed(1, "handshake-garbage") + site.closed(1, "handshake-failed")
    });
}

#[test]
fn a_blocked_device_gets_no_session_and_its_present_one_ends() {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    let (mut peer, _) = Peer::sign_in(&site, 1, &device, 1, 1);
    let blocked = site.bgb_of_site(&["device", "block", "pc-1"]);
    assert_eq!(blocked.code(), 0, "{}", blocked.stderr);
    assert!(peer.is_ended_within(SOON));
    site.wait_closed("blocked", 1);
    let mut again = peer::connect(&site, 1, Some(&Credentials::of(&device)));
    again.say(&AgentMessage::Hello(Box::new(peer::hello(1, 2))));
    assert!(again.is_ended_within(SOON));
    site.wait_closed("blocked", 2);
}
