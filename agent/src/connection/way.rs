//! The way to a server's HTTP port: straight or through a proxy, in an outer TLS or not.
//!
//! It opens streams and knows how a request's head is written on one; what is asked is the roads' affair. Law: the proxy's credentials go to the
//! proxy and to nobody else.

use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bgb_http::{Decoded, HEAD_BYTES_MAX, ResponseHead};
use bgb_protocol::message::RoadReason;

use super::road::{Patience, RoadFault, Waits};
use super::stream::Stream;
use super::tcp;
use crate::proxy::{Proxy, is_host};
use crate::tls::OuterTls;

/// Time for the proxy's answer and the outer TLS together, and again for what is asked then: as for a handshake (docs/protocol.md, 9.7).
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// Bytes that are read at a time.
pub(super) const READ_BYTES: usize = 16 * 1024;

/// Heads that announce one answer, at the most: 100, 102 and 103 are all that there are (RFC 9110, 15.2; RFC 8297), some of them perhaps twice.
const INTERIM_HEADS_MAX: u32 = 8;

/// Who asks.
const USER_AGENT: &str = concat!("bgb-agent/", env!("CARGO_PKG_VERSION"));

/// A way.
#[derive(Clone)]
pub(super) struct Way {
    /// `host:port` of the server.
    authority: String,
    host: String,
    outer: Option<Arc<OuterTls>>,
    proxy: Option<Arc<Proxy>>,
}

/// What a proxy is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// A tunnel: CONNECT.
    Tunnel,
    /// Over HTTP, each request by itself (RFC 9112, 3.2.2); over HTTPS a tunnel, since there is no other way.
    Requests,
}

impl Way {
    /// To `port` of `host`.
    ///
    /// # Errors
    /// When `host` is none.
    pub(super) fn new(
        host: &str,
        port: u16,
        outer: Option<Arc<OuterTls>>,
        proxy: Option<Arc<Proxy>>,
    ) -> Result<Self, RoadFault> {
        if !is_host(host) {
            return Err(RoadFault::new(format!("{host:?} is no host")));
        }
        Ok(Self { authority: format!("{host}:{port}"), host: host.to_owned(), outer, proxy })
    }

    /// Opens a stream for requests; whoever wakes `waker` calls it off.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn open(&self, passage: Passage, waker: Option<&OwnedFd>) -> Result<Stream, RoadFault> {
        let first = self.proxy.as_ref().map_or(&*self.authority, |proxy| proxy.address());
        let mut stream = Stream::new(tcp::connect(first, waker)?);
        let patience = Patience::of(ANSWER, waker);
        if let Some(proxy) = &self.proxy
            && (passage == Passage::Tunnel || self.outer.is_some())
        {
            self.tunnel(proxy, &mut stream, &patience)?;
        }
        match &self.outer {
            Some(tls) => stream.wrap(tls, &self.host, &patience),
            None => Ok(stream),
        }
    }

    /// Asks `proxy` for a tunnel to the server (RFC 9110, 9.3.6).
    fn tunnel(&self, proxy: &Proxy, stream: &mut Stream, patience: &Patience<'_>) -> Result<(), RoadFault> {
        let mut request = format!("CONNECT {} HTTP/1.1\r\nHost: {}\r\n", self.authority, self.authority);
        request += &authorization(proxy);
        request += &format!("User-Agent: {USER_AGENT}\r\n\r\n");
        stream.push_all(request.into_bytes(), patience)?;
        let (head, rest) = read_head(stream, patience, "the proxy's answer to CONNECT")?;
        if !(200..=299).contains(&head.status) {
            return Err(refused(proxy, head.status));
        }
        if !rest.is_empty() {
            return Err(RoadFault::new(
                "the proxy sends bytes into a tunnel before anything was asked in it",
            ));
        }
        Ok(())
    }

    /// What a hello says of an answer that is no server's of ours. That something is unavailable where no proxy was asked says ours itself, when it is crowded, or
    /// who stands before it.
    pub(super) fn reason_of(&self, status: u16) -> Option<RoadReason> {
        (status != 503 || self.proxy.is_some()).then_some(RoadReason::ProxyAnswer(status))
    }

    /// Appends a request, with `fields` as whole lines and nothing to follow.
    pub(super) fn encode(
        &self,
        passage: Passage,
        method: &str,
        target: &str,
        fields: &[(&str, String)],
        body: &[u8],
        out: &mut Vec<u8>,
    ) {
        let forwarding = self.proxy.as_ref().filter(|_| passage == Passage::Requests && self.outer.is_none());
        let before = forwarding.map_or_else(String::new, |_| format!("http://{}", self.authority));
        let mut head = format!("{method} {before}{target} HTTP/1.1\r\nHost: {}\r\n", self.authority);
        head += &format!("User-Agent: {USER_AGENT}\r\n");
        if let Some(proxy) = forwarding {
            head += &authorization(proxy);
        }
        for (name, value) in fields {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(body);
    }
}

