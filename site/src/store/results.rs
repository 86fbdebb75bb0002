//! Results: what devices said of their tasks, a chunk of rows at a time.
//!
//! A chunk is one transaction: its rows, the counts that they change (added once per task and state), and how far their file is.
//! [`TaskState::gives_way_to`] says which word follows which, so that repeated and late rows change nothing that they should not.
//! A row counts only for a device that is a target of the task. Signatures are verified before rows come here.

use std::collections::BTreeMap;

use bgb_protocol::action::Action;
use bgb_protocol::file::results::ResultRow;
use bgb_protocol::ids::{DeviceId, TaskId, UnixMillis};
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::Signature;
use bgb_protocol::state::TaskState;
use bgb_protocol::status::StatusId;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, params};

use super::columns::millis;
use super::files::{self, FilePlace};
use super::status::say;
use super::tasks::TaskFacts;
use super::{Store, begin, servers};
use crate::error::SiteError;

/// How many rows of a kind a status message names.
const NAMED_IN_STATUS: usize = 5;

/// A row of which everything is known to be true: a hint, or a final word whose signature holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedRow {
    /// The task.
    pub task: TaskId,
    /// The device.
    pub device: DeviceId,
    /// When its server heard it.
    pub heard: UnixMillis,
    /// How far it has come.
    pub state: TaskState,
    /// The rest of a final word; `None` for a hint.
    pub word: Option<FinalWord>,
}

/// A final word and its receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalWord {
    /// What the action returned.
    pub code: i32,
    /// When it began, by the agent's time.
    pub started: UnixMillis,
    /// When it was over, by the agent's time.
    pub finished: UnixMillis,
    /// What the action said.
    pub output: Vec<u8>,
    /// The signed bytes.
    pub statement: Vec<u8>,
    /// By the device's key.
    pub signature: Signature,
}

/// A device's second last word that differs from its first, which stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DifferingResult {
    /// The task.
    pub task: TaskId,
    /// The device.
    pub device: DeviceId,
    /// The state that stands.
    pub stands: TaskState,
    /// The state that was said later, or heard later.
    pub differs: TaskState,
}

/// What a chunk did. The status messages about what is wrong in it have been written with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResultsOutcome {
    /// The file was this far already; nothing was looked at.
    pub repeated: bool,
    /// Rows that are new.
    pub inserted: u64,
    /// Rows that took the place of an earlier state.
    pub advanced: u64,
    /// Rows that said nothing new.
    pub unchanged: u64,
    /// Second last words that differ.
    pub differing: Vec<DifferingResult>,
    /// Rows for tasks that the site does not have.
    pub unknown_tasks: Vec<(TaskId, DeviceId)>,
    /// Rows of devices that are not among the task's targets, or not the site's.
    pub not_targets: Vec<(TaskId, DeviceId)>,
}

/// Changes of counts, gathered over a chunk and written once.
#[derive(Debug, Default)]
pub(super) struct CountChanges(BTreeMap<(i64, u8), i64>);

impl VerifiedRow {
    /// A hint; `None` when the row is a final word, which has to be verified first.
    #[must_use]
    pub fn hint(row: &ResultRow) -> Option<Self> {
        let state = row.hint()?;
        Some(Self { task: row.task, device: row.device, heard: row.heard, state, word: None })
    }

    /// A final word whose statement was read and whose signature was verified by the caller. Task, device and state are those
    /// that were signed.
    #[must_use]
    pub fn of_final(heard: UnixMillis, statement: &ResultStatement, signed: SignedResult) -> Self {
        let SignedResult { statement: bytes, signature, output } = signed;
        let ResultStatement { task, device, state, code, started, finished, .. } = *statement;
        let word = FinalWord { code, started, finished, output, statement: bytes, signature };
        Self { task, device, heard, state, word: Some(word) }
    }
}

