//! The manager's HTTP API, version 1: what `bgb`, and whatever else has the token, says to it and hears from it.
//!
//! Bodies are JSON. A request carries `Authorization: Bearer TOKEN`. Lists come in pages of at most [`PAGE_MAX`]; a page with a
//! `next` is not the last, and its `next` goes into the following request as `after`. Times are milliseconds since 1970
//! ([`UnixMillis`]), names inside a path are percent-encoded. What goes wrong comes as an [`ErrorBody`], whose code is one of a closed
//! list and whose status is [`ErrorCode::http_status`].
//!
//! These types say how the API looks and no more: who may ask, and what is true, is the manager's. A request with a field that is
//! not known is refused; an answer may gain fields in a later release, so those who read answers pass over unknown ones.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::file::{Epoch, FileKind};
use crate::ids::{DeviceGuid, DeviceId, ServerId, SiteCode, UnixMillis};
use crate::message::RoadTaken;
use crate::policy::PolicySettings;
use crate::status::StatusMessage;

mod roads;
mod task;
pub use roads::*;
pub use task::*;

/// What stands before every path of this version.
pub const PREFIX: &str = "/api/v1";

/// Rows of a page when the request names no `limit`: what fits a screen or two.
pub const PAGE_DEFAULT: u32 = 100;

/// Most rows of one page: an answer stays below a few MiB, and a reader holds the database for milliseconds.
pub const PAGE_MAX: u32 = 1_000;

/// Most devices that one request adds: each needs a key and a certificate, some 0.2 ms together, and other orders wait meanwhile.
pub const DEVICES_PER_REQUEST_MAX: usize = 500;

/// Most members that one request adds to a collection or removes from it, and most devices that one picks by hand.
pub const MEMBERS_PER_REQUEST_MAX: usize = 10_000;

/// Most bytes of a request's body: 10,000 names of 64 bytes and their commas.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The collection that is always there and holds every device.
pub const ALL_DEVICES: &str = "all";

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What happened, to what, and what to do next: one or two sentences for people.
    pub error: String,
    /// The same for programs.
    pub code: ErrorCode,
}

/// The kinds of errors: a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The token is missing or wrong.
    Unauthorized,
    /// There is no such path.
    UnknownPath,
    /// The path is there and does not take this method.
    MethodNotAllowed,
    /// The request is not what this path takes: no JSON, an unknown field, a value outside its range.
    BadRequest,
    /// A list, or the body itself, is over its limit.
    TooLarge,
    /// No device has this number, GUID or name.
    UnknownDevice,
    /// No collection has this name.
    UnknownCollection,
    /// No policy document has this name.
    UnknownPolicy,
    /// No task has this id.
    UnknownTask,
    /// The name is taken by another device or collection.
    NameTaken,
    /// The built-in collection cannot be changed.
    BuiltIn,
    /// The task's target set is empty: nobody can be asked for anything.
    NoTargets,
    /// The target set is no longer the one that the preview showed; look again.
    TargetsChanged,
    /// As many tasks are active as a site holds.
    TooManyTasks,
    /// The task is over already, so that it cannot be cancelled.
    TaskOver,
    /// The database cannot be written or read for the moment; try again.
    DatabaseUnavailable,
    /// The manager stops or is too busy; try again in a moment.
    Unavailable,
    /// A fault of the manager; its log says more.
    Internal,
}

impl ErrorCode {
    /// The HTTP status that goes with the code.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::Unauthorized => 401,
            Self::UnknownPath
            | Self::UnknownDevice
            | Self::UnknownCollection
            | Self::UnknownPolicy
            | Self::UnknownTask => 404,
            Self::MethodNotAllowed => 405,
            Self::NameTaken | Self::BuiltIn | Self::TargetsChanged | Self::TaskOver | Self::TooManyTasks => {
                409
            }
            Self::TooLarge => 413,
            Self::BadRequest | Self::NoTargets => 422,
            Self::DatabaseUnavailable | Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.error)
    }
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows, in the list's order.
    pub items: Vec<T>,
    /// What to send as `after` for the page behind this one; `None` on the last page.
    pub next: Option<String>,
}

