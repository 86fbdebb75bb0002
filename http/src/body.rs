//! How long a message's body is, and the chunked coding.
//!
//! [`BodyLength`] applies RFC 9112 section 6.3 to a head; [`ChunkDecoder`] takes the chunked coding
//! (section 7.1) apart, however the bytes are split. Neither keeps a body: bytes go to the caller's buffer.
//! Law: a length that two parties could read differently is an error, never a guess.
//!
//! ```text
//!            size line                 all data              CR LF
//!   Size ----------------> Data ------------------> DataEnd -------> Size
//!     \  size 0
//!      `--------> Trailer --(empty line)--> Done
//! ```

use thiserror::Error;

use crate::head::{self, HeadError};
use crate::request::RequestHead;
use crate::response::ResponseHead;

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is no body.
    None,
    /// So many bytes.
    Length(u64),
    /// In the chunked coding: see [`ChunkDecoder`].
    Chunked,
    /// All until the connection's end. Of responses only.
    UntilClose,
}

impl BodyLength {
    /// Of a request's body. A head that was decoded has passed this already.
    ///
    /// # Errors
    /// When the fields contradict each other or are none of those known here.
    pub fn of_request(request: &RequestHead) -> Result<BodyLength, HeadError> {
        let declared = declared(&request.headers)?;
        // A version without that coding cannot mean it (RFC 9112 section 6.1).
        if declared == Some(BodyLength::Chunked) && request.minor_version == 0 {
            return Err(HeadError::TransferEncoding);
        }
        Ok(match declared {
            None | Some(BodyLength::Length(0)) => BodyLength::None,
            Some(length) => length,
        })
    }

    /// Of the body of a response to a request with this method.
    ///
    /// # Errors
    /// When the fields contradict each other or are none of those known here.
    pub fn of_response(response: &ResponseHead, request_method: &str) -> Result<BodyLength, HeadError> {
        let declared = declared(&response.headers)?;
        let has_none = matches!(response.status, 100..=199 | 204 | 304)
            || request_method == "HEAD"
            || (request_method == "CONNECT" && (200..=299).contains(&response.status));
        Ok(match declared {
            _ if has_none => BodyLength::None,
            Some(BodyLength::Length(0)) => BodyLength::None,
            Some(length) => length,
            None => BodyLength::UntilClose,
        })
    }
}

/// What the fields say, if they say anything.
fn declared(headers: &[(String, Vec<u8>)]) -> Result<Option<BodyLength>, HeadError> {
    let mut lengths = head::all(headers, "content-length");
    let mut codings = head::all(headers, "transfer-encoding");
    let (length, coding) = (lengths.next(), codings.next());
    if length.is_some() && coding.is_some() {
        return Err(HeadError::BothLengths);
    }
    if lengths.next().is_some() {
        return Err(HeadError::ContentLength);
    }
    if codings.next().is_some() {
        return Err(HeadError::TransferEncoding);
    }
    if let Some(coding) = coding {
        return if coding.eq_ignore_ascii_case(b"chunked") {
            Ok(Some(BodyLength::Chunked))
        } else {
            Err(HeadError::TransferCodingUnknown)
        };
    }
    length.map(|text| head::decimal(text).map(BodyLength::Length).ok_or(HeadError::ContentLength)).transpose()
}

/// The longest line with a chunk's size, extensions included, in bytes. 16 digits are the size; nobody
/// in the field sends extensions, and a line of them is a known way to keep a server busy.
const SIZE_LINE_BYTES_MAX: usize = 256;

/// The longest trailer, all its fields together, in bytes. They are read over, not kept.
const TRAILER_BYTES_MAX: usize = 4 * 1024;

/// What is wrong with a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChunkError {
    /// The chunks together are longer than the caller allows.
    #[error("the body is longer than allowed")]
    TooLarge,
    /// A line with a size or a trailer field is too long.
    #[error("a line of the chunked coding is too long")]
    LineTooLong,
    /// A line end that is not CR LF, or none where one must be.
    #[error("a line of the chunked coding does not end with CR LF")]
    LineEnd,
    /// A size that is not 1 to 16 hexadecimal digits.
    #[error("a chunk's size is not a number")]
    Size,
    /// An extension that is not `;name` or `;name=value`.
    #[error("a chunk's extension is not valid")]
    Extension,
    /// A trailer field that is not `name: value`.
    #[error("a trailer field is not valid")]
    Trailer,
}

impl ChunkError {
    /// The status by which a server answers this fault, before it closes the connection.
    pub fn status(self) -> u16 {
        match self {
            ChunkError::TooLarge => 413, // RFC 9110 section 15.5.14
            ChunkError::LineTooLong
            | ChunkError::LineEnd
            | ChunkError::Size
            | ChunkError::Extension
            | ChunkError::Trailer => 400,
        }
    }
}

/// What one call of [`ChunkDecoder::decode`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkProgress {
    /// Bytes of the input that belonged to the body; all of it unless `is_done`.
    pub consumed: usize,
    /// Whether the body is complete.
    pub is_done: bool,
}

/// Takes the chunked coding apart.
#[derive(Clone, Debug)]
pub struct ChunkDecoder {
    state: ChunkState,
    /// The line being read, without its end.
    line: Vec<u8>,
    /// Body bytes that may still come.
    left_bytes: u64,
    trailer_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    Size,
    Data { left_bytes: u64 },
    DataEnd,
    Trailer,
    Done,
    Failed(ChunkError),
}

