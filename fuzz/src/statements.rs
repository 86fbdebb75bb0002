//! What is signed: nothing that the site's key did not sign is believed, what it did sign says the same on every side, and no proof but a
//! member's own holds.

use std::fmt::Debug;
use std::sync::OnceLock;

use bgb_hub::{Order, PolicyOrder, TaskOrder};
use bgb_protocol::codec::{self, CodecError};
use bgb_protocol::head::{HeadStatement, SignedHead};
use bgb_protocol::ids::{DeviceId, SiteCode};
use bgb_protocol::policy::{PolicySettings, PolicyStatement, SignedPolicy};
use bgb_protocol::queue::{Bitmap, QueueItem};
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::{self, DeviceKey, Envelope, Signature, SigningKey, StatementKind, TrustedKeys};
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{CancelStatement, SignedCancel, SignedTask, StatementError, TaskStatement};
use roaring::RoaringBitmap;
use serde::{Serialize, de::DeserializeOwned};

use crate::bytes::Bytes;

/// Who signs, made once.
struct Keys {
    site: SiteCode,
    signing: SigningKey,
    trusted: TrustedKeys,
    device: DeviceKey,
    device_public: Vec<u8>,
}

impl Keys {
    fn once() -> &'static Self {
        static KEYS: OnceLock<Keys> = OnceLock::new();
        KEYS.get_or_init(|| {
            let signing = SigningKey::from_seed([7; 32]);
            let (device, _) = DeviceKey::generate().expect("the system has randomness");
            let (trusted, device_public) = (TrustedKeys::new([signing.public()]), device.public());
            Self { site: "LAB".parse().expect("a site's code"), signing, trusted, device, device_public }
        })
    }
}

/// The first byte says what the others are.
pub(crate) fn statement(data: &[u8]) {
    let mut bytes = Bytes(data);
    match bytes.byte() % 6 {
        0 => envelopes(bytes.0),
        1 => proofs(&mut bytes),
        2 => settings(bytes.0),
        3 => signed(&mut bytes),
        4 => result(&mut bytes),
        _ => queue_row(bytes.0),
    }
}

/// The fuzzer has no key, so nothing of its making is ever verified.
fn envelopes(data: &[u8]) {
    let Keys { site, trusted, .. } = Keys::once();
    if let Ok(task) = SignedTask::decode(data) {
        assert!(task.verify(*site, trusted).is_err(), "a task without the site's signature is believed");
    }
    if let Ok(cancel) = SignedCancel::decode(data) {
        assert!(cancel.verify(*site, trusted).is_err(), "a cancel without the site's signature is believed");
    }
    if let Ok(head) = SignedHead::decode(data) {
        assert!(head.verify(*site, trusted).is_err(), "a head without the site's signature is believed");
    }
    if let Ok(policy) = SignedPolicy::decode(data) {
        assert!(policy.verify(*site, trusted).is_err(), "a policy without the site's signature is believed");
    }
    if let Ok(result) = codec::decode_versioned::<SignedResult>("result", data) {
        let _ = result.read();
        assert!(result.verify(&[4; 65]).is_err(), "a result without the device's signature is believed");
    }
    let _ = signature::key_id(data);
}

/// The fuzzer's statement, signed by the site: it is believed as what it was signed as, for its own site, and as nothing else.
fn signed(bytes: &mut Bytes<'_>) {
    match bytes.byte() % 4 {
        0 => signed_as(bytes, StatementKind::Task, |data: &[u8]| {
            SignedTask::decode(data)
                .map(|task| (task.statement().clone(), judged(|site, keys| task.verify(site, keys))))
        }),
        1 => signed_as(bytes, StatementKind::Cancel, |data: &[u8]| {
            SignedCancel::decode(data)
                .map(|cancel| (cancel.statement().clone(), judged(|site, keys| cancel.verify(site, keys))))
        }),
        2 => signed_as(bytes, StatementKind::Head, |data: &[u8]| {
            SignedHead::decode(data)
                .map(|head| (head.statement().clone(), judged(|site, keys| head.verify(site, keys))))
        }),
        _ => signed_as(bytes, StatementKind::Policy, |data: &[u8]| {
            SignedPolicy::decode(data)
                .map(|policy| (policy.statement().clone(), judged(|site, keys| policy.verify(site, keys))))
        }),
    }
}

/// A kind of statement that names its site.
trait Sited: Serialize + DeserializeOwned + Clone + Debug + PartialEq {
    fn site(&self) -> SiteCode;
    /// What is looked at once it is believed.
    fn look(&self) {}
}

impl Sited for TaskStatement {
    fn site(&self) -> SiteCode {
        self.site
    }
    fn look(&self) {
        assert!(self.known_action().is_none_or(|action| action.code() == self.action));
    }
}

impl Sited for CancelStatement {
    fn site(&self) -> SiteCode {
        self.site
    }
}

impl Sited for HeadStatement {
    fn site(&self) -> SiteCode {
        self.site
    }
}

impl Sited for PolicyStatement {
    fn site(&self) -> SiteCode {
        self.site
    }
    fn look(&self) {
        if let Some(text) = &self.settings {
            settings(text.as_bytes());
        }
    }
}

fn judged(
    verify: impl Fn(SiteCode, &TrustedKeys) -> Result<(), StatementError>,
) -> Result<(), StatementError> {
    let Keys { site, trusted, .. } = Keys::once();
    verify(*site, trusted)
}

/// What was read of an envelope: its statement, and whether it holds here.
type Read<S> = Result<(S, Result<(), StatementError>), CodecError>;

