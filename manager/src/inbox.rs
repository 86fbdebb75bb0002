//! The inbox `bgb.box`: what waits there, and where it goes.
//!
//! ```text
//! N/NAME      a finished file of server N, taken in the order of names        .tmp-…  not finished: passed over
//! bad/        set aside: unreadable files, and rows cut out of files whose other rows counted; never overwritten, never swept
//! done/N/     taken in: the server's last two full online lists
//! done/N/HH/  taken in: its result files, for 48 h, by the hour (UTC) in which they were
//! ```
//!
//! Presence files come before others: they are few, and a backlog of results must not make the fleet look as it did an hour ago.
//!
//! It owns the names and the moves, through [`Disk`], and it moves files only; what is in them it does not know. Laws: a file leaves its
//! folder only by [`set_aside`](Inbox::set_aside), [`keep`](Inbox::keep) or [`discard`](Inbox::discard), and comes back only by
//! `retake`, each of which the caller may repeat after a crash; a file that cannot be moved is left alone for a while instead of being tried without end; a folder that grows
//! is listed by [`sweep`](Inbox::sweep) only, one at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bgb_daemon::disk::{Disk, ReadAt, ReplaceError, write_temporary};
use bgb_protocol::file::{FileKind, Header};
use bgb_protocol::ids::{ServerId, UnixMillis};

mod retake;

pub(crate) use retake::Retaken;

/// How files begin that their server has not finished.
const UNFINISHED: &str = ".tmp-";
/// Names that one scan takes from one folder; the next scan, after these, finds the rest.
const WAITING_PER_SERVER_MAX: usize = 1_000;
/// Folders of servers that one scan looks into: far more than a site has servers.
const SERVERS_MAX: usize = 1_000;
/// How long result files stay in `done`.
const DONE_KEPT_MS: u64 = 48 * 60 * 60 * 1000;
/// Full online lists of each server that stay in `done`.
const FULL_LISTS_KEPT: usize = 2;
/// An hour, by which result files are put apart in `done`: the folder of one that every server fills each second has some 10,000 names.
const HOUR_MS: u64 = 60 * 60 * 1000;
/// Files that one step of a sweep removes, so that it stays within milliseconds.
const SWEPT_MAX: usize = 100;
/// How long a file rests that could not be read or moved.
const REST_MS: u64 = 30_000;
/// Bytes of a file's own name that go into a new one; file systems take 255.
const NAME_BYTES_MAX: usize = 120;

/// A file that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// In whose folder.
    pub server: ServerId,
    /// Its name there.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
}

/// The inbox.
pub struct Inbox {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    waiting: BTreeMap<ServerId, VecDeque<Waiting>>,
    /// Files in `waiting`, and their bytes.
    backlog: (u64, u64),
    /// The server whose file was taken last: the next one's turn comes after it.
    last_turn: Option<ServerId>,
    /// Files that rest, until the monotonic time in milliseconds.
    resting: BTreeMap<PathBuf, u64>,
    /// Servers whose folder the last scan could not read.
    unreadable: BTreeSet<ServerId>,
    /// Folders of `done` that were made, or found, and are durable.
    made: BTreeSet<PathBuf>,
    sweep: Sweep,
    retake: retake::Retake,
    set_aside: u64,
}

/// A server's folder that can no longer be read.
#[derive(Debug)]
pub(crate) struct UnreadableFolder {
    pub(crate) server: ServerId,
    pub(crate) error: io::Error,
}

/// How far a sweep is; nothing of both is one that is to begin.
#[derive(Default)]
struct Sweep {
    /// Folders of `done` that are still to be looked into.
    folders: VecDeque<PathBuf>,
    /// Files that are to be removed.
    due: VecDeque<PathBuf>,
}

