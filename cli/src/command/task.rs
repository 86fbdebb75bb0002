//! `bgb task`: start, ls, show, watch, cancel.
//!
//! Starting is two steps: the preview says who is meant and gives the digest of that very set, and only what was seen
//! and agreed to is sent: when the set has changed in between, the manager refuses.

use std::time::{Duration, Instant};

use bgb_protocol::api::{PreviewTask, StartTask, Target, TaskPreview, TaskResult, TaskRow, WaitingDevice};
use bgb_protocol::ids::TaskId;
use bgb_protocol::state::TaskState;
use comfy_table::{Cell, Table};
use serde::Serialize;

use crate::arguments::{TaskCommand, TaskShow, TaskStart};
use crate::command::device::device_state;
use crate::figures::{counted, number};
use crate::manager::{ApiPath, Listed, Manager};
use crate::outcome::{Exit, Failure};
use crate::terminal::{Terminal, Tone, figure, lines_of, printable, state, text};
use crate::watch::{Ended, counts_in_words, watch};

/// Columns of a device's answer in a table: the first line of it, cut here.
const OUTPUT_COLUMNS: usize = 60;

/// Devices that need attention which the end of watching shows; `task show` has the rest.
const ATTENTION_ROWS: usize = 10;

/// Does what was typed.
///
/// # Errors
/// As the manager's answer; [`Exit::NotConfirmed`] when nobody agreed.
pub(crate) fn run(command: TaskCommand, manager: &Manager, terminal: &Terminal) -> Result<Exit, Failure> {
    match command {
        TaskCommand::Start(start) => self::start(&start, manager, terminal),
        TaskCommand::Ls(ls) => {
            let listed = manager.list::<TaskRow>(&ApiPath::new(&["tasks"]), ls.rows.most())?;
            terminal.answer(&listed.rows, || {
                if listed.rows.is_empty() {
                    "No tasks yet. Start one with: bgb task start ping --collection all".to_owned()
                } else {
                    lines_of(&table(&listed.rows, terminal))
                }
            })?;
            remark_more(listed.more, terminal);
            Ok(Exit::Done)
        }
        TaskCommand::Show(show) => self::show(&show, manager, terminal),
        TaskCommand::Watch(watch) => follow(manager, terminal, &watch.tasks, watch.timeout),
        TaskCommand::Cancel(name) => {
            let row: TaskRow =
                manager.post_empty(&ApiPath::new(&["tasks", &name.task.to_string(), "cancel"]))?;
            terminal.answer(&row, || cancelled_sentence(&row))?;
            Ok(Exit::Done)
        }
    }
}

fn start(start: &TaskStart, manager: &Manager, terminal: &Terminal) -> Result<Exit, Failure> {
    let target = match &start.collection {
        Some(collection) => Target::Collection(collection.clone()),
        None => Target::Devices(start.device.clone()),
    };
    let validity_seconds = Some(start.validity);
    let preview: TaskPreview = manager.post(
        &ApiPath::new(&["tasks", "preview"]),
        &PreviewTask { action: start.action, target: target.clone(), validity_seconds },
    )?;
    let about = format!("{}\nTarget set: {}", preview.sentence, preview.digest);
    terminal.remark(&about);
    if !start.yes {
        let question = format!("Start on {}?", counted(preview.targets, "device", "devices"));
        // Nobody is asked without being shown what it is about, however quiet it is to be.
        terminal.confirm(&if terminal.quiet { format!("{about}\n{question}") } else { question })?;
    }
    let digest = Some(preview.digest);
    let row: TaskRow = manager.post(
        &ApiPath::new(&["tasks"]),
        &StartTask { action: start.action, target, validity_seconds, digest },
    )?;
    if start.watch {
        terminal.remark(format_args!("Task {}", row.task));
        return follow(manager, terminal, &[row.task], start.timeout);
    }
    terminal.answer(&row, || row.task.to_string())?;
    terminal.remark(format_args!("Watch it with: bgb task watch {}", row.task));
    Ok(Exit::Done)
}

fn follow(
    manager: &Manager,
    terminal: &Terminal,
    tasks: &[TaskId],
    timeout_secs: Option<u64>,
) -> Result<Exit, Failure> {
    // A time beyond what the clock can count is no deadline.
    let deadline = timeout_secs.and_then(|secs| Instant::now().checked_add(Duration::from_secs(secs)));
    let (rows, ended) = watch(manager, terminal, tasks, deadline, || Ok(false))?;
    for row in &rows {
        terminal.say(format_args!("{}: {}", row.action, counts_in_words(&row.counts)))?;
        if !terminal.json && !terminal.quiet {
            show_attention(row, manager, terminal)?;
        }
    }
    if ended == Ended::TimedOut {
        terminal.remark("The time for watching is over; the task goes on.");
    }
    let all_good = rows.iter().all(|row| row.counts.succeeded == row.counts.targets);
    Ok(if all_good { Exit::Done } else { Exit::NotAllSucceeded })
}

