//! Counters that a shard owns, summed when somebody asks.
//!
//! Each reactor has its own block and is the only one to write it, so counting never contends; `/metrics` adds them up. The
//! text is Prometheus's exposition format 0.0.4.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bgb_hub::CloseReason;

/// A metric's name, its help text, and how it is read.
type Described<M> = (&'static str, &'static str, fn(&M) -> u64);

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident, $metric:literal, $help:literal;)*) => {
        /// One shard's counters and gauges.
        #[derive(Debug)]
        pub struct ShardMetrics {
            $($(#[$doc])* pub $name: Cell,)*
            closed: Vec<Cell>,
        }

        impl Default for ShardMetrics {
            fn default() -> Self {
                let closed = CloseReason::ALL.iter().map(|_| Cell::default()).collect();
                Self { $($name: Cell::default(),)* closed }
            }
        }

        const PLAIN: &[Described<ShardMetrics>] = &[
            $(($metric, $help, |shard| shard.$name.value()),)*
        ];
    };
}

/// A number that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds; for the owner only.
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// Sets; for the owner only.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it holds.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

counters! {
    /// Connections accepted.
    accepted, "bgb_server_connections_accepted_total", "Connections accepted.";
    /// Times that accepting stopped for want of descriptors.
    accept_failures, "bgb_server_accept_failures_total", "Times that accepting rested because descriptors or memory ran out.";
    /// Connections now.
    connections, "bgb_server_connections", "Connections open now, signed in or not.";
    /// Sessions now.
    sessions, "bgb_server_sessions", "Devices signed in now.";
    /// Handshakes completed.
    handshakes, "bgb_server_handshakes_total", "TLS handshakes completed.";
    /// Of those, resumed.
    resumed, "bgb_server_handshakes_resumed_total", "TLS handshakes completed by resumption.";
    /// Handshakes in flight.
    handshakes_in_flight, "bgb_server_handshakes_in_flight", "TLS handshakes begun and not over.";
    /// Sign-ins.
    sign_ins, "bgb_server_sign_ins_total", "Sessions that became active.";
    /// Tasks pushed.
    pushes, "bgb_server_pushes_total", "Tasks pushed to devices.";
    /// Results handed to the spool.
    results, "bgb_server_results_total", "Final results taken from devices.";
    /// Results acknowledged.
    acknowledged, "bgb_server_results_acknowledged_total", "Final results acknowledged after they were durable.";
    /// Hints dropped because the spool was busy.
    hints_dropped, "bgb_server_hints_dropped_total", "Received and running hints dropped because the spool was busy.";
    /// Channels held because the spool was full.
    holds, "bgb_server_holds_total", "Times that a channel was not read because the spool was full.";
    /// Bytes read.
    received_bytes, "bgb_server_received_bytes_total", "Bytes read from connections.";
    /// Bytes written.
    sent_bytes, "bgb_server_sent_bytes_total", "Bytes given to connections.";
    /// Turns of the loop.
    turns, "bgb_server_reactor_turns_total", "Turns of the reactors' loops.";
    /// Orders that a hub refused.
    refused_orders, "bgb_server_orders_refused_total", "Queue rows that a reactor could not take up.";
}

impl ShardMetrics {
    /// Counts an end.
    pub fn count_close(&self, reason: CloseReason) {
        if let Some(cell) =
            CloseReason::ALL.iter().position(|known| *known == reason).and_then(|at| self.closed.get(at))
        {
            cell.add(1);
        }
    }
}

/// Counters of the threads that are there once.
#[derive(Debug, Default)]
pub struct ServerMetrics {
    /// Rows read from the queue.
    pub queue_rows: Cell,
    /// Rows that could not be understood.
    pub queue_rows_bad: Cell,
    /// Highest sequence seen.
    pub queue_sequence: Cell,
    /// Whether devices may not sign in, since the queue cannot be read.
    pub sign_ins_refused: Cell,
    /// Result files written.
    pub result_files: Cell,
    /// Fsyncs of the spool.
    pub spool_syncs: Cell,
    /// Presence files written.
    pub presence_files: Cell,
    /// Files carried to the inbox.
    pub files_carried: Cell,
    /// Rounds of the courier that failed.
    pub carry_failures: Cell,
}

const SERVER: &[Described<ServerMetrics>] = &[
    ("bgb_server_queue_rows_total", "Rows read from the site's queue.", |all| all.queue_rows.value()),
    ("bgb_server_queue_rows_unreadable_total", "Rows of the queue passed over.", |all| {
        all.queue_rows_bad.value()
    }),
    ("bgb_server_queue_sequence", "Highest sequence read from the queue.", |all| all.queue_sequence.value()),
    (
        "bgb_server_sign_ins_refused",
        "1 while devices may not sign in, since the queue cannot be read.",
        |all| all.sign_ins_refused.value(),
    ),
    ("bgb_server_result_files_total", "Result files (.BTS) written.", |all| all.result_files.value()),
    ("bgb_server_spool_syncs_total", "Fsyncs of the result log.", |all| all.spool_syncs.value()),
    ("bgb_server_presence_files_total", "Presence files (.BOS) written.", |all| all.presence_files.value()),
    ("bgb_server_files_carried_total", "Files put into the site's inbox.", |all| all.files_carried.value()),
    ("bgb_server_carry_failures_total", "Rounds in which a file could not be put into the inbox.", |all| {
        all.carry_failures.value()
    }),
];

/// All counters of the server as Prometheus text.
#[must_use]
pub fn expose(server: &ServerMetrics, shards: &[Arc<ShardMetrics>]) -> String {
    let mut out = String::new();
    for (name, help, value) in PLAIN {
        let sum: u64 = shards.iter().map(|shard| value(shard)).sum();
        expose_one(&mut out, name, help, sum);
    }
    for (name, help, value) in SERVER {
        expose_one(&mut out, name, help, value(server));
    }
    let name = "bgb_server_closed_total";
    let _ = writeln!(out, "# HELP {name} Connections that ended, by reason.\n# TYPE {name} counter");
    for (at, reason) in CloseReason::ALL.iter().enumerate() {
        let sum: u64 = shards.iter().map(|shard| shard.closed[at].value()).sum();
        let _ = writeln!(out, "{name}{{reason=\"{}\"}} {sum}", reason.label());
    }
    out
}

fn expose_one(out: &mut String, name: &str, help: &str, value: u64) {
    let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
    // Writing into a String does not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_added_up() {
        let shards = [Arc::new(ShardMetrics::default()), Arc::new(ShardMetrics::default())];
        shards[0].accepted.add(2);
        shards[1].accepted.add(3);
        shards[1].count_close(CloseReason::NoCertificate);
        let text = expose(&ServerMetrics::default(), &shards);
        assert!(text.contains("\nbgb_server_connections_accepted_total 5\n"), "{text}");
        let label = CloseReason::NoCertificate.label();
        assert!(text.contains(&format!("bgb_server_closed_total{{reason=\"{label}\"}} 1\n")), "{text}");
    }
}
