//! How often each kind of fault was injected and each transition was seen.
//!
//! A simulation that never cuts a frame in the middle, or never sees a session superseded, proves nothing about either: a kind
//! that stays at zero over all seeds fails the run. Counts of several seeds add up.

use std::fmt::Write as _;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident => $name:literal,)*) => {
        /// Something that happens in a simulated world.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            const ALL: &[(Self, &'static str)] = &[$((Self::$kind, $name),)*];
        }
    };
}

kinds! {
    // Faults of the network.
    LinkCut => "fault: link cut both ways",
    LinkCutUp => "fault: link cut from agent to server only",
    LinkCutDown => "fault: link cut from server to agent only",
    ServerCutOff => "fault: server cut off from everybody",
    ConnectionForgotten => "fault: connection forgotten by the network (half-open)",
    Roamed => "fault: agent roams while its connection stays half-open",
    OutOfReach => "fault: device out of reach of all servers for minutes",
    FrameCutShort => "fault: connection ended in the middle of a frame",
    SlowReader => "fault: agent reads in trickles",
    // Faults of proxies.
    ProxyCutsIdle => "fault: proxy cuts a connection that is idle",
    ProxyCuts => "fault: proxy cuts a connection, both ends are told",
    ProxyKeepsAgentsHalf => "fault: proxy keeps the agent's half open, the server's is gone",
    ProxyKeepsServersHalf => "fault: proxy keeps the server's half open, the agent's is gone",
    ProxyForgets => "fault: proxy cuts a connection, and answers for it at both ends",
    ProxySwallows => "fault: bytes that a proxy has acknowledged arrive nowhere",
    ProxyRestarts => "fault: proxy started anew",
    ProxyCutsHeld => "fault: proxy gives a held GET up",
    // Faults while a session moves over to a better road.
    CutInMove => "fault: connection or link cut while a session moves over",
    DiedInMove => "fault: device or agent dies while its session moves over",
    // Faults of requests.
    RequestLost => "fault: request lost before it reaches the server",
    AnswerLost => "fault: answer to a request lost",
    RequestCut => "fault: request cut within its body",
    AnswerCut => "fault: answer cut within its body",
    RequestRepeated => "fault: request repeated by a proxy",
    AnswerLate => "fault: answer late",
    GatewayAnswers => "fault: proxy answers 502 or 504",
    RequestAstray => "fault: request handed to another server",
    // Faults of devices.
    LateJoiner => "fault: device appears late",
    AgentKilled => "fault: agent killed",
    AgentStopped => "fault: agent stopped by its owner",
    DevicePowerCut => "fault: device loses power",
    DeviceOffForGood => "fault: device switched off for good",
    DeviceCloned => "fault: device copied, both are there",
    DiskDiesMidStep => "fault: device dies at a write",
    SyncFails => "fault: fsync fails on a device",
    DiskFull => "fault: disk full on a device",
    UnsyncedLost => "fault: unsynced bytes or names lost",
    WallClockJumps => "fault: wall clock of a device jumps",
    ActionHangs => "fault: action does not end by itself",
    ActionLost => "fault: action dies with its agent",
    // Faults of servers.
    ServerKilled => "fault: server killed",
    ServerDrained => "fault: server stopped gracefully",
    SpoolStalls => "fault: spool's disk is slow",
    QueueUnreadable => "fault: queue cannot be read",
    // Faults of the site and of hosts.
    ManagerKilled => "fault: manager killed",
    HostPowerCut => "fault: host loses power",
    HostDiesMidStep => "fault: host dies at a write",
    HostSyncFails => "fault: fsync fails on a host",
    HostDiskFull => "fault: disk full on a host",
    HostUnsyncedLost => "fault: unsynced bytes or names lost on a host",
    DatabaseCopied => "site: database copied while it is in use",
    DatabaseRestored => "fault: database restored from a copy",
    RestoredFromAnHourAgo => "fault: database restored from a copy of an hour ago",
    ManagerCannotStart => "site: manager cannot start",
    BellMissed => "site: a ring of the doorbell is missed",
    FileRepeated => "fault: file comes a second time",
    FileOvertaken => "fault: file held up on its way",
    FileCameLate => "site: file that was held up comes, late",
    ServerClockBehind => "fault: server's wall clock is behind",
    ServerClockAhead => "fault: server's wall clock is ahead",
    ReadAnew => "server: everything read anew, its clock was set back",
    CertificateRevoked => "fault: certificate revoked",
    // What faults bring about on servers.
    ServerFails => "server: ended by a sync that failed",
    ServerCannotStart => "server: cannot start",
    ResultsRecovered => "server: results recovered from the spool's log",
    SpoolTorn => "server: torn end of a log cut off",
    SpoolWaitsForRoom => "server: spool waits for room",
    ChannelHeld => "server: channel held, the spool is behind",
    CourierHeldUp => "server: file cannot be carried yet",
    FullListWritten => "server: full online list written",
    NobodyTakesOrders => "site: manager down when an order is given",
    DeviceBlocked => "site: device blocked",
    // What a server in hostile hands says.
    PushReplayed => "fault: push repeated by a hostile server",
    PushMisdirected => "fault: push of another device sent by a hostile server",
    PushChanged => "fault: push with a changed byte sent by a hostile server",
    // Roads.
    RoadChanged => "road: device comes by another one than before",
    SignedInOverTcp => "road: signed in over TCP",
    SignedInOverWebSocket => "road: signed in over a WebSocket",
    SignedInOverLongPoll => "road: signed in by long-poll",
    BetterRoadStands => "road: better one stands beside the session's",
    BetterRoadFailed => "road: better one tried in vain",
    BetterRoadGone => "road: better one gone before the session left",
    BetterRoadWaitedInVain => "road: better one waited for the session in vain",
    BetterRoadTakenLate => "road: session lost, the better one was there and is taken",
    MovedOver => "road: session moved over, the former connection stayed until its hello",
    PingAnswered => "websocket: ping answered",
    PingUnanswered => "websocket: agent gives up, ping unanswered",
    CloseFrameHeard => "websocket: close frame heard",
    BytesUpRepeated => "tunnel: bytes up came again, and were not taken twice",
    BytesDownRepeated => "tunnel: bytes down given again",
    GetHeldToItsEnd => "tunnel: GET held until its time was over",
    GetSuperseded => "tunnel: GET superseded by a later one",
    RequestOverdue => "tunnel: request overdue at its agent",
    TunnelPauses => "tunnel: POST refused while the spool is behind",
    TunnelOpenedTwice => "tunnel: opened a second time, its first answer was lost",
    TunnelNeverOpened => "tunnel: ended, nobody came of it in time",
    TunnelGone => "tunnel: given up by its agent, the server knows none",
    TunnelElsewhere => "tunnel: given up by its agent, another server answered",
    TunnelConflict => "tunnel: given up by its agent, another GET took its place",
    TunnelGivenUp => "tunnel: given up by its agent, its requests are lost",
    // Sessions.
    SignedIn => "session: signed in",
    MovedServer => "session: moved to another server",
    DisplacedOnShard => "session: displaced by a newer one on its shard",
    DisplacedAcrossShards => "session: displaced by a newer one on another shard",
    SupersededBySite => "session: ended by the site, being elsewhere",
    EndedBlocked => "session: ended, blocked",
    EndedRevoked => "session: ended, certificate revoked",
    EndedCertificate => "session: ended with its certificate",
    EndedSilent => "session: ended, keepalive missed",
    EndedTunnelSilent => "session: ended, nobody asked its tunnel",
    EndedUnreachable => "session: ended, data not acknowledged",
    EndedReset => "session: ended, reset",
    EndedPeerClosed => "session: ended, peer closed",
    EndedGoodbye => "session: ended with a goodbye",
    EndedDraining => "session: ended, server stops",
    HelloMissed => "session: no hello in time",
    TooSlow => "session: ended, reads too slowly",
    RefusedBlocked => "session: refused, blocked",
    RefusedUnavailable => "session: refused, queue unreadable",
    KeepaliveAnswered => "session: keepalive answered",
    NoAnswerToKeepalive => "session: agent gives up, keepalive unanswered",
    ProbeFoundDead => "session: agent's TCP finds its peer gone",
    Choked => "session: unsent bytes pile up",
    // Tasks on their way.
    TaskStarted => "task: started by an administrator",
    TaskForLater => "task: begins later",
    TaskInRings => "task: released in two rings",
    TaskCancelled => "task: cancelled by an administrator",
    PushedAtOnce => "task: pushed to a session that was there",
    PushedAtSignIn => "task: pushed to a late joiner",
    PushedAgain => "task: pushed again to one that has it",
    ExpiredUndelivered => "task: expired before it reached a target",
    CancelHeardWaiting => "task: cancel heard while it waits",
    CancelHeardRunning => "task: cancel heard while it runs",
    CancelHeardEnded => "task: cancel heard after its end",
    BegunAgain => "task: repeatable one begun again after a crash",
    PolicyApplied => "task: policy asked for and applied",
    DoneInPeace => "task: ordered in peace, done and counted",
    // Results.
    ResultAcknowledged => "result: acknowledged",
    ResultSentAgain => "result: came to a server again",
    EndedSucceeded => "result: succeeded",
    EndedFailed => "result: failed",
    EndedInterrupted => "result: interrupted",
    EndedRefused => "result: refused",
    EndedCancelled => "result: cancelled",
}

