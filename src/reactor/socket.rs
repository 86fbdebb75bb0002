//! One file descriptor: its stream, the bytes that wait to be sent, and what it waits for.
//!
//! A socket knows neither TLS nor frames: bytes come and go, and what they are is its transport's affair. At rest it owns no heap buffer. Three limits hold: above
//! [`CHOKED_BYTES`] of unsent bytes its channel is told to hold back, below [`FLOWING_BYTES`] to go on, and at
//! [`UNSENT_BYTES_MAX`] a reader that is too slow is dropped.

use std::io::{self, Read, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry};
use socket2::SockRef;

use super::passed::Standing;
use super::slots::SlotKey;
use super::transport::Transport;

/// High-water mark of unsent bytes: some dozens of tasks. What comes after waits in the hub, where it costs nothing.
pub const CHOKED_BYTES: usize = 128 * 1024;
/// Low-water mark of unsent bytes.
pub const FLOWING_BYTES: usize = 32 * 1024;
/// Most unsent bytes of a socket. A choked channel is sent answers to its own requests only, 64 policy documents of
/// 60 KiB at most; whoever asks again without reading has earned the end.
pub const UNSENT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes sent that a buffer may still hold at its front: moving what is behind them for less would cost more than it frees.
const SENT_BYTES_KEPT: usize = 64 * 1024;

/// Reads of what a peer said that is let go: as much as a kernel holds of it as a rule.
const READ_OVER_MAX: usize = 4;

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
    /// Its peer is not known, and what it has said waits for its step of the handshake.
    InLine,
    /// As many requests wait behind one that is not answered as may.
    Behind,
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
    /// The kernel takes no more for now, and is to be asked when it does.
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
    /// The channel whose bytes it carries: on TCP and as a WebSocket that one alone, on HTTP none.
    pub channel: Option<SlotKey>,
    /// What its bytes are.
    pub transport: Transport,
    /// See [`Reading`].
    pub reading: Reading,
    /// See [`Flow`].
    pub flow: Flow,
    /// The kernel has said that the peer closed its half. No edge comes for that again, so the socket is read until its end.
    pub read_closed: bool,
    /// On the reactor's list of those with something to write.
    pub dirty: bool,
    /// Bytes that wait while the kernel is not asked are held back: the next write or flush sends them.
    asks_writable: bool,
    /// Of most sockets there is nothing unsent at most times.
    unsent: Option<Box<Unsent>>,
}

/// Bytes that the kernel would not take yet, or that are held back, in their order.
#[derive(Debug, Default)]
struct Unsent {
    bytes: Vec<u8>,
    /// How many of them it has taken since.
    sent: usize,
    /// What a ping is to be answered with when they are sent.
    pong: Option<Vec<u8>>,
}

