//! update-definitions: malware signatures, brought up to date by freshclam.
//!
//! It owns nothing; where from and where to is said by freshclam's own configuration, which `agent.toml` may name. Its exit codes
//! (freshclam(1)): 0 when the signatures are up to date or were brought there, anything else a failure, of which its
//! output tells.
//!
//! Where ClamAV's own freshclam runs as a daemon, it holds the lock of its log file all day, and a second one that is to log there
//! ends at once. So ours is given a log of its own. By the time that it opens it, it is no longer root but the owner of the
//! signatures, whoever that is by its configuration, and does not get into the agent's folders: the log lies in a folder of
//! its own among the temporary ones, which nobody can list, and is removed with it. What it says there it says here as well.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

use super::output::Output;
use super::process::{Stop, program, run};
use super::{failed, outcome_of};
use crate::agent::Outcome;
use crate::config::ScanConfig;

/// Brings the signatures up to date.
pub(super) fn update(config: &ScanConfig, limit: Duration, stop: &Stop) -> Outcome {
    let log = match Log::create() {
        Ok(log) => log,
        Err(error) => {
            return failed(&format!("freshclam's log cannot be made among the temporary files: {error}"));
        }
    };
    let mut command = program("freshclam");
    command.arg("--stdout").arg(format!("--log={}", log.file.display()));
    if let Some(path) = &config.freshclam_config {
        command.arg(format!("--config-file={}", path.display()));
    }
    if let Some(folder) = &config.database {
        command.arg(format!("--datadir={}", folder.display()));
    }
    let mut said = Output::default();
    match run(command, limit, stop, &mut |bytes| said.push(bytes)) {
        Ok(end) => outcome_of(end, said, limit),
        Err(error) => failed(&format!("{error}; install ClamAV's freshclam (Debian: clamav-freshclam)")),
    }
}

/// A log that any user may write who knows its name, and its folder; gone when dropped.
struct Log {
    folder: PathBuf,
    file: PathBuf,
}

impl Log {
    fn create() -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("bgb-freshclam-{}", random_name()?));
        // Made here and now, or not at all: nobody can have put a link in the way.
        DirBuilder::new().mode(0o711).create(&folder)?;
        let log = Self { file: folder.join(random_name()?), folder };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&log.file)?;
        file.set_permissions(Permissions::from_mode(0o666))?;
        Ok(log)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // What stays is an empty folder among temporary ones.
        let _ = std::fs::remove_file(&self.file);
        let _ = std::fs::remove_dir(&self.folder);
    }
}

fn random_name() -> io::Result<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::path::Path;

    use super::*;
    use crate::agent::Ending;

    const LIMIT: Duration = Duration::from_secs(60);

    /// Serves `content` as `/bgb.hdb`, and nothing else, on loopback until the test's process ends; gives the port.
    fn mirror(content: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).unwrap() == 0 {
                        break;
                    }
                    request.push(byte[0]);
                }
                let (status, body) = match String::from_utf8_lossy(&request).split(' ').nth(1) {
                    Some("/bgb.hdb") => ("200 OK", content),
                    _ => ("404 Not Found", ""),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\
                     Last-Modified: Sat, 01 Aug 2026 00:00:00 GMT\r\n\r\n",
                    body.len()
                );
                // freshclam may hang up when the head is enough for it.
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
            }
        });
        port
    }

    /// A configuration of freshclam that takes `file` from the mirror at `port` into `folder`.
    fn config(folder: &Path, port: u16, file: &str) -> ScanConfig {
        let database = folder.join("database");
        std::fs::create_dir(&database).unwrap();
        let path = folder.join("freshclam.conf");
        let text = format!(
            "DatabaseDirectory {database}\nDatabaseOwner root\nPrivateMirror http://127.0.0.1:{port}\n\
             ExcludeDatabase main\nExcludeDatabase daily\nExcludeDatabase bytecode\n\
             DatabaseCustomURL http://127.0.0.1:{port}/{file}\nConnectTimeout 5\nMaxAttempts 1\n\
             UpdateLogFile {log}\n",
            database = database.display(),
            log = folder.join("freshclam.log").display()
        );
        std::fs::write(&path, text).unwrap();
        ScanConfig { freshclam_config: Some(path), database: Some(database), ..ScanConfig::default() }
    }

    fn updated(port: u16, file: &str) -> (Outcome, Option<String>) {
        assert!(
            Path::new("/usr/bin/freshclam").exists(),
            "freshclam is not installed; `make setup` installs what the tests need"
        );
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), port, file);
        // As ClamAV's own freshclam does while it runs as a daemon.
        let log = std::fs::File::create(folder.path().join("freshclam.log")).unwrap();
        rustix::fs::fcntl_lock(&log, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let outcome = update(&config, LIMIT, &Stop::new().unwrap());
        let taken = std::fs::read_to_string(folder.path().join("database").join(file)).ok();
        (outcome, taken)
    }

    #[test]
    fn signatures_come_from_a_mirror() {
        let content = "d41d8cd98f00b204e9800998ecf8427f:68:BGB.Test.Sample\n";
        let (outcome, taken) = updated(mirror(content), "bgb.hdb");
        let said = String::from_utf8_lossy(&outcome.output).into_owned();
        assert_eq!(taken.as_deref(), Some(content), "{said}");
        assert_eq!((outcome.ending, outcome.code), (Ending::Succeeded, 0), "{said}");
    }

    #[test]
    fn a_mirror_without_them_is_a_failure_that_says_so() {
        let (outcome, taken) = updated(mirror(""), "missing.hdb");
        let said = String::from_utf8_lossy(&outcome.output).into_owned();
        assert_eq!((outcome.ending, taken), (Ending::Failed, None), "{said}");
        assert!(said.contains("missing.hdb"), "{said}");
    }
}
