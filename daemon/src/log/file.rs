//! The log file: a queue, a thread that empties it, and rotation.
//!
//! At 2 MiB the file becomes the one with `_` for its name's last letter (`BGBServer.lo_`), replacing the
//! one before, as Configuration Manager does, and a new one begins. It owns the file and nothing else; the
//! lines come finished. Law: [`LogSink::write`] never waits; what the thread cannot write it drops and counts.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use jiff::Zoned;

use super::cmtrace::{Record, Severity};

/// Where a log is rotated, in bytes: between Configuration Manager's 250,000 of old and the 2 MiB that its
/// sites set, which still open at once in the viewers.
const FILE_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// Lines that may wait for the disk: some 2 MiB of usual lines, a second of the loudest start-up.
const QUEUE_LINES_MAX: usize = 8 * 1024;

/// After a failure the file is tried again no sooner than this: a full disk is not emptied faster.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How long the end of the process waits for the last lines. A disk that hangs must not hang the stop.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(2);

/// Logs are for the service and for its group to read.
const FILE_MODE: u32 = 0o640;

enum Message {
    Line(String),
    Reopen,
    Stop,
}

/// Where finished lines go.
#[derive(Clone)]
pub(super) struct LogSink {
    queue: Sender<Message>,
    dropped: Arc<AtomicU64>,
}

impl LogSink {
    /// Hands a line over, or drops it when the queue is full.
    pub(super) fn write(&self, line: String) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes out what is queued when it is dropped, within two seconds.
#[must_use = "the last lines are written when the guard is dropped, at the end of main"]
pub struct LogGuard {
    /// One for each file.
    writers: Vec<(Sender<Message>, JoinHandle<()>)>,
}

impl LogGuard {
    pub(super) fn without_file() -> LogGuard {
        LogGuard { writers: Vec::new() }
    }

    /// Takes over what another one guards.
    pub(super) fn join(&mut self, mut other: LogGuard) {
        self.writers.append(&mut other.writers);
    }

    /// Opens the files anew before the next line: for those who move it away by themselves (logrotate) and then say so by SIGHUP.
    pub fn reopen(&self) {
        for (queue, _) in &self.writers {
            // A full queue means a disk that does not keep up: the file is then opened anew by the next one who asks.
            let _ = queue.try_send(Message::Reopen);
        }
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH_WAIT_MAX;
        for (queue, thread) in self.writers.drain(..) {
            if queue.send_deadline(Message::Stop, deadline).is_err() {
                continue;
            }
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
    }
}

/// Starts the thread that writes `path`.
pub(super) fn start(path: PathBuf, component: &'static str) -> io::Result<(LogSink, LogGuard)> {
    start_with(LogFile::new(path, component, FILE_BYTES_MAX), QUEUE_LINES_MAX)
}

fn start_with(mut file: LogFile, queue_lines_max: usize) -> io::Result<(LogSink, LogGuard)> {
    let (queue, lines) = bounded(queue_lines_max);
    let dropped = Arc::clone(&file.dropped);
    let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || run(&mut file, &lines))?;
    Ok((LogSink { queue: queue.clone(), dropped }, LogGuard { writers: vec![(queue, thread)] }))
}

fn run(file: &mut LogFile, lines: &Receiver<Message>) {
    loop {
        match lines.recv() {
            Ok(Message::Line(line)) => file.write(&line),
            Ok(Message::Reopen) => file.state = State::Closed,
            Ok(Message::Stop) | Err(_) => return,
        }
    }
}

/// The file as it is now.
enum State {
    Open {
        file: File,
        len: u64,
    },
    /// It could not be opened, written or rotated; not tried again before that moment.
    Broken {
        since: Instant,
    },
    /// Not opened yet.
    Closed,
}

struct LogFile {
    path: PathBuf,
    component: &'static str,
    file_bytes_max: u64,
    retry_after: Duration,
    state: State,
    /// Lines that were not written since the file last could be.
    dropped: Arc<AtomicU64>,
}

impl LogFile {
    fn new(path: PathBuf, component: &'static str, file_bytes_max: u64) -> LogFile {
        let dropped = Arc::default();
        LogFile { path, component, file_bytes_max, retry_after: RETRY_AFTER, state: State::Closed, dropped }
    }

    /// Writes a line, or drops it.
    fn write(&mut self, line: &str) {
        if let State::Broken { since } = self.state
            && since.elapsed() < self.retry_after
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_broken = matches!(self.state, State::Broken { .. });
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let note = if dropped > 0 { self.dropped_note(dropped) } else { String::new() };
        if let Err(error) = self.try_write(&note).and_then(|()| self.try_write(line)) {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
            self.state = State::Broken { since: Instant::now() };
            if !was_broken {
                self.warn(&error);
            }
        }
    }

    /// Once per failure; standard error may be closed, and then there is nobody left to tell.
    fn warn(&self, error: &io::Error) {
        let _ = writeln!(
            io::stderr(),
            "{}: the log file {} cannot be written: {error}; records are dropped until it can be",
            self.component,
            self.path.display()
        );
    }

    fn try_write(&mut self, line: &str) -> io::Result<()> {
        if line.is_empty() {
            return Ok(());
        }
        let line_bytes = line.len() as u64;
        if !matches!(self.state, State::Open { .. }) {
            self.state = open(&self.path)?;
        }
        if let State::Open { len, .. } = &self.state
            && *len > 0
            && *len + line_bytes > self.file_bytes_max
        {
            std::fs::rename(&self.path, rotated(&self.path))?;
            self.state = open(&self.path)?;
        }
        let State::Open { file, len } = &mut self.state else { return Ok(()) };
        file.write_all(line.as_bytes())?;
        *len += line_bytes;
        Ok(())
    }

    fn dropped_note(&self, dropped: u64) -> String {
        Record {
            message: &format!("{dropped} log records were dropped: the file could not be written in time"),
            component: self.component,
            severity: Severity::Warning,
            thread: rustix::thread::gettid().as_raw_nonzero().get(),
            file: file!(),
            line: u64::from(line!()),
        }
        .encode(&Zoned::now())
    }
}

/// Opens the file to append to it. What a failure or a crash left as half a line gets an end first.
fn open(path: &Path) -> io::Result<State> {
    let mut file = OpenOptions::new().append(true).read(true).create(true).mode(FILE_MODE).open(path)?;
    let mut len = file.metadata()?.len();
    if len > 0 {
        let mut last = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut last, len - 1)?;
        if last != *b"\n" {
            file.write_all(b"\r\n")?;
            len += 2;
        }
    }
    Ok(State::Open { file, len })
}

/// The name of the older half of a log: the last letter of its name replaced by `_`.
fn rotated(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut characters = name.chars();
    characters.next_back();
    path.with_file_name(format!("{}_", characters.as_str()))
}

#[cfg(test)]
mod tests;
