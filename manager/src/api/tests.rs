//! The API over a real loopback socket, as `bgb` meets it: every route, every kind of refusal.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bgb_protocol::action::Action;
use bgb_protocol::api::*;
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::message::{Road, RoadReason, RoadTaken};
use bgb_protocol::status::StatusId;
use bgb_site::init::{InitOptions, site_init};
use serde_json::{Value, json};

use crate::config::ManagerConfig;
use crate::service::Service;

struct TestApi {
    root: tempfile::TempDir,
    inbox: std::path::PathBuf,
    service: Option<Service>,
    address: SocketAddr,
    token: String,
}

impl TestApi {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let now = UnixMillis(super::now().unix_ms);
        let addresses = vec!["bgb.example.org:10123".to_owned()];
        let mut options = InitOptions::new(root.path().join("site"), "LAB".parse().unwrap(), addresses, now);
        options.manager_listen = "127.0.0.1:0".parse().unwrap();
        options.manager_admin = "127.0.0.1:0".parse().unwrap();
        let folder = site_init(&options).unwrap().folder;
        let config = ManagerConfig::load(&folder.manager_config()).unwrap();
        let service = Service::start(&config).unwrap();
        let token = std::fs::read_to_string(folder.api_token()).unwrap().trim().to_owned();
        Self { root, inbox: folder.inbox(), address: service.api_address(), service: Some(service), token }
    }

    /// A site with devices `pc-0` to `pc-(n-1)`.
    fn with_devices(count: usize) -> Self {
        let api = Self::new();
        let names: Vec<_> = (0..count).map(|number| format!("pc-{number}")).collect();
        let (status, body) = api.send("POST", "/devices/bulk", &json!({ "names": names }));
        assert_eq!(status, 200, "{body}");
        api
    }

    fn raw(&self, head: &str, body: &[u8]) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer has a head");
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_slice(&answer[end + 4..]).unwrap_or(Value::Null))
    }

    fn send_as(&self, token: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
        let head = format!(
            "{method} {PREFIX}{path} HTTP/1.1\r\nhost: localhost\r\nauthorization: {token}\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        self.raw(&head, body.as_bytes())
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send_as(&format!("Bearer {}", self.token), method, path, &body)
    }

    fn fetch(&self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, &Value::Null);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// The error of a request that is to fail.
    fn refused(&self, method: &str, path: &str, body: &Value) -> (u16, ErrorCode) {
        let (status, body) = self.send(method, path, body);
        let error: ErrorBody = serde_json::from_value(body).unwrap();
        assert!(!error.error.is_empty());
        assert_eq!(status, error.code.http_status());
        (status, error.code)
    }

    /// All rows of a list, page by page.
    fn all(&self, path: &str, limit: usize) -> Vec<Value> {
        let (mut rows, mut after) = (Vec::new(), String::new());
        loop {
            let mark = if path.contains('?') { '&' } else { '?' };
            let page = self.fetch(&format!("{path}{mark}limit={limit}&after={after}"));
            rows.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["next"].as_str() {
                Some(next) => after = next.replace(' ', "%20"),
                None => return rows,
            }
        }
    }
}

fn ping_all() -> Value {
    json!({ "action": "ping", "target": { "collection": "all" } })
}

#[test]
fn only_the_token_opens_it() {
    let api = TestApi::new();
    for token in
        ["", "Bearer", "Bearer ", "Bearer wrong", &format!("Basic {}", api.token), &api.token.clone()]
    {
        let (status, body) = api.send_as(token, "GET", "/status", "");
        assert_eq!((status, body["code"].as_str()), (401, Some("unauthorized")), "{token}");
    }
    let (status, _) = api.send_as("Bearer wrong", "POST", "/nowhere", "");
    assert_eq!(status, 401, "strangers do not learn which paths there are");
    assert_eq!(api.send("GET", "/status", &Value::Null).0, 200);
}

