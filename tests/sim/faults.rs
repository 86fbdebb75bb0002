//! The weather of a world, drawn from its seed, and the faults that it brings until everything heals.
//!
//! Every seed has its own: how many devices, how often something breaks, how slow network and disks are, how long tasks are
//! valid. A fault is drawn, done and counted here; what it does to its victim is the victim's file. After `heals_at_ms` no
//! fault begins, and what is broken is mended within `MENDED_MS`.

use crate::agents::{Certificate, Machine, Power, draw_skew};
use crate::dice::Dice;
use crate::hosts::SITE_HOST;
use crate::network::{ConnId, Farewell, RETRANSMISSION_MS};
use crate::proxies::{PROXIES, Told, draw_idle};
use crate::server_laws::HEEDED_WITHIN_MS;
use crate::server_life::LOOK_MS;
use crate::servers::{Late, SERVERS, SLEWED_MS_MAX};
use crate::tally::Kind;
use crate::world::{Event, World};

/// From the moment of healing, all links, machines and processes are back within this time.
pub(crate) const MENDED_MS: u64 = RETRANSMISSION_MS;

/// So many devices in a thousand that go somewhere else reach nobody from there.
const OUT_OF_REACH_PER_MILLE: u64 = 300;

/// So many connections in a thousand are lost by the network in its last moment of faults: those take the longest to be noticed.
const FORGOTTEN_AT_HEALING_PER_MILLE: u64 = 250;

/// So many agents in a thousand are killed while a spool's disk is slow.
const DIES_IN_STALL_PER_MILLE: u64 = 300;

/// What has just begun is this young at most: a disk's delay, and an action's first moments.
const BAD_LUCK_MS: u64 = 300;

/// How often a file that is to be late is dated by a clock that is ahead.
const AHEAD_AND_LATE_PER_MILLE: u64 = 700;
/// So many devices in a thousand lose their power together with their server's process.
const DARK_WITH_SERVER_PER_MILLE: u64 = 500;
/// A server whose clock was behind looks at what is due by the wall clock once a minute (bgb_hub): so long before the healing its
/// clock is set right.
const CLOCK_SET_BEFORE_MS: u64 = 61_000;

/// So many worlds in a thousand last for more than an hour, and have an hour's work to lose.
const LONG_PER_MILLE: u64 = 30;
/// In those the database is copied at this time, and the copy put back so long after.
const OLD_COPY_AT_MS: u64 = 300_000;
const OLD_COPY_AGE_MS: u64 = 3_600_000;

/// What a seed decides once and for all.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    pub(crate) agents: usize,
    pub(crate) heals_at_ms: u64,
    /// The database is put back to a copy of an hour ago.
    pub(crate) is_long: bool,
    /// From one fault to the next, on average.
    pub(crate) fault_gap_ms: u64,
    /// From one act of the administrator to the next, on average.
    pub(crate) task_gap_ms: u64,
    pub(crate) validity_ms_max: u64,
    pub(crate) keepalive_secs: u32,
    pub(crate) reconnect_window_secs: u32,
    pub(crate) latency_ms_max: u64,
    pub(crate) split_per_mille: u64,
    pub(crate) choked_bytes: usize,
    pub(crate) sync_ms_max: u64,
    /// Results that wait for the spool; beyond them channels are held.
    pub(crate) spool_items: usize,
    pub(crate) file_ms_max: u64,
    pub(crate) presence_full_ms: u64,
    pub(crate) skew_per_mille: u64,
    pub(crate) hang_per_mille: u64,
    /// How often the power fails just after a device has begun something.
    pub(crate) bad_luck_per_mille: u64,
    /// How often a server's clock is wrong from the beginning on.
    pub(crate) clock_off_per_mille: u64,
    /// How wrong a server's clock is at most.
    pub(crate) clock_off_ms_max: u64,
    /// Devices that are switched off for good are targets no more.
    pub(crate) leaves_the_dead_alone: bool,
    pub(crate) jitter_seed: u64,
    /// So many connections in a thousand take another road than the device's usual one, perhaps.
    pub(crate) other_road_per_mille: u64,
    /// So many sessions over HTTP in a thousand get a better road beside them.
    pub(crate) better_road_per_mille: u64,
    /// So many requests of long-poll in a thousand meet with something.
    pub(crate) request_fault_per_mille: u64,
    /// After how long a silence each proxy cuts.
    pub(crate) proxies_idle_ms: [Option<u64>; PROXIES],
}

