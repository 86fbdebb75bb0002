//! The devices' certificates: what verifiers need to judge a signature, also by a key that counts no more.

use bgb_protocol::ids::{DeviceId, KeyId};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::Queries;
use super::columns::millis;
use crate::authority::CertificateRecord;
use crate::error::SiteError;

/// A public key that the site has certified for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePublicKey {
    /// The key: an uncompressed P-256 point of 65 bytes.
    pub public_key: Vec<u8>,
    /// Whether its certificate was revoked. What it signed before still counts.
    pub revoked: bool,
}

impl Queries<'_> {
    /// The public key of `device` with this id, revoked or not; `None` when the site never certified it for that device.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn device_public_key(
        &self,
        device: DeviceId,
        key: KeyId,
    ) -> Result<Option<DevicePublicKey>, SiteError> {
        let read = |row: &rusqlite::Row<'_>| {
            let state: i64 = row.get(1)?;
            Ok(DevicePublicKey { public_key: row.get(0)?, revoked: state != 1 })
        };
        let mut statement = self.connection.prepare_cached(KEY_OF_DEVICE)?;
        Ok(statement.query_row(params![key.0, device.0], read).optional()?)
    }
}

/// The statement of [`Queries::device_public_key`]. A key may stand in several certificates, of whichever devices: an id is only the
/// first bytes of a digest.
const KEY_OF_DEVICE: &str =
    "SELECT public_key, state FROM certificate WHERE key = ?1 AND device = ?2 ORDER BY state LIMIT 1";

pub(super) fn insert(
    connection: &Connection,
    device: DeviceId,
    certificate: &CertificateRecord,
) -> Result<(), SiteError> {
    let sql = "INSERT INTO certificate (fingerprint, device, key, public_key, serial, not_before, not_after) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    connection.prepare_cached(sql)?.execute(params![
        certificate.fingerprint,
        device.0,
        certificate.key_id.0,
        certificate.public_key,
        certificate.serial,
        millis(certificate.not_before),
        millis(certificate.not_after),
    ])?;
    Ok(())
}
