//! BENCHMARKS.md: the lines of all benchmarks as a table, with the commit and the machine that they were measured on.
//!
//! What people have written around the table stays: it lies between two marks of its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::arguments::ReportArguments;
use crate::plots::{self, Series};

/// The marks around a table that is measured.
pub(crate) struct Marks {
    pub(crate) begin: &'static str,
    pub(crate) end: &'static str,
}

const GOALS: Marks =
    Marks { begin: "<!-- measured: written by make bench -->", end: "<!-- measured: end -->" };
pub(crate) const PEERS: Marks =
    Marks { begin: "<!-- peers: written by make bench-peers -->", end: "<!-- peers: end -->" };

/// A row of the table: the bench, what it is about, and which of its figures is shown, with its unit.
struct Row {
    name: &'static str,
    about: &'static str,
    figures: &'static [(&'static str, &'static str)],
    floor: &'static [(&'static str, &'static str)],
    goal: &'static str,
}

const ROWS: &[Row] = &[
    Row {
        name: "idle",
        about: "memory of a connection at rest",
        figures: &[("bytes_per_connection", "bytes")],
        floor: &[],
        goal: "1,024 bytes or less",
    },
    Row {
        name: "connect",
        about: "server's CPU of a full connect",
        figures: &[
            ("cpu_us_per_connect", "us"),
            ("times_own_suite", "times the handshake with ours"),
            ("per_second", "a second"),
        ],
        floor: &[("full_us", "us in memory"), ("full_own_suite_us", "us with the suite that ours prefers")],
        goal: "1.25 times the handshake in memory or less",
    },
    Row {
        name: "fanout",
        about: "a task to everybody",
        figures: &[
            ("per_second", "a second"),
            ("fan_out_ms", "ms from first to last"),
            ("last_has_it_ms", "ms from the order to the last"),
        ],
        floor: &[("per_second", "writes a second")],
        goal: "0.9 of the bare loop's rate or more; from the order 1.2 times the fan-out and 10 ms or less",
    },
    Row {
        name: "latency",
        about: "a task to one, while the others are idle",
        figures: &[("latency/p50_ms", "ms p50"), ("latency/p99_ms", "ms p99")],
        floor: &[],
        goal: "p99 10 ms or less",
    },
    Row {
        name: "storm",
        about: "all back after kill -9",
        figures: &[("seconds", "s"), ("resumed", "resumed"), ("full", "in full")],
        floor: &[("seconds", "s in peace")],
        goal: "1.5 times resuming in peace or less",
    },
    Row {
        name: "ingest",
        about: "a file of a million rows",
        figures: &[
            ("bos_seconds", "s BOS"),
            ("bts_seconds", "s BTS"),
            ("order_ms", "ms for an order meanwhile"),
        ],
        floor: &[("bos_seconds", "s"), ("bts_seconds", "s")],
        goal: "1.5 times the bare loop or less; an order within 100 ms",
    },
    Row {
        name: "wheel",
        about: "a timer, at a million of them",
        figures: &[
            ("timers_1000000/arm_ns", "ns arm"),
            ("timers_1000000/rearm_ns", "ns move"),
            ("timers_1000000/cancel_ns", "ns cancel"),
            ("timers_1000000/fire_ns", "ns fire"),
            ("timers_1000000_in_a_row/arm_ns", "in a row: arm"),
            ("timers_1000000_in_a_row/rearm_ns", "move"),
            ("timers_1000000_in_a_row/cancel_ns", "cancel"),
            ("timers_1000000_in_a_row/fire_ns", "fire"),
            ("timers_10000/fire_ns", "at 10,000: fire"),
            ("timers_10000/rearm_ns", "move"),
        ],
        floor: &[
            ("random_read_1000000_ns", "ns a random read"),
            ("random_read_1000000_in_a_row_ns", "in a row"),
        ],
        goal: "3 random reads or less, one by one; 20 ns or less at 10,000, in a row",
    },
    Row {
        name: "sessions",
        about: "a million sessions in the hub; a sign-in at 1,000 active tasks",
        figures: &[("core_percent", "% of a core"), ("sign_in_us", "us a sign-in")],
        floor: &[],
        goal: "under 5 %; 50 us or less",
    },
    Row {
        name: "follow",
        about: "ten servers follow the queue while nothing happens",
        figures: &[("idle_percent", "% of a core, all ten")],
        floor: &[],
        goal: "under 3 %",
    },
    Row {
        name: "roads",
        about: "a connection through HTTP",
        figures: &[
            ("ws_http/bytes_per_connection", "bytes by WebSocket"),
            ("ws_https/bytes_per_connection", "in HTTPS"),
            ("longpoll_http/bytes_per_connection", "by long-poll"),
            ("longpoll_https/bytes_per_connection", "in HTTPS"),
            ("ws_http/latency/p99_ms", "ms for a task to one, p99, by WebSocket"),
            ("ws_https/latency/p99_ms", "in HTTPS"),
            ("longpoll_http/latency/p99_ms", "by long-poll"),
            ("longpoll_https/latency/p99_ms", "in HTTPS"),
            ("longpoll_http/afar/latency/p99_ms", "ms from 50 ms away, by long-poll"),
            ("longpoll_https/afar/latency/p99_ms", "in HTTPS"),
            ("ws_http/connects_per_second", "connects a second by WebSocket"),
            ("ws_https/connects_per_second", "in HTTPS"),
            ("longpoll_http/connects_per_second", "by long-poll"),
            ("longpoll_https/connects_per_second", "in HTTPS"),
        ],
        floor: &[
            ("bytes_per_connection", "bytes by TCP"),
            ("latency/p99_ms", "ms p99"),
            ("afar/latency/p99_ms", "ms from 50 ms away"),
            ("connects_per_second", "connects a second"),
        ],
        goal: "memory by WebSocket 1.3 times TCP's or less, 1.6 in HTTPS; p99 of each road TCP's and 2 ms or less; by long-poll from afar TCP's and a round trip or less",
    },
    Row {
        name: "growth",
        about: "cost of a sign-in, push, keepalive at 1,000,000 over that at 1,000; by what the last is more",
        figures: &[
            ("sign_in_times", "x"),
            ("push_times", "x"),
            ("keepalive_times", "x"),
            ("keepalive_reads_more", "reads from memory"),
            ("memory_times_of_10000", "x memory"),
        ],
        floor: &[],
        goal: "4 or less; of a keepalive 3 reads from memory more instead; memory 1.5 or less",
    },
];