#[test]
fn paths_and_methods_that_are_not_there_are_refused() {
    let api = TestApi::new();
    for path in ["/nowhere", "/tasks/17", "/devices/a/b/c", "/status/x"] {
        assert_eq!(api.refused("GET", path, &Value::Null), (404, ErrorCode::UnknownPath), "{path}");
    }
    for (method, path) in
        [("DELETE", "/status"), ("POST", "/status"), ("PUT", "/devices"), ("GET", "/devices/x/block")]
    {
        assert_eq!(
            api.refused(method, path, &Value::Null),
            (405, ErrorCode::MethodNotAllowed),
            "{method} {path}"
        );
    }
    assert_eq!(api.refused("GET", "/devices?colour=red", &Value::Null).1, ErrorCode::BadRequest);
    assert_eq!(api.refused("GET", "/devices?limit=1001", &Value::Null).1, ErrorCode::BadRequest);
    assert_eq!(api.refused("POST", "/tasks?force=1", &ping_all()).1, ErrorCode::BadRequest);
}

#[test]
fn the_status_tells_the_site_its_manager_and_its_servers() {
    let api = TestApi::with_devices(3);
    let status: SiteStatus = serde_json::from_value(api.fetch("/status")).unwrap();
    assert_eq!((status.site.as_str(), status.devices.all, status.devices.online), ("LAB", 3, 0));
    assert_eq!(status.manager.version, env!("CARGO_PKG_VERSION"));
    assert!(status.manager.database_writable && status.manager.started.0 > 0);
    assert_eq!(status.servers.len(), 1);
    assert_eq!(status.generation.len(), 32);
    api.send("POST", "/devices/pc-1/block", &Value::Null);
    let status: SiteStatus = serde_json::from_value(api.fetch("/status")).unwrap();
    assert_eq!(status.devices.blocked, 1);
}

#[test]
fn roads_are_counted_by_network_and_by_reason() {
    let api = TestApi::with_devices(4);
    let survey: RoadSurvey = serde_json::from_value(api.fetch("/roads")).unwrap();
    assert_eq!((survey.online, survey.networks_all, survey.roads.len()), (0, 0, 0));

    let database = rusqlite::Connection::open(api.root.path().join("site/site.db")).unwrap();
    let tcp = RoadTaken::tcp();
    let intercepted = RoadTaken {
        road: Road::WebSocket,
        outer_tls: true,
        proxied: true,
        reason: Some(RoadReason::Intercepted("Gateway".to_owned())),
    };
    for (device, address, road) in [
        (0, "192.0.2.7:5000", Some(&tcp)),
        (1, "192.0.2.8:5000", Some(&tcp)),
        (2, "[2001:db8:1::7]:5000", Some(&intercepted)),
        (3, "nowhere", None),
    ] {
        let road = road.map(|road| serde_json::to_string(road).unwrap());
        database
            .execute(
                "UPDATE device SET presence = 1, address = ?2, road = ?3 WHERE number = ?1",
                rusqlite::params![device, address, road],
            )
            .unwrap();
    }
    let survey: RoadSurvey = serde_json::from_value(api.fetch("/roads?limit=2")).unwrap();
    assert_eq!((survey.online, survey.networks_all, survey.networks_off_tcp), (4, 3, 1));
    let networks: Vec<_> = survey.networks.iter().map(|row| row.network.as_deref()).collect();
    assert_eq!(networks, [Some("2001:db8:1::/48"), Some("192.0.2.0/24")]);
    let [RoadCount { road, outer_tls, proxied, reason, devices }] = &survey.networks[0].roads[..] else {
        panic!("{survey:?}");
    };
    let taken =
        RoadTaken { road: road.unwrap(), outer_tls: *outer_tls, proxied: *proxied, reason: reason.clone() };
    assert_eq!((&taken, *devices), (&intercepted, 1));
    let totals: Vec<_> = survey.roads.iter().map(|total| (total.road, total.devices)).collect();
    assert_eq!(totals, [(Some(Road::Tcp), 2), (None, 1), (Some(Road::WebSocket), 1)]);
    let listed = api.all("/devices?connectivity=online", 3);
    assert_eq!(listed[2]["road"], serde_json::to_value(&intercepted).unwrap());
    assert_eq!((&listed[2]["road"], &listed[3]["road"]), (&api.fetch("/devices/2")["road"], &Value::Null));
    assert_eq!(api.fetch("/roads")["networks"][2]["network"], Value::Null);
    assert_eq!(api.refused("GET", "/roads?limit=1001", &Value::Null).1, ErrorCode::BadRequest);
    assert_eq!(api.refused("GET", "/roads?network=x", &Value::Null).1, ErrorCode::BadRequest);
}

