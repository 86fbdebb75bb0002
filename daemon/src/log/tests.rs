//! A whole process's log, in a process of its own: tracing can be set up once only.

use std::process::{Command, Stdio};

use super::*;

/// Set, to the folder of its logs, in the process that the tests below start.
const CHILD: &str = "BGB_TEST_LOG_CHILD";
/// How the child writes to standard error.
const CHILD_STDERR: &str = "BGB_TEST_LOG_STDERR";

#[test]
fn child_that_logs() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let stderr = std::env::var(CHILD_STDERR).unwrap().parse().unwrap();
    let config = LogConfig { level: "info,quiet=warn".to_owned(), stderr, directory: Some(folder.into()) };
    let guard = init(config.options("BGBServer", "BGBServer.log")).unwrap();
    tracing::info!(address = "127.0.0.1:10123", shards = 2, "listening");
    tracing::warn!(component = "BgbHttpProxy", reason = "a word or two", "refused");
    tracing::error!(error = %std::io::Error::other("no\nluck"), "failed");
    tracing::debug!("not wanted");
    tracing::info!(target: "quiet", "not wanted");
    log::warn!("from the other crate");
    assert!(init(config.options("Twice", "twice.log")).is_err(), "once per process");
    drop(guard);
}

fn run_child(stderr: &str, folder: &std::path::Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "log::tests::child_that_logs", "--nocapture"])
        .env(CHILD, folder)
        .env(CHILD_STDERR, stderr)
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn records_go_to_the_file_with_component_severity_and_place() {
    let folder = tempfile::tempdir().unwrap();
    let stderr = run_child("off", folder.path());
    assert!(!stderr.contains("listening"), "{stderr}");
    let text = std::fs::read_to_string(folder.path().join("BGBServer.log")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let expected = [
        ("<![LOG[listening address=127.0.0.1:10123 shards=2]LOG]!>", "BGBServer", 1),
        ("<![LOG[refused reason=\"a word or two\"]LOG]!>", "BgbHttpProxy", 2),
        ("<![LOG[failed error=no\\nluck]LOG]!>", "BGBServer", 3),
        ("<![LOG[from the other crate]LOG]!>", "BGBServer", 2),
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, (message, component, severity)) in lines.into_iter().zip(expected) {
        assert!(line.starts_with(message), "{line}");
        assert!(
            line.contains(&format!("component=\"{component}\" context=\"\" type=\"{severity}\"")),
            "{line}"
        );
        assert!(line.contains(" file=\"tests.rs:"), "{line}");
    }
}

#[test]
fn standard_error_has_text_or_json() {
    let folder = tempfile::tempdir().unwrap();
    let text = run_child("text", folder.path());
    assert!(text.contains("listening address=\"127.0.0.1:10123\" shards=2"), "{text}");

    let json = run_child("json", folder.path());
    let line = json.lines().find(|line| line.contains("listening")).unwrap();
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((&value["message"], &value["shards"]), (&"listening".into(), &2.into()));
}

#[test]
fn a_log_folder_that_does_not_exist_stops_nothing_and_is_said_once() {
    let stderr = run_child("off", std::path::Path::new("/nonexistent/logs"));
    assert_eq!(stderr.matches("/nonexistent/logs/BGBServer.log cannot be written").count(), 1, "{stderr}");
}

#[test]
fn a_level_that_is_none_is_refused_with_those_that_are() {
    let mut options = LogConfig::default().options("BGBServer", "BGBServer.log");
    options.level = "info,bgb=loud".to_owned();
    let Err(error) = init(options) else { panic!("this level does not exist") };
    assert!(error.to_string().contains("use error, warn, info, debug or trace"), "{error}");
}

#[test]
fn the_section_of_the_configuration_has_defaults_and_knows_its_keys() {
    let config: LogConfig = toml::from_str("stderr = \"json\"\ndirectory = \"/var/log/bgb\"").unwrap();
    assert_eq!((config.level.as_str(), config.stderr), ("info", StderrFormat::Json));
    let options = config.options("BGBServer", "BGBServer.log");
    assert_eq!(options.file.unwrap(), std::path::Path::new("/var/log/bgb/BGBServer.log"));
    assert!(toml::from_str::<LogConfig>("colour = true").is_err());
    for format in [StderrFormat::Text, StderrFormat::Json, StderrFormat::Off] {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    assert!("loud".parse::<StderrFormat>().is_err());
}
