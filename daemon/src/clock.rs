//! The three clocks of the machine, read at one moment, and the id of its boot.
//!
//! This is the only module that reads a clock on behalf of others: everywhere else time is an argument,
//! so that the simulator can hand in its own. Law: `boot_ms` and `mono_ms` never go back within a boot;
//! `unix_ms` may, and nothing may depend on it but what is shown to people and signed heads.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Where Linux tells the id of this boot: a UUID, new at every boot (proc_sys_kernel(5)).
const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";

/// One moment on the machine's three clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Milliseconds since 1970-01-01 UTC by the wall clock (CLOCK_REALTIME); it can jump either way.
    pub unix_ms: u64,
    /// Milliseconds since boot, time asleep included (CLOCK_BOOTTIME).
    pub boot_ms: u64,
    /// Milliseconds of monotonic time, time asleep not included (CLOCK_MONOTONIC).
    pub mono_ms: u64,
}

impl Now {
    /// Reads the three clocks, one after the other, within microseconds of each other.
    pub fn read() -> Now {
        Now {
            unix_ms: wall_clock_ms(),
            boot_ms: milliseconds(clock_gettime(ClockId::Boottime)),
            mono_ms: milliseconds(clock_gettime(ClockId::Monotonic)),
        }
    }
}

/// By way of the standard library, and so of the system's: what is loaded before that to move one process's wall clock (faketime) moves
/// this as it moves the dates that certificates are judged by. A wall clock set before 1970 reads as 0.
fn wall_clock_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

/// Whole milliseconds of a clock that begins at 0.
fn milliseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let milliseconds = u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000;
    seconds.saturating_mul(1_000).saturating_add(milliseconds)
}

/// The id of this boot, from `/proc/sys/kernel/random/boot_id`.
///
/// # Errors
/// When `/proc` is not mounted, or does not hold a UUID. There is no substitute: a made-up id would make
/// this machine look like a clone of another.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string(BOOT_ID_PATH).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("{BOOT_ID_PATH} cannot be read ({error}); mount /proc for this service"),
        )
    })?;
    uuid_bytes(text.trim()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{BOOT_ID_PATH} does not hold a UUID: {text:?}"))
    })
}

/// The 16 bytes of a UUID in its usual text form.
fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| *byte != b'-')
        .map(|byte| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    if digits.len() != 32 {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_go_forward() {
        let first = Now::read();
        let second = Now::read();
        assert!(second.boot_ms >= first.boot_ms);
        assert!(second.mono_ms >= first.mono_ms);
        assert!(first.boot_ms >= first.mono_ms, "time asleep is counted on top");
        assert!(first.unix_ms > 1_700_000_000_000, "in milliseconds, not seconds");
    }

    #[test]
    fn the_boot_id_stays_the_same_within_a_boot() {
        let id = boot_id().unwrap();
        assert_eq!(id, boot_id().unwrap());
        assert_ne!(id, [0; 16]);
    }

    #[test]
    fn a_uuid_is_read_digit_by_digit_and_anything_else_is_not() {
        let bytes = uuid_bytes("00112233-4455-6677-8899-aabbccddeeff").unwrap();
        assert_eq!(bytes[..3], [0x00, 0x11, 0x22]);
        assert_eq!(bytes[15], 0xff);
        for bad in
            ["", "00112233", "0011223344556677889900aabbccddeeffaa", "zz112233-4455-6677-8899-aabbccddeeff"]
        {
            assert_eq!(uuid_bytes(bad), None, "{bad:?}");
        }
    }
}
