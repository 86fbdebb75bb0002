//! What the agent counts, for Prometheus. `docs/monitoring.md` says what each is, for administrators.
//!
//! [`Agent`] counts for itself and knows no thread; whoever drives it copies its counters here after each of its steps, and the page's
//! threads look at the copy. There is no page unless `agent.toml` asks for one.

use std::sync::Arc;

use bgb_daemon::metrics::{Cell, Exposition, Histogram, OF_DISKS, SharedCell};
use bgb_protocol::state::TaskState;

use crate::agent::{Agent, Counters, SessionPhase};
use crate::parting::Parting;
use crate::roads::Rung;

/// The last words that a device can say of a task.
const ENDS: [TaskState; 5] = [
    TaskState::Succeeded,
    TaskState::Failed,
    TaskState::Interrupted,
    TaskState::Refused,
    TaskState::Cancelled,
];

/// How a counter of the agent's is read.
type Described = (&'static str, &'static str, fn(&Counters) -> u64);

const PLAIN: [Described; 7] = [
    ("bgb_agent_connects_total", "Connections to a server that came about.", |all| all.connects),
    ("bgb_agent_sign_ins_total", "Sessions that a server has welcomed.", |all| all.sessions),
    ("bgb_agent_tasks_received_total", "Pushes of tasks that came, repeated ones included.", |all| {
        all.pushes
    }),
    (
        "bgb_agent_tasks_dropped_total",
        "Pushes that were dropped unanswered: not the site's, or one too many.",
        |all| all.pushes_dropped,
    ),
    (
        "bgb_agent_statements_dropped_total",
        "Cancels and heads that were dropped: not the site's, or one too many.",
        |all| all.statements_dropped,
    ),
    ("bgb_agent_heads_ceased_total", "Times that a server handed out no new signed time any more.", |all| {
        all.heads_ceased
    }),
    ("bgb_agent_tasks_begun_total", "Actions that were begun.", |all| all.begun),
];

/// Attempts to reach a server, by road, in the order of [`Rung::ALL`]; the connections' threads count them.
#[derive(Debug, Default)]
pub(crate) struct RoadCounts {
    pub(crate) attempts: [SharedCell; Rung::ALL.len()],
    /// Those that came to nothing.
    pub(crate) failures: [SharedCell; Rung::ALL.len()],
}

/// The agent's counters, as its threads see them.
#[derive(Debug)]
pub(crate) struct AgentMetrics {
    plain: [Cell; PLAIN.len()],
    partings: [Cell; Parting::ALL.len()],
    ends: [Cell; ENDS.len()],
    connected: Cell,
    running: Cell,
    /// When the server said something last, in milliseconds since boot; before it has, when the agent began.
    heard_ms: Cell,
    roads: Arc<RoadCounts>,
    pub(crate) fsync_times: Arc<Histogram>,
}

impl AgentMetrics {
    /// Of an agent that begins at `boot_ms`, whose attempts at connections are counted in `roads`.
    pub(crate) fn new(boot_ms: u64, roads: Arc<RoadCounts>) -> Self {
        let heard_ms = Cell::default();
        heard_ms.set(boot_ms);
        Self {
            plain: Default::default(),
            partings: Default::default(),
            ends: Default::default(),
            connected: Cell::default(),
            running: Cell::default(),
            heard_ms,
            roads,
            fsync_times: Arc::new(Histogram::new(OF_DISKS)),
        }
    }

    /// The server said something, at this time in milliseconds since boot.
    pub(crate) fn heard(&self, boot_ms: u64) {
        self.heard_ms.set(boot_ms);
    }

    /// Copies what the agent has counted.
    pub(crate) fn note(&self, agent: &Agent) {
        let counters = agent.counters();
        for (cell, (_, _, value)) in self.plain.iter().zip(PLAIN) {
            cell.set(value(counters));
        }
        for (cell, parting) in self.partings.iter().zip(Parting::ALL) {
            cell.set(counters.partings_of(parting));
        }
        for (cell, state) in self.ends.iter().zip(ENDS) {
            cell.set(counters.ends_of(state));
        }
        self.connected.set(u64::from(agent.phase() == SessionPhase::Active));
        self.running.set(agent.running() as u64);
    }

    /// Why the agent can be given no task at present.
    pub(crate) fn unready(&self) -> Option<&'static str> {
        (self.connected.value() == 0).then_some("the agent is signed in at no server; its log says why")
    }

    /// All of it as Prometheus text, at this time in milliseconds since boot.
    pub(crate) fn expose(&self, boot_ms: u64) -> String {
        let mut out = Exposition::of_process(env!("CARGO_PKG_VERSION"));
        for (cell, (name, help, _)) in self.plain.iter().zip(PLAIN) {
            out.counter(name, help, cell.value());
        }
        let partings = Parting::ALL.into_iter().zip(&self.partings);
        let partings = partings.map(|(parting, cell)| (parting.label(), cell.value()));
        let (name, help) =
            ("bgb_agent_disconnects_total", "Connections, and attempts at one, that ended, by reason.");
        out.counters(name, help, "reason", partings);
        let labels = || Rung::ALL.into_iter().map(Rung::label);
        let attempts = labels().zip(self.roads.attempts.iter().map(SharedCell::value));
        let (name, help) = ("bgb_agent_road_attempts_total", "Attempts to reach a server, by road.");
        out.counters(name, help, "road", attempts);
        let failures = labels().zip(self.roads.failures.iter().map(SharedCell::value));
        let (name, help) =
            ("bgb_agent_road_failures_total", "Attempts to reach a server that came to nothing, by road.");
        out.counters(name, help, "road", failures);
        let states = ENDS.map(|state| state.to_string());
        let ends = states.iter().zip(&self.ends).map(|(state, cell)| (state.as_str(), cell.value()));
        let (name, help) = ("bgb_agent_tasks_ended_total", "Tasks that came to an end, by their last state.");
        out.counters(name, help, "state", ends);
        let (name, help) = ("bgb_agent_tasks_running", "Actions that run.");
        out.gauge(name, help, self.running.value());
        out.gauge(
            "bgb_agent_connected",
            "1 while the agent is signed in at a server.",
            self.connected.value(),
        );
        let silence_ms = boot_ms.saturating_sub(self.heard_ms.value());
        out.gauge(
            "bgb_agent_server_silence_seconds",
            "Time since a server has said something, or since the agent began.",
            silence_ms as f64 / 1_000.0,
        );
        out.histogram(
            "bgb_agent_journal_fsync_seconds",
            "Fsyncs of journal and policy.",
            &[&self.fsync_times],
        );
        out.into_text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_has_just_begun_has_all_its_metrics_and_is_not_ready() {
        let metrics = AgentMetrics::new(5_000, Arc::default());
        metrics.roads.attempts[Rung::TCP.place()].count();
        assert!(metrics.unready().is_some());
        let text = metrics.expose(7_500);
        for line in [
            "bgb_agent_connects_total 0",
            "bgb_agent_disconnects_total{reason=\"refused\"} 0",
            "bgb_agent_tasks_ended_total{state=\"succeeded\"} 0",
            "bgb_agent_road_attempts_total{road=\"tcp\"} 1",
            "bgb_agent_road_failures_total{road=\"long-poll-http-proxy\"} 0",
            "bgb_agent_connected 0",
            "bgb_agent_server_silence_seconds 2.5",
            "bgb_agent_journal_fsync_seconds_count 0",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}: {text}");
        }
        metrics.connected.set(1);
        assert_eq!(metrics.unready(), None);
    }
}
