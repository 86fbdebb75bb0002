//! The queue as a notification server reads it: with read-only rights, also while the manager is down.
//!
//! A server reads every row that is still valid at its start ([`QueueReader::all_valid`]), then follows
//! ([`QueueReader::rows_after`]) whenever the bell or [`QueueReader::data_version`] says that something was written. It keeps its
//! place in memory only. When the generation is another one, or the file was replaced, it reads everything anew.
//!
//! Law: a reader has the log and the index that a writer would find beside its database. A restore that was killed between its renames leaves
//! the former database with other ones; whatever is committed then goes past those that are held open, and no data version tells.

use std::cell::{Ref, RefCell};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bgb_protocol::head::SignedHead;
use bgb_protocol::ids::{Generation, ServerId, UnixMillis};
use bgb_protocol::queue::QueueItem;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::connection;
use crate::error::SiteError;
use crate::folder::beside;
use crate::store::columns::{integer, millis, time, unsigned};

/// Rows that are read at a time when all are read.
const PAGE_ROWS: usize = 1_000;
/// Attempts to open a database whose files change in the middle of it: one that makes the log, one for each rename of a restore, and one when
/// all of that is over. More is somebody's mistake.
const OPEN_ATTEMPTS: u32 = 5;

/// A row of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRow {
    /// Its place: rises with every row of the generation, with gaps, and is never used again.
    pub sequence: u64,
    /// Bytes of a [`bgb_protocol::queue::QueueItem`].
    pub item_bytes: Vec<u8>,
    /// Until when it is to be heeded.
    pub valid_until: UnixMillis,
}

/// All that is valid at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSnapshot {
    /// The database's generation.
    pub generation: Generation,
    /// From where to follow: the highest sequence of the queue at that moment, whether its row is still there or not.
    pub sequence: u64,
    /// The rows, in the order of their sequence.
    pub rows: Vec<QueueRow>,
}

/// A read-only connection to the queue.
pub struct QueueReader {
    /// None once it was found to have another log than the database.
    connection: RefCell<Option<Connection>>,
    path: PathBuf,
    /// What was opened.
    files: DatabaseFiles,
}

/// Device and inode of a file.
type FileIdentity = (u64, u64);

/// The files of a database.
#[derive(Clone, Copy, PartialEq, Eq)]
struct DatabaseFiles {
    database: FileIdentity,
    /// The write-ahead log and its index, where they are there.
    sides: [Option<FileIdentity>; 2],
}

impl QueueReader {
    /// Opens the site database at `path`.
    ///
    /// # Errors
    /// When it is missing, not a site's, of another schema, or cannot be read.
    pub fn open(path: &Path) -> Result<Self, SiteError> {
        for _ in 0..OPEN_ATTEMPTS {
            let files = DatabaseFiles::at(path)?;
            let connection = connection::open_read_only(path)?;
            // The same before and after: these are the ones that were opened, and opening made none of them.
            if DatabaseFiles::at(path)? == files {
                return Ok(Self { connection: Some(connection).into(), path: path.to_owned(), files });
            }
        }
        Err(SiteError::Unopenable {
            path: path.to_owned(),
            detail: "other files are put in its place again and again".to_owned(),
        })
    }

    /// The database that is read.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which life of the database this is.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn generation(&self) -> Result<Generation, SiteError> {
        generation(&*self.connection()?)
    }

    /// A number that changes when somebody has committed to the database since it was asked for last; it says nothing else.
    /// Reads no row: a few microseconds. While the manager is down it may change without a commit: a reader that may not write the
    /// log's index cannot be sure then.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn data_version(&self) -> Result<i64, SiteError> {
        Ok(self.connection()?.pragma_query_value(None, "data_version", |row| row.get(0))?)
    }

    /// Whether the path leads to other files now, whatever links are on its way: a restore. Open it anew then. A reader whose database has
    /// another log now stays replaced, and reads nothing more.
    ///
    /// # Errors
    /// When nothing is there, or it cannot be looked at.
    pub fn is_replaced(&self) -> Result<bool, SiteError> {
        let found = DatabaseFiles::at(&self.path)?;
        if found.database == self.files.database && found.sides != self.files.sides {
            // SQLite has one index for all connections of a process to a file: while this one is open, another would get its index again.
            drop(self.connection.take());
        }
        Ok(found != self.files || self.connection.borrow().is_none())
    }

    /// Rows with a higher sequence than `sequence` that are valid at `now` and for `server`: at most `limit`, in their order.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn rows_after(
        &self,
        sequence: u64,
        server: ServerId,
        now: UnixMillis,
        limit: usize,
    ) -> Result<Vec<QueueRow>, SiteError> {
        rows_after(&*self.connection()?, sequence, server, now, limit)
    }

    /// Every row that is valid at `now` and for `server`, as of one moment.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn all_valid(&self, server: ServerId, now: UnixMillis) -> Result<QueueSnapshot, SiteError> {
        let connection = self.connection()?;
        let transaction = connection.unchecked_transaction()?;
        let generation = generation(&transaction)?;
        let sequence = highest_sequence(&transaction)?;
        let mut rows = Vec::new();
        loop {
            let after = rows.last().map_or(0, |row: &QueueRow| row.sequence);
            let page = rows_after(&transaction, after, server, now, PAGE_ROWS)?;
            let last = page.len() < PAGE_ROWS;
            rows.extend(page);
            if last {
                return Ok(QueueSnapshot { generation, sequence, rows });
            }
        }
    }

    /// The time of the newest signed head, if there is one.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn newest_head(&self) -> Result<Option<UnixMillis>, SiteError> {
        newest_head(&*self.connection()?)
    }

    fn connection(&self) -> Result<Ref<'_, Connection>, SiteError> {
        Ref::filter_map(self.connection.borrow(), Option::as_ref)
            .map_err(|_| SiteError::LogReplaced { path: self.path.clone() })
    }
}

