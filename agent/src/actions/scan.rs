//! quick-scan and full-scan: a real engine, its exit codes understood, its findings as JSON.
//!
//! The engine is ClamAV: `clamdscan` if its daemon answers, else `clamscan`; or a command of the site's own. Both of ClamAV's exit
//! codes that mean a finished scan are success here (clamscan(1)): 0, nothing found, and 1, something found, which is what the
//! scan was for; the code goes with the result, so that a collection of infected devices can be told from it. 2 and above is
//! a scan that failed, and so is one that met its limit; what it had found until then is told all the same.
//!
//! It owns the choice of engine, paths and exclusions. It knows no server and no journal. Law: no path that policy excludes
//! is handed to an engine, whatever options the engine has: exclusions are cut out of the list of paths ([`paths`]).

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
    let paths = match paths::without(&wanted, &excluded) {
        Ok(paths) if paths.is_empty() => {
            return failed("there is nothing to scan: none of the paths exists outside the exclusions");
        }
        Ok(paths) => paths,
        Err(fault) => return failed(&fault),
    };
    if let Some(command) = &config.command {
        return scan_with_command(command, action, &paths, limit, stop);
    }
    let engine = match config.engine {
        Engine::Auto if clamd_answers(config, stop) => Engine::Clamdscan,
        Engine::Auto => Engine::Clamscan,
        named => named,
    };
    scan_with_clamav(engine, config, &wanted, &paths, limit.saturating_sub(begun.elapsed()), stop)
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
    engine: Engine,
    config: &ScanConfig,
    wanted: &[PathBuf],
    paths: &[PathBuf],
    limit: Duration,
    stop: &Stop,
) -> Outcome {
    let begun = Instant::now();
    let (name, mut command) = match engine {
        Engine::Clamdscan => ("clamdscan", clamdscan(config)),
        Engine::Clamscan | Engine::Auto => ("clamscan", clamscan(config)),
    };
    let version = said_briefly(version(engine, config), stop);
    command.args(["--infected", "--stdout"]).args(paths);
    let mut report = Report::default();
    let end = match run(command, limit, stop, &mut |bytes| report.push(bytes)) {
        Ok(end) => end,
        Err(error) => {
            return failed(&format!(
                "{error}; install ClamAV (Debian: clamav), or set scan.command in agent.toml"
            ));
        }
    };
    let (ending, code) = match end {
        End::Exited(code @ (0 | 1)) => (Ending::Succeeded, code),
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
        paths: wanted,
        seconds: begun.elapsed().as_secs(),
        is_complete: ending == Ending::Succeeded,
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

fn clamdscan(config: &ScanConfig) -> Command {
    let mut command = program("clamdscan");
    command.args(clamd_config(config));
    // The daemon is not root: it is handed open files, as many at a time as it has threads.
    command.args(["--fdpass", "--multiscan"]);
    command
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
