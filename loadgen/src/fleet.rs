//! A fleet: devices that were added to a site in bulk, kept in one folder for the processes that play them.
//!
//! ```text
//! fleet.toml     the site, whom to trust, where the servers are, how many devices
//! devices.bin    a device after the other: its number, certificate and key
//! ```
//!
//! It holds private keys, so the folder is its owner's alone (mode 0700).

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use bgb_protocol::api::{AddDevices, DEVICES_PER_REQUEST_MAX, DeviceBundle, DeviceBundles};
use bgb_protocol::ids::{DeviceId, SiteCode};
use bgb_protocol::signature::TrustedKeys;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::authority::{Authority, Issued, Named};
use crate::manager::Manager;

/// A device's record is shorter than this: a certificate, a key and a number.
const RECORD_BYTES_MAX: u32 = 16 * 1024;

/// What all devices of a fleet share: `fleet.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fleet {
    /// The site's code.
    pub(crate) site: String,
    /// The site's authority, PEM.
    pub(crate) authority_pem: String,
    /// Public keys that sign tasks, in hexadecimal.
    pub(crate) task_keys: Vec<String>,
    /// Notification servers, `host:port`.
    pub(crate) servers: Vec<String>,
    /// How many devices there are.
    pub(crate) devices: usize,
}

/// A device, as it stands in `devices.bin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Its number.
    pub(crate) number: DeviceId,
    /// Its certificate, DER.
    #[serde(with = "serde_bytes")]
    pub(crate) certificate: Vec<u8>,
    /// Its key, PKCS#8.
    #[serde(with = "serde_bytes")]
    pub(crate) key: Vec<u8>,
}

impl Fleet {
    /// Adds `count` devices to the manager's site and keeps them in `folder`, which must not be there yet; `told` hears how many
    /// there are so far.
    ///
    /// # Errors
    /// When the manager refuses, or the folder cannot be written.
    pub(crate) fn make(
        manager: &Manager,
        folder: &Path,
        count: usize,
        told: impl Fn(usize),
    ) -> anyhow::Result<Self> {
        if count == 0 {
            bail!("a fleet has one device at least");
        }
        let mut devices = begin(folder)?;
        let mut fleet: Option<Self> = None;
        let mut made = 0;
        while made < count {
            let names =
                (made..count.min(made + DEVICES_PER_REQUEST_MAX)).map(|number| format!("load-{number}"));
            let DeviceBundles { devices: bundles } =
                manager.post("/devices/bulk", &AddDevices { names: names.collect() })?;
            made += bundles.len();
            for bundle in &bundles {
                write_record(&mut devices, &Member::of(bundle)?)?;
            }
            let first = bundles.first().context("the manager has added no device and said no error")?;
            fleet.get_or_insert_with(|| Self::of(first, manager.site(), count));
            told(made);
        }
        let fleet = fleet.context("there is no device")?;
        fleet.finish(folder, devices)?;
        Ok(fleet)
    }

    /// Clients of a server that is no site's, in `folder`, which must not be there yet: `count` of them, with certificates of `authority`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn make_of(
        authority: &Authority,
        folder: &Path,
        server: SocketAddr,
        count: usize,
    ) -> anyhow::Result<()> {
        let mut devices = begin(folder)?;
        for number in 1..=count as u32 {
            let Issued { certificate, key, .. } = authority.issue(Named::Name(&format!("load-{number}")))?;
            let certificate = certificate.to_vec();
            write_record(&mut devices, &Member { number: DeviceId(number), certificate, key })?;
        }
        let fleet = Self {
            site: "LAB".to_owned(),
            authority_pem: authority.pem(),
            task_keys: Vec::new(),
            servers: vec![server.to_string()],
            devices: count,
        };
        fleet.finish(folder, devices)
    }

    /// Writes `fleet.toml`: the fleet is whole by that.
    fn finish(&self, folder: &Path, mut devices: BufWriter<File>) -> anyhow::Result<()> {
        devices.flush()?;
        Ok(create(&folder.join("fleet.toml"))?.write_all(toml::to_string(self)?.as_bytes())?)
    }

    fn of(bundle: &DeviceBundle, site: &str, devices: usize) -> Self {
        Self {
            site: site.to_owned(),
            authority_pem: bundle.authority_pem.clone(),
            task_keys: bundle.task_keys.clone(),
            servers: bundle.servers.clone(),
            devices,
        }
    }

    /// Reads `fleet.toml` of a folder.
    ///
    /// # Errors
    /// When it is not there or says something else.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("fleet.toml");
        let text = fs::read_to_string(&path).with_context(|| {
            format!("{}: there is no fleet; make one with: bgb-loadgen devices", path.display())
        })?;
        toml::from_str(&text).with_context(|| format!("{}", path.display()))
    }

    /// The site's code.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn code(&self) -> anyhow::Result<SiteCode> {
        self.site.parse().map_err(|error| anyhow::anyhow!("the fleet's site is none: {error}"))
    }

    /// The authority in DER form.
    ///
    /// # Errors
    /// When it is no certificate.
    pub(crate) fn authority(&self) -> anyhow::Result<Vec<u8>> {
        let certificate = CertificateDer::from_pem_slice(self.authority_pem.as_bytes());
        Ok(certificate
            .map_err(|error| anyhow::anyhow!("the fleet's authority is no certificate: {error}"))?
            .to_vec())
    }

    /// The keys that sign tasks.
    ///
    /// # Errors
    /// When one of them is none.
    pub(crate) fn trusted(&self) -> anyhow::Result<TrustedKeys> {
        let keys: anyhow::Result<Vec<[u8; 32]>> = self.task_keys.iter().map(|text| key_of(text)).collect();
        Ok(TrustedKeys::new(keys?))
    }

    /// Devices `first` up to `first + count` of the folder.
    ///
    /// # Errors
    /// When the file has fewer, or is damaged.
    pub(crate) fn members(folder: &Path, first: usize, count: usize) -> anyhow::Result<Vec<Member>> {
        let path = folder.join("devices.bin");
        let named = || format!("{}", path.display());
        let mut file = BufReader::new(File::open(&path).with_context(named)?);
        let mut members = Vec::with_capacity(count);
        for place in 0..first + count {
            let record =
                read_record(&mut file).with_context(|| format!("{}: device {place}", path.display()))?;
            if place >= first {
                members.push(postcard::from_bytes(&record).with_context(named)?);
            }
        }
        Ok(members)
    }
}

