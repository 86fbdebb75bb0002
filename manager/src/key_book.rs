//! The devices' public keys, looked up in the site database by whoever verifies.

use std::path::Path;
use std::sync::Arc;

use bgb_protocol::ids::{DeviceId, KeyId};
use bgb_site::{Reader, SiteError};

use crate::verifier::{KeyBook, OpenKeyBook};

/// A read-only connection of one verifier's own.
pub struct SiteKeyBook {
    reader: Reader,
}

impl SiteKeyBook {
    /// Opens the site database.
    ///
    /// # Errors
    /// When it cannot be opened for reading.
    pub fn open(database: &Path) -> Result<Self, SiteError> {
        Ok(Self { reader: Reader::open(database)? })
    }

    /// What opens one for each thread of a pool.
    #[must_use]
    pub fn opener(database: &Path) -> OpenKeyBook {
        let database = database.to_owned();
        Arc::new(move || Ok(Box::new(Self::open(&database)?)))
    }
}

impl KeyBook for SiteKeyBook {
    fn public_key(&mut self, device: DeviceId, key: KeyId) -> Result<Option<Vec<u8>>, SiteError> {
        Ok(self.reader.read().device_public_key(device, key)?.map(|found| found.public_key))
    }
}
