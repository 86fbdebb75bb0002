//! Each scenario, small, against a site of its own: it runs to its end, and what it says adds up.
#![allow(clippy::unwrap_used)] // A test that cannot go on should stop where it stands.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Agents of each run.
const AGENTS: u64 = 24;

/// Runs a scenario and gives its figures.
#[track_caller]
fn run(arguments: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_bgb-loadgen"))
        .args(arguments)
        .args(["--agents", &AGENTS.to_string(), "--json"])
        .arg(&json)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    let whole: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(whole["partial"], false, "{arguments:?}: {said}");
    // Tests run side by side: that a flood, or the generator beside it, had too little of a core says nothing of the program.
    let of_the_machine = |trouble: &Value| {
        let said = trouble.as_str().unwrap();
        arguments[0] == "flood"
            && (said.contains("this machine may have been the limit")
                || said.contains("this machine had no more"))
    };
    let troubles = whole["troubles"].as_array().unwrap();
    assert!(troubles.iter().all(of_the_machine), "{arguments:?}: {said}");
    assert_eq!(whole["agents"], AGENTS);
    whole["figures"].clone()
}

#[test]
fn everybody_connects_and_resumes() {
    let figures = run(&["connect", "--resumed", "--rate", "200"]);
    assert_eq!(figures["connected"], AGENTS);
    assert_eq!(figures["resumed"], AGENTS);
    assert_eq!(figures["latency"]["count"], AGENTS);
    let cpu_us = figures["server_cpu_us_per_connect"].as_f64().unwrap();
    assert!((0.0..1e6).contains(&cpu_us), "the kernel counts in hundredths of a second: {cpu_us}");
}

#[test]
fn connections_are_held_at_rest() {
    let figures = run(&["idle", "--seconds", "1"]);
    assert_eq!(figures["held"], AGENTS);
    assert_eq!(figures["connections_lost"], 0);
}

#[test]
fn a_task_reaches_everybody_and_is_answered() {
    let figures = run(&["fanout", "--tasks", "2"]);
    assert_eq!(figures["tasks"], 2);
    assert_eq!(figures["latency"]["count"], 2 * AGENTS);
}

#[test]
fn tasks_reach_single_devices() {
    let figures = run(&["trickle", "--tasks-per-second", "20", "--seconds", "1"]);
    assert_eq!(figures["tasks"], 20);
    assert_eq!(figures["missing"], 0);
    assert_eq!(figures["latency"]["count"], 20);
}

#[test]
fn everybody_comes_back_after_the_servers_death() {
    let figures = run(&["storm"]);
    assert_eq!(figures["back"], AGENTS);
    assert_eq!(figures["resumed"], AGENTS, "tickets outlive the server's process");
    assert_eq!(figures["latency"]["count"], AGENTS);
}

#[test]
fn a_fleet_at_two_servers_with_its_sessions_at_rest_answers_a_task() {
    let figures = run(&["fleet", "--servers", "2", "--at-rest"]);
    assert_eq!(figures["servers"], 2);
    assert_eq!(figures["held"], AGENTS);
    assert_eq!(figures["had"], AGENTS);
    assert_eq!(figures["answers_in_the_database"], AGENTS);
}

/// Every road through HTTP, as it is asked for.
const ROADS: [&[&str]; 4] = [
    &["--road", "ws"],
    &["--road", "ws", "--tls-outer"],
    &["--road", "longpoll"],
    &["--road", "longpoll", "--tls-outer"],
];

#[test]
fn by_each_road_everybody_connects_and_resumes() {
    for road in ROADS {
        let figures = run(&[&["connect", "--resumed"], road].concat());
        assert_eq!(
            (&figures["connected"], &figures["resumed"]),
            (&AGENTS.into(), &AGENTS.into()),
            "{road:?}"
        );
        assert_eq!(figures["connections_lost"], 0, "{road:?}");
    }
}

#[test]
fn by_each_road_tasks_reach_single_devices() {
    for road in ROADS {
        let figures = run(&[&["trickle", "--tasks-per-second", "16", "--seconds", "1"], road].concat());
        assert_eq!((&figures["missing"], &figures["latency"]["count"]), (&0.into(), &16.into()), "{road:?}");
    }
}

#[test]
fn by_each_road_fleets_at_two_servers_with_their_sessions_at_rest_answer_a_task() {
    for road in ROADS {
        let figures = run(&[&["fleet", "--servers", "2", "--at-rest"], road].concat());
        assert_eq!((&figures["held"], &figures["had"]), (&AGENTS.into(), &AGENTS.into()), "{road:?}");
        assert_eq!(figures["answers_in_the_database"], AGENTS, "{road:?}");
        assert_eq!(figures["connections_lost"], 0, "{road:?}");
    }
}

