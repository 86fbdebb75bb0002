//! What the former database has and the copy does not, so that somebody can order it again.
//!
//! It only reads. What makes the most difference comes by name: blocks and cancels, which a device must not go without.

use bgb_protocol::ids::TaskId;
use rusqlite::{Connection, OptionalExtension as _};

use crate::error::SiteError;
use crate::store::columns::unsigned;

/// Blocks that are named: whoever has blocked more than that since the copy was made has a list of their own.
const BLOCKS_MAX: usize = 1_000;

/// What is lost by a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Devices that were blocked since, and that the copy has as active; 1,000 names at the most.
    pub blocks: Vec<String>,
    /// Tasks that were cancelled since, and that the copy has as active.
    pub cancels: Vec<TaskId>,
    /// How many tasks were started since.
    pub tasks: u64,
    /// How many devices were added since.
    pub devices: u64,
}

/// Compares the two.
pub(super) fn compare(former: &Connection, copy: &Connection) -> Result<Lost, SiteError> {
    let mut lost = Lost::default();
    let mut state = copy.prepare("SELECT state FROM device WHERE number = ?1")?;
    let mut blocked = former.prepare("SELECT number, name FROM device WHERE state = 3 AND state <> 2")?;
    let mut rows = blocked.query([])?;
    while let Some(row) = rows.next()? {
        let (number, name): (i64, String) = (row.get(0)?, row.get(1)?);
        let state: Option<i64> = state.query_row([number], |row| row.get(0)).optional()?;
        if state == Some(2) && lost.blocks.len() < BLOCKS_MAX {
            lost.blocks.push(name);
        }
    }
    let mut phase = copy.prepare("SELECT phase FROM task WHERE id = ?1")?;
    let mut tasks = former.prepare("SELECT id, phase FROM task ORDER BY number")?;
    let mut rows = tasks.query([])?;
    while let Some(row) = rows.next()? {
        let (id, now): ([u8; 16], i64) = (row.get(0)?, row.get(1)?);
        let then: Option<i64> = phase.query_row([id], |row| row.get(0)).optional()?;
        match then {
            None => lost.tasks += 1,
            Some(1) if now == 3 => lost.cancels.push(TaskId::from_bytes(id)),
            Some(_) => {}
        }
    }
    // Numbers only rise: those from the copy's next one on were given since.
    let next: i64 = copy.query_row("SELECT device_next FROM site", [], |row| row.get(0))?;
    let since =
        former.query_row("SELECT count(*) FROM device WHERE number >= ?1", [next], |row| row.get(0))?;
    lost.devices = unsigned(since);
    Ok(lost)
}
