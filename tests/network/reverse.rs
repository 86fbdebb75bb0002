//! nginx and haproxy in front of a server: a push is a push behind them as well.

use crate::device::{Visitor, fleet, lines, push_and_answer};
use crate::proxy::{self, Home, Proxy};
use crate::settings::Settings;
use crate::site::Site;
use crate::wait::{SOON, until_equal};

/// A certificate that no agent has ever heard of, with its key.
fn strange_certificate() -> (String, String) {
    let names = vec!["balancer.example".to_owned()];
    let certified = rcgen::generate_simple_self_signed(names).unwrap();
    (certified.cert.pem(), certified.signing_key.serialize_pem())
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

/// haproxy as the document has it, in front of both servers of the site.
pub(crate) fn haproxy(site: &Site, http: std::net::SocketAddr, https: std::net::SocketAddr) -> Proxy {
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
