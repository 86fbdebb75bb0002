//! Collections: named sets of devices. The rows are what was asked for; the bitmap beside them is what everybody computes with.

use bgb_protocol::ids::{DeviceId, UnixMillis};
use bgb_protocol::policy::{PolicyStatement, SignedPolicy};
use roaring::RoaringBitmap;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::columns::{integer, millis, read_set, set_bytes, time, unsigned};
use super::devices::{bad_name, has_letters, name_of, name_taken};
use super::{Queries, Store, policies};
use crate::error::SiteError;

/// A collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectionRow {
    /// Its name.
    pub name: String,
    /// How many devices it has.
    pub members: u64,
    /// When it was made.
    pub created: UnixMillis,
    /// When its members changed last.
    pub changed: UnixMillis,
}

/// What a change of members did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectionChange {
    /// Devices that came or went.
    pub changed: u64,
    /// Devices that it has now.
    pub members: u64,
}

impl Store {
    /// Makes an empty collection.
    ///
    /// # Errors
    /// A name that is taken or none, or that the database cannot be written.
    pub fn create_collection(&mut self, name: &str, now: UnixMillis) -> Result<(), SiteError> {
        check_name(name)?;
        self.write(|connection| {
            let sql = "INSERT INTO collection (name, created, changed, members, member_count) VALUES (?1, ?2, ?2, ?3, 0)";
            let mut statement = connection.prepare_cached(sql)?;
            statement
                .execute(params![name, millis(now), set_bytes(&RoaringBitmap::new())])
                .map_err(|error| name_taken("collection", name, error))?;
            Ok(())
        })
    }

    /// Adds devices to a collection. `sign` signs anew the policy documents that are assigned to it.
    ///
    /// # Errors
    /// When the collection or a device is not there, or the database cannot be written; then nothing changes.
    pub fn add_members(
        &mut self,
        collection: &str,
        devices: &[DeviceId],
        now: UnixMillis,
        sign: impl FnMut(PolicyStatement) -> SignedPolicy,
    ) -> Result<CollectionChange, SiteError> {
        self.change_members(collection, devices, now, sign, |connection, id, device, members| {
            if !members.insert(device.0) {
                return Ok(false);
            }
            // Says which device is not there; the foreign key only that one is not.
            name_of(connection, device)?;
            let sql = "INSERT INTO membership (collection, device) VALUES (?1, ?2)";
            connection.prepare_cached(sql)?.execute(params![id, device.0])?;
            Ok(true)
        })
    }

    /// Takes devices out of a collection; those that are not in it change nothing. `sign` as in [`Store::add_members`].
    ///
    /// # Errors
    /// When there is no such collection, or the database cannot be written.
    pub fn remove_members(
        &mut self,
        collection: &str,
        devices: &[DeviceId],
        now: UnixMillis,
        sign: impl FnMut(PolicyStatement) -> SignedPolicy,
    ) -> Result<CollectionChange, SiteError> {
        self.change_members(collection, devices, now, sign, |connection, id, device, members| {
            let sql = "DELETE FROM membership WHERE collection = ?1 AND device = ?2";
            connection.prepare_cached(sql)?.execute(params![id, device.0])?;
            Ok(members.remove(device.0))
        })
    }

    fn change_members(
        &mut self,
        name: &str,
        devices: &[DeviceId],
        now: UnixMillis,
        sign: impl FnMut(PolicyStatement) -> SignedPolicy,
        change: impl Fn(&Connection, i64, DeviceId, &mut RoaringBitmap) -> Result<bool, SiteError>,
    ) -> Result<CollectionChange, SiteError> {
        let code = self.code;
        self.write(|connection| {
            let (id, mut members) = members_of(connection, name)?;
            let mut changed = 0;
            for device in devices {
                changed += u64::from(change(connection, id, *device, &mut members)?);
            }
            let outcome = CollectionChange { changed, members: members.len() };
            if changed > 0 {
                let sql = "UPDATE collection SET members = ?2, member_count = ?3, changed = ?4 WHERE id = ?1";
                let values = params![id, set_bytes(&members), integer(members.len()), millis(now)];
                connection.prepare_cached(sql)?.execute(values)?;
                policies::issue_for_collection(connection, code, id, &members, now, sign)?;
            }
            Ok(outcome)
        })
    }
}

impl Queries<'_> {
    /// Collections in the order of names, at most `limit`, from the one after `after` on.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn collections(&self, after: Option<&str>, limit: usize) -> Result<Vec<CollectionRow>, SiteError> {
        let read = |row: &Row<'_>| {
            Ok(CollectionRow {
                name: row.get(0)?,
                members: unsigned(row.get(1)?),
                created: time(row.get(2)?),
                changed: time(row.get(3)?),
            })
        };
        let mut statement = self.connection.prepare_cached(COLLECTIONS)?;
        let rows = statement.query_map(params![after.unwrap_or_default(), integer(limit as u64)], read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The devices of a collection.
    ///
    /// # Errors
    /// [`SiteError::NotFound`], or that the database cannot be read.
    pub fn collection_devices(&self, name: &str) -> Result<RoaringBitmap, SiteError> {
        Ok(members_of(self.connection, name)?.1)
    }
}

/// The statement of [`Queries::collections`].
pub(super) const COLLECTIONS: &str =
    "SELECT name, member_count, created, changed FROM collection WHERE name > ?1 ORDER BY name LIMIT ?2";

fn check_name(name: &str) -> Result<(), SiteError> {
    if has_letters(name, "-_. ") && name.trim() == name {
        return Ok(());
    }
    let rule = "it has 1 to 64 letters, digits, blanks and -_. and no blank at its ends";
    Err(bad_name("collection", name, rule))
}

/// A collection's row and its devices.
pub(super) fn members_of(connection: &Connection, name: &str) -> Result<(i64, RoaringBitmap), SiteError> {
    let mut statement = connection.prepare_cached("SELECT id, members FROM collection WHERE name = ?1")?;
    let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?));
    let found = statement.query_row([name], read).optional()?;
    let (id, bytes) =
        found.ok_or_else(|| SiteError::NotFound { what: "collection", name: name.to_owned() })?;
    Ok((id, read_set(&bytes)?))
}
