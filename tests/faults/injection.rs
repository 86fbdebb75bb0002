//! What is done to whom, and how it is undone.
//!
//! Each injection picks a victim that nothing else of this kind is being done to, and gives what has to be undone. Undoing leaves a
//! process running, a link whole, a disk with room, a clock that goes right.

use std::net::TcpStream;
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::Signal;

use crate::dice::Dice;
use crate::kind::Kind;
use crate::link::Way;
use crate::world::{SERVERS, World};

/// How far a device's wall clock is moved: beyond the dates of every certificate, either way.
const AGENT_CLOCK_SECS: i64 = 400 * 24 * 3600;

/// How far the site's own clocks are moved, either way: tasks are valid for an hour by them, and must not expire by it.
const SITE_CLOCK_SECS: i64 = 20 * 60;

/// A manager whose clock is ahead starts tasks that servers hold back until their time has come for everybody: so far ahead people order
/// all the same, and everybody waits; further ahead nobody orders, since a run ends before.
const AHEAD_SECS_MAX: i64 = 20;

/// Strangers who connect to a server that has no descriptor left.
const STRANGERS: usize = 3;

/// How long this one waits to hold the database: a transaction of the manager's is over within a fraction of it.
const DATABASE_WAIT: Duration = Duration::from_secs(2);

/// Whom something is done to; nobody suffers twice at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Victim {
    Agent(usize),
    AgentClock(usize),
    Journal(usize),
    Link(usize),
    Server(u32),
    ServerClock(u32),
    Spool(u32),
    Manager,
    ManagerClock,
    Inbox,
    Database,
}

/// What has to be undone.
pub(crate) enum Held {
    /// A process is down.
    Down(Victim),
    /// A machine is gone, its link cut.
    Vanished(usize),
    /// A process is stopped.
    Paused(Victim),
    /// A disk is full.
    Full(Victim),
    /// Somebody else writes the database.
    Busy(Connection),
    /// A process has no descriptor left; it had this limit.
    Exhausted(Victim, u64, Vec<TcpStream>),
    /// A wire is cut.
    Cut(usize, Way),
    /// A clock is wrong.
    Misled(Victim),
}

impl Held {
    /// What is down comes back last, when what it needs is there again: an agent does not start on a full disk.
    pub(crate) fn comes_last(&self) -> bool {
        matches!(self, Self::Down(_) | Self::Vanished(_))
    }
}

/// How long a fault of this kind lasts, in milliseconds.
pub(crate) fn lasts_ms(kind: Kind) -> (u64, u64) {
    match kind {
        Kind::AgentKilled | Kind::ServerKilled | Kind::ManagerKilled => (0, 400),
        Kind::ProcessPaused => (300, 2_500),
        // Records find room in the page that they begin in: it takes a few to need another.
        Kind::JournalFull => (1_500, 4_000),
        Kind::SpoolFull | Kind::InboxFull => (800, 2_500),
        Kind::DatabaseFull | Kind::ServerWithoutDescriptors | Kind::ManagerWithoutDescriptors => (500, 1_500),
        // Most of them within what the manager itself waits, some beyond.
        Kind::DatabaseBusy => (1_000, 8_000),
        Kind::LinkCut | Kind::LinkCutUp | Kind::LinkCutDown => (1_000, 6_000),
        Kind::MachineVanished => (200, 3_000),
        // It ends by itself, when the server has had enough.
        Kind::ReaderDeaf => (0, 0),
        Kind::AgentClockMoved | Kind::ServerClockMoved | Kind::ManagerClockMoved => (300, 1_500),
    }
}

/// How it shows that a fault was felt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sign {
    /// Those whose outputs begin so say this, or were told it.
    Said(&'static str, &'static str),
    /// A server counts it, by this name.
    Counted(&'static str),
}

/// How a fault of this kind is felt; `None` where that shows elsewhere. A round that nobody has felt has shown nothing.
pub(crate) fn felt_as(kind: Kind) -> Option<Sign> {
    match kind {
        Kind::JournalFull => Some(Sign::Said("agent-", "No space left")),
        Kind::SpoolFull => Some(Sign::Said("server-", "No space left")),
        Kind::InboxFull => Some(Sign::Counted("bgb_server_carry_failures_total")),
        Kind::DatabaseFull => Some(Sign::Said("administrator", "database is full")),
        Kind::DatabaseBusy => Some(Sign::Said("administrator", "database is busy")),
        Kind::ServerWithoutDescriptors => Some(Sign::Counted("bgb_server_accept_failures_total")),
        Kind::ManagerWithoutDescriptors => Some(Sign::Said("manager", "Too many open files")),
        _ => None,
    }
}

