//! The spool: results on disk before they are acknowledged, then in files for the site.
//!
//! ```text
//! shards --Keep--> [ log: append, fsync ] --durable_up_to--> shards acknowledge
//!                          |
//!                          v  newest word of each task and device
//!                    [ *.BTS, fsync, rename ] --> courier        then the log behind it is removed
//! ```
//!
//! The law: what a shard may acknowledge is in a log or in a file, fsynced. Results that come while an fsync runs share
//! the next one; there is no timer. An fsync that fails is never tried again, since the kernel may have dropped the
//! pages and would say that all is well: the spool stops for good, nothing is acknowledged any more, and the next start
//! recovers from the log. A write that fails (a full disk) is another matter: it is cut off and tried again, and meanwhile the
//! shards stop reading. Hints (received, running) are in memory only.
//!
//! [`Spool`] is the machine, driven by time and input; its thread is in [`crate::server`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bgb_daemon::disk::{AppendFile, Disk, ReplaceError, create_dir_durably};
use bgb_protocol::codec;
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::file::{FileBuilder, FileKind, ROW_BYTES_MAX};
use bgb_protocol::ids::{DeviceId, TaskId, UnixMillis};
use thiserror::Error;

use crate::outgoing::Outgoing;

/// Words that a file is closed at, whatever the time: bounds the memory of the spool and of whoever reads the file.
const WORDS_MAX: usize = 50_000;

/// Bytes of results that a file is closed at: 1,024 with the largest output.
const BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bytes before a record in a log: its length and its checksum.
const RECORD_HEAD_BYTES: usize = 8;

