//! What a new device gets: number, certificate, key, and a configuration that fits them.
//!
//! The private key is made here, goes into the answer, and is kept nowhere.

use bgb_protocol::api::DeviceBundle;
use bgb_protocol::ids::{DeviceGuid, DeviceId, SiteCode, UnixMillis};
use bgb_protocol::signature::SigningKey;
use bgb_site::store::{Labels, NewDevice};
use bgb_site::{Authority, SiteError, Store};
use serde::Serialize;

use crate::views::hex;

/// What bundles are made from.
pub(crate) struct Issuer<'a> {
    pub(crate) authority: &'a Authority,
    pub(crate) key: &'a SigningKey,
    pub(crate) servers: &'a [String],
}

/// Adds devices with these names, all or none.
pub(crate) fn add_devices(
    store: &mut Store,
    issuer: &Issuer<'_>,
    now: UnixMillis,
    names: &[String],
) -> Result<Vec<DeviceBundle>, SiteError> {
    let new: Vec<_> =
        names.iter().map(|name| NewDevice { name: name.clone(), labels: Labels::new() }).collect();
    let mut bundles = Vec::with_capacity(new.len());
    let mut names = names.iter();
    store.add_devices(&new, now, |number, guid| {
        let certificate = issuer.authority.issue_device(number, guid, now)?;
        let record = certificate.record();
        let name = names.next().expect("a certificate is asked for each name, in their order");
        let key_pem = certificate.key_pem.to_string();
        bundles.push(issuer.bundle(number, guid, name, certificate.certificate_pem, key_pem));
        Ok(record)
    })?;
    Ok(bundles)
}

impl Issuer<'_> {
    fn bundle(
        &self,
        number: DeviceId,
        guid: DeviceGuid,
        name: &str,
        certificate_pem: String,
        key_pem: String,
    ) -> DeviceBundle {
        let task_keys = vec![hex(&self.key.public())];
        DeviceBundle {
            number,
            guid,
            name: name.to_owned(),
            certificate_pem,
            key_pem,
            authority_pem: self.authority.certificate_pem().to_owned(),
            agent_toml: agent_toml(self.authority.site(), number, name, self.servers, &task_keys),
            task_keys,
            servers: self.servers.to_vec(),
        }
    }
}

/// The agent's configuration, as far as the site decides it.
#[derive(Serialize)]
struct AgentToml<'a> {
    site: &'a str,
    servers: &'a [String],
    state: &'a str,
    identity: IdentityToml<'a>,
    log: LogToml<'a>,
}

#[derive(Serialize)]
struct IdentityToml<'a> {
    certificate: &'a str,
    key: &'a str,
    authority: &'a str,
    task_keys: &'a [String],
}

#[derive(Serialize)]
struct LogToml<'a> {
    directory: &'a str,
}

/// `agent.toml`: paths are those of the bundle's other files, beside it.
fn agent_toml(
    site: SiteCode,
    number: DeviceId,
    name: &str,
    servers: &[String],
    task_keys: &[String],
) -> String {
    let config = AgentToml {
        site: site.as_str(),
        servers,
        state: "state",
        identity: IdentityToml {
            certificate: "device.pem",
            key: "device.key",
            authority: "authority.pem",
            task_keys,
        },
        log: LogToml { directory: "." },
    };
    let body = toml::to_string(&config).expect("texts and lists of texts are TOML");
    format!("# The BGB agent of device {number} ({name}) at site {site}.\n{body}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_reads_back_whatever_the_addresses() {
        let servers = ["bgb.example.org:10123".to_owned(), "we\"ird:1".to_owned()];
        let text = agent_toml("LAB".parse().unwrap(), DeviceId(7), "pc 7", &servers, &["00".repeat(32)]);
        let read: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(read["servers"][1].as_str(), Some("we\"ird:1"));
        assert_eq!(read["identity"]["key"].as_str(), Some("device.key"));
        assert_eq!(read["site"].as_str(), Some("LAB"));
    }
}