impl Member {
    fn of(bundle: &DeviceBundle) -> anyhow::Result<Self> {
        let certificate = CertificateDer::from_pem_slice(bundle.certificate_pem.as_bytes())
            .map_err(|error| anyhow::anyhow!("the manager gave no certificate: {error}"))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(bundle.key_pem.as_bytes())
            .map_err(|error| anyhow::anyhow!("the manager gave no private key: {error}"))?;
        Ok(Self {
            number: bundle.number,
            certificate: certificate.to_vec(),
            key: key.secret_pkcs8_der().to_vec(),
        })
    }
}

/// Makes a fleet's folder; the file of its devices.
fn begin(folder: &Path) -> anyhow::Result<BufWriter<File>> {
    fs::DirBuilder::new().mode(0o700).create(folder).with_context(|| {
        format!("{}: the fleet's folder cannot be made; name one that is not there", folder.display())
    })?;
    Ok(BufWriter::new(create(&folder.join("devices.bin"))?))
}

fn create(path: &Path) -> std::io::Result<File> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn write_record(out: &mut impl std::io::Write, member: &Member) -> anyhow::Result<()> {
    let record = postcard::to_stdvec(member)?;
    out.write_all(&u32::try_from(record.len())?.to_le_bytes())?;
    Ok(out.write_all(&record)?)
}

fn read_record(file: &mut impl std::io::Read) -> anyhow::Result<Vec<u8>> {
    let mut length = [0; 4];
    file.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > RECORD_BYTES_MAX {
        bail!("a record of {length} bytes is no device's");
    }
    let mut record = vec![0; length as usize];
    file.read_exact(&mut record)?;
    Ok(record)
}

fn key_of(text: &str) -> anyhow::Result<[u8; 32]> {
    let byte =
        |place: usize| text.get(2 * place..2 * place + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let bytes: Option<Vec<u8>> = (0..32).map(byte).collect();
    let key = bytes.filter(|_| text.len() == 64).and_then(|bytes| bytes.try_into().ok());
    key.with_context(|| format!("{text:?} is no public key: 64 hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were_written_and_a_damaged_length_is_an_error() {
        let member = Member { number: DeviceId(7), certificate: vec![1; 700], key: vec![2; 120] };
        let mut file = Vec::new();
        write_record(&mut file, &member).unwrap();
        write_record(&mut file, &member).unwrap();
        let mut rest = file.as_slice();
        for _ in 0..2 {
            let record = read_record(&mut rest).unwrap();
            assert_eq!(postcard::from_bytes::<Member>(&record).unwrap(), member);
        }
        assert!(read_record(&mut rest).is_err());
        file[3] = 1;
        assert!(read_record(&mut file.as_slice()).unwrap_err().to_string().contains("no device's"));
    }

    #[test]
    fn a_public_key_has_sixty_four_digits() {
        assert_eq!(key_of(&"0f".repeat(32)).unwrap(), [15; 32]);
        for wrong in ["", "0f", &"0g".repeat(32), &"0f".repeat(33)] {
            assert!(key_of(wrong).is_err(), "{wrong:?}");
        }
    }
}