/// `GET /status`: how the site is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteStatus {
    /// The site.
    pub site: SiteCode,
    /// The database's generation, in hexadecimal.
    pub generation: String,
    /// The manager's time when it answered.
    pub time: UnixMillis,
    /// The manager.
    pub manager: ManagerStatus,
    /// The notification servers, by number.
    pub servers: Vec<ServerStatus>,
    /// The devices, counted.
    pub devices: DeviceCounts,
    /// What waits in the inbox.
    pub inbox: InboxStatus,
}

/// The manager, in [`SiteStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    /// Its release.
    pub version: String,
    /// Since when it answers.
    pub started: UnixMillis,
    /// Whether the database could be written when it was last tried.
    pub database_writable: bool,
    /// When the newest signed head was written; `None` before the first.
    pub head: Option<UnixMillis>,
}

/// A notification server, in [`SiteStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its number.
    pub server: ServerId,
    /// Which of its lives wrote the newest file; `None` before the first.
    pub epoch: Option<Epoch>,
    /// When the newest of its files was taken in, by the manager's clock; `None` before the first.
    pub last_seen: Option<UnixMillis>,
    /// When its last whole online list was written, by its own clock; `None` before the first.
    pub last_full: Option<UnixMillis>,
    /// Devices that are online there.
    pub online: u64,
    /// Whether it has been silent for longer than 2.5 full intervals, so that its devices are unknown.
    pub silent: bool,
}

/// Devices of the site, counted by presence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounts {
    /// All of them.
    pub all: u64,
    /// Those that are online.
    pub online: u64,
    /// Those that were online at a server that is silent now.
    pub unknown: u64,
    /// Those that are blocked.
    pub blocked: u64,
}

/// The inbox, in [`SiteStatus`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxStatus {
    /// Files that wait to be taken in, at the last scan.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that are set aside in `bad`.
    pub set_aside: u64,
}

/// `GET /messages?component=&severity=&after=&limit=`: status messages, the newest first; `severity` is the least that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRow {
    /// The message's number in the database.
    pub number: u64,
    /// The message.
    #[serde(flatten)]
    pub message: StatusMessage,
}

/// Whether a device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connectivity {
    /// It has a session.
    Online,
    /// It has none.
    Offline,
    /// It had one at a server that is silent now.
    Unknown,
    /// It was never seen.
    Never,
}

impl fmt::Display for Connectivity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Unknown => "unknown",
            Self::Never => "never seen",
        })
    }
}

/// A device's standing in its site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Membership {
    /// It waits for approval.
    Waiting,
    /// It is one of the site's devices.
    Active,
    /// It may not sign in.
    Blocked,
}

/// `GET /devices?name=&connectivity=&after=&limit=`: devices by number; with `name`, those whose names begin so, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRow {
    /// Its number.
    pub number: DeviceId,
    /// Its GUID.
    pub guid: DeviceGuid,
    /// Its name.
    pub name: String,
    /// Its standing.
    pub membership: Membership,
    /// Whether it is there.
    pub connectivity: Connectivity,
    /// Since when its session is there, or when it last ended.
    pub since: Option<UnixMillis>,
    /// The server that has, or last had, its session.
    pub server: Option<ServerId>,
    /// Where it comes from, as that server sees it.
    pub address: Option<String>,
    /// The road of its last session, and why.
    pub road: Option<RoadTaken>,
    /// Its agent's release.
    pub agent_version: Option<String>,
}

/// `GET /devices/DEVICE`: one device, by number, GUID or name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceDetails {
    /// What the list shows.
    #[serde(flatten)]
    pub row: DeviceRow,
    /// When a session of its last began.
    pub last_online: Option<UnixMillis>,
    /// When a session of its last ended.
    pub last_offline: Option<UnixMillis>,
    /// The boot that had its last session, in hexadecimal.
    pub boot: Option<String>,
    /// The number of its last session.
    pub session: Option<u64>,
    /// Its wall clock less its agent's own time, in milliseconds.
    pub clock_skew_ms: Option<i64>,
    /// The highest policy version that is applied there.
    pub policy_version: Option<u64>,
    /// System, version and architecture.
    pub platform: Option<String>,
    /// The machine's host name.
    pub hostname: Option<String>,
    /// Its certificates, the newest first.
    pub certificates: Vec<CertificateRow>,
    /// The collections that it is in, by name.
    pub collections: Vec<String>,
    /// What `collect-inventory` last brought.
    pub inventory: Option<serde_json::Value>,
}

