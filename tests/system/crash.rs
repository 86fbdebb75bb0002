//! Everything is killed in the middle, and everything comes to the right counts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bgb_protocol::action::Action;
use bgb_protocol::api::TaskRow;
use bgb_protocol::ids::DeviceId;
use bgb_protocol::state::TaskState;
use rustix::process::Signal;

use crate::files;
use crate::process::Process;
use crate::site::{Device, Site};
use crate::wait::{LONG, SOON, stays_true, until, until_equal, until_true};

/// The fleet of the test.
const AGENTS: usize = 200;
/// Agents that are killed in the middle: every fifth.
const KILLED_EVERY: usize = 5;
/// Agents that stand still until then: every seventh, so that no task is over before.
const STILL_EVERY: usize = 7;

fn executions(site: &Site, device: &Device) -> usize {
    let note = site.path(&format!("scans-{}", device.name));
    fs::read_to_string(note).unwrap_or_default().lines().count()
}

/// Lets the device's scan be a command that notes each execution, and its process in the file that is returned, and then does `rest`.
fn scan_by(site: &Site, device: &Device, rest: &str) -> PathBuf {
    let path = |what| site.path(&format!("{what}-{}", device.name));
    let (note, process) = (path("scans"), path("scanner"));
    let command = format!("echo executed >> {}; echo $$ > {}; {rest}", note.display(), process.display());
    device.scan_by(&["/bin/sh", "-c", &command]);
    process
}

#[test]
fn two_hundred_agents_and_everything_killed_in_the_middle_of_two_tasks() {
    let mut site = Site::running(1);
    let devices = site.add_devices((0..AGENTS).map(|number| format!("pc-{number:03}")));
    // Some are over quickly, and some not before they are let: each stage of a scan meets the end of an agent, on any machine.
    let gate = site.path("gate");
    for (number, device) in devices.iter().enumerate() {
        let rest = match number % 7 {
            short @ 0..4 => format!("sleep 0.{short}"),
            _ => format!("until [ -e {} ]; do sleep 0.2; done", gate.display()),
        };
        scan_by(&site, device, &rest);
    }
    let mut agents: Vec<Process> = devices.iter().map(|device| site.start_agent(device)).collect();
    until_equal("all are online", LONG, &(AGENTS as u64), || site.metric(1, "bgb_server_sessions"));

    agents.iter().step_by(STILL_EVERY).for_each(|agent| agent.signal(Signal::STOP));
    let scans = site.start_task(Action::QuickScan, "all");
    let inventories = site.start_task(Action::CollectInventory, "all");
    let acknowledged = || site.metric(1, "bgb_server_results_acknowledged_total");
    until_true("results come", LONG, || acknowledged() > AGENTS as u64 / 5);

    // Without a word, and in this order: whoever is left over goes on meanwhile.
    for agent in agents.iter_mut().step_by(KILLED_EVERY) {
        agent.kill_now();
    }
    site.take_server(1).kill();
    site.take_manager().kill();
    for (agent, device) in agents.iter_mut().zip(&devices).step_by(KILLED_EVERY) {
        *agent = site.start_agent(device);
    }
    site.start_server(1);
    site.start_manager();
    for task in [scans, inventories] {
        let done = site.counts(task).done();
        assert!(done < AGENTS as u64, "{done} devices have ended task {task}: the middle was missed");
    }
    agents.iter().step_by(STILL_EVERY).for_each(|agent| agent.signal(Signal::CONT));
    fs::write(&gate, "").unwrap();

    until_equal("every device has ended both tasks", LONG, &(AGENTS as u64, AGENTS as u64), || {
        (site.counts(scans).done(), site.counts(inventories).done())
    });
    // What is repeatable was repeated until it was done; a scan was not.
    assert_eq!(site.counts(inventories).succeeded, AGENTS as u64);
    let counts = site.counts(scans);
    println!("of {AGENTS} scans, {} were done and {} were interrupted", counts.succeeded, counts.interrupted);
    assert_eq!(counts.succeeded + counts.interrupted, AGENTS as u64, "{counts:?}");
    let said: BTreeMap<DeviceId, TaskState> =
        site.results(scans).into_iter().map(|result| (result.device, result.state)).collect();
    for device in &devices {
        let (state, times) = (said[&device.number], executions(&site, device));
        let right = match state {
            TaskState::Succeeded => times == 1,
            // It was killed between its intent and its result: just before it began, or after.
            TaskState::Interrupted => times <= 1,
            _ => false,
        };
        assert!(right, "{} has {state} and was executed {times} times", device.name);
    }
    site.check();
    // And the site works as before.
    let pings = site.start_task(Action::Ping, "all");
    until_equal("a task after it all", LONG, &(AGENTS as u64), || site.counts(pings).succeeded);
    site.check();
}

