//! The demo's folder: who uses it, and what an earlier demo left in it.
//!
//! ```text
//! DIR/demo.lock     locked (flock(2)) by the demo and by each of its processes, as their standard input
//! DIR/site/         the site
//! DIR/agents/NAME/  an agent each
//! DIR/logs/         what the processes say on standard error
//! ```
//!
//! The lock is gone when the last of them is, however they ended. Law: a folder that no demo made is never cleared.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, test_kill_process};

use crate::outcome::{Exit, Failure};
use crate::terminal::Terminal;

/// The processes of a demo that was killed are told by the kernel and stop in good order: some seconds at most.
const LEFTOVERS_DEADLINE: Duration = Duration::from_secs(20);

/// Between two looks at the lock.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A folder that is ours for as long as this lives.
pub(crate) struct DemoFolder {
    root: PathBuf,
    lock: File,
}

impl DemoFolder {
    /// Makes the folder or takes it over, and clears what an earlier demo left.
    ///
    /// # Errors
    /// [`Exit::Conflict`] when another demo runs in it, or when no demo made it.
    pub(crate) fn claim(root: &Path, terminal: &Terminal) -> Result<Self, Failure> {
        let cannot = |what: &str, error: &io::Error| {
            Failure::failed(format!("{}: {what}: {error}; name another folder with --dir", root.display()))
        };
        fs::create_dir_all(root).map_err(|error| cannot("cannot be made", &error))?;
        // Absolute: it stands in configuration files, and in commands that are typed elsewhere.
        let root = root.canonicalize().map_err(|error| cannot("cannot be found", &error))?;
        let lock_path = root.join("demo.lock");
        let entries = fs::read_dir(&root).map_err(|error| cannot("cannot be read", &error))?;
        let empty = entries.count() == 0;
        if !empty && !lock_path.exists() {
            return Err(Failure::new(
                Exit::Conflict,
                format!(
                    "{} is not empty, and no demo made it; it is left alone. Name another folder with --dir",
                    root.display()
                ),
            ));
        }
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| cannot("its demo.lock cannot be opened", &error))?;
        let mut folder = Self { root, lock };
        folder.lock(terminal)?;
        folder.sign().map_err(|error| cannot("its demo.lock cannot be written", &error))?;
        if !empty {
            terminal
                .remark(format_args!("{} is of an earlier demo; it is made anew.", folder.root.display()));
            folder.clear().map_err(|error| cannot("cannot be cleared", &error))?;
        }
        for part in [folder.agents(), folder.logs()] {
            fs::create_dir(&part).map_err(|error| cannot("cannot be written", &error))?;
        }
        Ok(folder)
    }

    /// The folder itself, as an absolute path.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The site's folder.
    pub(crate) fn site(&self) -> PathBuf {
        self.root.join("site")
    }

    /// The folder of the agents' folders.
    pub(crate) fn agents(&self) -> PathBuf {
        self.root.join("agents")
    }

    /// What the processes say on standard error.
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The lock, as the standard input of a process that is to hold it.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub(crate) fn lock_for_process(&self) -> io::Result<Stdio> {
        self.lock.try_clone().map(Stdio::from)
    }

    /// Takes the lock, and waits for it where only the leftovers of a demo that was killed have it.
    fn lock(&mut self, terminal: &Terminal) -> Result<(), Failure> {
        let deadline = Instant::now() + LEFTOVERS_DEADLINE;
        let mut told = false;
        loop {
            match self.lock.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(error)) => {
                    return Err(Failure::failed(format!(
                        "{}: cannot be locked: {error}",
                        self.root.display()
                    )));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            let owner = self.owner();
            if let Some(owner) = owner.filter(|owner| test_kill_process(*owner).is_ok()) {
                return Err(Failure::new(
                    Exit::Conflict,
                    format!(
                        "a demo runs in {} already (process {}); stop it with Ctrl-C where it runs, or name another \
                         folder with --dir",
                        self.root.display(),
                        owner.as_raw_nonzero()
                    ),
                ));
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(
                    Exit::Conflict,
                    format!(
                        "processes of a demo that was killed still run in {} and do not end; `fuser -v {}` names them; \
                         end them, or name another folder with --dir",
                        self.root.display(),
                        self.root.join("demo.lock").display()
                    ),
                ));
            }
            if !told {
                terminal
                    .remark("The processes of a demo that was killed are still ending; waiting for them.");
                told = true;
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// The demo that last signed the lock file.
    fn owner(&mut self) -> Option<Pid> {
        let mut text = String::new();
        self.lock.rewind().ok()?;
        // A process id has ten digits at most.
        (&self.lock).take(16).read_to_string(&mut text).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    fn sign(&mut self) -> io::Result<()> {
        self.lock.set_len(0)?;
        self.lock.rewind()?;
        writeln!(self.lock, "{}", std::process::id())
    }

    fn clear(&self) -> io::Result<()> {
        for part in [self.site(), self.agents(), self.logs()] {
            match fs::remove_dir_all(&part) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(root: &Path) -> Result<DemoFolder, Failure> {
        DemoFolder::claim(root, &Terminal::plain())
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.odt"), "years of work").unwrap();
        let failure = claim(folder.path()).err().unwrap();
        assert_eq!(failure.exit(), Exit::Conflict);
        assert!(folder.path().join("thesis.odt").exists() && !folder.path().join("demo.lock").exists());
    }

    #[test]
    fn what_an_earlier_demo_left_is_cleared_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("demo");
        drop(claim(&root).unwrap());
        fs::create_dir(root.join("site")).unwrap();
        fs::write(root.join("site/site.db"), "old").unwrap();
        fs::write(root.join("notes.txt"), "mine").unwrap();
        let again = claim(&root).unwrap();
        assert!(!again.site().exists() && again.agents().exists() && root.join("notes.txt").exists());
    }

    #[test]
    fn a_second_demo_in_the_folder_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = claim(folder.path()).unwrap();
        let failure = claim(folder.path()).err().unwrap();
        assert_eq!(failure.exit(), Exit::Conflict);
        assert!(failure.to_string().contains(&format!("process {}", std::process::id())), "{failure}");
        drop(first);
        assert!(claim(folder.path()).is_ok());
    }

    #[test]
    fn leftovers_of_a_killed_demo_are_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = claim(folder.path()).unwrap();
        // A process that has ended and was waited for: its id is nobody's.
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        first.lock.set_len(0).unwrap();
        first.lock.rewind().unwrap();
        write!(first.lock, "{}", gone.id()).unwrap();
        let mut leftover = std::process::Command::new("sleep")
            .arg("1")
            .stdin(first.lock_for_process().unwrap())
            .spawn()
            .unwrap();
        drop(first);
        assert!(claim(folder.path()).is_ok());
        // It let go of the lock because it ended; that it can be waited for comes a moment later.
        let deadline = Instant::now() + Duration::from_millis(400);
        while leftover.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the leftover still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
