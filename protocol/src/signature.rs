//! Signing and verifying: an envelope of statement and signatures, and the keys that make and check them.
//!
//! A statement is signed as the bytes that it was written in, behind a context that says what kind of statement it
//! is: `"bgb/1 " kind 0x00 statement`. So a cancel can never be taken for a task. Whoever passes an envelope on passes the
//! very bytes; nobody encodes again what was signed.
//!
//! The site's own words (tasks, cancels, heads, policies) are signed with Ed25519 (RFC 8032) by the manager. A device's
//! (results) are signed with ECDSA P-256 and SHA-256 (FIPS 186-5, r and s as 32 bytes each), by the key of its certificate.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec::{self, CodecError};
use crate::ids::KeyId;

/// Bytes of a signature, of either algorithm.
pub const SIGNATURE_BYTES: usize = 64;

/// Most signatures that one envelope may carry.
pub const SIGNATURES_MAX: usize = 8;

/// Most bytes of a whole envelope: what fits a frame with a proof beside it.
pub const ENVELOPE_BYTES_MAX: usize = 62 * 1024;

/// What kind of statement is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementKind {
    /// A task: [`crate::task::TaskStatement`].
    Task,
    /// The cancelling of a task: [`crate::task::CancelStatement`].
    Cancel,
    /// The state of the queue and the time: [`crate::head::HeadStatement`].
    Head,
    /// A policy document: [`crate::policy::PolicyStatement`].
    Policy,
    /// A device's result: [`crate::result::ResultStatement`].
    Result,
}

impl StatementKind {
    fn context(self) -> &'static [u8] {
        match self {
            Self::Task => b"bgb/1 task\0",
            Self::Cancel => b"bgb/1 cancel\0",
            Self::Head => b"bgb/1 head\0",
            Self::Policy => b"bgb/1 policy\0",
            Self::Result => b"bgb/1 result\0",
        }
    }

    fn signing_input(self, statement: &[u8]) -> Vec<u8> {
        [self.context(), statement].concat()
    }
}

/// One key's signature over an envelope's statement.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The key that signed.
    pub key: KeyId,
    /// The signature's bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: [u8; SIGNATURE_BYTES],
}

impl fmt::Debug for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Signature({})", self.key)
    }
}

/// A statement, as it was signed, and its signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The signed bytes, of which the first is a version.
    #[serde(with = "serde_bytes")]
    pub statement: Vec<u8>,
    /// Who signed them.
    pub signatures: Vec<Signature>,
}

/// Why a signature does not hold, or a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// None of the signatures is by a key that is trusted here.
    #[error("no key that is trusted here signed it (signed by {0})")]
    Untrusted(String),
    /// A signature by a trusted key does not match: the bytes were altered.
    #[error("the signature by key {0} does not match the bytes")]
    Mismatch(KeyId),
    /// The private key's bytes are not what was expected.
    #[error("the private key is not {0} in PKCS#8")]
    BadKey(&'static str),
    /// The envelope itself is malformed or over a limit.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl Envelope {
    /// Signs `statement` as a `kind`.
    #[must_use]
    pub fn sign(kind: StatementKind, statement: Vec<u8>, key: &SigningKey) -> Self {
        let signature = key.sign(kind, &statement);
        Self { statement, signatures: vec![signature] }
    }

    /// The envelope's bytes, which are what travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.statement.len() + 80);
        codec::encode(self, &mut out);
        out
    }

    /// Reads an envelope; its signatures are not verified by that.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are no envelope, or are over a limit.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            let (found, limit) = (bytes.len(), ENVELOPE_BYTES_MAX);
            return Err(CodecError::Limit { what: "a signed envelope, in bytes", found, limit });
        }
        let envelope: Self = codec::decode("signed envelope", codec::VERSION, bytes)?;
        if envelope.signatures.len() > SIGNATURES_MAX {
            let (found, limit) = (envelope.signatures.len(), SIGNATURES_MAX);
            return Err(CodecError::Limit { what: "an envelope's signatures", found, limit });
        }
        Ok(envelope)
    }

    /// Checks that a key of `trusted` signed the statement as a `kind`.
    ///
    /// # Errors
    /// [`SignatureError::Untrusted`] or [`SignatureError::Mismatch`].
    pub fn verify(&self, kind: StatementKind, trusted: &TrustedKeys) -> Result<(), SignatureError> {
        let input = kind.signing_input(&self.statement);
        for signature in &self.signatures {
            if let Some(public) = trusted.0.get(&signature.key) {
                return UnparsedPublicKey::new(&ED25519, public)
                    .verify(&input, &signature.bytes)
                    .map_err(|_| SignatureError::Mismatch(signature.key));
            }
        }
        let keys: Vec<_> = self.signatures.iter().map(|signature| signature.key.to_string()).collect();
        Err(SignatureError::Untrusted(if keys.is_empty() { "nobody".to_owned() } else { keys.join(", ") }))
    }
}