impl Store {
    /// Takes in a chunk of rows (20,000 at most, in the order of task and device for speed) and keeps the file's place.
    ///
    /// # Errors
    /// [`SiteError::Limit`] for a longer chunk, or that the database cannot be written; then nothing of it is done.
    pub fn apply_results(
        &mut self,
        rows: &[VerifiedRow],
        place: &FilePlace,
        now: UnixMillis,
    ) -> Result<ResultsOutcome, SiteError> {
        super::check_chunk(rows.len())?;
        let transaction = begin(&self.connection)?;
        servers::touch(&transaction, place.server, now)?;
        let mut outcome = ResultsOutcome::default();
        if files::is_done(&transaction, place)? {
            outcome.repeated = true;
        } else {
            let mut writer = ResultWriter::new(&transaction)?;
            let mut last: Option<(TaskId, Option<std::sync::Arc<TaskFacts>>)> = None;
            for row in rows {
                if last.as_ref().is_none_or(|(task, _)| *task != row.task) {
                    last = Some((row.task, self.tasks.facts(&transaction, row.task)?));
                }
                let facts = last.as_ref().and_then(|(_, facts)| facts.as_deref());
                writer.apply(row, facts, &mut outcome)?;
            }
            writer.changes.write(&transaction)?;
            drop(writer);
            outcome.say(&transaction, now)?;
            files::set_place(&transaction, place, None, now)?;
        }
        transaction.commit()?;
        Ok(outcome)
    }
}

/// The statements of a chunk, and what they have changed so far.
struct ResultWriter<'a> {
    changes: CountChanges,
    find: CachedStatement<'a>,
    insert: CachedStatement<'a>,
    update: CachedStatement<'a>,
    statement: CachedStatement<'a>,
    inventory: CachedStatement<'a>,
}

impl<'a> ResultWriter<'a> {
    fn new(connection: &'a Connection) -> Result<Self, SiteError> {
        Ok(Self {
            changes: CountChanges::default(),
            find: connection.prepare_cached("SELECT state FROM result WHERE task = ?1 AND device = ?2")?,
            insert: connection.prepare_cached(
                "INSERT INTO result (task, device, state, heard, code, started, finished, output, statement, signature, key) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?,
            update: connection.prepare_cached(
                "UPDATE result SET state = ?3, heard = ?4, code = ?5, started = ?6, finished = ?7, output = ?8, statement = ?9, \
                 signature = ?10, key = ?11 WHERE task = ?1 AND device = ?2",
            )?,
            statement: connection.prepare_cached("SELECT statement FROM result WHERE task = ?1 AND device = ?2")?,
            inventory: connection.prepare_cached(
                "INSERT INTO inventory (device, collected, document) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET \
                 collected = excluded.collected, document = excluded.document WHERE excluded.collected >= collected",
            )?,
        })
    }

    fn apply(
        &mut self,
        row: &VerifiedRow,
        facts: Option<&TaskFacts>,
        outcome: &mut ResultsOutcome,
    ) -> Result<(), SiteError> {
        let Some(facts) = facts else {
            outcome.unknown_tasks.push((row.task, row.device));
            return Ok(());
        };
        if !facts.targets.contains(row.device.0) {
            outcome.not_targets.push((row.task, row.device));
            return Ok(());
        }
        let before: Option<u8> =
            self.find.query_row(params![facts.number, row.device.0], |row| row.get(0)).optional()?;
        let Some(before) = before else {
            let state = first_state(row.state, facts);
            write(&mut self.insert, facts.number, row, state)?;
            self.changes.add(facts.number, state, 1);
            outcome.inserted += 1;
            return self.keep_inventory(row, facts);
        };
        let before = TaskState::from_code(before)
            .ok_or_else(|| SiteError::Corrupt("a result is in no known state".to_owned()))?;
        if before.gives_way_to(row.state, facts.repeatable) {
            write(&mut self.update, facts.number, row, row.state)?;
            self.changes.add(facts.number, before, -1);
            self.changes.add(facts.number, row.state, 1);
            outcome.advanced += 1;
            return self.keep_inventory(row, facts);
        }
        outcome.unchanged += 1;
        // That an action was interrupted comes before its real end where it is begun again: a late row then, not a second word.
        let preceded = row.state == TaskState::Interrupted && facts.repeatable;
        if before.is_final() && row.state.is_final() && !preceded && self.differs(row, facts.number)? {
            let (stands, differs) = (before, row.state);
            outcome.differing.push(DifferingResult { task: row.task, device: row.device, stands, differs });
        }
        Ok(())
    }

    /// Whether another last word stands than the row's.
    fn differs(&mut self, row: &VerifiedRow, number: i64) -> Result<bool, SiteError> {
        let Some(word) = &row.word else { return Ok(false) };
        let stands: Option<Vec<u8>> =
            self.statement.query_row(params![number, row.device.0], |row| row.get(0))?;
        Ok(stands.as_ref() != Some(&word.statement))
    }

    fn keep_inventory(&mut self, row: &VerifiedRow, facts: &TaskFacts) -> Result<(), SiteError> {
        let (Some(Action::CollectInventory), TaskState::Succeeded, Some(word)) =
            (facts.action, row.state, &row.word)
        else {
            return Ok(());
        };
        // An output that was cut, or is none, counts as the device's word all the same; it is no inventory. Read as those read it who
        // show it, and written anew: what is too deep, or has numbers and characters that cannot be, is in nobody's way.
        let Ok(document) = serde_json::from_slice::<serde_json::Value>(&word.output) else {
            return Ok(());
        };
        self.inventory.execute(params![row.device.0, millis(word.finished), document.to_string()])?;
        Ok(())
    }
}

/// A hint that comes after its task was closed is no answer from the beginning.
fn first_state(said: TaskState, facts: &TaskFacts) -> TaskState {
    if facts.closed && !said.is_final() { TaskState::NoAnswer } else { said }
}

fn write(
    statement: &mut CachedStatement<'_>,
    number: i64,
    row: &VerifiedRow,
    state: TaskState,
) -> Result<(), SiteError> {
    let word = row.word.as_ref();
    statement.execute(params![
        number,
        row.device.0,
        state.code(),
        millis(row.heard),
        word.map(|word| word.code),
        word.map(|word| millis(word.started)),
        word.map(|word| millis(word.finished)),
        word.map(|word| word.output.as_slice()),
        word.map(|word| word.statement.as_slice()),
        word.map(|word| word.signature.bytes.as_slice()),
        word.map(|word| word.signature.key.0),
    ])?;
    Ok(())
}

impl CountChanges {
    /// `n` more devices of the task in this state; fewer, when it is negative.
    pub(super) fn add(&mut self, task: i64, state: TaskState, n: i64) {
        *self.0.entry((task, state.code())).or_default() += n;
    }

