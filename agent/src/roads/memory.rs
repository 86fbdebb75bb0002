//! What an agent remembers of roads over a restart: a small file in its state folder.
//!
//! Losing it costs one climb, so a file that is damaged, or written by another release, is said and begun anew; and one that cannot be written
//! is no reason to stop. It is replaced as a whole, like the other files of the folder.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bgb_daemon::disk::Disk;
use bgb_protocol::codec;
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::message::RoadReason;
use crc32c::crc32c;
use serde::{Deserialize, Serialize};

use super::idle::Idle;
use super::rung::Rung;
use crate::durable;

/// Longest file: an issuer's name and a line for each rung.
const FILE_BYTES_MAX: u64 = 4 * 1024;

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// On what a server welcomed us last.
    pub(crate) worked: Option<Rung>,
    /// Since when, by the agent's own time.
    pub(crate) worked_at: UnixMillis,
    /// Until when there was a session over TCP, by the agent's own time.
    pub(crate) tcp_at: Option<UnixMillis>,
    /// Why the last attempt at TCP came to nothing, where it did and that is known.
    pub(crate) tcp_reason: Option<RoadReason>,
    /// How long roads bear silence.
    pub(crate) idle: BTreeMap<Rung, Idle>,
}

/// The file, and what is in it.
pub(crate) struct MemoryFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    kept: Memory,
}

impl MemoryFile {
    /// Reads it from the folder `state`.
    pub(crate) fn open(disk: Arc<dyn Disk>, state: &Path) -> Self {
        let path = state.join("roads");
        let kept = match read(&*disk, &path) {
            Ok(Some(memory)) => memory,
            Ok(None) => {
                tracing::warn!(path = %path.display(), "what was known of roads is damaged; it is learned anew");
                Memory::default()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Memory::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what was known of roads cannot be read; it is learned anew");
                Memory::default()
            }
        };
        Self { disk, path, kept }
    }

    /// What it holds.
    pub(crate) fn kept(&self) -> &Memory {
        &self.kept
    }

    /// Keeps `memory`, if it is another than before.
    pub(crate) fn keep(&mut self, memory: &Memory) {
        if *memory == self.kept {
            return;
        }
        if let Err(error) = durable::replace(&*self.disk, &self.path, &encode(memory)) {
            tracing::warn!(path = %self.path.display(), %error, "what was learned of roads cannot be written down");
        }
        // Once said is enough: it is tried again with the next change.
        self.kept = memory.clone();
    }
}

/// `None` when it is damaged.
fn read(disk: &dyn Disk, path: &Path) -> io::Result<Option<Memory>> {
    if disk.open_read(path)?.len()? > FILE_BYTES_MAX {
        return Ok(None);
    }
    Ok(decode(&disk.read(path)?))
}

fn encode(memory: &Memory) -> Vec<u8> {
    let mut bytes = codec::encode_versioned(memory);
    bytes.extend_from_slice(&crc32c(&bytes).to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Memory> {
    let (body, checksum) = bytes.split_last_chunk::<4>()?;
    (crc32c(body) == u32::from_be_bytes(*checksum)).then_some(())?;
    codec::decode_versioned("roads file", body).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bgb_daemon::disk::RealDisk;

    use super::*;

    #[test]
    fn what_is_kept_is_there_after_a_restart_and_a_damaged_file_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let open = || MemoryFile::open(Arc::new(RealDisk), folder.path());
        assert_eq!(open().kept(), &Memory::default());
        let mut memory = Memory {
            worked: Some(Rung::ALL[4]),
            worked_at: UnixMillis(u64::MAX),
            tcp_at: Some(UnixMillis(7)),
            tcp_reason: Some(RoadReason::Intercepted("x".repeat(256))),
            ..Memory::default()
        };
        for rung in Rung::ALL {
            memory.idle.entry(rung).or_default().note_cut(Duration::from_secs(60), UnixMillis(u64::MAX));
        }
        open().keep(&memory);
        assert_eq!(open().kept(), &memory);
        let path = folder.path().join("roads");
        let mut bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() as u64 <= FILE_BYTES_MAX);
        bytes[3] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(open().kept(), &Memory::default());
        std::fs::write(&path, vec![0; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert_eq!(open().kept(), &Memory::default());
    }
}
