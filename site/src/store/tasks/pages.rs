//! What people see of tasks: lists, counts, results, and who has not said anything.
//!
//! Counts are read, never counted: they are kept with the rows. What no row speaks of is the remainder.

use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::codec;
use bgb_protocol::ids::{DeviceGuid, DeviceId, TaskId, UnixMillis};
use bgb_protocol::result::ResultStatement;
use bgb_protocol::state::{RefusalReason, TaskState};
use bgb_protocol::target_set::TargetDigest;
use roaring::RoaringBitmap;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::super::Queries;
use super::super::columns::{damaged, device_number, integer, read_set, time, unsigned};
use super::super::devices::{PresenceState, presence_state};
use super::TaskPhase;
use crate::error::SiteError;

/// How many of a task's targets are where. They always add up:
/// targets = succeeded + failed + interrupted + refused + cancelled + running + received + no answer + waiting + expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskCounts {
    /// All targets.
    pub targets: u64,
    /// They have the task.
    pub received: u64,
    /// They have begun.
    pub running: u64,
    /// They did it.
    pub succeeded: u64,
    /// They could not.
    pub failed: u64,
    /// They crashed in the middle.
    pub interrupted: u64,
    /// They would not.
    pub refused: u64,
    /// Cancelled: those that said so themselves, and, in a cancelled task, the remainder ([`Self::cancelled_unheard`]).
    pub cancelled: u64,
    /// They had it, and have said nothing more for too long.
    pub no_answer: u64,
    /// The remainder of an active task: they have said nothing, and may have it still.
    pub waiting: u64,
    /// The remainder of an expired task: they never had it, as far as they said.
    pub expired: u64,
    /// Those of `cancelled` that have said nothing: the remainder of a cancelled task.
    pub cancelled_unheard: u64,
}

/// A task as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRow {
    /// Its id.
    pub id: TaskId,
    /// What is done; `None` for an action of a newer release.
    pub action: Option<Action>,
    /// What the action needs to know.
    pub parameters: Parameters,
    /// Who was meant, in words: `collection Berlin`.
    pub audience: String,
    /// What the signature covers of the targets.
    pub digest: TargetDigest,
    /// Who started it.
    pub by: String,
    /// When.
    pub created: UnixMillis,
    /// The start of its validity.
    pub not_before: UnixMillis,
    /// The end of its validity.
    pub expires: UnixMillis,
    /// Where it is in its life.
    pub phase: TaskPhase,
    /// When it was cancelled, and by whom.
    pub cancelled: Option<(UnixMillis, String)>,
    /// How many of its targets are where.
    pub counts: TaskCounts,
}

/// A device's word on a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultPageRow {
    /// The device.
    pub device: DeviceId,
    /// Its GUID.
    pub guid: DeviceGuid,
    /// Its name.
    pub name: String,
    /// How far it has come.
    pub state: TaskState,
    /// When a server heard that.
    pub heard: UnixMillis,
    /// What the action returned; of a final word only, as all that follows.
    pub code: Option<i32>,
    /// Why it refused, when it did.
    pub refusal: Option<RefusalReason>,
    /// When it began, by the agent's time.
    pub started: Option<UnixMillis>,
    /// When it was over, by the agent's time.
    pub finished: Option<UnixMillis>,
    /// What the action said; what is not UTF-8 is replaced.
    pub output: Option<String>,
}

/// A target that has said nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnansweredDevice {
    /// The device.
    pub device: DeviceId,
    /// Its GUID.
    pub guid: DeviceGuid,
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub presence: PresenceState,
}

/// Which results are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResultFilter {
    /// All.
    #[default]
    All,
    /// Those in this state.
    State(TaskState),
}

impl TaskCounts {
    /// Devices that have said anything at all.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.targets - self.remainder()
    }

    /// Devices that have said their last word.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.succeeded + self.failed + self.interrupted + self.refused + self.cancelled
            - self.cancelled_unheard
    }

    /// Devices that have said nothing.
    #[must_use]
    pub fn remainder(&self) -> u64 {
        self.waiting + self.expired + self.cancelled_unheard
    }

    /// Adds `n` devices in a state that is kept as rows.
    fn add(&mut self, state: TaskState, n: u64) {
        match state {
            TaskState::Received => self.received += n,
            TaskState::Running => self.running += n,
            TaskState::Succeeded => self.succeeded += n,
            TaskState::Failed => self.failed += n,
            TaskState::Interrupted => self.interrupted += n,
            TaskState::Refused => self.refused += n,
            TaskState::Cancelled => self.cancelled += n,
            TaskState::NoAnswer => self.no_answer += n,
        }
    }
}

impl TaskRow {
    /// Whether nothing more is to be expected: every target has said its last word, or cannot any more.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.counts.waiting == 0 && self.counts.received == 0 && self.counts.running == 0
    }
}

