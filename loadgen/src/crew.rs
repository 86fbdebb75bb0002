//! The coordinator's side of the workers: starts them, tells them what to do, adds up what they report.
//!
//! Workers end when their input does, so none outlives a coordinator that is killed.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command as Program, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bgb_protocol::ids::TaskId;
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};

use crate::client::subscriber::Dialect;
use crate::clock::now_ns;
use crate::measure::{Cost, Latencies};
use crate::sources::Sources;
use crate::worker::link::{Command, Progress, Report};

/// Agents of one worker at the most: a process has 20,000 descriptors on many machines.
const PER_WORKER_MAX: usize = 15_000;
/// How often it is looked whether somebody has pressed Ctrl-C.
const LOOK: Duration = Duration::from_millis(100);
/// Samples of what happened are so far apart at the least.
const SAMPLE_SECONDS: f64 = 1.0;
/// How long a worker may take to read its part of a fleet, and to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct Crew {
    workers: Vec<Worker>,
    reports: Receiver<(usize, Report)>,
    /// What each said last of itself.
    progress: Vec<Progress>,
    /// What went wrong with the run, each thing once.
    pub(crate) troubles: Vec<String>,
    interrupted: Arc<AtomicBool>,
    begun: Instant,
    /// What all had come to at moments a second apart or more: seconds, signed in, tasks had, answers kept.
    samples: Vec<(f64, usize, u64, u64)>,
}

/// What happened around a moment of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Since the workers were started.
    pub(crate) seconds: f64,
    /// Signed in.
    pub(crate) active: f64,
    pub(crate) had_per_second: f64,
    pub(crate) kept_per_second: f64,
}

struct Worker {
    process: Child,
    input: Option<ChildStdin>,
}

/// What connecting took.
#[derive(Default)]
pub(crate) struct Connects {
    pub(crate) latencies: Latencies,
    pub(crate) full: u64,
    pub(crate) resumed: u64,
    /// When the last one was there.
    pub(crate) last_ns: u64,
}

/// When a task was had.
#[derive(Default)]
pub(crate) struct TaskTimes {
    pub(crate) latencies: Latencies,
    pub(crate) count: u64,
    /// When the first one had it, and the last one.
    pub(crate) first_ns: u64,
    pub(crate) last_ns: u64,
    /// How long its frame is.
    pub(crate) frame_bytes: usize,
}

/// How waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// What was waited for came about.
    Done,
    /// It did not, in time.
    TooLong,
    /// Somebody has pressed Ctrl-C.
    Interrupted,
}

impl Crew {
    /// Starts workers for devices 0 up to `count` of the fleet.
    ///
    /// # Errors
    /// When one cannot be started, or cannot read its part.
    pub(crate) fn start(fleet: &Path, count: usize, sources: Option<Sources>) -> anyhow::Result<Self> {
        Self::start_speaking(fleet, count, sources, None)
    }

