//! Frames: encoded, and decoded however they are cut.

use thiserror::Error;

/// The longest payload of one frame. A tunnel's frames hold a few TLS records; what declares more is answered with 1009, before any of it is read.
pub const FRAME_BYTES_MAX: u64 = 1 << 20;
/// The longest payload of a control frame (RFC 6455, 5.5).
const CONTROL_BYTES_MAX: u64 = 125;
/// The longest header: two bytes, eight of length, four of mask.
const HEADER_BYTES_MAX: usize = 14;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// What a frame is (RFC 6455, 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opcode {
    Continuation = 0,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// Who decodes: a server hears frames that are masked, and a client frames that are not (RFC 6455, 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Decodes what clients say.
    Server,
    /// Decodes what a server says.
    Client,
}

/// What a control frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// To be answered with a pong of the same payload.
    Ping(Vec<u8>),
    /// An answer to a ping with its payload, or said unasked.
    Pong(Vec<u8>),
    /// The peer says no more: its code, if it gave one.
    Close(Option<u16>),
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// A reserved bit is set, and no extension was agreed on.
    #[error("a WebSocket frame has reserved bits set")]
    Reserved,
    /// An opcode that is none.
    #[error("a WebSocket frame has the opcode {0}, which is none")]
    Opcode(u8),
    /// A message of text.
    #[error("a WebSocket message is text; the tunnel takes binary ones")]
    Text,
    /// A client's frame without a mask, or a server's with one.
    #[error("a WebSocket frame is masked where it must not be, or is not where it must")]
    Mask,
    /// A length in more bytes than it needs, or one that is negative.
    #[error("a WebSocket frame's length is not written as it must be")]
    Length,
    /// A payload of more than a frame may have.
    #[error("a WebSocket frame declares more than {FRAME_BYTES_MAX} bytes")]
    TooLong,
    /// A control frame that is fragmented or longer than 125 bytes.
    #[error("a WebSocket control frame is fragmented or longer than 125 bytes")]
    Control,
    /// A continuation of nothing, or a new message within another.
    #[error("a WebSocket message is continued that was not begun, or begun within another")]
    Fragment,
    /// A close frame whose payload is not a code that may be sent and a reason in UTF-8.
    #[error("a WebSocket close frame's code or reason is not valid")]
    Close,
}

impl Fault {
    /// The code that a close frame tells the peer (RFC 6455, 7.4.1).
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Text => 1003,
            Self::TooLong => 1009,
            Self::Reserved
            | Self::Opcode(_)
            | Self::Mask
            | Self::Length
            | Self::Control
            | Self::Fragment
            | Self::Close => 1002,
        }
    }
}

/// Takes frames apart. Between two frames it holds nothing but a few bits.
#[derive(Debug)]
pub struct Decoder {
    side: Side,
    /// A message was begun and not ended.
    is_in_message: bool,
    /// A close frame came.
    is_closed: bool,
    /// What is wrong with a frame that came: nothing after it is read.
    fault: Option<Fault>,
    partial: Option<Box<Partial>>,
}

/// A frame that is not whole.
#[derive(Debug)]
enum Partial {
    Header { bytes: [u8; HEADER_BYTES_MAX], count: usize },
    Payload { left: u64, mask: Mask },
    Control { opcode: Opcode, left: u64, mask: Mask, payload: Vec<u8> },
}

/// What a payload is masked with, turned so that the next byte's is first; zeros where it is not.
#[derive(Clone, Copy, Debug, Default)]
struct Mask([u8; 4]);

impl Mask {
    fn unmask(&mut self, bytes: &mut [u8]) {
        if self.0 == [0; 4] {
            return;
        }
        for (byte, key) in bytes.iter_mut().zip(self.0.iter().cycle()) {
            *byte ^= key;
        }
        self.0.rotate_left(bytes.len() % 4);
    }
}

/// A header, taken apart and found sound.
struct Header {
    opcode: Opcode,
    is_final: bool,
    length: u64,
    mask: Mask,
}

impl Decoder {
    /// At the beginning of a stream of frames.
    #[must_use]
    pub fn new(side: Side) -> Self {
        Self { side, is_in_message: false, is_closed: false, fault: None, partial: None }
    }

