//! Why a connection to a server, or the attempt at one, ended: every reason that the agent knows.
//!
//! Each has one label of a metric, which is stable, and one sentence for the log.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// The attempt failed: no route, no TLS, a server that is not the site's.
    NotConnected,
    /// The attempt took too long.
    ConnectTimedOut,
    /// The server was silent after the hello.
    HelloUnanswered,
    /// The server was silent after a keepalive.
    KeepaliveUnanswered,
    /// The line was cut, or the server closed it.
    Lost,
    /// The server ended the session and said why.
    Refused,
    /// The server goes away for a while.
    Draining,
    /// The server broke the protocol.
    NotAllowed,
    /// The journal cannot take a session's number.
    NoRoom,
    /// The session's ticket is old, and a new session brings a new one.
    TicketOld,
    /// A better road leads to the server.
    RoadBetter,
    /// The agent ends.
    Stopped,
}

impl Parting {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::NotConnected,
        Self::ConnectTimedOut,
        Self::HelloUnanswered,
        Self::KeepaliveUnanswered,
        Self::Lost,
        Self::Refused,
        Self::Draining,
        Self::NotAllowed,
        Self::NoRoom,
        Self::TicketOld,
        Self::RoadBetter,
        Self::Stopped,
    ];

    /// The label of its metric; never changed.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.texts().0
    }

    /// What happened, for the log.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        self.texts().1
    }

    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::NotConnected => ("not-connected", "no connection came about"),
            Self::ConnectTimedOut => ("connect-timed-out", "no connection came about in time"),
            Self::HelloUnanswered => ("hello-unanswered", "the server did not answer the hello in time"),
            Self::KeepaliveUnanswered => {
                ("keepalive-unanswered", "the server did not answer a keepalive in time")
            }
            Self::Lost => ("lost", "the connection is gone"),
            Self::Refused => ("refused", "the server ended the session"),
            Self::Draining => ("draining", "the server goes away"),
            Self::NotAllowed => {
                ("not-allowed", "the server said something that is not allowed at this point")
            }
            Self::NoRoom => ("no-room", "the disk has no room for a session's number"),
            Self::TicketOld => {
                ("ticket-old", "its session ticket is old, and a new session brings a new one")
            }
            Self::RoadBetter => ("road-better", "the session moves over to a better road"),
            Self::Stopped => ("stopped", "the agent ends"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_listed_once_in_its_place_and_has_a_label_of_its_own() {
        for (at, parting) in Parting::ALL.into_iter().enumerate() {
            assert_eq!(parting as usize, at);
            let same = Parting::ALL.into_iter().filter(|other| other.label() == parting.label());
            assert_eq!(same.count(), 1, "{parting:?}");
        }
    }
}