/// The line of a request that says who asks a proxy; empty where it asks nobody.
fn authorization(proxy: &Proxy) -> String {
    proxy.authorization().map_or_else(String::new, |value| format!("Proxy-Authorization: {value}\r\n"))
}

fn refused(proxy: &Proxy, status: u16) -> RoadFault {
    let address = proxy.address();
    let text = match (status, proxy.authorization()) {
        (407, None) => format!(
            "the proxy {address} asks for credentials (407); put them into proxy.url, or into the environment's"
        ),
        (407, Some(_)) => format!("the proxy {address} does not take the credentials that it is given (407)"),
        (403, _) => format!(
            "the proxy {address} does not lead to this server (403); its administrator has to allow it"
        ),
        _ => format!("the proxy {address} answers CONNECT with {status}"),
    };
    RoadFault::because(RoadReason::ProxyAnswer(status), text)
}

/// Reads the head of an answer, past those that only announce one (RFC 9110, 15.2); what came behind it is given with it.
///
/// # Errors
/// Why there is none; `what` is being waited for.
pub(super) fn read_head(
    stream: &mut Stream,
    patience: &Patience<'_>,
    what: &str,
) -> Result<(ResponseHead, Vec<u8>), RoadFault> {
    let (mut heard, mut interim) = (Vec::new(), Interim::default());
    loop {
        while let Some(head) = take_head(&mut heard)? {
            if head.status == 101 || head.status >= 200 {
                return Ok((head, heard));
            }
            interim.count()?;
        }
        patience.check(what)?;
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer) {
            Ok(0) => {
                let text = format!("the connection was closed before {what}");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text).into());
            }
            Ok(count) => heard.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut waits = Waits::default();
                stream.waits(false, &mut waits);
                patience.wait(waits, what)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The heads that only announce an answer. HTTP sets them no bound, and whoever sends them without end keeps its reader busy.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Interim(u32);

impl Interim {
    /// One more.
    ///
    /// # Errors
    /// When they were too many for one answer.
    pub(super) fn count(&mut self) -> Result<(), RoadFault> {
        self.0 += 1;
        if self.0 > INTERIM_HEADS_MAX {
            return Err(RoadFault::new("an answer is announced again and again, and does not come"));
        }
        Ok(())
    }
}

/// Takes a whole head from the front of `heard`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn take_head(heard: &mut Vec<u8>) -> Result<Option<ResponseHead>, RoadFault> {
    match ResponseHead::decode(heard) {
        Ok(Decoded::Complete { head, consumed }) => {
            heard.drain(..consumed);
            Ok(Some(head))
        }
        Ok(Decoded::Partial) if heard.len() < 2 * HEAD_BYTES_MAX => Ok(None),
        Ok(Decoded::Partial) => Err(RoadFault::new("an answer's head does not end")),
        Err(error) => Err(RoadFault::new(format!("what came back is no answer of HTTP: {error}"))),
    }
}