/// The manager's private key (Ed25519).
pub struct SigningKey {
    pair: Ed25519KeyPair,
    id: KeyId,
}

impl SigningKey {
    /// Makes a new key; the second value is its PKCS#8 form, to be kept in a secret file.
    ///
    /// # Errors
    /// [`SignatureError::BadKey`] when the system gives no randomness.
    pub fn generate() -> Result<(Self, Vec<u8>), SignatureError> {
        let bad = |_| SignatureError::BadKey("an Ed25519 key");
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(bad)?;
        Ok((Self::from_pkcs8(pkcs8.as_ref())?, pkcs8.as_ref().to_vec()))
    }

    /// Reads a key from its PKCS#8 DER form.
    ///
    /// # Errors
    /// [`SignatureError::BadKey`].
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, SignatureError> {
        let pair = Ed25519KeyPair::from_pkcs8(der).map_err(|_| SignatureError::BadKey("an Ed25519 key"))?;
        Ok(Self::of(pair))
    }

    /// The key whose seed is `seed`: for test vectors and simulations, which must come out the same each time.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self::of(Ed25519KeyPair::from_seed_unchecked(&seed).expect("any 32 bytes are an Ed25519 seed"))
    }

    fn of(pair: Ed25519KeyPair) -> Self {
        let id = key_id(pair.public_key().as_ref());
        Self { pair, id }
    }

    /// The key's id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The public half, 32 bytes.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes")
    }

    fn sign(&self, kind: StatementKind, statement: &[u8]) -> Signature {
        let signature = self.pair.sign(&kind.signing_input(statement));
        let bytes = signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes");
        Signature { key: self.id, bytes }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SigningKey({})", self.id)
    }
}

/// The public keys (Ed25519) whose word a side takes as the site's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedKeys(BTreeMap<KeyId, [u8; 32]>);

impl TrustedKeys {
    /// Trusts exactly `keys`.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = [u8; 32]>) -> Self {
        Self(keys.into_iter().map(|public| (key_id(&public), public)).collect())
    }

    /// Whether no key is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A device's private key (ECDSA P-256): the one of its certificate.
pub struct DeviceKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    id: KeyId,
}

impl DeviceKey {
    /// Reads a key from its PKCS#8 DER form.
    ///
    /// # Errors
    /// [`SignatureError::BadKey`].
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, SignatureError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der)
            .map_err(|_| SignatureError::BadKey("an ECDSA P-256 key"))?;
        let id = key_id(pair.public_key().as_ref());
        Ok(Self { pair, random: SystemRandom::new(), id })
    }

    /// Makes a new key; the second value is its PKCS#8 form.
    ///
    /// # Errors
    /// [`SignatureError::BadKey`] when the system gives no randomness.
    pub fn generate() -> Result<(Self, Vec<u8>), SignatureError> {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| SignatureError::BadKey("an ECDSA P-256 key"))?;
        Ok((Self::from_pkcs8(pkcs8.as_ref())?, pkcs8.as_ref().to_vec()))
    }

    /// The key's id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The public half: an uncompressed point of 65 bytes.
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        self.pair.public_key().as_ref().to_vec()
    }

    /// Signs a statement.
    ///
    /// # Errors
    /// [`SignatureError::BadKey`] when the system gives no randomness.
    pub fn sign(&self, kind: StatementKind, statement: &[u8]) -> Result<Signature, SignatureError> {
        let signature = self
            .pair
            .sign(&self.random, &kind.signing_input(statement))
            .map_err(|_| SignatureError::BadKey("usable: the system gives no randomness for ECDSA P-256"))?;
        let bytes = signature.as_ref().try_into().expect("a fixed P-256 signature has 64 bytes");
        Ok(Signature { key: self.id, bytes })
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DeviceKey({})", self.id)
    }
}

