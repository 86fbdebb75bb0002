use proptest::prelude::*;

use super::*;

fn header() -> Header {
    Header {
        kind: FileKind::Results,
        site: "LAB".parse().unwrap(),
        server: ServerId(1),
        epoch: Epoch { counter: 3, nonce: 99 },
        sequence: 12,
        time: UnixMillis(1_700_000_000_000),
        rows: 0,
        blocks: 0,
    }
}

fn build(rows: &[String]) -> (Header, Vec<u8>) {
    let mut builder = FileBuilder::new();
    for row in rows {
        builder.push(row);
    }
    builder.finish(header())
}

/// Every row or fault in its order, then what the end says.
type WholeFile = (Vec<Result<String, FileError>>, Result<(), FileError>);

/// Reads a whole file the way a caller does.
fn read(bytes: &[u8]) -> Result<WholeFile, FileError> {
    let header = Header::decode(bytes)?;
    let (mut at, mut sums, mut seen) = (HEADER_BYTES, Vec::new(), Vec::new());
    for number in 0..header.blocks {
        let head = match BlockHead::decode(&bytes[at.min(bytes.len())..], number) {
            Ok(head) => head,
            Err(error) => return Ok((seen, Err(error))),
        };
        match check_block(&bytes[at..], head) {
            Ok((sum, body)) => {
                sums.push(sum);
                seen.extend(rows::<String>("text", head, body));
            }
            Err(error) => seen.push(Err(error)),
        }
        at += head.total_bytes();
    }
    let end = check_end(&bytes[at.min(bytes.len())..], &header, &sums);
    Ok((seen, end))
}

fn many_rows() -> Vec<String> {
    (0..4_000).map(|number| format!("row {number:>100}")).collect()
}

#[test]
fn a_file_reads_back_as_it_was_written() {
    let rows = many_rows();
    let (header, bytes) = build(&rows);
    assert!(header.blocks > 1 && header.rows == 4_000);
    assert_eq!(header.file_name(), "0000000003-0000000000000063-0000000012.BTS");
    assert_eq!(Header::parse_file_name(&header.file_name()), Some((header.epoch, header.sequence)));
    for other in ["", "1-2.BTS", "1-2-3", "1-2-3-4.BTS", "a-2-3.BTS", "1-g-3.BTS", "1-2-3-2.BTS"] {
        assert_eq!(Header::parse_file_name(other), None, "{other}");
    }
    let (seen, end) = read(&bytes).unwrap();
    assert_eq!(end, Ok(()));
    assert_eq!(seen.into_iter().map(Result::unwrap).collect::<Vec<_>>(), rows);
}

#[test]
fn an_empty_file_is_whole() {
    let (header, bytes) = build(&[]);
    assert_eq!((header.rows, header.blocks, bytes.len()), (0, 0, HEADER_BYTES + END_BYTES));
    assert_eq!(read(&bytes).unwrap(), (Vec::new(), Ok(())));
}

#[test]
fn one_bad_block_takes_no_other_with_it() {
    let (header, mut bytes) = build(&many_rows());
    bytes[HEADER_BYTES + BLOCK_HEAD_BYTES + 50] ^= 1;
    let (seen, end) = read(&bytes).unwrap();
    assert_eq!(seen[0], Err(FileError::BlockSum(0)));
    assert!(seen.iter().filter(|row| row.is_ok()).count() > 2_000, "{} blocks", header.blocks);
    assert_eq!(end, Err(FileError::End));
}

#[test]
fn one_bad_row_takes_no_other_with_it() {
    let mut builder = FileBuilder::new();
    builder.push(&"good");
    builder.push(&[0xff_u8, 0xff, 0xff]);
    builder.push(&"good too");
    let (_, bytes) = builder.finish(header());
    let (seen, end) = read(&bytes).unwrap();
    assert!(matches!(seen[..], [Ok(_), Err(FileError::Row { block: 0, row: 1, .. }), Ok(_)]));
    assert_eq!(end, Ok(()));
}