#[test]
fn by_websocket_and_by_long_poll_everybody_comes_back_after_the_servers_death() {
    for road in [ROADS[1], ROADS[2]] {
        let figures = run(&[&["storm"], road].concat());
        assert_eq!((&figures["back"], &figures["full"]), (&AGENTS.into(), &0.into()), "{road:?}");
    }
}

#[test]
fn by_long_poll_a_day_is_played_in_seconds() {
    let figures = run(&["mixed", "--seconds", "5", "--tasks-per-second", "10", "--road", "longpoll"]);
    assert_eq!(figures["missing"], 0);
    assert_eq!(figures["answers_kept"], figures["answers_asked"]);
}

#[test]
fn all_roads_are_compared_in_one_run() {
    let figures = run(&["roads", "--rounds", "1", "--seconds", "1", "--rest-seconds", "0"]);
    for name in ["tcp", "ws_http", "ws_https", "longpoll_http", "longpoll_https"] {
        let road = &figures["roads"][name];
        assert_eq!(
            (&road["tasks"], &road["missing"], &road["lost"]),
            (&16.into(), &0.into(), &0.into()),
            "{name}"
        );
        assert_eq!(road["p99_ms_by_round"].as_array().unwrap().len(), 1, "{name}");
        assert!(road["connects_per_second"].as_f64().unwrap() > 1.0, "{name}: {road}");
        assert!(road["bytes_per_connection"].is_f64(), "{name}: {road}");
    }
}

#[test]
fn a_day_is_played_in_seconds() {
    let figures = run(&["mixed", "--seconds", "5", "--tasks-per-second", "10"]);
    assert!(figures["tasks_for_one"].as_u64().unwrap() > 0, "{figures}");
    assert_eq!(figures["missing"], 0);
    assert_eq!(figures["answers_kept"], figures["answers_asked"]);
}

#[test]
fn those_who_are_signed_in_stay_in_a_flood() {
    let figures = run(&["flood", "--seconds", "1", "--rounds", "2"]);
    assert!(figures["sessions_kept_percent"].as_f64().unwrap() >= 95.0, "{figures}");
    assert_eq!(figures["missing"], 0);
    // Some hundreds a second are offered on the slowest machine, and those of 256 addresses who may hold places have answers.
    let rate = |name: &str| figures[name].as_f64().unwrap();
    assert!(rate("handshakes_offered_per_second") > 100.0, "{figures}");
    assert!(rate("handshakes_answered_per_second") > 10.0, "{figures}");
}

#[test]
fn what_was_measured_until_ctrl_c_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("figures.json");
    let place = folder.path().join("sites");
    std::fs::create_dir(&place).unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_bgb-loadgen"))
        .args(["idle", "--seconds", "600", "--agents", &AGENTS.to_string(), "--json"])
        .arg(&json)
        .env("TMPDIR", &place)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says how far it is when everybody is there: now and then, since this is no terminal.
    let lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
    let is_there = format!("{AGENTS} signed in");
    let mut said = lines.skip_while(|line| !line.contains(&is_there)).peekable();
    assert!(said.peek().is_some());
    kill_process(Pid::from_child(&process), Signal::INT).unwrap();
    let rest: Vec<String> = said.collect();
    assert!(process.wait().unwrap().success(), "{rest:?}");
    let whole: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(whole["partial"], true);
    assert_eq!(whole["figures"]["held"], AGENTS);
    let rested = whole["figures"]["rested_seconds"].as_f64().unwrap();
    assert!((0.0..600.0).contains(&rested), "{rested}");
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "the site is removed");
    let place = place.to_str().unwrap();
    let lives = |entry: std::fs::DirEntry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(place))
    };
    assert!(!std::fs::read_dir("/proc").unwrap().flatten().any(lives), "what was started has ended");
}

#[test]
fn what_the_machine_holds_is_told_step_by_step() {
    // On a busy machine the default limit, a tenth of a second, may come before the agents are all connected.
    let figures = run(&["size", "--latency-ms", "60000"]);
    assert_eq!(figures["steps"].as_array().unwrap().len(), 1);
    assert_eq!(figures["steps"][0]["connections"], AGENTS);
    assert!(figures["limit"].as_str().unwrap().contains("--agents 24"), "{figures}");
}

#[test]
fn what_cannot_be_is_said() {
    let said = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_bgb-loadgen")).args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(&["idle", "--agents", "0"]).contains("1 at least"));
    assert!(said(&["idle", "--site", "/nowhere", "--fleet", "/nowhere"]).contains("there is no fleet"));
    assert!(
        said(&["devices", "--site", "/nowhere", "--count", "1", "--fleet", "/nowhere"])
            .contains("no site's folder")
    );
    assert!(said(&["idle", "--sources", "127.0.0.1"]).contains("is no network"));
    assert!(said(&["idle", "--tls-outer"]).contains("--road ws or longpoll"));
}
