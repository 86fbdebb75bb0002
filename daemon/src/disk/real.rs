//! The machine's own disk.
//!
//! It owns nothing but open files. Files are created with mode 0640 (a service's own data: its group may
//! look, others may not). Every error is given the path that it speaks of; its kind stays as it was.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::{AppendFile, DirEntry, Disk, ReadAt};

/// Files that a service writes: its user writes, its group reads, others do neither.
const FILE_MODE: u32 = 0o640;

/// How long a folder that is to be synced waits for a descriptor, and how often it asks.
const DESCRIPTOR_WAIT: Duration = Duration::from_secs(60);
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(50);

/// The [`Disk`] of the machine that this runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path).map_err(|error| at(path, "cannot be read", &error))
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn ReadAt>> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags(OFlags::NONBLOCK))
            .open(path)
            .map_err(|error| at(path, "cannot be opened", &error))?;
        expect_file(path, &file)?;
        Ok(Box::new(RealReadAt { file, path: path.to_owned() }))
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        open_for_append(path, OpenOptions::new().append(true).create(true))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        open_for_append(path, OpenOptions::new().append(true).create_new(true))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
            .map_err(|error| at(from, &format!("cannot be renamed to {}", to.display()), &error))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path).map_err(|error| at(path, "cannot be removed", &error))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        open_folder(dir)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| at(dir, "cannot be synced", &error))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir).map_err(|error| at(dir, "cannot be created", &error))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let failed = |error: io::Error| at(dir, "cannot be listed", &error);
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(openable(dir)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Renamed or removed since the folder was read: then it is not in it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            let is_dir = metadata.is_dir();
            entries.push(DirEntry { name, len: if is_dir { 0 } else { metadata.len() }, is_dir });
        }
        entries.sort_unstable_by(|left, right| left.name.cmp(&right.name));
        Ok(entries)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(openable(dir))
            .map_err(|error| at(dir, "cannot be asked for its free space", &error.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Opens a folder that is to be synced. That there is no descriptor for it at this moment says nothing about the disk: whoever is told that a
/// sync failed must end, so it is waited for.
fn open_folder(dir: &Path) -> io::Result<File> {
    let opened = File::open(openable(dir));
    if !opened.as_ref().is_err_and(is_out_of_descriptors) {
        return opened;
    }
    let folder = dir.display();
    tracing::warn!(%folder, "there is no descriptor left to sync a folder with; work waits for one: raise LimitNOFILE");
    when_there_is_a_descriptor(DESCRIPTOR_WAIT, || File::open(openable(dir)))
}

/// Opens something as soon as there is a descriptor for it; an error when there has been none for so long, or when it is another one.
fn when_there_is_a_descriptor<T>(wait: Duration, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + wait;
    loop {
        match open() {
            Err(error) if is_out_of_descriptors(&error) && Instant::now() < until => {
                std::thread::sleep(DESCRIPTOR_PAUSE);
            }
            opened => return opened,
        }
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    let none = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
    none.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// The parent of a bare file name is the empty path, by which the kernel finds nothing.
fn openable(dir: &Path) -> &Path {
    if dir.as_os_str().is_empty() { Path::new(".") } else { dir }
}

fn open_for_append(path: &Path, options: &mut OpenOptions) -> io::Result<Box<dyn AppendFile>> {
    let file = options
        .mode(FILE_MODE)
        .custom_flags(flags(OFlags::NOFOLLOW | OFlags::NONBLOCK))
        .open(path)
        .map_err(|error| at(path, "cannot be opened for writing", &error))?;
    expect_file(path, &file)?;
    Ok(Box::new(RealAppendFile { file, path: path.to_owned(), sync: SyncState::Sound }))
}

/// O_NONBLOCK means nothing to a regular file; a pipe that somebody put there must not hold up whoever looks.
fn flags(flags: OFlags) -> i32 {
    i32::try_from(flags.bits()).expect("the flags of open(2) are those of a C int")
}

fn expect_file(path: &Path, file: &File) -> io::Result<()> {
    let metadata = file.metadata().map_err(|error| at(path, "cannot be asked for its kind", &error))?;
    if metadata.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a regular file", path.display())))
}

fn at(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} {what}: {error}", path.display()))
}

/// Whether a sync of this handle has ever failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SyncState {
    Sound,
    Failed,
}

struct RealAppendFile {
    file: File,
    path: PathBuf,
    sync: SyncState,
}

impl RealAppendFile {
    fn refuse_after_failed_sync(&self) -> io::Result<()> {
        match self.sync {
            SyncState::Sound => Ok(()),
            SyncState::Failed => Err(io::Error::other(format!(
                "{} had a sync that failed; what it holds is known only after it is read anew",
                self.path.display()
            ))),
        }
    }
}

impl AppendFile for RealAppendFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.refuse_after_failed_sync()?;
        self.file.write_all(bytes).map_err(|error| at(&self.path, "cannot be written", &error))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.refuse_after_failed_sync()?;
        // fdatasync: the length goes with the data, times do not matter to anyone.
        self.file.sync_data().map_err(|error| {
            self.sync = SyncState::Failed;
            at(&self.path, "cannot be synced", &error)
        })
    }

    fn len(&self) -> io::Result<u64> {
        let metadata =
            self.file.metadata().map_err(|error| at(&self.path, "cannot be asked for its length", &error))?;
        Ok(metadata.len())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.refuse_after_failed_sync()?;
        let now = self.len()?;
        if len > now {
            return Err(longer_than_file(&self.path, len, now));
        }
        self.file.set_len(len).map_err(|error| at(&self.path, "cannot be truncated", &error))
    }
}

