use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use super::*;

const LIMIT: Duration = Duration::from_secs(120);

/// What the signature file of these tests knows by its MD5 (ClamAV's .hdb: digest, length, name).
const SAMPLE: &str = "bgb test sample";
const SIGNATURES: &str = "d3b391a145e24dd58343de416bdd2a2d:15:BGB.Test.Sample\n";

/// A folder with signatures, a clean file, a bad one, and a bad one in `sub/`.
fn samples() -> (tempfile::TempDir, ScanConfig) {
    assert!(
        Path::new("/usr/bin/clamscan").exists(),
        "ClamAV is not installed; `make setup` installs what the tests need"
    );
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("signatures");
    std::fs::create_dir(&database).unwrap();
    std::fs::write(database.join("bgb.hdb"), SIGNATURES).unwrap();
    let files = folder.path().join("files");
    std::fs::create_dir_all(files.join("sub")).unwrap();
    std::fs::write(files.join("clean.txt"), "nothing to see").unwrap();
    std::fs::write(files.join("bad.txt"), SAMPLE).unwrap();
    std::fs::write(files.join("sub/bad.txt"), SAMPLE).unwrap();
    let config = ScanConfig { engine: Engine::Clamscan, database: Some(database), ..ScanConfig::default() };
    (folder, config)
}

fn settings(json: &Value) -> PolicySettings {
    PolicySettings::parse(&json.to_string()).unwrap()
}

fn quick(config: &ScanConfig, json: &Value) -> (Outcome, String) {
    let outcome = scan(Action::QuickScan, config, &settings(json), LIMIT, &Stop::new().unwrap());
    let text = String::from_utf8(outcome.output.clone()).unwrap();
    (outcome, text)
}

#[test]
fn what_is_bad_is_found_and_the_scan_has_succeeded() {
    let (folder, config) = samples();
    let files = folder.path().join("files");
    let (outcome, text) = quick(&config, &json!({"quick_scan_paths": [files]}));
    assert_eq!((outcome.ending, outcome.code), (Ending::Succeeded, 1), "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["scanned"], 3);
    assert_eq!((&json["engine"], &json["signatures_loaded"]), (&json!("clamscan"), &json!(1)));
    assert!(json["engine_version"].as_str().unwrap().starts_with("ClamAV "), "{text}");
    let mut found: Vec<_> = json["found"].as_array().unwrap().iter().map(|one| one["file"].clone()).collect();
    found.sort_by_key(ToString::to_string);
    assert_eq!(found, [json!(files.join("bad.txt")), json!(files.join("sub/bad.txt"))]);
    // ClamAV marks signatures that it did not make itself.
    assert_eq!(json["found"][0]["signature"], "BGB.Test.Sample.UNOFFICIAL");
}

/// clamd with the signatures of [`samples`], on a socket in their folder; killed when dropped.
struct Clamd(std::process::Child);

impl Clamd {
    fn start(folder: &Path, config: &mut ScanConfig) -> Self {
        assert!(
            Path::new("/usr/sbin/clamd").exists() && Path::new("/usr/bin/clamdscan").exists(),
            "clamd is not installed; `make setup` installs what the tests need"
        );
        let (socket, path) = (folder.join("clamd.socket"), folder.join("clamd.conf"));
        let database = config.database.clone().unwrap();
        let text = format!(
            "LocalSocket {}\nDatabaseDirectory {}\nForeground yes\n",
            socket.display(),
            database.display()
        );
        std::fs::write(&path, text).unwrap();
        config.clamd_config = Some(path.clone());
        config.engine = Engine::Auto;
        let mut command = std::process::Command::new("/usr/sbin/clamd");
        command.arg(format!("--config-file={}", path.display()));
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let clamd = Self(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while !clamd_answers(config, &Stop::new().unwrap()) {
            assert!(Instant::now() < deadline, "clamd does not answer");
        }
        clamd
    }
}

impl Drop for Clamd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn clamd_scans_when_it_answers_and_clamscan_when_it_does_not() {
    let (folder, mut config) = samples();
    let clamd = Clamd::start(folder.path(), &mut config);
    for (engine, clamd) in [("clamdscan", Some(clamd)), ("clamscan", None)] {
        let (outcome, text) = quick(&config, &json!({"quick_scan_paths": [folder.path().join("files/sub")]}));
        drop(clamd);
        assert_eq!((outcome.ending, outcome.code), (Ending::Succeeded, 1), "{text}");
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&json["engine"], &json["found_total"]), (&json!(engine), &json!(1)), "{text}");
    }
}

