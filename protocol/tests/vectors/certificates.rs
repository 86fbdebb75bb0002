//! The certificates of the vectors: an authority, a server's and a device's, made as a site makes them.

use bgb_protocol::certificate::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, date_time_ymd,
};
use serde_json::{Value, json};

use super::reading::hex;

/// The GUID of the device of the vectors.
pub(crate) const GUID: &str = "0193f1c2-7d3a-7c55-8a0e-2b9c5d1e6f70";

/// An identity as vectors show it.
pub(crate) fn shown(identity: &Identity) -> Value {
    json!({
        "holder": identity.holder.to_string(),
        "not_before": identity.not_before,
        "not_after": identity.not_after,
        "public_key": hex(&identity.public_key),
        "key": identity.key.to_string(),
        "fingerprint": hex(&identity.fingerprint),
    })
}

/// New certificates in DER form: the authority's, a server's, and the device's for the key whose PKCS#8 form is given.
pub(crate) fn make(device_pkcs8: &[u8]) -> [Vec<u8>; 3] {
    let authority_key = new_key();
    let mut authority = params("BGB site LAB authority", 1, 2036);
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_der = authority.self_signed(&authority_key).unwrap().der().to_vec();
    let issuer = Issuer::new(authority, authority_key);

    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let leaf = |name: &str, serial, usage, names, key: &KeyPair| {
        let mut leaf = params(name, serial, 2027);
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![usage];
        leaf.use_authority_key_identifier_extension = true;
        leaf.subject_alt_names = names;
        leaf.signed_by(key, &issuer).unwrap().der().to_vec()
    };
    let server_names = vec![
        SanType::DnsName("bgb.example.org".try_into().unwrap()),
        SanType::IpAddress([192, 0, 2, 10].into()),
        uri("urn:bgb:LAB:server:1"),
    ];
    let server = leaf("server 1", 2, ExtendedKeyUsagePurpose::ServerAuth, server_names, &new_key());
    let device_key = KeyPair::try_from(device_pkcs8).unwrap();
    let device_names = vec![uri(&format!("urn:bgb:LAB:device:5:{GUID}"))];
    let device = leaf("device 5", 3, ExtendedKeyUsagePurpose::ClientAuth, device_names, &device_key);
    [authority_der, server, device]
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn params(common_name: &str, serial: u64, last_year: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(last_year, 1, 1);
    params.serial_number = Some(SerialNumber::from(serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.distinguished_name.push(DnType::OrganizationName, "BGB site LAB");
    params
}