/// Writes the table into the file between its marks.
///
/// # Errors
/// When a line is none, or the file has no marks.
pub(crate) fn run(arguments: &ReportArguments) -> anyhow::Result<()> {
    write_between(&arguments.file, &GOALS, &format!("{}\n\n{}", machine(), table(&arguments.lines)?))?;
    match &arguments.plots {
        Some(folder) => plot_growth(&arguments.lines, folder),
        None => Ok(()),
    }
}

/// How costs grow with the number of sessions.
fn plot_growth(lines: &Path, folder: &Path) -> anyhow::Result<()> {
    let Some(line) = line_of(lines, "growth")? else { return Ok(()) };
    let steps = line["figures"]["steps"].as_array().cloned().unwrap_or_default();
    let series = |name: &str, figure: &str| Series {
        name: name.to_owned(),
        points: steps
            .iter()
            .filter_map(|step| Some((step["sessions"].as_f64()?.log10(), step[figure].as_f64()?)))
            .collect(),
    };
    fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    let nanoseconds = [
        series("a push", "push_ns"),
        series("a keepalive", "keepalive_ns"),
        series("a read of memory", "read_ns"),
    ];
    plots::by_sessions(
        &folder.join("growth-push-keepalive.svg"),
        "a hub's work for each session",
        "ns",
        &nanoseconds,
    )?;
    let sign_in = [series("a sign-in", "sign_in_ns")];
    plots::by_sessions(&folder.join("growth-sign-in.svg"), "a hub's work for a sign-in", "ns", &sign_in)?;
    let memory = [series("memory", "bytes")];
    plots::by_sessions(&folder.join("growth-memory.svg"), "a hub's memory of each session", "bytes", &memory)
}

/// Writes what was measured between its marks in the file.
///
/// # Errors
/// When the file has no marks.
pub(crate) fn write_between(path: &Path, marks: &Marks, measured: &str) -> anyhow::Result<()> {
    let Marks { begin, end } = marks;
    let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let Some((before, rest)) = text.split_once(begin) else {
        bail!("{} has no line {begin}", path.display())
    };
    let Some((_, after)) = rest.split_once(end) else { bail!("{} has no line {end}", path.display()) };
    fs::write(path, format!("{before}{begin}\n\n{measured}\n{end}{after}"))
        .with_context(|| format!("{}", path.display()))
}

fn table(lines: &Path) -> anyhow::Result<String> {
    let mut table = String::from(
        "| bench | what | measured | floor in the same run | ratio | goal | holds |\n|---|---|---|---|---:|---|---|\n",
    );
    for row in ROWS {
        table.push_str(&row_of(row, &line_of(lines, row.name)?.unwrap_or_default()));
    }
    Ok(table)
}