impl Weather {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let is_long = dice.chance(LONG_PER_MILLE);
        let old_copy_back_ms = OLD_COPY_AT_MS + OLD_COPY_AGE_MS;
        Self {
            agents: dice.between(2, 6) as usize,
            heals_at_ms: if is_long {
                dice.between(old_copy_back_ms + 180_000, old_copy_back_ms + 600_000)
            } else {
                dice.between(180_000, 1_200_000)
            },
            is_long,
            fault_gap_ms: if is_long { 30_000 } else { dice.pick(&[2_000, 5_000, 12_000, 30_000]) },
            task_gap_ms: if is_long { 40_000 } else { dice.pick(&[6_000, 15_000, 40_000]) },
            validity_ms_max: dice.pick(&[90_000, 300_000, 1_200_000]),
            keepalive_secs: dice.pick(&[20, 45, 120, 300, 900]),
            reconnect_window_secs: dice.pick(&[5, 20, 60]),
            latency_ms_max: dice.pick(&[2, 40, 400]),
            split_per_mille: dice.pick(&[0, 50, 400]),
            choked_bytes: dice.pick(&[1_024, 4_096, 16_384]),
            sync_ms_max: dice.pick(&[3, 30, 400]),
            spool_items: dice.pick(&[1, 4, 1_000]),
            file_ms_max: dice.pick(&[50, 1_000, 4_000]),
            presence_full_ms: dice.pick(&[30_000, 120_000, 300_000]),
            skew_per_mille: dice.pick(&[0, 300]),
            hang_per_mille: dice.pick(&[0, 40]),
            bad_luck_per_mille: dice.pick(&[0, 0, 20, 150]),
            clock_off_per_mille: dice.pick(&[0, 0, 0, 300]),
            clock_off_ms_max: dice.pick(&[1_000, 60_000, 600_000]),
            leaves_the_dead_alone: dice.chance(500),
            jitter_seed: dice.next(),
            other_road_per_mille: dice.pick(&[100, 400]),
            request_fault_per_mille: dice.pick(&[10, 50, 200]),
            proxies_idle_ms: draw_idle(dice),
            better_road_per_mille: dice.pick(&[0, 100, 400]),
        }
    }
}

impl World {
    pub(crate) fn begin_faults(&mut self) {
        self.after(self.weather.fault_gap_ms, Event::FaultDue);
        self.after(self.weather.heals_at_ms - CLOCK_SET_BEFORE_MS, Event::ClocksSet);
        self.after(self.weather.heals_at_ms, Event::Heal);
        if self.weather.is_long {
            self.after(OLD_COPY_AT_MS, Event::CopyKept);
            self.after(OLD_COPY_AT_MS + OLD_COPY_AGE_MS, Event::OldCopyPutBack);
        }
    }

    pub(crate) fn on_clocks_set(&mut self) {
        for server in 0..SERVERS {
            self.set_clock(server, 0);
        }
        self.say(format_args!("the servers' clocks are right"));
    }

    /// A server's wall clock is wrong from now on, by something else than before.
    pub(crate) fn set_server_clock(&mut self, server: usize) {
        let is_ahead = self.dice.chance(500);
        self.set_server_clock_wrong(server, is_ahead);
    }

    fn set_server_clock_wrong(&mut self, server: usize, is_ahead: bool) {
        if self.left_ms() <= CLOCK_SET_BEFORE_MS {
            return;
        }
        let off_ms = self.dice.between(500, self.weather.clock_off_ms_max) as i64;
        let off_ms = if is_ahead { off_ms } else { -off_ms };
        self.say(format_args!("server {}: wall clock {off_ms} ms off", server + 1));
        self.has_clock_been_wrong = true;
        self.set_clock(server, off_ms);
    }

