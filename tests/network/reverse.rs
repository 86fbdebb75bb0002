//! nginx and haproxy in front of a server: a push is a push behind them as well.

use std::net::{SocketAddr, TcpListener};

use bgb_protocol::action::Action;
use bgb_protocol::message::{Road, RoadReason, RoadTaken};
use rcgen::{CertificateParams, DnType, KeyPair};

use crate::agent;
use crate::carrier::Carrier;
use crate::device::{Visitor, fleet, lines, push_and_answer};
use crate::proxy::{self, Home, Proxy};
use crate::settings::Settings;
use crate::site::Site;
use crate::wait::{SOON, until_equal};

/// Who has signed certificates that no agent has ever heard of.
const ISSUER: &str = "Balancer Example";

/// Such a certificate, with its key.
fn strange_certificate() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["balancer.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, ISSUER);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_push_reaches_devices_behind_nginx_on_both_roads_over_http_and_https() {
    let site = Site::running(1);
    let devices = fleet(&site, 4);
    let (http, https) = (proxy::address(&site, 1), proxy::address(&site, 2));
    let home = Home::new();
    let (certificate, key) = strange_certificate();
    let settings = Settings::of("nginx: one server")
        .put("192.0.2.11:8080", site.http_address(1))
        .put("192.0.2.10:80;", format!("{http};"))
        .put("192.0.2.10:443", https)
        .put("/etc/nginx/bgb.pem", home.write("bgb.pem", &certificate).display())
        .put("/etc/nginx/bgb.key", home.write("bgb.key", &key).display());
    let _nginx = Proxy::nginx_in(&site, home, settings.text(), &[http, https]);
    let lines = [lines("nginx", http, false), lines("nginx", https, true)].into_iter().flatten();
    let mut visitors: Vec<_> = lines
        .zip(&devices)
        .map(|((road, line), device)| Visitor::sign_in(&site, device, road, line))
        .collect();
    site.wait_online(4);
    for _ in 0..3 {
        push_and_answer(&site, &mut visitors);
    }
    // Whoever goes, is gone.
    drop(visitors);
    until_equal("sessions on WebSocket", SOON, &2, || site.metric(1, "bgb_server_sessions"));
}

#[test]
fn a_push_reaches_devices_behind_haproxy_on_both_roads_over_http_and_https() {
    let site = Site::running(2);
    let devices = fleet(&site, 4);
    let (http, https) = (proxy::address(&site, 1), proxy::address(&site, 2));
    let _haproxy = haproxy(&site, http, https);
    let lines = [lines("haproxy", http, false), lines("haproxy", https, true)].into_iter().flatten();
    let mut visitors: Vec<_> = lines
        .zip(&devices)
        .map(|((road, line), device)| Visitor::sign_in(&site, device, road, line))
        .collect();
    site.wait_online(4);
    for _ in 0..3 {
        push_and_answer(&site, &mut visitors);
    }
}

