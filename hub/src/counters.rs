//! What a hub counts: plain numbers that its shard owns, summed over shards when somebody asks.

use crate::close_reason::CloseCounts;

/// Counts since the hub began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Channels that were opened.
    pub opened: u64,
    /// Hellos that were welcomed.
    pub signed_in: u64,
    /// Why channels that the hub knew ended, whoever ended them.
    pub closed: CloseCounts,
    /// Keepalives that were answered.
    pub keepalives: u64,
    /// Tasks that were pushed, counted per device.
    pub pushes: u64,
    /// Cancels that were sent, counted per device.
    pub cancels: u64,
    /// Results that were handed to the spool.
    pub results: u64,
    /// Results that were acknowledged to the agent.
    pub results_acknowledged: u64,
    /// Received and running that were passed on.
    pub hints: u64,
    /// Received and running for a task that is not active here, or not for this device; dropped.
    pub hints_dropped: u64,
    /// Policy requests that were answered.
    pub policy_answers: u64,
    /// Policy requests that a later one of the same session replaced before they were answered.
    pub policy_requests_replaced: u64,
    /// Times that a channel was choked.
    pub choked: u64,
    /// Orders that were handed in.
    pub orders: u64,
    /// Orders that had expired when they came.
    pub orders_expired: u64,
    /// Orders that were refused, each with an [`Output::OrderRefused`](crate::Output::OrderRefused).
    pub orders_refused: u64,
    /// Inputs for channels that the hub no longer knows: they crossed with its own close.
    pub stale_inputs: u64,
}

impl Counters {
    /// Adds another shard's.
    pub fn add(&mut self, other: &Self) {
        let Self {
            opened,
            signed_in,
            closed,
            keepalives,
            pushes,
            cancels,
            results,
            results_acknowledged,
            hints,
            hints_dropped,
            policy_answers,
            policy_requests_replaced,
            choked,
            orders,
            orders_expired,
            orders_refused,
            stale_inputs,
        } = other;
        self.opened += opened;
        self.signed_in += signed_in;
        self.closed.add(closed);
        self.keepalives += keepalives;
        self.pushes += pushes;
        self.cancels += cancels;
        self.results += results;
        self.results_acknowledged += results_acknowledged;
        self.hints += hints;
        self.hints_dropped += hints_dropped;
        self.policy_answers += policy_answers;
        self.policy_requests_replaced += policy_requests_replaced;
        self.choked += choked;
        self.orders += orders;
        self.orders_expired += orders_expired;
        self.orders_refused += orders_refused;
        self.stale_inputs += stale_inputs;
    }
}
