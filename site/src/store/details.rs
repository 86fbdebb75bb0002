//! What pages show of one device beyond its row, and the fleet in numbers.

use bgb_protocol::ids::{DeviceId, UnixMillis};
use rusqlite::{Row, params};

use super::Queries;
use super::columns::{time, unsigned};
use crate::error::SiteError;

/// The fleet in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetCounts {
    /// Every device.
    pub all: u64,
    /// Those that are online.
    pub online: u64,
    /// Those whose server is silent.
    pub unknown: u64,
    /// Those that are blocked.
    pub blocked: u64,
}

/// A certificate of a device, as a page shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceCertificate {
    /// SHA-256 of the DER form.
    pub fingerprint: [u8; 32],
    /// The serial number, big-endian.
    pub serial: Vec<u8>,
    /// Until when it holds.
    pub not_after: UnixMillis,
    /// Whether it was revoked.
    pub revoked: bool,
}

impl Queries<'_> {
    /// The fleet in numbers.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn fleet_counts(&self) -> Result<FleetCounts, SiteError> {
        let read = |row: &Row<'_>| {
            Ok(FleetCounts {
                all: unsigned(row.get(0)?),
                online: unsigned(row.get(1)?),
                unknown: unsigned(row.get(2)?),
                blocked: unsigned(row.get(3)?),
            })
        };
        Ok(self.connection.prepare_cached(FLEET_COUNTS)?.query_row([], read)?)
    }

    /// The certificates of a device, the one that holds for longest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn device_certificates(&self, device: DeviceId) -> Result<Vec<DeviceCertificate>, SiteError> {
        let read = |row: &Row<'_>| {
            let state: i64 = row.get(3)?;
            Ok(DeviceCertificate {
                fingerprint: row.get(0)?,
                serial: row.get(1)?,
                not_after: time(row.get(2)?),
                revoked: state != 1,
            })
        };
        let mut statement = self.connection.prepare_cached(CERTIFICATES_OF_DEVICE)?;
        Ok(statement.query_map(params![device.0], read)?.collect::<Result<_, _>>()?)
    }

    /// The names of the collections that a device is in.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn collections_of(&self, device: DeviceId) -> Result<Vec<String>, SiteError> {
        let mut statement = self.connection.prepare_cached(COLLECTIONS_OF_DEVICE)?;
        Ok(statement.query_map(params![device.0], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }
}

/// The statements of this file; the indexes on presence and of inactive devices answer the counts.
pub(super) const FLEET_COUNTS: &str = "SELECT (SELECT device_next - passed_over_count FROM site), (SELECT count(*) FROM device WHERE presence = 1), \
     (SELECT count(*) FROM device WHERE presence = 3), (SELECT count(*) FROM device WHERE state <> 2 AND state = 3)";
pub(super) const CERTIFICATES_OF_DEVICE: &str =
    "SELECT fingerprint, serial, not_after, state FROM certificate WHERE device = ?1 ORDER BY not_after DESC";
pub(super) const COLLECTIONS_OF_DEVICE: &str = "SELECT name FROM membership JOIN collection ON collection.id = membership.collection \
     WHERE device = ?1 ORDER BY name";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_statement_here_looks_through_a_whole_table() {
        let folder = tempfile::tempdir().unwrap();
        let store = super::super::Store::create(
            &folder.path().join("site.db"),
            "LAB".parse().unwrap(),
            UnixMillis(1),
        )
        .unwrap();
        for sql in [FLEET_COUNTS, CERTIFICATES_OF_DEVICE, COLLECTIONS_OF_DEVICE] {
            let plan = format!("EXPLAIN QUERY PLAN {}", sql.replace("?1", "1"));
            let mut statement = store.connection.prepare(&plan).unwrap();
            let steps: Vec<String> =
                statement.query_map([], |row| row.get(3)).unwrap().map(Result::unwrap).collect();
            // The site's own table has one row; "SCAN CONSTANT ROW" is the outer select.
            let scans = steps.iter().filter(|step| {
                step.contains("SCAN") && !step.contains("CONSTANT") && !step.contains("SCAN site")
            });
            assert_eq!(scans.count(), 0, "{sql}: {steps:?}");
        }
        assert_eq!(store.read().fleet_counts().unwrap(), FleetCounts::default());
    }
}