impl Socket {
    /// Takes over an accepted stream: no delay for small frames, and an end to unanswered ones.
    #[must_use]
    pub fn new(stream: TcpStream, peer: SocketAddr, transport: Transport) -> Self {
        let options = SockRef::from(&stream);
        // A socket whose peer has gone already refuses options; the first read or write says so too.
        let _ = options.set_tcp_nodelay(true);
        let _ = options.set_tcp_user_timeout(Some(USER_TIMEOUT));
        Self {
            stream,
            peer,
            channel: None,
            transport,
            reading: Reading::Waiting,
            flow: Flow::Flowing,
            read_closed: false,
            dirty: false,
            asks_writable: false,
            unsent: None,
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

    /// Whether no byte waits to be sent, and no request for its answer.
    #[must_use]
    pub fn has_nothing_to_say(&self) -> bool {
        let is_underway = matches!(&self.transport, Transport::Web(web) if web.is_underway());
        self.unsent_bytes() == 0 && !is_underway
    }

    /// Whether a device's requests come by it, and may come again.
    #[must_use]
    pub fn may_ask_for_a_tunnel(&self) -> bool {
        matches!(&self.transport, Transport::Web(web) if web.standing() == Standing::Welcome && !web.is_parting())
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.unsent.as_ref().map_or(0, |unsent| unsent.rest().len())
    }

    /// Keeps `bytes` until the next write or flush, since more is about to follow.
    pub fn hold_back(&mut self, bytes: &[u8]) {
        self.keep(bytes);
    }

    /// Whether bytes are held back.
    #[must_use]
    pub fn holds_back(&self) -> bool {
        !self.asks_writable && self.unsent_bytes() > 0
    }

    /// Sends `bytes` after what waits already; what the kernel does not take waits.
    pub fn write(&mut self, bytes: &[u8]) -> Flushed {
        if self.unsent_bytes() > 0 {
            self.keep(bytes);
            // Where the kernel is asked, it will say; else they were held back.
            return if self.asks_writable { Flushed::Blocked } else { self.flush() };
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(taken) => rest = &rest[taken..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.keep(rest);
                    return Flushed::Blocked;
                }
                Err(error) => return Flushed::Broken(error),
            }
        }
        Flushed::Empty
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.unsent.get_or_insert_default().push(bytes);
    }

    /// Sends what waits. When all is sent, the buffer is given back.
    pub fn flush(&mut self) -> Flushed {
        while let Some(unsent) = self.unsent.as_mut().filter(|unsent| !unsent.rest().is_empty()) {
            match self.stream.write(unsent.rest()) {
                Ok(taken) => unsent.on_sent(taken),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Flushed::Blocked,
                Err(error) => return Flushed::Broken(error),
            }
        }
        self.unsent.take_if(|unsent| unsent.pong.is_none());
        Flushed::Empty
    }

    /// Keeps what a ping is to be answered with while bytes are unsent, in place of what was kept before; else it is given back, to be said now.
    pub fn say_afterwards(&mut self, pong: Vec<u8>) -> Option<Vec<u8>> {
        if self.unsent_bytes() == 0 {
            return Some(pong);
        }
        self.unsent.get_or_insert_default().pong = Some(pong);
        None
    }

    /// What a ping is to be answered with, once all is sent.
    pub fn take_pong(&mut self) -> Option<Vec<u8>> {
        if self.unsent_bytes() > 0 {
            return None;
        }
        self.unsent.take()?.pong
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

    /// Reads over what has come, by way of `room`. A kernel that closes a connection with bytes that nobody has read resets it, and the peer may
    /// lose what was said to it last.
    pub fn read_over(&mut self, room: &mut [u8]) {
        for _ in 0..READ_OVER_MAX {
            match self.stream.read(room) {
                Ok(bytes) if bytes == room.len() => {}
                _ => return,
            }
        }
    }
}

impl Unsent {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The kernel took `bytes` more. A reader that is slow but steady never lets the buffer become empty, so what was sent is
    /// dropped on the way, and only when that moves no more bytes than it drops.
    fn on_sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent >= SENT_BYTES_KEPT.max(self.bytes.len() / 2) {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_is_slow_but_steady_does_not_make_the_buffer_grow() {
        let mut unsent = Unsent::default();
        unsent.push(&[0; CHOKED_BYTES]);
        for round in 0..10_000_usize {
            unsent.push(&[round as u8; 4_096]);
            unsent.on_sent(4_096);
        }
        assert_eq!(unsent.rest().len(), CHOKED_BYTES);
        assert!(unsent.bytes.len() <= 2 * CHOKED_BYTES + SENT_BYTES_KEPT, "{}", unsent.bytes.len());
        assert!(unsent.rest().starts_with(&[(10_000 - CHOKED_BYTES / 4_096) as u8; 4_096]), "in their order");
    }

    fn connected() -> (Socket, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let reader = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, peer) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        (Socket::new(TcpStream::from_std(stream), peer, Transport::Raw), reader)
    }

    #[test]
    fn what_is_held_back_goes_before_what_is_written_next() {
        let (mut socket, mut reader) = connected();
        socket.hold_back(b"one ");
        socket.hold_back(b"two ");
        assert_eq!(socket.unsent_bytes(), 8);
        assert!(matches!(socket.write(b"three"), Flushed::Empty));
        let mut read = [0; 64];
        assert_eq!(reader.read(&mut read).unwrap(), 13, "in one piece");
        assert_eq!(&read[..13], b"one two three");
        socket.hold_back(b"four");
        assert!(matches!(socket.flush(), Flushed::Empty));
        assert_eq!(reader.read(&mut read).unwrap(), 4);
    }

    #[test]
    fn what_is_held_back_before_a_kernel_that_takes_no_more_comes_in_its_place() {
        let (mut socket, mut reader) = connected();
        let mut written = 0;
        while socket.unsent_bytes() == 0 {
            written += 64 * 1024;
            socket.write(&[0; 64 * 1024]);
        }
        let unsent = socket.unsent_bytes();
        // As after a flush that sent all, but for a kernel that is full again at once.
        let rest = socket.unsent.take().unwrap().rest().to_vec();
        socket.hold_back(&rest);
        socket.hold_back(&[1; 10]);
        assert!(socket.holds_back());
        assert!(matches!(socket.write(&[2; 10]), Flushed::Blocked));
        assert_eq!(socket.unsent_bytes(), unsent + 20);
        let mut read = Vec::new();
        while read.len() < written + 20 {
            let mut some = [0; 64 * 1024];
            let bytes = reader.read(&mut some).unwrap();
            read.extend_from_slice(&some[..bytes]);
            socket.flush();
        }
        assert_eq!(&read[written..], [[1; 10], [2; 10]].concat());
    }

    #[test]
    fn whoever_has_said_more_than_was_read_hears_the_last_words_all_the_same() {
        let (mut socket, mut reader) = connected();
        std::io::Write::write_all(&mut reader, &[7; 10_000]).unwrap();
        // It has come when a byte of it can be seen.
        while !socket.stream.peek(&mut [0; 10_000]).is_ok_and(|bytes| bytes == 10_000) {}
        assert!(matches!(socket.write(b"last words"), Flushed::Empty));
        socket.shutdown();
        socket.read_over(&mut [0; 64 * 1024]);
        drop(socket);
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"last words");
    }

    #[test]
    fn a_buffer_that_is_empty_is_given_back() {
        let (mut socket, mut reader) = connected();
        let mut written = 0;
        while socket.unsent.is_none() {
            written += 64 * 1024;
            socket.write(&[7; 64 * 1024]);
        }
        let mut read = 0;
        while read < written {
            read += reader.read(&mut [0; 64 * 1024]).unwrap();
            socket.flush();
        }
        assert!(socket.unsent.is_none(), "{socket:?}");
    }
}