    fn set_clock(&mut self, server: usize, off_ms: i64) {
        let simulated = &mut self.servers[server];
        let set_back_ms = simulated.clock.off_ms() - off_ms;
        if set_back_ms == 0 {
            return;
        }
        let was_ahead_ms = simulated.clock.ahead_ms();
        simulated.clock.set(off_ms, self.now_ms);
        for own in simulated.process.iter_mut().flat_map(|process| &mut process.shards) {
            own.was_ahead_ms = own.was_ahead_ms.max(was_ahead_ms);
        }
        let life = simulated.life;
        if set_back_ms > SLEWED_MS_MAX {
            self.after(LOOK_MS + HEEDED_WITHIN_MS, Event::PushesDue { server, life });
        }
        // Its broker looks by itself in a moment.
        self.after(LOOK_MS, Event::BrokerLooks { server, life, rung: false });
    }

    pub(crate) fn on_fault_due(&mut self) {
        if self.has_healed() {
            return;
        }
        let agent = self.dice.place(self.machines.len());
        let server = self.dice.place(self.servers.len());
        match self.dice.below(106) {
            0..12 => self.cut_link(agent, server),
            12..15 => self.cut_server_off(server),
            15..22 => self.forget_connection(agent, Kind::ConnectionForgotten),
            22..26 => self.roam(agent),
            26..28 => self.forge(agent),
            28..33 => self.kill_agent(agent),
            33..39 => self.cut_power_now(agent),
            39..45 => self.doom_disk(agent),
            45..48 => self.fail_sync(agent),
            48..52 => self.fill_disk(agent),
            52..55 => self.stop_and_start(agent),
            55..58 => self.slow_reader(agent),
            58..61 => self.jump_clock(agent),
            61..65 => self.kill_some_server(server),
            65..67 => self.cut_host_now(server),
            67 => self.set_server_clock(server),
            68..72 => self.drain_server(server),
            72..75 => {
                let for_ms = self.dice.between(500, 150_000).min(self.left_ms());
                self.hide_queue(server, for_ms);
            }
            75..80 => self.kill_manager(),
            80..84 => self.doom_host(server),
            84..86 => self.fail_host_sync(server),
            86..89 => {
                let for_ms = self.dice.around(10_000);
                self.fill_host(server, for_ms);
            }
            89..91 => self.stall_spool(server),
            91..93 => self.repeat_file(),
            93 => {
                self.servers[server].late_next = self.dice.pick(&[Late::Any, Late::FullList]);
                if self.dice.chance(AHEAD_AND_LATE_PER_MILLE) {
                    self.set_server_clock_wrong(server, true);
                }
            }
            94 => self.revoke_certificate(agent),
            95 | 96 => self.let_certificate_end(agent),
            97 => self.clone_some_device(agent),
            98 => self.switch_off_for_good(agent),
            99..104 => self.cut_at_some_proxy(agent),
            104 => {
                let for_ms = self.dice.around(4_000).min(self.left_ms());
                self.restart_proxy(for_ms);
            }
            // Its copy is kept for its hour.
            _ if self.weather.is_long => {}
            _ if self.copy.is_none() => self.back_up(),
            _ => self.restore_database(),
        }
        let after_ms = self.dice.around(self.weather.fault_gap_ms);
        self.after(after_ms, Event::FaultDue);
    }

    /// Time until everything heals.
    fn left_ms(&self) -> u64 {
        self.weather.heals_at_ms.saturating_sub(self.now_ms)
    }

    pub(crate) fn cut_link(&mut self, agent: usize, server: usize) {
        let for_ms = self.dice.around(20_000);
        let (up_passes, down_passes, kind) = self.dice.pick(&[
            (false, false, Kind::LinkCut),
            (false, false, Kind::LinkCut),
            (false, true, Kind::LinkCutUp),
            (true, false, Kind::LinkCutDown),
        ]);
        self.tally.count(kind);
        self.set_link(agent, server, up_passes, down_passes, for_ms);
    }

    fn set_link(&mut self, agent: usize, server: usize, up_passes: bool, down_passes: bool, for_ms: u64) {
        self.say(format_args!(
            "link of agent {agent} to server {}: up {up_passes}, down {down_passes}, for {for_ms} ms",
            server + 1
        ));
        let link = self.network.link_mut(agent, server);
        link.up_passes = up_passes;
        link.down_passes = down_passes;
        link.cuts += 1;
        let cuts = link.cuts;
        self.after(for_ms, Event::LinkHeals { agent, server, cuts });
    }