#[test]
fn messages_are_filtered_and_paged_from_the_newest_on() {
    let api = TestApi::with_devices(2);
    for name in ["pc-0", "pc-1"] {
        assert_eq!(api.send("POST", &format!("/devices/{name}/block"), &Value::Null).0, 200);
    }
    let warnings = api.all("/messages?severity=warning&component=SMS_NOTIFICATION_MANAGER", 1);
    assert!(warnings.len() >= 2);
    assert!(warnings.iter().all(|row| row["severity"] != "informational"));
    let blocked: Vec<_> =
        warnings.iter().filter(|row| row["id"] == StatusId::DeviceBlocked.number()).collect();
    assert_eq!((blocked.len(), blocked[0]["about"].as_str()), (2, Some("pc-1")));
    let all = api.all("/messages", 2);
    assert!(all.windows(2).all(|pair| pair[0]["number"].as_u64() > pair[1]["number"].as_u64()));
    assert!(api.all("/messages?severity=error", 10).is_empty());
    assert_eq!(api.refused("GET", "/messages?severity=loud", &Value::Null).1, ErrorCode::BadRequest);
}

#[test]
fn devices_are_added_found_and_listed() {
    let api = TestApi::with_devices(5);
    let (status, body) = api.send("POST", "/devices", &json!({ "name": "Büro-1" }));
    assert_eq!(status, 200, "{body}");
    let bundle: DeviceBundle = serde_json::from_value(body).unwrap();
    assert_eq!((bundle.number.0, bundle.servers[0].as_str()), (5, "bgb.example.org:10123"));
    assert!(bundle.key_pem.contains("PRIVATE KEY") && bundle.task_keys[0].len() == 64);
    assert_eq!(api.refused("POST", "/devices", &json!({ "name": "pc-1" })), (409, ErrorCode::NameTaken));
    assert_eq!(api.refused("POST", "/devices", &json!({ "nom": "x" })).1, ErrorCode::BadRequest);
    for wrong in ["5", "a/b", &bundle.guid.to_string()] {
        let body = json!({ "name": wrong });
        assert_eq!(api.refused("POST", "/devices", &body).1, ErrorCode::BadRequest, "{wrong}");
    }

    for reference in ["B%C3%BCro-1", "5", &bundle.guid.to_string()] {
        let details: DeviceDetails =
            serde_json::from_value(api.fetch(&format!("/devices/{reference}"))).unwrap();
        assert_eq!((details.row.number, details.row.connectivity), (bundle.number, Connectivity::Never));
        assert_eq!(details.certificates.len(), 1);
        assert!(!details.certificates[0].revoked && details.certificates[0].fingerprint.len() == 64);
    }
    assert_eq!(api.refused("GET", "/devices/nobody", &Value::Null), (404, ErrorCode::UnknownDevice));

    assert_eq!(api.all("/devices", 2).len(), 6);
    assert_eq!(api.all("/devices?name=pc-", 2).len(), 5);
    assert_eq!(api.all("/devices?connectivity=never", 4).len(), 6);
    assert_eq!(api.all("/devices?connectivity=never&name=pc-", 2).len(), 5);
    assert_eq!(api.all("/devices?connectivity=online&name=pc-", 2).len(), 0);
    let (_, row) = api.send("POST", "/devices/5/block", &Value::Null);
    assert_eq!(row["membership"], "blocked");
    let (_, row) = api.send("POST", "/devices/5/unblock", &Value::Null);
    assert_eq!(row["membership"], "active");
}

#[test]
fn a_device_is_shown_also_when_its_inventory_cannot_be_read() {
    let api = TestApi::with_devices(1);
    let database = rusqlite::Connection::open(api.root.path().join("site/site.db")).unwrap();
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    database
        .execute(
            "INSERT INTO inventory (device, collected, document) VALUES (0, 1, ?1)",
            rusqlite::params![deep],
        )
        .unwrap();
    assert_eq!(api.fetch("/devices/0")["inventory"], Value::Null);
    database.execute("UPDATE inventory SET document = '{\"memory\":8}'", []).unwrap();
    assert_eq!(api.fetch("/devices/0")["inventory"]["memory"], 8);
}

