//! Status messages: what the site's components tell their administrators.
//!
//! As in Configuration Manager, each has a component, a severity and a stable id, so that it can be searched and alerted
//! on. The manager writes its own into the site database; a server's travel as files (`.SVF`) to the inbox.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::UnixMillis;

/// Most bytes of a message's text; longer ones are cut where they are made.
pub const TEXT_BYTES_MAX: usize = 2 * 1024;

/// Most bytes of what a message is about; longer ones are cut where they are made.
pub const ABOUT_BYTES_MAX: usize = 256;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Component {
    /// A notification server.
    #[serde(rename = "SMS_NOTIFICATION_SERVER")]
    NotificationServer,
    /// The notification manager.
    #[serde(rename = "SMS_NOTIFICATION_MANAGER")]
    NotificationManager,
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Good to know.
    Informational,
    /// Something is not as it should be; work goes on.
    Warning,
    /// Something does not work until somebody acts, or until it is mended by itself, which is then said.
    Error,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusMessage {
    /// Who speaks.
    pub component: Component,
    /// How much it matters.
    pub severity: Severity,
    /// The stable id: [`StatusId::number`].
    pub id: u16,
    /// When.
    pub time: UnixMillis,
    /// What it is about: a server, a device, a file, a task; empty for the component itself.
    pub about: String,
    /// What happened and what to do, in a sentence or two.
    pub text: String,
}

macro_rules! status_ids {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $severity:ident;)*) => {
        /// The messages that exist. Numbers are never reused: 1xxx of the server, 2xxx of the manager.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum StatusId {
            $($(#[$doc])* $name,)*
        }

        impl StatusId {
            /// Every message.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable number.
            #[must_use]
            pub fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* }
            }

            /// How much it matters.
            #[must_use]
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }
        }
    };
}

status_ids! {
    /// The server listens.
    ServerStarted = 1000, Informational;
    /// The server stopped in good order.
    ServerStopped = 1001, Informational;
    /// The site database's queue has not been readable for 10 s.
    QueueUnreadable = 1002, Error;
    /// The queue can be read again.
    QueueReadable = 1003, Informational;
    /// New sign-ins are refused, since blocks may be missed while the queue cannot be read.
    SignInsRefused = 1004, Error;
    /// The spool could not be made durable; the server ends and recovers from its log.
    SpoolFailed = 1005, Error;
    /// A file could not be put into the inbox yet.
    InboxUnreachable = 1006, Warning;
    /// Descriptors ran out; new connections wait.
    DescriptorsExhausted = 1007, Warning;
    /// The descriptor limit is lower than the configured connections.
    DescriptorLimitLow = 1008, Warning;
    /// Certificates were read anew.
    CertificatesReloaded = 1009, Informational;
    /// Certificates could not be read anew; the old ones stay.
    CertificatesNotReloaded = 1010, Error;
    /// A row of the queue could not be understood and was passed over.
    QueueRowUnreadable = 1011, Error;
    /// The database has another generation: everything is read anew.
    GenerationChanged = 1012, Warning;
    /// The server's own certificate ends soon, or has ended.
    CertificateEnding = 1013, Warning;
    /// A row of the queue was understood and is not followed, since a limit of the server is reached.
    OrderRefused = 1014, Error;
    /// Presence could not be written to the server's own disk yet.
    PresenceNotWritten = 1015, Warning;
    /// The spool's log of an earlier life is damaged: it was read on behind the damage and kept.
    SpoolDamaged = 1016, Error;

    /// The manager answers.
    ManagerStarted = 2000, Informational;
    /// The manager stopped in good order.
    ManagerStopped = 2001, Informational;
    /// A task was started.
    TaskStarted = 2010, Informational;
    /// A task was cancelled.
    TaskCancelled = 2011, Informational;
    /// A task's validity is over.
    TaskExpired = 2012, Informational;
    /// A file could not be read and was set aside.
    FileSetAside = 2020, Error;
    /// Rows of a file could not be read and were set aside; its other rows counted.
    RowsSetAside = 2021, Error;
    /// A result's signature does not hold, or its key is not the device's; the row was set aside.
    ResultForged = 2022, Error;
    /// A device's second final word differs from its first, which stands.
    ResultDiffers = 2023, Warning;
    /// A server's online list has a gap; it is complete again with the next full list.
    PresenceGap = 2024, Warning;
    /// A server has been silent for longer than 2.5 full intervals; its devices are shown as unknown.
    ServerSilent = 2025, Warning;
    /// A silent server is back.
    ServerHeard = 2026, Informational;
    /// A device came back with a lower session number: a restored snapshot.
    DeviceRestored = 2027, Warning;
    /// A device's clock is more than 5 minutes off.
    DeviceClockSkewed = 2028, Warning;
    /// A result names a task or a device that the site does not have.
    ResultUnknown = 2029, Warning;
    /// The database cannot be written.
    DatabaseUnwritable = 2030, Error;
    /// The database can be written again.
    DatabaseWritable = 2031, Informational;
    /// The inbox cannot be read.
    InboxUnreadable = 2032, Error;
    /// The database was restored from a copy: what was ordered after the copy was made is gone.
    DatabaseRestored = 2033, Warning;
    /// After a restore, the results that the copy does not have are taken in again.
    ResultsRetaken = 2034, Informational;
    /// A device was blocked.
    DeviceBlocked = 2040, Warning;
    /// A device was unblocked.
    DeviceUnblocked = 2041, Informational;
    /// A policy document was issued.
    PolicyIssued = 2042, Informational;
}

impl StatusId {
    /// The component whose message it is.
    #[must_use]
    pub fn component(self) -> Component {
        if self.number() < 2000 { Component::NotificationServer } else { Component::NotificationManager }
    }

    /// The message, its two texts cut to [`ABOUT_BYTES_MAX`] and [`TEXT_BYTES_MAX`].
    #[must_use]
    pub fn message(
        self,
        time: UnixMillis,
        about: impl Into<String>,
        text: impl Into<String>,
    ) -> StatusMessage {
        let (mut about, mut text) = (about.into(), text.into());
        about.truncate(about.floor_char_boundary(ABOUT_BYTES_MAX));
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        let (component, severity) = (self.component(), self.severity());
        StatusMessage { component, severity, id: self.number(), time, about, text }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NotificationServer => "SMS_NOTIFICATION_SERVER",
            Self::NotificationManager => "SMS_NOTIFICATION_MANAGER",
        })
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Informational => "informational",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::laws::{hold_for, text, time};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_message_keeps_the_laws_of_the_codec(
            id in prop::sample::select(StatusId::ALL), time in time(), about in text(), text in text(),
        ) {
            hold_for(&id.message(time, about, text));
        }
    }

    #[test]
    fn no_two_messages_share_a_number() {
        let numbers: BTreeSet<_> = StatusId::ALL.iter().map(|id| id.number()).collect();
        assert_eq!(numbers.len(), StatusId::ALL.len());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = "ä".repeat(TEXT_BYTES_MAX);
        let message = StatusId::ServerStarted.message(UnixMillis(0), format!("x{long}"), long);
        assert!(message.text.len() <= TEXT_BYTES_MAX && message.text.ends_with('ä'));
        assert!(message.about.len() <= ABOUT_BYTES_MAX && message.about.ends_with('ä'));
    }
}
