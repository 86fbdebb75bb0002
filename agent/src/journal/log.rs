//! The journal's file: records behind lengths and checksums, appended, synced, read back after whatever happened.
//!
//! ```text
//! file   = "BGBJ" 0x01 | site, 3 bytes | device, u32 | record …
//! record = length of the body, u32 | CRC-32C of length and body, u32 | body (a version byte, then postcard)
//! ```
//!
//! Numbers are big-endian. It knows no task: bodies are bytes. Laws: what [`LogFile::sync`] returned `Ok` for is read back by the
//! next [`LogFile::open`]; a torn tail is cut off; damage in the middle costs the damaged records only, and is told to
//! the caller; a write for which there was no room leaves the file as it was; after any other error, the handle is to be
//! dropped and the file opened anew.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bgb_daemon::disk::{AppendFile, Disk, replace_durably};
use bgb_protocol::ids::{DeviceId, SiteCode};
use crc32c::{crc32c, crc32c_append};

use crate::durable::{self, WriteFault};

/// Begins the file; the last byte is the layout's version.
const MAGIC: [u8; 5] = *b"BGBJ\x01";

/// Bytes before the first record.
const HEADER_BYTES: usize = MAGIC.len() + 3 + 4;

/// Bytes before a record's body.
const RECORD_HEADER_BYTES: usize = 8;

/// Longest body: a task's envelope of 62 KiB (protocol) and what stands around it.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Longest file that is read: four times what the journal's own limits let it grow to.
const FILE_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Whose journal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) site: SiteCode,
    pub(super) device: DeviceId,
}

/// An open journal file.
pub(super) struct LogFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    owner: Owner,
    file: Box<dyn AppendFile>,
    bytes: u64,
}

/// What was in the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// The bodies, in order.
    pub(super) bodies: Vec<Vec<u8>>,
    /// Bytes at the end that are no whole record: a write that a crash cut off.
    pub(super) torn_bytes: usize,
    /// Bytes before the last good record that are no good record: damage.
    pub(super) damaged_bytes: usize,
}

impl LogFile {
    /// Opens the journal of `owner` at `path`, or makes an empty one; what is torn off at its end is cut away.
    ///
    /// # Errors
    /// When the disk refuses, or the file is another device's, of a newer layout, or no journal.
    pub(super) fn open(disk: Arc<dyn Disk>, path: &Path, owner: Owner) -> io::Result<(Self, Content)> {
        let content = match disk.open_read(path) {
            Ok(file) => {
                let bytes = file.len()?;
                if bytes > FILE_BYTES_MAX {
                    return Err(wrong(
                        path,
                        &format!("has {bytes} bytes, over the limit of {FILE_BYTES_MAX}"),
                    ));
                }
                drop(file);
                read(path, &disk.read(path)?, owner)?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                replace_durably(&*disk, path, &header(owner))?;
                Content::default()
            }
            Err(error) => return Err(error),
        };
        let mut file = disk.open_append(path)?;
        let bytes = file.len()? - content.torn_bytes as u64;
        if content.torn_bytes > 0 {
            // Or what is appended next would be taken for damage in the middle.
            file.truncate(bytes)?;
        }
        Ok((Self { disk, path: path.to_owned(), owner, file, bytes }, content))
    }

    /// Appends a record; it is durable after the next [`Self::sync`].
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn append(&mut self, body: &[u8]) -> Result<(), WriteFault> {
        let mut record = Vec::with_capacity(RECORD_HEADER_BYTES + body.len());
        push_record(body, &mut record);
        if let Err(error) = self.file.append(&record) {
            // Part of it may be there: cut it off, so that what comes after can be found.
            return Err(match self.file.truncate(self.bytes) {
                Ok(()) => WriteFault::Unchanged(error),
                Err(_) => WriteFault::Unknown(error),
            });
        }
        self.bytes += record.len() as u64;
        Ok(())
    }

    /// Makes all records durable.
    ///
    /// # Errors
    /// When the disk refuses; nothing is known of what was appended since the last one.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }

    /// Bytes in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Replaces all records by `bodies`, durably and as a whole.
    ///
    /// # Errors
    /// When the disk refuses; the file then has the old records or the new ones, as the fault says.
    pub(super) fn rewrite(&mut self, bodies: &[Vec<u8>]) -> Result<(), WriteFault> {
        let mut bytes = header(self.owner);
        for body in bodies {
            push_record(body, &mut bytes);
        }
        durable::replace(&*self.disk, &self.path, &bytes)?;
        self.file = self.disk.open_append(&self.path).map_err(WriteFault::Unknown)?;
        self.bytes = bytes.len() as u64;
        Ok(())
    }
}

fn header(owner: Owner) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&owner.site.bytes());
    bytes.extend_from_slice(&owner.device.0.to_be_bytes());
    bytes
}

fn push_record(body: &[u8], out: &mut Vec<u8>) {
    assert!((1..=BODY_BYTES_MAX).contains(&body.len()), "a record is bounded where it is made");
    let length = (body.len() as u32).to_be_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&crc32c_append(crc32c(&length), body).to_be_bytes());
    out.extend_from_slice(body);
}

