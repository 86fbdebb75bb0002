//! Mailboxes: how other threads speak to a reactor.
//!
//! A bounded channel and mio's waker. However many letters come while the reactor is awake, it is woken once: a letter
//! wakes only when none has since the reactor last looked.
//!
//! Requests that strangers' sockets pass on may wait behind everything else, and have a channel of their own: however many come, orders find room and
//! stand behind none of them.
//!
//! Threads that may wait (the broker, main) use [`Mailbox::send`]. Reactors must not wait, and use [`Mailbox::try_send`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use mio::{Registry, Token, Waker};

/// Letters that a mailbox holds. Orders come in batches of a thousand rows at most, so this is far more than a burst of
/// tasks; a reader that falls this far behind makes the broker wait, which is what it should do.
const LETTERS_MAX: usize = 4096;
/// And of those that may wait, with up to 32 KiB of a request's body in each, or 64 of an answer's. What finds no room is refused or said later.
const LATE_MAX: usize = 1024;
/// Of which strangers' requests may take so many: anybody can name a tunnel that is passed on, and those of known devices and all answers need room, too.
const STRANGE_MAX: usize = LATE_MAX / 4;

/// The sending end; clones reach the same reactor.
#[derive(Debug)]
pub struct Mailbox<L> {
    letters: Sender<L>,
    late: Sender<L>,
    bell: Arc<Bell>,
}

impl<L> Clone for Mailbox<L> {
    fn clone(&self) -> Self {
        Self { letters: self.letters.clone(), late: self.late.clone(), bell: Arc::clone(&self.bell) }
    }
}

/// The reactor's end.
#[derive(Debug)]
pub struct Inbox<L> {
    letters: Receiver<L>,
    late: Receiver<L>,
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct Bell {
    waker: Waker,
    /// Rung, and not yet heard.
    rung: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // It fails only when the poll it belongs to is gone, and then nobody is left to wake.
            let _ = self.waker.wake();
        }
    }
}

/// A letter that was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Undelivered<L> {
    /// The mailbox is full: try again later.
    Full(L),
    /// The reactor is gone.
    Gone,
}

/// Makes a mailbox whose reactor is woken through `registry` with `token`.
///
/// # Errors
/// When the kernel gives no descriptor for the waker.
pub fn mailbox<L>(registry: &Registry, token: Token) -> io::Result<(Mailbox<L>, Inbox<L>)> {
    let (sender, receiver) = bounded(LETTERS_MAX);
    let (late_sender, late_receiver) = bounded(LATE_MAX);
    let bell = Arc::new(Bell { waker: Waker::new(registry, token)?, rung: AtomicBool::new(false) });
    let mailbox = Mailbox { letters: sender, late: late_sender, bell: Arc::clone(&bell) };
    Ok((mailbox, Inbox { letters: receiver, late: late_receiver, bell }))
}

impl<L> Mailbox<L> {
    /// Delivers a letter, waiting for room. `false` when the reactor is gone.
    pub fn send(&self, letter: L) -> bool {
        let delivered = self.letters.send(letter).is_ok();
        self.bell.ring();
        delivered
    }

    /// Delivers a letter if there is room.
    ///
    /// # Errors
    /// [`Undelivered`] says why not, and gives the letter back.
    pub fn try_send(&self, letter: L) -> Result<(), Undelivered<L>> {
        self.put(&self.letters, letter)
    }

    /// Delivers a letter that may wait behind all others, if there is room.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send).
    pub fn try_send_late(&self, letter: L) -> Result<(), Undelivered<L>> {
        self.put(&self.late, letter)
    }

    /// Whether a stranger's letter may wait there still.
    #[must_use]
    pub fn takes_strangers(&self) -> bool {
        self.late.len() < STRANGE_MAX
    }

    fn put(&self, letters: &Sender<L>, letter: L) -> Result<(), Undelivered<L>> {
        match letters.try_send(letter) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(TrySendError::Full(letter)) => Err(Undelivered::Full(letter)),
            Err(TrySendError::Disconnected(_)) => Err(Undelivered::Gone),
        }
    }

    /// Wakes the reactor without a letter: something that it looks at by itself has changed.
    pub fn wake(&self) {
        self.bell.ring();
    }
}

impl<L> Inbox<L> {
    /// To be called when the waker's event has come, before the letters are read: what comes from then on rings again.
    pub fn hear(&self) {
        self.bell.rung.store(false, Ordering::Release);
    }

    /// The next letter, but for those that may wait.
    #[must_use]
    pub fn next(&self) -> Option<L> {
        self.letters.try_recv().ok()
    }

    /// The next letter that may wait.
    #[must_use]
    pub fn next_late(&self) -> Option<L> {
        self.late.try_recv().ok()
    }

    /// Whether a letter waits.
    #[must_use]
    pub fn has_letters(&self) -> bool {
        !(self.letters.is_empty() && self.late.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll};
    use std::time::Duration;

    fn wakes(poll: &mut Poll) -> usize {
        let mut events = Events::with_capacity(8);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        events.iter().count()
    }

    #[test]
    fn many_letters_wake_once_until_they_are_heard() {
        let mut poll = Poll::new().unwrap();
        let (sender, inbox) = mailbox(poll.registry(), Token(7)).unwrap();
        for number in 0..100 {
            assert!(sender.send(number));
        }
        assert_eq!(wakes(&mut poll), 1);
        assert_eq!(wakes(&mut poll), 0, "one ring for all of them");
        inbox.hear();
        assert_eq!(std::iter::from_fn(|| inbox.next()).count(), 100);
        sender.wake();
        assert_eq!(wakes(&mut poll), 1, "what comes after hearing rings again");
    }

    #[test]
    fn what_may_wait_takes_nobody_s_room_and_is_heard_apart() {
        let poll = Poll::new().unwrap();
        let (sender, inbox) = mailbox(poll.registry(), Token(7)).unwrap();
        (0..LATE_MAX).for_each(|_| sender.try_send_late("a request").unwrap());
        assert!(inbox.has_letters() && inbox.next().is_none());
        assert!(sender.send("an order"));
        assert_eq!((inbox.next(), inbox.next_late()), (Some("an order"), Some("a request")));
    }

    #[test]
    fn a_full_mailbox_gives_the_letter_back() {
        let poll = Poll::new().unwrap();
        let (sender, inbox) = mailbox(poll.registry(), Token(7)).unwrap();
        for number in 0..LETTERS_MAX {
            sender.try_send(number).unwrap();
        }
        assert_eq!(sender.try_send(5), Err(Undelivered::Full(5)));
        for number in 0..LATE_MAX {
            sender.try_send_late(number).unwrap();
        }
        assert_eq!(sender.try_send_late(6), Err(Undelivered::Full(6)));
        drop(inbox);
        assert_eq!(sender.try_send(5), Err(Undelivered::Gone));
        assert_eq!(sender.try_send_late(6), Err(Undelivered::Gone));
        assert!(!sender.send(5));
    }
}
