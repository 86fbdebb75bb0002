//! The policy documents that the administrator has put, and what they come to on a device.
//!
//! Priorities never tie here, so which of two documents counts does not depend on when they were issued.

use std::collections::{BTreeMap, BTreeSet};

use bgb_protocol::ids::DeviceId;

/// What is in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    documents: BTreeMap<String, Document>,
    offices: BTreeSet<DeviceId>,
}

#[derive(Clone, Debug)]
struct Document {
    priority: i32,
    is_for_offices: bool,
    keepalive_secs: u32,
}

impl Policies {
    /// A document is put, in the place of the one that had its name.
    pub(crate) fn put(&mut self, name: String, priority: i32, is_for_offices: bool, keepalive_secs: u32) {
        self.documents.insert(name, Document { priority, is_for_offices, keepalive_secs });
    }

    /// And withdrawn.
    pub(crate) fn withdraw(&mut self, name: &str) {
        self.documents.remove(name);
    }

    /// Who is in the offices from now on.
    pub(crate) fn set_offices(&mut self, offices: BTreeSet<DeviceId>) {
        self.offices = offices;
    }

    /// The keepalive that a device is to have; `None` where no document says.
    pub(crate) fn keepalive_secs(&self, device: DeviceId) -> Option<u32> {
        let reaches = |document: &&Document| !document.is_for_offices || self.offices.contains(&device);
        let first = self.documents.values().filter(reaches).max_by_key(|document| document.priority);
        first.map(|document| document.keepalive_secs)
    }
}
