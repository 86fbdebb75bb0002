//! The daemons' logs: a file that CMTrace and its like can read, and text or JSON on standard error.
//!
//! [`init`] sets up tracing for the whole process; records of the `log` crate (rustls writes such) come
//! along. The file is written by a thread of its own behind a bounded queue. It must not know what is
//! logged, nor by whom. Law: a log never stops or delays what it speaks of: when the disk is slow, full or
//! gone, records are dropped, this is said once on standard error, and the number of those dropped is
//! written when the file can be written again.

mod cmtrace;
mod file;

use std::fmt;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry};

pub use file::LogGuard;

/// What a process logs, and where to.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The component of records that name none themselves, for example `BGBServer`.
    pub component: &'static str,
    /// The file in CMTrace format; without one, none is written.
    pub file: Option<PathBuf>,
    /// What goes to standard error.
    pub stderr: StderrFormat,
    /// What is logged: a level (`info`), or levels by module (`info,rustls=warn`).
    pub level: String,
    /// Records that have a file of their own.
    pub apart: Option<LogApart>,
}

/// A part of what a process logs that goes to a file of its own instead.
#[derive(Clone, Debug)]
pub struct LogApart {
    /// The records' target.
    pub target: &'static str,
    /// Their component.
    pub component: &'static str,
    /// The file in CMTrace format; without one, none is written.
    pub file: Option<PathBuf>,
}

/// How records look on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StderrFormat {
    /// A line for people.
    #[default]
    Text,
    /// A line of JSON for programs.
    Json,
    /// Nothing.
    Off,
}

impl FromStr for StderrFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<StderrFormat, String> {
        match text {
            "text" => Ok(StderrFormat::Text),
            "json" => Ok(StderrFormat::Json),
            "off" => Ok(StderrFormat::Off),
            _ => Err(format!("{text:?} is none of text, json, off")),
        }
    }
}

impl fmt::Display for StderrFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StderrFormat::Text => "text",
            StderrFormat::Json => "json",
            StderrFormat::Off => "off",
        })
    }
}

/// The `[log]` section of a daemon's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// What is logged: a level (`info`), or levels by module (`info,rustls=warn`).
    pub level: String,
    /// What goes to standard error.
    pub stderr: StderrFormat,
    /// The folder of the log files; without one, none are written.
    pub directory: Option<PathBuf>,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { level: "info".to_owned(), stderr: StderrFormat::Text, directory: None }
    }
}

impl LogConfig {
    /// The options for a component whose file has this name, for example `BGBServer.log`.
    pub fn options(&self, component: &'static str, file_name: &str) -> LogOptions {
        LogOptions {
            component,
            file: self.directory.as_ref().map(|directory| directory.join(file_name)),
            stderr: self.stderr,
            level: self.level.clone(),
            apart: None,
        }
    }

    /// The same, with the records of `target` in a file of their own.
    #[must_use]
    pub fn options_with(
        &self,
        (component, file_name): (&'static str, &str),
        (target, apart, apart_file): (&'static str, &'static str, &str),
    ) -> LogOptions {
        let file = self.directory.as_ref().map(|directory| directory.join(apart_file));
        LogOptions {
            apart: Some(LogApart { target, component: apart, file }),
            ..self.options(component, file_name)
        }
    }
}

/// Starts logging for this process. The guard writes out what is queued when it is dropped: keep it until
/// the end of `main`.
///
/// # Errors
/// When `level` is not understood, logging was started before, or there is no thread to be had. A file that
/// cannot be written is no error: see the module's law.
pub fn init(options: LogOptions) -> anyhow::Result<LogGuard> {
    let filter = EnvFilter::try_new(&options.level).with_context(|| {
        format!("log level {:?} is not understood; use error, warn, info, debug or trace", options.level)
    })?;
    let stderr = match options.stderr {
        StderrFormat::Off => None,
        // A standard error that cannot be written must not be complained about on standard error: that panics.
        StderrFormat::Text => Some(
            tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal())
                .log_internal_errors(false)
                .boxed(),
        ),
        StderrFormat::Json => Some(
            tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(std::io::stderr)
                .log_internal_errors(false)
                .boxed(),
        ),
    };
    let mut guard = LogGuard::without_file();
    let target = options.apart.as_ref().map(|apart| apart.target);
    let mut layer = |path: Option<PathBuf>, component| {
        path.map(|path| {
            let (sink, own) = file::start(path, component)
                .context("the thread that writes the log file cannot be started")?;
            guard.join(own);
            anyhow::Ok(cmtrace::CmTraceLayer::new(component, sink))
        })
        .transpose()
    };
    let cmtrace = layer(options.file, options.component)?;
    let cmtrace =
        cmtrace.map(|layer| layer.with_filter(filter_fn(move |record| Some(record.target()) != target)));
    let apart = match options.apart {
        None => None,
        Some(LogApart { target, component, file }) => layer(file, component)?
            .map(|layer| layer.with_filter(filter_fn(move |record| record.target() == target))),
    };
    Registry::default()
        .with(filter)
        .with(cmtrace)
        .with(apart)
        .with(stderr)
        .try_init()
        .context("logging was started before in this process")?;
    Ok(guard)
}

#[cfg(test)]
mod tests;
