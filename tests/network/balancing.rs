//! Several servers behind one balancer: a tunnel belongs to one of them, and whoever balances sees in its name to which; else 421 says so.

use std::net::SocketAddr;

use bgb_protocol::message::{Road, RoadReason};

use crate::agent::{self, works_on};
use crate::device::{Visitor, fleet, push_and_answer};
use crate::peer::Peer;
use crate::proxy::{self, Proxy};
use crate::road::{Http, LongPollLine, WebSocketLine};
use crate::settings::Settings;
use crate::site::Site;
use crate::wait::{LONG, SOON, until, until_equal};

/// nginx as the document has it, in front of both servers of the site.
fn nginx_settings(site: &Site, listen: SocketAddr) -> Settings {
    Settings::of("nginx: several servers")
        .put("192.0.2.11:8080", site.http_address(1))
        .put("192.0.2.12:8080", site.http_address(2))
        .put("192.0.2.10:80;", format!("{listen};"))
}

/// Signs all in behind `listen`, and pushes to them.
fn both_servers_push(site: &Site, what: &str, listen: SocketAddr) {
    let devices = fleet(site, 8);
    let (polling, others) = devices.split_at(4);
    let in_tunnels = polling.iter().map(|device| {
        // Each request on a connection of its own, so that it is balanced anew.
        let mut tunnel = LongPollLine::connect(listen, false);
        tunnel.comes_anew = true;
        Visitor::sign_in(site, device, format!("{what}, long-poll"), tunnel)
    });
    let on_websockets = others.iter().map(|device| {
        let line = WebSocketLine::connect(listen, false);
        Visitor::sign_in(site, device, format!("{what}, WebSocket"), line)
    });
    let mut visitors: Vec<_> = in_tunnels.chain(on_websockets).collect();
    site.wait_online(8);
    for server in [1, 2] {
        let (sessions, tunnels) =
            (site.metric(server, "bgb_server_sessions"), site.metric(server, "bgb_server_tunnels"));
        assert!(
            sessions > 0 && tunnels > 0,
            "{what}: server {server}: {sessions} sessions, {tunnels} tunnels"
        );
    }
    push_and_answer(site, &mut visitors);
}

#[test]
fn nginx_sends_a_tunnels_requests_to_its_server_by_its_name() {
    let site = Site::running(2);
    let listen = proxy::address(&site, 1);
    let _nginx = Proxy::nginx(&site, nginx_settings(&site, listen).text(), &[listen]);
    both_servers_push(&site, "nginx", listen);
}

#[test]
fn haproxy_sends_a_tunnels_requests_to_its_server_by_its_name_and_passes_over_one_that_is_down() {
    let mut site = Site::running(2);
    let (listen, https) = (proxy::address(&site, 1), proxy::address(&site, 2));
    let _haproxy = super::reverse::haproxy(&site, listen, https);
    both_servers_push(&site, "haproxy", listen);
    // Its tunnels' requests reach the other server, which says that they are not its own; new ones are opened there.
    assert_eq!(site.take_server(1).stop().code(), 0);
    let device = site.add_device("pc-late");
    let peer = until("a session on the server that is left", SOON, || {
        let mut http = Http::connect(listen, false);
        http.ask("GET", &format!("/bgb/tunnel/00000001{}?from=0", "0".repeat(44)), b"").unwrap();
        // Until haproxy has noticed, it answers itself.
        (http.wait().status == 421)
            .then(|| Peer::by(&site, &device, LongPollLine::connect(listen, false)).greet(1, 1).0)
    });
    drop(peer);
    until_equal("its session", SOON, &true, || site.metric(2, "bgb_server_tunnels") > 0);
}

#[test]
fn an_agent_on_long_poll_whose_server_goes_comes_again_through_the_same_balancer() {
    let mut site = Site::running(2);
    let (listen, https) = (proxy::address(&site, 1), proxy::address(&site, 2));
    let _haproxy = super::reverse::haproxy(&site, listen, https);
    let device = fleet(&site, 1).remove(0);
    agent::configure(&site, &device, agent::NOBODY, listen.port());
    agent::change(&device, "[roads]\nwebsocket = false\nhttps = false");
    let mut agent = site.start_agent(&device);
    let expected = || (Road::LongPoll, false, false, Some(RoadReason::Refused));
    let words = ["long-poll over HTTP", "TCP was refused"];
    works_on(&site, &mut agent, &device, "haproxy, two servers", expected(), words);
    let server = site.device(&device).row.server.unwrap().0;
    // Without a word to anybody: what it does not know is answered 421 by the other.
    site.take_server(server).kill();
    let other = 3 - server;
    until_equal("its session is at the other server", LONG, &Some(other), || {
        site.device(&device).row.server.map(|server| server.0)
    });
    works_on(&site, &mut agent, &device, "haproxy, the other server", expected(), words);
}

#[test]
fn a_balancer_that_knows_nothing_of_tunnels_gets_421_and_websockets_do_not_care() {
    let site = Site::running(2);
    let listen = proxy::address(&site, 1);
    let settings = nginx_settings(&site, listen).without("~^/bgb/tunnel/").without("least_conn");
    let _nginx = Proxy::nginx(&site, settings.text(), &[listen]);
    // A tunnel is opened at one server; of two requests one after the other each server gets one.
    let mut http = Http::connect(listen, false);
    http.ask("POST", "/bgb/tunnel", b"not TLS, but bytes").unwrap();
    let opened = http.wait();
    assert_eq!(opened.status, 201, "{opened:?}");
    let id = opened.field("Bgb-Tunnel").unwrap().to_owned();
    let mut statuses: Vec<_> = (0..2)
        .map(|_| {
            let mut http = Http::connect(listen, false);
            http.ask("GET", &format!("/bgb/tunnel/{id}?from=0&hold=1"), b"").unwrap();
            http.wait().status
        })
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 421]);
    // A WebSocket is one connection, at whichever server.
    let devices = fleet(&site, 4);
    let mut visitors: Vec<_> = devices
        .iter()
        .map(|device| {
            Visitor::sign_in(&site, device, "nginx, WebSocket", WebSocketLine::connect(listen, false))
        })
        .collect();
    push_and_answer(&site, &mut visitors);
    for server in [1, 2] {
        until_equal("sessions of a server", SOON, &2, || site.metric(server, "bgb_server_sessions"));
    }
}
