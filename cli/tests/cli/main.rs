//! `bgb` as it is typed: the real program, against a manager made of canned answers.
//!
//! What a table looks like is tested beside the code; here it is what scripts rely on: exit codes, JSON, what is sent
//! and what is not.
#![allow(clippy::unwrap_used)] // A test that cannot go on should stop where it stands.

mod fake_manager;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bgb_protocol::api::ErrorCode;
use bgb_protocol::file::presence::{Presence, PresenceRow};
use bgb_protocol::file::{Epoch, FileBuilder, FileKind, Header};
use bgb_protocol::ids::{BootId, DeviceId, ServerId, SessionNumber, UnixMillis};
use serde_json::{Value, json};

use crate::fake_manager::{FakeManager, Request};

const TASK: &str = "0193f1c2-7d3a-7c55-8a0e-2b9c5d1e6f70";
const DIGEST: &str = "d19e57d19e57d19e57d19e57d19e57d19e57d19e57d19e57d19e57d19e57d19e";

fn bgb(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bgb"));
    command.args(words).env_remove("BGB_SITE").stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> Output {
    bgb(words).output().unwrap()
}

fn ask(manager: &FakeManager, words: &[&str]) -> Output {
    bgb(words).arg("--api").arg(manager.url()).arg("--token-file").arg(manager.token_file()).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn task_row(succeeded: u64, failed: u64, waiting: u64) -> Value {
    let counts = json!({
        "targets": succeeded + failed + waiting, "delivered": succeeded + failed, "waiting": waiting, "received": 0,
        "running": 0, "succeeded": succeeded, "failed": failed, "interrupted": 0, "refused": 0, "cancelled": 0,
        "no_answer": 0, "expired": 0,
    });
    json!({
        "task": TASK, "action": "ping", "target": "all", "phase": "active", "started": 1, "expires": 2,
        "cancelled": null, "digest": DIGEST, "counts": counts, "results_per_second": null,
    })
}

fn preview() -> Value {
    json!({
        "action": "ping", "targets": 2, "online": 1, "digest": DIGEST, "validity_seconds": 3600,
        "sentence": "Ping on 2 devices.",
    })
}

/// A manager that previews, starts, and then has this row for the task.
fn manager_with_task(row: &'static (dyn Fn(usize) -> Value + Sync)) -> FakeManager {
    let looks = std::sync::atomic::AtomicUsize::new(0);
    FakeManager::start(move |request: &Request| match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/api/v1/tasks/preview") => (200, preview()),
        ("POST", "/api/v1/tasks") => (201, task_row(0, 0, 2)),
        ("GET", path) if path.ends_with(TASK) => {
            (200, row(looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed)))
        }
        _ => (200, json!({ "items": [], "next": null })),
    })
}

#[test]
fn each_error_of_the_manager_has_its_exit_code_and_its_sentence() {
    for (error, expected) in [
        (ErrorCode::UnknownDevice, 3),
        (ErrorCode::NameTaken, 4),
        (ErrorCode::TargetsChanged, 4),
        (ErrorCode::BadRequest, 2),
        (ErrorCode::NoTargets, 1),
        (ErrorCode::DatabaseUnavailable, 5),
        (ErrorCode::Unauthorized, 8),
        (ErrorCode::Internal, 1),
    ] {
        let manager = FakeManager::start(move |_: &Request| {
            (error.http_status(), json!({ "error": "It was so.", "code": error }))
        });
        let output = ask(&manager, &["device", "show", "pc-1"]);
        assert_eq!(code(&output), expected, "{error:?}");
        assert!(stderr(&output).starts_with("bgb: It was so."), "{error:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{error:?}");
    }
}

