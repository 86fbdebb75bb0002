//! Files that go up: a server's word to its site, complete, checksummed, numbered and safe to take in twice.
//!
//! ```text
//! header (72 bytes) · block · block · … · end (24 bytes)                       integers big-endian
//!
//! header  magic "BGBFILE1" · version u8 · kind u8 · site [3] · 0 [3] · server u32 · 0 u32 · epoch counter u64 ·
//!         epoch nonce u64 · sequence u64 · time in unix ms u64 · rows u64 · blocks u32 · crc32c of all this u32
//! block   magic "BLK1" · number u32, from 0 · rows u32 · bytes of the rows u32 · rows · crc32c of all this u32
//! end     magic "END1" · blocks u32 · rows u64 · crc32c of all blocks' checksums u32 · crc32c of all this u32
//! row     length (varint) · postcard
//! ```
//!
//! A row says how long it is, so fields that a newer minor version added behind the known ones are passed over in it.
//!
//! A reader checks each block by itself, so that one bad block, or one bad row, takes no other with it; the end shows
//! that nothing is missing. This module is pure: it is given bytes, and callers fetch them block by block.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::codec::{self, CodecError, VERSION};
use crate::ids::{ServerId, SiteCode, UnixMillis};

pub mod presence;
pub mod results;

/// Bytes of a file's header.
pub const HEADER_BYTES: usize = 72;
/// Bytes before a block's rows.
pub const BLOCK_HEAD_BYTES: usize = 16;
/// Bytes after a block's rows.
pub const BLOCK_TAIL_BYTES: usize = 4;
/// Bytes of a file's end.
pub const END_BYTES: usize = 24;
/// Bytes of rows at which a writer closes a block: small enough that one bad block costs little.
pub const BLOCK_BYTES: usize = 128 * 1024;
/// Most bytes of rows that a block may have.
pub const BLOCK_BYTES_MAX: usize = 1024 * 1024;
/// Most rows of a block: more than 128 KiB hold of the shortest ones, a status message without texts in 7 bytes. Without it a
/// block of empty rows would cost its reader many times its bytes.
pub const BLOCK_ROWS_MAX: u32 = 32 * 1024;
/// Most bytes of one row: a result with 32 KiB of output and room to spare.
pub const ROW_BYTES_MAX: usize = 64 * 1024;
/// Most rows of one file: ten times the million that is a normal size.
pub const ROWS_MAX: u64 = 10_000_000;

/// The version that rows are read as: of our major version, any minor one.
const NEWEST_MINOR: u8 = VERSION | 0x0f;

const MAGIC: &[u8; 8] = b"BGBFILE1";
const BLOCK_MAGIC: &[u8; 4] = b"BLK1";
const END_MAGIC: &[u8; 4] = b"END1";

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// Everybody who is online at the server (`.BOS`); rows are [`presence::PresenceRow`].
    PresenceFull,
    /// Who came and went since the file before it (`.BOS`); rows are [`presence::PresenceRow`].
    PresenceDelta,
    /// What devices said of their tasks (`.BTS`); rows are [`results::ResultRow`].
    Results,
    /// The server's own status messages (`.SVF`); rows are [`crate::status::StatusMessage`].
    Status,
}

/// Which life of a server wrote a file: a counter that it keeps on disk, and random bits in case that disk was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Counts the server's starts.
    pub counter: u64,
    /// Drawn at each start.
    pub nonce: u64,
}

/// A file's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// What the file holds.
    pub kind: FileKind,
    /// The site.
    pub site: SiteCode,
    /// Who wrote it.
    pub server: ServerId,
    /// In which of its lives.
    pub epoch: Epoch,
    /// Counts the server's files of this epoch from 1: presence files (full and delta together), results and status each by themselves.
    pub sequence: u64,
    /// When, by the server's clock.
    pub time: UnixMillis,
    /// Rows in the whole file.
    pub rows: u64,
    /// Blocks in the whole file.
    pub blocks: u32,
}

