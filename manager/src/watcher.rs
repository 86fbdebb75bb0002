//! Watches the inbox's folders, so that a file is taken in when it comes and not at the next scan.
//!
//! What it says is a hint: the manager scans on a timer all the same, since events are lost when they are many and do not exist on network
//! file systems. It owns one thread and the watches. When there are none to be had, this is said once and the timer does it alone.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;
use inotify::{Inotify, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Room for the events of one read; what does not fit comes with the next.
const EVENT_BYTES: usize = 16 * 1024;
/// How often the thread looks whether it is to end.
const STOP_LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// The thread; it ends when this is dropped.
pub(crate) struct Watcher {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches `inbox` and says each change on `changed`.
    pub(crate) fn start(inbox: &Path, changed: Sender<()>) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let thread = Watch::begin(inbox, changed).and_then(|watch| {
            let stopping = Arc::clone(&stopping);
            std::thread::Builder::new().name("inbox-watcher".to_owned()).spawn(move || watch.run(&stopping))
        });
        if let Err(error) = &thread {
            tracing::warn!(%error, "the inbox cannot be watched; new files are found by the timer, up to a second later");
        }
        Self { stopping, thread: thread.ok() }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that watches the inbox ended with a panic");
        }
    }
}

struct Watch {
    inotify: Inotify,
    inbox: PathBuf,
    changed: Sender<()>,
    /// Folders that could not be watched, and of which this was said.
    unwatched: BTreeSet<OsString>,
}

impl Watch {
    fn begin(inbox: &Path, changed: Sender<()>) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mut watch = Self { inotify, inbox: inbox.to_owned(), changed, unwatched: BTreeSet::new() };
        watch.inotify.watches().add(inbox, WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::ONLYDIR)?;
        watch.add_folders()?;
        Ok(watch)
    }

    /// Watching a folder again changes nothing; one that cannot be watched is left to the timer.
    fn add_folders(&mut self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.inbox)? {
            let entry = entry?;
            let name = entry.file_name();
            if !is_server(&name) {
                continue;
            }
            let mask = WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE | WatchMask::ONLYDIR;
            if let Err(error) = self.inotify.watches().add(entry.path(), mask) {
                let folder = entry.path().display().to_string();
                if self.unwatched.insert(name) {
                    tracing::warn!(%error, folder, "cannot be watched; new files there are found by the timer");
                }
            } else {
                self.unwatched.remove(&name);
            }
        }
        Ok(())
    }

    fn run(mut self, stopping: &AtomicBool) {
        let mut buffer = vec![0; EVENT_BYTES];
        while !stopping.load(Ordering::Relaxed) {
            let waited = poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&STOP_LOOK));
            let seen = match waited {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => self.read(&mut buffer),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = seen {
                tracing::warn!(%error, "the inbox can no longer be watched; new files are found by the timer");
                return;
            }
            // Full means that a change is told already and not yet heard.
            let _ = self.changed.try_send(());
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let new_folder = self.inotify.read_events(buffer)?.any(|event| event.name.is_some_and(is_server));
        if new_folder { self.add_folders() } else { Ok(()) }
    }
}

fn is_server(name: impl AsRef<OsStr>) -> bool {
    name.as_ref().to_str().is_some_and(|name| name.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_file_is_told_also_in_a_folder_that_came_later_and_beside_one_that_cannot_be_watched() {
        let inbox = tempfile::tempdir().unwrap();
        // Bears a server's name and cannot be watched.
        std::fs::write(inbox.path().join("0"), b"no folder").unwrap();
        std::fs::create_dir(inbox.path().join("1")).unwrap();
        let (changed, hint) = crossbeam_channel::bounded(1);
        let watcher = Watcher::start(inbox.path(), changed);
        let put = |folder: &str| {
            let folder = inbox.path().join(folder);
            std::fs::write(folder.join(".tmp-a"), b"x").unwrap();
            std::fs::rename(folder.join(".tmp-a"), folder.join("a")).unwrap();
        };
        put("1");
        hint.recv_timeout(Duration::from_secs(10)).unwrap();
        std::fs::create_dir(inbox.path().join("2")).unwrap();
        hint.recv_timeout(Duration::from_secs(10)).unwrap();
        // The events of the first file may come as two hints: wait until a file of the new folder brings one of its own.
        while hint.recv_timeout(Duration::from_millis(600)).is_ok() {}
        put("2");
        hint.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(watcher);
    }
}
