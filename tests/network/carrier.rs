//! Carries connections from a listener to somewhere else, and remembers what went by.
//!
//! What is carried may be looked at afterwards, as whoever stands in the middle could. It alters nothing, and ends with its value.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
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

    /// All bytes that went by so far, either way.
    pub(crate) fn seen(&self) -> Vec<u8> {
        self.state.seen.lock().unwrap().clone()
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
    for (mut from, mut to) in
        [(from.try_clone().unwrap(), to.try_clone().unwrap()), (to.try_clone().unwrap(), from)]
    {
        let state = Arc::clone(state);
        std::thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                state.seen.lock().unwrap().extend_from_slice(&buffer[..count]);
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
