//! What the manager has to say: status messages, logged at once and kept in the database as soon as it takes them.
//!
//! It owns the messages that wait. A database that cannot be written must not silence the message that says so: it waits here, bounded,
//! and the log has it already.

use std::collections::VecDeque;

use bgb_protocol::ids::UnixMillis;
use bgb_protocol::status::{Component, Severity, StatusId, StatusMessage};
use bgb_site::store::StatusFilter;
use bgb_site::{SiteError, Store};

/// Messages that wait for the database; past that the oldest are left to the log alone.
const WAITING_MAX: usize = 1_000;
/// Messages of the store that are logged after one transaction: one rarely says more than two.
const FOLLOWED_MAX: usize = 100;

/// The messages that wait.
pub(crate) struct Messages {
    waiting: VecDeque<StatusMessage>,
    /// The newest message of the manager in the database that the log has.
    logged: u64,
}

impl Messages {
    /// None waits; the log follows the database from here on.
    pub(crate) fn new(store: &Store) -> Self {
        let mut messages = Self { waiting: VecDeque::new(), logged: 0 };
        messages.logged =
            messages.newest(store, 1).ok().and_then(|newest| newest.first().map(|(id, _)| *id)).unwrap_or(0);
        messages
    }

    /// Logs a message, and keeps it for the database.
    pub(crate) fn say(
        &mut self,
        now: UnixMillis,
        id: StatusId,
        about: impl Into<String>,
        text: impl Into<String>,
    ) {
        let message = id.message(now, about, text);
        log(&message);
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(message);
    }

    /// Logs what the store has said in its own transactions, and writes the messages that wait.
    ///
    /// # Errors
    /// When the database cannot be read or written; those that were not written still wait.
    pub(crate) fn flush(&mut self, store: &mut Store) -> Result<(), SiteError> {
        self.follow(store)?;
        if self.waiting.is_empty() {
            return Ok(());
        }
        while let Some(message) = self.waiting.front() {
            store.add_status(message)?;
            self.waiting.pop_front();
        }
        self.logged = self.newest(store, 1)?.first().map_or(self.logged, |(id, _)| *id);
        Ok(())
    }

    fn follow(&mut self, store: &Store) -> Result<(), SiteError> {
        if self.newest(store, 1)?.is_empty() {
            return Ok(());
        }
        let fresh = self.newest(store, FOLLOWED_MAX)?;
        for (id, message) in fresh.into_iter().rev() {
            log(&message);
            self.logged = id;
        }
        Ok(())
    }

    /// The manager's messages that the log does not have, the newest first.
    fn newest(&self, store: &Store, limit: usize) -> Result<Vec<(u64, StatusMessage)>, SiteError> {
        let filter = StatusFilter { component: Some(Component::NotificationManager), severity: None };
        let rows = store.read().status_messages(None, filter, limit)?;
        Ok(rows.into_iter().filter(|row| row.id > self.logged).map(|row| (row.id, row.message)).collect())
    }
}

fn log(message: &StatusMessage) {
    let StatusMessage { component, severity, id, about, text, .. } = message;
    match severity {
        Severity::Informational => tracing::info!(%component, id, about, "{text}"),
        Severity::Warning => tracing::warn!(%component, id, about, "{text}"),
        Severity::Error => tracing::error!(%component, id, about, "{text}"),
    }
}