/// Shows the devices of a task that ended otherwise than they should.
///
/// # Errors
/// As the manager's answer.
pub(crate) fn show_attention(row: &TaskRow, manager: &Manager, terminal: &Terminal) -> Result<(), Failure> {
    let counts = &row.counts;
    let wrong = counts.failed + counts.interrupted + counts.refused + counts.no_answer;
    if wrong == 0 {
        return Ok(());
    }
    let listed = results(manager, row.task, &ATTENTION, Some(ATTENTION_ROWS))?;
    terminal.say(lines_of(&results_table(&listed.rows, terminal)))?;
    if listed.more {
        terminal.remark(format_args!("All of them: bgb task show {}", row.task));
    }
    Ok(())
}

/// States that need attention, in the order in which they are shown.
const ATTENTION: [TaskState; 4] =
    [TaskState::Failed, TaskState::Interrupted, TaskState::Refused, TaskState::NoAnswer];

/// Every state: those that need attention first, those that went well last.
const ATTENTION_FIRST: [TaskState; 8] = [
    TaskState::Failed,
    TaskState::Interrupted,
    TaskState::Refused,
    TaskState::NoAnswer,
    TaskState::Running,
    TaskState::Received,
    TaskState::Cancelled,
    TaskState::Succeeded,
];

/// What devices said, state by state, `rows_max` rows in all.
fn results(
    manager: &Manager,
    task: TaskId,
    states: &[TaskState],
    rows_max: Option<usize>,
) -> Result<Listed<TaskResult>, Failure> {
    let mut all = Listed { rows: Vec::new(), more: false };
    for state in states {
        let left = rows_max.map(|most| most.saturating_sub(all.rows.len()));
        if left == Some(0) {
            all.more = true;
            break;
        }
        let path = ApiPath::new(&["tasks", &task.to_string(), "results"]).with("state", &state_name(*state));
        let listed = manager.list::<TaskResult>(&path, left)?;
        all.rows.extend(listed.rows);
        all.more |= listed.more;
    }
    Ok(all)
}

/// The state's name in the API.
fn state_name(state: TaskState) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(name)) => name,
        _ => unreachable!("a state is written as one word"),
    }
}

/// What `task show --json` tells.
#[derive(Serialize)]
struct Shown<'a> {
    task: &'a TaskRow,
    results: &'a [TaskResult],
    waiting: &'a [WaitingDevice],
}

fn show(show: &TaskShow, manager: &Manager, terminal: &Terminal) -> Result<Exit, Failure> {
    let id = show.task.to_string();
    let row: TaskRow = manager.fetch(&ApiPath::new(&["tasks", &id]))?;
    let states = show.state.map_or(ATTENTION_FIRST.to_vec(), |state| vec![state]);
    let results = results(manager, show.task, &states, show.rows.most())?;
    let waiting = match show.state {
        None => manager.list::<WaitingDevice>(&ApiPath::new(&["tasks", &id, "waiting"]), show.rows.most())?,
        Some(_) => Listed { rows: Vec::new(), more: false },
    };
    let shown = Shown { task: &row, results: &results.rows, waiting: &waiting.rows };
    terminal.answer(&shown, || {
        let mut parts = vec![details(&row, terminal)];
        if !results.rows.is_empty() {
            parts.push(lines_of(&results_table(&results.rows, terminal)));
        }
        if show.output {
            parts.extend(results.rows.iter().filter_map(full_output));
        }
        if !waiting.rows.is_empty() {
            parts.push(lines_of(&waiting_table(&waiting.rows, terminal)));
        }
        parts.join("\n\n")
    })?;
    remark_more(results.more || waiting.more, terminal);
    Ok(Exit::Done)
}

fn remark_more(more: bool, terminal: &Terminal) {
    if more {
        terminal.remark("There are more; --limit N shows more of them, --all every one.");
    }
}

/// Tasks as a table.
pub(crate) fn table(rows: &[TaskRow], terminal: &Terminal) -> Table {
    let clock = terminal.clock();
    let heads = [
        "Task",
        "What",
        "On whom",
        "Started",
        "State",
        "Targets",
        "Delivered",
        "Succeeded",
        "Failed",
        "Open",
    ];
    let mut table = terminal.table(&heads);
    for row in rows {
        let counts = &row.counts;
        let wrong = counts.failed + counts.interrupted + counts.refused + counts.no_answer;
        table.add_row([
            text(row.task),
            text(row.action),
            text(&row.target),
            text(clock.show(row.started)),
            phase(row),
            figure(counts.targets),
            figure(counts.delivered),
            figure(counts.succeeded),
            figure(wrong),
            figure(counts.targets - counts.done()),
        ]);
    }
    table
}

