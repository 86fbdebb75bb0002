//! `bgb site check`: proves that what is kept twice agrees, and that the file is whole.
//!
//! It reads only, as of one moment, also while a manager runs. A finding is a sentence; a site in order has none.

use std::path::Path;

use bgb_protocol::queue::{QueueItem, read_bitmap};
use roaring::RoaringBitmap;
use rusqlite::{Connection, Row};

use crate::connection;
use crate::error::SiteError;
use crate::queue_reader;

/// Findings of one kind that are listed; more are only counted.
const FINDINGS_PER_KIND_MAX: usize = 20;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What was looked at, for people: `3 tasks with 15 results`.
    pub checked: Vec<String>,
    /// What is not as it should be; empty when all is in order.
    pub findings: Vec<Finding>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which check found it.
    pub check: &'static str,
    /// What it found, in a sentence.
    pub text: String,
}

/// One check: what it finds goes into the report.
type Check = fn(&Connection, &mut CheckReport) -> Result<(), SiteError>;

/// Checks the database at `path`.
///
/// # Errors
/// When it cannot be opened or read at all; a damaged file that can be opened is a finding.
pub fn check(path: &Path) -> Result<CheckReport, SiteError> {
    let connection = connection::open_read_only(path)?;
    let transaction = connection.unchecked_transaction()?;
    let mut report = CheckReport::default();
    let checks: [Check; 7] = [integrity, foreign_keys, counts, targets, memberships, queue, presence];
    for check in checks {
        match check(&transaction, &mut report) {
            Err(SiteError::Corrupt(text)) => report.find("file", text),
            other => other?,
        }
    }
    Ok(report)
}

impl CheckReport {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    fn find(&mut self, check: &'static str, text: impl Into<String>) {
        self.findings.push(Finding { check, text: text.into() });
    }

    /// Keeps the first findings of a kind and the number of the rest.
    fn find_all(&mut self, check: &'static str, texts: Vec<String>) {
        let more = texts.len().saturating_sub(FINDINGS_PER_KIND_MAX);
        for text in texts.into_iter().take(FINDINGS_PER_KIND_MAX) {
            self.find(check, text);
        }
        if more > 0 {
            self.find(check, format!("{more} more of this kind"));
        }
    }
}

/// The texts that a query yields, one column each row.
fn texts(connection: &Connection, sql: &str) -> Result<Vec<String>, SiteError> {
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn number(connection: &Connection, sql: &str) -> Result<i64, SiteError> {
    Ok(connection.query_row(sql, [], |row| row.get(0))?)
}

fn integrity(connection: &Connection, report: &mut CheckReport) -> Result<(), SiteError> {
    let said = texts(connection, "PRAGMA integrity_check(20)")?;
    if said != ["ok"] {
        report.find_all("file", said);
    }
    let pages = number(connection, "PRAGMA page_count")?;
    report.checked.push(format!("{pages} pages of the file"));
    Ok(())
}

fn foreign_keys(connection: &Connection, report: &mut CheckReport) -> Result<(), SiteError> {
    let mut statement = connection.prepare("PRAGMA foreign_key_check")?;
    let read = |row: &Row<'_>| {
        let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
        Ok(format!("a row of {table} names a row of {parent} that is not there"))
    };
    let broken = statement.query_map([], read)?.collect::<Result<Vec<_>, _>>()?;
    report.find_all("references", broken);
    Ok(())
}

/// Counts against rows, and that no task has more rows than targets.
fn counts(connection: &Connection, report: &mut CheckReport) -> Result<(), SiteError> {
    let differing = texts(
        connection,
        "WITH counted AS (SELECT task, state, count(*) AS n FROM result GROUP BY task, state), \
         kept AS (SELECT task, state, n FROM task_count WHERE n > 0) \
         SELECT 'task ' || lower(hex(id)) || ': ' || ifnull(kept.n, 0) || ' are counted in state ' || counted.state || ', ' || \
         counted.n || ' rows are' FROM counted LEFT JOIN kept USING (task, state) JOIN task ON task.number = counted.task \
         WHERE counted.n IS NOT kept.n \
         UNION ALL SELECT 'task ' || lower(hex(id)) || ': ' || kept.n || ' are counted in state ' || kept.state || ', no rows are' \
         FROM kept LEFT JOIN counted USING (task, state) JOIN task ON task.number = kept.task WHERE counted.n IS NULL",
    )?;
    report.find_all("counts", differing);
    let exceeding = texts(
        connection,
        "SELECT 'task ' || lower(hex(id)) || ': ' || heard || ' of ' || target_count || ' targets are counted' FROM task JOIN \
         (SELECT task, sum(n) AS heard FROM task_count GROUP BY task) ON task = number WHERE heard > target_count",
    )?;
    report.find_all("counts", exceeding);
    let (tasks, results) = (
        number(connection, "SELECT count(*) FROM task")?,
        number(connection, "SELECT count(*) FROM result")?,
    );
    report.checked.push(format!("{tasks} tasks with {results} results"));
    Ok(())
}

