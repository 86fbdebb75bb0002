//! A small disk in memory, that can be filled to its last page and emptied again.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use crate::ground;

/// Written at a time: few calls for the most of it, and then the kernel's pages one by one.
const CHUNKS: [usize; 2] = [256 * 1024, 4096];

/// See the module.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    ballast: PathBuf,
}

impl SmallDisk {
    /// Puts a disk of so many MiB under a folder, and keeps what is in it.
    pub(crate) fn under(folder: &Path, mib: u32) -> Self {
        let (aside, at) = (folder.with_extension("aside"), folder.to_str().unwrap());
        ground::run("cp", &["-a", at, aside.to_str().unwrap()]).unwrap();
        ground::run("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m"), "faults", at]).unwrap();
        // With owner and mode of the folder itself.
        ground::run("cp", &["-a", &format!("{}/.", aside.display()), at]).unwrap();
        fs::remove_dir_all(&aside).unwrap();
        Self { ballast: folder.join("ballast") }
    }

    /// Leaves no room on it.
    pub(crate) fn fill(&self) {
        let mut ballast = File::create(&self.ballast).unwrap();
        for length in CHUNKS {
            let chunk = vec![0; length];
            loop {
                match ballast.write(&chunk) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{}: {error}", self.ballast.display()),
                }
            }
        }
    }

    /// Makes room again.
    pub(crate) fn empty(&self) {
        fs::remove_file(&self.ballast).unwrap();
    }
}