#[test]
fn a_manager_that_does_not_run_is_told_with_the_command_that_starts_it() {
    let folder = tempfile::tempdir().unwrap();
    let site = folder.path().join("lab");
    // A port that was free a moment ago; nobody listens on it.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("127.0.0.1:{port}");
    let site_text = site.to_str().unwrap();
    let made = run(&["site", "init", site_text, "--code", "LAB", "--manager-listen", &listen]);
    assert_eq!(code(&made), 0, "{}", stderr(&made));
    let output = bgb(&["status"]).env("BGB_SITE", &site).output().unwrap();
    assert_eq!(code(&output), 5);
    let hint = format!("bgb-manager --config {}", site.join("manager.toml").display());
    assert!(stderr(&output).contains(&hint), "{}", stderr(&output));
}

#[test]
fn a_site_is_made_once_and_is_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let site = folder.path().join("lab");
    let site = site.to_str().unwrap();
    let made = run(&["site", "init", site, "--code", "LAB", "--json"]);
    let told: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((&told["site"], &told["server"]["server"]), (&"LAB".into(), &1.into()));
    assert!(std::fs::read_to_string(format!("{site}/logs/BgbSetup.log")).unwrap().contains("site LAB made"));
    assert_eq!(code(&run(&["site", "init", site, "--code", "LAB"])), 4);
    let checked = run(&["site", "check", site, "--json"]);
    assert_eq!(code(&checked), 0, "{}", stdout(&checked));
    let second = run(&["--site", site, "site", "server-add", "--server-address", "bgb2.example.org:10123"]);
    assert_eq!(code(&second), 0, "{}", stderr(&second));
    assert!(Path::new(site).join("servers/2/server.toml").exists());
    std::fs::remove_file(format!("{site}/authority/ca.key")).unwrap();
    assert_eq!(code(&run(&["site", "check", site])), 1);
}

#[test]
fn nothing_is_sent_when_nobody_can_be_asked() {
    let manager = manager_with_task(&|_| task_row(2, 0, 0));
    let output = ask(&manager, &["task", "start", "ping", "--collection", "all"]);
    assert_eq!(code(&output), 7);
    let said = stderr(&output);
    for expected in ["Ping on 2 devices.", DIGEST, "--yes"] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
    let paths: Vec<String> = manager.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/api/v1/tasks/preview"]);
}

#[test]
fn what_is_started_is_the_set_that_was_shown() {
    let manager = manager_with_task(&|_| task_row(2, 0, 0));
    let output =
        ask(&manager, &["task", "start", "ping", "--device", "pc-1", "17", "--validity", "2h", "--yes"]);
    assert_eq!((code(&output), stdout(&output).trim()), (0, TASK), "{}", stderr(&output));
    let start = manager.requests().pop().unwrap();
    assert_eq!(start.authorization.as_deref(), Some("Bearer secret-token"));
    assert_eq!(
        start.body,
        json!({
            "action": "ping", "target": { "devices": ["pc-1", "17"] }, "validity_seconds": 7200, "digest": DIGEST,
        })
    );
}

