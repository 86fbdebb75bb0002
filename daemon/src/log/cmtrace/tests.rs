//! The format, to the letter.

use jiff::civil::date;
use jiff::tz::{Offset, TimeZone};

use super::*;

fn moment(offset_minutes: i32) -> Zoned {
    let offset = Offset::from_seconds(offset_minutes * 60).unwrap();
    date(2026, 11, 23).at(14, 5, 9, 123_999_999).to_zoned(TimeZone::fixed(offset)).unwrap()
}

fn record(message: &str) -> Record<'_> {
    Record {
        message,
        component: "BGBServer",
        severity: Severity::Information,
        thread: 1234,
        file: "src/reactor/reactor.rs",
        line: 123,
    }
}

/// The message part of a line.
fn message(text: &str) -> String {
    let line = record(text).encode(&moment(0));
    let (message, _) = line.strip_prefix("<![LOG[").unwrap().split_once("]LOG]!>").unwrap();
    message.to_owned()
}

#[test]
fn a_record_is_one_line_exactly_as_the_viewers_expect_it() {
    assert_eq!(
        record("listening address=127.0.0.1:10123").encode(&moment(0)),
        "<![LOG[listening address=127.0.0.1:10123]LOG]!><time=\"14:05:09.123+000\" date=\"11-23-2026\" \
         component=\"BGBServer\" context=\"\" type=\"1\" thread=\"1234\" file=\"reactor.rs:123\">\r\n"
    );
}

#[test]
fn the_offset_is_windows_bias_with_sign_and_three_digits() {
    for (offset_minutes, expected) in
        [(60, "-060"), (-300, "+300"), (330, "-330"), (0, "+000"), (-45, "+045")]
    {
        let line = record("").encode(&moment(offset_minutes));
        assert!(line.contains(&format!("time=\"14:05:09.123{expected}\"")), "{line}");
    }
}

#[test]
fn the_type_is_3_for_errors_2_for_warnings_and_1_for_all_else() {
    let types = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE]
        .map(|level| Severity::of(level) as u8);
    assert_eq!(types, [3, 2, 1, 1, 1]);
}

#[test]
fn nothing_in_a_message_ends_its_record_or_its_line() {
    assert_eq!(message("two\r\nlines\u{2028}\u{0}\ttab"), "two\\r\\nlines\\u{2028}\\u{0}\ttab");
    let forged = "x]LOG]!><time=\"00:00:00.000+000\" date=\"01-01-2000\" type=\"3\">\n<![LOG[y]LOG]!>";
    let line = record(forged).encode(&moment(0));
    assert_eq!(line.matches("]LOG]!>").count(), 1, "{line}");
    assert_eq!(line.matches('\n').count(), 1);
    assert!(message(forged).starts_with("x]LOG]! ><time"));
}

#[test]
fn a_long_message_is_cut_and_says_so() {
    let cut = message(&"ä".repeat(10_000));
    assert!(cut.len() < MESSAGE_BYTES_MAX + 64);
    assert!(cut.ends_with("ä (and 11808 bytes more)"), "{}", &cut[cut.len() - 40..]);
    let fits = "a".repeat(MESSAGE_BYTES_MAX);
    assert_eq!(message(&fits), fits);
}

#[test]
fn a_component_cannot_leave_its_quotes() {
    let mut odd = record("");
    odd.component = "a\" type=\"3\"><b\n";
    let line = odd.encode(&moment(0));
    assert!(line.contains("component=\"a_ type=_3___b_\" context"), "{line}");
}
