//! What reaches the devices: tasks, cancels and policy documents, in portions.
//!
//! A step of the tasks (a release or a cancel that took effect) fans out to the sessions that it concerns, by whichever is
//! shorter: the step's devices, or the sessions. A session that is choked is passed over and keeps no queue: when it flows
//! again it looks through the steps that it has missed. What one session gets in a turn, and what all get, is bounded; the rest
//! waits in line, so that the caller can say in between whose bytes pile up.

use std::collections::VecDeque;
use std::sync::Arc;

use bgb_protocol::ids::{DeviceId, UnixMillis};
use bgb_protocol::message::{PolicyPart, ServerMessage};
use bgb_protocol::target_set::PROOF_BYTES_MAX;
use roaring::RoaringBitmap;

use super::{Hub, channel_of};
use crate::active_tasks::{ActiveTasks, Due, Slot, Step};
use crate::counters::Counters;
use crate::input::ChannelKey;
use crate::output::Output;
use crate::session::{Active, Flow, POLICY_SPACING_TICKS, PolicyTurn, Session};

/// Messages that one turn of a fan-out sends: at 15 us for a write to a socket some 4 ms, after which other channels are
/// heard.
const FAN_OUT_MESSAGES_PER_TURN: usize = 256;

/// Bytes that one turn of a fan-out sends; a single session may get all of them, so this also bounds how far over its mark it
/// can come.
const FAN_OUT_BYTES_PER_TURN: usize = 1024 * 1024;

/// Devices that one turn of a fan-out looks at: a millisecond's work, at some 100 ns each.
const FAN_OUT_VISITS_PER_TURN: usize = 16_384;

/// Bytes that one session gets in a turn of its own: a frame's most.
const TURN_BYTES: usize = 64 * 1024;

/// Sessions in line that have their turn at one call: 4 MiB with all portions full.
const TURNS_PER_CALL: usize = 64;

/// What finding a device in the registry costs, against looking at the next session in it.
const LOOKUP_COST: u64 = 4;

/// A step on its way to those whom it concerns.
#[derive(Debug)]
pub(super) struct FanOut {
    step: Step,
    /// The lowest device that has not been looked at.
    next: u32,
}

impl FanOut {
    pub(super) fn of(step: Step) -> Self {
        Self { step, next: 0 }
    }
}

/// What may still be sent in a turn; the message that exceeds it is the last one, so a turn always gets on.
#[derive(Debug)]
struct Budget {
    messages: usize,
    bytes: usize,
    visits: usize,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.messages == 0 || self.bytes == 0 || self.visits == 0
    }

    fn spend(&mut self, bytes: usize) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// The parts of the hub that a delivery touches, so that the registry can be walked meanwhile.
struct Delivery<'a> {
    tasks: &'a mut ActiveTasks,
    outputs: &'a mut VecDeque<Output>,
    counters: &'a mut Counters,
    time: UnixMillis,
}

impl Hub {
    /// Does a portion of what is due.
    pub(super) fn work(&mut self) {
        let time = self.time.time();
        self.tasks.expire(self.time.site_time());
        while let Some(step) = self.tasks.poll_held(time) {
            self.fan_outs.push_back(FanOut::of(step));
        }
        self.drain_some();
        for _ in 0..self.line.len().min(TURNS_PER_CALL) {
            let Some(channel) = self.line.pop_front() else { break };
            if self.known(channel).is_some() {
                self.on_turn(channel.index);
            }
        }
        self.fan_out();
    }

    /// Whether a task or a cancel is on its way to many, and not with all of them yet.
    #[must_use]
    pub fn is_fanning_out(&self) -> bool {
        !self.fan_outs.is_empty()
    }

    /// Whether work is left over.
    pub(super) fn is_behind(&self) -> bool {
        !self.line.is_empty() || !self.fan_outs.is_empty() || self.is_draining() || self.has_timers_due()
    }

    pub(super) fn on_choked(&mut self, at: u32) {
        let (tick, current) = (self.time.tick(), self.seen_by_current());
        let Some(active) = self.session_mut(at).and_then(Session::active_mut) else { return };
        let step = match active.flow {
            Flow::Current => current,
            Flow::Behind { step } => step,
            Flow::Choked { .. } => return,
        };
        active.flow = Flow::Choked { step, since: tick, keepalive_owed: false };
        self.counters.choked += 1;
        self.arm(at);
    }

