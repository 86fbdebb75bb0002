//! A disk in memory that forgets, at a crash, what was not synced, and that fails when it is told to.
//!
//! What it models is what POSIX promises and no more:
//! - a file's bytes are durable after its `sync`; of what came after, a crash keeps all, nothing, or a part
//!   cut at any byte, and the end of what it keeps may read as zeros (file systems lengthen before they write);
//! - a truncation is durable after a `sync`; before, a crash may bring the old end back;
//! - a name is durable after `sync_dir` of its folder; before, a crash keeps or undoes each creation,
//!   rename and removal as a whole; a rename between two folders needs both synced;
//! - a folder that is lost takes along what is in it;
//! - after a sync that failed, its bytes are dropped by the kernel but look written: they can be read until
//!   the crash, no later sync saves them, and after the crash they are zeros or gone.
//!
//! It must not use a clock, random state or a hash map: the same calls and the same seed give the same bytes.
//! A clone is the same disk. Locks are taken in one order: the disk, then a file.

mod namespace;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::real::longer_than_file;
use super::{AppendFile, DirEntry, Disk, ReadAt};
use namespace::{Change, Entry, Namespace, clean, parent};

/// What an empty simulated disk has free: more than any simulation writes.
const FREE_BYTES: u64 = 1 << 40;

/// A simulated disk. A clone is the same disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// What was injected so far, and what it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimFaults {
    /// Crashes.
    pub crashes: u64,
    /// Bytes that crashes took, of files that are still there.
    pub bytes_lost: u64,
    /// Names that crashes undid: creations, renames and removals.
    pub changes_undone: u64,
    /// Syncs that failed because of [`SimDisk::fail_next_sync`].
    pub syncs_failed: u64,
    /// Operations that failed because the disk was full.
    pub full: u64,
    /// Operations that failed because of [`SimDisk::fail_after_ops`].
    pub ops_failed: u64,
}