/// A benchmark's line; `None` where it was not measured.
fn line_of(lines: &Path, name: &str) -> anyhow::Result<Option<Value>> {
    let path = lines.join(format!("{name}.json"));
    match fs::read_to_string(&path) {
        Ok(line) => serde_json::from_str(&line).map(Some).with_context(|| format!("{}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{}", path.display())),
    }
}

fn row_of(row: &Row, line: &Value) -> String {
    let Row { name, about, goal, .. } = row;
    if line.is_null() {
        return format!("| {name} | {about} | not measured | | | {goal} | |\n");
    }
    let figures = shown(&line["figures"], row.figures);
    let floor = shown(&line["floor"], row.floor);
    let ratio = line["ratio"].as_f64().map_or(String::new(), |ratio| format!("{ratio:.2}"));
    let holds = if line["holds"] == true { "yes" } else { "**no**" };
    format!("| {name} | {about} | {figures} | {floor} | {ratio} | {goal} | {holds} |\n")
}

/// The figures that are asked for; `a/b` is `b` inside of `a`.
fn shown(figures: &Value, asked: &[(&str, &str)]) -> String {
    let one = |(path, unit): &(&str, &str)| {
        let value = path.split('/').fold(figures, |inside, name| &inside[name]).as_f64();
        value.map_or_else(|| format!("? {unit}"), |value| format!("{} {unit}", number(value)))
    };
    asked.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Three digits at the least, thousands apart.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) =
        text.split_once('.').map_or((text.as_str(), ""), |(whole, fraction)| (whole, fraction));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 && digit.is_ascii_digit() && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if fraction.is_empty() { grouped } else { format!("{grouped}.{fraction}") }
}

/// The commit, and what the machine says of itself.
pub(crate) fn machine() -> String {
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok();
    let commit = commit.filter(|output| output.status.success());
    let commit = commit
        .map_or("unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    // What benchmarks write themselves is no change of what they measure.
    let changed = Command::new("git")
        .args(["status", "--porcelain", "--untracked-files=no", "--", ":!BENCHMARKS.md", ":!docs"])
        .output();
    let is_changed = changed.is_ok_and(|output| output.status.success() && !output.stdout.is_empty());
    let commit = if is_changed { format!("{commit} with changes") } else { commit };
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (cpus, memory, kernel) =
        (read("/proc/cpuinfo"), read("/proc/meminfo"), read("/proc/sys/kernel/osrelease"));
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, model)| model));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    format!(
        "Commit {commit}; {cores} cores ({}), {} GiB, Linux {}. Server and load share the machine.",
        model.unwrap_or("unknown"),
        kib.unwrap_or(0) / (1024 * 1024),
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_are_shown_with_three_digits_and_their_unit() {
        let figures = json!({"rate": 56_652.4, "latency": {"p99_ms": 10.91}, "small": 0.097, "none": null});
        let asked = [("rate", "a second"), ("latency/p99_ms", "ms"), ("small", "%"), ("none", "us")];
        assert_eq!(shown(&figures, &asked), "56,652 a second, 10.9 ms, 0.10 %, ? us");
        assert_eq!(
            (number(1_234_567.0), number(999.6), number(-12.34)),
            ("1,234,567".into(), "1,000".into(), "-12.3".into())
        );
    }

    #[test]
    fn what_people_wrote_around_the_table_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("BENCHMARKS.md");
        fs::write(&file, format!("above\n{}\nformer\n{}\nbelow\n", GOALS.begin, GOALS.end)).unwrap();
        let line = json!({"bench": "idle", "figures": {"bytes_per_connection": 990.4}, "floor": {}, "ratio": 0.967, "holds": true});
        fs::write(folder.path().join("idle.json"), line.to_string()).unwrap();
        let step = json!({"sessions": 1_000, "push_ns": 30.0, "keepalive_ns": 20.0, "read_ns": 2.0, "sign_in_ns": 900.0, "bytes": 200.0});
        let growth = json!({"bench": "growth", "figures": {"steps": [step]}, "holds": true});
        fs::write(folder.path().join("growth.json"), growth.to_string()).unwrap();
        let plots = folder.path().join("plots");
        let (lines, plots_asked) = (folder.path().to_owned(), Some(plots.clone()));
        let arguments = ReportArguments { lines, file: file.clone(), plots: plots_asked };
        run(&arguments).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.starts_with("above\n") && text.ends_with("\nbelow\n") && !text.contains("former"),
            "{text}"
        );
        assert!(text.contains("| 990 bytes |  | 0.97 | 1,024 bytes or less | yes |"), "{text}");
        assert!(text.contains("| storm | all back after kill -9 | not measured |"), "{text}");
        assert!(fs::read_to_string(plots.join("growth-sign-in.svg")).unwrap().contains("1,000"));
        fs::write(&file, "no marks").unwrap();
        assert!(run(&arguments).is_err());
    }
}
