//! The devices: adding, blocking, listing.
//!
//! A device's number is dense and never given twice; its GUID is its name for life, and its name is what people call it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bgb_protocol::ids::{BootId, DeviceGuid, DeviceId, ServerId, SessionNumber, UnixMillis};
use bgb_protocol::message::RoadTaken;
use bgb_protocol::queue::QueueItem;
use bgb_protocol::status::StatusId;
use roaring::RoaringBitmap;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::{NoContext, Timestamp, Uuid};

use super::columns::{device_number, integer, millis, time, unsigned};
use super::queue::{self, Draft, FOR_EVER};
use super::status::say;
use super::{Queries, Store, certificates};
use crate::authority::{CertificateRecord, IssuedCertificate};
use crate::error::SiteError;

/// The longest name of a device or a collection, in characters: what the API says of both (`AddDevice`, `CreateCollection`).
const NAME_LETTERS_MAX: usize = 64;

/// Most devices of a site: ten times the million that it is written for.
const DEVICES_MAX: u64 = 10_000_000;

/// How long servers are told that a device is blocked no more: one that was down longer reads no block at its start.
const UNBLOCK_VALID_MS: u64 = 24 * 60 * 60 * 1000;

/// Names and values that people give to devices.
pub type Labels = BTreeMap<String, String>;

/// A device that is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewDevice {
    /// Its name, unique without regard to case: 1 to 64 letters, digits, `-`, `_` and `.`, and nothing that is read as a number or a GUID.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
}

/// A device that has just been added.
#[derive(Debug)]
pub struct AddedDevice {
    /// Its number.
    pub device: DeviceId,
    /// Its GUID.
    pub guid: DeviceGuid,
    /// Its certificate and private key, which is kept nowhere else.
    pub certificate: IssuedCertificate,
}

/// Whether a device belongs to the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// It has asked to join.
    Waiting,
    /// It belongs to the site.
    Active,
    /// It may not sign in.
    Blocked,
}

/// Whether a device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceState {
    /// It has not signed in yet.
    Never,
    /// It has a session.
    Online,
    /// It has none.
    Offline,
    /// Its server is silent.
    Unknown,
}

/// Which devices are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceFilter {
    /// All.
    #[default]
    All,
    /// Those in this state of presence.
    Presence(PresenceState),
    /// Those whose name begins so, without regard to case; in the order of names.
    NamePrefix(String),
}

/// What is known of a device's presence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceOfDevice {
    /// Whether it is there.
    pub state: PresenceState,
    /// Since when it is in that state.
    pub since: Option<UnixMillis>,
    /// When it came online last.
    pub last_online: Option<UnixMillis>,
    /// When it went offline last.
    pub last_offline: Option<UnixMillis>,
    /// Why it went, in a few words.
    pub offline_reason: Option<String>,
    /// The newest session that anybody spoke of.
    pub session: Option<SessionNumber>,
    /// The boot that has that session.
    pub boot: Option<BootId>,
    /// The server that has, or had, it.
    pub server: Option<ServerId>,
    /// How it comes, and why.
    pub road: Option<RoadTaken>,
    /// Where it comes from, as the server sees it.
    pub address: Option<SocketAddr>,
    /// The machine's wall clock less the agent's own time, in milliseconds.
    pub clock_skew_ms: Option<i64>,
    /// The highest policy version that is applied there.
    pub policy_version: Option<u64>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// Its number.
    pub device: DeviceId,
    /// Its GUID.
    pub guid: DeviceGuid,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Whether it belongs to the site.
    pub state: DeviceState,
    /// When it was added.
    pub created: UnixMillis,
    /// The agent's release.
    pub agent_version: Option<String>,
    /// `os os_version arch`, for people.
    pub platform: Option<String>,
    /// The machine's host name.
    pub hostname: Option<String>,
    /// Whether it is there, and how.
    pub presence: PresenceOfDevice,
}

impl Store {
    /// Adds a device. `issue` makes its certificate, once number and GUID are drawn; when it fails, nothing is added.
    ///
    /// # Errors
    /// A name that is taken or none, [`SiteError::Limit`], what `issue` says, or that the database cannot be written.
    pub fn add_device(
        &mut self,
        name: &str,
        labels: Labels,
        now: UnixMillis,
        issue: impl FnOnce(DeviceId, DeviceGuid) -> Result<IssuedCertificate, SiteError>,
    ) -> Result<AddedDevice, SiteError> {
        let new = NewDevice { name: name.to_owned(), labels };
        self.write(|connection| {
            let device = draw_numbers(connection, 1)?;
            let guid = new_guid(now);
            let certificate = issue(device, guid)?;
            insert(connection, device, guid, &new, now)?;
            certificates::insert(connection, device, &certificate.record())?;
            Ok(AddedDevice { device, guid, certificate })
        })
    }

