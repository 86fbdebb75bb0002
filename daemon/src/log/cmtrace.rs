//! Records in the format that CMTrace, OneTrace and their like read, as Configuration Manager writes it:
//!
//! ```text
//! <![LOG[message key=value]LOG]!><time="14:05:09.123+000" date="11-23-2026" component="BGBServer" context="" type="1" thread="1234" file="reactor.rs:123">
//! ```
//!
//! `time` is local and ends with Windows' bias: minutes that must be ADDED to it to come to UTC, so that
//! Berlin in winter has -060 and New York +300. `type` is 1 for information, 2 for a warning, 3 for an error.
//! Fields of enclosing spans are not written. Law: a record is one line, whatever is in its message, and
//! nothing in a message can end the record or begin another.

use std::fmt::{self, Write as _};

use jiff::Zoned;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::file::LogSink;

/// The longest message in bytes. The viewers cut lines of some 10,000 characters.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;

/// Writes events to the log file's queue.
pub(super) struct CmTraceLayer {
    component: &'static str,
    sink: LogSink,
}

impl CmTraceLayer {
    pub(super) fn new(component: &'static str, sink: LogSink) -> CmTraceLayer {
        CmTraceLayer { component, sink }
    }
}

impl<S: Subscriber> Layer<S> for CmTraceLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let record = Record {
            message: &fields.text(),
            component: fields.component.as_deref().unwrap_or(self.component),
            severity: Severity::of(*metadata.level()),
            thread: rustix::thread::gettid().as_raw_nonzero().get(),
            file: fields.log_file.as_deref().or(metadata.file()).unwrap_or(""),
            line: fields.log_line.or(metadata.line().map(u64::from)).unwrap_or(0),
        };
        self.sink.write(record.encode(&Zoned::now()));
    }
}

/// The format's `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    Information = 1,
    Warning = 2,
    Error = 3,
}

impl Severity {
    fn of(level: Level) -> Severity {
        match level {
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warning,
            _ => Severity::Information,
        }
    }
}

/// One line of the log.
pub(super) struct Record<'a> {
    pub(super) message: &'a str,
    pub(super) component: &'a str,
    pub(super) severity: Severity,
    pub(super) thread: i32,
    /// Path of the source file; its last part is written.
    pub(super) file: &'a str,
    pub(super) line: u64,
}

impl Record<'_> {
    /// The line, with its end.
    pub(super) fn encode(&self, now: &Zoned) -> String {
        let mut line = String::with_capacity(self.message.len() + 160);
        line.push_str("<![LOG[");
        push_message(&mut line, self.message);
        let bias_minutes = -(now.offset().seconds() / 60);
        let file = self.file.rsplit('/').next().unwrap_or_default();
        write!(
            line,
            "]LOG]!><time=\"{}{bias_minutes:+04}\" date=\"{}\" component=\"{}\" context=\"\" type=\"{}\" \
             thread=\"{}\" file=\"{}:{}\">\r\n",
            now.strftime("%H:%M:%S.%3f"),
            now.strftime("%m-%d-%Y"),
            Attribute(self.component),
            self.severity as u8,
            self.thread,
            Attribute(file),
            self.line,
        )
        .expect("writing to a String cannot fail");
        line
    }
}

/// The message on one line, cut at its limit, without the mark that ends it.
fn push_message(line: &mut String, message: &str) {
    let start = line.len();
    for (index, character) in message.char_indices() {
        if line.len() - start >= MESSAGE_BYTES_MAX {
            line.push_str(&format!(" (and {} bytes more)", message.len() - index));
            break;
        }
        match character {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push('\t'),
            // A control character, or one of the two other ends of a line that Unicode knows.
            other if other.is_control() || matches!(other, '\u{2028}' | '\u{2029}') => {
                line.extend(other.escape_unicode());
            }
            // After this the viewers take the message to be over.
            '>' if line[start..].ends_with("]LOG]!") => line.push_str(" >"),
            other => line.push(other),
        }
    }
}

/// Text between two quotes: without quotes, angle brackets and control characters of its own.
struct Attribute<'a>(&'a str);

impl fmt::Display for Attribute<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars().take(128) {
            f.write_char(match character {
                '"' | '<' | '>' => '_',
                other if other.is_control() => '_',
                other => other,
            })?;
        }
        Ok(())
    }
}

/// The fields of an event, sorted out.
#[derive(Default)]
struct Fields {
    message: String,
    /// ` key=value` of each other field.
    pairs: String,
    component: Option<String>,
    /// Where a record of the `log` crate came from; tracing's own place is the bridge between the two.
    log_file: Option<String>,
    log_line: Option<u64>,
}

impl Fields {
    fn text(&self) -> String {
        format!("{}{}", self.message, self.pairs).trim_start().to_owned()
    }

    fn push(&mut self, name: &str, value: fmt::Arguments<'_>) {
        match name {
            "message" => self.message = value.to_string(),
            "log.target" | "log.module_path" => {}
            _ => write!(self.pairs, " {name}={value}").expect("writing to a String cannot fail"),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "component" {
            self.component = Some(format!("{value:?}"));
        } else {
            self.push(field.name(), format_args!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "component" => self.component = Some(value.to_owned()),
            "log.file" => self.log_file = Some(value.to_owned()),
            "message" => self.push("message", format_args!("{value}")),
            name if value.is_empty() || value.contains([' ', '"', '=']) => {
                self.push(name, format_args!("{value:?}"));
            }
            name => self.push(name, format_args!("{value}")),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "log.line" {
            self.log_line = Some(value);
        } else {
            self.push(field.name(), format_args!("{value}"));
        }
    }
}

#[cfg(test)]
mod tests;
