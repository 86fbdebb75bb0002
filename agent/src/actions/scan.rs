//! quick-scan and full-scan: a real engine, its exit codes understood, its findings as JSON.
//!
//! The engine is ClamAV: `clamdscan` if its daemon answers, else `clamscan`; or a command of the site's own. Both of ClamAV's exit
//! codes that mean a finished scan are success here (clamscan(1)): 0, nothing found, and 1, something found, which is what the
//! scan was for; the code goes with the result, so that a collection of infected devices can be told from it. 2 is also said when
//! a file went away while it was scanned, or could not be read: where the engine came to its summary all the same, that is a
//! scan that succeeded, with the errors counted and told. Else 2 and above is a scan that failed, and so is one that met
//! its limit; what it had found until then is told all the same.
//!
//! It owns the choice of engine, paths and exclusions. It knows no server and no journal. Law: no engine enters what policy
//! excludes, whatever options it has ([`paths`]).

mod paths;
mod report;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bgb_protocol::action::Action;
use bgb_protocol::policy::PolicySettings;

use super::output::Output;
use super::process::{End, Stop, program, run};
use super::{failed, limit_note, outcome_of};
use crate::agent::{Ending, Outcome};
use crate::config::{Engine, ScanConfig};
use report::Report;

/// Where a quick scan looks unless policy says: where people and downloads write, and programs are put by hand.
const QUICK_PATHS: [&str; 6] = ["/tmp", "/var/tmp", "/dev/shm", "/home", "/root", "/usr/local/bin"];

/// Where a full scan looks unless policy says.
const FULL_PATHS: [&str; 1] = ["/"];

/// What no scan enters, beside what policy says: file systems that the kernel makes up (hier(7)).
const NEVER: [&str; 3] = ["/proc", "/sys", "/run"];

/// How long clamd may take to answer, and a program to tell its version.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Scans.
pub(super) fn scan(
    action: Action,
    config: &ScanConfig,
    settings: &PolicySettings,
    limit: Duration,
    stop: &Stop,
) -> Outcome {
    let begun = Instant::now();
    let (named, defaults) = match action {
        Action::FullScan => (&settings.full_scan_paths, &FULL_PATHS[..]),
        _ => (&settings.quick_scan_paths, &QUICK_PATHS[..]),
    };
    let wanted: Vec<PathBuf> = match named {
        Some(named) => named.iter().map(PathBuf::from).collect(),
        None => defaults.iter().map(PathBuf::from).collect(),
    };
    let excluded = settings.scan_exclusions.iter().flatten().map(PathBuf::from);
    let excluded: Vec<PathBuf> = excluded.chain(NEVER.map(PathBuf::from)).collect();
    let roots = paths::roots(&wanted, &excluded);
    if roots.is_empty() {
        return failed(NOTHING);
    }
    let cut = || match paths::without(&roots, &excluded) {
        Ok(covered) if covered.paths.is_empty() => Err(NOTHING.to_owned()),
        covered => covered,
    };
    if let Some(command) = &config.command {
        return match cut() {
            Ok(covered) => scan_with_command(command, action, &covered.paths, limit, stop),
            Err(fault) => failed(&fault),
        };
    }
    let daemon = match config.engine {
        Engine::Clamscan => None,
        Engine::Clamdscan => Some(cut()),
        // What cannot be cut small enough for the one is left out by the other.
        Engine::Auto => cut().ok().filter(|_| clamd_answers(config, stop)).map(Ok),
    };
    let (front_end, skipped) = match daemon {
        None => (clamscan_without(config, &roots, &excluded), Vec::new()),
        Some(Ok(covered)) => (clamdscan_of(config, &covered.paths), covered.skipped),
        Some(Err(fault)) => return failed(&fault),
    };
    let places = Places { wanted: &wanted, skipped: &skipped };
    scan_with_clamav(front_end, config, &places, limit.saturating_sub(begun.elapsed()), stop)
}

/// What is said where exclusions leave nothing, or nothing is there.
const NOTHING: &str = "there is nothing to scan: none of the paths exists outside the exclusions";

/// One of ClamAV's two front ends, ready to be run.
struct FrontEnd {
    engine: Engine,
    name: &'static str,
    command: Command,
}

/// The paths that the report names.
struct Places<'a> {
    wanted: &'a [PathBuf],
    skipped: &'a [PathBuf],
}

/// A command of the site's own: the name of the action and the paths are its last arguments; exit code 0 is nothing found, 1
/// something found, anything else a failure; its output is the result's.
fn scan_with_command(
    command: &[String],
    action: Action,
    paths: &[PathBuf],
    limit: Duration,
    stop: &Stop,
) -> Outcome {
    let Some((path, arguments)) = command.split_first() else {
        return failed("scan.command in agent.toml is empty; name a program or leave the key out");
    };
    let mut process = program(path);
    process.args(arguments).arg(action.name()).args(paths);
    let mut said = Output::default();
    match run(process, limit, stop, &mut |bytes| said.push(bytes)) {
        Ok(End::Exited(1)) => Outcome { ending: Ending::Succeeded, code: 1, output: said.into_text() },
        Ok(end) => outcome_of(end, said, limit),
        Err(error) => failed(&format!("{error}; see scan.command in agent.toml")),
    }
}