    /// Whether the peer has said that it says no more; bytes after that are not read.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Takes bytes as they came, which are unmasked where they are. What messages hold is appended to `data`, what control frames say to `controls`.
    ///
    /// # Errors
    /// What is wrong with a frame; what came before it was decoded. The stream is over then: more bytes mend nothing.
    pub fn decode(
        &mut self,
        bytes: &mut [u8],
        data: &mut Vec<u8>,
        controls: &mut Vec<Control>,
    ) -> Result<(), Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.read(bytes, data, controls).inspect_err(|fault| self.fault = Some(*fault))
    }

    fn read(
        &mut self,
        mut bytes: &mut [u8],
        data: &mut Vec<u8>,
        controls: &mut Vec<Control>,
    ) -> Result<(), Fault> {
        // What is whole within these bytes costs no allocation.
        let mut unfinished = self.partial.take().map(|partial| *partial);
        while !bytes.is_empty() && !self.is_closed {
            let mut partial =
                unfinished.unwrap_or(Partial::Header { bytes: [0; HEADER_BYTES_MAX], count: 0 });
            let taken = match &mut partial {
                Partial::Header { bytes: header, count } => {
                    let taken = bytes.len().min(header_bytes(&header[..*count]) - *count);
                    header[*count..*count + taken].copy_from_slice(&bytes[..taken]);
                    *count += taken;
                    taken
                }
                Partial::Payload { left, mask } => {
                    let taken = within(bytes.len(), *left);
                    mask.unmask(&mut bytes[..taken]);
                    data.extend_from_slice(&bytes[..taken]);
                    *left -= taken as u64;
                    taken
                }
                Partial::Control { left, mask, payload, .. } => {
                    let taken = within(bytes.len(), *left);
                    mask.unmask(&mut bytes[..taken]);
                    payload.extend_from_slice(&bytes[..taken]);
                    *left -= taken as u64;
                    taken
                }
            };
            bytes = &mut bytes[taken..];
            unfinished = self.go_on(partial, controls)?;
        }
        self.partial = unfinished.map(Box::new);
        Ok(())
    }

    /// What is to be read next, if it belongs to a frame that was begun.
    fn go_on(&mut self, partial: Partial, controls: &mut Vec<Control>) -> Result<Option<Partial>, Fault> {
        match partial {
            Partial::Header { bytes, count } => {
                // Its first bytes tell what is wrong with it, and how long it is.
                let Some(header) = self.header(&bytes[..count])? else {
                    return Ok(Some(Partial::Header { bytes, count }));
                };
                self.begin(&header).map_or(Ok(None), |partial| self.go_on(partial, controls))
            }
            Partial::Payload { left: 0, .. } => Ok(None),
            Partial::Control { opcode, left: 0, payload, .. } => {
                controls.push(self.control(opcode, payload)?);
                Ok(None)
            }
            unfinished => Ok(Some(unfinished)),
        }
    }

    /// The header, when it is whole.
    fn header(&self, bytes: &[u8]) -> Result<Option<Header>, Fault> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        if first & RESERVED != 0 {
            return Err(Fault::Reserved);
        }
        let is_final = first & FIN != 0;
        let opcode = match first & 0x0f {
            0 => Opcode::Continuation,
            1 => return Err(Fault::Text),
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            other => return Err(Fault::Opcode(other)),
        };
        let is_control = opcode.is_control();
        if is_control && !is_final {
            return Err(Fault::Control);
        }
        if !is_control && (opcode == Opcode::Continuation) != self.is_in_message {
            return Err(Fault::Fragment);
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let is_masked = second & MASKED != 0;
        if is_masked != (self.side == Side::Server) {
            return Err(Fault::Mask);
        }
        if is_control && u64::from(second & !MASKED) > CONTROL_BYTES_MAX {
            return Err(Fault::Control);
        }
        let (length, length_bytes) = match (second & !MASKED, &bytes[2..]) {
            (126, &[high, low, ..]) => (u64::from(u16::from_be_bytes([high, low])), 2),
            (127, rest) => match rest.first_chunk::<8>() {
                Some(length) => (u64::from_be_bytes(*length), 8),
                None => return Ok(None),
            },
            (126, _) => return Ok(None),
            (length, _) => (u64::from(length), 0),
        };
        // In as few bytes as it needs (RFC 6455, 5.2), and without a sign.
        if (length_bytes == 2 && length < 126) || (length_bytes == 8 && length <= u64::from(u16::MAX)) {
            return Err(Fault::Length);
        }
        if length > i64::MAX as u64 {
            return Err(Fault::Length);
        }
        if length > FRAME_BYTES_MAX {
            return Err(Fault::TooLong);
        }
        let mask = match (is_masked, bytes[2 + length_bytes..].first_chunk::<4>()) {
            (true, Some(mask)) => Mask(*mask),
            (true, None) => return Ok(None),
            (false, _) => Mask::default(),
        };
        Ok(Some(Header { opcode, is_final, length, mask }))
    }

    /// A frame begins: what it has to be filled with, if it is not empty.
    fn begin(&mut self, header: &Header) -> Option<Partial> {
        let Header { opcode, is_final, length, mask } = *header;
        if opcode.is_control() {
            return Some(Partial::Control { opcode, left: length, mask, payload: Vec::new() });
        }
        self.is_in_message = !is_final;
        (length > 0).then_some(Partial::Payload { left: length, mask })
    }

    fn control(&mut self, opcode: Opcode, payload: Vec<u8>) -> Result<Control, Fault> {
        match opcode {
            Opcode::Ping => Ok(Control::Ping(payload)),
            Opcode::Pong => Ok(Control::Pong(payload)),
            Opcode::Close | Opcode::Continuation | Opcode::Binary => {
                self.is_closed = true;
                match payload.split_first_chunk::<2>() {
                    None if payload.is_empty() => Ok(Control::Close(None)),
                    None => Err(Fault::Close),
                    Some((code, reason)) => {
                        let code = u16::from_be_bytes(*code);
                        // 1004 to 1006 and 1015 are never sent; 3000 to 4999 are others' to define (RFC 6455, 7.4).
                        let may_be_sent = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
                        if !may_be_sent || std::str::from_utf8(reason).is_err() {
                            return Err(Fault::Close);
                        }
                        Ok(Control::Close(Some(code)))
                    }
                }
            }
        }
    }
}

