//! The upgrade from HTTP/1.1 (RFC 6455, 4): a client's request, a server's answer, and what either refuses.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::body::BodyLength;
use crate::head;
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
    /// It has a body, which would be read as frames.
    #[error("a request for a WebSocket has no body")]
    Body,
    /// No key, or one that is not 16 bytes in base64.
    #[error("Sec-WebSocket-Key is not 16 bytes in base64, once")]
    Key,
    /// The server, or whoever stands before it, answers something else.
    #[error("the upgrade to WebSocket is answered with {0}")]
    Status(u16),
    /// The answer does not say that the protocol is another now.
    #[error(
        "the answer to the upgrade is 101 and does not say Upgrade: websocket, Connection: Upgrade, each once"
    )]
    Incomplete,
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
            Self::Body | Self::Key | Self::Status(_) | Self::Incomplete | Self::Accept | Self::Unasked => 400,
        }
    }

    /// The server's answer, without a body.
    #[must_use]
    pub fn answer(&self) -> ResponseHead {
        let head = ResponseHead::new(self.status());
        match self {
            Self::Method(_) => head.with("Allow", "GET"),
            // RFC 9110, 15.5.22, and RFC 6455, 4.4.
            Self::Upgrade | Self::Version => head
                .with("Connection", "Upgrade")
                .with("Upgrade", "websocket")
                .with("Sec-WebSocket-Version", VERSION),
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
    if BodyLength::of_request(request) != Ok(BodyLength::None) {
        return Err(Refusal::Body);
    }
    if only(&request.headers, "sec-websocket-version") != Some(VERSION.as_bytes()) {
        return Err(Refusal::Version);
    }
    let key = only(&request.headers, "sec-websocket-key").ok_or(Refusal::Key)?;
    if STANDARD.decode(key).ok().is_none_or(|bytes| bytes.len() != KEY_BYTES) {
        return Err(Refusal::Key);
    }
    Ok(ResponseHead::new(101)
        .with("Upgrade", "websocket")
        .with("Connection", "Upgrade")
        .with("Sec-WebSocket-Accept", accept_key(key)))
}

/// The field of that name, where there is one and no more.
fn only<'a>(headers: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a [u8]> {
    let mut all = head::all(headers, name);
    all.next().filter(|_| all.next().is_none())
}

/// A client's header fields that ask for a WebSocket, and the key that the answer has to fit. `random` is.
#[must_use]
pub fn request(random: [u8; KEY_BYTES]) -> ([(&'static str, String); 4], String) {
    let key = STANDARD.encode(random);
    let fields = [
        ("Upgrade", "websocket".to_owned()),
        ("Connection", "Upgrade".to_owned()),
        ("Sec-WebSocket-Key", key.clone()),
        ("Sec-WebSocket-Version", VERSION.to_owned()),
    ];
    (fields, key)
}

/// Whether a server's answer fits the key of the request.
///
/// # Errors
/// How it does not.
pub fn check_answer(answer: &ResponseHead, key: &str) -> Result<(), Refusal> {
    if answer.status != 101 {
        return Err(Refusal::Status(answer.status));
    }
    // The one protocol, and no other beside it (RFC 6455, 4.1).
    let upgrade = only(&answer.headers, "upgrade");
    if !upgrade.is_some_and(|word| word.eq_ignore_ascii_case(b"websocket"))
        || !answer.header_lists("connection", "upgrade")
    {
        return Err(Refusal::Incomplete);
    }
    if only(&answer.headers, "sec-websocket-accept") != Some(accept_key(key.as_bytes()).as_bytes()) {
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
