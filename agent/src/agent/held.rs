//! Pushes that wait: for the site's time, or for room on the disk. A server pushes a task once in a session, so that one which is
//! dropped is lost until the next.
//!
//! A head can be old when it comes: the manager was down, or the server hands out old ones. Own time is then behind, and a task
//! that was started just now seems not to be valid yet. That must not become the signed, final word on it. So such a push is set aside,
//! unanswered and in no journal, a head is asked for, and it is judged again whenever time moves on; it is refused only when
//! a newer head than the one that it was held under still speaks against it. While there is no head of this boot at all,
//! a task that seems to have expired is held in the same way.
//!
//! Law: what is held is bounded and belongs to the session: a lost one is pushed again in the next.

use bgb_daemon::clock::Now;
use bgb_protocol::ids::{TaskId, UnixMillis};
use bgb_protocol::message::TaskPush;
use bgb_protocol::state::RefusalReason;

use super::{Agent, AgentError, SessionPhase};

/// Most pushes that wait: as many as may wait and run once they are accepted. All of them are signed by the site.
const HELD_MAX: usize = super::tasks::OPEN_TASKS_MAX;

/// How often a head is asked for while one is needed: as often as the manager writes one (docs/promises.md, Time).
const ASK_EVERY_MS: u64 = 60_000;

/// A push, and the head under which it was held first.
#[derive(Clone, Debug)]
pub(super) struct HeldPush {
    push: TaskPush,
    under: Option<UnixMillis>,
}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Held {
    pushes: Vec<(TaskId, HeldPush)>,
    /// Whether a head came, or signed time moved, since what waits was judged last, or it is time to try the disk again.
    is_due: bool,
    /// When a head may be asked for again, and what waits is judged again at the latest.
    ask_ms: u64,
}

impl HeldPush {
    pub(super) fn new(push: TaskPush) -> Self {
        Self { push, under: None }
    }

    pub(super) fn push(&self) -> &TaskPush {
        &self.push
    }
}

impl Held {
    /// What waits is to be judged again: a verified head came, signed time moved, or the disk may have room.
    pub(super) fn judge_again(&mut self) {
        self.is_due = true;
    }

    /// The session is over, and what came in it will come again.
    pub(super) fn handle_lost(&mut self) {
        self.pushes.clear();
    }

    /// Sets a push aside under the newest head; `false` when there is no room.
    pub(super) fn hold(&mut self, task: TaskId, push: HeldPush, newest: Option<UnixMillis>) -> bool {
        if self.pushes.iter().any(|(held, _)| *held == task) {
            return true;
        }
        if self.pushes.len() >= HELD_MAX {
            return false;
        }
        let under = push.under.or(newest);
        self.pushes.push((task, HeldPush { under, ..push }));
        true
    }
}

impl Agent {
    /// Whether a refusal would stand whatever a newer head says.
    pub(super) fn is_certain(&self, push: &HeldPush, reason: RefusalReason) -> bool {
        match reason {
            RefusalReason::NotYetValid => push.under.is_some_and(|under| self.heads.newest > Some(under)),
            RefusalReason::Expired => self.time.is_anchored(),
            _ => true,
        }
    }

    /// Judges what waits anew.
    pub(super) fn judge_held(&mut self, now: Now) -> Result<(), AgentError> {
        if !self.held.is_due && now.boot_ms < self.held.ask_ms {
            return Ok(());
        }
        self.held.is_due = false;
        for (_, push) in std::mem::take(&mut self.held.pushes) {
            self.decide(now, push)?;
        }
        Ok(())
    }

    /// Asks for a head where one is needed.
    pub(super) fn ask_for_head(&mut self, now: Now) {
        if self.head_due_ms().is_some_and(|due_ms| now.boot_ms >= due_ms) {
            self.held.ask_ms = now.boot_ms + ASK_EVERY_MS;
            self.session.want_head(now.boot_ms);
        }
    }

    /// When a head is to be asked for, in milliseconds since boot.
    pub(super) fn head_due_ms(&self) -> Option<u64> {
        let is_needed = !self.held.pushes.is_empty() || (!self.time.is_anchored() && !self.queue.is_empty());
        (is_needed && self.session.phase() == SessionPhase::Active).then_some(self.held.ask_ms)
    }
}
