//! A fleet: devices that were added to a site in bulk, kept in one folder for the processes that play them.
//!
//! ```text
//! fleet.toml     the site, whom to trust, where the servers are, how many devices
//! devices.bin    a device after the other: its number, certificate and key
//! devices.at     where each begins in there: u64, little-endian
//! ```
//!
//! It holds private keys, so the folder is its owner's alone (mode 0700).

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use bgb_protocol::api::{AddDevices, DEVICES_PER_REQUEST_MAX, DeviceBundle, DeviceBundles};
use bgb_protocol::ids::{DeviceId, SiteCode};
use bgb_protocol::signature::TrustedKeys;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::authority::{Authority, Issued, Named};
use crate::client::road::Way;
use crate::interrupt;
use crate::manager::Manager;

/// A device's record is shorter than this: a certificate, a key and a number.
const RECORD_BYTES_MAX: u32 = 16 * 1024;

/// Where servers listen for HTTP and HTTPS unless they are told otherwise (docs/configuration.md).
const HTTP_PORT: u16 = 8080;
const HTTPS_PORT: u16 = 8443;

/// A number of `devices.at`.
const PLACE_BYTES: usize = 8;

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
    /// The same where agents come by HTTP, and by HTTPS; where nobody has said, ports 8080 and 8443 of the same hosts.
    #[serde(default)]
    pub(crate) http: Vec<String>,
    #[serde(default)]
    pub(crate) https: Vec<String>,
    /// How many devices there are.
    pub(crate) devices: usize,
}

/// Where servers listen for HTTP and HTTPS, `host:port` of each; empty where that is as usual.
#[derive(Clone, Debug, Default)]
pub(crate) struct Web {
    pub(crate) http: Vec<String>,
    pub(crate) https: Vec<String>,
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
    /// there are so far. Where the servers listen for HTTP and HTTPS is in `web`, unless it is as usual.
    ///
    /// # Errors
    /// When the manager refuses, or the folder cannot be written.
    pub(crate) fn make(
        manager: &Manager,
        folder: &Path,
        count: usize,
        web: Web,
        told: impl Fn(usize),
    ) -> anyhow::Result<Self> {
        if count == 0 {
            bail!("a fleet has one device at least");
        }
        let mut devices = Devices::begin(folder)?;
        let mut fleet: Option<Self> = None;
        let mut made = 0;
        while made < count {
            interrupt::check()?;
            let names =
                (made..count.min(made + DEVICES_PER_REQUEST_MAX)).map(|number| format!("load-{number}"));
            let DeviceBundles { devices: bundles } =
                manager.post("/devices/bulk", &AddDevices { names: names.collect() })?;
            made += bundles.len();
            for bundle in &bundles {
                devices.write(&Member::of(bundle)?)?;
            }
            let first = bundles.first().context("the manager has added no device and said no error")?;
            fleet.get_or_insert_with(|| Self::of(first, manager.site(), count));
            told(made);
        }
        let fleet = fleet.context("there is no device")?;
        let fleet = Self { http: web.http, https: web.https, ..fleet };
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
        let mut devices = Devices::begin(folder)?;
        for number in 1..=count as u32 {
            let Issued { certificate, key, .. } = authority.issue(Named::Name(&format!("load-{number}")))?;
            let certificate = certificate.to_vec();
            devices.write(&Member { number: DeviceId(number), certificate, key })?;
        }
        let fleet = Self {
            site: "LAB".to_owned(),
            authority_pem: authority.pem(),
            task_keys: Vec::new(),
            servers: vec![server.to_string()],
            http: Vec::new(),
            https: Vec::new(),
            devices: count,
        };
        fleet.finish(folder, devices)
    }

