//! A program under test, as a real process.
//!
//! What it prints goes to files of its own, so that nobody has to read a pipe; a daemon's ready line is looked for there. The
//! process is killed by its own handle when the value is dropped, whatever became of the test. It knows nothing of BGB but the
//! ready line and the names of the programs.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bgb_daemon::ready::Ready;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use crate::wait::{SOON, until};

/// USER_HZ: in what the kernel tells processor times to programs, on every architecture of Linux today (time(7)).
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;

/// The programs of the workspace.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    Server,
    Manager,
    Agent,
    Cli,
}

impl Program {
    /// Where cargo has put it: all of them lie beside the server, which is this package's own.
    pub(crate) fn path(self) -> PathBuf {
        let server = Path::new(env!("CARGO_BIN_EXE_bgb-server"));
        let path = server.with_file_name(self.name());
        assert!(
            path.exists(),
            "{} is not there: run `cargo build --workspace --bins` first, as `make test` does",
            path.display()
        );
        path
    }

    fn name(self) -> &'static str {
        match self {
            Self::Server => "bgb-server",
            Self::Manager => "bgb-manager",
            Self::Agent => "bgb-agent",
            Self::Cli => "bgb",
        }
    }
}

/// The account that a process runs as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// What a process has around it that is not the test's own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// The account, where it is another one.
    pub(crate) account: Option<Account>,
    /// The network namespace, as a path that nsenter(1) takes.
    pub(crate) network: Option<PathBuf>,
    /// More variables of its environment.
    pub(crate) environment: Vec<(String, String)>,
}

/// A running program.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// How a program ended, and what it had said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The exit code; -1 when a signal ended it.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// Starts a program; what it prints goes to files in `folder` that begin with `name`.
pub(crate) fn start<A: AsRef<OsStr>>(
    program: Program,
    name: &str,
    arguments: impl IntoIterator<Item = A>,
    folder: &Path,
    surroundings: &Surroundings,
) -> Process {
    let mut command = match &surroundings.network {
        None => Command::new(program.path()),
        Some(network) => {
            // It becomes the program, under the number that it has.
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", network.display())).arg("--").arg(program.path());
            command
        }
    };
    command
        .args(arguments)
        .envs(surroundings.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(folder)
        .env_remove("NOTIFY_SOCKET")
        .env_remove("BGB_SITE");
    if let Some(Account { user, group }) = surroundings.account {
        command.uid(user).gid(group);
    }
    start_command(command, name, folder)
}

/// Starts any program; what it prints goes to files in `folder` that begin with `name`.
pub(crate) fn start_command(mut command: Command, name: &str, folder: &Path) -> Process {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    let number = STARTED.fetch_add(1, Ordering::Relaxed);
    let stdout = folder.join(format!("{name}.{number}.out"));
    let stderr = folder.join(format!("{name}.{number}.err"));
    command
        .stdin(Stdio::null())
        .stdout(File::create(&stdout).unwrap())
        .stderr(File::create(&stderr).unwrap());
    let child = command.spawn().unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
    Process { name: name.to_owned(), child, stdout, stderr }
}

/// Runs a program to its end.
pub(crate) fn run<A: AsRef<OsStr>>(
    program: Program,
    arguments: impl IntoIterator<Item = A>,
    folder: &Path,
) -> Ended {
    start(program, &format!("{program:?}").to_lowercase(), arguments, folder, &Surroundings::default())
        .wait_end()
}

impl Process {
    /// Waits for the line by which a daemon says that it is ready.
    #[track_caller]
    pub(crate) fn wait_ready(&mut self) -> Ready {
        let what = format!("{} is ready", self.name);
        until(&what, SOON, || {
            let told = fs::read_to_string(&self.stdout).unwrap_or_default();
            let line = told.lines().find(|line| line.starts_with("{\"ready\""));
            if let Some(ready) = line.and_then(|line| serde_json::from_str(line).ok()) {
                return Some(ready);
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "{} ended before it was ready ({ended:?}): {}",
                self.name,
                self.stderr()
            );
            None
        })
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub(crate) fn wait_end(mut self) -> Ended {
        let what = format!("{} ends", self.name);
        let status = until(&what, SOON, || self.child.try_wait().unwrap());
        Ended { status, stdout: fs::read_to_string(&self.stdout).unwrap(), stderr: self.stderr() }
    }

    /// Ends it in good order, as systemd would.
    #[track_caller]
    pub(crate) fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait_end()
    }

    /// Ends it without a word, as a power cut would.
    pub(crate) fn kill(mut self) {
        self.kill_now();
    }

    /// Ends it without a word, and keeps the value.
    pub(crate) fn kill_now(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on standard error.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// What it has said on standard output.
    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// The share of one core that it uses during `window`, in per cent.
    pub(crate) fn cpu_percent(&self, window: Duration) -> f64 {
        let (before, begun) = (self.cpu_ticks(), Instant::now());
        // A measurement has a length of its own; there is nothing to look out for meanwhile.
        std::thread::sleep(window);
        let ticks = self.cpu_ticks() - before;
        ticks as f64 / CLOCK_TICKS_PER_SECOND / begun.elapsed().as_secs_f64() * 100.0
    }

    /// Memory that it holds, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Whether a library whose name holds this is part of it.
    pub(crate) fn has_loaded(&self, library: &str) -> bool {
        fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap().contains(library)
    }

    /// Leaves it no descriptor to open; gives the limit that it had.
    pub(crate) fn exhaust_descriptors(&self) -> u64 {
        let open: BTreeSet<u64> = fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .collect();
        // A new one gets the lowest number that is free, which has to be below the limit (getrlimit(2)).
        self.limit_descriptors((0..).find(|number| !open.contains(number)).unwrap())
    }

    /// Lets it open descriptors below this number; gives the limit that it had.
    pub(crate) fn limit_descriptors(&self, most: u64) -> u64 {
        // Only the soft limit, so that it can be raised again.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: Some(most), maximum };
        prlimit(Some(self.pid()), Resource::Nofile, limit).unwrap().current.unwrap_or(u64::MAX)
    }

    /// User and system time, in clock ticks (proc(5): fields 14 and 15, counted behind the name in brackets).
    fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
