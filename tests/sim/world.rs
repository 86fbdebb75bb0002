//! The simulated world: virtual time, everything that is in it, and the order in which it happens.
//!
//! One thread; time is a number that jumps to whatever is due next. What is due at the same millisecond comes in a fixed order:
//! events in the order in which they were made, then hubs, then the manager, then agents. A run has two halves: faults, then peace from
//! `heals_at_ms` on, in which what was promised has to come about.
//!
//! It owns the clock and the events and knows of each of its parts only when it is their turn. It must not read a clock, draw
//! randomness from the system or iterate over a hash map.

use std::collections::BTreeMap;
use std::fmt;

use bgb_hub::{Now as HubNow, TICK_MS, Tick};
use bgb_protocol::ids::{DeviceId, TaskId, UnixMillis};

use crate::agents::Machine;
use crate::checks::{BACK_WITHIN_MS, SILENT_CHECK_MS};
use crate::dice::Dice;
use crate::faults::Weather;
use crate::forger::HeardPush;
use crate::hosts::Host;
use crate::model::Model;
use crate::moves::Trouble;
use crate::network::{ConnId, Network, Way};
use crate::proxies::Proxy;
use crate::requests::ExchangeId;
use crate::restore::Copy;
use crate::servers::{SERVERS, SimServer};
use crate::site::Site;
use crate::tally::{Kind, Tally};
use crate::trace::Trace;

/// What the true time is at the beginning: some day in 2027, far from every limit.
pub(crate) const EPOCH_UNIX_MS: u64 = 1_800_000_000_000;

/// Steps at one millisecond after which the world is said to spin: a few hundred are the most that ever happen.
const STEPS_AT_ONCE_MAX: u64 = 20_000;

/// Something that is to happen.
#[derive(Debug)]
pub(crate) enum Event {
    // network.rs
    ConnectMeets { conn: ConnId },
    Connected { conn: ConnId },
    ConnectFails { conn: ConnId },
    Deliver { conn: ConnId, way: Way },
    Reset { conn: ConnId, way: Way },
    Unacknowledged { conn: ConnId, way: Way, since_ms: u64 },
    Probe { conn: ConnId },
    HandshakeOver { conn: ConnId },
    LinkHeals { agent: usize, server: usize, cuts: u64 },
    // frames.rs and proxies.rs
    PingDue { conn: ConnId },
    ProxyTiresOf { conn: ConnId },
    ProxyTells { conn: ConnId, way: Way },
    ProxyIsBack { proxy: usize },
    // moves.rs
    BetterRoadDue { conn: ConnId },
    StandingOver { conn: ConnId },
    MoveMeets { conn: ConnId, agent: usize, trouble: Trouble },
    // longpoll.rs and requests.rs
    LaneTurn { conn: ConnId },
    TunnelRead { conn: ConnId },
    PartingOver { conn: ConnId },
    RequestComes { exchange: ExchangeId, copy: usize },
    RequestUnmet { exchange: ExchangeId },
    RequestLost { exchange: ExchangeId, way: Way },
    RequestOverdue { exchange: ExchangeId },
    GatewayAnswers { exchange: ExchangeId, status: Option<u16> },
    AnswerComes { exchange: ExchangeId },
    // tunnels.rs
    TunnelAnswers { slot: u32 },
    TunnelTime { slot: u32 },
    // agents.rs
    DeviceStarts { agent: usize, starts: u64 },
    ActionEnds { agent: usize, task: TaskId, serial: u64 },
    PowerFails { agent: usize },
    AgentDies { agent: usize },
    DiskHasRoom { agent: usize },
    CopyGoes { agent: usize },
    ReadsAgain { agent: usize },
    // servers.rs
    ServerStarts { server: usize, starts: u64 },
    ServerDrained { server: usize, life: u64, looks: u64 },
    BrokerLooks { server: usize, life: u64, rung: bool },
    QueueShown { server: usize },
    ShardWakes { server: usize, life: u64, shard: usize },
    ServerFails { server: usize, life: u64 },
    // server_laws.rs
    BarsDue,
    CancelDue(TaskId),
    AllCancelsDue,
    PushesDue { server: usize, life: u64 },
    DoubleCheck { server: usize, life: u64, device: DeviceId },
    // writers.rs
    SpoolTurn { server: usize, life: u64 },
    PresenceTurn { server: usize, life: u64 },
    CourierTurn { server: usize, life: u64 },
    // hosts.rs
    HostStarts { host: usize, starts: u64 },
    HostHasRoom { host: usize },
    // site.rs and administrator.rs
    ManagerStarts { starts: u64 },
    InboxNoticed,
    LateFileComes { server: usize, name: String },
    ServerComesAnew { server: usize },
    AdministratorActs,
    ReleaseDue { task: TaskId },
    UnblockDue { device: DeviceId },
    // faults.rs and checks.rs
    FaultDue,
    ClocksSet,
    CopyKept,
    OldCopyPutBack,
    Heal,
    PeaceTasks,
    CheckSilent,
    CheckSteady,
    CheckAll,
    CheckPresence,
    End,
}

