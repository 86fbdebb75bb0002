//! A site with its servers, its machines and its administrator, and the rounds of faults that come over it.
//!
//! ```text
//!  quiet --> round: faults at random moments, under load --> healed --> quiet: judged --> next round
//! ```
//!
//! A round ends with everything whole again. Then it has to become quiet within what is promised, and what the judge, the site's own
//! check and the processes' footprints say is taken at that moment. The first thing that does not hold ends the world, by a panic.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bgb_protocol::action::Action;
use bgb_protocol::api::{Connectivity, DeviceRow, SiteStatus, TaskRow};
use bgb_protocol::ids::{ServerId, TaskId};
use bgb_protocol::message::AgentMessage;
use rustls::ClientConnection;

use crate::administrator::Administrator;
use crate::clock::Clock;
use crate::dice::Dice;
use crate::disk::SmallDisk;
use crate::footprint::{Footprint, Footprints, wait_near};
use crate::ground;
use crate::injection::{Held, Sign, Victim, at_once_max, felt_as, lasts_ms, machine_of};
use crate::judge::Judge;
use crate::kind::{Kind, Tally};
use crate::link::{self, Link};
use crate::machine::Machine;
use crate::peer::Peer;
use crate::plan::Plan;
use crate::process::{Process, Surroundings};
use crate::site::{self, Device, Site, find_files};
use crate::wait::{until_equal, until_true};

/// A world's servers.
pub(crate) const SERVERS: std::ops::RangeInclusive<u32> = 1..=2;

/// A world's machines: enough for some to suffer while others do not.
const MACHINES: u8 = 6;

/// Devices of the network's world that never read.
const DEAF: u8 = 10;

/// The collection of all machines, and that of those who never read.
const FLEET: &str = "fleet";
const DEAF_ONES: &str = "deaf";

/// Everything comes to its end within this from the faults' end (docs/promises.md, invariant 2), and the manager needs a moment
/// to take it in.
const QUIET_WITHIN: Duration = Duration::from_secs(310);

/// Who is online has an order within this (docs/promises.md, invariant 2).
const ONLINE_HAS_IT_WITHIN: Duration = Duration::from_secs(5);

/// A peer that does not read is dropped after 25 s at the latest, and the others are busy as well.
const DEAF_DROPPED_WITHIN: Duration = Duration::from_secs(60);

/// Presence is the truth within two keepalive limits of 30 s and 10 s (docs/promises.md, invariant 7).
const PRESENCE_WITHIN: Duration = Duration::from_secs(70);

/// Room for what a world's servers and its manager write, several times.
const SPOOL_MIB: u32 = 48;
const INBOX_MIB: u32 = 64;
const DATABASE_MIB: u32 = 96;

/// Between two injections of a round, in milliseconds.
const GAP_MS: (u64, u64) = (20, 350);

/// Long enough for both sides of a dead connection to find out: an agent asks after 20 s and waits 30 s for the answer.
const LONG_CUT: Duration = Duration::from_secs(55);

/// Load before the first fault, so that what is held at rest is held.
const WARM_UP: Duration = Duration::from_secs(5);

/// Waves of a round of all kinds, and faults of one wave.
const MIXED_WAVES: u64 = 12;
const MIXED_AT_ONCE: (u64, u64) = (1, 4);

/// Small disks and movable clocks that are no machine's.
type Disks = Vec<(Victim, SmallDisk)>;
type Clocks = Vec<(Victim, Clock)>;

/// See the module.
pub(crate) struct World {
    plan: &'static Plan,
    pub(crate) dice: Dice,
    pub(crate) tally: Arc<Tally>,
    pub(crate) suffering: BTreeSet<Victim>,
    pub(crate) administrator: Administrator,
    pub(crate) machines: Vec<Machine>,
    disks: Disks,
    clocks: Clocks,
    deaf: Vec<Device>,
    deaf_tasks: BTreeSet<TaskId>,
    judge: Judge,
    first: Footprints,
    quiet_moments: u64,
    pub(crate) site: Site,
}

/// How much was checked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked {
    moments: u64,
    tasks: u64,
    results: u64,
    executions: u64,
    interrupted: u64,
}

