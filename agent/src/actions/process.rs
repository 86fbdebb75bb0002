//! Running a program: in a process group of its own, with a clean environment, for so long and no longer.
//!
//! ```text
//!  Running --exits--> (the rest of its group is killed, its output read to the end)
//!     |  limit or stop: SIGTERM to the group
//!     v
//!  Ending --2 s: SIGKILL to the group--> exits
//! ```
//!
//! It owns the child, the pipe of its output and nothing else; one thread does all, by poll(2) on the pipe, the process and
//! the stop. It must not know what the program is for. Laws: when [`run`] returns, no process of the group is left to run
//! (but one that the kernel will not let go of, which is said); what it said until then has been handed on; a program that
//! closes its output or leaves children behind holds nobody up; when the agent is killed, the group ends as well ([`launch`]).
//! Programs that leave their process group are out of reach.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::launch;

/// Between SIGTERM and SIGKILL: time to remove temporary files, no time to go on.
const GRACE: Duration = Duration::from_secs(2);

/// How long a killed process may take to be gone before it is taken for stuck in the kernel.
const STUCK: Duration = Duration::from_secs(8);

/// Where programs are looked for: the usual folders, whatever the agent's own environment says.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes read at a time: what a pipe holds by default (pipe(7)).
const READ_BYTES: usize = 64 * 1024;

/// Bytes read after the program has ended; its group is dead by then, so a pipe's content is all that can come.
const REST_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Tells a running action to end. A clone tells the same one.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Arc<OwnedFd>);

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with this exit code.
    Exited(i32),
    /// By a signal that was not ours.
    Signalled(i32),
    /// Its limit was reached, and it was ended.
    LimitReached,
    /// It was stopped, and ended.
    Stopped,
}

/// Why a program is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Ending { end: End, kill_at: Instant, gone_by: Instant },
}

