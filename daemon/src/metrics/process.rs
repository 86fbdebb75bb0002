//! What Linux tells of this process, under the names that Prometheus's own client libraries use.
//!
//! What cannot be read is left out: a page of metrics is still worth having where /proc is not mounted.

use rustix::process::{Resource, getrlimit};

use super::Exposition;

/// From the figures of /proc/self/stat, behind the name in brackets (proc(5): they begin with field 3).
const USER_TICKS: usize = 14 - 3;
const SYSTEM_TICKS: usize = 15 - 3;
const START_TICKS: usize = 22 - 3;
const RESIDENT_PAGES: usize = 24 - 3;

pub(super) fn expose(out: &mut Exposition) {
    if let Some(figures) = figures() {
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second;
        let resident = figures.resident_pages * rustix::param::page_size() as u64;
        out.gauge("process_resident_memory_bytes", "Memory that the process holds.", resident);
        out.counter(
            "process_cpu_seconds_total",
            "Processor time, user and system.",
            seconds(figures.cpu_ticks),
        );
        if let Some(boot) = boot_seconds() {
            let started = boot as f64 + seconds(figures.start_ticks);
            out.gauge(
                "process_start_time_seconds",
                "When the process began, in seconds since 1970.",
                started,
            );
        }
    }
    if let Some(open) = open_descriptors() {
        out.gauge("process_open_fds", "Descriptors that are open.", open);
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        out.gauge("process_max_fds", "Descriptors that may be open.", most);
    }
}

struct Figures {
    cpu_ticks: u64,
    start_ticks: u64,
    resident_pages: u64,
}

fn figures() -> Option<Figures> {
    read_figures(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

/// The name may hold blanks and brackets itself, so the last bracket counts.
fn read_figures(stat: &str) -> Option<Figures> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let figure = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Figures {
        cpu_ticks: figure(USER_TICKS)? + figure(SYSTEM_TICKS)?,
        start_ticks: figure(START_TICKS)?,
        resident_pages: figure(RESIDENT_PAGES)?,
    })
}

/// When the machine was booted, in seconds since 1970.
fn boot_seconds() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn open_descriptors() -> Option<u64> {
    // Since Linux 6.2 the folder's size is the count, which spares a server a list of all its connections.
    let size = std::fs::metadata("/proc/self/fd").ok()?.len();
    if size > 0 { Some(size) } else { Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_shift_the_figures() {
        let stat = "7 (a) b) S 1 2 3 0 -1 0 10 11 12 13 1400 15 16 17 18 19 20 21 2200 23 24 25 26";
        let figures = read_figures(stat).unwrap();
        assert_eq!((figures.cpu_ticks, figures.start_ticks, figures.resident_pages), (1_415, 2_200, 24));
        assert!(read_figures("7 (short) S 1").is_none());
        assert!(read_figures("").is_none());
    }
}
