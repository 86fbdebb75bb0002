//! Files of the inbox, read as the manager does it: header, blocks, rows, end.

use bgb_protocol::file::presence::PresenceRow;
use bgb_protocol::file::results::ResultRow;
use bgb_protocol::file::{
    BLOCK_HEAD_BYTES, BlockHead, Epoch, FileBuilder, FileKind, HEADER_BYTES, Header, check_block, check_end,
    rows,
};
use bgb_protocol::ids::{ServerId, UnixMillis};
use serde::de::DeserializeOwned;

/// Online lists.
pub(crate) fn bos(data: &[u8]) {
    whole::<PresenceRow>(data);
    inside::<PresenceRow>(FileKind::PresenceFull, data);
}

/// Results.
pub(crate) fn bts(data: &[u8]) {
    whole::<ResultRow>(data);
    inside::<ResultRow>(FileKind::Results, data);
}

/// A file as it lies there.
fn whole<R: DeserializeOwned>(data: &[u8]) {
    let Ok(header) = Header::decode(data) else { return };
    assert_eq!(Header::decode(&header.encode()), Ok(header), "a header changes on its way");
    let (mut rest, mut sums, mut counted) = (&data[HEADER_BYTES..], Vec::new(), 0_u64);
    for number in 0..header.blocks {
        let Ok(head) = BlockHead::decode(rest, number) else { return };
        let Ok((sum, body)) = check_block(rest, head) else { return };
        counted += rows::<R>("row", head, body).filter(Result::is_ok).count() as u64;
        sums.push(sum);
        rest = &rest[head.total_bytes()..];
    }
    let is_sound = check_end(rest, &header, &sums).is_ok();
    assert!(!is_sound || counted <= header.rows, "a file has more rows than it says");
}

/// Rows inside a block whose checksum is right, which random bytes would not meet.
fn inside<R: DeserializeOwned>(kind: FileKind, data: &[u8]) {
    let (count, body) = data.split_at(data.len().min(1));
    let count = u32::from(count.first().copied().unwrap_or(0));
    let head = BlockHead { number: 0, rows: count, bytes: body.len() as u32 };
    let read = rows::<R>("row", head, body).count();
    assert!(read <= count as usize + 1, "{read} rows out of {count}, and one for what is behind them");

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
    whole::<R>(&file);
}