    /// Adds what was gathered to the table.
    pub(super) fn write(&self, connection: &Connection) -> Result<(), SiteError> {
        // An insert that subtracts would fail its CHECK before it could become an update.
        let mut add = connection.prepare_cached(
            "INSERT INTO task_count (task, state, n) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET n = n + excluded.n",
        )?;
        let mut subtract =
            connection.prepare_cached("UPDATE task_count SET n = n + ?3 WHERE task = ?1 AND state = ?2")?;
        for ((task, state), n) in self.0.iter().filter(|(_, n)| **n != 0) {
            let statement = if *n > 0 { &mut add } else { &mut subtract };
            statement.execute(params![task, state, n])?;
        }
        Ok(())
    }
}

impl ResultsOutcome {
    /// Writes a status message for each kind of row that is not as it should be.
    fn say(&self, connection: &Connection, now: UnixMillis) -> Result<(), SiteError> {
        if !self.differing.is_empty() {
            let list = list(&self.differing, |row| {
                format!("device {} on task {} ({}, then {})", row.device, row.task, row.stands, row.differs)
            });
            let text = format!(
                "{} second results differ from the first, which stand: {list}.",
                self.differing.len()
            );
            say(connection, StatusId::ResultDiffers, now, "", text)?;
        }
        let unknown = self.unknown_tasks.len() + self.not_targets.len();
        if unknown > 0 {
            let rows: Vec<_> = self.unknown_tasks.iter().chain(&self.not_targets).collect();
            let list = list(&rows, |(task, device)| format!("device {device} on task {task}"));
            let text = format!(
                "{unknown} results were not counted: {} for tasks that this site does not have, {} of devices that were not \
                 asked: {list}.",
                self.unknown_tasks.len(),
                self.not_targets.len()
            );
            say(connection, StatusId::ResultUnknown, now, "", text)?;
        }
        Ok(())
    }
}

fn list<T>(rows: &[T], describe: impl Fn(&T) -> String) -> String {
    let mut parts: Vec<_> = rows.iter().take(NAMED_IN_STATUS).map(describe).collect();
    if rows.len() > NAMED_IN_STATUS {
        parts.push("…".to_owned());
    }
    parts.join("; ")
}
