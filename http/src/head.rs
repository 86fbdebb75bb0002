//! What the heads of requests and responses share: limits, line structure, header fields.
//!
//! It owns the limits and [`HeadError`], with the status by which a server answers each fault. It must not
//! know methods, targets or status codes. Law: a fault found in the first bytes of a head is a fault of the
//! whole head too, so that a peer can be answered early and no later byte changes the verdict.

use thiserror::Error;

/// The longest head, request or status line included, in bytes. Proxies and servers in the field allow 8 KiB
/// to 32 KiB; ours are under 1 KiB, and a proxy's cookies and tracing headers have room.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The most header fields in a head. nginx and Apache stand at 100; behind a chain of proxies some 30 are seen.
pub const HEADERS_MAX: usize = 64;

/// What came of decoding a head from the bytes that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded<T> {
    /// The head is not complete; nothing in it is wrong so far.
    Partial,
    /// The head is complete and sound.
    Complete {
        /// The head.
        head: T,
        /// Bytes of the input that belonged to it; what follows is the body or the next message.
        consumed: usize,
    },
}

/// Header fields, in the order in which they came: names as sent, values without surrounding white space.
pub(crate) type Headers = Vec<(String, Vec<u8>)>;

/// A number in a field or a target. Digits only: no sign, no white space, no list.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// What is wrong with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// It is not complete after 16 KiB.
    #[error("the head is longer than {HEAD_BYTES_MAX} bytes")]
    TooLarge,
    /// More than 64 header fields.
    #[error("the head has more than {HEADERS_MAX} header fields")]
    TooManyHeaders,
    /// A line feed without a carriage return before it, or a carriage return without a line feed after it.
    #[error("a line does not end with CR LF")]
    LineEnd,
    /// More than one empty line before the first line (RFC 9112 section 2.2 lets one pass).
    #[error("the head begins with empty lines")]
    EmptyLines,
    /// The first line, or a method in it, is none.
    #[error("the first line is not one of HTTP")]
    FirstLine,
    /// The target holds characters that a URI does not have.
    #[error("the request target is not a URI")]
    Target,
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("the version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
    /// A header name is not a token; a folded line and white space before the colon count here too.
    #[error("a header field's name is not valid, or its line is folded")]
    HeaderName,
    /// A header value holds control characters.
    #[error("a header field's value holds characters that are not allowed")]
    HeaderValue,
    /// HTTP/1.1 without Host.
    #[error("the request has no Host field")]
    HostMissing,
    /// More than one Host, or one that is not `name[:port]`.
    #[error("the request's Host field is repeated or not valid")]
    Host,
    /// Content-Length is not one plain number, or there is more than one.
    #[error("the Content-Length field is repeated or not a number")]
    ContentLength,
    /// Transfer-Encoding is repeated, or in a version that has none.
    #[error("the Transfer-Encoding field is repeated or not allowed here")]
    TransferEncoding,
    /// A transfer coding other than `chunked`.
    #[error("the transfer coding is not known here; `chunked` is")]
    TransferCodingUnknown,
    /// Both Content-Length and Transfer-Encoding.
    #[error("the message has both Content-Length and Transfer-Encoding")]
    BothLengths,
    /// A response's status is not three digits from 100 to 599.
    #[error("the status code is not valid")]
    Status,
}

impl HeadError {
    /// The status by which a server answers a request with this fault, before it closes the connection.
    pub fn status(self) -> u16 {
        match self {
            HeadError::TooLarge | HeadError::TooManyHeaders => 431, // RFC 6585 section 5
            HeadError::Version => 505,                              // RFC 9110 section 15.6.6
            HeadError::TransferCodingUnknown => 501,                // RFC 9112 section 6.1
            HeadError::LineEnd
            | HeadError::EmptyLines
            | HeadError::FirstLine
            | HeadError::Target
            | HeadError::HeaderName
            | HeadError::HeaderValue
            | HeadError::HostMissing
            | HeadError::Host
            | HeadError::ContentLength
            | HeadError::TransferEncoding
            | HeadError::BothLengths
            | HeadError::Status => 400,
        }
    }
}

/// Where a head stands in the input, once its lines were found sound.
pub(crate) struct Lines<'a> {
    /// The head so far, without an empty line before it. Complete: up to and with the empty line that ends it.
    pub(crate) head: &'a [u8],
    /// Bytes before the head: 0, or 2 for an empty line.
    pub(crate) skipped: usize,
    /// Whether the empty line at the end has come.
    pub(crate) is_complete: bool,
}

/// Finds the head in the input, and refuses every line end but CR LF. httparse would take a bare line feed,
/// which others read as part of a line; such a difference is how requests are smuggled.
pub(crate) fn lines(bytes: &[u8]) -> Result<Lines<'_>, HeadError> {
    let skipped = match bytes {
        [b'\r', b'\n', ..] => 2,
        _ => 0,
    };
    let input = &bytes[skipped..];
    let within = &input[..input.len().min(HEAD_BYTES_MAX)];
    let mut line_start = 0;
    for (index, byte) in within.iter().enumerate() {
        match byte {
            b'\n' if index == 0 || within[index - 1] != b'\r' => return Err(HeadError::LineEnd),
            b'\r' if within.get(index + 1).is_some_and(|next| *next != b'\n') => {
                return Err(HeadError::LineEnd);
            }
            b'\n' if index == 1 => return Err(HeadError::EmptyLines),
            b'\n' if index == line_start + 1 => {
                return Ok(Lines { head: &within[..=index], skipped, is_complete: true });
            }
            b'\n' => line_start = index + 1,
            _ => {}
        }
    }
    if input.len() >= HEAD_BYTES_MAX {
        return Err(HeadError::TooLarge);
    }
    Ok(Lines { head: within, skipped, is_complete: false })
}

/// httparse's verdict in our words.
pub(crate) fn fault(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::HeaderName => HeadError::HeaderName,
        httparse::Error::HeaderValue => HeadError::HeaderValue,
        httparse::Error::NewLine => HeadError::LineEnd,
        httparse::Error::Status => HeadError::Status,
        httparse::Error::Token => HeadError::FirstLine,
        httparse::Error::TooManyHeaders => HeadError::TooManyHeaders,
        httparse::Error::Version => HeadError::Version,
    }
}

/// Copies the fields that httparse found, checking what it lets pass.
pub(crate) fn headers(parsed: &[httparse::Header<'_>]) -> Result<Headers, HeadError> {
    parsed
        .iter()
        .map(|header| {
            if !is_token(header.name.as_bytes()) {
                return Err(HeadError::HeaderName);
            }
            if !is_field_value(header.value) {
                return Err(HeadError::HeaderValue);
            }
            Ok((header.name.to_owned(), header.value.to_owned()))
        })
        .collect()
}

/// The first field of that name, whatever its case.
pub(crate) fn first<'a>(headers: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a [u8]> {
    all(headers, name).next()
}

/// All fields of that name, whatever its case.
pub(crate) fn all<'a>(headers: &'a [(String, Vec<u8>)], name: &str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_slice())
}

/// Whether one of the comma-separated words of these fields is `word`, whatever its case.
pub(crate) fn lists(headers: &[(String, Vec<u8>)], name: &str, word: &str) -> bool {
    all(headers, name)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .any(|listed| listed.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
}

/// RFC 9110 section 5.6.2: letters, digits and fifteen marks; at least one.
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// RFC 9110 section 5.5: visible characters, space, tab and bytes over 0x7f.
pub(crate) fn is_field_value(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..=0xff))
}
