//! What ClamAV says while it scans, read line by line, and the JSON that a result carries.
//!
//! It owns the findings, bounded, and the last words beside them. File names come from whoever could write the scanned folders: they
//! are quoted as JSON text, cut, and believed for no more than that. Law: the JSON is whole, and fits a result's output.

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
    scanned: Option<u64>,
    signatures: Option<u64>,
    said: Output,
}

/// What the engine does not say.
pub(super) struct Circumstances<'a> {
    pub(super) engine: &'a str,
    pub(super) version: Option<&'a str>,
    pub(super) paths: &'a [PathBuf],
    pub(super) seconds: u64,
    pub(super) is_complete: bool,
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
        let paths = circumstances.paths.iter().take(PATHS_SHOWN_MAX);
        let mut json = json!({
            "engine": circumstances.engine,
            "engine_version": engine_version,
            "signatures_version": signatures_version,
            "signatures_loaded": self.signatures,
            "paths": paths.map(|path| shortened(&path.to_string_lossy(), 128)).collect::<Vec<_>>(),
            "scanned": self.scanned,
            "found_total": self.found_total,
            "found": self.found,
            "seconds": circumstances.seconds,
        });
        if !circumstances.is_complete {
            let said = self.said.into_text();
            let said = String::from_utf8_lossy(&said);
            let last = said.floor_char_boundary(said.len().saturating_sub(MESSAGE_BYTES_MAX));
            json["messages"] = Value::from(said[last..].trim());
        }
        let json = json.to_string().into_bytes();
        assert!(json.len() <= OUTPUT_BYTES_MAX, "each part of a report is bounded");
        json
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
        let number = |text: &str| text.trim().parse().ok();
        if let Some(count) = text.strip_prefix("Scanned files:") {
            self.scanned = number(count);
        } else if let Some(count) = text.strip_prefix("Known viruses:") {
            self.signatures = number(count);
        }
    }

    fn on_found(&mut self, file: &str, signature: &str) {
        self.found_total += 1;
        let finding = json!({"file": shortened(file, 1_024), "signature": shortened(signature, 256)});
        let bytes = finding.to_string().len() + 1;
        if self.found_bytes + bytes <= FOUND_BYTES_MAX {
            self.found_bytes += bytes;
            self.found.push(finding);
        }
    }
}

/// The text, or its end where it is longer than `most` bytes.
fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    format!("…{}", &text[text.ceil_char_boundary(text.len() - most)..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circumstances(is_complete: bool) -> Circumstances<'static> {
        let version = Some("ClamAV 1.4.6/27800/Mon Nov 23 08:00:00 2026");
        Circumstances { engine: "clamscan", version, paths: &[], seconds: 3, is_complete }
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
    fn a_scan_that_failed_tells_the_engines_last_words() {
        let mut report = Report::default();
        report.push(b"ERROR: no signatures");
        let json: Value = serde_json::from_slice(&report.into_json(&circumstances(false))).unwrap();
        assert_eq!(json["messages"], "ERROR: no signatures");
    }
}
