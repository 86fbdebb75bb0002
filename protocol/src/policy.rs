//! Policy documents: what a site sets for its devices.
//!
//! A document is a JSON object of settings, assigned to a set of devices (or to all, also those that join later) with a
//! priority. For each setting the document of the highest priority that names it wins. A document is signed, like a task,
//! over the set that it is for; a device takes it only with the proof that it is meant.
//!
//! A site issues only settings that it knows ([`PolicySettings::parse`]). A device one release back passes over what it does not
//! know and heeds the rest ([`PolicySettings::parse_known`]): one new setting must not put its whole policy out of force.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::action::Action;
use crate::codec::{self, CodecError};
use crate::ids::{SiteCode, UnixMillis};
use crate::signature::{Envelope, SigningKey, StatementKind, TrustedKeys};
use crate::target_set::TargetDigest;
use crate::task::{StatementError, signed};

/// Most bytes of a policy document, so that it fits a frame with its proof.
pub const DOCUMENT_BYTES_MAX: usize = 60 * 1024;

/// Most documents that one device may be given.
pub const DOCUMENTS_PER_DEVICE_MAX: usize = 64;

/// How often an agent asks for its policy by itself, in minutes, unless a policy says otherwise.
pub const POLICY_MINUTES_DEFAULT: u32 = 60;

/// Who a document is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyScope {
    /// Every device of the site, now and later.
    Everyone,
    /// The members of a set; each has a proof.
    Set(TargetDigest),
}

/// What is signed of a policy document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatement {
    /// The site.
    pub site: SiteCode,
    /// The document's name.
    pub name: String,
    /// Counts up over all documents of the site; an agent never goes back to a lower one of the same name.
    pub version: u64,
    /// Higher wins.
    pub priority: i32,
    /// Who it is for.
    pub scope: PolicyScope,
    /// When it was issued.
    pub issued: UnixMillis,
    /// The settings: JSON text of a [`PolicySettings`]. `None` withdraws the document of this name.
    pub settings: Option<String>,
}

/// A policy document as it was signed.
#[derive(Clone, Debug)]
pub struct SignedPolicy {
    bytes: Arc<[u8]>,
    envelope: Arc<Envelope>,
    statement: PolicyStatement,
}

signed!(SignedPolicy, PolicyStatement, StatementKind::Policy, "policy document");

/// The settings of a document; one that is absent is left to documents of lower priority, then to the agent's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySettings {
    /// Addresses of notification servers, `host:port`, in the order in which they are tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub servers: Option<Vec<String>>,
    /// How often the agent speaks when it has nothing to say: 20 to 900 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_seconds: Option<u32>,
    /// How often the agent asks for its policy by itself: 1 to 10,080 minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_minutes: Option<u32>,
    /// Absolute paths that a quick scan covers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quick_scan_paths: Option<Vec<String>>,
    /// Absolute paths that a full scan covers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_scan_paths: Option<Vec<String>>,
    /// Absolute paths that no scan enters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scan_exclusions: Option<Vec<String>>,
    /// The actions that the device carries out; all, where no document says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_actions: Option<BTreeSet<Action>>,
}

/// The names of the settings, as documents spell them.
const SETTINGS: [&str; 7] = [
    "servers",
    "keepalive_seconds",
    "policy_minutes",
    "quick_scan_paths",
    "full_scan_paths",
    "scan_exclusions",
    ALLOWED_ACTIONS,
];

const ALLOWED_ACTIONS: &str = "allowed_actions";

/// A document's JSON with what this release knows apart from what it does not.
#[derive(Default)]
struct Sorted {
    known: Map<String, Value>,
    unknown: Vec<String>,
}

/// Why a document cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// Not JSON of the known settings.
    #[error("the policy document cannot be read: {0}")]
    Malformed(String),
    /// A setting is outside its range.
    #[error("the policy setting {setting} is {found}; {rule}")]
    Range {
        /// The setting's name.
        setting: &'static str,
        /// What was given.
        found: String,
        /// What it may be.
        rule: &'static str,
    },
    /// Over [`DOCUMENT_BYTES_MAX`].
    #[error("the policy document has {0} bytes; the limit is {DOCUMENT_BYTES_MAX}")]
    TooLong(usize),
}

