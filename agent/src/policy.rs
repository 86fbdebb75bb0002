//! The policy that is in force on this device: taken as a whole, kept on disk as it was signed.
//!
//! It owns the applied documents, what they come to when merged, and the highest version ever applied of each name. It asks
//! nobody ([`exchange`] does) and knows no session. Laws: documents are verified one by one (signature, site, the proof
//! that this device is meant, a version not below the last one of that name) and applied together or not at all; what
//! cannot be applied leaves the old policy in force and says why. An answer that leaves a document out takes it out of
//! force, since that is how a device learns that it left a collection; so a hostile server can withhold a document, but
//! neither alter one nor bring back an older one.

pub(crate) mod exchange;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bgb_daemon::disk::Disk;
use bgb_protocol::codec::{self, CodecError};
use bgb_protocol::ids::{DeviceId, SiteCode, UnixMillis};
use bgb_protocol::message::PolicyDocument;
use bgb_protocol::policy::{
    DOCUMENTS_PER_DEVICE_MAX, PolicyError, PolicyScope, PolicySettings, SignedPolicy, is_policy_name,
};
use bgb_protocol::signature::TrustedKeys;
use bgb_protocol::target_set::ProofError;
use bgb_protocol::task::StatementError;
use crc32c::crc32c;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::durable::{self, WriteFault};

/// Most names whose versions are remembered; a site has a few dozen documents.
const NAMES_MAX: usize = 1_024;

/// Longest policy file: as many documents as a device may have, each a frame.
const FILE_BYTES_MAX: u64 = (DOCUMENTS_PER_DEVICE_MAX as u64 + 1) * 64 * 1024;

/// Why documents were not applied.
#[derive(Debug, Error)]
pub(crate) enum PolicyFault {
    #[error("document {name:?} is not taken: {source}")]
    Statement { name: String, source: StatementError },
    #[error("a document cannot be read: {0}")]
    Codec(#[from] CodecError),
    #[error("document {name:?} is not for this device: {source}")]
    Proof { name: String, source: ProofError },
    #[error(
        "document {name:?} has version {found}; version {applied} was applied before, and policy never goes back"
    )]
    Version { name: String, found: u64, applied: u64 },
    #[error("document {name:?}: {source}")]
    Settings { name: String, source: PolicyError },
    #[error("the name {0:?} is not one that a document may have, or came twice")]
    Name(String),
    #[error("{0} names of documents were seen, which is as many as are remembered")]
    Names(usize),
    #[error("the policy file cannot be written: {0}")]
    Disk(#[from] WriteFault),
}

/// Who judges documents.
#[derive(Clone, Debug)]
pub(crate) struct PolicyJudge {
    pub(crate) site: SiteCode,
    pub(crate) device: DeviceId,
    pub(crate) keys: TrustedKeys,
}

/// What came of documents that were applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Names and versions in force, the winning ones first.
    pub(crate) documents: Vec<(String, u64)>,
    /// Whether anything is other than before.
    pub(crate) is_changed: bool,
    /// The latest time at which one of them was issued.
    pub(crate) issued: UnixMillis,
}

/// The policy in force.
pub(crate) struct Policy {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    kept: Kept,
    version: u64,
    settings: Arc<PolicySettings>,
}

/// What the file holds: a version byte, this as postcard, and its CRC-32C.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    documents: Vec<PolicyDocument>,
    versions: BTreeMap<String, u64>,
}

/// A document that has passed.
struct Verified {
    name: String,
    version: u64,
    priority: i32,
    issued: UnixMillis,
    /// `None` withdraws the document.
    settings: Option<PolicySettings>,
    document: PolicyDocument,
}

impl Policy {
    /// Reads what is in force from the folder `state`. A file that is damaged, or no longer verifies, is set aside: then
    /// the defaults hold until the next answer.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub(crate) fn open(disk: Arc<dyn Disk>, state: &Path, judge: &PolicyJudge) -> io::Result<Self> {
        let path = state.join("policy");
        let kept = match disk.open_read(&path) {
            Ok(file) if file.len()? > FILE_BYTES_MAX => {
                tracing::error!(path = %path.display(), "the policy file is too long and is left out");
                Kept::default()
            }
            Ok(_) => decode(&disk.read(&path)?).unwrap_or_else(|| {
                tracing::error!(path = %path.display(), "the policy file is damaged; policy is asked for anew");
                Kept::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error),
        };
        let mut policy = Self { disk, path, kept: Kept::default(), version: 0, settings: Arc::default() };
        match verify_all(&kept.documents, &kept.versions, judge) {
            Ok(verified) => policy.set(kept, verified),
            Err(fault) => {
                tracing::error!(%fault, "the policy kept on disk does not hold any more; it is asked for anew");
                policy.kept.versions = kept.versions;
            }
        }
        Ok(policy)
    }

