//! The ground that everything stands on: namespaces for mounts, network and processes.
//!
//! The program starts itself anew inside them. There it has a network with nothing but a loopback, a folder in memory for
//! all that worlds write, and processes that end when it does. Law: what is missing is said; nothing is skipped.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Set inside.
const INSIDE: &str = "BGB_FAULTS_INSIDE";

/// Where worlds have their folders: in memory, and gone with the namespace.
pub(crate) const WORLDS: &str = "/run/bgb-faults";

/// Where a world's folder is copied to when something did not hold in it.
pub(crate) const LEFT_OVERS: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/faults");

/// Debian's places of libfaketime, in its variant for programs with threads.
const FAKETIME: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// Goes inside, or makes the ground ready when this is inside.
///
/// # Errors
/// What is missing, and how to get it.
pub(crate) fn enter() -> Result<(), String> {
    if std::env::var_os(INSIDE).is_none() {
        return go_inside();
    }
    // Names of the network namespaces are below /run, which belongs to somebody else outside.
    run("mount", &["-t", "tmpfs", "-o", "mode=755,size=4g", "faults", "/run"])?;
    // libfaketime leaves something there for each process that is killed.
    run("mount", &["-t", "tmpfs", "-o", "mode=1777,size=64m", "faults", "/dev/shm"])?;
    std::fs::create_dir_all(WORLDS).map_err(|error| format!("{WORLDS}: {error}"))?;
    run("ip", &["link", "set", "lo", "up"])?;
    faketime().map(drop)
}

/// libfaketime's library.
pub(crate) fn faketime() -> Result<&'static str, String> {
    let found = FAKETIME.into_iter().find(|path| Path::new(path).exists());
    found.ok_or_else(|| "libfaketimeMT.so.1 is not there; `scripts/setup faults` installs it".to_owned())
}

/// Runs a program that has to succeed.
///
/// # Errors
/// What it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}; `scripts/setup faults` installs it"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// Starts this program anew inside; comes back only when that cannot be done.
fn go_inside() -> Result<(), String> {
    let mut namespaces = vec!["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if !rustix::process::geteuid().is_root() {
        namespaces.extend(["--user", "--map-root-user"]);
    }
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let tried = Command::new("unshare").args(&namespaces).arg("true").output();
    let tried = tried.map_err(|error| format!("unshare (Debian: util-linux): {error}"))?;
    if !tried.status.success() {
        let said = String::from_utf8_lossy(&tried.stderr);
        return Err(format!(
            "namespaces of its own are needed, so root or a kernel that gives them to everybody: {}",
            said.trim()
        ));
    }
    let program = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    let error = Command::new("unshare")
        .args(&namespaces)
        // The first process of the namespace takes in orphans, and no signal from a terminal would end it: not this program's part.
        .args(["sh", "-c", "\"$0\" \"$@\"; exit $?"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .env("PATH", path)
        .exec();
    Err(format!("unshare (Debian: util-linux): {error}"))
}
