//! Proxies that cut what is silent: nginx's 60 s, haproxy's 30 s, unless their administrators say otherwise.
//!
//! What is tested here are minutes, and nothing makes them shorter: so whatever waits, waits beside everything else.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bgb_protocol::action::Action;
use bgb_protocol::message::Road;

use crate::agent;
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
    let _nginx = nginx_with_its_own_timeouts(&site, listen);
    idle_behind(&site, "nginx with its own time-outs", listen, Duration::from_secs(60));
}

#[test]
fn haproxy_cuts_after_30_seconds_of_silence_and_whoever_pings_or_asks_sooner_stays() {
    let site = patient_site();
    let listen = proxy::address(&site, 1);
    let _haproxy = haproxy_with_30_seconds(&site, listen);
    idle_behind(&site, "haproxy with 30 s", listen, Duration::from_secs(30));
}

fn nginx_with_its_own_timeouts(site: &Site, listen: SocketAddr) -> Proxy {
    let settings = Settings::of("nginx: one server").put("192.0.2.11:8080", site.http_address(1));
    let settings = settings.put("192.0.2.10:80;", format!("{listen};"));
    let settings = settings.without("443 ssl").without("ssl_").without("proxy_read_timeout");
    Proxy::nginx(site, settings.text(), &[listen])
}

fn haproxy_with_30_seconds(site: &Site, listen: SocketAddr) -> Proxy {
    haproxy_that_cuts_after(site, listen, "30s")
}

fn haproxy_that_cuts_after(site: &Site, listen: SocketAddr, silence: &str) -> Proxy {
    let settings = Settings::of("haproxy: several servers")
        .put("192.0.2.10:80\n", format!("{listen}\n"))
        .put("192.0.2.11:8080", site.http_address(1))
        .without("server two")
        .without("443")
        .without("timeout ");
    Proxy::haproxy(site, settings.text(), silence, &[listen])
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
                inside.lock().unwrap().ping();
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

/// How long agents are left alone: three of nginx's time-outs and some.
const LEFT_ALONE: Duration = Duration::from_secs(200);
/// By then they have learned what cuts them, the last of them.
const LEARNED: Duration = Duration::from_secs(150);

#[test]
fn agents_learn_what_cuts_them_and_a_push_reaches_them_after_minutes_without_a_word() {
    let site = patient_site();
    let (behind_nginx, behind_haproxy) = (proxy::address(&site, 1), proxy::address(&site, 2));
    let _nginx = nginx_with_its_own_timeouts(&site, behind_nginx);
    let _haproxy = haproxy_with_30_seconds(&site, behind_haproxy);
    let ways = [
        ("nginx", behind_nginx, "websocket"),
        ("nginx", behind_nginx, "long_poll"),
        ("haproxy", behind_haproxy, "websocket"),
        ("haproxy", behind_haproxy, "long_poll"),
    ];
    let devices = fleet(&site, ways.len());
    let _agents: Vec<_> = ways
        .iter()
        .zip(&devices)
        .map(|((_, listen, road), device)| {
            agent::configure(&site, device, agent::NOBODY, listen.port());
            let other = if *road == "websocket" { "long_poll" } else { "websocket" };
            agent::change(device, &format!("[roads]\n{other} = false\nhttps = false"));
            site.start_agent(device)
        })
        .collect();
    let begun = Instant::now();
    site.wait_online(ways.len());
    let session = |device: &Device| site.device(device).session;
    let mut sessions: Vec<_> = devices.iter().map(session).collect();
    while begun.elapsed() < LEFT_ALONE {
        // What is tested takes its time, whatever else there is to wait for.
        std::thread::sleep(Duration::from_secs(1));
        for (((proxy, _, road), device), known) in ways.iter().zip(&devices).zip(&mut sessions) {
            let now = session(device);
            if now != *known {
                println!("idle: {proxy}, {road}: session {now:?} after {:.0?}", begun.elapsed());
                assert!(begun.elapsed() < LEARNED, "{proxy}, {road}: it is cut again and again");
                *known = now;
            }
        }
    }
    let ordered = Instant::now();
    let task = site.start_task(Action::Ping, "lab");
    site.wait_succeeded(task, ways.len() as u64);
    println!("idle: four results after {:.1?}", ordered.elapsed());
    assert!(ordered.elapsed() < Duration::from_secs(5), "{:?}", ordered.elapsed());
    for ((_, _, road), device) in ways.iter().zip(&devices) {
        let expected = if *road == "websocket" { Road::WebSocket } else { Road::LongPoll };
        assert_eq!(agent::road(&site, device).road, expected);
    }
}

#[test]
fn what_cuts_after_seconds_leaves_an_agent_on_long_poll() {
    let site = patient_site();
    let listen = proxy::address(&site, 1);
    let _haproxy = haproxy_that_cuts_after(&site, listen, "8s");
    let device = fleet(&site, 1).remove(0);
    agent::configure(&site, &device, agent::NOBODY, listen.port());
    agent::change(&device, "[roads]\nhttps = false");
    let _agent = site.start_agent(&device);
    assert_eq!(agent::road(&site, &device).road, Road::WebSocket);
    until_equal("the road that is left", agent::SIGNED_IN, &Some(Road::LongPoll), || {
        site.device(&device).row.road.map(|taken| taken.road)
    });
    let session = site.device(&device).session;
    // It has to be told of the cuts of its GETs as well, and bears them.
    std::thread::sleep(Duration::from_secs(30));
    let task = site.start_task(Action::Ping, "lab");
    site.wait_succeeded(task, 1);
    assert_eq!(site.device(&device).session, session, "{}", device.log());
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