    pub(super) fn on_flowing(&mut self, at: u32) {
        let Some(active) = self.session_mut(at).and_then(Session::active_mut) else { return };
        let Flow::Choked { step, keepalive_owed, .. } = active.flow else { return };
        active.flow = Flow::Behind { step };
        if keepalive_owed {
            self.answer_keepalive(at);
        }
        self.take_turn(at);
    }

    /// Pushes what a sign-in found due, the first portion of it.
    pub(super) fn push_first(&mut self, at: u32, pushes: &[(u64, Slot)]) {
        let Some(session) = self.sessions[at as usize].as_mut() else { return };
        let (device, channel) = (session.device, channel_of(at, session));
        let mut budget = turn_budget();
        let mut delivery = Delivery {
            time: self.time.time(),
            tasks: &mut self.tasks,
            outputs: &mut self.outputs,
            counters: &mut self.counters,
        };
        let mut seen = 0;
        for (step, slot) in pushes {
            if budget.is_spent() {
                break;
            }
            delivery.deliver(*slot, channel, device, &mut budget);
            seen = *step;
        }
        let is_behind = pushes.last().is_some_and(|(last, _)| *last > seen);
        if let Some(active) = session.active_mut().filter(|_| is_behind) {
            active.flow = Flow::Behind { step: seen };
        }
        self.take_turn_within(at, &mut budget);
    }

    /// A step that every session whose flow is current has seen.
    fn seen_by_current(&self) -> u64 {
        self.fan_outs.front().map_or(self.tasks.steps(), |oldest| oldest.step.number - 1)
    }

    /// The turn of a session in line has come.
    fn on_turn(&mut self, at: u32) {
        if let Some(active) = self.session_mut(at).and_then(Session::active_mut) {
            active.in_line = false;
            self.take_turn(at);
        }
    }

    /// Sends the session at `at` a portion of what it has to get, and puts it in line for the rest.
    pub(super) fn take_turn(&mut self, at: u32) {
        self.take_turn_within(at, &mut turn_budget());
    }

    fn take_turn_within(&mut self, at: u32, budget: &mut Budget) {
        self.catch_up(at, budget);
        self.answer_policy(at, budget);
        let Some(session) = self.session_mut(at) else { return };
        let channel = channel_of(at, session);
        if let Some(active) = session.active_mut().filter(|active| active.has_more() && !active.in_line) {
            active.in_line = true;
            self.line.push_back(channel);
        }
    }

    /// Goes on through the steps that the session at `at` has missed.
    fn catch_up(&mut self, at: u32, budget: &mut Budget) {
        let Some(session) = self.sessions[at as usize].as_mut() else { return };
        let (device, channel) = (session.device, channel_of(at, session));
        let Some(active) = session.active_mut() else { return };
        let Flow::Behind { step: mut seen } = active.flow else { return };
        let mut delivery = Delivery {
            time: self.time.time(),
            tasks: &mut self.tasks,
            outputs: &mut self.outputs,
            counters: &mut self.counters,
        };
        active.flow = loop {
            let Some((step, slot)) = delivery.tasks.after(seen) else { break Flow::Current };
            if budget.is_spent() {
                break Flow::Behind { step: seen };
            }
            delivery.deliver(slot, channel, device, budget);
            seen = step;
        };
    }

    /// Goes on with the answer to the policy request of the session at `at`.
    fn answer_policy(&mut self, at: u32, budget: &mut Budget) {
        let tick = self.time.tick();
        let Some(session) = self.sessions[at as usize].as_mut() else { return };
        let (device, channel) = (session.device, channel_of(at, session));
        let Some(active) = session.active_mut().filter(|active| !active.is_choked()) else { return };
        let PolicyTurn::Answering(answer) = &mut active.policy else { return };
        let (request, count) = (answer.request, answer.documents.len());
        loop {
            if budget.is_spent() {
                return;
            }
            let document = answer.documents.get(answer.next).map(|order| order.document(device));
            budget.spend(document.as_ref().map_or(0, |document| document.signed.len() + PROOF_BYTES_MAX));
            let part = PolicyPart { request, index: answer.next as u16, count: count as u16, document };
            let message = ServerMessage::Policy(Box::new(part));
            self.outputs.push_back(Output::Send { channel, message });
            answer.next += 1;
            if answer.next >= count {
                break;
            }
        }
        let again = tick.plus(POLICY_SPACING_TICKS);
        active.policy = match answer.asked {
            Some(request) => PolicyTurn::Waiting { request, at: again },
            None => PolicyTurn::Idle { again },
        };
        self.arm(at);
    }

