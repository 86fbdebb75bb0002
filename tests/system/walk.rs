//! What a person types, from end to end: every command of `bgb` against a real site, the question before a task, and the demo.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use bgb_protocol::action::Action;
use bgb_protocol::api::TaskRow;
use rustix::process::Signal;
use serde_json::Value;

use crate::process::{self, Program, Surroundings};
use crate::site::Site;
use crate::wait::{LONG, SOON, until, until_true};

#[test]
fn every_command_answers_people_in_words_and_programs_in_json() {
    let site = Site::running(1);
    let devices = site.add_devices(["pc-1".to_owned(), "pc-2".to_owned()]);
    let _agent = site.start_agent(&devices[0]);
    site.wait_online(1);
    let ping = site.start_task(Action::Ping, "all");
    site.wait_succeeded(ping, 1);
    let settings = site.path("settings.json");
    fs::write(&settings, "{\"keepalive_seconds\": 60}").unwrap();
    let (settings, task) = (settings.to_str().unwrap(), ping.to_string());
    let (folder, added) = (site.folder().root().to_str().unwrap().to_owned(), site.path("added"));
    let words = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
    // In the order in which an administrator could give them; what changes something does so with either way of answering.
    let lines = [
        format!("device add new-@ --out {}/@", added.display()),
        "device ls".to_owned(),
        "device ls --connectivity online".to_owned(),
        "device show pc-1".to_owned(),
        "device block pc-2".to_owned(),
        "device unblock pc-2".to_owned(),
        "collection create some-@".to_owned(),
        "collection add some-@ pc-1 pc-2".to_owned(),
        "collection rm some-@ pc-2".to_owned(),
        "collection ls".to_owned(),
        "collection show some-@".to_owned(),
        format!("policy set document-@ --file {settings} --collection some-@"),
        "policy ls".to_owned(),
        "policy show document-@".to_owned(),
        "task start ping --collection some-@ --yes".to_owned(),
        "task start ping --device pc-1 --yes --watch".to_owned(),
        "task ls".to_owned(),
        format!("task show {task}"),
        "task cancel @".to_owned(),
        "status".to_owned(),
        format!("site check {folder}"),
    ];
    for (way, json) in [("words", false), ("json", true)] {
        let to_cancel = site.start_task(Action::Ping, "all").to_string();
        for line in &lines {
            let mine = if line.starts_with("task cancel") { &to_cancel } else { way };
            let mut arguments = words(&line.replace('@', mine));
            if json {
                arguments.push("--json".to_owned());
            }
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            let ended = match arguments[0] {
                "site" => site.bgb(&arguments),
                _ => site.bgb_of_site(&arguments),
            };
            assert_eq!(ended.code(), 0, "bgb {arguments:?}: {}{}", ended.stdout, ended.stderr);
            assert!(!ended.stdout.trim().is_empty(), "bgb {arguments:?} says nothing");
            let is_json = ended.stdout.lines().all(|line| serde_json::from_str::<Value>(line).is_ok());
            assert_eq!(is_json, json, "bgb {arguments:?}: {}", ended.stdout);
        }
    }
}

#[test]
fn a_servers_own_file_is_shown() {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    let _agent = site.start_agent(&device);
    let ping = site.start_task(Action::Ping, "all");
    site.wait_succeeded(ping, 1);
    let done = site.folder().inbox().join("done");
    let file = until("a file of results is kept", SOON, || {
        let mut found = Vec::new();
        crate::site::find_files(&done, &mut found);
        found.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "BTS"))
    });
    let shown = site.bgb_done(&["files", "show", file.to_str().unwrap()]);
    let lines: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() > 1, "{shown}");
    assert!(shown.contains(&ping.to_string()), "{shown}");
}

#[test]
fn a_command_line_that_is_not_understood_is_told_as_json_where_that_was_asked_for() {
    let site = Site::new(1);
    let ended = site.bgb(&["--json", "tusk"]);
    assert_eq!(ended.code(), 2);
    let error: Value = serde_json::from_str(ended.stderr.trim()).unwrap();
    assert_eq!(error["exit"], 2);
    assert!(error["error"].as_str().unwrap().contains("tusk"), "{error}");
}

