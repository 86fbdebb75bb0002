//! Policy documents: what is assigned to whom, signed and sent down.
//!
//! A document has a name, and one version of it is in force. Putting it again, and every change of its collection's members, makes a
//! new version: the signature covers the set that it is for. Its queue row stays until the next version takes its place. When its
//! collection has no member left, that next version withdraws it from those who have it.

use bgb_protocol::codec::CodecError;
use bgb_protocol::ids::{SiteCode, UnixMillis};
use bgb_protocol::policy::{
    DOCUMENTS_PER_DEVICE_MAX, PolicyScope, PolicySettings, PolicyStatement, SignedPolicy, is_policy_name,
};
use bgb_protocol::queue::{Bitmap, QueueItem};
use bgb_protocol::signature::ENVELOPE_BYTES_MAX;
use bgb_protocol::status::StatusId;
use bgb_protocol::target_set::TargetSet;
use roaring::RoaringBitmap;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::collections::members_of;
use super::columns::{integer, millis, time, unsigned};
use super::queue::{self, Draft, FOR_EVER};
use super::status::say;
use super::{Queries, Store};
use crate::error::SiteError;

/// How long servers are told that a document is withdrawn: one that was down longer has no older version of it.
const WITHDRAWN_VALID_MS: u64 = 24 * 60 * 60 * 1000;

/// Who a document is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyAudience {
    /// Every device, now and later.
    Everyone,
    /// The members of a collection, whoever they are at the time.
    Collection(String),
}

/// A document that is to be in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutPolicy {
    /// Its name; a document of this name is replaced.
    pub name: String,
    /// Higher wins.
    pub priority: i32,
    /// Who it is for.
    pub audience: PolicyAudience,
    /// What it sets.
    pub settings: PolicySettings,
}

/// A document as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRow {
    /// Its name.
    pub name: String,
    /// Its version; counts over all documents of the site.
    pub version: u64,
    /// Higher wins.
    pub priority: i32,
    /// Who it is for.
    pub audience: PolicyAudience,
    /// What it sets: JSON text.
    pub settings: String,
    /// When this version was issued.
    pub issued: UnixMillis,
}

/// A document on its way to a new version.
struct Issue<'a> {
    id: i64,
    name: &'a str,
    priority: i32,
    /// `None` for everyone.
    members: Option<&'a RoaringBitmap>,
    /// `None` to withdraw it.
    settings: Option<String>,
}

impl Store {
    /// Puts a document in force, in place of one of the same name; says its version. `sign` signs the statement that is stored.
    ///
    /// # Errors
    /// A name or settings that cannot be, a collection that is not there, [`SiteError::Limit`], or that the database cannot be
    /// written.
    pub fn put_policy(
        &mut self,
        put: &PutPolicy,
        now: UnixMillis,
        sign: impl FnOnce(PolicyStatement) -> SignedPolicy,
    ) -> Result<u64, SiteError> {
        if !is_policy_name(&put.name) {
            let rule = "it has 1 to 64 letters, digits, blanks and -_.";
            return Err(SiteError::BadName {
                what: "policy",
                name: put.name.chars().take(100).collect(),
                rule,
            });
        }
        let settings = put.settings.to_json();
        PolicySettings::parse(&settings)?;
        let code = self.code;
        self.write(|connection| {
            let collection = match &put.audience {
                PolicyAudience::Everyone => None,
                PolicyAudience::Collection(name) => Some(members_of(connection, name)?),
            };
            let sql = "INSERT INTO policy (name, version, priority, collection, settings, issued) VALUES (?1, 0, ?2, ?3, ?4, ?5) \
                ON CONFLICT (name) DO UPDATE SET priority = excluded.priority, collection = excluded.collection, \
                settings = excluded.settings RETURNING id, name";
            let values =
                params![put.name, put.priority, collection.as_ref().map(|found| found.0), settings, millis(now)];
            let (id, name): (i64, String) =
                connection.prepare_cached(sql)?.query_row(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
            refuse_one_too_many(connection)?;
            let members = collection.as_ref().map(|found| &found.1);
            let issue = Issue { id, name: &name, priority: put.priority, members, settings: Some(settings) };
            issue.carry_out(connection, code, now, sign)
        })
    }

    /// Takes a document out of force.
    ///
    /// # Errors
    /// When there is none of this name, or the database cannot be written.
    pub fn withdraw_policy(
        &mut self,
        name: &str,
        now: UnixMillis,
        sign: impl FnOnce(PolicyStatement) -> SignedPolicy,
    ) -> Result<u64, SiteError> {
        let code = self.code;
        self.write(|connection| {
            let sql = "SELECT id, name, priority FROM policy WHERE name = ?1";
            let read = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?));
            let found = connection.prepare_cached(sql)?.query_row([name], read).optional()?;
            let (id, name, priority) =
                found.ok_or_else(|| SiteError::NotFound { what: "policy", name: name.to_owned() })?;
            let issue = Issue { id, name: &name, priority, members: None, settings: None };
            let version = issue.carry_out(connection, code, now, sign)?;
            connection.prepare_cached("DELETE FROM policy WHERE id = ?1")?.execute([id])?;
            Ok(version)
        })
    }
}