fn signed_as<S: Sited>(bytes: &mut Bytes<'_>, kind: StatementKind, read: impl Fn(&[u8]) -> Read<S>) {
    let Keys { site, signing, .. } = Keys::once();
    let (changes, foreign) = (bytes.below(4), bytes.below(4));
    let at: Vec<_> = (0..changes).map(|_| (bytes.wide() as usize, bytes.byte())).collect();
    let statement = bytes.0;
    let Ok(said) = codec::decode_versioned::<S>("statement", statement) else { return };
    let again = codec::decode_versioned::<S>("statement", &codec::encode_versioned(&said));
    assert_eq!(again.as_ref(), Ok(&said), "a statement changes on its way");
    let mut envelope = Envelope::sign(kind, statement.to_vec(), signing);
    for number in 0..foreign {
        // Signatures by keys that are not known here stand before the one that counts.
        envelope.signatures.insert(0, Signature { key: signature::key_id(&[number]), bytes: [number; 64] });
    }
    let mut whole = envelope.encode();
    let (read_back, verdict) = read(&whole).expect("a statement that was read is read again");
    assert_eq!(read_back, said);
    if said.site() == *site {
        assert_eq!(verdict, Ok(()), "what the site signed is not believed");
        said.look();
    } else {
        assert!(matches!(verdict, Err(StatementError::Site { .. })), "another site's word is believed");
    }
    let other = if kind == StatementKind::Task { StatementKind::Cancel } else { StatementKind::Task };
    assert!(envelope.verify(other, &Keys::once().trusted).is_err(), "a {kind:?} passes for a {other:?}");
    for (at, change) in at {
        let at = at % whole.len();
        whole[at] ^= change;
    }
    if let Ok((altered, Ok(()))) = read(&whole) {
        assert_eq!(altered, said, "what nobody signed is believed");
    }
}

/// The fuzzer's statement and output, signed by a device.
fn result(bytes: &mut Bytes<'_>) {
    let Keys { device, device_public, .. } = Keys::once();
    let (at, change) = (bytes.wide() as usize, bytes.byte());
    let output = bytes.piece().to_vec();
    let Ok(said) = codec::decode_versioned::<ResultStatement>("result", bytes.0) else { return };
    let signed = SignedResult::sign(said.clone(), output, device).expect("the system has randomness");
    if let Ok(read) = signed.read() {
        assert_eq!(ResultStatement { output_digest: read.output_digest, ..said }, read);
        assert!(
            read.state.is_final()
                && read.refusal.is_some() == (read.state == bgb_protocol::state::TaskState::Refused)
        );
    }
    assert_eq!(signed.verify(device_public), Ok(()), "a device's own result is not believed");
    let mut whole = codec::encode_versioned(&signed);
    let at = at % whole.len();
    whole[at] ^= change;
    if let Ok(altered) = codec::decode_versioned::<SignedResult>("result", &whole)
        && let (Ok(read), Ok(())) = (altered.read(), altered.verify(device_public))
    {
        assert_eq!(signed.read(), Ok(read), "what the device did not sign is believed");
        assert_eq!(altered.output, signed.output, "an output is believed that was not signed");
    }
}

/// A row of the queue, as a server reads it: what becomes an order is what was written.
fn queue_row(data: &[u8]) {
    let Ok(item) = QueueItem::decode(data) else { return };
    assert_eq!(QueueItem::decode(&item.encode()), Ok(item.clone()), "a row changes on its way");
    assert!(!item.kind().is_empty());
    if let QueueItem::Task { signed, targets } = &item {
        let mended = with_true_targets(signed, targets);
        if let Some((signed, devices)) = mended {
            let order = TaskOrder::read(&signed, devices.clone());
            assert!(
                order.is_err() || order.is_ok_and(|order| *order.targets.devices() == devices),
                "an order is for others than its row says"
            );
        }
    }
    match Order::read(item) {
        Ok(Order::Task(order)) => {
            let device = order.targets.devices().min().map(DeviceId).expect("a target set has members");
            let mut frame = Vec::new();
            assert!(order.encode_push(device, &mut frame) && frame.len() <= order.push_bytes_max());
        }
        Ok(Order::Policy(order)) => look_at_policy(&order),
        _ => {}
    }
}

/// The task's statement, made for the very devices of the row, which random bytes would not meet; the signature is no matter here.
fn with_true_targets(signed: &[u8], targets: &[u8]) -> Option<(Vec<u8>, RoaringBitmap)> {
    let devices = Bitmap(targets.to_vec()).read().ok()?;
    // A tree over large numbers takes long to build, and is built the same.
    let set = TargetSet::new(devices.clone()).filter(|set| set.digest().blocks <= 64)?;
    let mut envelope = Envelope::decode(signed).ok()?;
    let statement: TaskStatement = codec::decode_versioned("task", &envelope.statement).ok()?;
    envelope.statement = codec::encode_versioned(&TaskStatement { targets: set.digest(), ..statement });
    Some((envelope.encode(), devices))
}

fn look_at_policy(order: &PolicyOrder) {
    let device = order.devices.as_ref().map_or(Some(0), |devices| devices.devices().max());
    let device = DeviceId(device.expect("a target set has members"));
    assert!(order.is_for(device) && order.document(device).signed == *order.signed);
}

/// A set, a device, and a proof that is the device's own with some bytes changed.
fn proofs(bytes: &mut Bytes<'_>) {
    let count = bytes.below(32);
    let devices = (0..count).map(|_| member(bytes)).collect();
    let device = DeviceId(member(bytes));
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

/// A device's number; few are large, since a tree over them takes long to build.
fn member(bytes: &mut Bytes<'_>) -> u32 {
    const SHIFTS: [u32; 8] = [0, 0, 0, 0, 0, 1, 2, 6];
    (bytes.wide() as u32) << SHIFTS[usize::from(bytes.below(8))]
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
