//! Moves result files of `done` back into their servers' folders, so that they are taken in again: after a restore.
//!
//! It knows where it is in one pass over `done`, a folder or a number of files a step. Laws: a file that is moved is in one of the two
//! folders whatever happens, and a step that is repeated finds nothing to do; what cannot be read or moved is counted, told, and in
//! nobody's way.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use bgb_protocol::file::FileKind;
use bgb_protocol::ids::{ServerId, UnixMillis};

use super::{Inbox, time_in_done_name};

/// Files that one step moves: a rename takes some ten microseconds, and an order may come meanwhile.
const MOVED_PER_STEP: usize = 250;

/// How far a pass is; nothing of all is one that is to begin.
#[derive(Default)]
pub(super) struct Retake {
    is_begun: bool,
    /// Folders of `done` that are still to be looked into.
    folders: VecDeque<PathBuf>,
    /// Files that are to be moved, and into which server's folder.
    due: VecDeque<(PathBuf, ServerId, String)>,
    outcome: Retaken,
}

/// What a pass has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retaken {
    /// Files that were moved.
    pub(crate) files: u64,
    /// Files and folders that could not be.
    pub(crate) failed: u64,
    /// Why the first of them could not.
    pub(crate) first_failure: Option<String>,
}

impl Inbox {
    /// A step of moving back the result files that were taken in at `since` or later; what all came to, when nothing is left to do. To
    /// be called while no file is taken in: one that is put into `done` meanwhile may be moved back again.
    pub(crate) fn retake(&mut self, since: UnixMillis) -> Option<Retaken> {
        let mut retake = std::mem::take(&mut self.retake);
        if !std::mem::replace(&mut retake.is_begun, true) {
            retake.folders.push_back(self.root.join("done"));
        }
        if retake.due.is_empty()
            && let Some(folder) = retake.folders.pop_front()
            && let Err(error) = self.find_due(&folder, since, &mut retake)
        {
            retake.outcome.note(&folder, &error);
        }
        self.move_back(&mut retake);
        let is_over = retake.due.is_empty() && retake.folders.is_empty();
        let outcome = is_over.then(|| retake.outcome.clone());
        // Also when it is over: asked again, since the caller came to no end, it says the same.
        self.retake = retake;
        outcome
    }

    fn find_due(&self, folder: &Path, since: UnixMillis, retake: &mut Retake) -> io::Result<()> {
        for entry in self.disk.list(folder)? {
            let path = folder.join(&entry.name);
            if entry.is_dir {
                retake.folders.push_back(path);
            } else if let Some((server, name)) = name_before(&entry.name, since) {
                retake.due.push_back((path, server, name));
            }
        }
        Ok(())
    }

    fn move_back(&self, retake: &mut Retake) {
        let mut changed = BTreeSet::new();
        for _ in 0..MOVED_PER_STEP {
            let Some((from, server, name)) = retake.due.pop_front() else { break };
            let folder = Path::new(&server.to_string()).to_owned();
            let moved = self.free_name(&folder, &name).and_then(|name| {
                let folder = self.root.join(&folder);
                self.disk.rename(&from, &folder.join(name))?;
                Ok(folder)
            });
            match moved {
                Ok(folder) => {
                    retake.outcome.files += 1;
                    changed.insert((folder, from.parent().unwrap_or(&self.root).to_owned()));
                }
                // Moved already, or taken away by somebody.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.is_there(&from) => {}
                Err(error) => retake.outcome.note(&from, &error),
            }
        }
        for (to, from) in changed {
            // In this order: there may be two names after a crash, and never none.
            if let Err(error) = self.disk.sync_dir(&to).and_then(|()| self.disk.sync_dir(&from)) {
                retake.outcome.note(&to, &error);
            }
        }
    }

    fn is_there(&self, path: &Path) -> bool {
        self.disk.open_read(path).is_ok()
    }
}

impl Retaken {
    fn note(&mut self, path: &Path, error: &io::Error) {
        tracing::warn!(path = %path.display(), %error, "results cannot be taken in again");
        self.failed += 1;
        self.first_failure.get_or_insert_with(|| format!("{}: {error}", path.display()));
    }
}

/// Whose file it was, and the name that its header gives it, when it is of results and was taken in at `since` or later.
fn name_before(done: &str, since: UnixMillis) -> Option<(ServerId, String)> {
    let is_due = time_in_done_name(done).is_some_and(|taken_in| taken_in >= since.0);
    let (_, rest) = done.split_once('-')?;
    let (server, name) = rest.split_once('-')?;
    let is_results =
        Path::new(name).extension().is_some_and(|ending| ending == FileKind::Results.extension());
    (is_due && is_results).then_some((ServerId(server.parse().ok()?), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_done_tells_whose_file_it_was_and_what_it_was_called() {
        let before = |name: &str| name_before(name, UnixMillis(1_000)).map(|(server, name)| (server.0, name));
        let name = "0000000003-0000000000000063-0000000012.BTS";
        let found = Some((7, name.to_owned()));
        assert_eq!(before(&format!("0000000001000-7-{name}")), found);
        assert_eq!(before(&format!("0000000000999-7-{name}")), None, "taken in before");
        for other in
            ["0000000001000-7-1-2-3.BOS", "0000000001000-x-1.BTS", "0000000001000-7", "notes.BTS", ""]
        {
            assert_eq!(before(other), None, "{other}");
        }
    }
}