impl Queries<'_> {
    /// How many tasks are active; an index has those alone.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn active_tasks(&self) -> Result<u64, SiteError> {
        let sql = "SELECT count(*) FROM task WHERE phase = 1";
        Ok(unsigned(self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?))
    }

    /// Tasks, the newest first, at most `limit`; those before `before`, or from the newest on.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn tasks(&self, before: Option<TaskId>, limit: usize) -> Result<Vec<TaskRow>, SiteError> {
        let before = before.map_or(Ok(i64::MAX), |before| number_of(self.connection, before))?;
        let mut statement = self.connection.prepare_cached(TASKS_PAGE)?;
        let rows =
            statement.query_map(params![before, integer(limit as u64)], |row| Ok(self.read_task(row)))?;
        rows.collect::<Result<Vec<_>, _>>()?.into_iter().collect()
    }

    /// The task with this id.
    ///
    /// # Errors
    /// [`SiteError::NotFound`], or that the database cannot be read.
    pub fn task(&self, id: TaskId) -> Result<TaskRow, SiteError> {
        let mut statement = self.connection.prepare_cached(TASK_BY_ID)?;
        let found = statement.query_row([id.bytes()], |row| Ok(self.read_task(row))).optional()?;
        found.unwrap_or_else(|| Err(SiteError::NotFound { what: "task", name: id.to_string() }))
    }

    /// What devices said of a task, at most `limit`, in the order of device numbers from the one after `after` on.
    ///
    /// # Errors
    /// [`SiteError::NotFound`], or that the database cannot be read.
    pub fn results(
        &self,
        task: TaskId,
        filter: ResultFilter,
        after: Option<DeviceId>,
        limit: usize,
    ) -> Result<Vec<ResultPageRow>, SiteError> {
        let number = number_of(self.connection, task)?;
        let (sql, state) = match filter {
            ResultFilter::All => (RESULTS_PAGE, 0),
            // The index is for all states but this one.
            ResultFilter::State(TaskState::Succeeded) => (RESULTS_SUCCEEDED, TaskState::Succeeded.code()),
            ResultFilter::State(state) => (RESULTS_OF_STATE, state.code()),
        };
        let mut statement = self.connection.prepare_cached(sql)?;
        let after = after.map_or(-1, |after| i64::from(after.0));
        let values = params![number, after, integer(limit as u64), state];
        let rows = statement.query_map(values, |row| Ok(read_result(row)))?;
        rows.collect::<Result<Vec<_>, _>>()?.into_iter().collect()
    }

    /// Targets that have said nothing, at most `limit`, in the order of numbers from the one after `after` on.
    ///
    /// # Errors
    /// [`SiteError::NotFound`], or that the database cannot be read.
    pub fn unanswered(
        &self,
        task: TaskId,
        after: Option<DeviceId>,
        limit: usize,
    ) -> Result<Vec<UnansweredDevice>, SiteError> {
        let number = number_of(self.connection, task)?;
        let mut rest = targets_of(self.connection, number)?;
        if let Some(after) = after {
            rest.remove_range(0..=after.0);
        }
        let from = after.map_or(-1, |after| i64::from(after.0));
        let mut statement = self.connection.prepare_cached(ANSWERED_AFTER)?;
        let mut answered = statement.query_map([number, from], |row| row.get::<_, u32>(0))?;
        let mut silent = Vec::new();
        let mut next = answered.next().transpose()?;
        for device in rest {
            if silent.len() == limit {
                break;
            }
            while next.is_some_and(|answered| answered < device) {
                next = answered.next().transpose()?;
            }
            if next != Some(device) {
                silent.push(DeviceId(device));
            }
        }
        silent.into_iter().map(|device| self.silent_device(device)).collect()
    }

    /// The targets of a task.
    ///
    /// # Errors
    /// [`SiteError::NotFound`], or that the database cannot be read.
    pub fn task_targets(&self, task: TaskId) -> Result<RoaringBitmap, SiteError> {
        targets_of(self.connection, number_of(self.connection, task)?)
    }

    fn silent_device(&self, device: DeviceId) -> Result<UnansweredDevice, SiteError> {
        let mut statement =
            self.connection.prepare_cached("SELECT guid, name, presence FROM device WHERE number = ?1")?;
        Ok(statement.query_row([device.0], |row| {
            Ok(UnansweredDevice {
                device,
                guid: DeviceGuid::from_bytes(row.get(0)?),
                name: row.get(1)?,
                presence: presence_state(row.get(2)?),
            })
        })?)
    }

    fn read_task(&self, row: &Row<'_>) -> Result<TaskRow, SiteError> {
        let number: i64 = row.get(0)?;
        let phase = TaskPhase::from_code(row.get(11)?);
        let cancelled: Option<i64> = row.get(12)?;
        let by: Option<String> = row.get(13)?;
        let parameters: Vec<u8> = row.get(3)?;
        Ok(TaskRow {
            id: TaskId::from_bytes(row.get(1)?),
            action: Action::from_code(row.get(2)?),
            parameters: codec::decode_versioned("task's parameters", &parameters)
                .map_err(|error| damaged(&error))?,
            audience: row.get(4)?,
            digest: TargetDigest { root: row.get(5)?, blocks: row.get(6)? },
            by: row.get(7)?,
            created: time(row.get(8)?),
            not_before: time(row.get(9)?),
            expires: time(row.get(10)?),
            phase,
            cancelled: cancelled.map(|at| (time(at), by.unwrap_or_default())),
            counts: self.counts(number, unsigned(row.get(14)?), phase)?,
        })
    }

    fn counts(&self, task: i64, targets: u64, phase: TaskPhase) -> Result<TaskCounts, SiteError> {
        let mut counts = TaskCounts { targets, ..TaskCounts::default() };
        let mut statement =
            self.connection.prepare_cached("SELECT state, n FROM task_count WHERE task = ?1")?;
        let mut rows = statement.query([task])?;
        let mut heard = 0;
        while let Some(row) = rows.next()? {
            let n = unsigned(row.get(1)?);
            let state = TaskState::from_code(row.get(0)?)
                .ok_or_else(|| SiteError::Corrupt("a task's count is of no known state".to_owned()))?;
            counts.add(state, n);
            heard += n;
        }
        let remainder = targets.saturating_sub(heard);
        match phase {
            TaskPhase::Active => counts.waiting = remainder,
            TaskPhase::Expired => counts.expired = remainder,
            TaskPhase::Cancelled => {
                counts.cancelled += remainder;
                counts.cancelled_unheard = remainder;
            }
        }
        Ok(counts)
    }
}

