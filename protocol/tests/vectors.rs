//! Test vectors: what this release writes, byte by byte, and that it reads what each supported release wrote.
//!
//! `vectors/1.0.json` has the bytes of every message, statement, envelope, proof, file and queue row beside what they say, for
//! those who write another agent (`docs/protocol.md`; `vectors/check.py` does it from that document alone). A release's file is
//! never changed once it is out. `BGB_BLESS=1` writes the present release's file anew; without it nothing is written.
//!
//! Ed25519 is deterministic, so those signatures are made again and compared. ECDSA is not: the device's signatures and the
//! certificates are recorded in the file, and verified.
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

#[path = "vectors/certificates.rs"]
mod certificates;
#[path = "vectors/messages.rs"]
mod messages;
#[path = "vectors/reading.rs"]
mod reading;
#[path = "vectors/samples.rs"]
mod samples;

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

/// The release whose vectors this source writes.
const PRESENT: &str = "1.0";

/// Every release whose vectors are read: the present one, and one back.
const RELEASES: [&str; 1] = [PRESENT];

fn path(release: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(format!("{release}.json"))
}

fn stored(release: &str) -> Option<Value> {
    Some(serde_json::from_slice(&fs::read(path(release)).ok()?).unwrap())
}

fn is_blessing() -> bool {
    std::env::var_os("BGB_BLESS").is_some_and(|value| value == "1")
}

#[test]
fn this_release_writes_the_bytes_that_its_vectors_say() {
    let recorded = stored(PRESENT);
    let document = samples::document(recorded.as_ref(), is_blessing());
    if is_blessing() {
        let text = serde_json::to_string_pretty(&document).unwrap();
        fs::write(path(PRESENT), text + "\n").unwrap();
        return;
    }
    let recorded = recorded.expect("the vectors of the present release are in the tree");
    for (section, ours) in document.as_object().unwrap() {
        let theirs = &recorded[section];
        match (ours, theirs) {
            (Value::Array(ours), Value::Array(theirs)) => {
                for (ours, theirs) in ours.iter().zip(theirs) {
                    assert_eq!(ours, theirs, "in {section}: {}", ours["name"]);
                }
                assert_eq!(ours.len(), theirs.len(), "{section}");
            }
            _ => assert_eq!(ours, theirs, "{section}"),
        }
    }
    assert_eq!(document.as_object().unwrap().len(), recorded.as_object().unwrap().len());
}

#[test]
fn the_vectors_of_every_supported_release_are_read_as_they_say() {
    for release in RELEASES {
        let document =
            stored(release).unwrap_or_else(|| panic!("the vectors of release {release} are in the tree"));
        reading::check(&document);
    }
}

#[test]
fn every_kind_of_message_has_a_vector() {
    let document = stored(PRESENT).expect("the vectors of the present release are in the tree");
    let messages = document["messages"].as_array().unwrap();
    for kind in (0x0001..=0x0009).chain(0x0101..=0x0109) {
        // Blobs and renewal have their numbers already, and no message yet.
        if matches!(kind, 0x0007 | 0x0008 | 0x0107) {
            continue;
        }
        assert!(messages.iter().any(|message| message["type"] == kind), "{kind:#06x}");
    }
}
