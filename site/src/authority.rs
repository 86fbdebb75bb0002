//! The site's certificate authority: who it vouches for, and for how long.
//!
//! ECDSA P-256 with SHA-256 throughout. A certificate names its holder in one URI (`bgb_protocol::certificate`); a server's also
//! carries the addresses that it is reached by. Leaves are issued straight under the authority: a chain is one certificate.
//!
//! The private key lies in a 0600 file; one that others can read is refused, since by then it must be taken as known to them.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::rand;
use bgb_daemon::secret;
use bgb_protocol::certificate::{Holder, Role};
use bgb_protocol::ids::{DeviceGuid, DeviceId, KeyId, ServerId, SiteCode, UnixMillis};
use bgb_protocol::signature::{key_id, sha256};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, date_time_ymd,
};
use zeroize::Zeroizing;

use crate::error::SiteError;
use crate::folder::SiteFolder;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// The authority outlives every device that it is given to: 10 years.
const AUTHORITY_VALIDITY_MS: u64 = 3_652 * DAY_MS;
/// A server's certificate: 1 year; it is renewed by its administrator or over the channel.
const SERVER_VALIDITY_MS: u64 = 365 * DAY_MS;
/// A device's certificate: 90 days; it renews over the channel, so that a stolen one does not live long.
const DEVICE_VALIDITY_MS: u64 = 90 * DAY_MS;
/// Certificates begin an hour before they are made: machines whose clocks are a little behind can use them at once.
const BACKDATED_MS: u64 = 60 * 60 * 1000;
/// Bytes of a serial number: 127 random bits, so that none comes twice (RFC 5280 section 4.1.2.2 allows up to 20).
const SERIAL_BYTES: usize = 16;
/// The longest certificate file that is read, in bytes: one certificate has about 1 KiB.
const CERTIFICATE_BYTES_MAX: u64 = 64 * 1024;

/// From when on, and until when, a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment, to the second.
    pub not_before: UnixMillis,
    /// The last moment, to the second.
    pub not_after: UnixMillis,
}

/// A certificate that was made just now, with its private key, which is kept nowhere else.
pub struct IssuedCertificate {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key, PKCS#8 PEM; wiped from memory when this is dropped.
    pub key_pem: Zeroizing<String>,
    /// The certificate in DER form.
    pub der: Vec<u8>,
    /// The public key: an uncompressed P-256 point of 65 bytes.
    pub public_key: Vec<u8>,
    /// The public key's id.
    pub key_id: KeyId,
    /// SHA-256 of [`der`](Self::der).
    pub fingerprint: [u8; 32],
    /// The serial number, big-endian.
    pub serial: [u8; SERIAL_BYTES],
    /// From when on it holds.
    pub not_before: UnixMillis,
    /// Until when it holds.
    pub not_after: UnixMillis,
}

/// What the site keeps of a certificate that it issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRecord {
    /// SHA-256 of the DER form.
    pub fingerprint: [u8; 32],
    /// The public key: an uncompressed P-256 point of 65 bytes.
    pub public_key: Vec<u8>,
    /// The public key's id.
    pub key_id: KeyId,
    /// The serial number, big-endian.
    pub serial: [u8; SERIAL_BYTES],
    /// From when on it holds.
    pub not_before: UnixMillis,
    /// Until when it holds.
    pub not_after: UnixMillis,
}

/// The authority with its private key.
pub struct Authority {
    site: SiteCode,
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    certificate_der: Vec<u8>,
}

impl Validity {
    /// From a little before `now` until `millis` after it.
    #[must_use]
    pub fn from_now(now: UnixMillis, millis: u64) -> Self {
        Self { not_before: UnixMillis(now.0.saturating_sub(BACKDATED_MS)), not_after: now.plus(millis) }
    }
}

impl IssuedCertificate {
    /// What the site keeps of it.
    #[must_use]
    pub fn record(&self) -> CertificateRecord {
        CertificateRecord {
            fingerprint: self.fingerprint,
            public_key: self.public_key.clone(),
            key_id: self.key_id,
            serial: self.serial,
            not_before: self.not_before,
            not_after: self.not_after,
        }
    }
}

