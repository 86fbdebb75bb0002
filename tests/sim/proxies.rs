//! Proxies between devices and servers: they answer for whoever stands behind them, and cut what they carry.
//!
//! There are two: one at the devices, as a company's, and one before the servers, as a balancer. A link that is cut is cut on the proxy's far side.
//! What a proxy does that the network alone does not: it acknowledges bytes that then arrive nowhere, and answers TCP's questions for an
//! end that is gone; it cuts what has been idle for its time, or anything at any moment, and tells the two ends at different times, or one of them
//! never; it keeps one half open when the other ends; it is started anew. So neither TCP_USER_TIMEOUT nor TCP keepalive finds such an end: pings
//! and keepalives have to.

use std::time::Duration;

use bgb_hub::CloseReason;
use bgb_protocol::message::Road;

use crate::dice::Dice;
use crate::faults::Weather;
use crate::network::{ConnId, RETRANSMISSION_MS, Way};
use crate::tally::Kind;
use crate::world::{Event, World};

pub(crate) const PROXIES: usize = 2;

/// So many ends in a thousand that a proxy does not pass on: it keeps the other half open.
const KEEPS_HALF_PER_MILLE: u64 = 200;
/// So many cuts of idle connections in a thousand of which one end is never told.
const IDLE_UNTOLD_PER_MILLE: u64 = 200;
/// A proxy that tells an end tells it within this time, as a rule.
const TOLD_MS_MAX: u64 = 400;

/// A device learns of a proxy's timer by two cuts, and by two more where something else was lost in between: one that is cut more often than this in
/// peace has not learned it.
const CUTS_IN_PEACE_MAX: u32 = 6;

/// Where a proxy stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stands {
    AtAgents,
    AtServers,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) stands: Stands,
    /// After how long a silence it cuts.
    pub(crate) idle_ms: Option<u64>,
    pub(crate) is_up: bool,
}

impl Proxy {
    pub(crate) fn all(weather: &Weather) -> Vec<Self> {
        let stands = [Stands::AtAgents, Stands::AtServers];
        let idle = weather.proxies_idle_ms;
        stands.into_iter().zip(idle).map(|(stands, idle_ms)| Self { stands, idle_ms, is_up: true }).collect()
    }
}

/// A connection's way through a proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Through {
    pub(crate) proxy: usize,
    /// The proxy has cut it, whoever knows of that.
    pub(crate) is_cut: bool,
    /// When anything passed last.
    pub(crate) passed_ms: u64,
}

/// Whom a proxy tells that it has cut a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Both,
    AgentNever,
    ServerNever,
    Nobody,
}

impl Told {
    pub(crate) fn hears(self, way: Way) -> bool {
        match way {
            Way::Up => matches!(self, Self::Both | Self::AgentNever),
            Way::Down => matches!(self, Self::Both | Self::ServerNever),
        }
    }
}

/// What a seed's proxies take for idle.
pub(crate) fn draw_idle(dice: &mut Dice) -> [Option<u64>; PROXIES] {
    std::array::from_fn(|_| dice.pick(&[None, Some(30_000), Some(60_000)]))
}

impl World {
    /// Whether the side that writes `way` and the connection's proxy reach one another: then the proxy acknowledges what the side writes.
    pub(crate) fn reaches_proxy(&self, id: ConnId, way: Way) -> bool {
        let Some(conn) = self.network.conns.get(&id) else { return false };
        let Some(through) = &conn.proxy else { return false };
        let proxy = &self.network.proxies[through.proxy];
        let (has_power, is_near) = match way {
            Way::Up => (self.machines[conn.agent].has_power(), proxy.stands == Stands::AtAgents),
            Way::Down => (self.hosts[conn.server].has_power(), proxy.stands == Stands::AtServers),
        };
        let link = self.network.link(conn.agent, conn.server);
        proxy.is_up && has_power && (is_near || (link.up_passes && link.down_passes))
    }

    /// Something of the connection has passed its proxy.
    pub(crate) fn note_passed(&mut self, id: ConnId) {
        let now_ms = self.now_ms;
        if let Some(through) = self.network.conns.get_mut(&id).and_then(|conn| conn.proxy.as_mut()) {
            through.passed_ms = now_ms;
        }
    }

    /// The connection stands, through its proxy if there is one.
    pub(crate) fn begin_idleness(&mut self, id: ConnId) {
        let Some(through) = self.network.conns.get(&id).and_then(|conn| conn.proxy) else { return };
        self.note_passed(id);
        if let Some(idle_ms) = self.network.proxies[through.proxy].idle_ms {
            self.after(idle_ms, Event::ProxyTiresOf { conn: id });
        }
    }

    pub(crate) fn on_proxy_tires_of(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get(&id) else { return };
        let Some(through) = conn.proxy.filter(|through| !through.is_cut) else { return };
        let Some(idle_ms) = self.network.proxies[through.proxy].idle_ms else { return };
        let silent_ms = self.now_ms - through.passed_ms;
        if silent_ms < idle_ms {
            return self.after(idle_ms - silent_ms, Event::ProxyTiresOf { conn: id });
        }
        let agent = conn.agent;
        let told = self.draw_told(IDLE_UNTOLD_PER_MILLE);
        let (now_ms, own) = (self.now_ms, self.unix());
        let habits = &mut self.machines[agent].habits;
        habits.note_cut(Road::WebSocket, Duration::from_millis(silent_ms), own);
        habits.cut_ms = Some(now_ms);
        self.note_cut_in_peace(agent);
        self.tally.count(Kind::ProxyCutsIdle);
        self.cut_at_proxy(id, told);
    }

