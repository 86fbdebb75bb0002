//! The inbox `bgb.box`: what waits there, and where it goes.
//!
//! ```text
//! N/NAME      a finished file of server N, taken in the order of names        .tmp-…  not finished: passed over
//! bad/        set aside: unreadable files, and rows cut out of files whose other rows counted; never overwritten, never swept
//! done/       taken in: result files for 48 h, and each server's last two full online lists
//! ```
//!
//! It owns the names and the moves, through [`Disk`], and it moves files only; what is in them it does not know. Law: a file leaves its
//! folder only by [`set_aside`](Inbox::set_aside), [`keep`](Inbox::keep) or [`discard`](Inbox::discard), each of which the caller may
//! repeat after a crash; a file that cannot be moved is left alone for a while instead of being tried without end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bgb_daemon::disk::{Disk, ReadAt};
use bgb_protocol::file::{FileKind, Header};
use bgb_protocol::ids::{ServerId, UnixMillis};

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
/// Files that one sweep removes, so that it stays within milliseconds.
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
    set_aside: u64,
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
            set_aside,
        })
    }

    /// Looks what is there. `mono_ms` is monotonic time.
    ///
    /// # Errors
    /// When a folder cannot be read; what was known before stays known.
    pub fn scan(&mut self, mono_ms: u64) -> io::Result<()> {
        self.resting.retain(|_, until| *until > mono_ms);
        let mut found = BTreeMap::new();
        let servers = self.disk.list(&self.root)?.into_iter().filter(|entry| entry.is_dir);
        for (server, folder) in servers.filter_map(|entry| server_of(&entry.name)).take(SERVERS_MAX) {
            let files = self.scan_folder(server, &folder)?;
            if !files.is_empty() {
                found.insert(server, files);
            }
        }
        let files = found.values().flatten();
        self.backlog = files.fold((0, 0), |(files, bytes), file| (files + 1, bytes + file.bytes));
        self.waiting = found;
        self.set_aside = self.disk.list(&self.root.join("bad"))?.len() as u64;
        Ok(())
    }

    fn scan_folder(&self, server: ServerId, folder: &str) -> io::Result<VecDeque<Waiting>> {
        let folder = self.root.join(folder);
        let files = self.disk.list(&folder)?.into_iter().filter(|entry| {
            !entry.is_dir
                && !entry.name.starts_with(UNFINISHED)
                && !self.resting.contains_key(&folder.join(&entry.name))
        });
        let waiting = files.map(|entry| Waiting { server, name: entry.name, bytes: entry.len });
        Ok(waiting.take(WAITING_PER_SERVER_MAX).collect())
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

    /// Files in `bad` at the last scan, and since.
    #[must_use]
    pub fn set_aside_count(&self) -> u64 {
        self.set_aside
    }

    /// The next file: the oldest of the server whose turn it is.
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
        let name = self.free_name(&format!("{}-{}", file.server, plain(&file.name)))?;
        self.move_to(file, "bad", &name)?;
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
        let name = self.free_name(&wanted)?;
        let temporary = bad.join(format!("{UNFINISHED}{name}"));
        match self.disk.remove(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut out = self.disk.create_new(&temporary)?;
        out.append(bytes)?;
        out.sync()?;
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
        self.move_to(file, "done", &done_name(now, file.server, header))?;
        if header.kind == FileKind::PresenceFull {
            let done = self.root.join("done");
            let ending = format!(".{}", FileKind::PresenceFull.extension());
            let lists: Vec<_> = self
                .disk
                .list(&done)?
                .into_iter()
                .filter(|entry| {
                    entry.name.ends_with(&ending)
                        && server_in_done_name(&entry.name) == Some(file.server.0.into())
                })
                .collect();
            for old in lists.iter().rev().skip(FULL_LISTS_KEPT) {
                self.disk.remove(&done.join(&old.name))?;
            }
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

    /// Removes result files from `done` that have been there for 48 h, a hundred at a time; whether more are due.
    ///
    /// # Errors
    /// When the folder cannot be read or a file cannot be removed.
    pub fn sweep(&mut self, now: UnixMillis) -> io::Result<bool> {
        let done = self.root.join("done");
        let old = |name: &str| {
            name.ends_with(FileKind::Results.extension())
                && time_in_done_name(name).is_some_and(|kept| now.since(UnixMillis(kept)) >= DONE_KEPT_MS)
        };
        let mut left = SWEPT_MAX;
        for entry in self.disk.list(&done)?.iter().filter(|entry| old(&entry.name)) {
            if left == 0 {
                return Ok(true);
            }
            self.disk.remove(&done.join(&entry.name))?;
            left -= 1;
        }
        Ok(false)
    }

    fn path_of(&self, file: &Waiting) -> PathBuf {
        self.root.join(file.server.to_string()).join(&file.name)
    }

    fn move_to(&self, file: &Waiting, folder: &str, name: &str) -> io::Result<()> {
        let (from, to) = (self.path_of(file), self.root.join(folder));
        self.disk.rename(&from, &to.join(name))?;
        self.disk.sync_dir(&to)?;
        self.disk.sync_dir(from.parent().unwrap_or(&self.root))
    }

    /// `wanted`, or with a number behind it the first name that is free in `bad`.
    fn free_name(&self, wanted: &str) -> io::Result<String> {
        let taken: BTreeSet<String> =
            self.disk.list(&self.root.join("bad"))?.into_iter().map(|entry| entry.name).collect();
        let mut names = std::iter::once(wanted.to_owned())
            .chain((2_u64..).map(|number| with_suffix(wanted, &format!("-{number}"))));
        Ok(names.find(|name| !taken.contains(name)).expect("numbers do not run out before files do"))
    }
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

fn server_in_done_name(name: &str) -> Option<u64> {
    name.split('-').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests;