impl std::fmt::Debug for IssuedCertificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "IssuedCertificate({})", self.key_id)
    }
}

impl Authority {
    /// Makes a site's authority, and its two files in `folder`, whose folder for them must be there.
    ///
    /// # Errors
    /// When there is one already, or the files cannot be written.
    pub fn create(folder: &SiteFolder, site: SiteCode, now: UnixMillis) -> Result<Self, SiteError> {
        let key = new_key()?;
        let mut params =
            unnamed(&format!("BGB site {site} authority"), Validity::from_now(now, AUTHORITY_VALIDITY_MS));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
        params.distinguished_name.push(DnType::OrganizationName, organization(site));
        let certificate = params.self_signed(&key).map_err(unmakable("the authority's certificate"))?;
        let key_pem = Zeroizing::new(key.serialize_pem());
        secret::write_new(&folder.authority_key(), key_pem.as_bytes())?;
        let path = folder.authority_certificate();
        std::fs::write(&path, certificate.pem()).map_err(SiteError::io(&path, "cannot be written"))?;
        Self::assemble(site, certificate.pem(), certificate.der().to_vec(), key)
    }

    /// Reads a site's authority from `folder`.
    ///
    /// # Errors
    /// When a file is missing or malformed, when others can read the key, or when key and certificate, or certificate and site,
    /// do not belong together.
    pub fn load(folder: &SiteFolder, site: SiteCode) -> Result<Self, SiteError> {
        Self::load_from(&folder.authority_certificate(), &folder.authority_key(), site)
    }

