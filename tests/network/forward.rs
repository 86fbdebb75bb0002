//! Agents behind forward proxies: squid, which lets through, asks for passwords or inspects; tinyproxy.
//!
//! Each agent is on an island of its own, from which nothing but the proxy leads anywhere: TCP to the server is refused, and so is HTTP.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use bgb_protocol::api::Connectivity;
use bgb_protocol::message::{Road, RoadReason};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

use crate::agent::{change, configure, works_on};
use crate::device::fleet;
use crate::island::{Island, is_possible};
use crate::proxy::{self, Home, Proxy};
use crate::settings::Settings;
use crate::site::{Device, Site};
use crate::wait::{stays_true, until_true};

/// The name that an inspecting proxy's authority has.
const INSPECTOR: &str = "Example Inspection";

/// An agent's roads where only plain requests are left.
const ONLY_REQUESTS: &str = "[roads]\nwebsocket = false\nhttps = false";

/// A password that is not the one.
const WRONG: &str = "not-the-right-one";

/// A site, a device whose agent knows the proxy, and where that is to listen.
struct Scene {
    site: Site,
    device: Device,
    listen: SocketAddr,
    _island: Island,
}

impl Scene {
    fn new() -> Self {
        let mut site = Site::running(1);
        let device = fleet(&site, 1).remove(0);
        let listen = proxy::address(&site, 1);
        let island = Island::new(&site, &[listen]);
        island.settle(&mut site, &device, &[]);
        configure(&site, &device, site.https_address(1).port(), site.http_address(1).port());
        let scene = Self { site, device, listen, _island: island };
        change(&scene.device, &format!("[proxy]\nurl = \"http://{}\"", scene.listen));
        scene
    }

    /// tinyproxy as the document has it, with this site's server.
    fn tinyproxy(&self) -> Proxy {
        let settings = Settings::of("tinyproxy: devices may reach their servers")
            .put("8443", self.site.https_address(1).port())
            .put("8080", self.site.http_address(1).port());
        Proxy::tinyproxy(&self.site, settings.text(), self.listen)
    }

    /// The agent has these variables, on an island that is given, and its own configuration says nothing of a proxy any more.
    fn ask_the_environment(&mut self, environment: &[(&str, String)]) -> Island {
        let island = Island::new(&self.site, &[self.listen]);
        island.settle(&mut self.site, &self.device, environment);
        let config = std::fs::read_to_string(self.device.config()).unwrap();
        let without: String = config
            .lines()
            .filter(|line| !line.starts_with("url =") && !line.starts_with("use_environment"))
            .flat_map(|line| [line, "\n"])
            .collect();
        std::fs::write(self.device.config(), without).unwrap();
        island
    }

    /// A block of squid's in the document, with this site's server.
    fn squid(&self, name: &str) -> Settings {
        Settings::of(name)
            .put("192.0.2.11 192.0.2.12", self.site.address())
            .put("8080", self.site.http_address(1).port())
            .put("8443", self.site.https_address(1).port())
    }

    #[track_caller]
    fn works(&self, what: &str, expected: (Road, bool, bool, Option<RoadReason>), in_words: [&str; 2]) {
        let mut agent = self.site.start_agent(&self.device);
        works_on(&self.site, &mut agent, &self.device, what, expected, in_words);
        assert_eq!(agent.stop().code(), 0);
    }
}

#[test]
fn squid_that_may_lets_a_websocket_over_https_through() {
    if !is_possible("squid") {
        return;
    }
    let scene = Scene::new();
    let settings = scene.squid("squid: devices may reach their servers");
    let _squid = Proxy::squid(&scene.site, Home::new(), settings.text(), scene.listen);
    let words = ["WebSocket over HTTPS through a proxy", "TCP was refused"];
    scene.works("squid", (Road::WebSocket, true, true, Some(RoadReason::Refused)), words);
}