impl Stop {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Tells it.
    pub(crate) fn tell(&self) {
        // The counter of an eventfd that was told already can only be too high.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

/// A program with the environment and the folder that all programs of the agent get.
pub(crate) fn program(path: &str) -> Command {
    prepared(Command::new(path))
}

fn prepared(mut command: Command) -> Command {
    command.env_clear().env("PATH", SEARCH_PATH).env("LANG", "C.UTF-8").current_dir("/");
    command
}

/// `command`, made by [`program`], so that it ends with the agent.
fn tied(command: Command) -> io::Result<Command> {
    let Some(mut launcher) = launch::launcher() else { return Ok(command) };
    // The launcher is always there; that the program is not has to be said here.
    if !is_there(command.get_program()) {
        return Err(io::ErrorKind::NotFound.into());
    }
    launcher.arg(command.get_program()).args(command.get_args());
    Ok(prepared(launcher))
}

fn is_there(name: &OsStr) -> bool {
    let is_path = name.as_bytes().contains(&b'/');
    is_path && Path::new(name).exists()
        || !is_path && SEARCH_PATH.split(':').any(|folder| Path::new(folder).join(name).exists())
}

/// Runs `command` until it ends, `limit` is over or `stop` is told, and hands what it says (both streams, in their order) to `said`.
///
/// # Errors
/// When it cannot be started or watched.
pub(crate) fn run(
    command: Command,
    limit: Duration,
    stop: &Stop,
    said: &mut dyn FnMut(&[u8]),
) -> io::Result<End> {
    let deadline = Instant::now() + limit;
    let (reader, writer) = io::pipe()?;
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK)?;
    let name = command.get_program().to_string_lossy().into_owned();
    let failed =
        |error: io::Error| io::Error::new(error.kind(), format!("{name} cannot be started: {error}"));
    let mut command = tied(command).map_err(failed)?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let child = command.spawn().map_err(failed)?;
    // The command holds the pipe's other end.
    drop(command);
    let mut group = Group { pid: Pid::from_child(&child), child, is_reaped: false };
    let end = watch(&mut group, reader, deadline, stop, said)?;
    match end {
        Some(end) => Ok(end),
        None => {
            let status = group.reap()?;
            Ok(status.code().map_or_else(|| End::Signalled(status.signal().unwrap_or(0)), End::Exited))
        }
    }
}

/// Follows the program until it is gone; `None` when it ended by itself.
fn watch(
    group: &mut Group,
    mut reader: io::PipeReader,
    deadline: Instant,
    stop: &Stop,
    said: &mut dyn FnMut(&[u8]),
) -> io::Result<Option<End>> {
    let process = pidfd_open(group.pid, PidfdFlags::empty())?;
    let mut buffer = vec![0; READ_BYTES];
    let mut phase = Phase::Running;
    let mut is_open = true;
    loop {
        let wake = match phase {
            Phase::Running => deadline,
            Phase::Ending { kill_at, gone_by, .. } => kill_at.min(gone_by),
        };
        let (has_ended, is_stopped, has_output) = {
            // Told once is enough: the stop's descriptor stays readable.
            let stop_interest = if phase == Phase::Running { PollFlags::IN } else { PollFlags::empty() };
            let mut fds = vec![
                PollFd::new(&process, PollFlags::IN),
                PollFd::from_borrowed_fd(stop.0.as_fd(), stop_interest),
            ];
            if is_open {
                fds.push(PollFd::new(&reader, PollFlags::IN));
            }
            wait(&mut fds, wake)?;
            let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
            (ready(0), ready(1), ready(2))
        };
        if has_output {
            is_open = hand_on(&mut reader, &mut buffer, READ_BYTES, said)?;
        }
        if has_ended {
            break;
        }
        let now = Instant::now();
        phase = match phase {
            Phase::Running if is_stopped => group.begin_end(End::Stopped, now),
            Phase::Running if now >= deadline => group.begin_end(End::LimitReached, now),
            Phase::Ending { end, kill_at, gone_by } if now >= kill_at && kill_at < gone_by => {
                group.signal(Signal::KILL);
                Phase::Ending { end, kill_at: gone_by, gone_by }
            }
            Phase::Ending { end, gone_by, .. } if now >= gone_by => {
                said(b"\n[the process does not end although it was killed]\n");
                return Ok(Some(end));
            }
            other => other,
        };
    }
    // Those that it left behind; the process itself is not reaped yet, so that its number is still its own.
    group.signal(Signal::KILL);
    if is_open {
        hand_on(&mut reader, &mut buffer, REST_BYTES_MAX, said)?;
    }
    match phase {
        Phase::Running => Ok(None),
        Phase::Ending { end, .. } => group.reap().map(|_| Some(end)),
    }
}

fn wait(fds: &mut [PollFd<'_>], until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    // One millisecond more, so that the moment is over when it is looked at.
    let timeout = Timespec::try_from(left + Duration::from_millis(1))
        .unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
    match poll(fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reads what is there, `most` bytes or a little more; `false` when the other end is closed.
fn hand_on(
    reader: &mut io::PipeReader,
    buffer: &mut [u8],
    most: usize,
    said: &mut dyn FnMut(&[u8]),
) -> io::Result<bool> {
    let mut taken = 0;
    while taken < most {
        match reader.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                said(&buffer[..count]);
                taken += count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// A child that leads a process group. Dropped before it was reaped, the group is killed.
struct Group {
    pid: Pid,
    child: Child,
    is_reaped: bool,
}

impl Group {
    fn begin_end(&self, end: End, now: Instant) -> Phase {
        self.signal(Signal::TERM);
        Phase::Ending { end, kill_at: now + GRACE, gone_by: now + GRACE + STUCK }
    }

    fn signal(&self, signal: Signal) {
        // Fails only when the whole group is gone, which is what is wanted.
        let _ = kill_process_group(self.pid, signal);
    }

    fn reap(&mut self) -> io::Result<std::process::ExitStatus> {
        let status = self.child.wait()?;
        self.is_reaped = true;
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.is_reaped {
            self.signal(Signal::KILL);
            // A process that is stuck in the kernel is not waited for.
            let _ = self.child.try_wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a shell script; gives how it ended, what it said and how long it took.
    fn shell(script: &str, limit: Duration, stop: &Stop) -> (End, String, Duration) {
        let begun = Instant::now();
        let mut said = Vec::new();
        let mut command = program("sh");
        command.args(["-c", script]);
        let end = run(command, limit, stop, &mut |bytes| said.extend_from_slice(bytes)).unwrap();
        (end, String::from_utf8(said).unwrap(), begun.elapsed())
    }

    fn is_alive(pid: &str) -> bool {
        // A zombie that nobody reaps in a container counts as dead.
        std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
            .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
    }

    fn is_dead_soon(pid: &str) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while is_alive(pid) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        !is_alive(pid)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn both_streams_and_the_exit_code_come_through() {
        let stop = Stop::new().unwrap();
        let (end, said, _) = shell("echo out; echo err >&2; exit 3", LONG, &stop);
        assert_eq!((end, said.as_str()), (End::Exited(3), "out\nerr\n"));
    }

    #[test]
    fn the_environment_is_clean() {
        let stop = Stop::new().unwrap();
        let (_, said, _) = shell("env | cut -d= -f1 | sort | tr '\\n' ' '; pwd", LONG, &stop);
        assert_eq!(said, "LANG PATH PWD /\n");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let stop = Stop::new().unwrap();
        let error = run(program("no-such-program"), LONG, &stop, &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains("no-such-program cannot be started"), "{error}");
    }

    #[test]
    fn at_its_limit_the_whole_group_ends_and_what_was_said_is_kept() {
        let stop = Stop::new().unwrap();
        let script = "sleep 600 & echo $!; sh -c 'sleep 600 & echo $!; wait' ; wait";
        let (end, said, took) = shell(script, Duration::from_millis(300), &stop);
        assert_eq!(end, End::LimitReached);
        assert!(took < Duration::from_secs(20), "{took:?}");
        assert_eq!(said.lines().count(), 2, "{said}");
        for pid in said.lines() {
            assert!(is_dead_soon(pid), "process {pid} is still there");
        }
    }

    #[test]
    fn who_ignores_the_first_signal_is_killed_by_the_second() {
        let stop = Stop::new().unwrap();
        let script = "trap '' TERM; echo $$; while :; do sleep 0.1; done";
        let (end, said, took) = shell(script, Duration::from_millis(200), &stop);
        assert_eq!(end, End::LimitReached);
        assert!(took >= GRACE && took < GRACE + STUCK, "{took:?}");
        assert!(is_dead_soon(&said));
    }

    #[test]
    fn a_stop_ends_it_at_once_also_when_it_came_first() {
        let stop = Stop::new().unwrap();
        stop.tell();
        let (end, _, took) = shell("sleep 600", LONG, &stop);
        assert_eq!(end, End::Stopped);
        assert!(took < Duration::from_secs(5), "{took:?}");
    }

    #[test]
    fn a_child_left_behind_neither_holds_the_action_up_nor_lives_on() {
        let stop = Stop::new().unwrap();
        let (end, said, took) = shell("sleep 600 & echo $!", LONG, &stop);
        assert_eq!(end, End::Exited(0));
        assert!(took < Duration::from_secs(20), "{took:?}");
        assert!(is_dead_soon(&said));
    }

    #[test]
    fn closing_the_output_is_not_the_end_and_costs_no_processor() {
        let stop = Stop::new().unwrap();
        let before = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let (end, said, _) = shell("echo bye; exec >&- 2>&-; sleep 1; exit 4", LONG, &stop);
        let after = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        assert_eq!((end, said.as_str()), (End::Exited(4), "bye\n"));
        let spent_ms = (after.tv_sec - before.tv_sec) * 1_000 + (after.tv_nsec - before.tv_nsec) / 1_000_000;
        assert!(spent_ms < 500, "{spent_ms} ms of processor time for waiting");
    }

    #[test]
    fn much_output_comes_through_whole() {
        let stop = Stop::new().unwrap();
        let (end, said, _) = shell("head -c 3000000 /dev/zero | tr '\\0' x", LONG, &stop);
        assert_eq!((end, said.len()), (End::Exited(0), 3_000_000));
    }

    #[test]
    fn death_by_another_hand_is_told_apart() {
        let stop = Stop::new().unwrap();
        assert_eq!(shell("kill -9 $$", LONG, &stop).0, End::Signalled(9));
    }
}
