//! Numbers, times and durations as people read them.
//!
//! Pure: the time of looking is an argument. Times are relative ("2 min ago") unless exact ones are wanted, which are
//! UTC (`--utc`).

use bgb_protocol::ids::UnixMillis;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

/// When somebody looks, and how times are shown to them.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    /// The time of looking.
    pub(crate) now: UnixMillis,
    /// Exact times in UTC instead of relative ones.
    pub(crate) utc: bool,
}

impl Clock {
    /// This machine's clock, now.
    pub(crate) fn of_this_machine(utc: bool) -> Self {
        // A clock before 1970 shows every time as lying ahead, which is what it then looks like.
        Self { now: UnixMillis(u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)), utc }
    }

    /// `time` as a table shows it.
    pub(crate) fn show(&self, time: UnixMillis) -> String {
        if self.utc { exact(time) } else { self.relative(time) }
    }

    /// `time`, or a dash.
    pub(crate) fn show_some(&self, time: Option<UnixMillis>) -> String {
        time.map_or_else(|| "–".to_owned(), |time| self.show(time))
    }

    fn relative(&self, time: UnixMillis) -> String {
        match (self.now.since(time), time.since(self.now)) {
            // Clocks of two machines, or of two processes, never agree to the millisecond.
            (0..1000, 0..1000) => "now".to_owned(),
            (ago, 0) => format!("{} ago", duration(ago)),
            (_, ahead) => format!("in {}", duration(ahead)),
        }
    }
}

/// A number with a comma before each three digits: `1,204`.
pub(crate) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// `1 device`, `1,204 devices`.
pub(crate) fn counted(value: u64, one: &str, many: &str) -> String {
    format!("{} {}", number(value), if value == 1 { one } else { many })
}

/// A duration in its largest fitting unit, cut rather than rounded: `45 s`, `2 min`, `3 h`, `12 days`.
pub(crate) fn duration(millis: u64) -> String {
    const SECOND: u64 = 1000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const TWO_DAYS: u64 = 2 * DAY;
    match millis {
        0..MINUTE => format!("{} s", millis / SECOND),
        MINUTE..HOUR => format!("{} min", millis / MINUTE),
        // Below two days the hour still tells something: 36 h is not 1 day.
        HOUR..TWO_DAYS => format!("{} h", millis / HOUR),
        _ => format!("{} days", millis / DAY),
    }
}

/// `2026-11-23T08:44:42Z`.
pub(crate) fn exact(time: UnixMillis) -> String {
    timestamp(time).map_or_else(|| format!("{} ms", time.0), |time| format!("{time:.0}"))
}

fn timestamp(time: UnixMillis) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(time.0).ok()?).ok()
}

/// Reads a duration such as `90s`, `1h 30m` or `7d`, in seconds.
///
/// # Errors
/// A sentence for people when it is none, or not a whole positive number of seconds.
pub(crate) fn parse_duration(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no duration; write it like 90s, 30m, 1h or 7d");
    let span: Span = text.parse().map_err(|_| wrong())?;
    let duration: SignedDuration =
        span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    match u64::try_from(duration.as_secs()) {
        Ok(seconds) if seconds > 0 && duration.subsec_nanos() == 0 => Ok(seconds),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: UnixMillis = UnixMillis(1_795_435_200_000); // 2026-11-23T12:00:00Z

    fn clock(utc: bool) -> Clock {
        Clock { now: NOON, utc }
    }

    #[test]
    fn numbers_have_a_comma_before_each_three_digits() {
        let shown = [0, 7, 999, 1_000, 1_204, 987_654, 1_000_000].map(number);
        assert_eq!(shown, ["0", "7", "999", "1,000", "1,204", "987,654", "1,000,000"]);
        assert_eq!(counted(1, "device", "devices"), "1 device");
        assert_eq!(counted(1_204, "device", "devices"), "1,204 devices");
    }

    #[test]
    fn times_are_relative_unless_exact_ones_are_wanted() {
        let relative = |ago: u64| clock(false).show(UnixMillis(NOON.0 - ago));
        assert_eq!(relative(400), "now");
        assert_eq!(relative(2 * 60_000 + 59_000), "2 min ago");
        assert_eq!(relative(36 * 3_600_000), "36 h ago");
        assert_eq!(relative(3 * 86_400_000), "3 days ago");
        assert_eq!(clock(false).show(NOON.plus(3_600_000)), "in 1 h");
        assert_eq!(clock(true).show(NOON), "2026-11-23T12:00:00Z");
        assert_eq!(clock(false).show_some(None), "–");
    }

    #[test]
    fn a_time_beyond_the_calendar_is_shown_as_it_is() {
        assert_eq!(exact(UnixMillis(u64::MAX)), "18446744073709551615 ms");
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse_duration("90s"), Ok(90));
        assert_eq!(parse_duration("1h 30m"), Ok(5_400));
        assert_eq!(parse_duration("7d"), Ok(604_800));
        for wrong in ["", "5", "soon", "-1h", "0s", "1500ms", "1 month"] {
            assert!(parse_duration(wrong).unwrap_err().contains("like 90s"), "{wrong}");
        }
    }
}
