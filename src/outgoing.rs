//! Outgoing files: finished, numbered, and waiting for the courier.
//!
//! Spool, presence and status each put whole files into one folder of the server's own disk; the courier carries them from there to the
//! inbox, so that an inbox which cannot be reached stops nobody. A file is there under its name only when all of its bytes are
//! durable.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bgb_daemon::disk::{Disk, ReplaceError, create_dir_durably, replace_durably, try_replace};
use bgb_protocol::file::{Epoch, FileBuilder, FileKind, Header};
use bgb_protocol::ids::{ServerId, SiteCode, UnixMillis};

/// What is the same in every file of one life of the server.
#[derive(Clone)]
pub struct Outgoing {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    site: SiteCode,
    server: ServerId,
    epoch: Epoch,
}

impl Outgoing {
    /// Opens the folder under `spool`, and begins a new epoch: the counter on disk is raised before anything is written with it.
    /// `nonce` is random.
    ///
    /// # Errors
    /// As the disk says.
    pub fn open(
        disk: Arc<dyn Disk>,
        spool: &Path,
        site: SiteCode,
        server: ServerId,
        nonce: u64,
    ) -> io::Result<Self> {
        let folder = spool.join("outgoing");
        create_dir_durably(&*disk, &folder)?;
        let counter_file = spool.join("epoch");
        let former = match disk.read(&counter_file) {
            Ok(bytes) => counter(&bytes).ok_or_else(|| {
                let sentence = format!(
                    "{} does not hold the counter of this server's starts; write the number of its newest file's name into it",
                    counter_file.display()
                );
                io::Error::new(io::ErrorKind::InvalidData, sentence)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let epoch = Epoch { counter: former + 1, nonce };
        replace_durably(&*disk, &counter_file, epoch.counter.to_string().as_bytes())?;
        Ok(Self { disk, folder, site, server, epoch })
    }

    /// Finishes a file and makes it durable under its name.
    ///
    /// # Errors
    /// After [`ReplaceError::Write`] the file is not there, and the same call may be made again with the same sequence. After
    /// [`ReplaceError::Sync`] it may be there or not: its sequence must not be used again, and the process has to end.
    pub fn put(
        &self,
        kind: FileKind,
        sequence: u64,
        time: UnixMillis,
        rows: FileBuilder,
    ) -> Result<Header, ReplaceError> {
        let (site, server, epoch) = (self.site, self.server, self.epoch);
        let header = Header { kind, site, server, epoch, sequence, time, rows: 0, blocks: 0 };
        let (header, bytes) = rows.finish(header);
        try_replace(&*self.disk, &self.folder.join(header.file_name()), &bytes)?;
        Ok(header)
    }

    /// Where the files are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The server's present life.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The disk that they are on.
    #[must_use]
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }
}

fn counter(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bgb_daemon::disk::RealDisk;

    #[test]
    fn every_start_is_a_new_epoch() {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            Outgoing::open(Arc::new(RealDisk), folder.path(), "LAB".parse().unwrap(), ServerId(1), 5).unwrap()
        };
        assert_eq!(open().epoch().counter, 1);
        assert_eq!(open().epoch().counter, 2);
    }

    #[test]
    fn a_damaged_counter_is_said_and_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("epoch"), "seven").unwrap();
        let opened =
            Outgoing::open(Arc::new(RealDisk), folder.path(), "LAB".parse().unwrap(), ServerId(1), 5);
        assert!(opened.err().unwrap().to_string().contains("epoch"));
        assert_eq!(std::fs::read(folder.path().join("epoch")).unwrap(), b"seven");
    }
}
