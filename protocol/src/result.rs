//! Results: a device's signed last word on a task.
//!
//! The statement is signed by the device's own key and covers the output by its digest. Server, file and manager carry the
//! bytes as they were signed; a result counts only once the manager has verified them.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::action::OUTPUT_BYTES_MAX;
use crate::codec::{self, CodecError};
use crate::ids::{DeviceId, SiteCode, TaskId, UnixMillis};
use crate::signature::{DeviceKey, Signature, SignatureError, StatementKind, sha256, verify_device};
use crate::state::{RefusalReason, TaskState};

/// Most bytes of a signed statement: those of this release have 85 at most, and later minor versions may add fields. It keeps a
/// result with the longest output well inside a file's row.
pub const STATEMENT_BYTES_MAX: usize = 1024;

/// What is signed of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultStatement {
    /// The site.
    pub site: SiteCode,
    /// The task.
    pub task: TaskId,
    /// The device that speaks.
    pub device: DeviceId,
    /// A final state.
    pub state: TaskState,
    /// Why it refused: there exactly when the state is `refused`.
    pub refusal: Option<RefusalReason>,
    /// What the action returned: the exit code of a program, else 0 for success; -1 where there is none.
    pub code: i32,
    /// When it began to act, by the agent's time; equal to `finished` when it never did.
    pub started: UnixMillis,
    /// When it was over, by the agent's time.
    pub finished: UnixMillis,
    /// SHA-256 of the output.
    pub output_digest: [u8; 32],
}

/// A result with its output and signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedResult {
    /// The signed bytes of a [`ResultStatement`], [`STATEMENT_BYTES_MAX`] at most.
    #[serde(with = "serde_bytes")]
    pub statement: Vec<u8>,
    /// By the device's key.
    pub signature: Signature,
    /// What the action said: UTF-8 text, JSON where the action has structure; 32 KiB at most.
    #[serde(with = "serde_bytes")]
    pub output: Vec<u8>,
}

/// Why a result does not count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResultError {
    /// The bytes are malformed or over a limit.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The signature does not hold.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The state is not one that a device can end with.
    #[error("{0} is not a final state")]
    NotFinal(TaskState),
    /// A refusal without a reason, or a reason without a refusal.
    #[error("a state of {0} and its reason contradict each other")]
    Refusal(TaskState),
    /// The output is not the one whose digest was signed.
    #[error("the output does not match its signed digest")]
    Output,
}

impl SignedResult {
    /// Signs `statement`, whose output digest is set here.
    ///
    /// # Errors
    /// [`SignatureError::BadKey`] when the system gives no randomness.
    pub fn sign(
        mut statement: ResultStatement,
        output: Vec<u8>,
        key: &DeviceKey,
    ) -> Result<Self, SignatureError> {
        statement.output_digest = sha256(&output);
        let statement = codec::encode_versioned(&statement);
        let signature = key.sign(StatementKind::Result, &statement)?;
        Ok(Self { statement, signature, output })
    }

    /// What the signed bytes say, checked for all but the signature: limits, final state, reason, the output's digest.
    ///
    /// # Errors
    /// As [`ResultError`] says.
    pub fn read(&self) -> Result<ResultStatement, ResultError> {
        for (what, found, limit) in [
            ("a result's output, in bytes", self.output.len(), OUTPUT_BYTES_MAX),
            ("a result's statement, in bytes", self.statement.len(), STATEMENT_BYTES_MAX),
        ] {
            if found > limit {
                return Err(CodecError::Limit { what, found, limit }.into());
            }
        }
        let statement: ResultStatement = codec::decode_versioned("result", &self.statement)?;
        if !statement.state.is_final() {
            return Err(ResultError::NotFinal(statement.state));
        }
        if (statement.state == TaskState::Refused) != statement.refusal.is_some() {
            return Err(ResultError::Refusal(statement.state));
        }
        if statement.output_digest != sha256(&self.output) {
            return Err(ResultError::Output);
        }
        Ok(statement)
    }

    /// Checks the signature against `public`, the 65-byte point of the device's certificate.
    ///
    /// # Errors
    /// [`SignatureError::Mismatch`].
    pub fn verify(&self, public: &[u8]) -> Result<(), SignatureError> {
        verify_device(StatementKind::Result, &self.statement, &self.signature, public)
    }
}

