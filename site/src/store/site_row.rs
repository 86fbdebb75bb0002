//! The site's own row: its code, its database's generation, its counters.

use bgb_protocol::ids::{Generation, SiteCode, UnixMillis};

use super::Queries;
use super::columns::{time, unsigned};
use crate::error::SiteError;

/// What the database says of the site itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteRow {
    /// The site's code.
    pub code: SiteCode,
    /// Which life of the database this is.
    pub generation: Generation,
    /// When it was made.
    pub created: UnixMillis,
    /// How many devices were ever given a number; the next one gets this number.
    pub devices: u64,
    /// The database was restored: result files that it does not know, and those that were taken in at this time or later, are to be taken in
    /// again.
    pub retake_since: Option<UnixMillis>,
}

impl Queries<'_> {
    /// The site.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn site(&self) -> Result<SiteRow, SiteError> {
        let sql = "SELECT code, generation, created, device_next, retake_since FROM site";
        let read = |row: &rusqlite::Row<'_>| {
            let code: String = row.get(0)?;
            let site = SiteRow {
                code: [b'0'; 3].try_into().expect("three zeros are a site code"),
                generation: Generation(row.get(1)?),
                created: time(row.get(2)?),
                devices: unsigned(row.get(3)?),
                retake_since: row.get::<_, Option<i64>>(4)?.map(time),
            };
            Ok((code, site))
        };
        let (code, site) = self.connection.prepare_cached(sql)?.query_row([], read)?;
        let code = code.parse().map_err(|error| SiteError::Corrupt(format!("the site's row: {error}")))?;
        Ok(SiteRow { code, ..site })
    }
}