    pub(crate) fn on_link_heals(&mut self, agent: usize, server: usize, cuts: u64) {
        let link = self.network.link_mut(agent, server);
        if link.cuts == cuts && !(link.up_passes && link.down_passes) {
            link.up_passes = true;
            link.down_passes = true;
            self.say(format_args!("link of agent {agent} to server {} heals", server + 1));
            self.retransmit();
        }
    }

    fn cut_server_off(&mut self, server: usize) {
        self.tally.count(Kind::ServerCutOff);
        let for_ms = self.dice.around(25_000);
        for agent in 0..self.machines.len() {
            self.set_link(agent, server, false, false, for_ms);
        }
    }

    /// A box on the way forgets the agent's connection.
    fn forget_connection(&mut self, agent: usize, kind: Kind) {
        let conn = self.machines[agent].conn.and_then(|id| Some((id, self.network.conns.get(&id)?)));
        if let Some((id, _)) = conn.filter(|(_, conn)| !conn.is_forgotten) {
            self.tally.count(kind);
            self.forget_on_its_way(id);
        }
    }

    /// A box on the way forgets a connection.
    pub(crate) fn forget_on_its_way(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let (agent, is_long_poll) = (conn.agent, conn.is_long_poll());
        // A tunnel is of no connection: those of its present requests are forgotten.
        conn.is_forgotten = !is_long_poll;
        if is_long_poll {
            self.cut_requests(id, Told::Nobody);
        }
        self.say(format_args!("the connection of agent {agent} is forgotten on its way"));
    }

    /// The device goes to another network, from which it does not reach its server for a while.
    fn roam(&mut self, agent: usize) {
        let conn = self.machines[agent].conn.and_then(|id| self.network.conns.get(&id));
        let Some(server) = conn.map(|conn| conn.server) else { return };
        if self.dice.chance(OUT_OF_REACH_PER_MILLE) {
            return self.go_out_of_reach(agent);
        }
        self.forget_connection(agent, Kind::Roamed);
        let for_ms = self.dice.around(60_000);
        self.set_link(agent, server, false, false, for_ms);
    }

    /// The device goes where it reaches no server at all.
    fn go_out_of_reach(&mut self, agent: usize) {
        self.tally.count(Kind::OutOfReach);
        let for_ms = self.dice.between(120_000, 300_000);
        for server in 0..SERVERS {
            self.set_link(agent, server, false, false, for_ms);
        }
    }

    pub(crate) fn on_agent_dies(&mut self, agent: usize) {
        if !self.has_healed() {
            self.kill_agent(agent);
        }
    }

    fn kill_agent(&mut self, agent: usize) {
        if self.machines[agent].agent.is_none() {
            return;
        }
        self.tally.count(Kind::AgentKilled);
        self.say(format_args!("agent {agent} is killed"));
        let farewell = self.dice.pick(&[Farewell::Flushed, Farewell::Reset]);
        self.drop_agent(agent, farewell);
        let after_ms = self.dice.around(5_000);
        self.start_device_after(agent, after_ms);
    }

    /// Something has just begun that must be on disk: now and then the power fails in that very moment.
    pub(crate) fn tempt_fate(&mut self, agent: usize) {
        if self.dice.chance(self.weather.bad_luck_per_mille) && !self.has_healed() {
            let after_ms = self.dice.below(BAD_LUCK_MS);
            self.after(after_ms, Event::PowerFails { agent });
        }
    }

    pub(crate) fn on_power_fails(&mut self, agent: usize) {
        if !self.has_healed() {
            self.cut_power_now(agent);
        }
    }

    fn cut_power_now(&mut self, agent: usize) {
        if self.machines[agent].has_power() {
            self.tally.count(Kind::DevicePowerCut);
            let off_ms = self.dice.around(20_000);
            self.cut_power(agent, off_ms);
        }
    }