/// Cuts `output` to [`OUTPUT_BYTES_MAX`] bytes: head and tail stay, a line between them says how much was left out. Where the
/// output is UTF-8 the cuts lie between characters.
#[must_use]
pub fn cut_output(output: Vec<u8>) -> Vec<u8> {
    if output.len() <= OUTPUT_BYTES_MAX {
        return output;
    }
    // The note's own length is bounded by 64 bytes: two lines, a 20-digit number and fixed words.
    let half = (OUTPUT_BYTES_MAX - 64) / 2;
    let follows = |byte: &&u8| **byte & 0xc0 == 0x80;
    // A character has three following bytes at most (RFC 3629); what has more there is no UTF-8 and is cut anywhere.
    let head = half - output[..=half].iter().rev().take(3).take_while(follows).count();
    let tail = output.len() - half;
    let tail = tail + output[tail..].iter().take(3).take_while(follows).count();
    let mut cut = output[..head].to_vec();
    cut.extend_from_slice(format!("\n[… {} bytes left out …]\n", tail - head).as_bytes());
    cut.extend_from_slice(&output[tail..]);
    cut
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::laws::{device, hold_for, signed_result, site, state, task, time};
    use crate::file::ROW_BYTES_MAX;
    use crate::file::results::{DeviceWord, ResultRow};

    fn statement(state: TaskState) -> ResultStatement {
        ResultStatement {
            site: "LAB".parse().unwrap(),
            task: TaskId::from_bytes([1; 16]),
            device: DeviceId(5),
            state,
            refusal: None,
            code: 0,
            started: UnixMillis(1),
            finished: UnixMillis(2),
            output_digest: [0; 32],
        }
    }

    proptest! {
        #[test]
        fn statement_and_result_keep_the_laws_of_the_codec(
            site in site(), task in task(), device in device(), state in state(), code in any::<i32>(),
            started in time(), finished in time(), output_digest in any::<[u8; 32]>(), refused in any::<bool>(),
            result in signed_result(),
        ) {
            let refusal = refused.then_some(RefusalReason::TooManyTasks);
            hold_for(&ResultStatement {
                site, task, device, state, refusal, code, started, finished, output_digest,
            });
            hold_for(&result);
            let _ = result.read();
        }
    }

    #[test]
    fn a_result_holds_only_as_it_was_signed() {
        let (key, _) = DeviceKey::generate().unwrap();
        let result = SignedResult::sign(statement(TaskState::Succeeded), b"fine".to_vec(), &key).unwrap();
        assert_eq!(result.read().unwrap().state, TaskState::Succeeded);
        assert_eq!(result.verify(&key.public()), Ok(()));
        let other_output = SignedResult { output: b"bad".to_vec(), ..result.clone() };
        assert_eq!(other_output.read(), Err(ResultError::Output));
        let mut other_statement = result;
        other_statement.statement[20] ^= 1;
        assert!(other_statement.verify(&key.public()).is_err());
    }

    #[test]
    fn a_state_that_is_not_final_is_no_result() {
        let (key, _) = DeviceKey::generate().unwrap();
        let result = SignedResult::sign(statement(TaskState::Running), Vec::new(), &key).unwrap();
        assert_eq!(result.read(), Err(ResultError::NotFinal(TaskState::Running)));
    }

    #[test]
    fn a_refusal_has_a_reason_and_nothing_else_has_one() {
        let (key, _) = DeviceKey::generate().unwrap();
        let read = |state, refusal| {
            SignedResult::sign(ResultStatement { refusal, ..statement(state) }, Vec::new(), &key)
                .unwrap()
                .read()
        };
        assert!(read(TaskState::Refused, Some(RefusalReason::Expired)).is_ok());
        assert_eq!(read(TaskState::Refused, None), Err(ResultError::Refusal(TaskState::Refused)));
        let reason = Some(RefusalReason::Expired);
        assert_eq!(read(TaskState::Failed, reason), Err(ResultError::Refusal(TaskState::Failed)));
    }

    #[test]
    fn a_result_that_can_be_read_fits_a_row_of_a_file() {
        let (key, _) = DeviceKey::generate().unwrap();
        // A later minor version's statement: fields follow that this release passes over.
        let result = |bytes| {
            let mut statement = codec::encode_versioned(&ResultStatement {
                device: DeviceId(u32::MAX),
                code: i32::MIN,
                started: UnixMillis(u64::MAX),
                finished: UnixMillis(u64::MAX),
                output_digest: sha256(&[b'x'; OUTPUT_BYTES_MAX]),
                ..statement(TaskState::Failed)
            });
            assert!(statement.len() <= 84, "{}", statement.len());
            statement[0] = codec::VERSION + 1;
            statement.resize(bytes, 0);
            let signature = key.sign(StatementKind::Result, &statement).unwrap();
            SignedResult { statement, signature, output: vec![b'x'; OUTPUT_BYTES_MAX] }
        };
        let longest = result(STATEMENT_BYTES_MAX);
        assert!(longest.read().is_ok());
        assert!(matches!(
            result(STATEMENT_BYTES_MAX + 1).read(),
            Err(ResultError::Codec(CodecError::Limit { .. }))
        ));
        let word = DeviceWord::Final(Box::new(longest));
        let (task, device) = (TaskId::from_bytes([1; 16]), DeviceId(u32::MAX));
        let row = ResultRow { task, device, heard: UnixMillis(u64::MAX), word };
        assert!(codec::encode_versioned(&row).len() <= ROW_BYTES_MAX);
    }

    #[test]
    fn a_long_output_is_cut_between_characters() {
        for shift in 0..4 {
            let long = "x".repeat(shift) + &"€".repeat(20_000);
            let cut = cut_output(long.into_bytes());
            assert!(cut.len() <= OUTPUT_BYTES_MAX && cut.len() > OUTPUT_BYTES_MAX - 100);
            let text = String::from_utf8(cut).unwrap();
            let left_out: usize =
                text.split("… ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
            let euros = text.chars().filter(|&letter| letter == '€').count();
            assert_eq!(3 * euros + shift + left_out, 60_000 + shift);
        }
        assert!(cut_output(vec![0x80; 100_000]).len() <= OUTPUT_BYTES_MAX);
    }

    #[test]
    fn a_long_output_keeps_its_head_and_its_tail() {
        let mut long = vec![b'a'; 50_000];
        long.extend(vec![b'z'; 50_000]);
        let cut = cut_output(long);
        assert!(cut.len() <= OUTPUT_BYTES_MAX);
        assert!(cut.starts_with(b"aaa") && cut.ends_with(b"zzz"));
        assert!(String::from_utf8_lossy(&cut).contains("bytes left out"));
    }
}
