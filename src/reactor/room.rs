//! Room for connections: one count for the whole process, since the kernel spreads devices over the reactors as it likes, and none may
//! be left to wait at one reactor while another has room.
//!
//! A connection takes room when it is accepted, and a seat when its device is known. There is a little more room than seats, so that a
//! device for which there is no seat is told so, instead of waiting for an answer that does not come. A device on long-poll has a connection more than
//! seats, whenever it speaks; those that rest between two requests go when others want room.

use std::sync::atomic::{AtomicUsize, Ordering};

/// See the module.
#[derive(Debug)]
pub struct Room {
    connections: AtomicUsize,
    connections_max: usize,
    seats_taken: AtomicUsize,
    seats: usize,
    tunnels: AtomicUsize,
}

impl Room {
    /// An empty room with so many seats, and room for `reserve` more who will not find one.
    #[must_use]
    pub fn new(seats: usize, reserve: usize) -> Self {
        Self {
            connections: AtomicUsize::new(0),
            connections_max: seats + reserve,
            seats_taken: AtomicUsize::new(0),
            seats,
            tunnels: AtomicUsize::new(0),
        }
    }

    /// Whether there is no room for another connection at present. When there is, another reactor may be quicker to take it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.connections.load(Ordering::Relaxed) >= self.connections_max
    }

    /// A connection takes room. `false` when there is none.
    #[must_use]
    pub fn enter(&self) -> bool {
        take(&self.connections, self.connections_max)
    }

    /// A connection that took room is gone.
    pub fn leave(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// A device takes a seat. `false` when all are taken.
    #[must_use]
    pub fn take_seat(&self) -> bool {
        take(&self.seats_taken, self.seats)
    }

    /// A device that took a seat is gone.
    pub fn free_seat(&self) {
        self.seats_taken.fetch_sub(1, Ordering::Relaxed);
    }

    /// A long-poll tunnel begins, which may be asked by way of any reactor.
    pub fn begin_tunnel(&self) {
        self.tunnels.fetch_add(1, Ordering::Relaxed);
    }

    /// So many tunnels are gone.
    pub fn end_tunnels(&self, count: usize) {
        self.tunnels.fetch_sub(count, Ordering::Relaxed);
    }

    /// Tunnels of all reactors.
    #[must_use]
    pub fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Relaxed)
    }
}

/// One more, up to `most`. The count guards no other memory, so its order against other things does not matter.
fn take(count: &AtomicUsize, most: usize) -> bool {
    let one_more = |taken| (taken < most).then_some(taken + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_little_more_room_than_seats() {
        let room = Room::new(2, 1);
        assert_eq!((0..5).filter(|_| room.enter()).count(), 3);
        assert!(room.is_full());
        assert_eq!((0..3).filter(|_| room.take_seat()).count(), 2);
        room.free_seat();
        room.leave();
        assert!(!room.is_full() && room.enter() && room.take_seat() && !room.take_seat());
    }
}
