use bgb_protocol::file::{Epoch, FileBuilder};
use bgb_protocol::ids::{BootId, DeviceId, ServerId, SessionNumber, TaskId};
use bgb_protocol::message::RoadTaken;
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::DeviceKey;
use bgb_protocol::status::StatusId;
use serde_json::Value;

use super::*;

fn header(kind: FileKind) -> Header {
    Header {
        kind,
        site: "LAB".parse().unwrap(),
        server: ServerId(1),
        epoch: Epoch { counter: 3, nonce: u64::MAX },
        sequence: 12,
        time: UnixMillis(1_700_000_000_000),
        rows: 0,
        blocks: 0,
    }
}

fn build<R: Serialize>(kind: FileKind, rows: &[R]) -> Vec<u8> {
    let mut builder = FileBuilder::new();
    rows.iter().for_each(|row| builder.push(row));
    builder.finish(header(kind)).1
}

/// The lines that are shown of a file with these bytes, and its faults.
fn show(bytes: &[u8]) -> Result<(Vec<Value>, u64), Failure> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, bytes).unwrap();
    let mut lines = Vec::new();
    let faults = show_file(&path, &mut |line| {
        lines.push(serde_json::to_value(line)?);
        Ok(())
    })?;
    Ok((lines, faults))
}

fn presence(device: u32, online: bool) -> PresenceRow {
    let details = OnlineDetails {
        address: "192.0.2.7:50000".parse().unwrap(),
        road: RoadTaken::tcp(),
        agent_version: "0.1.0".to_owned(),
        clock_skew_ms: -5,
        policy_version: 2,
        platform: "Debian 12 x86_64".to_owned(),
        hostname: "pc".to_owned(),
    };
    PresenceRow {
        device: DeviceId(device),
        boot: BootId([0xab; 16]),
        session: SessionNumber(9),
        signed_in: UnixMillis(5),
        presence: if online {
            Presence::Online(Box::new(details))
        } else {
            Presence::Offline { at: UnixMillis(6), reason: "said goodbye".to_owned() }
        },
    }
}

fn final_result(device: u32, signed_device: u32) -> ResultRow {
    let statement = ResultStatement {
        site: "LAB".parse().unwrap(),
        task: TaskId::from_bytes([1; 16]),
        device: DeviceId(signed_device),
        state: TaskState::Succeeded,
        refusal: None,
        code: 0,
        started: UnixMillis(1),
        finished: UnixMillis(2),
        output_digest: [0; 32],
    };
    let (key, _) = DeviceKey::generate().unwrap();
    let signed = SignedResult::sign(statement, b"fine".to_vec(), &key).unwrap();
    ResultRow {
        task: TaskId::from_bytes([1; 16]),
        device: DeviceId(device),
        heard: UnixMillis(3),
        word: DeviceWord::Final(Box::new(signed)),
    }
}

#[test]
fn an_online_list_is_shown_row_by_row() {
    let (lines, faults) =
        show(&build(FileKind::PresenceDelta, &[presence(4, true), presence(5, false)])).unwrap();
    assert_eq!(faults, 0);
    assert_eq!(
        (&lines[0]["line"], &lines[0]["kind"], &lines[0]["epoch_nonce"]),
        (&"header".into(), &"presence-delta".into(), &"ffffffffffffffff".into())
    );
    assert_eq!((&lines[1]["device"], &lines[1]["online"]["hostname"]), (&4.into(), &"pc".into()));
    assert_eq!(lines[1]["boot"], "ab".repeat(16));
    assert_eq!(lines[2]["offline"]["reason"], "said goodbye");
    assert_eq!(
        (&lines[3]["line"], &lines[3]["rows"], &lines[3]["errors"]),
        (&"end".into(), &2.into(), &0.into())
    );
}

#[test]
fn a_result_shows_what_the_device_signed() {
    let received = ResultRow { word: DeviceWord::Received, ..final_result(4, 4) };
    let (lines, faults) = show(&build(FileKind::Results, &[received, final_result(5, 5)])).unwrap();
    assert_eq!(faults, 0);
    assert_eq!((&lines[1]["state"], lines[1].get("signed")), (&"received".into(), None));
    assert_eq!((&lines[2]["state"], &lines[2]["signed"]["output"]), (&"succeeded".into(), &"fine".into()));
}

#[test]
fn a_result_in_another_devices_name_is_an_error_and_the_next_row_follows() {
    let (lines, faults) = show(&build(FileKind::Results, &[final_result(4, 5), final_result(6, 6)])).unwrap();
    assert_eq!((faults, &lines[1]["line"], &lines[2]["device"]), (1, &"error".into(), &6.into()));
    assert!(lines[1]["error"].as_str().unwrap().contains("that is device 5"), "{}", lines[1]);
}

#[test]
fn status_messages_are_shown_with_their_ids() {
    let message = StatusId::ServerStarted.message(UnixMillis(1), "", "It listens.");
    let (lines, faults) = show(&build(FileKind::Status, &[message])).unwrap();
    assert_eq!((faults, &lines[1]["id"], &lines[1]["text"]), (0, &1000.into(), &"It listens.".into()));
}

#[test]
fn one_bad_block_is_an_error_line_and_takes_no_other_with_it() {
    let rows: Vec<PresenceRow> = (0..4_000).map(|device| presence(device, true)).collect();
    let mut bytes = build(FileKind::PresenceFull, &rows);
    bytes[HEADER_BYTES + BLOCK_HEAD_BYTES + 30] ^= 1;
    let (lines, faults) = show(&bytes).unwrap();
    assert_eq!((faults, &lines[1]["error"]), (1, &"block 0 does not match its checksum".into()));
    assert!(lines.len() > 1_000, "{} lines", lines.len());
}

#[test]
fn a_file_torn_at_any_byte_is_a_fault_and_never_a_panic() {
    let bytes = build(FileKind::Results, &[final_result(4, 4), final_result(5, 5)]);
    for length in 0..bytes.len() {
        match show(&bytes[..length]) {
            Err(failure) => assert!(length < HEADER_BYTES, "{length}: {failure}"),
            Ok((_, faults)) => assert!(faults > 0, "{length}"),
        }
    }
    let longer = [bytes.as_slice(), b"more"].concat();
    let (lines, faults) = show(&longer).unwrap();
    assert_eq!((faults, &lines[3]["error"]), (1, &"4 bytes follow its end".into()));
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let bytes = build(FileKind::PresenceDelta, &[presence(4, true)]);
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x04;
        // The minor version alone may be another one: a newer release's file is read as far as it is understood.
        if at == 8 {
            continue;
        }
        assert!(show(&flipped).map_or(1, |(_, faults)| faults) > 0, "byte {at}");
    }
}

#[test]
fn what_is_no_file_of_ours_says_so() {
    let failure = show(b"PK\x03\x04 something else altogether").unwrap_err();
    assert!(failure.to_string().contains("mark of a BGB file"), "{failure}");
    assert_eq!(show_file(Path::new("/nonexistent.BTS"), &mut |_| Ok(())).unwrap_err().exit(), Exit::NotFound);
}
