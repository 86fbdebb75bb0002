//! A connection over a WebSocket: between its two ends go the product's frames, masked on their way up, with pings, pongs and a close
//! frame among them, through the same pipes as over TCP.
//!
//! The agent's transport pings when it has heard nothing for a while, as often as its road needs, and takes the connection for dead when nothing
//! answers. Law: what frames hold is what was said (`roads.rs`), however they are cut.

use bgb_agent::rules::PONG;
use bgb_http::websocket::{Control, Decoder, Side, encode_control, encode_data};

use crate::network::{ConnId, End, Way};
use crate::roads::{Carriage, Ledger};
use crate::tally::Kind;
use crate::world::{Event, World};

/// How long a ping waits for anything.
const PONG_MS: u64 = PONG.as_millis() as u64;
/// The code of a close frame that means what it says (RFC 6455, 7.4.1).
const NORMAL: u16 = 1000;
/// So many times in a thousand a side says more than it must: a message in two, an empty one, a ping or a pong that nobody asked for.
const TALKATIVE_PER_MILLE: u64 = 50;

/// See the module.
#[derive(Debug)]
pub(crate) struct Frames {
    up: Half,
    down: Half,
    /// When the agent heard anything last.
    heard_ms: u64,
    /// When it has said a ping that nothing has answered.
    pinged_ms: Option<u64>,
}

/// A direction: who decodes it, and what is on its way.
#[derive(Debug)]
struct Half {
    decoder: Decoder,
    ledger: Ledger,
}

impl Frames {
    pub(crate) fn new(now_ms: u64) -> Self {
        let half = |side| Half { decoder: Decoder::new(side), ledger: Ledger::default() };
        Self { up: half(Side::Server), down: half(Side::Client), heard_ms: now_ms, pinged_ms: None }
    }

    fn half(&mut self, way: Way) -> &mut Half {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

impl World {
    fn mask(&mut self, way: Way) -> Option<[u8; 4]> {
        (way == Way::Up).then(|| self.dice.bytes())
    }

    /// What a side says, in frames.
    pub(crate) fn frame(&mut self, id: ConnId, way: Way, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 16);
        let at = if self.dice.chance(TALKATIVE_PER_MILLE) {
            self.dice.place(bytes.len() + 1)
        } else {
            bytes.len()
        };
        let mask = self.mask(way);
        encode_data(&bytes[..at], mask, &mut out);
        if at < bytes.len() {
            let between = match self.dice.below(3) {
                0 => Some(Control::Ping(b"?".to_vec())),
                1 => Some(Control::Pong(Vec::new())),
                _ => None,
            };
            match (between, self.mask(way)) {
                (Some(control), mask) => encode_control(&control, mask, &mut out),
                // No message, but a frame without anything in it.
                (None, mask) => encode_frame_of_nothing(mask, &mut out),
            }
            let mask = self.mask(way);
            encode_data(&bytes[at..], mask, &mut out);
        }
        if let Some(frames) = self.network.conns.get_mut(&id).and_then(|conn| conn.frames()) {
            frames.half(way).ledger.say(bytes);
        }
        out
    }

    /// What frames hold that have arrived; and whether the other side has said that it says no more.
    pub(crate) fn unframe(&mut self, id: ConnId, way: Way, mut bytes: Vec<u8>) -> (Vec<u8>, bool) {
        let now_ms = self.now_ms;
        let Some(conn) = self.network.conns.get_mut(&id) else { return (Vec::new(), false) };
        let Some(frames) = conn.frames() else { return (bytes, false) };
        if way == Way::Down {
            frames.heard_ms = now_ms;
            if frames.pinged_ms.take().is_some() {
                self.tally.count(Kind::PingAnswered);
            }
        }
        let Some(frames) = self.network.conns.get_mut(&id).and_then(|conn| conn.frames()) else {
            return (Vec::new(), false);
        };
        let (half, mut data, mut controls) = (frames.half(way), Vec::new(), Vec::new());
        let decoded = half.decoder.decode(&mut bytes, &mut data, &mut controls);
        let is_closed = half.decoder.is_closed();
        let kept = half.ledger.hear(&data);
        if let Err(fault) = decoded {
            self.violated(format!("a WebSocket frame cannot be read, {way:?}: {fault}"));
        }
        self.expect(kept.map_err(|what| format!("over a WebSocket, {way:?}: {what}")));
        for control in controls {
            if let Control::Ping(payload) = control {
                self.say_control(id, way.back(), &Control::Pong(payload));
            }
        }
        if is_closed {
            self.tally.count(Kind::CloseFrameHeard);
        }
        (data, is_closed)
    }

    fn say_control(&mut self, id: ConnId, way: Way, control: &Control) {
        let mask = self.mask(way);
        let mut bytes = Vec::new();
        encode_control(control, mask, &mut bytes);
        self.write_raw(id, way, &bytes);
    }

    /// A side says that it says no more, where its road has a word for that.
    pub(crate) fn say_close_frame(&mut self, id: ConnId, way: Way) {
        if self.network.conns.get_mut(&id).is_some_and(|conn| conn.frames().is_some()) {
            self.say_control(id, way, &Control::Close(Some(NORMAL)));
        }
    }

    /// The WebSocket stands: its agent looks after it.
    pub(crate) fn begin_pings(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get(&id) else { return };
        if matches!(conn.carriage, Carriage::Frames(_)) {
            let every_ms = self.machines[conn.agent].habits.ping_ms();
            self.after(every_ms, Event::PingDue { conn: id });
        }
    }

    pub(crate) fn on_ping_due(&mut self, id: ConnId) {
        let now_ms = self.now_ms;
        let Some(conn) = self.network.conns.get_mut(&id).filter(|conn| conn.agent_end == End::Open) else {
            return;
        };
        let agent = conn.agent;
        let every_ms = self.machines[agent].habits.ping_ms();
        let Some(frames) = conn.frames() else { return };
        let due_ms = frames.heard_ms + every_ms;
        match frames.pinged_ms {
            Some(pinged_ms) if now_ms >= pinged_ms + PONG_MS => {
                self.tally.count(Kind::PingUnanswered);
                self.lose_at_agent(id, "a ping was not answered");
            }
            Some(pinged_ms) => self.after(pinged_ms + PONG_MS - now_ms, Event::PingDue { conn: id }),
            None if now_ms >= due_ms => {
                frames.pinged_ms = Some(now_ms);
                self.say_control(id, Way::Up, &Control::Ping(Vec::new()));
                self.after(PONG_MS, Event::PingDue { conn: id });
            }
            None => self.after(due_ms - now_ms, Event::PingDue { conn: id }),
        }
    }
}

/// A binary message without a byte (RFC 6455, 5.2): the encoder leaves such out.
fn encode_frame_of_nothing(mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    match mask {
        Some(mask) => out.extend([&[0x82, 0x80][..], &mask].concat()),
        None => out.extend([0x82, 0]),
    }
}
