//! The buffers that a connection borrows for one read or write.
//!
//! A connection at rest owns no buffer. What it reads is read into here, opened into here, and taken apart here; what it sends
//! is put together here, sealed here, and written from here. Only what is left over (half a frame, half a record, bytes that
//! the kernel would not take) is copied to the connection, and given back when it is done with.

use super::transport::Wrapping;

/// Bytes that one read asks for: some TLS records of the largest size (16 KiB and 256 bytes, RFC 8446 section 5.2), so that
/// a read mostly ends with the kernel's buffer empty.
const READ_BYTES: usize = 64 * 1024;

/// A reactor's own buffers; one set serves all of its connections, one after the other.
#[derive(Debug)]
pub struct Scratch {
    /// Bytes as they came from the kernel.
    pub received: Box<[u8]>,
    /// What was inside the records.
    pub plaintext: Vec<u8>,
    /// A frame on its way out.
    pub frame: Vec<u8>,
    /// Sealed records on their way out.
    pub records: Vec<u8>,
    /// What was inside an outer TLS, or in WebSocket frames.
    pub unwrapped: Vec<u8>,
    /// What goes out by another road than TCP.
    pub wrapping: Wrapping,
}

impl Scratch {
    /// Makes the buffers.
    #[must_use]
    pub fn new() -> Self {
        Self {
            received: vec![0; READ_BYTES].into_boxed_slice(),
            plaintext: Vec::with_capacity(READ_BYTES),
            frame: Vec::with_capacity(READ_BYTES),
            records: Vec::with_capacity(READ_BYTES),
            unwrapped: Vec::new(),
            wrapping: Wrapping::default(),
        }
    }
}

impl Scratch {
    /// Moves what was unwrapped to the beginning of `received`, where whatever reads it next finds its bytes; gives its length. It is less than what was
    /// received, and than a record that was kept: sockets whose bytes are wrapped are read in half the room.
    pub fn take_unwrapped(&mut self) -> usize {
        let bytes = self.unwrapped.len();
        self.received[..bytes].copy_from_slice(&self.unwrapped);
        bytes
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
