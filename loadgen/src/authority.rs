//! A certificate authority of a run's own, for servers and clients that belong to no site: floors and other people's servers.

use std::net::IpAddr;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls_pki_types::CertificateDer;

/// See the module.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub(crate) struct Issued {
    pub(crate) certificate: CertificateDer<'static>,
    /// PKCS#8, DER.
    pub(crate) key: Vec<u8>,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

/// Whom a certificate names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Named<'a> {
    Name(&'a str),
    Address(IpAddr),
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut params = named("load generator's authority")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// A P-256 key and its certificate.
    ///
    /// # Errors
    /// When the name is none.
    pub(crate) fn issue(&self, whom: Named<'_>) -> anyhow::Result<Issued> {
        let (name, alternative) = match whom {
            Named::Name(name) => (name.to_owned(), SanType::DnsName(name.try_into()?)),
            Named::Address(address) => (address.to_string(), SanType::IpAddress(address)),
        };
        let mut params = named(&name)?;
        params.subject_alt_names = vec![alternative];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Issued {
            certificate: certificate.der().clone(),
            key: key.serialize_der(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Its own certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        self.0.der()
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }
}

/// Two certificates of one name would look as if each had signed itself.
fn named(name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