    /// Goes on with the fan-outs, the oldest first.
    fn fan_out(&mut self) {
        let mut budget = Budget {
            messages: FAN_OUT_MESSAGES_PER_TURN,
            bytes: FAN_OUT_BYTES_PER_TURN,
            visits: FAN_OUT_VISITS_PER_TURN,
        };
        while let Some(mut fan_out) = self.fan_outs.pop_front() {
            if let Some(next) = self.fan_out_from(&fan_out, &mut budget) {
                fan_out.next = next;
                self.fan_outs.push_front(fan_out);
                return;
            }
        }
    }

    /// Goes on with one fan-out; where to go on next time, if it is not over.
    fn fan_out_from(&mut self, fan_out: &FanOut, budget: &mut Budget) -> Option<u32> {
        let (slot, order) = self.tasks.active(fan_out.step.task)?;
        let order = Arc::clone(order);
        let reach: &RoaringBitmap = fan_out.step.devices.as_deref().unwrap_or(order.targets.devices());
        let (registry, sessions) = (&self.registry, &self.sessions);
        let mut delivery = Delivery {
            time: self.time.time(),
            tasks: &mut self.tasks,
            outputs: &mut self.outputs,
            counters: &mut self.counters,
        };
        let mut visit = |device: u32, at: Option<&u32>| {
            if budget.is_spent() {
                return Some(device);
            }
            budget.visits -= 1;
            if let Some(at) = at.copied() {
                delivery.deliver_if_current(&sessions[at as usize], at, slot, budget);
            }
            None
        };
        if reach.len() * LOOKUP_COST < registry.len() as u64 {
            reach.range(fan_out.next..).find_map(|device| visit(device, registry.get(&DeviceId(device))))
        } else {
            let mut registered = registry.range(DeviceId(fan_out.next)..);
            registered.find_map(|(device, at)| visit(device.0, reach.contains(device.0).then_some(at)))
        }
    }
}

impl Delivery<'_> {
    /// Sends the session what is due to it of the task at `slot`, unless it is to see it later.
    fn deliver_if_current(&mut self, session: &Option<Session>, at: u32, slot: Slot, budget: &mut Budget) {
        let session = session.as_ref().expect("a registered session is there");
        if session.active().is_some_and(|active| active.flow == Flow::Current) {
            self.deliver(slot, channel_of(at, session), session.device, budget);
        }
    }

    /// Sends what is due to `device` of the task at `slot`.
    fn deliver(&mut self, slot: Slot, channel: ChannelKey, device: DeviceId, budget: &mut Budget) {
        match self.tasks.poll_due(slot, device, self.time) {
            Some(Due::Push(task)) => {
                budget.spend(task.push_bytes_max());
                self.counters.pushes += 1;
                self.outputs.push_back(Output::Push { channel, task, device });
            }
            Some(Due::Cancel(signed)) => {
                budget.spend(signed.len());
                self.counters.cancels += 1;
                let message = ServerMessage::Cancel(signed.to_vec());
                self.outputs.push_back(Output::Send { channel, message });
            }
            None => {}
        }
    }
}

impl Active {
    fn is_choked(&self) -> bool {
        matches!(self.flow, Flow::Choked { .. })
    }

    /// Whether the session has something to get and can take it.
    fn has_more(&self) -> bool {
        match self.flow {
            Flow::Behind { .. } => true,
            Flow::Current => matches!(self.policy, PolicyTurn::Answering(_)),
            Flow::Choked { .. } => false,
        }
    }
}

fn turn_budget() -> Budget {
    Budget { messages: usize::MAX, bytes: TURN_BYTES, visits: usize::MAX }
}