    /// The same, of clients that speak what another server does.
    ///
    /// # Errors
    /// As of [`start`](Self::start).
    pub(crate) fn start_speaking(
        fleet: &Path,
        count: usize,
        sources: Option<Sources>,
        dialect: Option<Dialect>,
    ) -> anyhow::Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&interrupted))?;
        let (told, reports) = unbounded();
        let (parts, program) = (count.div_ceil(PER_WORKER_MAX), std::env::current_exe()?);
        let mut workers = Vec::with_capacity(parts);
        for part in 0..parts {
            let (first, end) = (count * part / parts, count * (part + 1) / parts);
            let mut command = Program::new(&program);
            command.arg("worker").arg("--fleet").arg(fleet);
            command.args(["--first", &first.to_string(), "--count", &(end - first).to_string()]);
            command.args(sources.map(|sources| format!("--sources={sources}")));
            command.args(dialect.map(|dialect| format!("--dialect={}", dialect.name())));
            let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let mut process = spawned.with_context(|| format!("{}: cannot be started", program.display()))?;
            let (input, output) = (process.stdin.take(), process.stdout.take());
            let output = output.context("a worker has no output")?;
            let told = told.clone();
            std::thread::Builder::new().name("reports".to_owned()).spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let report = serde_json::from_str(&line).unwrap_or_else(|error| Report::Trouble {
                        what: format!("a worker says {line:?}, which is no report: {error}"),
                    });
                    if told.send((part, report)).is_err() {
                        return;
                    }
                }
            })?;
            workers.push(Worker { process, input });
        }
        let progress = vec![Progress::default(); parts];
        let (begun, samples) = (Instant::now(), Vec::new());
        let mut crew = Self { workers, reports, progress, troubles: Vec::new(), interrupted, begun, samples };
        let mut ready = 0;
        crew.answers(|report| {
            let Report::Ready { devices } = report else { return Ok(false) };
            ready += devices;
            Ok(true)
        })?;
        if ready != count {
            bail!("the workers have {ready} devices of {count}");
        }
        Ok(crew)
    }

    /// Tells all of them.
    ///
    /// # Errors
    /// When one is gone.
    pub(crate) fn tell(&mut self, command: &Command) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        for worker in &mut self.workers {
            let input = worker.input.as_mut().context("the workers were told to end")?;
            input.write_all(&line).context("a worker has ended by itself")?;
        }
        Ok(())
    }

    /// How many there are.
    pub(crate) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Memory that all of them have.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.workers.iter().map(|worker| Cost::of(worker.process.id()).resident_bytes).sum()
    }

    /// All workers together.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.iter().fold(Progress::default(), |sum, of_one| Progress {
            active: sum.active + of_one.active,
            connecting: sum.connecting + of_one.connecting,
            lost: sum.lost + of_one.lost,
            had: sum.had + of_one.had,
            answered: sum.answered + of_one.answered,
            kept: sum.kept + of_one.kept,
            refused: sum.refused + of_one.refused,
            late_ns: sum.late_ns.max(of_one.late_ns),
        })
    }

    /// Waits until `is_done` says so of all workers together, `within` at the most; `show` makes a line of how far it is.
    pub(crate) fn wait(
        &mut self,
        within: Duration,
        mut is_done: impl FnMut(&Progress) -> bool,
        show: impl Fn(&Progress, Duration) -> String,
    ) -> Waited {
        let begun = Instant::now();
        let is_terminal = std::io::stderr().is_terminal();
        let waited = loop {
            let progress = self.progress();
            if is_done(&progress) {
                break Waited::Done;
            }
            if self.interrupted.load(Ordering::Relaxed) {
                break Waited::Interrupted;
            }
            if begun.elapsed() >= within {
                break Waited::TooLong;
            }
            if is_terminal {
                eprint!("\r{}\x1b[K", show(&progress, begun.elapsed()));
            }
            match self.reports.recv_timeout(LOOK) {
                Ok((part, report)) => self.note(part, report),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.trouble("the workers have ended by themselves".to_owned());
                    break Waited::TooLong;
                }
            }
        };
        if is_terminal {
            eprint!("\r\x1b[K");
        }
        waited
    }

    /// Rests until a moment of the shared clock, and hears the workers meanwhile.
    pub(crate) fn rest_until(&mut self, until_ns: u64) -> Waited {
        loop {
            let left = Duration::from_nanos(until_ns.saturating_sub(now_ns()));
            if left.is_zero() {
                return Waited::Done;
            }
            if self.interrupted.load(Ordering::Relaxed) {
                return Waited::Interrupted;
            }
            match self.reports.recv_timeout(left.min(LOOK)) {
                Ok((part, report)) => self.note(part, report),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Waited::TooLong,
            }
        }
    }

    /// What connecting took since this was asked last.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub(crate) fn connects(&mut self) -> anyhow::Result<Connects> {
        self.tell(&Command::TellConnects)?;
        let mut sum = Connects::default();
        self.answers(|report| {
            let Report::Connects { latencies, full, resumed, last_ns } = report else { return Ok(false) };
            sum.latencies.add(&latencies)?;
            (sum.full, sum.resumed) = (sum.full + full, sum.resumed + resumed);
            sum.last_ns = sum.last_ns.max(last_ns);
            Ok(true)
        })?;
        Ok(sum)
    }

    /// When a task was had, counted from a moment; the workers forget it then.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub(crate) fn task_times(&mut self, task: TaskId, origin_ns: u64) -> anyhow::Result<TaskTimes> {
        self.tell(&Command::TellTask { task, origin_ns })?;
        let mut sum = TaskTimes { first_ns: u64::MAX, ..TaskTimes::default() };
        self.answers(|report| {
            let Report::Task { task: of, latencies, count, first_ns, last_ns, frame_bytes } = report else {
                return Ok(false);
            };
            if of != task {
                return Ok(false);
            }
            sum.latencies.add(&latencies)?;
            (sum.count, sum.last_ns) = (sum.count + count, sum.last_ns.max(last_ns));
            sum.first_ns = sum.first_ns.min(first_ns);
            sum.frame_bytes = sum.frame_bytes.max(frame_bytes);
            Ok(true)
        })?;
        Ok(sum)
    }

    /// Lets `take` have one report of every worker; `false` says that it was not what it waits for.
    fn answers(&mut self, mut take: impl FnMut(Report) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let (mut left, deadline) = (self.workers.len(), Instant::now() + ANSWER);
        while left > 0 {
            let rest = deadline.saturating_duration_since(Instant::now());
            let Ok((part, report)) = self.reports.recv_timeout(rest) else {
                bail!("{left} of {} workers do not answer: {}", self.workers.len(), self.troubles.join("; "));
            };
            match report {
                report @ (Report::Progress(_) | Report::Trouble { .. }) => self.note(part, report),
                report => left -= usize::from(take(report)?),
            }
        }
        Ok(())
    }

    fn note(&mut self, part: usize, report: Report) {
        match report {
            Report::Progress(progress) => {
                let late_ns = self.progress[part].late_ns.max(progress.late_ns);
                self.progress[part] = Progress { late_ns, ..progress };
                self.sample();
            }
            Report::Trouble { what } => self.trouble(what),
            Report::Ready { .. } | Report::Connects { .. } | Report::Task { .. } => {}
        }
    }

    fn sample(&mut self) {
        let seconds = self.begun.elapsed().as_secs_f64();
        if self.samples.last().is_none_or(|(last, ..)| seconds - last >= SAMPLE_SECONDS) {
            let Progress { active, had, kept, .. } = self.progress();
            self.samples.push((seconds, active, had, kept));
        }
    }

    /// What happened so far.
    pub(crate) fn timeline(&self) -> Vec<Moment> {
        let between = |pair: &[(f64, usize, u64, u64)]| {
            let [(from, _, had_before, kept_before), (seconds, active, had, kept)] = [pair[0], pair[1]];
            let passed = (seconds - from).max(SAMPLE_SECONDS);
            Moment {
                seconds,
                active: active as f64,
                had_per_second: had.saturating_sub(had_before) as f64 / passed,
                kept_per_second: kept.saturating_sub(kept_before) as f64 / passed,
            }
        };
        self.samples.windows(2).map(between).collect()
    }

    fn trouble(&mut self, what: String) {
        if !self.troubles.contains(&what) {
            eprintln!("bgb-loadgen: {what}");
            self.troubles.push(what);
        }
    }

    /// How late a worker's loop was at the most since this was asked last.
    pub(crate) fn take_lateness(&mut self) -> Duration {
        let late_ns = self.progress().late_ns;
        self.progress.iter_mut().for_each(|progress| progress.late_ns = 0);
        Duration::from_nanos(late_ns)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.input = None;
        }
        for worker in &mut self.workers {
            let _ = worker.process.wait();
        }
    }
}