/// Why a file, a block or a row cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FileError {
    /// The file does not begin as a file of BGB.
    #[error("it does not begin with the mark of a BGB file")]
    NotOurs,
    /// Another major version.
    #[error(
        "it has version {major}.{minor}; this release reads 1.x: upgrade the manager before its servers",
        major = .0 >> 4, minor = .0 & 15
    )]
    Version(u8),
    /// A kind that this release does not know.
    #[error("it is of a kind ({0}) that this release does not know")]
    Kind(u8),
    /// The header's checksum does not match, or its values cannot be.
    #[error("its header is damaged: {0}")]
    Header(&'static str),
    /// The bytes end too early.
    #[error("it ends too early, in {0}")]
    Torn(&'static str),
    /// A block's frame cannot be followed, so what comes after it cannot be found.
    #[error("block {0} is damaged where it says how long it is; what follows cannot be found")]
    BlockHead(u32),
    /// A block's checksum does not match its bytes.
    #[error("block {0} does not match its checksum")]
    BlockSum(u32),
    /// The end does not match what came before it.
    #[error("its end does not match its blocks")]
    End,
    /// Bytes follow the end.
    #[error("{0} bytes follow its end")]
    Trailing(u64),
    /// A row cannot be read.
    #[error("row {row} of block {block} cannot be read: {error}")]
    Row {
        /// The block.
        block: u32,
        /// The row within it, from 0.
        row: u32,
        /// Why.
        error: CodecError,
    },
}

impl FileKind {
    /// The name's ending.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::PresenceFull | Self::PresenceDelta => "BOS",
            Self::Results => "BTS",
            Self::Status => "SVF",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::PresenceFull => 1,
            Self::PresenceDelta => 2,
            Self::Results => 3,
            Self::Status => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::PresenceFull, Self::PresenceDelta, Self::Results, Self::Status]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

impl Header {
    /// The file's name: `<epoch counter>-<epoch nonce>-<sequence>.<BOS|BTS|SVF>`, padded so that names sort in the order of writing.
    /// The nonce keeps a server whose disk was restored from overwriting a file of its lost life that still waits.
    #[must_use]
    pub fn file_name(&self) -> String {
        let Epoch { counter, nonce } = self.epoch;
        format!("{counter:010}-{nonce:016x}-{:010}.{}", self.sequence, self.kind.extension())
    }

    /// Which file has a name that [`file_name`](Self::file_name) gave: the server's life and the number in it. `None` for any other name.
    #[must_use]
    pub fn parse_file_name(name: &str) -> Option<(Epoch, u64)> {
        let (stem, _) = name.rsplit_once('.')?;
        let mut parts = stem.split('-');
        let (counter, nonce, sequence) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let epoch = Epoch { counter: counter.parse().ok()?, nonce: u64::from_str_radix(nonce, 16).ok()? };
        Some((epoch, sequence.parse().ok()?))
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, self.kind.code()]);
        out.extend_from_slice(&self.site.bytes());
        out.extend_from_slice(&[0; 3]);
        out.extend_from_slice(&self.server.0.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        let numbers = [self.epoch.counter, self.epoch.nonce, self.sequence, self.time.0, self.rows];
        for number in numbers {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&self.blocks.to_be_bytes());
        out.extend_from_slice(&crc32c::crc32c(&out).to_be_bytes());
        out.try_into().expect("the parts of a header add up to its size")
    }

    /// Reads a file's first bytes.
    ///
    /// # Errors
    /// As [`FileError`] says. The version is judged before the checksum, so that a newer file is named as such.
    pub fn decode(bytes: &[u8]) -> Result<Self, FileError> {
        if !bytes.starts_with(&MAGIC[..MAGIC.len().min(bytes.len())]) {
            return Err(FileError::NotOurs);
        }
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(FileError::Torn("its header"))?;
        if bytes[8] >> 4 != VERSION >> 4 {
            return Err(FileError::Version(bytes[8]));
        }
        if crc32c::crc32c(&bytes[..68]) != u32_at(bytes, 68) {
            return Err(FileError::Header("its checksum does not match"));
        }
        let header = Self {
            kind: FileKind::from_code(bytes[9]).ok_or(FileError::Kind(bytes[9]))?,
            site: SiteCode::try_from([bytes[10], bytes[11], bytes[12]])
                .map_err(|_| FileError::Header("the site's code is none"))?,
            server: ServerId(u32_at(bytes, 16)),
            epoch: Epoch { counter: u64_at(bytes, 24), nonce: u64_at(bytes, 32) },
            sequence: u64_at(bytes, 40),
            time: UnixMillis(u64_at(bytes, 48)),
            rows: u64_at(bytes, 56),
            blocks: u32_at(bytes, 64),
        };
        if header.rows > ROWS_MAX || u64::from(header.blocks) > header.rows {
            return Err(FileError::Header("it announces more rows or blocks than a file may have"));
        }
        Ok(header)
    }
}

