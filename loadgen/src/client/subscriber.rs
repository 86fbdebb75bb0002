//! A client of another server, for comparison: it subscribes to one subject, hears messages, and says that it is still there.
//!
//! Each of the three protocols is spoken as far as that takes: MQTT 3.1.1 (OASIS), NATS's client protocol, and WebSocket (RFC 6455) as nchan
//! serves it. Messages begin with an id in hexadecimal, so that it is known which one was heard.
//!
//! It is fed with plaintext and gives plaintext to be sent, like [`super::agent`].

use bgb_protocol::ids::TaskId;

use super::agent::Heard;

/// What everybody subscribes to.
pub(crate) const SUBJECT: &str = "bgb.all";
/// A client says so often that it is there: as an agent of ours does.
pub(crate) const KEEPALIVE_SECS: u32 = 900;
/// Characters of the id that a message begins with.
const ID_CHARACTERS: usize = 32;
/// More than one message and what is around it.
const HEARD_BYTES_MAX: usize = 1 << 20;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dialect {
    Mqtt,
    Nats,
    Nchan,
}

/// See the module.
pub(crate) struct Subscriber {
    dialect: Dialect,
    number: u32,
    heard: Vec<u8>,
    /// The WebSocket stands.
    is_upgraded: bool,
    is_active: bool,
}

/// What a server has said.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The subscription stands.
    Ready,
    /// The WebSocket stands.
    Upgraded,
    /// A message, with its id.
    Message(TaskId),
    /// It wants to hear this.
    Ask(Vec<u8>),
    Nothing,
}

impl Dialect {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Nats => "nats",
            Self::Nchan => "nchan",
        }
    }

    /// What a client says that it speaks (ALPN); `None` where the server does not ask.
    pub(crate) fn alpn(self) -> Option<&'static [u8]> {
        match self {
            Self::Mqtt | Self::Nats => None,
            Self::Nchan => Some(b"http/1.1"),
        }
    }

    /// Whether the server speaks first, a line before TLS.
    pub(crate) fn server_speaks_first(self) -> bool {
        self == Self::Nats
    }

    /// What connects: the greeting of a client, without a subscription.
    pub(crate) fn connect(self, name: &str, out: &mut Vec<u8>) {
        match self {
            Self::Mqtt => {
                let mut body = Vec::new();
                text(&mut body, "MQTT");
                // Version 3.1.1, a clean session.
                body.extend_from_slice(&[4, 2]);
                body.extend_from_slice(&(KEEPALIVE_SECS as u16).to_be_bytes());
                text(&mut body, name);
                packet(out, 0x10, &body);
            }
            Self::Nats => out.extend_from_slice(
                format!(
                    "CONNECT {{\"verbose\":false,\"pedantic\":false,\"tls_required\":true,\"name\":\"{name}\",\"lang\":\"rust\",\"version\":\"1\",\"protocol\":1}}\r\n"
                )
                .as_bytes(),
            ),
            Self::Nchan => {}
        }
    }

    /// What publishes `message` to everybody.
    pub(crate) fn publish(self, message: &str, out: &mut Vec<u8>) {
        match self {
            Self::Mqtt => {
                let mut body = Vec::new();
                text(&mut body, SUBJECT);
                body.extend_from_slice(message.as_bytes());
                packet(out, 0x30, &body);
            }
            Self::Nats => {
                out.extend_from_slice(format!("PUB {SUBJECT} {}\r\n{message}\r\n", message.len()).as_bytes());
            }
            Self::Nchan => out.extend_from_slice(
                format!(
                    "POST /pub HTTP/1.1\r\nHost: peer\r\nContent-Length: {}\r\n\r\n{message}",
                    message.len()
                )
                .as_bytes(),
            ),
        }
    }
}

impl Subscriber {
    pub(crate) fn new(dialect: Dialect, number: u32) -> Self {
        Self { dialect, number, heard: Vec::new(), is_upgraded: false, is_active: false }
    }

    /// Whether its subscription stands.
    pub(crate) fn is_active(&self) -> bool {
        self.is_active
    }

    /// The connection is gone.
    pub(crate) fn lose(&mut self) {
        self.heard.clear();
        (self.is_upgraded, self.is_active) = (false, false);
    }

