//! The whole road: administrator, manager, database, server, agents, and back.

use bgb_protocol::action::Action;
use bgb_protocol::api::{Connectivity, PolicyRow, PutPolicy};
use bgb_protocol::policy::PolicySettings;
use bgb_protocol::state::TaskState;

use crate::site::Site;
use crate::wait::{SOON, until_equal};

#[test]
fn five_agents_do_three_tasks_and_what_they_said_is_known() {
    let site = Site::running(1);
    let devices = site.add_devices((1..=5).map(|number| format!("pc-{number}")));
    site.collect("lab", &devices);
    let agents: Vec<_> = devices.iter().map(|device| site.start_agent(device)).collect();
    site.wait_online(5);

    let settings = PolicySettings { keepalive_seconds: Some(30), ..PolicySettings::default() };
    let document = PutPolicy { priority: 10, collection: Some("lab".to_owned()), settings };
    let policy: PolicyRow = site.api().put("/policies/lab", &document).unwrap();

    let policies = site.start_task(Action::DownloadPolicy, "lab");
    let inventories = site.start_task(Action::CollectInventory, "lab");
    let pings = site.start_task(Action::Ping, "all");
    for task in [policies, inventories, pings] {
        site.wait_succeeded(task, 5);
        let counts = site.counts(task);
        assert_eq!((counts.targets, counts.delivered, counts.done()), (5, 5, 5), "{counts:?}");
        let results = site.results(task);
        assert!(results.iter().all(|result| result.state == TaskState::Succeeded && result.code == Some(0)));
        assert_eq!(results.len(), 5);
    }
    for device in &devices {
        let inventory = site.device(device).inventory.expect("collect-inventory has succeeded");
        for part in ["platform", "cpu", "memory", "disks", "addresses", "packages"] {
            assert!(inventory.get(part).is_some(), "{part} is missing: {inventory}");
        }
    }

    // What is applied outlives the agent, and the next hello says so.
    for agent in agents {
        assert_eq!(agent.stop().code(), 0);
    }
    site.wait_online(0);
    let _agents: Vec<_> = devices.iter().map(|device| site.start_agent(device)).collect();
    for device in &devices {
        until_equal("the policy is in force after a restart", SOON, &Some(policy.version), || {
            let details = site.device(device);
            details.policy_version.filter(|_| details.row.connectivity == Connectivity::Online)
        });
    }
    site.check();
}

#[test]
fn what_bgb_shows_is_what_the_devices_did() {
    let site = Site::running(1);
    let folder = site.path("bundle");
    let added = site.bgb_of_site(&["device", "add", "pc-1", "--out", folder.to_str().unwrap()]);
    assert_eq!(added.code(), 0, "{}", added.stderr);
    let config = folder.join("agent.toml");
    let mut agent = crate::process::start(
        crate::process::Program::Agent,
        "agent-pc-1",
        [std::path::Path::new("--config"), &config],
        &site.outputs(),
        &crate::process::Surroundings::default(),
    );
    agent.wait_ready();
    site.wait_online(1);
    let listed = site.bgb_of_site(&["device", "ls", "--connectivity", "online"]);
    assert!(listed.stdout.contains("pc-1"), "{}", listed.stdout);

    let done = site.bgb_of_site(&[
        "task",
        "start",
        "ping",
        "--collection",
        "all",
        "--yes",
        "--watch",
        "--timeout",
        "60s",
    ]);
    assert_eq!(done.code(), 0, "{}{}", done.stdout, done.stderr);

    // The agent is gone: the task waits, and the exit code says that not everybody has succeeded.
    assert_eq!(agent.stop().code(), 0);
    site.wait_online(0);
    let waiting = site.bgb_of_site(&[
        "task",
        "start",
        "ping",
        "--collection",
        "all",
        "--yes",
        "--watch",
        "--timeout",
        "1s",
    ]);
    assert_eq!(waiting.code(), 6, "{}{}", waiting.stdout, waiting.stderr);
}
