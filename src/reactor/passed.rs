//! What is passed between a socket that a request to a long-poll tunnel came by and the tunnel: within a shard, and from one to another.
//!
//! Values alone: who serves them is [`super::tunnels`]'s business, and whose answer it is that of `web.rs`. Each request that is passed is answered once,
//! but for the word that whoever waited is gone.

use bgb_http::ResponseHead;
use bgb_http::tunnel::TunnelId;

use super::slots::SlotKey;
use super::transport::Reply;
use crate::directory::ShardId;

/// Whose request it is: the way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The shard of the socket.
    pub shard: ShardId,
    /// The socket.
    pub socket: SlotKey,
    /// Which of its requests it is: it may have been answered otherwise since.
    pub number: u32,
}

/// Whose limits a socket has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A stranger's: it holds a place among the handshakes, and has only so much time.
    Stranger,
    /// Those of somebody who has named a known device's tunnel.
    Welcome,
}

/// What a tunnel says for a socket whose request it has served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Nothing: its device is not known.
    Unknown,
    /// Its device is known: the request has the time that it asks for, and the socket stays what it is.
    Known,
    /// Its device is known, and the socket is no stranger's any more.
    Frees,
}

/// What is asked of a tunnel.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Bytes up; whether they are the last of their request, which is to be answered.
    Up {
        /// The first one's offset.
        from: u64,
        /// They themselves.
        bytes: Vec<u8>,
        /// Whether they are the last of their request, so that it is to be answered.
        is_last: bool,
    },
    /// Bytes down.
    Down {
        /// The first one's offset.
        from: u64,
        /// How long to wait for one.
        hold_secs: u32,
    },
    /// Whoever waited for bytes down is gone.
    Lost,
}

/// What is passed from shard to shard.
#[derive(Clone, Debug)]
pub enum Passed {
    /// A request.
    Ask {
        /// Whose.
        asker: Asker,
        /// What its socket is.
        standing: Standing,
        /// Of which tunnel.
        id: TunnelId,
        /// What.
        ask: Ask,
    },
    /// What it comes to.
    Answer {
        /// Whose it is.
        asker: Asker,
        /// The answer.
        answer: TunnelAnswer,
    },
}

/// What a request to a tunnel comes to.
#[derive(Clone, Debug)]
pub enum TunnelAnswer {
    /// It is held. Said again when the device is known meanwhile.
    Held(Word),
    /// The answer.
    Given(GivenAnswer),
    /// Bytes up were not taken, and the rest of their body need not be passed on.
    Refused(GivenAnswer),
    /// The tunnel's device is known since, and the socket is no stranger's any more.
    Freed,
}

/// An answer to a request to a tunnel.
#[derive(Clone, Debug)]
pub struct GivenAnswer {
    status: u16,
    /// Up to where bytes up were taken; not known of a tunnel that there is not.
    received: Option<u64>,
    /// The offset that was asked for.
    from: Option<u64>,
    bytes: Vec<u8>,
    /// Whether its socket is no stranger's any more.
    pub frees: bool,
}

impl GivenAnswer {
    /// An answer of a tunnel that has taken so many bytes up.
    #[must_use]
    pub fn new(status: u16, received: u64) -> Self {
        Self { status, received: Some(received), from: None, bytes: Vec::new(), frees: false }
    }

    /// There is no such tunnel, or no longer.
    #[must_use]
    pub fn gone() -> Self {
        Self { status: 404, received: None, from: None, bytes: Vec::new(), frees: false }
    }

    /// Its shard takes no more at present. The offset shows that it is our answer, and not that of something between.
    #[must_use]
    pub fn busy(from: u64) -> Self {
        Self { status: 503, ..Self::gone() }.at(from)
    }

    /// Whether bytes were taken or given.
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// To a request that asked for this offset.
    #[must_use]
    pub fn at(mut self, from: u64) -> Self {
        self.from = Some(from);
        self
    }

    /// Whether its socket is freed of a stranger's limits with it.
    #[must_use]
    pub fn freeing(mut self, frees: bool) -> Self {
        self.frees = frees;
        self
    }

    /// With these bytes down.
    #[must_use]
    pub fn with(mut self, bytes: Vec<u8>) -> Self {
        self.bytes = bytes;
        self
    }

    /// As HTTP says it.
    #[must_use]
    pub fn reply(self) -> Reply {
        let mut head = ResponseHead::new(self.status).with("Cache-Control", "no-store");
        if let Some(received) = self.received {
            head = head.with("Bgb-Received", received.to_string());
        }
        if let Some(from) = self.from {
            head = head.with("Bgb-From", from.to_string());
        }
        match self.status {
            200 => Reply { head, body: self.bytes, content_type: "application/octet-stream" },
            503 => Reply::sentence(
                head.with("Retry-After", "1"),
                "There is no room for more at present; repeat it in a second.",
            ),
            404 => Reply::sentence(
                head,
                "There is no such tunnel, or no longer; open another with a POST to /bgb/tunnel.",
            ),
            409 => Reply::sentence(
                head,
                "The offset cannot be: see Bgb-Received; or a later request took this one's place.",
            ),
            _ => Reply::empty(head),
        }
    }
}
