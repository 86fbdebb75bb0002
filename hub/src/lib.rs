//! Who is online at a shard, and what must still reach them.
//!
//! [`Hub`] is a whole engine behind two enums: [`Input`] goes in by [`Hub::handle`], [`Output`] comes out by
//! [`Hub::poll_output`], and [`Hub::advance`] lets time pass. A reactor drives it with sockets and a clock; a simulator drives
//! the same code with neither.
//!
//! It is deterministic: the same inputs at the same ticks give the same outputs. So it must not know a clock, a socket, a
//! thread, a disk or a random source, and iterates over nothing whose order is random. It knows channel keys, never
//! sockets, and shares nothing with other shards but the orders, which do not change.
#![forbid(unsafe_code)]
// A test that unwraps fails with the line that did it, which is what a test is for.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod active_tasks;
mod admission;
mod close_reason;
mod counters;
mod hub;
mod input;
pub mod newest;
mod order;
mod output;
mod policies;
mod server_time;
mod session;
pub mod site_clock;
mod time;
pub mod wheel;

pub use close_reason::{CloseCounts, CloseReason};
pub use counters::Counters;
pub use hub::{Hub, HubOptions};
pub use input::{ChannelKey, Input, Peer};
pub use order::{Order, OrderError, PolicyOrder, PushFrames, TaskOrder};
pub use output::{OrderRefusal, Output};
pub use time::{Now, TICK_MS, Tick, ticks_from_secs};
