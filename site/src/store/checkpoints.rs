//! Moving the write-ahead log into the database beside the writer, so that no order waits for it.
//!
//! SQLite does this by itself with the commit that makes the log too long: 40 MiB of pages in random places, and two waits for the disk, which
//! take a tenth of a second on a good disk and half of one on a busy one. A [`Checkpointer`] does it on another connection, while the
//! writer goes on at the log's end. The log begins anew only when all of it has been moved, which never comes about beside a writer that does not
//! rest; so the writer moves the last few pages itself. Only where nobody runs the checkpointer, or it has fallen behind by far, the writer does
//! all of it, as SQLite would.
//!
//! The store owns no thread: whoever runs [`Checkpointer::run`] has one for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use rusqlite::hooks::Wal;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, MAIN_DB};

use super::Store;
use crate::connection::{self, AUTOCHECKPOINT_PAGES};
use crate::error::SiteError;

/// Pages that the writer moves itself beside those of its own commit, so that the log can begin anew: some milliseconds of work.
const LAST_PAGES: u32 = 1_000;
/// Pages of a log at which the writer waits for the whole of it (400 MB): the checkpointer does not keep up, or a reader has held on to an
/// old state for that long.
const LONG_LOG_PAGES: u32 = 10 * AUTOCHECKPOINT_PAGES;
/// Least time between two rounds: a reader that holds on to an old state makes them futile.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(20);

/// Moves the log of one [`Store`].
pub struct Checkpointer {
    connection: Connection,
    log: Arc<Log>,
    wanted: Receiver<()>,
}

/// What writer and checkpointer know of the log.
#[derive(Default)]
struct Log {
    /// How many of its pages the last round left in the database.
    moved: AtomicU32,
}

/// What a commit has to do for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    WakeCheckpointer,
    MoveTheRest,
}

/// The log has so many pages, had so many before the commit, and so many of those are moved.
fn after_commit(pages: u32, before: u32, moved: u32) -> Then {
    // Nobody can have moved the commit's own pages yet; and of a log that has begun anew nothing is moved, whatever was said last of the former.
    let left = before.checked_sub(moved).unwrap_or(before);
    match pages {
        0..AUTOCHECKPOINT_PAGES => Then::Nothing,
        LONG_LOG_PAGES.. => Then::MoveTheRest,
        _ if left <= LAST_PAGES => Then::MoveTheRest,
        _ => Then::WakeCheckpointer,
    }
}

impl Store {
    /// Keeps the log short where commits are rare: by whoever runs the checkpointer, or at once where there is none.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn tidy_log(&self) -> Result<(), SiteError> {
        match self.wake_checkpointer.as_ref().map(|wake| wake.try_send(())) {
            Some(Ok(()) | Err(TrySendError::Full(()))) => Ok(()),
            Some(Err(TrySendError::Disconnected(()))) | None => self.checkpoint(),
        }
    }

    /// Lets the log be moved beside this store's writing from now on, by whoever runs what is given.
    ///
    /// # Errors
    /// When the database cannot be opened once more.
    pub fn checkpointer(&mut self) -> Result<Checkpointer, SiteError> {
        let connection = connection::open(&self.path)?;
        let (wake, wanted) = sync_channel(1);
        self.wake_checkpointer = Some(wake.clone());
        let log = Arc::new(Log::default());
        let (known, mut last) = (Arc::clone(&log), 0);
        // It takes the place of SQLite's own, which is such a hook as well.
        self.connection.wal_hook(Some(move |wal: &mut Wal, pages| {
            let pages = u32::try_from(pages).unwrap_or(0);
            let mut before = std::mem::replace(&mut last, pages);
            if pages <= before {
                // The log has begun anew.
                known.moved.store(0, Ordering::Relaxed);
                before = 0;
            }
            on_commit(wal, after_commit(pages, before, known.moved.load(Ordering::Relaxed)), &wake);
            // The commit is on disk: an error would only deny it.
            Ok(())
        }))?;
        Ok(Checkpointer { connection, log, wanted })
    }
}