/// What came of a run.
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) tally: Tally,
    pub(crate) hash: u64,
    pub(crate) steps: u64,
    pub(crate) virtual_ms: u64,
    pub(crate) violation: Option<String>,
}

impl Report {
    /// What came of it, in a line: the same seed gives the same.
    pub(crate) fn in_short(&self) -> String {
        let Self { seed, steps, hash, .. } = self;
        format!("seed {seed}: {steps} steps, {} faults, trace {hash:016x}", self.tally.faults())
    }
}

/// See the module.
pub(crate) struct World {
    pub(crate) now_ms: u64,
    pub(crate) dice: Dice,
    pub(crate) weather: Weather,
    pub(crate) machines: Vec<Machine>,
    pub(crate) servers: Vec<SimServer>,
    /// By the number of their server.
    pub(crate) hosts: Vec<Host>,
    pub(crate) network: Network,
    pub(crate) site: Site,
    pub(crate) model: Model,
    /// What was ordered after the healing, for everybody.
    pub(crate) peace_tasks: Vec<TaskId>,
    pub(crate) tally: Tally,
    /// What a hostile server has to say.
    pub(crate) overheard: Vec<HeardPush>,
    /// The last copy of the database that has not been put back, and how many were made.
    pub(crate) copy: Option<Copy>,
    pub(crate) copies_made: u64,
    /// Some server's clock was wrong at some time.
    pub(crate) has_clock_been_wrong: bool,
    trace: Trace,
    violation: Option<String>,
    events: BTreeMap<(u64, u64), Event>,
    event_count: u64,
    is_over: bool,
}

impl World {
    /// Runs the world of `seed` to its end or to its first violation.
    pub(crate) fn run(seed: u64, is_printed: bool) -> Report {
        let mut world = Self::new(seed, is_printed);
        world.begin();
        let (mut at_ms, mut steps_at_once) = (0, 0);
        while !world.is_over && world.violation.is_none() {
            world.step();
            steps_at_once = if world.now_ms == at_ms { steps_at_once + 1 } else { 0 };
            at_ms = world.now_ms;
            if steps_at_once > STEPS_AT_ONCE_MAX {
                world.violated(
                    "the world spins: something is due again and again at the same moment".to_owned(),
                );
            }
        }
        let Self { tally, trace, violation, now_ms, .. } = world;
        let violation = violation.map(|what| {
            format!(
                "seed {seed}, step {}, at {}.{:03} s: {what}\nthe last steps:\n{}replay: BGB_SIM_SEED={seed} cargo test --test sim -- --nocapture",
                trace.steps(),
                now_ms / 1_000,
                now_ms % 1_000,
                trace.last_lines(),
            )
        });
        Report { seed, tally, hash: trace.hash(), steps: trace.steps(), virtual_ms: now_ms, violation }
    }

    fn new(seed: u64, is_printed: bool) -> Self {
        // Neighbouring seeds must not give neighbouring worlds: one turn of the generator stands between.
        let mut dice = Dice::new(Dice::new(seed).next());
        let weather = Weather::draw(&mut dice);
        let machines: Vec<_> =
            (0..weather.agents).map(|agent| Machine::new(agent, &mut dice, &weather)).collect();
        let servers = (0..SERVERS).map(|server| SimServer::new(server, &weather)).collect();
        let mut model = Model::default();
        model.devices.extend(machines.iter().map(|machine: &Machine| machine.device));
        let network = Network::new(Proxy::all(&weather));
        let hosts = (0..SERVERS).map(|_| Host::new()).collect();
        Self {
            now_ms: 0,
            dice,
            weather,
            machines,
            servers,
            hosts,
            network,
            site: Site::new(),
            model,
            peace_tasks: Vec::new(),
            tally: Tally::default(),
            overheard: Vec::new(),
            copy: None,
            copies_made: 0,
            has_clock_been_wrong: false,
            trace: Trace::new(is_printed),
            violation: None,
            events: BTreeMap::new(),
            event_count: 0,
            is_over: false,
        }
    }

