//! The head of a request.
//!
//! It owns what was said: method, target, version, fields, as they came. It does not know what a method
//! means or which paths there are. Law: a head that decodes has one reading only: one Host, one length of
//! its body (RFC 9112 sections 3.2 and 6), no folded lines.

use crate::body::BodyLength;
use crate::head::{self, Decoded, HEADERS_MAX, HeadError};

/// The head of a request, decoded and found sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The method as sent; methods are case-sensitive.
    pub method: String,
    /// The request target as sent: visible ASCII, without a fragment.
    pub target: String,
    /// 0 or 1: HTTP/1.0 or HTTP/1.1.
    pub minor_version: u8,
    /// Names as sent and values without surrounding white space, in the order in which they came.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl RequestHead {
    /// Decodes the head at the beginning of `bytes`. Call again with more bytes when it is `Partial`; the
    /// caller keeps them, up to [`crate::HEAD_BYTES_MAX`].
    ///
    /// # Errors
    /// See [`HeadError`]; a server answers with [`HeadError::status`] and closes. More bytes mend nothing.
    pub fn decode(bytes: &[u8]) -> Result<Decoded<RequestHead>, HeadError> {
        let lines = head::lines(bytes)?;
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut fields);
        let status = parsed.parse(lines.head).map_err(head::fault)?;
        // Even of a part: a stranger's protocol on this port is told at its first bytes.
        if parsed.path.is_some_and(|target| !is_target(target)) {
            return Err(HeadError::Target);
        }
        let (httparse::Status::Complete(_), true) = (status, lines.is_complete) else {
            return Ok(Decoded::Partial);
        };
        let (Some(method), Some(target), Some(minor_version)) = (parsed.method, parsed.path, parsed.version)
        else {
            return Err(HeadError::FirstLine);
        };
        let decoded = RequestHead {
            method: method.to_owned(),
            target: target.to_owned(),
            minor_version,
            headers: head::headers(parsed.headers)?,
        };
        decoded.check_host()?;
        BodyLength::of_request(&decoded)?;
        Ok(Decoded::Complete { head: decoded, consumed: lines.skipped + lines.head.len() })
    }

    /// The first field of this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        head::first(&self.headers, name)
    }

    /// Whether a field with a comma-separated list, such as Connection or Upgrade, has this word.
    pub fn header_lists(&self, name: &str, word: &str) -> bool {
        head::lists(&self.headers, name, word)
    }

    /// The target's path, without its query; of an absolute target, without scheme and authority. It is
    /// not decoded: `%2e` stays what it is. A target of another form (`*`, `name:port`) is given as it is.
    pub fn path(&self) -> &str {
        let path_and_query = self.path_and_query();
        match path_and_query.split_once('?').map_or(path_and_query, |(path, _)| path) {
            // Of an absolute target without a path (RFC 9110 section 4.2.3).
            "" => "/",
            path => path,
        }
    }

    /// What follows the first `?` of the target, not decoded.
    pub fn query(&self) -> Option<&str> {
        self.path_and_query().split_once('?').map(|(_, query)| query)
    }

    /// Whether the peer lets the connection live on after this request (RFC 9112 section 9.3).
    pub fn keep_alive(&self) -> bool {
        if self.header_lists("connection", "close") {
            return false;
        }
        self.minor_version >= 1 || self.header_lists("connection", "keep-alive")
    }

    /// Whether the peer waits for `100 Continue` before it sends the body (RFC 9110 section 10.1.1).
    pub fn expects_continue(&self) -> bool {
        self.minor_version >= 1 && self.header_lists("expect", "100-continue")
    }

    /// A server must take the absolute form too (RFC 9112 section 3.2.2).
    fn path_and_query(&self) -> &str {
        match self.target.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => {
                let end = rest.find(['/', '?']).unwrap_or(rest.len());
                &rest[end..]
            }
            _ => &self.target,
        }
    }

    fn check_host(&self) -> Result<(), HeadError> {
        let mut hosts = head::all(&self.headers, "host");
        match (hosts.next(), hosts.next()) {
            (Some(host), None) if is_host(host) => Ok(()),
            (None, None) if self.minor_version == 0 => Ok(()),
            (None, _) => Err(HeadError::HostMissing),
            (Some(_), _) => Err(HeadError::Host),
        }
    }
}

/// RFC 3986 section 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Visible ASCII, and no fragment: that part of a URI is never sent (RFC 9112 section 3.2).
fn is_target(target: &str) -> bool {
    !target.is_empty() && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

/// `uri-host [":" port]` (RFC 9110 section 7.2), as far as its characters go; it may be empty. What delimits
/// an authority, or names a user in it, is none of a host.
fn is_host(host: &[u8]) -> bool {
    host.iter().all(|byte| byte.is_ascii_graphic() && !b"/?#@,\\\"<>".contains(byte))
}

#[cfg(test)]
mod tests;
