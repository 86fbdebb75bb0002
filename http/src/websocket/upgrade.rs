//! The upgrade from HTTP/1.1 (RFC 6455, 4): a client's request, a server's answer, and what either refuses.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::request::RequestHead;
use crate::response::ResponseHead;

/// What the accepted key is computed with (RFC 6455, 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The one version there is.
const VERSION: &str = "13";
/// Bytes of a client's key before it is encoded.
const KEY_BYTES: usize = 16;

/// Why a request is no upgrade to WebSocket, or an answer none to ours.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Another method than GET.
    #[error("a WebSocket is begun with GET, not with {0}")]
    Method(String),
    /// It does not ask for a WebSocket.
    #[error("the request does not ask for a WebSocket: Upgrade: websocket, Connection: Upgrade, HTTP/1.1")]
    Upgrade,
    /// Another version of the protocol.
    #[error("the WebSocket version is not {VERSION}")]
    Version,
    /// No key, or one that is not 16 bytes in base64.
    #[error("Sec-WebSocket-Key is not 16 bytes in base64, once")]
    Key,
    /// The server, or whoever stands before it, answers something else.
    #[error("the upgrade to WebSocket is answered with {0}")]
    Status(u16),
    /// The answer is to another key, or to none.
    #[error("the answer to the upgrade does not fit its key: something between has made it up")]
    Accept,
    /// The answer speaks extensions or protocols that were not asked for.
    #[error("the answer to the upgrade names an extension or a protocol that was not asked for")]
    Unasked,
}

impl Refusal {
    /// The status by which a server answers.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Method(_) => 405,
            Self::Upgrade | Self::Version => 426,
            Self::Key | Self::Status(_) | Self::Accept | Self::Unasked => 400,
        }
    }

    /// The server's answer, without a body.
    #[must_use]
    pub fn answer(&self) -> ResponseHead {
        let head = ResponseHead::new(self.status());
        match self {
            Self::Method(_) => head.with("Allow", "GET"),
            // RFC 9110, 15.5.22, and RFC 6455, 4.4.
            Self::Upgrade | Self::Version => {
                head.with("Upgrade", "websocket").with("Sec-WebSocket-Version", VERSION)
            }
            _ => head,
        }
    }
}

/// What a server says of a client's key.
#[must_use]
pub fn accept_key(key: &[u8]) -> String {
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID.as_bytes()].concat()))
}

/// A server's answer to a request that asks for a WebSocket: 101, and frames follow.
///
/// # Errors
/// What it asks for instead; [`Refusal::answer`] says so.
pub fn answer(request: &RequestHead) -> Result<ResponseHead, Refusal> {
    if request.method != "GET" {
        return Err(Refusal::Method(request.method.clone()));
    }
    let asks = request.minor_version >= 1
        && request.header_lists("upgrade", "websocket")
        && request.header_lists("connection", "upgrade");
    if !asks {
        return Err(Refusal::Upgrade);
    }
    if only(request, "sec-websocket-version") != Some(VERSION.as_bytes()) {
        return Err(Refusal::Version);
    }
    let key = only(request, "sec-websocket-key").ok_or(Refusal::Key)?;
    if STANDARD.decode(key).ok().is_none_or(|bytes| bytes.len() != KEY_BYTES) {
        return Err(Refusal::Key);
    }
    Ok(ResponseHead::new(101)
        .with("Upgrade", "websocket")
        .with("Connection", "Upgrade")
        .with("Sec-WebSocket-Accept", accept_key(key)))
}

/// The field of that name, where there is one and no more.
fn only<'a>(request: &'a RequestHead, name: &str) -> Option<&'a [u8]> {
    let mut all = request.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
    match (all.next(), all.next()) {
        (Some((_, value)), None) => Some(value),
        _ => None,
    }
}

/// Appends a client's request for a WebSocket at `path` of `host`, and gives the key that the answer has to fit. `key` is random; `more` are header
/// fields in lines of their own, such as a proxy's credentials.
pub fn request(host: &str, path: &str, key: [u8; KEY_BYTES], more: &str, out: &mut Vec<u8>) -> String {
    let key = STANDARD.encode(key);
    out.extend_from_slice(
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n\
             Sec-WebSocket-Version: {VERSION}\r\n{more}\r\n"
        )
        .as_bytes(),
    );
    key
}

/// Whether a server's answer fits the key of the request.
///
/// # Errors
/// How it does not.
pub fn check_answer(answer: &ResponseHead, key: &str) -> Result<(), Refusal> {
    if answer.status != 101 {
        return Err(Refusal::Status(answer.status));
    }
    if !answer.header_lists("upgrade", "websocket") || !answer.header_lists("connection", "upgrade") {
        return Err(Refusal::Upgrade);
    }
    if answer.header("sec-websocket-accept") != Some(accept_key(key.as_bytes()).as_bytes()) {
        return Err(Refusal::Accept);
    }
    if answer.header("sec-websocket-extensions").is_some()
        || answer.header("sec-websocket-protocol").is_some()
    {
        return Err(Refusal::Unasked);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
