//! The mistakes that test the simulator (`plants/`, run by `make sim-plants`): each patch still applies to the tree as it is.
//!
//! A patch that no longer fits would be found only by whoever runs them all. Here each hunk is looked for in its file: what it takes away
//! and what stands around that must be there once, so that nobody's tool can put it in another place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Mistakes that there are at least.
const PLANTS_MIN: usize = 25;

/// Parts of the product of which each has a mistake at least, by how the names of their files begin.
const PARTS: [(&str, &str); 9] = [
    ("spool", "src/spool"),
    ("courier", "src/courier"),
    ("directory", "src/directory"),
    ("journal", "agent/src/journal"),
    ("ingest", "manager/src/ingest"),
    ("broker", "src/broker"),
    ("hub", "hub/src/hub"),
    ("wheel", "hub/src/wheel"),
    ("tunnel", "http/src/tunnel"),
];

/// A patch: the text above it, and for each file its hunks.
struct Plant {
    name: String,
    text: String,
    files: Vec<(String, Vec<Hunk>)>,
}

/// A hunk: how many lines it says that it has before and after, the lines before, and how many there are after.
#[derive(Default)]
struct Hunk {
    said: (usize, usize),
    before: String,
    lines_after: usize,
}

#[test]
fn every_plant_applies_to_the_tree_as_it_is() {
    for plant in plants() {
        for (file, hunks) in &plant.files {
            let source = std::fs::read_to_string(root().join(file))
                .unwrap_or_else(|error| panic!("{}: {file} cannot be read: {error}", plant.name));
            for Hunk { said, before: hunk, lines_after } in hunks {
                let lines = (hunk.lines().count(), *lines_after);
                assert_eq!(
                    lines, *said,
                    "{}: a hunk of {file} is longer or shorter than it says:\n{hunk}",
                    plant.name
                );
                // Whole lines: what begins in the middle of one is another place.
                let places = format!("\n{source}").matches(&format!("\n{hunk}")).count();
                assert_eq!(
                    places, 1,
                    "{}: is to be found once in {file}, so that it can be replaced:\n{hunk}",
                    plant.name
                );
            }
        }
    }
}

#[test]
fn there_are_plants_for_every_part_and_each_says_what_it_is() {
    let plants = plants();
    assert!(plants.len() >= PLANTS_MIN, "{} plants are there", plants.len());
    let files: BTreeSet<_> =
        plants.iter().flat_map(|plant| &plant.files).map(|(file, _)| file.as_str()).collect();
    for (part, beginning) in PARTS {
        assert!(files.iter().any(|file| file.starts_with(beginning)), "no mistake is planted in the {part}");
    }
    for plant in &plants {
        assert!(plant.text.len() > 40, "{}: says above its diff what it is", plant.name);
        assert!(!plant.files.is_empty(), "{}: changes a file", plant.name);
        for (file, _) in &plant.files {
            assert!(
                !file.starts_with("tests/"),
                "{}: is a mistake in the product, not in {file}",
                plant.name
            );
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All patches, in the order of their names.
fn plants() -> Vec<Plant> {
    let folder = root().join("tests/sim/plants");
    let entries = std::fs::read_dir(folder).expect("the plants are part of the tree");
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "patch")).collect();
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

/// Takes a unified diff apart.
fn read(path: &Path) -> Plant {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let patch = std::fs::read_to_string(path).expect("a patch is text");
    let mut plant = Plant { name, text: String::new(), files: Vec::new() };
    for line in patch.lines() {
        let Some((_, hunks)) = plant.files.last_mut() else {
            match line.strip_prefix("--- a/") {
                Some(file) => plant.files.push((file.to_owned(), Vec::new())),
                None => plant.text += line,
            }
            continue;
        };
        if let Some(file) = line.strip_prefix("--- a/") {
            plant.files.push((file.to_owned(), Vec::new()));
        } else if line.starts_with("@@ ") {
            let mut lengths = line.split(',').skip(1).filter_map(|rest| rest.split(' ').next()?.parse().ok());
            let mut length = || lengths.next().expect("a hunk says how long it is, as in @@ -1,5 +1,6 @@");
            hunks.push(Hunk { said: (length(), length()), ..Hunk::default() });
        } else if let Some(hunk) = hunks.last_mut() {
            if let Some(before) = line.strip_prefix([' ', '-']) {
                hunk.before += before;
                hunk.before += "\n";
            }
            hunk.lines_after += usize::from(line.starts_with([' ', '+']));
        }
    }
    plant
}