#[derive(Default)]
struct State {
    names: Namespace,
    /// Counts crashes: a handle of an earlier one is dead.
    epoch: u64,
    sync: NextSync,
    space: Space,
    /// Operations so far that change the disk.
    ops: u64,
    /// The operation from which on all fail.
    fails_from_op: Option<u64>,
    faults: SimFaults,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum NextSync {
    #[default]
    Succeeds,
    Fails,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Space {
    #[default]
    Free,
    Full,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// The machine loses its power and comes back: what was not synced is kept, torn or lost as the seed
    /// decides. Handles from before give errors from now on. Faults that were ordered and have not come yet
    /// are forgotten; a full disk stays full.
    pub fn crash(&self, seed: u64) {
        let mut state = self.state.lock();
        let mut random = XorShift::new(seed);
        state.faults.changes_undone += state.names.crash(&mut random);
        let mut bytes_lost = 0;
        for file in state.names.files() {
            bytes_lost += file.lock().crash(&mut random);
        }
        state.faults.bytes_lost += bytes_lost;
        state.faults.crashes += 1;
        state.forget_process();
    }

    /// The process is killed, and the machine goes on: nothing is lost, and nothing becomes durable by it. Handles and faults are as after a
    /// crash.
    pub fn kill(&self) {
        self.state.lock().forget_process();
    }

    /// The next sync, of a file or of a folder, fails; its data are dropped although they can still be read.
    pub fn fail_next_sync(&self) {
        self.state.lock().sync = NextSync::Fails;
    }

    /// While the disk is full, nothing grows or begins: an append writes half of its bytes and fails.
    pub fn set_full(&self, is_full: bool) {
        self.state.lock().space = if is_full { Space::Full } else { Space::Free };
    }

    /// After `count` more operations that change the disk (append, sync, truncate, create, rename, remove),
    /// every further one fails, until the crash: the process is as good as dead there.
    pub fn fail_after_ops(&self, count: u64) {
        let mut state = self.state.lock();
        state.fails_from_op = Some(state.ops.saturating_add(count));
    }

    /// Operations so far that changed the disk, or tried to: what [`SimDisk::fail_after_ops`] counts.
    pub fn ops(&self) -> u64 {
        self.state.lock().ops
    }

    /// Another disk with the names and bytes that this one shows, all of them durable: what somebody gets who copies it.
    pub fn image(&self) -> SimDisk {
        let names = self.state.lock().names.image();
        SimDisk { state: Arc::new(Mutex::new(State { names, ..State::default() })) }
    }

    /// What was injected so far.
    pub fn faults(&self) -> SimFaults {
        self.state.lock().faults
    }
}

impl State {
    /// Nobody holds an open file any more, and faults that have not come are forgotten.
    fn forget_process(&mut self) {
        self.epoch += 1;
        self.sync = NextSync::Succeeds;
        self.fails_from_op = None;
    }

    /// Counts an operation that changes the disk, and fails it if that was ordered.
    fn change(&mut self, path: &Path) -> io::Result<()> {
        let op = self.ops;
        self.ops += 1;
        if self.fails_from_op.is_some_and(|from| op >= from) {
            self.faults.ops_failed += 1;
            return Err(io::Error::other(format!("{}: the simulated disk is gone", path.display())));
        }
        Ok(())
    }

    fn refuse_when_full(&mut self, path: &Path) -> io::Result<()> {
        if self.space == Space::Full {
            self.faults.full += 1;
            return Err(failure(io::ErrorKind::StorageFull, path, "the simulated disk is full"));
        }
        Ok(())
    }

    fn take_sync_failure(&mut self, path: &Path) -> io::Result<()> {
        match std::mem::take(&mut self.sync) {
            NextSync::Succeeds => Ok(()),
            NextSync::Fails => {
                self.faults.syncs_failed += 1;
                Err(io::Error::other(format!("{}: the simulated sync failed", path.display())))
            }
        }
    }

    fn file(&self, path: &Path) -> io::Result<Arc<Mutex<FileData>>> {
        match self.names.entry(path) {
            Some(Entry::File(file)) => Ok(Arc::clone(file)),
            Some(Entry::Dir) => Err(failure(io::ErrorKind::IsADirectory, path, "is a folder")),
            None => Err(failure(io::ErrorKind::NotFound, path, "there is no such file")),
        }
    }

    fn create(&mut self, path: &Path) -> io::Result<Arc<Mutex<FileData>>> {
        self.change(path)?;
        self.refuse_when_full(path)?;
        self.names.expect_dir(&parent(path))?;
        let file = Arc::new(Mutex::new(FileData::default()));
        self.names.change(Change::Create { path: path.to_owned(), entry: Entry::File(Arc::clone(&file)) });
        Ok(file)
    }
}

fn failure(kind: io::ErrorKind, path: &Path, what: &str) -> io::Error {
    io::Error::new(kind, format!("{}: {what}", path.display()))
}

impl Disk for SimDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.state.lock().file(&clean(path))?;
        let bytes = file.lock().visible.clone();
        Ok(bytes)
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn ReadAt>> {
        let path = clean(path);
        let state = self.state.lock();
        let file = state.file(&path)?;
        Ok(Box::new(Handle { disk: self.clone(), epoch: state.epoch, file, path, sync: HandleState::Sound }))
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let path = clean(path);
        let mut state = self.state.lock();
        let file = match state.file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => state.create(&path)?,
            found => found?,
        };
        Ok(Box::new(Handle { disk: self.clone(), epoch: state.epoch, file, path, sync: HandleState::Sound }))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let path = clean(path);
        let mut state = self.state.lock();
        if state.names.entry(&path).is_some() {
            return Err(failure(io::ErrorKind::AlreadyExists, &path, "exists already"));
        }
        let file = state.create(&path)?;
        Ok(Box::new(Handle { disk: self.clone(), epoch: state.epoch, file, path, sync: HandleState::Sound }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (clean(from), clean(to));
        let mut state = self.state.lock();
        state.change(&from)?;
        state.file(&from)?;
        state.names.expect_dir(&parent(&to))?;
        if let Some(Entry::Dir) = state.names.entry(&to) {
            return Err(failure(io::ErrorKind::IsADirectory, &to, "is a folder"));
        }
        if from != to {
            state.names.change(Change::Rename { from, to });
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let path = clean(path);
        let mut state = self.state.lock();
        state.change(&path)?;
        state.file(&path)?;
        state.names.change(Change::Remove { path });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = clean(dir);
        let mut state = self.state.lock();
        state.change(&dir)?;
        state.names.expect_dir(&dir)?;
        state.take_sync_failure(&dir)?;
        state.names.sync_dir(&dir);
        Ok(())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let dir = clean(dir);
        let mut state = self.state.lock();
        let mut above: Vec<PathBuf> = dir.ancestors().map(Path::to_owned).collect();
        above.reverse();
        for path in above {
            if state.names.is_dir(&path) {
                continue;
            }
            if state.names.entry(&path).is_some() {
                return Err(failure(io::ErrorKind::AlreadyExists, &path, "exists and is no folder"));
            }
            state.change(&path)?;
            state.refuse_when_full(&path)?;
            state.names.change(Change::Create { path, entry: Entry::Dir });
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let dir = clean(dir);
        let state = self.state.lock();
        state.names.expect_dir(&dir)?;
        Ok(state.names.list(&dir))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let dir = clean(dir);
        let state = self.state.lock();
        state.names.expect_dir(&dir)?;
        Ok(if state.space == Space::Full { 0 } else { FREE_BYTES })
    }
}

/// Whether a sync of this handle has ever failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HandleState {
    Sound,
    SyncFailed,
}

/// An open file. It stays with its file when that is renamed or removed, and dies with a crash.
struct Handle {
    disk: SimDisk,
    epoch: u64,
    file: Arc<Mutex<FileData>>,
    path: PathBuf,
    sync: HandleState,
}

impl Handle {
    fn refuse_after_crash(&self, state: &State) -> io::Result<()> {
        if state.epoch == self.epoch {
            Ok(())
        } else {
            Err(io::Error::other(format!("{}: was opened before the crash", self.path.display())))
        }
    }

    /// What every operation that changes the file begins with.
    fn begin_change(&self, state: &mut State) -> io::Result<()> {
        self.refuse_after_crash(state)?;
        if self.sync == HandleState::SyncFailed {
            return Err(io::Error::other(format!("{}: had a sync that failed", self.path.display())));
        }
        state.change(&self.path)
    }

    fn file_len(&self) -> io::Result<u64> {
        self.refuse_after_crash(&self.disk.state.lock())?;
        Ok(self.file.lock().visible.len() as u64)
    }
}

impl AppendFile for Handle {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        self.begin_change(&mut state)?;
        let fits = state.refuse_when_full(&self.path);
        let written = if fits.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        self.file.lock().visible.extend_from_slice(written);
        fits
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        self.begin_change(&mut state)?;
        match state.take_sync_failure(&self.path) {
            Ok(()) => {
                self.file.lock().sync();
                Ok(())
            }
            Err(error) => {
                self.sync = HandleState::SyncFailed;
                self.file.lock().drop_unsynced();
                Err(error)
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        self.file_len()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        self.begin_change(&mut state)?;
        let mut file = self.file.lock();
        let now = file.visible.len();
        match usize::try_from(len) {
            Ok(len) if len <= now => {
                file.truncate(len);
                Ok(())
            }
            _ => Err(longer_than_file(&self.path, len, now as u64)),
        }
    }
}

impl ReadAt for Handle {
    fn len(&self) -> io::Result<u64> {
        self.file_len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.refuse_after_crash(&self.disk.state.lock())?;
        let file = self.file.lock();
        let range = usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(buf.len())?));
        match range.and_then(|range| file.visible.get(range)) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(failure(io::ErrorKind::UnexpectedEof, &self.path, "ends before what was to be read")),
        }
    }
}

/// A file's bytes, as they are read and as they are on the platter.
#[derive(Default)]
struct FileData {
    /// What reads show.
    visible: Vec<u8>,
    /// What is on the platter.
    platter: Vec<u8>,
    /// `visible[..clean]` will not be written again: it is on the platter, or the kernel thinks that it is.
    clean: usize,
    /// A crash keeps at least so much of what is on the platter.
    promised: usize,
}

impl FileData {
    fn image(&self) -> Self {
        let (visible, length) = (self.visible.clone(), self.visible.len());
        Self { platter: visible.clone(), visible, clean: length, promised: length }
    }

