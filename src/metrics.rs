//! Counters that a shard owns, summed when somebody asks.
//!
//! Each reactor has its own block and is the only one to write it, so counting never contends; `/metrics` adds them up.
//! `docs/monitoring.md` says what each is, for administrators.

use std::sync::Arc;

use bgb_daemon::metrics::{Cell, Exposition, Histogram, OF_DISKS, OF_TURNS};
use bgb_hub::CloseReason;

/// A metric's name, its help text, and how it is read.
type Described<M> = (&'static str, &'static str, fn(&M) -> u64);

/// A road, as far as the server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoadName {
    /// Straight.
    Tcp,
    /// WebSocket over HTTP.
    WebSocket,
    /// WebSocket over HTTPS.
    WebSocketHttps,
    /// Long-poll; each of its requests may come over HTTP or HTTPS.
    LongPoll,
}

impl RoadName {
    const ALL: [Self; 4] = [Self::Tcp, Self::WebSocket, Self::WebSocketHttps, Self::LongPoll];

    fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::WebSocket => "websocket-http",
            Self::WebSocketHttps => "websocket-https",
            Self::LongPoll => "long-poll",
        }
    }
}

/// The statuses by which HTTP requests are answered.
const STATUSES: [u16; 15] = [101, 200, 201, 204, 400, 404, 405, 409, 413, 421, 426, 431, 501, 503, 505];

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident, $metric:literal, $help:literal;)*) => {
        /// One shard's counters and gauges.
        #[derive(Debug)]
        pub struct ShardMetrics {
            $($(#[$doc])* pub $name: Cell,)*
            /// Turns of the loop, from when the poll came back to the turn's end.
            pub turn_times: Histogram,
            closed: Vec<Cell>,
            answers: [Cell; STATUSES.len()],
            roads: [Cell; RoadName::ALL.len()],
        }

        impl Default for ShardMetrics {
            fn default() -> Self {
                let closed = CloseReason::ALL.iter().map(|_| Cell::default()).collect();
                let answers = std::array::from_fn(|_| Cell::default());
                let roads = std::array::from_fn(|_| Cell::default());
                Self { $($name: Cell::default(),)* turn_times: Histogram::new(OF_TURNS), closed, answers, roads }
            }
        }

        const PLAIN: &[Described<ShardMetrics>] = &[
            $(($metric, $help, |shard| shard.$name.value()),)*
        ];
    };
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
    /// Tunnels opened.
    tunnels_opened, "bgb_server_tunnels_opened_total", "Long-poll tunnels opened.";
    /// Tunnels now.
    tunnels, "bgb_server_tunnels", "Long-poll tunnels open now, signed in or not.";
    /// Requests that came to another shard than their tunnel's.
    tunnel_requests_passed, "bgb_server_tunnel_requests_passed_total", "Long-poll requests passed on to the reactor that has their tunnel.";
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

impl ShardMetrics {
    /// A session began on this road.
    pub fn begin_session(&self, road: RoadName) {
        let cell = &self.roads[road as usize];
        cell.set(cell.value() + 1);
    }

    /// A session on this road ended.
    pub fn end_session(&self, road: RoadName) {
        let cell = &self.roads[road as usize];
        cell.set(cell.value().saturating_sub(1));
    }

    /// Counts an answer to an HTTP request.
    pub fn count_answer(&self, status: u16) {
        if let Some(at) = STATUSES.iter().position(|known| *known == status) {
            self.answers[at].add(1);
        }
    }
}

/// Counters of the threads that are there once.
#[derive(Debug)]
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
    /// Fsyncs of files in the spool's folder, by whichever thread.
    pub fsync_times: Arc<Histogram>,
}

impl Default for ServerMetrics {
    fn default() -> Self {
        Self {
            queue_rows: Cell::default(),
            queue_rows_bad: Cell::default(),
            queue_sequence: Cell::default(),
            sign_ins_refused: Cell::default(),
            result_files: Cell::default(),
            spool_syncs: Cell::default(),
            presence_files: Cell::default(),
            files_carried: Cell::default(),
            carry_failures: Cell::default(),
            fsync_times: Arc::new(Histogram::new(OF_DISKS)),
        }
    }
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
pub fn expose(server: &ServerMetrics, shards: &[Arc<ShardMetrics>]) -> Exposition {
    let mut out = Exposition::of_process(env!("CARGO_PKG_VERSION"));
    for (name, help, value) in PLAIN {
        let sum: u64 = shards.iter().map(|shard| value(shard)).sum();
        expose_one(&mut out, name, help, sum);
    }
    for (name, help, value) in SERVER {
        expose_one(&mut out, name, help, value(server));
    }
    let sum = |at: usize| shards.iter().map(|shard| shard.closed[at].value()).sum();
    let closed = CloseReason::ALL.iter().enumerate().map(|(at, reason)| (reason.label(), sum(at)));
    out.counters("bgb_server_closed_total", "Connections that ended, by reason.", "reason", closed);
    let sum = |road: RoadName| shards.iter().map(|shard| shard.roads[road as usize].value()).sum();
    let roads = RoadName::ALL.into_iter().map(|road| (road.label(), sum(road)));
    out.gauges(
        "bgb_server_sessions_by_road",
        "Devices connected now, by the road that they came.",
        "road",
        roads,
    );
    let sum = |at: usize| shards.iter().map(|shard| shard.answers[at].value()).sum();
    let names = STATUSES.map(|status| status.to_string());
    let answers = names.iter().enumerate().map(|(at, status)| (status.as_str(), sum(at)));
    out.counters("bgb_server_http_answers_total", "HTTP requests answered, by status.", "status", answers);
    let turns: Vec<_> = shards.iter().map(|shard| &shard.turn_times).collect();
    out.histogram(
        "bgb_server_reactor_turn_seconds",
        "Turns of the reactors' loops: the busy part, without the wait.",
        &turns,
    );
    let fsyncs = [&*server.fsync_times];
    out.histogram("bgb_server_spool_fsync_seconds", "Fsyncs of files in the spool's folder.", &fsyncs);
    out
}

/// Bytes that the server may still write on the spool's disk; left out when the disk does not say.
pub fn expose_free(out: &mut Exposition, free_bytes: Option<u64>) {
    if let Some(free) = free_bytes {
        out.gauge("bgb_server_spool_disk_free_bytes", "Bytes that are free on the spool's disk.", free);
    }
}

fn expose_one(out: &mut Exposition, name: &str, help: &str, value: u64) {
    if name.ends_with("_total") { out.counter(name, help, value) } else { out.gauge(name, help, value) }
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
        let text = expose(&ServerMetrics::default(), &shards).into_text();
        assert!(text.contains("\nbgb_server_connections_accepted_total 5\n"), "{text}");
        let label = CloseReason::NoCertificate.label();
        assert!(text.contains(&format!("bgb_server_closed_total{{reason=\"{label}\"}} 1\n")), "{text}");
    }
    #[test]
    fn turns_of_all_shards_are_in_one_histogram() {
        let shards = [Arc::new(ShardMetrics::default()), Arc::new(ShardMetrics::default())];
        shards.iter().for_each(|shard| shard.turn_times.observe(std::time::Duration::from_micros(20)));
        let mut out = expose(&ServerMetrics::default(), &shards);
        expose_free(&mut out, Some(7));
        let text = out.into_text();
        for line in [
            "bgb_server_reactor_turn_seconds_bucket{le=\"0.00001\"} 0",
            "bgb_server_reactor_turn_seconds_bucket{le=\"0.000025\"} 2",
            "bgb_server_reactor_turn_seconds_count 2",
            "bgb_server_spool_fsync_seconds_count 0",
            "bgb_server_spool_disk_free_bytes 7",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}: {text}");
        }
    }
}
