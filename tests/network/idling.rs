//! Proxies that cut what is silent: nginx's 60 s, haproxy's 30 s, unless their administrators say otherwise.
//!
//! What is tested here are minutes, and nothing makes them shorter: so whatever waits, waits beside everything else.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tungstenite::Message;

use crate::device::{Shared, Visitor, fleet, push};
use crate::proxy::{self, Proxy};
use crate::road::{Http, LongPollLine, WebSocketLine};
use crate::settings::Settings;
use crate::site::{Device, Site, edit_toml};
use crate::wait::{SOON, until_equal};

/// Less than half of the shortest of the time-outs.
const PING_EVERY: Duration = Duration::from_secs(12);

/// A site whose server does not ask devices to speak within minutes, as in production.
fn patient_site() -> Site {
    let mut site = Site::new(1);
    edit_toml(&site.folder().server_config(bgb_protocol::ids::ServerId(1)), |config| {
        config.insert("keepalive_seconds".into(), 900.into());
    });
    site.start_manager();
    site.start_server(1);
    site
}

#[test]
fn nginx_cuts_after_60_seconds_of_silence_and_whoever_pings_or_asks_sooner_stays() {
    let site = patient_site();
    let listen = proxy::address(&site, 1);
    let settings = Settings::of("nginx: one server").put("192.0.2.11:8080", site.http_address(1));
    let settings = settings.put("192.0.2.10:80;", format!("{listen};"));
    let settings = settings.without("443 ssl").without("ssl_").without("proxy_read_timeout");
    let _nginx = Proxy::nginx(&site, settings.text(), &[listen]);
    idle_behind(&site, "nginx with its own time-outs", listen, Duration::from_secs(60));
}

#[test]
fn haproxy_cuts_after_30_seconds_of_silence_and_whoever_pings_or_asks_sooner_stays() {
    let site = patient_site();
    let listen = proxy::address(&site, 1);
    let settings = Settings::of("haproxy: several servers")
        .put("192.0.2.10:80\n", format!("{listen}\n"))
        .put("192.0.2.11:8080", site.http_address(1))
        .without("server two")
        .without("443")
        .without("timeout ");
    let _haproxy = Proxy::haproxy(&site, settings.text(), "30s", &[listen]);
    idle_behind(&site, "haproxy with 30 s", listen, Duration::from_secs(30));
}

/// What becomes of devices that have nothing to say, behind a proxy that cuts silence after `cut`.
fn idle_behind(site: &Site, what: &str, listen: SocketAddr, cut: Duration) {
    let devices = fleet(site, 4);
    let [silent, pinging, asking, holding] = &devices[..] else { unreachable!("four devices were added") };
    let long = cut + cut / 2;
    let websocket = || WebSocketLine::connect(listen, false);
    std::thread::scope(|scope| {
        // Nothing at all is said: the WebSocket is cut.
        let cutting = scope.spawn(|| {
            let mut visitor = Visitor::sign_in(site, silent, format!("{what}, silent"), websocket());
            visitor.rest(cut - cut / 4);
            assert!(visitor.peer.is_ended_within(cut), "{what}: a silent WebSocket is not cut");
        });
        // A ping before that is enough of a word.
        let pinging = scope.spawn(|| {
            let (line, inside) = Shared::new(websocket());
            let mut visitor = Visitor::sign_in(site, pinging, format!("{what}, WebSocket that pings"), line);
            let begun = Instant::now();
            while begun.elapsed() < long {
                visitor.rest(PING_EVERY);
                inside.lock().unwrap().socket().send(Message::Ping(Vec::new().into())).unwrap();
            }
            visitor
        });
        // So are GETs that are held for less.
        let asking = scope.spawn(|| {
            let mut line = LongPollLine::connect(listen, false);
            line.comes_anew = true;
            let mut visitor =
                Visitor::sign_in(site, asking, format!("{what}, long-poll held for 20 s"), line);
            visitor.rest(long);
            visitor
        });
        // One that is held for longer is cut, or just not; it is asked again, and nothing is lost.
        let holding = scope.spawn(|| hold_too_long(site, holding, what, listen, cut));
        let mut visitors = vec![pinging.join().unwrap(), asking.join().unwrap(), holding.join().unwrap()];
        cutting.join().unwrap();
        until_equal("sessions", SOON, &3, || site.metric(1, "bgb_server_sessions"));
        push(site, &mut visitors);
    });
}

/// A device whose GET is held for as long as it can be.
fn hold_too_long(site: &Site, device: &Device, what: &str, listen: SocketAddr, cut: Duration) -> Visitor {
    let mut line = LongPollLine::connect(listen, false);
    line.comes_anew = true;
    let (line, inside) = Shared::new(line);
    let visitor = Visitor::sign_in(site, device, format!("{what}, long-poll held for 60 s"), line);
    let (id, heard) = {
        let line = inside.lock().unwrap();
        (line.id(), line.heard_bytes())
    };
    let mut http = Http::connect(listen, false);
    let begun = Instant::now();
    http.ask("GET", &format!("/bgb/tunnel/{id}?from={heard}&hold=60"), b"").unwrap();
    let answer = loop {
        assert!(begun.elapsed() < cut + SOON, "{what}: a held GET is neither answered nor cut");
        if let Some(answer) = http.answer().unwrap() {
            break answer;
        }
    };
    let lasted = begun.elapsed();
    println!("{what}: a GET that may be held for 60 s is answered {} after {lasted:.1?}", answer.status);
    assert!(lasted > cut - Duration::from_secs(2), "{what}: {lasted:?}");
    // Where the proxy's time is the server's, either may be first.
    match answer.status {
        504 => {}
        204 => assert!(cut >= Duration::from_secs(60), "{what}: {lasted:?}"),
        other => panic!("{what}: a held GET is answered {other}"),
    }
    visitor
}
