//! The doorbell as the broker hears it.
//!
//! The manager writes a byte to a small file after each commit that added rows (bgb_manager::bell); inotify tells of it. A bell is a hint
//! and no more: what is missed is found by the broker's own looks.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use inotify::{Inotify, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How soon a bell that cannot be watched is tried again: a manager that makes it anew does so within a moment.
const WATCH_AGAIN: Duration = Duration::from_secs(5);

/// The doorbell's file, watched. Where it cannot be watched, the timer alone serves, and watching is tried again.
///
/// A watch is on a file, not on its name: when the site is restored, or the manager writes the bell anew, the old file never rings again.
/// So the file behind the name is compared at every look, which costs a microsecond and needs none of inotify's events about it.
pub struct Bell {
    path: PathBuf,
    watch: Option<Watch>,
    /// When it was last tried in vain.
    tried: Option<Instant>,
}

struct Watch {
    inotify: Inotify,
    file: FileIdentity,
}

/// Device and inode.
type FileIdentity = (u64, u64);

impl Bell {
    /// Watches the file at `path`, which need not be there yet.
    #[must_use]
    pub fn watch(path: &Path) -> Self {
        let mut bell = Self { path: path.to_owned(), watch: None, tried: None };
        bell.tend(Instant::now());
        bell
    }

    /// Sees to it that the file behind the name is the one that is watched.
    fn tend(&mut self, now: Instant) {
        let is_due = match &self.watch {
            Some(watch) => identity(&self.path).ok() != Some(watch.file),
            None => self.tried.is_none_or(|tried| now.saturating_duration_since(tried) >= WATCH_AGAIN),
        };
        if !is_due {
            return;
        }
        match watch(&self.path) {
            Ok(watch) => {
                if self.watch.is_some() || self.tried.is_some() {
                    tracing::info!(bell = %self.path.display(), "the manager's bell is another file and is watched anew");
                }
                (self.watch, self.tried) = (Some(watch), None);
            }
            Err(error) => {
                if self.tried.is_none() {
                    tracing::warn!(
                        bell = %self.path.display(),
                        %error,
                        "the manager's bell cannot be watched; rows of the queue come up to 250 ms later until it can"
                    );
                }
                (self.watch, self.tried) = (None, Some(now));
            }
        }
    }

    /// Waits for a ring, `most` at the longest, less than a second. Whether it rang.
    pub fn wait(&mut self, most: Duration) -> bool {
        self.tend(Instant::now());
        let Some(Watch { inotify, .. }) = &mut self.watch else {
            std::thread::sleep(most);
            return false;
        };
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(most.subsec_nanos()) };
        let ready = {
            let mut fds = [PollFd::from_borrowed_fd(inotify.as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&timeout)).unwrap_or(0) > 0
        };
        if ready {
            let mut buffer = [0; 4096];
            while let Ok(events) = inotify.read_events(&mut buffer) {
                if events.count() == 0 {
                    break;
                }
            }
        }
        ready
    }
}

fn watch(path: &Path) -> io::Result<Watch> {
    // Before the watch: a file that is replaced in between is then another one at the next look.
    let file = identity(path)?;
    let inotify = Inotify::init()?;
    inotify.watches().add(path, WatchMask::MODIFY | WatchMask::CLOSE_WRITE)?;
    Ok(Watch { inotify, file })
}

fn identity(path: &Path) -> io::Result<FileIdentity> {
    std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(250);

    #[test]
    fn a_bell_that_was_replaced_rings_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("site.bell"), folder.path().join("new"));
        std::fs::write(&path, "1").unwrap();
        let mut bell = Bell::watch(&path);
        std::fs::write(&path, "2").unwrap();
        assert!(bell.wait(LOOK));
        std::fs::write(&new, "3").unwrap();
        std::fs::rename(&new, &path).unwrap();
        bell.wait(Duration::from_millis(1));
        std::fs::write(&path, "4").unwrap();
        assert!(bell.wait(LOOK), "the new file is watched");
    }

    #[test]
    fn a_bell_that_was_not_there_is_found_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("site.bell");
        let mut bell = Bell::watch(&path);
        std::fs::write(&path, "1").unwrap();
        let tried = bell.tried.unwrap();
        bell.tend(tried + WATCH_AGAIN / 2);
        assert!(bell.watch.is_none(), "it is not looked for all the time");
        bell.tend(tried + WATCH_AGAIN);
        std::fs::write(&path, "2").unwrap();
        assert!(bell.wait(LOOK));
    }
}
