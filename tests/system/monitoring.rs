//! What server, manager and agent tell Prometheus, and what is written about it: the documentation, the alert rules, the dashboard.
//!
//! Prometheus's own `promtool` judges form and names; what it cannot know is checked here: that everything documented is told, that
//! everything told is documented, and that rules and dashboard ask for nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bgb_protocol::action::Action;
use rusqlite::Connection;
use serde_json::Value as Json;
use toml::Value;

use crate::process::Process;
use crate::site::{Device, Site, edit_toml};
use crate::wait::{SOON, until, until_equal, until_true};

/// Labels that may be there. None of them grows with the fleet.
const LABELS: [&str; 8] = ["version", "road", "reason", "kind", "state", "route", "status", "le"];

/// A site whose three programs tell their metrics.
struct Told {
    site: Site,
    device: Device,
    agent: Process,
    pages: [(&'static str, SocketAddr); 3],
}

/// An answer of a page.
struct Answer {
    status: u16,
    content_type: String,
    body: String,
}

fn ask(address: SocketAddr, path: &str) -> Answer {
    let config = ureq::Agent::config_builder().proxy(None).http_status_as_error(false);
    let agent = config.timeout_global(Some(SOON)).build().new_agent();
    let mut answer = agent.get(format!("http://{address}{path}")).call().unwrap();
    let content_type = answer.headers().get("content-type").map(|value| value.to_str().unwrap().to_owned());
    Answer {
        status: answer.status().as_u16(),
        content_type: content_type.unwrap_or_default(),
        body: answer.body_mut().read_to_string().unwrap(),
    }
}

fn metrics_of(address: SocketAddr) -> String {
    ask(address, "/metrics").body
}

/// A number of a page: that of a metric, labels and all.
fn number(page: &str, series: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

/// The type of each metric of a page, by name.
fn types(page: &str) -> BTreeMap<&str, &str> {
    let lines = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines.map(|line| line.split_once(' ').unwrap()).collect()
}

impl Told {
    fn new() -> Self {
        let site = Site::running(1);
        let device = site.add_device("pc-1");
        edit_toml(&device.config(), |config| {
            config.insert("admin".into(), Value::String(format!("{}:0", site.address())));
        });
        let mut agent = site.start_agent(&device);
        let of_agent = agent.wait_ready().listen["admin"];
        let pages = [
            ("notification server", site.admin_of_server(1)),
            ("notification manager", site.admin_of_manager()),
            ("agent", of_agent),
        ];
        Self { site, device, agent, pages }
    }

    /// One that has carried out a task to its end, with the result taken in.
    fn with_a_task() -> Self {
        let told = Self::new();
        told.site.wait_online(1);
        let task = told.site.start_task(Action::Ping, "all");
        told.site.wait_succeeded(task, 1);
        told
    }

    #[track_caller]
    fn wait_number(&self, page: usize, series: &str, wanted: f64) {
        let what = format!("{series} of the {}", self.pages[page].0);
        until_equal(&what, SOON, &Some(wanted), || number(&metrics_of(self.pages[page].1), series));
    }

    #[track_caller]
    fn wait_some(&self, page: usize, series: &str) {
        let what = format!("{series} of the {} is not 0", self.pages[page].0);
        until_true(&what, SOON, || number(&metrics_of(self.pages[page].1), series).is_some_and(|n| n > 0.0));
    }
}

/// A file of the source.
fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read_source(path: &str) -> String {
    fs::read_to_string(source(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn a_task_is_seen_in_the_metrics_of_all_three() {
    let told = Told::with_a_task();
    for (series, wanted) in [
        ("bgb_server_sessions", 1.0),
        ("bgb_server_pushes_total", 1.0),
        ("bgb_server_results_acknowledged_total", 1.0),
        ("bgb_server_sign_ins_refused", 0.0),
    ] {
        told.wait_number(0, series, wanted);
    }
    for series in [
        "bgb_server_reactor_turn_seconds_count",
        "bgb_server_spool_fsync_seconds_count",
        "bgb_server_files_carried_total",
        "process_resident_memory_bytes",
    ] {
        told.wait_some(0, series);
    }
    for (series, wanted) in [
        ("bgb_manager_tasks_started_total", 1.0),
        ("bgb_manager_tasks_cancelled_total", 0.0),
        ("bgb_manager_tasks_active", 1.0),
        ("bgb_manager_devices_online", 1.0),
        ("bgb_manager_database_writable", 1.0),
        ("bgb_manager_api_requests_total{route=\"status\",status=\"4xx\"}", 0.0),
    ] {
        told.wait_number(1, series, wanted);
    }
    for series in [
        "bgb_manager_rows_ingested_total{kind=\"results\"}",
        "bgb_manager_files_ingested_total{kind=\"presence-full\"}",
        "bgb_manager_last_ingest_timestamp_seconds",
        "bgb_manager_head_timestamp_seconds",
        "bgb_manager_ingest_transaction_seconds_count",
        "bgb_manager_order_seconds_count",
        "bgb_manager_api_requests_total{route=\"tasks\",status=\"2xx\"}",
        "bgb_manager_database_bytes",
    ] {
        told.wait_some(1, series);
    }
    for (series, wanted) in [
        ("bgb_agent_connected", 1.0),
        ("bgb_agent_sign_ins_total", 1.0),
        ("bgb_agent_tasks_received_total", 1.0),
        ("bgb_agent_tasks_begun_total", 1.0),
        ("bgb_agent_tasks_ended_total{state=\"succeeded\"}", 1.0),
        ("bgb_agent_tasks_ended_total{state=\"refused\"}", 0.0),
        ("bgb_agent_tasks_running", 0.0),
    ] {
        told.wait_number(2, series, wanted);
    }
    told.wait_some(2, "bgb_agent_journal_fsync_seconds_count");
    let cancelled = told.site.start_task(Action::Ping, "all");
    let _: Json = told.site.api().post(&format!("/tasks/{cancelled}/cancel"), &()).unwrap();
    told.wait_number(1, "bgb_manager_tasks_cancelled_total", 1.0);
}

#[test]
fn each_page_is_in_prometheus_format_and_nothing_else_is_there() {
    let told = Told::with_a_task();
    for (program, address) in told.pages {
        let metrics = ask(address, "/metrics");
        assert_eq!(metrics.status, 200, "{program}");
        assert!(metrics.content_type.starts_with("text/plain; version=0.0.4"), "{}", metrics.content_type);
        assert_eq!(
            (ask(address, "/healthz").status, ask(address, "/readyz").status),
            (200, 200),
            "{program}"
        );
        assert_eq!((ask(address, "/").status, ask(address, "/metric").status), (404, 404), "{program}");
        for line in metrics.body.lines().filter(|line| !line.starts_with('#')) {
            let Some((_, rest)) = line.split_once('{') else { continue };
            for label in rest.rsplit_once('}').unwrap().0.split(',') {
                let name = label.split_once('=').unwrap().0;
                assert!(LABELS.contains(&name), "{program} tells a label {name}: {line}");
            }
            assert!(!line.contains(&told.device.name), "{program} names a device: {line}");
        }
        let said = promtool_takes(&["check", "metrics"], &metrics.body);
        assert_eq!(said, "", "promtool has something to say of the metrics of the {program}");
    }
}

#[test]
fn who_cannot_do_its_work_says_so() {
    let mut told = Told::new();
    let [(_, server), (_, manager), (_, agent)] = told.pages;
    let ready = |address| ask(address, "/readyz").status;
    for (program, address) in told.pages {
        until_equal(&format!("the {program} is ready"), SOON, &200, || ready(address));
    }
    let other = Connection::open(told.site.folder().database()).unwrap();
    until("the database can be held", SOON, || other.execute_batch("BEGIN EXCLUSIVE").ok());
    until_equal("the manager cannot write", SOON, &503, || ready(manager));
    let why = ask(manager, "/readyz").body;
    assert!(why.contains("site database cannot be written"), "{why}");
    told.wait_number(1, "bgb_manager_database_writable", 0.0);
    assert_eq!((ask(manager, "/healthz").status, ready(server)), (200, 200));
    other.execute_batch("ROLLBACK").unwrap();
    until_equal("the manager can write again", SOON, &200, || ready(manager));
    told.site.take_server(1).kill();
    until_equal("the agent has no server", SOON, &503, || ready(agent));
    until_true("the agent counts why", SOON, || {
        let page = metrics_of(agent);
        let count = |reason| number(&page, &format!("bgb_agent_disconnects_total{{reason=\"{reason}\"}}"));
        number(&page, "bgb_agent_connected") == Some(0.0)
            && ["lost", "not-connected"].iter().any(|reason| count(reason) > Some(0.0))
    });
    assert!(told.agent.is_running());
}

#[test]
fn an_agent_tells_nothing_unless_it_is_asked_to() {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    let mut agent = site.start_agent(&device);
    assert_eq!(agent.wait_ready().listen, BTreeMap::new());
}

#[test]
fn the_documentation_lists_what_is_told_and_rules_and_dashboard_ask_for_nothing_else() {
    let told = Told::with_a_task();
    let pages = told.pages.map(|(program, address)| (program, metrics_of(address)));
    let documented = documented();
    let of_all = &documented["Every program"];
    let mut series = BTreeSet::new();
    for (program, page) in &pages {
        let (_, own) = documented.iter().find(|(title, _)| title.ends_with(program)).unwrap();
        let wanted: BTreeMap<&str, &str> =
            of_all.iter().chain(own).map(|(name, kind)| (name.as_str(), kind.as_str())).collect();
        assert_eq!(types(page), wanted, "docs/monitoring.md and the {program} differ");
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            series.insert(line.split(['{', ' ']).next().unwrap());
        }
    }
    for file in ["monitoring/alerts.yml", "monitoring/dashboard.json", "docs/monitoring.md"] {
        let text = read_source(file);
        let asked: Vec<_> = names_in(&text).filter(|name| !is_known(name, &series)).collect();
        assert_eq!(asked, Vec::<&str>::new(), "{file} names what nobody tells");
    }
    let asked = read_source("monitoring/alerts.yml") + &read_source("monitoring/dashboard.json");
    assert!(names_in(&asked).count() > 50, "the names are no longer found");
    let known: String = pages.into_iter().map(|(_, page)| page).collect();
    let conditions: Vec<_> = conditions_in(&asked.replace("\\\"", "\"")).collect();
    assert!(conditions.len() > 2, "the conditions are no longer found");
    for condition in conditions {
        assert!(known.contains(&condition), "rules and dashboard ask for {condition}, which is never told");
    }
}

/// What is asked of our own labels, such as `reason="lost"`.
fn conditions_in(text: &str) -> impl Iterator<Item = String> {
    ["reason", "kind", "state", "status", "route"].into_iter().flat_map(move |label| {
        let begin = format!("{label}=\"");
        let places: Vec<_> = text.match_indices(&begin).map(|(at, _)| at).collect();
        // `alertstate` ends like one of ours.
        let own =
            places.into_iter().filter(|at| !text[..*at].ends_with(|letter: char| letter.is_alphabetic()));
        let value = move |at: usize| text[at + begin.len()..].split('"').next().unwrap_or_default();
        own.map(move |at| format!("{label}=\"{}\"", value(at))).collect::<Vec<_>>()
    })
}

/// The metrics of docs/monitoring.md with their types, by the heading that they stand under.
fn documented() -> BTreeMap<String, Vec<(String, String)>> {
    let mut documented: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut heading = String::new();
    for line in read_source("docs/monitoring.md").lines() {
        if let Some(title) = line.strip_prefix("### ") {
            title.clone_into(&mut heading);
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let ["", name, kind, unit, meaning, ""] = cells[..]
            && let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`'))
        {
            assert!(!unit.is_empty() && !meaning.is_empty(), "{name} has no unit or no meaning");
            documented.entry(heading.clone()).or_default().push((name.to_owned(), kind.to_owned()));
        }
    }
    documented
}

/// Words that are metrics' names.
fn names_in(text: &str) -> impl Iterator<Item = &str> {
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text.split(move |letter| !is_of_name(letter));
    words.filter(|word| {
        ["bgb_server_", "bgb_manager_", "bgb_agent_", "bgb_build_", "process_"]
            .iter()
            .any(|begin| word.starts_with(begin))
    })
}

/// A histogram may be spoken of as a whole, too.
fn is_known(name: &str, series: &BTreeSet<&str>) -> bool {
    series.contains(name) || series.contains(format!("{name}_bucket").as_str())
}

#[test]
fn promtool_takes_the_alert_rules_their_tests_and_the_example_of_scraping() {
    let path = |file: &str| source("monitoring").join(file).to_str().unwrap().to_owned();
    promtool_takes(&["check", "rules", &path("alerts.yml")], "");
    promtool_takes(&["test", "rules", &path("alerts_test.yml")], "");
    promtool_takes(&["check", "config", &path("prometheus.yml")], "");
}

#[test]
fn every_alert_says_what_is_wrong_and_what_to_do() {
    let text = read_source("monitoring/alerts.yml");
    let alerts: Vec<_> = text.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 20, "the alerts are no longer found");
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        for key in ["expr: ", "severity: ", "summary: '", "description: '"] {
            let value = alert.split_once(key).unwrap_or_else(|| panic!("{name} has no {key:?}")).1;
            assert!(value.lines().next().unwrap().len() > 3, "{name}: {key:?} is empty");
        }
        let severity = alert.split_once("severity: ").unwrap().1.lines().next().unwrap();
        assert!(["critical", "warning"].contains(&severity), "{name}: {severity}");
    }
}

#[test]
fn every_panel_of_the_dashboard_asks_what_promtool_understands() {
    let dashboard: Json = serde_json::from_str(&read_source("monitoring/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    let mut asked = 0;
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "the panel {title} asks for nothing");
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            // Grafana puts these in before it asks.
            let expression = expression.replace("$__rate_interval", "5m").replace("$instance", ".*");
            assert!(!expression.contains('$'), "{title}: {expression}");
            asked += 1;
            // A text of JSON is one of YAML (yaml.org/spec/1.2.2, 1.2).
            let expression = Json::String(expression).to_string();
            rules.push_str(&format!("      - record: panel:{asked}\n        expr: {expression}\n"));
        }
    }
    assert!(asked > 40, "the dashboard asks for {asked} things");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.yml");
    fs::write(&file, rules).unwrap();
    promtool_takes(&["check", "rules", file.to_str().unwrap()], "");
}

/// Runs `promtool`; all that it said.
#[track_caller]
fn promtool_takes(arguments: &[&str], input: &str) -> String {
    let started = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.unwrap_or_else(|error| {
        panic!("promtool is not installed; `make setup` installs what the tests need ({error})")
    });
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = [ended.stdout, ended.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(ended.status.success(), "promtool {arguments:?}: {said}");
    said
}
