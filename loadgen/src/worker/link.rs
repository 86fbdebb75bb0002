//! What a coordinator and its workers say to each other, a line of JSON each.

use std::io::Write as _;

use bgb_protocol::ids::TaskId;
use serde::{Deserialize, Serialize};

use crate::measure::Packed;

/// What a worker is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Command {
    /// Connect everybody who is not, of those whose place in the fleet is below `upto`.
    Connect {
        upto: usize,
        /// When the first one is meant to begin, by the shared clock.
        from_ns: u64,
        /// From one to the next; 0: whenever there is room.
        gap_ns: u64,
        /// Handshakes under way at the most.
        window: usize,
        /// Whether sessions are resumed where there is a ticket.
        resumes: bool,
        /// Whether who is lost comes back by itself.
        returns: bool,
    },
    /// One in so many, those whose turn it is, end their connections and come back as after a loss.
    Nap { one_in: usize, turn: usize },
    /// End every connection.
    Disconnect,
    /// Tell what was measured of the connecting since the last time.
    TellConnects,
    /// Tell when a task was had, counted from `origin_ns`, and forget it.
    TellTask { task: TaskId, origin_ns: u64 },
    /// End.
    Stop,
    /// A line that is no command.
    Unreadable { line: String, error: String },
}

/// How far a worker is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Signed in.
    pub(crate) active: usize,
    /// On their way to that.
    pub(crate) connecting: usize,
    /// Connections that ended, or did not come about, since the start.
    pub(crate) lost: u64,
    /// Tasks that agents have, answers that they gave, and answers that a server has kept, since the start.
    pub(crate) had: u64,
    pub(crate) answered: u64,
    pub(crate) kept: u64,
    /// Keepalives that were said.
    pub(crate) keepalives: u64,
    /// What a real agent would not have carried out.
    pub(crate) refused: u64,
    /// How late the loop was at the most since the last report: more than a few milliseconds say that the generator is the limit.
    pub(crate) late_ns: u64,
}

/// What a worker tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub(crate) enum Report {
    /// The fleet is read.
    Ready { devices: usize },
    /// How far it is; a few times a second.
    Progress(Progress),
    /// What connecting took, from the intended moment to the welcome, and how many resumed.
    Connects { latencies: Packed, full: u64, resumed: u64, last_ns: u64 },
    /// When a task was had.
    Task { task: TaskId, latencies: Packed, count: u64, first_ns: u64, last_ns: u64, frame_bytes: usize },
    /// Something is wrong with the run, not with the server.
    Trouble { what: String },
    /// This machine does not give what the run needs, and the run cannot go on.
    Limit { what: String },
}

impl Report {
    /// Says it on the standard output.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub(crate) fn say(&self) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        let mut out = std::io::stdout().lock();
        out.write_all(&line)?;
        Ok(out.flush()?)
    }
}