#[test]
fn watching_ends_with_the_last_answer_and_tells_programs_of_each_change() {
    let manager = manager_with_task(&|look| match look {
        0 | 1 => task_row(0, 0, 2),
        2 => task_row(1, 0, 1),
        _ => task_row(2, 0, 0),
    });
    let output = ask(&manager, &["task", "watch", TASK, "--json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let succeeded: Vec<_> = lines.iter().map(|line| &line["counts"]["succeeded"]).collect();
    assert_eq!(succeeded, [0, 1, 2]);
}

#[test]
fn a_device_that_did_not_succeed_is_an_exit_code() {
    let manager = manager_with_task(&|_| task_row(1, 1, 0));
    let output = ask(&manager, &["task", "start", "ping", "--collection", "all", "--yes", "--watch"]);
    assert_eq!(code(&output), 6);
    assert!(stdout(&output).contains("ping: 1 succeeded, 1 failed"), "{}", stdout(&output));
}

#[test]
fn watching_no_longer_than_was_wanted_is_an_exit_code_too() {
    let manager = manager_with_task(&|_| task_row(1, 0, 1));
    let output = ask(&manager, &["task", "watch", TASK, "--timeout", "1s"]);
    assert_eq!(code(&output), 6);
    assert!(stderr(&output).contains("the task goes on"), "{}", stderr(&output));
}

#[test]
fn a_list_is_followed_from_page_to_page() {
    let manager = FakeManager::start(|request: &Request| {
        let second = request.path.contains("after=all");
        let (name, next) = if second { ("Demo", None) } else { ("all", Some("all")) };
        let row = json!({ "name": name, "members": 1, "online": 0, "built_in": !second });
        (200, json!({ "items": [row], "next": next }))
    });
    let output = ask(&manager, &["collection", "ls", "--json"]);
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.iter().map(|row| &row["name"]).collect::<Vec<_>>(), ["all", "Demo"]);
    assert_eq!(manager.requests().len(), 2);
}

#[test]
fn roads_are_one_document_and_what_is_left_out_is_a_remark() {
    let survey = json!({
        "time": 1, "online": 2, "networks_all": 9, "networks_off_tcp": 1,
        "roads": [{ "road": "long-poll", "outer_tls": true, "proxied": true, "devices": 2 }],
        "networks": [{
            "network": "192.0.2.0/24", "devices": 2, "off_tcp": 2, "others": 0,
            "roads": [{
                "road": "long-poll", "outer_tls": true, "proxied": true, "reason": { "proxy-answer": 407 }, "devices": 2,
            }],
        }],
    });
    let answer = survey.clone();
    let manager = FakeManager::start(move |_: &Request| (200, answer.clone()));
    let output = ask(&manager, &["status", "--roads", "--networks", "1", "--json"]);
    assert_eq!((code(&output), serde_json::from_slice::<Value>(&output.stdout).unwrap()), (0, survey));
    assert!(stderr(&output).contains("8 more networks"), "{}", stderr(&output));
    let output = ask(&manager, &["status", "--roads", "--quiet"]);
    assert!(
        stdout(&output).contains("long-poll over HTTPS through a proxy  a proxy answered 407"),
        "{}",
        stdout(&output)
    );
    assert_eq!(stderr(&output), "");
    let paths: Vec<String> = manager.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/api/v1/roads?limit=1", "/api/v1/roads?limit=20"]);
}

#[test]
fn a_device_is_given_its_folder_and_a_refused_one_none() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pc-1");
    let taken = FakeManager::start(|_: &Request| (409, json!({ "error": "Taken.", "code": "name-taken" })));
    let refused = ask(&taken, &["device", "add", "pc-1", "--out", out.to_str().unwrap()]);
    assert_eq!((code(&refused), out.exists()), (4, false));

    let manager = FakeManager::start(|_: &Request| {
        let bundle = json!({
            "number": 7, "guid": TASK, "name": "pc-1", "certificate_pem": "c", "key_pem": "k",
            "authority_pem": "a", "task_keys": [], "servers": [], "agent_toml": "site = \"LAB\"",
        });
        (201, bundle)
    });
    let added = ask(&manager, &["device", "add", "pc-1", "--out", out.to_str().unwrap(), "--json"]);
    assert_eq!(code(&added), 0, "{}", stderr(&added));
    let told: Value = serde_json::from_slice(&added.stdout).unwrap();
    assert_eq!((&told["number"], told.get("key_pem")), (&7.into(), None));
    assert_eq!(std::fs::read_to_string(out.join("device.key")).unwrap(), "k");
}

#[test]
fn errors_are_json_where_programs_read() {
    let output = run(&["files", "show", "/nonexistent.BTS", "--json"]);
    let told: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((code(&output), &told["exit"]), (3, &3.into()));
    assert!(told["error"].as_str().unwrap().contains("/nonexistent.BTS"));
}

