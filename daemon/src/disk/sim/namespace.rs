//! The names of the simulated disk: as they are seen, as they are on the platter, and what lies between.
//!
//! Each creation, rename and removal is one change in a list. `sync_dir` crosses its folder off the list of
//! folders that a change still waits for; with none left, the change is done on the platter. A crash does
//! the other ones or not, each as a whole. Law: changes to the same name reach the platter in their order.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{FileData, XorShift, failure};
use crate::disk::DirEntry;

/// What a name stands for.
#[derive(Clone)]
pub(super) enum Entry {
    File(Arc<Mutex<FileData>>),
    Dir,
}

/// A change of names.
#[derive(Clone)]
pub(super) enum Change {
    Create { path: PathBuf, entry: Entry },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
}

impl Change {
    /// The names that it changes.
    fn names(&self) -> Vec<&Path> {
        match self {
            Change::Create { path, .. } | Change::Remove { path } => vec![path],
            Change::Rename { from, to } => vec![from, to],
        }
    }

    fn apply(&self, entries: &mut BTreeMap<PathBuf, Entry>) {
        match self {
            Change::Create { path, entry } => {
                entries.insert(path.clone(), entry.clone());
            }
            Change::Rename { from, to } => {
                // What a crash has not kept cannot be renamed; then the old bearer of the name stays.
                if let Some(entry) = entries.remove(from) {
                    entries.insert(to.clone(), entry);
                }
            }
            Change::Remove { path } => {
                entries.remove(path);
            }
        }
    }
}

/// A change that is not on the platter.
struct Pending {
    change: Change,
    /// The folders that must be synced first.
    waits_for: BTreeSet<PathBuf>,
}

#[derive(Default)]
pub(super) struct Namespace {
    visible: BTreeMap<PathBuf, Entry>,
    platter: BTreeMap<PathBuf, Entry>,
    pending: Vec<Pending>,
}

impl Namespace {
    pub(super) fn entry(&self, path: &Path) -> Option<&Entry> {
        self.visible.get(path)
    }

    /// The roots, `/` and the empty path (the current folder), are always there.
    pub(super) fn is_dir(&self, path: &Path) -> bool {
        path.parent().is_none() || matches!(self.visible.get(path), Some(Entry::Dir))
    }

    pub(super) fn expect_dir(&self, path: &Path) -> io::Result<()> {
        match self.visible.get(path) {
            _ if self.is_dir(path) => Ok(()),
            Some(_) => Err(failure(io::ErrorKind::NotADirectory, path, "is no folder")),
            None => Err(failure(io::ErrorKind::NotFound, path, "there is no such folder")),
        }
    }

    pub(super) fn list(&self, dir: &Path) -> Vec<DirEntry> {
        self.visible
            .range(dir.to_owned()..)
            .map_while(|(path, entry)| Some((below(dir, path)?, entry)))
            .filter(|(name, _)| !name.is_empty() && !name.contains(&b'/'))
            .filter_map(|(name, entry)| {
                let (len, is_dir) = match entry {
                    Entry::File(file) => (file.lock().visible.len() as u64, false),
                    Entry::Dir => (0, true),
                };
                let name = std::str::from_utf8(name).ok()?.to_owned();
                Some(DirEntry { name, len, is_dir })
            })
            .collect()
    }

    /// The same names, with files of their own, all of them durable.
    pub(super) fn image(&self) -> Self {
        let entries = self.visible.iter().map(|(path, entry)| {
            let entry = match entry {
                Entry::File(file) => Entry::File(Arc::new(Mutex::new(file.lock().image()))),
                Entry::Dir => Entry::Dir,
            };
            (path.clone(), entry)
        });
        let visible: BTreeMap<_, _> = entries.collect();
        Self { platter: visible.clone(), visible, pending: Vec::new() }
    }

    pub(super) fn files(&self) -> Vec<Arc<Mutex<FileData>>> {
        self.visible
            .values()
            .filter_map(|entry| match entry {
                Entry::File(file) => Some(Arc::clone(file)),
                Entry::Dir => None,
            })
            .collect()
    }

    /// Makes a change that the caller has found possible.
    pub(super) fn change(&mut self, change: Change) {
        change.apply(&mut self.visible);
        let waits_for = change.names().into_iter().map(parent).collect();
        self.pending.push(Pending { change, waits_for });
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) {
        for pending in &mut self.pending {
            pending.waits_for.remove(dir);
        }
        // Backwards: what is done on the platter takes along what was done before to the same names.
        let mut done_names: BTreeSet<PathBuf> = BTreeSet::new();
        for pending in self.pending.iter_mut().rev() {
            let names = pending.change.names();
            if pending.waits_for.is_empty() || names.iter().any(|name| done_names.contains(*name)) {
                done_names.extend(names.into_iter().map(Path::to_owned));
                pending.waits_for.clear();
            }
        }
        let platter = &mut self.platter;
        self.pending.retain(|pending| {
            let is_done = pending.waits_for.is_empty();
            if is_done {
                pending.change.apply(platter);
            }
            !is_done
        });
    }

    /// Becomes what a crash leaves; gives the number of changes that it undid.
    pub(super) fn crash(&mut self, random: &mut XorShift) -> u64 {
        let pending = std::mem::take(&mut self.pending);
        // All or nothing are as likely as any mixture: with many changes, coins alone would rarely give them.
        let fate = random.below(4);
        let mut undone = 0;
        for Pending { change, .. } in &pending {
            let is_kept = match fate {
                0 => false,
                1 => true,
                _ => random.coin(),
            };
            if is_kept {
                change.apply(&mut self.platter);
            } else {
                undone += 1;
            }
        }
        let paths: Vec<PathBuf> = self.platter.keys().cloned().collect();
        for path in paths {
            // In order, so that a folder has been looked at before what is in it.
            let above = parent(&path);
            if above.parent().is_some() && !matches!(self.platter.get(&above), Some(Entry::Dir)) {
                self.platter.remove(&path);
            }
        }
        self.visible.clone_from(&self.platter);
        undone
    }
}

/// The path without `.` in it: by one name only is a file known here.
pub(super) fn clean(path: &Path) -> PathBuf {
    path.components().filter(|component| *component != Component::CurDir).collect()
}

/// What a path adds to that of a folder, nothing when it is the folder's own; `None` when it lies somewhere else. Names are kept in their
/// plain form, so that their bytes say it: a world lists folders all the time, and comparing components took an eighth of its time.
fn below<'a>(dir: &Path, path: &'a Path) -> Option<&'a [u8]> {
    let rest = path.as_os_str().as_encoded_bytes().strip_prefix(dir.as_os_str().as_encoded_bytes())?;
    match rest {
        // Of a root.
        _ if dir.parent().is_none() => Some(rest),
        [] => Some(rest),
        [b'/', name @ ..] => Some(name),
        _ => None,
    }
}

/// The folder of a path; of a root, itself.
pub(super) fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}