/// What stands before a block's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHead {
    /// The block's number, from 0.
    pub number: u32,
    /// Its rows.
    pub rows: u32,
    /// Bytes of its rows.
    pub bytes: u32,
}

impl BlockHead {
    /// Reads the head of the block that should have `number`.
    ///
    /// # Errors
    /// [`FileError::Torn`], or [`FileError::BlockHead`] when the block cannot be followed.
    pub fn decode(bytes: &[u8], number: u32) -> Result<Self, FileError> {
        let bytes: &[u8; BLOCK_HEAD_BYTES] =
            bytes.first_chunk().ok_or(FileError::Torn("the head of a block"))?;
        let head = Self { number: u32_at(bytes, 4), rows: u32_at(bytes, 8), bytes: u32_at(bytes, 12) };
        let sound = bytes.starts_with(BLOCK_MAGIC)
            && head.number == number
            && head.bytes as usize <= BLOCK_BYTES_MAX
            && head.rows <= head.bytes.min(BLOCK_ROWS_MAX);
        if sound { Ok(head) } else { Err(FileError::BlockHead(number)) }
    }

    /// Bytes of the whole block, head and checksum included.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        BLOCK_HEAD_BYTES + self.bytes as usize + BLOCK_TAIL_BYTES
    }
}

/// A block's checksum and rows, from all of its bytes (`BlockHead::total_bytes`).
///
/// # Errors
/// [`FileError::Torn`] or [`FileError::BlockSum`].
pub fn check_block(block: &[u8], head: BlockHead) -> Result<(u32, &[u8]), FileError> {
    let block = block.get(..head.total_bytes()).ok_or(FileError::Torn("a block"))?;
    let (summed, tail) = block.split_at(block.len() - BLOCK_TAIL_BYTES);
    let sum = u32_at(tail, 0);
    if crc32c::crc32c(summed) != sum {
        return Err(FileError::BlockSum(head.number));
    }
    Ok((sum, &summed[BLOCK_HEAD_BYTES..]))
}

/// The rows of a block, one by one; a row that cannot be read is an error in its place, and the next one follows.
pub fn rows<R: DeserializeOwned>(
    what: &'static str,
    head: BlockHead,
    bytes: &[u8],
) -> impl Iterator<Item = Result<R, FileError>> {
    row_bytes(head, bytes).enumerate().map(move |(row, bytes)| decode_row(what, head, row as u32, bytes?))
}

/// The rows of a block as they stand there, for those who keep a bad one; when a length cannot be read, that is the last item, since
/// what comes behind it cannot be found. Bytes behind the last row are one more item, and an error.
pub fn row_bytes(head: BlockHead, bytes: &[u8]) -> impl Iterator<Item = Result<&[u8], FileError>> {
    let mut rest = bytes;
    let mut rows = 0..head.rows;
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let (row, read) = match rows.next() {
            Some(row) => (row, next_row(&mut rest).ok_or(CodecError::Malformed("row's length"))),
            None if rest.is_empty() => return None,
            None => (head.rows, Err(CodecError::Trailing { what: "block's rows", bytes: rest.len() })),
        };
        is_over = read.is_err();
        Some(read.map_err(|error| FileError::Row { block: head.number, row, error }))
    })
}

/// Reads the bytes of row `row` of the block with `head`; `what` names the row's type in errors. Bytes behind the fields that this
/// release knows are passed over: the row may be of a newer minor version.
///
/// # Errors
/// [`FileError::Row`].
pub fn decode_row<R: DeserializeOwned>(
    what: &'static str,
    head: BlockHead,
    row: u32,
    bytes: &[u8],
) -> Result<R, FileError> {
    codec::decode(what, NEWEST_MINOR, bytes).map_err(|error| FileError::Row {
        block: head.number,
        row,
        error,
    })
}

