//! Orders: rows of the queue as the hub takes them, decoded once and shared by all shards.

use std::sync::Arc;

use bgb_protocol::codec::CodecError;
use bgb_protocol::frame::HEADER_BYTES;
use bgb_protocol::head::SignedHead;
use bgb_protocol::ids::{BootId, DeviceId, SessionNumber, TaskId, UnixMillis};
use bgb_protocol::message::{PolicyDocument, SharedPush};
use bgb_protocol::policy::{PolicyScope, SignedPolicy};
use bgb_protocol::queue::{QueueItem, read_bitmap};
use bgb_protocol::target_set::{BLOCK_DEVICES, PROOF_BYTES_MAX, TargetDigest, TargetSet};
use bgb_protocol::task::{SignedCancel, SignedTask};
use roaring::RoaringBitmap;
use thiserror::Error;

/// What the site wants of the shards.
#[derive(Clone, Debug)]
pub enum Order {
    /// A task's content; pushes nothing by itself.
    Task(Arc<TaskOrder>),
    /// Targets that may have a task now.
    Release {
        /// The task.
        task: TaskId,
        /// The devices; `None` for all targets.
        devices: Option<Arc<RoaringBitmap>>,
        /// From when on.
        from: UnixMillis,
    },
    /// A task ends.
    Cancel {
        /// The task.
        task: TaskId,
        /// Bytes of a [`SignedCancel`].
        signed: Arc<[u8]>,
        /// The task's own expiry.
        expires: UnixMillis,
    },
    /// A device may not sign in, and loses the session that it has.
    Block {
        /// The device.
        device: DeviceId,
    },
    /// A device may sign in again.
    Unblock {
        /// The device.
        device: DeviceId,
    },
    /// A certificate counts no more.
    Revoke {
        /// SHA-256 of the certificate in DER form.
        fingerprint: [u8; 32],
    },
    /// A policy document.
    Policy(Arc<PolicyOrder>),
    /// A device has a newer session on another server: this one, or an older one of the same boot, ends.
    Supersede {
        /// The device.
        device: DeviceId,
        /// Boot of the session that ends.
        boot: BootId,
        /// Number of the session that ends.
        session: SessionNumber,
    },
    /// How far the queue has come, and the time.
    Head {
        /// Bytes of a [`SignedHead`].
        signed: Arc<[u8]>,
        /// The time in it.
        time: UnixMillis,
    },
    /// The database is another one now (a restore): all orders are forgotten, the sessions stay, and the rows follow anew.
    /// What that means in detail stands at [`Hub`](crate::Hub).
    Reset,
}

/// A task, ready to be pushed.
#[derive(Clone, Debug)]
pub struct TaskOrder {
    /// The task's id.
    pub id: TaskId,
    /// The part of its frame that all targets share.
    pub shared: SharedPush,
    /// Who is meant.
    pub targets: TargetSet,
    /// Start of the validity.
    pub not_before: UnixMillis,
    /// End of the validity.
    pub expires: UnixMillis,
}

/// A policy document, ready to be handed out.
#[derive(Clone, Debug)]
pub struct PolicyOrder {
    /// The document's name.
    pub name: String,
    /// Its version; the highest of a name counts.
    pub version: u64,
    /// Higher wins.
    pub priority: i32,
    /// Whether this version withdraws the document.
    pub withdrawn: bool,
    /// Whom it is for; `None` for everyone.
    pub devices: Option<TargetSet>,
    /// Bytes of a [`SignedPolicy`].
    pub signed: Arc<[u8]>,
}

/// Why a row of the queue is no order.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OrderError {
    /// The bytes are malformed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The set of devices beside a statement is not the one that was signed: no device would accept its proof.
    #[error("the set of devices in the row is not the one that was signed")]
    Targets,
    /// The times of a task contradict each other.
    #[error("the task ends before it begins")]
    Validity,
}

impl Order {
    /// Reads a row. Signatures are not verified by that: the agents do it.
    ///
    /// # Errors
    /// [`OrderError`] when the row contradicts itself or cannot be read.
    pub fn read(item: QueueItem) -> Result<Self, OrderError> {
        Ok(match item {
            QueueItem::Task { signed, targets } => {
                Self::Task(Arc::new(TaskOrder::read(&signed, read_bitmap(&targets)?)?))
            }
            QueueItem::Release { task, devices, from } => {
                let devices = devices.map(|devices| devices.read()).transpose()?.map(Arc::new);
                Self::Release { task, devices, from }
            }
            QueueItem::Cancel { signed } => {
                let cancel = SignedCancel::decode(&signed)?;
                let (task, expires) = (cancel.statement().task, cancel.statement().expires);
                Self::Cancel { task, signed: Arc::clone(cancel.bytes()), expires }
            }
            QueueItem::Block { device } => Self::Block { device },
            QueueItem::Unblock { device } => Self::Unblock { device },
            QueueItem::Revoke { fingerprint } => Self::Revoke { fingerprint },
            QueueItem::Policy { signed, devices } => {
                let devices = devices.map(|devices| devices.read()).transpose()?;
                Self::Policy(Arc::new(PolicyOrder::read(&signed, devices)?))
            }
            QueueItem::Supersede { device, boot, session } => Self::Supersede { device, boot, session },
            QueueItem::Head { signed } => {
                let head = SignedHead::decode(&signed)?;
                Self::Head { signed: Arc::clone(head.bytes()), time: head.statement().time }
            }
        })
    }
}

