//! Whether a push is to be carried out: the one place where a task is let in.
//!
//! Asked in this order: is it signed by a key of the site, for this site, with a proof that this device is meant; is the
//! action known, allowed and within its validity. What the answer is depends on what can be trusted by then:
//!
//! - Bytes without a good signature, or a proof that does not lead to the signed root, are a fault of whoever passed them
//!   on. They are dropped, counted and logged, and NOT answered: an answer is a signed final word on a task, and a server
//!   could otherwise turn any genuine task into "refused" by altering a byte of it.
//! - A proof that holds and shows that the device is not meant, another site's task, an expired one: refused, and not
//!   remembered. They would be refused again, and a server must not be able to fill the journal with replays.
//! - A task that is meant for this device and still valid, and that it cannot or may not carry out: refused and remembered,
//!   so that it is not carried out after all when it comes again.
//!
//! It reads no clock and no disk, and keeps nothing.

use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::ids::{DeviceId, SiteCode, TaskId, UnixMillis};
use bgb_protocol::message::TaskPush;
use bgb_protocol::policy::PolicySettings;
use bgb_protocol::signature::TrustedKeys;
use bgb_protocol::state::RefusalReason;
use bgb_protocol::target_set::ProofError;
use bgb_protocol::task::{NOT_BEFORE_TOLERANCE_MS, SignedTask, StatementError, TaskStatement};

/// What a judgement is made by.
pub(crate) struct Judge<'a> {
    pub(crate) site: SiteCode,
    pub(crate) device: DeviceId,
    pub(crate) keys: &'a TrustedKeys,
    pub(crate) settings: &'a PolicySettings,
    /// The agent's own time.
    pub(crate) now: UnixMillis,
}

/// What is to be done with a push.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// To be carried out.
    Accept(SignedTask, Action),
    /// To be refused.
    Refuse { task: TaskId, expires: UnixMillis, reason: RefusalReason, memory: Memory },
    /// To be dropped without an answer; the text says why.
    Drop(String),
}

/// Whether a refusal goes to the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// It does: the same task must not be carried out later.
    Kept,
    /// It does not: the same task would be refused again.
    None,
}

impl Judge<'_> {
    /// Judges a push as if nothing of the task were known.
    pub(crate) fn judge(&self, push: &TaskPush) -> Verdict {
        let task = match SignedTask::decode(&push.signed) {
            Ok(task) => task,
            Err(error) => return Verdict::Drop(format!("the task cannot be read: {error}")),
        };
        match task.verify(self.site, self.keys) {
            Ok(()) => {}
            Err(StatementError::Site { .. }) => {
                return refuse(task.statement(), RefusalReason::WrongSite, Memory::None);
            }
            Err(error) => {
                return Verdict::Drop(format!("task {} is not signed: {error}", task.statement().task));
            }
        }
        let statement = task.statement();
        match statement.targets.verify(self.device, &push.proof) {
            Ok(()) => {}
            Err(ProofError::NotAMember) => return refuse(statement, RefusalReason::NotATarget, Memory::None),
            Err(error) => {
                return Verdict::Drop(format!("task {} has a false proof: {error}", statement.task));
            }
        }
        if self.now >= statement.expires {
            return refuse(statement, RefusalReason::Expired, Memory::None);
        }
        match self.may_run(statement) {
            Ok(action) => Verdict::Accept(task, action),
            Err(reason) => refuse(statement, reason, Memory::Kept),
        }
    }

    /// Whether a task that is meant for this device may start now.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn may_run(&self, statement: &TaskStatement) -> Result<Action, RefusalReason> {
        let action = statement.known_action().ok_or(RefusalReason::UnknownAction)?;
        if !is_without_parameters(&statement.parameters) {
            return Err(RefusalReason::UnknownAction);
        }
        if !self.settings.allows(action) {
            return Err(RefusalReason::NotAllowed);
        }
        if self.now >= statement.expires {
            return Err(RefusalReason::Expired);
        }
        if statement.not_before > self.now.plus(NOT_BEFORE_TOLERANCE_MS) {
            return Err(RefusalReason::NotYetValid);
        }
        Ok(action)
    }
}

/// The actions of this release need no parameters: nothing, or an empty JSON object. Others belong to a release that knows
/// what they mean.
fn is_without_parameters(parameters: &Parameters) -> bool {
    match parameters {
        Parameters::Inline(json) => json.is_empty() || json == b"{}",
        Parameters::Blob { .. } => false,
    }
}

