//! Orders that cannot be given: refused before anything is signed, with a sentence and an exit code.

use std::time::{Duration, Instant};

use bgb_protocol::action::Action;
use bgb_protocol::api::{ErrorCode, Target, TaskRow};
use serde_json::json;

use bgb_protocol::message::ServerMessage;

use crate::peer::{Heard, Peer};
use crate::site::Site;

fn site_with_device() -> Site {
    let mut site = Site::new(1);
    site.start_manager();
    site.add_device("pc-1");
    site
}

#[test]
fn a_task_for_nobody_is_refused() {
    let site = site_with_device();
    site.collect("empty", &[]);
    let (code, error) = site.try_start_task(Action::Ping, "empty", None).unwrap_err().refusal();
    assert_eq!(code, ErrorCode::NoTargets);
    assert!(error.contains("empty"), "{error}");
    let ended = site.bgb_of_site(&["task", "start", "ping", "--collection", "empty", "--yes"]);
    assert_eq!(ended.code(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("empty"), "{}", ended.stderr);
    assert_eq!(site.api().list::<TaskRow>("/tasks").unwrap(), []);
}

#[test]
fn a_task_for_an_unknown_collection_or_device_is_refused_by_its_name() {
    let site = site_with_device();
    let (code, error) = site.try_start_task(Action::Ping, "nobody-s", None).unwrap_err().refusal();
    assert_eq!(code, ErrorCode::UnknownCollection);
    assert!(error.contains("nobody-s"), "{error}");
    let ended = site.bgb_of_site(&["task", "start", "ping", "--collection", "nobody-s", "--yes"]);
    assert_eq!(ended.code(), 3, "{}", ended.stderr);
    assert!(ended.stderr.contains("nobody-s"), "{}", ended.stderr);

    let target = Target::Devices(vec!["pc-1".to_owned(), "pc-9".to_owned()]);
    let body = json!({ "action": "ping", "target": target, "validity_seconds": null, "digest": null });
    let (code, error) = site.api().post::<TaskRow>("/tasks", &body).unwrap_err().refusal();
    assert_eq!(code, ErrorCode::UnknownDevice);
    assert!(error.contains("pc-9"), "{error}");
    assert_eq!(site.api().list::<TaskRow>("/tasks").unwrap(), []);
}

#[test]
fn a_validity_outside_its_bounds_is_refused_with_the_bounds() {
    let site = site_with_device();
    for seconds in [0, 59, 604_801, u64::MAX] {
        let (code, error) = site.try_start_task(Action::Ping, "all", Some(seconds)).unwrap_err().refusal();
        assert_eq!(code, ErrorCode::BadRequest, "{error}");
        assert!(error.contains("60") || error.contains("1 minute"), "{seconds}: {error}");
    }
    for validity in ["59s", "8d"] {
        let ended = site.bgb_of_site(&[
            "task",
            "start",
            "ping",
            "--collection",
            "all",
            "--yes",
            "--validity",
            validity,
        ]);
        assert_eq!(ended.code(), 2, "{}", ended.stderr);
        assert!(ended.stderr.contains("1 minute to 7 days"), "{}", ended.stderr);
    }
    assert_eq!(site.api().list::<TaskRow>("/tasks").unwrap(), []);
    for seconds in [60, 604_800] {
        site.try_start_task(Action::Ping, "all", Some(seconds)).unwrap();
    }
}

#[test]
fn a_task_is_refused_when_its_targets_are_no_longer_those_that_were_shown() {
    let site = site_with_device();
    let preview: bgb_protocol::api::TaskPreview = site
        .api()
        .post(
            "/tasks/preview",
            &json!({ "action": "ping", "target": { "collection": "all" }, "validity_seconds": 600 }),
        )
        .unwrap();
    assert_eq!((preview.targets, preview.online), (1, 0));
    site.add_device("pc-2");
    let start = json!({
        "action": "ping",
        "target": { "collection": "all" },
        "validity_seconds": 600,
        "digest": preview.digest,
    });
    let (code, _) = site.api().post::<TaskRow>("/tasks", &start).unwrap_err().refusal();
    assert_eq!(code, ErrorCode::TargetsChanged);
}

#[test]
fn a_request_without_the_token_or_with_a_slip_is_refused() {
    let site = site_with_device();
    let stranger = site.api_with_token("0".repeat(64).as_str());
    let (code, _) = stranger.list::<TaskRow>("/tasks").unwrap_err().refusal();
    assert_eq!(code, ErrorCode::Unauthorized);
    let slip = json!({ "action": "ping", "target": { "collection": "all" }, "validity": 600 });
    let (code, error) = site.api().post::<TaskRow>("/tasks", &slip).unwrap_err().refusal();
    assert_eq!(code, ErrorCode::BadRequest);
    assert!(error.contains("validity"), "{error}");
    let (code, _) = site.api().fetch::<TaskRow>("/tusks").unwrap_err().refusal();
    assert_eq!(code, ErrorCode::UnknownPath);
}

/// Prints how long a task takes from before it is ordered over the API to its frame at the device: the order, its signature, the commit,
/// the bell, the queue's reading and the push. What it asserts is that each comes; how fast is for whoever reads what it prints.
#[test]
fn a_committed_row_is_pushed_to_a_device_that_is_online() {
    const TASKS: usize = 200;
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    let (mut peer, _) = Peer::sign_in(&site, 1, &device, 1, 1);
    let mut taken: Vec<Duration> = Vec::new();
    for _ in 0..TASKS {
        let begun = Instant::now();
        let task = site.start_task(Action::Ping, "all");
        let Heard::Message(message) = peer.hear() else { panic!("the session ended") };
        taken.push(begun.elapsed());
        let ServerMessage::Task(push) = *message else { panic!("no task: {message:?}") };
        let signed = bgb_protocol::task::SignedTask::decode(&push.signed).unwrap();
        assert_eq!(signed.statement().task, task);
    }
    taken.sort();
    let at = |percent: usize| taken[(TASKS * percent / 100).min(TASKS - 1)];
    println!(
        "from the order to the frame at the device, {TASKS} tasks: p50 {:?}, p99 {:?}, max {:?}",
        at(50),
        at(99),
        taken[TASKS - 1]
    );
}