/// Counts of every kind.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    counts: Vec<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { counts: vec![0; Kind::ALL.len()] }
    }
}

impl Tally {
    pub(crate) fn count(&mut self, kind: Kind) {
        self.counts[kind as usize] += 1;
    }

    /// How often it was seen.
    pub(crate) fn of_kind(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
    }

    /// The count of each kind, in the order in which they are named.
    pub(crate) fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Counts that another process of this program has told.
    pub(crate) fn of(counts: Vec<u64>) -> Option<Self> {
        (counts.len() == Kind::ALL.len()).then_some(Self { counts })
    }

    /// Kinds that never happened.
    pub(crate) fn never(&self) -> Vec<&'static str> {
        Kind::ALL.iter().filter(|(kind, _)| self.counts[*kind as usize] == 0).map(|(_, name)| *name).collect()
    }

    /// Faults in all.
    pub(crate) fn faults(&self) -> u64 {
        let faults = Kind::ALL.iter().filter(|(_, name)| name.starts_with("fault"));
        faults.map(|(kind, _)| self.counts[*kind as usize]).sum()
    }

    /// A line for each kind.
    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        for (kind, name) in Kind::ALL {
            let _ = writeln!(table, "{:>9}  {name}", self.counts[*kind as usize]);
        }
        table
    }
}