#[test]
fn the_proxy_of_the_environment_is_as_good_as_one_that_is_configured() {
    if !is_possible("squid from the environment") {
        return;
    }
    let mut scene = Scene::new();
    let url = format!("http://{}", scene.listen);
    let _island = scene.ask_the_environment(&[("https_proxy", url), ("no_proxy", "example.org".into())]);
    let settings = scene.squid("squid: devices may reach their servers");
    let _squid = Proxy::squid(&scene.site, Home::new(), settings.text(), scene.listen);
    let words = ["WebSocket over HTTPS through a proxy", "TCP was refused"];
    scene.works(
        "squid, from the environment",
        (Road::WebSocket, true, true, Some(RoadReason::Refused)),
        words,
    );
}

#[test]
fn squid_that_was_told_nothing_forbids_connect_and_long_poll_gets_through() {
    if !is_possible("squid as it comes") {
        return;
    }
    let scene = Scene::new();
    let _squid = Proxy::squid(&scene.site, Home::new(), "", scene.listen);
    let reason = Some(RoadReason::ProxyAnswer(403));
    let words = ["long-poll over HTTP through a proxy", "a proxy answered 403"];
    scene.works("squid as it comes", (Road::LongPoll, false, true, reason), words);
}

#[test]
fn tinyproxy_lets_a_websocket_over_https_through() {
    if !is_possible("tinyproxy") {
        return;
    }
    let scene = Scene::new();
    let _tinyproxy = scene.tinyproxy();
    let words = ["WebSocket over HTTPS through a proxy", "TCP was refused"];
    scene.works("tinyproxy", (Road::WebSocket, true, true, Some(RoadReason::Refused)), words);
}

#[test]
fn tinyproxy_forwards_the_requests_of_long_poll() {
    if !is_possible("tinyproxy, long-poll") {
        return;
    }
    let scene = Scene::new();
    let _tinyproxy = scene.tinyproxy();
    change(&scene.device, ONLY_REQUESTS);
    let words = ["long-poll over HTTP through a proxy", "TCP was refused"];
    scene.works("tinyproxy", (Road::LongPoll, false, true, Some(RoadReason::Refused)), words);
}

#[test]
fn a_server_that_no_proxy_names_is_asked_for_straight_or_not_at_all() {
    if !is_possible("no_proxy") {
        return;
    }
    let mut scene = Scene::new();
    let url = format!("http://{}", scene.listen);
    let excepted = format!("example.org, {}", scene.site.address());
    let _island = scene.ask_the_environment(&[("all_proxy", url), ("no_proxy", excepted)]);
    let settings = scene.squid("squid: devices may reach their servers");
    let _squid = Proxy::squid(&scene.site, Home::new(), settings.text(), scene.listen);
    let agent = scene.site.start_agent(&scene.device);
    scene.device.wait_log(&["long-poll-http"]);
    let is_offline = || scene.site.device(&scene.device).row.connectivity != Connectivity::Online;
    stays_true("it is not online", std::time::Duration::from_secs(3), is_offline);
    assert!(!scene.device.log().contains("-proxy"), "{}", scene.device.log());
    assert_eq!(agent.stop().code(), 0);
}

/// A folder of squid's with a password for `bgb`.
fn home_with_passwords() -> Home {
    let home = Home::new();
    let hash = home.run("openssl", &["passwd", "-apr1", "right: one"]);
    home.write("passwords", &format!("bgb:{hash}"));
    home
}