#[test]
fn a_task_that_was_accepted_survives_the_managers_death() {
    let mut site = Site::running(1);
    let device = site.add_device("pc-1");
    let task = site.start_task(Action::CollectInventory, "all");
    site.take_manager().kill();
    // The server has it from the database, and carries it on without the manager.
    let _agent = site.start_agent(&device);
    until_true("the agent has answered", SOON, || {
        site.metric(1, "bgb_server_results_acknowledged_total") == 1
    });
    site.start_manager();
    let listed: Vec<TaskRow> = site.api().list("/tasks").unwrap();
    assert_eq!(listed.iter().map(|row| row.task).collect::<Vec<_>>(), [task]);
    site.wait_succeeded(task, 1);
    site.check();
}

#[test]
fn a_result_that_was_acknowledged_survives_the_servers_death() {
    let mut site = Site::running(1);
    let devices = site.add_devices((1..=3).map(|number| format!("pc-{number}")));
    let _agents: Vec<_> = devices.iter().map(|device| site.start_agent(device)).collect();
    site.wait_online(3);
    // Nobody can put a file into the inbox: what is acknowledged is in the server's spool and nowhere else.
    let (inbox, away) = (site.folder().server_inbox(bgb_protocol::ids::ServerId(1)), site.path("inbox-away"));
    fs::rename(&inbox, &away).unwrap();
    let task = site.start_task(Action::Ping, "all");
    until_true("all are acknowledged", SOON, || site.metric(1, "bgb_server_results_acknowledged_total") == 3);
    site.take_server(1).kill();
    assert_eq!(site.counts(task).succeeded, 0);
    fs::rename(&away, &inbox).unwrap();
    site.start_server(1);
    site.wait_succeeded(task, 3);
    site.check();
}

#[test]
fn a_scan_whose_agent_dies_is_interrupted_and_never_executed_again() {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    // Short enough that it is over when the test is: nobody is left to end it.
    scan_by(&site, &device, "sleep 2");
    let agent = site.start_agent(&device);
    site.wait_online(1);
    let task = site.start_task(Action::QuickScan, "all");
    until_equal("it is being executed", SOON, &1, || executions(&site, &device));
    agent.kill();
    let _agent = site.start_agent(&device);
    until_equal("it is interrupted", SOON, &1, || site.counts(task).interrupted);
    stays_true("it is not executed again", Duration::from_secs(1), || executions(&site, &device) == 1);
    // The device takes the next scan all the same.
    let next = site.start_task(Action::QuickScan, "all");
    site.wait_succeeded(next, 1);
    assert_eq!((executions(&site, &device), site.counts(task).interrupted), (2, 1));
    site.check();
}

#[test]
fn a_scan_that_is_cancelled_ends_with_all_its_processes() {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    let process = scan_by(&site, &device, "sleep 120");
    let _agent = site.start_agent(&device);
    site.wait_online(1);
    let task = site.start_task(Action::QuickScan, "all");
    let scanner = until("the scanner runs", SOON, || {
        let text = fs::read_to_string(&process).ok()?;
        text.trim().parse::<u32>().ok()
    });
    let cancelled = site.bgb_of_site(&["task", "cancel", &task.to_string()]);
    assert_eq!(cancelled.code(), 0, "{}", cancelled.stderr);
    // The count alone would not do: a device that has said nothing yet counts as cancelled with its task.
    until_equal("the device says so", SOON, &vec![TaskState::Cancelled], || {
        site.results(task).iter().map(|result| result.state).collect::<Vec<_>>()
    });
    assert_eq!(site.counts(task).cancelled, 1);
    until_true("its processes are gone", SOON, || !Path::new(&format!("/proc/{scanner}")).exists());
    site.check();
}

#[test]
fn a_manager_that_dies_again_and_again_while_it_takes_in_a_file_counts_every_row_once() {
    const DEVICES: usize = 500;
    const TASKS: usize = 40;
    let mut site = Site::new(2);
    site.start_manager();
    let devices = site.add_devices((0..DEVICES).map(|number| format!("pc-{number:03}")));
    let tasks: Vec<_> = (0..TASKS).map(|_| site.start_task(Action::Ping, "all")).collect();
    let rows: Vec<_> = tasks
        .iter()
        .flat_map(|task| devices.iter().map(|device| (*task, device)))
        .map(|(task, device)| files::last_word(device, task, TaskState::Succeeded, b"fine"))
        .collect();
    let counted = |site: &Site| {
        let tasks: Vec<TaskRow> = site.api().list("/tasks").unwrap();
        tasks.iter().map(|task| task.counts.succeeded).sum::<u64>()
    };
    let all = rows.len() as u64;
    files::results(1, &rows).deliver(&site);
    let mut in_the_middle = 0;
    for _ in 0..5 {
        let before = counted(&site);
        let now =
            until("it goes on", SOON, || Some(counted(&site)).filter(|now| *now > before || *now == all));
        site.take_manager().kill();
        in_the_middle += u32::from(now < all);
        site.start_manager();
    }
    until_equal("every row counts", SOON, &all, || counted(&site));
    assert!(in_the_middle > 0, "the manager never died in the middle: make the file longer");
    for task in tasks {
        assert_eq!(site.counts(task).succeeded, DEVICES as u64);
    }
    site.check();
}