    /// Adds many devices in one transaction, with numbers in their order; says the first number. `issue` keeps what it makes.
    ///
    /// # Errors
    /// As [`Store::add_device`]; then none is added.
    pub fn add_devices(
        &mut self,
        devices: &[NewDevice],
        now: UnixMillis,
        mut issue: impl FnMut(DeviceId, DeviceGuid) -> Result<CertificateRecord, SiteError>,
    ) -> Result<DeviceId, SiteError> {
        self.write(|connection| {
            let first = draw_numbers(connection, devices.len() as u64)?;
            for (number, new) in (first.0..).zip(devices) {
                let (device, guid) = (DeviceId(number), new_guid(now));
                let certificate = issue(device, guid)?;
                insert(connection, device, guid, new, now)?;
                certificates::insert(connection, device, &certificate)?;
            }
            Ok(first)
        })
    }

    /// Blocks a device: from the next moment on it may not sign in, and it loses its session. Says whether that is new.
    ///
    /// # Errors
    /// When there is no such device, or the database cannot be written.
    pub fn block_device(&mut self, device: DeviceId, by: &str, now: UnixMillis) -> Result<bool, SiteError> {
        self.write(|connection| {
            let name = name_of(connection, device)?;
            if !set_state(connection, device, 3)? {
                return Ok(false);
            }
            let about = Some(i64::from(device.0));
            let item = QueueItem::Block { device };
            queue::push(connection, &Draft { item: &item, server: None, about, valid_until: FOR_EVER })?;
            let text =
                format!("{name} was blocked by {by}. It has no session from now on and cannot sign in.");
            say(connection, StatusId::DeviceBlocked, now, name, text)?;
            Ok(true)
        })
    }

    /// Lets a blocked device sign in again. Says whether that is new.
    ///
    /// # Errors
    /// When there is no such device, or the database cannot be written.
    pub fn unblock_device(&mut self, device: DeviceId, by: &str, now: UnixMillis) -> Result<bool, SiteError> {
        self.write(|connection| {
            let name = name_of(connection, device)?;
            if !set_state(connection, device, 2)? {
                return Ok(false);
            }
            let about = i64::from(device.0);
            queue::remove_about(connection, "block", about)?;
            let item = QueueItem::Unblock { device };
            let valid_until = now.plus(UNBLOCK_VALID_MS);
            queue::push(connection, &Draft { item: &item, server: None, about: Some(about), valid_until })?;
            say(
                connection,
                StatusId::DeviceUnblocked,
                now,
                name.as_str(),
                format!("{name} was unblocked by {by}."),
            )?;
            Ok(true)
        })
    }
}

impl Queries<'_> {
    /// Devices, at most `limit`, from the one after `after` on: in the order of numbers, or of names for a prefix.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn devices(
        &self,
        after: Option<DeviceId>,
        filter: &DeviceFilter,
        limit: usize,
    ) -> Result<Vec<DeviceRow>, SiteError> {
        let from = after.map_or(-1, |after| i64::from(after.0));
        let limit = integer(limit as u64);
        match filter {
            DeviceFilter::All => self.device_rows(DEVICES_ALL, params![from, limit]),
            DeviceFilter::Presence(state) => {
                self.device_rows(DEVICES_BY_PRESENCE, params![from, limit, presence_code(*state)])
            }
            DeviceFilter::NamePrefix(prefix) => {
                let after_name = after.map(|after| name_of(self.connection, after)).transpose()?;
                // The greatest character ends the range: names are UTF-8, compared by their bytes but for ASCII's case.
                let end = format!("{prefix}{}", char::MAX);
                self.device_rows(DEVICES_BY_NAME, params![after_name.unwrap_or_default(), limit, prefix, end])
            }
        }
    }

    /// The device with this number.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn device(&self, device: DeviceId) -> Result<Option<DeviceRow>, SiteError> {
        Ok(self.device_rows(DEVICE_BY_NUMBER, params![device.0])?.pop())
    }

    /// The device that people mean by `text`: its name, its GUID, or its number.
    ///
    /// # Errors
    /// [`SiteError::NotFound`], or that the database cannot be read.
    pub fn find_device(&self, text: &str) -> Result<DeviceRow, SiteError> {
        let mut found = self.device_rows(DEVICE_BY_EXACT_NAME, params![text])?.pop();
        if let (None, Ok(guid)) = (&found, text.parse::<DeviceGuid>()) {
            found = self.device_rows(DEVICE_BY_GUID, params![guid.bytes()])?.pop();
        }
        if let (None, Ok(number)) = (&found, text.parse::<u32>()) {
            found = self.device(DeviceId(number))?;
        }
        found.ok_or_else(|| SiteError::NotFound { what: "device", name: text.to_owned() })
    }

    /// The devices that are online.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn online_devices(&self) -> Result<RoaringBitmap, SiteError> {
        numbers(self.connection, ONLINE)
    }

    /// How many devices are online, and how many there are.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn device_counts(&self) -> Result<(u64, u64), SiteError> {
        let sql = "SELECT (SELECT count(*) FROM device WHERE presence = 1), (SELECT device_next - passed_over_count FROM site)";
        let read = |row: &Row<'_>| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?)));
        Ok(self.connection.prepare_cached(sql)?.query_row([], read)?)
    }

    /// What a device told of itself last: JSON, and when it was collected.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn inventory(&self, device: DeviceId) -> Result<Option<(String, UnixMillis)>, SiteError> {
        let sql = "SELECT document, collected FROM inventory WHERE device = ?1";
        let read = |row: &Row<'_>| Ok((row.get(0)?, time(row.get(1)?)));
        Ok(self.connection.prepare_cached(sql)?.query_row([device.0], read).optional()?)
    }

    fn device_rows(&self, tail: &str, values: impl rusqlite::Params) -> Result<Vec<DeviceRow>, SiteError> {
        let mut statement = self.connection.prepare_cached(&device_sql(tail))?;
        let rows = statement.query_map(values, |row| Ok(read(row)))?;
        rows.collect::<Result<Vec<_>, _>>()?.into_iter().collect()
    }
}

