//! How far each file of a server has been taken in: what makes a repeated file change nothing.

use bgb_protocol::file::{Epoch, FileKind, Header};
use bgb_protocol::ids::{ServerId, UnixMillis};
use roaring::RoaringBitmap;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::columns::{bits, integer, millis, read_set, set_bytes, unsigned};
use super::{Queries, Store};
use crate::error::SiteError;

/// How far a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePlace {
    /// Who wrote the file.
    pub server: ServerId,
    /// In which of its lives.
    pub epoch: Epoch,
    /// What it holds. Full online lists and deltas share their numbers.
    pub kind: FileKind,
    /// Its number.
    pub sequence: u64,
    /// How many of its rows are done with, good and bad.
    pub rows_done: u64,
    /// Whether nothing of it is left to do. A full online list becomes so by [`Store::finish_full_list`] only.
    pub complete: bool,
}

impl FilePlace {
    /// The place after `rows_done` rows of the file with this header.
    #[must_use]
    pub fn of(header: &Header, rows_done: u64, complete: bool) -> Self {
        let Header { server, epoch, kind, sequence, .. } = *header;
        Self { server, epoch, kind, sequence, rows_done, complete }
    }
}

impl Store {
    /// Forgets how far a file is, so that it is taken in from its beginning when it comes again: for files that were set aside
    /// and may be repaired. What was counted of it stays counted, once.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn forget_file(
        &mut self,
        server: ServerId,
        epoch: Epoch,
        kind: FileKind,
        sequence: u64,
    ) -> Result<(), SiteError> {
        let place = FilePlace { server, epoch, kind, sequence, rows_done: 0, complete: false };
        self.write(|connection| {
            let sql = "DELETE FROM file_seen \
                WHERE server = ?1 AND counter = ?2 AND nonce = ?3 AND kind = ?4 AND sequence = ?5";
            connection.prepare_cached(sql)?.execute(key(&place))?;
            Ok(())
        })
    }
}

impl Queries<'_> {
    /// How far a file is; `None` when nothing of it has been taken in.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn file_place(
        &self,
        server: ServerId,
        epoch: Epoch,
        kind: FileKind,
        sequence: u64,
    ) -> Result<Option<FilePlace>, SiteError> {
        stored(self.connection, &FilePlace { server, epoch, kind, sequence, rows_done: 0, complete: false })
    }
}

/// Whether the rows up to this place are in the database already.
pub(super) fn is_done(connection: &Connection, place: &FilePlace) -> Result<bool, SiteError> {
    Ok(stored(connection, place)?.is_some_and(|stored| {
        stored.complete || (stored.rows_done >= place.rows_done && stored.complete >= place.complete)
    }))
}

/// Keeps the place, and the devices that a full online list has named so far.
pub(super) fn set_place(
    connection: &Connection,
    place: &FilePlace,
    named: Option<&RoaringBitmap>,
    now: UnixMillis,
) -> Result<(), SiteError> {
    let sql = "INSERT INTO file_seen (server, counter, nonce, kind, sequence, rows_done, complete, named, seen) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO UPDATE SET \
        rows_done = excluded.rows_done, complete = excluded.complete, named = excluded.named, seen = excluded.seen";
    let (server, counter, nonce, kind, sequence) = key(place);
    connection.prepare_cached(sql)?.execute(params![
        server,
        counter,
        nonce,
        kind,
        sequence,
        integer(place.rows_done),
        place.complete,
        named.map(set_bytes),
        millis(now),
    ])?;
    Ok(())
}

/// The devices that a full online list has named so far.
pub(super) fn named(connection: &Connection, place: &FilePlace) -> Result<RoaringBitmap, SiteError> {
    let sql = "SELECT named FROM file_seen \
        WHERE server = ?1 AND counter = ?2 AND nonce = ?3 AND kind = ?4 AND sequence = ?5";
    let bytes: Option<Option<Vec<u8>>> =
        connection.prepare_cached(sql)?.query_row(key(place), |row| row.get(0)).optional()?;
    bytes.flatten().map_or_else(|| Ok(RoaringBitmap::new()), |bytes| read_set(&bytes))
}

pub(super) fn stored(connection: &Connection, place: &FilePlace) -> Result<Option<FilePlace>, SiteError> {
    let sql = "SELECT rows_done, complete FROM file_seen \
        WHERE server = ?1 AND counter = ?2 AND nonce = ?3 AND kind = ?4 AND sequence = ?5";
    let read = |row: &rusqlite::Row<'_>| {
        Ok(FilePlace { rows_done: unsigned(row.get(0)?), complete: row.get(1)?, ..*place })
    };
    Ok(connection.prepare_cached(sql)?.query_row(key(place), read).optional()?)
}

fn key(place: &FilePlace) -> (u32, i64, i64, u8, i64) {
    let kind = match place.kind {
        FileKind::PresenceFull | FileKind::PresenceDelta => 1,
        FileKind::Results => 2,
        FileKind::Status => 3,
    };
    (place.server.0, integer(place.epoch.counter), bits(place.epoch.nonce), kind, integer(place.sequence))
}