/// Why the spool cannot go on.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// An fsync failed: what the disk holds is not known. Only a new start, which reads the log, can tell.
    #[error("{} could not be made durable: {error}; the server ends and recovers from its log at its next start", path.display())]
    Sync {
        /// The log or file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A write failed: nothing was lost, it can be tried again when there is room.
    #[error("{} cannot be written: {error}; results wait until there is room", path.display())]
    Write {
        /// The log or file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The logs of an earlier life cannot be read.
    #[error("{} cannot be read: {error}; see to the disk, then start the server again", path.display())]
    Read {
        /// The log.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// What recovering from an earlier life's logs came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Results that are in the next file.
    pub results: usize,
    /// Bytes behind the last whole record: torn by a crash, and never acknowledged.
    pub torn_bytes: u64,
}

/// See the module.
pub struct Spool {
    outgoing: Outgoing,
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    log: Log,
    /// The log after it, made for a file that could not be written yet.
    next_log: Option<Log>,
    /// Logs whose results are in `words` and not yet in a file; the last is the one that grows.
    logs: Vec<PathBuf>,
    words: BTreeMap<(TaskId, DeviceId), Words>,
    words_bytes: usize,
    sequence: u64,
    interval_ms: u64,
    file_closed: Option<UnixMillis>,
}

/// What a device has said of one task since the last file: a hint, and its final words. A second final word that differs is
/// rare and not ours to judge, so it travels as well.
#[derive(Debug, Default)]
struct Words {
    hint: Option<ResultRow>,
    finals: Vec<ResultRow>,
}

struct Log {
    path: PathBuf,
    file: Box<dyn AppendFile>,
    /// Bytes of whole records.
    bytes: u64,
    /// Records that are not yet fsynced.
    unsynced: bool,
}

impl Spool {
    /// Recovers what an earlier life left in `spool`, and begins a log of its own. `interval_ms` is how long a file gathers
    /// words after the one before it.
    ///
    /// # Errors
    /// [`SpoolError`] when the disk refuses.
    pub fn open(outgoing: Outgoing, spool: &Path, interval_ms: u64) -> Result<(Self, Recovered), SpoolError> {
        let disk = Arc::clone(outgoing.disk());
        let folder = spool.join("log");
        let read = |path: &Path| {
            let path = path.to_owned();
            move |error| SpoolError::Read { path, error }
        };
        create_dir_durably(&*disk, &folder).map_err(read(&folder))?;
        let earlier: Vec<_> = disk
            .list(&folder)
            .map_err(read(&folder))?
            .into_iter()
            .filter(|entry| entry.name.ends_with(".log"))
            .map(|entry| folder.join(entry.name))
            .collect();
        let log = Log::create(&*disk, &folder, outgoing.epoch().counter)?;
        let mut spool = Self {
            outgoing,
            disk,
            folder,
            log,
            next_log: None,
            logs: Vec::new(),
            words: BTreeMap::new(),
            words_bytes: 0,
            sequence: 0,
            interval_ms,
            file_closed: None,
        };
        let mut recovered = Recovered::default();
        for path in earlier {
            let bytes = spool.disk.read(&path).map_err(read(&path))?;
            let (rows, torn) = records(&bytes);
            recovered.results += rows.len();
            recovered.torn_bytes += torn as u64;
            rows.into_iter().for_each(|row| spool.remember(row));
            spool.logs.push(path);
        }
        spool.logs.push(spool.log.path.clone());
        Ok((spool, recovered))
    }

    /// Takes a final result: it is durable after the next [`sync`](Self::sync).
    ///
    /// # Errors
    /// [`SpoolError::Write`]: it was not taken; the same call may be made again later.
    pub fn keep(&mut self, row: ResultRow) -> Result<(), SpoolError> {
        self.log.append(&row)?;
        self.remember(row);
        Ok(())
    }

    /// Takes a hint: in memory only.
    pub fn hint(&mut self, row: ResultRow) {
        self.remember(row);
    }

    /// Makes everything that was kept durable; after it, and only after it, may it be acknowledged.
    ///
    /// # Errors
    /// [`SpoolError::Sync`]: the spool must not be used any more.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        self.log.sync()
    }

    /// When the next file is due; `None` while there is nothing to say. A quiet server's first words go at once.
    #[must_use]
    pub fn next_due(&self) -> Option<UnixMillis> {
        if self.words.is_empty() {
            return None;
        }
        if self.words.len() >= WORDS_MAX || self.words_bytes >= BYTES_MAX {
            return Some(UnixMillis(0));
        }
        Some(self.file_closed.map_or(UnixMillis(0), |closed| closed.plus(self.interval_ms)))
    }

    /// Writes the words that were gathered into a file, then removes the logs behind it. Gives the rows written.
    ///
    /// # Errors
    /// [`SpoolError::Sync`] is final. After [`SpoolError::Write`] the words are still here, and the call may be made again.
    pub fn close_file(&mut self, now: UnixMillis) -> Result<u64, SpoolError> {
        self.sync()?;
        let mut builder = FileBuilder::new();
        for row in self.words.values().flat_map(Words::rows) {
            builder.push(row);
        }
        let next_log = match self.next_log.take() {
            Some(log) => log,
            None => Log::create(&*self.disk, &self.folder, self.outgoing.epoch().counter)?,
        };
        let header = match self.outgoing.put(FileKind::Results, self.sequence + 1, now, builder) {
            Ok(header) => header,
            Err(error) => {
                self.next_log = Some(next_log);
                let path = self.outgoing.folder().to_owned();
                return Err(match error {
                    ReplaceError::Write(error) => SpoolError::Write { path, error },
                    ReplaceError::Sync(error) => SpoolError::Sync { path, error },
                });
            }
        };
        self.sequence += 1;
        self.words.clear();
        self.words_bytes = 0;
        self.file_closed = Some(now);
        self.log = next_log;
        let old = std::mem::replace(&mut self.logs, vec![self.log.path.clone()]);
        for path in old {
            // A log that stays is read again at the next start, and its results are said twice: harmless.
            let _ = self.disk.remove(&path);
        }
        Ok(header.rows)
    }

    fn remember(&mut self, row: ResultRow) {
        let words = self.words.entry((row.task, row.device)).or_default();
        if let DeviceWord::Final(result) = &row.word {
            let known = |former: &ResultRow| matches!(&former.word, DeviceWord::Final(held) if held.statement == result.statement);
            if !words.finals.iter().any(known) {
                self.words_bytes += result.statement.len() + result.output.len();
                words.finals.push(row);
            }
        } else if words.hint.as_ref().is_none_or(|former| former.hint() < row.hint()) {
            words.hint = Some(row);
        }
    }
}

impl Words {
    /// The newest words: finals if there are any, else the hint.
    fn rows(&self) -> impl Iterator<Item = &ResultRow> {
        self.finals.iter().chain(self.hint.iter().filter(|_| self.finals.is_empty()))
    }
}

impl Log {
    /// Begins a log under the first name of this epoch that is free. A name that is taken is passed over, whatever is in it:
    /// after the epoch's counter was set back by hand, an earlier life's results may be there.
    fn create(disk: &dyn Disk, folder: &Path, epoch: u64) -> Result<Self, SpoolError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| SpoolError::Write { path, error }
        };
        let taken = disk.list(folder).map_err(failed(folder))?;
        let taken: BTreeSet<_> = taken.into_iter().map(|entry| entry.name).collect();
        let name = (0_u64..)
            .map(|number| format!("{epoch:010}-{number:010}.log"))
            .find(|name| !taken.contains(name))
            .expect("a folder holds fewer than 2^64 names");
        let path = folder.join(name);
        let file = disk.create_new(&path).map_err(failed(&path))?;
        disk.sync_dir(folder).map_err(|error| SpoolError::Sync { path: folder.to_owned(), error })?;
        Ok(Self { path, file, bytes: 0, unsynced: false })
    }

    fn append(&mut self, row: &ResultRow) -> Result<(), SpoolError> {
        let body = codec::encode_versioned(row);
        let mut record = Vec::with_capacity(RECORD_HEAD_BYTES + body.len());
        record.extend_from_slice(&(body.len() as u32).to_be_bytes());
        record.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
        record.extend_from_slice(&body);
        if let Err(error) = self.file.append(&record) {
            // Part of it may be there: cut it off, so that what comes after can be found.
            return Err(match self.file.truncate(self.bytes) {
                Ok(()) => SpoolError::Write { path: self.path.clone(), error },
                Err(error) => SpoolError::Sync { path: self.path.clone(), error },
            });
        }
        self.bytes += record.len() as u64;
        self.unsynced = true;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SpoolError> {
        if self.unsynced {
            self.file.sync().map_err(|error| SpoolError::Sync { path: self.path.clone(), error })?;
            self.unsynced = false;
        }
        Ok(())
    }
}

/// The whole records of a log, and how many bytes follow the last of them.
fn records(mut bytes: &[u8]) -> (Vec<ResultRow>, usize) {
    let mut rows = Vec::new();
    while let Some((row, rest)) = record(bytes) {
        rows.push(row);
        bytes = rest;
    }
    (rows, bytes.len())
}

fn record(bytes: &[u8]) -> Option<(ResultRow, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<RECORD_HEAD_BYTES>()?;
    let (length, sum) = head.split_at(4);
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    let sum = u32::from_be_bytes(sum.try_into().ok()?);
    let body =
        rest.get(..length).filter(|body| body.len() <= ROW_BYTES_MAX && crc32c::crc32c(body) == sum)?;
    let row = codec::decode_versioned("result in the spool's log", body).ok()?;
    Some((row, &rest[length..]))
}

#[cfg(test)]
mod tests;