/// The ends of the statements that read whole devices.
pub(super) const DEVICES_ALL: &str = "WHERE number > ?1 ORDER BY number LIMIT ?2";
pub(super) const DEVICES_BY_PRESENCE: &str = "WHERE presence = ?3 AND number > ?1 ORDER BY number LIMIT ?2";
pub(super) const DEVICES_BY_NAME: &str =
    "WHERE name > ?1 AND name >= ?3 AND name < ?4 ORDER BY name LIMIT ?2";
pub(super) const DEVICE_BY_NUMBER: &str = "WHERE number = ?1";
pub(super) const DEVICE_BY_EXACT_NAME: &str = "WHERE name = ?1";
pub(super) const DEVICE_BY_GUID: &str = "WHERE guid = ?1";
/// Numbers of the devices that are online; the index has them.
pub(super) const ONLINE: &str = "SELECT number FROM device WHERE presence = 1 ORDER BY number";

pub(super) fn device_sql(tail: &str) -> String {
    format!(
        "SELECT number, guid, name, labels, state, created, agent_version, platform, hostname, presence, since, last_online, \
         last_offline, offline_reason, session, boots, server, road, address, clock_skew_ms, policy_version FROM device {tail}"
    )
}

fn read(row: &Row<'_>) -> Result<DeviceRow, SiteError> {
    let boots: Vec<u8> = row.get(15)?;
    let (labels, road): (String, Option<String>) = (row.get(3)?, row.get(17)?);
    let (address, moment): (Option<String>, _) = (row.get(18)?, |column| row.get::<_, Option<i64>>(column));
    let unreadable = |error: serde_json::Error| SiteError::Corrupt(format!("a device's row: {error}"));
    let presence = PresenceOfDevice {
        state: presence_state(row.get(9)?),
        since: moment(10)?.map(time),
        last_online: moment(11)?.map(time),
        last_offline: moment(12)?.map(time),
        offline_reason: row.get(13)?,
        session: moment(14)?.map(unsigned).map(SessionNumber),
        boot: boots.first_chunk().copied().map(BootId),
        server: row.get::<_, Option<u32>>(16)?.map(ServerId),
        // Another release may have written it: what it says of the device is not lost for that.
        road: road.and_then(|road| serde_json::from_str(&road).ok()),
        address: address.and_then(|address| address.parse().ok()),
        clock_skew_ms: row.get(19)?,
        policy_version: moment(20)?.map(unsigned),
    };
    Ok(DeviceRow {
        device: DeviceId(device_number(row.get(0)?)),
        guid: DeviceGuid::from_bytes(row.get(1)?),
        name: row.get(2)?,
        labels: serde_json::from_str(&labels).map_err(unreadable)?,
        state: match row.get(4)? {
            1 => DeviceState::Waiting,
            2 => DeviceState::Active,
            _ => DeviceState::Blocked,
        },
        created: time(row.get(5)?),
        agent_version: row.get(6)?,
        platform: row.get(7)?,
        hostname: row.get(8)?,
        presence,
    })
}