#[test]
fn a_slip_of_the_pen_is_usage() {
    for words in [&["tusk", "ls"][..], &["task", "start", "reboot", "--collection", "all"], &[]] {
        assert_eq!(code(&run(words)), 2, "{words:?}");
    }
    assert_eq!(code(&run(&["--help"])), 0);
    let nowhere = bgb(&["status"]).current_dir("/").output().unwrap();
    assert_eq!(code(&nowhere), 2);
    assert!(stderr(&nowhere).contains("--site"), "{}", stderr(&nowhere));
}

#[test]
fn a_damaged_file_is_shown_as_far_as_it_goes_and_ends_as_failed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("1.BOS");
    let row = |device| PresenceRow {
        device: DeviceId(device),
        boot: BootId([1; 16]),
        session: SessionNumber(1),
        signed_in: UnixMillis(1),
        presence: Presence::Offline { at: UnixMillis(2), reason: "closed".to_owned() },
    };
    let mut builder = FileBuilder::new();
    (0..20_000).for_each(|device| builder.push(&row(device)));
    let header = Header {
        kind: FileKind::PresenceDelta,
        site: "LAB".parse().unwrap(),
        server: ServerId(1),
        epoch: Epoch { counter: 1, nonce: 1 },
        sequence: 1,
        time: UnixMillis(1),
        rows: 0,
        blocks: 0,
    };
    let (_, bytes) = builder.finish(header);
    std::fs::write(&path, &bytes).unwrap();
    let whole = run(&["files", "show", path.to_str().unwrap()]);
    assert_eq!((code(&whole), stdout(&whole).lines().count()), (0, 20_002));
    std::fs::write(&path, &bytes[..bytes.len() - 40]).unwrap();
    let torn = run(&["files", "show", path.to_str().unwrap()]);
    let last: Value = serde_json::from_str(stdout(&torn).lines().last().unwrap()).unwrap();
    assert_eq!((code(&torn), &last["line"]), (1, &"end".into()));
    assert!(last["errors"].as_u64().unwrap() > 0);

    // A reader that has seen enough, as `head` has, is no fault of the file.
    std::fs::write(&path, &bytes).unwrap();
    let mut child = bgb(&["files", "show", path.to_str().unwrap()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("\"header\""), "{first}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_launched_program_ends_with_its_parent_however_that_ends() {
    let script = format!("{} launch --parent $$ -- sleep 600 & echo $!; wait", env!("CARGO_BIN_EXE_bgb"));
    let mut parent = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let child = line.trim().to_owned();
    wait_until("the child has become `sleep`", || process(&child).is_some_and(|(name, _)| name == "sleep"));
    parent.kill().unwrap();
    parent.wait().unwrap();
    // Where nobody waits for orphans it stays as a zombie, which runs no more.
    wait_until("the child has ended", || process(&child).is_none_or(|(_, state)| state == "Z"));
}

#[test]
fn a_program_whose_parent_is_gone_is_not_started() {
    let output = run(&["launch", "--parent", "1", "--", "echo", "started"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (1, ""));
}

/// Name and state of a process (proc(5)); `None` when there is none.
fn process(id: &str) -> Option<(String, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    Some((name.to_owned(), rest.split_whitespace().next()?.to_owned()))
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_policy_comes_from_standard_input_too() {
    let manager = FakeManager::start(|request: &Request| {
        let row = json!({
            "name": "base", "version": 3, "priority": request.body["priority"], "collection": null, "devices": null,
            "issued": 1, "settings": request.body["settings"],
        });
        (200, row)
    });
    let mut child = bgb(&["policy", "set", "base", "--file", "-", "--priority", "-2", "--json"])
        .args(["--api", &manager.url(), "--token-file"])
        .arg(manager.token_file())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(br#"{"keepalive_seconds": 60}"#).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0);
    let sent = manager.requests().pop().unwrap();
    assert_eq!((sent.method.as_str(), sent.path.as_str()), ("PUT", "/api/v1/policies/base"));
    assert_eq!(
        sent.body,
        json!({ "priority": -2, "collection": null, "settings": { "keepalive_seconds": 60 } })
    );
}
