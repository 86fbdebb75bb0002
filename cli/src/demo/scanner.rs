//! Whether this machine can scan: ClamAV's scanner is there, with signatures, and with memory for as many scans at once
//! as there are agents.
//!
//! The demo's agents are processes of one machine, so their scans come together, which a fleet's never do. Each loads
//! the signatures for itself, unless ClamAV's daemon answers and has them loaded for all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where ClamAV's programs look for signatures on Debian, and on most other systems.
const SIGNATURES: &str = "/var/lib/clamav";

/// Endings of signature files that ClamAV loads: its own databases, and the plain lists that sites add.
const SIGNATURE_ENDINGS: [&str; 8] = ["cvd", "cld", "ndb", "ndu", "hdb", "hsb", "ldb", "yara"];

/// Bytes of memory that a loaded byte of signatures takes: ClamAV's own 110 MB take some 1.3 GB.
const MEMORY_FACTOR: u64 = 12;

/// Whether scans can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scanner {
    /// They can; what does it, for people.
    Ready(String),
    /// They cannot, and why.
    Absent(String),
}

impl Scanner {
    /// Looks at this machine.
    pub(crate) fn find(scans_at_once: u32) -> Self {
        if program("clamdscan").is_some() && daemon_answers() {
            return Self::Ready("ClamAV's daemon".to_owned());
        }
        if program("clamscan").is_none() {
            return Self::Absent("ClamAV is not installed".to_owned());
        }
        judge(signature_bytes(Path::new(SIGNATURES)), memory_available_bytes(), scans_at_once)
    }
}

/// `clamscan` is there: are there signatures, and is there memory for them?
fn judge(signature_bytes: u64, memory_bytes: Option<u64>, scans_at_once: u32) -> Scanner {
    if signature_bytes == 0 {
        return Scanner::Absent(format!(
            "ClamAV has no signatures in {SIGNATURES}; `freshclam` fetches them"
        ));
    }
    let needed = signature_bytes.saturating_mul(MEMORY_FACTOR).saturating_mul(scans_at_once.into());
    match memory_bytes {
        // Half of what is free: other programs go on needing theirs.
        Some(memory) if needed > memory / 2 => Scanner::Absent(format!(
            "{scans_at_once} scans at once would take {} MiB of memory, and {} MiB are free",
            needed >> 20,
            memory >> 20
        )),
        _ => Scanner::Ready("ClamAV".to_owned()),
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Asks the daemon for a sign of life; `clamdscan` gives up after one try.
fn daemon_answers() -> bool {
    Command::new("clamdscan")
        .args(["--ping", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn signature_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .filter(|entry| {
            let path = entry.path();
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or("");
            SIGNATURE_ENDINGS.contains(&ending)
        })
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// Memory that programs may still take, as the kernel judges it (proc(5), MemAvailable).
fn memory_available_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_and_memory_decide() {
        assert!(matches!(judge(0, Some(1 << 40), 5), Scanner::Absent(why) if why.contains("freshclam")));
        assert!(
            matches!(judge(110 << 20, Some(8 << 30), 5), Scanner::Absent(why) if why.contains("MiB are free"))
        );
        assert_eq!(judge(110 << 20, Some(64 << 30), 5), Scanner::Ready("ClamAV".to_owned()));
        assert_eq!(judge(1_000, Some(1 << 30), 200), Scanner::Ready("ClamAV".to_owned()));
    }

    #[test]
    fn only_files_that_hold_signatures_count() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(signature_bytes(&folder.path().join("absent")), 0);
        fs::write(folder.path().join("freshclam.dat"), [0; 100]).unwrap();
        assert_eq!(signature_bytes(folder.path()), 0);
        fs::write(folder.path().join("site.ndb"), [0; 7]).unwrap();
        assert_eq!(signature_bytes(folder.path()), 7);
    }

    #[test]
    fn the_kernel_tells_how_much_memory_is_free() {
        assert!(memory_available_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
