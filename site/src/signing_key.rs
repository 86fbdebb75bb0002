//! The manager's signing key on disk: `task-signing.key` (PKCS#8 PEM, 0600) and `task-signing.pub` (hexadecimal).
//!
//! What it signs, agents run; so it is refused when others can read it.

use std::path::Path;

use bgb_daemon::secret;
use bgb_protocol::signature::SigningKey;
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

use crate::error::SiteError;
use crate::folder::SiteFolder;

/// The label of the PEM block (RFC 7468 section 10).
const PEM_LABEL: &str = "PRIVATE KEY";

/// Bytes of a line of PEM before it is encoded: 64 characters (RFC 7468 section 2).
const PEM_LINE_BYTES: usize = 48;

/// Makes a new key and its two files in `folder`, whose folder for them must be there.
///
/// # Errors
/// When there is one already, or the files cannot be written.
pub fn create(folder: &SiteFolder) -> Result<SigningKey, SiteError> {
    let (key, pkcs8) = SigningKey::generate().map_err(|error| SiteError::Certificate {
        what: "the signing key cannot be made".to_owned(),
        detail: error.to_string(),
    })?;
    let pem = Zeroizing::new(pem(&Zeroizing::new(pkcs8)));
    secret::write_new(&folder.signing_key(), pem.as_bytes())?;
    let path = folder.signing_key_public();
    std::fs::write(&path, public_text(&key)).map_err(SiteError::io(&path, "cannot be written"))?;
    Ok(key)
}

/// Reads the key of `folder`.
///
/// # Errors
/// When it is missing or malformed, or when others can read it.
pub fn load(folder: &SiteFolder) -> Result<SigningKey, SiteError> {
    load_from(&folder.signing_key())
}

/// Reads a key from a file.
///
/// # Errors
/// As [`load`].
pub fn load_from(path: &Path) -> Result<SigningKey, SiteError> {
    let wrong = |detail: String| SiteError::Certificate { what: path.display().to_string(), detail };
    let bytes = Zeroizing::new(secret::read(path)?);
    let (block, _) =
        Pem::read(std::io::Cursor::new(bytes.as_slice())).map_err(|error| wrong(error.to_string()))?;
    let der = Zeroizing::new(block.contents);
    if block.label != PEM_LABEL {
        return Err(wrong(format!("it holds a {}, not a PRIVATE KEY", block.label)));
    }
    SigningKey::from_pkcs8(&der).map_err(|error| wrong(error.to_string()))
}

/// The public half as agents' configurations have it: 64 hexadecimal digits, and a line's end.
fn public_text(key: &SigningKey) -> String {
    let mut text: String = key.public().iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    text
}

fn pem(der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {PEM_LABEL}-----\n");
    for line in der.chunks(PEM_LINE_BYTES) {
        base64_line(line, &mut text);
        text.push('\n');
    }
    text.push_str(&format!("-----END {PEM_LABEL}-----\n"));
    text
}

/// RFC 4648 section 4.
fn base64_line(bytes: &[u8], text: &mut String) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for group in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..group.len()].copy_from_slice(group);
        let number = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for digit in 0..4 {
            let index = (number >> (18 - 6 * digit)) & 0x3f;
            text.push(if digit <= group.len() { DIGITS[index as usize] as char } else { '=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn folder() -> (tempfile::TempDir, SiteFolder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = SiteFolder::new(temporary.path());
        std::fs::create_dir(folder.keys()).unwrap();
        (temporary, folder)
    }

    #[test]
    fn the_key_that_was_made_is_the_key_that_is_read() {
        let (_temporary, folder) = folder();
        let made = create(&folder).unwrap();
        assert_eq!(load(&folder).unwrap().public(), made.public());
        let public = std::fs::read_to_string(folder.signing_key_public()).unwrap();
        assert_eq!(public, public_text(&made));
        assert_eq!(public.len(), 65);
        assert!(create(&folder).is_err(), "a key is never overwritten");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let (_temporary, folder) = folder();
        create(&folder).unwrap();
        std::fs::set_permissions(folder.signing_key(), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(load(&folder).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn base64_pads_as_the_rfc_says() {
        for (bytes, expected) in [("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            let mut text = String::new();
            base64_line(bytes.as_bytes(), &mut text);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn a_file_of_something_else_is_named() {
        let (_temporary, folder) = folder();
        for content in ["", "rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let _ = std::fs::remove_file(folder.signing_key());
            secret::write_new(&folder.signing_key(), content.as_bytes()).unwrap();
            assert!(load(&folder).unwrap_err().to_string().contains("task-signing.key"), "{content}");
        }
    }
}
