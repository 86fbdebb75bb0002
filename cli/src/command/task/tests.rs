use bgb_protocol::action::Action;
use bgb_protocol::api::{Connectivity, TaskCounts, TaskPhase};
use bgb_protocol::ids::{DeviceGuid, DeviceId, UnixMillis};
use bgb_protocol::state::RefusalReason;

use super::*;

fn row(counts: TaskCounts) -> TaskRow {
    TaskRow {
        task: TaskId::from_bytes([7; 16]),
        action: Action::QuickScan,
        target: "Finance laptops".to_owned(),
        phase: TaskPhase::Active,
        started: UnixMillis(0),
        expires: UnixMillis(3_600_000),
        cancelled: None,
        digest: "ab".repeat(32),
        counts,
        results_per_second: None,
    }
}

fn result(state: TaskState, output: &str) -> TaskResult {
    TaskResult {
        device: DeviceId(4),
        guid: DeviceGuid::from_bytes([4; 16]),
        name: "pc-4".to_owned(),
        state,
        refusal: (state == TaskState::Refused).then_some(RefusalReason::NotAllowed),
        code: Some(2),
        started: None,
        finished: None,
        heard: None,
        output: Some(output.to_owned()),
    }
}

#[test]
fn a_task_is_shown_by_its_counts_and_not_by_its_devices() {
    let counts = TaskCounts {
        targets: 1_204,
        delivered: 915,
        succeeded: 912,
        failed: 3,
        waiting: 289,
        ..TaskCounts::default()
    };
    let shown = lines_of(&table(&[row(counts)], &Terminal::plain()));
    let line = shown.lines().nth(1).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[words.len() - 5..], ["1,204", "915", "912", "3", "289"], "{line}");
    assert!(line.contains("◐ active"), "{line}");
}

#[test]
fn a_task_is_good_only_when_every_target_succeeded() {
    let word = |succeeded, failed| {
        let counts = TaskCounts { targets: 2, succeeded, failed, ..TaskCounts::default() };
        phase(&row(TaskCounts { waiting: 2 - succeeded - failed, ..counts })).content()
    };
    assert_eq!(
        (word(2, 0).as_str(), word(1, 1).as_str(), word(1, 0).as_str()),
        ("● done", "▲ done", "◐ active")
    );
}

#[test]
fn what_a_device_said_cannot_steer_the_terminal() {
    assert_eq!(first_line("\n  \u{1b}[31mowned\u{7}\nmore"), "[31mowned");
    assert_eq!(first_line(r#"{"engine":"clamscan","messages":"no signatures\nbye"}"#), "no signatures");
    assert_eq!(first_line(&"x".repeat(100)).chars().count(), OUTPUT_COLUMNS + 1);
    let said = full_output(&result(TaskState::Failed, "a\u{1b}[2Jb\n\tc\n")).unwrap();
    assert_eq!(said, "pc-4 said:\na[2Jb\n\tc");
    assert_eq!(full_output(&result(TaskState::Failed, "  \n")), None);
}

#[test]
fn a_refusal_says_why() {
    let shown = lines_of(&results_table(&[result(TaskState::Refused, "")], &Terminal::plain()));
    assert!(shown.contains("▲ refused: not allowed by policy"), "{shown}");
}

#[test]
fn the_api_knows_the_states_by_these_names() {
    assert_eq!(state_name(TaskState::NoAnswer), "no-answer");
    for state in TaskState::ALL {
        assert_eq!(serde_json::from_value::<TaskState>(state_name(state).into()).unwrap(), state);
        assert!(ATTENTION_FIRST.contains(&state), "{state} is shown");
    }
}

#[test]
fn a_blocked_device_that_waits_is_shown_as_blocked() {
    let waiting = WaitingDevice {
        device: DeviceId(1),
        guid: DeviceGuid::from_bytes([1; 16]),
        name: "pc-1".to_owned(),
        connectivity: Connectivity::Offline,
        blocked: true,
        last_seen: None,
    };
    assert!(lines_of(&waiting_table(&[waiting], &Terminal::plain())).contains("✗ blocked"));
}

#[test]
fn a_cancel_tells_who_is_told_to_stop() {
    let quiet = cancelled_sentence(&row(TaskCounts::default()));
    assert_eq!(quiet, "quick-scan on Finance laptops is cancelled: nothing more of it starts.");
    let busy =
        cancelled_sentence(&row(TaskCounts { targets: 3, running: 2, waiting: 1, ..TaskCounts::default() }));
    assert!(busy.ends_with("; 2 devices that have it are told to stop."), "{busy}");
}
