//! Tells whoever started this daemon how far it is.
//!
//! Two listeners are served alike: systemd through NOTIFY_SOCKET (sd_notify(3)), and a parent process, such
//! as a test or the demo, which reads one line of JSON on standard output: `{"ready":"bgb-server",…}`.
//! Law: nobody listening is never an error.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;

use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};

/// The line by which a daemon says that it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The program, for example `bgb-server`.
    pub ready: String,
    /// Its process id.
    pub pid: u32,
    /// What it listens on, by name, with the ports that it really has.
    pub listen: BTreeMap<String, SocketAddr>,
}

impl Ready {
    /// Of this process, with its id.
    pub fn of_this_process(program: &str, listen: BTreeMap<String, SocketAddr>) -> Ready {
        Ready { ready: program.to_owned(), pid: std::process::id(), listen }
    }
}

/// Says that the daemon is ready. Called once, when every listener is open.
pub fn tell(ready: &Ready) {
    match serde_json::to_string(ready) {
        Ok(line) => {
            let mut stdout = std::io::stdout().lock();
            // A closed standard output means that nobody wants to know.
            let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        }
        Err(error) => tracing::warn!(%error, "the line that says this daemon is ready cannot be written"),
    }
    notify(&[NotifyState::Ready]);
}

/// Says that the daemon has begun to stop.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Says that the daemon has begun to read its configuration anew. Followed by [`reloaded`].
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd cannot be told about the reload"),
    }
}

/// Says that a reload is over, whatever came of it.
pub fn reloaded() {
    notify(&[NotifyState::Ready]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told about this daemon; see NOTIFY_SOCKET");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::{Command, Stdio};

    use super::*;

    /// Set in the process that the test below starts.
    const CHILD: &str = "BGB_TEST_READY_CHILD";

    /// The environment is a process's, so that the test has one of its own: this one, started by the next.
    #[test]
    fn child_that_says_how_far_it_is() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        println!();
        let listen = BTreeMap::from([("tcp".to_owned(), SocketAddr::from(([127, 0, 0, 1], 10_123)))]);
        tell(&Ready::of_this_process("bgb-server", listen));
        reloading();
        reloaded();
        stopping();
    }

    fn child(stdout: Stdio, socket: Option<&std::path::Path>) -> std::process::Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "ready::tests::child_that_says_how_far_it_is", "--nocapture"])
            .env(CHILD, "1")
            .env_remove("NOTIFY_SOCKET")
            .stdout(stdout);
        if let Some(socket) = socket {
            command.env("NOTIFY_SOCKET", socket);
        }
        command.spawn().unwrap()
    }

    #[test]
    fn the_parent_reads_one_line_of_json_and_systemd_gets_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let child = child(Stdio::piped(), Some(&path));
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());

        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find(|line| line.starts_with('{')).unwrap();
        assert_eq!(
            line,
            format!(r#"{{"ready":"bgb-server","pid":{pid},"listen":{{"tcp":"127.0.0.1:10123"}}}}"#)
        );
        let ready: Ready = serde_json::from_str(line).unwrap();
        assert_eq!(ready.listen["tcp"].port(), 10_123);

        let mut told = Vec::new();
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 256];
        while let Ok(count) = socket.recv(&mut buffer) {
            told.push(String::from_utf8_lossy(&buffer[..count]).lines().next().unwrap().to_owned());
        }
        assert_eq!(told, ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]);
    }

    #[test]
    fn a_notify_socket_that_is_gone_is_no_error() {
        let output = child(Stdio::piped(), Some(std::path::Path::new("/nonexistent/notify")))
            .wait_with_output()
            .unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("{\"ready\":"));
    }
}
