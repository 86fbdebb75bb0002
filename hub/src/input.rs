//! What goes into the hub.

use std::net::SocketAddr;

use bgb_protocol::ids::{DeviceId, UnixMillis};
use bgb_protocol::message::AgentMessage;

use crate::close_reason::CloseReason;
use crate::order::Order;

/// A channel of the caller: a place in its slab, and which of that place's tenants it is.
///
/// The hub keeps its sessions at the same index: the caller gives the lowest free ones, as a slab does, and never
/// the same generation of an index twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelKey {
    /// The place, 0xffff_feff at most.
    pub index: u32,
    /// Which tenant of it.
    pub generation: u32,
}

/// Who is at the other end, as its certificate proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The device.
    pub device: DeviceId,
    /// Where it comes from.
    pub address: SocketAddr,
    /// SHA-256 of its certificate in DER form.
    pub fingerprint: [u8; 32],
    /// When its certificate ends, and the session with it.
    pub certificate_ends: UnixMillis,
}

/// What happened. After each [`Hub::handle`](crate::Hub::handle) the caller drains the outputs before it hands in
/// the next.
#[derive(Clone, Debug)]
pub enum Input {
    /// TLS is done and the identity is proved.
    Opened {
        /// The new channel.
        channel: ChannelKey,
        /// Who it is.
        peer: Peer,
    },
    /// The agent said something.
    Said {
        /// Where.
        channel: ChannelKey,
        /// What.
        message: AgentMessage,
    },
    /// The transport is gone; nothing can be sent any more. Not needed after an [`Output::Close`](crate::Output::Close), and
    /// harmless then.
    Closed {
        /// Which channel.
        channel: ChannelKey,
        /// Why.
        reason: CloseReason,
    },
    /// The directory's answer to [`Output::Claim`](crate::Output::Claim), given before anything else of this channel.
    Claimed {
        /// The channel that claimed.
        channel: ChannelKey,
        /// The number of the claim, which goes with what is told of the session; `None` where its session is not the device's newest.
        granted: Option<u64>,
    },
    /// A newer session of the device was claimed, here or on another shard: this one ends.
    Displaced {
        /// The channel of the older session.
        channel: ChannelKey,
    },
    /// The channel's unsent bytes are above the high-water mark.
    Choked {
        /// Which channel.
        channel: ChannelKey,
    },
    /// The channel's unsent bytes are below the low-water mark again.
    Flowing {
        /// Which channel.
        channel: ChannelKey,
    },
    /// A row of the queue.
    Order(Order),
    /// Results numbered up to and including this are on disk.
    Durable {
        /// The highest number that is.
        up_to: u64,
    },
    /// Whether new sessions are taken (not while the queue cannot be read). `allowed: true` also ends the reload that an
    /// [`Order::Reset`] began: say it only when all rows have been handed in.
    SignIns {
        /// Whether they are.
        allowed: bool,
    },
    /// The server stops: every session is told, and closed. It takes several turns; it is over when
    /// [`Hub::sessions`](crate::Hub::sessions) is 0.
    Drain,
}
