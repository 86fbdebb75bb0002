//! What is kept for how long, and its removal in small steps between more urgent things.

use bgb_protocol::ids::UnixMillis;
use bgb_protocol::state::TaskState;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::columns::{integer, millis};
use super::results::CountChanges;
use super::{STEP_ROWS, Step, Store};
use crate::error::SiteError;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Results that one step removes. Each may have 32 KiB of output, whose pages are read to be freed: 10,000 of 20 KB take 0.8 s, and an order
/// that comes meanwhile waits. So many of the longest take some 40 ms.
const RESULTS_PER_STEP: usize = 200;

/// Rows of the other tables that one step removes, a tenth of what is written in one: each leaves several indexes.
const OTHERS_PER_STEP: usize = STEP_ROWS / 10;

/// How long what is over is kept, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Tasks with their results, after they were closed.
    pub tasks_ms: u64,
    /// Status messages.
    pub status_ms: u64,
    /// How far files were taken in. An older file that comes again is taken in again, and changes nothing that it should not.
    pub files_ms: u64,
}

impl Default for Retention {
    /// Tasks for 90 days and messages for 30, as administrators of the original are used to; files for a week, well beyond the
    /// 48 hours that ingested ones are kept.
    fn default() -> Self {
        Self { tasks_ms: 90 * DAY_MS, status_ms: 30 * DAY_MS, files_ms: 7 * DAY_MS }
    }
}

impl Store {
    /// Removes a step of what is older than it is kept.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn sweep_history(&mut self, retention: &Retention, now: UnixMillis) -> Result<Step, SiteError> {
        let before = |kept: u64| millis(UnixMillis(now.0.saturating_sub(kept)));
        let step = self.write(|connection| {
            let mut removed = remove_task(connection, before(retention.tasks_ms))?;
            let old = [
                (
                    "DELETE FROM status_message WHERE id IN \
                     (SELECT id FROM status_message WHERE time < ?1 ORDER BY time LIMIT ?2)",
                    retention.status_ms,
                ),
                (
                    "DELETE FROM file_seen WHERE (server, counter, nonce, kind, sequence) IN (SELECT server, counter, nonce, \
                     kind, sequence FROM file_seen WHERE seen < ?1 ORDER BY seen LIMIT ?2)",
                    retention.files_ms,
                ),
            ];
            for (sql, kept) in old {
                let room = OTHERS_PER_STEP.saturating_sub(removed);
                removed += connection.prepare_cached(sql)?.execute(params![before(kept), integer(room as u64)])?;
            }
            Ok(Step { changed: removed as u64, more: removed > 0 })
        })?;
        self.tasks.forget();
        Ok(step)
    }
}

/// Removes results of the oldest task that is due, and the task itself once none is left.
fn remove_task(connection: &Connection, before: i64) -> Result<usize, SiteError> {
    let sql = "SELECT number FROM task WHERE closed = 1 AND closes < ?1 ORDER BY closes LIMIT 1";
    let due: Option<i64> =
        connection.prepare_cached(sql)?.query_row([before], |row| row.get(0)).optional()?;
    let Some(task) = due else { return Ok(0) };
    let limit = integer(RESULTS_PER_STEP as u64);
    let sql = "DELETE FROM result WHERE task = ?1 AND device IN \
        (SELECT device FROM result WHERE task = ?1 ORDER BY device LIMIT ?2) RETURNING state";
    let mut statement = connection.prepare_cached(sql)?;
    let states =
        statement.query_map([task, limit], |row| row.get::<_, u8>(0))?.collect::<Result<Vec<_>, _>>()?;
    let removed = states.len();
    if removed == RESULTS_PER_STEP {
        let mut changes = CountChanges::default();
        for state in states.into_iter().filter_map(TaskState::from_code) {
            changes.add(task, state, -1);
        }
        changes.write(connection)?;
        return Ok(removed);
    }
    connection.prepare_cached("DELETE FROM task_count WHERE task = ?1")?.execute([task])?;
    connection.prepare_cached("DELETE FROM task WHERE number = ?1")?.execute([task])?;
    Ok(removed + 1)
}
