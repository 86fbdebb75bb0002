//! One process of the demo: started, heard to be ready, ended.
//!
//! It is started through `bgb launch`, so that it ends with the demo, and in a process group of its own, so that Ctrl-C
//! reaches the demo alone, which then ends its processes in order. What it says on standard error goes to a file; a
//! failure is told with that file's last lines.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use bgb_daemon::ready::Ready;
use rustix::process::{Pid, Signal, kill_process};

use crate::demo::Interrupt;
use crate::demo::folder::DemoFolder;
use crate::outcome::Failure;

/// A program on loopback is ready within a second; the time is for a machine that builds something beside it.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks at a process that ends, or at Ctrl-C while one begins.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 12;

/// Bytes of a log's end in which those lines are looked for.
const TAIL_BYTES: u64 = 16 * 1024;

/// The longest line that is looked at for readiness: it names a handful of addresses.
const READY_LINE_BYTES_MAX: u64 = 64 * 1024;

/// A process of the demo.
pub(crate) struct Process {
    /// What people call it: `manager`, `server`, `demo-01`.
    pub(crate) name: String,
    child: Child,
    log: PathBuf,
    ready: Receiver<Ready>,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `program`, a file beside `bgb` itself, with `--config` and this file.
    ///
    /// # Errors
    /// When the program is not there or the system refuses.
    pub(crate) fn start(
        folder: &DemoFolder,
        name: &str,
        program: &str,
        config: &Path,
    ) -> Result<Self, Failure> {
        let cannot = |error: std::io::Error| Failure::failed(format!("{name} cannot be started: {error}"));
        let own = std::env::current_exe().map_err(cannot)?;
        let path = own.with_file_name(program);
        if !path.exists() {
            return Err(Failure::failed(format!(
                "{} is not there; the demo needs bgb-manager, bgb-server and bgb-agent beside bgb: in the source tree \
                 `make build` builds them all",
                path.display()
            )));
        }
        let log = folder.logs().join(format!("{name}.log"));
        let error_log = File::create(&log).map_err(cannot)?;
        let mut child = Command::new(own)
            .arg("launch")
            .arg("--parent")
            .arg(std::process::id().to_string())
            .arg("--")
            .arg(path)
            .arg("--config")
            .arg(config)
            .stdin(folder.lock_for_process().map_err(cannot)?)
            .stdout(Stdio::piped())
            .stderr(error_log)
            .process_group(0)
            .spawn()
            .map_err(cannot)?;
        let stdout = child.stdout.take().expect("its standard output was asked for as a pipe");
        let ready = listen(stdout).map_err(cannot)?;
        Ok(Self { name: name.to_owned(), child, log, ready, ended: None })
    }

    /// Waits for the line that says it is ready.
    ///
    /// # Errors
    /// When it ends before, when the time is over, or when somebody wants the demo to end.
    pub(crate) fn wait_ready(&mut self, interrupt: &Interrupt) -> Result<Ready, Failure> {
        let deadline = Instant::now() + READY_DEADLINE;
        loop {
            match self.ready.recv_timeout(LOOK_EVERY) {
                Ok(ready) => return Ok(ready),
                Err(RecvTimeoutError::Timeout) => interrupt.check()?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.failure("ended before it was ready"));
                }
            }
            if Instant::now() >= deadline {
                let what = format!("was not ready within {} s", READY_DEADLINE.as_secs());
                return Err(self.failure(&what));
            }
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            // An error here would mean that the process is not a child of this one.
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Fails when it has ended.
    ///
    /// # Errors
    /// With its exit status and its log.
    pub(crate) fn check(&mut self) -> Result<(), Failure> {
        match self.ended() {
            None => Ok(()),
            Some(status) => Err(self.failure(&format!("ended by itself ({status})"))),
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it says on standard error.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Asks it to end in good order.
    pub(crate) fn ask_to_end(&mut self) {
        if self.ended().is_none() {
            // It may have ended since; its id is kept for it until it is waited for.
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        }
    }

    /// Waits for its end, and ends it by force after the deadline.
    ///
    /// # Errors
    /// When it had to be ended by force, or ended with an exit code that says something went wrong.
    pub(crate) fn wait_end(&mut self, deadline: Instant) -> Result<(), Failure> {
        loop {
            match self.ended() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.failure(&format!("did not end well ({status})"))),
                None if Instant::now() >= deadline => break,
                None => thread::sleep(LOOK_EVERY),
            }
        }
        // SIGKILL cannot be refused; when it cannot be sent, the process has ended.
        let _ = self.child.kill();
        self.ended = self.child.wait().ok();
        Err(self.failure("did not end when it was asked to, and was killed"))
    }

    /// `what` this process did, as a failure with the last lines of its log.
    pub(crate) fn failure(&self, what: &str) -> Failure {
        let tail = tail(&self.log);
        let said = if tail.is_empty() {
            "It said nothing.".to_owned()
        } else {
            format!("Its last lines:\n{}", tail.trim_end())
        };
        Failure::failed(format!("{} {what}; see {}. {said}", self.name, self.log.display()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            // The demo is failing; nobody is left to be told.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Reads standard output to its end in a thread, and passes the ready line on.
fn listen(stdout: ChildStdout) -> std::io::Result<Receiver<Ready>> {
    let (sender, receiver) = sync_channel(1);
    thread::Builder::new().name("ready".to_owned()).spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut line = Vec::new();
        let mut sender = Some(sender);
        loop {
            line.clear();
            match stdout.by_ref().take(READY_LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if sender.is_some()
                && let Ok(ready) = serde_json::from_slice::<Ready>(&line)
                && let Some(sender) = sender.take()
            {
                // Nobody waits for it any more when the demo ends at that moment.
                let _ = sender.send(ready);
            }
        }
    })?;
    Ok(receiver)
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_told_by_its_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.log");
        assert_eq!(tail(&path), "");
        let lines: String = (0..5_000).map(|number| format!("line {number}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        let tail = tail(&path);
        assert!(tail.starts_with("  line 4988\n") && tail.ends_with("  line 4999\n"), "{tail}");
    }
}
