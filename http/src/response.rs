//! The head of a response: encoded by servers, decoded by clients.
//!
//! Encoding adds nothing of its own but the line ends: Content-Length, Date and Connection are the caller's
//! to set. Law: what is encoded decodes to the same fields; a value that would end its line is refused, so
//! that nothing a peer has said can become a header or a second response.

use thiserror::Error;

use crate::body::BodyLength;
use crate::head::{self, Decoded, HEADERS_MAX, HeadError};

/// The head of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// 100 to 599.
    pub status: u16,
    /// Names and values, in order.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// Why a response head was not encoded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// The status is not one of three digits from 100 to 599.
    #[error("{0} is no status code")]
    Status(u16),
    /// A field's name is not a token.
    #[error("{0:?} is no name of a header field")]
    Name(String),
    /// A field's value holds a line end or another control character.
    #[error("the value of header field {0} holds characters that are not allowed")]
    Value(String),
}

impl ResponseHead {
    /// Without any field.
    pub fn new(status: u16) -> ResponseHead {
        ResponseHead { status, headers: Vec::new() }
    }

    /// With one more field.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Vec<u8>>) -> ResponseHead {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The first field of this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        head::first(&self.headers, name)
    }

    /// Whether a field with a comma-separated list, such as Connection or Upgrade, has this word.
    pub fn header_lists(&self, name: &str, word: &str) -> bool {
        head::lists(&self.headers, name, word)
    }

    /// Appends the head as HTTP/1.1, up to and with the empty line.
    ///
    /// # Errors
    /// When the status, a name or a value is not valid; then nothing was appended.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), HeaderError> {
        if !(100..=599).contains(&self.status) {
            return Err(HeaderError::Status(self.status));
        }
        for (name, value) in &self.headers {
            if !head::is_token(name.as_bytes()) {
                return Err(HeaderError::Name(name.clone()));
            }
            if !head::is_field_value(value) {
                return Err(HeaderError::Value(name.clone()));
            }
        }
        out.extend_from_slice(
            format!("HTTP/1.1 {} {}\r\n", self.status, reason_phrase(self.status)).as_bytes(),
        );
        for (name, value) in &self.headers {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Decodes the head at the beginning of `bytes`. Call again with more bytes when it is `Partial`.
    ///
    /// # Errors
    /// See [`HeadError`]. More bytes mend nothing.
    pub fn decode(bytes: &[u8]) -> Result<Decoded<ResponseHead>, HeadError> {
        let lines = head::lines(bytes)?;
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut fields);
        let status = parsed.parse(lines.head).map_err(head::fault)?;
        if parsed.code.is_some_and(|code| !(100..=599).contains(&code)) {
            return Err(HeadError::Status);
        }
        let (httparse::Status::Complete(_), true) = (status, lines.is_complete) else {
            return Ok(Decoded::Partial);
        };
        let Some(code) = parsed.code else { return Err(HeadError::FirstLine) };
        let decoded = ResponseHead { status: code, headers: head::headers(parsed.headers)? };
        // The method does not matter to whether the fields contradict each other.
        BodyLength::of_response(&decoded, "GET")?;
        Ok(Decoded::Complete { head: decoded, consumed: lines.skipped + lines.head.len() })
    }
}

/// The usual words for a status (RFC 9110 section 15; 428, 429 and 431 from RFC 6585); of others, none.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
