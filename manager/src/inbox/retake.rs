//! Moves result files of `done` back into their servers' folders, so that they are taken in again: after a restore.
//!
//! Two signs tell which: that the restored database does not know the file, whatever any clock said when it was taken in; and that it was
//! taken in at a certain time or later, since a part that was set aside and came back mended bears the name of a file that is known.
//!
//! It knows where it is in one pass over `done`, a folder or a number of files a step. Laws: a file that is moved is in one of the two
//! folders whatever happens, and a step that is repeated finds nothing to do; what cannot be read or moved is counted, told, and in
//! nobody's way.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use bgb_protocol::file::{Epoch, FileKind, Header};
use bgb_protocol::ids::{ServerId, UnixMillis};

use super::{Inbox, time_in_done_name};

/// Files that one step moves: a rename takes some ten microseconds, and an order may come meanwhile.
const MOVED_PER_STEP: usize = 250;
/// Files that one step asks the database about, which takes some microseconds for each.
const ASKED_PER_STEP: usize = 2_500;

/// How far a pass is; nothing of all is one that is to begin.
#[derive(Default)]
pub(super) struct Retake {
    is_begun: bool,
    /// Folders of `done` that are still to be looked into.
    folders: VecDeque<PathBuf>,
    /// Files that were found in them.
    found: VecDeque<Found>,
    /// Files that are to be moved.
    due: VecDeque<Found>,
    outcome: Retaken,
}

/// A result file of `done`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    path: PathBuf,
    /// Whose it was.
    server: ServerId,
    /// The name that its header gives it.
    name: String,
    taken_in: UnixMillis,
}

/// What a pass has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retaken {
    /// Files that were moved.
    pub(crate) files: u64,
    /// Files and folders that could not be.
    pub(crate) failed: u64,
    /// Folders that could not be made durable: any file of them may be back where it was after a power cut.
    pub(crate) not_durable: u64,
    /// Why the first of them could not.
    pub(crate) first_failure: Option<String>,
}

impl Inbox {
    /// A step of moving back the result files that were taken in at `since` or later, and those of which `is_known` says that the database
    /// does not have them; what all came to, when nothing is left to do. To be called while no file is taken in: one that is put into
    /// `done` meanwhile may be moved back again.
    ///
    /// # Errors
    /// Those of `is_known`; nothing is lost of the pass, then.
    pub(crate) fn retake<E>(
        &mut self,
        since: UnixMillis,
        is_known: impl FnMut(ServerId, Epoch, u64) -> Result<bool, E>,
    ) -> Result<Option<Retaken>, E> {
        let mut retake = std::mem::take(&mut self.retake);
        if !std::mem::replace(&mut retake.is_begun, true) {
            retake.folders.push_back(self.root.join("done"));
        }
        if retake.found.is_empty()
            && let Some(folder) = retake.folders.pop_front()
            && let Err(error) = self.look_for(&folder, &mut retake)
        {
            retake.outcome.note(&folder, &error);
        }
        let chosen = retake.choose(since, is_known);
        self.move_back(&mut retake);
        let is_over = retake.found.is_empty() && retake.due.is_empty() && retake.folders.is_empty();
        let outcome = is_over.then(|| retake.outcome.clone());
        // Also when it is over: asked again, since the caller came to no end, it says the same.
        self.retake = retake;
        chosen.map(|()| outcome)
    }

    fn look_for(&self, folder: &Path, retake: &mut Retake) -> io::Result<()> {
        for entry in self.disk.list(folder)? {
            let path = folder.join(&entry.name);
            if entry.is_dir {
                retake.folders.push_back(path);
            } else {
                retake.found.extend(found(path, &entry.name));
            }
        }
        Ok(())
    }

    fn move_back(&self, retake: &mut Retake) {
        let mut changed = BTreeSet::new();
        while let Some(Found { path: from, server, name, .. }) = retake.due.pop_front() {
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
                retake.outcome.not_durable += 1;
                retake.outcome.note(&to, &error);
            }
        }
    }

    fn is_there(&self, path: &Path) -> bool {
        self.disk.open_read(path).is_ok()
    }
}