    fn begin(&mut self) {
        let heals_at_ms = self.weather.heals_at_ms;
        let weather = format!("{:?}", self.weather);
        self.say(format_args!("{weather}"));
        self.make_inbox();
        self.start_manager_after(0);
        for server in 0..self.servers.len() {
            self.start_server_after(server, 0);
            if self.dice.chance(self.weather.clock_off_per_mille) {
                self.set_server_clock(server);
            }
        }
        for agent in 0..self.machines.len() {
            let late = self.dice.chance(300);
            let after_ms =
                if late { self.dice.between(30_000, heals_at_ms) } else { self.dice.between(0, 2_000) };
            if late {
                self.tally.count(Kind::LateJoiner);
            }
            self.start_device_after(agent, after_ms);
        }
        self.after(5_000, Event::AdministratorActs);
        self.after(SILENT_CHECK_MS, Event::CheckSilent);
        self.begin_faults();
    }

    /// Does whatever is due next.
    fn step(&mut self) {
        let event_ms = self.events.first_key_value().map(|((at_ms, _), _)| *at_ms);
        let hub = self.next_hub();
        let agent = self.next_agent();
        let manager_ms = self.site.due_ms.map(|due_ms| due_ms.max(self.now_ms));
        let hub_ms = hub.map(|(at_ms, ..)| at_ms);
        let agent_ms = agent.map(|(at_ms, _)| at_ms);
        let Some(next_ms) = [event_ms, hub_ms, agent_ms, manager_ms].into_iter().flatten().min() else {
            return self.violated("nothing will ever happen again".to_owned());
        };
        self.now_ms = self.now_ms.max(next_ms);
        if event_ms == Some(next_ms) {
            if let Some((_, event)) = self.events.pop_first() {
                self.on_event(event);
            }
        } else if let (Some((at_ms, server, shard)), true) = (hub, hub_ms == Some(next_ms)) {
            debug_assert_eq!(at_ms, next_ms);
            self.advance_shard(server, shard);
        } else if manager_ms == Some(next_ms) {
            self.step_manager();
        } else if let Some((_, agent)) = agent {
            self.agent_time_comes(agent);
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::ConnectMeets { conn } => self.on_connect_meets(conn),
            Event::Connected { conn } => self.on_connected(conn),
            Event::ConnectFails { conn } => self.on_connect_fails(conn),
            Event::Deliver { conn, way } => self.on_deliver(conn, way),
            Event::Reset { conn, way } => self.on_reset(conn, way),
            Event::Unacknowledged { conn, way, since_ms } => self.on_unacknowledged(conn, way, since_ms),
            Event::Probe { conn } => self.on_probe(conn),
            Event::HandshakeOver { conn } => self.on_handshake_over(conn),
            Event::LinkHeals { agent, server, cuts } => self.on_link_heals(agent, server, cuts),
            Event::PingDue { conn } => self.on_ping_due(conn),
            Event::ProxyTiresOf { conn } => self.on_proxy_tires_of(conn),
            Event::ProxyTells { conn, way } => self.on_proxy_tells(conn, way),
            Event::ProxyIsBack { proxy } => self.on_proxy_is_back(proxy),
            Event::BetterRoadDue { conn } => self.on_better_road_due(conn),
            Event::StandingOver { conn } => self.on_standing_over(conn),
            Event::MoveMeets { conn, agent, trouble } => self.on_move_meets(conn, agent, trouble),
            Event::LaneTurn { conn } => self.on_lane_turn(conn),
            Event::TunnelRead { conn } => self.on_tunnel_read(conn),
            Event::PartingOver { conn } => self.finish_parting(conn),
            Event::RequestComes { exchange, copy } => self.on_request_comes(exchange, copy),
            Event::RequestUnmet { exchange } => self.on_request_unmet(exchange),
            Event::RequestLost { exchange, way } => self.on_request_lost(exchange, way),
            Event::RequestOverdue { exchange } => self.on_request_overdue(exchange),
            Event::GatewayAnswers { exchange, status } => self.on_gateway_answers(exchange, status),
            Event::AnswerComes { exchange } => self.on_answer_comes(exchange),
            Event::TunnelAnswers { slot } => self.on_tunnel_answers(slot),
            Event::TunnelTime { slot } => self.on_tunnel_time(slot),
            Event::DeviceStarts { agent, starts } => self.on_device_starts(agent, starts),
            Event::ActionEnds { agent, task, serial } => self.on_action_ends(agent, task, serial),
            Event::PowerFails { agent } => self.on_power_fails(agent),
            Event::AgentDies { agent } => self.on_agent_dies(agent),
            Event::DiskHasRoom { agent } => self.machines[agent].set_full(false),
            Event::CopyGoes { agent } => self.on_copy_goes(agent),
            Event::ReadsAgain { agent } => self.machines[agent].reads_slowly = false,
            Event::ServerStarts { server, starts } => self.on_server_starts(server, starts),
            Event::ServerDrained { server, life, looks } => self.on_server_drained(server, life, looks),
            Event::BrokerLooks { server, life, rung } => self.on_broker_looks(server, life, rung),
            Event::QueueShown { server } => self.show_queue(server),
            Event::ShardWakes { server, life, shard } => self.on_shard_wakes(server, life, shard),
            Event::ServerFails { server, life } => self.on_server_fails(server, life),
            Event::BarsDue => self.on_bars_due(),
            Event::CancelDue(task) => self.on_cancel_due(task),
            Event::AllCancelsDue => self.on_all_cancels_due(),
            Event::PushesDue { server, life } => self.on_pushes_due(server, life),
            Event::DoubleCheck { server, life, device } => self.on_double_check(server, life, device),
            Event::SpoolTurn { server, life } => self.on_spool_turn(server, life),
            Event::PresenceTurn { server, life } => self.on_presence_turn(server, life),
            Event::CourierTurn { server, life } => self.on_courier_turn(server, life),
            Event::HostStarts { host, starts } => self.on_host_starts(host, starts),
            Event::HostHasRoom { host } => self.on_host_has_room(host),
            Event::ManagerStarts { starts } => self.on_manager_starts(starts),
            Event::InboxNoticed => self.on_inbox_noticed(),
            Event::LateFileComes { server, name } => self.on_late_file_comes(server, name),
            Event::ServerComesAnew { server } => self.on_server_comes_anew(server),
            Event::AdministratorActs => self.on_administrator_acts(),
            Event::ReleaseDue { task } => self.on_release_due(task),
            Event::UnblockDue { device } => self.on_unblock_due(device),
            Event::FaultDue => self.on_fault_due(),
            Event::ClocksSet => self.on_clocks_set(),
            Event::CopyKept => self.back_up(),
            Event::OldCopyPutBack => self.on_old_copy_put_back(),
            Event::Heal => self.on_heal(),
            Event::PeaceTasks => self.start_peace_tasks(),
            Event::CheckSilent => self.check_silent(),
            Event::CheckSteady => self.check_steady(),
            Event::CheckAll if self.is_somebody_on_the_way_back() => {
                self.after(BACK_WITHIN_MS, Event::CheckAll);
            }
            Event::CheckAll => self.check_all(),
            Event::CheckPresence => self.check_presence(),
            Event::End if self.is_somebody_on_the_way_back() => self.after(BACK_WITHIN_MS, Event::End),
            Event::End => {
                self.check_end();
                self.is_over = true;
            }
        }
    }

