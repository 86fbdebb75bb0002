//! Proxies that say whose connection they pass on, before anything else is said on it (PROXY protocol, version 2).
//!
//! Only from networks that the configuration names: from anybody else such a header would be a stranger's word for who it is. From those it is asked of every
//! connection, since one without it might be a stranger's, passed on by something that nobody has thought of.

use bgb_http::proxy_protocol::ProxyHeader;
use bgb_hub::{CloseReason, Now};

use super::Reactor;
use super::entrance::Entrance;
use super::slots::SlotKey;
use super::transport::Transport;

impl Reactor {
    /// Bytes of a connection whose peer is not known yet, at the beginning of the scratch.
    pub(super) fn hear_introduction(&mut self, now: Now, key: SlotKey, bytes: usize) {
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        let Transport::Introduced(entrance, said) = &mut socket.transport else { return };
        said.extend_from_slice(&self.scratch.received[..bytes]);
        let (entrance, header) = (*entrance, ProxyHeader::decode(said));
        let header = match header {
            Ok(None) => return,
            Ok(Some(header)) => header,
            Err(error) => {
                return self.let_socket_go(now, key, CloseReason::BadProxyHeader, &error.to_string());
            }
        };
        let rest = said.split_off(header.consumed);
        let peer = header.peer.unwrap_or(socket.peer);
        // Its place was nobody's until now.
        self.handshakes.end(None, None);
        if !self.handshakes.begin(Some(peer.ip()), now.tick) {
            // Letting it go gives back the place of somebody of whom nothing is known.
            let _ = self.handshakes.begin(None, now.tick);
            return self.let_socket_go(now, key, CloseReason::TooManyHandshakes, "");
        }
        let outer = self.outer_of(entrance);
        let Some(socket) = self.sockets.tenant_mut(key) else { return };
        socket.peer = peer;
        let is_raw = entrance == Entrance::Tcp;
        let is_begun = match outer {
            Ok(outer) => {
                socket.transport = Transport::new(entrance, false, outer);
                !is_raw || self.begin_channel(now, key)
            }
            Err(error) => {
                tracing::error!(%error, "an outer TLS session could not be begun");
                socket.transport = Transport::Raw;
                false
            }
        };
        if !is_begun {
            self.handshakes.end(Some(peer.ip()), None);
            return self.let_socket_go(now, key, CloseReason::TransportError, "");
        }
        if is_raw {
            self.socket_deadlines.cancel(key.index);
        } else {
            let patience = self.patience();
            self.give_stranger_time(now, key, patience);
        }
        let bytes = rest.len();
        if bytes > 0 {
            self.scratch.received[..bytes].copy_from_slice(&rest);
            let channel = self.sockets.tenant(key).and_then(|socket| socket.channel);
            match channel {
                Some(channel) => self.hear_channel(now, key, channel, bytes),
                None => self.hear_socket(now, key, bytes),
            }
        }
    }
}