impl PolicySettings {
    /// Reads and checks a document's settings, as who issues it: a setting or an action that is not known is an error.
    ///
    /// # Errors
    /// As [`PolicyError`] says.
    pub fn parse(json: &str) -> Result<Self, PolicyError> {
        let settings: Self = read(json)?;
        settings.check()?;
        Ok(settings)
    }

    /// Reads and checks a document's settings, as a device whose release may be older than the document: settings, and names in
    /// `allowed_actions`, that are not known are passed over. Gives their names beside the settings.
    ///
    /// # Errors
    /// As [`PolicyError`] says, for what is known.
    pub fn parse_known(json: &str) -> Result<(Self, Vec<String>), PolicyError> {
        let mut sorted: Sorted = read(json)?;
        sorted.sort_actions();
        let Sorted { known, unknown } = sorted;
        let settings: Self = serde_json::from_value(Value::Object(known))
            .map_err(|error| PolicyError::Malformed(error.to_string()))?;
        settings.check()?;
        Ok((settings, unknown))
    }

    /// The settings as JSON text.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("settings are plain values")
    }

    /// These settings, and where they say nothing, those of `lower`.
    #[must_use]
    pub fn over(self, lower: Self) -> Self {
        Self {
            servers: self.servers.or(lower.servers),
            keepalive_seconds: self.keepalive_seconds.or(lower.keepalive_seconds),
            policy_minutes: self.policy_minutes.or(lower.policy_minutes),
            quick_scan_paths: self.quick_scan_paths.or(lower.quick_scan_paths),
            full_scan_paths: self.full_scan_paths.or(lower.full_scan_paths),
            scan_exclusions: self.scan_exclusions.or(lower.scan_exclusions),
            allowed_actions: self.allowed_actions.or(lower.allowed_actions),
        }
    }

    /// Whether the device may carry out `action`.
    #[must_use]
    pub fn allows(&self, action: Action) -> bool {
        self.allowed_actions.as_ref().is_none_or(|allowed| allowed.contains(&action))
    }

    fn check(&self) -> Result<(), PolicyError> {
        in_range("keepalive_seconds", self.keepalive_seconds, 20, 900, "it is 20 to 900 seconds")?;
        in_range("policy_minutes", self.policy_minutes, 1, 10_080, "it is 1 to 10,080 minutes")?;
        for (setting, paths) in [
            ("quick_scan_paths", &self.quick_scan_paths),
            ("full_scan_paths", &self.full_scan_paths),
            ("scan_exclusions", &self.scan_exclusions),
        ] {
            if let Some(path) = paths.iter().flatten().find(|path| !is_absolute_path(path)) {
                let rule = "it holds absolute paths without control characters";
                return Err(PolicyError::Range { setting, found: path.clone(), rule });
            }
        }
        let wrong = |address: &&String| {
            address
                .rsplit_once(':')
                .is_none_or(|(host, port)| host.is_empty() || !matches!(port.parse::<u16>(), Ok(1..)))
        };
        if let Some(address) = self.servers.iter().flatten().find(wrong) {
            let rule = "it holds addresses such as bgb.example.org:10123";
            return Err(PolicyError::Range { setting: "servers", found: address.clone(), rule });
        }
        if self.servers.as_ref().is_some_and(Vec::is_empty) {
            let rule = "name one server at least, or leave the setting out";
            return Err(PolicyError::Range { setting: "servers", found: "empty".to_owned(), rule });
        }
        Ok(())
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, PolicyError> {
    if json.len() > DOCUMENT_BYTES_MAX {
        return Err(PolicyError::TooLong(json.len()));
    }
    serde_json::from_str(json).map_err(|error| PolicyError::Malformed(error.to_string()))
}

impl Sorted {
    /// An action that is not known cannot be asked for either: that others are allowed stays true without it.
    fn sort_actions(&mut self) {
        let Some(Value::Array(actions)) = self.known.get_mut(ALLOWED_ACTIONS) else { return };
        actions.retain(|action| match action.as_str() {
            Some(name) if name.parse::<Action>().is_err() => {
                self.unknown.push(format!("{ALLOWED_ACTIONS}: {name}"));
                false
            }
            _ => true,
        });
    }
}

impl<'de> Deserialize<'de> for Sorted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Sorted;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of settings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Sorted, A::Error> {
                let mut sorted = Sorted::default();
                while let Some(name) = object.next_key::<String>()? {
                    if !SETTINGS.contains(&name.as_str()) {
                        object.next_value::<IgnoredAny>()?;
                        sorted.unknown.push(name);
                    } else if sorted.known.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("the setting {name} comes twice")));
                    } else {
                        sorted.known.insert(name, object.next_value()?);
                    }
                }
                Ok(sorted)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

