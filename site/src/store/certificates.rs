//! The devices' certificates: what verifiers need to judge a signature, also by a key that counts no more.

use bgb_protocol::ids::{DeviceId, KeyId};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::Queries;
use super::columns::{device_number, millis};
use crate::authority::CertificateRecord;
use crate::error::SiteError;

/// A public key that the site has certified for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePublicKey {
    /// The device.
    pub device: DeviceId,
    /// The key: an uncompressed P-256 point of 65 bytes.
    pub public_key: Vec<u8>,
    /// Whether its certificate was revoked. What it signed before still counts.
    pub revoked: bool,
}

impl Queries<'_> {
    /// The public key with this id, revoked or not; `None` when the site never certified it.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn device_public_key(&self, key: KeyId) -> Result<Option<DevicePublicKey>, SiteError> {
        let sql = "SELECT device, public_key, state FROM certificate WHERE key = ?1 ORDER BY state LIMIT 1";
        let read = |row: &rusqlite::Row<'_>| {
            let state: i64 = row.get(2)?;
            Ok(DevicePublicKey {
                device: DeviceId(device_number(row.get(0)?)),
                public_key: row.get(1)?,
                revoked: state != 1,
            })
        };
        Ok(self.connection.prepare_cached(sql)?.query_row([key.0], read).optional()?)
    }
}

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