/// Gives a new version to a document whose own is 0, as a restore leaves them: agents, which never go back, may have later ones of
/// it. `None` when there is none.
pub(super) fn issue_restored(
    connection: &Connection,
    code: SiteCode,
    now: UnixMillis,
    sign: impl FnOnce(PolicyStatement) -> SignedPolicy,
) -> Result<Option<u64>, SiteError> {
    let sql = "SELECT policy.id, policy.name, priority, settings, collection.name FROM policy \
        LEFT JOIN collection ON collection.id = policy.collection WHERE version = 0 LIMIT 1";
    let read = |row: &Row<'_>| {
        Ok((
            row.get(0)?,
            row.get::<_, String>(1)?,
            row.get(2)?,
            row.get(3)?,
            row.get::<_, Option<String>>(4)?,
        ))
    };
    let found = connection.prepare_cached(sql)?.query_row([], read).optional()?;
    let Some((id, name, priority, settings, collection)) = found else { return Ok(None) };
    let members = collection.map(|name| members_of(connection, &name)).transpose()?.map(|found| found.1);
    let issue = Issue { id, name: &name, priority, members: members.as_ref(), settings: Some(settings) };
    issue.carry_out(connection, code, now, sign).map(Some)
}

impl Queries<'_> {
    /// The documents in force, those of the highest priority first. There are 64 at most.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn policies(&self) -> Result<Vec<PolicyRow>, SiteError> {
        let sql = "SELECT policy.name, version, priority, collection.name, settings, issued FROM policy \
            LEFT JOIN collection ON collection.id = policy.collection ORDER BY priority DESC, policy.name";
        let read = |row: &Row<'_>| {
            Ok(PolicyRow {
                name: row.get(0)?,
                version: unsigned(row.get(1)?),
                priority: row.get(2)?,
                audience: row
                    .get::<_, Option<String>>(3)?
                    .map_or(PolicyAudience::Everyone, PolicyAudience::Collection),
                settings: row.get(4)?,
                issued: time(row.get(5)?),
            })
        };
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_map([], read)?.collect::<Result<_, _>>()?)
    }
}

/// Issues the documents of a collection anew, after its members have changed.
pub(super) fn issue_for_collection(
    connection: &Connection,
    code: SiteCode,
    collection: i64,
    members: &RoaringBitmap,
    now: UnixMillis,
    mut sign: impl FnMut(PolicyStatement) -> SignedPolicy,
) -> Result<(), SiteError> {
    let sql = "SELECT id, name, priority, settings FROM policy WHERE collection = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?, row.get(3)?));
    let documents = statement.query_map([collection], read)?.collect::<Result<Vec<_>, _>>()?;
    for (id, name, priority, settings) in documents {
        let issue = Issue { id, name: &name, priority, members: Some(members), settings: Some(settings) };
        issue.carry_out(connection, code, now, &mut sign)?;
    }
    Ok(())
}