impl Inbox {
    /// The inbox in `root`; its folders `bad` and `done` are made if they are not there.
    ///
    /// # Errors
    /// When the folders cannot be made or read.
    pub fn open(disk: Arc<dyn Disk>, root: PathBuf) -> io::Result<Self> {
        for folder in ["bad", "done"] {
            disk.create_dir_all(&root.join(folder))?;
        }
        disk.sync_dir(&root)?;
        let set_aside = disk.list(&root.join("bad"))?.len() as u64;
        Ok(Self {
            disk,
            root,
            waiting: BTreeMap::new(),
            backlog: (0, 0),
            last_turn: None,
            resting: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            made: BTreeSet::new(),
            sweep: Sweep::default(),
            retake: retake::Retake::default(),
            set_aside,
        })
    }

    /// Looks what is there. `mono_ms` is monotonic time. A server's folder that cannot be read is in nobody else's way; those that could
    /// be read at the scan before are the result.
    ///
    /// # Errors
    /// When the inbox itself cannot be read; what was known before stays known.
    pub(crate) fn scan(&mut self, mono_ms: u64) -> io::Result<Vec<UnreadableFolder>> {
        self.resting.retain(|_, until| *until > mono_ms);
        let servers = self.disk.list(&self.root)?.into_iter().filter(|entry| entry.is_dir);
        let (mut found, mut unreadable, mut new) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        for (server, folder) in servers.filter_map(|entry| server_of(&entry.name)).take(SERVERS_MAX) {
            match self.scan_folder(server, &folder) {
                Ok(files) if files.is_empty() => {}
                Ok(files) => {
                    found.insert(server, files);
                }
                Err(error) => {
                    unreadable.insert(server);
                    if !self.unreadable.contains(&server) {
                        new.push(UnreadableFolder { server, error });
                    }
                }
            }
        }
        let files = found.values().flatten();
        self.backlog = files.fold((0, 0), |(files, bytes), file| (files + 1, bytes + file.bytes));
        (self.waiting, self.unreadable) = (found, unreadable);
        Ok(new)
    }

    fn scan_folder(&self, server: ServerId, folder: &str) -> io::Result<VecDeque<Waiting>> {
        let folder = self.root.join(folder);
        let files = self.disk.list(&folder)?.into_iter().filter(|entry| {
            !entry.is_dir
                && !entry.name.starts_with(UNFINISHED)
                && !self.resting.contains_key(&folder.join(&entry.name))
        });
        let waiting = files.map(|entry| Waiting { server, name: entry.name, bytes: entry.len });
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_by_key(|file| !file.is_presence());
        waiting.truncate(WAITING_PER_SERVER_MAX);
        Ok(waiting.into())
    }

    /// Whether presence files of a server are known to wait.
    pub(crate) fn has_presence_waiting(&self, server: ServerId) -> bool {
        // They are the first.
        self.waiting.get(&server).and_then(VecDeque::front).is_some_and(Waiting::is_presence)
    }

    /// Whether nothing is known to wait.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Files that are known to wait, and their bytes.
    #[must_use]
    pub fn backlog(&self) -> (u64, u64) {
        self.backlog
    }

    /// Files in `bad` at the last sweep, or at the start, and those since.
    #[must_use]
    pub fn set_aside_count(&self) -> u64 {
        self.set_aside
    }

    /// The next file: of the server whose turn it is, the oldest presence file, or the oldest other one.
    pub fn take_next(&mut self) -> Option<Waiting> {
        let after = self.last_turn.map_or(0, |server| server.0.saturating_add(1));
        let turn = self.waiting.range(ServerId(after)..).next().or_else(|| self.waiting.iter().next());
        let server = *turn?.0;
        let files = self.waiting.get_mut(&server)?;
        let file = files.pop_front()?;
        if files.is_empty() {
            self.waiting.remove(&server);
        }
        self.last_turn = Some(server);
        self.backlog = (self.backlog.0 - 1, self.backlog.1 - file.bytes);
        Some(file)
    }