fn on_commit(wal: &mut Wal, then: Then, wake: &SyncSender<()>) {
    match then {
        Then::Nothing => {}
        Then::WakeCheckpointer => match wake.try_send(()) {
            // Full means that it is awake.
            Ok(()) | Err(TrySendError::Full(())) => {}
            Err(TrySendError::Disconnected(())) => move_all(wal),
        },
        Then::MoveTheRest => move_all(wal),
    }
}

fn move_all(wal: &mut Wal) {
    if let Err(error) = wal.checkpoint() {
        tracing::debug!(%error, "the write-ahead log could not be moved with a commit; the next one tries again");
    }
}

impl Checkpointer {
    /// Works until the store is gone.
    pub fn run(self) {
        while let Ok(()) = self.wanted.recv() {
            match self.connection.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::PASSIVE) {
                Ok((_, moved)) => self.log.moved.store(u32::try_from(moved).unwrap_or(0), Ordering::Relaxed),
                // Also when the writer is about it just now.
                Err(error) => {
                    tracing::debug!(%error, "the write-ahead log could not be moved; the writer does it when it is long");
                }
            }
            std::thread::sleep(BETWEEN_ROUNDS);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use bgb_protocol::ids::UnixMillis;

    use super::*;

    #[test]
    fn the_writer_moves_only_the_end_of_a_log_while_somebody_moves_the_rest() {
        assert_eq!(after_commit(AUTOCHECKPOINT_PAGES - 1, 9_000, 0), Then::Nothing);
        assert_eq!(after_commit(AUTOCHECKPOINT_PAGES, 9_500, 0), Then::WakeCheckpointer);
        assert_eq!(after_commit(15_000, 14_500, 12_000), Then::WakeCheckpointer);
        assert_eq!(after_commit(15_000, 14_500, 13_500), Then::MoveTheRest);
        assert_eq!(after_commit(20_000, 12_000, 12_000), Then::MoveTheRest, "all but a large commit");
        assert_eq!(
            after_commit(11_000, 10_500, 12_000),
            Then::WakeCheckpointer,
            "that was of the log before"
        );
        assert_eq!(after_commit(LONG_LOG_PAGES, 99_000, 0), Then::MoveTheRest, "it does not keep up");
    }

    /// A store in `folder`, with a table for bytes.
    fn store(folder: &Path) -> Store {
        let store = Store::create(&folder.join("site.db"), "LAB".parse().unwrap(), UnixMillis(1)).unwrap();
        store.connection.execute_batch("CREATE TABLE bytes (bytes BLOB NOT NULL) STRICT").unwrap();
        store
    }

    /// Commits so many times some 400 pages.
    fn write(store: &Store, times: u32) {
        for _ in 0..times {
            store.connection.execute("INSERT INTO bytes VALUES (zeroblob(1638400))", []).unwrap();
        }
    }

    fn log_pages(folder: &Path) -> u64 {
        std::fs::metadata(folder.join("site.db-wal")).unwrap().len() / 4_120
    }

    #[test]
    fn a_long_log_is_moved_beside_the_writer_and_begins_anew_with_its_next_commits() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(folder.path());
        let checkpointer = store.checkpointer().unwrap();
        let log = Arc::clone(&checkpointer.log);
        let thread = std::thread::spawn(|| checkpointer.run());
        let until = Instant::now() + Duration::from_secs(60);
        // Three times over: each time the log is moved without the writer, which then has only the end of it to move.
        for _ in 0..3 {
            while log.moved.load(Ordering::Relaxed) < AUTOCHECKPOINT_PAGES {
                assert!(Instant::now() < until, "nobody has moved it");
                write(&store, 1);
                std::thread::sleep(Duration::from_millis(2));
            }
            while log.moved.load(Ordering::Relaxed) != 0 {
                assert!(Instant::now() < until, "the log has not begun anew");
                write(&store, 1);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        assert!(log_pages(folder.path()) < u64::from(LONG_LOG_PAGES));
        drop(store);
        thread.join().unwrap();
    }

    #[test]
    fn a_log_that_nobody_moves_is_moved_by_the_writer() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(folder.path());
        drop(store.checkpointer().unwrap());
        write(&store, 75);
        let pages = log_pages(folder.path());
        assert!(pages < u64::from(AUTOCHECKPOINT_PAGES + 1_000), "{pages}");
        store.tidy_log().unwrap();
    }
}