impl Checked {
    /// And that of another world.
    pub(crate) fn add(&mut self, other: &Self) {
        self.moments += other.moments;
        self.tasks += other.tasks;
        self.results += other.results;
        self.executions += other.executions;
        self.interrupted += other.interrupted;
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { moments, tasks, results, executions, interrupted } = self;
        write!(
            formatter,
            "checked at {moments} quiet moments:\n  \
             {tasks} tasks with {results} results: each is there, ended within what is promised, and its counts add up\n  \
             {executions} executions of scans: no task's twice, none told as done that was not; {interrupted} interrupted, and told so\n  \
             the site by `bgb site check`; who is online; memory and descriptors of every process; no panic"
        )
    }
}

impl World {
    /// A world that is about to begin.
    pub(crate) fn new(number: usize, plan: &'static Plan, seed: u64, tally: Arc<Tally>) -> Self {
        let number = u8::try_from(number).expect("there are few worlds");
        let mut dice = Dice::new(seed ^ (u64::from(number) << 56));
        link::make_servers_side(number);
        let (mut site, disks, clocks) = make_site(number, plan);
        site.start_manager();
        SERVERS.for_each(|server| site.start_server(server));
        let names = |what: &str, count| (1..=count).map(|at| format!("{what}-{at}")).collect::<Vec<_>>();
        let devices = site.add_devices(names("pc", MACHINES));
        site.collect(FLEET, &devices);
        let has_deaf_ones = plan.rounds.iter().any(|(kind, _)| *kind == Kind::ReaderDeaf);
        let deaf = if has_deaf_ones { site.add_devices(names("deaf", DEAF)) } else { Vec::new() };
        if has_deaf_ones {
            site.collect(DEAF_ONES, &deaf);
            site.issue_long_policies(Some(DEAF_ONES));
        }
        let mut machines = Vec::new();
        for (at, device) in (1..).zip(devices) {
            // Half of them prefer the one server, half the other.
            let mut order: Vec<_> = SERVERS.map(|server| site.server_address(server as u16)).collect();
            order.rotate_left(at % 2);
            device.point_at(&order);
            let name = device.name.clone();
            let clock = plan.has_movable_clocks.then(|| Clock::new(site.path(&format!("clock-{name}"))));
            let link = Link::new(number, at as u8);
            machines.push(Machine::new(&mut site, device, link, plan.has_small_disks, clock));
        }
        let administrator = Administrator::new(site.api(), FLEET, &site.outputs(), Dice::new(dice.next()));
        Self {
            plan,
            dice,
            tally,
            suffering: BTreeSet::new(),
            administrator,
            machines,
            disks,
            clocks,
            deaf,
            deaf_tasks: BTreeSet::new(),
            judge: Judge::default(),
            first: Footprints::new(),
            quiet_moments: 0,
            site,
        }
    }

    /// All its rounds; those of all kinds together begin until the given moment.
    pub(crate) fn run(mut self, mixed_until: Instant) -> Checked {
        if self.plan.has_movable_clocks {
            self.assert_clocks_move();
        }
        self.administrator.work();
        std::thread::sleep(WARM_UP);
        self.become_quiet("before all faults");
        let mut rounds = self.plan.rounds.to_vec();
        while !rounds.is_empty() {
            let (kind, times) = rounds.swap_remove(self.dice.place(rounds.len()));
            self.administrator.work();
            match kind {
                Kind::ReaderDeaf => self.round_of_deaf_readers(times),
                _ => self.round(kind, times),
            }
            self.become_quiet(kind.label());
        }
        while Instant::now() < mixed_until {
            self.administrator.work();
            for _ in 0..MIXED_WAVES {
                let at_once = self.dice.between(MIXED_AT_ONCE.0, MIXED_AT_ONCE.1);
                let kinds: Vec<_> = (0..at_once).map(|_| self.dice.pick(self.plan.mixed)).collect();
                self.wave(&kinds);
            }
            self.become_quiet("all kinds");
        }
        self.judge.judge_again(&self.site);
        Checked {
            moments: self.quiet_moments,
            tasks: self.judge.tasks(),
            results: self.judge.results(),
            executions: self.judge.executions(),
            interrupted: self.judge.interrupted(),
        }
    }

