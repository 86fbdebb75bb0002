//! What is signed: nothing that the site's key did not sign is believed, and no proof but a member's own is.

use bgb_protocol::head::SignedHead;
use bgb_protocol::ids::{DeviceId, SiteCode};
use bgb_protocol::policy::{PolicySettings, SignedPolicy};
use bgb_protocol::result::SignedResult;
use bgb_protocol::signature::{SigningKey, TrustedKeys};
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{SignedCancel, SignedTask};
use bgb_protocol::{codec, signature};

use crate::bytes::Bytes;

/// The first byte says what the others are.
pub(crate) fn statement(data: &[u8]) {
    let mut bytes = Bytes(data);
    match bytes.byte() % 3 {
        0 => envelopes(bytes.0),
        1 => proofs(&mut bytes),
        _ => settings(bytes.0),
    }
}

/// The fuzzer has no key, so nothing of its making is ever verified.
fn envelopes(data: &[u8]) {
    let site: SiteCode = "LAB".parse().expect("a site's code");
    let trusted = TrustedKeys::new([SigningKey::from_seed([7; 32]).public()]);
    if let Ok(task) = SignedTask::decode(data) {
        assert!(task.verify(site, &trusted).is_err(), "a task without the site's signature is believed");
    }
    if let Ok(cancel) = SignedCancel::decode(data) {
        assert!(cancel.verify(site, &trusted).is_err(), "a cancel without the site's signature is believed");
    }
    if let Ok(head) = SignedHead::decode(data) {
        assert!(head.verify(site, &trusted).is_err(), "a head without the site's signature is believed");
    }
    if let Ok(policy) = SignedPolicy::decode(data) {
        assert!(policy.verify(site, &trusted).is_err(), "a policy without the site's signature is believed");
    }
    if let Ok(result) = codec::decode_versioned::<SignedResult>("result", data) {
        let _ = result.read();
        assert!(result.verify(&[4; 65]).is_err(), "a result without the device's signature is believed");
    }
    let _ = signature::key_id(data);
}

/// A set, a device, and a proof that is the device's own with some bytes changed.
fn proofs(bytes: &mut Bytes<'_>) {
    let count = bytes.below(32);
    let devices = (0..count).map(|_| (bytes.wide() as u32) << bytes.below(6)).collect();
    let device = DeviceId((bytes.wide() as u32) << bytes.below(6));
    let Some(targets) = TargetSet::new(devices) else { return };
    let digest = targets.digest();
    let mut own = Vec::new();
    let is_member = targets.prove(device, &mut own);
    assert_eq!(is_member, targets.contains(device));
    if is_member {
        assert_eq!(digest.verify(device, &own), Ok(()), "a member's own proof is refused");
    }
    let mut changed = own.clone();
    for _ in 0..bytes.below(8) {
        let at = bytes.wide() as usize;
        match changed.get_mut(at) {
            Some(byte) => *byte ^= bytes.byte(),
            None => {
                let count = usize::from(bytes.byte());
                changed.extend_from_slice(bytes.take(count));
            }
        }
    }
    if changed != own || !is_member {
        assert!(digest.verify(device, &changed).is_err(), "a proof that is nobody's is believed");
    }
}

fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(settings) = PolicySettings::parse(text) {
        assert_eq!(PolicySettings::parse(&settings.to_json()), Ok(settings), "settings change on their way");
    }
    if let Ok((known, _)) = PolicySettings::parse_known(text) {
        assert_eq!(PolicySettings::parse(&known.to_json()), Ok(known), "settings change on their way");
    }
}
