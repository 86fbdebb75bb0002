//! `/devices`.

use bgb_protocol::api::{
    AddDevice, AddDevices, CertificateRow, Connectivity, DEVICES_PER_REQUEST_MAX, DeviceDetails, DeviceRow,
    ErrorCode, Page,
};
use bgb_protocol::ids::DeviceId;
use bgb_site::SiteError;
use bgb_site::store::{DeviceFilter, PresenceState, Queries};

use super::query::Query;
use super::{Api, Routed, json};
use crate::orders::{Answer, Order};
use crate::refusal::refusal;
use crate::views;

/// Devices that are looked through for one page when name and presence are asked for together.
const LOOKED_THROUGH_MAX: usize = 20_000;

impl Api {
    pub(super) fn devices(&self, mut query: Query) -> Routed {
        let prefix = query.take("name");
        let connectivity = query.take_word::<Connectivity>("connectivity")?;
        let after = query.take_parsed::<u32>("after", "the `next` of the page before")?.map(DeviceId);
        let limit = query.take_limit()?;
        query.finish()?;
        let page = self.read(|queries| match (prefix, connectivity) {
            (Some(prefix), Some(wanted)) => page_of_both(queries, after, &prefix, wanted, limit),
            (Some(prefix), None) => page(queries, after, &DeviceFilter::NamePrefix(prefix), limit),
            (None, Some(wanted)) => page(queries, after, &DeviceFilter::Presence(presence(wanted)), limit),
            (None, None) => page(queries, after, &DeviceFilter::All, limit),
        })?;
        Ok(json(&page))
    }

    pub(super) fn device(&self, query: Query, name: &str) -> Routed {
        query.finish()?;
        Ok(json(&self.read(|queries| details(queries, name))?))
    }

    pub(super) fn add_device(&self, add: &AddDevice) -> Routed {
        let order = Order::AddDevices(AddDevices { names: vec![add.name.clone()] });
        match self.orders.place(order)? {
            Answer::Devices(mut bundles) if bundles.len() == 1 => Ok(json(&bundles.remove(0))),
            other => {
                tracing::error!(?other, "adding one device was not answered with one bundle");
                Err(refusal(
                    ErrorCode::Internal,
                    "the manager did not answer as it should; its log says more",
                ))
            }
        }
    }

    pub(super) fn add_devices(&self, add: AddDevices) -> Routed {
        if add.names.len() > DEVICES_PER_REQUEST_MAX {
            let error = format!(
                "{} devices in one request; it takes {DEVICES_PER_REQUEST_MAX} at most",
                add.names.len()
            );
            return Err(refusal(ErrorCode::TooLarge, error));
        }
        self.order(Order::AddDevices(add))
    }
}

fn page(
    queries: Queries<'_>,
    after: Option<DeviceId>,
    filter: &DeviceFilter,
    limit: usize,
) -> Result<Page<DeviceRow>, SiteError> {
    let rows = queries.devices(after, filter, limit)?;
    let next = (rows.len() == limit).then(|| rows.last().map(|row| row.device.to_string())).flatten();
    Ok(Page { items: rows.iter().map(views::device).collect(), next })
}

/// Names by the index, presence by looking: a page may be short, and its `next` goes on where it stopped.
fn page_of_both(
    queries: Queries<'_>,
    mut after: Option<DeviceId>,
    prefix: &str,
    wanted: Connectivity,
    limit: usize,
) -> Result<Page<DeviceRow>, SiteError> {
    let filter = DeviceFilter::NamePrefix(prefix.to_owned());
    let mut items = Vec::new();
    for _ in 0..LOOKED_THROUGH_MAX.div_ceil(limit) {
        let rows = queries.devices(after, &filter, limit)?;
        let is_last = rows.len() < limit;
        for row in rows {
            after = Some(row.device);
            if views::connectivity(row.presence.state) == wanted {
                items.push(views::device(&row));
            }
            if items.len() == limit {
                return Ok(Page { items, next: after.map(|after| after.to_string()) });
            }
        }
        if is_last {
            return Ok(Page { items, next: None });
        }
    }
    Ok(Page { items, next: after.map(|after| after.to_string()) })
}

fn presence(connectivity: Connectivity) -> PresenceState {
    match connectivity {
        Connectivity::Online => PresenceState::Online,
        Connectivity::Offline => PresenceState::Offline,
        Connectivity::Unknown => PresenceState::Unknown,
        Connectivity::Never => PresenceState::Never,
    }
}

fn details(queries: Queries<'_>, name: &str) -> Result<DeviceDetails, SiteError> {
    let row = queries.find_device(name)?;
    let certificates =
        queries.device_certificates(row.device)?.into_iter().map(|certificate| CertificateRow {
            fingerprint: views::hex(&certificate.fingerprint),
            serial: views::hex(&certificate.serial),
            valid_until: certificate.not_after,
            revoked: certificate.revoked,
        });
    let inventory = queries.inventory(row.device)?.and_then(|(document, _)| readable(row.device, &document));
    Ok(DeviceDetails {
        row: views::device(&row),
        last_online: row.presence.last_online,
        last_offline: row.presence.last_offline,
        boot: row.presence.boot.map(|boot| boot.to_string()),
        session: row.presence.session.map(|session| session.0),
        clock_skew_ms: row.presence.clock_skew_ms,
        policy_version: row.presence.policy_version,
        platform: row.platform.clone(),
        hostname: row.hostname.clone(),
        certificates: certificates.collect(),
        collections: queries.collections_of(row.device)?,
        inventory,
    })
}

/// What a device told of itself; none when it cannot be read, so that the rest of the device can still be looked at.
fn readable(device: DeviceId, inventory: &str) -> Option<serde_json::Value> {
    let read = serde_json::from_str(inventory);
    read.inspect_err(|error| tracing::warn!(%device, %error, "its inventory cannot be read and is not shown"))
        .ok()
}