pub(super) fn presence_code(state: PresenceState) -> u8 {
    match state {
        PresenceState::Never => 0,
        PresenceState::Online => 1,
        PresenceState::Offline => 2,
        PresenceState::Unknown => 3,
    }
}

pub(super) fn presence_state(code: u8) -> PresenceState {
    match code {
        1 => PresenceState::Online,
        2 => PresenceState::Offline,
        3 => PresenceState::Unknown,
        _ => PresenceState::Never,
    }
}

/// The device numbers that a statement of one column yields.
pub(super) fn numbers(connection: &Connection, sql: &str) -> Result<RoaringBitmap, SiteError> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| row.get::<_, u32>(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn name_of(connection: &Connection, device: DeviceId) -> Result<String, SiteError> {
    let mut statement = connection.prepare_cached("SELECT name FROM device WHERE number = ?1")?;
    let name = statement.query_row([device.0], |row| row.get(0)).optional()?;
    name.ok_or_else(|| SiteError::NotFound { what: "device", name: device.to_string() })
}

/// Draws `count` numbers in a row and says the first.
fn draw_numbers(connection: &Connection, count: u64) -> Result<DeviceId, SiteError> {
    let sql = "UPDATE site SET device_next = device_next + ?1 RETURNING device_next";
    let next: i64 = connection.prepare_cached(sql)?.query_row([integer(count)], |row| row.get(0))?;
    let next = unsigned(next);
    if next > DEVICES_MAX {
        let advice = "remove devices that are no more, or divide the site";
        return Err(SiteError::Limit { what: "devices", limit: DEVICES_MAX, advice });
    }
    Ok(DeviceId(u32::try_from(next - count).expect("the limit of devices fits 32 bits")))
}

fn new_guid(now: UnixMillis) -> DeviceGuid {
    let (seconds, millis) =
        (now.0 / 1000, u32::try_from(now.0 % 1000).expect("a remainder of 1000 fits 32 bits"));
    DeviceGuid(Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, millis * 1_000_000)))
}

fn insert(
    connection: &Connection,
    device: DeviceId,
    guid: DeviceGuid,
    new: &NewDevice,
    now: UnixMillis,
) -> Result<(), SiteError> {
    check_name(&new.name)?;
    let labels = serde_json::to_string(&new.labels).expect("a map of texts is JSON");
    let sql = "INSERT INTO device (number, guid, name, labels, created) VALUES (?1, ?2, ?3, ?4, ?5)";
    let mut statement = connection.prepare_cached(sql)?;
    statement
        .execute(params![device.0, guid.bytes(), new.name, labels, millis(now)])
        .map_err(|error| name_taken("device", &new.name, error))?;
    Ok(())
}

/// Changes a device between active and blocked; says whether that changed anything.
fn set_state(connection: &Connection, device: DeviceId, state: u8) -> Result<bool, SiteError> {
    let sql = "UPDATE device SET state = ?2 WHERE number = ?1 AND state <> ?2";
    Ok(connection.prepare_cached(sql)?.execute(params![device.0, state])? > 0)
}

/// Checks the name of a device: it must not be taken for another one's number or GUID, nor for a folder above when it names one.
fn check_name(name: &str) -> Result<(), SiteError> {
    let rule = "it has 1 to 64 letters, digits and -_. and is neither digits alone nor a GUID";
    let is_plain = has_letters(name, "-_.");
    let is_number = name.chars().all(char::is_numeric);
    if is_plain && !is_number && name.parse::<DeviceGuid>().is_err() {
        return Ok(());
    }
    Err(bad_name("device", name, rule))
}

/// Whether a name has 1 to 64 letters, digits and `others`, and at least one of the first two.
pub(super) fn has_letters(name: &str, others: &str) -> bool {
    (1..=NAME_LETTERS_MAX).contains(&name.chars().count())
        && name.chars().all(|letter| letter.is_alphanumeric() || others.contains(letter))
        && name.contains(char::is_alphanumeric)
}

pub(super) fn bad_name(what: &'static str, name: &str, rule: &'static str) -> SiteError {
    SiteError::BadName { what, name: name.chars().take(300).collect(), rule }
}

/// The error of an insert whose name must be unique.
pub(super) fn name_taken(what: &'static str, name: &str, error: rusqlite::Error) -> SiteError {
    match error.sqlite_error().map(|error| error.extended_code) {
        Some(rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE) => SiteError::NameTaken { what, name: name.to_owned() },
        _ => error.into(),
    }
}