    /// A proxy's timer has cut something of the device: in peace it learns that timer.
    pub(crate) fn note_cut_in_peace(&mut self, agent: usize) {
        if self.has_healed() {
            let cuts = &mut self.machines[agent].habits.cuts_in_peace;
            *cuts += 1;
            if *cuts > CUTS_IN_PEACE_MAX {
                self.violated(format!("a proxy cuts agent {agent} by its timer over and over"));
            }
        }
    }

    /// In peace both ends are told.
    fn draw_told(&mut self, untold_per_mille: u64) -> Told {
        if self.has_healed() || !self.dice.chance(untold_per_mille) {
            return Told::Both;
        }
        self.dice.pick(&[Told::AgentNever, Told::ServerNever, Told::Nobody])
    }

    /// A proxy cuts a connection that it carries.
    pub(crate) fn cut_at_proxy(&mut self, id: ConnId, told: Told) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let agent = conn.agent;
        let Some(through) = conn.proxy.filter(|through| !through.is_cut) else { return };
        let is_long_poll = conn.is_long_poll();
        // A tunnel is of no connection: its next requests go through the same proxy.
        conn.proxy = Some(Through { is_cut: !is_long_poll, ..through });
        self.say(format_args!("a proxy cuts the connection of agent {agent}: {told:?} told"));
        if is_long_poll {
            return self.cut_requests(id, told);
        }
        let has_swallowed = [Way::Up, Way::Down].into_iter().any(|way| {
            let waits = self.network.conns.get_mut(&id).is_some_and(|conn| conn.drop_waiting(way));
            waits && self.reaches_proxy(id, way)
        });
        if has_swallowed {
            self.tally.count(Kind::ProxySwallows);
        }
        for way in [Way::Up, Way::Down] {
            if told.hears(way) {
                let after_ms = self.dice.between(1, TOLD_MS_MAX);
                self.after(after_ms, Event::ProxyTells { conn: id, way });
            }
        }
    }

    /// An end of a connection learns from its proxy that it is over; one that cannot be reached learns it later.
    pub(crate) fn on_proxy_tells(&mut self, id: ConnId, way: Way) {
        if !self.network.conns.contains_key(&id) {
            return;
        }
        // The way back, since this is said by the proxy.
        if !self.reaches_proxy(id, way.back()) {
            return self.after(RETRANSMISSION_MS, Event::ProxyTells { conn: id, way });
        }
        match way {
            Way::Up => {
                let reason = self.dice.pick(&[CloseReason::PeerClosed, CloseReason::Reset]);
                self.lose_at_server(id, reason);
            }
            Way::Down => self.lose_at_agent(id, "ended by a proxy"),
        }
    }

    /// A side's end is not passed on: its proxy keeps the other half open, for a while or for good.
    pub(crate) fn is_half_kept(&mut self, id: ConnId, way: Way) -> bool {
        let Some(through) = self.network.conns.get(&id).and_then(|conn| conn.proxy) else { return false };
        if through.is_cut {
            return true;
        }
        if self.has_healed() || !self.dice.chance(KEEPS_HALF_PER_MILLE) {
            return false;
        }
        self.tally.count(match way {
            Way::Up => Kind::ProxyKeepsServersHalf,
            Way::Down => Kind::ProxyKeepsAgentsHalf,
        });
        if let Some(conn) = self.network.conns.get_mut(&id) {
            conn.proxy = Some(Through { is_cut: true, ..through });
            conn.drop_waiting(way);
        }
        if self.dice.chance(500) {
            let after_ms = self.dice.around(20_000);
            self.after(after_ms, Event::ProxyTells { conn: id, way });
        }
        true
    }

    /// A proxy cuts the connection of some device, from this one on.
    pub(crate) fn cut_at_some_proxy(&mut self, agent: usize) {
        let agents = (agent..self.machines.len()).chain(0..agent);
        let conns = agents.flat_map(|agent| self.machines[agent].conns());
        let is_proxied = |id: &ConnId| self.network.conns.get(id).is_some_and(|conn| conn.proxy.is_some());
        let Some(id) = conns.into_iter().find(is_proxied) else { return };
        let told = self.dice.pick(&[Told::Both, Told::AgentNever, Told::ServerNever, Told::Nobody]);
        self.tally.count(match told {
            Told::Both => Kind::ProxyCuts,
            Told::AgentNever => Kind::ProxyKeepsAgentsHalf,
            Told::ServerNever => Kind::ProxyKeepsServersHalf,
            Told::Nobody => Kind::ProxyForgets,
        });
        self.cut_at_proxy(id, told);
    }

    /// A proxy is started anew, and so are all connections through it.
    pub(crate) fn restart_proxy(&mut self, for_ms: u64) {
        let proxy = self.dice.place(PROXIES);
        if !std::mem::replace(&mut self.network.proxies[proxy].is_up, false) {
            return;
        }
        self.tally.count(Kind::ProxyRestarts);
        self.say(format_args!("proxy {proxy} is started anew, and back in {for_ms} ms"));
        self.after(for_ms, Event::ProxyIsBack { proxy });
        let carried: Vec<ConnId> = self
            .network
            .conns
            .iter()
            .filter(|(_, conn)| conn.proxy.is_some_and(|through| through.proxy == proxy))
            .map(|(id, _)| *id)
            .collect();
        carried.into_iter().for_each(|id| self.cut_at_proxy(id, Told::Both));
    }

    pub(crate) fn on_proxy_is_back(&mut self, proxy: usize) {
        self.network.proxies[proxy].is_up = true;
        self.retransmit();
    }
}
