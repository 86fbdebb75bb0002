//! Heads: the site's time, and the sign that a server passes on what the site says.
//!
//! The manager writes one every minute. A server that withholds what comes down cannot make them, and has only old ones to
//! show; so has an honest one whose manager is down, or that cannot read the queue. Which of them it is the agent cannot tell,
//! so it says what it sees and stays: if it went elsewhere, a manager's outage would send whole fleets from server to server.

use bgb_daemon::clock::Now;
use bgb_protocol::head::SignedHead;
use bgb_protocol::ids::UnixMillis;

use super::{Agent, AgentError};

/// A head is old when by own time it is of so long ago: three times the minute in which the manager writes one.
const HEAD_OLD_MS: u64 = 3 * 60 * 1000;

/// So many answers in a row with an old head, or none, are no accident.
const OLD_ANSWERS: u32 = 2;

/// Whether heads come.
#[derive(Debug, Default)]
pub(super) struct HeadWatch {
    /// The newest head that was heard since the agent was made.
    pub(super) newest: Option<UnixMillis>,
    /// Answers in a row, welcomes included, after which the newest head was old.
    old_answers: u32,
}

impl Agent {
    /// A welcome or the answer to a keepalive: a head, or nothing where the server has none.
    pub(super) fn on_head(&mut self, now: Now, bytes: &[u8]) -> Result<(), AgentError> {
        if !bytes.is_empty() {
            self.take_head(now, bytes)?;
        }
        self.watch_heads(now);
        Ok(())
    }

    fn take_head(&mut self, now: Now, bytes: &[u8]) -> Result<(), AgentError> {
        let head = SignedHead::decode(bytes).map_err(|error| error.to_string()).and_then(|head| {
            head.verify(self.options.site, &self.options.task_keys).map_err(|error| error.to_string())?;
            Ok(head)
        });
        match head {
            Ok(head) => {
                let time = head.statement().time;
                self.heads.newest = self.heads.newest.max(Some(time));
                self.held.judge_again();
                let change = self.time.on_head(time, now);
                self.keep_time(change)
            }
            Err(fault) => {
                self.counters.statements_dropped += 1;
                if self.counters.statements_dropped.is_power_of_two() {
                    tracing::warn!(%fault, times = self.counters.statements_dropped, "a head is not the site's");
                }
                Ok(())
            }
        }
    }

    fn watch_heads(&mut self, now: Now) {
        let age_ms = self.heads.newest.map(|newest| self.time.at(now).since(newest));
        if age_ms.is_some_and(|age_ms| age_ms <= HEAD_OLD_MS) {
            if self.heads.old_answers >= OLD_ANSWERS {
                tracing::info!("signed heads come again");
            }
            self.heads.old_answers = 0;
            return;
        }
        self.heads.old_answers = self.heads.old_answers.saturating_add(1);
        if self.heads.old_answers == OLD_ANSWERS {
            self.counters.heads_ceased += 1;
            tracing::warn!(
                age_secs = age_ms.map(|age_ms| age_ms / 1_000),
                "the server has no recent signed head: the site's manager is down, the server cannot read the site's queue, or it \
                 withholds what the site says"
            );
        }
    }
}
