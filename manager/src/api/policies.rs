//! `/policies`.

use bgb_protocol::api::{Page, PolicyRow};

use super::query::Query;
use super::{Api, Routed, json};
use crate::orders;
use crate::views;

impl Api {
    /// A site has 64 documents at most, so that they are one page, whatever the limit.
    pub(super) fn policies(&self, mut query: Query) -> Routed {
        query.take("after");
        query.take_limit()?;
        query.finish()?;
        let mut items = self.read(|queries| {
            queries.policies()?.iter().map(|row| views::policy(row, queries)).collect::<Result<Vec<_>, _>>()
        })?;
        items.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(json(&Page::<PolicyRow> { items, next: None }))
    }

    pub(super) fn policy(&self, query: Query, name: &str) -> Routed {
        query.finish()?;
        Ok(json(&self.read(|queries| views::policy(&orders::find_policy(queries, name)?, queries))?))
    }
}
