//! Reads a file of the inbox block by block, never as a whole.
//!
//! It owns the open file and its place in it, checks what can be checked without looking at rows (frame, checksums, order, the end)
//! and gives each block's bytes on. It knows neither what rows mean nor where they go. Law: whatever the bytes, it ends: each piece lies
//! behind the one before it, and after the end, sound or not, comes nothing more.

use std::io;

use bgb_daemon::disk::ReadAt;
use bgb_protocol::file::{
    BLOCK_HEAD_BYTES, BLOCK_TAIL_BYTES, BlockHead, END_BYTES, FileError, HEADER_BYTES, Header, check_end,
};

/// Most bytes of a file: ten million rows of 400 bytes. What is longer is no file that a server writes.
pub(crate) const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// One step of reading.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A block whose frame can be followed; whether its checksum holds is judged by who decodes it.
    Block(RawBlock),
    /// Nothing more comes. `Ok` when the file's end fits all of its blocks.
    End(Result<(), FileError>),
}

/// A block's bytes, head and checksum included, and its place in the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RawBlock {
    pub(crate) head: BlockHead,
    /// Rows of the file before this block.
    pub(crate) first_row: u64,
    pub(crate) bytes: Vec<u8>,
}

/// A file being read.
pub(crate) struct BlockReader {
    file: Box<dyn ReadAt>,
    header: Header,
    bytes: u64,
    offset: u64,
    next_block: u32,
    rows: u64,
    sums: Vec<u32>,
}

