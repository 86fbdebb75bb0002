//! The names of things: devices, servers, sites, tasks, boots and keys.
//!
//! Each is a newtype, so that a device's number is never taken for a server's. Times that leave a machine are
//! [`UnixMillis`]; durations and deadlines inside a process are the business of whoever holds the clock.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use uuid::Uuid;

/// Dense number that the site gives a device when it joins, counted from 0. Sets of devices are bitmaps of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceId(pub u32);

/// Number of a notification server within its site, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerId(pub u32);

/// A device's GUID: its name to people and to other systems, for life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceGuid(#[serde(with = "uuid_bytes")] pub Uuid);

/// A task's id: a UUID of version 7, so that ids sort by the time of their making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId(#[serde(with = "uuid_bytes")] pub Uuid);

/// Which boot of a machine speaks (on Linux `/proc/sys/kernel/random/boot_id`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BootId(pub [u8; 16]);

/// Counter that the agent keeps on disk and increments for each connection: the newest session wins by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionNumber(pub u64);

/// First 8 bytes of the SHA-256 of a public key (Ed25519: its 32 bytes; P-256: its 65-byte uncompressed point).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(pub [u8; 8]);

/// Which life of the site database a sequence number belongs to; a restore draws a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub [u8; 16]);

/// Milliseconds since 1970-01-01T00:00:00Z, leap seconds not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// This time and `millis` milliseconds more; stays at the far end instead of wrapping.
    #[must_use]
    pub fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to this time; 0 when `earlier` is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Three characters, A-Z and 0-9, that name a site, as Configuration Manager has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteCode([u8; 3]);

/// Three plain bytes on the wire, text where people read it.
impl Serialize for SiteCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(self.as_str())
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for SiteCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            Self::try_from(<[u8; 3]>::deserialize(deserializer)?).map_err(serde::de::Error::custom)
        }
    }
}

/// Why a text is not one of this module's names.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// Not three characters of A-Z and 0-9.
    #[error("a site code is three characters of A-Z and 0-9, such as LAB; this is {0:?}")]
    SiteCode(String),
    /// Not the hexadecimal form that the id has.
    #[error("{what} is {digits} hexadecimal digits; this is {text:?}")]
    Hex {
        /// The kind of id.
        what: &'static str,
        /// How many digits it has.
        digits: usize,
        /// What was given.
        text: String,
    },
    /// Not a UUID.
    #[error("{what} is a UUID such as 0193f1c2-7d3a-7c55-8a0e-2b9c5d1e6f70; this is {text:?}")]
    Uuid {
        /// The kind of id.
        what: &'static str,
        /// What was given.
        text: String,
    },
}

impl SiteCode {
    /// The code as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a site code is made of ASCII only")
    }

    /// The code's three bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; 3] {
        self.0
    }
}

impl TryFrom<[u8; 3]> for SiteCode {
    type Error = IdError;

    fn try_from(bytes: [u8; 3]) -> Result<Self, IdError> {
        if bytes.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()) {
            Ok(Self(bytes))
        } else {
            Err(IdError::SiteCode(String::from_utf8_lossy(&bytes).into_owned()))
        }
    }
}

impl FromStr for SiteCode {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let bytes: [u8; 3] = text.as_bytes().try_into().map_err(|_| IdError::SiteCode(text.to_owned()))?;
        Self::try_from(bytes)
    }
}

impl fmt::Display for SiteCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Debug for SiteCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for SessionNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

macro_rules! uuid_id {
    ($name:ident, $what:literal) => {
        impl $name {
            /// The id's 16 bytes, most significant first.
            #[must_use]
            pub fn bytes(&self) -> [u8; 16] {
                *self.0.as_bytes()
            }

            /// The id with these bytes.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| IdError::Uuid { what: $what, text: text.to_owned() })
            }
        }
    };
}

uuid_id!(TaskId, "a task's id");
uuid_id!(DeviceGuid, "a device's GUID");

macro_rules! hex_id {
    ($name:ident, $bytes:literal, $what:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, formatter)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let wrong = || IdError::Hex { what: $what, digits: 2 * $bytes, text: text.to_owned() };
                // Each digit is looked at: reading a number takes a sign as well.
                if text.len() != 2 * $bytes || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    return Err(wrong());
                }
                let mut bytes = [0; $bytes];
                for (index, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| wrong())?;
                }
                Ok(Self(bytes))
            }
        }
    };
}

hex_id!(BootId, 16, "a boot id");
hex_id!(KeyId, 8, "a key id");
hex_id!(Generation, 16, "a database's generation");

/// UUIDs as 16 plain bytes: neither a length nor text on the wire.
mod uuid_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(id)
        } else {
            id.as_bytes().serialize(serializer)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            Uuid::parse_str(&text).map_err(serde::de::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Uuid::from_bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_code_is_three_capitals_or_digits() {
        assert_eq!("LAB".parse::<SiteCode>().unwrap().as_str(), "LAB");
        for wrong in ["lab", "LA", "LABO", "L-B", "ÄA"] {
            assert!(wrong.parse::<SiteCode>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ids_read_back_what_they_print() {
        let boot = BootId([0xab; 16]);
        assert_eq!(boot.to_string().parse::<BootId>().unwrap(), boot);
        let task = TaskId::from_bytes([7; 16]);
        assert_eq!(task.to_string().parse::<TaskId>().unwrap(), task);
        assert!("xyz".parse::<KeyId>().is_err());
        assert!("ääääääää".parse::<KeyId>().is_err());
        assert!("+1+1+1+1+1+1+1+1".parse::<KeyId>().is_err());
    }

    #[test]
    fn ids_are_plain_bytes_on_the_wire() {
        let task = TaskId::from_bytes([7; 16]);
        assert_eq!(postcard::to_allocvec(&task).unwrap(), vec![7; 16]);
        let site: SiteCode = "LAB".parse().unwrap();
        assert_eq!(postcard::to_allocvec(&site).unwrap(), b"LAB");
        assert_eq!(postcard::from_bytes::<SiteCode>(b"LAB").unwrap(), site);
        assert!(postcard::from_bytes::<SiteCode>(b"lab").is_err());
    }

    #[test]
    fn ids_are_text_where_people_read_them() {
        let site: SiteCode = "LAB".parse().unwrap();
        assert_eq!(serde_json::to_value(site).unwrap(), "LAB");
        assert_eq!(serde_json::from_str::<SiteCode>("\"LAB\"").unwrap(), site);
        assert!(serde_json::from_str::<SiteCode>("\"lab\"").is_err());
        let task = TaskId::from_bytes([7; 16]);
        assert_eq!(serde_json::to_value(task).unwrap(), task.to_string());
    }
}
