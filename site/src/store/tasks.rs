//! Tasks: starting, cancelling, expiring. Starting one writes the task, its target set and its queue rows, and no row per target.
//!
//! ```text
//! active --(validity over)--> expired
//!    \----(an administrator)--> cancelled
//! ```
//!
//! 24 hours after the expiry and the action's limit, a task is closed: received and running have become no answer.

mod life;
mod pages;

use std::collections::HashMap;
use std::sync::Arc;

use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::codec::CodecError;
use bgb_protocol::ids::{SiteCode, TaskId, UnixMillis};
use bgb_protocol::queue::QueueItem;
use bgb_protocol::signature::ENVELOPE_BYTES_MAX;
use bgb_protocol::status::StatusId;
use bgb_protocol::target_set::{TargetDigest, TargetSet};
use bgb_protocol::task::{SignedTask, TaskStatement, VALIDITY_MS_MAX, VALIDITY_MS_MIN};
use roaring::RoaringBitmap;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::columns::{integer, millis, read_set, set_bytes, unsigned};
use super::queue::{self, Draft};
use super::status::say;
use super::targets::Targets;
use super::{Queries, Store};
use crate::error::SiteError;

pub use life::TaskPhase;
pub use pages::{ResultFilter, ResultPageRow, TaskCounts, TaskRow, UnansweredDevice};

#[cfg(test)]
pub(super) use pages::{RESULTS_OF_STATE, RESULTS_PAGE, RESULTS_SUCCEEDED, TASKS_PAGE};

/// Most tasks that are active at a time: what a hub looks through at each sign-in.
pub const TASKS_ACTIVE_MAX: u64 = 1_000;

/// Most tasks whose validity is not over, cancelled ones with them: servers hold a cancel until then, and two for each task that may be
/// active.
const TASKS_UNEXPIRED_MAX: u64 = 2 * TASKS_ACTIVE_MAX;

/// How much earlier than now a task may say that it begins: an administrator's command takes a moment.
const START_PAST_MS: u64 = 60 * 1000;

/// How long after expiry and the action's limit a device may still answer.
const ANSWER_GRACE_MS: u64 = 24 * 60 * 60 * 1000;

/// Tasks whose facts are kept at hand while results come in.
const CACHED_TASKS_MAX: usize = 64;

/// A task that is to be started.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Its id: a UUID of version 7, drawn by the caller.
    pub id: TaskId,
    /// What is to be done.
    pub action: Action,
    /// What the action needs to know.
    pub parameters: Parameters,
    /// Who is meant.
    pub targets: Targets,
    /// The root of the digest that the administrator was shown; when it is given, a set that has changed since is refused.
    pub expected: Option<[u8; 32]>,
    /// When the validity begins: now, or within the next 7 days.
    pub not_before: UnixMillis,
    /// How long it lasts, in milliseconds: 1 minute to 7 days.
    pub validity_ms: u64,
    /// Who asks.
    pub by: String,
}

/// A task that has been started: from here on it survives any crash.
#[derive(Clone, Debug)]
pub struct StartedTask {
    /// Its id.
    pub id: TaskId,
    /// The devices that are asked.
    pub targets: u64,
    /// Those of them that are online.
    pub online: u64,
    /// Those that were meant and left out, since they are blocked or have not joined yet.
    pub left_out: u64,
    /// What the signature covers of them.
    pub digest: TargetDigest,
    /// The end of the validity.
    pub expires: UnixMillis,
}

/// What does not change of a task: what results are judged by.
#[derive(Debug)]
pub(super) struct TaskFacts {
    pub(super) number: i64,
    pub(super) targets: RoaringBitmap,
    pub(super) repeatable: bool,
    pub(super) action: Option<Action>,
    pub(super) closed: bool,
}

/// Facts of the tasks that results came for last.
#[derive(Debug, Default)]
pub(super) struct TaskCache(HashMap<TaskId, Arc<TaskFacts>>);

impl Store {
    /// Starts a task: task, target set and queue rows in one transaction. `sign` signs the statement that is stored.
    ///
    /// # Errors
    /// Nobody is meant, the set is not the one expected, validity or parameters are outside their bounds, the limit of active
    /// tasks is reached, or the database cannot be written. Then nothing has happened.
    pub fn start_task(
        &mut self,
        new: &NewTask,
        now: UnixMillis,
        sign: impl FnOnce(TaskStatement) -> SignedTask,
    ) -> Result<StartedTask, SiteError> {
        new.check(now)?;
        let (site, everywhere) = (self.code, &self.online);
        super::write(&self.connection, |connection| {
            let queries = Queries { connection };
            refuse_one_too_many(connection, now)?;
            let (set, left_out) = queries.target_set(&new.targets)?;
            let digest = set.digest();
            let targets = set.devices().len();
            if new.expected.is_some_and(|expected| expected != digest.root) {
                return Err(SiteError::TargetsChanged { found: targets });
            }
            let signed = sign(new.statement(site, digest));
            if signed.bytes().len() > ENVELOPE_BYTES_MAX {
                let (found, limit) = (signed.bytes().len(), ENVELOPE_BYTES_MAX);
                return Err(CodecError::Limit { what: "a signed task, in bytes", found, limit }.into());
            }
            insert(connection, new, &set, &signed, now)?;
            push(connection, new, &set, &signed)?;
            let online = everywhere.intersection_len(set.devices());
            let text = format!(
                "{} started {} for {}: {targets} devices, {online} of them online.",
                new.by,
                new.action,
                new.targets.describe()
            );
            say(connection, StatusId::TaskStarted, now, format!("task {}", new.id), text)?;
            Ok(StartedTask { id: new.id, targets, online, left_out, digest, expires: new.expires() })
        })
    }
}

