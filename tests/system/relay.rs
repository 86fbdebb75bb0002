//! A TCP relay of the test's own between agents and a server, which can take a network away.
//!
//! Severed, it closes the agents' side and takes no new connections, while the server's side stays open and silent: what a server
//! sees of a laptop that was carried to another network.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a waiting thread looks whether it should stop.
const LOOK: Duration = Duration::from_millis(20);

/// See the module.
pub(crate) struct Relay {
    address: SocketAddr,
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    severed: AtomicBool,
    /// Both sides of every connection, kept open until the relay is dropped.
    pairs: Mutex<Vec<(TcpStream, TcpStream)>>,
}

impl Relay {
    /// Listens beside `server` and passes on what comes.
    pub(crate) fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((server.ip(), 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let for_thread = Arc::clone(&state);
        let thread = std::thread::spawn(move || accept(&listener, server, &for_thread));
        Self { address, state, threads: vec![thread] }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes the network away.
    pub(crate) fn sever(&mut self) {
        self.state.severed.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        for (device, _) in &*self.state.pairs.lock().unwrap() {
            // It may have gone by itself.
            let _ = device.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.sever();
    }
}

fn accept(listener: &TcpListener, server: SocketAddr, state: &Arc<State>) {
    let mut pumps = Vec::new();
    while !state.severed.load(Ordering::SeqCst) {
        let Ok((device, _)) = listener.accept() else {
            std::thread::sleep(LOOK);
            continue;
        };
        let Ok(upstream) = TcpStream::connect(server) else { continue };
        for stream in [&device, &upstream] {
            stream.set_nonblocking(false).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(LOOK)).unwrap();
        }
        for (from, to) in [(&device, &upstream), (&upstream, &device)] {
            let (from, to, state) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(state));
            pumps.push(std::thread::spawn(move || pump(from, to, &state)));
        }
        state.pairs.lock().unwrap().push((device, upstream));
    }
    pumps.into_iter().for_each(|pump| pump.join().unwrap());
}

fn pump(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut buffer = [0; 16 * 1024];
    while !state.severed.load(Ordering::SeqCst) {
        match from.read(&mut buffer) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(bytes) => {
                if to.write_all(&buffer[..bytes]).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}
