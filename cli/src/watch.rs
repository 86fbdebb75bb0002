//! Watches tasks until every device has answered.
//!
//! It asks the manager again and again and shows what has changed: a bar for each task on a terminal, a line for each
//! change elsewhere, JSON lines for programs. It decides nothing: when it ends, the newest rows are the caller's to
//! judge. Progress goes to standard error, JSON to standard output.

use std::thread;
use std::time::{Duration, Instant};

use bgb_protocol::api::{TaskCounts, TaskRow};
use bgb_protocol::ids::TaskId;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::figures::number;
use crate::manager::{ApiPath, Manager};
use crate::outcome::Failure;
use crate::terminal::Terminal;

/// Between two looks: people see a change within half of it, and the manager answers in a millisecond or two.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Nothing more is awaited of any device.
    AllDone,
    /// The time for watching was over.
    TimedOut,
    /// The caller did not want to see more.
    Stopped,
}

/// Watches `tasks` until all are done, `deadline` has passed, or `stop` says so; `stop` may fail, and that ends it too.
///
/// # Errors
/// As the manager's answers; what `stop` fails with.
pub(crate) fn watch(
    manager: &Manager,
    terminal: &Terminal,
    tasks: &[TaskId],
    deadline: Option<Instant>,
    mut stop: impl FnMut() -> Result<bool, Failure>,
) -> Result<(Vec<TaskRow>, Ended), Failure> {
    let mut progress = Progress::new(terminal);
    loop {
        let rows = tasks
            .iter()
            .map(|task| manager.fetch(&ApiPath::new(&["tasks", &task.to_string()])))
            .collect::<Result<Vec<TaskRow>, Failure>>()?;
        progress.show(&rows, terminal)?;
        let ended = if rows.iter().all(|row| row.counts.done() == row.counts.targets) {
            Some(Ended::AllDone)
        } else if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            Some(Ended::TimedOut)
        } else if stop()? {
            Some(Ended::Stopped)
        } else {
            None
        };
        if let Some(ended) = ended {
            progress.finish();
            return Ok((rows, ended));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// How progress is shown.
enum Progress {
    /// Bars on a terminal, one for each task.
    Bars { all: MultiProgress, bars: Vec<ProgressBar> },
    /// A line for each change; the counts that were last shown.
    Lines(Vec<TaskCounts>),
    /// A JSON line for each change.
    Json(Vec<TaskCounts>),
    /// Nothing.
    Silent,
}

impl Progress {
    fn new(terminal: &Terminal) -> Self {
        if terminal.json {
            Self::Json(Vec::new())
        } else if terminal.quiet {
            Self::Silent
        } else if terminal.watched {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
            Self::Bars { all, bars: Vec::new() }
        } else {
            Self::Lines(Vec::new())
        }
    }

    fn show(&mut self, rows: &[TaskRow], terminal: &Terminal) -> Result<(), Failure> {
        match self {
            Self::Silent => {}
            Self::Bars { all, bars } => {
                for row in rows.iter().skip(bars.len()) {
                    bars.push(all.add(bar(row)));
                }
                for (bar, row) in bars.iter().zip(rows) {
                    bar.set_position(row.counts.done());
                    bar.set_message(counts_in_words(&row.counts));
                }
            }
            Self::Lines(shown) => {
                for row in changed(shown, rows) {
                    let counts = &row.counts;
                    terminal.remark(format_args!(
                        "{}: {} of {} done ({})",
                        row.action,
                        number(counts.done()),
                        number(counts.targets),
                        counts_in_words(counts)
                    ));
                }
            }
            Self::Json(shown) => {
                for row in changed(shown, rows) {
                    terminal.put_json(row)?;
                }
            }
        }
        Ok(())
    }

    fn finish(&self) {
        if let Self::Bars { bars, .. } = self {
            bars.iter().for_each(ProgressBar::abandon);
            // The bars leave the cursor at the end of the last one.
            eprintln!();
        }
    }
}

/// The rows whose counts differ from those that were last shown, which are brought up to date.
fn changed<'a>(shown: &mut Vec<TaskCounts>, rows: &'a [TaskRow]) -> Vec<&'a TaskRow> {
    let mut news = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        match shown.get_mut(index) {
            Some(last) if *last == row.counts => {}
            Some(last) => {
                *last = row.counts;
                news.push(row);
            }
            None => {
                shown.push(row.counts);
                news.push(row);
            }
        }
    }
    news
}

fn bar(row: &TaskRow) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:<18} {bar:24} {human_pos}/{human_len}  {wide_msg}")
        .expect("the template is a constant that a test has drawn")
        .progress_chars("▓▒░");
    let bar = ProgressBar::new(row.counts.targets).with_style(style);
    bar.set_prefix(row.action.name());
    bar
}

/// The states that have devices, those that are over first: `912 succeeded, 3 failed, 289 waiting`.
pub(crate) fn counts_in_words(counts: &TaskCounts) -> String {
    let named = [
        (counts.succeeded, "succeeded"),
        (counts.failed, "failed"),
        (counts.interrupted, "interrupted"),
        (counts.refused, "refused"),
        (counts.cancelled, "cancelled"),
        (counts.no_answer, "no answer"),
        (counts.expired, "expired"),
        (counts.running, "running"),
        (counts.received, "received"),
        (counts.waiting, "waiting"),
    ];
    let words: Vec<String> = named
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{} {word}", number(count)))
        .collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use bgb_protocol::action::Action;
    use bgb_protocol::api::TaskPhase;
    use bgb_protocol::ids::UnixMillis;

    use super::*;

    fn row(counts: TaskCounts) -> TaskRow {
        TaskRow {
            task: TaskId::from_bytes([7; 16]),
            action: Action::Ping,
            target: "all".to_owned(),
            phase: TaskPhase::Active,
            started: UnixMillis(0),
            expires: UnixMillis(0),
            cancelled: None,
            digest: String::new(),
            counts,
            results_per_second: None,
        }
    }

    fn counts(succeeded: u64, waiting: u64) -> TaskCounts {
        TaskCounts {
            targets: succeeded + waiting,
            delivered: succeeded,
            succeeded,
            waiting,
            ..TaskCounts::default()
        }
    }

    #[test]
    fn counts_are_words_in_a_fixed_order_and_without_zeros() {
        let counts =
            TaskCounts { targets: 1_204, succeeded: 912, failed: 3, waiting: 289, ..TaskCounts::default() };
        assert_eq!(counts_in_words(&counts), "912 succeeded, 3 failed, 289 waiting");
    }

    #[test]
    fn only_what_changed_is_shown_again() {
        let mut shown = Vec::new();
        let first = [row(counts(0, 5)), row(counts(1, 4))];
        assert_eq!(changed(&mut shown, &first).len(), 2);
        let second = [row(counts(0, 5)), row(counts(5, 0))];
        assert_eq!(changed(&mut shown, &second), [&second[1]]);
        assert!(changed(&mut shown, &second).is_empty());
    }

    #[test]
    fn a_bar_can_be_drawn() {
        let bar = bar(&row(counts(2, 3)));
        bar.set_draw_target(ProgressDrawTarget::hidden());
        bar.set_position(2);
        assert_eq!((bar.length(), bar.prefix().as_str()), (Some(5), "ping"));
    }
}
