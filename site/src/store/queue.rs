//! The queue: rows that go down to the servers, written in the transaction of what they are about.
//!
//! Sequence numbers are drawn by AUTOINCREMENT inside the only writer's transaction: their order is the order of commits, and
//! none is used twice. Servers read it through `queue_reader`.

use bgb_protocol::head::{HeadStatement, SignedHead};
use bgb_protocol::ids::{ServerId, UnixMillis};
use bgb_protocol::queue::QueueItem;
use rusqlite::{Connection, params};

use super::columns::{integer, millis, unsigned};
use super::{Queries, STEP_ROWS, Step, Store};
use crate::error::SiteError;
use crate::queue_reader;

/// A row that stays valid until another takes its place.
pub(super) const FOR_EVER: UnixMillis = UnixMillis(i64::MAX as u64);

/// How long a head is kept for servers that start: agents never go back behind it, so that an old one does no harm.
const HEAD_VALID_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// A row before it has its sequence.
pub(super) struct Draft<'a> {
    pub(super) item: &'a QueueItem,
    pub(super) server: Option<ServerId>,
    pub(super) about: Option<i64>,
    pub(super) valid_until: UnixMillis,
}

impl Store {
    /// Writes a signed head, in place of the one before. `sign` is given the statement: generation, highest sequence, `now`.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn write_head(
        &mut self,
        now: UnixMillis,
        sign: impl FnOnce(HeadStatement) -> SignedHead,
    ) -> Result<SignedHead, SiteError> {
        let (site, generation) = (self.code, self.generation);
        self.write(|connection| {
            let sequence = queue_reader::highest_sequence(connection)?;
            let signed = sign(HeadStatement { site, generation, sequence, time: now });
            remove_about(connection, "head", 0)?;
            let item = QueueItem::Head { signed: signed.bytes().to_vec() };
            push(
                connection,
                &Draft { item: &item, server: None, about: Some(0), valid_until: now.plus(HEAD_VALID_MS) },
            )?;
            Ok(signed)
        })
    }

    /// Removes rows that are valid no more.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn sweep_queue(&mut self, now: UnixMillis) -> Result<Step, SiteError> {
        self.write(|connection| {
            let sql = "DELETE FROM queue WHERE sequence IN \
                (SELECT sequence FROM queue WHERE valid_until <= ?1 ORDER BY valid_until LIMIT ?2)";
            let limit = integer(STEP_ROWS as u64);
            let changed = connection.prepare_cached(sql)?.execute(params![millis(now), limit])?;
            Ok(Step { changed: changed as u64, more: changed == STEP_ROWS })
        })
    }
}

impl Queries<'_> {
    /// The highest sequence that was ever drawn; 0 for none.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn queue_sequence(&self) -> Result<u64, SiteError> {
        queue_reader::highest_sequence(self.connection)
    }
}

/// Adds a row and says its sequence.
pub(super) fn push(connection: &Connection, draft: &Draft<'_>) -> Result<u64, SiteError> {
    let sql = "INSERT INTO queue (kind, server, about, payload, valid_until) VALUES (?1, ?2, ?3, ?4, ?5)";
    connection.prepare_cached(sql)?.execute(params![
        draft.item.kind(),
        draft.server.map(|server| server.0),
        draft.about,
        draft.item.encode(),
        millis(draft.valid_until),
    ])?;
    Ok(unsigned(connection.last_insert_rowid()))
}

/// Removes the rows of a kind that are about the same thing as one that takes their place.
pub(super) fn remove_about(connection: &Connection, kind: &str, about: i64) -> Result<(), SiteError> {
    let sql = "DELETE FROM queue WHERE kind = ?1 AND about = ?2";
    connection.prepare_cached(sql)?.execute(params![kind, about])?;
    Ok(())
}
