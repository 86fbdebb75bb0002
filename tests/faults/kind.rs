//! The kinds of faults, and how often each was injected.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;

/// How often each kind has to be injected in a run.
pub(crate) const TIMES_LEAST: u64 = 20;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    AgentKilled,
    ServerKilled,
    ManagerKilled,
    ProcessPaused,
    JournalFull,
    SpoolFull,
    InboxFull,
    DatabaseFull,
    DatabaseBusy,
    ServerWithoutDescriptors,
    ManagerWithoutDescriptors,
    LinkCut,
    LinkCutUp,
    LinkCutDown,
    MachineVanished,
    ReaderDeaf,
    AgentClockMoved,
    ServerClockMoved,
    ManagerClockMoved,
}

impl Kind {
    /// All of them, in the table's order.
    pub(crate) const ALL: [Self; 19] = [
        Self::AgentKilled,
        Self::ServerKilled,
        Self::ManagerKilled,
        Self::ProcessPaused,
        Self::JournalFull,
        Self::SpoolFull,
        Self::InboxFull,
        Self::DatabaseFull,
        Self::DatabaseBusy,
        Self::ServerWithoutDescriptors,
        Self::ManagerWithoutDescriptors,
        Self::LinkCut,
        Self::LinkCutUp,
        Self::LinkCutDown,
        Self::MachineVanished,
        Self::ReaderDeaf,
        Self::AgentClockMoved,
        Self::ServerClockMoved,
        Self::ManagerClockMoved,
    ];

    /// Its line in the table.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::AgentKilled => "agent killed",
            Self::ServerKilled => "server killed",
            Self::ManagerKilled => "manager killed",
            Self::ProcessPaused => "process stopped for a while",
            Self::JournalFull => "disk full under a journal",
            Self::SpoolFull => "disk full under a spool",
            Self::InboxFull => "disk full under the inbox",
            Self::DatabaseFull => "disk full under the database",
            Self::DatabaseBusy => "database held busy",
            Self::ServerWithoutDescriptors => "server out of descriptors",
            Self::ManagerWithoutDescriptors => "manager out of descriptors",
            Self::LinkCut => "link cut both ways",
            Self::LinkCutUp => "link cut towards the server",
            Self::LinkCutDown => "link cut towards the agent",
            Self::MachineVanished => "machine vanished without a word",
            Self::ReaderDeaf => "reader that never reads",
            Self::AgentClockMoved => "agent's wall clock moved",
            Self::ServerClockMoved => "server's wall clock moved",
            Self::ManagerClockMoved => "manager's wall clock moved",
        }
    }
}

/// How often each was injected, by all worlds.
#[derive(Default)]
pub(crate) struct Tally(Mutex<BTreeMap<Kind, u64>>);

impl Tally {
    /// One more.
    pub(crate) fn count(&self, kind: Kind) {
        *self.0.lock().unwrap().entry(kind).or_default() += 1;
    }

    /// How often one was.
    pub(crate) fn times(&self, kind: Kind) -> u64 {
        self.0.lock().unwrap().get(&kind).copied().unwrap_or(0)
    }

    /// Kinds that were injected at all.
    pub(crate) fn kinds(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// All injections.
    pub(crate) fn injected(&self) -> u64 {
        self.0.lock().unwrap().values().sum()
    }

    /// Kinds that were injected too seldom.
    pub(crate) fn rare(&self) -> Vec<(Kind, u64)> {
        let times = Kind::ALL.into_iter().map(|kind| (kind, self.times(kind)));
        times.filter(|(_, times)| *times < TIMES_LEAST).collect()
    }

    /// A line for each kind.
    pub(crate) fn table(&self) -> String {
        let mut table = format!("{:<34}{:>8}\n", "kind", "injected");
        for kind in Kind::ALL {
            writeln!(table, "{:<34}{:>8}", kind.label(), self.times(kind)).unwrap();
        }
        table
    }
}