fn refuse(statement: &TaskStatement, reason: RefusalReason, memory: Memory) -> Verdict {
    Verdict::Refuse { task: statement.task, expires: statement.expires, reason, memory }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bgb_protocol::signature::SigningKey;
    use bgb_protocol::target_set::TargetSet;

    const DEVICE: DeviceId = DeviceId(5);

    fn statement(targets: &TargetSet) -> TaskStatement {
        TaskStatement {
            site: "LAB".parse().unwrap(),
            task: TaskId::from_bytes([9; 16]),
            action: Action::QuickScan.code(),
            parameters: Parameters::none(),
            targets: targets.digest(),
            not_before: UnixMillis(1_000_000),
            expires: UnixMillis(2_000_000),
            approval: None,
        }
    }

    /// Judges, at `now`, the push that `alter` has had its way with.
    fn judged(now: u64, settings: &str, alter: impl FnOnce(&mut TaskStatement)) -> Verdict {
        let key = SigningKey::from_seed([1; 32]);
        let set = TargetSet::new([4, 5].into_iter().collect()).unwrap();
        let mut statement = statement(&set);
        alter(&mut statement);
        let mut proof = Vec::new();
        set.prove(DEVICE, &mut proof);
        let push = TaskPush { signed: SignedTask::sign(statement, &key).bytes().to_vec(), proof };
        judge(now, settings, DEVICE, &push)
    }

    fn judge(now: u64, settings: &str, device: DeviceId, push: &TaskPush) -> Verdict {
        let keys = TrustedKeys::new([SigningKey::from_seed([1; 32]).public()]);
        let settings = PolicySettings::parse(settings).unwrap();
        let site = "LAB".parse().unwrap();
        Judge { site, device, keys: &keys, settings: &settings, now: UnixMillis(now) }.judge(push)
    }

    fn refusal(verdict: Verdict) -> (RefusalReason, Memory) {
        match verdict {
            Verdict::Refuse { reason, memory, .. } => (reason, memory),
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn a_good_task_is_accepted() {
        assert!(matches!(judged(1_500_000, "{}", |_| {}), Verdict::Accept(_, Action::QuickScan)));
    }

    #[test]
    fn validity_is_judged_by_the_given_time_with_its_tolerance() {
        assert_eq!(refusal(judged(2_000_000, "{}", |_| {})), (RefusalReason::Expired, Memory::None));
        assert!(matches!(judged(1_999_999, "{}", |_| {}), Verdict::Accept(..)));
        assert!(matches!(judged(880_000, "{}", |_| {}), Verdict::Accept(..)));
        assert_eq!(refusal(judged(879_999, "{}", |_| {})), (RefusalReason::NotYetValid, Memory::Kept));
    }

    #[test]
    fn what_this_release_or_policy_does_not_do_is_refused_and_remembered() {
        let unknown = judged(1_500_000, "{}", |statement| statement.action = 999);
        assert_eq!(refusal(unknown), (RefusalReason::UnknownAction, Memory::Kept));
        let parameters = judged(1_500_000, "{}", |statement| {
            statement.parameters = Parameters::Inline(b"{\"a\":1}".to_vec());
        });
        assert_eq!(refusal(parameters), (RefusalReason::UnknownAction, Memory::Kept));
        let not_allowed = judged(1_500_000, r#"{"allowed_actions": ["ping"]}"#, |_| {});
        assert_eq!(refusal(not_allowed), (RefusalReason::NotAllowed, Memory::Kept));
    }

    #[test]
    fn a_task_of_another_site_is_refused() {
        let other = judged(1_500_000, "{}", |statement| statement.site = "XYZ".parse().unwrap());
        assert_eq!(refusal(other), (RefusalReason::WrongSite, Memory::None));
    }

    #[test]
    fn a_device_that_is_not_meant_refuses_and_a_false_proof_is_dropped() {
        let key = SigningKey::from_seed([1; 32]);
        let set = TargetSet::new([4].into_iter().collect()).unwrap();
        let mut proof = Vec::new();
        set.prove(DeviceId(4), &mut proof);
        let signed = SignedTask::sign(statement(&set), &key).bytes().to_vec();
        let push = TaskPush { signed: signed.clone(), proof: proof.clone() };
        let verdict = judge(1_500_000, "{}", DEVICE, &push);
        assert_eq!(refusal(verdict), (RefusalReason::NotATarget, Memory::None));
        proof[0] |= 1 << 5;
        let forged = judge(1_500_000, "{}", DEVICE, &TaskPush { signed, proof });
        assert!(matches!(forged, Verdict::Drop(_)), "{forged:?}");
    }

    #[test]
    fn what_no_key_of_the_site_signed_is_dropped_without_an_answer() {
        let set = TargetSet::new([5].into_iter().collect()).unwrap();
        let mut proof = Vec::new();
        set.prove(DEVICE, &mut proof);
        let stranger = SignedTask::sign(statement(&set), &SigningKey::from_seed([2; 32])).bytes().to_vec();
        let mut altered = SignedTask::sign(statement(&set), &SigningKey::from_seed([1; 32])).bytes().to_vec();
        altered[20] ^= 1;
        for signed in [stranger, altered, b"rubbish".to_vec(), Vec::new()] {
            let push = TaskPush { signed, proof: proof.clone() };
            assert!(matches!(judge(1_500_000, "{}", DEVICE, &push), Verdict::Drop(_)));
        }
    }
}
