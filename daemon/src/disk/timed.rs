//! A disk whose fsyncs are timed.
//!
//! The machines that promise durability read no clock; whoever runs them for real gives them this around the real disk, and a
//! simulation does not. Only syncs of files are timed: those of folders follow them and tell nothing more.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{AppendFile, DirEntry, Disk, ReadAt};
use crate::metrics::Histogram;

/// See the module.
#[derive(Clone, Debug)]
pub struct TimedDisk<D> {
    disk: D,
    syncs: Arc<Histogram>,
}

struct TimedFile {
    file: Box<dyn AppendFile>,
    syncs: Arc<Histogram>,
}

impl<D: Disk> TimedDisk<D> {
    /// `disk`, whose fsyncs are told to `syncs`.
    #[must_use]
    pub fn new(disk: D, syncs: Arc<Histogram>) -> Self {
        Self { disk, syncs }
    }

    fn timed(&self, file: Box<dyn AppendFile>) -> Box<dyn AppendFile> {
        Box::new(TimedFile { file, syncs: Arc::clone(&self.syncs) })
    }
}

impl<D: Disk> Disk for TimedDisk<D> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.disk.read(path)
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn ReadAt>> {
        self.disk.open_read(path)
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        Ok(self.timed(self.disk.open_append(path)?))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        Ok(self.timed(self.disk.create_new(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.disk.list(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.disk.free_bytes(dir)
    }
}

impl AppendFile for TimedFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        let file = &mut self.file;
        self.syncs.time(|| file.sync())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{RealDisk, replace_durably};
    use crate::metrics::{Exposition, OF_DISKS};

    #[test]
    fn every_sync_of_a_file_is_counted_and_the_file_is_what_it_would_be() {
        let folder = tempfile::tempdir().unwrap();
        let syncs = Arc::new(Histogram::new(OF_DISKS));
        let disk = TimedDisk::new(RealDisk, Arc::clone(&syncs));
        replace_durably(&disk, &folder.path().join("a"), b"one").unwrap();
        let mut file = disk.open_append(&folder.path().join("a")).unwrap();
        file.append(b", two").unwrap();
        file.sync().unwrap();
        assert_eq!(disk.read(&folder.path().join("a")).unwrap(), b"one, two");
        let mut out = Exposition::default();
        out.histogram("syncs_seconds", "Syncs.", &[&syncs]);
        assert!(out.into_text().contains("\nsyncs_seconds_count 2\n"));
    }
}
