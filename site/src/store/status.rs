//! Status messages: the manager's own, and those that servers sent.

use bgb_protocol::ids::UnixMillis;
use bgb_protocol::status::{Component, Severity, StatusId, StatusMessage};
use rusqlite::{Connection, Row, params};

use super::columns::{integer, millis, time, unsigned};
use super::files::{self, FilePlace};
use super::{Queries, Store, servers};
use crate::error::SiteError;

/// A message as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredStatus {
    /// Its place among all messages; rises.
    pub id: u64,
    /// The message.
    pub message: StatusMessage,
}

/// Which messages are wanted: all, of one component, of one severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusFilter {
    /// Only this component's.
    pub component: Option<Component>,
    /// Only those of this severity.
    pub severity: Option<Severity>,
}

impl Store {
    /// Keeps a message.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn add_status(&mut self, message: &StatusMessage) -> Result<(), SiteError> {
        self.write(|connection| insert(connection, message))
    }

    /// Keeps messages of a server's file, and how far the file is. Rows that were kept before are passed over.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn apply_status(
        &mut self,
        rows: &[StatusMessage],
        place: &FilePlace,
        now: UnixMillis,
    ) -> Result<u64, SiteError> {
        self.write(|connection| {
            servers::touch(connection, place.server, now)?;
            if files::is_done(connection, place)? {
                return Ok(0);
            }
            for row in rows {
                insert(connection, row)?;
            }
            files::set_place(connection, place, None, now)?;
            Ok(rows.len() as u64)
        })
    }
}

impl Queries<'_> {
    /// Messages, the newest first, at most `limit`; those before the message `before`, or from the newest on.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn status_messages(
        &self,
        before: Option<u64>,
        filter: StatusFilter,
        limit: usize,
    ) -> Result<Vec<StoredStatus>, SiteError> {
        let sql = match (filter.component, filter.severity) {
            (None, None) => STATUS_ALL,
            (Some(_), None) => STATUS_OF_COMPONENT,
            (None, Some(_)) => STATUS_OF_SEVERITY,
            (Some(_), Some(_)) => STATUS_OF_BOTH,
        };
        let before = before.map_or(i64::MAX, integer);
        let component = filter.component.map_or(0, component_code);
        let severity = filter.severity.map_or(0, severity_code);
        let mut statement = self.connection.prepare_cached(sql)?;
        let limit = integer(limit as u64);
        let rows = statement.query_map(params![before, limit, component, severity], |row| Ok(read(row)))?;
        rows.collect::<Result<Vec<_>, _>>()?.into_iter().collect()
    }
}

/// The statements of [`Queries::status_messages`]; every one is given all four values.
pub(super) const STATUS_ALL: &str = "SELECT id, component, severity, number, time, about, text FROM status_message \
     WHERE id < ?1 AND ?3 = 0 AND ?4 = 0 ORDER BY id DESC LIMIT ?2";
pub(super) const STATUS_OF_COMPONENT: &str = "SELECT id, component, severity, number, time, about, text FROM status_message \
     WHERE component = ?3 AND id < ?1 AND ?4 = 0 ORDER BY id DESC LIMIT ?2";
pub(super) const STATUS_OF_SEVERITY: &str = "SELECT id, component, severity, number, time, about, text FROM status_message \
     WHERE severity = ?4 AND id < ?1 AND ?3 = 0 ORDER BY id DESC LIMIT ?2";
pub(super) const STATUS_OF_BOTH: &str = "SELECT id, component, severity, number, time, about, text FROM status_message \
     WHERE severity = ?4 AND component = ?3 AND id < ?1 ORDER BY id DESC LIMIT ?2";

fn read(row: &Row<'_>) -> Result<StoredStatus, SiteError> {
    let (component, severity): (u8, u8) = (row.get(1)?, row.get(2)?);
    let component =
        if component == 1 { Component::NotificationServer } else { Component::NotificationManager };
    let severity = match severity {
        1 => Severity::Informational,
        2 => Severity::Warning,
        _ => Severity::Error,
    };
    let (id, at) = (unsigned(row.get(0)?), time(row.get(4)?));
    let message = StatusMessage {
        component,
        severity,
        id: row.get(3)?,
        time: at,
        about: row.get(5)?,
        text: row.get(6)?,
    };
    Ok(StoredStatus { id, message })
}

pub(super) fn insert(connection: &Connection, message: &StatusMessage) -> Result<(), SiteError> {
    let sql = "INSERT INTO status_message (component, severity, number, time, about, text) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    connection.prepare_cached(sql)?.execute(params![
        component_code(message.component),
        severity_code(message.severity),
        message.id,
        millis(message.time),
        message.about,
        message.text,
    ])?;
    Ok(())
}

/// Says something of the manager's own accord, in the transaction of what it is about.
pub(crate) fn say(
    connection: &Connection,
    id: StatusId,
    now: UnixMillis,
    about: impl Into<String>,
    text: impl Into<String>,
) -> Result<(), SiteError> {
    insert(connection, &id.message(now, about, text))
}

fn component_code(component: Component) -> u8 {
    match component {
        Component::NotificationServer => 1,
        Component::NotificationManager => 2,
    }
}

fn severity_code(severity: Severity) -> u8 {
    match severity {
        Severity::Informational => 1,
        Severity::Warning => 2,
        Severity::Error => 3,
    }
}
