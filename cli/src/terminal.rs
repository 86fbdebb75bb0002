//! What `bgb` writes to, and what that can do: tables and colours for people, JSON for programs, questions.
//!
//! Standard output holds what was asked for and nothing else, so that it can be piped; progress, remarks and questions
//! go to standard error. With `--json` standard output is JSON alone, one document a line. Colours only where a
//! terminal shows them (and NO_COLOR is not set), and never alone: each comes with a sign and a word.

use std::fmt::Display;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};
use comfy_table::{Attribute, Cell, CellAlignment, Color, Table, presets};
use serde::Serialize;

use crate::figures::Clock;
use crate::outcome::{Exit, Failure};

/// How good something is, for its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong.
    Bad,
    /// None of these.
    Plain,
    /// Less important than what is beside it.
    Faint,
}

/// The way to whoever typed the command.
#[derive(Clone, Debug)]
pub(crate) struct Terminal {
    /// Programs read: JSON.
    pub(crate) json: bool,
    /// Say only what was asked for.
    pub(crate) quiet: bool,
    /// Exact times in UTC.
    pub(crate) utc: bool,
    colours_out: bool,
    colours_err: bool,
    /// Somebody looks at standard error.
    pub(crate) watched: bool,
    /// Somebody types on standard input.
    asked: bool,
}

impl Terminal {
    /// This process's standard streams.
    pub(crate) fn of_this_process(json: bool, quiet: bool, utc: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let colours = !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let watched = io::stderr().is_terminal();
        Self {
            json,
            quiet,
            utc,
            colours_out: colours && io::stdout().is_terminal(),
            colours_err: colours && watched,
            watched,
            asked: io::stdin().is_terminal(),
        }
    }

    /// The same, without JSON: what would be JSON is not said at all.
    pub(crate) fn without_json(&self) -> Self {
        Self { json: false, quiet: self.quiet || self.json, ..self.clone() }
    }

    /// The clock that tables are drawn by.
    pub(crate) fn clock(&self) -> Clock {
        Clock::of_this_machine(self.utc)
    }

    /// A line on standard output, for people: nothing with `--json` or `--quiet`.
    ///
    /// # Errors
    /// [`Failure::of_output`].
    pub(crate) fn say(&self, line: impl Display) -> Result<(), Failure> {
        if self.json || self.quiet { Ok(()) } else { self.put(line) }
    }

    /// A line on standard output, whoever reads it.
    ///
    /// # Errors
    /// [`Failure::of_output`].
    pub(crate) fn put(&self, line: impl Display) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| Failure::of_output(&error))
    }

    /// A JSON document on a line of its own.
    ///
    /// # Errors
    /// [`Failure::of_output`].
    pub(crate) fn put_json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        self.put(serde_json::to_string(value).expect("answers hold no map with keys that JSON cannot have"))
    }

    /// What was asked for: `value` for programs, the text that `shown` makes of it for people.
    ///
    /// # Errors
    /// [`Failure::of_output`].
    pub(crate) fn answer<T: Serialize, S: Display>(
        &self,
        value: &T,
        shown: impl FnOnce() -> S,
    ) -> Result<(), Failure> {
        if self.json { self.put_json(value) } else { self.put(shown()) }
    }

    /// A remark on standard error; nothing with `--quiet`.
    pub(crate) fn remark(&self, line: impl Display) {
        if !self.quiet {
            // Nobody can be told that standard error is closed.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// The message of a failure on standard error: a sentence, or JSON for programs.
    pub(crate) fn complain(&self, failure: &Failure) {
        let line = if self.json {
            serde_json::json!({ "error": failure.to_string(), "exit": failure.exit().code() }).to_string()
        } else {
            let bad = self.style_err(Tone::Bad);
            format!("{bad}bgb:{bad:#} {failure}")
        };
        // Nobody can be told that standard error is closed.
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// Asks on standard error and waits for a line that says yes.
    ///
    /// # Errors
    /// [`Exit::NotConfirmed`] when the answer is anything else, or when nobody is there to answer.
    pub(crate) fn confirm(&self, question: &str) -> Result<(), Failure> {
        if !self.asked {
            return Err(Failure::new(
                Exit::NotConfirmed,
                "nothing was sent: standard input is no terminal, so nobody can be asked; add --yes to send without a \
                 question",
            ));
        }
        let mut err = io::stderr();
        let mut answer = String::new();
        write!(err, "{question} [y/N] ")
            .and_then(|()| err.flush())
            .and_then(|()| io::stdin().lock().read_line(&mut answer))
            .map_err(|error| Failure::failed(format!("the answer cannot be read: {error}")))?;
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::new(Exit::NotConfirmed, "nothing was sent")),
        }
    }

    /// `text` for standard output in the colour of `tone`.
    pub(crate) fn paint(&self, tone: Tone, text: impl Display) -> String {
        let style = if self.colours_out { style(tone) } else { Style::new() };
        format!("{style}{text}{style:#}")
    }

    /// A table for standard output with these heads; numbers go to the right of their column ([`figure`]).
    pub(crate) fn table(&self, heads: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(heads.iter().map(|head| Cell::new(head).add_attribute(Attribute::Bold)));
        // Cells are never broken to fit a narrow terminal: ids are copied from there.
        if !self.colours_out {
            table.force_no_tty();
        }
        if let Some(first) = table.column_mut(0) {
            first.set_padding((0, 1));
        }
        table
    }

    fn style_err(&self, tone: Tone) -> Style {
        if self.colours_err { style(tone) } else { Style::new() }
    }
}

