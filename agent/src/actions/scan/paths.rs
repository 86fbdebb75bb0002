//! The paths that a scan covers, less those that it must not enter.
//!
//! ClamAV's two front ends exclude in different ways, one of them not at all; so exclusions are cut out before: a folder that holds an
//! excluded one is replaced by what else is in it. Symbolic links met on the way are left out, since what they lead to is
//! covered where it lies. It reads folders and nothing else. Law: no path in the list is an excluded one, lies in one, or
//! holds one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Most paths that an engine is handed: with 4,096 of them at an average of 100 bytes, far below what a command line may have
/// (2 MiB, execve(2)).
const PATHS_MAX: usize = 4_096;

/// Most bytes of them: half of what a command line may have.
const PATH_BYTES_MAX: usize = 1024 * 1024;

/// `wanted` without what is `excluded`. Paths that do not exist are left out.
///
/// # Errors
/// When that would be more paths than can be handed on.
pub(super) fn without(wanted: &[PathBuf], excluded: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    // Links are followed in what people have named, so that both sides are the real places.
    let real = |paths: &[PathBuf]| -> BTreeSet<PathBuf> {
        paths.iter().filter_map(|path| path.canonicalize().ok()).collect()
    };
    let (wanted, excluded) = (real(wanted), real(excluded));
    let mut covered = Vec::new();
    for path in &wanted {
        let lies_in_another = wanted.iter().any(|other| other != path && path.starts_with(other));
        if !lies_in_another {
            cut(path, &excluded, &mut covered)?;
        }
    }
    Ok(covered)
}

fn cut(path: &Path, excluded: &BTreeSet<PathBuf>, covered: &mut Vec<PathBuf>) -> Result<(), String> {
    if excluded.iter().any(|out| path.starts_with(out)) {
        return Ok(());
    }
    if !excluded.iter().any(|out| out.starts_with(path)) {
        covered.push(path.to_owned());
        let bytes: usize = covered.iter().map(|path| path.as_os_str().len() + 1).sum();
        if covered.len() > PATHS_MAX || bytes > PATH_BYTES_MAX {
            return Err(format!(
                "cutting the exclusions out leaves more than {PATHS_MAX} paths to scan; exclude whole folders instead"
            ));
        }
        return Ok(());
    }
    let entries =
        std::fs::read_dir(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    let mut below = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        // One that went away meanwhile is not there to be scanned.
        if entry.file_type().is_ok_and(|kind| kind.is_dir() || kind.is_file()) {
            below.push(entry.path());
        }
    }
    below.sort_unstable();
    below.iter().try_for_each(|path| cut(path, excluded, covered))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with the files `a/1`, `a/b/2`, `a/b/c/3` and `d/4`, and a link `a/link` to `d`.
    fn tree() -> (tempfile::TempDir, impl Fn(&[&str]) -> Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/b/c")).unwrap();
        std::fs::create_dir(root.join("d")).unwrap();
        for file in ["a/1", "a/b/2", "a/b/c/3", "d/4"] {
            std::fs::write(root.join(file), file).unwrap();
        }
        std::os::unix::fs::symlink(root.join("d"), root.join("a/link")).unwrap();
        (folder, move |paths: &[&str]| paths.iter().map(|path| root.join(path)).collect())
    }

    #[test]
    fn exclusions_are_cut_out_and_the_rest_is_covered() {
        let (_folder, at) = tree();
        assert_eq!(without(&at(&["a"]), &at(&["a/b/c"])).unwrap(), at(&["a/1", "a/b/2"]));
        assert_eq!(without(&at(&["a", "d"]), &at(&["a/b"])).unwrap(), at(&["a/1", "d"]));
        assert_eq!(without(&at(&["a/b"]), &at(&["a"])).unwrap(), at(&[]));
        assert_eq!(without(&at(&["a", "a/b", "missing"]), &at(&["nowhere"])).unwrap(), at(&["a"]));
    }

    #[test]
    fn a_link_does_not_lead_past_an_exclusion() {
        let (_folder, at) = tree();
        assert_eq!(without(&at(&["a", "a/link"]), &at(&["d"])).unwrap(), at(&["a"]));
        assert_eq!(without(&at(&["d"]), &at(&["a/link"])).unwrap(), at(&[]));
        assert_eq!(without(&at(&["a"]), &at(&["a/1"])).unwrap(), at(&["a/b"]), "the link is not followed");
    }

    #[test]
    fn more_paths_than_can_be_handed_on_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..=PATHS_MAX + 1 {
            std::fs::write(folder.path().join(number.to_string()), "").unwrap();
        }
        let root = folder.path().to_owned();
        let error = without(std::slice::from_ref(&root), &[root.join("0")]).unwrap_err();
        assert!(error.contains("exclude whole folders"), "{error}");
    }
}