/// Gives the agent a user and a password.
fn give_password(scene: &Scene, password: &str) {
    let settings =
        Settings::of("agent.toml: a proxy that asks for a password").put("192.0.2.1:3128", scene.listen);
    change(&scene.device, settings.text());
    let path = scene.device.folder.join("proxy.password");
    std::fs::write(&path, password).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn squid_that_asks_for_a_password_takes_the_right_one_only_and_the_agent_says_so() {
    if !is_possible("squid with passwords") {
        return;
    }
    let scene = Scene::new();
    let home = home_with_passwords();
    let settings = scene
        .squid("squid: the same, with a password")
        .put("/etc/squid/passwords", home.path("passwords").display());
    let _squid = Proxy::squid(&scene.site, home, settings.text(), scene.listen);
    let is_offline = || scene.site.device(&scene.device).row.connectivity != Connectivity::Online;
    for (password, words) in
        [(None, "asks for credentials (407)"), (Some(WRONG), "does not take the credentials")]
    {
        if let Some(password) = password {
            give_password(&scene, password);
        }
        let agent = scene.site.start_agent(&scene.device);
        scene.device.wait_log(&[words]);
        assert!(!scene.device.log().contains(WRONG), "a password is in the log");
        stays_true("it is not online", std::time::Duration::from_secs(3), is_offline);
        assert_eq!(agent.stop().code(), 0);
    }
    give_password(&scene, "right: one");
    let words = ["WebSocket over HTTPS through a proxy", "TCP was refused"];
    scene.works("squid with a password", (Road::WebSocket, true, true, Some(RoadReason::Refused)), words);
    // Each request of long-poll says it, too.
    until_true("it is offline again", crate::wait::SOON, is_offline);
    change(&scene.device, ONLY_REQUESTS);
    let words = ["long-poll over HTTP through a proxy", "TCP was refused"];
    scene.works("squid with a password", (Road::LongPoll, false, true, Some(RoadReason::Refused)), words);
}

#[test]
fn a_password_that_is_asked_for_on_some_roads_only_is_the_reason_for_the_others() {
    if !is_possible("squid with passwords for CONNECT") {
        return;
    }
    let scene = Scene::new();
    let home = home_with_passwords();
    let settings = scene
        .squid("squid: the same, with a password")
        .put("/etc/squid/passwords", home.path("passwords").display());
    // What is no CONNECT goes through by what stands below.
    let settings = settings.put("http_access allow bgb_servers", "http_access allow CONNECT bgb_servers");
    let _squid = Proxy::squid(&scene.site, home, settings.text(), scene.listen);
    let reason = Some(RoadReason::ProxyAnswer(407));
    let words = ["long-poll over HTTP through a proxy", "a proxy answered 407"];
    scene.works("squid with a password for CONNECT", (Road::LongPoll, false, true, reason), words);
}

/// squid as an inspecting proxy.
fn inspecting(scene: &Scene, change: impl FnOnce(Settings) -> Settings) -> Proxy {
    let home = Home::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, INSPECTOR);
    let certificate = params.self_signed(&key).unwrap();
    let inspection = home.write("inspection.pem", &(certificate.pem() + &key.serialize_pem()));
    let authority = home.write("authority.pem", scene.site.authority().certificate_pem());
    let certificates = home.path("certificates");
    home.run(
        "/usr/lib/squid/security_file_certgen",
        &["-c", "-s", certificates.to_str().unwrap(), "-M", "4MB"],
    );
    let settings = scene
        .squid("squid: an inspecting proxy that lets WebSockets through")
        .put("192.0.2.1:3128", scene.listen)
        .put("/etc/squid/inspection.pem", inspection.display())
        .put("/etc/squid/bgb-authority.pem", authority.display())
        .put("/var/lib/squid/certificates", certificates.display());
    Proxy::squid(&scene.site, home, change(settings).text(), scene.listen)
}

#[test]
fn squid_that_inspects_is_told_by_its_issuer_and_a_websocket_works_through_it() {
    if !is_possible("squid that inspects") {
        return;
    }
    let scene = Scene::new();
    let _squid = inspecting(&scene, |settings| settings);
    let reason = Some(RoadReason::Intercepted(INSPECTOR.to_owned()));
    let words = ["WebSocket over HTTPS through a proxy", "Example Inspection"];
    scene.works("squid that inspects", (Road::WebSocket, true, true, reason), words);
}

#[test]
fn squid_that_inspects_and_knows_no_websockets_leaves_long_poll() {
    if !is_possible("squid that inspects, without WebSockets") {
        return;
    }
    let scene = Scene::new();
    let squid = inspecting(&scene, |settings| settings.without("http_upgrade_request_protocols"));
    let reason = Some(RoadReason::Intercepted(INSPECTOR.to_owned()));
    let words = ["long-poll over HTTPS through a proxy", "Example Inspection"];
    scene.works("squid that inspects, without WebSockets", (Road::LongPoll, true, true, reason), words);
    // It did look inside: its log has the requests of the tunnel.
    until_true("squid's log has what it opened", crate::wait::SOON, || {
        let log = std::fs::read_to_string(squid.home().path("access.log")).unwrap_or_default();
        log.contains("/bgb/tunnel/") && log.contains("/bgb/websocket")
    });
}