    /// Faults of one kind, so many times.
    fn round(&mut self, kind: Kind, times: u64) {
        let felt_before = self.felt(kind);
        let mut left = times;
        while left > 0 {
            let at_once = self.dice.between(1, at_once_max(kind)).min(left);
            left -= self.wave(&vec![kind; at_once as usize]);
        }
        match kind {
            Kind::LinkCut => self.cut_for_long(),
            Kind::MachineVanished => self.vanish_until_noticed(),
            _ => {}
        }
        let is_felt = felt_as(kind).is_none() || self.felt(kind) > felt_before;
        assert!(is_felt, "{times} times {}, and nobody has felt it", kind.label());
    }

    /// How often it was felt so far.
    fn felt(&self, kind: Kind) -> u64 {
        let (whose, words) = match felt_as(kind) {
            None => return 0,
            Some(Sign::Counted(metric)) => {
                return SERVERS.map(|server| self.site.metric(server as u16, metric)).sum();
            }
            Some(Sign::Said(whose, words)) => (whose, words),
        };
        let is_theirs =
            |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(whose));
        let said =
            self.outputs().filter(|(path, _)| is_theirs(path)).map(|(_, text)| text.matches(words).count());
        said.sum::<usize>() as u64
    }

    /// Faults of these kinds at a time, and their end; how many there were.
    fn wave(&mut self, kinds: &[Kind]) -> u64 {
        let mut all = Vec::new();
        for kind in kinds {
            self.pause(GAP_MS);
            all.extend(self.begin(*kind));
        }
        let lasts = kinds.iter().map(|kind| lasts_ms(*kind)).max_by_key(|(_, most)| *most);
        self.pause(lasts.unwrap_or_default());
        self.undo(all)
    }

    fn undo(&mut self, mut all: Vec<Held>) -> u64 {
        let count = all.len() as u64;
        all.sort_by_key(Held::comes_last);
        for held in all {
            self.end(held);
        }
        self.suffering.clear();
        // Nobody ordered while the manager's clock was far ahead.
        self.administrator.work();
        self.assert_running();
        count
    }

    /// Wires that stay cut until both sides have found out: one of each way.
    fn cut_for_long(&mut self) {
        let kinds = [Kind::LinkCut, Kind::LinkCutUp, Kind::LinkCutDown];
        let all: Vec<Held> = kinds.into_iter().filter_map(|kind| self.begin(kind)).collect();
        let cut: Vec<_> = self.suffering.iter().map(|victim| machine_of(*victim)).collect();
        std::thread::sleep(LONG_CUT);
        self.wait_offline(&cut, PRESENCE_WITHIN - LONG_CUT);
        self.undo(all);
    }

    /// Machines that vanish and stay away until their servers have found out.
    fn vanish_until_noticed(&mut self) {
        let all: Vec<Held> = (0..2).filter_map(|_| self.begin(Kind::MachineVanished)).collect();
        let gone = all.iter().filter_map(|held| match held {
            Held::Vanished(at) => Some(*at),
            _ => None,
        });
        let gone: Vec<_> = gone.collect();
        self.wait_offline(&gone, PRESENCE_WITHIN);
        self.undo(all);
    }

    fn wait_offline(&self, machines: &[usize], within: Duration) {
        let numbers: Vec<_> = machines.iter().map(|at| self.machines[*at].device.number).collect();
        until_true("machines that are cut off are shown as offline", within, || {
            let devices = self.site.devices();
            devices
                .iter()
                .all(|row| !numbers.contains(&row.number) || row.connectivity == Connectivity::Offline)
        });
    }

    /// Devices that sign in, ask for a long answer again and again, and never read: dropped, and no harm to the others.
    fn round_of_deaf_readers(&mut self, times: u64) {
        let mut session = 0;
        let mut left = times;
        while left > 0 {
            session += 1;
            let count = left.min(self.deaf.len() as u64) as usize;
            let dropped =
                |site: &Site| SERVERS.map(|server| site.closed(server as u16, "too-slow")).sum::<u64>();
            let wanted = dropped(&self.site) + count as u64;
            let mut deaf: Vec<Peer<ClientConnection>> = (0_u16..)
                .zip(&self.deaf[..count])
                .map(|(at, device)| Peer::sign_in(&self.site, 1 + at % 2, device, 1, session).0)
                .collect();
            (0..count).for_each(|_| self.tally.count(Kind::ReaderDeaf));
            let mut requests = 1..;
            until_true("peers that never read are dropped", DEAF_DROPPED_WITHIN, || {
                let mut request = Vec::new();
                AgentMessage::PolicyRequest(requests.next().expect("numbers do not end"))
                    .encode(&mut request);
                // Some may have been dropped just now.
                deaf.iter_mut().for_each(|peer| drop(peer.send(&request)));
                self.deaf_tasks.insert(self.site.start_task(Action::Ping, DEAF_ONES));
                self.probe();
                dropped(&self.site) >= wanted
            });
            left -= count as u64;
        }
    }

    /// Waits until everything has come to its end, and judges it.
    fn become_quiet(&mut self, after: &str) {
        self.administrator.rest();
        let begun = Instant::now();
        // Whoever answers this has a session of which both ends know; what the site shows of presence may be old for a moment.
        self.site.start_task(Action::Ping, FLEET);
        until_equal("all machines are online", QUIET_WITHIN, &self.machines.len(), || self.online());
        let left = |rows: &[TaskRow]| {
            let open = rows.iter().filter(|row| row.counts.done() < row.counts.targets);
            open.map(|row| (row.task, row.action, row.counts)).collect::<Vec<_>>()
        };
        let until_ended = QUIET_WITHIN.saturating_sub(begun.elapsed());
        until_equal("each task has ended at each machine", until_ended, &Vec::new(), || left(&self.tasks()));
        self.probe();
        self.assert_running();
        self.site.check();
        let (rows, accepted) = (self.tasks(), self.administrator.accepted());
        self.judge.judge(&self.site, &self.machines, &rows, &accepted);
        self.assert_no_panic();
        if self.first.is_empty() {
            self.first = self.footprints();
        }
        let first = std::mem::take(&mut self.first);
        wait_near(&first, || self.footprints());
        self.first = first;
        self.quiet_moments += 1;
        eprintln!(
            "faults: {}: {after}: quiet after {:.1} s, all holds; {} tasks so far",
            self.plan.name,
            begun.elapsed().as_secs_f64(),
            rows.len()
        );
    }

    /// Who is online has an order at once, and answers it.
    fn probe(&self) {
        let task = self.site.start_task(Action::Ping, FLEET);
        let wanted = self.machines.len() as u64;
        until_equal("machines that are online have an order at once", ONLINE_HAS_IT_WITHIN, &wanted, || {
            self.site.counts(task).succeeded
        });
    }

    fn online(&self) -> usize {
        let is_machine = |number| self.machines.iter().any(|machine| machine.device.number == number);
        let online = |row: &DeviceRow| row.connectivity == Connectivity::Online;
        self.site.devices().iter().filter(|row| is_machine(row.number) && online(row)).count()
    }

    /// All tasks but those for devices that never read.
    fn tasks(&self) -> Vec<TaskRow> {
        let rows: Vec<TaskRow> = self.site.api().list("/tasks").unwrap();
        for row in &rows {
            assert!(row.counts.adds_up(), "the counts of task {} do not add up: {:?}", row.task, row.counts);
        }
        rows.into_iter().filter(|row| !self.deaf_tasks.contains(&row.task)).collect()
    }

    fn footprints(&mut self) -> Footprints {
        let mut all = Footprints::new();
        all.insert("manager".to_owned(), Footprint::of(self.site.manager(), 0));
        for server in SERVERS {
            let connections = self.site.metric(server as u16, "bgb_server_connections");
            all.insert(format!("server-{server}"), Footprint::of(self.site.server(server), connections));
        }
        for machine in &self.machines {
            all.insert(machine.device.name.clone(), Footprint::of(&machine.agent, 0));
        }
        all
    }

    /// No process has ended but those that were killed, and those run again.
    fn assert_running(&mut self) {
        let servers = SERVERS.map(Victim::Server);
        let agents = (0..self.machines.len()).map(Victim::Agent);
        for victim in servers.chain(agents).chain([Victim::Manager]) {
            let process = self.process(victim);
            assert!(process.is_running(), "{victim:?} has ended by itself: {}", process.stderr());
        }
    }

    /// Each process has a clock that can be moved, and moving it moves what it takes for the time.
    fn assert_clocks_move(&mut self) {
        let servers = SERVERS.map(Victim::Server);
        let agents = (0..self.machines.len()).map(Victim::Agent);
        for victim in servers.chain(agents).chain([Victim::Manager]) {
            assert!(self.process(victim).has_loaded("libfaketime"), "{victim:?} has no clock of its own");
        }
        let ahead_ms = |site: &Site| {
            let status: SiteStatus = site.api().fetch("/status").unwrap();
            status.time.since(site::now())
        };
        self.clock(Victim::ManagerClock).move_by(1_000);
        assert!((900_000..=1_000_000).contains(&ahead_ms(&self.site)), "the manager's clock does not move");
        self.clock(Victim::ManagerClock).move_by(0);
        assert_eq!(ahead_ms(&self.site), 0, "the manager's clock does not move back");
    }

    fn assert_no_panic(&self) {
        for (path, text) in self.outputs() {
            let panicked = text.lines().find(|line| line.contains("panicked at"));
            assert!(panicked.is_none(), "{}: {}", path.display(), panicked.unwrap_or_default());
        }
    }

    /// All that processes have printed.
    fn outputs(&self) -> impl Iterator<Item = (PathBuf, String)> {
        let mut outputs = Vec::new();
        find_files(&self.site.outputs(), &mut outputs);
        outputs.into_iter().map(|path| {
            let text = fs::read_to_string(&path).unwrap_or_default();
            (path, text)
        })
    }

    fn pause(&mut self, (least, most): (u64, u64)) {
        std::thread::sleep(Duration::from_millis(self.dice.between(least, most)));
    }

    pub(crate) fn process(&mut self, victim: Victim) -> &mut Process {
        match victim {
            Victim::Manager => self.site.manager(),
            Victim::Server(server) => self.site.server(server),
            other => &mut self.machines[machine_of(other)].agent,
        }
    }

    pub(crate) fn disk(&self, victim: Victim) -> &SmallDisk {
        match victim {
            Victim::Journal(at) => self.machines[at].journal.as_ref().expect("the plan has small disks"),
            other => find(&self.disks, other),
        }
    }

    pub(crate) fn clock(&self, victim: Victim) -> &Clock {
        match victim {
            Victim::AgentClock(at) => self.machines[at].clock.as_ref().expect("the plan has movable clocks"),
            other => find(&self.clocks, other),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = format!("{}/{}", ground::LEFT_OVERS, self.plan.name.replace(' ', "-"));
            // Whatever cannot be kept is not worth hiding the violation for.
            let _ = fs::remove_dir_all(&kept);
            let _ = fs::create_dir_all(ground::LEFT_OVERS);
            let _ = ground::run("cp", &["-a", self.site.path("").to_str().unwrap_or_default(), &kept]);
        }
    }
}