    /// The hub whose deadline comes first.
    fn next_hub(&self) -> Option<(u64, usize, usize)> {
        let mut next: Option<(u64, usize, usize)> = None;
        for (server, shard, deadline) in self.servers.iter().enumerate().flat_map(|(server, simulated)| {
            simulated.deadlines().map(move |(shard, deadline)| (server, shard, deadline))
        }) {
            let at_ms = deadline.0.saturating_mul(TICK_MS).max(self.now_ms);
            if next.is_none_or(|(first_ms, ..)| at_ms < first_ms) {
                next = Some((at_ms, server, shard));
            }
        }
        next
    }

    /// The agent whose deadline comes first.
    fn next_agent(&self) -> Option<(u64, usize)> {
        let due = self.machines.iter().enumerate();
        let due = due.filter_map(|(agent, machine)| Some((machine.deadline_ms()?.max(self.now_ms), agent)));
        due.min()
    }

    /// Makes something happen later.
    pub(crate) fn after(&mut self, after_ms: u64, event: Event) {
        self.events.insert((self.now_ms + after_ms, self.event_count), event);
        self.event_count += 1;
    }

    /// A line of the trace.
    pub(crate) fn say(&mut self, what: fmt::Arguments<'_>) {
        self.trace.say(self.now_ms, what);
    }

    /// A promise was broken: the first one ends the run.
    pub(crate) fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// Notes a violation, if there is one.
    pub(crate) fn expect(&mut self, kept: Result<(), String>) {
        if let Err(what) = kept {
            self.violated(what);
        }
    }

    /// The true time.
    pub(crate) fn unix(&self) -> UnixMillis {
        UnixMillis(EPOCH_UNIX_MS + self.now_ms)
    }

    /// The clocks of a server.
    pub(crate) fn hub_now(&self, server: usize) -> HubNow {
        let unix = UnixMillis(self.host_now(self.servers[server].clock.off_ms()).unix_ms);
        HubNow { tick: Tick(self.now_ms / TICK_MS), unix }
    }

    /// Whether the faults are over.
    pub(crate) fn has_healed(&self) -> bool {
        self.now_ms >= self.weather.heals_at_ms
    }
}