impl ChunkDecoder {
    /// For a body of at most `body_bytes_max` bytes, all chunks together.
    pub fn new(body_bytes_max: u64) -> ChunkDecoder {
        ChunkDecoder {
            state: ChunkState::Size,
            line: Vec::new(),
            left_bytes: body_bytes_max,
            trailer_bytes: 0,
        }
    }

    /// Takes input, appends the body's bytes in it to `body`, and stops at the body's end.
    ///
    /// # Errors
    /// See [`ChunkError`]; every later call then gives the same error.
    pub fn decode(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<ChunkProgress, ChunkError> {
        let mut consumed = 0;
        while consumed < input.len() {
            let rest = &input[consumed..];
            let step = match self.state {
                ChunkState::Data { left_bytes } => Ok(self.take_data(left_bytes, rest, body)),
                ChunkState::Size | ChunkState::DataEnd | ChunkState::Trailer => self.take_line_byte(rest[0]),
                ChunkState::Done => break,
                ChunkState::Failed(error) => Err(error),
            };
            match step {
                Ok(taken) => consumed += taken,
                Err(error) => {
                    self.state = ChunkState::Failed(error);
                    return Err(error);
                }
            }
        }
        Ok(ChunkProgress { consumed, is_done: self.state == ChunkState::Done })
    }

    fn take_data(&mut self, left_bytes: u64, rest: &[u8], body: &mut Vec<u8>) -> usize {
        let taken = usize::try_from(left_bytes).unwrap_or(usize::MAX).min(rest.len());
        body.extend_from_slice(&rest[..taken]);
        let left_bytes = left_bytes - taken as u64;
        self.state = if left_bytes == 0 { ChunkState::DataEnd } else { ChunkState::Data { left_bytes } };
        taken
    }

    /// Adds a byte to the line; at its end, the line says what comes next. Always takes the one byte.
    fn take_line_byte(&mut self, byte: u8) -> Result<usize, ChunkError> {
        if self.line.last() == Some(&b'\r') {
            if byte != b'\n' {
                return Err(ChunkError::LineEnd);
            }
            self.line.pop();
            let line = std::mem::take(&mut self.line);
            self.on_line(&line)?;
            self.line = line;
            self.line.clear();
            return Ok(1);
        }
        let line_bytes_max = match self.state {
            ChunkState::DataEnd if byte != b'\r' => return Err(ChunkError::LineEnd),
            ChunkState::Trailer => TRAILER_BYTES_MAX - self.trailer_bytes,
            _ => SIZE_LINE_BYTES_MAX,
        };
        if byte == b'\n' {
            return Err(ChunkError::LineEnd);
        }
        if byte != b'\r' && self.line.len() >= line_bytes_max {
            return Err(ChunkError::LineTooLong);
        }
        self.line.push(byte);
        Ok(1)
    }

    fn on_line(&mut self, line: &[u8]) -> Result<(), ChunkError> {
        self.state = match self.state {
            ChunkState::Size => match size(line)? {
                0 => ChunkState::Trailer,
                size => {
                    self.left_bytes = self.left_bytes.checked_sub(size).ok_or(ChunkError::TooLarge)?;
                    ChunkState::Data { left_bytes: size }
                }
            },
            ChunkState::DataEnd => ChunkState::Size,
            ChunkState::Trailer if line.is_empty() => ChunkState::Done,
            ChunkState::Trailer => {
                check_trailer(line)?;
                self.trailer_bytes += line.len();
                ChunkState::Trailer
            }
            other @ (ChunkState::Data { .. } | ChunkState::Done | ChunkState::Failed(_)) => other,
        };
        Ok(())
    }
}

/// The size in `1*HEXDIG [ extensions ]`.
fn size(line: &[u8]) -> Result<u64, ChunkError> {
    let digits_end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, extensions) = line.split_at(digits_end);
    if digits.is_empty() || digits.len() > 16 {
        return Err(ChunkError::Size);
    }
    check_extensions(extensions)?;
    let text = std::str::from_utf8(digits).map_err(|_| ChunkError::Size)?;
    u64::from_str_radix(text, 16).map_err(|_| ChunkError::Size)
}

/// `*( BWS ";" BWS name [ BWS "=" BWS value ] )` (RFC 9112 section 7.1.1). A quoted value may hold
/// neither a quote nor a semicolon here, since others have disagreed about these; extensions are not used.
fn check_extensions(text: &[u8]) -> Result<(), ChunkError> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return Ok(());
    }
    let Some(extensions) = text.strip_prefix(b";") else { return Err(ChunkError::Extension) };
    for extension in extensions.split(|byte| *byte == b';') {
        let mut parts = extension.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default().trim_ascii();
        let value = parts.next().map(<[u8]>::trim_ascii);
        if !head::is_token(name) || !value.is_none_or(|value| head::is_token(value) || is_quoted(value)) {
            return Err(ChunkError::Extension);
        }
    }
    Ok(())
}

fn is_quoted(value: &[u8]) -> bool {
    value
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""))
        .is_some_and(|inner| head::is_field_value(inner) && !inner.contains(&b'"') && !inner.contains(&b'\\'))
}

fn check_trailer(line: &[u8]) -> Result<(), ChunkError> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or(ChunkError::Trailer)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if head::is_token(name) && head::is_field_value(value) { Ok(()) } else { Err(ChunkError::Trailer) }
}

#[cfg(test)]
mod tests;