    /// Opens a waiting file; `NotFound` when it has gone since the scan.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_file(&self, file: &Waiting) -> io::Result<Box<dyn ReadAt>> {
        self.disk.open_read(&self.path_of(file))
    }

    /// Leaves a file alone for 30 s.
    pub fn let_rest(&mut self, mono_ms: u64, file: &Waiting) {
        self.resting.insert(self.path_of(file), mono_ms.saturating_add(REST_MS));
    }

    /// Moves a file to `bad`; the result is its name there.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn set_aside(&mut self, file: &Waiting) -> io::Result<String> {
        let name = self.free_name(Path::new("bad"), &format!("{}-{}", file.server, plain(&file.name)))?;
        self.move_to(file, Path::new("bad"), &name)?;
        self.set_aside += 1;
        Ok(name)
    }

    /// Writes what was cut out of `file` to `bad`, durably; the result is its name there. What lies there already with the same bytes
    /// is left as it is, so that a crash between this and the next step leaves one copy.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_aside_part(&mut self, file: &Waiting, ending: &str, bytes: &[u8]) -> io::Result<String> {
        let bad = self.root.join("bad");
        let wanted = with_suffix(&format!("{}-{}", file.server, plain(&file.name)), ending);
        match self.disk.open_read(&bad.join(&wanted)) {
            Ok(there)
                if there.len()? == bytes.len() as u64 && self.disk.read(&bad.join(&wanted))? == bytes =>
            {
                return Ok(wanted);
            }
            _ => {}
        }
        let name = self.free_name(Path::new("bad"), &wanted)?;
        let temporary = bad.join(format!("{UNFINISHED}{name}"));
        write_temporary(&*self.disk, &temporary, bytes).map_err(ReplaceError::into_inner)?;
        self.disk.rename(&temporary, &bad.join(&name))?;
        self.disk.sync_dir(&bad)?;
        self.set_aside += 1;
        Ok(name)
    }

    /// Moves an ingested file to `done`, and removes the full lists of its server there that are older than the last two.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn keep(&mut self, now: UnixMillis, file: &Waiting, header: &Header) -> io::Result<()> {
        let of_server = Path::new("done").join(file.server.to_string());
        let is_full_list = header.kind == FileKind::PresenceFull;
        let folder =
            if is_full_list { of_server } else { of_server.join(format!("{:02}", now.0 / HOUR_MS % 24)) };
        let moved = self
            .make(&folder)
            .and_then(|()| self.move_to(file, &folder, &done_name(now, file.server, header)));
        if moved.is_err() {
            // Perhaps somebody has removed a folder: made again, it is there for the next attempt.
            self.made.clear();
        }
        moved?;
        if is_full_list { self.remove_old_lists(&self.root.join(&folder)) } else { Ok(()) }
    }

    fn remove_old_lists(&self, folder: &Path) -> io::Result<()> {
        let ending = format!(".{}", FileKind::PresenceFull.extension());
        let mut lists = self.disk.list(folder)?;
        lists.retain(|entry| entry.name.ends_with(&ending));
        for old in lists.iter().rev().skip(FULL_LISTS_KEPT) {
            self.disk.remove(&folder.join(&old.name))?;
        }
        Ok(())
    }

    /// Removes an ingested file that nobody needs again.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard(&mut self, file: &Waiting) -> io::Result<()> {
        let path = self.path_of(file);
        self.disk.remove(&path)?;
        self.disk.sync_dir(path.parent().unwrap_or(&self.root))
    }

    /// Does a step of a sweep: counts what is in `bad`, or looks into one folder of `done`, or removes a hundred result files that have
    /// been there for 48 h; whether there is more to do before the sweep is over.
    ///
    /// # Errors
    /// When a folder cannot be read or a file cannot be removed; it is passed over until the next sweep.
    pub fn sweep(&mut self, now: UnixMillis) -> io::Result<bool> {
        if self.sweep.due.is_empty() {
            match self.sweep.folders.pop_front() {
                Some(folder) => self.look_into(&folder, now)?,
                None => {
                    self.sweep.folders.push_back(self.root.join("done"));
                    // Somebody may have taken files away.
                    self.set_aside = self.disk.list(&self.root.join("bad"))?.len() as u64;
                    return Ok(true);
                }
            }
        }
        for _ in 0..SWEPT_MAX {
            let Some(path) = self.sweep.due.pop_front() else { break };
            match self.disk.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(!(self.sweep.due.is_empty() && self.sweep.folders.is_empty()))
    }

    fn look_into(&mut self, folder: &Path, now: UnixMillis) -> io::Result<()> {
        let old = |name: &str| {
            name.ends_with(FileKind::Results.extension())
                && time_in_done_name(name).is_some_and(|kept| now.since(UnixMillis(kept)) >= DONE_KEPT_MS)
        };
        for entry in self.disk.list(folder)? {
            let path = folder.join(&entry.name);
            if entry.is_dir {
                self.sweep.folders.push_back(path);
            } else if old(&entry.name) {
                self.sweep.due.push_back(path);
            }
        }
        Ok(())
    }

    fn path_of(&self, file: &Waiting) -> PathBuf {
        self.root.join(file.server.to_string()).join(&file.name)
    }

    fn make(&mut self, folder: &Path) -> io::Result<()> {
        if self.made.contains(folder) {
            return Ok(());
        }
        let path = self.root.join(folder);
        self.disk.create_dir_all(&path)?;
        // Also of a folder that is there already: whoever made it may have ended before it was durable.
        for above in path.ancestors().skip(1).take(folder.components().count()) {
            self.disk.sync_dir(above)?;
        }
        self.made.insert(folder.to_owned());
        Ok(())
    }

    fn move_to(&self, file: &Waiting, folder: &Path, name: &str) -> io::Result<()> {
        let (from, to) = (self.path_of(file), self.root.join(folder));
        self.disk.rename(&from, &to.join(name))?;
        self.disk.sync_dir(&to)?;
        self.disk.sync_dir(from.parent().unwrap_or(&self.root))
    }

    /// `wanted`, or with a number behind it the first name that is free in a folder.
    fn free_name(&self, folder: &Path, wanted: &str) -> io::Result<String> {
        let mut name = wanted.to_owned();
        for number in 2_u64.. {
            match self.disk.open_read(&self.root.join(folder).join(&name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                // Something that is no file, or not ours to read, bears the name all the same.
                Err(error) if !is_of_one_file(&error) => return Err(error),
                _ => name = with_suffix(wanted, &format!("-{number}")),
            }
        }
        Ok(name)
    }
}

impl Waiting {
    /// Whether its name is that of a presence file.
    pub(crate) fn is_presence(&self) -> bool {
        Path::new(&self.name).extension().is_some_and(|ending| ending == FileKind::PresenceFull.extension())
    }
}

/// Whether an error speaks of the file that was to be opened, and not of the disk or the process.
fn is_of_one_file(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied)
}