/// How many are injected at once at the most, where that many are there.
pub(crate) fn at_once_max(kind: Kind) -> u64 {
    match kind {
        Kind::JournalFull => 6,
        Kind::LinkCut | Kind::LinkCutUp | Kind::LinkCutDown | Kind::MachineVanished => 5,
        Kind::AgentKilled | Kind::AgentClockMoved | Kind::ProcessPaused => 4,
        _ => 2,
    }
}

impl World {
    /// Injects a fault of this kind; `None` when nobody is left to suffer it.
    pub(crate) fn begin(&mut self, kind: Kind) -> Option<Held> {
        let victim = self.pick_victim(kind)?;
        let held = match kind {
            Kind::AgentKilled | Kind::ServerKilled | Kind::ManagerKilled => self.kill(victim),
            Kind::ProcessPaused => {
                self.process(victim).signal(Signal::STOP);
                Held::Paused(victim)
            }
            Kind::JournalFull | Kind::SpoolFull | Kind::InboxFull => self.fill(victim),
            Kind::DatabaseFull => {
                // What is written next shall need room of its own, and not find that of what was written before. Where somebody
                // is writing just now, the next fault will be felt.
                let connection = Connection::open(self.site.folder().database()).unwrap();
                let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
                self.fill(victim)
            }
            Kind::DatabaseBusy => self.hold_database()?,
            Kind::ServerWithoutDescriptors | Kind::ManagerWithoutDescriptors => self.exhaust(victim),
            Kind::LinkCut => self.cut(victim, Way::Both),
            Kind::LinkCutUp => self.cut(victim, Way::Up),
            Kind::LinkCutDown => self.cut(victim, Way::Down),
            Kind::MachineVanished => self.vanish(victim),
            Kind::AgentClockMoved => self.mislead(victim, AGENT_CLOCK_SECS),
            Kind::ServerClockMoved | Kind::ManagerClockMoved => self.mislead(victim, SITE_CLOCK_SECS),
            Kind::ReaderDeaf => unreachable!("deaf readers have a round of their own"),
        };
        self.tally.count(kind);
        Some(held)
    }

    /// Undoes it.
    pub(crate) fn end(&mut self, held: Held) {
        match held {
            Held::Down(Victim::Manager) => self.site.start_manager(),
            Held::Down(Victim::Server(server)) => self.site.start_server(server),
            Held::Down(victim) => self.machines[machine_of(victim)].start(&self.site),
            Held::Vanished(at) => {
                self.machines[at].link.rebuild();
                self.machines[at].start(&self.site);
            }
            Held::Paused(victim) => self.process(victim).signal(Signal::CONT),
            Held::Full(victim) => self.disk(victim).empty(),
            Held::Busy(connection) => connection.execute_batch("ROLLBACK").unwrap(),
            Held::Exhausted(victim, limit, strangers) => {
                self.process(victim).limit_descriptors(limit);
                drop(strangers);
            }
            Held::Cut(at, way) => self.machines[at].link.mend(way),
            Held::Misled(victim) => self.clock(victim).move_by(0),
        }
    }