/// Checks a device's signature against `public`, the 65-byte point of its certificate.
///
/// # Errors
/// [`SignatureError::Mismatch`].
pub fn verify_device(
    kind: StatementKind,
    statement: &[u8],
    signature: &Signature,
    public: &[u8],
) -> Result<(), SignatureError> {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public)
        .verify(&kind.signing_input(statement), &signature.bytes)
        .map_err(|_| SignatureError::Mismatch(signature.key))
}

/// The id of a public key.
#[must_use]
pub fn key_id(public: &[u8]) -> KeyId {
    let hash = sha256(public);
    KeyId(hash[..8].try_into().expect("a SHA-256 has more than 8 bytes"))
}

/// SHA-256 (FIPS 180-4).
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("a SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::laws::{bytes, hold_for, signature};

    proptest! {
        #[test]
        fn an_envelope_keeps_the_laws_of_the_codec(
            statement in bytes(), signatures in prop::collection::vec(signature(), 0..3), garbage in bytes(),
        ) {
            hold_for(&Envelope { statement, signatures });
            let _ = Envelope::decode(&garbage);
        }
    }

    #[test]
    fn an_envelope_holds_for_its_kind_key_and_bytes_only() {
        let key = SigningKey::from_seed([1; 32]);
        let other = SigningKey::from_seed([2; 32]);
        let trusted = TrustedKeys::new([key.public()]);
        let envelope = Envelope::sign(StatementKind::Task, b"statement".to_vec(), &key);
        let envelope = Envelope::decode(&envelope.encode()).unwrap();
        assert_eq!(envelope.verify(StatementKind::Task, &trusted), Ok(()));
        assert_eq!(envelope.verify(StatementKind::Cancel, &trusted), Err(SignatureError::Mismatch(key.id())));
        assert!(matches!(
            envelope.verify(StatementKind::Task, &TrustedKeys::new([other.public()])),
            Err(SignatureError::Untrusted(_))
        ));
        let mut altered = envelope.clone();
        altered.statement[0] ^= 1;
        assert_eq!(altered.verify(StatementKind::Task, &trusted), Err(SignatureError::Mismatch(key.id())));
        let unsigned = Envelope { signatures: Vec::new(), ..envelope };
        assert!(unsigned.verify(StatementKind::Task, &trusted).is_err());
    }

    #[test]
    fn a_devices_signature_is_checked_against_its_public_point() {
        let (key, pkcs8) = DeviceKey::generate().unwrap();
        let key_again = DeviceKey::from_pkcs8(&pkcs8).unwrap();
        assert_eq!(key.id(), key_again.id());
        let signature = key.sign(StatementKind::Result, b"done").unwrap();
        assert_eq!(verify_device(StatementKind::Result, b"done", &signature, &key.public()), Ok(()));
        assert!(verify_device(StatementKind::Result, b"dona", &signature, &key.public()).is_err());
        assert!(verify_device(StatementKind::Result, b"done", &signature, b"no point").is_err());
    }

    #[test]
    fn too_many_signatures_are_refused_before_they_cost_anything() {
        let key = SigningKey::from_seed([1; 32]);
        let mut envelope = Envelope::sign(StatementKind::Head, vec![1], &key);
        envelope.signatures = vec![envelope.signatures[0].clone(); SIGNATURES_MAX + 1];
        assert!(matches!(Envelope::decode(&envelope.encode()), Err(CodecError::Limit { .. })));
    }
}
