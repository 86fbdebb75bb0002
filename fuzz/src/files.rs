//! Files of the inbox, read as the manager does it: header, blocks, rows, end.

use std::fmt::Debug;

use bgb_protocol::codec;
use bgb_protocol::file::presence::PresenceRow;
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::file::{
    BLOCK_HEAD_BYTES, BLOCK_TAIL_BYTES, BlockHead, END_BYTES, Epoch, FileBuilder, FileKind, HEADER_BYTES,
    Header, ROW_BYTES_MAX, check_block, check_end, rows,
};
use bgb_protocol::ids::{ServerId, UnixMillis};
use bgb_protocol::status::StatusMessage;
use crc32c::{crc32c, crc32c_append};
use serde::{Serialize, de::DeserializeOwned};

/// Online lists.
pub(crate) fn bos(data: &[u8]) {
    whole(data);
    whole(&mended(data));
    inside::<PresenceRow>(FileKind::PresenceFull, data);
}

/// Results and, since their files are like these, status messages.
pub(crate) fn bts(data: &[u8]) {
    whole(data);
    whole(&mended(data));
    inside::<ResultRow>(FileKind::Results, data);
    inside::<StatusMessage>(FileKind::Status, data);
}

/// A file as it lies there, its rows read as what its header says that they are.
fn whole(data: &[u8]) {
    let Ok(header) = Header::decode(data) else { return };
    assert_eq!(Header::decode(&header.encode()), Ok(header), "a header changes on its way");
    assert!(header.file_name().ends_with(header.kind.extension()));
    let (mut rest, mut sums) = (&data[HEADER_BYTES..], Vec::new());
    let (mut announced, mut good) = (0, 0);
    for number in 0..header.blocks {
        let Ok(head) = BlockHead::decode(rest, number) else { return };
        announced += u64::from(head.rows);
        if announced > header.rows {
            return;
        }
        let Ok((sum, body)) = check_block(rest, head) else { return };
        good += match header.kind {
            FileKind::PresenceFull | FileKind::PresenceDelta => read::<PresenceRow>(head, body),
            FileKind::Results => read::<ResultRow>(head, body),
            FileKind::Status => read::<StatusMessage>(head, body),
        };
        sums.push(sum);
        rest = &rest[head.total_bytes()..];
    }
    if check_end(rest, &header, &sums).is_ok() {
        let cut = &rest[..END_BYTES - 1];
        assert!(check_end(cut, &header, &sums).is_err(), "a file that was cut off is whole");
        assert!(good <= header.rows, "a file has more rows than it says");
    }
}

/// The rows of a block: how many can be read.
fn read<R: Row>(head: BlockHead, body: &[u8]) -> u64 {
    let (mut seen, mut good) = (0, 0);
    for row in rows::<R>("row", head, body) {
        seen += 1;
        let Ok(row) = row else { continue };
        good += 1;
        row.look();
        let mut bytes = Vec::new();
        codec::encode(&row, &mut bytes);
        assert!(bytes.len() <= ROW_BYTES_MAX, "a row that was read is too long to be written");
        assert_eq!(codec::decode::<R>("row", codec::VERSION, &bytes), Ok(row), "a row changes on its way");
    }
    assert!(
        seen <= u64::from(head.rows) + 1,
        "{seen} rows out of {}, and one for what is behind them",
        head.rows
    );
    good
}

/// What a file has rows of.
trait Row: Serialize + DeserializeOwned + Debug + PartialEq {
    /// What else is looked at before it is applied.
    fn look(&self) {}
}

impl Row for PresenceRow {}
impl Row for StatusMessage {}

impl Row for ResultRow {
    fn look(&self) {
        if let DeviceWord::Final(signed) = &self.word
            && let Ok(statement) = signed.read()
        {
            assert!(statement.state.is_final(), "a last word that is not final");
        }
    }
}

/// `data` with its checksums set right, which random bytes would not meet; the rest stays as it is.
fn mended(data: &[u8]) -> Vec<u8> {
    let mut file = data.to_vec();
    let Some(header) = file.first_chunk_mut::<HEADER_BYTES>() else { return file };
    set_sum(header);
    let blocks = number_at(header, HEADER_BYTES - 8);
    let (mut at, mut of_sums) = (HEADER_BYTES, 0);
    for _ in 0..blocks {
        let Some(head) = file.get(at..at + BLOCK_HEAD_BYTES) else { return file };
        let total = BLOCK_HEAD_BYTES + number_at(head, 12) as usize + BLOCK_TAIL_BYTES;
        let Some(block) = file.get_mut(at..at + total) else { return file };
        of_sums = crc32c_append(of_sums, &set_sum(block).to_be_bytes());
        at += total;
    }
    if let Some(end) = file.get_mut(at..at + END_BYTES) {
        end[END_BYTES - 8..END_BYTES - 4].copy_from_slice(&of_sums.to_be_bytes());
        set_sum(end);
    }
    file
}

/// Writes the checksum of a piece into its last four bytes.
fn set_sum(piece: &mut [u8]) -> u32 {
    let (summed, place) = piece.split_at_mut(piece.len() - 4);
    let sum = crc32c(summed);
    place.copy_from_slice(&sum.to_be_bytes());
    sum
}

fn number_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes were taken"))
}

/// Rows inside a block, and as a builder takes them.
fn inside<R: Row>(kind: FileKind, data: &[u8]) {
    let (count, body) = data.split_at(data.len().min(1));
    let count = u32::from(count.first().copied().unwrap_or(0));
    read::<R>(BlockHead { number: 0, rows: count, bytes: body.len() as u32 }, body);

    let mut builder = FileBuilder::new();
    let mut bytes = crate::bytes::Bytes(data);
    while !bytes.is_empty() {
        builder.push_encoded(bytes.piece());
    }
    let header = Header {
        kind,
        site: "LAB".parse().expect("a site's code"),
        server: ServerId(1),
        epoch: Epoch { counter: 1, nonce: 1 },
        sequence: 1,
        time: UnixMillis(1),
        rows: 0,
        blocks: 0,
    };
    let (header, file) = builder.finish(header);
    assert_eq!(Header::decode(&file), Ok(header));
    if header.blocks > 0 {
        let head = BlockHead::decode(&file[HEADER_BYTES..], 0).expect("it was built");
        assert!(head.total_bytes() > BLOCK_HEAD_BYTES && check_block(&file[HEADER_BYTES..], head).is_ok());
    }
    assert_eq!(mended(&file), file, "checksums that were right are others");
    whole(&file);
}
