//! `/tasks`.

use bgb_protocol::action::Action;
use bgb_protocol::api::{Page, PreviewTask, TaskPreview, TaskResult, TaskRow, WaitingDevice};
use bgb_protocol::ids::{DeviceId, TaskId, UnixMillis};
use bgb_protocol::state::TaskState;
use bgb_protocol::task::{VALIDITY_MS_MAX, VALIDITY_MS_MIN};
use bgb_site::SiteError;
use bgb_site::store::{DeviceState, Queries, ResultFilter, TargetPreview};

use super::query::Query;
use super::{Api, Routed, json, now};
use crate::orders;
use crate::refusal::of_site;
use crate::views;

/// Bytes of output after which a page of results ends: an answer is held in memory as a whole, several at a time.
const OUTPUT_BYTES_PER_PAGE: usize = 4 * 1024 * 1024;

impl Api {
    pub(super) fn preview(&self, preview: &PreviewTask) -> Routed {
        let validity_ms = orders::validity_ms(preview.validity_seconds);
        if !(VALIDITY_MS_MIN..=VALIDITY_MS_MAX).contains(&validity_ms) {
            return Err(of_site(&SiteError::Validity(validity_ms)));
        }
        let targets = self.read(|queries| Ok(orders::targets(queries, &preview.target)))??;
        let found = self.read(|queries| queries.preview(&targets))?;
        let until = UnixMillis(now().unix_ms).plus(validity_ms);
        Ok(json(&TaskPreview {
            action: preview.action,
            targets: found.targets,
            online: found.online,
            digest: views::hex(&found.digest.root),
            validity_seconds: validity_ms / 1000,
            sentence: sentence(preview.action, &found, until),
        }))
    }

    pub(super) fn tasks(&self, mut query: Query) -> Routed {
        let after = query.take_parsed::<TaskId>("after", "the `next` of the page before")?;
        let limit = query.take_limit()?;
        query.finish()?;
        let items = self.read(|queries| {
            let rows = queries.tasks(after, limit)?;
            rows.iter().map(views::task).collect::<Result<Vec<_>, _>>()
        })?;
        let next = (items.len() == limit).then(|| items.last().map(|row| row.task.to_string())).flatten();
        Ok(json(&Page::<TaskRow> { items, next }))
    }

    pub(super) fn task(&self, query: Query, task: TaskId) -> Routed {
        query.finish()?;
        let mut row = self.read(|queries| views::task(&queries.task(task)?))?;
        row.results_per_second = Some(self.figures.results_per_second(now().mono_ms, task));
        Ok(json(&row))
    }

    pub(super) fn results(&self, mut query: Query, task: TaskId) -> Routed {
        let state = query.take_word::<TaskState>("state")?;
        let after = query.take_parsed::<u32>("after", "the `next` of the page before")?.map(DeviceId);
        let limit = query.take_limit()?;
        query.finish()?;
        let filter = state.map_or(ResultFilter::All, ResultFilter::State);
        Ok(json(&self.read(|queries| result_page(queries, task, filter, after, limit))?))
    }

    pub(super) fn waiting(&self, mut query: Query, task: TaskId) -> Routed {
        let after = query.take_parsed::<u32>("after", "the `next` of the page before")?.map(DeviceId);
        let limit = query.take_limit()?;
        query.finish()?;
        Ok(json(&self.read(|queries| waiting_page(queries, task, after, limit))?))
    }
}

/// A page ends at its limit or where its outputs have become too many bytes.
fn result_page(
    queries: Queries<'_>,
    task: TaskId,
    filter: ResultFilter,
    mut after: Option<DeviceId>,
    limit: usize,
) -> Result<Page<TaskResult>, SiteError> {
    /// Rows that are asked for at a time: 2 MiB of output at most.
    const ROWS_AT_A_TIME: usize = 64;
    let (mut items, mut bytes) = (Vec::new(), 0);
    while items.len() < limit && bytes < OUTPUT_BYTES_PER_PAGE {
        let wanted = ROWS_AT_A_TIME.min(limit - items.len());
        let rows = queries.results(task, filter, after, wanted)?;
        let is_last = rows.len() < wanted;
        for row in rows {
            after = Some(row.device);
            bytes += row.output.as_ref().map_or(0, String::len);
            items.push(views::result(row));
        }
        if is_last {
            return Ok(Page { items, next: None });
        }
    }
    Ok(Page { items, next: after.map(|after| after.to_string()) })
}

/// Targets that were not heard of, of a task that is still valid.
fn waiting_page(
    queries: Queries<'_>,
    task: TaskId,
    after: Option<DeviceId>,
    limit: usize,
) -> Result<Page<WaitingDevice>, SiteError> {
    let rows = queries.unanswered(task, after, limit)?;
    let next = (rows.len() == limit).then(|| rows.last().map(|row| row.device.to_string())).flatten();
    let mut items = Vec::with_capacity(rows.len());
    for row in rows {
        let device = queries.device(row.device)?;
        let presence = device.as_ref().map(|device| &device.presence);
        items.push(WaitingDevice {
            device: row.device,
            guid: row.guid,
            name: row.name,
            connectivity: views::connectivity(row.presence),
            blocked: device.as_ref().is_some_and(|device| device.state == DeviceState::Blocked),
            last_seen: presence.and_then(|presence| presence.last_offline.max(presence.last_online)),
        });
    }
    Ok(Page { items, next })
}

fn sentence(action: Action, found: &TargetPreview, until: UnixMillis) -> String {
    let TargetPreview { targets, online, left_out, .. } = *found;
    let offline = targets - online;
    let end = jiff::Timestamp::from_millisecond(i64::try_from(until.0).unwrap_or(i64::MAX))
        .map_or_else(|_| "its end".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string());
    let devices = if targets == 1 { "1 device".to_owned() } else { format!("{targets} devices") };
    let mut sentence = format!(
        "{action} on {devices}: {online} online now get it within seconds, {offline} offline get it if they come online before {end}."
    );
    if left_out > 0 {
        sentence.push_str(&format!(" {left_out} more are left out: they are blocked or have not joined."));
    }
    sentence
}

#[cfg(test)]
mod tests {
    use bgb_protocol::target_set::TargetDigest;

    use super::*;

    #[test]
    fn the_sentence_says_who_gets_it_and_until_when() {
        let digest = TargetDigest { root: [0; 32], blocks: 1 };
        let found = TargetPreview { targets: 5, online: 3, left_out: 1, digest };
        assert_eq!(
            sentence(Action::QuickScan, &found, UnixMillis(1_700_000_000_000)),
            "quick-scan on 5 devices: 3 online now get it within seconds, 2 offline get it if they come online before \
             2023-11-14 22:13 UTC. 1 more are left out: they are blocked or have not joined."
        );
    }
}
