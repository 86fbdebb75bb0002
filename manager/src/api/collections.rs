//! `/collections`.

use bgb_protocol::api::{ALL_DEVICES, CollectionRow, CreateCollection, DeviceRow, Page};
use bgb_protocol::ids::DeviceId;
use bgb_site::SiteError;
use bgb_site::store::{DeviceFilter, Queries};

use super::query::Query;
use super::{Api, Routed, json};
use crate::orders::{self, Order};
use crate::views;

impl Api {
    pub(super) fn collections(&self, mut query: Query) -> Routed {
        let after = query.take("after");
        let limit = query.take_limit()?;
        query.finish()?;
        Ok(json(&self.read(|queries| page(queries, after, limit))?))
    }

    pub(super) fn collection(&self, query: Query, name: &str) -> Routed {
        query.finish()?;
        Ok(json(&self.read(|queries| orders::collection(queries, name))?))
    }

    pub(super) fn create_collection(&self, create: &CreateCollection) -> Routed {
        self.order(Order::CreateCollection(create.name.clone()))
    }

    pub(super) fn members(&self, mut query: Query, name: &str) -> Routed {
        let after = query.take_parsed::<u32>("after", "the `next` of the page before")?.map(DeviceId);
        let limit = query.take_limit()?;
        query.finish()?;
        Ok(json(&self.read(|queries| member_page(queries, name, after, limit))?))
    }
}

/// The built-in collection comes first; then those that people made, by name.
fn page(queries: Queries<'_>, after: Option<String>, limit: usize) -> Result<Page<CollectionRow>, SiteError> {
    let mut items = Vec::new();
    let after = match after {
        None => {
            items.push(orders::collection(queries, ALL_DEVICES)?);
            None
        }
        Some(after) if after == ALL_DEVICES => None,
        Some(after) => Some(after),
    };
    let online = queries.online_devices()?;
    for row in queries.collections(after.as_deref(), limit - items.len())? {
        let online = online.intersection_len(&queries.collection_devices(&row.name)?);
        items.push(CollectionRow { name: row.name, members: row.members, online, built_in: false });
    }
    let next = (items.len() == limit).then(|| items.last().map(|row| row.name.clone())).flatten();
    Ok(Page { items, next })
}

fn member_page(
    queries: Queries<'_>,
    name: &str,
    after: Option<DeviceId>,
    limit: usize,
) -> Result<Page<DeviceRow>, SiteError> {
    let rows = if orders::is_built_in(name) {
        queries.devices(after, &DeviceFilter::All, limit)?
    } else {
        let mut members = queries.collection_devices(name)?;
        if let Some(after) = after {
            members.remove_range(0..=after.0);
        }
        let wanted = members.into_iter().take(limit);
        wanted.filter_map(|member| queries.device(DeviceId(member)).transpose()).collect::<Result<_, _>>()?
    };
    let next = (rows.len() == limit).then(|| rows.last().map(|row| row.device.to_string())).flatten();
    Ok(Page { items: rows.iter().map(views::device).collect(), next })
}