#[test]
fn whoever_opens_the_outer_tls_is_named_by_the_agent_and_sees_nothing_of_the_session() {
    let site = Site::running(1);
    let devices = fleet(&site, 2);
    // nginx shows a certificate of its own, and passes on over HTTP what it has opened: there is looked.
    let (https, seen_at) = (proxy::address(&site, 1), proxy::address(&site, 2));
    let inside = Carrier::between(TcpListener::bind(seen_at).unwrap(), site.http_address(1));
    let home = Home::new();
    let (certificate, key) = strange_certificate();
    let settings = Settings::of("nginx: one server")
        .put("192.0.2.11:8080", seen_at)
        .without("listen 192.0.2.10:80;")
        .put("192.0.2.10:443", https)
        .put("/etc/nginx/bgb.pem", home.write("bgb.pem", &certificate).display())
        .put("/etc/nginx/bgb.key", home.write("bgb.key", &key).display());
    let _nginx = Proxy::nginx_in(&site, home, settings.text(), &[https]);
    for (device, other) in devices.iter().zip(["long_poll", "websocket"]) {
        agent::configure(&site, device, https.port(), agent::NOBODY);
        agent::change(device, &format!("[roads]\n{other} = false"));
    }
    let agents: Vec<_> = devices.iter().map(|device| site.start_agent(device)).collect();
    for (device, expected) in devices.iter().zip([Road::WebSocket, Road::LongPoll]) {
        let reason = Some(RoadReason::Intercepted(ISSUER.to_owned()));
        let taken = RoadTaken { road: expected, outer_tls: true, proxied: false, reason };
        assert_eq!(agent::road(&site, device), taken);
    }
    let tasks = [Action::Ping, Action::CollectInventory].map(|action| site.start_task(action, "lab"));
    tasks.iter().for_each(|task| site.wait_succeeded(*task, 2));
    drop(agents);
    let seen = inside.seen();
    let has = |words: &[u8]| seen.windows(words.len()).any(|bytes| bytes == words);
    for words in ["GET /bgb/websocket", "POST /bgb/tunnel", "Bgb-Received", "User-Agent: bgb-agent/", "bgb/1"]
    {
        assert!(has(words.as_bytes()), "{words:?} is seen in the middle");
    }
    let details = site.device(&devices[0]);
    let mut secrets: Vec<Vec<u8>> = vec![
        b"BGB site".to_vec(),
        b"collect-inventory".to_vec(),
        // The inventory's.
        b"addresses".to_vec(),
        details.hostname.unwrap().into_bytes(),
        details.row.guid.to_string().into_bytes(),
    ];
    for task in tasks {
        secrets.push(task.to_string().into_bytes());
        secrets.push(uuid::Uuid::parse_str(&task.to_string()).unwrap().as_bytes().to_vec());
    }
    // What is shorter than this stands in random bytes now and then.
    for secret in secrets.into_iter().filter(|secret| secret.len() >= 8) {
        assert!(!has(&secret), "{:?} is seen in the middle", String::from_utf8_lossy(&secret));
    }
}

#[test]
fn behind_nginx_that_knows_no_websockets_an_agent_takes_long_poll() {
    let site = Site::running(1);
    let device = fleet(&site, 1).remove(0);
    let listen = proxy::address(&site, 1);
    let settings = Settings::of("nginx: one server")
        .put("192.0.2.11:8080", site.http_address(1))
        .put("192.0.2.10:80;", format!("{listen};"))
        .without("443 ssl")
        .without("ssl_")
        .without("proxy_http_version")
        .without("proxy_set_header Upgrade")
        .without("proxy_set_header Connection");
    let _nginx = Proxy::nginx(&site, settings.text(), &[listen]);
    agent::configure(&site, &device, agent::NOBODY, listen.port());
    let mut running = site.start_agent(&device);
    // Our server says to nginx, which asks without an upgrade, that it wants one.
    let expected = (Road::LongPoll, false, false, Some(RoadReason::ProxyAnswer(426)));
    let words = ["long-poll over HTTP", "a proxy answered 426"];
    agent::works_on(&site, &mut running, &device, "nginx without WebSockets", expected, words);
}

/// haproxy as the document has it, in front of both servers of the site.
pub(crate) fn haproxy(site: &Site, http: SocketAddr, https: SocketAddr) -> Proxy {
    let home = Home::new();
    let (certificate, key) = strange_certificate();
    let settings = Settings::of("haproxy: several servers")
        .put("192.0.2.10:80\n", format!("{http}\n"))
        .put("192.0.2.10:443", https)
        .put("/etc/haproxy/bgb.pem", home.write("bgb.pem", &(certificate + &key)).display())
        .put("192.0.2.11:8080", site.http_address(1))
        .put("192.0.2.12:8080", site.http_address(2));
    Proxy::haproxy_in(site, home, settings.text(), "50s", &[http, https])
}
