//! Each scenario, small, against a site of its own: it runs to its end, and what it says adds up.
#![allow(clippy::unwrap_used)] // A test that cannot go on should stop where it stands.

use std::process::Command;

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
    assert_eq!(whole["troubles"].as_array().unwrap().len(), 0, "{arguments:?}: {said}");
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
}