impl TaskOrder {
    /// Reads signed bytes and the targets beside them, and builds the tree that gives each target its proof.
    ///
    /// # Errors
    /// [`OrderError`] when the bytes are malformed or the targets are not the signed ones.
    pub fn read(signed: &[u8], targets: RoaringBitmap) -> Result<Self, OrderError> {
        let task = SignedTask::decode(signed)?;
        let statement = task.statement();
        if statement.expires < statement.not_before {
            return Err(OrderError::Validity);
        }
        Ok(Self {
            id: statement.task,
            shared: SharedPush::new(signed),
            targets: signed_set(targets, &statement.targets)?,
            not_before: statement.not_before,
            expires: statement.expires,
        })
    }

    /// Upper bound of the length of a push's frame, in bytes.
    #[must_use]
    pub fn push_bytes_max(&self) -> usize {
        // The proof's length takes 3 bytes at most.
        HEADER_BYTES + self.shared.shared_bytes() + 3 + PROOF_BYTES_MAX
    }

    /// Appends the frame of the push to `device`; `false`, and nothing appended, when it is not a target.
    pub fn encode_push(&self, device: DeviceId, out: &mut Vec<u8>) -> bool {
        let mut proof = Vec::with_capacity(PROOF_BYTES_MAX);
        let is_target = self.targets.prove(device, &mut proof);
        if is_target {
            self.shared.encode(&proof, out);
        }
        is_target
    }
}

/// Frames of pushes, the last one kept: devices of one block of the target set have the same proof, hence the same frame.
///
/// A fan-out comes in the order of devices, so it costs one encoding for 2,048 of them and a copy for the others.
#[derive(Debug, Default)]
pub struct PushFrames {
    frame: Vec<u8>,
    /// The task and the block that the frame is for.
    of: Option<(Arc<TaskOrder>, u32)>,
}

impl PushFrames {
    /// The frame of the push of `task` to `device`; empty when it is not a target.
    pub fn frame(&mut self, task: &Arc<TaskOrder>, device: DeviceId) -> &[u8] {
        if !task.targets.contains(device) {
            return &[];
        }
        let block = device.0 / BLOCK_DEVICES;
        if !self.of.as_ref().is_some_and(|(of, at)| *at == block && Arc::ptr_eq(of, task)) {
            self.frame.clear();
            task.encode_push(device, &mut self.frame);
            self.of = Some((Arc::clone(task), block));
        }
        &self.frame
    }
}

impl PolicyOrder {
    /// Reads signed bytes and the devices beside them.
    ///
    /// # Errors
    /// [`OrderError`] when the bytes are malformed or the devices are not the signed ones.
    pub fn read(signed: &[u8], devices: Option<RoaringBitmap>) -> Result<Self, OrderError> {
        let policy = SignedPolicy::decode(signed)?;
        let statement = policy.statement();
        let devices = match (&statement.scope, devices) {
            (PolicyScope::Everyone, None) => None,
            (PolicyScope::Set(digest), Some(devices)) => Some(signed_set(devices, digest)?),
            _ => return Err(OrderError::Targets),
        };
        Ok(Self {
            name: statement.name.clone(),
            version: statement.version,
            priority: statement.priority,
            withdrawn: statement.settings.is_none(),
            devices,
            signed: Arc::clone(policy.bytes()),
        })
    }

    /// Whether the document is for `device`.
    #[must_use]
    pub fn is_for(&self, device: DeviceId) -> bool {
        self.devices.as_ref().is_none_or(|devices| devices.contains(device))
    }

    /// The document with the proof for `device`.
    #[must_use]
    pub fn document(&self, device: DeviceId) -> PolicyDocument {
        let mut proof = Vec::new();
        if let Some(devices) = &self.devices {
            devices.prove(device, &mut proof);
        }
        PolicyDocument { signed: self.signed.to_vec(), proof }
    }
}

/// The set of `devices`, if it is the one that was signed.
fn signed_set(devices: RoaringBitmap, signed: &TargetDigest) -> Result<TargetSet, OrderError> {
    // The number of blocks first: it is there at once, and a wrong one could make a tree of 2^21 leaves.
    let blocks = devices.max().map(|device| device / BLOCK_DEVICES + 1);
    if blocks != Some(signed.blocks) {
        return Err(OrderError::Targets);
    }
    TargetSet::new(devices).filter(|set| set.digest() == *signed).ok_or(OrderError::Targets)
}

#[cfg(test)]
mod tests;