/// Runs `bgb task start ping` at a terminal, and types an answer once the question is there; what the terminal showed, and the exit
/// code.
fn start_at_a_terminal(site: &Site, more: &[&str], answer: &str) -> (String, i32) {
    let (ours, theirs) = terminal();
    let mut command = Command::new(Program::Cli.path());
    command.args(["--site", site.folder().root().to_str().unwrap()]);
    command.args(["task", "start", "ping", "--collection", "all"]).args(more);
    command.stdin(theirs.try_clone().unwrap()).stdout(Stdio::null()).stderr(theirs);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut ours = fs::File::from(ours);
    let mut shown = Vec::new();
    let mut buffer = [0; 1024];
    // The terminal's other end closes with the program, which ends the reading with an error or with nothing.
    while !String::from_utf8_lossy(&shown).contains("[y/N]") {
        let read = ours.read(&mut buffer).unwrap_or(0);
        assert!(read > 0, "no question was asked: {}", String::from_utf8_lossy(&shown));
        shown.extend_from_slice(&buffer[..read]);
    }
    ours.write_all(answer.as_bytes()).unwrap();
    while let Ok(read @ 1..) = ours.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..read]);
    }
    (String::from_utf8(shown).unwrap(), child.wait().unwrap().code().unwrap())
}

/// A pseudo-terminal: the end of whoever types, and the program's.
fn terminal() -> (OwnedFd, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = fs::File::options().read(true).write(true).open(Path::new(name.to_str().unwrap())).unwrap();
    (ours, theirs.into())
}

#[test]
fn a_person_is_shown_whom_a_task_reaches_and_nothing_is_sent_without_a_yes() {
    let mut site = Site::new(1);
    site.start_manager();
    site.add_devices((1..=3).map(|number| format!("pc-{number}")));
    let tasks = |site: &Site| site.api().list::<TaskRow>("/tasks").unwrap();
    for (more, answer) in [(&[][..], "n\n"), (&[], "\n"), (&["--quiet"], "maybe\n")] {
        let (shown, code) = start_at_a_terminal(&site, more, answer);
        assert_eq!(code, 7, "{shown}");
        for word in ["3 devices", "0 online", "3 offline", "Target set: "] {
            assert!(shown.contains(word), "{word:?} is not shown: {shown}");
        }
        assert_eq!(tasks(&site), []);
    }
    let (shown, code) = start_at_a_terminal(&site, &[], "y\n");
    assert_eq!(code, 0, "{shown}");
    let started = tasks(&site);
    assert_eq!(started.len(), 1);
    assert_eq!(started[0].counts.targets, 3);
}

#[test]
fn the_demo_says_which_ports_it_takes_instead_and_leaves_no_process_behind() {
    let folder = tempfile::tempdir().unwrap();
    // Whoever has one of these already serves as well.
    let _taken: Vec<_> = (10_123..=10_126).map(|port| TcpListener::bind(("127.0.0.1", port))).collect();
    let place = folder.path().join("demo");
    let arguments = ["demo", "--agents", "2", "--dir", place.to_str().unwrap()];
    let mut demo = process::start(Program::Cli, "demo", arguments, folder.path(), &Surroundings::default());
    until_true("the demo has told its story", LONG, || {
        assert!(demo.is_running(), "the demo has ended: {}", demo.stderr());
        demo.stdout().contains("The demo runs until Ctrl-C")
    });
    let said = demo.stdout() + &demo.stderr();
    for port in ["10123", "10124", "10125", "10126"] {
        let line = said.lines().find(|line| line.contains(port) && line.contains("taken"));
        assert!(line.is_some(), "nobody says that port {port} is taken: {said}");
    }
    demo.signal(Signal::INT);
    let ended = demo.wait_end();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let left: Vec<_> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| line.contains(place.to_str().unwrap()))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}
