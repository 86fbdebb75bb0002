//! Who a certificate speaks for.
//!
//! A site's certificates name their holder in one subject alternative name of the kind URI:
//!
//! ```text
//! urn:bgb:LAB:device:17:0193f1c2-7d3a-7c55-8a0e-2b9c5d1e6f70      site, role, number, GUID
//! urn:bgb:LAB:server:1                                            site, role, number
//! ```
//!
//! Reading an identity proves nothing: the TLS side has verified the chain, the dates and the key usage before.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::ids::{DeviceGuid, DeviceId, KeyId, ServerId, SiteCode, UnixMillis};
use crate::signature::{key_id, sha256};

/// The holder of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A managed machine.
    Device(DeviceId, DeviceGuid),
    /// A notification server.
    Server(ServerId),
}

/// A site and a role within it: what the URI says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The site.
    pub site: SiteCode,
    /// The role.
    pub role: Role,
}

/// What a certificate says of its holder, its key and its dates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whose it is.
    pub holder: Holder,
    /// From when on it holds.
    pub not_before: UnixMillis,
    /// Until when it holds.
    pub not_after: UnixMillis,
    /// The public key: for P-256 an uncompressed point of 65 bytes.
    pub public_key: Vec<u8>,
    /// The public key's id.
    pub key: KeyId,
    /// SHA-256 of the whole certificate.
    pub fingerprint: [u8; 32],
}

/// Why a certificate names no holder.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Not a certificate.
    #[error("the bytes are no X.509 certificate")]
    Malformed,
    /// No URI of a BGB site among its names, or more than one.
    #[error("the certificate does not name exactly one BGB holder (a subject alternative name urn:bgb:…)")]
    NoHolder,
    /// A URI of BGB that does not have the form that it should.
    #[error(
        "{0:?} names no holder; it should read urn:bgb:SITE:device:NUMBER:GUID or urn:bgb:SITE:server:NUMBER"
    )]
    BadHolder(String),
    /// Dates before 1970.
    #[error("the certificate's dates cannot be used")]
    Dates,
}

impl Identity {
    /// Reads the identity out of a certificate in DER form.
    ///
    /// # Errors
    /// As [`IdentityError`] says.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Malformed)?;
        if !rest.is_empty() {
            return Err(IdentityError::Malformed);
        }
        let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Malformed)?;
        let mut holders =
            names.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
                GeneralName::URI(uri) if uri.starts_with("urn:bgb:") => Some(uri.parse::<Holder>()),
                _ => None,
            });
        let (Some(holder), None) = (holders.next(), holders.next()) else {
            return Err(IdentityError::NoHolder);
        };
        let millis = |seconds: i64| {
            let seconds = u64::try_from(seconds).map_err(|_| IdentityError::Dates)?;
            Ok::<_, IdentityError>(UnixMillis(seconds.saturating_mul(1000)))
        };
        let validity = certificate.validity();
        let public_key = certificate.public_key().subject_public_key.data.to_vec();
        Ok(Self {
            holder: holder?,
            not_before: millis(validity.not_before.timestamp())?,
            not_after: millis(validity.not_after.timestamp())?,
            key: key_id(&public_key),
            public_key,
            fingerprint: sha256(der),
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Device(id, guid) => write!(formatter, "urn:bgb:{}:device:{id}:{guid}", self.site),
            Role::Server(id) => write!(formatter, "urn:bgb:{}:server:{id}", self.site),
        }
    }
}

impl FromStr for Holder {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let bad = || IdentityError::BadHolder(text.chars().take(128).collect());
        let parts: Vec<_> = text.split(':').collect();
        let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
        let site = |text: &str| text.parse::<SiteCode>().map_err(|_| bad());
        let holder = match parts[..] {
            ["urn", "bgb", code, "device", id, guid] => {
                let guid = guid.parse().map_err(|_| bad())?;
                Self { site: site(code)?, role: Role::Device(DeviceId(number(id)?), guid) }
            }
            ["urn", "bgb", code, "server", id] => {
                Self { site: site(code)?, role: Role::Server(ServerId(number(id)?)) }
            }
            _ => return Err(bad()),
        };
        // A holder has one spelling: no sign, no leading zero, the GUID in its lower-case form with hyphens.
        if holder.to_string() == text { Ok(holder) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn certificate(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    proptest! {
        #[test]
        fn an_altered_certificate_is_read_or_refused_and_no_panic(
            at in any::<prop::sample::Index>(), altered in any::<u8>(), cut in any::<prop::sample::Index>(),
        ) {
            let mut der = certificate(&["urn:bgb:LAB:server:2"]);
            prop_assert_eq!(Identity::from_der(&der[..cut.index(der.len())]), Err(IdentityError::Malformed));
            let at = at.index(der.len());
            der[at] = altered;
            let _ = Identity::from_der(&der);
        }

        #[test]
        fn a_holder_has_one_spelling(text in "urn:bgb:[A-Z0-9]{3}:(server:[+0-9]{1,11}|device:[0-9]{1,4}:[0-9a-fA-F-]{36})") {
            if let Ok(holder) = text.parse::<Holder>() {
                prop_assert_eq!(holder.to_string(), text);
            }
        }
    }

    #[test]
    fn a_certificate_names_its_holder_once() {
        let guid = "0193f1c2-7d3a-7c55-8a0e-2b9c5d1e6f70";
        let identity = Identity::from_der(&certificate(&[&format!("urn:bgb:LAB:device:17:{guid}")])).unwrap();
        assert_eq!(identity.holder.to_string(), format!("urn:bgb:LAB:device:17:{guid}"));
        assert_eq!(identity.public_key.len(), 65);
        let server =
            Identity::from_der(&certificate(&["https://example.org", "urn:bgb:LAB:server:2"])).unwrap();
        assert_eq!(server.holder.role, Role::Server(ServerId(2)));
    }

    #[test]
    fn none_two_or_a_malformed_one_is_nobody() {
        assert_eq!(Identity::from_der(&certificate(&["https://example.org"])), Err(IdentityError::NoHolder));
        let twice = certificate(&["urn:bgb:LAB:server:2", "urn:bgb:LAB:server:3"]);
        assert_eq!(Identity::from_der(&twice), Err(IdentityError::NoHolder));
        for wrong in [
            "urn:bgb:lab:server:2",
            "urn:bgb:LAB:server:x",
            "urn:bgb:LAB:king:2",
            "urn:bgb:LAB:device:1",
            "urn:bgb:LAB:server:+2",
            "urn:bgb:LAB:server:02",
            "urn:bgb:LAB:device:1:0193F1C2-7D3A-7C55-8A0E-2B9C5D1E6F70",
            "urn:bgb:LAB:device:1:0193f1c27d3a7c558a0e2b9c5d1e6f70",
        ] {
            let error = Identity::from_der(&certificate(&[wrong])).unwrap_err();
            assert!(matches!(error, IdentityError::BadHolder(_)), "{wrong}: {error}");
        }
        assert_eq!(Identity::from_der(b"rubbish"), Err(IdentityError::Malformed));
        let mut longer = certificate(&["urn:bgb:LAB:server:2"]);
        longer.push(0);
        assert_eq!(Identity::from_der(&longer), Err(IdentityError::Malformed));
    }
}