fn in_range(
    setting: &'static str,
    value: Option<u32>,
    least: u32,
    most: u32,
    rule: &'static str,
) -> Result<(), PolicyError> {
    match value {
        Some(value) if !(least..=most).contains(&value) => {
            Err(PolicyError::Range { setting, found: value.to_string(), rule })
        }
        _ => Ok(()),
    }
}

/// Whether `path` begins with `/` or with a drive such as `C:\`, and has no control character. Scanners are given it as an
/// argument, so it must not be one of their options.
fn is_absolute_path(path: &str) -> bool {
    let is_rooted = match path.as_bytes() {
        [b'/', ..] => true,
        [drive, b':', b'\\', ..] => drive.is_ascii_alphabetic(),
        _ => false,
    };
    is_rooted && !path.contains(char::is_control)
}

/// Checks a document's name: 1 to 64 bytes of letters, digits, `-`, `_`, `.` and blanks.
#[must_use]
pub fn is_policy_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.chars().all(|letter| letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.' | ' '))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::laws::{digest, hold_for, site, text, time};

    prop_compose! {
        fn settings()(
            servers in prop::option::of(prop::collection::vec("[a-z]{1,9}:[1-9][0-9]{0,3}", 1..3)),
            keepalive_seconds in prop::option::of(20u32..=900),
            policy_minutes in prop::option::of(1u32..=10_080),
            quick_scan_paths in prop::option::of(prop::collection::vec("/[a-zä \"]{0,9}", 0..3)),
            full_scan_paths in prop::option::of(prop::collection::vec("[A-Z]:\\\\[a-z]{0,9}", 0..3)),
            scan_exclusions in prop::option::of(prop::collection::vec("/[a-z]{0,9}", 0..3)),
            allowed_actions in prop::option::of(
                prop::collection::btree_set(prop::sample::select(&Action::ALL[..]), 0..6)),
        ) -> PolicySettings {
            PolicySettings {
                servers, keepalive_seconds, policy_minutes, quick_scan_paths, full_scan_paths, scan_exclusions,
                allowed_actions,
            }
        }
    }

    prop_compose! {
        fn statement()(
            site in site(), name in text(), version in any::<u64>(), priority in any::<i32>(),
            targets in prop::option::of(digest()), issued in time(), settings in prop::option::of(settings()),
        ) -> PolicyStatement {
            let scope = targets.map_or(PolicyScope::Everyone, PolicyScope::Set);
            let settings = settings.as_ref().map(PolicySettings::to_json);
            PolicyStatement { site, name, version, priority, scope, issued, settings }
        }
    }

    proptest! {
        #[test]
        fn a_statement_keeps_the_laws_of_the_codec(statement in statement()) {
            hold_for(&statement);
        }

        #[test]
        fn settings_read_back_as_they_were_written(settings in settings()) {
            let json = settings.to_json();
            prop_assert_eq!(PolicySettings::parse_known(&json), Ok((settings.clone(), Vec::new())));
            prop_assert_eq!(PolicySettings::parse(&json), Ok(settings));
        }

        #[test]
        fn an_altered_document_is_read_or_refused_and_no_panic(
            settings in settings(), at in any::<prop::sample::Index>(), altered in any::<char>(),
        ) {
            let mut letters: Vec<_> = settings.to_json().chars().collect();
            let at = at.index(letters.len());
            letters[at] = altered;
            let json: String = letters.iter().collect();
            // Whoever issues documents takes nothing that devices would not take in the same way.
            if let Ok(settings) = PolicySettings::parse(&json) {
                prop_assert_eq!(PolicySettings::parse_known(&json), Ok((settings, Vec::new())));
            }
        }
    }

    #[test]
    fn the_higher_document_wins_setting_by_setting() {
        let low = PolicySettings::parse(r#"{"keepalive_seconds": 300, "policy_minutes": 30}"#).unwrap();
        let high = PolicySettings::parse(r#"{"keepalive_seconds": 60}"#).unwrap();
        let both = high.over(low);
        assert_eq!((both.keepalive_seconds, both.policy_minutes), (Some(60), Some(30)));
    }

    #[test]
    fn a_setting_that_is_unknown_or_out_of_range_is_named() {
        for (json, name) in [
            (r#"{"keepalife": 5}"#, "keepalife"),
            (r#"{"keepalive_seconds": 5}"#, "keepalive_seconds"),
            (r#"{"servers": ["nowhere"]}"#, "servers"),
            (r#"{"servers": []}"#, "servers"),
            (r#"{"servers": ["somewhere:0"]}"#, "servers"),
            (r#"{"quick_scan_paths": ["tmp"]}"#, "quick_scan_paths"),
            (r#"{"full_scan_paths": ["--remove=yes:\\"]}"#, "full_scan_paths"),
            (r#"{"scan_exclusions": ["/tmp\u0000"]}"#, "scan_exclusions"),
            (r#"{"allowed_actions": ["reboot"]}"#, "reboot"),
        ] {
            let error = PolicySettings::parse(json).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_device_passes_over_what_a_later_release_has_added() {
        let json = r#"{"colour": {"deep": [1, {}]}, "keepalive_seconds": 60, "allowed_actions": ["restart", "ping"]}"#;
        assert!(PolicySettings::parse(json).is_err());
        let (settings, unknown) = PolicySettings::parse_known(json).unwrap();
        assert_eq!(settings.keepalive_seconds, Some(60));
        assert_eq!(unknown, ["colour", "allowed_actions: restart"]);
        assert!(settings.allows(Action::Ping) && !settings.allows(Action::FullScan));

        let (settings, _) = PolicySettings::parse_known(r#"{"allowed_actions": ["restart"]}"#).unwrap();
        assert!(!settings.allows(Action::Ping), "a list without a known action allows none, not all");
    }

    #[test]
    fn a_device_checks_what_it_knows_as_strictly_as_the_site() {
        for (json, word) in [
            (r#"{"colour": 1, "keepalive_seconds": 5}"#, "keepalive_seconds"),
            (r#"{"colour": 1, "policy_minutes": "often"}"#, "invalid type"),
            (r#"{"allowed_actions": ["ping", 5]}"#, "invalid type"),
            (r#"{"policy_minutes": 5, "policy_minutes": 6}"#, "policy_minutes"),
            (r#"["policy_minutes"]"#, "an object of settings"),
            (r#"{"colour": }"#, "expected value"),
        ] {
            let error = PolicySettings::parse_known(json).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let long = format!(r#"{{"colour": "{}"}}"#, "x".repeat(DOCUMENT_BYTES_MAX));
        assert!(matches!(PolicySettings::parse_known(&long), Err(PolicyError::TooLong(_))));
    }

    #[test]
    fn paths_begin_at_a_root_or_a_drive() {
        let settings =
            PolicySettings::parse(r#"{"quick_scan_paths": ["/", "/srv/a b", "C:\\Users", "d:\\"]}"#).unwrap();
        assert_eq!(settings.quick_scan_paths.unwrap().len(), 4);
    }

    #[test]
    fn what_is_not_allowed_is_only_what_a_document_leaves_out() {
        assert!(PolicySettings::default().allows(Action::FullScan));
        let some = PolicySettings::parse(r#"{"allowed_actions": ["ping"]}"#).unwrap();
        assert!(some.allows(Action::Ping) && !some.allows(Action::FullScan));
    }
}