    fn pick_victim(&mut self, kind: Kind) -> Option<Victim> {
        let machines = 0..self.machines.len();
        let candidates: Vec<Victim> = match kind {
            Kind::AgentKilled => machines.map(Victim::Agent).collect(),
            Kind::JournalFull => machines.map(Victim::Journal).collect(),
            Kind::LinkCut | Kind::LinkCutUp | Kind::LinkCutDown | Kind::MachineVanished => {
                machines.map(Victim::Link).collect()
            }
            Kind::AgentClockMoved => machines.map(Victim::AgentClock).collect(),
            Kind::ServerKilled | Kind::ServerWithoutDescriptors => SERVERS.map(Victim::Server).collect(),
            Kind::ServerClockMoved => SERVERS.map(Victim::ServerClock).collect(),
            Kind::SpoolFull => SERVERS.map(Victim::Spool).collect(),
            Kind::ManagerKilled | Kind::ManagerWithoutDescriptors => vec![Victim::Manager],
            Kind::ManagerClockMoved => vec![Victim::ManagerClock],
            Kind::InboxFull => vec![Victim::Inbox],
            Kind::DatabaseFull | Kind::DatabaseBusy => vec![Victim::Database],
            Kind::ProcessPaused => {
                let servers = SERVERS.map(Victim::Server);
                machines.map(Victim::Agent).chain(servers).chain([Victim::Manager]).collect()
            }
            Kind::ReaderDeaf => Vec::new(),
        };
        let needed = |victim| match (kind, victim) {
            (Kind::MachineVanished, Victim::Link(at)) => vec![victim, Victim::Agent(at)],
            // The administrator is waited for, and may be waiting for the manager.
            (Kind::ManagerClockMoved, _) => vec![victim, Victim::Manager],
            _ => vec![victim],
        };
        let is_free = |victim: &Victim| needed(*victim).iter().all(|victim| !self.suffering.contains(victim));
        let free: Vec<Victim> = candidates.into_iter().filter(is_free).collect();
        if free.is_empty() {
            return None;
        }
        let victim = self.dice.pick(&free);
        self.suffering.extend(needed(victim));
        Some(victim)
    }

    fn kill(&mut self, victim: Victim) -> Held {
        match victim {
            Victim::Manager => self.site.take_manager().kill(),
            Victim::Server(server) => self.site.take_server(server).kill(),
            other => self.machines[machine_of(other)].kill(),
        }
        Held::Down(victim)
    }

    fn fill(&self, victim: Victim) -> Held {
        self.disk(victim).fill();
        Held::Full(victim)
    }

    /// Becomes the writer; `None` when the manager is that and does not go on, because it was stopped in the middle.
    fn hold_database(&self) -> Option<Held> {
        let connection = Connection::open(self.site.folder().database()).unwrap();
        connection.busy_timeout(DATABASE_WAIT).unwrap();
        connection.execute_batch("BEGIN EXCLUSIVE").ok().map(|()| Held::Busy(connection))
    }

    fn exhaust(&mut self, victim: Victim) -> Held {
        let limit = self.process(victim).exhaust_descriptors();
        let strangers = match victim {
            Victim::Server(server) => {
                let address = self.site.server_address(server.try_into().expect("a site has few servers"));
                (0..STRANGERS).map(|_| TcpStream::connect(address).unwrap()).collect()
            }
            _ => Vec::new(),
        };
        Held::Exhausted(victim, limit, strangers)
    }

    fn cut(&mut self, victim: Victim, way: Way) -> Held {
        let at = machine_of(victim);
        self.machines[at].link.cut(way);
        Held::Cut(at, way)
    }

    fn vanish(&mut self, victim: Victim) -> Held {
        let at = machine_of(victim);
        // First the link, so that nobody hears of the end.
        self.machines[at].link.cut(Way::Both);
        self.machines[at].kill();
        Held::Vanished(at)
    }

    fn mislead(&mut self, victim: Victim, most_secs: i64) -> Held {
        // Near ones as often as far ones.
        let most_secs = if self.dice.chance(500) { most_secs } else { AHEAD_SECS_MAX };
        let seconds = far(&mut self.dice, most_secs);
        if victim == Victim::ManagerClock && seconds > AHEAD_SECS_MAX {
            self.administrator.rest();
        }
        self.clock(victim).move_by(seconds);
        Held::Misled(victim)
    }
}

/// Anything up to `most` seconds, forward or back.
fn far(dice: &mut Dice, most_secs: i64) -> i64 {
    let seconds = dice.between(1, most_secs.unsigned_abs()).cast_signed();
    if dice.chance(500) { seconds } else { -seconds }
}

/// The machine that a victim is part of.
pub(crate) fn machine_of(victim: Victim) -> usize {
    match victim {
        Victim::Agent(at) | Victim::AgentClock(at) | Victim::Journal(at) | Victim::Link(at) => at,
        other => panic!("{other:?} is no part of a machine"),
    }
}