    /// A connection stands: what is said first goes into `out`.
    pub(crate) fn greet(&self, out: &mut Vec<u8>) {
        self.dialect.connect(&format!("load-{}", self.number), out);
        match self.dialect {
            Dialect::Mqtt => {
                let mut body = vec![0, 1];
                text(&mut body, SUBJECT);
                body.push(0);
                packet(out, 0x82, &body);
            }
            Dialect::Nats => out.extend_from_slice(format!("SUB {SUBJECT} 1\r\nPING\r\n").as_bytes()),
            Dialect::Nchan => out.extend_from_slice(
                b"GET /sub HTTP/1.1\r\nHost: peer\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Key: bG9hZCBnZW5lcmF0b3IhIQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            ),
        }
    }

    /// It is still there.
    pub(crate) fn keep_alive(&self, out: &mut Vec<u8>) {
        match self.dialect {
            Dialect::Mqtt => out.extend_from_slice(&[0xC0, 0]),
            Dialect::Nats => out.extend_from_slice(b"PING\r\n"),
            // A ping of no bytes, masked by nothing.
            Dialect::Nchan => out.extend_from_slice(&[0x89, 0x80, 0, 0, 0, 0]),
        }
    }

    /// Takes plaintext as it came; what is whole goes to `tell`, what the server wants to hear into `out`.
    ///
    /// # Errors
    /// What the server said that cannot be read, or that it refuses.
    pub(crate) fn hear(
        &mut self,
        plain: &[u8],
        mut tell: impl FnMut(Heard),
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        self.heard.extend_from_slice(plain);
        let mut used = 0;
        while let Some((said, bytes)) = self.read(&self.heard[used..])? {
            used += bytes;
            match said {
                Said::Ready => {
                    self.is_active = true;
                    tell(Heard::Welcome { keepalive_secs: KEEPALIVE_SECS, slot_secs: None });
                }
                Said::Upgraded => {
                    (self.is_upgraded, self.is_active) = (true, true);
                    tell(Heard::Welcome { keepalive_secs: KEEPALIVE_SECS, slot_secs: None });
                }
                Said::Message(id) => tell(Heard::Message(id)),
                Said::Ask(answer) => out.extend_from_slice(&answer),
                Said::Nothing => {}
            }
        }
        self.heard.drain(..used);
        if self.heard.len() > HEARD_BYTES_MAX {
            return Err("more than a message is under way".to_owned());
        }
        if self.heard.is_empty() {
            // At rest nothing is held of what was heard.
            self.heard = Vec::new();
        }
        Ok(())
    }

    /// The first whole thing that was said, and its bytes.
    fn read(&self, bytes: &[u8]) -> Result<Option<(Said, usize)>, String> {
        match self.dialect {
            Dialect::Mqtt => read_mqtt(bytes),
            Dialect::Nats => read_nats(bytes, self.is_active),
            Dialect::Nchan if self.is_upgraded => read_frame(bytes),
            Dialect::Nchan => read_upgrade(bytes),
        }
    }
}

/// A string of MQTT: its length, and itself.
fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A packet of MQTT: type, length in groups of seven bits, body.
fn packet(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.push(kind);
    let mut left = body.len();
    loop {
        let group = (left % 128) as u8;
        left /= 128;
        out.push(if left > 0 { group | 0x80 } else { group });
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
}

fn read_mqtt(bytes: &[u8]) -> Result<Option<(Said, usize)>, String> {
    let Some((&kind, rest)) = bytes.split_first() else { return Ok(None) };
    let (mut length, mut groups) = (0_usize, 0);
    loop {
        let Some(&group) = rest.get(groups) else { return Ok(None) };
        length |= usize::from(group & 0x7F) << (7 * groups);
        groups += 1;
        if group & 0x80 == 0 {
            break;
        }
        if groups == 4 {
            return Err("a packet's length has more than four bytes".to_owned());
        }
    }
    let Some(body) = rest.get(groups..groups + length) else { return Ok(None) };
    let said = match kind >> 4 {
        2 if body.get(1) != Some(&0) => return Err(format!("the connection is refused: {body:?}")),
        9 if body.get(2) == Some(&0x80) => return Err("the subscription is refused".to_owned()),
        9 => Said::Ready,
        3 => {
            let topic = body.first_chunk().map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
            Said::Message(id_of(body.get(2 + topic..).unwrap_or_default())?)
        }
        _ => Said::Nothing,
    };
    Ok(Some((said, 1 + groups + length)))
}

fn read_nats(bytes: &[u8], is_active: bool) -> Result<Option<(Said, usize)>, String> {
    let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
    let line = String::from_utf8_lossy(&bytes[..end]);
    let mut words = line.split_whitespace();
    let said = match words.next() {
        Some("PING") => Said::Ask(b"PONG\r\n".to_vec()),
        Some("PONG") if !is_active => Said::Ready,
        Some("MSG") => {
            let length: usize = words
                .next_back()
                .and_then(|word| word.parse().ok())
                .ok_or_else(|| format!("{line:?} has no length"))?;
            let begin = end + 2;
            let Some(message) = bytes.get(begin..begin + length + 2) else { return Ok(None) };
            return Ok(Some((Said::Message(id_of(message)?), begin + length + 2)));
        }
        Some("-ERR") => return Err(line.into_owned()),
        _ => Said::Nothing,
    };
    Ok(Some((said, end + 2)))
}

fn read_upgrade(bytes: &[u8]) -> Result<Option<(Said, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    if !bytes.starts_with(b"HTTP/1.1 101 ") {
        let head = String::from_utf8_lossy(&bytes[..end]);
        return Err(format!("no WebSocket: {}", head.lines().next().unwrap_or_default()));
    }
    Ok(Some((Said::Upgraded, end + 4)))
}

fn read_frame(bytes: &[u8]) -> Result<Option<(Said, usize)>, String> {
    let Some([first, second]) = bytes.first_chunk() else { return Ok(None) };
    let (length, begin): (usize, usize) = match second & 0x7F {
        126 => match bytes[2..].first_chunk() {
            Some(length) => (usize::from(u16::from_be_bytes(*length)), 4),
            None => return Ok(None),
        },
        127 => match bytes[2..].first_chunk() {
            Some(length) => (u64::from_be_bytes(*length) as usize, 10),
            None => return Ok(None),
        },
        length => (usize::from(length), 2),
    };
    let Some(payload) = bytes.get(begin..begin.saturating_add(length)) else { return Ok(None) };
    let said = match first & 0x0F {
        1 | 2 => Said::Message(id_of(payload)?),
        8 => return Err("the server closes the WebSocket".to_owned()),
        // A pong has the ping's payload, masked by nothing.
        9 if length < 126 => {
            let mut pong = vec![0x8A, 0x80 | length as u8, 0, 0, 0, 0];
            pong.extend_from_slice(payload);
            Said::Ask(pong)
        }
        _ => Said::Nothing,
    };
    Ok(Some((said, begin + length)))
}

fn id_of(message: &[u8]) -> Result<TaskId, String> {
    let text = message.get(..ID_CHARACTERS).and_then(|id| std::str::from_utf8(id).ok());
    text.and_then(|text| text.parse().ok()).ok_or_else(|| "a message does not begin with an id".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0102030405060708090a0b0c0d0e0f10";

    /// What a subscriber hears of these bytes, whole and split at every byte; what it would say.
    fn heard(dialect: Dialect, bytes: &[u8]) -> (Vec<String>, Vec<u8>) {
        let hear = |parts: &[&[u8]]| {
            let (mut one, mut all, mut out) = (Subscriber::new(dialect, 1), Vec::new(), Vec::new());
            for part in parts {
                one.hear(part, |heard| all.push(format!("{heard:?}")), &mut out).unwrap();
            }
            assert!(one.is_active() && one.heard.is_empty());
            (all, out)
        };
        let whole = hear(&[bytes]);
        for at in 1..bytes.len() {
            assert_eq!(hear(&[&bytes[..at], &bytes[at..]]), whole, "split at {at}");
        }
        whole
    }

    /// What hearing the message of this id looks like.
    fn of_id() -> String {
        format!("Message({:?})", ID.parse::<TaskId>().unwrap())
    }

    fn message() -> String {
        format!("{ID}{}", ".".repeat(168))
    }

    #[test]
    fn mqtt_is_acknowledged_subscribed_and_published_to() {
        let mut bytes = vec![0x20, 2, 0, 0, 0x90, 3, 0, 1, 0];
        Dialect::Mqtt.publish(&message(), &mut bytes);
        bytes.extend_from_slice(&[0xD0, 0]);
        let (heard, said) = heard(Dialect::Mqtt, &bytes);
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(heard[1] == of_id() && said.is_empty(), "{heard:?}");
        let mut refused = Subscriber::new(Dialect::Mqtt, 1);
        assert!(refused.hear(&[0x20, 2, 0, 5], |_| (), &mut Vec::new()).is_err());
    }

    #[test]
    fn nats_answers_pings_and_hears_messages() {
        let text = message();
        let bytes = format!("PONG\r\nPING\r\nMSG {SUBJECT} 1 {}\r\n{text}\r\n+OK\r\n", text.len());
        let (heard, said) = heard(Dialect::Nats, bytes.as_bytes());
        assert_eq!((heard.len(), said.as_slice()), (2, &b"PONG\r\n"[..]));
        assert!(heard[1] == of_id(), "{heard:?}");
        let mut refused = Subscriber::new(Dialect::Nats, 1);
        assert!(refused.hear(b"-ERR 'no'\r\n", |_| (), &mut Vec::new()).is_err());
    }

    #[test]
    fn a_websocket_is_opened_and_its_frames_are_read() {
        let text = message();
        let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n".to_vec();
        bytes.extend_from_slice(&[0x89, 2, 7, 8, 0x81, 126, 0, text.len() as u8]);
        bytes.extend_from_slice(text.as_bytes());
        let (heard, said) = heard(Dialect::Nchan, &bytes);
        assert_eq!((heard.len(), said.as_slice()), (2, &[0x8A, 0x82, 0, 0, 0, 0, 7, 8][..]));
        assert!(heard[1] == of_id(), "{heard:?}");
        let mut refused = Subscriber::new(Dialect::Nchan, 1);
        let error = refused.hear(b"HTTP/1.1 403 Forbidden\r\n\r\n", |_| (), &mut Vec::new()).unwrap_err();
        assert!(error.contains("403"), "{error}");
    }

    #[test]
    fn a_packet_of_mqtt_has_its_length_in_groups_of_seven_bits() {
        for (length, head) in [(0, vec![0x30, 0]), (127, vec![0x30, 127]), (128, vec![0x30, 0x80, 1])] {
            let mut out = Vec::new();
            packet(&mut out, 0x30, &vec![0; length]);
            assert!(out.starts_with(&head) && out.len() == head.len() + length);
        }
    }
}