impl Issue<'_> {
    /// Draws a version, signs, and puts the queue row in place of the one before. A document whose set has become empty is withdrawn from
    /// those who have it, and stays the site's; where nobody has had it, nothing goes down.
    fn carry_out(
        self,
        connection: &Connection,
        site: SiteCode,
        now: UnixMillis,
        sign: impl FnOnce(PolicyStatement) -> SignedPolicy,
    ) -> Result<u64, SiteError> {
        let sql = "UPDATE site SET policy_version = policy_version + 1 RETURNING policy_version";
        let version = unsigned(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?);
        let set = self.members.map(|members| TargetSet::new(members.clone()));
        let fate = match (&self.settings, &set) {
            (None, _) => Fate::Withdrawn,
            (Some(_), Some(None)) if is_signed(connection, self.id)? => Fate::LeftByAll,
            (Some(_), Some(None)) => Fate::ForNobody,
            (Some(_), _) => Fate::Issued,
        };
        // Whoever had it is to hear that it is withdrawn, whatever set they were in.
        let scope = match set.flatten() {
            Some(set) if fate == Fate::Issued => PolicyScope::Set(set.digest()),
            _ => PolicyScope::Everyone,
        };
        let signed = (fate != Fate::ForNobody).then(|| {
            let name = self.name.to_owned();
            let settings = self.settings.clone().filter(|_| fate == Fate::Issued);
            let priority = self.priority;
            sign(PolicyStatement { site, name, version, priority, scope, issued: now, settings })
        });
        let sql = "UPDATE policy SET version = ?2, issued = ?3, signed = ?4 WHERE id = ?1";
        let in_force = signed.as_ref().filter(|_| fate == Fate::Issued).map(|signed| signed.bytes().as_ref());
        connection.prepare_cached(sql)?.execute(params![self.id, integer(version), millis(now), in_force])?;
        if let Some(signed) = &signed {
            self.push(connection, signed, fate, now)?;
        }
        let (name, what) = (self.name, fate.describe());
        let text = format!("Policy document {name} was {what} as version {version}.");
        say(connection, StatusId::PolicyIssued, now, format!("policy {name}"), text)?;
        Ok(version)
    }

    fn push(
        &self,
        connection: &Connection,
        signed: &SignedPolicy,
        fate: Fate,
        now: UnixMillis,
    ) -> Result<(), SiteError> {
        let (found, limit) = (signed.bytes().len(), ENVELOPE_BYTES_MAX);
        if found > limit {
            return Err(CodecError::Limit { what: "a signed policy document, in bytes", found, limit }.into());
        }
        let (devices, valid_until) = match fate {
            Fate::Issued => (self.members.map(Bitmap::of), FOR_EVER),
            _ => (None, now.plus(WITHDRAWN_VALID_MS)),
        };
        queue::remove_about(connection, "policy", self.id)?;
        let item = QueueItem::Policy { signed: signed.bytes().to_vec(), devices };
        queue::push(connection, &Draft { item: &item, server: None, about: Some(self.id), valid_until })?;
        Ok(())
    }
}

/// What a new version makes of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is in force for its set.
    Issued,
    /// It is no more.
    Withdrawn,
    /// Its set is empty now, and those who had it lose it.
    LeftByAll,
    /// Its set is empty, and nobody has it.
    ForNobody,
}

impl Fate {
    fn describe(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Withdrawn => "withdrawn",
            Self::LeftByAll => "withdrawn from all devices, since its collection has no member any more,",
            Self::ForNobody => "kept, for a collection that has no member yet,",
        }
    }
}

/// Whether a version of a document is in force anywhere.
fn is_signed(connection: &Connection, id: i64) -> Result<bool, SiteError> {
    let mut statement = connection.prepare_cached("SELECT signed IS NOT NULL FROM policy WHERE id = ?1")?;
    Ok(statement.query_row([id], |row| row.get(0))?)
}

/// Every device may be given all documents of the site, and takes 64 at most.
fn refuse_one_too_many(connection: &Connection) -> Result<(), SiteError> {
    let count: i64 = connection.query_row("SELECT count(*) FROM policy", [], |row| row.get(0))?;
    let limit = DOCUMENTS_PER_DEVICE_MAX as u64;
    if unsigned(count) <= limit {
        return Ok(());
    }
    Err(SiteError::Limit { what: "policy documents", limit, advice: "withdraw one that is not needed" })
}
