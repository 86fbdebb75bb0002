//! Reads blocks' rows and verifies results' signatures, ahead of the writer.
//!
//! Blocks go in, and come out in the order in which they went in: each row read, held to its limits and, when it is a device's final
//! word, verified against the public key of that device's certificate. In production a pool of threads does it; the simulator does it on
//! the spot. It owns the threads and the queue between, which is bounded. It must not write anything, and it does not know what becomes
//! of a row. Law: a result leaves here as genuine only if row, statement and key name the same device and the signature holds.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bgb_protocol::file::presence::PresenceRow;
use bgb_protocol::file::{BlockHead, FileError, FileKind, check_block, decode_row, row_bytes};
use bgb_protocol::ids::{DeviceId, KeyId, SiteCode};
use bgb_protocol::status::StatusMessage;
use bgb_site::SiteError;
use bgb_site::store::VerifiedRow;
use crossbeam_channel::{Receiver, Sender, bounded};
use serde::de::DeserializeOwned;

use crate::ingest::block_reader::RawBlock;

mod rows;

/// Blocks between the reader and the writer: 8 MiB of the size that servers write, 64 MiB of the largest.
const BLOCKS_AHEAD_MAX: usize = 64;
/// Rows of a block that room is made for at once: what a block of small rows has.
const ROWS_EXPECTED: u32 = 4_096;

/// Where devices' public keys are found: those of all their certificates, revoked ones included.
pub trait KeyBook: Send {
    /// The public key `key` of `device`, as a 65-byte point; `None` when no certificate of the device has it.
    ///
    /// # Errors
    /// When the database cannot be read.
    fn public_key(&mut self, device: DeviceId, key: KeyId) -> Result<Option<Vec<u8>>, SiteError>;
}

/// Opens a key book for one thread of the pool.
pub type OpenKeyBook = Arc<dyn Fn() -> Result<Box<dyn KeyBook>, SiteError> + Send + Sync>;

/// A block with its rows read.
#[derive(Debug)]
pub(crate) struct CheckedBlock {
    /// Rows of the file before this block.
    pub(crate) first_row: u64,
    /// Rows of this block, bad ones included.
    pub(crate) rows: u32,
    pub(crate) good: GoodRows,
    pub(crate) bad: Vec<BadRow>,
    /// The whole block, when its checksum does not match or the rest of its rows cannot be found.
    pub(crate) damaged: Option<DamagedBlock>,
}

/// Rows that can be applied, each with its place in the block.
#[derive(Debug)]
pub(crate) enum GoodRows {
    Presence(VecDeque<(u32, PresenceRow)>),
    Results(VecDeque<(u32, VerifiedRow)>),
    Status(VecDeque<(u32, StatusMessage)>),
}

/// A row that must not be applied.
#[derive(Debug)]
pub(crate) struct BadRow {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fault: RowFault,
}

/// Why a row must not be applied.
#[derive(Debug)]
pub(crate) enum RowFault {
    /// It cannot be read, or is over a limit.
    Unreadable(String),
    /// It says what its device has not signed.
    Forged(DeviceId, String),
}

/// A block that must not be applied as a whole.
#[derive(Debug)]
pub(crate) struct DamagedBlock {
    pub(crate) bytes: Vec<u8>,
    /// What is wrong with it.
    pub(crate) why: String,
    /// Rows that were lost with it.
    pub(crate) rows_lost: u32,
}

type Outcome = Result<CheckedBlock, SiteError>;

/// Checks blocks, in their order.
pub struct Verifier {
    engine: Engine,
    submitted: u64,
    taken: u64,
    done: BTreeMap<u64, Outcome>,
}

enum Engine {
    Inline(Box<dyn KeyBook>),
    Pool { jobs: Sender<Job>, outcomes: Receiver<(u64, Outcome)> },
}

struct Job {
    ticket: u64,
    site: SiteCode,
    kind: FileKind,
    block: RawBlock,
}

impl Verifier {
    /// One that checks each block when it is submitted.
    #[must_use]
    pub fn inline(keys: Box<dyn KeyBook>) -> Self {
        Self::with(Engine::Inline(keys))
    }

    /// One with a pool of `threads`; `wake` is called whenever a block is done. The threads end when the verifier is dropped.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn pool(
        threads: usize,
        open_keys: &OpenKeyBook,
        wake: &Arc<dyn Fn() + Send + Sync>,
    ) -> std::io::Result<Self> {
        let (jobs_in, jobs) = bounded::<Job>(BLOCKS_AHEAD_MAX);
        let (outcomes_in, outcomes) = bounded(BLOCKS_AHEAD_MAX);
        for number in 0..threads.max(1) {
            let worker = Worker {
                jobs: jobs.clone(),
                outcomes: outcomes_in.clone(),
                open_keys: Arc::clone(open_keys),
                wake: Arc::clone(wake),
            };
            std::thread::Builder::new().name(format!("verifier-{number}")).spawn(move || worker.run())?;
        }
        Ok(Self::with(Engine::Pool { jobs: jobs_in, outcomes }))
    }

    fn with(engine: Engine) -> Self {
        Self { engine, submitted: 0, taken: 0, done: BTreeMap::new() }
    }

    /// Whether another block may be submitted.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight() < BLOCKS_AHEAD_MAX
    }

    /// Blocks that were submitted and not yet taken.
    pub(crate) fn in_flight(&self) -> usize {
        (self.submitted - self.taken) as usize
    }

    /// Hands a block in. Only while there [is room](Self::has_room).
    pub(crate) fn submit(&mut self, site: SiteCode, kind: FileKind, block: RawBlock) {
        let mut job = Job { ticket: self.submitted, site, kind, block };
        self.submitted += 1;
        match &mut self.engine {
            Engine::Inline(keys) => {
                let (ticket, outcome) = (job.ticket, job.check(keys.as_mut()));
                self.done.insert(ticket, outcome);
            }
            Engine::Pool { jobs, .. } => {
                jobs.send(job).expect("the pool's threads live as long as this sender");
            }
        }
    }

    /// The next block, if it is done.
    pub(crate) fn take(&mut self) -> Option<Outcome> {
        if let Engine::Pool { outcomes, .. } = &self.engine {
            self.done.extend(outcomes.try_iter().filter(|(ticket, _)| *ticket >= self.taken));
        }
        let outcome = self.done.remove(&self.taken)?;
        self.taken += 1;
        Some(outcome)
    }

    /// Forgets all blocks that were submitted: their file is given up.
    pub(crate) fn forget(&mut self) {
        self.taken = self.submitted;
        self.done.clear();
    }
}

