//! What becomes of a task after its start: cancelled, expired, closed.

use bgb_protocol::ids::{TaskId, UnixMillis};
use bgb_protocol::queue::QueueItem;
use bgb_protocol::state::TaskState;
use bgb_protocol::status::StatusId;
use bgb_protocol::task::{CancelStatement, SignedCancel};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::super::columns::{integer, millis, time};
use super::super::queue::{self, Draft};
use super::super::results::CountChanges;
use super::super::status::say;
use super::super::{STEP_ROWS, Step, Store};
use crate::error::SiteError;

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskPhase {
    /// Its validity lasts, or is to come.
    Active,
    /// Its validity is over. Devices that had begun may still answer.
    Expired,
    /// An administrator ended it.
    Cancelled,
}

impl TaskPhase {
    pub(super) fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Active,
            2 => Self::Expired,
            _ => Self::Cancelled,
        }
    }

    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

impl std::fmt::Display for TaskPhase {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

impl Store {
    /// Cancels a task: its state and the signed cancel's queue row in one transaction.
    ///
    /// # Errors
    /// When there is no such task, it is over ([`SiteError::TaskOver`]), or the database cannot be written.
    pub fn cancel_task(
        &mut self,
        id: TaskId,
        by: &str,
        now: UnixMillis,
        sign: impl FnOnce(CancelStatement) -> SignedCancel,
    ) -> Result<(), SiteError> {
        let site = self.code;
        self.write(|connection| {
            let (number, phase, expires) = phase_of(connection, id)?;
            if phase != TaskPhase::Active {
                return Err(SiteError::TaskOver(phase.name()));
            }
            if expires <= now {
                return Err(SiteError::TaskOver(TaskPhase::Expired.name()));
            }
            let sql = "UPDATE task SET phase = 3, cancelled = ?2, cancelled_by = ?3 WHERE number = ?1";
            connection.prepare_cached(sql)?.execute(params![number, millis(now), by])?;
            let signed = sign(CancelStatement { site, task: id, expires, cancelled: now });
            let item = QueueItem::Cancel { signed: signed.bytes().to_vec() };
            queue::push(connection, &Draft { item: &item, server: None, about: None, valid_until: expires })?;
            let about = format!("task {id}");
            say(connection, StatusId::TaskCancelled, now, about, format!("{by} cancelled the task."))
        })
    }

    /// Ends the validity of the tasks whose time is over, and says which.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn expire_tasks(&mut self, now: UnixMillis) -> Result<Vec<TaskId>, SiteError> {
        self.write(|connection| {
            let sql = "UPDATE task SET phase = 2 WHERE phase = 1 AND expires <= ?1 RETURNING id";
            let mut statement = connection.prepare_cached(sql)?;
            let expired = statement.query_map([millis(now)], |row| Ok(TaskId::from_bytes(row.get(0)?)))?;
            let expired = expired.collect::<Result<Vec<_>, _>>()?;
            for id in &expired {
                let text = "Its validity is over: no device begins with it any more.";
                say(connection, StatusId::TaskExpired, now, format!("task {id}"), text)?;
            }
            Ok(expired)
        })
    }

    /// Closes tasks 24 hours after their expiry and their action's limit: received and running become no answer. In steps.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn mark_no_answer(&mut self, now: UnixMillis) -> Result<Step, SiteError> {
        let step = self.write(|connection| {
            let sql = "SELECT number FROM task WHERE closed = 0 AND closes <= ?1 ORDER BY closes LIMIT 1";
            let due: Option<i64> =
                connection.prepare_cached(sql)?.query_row([millis(now)], |row| row.get(0)).optional()?;
            let Some(task) = due else { return Ok(Step::default()) };
            let mut changes = CountChanges::default();
            let mut room = STEP_ROWS;
            for silent in [TaskState::Received, TaskState::Running] {
                let changed = give_up(connection, task, silent, room)?;
                changes.add(task, silent, -integer(changed as u64));
                changes.add(task, TaskState::NoAnswer, integer(changed as u64));
                room -= changed;
            }
            changes.write(connection)?;
            if room > 0 {
                connection.prepare_cached("UPDATE task SET closed = 1 WHERE number = ?1")?.execute([task])?;
            }
            // Another task may be due as well; the next step finds out.
            Ok(Step { changed: (STEP_ROWS - room) as u64, more: true })
        })?;
        self.tasks.forget();
        Ok(step)
    }
}

fn give_up(connection: &Connection, task: i64, silent: TaskState, limit: usize) -> Result<usize, SiteError> {
    let sql = "UPDATE result SET state = ?4 WHERE task = ?1 AND device IN \
        (SELECT device FROM result WHERE task = ?1 AND state = ?2 AND state <> 3 ORDER BY device LIMIT ?3)";
    let values = params![task, silent.code(), integer(limit as u64), TaskState::NoAnswer.code()];
    Ok(connection.prepare_cached(sql)?.execute(values)?)
}

fn phase_of(connection: &Connection, id: TaskId) -> Result<(i64, TaskPhase, UnixMillis), SiteError> {
    let sql = "SELECT number, phase, expires FROM task WHERE id = ?1";
    let read = |row: &Row<'_>| Ok((row.get(0)?, TaskPhase::from_code(row.get(1)?), time(row.get(2)?)));
    let found = connection.prepare_cached(sql)?.query_row([id.bytes()], read).optional()?;
    found.ok_or_else(|| SiteError::NotFound { what: "task", name: id.to_string() })
}