    fn clone_some_device(&mut self, agent: usize) {
        if self.machines[agent].agent.is_some() && !self.is_cloned(agent) {
            let for_ms = self.dice.around(60_000).min(self.left_ms());
            self.clone_device(agent, for_ms);
        }
    }

    /// The device dies at one of its next writes.
    fn doom_disk(&mut self, agent: usize) {
        let machine = &mut self.machines[agent];
        if machine.agent.is_some() && !machine.is_dying {
            machine.is_dying = true;
            let operations = self.dice.below(12);
            machine.disk.fail_after_ops(operations);
            self.say(format_args!("device {agent} will die after {operations} more writes"));
        }
    }

    fn fail_sync(&mut self, agent: usize) {
        let machine = &mut self.machines[agent];
        if machine.agent.is_some() && machine.disk.faults().syncs_failed >= machine.syncs_to_fail {
            machine.syncs_to_fail = machine.disk.faults().syncs_failed + 1;
            machine.disk.fail_next_sync();
            self.say(format_args!("device {agent}: the next fsync fails"));
        }
    }

    fn fill_disk(&mut self, agent: usize) {
        self.machines[agent].set_full(true);
        let for_ms = self.dice.around(10_000);
        self.say(format_args!("device {agent}: disk full for {for_ms} ms"));
        self.after(for_ms, Event::DiskHasRoom { agent });
    }

    fn stop_and_start(&mut self, agent: usize) {
        if self.machines[agent].agent.is_some() {
            self.tally.count(Kind::AgentStopped);
            self.stop_agent(agent);
            let after_ms = self.dice.around(10_000);
            self.start_device_after(agent, after_ms);
        }
    }

    fn slow_reader(&mut self, agent: usize) {
        self.tally.count(Kind::SlowReader);
        self.machines[agent].reads_slowly = true;
        let for_ms = self.dice.around(60_000);
        self.say(format_args!("agent {agent} reads in trickles for {for_ms} ms"));
        self.after(for_ms, Event::ReadsAgain { agent });
    }

    fn jump_clock(&mut self, agent: usize) {
        self.tally.count(Kind::WallClockJumps);
        let skew_ms = draw_skew(&mut self.dice);
        self.machines[agent].skew_ms = skew_ms;
        self.say(format_args!("device {agent}: wall clock {skew_ms} ms off"));
    }

    fn kill_some_server(&mut self, server: usize) {
        if self.servers[server].process.is_some() {
            self.tally.count(Kind::ServerKilled);
            self.kill_server(server, false);
            let off_ms = self.dice.around(5_000);
            self.start_server_after(server, off_ms);
        }
    }

    /// The power fails where the server stands, and it is started again by a clock that is wrong the other way: what it wrote before may be dated after what
    /// it writes now. Some of its devices are in the same building.
    pub(crate) fn on_server_comes_anew(&mut self, server: usize) {
        if !self.has_healed() {
            for agent in self.agents_at(server) {
                if self.dice.chance(DARK_WITH_SERVER_PER_MILLE) {
                    self.cut_power_now(agent);
                }
            }
            self.kill_some_server(server);
            let was_ahead = self.servers[server].clock.off_ms() > 0;
            self.set_server_clock_wrong(server, !was_ahead);
        }
    }

    /// Those whose session's connection leads to the server.
    fn agents_at(&self, server: usize) -> Vec<usize> {
        let leads_there = |agent: &usize| {
            let conn = self.machines[*agent].conn.and_then(|id| self.network.conns.get(&id));
            conn.is_some_and(|conn| conn.server == server)
        };
        (0..self.machines.len()).filter(leads_there).collect()
    }

    fn cut_host_now(&mut self, host: usize) {
        if self.hosts[host].has_power() {
            self.tally.count(Kind::HostPowerCut);
            let off_ms = self.dice.around(40_000);
            self.cut_host(host, off_ms);
        }
    }

    fn kill_manager(&mut self) {
        if self.site.manager.is_some() {
            self.tally.count(Kind::ManagerKilled);
            self.drop_manager();
            let after_ms = self.dice.around(8_000);
            self.start_manager_after(after_ms);
        }
    }