struct Worker {
    jobs: Receiver<Job>,
    outcomes: Sender<(u64, Outcome)>,
    open_keys: OpenKeyBook,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Worker {
    fn run(&self) {
        let mut keys: Option<Box<dyn KeyBook>> = None;
        for job in &self.jobs {
            let opened = match keys.take() {
                Some(keys) => Ok(keys),
                None => (self.open_keys)(),
            };
            let ticket = job.ticket;
            let outcome = opened.and_then(|mut book| {
                let outcome = job.check_whatever_comes(book.as_mut())?;
                keys = Some(book);
                Ok(outcome)
            });
            if self.outcomes.send((ticket, outcome)).is_err() {
                return;
            }
            (self.wake)();
        }
    }
}

impl Job {
    /// As [`check`](Self::check); a block at which the check panics is a damaged one. The ingest waits for every block that went in: were
    /// none to come out, it would wait for ever, and the thread be gone with it.
    fn check_whatever_comes(mut self, keys: &mut dyn KeyBook) -> Outcome {
        // What was half done when it panicked is dropped: the rows with it, and the key book holds a connection that only reads.
        let checked = std::panic::catch_unwind(AssertUnwindSafe(|| self.check(keys)));
        checked.unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<&str>().copied();
            let said = said
                .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("no more is known");
            let why = format!("block {} cannot be checked: {said}", self.block.head.number);
            tracing::error!(why, "a panic was caught; this is an error in this program");
            Ok(self.damaged(why))
        })
    }

    /// The block as one of which no row can be used.
    fn damaged(self, why: String) -> CheckedBlock {
        let RawBlock { head, first_row, bytes } = self.block;
        let (rows, damaged) = (head.rows, Some(DamagedBlock { bytes, why, rows_lost: head.rows }));
        CheckedBlock { first_row, rows, good: GoodRows::Presence(VecDeque::new()), bad: Vec::new(), damaged }
    }

    fn check(&mut self, keys: &mut dyn KeyBook) -> Outcome {
        let Self { site, kind, block, .. } = self;
        let (site, kind) = (*site, *kind);
        let mut rows = BlockRows { head: block.head, bad: Vec::new(), lost: None };
        let good = match check_block(&block.bytes, block.head) {
            Ok((_, body)) => match kind {
                FileKind::PresenceFull | FileKind::PresenceDelta => {
                    GoodRows::Presence(
                        rows.read("presence row", body, |row| Ok(rows::check_presence(kind, row)))?,
                    )
                }
                FileKind::Results => GoodRows::Results(
                    rows.read("result row", body, |row| rows::check_result(site, row, keys))?,
                ),
                FileKind::Status => GoodRows::Status(
                    rows.read("status message", body, |message| Ok(rows::check_status(message)))?,
                ),
            },
            Err(error) => {
                rows.lost = Some((error, block.head.rows));
                GoodRows::Presence(VecDeque::new())
            }
        };
        let damaged = rows.lost.map(|(error, rows_lost)| DamagedBlock {
            bytes: std::mem::take(&mut block.bytes),
            why: error.to_string(),
            rows_lost,
        });
        Ok(CheckedBlock { first_row: block.first_row, rows: block.head.rows, good, bad: rows.bad, damaged })
    }
}

/// The rows of a block whose checksum holds.
struct BlockRows {
    head: BlockHead,
    bad: Vec<BadRow>,
    /// Why the rest of the rows cannot be found, and how many there are of them.
    lost: Option<(FileError, u32)>,
}

impl BlockRows {
    /// Reads each row and asks `accept`, which says what is to be applied, or why the row is bad.
    fn read<R: DeserializeOwned, G>(
        &mut self,
        what: &'static str,
        body: &[u8],
        mut accept: impl FnMut(R) -> Result<Result<G, RowFault>, SiteError>,
    ) -> Result<VecDeque<(u32, G)>, SiteError> {
        let mut good = VecDeque::with_capacity(self.head.rows.min(ROWS_EXPECTED) as usize);
        for (row, bytes) in (0..).zip(row_bytes(self.head, body)) {
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.lost = Some((error, self.head.rows - row));
                    break;
                }
            };
            let accepted = match decode_row(what, self.head, row, bytes) {
                Ok(read) => accept(read)?,
                Err(error) => Err(RowFault::Unreadable(error.to_string())),
            };
            match accepted {
                Ok(accepted) => good.push_back((row, accepted)),
                Err(fault) => self.bad.push(BadRow { bytes: bytes.to_vec(), fault }),
            }
        }
        Ok(good)
    }
}

#[cfg(test)]
mod tests;