/// What both disks answer to a truncation that would lengthen the file.
pub(super) fn longer_than_file(path: &Path, len: u64, now: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{} has {now} bytes and cannot be cut to {len}", path.display()),
    )
}

struct RealReadAt {
    file: File,
    path: PathBuf,
}

impl ReadAt for RealReadAt {
    fn len(&self) -> io::Result<u64> {
        let metadata =
            self.file.metadata().map_err(|error| at(&self.path, "cannot be asked for its length", &error))?;
        Ok(metadata.len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // The kernel's offsets are signed; no file reaches beyond them, so that this too is its end.
        let read = match i64::try_from(offset) {
            Ok(_) => self.file.read_exact_at(buf, offset),
            Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        };
        read.map_err(|error| at(&self.path, "cannot be read", &error))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rustix::io::Errno;

    use super::*;

    /// What comes of an opening that fails so often with an error, and how often it was tried.
    fn opened_after(failures: u32, error: Errno, wait: Duration) -> (io::Result<()>, u32) {
        let tries = Cell::new(0);
        let opened = when_there_is_a_descriptor(wait, || {
            tries.set(tries.get() + 1);
            if tries.get() > failures { Ok(()) } else { Err(error.into()) }
        });
        (opened, tries.get())
    }

    #[test]
    fn a_descriptor_is_waited_for_whoever_holds_them_all() {
        for none in [Errno::MFILE, Errno::NFILE] {
            let (opened, tries) = opened_after(2, none, DESCRIPTOR_WAIT);
            assert!(opened.is_ok(), "{opened:?}");
            assert_eq!(tries, 3);
        }
    }

    #[test]
    fn it_is_not_waited_for_without_end_and_no_other_error_is_waited_out() {
        let (opened, tries) = opened_after(u32::MAX, Errno::MFILE, DESCRIPTOR_PAUSE);
        assert_eq!(opened.unwrap_err().raw_os_error(), Some(Errno::MFILE.raw_os_error()));
        assert!(tries > 1, "it was tried {tries} times");

        let (opened, tries) = opened_after(u32::MAX, Errno::NOENT, DESCRIPTOR_WAIT);
        assert_eq!((opened.unwrap_err().kind(), tries), (io::ErrorKind::NotFound, 1));
    }
}