impl std::fmt::Debug for QueueReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "QueueReader({})", self.path.display())
    }
}

impl DatabaseFiles {
    /// Those that `path` leads to.
    fn at(path: &Path) -> Result<Self, SiteError> {
        let look = || -> io::Result<Self> {
            // SQLite follows the links as well before it puts anything beside the file.
            let resolved = std::fs::canonicalize(path)?;
            let sides = [identity(&beside(&resolved, "-wal"))?, identity(&beside(&resolved, "-shm"))?];
            let database = identity(&resolved)?.ok_or(io::ErrorKind::NotFound)?;
            Ok(Self { database, sides })
        };
        look().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SiteError::Missing { path: path.to_owned() },
            _ => SiteError::io(path, "the site database cannot be looked at")(error),
        })
    }
}

/// Of the file that `path` leads to, if there is one.
fn identity(path: &Path) -> io::Result<Option<FileIdentity>> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        there => there.map(|there| Some((there.dev(), there.ino()))),
    }
}

/// The highest sequence that was ever drawn, 0 for none.
pub(crate) fn highest_sequence(connection: &Connection) -> Result<u64, SiteError> {
    let mut statement =
        connection.prepare_cached("SELECT max(seq) FROM sqlite_sequence WHERE name = 'queue'")?;
    let highest: Option<i64> = statement.query_row([], |row| row.get(0))?;
    Ok(highest.map_or(0, unsigned))
}

/// The statement of [`QueueReader::rows_after`].
pub(crate) const ROWS_AFTER: &str = "SELECT sequence, payload, valid_until FROM queue \
     WHERE sequence > ?1 AND valid_until > ?3 AND (server IS NULL OR server = ?2) ORDER BY sequence LIMIT ?4";

fn rows_after(
    connection: &Connection,
    sequence: u64,
    server: ServerId,
    now: UnixMillis,
    limit: usize,
) -> Result<Vec<QueueRow>, SiteError> {
    let mut statement = connection.prepare_cached(ROWS_AFTER)?;
    let read = |row: &Row<'_>| {
        Ok(QueueRow {
            sequence: unsigned(row.get(0)?),
            item_bytes: row.get(1)?,
            valid_until: time(row.get(2)?),
        })
    };
    let limit = integer(limit as u64);
    let rows = statement.query_map(params![integer(sequence), server.0, millis(now), limit], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The time of the newest signed head in the queue; the manager writes one each minute.
pub(crate) fn newest_head(connection: &Connection) -> Result<Option<UnixMillis>, SiteError> {
    let mut statement = connection
        .prepare_cached("SELECT payload FROM queue WHERE kind = 'head' ORDER BY sequence DESC LIMIT 1")?;
    let payload: Option<Vec<u8>> = statement.query_row([], |row| row.get(0)).optional()?;
    Ok(payload.and_then(|payload| match QueueItem::decode(&payload) {
        Ok(QueueItem::Head { signed }) => SignedHead::decode(&signed).ok().map(|head| head.statement().time),
        _ => None,
    }))
}

fn generation(connection: &Connection) -> Result<Generation, SiteError> {
    let mut statement = connection.prepare_cached("SELECT generation FROM site")?;
    Ok(Generation(statement.query_row([], |row| row.get(0))?))
}

#[cfg(test)]
mod tests;
