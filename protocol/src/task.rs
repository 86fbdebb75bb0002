//! Tasks and cancels: what the manager signs, and how it reaches a device.
//!
//! A task's signed bytes are made once and shared by every target. A push is two parts: those bytes, and the device's
//! short proof of membership. [`SignedTask`] keeps the bytes as they were signed beside what they say.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::action::{Action, Parameters};
use crate::codec::{self, CodecError};
use crate::ids::{SiteCode, TaskId, UnixMillis};
use crate::signature::{Envelope, SignatureError, SigningKey, StatementKind, TrustedKeys};
use crate::target_set::TargetDigest;

/// Shortest validity that a task may have: 1 minute.
pub const VALIDITY_MS_MIN: u64 = 60 * 1000;
/// Longest validity that a task may have: 7 days.
pub const VALIDITY_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;
/// Validity of a task that names none: 1 hour, as in Configuration Manager.
pub const VALIDITY_MS_DEFAULT: u64 = 60 * 60 * 1000;
/// How far a task's start may lie ahead of the agent's time before it is refused as not yet valid.
pub const NOT_BEFORE_TOLERANCE_MS: u64 = 120 * 1000;

/// What is signed of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatement {
    /// The site that the task belongs to.
    pub site: SiteCode,
    /// The task's id.
    pub task: TaskId,
    /// [`Action::code`]; a number, so that a task with an action that is not known here can be refused by name.
    pub action: u16,
    /// What the action needs to know.
    pub parameters: Parameters,
    /// Who is meant.
    pub targets: TargetDigest,
    /// Start of the validity.
    pub not_before: UnixMillis,
    /// End of the validity: nothing starts after it.
    pub expires: UnixMillis,
    /// SHA-256 of the approval that the task needed, where it needed one.
    pub approval: Option<[u8; 32]>,
}

/// What is signed of a cancel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelStatement {
    /// The site that the task belongs to.
    pub site: SiteCode,
    /// The task that ends.
    pub task: TaskId,
    /// The task's own expiry: until then an agent remembers the cancel, also when it comes before the task.
    pub expires: UnixMillis,
    /// When it was cancelled.
    pub cancelled: UnixMillis,
}

/// Why signed bytes are not a task, a cancel, a head or a policy of this site.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StatementError {
    /// The bytes are malformed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The signature does not hold.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// It was made for another site.
    #[error("it was made for site {found}; this is {here}")]
    Site {
        /// The site that it names.
        found: SiteCode,
        /// Our own.
        here: SiteCode,
    },
}

impl TaskStatement {
    /// The action, if this release knows it.
    #[must_use]
    pub fn known_action(&self) -> Option<Action> {
        Action::from_code(self.action)
    }
}

/// A task as it was signed.
#[derive(Clone, Debug)]
pub struct SignedTask {
    bytes: Arc<[u8]>,
    envelope: Arc<Envelope>,
    statement: TaskStatement,
}

/// A cancel as it was signed.
#[derive(Clone, Debug)]
pub struct SignedCancel {
    bytes: Arc<[u8]>,
    envelope: Arc<Envelope>,
    statement: CancelStatement,
}

macro_rules! signed {
    ($signed:ident, $statement:ident, $kind:expr, $what:literal) => {
        impl $signed {
            /// Signs `statement`.
            #[must_use]
            pub fn sign(statement: $statement, key: &SigningKey) -> Self {
                let envelope = Envelope::sign($kind, codec::encode_versioned(&statement), key);
                Self { bytes: envelope.encode().into(), envelope: Arc::new(envelope), statement }
            }

            /// Reads signed bytes; the signature is not verified by that.
            ///
            /// # Errors
            /// [`CodecError`] when the bytes are malformed.
            pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
                let envelope = Envelope::decode(bytes)?;
                let statement = codec::decode_versioned($what, &envelope.statement)?;
                Ok(Self { bytes: bytes.into(), envelope: Arc::new(envelope), statement })
            }

            /// Checks that it was signed by a key of `trusted`, for `site`.
            ///
            /// # Errors
            /// [`StatementError::Signature`] or [`StatementError::Site`].
            pub fn verify(&self, site: SiteCode, trusted: &TrustedKeys) -> Result<(), StatementError> {
                self.envelope.verify($kind, trusted)?;
                if self.statement.site != site {
                    return Err(StatementError::Site { found: self.statement.site, here: site });
                }
                Ok(())
            }

            /// The bytes that travel: statement and signatures, as they were signed.
            #[must_use]
            pub fn bytes(&self) -> &Arc<[u8]> {
                &self.bytes
            }

            /// What the bytes say.
            #[must_use]
            pub fn statement(&self) -> &$statement {
                &self.statement
            }
        }
    };
}
pub(crate) use signed;

signed!(SignedTask, TaskStatement, StatementKind::Task, "task");
signed!(SignedCancel, CancelStatement, StatementKind::Cancel, "cancel");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::laws::{digest, hold_for, parameters, site, task, time};
    use crate::target_set::TargetSet;

    fn statement() -> TaskStatement {
        TaskStatement {
            site: "LAB".parse().unwrap(),
            task: TaskId::from_bytes([9; 16]),
            action: Action::Ping.code(),
            parameters: Parameters::none(),
            targets: TargetSet::new([1, 2, 3].into_iter().collect()).unwrap().digest(),
            not_before: UnixMillis(1_000),
            expires: UnixMillis(61_000),
            approval: None,
        }
    }

    proptest! {
        #[test]
        fn a_task_keeps_the_laws_of_the_codec(
            site in site(), task in task(), action in any::<u16>(), parameters in parameters(), targets in digest(),
            not_before in time(), expires in time(), approval in prop::option::of(any::<[u8; 32]>()),
        ) {
            hold_for(&TaskStatement { site, task, action, parameters, targets, not_before, expires, approval });
        }

        #[test]
        fn a_cancel_keeps_the_laws_of_the_codec(
            site in site(), task in task(), expires in time(), cancelled in time(),
        ) {
            hold_for(&CancelStatement { site, task, expires, cancelled });
        }

        #[test]
        fn a_task_that_was_altered_anywhere_holds_no_more(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let key = SigningKey::from_seed([3; 32]);
            let signed = SignedTask::sign(statement(), &key);
            let mut bytes = signed.bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(read) = SignedTask::decode(&bytes) {
                prop_assert!(read.verify("LAB".parse().unwrap(), &TrustedKeys::new([key.public()])).is_err());
            }
        }
    }

    #[test]
    fn a_task_reads_back_as_it_was_signed() {
        let key = SigningKey::from_seed([3; 32]);
        let trusted = TrustedKeys::new([key.public()]);
        let signed = SignedTask::sign(statement(), &key);
        let read = SignedTask::decode(signed.bytes()).unwrap();
        assert_eq!(read.statement(), &statement());
        assert_eq!(read.verify("LAB".parse().unwrap(), &trusted), Ok(()));
        assert!(matches!(read.verify("XYZ".parse().unwrap(), &trusted), Err(StatementError::Site { .. })));
    }

    #[test]
    fn a_task_is_no_cancel() {
        let key = SigningKey::from_seed([3; 32]);
        let signed = SignedTask::sign(statement(), &key);
        let cancel = SignedCancel::decode(signed.bytes());
        assert!(
            cancel.is_err()
                || cancel.unwrap().verify("LAB".parse().unwrap(), &TrustedKeys::new([key.public()])).is_err()
        );
    }
}
