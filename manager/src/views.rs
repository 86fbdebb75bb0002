//! From the database's rows to the API's.

use bgb_protocol::action::Action;
use bgb_protocol::api;
use bgb_site::SiteError;
use bgb_site::store::{
    DeviceRow, DeviceState, PolicyAudience, PolicyRow, PresenceState, Queries, ResultPageRow, TaskCounts,
    TaskPhase, TaskRow,
};

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn connectivity(state: PresenceState) -> api::Connectivity {
    match state {
        PresenceState::Never => api::Connectivity::Never,
        PresenceState::Online => api::Connectivity::Online,
        PresenceState::Offline => api::Connectivity::Offline,
        PresenceState::Unknown => api::Connectivity::Unknown,
    }
}

pub(crate) fn device(row: &DeviceRow) -> api::DeviceRow {
    api::DeviceRow {
        number: row.device,
        guid: row.guid,
        name: row.name.clone(),
        membership: match row.state {
            DeviceState::Waiting => api::Membership::Waiting,
            DeviceState::Active => api::Membership::Active,
            DeviceState::Blocked => api::Membership::Blocked,
        },
        connectivity: connectivity(row.presence.state),
        since: row.presence.since,
        server: row.presence.server,
        address: row.presence.address.map(|address| address.to_string()),
        road: row.presence.road.clone(),
        agent_version: row.agent_version.clone(),
    }
}

pub(crate) fn policy(row: &PolicyRow, queries: Queries<'_>) -> Result<api::PolicyRow, SiteError> {
    let collection = match &row.audience {
        PolicyAudience::Everyone => None,
        PolicyAudience::Collection(name) => Some(name.clone()),
    };
    let devices = match &collection {
        None => None,
        Some(name) => Some(queries.collection_devices(name)?.len()),
    };
    Ok(api::PolicyRow {
        name: row.name.clone(),
        version: row.version,
        priority: row.priority,
        devices,
        collection,
        issued: row.issued,
        settings: serde_json::from_str(&row.settings)
            .map_err(|error| SiteError::Corrupt(format!("the settings of policy {}: {error}", row.name)))?,
    })
}

pub(crate) fn counts(counts: &TaskCounts) -> api::TaskCounts {
    api::TaskCounts {
        targets: counts.targets,
        delivered: counts.delivered(),
        waiting: counts.waiting,
        received: counts.received,
        running: counts.running,
        succeeded: counts.succeeded,
        failed: counts.failed,
        interrupted: counts.interrupted,
        refused: counts.refused,
        cancelled: counts.cancelled,
        no_answer: counts.no_answer,
        expired: counts.expired,
    }
}

/// A task; its speed is the caller's to add.
pub(crate) fn task(row: &TaskRow) -> Result<api::TaskRow, SiteError> {
    let unknown =
        || SiteError::Corrupt(format!("task {} has an action that this release does not know", row.id));
    let action: Action = row.action.ok_or_else(unknown)?;
    Ok(api::TaskRow {
        task: row.id,
        action,
        target: row.audience.clone(),
        phase: match row.phase {
            TaskPhase::Active => api::TaskPhase::Active,
            TaskPhase::Expired => api::TaskPhase::Expired,
            TaskPhase::Cancelled => api::TaskPhase::Cancelled,
        },
        started: row.created,
        expires: row.expires,
        cancelled: row.cancelled.as_ref().map(|(at, _)| *at),
        digest: hex(&row.digest.root),
        counts: counts(&row.counts),
        results_per_second: None,
    })
}

pub(crate) fn result(row: ResultPageRow) -> api::TaskResult {
    api::TaskResult {
        device: row.device,
        guid: row.guid,
        name: row.name,
        state: row.state,
        refusal: row.refusal,
        code: row.code,
        started: row.started,
        finished: row.finished,
        heard: Some(row.heard),
        output: row.output,
    }
}
