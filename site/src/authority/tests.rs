use super::*;
use bgb_protocol::certificate::Identity;
use std::os::unix::fs::PermissionsExt as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn site() -> SiteCode {
    "LAB".parse().unwrap()
}

fn guid() -> DeviceGuid {
    "0193f1c2-7d3a-7c55-8a0e-2b9c5d1e6f70".parse().unwrap()
}

fn authority() -> (tempfile::TempDir, SiteFolder, Authority) {
    let temporary = tempfile::tempdir().unwrap();
    let folder = SiteFolder::new(temporary.path());
    std::fs::create_dir(folder.authority()).unwrap();
    let authority = Authority::create(&folder, site(), NOW).unwrap();
    (temporary, folder, authority)
}

/// Whether `certificate` bears the authority's signature.
fn is_signed_by(certificate: &IssuedCertificate, authority: &Authority) -> bool {
    let (_, leaf) = X509Certificate::from_der(&certificate.der).unwrap();
    let (_, issuer) = X509Certificate::from_der(&authority.certificate_der).unwrap();
    leaf.issuer() == issuer.subject() && leaf.verify_signature(Some(issuer.public_key())).is_ok()
}

#[test]
fn a_devices_certificate_names_it_and_holds_for_90_days() {
    let (_temporary, _folder, authority) = authority();
    let issued = authority.issue_device(DeviceId(17), guid(), NOW).unwrap();
    let identity = Identity::from_der(&issued.der).unwrap();
    assert_eq!(identity.holder, Holder { site: site(), role: Role::Device(DeviceId(17), guid()) });
    assert_eq!((identity.key, identity.fingerprint), (issued.key_id, issued.fingerprint));
    assert_eq!(identity.public_key, issued.public_key);
    assert_eq!((identity.not_before, identity.not_after), (issued.not_before, issued.not_after));
    assert_eq!(issued.not_after, NOW.plus(90 * DAY_MS));
    assert!(issued.not_before < NOW);
    assert!(is_signed_by(&issued, &authority));
}

#[test]
fn usage_tells_servers_from_devices_and_neither_may_issue() {
    let (_temporary, _folder, authority) = authority();
    let names = ["bgb.example.org".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let server = authority.issue_server(ServerId(2), &names, NOW).unwrap();
    let device = authority.issue_device(DeviceId(0), guid(), NOW).unwrap();
    for (issued, is_server) in [(&server, true), (&device, false)] {
        let (_, parsed) = X509Certificate::from_der(&issued.der).unwrap();
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert_eq!((usage.server_auth, usage.client_auth), (is_server, !is_server));
        assert!(!parsed.is_ca());
        assert_eq!(parsed.raw_serial(), issued.serial);
    }
    let (_, parsed) = X509Certificate::from_der(&server.der).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 4, "two addresses, a name, and the holder");
}

#[test]
fn the_key_that_was_issued_belongs_to_the_certificate() {
    let (_temporary, _folder, authority) = authority();
    let issued = authority.issue_device(DeviceId(1), guid(), NOW).unwrap();
    let pair = KeyPair::from_pem(&issued.key_pem).unwrap();
    assert_eq!(pair.public_key_raw(), issued.public_key);
    bgb_protocol::signature::DeviceKey::from_pkcs8(pair.serialized_der()).unwrap();
    assert_eq!(issued.public_key.len(), 65);
}

#[test]
fn validity_can_be_any_for_drills() {
    let (_temporary, _folder, authority) = authority();
    let expired = Validity { not_before: UnixMillis(1_000), not_after: UnixMillis(2_000) };
    let issued = authority.issue_device_for(DeviceId(1), guid(), expired).unwrap();
    assert_eq!(Identity::from_der(&issued.der).unwrap().not_after, UnixMillis(2_000));
    let never = Validity { not_before: NOW.plus(DAY_MS), not_after: UnixMillis(u64::MAX) };
    let issued = authority.issue_server_for(ServerId(1), &[], never).unwrap();
    assert!(Identity::from_der(&issued.der).unwrap().not_before > NOW);
}

#[test]
fn an_authority_reads_back_and_issues_under_the_same_certificate() {
    let (_temporary, folder, made) = authority();
    let read = Authority::load(&folder, site()).unwrap();
    assert_eq!(read.fingerprint(), made.fingerprint());
    let issued = read.issue_device(DeviceId(3), guid(), NOW).unwrap();
    assert!(is_signed_by(&issued, &made));
    let (_, parsed) = X509Certificate::from_der(&made.certificate_der).unwrap();
    assert!(parsed.is_ca());
    assert!(parsed.validity().not_after.timestamp() > 1_700_000_000 + 3_650 * 86_400);
}

#[test]
fn an_authority_is_refused_when_others_can_read_its_key_or_it_is_anothers() {
    let (_temporary, folder, _) = authority();
    let error = Authority::load(&folder, "XYZ".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("not the authority of site XYZ"), "{error}");
    let (_other_temporary, other, _) = authority();
    std::fs::copy(other.authority_certificate(), folder.authority_certificate()).unwrap();
    let error = Authority::load(&folder, site()).unwrap_err().to_string();
    assert!(error.contains("its key is not the one"), "{error}");
    std::fs::set_permissions(folder.authority_key(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Authority::load(&folder, site()).unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
}

#[test]
fn a_name_that_is_none_is_refused() {
    let (_temporary, _folder, authority) = authority();
    assert!(authority.issue_server(ServerId(1), &["bäd".to_owned()], NOW).is_err());
}