/// Target sets against their counts, and results against target sets.
fn targets(connection: &Connection, report: &mut CheckReport) -> Result<(), SiteError> {
    let mut statement =
        connection.prepare("SELECT number, lower(hex(id)), targets, target_count FROM task")?;
    let mut rows = statement.query([])?;
    let mut findings = Vec::new();
    while let Some(row) = rows.next()? {
        let (number, id, bytes, count): (i64, String, Vec<u8>, i64) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        let Ok(set) = read_bitmap(&bytes) else {
            findings.push(format!("task {id}: its target set cannot be read"));
            continue;
        };
        if i64::try_from(set.len()) != Ok(count) {
            findings
                .push(format!("task {id}: its target set has {} devices, {count} are counted", set.len()));
        }
        let strangers = devices(connection, "SELECT device FROM result WHERE task = ?1", number)? - set;
        if !strangers.is_empty() {
            findings
                .push(format!("task {id}: {} results are of devices that are no targets", strangers.len()));
        }
    }
    report.find_all("targets", findings);
    Ok(())
}

/// Membership bitmaps against their rows.
fn memberships(connection: &Connection, report: &mut CheckReport) -> Result<(), SiteError> {
    let mut statement = connection.prepare("SELECT id, name, members, member_count FROM collection")?;
    let mut rows = statement.query([])?;
    let (mut findings, mut collections) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let (id, name, bytes, count): (i64, String, Vec<u8>, i64) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        collections += 1;
        let Ok(set) = read_bitmap(&bytes) else {
            findings.push(format!("collection {name}: its set of members cannot be read"));
            continue;
        };
        let members = devices(connection, "SELECT device FROM membership WHERE collection = ?1", id)?;
        if set != members {
            let (set, rows) = (set.len(), members.len());
            findings
                .push(format!("collection {name}: its set of {set} members is not that of its {rows} rows"));
        }
        if i64::try_from(members.len()) != Ok(count) {
            findings.push(format!(
                "collection {name}: {count} members are counted, {} rows are there",
                members.len()
            ));
        }
    }
    report.find_all("memberships", findings);
    report.checked.push(format!("{collections} collections"));
    Ok(())
}

/// Sequences within what was drawn, and rows that can be read.
fn queue(connection: &Connection, report: &mut CheckReport) -> Result<(), SiteError> {
    let highest = queue_reader::highest_sequence(connection)?;
    let mut statement = connection.prepare("SELECT sequence, kind, payload FROM queue ORDER BY sequence")?;
    let mut rows = statement.query([])?;
    let (mut findings, mut count) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let (sequence, kind, payload): (i64, String, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        count += 1;
        if u64::try_from(sequence).is_ok_and(|sequence| sequence > highest) || sequence <= 0 {
            findings.push(format!("queue row {sequence} was never drawn: the highest is {highest}"));
        }
        match QueueItem::decode(&payload) {
            Ok(item) if item.kind() == kind => {}
            Ok(item) => {
                findings.push(format!("queue row {sequence} is called {kind} and is a {}", item.kind()));
            }
            Err(error) => findings.push(format!("queue row {sequence} cannot be read: {error}")),
        }
    }
    report.find_all("queue", findings);
    report.checked.push(format!("{count} queue rows, {highest} drawn"));
    Ok(())
}

/// Presence columns that belong together, and device numbers within what was drawn.
fn presence(connection: &Connection, report: &mut CheckReport) -> Result<(), SiteError> {
    let findings = texts(
        connection,
        "SELECT 'device ' || number || ' is online or unknown, and no session or server of it is kept' FROM device \
         WHERE presence IN (1, 3) AND (session IS NULL OR server IS NULL OR length(boots) = 0) \
         UNION ALL SELECT 'device ' || number || ' has a number that was never drawn' FROM device \
         WHERE number >= (SELECT device_next FROM site)",
    )?;
    report.find_all("devices", findings);
    let sql = "SELECT passed_over, passed_over_count FROM site";
    let (set, count): (Option<Vec<u8>>, i64) =
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    match set.map_or(Ok(RoaringBitmap::new()), |set| read_bitmap(&set)) {
        Ok(set) if i64::try_from(set.len()) == Ok(count) => {}
        Ok(set) => {
            let passed_over = set.len();
            report.find("devices", format!("{passed_over} numbers were passed over, {count} are counted"));
        }
        Err(_) => report.find("devices", "the set of numbers that were passed over cannot be read"),
    }
    report.checked.push(format!("{} devices", number(connection, "SELECT count(*) FROM device")?));
    Ok(())
}

fn devices(connection: &Connection, sql: &str, of: i64) -> Result<RoaringBitmap, SiteError> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([of], |row| row.get::<_, u32>(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests;
