//! Who this device is: its certificate, its key and its site's authority, read from their files.
//!
//! It owns the files' form (PEM, RFC 7468) and the check that they fit each other. Law: a key that others can read is not
//! used, and a certificate that is not a device's of this site ends the start with a sentence that says so.

use std::path::Path;

use anyhow::{Context as _, bail};
use bgb_protocol::certificate::{Identity, Role};
use bgb_protocol::ids::{DeviceId, SiteCode};
use bgb_protocol::signature::DeviceKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::config::AgentConfig;

/// A certificate file is a few KiB; a longer one is another file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The device's own, and whom it trusts.
pub(crate) struct DeviceIdentity {
    pub(crate) site: SiteCode,
    pub(crate) device: DeviceId,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivatePkcs8KeyDer<'static>,
    pub(crate) authority: CertificateDer<'static>,
}

impl DeviceIdentity {
    /// Reads the files that `config` names.
    ///
    /// # Errors
    /// When one cannot be read, is not what it should be, or does not fit the others.
    pub(crate) fn load(config: &AgentConfig) -> anyhow::Result<Self> {
        let site = config.site()?;
        let path = &config.identity.certificate;
        let certificate = read_certificate(path)?;
        let identity = Identity::from_der(&certificate).with_context(|| path.display().to_string())?;
        let Role::Device(device, _) = identity.holder.role else {
            bail!("{}: is the certificate of {}, which is no device", path.display(), identity.holder);
        };
        if identity.holder.site != site {
            let theirs = identity.holder.site;
            bail!("{}: is a certificate of site {theirs}; agent.toml says site {site}", path.display());
        }
        let key_path = &config.identity.key;
        let pem = bgb_daemon::secret::read(key_path)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|error| {
            anyhow::anyhow!("{}: holds no private key in PKCS#8: {error}", key_path.display())
        })?;
        let found =
            Self { site, device, certificate, key, authority: read_certificate(&config.identity.authority)? };
        if found.device_key()?.public() != identity.public_key {
            bail!("{}: is not the key of the certificate {}", key_path.display(), path.display());
        }
        Ok(found)
    }

    /// The key, for signing results.
    ///
    /// # Errors
    /// When it is not an ECDSA P-256 key.
    pub(crate) fn device_key(&self) -> anyhow::Result<DeviceKey> {
        DeviceKey::from_pkcs8(self.key.secret_pkcs8_der()).context("the device's private key")
    }
}

fn read_certificate(path: &Path) -> anyhow::Result<CertificateDer<'static>> {
    let metadata = std::fs::metadata(path).with_context(|| {
        format!("{}: the certificate cannot be read; has this device joined?", path.display())
    })?;
    if metadata.len() > FILE_BYTES_MAX {
        bail!("{}: is too long for a certificate", path.display());
    }
    CertificateDer::from_pem_file(path)
        .map_err(|error| anyhow::anyhow!("{}: holds no certificate in PEM: {error}", path.display()))
}
