//! What comes out of the hub.

use std::sync::Arc;

use bgb_protocol::file::presence::PresenceRow;
use bgb_protocol::file::results::ResultRow;
use bgb_protocol::ids::{BootId, DeviceId, SessionNumber, TaskId};
use bgb_protocol::message::ServerMessage;
use thiserror::Error;

use crate::close_reason::CloseReason;
use crate::input::ChannelKey;
use crate::order::TaskOrder;

/// What the caller is to do, in the order in which it comes out.
#[derive(Clone, Debug)]
pub enum Output {
    /// Ask the directory whether this session is the device's newest, and answer with
    /// [`Input::Claimed`](crate::Input::Claimed) before polling on.
    Claim {
        /// The channel.
        channel: ChannelKey,
        /// Its device.
        device: DeviceId,
        /// Which boot of it.
        boot: BootId,
        /// Which session of it.
        session: SessionNumber,
    },
    /// A session that had claimed is over: the directory removes it if it is still this channel's.
    Release {
        /// The channel.
        channel: ChannelKey,
        /// Its device.
        device: DeviceId,
    },
    /// Send a message.
    Send {
        /// To whom.
        channel: ChannelKey,
        /// What.
        message: ServerMessage,
    },
    /// Send a task: [`TaskOrder::encode_push`] or [`PushFrames`](crate::PushFrames) writes the frame. Within a fan-out
    /// devices come in ascending order.
    Push {
        /// To whom.
        channel: ChannelKey,
        /// The task.
        task: Arc<TaskOrder>,
        /// The channel's device, a target of the task.
        device: DeviceId,
    },
    /// Flush what is queued if [`CloseReason::flushes`], then close. The hub has forgotten the channel. Flushing is bounded
    /// by the caller: a peer that does not read must not keep it.
    Close {
        /// Which channel.
        channel: ChannelKey,
        /// Why.
        reason: CloseReason,
    },
    /// A device is online.
    Online {
        /// Its channel.
        channel: ChannelKey,
        /// The number of the claim by which its session began.
        claim: u64,
        /// The row for the online list.
        row: PresenceRow,
    },
    /// A device's session ended.
    Offline {
        /// The row for the next delta.
        row: PresenceRow,
    },
    /// Received or running: to the spool, without acknowledgement.
    Hint {
        /// The row.
        row: ResultRow,
    },
    /// A final result: to the spool, acknowledged by [`Input::Durable`](crate::Input::Durable).
    Keep {
        /// Its number in this hub, counted from 1 without a gap.
        number: u64,
        /// Where it came from.
        channel: ChannelKey,
        /// The row.
        row: ResultRow,
    },
    /// An order is not followed: to be logged and shown, for somebody must act.
    OrderRefused {
        /// Which, and why.
        refusal: OrderRefusal,
    },
}

/// Why an order that was well-formed is not followed. Each shard says it for itself.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OrderRefusal {
    /// As many tasks are active as the hub holds.
    #[error(
        "task {task} is not pushed: {limit} tasks are active, which is the limit; cancelled or not, they end with their validity"
    )]
    TooManyTasks {
        /// The task.
        task: TaskId,
        /// The limit.
        limit: usize,
    },
    /// As many cancels are held as the hub holds.
    #[error("the cancel of task {task} is not pushed: {limit} cancels are held, which is the limit")]
    TooManyCancels {
        /// The task.
        task: TaskId,
        /// The limit.
        limit: usize,
    },
    /// As many releases wait for their time as the hub holds.
    #[error("a release of task {task} is ignored: {limit} releases wait for their time, which is the limit")]
    TooManyReleases {
        /// The task.
        task: TaskId,
        /// The limit.
        limit: usize,
    },
    /// As many policy documents are held as the hub holds.
    #[error("policy document {name:?} is not handed out: {limit} documents are held, which is the limit")]
    TooManyPolicies {
        /// The document's name.
        name: String,
        /// The limit.
        limit: usize,
    },
    /// As many revoked certificates are held as the hub holds.
    #[error("a revoked certificate is not noted: {limit} are, which is the limit; block its device instead")]
    TooManyRevoked {
        /// The limit.
        limit: usize,
    },
}
