//! Agents as they are shipped, on whatever road: how one is configured, and what the site shows of it.

use std::net::SocketAddr;
use std::time::Duration;

use bgb_protocol::action::Action;
use bgb_protocol::message::{Road, RoadReason, RoadTaken};
use toml::Table;

use crate::process::Process;
use crate::settings::Settings;
use crate::site::{Device, Site, edit_toml};
use crate::wait::{LONG, until};

/// Of an agent's first climb, which may have to wait for one road or another, and of going round once more.
pub(crate) const SIGNED_IN: Duration = LONG;

/// A port at which nobody listens, on any site's address.
pub(crate) const NOBODY: u16 = 21_999;

/// Lets the device's agent believe that its server's TCP port is one where nobody listens, and that its HTTP ports are these; nothing of the
/// test's environment is its.
pub(crate) fn configure(site: &Site, device: &Device, https: u16, http: u16) {
    device.point_at(&[SocketAddr::new(site.address(), NOBODY)]);
    let ports = Settings::of("agent.toml: other ports").put("443", https).put("80", http);
    // What comes of each road is said at this level.
    let rest = "[proxy]\nuse_environment = false\n[log]\nlevel = \"debug\"".parse().unwrap();
    edit_toml(&device.config(), |config| {
        merge(config, ports.text().parse().unwrap());
        merge(config, rest);
    });
}

/// Changes the device's `agent.toml` by what these lines say.
pub(crate) fn change(device: &Device, lines: &str) {
    edit_toml(&device.config(), |config| merge(config, lines.parse().unwrap()));
}

fn merge(config: &mut Table, more: Table) {
    for (key, value) in more {
        match (config.get_mut(&key), value) {
            (Some(toml::Value::Table(section)), toml::Value::Table(more)) => section.extend(more),
            (_, value) => drop(config.insert(key, value)),
        }
    }
}

/// What the hello of the device's present session said of its road; it comes soon.
#[track_caller]
pub(crate) fn road(site: &Site, device: &Device) -> RoadTaken {
    until(&format!("{} is online", device.name), SIGNED_IN, || {
        let row = site.device(device).row;
        row.road.filter(|_| row.connectivity == bgb_protocol::api::Connectivity::Online)
    })
}

/// The device signs in on this road, for this reason; a task is done there, and `bgb` says by which road it comes, and why.
#[track_caller]
pub(crate) fn works_on(
    site: &Site,
    agent: &mut Process,
    device: &Device,
    what: &str,
    expected: (Road, bool, bool, Option<RoadReason>),
    in_words: [&str; 2],
) {
    let (road_expected, outer_tls, proxied, reason) = expected;
    let taken = road(site, device);
    assert_eq!(
        taken,
        RoadTaken { road: road_expected, outer_tls, proxied, reason },
        "{what}: {}",
        device.log()
    );
    let ordered = std::time::Instant::now();
    let task = site.start_task(Action::Ping, "lab");
    site.wait_succeeded(task, 1);
    println!("agent: {what}: {}: a ping's result after {:.0?}", in_words.join(", "), ordered.elapsed());
    for arguments in [&["status", "--roads"] as &[&str], &["device", "show", &device.name]] {
        let told = site.bgb_of_site(arguments).stdout;
        let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(in_words.iter().all(|words| told.contains(words)), "{what}: {in_words:?} in {told}");
    }
    assert!(agent.is_running());
}