/// `None` when the length cannot be read.
fn next_row<'bytes>(rest: &mut &'bytes [u8]) -> Option<&'bytes [u8]> {
    let (length, after): (u32, _) = postcard::take_from_bytes(rest).ok()?;
    let length = length as usize;
    if length > ROW_BYTES_MAX || length > after.len() {
        return None;
    }
    let (body, after) = after.split_at(length);
    *rest = after;
    Some(body)
}

/// Checks a file's end against the checksums of its blocks, in their order.
///
/// # Errors
/// [`FileError::Torn`] or [`FileError::End`].
pub fn check_end(bytes: &[u8], header: &Header, sums: &[u32]) -> Result<(), FileError> {
    let bytes: &[u8; END_BYTES] = bytes.first_chunk().ok_or(FileError::Torn("its end"))?;
    if *bytes == end(header.blocks, header.rows, sums) { Ok(()) } else { Err(FileError::End) }
}

fn end(blocks: u32, rows: u64, sums: &[u32]) -> [u8; END_BYTES] {
    let of_sums = sums.iter().fold(0, |crc, sum| crc32c::crc32c_append(crc, &sum.to_be_bytes()));
    let mut out = Vec::with_capacity(END_BYTES);
    out.extend_from_slice(END_MAGIC);
    out.extend_from_slice(&blocks.to_be_bytes());
    out.extend_from_slice(&rows.to_be_bytes());
    out.extend_from_slice(&of_sums.to_be_bytes());
    out.extend_from_slice(&crc32c::crc32c(&out).to_be_bytes());
    out.try_into().expect("the parts of an end add up to its size")
}

/// Builds a file in memory: rows in, bytes out. The header, which counts rows and blocks, is made last.
///
/// Rows go in the order of their keys where they have one. A file of 1,000,000 presence rows has some 60 MB.
pub struct FileBuilder {
    body: Vec<u8>,
    block: Vec<u8>,
    block_rows: u32,
    rows: u64,
    sums: Vec<u32>,
}

impl Default for FileBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl FileBuilder {
    /// An empty file.
    #[must_use]
    pub fn new() -> Self {
        Self { body: Vec::new(), block: Vec::new(), block_rows: 0, rows: 0, sums: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// When the row is over [`ROW_BYTES_MAX`]: what goes into rows is bounded where it comes in.
    pub fn push<R: Serialize>(&mut self, row: &R) {
        let mut bytes = Vec::new();
        codec::encode(row, &mut bytes);
        self.push_encoded(&bytes);
    }

    /// Adds a row that is encoded already (as [`codec::encode`] does it).
    ///
    /// # Panics
    /// As [`push`](Self::push).
    pub fn push_encoded(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= ROW_BYTES_MAX, "what goes into a row is bounded where it comes in");
        codec::encode_varint(bytes.len() as u64, &mut self.block);
        self.block.extend_from_slice(bytes);
        self.block_rows += 1;
        self.rows += 1;
        if self.block.len() >= BLOCK_BYTES || self.block_rows == BLOCK_ROWS_MAX {
            self.close_block();
        }
    }

    /// Rows so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The whole file; `header`'s rows and blocks are set here.
    #[must_use]
    pub fn finish(mut self, mut header: Header) -> (Header, Vec<u8>) {
        if self.block_rows > 0 {
            self.close_block();
        }
        header.rows = self.rows;
        header.blocks = self.sums.len() as u32;
        let mut out = Vec::with_capacity(HEADER_BYTES + self.body.len() + END_BYTES);
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(&self.body);
        out.extend_from_slice(&end(header.blocks, header.rows, &self.sums));
        (header, out)
    }

    fn close_block(&mut self) {
        let start = self.body.len();
        self.body.extend_from_slice(BLOCK_MAGIC);
        for number in [self.sums.len() as u32, self.block_rows, self.block.len() as u32] {
            self.body.extend_from_slice(&number.to_be_bytes());
        }
        self.body.extend_from_slice(&self.block);
        let sum = crc32c::crc32c(&self.body[start..]);
        self.body.extend_from_slice(&sum.to_be_bytes());
        self.sums.push(sum);
        self.block.clear();
        self.block_rows = 0;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes were taken"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes were taken"))
}

#[cfg(test)]
mod tests;
