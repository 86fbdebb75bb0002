//! Who is meant: from the words of an administrator to a set of devices.
//!
//! Blocked and waiting devices are left out when the set is made: they could not be asked. A device that is blocked later stays a
//! target.

use bgb_protocol::ids::DeviceId;
use bgb_protocol::target_set::{TargetDigest, TargetSet};
use roaring::RoaringBitmap;

use super::Queries;
use super::collections::members_of;
use super::columns::{device_number, read_set};
use super::devices::{name_of, numbers};
use crate::error::SiteError;

/// Who is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Every device of the site.
    Everyone,
    /// The members of a collection.
    Collection(String),
    /// These devices.
    Devices(Vec<DeviceId>),
}

/// What an administrator is shown before a task is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetPreview {
    /// Devices that would be asked.
    pub targets: u64,
    /// Those of them that are online now.
    pub online: u64,
    /// Those that were meant and are left out, since they are blocked or have not joined yet.
    pub left_out: u64,
    /// What the task's signature would cover.
    pub digest: TargetDigest,
}

/// Devices that are not active; a partial index has them.
pub(super) const INACTIVE: &str = "SELECT number FROM device INDEXED BY device_inactive WHERE state <> 2";

impl Queries<'_> {
    /// What a task for `targets` would reach now.
    ///
    /// # Errors
    /// [`SiteError::NotFound`], [`SiteError::EmptyTargets`], or that the database cannot be read.
    pub fn preview(&self, targets: &Targets) -> Result<TargetPreview, SiteError> {
        let (set, left_out) = self.target_set(targets)?;
        let online = self.online_devices()?.intersection_len(set.devices());
        Ok(TargetPreview { targets: set.devices().len(), online, left_out, digest: set.digest() })
    }

    /// The devices that are meant and can be asked, and how many others were meant.
    pub(super) fn target_set(&self, targets: &Targets) -> Result<(TargetSet, u64), SiteError> {
        let mut devices = self.meant(targets)?;
        let meant = devices.len();
        devices -= numbers(self.connection, INACTIVE)?;
        let left_out = meant - devices.len();
        match TargetSet::new(devices) {
            Some(set) => Ok((set, left_out)),
            None => Err(SiteError::EmptyTargets(nobody(targets, left_out))),
        }
    }

    fn meant(&self, targets: &Targets) -> Result<RoaringBitmap, SiteError> {
        match targets {
            Targets::Everyone => {
                // Numbers are dense save for those that restores passed over, and none is taken back.
                let sql = "SELECT device_next, passed_over FROM site";
                let (next, passed_over): (i64, Option<Vec<u8>>) = self
                    .connection
                    .prepare_cached(sql)?
                    .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                let mut everyone = RoaringBitmap::new();
                everyone.insert_range(0..device_number(next));
                Ok(match passed_over {
                    Some(passed_over) => everyone - read_set(&passed_over)?,
                    None => everyone,
                })
            }
            Targets::Collection(name) => Ok(members_of(self.connection, name)?.1),
            Targets::Devices(devices) => {
                for device in devices {
                    name_of(self.connection, *device)?;
                }
                Ok(devices.iter().map(|device| device.0).collect())
            }
        }
    }
}

impl Targets {
    /// In a few words, for people.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Everyone => "every device".to_owned(),
            Self::Collection(name) => format!("collection {name}"),
            Self::Devices(devices) if devices.len() == 1 => "1 device".to_owned(),
            Self::Devices(devices) => format!("{} devices", devices.len()),
        }
    }
}

fn nobody(targets: &Targets, left_out: u64) -> String {
    let advice = match targets {
        Targets::Everyone => "add devices with `bgb device add`".to_owned(),
        Targets::Collection(name) => {
            format!("add devices to the collection with `bgb collection add {name:?} DEVICE`")
        }
        Targets::Devices(_) => "name a device at least".to_owned(),
    };
    if left_out > 0 {
        return format!(
            "all {left_out} of {} are blocked or have not joined; unblock them, or {advice}",
            targets.describe()
        );
    }
    format!("{} is empty; {advice}", targets.describe())
}
