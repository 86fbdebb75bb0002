//! One file descriptor: its stream, the bytes that the kernel would not take, and what it waits for.
//!
//! A socket knows neither TLS nor frames: bytes come and go. At rest it owns no heap buffer. Three limits hold: above
//! [`CHOKED_BYTES`] of unsent bytes its channel is told to hold back, below [`FLOWING_BYTES`] to go on, and at
//! [`UNSENT_BYTES_MAX`] a reader that is too slow is dropped.

use std::io::{self, Read, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry};
use socket2::SockRef;

use super::slots::SlotKey;

/// High-water mark of unsent bytes: some dozens of tasks. What comes after waits in the hub, where it costs nothing.
pub const CHOKED_BYTES: usize = 128 * 1024;
/// Low-water mark of unsent bytes.
pub const FLOWING_BYTES: usize = 32 * 1024;
/// Most unsent bytes of a socket. A choked channel is sent answers to its own requests only, 64 policy documents of
/// 60 KiB at most; whoever asks again without reading has earned the end.
pub const UNSENT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long the kernel may hold bytes that the peer does not acknowledge (TCP_USER_TIMEOUT, RFC 5482): so soon a peer
/// that vanished without a word is found when something is sent to it.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether a socket is on the reactor's list of those that may have something to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The kernel will say when something comes.
    Waiting,
    /// It is on the list.
    Listed,
    /// It is not to be read until the spool has room again.
    Held,
    /// The peer has closed its half, or the socket is on its way out: nothing is read any more.
    Over,
}

/// Whether its channel may send more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It may.
    Flowing,
    /// It has been told to hold back.
    Choked,
}

/// How a write ended.
#[derive(Debug)]
pub enum Flushed {
    /// Nothing is left.
    Empty,
    /// The kernel takes no more for now.
    Blocked,
    /// The connection is broken.
    Broken(io::Error),
}

/// See the module.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    /// The other end's address.
    pub peer: SocketAddr,
    /// The channel whose bytes it carries.
    pub channel: SlotKey,
    /// See [`Reading`].
    pub reading: Reading,
    /// See [`Flow`].
    pub flow: Flow,
    /// On the reactor's list of those with something to write.
    pub dirty: bool,
    asks_writable: bool,
    unsent: Vec<u8>,
    sent: usize,
}

impl Socket {
    /// Takes over an accepted stream: no delay for small frames, and an end to unanswered ones.
    #[must_use]
    pub fn new(stream: TcpStream, peer: SocketAddr, channel: SlotKey) -> Self {
        let options = SockRef::from(&stream);
        // A socket whose peer has gone already refuses options; the first read or write says so too.
        let _ = options.set_tcp_nodelay(true);
        let _ = options.set_tcp_user_timeout(Some(USER_TIMEOUT));
        Self {
            stream,
            peer,
            channel,
            reading: Reading::Waiting,
            flow: Flow::Flowing,
            dirty: false,
            asks_writable: false,
            unsent: Vec::new(),
            sent: 0,
        }
    }

    /// Begins to be polled, for reading.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn register(&mut self, registry: &Registry, key: SlotKey) -> io::Result<()> {
        registry.register(&mut self.stream, key.into(), Interest::READABLE)
    }

    /// Ends being polled.
    pub fn deregister(&mut self, registry: &Registry) {
        // Closing the descriptor ends it as well; this only keeps a late event from being made.
        let _ = registry.deregister(&mut self.stream);
    }

    /// Reads once.
    ///
    /// # Errors
    /// As the kernel says; `WouldBlock` when nothing is there.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.unsent.len() - self.sent
    }

    /// Sends `bytes` after what waits already; what the kernel does not take waits.
    pub fn write(&mut self, bytes: &[u8]) -> Flushed {
        if self.unsent_bytes() > 0 {
            self.unsent.extend_from_slice(bytes);
            return Flushed::Blocked;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(taken) => rest = &rest[taken..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unsent.extend_from_slice(rest);
                    return Flushed::Blocked;
                }
                Err(error) => return Flushed::Broken(error),
            }
        }
        Flushed::Empty
    }

    /// Sends what waits. When all is sent, the buffer is given back.
    pub fn flush(&mut self) -> Flushed {
        while self.sent < self.unsent.len() {
            match self.stream.write(&self.unsent[self.sent..]) {
                Ok(taken) => self.sent += taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Flushed::Blocked,
                Err(error) => return Flushed::Broken(error),
            }
        }
        self.unsent = Vec::new();
        self.sent = 0;
        Flushed::Empty
    }

    /// Asks the kernel to say when it takes more, where bytes remain, and only there.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn ask_for_writable(&mut self, registry: &Registry, key: SlotKey) -> io::Result<()> {
        let wanted = self.unsent_bytes() > 0;
        if wanted == self.asks_writable {
            return Ok(());
        }
        let interest = if wanted { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        registry.reregister(&mut self.stream, key.into(), interest)?;
        self.asks_writable = wanted;
        Ok(())
    }

    /// Says that nothing more comes from here; what the peer still sends is not read.
    pub fn shutdown(&mut self) {
        // It fails only where the connection is gone, which is what it is for.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }
}
