//! What was wrong with a file's rows: kept for `bad`, counted, and told in a few sentences whatever its amount.

use bgb_protocol::file::{FileBuilder, FileKind, Header};
use bgb_protocol::ids::DeviceId;

use crate::verifier::{BadRow, CheckedBlock, RowFault};

/// Most bytes of bad rows and blocks that are cut out of a file; beyond, the file is set aside as a whole.
const CUT_OUT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Faults that a message names; the rest is a number.
const NAMED_MAX: usize = 3;

/// The faults of one file.
#[derive(Default)]
pub(crate) struct Faults {
    rows: Vec<Vec<u8>>,
    blocks: Vec<u8>,
    bytes: usize,
    unreadable: Tally,
    forged: Tally,
    rows_lost: u64,
}

/// A number and the first few that make it up.
#[derive(Default)]
pub(crate) struct Tally {
    count: u64,
    first: Vec<String>,
}

/// What is cut out of a file whose other rows count.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CutOut {
    /// Nothing was wrong.
    Nothing,
    /// These: a well-formed file of the bad rows, and the bytes of damaged blocks, each where there are any.
    Parts { rows: Option<Vec<u8>>, blocks: Option<Vec<u8>> },
    /// Too much to be cut out.
    WholeFile,
}

/// Where in `bad` what was wrong with a file lies.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    /// All of the file.
    pub(crate) whole: Option<String>,
    /// A file of its bad rows.
    pub(crate) rows: Option<String>,
    /// The bytes of its damaged blocks.
    pub(crate) blocks: Option<String>,
}

impl std::fmt::Display for Aside {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = [&self.whole, &self.rows, &self.blocks].into_iter().flatten().cloned().collect();
        formatter.write_str(&names.join(" and "))
    }
}

impl Aside {
    /// What can be done with it, for whoever reads the message.
    pub(crate) fn advice(&self, header: &Header) -> String {
        let mut sentences = Vec::new();
        if let Some(name) = self.whole.as_ref().or(self.rows.as_ref()) {
            sentences
                .push(format!("Mended, {name} can be put back into the folder of server {}.", header.server));
        }
        if let Some(name) = &self.blocks {
            let whole = match header.kind {
                FileKind::Results => " The whole file stays in done for 48 hours; mended, that one can.",
                FileKind::PresenceFull => " The server's next full online list says the same anew.",
                FileKind::PresenceDelta => {
                    " The server's next full online list mends what was lost with them."
                }
                FileKind::Status => "",
            };
            sentences
                .push(format!("{name} cannot be put back: it has the bytes of damaged blocks alone.{whole}"));
        }
        sentences.join(" ")
    }
}

impl Tally {
    pub(crate) fn add(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < NAMED_MAX {
            self.first.push(what());
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.first.join("; "))?;
        match self.count - self.first.len() as u64 {
            0 => Ok(()),
            more => write!(formatter, "; and {more} more"),
        }
    }
}

impl Faults {
    /// Takes the faults out of a block.
    pub(crate) fn take_from(&mut self, block: &mut CheckedBlock) {
        for BadRow { bytes, fault } in block.bad.drain(..) {
            match fault {
                RowFault::Unreadable(why) => self.unreadable.add(|| why),
                RowFault::Forged(DeviceId(device), why) => {
                    self.forged.add(|| format!("device {device}: {why}"));
                }
            }
            self.bytes += bytes.len();
            if self.bytes <= CUT_OUT_BYTES_MAX {
                self.rows.push(bytes);
            }
        }
        if let Some(damaged) = block.damaged.take() {
            self.unreadable.add(|| damaged.why);
            self.rows_lost += u64::from(damaged.rows_lost);
            self.bytes += damaged.bytes.len();
            if self.bytes <= CUT_OUT_BYTES_MAX {
                self.blocks.extend_from_slice(&damaged.bytes);
            }
        }
    }

    /// What is to be put into `bad`, for the file with this header.
    pub(crate) fn cut_out(&self, header: &Header) -> CutOut {
        if self.is_empty() {
            return CutOut::Nothing;
        }
        if self.bytes > CUT_OUT_BYTES_MAX {
            return CutOut::WholeFile;
        }
        let rows = (!self.rows.is_empty()).then(|| {
            let mut builder = FileBuilder::new();
            self.rows.iter().for_each(|row| builder.push_encoded(row));
            // A few rows of a full online list are no full list: nobody is absent by not being among them.
            let kind = match header.kind {
                FileKind::PresenceFull => FileKind::PresenceDelta,
                kind => kind,
            };
            builder.finish(Header { kind, ..*header }).1
        });
        CutOut::Parts { rows, blocks: (!self.blocks.is_empty()).then(|| self.blocks.clone()) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.unreadable.count == 0 && self.forged.count == 0
    }

    /// Rows that cannot be read, and blocks; why.
    pub(crate) fn unreadable(&self) -> &Tally {
        &self.unreadable
    }

    /// Rows that their device has not signed; why.
    pub(crate) fn forged(&self) -> &Tally {
        &self.forged
    }

    /// Rows that went with damaged blocks.
    pub(crate) fn rows_lost(&self) -> u64 {
        self.rows_lost
    }
}

#[cfg(test)]
mod tests {
    use bgb_protocol::file::Epoch;
    use bgb_protocol::ids::{ServerId, UnixMillis};

    use super::*;
    use crate::verifier::GoodRows;

    fn header() -> Header {
        Header {
            kind: FileKind::Results,
            site: "LAB".parse().unwrap(),
            server: ServerId(1),
            epoch: Epoch { counter: 1, nonce: 2 },
            sequence: 3,
            time: UnixMillis(4),
            rows: 0,
            blocks: 0,
        }
    }

    fn block(rows: usize, bytes_each: usize) -> CheckedBlock {
        let bad_row = |row| BadRow {
            bytes: vec![7; bytes_each],
            fault: RowFault::Forged(DeviceId(row as u32), "no".to_owned()),
        };
        let bad = (0..rows).map(bad_row).collect();
        CheckedBlock {
            first_row: 0,
            rows: 0,
            good: GoodRows::Results(Default::default()),
            bad,
            damaged: None,
        }
    }

    #[test]
    fn many_faults_are_told_in_a_few_words() {
        let mut faults = Faults::default();
        faults.take_from(&mut block(10, 5));
        assert_eq!(faults.forged().to_string(), "device 0: no; device 1: no; device 2: no; and 7 more");
        let CutOut::Parts { rows: Some(file), blocks: None } = faults.cut_out(&header()) else {
            panic!("rows only")
        };
        assert_eq!(Header::decode(&file).unwrap().rows, 10);
    }

    #[test]
    fn what_is_too_much_to_cut_out_is_not_kept_in_memory() {
        let mut faults = Faults::default();
        for _ in 0..300 {
            faults.take_from(&mut block(1, 60_000));
        }
        assert!(faults.rows.iter().map(Vec::len).sum::<usize>() <= CUT_OUT_BYTES_MAX);
        assert_eq!(faults.cut_out(&header()), CutOut::WholeFile);
    }

    #[test]
    fn a_sound_file_leaves_nothing_behind() {
        assert_eq!(Faults::default().cut_out(&header()), CutOut::Nothing);
    }
}
