//! What an agent says.
//!
//! A message costs a bounded amount of work, and any of them shows that the agent is there: it moves the session's
//! `last_seen` and touches nothing else of its deadlines.

use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::ids::{DeviceId, TaskId};
use bgb_protocol::message::{AgentMessage, ServerMessage};
use bgb_protocol::result::SignedResult;
use bgb_protocol::state::TaskState;

use super::{Hub, Unacknowledged, channel_of};
use crate::close_reason::CloseReason;
use crate::output::Output;
use crate::session::{Flow, PolicyAnswer, PolicyTurn, Session, Stage};

impl Hub {
    pub(super) fn on_said(&mut self, at: u32, message: AgentMessage) {
        let tick = self.time.tick();
        let Some(session) = self.session_mut(at) else { return };
        let device = session.device;
        match &session.stage {
            Stage::AwaitingHello { .. } => match message {
                AgentMessage::Hello(hello) => self.on_hello(at, *hello),
                _ => self.end(at, CloseReason::NotAllowed),
            },
            Stage::Claiming(_) => self.end(at, CloseReason::NotAllowed),
            Stage::Active(_) => {
                session.last_seen = tick;
                match message {
                    AgentMessage::Hello(_) => self.end(at, CloseReason::NotAllowed),
                    AgentMessage::Keepalive => self.on_keepalive(at),
                    AgentMessage::Received(task) => self.on_hint(device, task, TaskState::Received),
                    AgentMessage::Running(task) => self.on_hint(device, task, TaskState::Running),
                    AgentMessage::Result(result) => self.on_result(at, result),
                    AgentMessage::PolicyRequest(request) => self.on_policy_request(at, request),
                    AgentMessage::Goodbye => self.end(at, CloseReason::Goodbye),
                }
            }
        }
    }

    fn on_keepalive(&mut self, at: u32) {
        let Some(active) = self.session_mut(at).and_then(Session::active_mut) else { return };
        if let Flow::Choked { keepalive_owed, .. } = &mut active.flow {
            // One answer is owed, however often a peer that does not read asks.
            *keepalive_owed = true;
        } else {
            self.answer_keepalive(at);
        }
    }

    pub(super) fn answer_keepalive(&mut self, at: u32) {
        let Some(session) = self.session(at) else { return };
        let channel = channel_of(at, session);
        self.counters.keepalives += 1;
        self.send(channel, ServerMessage::KeepaliveAnswer(self.time.head()));
    }

    fn on_hint(&mut self, device: DeviceId, task: TaskId, state: TaskState) {
        if self.tasks.concerns(task, device) {
            self.hint(device, task, state);
        } else {
            self.counters.hints_dropped += 1;
        }
    }

    /// Passes on that the device has received a task or runs it.
    pub(super) fn hint(&mut self, device: DeviceId, task: TaskId, state: TaskState) {
        let word = match state {
            TaskState::Running => DeviceWord::Running,
            _ => DeviceWord::Received,
        };
        self.counters.hints += 1;
        self.outputs
            .push_back(Output::Hint { row: ResultRow { task, device, heard: self.time.wall(), word } });
    }

    fn on_result(&mut self, at: u32, result: Box<SignedResult>) {
        let Some(session) = self.session(at) else { return };
        let (device, channel) = (session.device, channel_of(at, session));
        let Ok(statement) = result.read() else {
            return self.end(at, CloseReason::BadResult);
        };
        if statement.device != device {
            return self.end(at, CloseReason::ForeignResult);
        }
        let task = statement.task;
        self.tasks.on_final(task, device);
        self.counters.results += 1;
        self.results += 1;
        let number = self.results;
        self.unacknowledged.push_back(Unacknowledged { number, channel, task });
        let row = ResultRow { task, device, heard: self.time.wall(), word: DeviceWord::Final(result) };
        self.outputs.push_back(Output::Keep { number, channel, row });
    }

    fn on_policy_request(&mut self, at: u32, request: u32) {
        let tick = self.time.tick();
        let Some(active) = self.session_mut(at).and_then(Session::active_mut) else { return };
        let replaced = match &mut active.policy {
            PolicyTurn::Idle { again } if *again <= tick => return self.begin_policy_answer(at, request),
            PolicyTurn::Idle { again } => {
                active.policy = PolicyTurn::Waiting { request, at: *again };
                return self.arm(at);
            }
            PolicyTurn::Waiting { request: waiting, .. } => Some(std::mem::replace(waiting, request)),
            PolicyTurn::Answering(answer) => answer.asked.replace(request),
        };
        self.counters.policy_requests_replaced += u64::from(replaced.is_some());
    }

    /// The request that came too soon has waited long enough.
    pub(super) fn on_policy_due(&mut self, at: u32) {
        let Some(active) = self.session_mut(at).and_then(Session::active_mut) else { return };
        if let PolicyTurn::Waiting { request, .. } = active.policy {
            self.begin_policy_answer(at, request);
        }
    }

    fn begin_policy_answer(&mut self, at: u32, request: u32) {
        let Some(session) = self.session(at) else { return };
        let documents = self.policies.for_device(session.device);
        self.counters.policy_answers += 1;
        if let Some(active) = self.session_mut(at).and_then(Session::active_mut) {
            let answer = PolicyAnswer { request, next: 0, documents, asked: None };
            active.policy = PolicyTurn::Answering(Box::new(answer));
            self.take_turn(at);
        }
    }
}
