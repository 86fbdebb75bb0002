//! What is measured: latencies in histograms that add up over processes, and what a process costs the machine.

use std::fmt::Write as _;
use std::fs;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2Serializer};
use serde::{Deserialize, Serialize};

/// The longest latency that is told from longer ones: an hour, in microseconds.
const MICROS_MAX: u64 = 3_600_000_000;

/// Latencies in microseconds, to three digits.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

/// The same as it travels between processes: V2 of HdrHistogram, in hexadecimal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Packed(String);

/// What people look at first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) count: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("these bounds are allowed"))
    }
}

impl Latencies {
    /// Counts one, in nanoseconds.
    pub(crate) fn record_ns(&mut self, ns: u64) {
        self.0.saturating_record((ns / 1_000).max(1));
    }

    /// Adds what another process has measured.
    ///
    /// # Errors
    /// When it is no histogram.
    pub(crate) fn add(&mut self, packed: &Packed) -> anyhow::Result<()> {
        let bytes: Option<Vec<u8>> = (0..packed.0.len() / 2)
            .map(|place| u8::from_str_radix(packed.0.get(2 * place..2 * place + 2)?, 16).ok())
            .collect();
        let bytes = bytes.context("a worker's histogram is not hexadecimal")?;
        let other: Histogram<u64> = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| anyhow::anyhow!("a worker's histogram cannot be read: {error}"))?;
        self.0.add(other).context("a worker's histogram has other bounds")
    }

    /// For another process.
    pub(crate) fn pack(&self) -> Packed {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&self.0, &mut bytes).expect("a vector takes whatever is written");
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Packed(text)
    }

    /// What people look at first.
    pub(crate) fn summary(&self) -> Summary {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1_000.0;
        let max_ms = self.0.max() as f64 / 1_000.0;
        Summary {
            count: self.0.len(),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms,
        }
    }

    /// Points for a picture: how many nines of all are faster, and the latency there in milliseconds.
    pub(crate) fn by_nines(&self) -> Vec<(f64, f64)> {
        let most = (self.0.len().max(1) as f64).log10();
        let steps = (most * 20.0) as u32;
        let at = |step: u32| {
            let nines = f64::from(step) / 20.0;
            (nines, self.0.value_at_quantile(1.0 - 10_f64.powf(-nines)) as f64 / 1_000.0)
        };
        (0..=steps).map(at).collect()
    }

    /// As HdrHistogram's plotter reads it (`.hgrm`), in milliseconds.
    pub(crate) fn to_hgrm(&self) -> String {
        let mut text = format!(
            "{:>12} {:>14} {:>10} {:>14}\n\n",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        );
        for step in self.0.iter_quantiles(5) {
            let quantile = step.quantile_iterated_to();
            let value = step.value_iterated_to() as f64 / 1_000.0;
            let count = self.0.count_between(0, step.value_iterated_to());
            let _ = write!(text, "{value:>12.3} {quantile:>14.12} {count:>10}");
            if quantile < 1.0 {
                let _ = write!(text, " {:>14.2}", 1.0 / (1.0 - quantile));
            }
            text.push('\n');
        }
        let (mean, deviation) = (self.0.mean() / 1_000.0, self.0.stdev() / 1_000.0);
        let (max, count) = (self.0.max() as f64 / 1_000.0, self.0.len());
        let _ = writeln!(text, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]");
        let _ = writeln!(text, "#[Max     = {max:>12.3}, Total count    = {count:>12}]");
        text
    }
}

/// What a process has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Cost {
    /// User and system time, in seconds.
    pub(crate) cpu_secs: f64,
    /// Resident memory, in bytes.
    pub(crate) resident_bytes: u64,
}

