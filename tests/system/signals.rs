//! Signals: a graceful stop, and certificates that are read anew.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;

use bgb_protocol::action::Action;
use bgb_protocol::ids::ServerId;
use bgb_protocol::message::{AgentMessage, ServerMessage};
use bgb_protocol::signature::sha256;
use bgb_protocol::status::StatusId;
use rustix::process::Signal;

use crate::peer::{self, Credentials, Heard, Peer};
use crate::site::{Site, now};

#[test]
fn a_server_that_is_stopped_says_when_to_come_back_and_its_agents_do() {
    let mut site = Site::running(1);
    let devices = site.add_devices((1..=5).map(|number| format!("pc-{number}")));
    let _agents: Vec<_> = devices.iter().map(|device| site.start_agent(device)).collect();
    site.wait_online(5);
    let device = site.add_device("pc-6");
    let (mut peer, welcome) = Peer::sign_in(&site, 1, &device, 1, 1);

    let ended = site.take_server(1).stop();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let heard = peer.hear_until_end();
    let Some(ServerMessage::Drain(drain)) = heard.last() else { panic!("no drain: {heard:?}") };
    assert!((5..=600).contains(&drain.window_secs) && drain.window_secs == welcome.reconnect_window_secs);
    // Its last word on who was there is in the inbox, and the message that it stopped.
    site.wait_online(0);
    site.wait_message(StatusId::ServerStopped, &["good order"]);

    site.start_server(1);
    site.wait_online(5);
    let task = site.start_task(Action::Ping, "all");
    site.wait_succeeded(task, 5);
    site.check();
}

#[test]
fn a_manager_and_an_agent_that_are_stopped_end_in_good_order() {
    let mut site = Site::running(1);
    let device = site.add_device("pc-1");
    let mut agent = site.start_agent(&device);
    agent.wait_ready();
    site.wait_online(1);
    let ended = agent.stop();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    // It said good-bye: nobody has to wait for a keepalive that does not come.
    site.wait_closed("goodbye", 1);
    site.wait_online(0);
    let ended = site.take_manager().stop();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    site.check();
    site.start_manager();
    site.wait_message(StatusId::ManagerStopped, &[]);
}

#[test]
fn certificates_are_read_anew_on_sighup_and_bad_ones_change_nothing() {
    let mut site = Site::running(1);
    let device = site.add_device("pc-1");
    let (mut session, _) = Peer::sign_in(&site, 1, &device, 1, 1);
    let served = |site: &Site| {
        let mut peer = peer::connect(site, 1, Some(&Credentials::of(&device)));
        peer.shake_hands().unwrap();
        sha256(&peer.certificate())
    };
    let first = served(&site);

    let renewed = site.authority().issue_server(ServerId(1), &[site.address().to_string()], now()).unwrap();
    let replace = |path: std::path::PathBuf, bytes: &[u8]| {
        let new = path.with_extension("new");
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        fs::rename(&new, &path).unwrap();
    };
    let folder = site.folder();
    replace(folder.server_certificate(ServerId(1)), renewed.certificate_pem.as_bytes());
    replace(folder.server_key(ServerId(1)), renewed.key_pem.as_bytes());
    site.server(1).signal(Signal::HUP);
    site.wait_message(StatusId::CertificatesReloaded, &["read anew"]);
    let second = served(&site);
    assert_ne!(second, first);
    assert_eq!(second, renewed.fingerprint);

    // Half a file: what is there stays in use, and the message names the file.
    replace(folder.server_certificate(ServerId(1)), &renewed.certificate_pem.as_bytes()[..200]);
    site.server(1).signal(Signal::HUP);
    site.wait_message(StatusId::CertificatesNotReloaded, &["server.pem", "old ones stay"]);
    assert_eq!(served(&site), second);

    // The session of before went through all of it.
    session.say(&AgentMessage::Keepalive);
    assert!(matches!(session.hear(), Heard::Message(_)));
    assert!(!session.is_ended_within(std::time::Duration::from_millis(100)));
    assert!(site.server(1).is_running());
}