    fn stall_spool(&mut self, server: usize) {
        self.tally.count(Kind::SpoolStalls);
        let for_ms = self.dice.around(10_000).min(self.left_ms());
        self.servers[server].stalls_until_ms = self.now_ms + for_ms;
        self.say(format_args!("server {}: the spool's disk is slow for {for_ms} ms", server + 1));
        // Whose result waits may come back before it is durable.
        for agent in 0..self.machines.len() {
            if self.dice.chance(DIES_IN_STALL_PER_MILLE) {
                let after_ms = self.dice.below(for_ms);
                self.after(after_ms, Event::AgentDies { agent });
            }
        }
    }

    fn revoke_certificate(&mut self, agent: usize) {
        self.tally.count(Kind::CertificateRevoked);
        let fingerprint = self.machines[agent].certificate.fingerprint;
        // Whoever has it gets a new one: a copy of a device has the same.
        for holder in 0..self.machines.len() {
            if self.machines[holder].certificate.fingerprint == fingerprint {
                self.renew_certificate(holder, None);
            }
        }
        self.say(format_args!("the certificate of device {agent} is revoked; it has a new one"));
        self.revoke(fingerprint);
    }

    fn let_certificate_end(&mut self, agent: usize) {
        let ends_ms = self.now_ms + self.dice.between(1_000, 120_000);
        if ends_ms < self.weather.heals_at_ms {
            self.renew_certificate(agent, Some(ends_ms));
            self.say(format_args!("device {agent} has a certificate that ends at {ends_ms} ms"));
        }
    }

    fn renew_certificate(&mut self, agent: usize, ends_ms: Option<u64>) {
        self.machines[agent].certificate = Certificate { fingerprint: self.dice.bytes(), ends_ms };
    }

    fn switch_off_for_good(&mut self, agent: usize) {
        let is_left = |machine: &&Machine| machine.power != Power::OffForGood && !machine.is_copy;
        let left = self.machines.iter().filter(is_left).count();
        if left > 2 && self.machines[agent].power == Power::On {
            self.tally.count(Kind::DeviceOffForGood);
            self.cut_power(agent, 0);
            self.machines[agent].power = Power::OffForGood;
        }
    }

    /// Everything is mended, save what the network has forgotten and who is switched off for good.
    pub(crate) fn on_heal(&mut self) {
        self.say(format_args!("everything heals"));
        for agent in 0..self.machines.len() {
            if self.dice.chance(FORGOTTEN_AT_HEALING_PER_MILLE) {
                self.forget_connection(agent, Kind::ConnectionForgotten);
            }
            for server in 0..SERVERS {
                let link = self.network.link_mut(agent, server);
                link.up_passes = true;
                link.down_passes = true;
            }
            self.heal_device(agent);
        }
        for server in 0..SERVERS {
            self.heal_server(server);
        }
        self.network.proxies.iter_mut().for_each(|proxy| proxy.is_up = true);
        self.retransmit();
        self.start_peace();
    }

    fn heal_device(&mut self, agent: usize) {
        let machine = &mut self.machines[agent];
        machine.reads_slowly = false;
        machine.set_full(false);
        if machine.power == Power::OffForGood {
            return;
        }
        self.release_actions(agent);
        let machine = &self.machines[agent];
        let has_fault_ordered =
            machine.is_dying || machine.disk.faults().syncs_failed < machine.syncs_to_fail;
        if has_fault_ordered && machine.has_power() {
            // The only way to call off what was ordered of its disk.
            self.cut_power(agent, MENDED_MS / 2);
        } else if machine.agent.is_none() {
            self.start_device_after(agent, MENDED_MS / 2);
        }
    }

    fn heal_server(&mut self, server: usize) {
        self.servers[server].stalls_until_ms = 0;
        self.show_queue(server);
        self.heal_host(server, MENDED_MS / 4);
        match self.servers[server].process.as_ref().map(|process| process.is_draining) {
            Some(true) => {
                self.kill_server(server, false);
                self.start_server_after(server, MENDED_MS / 2);
            }
            Some(false) => {}
            None => self.start_server_after(server, MENDED_MS / 2),
        }
        if server == SITE_HOST && self.site.manager.is_none() {
            self.start_manager_after(MENDED_MS / 2);
        }
    }
}