impl Cost {
    /// Of the process with this number; all of it 0 where it is gone.
    pub(crate) fn of(pid: u32) -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let stat = read("stat");
        let ticks = |place| number_in(&stat, place).unwrap_or(0);
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        let kib = kib_of(&read("status"), "VmRSS:").unwrap_or(0);
        Self { cpu_secs: (ticks(11) + ticks(12)) as f64 / per_second, resident_bytes: kib * 1024 }
    }

    /// Of the process and those that it has started. Pages that several of them have count once (Pss of proc_pid_smaps(5)).
    pub(crate) fn of_family(pid: u32) -> Self {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let own = Self::of(pid);
        let resident_bytes = kib_of(&rollup, "Pss:").map_or(own.resident_bytes, |kib| kib * 1_024);
        let own = Self { resident_bytes, ..own };
        children_of(pid).into_iter().map(Self::of_family).fold(own, Self::plus)
    }

    /// User and system time of those threads of the process whose names begin so, in seconds; 0 where the kernel does not count nanoseconds.
    pub(crate) fn cpu_secs_of_threads(pid: u32, name: &str) -> f64 {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let secs = threads.map(|thread| {
            let read = |file| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            if !read("comm").starts_with(name) {
                return 0.0;
            }
            // `stat` counts in hundredths of a second, which is too coarse for a thread.
            read("schedstat")
                .split_whitespace()
                .next()
                .and_then(|ns| ns.parse::<f64>().ok())
                .map_or(0.0, |ns| ns / 1e9)
        });
        secs.sum()
    }

    /// Two processes together.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            cpu_secs: self.cpu_secs + other.cpu_secs,
            resident_bytes: self.resident_bytes + other.resident_bytes,
        }
    }

    /// What it has cost since.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { cpu_secs: self.cpu_secs - before.cpu_secs, resident_bytes: self.resident_bytes }
    }
}

/// A number of `/proc/PID/stat`. The name in brackets may hold anything; after it come the state (0) and then numbers.
fn number_in(stat: &str, place: usize) -> Option<u64> {
    stat.rsplit(')').next()?.split_whitespace().nth(place)?.parse().ok()
}

/// A line of `/proc` that gives kibibytes.
fn kib_of(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Processes that the process has started and that are there.
fn children_of(pid: u32) -> Vec<u32> {
    let is_child = |of: &u32| {
        let stat = fs::read_to_string(format!("/proc/{of}/stat")).unwrap_or_default();
        number_in(&stat, 1) == Some(pid.into())
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(is_child).collect()
}

/// The one in the middle; the values are sorted by that. 0 where there is none.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// How many descriptors the process has open; 0 where it is gone.
pub(crate) fn descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64)
}

/// How many the process may have open; `None` where it is gone.
pub(crate) fn descriptors_max(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    soft.split_whitespace().next()?.parse().ok()
}

/// What the kernel holds for everything on this machine: its slabs, and the pages of sockets' buffers.
pub(crate) fn kernel_bytes() -> u64 {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let memory = read("/proc/meminfo");
    let slab = kib_of(&memory, "Slab:");
    let sockets = read("/proc/net/sockstat");
    let tcp = sockets.lines().find_map(|line| line.strip_prefix("TCP:"));
    let pages = tcp.and_then(|tcp| tcp.split_once("mem ")?.1.split_whitespace().next()?.parse::<u64>().ok());
    slab.unwrap_or(0) * 1024 + pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// What has gone over the loopback device so far, in bytes of packets with their headers, both ways.
pub(crate) fn loopback_bytes() -> u64 {
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let received =
        devices.lines().find_map(|line| line.trim_start().strip_prefix("lo:")?.split_whitespace().next());
    received.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_of_two_processes_add_up() {
        let (mut one, mut other) = (Latencies::default(), Latencies::default());
        (1..=90).for_each(|ms| one.record_ns(ms * 1_000_000));
        (91..=100).for_each(|ms| other.record_ns(ms * 1_000_000));
        one.add(&other.pack()).unwrap();
        let summary = one.summary();
        assert_eq!(summary.count, 100);
        assert!((summary.p50_ms - 50.0).abs() < 0.1, "{summary:?}");
        assert!((summary.p99_ms - 99.0).abs() < 0.1, "{summary:?}");
        assert!((summary.max_ms - 100.0).abs() < 0.1, "{summary:?}");
        assert!(one.to_hgrm().lines().last().unwrap().contains("Total count    =          100"));
        assert!(one.add(&Packed("zz".to_owned())).is_err());
        assert!(one.add(&Packed("00".to_owned())).is_err());
    }

    #[test]
    fn a_median_is_the_one_in_the_middle() {
        assert_eq!((median(&mut [3.0, 1.0, 2.0]), median(&mut [])), (2.0, 0.0));
    }

    #[test]
    fn what_this_process_costs_is_more_than_nothing() {
        let cost = Cost::of(std::process::id());
        assert!(cost.resident_bytes > 100 * 1024, "{cost:?}");
        assert_eq!(Cost::of(0), Cost::default());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let family = Cost::of_family(std::process::id());
        assert!(children_of(std::process::id()).contains(&child.id()));
        assert!(family.resident_bytes > 100 * 1024, "{family:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(descriptors(std::process::id()) >= 3 && descriptors(0) == 0);
        let most = descriptors_max(std::process::id()).unwrap();
        assert!(most >= descriptors(std::process::id()) && descriptors_max(0).is_none());
    }
}
