//! Carries connections from a listener to somewhere else, and remembers what went by.
//!
//! What is carried may be looked at afterwards, as whoever stands in the middle could; one bit of it may be altered. It ends with its value.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often a waiting thread looks whether it should stop.
const LOOK: Duration = Duration::from_millis(20);

/// See the module.
pub(crate) struct Carrier {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    is_over: AtomicBool,
    seen: Mutex<Vec<u8>>,
    /// Ways in which a bit is to be altered: [`Way`]'s.
    alters: AtomicU8,
}

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Way {
    ToServer = 1,
    FromServer = 2,
}

impl Carrier {
    /// Carries what comes to `listener` to `to`.
    pub(crate) fn between(listener: TcpListener, to: SocketAddr) -> Self {
        let state = Arc::new(State::default());
        let of_thread = Arc::clone(&state);
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            while !of_thread.is_over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((from, _)) => carry(from, to, &of_thread),
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        });
        Self { state }
    }

    /// One bit is altered of the next bytes that go there and are not HTTP's own.
    pub(crate) fn alter(&self, way: Way) {
        self.state.alters.fetch_or(way as u8, Ordering::Relaxed);
    }

    /// Whether that has happened.
    pub(crate) fn has_altered(&self) -> bool {
        self.state.alters.load(Ordering::Relaxed) == 0
    }

    /// All bytes that went by so far, either way.
    pub(crate) fn seen(&self) -> Vec<u8> {
        self.state.seen.lock().unwrap().clone()
    }
}

impl State {
    /// Alters the last bit, if that is to be done: of a body, or of a frame. A head and what only frames have end otherwise, or are shorter.
    fn alter(&self, way: Way, bytes: &mut [u8]) {
        const ALTERED_BYTES_MIN: usize = 64;
        let is_head = bytes.ends_with(b"\r\n\r\n");
        if !is_head
            && bytes.len() >= ALTERED_BYTES_MIN
            && self.alters.load(Ordering::Relaxed) & way as u8 != 0
        {
            self.alters.fetch_and(!(way as u8), Ordering::Relaxed);
            *bytes.last_mut().expect("there are some") ^= 1;
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
    }
}

fn carry(from: TcpStream, to: SocketAddr, state: &Arc<State>) {
    // Nobody there: whoever has come sees an end.
    let Ok(to) = TcpStream::connect(to) else { return };
    for stream in [&from, &to] {
        stream.set_nonblocking(false).unwrap();
        stream.set_nodelay(true).unwrap();
    }
    let there = (from.try_clone().unwrap(), to.try_clone().unwrap(), Way::ToServer);
    for (mut from, mut to, way) in [there, (to, from, Way::FromServer)] {
        let state = Arc::clone(state);
        std::thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                state.seen.lock().unwrap().extend_from_slice(&buffer[..count]);
                state.alter(way, &mut buffer[..count]);
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            // Each may have gone already.
            let _ = to.shutdown(Shutdown::Write);
            let _ = from.shutdown(Shutdown::Read);
        });
    }
}
