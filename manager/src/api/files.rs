//! `/files`: what is set aside in the inbox's `bad`.

use bgb_daemon::disk::DirEntry;
use bgb_protocol::api::{ErrorBody, ErrorCode, Page, SetAsideFile};
use bgb_protocol::file::{HEADER_BYTES, Header};
use bgb_protocol::status::{Component, Severity};
use bgb_site::SiteError;
use bgb_site::store::{Queries, StatusFilter, StoredStatus};

use super::query::Query;
use super::{Api, Routed, json};
use crate::refusal::refusal;

/// The newest error messages, in which the reasons are looked for.
const MESSAGES_LOOKED_THROUGH: usize = 1_000;

impl Api {
    pub(super) fn files(&self, mut query: Query) -> Routed {
        let after = query.take("after").unwrap_or_default();
        let limit = query.take_limit()?;
        query.finish()?;
        let entries = self.disk.list(&self.bad).map_err(|error| unreadable(&error))?;
        let behind: Vec<_> =
            entries.into_iter().filter(|entry| !entry.is_dir && entry.name > after).take(limit).collect();
        let messages = self.read(error_messages)?;
        let next = (behind.len() == limit).then(|| behind.last().map(|entry| entry.name.clone())).flatten();
        let items = behind.into_iter().map(|entry| self.set_aside_file(entry, &messages)).collect();
        Ok(json(&Page::<SetAsideFile> { items, next }))
    }

    fn set_aside_file(&self, entry: DirEntry, messages: &[StoredStatus]) -> SetAsideFile {
        let header = self.header_of(&entry);
        let says =
            |row: &&StoredStatus| row.message.about == entry.name || row.message.text.contains(&entry.name);
        SetAsideFile {
            kind: header.map(|header| header.kind),
            rows: header.map(|header| header.rows),
            reason: messages.iter().find(says).map(|row| row.message.text.clone()),
            name: entry.name,
            bytes: entry.len,
        }
    }

    fn header_of(&self, entry: &DirEntry) -> Option<Header> {
        let mut start = [0; HEADER_BYTES];
        let file = self.disk.open_read(&self.bad.join(&entry.name)).ok()?;
        file.read_exact_at(&mut start, 0).ok()?;
        Header::decode(&start).ok()
    }
}

fn error_messages(queries: Queries<'_>) -> Result<Vec<StoredStatus>, SiteError> {
    let filter =
        StatusFilter { component: Some(Component::NotificationManager), severity: Some(Severity::Error) };
    queries.status_messages(None, filter, MESSAGES_LOOKED_THROUGH)
}

fn unreadable(error: &std::io::Error) -> ErrorBody {
    refusal(ErrorCode::Internal, format!("the folder of files that are set aside cannot be read: {error}"))
}