#[test]
fn what_is_clean_is_clean_and_exclusions_are_not_entered() {
    let (folder, config) = samples();
    let files = folder.path().join("files");
    let (outcome, text) = quick(
        &config,
        &json!({"quick_scan_paths": [files], "scan_exclusions": [files.join("bad.txt"), files.join("sub")]}),
    );
    assert_eq!((outcome.ending, outcome.code), (Ending::Succeeded, 0), "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["scanned"], &json["found"]), (&json!(1), &json!([])));
}

#[test]
fn exclusions_hold_for_clamd_as_well_and_none_for_what_only_looks_alike() {
    let (folder, mut config) = samples();
    let files = folder.path().join("files");
    std::fs::create_dir(files.join("sub.d")).unwrap();
    std::fs::create_dir(files.join("sub+d")).unwrap();
    std::fs::write(files.join("sub+d/bad.txt"), SAMPLE).unwrap();
    let json = json!({"quick_scan_paths": [files], "scan_exclusions": [files.join("bad.txt"), files.join("sub"), files.join("sub.d")]});
    let clamd = Clamd::start(folder.path(), &mut config);
    for (engine, clamd) in [("clamdscan", Some(clamd)), ("clamscan", None)] {
        let (outcome, text) = quick(&config, &json);
        drop(clamd);
        assert_eq!((outcome.ending, outcome.code), (Ending::Succeeded, 1), "{text}");
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["engine"], engine);
        assert_eq!(json["found"][0]["file"], json!(files.join("sub+d/bad.txt")));
        assert_eq!(json["found_total"], 1);
    }
}

#[test]
fn a_path_that_goes_away_does_not_make_the_scan_a_failed_one() {
    let (folder, config) = samples();
    let places = [folder.path().join("files/clean.txt"), folder.path().join("gone")];
    let front_end = clamscan_without(&config, &places, &[]);
    let places = Places { wanted: &places, skipped: &[] };
    let outcome = scan_with_clamav(front_end, &config, &places, LIMIT, &Stop::new().unwrap());
    let text = String::from_utf8(outcome.output).unwrap();
    assert_eq!((outcome.ending, outcome.code), (Ending::Succeeded, 0), "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    assert!(json["messages"].as_str().unwrap().contains("gone"), "{text}");
    assert_eq!(json["scanned"], 1);
}

#[test]
fn many_files_beside_an_exclusion_do_not_keep_a_scan_from_being_made() {
    let (folder, config) = samples();
    let files = folder.path().join("files");
    for number in 0..4_200 {
        std::fs::write(files.join(number.to_string()), "").unwrap();
    }
    let (outcome, text) =
        quick(&config, &json!({"quick_scan_paths": [files], "scan_exclusions": [files.join("sub")]}));
    assert_eq!((outcome.ending, outcome.code), (Ending::Succeeded, 1), "{text}");
}

#[test]
fn an_engine_without_signatures_is_a_failure_that_says_so() {
    let (folder, config) = samples();
    std::fs::remove_file(config.database.clone().unwrap().join("bgb.hdb")).unwrap();
    let (outcome, text) = quick(&config, &json!({"quick_scan_paths": [folder.path().join("files")]}));
    assert_eq!((outcome.ending, outcome.code), (Ending::Failed, 2), "{text}");
    assert!(
        serde_json::from_str::<Value>(&text).unwrap()["messages"]
            .as_str()
            .is_some_and(|said| !said.is_empty())
    );
}

#[test]
fn without_a_path_that_exists_nothing_is_run() {
    let (_folder, config) = samples();
    let (outcome, text) = quick(&config, &json!({"quick_scan_paths": ["/nonexistent/place"]}));
    assert_eq!(outcome.ending, Ending::Failed);
    assert!(text.contains("nothing to scan"), "{text}");
}

#[test]
fn a_command_of_the_site_gets_the_action_and_the_paths() {
    let (folder, _) = samples();
    let script = folder.path().join("scanner");
    std::fs::write(&script, "#!/bin/sh\necho \"$@\"\nexit $1\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let files = folder.path().join("files");
    for (code, ending) in [(0, Ending::Succeeded), (1, Ending::Succeeded), (2, Ending::Failed)] {
        let command = Some(vec![script.display().to_string(), code.to_string()]);
        let config = ScanConfig { command, ..ScanConfig::default() };
        let (outcome, text) = quick(&config, &json!({"quick_scan_paths": [files]}));
        assert_eq!((outcome.ending, outcome.code), (ending, code));
        assert_eq!(text, format!("{code} quick-scan {}\n", files.display()));
    }
}

#[test]
fn a_scan_at_its_limit_fails_with_what_it_had_said() {
    let config = ScanConfig {
        command: Some(vec!["sh".to_owned(), "-c".to_owned(), "echo begun; sleep 600".to_owned()]),
        ..ScanConfig::default()
    };
    let (folder, _) = samples();
    let settings = settings(&json!({"quick_scan_paths": [folder.path()]}));
    let limit = Duration::from_millis(500);
    let outcome = scan(Action::QuickScan, &config, &settings, limit, &Stop::new().unwrap());
    let text = String::from_utf8(outcome.output).unwrap();
    assert_eq!(outcome.ending, Ending::Failed);
    assert!(text.starts_with("begun\n") && text.contains("ended at the action's limit"), "{text}");
}
