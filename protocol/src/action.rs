//! What a device can be asked to do: a closed list.
//!
//! An agent runs nothing that is not on this list, and each entry says how long it may take and whether it may be
//! begun again after a crash. What an action needs to know goes with it as parameters (JSON text, so that people and
//! other programs can read them); actions that need none have none.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec::CodecError;

/// Most bytes of parameters that travel inside a task.
pub const PARAMETERS_BYTES_MAX: usize = 8 * 1024;

/// Most bytes of an action's output that are kept: its head and its tail.
pub const OUTPUT_BYTES_MAX: usize = 32 * 1024;

/// Something that a device can be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Answer at once: proof of life.
    Ping,
    /// Ask for the policy that holds now and apply it.
    DownloadPolicy,
    /// Tell platform, processors, memory, disks, addresses and packages.
    CollectInventory,
    /// Bring the malware signatures up to date.
    UpdateDefinitions,
    /// Scan where malware usually sits.
    QuickScan,
    /// Scan everything.
    FullScan,
}

impl Action {
    /// Every action, in the order in which people are shown them.
    pub const ALL: [Self; 6] = [
        Self::Ping,
        Self::DownloadPolicy,
        Self::CollectInventory,
        Self::UpdateDefinitions,
        Self::QuickScan,
        Self::FullScan,
    ];

    /// The longest that the action may run; then it ends as failed.
    #[must_use]
    pub fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Ping => 10,
            Self::DownloadPolicy | Self::CollectInventory => 2 * 60,
            Self::UpdateDefinitions => 30 * 60,
            Self::QuickScan => 60 * 60,
            Self::FullScan => 24 * 60 * 60,
        })
    }

    /// Whether the agent begins again by itself when it crashed in the middle.
    #[must_use]
    pub fn is_repeatable(self) -> bool {
        !self.is_scan()
    }

    /// Whether it is a malware scan, of which a device runs one at a time.
    #[must_use]
    pub fn is_scan(self) -> bool {
        matches!(self, Self::QuickScan | Self::FullScan)
    }

    /// The name that people type and read.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::DownloadPolicy => "download-policy",
            Self::CollectInventory => "collect-inventory",
            Self::UpdateDefinitions => "update-definitions",
            Self::QuickScan => "quick-scan",
            Self::FullScan => "full-scan",
        }
    }

    /// The number that stands for the action in signed bytes and in the database; never reused.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Ping => 1,
            Self::DownloadPolicy => 2,
            Self::CollectInventory => 3,
            Self::UpdateDefinitions => 4,
            Self::QuickScan => 5,
            Self::FullScan => 6,
        }
    }

    /// The action with this [`code`](Self::code); `None` for one that this release does not know.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.code() == code)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A text that names no action.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no action; the actions are {list}", list = Action::ALL.map(Action::name).join(", "))]
pub struct UnknownAction(pub String);

impl FromStr for Action {
    type Err = UnknownAction;

    fn from_str(text: &str) -> Result<Self, UnknownAction> {
        Self::ALL
            .into_iter()
            .find(|action| action.name() == text)
            .ok_or_else(|| UnknownAction(text.to_owned()))
    }
}

/// What an action needs to know: inside the task, or as a blob that the task names by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parameters {
    /// JSON text of [`PARAMETERS_BYTES_MAX`] bytes at most; empty for actions that need nothing.
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// SHA-256 and length in bytes of what travels apart.
    Blob {
        /// SHA-256 of the blob.
        digest: [u8; 32],
        /// Its length in bytes.
        bytes: u64,
    },
}

impl Parameters {
    /// No parameters.
    #[must_use]
    pub fn none() -> Self {
        Self::Inline(Vec::new())
    }

    /// Checks the limit of what travels inline.
    ///
    /// # Errors
    /// [`CodecError::Limit`] when it is over [`PARAMETERS_BYTES_MAX`].
    pub fn check(&self) -> Result<(), CodecError> {
        match self {
            Self::Inline(bytes) if bytes.len() > PARAMETERS_BYTES_MAX => Err(CodecError::Limit {
                what: "a task's parameters, in bytes",
                found: bytes.len(),
                limit: PARAMETERS_BYTES_MAX,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_lead_back_to_the_action() {
        for action in Action::ALL {
            assert_eq!(action.name().parse(), Ok(action));
            assert_eq!(Action::from_code(action.code()), Some(action));
        }
        assert_eq!(Action::from_code(0), None);
        assert!("reboot".parse::<Action>().unwrap_err().to_string().contains("quick-scan"));
    }

    #[test]
    fn only_scans_are_not_begun_again_by_themselves() {
        let once: Vec<_> = Action::ALL.into_iter().filter(|action| !action.is_repeatable()).collect();
        assert_eq!(once, [Action::QuickScan, Action::FullScan]);
    }
}
