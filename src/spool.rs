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

mod log;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bgb_daemon::clock::Now;
use bgb_daemon::disk::{Disk, ReplaceError, create_dir_durably};
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::file::{FileBuilder, FileKind};
use bgb_protocol::ids::{DeviceId, TaskId, UnixMillis};
use thiserror::Error;

use self::log::Log;
use crate::outgoing::Outgoing;

/// Words that a file is closed at, whatever the time: bounds the memory of the spool and of whoever reads the file.
const WORDS_MAX: usize = 50_000;

/// Bytes of results that a file is closed at: 1,024 with the largest output.
const BYTES_MAX: usize = 32 * 1024 * 1024;

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
    /// Bytes that no crash explains: the disk has lost results that may have been acknowledged. Their logs are kept, with `.bad`
    /// after their names.
    pub damaged_bytes: u64,
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
    logs: Vec<Former>,
    words: BTreeMap<(TaskId, DeviceId), Words>,
    words_bytes: usize,
    sequence: u64,
    interval_ms: u64,
    /// When the last file was closed, in milliseconds of monotonic time.
    file_closed_ms: Option<u64>,
}

/// A log that is done with as soon as its results are in a file.
struct Former {
    path: PathBuf,
    is_damaged: bool,
}

/// What a device has said of one task since the last file: a hint, and its final words. A second final word that differs is
/// rare and not ours to judge, so it travels as well.
#[derive(Debug, Default)]
struct Words {
    hint: Option<ResultRow>,
    finals: Vec<ResultRow>,
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
            file_closed_ms: None,
        };
        let mut recovered = Recovered::default();
        for path in earlier {
            let bytes = spool.disk.read(&path).map_err(read(&path))?;
            let read = log::read(&bytes);
            recovered.results += read.rows.len();
            recovered.torn_bytes += read.torn_bytes as u64;
            recovered.damaged_bytes += read.damaged_bytes as u64;
            read.rows.into_iter().for_each(|row| spool.remember(row));
            spool.logs.push(Former { path, is_damaged: read.damaged_bytes > 0 });
        }
        spool.logs.push(Former { path: spool.log.path.clone(), is_damaged: false });
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

    /// When the next file is due, in milliseconds of monotonic time ([`Now::mono_ms`]): a wall clock that is set must not hold
    /// results back. `None` while there is nothing to say. A quiet server's first words go at once.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        if self.words.is_empty() {
            return None;
        }
        if self.words.len() >= WORDS_MAX || self.words_bytes >= BYTES_MAX {
            return Some(0);
        }
        Some(self.file_closed_ms.map_or(0, |closed_ms| closed_ms + self.interval_ms))
    }

    /// Writes the words that were gathered into a file, then removes the logs behind it. Gives the rows written.
    ///
    /// # Errors
    /// [`SpoolError::Sync`] is final. After [`SpoolError::Write`] the words are still here, and the call may be made again.
    pub fn close_file(&mut self, now: Now) -> Result<u64, SpoolError> {
        self.sync()?;
        let mut builder = FileBuilder::new();
        for row in self.words.values().flat_map(Words::rows) {
            builder.push(row);
        }
        let next_log = match self.next_log.take() {
            Some(log) => log,
            None => Log::create(&*self.disk, &self.folder, self.outgoing.epoch().counter)?,
        };
        let header =
            match self.outgoing.put(FileKind::Results, self.sequence + 1, UnixMillis(now.unix_ms), builder) {
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
        self.file_closed_ms = Some(now.mono_ms);
        self.log = next_log;
        let present = Former { path: self.log.path.clone(), is_damaged: false };
        for former in std::mem::replace(&mut self.logs, vec![present]) {
            // A log that stays is read again at the next start, and its results are said twice: harmless.
            let _ = self.put_away(&former.path, former.is_damaged);
        }
        Ok(header.rows)
    }

    /// Removes a log whose results are in a file. A damaged one is kept under another name: it is all that is left of the results
    /// that were lost with it.
    fn put_away(&self, path: &Path, is_damaged: bool) -> io::Result<()> {
        match path.file_name().and_then(|name| name.to_str()).filter(|_| is_damaged) {
            Some(name) => self.disk.rename(path, &self.folder.join(log::set_aside(name))),
            None => self.disk.remove(path),
        }
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

#[cfg(test)]
mod tests;
