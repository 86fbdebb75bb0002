//! Every input of the corpora goes through its target without the fuzzer: those that somebody chose, and have a telling name, also with
//! changes; those that the fuzzer chose, and are named by their hash, as they are.
#![allow(clippy::unwrap_used)] // A test that unwraps fails with the line that did it.

use std::fs;
use std::path::Path;

/// Bytes of an input that are changed, one after the other, in the replay: a poor fuzzer's work, where there is no other.
const CHANGES: [u8; 3] = [0x01, 0x80, 0xff];
/// Places of an input that are changed, spread over it.
const PLACES: usize = 24;

#[test]
fn every_input_of_every_corpus_keeps_the_laws() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, run) in bgb_fuzz::TARGETS {
        let mut inputs: Vec<_> =
            fs::read_dir(corpora.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "the target {name} has no corpus");
        for path in &inputs {
            let input = fs::read(path).unwrap();
            run(&input);
            if is_hash(path) {
                continue;
            }
            for place in (0..input.len()).step_by(input.len().div_ceil(PLACES).max(1)) {
                for change in CHANGES {
                    let mut changed = input.clone();
                    changed[place] ^= change;
                    run(&changed);
                }
                run(&input[..place]);
            }
        }
        println!("{name}: {} inputs", inputs.len());
    }
}

/// Whether a file has the name that the fuzzer gives: a SHA-1.
fn is_hash(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name.len() == 40 && name.bytes().all(|digit| digit.is_ascii_hexdigit())
}
