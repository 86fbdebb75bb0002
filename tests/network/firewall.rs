//! Firewalls between an agent and its server's TCP port, which refuse, reset, or say nothing: HTTPS leads there all the same, and the reason is told.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bgb_protocol::message::{Road, RoadReason};
use socket2::{Domain, Socket, Type};

use crate::agent::{self, works_on};
use crate::device::fleet;
use crate::proxy;
use crate::site::Site;

/// Signs an agent in whose server's TCP port is at `tcp`, and HTTP's ports are the server's own.
#[track_caller]
fn signs_in(site: &Site, tcp: SocketAddr, what: &str, reason: RoadReason, in_words: &str) {
    let device = fleet(site, 1).remove(0);
    agent::configure(site, &device, site.https_address(1).port(), site.http_address(1).port());
    device.point_at(&[tcp]);
    let mut agent = site.start_agent(&device);
    let expected = (Road::WebSocket, true, false, Some(reason));
    works_on(site, &mut agent, &device, what, expected, ["WebSocket over HTTPS", in_words]);
}

#[test]
fn a_firewall_that_refuses_is_told_from_others() {
    let site = Site::running(1);
    let tcp = proxy::address(&site, 1);
    signs_in(&site, tcp, "refused", RoadReason::Refused, "TCP was refused");
}

#[test]
fn a_firewall_that_resets_what_it_does_not_know_is_told_from_others() {
    let site = Site::running(1);
    let tcp = proxy::address(&site, 1);
    let listener = TcpListener::bind(tcp).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // Its first words are looked at, and then a reset is all that comes.
            let stream = Socket::from(stream.unwrap());
            std::thread::sleep(Duration::from_millis(100));
            stream.set_linger(Some(Duration::ZERO)).unwrap();
        }
    });
    signs_in(&site, tcp, "reset", RoadReason::Reset, "TCP was reset");
}

#[test]
fn a_firewall_that_says_nothing_costs_seconds_and_is_told_from_others() {
    let site = Site::running(1);
    let tcp = proxy::address(&site, 1);
    let (_listener, _waiting) = silent(tcp);
    signs_in(&site, tcp, "no answer", RoadReason::TimedOut, "TCP timed out");
}

/// A port from which nothing comes back: its listener takes nobody, and as many wait as may, so that the kernel drops what else comes
/// (listen(2)).
fn silent(address: SocketAddr) -> (Socket, Vec<TcpStream>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let wait = Duration::from_millis(200);
    let waiting = std::iter::from_fn(|| TcpStream::connect_timeout(&address, wait).ok());
    let waiting: Vec<_> = waiting.take(16).collect();
    assert!(waiting.len() < 16, "nobody is dropped");
    (listener, waiting)
}
