//! `/status` and `/messages`.

use bgb_protocol::api::{DeviceCounts, ManagerStatus, MessageRow, Page, ServerStatus, SiteStatus};
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::status::{Component, Severity};
use bgb_site::SiteError;
use bgb_site::store::{Queries, StatusFilter, StoredStatus};

use super::query::Query;
use super::{Api, Routed, json, now};

impl Api {
    pub(super) fn status(&self, query: Query) -> Routed {
        query.finish()?;
        let standing = self.figures.standing();
        let (site, servers, devices) =
            self.read(|queries| Ok((queries.site()?, queries.servers()?, device_counts(queries)?)))?;
        let servers = servers.into_iter().map(|row| ServerStatus {
            server: row.server,
            epoch: self.figures.epoch(row.server),
            last_seen: row.last_seen,
            last_full: row.last_full,
            online: row.devices_online,
            silent: row.silent,
        });
        Ok(json(&SiteStatus {
            site: site.code,
            generation: site.generation.to_string(),
            time: UnixMillis(now().unix_ms),
            manager: ManagerStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started: standing.started,
                database_writable: standing.database_writable,
                head: standing.head,
            },
            servers: servers.collect(),
            devices,
            inbox: self.figures.inbox(),
        }))
    }

    pub(super) fn messages(&self, mut query: Query) -> Routed {
        let component = query.take_word::<Component>("component")?;
        let least = query.take_word::<Severity>("severity")?.unwrap_or(Severity::Informational);
        let before = query.take_parsed::<u64>("after", "the `next` of the page before")?;
        let limit = query.take_limit()?;
        query.finish()?;
        let rows = self.read(|queries| messages_from(queries, component, least, before, limit))?;
        let next = (rows.len() == limit).then(|| rows.last().map(|row| row.id.to_string())).flatten();
        let items = rows.into_iter().map(|row| MessageRow { number: row.id, message: row.message }).collect();
        Ok(json(&Page::<MessageRow> { items, next }))
    }
}

fn device_counts(queries: Queries<'_>) -> Result<DeviceCounts, SiteError> {
    let counts = queries.fleet_counts()?;
    Ok(DeviceCounts {
        all: counts.all,
        online: counts.online,
        unknown: counts.unknown,
        blocked: counts.blocked,
    })
}

/// Messages of at least a severity, the newest first: those of each severity, merged.
fn messages_from(
    queries: Queries<'_>,
    component: Option<Component>,
    least: Severity,
    before: Option<u64>,
    limit: usize,
) -> Result<Vec<StoredStatus>, SiteError> {
    let filters: &[Option<Severity>] = match least {
        Severity::Informational => &[None],
        Severity::Warning => &[Some(Severity::Warning), Some(Severity::Error)],
        Severity::Error => &[Some(Severity::Error)],
    };
    let mut rows = Vec::new();
    for &severity in filters {
        rows.extend(queries.status_messages(before, StatusFilter { component, severity }, limit)?);
    }
    rows.sort_unstable_by_key(|row| std::cmp::Reverse(row.id));
    rows.truncate(limit);
    Ok(rows)
}