fn find<T>(all: &[(Victim, T)], victim: Victim) -> &T {
    let found = all.iter().find(|(whose, _)| *whose == victim);
    found.map(|(_, what)| what).expect("a plan has what its kinds need")
}

/// A site that does not run yet, with what its plan needs around it.
fn make_site(number: u8, plan: &Plan) -> (Site, Disks, Clocks) {
    let root = tempfile::Builder::new().prefix("world-").tempdir_in(ground::WORLDS).unwrap();
    let loopback = Ipv4Addr::new(127, 0, 1, number);
    let count = SERVERS.count() as u16;
    let mut site = Site::listening_at(link::servers_address(number), root, loopback, count);
    let (mut disks, mut clocks) = (Disks::new(), Clocks::new());
    if plan.has_small_disks {
        let folder = site.folder();
        // The outermost first, so that the others lie on it and not under it.
        disks.push((Victim::Database, SmallDisk::under(folder.root(), DATABASE_MIB)));
        // Logs are not what is to be full.
        SmallDisk::under(&folder.logs(), DATABASE_MIB);
        disks.push((Victim::Inbox, SmallDisk::under(&folder.inbox(), INBOX_MIB)));
        for server in SERVERS {
            let spool = folder.server_spool(ServerId(server));
            fs::create_dir_all(&spool).unwrap();
            disks.push((Victim::Spool(server), SmallDisk::under(&spool, SPOOL_MIB)));
        }
    }
    if plan.has_movable_clocks {
        let servers = SERVERS.map(|server| (Victim::ServerClock(server), format!("server-{server}")));
        for (victim, name) in servers.chain([(Victim::ManagerClock, "manager".to_owned())]) {
            let clock = Clock::new(site.path(&format!("clock-{name}")));
            site.surround(
                &name,
                Surroundings { environment: clock.environment(), ..Surroundings::default() },
            );
            clocks.push((victim, clock));
        }
    }
    (site, disks, clocks)
}
