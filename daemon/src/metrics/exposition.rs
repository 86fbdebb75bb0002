//! Prometheus's text format, version 0.0.4: what `/metrics` answers.

use std::fmt::{Display, Write as _};

use super::histogram::{Histogram, Reading};
use super::process;

/// A text that grows by a metric at a time.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// One that begins with what every process tells: its release (`version`), memory, processor time, descriptors and start.
    #[must_use]
    pub fn of_process(version: &str) -> Self {
        let mut out = Self::default();
        out.head("bgb_build_info", "1, with the release of the program.", "gauge");
        out.line("bgb_build_info", &[("version", version)], 1);
        process::expose(&mut out);
        out
    }

    /// A number that only grows; its name ends in `_total`.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, help, "counter");
        self.line(name, &[], value);
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, help, "gauge");
        self.line(name, &[], value);
    }

    /// A gauge of each value of a label.
    pub fn gauges<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        self.head(name, help, "gauge");
        self.of_label(name, label, values);
    }

    /// A counter of each value of a label. All values are told, also those that have counted nothing: what is missing cannot be alerted on.
    pub fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        self.head(name, help, "counter");
        self.of_label(name, label, values);
    }

    fn of_label<'a>(&mut self, name: &str, label: &str, values: impl IntoIterator<Item = (&'a str, u64)>) {
        for (label_value, value) in values {
            self.line(name, &[(label, label_value)], value);
        }
    }

    /// A counter of each pair of two labels' values.
    pub fn counters_of_two<'a>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; 2],
        values: impl IntoIterator<Item = ([&'a str; 2], u64)>,
    ) {
        self.head(name, help, "counter");
        for (label_values, value) in values {
            self.line(name, &[(labels[0], label_values[0]), (labels[1], label_values[1])], value);
        }
    }

    /// Times, in seconds: those of several threads, added up.
    pub fn histogram(&mut self, name: &str, help: &str, parts: &[&Histogram]) {
        let Some(Reading { bounds, counts, sum_ns }) = Histogram::read(parts) else { return };
        self.head(name, help, "histogram");
        let bucket = format!("{name}_bucket");
        let mut so_far = 0;
        for (at, count) in counts.iter().enumerate() {
            so_far += count;
            let bound = bounds.get(at).map_or_else(|| "+Inf".to_owned(), |bound| seconds(*bound));
            self.line(&bucket, &[("le", &bound)], so_far);
        }
        self.line(&format!("{name}_sum"), &[], seconds(sum_ns));
        self.line(&format!("{name}_count"), &[], so_far);
    }

    /// The text.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        // Writing into a String does not fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (at, (label, label_value)) in labels.iter().enumerate() {
            let begin = if at == 0 { '{' } else { ',' };
            let label_value = label_value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.text, "{begin}{label}=\"{label_value}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }
}

/// Nanoseconds as seconds, without the zeros at the end.
fn seconds(ns: u64) -> String {
    let text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_kind_is_written_as_the_format_has_it() {
        let histogram = Histogram::new(&[100_000, 2_500_000_000]);
        for took in [Duration::from_micros(50), Duration::from_secs(1), Duration::from_secs(60)] {
            histogram.observe(took);
        }
        let mut out = Exposition::default();
        out.counter("a_total", "How many.", 3);
        out.gauge("b_bytes", "One\\two\nlines.", 4);
        out.counters("c_total", "By kind.", "kind", [("x", 1), ("q\"\\\n", 2)]);
        out.counters_of_two("d_total", "By two.", ["one", "two"], [(["x", "y"], 5)]);
        out.histogram("e_seconds", "Times.", &[&histogram]);
        out.histogram("f_seconds", "Of nobody.", &[]);
        let wanted = r#"# HELP a_total How many.
# TYPE a_total counter
a_total 3
# HELP b_bytes One\\two\nlines.
# TYPE b_bytes gauge
b_bytes 4
# HELP c_total By kind.
# TYPE c_total counter
c_total{kind="x"} 1
c_total{kind="q\"\\\n"} 2
# HELP d_total By two.
# TYPE d_total counter
d_total{one="x",two="y"} 5
# HELP e_seconds Times.
# TYPE e_seconds histogram
e_seconds_bucket{le="0.0001"} 1
e_seconds_bucket{le="2.5"} 2
e_seconds_bucket{le="+Inf"} 3
e_seconds_sum 61.00005
e_seconds_count 3
"#;
        assert_eq!(out.into_text(), wanted);
    }

    #[test]
    fn a_process_tells_of_itself() {
        let text = Exposition::of_process("1.2.3").into_text();
        assert!(text.contains("\nbgb_build_info{version=\"1.2.3\"} 1\n"), "{text}");
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is missing: {text}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!((3.0..=value("process_max_fds")).contains(&value("process_open_fds")));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..3_600.0).contains(&age), "a test's process is {age} s old");
    }

    #[test]
    fn seconds_are_as_short_as_they_can_be() {
        assert_eq!([0, 1, 1_500_000_000, 10_000_000_000].map(seconds), ["0", "0.000000001", "1.5", "10"]);
    }
}