impl BlockReader {
    /// Reads the header.
    ///
    /// # Errors
    /// The outer one when the disk fails, the inner one when the bytes are no file of ours.
    pub(crate) fn open(file: Box<dyn ReadAt>) -> io::Result<Result<Self, FileError>> {
        let bytes = file.len()?;
        if bytes > FILE_BYTES_MAX {
            return Ok(Err(FileError::Header("the file is longer than any that a server writes")));
        }
        let mut start = vec![0; bytes.min(HEADER_BYTES as u64) as usize];
        file.read_exact_at(&mut start, 0)?;
        Ok(Header::decode(&start).map(|header| Self {
            file,
            header,
            bytes,
            offset: HEADER_BYTES as u64,
            next_block: 0,
            rows: 0,
            sums: Vec::new(),
        }))
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// The next block, or the end.
    ///
    /// # Errors
    /// When the disk fails; the same piece can be asked for again.
    pub(crate) fn next(&mut self) -> io::Result<Piece> {
        if self.next_block == self.header.blocks {
            return self.read_end().map(Piece::End);
        }
        let head_bytes = self.read_at_most(BLOCK_HEAD_BYTES)?;
        let head = match BlockHead::decode(&head_bytes, self.next_block) {
            Ok(head) => head,
            Err(error) => return Ok(Piece::End(Err(error))),
        };
        if self.rows + u64::from(head.rows) > self.header.rows {
            return Ok(Piece::End(Err(FileError::BlockHead(head.number))));
        }
        let bytes = self.read_at_most(head.total_bytes())?;
        let Some(sum) = bytes.len().checked_sub(BLOCK_TAIL_BYTES).and_then(|at| bytes[at..].first_chunk())
        else {
            return Ok(Piece::End(Err(FileError::Torn("a block"))));
        };
        if bytes.len() < head.total_bytes() {
            return Ok(Piece::End(Err(FileError::Torn("a block"))));
        }
        self.sums.push(u32::from_be_bytes(*sum));
        let first_row = self.rows;
        self.rows += u64::from(head.rows);
        self.offset += bytes.len() as u64;
        self.next_block += 1;
        Ok(Piece::Block(RawBlock { head, first_row, bytes }))
    }

    fn read_end(&mut self) -> io::Result<Result<(), FileError>> {
        let end = self.read_at_most(END_BYTES)?;
        let checked = check_end(&end, &self.header, &self.sums);
        let behind = self.bytes - self.offset - end.len() as u64;
        Ok(match checked {
            Ok(()) if self.rows != self.header.rows => Err(FileError::End),
            Ok(()) if behind > 0 => Err(FileError::Trailing(behind)),
            other => other,
        })
    }

    /// `wanted` bytes from here, or as many as there are.
    fn read_at_most(&self, wanted: usize) -> io::Result<Vec<u8>> {
        let left = self.bytes.saturating_sub(self.offset);
        let mut bytes = vec![0; left.min(wanted as u64) as usize];
        self.file.read_exact_at(&mut bytes, self.offset)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bgb_daemon::disk::{Disk, SimDisk};
    use bgb_protocol::file::{Epoch, FileBuilder, FileKind, check_block};
    use bgb_protocol::ids::{ServerId, UnixMillis};
    use proptest::prelude::*;

    use super::*;

    fn file(rows: u32) -> Vec<u8> {
        let mut builder = FileBuilder::new();
        for row in 0..rows {
            builder.push(&format!("row {row:>200}"));
        }
        let header = Header {
            kind: FileKind::Results,
            site: "LAB".parse().unwrap(),
            server: ServerId(1),
            epoch: Epoch { counter: 1, nonce: 2 },
            sequence: 3,
            time: UnixMillis(4),
            rows: 0,
            blocks: 0,
        };
        builder.finish(header).1
    }

    /// All pieces of `bytes` as a file: the rows of blocks whose checksum holds, and the end.
    fn read(bytes: &[u8]) -> Result<(u64, Result<(), FileError>), FileError> {
        let disk = SimDisk::new();
        let mut out = disk.create_new(Path::new("file")).unwrap();
        out.append(bytes).unwrap();
        let mut reader = BlockReader::open(disk.open_read(Path::new("file")).unwrap()).unwrap()?;
        let (mut good_rows, mut given) = (0, 0);
        loop {
            match reader.next().unwrap() {
                Piece::Block(block) => {
                    assert_eq!(block.first_row, given);
                    given += u64::from(block.head.rows);
                    good_rows +=
                        check_block(&block.bytes, block.head).map_or(0, |_| u64::from(block.head.rows));
                }
                Piece::End(end) => return Ok((good_rows, end)),
            }
        }
    }

    #[test]
    fn a_whole_file_is_read_to_its_end() {
        assert_eq!(read(&file(2_000)), Ok((2_000, Ok(()))));
        assert_eq!(read(&file(0)), Ok((0, Ok(()))));
    }

    #[test]
    fn bytes_behind_the_end_are_told() {
        let mut bytes = file(3);
        bytes.extend_from_slice(b"more");
        assert_eq!(read(&bytes), Ok((3, Err(FileError::Trailing(4)))));
    }

    #[test]
    fn a_file_torn_at_any_byte_keeps_its_whole_blocks_and_is_never_called_whole() {
        let bytes = file(10);
        for length in 0..bytes.len() {
            match read(&bytes[..length]) {
                Ok((rows, end)) => {
                    assert!(end.is_err(), "at {length}");
                    assert!(rows == 0 || rows == 10, "at {length}");
                }
                Err(_) => assert!(length < HEADER_BYTES, "at {length}"),
            }
        }
    }

    proptest! {
        #[test]
        fn no_flipped_bit_goes_unnoticed(position in 0usize..1_000_000, bit in 0u8..8) {
            let mut bytes = file(1_500);
            let position = position % bytes.len();
            bytes[position] ^= 1 << bit;
            let sound = read(&bytes) == Ok((1_500, Ok(())));
            prop_assert!(!sound);
        }

        #[test]
        fn arbitrary_bytes_behind_a_header_end_without_panic(tail in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut bytes = file(2)[..HEADER_BYTES].to_vec();
            bytes.extend_from_slice(&tail);
            prop_assert!(!matches!(read(&bytes), Ok((_, Ok(())))));
        }
    }
}
