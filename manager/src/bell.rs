//! The doorbell `site.bell`: tells servers that the queue has new rows.
//!
//! A byte is written to it after a commit that added rows; servers watch the file (inotify). It is a hint and no more: a server that
//! misses it finds the rows by its own timer within 250 ms. So it never fails anything: a bell that cannot be rung is said once.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Servers watch it as members of its group.
const BELL_MODE: u32 = 0o640;

/// What tells servers that there is something new.
pub trait Bell: Send {
    /// Rings.
    fn ring(&mut self);
}

/// The file.
pub struct FileBell {
    path: PathBuf,
    file: File,
    state: BellState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BellState {
    Sound,
    Broken,
}

impl FileBell {
    /// Opens the file, and makes it if it is not there.
    ///
    /// # Errors
    /// When it can be neither opened nor made.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(BELL_MODE).open(path)?;
        Ok(Self { path: path.to_owned(), file, state: BellState::Sound })
    }
}

impl Bell for FileBell {
    fn ring(&mut self) {
        // Always the same byte: the file never grows, and a write tells watchers also when it changes nothing.
        match self.file.write_at(b"!", 0) {
            Ok(_) => self.state = BellState::Sound,
            Err(error) if self.state == BellState::Sound => {
                self.state = BellState::Broken;
                let path = self.path.display();
                tracing::warn!(%error, "the doorbell {path} cannot be rung; servers see new rows up to 250 ms later");
            }
            Err(_) => {}
        }
    }
}

/// No bell: for a simulation whose servers look by themselves.
pub struct NoBell;

impl Bell for NoBell {
    fn ring(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_made_and_never_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("site.bell");
        let mut bell = FileBell::open(&path).unwrap();
        bell.ring();
        bell.ring();
        assert_eq!(std::fs::read(&path).unwrap(), b"!");
        FileBell::open(&path).unwrap().ring();
        assert_eq!(std::fs::read(&path).unwrap(), b"!");
    }
}
