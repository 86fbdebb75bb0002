//! A process's wall clock, which can be moved while it runs: by libfaketime, from a file that it reads each time.
//!
//! Only the wall clock is moved. Monotonic clocks stay the machine's, as they do when somebody sets a machine's time.

use std::fs;
use std::path::PathBuf;

use crate::ground;

/// See the module.
#[derive(Debug)]
pub(crate) struct Clock {
    file: PathBuf,
}

impl Clock {
    /// A clock that goes right, kept in a file.
    pub(crate) fn new(file: PathBuf) -> Self {
        let clock = Self { file };
        clock.move_by(0);
        clock
    }

    /// Lets it be so many seconds off.
    pub(crate) fn move_by(&self, seconds: i64) {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n")).unwrap();
        fs::rename(&new, &self.file).unwrap();
    }

    /// What a process needs in its environment to have this clock.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        [
            ("LD_PRELOAD", ground::faketime().expect("the ground has it")),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }
}