impl Retake {
    /// Takes from what was found what is to be moved, as much as a step moves.
    fn choose<E>(
        &mut self,
        since: UnixMillis,
        mut is_known: impl FnMut(ServerId, Epoch, u64) -> Result<bool, E>,
    ) -> Result<(), E> {
        for _ in 0..ASKED_PER_STEP {
            if self.due.len() == MOVED_PER_STEP {
                break;
            }
            let Some(file) = self.found.front() else { break };
            let is_due = file.taken_in >= since
                || match Header::parse_file_name(&file.name) {
                    Some((epoch, sequence)) => !is_known(file.server, epoch, sequence)?,
                    // Somebody has given it this name: what is in it counts once, however often it is taken in.
                    None => true,
                };
            let file = self.found.pop_front();
            self.due.extend(file.filter(|_| is_due));
        }
        Ok(())
    }
}

impl Retaken {
    fn note(&mut self, path: &Path, error: &io::Error) {
        tracing::warn!(path = %path.display(), %error, "results cannot be taken in again");
        self.failed += 1;
        self.first_failure.get_or_insert_with(|| format!("{}: {error}", path.display()));
    }
}

/// What a file of `done` is by its name there, when it is one of results.
fn found(path: PathBuf, done: &str) -> Option<Found> {
    let taken_in = UnixMillis(time_in_done_name(done)?);
    let (_, rest) = done.split_once('-')?;
    let (server, name) = rest.split_once('-')?;
    let is_results =
        Path::new(name).extension().is_some_and(|ending| ending == FileKind::Results.extension());
    let server = ServerId(server.parse().ok()?);
    is_results.then(|| Found { path, server, name: name.to_owned(), taken_in })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "0000000003-0000000000000063-0000000012.BTS";

    #[test]
    fn a_name_in_done_tells_whose_file_it_was_and_what_it_was_called() {
        let before =
            |name: &str| found(PathBuf::new(), name).map(|file| (file.server.0, file.name, file.taken_in.0));
        assert_eq!(before(&format!("0000000001000-7-{NAME}")), Some((7, NAME.to_owned(), 1_000)));
        for other in
            ["0000000001000-7-1-2-3.BOS", "0000000001000-x-1.BTS", "0000000001000-7", "notes.BTS", ""]
        {
            assert_eq!(before(other), None, "{other}");
        }
    }

    #[test]
    fn what_came_later_or_is_not_known_is_due() {
        let chosen = |name: &str, is_known: bool| {
            let mut retake = Retake::default();
            retake.found.extend(found(PathBuf::new(), name));
            let known = |server, epoch, sequence| {
                assert_eq!((server, sequence), (ServerId(7), 12));
                assert_eq!(epoch, Epoch { counter: 3, nonce: 0x63 });
                Ok::<_, ()>(is_known)
            };
            retake.choose(UnixMillis(1_000), known).unwrap();
            assert!(retake.found.is_empty());
            retake.due.len() == 1
        };
        assert!(chosen(&format!("0000000001000-7-{NAME}"), true));
        assert!(!chosen(&format!("0000000000999-7-{NAME}"), true), "taken in before, and known");
        assert!(chosen(&format!("0000000000999-7-{NAME}"), false), "whatever the clock said");
        assert!(chosen("0000000000999-7-mine.BTS", true), "nobody can tell");
    }

    #[test]
    fn a_database_that_cannot_be_asked_leaves_everything_to_the_next_step() {
        let mut retake = Retake::default();
        for second in [998, 999] {
            retake.found.extend(found(PathBuf::new(), &format!("0000000000{second}-7-{NAME}")));
        }
        let mut answers = [Ok(false), Err("locked"), Ok(true)].into_iter();
        let mut ask = |_, _, _| answers.next().unwrap();
        assert_eq!(retake.choose(UnixMillis(1_000), &mut ask), Err("locked"));
        assert_eq!((retake.found.len(), retake.due.len()), (1, 1));
        assert_eq!(retake.choose(UnixMillis(1_000), &mut ask), Ok(()));
        assert_eq!((retake.found.len(), retake.due.len()), (0, 1));
    }
}