#[test]
fn a_request_that_asks_for_too_much_is_refused_as_a_whole() {
    let api = TestApi::new();
    let names: Vec<_> = (0..=DEVICES_PER_REQUEST_MAX).map(|number| format!("d{number}")).collect();
    assert_eq!(api.refused("POST", "/devices/bulk", &json!({ "names": names })), (413, ErrorCode::TooLarge));
    assert!(api.all("/devices", 1).is_empty());
    let members: Vec<_> = (0..=MEMBERS_PER_REQUEST_MAX).map(|number| number.to_string()).collect();
    let body = json!({ "action": "ping", "target": { "devices": members } });
    assert_eq!(api.refused("POST", "/tasks/preview", &body), (413, ErrorCode::TooLarge));
}

#[test]
fn collections_are_made_filled_and_listed_with_the_built_in_one_first() {
    let api = TestApi::with_devices(4);
    let (status, row) = api.send("POST", "/collections", &json!({ "name": "Finance laptops" }));
    assert_eq!((status, row["members"].as_u64()), (200, Some(0)));
    let path = "/collections/Finance%20laptops";
    let (status, changed) =
        api.send("POST", &format!("{path}/members"), &json!({ "add": ["pc-1", "2", "pc-3"] }));
    assert_eq!((status, changed["added"].as_u64()), (200, Some(3)), "{changed}");
    let (_, changed) = api.send("POST", &format!("{path}/members"), &json!({ "remove": ["pc-3"] }));
    assert_eq!((changed["removed"].as_u64(), changed["collection"]["members"].as_u64()), (Some(1), Some(2)));
    assert_eq!(api.fetch(path)["members"], 2);
    let members = api.all(&format!("{path}/members"), 1);
    assert_eq!(members.iter().map(|row| row["number"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(api.all("/collections/all/members", 3).len(), 4);
    let details: DeviceDetails = serde_json::from_value(api.fetch("/devices/pc-1")).unwrap();
    assert_eq!(details.collections, ["Finance laptops"]);

    api.send("POST", "/collections", &json!({ "name": "Berlin" }));
    for limit in [1, 2, 100] {
        let names: Vec<_> = api
            .all("/collections", limit)
            .iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["all", "Berlin", "Finance laptops"], "{limit}");
    }
    assert_eq!(api.refused("GET", "/collections/none", &Value::Null), (404, ErrorCode::UnknownCollection));
    assert_eq!(api.refused("POST", "/collections", &json!({ "name": "all" })), (409, ErrorCode::BuiltIn));
    let add = json!({ "add": ["nobody"] });
    assert_eq!(api.refused("POST", &format!("{path}/members"), &add), (404, ErrorCode::UnknownDevice));
}

#[test]
fn policies_are_issued_shown_and_withdrawn() {
    let api = TestApi::with_devices(1);
    let put = json!({ "priority": 10, "settings": { "keepalive_seconds": 120 } });
    let (status, row) = api.send("PUT", "/policies/base", &put);
    assert_eq!((status, row["settings"]["keepalive_seconds"].as_u64()), (200, Some(120)), "{row}");
    api.send("POST", "/collections", &json!({ "name": "lab" }));
    api.send("POST", "/collections/lab/members", &json!({ "add": ["0"] }));
    let (_, row) =
        api.send("PUT", "/policies/lab", &json!({ "priority": 20, "collection": "lab", "settings": {} }));
    assert_eq!((row["devices"].as_u64(), row["collection"].as_str()), (Some(1), Some("lab")), "{row}");
    let wrong = json!({ "priority": 1, "settings": { "keepalive_seconds": 1 } });
    assert_eq!(api.refused("PUT", "/policies/base", &wrong).1, ErrorCode::BadRequest);
    let unknown = json!({ "priority": 1, "settings": { "colour": "red" } });
    assert_eq!(api.refused("PUT", "/policies/base", &unknown).1, ErrorCode::BadRequest);
    assert_eq!(api.all("/policies", 100).len(), 2);
    assert_eq!(api.fetch("/policies/BASE")["version"], 1);
    assert_eq!(api.send("DELETE", "/policies/base", &Value::Null).0, 200);
    assert_eq!(api.refused("GET", "/policies/base", &Value::Null), (404, ErrorCode::UnknownPolicy));
}

#[test]
fn a_task_is_previewed_started_watched_and_cancelled() {
    let api = TestApi::with_devices(3);
    let preview: TaskPreview =
        serde_json::from_value(api.send("POST", "/tasks/preview", &ping_all()).1).unwrap();
    assert_eq!((preview.targets, preview.online, preview.validity_seconds), (3, 0, 3_600));
    assert!(preview.sentence.starts_with("ping on 3 devices: 0 online now"), "{}", preview.sentence);
    let mut start = ping_all();
    start["digest"] = json!(preview.digest);
    let (status, body) = api.send("POST", "/tasks", &start);
    assert_eq!(status, 200, "{body}");
    let task: TaskRow = serde_json::from_value(body).unwrap();
    assert_eq!(
        (task.action, task.counts.waiting, task.digest.as_str()),
        (Action::Ping, 3, preview.digest.as_str())
    );

    let path = format!("/tasks/{}", task.task);
    let shown: TaskRow = serde_json::from_value(api.fetch(&path)).unwrap();
    assert_eq!(shown.results_per_second, Some(0.0));
    assert_eq!(api.all(&format!("{path}/waiting"), 2).len(), 3);
    assert!(api.all(&format!("{path}/results"), 2).is_empty());
    assert!(api.all(&format!("{path}/results?state=no-answer"), 2).is_empty());
    assert_eq!(
        api.refused("GET", &format!("{path}/results?state=lost"), &Value::Null).1,
        ErrorCode::BadRequest
    );

    api.send("POST", "/devices", &json!({ "name": "late" }));
    assert_eq!(api.refused("POST", "/tasks", &start), (409, ErrorCode::TargetsChanged));
    let mut short = ping_all();
    short["validity_seconds"] = json!(59);
    assert_eq!(api.refused("POST", "/tasks", &short).1, ErrorCode::BadRequest);
    assert_eq!(api.refused("POST", "/tasks/preview", &short).1, ErrorCode::BadRequest);
    let empty = json!({ "action": "ping", "target": { "devices": [] } });
    assert_eq!(api.refused("POST", "/tasks/preview", &empty).1, ErrorCode::NoTargets);

    api.send("POST", "/tasks", &ping_all());
    let listed = api.all("/tasks", 1);
    assert_eq!((listed.len(), listed[1]["task"].as_str()), (2, Some(task.task.to_string().as_str())));
    let (status, cancelled) = api.send("POST", &format!("{path}/cancel"), &Value::Null);
    assert_eq!((status, cancelled["phase"].as_str()), (200, Some("cancelled")));
    assert_eq!(api.refused("POST", &format!("{path}/cancel"), &Value::Null), (409, ErrorCode::TaskOver));
    let unknown = "/tasks/0193f1c2-7d3a-7c55-8a0e-2b9c5d1e6f70";
    assert_eq!(api.refused("GET", unknown, &Value::Null), (404, ErrorCode::UnknownTask));
}

#[test]
fn files_that_were_set_aside_are_listed_with_their_reason() {
    let api = TestApi::new();
    assert!(api.all("/files", 10).is_empty());
    for name in ["a.BTS", "b.BTS"] {
        let folder = api.inbox.join("1");
        std::fs::write(folder.join(".tmp-x"), b"no file of ours").unwrap();
        std::fs::rename(folder.join(".tmp-x"), folder.join(name)).unwrap();
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let files = loop {
        let files = api.all("/files", 1);
        if files.len() == 2 && files.iter().all(|file| file["reason"].is_string()) {
            break files;
        }
        assert!(std::time::Instant::now() < deadline, "{files:?}");
        std::thread::yield_now();
    };
    assert_eq!((files[0]["name"].as_str(), files[0]["bytes"].as_u64()), (Some("1-a.BTS"), Some(15)));
    assert!(files[0]["reason"].as_str().unwrap().contains("does not begin with the mark"), "{files:?}");
}

#[test]
fn after_the_stop_nobody_listens() {
    let mut api = TestApi::with_devices(1);
    api.service.take().unwrap().stop().unwrap();
    assert!(TcpStream::connect(api.address).is_err());
}
