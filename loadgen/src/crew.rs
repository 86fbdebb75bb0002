//! The coordinator's side of the workers: starts them, tells them what to do, adds up what they report.
//!
//! Workers end when their input does, so none outlives a coordinator that is killed.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command as Program, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bgb_protocol::ids::TaskId;
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};

use crate::client::road::Way;
use crate::client::subscriber::Dialect;
use crate::clock::now_ns;
use crate::interrupt;
use crate::measure::{Cost, Latencies};
use crate::sources::Sources;
use crate::worker::link::{Command, Progress, Report};

/// Sockets of one worker at the most: a process has 20,000 descriptors on many machines.
const PER_WORKER_MAX: usize = 15_000;
/// How often it is looked whether somebody wants to end it.
const LOOK: Duration = Duration::from_millis(100);
/// Where nobody looks at a terminal, a line of how far it is comes this often.
const SAY: Duration = Duration::from_secs(15);
/// A rest that is shorter than this is not told.
const REST_TOLD: Duration = Duration::from_secs(2);
/// Samples of what happened are so far apart at the least.
const SAMPLE_SECONDS: f64 = 1.0;
/// How long a worker may take to answer; and, for each agent that there is, to read its part of a fleet.
const ANSWER: Duration = Duration::from_secs(60);
const READ: Duration = Duration::from_micros(500);

/// See the module.
pub(crate) struct Crew {
    workers: Vec<Worker>,
    /// What each says; `None` when it is gone.
    reports: Receiver<(usize, Option<Report>)>,
    /// What each said last of itself.
    progress: Vec<Progress>,
    /// What went wrong with the run, each thing once.
    pub(crate) troubles: Vec<String>,
    /// What this machine does not give: waiting ends by it, and the server is not to blame.
    limit: Option<String>,
    /// Whether it does.
    heeds_limits: bool,
    /// All agents.
    count: usize,
    begun: Instant,
    teller: Teller,
    phase: Option<Phase>,
    /// What all had come to at moments a second apart or more: seconds, signed in, tasks had, answers kept.
    samples: Vec<(f64, usize, u64, u64)>,
    /// How late those were at the most whom it has relieved.
    late_before: Duration,
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

/// How workers play their parts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Playing {
    /// The network from which agents connect, if it is not the usual one.
    pub(crate) sources: Option<Sources>,
    /// What is spoken where it is not ours.
    pub(crate) dialect: Option<Dialect>,
    /// Of a session only its keys are kept, once it is signed in.
    pub(crate) at_rest: bool,
    /// By which road agents come.
    pub(crate) way: Way,
}

struct Worker {
    process: Child,
    /// `None` when it is gone, or was told to end.
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

/// How a crew connects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connecting {
    /// Handshakes under way at the most.
    pub(crate) window: usize,
    /// Whether sessions are resumed where there is a ticket.
    pub(crate) resumes: bool,
    /// Whether who is lost comes back by itself.
    pub(crate) returns: bool,
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

/// Says how far it is: on a terminal in one line that changes, elsewhere in a line now and then.
struct Teller {
    is_terminal: bool,
    said: Instant,
}

impl Teller {
    fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), said: Instant::now() }
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if self.is_terminal {
            eprint!("\r{}\x1b[K", line());
        } else if self.said.elapsed() >= SAY {
            self.said = Instant::now();
            eprintln!("bgb-loadgen: {}", line());
        }
    }

    /// What was told is over.
    fn clear(&self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }
}

/// A part of a run that lasts until a moment.
struct Phase {
    what: &'static str,
    begun: Instant,
    /// Tasks that were had before.
    had: u64,
    ends_ns: u64,
}

/// How waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// What was waited for came about.
    Done,
    /// It did not, in time.
    TooLong,
    /// Somebody wants the run to end.
    Interrupted,
    /// This machine gives no more.
    Limited,
}

