//! Who signed a certificate, in words for a hello and a log.
//!
//! Whoever stands between agent and server chooses these words: they are cut, and cleared of what a terminal would heed. They prove nothing.

use bgb_protocol::message::TEXT_BYTES_MAX;
use rustls::pki_types::SignatureVerificationAlgorithm;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What is said of a certificate that cannot be read.
const UNREADABLE: &str = "a certificate that cannot be read";

/// The issuer's common name, or all of its name where it has none, as a hello takes it.
pub(super) fn issuer(certificate: &[u8]) -> String {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return UNREADABLE.to_owned() };
    let name = certificate.issuer();
    let common = name.iter_common_name().next().and_then(|common| common.as_str().ok());
    let mut text: String = common.map_or_else(|| name.to_string(), str::to_owned);
    text.retain(|character| !character.is_control());
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

/// Whether `certificate` is by `authority`: it names it, and bears a signature of its key. Whatever else may be wrong with it (dates, purpose,
/// that it is an authority itself) says nothing of who made it, and a verifier of whole chains finds that first.
pub(super) fn is_signed_by(
    certificate: &[u8],
    authority: &[u8],
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let Ok((_, authority)) = X509Certificate::from_der(authority) else { return false };
    let key = &authority.public_key().subject_public_key.data;
    let (signed, signature) = (certificate.tbs_certificate.as_ref(), &certificate.signature_value.data);
    // By which algorithm is not asked: to those of another kind the key is none.
    certificate.issuer().as_raw() == authority.subject().as_raw()
        && algorithms.iter().any(|algorithm| algorithm.verify_signature(key, signed, signature).is_ok())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn self_signed(kind: DnType, name: &str) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(kind, name);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_common_name_is_said_and_else_the_whole_one() {
        assert_eq!(issuer(&self_signed(DnType::CommonName, "Example Proxy CA")), "Example Proxy CA");
        assert_eq!(issuer(&self_signed(DnType::OrganizationName, "Example")), "O=Example");
        assert_eq!(issuer(b"rubbish"), UNREADABLE);
    }

    #[test]
    fn what_a_stranger_has_put_there_fits_a_hello() {
        let text = issuer(&self_signed(DnType::CommonName, &format!("\u{1b}[2J\n{}", "é".repeat(300))));
        assert!(text.starts_with("[2Jé") && text.len() <= TEXT_BYTES_MAX, "{text}");
    }
}