/// A certificate of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRow {
    /// SHA-256 of it, in hexadecimal.
    pub fingerprint: String,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// Until when it holds.
    pub valid_until: UnixMillis,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// `POST /devices`: adds one device; the answer is its [`DeviceBundle`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddDevice {
    /// Its name: 1 to 64 letters, digits, `-`, `_` and `.`, not digits alone.
    pub name: String,
}

/// `POST /devices/bulk`: adds many at once, all of them or none; the answer is a [`DeviceBundles`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddDevices {
    /// Their names, [`DEVICES_PER_REQUEST_MAX`] at most.
    pub names: Vec<String>,
}

/// All that a new device needs. The private key is in this answer and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceBundle {
    /// Its number.
    pub number: DeviceId,
    /// Its GUID.
    pub guid: DeviceGuid,
    /// Its name.
    pub name: String,
    /// Its certificate: `device.pem`.
    pub certificate_pem: String,
    /// Its private key: `device.key`, mode 0600.
    pub key_pem: String,
    /// The site's authority: `authority.pem`.
    pub authority_pem: String,
    /// Public keys that sign the site's tasks: 32 bytes each, in hexadecimal.
    pub task_keys: Vec<String>,
    /// Addresses of notification servers, `host:port`.
    pub servers: Vec<String>,
    /// A configuration that fits the files above: `agent.toml`.
    pub agent_toml: String,
}

/// The answer to [`AddDevices`], in the order of the names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceBundles {
    /// One for each name.
    pub devices: Vec<DeviceBundle>,
}

/// `GET /collections` and `GET /collections/NAME`: by name; [`ALL_DEVICES`] comes first. `POST /collections` makes one and answers with
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionRow {
    /// Its name.
    pub name: String,
    /// Devices in it.
    pub members: u64,
    /// Those of them that are online.
    pub online: u64,
    /// Whether it is [`ALL_DEVICES`].
    pub built_in: bool,
}

/// `POST /collections`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateCollection {
    /// Its name: 1 to 64 letters, digits, `-`, `_`, `.` and blanks.
    pub name: String,
}

/// `POST /collections/NAME/members`: adds and removes, all or nothing; the answer is a [`MembersChanged`]. Members are listed by
/// `GET /collections/NAME/members?after=&limit=` as [`DeviceRow`]s.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChangeMembers {
    /// Devices to add, each by number, GUID or name.
    pub add: Vec<String>,
    /// Devices to remove, likewise.
    pub remove: Vec<String>,
}

/// The answer to [`ChangeMembers`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersChanged {
    /// Devices that were not in it before.
    pub added: u64,
    /// Devices that are in it no more.
    pub removed: u64,
    /// The collection as it is now.
    pub collection: CollectionRow,
}

/// `PUT /policies/NAME`: issues a document, or a new version of it; the answer is its [`PolicyRow`]. `DELETE /policies/NAME` withdraws
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutPolicy {
    /// Higher wins.
    pub priority: i32,
    /// The collection that it is for, as it is now; `None` for every device, now and later.
    pub collection: Option<String>,
    /// The settings.
    pub settings: PolicySettings,
}

/// `GET /policies` and `GET /policies/NAME`: documents by name, withdrawn ones left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRow {
    /// Its name.
    pub name: String,
    /// Its version, counted over all documents of the site.
    pub version: u64,
    /// Higher wins.
    pub priority: i32,
    /// The collection that it is for; `None` for everyone.
    pub collection: Option<String>,
    /// Devices that it is for; `None` for everyone, also those that join later.
    pub devices: Option<u64>,
    /// When it was issued.
    pub issued: UnixMillis,
    /// The settings.
    pub settings: PolicySettings,
}

/// `GET /files?after=&limit=`: files that are set aside in `bad`, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAsideFile {
    /// Its name in the folder `bad`; its beginning is the number of the server's folder that it lay in.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// What it holds, where its header can be read.
    pub kind: Option<FileKind>,
    /// Rows that its header announces, where it can be read.
    pub rows: Option<u64>,
    /// Why it is there: the text of the newest status message about it, where there still is one.
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests;
