use super::*;
use crate::message::{Road, RoadReason};
use crate::state::TaskState;

fn counts() -> TaskCounts {
    TaskCounts { targets: 9, delivered: 4, waiting: 5, running: 1, succeeded: 3, ..TaskCounts::default() }
}

#[test]
fn codes_and_states_are_words_in_kebab_case() {
    let body = ErrorBody { error: "It changed.".to_owned(), code: ErrorCode::TargetsChanged };
    let json = serde_json::to_value(&body).unwrap();
    assert_eq!(json, serde_json::json!({ "error": "It changed.", "code": "targets-changed" }));
    assert_eq!(ErrorCode::TargetsChanged.http_status(), 409);
    assert_eq!(serde_json::to_value(TaskState::NoAnswer).unwrap(), "no-answer");
}

#[test]
fn a_target_is_a_collection_or_a_list_and_nothing_else() {
    let start: StartTask =
        serde_json::from_str(r#"{"action": "ping", "target": {"collection": "all"}}"#).unwrap();
    assert_eq!(start.target, Target::Collection("all".to_owned()));
    assert_eq!((start.validity_seconds, start.digest), (None, None));
    for wrong in [
        r#"{"action": "ping", "target": {"everyone": true}}"#,
        r#"{"action": "ping", "target": {"collection": "all"}, "force": true}"#,
        r#"{"action": "reboot", "target": {"collection": "all"}}"#,
    ] {
        assert!(serde_json::from_str::<StartTask>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_row_within_a_row_is_flat_and_reads_back() {
    let row = DeviceRow {
        number: DeviceId(4),
        guid: DeviceGuid::from_bytes([4; 16]),
        name: "pc-4".to_owned(),
        membership: Membership::Active,
        connectivity: Connectivity::Never,
        since: None,
        server: None,
        address: None,
        road: Some(RoadTaken::tcp()),
        agent_version: None,
    };
    let details = DeviceDetails {
        row: row.clone(),
        last_online: None,
        last_offline: None,
        boot: None,
        session: Some(7),
        clock_skew_ms: None,
        policy_version: None,
        platform: None,
        hostname: None,
        certificates: Vec::new(),
        collections: vec![ALL_DEVICES.to_owned()],
        inventory: None,
    };
    let json = serde_json::to_value(&details).unwrap();
    assert_eq!((&json["name"], &json["road"]["road"]), (&"pc-4".into(), &"tcp".into()));
    assert_eq!(serde_json::from_value::<DeviceDetails>(json).unwrap(), details);
}

#[test]
fn counts_that_add_up_say_what_is_done() {
    assert!(counts().adds_up());
    assert_eq!(counts().done(), 3);
    assert!(!TaskCounts { succeeded: 4, ..counts() }.adds_up());
}

#[test]
fn a_road_in_a_survey_is_flat_and_its_reason_a_word_or_one_with_a_value() {
    let count = |reason| RoadCount {
        road: Some(Road::WebSocket),
        outer_tls: true,
        proxied: false,
        reason,
        devices: 2,
    };
    let network = NetworkRoads {
        network: Some("192.0.2.0/24".to_owned()),
        devices: 7,
        off_tcp: 7,
        roads: vec![
            count(Some(RoadReason::TimedOut)),
            count(Some(RoadReason::ProxyAnswer(407))),
            count(Some(RoadReason::Intercepted("Gateway".to_owned()))),
        ],
        others: 1,
    };
    let json = serde_json::to_value(&network).unwrap();
    assert_eq!(
        json["roads"][0],
        serde_json::json!({
            "road": "web-socket", "outer_tls": true, "proxied": false, "reason": "timed-out", "devices": 2,
        })
    );
    assert_eq!(json["roads"][1]["reason"], serde_json::json!({ "proxy-answer": 407 }));
    assert_eq!(json["roads"][2]["reason"], serde_json::json!({ "intercepted": "Gateway" }));
    assert_eq!(serde_json::from_value::<NetworkRoads>(json).unwrap(), network);
}
