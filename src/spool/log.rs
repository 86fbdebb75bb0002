//! One log of the spool: records that are appended, fsynced, and read again by the next life.
//!
//! A record is its body's length and crc32c, four bytes each, and the body. A crash may tear the end: a record that is cut, or whose
//! end reads as zeros. Nothing of that was acknowledged. Whatever else does not read as a record is damage, behind which there
//! may be results that were acknowledged, so reading goes on at the next record that is whole.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bgb_daemon::disk::{AppendFile, Disk};
use bgb_protocol::codec;
use bgb_protocol::file::ROW_BYTES_MAX;
use bgb_protocol::file::results::ResultRow;

use super::SpoolError;

/// Bytes before a record: its length and its checksum.
const RECORD_HEAD_BYTES: usize = 8;

pub(super) struct Log {
    pub(super) path: PathBuf,
    file: Box<dyn AppendFile>,
    /// Bytes of whole records.
    bytes: u64,
    /// Records that are not yet fsynced.
    unsynced: bool,
}

/// What a log of an earlier life holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) rows: Vec<ResultRow>,
    /// Bytes at the end that a crash has torn.
    pub(super) torn_bytes: usize,
    /// Bytes that no crash explains.
    pub(super) damaged_bytes: usize,
}

impl Log {
    /// Begins a log under the first name of this epoch that is free. A name that is taken is passed over, whatever is in it:
    /// after the epoch's counter was set back by hand, an earlier life's results may be there.
    pub(super) fn create(disk: &dyn Disk, folder: &Path, epoch: u64) -> Result<Self, SpoolError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| SpoolError::Write { path, error }
        };
        let taken = disk.list(folder).map_err(failed(folder))?;
        let taken: BTreeSet<_> = taken.into_iter().map(|entry| entry.name).collect();
        let name = (0_u64..)
            .map(|number| format!("{epoch:010}-{number:010}.log"))
            .find(|name| !taken.contains(name) && !taken.contains(&set_aside(name)))
            .expect("a folder holds fewer than 2^64 names");
        let path = folder.join(name);
        let file = disk.create_new(&path).map_err(failed(&path))?;
        disk.sync_dir(folder).map_err(|error| SpoolError::Sync { path: folder.to_owned(), error })?;
        Ok(Self { path, file, bytes: 0, unsynced: false })
    }

    pub(super) fn append(&mut self, row: &ResultRow) -> Result<(), SpoolError> {
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

    pub(super) fn sync(&mut self) -> Result<(), SpoolError> {
        if self.unsynced {
            self.file.sync().map_err(|error| SpoolError::Sync { path: self.path.clone(), error })?;
            self.unsynced = false;
        }
        Ok(())
    }
}

/// The name of a damaged log whose results were saved from it: it is kept for whoever wants to know what became of the others.
pub(super) fn set_aside(name: &str) -> String {
    format!("{name}.bad")
}

/// Takes a log apart.
pub(super) fn read(mut bytes: &[u8]) -> Read {
    let mut read = Read::default();
    while !bytes.is_empty() {
        if let Some((row, rest)) = record(bytes) {
            read.rows.push(row);
            bytes = rest;
            continue;
        }
        match (1..bytes.len()).find(|at| record(&bytes[*at..]).is_some()) {
            Some(at) => {
                read.damaged_bytes += at;
                bytes = &bytes[at..];
            }
            None => {
                let end = if is_torn(bytes) { &mut read.torn_bytes } else { &mut read.damaged_bytes };
                *end += bytes.len();
                break;
            }
        }
    }
    read
}

/// Whether an end without a whole record is what a crash leaves: one record that is cut, or zeros where it was to be written.
fn is_torn(end: &[u8]) -> bool {
    let zeros = end.iter().rev().take_while(|byte| **byte == 0).count();
    let is_cut = end
        .first_chunk::<4>()
        .is_none_or(|length| RECORD_HEAD_BYTES + u32::from_be_bytes(*length) as usize > end.len());
    end.len() - zeros <= RECORD_HEAD_BYTES + ROW_BYTES_MAX && (zeros > 0 || is_cut)
}

fn record(bytes: &[u8]) -> Option<(ResultRow, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<RECORD_HEAD_BYTES>()?;
    let (length, sum) = head.split_at(4);
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    let sum = u32::from_be_bytes(sum.try_into().ok()?);
    // The length first: while a damaged log is searched, a checksum over each wild length would take minutes.
    let body =
        Some(length).filter(|length| *length <= ROW_BYTES_MAX).and_then(|length| rest.get(..length))?;
    if crc32c::crc32c(body) != sum {
        return None;
    }
    let row = codec::decode_versioned("result in the spool's log", body).ok()?;
    Some((row, &rest[length..]))
}