/// The statements of [`Queries::tasks`] and [`Queries::task`].
pub(in super::super) const TASKS_PAGE: &str = "SELECT number, id, action, parameters, audience, root, blocks, started_by, created, \
     not_before, expires, phase, cancelled, cancelled_by, target_count FROM task WHERE number < ?1 ORDER BY number DESC LIMIT ?2";
const TASK_BY_ID: &str = "SELECT number, id, action, parameters, audience, root, blocks, started_by, created, \
     not_before, expires, phase, cancelled, cancelled_by, target_count FROM task WHERE id = ?1";

/// The statements of [`Queries::results`]; every one is given all four values.
pub(in super::super) const RESULTS_PAGE: &str = "SELECT result.device, guid, name, result.state, heard, code, started, finished, output, \
     statement FROM result JOIN device ON device.number = result.device \
     WHERE task = ?1 AND result.device > ?2 AND ?4 = 0 ORDER BY result.device LIMIT ?3";
pub(in super::super) const RESULTS_SUCCEEDED: &str = "SELECT result.device, guid, name, result.state, heard, code, started, finished, output, \
     statement FROM result JOIN device ON device.number = result.device \
     WHERE task = ?1 AND result.device > ?2 AND result.state = ?4 ORDER BY result.device LIMIT ?3";
pub(in super::super) const RESULTS_OF_STATE: &str = "SELECT result.device, guid, name, result.state, heard, code, started, finished, output, \
     statement FROM result INDEXED BY result_state JOIN device ON device.number = result.device \
     WHERE task = ?1 AND result.state = ?4 AND result.state <> 3 AND result.device > ?2 ORDER BY result.device LIMIT ?3";
const ANSWERED_AFTER: &str = "SELECT device FROM result WHERE task = ?1 AND device > ?2 ORDER BY device";

fn read_result(row: &Row<'_>) -> Result<ResultPageRow, SiteError> {
    let moment = |column| row.get::<_, Option<i64>>(column).map(|value| value.map(time));
    let (output, statement): (Option<Vec<u8>>, Option<Vec<u8>>) = (row.get(8)?, row.get(9)?);
    let statement = statement
        .map(|bytes| codec::decode_versioned::<ResultStatement>("result", &bytes))
        .transpose()
        .map_err(|error| damaged(&error))?;
    Ok(ResultPageRow {
        device: DeviceId(device_number(row.get(0)?)),
        guid: DeviceGuid::from_bytes(row.get(1)?),
        name: row.get(2)?,
        state: TaskState::from_code(row.get(3)?)
            .ok_or_else(|| SiteError::Corrupt("a result is in no known state".to_owned()))?,
        heard: time(row.get(4)?),
        code: row.get(5)?,
        refusal: statement.and_then(|statement| statement.refusal),
        started: moment(6)?,
        finished: moment(7)?,
        output: output.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
    })
}

fn number_of(connection: &Connection, id: TaskId) -> Result<i64, SiteError> {
    let mut statement = connection.prepare_cached("SELECT number FROM task WHERE id = ?1")?;
    let number = statement.query_row([id.bytes()], |row| row.get(0)).optional()?;
    number.ok_or_else(|| SiteError::NotFound { what: "task", name: id.to_string() })
}

fn targets_of(connection: &Connection, number: i64) -> Result<RoaringBitmap, SiteError> {
    let mut statement = connection.prepare_cached("SELECT targets FROM task WHERE number = ?1")?;
    let bytes: Vec<u8> = statement.query_row([number], |row| row.get(0))?;
    read_set(&bytes)
}