fn phase(row: &TaskRow) -> Cell {
    let counts = &row.counts;
    if counts.done() < counts.targets {
        state(Tone::Plain, row.phase)
    } else if counts.succeeded == counts.targets {
        state(Tone::Good, "done")
    } else {
        state(Tone::Warn, "done")
    }
}

fn details(row: &TaskRow, terminal: &Terminal) -> String {
    let clock = terminal.clock();
    let mut table = terminal.table(&["Task", &row.task.to_string()]);
    let counts = &row.counts;
    let lines = [
        ("What", row.action.to_string()),
        ("On whom", row.target.clone()),
        ("Started", clock.show(row.started)),
        ("Valid until", clock.show(row.expires)),
        ("State", phase(row).content()),
        ("Target set", row.digest.clone()),
        ("Targets", number(counts.targets)),
        ("Delivered", number(counts.delivered)),
        ("Devices", counts_in_words(counts)),
    ];
    for (head, value) in lines {
        table.add_row([text(head), text(value)]);
    }
    lines_of(&table)
}

/// What devices said, as a table.
pub(crate) fn results_table(rows: &[TaskResult], terminal: &Terminal) -> Table {
    let clock = terminal.clock();
    let mut table = terminal.table(&["Device", "State", "Code", "When", "What it said"]);
    for row in rows {
        let word = match row.refusal {
            Some(reason) => format!("{}: {reason}", row.state),
            None => row.state.to_string(),
        };
        table.add_row([
            text(&row.name),
            state(tone(row.state), word),
            text(row.code.map_or_else(String::new, |code| code.to_string()))
                .set_alignment(comfy_table::CellAlignment::Right),
            text(clock.show_some(row.finished.or(row.heard))),
            text(first_line(row.output.as_deref().unwrap_or(""))),
        ]);
    }
    table
}

fn tone(state: TaskState) -> Tone {
    match state {
        TaskState::Succeeded => Tone::Good,
        TaskState::Failed => Tone::Bad,
        TaskState::Interrupted | TaskState::Refused | TaskState::NoAnswer => Tone::Warn,
        TaskState::Received | TaskState::Running => Tone::Plain,
        TaskState::Cancelled => Tone::Faint,
    }
}

/// The first line of what a device said, without control characters: it comes from outside and goes to a terminal.
///
/// A report in JSON that could not be finished has its engine's own words, which say why.
fn first_line(output: &str) -> String {
    let report: Option<serde_json::Value> = serde_json::from_str(output).ok();
    let words = report.as_ref().and_then(|report| report.get("messages")?.as_str());
    let output = words.unwrap_or(output);
    let line = output.lines().map(printable).find(|line| !line.trim().is_empty()).unwrap_or_default();
    let line = line.trim();
    let mut shown: String = line.chars().take(OUTPUT_COLUMNS).collect();
    if line.chars().count() > OUTPUT_COLUMNS {
        shown.push('…');
    }
    shown
}

/// All that a device said, without control characters but for the ends of lines; `None` when it said nothing.
fn full_output(result: &TaskResult) -> Option<String> {
    let output = result.output.as_deref().filter(|output| !output.trim().is_empty())?;
    Some(format!("{} said:\n{}", result.name, printable(output).trim_end()))
}

fn waiting_table(rows: &[WaitingDevice], terminal: &Terminal) -> Table {
    use bgb_protocol::api::Membership;
    let clock = terminal.clock();
    let mut table = terminal.table(&["Not heard of", "State", "Last seen"]);
    for row in rows {
        let membership = if row.blocked { Membership::Blocked } else { Membership::Active };
        table.add_row([
            text(&row.name),
            device_state(row.connectivity, membership),
            text(clock.show_some(row.last_seen)),
        ]);
    }
    table
}

fn cancelled_sentence(row: &TaskRow) -> String {
    let counts = &row.counts;
    let open = counts.received + counts.running;
    let mut sentence = format!("{} on {} is cancelled: nothing more of it starts", row.action, row.target);
    if open > 0 {
        sentence.push_str(&format!(
            "; {} told to stop",
            counted(open, "device that has it is", "devices that have it are")
        ));
    }
    sentence.push('.');
    sentence
}

#[cfg(test)]
mod tests;