fn read(path: &Path, bytes: &[u8], owner: Owner) -> io::Result<Content> {
    let Some((found, records)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(wrong(path, "is too short to be a journal"));
    };
    let ours = header(owner);
    if found[..MAGIC.len() - 1] != MAGIC[..MAGIC.len() - 1] {
        return Err(wrong(path, "is no journal"));
    }
    if found[MAGIC.len() - 1] != MAGIC[MAGIC.len() - 1] {
        return Err(wrong(path, "was written by another release, whose layout this one does not know"));
    }
    if found != ours {
        let text = format!("is not the journal of device {} of site {}", owner.device, owner.site);
        return Err(wrong(path, &text));
    }
    Ok(read_records(records))
}

fn read_records(bytes: &[u8]) -> Content {
    let mut content = Content::default();
    let mut at = 0;
    // Where the last good record ended: what lies between it and the next good one is damage, at the end a torn tail.
    let mut good_until = 0;
    while at < bytes.len() {
        match record(&bytes[at..]) {
            Some(body) => {
                content.damaged_bytes += at - good_until;
                at += RECORD_HEADER_BYTES + body.len();
                good_until = at;
                content.bodies.push(body.to_vec());
            }
            None => at += 1,
        }
    }
    content.torn_bytes = bytes.len() - good_until;
    content
}

/// The body of the good record that `bytes` begins with.
fn record(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let count = u32::from_be_bytes(*length) as usize;
    if !(1..=BODY_BYTES_MAX).contains(&count) {
        return None;
    }
    let body = rest.get(..count)?;
    (crc32c_append(crc32c(length), body) == u32::from_be_bytes(*checksum)).then_some(body)
}

fn wrong(path: &Path, what: &str) -> io::Error {
    let text = format!("{} {what}; move it away only if this device has joined anew", path.display());
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bgb_daemon::disk::SimDisk;
    use proptest::prelude::*;

    const PATH: &str = "/state/journal";

    fn owner() -> Owner {
        Owner { site: "LAB".parse().unwrap(), device: DeviceId(7) }
    }

    fn disk() -> Arc<SimDisk> {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/state")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        Arc::new(disk)
    }

    fn open(disk: &Arc<SimDisk>) -> (LogFile, Content) {
        LogFile::open(Arc::clone(disk) as Arc<dyn Disk>, Path::new(PATH), owner()).unwrap()
    }

    fn records(bodies: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bodies.iter().for_each(|body| push_record(body, &mut bytes));
        bytes
    }

    #[test]
    fn what_was_appended_is_read_back() {
        let disk = disk();
        let (mut log, content) = open(&disk);
        assert_eq!(content, Content::default());
        log.append(b"one").unwrap();
        log.append(b"two").unwrap();
        log.sync().unwrap();
        assert_eq!(open(&disk).1.bodies, [b"one".to_vec(), b"two".to_vec()]);
        log.rewrite(&[b"three".to_vec()]).unwrap();
        log.append(b"four").unwrap();
        assert_eq!(open(&disk).1.bodies, [b"three".to_vec(), b"four".to_vec()]);
    }

    #[test]
    fn another_devices_journal_is_refused_by_name() {
        let disk = disk();
        drop(open(&disk));
        let other = Owner { device: DeviceId(8), ..owner() };
        let error = LogFile::open(disk as Arc<dyn Disk>, Path::new(PATH), other).err().unwrap();
        assert!(error.to_string().contains("device 8 of site LAB"), "{error}");
    }

    #[test]
    fn a_tail_cut_at_any_byte_or_filled_with_zeros_costs_only_the_last_record() {
        let whole = records(&[b"first", b"second"]);
        let first_bytes = records(&[b"first"]).len();
        for cut in first_bytes..whole.len() {
            let content = read_records(&whole[..cut]);
            assert_eq!(content.bodies, [b"first".to_vec()]);
            assert_eq!((content.torn_bytes, content.damaged_bytes), (cut - first_bytes, 0));
            let mut zeros = whole.clone();
            zeros[cut..].fill(0);
            assert_eq!(read_records(&zeros).bodies, [b"first".to_vec()]);
        }
    }

    #[test]
    fn damage_in_the_middle_costs_the_damaged_record_and_is_told() {
        let mut bytes = records(&[b"first", b"second", b"third"]);
        let at = records(&[b"first"]).len() + RECORD_HEADER_BYTES;
        bytes[at] ^= 1;
        let content = read_records(&bytes);
        assert_eq!(content.bodies, [b"first".to_vec(), b"third".to_vec()]);
        assert_eq!((content.torn_bytes, content.damaged_bytes), (0, records(&[b"second"]).len()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let content = read_records(&bytes);
            prop_assert!(content.torn_bytes + content.damaged_bytes <= bytes.len());
            let _ = read(Path::new(PATH), &bytes, owner());
        }
    }
}
