//! A connection on its way, for a lane that has none any more.
//!
//! A name's resolution waits, and so do the proxy's answer and the outer TLS; the session's own thread has to hear and speak meanwhile. So another
//! thread makes the connection and wakes it by a descriptor. It ends by itself, with its connection, when nobody wants that any more: within the limits
//! of [`Way::open`]. One that its lane has dropped is called off.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use rustix::event::{EventfdFlags, eventfd};

use crate::connection::road::{RoadFault, Waits};
use crate::connection::stream::Stream;
use crate::connection::way::{Passage, Way};

/// See the module.
pub(super) struct Opening {
    made: Receiver<Result<Stream, RoadFault>>,
    /// Readable when it is made, or is known not to be.
    done: Arc<OwnedFd>,
    /// Made readable when it is not wanted any more.
    off: Arc<OwnedFd>,
}

impl Opening {
    /// Begins to open a stream for requests along `way`.
    ///
    /// # Errors
    /// When there is no thread or descriptor to be had.
    pub(super) fn begin(way: &Way) -> Result<Self, RoadFault> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = || eventfd(0, flags).map(Arc::new).map_err(|error| RoadFault::new(error.to_string()));
        let (done, off) = (event()?, event()?);
        let (makes, made) = bounded(1);
        let (way, its_done, its_off) = (way.clone(), Arc::clone(&done), Arc::clone(&off));
        std::thread::Builder::new().name("opening".to_owned()).spawn(move || {
            // Said last, also by a thread that dies.
            let _done = Done(its_done);
            let makes = makes;
            // Whoever has dropped the other end wants neither.
            let _ = makes.send(way.open(Passage::Requests, Some(&its_off)));
        })?;
        Ok(Self { made, done, off })
    }

    /// What came of it, once it is known.
    pub(super) fn take(&self) -> Option<Result<Stream, RoadFault>> {
        match self.made.try_recv() {
            Ok(made) => Some(made),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(RoadFault::new("the thread that connects has died"))),
        }
    }

    pub(super) fn waits<'a>(&'a self, waits: &mut Waits<'a>) {
        waits.socket(self.done.as_fd(), false);
    }
}

/// Makes it readable when it is dropped.
struct Done(Arc<OwnedFd>);

impl Drop for Done {
    fn drop(&mut self) {
        signal(&self.0);
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        signal(&self.off);
    }
}

fn signal(event: &OwnedFd) {
    // It can fail only when it is readable already.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}