impl Crew {
    /// Starts workers for devices 0 up to `count` of the fleet.
    ///
    /// # Errors
    /// When one cannot be started, or cannot read its part.
    pub(crate) fn start(fleet: &Path, count: usize, playing: Playing) -> anyhow::Result<Self> {
        let (told, reports) = unbounded();
        let of_one = PER_WORKER_MAX / playing.way.road.sockets();
        let (parts, program) = (count.div_ceil(of_one), std::env::current_exe()?);
        let mut workers = Vec::with_capacity(parts);
        for part in 0..parts {
            let (first, end) = (count * part / parts, count * (part + 1) / parts);
            let mut command = Program::new(&program);
            command.arg("worker").arg("--fleet").arg(fleet);
            command.args(["--first", &first.to_string(), "--count", &(end - first).to_string()]);
            command.args(playing.sources.map(|sources| format!("--sources={sources}")));
            command.args(playing.dialect.map(|dialect| format!("--dialect={}", dialect.name())));
            command.args(playing.at_rest.then_some("--at-rest")).args(playing.way.arguments());
            let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn();
            let mut process = spawned.with_context(|| format!("{}: cannot be started", program.display()))?;
            let (input, output) = (process.stdin.take(), process.stdout.take());
            let output = output.context("a worker has no output")?;
            let told = told.clone();
            std::thread::Builder::new().name("reports".to_owned()).spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let report = serde_json::from_str(&line).unwrap_or_else(|error| Report::Trouble {
                        what: format!("a worker says {line:?}, which is no report: {error}"),
                    });
                    if told.send((part, Some(report))).is_err() {
                        return;
                    }
                }
                let _ = told.send((part, None));
            })?;
            workers.push(Worker { process, input });
        }
        let progress = vec![Progress::default(); parts];
        let (begun, samples) = (Instant::now(), Vec::new());
        let (troubles, limit) = (Vec::new(), None);
        let mut crew = Self {
            workers,
            reports,
            progress,
            troubles,
            limit,
            heeds_limits: true,
            count,
            begun,
            teller: Teller::new(),
            phase: None,
            samples,
            late_before: Duration::ZERO,
        };
        let mut ready = 0;
        crew.answers(ANSWER + READ * count as u32, |report| {
            let Report::Ready { devices } = report else { return Ok(false) };
            ready += devices;
            Ok(true)
        })?;
        if ready != count {
            bail!("the workers have {ready} devices of {count}");
        }
        Ok(crew)
    }

    /// Tells all of them; those that are gone have said so, or will.
    pub(crate) fn tell(&mut self, command: &Command) {
        (0..self.workers.len()).for_each(|part| self.tell_one(part, command));
    }

    fn tell_one(&mut self, part: usize, command: &Command) {
        let mut line = serde_json::to_vec(command).expect("a command can be written as JSON");
        line.push(b'\n');
        if let Some(input) = &mut self.workers[part].input {
            // Where nobody reads it, its output ends as well.
            let _ = input.write_all(&line);
        }
    }

    /// Has those connect who are not, of those whose place in the fleet is below `upto`: from `from_ns` on, by the shared clock, `gap_ns` from one to
    /// the next, or whenever there is room where that is 0, with so many handshakes under way at the most. Workers have equal parts of both.
    pub(crate) fn connect(&mut self, upto: usize, from_ns: u64, gap_ns: u64, connecting: Connecting) {
        let Connecting { window, resumes, returns } = connecting;
        // Those that have somebody in it.
        let workers = self.workers.len();
        let parts = (0..workers).filter(|part| self.count * part / workers < upto).count().max(1);
        let window = window.div_ceil(parts);
        for part in 0..parts {
            let (from_ns, gap_ns) = (from_ns + gap_ns * part as u64, gap_ns * parts as u64);
            self.tell_one(part, &Command::Connect { upto, from_ns, gap_ns, window, resumes, returns });
        }
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
            keepalives: sum.keepalives + of_one.keepalives,
            refused: sum.refused + of_one.refused,
            late_ns: sum.late_ns.max(of_one.late_ns),
        })
    }

    /// Waits until there are `all` of what `count` says of all workers together, `within` at the most, or until `gives_up` says of how many there are
    /// that no more will come. `what` is told meanwhile, with how many there are, at which rate they come, and how long the others take at that.
    pub(crate) fn wait(
        &mut self,
        within: Duration,
        (what, all): (&str, u64),
        count: impl Fn(&Progress) -> u64,
        mut gives_up: impl FnMut(u64) -> bool,
    ) -> Waited {
        let (begun, first) = (Instant::now(), count(&self.progress()));
        let waited = loop {
            let there = count(&self.progress());
            if there >= all || gives_up(there) {
                break Waited::Done;
            }
            if let Some(stopped) = self.stopped() {
                break stopped;
            }
            if begun.elapsed() >= within {
                break Waited::TooLong;
            }
            self.teller.tell(|| {
                let rate = there.saturating_sub(first) as f64 / begun.elapsed().as_secs_f64().max(0.001);
                let how_far = format!("{what}: {there} of {all}, {rate:.0} a second");
                if there > first {
                    format!("{how_far}, {:.0} s left", (all - there) as f64 / rate)
                } else {
                    how_far
                }
            });
            if !self.hear(LOOK) {
                break Waited::Limited;
            }
        };
        self.teller.clear();
        waited
    }

    /// From now until that moment of the shared clock rests are parts of something longer, of which is told how far it is.
    pub(crate) fn begin(&mut self, what: &'static str, ends_ns: u64) {
        self.phase = Some(Phase { what, begun: Instant::now(), had: self.progress().had, ends_ns });
    }

    /// It is over.
    pub(crate) fn finish(&mut self) {
        self.phase = None;
        self.teller.clear();
    }

    /// Rests until a moment of the shared clock, and hears the workers meanwhile.
    pub(crate) fn rest_until(&mut self, until_ns: u64) -> Waited {
        let left = |until_ns: u64| Duration::from_nanos(until_ns.saturating_sub(now_ns()));
        let is_long = left(until_ns) >= REST_TOLD;
        let waited = loop {
            let rest = left(until_ns);
            if rest.is_zero() {
                break Waited::Done;
            }
            if let Some(stopped) = self.stopped() {
                break stopped;
            }
            let Progress { active, had, .. } = self.progress();
            if let Some(Phase { what, begun, had: had_before, ends_ns }) = &self.phase {
                let (had, left) = (had - had_before, left(*ends_ns).as_secs() + 1);
                let rate = had as f64 / begun.elapsed().as_secs_f64().max(0.001);
                self.teller.tell(|| {
                    format!("{what}: {active} signed in, {had} tasks had, {rate:.0} a second, {left} s left")
                });
            } else if is_long {
                self.teller
                    .tell(|| format!("{active} signed in, {had} tasks had, {} s left", rest.as_secs() + 1));
            }
            if !self.hear(rest.min(LOOK)) {
                break Waited::Limited;
            }
        };
        if is_long && self.phase.is_none() {
            self.teller.clear();
        }
        waited
    }

    /// Hears what a worker reports within that time, if one does; `false` when there is none left.
    fn hear(&mut self, within: Duration) -> bool {
        match self.reports.recv_timeout(within) {
            Ok((part, report)) => self.note(part, report),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    /// Why nothing more is waited for, if so.
    fn stopped(&self) -> Option<Waited> {
        if interrupt::is_wanted() {
            return Some(Waited::Interrupted);
        }
        (self.heeds_limits && self.limit.is_some()).then_some(Waited::Limited)
    }

    /// Waits for those who are there from now on, whatever this machine does not give.
    pub(crate) fn make_do(&mut self) {
        self.heeds_limits = false;
    }

    /// What connecting took since this was asked last.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub(crate) fn connects(&mut self) -> anyhow::Result<Connects> {
        self.tell(&Command::TellConnects);
        let mut sum = Connects::default();
        self.answers(ANSWER, |report| {
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
        self.tell(&Command::TellTask { task, origin_ns });
        let mut sum = TaskTimes { first_ns: u64::MAX, ..TaskTimes::default() };
        self.answers(ANSWER, |report| {
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

    /// Lets `take` have one report of every worker that is still there; `false` says that it was not what it waits for.
    fn answers(
        &mut self,
        within: Duration,
        mut take: impl FnMut(Report) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let mut asked: BTreeSet<usize> =
            (0..self.workers.len()).filter(|part| self.workers[*part].input.is_some()).collect();
        let deadline = Instant::now() + within;
        while !asked.is_empty() {
            let rest = deadline.saturating_duration_since(Instant::now());
            let Ok((part, report)) = self.reports.recv_timeout(rest) else {
                bail!(
                    "{} of {} workers do not answer: {}",
                    asked.len(),
                    self.workers.len(),
                    self.troubles.join("; ")
                );
            };
            match report {
                None => {
                    asked.remove(&part);
                    self.note(part, None);
                }
                report @ Some(Report::Progress(_) | Report::Trouble { .. } | Report::Limit { .. }) => {
                    self.note(part, report);
                }
                Some(report) => {
                    if take(report)? {
                        asked.remove(&part);
                    }
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, part: usize, report: Option<Report>) {
        let Some(report) = report else {
            self.workers[part].input = None;
            // Its connections went with it.
            let Progress { active, connecting, lost, .. } = self.progress[part];
            let lost = lost + (active + connecting) as u64;
            self.progress[part] =
                Progress { active: 0, connecting: 0, lost, ..std::mem::take(&mut self.progress[part]) };
            return self
                .limit("a process of agents has ended by itself: was there too little memory?".to_owned());
        };
        match report {
            Report::Progress(progress) => {
                let late_ns = self.progress[part].late_ns.max(progress.late_ns);
                self.progress[part] = Progress { late_ns, ..progress };
                self.sample();
            }
            Report::Trouble { what } => self.trouble(what),
            Report::Limit { what } => self.limit(what),
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

    fn limit(&mut self, what: String) {
        self.limit.get_or_insert_with(|| what.clone());
        self.trouble(what);
    }

    /// Something went wrong with the run.
    pub(crate) fn trouble(&mut self, what: String) {
        if !self.troubles.contains(&what) {
            eprintln!("bgb-loadgen: {what}");
            self.troubles.push(what);
        }
    }

    /// Gives way to another crew, which keeps what has gone wrong so far.
    pub(crate) fn relieve(&mut self, by: Self) {
        let former = std::mem::replace(self, by);
        self.late_before = former.lateness();
        self.limit = former.limit.clone();
        for trouble in former.troubles.clone() {
            if !self.troubles.contains(&trouble) {
                self.troubles.push(trouble);
            }
        }
    }

    /// How late a worker's loop was at the most.
    pub(crate) fn lateness(&self) -> Duration {
        Duration::from_nanos(self.progress().late_ns).max(self.late_before)
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