/// A server's folder is named by its number, written the one way that numbers are.
fn server_of(folder: &str) -> Option<(ServerId, String)> {
    let number = folder.parse::<u32>().ok()?;
    (number.to_string() == folder).then(|| (ServerId(number), folder.to_owned()))
}

/// A name without what a log line, a shell or a page could stumble over.
pub(crate) fn plain(name: &str) -> String {
    let letters = name.chars().take(NAME_BYTES_MAX);
    letters
        .map(|letter| if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '_' })
        .collect()
}

/// `name` with `suffix` before its extension.
fn with_suffix(name: &str, suffix: &str) -> String {
    let (stem, extension) = (Path::new(name).file_stem(), Path::new(name).extension());
    match (stem.and_then(|stem| stem.to_str()), extension.and_then(|extension| extension.to_str())) {
        (Some(stem), Some(extension)) => format!("{stem}{suffix}.{extension}"),
        _ => format!("{name}{suffix}"),
    }
}

/// `<when, in unix milliseconds>-<server>-<the name that its header gives it>`: sorts by age.
fn done_name(now: UnixMillis, server: ServerId, header: &Header) -> String {
    format!("{:013}-{server}-{}", now.0, header.file_name())
}

fn time_in_done_name(name: &str) -> Option<u64> {
    name.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests;