/// A table's text without blanks at the ends of its lines.
pub(crate) fn lines_of(table: &Table) -> String {
    table.trim_fmt()
}

/// A cell with text, which a device or a server may have chosen.
pub(crate) fn text(value: impl Display) -> Cell {
    Cell::new(printable(&value.to_string()))
}

/// `text` without what would drive the terminal: control characters (C0, DEL, C1) but the line's end and the tabulator.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control() || matches!(letter, '\n' | '\t')).collect()
}

/// The beginning of a text that somebody far away has chosen, on one line: no more than `letters_max` letters, the last of them `…` where it goes
/// on. Nothing in it drives the terminal, and nothing turns what stands behind it around (Unicode UAX #9, explicit formatting).
pub(crate) fn one_line(text: &str, letters_max: usize) -> String {
    let turns = |letter| matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut letters = text.chars().filter(|letter| !letter.is_control() && !turns(*letter));
    let mut line: String = letters.by_ref().take(letters_max).collect();
    if letters.next().is_some() {
        line.pop();
        line.push('…');
    }
    line
}

/// A cell with a number, which stands to the right.
pub(crate) fn figure(value: u64) -> Cell {
    Cell::new(crate::figures::number(value)).set_alignment(CellAlignment::Right)
}

/// A cell with a number that is a name: it is typed as it stands, so nothing parts its digits.
pub(crate) fn name_number(value: u32) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

/// A sign and a word: the colour of a tone never stands alone.
pub(crate) fn signed(tone: Tone, word: impl Display) -> String {
    format!("{} {word}", sign(tone))
}

/// A cell with a sign and a word, in the colour of `tone`.
pub(crate) fn state(tone: Tone, word: impl Display) -> Cell {
    let cell = Cell::new(signed(tone, word));
    match tone {
        Tone::Good => cell.fg(Color::Green),
        Tone::Warn => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
        Tone::Faint => cell.add_attribute(Attribute::Dim),
        Tone::Plain => cell,
    }
}

fn sign(tone: Tone) -> char {
    match tone {
        Tone::Good => '●',
        Tone::Warn => '▲',
        Tone::Bad => '✗',
        Tone::Plain => '◐',
        Tone::Faint => '○',
    }
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Good => AnsiColor::Green.on_default(),
        Tone::Warn => AnsiColor::Yellow.on_default(),
        Tone::Bad => AnsiColor::Red.on_default().bold(),
        Tone::Plain => Style::new(),
        Tone::Faint => Style::new().dimmed(),
    }
}

#[cfg(test)]
impl Terminal {
    /// A terminal for tests: no colours, nobody there.
    pub(crate) fn plain() -> Self {
        Self {
            json: false,
            quiet: false,
            utc: false,
            colours_out: false,
            colours_err: false,
            watched: false,
            asked: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_nothing_is_coloured_without_a_terminal() {
        let mut table = Terminal::plain().table(&["Collection", "Members"]);
        table.add_row([text("Demo"), figure(5)]);
        table.add_row([state(Tone::Good, "online"), figure(1_204)]);
        let shown = lines_of(&table);
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines, ["Collection  Members", "Demo              5", "● online      1,204"]);
    }

    #[test]
    fn nobody_there_means_no() {
        let failure = Terminal::plain().confirm("Start?").unwrap_err();
        assert_eq!(failure.exit(), Exit::NotConfirmed);
        assert!(failure.to_string().contains("--yes"));
    }

    #[test]
    fn a_devices_words_do_not_drive_the_terminal() {
        assert_eq!(text("1.0\u{1b}]52;c;eA==\u{7}\u{9b}2J").content(), "1.0]52;c;eA==2J");
    }

    #[test]
    fn a_line_is_cut_where_it_is_too_long_and_only_there() {
        assert_eq!(
            ["abc", "abcd", "", "a\nb\tc\u{202e}"].map(|text| one_line(text, 3)),
            ["abc", "ab…", "", "abc"]
        );
    }

    #[test]
    fn paint_adds_nothing_where_there_are_no_colours() {
        assert_eq!(Terminal::plain().paint(Tone::Bad, "failed"), "failed");
    }
}
