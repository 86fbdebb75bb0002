//! Servers that are none of the site's: an agent does not say a word to them, and its log says why.

use std::net::TcpListener;

use bgb_protocol::ids::{DeviceGuid, DeviceId, ServerId, UnixMillis};
use bgb_site::authority::Validity;
use bgb_site::{Authority, IssuedCertificate, SiteFolder};

use crate::peer::{self, Credentials};
use crate::site::{Device, Site, now};

const HOUR_MS: u64 = 60 * 60 * 1000;

/// The agent, sent to a listener that shows this certificate, ends it without a word and logs these.
#[track_caller]
fn is_refused(site: &Site, device: &Device, shown: &IssuedCertificate, words: &[&str]) {
    let listener = TcpListener::bind((site.address(), 0)).unwrap();
    device.point_at(&[listener.local_addr().unwrap()]);
    let agent = site.start_agent(device);
    let mut server = peer::accept(site, &listener, &Credentials::issued(shown));
    // Most of it is known before the handshake is over, the site behind it; nothing is said in either case.
    if server.shake_hands().is_ok() {
        assert_eq!(server.read_to_end(), b"", "the agent spoke to a false server");
    }
    device.wait_log(words);
    assert_eq!(agent.stop().code(), 0);
}

fn foreign_authority(site: &Site, code: &str) -> Authority {
    let folder = SiteFolder::new(site.path(&format!("foreign-{code}")));
    std::fs::create_dir_all(folder.authority()).unwrap();
    Authority::create(&folder, code.parse().unwrap(), now()).unwrap()
}

fn site_with_device() -> (Site, Device) {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    (site, device)
}

#[test]
fn an_agent_refuses_a_server_of_another_authority_name_or_role() {
    let (site, device) = site_with_device();
    let ours = site.authority();
    let names = [site.address().to_string()];

    let foreign = foreign_authority(&site, "LAB").issue_server(ServerId(1), &names, now()).unwrap();
    is_refused(&site, &device, &foreign, &["not by the site's authority"]);

    let elsewhere = ours.issue_server(ServerId(1), &["bgb.example.org".to_owned()], now()).unwrap();
    is_refused(&site, &device, &elsewhere, &["for another name"]);

    // One device cannot play server to another.
    let guid: DeviceGuid = "0193f1c2-7d3a-7c55-8a0e-2b9c5d1e6f70".parse().unwrap();
    let other = ours.issue_device(DeviceId(7), guid, now()).unwrap();
    is_refused(&site, &device, &other, &["is no server's"]);
}

#[test]
fn an_agent_refuses_a_server_of_another_site_also_when_it_trusts_the_authority() {
    let (site, device) = site_with_device();
    let other = foreign_authority(&site, "OTH");
    // The agent trusts the authority, and still knows its own site.
    std::fs::write(device.folder.join("authority.pem"), other.certificate_pem()).unwrap();
    let shown = other.issue_server(ServerId(1), &[site.address().to_string()], now()).unwrap();
    is_refused(&site, &device, &shown, &["a server of site OTH"]);
}

#[test]
fn an_agent_refuses_a_server_whose_certificate_has_expired() {
    let (site, device) = site_with_device();
    // It has been told the time by a signed head, so its clock alone cannot be to blame.
    let agent = site.start_agent(&device);
    site.wait_online(1);
    assert_eq!(agent.stop().code(), 0);
    let over =
        Validity { not_before: UnixMillis(now().0 - 2 * HOUR_MS), not_after: UnixMillis(now().0 - HOUR_MS) };
    let shown = site.authority().issue_server_for(ServerId(1), &[site.address().to_string()], over).unwrap();
    is_refused(&site, &device, &shown, &["has expired"]);
}