    fn sync(&mut self) {
        self.platter.truncate(self.clean);
        self.platter.extend_from_slice(&self.visible[self.clean..]);
        self.clean = self.visible.len();
        self.promised = self.visible.len();
    }

    /// What the kernel does when a write-back fails: the pages count as clean, the platter never saw them.
    fn drop_unsynced(&mut self) {
        self.platter.truncate(self.clean);
        self.platter.resize(self.visible.len(), 0);
        self.clean = self.visible.len();
        self.promised = self.promised.min(self.clean);
    }

    fn truncate(&mut self, len: usize) {
        self.visible.truncate(len);
        self.clean = self.clean.min(len);
        // Undone or not is decided by the crash; less than this is not what anybody was promised.
        self.promised = self.promised.min(len);
    }

    /// Becomes what a crash leaves; gives the bytes that are no longer there.
    fn crash(&mut self, random: &mut XorShift) -> u64 {
        let before = self.visible.len();
        let truncation_is_undone = self.clean < self.platter.len() && random.coin();
        if !truncation_is_undone {
            let unsynced = &self.visible[self.clean..];
            self.platter.truncate(self.clean);
            self.platter.extend_from_slice(unsynced);
            let tail = self.platter.len() - self.promised;
            let kept = match random.below(4) {
                0 => 0,
                1 => tail,
                _ => random.below(tail as u64 + 1) as usize,
            };
            self.platter.truncate(self.promised + kept);
            if random.below(4) == 0 {
                let zeros = random.below(kept as u64 + 1) as usize;
                let start = self.platter.len() - zeros;
                self.platter[start..].fill(0);
            }
        }
        self.visible.clone_from(&self.platter);
        self.clean = self.visible.len();
        self.promised = self.visible.len();
        before.saturating_sub(self.visible.len()) as u64
    }
}

/// Marsaglia's xorshift64* (2003, with Vigna's multiplier): all that a crash needs of chance, from its seed.
struct XorShift(u64);

impl XorShift {
    fn new(seed: u64) -> XorShift {
        // The state must not be 0; the golden ratio spreads neighbouring seeds.
        XorShift((seed ^ 0x9e37_79b9_7f4a_7c15).max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to `end` - 1; `end` is at least 1.
    fn below(&mut self, end: u64) -> u64 {
        // The high half: the low bits are the weaker ones.
        (self.next() >> 32) % end.max(1)
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}