    /// The same devices once more, in `folder`, which must not be there yet, who find the servers elsewhere: at `servers`, and at `web` through HTTP.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn with_servers_at(
        from: &Path,
        folder: &Path,
        servers: Vec<String>,
        web: Web,
    ) -> anyhow::Result<()> {
        let fleet = Self { servers, http: web.http, https: web.https, ..Self::read(from)? };
        fs::DirBuilder::new().mode(0o700).create(folder).with_context(|| format!("{}", folder.display()))?;
        for name in ["devices.bin", "devices.at"] {
            fs::hard_link(from.join(name), folder.join(name))
                .with_context(|| format!("{}", folder.display()))?;
        }
        fleet.write(folder)
    }

    /// Writes `fleet.toml`: the fleet is whole by that.
    fn finish(&self, folder: &Path, devices: Devices) -> anyhow::Result<()> {
        devices.finish()?;
        self.write(folder)
    }

    fn write(&self, folder: &Path) -> anyhow::Result<()> {
        Ok(create(&folder.join("fleet.toml"))?.write_all(toml::to_string(self)?.as_bytes())?)
    }

    fn of(bundle: &DeviceBundle, site: &str, devices: usize) -> Self {
        Self {
            site: site.to_owned(),
            authority_pem: bundle.authority_pem.clone(),
            task_keys: bundle.task_keys.clone(),
            servers: bundle.servers.clone(),
            http: Vec::new(),
            https: Vec::new(),
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

    /// Where its servers are for those who come by that way.
    ///
    /// # Errors
    /// When an address has no port.
    pub(crate) fn servers_by(&self, way: Way) -> anyhow::Result<Vec<String>> {
        let (said, port) = match (way.is_through_http(), way.tls_outer) {
            (false, _) => return Ok(self.servers.clone()),
            (true, false) => (&self.http, HTTP_PORT),
            (true, true) => (&self.https, HTTPS_PORT),
        };
        if !said.is_empty() {
            return Ok(said.clone());
        }
        let at_port = |server: &String| {
            let (host, _) = server.rsplit_once(':').with_context(|| format!("{server}: there is no port"))?;
            Ok(format!("{host}:{port}"))
        };
        self.servers.iter().map(at_port).collect()
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
        let (path, places) = (folder.join("devices.bin"), folder.join("devices.at"));
        let named = || format!("{}", path.display());
        let mut at = [0; PLACE_BYTES];
        let place = (first * PLACE_BYTES) as u64;
        let of_places = || format!("{}: device {first}", places.display());
        File::open(&places)
            .and_then(|places| places.read_exact_at(&mut at, place))
            .with_context(of_places)?;
        let mut file = BufReader::new(File::open(&path).with_context(named)?);
        file.seek(SeekFrom::Start(u64::from_le_bytes(at))).with_context(named)?;
        let mut members = Vec::with_capacity(count);
        for place in first..first + count {
            let record =
                read_record(&mut file).with_context(|| format!("{}: device {place}", path.display()))?;
            members.push(postcard::from_bytes(&record).with_context(named)?);
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

/// The devices of a fleet that is being made.
struct Devices {
    records: BufWriter<File>,
    places: BufWriter<File>,
    at: u64,
}

impl Devices {
    /// Makes the fleet's folder, and the files of its devices.
    fn begin(folder: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new().mode(0o700).create(folder).with_context(|| {
            format!("{}: the fleet's folder cannot be made; name one that is not there", folder.display())
        })?;
        let file = |name| anyhow::Ok(BufWriter::new(create(&folder.join(name))?));
        Ok(Self { records: file("devices.bin")?, places: file("devices.at")?, at: 0 })
    }

    fn write(&mut self, member: &Member) -> anyhow::Result<()> {
        let record = postcard::to_stdvec(member)?;
        self.records.write_all(&u32::try_from(record.len())?.to_le_bytes())?;
        self.records.write_all(&record)?;
        self.places.write_all(&self.at.to_le_bytes())?;
        self.at += 4 + record.len() as u64;
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.records.flush()?;
        Ok(self.places.flush()?)
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
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
    fn any_part_of_a_fleet_is_read_and_a_damaged_length_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("fleet");
        let member = |number: u32| Member {
            number: DeviceId(number),
            certificate: vec![1; 700 + number as usize],
            key: vec![2; 120],
        };
        let mut devices = Devices::begin(&folder).unwrap();
        (0..10).for_each(|number| devices.write(&member(number)).unwrap());
        devices.finish().unwrap();
        for (first, count) in [(0, 10), (0, 3), (7, 3), (9, 1)] {
            let part: Vec<_> = (first..first + count).map(|number| member(number as u32)).collect();
            assert_eq!(Fleet::members(&folder, first, count).unwrap(), part);
        }
        assert!(Fleet::members(&folder, 9, 2).is_err() && Fleet::members(&folder, 10, 1).is_err());
        let mut bytes = fs::read(folder.join("devices.bin")).unwrap();
        bytes[3] = 1;
        fs::write(folder.join("devices.bin"), bytes).unwrap();
        let fault = Fleet::members(&folder, 0, 1).unwrap_err();
        assert!(format!("{fault:#}").contains("no device's"), "{fault:#}");
    }

    #[test]
    fn roads_through_http_lead_to_ports_that_were_said_or_to_the_usual_ones() {
        let text = "site = \"LAB\"\nauthority_pem = \"\"\ntask_keys = []\nservers = [\"a.example:10123\", \"[::1]:7\"]\ndevices = 1\n";
        let mut fleet: Fleet = toml::from_str(text).unwrap();
        let [tcp, http, https, ..] = Way::ALL;
        assert_eq!(fleet.servers_by(tcp).unwrap(), fleet.servers);
        assert_eq!(fleet.servers_by(http).unwrap(), ["a.example:8080", "[::1]:8080"]);
        assert_eq!(fleet.servers_by(https).unwrap(), ["a.example:8443", "[::1]:8443"]);
        fleet.https = vec!["b.example:443".to_owned()];
        assert_eq!(fleet.servers_by(https).unwrap(), ["b.example:443"]);
        assert_eq!(fleet.servers_by(http).unwrap(), ["a.example:8080", "[::1]:8080"]);
    }

    #[test]
    fn a_public_key_has_sixty_four_digits() {
        assert_eq!(key_of(&"0f".repeat(32)).unwrap(), [15; 32]);
        for wrong in ["", "0f", &"0g".repeat(32), &"0f".repeat(33)] {
            assert!(key_of(wrong).is_err(), "{wrong:?}");
        }
    }
}
