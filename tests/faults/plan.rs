//! Which world has which faults.
//!
//! Kinds are told apart by what they need: small disks, links to cut, clocks to move. Worlds run side by side, since a round is mostly
//! waiting; each kills processes as well.

use crate::kind::Kind;

/// A world's faults.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    /// The rounds of one kind, in an order that the dice give, and how often each is injected in its round.
    pub(crate) rounds: &'static [(Kind, u64)],
    /// What comes together in the rounds after them.
    pub(crate) mixed: &'static [Kind],
    /// Whether state, spools, inbox and database lie on small disks.
    pub(crate) has_small_disks: bool,
    /// Whether the processes' wall clocks can be moved.
    pub(crate) has_movable_clocks: bool,
}

/// The worlds.
pub(crate) const PLANS: [Plan; 4] = [
    Plan {
        name: "kills and disks",
        rounds: &[
            (Kind::AgentKilled, 60),
            (Kind::ServerKilled, 40),
            (Kind::ManagerKilled, 40),
            (Kind::JournalFull, 30),
            (Kind::SpoolFull, 20),
            (Kind::InboxFull, 20),
            (Kind::DatabaseFull, 20),
        ],
        mixed: &[
            Kind::AgentKilled,
            Kind::ServerKilled,
            Kind::ManagerKilled,
            Kind::ProcessPaused,
            Kind::JournalFull,
            Kind::SpoolFull,
            Kind::InboxFull,
            Kind::DatabaseFull,
            Kind::DatabaseBusy,
        ],
        has_small_disks: true,
        has_movable_clocks: false,
    },
    Plan {
        name: "links",
        rounds: &[
            (Kind::LinkCut, 20),
            (Kind::LinkCutUp, 20),
            (Kind::LinkCutDown, 20),
            (Kind::MachineVanished, 20),
        ],
        mixed: &[
            Kind::AgentKilled,
            Kind::ServerKilled,
            Kind::ManagerKilled,
            Kind::LinkCut,
            Kind::LinkCutUp,
            Kind::LinkCutDown,
            Kind::MachineVanished,
        ],
        has_small_disks: false,
        has_movable_clocks: false,
    },
    Plan {
        name: "peers and descriptors",
        rounds: &[
            (Kind::ReaderDeaf, 20),
            (Kind::ServerWithoutDescriptors, 20),
            (Kind::ManagerWithoutDescriptors, 20),
            (Kind::DatabaseBusy, 20),
        ],
        mixed: &[
            Kind::AgentKilled,
            Kind::ServerKilled,
            Kind::ManagerKilled,
            Kind::ServerWithoutDescriptors,
            Kind::ManagerWithoutDescriptors,
            Kind::DatabaseBusy,
            Kind::ProcessPaused,
        ],
        has_small_disks: false,
        has_movable_clocks: false,
    },
    Plan {
        name: "clocks",
        rounds: &[
            (Kind::AgentClockMoved, 20),
            (Kind::ServerClockMoved, 20),
            (Kind::ManagerClockMoved, 20),
            (Kind::ProcessPaused, 20),
        ],
        mixed: &[
            Kind::AgentKilled,
            Kind::ServerKilled,
            Kind::ManagerKilled,
            Kind::ProcessPaused,
            Kind::AgentClockMoved,
            Kind::ServerClockMoved,
            Kind::ManagerClockMoved,
        ],
        has_small_disks: false,
        has_movable_clocks: true,
    },
];
