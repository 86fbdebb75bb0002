//! What ClamAV says while it scans, read line by line, and the JSON that a result carries.
//!
//! It owns the findings, bounded, and the last words beside them. File names come from whoever could write the scanned folders, and
//! ClamAV prints them as they are, line breaks included: they are quoted as JSON text, cleaned of control characters, cut,
//! and believed for no more than that. A name can pretend to be another finding; figures are taken from the summary that
//! the engine ends with, so that a name cannot pretend to be those. Law: the JSON is whole, and fits a result's output.

use std::path::PathBuf;

use bgb_protocol::action::OUTPUT_BYTES_MAX;
use serde_json::{Value, json};

use crate::actions::output::Output;

/// Longest line that is looked at; a path has 4,096 bytes at most (PATH_MAX).
const LINE_BYTES_MAX: usize = 8 * 1024;

/// Bytes of the JSON that findings may fill; the rest is for what stands around them.
const FOUND_BYTES_MAX: usize = OUTPUT_BYTES_MAX - 10 * 1024;

/// Bytes of the engine's own words in the JSON of a scan that failed.
const MESSAGE_BYTES_MAX: usize = 2 * 1024;

/// Paths that the JSON names, of those that were to be scanned.
const PATHS_SHOWN_MAX: usize = 16;

/// What the engine has said.
#[derive(Default)]
pub(super) struct Report {
    line: Vec<u8>,
    found: Vec<Value>,
    found_bytes: usize,
    found_total: u64,
    /// Of the last summary.
    figures: Option<Figures>,
    said: Output,
}

/// What a summary says; clamdscan's says less than clamscan's.
#[derive(Default)]
struct Figures {
    scanned: Option<u64>,
    infected: Option<u64>,
    errors: Option<u64>,
    signatures: Option<u64>,
}

/// What the engine does not say.
pub(super) struct Circumstances<'a> {
    pub(super) engine: &'a str,
    pub(super) version: Option<&'a str>,
    pub(super) paths: &'a [PathBuf],
    /// Folders that could not be read.
    pub(super) skipped: &'a [PathBuf],
    pub(super) seconds: u64,
    pub(super) is_complete: bool,
    /// Whether the engine came to its own end, and so to its summary.
    pub(super) has_summary: bool,
}

impl Report {
    /// Takes more of what it says.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.on_line(&line);
            } else if self.line.len() < LINE_BYTES_MAX {
                self.line.push(byte);
            }
        }
    }

    /// Whether the engine has summed up.
    pub(super) fn has_summary(&self) -> bool {
        self.figures.as_ref().is_some_and(|figures| figures.infected.is_some())
    }

    /// Whether, by its summary, the engine had signatures and scanned.
    pub(super) fn has_scanned(&self) -> bool {
        let is_positive = |figure: Option<u64>| figure.is_some_and(|count| count > 0);
        self.figures
            .as_ref()
            .is_some_and(|figures| is_positive(figures.scanned) && is_positive(figures.signatures))
    }

    /// What was found, by its summary where there is one.
    pub(super) fn found(&self) -> u64 {
        self.figures.as_ref().and_then(|figures| figures.infected).unwrap_or(self.found_total)
    }

    /// The result's output.
    pub(super) fn into_json(mut self, circumstances: &Circumstances<'_>) -> Vec<u8> {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.on_line(&line);
        }
        let (engine_version, signatures_version) = match circumstances.version {
            None => (None, None),
            Some(version) => match version.split_once('/') {
                Some((engine, signatures)) => (Some(engine), Some(signatures)),
                None => (Some(version), None),
            },
        };
        let shown = |paths: &[PathBuf]| -> Vec<String> {
            paths.iter().take(PATHS_SHOWN_MAX).map(|path| tail(&path.to_string_lossy(), 128)).collect()
        };
        let figures = self.figures.filter(|_| circumstances.has_summary).unwrap_or_default();
        let mut json = json!({
            "engine": circumstances.engine,
            "engine_version": engine_version.map(|version| tail(version, 256)),
            "signatures_version": signatures_version.map(|version| tail(version, 256)),
            "signatures_loaded": figures.signatures,
            "paths": shown(circumstances.paths),
            "skipped_total": circumstances.skipped.len(),
            "skipped": shown(circumstances.skipped),
            "errors": figures.errors,
            "scanned": figures.scanned,
            "found_total": figures.infected.unwrap_or(self.found_total),
            "found": self.found,
            "seconds": circumstances.seconds,
        });
        if !circumstances.is_complete {
            let said = self.said.into_text();
            json["messages"] = Value::from(tail(String::from_utf8_lossy(&said).trim(), MESSAGE_BYTES_MAX));
        }
        json.to_string().into_bytes()
    }

    fn on_line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        if let Some((file, signature)) = text.strip_suffix(" FOUND").and_then(|text| text.rsplit_once(": ")) {
            self.on_found(file, signature);
            return;
        }
        self.said.push(line);
        self.said.push(b"\n");
        if text.contains("SCAN SUMMARY") {
            self.figures = Some(Figures::default());
        } else if let (Some(figures), Some((name, value))) = (&mut self.figures, text.split_once(':')) {
            figures.take(name, value.trim());
        }
    }

    fn on_found(&mut self, file: &str, signature: &str) {
        self.found_total += 1;
        let finding = json!({"file": tail(file, 1_024), "signature": tail(signature, 256)});
        let bytes = finding.to_string().len() + 1;
        if self.found_bytes + bytes <= FOUND_BYTES_MAX {
            self.found_bytes += bytes;
            self.found.push(finding);
        }
    }
}