    /// The settings in force.
    pub(crate) fn settings(&self) -> &Arc<PolicySettings> {
        &self.settings
    }

    /// The highest version in force; 0 for none.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Takes `documents` as all that there are for this device.
    ///
    /// # Errors
    /// The first fault; nothing has changed then, unless it is [`WriteFault::Unknown`]: then the policy must be opened anew.
    pub(crate) fn apply(
        &mut self,
        documents: &[PolicyDocument],
        judge: &PolicyJudge,
    ) -> Result<Applied, PolicyFault> {
        let verified = verify_all(documents, &self.kept.versions, judge)?;
        let mut versions = self.kept.versions.clone();
        for document in &verified {
            versions.insert(document.name.clone(), document.version);
        }
        if versions.len() > NAMES_MAX {
            return Err(PolicyFault::Names(versions.len()));
        }
        let kept = Kept { documents: verified.iter().map(|one| one.document.clone()).collect(), versions };
        let applied = Applied {
            documents: in_force(&verified).map(|one| (one.name.clone(), one.version)).collect(),
            is_changed: kept != self.kept,
            issued: verified.iter().map(|one| one.issued).max().unwrap_or_default(),
        };
        if applied.is_changed {
            durable::replace(&*self.disk, &self.path, &encode(&kept))?;
            self.set(kept, verified);
        }
        Ok(applied)
    }

    fn set(&mut self, kept: Kept, verified: Vec<Verified>) {
        self.kept = kept;
        self.version = in_force(&verified).map(|one| one.version).max().unwrap_or(0);
        // The winner comes first; each one after it fills only what is still open.
        let merged = verified
            .into_iter()
            .filter_map(|one| one.settings)
            .fold(PolicySettings::default(), PolicySettings::over);
        self.settings = Arc::new(merged);
    }
}

fn in_force(verified: &[Verified]) -> impl Iterator<Item = &Verified> {
    verified.iter().filter(|one| one.settings.is_some())
}

/// Verifies each document and puts the winning one first: by priority, then by version.
fn verify_all(
    documents: &[PolicyDocument],
    versions: &BTreeMap<String, u64>,
    judge: &PolicyJudge,
) -> Result<Vec<Verified>, PolicyFault> {
    let mut verified: Vec<Verified> = Vec::with_capacity(documents.len());
    for document in documents {
        let one = verify(document, versions, judge)?;
        if verified.iter().any(|other| other.name == one.name) {
            return Err(PolicyFault::Name(one.name));
        }
        verified.push(one);
    }
    verified.sort_by_key(|one| std::cmp::Reverse((one.priority, one.version)));
    Ok(verified)
}

fn verify(
    document: &PolicyDocument,
    versions: &BTreeMap<String, u64>,
    judge: &PolicyJudge,
) -> Result<Verified, PolicyFault> {
    let signed = SignedPolicy::decode(&document.signed)?;
    let statement = signed.statement();
    let name = statement.name.clone();
    if let Err(source) = signed.verify(judge.site, &judge.keys) {
        return Err(PolicyFault::Statement { name: name.chars().take(64).collect(), source });
    }
    if !is_policy_name(&name) {
        return Err(PolicyFault::Name(name.chars().take(64).collect()));
    }
    if let PolicyScope::Set(targets) = &statement.scope
        && let Err(source) = targets.verify(judge.device, &document.proof)
    {
        return Err(PolicyFault::Proof { name, source });
    }
    match versions.get(&name) {
        Some(&applied) if statement.version < applied => {
            return Err(PolicyFault::Version { name, found: statement.version, applied });
        }
        _ => {}
    }
    let settings = match statement.settings.as_deref().map(PolicySettings::parse_known).transpose() {
        Ok(Some((settings, unknown))) => {
            if !unknown.is_empty() {
                tracing::warn!(document = %name, ?unknown, "settings that this release does not know are passed over");
            }
            Some(settings)
        }
        Ok(None) => None,
        Err(source) => return Err(PolicyFault::Settings { name, source }),
    };
    let (version, priority, issued) = (statement.version, statement.priority, statement.issued);
    Ok(Verified { name, version, priority, issued, settings, document: document.clone() })
}

fn encode(kept: &Kept) -> Vec<u8> {
    let mut bytes = codec::encode_versioned(kept);
    bytes.extend_from_slice(&crc32c(&bytes).to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Kept> {
    let (body, checksum) = bytes.split_last_chunk::<4>()?;
    (crc32c(body) == u32::from_be_bytes(*checksum)).then_some(())?;
    codec::decode_versioned("policy file", body).ok()
}