fn scan_with_clamav(
    front_end: FrontEnd,
    config: &ScanConfig,
    places: &Places<'_>,
    limit: Duration,
    stop: &Stop,
) -> Outcome {
    let begun = Instant::now();
    let FrontEnd { engine, name, command } = front_end;
    let version = said_briefly(version(engine, config), stop);
    let mut report = Report::default();
    let end = match run(command, limit, stop, &mut |bytes| report.push(bytes)) {
        Ok(end) => end,
        Err(error) => {
            return failed(&format!(
                "{error}; install ClamAV (Debian: clamav), or set scan.command in agent.toml"
            ));
        }
    };
    let came_through = |report: &Report| match engine {
        // It does not say how much it scanned; when its daemon is gone, that was not all.
        Engine::Clamdscan => report.has_summary() && clamd_answers(config, stop),
        Engine::Clamscan | Engine::Auto => report.has_scanned(),
    };
    let (ending, code) = match end {
        End::Exited(code @ (0 | 1)) => (Ending::Succeeded, code),
        End::Exited(2) if came_through(&report) => (Ending::Succeeded, i32::from(report.found() > 0)),
        End::Exited(code) => (Ending::Failed, code),
        End::Signalled(_) | End::LimitReached => (Ending::Failed, -1),
        End::Stopped => (Ending::Cancelled, -1),
    };
    if end == End::LimitReached {
        report.push(limit_note(limit).as_bytes());
    }
    let output = report.into_json(&report::Circumstances {
        engine: name,
        version: version.as_deref(),
        paths: places.wanted,
        skipped: places.skipped,
        seconds: begun.elapsed().as_secs(),
        is_complete: matches!(end, End::Exited(0 | 1)),
        has_summary: matches!(end, End::Exited(_)),
    });
    Outcome { ending, code, output }
}

fn clamscan(config: &ScanConfig) -> Command {
    let mut command = program("clamscan");
    command.arg("--recursive");
    if let Some(folder) = &config.database {
        command.arg(format!("--database={}", folder.display()));
    }
    command
}

fn clamscan_without(config: &ScanConfig, roots: &[PathBuf], excluded: &[PathBuf]) -> FrontEnd {
    let mut command = clamscan(config);
    command.args(["--infected", "--stdout"]);
    for path in excluded {
        let expression = paths::expression(path);
        command.arg(format!("--exclude-dir={expression}")).arg(format!("--exclude={expression}"));
    }
    command.args(roots);
    FrontEnd { engine: Engine::Clamscan, name: "clamscan", command }
}

fn clamdscan_of(config: &ScanConfig, paths: &[PathBuf]) -> FrontEnd {
    let mut command = program("clamdscan");
    command.args(clamd_config(config));
    // The daemon is not root: it is handed open files, as many at a time as it has threads.
    command.args(["--fdpass", "--multiscan", "--infected", "--stdout"]).args(paths);
    FrontEnd { engine: Engine::Clamdscan, name: "clamdscan", command }
}

fn clamd_config(config: &ScanConfig) -> Option<String> {
    config.clamd_config.as_deref().map(|path: &Path| format!("--config-file={}", path.display()))
}

/// What the engine says its version is: `ClamAV 1.4.3/27800/Mon …`, the second part being that of the signatures.
fn version(engine: Engine, config: &ScanConfig) -> Command {
    let mut command = match engine {
        Engine::Clamdscan => {
            let mut command = program("clamdscan");
            command.args(clamd_config(config));
            command
        }
        Engine::Clamscan | Engine::Auto => clamscan(config),
    };
    command.arg("--version");
    command
}

fn clamd_answers(config: &ScanConfig, stop: &Stop) -> bool {
    let mut command = program("clamdscan");
    command.args(clamd_config(config)).args(["--ping", "1"]);
    // Without clamdscan there is nobody to ask.
    matches!(run(command, ANSWER_LIMIT, stop, &mut |_| ()), Ok(End::Exited(0)))
}

/// The first line that a program says, if it says one in time.
fn said_briefly(command: Command, stop: &Stop) -> Option<String> {
    let mut said = Output::default();
    let end = run(command, ANSWER_LIMIT, stop, &mut |bytes| said.push(bytes)).ok()?;
    let text = String::from_utf8(said.into_text()).ok()?;
    let line = text.lines().next()?.trim();
    (end == End::Exited(0) && !line.is_empty()).then(|| line.chars().take(200).collect())
}