impl NewTask {
    fn check(&self, now: UnixMillis) -> Result<(), SiteError> {
        self.parameters.check()?;
        if !(VALIDITY_MS_MIN..=VALIDITY_MS_MAX).contains(&self.validity_ms) {
            return Err(SiteError::Validity(self.validity_ms));
        }
        let soon = now.plus(VALIDITY_MS_MAX);
        if now.since(self.not_before) > START_PAST_MS || self.not_before > soon || self.expires() <= now {
            return Err(SiteError::Start);
        }
        Ok(())
    }

    fn expires(&self) -> UnixMillis {
        self.not_before.plus(self.validity_ms)
    }

    fn statement(&self, site: SiteCode, targets: TargetDigest) -> TaskStatement {
        TaskStatement {
            site,
            task: self.id,
            action: self.action.code(),
            parameters: self.parameters.clone(),
            targets,
            not_before: self.not_before,
            expires: self.expires(),
            approval: None,
        }
    }
}

impl TaskCache {
    /// The facts of a task; `None` when the site has no such task.
    pub(super) fn facts(
        &mut self,
        connection: &Connection,
        id: TaskId,
    ) -> Result<Option<Arc<TaskFacts>>, SiteError> {
        if let Some(facts) = self.0.get(&id) {
            return Ok(Some(Arc::clone(facts)));
        }
        let sql = "SELECT number, targets, action, closed FROM task WHERE id = ?1";
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?, row.get(2)?, row.get(3)?));
        let Some((number, targets, action, closed)) =
            connection.prepare_cached(sql)?.query_row([id.bytes()], read).optional()?
        else {
            return Ok(None);
        };
        let action = Action::from_code(action);
        let repeatable = action.is_some_and(Action::is_repeatable);
        let facts = Arc::new(TaskFacts { number, targets: read_set(&targets)?, repeatable, action, closed });
        if self.0.len() >= CACHED_TASKS_MAX {
            self.0.clear();
        }
        self.0.insert(id, Arc::clone(&facts));
        Ok(Some(facts))
    }

    /// After anything about tasks has changed.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

fn refuse_one_too_many(connection: &Connection, now: UnixMillis) -> Result<(), SiteError> {
    let sql = "SELECT count(*) FILTER (WHERE phase = 1), count(*) FROM task WHERE phase = 1 OR expires > ?1";
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let (active, unexpired): (i64, i64) = connection.prepare_cached(sql)?.query_row([millis(now)], read)?;
    if unsigned(active) >= TASKS_ACTIVE_MAX {
        let advice = "wait until some expire, or cancel some";
        return Err(SiteError::Limit { what: "active tasks", limit: TASKS_ACTIVE_MAX, advice });
    }
    if unsigned(unexpired) >= TASKS_UNEXPIRED_MAX {
        let (what, advice) =
            ("tasks that have not expired, cancelled ones with them", "wait until some expire");
        return Err(SiteError::Limit { what, limit: TASKS_UNEXPIRED_MAX, advice });
    }
    Ok(())
}

fn insert(
    connection: &Connection,
    new: &NewTask,
    set: &TargetSet,
    signed: &SignedTask,
    now: UnixMillis,
) -> Result<(), SiteError> {
    let limit_ms = u64::try_from(new.action.limit().as_millis()).unwrap_or(u64::MAX);
    let closes = new.expires().plus(limit_ms).plus(ANSWER_GRACE_MS);
    let parameters = bgb_protocol::codec::encode_versioned(&new.parameters);
    let digest = set.digest();
    let sql = "INSERT INTO task (id, action, parameters, signed, targets, target_count, root, blocks, audience, started_by, \
        created, not_before, expires, closes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
    connection
        .prepare_cached(sql)?
        .execute(params![
            new.id.bytes(),
            new.action.code(),
            parameters,
            signed.bytes().as_ref(),
            set_bytes(set.devices()),
            integer(set.devices().len()),
            digest.root,
            digest.blocks,
            new.targets.describe(),
            new.by,
            millis(now),
            millis(new.not_before),
            millis(new.expires()),
            millis(closes),
        ])
        .map_err(|error| super::devices::name_taken("task", &new.id.to_string(), error))?;
    Ok(())
}

/// The two queue rows of a plain task: its content, and one release of all.
fn push(
    connection: &Connection,
    new: &NewTask,
    set: &TargetSet,
    signed: &SignedTask,
) -> Result<(), SiteError> {
    let content = QueueItem::Task { signed: signed.bytes().to_vec(), targets: set_bytes(set.devices()) };
    let release = QueueItem::Release { task: new.id, devices: None, from: new.not_before };
    for item in [&content, &release] {
        queue::push(connection, &Draft { item, server: None, about: None, valid_until: new.expires() })?;
    }
    Ok(())
}