    /// Reads a site's authority from two files.
    ///
    /// # Errors
    /// As [`Authority::load`].
    pub fn load_from(certificate: &Path, key: &Path, site: SiteCode) -> Result<Self, SiteError> {
        let key_bytes = Zeroizing::new(secret::read(key)?);
        let key_pem = std::str::from_utf8(&key_bytes).map_err(|error| wrong(key, error))?;
        let pair = KeyPair::from_pkcs8_pem_and_sign_algo(key_pem, &PKCS_ECDSA_P256_SHA256)
            .map_err(|error| wrong(key, error))?;
        let pem = read_certificate(certificate)?;
        let (_, block) =
            x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| wrong(certificate, error))?;
        let parsed = block.parse_x509().map_err(|error| wrong(certificate, error))?;
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err(wrong(certificate, format!("its key is not the one in {}", key.display())));
        }
        if !parsed.subject().iter_organization().any(|name| name.as_str() == Ok(&organization(site))) {
            return Err(wrong(certificate, format!("it is not the authority of site {site}")));
        }
        Self::assemble(site, pem.clone(), block.contents.clone(), pair)
    }

    fn assemble(
        site: SiteCode,
        certificate_pem: String,
        certificate_der: Vec<u8>,
        key: KeyPair,
    ) -> Result<Self, SiteError> {
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)
            .map_err(unmakable("the authority's certificate"))?;
        Ok(Self { site, issuer, certificate_pem, certificate_der })
    }

    /// The site.
    #[must_use]
    pub fn site(&self) -> SiteCode {
        self.site
    }

    /// The authority's certificate, for those who are to trust it.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the authority's certificate.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.certificate_der)
    }

    /// Issues a server's certificate for a year. `names` are the DNS names and IP addresses that it is reached by.
    ///
    /// # Errors
    /// When a name is none.
    pub fn issue_server(
        &self,
        server: ServerId,
        names: &[String],
        now: UnixMillis,
    ) -> Result<IssuedCertificate, SiteError> {
        self.issue_server_for(server, names, Validity::from_now(now, SERVER_VALIDITY_MS))
    }

    /// Issues a server's certificate with a validity of the caller's.
    ///
    /// # Errors
    /// When a name is none.
    pub fn issue_server_for(
        &self,
        server: ServerId,
        names: &[String],
        validity: Validity,
    ) -> Result<IssuedCertificate, SiteError> {
        let mut sans = Vec::with_capacity(names.len() + 1);
        for name in names {
            sans.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(
                    name.as_str().try_into().map_err(unmakable(&format!("the server's name {name:?}")))?,
                ),
            });
        }
        self.issue(
            Role::Server(server),
            &format!("server {server}"),
            sans,
            ExtendedKeyUsagePurpose::ServerAuth,
            validity,
        )
    }

    /// Issues a device's certificate for 90 days.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn issue_device(
        &self,
        device: DeviceId,
        guid: DeviceGuid,
        now: UnixMillis,
    ) -> Result<IssuedCertificate, SiteError> {
        self.issue_device_for(device, guid, Validity::from_now(now, DEVICE_VALIDITY_MS))
    }

    /// Issues a device's certificate with a validity of the caller's.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn issue_device_for(
        &self,
        device: DeviceId,
        guid: DeviceGuid,
        validity: Validity,
    ) -> Result<IssuedCertificate, SiteError> {
        let role = Role::Device(device, guid);
        self.issue(
            role,
            &format!("device {device}"),
            Vec::new(),
            ExtendedKeyUsagePurpose::ClientAuth,
            validity,
        )
    }

    fn issue(
        &self,
        role: Role,
        name: &str,
        mut names: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
        validity: Validity,
    ) -> Result<IssuedCertificate, SiteError> {
        let holder = Holder { site: self.site, role }.to_string();
        names.push(SanType::URI(holder.try_into().map_err(unmakable("the holder's name"))?));
        let serial = random_serial()?;
        let mut params = unnamed(name, validity);
        params.subject_alt_names = names;
        params.distinguished_name.push(DnType::OrganizationName, organization(self.site));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let key = new_key()?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(unmakable("a certificate"))?;
        let public_key = key.public_key_raw().to_vec();
        Ok(IssuedCertificate {
            certificate_pem: certificate.pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
            fingerprint: sha256(certificate.der()),
            der: certificate.der().to_vec(),
            key_id: key_id(&public_key),
            public_key,
            serial,
            not_before: whole_seconds(validity.not_before),
            not_after: whole_seconds(validity.not_after),
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Authority({})", self.site)
    }
}

/// Parameters with a common name and dates, and nothing that `rcgen` would add by itself.
fn unnamed(common_name: &str, validity: Validity) -> CertificateParams {
    let epoch = date_time_ymd(1970, 1, 1);
    // Year 9999 is the last that a certificate can name (RFC 5280 section 4.1.2.5).
    let last_second = 253_402_300_799;
    let date = |time: UnixMillis| epoch + Duration::from_secs((time.0 / 1000).min(last_second));
    let mut params = CertificateParams::default();
    params.not_before = date(validity.not_before);
    params.not_after = date(validity.not_after);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

/// The organisation that every certificate of the site names.
fn organization(site: SiteCode) -> String {
    format!("BGB site {site}")
}

fn new_key() -> Result<KeyPair, SiteError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unmakable("a key"))
}

/// Random and positive: the highest bit would make it a negative number in DER.
fn random_serial() -> Result<[u8; SERIAL_BYTES], SiteError> {
    let mut serial = [0; SERIAL_BYTES];
    rand::fill(&mut serial).map_err(unmakable("a serial number"))?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn whole_seconds(time: UnixMillis) -> UnixMillis {
    UnixMillis(time.0 / 1000 * 1000)
}

fn read_certificate(path: &Path) -> Result<String, SiteError> {
    use std::io::Read as _;

    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(SiteError::io(path, "cannot be opened"))?;
    file.take(CERTIFICATE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(SiteError::io(path, "cannot be read as a certificate"))?;
    Ok(text)
}

fn unmakable<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> SiteError {
    let what = format!("{what} cannot be made");
    move |error| SiteError::Certificate { what, detail: error.to_string() }
}

fn wrong(path: &Path, detail: impl std::fmt::Display) -> SiteError {
    SiteError::Certificate { what: path.display().to_string(), detail: detail.to_string() }
}

#[cfg(test)]
mod tests;