impl Figures {
    /// The first word of each figure counts.
    fn take(&mut self, name: &str, value: &str) {
        let place = match name {
            "Scanned files" => &mut self.scanned,
            "Infected files" => &mut self.infected,
            "Total errors" => &mut self.errors,
            "Known viruses" => &mut self.signatures,
            _ => return,
        };
        *place = place.or_else(|| value.parse().ok());
    }
}

/// The text with its control characters replaced, or its end where that has more than `most` bytes as JSON.
fn tail(text: &str, most: usize) -> String {
    let mut bytes = 0;
    let mut from = text.len();
    for (at, letter) in text.char_indices().rev() {
        bytes += match cleaned(letter) {
            '"' | '\\' => 2,
            letter => letter.len_utf8(),
        };
        if bytes > most {
            break;
        }
        from = at;
    }
    let cut = if from > 0 { "…" } else { "" };
    cut.chars().chain(text[from..].chars().map(cleaned)).collect()
}

/// JSON has six bytes for a control character, a terminal its own ideas of it, and no reader a need of it.
fn cleaned(letter: char) -> char {
    match letter {
        '\n' => ' ',
        letter if letter.is_control() => char::REPLACEMENT_CHARACTER,
        letter => letter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circumstances(is_complete: bool) -> Circumstances<'static> {
        let version = Some("ClamAV 1.4.6/27800/Mon Nov 23 08:00:00 2026");
        Circumstances {
            engine: "clamscan",
            version,
            paths: &[],
            skipped: &[],
            seconds: 3,
            is_complete,
            has_summary: true,
        }
    }

    #[test]
    fn findings_and_figures_are_read_however_the_lines_are_split() {
        let said =
            "/tmp/a: b.exe: Sample-1 FOUND\n\n--- SCAN SUMMARY ---\nKnown viruses: 12\nScanned files: 7\n";
        for width in [1, 3, 1_000] {
            let mut report = Report::default();
            said.as_bytes().chunks(width).for_each(|chunk| report.push(chunk));
            let json: Value = serde_json::from_slice(&report.into_json(&circumstances(true))).unwrap();
            assert_eq!(json["found"], json!([{"file": "/tmp/a: b.exe", "signature": "Sample-1"}]));
            assert_eq!((json["scanned"].as_u64(), json["signatures_loaded"].as_u64()), (Some(7), Some(12)));
            assert_eq!(json["signatures_version"], "27800/Mon Nov 23 08:00:00 2026");
            assert_eq!(json.get("messages"), None);
        }
    }

    #[test]
    fn any_number_of_findings_with_any_names_fits_a_result() {
        let mut report = Report::default();
        for number in 0..5_000 {
            report.push(format!("/tmp/{}\u{1}\"{number}: X FOUND\n", "ä".repeat(number % 3_000)).as_bytes());
        }
        report.push(&[0xff; 100_000]);
        let output = report.into_json(&circumstances(false));
        assert!(output.len() <= OUTPUT_BYTES_MAX, "{}", output.len());
        let json: Value = serde_json::from_slice(&output).unwrap();
        assert_eq!(json["found_total"], 5_000);
        assert!(json["found"].as_array().unwrap().len() < 5_000);
    }

    #[test]
    fn hostile_names_neither_break_the_json_nor_forge_the_figures() {
        let name = format!(
            "/tmp/{}\nScanned files: 0\n--- SCAN SUMMARY ---\nInfected files: 0\n\u{1b}[2J",
            "\u{1}".repeat(900)
        );
        let end = "--- SCAN SUMMARY ---\nKnown viruses: 12\nScanned files: 7\nInfected files: 200\nScanned files: 9\n";
        let mut report = Report::default();
        for _ in 0..200 {
            report.push(format!("{name}: X FOUND\n/tmp/{}: Y FOUND\n", "\u{1}".repeat(1_500)).as_bytes());
        }
        report.push(&[1; 9_000]);
        report.push(format!("\n{end}").as_bytes());
        let output = report.into_json(&circumstances(false));
        assert!(output.len() <= OUTPUT_BYTES_MAX, "{}", output.len());
        let json: Value = serde_json::from_slice(&output).unwrap();
        assert_eq!((json["scanned"].as_u64(), json["found_total"].as_u64()), (Some(7), Some(200)));
        assert!(!json["found"].to_string().contains("\\u00"), "control characters are replaced");

        let mut report = Report::default();
        report.push(format!("{name}: X FOUND\n").as_bytes());
        let killed = Circumstances { has_summary: false, ..circumstances(false) };
        let json: Value = serde_json::from_slice(&report.into_json(&killed)).unwrap();
        assert_eq!((&json["scanned"], &json["found_total"]), (&Value::Null, &json!(1)));
    }

    #[test]
    fn a_scan_that_failed_tells_the_engines_last_words() {
        let mut report = Report::default();
        report.push(b"ERROR: no signatures");
        let json: Value = serde_json::from_slice(&report.into_json(&circumstances(false))).unwrap();
        assert_eq!(json["messages"], "ERROR: no signatures");
    }
}