impl Opcode {
    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// How many bytes the header that begins with these has, as far as they tell.
fn header_bytes(begun: &[u8]) -> usize {
    let Some(second) = begun.get(1) else { return begun.len() + 1 };
    let length_bytes = match second & !MASKED {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + length_bytes + if second & MASKED != 0 { 4 } else { 0 }
}

fn within(bytes: usize, left: u64) -> usize {
    usize::try_from(left).map_or(bytes, |left| bytes.min(left))
}

/// Appends a message of bytes, in a frame or as many as it takes; a client's are masked with `mask`.
pub fn encode_data(payload: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    for part in payload.chunks(FRAME_BYTES_MAX as usize) {
        encode(Opcode::Binary, part, mask, out);
    }
}

/// Appends what a control frame says; a ping's payload is cut to what it may have.
pub fn encode_control(control: &Control, mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    match control {
        Control::Ping(payload) => encode(Opcode::Ping, payload, mask, out),
        Control::Pong(payload) => encode(Opcode::Pong, payload, mask, out),
        Control::Close(code) => {
            let code = code.map(u16::to_be_bytes);
            encode(Opcode::Close, code.as_ref().map_or(&[], |code| code.as_slice()), mask, out);
        }
    }
}

fn encode(opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    let longest = if opcode.is_control() { CONTROL_BYTES_MAX } else { FRAME_BYTES_MAX };
    let payload = &payload[..within(payload.len(), longest)];
    let masked = if mask.is_some() { MASKED } else { 0 };
    out.push(FIN | opcode as u8);
    match payload.len() {
        length @ 0..=125 => out.push(masked | length as u8),
        length @ 126..=0xffff => {
            out.push(masked | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(masked | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(mask.as_ref().map_or(&[], |mask| mask.as_slice()));
    let start = out.len();
    out.extend_from_slice(payload);
    Mask(mask.unwrap_or_default()).unmask(&mut out[start..]);
}

#[cfg(test)]
mod tests;
