//! Which machine this is, as the system itself tells it.
//!
//! It reads `/etc/os-release` (os-release(5)) and uname(2), and nothing else. Law: what cannot be told is empty; no machine is
//! too odd to be managed.

use std::path::Path;

use bgb_protocol::message::Platform;

/// The machine, for the hello.
pub(crate) fn platform() -> Platform {
    Platform {
        os: std::env::consts::OS.to_owned(),
        os_version: os_version(Path::new("/etc/os-release")),
        arch: std::env::consts::ARCH.to_owned(),
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
    }
}

/// Name and version of the distribution.
fn os_version(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let value = |key: &str| {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value.trim().trim_matches(['"', '\'']).to_owned())
    };
    value("PRETTY_NAME")
        .or_else(|| Some(format!("{} {}", value("NAME")?, value("VERSION_ID").unwrap_or_default())))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_name_and_an_architecture() {
        let platform = platform();
        assert_eq!(platform.os, "linux");
        assert!(!platform.arch.is_empty() && !platform.hostname.is_empty());
    }

    #[test]
    fn the_distribution_is_read_with_and_without_a_pretty_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("os-release");
        for (text, expected) in [
            (
                "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
                "Debian GNU/Linux 12 (bookworm)",
            ),
            ("NAME=Alpine\nVERSION_ID=3.20\n", "Alpine 3.20"),
            ("nonsense", ""),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(os_version(&path), expected);
        }
        assert_eq!(os_version(Path::new("/nonexistent")), "");
    }
}