#[test]
fn a_file_of_a_newer_major_version_is_named_as_such() {
    let (_, mut bytes) = build(&[]);
    bytes[8] = 0x20;
    assert_eq!(Header::decode(&bytes), Err(FileError::Version(0x20)));
    assert_eq!(Header::decode(b"PK\x03\x04"), Err(FileError::NotOurs));
}

proptest! {
    #[test]
    fn a_file_torn_at_any_byte_never_reads_as_whole(cut in any::<prop::sample::Index>()) {
        let (_, bytes) = build(&["one".to_owned(), "two".to_owned()]);
        let torn = &bytes[..cut.index(bytes.len())];
        match read(torn) {
            Err(_) => {}
            Ok((_, end)) => prop_assert!(end.is_err()),
        }
    }

    #[test]
    fn a_flipped_bit_is_always_found(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (_, mut bytes) = build(&["one".to_owned(), "two".to_owned()]);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        match read(&bytes) {
            Err(_) => {}
            Ok((_, end)) => prop_assert!(end.is_err()),
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Header::decode(&bytes);
        let _ = BlockHead::decode(&bytes, 0);
        let head = BlockHead { number: 0, rows: 9, bytes: bytes.len() as u32 };
        let _ = rows::<String>("text", head, &bytes).count();
        let _ = check_block(&bytes, head);
    }
}

#[test]
fn rows_can_be_carried_over_into_another_file_byte_by_byte() {
    let (header, bytes) = build(&many_rows());
    let mut copy = FileBuilder::new();
    let mut at = HEADER_BYTES;
    for number in 0..header.blocks {
        let head = BlockHead::decode(&bytes[at..], number).unwrap();
        let (_, body) = check_block(&bytes[at..], head).unwrap();
        row_bytes(head, body).for_each(|row| copy.push_encoded(row.unwrap()));
        at += head.total_bytes();
    }
    assert_eq!(copy.finish(header).1, bytes);
}

#[test]
fn bytes_behind_a_blocks_last_row_are_told() {
    let mut rows_of_block = vec![4];
    rows_of_block.extend_from_slice(b"\x03one");
    fn read(rows: u32, bytes: &[u8]) -> Vec<Result<&[u8], FileError>> {
        row_bytes(BlockHead { number: 7, rows, bytes: bytes.len() as u32 }, bytes).collect()
    }
    assert_eq!(read(1, &rows_of_block), [Ok(&b"\x03one"[..])]);
    rows_of_block.extend_from_slice(b"??");
    let error = CodecError::Trailing { what: "block's rows", bytes: 2 };
    assert_eq!(
        read(1, &rows_of_block),
        [Ok(&b"\x03one"[..]), Err(FileError::Row { block: 7, row: 1, error })]
    );
    let error = CodecError::Malformed("row's length");
    assert_eq!(
        read(3, &rows_of_block),
        [Ok(&b"\x03one"[..]), Err(FileError::Row { block: 7, row: 1, error })]
    );
}

#[test]
fn fields_that_a_newer_minor_version_added_to_a_row_are_passed_over() {
    let (_, bytes) = {
        let mut builder = FileBuilder::new();
        builder.push(&("text", 9_u8));
        builder.finish(header())
    };
    let (seen, end) = read(&bytes).unwrap();
    assert_eq!((&seen[..], end), (&[Ok("text".to_owned())][..], Ok(())));
}

#[test]
fn a_block_of_more_rows_than_it_may_have_is_neither_written_nor_followed() {
    let mut builder = FileBuilder::new();
    for _ in 0..=BLOCK_ROWS_MAX {
        builder.push(&());
    }
    let (header, bytes) = builder.finish(header());
    assert_eq!(header.blocks, 2);
    let head = BlockHead::decode(&bytes[HEADER_BYTES..], 0).unwrap();
    assert_eq!(head.rows, BLOCK_ROWS_MAX);
    let mut more = bytes[HEADER_BYTES..][..BLOCK_HEAD_BYTES].to_vec();
    more[8..12].copy_from_slice(&(BLOCK_ROWS_MAX + 1).to_be_bytes());
    more[12..16].copy_from_slice(&(BLOCK_ROWS_MAX + 1).to_be_bytes());
    assert_eq!(BlockHead::decode(&more, 0), Err(FileError::BlockHead(0)));
}
