//! The paths that a scan covers, and those that it must not enter.
//!
//! clamscan is told what to leave out, by expressions that match an excluded path and what lies in it and nothing else. Other
//! engines are not told: for them exclusions are cut out before, so that a folder that holds an excluded one is replaced
//! by what else is in it. Symbolic links met on the way are left out, since what they lead to is covered where it
//! lies. It reads folders and nothing else.
//!
//! Laws: an excluded path is taken as it is written, and no link is followed for it: whoever may write where it lies could else
//! point it at another place and have that left out. No path that is handed on is an excluded one or lies in one, and none that was
//! cut holds one. What cannot be read is left out and told.

use std::path::{Path, PathBuf};

/// Most paths that an engine is handed: with 4,096 of them at an average of 100 bytes, far below what a command line may have
/// (2 MiB, execve(2)).
const PATHS_MAX: usize = 4_096;

/// Most bytes of them: half of what a command line may have.
const PATH_BYTES_MAX: usize = 1024 * 1024;

/// What is left when exclusions were cut out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Covered {
    pub(super) paths: Vec<PathBuf>,
    /// Folders that had to be looked into and could not be.
    pub(super) skipped: Vec<PathBuf>,
}

/// Where scanning begins: the real places of `wanted`, the outermost only, less those that lie in an exclusion. Paths that do not
/// exist are left out.
pub(super) fn roots(wanted: &[PathBuf], excluded: &[PathBuf]) -> Vec<PathBuf> {
    let is_excluded = |path: &Path| excluded.iter().any(|out| path.starts_with(out));
    let named = wanted.iter().filter(|path| !is_excluded(path));
    let mut real: Vec<PathBuf> = named.filter_map(|path| path.canonicalize().ok()).collect();
    real.sort_unstable();
    real.dedup();
    let lies_in_another = |path: &Path| real.iter().any(|other| other != path && path.starts_with(other));
    real.iter().filter(|path| !lies_in_another(path) && !is_excluded(path)).cloned().collect()
}

/// `roots` without what is `excluded`.
///
/// # Errors
/// When that would be more paths than can be handed on.
pub(super) fn without(roots: &[PathBuf], excluded: &[PathBuf]) -> Result<Covered, String> {
    // One that is not there needs no cutting.
    let there: Vec<&Path> =
        excluded.iter().map(PathBuf::as_path).filter(|path| path.symlink_metadata().is_ok()).collect();
    let mut covered = Covered::default();
    let mut bytes = 0;
    roots.iter().try_for_each(|path| cut(path, &there, &mut covered, &mut bytes))?;
    Ok(covered)
}

/// An extended regular expression (POSIX) that matches a path and all that lies in it.
pub(super) fn expression(path: &Path) -> String {
    let plain: PathBuf = path.components().collect();
    let mut expression = String::from("^");
    for letter in plain.to_string_lossy().chars() {
        if r"\.[]{}()*+?^$|".contains(letter) {
            expression.push('\\');
        }
        expression.push(letter);
    }
    expression + "(/|$)"
}

fn cut(path: &Path, excluded: &[&Path], covered: &mut Covered, bytes: &mut usize) -> Result<(), String> {
    if excluded.iter().any(|out| path.starts_with(out)) {
        return Ok(());
    }
    if !excluded.iter().any(|out| out.starts_with(path)) {
        covered.paths.push(path.to_owned());
        *bytes += path.as_os_str().len() + 1;
        if covered.paths.len() > PATHS_MAX || *bytes > PATH_BYTES_MAX {
            return Err(format!(
                "cutting the exclusions out leaves more than {PATHS_MAX} paths to scan; exclude whole folders instead"
            ));
        }
        return Ok(());
    }
    let Ok(entries) = std::fs::read_dir(path) else {
        covered.skipped.push(path.to_owned());
        return Ok(());
    };
    let mut below = Vec::new();
    for entry in entries {
        let Ok(entry) = entry else {
            covered.skipped.push(path.to_owned());
            break;
        };
        // One that went away meanwhile is not there to be scanned.
        if entry.file_type().is_ok_and(|kind| kind.is_dir() || kind.is_file()) {
            below.push(entry.path());
        }
    }
    below.sort_unstable();
    below.iter().try_for_each(|path| cut(path, excluded, covered, bytes))
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

    fn cut_out(wanted: &[PathBuf], excluded: &[PathBuf]) -> Vec<PathBuf> {
        without(&roots(wanted, excluded), excluded).unwrap().paths
    }

    #[test]
    fn exclusions_are_cut_out_and_the_rest_is_covered() {
        let (_folder, at) = tree();
        assert_eq!(cut_out(&at(&["a"]), &at(&["a/b/c"])), at(&["a/1", "a/b/2"]));
        assert_eq!(cut_out(&at(&["a", "d"]), &at(&["a/b/"])), at(&["a/1", "d"]));
        assert_eq!(cut_out(&at(&["a/b"]), &at(&["a"])), at(&[]));
        assert_eq!(cut_out(&at(&["a", "a/b", "missing"]), &at(&["a/nowhere"])), at(&["a"]));
    }

    #[test]
    fn a_link_leads_neither_past_an_exclusion_nor_an_exclusion_elsewhere() {
        let (_folder, at) = tree();
        assert_eq!(cut_out(&at(&["a", "a/link"]), &at(&["d"])), at(&["a"]));
        assert_eq!(cut_out(&at(&["d"]), &at(&["a/link"])), at(&["d"]), "whoever made the link hides nothing");
        assert_eq!(cut_out(&at(&["a"]), &at(&["a/link/4"])), at(&["a/1", "a/b"]));
        assert_eq!(cut_out(&at(&["a"]), &at(&["a/1"])), at(&["a/b"]), "the link is not followed");
    }

    #[test]
    fn a_folder_that_goes_away_is_skipped_and_told() {
        let (_folder, at) = tree();
        let (gone, excluded) = (at(&["gone"]), at(&["gone/x"]));
        let mut covered = Covered::default();
        cut(&gone[0], &[&excluded[0]], &mut covered, &mut 0).unwrap();
        assert_eq!(covered, Covered { paths: Vec::new(), skipped: gone });
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

    #[test]
    fn an_expression_says_a_path_and_nothing_else() {
        assert_eq!(expression(Path::new("/srv//a.b (c)/")), r"^/srv/a\.b \(c\)(/|$)");
    }
}
